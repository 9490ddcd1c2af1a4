/* Blocks as devices lay them out, eight codes at a time: a word of 64 bits holds one in each byte.
 */
#include <string.h>

#include "format/quant_block.h"

static uint64_t eight_get(const uint8_t *codes)
{
    uint64_t x;
    memcpy(&x, codes, sizeof x);
    return x;
}

static void eight_or(uint8_t *codes, uint64_t more)
{
    uint64_t x;
    memcpy(&x, codes, sizeof x);
    x |= more;
    memcpy(codes, &x, sizeof x);
}

static uint32_t word_get(const uint8_t *at)
{
    uint32_t w;
    memcpy(&w, at, sizeof w);
    return w;
}

static void word_put(uint8_t *at, uint32_t w)
{
    memcpy(at, &w, sizeof w);
}

/* Products gather: the four digits of a factor, 16 bits apart, meet side by side from bit 48 on,
 * and no two of the other partial products overlap. */
static uint32_t nibbles_of(uint64_t eight)
{
    const uint64_t mask = 0x000f000f000f000fu, gather = 0x0001001001001000u;
    uint32_t even = (uint32_t)(((eight & mask) * gather) >> 48);
    uint32_t odd = (uint32_t)(((eight >> 8 & mask) * gather) >> 48);
    return even | odd << 16;
}

static uint64_t nibbles_spread(uint32_t half)
{
    uint64_t x = (half | (uint64_t)half << 24) & 0x000000ff000000ffu;
    return (x | x << 12) & 0x000f000f000f000fu;
}

static uint32_t pairs_of(uint64_t eight)
{
    const uint64_t mask = 0x0003000300030003u, gather = 0x0001000400100040u;
    uint32_t even = (uint32_t)(((eight & mask) * gather) >> 48) & 255;
    uint32_t odd = (uint32_t)(((eight >> 8 & mask) * gather) >> 48) & 255;
    return even | odd << 16;
}

static uint64_t pairs_spread(uint32_t byte)
{
    uint64_t x = (byte | (uint64_t)byte << 28) & 0x0000000f0000000fu;
    return (x | x << 14) & 0x0003000300030003u;
}

static uint32_t bits_of(uint64_t eight)
{
    const uint64_t mask = 0x0001000100010001u, gather = 0x0001000200040008u;
    uint32_t even = (uint32_t)(((eight & mask) * gather) >> 48) & 15;
    uint32_t odd = (uint32_t)(((eight >> 8 & mask) * gather) >> 48) & 15;
    return even | odd << 16;
}

static uint64_t bits_spread(uint32_t nibble)
{
    uint64_t x = (nibble | (uint64_t)nibble << 30) & 0x0000000300000003u;
    return (x | x << 15) & 0x0001000100010001u;
}

static void get_nibbles(const uint8_t *plane, unsigned count, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 2);
        eight_or(codes + i, nibbles_spread(w & 0xffff) | nibbles_spread(w >> 16) << 8);
    }
}

/* Into the codes' bits from `at` on. */
static void get_pairs(const uint8_t *plane, unsigned count, unsigned at, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 16 * 4) >> (i % 16);
        eight_or(codes + i, (pairs_spread(w & 255) | pairs_spread(w >> 16 & 255) << 8) << at);
    }
}

static void get_bits(const uint8_t *plane, unsigned count, unsigned at, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 32 * 4) >> (i % 32 / 2);
        eight_or(codes + i, (bits_spread(w & 15) | bits_spread(w >> 16 & 15) << 8) << at);
    }
}

static void get_scales(ful_type type, const uint8_t *plane, uint64_t index, quant_block *b)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_Q5_0:
    case FUL_TYPE_IQ4_NL:
        memcpy(&b->d, plane + 2 * index, 2);
        break;
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        b->d = (uint16_t)word_get(plane + 4 * index);
        b->m = (uint16_t)(word_get(plane + 4 * index) >> 16);
        break;
    case FUL_TYPE_MXFP4:
        b->scales[0] = plane[index];
        break;
    case FUL_TYPE_Q2_K:
        plane += 20 * index;
        b->d = (uint16_t)word_get(plane);
        b->m = (uint16_t)(word_get(plane) >> 16);
        for (unsigned i = 0; i < 16; i++) {
            b->scales[i] = plane[4 + i] & 15;
            b->mins[i] = plane[4 + i] >> 4;
        }
        break;
    case FUL_TYPE_Q3_K:
        plane += 16 * index;
        b->d = (uint16_t)word_get(plane);
        for (unsigned i = 0; i < 16; i++) {
            uint32_t low = word_get(plane + 4 + 4 * (i / 8)) >> 4 * (i % 8) & 15;
            b->scales[i] = (uint8_t)(low | (word_get(plane + 12) >> 2 * i & 3) << 4);
        }
        break;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        plane += 16 * index;
        b->d = (uint16_t)word_get(plane);
        b->m = (uint16_t)(word_get(plane) >> 16);
        for (unsigned i = 0; i < 8; i++) {
            uint32_t high = word_get(plane + 12) >> 2 * i;
            b->scales[i] = (uint8_t)((word_get(plane + 4) >> 4 * i & 15) | (high & 3) << 4);
            b->mins[i] = (uint8_t)((word_get(plane + 8) >> 4 * i & 15) | (high >> 16 & 3) << 4);
        }
        break;
    case FUL_TYPE_Q6_K:
        plane += 20 * index;
        b->d = (uint16_t)word_get(plane);
        memcpy(b->scales, plane + 4, 16);
        break;
    default:
        break;
    }
}

