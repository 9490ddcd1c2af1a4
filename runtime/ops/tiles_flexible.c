/* Tiles on cooperative matrices of whole workgroups (VK_NV_cooperative_matrix2): their sizes. They
 * are candidates of tuning; where it has not been run, the tiles of subgroups are taken, which are
 * faster on the device this was written on. */
#include "ops/tiles.h"
#include "ops/tuning.h"

enum {
    UNROLL = 16, /* as in matmul_coopmat2.comp */
    PANEL = 16   /* as for the tiles of subgroups */
};

typedef struct tile_size {
    uint32_t wg, bm, bn, bk;
} tile_size;

/* The sums of a tile are 128 registers of every invocation at most. */
static const tile_size sizes[] = {
    {256, 256, 128, 32}, {256, 128, 256, 32}, {128, 128, 128, 32},
    {128, 64, 128, 32},  {128, 32, 128, 32},
};
enum { SIZES = sizeof(sizes) / sizeof(sizes[0]) };

/* Larger windows have not been tried: the driver's arithmetic on places within them may be signed.
 */
static bool windows_small(const gpu_tensor *w)
{
    for (uint32_t i = 0; i < w->window_count; i++)
        if (w->windows[i].buffer.bytes > (uint64_t)1 << 31)
            return false;
    return true;
}

/* Whether the driver makes matrices of that size, `part` weight rows each. */
static bool size_fits(const ful_caps *caps, const tile_size *s, uint32_t part)
{
    if (s->wg > caps->flexible_workgroup || s->wg > caps->workgroup_invocations ||
        s->wg > caps->workgroup_size[0] || s->bn > caps->flexible_dimension ||
        s->bm > caps->flexible_dimension)
        return false;
    for (uint32_t i = 0; i < caps->flexible_count; i++) {
        const ful_matrix_grain *g = &caps->flexible[i];
        if (g->workgroup && g->invocations == s->wg && part % g->m == 0 && s->bm % g->n == 0 &&
            s->bk % g->k == 0)
            return true;
    }
    return false;
}

/* Whether tiles may be read without a look at where the matrices end. */
static bool whole_tiles(const op_context *ctx, const tile_request *q, const tile_size *s)
{
    const gpu_tensor *w = q->w;
    if (w->cols % (UNROLL * s->bk) != 0)
        return false;
    for (uint32_t i = 0; i < w->window_count; i++)
        if (w->windows[i].row_count % s->bn != 0)
            return false;
    if (q->grouped)
        return s->bm <= TILES_SPARE_ROWS;
    /* A dispatch must take all rows, not a part of them that fits a binding. */
    uint64_t widest = 4 * (uint64_t)(q->out_stride > 2 * w->cols ? q->out_stride : 2 * w->cols);
    return q->rows % s->bm == 0 &&
           widest * q->rows <= device_caps(ctx->device)->storage_range_bytes;
}

static uint32_t parts_of(const tile_request *q, const tile_size *s)
{
    return q->act == OP_ACT_SWIGLU ? 2 : q->block != 0 ? s->bn / q->block : 1;
}

static op_module module_for(const tile_request *q)
{
    return op_module_name(q->grouped      ? "moe_coopmat2"
                          : q->block != 0 ? "matmul_coopmat2_blocks"
                                          : "matmul_coopmat2",
                          q->w->type);
}

bool tiles_flexible_choose(const op_context *ctx, const tile_request *q, uint32_t code,
                           tile_kernel *out)
{
    op_module module = module_for(q);
    /* Weights of other types would be converted one by one on their way in, at half the speed of
     * the tiles of subgroups, and so there is no such module. */
    if (q->w->row_scale.vk != VK_NULL_HANDLE || !windows_small(q->w) ||
        !op_half_usable(ctx->device) || !gpu_module_usable(ctx->device, module.name))
        return false;
    for (uint32_t i = 0; i < SIZES; i++) {
        const tile_size *s = &sizes[i];
        if (tile_code(TILE_KIND_WORKGROUP, s->bm, s->bn) != code ||
            (q->tile_rows != 0 && q->tile_rows != s->bm) ||
            (q->block != 0 && s->bn % q->block != 0) ||
            !size_fits(device_caps(ctx->device), s, s->bn / parts_of(q, s)))
            continue;
        *out = (tile_kernel){.module = module,
                             .bm = s->bm,
                             .bn = s->bn,
                             .desc = {.buffer_count = q->grouped || q->block != 0 ? 6 : 5,
                                      .uniform = true,
                                      .push_bytes = sizeof(tile_push),
                                      .spec_count = 8,
                                      .spec = {s->wg, s->bm, s->bn, s->bk, parts_of(q, s), PANEL,
                                               q->act, !whole_tiles(ctx, q, s)}}};
        return true;
    }
    return false;
}

uint32_t tiles_flexible_codes(const op_context *ctx, uint32_t *codes, uint32_t most)
{
    uint32_t count = 0;
    if (!op_half_usable(ctx->device) || !gpu_module_usable(ctx->device, "matmul_coopmat2_f16"))
        return 0;
    for (uint32_t i = 0; i < SIZES && count < most; i++)
        if (size_fits(device_caps(ctx->device), &sizes[i], sizes[i].bn))
            codes[count++] = tile_code(TILE_KIND_WORKGROUP, sizes[i].bm, sizes[i].bn);
    return count;
}
