/* What a self-test runs on: inputs from an integer hash, results that begin as poison, and the
 * comparison with the answer. */
#include <math.h>
#include <string.h>

#include "format/tensors.h"
#include "ops/selftest.h"

enum { STEP_BYTES = 256, SCALED_EXPONENT = 14 };
static const uint64_t IMAGE_BYTES = KAT_INPUT_BYTES + KAT_RESULT_BYTES;
static const uint32_t WANT_COUNT = KAT_RESULT_BYTES / 4;

/* ---- buffers ---- */

static ful_result buffer_make(const kat *k, uint64_t bytes, gpu_memory memory, const char *name,
                              gpu_buffer *out)
{
    if (k->dry) {
        *out = (gpu_buffer){.bytes = bytes, .name = name};
        return FUL_OK;
    }
    return gpu_buffer_create(k->ctx.device, bytes, memory, name, out);
}

static void buffer_end(const kat *k, gpu_buffer *b)
{
    if (k->dry)
        *b = (gpu_buffer){0};
    else
        gpu_buffer_destroy(k->ctx.device, b);
}

ful_result kat_open(ful_device *device, op_shape shape, bool dry, kat *k)
{
    const ful_alloc *a = device_alloc(device);
    *k = (kat){.ctx = {.device = device, .layer = -1, .shape = shape}, .dry = dry};
    const struct {
        gpu_buffer *buffer;
        uint64_t bytes;
        gpu_memory memory;
    } buffers[] = {
        {&k->image, IMAGE_BYTES, GPU_MEMORY_HOST},
        {&k->inputs, KAT_INPUT_BYTES, GPU_MEMORY_DEVICE},
        {&k->results, KAT_RESULT_BYTES, GPU_MEMORY_DEVICE},
        {&k->scratch, KAT_SCRATCH_BYTES, GPU_MEMORY_DEVICE},
        {&k->steps, (uint64_t)KAT_STEPS * STEP_BYTES, GPU_MEMORY_HOST},
        {&k->readback, KAT_RESULT_BYTES, GPU_MEMORY_READBACK},
    };
    ful_result r = FUL_OK;
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]) && r == FUL_OK; i++)
        r = buffer_make(k, buffers[i].bytes, buffers[i].memory, "self-test", buffers[i].buffer);
    k->want = mem_array(a, WANT_COUNT, sizeof(*k->want));
    k->host = dry ? mem_array(a, IMAGE_BYTES, 1) : k->image.mapped;
    if (r == FUL_OK && (k->want == NULL || k->host == NULL))
        r = mem_fail(WANT_COUNT * sizeof(*k->want), "a self-test");
    if (r != FUL_OK)
        kat_close(k);
    return r;
}

static void case_end(kat *k)
{
    if (k->ctx.commands != NULL)
        gpu_commands_destroy(&k->ctx.commands);
    for (uint32_t t = 0; t < k->tensor_count; t++)
        for (uint32_t i = 0; i < k->w[t].window_count; i++)
            buffer_end(k, &k->windows[t][i].buffer);
    for (uint32_t i = 0; i < KAT_KV_WINDOWS; i++)
        buffer_end(k, &k->kv_windows[i]);
    k->tensor_count = 0;
}

void kat_close(kat *k)
{
    const ful_alloc *a = device_alloc(k->ctx.device);
    gpu_buffer *buffers[] = {&k->image,   &k->inputs, &k->results,
                             &k->scratch, &k->steps,  &k->readback};
    case_end(k);
    if (k->dry)
        mem_free(a, k->host);
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        buffer_end(k, buffers[i]);
    mem_free(a, k->want);
}

