#include "compare.h"

#include <math.h>
#include <stdbool.h>

/* The three element-type combinations share one walk, so that their conventions can't differ. */
typedef struct error_sums {
    double max_diff, max_ref, sum_diff2, sum_ref2;
    bool bad;
} error_sums;

static void sums_add(error_sums *s, double a, double b)
{
    if (!isfinite(a) || !isfinite(b)) {
        s->bad = true;
        return;
    }
    double diff = fabs(a - b);
    s->max_diff = fmax(s->max_diff, diff);
    s->max_ref = fmax(s->max_ref, fabs(b));
    s->sum_diff2 += diff * diff;
    s->sum_ref2 += b * b;
}

static error_sums sums_dd(const double *a, const double *b, size_t n)
{
    error_sums s = {.bad = n == 0};
    for (size_t i = 0; i < n; i++)
        sums_add(&s, a[i], b[i]);
    return s;
}

static error_sums sums_fd(const float *a, const double *b, size_t n)
{
    error_sums s = {.bad = n == 0};
    for (size_t i = 0; i < n; i++)
        sums_add(&s, (double)a[i], b[i]);
    return s;
}

static error_sums sums_ff(const float *a, const float *b, size_t n)
{
    error_sums s = {.bad = n == 0};
    for (size_t i = 0; i < n; i++)
        sums_add(&s, (double)a[i], (double)b[i]);
    return s;
}

static double ratio(const error_sums *s, double diff, double ref)
{
    if (s->bad)
        return (double)INFINITY;
    /* Squares of tiny differences underflow to zero, so "equal" is decided by max_diff. */
    if (ref <= 0.0)
        return s->max_diff > 0.0 ? (double)INFINITY : 0.0;
    return diff / ref;
}

double max_rel_error(const double *a, const double *b, size_t n)
{
    error_sums s = sums_dd(a, b, n);
    return ratio(&s, s.max_diff, s.max_ref);
}

double max_rel_error_f32(const float *a, const double *b, size_t n)
{
    error_sums s = sums_fd(a, b, n);
    return ratio(&s, s.max_diff, s.max_ref);
}

double max_rel_error_ff(const float *a, const float *b, size_t n)
{
    error_sums s = sums_ff(a, b, n);
    return ratio(&s, s.max_diff, s.max_ref);
}

double nmse(const double *a, const double *b, size_t n)
{
    error_sums s = sums_dd(a, b, n);
    return ratio(&s, s.sum_diff2, s.sum_ref2);
}

double nmse_f32(const float *a, const double *b, size_t n)
{
    error_sums s = sums_fd(a, b, n);
    return ratio(&s, s.sum_diff2, s.sum_ref2);
}

double max_abs_error(const double *a, const double *b, size_t n)
{
    error_sums s = sums_dd(a, b, n);
    return s.bad ? (double)INFINITY : s.max_diff;
}

double max_abs_error_f32(const float *a, const double *b, size_t n)
{
    error_sums s = sums_fd(a, b, n);
    return s.bad ? (double)INFINITY : s.max_diff;
}

size_t argmax(const double *a, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (a[i] > a[best] || (isnan(a[best]) && !isnan(a[i])))
            best = i;
    }
    return best;
}

size_t argmax_f32(const float *a, size_t n)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (a[i] > a[best] || (isnan(a[best]) && !isnan(a[i])))
            best = i;
    }
    return best;
}
