/* Reproducible random numbers for tests: the same seed gives the same numbers everywhere. */
#ifndef TESTS_UTIL_RNG_H
#define TESTS_UTIL_RNG_H

#include <stddef.h>
#include <stdint.h>

typedef struct rng {
    uint64_t state;
} rng;

rng rng_seed(uint64_t seed);
uint64_t rng_next(rng *r);              /* splitmix64 */
double rng_uniform(rng *r);             /* [0, 1) */
double rng_normal(rng *r);              /* mean 0, variance 1 */
uint32_t rng_below(rng *r, uint32_t n); /* [0, n), n >= 1 */

void rng_fill_normal(rng *r, float *out, size_t n,
                     double scale); /* scale * normal, rounded to fp32 */
void rng_fill_uniform(rng *r, float *out, size_t n, double low, double high);

/* The same values in both precisions: out64[i] == (double)out32[i], so that a device's fp32 input
 * and the reference's double input are equal. */
void rng_fill_normal_both(rng *r, float *out32, double *out64, size_t n, double scale);

#endif
