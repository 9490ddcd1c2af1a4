/* Rows of blocks: decoding, encoding, and the planes that devices read (base/types.h).
 *
 * `cols` is a multiple of the type's block in every call; rows of files and of devices may lie at
 * any address. Nothing here allocates. */
#ifndef FULGUR_FORMAT_QUANT_H
#define FULGUR_FORMAT_QUANT_H

#include "base/types.h"

/* Exact but for the rounding of a minimum's subtraction. A scale that is no number gives rows of
 * NaN or infinity, as the formats say. */
void quant_decode(ful_type type, const void *file_row, uint64_t cols, float *out);
void quant_decode_device(ful_type type, const void *device_row, uint64_t cols, float *out);

/* No element of a row of blocks is larger: by its scales alone, without looking at codes, which
 * leaves it above the largest one by up to a few times. Not finite if a scale is not. */
float quant_row_bound(ful_type type, const void *file_row, uint64_t cols);

/* Between a file's row and a device's, of type_device_row_bytes; the padding of planes becomes
 * zero. Codes are those of the file: q4_0 stands for code - 8, q5_0 for code - 16, q3_k for code -
 * 4 (scales less 32), q6_k for code - 32. */
void quant_to_device(ful_type type, const void *file_row, uint64_t cols, void *device_row);
void quant_from_device(ful_type type, const void *device_row, uint64_t cols, void *file_row);

/* The row's blocks with the least sum of squared errors that a search finds, each error weighted by
 * its column's importance; NULL: all alike. q8_0 has no search: its bits are the published ones.
 * Values must be finite; what passes the largest fp16 scale is cut off. */
void quant_encode(ful_type type, const float *row, uint64_t cols, const float *importance,
                  void *file_row);

/* The largest value that `type` is given: 65504 where scales are fp16. */
float quant_largest(ful_type type);
/* The first element of `row` that the type can't hold (not finite, or beyond the largest), or cols.
 */
uint64_t quant_find_unfit(ful_type type, const float *row, uint64_t cols);

/* ---- of any type: floats, too ---- */

void row_to_floats(ful_type type, const void *file_row, uint64_t cols, float *out);
/* The power of two that brings a row into fp16's normal range when multiplied: 1 unless its largest
 * finite magnitude is 2^15 or more, or below 2^-8 (small neighbours would become subnormal); of
 * blocks, the bound on it, if that is within these limits. */
float row_half_scale(ful_type type, const void *file_row, uint64_t cols);
void row_from_floats(ful_type type, const float *row, uint64_t cols, const float *importance,
                     void *file_row);

#endif
