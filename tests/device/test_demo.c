/* The demo model on 512 held-out tokens against a float64 run of the reference: negative
 * log-likelihood of every token, logits of every 32nd. */
#include "../util/compare.h"
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 512, VOCAB = 4096, EVERY = 32 };

static const char *const demo_dir = FUL_TEST_DATA "/../samples/demo-model";

typedef struct demo_run {
    const int32_t *ids;
    double nll[TOKENS];
    float *every; /* [TOKENS / EVERY][VOCAB] */
} demo_run;

static bool take_row(void *ctx, size_t row, const float *logits, size_t n)
{
    demo_run *run = ctx;
    double top = logits[argmax_f32(logits, n)], sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += exp(logits[i] - top);
    if (row + 1 < TOKENS)
        run->nll[row] = top + log(sum) - logits[run->ids[row + 1]];
    if (row % EVERY == EVERY - 1)
        memcpy(run->every + row / EVERY * VOCAB, logits, VOCAB * sizeof *logits);
    return true;
}

typedef struct demo_golden {
    tensor_file *file;
    int32_t *ids;
    double *nll, *logits;
    size_t n_logits;
    ref_model *ref;
    ref_trace *trace;
} demo_golden;

static demo_golden want;

static int open_golden(void **state)
{
    static ful_alloc libc;
    size_t n;
    (void)state;
    libc = mem_functions(NULL);
    EXPECT_OK(tensor_file_open(&libc, FUL_TEST_DATA "/../samples/demo-model/golden.safetensors",
                               &want.file));
    want.ids = ref_golden_i32(want.file, "ids", &n);
    assert_int_equal(n, TOKENS);
    want.nll = ref_golden_f32(want.file, "nll", &n);
    assert_int_equal(n, TOKENS - 1);
    want.logits = ref_golden_f32(want.file, "logits_every_32", &want.n_logits);
    assert_int_equal(want.n_logits, TOKENS / EVERY * VOCAB);
    EXPECT_OK(ref_model_load(demo_dir, DECAY_HF, &want.ref));
    ref_state *sequence = ref_state_create(want.ref);
    want.trace = ref_forward(want.ref, sequence, want.ids, TOKENS);
    ref_state_destroy(&sequence);
    return 0;
}

static int close_golden(void **state)
{
    (void)state;
    ref_trace_destroy(&want.trace);
    ref_model_destroy(&want.ref);
    free(want.ids);
    free(want.nll);
    free(want.logits);
    tensor_file_close(&want.file);
    return 0;
}

typedef enum routing { ROUTING_PLAIN, ROUTING_WATCHED, ROUTING_INJECTED } routing;

/* Runs the held-out tokens. Fp16 rounding may choose another expert where two are nearly as good
 * (the reference's gap says how nearly); from there on the token's likelihood is another model's,
 * so the worst token is held to the limit up to the first flip, and throughout when the reference's
 * routing is injected. */
static void run_demo(const char *caps, bool half, routing how)
{
    model_fixture f;
    routing_watch w = {.flip_token = SIZE_MAX};
    if (!model_fixture_open(&f, caps, demo_dir, half, 256, 1024)) {
        printf("demo [%s] f16: not on this device\n", caps);
        return;
    }
    demo_run run = {.ids = want.ids, .every = calloc(TOKENS / EVERY * VOCAB, sizeof(float))};
    if (how != ROUTING_PLAIN)
        routing_watch_begin(&w, &f, want.trace, how == ROUTING_INJECTED);
    EXPECT_OK(ful_prefill_logits(f.session, want.ids, TOKENS, take_row, &run));
    if (how != ROUTING_PLAIN)
        routing_watch_end(&w);
    double worst = 0.0, before_flip = 0.0, mean = 0.0, wanted = 0.0;
    for (size_t i = 0; i + 1 < TOKENS; i++) {
        double d = fabs(run.nll[i] - want.nll[i]);
        worst = fmax(worst, d);
        if (i < w.flip_token || how == ROUTING_INJECTED)
            before_flip = fmax(before_flip, d);
        mean += run.nll[i] / (TOKENS - 1);
        wanted += want.nll[i] / (TOKENS - 1);
    }
    double error = max_rel_error_f32(run.every, want.logits, want.n_logits);
    printf("demo [%s] %s%s: mean nll %.6f (reference %.6f), worst difference %.2e (%.2e before the "
           "first flip), logits "
           "%.2e; %llu of %llu routings flipped (+%llu downstream), largest gap %.1e\n",
           caps, half ? "f16" : "f32", how == ROUTING_INJECTED ? " injected" : "", mean, wanted,
           worst, before_flip, error, (unsigned long long)w.flips, (unsigned long long)w.choices,
           (unsigned long long)w.downstream, w.largest_gap);
    EXPECT_ERROR_BELOW(before_flip, half ? 2e-2 : 1e-3, "demo [%s] worst nll", caps);
    EXPECT_ERROR_BELOW(fabs(mean - wanted), 1e-3, "demo [%s] mean nll", caps);
    EXPECT_ERROR_BELOW(w.largest_gap, half ? 2e-3 : 1e-5, "demo [%s] gap of a flip", caps);
    if (!half)
        EXPECT_ERROR_BELOW(error, 1e-5, "demo [%s] logits", caps);
    free(run.every);
    model_fixture_close(&f);
}

static void test_f32(void **state)
{
    (void)state;
    run_demo("", false, ROUTING_PLAIN);
    run_demo("", false, ROUTING_WATCHED);
}

static void test_floor(void **state)
{
    (void)state;
    size_t last = 0;
    while (fixture_masks[last + 1])
        last++;
    run_demo(fixture_masks[last], false, ROUTING_PLAIN);
}

static void test_f16(void **state)
{
    (void)state;
    run_demo("", true, ROUTING_INJECTED);
    run_demo("", true, ROUTING_WATCHED);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_floor),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, open_golden, close_golden);
}
