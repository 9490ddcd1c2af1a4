/* A model computes the same from a GGUF as from the files it was converted from: logits of a
 * prefill and of decoding, bit for bit. */
#include "../util/model_fixture.h"
#include "../util/scratch.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PREFILL = 75, CHUNK = 64, DECODE = 4, ROWS = PREFILL + DECODE };

typedef struct rows {
    float *logits; /* [ROWS][n_vocab], NaN at first */
    size_t n_vocab, count;
} rows;

static bool take_row(void *ctx, size_t row, const float *logits, size_t n)
{
    rows *r = ctx;
    assert_true(row < ROWS && n == r->n_vocab);
    memcpy(r->logits + row * n, logits, n * sizeof *logits);
    r->count++;
    return true;
}

static rows run(const char *path, bool half, bool *usable)
{
    model_fixture f;
    rows r = {0};
    int32_t ids[ROWS];
    *usable = model_fixture_open(&f, "", path, half, CHUNK, 2 * ROWS);
    if (!*usable)
        return r;
    r.n_vocab = ful_model_get_info(f.model)->vocab_size;
    r.logits = malloc(ROWS * r.n_vocab * sizeof *r.logits);
    memset(r.logits, 0xff, ROWS * r.n_vocab * sizeof *r.logits);
    for (uint32_t i = 0; i < ROWS; i++)
        ids[i] = (int32_t)((i * i + 7 * i + 3) % r.n_vocab);
    EXPECT_OK(ful_prefill_logits(f.session, ids, PREFILL, take_row, &r));
    for (size_t i = PREFILL; i < ROWS; i++) {
        const float *logits;
        size_t n;
        EXPECT_OK(ful_decode(f.session, ids[i]));
        EXPECT_OK(ful_logits(f.session, &logits, &n));
        take_row(&r, i, logits, n);
    }
    assert_int_equal(r.count, ROWS);
    model_fixture_close(&f);
    return r;
}

static void convert(const char *from, const char *to, ful_type type)
{
    ful_instance *instance;
    EXPECT_OK(ful_instance_create(&instance, NULL));
    EXPECT_OK(ful_model_convert(instance, from, to, ful_convert_params(.type = type), NULL, NULL));
    ful_instance_destroy(&instance);
}

static void test_same_logits(void **state)
{
    (void)state;
    static const char *const models[] = {FUL_TEST_DATA "/golden/hybrid-7to1",
                                         FUL_TEST_DATA "/golden/many-experts",
                                         FUL_TEST_DATA "/golden/mixed-factors"};
    for (size_t m = 0; m < 3; m++) {
        char path[512], name[32];
        snprintf(name, sizeof name, "model-%zu.gguf", m);
        snprintf(path, sizeof path, "%s", scratch_path(name));
        convert(models[m], path, FUL_TYPE_DEFAULT);
        for (int half = 0; half < 2; half++) {
            bool usable;
            rows want = run(models[m], half, &usable);
            if (!usable)
                continue;
            rows got = run(path, half, &usable);
            assert_int_equal(want.n_vocab, got.n_vocab);
            assert_memory_equal(want.logits, got.logits, ROWS * want.n_vocab * sizeof *want.logits);
            free(want.logits);
            free(got.logits);
        }
    }
}

/* bf16 in f32 is the same numbers. */
static void test_wider_type(void **state)
{
    (void)state;
    static const char model[] = FUL_TEST_DATA "/golden/many-experts";
    char path[512];
    bool usable;
    snprintf(path, sizeof path, "%s", scratch_path("wide.gguf"));
    convert(model, path, FUL_TYPE_F32);
    rows want = run(model, false, &usable), got = run(path, false, &usable);
    double most = 0.0, largest = 0.0;
    for (size_t i = 0; i < ROWS * want.n_vocab; i++) {
        double d = (double)want.logits[i] - (double)got.logits[i], x = (double)want.logits[i];
        d = d < 0 ? -d : d, x = x < 0 ? -x : x;
        most = d > most || d != d ? d : most;
        largest = x > largest ? x : largest;
    }
    EXPECT_ERROR_BELOW(most / largest, 1e-5, "f32 from bf16, %s", model);
    free(want.logits);
    free(got.logits);
}

static int begin(void **state)
{
    (void)state;
    scratch_begin();
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_end();
    return 0;
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_logits),
        cmocka_unit_test(test_wider_type),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
