/* Tiles on cooperative matrices of subgroups: their sizes by device and rows, and dense products
 * with them. */
#include <assert.h>

#include "ops/tiles.h"
#include "ops/tuning.h"

enum {
    FLAG_W_SCALE = 1,
    FLAG_RAGGED = 2,
    FLAG_VEC_OUT = 4,
    /* Tiles of x that are walked together, block of weight rows by block: their x (16 tiles of 128
     * rows by 6,144 halves are 25 MB) should stay in the second cache. */
    PANEL = 16
};

/* A tile, the part of one subgroup in it, and halves of a row per step. */
typedef struct tile_size {
    uint32_t bm, bn, bk, wm, wn, stages;
} tile_size;

/* Largest first. A subgroup of 32 holds at most 64 x 64 sums, 128 registers a lane; smaller
 * subgroups have fewer registers in all. */
static const tile_size sizes_of_32[] = {
    {128, 128, 32, 64, 64, 2},
    {64, 128, 32, 32, 64, 2},
    {32, 128, 32, 32, 32, 2},
    {16, 128, 32, 16, 32, 2},
};
static const tile_size sizes_of_16[] = {
    {128, 128, 32, 32, 32, 2},
    {64, 64, 32, 32, 32, 2},
    {32, 64, 32, 16, 32, 2},
    {16, 64, 32, 16, 16, 2},
};
static const tile_size sizes_of_8[] = {
    {64, 64, 32, 16, 32, 2},
    {32, 64, 32, 16, 32, 2},
    {16, 64, 32, 16, 16, 2},
};

typedef struct size_list {
    const tile_size *sizes;
    uint32_t count;
} size_list;

static size_list sizes_for(uint32_t subgroup)
{
    if (subgroup >= 32)
        return (size_list){sizes_of_32, sizeof(sizes_of_32) / sizeof(sizes_of_32[0])};
    if (subgroup == 16)
        return (size_list){sizes_of_16, sizeof(sizes_of_16) / sizeof(sizes_of_16[0])};
    return (size_list){sizes_of_8, sizeof(sizes_of_8) / sizeof(sizes_of_8[0])};
}

/* Shared memory as the shader declares it. */
static uint32_t shared_bytes(const tile_size *s, const ful_matrix_shape *m, uint32_t block)
{
    uint32_t buffers = s->stages * (s->bm + s->bn) * (s->bk / 8 + 1);
    uint32_t strip_rows = s->bm / s->wm * m->m;
    uint32_t strip = strip_rows * (s->bn / 4 + 2);
    uint32_t maxima = block == 0 ? 0 : strip_rows * (s->bn / block) * 4;
    return (buffers > strip ? buffers : strip) * 16 + maxima;
}

/* True if the device can hold it; one stage where two do not fit. */
static bool size_fit(const ful_caps *caps, uint32_t block, tile_size *s)
{
    const ful_matrix_shape *m = &caps->matrix[0];
    uint32_t wg = s->bm / s->wm * (s->bn / s->wn) * caps->matrix_subgroup;
    if (wg > caps->workgroup_invocations || wg > caps->workgroup_size[0] ||
        (block != 0 && s->bn % block != 0))
        return false;
    if (shared_bytes(s, m, block) > caps->shared_bytes)
        s->stages = 1;
    return shared_bytes(s, m, block) <= caps->shared_bytes;
}

/* The largest size that the device can hold and that no smaller one serves as well for `rows`; with
 * `exact` rows of a tile, only those; with a tile_code, that one. */
static bool size_choose(const ful_caps *caps, uint32_t rows, uint32_t exact, uint32_t block,
                        uint32_t code, tile_size *out)
{
    size_list list = sizes_for(caps->matrix_subgroup);
    bool found = false;
    *out = (tile_size){0};
    for (uint32_t i = 0; i < list.count; i++) {
        tile_size s = list.sizes[i];
        if (!size_fit(caps, block, &s) || (exact != 0 && s.bm != exact))
            continue;
        if (code != 0 && code != tile_code(TILE_KIND_SUBGROUP, s.bm, s.bn))
            continue;
        if (found && s.bm < rows)
            break;
        *out = s;
        found = true;
    }
    return found;
}

/* What tuning says about products of so many rows; 0: nothing. */
static uint32_t tuned_code(const op_context *ctx, bool grouped, uint32_t rows)
{
    op_tuning t = device_tuning(ctx->device);
    uint32_t i = tuning_rows_class(rows);
    return grouped ? t.group_tile[i] : t.tile[i];
}

