/* Lightning prefill on cooperative matrices: block-scaled halves in and out, f32 rows packed and
 * unpacked around them.
 *
 * A workgroup walks through all blocks of a slice of a head; or, where heads are too few to keep
 * the device busy, through those of a chunk of the rows, after two kernels that find the states
 * which chunks start with. */
#include <assert.h>

#include "ops/lightning.h"
#include "ops/tiles.h"
#include "ops/tuning.h"

typedef struct tiles_push {
    uint32_t row_base, row_cap, stride, head_base, out_stride, chunk_rows;
} tiles_push;
static_assert(sizeof(tiles_push) == 24, "as in lightning_coopmat.comp");

typedef struct sums_push {
    uint32_t row_base, row_cap, stride, head_base, chunk_rows;
} sums_push;
static_assert(sizeof(sums_push) == 20, "as in lightning_sums.comp");

typedef struct scan_push {
    uint32_t row_base, row_cap, head_base, chunk_rows;
} scan_push;
static_assert(sizeof(scan_push) == 16, "as in lightning_scan.comp");

typedef struct pack_push {
    uint32_t row_base, row_cap, blocks, x_stride4;
} pack_push;
static_assert(sizeof(pack_push) == 16, "as in lightning_pack.comp");

enum { PACK_WG = 128, PACK_LANES = 16, SCAN_WG = 128 };

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

/* A chunk's sums take about a third of the time of its walk, and reading, writing and scanning the
 * states as long as some blocks: two chunks of 8 blocks are the least that gains. Predicted for 132
 * multiprocessors at 3.7 us a block, D = 128, 16 heads (32 workgroups, 4 chunks): 2,048 rows 118 us
 * in one walk, 30 + 10 + about 10 in chunks; 8,192 rows 474 and 118 + 40 + 10. 64 heads have 128
 * workgroups, where chunks only cost. */
enum { LEAST_BLOCKS = 8 };

static uint32_t chunk_rows(const op_context *ctx, const lightning_tiles *t, uint32_t rows,
                           uint32_t heads, uint32_t head_dim)
{
    if (!gpu_module_usable(ctx->device, "lightning_sums") ||
        !gpu_module_usable(ctx->device, "lightning_scan"))
        return 0;
    uint64_t groups = (uint64_t)heads * (head_dim / t->slice);
    uint64_t wanted = tuned_or(device_tuning(ctx->device).lightning_groups, tiles_units(ctx));
    uint64_t chunks = groups != 0 ? wanted / groups : 0, blocks = div_up_u32(rows, t->block);
    uint64_t fit = device_window_bytes(ctx->device) / ((uint64_t)head_dim * head_dim * 4);
    chunks = chunks < blocks / LEAST_BLOCKS ? chunks : blocks / LEAST_BLOCKS;
    chunks = chunks < fit ? chunks : fit;
    return chunks < 2 ? 0 : div_up_u32((uint32_t)blocks, (uint32_t)chunks) * t->block;
}

bool lightning_tiles_choose(const op_context *ctx, uint32_t rows, uint32_t heads, uint32_t head_dim,
                            lightning_tiles *out)
{
    lightning_tiles list[MOST_TILES];
    uint32_t n = tiles_list(ctx, head_dim, list);
    if (n == 0)
        return false;
    uint32_t code = device_tuning(ctx->device).lightning;
    *out = list[0];
    for (uint32_t i = 1; i < n; i++)
        if (code_of(&list[i]) == code)
            *out = list[i];
    out->chunk_rows = chunk_rows(ctx, out, rows, heads, head_dim);
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
    return rows > 1 && lightning_tiles_choose(ctx, rows, heads, head_dim, &t) ? t.slice : 0;
}

static uint64_t up256(uint64_t bytes)
{
    return (bytes + 255) & ~(uint64_t)255;
}

/* Chunks of `rows`; 1 if they are walked from first to last. */
static uint32_t chunk_count(const lightning_tiles *t, uint32_t rows)
{
    return t->chunk_rows != 0 ? div_up_u32(rows, t->chunk_rows) : 1;
}

/* Scratch: a state for each chunk and head; halves of q, k, v, their scales, halves of the output,
 * their scales. */