ful_result kat_begin(kat *k, ful_type type)
{
    case_end(k);
    k->type = type;
    k->input_bytes = k->result_bytes = 0;
    k->given_count = k->check_count = 0;
    k->want_count = 0;
    k->runs = 0;
    k->first_ns = k->others_ns = k->least_ns = 0;
    k->ctx.half = false;
    k->ctx.tile = 0;
    k->ctx.step = kat_step_range(k, 0);
    memset(k->host, 0, IMAGE_BYTES);
    memset(k->w, 0, sizeof(k->w));
    uint32_t flags = k->dry ? GPU_COMMANDS_DRY : GPU_COMMANDS_REUSABLE;
    return gpu_commands_begin(k->ctx.device, flags, &k->ctx.commands);
}

/* ---- inputs ---- */

double kat_value(uint32_t stream, uint32_t index)
{
    uint32_t h = (index + 1) * 0x9e3779b1u ^ (stream + 1) * 0x85ebca6bu;
    h ^= h >> 15;
    h *= 0x2c1b3c6du;
    h ^= h >> 12;
    h *= 0x297a2d39u;
    return ((double)((h >> 8) % 31) - 15) / 16;
}

double kat_gain(uint32_t row)
{
    return ldexp(1, (int)(row % 5) - 2);
}

static uint64_t up256(uint64_t bytes)
{
    return (bytes + 255) & ~(uint64_t)255;
}

/* Too much shows as a range outside its buffer, which no dispatch takes. */
gpu_range kat_input(kat *k, uint64_t bytes, void *host)
{
    gpu_range r = {&k->inputs, k->input_bytes, bytes};
    uint8_t *at = k->host + k->input_bytes;
    k->input_bytes += up256(bytes);
    if (k->input_bytes > KAT_INPUT_BYTES) {
        k->input_bytes = r.offset;
        at = k->host;
    }
    memcpy(host, &at, sizeof(at));
    return r;
}

gpu_range kat_result(kat *k, uint64_t bytes)
{
    gpu_range r = {&k->results, k->result_bytes, bytes};
    k->result_bytes += up256(bytes);
    return r;
}

gpu_range kat_given(kat *k, uint64_t bytes, void *host)
{
    gpu_range r = kat_result(k, bytes);
    uint8_t *at = k->host + KAT_INPUT_BYTES + r.offset;
    if (k->result_bytes > KAT_RESULT_BYTES)
        at = k->host;
    else
        k->given[k->given_count++] = r;
    memcpy(host, &at, sizeof(at));
    return r;
}

gpu_range kat_floats(kat *k, uint32_t rows, uint32_t cols, uint32_t stride, uint32_t stream,
                     bool gain)
{
    float *host;
    gpu_range r = kat_input(k, 4 * (uint64_t)rows * stride, &host);
    for (uint32_t i = 0; i < rows && !k->dry; i++)
        for (uint32_t c = 0; c < cols; c++)
            host[(uint64_t)i * stride + c] =
                (float)(kat_value(stream, i * cols + c) * (gain ? kat_gain(i) : 1));
    return r;
}

op_blocks kat_halves(kat *k, uint32_t rows, uint32_t cols, uint32_t block, uint32_t stream,
                     bool gain)
{
    uint16_t *half;
    float *scale;
    uint32_t blocks = cols / block;
    op_blocks b = {.stride = cols, .block = block};
    b.data = kat_input(k, 2 * (uint64_t)rows * cols, &half);
    b.scale = kat_input(k, 4 * (uint64_t)rows * blocks, &scale);
    for (uint32_t i = 0; i < rows * blocks && !k->dry; i++) {
        uint32_t row = i / blocks, first = row * cols + i % blocks * block;
        double most = 0, by = gain ? kat_gain(row) : 1;
        int exponent;
        for (uint32_t c = 0; c < block; c++)
            most = fmax(most, fabs(kat_value(stream, first + c)) * by);
        (void)frexp(most, &exponent);
        double undo = most > 0 ? ldexp(1, exponent - SCALED_EXPONENT) : 1;
        scale[i] = (float)undo;
        for (uint32_t c = 0; c < block; c++)
            half[first + c] = float_to_half((float)(kat_value(stream, first + c) * by / undo));
    }
    return b;
}

