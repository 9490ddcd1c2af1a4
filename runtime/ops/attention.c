#include <math.h>

#include "ops/op_common.h"
#include "ops/tuning.h"

enum {
    MAX_HEAD_DIM = 256,
    MAX_SPLITS = 128,
    ROPE_LANES = 32,
    MERGE_LANES = 128,
    MAX_GROUPS = 65535
};

typedef struct rope_push {
    uint32_t row_base, row_cap, qkv_stride, first_token, token_count, head_base;
} rope_push;
_Static_assert(sizeof(rope_push) == 24, "as in rope_append.comp");

typedef struct attention_push {
    uint32_t row_base, row_cap, qkv_stride4, out_stride4, first_token, token_count, splits;
    float scale;
    uint32_t split_keys;
} attention_push;
_Static_assert(sizeof(attention_push) == 36, "as in attention.comp and attention_coopmat.comp");

typedef struct merge_push {
    uint32_t row_base, row_cap, out_stride4, splits, split_keys;
} merge_push;
_Static_assert(sizeof(merge_push) == 20, "as in attention_merge.comp");

/* ---- the cache ---- */

/* Words of one token. Halves carry the scale of each of their rows at the end of the token. */
static uint32_t token_words(ful_type type, uint32_t kv_heads, uint32_t head_dim)
{
    if (type == FUL_TYPE_F16)
        return (kv_heads * head_dim + 2 * kv_heads + 3) & ~3u;
    return 2 * kv_heads * head_dim;
}

uint64_t op_kv_bytes(ful_type type, uint32_t kv_heads, uint32_t head_dim, uint64_t tokens)
{
    return tokens * token_words(type, kv_heads, head_dim) * sizeof(uint32_t);
}

/* Tokens after which a multiple of 256 bytes is reached. */
static uint32_t token_step(uint64_t token_bytes)
{
    uint32_t step = 1;
    while (token_bytes * step % 256 != 0)
        step *= 2;
    return step;
}

void op_kv_layout(const ful_device *device, op_kv *kv)
{
    uint64_t token_bytes = op_kv_bytes(kv->type, kv->kv_heads, kv->head_dim, 1);
    uint64_t tokens = device_window_bytes(device) / token_bytes;
    uint32_t step = token_step(token_bytes);
    tokens = tokens > step ? tokens - tokens % step : tokens;
    kv->window_tokens = tokens < kv->capacity_tokens ? (uint32_t)tokens : kv->capacity_tokens;
    kv->window_count = kv->window_tokens == 0 ? 0
                                              : kv->capacity_tokens / kv->window_tokens +
                                                    (kv->capacity_tokens % kv->window_tokens != 0);
}

ful_result op_kv_create(ful_device *device, ful_type type, uint32_t kv_heads, uint32_t head_dim,
                        uint32_t capacity_tokens, op_kv *out)
{
    *out = (op_kv){0};
    op_kv kv = {.type = type,
                .kv_heads = kv_heads,
                .head_dim = head_dim,
                .capacity_tokens = capacity_tokens};
    if (type != FUL_TYPE_F32 && type != FUL_TYPE_F16)
        return fail(FUL_ERR_ARGUMENT, "KV cache: type %d is neither f32 nor f16", (int)type);
    if (kv_heads == 0 || head_dim == 0 || head_dim > MAX_HEAD_DIM || head_dim % 16 != 0 ||
        capacity_tokens == 0)
        return fail(FUL_ERR_ARGUMENT,
                    "KV cache: %u heads of head_dim %u (a multiple of 16 up to %d) for %u tokens",
                    kv_heads, head_dim, MAX_HEAD_DIM, capacity_tokens);
    op_kv_layout(device, &kv);
    if (kv.window_tokens == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "KV cache: one token takes %llu bytes, the device binds %llu",
                    (unsigned long long)op_kv_bytes(type, kv_heads, head_dim, 1),
                    (unsigned long long)device_window_bytes(device));
    kv.windows = mem_zalloc(device_alloc(device), kv.window_count, sizeof *kv.windows);
    if (!kv.windows)
        return mem_fail(kv.window_count * sizeof *kv.windows, "the KV cache's windows");
    for (uint32_t w = 0; w < kv.window_count; w++) {
        uint32_t first = w * kv.window_tokens, left = capacity_tokens - first;
        uint32_t tokens = left < kv.window_tokens ? left : kv.window_tokens;
        ful_result r = gpu_buffer_create(device, op_kv_bytes(type, kv_heads, head_dim, tokens),
                                         GPU_MEMORY_DEVICE, "KV cache", &kv.windows[w]);
        if (r != FUL_OK) {
            op_kv_destroy(device, &kv);
            return r;
        }
    }
    *out = kv;
    return FUL_OK;
}

