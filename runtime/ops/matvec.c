/* Matrix-vector kernels: one for devices whose invocations share memory, one for processors. */
#include "ops/matvec.h"
#include "ops/tuning.h"

#include <assert.h>

typedef struct matvec_push {
    uint32_t row0, row_count;
    uint32_t fixed_rows;
    uint32_t cols;
    uint32_t x_stride, out_stride;
    uint32_t w_rows, w_row0, w_stride;
    uint32_t split;
    /* with a norm only */
    uint32_t gate_stride, gate_offset;
    uint32_t write_norm;
    float alpha, beta, eps;
} matvec_push;
static_assert(sizeof(matvec_push) == 64, "as in matvec_wide.comp");
enum { PLAIN_PUSH_BYTES = 40 }; /* without the norm's: matvec.comp, matvec_wide.comp */

/* A kernel and how much one of its groups covers. */
typedef struct matvec_plan {
    gpu_pipeline_desc desc;
    op_module module;
    uint32_t group_rows;    /* rows of x */
    uint32_t group_weights; /* weight rows */
} matvec_plan;

static uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static uint32_t held_rows(uint32_t rows)
{
    return rows <= 1 ? 1 : rows <= 2 ? 2 : rows <= 4 ? 4 : MATVEC_ROWS;
}

static uint32_t held_most(const op_context *ctx)
{
    return op_few_registers(ctx->device) ? MATVEC_ROWS_SMALL : MATVEC_ROWS;
}

/* Lanes of one subgroup that may share a sum; 0 if subgroups can't be used in groups of wg. *size
 * is what to demand of the pipeline, or 0. The smallest size leaves a lane the most registers on
 * devices whose subgroups share a register file of fixed size. */
static uint32_t lanes_of_subgroup(const ful_caps *caps, uint32_t wg, uint32_t *size)
{
    bool demand = (caps->features & FUL_FEATURE_SUBGROUP_SIZE) != 0;
    uint32_t smallest = caps->subgroup_min > 8 ? caps->subgroup_min : 8;
    *size = 0;
    if ((caps->features & FUL_FEATURE_SUBGROUP) == 0)
        return 0;
    if (demand && smallest <= caps->subgroup_max && wg % smallest == 0) {
        *size = smallest;
        return smallest < 32 ? smallest : 32;
    }
    if (caps->subgroup_min < 4 || caps->subgroup_max > wg || wg % caps->subgroup_max != 0)
        return 0;
    return least(caps->subgroup_min, 32);
}

enum {
    LINE_INVOCATIONS = 65536, /* fewer leave a large device waiting for memory */
    LOADS = 8                 /* 16-byte loads an invocation has under way */
};

/* 16-byte loads that a step of a weight row takes; smaller ones count in full. */
static uint32_t loads_of_step(ful_type type)
{
    const type_traits *t = type_get(type);
    if (!type_is_blocks(type))
        return type == FUL_TYPE_F32 ? 2 : 1;
    return (t->low == 256 ? 2u : 1u) + (t->block_elements == 256 ? 1u : 0u);
}

/* Steps loaded ahead, so that about `loads` loads are under way: where a line holds four weight
 * rows twice as many served best. `each` steps make a lane's share; whole rounds if possible,
 * because the rest is loaded one after the other. */
static uint32_t unroll_of(const op_context *ctx, const matvec_spread *s, ful_type type,
                          uint32_t held, uint32_t each, uint32_t loads)
{
    uint32_t most = (s->cols == 4 ? 2 * loads : loads) / s->cols / loads_of_step(type);
    if (held > 2) /* x needs registers, too */
        most = least(most, held > 4 || op_few_registers(ctx->device) ? 1 : 2);
    most = least(most, each);
    for (uint32_t u = most; 2 * u > most && u > 1; u--)
        if (each % u == 0)
            return u;
    return most < 1 ? 1 : most;
}

