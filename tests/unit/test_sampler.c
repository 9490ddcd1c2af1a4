/* The host's sampler against distributions worked out here, its cuts, ties and errors. */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "../util/rng.h"
#include "text/sampler.h"

/* cmocka's macro fail() must come behind the function of that name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

enum { DRAWS = 20000 };

static int32_t draw(const float *logits, size_t n, const ful_sampler_params *params,
                    uint64_t position)
{
    int32_t token = -1;
    assert_int_equal(ful_sample_logits(logits, n, params, position, &token), FUL_OK);
    assert_true(token >= 0 && (size_t)token < n);
    return token;
}

static double chi_square(const size_t *seen, const double *p, size_t n, size_t draws)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++) {
        double want = p[i] * (double)draws;
        if (p[i] == 0.0)
            assert_int_equal(seen[i], 0);
        else
            sum += ((double)seen[i] - want) * ((double)seen[i] - want) / want;
    }
    return sum;
}

/* Draws at many positions and compares with p; `degrees` is the number of live tokens less one. */
static void check_distribution(const float *logits, const double *p, size_t n, size_t degrees,
                               const ful_sampler_params *params)
{
    size_t seen[64] = {0};
    assert_true(n <= 64);
    for (uint64_t i = 0; i < DRAWS; i++)
        seen[draw(logits, n, params, i)]++;
    /* Wilson-Hilferty: a value above this comes by chance once in about 30,000 tests. */
    double k = (double)degrees,
           limit = k * pow(1.0 - 2.0 / (9.0 * k) + 4.0 * sqrt(2.0 / (9.0 * k)), 3.0);
    double chi = chi_square(seen, p, n, DRAWS);
    if (chi > limit)
        fail_msg("chi-square %g with %zu degrees of freedom, limit %g", chi, degrees, limit);
}

static void softmax(const float *logits, const uint8_t *live, size_t n, double temperature,
                    double *p)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += p[i] = live[i] ? exp((double)logits[i] / temperature) : 0.0;
    for (size_t i = 0; i < n; i++)
        p[i] /= sum;
}

static void test_distribution(void **state)
{
    (void)state;
    rng r = rng_seed(3);
    float logits[40];
    uint8_t live[40];
    double p[40];
    rng_fill_normal(&r, logits, 40, 1.0);
    memset(live, 1, sizeof live);
    static const float temperatures[] = {0.5f, 1.0f, 2.5f};
    for (size_t t = 0; t < 3; t++) {
        softmax(logits, live, 40, (double)temperatures[t], p);
        check_distribution(logits, p, 40, 39,
                           ful_sampler_params(.temperature = temperatures[t], .seed = 11 + t));
    }
    /* The same logits, far from zero: only differences count. */
    float far[40];
    for (size_t i = 0; i < 40; i++)
        far[i] = (float)((double)logits[i] + 4096.0);
    softmax(logits, live, 40, 1.0, p);
    check_distribution(far, p, 40, 39, ful_sampler_params(.temperature = 1.0f, .seed = 5));
}

static void test_top_k(void **state)
{
    (void)state;
    /* 3.0 three times: top-k 2 keeps the two lower ids. */
    static const float logits[8] = {1, 3, 0, 3, 2, 3, -1, 0};
    uint8_t live[8] = {0, 1, 0, 1, 0, 0, 0, 0};
    double p[8];
    softmax(logits, live, 8, 1.0, p);
    check_distribution(logits, p, 8, 1, ful_sampler_params(.temperature = 1.0f, .top_k = 2));
    live[5] = live[4] = 1;
    softmax(logits, live, 8, 1.0, p);
    check_distribution(logits, p, 8, 3, ful_sampler_params(.temperature = 1.0f, .top_k = 4));
    memset(live, 1, sizeof live);
    softmax(logits, live, 8, 1.0, p);
    check_distribution(logits, p, 8, 7, ful_sampler_params(.temperature = 1.0f, .top_k = 8));
    check_distribution(logits, p, 8, 7,
                       ful_sampler_params(.temperature = 1.0f, .top_k = 4000000000u));
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(draw(logits, 8, ful_sampler_params(.temperature = 9.0f, .top_k = 1), i),
                         1);
}

/* Natural logarithms of these add up to probabilities 0.4, 0.3, 0.2, 0.1 at ids 2, 0, 3, 1. */
static void tenths(float logits[4])
{
    static const double p[4] = {0.3, 0.1, 0.4, 0.2};
    for (size_t i = 0; i < 4; i++)
        logits[i] = (float)log(p[i]);
}

