/* Products with weight matrices on matrix units: which kernel makes tiles of what size. The kernels
 * share bindings, push constants and numbering of the groups (shaders/inc/matmul.glsl). */
#ifndef FULGUR_OPS_TILES_H
#define FULGUR_OPS_TILES_H

#include <assert.h>

#include "ops/op_common.h"

/* As in inc/matmul.glsl. */
typedef struct tile_push {
    uint32_t row0, row_count, fixed_rows;
    uint32_t cols;
    uint32_t x_stride, out_stride;
    uint32_t w_rows, w_row0, w_stride, w_rows_all;
    uint32_t split;
    uint32_t experts, window_expert, window_experts;
    uint32_t splits, split_stride;
} tile_push;
static_assert(sizeof(tile_push) == 64, "as in inc/matmul.glsl");

/* What is to be multiplied: inputs are halves with row scales. */
typedef struct tile_request {
    const gpu_tensor *w;
    bool grouped;       /* rows are sorted pairs of experts, lists by moe_sort */
    uint32_t rows;      /* of x that share weights: all, or of one expert on average */
    uint32_t tile_rows; /* grouped: as given to moe_sort; else 0 */
    uint32_t out_stride;
    uint32_t block;         /* not 0: results are op_blocks */
    uint64_t scratch_bytes; /* room for parts of split columns */
    op_act act;
} tile_request;

typedef struct tile_kernel {
    op_module module;
    gpu_pipeline_desc desc; /* desc.module is still to be pointed at module.name */
    uint32_t bm, bn;        /* rows of x and weight rows of a tile */
    uint32_t splits;        /* parts of the columns; more than 1 only with scratch */
} tile_kernel;

/* Grouped kernels may read a tile that begins at the last sorted row: x must have room for it. */
enum { TILES_SPARE_ROWS = 128 };

/* True if the device has a kernel for halves on matrix units at all: dense, or sorted by expert. */
bool tiles_usable(const op_context *ctx, bool grouped);
/* False if no kernel serves the request there. */
bool tiles_choose(const op_context *ctx, const tile_request *request, tile_kernel *out);
/* Rows of a tile for so many experts with that many rows on average, and their weight rows. */
uint32_t tiles_group_rows(const op_context *ctx, uint32_t experts, uint32_t rows,
                          uint32_t weight_rows);
/* Scratch with which a dense product can split its columns; 0 where that is no gain. */
uint64_t tiles_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t weight_rows);

/* tile_codes (tuning.h) of the kernels that the device has. */
uint32_t tiles_candidates(const op_context *ctx, uint32_t *codes, uint32_t most);

/* ---- tiles_flexible.c: tiles on the cooperative matrices of whole workgroups ---- */
/* The kernel of that code; false if it does not serve the request or is none of these. */
bool tiles_flexible_choose(const op_context *ctx, const tile_request *request, uint32_t code,
                           tile_kernel *out);
uint32_t tiles_flexible_codes(const op_context *ctx, uint32_t *codes, uint32_t most);

/* ---- tiles.c ---- */
/* How many workgroups of a kernel with large tiles keep the device busy, as far as can be known. */
uint32_t tiles_units(const op_context *ctx);
/* Parts of the columns with which `groups` workgroups become `units`, each of four steps or more.
 */
uint32_t tiles_splits(uint32_t units, uint32_t groups, uint32_t steps);
/* Adds the parts of split columns, which lie in args->scratch, and applies args->act. */
ful_result tiles_reduce(const op_context *ctx, const op_matmul_args *args, uint32_t splits);

/* All of a dense product. */
ful_result tiles_matmul(const op_context *ctx, const op_matmul_args *args,
                        const tile_kernel *kernel);

#endif