void op_kv_destroy(ful_device *device, op_kv *kv)
{
    for (uint32_t w = 0; kv->windows && w < kv->window_count; w++)
        gpu_buffer_destroy(device, &kv->windows[w]);
    mem_free(device_alloc(device), kv->windows);
    *kv = (op_kv){0};
}

void op_rope_table(uint32_t first_position, uint32_t rows, uint32_t rotary_dim, double theta,
                   float *out)
{
    uint32_t half = rotary_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float frequency = (float)(1.0 / pow(theta, 2.0 * (double)i / (double)rotary_dim));
        for (uint32_t r = 0; r < rows; r++) {
            /* The model was trained with this product in fp32: its rounding is part of it. */
            float angle = (float)(first_position + r) * frequency;
            out[((size_t)r * half + i) * 2] = (float)cos((double)angle);
            out[((size_t)r * half + i) * 2 + 1] = (float)sin((double)angle);
        }
    }
}

/* ---- dispatches ---- */

/* How the work is spread; a function of what is known when commands are recorded, so that the size
 * of scratch and the dispatches agree. */
typedef struct plan {
    ful_matrix_shape matrix;                     /* of the matrix units; m = 0: not used */
    uint32_t lanes, parts, tile_rows, key_block; /* plain: tile_rows = lanes / parts */
    uint32_t splits, split_keys; /* at most so many parts of at least so many keys */
    uint32_t pass_tokens;        /* keys one dispatch visits at most; divides windows */
    bool carries;                /* sums go from dispatch to dispatch */
} plan;

/* Invocations that share a row: about `elements` elements each, and more where few rows would leave
 * lanes idle. */
static uint32_t choose_parts(uint32_t lanes, uint32_t rows, uint32_t head_dim, uint32_t elements)
{
    uint32_t parts = 1, most = elements < 32 ? 32 : 16;
    while (head_dim / 4 % (parts * 2) == 0 && parts * 2 <= most &&
           (head_dim / parts > elements || (head_dim / parts > 8 && rows * parts * 2 <= lanes)))
        parts *= 2;
    return parts;
}

/* Parts of at least `keys` keys, so that there are about `wanted` workgroups. */
static uint32_t choose_splits(uint64_t wanted, uint64_t workgroups, uint64_t keys,
                              uint32_t capacity)
{
    uint64_t splits = wanted / (workgroups < wanted ? workgroups : wanted);
    uint64_t most = (capacity + keys - 1) / keys;
    splits = splits < most ? splits : most;
    return splits < MAX_SPLITS ? (uint32_t)splits : MAX_SPLITS;
}

/* Keys one dispatch may visit so that it stays within its time. */
static uint64_t keys_per_dispatch(const op_context *ctx, uint32_t rows, uint32_t heads,
                                  uint32_t head_dim, bool matrix)
{
    double flops = device_dispatch_flops(ctx->device);
    double keys = (matrix ? OP_MATRIX_SPEED : 1) * flops / (4.0 * rows * heads * head_dim);
    return keys < 256 ? 256 : keys > UINT32_MAX ? UINT32_MAX : (uint64_t)keys;
}

/* Shared memory of attention_coopmat.comp. */
static uint64_t matrix_shared_bytes(const plan *p, uint32_t subgroups, uint32_t head_dim)
{
    uint64_t m = p->matrix.m, n = p->matrix.n, k = p->matrix.k;
    uint64_t tiles = 2 * p->key_block * (head_dim / 8 + 1ull), weights = m * (2 * k / 8 + 1),
             sums = m * n / 4;
    return 16 * (tiles + subgroups * (weights > sums ? weights : sums)) +
           4 * (3ull * p->key_block + n + subgroups * m);
}

/* Matrix units where the device and the cache have halves for them: up to eight subgroups, each
 * with a tile of queries, share tiles of keys. */
