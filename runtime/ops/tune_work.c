/* What ful_device_tune measures: buffers, weights and inputs of each kind of work, and its
 * recording. */
#include "ops/tune.h"

#include <math.h>
#include <string.h>

enum { TOP_K = 2 };

static ful_result fill_random(const op_context *ctx, const gpu_buffer *b, ful_type type,
                              uint32_t number, double mean, double deviation)
{
    return op_random(ctx, &(op_random_args){.out = gpu_part(gpu_whole(b), 0, b->bytes / 16 * 16),
                                            .type = type,
                                            .key = op_random_key(1, number),
                                            .rows = 1,
                                            .row_bytes = b->bytes / 16 * 16,
                                            .mean = mean,
                                            .deviation = deviation});
}

static ful_result fill_tensor(const op_context *ctx, const gpu_tensor *t, uint32_t number)
{
    return op_random_tensor(
        ctx, t,
        &(op_random_args){.key = op_random_key(1, number), .deviation = 1 / sqrt((double)t->cols)});
}

ful_result work_run(gpu_commands *commands)
{
    TRY(gpu_commands_submit(commands));
    return gpu_commands_wait(commands);
}

static ful_result buffer_make(workbench *t, uint64_t bytes, const char *name, gpu_buffer *out)
{
    return gpu_buffer_create(t->device, bytes, GPU_MEMORY_DEVICE, name, out);
}

/* Pairs of the rows' experts: varied, two different ones a row. */
ful_result work_routes(workbench *t, tuning_work work, uint32_t rows)
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

uint32_t work_rows(const workbench *t, const tuning_field *f)
{
    return f->work == TUNING_EXPERTS     ? f->rows * t->sizes.experts / TOP_K
           : f->work == TUNING_LIGHTNING ? t->sizes.tokens
                                         : f->rows;
}

static uint32_t most_rows(const workbench *t, tuning_work work)
{
    uint32_t count, most = 1;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++)
        if (fields[i].work == work && work_rows(t, &fields[i]) > most)
            most = work_rows(t, &fields[i]);
    return most;
}

static uint32_t x_cols(const workbench *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    return work == TUNING_EXPERTS     ? n->dim
           : work == TUNING_MATVEC    ? (n->cols > n->weight_rows ? n->cols : n->weight_rows)
           : work == TUNING_LIGHTNING ? 3 * n->heads * n->head_dim
           : work == TUNING_ATTENTION ? (n->heads + 2 * n->kv_heads) * n->head_dim
                                      : n->cols;
}

static uint32_t row_outputs(const workbench *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    return work == TUNING_EXPERTS                                 ? n->dim
           : work == TUNING_MATVEC                                ? n->weight_rows + 2 * n->cols
           : work == TUNING_ATTENTION || work == TUNING_LIGHTNING ? n->heads * n->head_dim
                                                                  : n->weight_rows;
}

/* Whether to cut rows into chunks is a question where heads are few. */
static uint32_t lightning_heads(const workbench *t, const tuning_field *f)
{
    return f->values[0] != 0 ? div_up_u32(t->sizes.heads, 4) : t->sizes.heads;
}

uint64_t work_outputs(const workbench *t, const tuning_field *f)
{
    uint64_t row = f->work == TUNING_LIGHTNING ? lightning_heads(t, f) * t->sizes.head_dim
                                               : row_outputs(t, f->work);
    return work_rows(t, f) * row;
}

static ful_result weights_make(workbench *t, uint32_t experts, uint32_t rows, uint32_t cols,
                               gpu_tensor *out)
{
    return gpu_tensor_create(t->device, FUL_TYPE_F16, experts, rows, cols, "weights", out);
}

/* What one token reads in a layer: the matrices around the mixer and those of TOP_K experts. */
static ful_result step_allocate(workbench *t)
{
    const tune_sizes *n = &t->sizes;
    TRY(buffer_make(t, 8 * TOP_K, "routes", &t->routes));
    TRY(weights_make(t, 1, n->weight_rows, n->cols, &t->w));
    TRY(weights_make(t, 1, n->cols, n->weight_rows, &t->w2));
    TRY(weights_make(t, TOP_K, 2 * n->step_width, n->cols, &t->w13));
    return weights_make(t, TOP_K, n->cols, n->step_width, &t->down);
}

/* Slopes as of a middle layer: some heads forget within a block, some never. */
static ful_result lightning_allocate(workbench *t)
{
    const tune_sizes *n = &t->sizes;
    const ful_alloc *a = device_alloc(t->device);
    uint64_t bytes = op_lightning_decay_bytes(t->device, n->heads, n->head_dim);
    TRY(buffer_make(t, bytes, "decay", &t->decay));
    TRY(buffer_make(t, 4 * (uint64_t)n->heads * n->head_dim * n->head_dim, "state", &t->state));
    double *slopes = mem_array(a, n->heads, sizeof(*slopes));
    void *table = mem_array(a, bytes, 1);
    ful_result r = FUL_OK;
    if (slopes != NULL && table != NULL) {
        for (uint32_t h = 0; h < n->heads; h++)
            slopes[h] = 0.5 * exp2(-8.0 * (h + 1.0) / n->heads);
        op_lightning_decay_fill(t->device, n->heads, n->head_dim, slopes, table);
        r = gpu_range_write(t->device, gpu_whole(&t->decay), 0, table, bytes);
    } else {
        r = mem_fail(bytes, "decay factors");
    }
    mem_free(a, slopes);
    mem_free(a, table);
    return r;
}

