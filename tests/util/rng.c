#include "rng.h"

#include <math.h>

static const double two_pi = 6.283185307179586476925286766559;

rng rng_seed(uint64_t seed)
{
    return (rng){.state = seed};
}

uint64_t rng_next(rng *r)
{
    uint64_t z = (r->state += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
}

double rng_uniform(rng *r)
{
    return (double)(rng_next(r) >> 11) * 0x1p-53;
}

double rng_normal(rng *r)
{
    /* Box-Muller; 1 - u keeps the logarithm's argument above zero. */
    double radius = sqrt(-2.0 * log(1.0 - rng_uniform(r)));
    return radius * cos(two_pi * rng_uniform(r));
}

uint32_t rng_below(rng *r, uint32_t n)
{
    return (uint32_t)(((rng_next(r) >> 32) * n) >> 32);
}

void rng_fill_normal(rng *r, float *out, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(scale * rng_normal(r));
}

void rng_fill_uniform(rng *r, float *out, size_t n, double low, double high)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (float)(low + (high - low) * rng_uniform(r));
}

void rng_fill_normal_both(rng *r, float *out32, double *out64, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++) {
        out32[i] = (float)(scale * rng_normal(r));
        out64[i] = (double)out32[i];
    }
}