static bool plan_matrix(const op_context *ctx, uint64_t pairs, uint32_t head_dim, const op_kv *kv,
                        plan *p)
{
    const ful_caps *caps = device_caps(ctx->device);
    if (kv->type != FUL_TYPE_F16 || !op_wide(ctx) || caps->matrix_count == 0 ||
        !gpu_module_usable(ctx->device, "attention_coopmat"))
        return false;
    bool cpu = device_is_cpu(ctx->device);
    /* Sums and queries of a tile stay in registers: too many for subgroups of fewer lanes. */
    if (caps->matrix_subgroup < 32 && !cpu)
        return false;
    p->matrix = caps->matrix[0];
    if (head_dim % p->matrix.n != 0 || head_dim % p->matrix.k != 0)
        return false;
    /* More than 256 invocations of wide subgroups have too few registers each. */
    uint32_t lanes = caps->matrix_subgroup, most = lanes < 64 ? 8 : 4;
    while (most > 1 && most * lanes > caps->workgroup_invocations)
        most /= 2;
    uint32_t wanted = most;
    while (wanted > 1 && wanted / 2 * p->matrix.m >= pairs)
        wanted /= 2;
    /* Small tiles on CPU devices, which are there for tests: all loops over a tile are unrolled,
     * and their compilers are slow. */
    p->key_block = cpu ? 2 * p->matrix.k : wanted > 1 ? 64 : 32;
    for (; p->key_block >= 2 * p->matrix.k; p->key_block /= 2) {
        uint32_t subgroups = wanted;
        while (subgroups > 1 && (matrix_shared_bytes(p, subgroups, head_dim) > caps->shared_bytes ||
                                 subgroups * p->matrix.m > 2 * p->key_block))
            subgroups /= 2;
        /* A tile passes through the registers of the workgroup; more of it an invocation spills. */
        uint32_t held = cpu ? 16 : p->key_block > 32 ? 4 : 8; /* 16 bytes each */
        while (subgroups < most && p->key_block * head_dim / 8 > subgroups * lanes * held)
            subgroups *= 2;
        if (matrix_shared_bytes(p, subgroups, head_dim) <= caps->shared_bytes &&
            subgroups * p->matrix.m <= 2 * p->key_block) {
            p->lanes = subgroups * lanes;
            p->tile_rows = subgroups * p->matrix.m;
            return p->lanes <= caps->workgroup_invocations;
        }
    }
    return false;
}

static plan plan_make(const op_context *ctx, uint32_t rows, uint32_t heads, uint32_t head_dim,
                      const op_kv *kv)
{
    bool wide = op_wide(ctx);
    uint64_t pairs = (uint64_t)rows * (heads / kv->kv_heads), wanted = wide ? 256 : 8;
    plan p = {.split_keys = wide ? 64 : 256};
    if (plan_matrix(ctx, pairs, head_dim, kv, &p)) {
        if (pairs <= p.matrix.m)
            wanted = 1024; /* of one subgroup each */
    } else {
        p = (plan){.lanes = 8, .parts = 1, .key_block = 16, .split_keys = p.split_keys};
        if (wide) {
            p.lanes = 128;
            /* They hold as many of the query and as many sums. */
            uint32_t elements = op_few_registers(ctx->device) ? 8 : 32;
            p.parts = choose_parts(p.lanes, pairs < p.lanes ? (uint32_t)pairs : p.lanes, head_dim,
                                   elements);
        } else {
            uint32_t lanes = device_caps(ctx->device)->subgroup_size;
            p.lanes = lanes > 8 && lanes <= 64 ? lanes : 8;
        }
        p.tile_rows = p.lanes / p.parts;
    }
    uint64_t tiles = (pairs + p.tile_rows - 1) / p.tile_rows;
    /* Tuning speaks of decode only: one tile of rows a head. */
    if (tiles == 1) {
        op_tuning tuning = device_tuning(ctx->device);
        wanted = tuned_or(tuning.attention_groups, (uint32_t)wanted);
        p.split_keys = tuned_or(tuning.attention_keys, p.split_keys);
    }
    p.splits = choose_splits(wanted, tiles * kv->kv_heads, p.split_keys, kv->capacity_tokens);
    uint32_t step = token_step(op_kv_bytes(kv->type, kv->kv_heads, kv->head_dim, 1));
    uint64_t keys = keys_per_dispatch(ctx, rows, heads, head_dim, p.matrix.m != 0);
    keys -= keys % step;
    p.pass_tokens = keys < kv->window_tokens ? (uint32_t)keys : kv->window_tokens;
    p.carries = p.splits > 1 || kv->window_count > 1 || p.pass_tokens < kv->window_tokens;
    return p;
}

