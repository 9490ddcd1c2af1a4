/* Weights in blocks, decoded from the device's planes (base/types.h) a group of 32 columns at a
 * time: one text for all instruction sets. */
#include "cpu/kernels/simd.h"

#include "base/types.h"

INLINE uint32_t word_at(const uint8_t *p, size_t i)
{
    uint32_t w;
    memcpy(&w, p + 4 * i, 4);
    return w;
}

/* d and m of the two halves of a group. */
typedef struct group_scales {
    float d[2], m[2];
} group_scales;

INLINE group_scales both(float d, float m)
{
    return (group_scales){{d, d}, {m, m}};
}

INLINE group_scales scales_of(ful_type type, const uint8_t *plane, uint32_t group)
{
    uint32_t i = group % 8, block = group / 8, w[4];
    switch (type) {
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        w[0] = word_at(plane, group);
        return both(half_value((uint16_t)w[0]), half_value((uint16_t)(w[0] >> 16)));
    case FUL_TYPE_MXFP4: { /* codes are doubled */
        uint32_t e = plane[group];
        return both(float_of(e < 2 ? 0x00200000u << e : (e - 1) << 23), 0.0f);
    }
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K: {
        memcpy(w, plane + 16 * (size_t)block, sizeof w);
        uint32_t s = (w[1] >> (4 * i) & 15) | (w[3] >> (2 * i) & 3) << 4;
        uint32_t l = (w[2] >> (4 * i) & 15) | (w[3] >> (16 + 2 * i) & 3) << 4;
        return both(half_value((uint16_t)w[0]) * (float)s,
                    -half_value((uint16_t)(w[0] >> 16)) * (float)l);
    }
    case FUL_TYPE_Q3_K: {
        group_scales g = both(0.0f, 0.0f);
        memcpy(w, plane + 16 * (size_t)block, sizeof w);
        for (uint32_t h = 0; h < 2; h++) {
            uint32_t s = 2 * i + h;
            uint32_t bits = (w[1 + s / 8] >> (4 * (s % 8)) & 15) | (w[3] >> (2 * s) & 3) << 4;
            g.d[h] = half_value((uint16_t)w[0]) * ((float)bits - 32.0f);
        }
        return g;
    }
    case FUL_TYPE_Q2_K:
    case FUL_TYPE_Q6_K: {
        group_scales g = both(0.0f, 0.0f);
        const uint8_t *at = plane + 20 * (size_t)block;
        w[0] = word_at(at, 0);
        float d = half_value((uint16_t)w[0]), least = half_value((uint16_t)(w[0] >> 16));
        for (uint32_t h = 0; h < 2; h++) {
            uint8_t s = at[4 + 2 * i + h];
            g.d[h] = d * (type == FUL_TYPE_Q6_K ? (float)(int8_t)s : (float)(s & 15));
            g.m[h] = type == FUL_TYPE_Q6_K ? 0.0f : -least * (float)(s >> 4);
        }
        return g;
    }
    default: {
        uint16_t h;
        memcpy(&h, plane + 2 * (size_t)group, 2);
        return both(half_value(h), 0.0f);
    }
    }
}

/* Signed values of 32 codes: element e lies at bit 4 (e % 8 / 2) + 16 (e % 2) of its word, and so
 * on. */
INLINE void codes_of(ful_type type, const type_traits *t, const uint8_t *low, const uint8_t *high,
                     uint32_t group, int8_t *code)
{
    static const int8_t nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                  1,    13,   25,  38,  53,  69,  89,  113};
    static const int8_t e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    if (t->low == 256) {
        memcpy(code, low + 32 * (size_t)group, 32);
        return;
    }
    const uint32_t width = t->low / 32, each = 32 / width;
    for (uint32_t i = 0; i < 32 / each; i++) {
        uint32_t w = word_at(low, (size_t)group * 32 / each + i), mask = (1u << width) - 1;
        for (uint32_t p = 0; p < each / 2; p++) {
            code[i * each + 2 * p] = (int8_t)(w >> (width * p) & mask);
            code[i * each + 2 * p + 1] = (int8_t)(w >> (width * p + 16) & mask);
        }
    }
    if (t->high == 32) {
        uint32_t w = word_at(high, group);
        for (uint32_t p = 0; p < 16; p++) {
            code[2 * p] |= (int8_t)((w >> p & 1) << width);
            code[2 * p + 1] |= (int8_t)((w >> (p + 16) & 1) << width);
        }
    } else if (t->high == 64) {
        for (uint32_t i = 0; i < 2; i++) {
            uint32_t w = word_at(high, 2 * (size_t)group + i);
            for (uint32_t p = 0; p < 8; p++) {
                code[16 * i + 2 * p] |= (int8_t)((w >> (2 * p) & 3) << 4);
                code[16 * i + 2 * p + 1] |= (int8_t)((w >> (2 * p + 16) & 3) << 4);
            }
        }
    }
    int zero = type == FUL_TYPE_Q4_0   ? 8
               : type == FUL_TYPE_Q5_0 ? 16
               : type == FUL_TYPE_Q6_K ? 32
               : type == FUL_TYPE_Q3_K ? 4
                                       : 0;
    const int8_t *table = type == FUL_TYPE_IQ4_NL ? nl : type == FUL_TYPE_MXFP4 ? e2m1 : NULL;
    for (uint32_t e = 0; e < 32; e++)
        code[e] = table ? table[code[e]] : (int8_t)(code[e] - zero);
}

INLINE void decode(ful_type type, const uint8_t *row, uint32_t all, uint32_t first, uint32_t cols,
                   float *out)
{
    const type_traits *t = type_get(type);
    type_planes planes = type_device_planes(type, all);
    for (uint32_t group = first / 32; group < (first + cols) / 32; group++, out += 32) {
        int8_t code[32];
        codes_of(type, t, row, row + planes.high, group, code);
        group_scales s = scales_of(type, row + planes.scales, group);
        for (uint32_t h = 0; h < 2; h++)
            for (uint32_t e = 16 * h; e < 16 * h + 16; e++)
                out[e] = s.d[h] * (float)code[e] + s.m[h];
    }
}

void KERNEL(blocks)(ful_type type, const void *row, uint32_t all, uint32_t first, uint32_t cols,
                    float *out)
{
    decode(type, row, all, first, cols, out);
}