/* Bits of a code in the planes of low and high bits. */
static void code_bits(ful_type type, unsigned *low, unsigned *high)
{
    const type_traits *t = type_get(type);
    *low = t->low / 32u;
    *high = t->high / 32u;
}

void quant_block_read_device(ful_type type, const uint8_t *row, const type_planes *planes,
                             uint64_t index, quant_block *b)
{
    const unsigned count = type_get(type)->block_elements;
    unsigned low, high;
    code_bits(type, &low, &high);
    const uint8_t *at = row + index * count * low / 8;
    memset(b->codes, 0, count);
    if (low == 8)
        memcpy(b->codes, at, count);
    else if (low == 4)
        get_nibbles(at, count, b->codes);
    else
        get_pairs(at, count, 0, b->codes);
    at = row + planes->high + index * count * high / 8;
    if (high == 1)
        get_bits(at, count, low, b->codes);
    else if (high == 2)
        get_pairs(at, count, low, b->codes);
    get_scales(type, row + planes->scales, index, b);
}

static void padding_clear(ful_type type, uint64_t cols, const type_planes *planes, uint8_t *row)
{
    const type_traits *t = type_get(type);
    uint64_t low = cols / 32 * t->low / 8, high = planes->high + cols / 32 * t->high / 8;
    uint64_t scales = planes->scales + cols / 32 * t->scales / 8;
    memset(row + low, 0, (size_t)(planes->high - low));
    memset(row + high, 0, (size_t)(planes->scales - high));
    memset(row + scales, 0, (size_t)(planes->bytes - scales));
}

/* ---- from files, straight into the planes: loading waits for this ---- */

/* A span's bytes hold its elements in the low four bits and those of the next span in the high. */
static uint8_t *nibbles_move(const uint8_t *file, unsigned bytes, unsigned span, uint8_t *plane)
{
    for (unsigned base = 0; base < bytes; base += span) {
        for (unsigned shift = 0; shift < 8; shift += 4) {
            for (unsigned i = 0; i < span; i += 8, plane += 4)
                word_put(plane, nibbles_of(eight_get(file + base + i) >> shift));
        }
    }
    return plane;
}

static void pairs_move(const uint8_t *file, uint8_t *plane)
{
    for (unsigned base = 0; base < 64; base += 32) {
        for (unsigned shift = 0; shift < 8; shift += 2) {
            for (unsigned i = 0; i < 32; i += 16, plane += 4)
                word_put(plane, pairs_of(eight_get(file + base + i) >> shift) |
                                    pairs_of(eight_get(file + base + i + 8) >> shift) << 8);
        }
    }
}

static void bits_move(const uint8_t *file, uint8_t *plane)
{
    for (unsigned shift = 0; shift < 8; shift++, plane += 4) {
        uint32_t w = 0;
        for (unsigned k = 0; k < 4; k++)
            w |= bits_of(eight_get(file + 8 * k) >> shift) << 4 * k;
        word_put(plane, w);
    }
}

/* Even bits into the low half, odd ones into the high. */
static uint32_t halves_of(uint32_t w)
{
    uint32_t t = (w ^ w >> 1) & 0x22222222u;
    w ^= t ^ t << 1;
    t = (w ^ w >> 2) & 0x0c0c0c0cu;
    w ^= t ^ t << 2;
    t = (w ^ w >> 4) & 0x00f000f0u;
    w ^= t ^ t << 4;
    t = (w ^ w >> 8) & 0x0000ff00u;
    return w ^ t ^ t << 8;
}

/* The low four, or two, bits of four bytes side by side. */
static uint32_t four_nibbles(uint32_t w)
{
    w &= 0x0f0f0f0fu;
    w = (w | w >> 4) & 0x00ff00ffu;
    return (w | w >> 8) & 0xffff;
}

static uint32_t four_pairs(uint32_t w)
{
    return (uint32_t)(((w & 0x03030303u) * UINT64_C(0x01041040)) >> 24) & 0xff;
}

static void scales_k4_move(const uint8_t *file, uint8_t *plane)
{
    const uint32_t scales = word_get(file), mins = word_get(file + 4), last = word_get(file + 8);
    word_put(plane, four_nibbles(scales) | four_nibbles(last) << 16);
    word_put(plane + 4, four_nibbles(mins) | four_nibbles(last >> 4) << 16);
    word_put(plane + 8, four_pairs(scales >> 4) | four_pairs(scales >> 6) << 8 |
                            four_pairs(mins >> 4) << 16 | four_pairs(mins >> 6) << 24);
}

