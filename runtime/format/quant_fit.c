#include "format/quant_fit.h"

#include <math.h>
#include <stdbool.h>

#include "format/tensors.h"

enum { LANES = 8, REFINEMENTS = 6 };

uint16_t quant_half(float f)
{
    const float most = 65504.0f;
    return float_to_half(f > most ? most : f < -most ? -most : f);
}

uint16_t quant_half_scale(float f)
{
    uint16_t half = quant_half(f);
    return (uint16_t)(f != 0 && (half & 0x7fffu) == 0 ? half | 1u : half);
}

static float lanes_sum(const float lanes[LANES])
{
    return ((lanes[0] + lanes[4]) + (lanes[1] + lanes[5])) +
           ((lanes[2] + lanes[6]) + (lanes[3] + lanes[7]));
}

static float inverse(float d)
{
    float inv = d != 0 ? 1.0f / d : 0;
    return isinf(inv) ? 0 : inv;
}

/* ---- one scale ---- */

/* What a scale of its own would take off the error, for the codes that 1 / inv gives. */
static float scale_gain(unsigned n, const float *x, const float *w, float inv, float lo, float hi,
                        float *d)
{
    float xq[LANES] = {0}, qq[LANES] = {0};
    for (unsigned i = 0; i < n; i += LANES) {
        for (unsigned j = 0; j < LANES; j++) {
            float q = quant_round(x[i + j] * inv, lo, hi), wq = w[i + j] * q;
            xq[j] += wq * x[i + j];
            qq[j] += wq * q;
        }
    }
    float sum_xq = lanes_sum(xq), sum_qq = lanes_sum(qq);
    if (!(sum_qq > 0))
        return -1;
    *d = sum_xq / sum_qq;
    return sum_xq * *d;
}

float quant_fit_scale(unsigned n, const float *x, const float *w, float lo, float hi)
{
    float most = 0;
    bool uneven = false;
    for (unsigned i = 0; i < n; i++) {
        most = fabsf(x[i]) > most ? fabsf(x[i]) : most;
        uneven |= w[i] != w[0];
    }
    if (!(most >= 0x1p-60f))
        return 0;
    /* From codes that leave room to codes that cut the largest off, in quarters of a code; far on,
     * in halves, where the largest may matter little. */
    const float first = -lo > 8 ? -lo - 2 : 0.75f * -lo, last = -lo > 8 ? -lo + 2 : 1.3f * -lo;
    const float far = !uneven ? last : -lo > 8 ? -lo + 10 : 2.2f * -lo;
    float best = 0, best_gain = -1;
    for (int sign = -1; sign <= 1; sign += 2) {
        for (float reach = first; reach <= far; reach += reach < last ? 0.25f : 0.5f) {
            float d = 0, gain = scale_gain(n, x, w, (float)sign * reach / most, lo, hi, &d);
            if (gain > best_gain) {
                best_gain = gain;
                best = d;
            }
        }
    }
    for (unsigned i = 0; i < REFINEMENTS && best != 0; i++) {
        float d = 0, gain = scale_gain(n, x, w, inverse(best), lo, hi, &d);
        if (!(gain > best_gain))
            break;
        best_gain = gain;
        best = d;
    }
    return best;
}

/* ---- a scale and a minimum ---- */

typedef struct line_sums {
    float w, x, xx; /* of y, which is x less `base` */
    float base;
} line_sums;

/* The best line for the codes that `from` gives, and its error less that of y itself. */
static float line_step(unsigned n, const float *y, const float *w, const line_sums *all, float top,
                       int at_most_0, quant_line from, quant_line *out)
{
    float sq[LANES] = {0}, sqq[LANES] = {0}, sxq[LANES] = {0};
    const float inv = inverse(from.d), shift = -from.m * inv;
    for (unsigned i = 0; i < n; i += LANES) {
        for (unsigned j = 0; j < LANES; j++) {
            float q = quant_round(y[i + j] * inv + shift, 0, top), wq = w[i + j] * q;
            sq[j] += wq;
            sqq[j] += wq * q;
            sxq[j] += wq * y[i + j];
        }
    }
    const float q = lanes_sum(sq), qq = lanes_sum(sqq), xq = lanes_sum(sxq);
    const float det = all->w * qq - q * q;
    float d = 0, m = all->x / all->w;
    if (det > 1e-6f * all->w * qq) {
        d = (all->w * xq - all->x * q) / det;
        m = (all->x - d * q) / all->w;
    }
    if (at_most_0 && m + all->base > 0) {
        m = -all->base;
        d = qq > 0 ? (xq - m * q) / qq : 0;
    }
    if (d < 0)
        return INFINITY;
    out->d = d;
    out->m = m;
    return d * (d * qq - 2 * xq + 2 * m * q) + m * (m * all->w - 2 * all->x);
}

