#include "cpu/kernels/simd.h"

#define TYPES(module, name)                                                                        \
    {module "_f32", KERNEL(name##_f32)}, {module "_f16", KERNEL(name##_f16)},                      \
    {                                                                                              \
        module "_bf16", KERNEL(name##_bf16)                                                        \
    }

#define ALL(module, name)                                                                          \
    TYPES(module, name),                                                                           \
    {                                                                                              \
        module "_quant", KERNEL(name##_quant)                                                      \
    }

const cpu_kernel KERNEL(kernels)[] = {
    ALL("embed", embed),
    {"rmsnorm", KERNEL(rmsnorm)},
    {"gated_norm", KERNEL(gated_norm)},
    ALL("matvec", matvec),
    {"moe_route_narrow", KERNEL(moe_route_narrow)},
    {"moe_route_wide", KERNEL(moe_route_wide)},
    {"moe_count", KERNEL(moe_count)},
    {"moe_sort", KERNEL(moe_sort)},
    ALL("moe_matvec_narrow", moe_matvec),
    ALL("moe_route_up_narrow", moe_route_up),
    {"moe_combine", KERNEL(moe_combine)},
    {"lightning_scores", KERNEL(lightning_scores)},
    {"lightning_walk", KERNEL(lightning_walk)},
    {"lightning_decode", KERNEL(lightning_decode)},
    {"rope_append", KERNEL(rope_append)},
    {"rope_append_f16", KERNEL(rope_append_f16)},
    {"attention", KERNEL(attention)},
    {"attention_f16", KERNEL(attention_f16)},
    {"attention_merge", KERNEL(attention_merge)},
    {"sample", KERNEL(sample)},
    TYPES("synthesize", synthesize),
    {"synthesize_quant", KERNEL(synthesize_quant)},
    {"measure_copy", KERNEL(measure_copy)},
    {"measure_read", KERNEL(measure_read)},
    {"measure_write", KERNEL(measure_write)},
    {"measure_rate_f32", KERNEL(measure_rate_f32)},
    {NULL, NULL},
};
