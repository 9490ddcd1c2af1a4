/* What the files of lightning attention share. */
#ifndef FULGUR_OPS_LIGHTNING_H
#define FULGUR_OPS_LIGHTNING_H

#include "ops/op_common.h"

enum {
    LIGHTNING_TABLE = 128 /* the longest block the decay table serves, as in inc/lightning.glsl */
};

/* Units (states of a head of a sequence) whose states fit one binding and one grid. */
ful_result lightning_units(const op_context *ctx, uint64_t bytes_each, uint32_t units,
                           uint32_t *out);

/* Prefill on cooperative matrices (lightning_tiles.c). */
typedef struct lightning_tiles {
    uint32_t tile, subgroup;                  /* matrices are tile x tile x tile */
    uint32_t block, slice;                    /* tokens; value columns of a workgroup */
    uint32_t row_subgroups, column_subgroups; /* of a workgroup */
    uint32_t
        chunk_rows; /* rows are walked in chunks of so many side by side; 0: from first to last */
} lightning_tiles;

/* False where the device has no matrices for heads of this size, or does better without. */
bool lightning_tiles_choose(const op_context *ctx, uint32_t rows, uint32_t heads, uint32_t head_dim,
                            lightning_tiles *out);
/* lightning_codes (tuning.h) of all that the device can do. */
uint32_t lightning_tiles_codes(const op_context *ctx, uint32_t head_dim, uint32_t *codes,
                               uint32_t most);
/* `halves`: q, k, v come and the outputs go as halves. */
uint64_t lightning_tiles_scratch_bytes(const lightning_tiles *tiles, uint32_t rows, uint32_t heads,
                                       uint32_t head_dim, bool halves);
ful_result lightning_tiles_prefill(const op_context *ctx, const op_lightning_args *args,
                                   const lightning_tiles *tiles);

#endif
