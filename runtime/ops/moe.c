/* Routing and the mixture of experts.
 *
 * Few rows: matrix-vector kernels straight from the routes. Many: the pairs (row, k) are counted
 * and sorted by expert, grouped kernels run over real tiles only, their number written on the
 * device. Steps whose buffers would exceed a binding are treated in parts of rows. */
#include <assert.h>

#include "ops/matvec.h"
#include "ops/tiles.h"

enum {
    /* Up to here each expert's rows fit one invocation's registers, and where those are few. */
    FEW_ROWS = MATVEC_ROWS,
    FEW_ROWS_SMALL = MATVEC_ROWS_SMALL,
    FEW_ROWS_NARROW = 2, /* where registers cost time even if they hold no row */
    FUSED_ROWS = 2,      /* up to here down and combine are one dispatch */
    /* What an invocation of a narrow kernel holds; more pairs or couples of weight rows leave its
     * registers, fewer load and unpack more often. */
    NARROW_TILE_MAX = 16,
    NARROW_COUPLES = 2,
    NARROW_WG = 32,
    ROUTED_EXPERTS_NARROW = 64, /* a serial search */
    TILE_BM = 64,
    ROW_STEP = 64, /* parts begin at multiples of this, so that every range stays aligned */
    PART_ROWS_MAX = 32768,
    ARGS_STRIDE_BYTES = 256,
    TILE_WORDS = 3
};

/* ---- routing ---- */

typedef struct route_push {
    uint32_t row0, row_cap, experts;
} route_push;

static uint32_t round_up_pow2(uint32_t n)
{
    uint32_t p = 1;
    while (p < n)
        p *= 2;
    return p;
}

static uint64_t range_limit(const ful_device *device)
{
    return device_caps(device)->storage_range_bytes / 256 * 256;
}

