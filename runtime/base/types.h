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
     * that words can be read of any type: low bits, high bits, scales. Here: bytes of a plane for
     * every 256 elements.
     *
     * Codes, bits in each plane (element e of those in a word begins at the bit that is named, so
     * that one mask takes two neighbours into the halves of a word):
     *  - 8 (low of q8_0): signed bytes in order;
     *  - 4 (low): eight elements a word, at bit 4 (e / 2) + 16 (e % 2);
     *  - 2 (low of q2_k and q3_k, high of q6_k): sixteen a word, at bit 2 (e / 2) + 16 (e % 2);
     *  - 1 (high): 32 a word, at bit e / 2 + 16 (e % 2).
     *
     * Scales of 32 elements:
     *  - q8_0, q4_0, q5_0, iq4_nl: fp16 d;
     *  - q4_1, q5_1: a word d | m << 16;
     *  - mxfp4: a byte, its exponent of two plus 127.
     *
     * Scales of 256 elements, in words:
     *  - q4_k, q5_k: d | dmin << 16; the low 4 bits of eight scales, scale i at bit 4 i; those of
     *    eight minima; the high 2 bits, of scale i at bit 2 i, of minimum i at bit 16 + 2 i;
     *  - q2_k: d | dmin << 16; sixteen bytes, a scale in the low 4 bits, its minimum in the high 4;
     *  - q3_k: d; the low 4 bits of sixteen scales in two words, scale i at bit 4 (i % 8); their
     *    high 2 bits, of scale i at bit 2 i;
     *  - q6_k: d; sixteen signed bytes. */
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
