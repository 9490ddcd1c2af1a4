/* Rows into blocks; the search for blocks of 32. */
#include <math.h>
#include <string.h>

#include "format/quant_block.h"
#include "format/quant_fit.h"
#include "format/tensors.h"

static const float ones[QUANT_MOST_ELEMENTS] = {
#define EIGHT 1, 1, 1, 1, 1, 1, 1, 1
#define SIXTY_FOUR EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT, EIGHT
    SIXTY_FOUR, SIXTY_FOUR, SIXTY_FOUR, SIXTY_FOUR};

/* As published: the scale from the largest, rounded only afterwards; halves away from 0. */
static void encode_q8_0(const float *x, quant_block *b)
{
    float most = 0;
    for (unsigned i = 0; i < 32; i++)
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
    const float d = most / 127, inv = d != 0 && !isinf(1 / d) ? 1 / d : 0;
    b->d = quant_half(d);
    for (unsigned i = 0; i < 32; i++) {
        float v = x[i] * inv, size = fabsf(v), whole = (float)(int)size;
        whole += size - whole >= 0.5f ? 1.0f : 0.0f;
        b->codes[i] = (uint8_t)(int8_t)(v < 0 ? -whole : whole);
    }
}

static float largest(const float *x)
{
    float most = x[0];
    for (unsigned i = 1; i < 32; i++)
        most = fabsf(x[i]) > fabsf(most) ? x[i] : most;
    return most;
}

/* The half next in size; subnormal ones lie far apart, so that the nearest need not be the best. */
static uint16_t half_next(uint16_t half, int step)
{
    const int size = (half & 0x7fff) + step;
    return size < 0 || size >= 0x7c00 ? half : (uint16_t)((half & 0x8000) | size);
}

/* q4_0, q5_0: the scale found, or where rounding to fp16 made it worse, the one that maps the
 * largest to the lowest code. */
static void search_plain(float lo, const float *x, const float *w, quant_block *b)
{
    const float hi = -lo - 1;
    const uint16_t found = quant_half_scale(quant_fit_scale(32, x, w, lo, hi));
    const uint16_t candidates[4] = {found, half_next(found, -1), half_next(found, 1),
                                    quant_half_scale(largest(x) / lo)};
    float best_error = INFINITY;
    for (unsigned i = 0; i < 4; i++) {
        float error =
            quant_line_error(32, x, w, (quant_line){half_to_float(candidates[i]), 0}, lo, hi);
        if (error < best_error) {
            best_error = error;
            b->d = candidates[i];
        }
    }
    quant_line_codes(32, x, (quant_line){half_to_float(b->d), 0}, lo, hi, (int)-lo, b->codes);
}