/* Blocks of steps of 1/16: codes of q8_0 and q5_0 (base/types.h). */
static void block_put(uint8_t *row, const gpu_tensor *t, uint32_t c, double value)
{
    type_planes planes = type_device_planes(t->type, t->cols);
    const uint16_t step = 0x2c00;
    int code = (int)(value * 16);
    if (c % 32 == 0)
        memcpy(row + planes.scales + c / 32 * 2, &step, sizeof step);
    if (t->type == FUL_TYPE_Q8_0) {
        row[c] = (uint8_t)code;
        return;
    }
    uint32_t word, bits = (uint32_t)(code + 16), i = c % 32;
    uint8_t *low = row + c / 8 * 4, *high = row + planes.high + c / 32 * 4;
    memcpy(&word, low, 4);
    word |= (bits & 15) << (4 * (c % 8 / 2) + 16 * (c % 2));
    memcpy(low, &word, 4);
    memcpy(&word, high, 4);
    word |= bits >> 4 << (i / 2 + 16 * (i % 2));
    memcpy(high, &word, 4);
}

/* The values are exact in every type: bf16 is the upper half of f32. */
static void weight_put(uint8_t *to, ful_type type, double value)
{
    float f = (float)value;
    uint32_t bits;
    memcpy(&bits, &f, sizeof(bits));
    uint16_t half = type == FUL_TYPE_F16 ? float_to_half(f) : (uint16_t)(bits >> 16);
    if (type == FUL_TYPE_F32)
        memcpy(to, &f, sizeof(f));
    else
        memcpy(to, &half, sizeof(half));
}

static ful_result window_fill(const kat *k, const gpu_tensor *t, const gpu_window *w,
                              uint32_t stream)
{
    uint64_t size = type_bytes(t->type);
    uint8_t *to = w->buffer.mapped;
    for (uint32_t e = 0; e < w->expert_count; e++)
        for (uint32_t r = 0; r < w->row_count; r++, to += t->row_bytes) {
            uint32_t first = ((w->expert0 + e) * t->rows + w->row0 + r) * t->cols;
            memset(to, 0, t->row_bytes);
            for (uint32_t c = 0; c < t->cols; c++)
                if (type_is_blocks(t->type))
                    block_put(to, t, c, kat_value(stream, first + c));
                else
                    weight_put(to + c * size, t->type, kat_value(stream, first + c));
        }
    return gpu_buffer_flush(k->ctx.device, &w->buffer, 0, w->buffer.bytes);
}

ful_result kat_weights(kat *k, uint32_t experts, uint32_t rows, uint32_t cols, uint32_t first,
                       uint32_t stream, const gpu_tensor **out)
{
    uint32_t n = k->tensor_count++, all = experts > 1 ? experts : rows;
    gpu_tensor *t = &k->w[n];
    *t = (gpu_tensor){.type = k->type, .experts = experts, .rows = rows, .cols = cols};
    t->row_bytes = type_device_row_bytes(k->type, cols);
    t->windows = k->windows[n];
    *out = t;
    for (uint32_t i = 0, at = 0; i < 2 && at < all; i++) {
        uint32_t count = i == 0 && first < all ? first : all - at;
        gpu_window *w = &t->windows[t->window_count++];
        *w = experts > 1 ? (gpu_window){.expert0 = at, .expert_count = count, .row_count = rows}
                         : (gpu_window){.expert_count = 1, .row0 = at, .row_count = count};
        at += count;
        TRY(buffer_make(k, (uint64_t)w->expert_count * w->row_count * t->row_bytes, GPU_MEMORY_HOST,
                        "self-test weights", &w->buffer));
        if (!k->dry)
            TRY(window_fill(k, t, w, stream));
    }
    return FUL_OK;
}