bool tiles_usable(const op_context *ctx)
{
    const ful_caps *caps = device_caps(ctx->device);
    tile_size s;
    return op_half_usable(ctx->device) && (caps->features & FUL_FEATURE_COOPMAT) &&
           gpu_module_usable(ctx->device, "matmul_coopmat_f16") &&
           size_choose(caps, 1, 0, 0, 0, &s);
}

uint32_t tiles_group_rows(const op_context *ctx, uint32_t rows)
{
    const ful_caps *caps = device_caps(ctx->device);
    uint32_t code = tuned_code(ctx, true, rows), bm = code >> 14 & 0x3fff;
    tile_size s;
    /* Tiles of whole workgroups leave some weights to those of subgroups. */
    if (bm != 0 && size_choose(caps, rows, bm, 0, 0, &s))
        return bm;
    return size_choose(caps, rows, 0, 0, 0, &s) ? s.bm : 0;
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
    if (!tiles_usable(ctx))
        return false;
    if (q->block != 0 && (q->grouped || q->act == OP_ACT_SWIGLU || !blocks_fit(q->w, q->block)))
        return false;
    uint32_t code = tuned_code(ctx, q->grouped, q->rows);
    if (tiles_flexible_choose(ctx, q, code, out))
        return true;
    tile_size s;
    if ((code == 0 || !size_choose(caps, q->rows, q->tile_rows, q->block, code, &s)) &&
        !size_choose(caps, q->rows, q->tile_rows, q->block, 0, &s))
        return false;
    const ful_matrix_shape *m = &caps->matrix[0];
    bool w_scale = q->w->row_scale.vk != VK_NULL_HANDLE;
    uint32_t flags = (w_scale ? FLAG_W_SCALE : 0) | (q->w->cols % s.bk != 0 ? FLAG_RAGGED : 0) |
                     (windows_in_fours(q->w) && q->out_stride % 4 == 0 ? FLAG_VEC_OUT : 0);
    *out = (tile_kernel){.module = op_module_name(q->grouped      ? "moe_coopmat"
                                                  : q->block != 0 ? "matmul_coopmat_blocks"
                                                                  : "matmul_coopmat",
                                                  q->w->type),
                         .bm = s.bm,
                         .bn = s.bn,
                         .desc = {.buffer_count = q->grouped || q->block != 0 ? 6 : 5,
                                  .uniform = true,
                                  .push_bytes = sizeof(tile_push),
                                  .spec_count = 14,
                                  .spec = {s.bm / s.wm * (s.bn / s.wn) * caps->matrix_subgroup,
                                           s.bm, s.bn, s.bk, s.wm, s.wn, m->m, m->n, m->k, s.stages,
                                           PANEL, q->act, flags, q->block != 0 ? q->block : s.bn}}};
    return true;
}

ful_result tiles_matmul(const op_context *ctx, const op_matmul_args *args,
                        const tile_kernel *kernel)
{
    const gpu_tensor *w = args->w;
    const op_activation *x = &args->x;
    const op_blocks *blocks = &args->out_blocks;
    bool in_blocks = blocks->data.buffer != NULL;
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
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        gpu_range x_scale = op_rows(x->scale, 0, args->rows, 4);
        gpu_range out = op_rows(in_blocks ? blocks->data : args->out, row0, rows, out_bytes);
        for (uint32_t i = 0; i < w->window_count; i++) {
            const gpu_window *window = &w->windows[i];
            tile_push push = {.row0 = row0,
                              .row_count = rows,
                              .fixed_rows = args->fixed,
                              .cols = w->cols,
                              .x_stride = x->stride,
                              .out_stride = in_blocks ? blocks->stride : args->out_stride,
                              .w_rows = window->row_count,
                              .w_row0 = window->row0,
                              .w_stride = (uint32_t)(w->row_bytes / 16),
                              .w_rows_all = w->rows,
                              .split = args->split,
                              .splits = 1};
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
                          1, d.groups));
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return FUL_OK;
}

uint32_t tiles_candidates(const op_context *ctx, uint32_t *codes, uint32_t most)
{
    const ful_caps *caps = device_caps(ctx->device);
    size_list list = sizes_for(caps->matrix_subgroup);
    uint32_t n = 0;
    if (!op_wide(ctx) || !tiles_usable(ctx))
        return 0;
    for (uint32_t i = 0; i < list.count && n < most; i++) {
        tile_size s = list.sizes[i];
        if (size_fit(caps, 0, &s))
            codes[n++] = tile_code(TILE_KIND_SUBGROUP, s.bm, s.bn);
    }
    return n + tiles_flexible_codes(ctx, codes + n, most - n);
}
