#include "ops/op_common.h"
#include "base/types.h"

#include <assert.h>
#include <stdio.h>

bool op_half_usable(const ful_device *device)
{
    const ful_caps *caps = device_caps(device);
    uint32_t need = FUL_FEATURE_FP16 | FUL_FEATURE_STORAGE16;
    return (caps->features & need) == need && caps->storage_buffers >= 6;
}

bool op_small_device(const ful_device *device)
{
    return ful_device_get_info(device)->kind == FUL_DEVICE_INTEGRATED;
}

bool op_few_registers(const ful_device *device)
{
    const ful_caps *caps = device_caps(device);
    return caps->workgroup_invocations < 256 ||
           (caps->subgroup_max <= 16 && !device_is_cpu(device));
}

static uint64_t common_divisor(uint64_t a, uint64_t b)
{
    while (b != 0) {
        uint64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

ful_result op_part_rows(const ful_device *device, const char *what, const uint64_t *row_bytes,
                        uint32_t streams, uint32_t rows, uint32_t *part)
{
    const ful_caps *caps = device_caps(device);
    uint64_t limit = caps->storage_range_bytes / 256 * 256;
    uint64_t most = 0;
    uint64_t step = 1; /* both are powers of two times 1: the larger serves all */
    for (uint32_t i = 0; i < streams; i++) {
        if (row_bytes[i] == 0)
            continue;
        uint64_t own = 256 / common_divisor(row_bytes[i], 256);
        if (own > step)
            step = own;
        if (row_bytes[i] > most)
            most = row_bytes[i];
    }
    if (most == 0 || most * rows <= limit) {
        *part = rows;
        return FUL_OK;
    }
    uint64_t fit = limit / most / step * step;
    if (fit == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "%s: %llu rows of %llu bytes do not fit the device's binding of %llu bytes",
                    what, (unsigned long long)step, (unsigned long long)most,
                    (unsigned long long)limit);
    *part = fit < rows ? (uint32_t)fit : rows;
    return FUL_OK;
}

ful_result op_groups(const ful_device *device, const char *what, uint64_t line, uint32_t row_groups,
                     uint32_t groups[3])
{
    const ful_caps *caps = device_caps(device);
    uint64_t x = line < caps->workgroup_count[0] ? line : caps->workgroup_count[0];
    uint64_t y = x == 0 ? 0 : (line + x - 1) / x;
    /* Even columns waste fewer groups than one full row and a short one. */
    if (y > 1)
        x = (line + y - 1) / y;
    if (y > caps->workgroup_count[1] || row_groups > caps->workgroup_count[2])
        return fail(
            FUL_ERR_UNSUPPORTED, "%s: %llu x %u groups exceed the device's grid %u x %u x %u", what,
            (unsigned long long)line, (unsigned)row_groups, (unsigned)caps->workgroup_count[0],
            (unsigned)caps->workgroup_count[1], (unsigned)caps->workgroup_count[2]);
    groups[0] = (uint32_t)x;
    groups[1] = (uint32_t)y;
    groups[2] = row_groups;
    return FUL_OK;
}

gpu_range op_rows(gpu_range range, uint32_t row0, uint32_t rows, uint64_t row_bytes)
{
    return gpu_part(range, row0 * row_bytes, rows * row_bytes);
}

op_module op_module_name(const char *base, ful_type type)
{
    op_module m;
    const char *suffix = type_is_blocks(type) ? "quant" : ful_type_name(type);
    int n = snprintf(m.name, sizeof m.name, "%s_%s", base, suffix);
    assert(n > 0 && (size_t)n < sizeof m.name);
    (void)n;
    return m;
}

/* As blocks.glsl counts them. */
static_assert(FUL_TYPE_Q8_0 == 4 && FUL_TYPE_Q4_0 == 5 && FUL_TYPE_Q4_1 == 6 &&
                  FUL_TYPE_Q5_0 == 7 && FUL_TYPE_Q5_1 == 8 && FUL_TYPE_Q2_K == 9 &&
                  FUL_TYPE_Q3_K == 10 && FUL_TYPE_Q4_K == 11 && FUL_TYPE_Q5_K == 12 &&
                  FUL_TYPE_Q6_K == 13 && FUL_TYPE_IQ4_NL == 14 && FUL_TYPE_MXFP4 == 15,
              "BLOCK_TYPE");

void op_spec_type(gpu_pipeline_desc *desc, ful_type type)
{
    if (!type_is_blocks(type))
        return;
    assert(desc->spec_count < GPU_MAX_SPEC);
    desc->spec[desc->spec_count++] = (uint32_t)type;
}

uint32_t op_row_lanes(const op_context *ctx, uint32_t bytes_a_lane)
{
    if (!op_wide(ctx))
        return 1;
    const ful_caps *caps = device_caps(ctx->device);
    uint32_t lanes = 128;
    while (lanes > 1 && (lanes > caps->workgroup_invocations || lanes > caps->workgroup_size[0] ||
                         (uint64_t)lanes * bytes_a_lane > caps->shared_bytes))
        lanes /= 2;
    return lanes;
}