typedef struct scratch_layout {
    uint64_t states, data, scale, out, out_scale; /* bytes */
} scratch_layout;

static scratch_layout layout_of(const lightning_tiles *t, uint32_t rows, uint32_t heads,
                                uint32_t head_dim)
{
    uint64_t r = rows, inner = (uint64_t)heads * head_dim, chunks = chunk_count(t, rows);
    return (scratch_layout){.states = t->chunk_rows != 0 ? up256(chunks * inner * head_dim * 4) : 0,
                            .data = up256(r * 3 * inner * 2),
                            .scale = up256(r * 3 * heads * 4),
                            .out = up256(r * inner * 2),
                            .out_scale = up256(r * (inner / t->slice) * 4)};
}

uint64_t lightning_tiles_scratch_bytes(const lightning_tiles *tiles, uint32_t rows, uint32_t heads,
                                       uint32_t head_dim, bool halves)
{
    scratch_layout l = layout_of(tiles, rows, heads, head_dim);
    return l.states + (halves ? 0 : l.data + l.scale + l.out + l.out_scale);
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

/* Some rows of some heads. */
typedef struct part {
    const op_context *ctx;
    const op_lightning_args *args;
    const lightning_tiles *tiles;
    uint32_t row0, rows, head0, heads;
    gpu_range data, scale, out, out_scale; /* of the rows */
    uint32_t stride, out_stride;           /* halves */
    gpu_range state;                       /* of the heads */
    gpu_range starts;                      /* [chunks][heads] states, if there are chunks */
} part;

static gpu_pipeline_desc tiles_desc(const char *module, const lightning_tiles *t, uint32_t head_dim)
{
    uint32_t wg = t->row_subgroups * t->column_subgroups * t->subgroup;
    return (gpu_pipeline_desc){
        .module = module,
        .uniform = true,
        .spec_count = 7,
        .spec = {wg, head_dim, t->block, t->slice, t->row_subgroups, t->column_subgroups, t->tile}};
}

/* What each chunk adds to the state. */
static ful_result sums_part(const part *p)
{
    const lightning_tiles *t = p->tiles;
    gpu_pipeline_desc desc = tiles_desc("lightning_sums", t, p->args->head_dim);
    desc.buffer_count = 4;
    desc.push_bytes = sizeof(sums_push);
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(p->ctx->device, &desc, &pipeline));
    sums_push push = {p->row0, p->rows, p->stride, p->head0, t->chunk_rows};
    double tokens = (double)p->rows * p->heads, dim = p->args->head_dim;
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {p->data, p->scale, p->args->decay, p->starts},
                      .writes = 1u << 3,
                      .uniform = p->ctx->step,
                      .push = &push,
                      .groups = {p->args->head_dim / t->slice, p->heads, chunk_count(t, p->rows)},
                      .cost = {.bytes = tokens * dim * 4 + (double)p->starts.bytes,
                               .flops = tokens * dim * 2 * dim},
                      .label = "lightning_sums",
                      .layer = p->ctx->layer};
    return gpu_commands_dispatch(p->ctx->commands, &d);
}

/* The states that chunks start with, and the last. */
static ful_result scan_part(const part *p)
{
    uint32_t dim = p->args->head_dim;
    gpu_pipeline_desc desc = {.module = "lightning_scan",
                              .buffer_count = 3,
                              .uniform = true,
                              .push_bytes = sizeof(scan_push),
                              .spec_count = 2,
                              .spec = {SCAN_WG, dim}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(p->ctx->device, &desc, &pipeline));
    scan_push push = {p->row0, p->rows, p->head0, p->tiles->chunk_rows};
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {p->args->decay, p->starts, p->state},
                      .updates = 1u << 1 | 1u << 2,
                      .uniform = p->ctx->step,
                      .push = &push,
                      .groups = {div_up_u32(dim * dim / 4, SCAN_WG), p->heads, 1},
                      .cost = {.bytes = 2.0 * ((double)p->starts.bytes + (double)p->state.bytes),
                               .flops = (double)p->starts.bytes / 2},
                      .label = "lightning_scan",
                      .layer = p->ctx->layer};
    return gpu_commands_dispatch(p->ctx->commands, &d);
}

