/* Scales and minima of least weighted squared error for a few elements: what the search of every
 * type is built from. Sums run in eight lanes, so that compilers keep them in vectors; n is a
 * multiple of eight. */
#ifndef FULGUR_FORMAT_QUANT_FIT_H
#define FULGUR_FORMAT_QUANT_FIT_H

#include <stdint.h>

/* x is about d * code + m. */
typedef struct quant_line {
    float d, m;
} quant_line;

typedef struct quant_sums {
    double w, q, qq, x, xq; /* sums of w, w q, w q q, w x, w x q */
} quant_sums;

/* To the nearest whole number, ties to even, within lo and hi. */
static inline float quant_round(float v, float lo, float hi)
{
    v = v > lo ? v : lo;
    v = v < hi ? v : hi;
    return (v + 12582912.0f) - 12582912.0f;
}

/* The scale for whole codes from lo (below 0) to hi; 0 where all elements are. */
float quant_fit_scale(unsigned n, const float *x, const float *w, float lo, float hi);
/* Scale (not below 0) and minimum for codes from 0 to `top`; at_most_0: of the minimum. */
quant_line quant_fit_line(unsigned n, const float *x, const float *w, float top, int at_most_0);

/* The weighted error of the nearest codes from lo to hi. */
float quant_line_error(unsigned n, const float *x, const float *w, quant_line line, float lo,
                       float hi);
quant_sums quant_line_sums(unsigned n, const float *x, const float *w, quant_line line, float lo,
                           float hi);
/* The nearest codes, plus `zero`. */
void quant_line_codes(unsigned n, const float *x, quant_line line, float lo, float hi, int zero,
                      uint8_t *codes);

/* fp16 nearest to f, never infinite. */
uint16_t quant_half(float f);
/* The same, and not 0 where f is not: codes of a scale too large are better than none. */
uint16_t quant_half_scale(float f);

#endif
