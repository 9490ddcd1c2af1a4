/* Lightning prefill on cooperative matrices: block-scaled halves in and out, f32 rows packed and
 * unpacked around them. */
#include <assert.h>

#include "ops/lightning.h"
#include "ops/tuning.h"

typedef struct tiles_push {
    uint32_t row_base, row_cap, stride, head_base, out_stride;
} tiles_push;
static_assert(sizeof(tiles_push) == 20, "as in lightning_coopmat.comp");

typedef struct pack_push {
    uint32_t row_base, row_cap, blocks, x_stride4;
} pack_push;
static_assert(sizeof(pack_push) == 16, "as in lightning_pack.comp");

enum { PACK_WG = 128, PACK_LANES = 16 };

/* Shared memory as the shader declares it. */
static uint32_t shared_bytes(const lightning_tiles *t, uint32_t head_dim)
{
    uint32_t longer = t->block > t->slice ? t->block : t->slice;
    uint32_t lines = head_dim > t->block ? head_dim : t->block;
    uint32_t vectors =
        t->block * (head_dim / 8 + 1) + t->block * (longer / 8 + 1) + lines * (t->slice / 8 + 1);
    uint32_t wg = t->row_subgroups * t->column_subgroups * t->subgroup;
    return 16 * vectors + 4 * (t->tile * t->tile + 7 * t->block + wg) + 2 * t->block + 16;
}

/* What an invocation of a wide subgroup holds of q, v and the state. Some devices keep fragments of
 * inputs several times in one subgroup: 16 x 16 halves then take eight registers, however wide it
 * is. */
static uint32_t wide_registers(const lightning_tiles *t, uint32_t head_dim)
{
    uint32_t rows = t->block / t->row_subgroups / t->tile;
    uint32_t columns = t->slice / t->column_subgroups / t->tile;
    uint32_t keys = head_dim / t->row_subgroups / t->tile;
    return 8 * (rows * (head_dim / t->tile) + t->block / t->tile * columns) + 4 * keys * columns;
}

static bool fits(const ful_caps *caps, const lightning_tiles *t, uint32_t head_dim)
{
    uint32_t wg = t->row_subgroups * t->column_subgroups * t->subgroup;
    if (t->subgroup >= 64 && wide_registers(t, head_dim) > 96)
        return false;
    return t->block % (t->row_subgroups * t->tile) == 0 &&
           t->block % (t->column_subgroups * t->tile) == 0 &&
           t->slice % (t->column_subgroups * t->tile) == 0 &&
           head_dim % (t->row_subgroups * t->tile) == 0 && head_dim % t->slice == 0 &&
           t->block * head_dim / 8 % wg == 0 && t->block * t->slice / 8 % wg == 0 &&
           wg % t->block == 0 && wg <= caps->workgroup_invocations &&
           wg <= caps->workgroup_size[0] && shared_bytes(t, head_dim) <= caps->shared_bytes;
}

/* Best first: block, slice, subgroups over rows and over columns. */
static const uint32_t sizes[][4] = {
    {64, 64, 4, 2}, {64, 32, 4, 2}, {64, 32, 4, 1}, {32, 64, 2, 2},
    {32, 32, 2, 2}, {32, 16, 2, 1}, {16, 32, 1, 2}, {16, 16, 1, 1},
};
/* Small subgroups have few registers: little of the state each. */
static const uint32_t small_sizes[][4] = {
    {32, 32, 4, 4}, {32, 32, 4, 2}, {16, 32, 2, 2}, {16, 16, 2, 2}, {16, 16, 2, 1},
};
enum { MOST_TILES = 8 };
static_assert(sizeof(sizes) / sizeof(*sizes) <= MOST_TILES &&
                  sizeof(small_sizes) / sizeof(*small_sizes) <= MOST_TILES,
              "room for all that fit");

/* All that the device can do, best first; returns how many. */
static uint32_t tiles_list(const op_context *ctx, uint32_t head_dim,
                           lightning_tiles out[MOST_TILES])
{
    const ful_caps *caps = device_caps(ctx->device);
    if (!ctx->half || !op_wide(ctx) || !op_half_usable(ctx->device) || head_dim > LIGHTNING_TABLE ||
        !gpu_module_usable(ctx->device, "lightning_coopmat") ||
        !gpu_module_usable(ctx->device, "lightning_pack") ||
        !gpu_module_usable(ctx->device, "lightning_unpack"))
        return 0;
    uint32_t tile = 0;
    for (uint32_t i = 0; i < caps->matrix_count && tile == 0; i++)
        if (caps->matrix[i].m == caps->matrix[i].n && caps->matrix[i].m == caps->matrix[i].k)
            tile = caps->matrix[i].m;
    if (tile == 0)
        return 0;
    bool small = caps->matrix_subgroup < 16;
    const uint32_t(*list)[4] = small ? small_sizes : sizes;
    size_t count =
        small ? sizeof(small_sizes) / sizeof(*small_sizes) : sizeof(sizes) / sizeof(*sizes);
    uint32_t n = 0;
    for (size_t i = 0; i < count; i++) {
        lightning_tiles t = {.tile = tile,
                             .subgroup = caps->matrix_subgroup,
                             .block = list[i][0],
                             .slice = list[i][1],
                             .row_subgroups = list[i][2],
                             .column_subgroups = list[i][3]};
        if (fits(caps, &t, head_dim))
            out[n++] = t;
    }
    return n;
}