ful_result kat_kv(kat *k, ful_type type, uint32_t kv_heads, uint32_t head_dim, uint32_t tokens,
                  uint32_t window_tokens)
{
    k->kv = (op_kv){.type = type,
                    .kv_heads = kv_heads,
                    .head_dim = head_dim,
                    .capacity_tokens = tokens,
                    .window_tokens = window_tokens,
                    .window_count = div_up_u32(tokens, window_tokens),
                    .windows = k->kv_windows};
    for (uint32_t i = 0; i < k->kv.window_count; i++) {
        uint32_t left = tokens - i * window_tokens;
        uint64_t bytes =
            op_kv_bytes(type, kv_heads, head_dim, left < window_tokens ? left : window_tokens);
        TRY(buffer_make(k, bytes, GPU_MEMORY_DEVICE, "self-test keys", &k->kv_windows[i]));
    }
    return FUL_OK;
}

gpu_range kat_step_range(const kat *k, uint32_t i)
{
    return (gpu_range){&k->steps, (uint64_t)i * STEP_BYTES, sizeof(step_params)};
}

void kat_step(kat *k, uint32_t i, const step_params *step)
{
    if (!k->dry)
        memcpy((uint8_t *)k->steps.mapped + (uint64_t)i * STEP_BYTES, step, sizeof(*step));
}

/* ---- answers ---- */

double *kat_want(kat *k, uint64_t count)
{
    if (count > WANT_COUNT - k->want_count)
        return NULL;
    double *want = k->want + k->want_count;
    k->want_count += count;
    memset(want, 0, count * sizeof(*want));
    return want;
}

void kat_expect(kat *k, kat_form form, gpu_range at, uint32_t rows, uint32_t cols, uint32_t stride,
                const double *want, double tolerance)
{
    k->checks[k->check_count++] = (kat_check){.form = form,
                                              .at = at,
                                              .rows = rows,
                                              .cols = cols,
                                              .stride = stride,
                                              .block = cols,
                                              .want = want,
                                              .tolerance = tolerance};
}

void kat_untouched(kat *k, gpu_range at, uint32_t first, uint64_t row_bytes)
{
    uint64_t before = first * row_bytes;
    k->checks[k->check_count++] = (kat_check){
        .form = KAT_UNTOUCHED, .at = {at.buffer, at.offset + before, at.bytes - before}};
}

/* ---- running ---- */

ful_result kat_record_begin(kat *k)
{
    gpu_commands *c = k->ctx.commands;
    if (k->input_bytes > KAT_INPUT_BYTES || k->result_bytes > KAT_RESULT_BYTES)
        return fail(FUL_ERR_ARGUMENT, "self-test: %llu bytes of inputs, %llu of results",
                    (unsigned long long)k->input_bytes, (unsigned long long)k->result_bytes);
    if (k->dry)
        return FUL_OK;
    gpu_range image = gpu_whole(&k->image);
    TRY(gpu_buffer_flush(k->ctx.device, &k->image, 0, k->image.bytes));
    if (k->input_bytes > 0)
        TRY(gpu_commands_copy(c, gpu_part(image, 0, k->input_bytes),
                              gpu_part(gpu_whole(&k->inputs), 0, k->input_bytes)));
    TRY(gpu_commands_fill(c, gpu_part(gpu_whole(&k->results), 0, k->result_bytes), KAT_POISON));
    TRY(gpu_commands_fill(c, gpu_whole(&k->scratch), KAT_POISON));
    for (uint32_t i = 0; i < KAT_KV_WINDOWS; i++)
        if (k->kv_windows[i].bytes > 0)
            TRY(gpu_commands_fill(c, gpu_whole(&k->kv_windows[i]), KAT_POISON));
    for (uint32_t i = 0; i < k->given_count; i++)
        TRY(gpu_commands_copy(
            c, gpu_part(image, KAT_INPUT_BYTES + k->given[i].offset, k->given[i].bytes),
            k->given[i]));
    return FUL_OK;
}