matvec_spread matvec_spread_choose(const op_context *ctx, bool subgroups, ful_type type,
                                   uint32_t weight_rows, uint32_t cols, uint32_t held, bool pairs,
                                   uint32_t sums)
{
    const ful_caps *caps = device_caps(ctx->device);
    op_tuning tuning = device_tuning(ctx->device);
    uint32_t invocations = tuned_or(tuning.matvec_invocations, LINE_INVOCATIONS);
    matvec_spread s = {.wg = 128};
    if (subgroups)
        s.group = lanes_of_subgroup(caps, s.wg, &s.subgroup_size);
    s.subgroup = s.group != 0;
    s.lanes = s.subgroup ? s.group : 32;
    if (!s.subgroup)
        s.group = 1;
    /* As many weight rows a line as leave enough lines, so that x is read less often. */
    s.cols = s.subgroup && !op_few_registers(ctx->device) ? 4 : 2;
    /* Groups of 32 weights, their values and x need registers, too. */
    if (type_is_blocks(type) &&
        (held > 2 || (op_small_device(ctx->device) && caps->subgroup_max > 64)))
        s.cols = 2;
    while (s.cols > (pairs ? 2u : 1u) && (uint64_t)weight_rows / s.cols * s.lanes < invocations)
        s.cols /= 2;
    /* Too few lines: longer ones. */
    uint32_t chunks = cols / op_chunk(type);
    while (s.lanes * 2 <= s.wg && s.lanes * 2 <= chunks &&
           (uint64_t)weight_rows / s.cols * s.lanes < invocations)
        s.lanes *= 2;
    /* The sums of a workgroup pass through shared memory unless subgroups hold the lines. */
    while (s.cols > (pairs ? 2u : 1u) && s.lanes > s.group &&
           4 * s.wg / s.group * (held * s.cols + sums) > caps->shared_bytes)
        s.cols /= 2;
    /* Hardly any lines: one a workgroup, as long as it may be. */
    while (s.lanes == s.wg && s.subgroup && s.wg < least(256, 16 * s.group) &&
           s.lanes * 2 <= chunks && s.wg * 2 <= caps->workgroup_invocations &&
           s.wg * 2 <= caps->workgroup_size[0] &&
           (uint64_t)weight_rows / s.cols * s.lanes < invocations / 4)
        s.lanes = s.wg *= 2;
    uint32_t each = (chunks + s.lanes - 1) / s.lanes;
    s.unroll = unroll_of(ctx, &s, type, held, each, tuned_or(tuning.matvec_loads, LOADS) / 2);
    return s;
}

/* Where small subgroups share a register file of fixed size, and on GPUs of phones and laptops. */
static bool few_registers(const op_context *ctx, const matvec_spread *s)
{
    return s->group < 32 || op_small_device(ctx->device);
}

/* With one row the workgroup can put x into shared memory once, normalised, where it and the sums
 * fit: blocks would read it far apart otherwise. A larger workgroup then does so less often. */
static bool stage(const op_context *ctx, ful_type type, uint32_t cols, matvec_spread *s)
{
    const ful_caps *caps = device_caps(ctx->device);
    bool few = few_registers(ctx, s);
    uint32_t wg = s->wg, most = least(cols > 4096 && !few ? 512 : 256, 16 * s->group);
    if (s->lanes == wg)
        return false; /* one line, which reads everything once in any case */
    while (s->subgroup && wg * 2 <= most && wg * 2 <= caps->workgroup_invocations &&
           wg * 2 <= caps->workgroup_size[0])
        wg *= 2;
    uint64_t sums = 4 * (uint64_t)wg / s->group * (1 + (s->lanes > s->group ? s->cols + 1 : 0));
    if (4 * (uint64_t)cols + sums + 64 > caps->shared_bytes)
        return false;
    s->wg = wg;
    /* Nothing but weights is loaded behind the barrier, so twice as much may be on its way, unless
     * registers then hold too few workgroups. */
    uint32_t each = (cols / op_chunk(type) + s->lanes - 1) / s->lanes;
    uint32_t loads = tuned_or(device_tuning(ctx->device).matvec_loads, LOADS);
    if (op_few_registers(ctx->device))
        loads /= 4;
    else if (wg > 256 || few)
        loads /= 2;
    s->unroll = unroll_of(ctx, s, type, 1, each, loads);
    return true;
}

/* Several rows of x pass through shared memory, two tiles of them at a time. The next loads are
 * then under way beside all sums. */
static bool tile(const op_context *ctx, const gpu_tensor *w, uint32_t held, matvec_spread *s)
{
    const ful_caps *caps = device_caps(ctx->device);
    uint32_t invocations =
        tuned_or(device_tuning(ctx->device).matvec_invocations, LINE_INVOCATIONS);
    uint32_t wg = least(256, 16 * s->group);
    uint64_t bytes = 2 * 16 * (uint64_t)held * 2 * s->group;
    if (held < 2 || op_few_registers(ctx->device) || !s->subgroup || s->lanes != s->group ||
        wg > caps->workgroup_invocations || wg > caps->workgroup_size[0] ||
        bytes + 64 > caps->shared_bytes)
        return false;
    s->wg = wg;
    s->unroll = 1;
    /* Blocks are taken eight columns at a time here: as many weight rows as of other types. */
    if (s->cols == 2 && (uint64_t)w->rows / 4 * s->lanes >= invocations)
        s->cols = 4;
    if (held > 4 && few_registers(ctx, s))
        s->cols = least(s->cols, 2);
    return true;
}