static uint32_t code_of(const lightning_tiles *t)
{
    return lightning_code(t->block, t->slice, t->row_subgroups, t->column_subgroups);
}

bool lightning_tiles_choose(const op_context *ctx, uint32_t heads, uint32_t head_dim,
                            lightning_tiles *out)
{
    (void)heads;
    lightning_tiles list[MOST_TILES];
    uint32_t n = tiles_list(ctx, head_dim, list);
    if (n == 0)
        return false;
    uint32_t code = device_tuning(ctx->device).lightning;
    *out = list[0];
    for (uint32_t i = 1; i < n; i++)
        if (code_of(&list[i]) == code)
            *out = list[i];
    return true;
}

uint32_t lightning_tiles_codes(const op_context *ctx, uint32_t head_dim, uint32_t *codes,
                               uint32_t most)
{
    lightning_tiles list[MOST_TILES];
    uint32_t n = tiles_list(ctx, head_dim, list);
    n = n < most ? n : most;
    for (uint32_t i = 0; i < n; i++)
        codes[i] = code_of(&list[i]);
    return n;
}

uint32_t op_lightning_blocks(const op_context *ctx, uint32_t rows, uint32_t heads,
                             uint32_t head_dim)
{
    lightning_tiles t;
    return rows > 1 && lightning_tiles_choose(ctx, heads, head_dim, &t) ? t.slice : 0;
}

static uint64_t up256(uint64_t bytes)
{
    return (bytes + 255) & ~(uint64_t)255;
}

/* Scratch: halves of q, k, v, their scales, halves of the output, their scales. */
typedef struct scratch_layout {
    uint64_t data, scale, out, out_scale; /* bytes */
} scratch_layout;

static scratch_layout layout_of(const lightning_tiles *t, uint32_t rows, uint32_t heads,
                                uint32_t head_dim)
{
    uint64_t r = rows, inner = (uint64_t)heads * head_dim;
    return (scratch_layout){.data = up256(r * 3 * inner * 2),
                            .scale = up256(r * 3 * heads * 4),
                            .out = up256(r * inner * 2),
                            .out_scale = up256(r * (inner / t->slice) * 4)};
}

uint64_t lightning_tiles_scratch_bytes(const lightning_tiles *tiles, uint32_t rows, uint32_t heads,
                                       uint32_t head_dim)
{
    scratch_layout l = layout_of(tiles, rows, heads, head_dim);
    return l.data + l.scale + l.out + l.out_scale;
}

