/* Tiles on cooperative matrices of subgroups: their sizes by device and rows, and dense products
 * with them. */
#include <assert.h>
#include <math.h>

#include "ops/tiles.h"
#include "ops/tuning.h"

enum {
    FLAG_W_SCALE = 1,
    FLAG_RAGGED = 2,
    FLAG_VEC_OUT = 4,
    SPLITS_MAX = 8,
    /* Tiles of x that are walked together, block of weight rows by block: their x (8 tiles of 128
     * rows by 6,144 halves are 13 MB) should stay in the second cache. */
    PANEL = 8
};

/* A tile, the part of one subgroup in it, and columns of a step. `rate` is the speed of a device
 * full of them relative to the others of its list. */
typedef struct tile_size {
    uint32_t bm, bn, bk, wm, wn;
    double rate;
} tile_size;

/* Rates measured on an H100, TFLOP/s: one workgroup of 8 subgroups lives there at a time, so long
 * steps and much of the shared memory pay. */
static const tile_size sizes_of_32[] = {
    {128, 192, 64, 64, 48, 300}, {192, 128, 64, 48, 64, 295}, {128, 128, 64, 64, 32, 260},
    {64, 256, 64, 64, 32, 238},  {64, 128, 64, 32, 64, 164},  {64, 64, 64, 32, 32, 140},
    {32, 128, 64, 32, 32, 120},  {32, 64, 64, 16, 32, 100},   {16, 128, 64, 16, 32, 70},
    {16, 64, 64, 16, 16, 60},    {64, 64, 32, 32, 32, 120},
};
/* Guessed: few registers and little shared memory, so that several workgroups live beside each
 * other. */
static const tile_size sizes_of_64[] = {
    {128, 64, 32, 32, 32, 100},
    {64, 64, 32, 32, 32, 90},
    {32, 64, 32, 16, 32, 50},
    {16, 64, 32, 16, 16, 30},
};
/* Intel's compiler spills where a subgroup has more than 16 x 16. */
static const tile_size sizes_of_16[] = {
    {128, 64, 32, 16, 16, 100},
    {64, 64, 32, 16, 16, 90},
    {32, 64, 32, 16, 16, 60},
    {16, 64, 32, 16, 16, 35},
};
static const tile_size sizes_of_8[] = {
    {64, 64, 32, 16, 32, 85},
    {32, 128, 32, 16, 32, 60},
    {32, 64, 32, 16, 32, 55},
    {16, 64, 32, 16, 16, 30},
};

typedef struct size_list {
    const tile_size *sizes;
    uint32_t count;
} size_list;

#define LIST(array) ((size_list){array, sizeof(array) / sizeof(array[0])})

static size_list sizes_for(uint32_t subgroup)
{
    return subgroup >= 64   ? LIST(sizes_of_64)
           : subgroup >= 32 ? LIST(sizes_of_32)
           : subgroup >= 16 ? LIST(sizes_of_16)
                            : LIST(sizes_of_8);
}

static uint32_t invocations(const tile_size *s, const ful_caps *caps)
{
    return s->bm / s->wm * (s->bn / s->wn) * caps->matrix_subgroup;
}

/* Shared memory as the shader declares it. */
static uint32_t shared_bytes(const tile_size *s, const ful_matrix_shape *m, uint32_t block)
{
    uint32_t step = (s->bm + s->bn) * (s->bk / 8 + 1);
    uint32_t waves = s->bm / s->wm, strip_rows = (waves % 2 == 0 ? 2 : waves) * m->m;
    uint32_t strip = strip_rows * (s->bn / 4 + 2);
    uint32_t maxima = block == 0 ? 0 : strip_rows * (s->bn / block) * 4;
    return (step > strip ? step : strip) * 16 + maxima;
}

static bool size_fits(const ful_caps *caps, const tile_size *s, uint32_t block)
{
    uint32_t wg = invocations(s, caps);
    return wg <= caps->workgroup_invocations && wg <= caps->workgroup_size[0] &&
           shared_bytes(s, &caps->matrix[0], block) <= caps->shared_bytes &&
           (block == 0 || s->bn % block == 0);
}

/* How many workgroups of this kind keep the device busy. Vulkan does not tell. */
uint32_t tiles_units(const op_context *ctx)
{
    switch (ful_device_get_info(ctx->device)->kind) {
    case FUL_DEVICE_DISCRETE:
    case FUL_DEVICE_VIRTUAL:
        return 128;
    case FUL_DEVICE_CPU:
        return 4;
    case FUL_DEVICE_INTEGRATED:
    case FUL_DEVICE_OTHER:
        break;
    }
    return 16;
}

