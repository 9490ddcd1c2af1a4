/* Sampling on the device against the host's sampler and against a plain sort in double. */
#include "../util/device_fixture.h" /* before cmocka.h, whose fail() is a macro */
#include "text/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../ref/ref.h"
#include "../util/rng.h"

typedef struct setting {
    float temperature, top_p, min_p;
    uint32_t top_k;
} setting;

typedef struct ranked {
    double logit;
    uint32_t id;
} ranked;

static int by_rank(const void *a, const void *b)
{
    const ranked *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit > y->logit ? -1 : 1;
    return x->id < y->id ? -1 : 1;
}

/* Logits sorted once, so that many draws cost little. */
typedef struct reference {
    uint32_t n;
    ranked *order;
    double *weight; /* by id, 0 = gone */
} reference;

static reference reference_make(const float *logits, uint32_t n)
{
    reference r = {n, ref_alloc_bytes(n, sizeof(ranked)), ref_alloc(n)};
    for (uint32_t i = 0; i < n; i++)
        r.order[i] = (ranked){logits[i], i};
    qsort(r.order, n, sizeof *r.order, by_rank);
    return r;
}

static void reference_free(reference *r)
{
    free(r->order);
    free(r->weight);
}

static uint32_t reference_draw(reference *r, const setting *s, double top_p, double min_p, double u)
{
    if (s->temperature == 0.0f)
        return r->order[0].id;
    uint32_t keep = s->top_k && s->top_k < r->n ? s->top_k : r->n;
    double total = 0.0, mass = 0.0;
    for (uint32_t i = 0; i < r->n; i++) {
        double w = exp((r->order[i].logit - r->order[0].logit) / (double)s->temperature);
        r->weight[r->order[i].id] = i < keep ? w : 0.0;
        total += i < keep ? w : 0.0;
    }
    if (top_p > 0.0 && s->top_p < 1.0f) {
        uint32_t i = 0;
        while (i < keep) {
            mass += r->weight[r->order[i++].id];
            if (mass / total >= top_p)
                break;
        }
        for (; i < keep; i++)
            r->weight[r->order[i].id] = 0.0;
    }
    total = 0.0;
    for (uint32_t i = 0; i < r->n; i++) {
        if (r->weight[i] < min_p)
            r->weight[i] = 0.0;
        total += r->weight[i];
    }
    double sum = 0.0;
    uint32_t last = r->order[0].id;
    for (uint32_t i = 0; i < r->n; i++) {
        sum += r->weight[i];
        if (r->weight[i] > 0.0)
            last = i;
        if (sum > u * total)
            return i;
    }
    return last;
}

/* True if a change of 1e-6 in the draw or in a bound gives this token. */
static bool near_boundary(reference *r, const setting *s, double u, uint32_t token)
{
    for (int i = 0; i < 27; i++) {
        double du = (i % 3 - 1) * 1e-6, dp = (i / 3 % 3 - 1) * 1e-6, dm = (i / 9 - 1) * 1e-6;
        if (reference_draw(r, s, s->top_p * (1.0 + dp), s->min_p * (1.0 + dm), u + du) == token)
            return true;
    }
    return false;
}

typedef struct sampling {
    device_fixture *f;
    test_buffer logits, out;
    step_params step;
} sampling;

static void sampling_open(sampling *s, device_fixture *f, op_shape shape, const float *logits,
                          uint32_t n)
{
    memset(s, 0, sizeof *s);
    s->f = f;
    s->logits = fixture_buffer(s->f, (uint64_t)n * 4, logits);
    s->out = fixture_buffer(s->f, 8, NULL);
    s->step = (step_params){.n_rows = 1, .top_p = 1.0f};
    op_context ctx = fixture_begin(s->f, &s->step, false);
    ctx.shape = shape;
    test_buffer scratch = fixture_buffer(s->f, op_sample_scratch_bytes(&ctx, n), NULL);
    op_sample_args args = {s->logits.range, n, s->out.range, scratch.range};
    EXPECT_OK(op_sample(&ctx, &args));
    fixture_free(s->f, &scratch);
}