static uint64_t carry_bytes_per_row(const plan *p, uint32_t heads, uint32_t head_dim)
{
    return p->carries ? (uint64_t)heads * p->splits * (head_dim + 4) * sizeof(float) : 0;
}

uint64_t op_attention_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim, const op_kv *kv)
{
    plan p = plan_make(ctx, rows, heads, head_dim, kv);
    uint64_t bytes = rows * carry_bytes_per_row(&p, heads, head_dim);
    return bytes < 256 ? 256 : bytes; /* something has to be bound */
}

static ful_result check(const op_context *ctx, const op_attention_args *a)
{
    const op_kv *kv = a->kv;
    if (a->rows == 0 || a->heads == 0 || kv->kv_heads == 0 || a->heads % kv->kv_heads != 0)
        return fail(FUL_ERR_ARGUMENT, "attention: %u rows, %u heads over %u KV heads", a->rows,
                    a->heads, kv->kv_heads);
    if (a->head_dim != kv->head_dim || a->head_dim > MAX_HEAD_DIM || a->head_dim % 16 != 0)
        return fail(FUL_ERR_ARGUMENT,
                    "attention: head_dim %u (the cache's: %u) is not a multiple of 16 up to %d",
                    a->head_dim, kv->head_dim, MAX_HEAD_DIM);
    if (a->rotary_dim > a->head_dim || a->rotary_dim % 2 != 0)
        return fail(FUL_ERR_ARGUMENT, "attention: rotary_dim %u is odd or above head_dim %u",
                    a->rotary_dim, a->head_dim);
    uint64_t width = (uint64_t)(a->heads + 2 * kv->kv_heads) * a->head_dim;
    if (a->qkv_stride % 4 != 0 || a->qkv_stride < width)
        return fail(FUL_ERR_ARGUMENT,
                    "attention: row stride %u is not a multiple of 4 of at least %llu floats",
                    a->qkv_stride, (unsigned long long)width);
    uint64_t need = op_attention_scratch_bytes(ctx, a->rows, a->heads, a->head_dim, kv);
    if (a->scratch.bytes < need)
        return fail(FUL_ERR_ARGUMENT, "attention: %llu bytes of scratch, %llu needed",
                    (unsigned long long)a->scratch.bytes, (unsigned long long)need);
    return FUL_OK;
}

typedef struct attention {
    const op_context *ctx;
    const op_attention_args *args;
    plan plan;
    uint32_t words; /* of a token of the cache */
    gpu_pipeline *rope, *attend, *merge;
} attention;

static ful_result attention_pipelines(attention *t)
{
    const op_attention_args *a = t->args;
    const op_kv *kv = a->kv;
    bool half = kv->type == FUL_TYPE_F16;
    uint32_t rope_lanes = op_wide(t->ctx) ? ROPE_LANES : t->plan.lanes;
    gpu_pipeline_desc rope = {
        .module = half ? "rope_append_f16" : "rope_append",
        .buffer_count = 3,
        .uniform = true,
        .push_bytes = sizeof(rope_push),
        .spec_count = 6,
        .spec = {rope_lanes, a->head_dim, a->rotary_dim, a->heads, kv->kv_heads, t->words}};
    TRY(gpu_pipeline_get(t->ctx->device, &rope, &t->rope));
    const plan *p = &t->plan;
    gpu_pipeline_desc attend = {
        .module = half ? "attention_f16" : "attention",
        .buffer_count = 4,
        .uniform = true,
        .push_bytes = sizeof(attention_push),
        .spec_count = 7,
        .spec = {p->lanes, a->head_dim, p->parts, p->key_block, a->heads, kv->kv_heads, t->words}};
    gpu_pipeline_desc matrix = {.module = "attention_coopmat",
                                .buffer_count = 4,
                                .uniform = true,
                                .push_bytes = sizeof(attention_push),
                                .spec_count = 10,
                                .spec = {p->lanes, device_caps(t->ctx->device)->matrix_subgroup,
                                         p->matrix.m, p->matrix.n, p->matrix.k, a->head_dim,
                                         p->key_block, a->heads, kv->kv_heads, t->words}};
    TRY(gpu_pipeline_get(t->ctx->device, p->matrix.m != 0 ? &matrix : &attend, &t->attend));
    if (p->splits == 1)
        return FUL_OK;
    uint32_t parts = 1, lanes = p->lanes;
    if (op_wide(t->ctx)) {
        parts = MERGE_LANES / (a->head_dim / 4);
        lanes = parts * (a->head_dim / 4);
    }
    gpu_pipeline_desc merge = {
        .module = "attention_merge",
        .buffer_count = 2,
        .uniform = true,
        .push_bytes = sizeof(merge_push),
        .spec_count = 6,
        .spec = {lanes, a->head_dim, p->tile_rows, a->heads, kv->kv_heads, parts}};
    return gpu_pipeline_get(t->ctx->device, &merge, &t->merge);
}

