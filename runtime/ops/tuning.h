/* Choices between kernels, or between their sizes, that depend on the device: defaults by what it
 * can do, and what ful_device_tune measured there and put in their place. */
#ifndef FULGUR_OPS_TUNING_H
#define FULGUR_OPS_TUNING_H

#include "ops/op.h"

/* Products of many rows are tuned by their number of rows: up to 16, 32, 64, 128, 512, and more. */
enum { TUNING_ROWS = 6 };

/* A kernel that makes tiles of bm rows of x and bn weight rows; 0 = the rule in tiles.c chooses. */
typedef enum tile_kind {
    TILE_KIND_SUBGROUP = 1, /* on the cooperative matrices of subgroups */
    TILE_KIND_WORKGROUP = 2 /* of whole workgroups */
} tile_kind;
static inline uint32_t tile_code(tile_kind kind, uint32_t bm, uint32_t bn)
{
    return (uint32_t)kind << 28 | bm << 14 | bn;
}

typedef struct op_tuning {
    uint32_t tile[TUNING_ROWS];       /* tile_code by tuning_rows_class: dense products */
    uint32_t group_tile[TUNING_ROWS]; /* experts, by rows of one expert on average */
    uint32_t matvec_rows;             /* dense products of at most so many rows use matrix-vector
                                         kernels */
    uint32_t matvec_invocations;      /* a matrix-vector kernel spreads until there are so many */
    uint32_t matvec_loads;            /* 16-byte loads that one of its invocations has under way */
    uint32_t attention_groups; /* decode splits keys until there are so many workgroups ... */
    uint32_t attention_keys;   /* ... each of at least so many keys */
} op_tuning;

op_tuning device_tuning(const ful_device *device);
uint32_t tuning_rows_class(uint32_t rows);

/* ---- for ful_device_tune and tests ---- */

/* One member of op_tuning. */
typedef struct tuning_field {
    const char *name;   /* for people */
    uint32_t index;     /* in op_tuning, counted in words; device_choice of index + 1 holds it */
    uint32_t values[6]; /* that may be chosen, 0 ends them; none: any tile_code */
} tuning_field;
const tuning_field *tuning_fields(uint32_t *count);
/* The member's value now, and a new one that takes effect at once; 0 = the default again. */
uint32_t tuning_get(const ful_device *device, const tuning_field *field);
void tuning_set(ful_device *device, const tuning_field *field, uint32_t value);

#endif