static uint32_t sampling_draw(sampling *s, const setting *set, float u, uint32_t *flags)
{
    s->step.temperature = set->temperature;
    s->step.top_p = set->top_p;
    s->step.min_p = set->min_p;
    s->step.top_k = set->top_k;
    s->step.uniform = u;
    fixture_step(s->f, &s->step);
    fixture_fill(s->f, &s->out, NULL);
    fixture_run(s->f);
    uint32_t out[2];
    fixture_read(s->f, &s->out, out);
    *flags = out[1];
    return out[0];
}

static void sampling_close(sampling *s)
{
    fixture_end(s->f);
    fixture_free(s->f, &s->logits);
    fixture_free(s->f, &s->out);
}

static const setting settings[] = {
    {0.0f, 1.0f, 0.0f, 0},   {1.0f, 1.0f, 0.0f, 0},    {0.7f, 0.9f, 0.0f, 0},
    {1.0f, 1.0f, 0.0f, 1},   {1.3f, 1.0f, 0.0f, 40},   {0.8f, 0.95f, 0.0f, 50},
    {1.0f, 1.0f, 0.05f, 0},  {1.0f, 0.5f, 0.02f, 20},  {0.05f, 0.9f, 0.1f, 5},
    {50.0f, 0.99f, 0.0f, 0}, {1.0f, 0.001f, 0.0f, 0},  {1.0f, 0.0f, 0.0f, 7},
    {1.0f, 1.0f, 1.0f, 0},   {2.0f, 0.3f, 0.0f, 1000}, {1.0f, 0.999999f, 0.0f, 0},
};
enum { SETTINGS = sizeof settings / sizeof settings[0] };

enum { KIND_NORMAL, KIND_TIES, KIND_FLAT, KIND_PEAK, KIND_HUGE, KINDS };

static void logits_make(rng *r, int kind, float *logits, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++) {
        double x = 3.0 * rng_normal(r);
        if (kind == KIND_TIES)
            x = round(x); /* zeros of both signs, too */
        else if (kind == KIND_FLAT)
            x = -7.25;
        else if (kind == KIND_PEAK)
            x = i == n / 3 ? 40.0 : x - 20.0;
        else if (kind == KIND_HUGE)
            x *= 1e37;
        logits[i] = (float)x;
    }
}

/* Draws with one set of logits under all settings; adds to *draws and *apart. */
static void check_logits(device_fixture *f, op_shape shape, int kind, uint32_t n,
                         uint32_t draws_each, uint32_t *draws, uint32_t *apart)
{
    float *logits = ref_alloc_bytes(n, sizeof *logits);
    rng r = rng_seed(n * 10 + (uint32_t)kind);
    logits_make(&r, kind, logits, n);
    reference ref = reference_make(logits, n);
    ful_alloc alloc = mem_functions(NULL);
    sampler_scratch scratch = {.alloc = &alloc};
    sampling s;
    sampling_open(&s, f, shape, logits, n);
    for (uint32_t i = 0; i < SETTINGS; i++) {
        for (uint32_t d = 0; d < draws_each; d++) {
            const setting *set = &settings[i];
            ful_sampler_params params = {.struct_size = sizeof params,
                                         .seed = i,
                                         .temperature = set->temperature,
                                         .top_k = set->top_k,
                                         .top_p = set->top_p,
                                         .min_p = set->min_p};
            int32_t host;
            EXPECT_OK(sampler_pick(logits, n, &params, d, &scratch, &host));
            float u = (float)sampler_uniform(i, d);
            uint32_t flags, token = sampling_draw(&s, set, u < 1.0f ? u : 0.99999994f, &flags);
            assert_int_equal(flags, 0);
            assert_true(token < n);
            (*draws)++;
            if (token == (uint32_t)host)
                continue;
            (*apart)++;
            if (!near_boundary(&ref, set, u, token))
                fail_msg(
                    "sample vocab %u kind %d %s caps '%s' setting %u draw %u: token %u, the host "
                    "draws %d",
                    (unsigned)n, kind, shape == OP_SHAPE_WIDE ? "wide" : "narrow", f->caps,
                    (unsigned)i, (unsigned)d, (unsigned)token, (int)host);
        }
    }
    sampling_close(&s);
    sampler_scratch_release(&scratch);
    reference_free(&ref);
    free(logits);
}