static void plan_wide(const op_context *ctx, const op_matmul_args *args, matvec_plan *plan)
{
    static const char *const names[2][2] = {{"matvec_wide", "matvec_wide_subgroup"},
                                            {"matvec_norm", "matvec_norm_subgroup"}};
    const op_fused_norm *norm = args->norm;
    uint32_t held = least(held_rows(args->rows), held_most(ctx));
    matvec_spread s = matvec_spread_choose(
        ctx, gpu_family_usable(ctx->device, names[norm != NULL][1]), args->w->type, args->w->rows,
        args->w->cols, held, args->act == OP_ACT_SWIGLU, norm != NULL ? held : 0);
    bool blocks = type_is_blocks(args->w->type);
    bool staged =
        (norm != NULL || blocks) && held == 1 && stage(ctx, args->w->type, args->w->cols, &s);
    bool tiled = norm == NULL && !args->x.half &&
                 gpu_family_usable(ctx->device, "matvec_rows_subgroup") &&
                 tile(ctx, args->w, held, &s);
    plan->module = op_module_name(tiled ? "matvec_rows_subgroup" : names[norm != NULL][s.subgroup],
                                  args->w->type);
    plan->group_rows = held;
    plan->group_weights = s.wg / s.lanes * s.cols;
    plan->desc =
        (gpu_pipeline_desc){.buffer_count = norm != NULL ? 6 : 4,
                            .subgroup_size = s.subgroup_size,
                            .uniform = true,
                            .push_bytes = norm != NULL ? sizeof(matvec_push) : PLAIN_PUSH_BYTES,
                            .spec_count = norm != NULL ? 10 : 9,
                            .spec = {s.wg, s.lanes, s.group, held, s.cols, s.unroll, args->act}};
    if (norm != NULL) {
        plan->desc.spec[7] = norm->gated ? 2 : 1;
        plan->desc.spec[8] = norm->b.buffer != NULL;
        plan->desc.spec[9] = staged ? args->w->cols : 0;
    } else {
        plan->desc.spec[7] = args->x.half;
        plan->desc.spec[8] = args->x.stride % (args->x.half ? 8 : 4) == 0;
        if (blocks)
            plan->desc.spec[plan->desc.spec_count++] = staged ? args->w->cols : 0;
    }
    op_spec_type(&plan->desc, args->w->type);
}

static void plan_narrow(const op_matmul_args *args, matvec_plan *plan)
{
    /* A lane has its own weight rows, x is read alike by all lanes. Loads cost such drivers more
     * than products: 16 rows by 4 weight rows are as many sums as their registers and caches bear.
     */
    enum { WG = 8, COLS = 4, ROWS_MOST = 16 };
    uint32_t rows = args->rows > MATVEC_ROWS ? ROWS_MOST : held_rows(args->rows);
    bool vec = args->x.stride % (args->x.half ? 8 : 4) == 0;
    plan->module = op_module_name("matvec", args->w->type);
    plan->group_rows = rows;
    plan->group_weights = WG * COLS;
    plan->desc = (gpu_pipeline_desc){.buffer_count = 4,
                                     .uniform = true,
                                     .push_bytes = PLAIN_PUSH_BYTES,
                                     .spec_count = 6,
                                     .spec = {WG, rows, COLS, args->act, args->x.half, vec}};
    op_spec_type(&plan->desc, args->w->type);
}

bool op_matmul_norm_usable(const op_context *ctx, uint32_t rows, uint32_t cols,
                           uint32_t gate_stride)
{
    const ful_caps *caps = device_caps(ctx->device);
    uint64_t widest = 4 * (uint64_t)rows * (gate_stride > cols ? gate_stride : cols);
    /* Compilers for phones load all that a group of 32 columns of blocks meets at once, which
     * spills unless the row passes through shared memory. */
    if (op_small_device(ctx->device) && caps->subgroup_max > 64 &&
        (rows > 1 || 4 * (uint64_t)cols + 4096 > caps->shared_bytes))
        return false;
    return op_wide(ctx) && rows <= held_most(ctx) && cols % 8 == 0 && gate_stride % 8 == 0 &&
           caps->storage_buffers >= 6 && widest <= caps->storage_range_bytes &&
           (gpu_family_usable(ctx->device, "matvec_norm") ||
            gpu_family_usable(ctx->device, "matvec_norm_subgroup"));
}

static ful_result norm_check(const op_context *ctx, const op_matmul_args *args)
{
    const op_fused_norm *norm = args->norm;
    if (args->x.half || args->x.stride != args->x.dim ||
        !op_matmul_norm_usable(ctx, args->rows, args->x.dim, norm->gated ? norm->gate_stride : 0))
        return fail(FUL_ERR_UNSUPPORTED, "matmul: no norm on the way into %u rows of %u columns",
                    (unsigned)args->rows, (unsigned)args->x.dim);
    if (norm->gated && (norm->b.buffer == NULL || norm->gate_offset % 4 != 0))
        return fail(FUL_ERR_ARGUMENT, "matmul: a gate at column %u", (unsigned)norm->gate_offset);
    return FUL_OK;
}

