/* Blocks as files lay them out. */
#include <string.h>

#include "format/quant_block.h"

const int8_t quant_iq4_nl_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                        1,    13,   25,  38,  53,  69,  89,  113};
const int8_t quant_mxfp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

static uint16_t half_get(const uint8_t *at)
{
    return (uint16_t)(at[0] | at[1] << 8);
}

static void half_put(uint8_t *at, uint16_t half)
{
    at[0] = (uint8_t)half;
    at[1] = (uint8_t)(half >> 8);
}

/* Bytes that hold an element in the low four bits and the one `span` later in the high ones. */
static void nibbles_read(const uint8_t *file, uint8_t *codes, unsigned count, unsigned span)
{
    for (unsigned base = 0; base < count; base += 2 * span, file += span) {
        for (unsigned i = 0; i < span; i++)
            codes[base + i] = file[i] & 15;
        for (unsigned i = 0; i < span; i++)
            codes[base + span + i] = file[i] >> 4;
    }
}

static void nibbles_write(const uint8_t *codes, uint8_t *file, unsigned count, unsigned span)
{
    for (unsigned base = 0; base < count; base += 2 * span, file += span) {
        for (unsigned i = 0; i < span; i++)
            file[i] = (uint8_t)((codes[base + i] & 15) | codes[base + span + i] << 4);
    }
}

/* Of 256: byte l of 32 holds, in bit g, element 32 g + l; or'ed into the codes at bit `at`. */
static void bits_read(const uint8_t *file, uint8_t *codes, unsigned at)
{
    for (unsigned g = 0; g < 8; g++) {
        for (unsigned l = 0; l < 32; l++)
            codes[32 * g + l] = (uint8_t)(codes[32 * g + l] | ((file[l] >> g & 1) << at));
    }
}

static void bits_write(const uint8_t *codes, uint8_t *file, unsigned at)
{
    memset(file, 0, 32);
    for (unsigned g = 0; g < 8; g++) {
        for (unsigned l = 0; l < 32; l++)
            file[l] = (uint8_t)(file[l] | (codes[32 * g + l] >> at & 1) << g);
    }
}

/* Of 256: two halves of 32 bytes, byte l of half c holding elements 128 c + 32 s + l at bit 2 s. */
static void pairs_read(const uint8_t *file, uint8_t *codes, unsigned at)
{
    for (unsigned g = 0; g < 8; g++) {
        const uint8_t *from = file + 32 * (g / 4);
        for (unsigned l = 0; l < 32; l++)
            codes[32 * g + l] = (uint8_t)(codes[32 * g + l] | ((from[l] >> 2 * (g % 4) & 3) << at));
    }
}

static void pairs_write(const uint8_t *codes, uint8_t *file, unsigned at)
{
    memset(file, 0, 64);
    for (unsigned g = 0; g < 8; g++) {
        uint8_t *to = file + 32 * (g / 4);
        for (unsigned l = 0; l < 32; l++)
            to[l] = (uint8_t)(to[l] | (codes[32 * g + l] >> at & 3) << 2 * (g % 4));
    }
}

/* Of 32: a bit for each, in order. */
static void word_bits_read(const uint8_t *file, uint8_t *codes)
{
    for (unsigned e = 0; e < 32; e++)
        codes[e] = (uint8_t)(codes[e] | (file[e / 8] >> e % 8 & 1) << 4);
}

static void word_bits_write(const uint8_t *codes, uint8_t *file)
{
    memset(file, 0, 4);
    for (unsigned e = 0; e < 32; e++)
        file[e / 8] = (uint8_t)(file[e / 8] | (codes[e] >> 4 & 1) << e % 8);
}

/* q4_k and q5_k: six bits of eight scales and eight minima in twelve bytes. The first four of each
 * lie in the low bits of bytes 0-3 and 4-7, whose two high bits are those of the last four; the low
 * four of these are in bytes 8-11. */
static void scales_k4_read(const uint8_t *file, quant_block *b)
{
    for (unsigned i = 0; i < 4; i++) {
        b->scales[i] = file[i] & 63;
        b->mins[i] = file[4 + i] & 63;
        b->scales[4 + i] = (uint8_t)((file[8 + i] & 15) | (file[i] >> 6) << 4);
        b->mins[4 + i] = (uint8_t)(file[8 + i] >> 4 | (file[4 + i] >> 6) << 4);
    }
}

static void scales_k4_write(const quant_block *b, uint8_t *file)
{
    for (unsigned i = 0; i < 4; i++) {
        file[i] = (uint8_t)(b->scales[i] | (b->scales[4 + i] >> 4) << 6);
        file[4 + i] = (uint8_t)(b->mins[i] | (b->mins[4 + i] >> 4) << 6);
        file[8 + i] = (uint8_t)((b->scales[4 + i] & 15) | b->mins[4 + i] << 4);
    }
}

/* q3_k: six bits of sixteen scales: the low four in eight bytes as nibbles of a span of eight, the
 * high two in four bytes, those of scale i in byte i % 4 at bit 2 (i / 4). */
static void scales_k3_read(const uint8_t *file, quant_block *b)
{
    for (unsigned i = 0; i < 16; i++) {
        unsigned low = file[i % 8] >> 4 * (i / 8) & 15, high = file[8 + i % 4] >> 2 * (i / 4) & 3;
        b->scales[i] = (uint8_t)(low | high << 4);
    }
}