static void test_like_host(void **state)
{
    (void)state;
    static const uint32_t vocabs[] = {1, 2, 31, 97, 1000, 4096, 32768, 262144};
    uint32_t draws = 0, apart = 0;
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t v = 0; v < 8; v++) {
        uint32_t n = vocabs[v];
        if (n > 32768 && !fixture_full())
            continue;
        for (int kind = 0; kind < KINDS; kind++) {
            uint32_t each = n > 5000 ? 3 : fixture_full() ? 24 : 8;
            check_logits(&f, OP_SHAPE_NARROW, kind, n, each, &draws, &apart);
            check_logits(&f, OP_SHAPE_WIDE, kind, n, n > 5000 ? 1 : each / 4, &draws, &apart);
        }
    }
    fixture_close(&f);
    print_message("%u draws, %u apart from the host's, all within 1e-6 of a boundary\n",
                  (unsigned)draws, (unsigned)apart);
    assert_true(apart * 500 < draws);
}

static void test_masks(void **state)
{
    (void)state;
    uint32_t draws = 0, apart = 0;
    for (uint32_t m = 0; fixture_masks[m] != NULL; m++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[m]);
        for (int kind = 0; kind < 2; kind++)
            check_logits(&f, OP_SHAPE_WIDE, kind, 1000, 4, &draws, &apart);
        fixture_close(&f);
    }
    assert_true(apart * 100 <= draws);
}

static void test_largest_vocabulary(void **state)
{
    (void)state;
    enum { N = 262144 };
    float *logits = ref_alloc_bytes(N, sizeof *logits);
    for (uint32_t i = 0; i < N; i++)
        logits[i] = i >= 200000 ? 2.0f : -1.0f;
    device_fixture f;
    fixture_open(&f, "");
    sampling s;
    sampling_open(&s, &f, OP_SHAPE_AUTO, logits, N);
    uint32_t flags;
    setting greedy = {0.0f, 1.0f, 0.0f, 0};
    assert_int_equal(sampling_draw(&s, &greedy, 0.5f, &flags), 200000);
    /* Of 62,144 equal ones top-k leaves the lowest ids; half of them lie below the draw. */
    setting k = {1.0f, 1.0f, 0.0f, 1001};
    assert_int_equal(sampling_draw(&s, &k, 0.5f, &flags), 200500);
    setting one = {1.0f, 1e-9f, 0.0f, 0};
    assert_int_equal(sampling_draw(&s, &one, 0.9999f, &flags), 200000);
    sampling_close(&s);
    fixture_close(&f);
    free(logits);
}

static void test_not_finite(void **state)
{
    (void)state;
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    enum { N = 300 };
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 3; i++) {
        for (uint32_t at = 0; at < N; at += 149) {
            float logits[N];
            for (uint32_t j = 0; j < N; j++)
                logits[j] = (float)j * 0.01f;
            logits[at] = bad[i];
            sampling s;
            sampling_open(&s, &f, at ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, logits, N);
            for (uint32_t j = 0; j < SETTINGS; j++) {
                uint32_t flags;
                uint32_t token = sampling_draw(&s, &settings[j], 0.25f, &flags);
                assert_int_equal(flags, 1);
                assert_true(token < N);
            }
            sampling_close(&s);
        }
    }
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_largest_vocabulary),
        cmocka_unit_test(test_masks),
        cmocka_unit_test(test_like_host),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