static void bind_norm(const op_matmul_args *args, uint32_t window, matvec_push *push,
                      gpu_dispatch *d)
{
    const op_fused_norm *norm = args->norm;
    uint64_t row_bytes = 4 * (uint64_t)args->x.dim;
    push->alpha = norm->alpha;
    push->beta = norm->beta;
    push->eps = norm->eps;
    push->gate_stride = norm->gate_stride;
    push->gate_offset = norm->gate_offset;
    push->write_norm = norm->out.buffer != NULL && window == 0;
    uint64_t b_bytes = norm->gated ? 4 * (uint64_t)norm->gate_stride : row_bytes;
    d->buffers[3] =
        norm->b.buffer != NULL ? gpu_part(norm->b, 0, args->rows * b_bytes) : d->buffers[0];
    d->buffers[4] = gpu_part(norm->weight, 0, row_bytes);
    /* Where it is not wanted something must be bound. */
    d->buffers[5] =
        push->write_norm ? gpu_part(norm->out, 0, args->rows * row_bytes) : d->buffers[2];
    d->writes |= 1u << 5;
    d->cost.bytes += (double)args->rows * (double)(row_bytes + b_bytes);
}

/* One row's columns lie together: a window binds its own only, so that the next one need not wait
 * for it, wherever they begin as bindings may. */
static gpu_range bind_columns(const op_matmul_args *args, const gpu_window *window,
                              matvec_push *push)
{
    uint64_t from = 4 * (uint64_t)window->row0;
    if (args->rows > 1 || args->act == OP_ACT_SWIGLU || from % 256 != 0)
        return op_rows(args->out, push->row0, push->row_count, 4 * (uint64_t)args->out_stride);
    push->w_row0 = 0;
    push->split = args->split > window->row0 ? args->split - window->row0 : 0;
    return gpu_part(args->out, from, 4 * (uint64_t)window->row_count);
}

ful_result matvec_matmul(const op_context *ctx, const op_matmul_args *args)
{
    const gpu_tensor *w = args->w;
    const op_activation *x = &args->x;
    if (args->norm != NULL)
        TRY(norm_check(ctx, args));
    matvec_plan plan;
    if (op_wide(ctx) && (args->norm != NULL || gpu_family_usable(ctx->device, "matvec_wide") ||
                         gpu_family_usable(ctx->device, "matvec_wide_subgroup")))
        plan_wide(ctx, args, &plan);
    else
        plan_narrow(args, &plan);
    plan.desc.module = plan.module.name;
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &plan.desc, &pipeline));

    uint64_t x_row_bytes = (x->half ? 2 : 4) * (uint64_t)x->stride;
    uint64_t out_row_bytes = 4 * (uint64_t)args->out_stride;
    uint64_t row_bytes[] = {x_row_bytes, out_row_bytes};
    uint32_t part;
    TRY(op_part_rows(ctx->device, "matmul", row_bytes, 2, args->rows, &part));
    if (args->norm != NULL && part < args->rows)
        return fail(FUL_ERR_UNSUPPORTED, "matmul: %u rows with a norm do not fit one binding",
                    (unsigned)args->rows);
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        gpu_range x_part = op_rows(x->data, row0, rows, x_row_bytes);
        gpu_range scale = x->half ? op_rows(x->scale, 0, args->rows, 4) : x_part;
        for (uint32_t i = 0; i < w->window_count; i++) {
            const gpu_window *window = &w->windows[i];
            matvec_push push = {.row0 = row0,
                                .row_count = rows,
                                .fixed_rows = args->fixed,
                                .cols = w->cols,
                                .x_stride = x->stride,
                                .out_stride = args->out_stride,
                                .w_rows = window->row_count,
                                .w_row0 = window->row0,
                                .w_stride = (uint32_t)(w->row_bytes / 16),
                                .split = args->split};
            gpu_dispatch d = {
                .pipeline = pipeline,
                .buffers = {x_part, gpu_whole(&window->buffer), bind_columns(args, window, &push),
                            scale},
                .writes = 1u << 2,
                .uniform = ctx->step,
                .push = &push,
                .cost = {.bytes =
                             (double)window->row_count * (double)w->row_bytes +
                             (double)rows * (double)(x_row_bytes + 4 * (uint64_t)window->row_count),
                         .flops = 2.0 * rows * window->row_count * w->cols},
                .label = args->norm != NULL ? "norm matvec" : "matvec",
                .layer = ctx->layer};
            if (args->norm != NULL)
                bind_norm(args, i, &push, &d);
            TRY(op_groups(ctx->device, "matmul", div_up_u32(window->row_count, plan.group_weights),
                          div_up_u32(rows, plan.group_rows), d.groups));
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return FUL_OK;
}