/* Rows whose qkv, outputs, sums and rope factors each fit one binding and begin at multiples of 256
 * bytes. */
static ful_result rows_per_dispatch(const attention *t, uint32_t *out)
{
    const op_attention_args *a = t->args;
    uint64_t window = device_window_bytes(t->ctx->device);
    uint64_t bytes[4] = {(uint64_t)a->qkv_stride * sizeof(float),
                         (uint64_t)a->heads * a->head_dim * sizeof(float),
                         carry_bytes_per_row(&t->plan, a->heads, a->head_dim),
                         (uint64_t)a->rotary_dim * sizeof(float)};
    uint64_t rows = a->rows, step = 1, most = 0;
    for (int i = 0; i < 4; i++) {
        if (bytes[i] > most)
            most = bytes[i];
        while (bytes[i] * step % 256 != 0)
            step *= 2;
    }
    rows = rows < window / most ? rows : window / most;
    uint64_t tiles = (uint64_t)MAX_GROUPS * t->plan.tile_rows / (a->heads / a->kv->kv_heads);
    rows = rows < tiles ? rows : tiles;
    rows = rows < MAX_GROUPS ? rows : MAX_GROUPS;
    if (rows < a->rows)
        rows -= rows % step;
    if (rows == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "attention: %llu rows of %llu bytes exceed the device's binding of %llu bytes",
                    (unsigned long long)step, (unsigned long long)most, (unsigned long long)window);
    *out = (uint32_t)rows;
    return FUL_OK;
}

static uint32_t tokens_in_window(const op_kv *kv, uint32_t w)
{
    uint32_t left = kv->capacity_tokens - w * kv->window_tokens;
    return left < kv->window_tokens ? left : kv->window_tokens;
}

/* Rotates and appends rows row0..: which window takes a row is known only when the commands run, so
 * every window is visited and takes its own. */
static ful_result record_rope(const attention *t, uint32_t row0, uint32_t rows)
{
    const op_attention_args *a = t->args;
    const op_kv *kv = a->kv;
    uint64_t row_bytes = (uint64_t)a->qkv_stride * sizeof(float);
    uint64_t table_bytes = (uint64_t)a->rotary_dim * sizeof(float);
    for (uint32_t w = 0; w < kv->window_count; w++) {
        uint32_t head0 = w == 0 ? 0 : a->heads;
        rope_push push = {row0, rows, a->qkv_stride, w * kv->window_tokens, tokens_in_window(kv, w),
                          head0};
        gpu_dispatch d = {.pipeline = t->rope,
                          .buffers = {gpu_part(a->qkv, row0 * row_bytes, rows * row_bytes),
                                      gpu_part(a->rope, row0 * table_bytes, rows * table_bytes),
                                      gpu_whole(&kv->windows[w])},
                          .writes = 1u << 2,
                          .updates = 1u << 0,
                          .uniform = t->ctx->step,
                          .push = &push,
                          .groups = {a->heads + 2 * kv->kv_heads - head0, rows, 1},
                          .cost = {.bytes = (double)rows * (double)row_bytes * 2},
                          .label = "rope_append",
                          .layer = t->ctx->layer};
        if (a->rotary_dim == 0) /* the table is not read, but something has to be bound */
            d.buffers[1] = t->ctx->step;
        TRY(gpu_commands_dispatch(t->ctx->commands, &d));
    }
    return FUL_OK;
}

