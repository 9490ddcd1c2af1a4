/* What element types are made of, in files and on the device. */
#ifndef FULGUR_BASE_TYPES_H
#define FULGUR_BASE_TYPES_H

#include "base/status.h"

enum { TYPE_COUNT = FUL_TYPE_MXFP4 + 1 };

typedef struct type_traits {
    const char *name;
    uint32_t block_elements; /* 1 for floats */
    uint32_t block_bytes;    /* in files */
    /* On the device, a row of blocks is three planes that each begin at a multiple of 16 bytes, so
     * that words can be read of any type: low bits, high bits, scales. Bytes for every 256
     * elements.
     *
     * low, 8 bits:  signed bytes in order.
     * low, 4 bits:  eight elements a word; element e at bit 4 (e / 2) + 16 (e % 2), so that one
     * mask takes two neighbours into the halves of a word. 2 bits:       (low of q2_k and q3_k,
     * high of q6_k) sixteen elements a word; element e at bit 2 (e / 2) + 16 (e % 2). high, 1 bit:
     * 32 elements a word; element e at bit e / 2 + 16 (e % 2). scales:       q8_0, q4_0, q5_0,
     * iq4_nl: fp16 d for 32 elements. q4_1, q5_1: a word d | m << 16. mxfp4: a byte, its exponent
     * of two plus 127. Of 256 elements, in words: q4_k, q5_k: d | dmin << 16; low 4 bits of eight
     * scales, scale i at bit 4 i; the same of eight minima; high 2 bits, of scale i at bit 2 i, of
     * minimum i at bit 16 + 2 i. q2_k: d | dmin << 16; sixteen bytes, scale in the low 4 bits,
     * minimum in the high 4. q3_k: d; low 4 bits of sixteen scales in two words, scale i at bit 4
     * (i % 8); high 2 bits of scale i at bit 2 i. q6_k: d; sixteen signed bytes. */
    uint16_t low, high, scales;
} type_traits;

/* NULL for values that are no type. */
const type_traits *type_get(ful_type type);
bool type_is_blocks(ful_type type);
/* Bytes of an element; 0 for unknown types and types of blocks. */
size_t type_bytes(ful_type type);
/* Bytes of a row of `cols` elements in a file; 0 for unknown types and where `cols` is not a
 * multiple of the block (or 0). */
uint64_t type_row_bytes(ful_type type, uint64_t cols);
/* The same on the device, where rows and planes begin at multiples of 16 bytes. */
uint64_t type_device_row_bytes(ful_type type, uint64_t cols);

typedef struct type_planes {
    uint64_t high, scales, bytes; /* offsets in bytes (low: 0), and of the next row */
} type_planes;
type_planes type_device_planes(ful_type type, uint64_t cols);

#endif