/* Tiles of bm rows that `rows` need. Of one expert among many it is an average: its rows scatter
 * about `rows` by their square root, as random routing does. */
static double tiles_expected(bool grouped, uint32_t rows, uint32_t bm)
{
    if (!grouped)
        return div_up_u32(rows, bm);
    double tiles = 0, mean = rows < 1 ? 1 : rows, spread = 1 / sqrt(mean);
    for (uint32_t at = 0; at < 2 * rows + bm; at += bm)
        tiles += 1 / (1 + exp(-1.7 * (mean - at) * spread)); /* of a normal distribution */
    return tiles;
}

/* What is to be made of tiles. */
typedef struct tile_work {
    bool grouped;
    uint32_t experts, rows, weight_rows;
    uint32_t exact; /* not 0: rows that a tile must have */
    uint32_t block;
} tile_work;

/* What tuning says about products of so many rows; 0: nothing. */
static uint32_t tuned_code(const op_context *ctx, bool grouped, uint32_t rows)
{
    if (ctx->tile != 0)
        return ctx->tile;
    op_tuning t = device_tuning(ctx->device);
    uint32_t i = tuning_rows_class(rows);
    return grouped ? t.group_tile[i] : t.tile[i];
}

/* The tuned size, else that with the least time: rounds of workgroups times the work of one. */
static bool size_choose(const op_context *ctx, const tile_work *work, tile_size *out)
{
    const ful_caps *caps = device_caps(ctx->device);
    size_list list = sizes_for(caps->matrix_subgroup);
    uint32_t code = tuned_code(ctx, work->grouped, work->rows);
    double units = tiles_units(ctx), best = 0;
    *out = (tile_size){0};
    for (uint32_t i = 0; i < list.count; i++) {
        const tile_size *s = &list.sizes[i];
        if (!size_fits(caps, s, work->block) || (work->exact != 0 && s->bm != work->exact))
            continue;
        double groups = work->experts * tiles_expected(work->grouped, work->rows, s->bm) *
                        div_up_u32(work->weight_rows, s->bn);
        double time = ceil(groups / units) * s->bm * s->bn / s->rate;
        if (code == tile_code(TILE_KIND_SUBGROUP, s->bm, s->bn))
            time = 0;
        if (out->bm == 0 || time < best) {
            *out = *s;
            best = time;
        }
    }
    return out->bm != 0;
}

bool tiles_usable(const op_context *ctx, bool grouped)
{
    const ful_caps *caps = device_caps(ctx->device);
    tile_size s;
    /* The sizes of a grouped product's tiles are those of subgroups in any case. */
    return op_half_usable(ctx->device) && (caps->features & FUL_FEATURE_COOPMAT) &&
           gpu_family_usable(ctx->device, grouped ? "moe_coopmat" : "matmul_coopmat") &&
           size_choose(ctx, &(tile_work){.experts = 1, .rows = 1, .weight_rows = 1}, &s);
}

uint32_t tiles_group_rows(const op_context *ctx, uint32_t experts, uint32_t rows,
                          uint32_t weight_rows)
{
    tile_work work = {
        .grouped = true, .experts = experts, .rows = rows, .weight_rows = weight_rows};
    tile_size s;
    /* Tiles of whole workgroups leave some weights to those of subgroups. */
    work.exact = tuned_code(ctx, true, rows) >> 14 & 0x3fff;
    if (work.exact != 0 && size_choose(ctx, &work, &s))
        return s.bm;
    work.exact = 0;
    return size_choose(ctx, &work, &s) ? s.bm : 0;
}

uint32_t tiles_splits(uint32_t units, uint32_t groups, uint32_t steps)
{
    uint32_t splits = units / groups;
    if (splits > SPLITS_MAX)
        splits = SPLITS_MAX;
    if (splits > steps / 4)
        splits = steps / 4;
    if (splits < 2)
        return 1;
    return div_up_u32(steps, div_up_u32(steps, splits)); /* none of them empty */
}

static uint32_t splits_for(const op_context *ctx, const tile_size *s, uint32_t rows,
                           uint32_t weight_rows, uint32_t cols)
{
    uint32_t groups = div_up_u32(rows, s->bm) * div_up_u32(weight_rows, s->bn);
    return tiles_splits(tiles_units(ctx), groups, div_up_u32(cols, s->bk));
}

uint64_t tiles_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t weight_rows)
{
    tile_work work = {.experts = 1, .rows = rows, .weight_rows = weight_rows};
    tile_size s;
    if (!tiles_usable(ctx, false) || !size_choose(ctx, &work, &s))
        return 0;
    uint32_t splits = splits_for(ctx, &s, rows, weight_rows, UINT32_MAX / 2);
    uint64_t bytes = (uint64_t)splits * rows * weight_rows * 4;
    return splits > 1 && bytes <= device_caps(ctx->device)->storage_range_bytes ? bytes : 0;
}