static void scales_k3_move(const uint8_t *file, uint8_t *plane)
{
    const uint32_t a = word_get(file), b = word_get(file + 4), high = word_get(file + 8);
    word_put(plane, four_nibbles(a) | four_nibbles(b) << 16);
    word_put(plane + 4, four_nibbles(a >> 4) | four_nibbles(b >> 4) << 16);
    word_put(plane + 8, four_pairs(high) | four_pairs(high >> 2) << 8 |
                            four_pairs(high >> 4) << 16 | four_pairs(high >> 6) << 24);
}

static uint32_t half_get(const uint8_t *file)
{
    return file[0] | (uint32_t)file[1] << 8;
}

typedef struct planes_at {
    uint8_t *low, *high, *scales;
} planes_at;

/* Blocks of 32 with codes of four bits, or five: scales, fifth bits, the rest. Inlined, so that the
 * sizes are constants. */
static inline void row_of_32(const uint8_t *file, uint64_t blocks, unsigned scale_bytes,
                             unsigned high_bytes, planes_at to)
{
    const unsigned bytes = scale_bytes + high_bytes + 16;
    for (uint64_t i = 0; i < blocks; i++, file += bytes, to.scales += scale_bytes) {
        memcpy(to.scales, file, scale_bytes);
        if (high_bytes) {
            word_put(to.high, halves_of(word_get(file + scale_bytes)));
            to.high += 4;
        }
        to.low = nibbles_move(file + scale_bytes + high_bytes, 16, 16, to.low);
    }
}

static void row_q8_0(const uint8_t *file, uint64_t blocks, planes_at to)
{
    for (uint64_t i = 0; i < blocks; i++, file += 34, to.low += 32, to.scales += 2) {
        memcpy(to.scales, file, 2);
        memcpy(to.low, file + 2, 32);
    }
}

static void row_of_256(ful_type type, const uint8_t *file, uint64_t blocks, planes_at to)
{
    const type_traits *t = type_get(type);
    for (uint64_t i = 0; i < blocks; i++) {
        switch (type) {
        case FUL_TYPE_Q2_K:
            memcpy(to.scales, file + 80, 4);
            memcpy(to.scales + 4, file, 16);
            pairs_move(file + 16, to.low);
            break;
        case FUL_TYPE_Q3_K:
            word_put(to.scales, half_get(file + 108));
            scales_k3_move(file + 96, to.scales + 4);
            pairs_move(file + 32, to.low);
            bits_move(file, to.high);
            break;
        case FUL_TYPE_Q6_K:
            word_put(to.scales, half_get(file + 208));
            memcpy(to.scales + 4, file + 192, 16);
            nibbles_move(file, 128, 64, to.low);
            pairs_move(file + 128, to.high);
            break;
        default: /* q4_k, q5_k */
            memcpy(to.scales, file, 4);
            scales_k4_move(file + 4, to.scales + 4);
            nibbles_move(file + t->block_bytes - 128, 128, 32, to.low);
            if (t->high)
                bits_move(file + 16, to.high);
        }
        file += t->block_bytes;
        to.low += t->low;
        to.high += t->high;
        to.scales += t->scales;
    }
}

void quant_to_device(ful_type type, const void *file_row, uint64_t cols, void *device_row)
{
    const type_planes planes = type_device_planes(type, cols);
    uint8_t *row = device_row;
    const planes_at to = {row, row + planes.high, row + planes.scales};
    const uint64_t blocks = cols / type_get(type)->block_elements;
    switch (type) {
    case FUL_TYPE_Q8_0:
        row_q8_0(file_row, blocks, to);
        break;
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_IQ4_NL:
        row_of_32(file_row, blocks, 2, 0, to);
        break;
    case FUL_TYPE_Q4_1:
        row_of_32(file_row, blocks, 4, 0, to);
        break;
    case FUL_TYPE_Q5_0:
        row_of_32(file_row, blocks, 2, 4, to);
        break;
    case FUL_TYPE_Q5_1:
        row_of_32(file_row, blocks, 4, 4, to);
        break;
    case FUL_TYPE_MXFP4:
        row_of_32(file_row, blocks, 1, 0, to);
        break;
    default:
        row_of_256(type, file_row, blocks, to);
    }
    padding_clear(type, cols, &planes, row);
}

void quant_from_device(ful_type type, const void *device_row, uint64_t cols, void *file_row)
{
    const type_traits *t = type_get(type);
    const type_planes planes = type_device_planes(type, cols);
    uint8_t *to = file_row;
    quant_block b;
    for (uint64_t i = 0; i < cols / t->block_elements; i++) {
        quant_block_read_device(type, device_row, &planes, i, &b);
        quant_block_write(type, &b, to + i * t->block_bytes);
    }
}
