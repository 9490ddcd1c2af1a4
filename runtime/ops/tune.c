/* fulgur/tune.h: the candidates of every choice, measured in turns so that clocks and neighbours
 * disturb all alike, and compared with what the default computes. */
#include "fulgur/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/op_common.h"
#include "ops/tiles.h"
#include "ops/tuning.h"

enum {
    CANDIDATES = 16, /* the first is the default */
    ROUNDS = 24,
    REPEATS = 64, /* of the op in one submission, at most */
    TOP_K = 2,
    POISON = 0x7fc00000
};
#define LEAST_NS 2e6   /* that a submission should last */
#define GAIN 0.97      /* a candidate must be that much faster than the default */
#define TOLERANCE 2e-3 /* relative RMS: sums in another order, inputs rounded to halves */

typedef struct candidate {
    uint32_t value;
    gpu_commands *commands;
    double us[ROUNDS];
    double median, least;
    char wrong[160]; /* why it may not be chosen; "" = it may */
} candidate;

/* What one kind of work needs, made once for all choices that it decides. */
typedef struct tuner {
    ful_device *device;
    op_context ctx;
    tune_sizes sizes;
    ful_tune_params params;
    tuning_work work;
    bool ready;
    gpu_buffer step, rope, x, half, scale, routes, out;
    gpu_buffer scratch;    /* enough for every candidate of the choice */
    gpu_tensor w, w2, w13; /* of a step: into and out of the mixer, and experts */
    gpu_tensor down;
    op_kv kv;
    candidate list[CANDIDATES];
    uint32_t count;
    float *want, *got; /* [out_count] */
    uint64_t out_count;
} tuner;

/* ---- inputs ---- */

static ful_result fill_random(const op_context *ctx, const gpu_buffer *b, ful_type type,
                              uint32_t number, double deviation)
{
    return op_random(ctx, &(op_random_args){.out = gpu_part(gpu_whole(b), 0, b->bytes / 16 * 16),
                                            .type = type,
                                            .key = op_random_key(1, number),
                                            .rows = 1,
                                            .row_bytes = b->bytes / 16 * 16,
                                            .deviation = deviation});
}

static ful_result fill_tensor(const op_context *ctx, const gpu_tensor *t, uint32_t number)
{
    return op_random_tensor(
        ctx, t,
        &(op_random_args){.key = op_random_key(1, number), .deviation = 1 / sqrt((double)t->cols)});
}

static ful_result run_now(gpu_commands *commands)
{
    TRY(gpu_commands_submit(commands));
    return gpu_commands_wait(commands);
}

static ful_result buffer_make(tuner *t, uint64_t bytes, const char *name, gpu_buffer *out)
{
    return gpu_buffer_create(t->device, bytes, GPU_MEMORY_DEVICE, name, out);
}

/* Pairs of the rows' experts: varied, two different ones a row. */
static ful_result routes_make(tuner *t, tuning_work work, uint32_t rows)
{
    const ful_alloc *a = device_alloc(t->device);
    uint64_t words = 2 * TOP_K * (uint64_t)rows;
    uint32_t *routes = mem_array(a, words, sizeof(*routes));
    if (routes == NULL)
        return mem_fail(words * sizeof(*routes), "routes");
    const float weight = 0.5f;
    uint32_t experts = work == TUNING_MATVEC ? (uint32_t)TOP_K : t->sizes.experts;
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t hash = (r + 1) * 0x9e3779b9u;
        hash ^= hash >> 15;
        uint32_t first = hash % experts,
                 second = (first + 1 + hash / experts % (experts - 1)) % experts;
        const uint32_t pair[TOP_K] = {first, second};
        for (uint32_t k = 0; k < TOP_K; k++) {
            routes[2 * (r * TOP_K + k)] = pair[k];
            memcpy(&routes[2 * (r * TOP_K + k) + 1], &weight, sizeof(weight));
        }
    }
    ful_result r = gpu_range_write(t->device, gpu_whole(&t->routes), 0, routes, words * 4);
    mem_free(a, routes);
    return r;
}

static uint32_t rows_of(const tuner *t, const tuning_field *f)
{
    return f->work == TUNING_EXPERTS ? f->rows * t->sizes.experts / TOP_K : f->rows;
}

static uint32_t most_rows(const tuner *t, tuning_work work)
{
    uint32_t count, most = 1;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++)
        if (fields[i].work == work && rows_of(t, &fields[i]) > most)
            most = rows_of(t, &fields[i]);
    return most;
}

