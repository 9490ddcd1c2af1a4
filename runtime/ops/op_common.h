/* What the ops share: sizes of dispatches and how they are cut. */
#ifndef FULGUR_OPS_OP_COMMON_H
#define FULGUR_OPS_OP_COMMON_H

#include "base/types.h"
#include "ops/op.h"

/* GPUs of phones and laptops: a workgroup of many invocations, or many sums held by each, spill
 * there. */
bool op_small_device(const ful_device *device);

/* GPUs whose compilers give an invocation about 64 registers, addresses included, whatever it
 * needs: those that have narrow subgroups only (Mali) or workgroups near the floor's 128
 * invocations (PowerVR). */
bool op_few_registers(const ful_device *device);

static inline uint32_t div_up_u32(uint32_t a, uint32_t b)
{
    return a / b + (a % b != 0);
}

/* The part of `rows` that one dispatch may treat so that every stream (bytes a row) fits a binding
 * and the next part begins at a multiple of 256 bytes in each. FUL_ERR_UNSUPPORTED names `what` if
 * not even the fewest such rows fit. */
ful_result op_part_rows(const ful_device *device, const char *what, const uint64_t *row_bytes,
                        uint32_t streams, uint32_t rows, uint32_t *part);

/* Folds a line of `line` groups into x and y, row groups into z (inc/dispatch.glsl).
 * FUL_ERR_UNSUPPORTED if the device's grid is too small. */
ful_result op_groups(const ful_device *device, const char *what, uint64_t line, uint32_t row_groups,
                     uint32_t groups[3]);

/* Rows row0 .. of a range with `row_bytes` a row. */
gpu_range op_rows(gpu_range range, uint32_t row0, uint32_t rows, uint64_t row_bytes);

/* Module names end in the weights' type; one module reads all types of blocks. */
typedef struct op_module {
    char name[48];
} op_module;
op_module op_module_name(const char *base, ful_type type);

/* The last specialisation constant of modules that read blocks: which type. Call it when all others
 * are there. */
void op_spec_type(gpu_pipeline_desc *desc, ful_type type);

/* Columns that an invocation of the wide matrix-vector kernels takes at once: WEIGHT_CHUNK. */
static inline uint32_t op_chunk(ful_type type)
{
    return type_is_blocks(type) ? 32 : 8;
}

/* Invocations that share a row in a kernel that reduces over it: 1 where barriers are dear, else as
 * many as the device and the shared memory of `bytes_a_lane` allow, at most 128. */
uint32_t op_row_lanes(const op_context *ctx, uint32_t bytes_a_lane);

#endif
