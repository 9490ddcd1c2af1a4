/* The search for blocks of 256, whose sub-blocks' scales are small whole numbers times one of the
 * block: every sub-block is fitted alone; its numbers are rounded, with their neighbours tried;
 * then the block's scales are fitted to what was chosen, as long as the error falls. */
#include <math.h>
#include <string.h>

#include "format/quant_block.h"
#include "format/quant_fit.h"
#include "format/tensors.h"

enum { ROUNDS = 3, TRIES = 8 };

static int within(float v, int lo, int hi)
{
    return (int)quant_round(v, (float)lo, (float)hi);
}

/* ---- q2_k, q4_k, q5_k ---- */

typedef struct lines_shape {
    unsigned span; /* elements of a sub-block */
    float top;     /* largest code */
    int most;      /* largest scale and minimum */
} lines_shape;

typedef struct lines_state {
    uint16_t d, m;
    uint8_t scales[16], mins[16];
    float error;
} lines_state;

static quant_line line_of(const lines_state *s, unsigned i)
{
    return (quant_line){half_to_float(s->d) * (float)s->scales[i],
                        -(half_to_float(s->m) * (float)s->mins[i])};
}

/* Chooses scales and minima for the block's s->d and s->m. */
static void lines_choose(const lines_shape *shape, const float *x, const float *w,
                         const quant_line *fits, lines_state *s)
{
    const unsigned n = shape->span;
    const float d = half_to_float(s->d), m = half_to_float(s->m);
    s->error = 0;
    for (unsigned i = 0; i < 256 / n; i++) {
        const int scale = d > 0 ? within(fits[i].d / d, 0, shape->most) : 0;
        const int min = m > 0 ? within(-fits[i].m / m, 0, shape->most) : 0;
        float best = INFINITY;
        for (int a = scale > 0 ? scale - 1 : 0; a <= scale + 1 && a <= shape->most; a++) {
            for (int b = min > 0 ? min - 1 : 0; b <= min + 1 && b <= shape->most; b++) {
                quant_line line = {d * (float)a, -(m * (float)b)};
                float error = quant_line_error(n, x + i * n, w + i * n, line, 0, shape->top);
                if (error < best) {
                    best = error;
                    s->scales[i] = (uint8_t)a;
                    s->mins[i] = (uint8_t)b;
                }
            }
        }
        /* Without a scale, the minimum is the mean. */
        if (scale <= 1 && m > 0) {
            quant_sums t = quant_line_sums(n, x + i * n, w + i * n, (quant_line){0, 0}, 0, 0);
            int b = within((float)(-t.x / t.w) / m, 0, shape->most);
            quant_line line = {0, -(m * (float)b)};
            float error = quant_line_error(n, x + i * n, w + i * n, line, 0, shape->top);
            if (error < best) {
                best = error;
                s->scales[i] = 0;
                s->mins[i] = (uint8_t)b;
            }
        }
        s->error += best;
    }
}

/* The block's two scales that fit best what was chosen; false if there are none. */
static bool lines_refit(const lines_shape *shape, const float *x, const float *w,
                        const lines_state *s, float *d, float *m)
{
    const unsigned n = shape->span;
    double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
    for (unsigned i = 0; i < 256 / n; i++) {
        quant_sums t = quant_line_sums(n, x + i * n, w + i * n, line_of(s, i), 0, shape->top);
        double scale = s->scales[i], min = s->mins[i];
        aa += scale * scale * t.qq;
        ab -= scale * min * t.q;
        bb += min * min * t.w;
        xa += scale * t.xq;
        xb -= min * t.x;
    }
    double det = aa * bb - ab * ab;
    if (det > 1e-9 * aa * bb) {
        *d = (float)((xa * bb - xb * ab) / det);
        *m = (float)((xb * aa - xa * ab) / det);
    } else if (aa > 0) {
        *d = (float)(xa / aa);
        *m = 0;
    } else {
        return false;
    }
    return *d >= 0 && *m >= 0;
}

static void search_lines(const lines_shape *shape, const float *x, const float *w, quant_block *b)
{
    const unsigned n = shape->span, count = 256 / n;
    quant_line fits[16];
    float most_d = 0, most_m = 0;
    for (unsigned i = 0; i < count; i++) {
        fits[i] = quant_fit_line(n, x + i * n, w + i * n, shape->top, 1);
        most_d = fits[i].d > most_d ? fits[i].d : most_d;
        most_m = -fits[i].m > most_m ? -fits[i].m : most_m;
    }
    /* Where scales are few, cutting the largest off can be worth it: first of scales, then, beside
     * the best of these, of minima. */
    const int tries = shape->most > 15 ? 1 : 6, both = shape->most > 15 ? 1 : 8;
    lines_state best = {.error = INFINITY};
    for (int t = 0; t < both; t++) {
        lines_state s = best;
        if (t < tries) {
            s.d = quant_half_scale(most_d / ((float)shape->most + 0.6f * (float)t));
            s.m = quant_half_scale(most_m / (float)shape->most);
        } else {
            s.m = quant_half_scale(most_m / ((float)shape->most + 1.25f * (float)(t - tries + 1)));
        }
        lines_choose(shape, x, w, fits, &s);
        if (s.error < best.error)
            best = s;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        lines_state s = best;
        float d, m;
        if (!lines_refit(shape, x, w, &best, &d, &m))
            break;
        s.d = quant_half_scale(d);
        s.m = quant_half_scale(m);
        lines_choose(shape, x, w, fits, &s);
        if (!(s.error < best.error))
            break;
        best = s;
    }
    b->d = best.d;
    b->m = best.m;
    for (unsigned i = 0; i < count; i++) {
        b->scales[i] = best.scales[i];
        b->mins[i] = best.mins[i];
        quant_line_codes(n, x + i * n, line_of(&best, i), 0, shape->top, 0, b->codes + i * n);
    }
}