static void check_live(const float *logits, size_t n, const char *live,
                       const ful_sampler_params *params)
{
    uint8_t mask[64] = {0};
    double p[64];
    size_t degrees = 0;
    for (size_t i = 0; i < n; i++) {
        mask[i] = live[i] == '1';
        degrees += mask[i];
    }
    softmax(logits, mask, n, (double)params->temperature, p);
    if (degrees > 1)
        check_distribution(logits, p, n, degrees - 1, params);
    else
        for (uint64_t i = 0; i < 200; i++)
            assert_true(mask[draw(logits, n, params, i)]);
}

static void test_top_p(void **state)
{
    (void)state;
    float logits[4];
    tenths(logits);
    check_live(logits, 4, "0010", ful_sampler_params(.temperature = 1.0f, .top_p = 0.39f));
    check_live(logits, 4, "1010", ful_sampler_params(.temperature = 1.0f, .top_p = 0.41f));
    check_live(logits, 4, "1010", ful_sampler_params(.temperature = 1.0f, .top_p = 0.69f));
    check_live(logits, 4, "1011", ful_sampler_params(.temperature = 1.0f, .top_p = 0.71f));
    check_live(logits, 4, "1111", ful_sampler_params(.temperature = 1.0f, .top_p = 0.91f));
    check_live(logits, 4, "1111", ful_sampler_params(.temperature = 1.0f, .top_p = 1.0f));
    check_live(logits, 4, "0010", ful_sampler_params(.temperature = 1.0f, .top_p = 1e-30f));
    /* Temperature comes first: 2 flattens to 0.326, 0.282, 0.230, 0.163. */
    check_live(logits, 4, "1010", ful_sampler_params(.temperature = 2.0f, .top_p = 0.39f));
    /* Top-k comes before and top-p counts in what is left: 0.4 / 0.7 = 0.571. */
    check_live(logits, 4, "0010",
               ful_sampler_params(.temperature = 1.0f, .top_k = 2, .top_p = 0.57f));
    check_live(logits, 4, "1010",
               ful_sampler_params(.temperature = 1.0f, .top_k = 2, .top_p = 0.58f));
    /* Equal ones: exactly as many as reach the sum, lower ids first. */
    static const float flat[10] = {0};
    check_live(flat, 10, "1110000000", ful_sampler_params(.temperature = 1.0f, .top_p = 0.3f));
    check_live(flat, 10, "1111000000", ful_sampler_params(.temperature = 1.0f, .top_p = 0.31f));
}

static void test_min_p(void **state)
{
    (void)state;
    float logits[4];
    tenths(logits);
    check_live(logits, 4, "1011", ful_sampler_params(.temperature = 1.0f, .min_p = 0.49f));
    check_live(logits, 4, "1010", ful_sampler_params(.temperature = 1.0f, .min_p = 0.51f));
    check_live(logits, 4, "0010", ful_sampler_params(.temperature = 1.0f, .min_p = 1.0f));
    /* At temperature 2 the ratios are square roots: 0.1 / 0.4 becomes 0.5. */
    check_live(logits, 4, "1111", ful_sampler_params(.temperature = 2.0f, .min_p = 0.49f));
    /* All three: top-k 3 leaves 0.4 0.3 0.2, top-p 0.9 keeps all three, min-p 0.6 drops the last.
     */
    check_live(logits, 4, "1010",
               ful_sampler_params(.temperature = 1.0f, .top_k = 3, .top_p = 0.9f, .min_p = 0.6f));
    static const float flat[3] = {-5, -5, -5};
    check_live(flat, 3, "111", ful_sampler_params(.temperature = 1.0f, .min_p = 1.0f));
}

static void test_greedy(void **state)
{
    (void)state;
    static const float logits[6] = {-3, 2, 7, 7, -1, 7};
    assert_int_equal(draw(logits, 6, NULL, 0), 2);
    assert_int_equal(draw(logits, 6, ful_sampler_params(.seed = 99), 5), 2);
    assert_int_equal(draw(logits, 6, ful_sampler_params(.top_k = 3, .top_p = 0.1f), 1), 2);
    assert_int_equal(draw(logits, 1, NULL, 0), 0);
    /* Temperatures so low that every other weight is 0. */
    static const float close[3] = {1.0f, 1.000001f, 1.0f};
    for (uint64_t i = 0; i < 100; i++)
        assert_int_equal(draw(close, 3, ful_sampler_params(.temperature = 1e-38f), i), 1);
}