/* Keys first.. of window w, the ones a dispatch visits. */
static ful_result record_pass(const attention *t, uint32_t row0, uint32_t rows, uint32_t w,
                              uint32_t first, uint32_t tokens)
{
    const op_attention_args *a = t->args;
    const op_kv *kv = a->kv;
    const plan *p = &t->plan;
    uint64_t row_bytes = (uint64_t)a->qkv_stride * sizeof(float);
    uint64_t out_bytes = (uint64_t)a->heads * a->head_dim * sizeof(float);
    uint64_t carry_bytes = rows * carry_bytes_per_row(p, a->heads, a->head_dim);
    uint64_t token_bytes = (uint64_t)t->words * sizeof(uint32_t);
    uint32_t pairs = rows * (a->heads / kv->kv_heads);
    double work = (double)rows * a->heads * (double)tokens * a->head_dim;
    uint32_t tiles = (pairs + p->tile_rows - 1) / p->tile_rows;
    double loads = (double)tiles;
    attention_push push = {.row_base = row0,
                           .row_cap = rows,
                           .qkv_stride4 = a->qkv_stride / 4,
                           .out_stride4 = a->heads * a->head_dim / 4,
                           .first_token = w * kv->window_tokens + first,
                           .token_count = tokens,
                           .splits = p->splits,
                           .scale = (float)(1.4426950408889634 / sqrt((double)a->head_dim)),
                           .split_keys = p->split_keys};
    gpu_dispatch d = {
        .pipeline = t->attend,
        .buffers = {gpu_part(a->qkv, row0 * row_bytes, rows * row_bytes),
                    gpu_part(gpu_whole(&kv->windows[w]), first * token_bytes, tokens * token_bytes),
                    gpu_part(a->scratch, 0, carry_bytes < 256 ? 256 : carry_bytes),
                    gpu_part(a->out, row0 * out_bytes, rows * out_bytes)},
        .writes = 1u << 3,
        .updates = 1u << 2,
        .uniform = t->ctx->step,
        .push = &push,
        .groups = {p->matrix.m != 0 ? kv->kv_heads : tiles, p->matrix.m != 0 ? tiles : kv->kv_heads,
                   p->splits},
        .cost = {.bytes = (double)tokens * (double)token_bytes * (loads < 4 ? loads : 4),
                 .flops = 4 * work},
        .label = "attention",
        .layer = t->ctx->layer};
    return gpu_commands_dispatch(t->ctx->commands, &d);
}

static ful_result record_merge(const attention *t, uint32_t row0, uint32_t rows)
{
    const op_attention_args *a = t->args;
    uint64_t out_bytes = (uint64_t)a->heads * a->head_dim * sizeof(float);
    uint64_t carry_bytes = rows * carry_bytes_per_row(&t->plan, a->heads, a->head_dim);
    merge_push push = {row0, rows, a->heads * a->head_dim / 4, t->plan.splits, t->plan.split_keys};
    gpu_dispatch d = {.pipeline = t->merge,
                      .buffers = {gpu_part(a->scratch, 0, carry_bytes),
                                  gpu_part(a->out, row0 * out_bytes, rows * out_bytes)},
                      .writes = 1u << 1,
                      .uniform = t->ctx->step,
                      .push = &push,
                      .groups = {a->heads, rows, 1},
                      .cost = {.bytes = (double)carry_bytes},
                      .label = "attention_merge",
                      .layer = t->ctx->layer};
    return gpu_commands_dispatch(t->ctx->commands, &d);
}

static ful_result record_rows(const attention *t, uint32_t row0, uint32_t rows)
{
    const op_kv *kv = t->args->kv;
    for (uint32_t w = 0; w < kv->window_count; w++) {
        uint32_t tokens = tokens_in_window(kv, w), pass = t->plan.pass_tokens;
        for (uint32_t first = 0; first < tokens; first += pass)
            TRY(record_pass(t, row0, rows, w, first,
                            tokens - first < pass ? tokens - first : pass));
    }
    return t->plan.splits > 1 ? record_merge(t, row0, rows) : FUL_OK;
}

ful_result op_attention(const op_context *ctx, const op_attention_args *args)
{
    TRY(check(ctx, args));
    attention t = {.ctx = ctx,
                   .args = args,
                   .plan = plan_make(ctx, args->rows, args->heads, args->head_dim, args->kv),
                   .words = token_words(args->kv->type, args->kv->kv_heads, args->head_dim)};
    uint32_t rows = 1;
    TRY(attention_pipelines(&t));
    TRY(rows_per_dispatch(&t, &rows));
    /* All rows are appended first: a chunk of rows may not need the later keys, but what the cache
     * holds does not depend on how rows were cut. */
    for (uint32_t r = 0; r < args->rows; r += rows)
        TRY(record_rope(&t, r, args->rows - r < rows ? args->rows - r : rows));
    for (uint32_t r = 0; r < args->rows; r += rows)
        TRY(record_rows(&t, r, args->rows - r < rows ? args->rows - r : rows));
    return FUL_OK;
}
