/* How the next token is drawn from logits. */
#ifndef FULGUR_SAMPLER_H
#define FULGUR_SAMPLER_H

#include "fulgur/fulgur.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Says which tokens may be drawn. `allowed` has one byte a token, all 1 at the call; set entries
 * to 0. `position` is the number of tokens in the session. Called on the thread that samples.
 * Returning false makes the call that samples return FUL_ERR_CANCELLED. */
typedef bool (*ful_mask_fn)(void *ctx, size_t position, uint8_t *allowed, size_t n_vocab);

/* Tokens are taken away in the order temperature, top-k, top-p, min-p; one is then drawn from
 * what is left, in proportion to its probability, by one uniform number that depends on seed and
 * position only. Same logits, same params, same position: same token.
 *
 *  - top-k keeps the k largest logits; of equal ones those with the lower id.
 *  - top-p keeps the smallest number of most probable tokens whose probabilities reach top_p; at
 *    least one.
 *  - min-p keeps tokens at least min_p times as probable as the most probable one.
 *  - A greedy draw takes the largest logit, of equal ones the lowest id.
 *
 * All zero, as a NULL pointer, is greedy. */
typedef struct ful_sampler_params {
    size_t struct_size;
    uint64_t seed;
    float temperature; /* 0 = greedy; logits are divided by it; negative, NaN or
                          infinite: error */
    uint32_t top_k;    /* 0 = all tokens */
    float top_p;       /* in (0, 1]; 0 = 1 = all tokens */
    float min_p;       /* in [0, 1]; 0 = all tokens */
    ful_mask_fn mask;  /* NULL = every token is allowed; applied first, to greedy
                          draws too */
    void *mask_ctx;
} ful_sampler_params;
#define ful_sampler_params(...)                                                                    \
    (&(ful_sampler_params){.struct_size = sizeof(ful_sampler_params), __VA_ARGS__})

/* Draws one token from logits[n_vocab] on the host, as ful_sample does with a session's own.
 * `position` takes the place of the number of tokens in the session. params NULL = greedy.
 * Allocates while it runs. Any thread. Errors: FUL_ERR_ARGUMENT (a value out of range, n_vocab 0,
 * or the mask leaves no token), FUL_ERR_NOT_FINITE (a logit is NaN or infinite, named by its id;
 * masked ones count too), FUL_ERR_CANCELLED, FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_sample_logits(const float *logits, size_t n_vocab,
                                     const ful_sampler_params *params, uint64_t position,
                                     int32_t *token);

#ifdef __cplusplus
}
#endif

#endif