ful_result kat_record_end(kat *k)
{
    if (!k->dry)
        TRY(gpu_buffer_flush(k->ctx.device, &k->steps, 0, k->steps.bytes));
    if (!k->dry)
        TRY(gpu_commands_copy(k->ctx.commands, gpu_part(gpu_whole(&k->results), 0, k->result_bytes),
                              gpu_part(gpu_whole(&k->readback), 0, k->result_bytes)));
    return gpu_commands_end(k->ctx.commands);
}

static uint32_t word_at(const uint8_t *bytes, uint64_t index)
{
    uint32_t w;
    memcpy(&w, bytes + 4 * index, sizeof(w));
    return w;
}

static double float_at(const uint8_t *bytes, uint64_t index)
{
    float f;
    memcpy(&f, bytes + 4 * index, sizeof(f));
    return (double)f;
}

static double got_at(const kat *k, const kat_check *c, uint32_t row, uint32_t col)
{
    const uint8_t *all = k->readback.mapped, *at = all + c->at.offset;
    uint64_t i = (uint64_t)row * c->stride + col;
    uint16_t half;
    switch (c->form) {
    case KAT_F32:
        return float_at(at, i);
    case KAT_HALF:
        memcpy(&half, at + 2 * i, sizeof(half));
        return (double)half_to_float(half) *
               float_at(all + c->scale.offset,
                        i / c->stride * (c->cols / c->block) + col / c->block);
    case KAT_PAIRS:
        return col % 2 == 0 ? (double)word_at(at, i) : float_at(at, i);
    case KAT_WORDS:
    case KAT_UNTOUCHED:
        break;
    }
    return (double)word_at(at, i);
}

/* Largest error of a check, relative to the largest element of its row. */
static double check_error(const kat *k, const kat_check *c)
{
    double worst = 0;
    if (c->form == KAT_UNTOUCHED) {
        const uint8_t *at = (const uint8_t *)k->readback.mapped + c->at.offset;
        for (uint64_t i = 0; i < c->at.bytes / 4; i++)
            if (word_at(at, i) != KAT_POISON)
                return INFINITY;
        return 0;
    }
    for (uint32_t r = 0; r < c->rows; r++) {
        const double *want = c->want + (uint64_t)r * c->cols;
        double most = 0, error = 0;
        for (uint32_t i = 0; i < c->cols; i++) {
            double got = got_at(k, c, r, i);
            most = fmax(most, fabs(want[i]));
            if (!isfinite(got))
                return INFINITY;
            /* An expert or a token is the right one or not. */
            if (got != want[i] && (c->form == KAT_WORDS || (c->form == KAT_PAIRS && i % 2 == 0)))
                return INFINITY;
            error = fmax(error, fabs(got - want[i]));
        }
        if (error > 0)
            worst = fmax(worst, most > 0 ? error / most : INFINITY);
    }
    return worst;
}

ful_result kat_run(kat *k, bool spoil, double *error, double *tolerance, bool *over)
{
    ful_device *d = k->ctx.device;
    uint64_t start = time_ns();
    TRY(gpu_commands_submit(k->ctx.commands));
    TRY(gpu_commands_wait(k->ctx.commands));
    uint64_t took = time_ns() - start;
    *(k->runs == 0 ? &k->first_ns : &k->others_ns) += took;
    k->least_ns = k->runs == 0 || took < k->least_ns ? took : k->least_ns;
    k->runs++;
    TRY(gpu_buffer_invalidate(d, &k->readback, 0, k->result_bytes));
    if (spoil)
        memset((uint8_t *)k->readback.mapped + k->checks[0].at.offset, 0x77, 4);
    for (uint32_t i = 0; i < k->check_count; i++) {
        double e = check_error(k, &k->checks[i]);
        bool exceeds = !(e <= k->checks[i].tolerance);
        *error = fmax(*error, e);
        if (exceeds || (!*over && k->checks[i].tolerance > *tolerance))
            *tolerance = k->checks[i].tolerance;
        *over = *over || exceeds;
    }
    return FUL_OK;
}
