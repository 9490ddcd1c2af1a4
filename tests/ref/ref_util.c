#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "ref.h"

void *ref_alloc_bytes(size_t count, size_t size)
{
    void *p = calloc(count > 0 ? count : 1, size);
    if (p == NULL) {
        fprintf(stderr, "reference: out of memory for %zu x %zu bytes\n", count, size);
        abort();
    }
    return p;
}

double *ref_alloc(size_t n)
{
    return ref_alloc_bytes(n, sizeof(double));
}

void ref_from_f32(const float *in, double *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (double)in[i];
}

void ref_to_f32(const double *in, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)in[i];
}

double ref_sigmoid(double x)
{
    /* exp of a non-positive number only, so that no argument overflows. */
    double e = exp(-fabs(x));
    return x >= 0.0 ? 1.0 / (1.0 + e) : e / (1.0 + e);
}

double ref_silu(double x)
{
    return x * ref_sigmoid(x);
}

double ref_dot(const double *a, const double *b, size_t n)
{
    /* Four chains: the compiler may not reorder a sum of doubles by itself. */
    double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
    size_t i = 0;
    for (; i + 4 <= n; i += 4) {
        s0 += a[i] * b[i];
        s1 += a[i + 1] * b[i + 1];
        s2 += a[i + 2] * b[i + 2];
        s3 += a[i + 3] * b[i + 3];
    }
    for (; i < n; i++)
        s0 += a[i] * b[i];
    return (s0 + s1) + (s2 + s3);
}