static uint32_t x_cols(const tuner *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    return work == TUNING_EXPERTS     ? n->dim
           : work == TUNING_MATVEC    ? (n->cols > n->weight_rows ? n->cols : n->weight_rows)
           : work == TUNING_ATTENTION ? (n->heads + 2 * n->kv_heads) * n->head_dim
                                      : n->cols;
}

static uint32_t out_cols(const tuner *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    return work == TUNING_EXPERTS     ? n->dim
           : work == TUNING_MATVEC    ? n->weight_rows + 2 * n->cols
           : work == TUNING_ATTENTION ? n->heads * n->head_dim
                                      : n->weight_rows;
}

static ful_result weights_make(tuner *t, uint32_t experts, uint32_t rows, uint32_t cols,
                               gpu_tensor *out)
{
    return gpu_tensor_create(t->device, FUL_TYPE_F16, experts, rows, cols, "weights", out);
}

/* What one token reads in a layer: the matrices around the mixer and those of TOP_K experts. */
static ful_result step_allocate(tuner *t)
{
    const tune_sizes *n = &t->sizes;
    TRY(buffer_make(t, 8 * TOP_K, "routes", &t->routes));
    TRY(weights_make(t, 1, n->weight_rows, n->cols, &t->w));
    TRY(weights_make(t, 1, n->cols, n->weight_rows, &t->w2));
    TRY(weights_make(t, TOP_K, 2 * n->step_width, n->cols, &t->w13));
    return weights_make(t, TOP_K, n->cols, n->step_width, &t->down);
}

static ful_result work_allocate(tuner *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    uint64_t rows = most_rows(t, work), cols = x_cols(t, work);
    TRY(gpu_buffer_create(t->device, sizeof(step_params), GPU_MEMORY_HOST, "step parameters",
                          &t->step));
    t->ctx.step = gpu_whole(&t->step);
    TRY(buffer_make(t, 4 * rows * cols, "inputs", &t->x));
    t->out_count = rows * out_cols(t, work);
    TRY(buffer_make(t, 4 * t->out_count, "outputs", &t->out));
    const ful_alloc *a = device_alloc(t->device);
    t->want = mem_array(a, t->out_count, sizeof(float));
    t->got = mem_array(a, t->out_count, sizeof(float));
    if (t->want == NULL || t->got == NULL)
        return mem_fail(t->out_count * sizeof(float), "outputs");
    if (work == TUNING_ATTENTION) {
        t->kv = (op_kv){.type = FUL_TYPE_F16,
                        .kv_heads = n->kv_heads,
                        .head_dim = n->head_dim,
                        .capacity_tokens = n->keys};
        TRY(op_kv_create(t->device, t->kv.type, n->kv_heads, n->head_dim, n->keys, &t->kv));
        return buffer_make(t, 4 * (uint64_t)n->head_dim, "rope", &t->rope);
    }
    if (work == TUNING_MATVEC)
        return step_allocate(t);
    if (t->ctx.half) {
        TRY(buffer_make(t, 2 * rows * cols, "halves", &t->half));
        TRY(buffer_make(t, 4 * rows, "row scales", &t->scale));
    }
    if (work == TUNING_MATMUL)
        return weights_make(t, 1, n->weight_rows, n->cols, &t->w);
    TRY(buffer_make(t, 8 * TOP_K * rows, "routes", &t->routes));
    TRY(weights_make(t, n->experts, 2 * n->width, n->dim, &t->w13));
    return weights_make(t, n->experts, n->dim, n->width, &t->down);
}

static op_activation activation(const tuner *t, tuning_work work)
{
    uint32_t cols = x_cols(t, work);
    if (!t->ctx.half)
        return (op_activation){.data = gpu_whole(&t->x), .dim = cols, .stride = cols};
    return (op_activation){.data = gpu_whole(&t->half),
                           .scale = gpu_whole(&t->scale),
                           .dim = cols,
                           .stride = cols,
                           .half = true};
}