/* f32 rows to halves, or back. */
static ful_result convert(const op_context *ctx, gpu_range x, uint32_t x_stride, op_blocks halves,
                          uint32_t rows, bool unpack)
{
    gpu_pipeline_desc desc = {.module = unpack ? "lightning_unpack" : "lightning_pack",
                              .buffer_count = 3,
                              .uniform = true,
                              .push_bytes = sizeof(pack_push),
                              .spec_count = 3,
                              .spec = {PACK_WG, halves.block, PACK_LANES}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    uint32_t blocks = halves.stride / halves.block;
    uint64_t row_bytes[] = {4 * (uint64_t)x_stride, 2 * (uint64_t)halves.stride,
                            4 * (uint64_t)blocks};
    const char *label = unpack ? "lightning_unpack" : "lightning_pack";
    uint32_t part;
    TRY(op_part_rows(ctx->device, label, row_bytes, 3, rows, &part));
    for (uint32_t row0 = 0; row0 < rows; row0 += part) {
        uint32_t count = rows - row0 < part ? rows - row0 : part;
        pack_push push = {row0, count, blocks, x_stride / 4};
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {op_rows(x, row0, count, row_bytes[0]),
                        op_rows(halves.data, row0, count, row_bytes[1]),
                        op_rows(halves.scale, row0, count, row_bytes[2])},
            .writes = unpack ? 1u : 6u,
            .uniform = ctx->step,
            .push = &push,
            .cost = {.bytes = 6.0 * count * halves.stride, .flops = 2.0 * count * halves.stride},
            .label = label,
            .layer = ctx->layer};
        TRY(op_groups(ctx->device, label,
                      ((uint64_t)count * blocks + PACK_WG / PACK_LANES - 1) /
                          (PACK_WG / PACK_LANES),
                      1, d.groups));
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}

static ful_result walk(const op_context *ctx, const op_lightning_args *a, const lightning_tiles *t,
                       const op_blocks *in, const op_blocks *out, uint32_t rows)
{
    uint32_t wg = t->row_subgroups * t->column_subgroups * t->subgroup;
    gpu_pipeline_desc desc = {.module = "lightning_coopmat",
                              .buffer_count = 6,
                              .uniform = true,
                              .push_bytes = sizeof(tiles_push),
                              .spec_count = 7,
                              .spec = {wg, a->head_dim, t->block, t->slice, t->row_subgroups,
                                       t->column_subgroups, t->tile}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    uint64_t state_bytes = (uint64_t)a->head_dim * a->head_dim * sizeof(float);
    uint32_t heads, part;
    TRY(lightning_units(ctx, state_bytes, a->heads, &heads));
    uint64_t row_bytes[] = {2 * (uint64_t)in->stride, 4 * (uint64_t)(in->stride / in->block),
                            2 * (uint64_t)out->stride, 4 * (uint64_t)(out->stride / out->block)};
    TRY(op_part_rows(ctx->device, "lightning", row_bytes, 4, rows, &part));
    for (uint32_t h = 0; h < a->heads; h += heads) {
        uint32_t head_count = a->heads - h < heads ? a->heads - h : heads;
        for (uint32_t r = 0; r < rows; r += part) {
            uint32_t count = rows - r < part ? rows - r : part;
            tiles_push push = {r, count, in->stride, h, out->stride};
            double tokens = (double)count * head_count, dim = a->head_dim;
            gpu_dispatch d = {
                .pipeline = pipeline,
                .buffers = {op_rows(in->data, r, count, 2 * (uint64_t)in->stride),
                            op_rows(in->scale, r, count, 4 * (uint64_t)(in->stride / in->block)),
                            a->decay, gpu_part(a->state, h * state_bytes, head_count * state_bytes),
                            op_rows(out->data, r, count, 2 * (uint64_t)out->stride),
                            op_rows(out->scale, r, count,
                                    4 * (uint64_t)(out->stride / out->block))},
                .writes = 1u << 4 | 1u << 5,
                .updates = 1u << 3,
                .uniform = ctx->step,
                .push = &push,
                .groups = {a->head_dim / t->slice, head_count, 1},
                .cost = {.bytes = tokens * dim * 8 + 2.0 * (double)head_count * (double)state_bytes,
                         .flops = tokens * dim * (4 * dim + 2.0 * t->block)},
                .label = "lightning",
                .layer = ctx->layer};
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return FUL_OK;
}

static ful_result blocks_check(const char *what, const op_blocks *b, uint32_t rows,
                               uint32_t columns, uint32_t block)
{
    if (b->block != block || b->stride < columns || b->stride % 8 != 0 || b->stride % block != 0)
        return fail(FUL_ERR_ARGUMENT,
                    "lightning: %s in blocks of %u with a row stride of %u; blocks of %u and a "
                    "multiple of them, at least %u, are needed",
                    what, (unsigned)b->block, (unsigned)b->stride, (unsigned)block,
                    (unsigned)columns);
    uint64_t data = 2 * (uint64_t)rows * b->stride;
    uint64_t scale = 4 * (uint64_t)rows * (b->stride / block);
    if (b->data.bytes < data || b->scale.bytes < scale)
        return fail(FUL_ERR_ARGUMENT,
                    "lightning: %s has %llu bytes of halves and %llu of scales; %llu and %llu are "
                    "needed",
                    what, (unsigned long long)b->data.bytes, (unsigned long long)b->scale.bytes,
                    (unsigned long long)data, (unsigned long long)scale);
    return FUL_OK;
}

ful_result lightning_tiles_prefill(const op_context *ctx, const op_lightning_args *args,
                                   const lightning_tiles *tiles)
{
    uint32_t inner = args->heads * args->head_dim, rows = args->rows;
    bool blocks_in = args->qkv_blocks.data.buffer != NULL;
    bool blocks_out = args->out_blocks.data.buffer != NULL;
    if (blocks_in)
        TRY(blocks_check("qkv_blocks", &args->qkv_blocks, rows, 3 * inner, args->head_dim));
    if (blocks_out)
        TRY(blocks_check("out_blocks", &args->out_blocks, rows, inner, tiles->slice));
    scratch_layout l = layout_of(tiles, rows, args->heads, args->head_dim);
    gpu_range s = args->scratch;
    op_blocks in = args->qkv_blocks, out = args->out_blocks;
    if (!blocks_in) {
        in = (op_blocks){gpu_part(s, 0, l.data), gpu_part(s, l.data, l.scale), 3 * inner,
                         args->head_dim};
        TRY(convert(ctx, args->qkv, args->qkv_stride, in, rows, false));
    }
    if (!blocks_out)
        out = (op_blocks){gpu_part(s, l.data + l.scale, l.out),
                          gpu_part(s, l.data + l.scale + l.out, l.out_scale), inner, tiles->slice};
    TRY(walk(ctx, args, tiles, &in, &out, rows));
    if (!blocks_out)
        TRY(convert(ctx, args->out, inner, out, rows, true));
    return FUL_OK;
}