static ful_result walk_part(const part *p)
{
    const lightning_tiles *t = p->tiles;
    bool chunked = t->chunk_rows != 0;
    if (chunked) {
        TRY(sums_part(p));
        TRY(scan_part(p));
    }
    gpu_pipeline_desc desc = tiles_desc("lightning_coopmat", t, p->args->head_dim);
    desc.buffer_count = 6;
    desc.push_bytes = sizeof(tiles_push);
    desc.spec[desc.spec_count++] = chunked;
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(p->ctx->device, &desc, &pipeline));
    tiles_push push = {p->row0, p->rows, p->stride, p->head0, p->out_stride, t->chunk_rows};
    double tokens = (double)p->rows * p->heads, dim = p->args->head_dim;
    gpu_range states = chunked ? p->starts : p->state;
    gpu_dispatch d = {
        .pipeline = pipeline,
        .buffers = {p->data, p->scale, p->args->decay, states, p->out, p->out_scale},
        .writes = 1u << 4 | 1u << 5,
        .updates = 1u << 3,
        .uniform = p->ctx->step,
        .push = &push,
        .groups = {p->args->head_dim / t->slice, p->heads, chunk_count(t, p->rows)},
        .cost = {.bytes = tokens * dim * 8 + (chunked ? 1.0 : 2.0) * (double)states.bytes,
                 .flops = tokens * dim * (4 * dim + 2.0 * t->block)},
        .label = "lightning",
        .layer = p->ctx->layer};
    return gpu_commands_dispatch(p->ctx->commands, &d);
}

static ful_result walk(const op_context *ctx, const op_lightning_args *a, const lightning_tiles *t,
                       const op_blocks *in, const op_blocks *out, uint32_t rows)
{
    uint64_t state_bytes = (uint64_t)a->head_dim * a->head_dim * sizeof(float);
    uint32_t heads, part_rows;
    TRY(lightning_units(ctx, state_bytes * chunk_count(t, rows), a->heads, &heads));
    uint64_t row_bytes[] = {2 * (uint64_t)in->stride, 4 * (uint64_t)(in->stride / in->block),
                            2 * (uint64_t)out->stride, 4 * (uint64_t)(out->stride / out->block)};
    TRY(op_part_rows(ctx->device, "lightning", row_bytes, 4, rows, &part_rows));
    for (uint32_t h = 0; h < a->heads; h += heads) {
        uint32_t head_count = a->heads - h < heads ? a->heads - h : heads;
        for (uint32_t r = 0; r < rows; r += part_rows) {
            uint32_t count = rows - r < part_rows ? rows - r : part_rows;
            uint64_t starts = chunk_count(t, count) * head_count * state_bytes;
            part p = {.ctx = ctx,
                      .args = a,
                      .tiles = t,
                      .row0 = r,
                      .rows = count,
                      .head0 = h,
                      .heads = head_count,
                      .data = op_rows(in->data, r, count, row_bytes[0]),
                      .scale = op_rows(in->scale, r, count, row_bytes[1]),
                      .out = op_rows(out->data, r, count, row_bytes[2]),
                      .out_scale = op_rows(out->scale, r, count, row_bytes[3]),
                      .stride = in->stride,
                      .out_stride = out->stride,
                      .state = gpu_part(a->state, h * state_bytes, head_count * state_bytes),
                      .starts = t->chunk_rows != 0 ? gpu_part(a->scratch, 0, starts)
                                                   : (gpu_range){.buffer = NULL}};
            TRY(walk_part(&p));
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
        in = (op_blocks){gpu_part(s, l.states, l.data), gpu_part(s, l.states + l.data, l.scale),
                         3 * inner, args->head_dim};
        TRY(convert(ctx, args->qkv, args->qkv_stride, in, rows, false));
    }
    uint64_t at = l.states + l.data + l.scale;
    if (!blocks_out)
        out = (op_blocks){gpu_part(s, at, l.out), gpu_part(s, at + l.out, l.out_scale), inner,
                          tiles->slice};
    TRY(walk(ctx, args, tiles, &in, &out, rows));
    if (!blocks_out)
        TRY(convert(ctx, args->out, inner, out, rows, true));
    return FUL_OK;
}
