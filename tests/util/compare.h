/* Error measures of the tests. A NaN or an infinity anywhere gives INFINITY, never a pass. */
#ifndef TESTS_UTIL_COMPARE_H
#define TESTS_UTIL_COMPARE_H

#include <stddef.h>

/* max|a - b| / max|b| over n elements, b being the reference. If b is all zero: 0 where a is too,
 * else INFINITY. n = 0 gives INFINITY: comparing nothing is a broken test. */
double max_rel_error(const double *a, const double *b, size_t n);
double max_rel_error_f32(const float *a, const double *b, size_t n);
double max_rel_error_ff(const float *a, const float *b, size_t n);

/* sum (a - b)^2 / sum b^2, with the same conventions. */
double nmse(const double *a, const double *b, size_t n);
double nmse_f32(const float *a, const double *b, size_t n);

/* max|a - b|, INFINITY if anything is not finite or n = 0. */
double max_abs_error(const double *a, const double *b, size_t n);
double max_abs_error_f32(const float *a, const double *b, size_t n);

/* Index of the largest element, the lowest one among equals; NaNs are never chosen. n >= 1. */
size_t argmax(const double *a, size_t n);
size_t argmax_f32(const float *a, size_t n);

#endif
