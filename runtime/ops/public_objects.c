/* fulgur/ops.h: buffers, tensors, caches and streams. */
#include "ops/public.h"

#include <math.h>
#include <string.h>

#include "base/types.h"
#include "format/quant.h"

/* ---- buffers ---- */

static ful_result name_copy(const ful_alloc *a, const char *name, const char *fallback, char **out)
{
    *out = mem_strdup(a, name != NULL ? name : fallback);
    return *out != NULL ? FUL_OK : mem_fail(strlen(name != NULL ? name : fallback) + 1, "a name");
}

ful_result ful_buffer_create(ful_buffer **out, ful_device *device, const ful_buffer_params *params)
{
    if (out == NULL || device == NULL || params == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_buffer_create: out, device and params must be given");
    *out = NULL;
    if (params->bytes == 0)
        return fail(FUL_ERR_ARGUMENT, "ful_buffer_create: 0 bytes");
    const ful_alloc *a = device_alloc(device);
    ful_buffer *b = mem_zalloc(a, 1, sizeof *b);
    if (b == NULL)
        return mem_fail(sizeof *b, "a buffer");
    b->device = device;
    ful_result r = name_copy(a, params->name, "buffer", &b->name);
    if (r == FUL_OK)
        r = gpu_buffer_create(device, (params->bytes + 3) / 4 * 4, GPU_MEMORY_DEVICE, b->name,
                              &b->gpu);
    if (r != FUL_OK) {
        ful_buffer_destroy(&b);
        return r;
    }
    b->bytes = params->bytes;
    *out = b;
    return FUL_OK;
}

void ful_buffer_destroy(ful_buffer **buffer)
{
    if (buffer == NULL || *buffer == NULL)
        return;
    ful_buffer *b = *buffer;
    const ful_alloc *a = device_alloc(b->device);
    gpu_buffer_destroy(b->device, &b->gpu);
    mem_free(a, b->name);
    mem_free(a, b);
    *buffer = NULL;
}

uint64_t ful_buffer_bytes(const ful_buffer *buffer)
{
    return buffer != NULL ? buffer->bytes : 0;
}

static ful_result copy_check(const ful_buffer *b, const char *call, uint64_t offset,
                             const void *data, uint64_t bytes)
{
    if (b == NULL || data == NULL)
        return fail(FUL_ERR_ARGUMENT, "%s: buffer and data must be given", call);
    if (offset % 4 != 0 || bytes % 4 != 0)
        return fail(FUL_ERR_ARGUMENT, "%s: offset %llu and size %llu must be multiples of 4", call,
                    (unsigned long long)offset, (unsigned long long)bytes);
    if (offset > b->gpu.bytes || bytes > b->gpu.bytes - offset)
        return fail(FUL_ERR_ARGUMENT, "%s: %llu bytes at %llu are outside buffer %s of %llu bytes",
                    call, (unsigned long long)bytes, (unsigned long long)offset, b->name,
                    (unsigned long long)b->gpu.bytes);
    return FUL_OK;
}

ful_result ful_buffer_write(ful_buffer *buffer, uint64_t offset_bytes, const void *data,
                            uint64_t bytes)
{
    TRY(copy_check(buffer, "ful_buffer_write", offset_bytes, data, bytes));
    if (bytes == 0)
        return FUL_OK;
    return gpu_range_write(buffer->device, gpu_whole(&buffer->gpu), offset_bytes, data, bytes);
}

ful_result ful_buffer_read(const ful_buffer *buffer, uint64_t offset_bytes, void *data,
                           uint64_t bytes)
{
    TRY(copy_check(buffer, "ful_buffer_read", offset_bytes, data, bytes));
    if (bytes == 0)
        return FUL_OK;
    return gpu_range_read(buffer->device, gpu_whole(&buffer->gpu), offset_bytes, data, bytes);
}

ful_result ful_buffer_fill(ful_buffer *buffer, uint32_t word)
{
    if (buffer == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_buffer_fill: buffer must be given");
    return gpu_range_fill(buffer->device, gpu_whole(&buffer->gpu), word);
}

/* ---- tensors ---- */

static ful_result columns_check(const char *call, const char *name, ful_type type, uint32_t cols)
{
    if (type_row_bytes(type, cols) != 0)
        return FUL_OK;
    return fail(FUL_ERR_ARGUMENT,
                "%s: %s: %u columns are not a multiple of the %u of a block of %s", call, name,
                (unsigned)cols, (unsigned)type_get(type)->block_elements, ful_type_name(type));
}

ful_result ful_tensor_create(ful_tensor **out, ful_device *device, const ful_tensor_params *params)
{
    if (out == NULL || device == NULL || params == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_create: out, device and params must be given");
    *out = NULL;
    ful_type type = params->type != FUL_TYPE_DEFAULT ? params->type : FUL_TYPE_BF16;
    const char *name = params->name != NULL ? params->name : "tensor";
    if (type_get(type) == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_create: %s: type %d", name, (int)type);
    uint32_t experts = params->experts != 0 ? params->experts : 1;
    if (params->rows == 0 || params->cols == 0)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_create: %s: %u rows of %u columns", name,
                    (unsigned)params->rows, (unsigned)params->cols);
    TRY(columns_check("ful_tensor_create", name, type, params->cols));
    const ful_alloc *a = device_alloc(device);
    ful_tensor *t = mem_zalloc(a, 1, sizeof *t);
    if (t == NULL)
        return mem_fail(sizeof *t, "a tensor");
    t->device = device;
    ful_result r = name_copy(a, params->name, "tensor", &t->name);
    if (r == FUL_OK)
        r = gpu_tensor_create(device, type, experts, params->rows, params->cols, t->name, &t->gpu);
    if (r != FUL_OK) {
        mem_free(a, t->name);
        mem_free(a, t);
        return r;
    }
    *out = t;
    return FUL_OK;
}

void ful_tensor_destroy(ful_tensor **tensor)
{
    if (tensor == NULL || *tensor == NULL)
        return;
    ful_tensor *t = *tensor;
    const ful_alloc *a = device_alloc(t->device);
    gpu_tensor_destroy(t->device, &t->gpu);
    mem_free(a, t->name);
    mem_free(a, t);
    *tensor = NULL;
}

/* Blocks reach beyond fp16 as bf16 does: 127 times an fp16 scale, or mxfp4's powers of two. */
static ful_result write_scales(ful_tensor *t, uint32_t expert, uint32_t row0, uint32_t row_count,
                               const uint8_t *data, uint64_t packed_bytes)
{
    const ful_alloc *a = device_alloc(t->device);
    ful_type type = t->gpu.type;
    float *scales = mem_array(a, row_count, sizeof *scales);
    if (scales == NULL)
        return mem_fail(row_count * sizeof *scales, "row scales");
    bool needed = t->gpu.row_scale.vk != VK_NULL_HANDLE;
    for (uint32_t i = 0; i < row_count; i++) {
        scales[i] = row_half_scale(type, data + i * packed_bytes, t->gpu.cols);
        needed = needed || scales[i] != 1.0f;
    }
    ful_result r = FUL_OK;
    if (needed && t->gpu.row_scale.vk == VK_NULL_HANDLE) {
        uint64_t bytes = sizeof(float) * (uint64_t)t->gpu.experts * t->gpu.rows;
        r = gpu_buffer_create(t->device, bytes, GPU_MEMORY_DEVICE, t->name, &t->gpu.row_scale);
        if (r == FUL_OK)
            r = gpu_range_fill(t->device, gpu_whole(&t->gpu.row_scale), 0x3f800000u); /* 1.0 */
    }
    if (needed && r == FUL_OK)
        r = gpu_range_write(t->device, gpu_whole(&t->gpu.row_scale),
                            sizeof(float) * ((uint64_t)expert * t->gpu.rows + row0), scales,
                            sizeof(float) * (uint64_t)row_count);
    mem_free(a, scales);
    return r;
}

static ful_result rows_check(const ful_tensor *tensor, const char *call, uint32_t expert,
                             uint32_t row0, uint32_t row_count)
{
    const gpu_tensor *t = &tensor->gpu;
    if (expert >= t->experts || row0 > t->rows || row_count > t->rows - row0)
        return fail(FUL_ERR_ARGUMENT, "%s: rows %u + %u of expert %u, %s has %u x %u", call,
                    (unsigned)row0, (unsigned)row_count, (unsigned)expert, tensor->name,
                    (unsigned)t->experts, (unsigned)t->rows);
    return FUL_OK;
}

/* Of `wanted` rows from row0 on, those that lie in one window. */
static uint32_t rows_together(const gpu_tensor *t, uint32_t expert, uint32_t row0, uint32_t wanted)
{
    for (uint32_t i = 0; i < t->window_count; i++) {
        const gpu_window *w = &t->windows[i];
        uint32_t end = w->row0 + w->row_count;
        if (expert >= w->expert0 && expert - w->expert0 < w->expert_count && row0 >= w->row0 &&
            row0 < end)
            return wanted < end - row0 ? wanted : end - row0;
    }
    return 1;
}

/* Rows as files have them, and as the device does: planes, or with padding behind. */
static void row_to_device(const gpu_tensor *t, const uint8_t *row, uint64_t packed_bytes,
                          uint8_t *out)
{
    if (type_is_blocks(t->type)) {
        quant_to_device(t->type, row, t->cols, out);
        return;
    }
    memcpy(out, row, packed_bytes);
    memset(out + packed_bytes, 0, t->row_bytes - packed_bytes);
}

static void row_from_device(const gpu_tensor *t, const uint8_t *row, uint64_t packed_bytes,
                            uint8_t *out)
{
    if (type_is_blocks(t->type))
        quant_from_device(t->type, row, t->cols, out);
    else
        memcpy(out, row, packed_bytes);
}

/* Rows that are brought over together. */
static uint8_t *rows_room(const ful_tensor *tensor, uint32_t row_count, uint32_t *each)
{
    enum { ROOM_BYTES = 1 << 20 };
    const gpu_tensor *t = &tensor->gpu;
    uint64_t n = ROOM_BYTES / t->row_bytes;
    *each = n == 0 ? 1 : n < row_count ? (uint32_t)n : row_count;
    return mem_array(device_alloc(tensor->device), *each, t->row_bytes);
}

ful_result ful_tensor_write(ful_tensor *tensor, uint32_t expert, uint32_t row0, uint32_t row_count,
                            const void *data)
{
    if (tensor == NULL || data == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_write: tensor and data must be given");
    gpu_tensor *t = &tensor->gpu;
    TRY(rows_check(tensor, "ful_tensor_write", expert, row0, row_count));
    if (row_count == 0)
        return FUL_OK;
    uint64_t packed_bytes = type_row_bytes(t->type, t->cols);
    const uint8_t *rows = data;
    uint32_t each;
    uint8_t *room = rows_room(tensor, row_count, &each);
    if (room == NULL)
        return mem_fail(each * t->row_bytes, "weight rows");
    ful_result r = FUL_OK;
    for (uint32_t done = 0, n; done < row_count && r == FUL_OK; done += n) {
        uint32_t left = row_count - done;
        n = rows_together(t, expert, row0 + done, left < each ? left : each);
        for (uint32_t i = 0; i < n; i++)
            row_to_device(t, rows + (done + i) * packed_bytes, packed_bytes,
                          room + i * t->row_bytes);
        gpu_range range = gpu_tensor_row(t, expert, row0 + done);
        range.bytes = n * t->row_bytes;
        r = gpu_range_write(tensor->device, range, 0, room, range.bytes);
    }
    mem_free(device_alloc(tensor->device), room);
    if (r == FUL_OK && t->type != FUL_TYPE_F16)
        r = write_scales(tensor, expert, row0, row_count, rows, packed_bytes);
    return r;
}

ful_result ful_tensor_read(const ful_tensor *tensor, uint32_t expert, uint32_t row0,
                           uint32_t row_count, void *data)
{
    if (tensor == NULL || data == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_read: tensor and data must be given");
    const gpu_tensor *t = &tensor->gpu;
    TRY(rows_check(tensor, "ful_tensor_read", expert, row0, row_count));
    if (row_count == 0)
        return FUL_OK;
    uint64_t packed_bytes = type_row_bytes(t->type, t->cols);
    bool direct = !type_is_blocks(t->type) && packed_bytes == t->row_bytes;
    uint8_t *rows = data, *room = NULL;
    uint32_t each = row_count;
    if (!direct && (room = rows_room(tensor, row_count, &each)) == NULL)
        return mem_fail(each * t->row_bytes, "weight rows");
    ful_result r = FUL_OK;
    for (uint32_t done = 0, n; done < row_count && r == FUL_OK; done += n) {
        uint32_t left = row_count - done;
        n = rows_together(t, expert, row0 + done, left < each ? left : each);
        gpu_range range = gpu_tensor_row(t, expert, row0 + done);
        range.bytes = n * t->row_bytes;
        uint8_t *out = rows + done * packed_bytes;
        r = gpu_range_read(tensor->device, range, 0, direct ? out : room, range.bytes);
        for (uint32_t i = 0; i < n && room != NULL && r == FUL_OK; i++)
            row_from_device(t, room + i * t->row_bytes, packed_bytes, out + i * packed_bytes);
    }
    mem_free(device_alloc(tensor->device), room);
    return r;
}

/* ---- rows on the host ---- */

uint64_t ful_row_bytes(ful_type type, uint32_t cols)
{
    return type_row_bytes(type, cols);
}

ful_result ful_row_decode(ful_type type, const void *row, uint32_t cols, float *out)
{
    if (row == NULL || out == NULL || type_get(type) == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_row_decode: row, out and a type must be given");
    TRY(columns_check("ful_row_decode", "row", type, cols));
    row_to_floats(type, row, cols, out);
    return FUL_OK;
}

ful_result ful_row_encode(ful_type type, const float *row, uint32_t cols, const float *importance,
                          void *out)
{
    if (row == NULL || out == NULL || type_get(type) == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_row_encode: row, out and a type must be given");
    TRY(columns_check("ful_row_encode", "row", type, cols));
    uint64_t unfit = type_is_blocks(type) ? quant_find_unfit(type, row, cols) : cols;
    if (unfit < cols)
        return fail(FUL_ERR_ARGUMENT, "ful_row_encode: element %llu is %g, which %s can't hold",
                    (unsigned long long)unfit, (double)row[unfit], ful_type_name(type));
    row_from_floats(type, row, cols, importance, out);
    return FUL_OK;
}

/* ---- pseudo-random contents ---- */

static ful_result run_alone(ful_device *device, ful_result (*record)(const op_context *, void *),
                            void *arg)
{
    op_context ctx = {.device = device, .layer = -1};
    TRY(gpu_commands_begin(device, 0, &ctx.commands));
    ful_result r = record(&ctx, arg);
    if (r == FUL_OK)
        r = gpu_commands_end(ctx.commands);
    if (r == FUL_OK)
        r = gpu_commands_submit(ctx.commands);
    if (r == FUL_OK)
        r = gpu_commands_wait(ctx.commands);
    gpu_commands_destroy(&ctx.commands);
    return r;
}

typedef struct random_job {
    const gpu_tensor *tensor;
    op_random_args args;
} random_job;

static ful_result record_random(const op_context *ctx, void *arg)
{
    random_job *job = arg;
    if (job->tensor != NULL)
        return op_random_tensor(ctx, job->tensor, &job->args);
    return op_random(ctx, &job->args);
}

ful_result ful_tensor_randomize(ful_tensor *tensor, uint64_t seed, double deviation)
{
    if (tensor == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tensor_randomize: tensor must be given");
    if (tensor->gpu.row_scale.vk != VK_NULL_HANDLE) /* of the rows that were there */
        TRY(gpu_range_fill(tensor->device, gpu_whole(&tensor->gpu.row_scale), 0x3f800000u));
    random_job job = {.tensor = &tensor->gpu,
                      .args = {.key = op_random_key(seed, 0), .deviation = deviation}};
    return run_alone(tensor->device, record_random, &job);
}

ful_result ful_buffer_randomize(ful_buffer *buffer, uint64_t seed, double mean, double deviation)
{
    if (buffer == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_buffer_randomize: buffer must be given");
    uint64_t part = device_window_bytes(buffer->device), bytes = buffer->gpu.bytes / 16 * 16;
    for (uint64_t at = 0; at < bytes; at += part) {
        gpu_range out =
            gpu_part(gpu_whole(&buffer->gpu), at, bytes - at < part ? bytes - at : part);
        random_job job = {.args = {.out = out,
                                   .type = FUL_TYPE_F32,
                                   .key = op_random_key(seed, at / part),
                                   .rows = 1,
                                   .row_bytes = out.bytes,
                                   .mean = mean,
                                   .deviation = deviation}};
        TRY(run_alone(buffer->device, record_random, &job));
    }
    /* Rows of the kernel are of four words. */
    static const float rest[4];
    if (bytes < buffer->gpu.bytes)
        TRY(gpu_range_write(buffer->device, gpu_whole(&buffer->gpu), bytes, rest,
                            buffer->gpu.bytes - bytes));
    return FUL_OK;
}

/* ---- keys and values, decay factors, rotation ---- */

ful_result ful_kv_create(ful_kv **out, ful_device *device, const ful_kv_params *params)
{
    if (out == NULL || device == NULL || params == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_kv_create: out, device and params must be given");
    *out = NULL;
    ful_type type = params->type != FUL_TYPE_DEFAULT ? params->type : FUL_TYPE_F16;
    if ((type != FUL_TYPE_F16 && type != FUL_TYPE_F32) || params->kv_heads == 0 ||
        params->head_dim == 0 || params->capacity_tokens == 0)
        return fail(FUL_ERR_ARGUMENT, "ful_kv_create: type %s, %u heads of %u, %u tokens",
                    ful_type_name(type), (unsigned)params->kv_heads, (unsigned)params->head_dim,
                    (unsigned)params->capacity_tokens);
    const ful_alloc *a = device_alloc(device);
    ful_kv *kv = mem_zalloc(a, 1, sizeof *kv);
    if (kv == NULL)
        return mem_fail(sizeof *kv, "a key and value cache");
    kv->device = device;
    ful_result r = op_kv_create(device, type, params->kv_heads, params->head_dim,
                                params->capacity_tokens, &kv->gpu);
    if (r != FUL_OK) {
        mem_free(a, kv);
        return r;
    }
    *out = kv;
    return FUL_OK;
}

void ful_kv_destroy(ful_kv **kv)
{
    if (kv == NULL || *kv == NULL)
        return;
    op_kv_destroy((*kv)->device, &(*kv)->gpu);
    mem_free(device_alloc((*kv)->device), *kv);
    *kv = NULL;
}

ful_result ful_lightning_decay(ful_buffer **out, ful_device *device, uint32_t heads,
                               uint32_t head_dim, const double *slopes)
{
    if (out == NULL || device == NULL || slopes == NULL || heads == 0)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_lightning_decay: out, device, heads and slopes must be given");
    *out = NULL;
    if (head_dim == 0 || head_dim % 16 != 0 || head_dim > 256)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_lightning_decay: head_dim %u is no multiple of 16 up to 256",
                    (unsigned)head_dim);
    const ful_alloc *a = device_alloc(device);
    uint64_t bytes = op_lightning_decay_bytes(device, heads, head_dim);
    void *table = mem_zalloc(a, 1, bytes);
    if (table == NULL)
        return mem_fail(bytes, "decay factors");
    op_lightning_decay_fill(device, heads, head_dim, slopes, table);
    ful_result r =
        ful_buffer_create(out, device, ful_buffer_params(.bytes = bytes, .name = "decay"));
    if (r == FUL_OK) {
        r = ful_buffer_write(*out, 0, table, bytes);
        if (r != FUL_OK)
            ful_buffer_destroy(out);
    }
    mem_free(a, table);
    return r;
}

void ful_rope_table(uint32_t first_position, uint32_t rows, uint32_t rotary_dim, double theta,
                    float *out)
{
    op_rope_table(first_position, rows, rotary_dim, theta, out);
}

/* ---- streams ---- */

ful_result ful_stream_begin(ful_stream **out, ful_device *device, const ful_stream_params *params)
{
    if (out == NULL || device == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_stream_begin: out and device must be given");
    *out = NULL;
    const ful_alloc *a = device_alloc(device);
    ful_stream *s = mem_zalloc(a, 1, sizeof *s);
    if (s == NULL)
        return mem_fail(sizeof *s, "a stream");
    s->device = device;
    bool timed = params != NULL && params->timed;
    ful_result r = gpu_buffer_create(device, sizeof(step_params), GPU_MEMORY_HOST,
                                     "step parameters", &s->step);
    if (r == FUL_OK)
        r = gpu_commands_begin(device, GPU_COMMANDS_REUSABLE | (timed ? GPU_COMMANDS_TIMED : 0),
                               &s->commands);
    if (r != FUL_OK) {
        ful_stream_destroy(&s);
        return r;
    }
    s->ctx = (op_context){.device = device,
                          .commands = s->commands,
                          .step = gpu_whole(&s->step),
                          .half = params != NULL && params->half && op_half_usable(device),
                          .layer = -1};
    *out = s;
    return FUL_OK;
}

void ful_stream_destroy(ful_stream **stream)
{
    if (stream == NULL || *stream == NULL)
        return;
    ful_stream *s = *stream;
    const ful_alloc *a = device_alloc(s->device);
    if (s->commands != NULL)
        gpu_commands_destroy(&s->commands);
    while (s->scratch != NULL) {
        stream_scratch *next = s->scratch->next;
        gpu_buffer_destroy(s->device, &s->scratch->buffer);
        mem_free(a, s->scratch);
        s->scratch = next;
    }
    gpu_buffer_destroy(s->device, &s->step);
    mem_free(a, s);
    *stream = NULL;
}

ful_result stream_scratch_get(ful_stream *s, uint64_t bytes, gpu_range *out)
{
    const ful_alloc *a = device_alloc(s->device);
    stream_scratch *piece = mem_zalloc(a, 1, sizeof *piece);
    if (piece == NULL)
        return mem_fail(sizeof *piece, "scratch memory");
    ful_result r = gpu_buffer_create(s->device, bytes != 0 ? (bytes + 3) / 4 * 4 : 4,
                                     GPU_MEMORY_DEVICE, "scratch", &piece->buffer);
    if (r != FUL_OK) {
        mem_free(a, piece);
        return r;
    }
    piece->next = s->scratch;
    s->scratch = piece;
    *out = gpu_whole(&piece->buffer);
    return FUL_OK;
}

ful_result ful_stream_run(ful_stream *stream, const ful_step *step)
{
    if (stream == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_stream_run: stream must be given");
    uint32_t rows = step != NULL && step->n_rows != 0 ? step->n_rows : stream->max_rows;
    uint32_t position = step != NULL ? step->position : 0;
    if (rows > stream->max_rows)
        return fail(FUL_ERR_ARGUMENT, "ful_stream_run: %u rows, the ops were recorded for %u",
                    (unsigned)rows, (unsigned)stream->max_rows);
    if (stream->kv_tokens != 0 && (uint64_t)position + rows > stream->kv_tokens)
        return fail(FUL_ERR_CONTEXT_FULL,
                    "ful_stream_run: %u rows at position %u, the cache holds %u tokens",
                    (unsigned)rows, (unsigned)position, (unsigned)stream->kv_tokens);
    if (!stream->ended) {
        stream->ended = true;
        TRY(gpu_commands_end(stream->commands));
    }
    step_params params = {.n_rows = rows, .position = position, .kv_tokens = position + rows};
    if (step != NULL) {
        params.temperature = step->temperature;
        params.top_p = step->top_p != 0 ? step->top_p : 1.0f;
        params.min_p = step->min_p;
        params.top_k = step->top_k;
        params.uniform = step->uniform;
    }
    TRY(gpu_range_write(stream->device, gpu_whole(&stream->step), 0, &params, sizeof params));
    TRY(gpu_commands_submit(stream->commands));
    return gpu_commands_wait(stream->commands);
}

uint64_t ful_stream_span_ns(const ful_stream *stream)
{
    return stream != NULL ? gpu_commands_span_ns(stream->commands) : 0;
}

ful_result ful_stream_times(ful_stream *stream, ful_op_time *out, uint32_t *count)
{
    if (stream == NULL || count == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_stream_times: stream and count must be given");
    const gpu_time *times;
    uint32_t n;
    TRY(gpu_commands_times(stream->commands, &times, &n));
    for (uint32_t i = 0; out != NULL && i < n && i < *count; i++)
        out[i] =
            (ful_op_time){times[i].label, times[i].ns, times[i].cost.bytes, times[i].cost.flops};
    *count = n;
    return FUL_OK;
}
