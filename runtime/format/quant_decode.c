/* What blocks stand for. */
#include <math.h>
#include <string.h>

#include "format/quant_block.h"
#include "format/tensors.h"

float quant_mxfp4_half_scale(uint8_t exponent)
{
    /* 2^(exponent - 128), of which the two smallest are subnormal. */
    uint32_t u = exponent < 2 ? 0x00200000u << exponent : (exponent - 1u) << 23;
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

/* Products are exact in fp32 (11 bits of a half, at most 7 of a scale and 6 of a code), so it makes
 * no difference whether a compiler fuses them with the sums. */
static void plain(const uint8_t *codes, unsigned count, int zero, float scale, float *out)
{
    for (unsigned i = 0; i < count; i++)
        out[i] = scale * (float)(codes[i] - zero);
}

static void with_minimum(const uint8_t *codes, unsigned count, float scale, float minimum,
                         float *out)
{
    for (unsigned i = 0; i < count; i++)
        out[i] = scale * (float)codes[i] + minimum;
}

static void looked_up(const uint8_t *codes, const int8_t values[16], float scale, float *out)
{
    for (unsigned i = 0; i < 32; i++)
        out[i] = scale * (float)values[codes[i] & 15];
}

void quant_block_decode(ful_type type, const quant_block *b, float *out)
{
    const float d = half_to_float(b->d);
    switch (type) {
    case FUL_TYPE_Q8_0:
        for (unsigned i = 0; i < 32; i++)
            out[i] = d * (float)(int8_t)b->codes[i];
        break;
    case FUL_TYPE_Q4_0:
        plain(b->codes, 32, 8, d, out);
        break;
    case FUL_TYPE_Q5_0:
        plain(b->codes, 32, 16, d, out);
        break;
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        with_minimum(b->codes, 32, d, half_to_float(b->m), out);
        break;
    case FUL_TYPE_IQ4_NL:
        looked_up(b->codes, quant_iq4_nl_values, d, out);
        break;
    case FUL_TYPE_MXFP4:
        looked_up(b->codes, quant_mxfp4_values, quant_mxfp4_half_scale(b->scales[0]), out);
        break;
    case FUL_TYPE_Q2_K:
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K: {
        const float dmin = half_to_float(b->m);
        const unsigned span = type == FUL_TYPE_Q2_K ? 16 : 32;
        for (unsigned i = 0; i < 256 / span; i++)
            with_minimum(b->codes + i * span, span, d * (float)b->scales[i],
                         -(dmin * (float)b->mins[i]), out + i * span);
        break;
    }
    case FUL_TYPE_Q3_K:
        for (unsigned i = 0; i < 16; i++)
            plain(b->codes + 16 * i, 16, 4, d * (float)(b->scales[i] - 32), out + 16 * i);
        break;
    case FUL_TYPE_Q6_K:
        for (unsigned i = 0; i < 16; i++)
            plain(b->codes + 16 * i, 16, 32, d * (float)(int8_t)b->scales[i], out + 16 * i);
        break;
    default:
        break;
    }
}

void quant_decode(ful_type type, const void *file_row, uint64_t cols, float *out)
{
    const type_traits *t = type_get(type);
    const uint8_t *from = file_row;
    quant_block b = {.d = 0};
    for (uint64_t i = 0; i < cols / t->block_elements; i++) {
        quant_block_read(type, from + i * t->block_bytes, &b);
        quant_block_decode(type, &b, out + i * t->block_elements);
    }
}

void quant_decode_device(ful_type type, const void *device_row, uint64_t cols, float *out)
{
    const type_traits *t = type_get(type);
    const type_planes planes = type_device_planes(type, cols);
    quant_block b = {.d = 0};
    for (uint64_t i = 0; i < cols / t->block_elements; i++) {
        quant_block_read_device(type, device_row, &planes, i, &b);
        quant_block_decode(type, &b, out + i * t->block_elements);
    }
}

float quant_row_bound(ful_type type, const void *file_row, uint64_t cols)
{
    /* Where scales lie in a block, and what they are multiplied with at most. */
    static const struct {
        uint8_t d_at, m_at;
        uint16_t d_most, m_most;
    } shapes[TYPE_COUNT] = {
        [FUL_TYPE_Q8_0] = {0, 0, 128, 0},        [FUL_TYPE_Q4_0] = {0, 0, 8, 0},
        [FUL_TYPE_Q4_1] = {0, 2, 15, 1},         [FUL_TYPE_Q5_0] = {0, 0, 16, 0},
        [FUL_TYPE_Q5_1] = {0, 2, 31, 1},         [FUL_TYPE_Q2_K] = {80, 82, 15 * 3, 15},
        [FUL_TYPE_Q3_K] = {108, 108, 32 * 4, 0}, [FUL_TYPE_Q4_K] = {0, 2, 63 * 15, 63},
        [FUL_TYPE_Q5_K] = {0, 2, 63 * 31, 63},   [FUL_TYPE_Q6_K] = {208, 208, 128 * 32, 0},
        [FUL_TYPE_IQ4_NL] = {0, 0, 127, 0},
    };
    const type_traits *t = type_get(type);
    const uint8_t *block = file_row;
    float most = 0;
    for (uint64_t i = 0; i < cols; i += t->block_elements, block += t->block_bytes) {
        uint16_t d, m;
        float bound;
        memcpy(&d, block + shapes[type].d_at, sizeof d);
        memcpy(&m, block + shapes[type].m_at, sizeof m);
        if (type == FUL_TYPE_MXFP4)
            bound = quant_mxfp4_half_scale(block[0]) * 12;
        else
            bound = (float)shapes[type].d_most * half_to_float(d & 0x7fffu) +
                    (float)shapes[type].m_most * half_to_float(m & 0x7fffu);
        most = most >= bound ? most : bound; /* keeps what is not a number */
    }
    return most;
}

void row_to_floats(ful_type type, const void *file_row, uint64_t cols, float *out)
{
    const uint8_t *from = file_row;
    uint16_t half;
    switch (type) {
    case FUL_TYPE_F32:
        memcpy(out, from, (size_t)cols * sizeof *out);
        break;
    case FUL_TYPE_F16:
        for (uint64_t i = 0; i < cols; i++) {
            memcpy(&half, from + 2 * i, 2);
            out[i] = half_to_float(half);
        }
        break;
    case FUL_TYPE_BF16:
        for (uint64_t i = 0; i < cols; i++) {
            memcpy(&half, from + 2 * i, 2);
            out[i] = bfloat_to_float(half);
        }
        break;
    default:
        quant_decode(type, file_row, cols, out);
    }
}

/* Largest magnitude of a row, as the exponent of its power of two; INT32_MIN for a row of zeros. */
static int32_t row_exponent(ful_type type, const uint8_t *row, uint64_t n)
{
    if (type == FUL_TYPE_BF16) { /* the usual case, in a loop that vectorises */
        uint16_t most = 0;
        for (uint64_t i = 0; i < n; i++) {
            uint16_t bits;
            memcpy(&bits, row + 2 * i, 2);
            bits = (uint16_t)(bits & 0x7fffu);
            most = bits > most && bits < 0x7f80u ? bits : most;
        }
        return most ? (int32_t)(most >> 7) - 127 : INT32_MIN;
    }
    enum { AT_ONCE = 2048 }; /* a multiple of every block */
    float top = 0.0f, values[AT_ONCE];
    for (uint64_t at = 0; at < n; at += AT_ONCE) {
        uint64_t count = n - at < AT_ONCE ? n - at : AT_ONCE;
        row_to_floats(type, row + type_row_bytes(type, at), count, values);
        for (uint64_t i = 0; i < count; i++) {
            float f = fabsf(values[i]);
            if (f > top && f <= 3.4028235e38f)
                top = f;
        }
    }
    return top > 0.0f ? ilogbf(top) : INT32_MIN;
}

static bool in_range(int32_t exponent)
{
    return exponent < 15 && exponent >= -8;
}

float row_half_scale(ful_type type, const void *file_row, uint64_t n)
{
    const uint8_t *row = file_row;
    if (type_is_blocks(type)) { /* mostly their scales say enough */
        float bound = quant_row_bound(type, row, n);
        if (bound > 0.0f && bound <= 3.4028235e38f && in_range(ilogbf(bound)))
            return 1.0f;
    }
    int32_t exponent = row_exponent(type, row, n);
    if (exponent == INT32_MIN || in_range(exponent))
        return 1.0f;
    int32_t up = 13 - exponent;
    return ldexpf(1.0f, up > 126 ? 126 : up);
}
