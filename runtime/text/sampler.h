/* The host's sampler: the reference for the device's. */
#ifndef FULGUR_TEXT_SAMPLER_H
#define FULGUR_TEXT_SAMPLER_H

#include "base/alloc.h"
#include "fulgur/sampler.h"

typedef struct sampler_candidate {
    float logit;
    uint32_t token;
} sampler_candidate;

/* Kept between draws so that one draw allocates nothing. Start from {.alloc = ...}. */
typedef struct sampler_scratch {
    const ful_alloc *alloc;
    uint8_t *allowed;
    size_t allowed_capacity;
    sampler_candidate *candidates;
    size_t candidates_capacity;
} sampler_scratch;

void sampler_scratch_release(sampler_scratch *scratch);

/* Copies params with the caller's struct_size respected (NULL: greedy) and checks the ranges. */
ful_result sampler_params_read(const ful_sampler_params *params, ful_sampler_params *out);

/* Uniform in [0, 1) with 53 bits, a function of its arguments only. */
double sampler_uniform(uint64_t seed, uint64_t counter);

/* One draw. `counter` is the number of tokens in the session. */
ful_result sampler_pick(const float *logits, uint32_t n, const ful_sampler_params *params,
                        uint64_t counter, sampler_scratch *scratch, int32_t *token);

#endif