static uint32_t div_up(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

static uint64_t align256(uint64_t bytes)
{
    return (bytes + 255) / 256 * 256;
}

ful_result op_route(const op_context *ctx, const op_route_args *args)
{
    const ful_caps *caps = device_caps(ctx->device);
    if (args->top_k == 0 || args->top_k > args->experts)
        return fail(FUL_ERR_ARGUMENT, "routing: top_k %u of %u experts", (unsigned)args->top_k,
                    (unsigned)args->experts);
    /* A serial search is right for a handful of experts only. */
    bool handful = args->experts <= 64 && args->top_k <= 8;
    bool wide = !handful || (op_wide(ctx) && gpu_module_usable(ctx->device, "moe_route_wide"));
    uint32_t wg = wide ? 32 : 8;
    while (wide && wg < args->experts && wg < 128)
        wg *= 2;
    uint64_t shared = wide ? 8 * ((uint64_t)wg + args->top_k) : 0;
    if (shared > caps->shared_bytes)
        return fail(FUL_ERR_UNSUPPORTED,
                    "routing: top_k %u needs %llu bytes of shared memory, the device has %u",
                    (unsigned)args->top_k, (unsigned long long)shared,
                    (unsigned)caps->shared_bytes);
    gpu_pipeline_desc desc = {.module = wide ? "moe_route_wide" : "moe_route_narrow",
                              .buffer_count = 2,
                              .uniform = true,
                              .push_bytes = sizeof(route_push),
                              .spec_count = 2,
                              .spec = {wg, args->top_k}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t row_bytes = 4 * (uint64_t)args->experts;
    if (row_bytes < 8 * (uint64_t)args->top_k)
        row_bytes = 8 * (uint64_t)args->top_k;
    uint64_t part = range_limit(ctx->device) / row_bytes / ROW_STEP * ROW_STEP;
    if (part > PART_ROWS_MAX)
        part = PART_ROWS_MAX;
    if (part == 0)
        return fail(FUL_ERR_DEVICE_MEMORY,
                    "routing: %d rows of %u experts exceed the device's binding of %llu bytes",
                    ROW_STEP, (unsigned)args->experts,
                    (unsigned long long)range_limit(ctx->device));
    for (uint32_t row0 = 0; row0 < args->rows; row0 += (uint32_t)part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : (uint32_t)part;
        route_push push = {row0, rows, args->experts};
        uint64_t logit_bytes = 4 * (uint64_t)args->experts, pair_bytes = 8 * (uint64_t)args->top_k;
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {gpu_part(args->logits, row0 * logit_bytes, rows * logit_bytes),
                        gpu_part(args->routes, row0 * pair_bytes, rows * pair_bytes)},
            .writes = 1u << 1,
            .uniform = ctx->step,
            .push = &push,
            .groups = {wide ? rows : div_up(rows, wg), 1, 1},
            .cost = {.bytes = (double)rows * (double)(logit_bytes + pair_bytes),
                     .flops = (double)rows * args->experts * args->top_k},
            .label = "route",
            .layer = ctx->layer};
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}

/* ---- the plan of a mixture: which kernels, in parts of how many rows, and what lies where ---- */

typedef struct moe_plan {
    bool wide, few, half;
    bool matrix; /* grouped kernels on matrix units: inputs gathered in sorted order */
    uint32_t part_rows;
    uint32_t tile_rows; /* pairs a tile */
    uint32_t hidden_stride, packed_stride, gathered_stride;
    /* offsets into the scratch range, and sizes */
    uint64_t counts, counts_bytes;
    uint64_t lists, lists_bytes;
    uint64_t indirect, indirect_bytes;
    uint64_t hidden, hidden_bytes;
    uint64_t packed, packed_bytes;
    uint64_t scale, scale_bytes;
    uint64_t down, down_bytes;
    uint64_t bytes;
} moe_plan;

/* The most windows a tensor of this shape can have, whatever its type. */
static uint64_t windows_max(const ful_device *device, uint32_t experts, uint32_t rows,
                            uint32_t cols)
{
    uint64_t window = device_window_bytes(device) - 256;
    uint64_t row_bytes = (4 * (uint64_t)cols + 15) / 16 * 16;
    uint64_t expert_bytes = rows * row_bytes;
    if (expert_bytes <= window)
        return experts; /* at most one each */
    uint64_t piece = window / row_bytes / 64 * 64;
    if (piece == 0)
        piece = 64;
    return experts * ((rows + piece - 1) / piece);
}

static uint64_t lists_words(uint64_t rows, uint32_t top_k, uint32_t experts, uint32_t tile_rows)
{
    uint64_t pairs = rows * top_k;
    return experts + 1 + 2 * pairs + TILE_WORDS * (pairs / tile_rows + experts);
}

static uint64_t largest(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

static uint64_t place(uint64_t *end, uint64_t bytes)
{
    uint64_t at = *end;
    *end = at + align256(bytes);
    return at;
}

/* Whether kernels of workgroups that share memory may be taken; else those of narrow ones are. */
static bool wide_usable(const op_context *ctx, bool half, bool few)
{
    const ful_device *d = ctx->device;
    if (!op_wide(ctx))
        return false;
    if (!few)
        return gpu_family_usable(d, half ? "moe_matmul_half" : "moe_matmul");
    /* What one matrix passes to the other is f32. */
    return (gpu_family_usable(d, "moe_matvec_wide") ||
            gpu_family_usable(d, "moe_matvec_subgroup")) &&
           (!half || gpu_family_usable(d, "moe_matvec_wide_half") ||
            gpu_family_usable(d, "moe_matvec_subgroup_half"));
}

/* With half the inputs of both matrices are halves. part_rows is 0 if nothing fits. */
static moe_plan plan_make(const op_context *ctx, bool half, uint32_t rows, uint32_t top_k,
                          uint32_t experts, uint32_t dim, uint32_t width)
{
    moe_plan p = {.half = half};
    bool small = op_few_registers(ctx->device);
    p.few = rows <= (uint32_t)(!wide_usable(ctx, half, true) ? FEW_ROWS_NARROW
                               : small                       ? FEW_ROWS_SMALL
                                                             : FEW_ROWS);
    p.matrix = half && op_wide(ctx) && !p.few && tiles_usable(ctx, true) &&
               gpu_module_usable(ctx->device, "moe_gather") &&
               gpu_module_usable(ctx->device, "moe_combine_sorted");
    p.wide = p.matrix || wide_usable(ctx, half, p.few);
    const ful_caps *caps = device_caps(ctx->device);
    uint64_t limit = range_limit(ctx->device);
    uint64_t expected = (uint64_t)rows * top_k / experts;
    if (p.matrix)
        p.tile_rows =
            tiles_group_rows(ctx, experts, expected < rows ? (uint32_t)expected : rows, 2 * width);
    else if (p.wide)
        p.tile_rows = expected <= 16 ? 16 : expected <= 32 || small ? 32 : 64;
    else
        p.tile_rows =
            expected < NARROW_TILE_MAX ? round_up_pow2((uint32_t)expected) : NARROW_TILE_MAX;
    p.hidden_stride = width;
    p.packed_stride = (width + 7) / 8 * 8;
    p.gathered_stride = (dim + 7) / 8 * 8;

    uint64_t row_bytes = 4 * (uint64_t)top_k * largest(largest(dim, width), 2);
    uint64_t part = limit / row_bytes / ROW_STEP * ROW_STEP;
    if (part > PART_ROWS_MAX)
        part = PART_ROWS_MAX;
    while (part > 0 && (lists_words(part, top_k, experts, p.tile_rows) * 4 > limit ||
                        part * top_k / p.tile_rows + experts > caps->workgroup_count[0]))
        part -= ROW_STEP;
    if (rows <= part || (p.few && rows * row_bytes <= limit))
        part = rows;
    p.part_rows = (uint32_t)part;

    uint64_t pairs = part * top_k;
    if (!p.few) {
        p.counts_bytes = 4 * (uint64_t)experts;
        p.lists_bytes = 4 * lists_words(part, top_k, experts, p.tile_rows);
        p.indirect_bytes = ARGS_STRIDE_BYTES * (windows_max(ctx->device, experts, 2 * width, dim) +
                                                windows_max(ctx->device, experts, dim, width));
        p.counts = place(&p.bytes, p.counts_bytes);
        p.lists = place(&p.bytes, p.lists_bytes);
        p.indirect = place(&p.bytes, p.indirect_bytes);
    }
    p.hidden_bytes = pairs * p.hidden_stride * 4;
    p.hidden = place(&p.bytes, p.hidden_bytes);
    if (half && p.wide && !p.few) {
        uint64_t stride = p.matrix ? largest(p.gathered_stride, p.packed_stride) : p.packed_stride;
        p.packed_bytes = (pairs + (p.matrix ? TILES_SPARE_ROWS : 0)) * stride * 2;
        p.scale_bytes = pairs * 4;
        p.packed = place(&p.bytes, p.packed_bytes);
        p.scale = place(&p.bytes, p.scale_bytes);
    }
    p.down_bytes = pairs * dim * 4;
    if (p.packed_bytes > 0 && p.down_bytes <= p.hidden_bytes)
        p.down = p.hidden; /* the hidden rows are packed by then */
    else
        p.down = place(&p.bytes, p.down_bytes);
    return p;
}

uint64_t op_moe_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t top_k,
                              uint32_t experts, uint32_t dim, uint32_t width)
{
    return plan_make(ctx, ctx->half, rows, top_k, experts, dim, width).bytes;
}

/* ---- one part of the rows ---- */

typedef struct moe_part {
    const op_context *ctx;
    const op_moe_args *args;
    const moe_plan *plan;
    uint32_t row0, rows;
    gpu_range x, x_scale, routes, out; /* of this part */
    gpu_range counts, lists, indirect, hidden, packed, scale, down;
} moe_part;

/* Push constants of the grouped kernels: moe_matvec.comp and moe_matmul.comp. */
typedef struct group_push {
    uint32_t row0, row_cap, top_k, experts;
    uint32_t window_expert, window_experts, window_row, window_rows;
    uint32_t cols, row_uvec4, x_stride, out_stride;
    uint32_t rows;
} group_push;
static_assert(sizeof(group_push) == 52, "shared with shaders");

/* A pipeline over a tensor's windows, and what it reads and writes. */
typedef struct group_call {
    const gpu_tensor *w;
    gpu_pipeline *pipeline;
    uint32_t buffer_count;
    gpu_range x, lists, out, x_scale, w_scale;
    uint32_t x_stride, out_stride;
    uint32_t rows_per_group; /* weight rows a workgroup covers */
    uint32_t items;          /* most workgroups along the pairs; with indirect, expected */
    bool indirect;
    uint32_t writes;         /* buffers written beside out */
    uint32_t first_indirect; /* index of the tensor's first window among the indirect arguments */
    const char *label;
} group_call;

static ful_result record_windows(const moe_part *m, const group_call *call)
{
    const gpu_tensor *w = call->w;
    double pairs = (double)m->rows * m->args->top_k;
    for (uint32_t i = 0; i < w->window_count; i++) {
        const gpu_window *window = &w->windows[i];
        group_push push = {.row0 = m->row0,
                           .row_cap = m->rows,
                           .top_k = m->args->top_k,
                           .experts = w->experts,
                           .window_expert = window->expert0,
                           .window_experts = window->expert_count,
                           .window_row = window->row0,
                           .window_rows = window->row_count,
                           .cols = w->cols,
                           .row_uvec4 = (uint32_t)(w->row_bytes / 16),
                           .x_stride = call->x_stride,
                           .out_stride = call->out_stride,
                           .rows = w->rows};
        /* Expected share of the pairs, for the time budget. */
        double share = pairs * window->expert_count / w->experts;
        double used = share < window->expert_count ? share : window->expert_count;
        gpu_dispatch d = {
            .pipeline = call->pipeline,
            .buffers = {call->x, gpu_whole(&window->buffer), call->lists, call->out},
            .writes = 1u << 3 | call->writes,
            .uniform = m->ctx->step,
            .push = &push,
            .groups = {call->items, div_up(window->row_count, call->rows_per_group), 1},
            .cost = {.bytes = used * window->row_count * (double)w->row_bytes +
                              4.0 * share * (w->cols + window->row_count),
                     .flops = 2.0 * share * window->row_count * w->cols},
            .label = call->label,
            .layer = m->ctx->layer};
        if (call->buffer_count > 4)
            d.buffers[4] = call->x_scale;
        if (call->buffer_count > 5)
            d.buffers[5] = call->w_scale;
        if (call->indirect)
            d.indirect =
                gpu_part(m->indirect, (uint64_t)(call->first_indirect + i) * ARGS_STRIDE_BYTES, 12);
        TRY(gpu_commands_dispatch(m->ctx->commands, &d));
    }
    return FUL_OK;
}

enum matvec_mode { MODE_UP = 0, MODE_DOWN = 1, MODE_DOWN_COMBINE = 2 };
enum matvec_source { SOURCE_ROUTES = 0, SOURCE_TILES = 1 };

static ful_result narrow_pipeline(const moe_part *m, ful_type type, bool half, uint32_t rows,
                                  enum matvec_mode mode, enum matvec_source source,
                                  group_call *call)
{
    uint32_t couples = rows >= 8 ? NARROW_COUPLES : 1;
    op_module module = op_module_name(half ? "moe_matvec_narrow_half" : "moe_matvec_narrow", type);
    gpu_pipeline_desc desc = {
        .module = module.name,
        .buffer_count = half ? 5 : 4,
        .uniform = true,
        .push_bytes = sizeof(group_push),
        .spec_count = 6,
        .spec = {NARROW_WG, rows, mode, source, !half && call->x_stride % 4 == 0, couples}};
    op_spec_type(&desc, type);
    call->buffer_count = desc.buffer_count;
    call->rows_per_group = 2 * NARROW_WG * couples;
    return gpu_pipeline_get(m->ctx->device, &desc, &call->pipeline);
}

/* A row of x that blocks are multiplied with goes through shared memory where it and the sums fit:
 * invocations would read it far apart otherwise. */
static uint32_t staged_floats(const moe_part *m, const matvec_spread *s, uint32_t held,
                              uint32_t floats)
{
    uint64_t bytes = 4 * (uint64_t)floats + 4 * (uint64_t)s->wg / s->group * s->cols;
    /* With one line a workgroup everything is read once in any case. Choices take some, too. */
    bool fits = bytes + 2048 <= device_caps(m->ctx->device)->shared_bytes;
    return held == 1 && s->lanes < s->wg && fits ? floats : 0;
}

static ful_result matvec_pipeline(const moe_part *m, const gpu_tensor *w, bool half, uint32_t held,
                                  enum matvec_mode mode, group_call *call)
{
    if (!m->plan->wide)
        return narrow_pipeline(m, w->type, half, held, mode, SOURCE_ROUTES, call);
    static const char *const names[2][2] = {{"moe_matvec_wide", "moe_matvec_wide_half"},
                                            {"moe_matvec_subgroup", "moe_matvec_subgroup_half"}};
    uint32_t top_k = m->args->top_k;
    /* All chosen experts are read at once. */
    uint32_t lines = mode == MODE_DOWN_COMBINE ? 1 : top_k;
    matvec_spread s =
        matvec_spread_choose(m->ctx, gpu_family_usable(m->ctx->device, names[1][half]), w->type,
                             lines * w->rows, w->cols, held, mode == MODE_UP, 0);
    uint32_t split = 1;
    if (mode == MODE_DOWN_COMBINE && s.wg % (s.lanes * top_k) == 0)
        split = top_k;
    op_module module = op_module_name(names[s.subgroup][half], w->type);
    gpu_pipeline_desc desc = {.module = module.name,
                              .buffer_count = half ? 5 : 4,
                              .subgroup_size = s.subgroup_size,
                              .uniform = true,
                              .push_bytes = sizeof(group_push),
                              .spec_count = 9,
                              .spec = {s.wg, s.lanes * split, s.group, held, s.cols, s.unroll, mode,
                                       split, call->x_stride % (half ? 8 : 4) == 0}};
    if (type_is_blocks(w->type)) {
        uint32_t floats = w->cols * (mode == MODE_DOWN_COMBINE ? top_k : 1);
        desc.spec[desc.spec_count++] = staged_floats(m, &s, held, floats);
        op_spec_type(&desc, w->type);
    }
    call->buffer_count = desc.buffer_count;
    call->rows_per_group = s.wg / (s.lanes * split) * s.cols;
    return gpu_pipeline_get(m->ctx->device, &desc, &call->pipeline);
}

static ful_result matmul_pipeline(const moe_part *m, const gpu_tensor *w, enum matvec_mode mode,
                                  group_call *call)
{
    bool half = m->plan->half;
    uint32_t bn = m->plan->tile_rows, row_scale = half && w->row_scale.vk != VK_NULL_HANDLE;
    op_module module = op_module_name(half ? "moe_matmul_half" : "moe_matmul", w->type);
    gpu_pipeline_desc desc = {
        .module = module.name,
        .buffer_count = half ? 6 : 4,
        .uniform = true,
        .push_bytes = sizeof(group_push),
        .spec_count = 8,
        .spec = {128, TILE_BM, bn, 4, bn / 8, half ? 32 : 16, mode, row_scale}};
    op_spec_type(&desc, w->type);
    call->buffer_count = desc.buffer_count;
    call->rows_per_group = TILE_BM;
    /* Not read without row_scale, but a binding must be there. */
    call->w_scale = row_scale ? gpu_whole(&w->row_scale) : call->x_scale;
    return gpu_pipeline_get(m->ctx->device, &desc, &call->pipeline);
}

/* sorted: the results are in the order of the sorted pairs. */
static ful_result record_combine(const moe_part *m, bool sorted)
{
    struct {
        uint32_t row0, row_cap, top_k, dim, experts;
    } push = {m->row0, m->rows, m->args->top_k, m->args->w2->rows, m->args->w2->experts};
    gpu_pipeline_desc desc = {.module = sorted ? "moe_combine_sorted" : "moe_combine",
                              .buffer_count = sorted ? 4 : 3,
                              .uniform = true,
                              .push_bytes = sizeof(push),
                              .spec_count = 1,
                              .spec = {64}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->ctx->device, &desc, &pipeline));
    double elements = (double)m->rows * push.dim;
    gpu_dispatch d = {
        .pipeline = pipeline,
        .buffers = {m->down, m->routes, m->out, m->lists},
        .writes = 1u << 2,
        .uniform = m->ctx->step,
        .push = &push,
        .groups = {div_up(push.dim, 64), m->rows, 1},
        .cost = {.bytes = 4 * elements * (push.top_k + 1.0), .flops = 2 * elements * push.top_k},
        .label = "moe combine",
        .layer = m->ctx->layer};
    return gpu_commands_dispatch(m->ctx->commands, &d);
}

enum { ROUTED_EXPERTS = 128 }; /* every workgroup compares each of these with each */

bool op_moe_routes(const op_context *ctx, uint32_t rows, uint32_t experts, uint32_t top_k)
{
    const ful_caps *caps = device_caps(ctx->device);
    uint32_t most = op_wide(ctx) ? ROUTED_EXPERTS : ROUTED_EXPERTS_NARROW;
    bool wide = wide_usable(ctx, false, true);
    return rows == 1 && experts <= most && top_k <= experts && caps->storage_buffers >= 6 &&
           (wide ? gpu_family_usable(ctx->device, "moe_route_up_wide") ||
                       gpu_family_usable(ctx->device, "moe_route_up_subgroup")
                 : experts <= ROUTED_EXPERTS_NARROW &&
                       gpu_family_usable(ctx->device, "moe_route_up_narrow"));
}

static ful_result route_up_pipeline(const moe_part *m, group_call *call)
{
    const gpu_tensor *w = m->args->w13;
    uint32_t top_k = m->args->top_k;
    if (!m->plan->wide) {
        op_module narrow = op_module_name("moe_route_up_narrow", w->type);
        gpu_pipeline_desc desc = {.module = narrow.name,
                                  .buffer_count = 5,
                                  .uniform = true,
                                  .push_bytes = sizeof(group_push),
                                  .spec_count = 8,
                                  .spec = {NARROW_WG, 1, MODE_UP, SOURCE_ROUTES,
                                           call->x_stride % 4 == 0, 1, w->experts, top_k}};
        op_spec_type(&desc, w->type);
        call->buffer_count = desc.buffer_count;
        call->rows_per_group = 2 * NARROW_WG;
        return gpu_pipeline_get(m->ctx->device, &desc, &call->pipeline);
    }
    matvec_spread s =
        matvec_spread_choose(m->ctx, gpu_family_usable(m->ctx->device, "moe_route_up_subgroup"),
                             w->type, top_k * w->rows, w->cols, 1, true, 0);
    op_module module =
        op_module_name(s.subgroup ? "moe_route_up_subgroup" : "moe_route_up_wide", w->type);
    gpu_pipeline_desc desc = {.module = module.name,
                              .buffer_count = 5,
                              .subgroup_size = s.subgroup_size,
                              .uniform = true,
                              .push_bytes = sizeof(group_push),
                              .spec_count = 11,
                              .spec = {s.wg, s.lanes, s.group, 1, s.cols, s.unroll, MODE_UP, 1,
                                       call->x_stride % 4 == 0, w->experts, top_k}};
    if (type_is_blocks(w->type)) {
        desc.spec[desc.spec_count++] = staged_floats(m, &s, 1, w->cols);
        op_spec_type(&desc, w->type);
    }
    call->buffer_count = desc.buffer_count;
    call->rows_per_group = s.wg / s.lanes * s.cols;
    return gpu_pipeline_get(m->ctx->device, &desc, &call->pipeline);
}

/* The first matrix of few rows, with the choice of experts if that is still to be made. */
static ful_result record_up(const moe_part *m, group_call *up, uint32_t held)
{
    const op_moe_args *a = m->args;
    if (a->logits.buffer == NULL) {
        TRY(matvec_pipeline(m, a->w13, a->x.half, held, MODE_UP, up));
        return record_windows(m, up);
    }
    if (a->x.half || !op_moe_routes(m->ctx, a->rows, a->w13->experts, a->top_k))
        return fail(FUL_ERR_UNSUPPORTED,
                    "experts: no choice among %u of them for %u rows on the way",
                    (unsigned)a->w13->experts, (unsigned)a->rows);
    up->lists = gpu_part(a->logits, 0, 4 * (uint64_t)a->w13->experts);
    up->x_scale = m->routes;
    up->writes = 1u << 4;
    TRY(route_up_pipeline(m, up));
    return record_windows(m, up);
}

static ful_result record_few(const moe_part *m)
{
    const op_moe_args *a = m->args;
    uint32_t pairs = m->rows * a->top_k, held = round_up_pow2(m->rows);
    group_call up = {.w = a->w13,
                     .x = m->x,
                     .x_scale = m->x_scale,
                     .lists = m->routes,
                     .out = m->hidden,
                     .x_stride = a->x.stride,
                     .out_stride = m->plan->hidden_stride,
                     .items = pairs,
                     .label = "moe up"};
    TRY(record_up(m, &up, held));

    bool fused = m->rows <= FUSED_ROWS && a->w2->window_count == 1;
    group_call down = {.w = a->w2,
                       .x = m->hidden,
                       .lists = m->routes,
                       .out = fused ? m->out : m->down,
                       .x_stride = m->plan->hidden_stride,
                       .out_stride = a->w2->rows,
                       .items = fused ? m->rows : pairs,
                       .label = "moe down"};
    TRY(matvec_pipeline(m, a->w2, false, fused ? 1 : held, fused ? MODE_DOWN_COMBINE : MODE_DOWN,
                        &down));
    TRY(record_windows(m, &down));
    return fused ? FUL_OK : record_combine(m, false);
}

/* ---- many rows ---- */

/* How moe_sort walks a tensor's windows. */
typedef struct sort_windows {
    uint32_t span, pieces, groups, groups_last;
} sort_windows;

typedef struct sort_push {
    uint32_t row0, row_cap, top_k, experts, tile_rows, args2;
    sort_windows windows[2];
} sort_push;
static_assert(sizeof(sort_push) == 56, "shared with shaders");

static sort_windows windows_of(const gpu_tensor *w, uint32_t rows_per_group)
{
    const gpu_window *first = &w->windows[0], *last = &w->windows[w->window_count - 1];
    sort_windows s = {.groups = div_up(first->row_count, rows_per_group),
                      .groups_last = div_up(last->row_count, rows_per_group)};
    if (first->row_count == w->rows)
        s.span = first->expert_count;
    else
        s.pieces = w->window_count / w->experts;
    return s;
}

static ful_result record_sort(const moe_part *m, uint32_t up_rows, uint32_t down_rows)
{
    const op_moe_args *a = m->args;
    struct {
        uint32_t row0, row_cap, top_k;
    } count_push = {m->row0, m->rows, a->top_k};
    gpu_pipeline_desc desc = {.module = "moe_count",
                              .buffer_count = 2,
                              .uniform = true,
                              .push_bytes = sizeof(count_push),
                              .spec_count = 1,
                              .spec = {m->plan->wide ? 128 : 32}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->ctx->device, &desc, &pipeline));
    double bytes = 8.0 * a->w13->experts * m->rows * a->top_k;
    gpu_dispatch count = {.pipeline = pipeline,
                          .buffers = {m->routes, m->counts},
                          .writes = 1u << 1,
                          .uniform = m->ctx->step,
                          .push = &count_push,
                          .groups = {a->w13->experts, 1, 1},
                          .cost = {.bytes = bytes},
                          .label = "moe count",
                          .layer = m->ctx->layer};
    TRY(gpu_commands_dispatch(m->ctx->commands, &count));

    sort_push push = {.row0 = m->row0,
                      .row_cap = m->rows,
                      .top_k = a->top_k,
                      .experts = a->w13->experts,
                      .tile_rows = m->plan->tile_rows,
                      .args2 = a->w13->window_count,
                      .windows = {windows_of(a->w13, up_rows), windows_of(a->w2, down_rows)}};
    desc.module = "moe_sort";
    desc.buffer_count = 4;
    desc.push_bytes = sizeof(push);
    TRY(gpu_pipeline_get(m->ctx->device, &desc, &pipeline));
    gpu_dispatch sort = {.pipeline = pipeline,
                         .buffers = {m->routes, m->counts, m->lists, m->indirect},
                         .writes = 1u << 2 | 1u << 3,
                         .uniform = m->ctx->step,
                         .push = &push,
                         .groups = {a->w13->experts, 1, 1},
                         .cost = {.bytes = 2 * bytes},
                         .label = "moe sort",
                         .layer = m->ctx->layer};
    return gpu_commands_dispatch(m->ctx->commands, &sort);
}