static ful_result record_inputs(tuner *t, tuning_work work)
{
    TRY(fill_random(&t->ctx, &t->x, FUL_TYPE_F32, 1, 1.0));
    if (work == TUNING_ATTENTION) {
        for (uint32_t i = 0; i < t->kv.window_count; i++)
            TRY(fill_random(&t->ctx, &t->kv.windows[i], FUL_TYPE_F16, 2 + i, 0.5));
        return gpu_commands_fill(t->ctx.commands, gpu_whole(&t->rope),
                                 0x3f3504f3u); /* 45 degrees */
    }
    const gpu_tensor *tensors[] = {&t->w, &t->w2, &t->w13, &t->down};
    for (uint32_t i = 0; i < 4; i++)
        TRY(fill_tensor(&t->ctx, tensors[i], 100 + i));
    if (!t->ctx.half || work == TUNING_MATVEC)
        return FUL_OK;
    op_activation half = activation(t, work);
    return op_pack(&t->ctx, gpu_whole(&t->x), &half, most_rows(t, work), true);
}

static ful_result inputs_make(tuner *t, tuning_work work)
{
    TRY(gpu_commands_begin(t->device, 0, &t->ctx.commands));
    ful_result r = record_inputs(t, work);
    if (r == FUL_OK)
        r = gpu_commands_end(t->ctx.commands);
    if (r == FUL_OK)
        r = run_now(t->ctx.commands);
    gpu_commands_destroy(&t->ctx.commands);
    return r;
}

static void work_end(tuner *t)
{
    const ful_alloc *a = device_alloc(t->device);
    gpu_buffer *buffers[] = {&t->step, &t->rope, &t->x, &t->half, &t->scale, &t->routes, &t->out};
    for (size_t i = 0; i < sizeof(buffers) / sizeof(buffers[0]); i++)
        gpu_buffer_destroy(t->device, buffers[i]);
    gpu_tensor_destroy(t->device, &t->w);
    gpu_tensor_destroy(t->device, &t->w2);
    gpu_tensor_destroy(t->device, &t->w13);
    gpu_tensor_destroy(t->device, &t->down);
    if (t->kv.windows != NULL)
        op_kv_destroy(t->device, &t->kv);
    mem_free(a, t->want);
    mem_free(a, t->got);
    t->want = t->got = NULL;
    t->ready = false;
}

static ful_result work_begin(tuner *t, tuning_work work)
{
    if (t->ready && t->work == work)
        return FUL_OK;
    if (t->ready)
        work_end(t);
    t->work = work;
    t->ready = true;
    TRY(work_allocate(t, work));
    return inputs_make(t, work);
}

/* ---- candidates ---- */

static bool value_fits(const tuner *t, const tuning_field *f, uint32_t value)
{
    /* Processors have as many workgroups under way as they have threads. */
    if (f->work == TUNING_ATTENTION && strstr(f->name, "workgroups") != NULL)
        return op_wide(&t->ctx) ? value >= 128 : value <= 16;
    return true;
}

static void candidates_list(tuner *t, const tuning_field *f)
{
    uint32_t codes[CANDIDATES - 1], n = 0;
    if (f->values[0] != 0) {
        for (uint32_t i = 0; i < TUNING_VALUES && f->values[i] != 0; i++)
            if (value_fits(t, f, f->values[i]))
                codes[n++] = f->values[i];
    } else {
        n = tiles_candidates(&t->ctx, codes, CANDIDATES - 1);
    }
    /* One kernel and the rule that picks it leave nothing to choose. */
    t->count = 0;
    if (n < 2 || (f->work == TUNING_MATVEC && !op_wide(&t->ctx)))
        return;
    t->list[t->count++] = (candidate){.value = 0};
    for (uint32_t i = 0; i < n; i++)
        t->list[t->count++] = (candidate){.value = codes[i]};
}

/* Products of one row, as a decoded token asks for them, with results one after the other. */
static ful_result record_step(tuner *t)
{
    const tune_sizes *n = &t->sizes;
    gpu_range x = gpu_whole(&t->x), out = gpu_whole(&t->out);
    uint64_t into = 4 * (uint64_t)n->weight_rows, from = 4 * (uint64_t)n->cols;
    TRY(op_matmul(&t->ctx, &(op_matmul_args){.x = {.data = x, .dim = n->cols, .stride = n->cols},
                                             .w = &t->w,
                                             .out = gpu_part(out, 0, into),
                                             .out_stride = n->weight_rows,
                                             .rows = 1}));
    TRY(op_matmul(&t->ctx, &(op_matmul_args){
                               .x = {.data = x, .dim = n->weight_rows, .stride = n->weight_rows},
                               .w = &t->w2,
                               .out = gpu_part(out, into, from),
                               .out_stride = n->cols,
                               .rows = 1}));
    return op_moe(&t->ctx, &(op_moe_args){.x = {.data = x, .dim = n->cols, .stride = n->cols},
                                          .routes = gpu_whole(&t->routes),
                                          .w13 = &t->w13,
                                          .w2 = &t->down,
                                          .top_k = TOP_K,
                                          .rows = 1,
                                          .out = gpu_part(out, into + from, from),
                                          .scratch = gpu_whole(&t->scratch)});
}

