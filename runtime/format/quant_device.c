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

static void put_nibbles(const uint8_t *codes, unsigned count, uint8_t *plane)
{
    for (unsigned i = 0; i < count; i += 8)
        word_put(plane + i / 2, nibbles_of(eight_get(codes + i)));
}

static void get_nibbles(const uint8_t *plane, unsigned count, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 2);
        eight_or(codes + i, nibbles_spread(w & 0xffff) | nibbles_spread(w >> 16) << 8);
    }
}

/* Of the codes' bits from `at` on. */
static void put_pairs(const uint8_t *codes, unsigned count, unsigned at, uint8_t *plane)
{
    for (unsigned i = 0; i < count; i += 16)
        word_put(plane + i / 4, pairs_of(eight_get(codes + i) >> at) |
                                    pairs_of(eight_get(codes + i + 8) >> at) << 8);
}

static void get_pairs(const uint8_t *plane, unsigned count, unsigned at, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 16 * 4) >> (i % 16);
        eight_or(codes + i, (pairs_spread(w & 255) | pairs_spread(w >> 16 & 255) << 8) << at);
    }
}

static void put_bits(const uint8_t *codes, unsigned count, unsigned at, uint8_t *plane)
{
    for (unsigned i = 0; i < count; i += 32) {
        uint32_t w = 0;
        for (unsigned k = 0; k < 4; k++)
            w |= bits_of(eight_get(codes + i + 8 * k) >> at) << 4 * k;
        word_put(plane + i / 8, w);
    }
}

static void get_bits(const uint8_t *plane, unsigned count, unsigned at, uint8_t *codes)
{
    for (unsigned i = 0; i < count; i += 8) {
        uint32_t w = word_get(plane + i / 32 * 4) >> (i % 32 / 2);
        eight_or(codes + i, (bits_spread(w & 15) | bits_spread(w >> 16 & 15) << 8) << at);
    }
}

static void put_scales(ful_type type, const quant_block *b, uint8_t *plane, uint64_t index)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_Q5_0:
    case FUL_TYPE_IQ4_NL:
        memcpy(plane + 2 * index, &b->d, 2);
        break;
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        word_put(plane + 4 * index, b->d | (uint32_t)b->m << 16);
        break;
    case FUL_TYPE_MXFP4:
        plane[index] = b->scales[0];
        break;
    case FUL_TYPE_Q2_K:
        plane += 20 * index;
        word_put(plane, b->d | (uint32_t)b->m << 16);
        for (unsigned i = 0; i < 16; i++)
            plane[4 + i] = (uint8_t)(b->scales[i] | b->mins[i] << 4);
        break;
    case FUL_TYPE_Q3_K: {
        uint32_t low[2] = {0, 0}, high = 0;
        for (unsigned i = 0; i < 16; i++) {
            low[i / 8] |= (b->scales[i] & 15u) << 4 * (i % 8);
            high |= (b->scales[i] >> 4 & 3u) << 2 * i;
        }
        plane += 16 * index;
        word_put(plane, b->d);
        word_put(plane + 4, low[0]);
        word_put(plane + 8, low[1]);
        word_put(plane + 12, high);
        break;
    }
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K: {
        uint32_t scales = 0, mins = 0, high = 0;
        for (unsigned i = 0; i < 8; i++) {
            scales |= (b->scales[i] & 15u) << 4 * i;
            mins |= (b->mins[i] & 15u) << 4 * i;
            high |= (b->scales[i] >> 4 & 3u) << 2 * i | (b->mins[i] >> 4 & 3u) << (16 + 2 * i);
        }
        plane += 16 * index;
        word_put(plane, b->d | (uint32_t)b->m << 16);
        word_put(plane + 4, scales);
        word_put(plane + 8, mins);
        word_put(plane + 12, high);
        break;
    }
    case FUL_TYPE_Q6_K:
        plane += 20 * index;
        word_put(plane, b->d);
        memcpy(plane + 4, b->scales, 16);
        break;
    default:
        break;
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

void quant_block_write_device(ful_type type, const quant_block *b, uint8_t *row,
                              const type_planes *planes, uint64_t index)
{
    const unsigned count = type_get(type)->block_elements;
    unsigned low, high;
    code_bits(type, &low, &high);
    uint8_t *at = row + index * count * low / 8;
    if (low == 8)
        memcpy(at, b->codes, count);
    else if (low == 4)
        put_nibbles(b->codes, count, at);
    else
        put_pairs(b->codes, count, 0, at);
    at = row + planes->high + index * count * high / 8;
    if (high == 1)
        put_bits(b->codes, count, low, at);
    else if (high == 2)
        put_pairs(b->codes, count, low, at);
    put_scales(type, b, row + planes->scales, index);
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

void quant_to_device(ful_type type, const void *file_row, uint64_t cols, void *device_row)
{
    const type_traits *t = type_get(type);
    const type_planes planes = type_device_planes(type, cols);
    const uint8_t *from = file_row;
    quant_block b;
    for (uint64_t i = 0; i < cols / t->block_elements; i++) {
        quant_block_read(type, from + i * t->block_bytes, &b);
        quant_block_write_device(type, &b, device_row, &planes, i);
    }
    padding_clear(type, cols, &planes, device_row);
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
