/* Quantised types, element by element from their published layouts in files, and placed on the
 * device as base/types.h describes it. */
#include <assert.h>
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "ref/ref.h"

/* low: bits of the low plane; scales: bytes for 256 elements on the device. */
static const struct {
    uint32_t elements, bytes, low, high, scales;
} formats[] = {
    [FUL_TYPE_Q8_0] = {32, 34, 8, 0, 16},   [FUL_TYPE_Q4_0] = {32, 18, 4, 0, 16},
    [FUL_TYPE_Q4_1] = {32, 20, 4, 0, 32},   [FUL_TYPE_Q5_0] = {32, 22, 4, 1, 16},
    [FUL_TYPE_Q5_1] = {32, 24, 4, 1, 32},   [FUL_TYPE_Q2_K] = {256, 84, 2, 0, 20},
    [FUL_TYPE_Q3_K] = {256, 110, 2, 1, 16}, [FUL_TYPE_Q4_K] = {256, 144, 4, 0, 16},
    [FUL_TYPE_Q5_K] = {256, 176, 4, 1, 16}, [FUL_TYPE_Q6_K] = {256, 210, 4, 2, 20},
    [FUL_TYPE_IQ4_NL] = {32, 18, 4, 0, 16}, [FUL_TYPE_MXFP4] = {32, 17, 4, 0, 8},
};

uint32_t ref_blocks_elements(ful_type type)
{
    return formats[type].elements;
}

uint32_t ref_blocks_bytes(ful_type type)
{
    return formats[type].bytes;
}

/* A block's fields as they are stored: codes of all bits, and what scales them. */
typedef struct fields {
    uint32_t code[256];
    uint16_t d, m;                 /* fp16 bits; mxfp4: its byte in d */
    uint32_t scale[16], least[16]; /* of 32 or 16 elements, raw bits */
} fields;