static void scales_k3_write(const quant_block *b, uint8_t *file)
{
    memset(file, 0, 12);
    for (unsigned i = 0; i < 16; i++) {
        file[i % 8] = (uint8_t)(file[i % 8] | (b->scales[i] & 15) << 4 * (i / 8));
        file[8 + i % 4] = (uint8_t)(file[8 + i % 4] | (b->scales[i] >> 4 & 3) << 2 * (i / 4));
    }
}

void quant_block_read(ful_type type, const uint8_t *file, quant_block *b)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
        b->d = half_get(file);
        memcpy(b->codes, file + 2, 32);
        break;
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_IQ4_NL:
        b->d = half_get(file);
        nibbles_read(file + 2, b->codes, 32, 16);
        break;
    case FUL_TYPE_Q4_1:
        b->d = half_get(file);
        b->m = half_get(file + 2);
        nibbles_read(file + 4, b->codes, 32, 16);
        break;
    case FUL_TYPE_Q5_0:
        b->d = half_get(file);
        nibbles_read(file + 6, b->codes, 32, 16);
        word_bits_read(file + 2, b->codes);
        break;
    case FUL_TYPE_Q5_1:
        b->d = half_get(file);
        b->m = half_get(file + 2);
        nibbles_read(file + 8, b->codes, 32, 16);
        word_bits_read(file + 4, b->codes);
        break;
    case FUL_TYPE_MXFP4:
        b->scales[0] = file[0];
        nibbles_read(file + 1, b->codes, 32, 16);
        break;
    case FUL_TYPE_Q2_K:
        for (unsigned i = 0; i < 16; i++) {
            b->scales[i] = file[i] & 15;
            b->mins[i] = file[i] >> 4;
        }
        memset(b->codes, 0, 256);
        pairs_read(file + 16, b->codes, 0);
        b->d = half_get(file + 80);
        b->m = half_get(file + 82);
        break;
    case FUL_TYPE_Q3_K:
        memset(b->codes, 0, 256);
        pairs_read(file + 32, b->codes, 0);
        bits_read(file, b->codes, 2);
        scales_k3_read(file + 96, b);
        b->d = half_get(file + 108);
        break;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        b->d = half_get(file);
        b->m = half_get(file + 2);
        scales_k4_read(file + 4, b);
        nibbles_read(file + (type == FUL_TYPE_Q4_K ? 16 : 48), b->codes, 256, 32);
        if (type == FUL_TYPE_Q5_K)
            bits_read(file + 16, b->codes, 4);
        break;
    case FUL_TYPE_Q6_K:
        nibbles_read(file, b->codes, 256, 64);
        pairs_read(file + 128, b->codes, 4);
        memcpy(b->scales, file + 192, 16);
        b->d = half_get(file + 208);
        break;
    default:
        break;
    }
}

void quant_block_write(ful_type type, const quant_block *b, uint8_t *file)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
        half_put(file, b->d);
        memcpy(file + 2, b->codes, 32);
        break;
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_IQ4_NL:
        half_put(file, b->d);
        nibbles_write(b->codes, file + 2, 32, 16);
        break;
    case FUL_TYPE_Q4_1:
        half_put(file, b->d);
        half_put(file + 2, b->m);
        nibbles_write(b->codes, file + 4, 32, 16);
        break;
    case FUL_TYPE_Q5_0:
        half_put(file, b->d);
        word_bits_write(b->codes, file + 2);
        nibbles_write(b->codes, file + 6, 32, 16);
        break;
    case FUL_TYPE_Q5_1:
        half_put(file, b->d);
        half_put(file + 2, b->m);
        word_bits_write(b->codes, file + 4);
        nibbles_write(b->codes, file + 8, 32, 16);
        break;
    case FUL_TYPE_MXFP4:
        file[0] = b->scales[0];
        nibbles_write(b->codes, file + 1, 32, 16);
        break;
    case FUL_TYPE_Q2_K:
        for (unsigned i = 0; i < 16; i++)
            file[i] = (uint8_t)(b->scales[i] | b->mins[i] << 4);
        pairs_write(b->codes, file + 16, 0);
        half_put(file + 80, b->d);
        half_put(file + 82, b->m);
        break;
    case FUL_TYPE_Q3_K:
        bits_write(b->codes, file, 2);
        pairs_write(b->codes, file + 32, 0);
        scales_k3_write(b, file + 96);
        half_put(file + 108, b->d);
        break;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        half_put(file, b->d);
        half_put(file + 2, b->m);
        scales_k4_write(b, file + 4);
        if (type == FUL_TYPE_Q5_K)
            bits_write(b->codes, file + 16, 4);
        nibbles_write(b->codes, file + (type == FUL_TYPE_Q4_K ? 16 : 48), 256, 32);
        break;
    case FUL_TYPE_Q6_K:
        nibbles_write(b->codes, file, 256, 64);
        pairs_write(b->codes, file + 128, 4);
        memcpy(file + 192, b->scales, 16);
        half_put(file + 208, b->d);
        break;
    default:
        break;
    }
}