static ful_result record_many(const moe_part *m)
{
    const op_moe_args *a = m->args;
    const moe_plan *p = m->plan;
    bool packed = p->packed_bytes > 0;
    uint32_t pairs = m->rows * a->top_k;
    uint32_t tiles = div_up(pairs, p->tile_rows) + a->w13->experts / 2;
    group_call up = {.w = a->w13,
                     .x = m->x,
                     .x_scale = m->x_scale,
                     .lists = m->lists,
                     .out = m->hidden,
                     .x_stride = a->x.stride,
                     .out_stride = p->hidden_stride,
                     .items = div_up(tiles, a->w13->window_count),
                     .indirect = true,
                     .label = "moe up"};
    group_call down = {.w = a->w2,
                       .x = packed ? m->packed : m->hidden,
                       .x_scale = m->scale,
                       .lists = m->lists,
                       .out = m->down,
                       .x_stride = packed ? p->packed_stride : p->hidden_stride,
                       .out_stride = a->w2->rows,
                       .items = div_up(tiles, a->w2->window_count),
                       .indirect = true,
                       .first_indirect = a->w13->window_count,
                       .label = "moe down"};
    if (p->wide) {
        TRY(matmul_pipeline(m, a->w13, MODE_UP, &up));
        TRY(matmul_pipeline(m, a->w2, MODE_DOWN, &down));
    } else {
        TRY(narrow_pipeline(m, a->w13->type, a->x.half, p->tile_rows, MODE_UP, SOURCE_TILES, &up));
        TRY(narrow_pipeline(m, a->w2->type, false, p->tile_rows, MODE_DOWN, SOURCE_TILES, &down));
    }
    TRY(record_sort(m, up.rows_per_group, down.rows_per_group));
    TRY(record_windows(m, &up));
    if (packed) {
        op_activation out = {.data = m->packed,
                             .scale = m->scale,
                             .dim = p->hidden_stride,
                             .stride = p->packed_stride,
                             .half = true};
        TRY(op_pack(m->ctx, m->hidden, &out, pairs, true));
    }
    TRY(record_windows(m, &down));
    return record_combine(m, false);
}

