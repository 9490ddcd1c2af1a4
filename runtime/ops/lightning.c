#include <assert.h>
#include <math.h>
#include <string.h>

#include "ops/lightning.h"

enum {
    BLOCK_TOKENS = 16,
    /* Words of a head in the decay table, as in inc/lightning.glsl. */
    DECAY_STRIDE = 264,
    FADE_AT = 132,
    LOG_AT = 263,
    MAX_HEAD_DIM = 256,
    MAX_GROUPS = 65535
};
static_assert((int)LIGHTNING_TABLE < (int)FADE_AT &&
                  (int)FADE_AT + (int)LIGHTNING_TABLE < (int)LOG_AT,
              "the parts of the table");

typedef struct scores_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count;
} scores_push;
_Static_assert(sizeof(scores_push) == 20, "as in lightning_scores.comp");

typedef struct walk_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count, out_stride;
} walk_push;
_Static_assert(sizeof(walk_push) == 24, "as in lightning_walk.comp");

/* lightning_decode.comp has but the first three. */
typedef struct decode_push {
    uint32_t unit_base, heads, qkv_stride, from4, to4;
} decode_push;
_Static_assert(sizeof(decode_push) == 20, "as in lightning_decode_wide.comp");

/* How a kernel spreads the state of a head over a workgroup. */
typedef struct spread {
    uint32_t invocations, key_parts, columns;
} spread;

/* One part: no shared memory, no barrier, and every load of q and k is the same for all lanes. */
static spread spread_narrow(const op_context *ctx)
{
    uint32_t lanes = device_caps(ctx->device)->subgroup_size;
    lanes = lanes > 8 && lanes <= 64 ? lanes : 8;
    return (spread){lanes, 1, lanes};
}

/* An invocation holds the state's column of its keys, a quarter of them or eight. */
static spread spread_choose(const op_context *ctx, uint32_t head_dim)
{
    if (!op_wide(ctx))
        return spread_narrow(ctx);
    uint32_t parts = 4;
    while (op_few_registers(ctx->device) && parts < 16 && head_dim / parts > 8 &&
           head_dim % (8 * parts) == 0)
        parts *= 2;
    return (spread){128, parts, 128 / parts};
}

uint64_t op_lightning_decay_bytes(const ful_device *device, uint32_t heads, uint32_t head_dim)
{
    (void)device;
    (void)head_dim;
    return ((uint64_t)heads * DECAY_STRIDE * sizeof(float) + 255) & ~(uint64_t)255;
}

void op_lightning_decay_fill(const ful_device *device, uint32_t heads, uint32_t head_dim,
                             const double *slopes, void *out)
{
    memset(out, 0, (size_t)op_lightning_decay_bytes(device, heads, head_dim));
    float *table = out;
    for (uint32_t h = 0; h < heads; h++) {
        float *decay = table + (size_t)h * DECAY_STRIDE;
        for (uint32_t r = 0; r <= LIGHTNING_TABLE; r++) {
            decay[r] = (float)exp(-slopes[h] * (double)r);
            decay[FADE_AT + r] = (float)expm1(-slopes[h] * (double)r);
        }
        decay[LOG_AT] = (float)(slopes[h] / log(2.0));
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
    return ctx->half && op_half_usable(ctx->device) &&
           gpu_module_usable(ctx->device, "lightning_scores_half") &&
           gpu_module_usable(ctx->device, "lightning_walk_half");
}

uint64_t op_lightning_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim, bool halves)
{
    lightning_tiles tiles;
    if (lightning_tiles_choose(ctx, rows, heads, head_dim, &tiles))
        return lightning_tiles_scratch_bytes(&tiles, rows, heads, head_dim, halves);
    if (halves)
        return 0; /* no kernel reads and writes them here */
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
    if (a->qkv_blocks.data.buffer == NULL && (a->qkv_stride % 4 != 0 || a->qkv_stride < 3 * inner))
        return fail(FUL_ERR_ARGUMENT,
                    "lightning: row stride %u is not a multiple of 4 of at least %llu floats",
                    a->qkv_stride, (unsigned long long)(3 * inner));
    uint64_t states = (a->sequences > 1 ? a->sequences : 1) * inner * a->head_dim * sizeof(float);
    if (a->state.bytes < states)
        return fail(FUL_ERR_ARGUMENT, "lightning: a state of %llu bytes, %llu needed",
                    (unsigned long long)a->state.bytes, (unsigned long long)states);
    return FUL_OK;
}