static ful_result work_allocate(workbench *t, tuning_work work)
{
    const tune_sizes *n = &t->sizes;
    uint64_t rows = most_rows(t, work), cols = x_cols(t, work);
    TRY(gpu_buffer_create(t->device, sizeof(step_params), GPU_MEMORY_HOST, "step parameters",
                          &t->step));
    t->ctx.step = gpu_whole(&t->step);
    TRY(buffer_make(t, 4 * rows * cols, "inputs", &t->x));
    t->out_count = rows * row_outputs(t, work);
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
    if (work == TUNING_LIGHTNING)
        return lightning_allocate(t);
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

static op_activation activation(const workbench *t, tuning_work work)
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

static ful_result record_inputs(workbench *t, tuning_work work)
{
    TRY(fill_random(&t->ctx, &t->x, FUL_TYPE_F32, 1, 0, 1.0));
    if (work == TUNING_ATTENTION) {
        /* Halves in (0.5, 1) only: two of them are a scale of the cache, too, from 3e-5 to 8e-3,
         * and scales are never negative. */
        for (uint32_t i = 0; i < t->kv.window_count; i++)
            TRY(fill_random(&t->ctx, &t->kv.windows[i], FUL_TYPE_F16, 2 + i, 0.75,
                            0.25 / sqrt(3.0)));
        return gpu_commands_fill(t->ctx.commands, gpu_whole(&t->rope),
                                 0x3f3504f3u); /* 45 degrees */
    }
    if (work == TUNING_LIGHTNING)
        return gpu_commands_fill(t->ctx.commands, gpu_whole(&t->state), 0);
    const gpu_tensor *tensors[] = {&t->w, &t->w2, &t->w13, &t->down};
    for (uint32_t i = 0; i < 4; i++)
        TRY(fill_tensor(&t->ctx, tensors[i], 100 + i));
    if (!t->ctx.half || work == TUNING_MATVEC)
        return FUL_OK;
    op_activation half = activation(t, work);
    return op_pack(&t->ctx, gpu_whole(&t->x), &half, most_rows(t, work), true);
}

ful_result work_inputs(workbench *t, tuning_work work)
{
    TRY(gpu_commands_begin(t->device, 0, &t->ctx.commands));
    ful_result r = record_inputs(t, work);
    if (r == FUL_OK)
        r = gpu_commands_end(t->ctx.commands);
    if (r == FUL_OK)
        r = work_run(t->ctx.commands);
    gpu_commands_destroy(&t->ctx.commands);
    return r;
}

void work_end(workbench *t)
{
    const ful_alloc *a = device_alloc(t->device);
    gpu_buffer *buffers[] = {&t->step,   &t->rope, &t->x,     &t->half, &t->scale,
                             &t->routes, &t->out,  &t->decay, &t->state};
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

ful_result work_begin(workbench *t, tuning_work work)
{
    if (t->ready && t->work == work)
        return FUL_OK;
    if (t->ready)
        work_end(t);
    t->work = work;
    t->ready = true;
    TRY(work_allocate(t, work));
    return work_inputs(t, work);
}

/* ---- recording ---- */

/* Products of one row, as a decoded token asks for them, with results one after the other. */
static ful_result record_step(workbench *t)
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

ful_result work_record(workbench *t, const tuning_field *f)
{
    const tune_sizes *n = &t->sizes;
    gpu_range scratch = gpu_whole(&t->scratch);
    uint32_t rows = work_rows(t, f);
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
    if (f->work == TUNING_LIGHTNING)
        return op_lightning_prefill(&t->ctx, &(op_lightning_args){.qkv = gpu_whole(&t->x),
                                                                  .qkv_stride = x_cols(t, f->work),
                                                                  .heads = lightning_heads(t, f),
                                                                  .head_dim = n->head_dim,
                                                                  .rows = rows,
                                                                  .decay = gpu_whole(&t->decay),
                                                                  .state = gpu_whole(&t->state),
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

uint64_t work_scratch_bytes(const workbench *t, const tuning_field *f)
{
    const tune_sizes *n = &t->sizes;
    uint32_t rows = work_rows(t, f);
    if (f->work == TUNING_ATTENTION)
        return op_attention_scratch_bytes(&t->ctx, rows, n->heads, n->head_dim, &t->kv);
    if (f->work == TUNING_LIGHTNING)
        return op_lightning_scratch_bytes(&t->ctx, rows, lightning_heads(t, f), n->head_dim, false);
    if (f->work == TUNING_EXPERTS)
        return op_moe_scratch_bytes(&t->ctx, rows, TOP_K, n->experts, n->dim, n->width);
    if (f->work == TUNING_MATVEC)
        return op_moe_scratch_bytes(&t->ctx, rows, TOP_K, TOP_K, n->cols, n->step_width);
    return 4;
}