/* ---- many rows on matrix units ---- */

static ful_result record_gather(const moe_part *m)
{
    uint32_t pairs = m->rows * m->args->top_k;
    struct {
        uint32_t row0, row_cap, top_k, experts, stride, out_stride;
    } push = {m->row0,
              m->rows,
              m->args->top_k,
              m->args->w13->experts,
              m->args->x.stride / 8,
              m->plan->gathered_stride / 8};
    gpu_pipeline_desc desc = {.module = "moe_gather",
                              .buffer_count = 5,
                              .uniform = true,
                              .push_bytes = sizeof(push),
                              .spec_count = 1,
                              .spec = {128}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->ctx->device, &desc, &pipeline));
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {m->x, m->x_scale, m->lists, m->packed, m->scale},
                      .writes = 1u << 3 | 1u << 4,
                      .uniform = m->ctx->step,
                      .push = &push,
                      .cost = {.bytes = 32.0 * pairs * push.out_stride},
                      .label = "moe gather",
                      .layer = m->ctx->layer};
    TRY(op_groups(m->ctx->device, "experts", pairs, 1, d.groups));
    return gpu_commands_dispatch(m->ctx->commands, &d);
}

/* A grouped product: sorted rows in, sorted rows out. */
typedef struct matrix_call {
    const gpu_tensor *w;
    tile_kernel kernel;
    uint32_t x_stride, out_stride;
    gpu_range out;
    uint32_t first_indirect;
    const char *label;
} matrix_call;