/* Results a block of columns at a time: no block may lie in two windows or two tiles. */
static bool blocks_fit(const gpu_tensor *w, uint32_t block)
{
    if (block < 4 || (block & (block - 1)) != 0 || w->rows % block != 0)
        return false;
    for (uint32_t i = 0; i < w->window_count; i++)
        if (w->windows[i].row0 % block != 0)
            return false;
    return true;
}

static bool windows_in_fours(const gpu_tensor *w)
{
    for (uint32_t i = 0; i < w->window_count; i++)
        if (w->windows[i].row0 % 4 != 0 || w->windows[i].row_count % 4 != 0)
            return false;
    return true;
}

bool tiles_choose(const op_context *ctx, const tile_request *q, tile_kernel *out)
{
    const ful_caps *caps = device_caps(ctx->device);
    if (!tiles_usable(ctx, q->grouped))
        return false;
    if (q->block != 0 && (q->grouped || q->act == OP_ACT_SWIGLU || !blocks_fit(q->w, q->block)))
        return false;
    if (tiles_flexible_choose(ctx, q, tuned_code(ctx, q->grouped, q->rows), out)) {
        out->splits = 1;
        return true;
    }
    op_module module = op_module_name(q->grouped      ? "moe_coopmat"
                                      : q->block != 0 ? "matmul_coopmat_blocks"
                                                      : "matmul_coopmat",
                                      q->w->type);
    if (!gpu_module_usable(ctx->device, module.name))
        return false;
    tile_work work = {.grouped = q->grouped,
                      .experts = q->w->experts,
                      .rows = q->rows,
                      .weight_rows = q->w->rows,
                      .exact = q->tile_rows,
                      .block = q->block};
    tile_size s;
    if (!size_choose(ctx, &work, &s))
        return false;
    uint32_t splits = 1;
    if (!q->grouped && q->block == 0)
        splits = splits_for(ctx, &s, q->rows, q->w->rows, q->w->cols);
    if (splits > 1 && q->scratch_bytes < (uint64_t)splits * q->rows * q->w->rows * 4)
        splits = 1;
    uint32_t out_stride = splits > 1 ? q->w->rows : q->out_stride;
    const ful_matrix_shape *m = &caps->matrix[0];
    bool w_scale = q->w->row_scale.vk != VK_NULL_HANDLE;
    uint32_t flags = (w_scale ? FLAG_W_SCALE : 0) | (q->w->cols % s.bk != 0 ? FLAG_RAGGED : 0) |
                     (windows_in_fours(q->w) && out_stride % 4 == 0 ? FLAG_VEC_OUT : 0);
    *out =
        (tile_kernel){.module = module,
                      .bm = s.bm,
                      .bn = s.bn,
                      .splits = splits,
                      .desc = {.buffer_count = q->grouped || q->block != 0 ? 6 : 5,
                               .uniform = true,
                               .push_bytes = sizeof(tile_push),
                               .spec_count = 14,
                               .spec = {invocations(&s, caps), s.bm, s.bn, s.bk, s.wm, s.wn, m->m,
                                        m->n, m->k, PANEL, splits > 1 ? OP_ACT_NONE : q->act, flags,
                                        q->block != 0 ? q->block : s.bn,
                                        caps->matrix_subgroup != 32 ? 1
                                        : q->grouped                ? 2
                                                                    : 4}}};
    op_spec_type(&out->desc, q->w->type);
    return true;
}

