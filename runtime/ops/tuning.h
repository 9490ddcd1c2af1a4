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

/* A lightning prefill in blocks of so many tokens, a workgroup for each slice of value columns, of
 * so many subgroups over rows and over columns; 0 = the rule in lightning_tiles.c. */
static inline uint32_t lightning_code(uint32_t block, uint32_t slice, uint32_t row_subgroups,
                                      uint32_t column_subgroups)
{
    return block << 20 | slice << 8 | row_subgroups << 4 | column_subgroups;
}

/* 0: the op's own rule, which knows the classes of devices by what they can do. */
typedef struct op_tuning {
    uint32_t tile[TUNING_ROWS];       /* tile_code by tuning_rows_class: dense products */
    uint32_t group_tile[TUNING_ROWS]; /* experts, by rows of one expert on average */
    uint32_t matvec_invocations;      /* a matrix-vector kernel spreads until there are so many */
    uint32_t matvec_loads;            /* 16-byte loads that one of its invocations has under way */
    uint32_t attention_groups; /* decode splits keys until there are so many workgroups ... */
    uint32_t attention_keys;   /* ... each of at least so many keys */
    uint32_t lightning;        /* lightning_code of the prefill on matrix units */
    uint32_t lightning_groups; /* chunks of rows until it has so many workgroups; 1: never */
} op_tuning;

op_tuning device_tuning(const ful_device *device);
uint32_t tuning_rows_class(uint32_t rows);

static inline uint32_t tuned_or(uint32_t tuned, uint32_t rule)
{
    return tuned != 0 ? tuned : rule;
}

/* ---- for ful_device_tune and tests ---- */

/* What is measured to fill a member in. */
typedef enum tuning_work {
    TUNING_MATMUL,
    TUNING_EXPERTS,
    TUNING_MATVEC,
    TUNING_ATTENTION,
    TUNING_LIGHTNING
} tuning_work;

enum { TUNING_VALUES = 8 };

/* One member of op_tuning. */
typedef struct tuning_field {
    const char *name; /* for people */
    tuning_work work;
    uint32_t rows;  /* of the measurement: those of the class */
    uint32_t index; /* in op_tuning, counted in words */
    uint32_t
        values[TUNING_VALUES]; /* that may be chosen, up to the first 0; none: codes as above */
} tuning_field;
const tuning_field *tuning_fields(uint32_t *count);
/* The member's value, and a new one that takes effect at once. */
uint32_t tuning_get(const ful_device *device, const tuning_field *field);
void tuning_set(ful_device *device, const tuning_field *field, uint32_t value);

/* Sizes of what is measured. Weights are larger than caches should be. */
typedef struct tune_sizes {
    uint32_t cols, weight_rows;
    uint32_t experts, dim, width;
    uint32_t step_width; /* of the experts of one token */
    uint32_t heads, kv_heads, head_dim, keys, tokens;
    uint32_t warm_ms, rounds; /* before, and measurements of, a choice */
} tune_sizes;
/* ful_device_tune with sizes, and kernels for the shape, of the caller's. */
struct ful_tune_params;
ful_result tune_device(ful_device *device, op_shape shape, const tune_sizes *sizes,
                       const struct ful_tune_params *params);

#endif