static ful_result matrix_choose(const moe_part *m, op_act act, matrix_call *call)
{
    uint32_t pairs = m->rows * m->args->top_k;
    tile_request request = {.w = call->w,
                            .grouped = true,
                            .rows = div_up(pairs, call->w->experts),
                            .tile_rows = m->plan->tile_rows,
                            .out_stride = call->out_stride,
                            .act = act};
    if (!tiles_choose(m->ctx, &request, &call->kernel))
        return fail(FUL_ERR_UNSUPPORTED, "experts: no matrix kernel for tiles of %u rows",
                    (unsigned)m->plan->tile_rows);
    return FUL_OK;
}

static ful_result record_matrix(const moe_part *m, const matrix_call *call)
{
    const gpu_tensor *w = call->w;
    double pairs = (double)m->rows * m->args->top_k;
    uint32_t tiles = div_up(m->rows * m->args->top_k, call->kernel.bm) + w->experts / 2;
    gpu_pipeline_desc desc = call->kernel.desc;
    desc.module = call->kernel.module.name;
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->ctx->device, &desc, &pipeline));
    for (uint32_t i = 0; i < w->window_count; i++) {
        const gpu_window *window = &w->windows[i];
        tile_push push = {.row_count = m->rows * m->args->top_k,
                          .cols = w->cols,
                          .x_stride = call->x_stride,
                          .out_stride = call->out_stride,
                          .w_rows = window->row_count,
                          .w_row0 = window->row0,
                          .w_stride = (uint32_t)(w->row_bytes / 16),
                          .w_rows_all = w->rows,
                          .experts = w->experts,
                          .window_expert = window->expert0,
                          .window_experts = window->expert_count,
                          .splits = 1};
        double share = pairs * window->expert_count / w->experts;
        double used = share < window->expert_count ? share : window->expert_count;
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {m->packed, gpu_whole(&window->buffer), m->scale, call->out,
                        w->row_scale.vk != VK_NULL_HANDLE ? gpu_whole(&w->row_scale) : m->scale,
                        m->lists},
            .writes = 1u << 3,
            .uniform = m->ctx->step,
            .push = &push,
            .groups = {div_up(tiles, w->window_count), div_up(window->row_count, call->kernel.bn),
                       1},
            .indirect =
                gpu_part(m->indirect, (uint64_t)(call->first_indirect + i) * ARGS_STRIDE_BYTES, 12),
            .cost = {.bytes = used * window->row_count * (double)w->row_bytes +
                              share * (2.0 * w->cols + 4.0 * window->row_count),
                     .flops = 2.0 * share * window->row_count * w->cols},
            .label = call->label,
            .layer = m->ctx->layer};
        TRY(gpu_commands_dispatch(m->ctx->commands, &d));
    }
    return FUL_OK;
}