/* ---- q3_k, q6_k: sub-blocks of 16 ---- */

typedef struct scales_shape {
    float lo;  /* lowest code; the highest is -lo - 1 */
    int least; /* of scales; the largest is -least - 1 */
} scales_shape;

typedef struct scales_state {
    uint16_t d;
    int scales[16];
    float error;
} scales_state;

static void scales_choose(const scales_shape *shape, const float *x, const float *w,
                          const float *fits, scales_state *s)
{
    const float d = half_to_float(s->d), hi = -shape->lo - 1;
    const int most = -shape->least - 1;
    s->error = 0;
    for (unsigned i = 0; i < 16; i++) {
        const int scale = d != 0 ? within(fits[i] / d, shape->least, most) : 0;
        float best = INFINITY;
        for (int a = scale - 1; a <= scale + 1; a++) {
            if (a < shape->least || a > most)
                continue;
            float error = quant_line_error(16, x + 16 * i, w + 16 * i,
                                           (quant_line){d * (float)a, 0}, shape->lo, hi);
            if (error < best) {
                best = error;
                s->scales[i] = a;
            }
        }
        s->error += best;
    }
}

static void search_scales(const scales_shape *shape, const float *x, const float *w, quant_block *b)
{
    const float hi = -shape->lo - 1;
    float fits[16], most = 0;
    for (unsigned i = 0; i < 16; i++) {
        fits[i] = quant_fit_scale(16, x + 16 * i, w + 16 * i, shape->lo, hi);
        most = fabsf(fits[i]) > fabsf(most) ? fits[i] : most;
    }
    scales_state best = {.error = INFINITY};
    /* The largest at either end of the scales, or cut off a little: what is left between the steps
     * of the others differs. */
    for (int t = 0; t < TRIES; t++) {
        scales_state s = {0};
        const float end = t % 2 ? (float)(-shape->least - 1) : (float)shape->least;
        s.d = quant_half_scale(most / (end * (1 + 0.012f * (float)(t / 2))));
        scales_choose(shape, x, w, fits, &s);
        if (s.error < best.error)
            best = s;
    }
    for (unsigned round = 0; round < ROUNDS; round++) {
        const float d = half_to_float(best.d);
        double aa = 0, xa = 0;
        for (unsigned i = 0; i < 16; i++) {
            quant_line line = {d * (float)best.scales[i], 0};
            quant_sums t = quant_line_sums(16, x + 16 * i, w + 16 * i, line, shape->lo, hi);
            aa += (double)best.scales[i] * best.scales[i] * t.qq;
            xa += best.scales[i] * t.xq;
        }
        if (!(aa > 0))
            break;
        scales_state s = best;
        s.d = quant_half_scale((float)(xa / aa));
        scales_choose(shape, x, w, fits, &s);
        if (!(s.error < best.error))
            break;
        best = s;
    }
    b->d = best.d;
    for (unsigned i = 0; i < 16; i++) {
        quant_line line = {half_to_float(best.d) * (float)best.scales[i], 0};
        b->scales[i] = (uint8_t)(shape->least == -32 ? best.scales[i] + 32 : best.scales[i]);
        quant_line_codes(16, x + 16 * i, line, shape->lo, hi, (int)-shape->lo, b->codes + 16 * i);
    }
}

void quant_search_256(ful_type type, const float *x, const float *w, quant_block *b)
{
    switch (type) {
    case FUL_TYPE_Q2_K:
        search_lines(&(lines_shape){16, 3, 15}, x, w, b);
        break;
    case FUL_TYPE_Q4_K:
        search_lines(&(lines_shape){32, 15, 63}, x, w, b);
        break;
    case FUL_TYPE_Q5_K:
        search_lines(&(lines_shape){32, 31, 63}, x, w, b);
        break;
    case FUL_TYPE_Q3_K:
        search_scales(&(scales_shape){-4, -32}, x, w, b);
        break;
    case FUL_TYPE_Q6_K:
        search_scales(&(scales_shape){-32, -128}, x, w, b);
        break;
    default:
        break;
    }
}
