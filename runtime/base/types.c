#include "base/types.h"

static const type_traits traits[TYPE_COUNT] = {
    [FUL_TYPE_F32] = {"f32", 1, 4, 0, 0, 0},
    [FUL_TYPE_F16] = {"f16", 1, 2, 0, 0, 0},
    [FUL_TYPE_BF16] = {"bf16", 1, 2, 0, 0, 0},
    [FUL_TYPE_Q8_0] = {"q8_0", 32, 34, 256, 0, 16},
    [FUL_TYPE_Q4_0] = {"q4_0", 32, 18, 128, 0, 16},
    [FUL_TYPE_Q4_1] = {"q4_1", 32, 20, 128, 0, 32},
    [FUL_TYPE_Q5_0] = {"q5_0", 32, 22, 128, 32, 16},
    [FUL_TYPE_Q5_1] = {"q5_1", 32, 24, 128, 32, 32},
    [FUL_TYPE_Q2_K] = {"q2_k", 256, 84, 64, 0, 20},
    [FUL_TYPE_Q3_K] = {"q3_k", 256, 110, 64, 32, 16},
    [FUL_TYPE_Q4_K] = {"q4_k", 256, 144, 128, 0, 16},
    [FUL_TYPE_Q5_K] = {"q5_k", 256, 176, 128, 32, 16},
    [FUL_TYPE_Q6_K] = {"q6_k", 256, 210, 128, 64, 20},
    [FUL_TYPE_IQ4_NL] = {"iq4_nl", 32, 18, 128, 0, 16},
    [FUL_TYPE_MXFP4] = {"mxfp4", 32, 17, 128, 0, 8},
};

const type_traits *type_get(ful_type type)
{
    return type > FUL_TYPE_DEFAULT && (int)type < TYPE_COUNT ? &traits[type] : NULL;
}

bool type_is_blocks(ful_type type)
{
    const type_traits *t = type_get(type);
    return t && t->block_elements > 1;
}

size_t type_bytes(ful_type type)
{
    const type_traits *t = type_get(type);
    return t && t->block_elements == 1 ? t->block_bytes : 0;
}

uint64_t type_row_bytes(ful_type type, uint64_t cols)
{
    const type_traits *t = type_get(type);
    if (!t || cols % t->block_elements != 0)
        return 0;
    return cols / t->block_elements * t->block_bytes;
}

static uint64_t plane_bytes(uint64_t cols, uint32_t bytes_of_256)
{
    return (cols / 32 * bytes_of_256 / 8 + 15) & ~(uint64_t)15;
}

type_planes type_device_planes(ful_type type, uint64_t cols)
{
    const type_traits *t = type_get(type);
    type_planes p = {0, 0, 0};
    if (!t || cols % t->block_elements != 0)
        return p;
    if (t->block_elements == 1) {
        p.high = p.scales = p.bytes = (cols * t->block_bytes + 15) & ~(uint64_t)15;
        return p;
    }
    p.high = plane_bytes(cols, t->low);
    p.scales = p.high + plane_bytes(cols, t->high);
    p.bytes = p.scales + plane_bytes(cols, t->scales);
    return p;
}

uint64_t type_device_row_bytes(ful_type type, uint64_t cols)
{
    return type_device_planes(type, cols).bytes;
}

const char *ful_type_name(ful_type type)
{
    const type_traits *t = type_get(type);
    return t ? t->name : "unknown";
}