static void test_determinism(void **state)
{
    (void)state;
    rng r = rng_seed(8);
    float logits[1000];
    rng_fill_normal(&r, logits, 1000, 2.0);
    size_t moved_by_seed = 0, moved_by_position = 0;
    for (uint64_t i = 0; i < 200; i++) {
        const ful_sampler_params *p =
            ful_sampler_params(.temperature = 1.0f, .seed = 1, .top_p = 0.95f);
        const ful_sampler_params *q =
            ful_sampler_params(.temperature = 1.0f, .seed = 2, .top_p = 0.95f);
        int32_t token = draw(logits, 1000, p, i);
        assert_int_equal(draw(logits, 1000, p, i), token);
        moved_by_seed += draw(logits, 1000, q, i) != token;
        moved_by_position += draw(logits, 1000, p, i + 1) != token;
    }
    assert_true(moved_by_seed > 150);
    assert_true(moved_by_position > 150);
    /* These must not change between versions: saved seeds would tell other stories. */
    assert_true(sampler_uniform(0, 0) == 0x1.4e0dba5e9a32fp-1);
    assert_true(sampler_uniform(0, 1) == 0x1.6705460be8829p-1);
    assert_true(sampler_uniform(1, 0) == 0x1.7906ac21d0e58p-2);
    assert_true(sampler_uniform(UINT64_MAX, UINT64_MAX) == 0x1.1140638c16042p-2);
}

static void test_uniform(void **state)
{
    (void)state;
    /* Along the counter and along the seed: 64 equal bins, and neighbours that do not follow. */
    for (int along_seed = 0; along_seed < 2; along_seed++) {
        size_t seen[64] = {0}, pairs[64] = {0};
        double p[64], last = 0.5;
        for (size_t i = 0; i < 64; i++)
            p[i] = 1.0 / 64.0;
        for (uint64_t i = 0; i < 64000; i++) {
            double u = along_seed ? sampler_uniform(i, 7) : sampler_uniform(7, i);
            assert_true(u >= 0.0 && u < 1.0);
            seen[(size_t)(u * 64.0)]++;
            pairs[(size_t)(u * 8.0) * 8 + (size_t)(last * 8.0)]++;
            last = u;
        }
        assert_true(chi_square(seen, p, 64, 64000) < 63.0 + 4.0 * sqrt(126.0));
        assert_true(chi_square(pairs, p, 64, 64000) < 63.0 + 4.0 * sqrt(126.0));
    }
}

static bool mask_even(void *ctx, size_t position, uint8_t *allowed, size_t n_vocab)
{
    *(size_t *)ctx = position;
    for (size_t i = 0; i < n_vocab; i++) {
        assert_int_equal(allowed[i], 1);
        if (i % 2 == 0)
            allowed[i] = 0;
    }
    return true;
}

static bool mask_all(void *ctx, size_t position, uint8_t *allowed, size_t n_vocab)
{
    (void)ctx;
    (void)position;
    memset(allowed, 0, n_vocab);
    return true;
}

static bool mask_cancel(void *ctx, size_t position, uint8_t *allowed, size_t n_vocab)
{
    (void)ctx;
    (void)position;
    (void)allowed;
    (void)n_vocab;
    return false;
}

static void test_mask(void **state)
{
    (void)state;
    static const float logits[6] = {9, 1, 9, 2, 9, 0};
    size_t position = 0;
    assert_int_equal(
        draw(logits, 6, ful_sampler_params(.mask = mask_even, .mask_ctx = &position), 42), 3);
    assert_int_equal(position, 42);
    check_live(logits, 6, "010101",
               ful_sampler_params(.temperature = 1.0f, .mask = mask_even, .mask_ctx = &position));
    check_live(logits, 6, "010100",
               ful_sampler_params(.temperature = 1.0f, .top_k = 2, .mask = mask_even,
                                  .mask_ctx = &position));
    check_live(logits, 6, "010100", /* 0.665 and 0.245 of what is allowed */
               ful_sampler_params(.temperature = 1.0f, .top_p = 0.9f, .mask = mask_even,
                                  .mask_ctx = &position));
    int32_t token;
    assert_int_equal(ful_sample_logits(logits, 6, ful_sampler_params(.mask = mask_all), 0, &token),
                     FUL_ERR_ARGUMENT);
    assert_int_equal(
        ful_sample_logits(logits, 6, ful_sampler_params(.mask = mask_cancel), 0, &token),
        FUL_ERR_CANCELLED);
}

static void check_error(const float *logits, size_t n, const ful_sampler_params *params,
                        ful_result want, const char *word)
{
    int32_t token = -5;
    assert_int_equal(ful_sample_logits(logits, n, params, 0, &token), want);
    assert_int_equal(token, -5);
    if (strstr(ful_last_error(), word) == NULL)
        fail_msg("\"%s\" does not name %s", ful_last_error(), word);
}