static ful_result record_once(tuner *t, const tuning_field *f)
{
    const tune_sizes *n = &t->sizes;
    gpu_range scratch = gpu_whole(&t->scratch);
    uint32_t rows = rows_of(t, f);
    if (f->work == TUNING_ATTENTION)
        return op_attention(&t->ctx, &(op_attention_args){.qkv = gpu_whole(&t->x),
                                                          .qkv_stride = x_cols(t, f->work),
                                                          .heads = n->heads,
                                                          .head_dim = n->head_dim,
                                                          .rotary_dim = n->head_dim,
                                                          .rows = rows,
                                                          .rope = gpu_whole(&t->rope),
                                                          .kv = &t->kv,
                                                          .out = gpu_whole(&t->out),
                                                          .scratch = scratch});
    if (f->work == TUNING_EXPERTS)
        return op_moe(&t->ctx, &(op_moe_args){.x = activation(t, f->work),
                                              .routes = gpu_whole(&t->routes),
                                              .w13 = &t->w13,
                                              .w2 = &t->down,
                                              .top_k = TOP_K,
                                              .rows = rows,
                                              .out = gpu_whole(&t->out),
                                              .scratch = scratch});
    if (f->work == TUNING_MATVEC)
        return record_step(t);
    return op_matmul(&t->ctx, &(op_matmul_args){.x = activation(t, f->work),
                                                .w = &t->w,
                                                .out = gpu_whole(&t->out),
                                                .out_stride = n->weight_rows,
                                                .rows = rows});
}

static uint64_t scratch_bytes(const tuner *t, const tuning_field *f)
{
    const tune_sizes *n = &t->sizes;
    uint32_t rows = rows_of(t, f);
    if (f->work == TUNING_ATTENTION)
        return op_attention_scratch_bytes(&t->ctx, rows, n->heads, n->head_dim, &t->kv);
    if (f->work == TUNING_EXPERTS)
        return op_moe_scratch_bytes(&t->ctx, rows, TOP_K, n->experts, n->dim, n->width);
    if (f->work == TUNING_MATVEC)
        return op_moe_scratch_bytes(&t->ctx, rows, TOP_K, TOP_K, n->cols, n->step_width);
    return 4;
}

static ful_result scratch_make(tuner *t, const tuning_field *f)
{
    uint64_t most = 4;
    for (uint32_t i = 0; i < t->count; i++) {
        tuning_set(t->device, f, t->list[i].value);
        uint64_t bytes = scratch_bytes(t, f);
        most = bytes > most ? bytes : most;
    }
    return buffer_make(t, most, "scratch", &t->scratch);
}

/* The commands of a candidate, `repeats` times one after the other. */
static ful_result candidate_record(tuner *t, const tuning_field *f, candidate *c, uint32_t repeats)
{
    if (c->commands != NULL)
        gpu_commands_destroy(&c->commands);
    tuning_set(t->device, f, c->value);
    TRY(gpu_commands_begin(t->device, GPU_COMMANDS_REUSABLE, &c->commands));
    t->ctx.commands = c->commands;
    for (uint32_t i = 0; i < repeats; i++)
        TRY(record_once(t, f));
    return gpu_commands_end(c->commands);
}

static ful_result candidate_time(candidate *c, double *ns)
{
    uint64_t start = time_ns();
    TRY(run_now(c->commands));
    uint64_t span = gpu_commands_span_ns(c->commands);
    *ns = (double)(span != 0 ? span : time_ns() - start);
    return FUL_OK;
}

/* "" if `got` is all written and near `want`. */
static void compare(const float *want, const float *got, uint64_t count, char *wrong, size_t bytes)
{
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < count; i++) {
        double d = (double)got[i] - (double)want[i];
        if (!isfinite(got[i])) {
            snprintf(wrong, bytes, "element %llu is %g", (unsigned long long)i, (double)got[i]);
            return;
        }
        error += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    double relative = norm > 0 ? sqrt(error / norm) : error > 0 ? INFINITY : 0;
    if (!(relative <= TOLERANCE))
        snprintf(wrong, bytes, "differs from the default by %.2g", relative);
}

