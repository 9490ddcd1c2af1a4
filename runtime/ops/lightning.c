#include <math.h>
#include <string.h>

#include "ops/op.h"

enum {
    BLOCK_TOKENS = 16,
    DECAY_WORDS = 2 * (BLOCK_TOKENS + 1), /* of a head, as the shaders read them */
    MAX_HEAD_DIM = 256,
    MAX_GROUPS = 65535
};

typedef struct scores_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count;
} scores_push;
_Static_assert(sizeof(scores_push) == 20, "as in lightning_scores.comp");

typedef struct walk_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count, out_stride;
} walk_push;
_Static_assert(sizeof(walk_push) == 24, "as in lightning_walk.comp");

/* How a kernel spreads the state of a head over a workgroup. */
typedef struct spread {
    uint32_t invocations, key_parts, columns;
} spread;

static spread spread_choose(const op_context *ctx)
{
    if (op_wide(ctx))
        return (spread){128, 4, 32};
    /* One part: no shared memory, no barrier, and every load of q and k is the same for all lanes.
     */
    uint32_t lanes = device_caps(ctx->device)->subgroup_size;
    lanes = lanes > 8 && lanes <= 64 ? lanes : 8;
    return (spread){lanes, 1, lanes};
}

uint64_t op_lightning_decay_bytes(const ful_device *device, uint32_t heads, uint32_t head_dim)
{
    (void)device;
    (void)head_dim;
    return ((uint64_t)heads * DECAY_WORDS * sizeof(float) + 255) & ~(uint64_t)255;
}

void op_lightning_decay_fill(const ful_device *device, uint32_t heads, uint32_t head_dim,
                             const double *slopes, void *out)
{
    memset(out, 0, (size_t)op_lightning_decay_bytes(device, heads, head_dim));
    float *table = out;
    for (uint32_t h = 0; h < heads; h++) {
        float *decay = table + (size_t)h * DECAY_WORDS, *fade = decay + BLOCK_TOKENS + 1;
        for (uint32_t r = 0; r <= BLOCK_TOKENS; r++) {
            decay[r] = (float)exp(-slopes[h] * (double)r);
            fade[r] = (float)expm1(-slopes[h] * (double)r);
        }
    }
}

/* Words of scratch of one block of one head: the layout is in lightning_scores.comp. */
static uint32_t block_words(bool half, uint32_t head_dim)
{
    uint32_t c = BLOCK_TOKENS;
    uint32_t words = half ? c * c / 2 + 8 * c + 3 * c * head_dim / 2 : c * c + 2 * c + 1;
    return (words + 63) & ~63u;
}

static bool prefill_half(const op_context *ctx)
{
    return ctx->half && op_half_usable(ctx->device);
}

