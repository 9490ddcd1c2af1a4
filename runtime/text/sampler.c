#include "text/sampler.h"

#include <math.h>
#include <string.h>

static uint64_t mix64(uint64_t x)
{
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

double sampler_uniform(uint64_t seed, uint64_t counter)
{
    /* The seed is mixed before the counter comes in, or neighbouring seeds would
     * share numbers. */
    uint64_t key = mix64(seed + UINT64_C(0x9E3779B97F4A7C15));
    uint64_t bits = mix64(key + (counter + 1) * UINT64_C(0x9E3779B97F4A7C15));
    return (double)(bits >> 11) * 0x1p-53;
}

void sampler_scratch_release(sampler_scratch *scratch)
{
    mem_free(scratch->alloc, scratch->allowed);
    mem_free(scratch->alloc, scratch->candidates);
    *scratch = (sampler_scratch){.alloc = scratch->alloc};
}

ful_result sampler_params_read(const ful_sampler_params *params, ful_sampler_params *out)
{
    TRY(params_copy(out, sizeof *out, params, "ful_sampler_params"));
    out->struct_size = sizeof *out;
    if (!isfinite(out->temperature) || out->temperature < 0.0f)
        return fail(FUL_ERR_ARGUMENT, "temperature %g; it must be 0 or more",
                    (double)out->temperature);
    if (!(out->top_p >= 0.0f && out->top_p <= 1.0f))
        return fail(FUL_ERR_ARGUMENT, "top_p %g; it must be in [0, 1]", (double)out->top_p);
    if (!(out->min_p >= 0.0f && out->min_p <= 1.0f))
        return fail(FUL_ERR_ARGUMENT, "min_p %g; it must be in [0, 1]", (double)out->min_p);
    return FUL_OK;
}

/* More probable, or as probable with a lower id. */
static bool candidate_before(sampler_candidate a, sampler_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* A heap with the first candidate on top: a few of 200,000 come out without sorting them all. */
static void heap_down(sampler_candidate *heap, size_t n, size_t i)
{
    sampler_candidate value = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && candidate_before(heap[child + 1], heap[child]))
            child++;
        if (!candidate_before(heap[child], value))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = value;
}

static double weight_of(float logit, float largest, float temperature)
{
    return exp(((double)logit - (double)largest) / (double)temperature);
}

static ful_result mask_apply(const ful_sampler_params *p, uint64_t counter,
                             sampler_scratch *scratch, uint32_t n)
{
    void *memory = scratch->allowed;
    if (!mem_grow(scratch->alloc, &memory, &scratch->allowed_capacity, n, 1))
        return mem_fail(n, "the sampler's mask");
    scratch->allowed = memory;
    memset(scratch->allowed, 1, n);
    if (p->mask != NULL && !p->mask(p->mask_ctx, (size_t)counter, scratch->allowed, n))
        return fail(FUL_ERR_CANCELLED, "the sampler's mask cancelled the draw");
    return FUL_OK;
}

/* Applies top-k and top-p: clears `allowed` of every token that goes. */
static ful_result candidates_cut(const float *logits, uint32_t n, const ful_sampler_params *p,
                                 float largest, sampler_scratch *scratch)
{
    void *memory = scratch->candidates;
    if (!mem_grow(scratch->alloc, &memory, &scratch->candidates_capacity, n,
                  sizeof *scratch->candidates))
        return mem_fail(n * sizeof *scratch->candidates, "the sampler's candidates");
    scratch->candidates = memory;
    sampler_candidate *heap = scratch->candidates;
    size_t count = 0;
    double total = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        if (!scratch->allowed[i])
            continue;
        heap[count++] = (sampler_candidate){.logit = logits[i], .token = i};
        total += weight_of(logits[i], largest, p->temperature);
        scratch->allowed[i] = 0;
    }
    for (size_t i = count / 2; i-- > 0;)
        heap_down(heap, count, i);
    /* Candidates that leave the heap gather behind its end, the first one last.
     */
    size_t keep = p->top_k != 0 && p->top_k < count ? p->top_k : count, left = count;
    bool by_mass = p->top_p > 0.0f && p->top_p < 1.0f;
    bool total_known = keep == count;
    double mass = 0.0;
    for (size_t taken = 0; taken < keep; taken++) {
        sampler_candidate top = heap[0];
        heap[0] = heap[--left];
        heap_down(heap, left, 0);
        heap[left] = top;
        if (by_mass && total_known) {
            mass += weight_of(top.logit, largest, p->temperature);
            if ((float)(mass / total) >= p->top_p)
                break;
        }
    }
    size_t end = left;
    if (by_mass && !total_known) { /* top-p counts in what top-k left */
        total = 0.0;
        for (size_t i = left; i < count; i++)
            total += weight_of(heap[i].logit, largest, p->temperature);
        for (end = count; end > left;) {
            mass += weight_of(heap[--end].logit, largest, p->temperature);
            if ((float)(mass / total) >= p->top_p)
                break;
        }
    }
    for (size_t i = end; i < count; i++)
        scratch->allowed[heap[i].token] = 1;
    return FUL_OK;
}

ful_result sampler_pick(const float *logits, uint32_t n, const ful_sampler_params *params,
                        uint64_t counter, sampler_scratch *scratch, int32_t *token)
{
    ful_sampler_params p;
    TRY(sampler_params_read(params, &p));
    if (n == 0)
        return fail(FUL_ERR_ARGUMENT, "sampling from no logits");
    for (uint32_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            return fail(FUL_ERR_NOT_FINITE, "the logit of token %u is %g", (unsigned)i,
                        (double)logits[i]);
    TRY(mask_apply(&p, counter, scratch, n));
    uint32_t best = n;
    for (uint32_t i = 0; i < n; i++)
        if (scratch->allowed[i] && (best == n || logits[i] > logits[best]))
            best = i;
    if (best == n)
        return fail(FUL_ERR_ARGUMENT, "the sampler's mask allows none of %u tokens", (unsigned)n);
    if (p.temperature == 0.0f) {
        *token = (int32_t)best;
        return FUL_OK;
    }
    float largest = logits[best];
    if (p.top_k != 0 || (p.top_p > 0.0f && p.top_p < 1.0f))
        TRY(candidates_cut(logits, n, &p, largest, scratch));
    /* Inverse of the cumulated distribution in the order of ids. */
    double total = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        if (!scratch->allowed[i])
            continue;
        double weight = weight_of(logits[i], largest, p.temperature);
        if ((float)weight < p.min_p)
            scratch->allowed[i] = 0;
        else
            total += weight;
    }
    double target = sampler_uniform(p.seed, counter) * total, sum = 0.0;
    uint32_t drawn = best;
    for (uint32_t i = 0; i < n; i++) {
        if (!scratch->allowed[i])
            continue;
        sum += weight_of(logits[i], largest, p.temperature);
        if (sum > target) {
            drawn = i;
            break;
        }
    }
    *token = (int32_t)drawn;
    return FUL_OK;
}

ful_result ful_sample_logits(const float *logits, size_t n_vocab, const ful_sampler_params *params,
                             uint64_t position, int32_t *token)
{
    if (logits == NULL || token == NULL || n_vocab > INT32_MAX)
        return fail(FUL_ERR_ARGUMENT, "ful_sample_logits: logits or token is NULL, or n_vocab %zu",
                    n_vocab);
    ful_alloc alloc = mem_functions(NULL);
    sampler_scratch scratch = {.alloc = &alloc};
    ful_result result = sampler_pick(logits, (uint32_t)n_vocab, params, position, &scratch, token);
    sampler_scratch_release(&scratch);
    return result;
}