static void test_errors(void **state)
{
    (void)state;
    float logits[5] = {0, 1, 2, 3, 4};
    check_error(logits, 0, NULL, FUL_ERR_ARGUMENT, "no logits");
    check_error(logits, 5, ful_sampler_params(.temperature = -1.0f), FUL_ERR_ARGUMENT,
                "temperature");
    check_error(logits, 5, ful_sampler_params(.temperature = NAN), FUL_ERR_ARGUMENT, "temperature");
    check_error(logits, 5, ful_sampler_params(.temperature = INFINITY), FUL_ERR_ARGUMENT,
                "temperature");
    check_error(logits, 5, ful_sampler_params(.top_p = 1.5f), FUL_ERR_ARGUMENT, "top_p");
    check_error(logits, 5, ful_sampler_params(.top_p = NAN), FUL_ERR_ARGUMENT, "top_p");
    check_error(logits, 5, ful_sampler_params(.min_p = -0.1f), FUL_ERR_ARGUMENT, "min_p");
    ful_sampler_params unset = {.temperature = 1.0f};
    check_error(logits, 5, &unset, FUL_ERR_ARGUMENT, "struct_size");
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < 3; i++) {
        logits[3] = bad[i];
        check_error(logits, 5, NULL, FUL_ERR_NOT_FINITE, "token 3");
        check_error(logits, 5, ful_sampler_params(.temperature = 1.0f), FUL_ERR_NOT_FINITE,
                    "token 3");
    }
}

/* A caller built when the struct ended behind top_p. */
static void test_old_struct(void **state)
{
    (void)state;
    static const float logits[4] = {0, 3, 1, 2};
    ful_sampler_params p = {.struct_size = offsetof(ful_sampler_params, min_p),
                            .temperature = 1.0f,
                            .top_k = 1,
                            .min_p = 7.0f,
                            .mask = mask_cancel};
    assert_int_equal(draw(logits, 4, &p, 0), 1);
}

/* Against sorting everything, at the published vocabulary's size. */
static int by_logit(const void *a, const void *b)
{
    const sampler_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

static void test_large_vocabulary(void **state)
{
    (void)state;
    enum { N = 200064 };
    float *logits = malloc(N * sizeof *logits);
    double *weight = malloc(N * sizeof *weight);
    sampler_candidate *sorted = malloc(N * sizeof *sorted);
    assert_non_null(logits);
    assert_non_null(weight);
    assert_non_null(sorted);
    rng r = rng_seed(21);
    for (uint32_t i = 0; i < N; i++) /* quarters: many ties */
        logits[i] = (float)(floor(rng_normal(&r) * 8.0) / 4.0);
    for (uint32_t round = 0; round < 6; round++) {
        ful_sampler_params p = *ful_sampler_params(.temperature = 0.7f, .seed = round);
        p.top_k = (uint32_t[]){0, 1000, 0, 50, 150000, 7}[round];
        p.top_p = (float[]){0.9f, 0, 0, 0.5f, 0.99f, 0.8f}[round];
        p.min_p = (float[]){0, 0, 0.05f, 0.3f, 0.001f, 0}[round];
        for (uint32_t i = 0; i < N; i++)
            sorted[i] = (sampler_candidate){logits[i], i};
        qsort(sorted, N, sizeof *sorted, by_logit);
        size_t keep = p.top_k ? p.top_k : N;
        double total = 0.0, mass = 0.0, u, sum = 0.0;
        for (size_t i = 0; i < keep; i++)
            total += exp((double)(sorted[i].logit - sorted[0].logit) / (double)p.temperature);
        memset(weight, 0, N * sizeof *weight);
        for (size_t i = 0; i < keep; i++) {
            double w = exp((double)(sorted[i].logit - sorted[0].logit) / (double)p.temperature);
            if (w >= (double)p.min_p)
                weight[sorted[i].token] = w;
            mass += w;
            if (p.top_p > 0.0f && mass >= (double)p.top_p * total)
                break;
        }
        total = 0.0;
        for (size_t i = 0; i < N; i++)
            total += weight[i];
        u = sampler_uniform(round, 3) * total;
        int32_t want = -1;
        for (int32_t i = 0; i < N && want < 0; i++)
            if ((sum += weight[i]) > u)
                want = i;
        assert_int_equal(draw(logits, N, &p, 3), want);
    }
    free(logits);
    free(weight);
    free(sorted);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_distribution),
        cmocka_unit_test(test_top_k),
        cmocka_unit_test(test_top_p),
        cmocka_unit_test(test_min_p),
        cmocka_unit_test(test_greedy),
        cmocka_unit_test(test_determinism),
        cmocka_unit_test(test_uniform),
        cmocka_unit_test(test_mask),
        cmocka_unit_test(test_errors),
        cmocka_unit_test(test_old_struct),
        cmocka_unit_test(test_large_vocabulary),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