/* Runs once on poisoned output and fresh input. */
static ful_result candidate_check(tuner *t, const tuning_field *f, candidate *c, bool first)
{
    uint64_t count = (uint64_t)rows_of(t, f) * out_cols(t, f->work);
    float *out = first ? t->want : t->got;
    TRY(gpu_range_fill(t->device, gpu_whole(&t->out), POISON));
    if (f->work == TUNING_ATTENTION) /* rotated in place */
        TRY(inputs_make(t, f->work));
    TRY(run_now(c->commands));
    TRY(gpu_range_read(t->device, gpu_whole(&t->out), 0, out, 4 * count));
    compare(t->want, out, count, c->wrong, sizeof(c->wrong));
    return FUL_OK;
}

/* A candidate may be more than the device or its driver can do; the default may not. */
static ful_result candidate_begin(tuner *t, const tuning_field *f, uint32_t i)
{
    candidate *c = &t->list[i];
    ful_result r = candidate_record(t, f, c, 1);
    if (r == FUL_OK)
        r = candidate_check(t, f, c, i == 0);
    double ns = 0;
    if (r == FUL_OK)
        r = candidate_time(c, &ns);
    uint32_t repeats = ns > 0 ? (uint32_t)(LEAST_NS / ns) : 1;
    repeats = repeats < 1 ? 1 : repeats > REPEATS ? REPEATS : repeats;
    if (r == FUL_OK && repeats > 1)
        r = candidate_record(t, f, c, repeats);
    c->median = repeats; /* until there are measurements */
    if (r == FUL_OK || i == 0 || r == FUL_ERR_DEVICE_LOST || r == FUL_ERR_HOST_MEMORY)
        return r;
    snprintf(c->wrong, sizeof(c->wrong), "%s", ful_last_error());
    return FUL_OK;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static ful_result measure(tuner *t)
{
    uint32_t rounds = t->sizes.rounds < ROUNDS ? t->sizes.rounds : (uint32_t)ROUNDS;
    double ns;
    /* Clocks rise under load only. */
    for (uint64_t start = time_ns(); time_ns() - start < t->sizes.warm_ms * 1000000ull;)
        TRY(candidate_time(&t->list[0], &ns));
    for (uint32_t round = 0; round < rounds; round++)
        for (uint32_t i = 0; i < t->count; i++) {
            candidate *c = &t->list[i];
            if (c->wrong[0] != 0)
                continue;
            TRY(candidate_time(c, &ns));
            c->us[round] = ns / 1e3 / c->median;
        }
    for (uint32_t i = 0; i < t->count; i++) {
        candidate *c = &t->list[i];
        if (c->wrong[0] != 0)
            continue;
        qsort(c->us, rounds, sizeof(c->us[0]), ascending);
        c->median = c->us[rounds / 2];
        c->least = c->us[0];
    }
    return FUL_OK;
}

static void value_text(uint32_t value, bool tile, char *text, size_t bytes)
{
    if (value == 0)
        snprintf(text, bytes, "default");
    else if (tile)
        snprintf(text, bytes, "%u x %u, %s", (unsigned)(value >> 14 & 0x3fff),
                 (unsigned)(value & 0x3fff),
                 value >> 28 == TILE_KIND_WORKGROUP ? "workgroups" : "subgroups");
    else
        snprintf(text, bytes, "%u", (unsigned)value);
}

static ful_result report(const tuner *t, const tuning_field *f, uint32_t best)
{
    for (uint32_t i = 0; i < t->count && t->params.trial != NULL; i++) {
        const candidate *c = &t->list[i];
        char value[64];
        bool wrong = c->wrong[0] != 0;
        value_text(c->value, f->values[0] == 0, value, sizeof(value));
        ful_tune_trial trial = {.choice = f->name,
                                .value = value,
                                .us = wrong ? 0 : c->median,
                                .least_us = wrong ? 0 : c->least,
                                .chosen = i == best,
                                .wrong = wrong ? c->wrong : NULL};
        if (!t->params.trial(t->params.ctx, &trial))
            return fail(FUL_ERR_CANCELLED, "tuning was stopped at %s", f->name);
    }
    return FUL_OK;
}

static ful_result choose(tuner *t, const tuning_field *f)
{
    uint32_t best = 0;
    if (f->work == TUNING_EXPERTS || f->work == TUNING_MATVEC)
        TRY(routes_make(t, f->work, rows_of(t, f)));
    step_params step = {.n_rows = rows_of(t, f)};
    step.position = f->work == TUNING_ATTENTION ? t->sizes.keys - step.n_rows : 0;
    step.kv_tokens = step.position + step.n_rows;
    TRY(gpu_range_write(t->device, gpu_whole(&t->step), 0, &step, sizeof(step)));
    TRY(scratch_make(t, f));
    for (uint32_t i = 0; i < t->count; i++)
        TRY(candidate_begin(t, f, i));
    if (t->list[0].wrong[0] != 0)
        return fail(FUL_ERR_SELFTEST, "tuning %s: %s", f->name, t->list[0].wrong);
    TRY(measure(t));
    for (uint32_t i = 1; i < t->count; i++)
        if (t->list[i].wrong[0] == 0 && t->list[i].median < t->list[best].median &&
            t->list[i].median < GAIN * t->list[0].median)
            best = i;
    tuning_set(t->device, f, t->list[best].value);
    return report(t, f, best);
}

static ful_result tune_field(tuner *t, const tuning_field *f)
{
    candidates_list(t, f);
    if (t->count == 0)
        return FUL_OK;
    ful_result r = work_begin(t, f->work);
    if (r == FUL_OK)
        r = choose(t, f);
    for (uint32_t i = 0; i < t->count; i++)
        if (t->list[i].commands != NULL)
            gpu_commands_destroy(&t->list[i].commands);
    gpu_buffer_destroy(t->device, &t->scratch);
    return r;
}

/* ---- all of it ---- */

static ful_result tune_fields(tuner *t)
{
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++) {
        if (t->params.only != NULL && strstr(fields[i].name, t->params.only) == NULL)
            continue;
        tuning_set(t->device, &fields[i], 0);
        if (!t->params.forget)
            TRY(tune_field(t, &fields[i]));
    }
    return FUL_OK;
}