static uint16_t u16(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static double half_value(uint16_t h)
{
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 31 ? (m ? NAN : INFINITY) : e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -v : v;
}

/* The nearest of the values below 60000. */
static uint16_t half_near(double v)
{
    double a = fabs(v) > 60000 ? 60000 : fabs(v);
    int e = 0;
    frexp(a, &e);
    if (e < -13)
        e = -13;
    uint32_t m = (uint32_t)lrint(ldexp(a, 11 - e)); /* below 2048, or 2048: the next power */
    uint32_t bits = e == -13 ? m : (uint32_t)(e + 13) * 1024 + m;
    return (uint16_t)(bits | (v < 0 ? 0x8000u : 0u));
}

static void six_bits(const uint8_t *q, fields *f)
{
    for (int i = 0; i < 8; i++) {
        if (i < 4) {
            f->scale[i] = q[i] & 63u;
            f->least[i] = q[i + 4] & 63u;
        } else {
            f->scale[i] = (q[i + 4] & 15u) | (uint32_t)(q[i - 4] >> 6) << 4;
            f->least[i] = (uint32_t)(q[i + 4] >> 4) | (uint32_t)(q[i] >> 6) << 4;
        }
    }
}

/* Nibbles of 32 elements: the first half of them in the low ones. */
static void nibbles(const uint8_t *q, uint32_t high, fields *f)
{
    for (uint32_t e = 0; e < 32; e++)
        f->code[e] = (e < 16 ? q[e] & 15u : (uint32_t)(q[e - 16] >> 4)) | (high >> e & 1u) << 4;
}

static void take(ful_type type, const uint8_t *b, fields *f)
{
    memset(f, 0, sizeof *f);
    switch (type) {
    case FUL_TYPE_Q8_0:
        f->d = u16(b);
        for (int e = 0; e < 32; e++)
            f->code[e] = b[2 + e];
        return;
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_IQ4_NL:
        f->d = u16(b);
        nibbles(b + 2, 0, f);
        return;
    case FUL_TYPE_MXFP4:
        f->d = b[0];
        nibbles(b + 1, 0, f);
        return;
    case FUL_TYPE_Q4_1:
        f->d = u16(b);
        f->m = u16(b + 2);
        nibbles(b + 4, 0, f);
        return;
    case FUL_TYPE_Q5_0:
        f->d = u16(b);
        nibbles(b + 6, u16(b + 2) | (uint32_t)u16(b + 4) << 16, f);
        return;
    case FUL_TYPE_Q5_1:
        f->d = u16(b);
        f->m = u16(b + 2);
        nibbles(b + 8, u16(b + 4) | (uint32_t)u16(b + 6) << 16, f);
        return;
    case FUL_TYPE_Q2_K:
        f->d = u16(b + 80);
        f->m = u16(b + 82);
        for (int i = 0; i < 16; i++) {
            f->scale[i] = b[i] & 15u;
            f->least[i] = b[i] >> 4;
        }
        for (int e = 0; e < 256; e++)
            f->code[e] = b[16 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3u;
        return;
    case FUL_TYPE_Q3_K:
        f->d = u16(b + 108);
        for (int i = 0; i < 16; i++) {
            uint32_t low = i < 8 ? b[96 + i] & 15u : (uint32_t)(b[96 + i - 8] >> 4);
            f->scale[i] = low | (b[104 + i % 4] >> (i / 4 * 2) & 3u) << 4;
        }
        for (int e = 0; e < 256; e++)
            f->code[e] = (b[32 + e / 128 * 32 + e % 32] >> (e % 128 / 32 * 2) & 3u) |
                         (b[e % 32] >> (e / 32) & 1u) << 2;
        return;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K: {
        f->d = u16(b);
        f->m = u16(b + 2);
        six_bits(b + 4, f);
        const uint8_t *q = b + (type == FUL_TYPE_Q4_K ? 16 : 48);
        for (int e = 0; e < 256; e++) {
            f->code[e] = q[e / 64 * 32 + e % 32] >> (e % 64 / 32 * 4) & 15u;
            if (type == FUL_TYPE_Q5_K)
                f->code[e] |= (b[16 + e % 32] >> (e / 32) & 1u) << 4;
        }
        return;
    }
    case FUL_TYPE_Q6_K:
        f->d = u16(b + 208);
        for (int i = 0; i < 16; i++)
            f->scale[i] = b[192 + i];
        for (int e = 0; e < 256; e++) {
            int j = e % 128 / 32, l = e % 32, n = e / 128;
            f->code[e] = (b[64 * n + l + j % 2 * 32] >> (j / 2 * 4) & 15u) |
                         (b[128 + 32 * n + l] >> (2 * j) & 3u) << 4;
        }
        return;
    default:
        assert(false); /* no type of blocks */
    }
}

static double value(ful_type type, const fields *f, uint32_t e)
{
    static const int nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                               1,    13,   25,  38,  53,  69,  89,  113};
    static const double e2m1[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    double d = half_value(f->d), m = half_value(f->m), q = f->code[e];
    switch (type) {
    case FUL_TYPE_Q8_0:
        return d * (q < 128 ? q : q - 256);
    case FUL_TYPE_Q4_0:
        return d * (q - 8);
    case FUL_TYPE_Q5_0:
        return d * (q - 16);
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        return d * q + m;
    case FUL_TYPE_Q2_K:
        return d * f->scale[e / 16] * q - m * f->least[e / 16];
    case FUL_TYPE_Q3_K:
        return d * ((double)f->scale[e / 16] - 32) * (q - 4);
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        return d * f->scale[e / 32] * q - m * f->least[e / 32];
    case FUL_TYPE_Q6_K: {
        double s = f->scale[e / 16];
        return d * (s < 128 ? s : s - 256) * (q - 32);
    }
    case FUL_TYPE_IQ4_NL:
        return d * nl[f->code[e]];
    default: /* mxfp4 */
        return ldexp(e2m1[f->code[e] & 7] * (f->code[e] & 8 ? -1 : 1), f->d - 127);
    }
}

void ref_blocks_decode(ful_type type, const void *file, size_t cols, double *out)
{
    uint32_t n = formats[type].elements;
    for (size_t b = 0; b < cols / n; b++) {
        fields f;
        take(type, (const uint8_t *)file + b * formats[type].bytes, &f);
        for (uint32_t e = 0; e < n; e++)
            out[b * n + e] = value(type, &f, e);
    }
}

/* Little-endian, whatever the host. */
static void bits_or(uint8_t *plane, size_t word, uint32_t bits)
{
    for (int i = 0; i < 4; i++)
        plane[4 * word + (size_t)i] |= (uint8_t)(bits >> (8 * i));
}

/* `width` bits of element e, neighbours in the halves of a word. */
static void place(uint8_t *plane, size_t e, uint32_t width, uint32_t code)
{
    uint32_t each = 32 / width, i = (uint32_t)(e % each);
    bits_or(plane, e / each, code << (width * (i / 2) + 16 * (i % 2)));
}

static void place_scales(ful_type type, const fields *f, uint8_t *plane, size_t block)
{
    size_t at = block * 4;
    switch (type) {
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        bits_or(plane, block, f->d | (uint32_t)f->m << 16);
        return;
    case FUL_TYPE_MXFP4:
        plane[block] = (uint8_t)f->d;
        return;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        bits_or(plane, at, f->d | (uint32_t)f->m << 16);
        for (uint32_t i = 0; i < 8; i++) {
            bits_or(plane, at + 1, (f->scale[i] & 15) << (4 * i));
            bits_or(plane, at + 2, (f->least[i] & 15) << (4 * i));
            bits_or(plane, at + 3, (f->scale[i] >> 4) << (2 * i));
            bits_or(plane, at + 3, (f->least[i] >> 4) << (16 + 2 * i));
        }
        return;
    case FUL_TYPE_Q3_K:
        bits_or(plane, at, f->d);
        for (uint32_t i = 0; i < 16; i++) {
            bits_or(plane, at + 1 + i / 8, (f->scale[i] & 15) << (4 * (i % 8)));
            bits_or(plane, at + 3, (f->scale[i] >> 4) << (2 * i));
        }
        return;
    case FUL_TYPE_Q2_K:
    case FUL_TYPE_Q6_K:
        at = block * 5;
        bits_or(plane, at, f->d | (uint32_t)f->m << 16);
        for (uint32_t i = 0; i < 16; i++)
            bits_or(plane, at + 1 + i / 4, (f->scale[i] | f->least[i] << 4) << (8 * (i % 4)));
        return;
    default:
        bits_or(plane, block / 2, (uint32_t)f->d << (16 * (block % 2)));
    }
}

static size_t plane_size(size_t cols, uint32_t bytes_of_256)
{
    return (cols * bytes_of_256 / 256 + 15) / 16 * 16;
}

size_t ref_blocks_device_bytes(ful_type type, size_t cols)
{
    return plane_size(cols, formats[type].low * 32) + plane_size(cols, formats[type].high * 32) +
           plane_size(cols, formats[type].scales);
}

void ref_blocks_to_device(ful_type type, const void *file, size_t cols, void *planes)
{
    uint32_t n = formats[type].elements, low_bits = formats[type].low;
    uint8_t *low = planes, *high = low + plane_size(cols, low_bits * 32);
    uint8_t *scales = high + plane_size(cols, formats[type].high * 32);
    memset(planes, 0, ref_blocks_device_bytes(type, cols));
    for (size_t b = 0; b < cols / n; b++) {
        fields f;
        take(type, (const uint8_t *)file + b * formats[type].bytes, &f);
        for (uint32_t e = 0; e < n; e++) {
            size_t at = b * n + e;
            if (low_bits == 8)
                low[at] = (uint8_t)f.code[e];
            else
                place(low, at, low_bits, f.code[e] & ((1u << low_bits) - 1));
            if (formats[type].high != 0)
                place(high, at, formats[type].high, f.code[e] >> low_bits);
        }
        place_scales(type, &f, scales, b);
    }
}

static void put16(uint8_t *at, uint16_t v)
{
    at[0] = (uint8_t)v;
    at[1] = (uint8_t)(v >> 8);
}

void ref_blocks_random(ful_type type, uint64_t bits, double magnitude, void *block)
{
    uint8_t *b = block;
    for (uint32_t i = 0; i < formats[type].bytes; i++) {
        bits = bits * 6364136223846793005u + 1442695040888963407u;
        b[i] = (uint8_t)(bits >> 56);
    }
    double sign = b[0] & 1 ? 1 : -1, more = 0.5 + b[1] / 256.0;
    if (type == FUL_TYPE_MXFP4) {
        int e = 0;
        frexp(magnitude, &e);
        e += 125 + b[0] % 3;
        b[0] = (uint8_t)(magnitude == 0 || e < 0 ? 0 : e > 254 ? 254 : e);
        return;
    }
    static const uint32_t d_at[] = {
        [FUL_TYPE_Q2_K] = 80, [FUL_TYPE_Q3_K] = 108, [FUL_TYPE_Q6_K] = 208, [FUL_TYPE_MXFP4] = 0};
    bool two = type == FUL_TYPE_Q4_1 || type == FUL_TYPE_Q5_1 || type == FUL_TYPE_Q2_K ||
               type == FUL_TYPE_Q4_K || type == FUL_TYPE_Q5_K;
    put16(b + d_at[type], 0x3c00);
    if (two)
        put16(b + d_at[type] + 2, 0x3c00);
    double decoded[256], sum = 0;
    uint32_t n = formats[type].elements;
    ref_blocks_decode(type, b, n, decoded);
    for (uint32_t e = 0; e < n; e++)
        sum += decoded[e] * decoded[e];
    double d = sum > 0 ? magnitude / sqrt(sum / n) * more : 0;
    put16(b + d_at[type], half_near(sign * d));
    if (two)
        put16(b + d_at[type] + 2, half_near(d * (type == FUL_TYPE_Q4_1 ? -5 : 1.25)));
}