/* q4_1, q5_1 */
static void search_minimum(float top, const float *x, const float *w, quant_block *b)
{
    float low = x[0], high = x[0], best_error = INFINITY;
    for (unsigned i = 1; i < 32; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    quant_line best = {0, 0};
    quant_line candidates[3] = {quant_fit_line(32, x, w, top, 0), {(high - low) / top, low}};
    /* The scale again, for the minimum as it is after rounding. */
    candidates[2] = candidates[0];
    candidates[2].m = half_to_float(quant_half(candidates[0].m));
    quant_sums s = quant_line_sums(32, x, w, candidates[2], 0, top);
    if (s.qq > 0)
        candidates[2].d = (float)((s.xq - (double)candidates[2].m * s.q) / s.qq);
    for (unsigned i = 0; i < 3; i++) {
        uint16_t d = quant_half_scale(candidates[i].d), m = quant_half(candidates[i].m);
        quant_line line = {half_to_float(d), half_to_float(m)};
        float error = quant_line_error(32, x, w, line, 0, top);
        if (error < best_error) {
            best_error = error;
            best = line;
            b->d = d;
            b->m = m;
        }
    }
    quant_line_codes(32, x, best, 0, top, 0, b->codes);
}

/* ---- numbers from a table, in order ---- */

/* The nearest: the count of midpoints passed. */
static unsigned nearest(const float middles[15], float v)
{
    unsigned at = 0;
    for (unsigned i = 0; i < 15; i++)
        at += v > middles[i];
    return at;
}

static float table_gain(const float *x, const float *w, float inv, const float middles[15],
                        float *d)
{
    float xv = 0, vv = 0;
    for (unsigned i = 0; i < 32; i++) {
        float v = quant_iq4_nl_values[nearest(middles, x[i] * inv)];
        xv += w[i] * v * x[i];
        vv += w[i] * v * v;
    }
    *d = vv > 0 ? xv / vv : 0;
    return xv * *d;
}

static float table_error(const float *x, const float *w, float d, const float middles[15])
{
    float sum = 0;
    for (unsigned i = 0; i < 32; i++) {
        float e = x[i] - (d != 0 ? d * quant_iq4_nl_values[nearest(middles, x[i] / d)] : 0);
        sum += w[i] * e * e;
    }
    return sum;
}

static void search_iq4_nl(const float *x, const float *w, quant_block *b)
{
    enum { REFINEMENTS = 4 };
    float middles[15], best = 0, best_gain = -1, d = 0;
    for (unsigned i = 0; i < 15; i++)
        middles[i] = 0.5f * (float)(quant_iq4_nl_values[i] + quant_iq4_nl_values[i + 1]);
    const float most = largest(x);
    if (fabsf(most) >= 0x1p-60f) {
        for (int reach = -148; reach <= 148; reach += 4) {
            if (reach > -92 && reach < 88)
                continue;
            float gain = table_gain(x, w, (float)reach / most, middles, &d);
            if (gain > best_gain) {
                best_gain = gain;
                best = d;
            }
        }
        for (unsigned i = 0; i < REFINEMENTS && best != 0; i++) {
            float gain = table_gain(x, w, 1 / best, middles, &d);
            if (!(gain > best_gain))
                break;
            best_gain = gain;
            best = d;
        }
    }
    const uint16_t found = quant_half_scale(best);
    float best_error = INFINITY;
    /* Subnormal, the other sign may do better than the fit knows. */
    const unsigned candidates = (found & 0x7fffu) < 0x400 ? 6 : 3;
    for (unsigned i = 0; i < candidates; i++) {
        const uint16_t half = (uint16_t)(half_next(found, (int)(i % 3) - 1) ^ (i < 3 ? 0 : 0x8000));
        float error = table_error(x, w, half_to_float(half), middles);
        if (error < best_error) {
            best_error = error;
            b->d = half;
        }
    }
    d = half_to_float(b->d);
    for (unsigned i = 0; i < 32; i++)
        b->codes[i] = (uint8_t)(d != 0 ? nearest(middles, x[i] / d) : 8);
}

/* ---- scales that are powers of two ---- */

static unsigned nearest_mxfp4(float size)
{
    /* Ties to the smaller, as the published search finds it first. */
    static const float middles[7] = {0.5f, 1.5f, 2.5f, 3.5f, 5.0f, 7.0f, 10.0f};
    unsigned at = 0;
    for (unsigned i = 0; i < 7; i++)
        at += size > middles[i];
    return at;
}

static double mxfp4_error(const float *x, const float *w, float half_scale)
{
    double error = 0;
    for (unsigned i = 0; i < 32; i++) {
        double size = fabs((double)x[i]);
        unsigned code = nearest_mxfp4((float)(size / (double)half_scale));
        double e = size - (double)half_scale * quant_mxfp4_values[code];
        error += (double)w[i] * e * e;
    }
    return error;
}

static void search_mxfp4(const float *x, const float *w, quant_block *b)
{
    const float most = fabsf(largest(x));
    b->scales[0] = 0;
    memset(b->codes, 0, 32);
    if (!(most > 0))
        return;
    /* The largest lies in the last power of two of the codes, or next to it. */
    int exponent, best = 0;
    frexpf(most, &exponent);
    double best_error = INFINITY;
    for (int e = exponent - 1 - 2 + 127 - 1; e <= exponent - 1 - 2 + 127 + 1; e++) {
        int kept = e < 0 ? 0 : e > 254 ? 254 : e;
        double error = mxfp4_error(x, w, quant_mxfp4_half_scale((uint8_t)kept));
        if (error < best_error) {
            best_error = error;
            best = kept;
        }
    }
    b->scales[0] = (uint8_t)best;
    const double half_scale = (double)quant_mxfp4_half_scale((uint8_t)best);
    for (unsigned i = 0; i < 32; i++) {
        unsigned code = nearest_mxfp4((float)(fabs((double)x[i]) / half_scale));
        b->codes[i] = (uint8_t)(code | (code > 0 && x[i] < 0 ? 8u : 0u));
    }
}

void quant_search_32(ful_type type, const float *x, const float *w, quant_block *b)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
        encode_q8_0(x, b);
        break;
    case FUL_TYPE_Q4_0:
        search_plain(-8, x, w, b);
        break;
    case FUL_TYPE_Q5_0:
        search_plain(-16, x, w, b);
        break;
    case FUL_TYPE_Q4_1:
        search_minimum(15, x, w, b);
        break;
    case FUL_TYPE_Q5_1:
        search_minimum(31, x, w, b);
        break;
    case FUL_TYPE_IQ4_NL:
        search_iq4_nl(x, w, b);
        break;
    case FUL_TYPE_MXFP4:
        search_mxfp4(x, w, b);
        break;
    default:
        break;
    }
}