ful_result tune_device(ful_device *device, op_shape shape, const tune_sizes *sizes,
                       const ful_tune_params *params)
{
    uint32_t before[DEVICE_CHOICES];
    for (uint32_t i = 0; i < DEVICE_CHOICES; i++)
        before[i] = device_choice(device, i);
    const ful_alloc *a = device_alloc(device);
    tuner *t = mem_zalloc(a, 1, sizeof(*t));
    if (t == NULL)
        return mem_fail(sizeof(*t), "tuning");
    *t = (tuner){
        .device = device,
        .sizes = *sizes,
        .params = *params,
        .ctx = {.device = device, .half = op_half_usable(device), .layer = -1, .shape = shape}};
    ful_result r = tune_fields(t);
    work_end(t);
    mem_free(a, t);
    for (uint32_t i = 0; i < DEVICE_CHOICES && r != FUL_OK; i++)
        device_choice_set(device, i, before[i]);
    return r == FUL_OK ? device_choices_store(device) : r;
}

static tune_sizes sizes_for(const ful_device *device)
{
    ful_device_kind kind = ful_device_get_info(device)->kind;
    if (device_is_cpu(device))
        return (tune_sizes){256, 256, 4, 128, 64, 128, 8, 2, 64, 1024, 0, 5};
    if (kind == FUL_DEVICE_DISCRETE && device_free_bytes(device) >= 4ull << 30)
        return (tune_sizes){6144, 8192, 8, 6144, 2304, 9216, 64, 8, 128, 16384, 100, 15};
    return (tune_sizes){2048, 2048, 8, 1024, 1024, 2048, 16, 2, 128, 8192, 100, 9};
}

ful_result ful_device_tune(ful_device *device, const ful_tune_params *params)
{
    if (device == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_device_tune: device must be given");
    ful_tune_params p;
    TRY(params_copy(&p, sizeof(p), params, "ful_tune_params"));
    tune_sizes sizes = sizes_for(device);
    return tune_device(device, OP_SHAPE_AUTO, &sizes, &p);
}

ful_result ful_device_tuning(const ful_device *device, ful_tune_fn trial, void *ctx)
{
    if (device == NULL || trial == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_device_tuning: device and trial must be given");
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t value = tuning_get(device, &fields[i]);
        char text[64];
        value_text(value, fields[i].values[0] == 0, text, sizeof(text));
        ful_tune_trial line = {.choice = fields[i].name, .value = text, .chosen = value != 0};
        if (!trial(ctx, &line))
            return fail(FUL_ERR_CANCELLED, "the list was stopped at %s", fields[i].name);
    }
    return FUL_OK;
}
