/* The demo model on 512 held-out tokens against a float64 run of the reference: negative log-likelihood of every
 * token, logits of every 32nd. */
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

static void run_demo(const char *caps, bool half)
{
    static ful_alloc libc;
    libc = mem_functions(NULL);
    tensor_file *file = NULL;
    size_t n;
    EXPECT_OK(tensor_file_open(&libc, FUL_TEST_DATA "/../samples/demo-model/golden.safetensors", &file));
    int32_t *ids = ref_golden_i32(file, "ids", &n);
    assert_int_equal(n, TOKENS);
    double *nll = ref_golden_f32(file, "nll", &n), *logits = ref_golden_f32(file, "logits_every_32", &n);
    assert_non_null(nll);
    assert_non_null(logits);

    model_fixture f;
    if (!model_fixture_open(&f, caps, demo_dir, half, 256, 1024)) {
        printf("demo [%s] f16: not on this device\n", caps);
    } else {
        demo_run run = {.ids = ids, .every = calloc(TOKENS / EVERY * VOCAB, sizeof(float))};
        EXPECT_OK(ful_prefill_logits(f.session, ids, TOKENS, take_row, &run));
        double worst = 0.0, mean = 0.0, wanted = 0.0;
        for (size_t i = 0; i + 1 < TOKENS; i++) {
            worst = fmax(worst, fabs(run.nll[i] - nll[i]));
            mean += run.nll[i] / (TOKENS - 1);
            wanted += nll[i] / (TOKENS - 1);
        }
        double error = max_rel_error_f32(run.every, logits, n);
        printf("demo [%s] %s: mean nll %.6f (reference %.6f), worst difference %.2e, logits %.2e\n", caps,
               half ? "f16" : "f32", mean, wanted, worst, error);
        EXPECT_ERROR_BELOW(worst, half ? 2e-2 : 1e-3, "demo [%s] worst nll", caps);
        EXPECT_ERROR_BELOW(fabs(mean - wanted), 1e-3, "demo [%s] mean nll", caps);
        if (!half)
            EXPECT_ERROR_BELOW(error, 1e-5, "demo [%s] logits", caps);
        free(run.every);
        model_fixture_close(&f);
    }
    free(ids);
    free(nll);
    free(logits);
    tensor_file_close(&file);
}

static void test_f32(void **state)
{
    (void)state;
    run_demo("", false);
}

static void test_floor(void **state)
{
    (void)state;
    size_t last = 0;
    while (fixture_masks[last + 1])
        last++;
    run_demo(fixture_masks[last], false);
}

static void test_f16(void **state)
{
    (void)state;
    run_demo("", true);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_floor),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