uint64_t op_lightning_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim)
{
    uint64_t blocks = ((uint64_t)rows + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    return blocks * heads * block_words(prefill_half(ctx), head_dim) * sizeof(uint32_t);
}

static ful_result check(const op_lightning_args *a)
{
    uint64_t inner = (uint64_t)a->heads * a->head_dim;
    if (a->head_dim == 0 || a->head_dim > MAX_HEAD_DIM || a->head_dim % 16 != 0)
        return fail(FUL_ERR_ARGUMENT, "lightning: head_dim %u is not a multiple of 16 up to %d",
                    a->head_dim, MAX_HEAD_DIM);
    if (a->heads == 0 || a->rows == 0)
        return fail(FUL_ERR_ARGUMENT, "lightning: %u heads and %u rows, none may be 0", a->heads,
                    a->rows);
    if (a->qkv_stride % 4 != 0 || a->qkv_stride < 3 * inner)
        return fail(FUL_ERR_ARGUMENT,
                    "lightning: row stride %u is not a multiple of 4 of at least %llu floats",
                    a->qkv_stride, (unsigned long long)(3 * inner));
    if (a->state.bytes < inner * a->head_dim * sizeof(float))
        return fail(FUL_ERR_ARGUMENT, "lightning: a state of %llu bytes, %llu needed",
                    (unsigned long long)a->state.bytes,
                    (unsigned long long)(inner * a->head_dim * sizeof(float)));
    return FUL_OK;
}

/* Heads whose states (and blocks of scratch) fit one binding. */
static ful_result heads_per_dispatch(const op_context *ctx, const op_lightning_args *a,
                                     uint64_t bytes_per_head, uint32_t *out)
{
    uint64_t window = device_window_bytes(ctx->device), heads = window / bytes_per_head;
    if (heads == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "lightning: one head needs a binding of %llu bytes, the device's limit is %llu",
                    (unsigned long long)bytes_per_head, (unsigned long long)window);
    heads = heads < MAX_GROUPS ? heads : MAX_GROUPS;
    *out = heads < a->heads ? (uint32_t)heads : a->heads;
    return FUL_OK;
}

/* Rows whose qkv, outputs and scratch each fit one binding, so that the next ones begin at a
 * multiple of 256 bytes, and at a block's start if blocks fit at all. */
static ful_result rows_per_dispatch(const op_context *ctx, const op_lightning_args *a,
                                    uint64_t block_bytes, uint32_t *out)
{
    uint64_t window = device_window_bytes(ctx->device);
    uint64_t row_bytes = (uint64_t)a->qkv_stride * sizeof(float);
    uint64_t out_bytes = (uint64_t)a->heads * a->head_dim * sizeof(float);
    uint64_t rows = window / (row_bytes > out_bytes ? row_bytes : out_bytes);
    uint64_t blocks = window / block_bytes;
    blocks = blocks < MAX_GROUPS ? blocks : MAX_GROUPS;
    rows = rows < blocks * BLOCK_TOKENS ? rows : blocks * BLOCK_TOKENS;
    if (rows >= a->rows) {
        *out = a->rows;
        return FUL_OK;
    }
    uint64_t step = 1;
    while (row_bytes * step % 256 != 0 || out_bytes * step % 256 != 0)
        step *= 2;
    if (rows >= BLOCK_TOKENS && step < BLOCK_TOKENS)
        step = BLOCK_TOKENS;
    rows -= rows % step;
    if (rows == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "lightning: %llu rows of %llu bytes exceed the device's binding of %llu bytes",
                    (unsigned long long)step, (unsigned long long)row_bytes,
                    (unsigned long long)window);
    *out = (uint32_t)rows;
    return FUL_OK;
}

typedef struct prefill {
    const op_context *ctx;
    const op_lightning_args *args;
    gpu_pipeline *scores, *walk;
    spread spread;
    uint32_t block_words;
    bool half;
} prefill;

static ful_result prefill_pipelines(prefill *p)
{
    uint32_t dim = p->args->head_dim, wide = p->spread.invocations;
    /* Scores: groups of invocations side by side take one key each and share some queries. */
    uint32_t keys = wide < BLOCK_TOKENS ? wide : BLOCK_TOKENS;
    uint32_t queries = BLOCK_TOKENS / (wide / keys < BLOCK_TOKENS ? wide / keys : BLOCK_TOKENS);
    gpu_pipeline_desc scores = {.module = p->half ? "lightning_scores_half" : "lightning_scores",
                                .buffer_count = 3,
                                .uniform = true,
                                .push_bytes = sizeof(scores_push),
                                .spec_count = 6,
                                .spec = {wide, dim, BLOCK_TOKENS, keys, queries, p->block_words}};
    gpu_pipeline_desc walk = {
        .module = p->half ? "lightning_walk_half" : "lightning_walk",
        .buffer_count = p->half ? 3 : 4,
        .uniform = true,
        .push_bytes = sizeof(walk_push),
        .spec_count = 5,
        .spec = {wide, dim, BLOCK_TOKENS, p->spread.key_parts, p->block_words}};
    TRY(gpu_pipeline_get(p->ctx->device, &scores, &p->scores));
    return gpu_pipeline_get(p->ctx->device, &walk, &p->walk);
}

/* Rows row0.. of heads head0..: their scores, then the walk. */
static ful_result prefill_part(const prefill *p, uint32_t row0, uint32_t rows, uint32_t head0,
                               uint32_t heads)
{
    const op_lightning_args *a = p->args;
    uint32_t blocks = (rows + BLOCK_TOKENS - 1) / BLOCK_TOKENS;
    uint64_t row_bytes = (uint64_t)a->qkv_stride * sizeof(float);
    uint64_t out_bytes = (uint64_t)a->heads * a->head_dim * sizeof(float);
    uint64_t head_bytes = (uint64_t)a->head_dim * a->head_dim * sizeof(float);
    gpu_range qkv = gpu_part(a->qkv, row0 * row_bytes, rows * row_bytes);
    gpu_range out = gpu_part(a->out, row0 * out_bytes, rows * out_bytes);
    gpu_range state = gpu_part(a->state, head0 * head_bytes, heads * head_bytes);
    gpu_range scratch =
        gpu_part(a->scratch, 0, (uint64_t)blocks * heads * p->block_words * sizeof(uint32_t));
    double tokens = (double)rows * heads, dim = (double)a->head_dim;

    scores_push push = {row0, rows, a->qkv_stride / 4, head0, heads};
    gpu_dispatch scores = {.pipeline = p->scores,
                           .buffers = {qkv, a->decay, scratch},
                           .writes = 1u << 2,
                           .uniform = p->ctx->step,
                           .push = &push,
                           .groups = {blocks, heads, 1},
                           .cost = {.bytes = tokens * dim * 8 + (double)scratch.bytes,
                                    .flops = tokens * dim * 2 * BLOCK_TOKENS},
                           .label = "lightning_scores",
                           .layer = p->ctx->layer};
    TRY(gpu_commands_dispatch(p->ctx->commands, &scores));

    walk_push walk_push_ = {row0, rows, a->qkv_stride / 4, head0, heads, a->heads * a->head_dim};
    gpu_dispatch walk = {
        .pipeline = p->walk,
        .buffers = {scratch, state, out, qkv},
        .writes = 1u << 2,
        .updates = 1u << 1,
        .uniform = p->ctx->step,
        .push = &walk_push_,
        .groups = {(a->head_dim + p->spread.columns - 1) / p->spread.columns, heads, 1},
        .cost = {.bytes = tokens * dim * (p->half ? 4 : 16) + (double)scratch.bytes +
                          2 * (double)state.bytes,
                 .flops = tokens * dim * (4 * dim + 2 * BLOCK_TOKENS)},
        .label = "lightning_walk",
        .layer = p->ctx->layer};
    return gpu_commands_dispatch(p->ctx->commands, &walk);
}

ful_result op_lightning_prefill(const op_context *ctx, const op_lightning_args *args)
{
    TRY(check(args));
    prefill p = {.ctx = ctx, .args = args, .spread = spread_choose(ctx), .half = prefill_half(ctx)};
    p.block_words = block_words(p.half, args->head_dim);
    uint64_t need = op_lightning_scratch_bytes(ctx, args->rows, args->heads, args->head_dim);
    if (args->scratch.bytes < need)
        return fail(FUL_ERR_ARGUMENT, "lightning: %llu bytes of scratch, %llu needed",
                    (unsigned long long)args->scratch.bytes, (unsigned long long)need);
    TRY(prefill_pipelines(&p));

    uint64_t state_bytes = (uint64_t)args->head_dim * args->head_dim * sizeof(float);
    uint64_t scratch_bytes = (uint64_t)p.block_words * sizeof(uint32_t);
    uint32_t heads = 1, rows = 1;
    TRY(heads_per_dispatch(ctx, args, state_bytes > scratch_bytes ? state_bytes : scratch_bytes,
                           &heads));
    TRY(rows_per_dispatch(ctx, args, scratch_bytes * heads, &rows));
    for (uint32_t h = 0; h < args->heads; h += heads) {
        uint32_t head_count = args->heads - h < heads ? args->heads - h : heads;
        for (uint32_t r = 0; r < args->rows; r += rows) {
            uint32_t row_count = args->rows - r < rows ? args->rows - r : rows;
            TRY(prefill_part(&p, r, row_count, h, head_count));
        }
    }
    return FUL_OK;
}

ful_result op_lightning_decode(const op_context *ctx, const op_lightning_args *args)
{
    TRY(check(args));
    spread s = spread_choose(ctx);
    gpu_pipeline_desc desc = {.module = "lightning_decode",
                              .buffer_count = 4,
                              .push_bytes = sizeof(uint32_t),
                              .spec_count = 4,
                              .spec = {s.invocations, args->head_dim, BLOCK_TOKENS, s.key_parts}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t head_bytes = (uint64_t)args->head_dim * args->head_dim * sizeof(float);
    uint32_t heads = 1;
    TRY(heads_per_dispatch(ctx, args, head_bytes, &heads));
    uint64_t out_bytes = (uint64_t)args->heads * args->head_dim * sizeof(float);
    for (uint32_t h = 0; h < args->heads; h += heads) {
        uint32_t count = args->heads - h < heads ? args->heads - h : heads;
        gpu_range state = gpu_part(args->state, h * head_bytes, count * head_bytes);
        double elements = (double)(state.bytes / sizeof(float));
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {gpu_part(args->qkv, 0, (uint64_t)args->qkv_stride * sizeof(float)),
                        args->decay, state, gpu_part(args->out, 0, out_bytes)},
            .writes = 1u << 3,
            .updates = 1u << 2,
            .push = &h,
            .groups = {(args->head_dim + s.columns - 1) / s.columns, count, 1},
            .cost = {.bytes = 8 * elements, .flops = 6 * elements},
            .label = "lightning_decode",
            .layer = ctx->layer};
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}
