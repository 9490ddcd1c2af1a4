/* Products with weight matrices: matrix-vector kernels (matvec.c) for few rows and for CPU devices,
 * else tiles. */
#include <assert.h>
#include <stdio.h>

#include "ops/matvec.h"
#include "ops/tiles.h"

enum {
    FEW_ROWS =
        MATVEC_ROWS, /* up to here matrix-vector kernels read each weight once for all rows */
    TILE_WG = 128
};

typedef struct matmul_push {
    uint32_t row0, row_count;
    uint32_t fixed_rows;
    uint32_t cols;
    uint32_t x_stride, out_stride;
    uint32_t w_rows, w_row0, w_stride;
    uint32_t split;
    uint32_t splits, split_stride;
} matmul_push;
static_assert(sizeof(matmul_push) == 48, "as in matmul.comp");

/* A kernel and how much one of its groups covers. */
typedef struct matmul_plan {
    gpu_pipeline_desc desc;
    op_module module;
    uint32_t group_rows;    /* rows of x */
    uint32_t group_weights; /* weight rows */
    uint32_t splits;        /* parts of the columns */
} matmul_plan;

enum { TILE_ROWS = 64, TILE_WEIGHTS = 64 };

/* 128 invocations of 8 x 4 sums each, or of 4 x 4. */
static uint32_t tile_rows(const op_context *ctx)
{
    return op_few_registers(ctx->device) ? TILE_ROWS / 2 : TILE_ROWS;
}

/* Several of these small workgroups live beside each other where one of those of tiles.c does. */
static uint32_t splits_of(const op_context *ctx, uint32_t rows, uint32_t weight_rows, uint32_t cols,
                          uint32_t bk)
{
    uint32_t groups = div_up_u32(rows, tile_rows(ctx)) * div_up_u32(weight_rows, TILE_WEIGHTS);
    return tiles_splits(4 * tiles_units(ctx), groups, div_up_u32(cols, bk));
}

/* Bytes for parts of split columns: none where the rows themselves come in parts. */
static uint64_t split_room(const op_context *ctx, const op_matmul_args *args)
{
    if (!gpu_module_usable(ctx->device, "matmul_reduce"))
        return 0;
    uint64_t limit = device_caps(ctx->device)->storage_range_bytes / 256 * 256;
    uint64_t x_bytes = (args->x.half ? 2 : 4) * (uint64_t)args->x.stride;
    uint64_t out_bytes = 4 * (uint64_t)args->out_stride;
    uint64_t most = x_bytes > out_bytes ? x_bytes : out_bytes;
    return most * args->rows <= limit ? args->scratch.bytes : 0;
}

static void plan_tiles(const op_context *ctx, const op_matmul_args *args, matmul_plan *plan)
{
    bool half = args->x.half;
    /* Both tiles and their padding stay below 16 KiB. */
    uint32_t bm = tile_rows(ctx), bn = TILE_WEIGHTS, bk = half ? 32 : 16;
    const gpu_tensor *w = args->w;
    plan->splits = splits_of(ctx, args->rows, w->rows, w->cols, bk);
    if (split_room(ctx, args) < (uint64_t)plan->splits * args->rows * w->rows * 4)
        plan->splits = 1;
    op_act act = plan->splits > 1 ? OP_ACT_NONE : args->act;
    bool vec = args->w->cols % 8 == 0 && args->x.stride % (half ? 8 : 4) == 0;
    plan->module = op_module_name(half ? "matmul_half" : "matmul", args->w->type);
    plan->group_rows = bm;
    plan->group_weights = bn;
    plan->desc = (gpu_pipeline_desc){
        .buffer_count = half ? 5 : 3,
        .uniform = true,
        .push_bytes = sizeof(matmul_push),
        .spec_count = 9,
        .spec = {TILE_WG, bm, bn, bk, bm / 8, 4, act, vec, half && args->w->row_scale.vk != NULL}};
    op_spec_type(&plan->desc, w->type);
}

uint64_t op_matmul_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t weight_rows)
{
    if (!op_wide(ctx) || rows <= FEW_ROWS)
        return 0;
    uint64_t bytes = tiles_scratch_bytes(ctx, rows, weight_rows);
    uint32_t splits = splits_of(ctx, rows, weight_rows, UINT32_MAX / 2, 16);
    uint64_t plain = splits > 1 ? (uint64_t)splits * rows * weight_rows * 4 : 0;
    if (plain > device_caps(ctx->device)->storage_range_bytes)
        plain = 0;
    return bytes > plain ? bytes : plain;
}

bool op_matmul_blocks_usable(const op_context *ctx, const gpu_tensor *w, uint32_t rows,
                             uint32_t block)
{
    for (uint32_t i = 0; i < w->part_count; i++)
        if (!op_matmul_blocks_usable(ctx, &w->parts[i], rows, block))
            return false;
    if (w->part_count > 0)
        return true;
    tile_request request = {.w = w, .rows = rows, .out_stride = block, .block = block};
    tile_kernel kernel;
    return op_wide(ctx) && tiles_choose(ctx, &request, &kernel);
}