ful_result tiles_reduce(const op_context *ctx, const op_matmul_args *args, uint32_t splits)
{
    struct {
        uint32_t row0, row_count, fixed_rows, splits, w_rows, out_stride, split;
    } push = {0, args->rows, args->fixed, splits, args->w->rows, args->out_stride, args->split};
    gpu_pipeline_desc desc = {.module = "matmul_reduce",
                              .buffer_count = 2,
                              .uniform = true,
                              .push_bytes = sizeof(push),
                              .spec_count = 2,
                              .spec = {128, args->act}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    uint64_t elements = (uint64_t)args->rows * push.w_rows;
    gpu_dispatch d = {
        .pipeline = pipeline,
        .buffers = {gpu_part(args->scratch, 0, splits * elements * 4),
                    op_rows(args->out, 0, args->rows, 4 * (uint64_t)args->out_stride)},
        .writes = 1u << 1,
        .uniform = ctx->step,
        .push = &push,
        .cost = {.bytes = 4.0 * (double)elements * (splits + 1.0),
                 .flops = (double)elements * splits},
        .label = "matmul reduce",
        .layer = ctx->layer};
    uint64_t pairs = (uint64_t)args->rows * ((push.w_rows + 1) / 2);
    TRY(op_groups(ctx->device, "matmul", (pairs + 127) / 128, 1, d.groups));
    return gpu_commands_dispatch(ctx->commands, &d);
}

ful_result tiles_matmul(const op_context *ctx, const op_matmul_args *args,
                        const tile_kernel *kernel)
{
    const gpu_tensor *w = args->w;
    const op_activation *x = &args->x;
    const op_blocks *blocks = &args->out_blocks;
    bool in_blocks = blocks->data.buffer != NULL;
    uint32_t splits = kernel->splits;
    gpu_pipeline_desc desc = kernel->desc;
    desc.module = kernel->module.name;
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t x_bytes = 2 * (uint64_t)x->stride;
    uint64_t out_bytes = in_blocks ? 2 * (uint64_t)blocks->stride : 4 * (uint64_t)args->out_stride;
    uint64_t scale_bytes = in_blocks ? 4 * (uint64_t)(blocks->stride / blocks->block) : 0;
    uint64_t row_bytes[] = {x_bytes, out_bytes, scale_bytes};
    uint32_t part;
    TRY(op_part_rows(ctx->device, "matmul", row_bytes, 3, args->rows, &part));
    if (splits > 1 && part < args->rows)
        return fail(FUL_ERR_UNSUPPORTED, "matmul: %u rows in %u parts exceed the device's bindings",
                    (unsigned)args->rows, (unsigned)splits);
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        gpu_range x_scale = op_rows(x->scale, 0, args->rows, 4);
        gpu_range out = op_rows(in_blocks ? blocks->data : args->out, row0, rows, out_bytes);
        if (splits > 1)
            out = gpu_part(args->scratch, 0, splits * (uint64_t)rows * w->rows * 4);
        for (uint32_t i = 0; i < w->window_count; i++) {
            const gpu_window *window = &w->windows[i];
            tile_push push = {.row0 = row0,
                              .row_count = rows,
                              .fixed_rows = args->fixed,
                              .cols = w->cols,
                              .x_stride = x->stride,
                              .out_stride = splits > 1  ? w->rows
                                            : in_blocks ? blocks->stride
                                                        : args->out_stride,
                              .w_rows = window->row_count,
                              .w_row0 = window->row0,
                              .w_stride = (uint32_t)(w->row_bytes / 16),
                              .w_rows_all = w->rows,
                              .split = args->split,
                              .splits = splits,
                              .split_stride = rows * w->rows};
            gpu_dispatch d = {
                .pipeline = pipeline,
                .buffers = {op_rows(x->data, row0, rows, x_bytes), gpu_whole(&window->buffer),
                            x_scale, out,
                            w->row_scale.vk != VK_NULL_HANDLE ? gpu_whole(&w->row_scale) : x_scale},
                .writes = 1u << 3,
                .uniform = ctx->step,
                .push = &push,
                .cost = {.bytes = (double)window->row_count * (double)w->row_bytes +
                                  (double)rows * (double)(x_bytes + (uint64_t)window->row_count *
                                                                        (in_blocks ? 2 : 4)),
                         .flops = 2.0 * rows * window->row_count * w->cols},
                .label = "matmul",
                .layer = ctx->layer};
            if (in_blocks) {
                d.buffers[5] = op_rows(blocks->scale, row0, rows, scale_bytes);
                d.writes |= 1u << 5;
            }
            uint64_t tiles = div_up_u32(rows, kernel->bm);
            TRY(op_groups(ctx->device, "matmul", tiles * div_up_u32(window->row_count, kernel->bn),
                          splits, d.groups));
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return splits > 1 ? tiles_reduce(ctx, args, splits) : FUL_OK;
}

uint32_t tiles_candidates(const op_context *ctx, uint32_t *codes, uint32_t most)
{
    const ful_caps *caps = device_caps(ctx->device);
    size_list list = sizes_for(caps->matrix_subgroup);
    uint32_t n = 0;
    if (!op_wide(ctx) || !tiles_usable(ctx, false))
        return 0;
    for (uint32_t i = 0; i < list.count && n < most; i++)
        if (size_fits(caps, &list.sizes[i], 0))
            codes[n++] = tile_code(TILE_KIND_SUBGROUP, list.sizes[i].bm, list.sizes[i].bn);
    return n + tiles_flexible_codes(ctx, codes + n, most - n);
}