/* Columns of no importance in the sample still count a little, and the sum stays near the count, so
 * that no sum of the search overflows. */
static void weights_of(const float *importance, unsigned n, float *w)
{
    double sum = 0;
    for (unsigned i = 0; i < n; i++)
        sum += importance[i] > 0 && !isinf(importance[i]) ? (double)importance[i] : 0;
    if (!(sum > 0)) {
        memcpy(w, ones, n * sizeof *w);
        return;
    }
    const double mean = sum / n;
    for (unsigned i = 0; i < n; i++) {
        double own = importance[i] > 0 && !isinf(importance[i]) ? (double)importance[i] : 0;
        w[i] = (float)(own / mean + 1e-4);
    }
}

void quant_encode(ful_type type, const float *row, uint64_t cols, const float *importance,
                  void *file_row)
{
    const type_traits *t = type_get(type);
    const unsigned n = t->block_elements;
    uint8_t *to = file_row;
    float w[QUANT_MOST_ELEMENTS];
    quant_block b;
    for (uint64_t i = 0; i < cols; i += n, to += t->block_bytes) {
        const float *use = ones;
        memset(&b, 0, sizeof b);
        if (importance) {
            weights_of(importance + i, n, w);
            use = w;
        }
        if (n == 32)
            quant_search_32(type, row + i, use, &b);
        else
            quant_search_256(type, row + i, use, &b);
        quant_block_write(type, &b, to);
    }
}

float quant_largest(ful_type type)
{
    return type == FUL_TYPE_F32 || type == FUL_TYPE_MXFP4 ? 3.402823466e38f
           : type == FUL_TYPE_BF16                        ? 3.389531390e38f
                                                          : 65504.0f;
}

uint64_t quant_find_unfit(ful_type type, const float *row, uint64_t cols)
{
    const float most = quant_largest(type);
    for (uint64_t i = 0; i < cols; i++) {
        if (!(fabsf(row[i]) <= most))
            return i;
    }
    return cols;
}

void row_from_floats(ful_type type, const float *row, uint64_t cols, const float *importance,
                     void *file_row)
{
    uint8_t *to = file_row;
    uint16_t half;
    switch (type) {
    case FUL_TYPE_F32:
        memcpy(to, row, (size_t)cols * sizeof *row);
        break;
    case FUL_TYPE_F16:
        for (uint64_t i = 0; i < cols; i++) {
            half = float_to_half(row[i]);
            memcpy(to + 2 * i, &half, 2);
        }
        break;
    case FUL_TYPE_BF16:
        for (uint64_t i = 0; i < cols; i++) {
            half = float_to_bfloat(row[i]);
            memcpy(to + 2 * i, &half, 2);
        }
        break;
    default:
        quant_encode(type, row, cols, importance, file_row);
    }
}