static ful_result record_many_matrix(const moe_part *m)
{
    const op_moe_args *a = m->args;
    const moe_plan *p = m->plan;
    uint32_t pairs = m->rows * a->top_k;
    matrix_call up = {.w = a->w13,
                      .x_stride = p->gathered_stride,
                      .out_stride = p->hidden_stride,
                      .out = m->hidden,
                      .label = "moe up"};
    matrix_call down = {.w = a->w2,
                        .x_stride = p->packed_stride,
                        .out_stride = a->w2->rows,
                        .out = m->down,
                        .first_indirect = a->w13->window_count,
                        .label = "moe down"};
    TRY(matrix_choose(m, OP_ACT_SWIGLU, &up));
    TRY(matrix_choose(m, OP_ACT_NONE, &down));
    TRY(record_sort(m, up.kernel.bn, down.kernel.bn));
    TRY(record_gather(m));
    TRY(record_matrix(m, &up));
    op_activation packed = {.data = m->packed,
                            .scale = m->scale,
                            .dim = p->hidden_stride,
                            .stride = p->packed_stride,
                            .half = true};
    TRY(op_pack(m->ctx, m->hidden, &packed, pairs, true));
    TRY(record_matrix(m, &down));
    return record_combine(m, true);
}

static gpu_range rows_of(gpu_range range, uint64_t row0, uint64_t rows, uint64_t row_bytes)
{
    uint64_t offset = row0 * row_bytes, bytes = rows * row_bytes;
    if (range.buffer == NULL || offset > range.bytes)
        return range;
    /* The last row of a strided input may end before its stride does. */
    return gpu_part(range, offset, bytes < range.bytes - offset ? bytes : range.bytes - offset);
}