ful_result lightning_units(const op_context *ctx, uint64_t bytes_each, uint32_t units,
                           uint32_t *out)
{
    uint64_t window = device_window_bytes(ctx->device), fit = window / bytes_each;
    if (fit == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "lightning: one head needs a binding of %llu bytes, the device's limit is %llu",
                    (unsigned long long)bytes_each, (unsigned long long)window);
    fit = fit < MAX_GROUPS ? fit : MAX_GROUPS;
    *out = fit < units ? (uint32_t)fit : units;
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

static ful_result prefill_plain(const op_context *ctx, const op_lightning_args *args)
{
    if (args->qkv_blocks.data.buffer != NULL || args->out_blocks.data.buffer != NULL)
        return fail(FUL_ERR_UNSUPPORTED,
                    "lightning: no kernel here reads or writes heads of %u as halves",
                    args->head_dim);
    prefill p = {.ctx = ctx,
                 .args = args,
                 .spread = spread_choose(ctx, args->head_dim),
                 .half = prefill_half(ctx)};
    p.block_words = block_words(p.half, args->head_dim);
    TRY(prefill_pipelines(&p));

    uint64_t state_bytes = (uint64_t)args->head_dim * args->head_dim * sizeof(float);
    uint64_t scratch_bytes = (uint64_t)p.block_words * sizeof(uint32_t);
    uint32_t heads = 1, rows = 1;
    TRY(lightning_units(ctx, state_bytes > scratch_bytes ? state_bytes : scratch_bytes, args->heads,
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

ful_result op_lightning_prefill(const op_context *ctx, const op_lightning_args *args)
{
    TRY(check(args));
    if (args->sequences > 1)
        return fail(FUL_ERR_ARGUMENT, "lightning: a prefill is of one sequence, not of %u",
                    args->sequences);
    bool halves = args->qkv_blocks.data.buffer != NULL && args->out_blocks.data.buffer != NULL;
    uint64_t need =
        op_lightning_scratch_bytes(ctx, args->rows, args->heads, args->head_dim, halves);
    if (args->scratch.bytes < need)
        return fail(FUL_ERR_ARGUMENT, "lightning: %llu bytes of scratch, %llu needed",
                    (unsigned long long)args->scratch.bytes, (unsigned long long)need);
    lightning_tiles tiles;
    if (lightning_tiles_choose(ctx, args->rows, args->heads, args->head_dim, &tiles))
        return lightning_tiles_prefill(ctx, args, &tiles);
    return prefill_plain(ctx, args);
}

static bool decode_wide(const op_context *ctx)
{
    return op_wide(ctx) && gpu_module_usable(ctx->device, "lightning_decode_wide");
}

bool op_lightning_decode_sides(const op_context *ctx, uint32_t heads, uint32_t head_dim)
{
    uint64_t bytes = (uint64_t)heads * head_dim * head_dim * sizeof(float);
    return decode_wide(ctx) && 2 * bytes <= device_window_bytes(ctx->device) && heads <= MAX_GROUPS;
}

static ful_result sides_check(const op_context *ctx, const op_lightning_args *a, uint64_t bytes)
{
    if (a->state_from > 1 || a->state_to > 1 || !decode_wide(ctx) ||
        2 * bytes > device_window_bytes(ctx->device) || a->state.bytes < 2 * bytes)
        return fail(
            FUL_ERR_ARGUMENT,
            "lightning: from state %u to state %u of two of %llu bytes each: %llu bytes are "
            "given, a binding holds %llu",
            (unsigned)a->state_from, (unsigned)a->state_to, (unsigned long long)bytes,
            (unsigned long long)a->state.bytes,
            (unsigned long long)device_window_bytes(ctx->device));
    return FUL_OK;
}

ful_result op_lightning_decode(const op_context *ctx, const op_lightning_args *args)
{
    TRY(check(args));
    uint32_t sequences = args->sequences > 1 ? args->sequences : 1, dim = args->head_dim;
    uint64_t units = (uint64_t)sequences * args->heads;
    if (units > UINT32_MAX)
        return fail(FUL_ERR_ARGUMENT, "lightning: %u sequences of %u heads", sequences,
                    args->heads);
    bool wide = decode_wide(ctx);
    /* Four columns an invocation, as many of them side by side as make a line of memory. */
    uint32_t width4 = dim / 4 % 8 == 0 ? 8 : 4;
    uint32_t lanes = wide ? 128 : spread_narrow(ctx).invocations;
    uint32_t columns = wide ? 4 * width4 : lanes;
    gpu_pipeline_desc desc = {.module = wide ? "lightning_decode_wide" : "lightning_decode",
                              .buffer_count = 4,
                              .push_bytes = wide ? sizeof(decode_push) : 12,
                              .spec_count = wide ? 3 : 2,
                              .spec = {lanes, dim, width4}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t unit_bytes = (uint64_t)dim * dim * sizeof(float);
    uint32_t part = 1;
    bool sides = args->state_from != 0 || args->state_to != 0;
    TRY(lightning_units(ctx, unit_bytes, (uint32_t)units, &part));
    if (sides)
        TRY(sides_check(ctx, args, units * unit_bytes));
    uint64_t out_bytes = units * dim * sizeof(float);
    for (uint32_t u = 0; u < units; u += part) {
        uint32_t count = (uint32_t)units - u < part ? (uint32_t)units - u : part;
        double elements = (double)(count * unit_bytes / sizeof(float));
        gpu_range state = gpu_part(args->state, u * unit_bytes, count * unit_bytes);
        if (sides)
            state = gpu_part(args->state, 0, 2 * units * unit_bytes);
        uint32_t quads = (uint32_t)(units * unit_bytes / 16);
        decode_push push = {u, args->heads, args->qkv_stride, args->state_from * quads,
                            args->state_to * quads};
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {gpu_part(args->qkv, 0,
                                 (uint64_t)sequences * args->qkv_stride * sizeof(float)),
                        args->decay, state, gpu_part(args->out, 0, out_bytes)},
            .writes = 1u << 3,
            .updates = 1u << 2,
            .push = &push,
            .groups = {div_up_u32(dim, columns), count, 1},
            .cost = {.bytes = 8 * elements, .flops = 6 * elements},
            .label = "lightning_decode",
            .layer = ctx->layer};
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}