/* Each part writes its own columns of out. */
static ful_result matmul_parts(const op_context *ctx, const op_matmul_args *args)
{
    op_matmul_args part = *args;
    op_fused_norm norm = {0};
    if (args->norm != NULL) {
        norm = *args->norm;
        part.norm = &norm;
    }
    /* Sums of split columns are reduced over all columns of out. */
    part.scratch = (gpu_range){0};
    for (uint32_t i = 0; i < args->w->part_count; i++) {
        part.w = &args->w->parts[i];
        TRY(op_matmul(ctx, &part));
        norm.out = (gpu_range){0}; /* once is enough */
    }
    return FUL_OK;
}

ful_result op_matmul(const op_context *ctx, const op_matmul_args *args)
{
    if (args->w->part_count > 0)
        return matmul_parts(ctx, args);
    const gpu_tensor *w = args->w;
    const op_activation *x = &args->x;
    assert(w->experts == 1);
    if (x->dim != w->cols)
        return fail(FUL_ERR_ARGUMENT, "matmul: input has %u columns, the weights %u",
                    (unsigned)x->dim, (unsigned)w->cols);
    if (args->act == OP_ACT_SWIGLU && w->rows % 2 != 0)
        return fail(FUL_ERR_ARGUMENT, "matmul: %u weight rows do not pair up", (unsigned)w->rows);
    if (x->half && (x->stride % 8 != 0 || x->scale.buffer == NULL))
        return fail(FUL_ERR_ARGUMENT,
                    "matmul: halves need a stride that is a multiple of 8 (it is %u) and scales",
                    (unsigned)x->stride);
    if (args->rows == 0)
        return fail(FUL_ERR_ARGUMENT, "matmul: no rows");

    const op_blocks *blocks = &args->out_blocks;
    bool in_blocks = blocks->data.buffer != NULL;
    if (x->half && op_wide(ctx) && (in_blocks || args->rows > FEW_ROWS)) {
        tile_request request = {.w = w,
                                .rows = args->rows,
                                .out_stride = in_blocks ? blocks->stride : args->out_stride,
                                .block = in_blocks ? blocks->block : 0,
                                .act = args->act,
                                .scratch_bytes = split_room(ctx, args)};
        tile_kernel kernel;
        if (tiles_choose(ctx, &request, &kernel))
            return tiles_matmul(ctx, args, &kernel);
    }
    if (in_blocks)
        return fail(FUL_ERR_UNSUPPORTED, "matmul: no kernel here gives %u x %u in blocks of %u",
                    (unsigned)args->rows, (unsigned)w->rows, (unsigned)blocks->block);

    if (args->norm != NULL || !op_wide(ctx) || args->rows <= FEW_ROWS ||
        (x->half && !op_half_usable(ctx->device)) ||
        !gpu_family_usable(ctx->device, x->half ? "matmul_half" : "matmul"))
        return matvec_matmul(ctx, args);
    matmul_plan plan;
    plan_tiles(ctx, args, &plan);
    plan.desc.module = plan.module.name;
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &plan.desc, &pipeline));

    uint64_t x_row_bytes = (x->half ? 2 : 4) * (uint64_t)x->stride;
    uint64_t out_row_bytes = 4 * (uint64_t)args->out_stride;
    uint64_t row_bytes[] = {x_row_bytes, out_row_bytes};
    uint32_t part;
    TRY(op_part_rows(ctx->device, "matmul", row_bytes, 2, args->rows, &part));
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        gpu_range x_part = op_rows(x->data, row0, rows, x_row_bytes);
        gpu_range scale = x->half ? op_rows(x->scale, 0, args->rows, 4) : x_part;
        for (uint32_t i = 0; i < w->window_count; i++) {
            const gpu_window *window = &w->windows[i];
            matmul_push push = {.row0 = row0,
                                .row_count = rows,
                                .fixed_rows = args->fixed,
                                .cols = w->cols,
                                .x_stride = x->stride,
                                .out_stride = plan.splits > 1 ? w->rows : args->out_stride,
                                .w_rows = window->row_count,
                                .w_row0 = window->row0,
                                .w_stride = (uint32_t)(w->row_bytes / 16),
                                .split = args->split,
                                .splits = plan.splits,
                                .split_stride = rows * w->rows};
            gpu_range out = op_rows(args->out, row0, rows, out_row_bytes);
            if (plan.splits > 1)
                out = gpu_part(args->scratch, 0, (uint64_t)plan.splits * rows * w->rows * 4);
            gpu_dispatch d = {
                .pipeline = pipeline,
                .buffers = {x_part, gpu_whole(&window->buffer), out, scale,
                            w->row_scale.vk != NULL ? gpu_whole(&w->row_scale) : scale},
                .writes = 1u << 2,
                .uniform = ctx->step,
                .push = &push,
                .cost = {.bytes =
                             (double)window->row_count * (double)w->row_bytes +
                             (double)rows * (double)(x_row_bytes + 4 * (uint64_t)window->row_count),
                         .flops = 2.0 * rows * window->row_count * w->cols},
                .label = "matmul",
                .layer = ctx->layer};
            uint64_t blocks_of = div_up_u32(window->row_count, plan.group_weights);
            TRY(op_groups(ctx->device, "matmul", blocks_of * plan.splits,
                          div_up_u32(rows, plan.group_rows), d.groups));
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return plan.splits > 1 ? tiles_reduce(ctx, args, plan.splits) : FUL_OK;
}