ful_result op_moe(const op_context *ctx, const op_moe_args *args)
{
    const gpu_tensor *w13 = args->w13, *w2 = args->w2;
    uint32_t width = w2->cols, dim = w2->rows;
    if (w13->experts != w2->experts || w13->rows != 2 * width || w13->cols != dim)
        return fail(FUL_ERR_ARGUMENT, "experts: w13 is %u x %u x %u but w2 %u x %u x %u",
                    (unsigned)w13->experts, (unsigned)w13->rows, (unsigned)w13->cols,
                    (unsigned)w2->experts, (unsigned)w2->rows, (unsigned)w2->cols);
    if (args->rows == 0 || args->top_k == 0 || args->top_k > w13->experts)
        return fail(FUL_ERR_ARGUMENT, "experts: %u rows, top_k %u of %u experts",
                    (unsigned)args->rows, (unsigned)args->top_k, (unsigned)w13->experts);
    moe_plan plan = plan_make(ctx, args->x.half, args->rows, args->top_k, w13->experts, dim, width);
    if (plan.part_rows == 0)
        return fail(
            FUL_ERR_DEVICE_MEMORY,
            "experts: %d rows of %u x %u elements exceed the device's binding of %llu bytes",
            ROW_STEP, (unsigned)args->top_k, (unsigned)(dim > width ? dim : width),
            (unsigned long long)range_limit(ctx->device));
    if (args->scratch.bytes < plan.bytes)
        return fail(FUL_ERR_ARGUMENT, "experts: %llu bytes of scratch, %llu are needed",
                    (unsigned long long)args->scratch.bytes, (unsigned long long)plan.bytes);

    if (plan.matrix && args->x.stride % 8 != 0)
        return fail(FUL_ERR_ARGUMENT,
                    "experts: halves need a stride that is a multiple of 8, not %u",
                    (unsigned)args->x.stride);
    uint64_t x_bytes = (uint64_t)args->x.stride * (args->x.half ? 2 : 4);
    uint64_t route_bytes = 8 * (uint64_t)args->top_k;
    for (uint32_t row0 = 0; row0 < args->rows; row0 += plan.part_rows) {
        uint32_t rows = args->rows - row0 < plan.part_rows ? args->rows - row0 : plan.part_rows;
        moe_part part = {.ctx = ctx,
                         .args = args,
                         .plan = &plan,
                         .row0 = row0,
                         .rows = rows,
                         .x = rows_of(args->x.data, row0, rows, x_bytes),
                         .x_scale = rows_of(args->x.scale, row0, rows, 4),
                         .routes = rows_of(args->routes, row0, rows, route_bytes),
                         .out = rows_of(args->out, row0, rows, 4 * (uint64_t)dim),
                         .counts = gpu_part(args->scratch, plan.counts, plan.counts_bytes),
                         .lists = gpu_part(args->scratch, plan.lists, plan.lists_bytes),
                         .indirect = gpu_part(args->scratch, plan.indirect, plan.indirect_bytes),
                         .hidden = gpu_part(args->scratch, plan.hidden, plan.hidden_bytes),
                         .packed = gpu_part(args->scratch, plan.packed, plan.packed_bytes),
                         .scale = gpu_part(args->scratch, plan.scale, plan.scale_bytes),
                         .down = gpu_part(args->scratch, plan.down, plan.down_bytes)};
        TRY(plan.few      ? record_few(&part)
            : plan.matrix ? record_many_matrix(&part)
                          : record_many(&part));
    }
    return FUL_OK;
}

bool op_moe_hidden(const op_context *ctx, const op_moe_args *args, gpu_range *hidden, bool *sorted)
{
    const gpu_tensor *w2 = args->w2;
    moe_plan plan =
        plan_make(ctx, args->x.half, args->rows, args->top_k, w2->experts, w2->rows, w2->cols);
    if (args->x.half || plan.part_rows < args->rows)
        return false;
    *hidden = gpu_part(args->scratch, plan.hidden, plan.hidden_bytes);
    *sorted = !plan.few;
    return true;
}