quant_line quant_fit_line(unsigned n, const float *x, const float *w, float top, int at_most_0)
{
    float low = x[0], high = x[0], y[32];
    for (unsigned i = 1; i < n; i++) {
        low = x[i] < low ? x[i] : low;
        high = x[i] > high ? x[i] : high;
    }
    if (at_most_0 && low > 0)
        low = 0;
    const float range = high - low;
    if (!(range >= 0x1p-60f))
        return (quant_line){0, at_most_0 && low > 0 ? 0 : low};
    line_sums all = {0, 0, 0, low};
    for (unsigned i = 0; i < n; i++) {
        y[i] = x[i] - low;
        all.w += w[i];
        all.x += w[i] * y[i];
    }
    /* Both ends move inwards and outwards by quarters of a code. */
    const float code = range / top;
    quant_line best = {code, 0}, line = best;
    float best_error = INFINITY;
    const int inwards = top > 8 ? 4 : 3;
    for (int a = -2; a <= inwards; a++) {
        for (int b = -2; b <= inwards; b++) {
            float from = 0.25f * (float)a * code, to = range - 0.25f * (float)b * code;
            quant_line start = {(to - from) / top, from};
            float error = line_step(n, y, w, &all, top, at_most_0, start, &line);
            if (error < best_error) {
                best_error = error;
                best = line;
            }
        }
    }
    for (unsigned i = 0; i < REFINEMENTS && best.d > 0; i++) {
        float error = line_step(n, y, w, &all, top, at_most_0, best, &line);
        if (!(error < best_error))
            break;
        best_error = error;
        best = line;
    }
    return (quant_line){best.d, best.m + low};
}

/* ---- a line that is given ---- */

float quant_line_error(unsigned n, const float *x, const float *w, quant_line line, float lo,
                       float hi)
{
    float sum[LANES] = {0};
    const float inv = inverse(line.d);
    for (unsigned i = 0; i < n; i += LANES) {
        for (unsigned j = 0; j < LANES; j++) {
            float y = x[i + j] - line.m;
            float e = y - line.d * quant_round(y * inv, lo, hi);
            sum[j] += w[i + j] * e * e;
        }
    }
    return lanes_sum(sum);
}

quant_sums quant_line_sums(unsigned n, const float *x, const float *w, quant_line line, float lo,
                           float hi)
{
    float sw[LANES] = {0}, sq[LANES] = {0}, sqq[LANES] = {0}, sx[LANES] = {0}, sxq[LANES] = {0};
    const float inv = inverse(line.d);
    for (unsigned i = 0; i < n; i += LANES) {
        for (unsigned j = 0; j < LANES; j++) {
            float q = quant_round((x[i + j] - line.m) * inv, lo, hi), wq = w[i + j] * q;
            sw[j] += w[i + j];
            sq[j] += wq;
            sqq[j] += wq * q;
            sx[j] += w[i + j] * x[i + j];
            sxq[j] += wq * x[i + j];
        }
    }
    return (quant_sums){(double)lanes_sum(sw), (double)lanes_sum(sq), (double)lanes_sum(sqq),
                        (double)lanes_sum(sx), (double)lanes_sum(sxq)};
}

void quant_line_codes(unsigned n, const float *x, quant_line line, float lo, float hi, int zero,
                      uint8_t *codes)
{
    const float inv = inverse(line.d);
    for (unsigned i = 0; i < n; i++)
        codes[i] = (uint8_t)((int)quant_round((x[i] - line.m) * inv, lo, hi) + zero);
}
