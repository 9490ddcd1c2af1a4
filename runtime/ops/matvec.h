/* Matrix-vector kernels: products of few rows with dense weights, each weight loaded once. */
#ifndef FULGUR_OPS_MATVEC_H
#define FULGUR_OPS_MATVEC_H

#include "ops/op_common.h"

/* The most rows a kernel holds, and that where registers are few; more are treated in groups. */
enum { MATVEC_ROWS = 8, MATVEC_ROWS_SMALL = 4 };

/* How one wide kernel is spread: what the specialisation constants of matvec_wide.comp and
 * moe_matvec_wide.comp say. */
typedef struct matvec_spread {
    bool subgroup;
    uint32_t subgroup_size; /* for gpu_pipeline_desc */
    uint32_t wg;
    uint32_t lanes; /* invocations that share a line of `cols` weight rows */
    uint32_t group; /* of them in one subgroup; 1 without subgroups */
    uint32_t cols, unroll;
} matvec_spread;

/* For weight_rows rows of `cols` weights each, against `held` rows of x (a power of two). With
 * pairs, two weight rows make one output. sums: values a line adds up beside its products.
 * subgroups: whether the kernel that uses them may be taken where the device has them. */
matvec_spread matvec_spread_choose(const op_context *ctx, bool subgroups, ful_type type,
                                   uint32_t weight_rows, uint32_t cols, uint32_t held, bool pairs,
                                   uint32_t sums);

/* All of op_matmul that is not for tiles; args were checked there. */
ful_result matvec_matmul(const op_context *ctx, const op_matmul_args *args);

#endif
