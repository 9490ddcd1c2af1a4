/* The demo model on a device of profiles.txt: likelihoods of 512 held-out tokens and a greedy
 * answer against the reference's. FULGUR_LAYER_PROFILE names the profile. */
#include "../util/compare.h"
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { TOKENS = 512, PROMPT = 14, ANSWER = 64 };

static const char *const demo_dir = FUL_TEST_DATA "/../samples/demo-model";
static int32_t *ids;
static double *nll;
static int32_t told[PROMPT + ANSWER]; /* the first prompt of golden/greedy.txt and its answer */

static int read_golden(void **state)
{
    static ful_alloc libc;
    tensor_file *file;
    size_t n;
    (void)state;
    libc = mem_functions(NULL);
    EXPECT_OK(
        tensor_file_open(&libc, FUL_TEST_DATA "/../samples/demo-model/golden.safetensors", &file));
    ids = ref_golden_i32(file, "ids", &n);
    assert_int_equal(n, TOKENS);
    nll = ref_golden_f32(file, "nll", &n);
    assert_int_equal(n, TOKENS - 1);
    tensor_file_close(&file);

    char line[4096];
    FILE *in = fopen(FUL_TEST_DATA "/golden/greedy.txt", "r");
    assert_non_null(in);
    for (size_t i = 0; i < PROMPT + ANSWER;) {
        assert_non_null(fgets(line, sizeof line, in));
        if (*line < '0' || *line > '9')
            continue;
        char *at = line;
        /* The prompt is one line, each token of the answer begins one. */
        do
            told[i++] = (int32_t)strtol(at, &at, 10);
        while (i < PROMPT);
    }
    fclose(in);
    return 0;
}

static int free_golden(void **state)
{
    (void)state;
    free(ids);
    free(nll);
    return 0;
}

static bool take_row(void *ctx, size_t row, const float *logits, size_t n)
{
    double *out = ctx, top = logits[argmax_f32(logits, n)], sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += exp(logits[i] - top);
    if (row + 1 < TOKENS)
        out[row] = top + log(sum) - logits[ids[row + 1]];
    return true;
}

typedef struct answer {
    int32_t tokens[ANSWER];
    size_t count;
} answer;

static bool keep_token(void *ctx, int32_t token)
{
    answer *a = ctx;
    a->tokens[a->count++] = token;
    return true;
}

static void check_text(model_fixture *f)
{
    const int32_t none = -1;
    answer a = {.count = 0};
    EXPECT_OK(ful_session_reset(f->session));
    EXPECT_OK(ful_prefill(f->session, told, PROMPT));
    EXPECT_OK(ful_generate(
        f->session,
        ful_generate_params(.max_tokens = ANSWER, .stop_tokens = &none, .n_stop_tokens = 1),
        keep_token, &a, NULL));
    assert_int_equal(a.count, ANSWER);
    assert_memory_equal(a.tokens, told + PROMPT, sizeof a.tokens);
}

/* The device is the profile's, not another one. */
static void check_device(const ful_device_info *info)
{
    char start[80];
    snprintf(start, sizeof start, "%s on ", getenv("FULGUR_LAYER_PROFILE"));
    assert_memory_equal(info->name, start, strlen(start));
    const ful_caps *c = &info->caps;
    printf("%s: Vulkan 1.%u, %u invocations, %u bytes shared, %u buffers,", info->name,
           (unsigned)VK_API_VERSION_MINOR(c->api_version), (unsigned)c->workgroup_invocations,
           (unsigned)c->shared_bytes, (unsigned)c->storage_buffers);
    for (uint32_t bit = 1; bit != 0; bit <<= 1)
        if ((c->features & bit) && ful_feature_name(bit))
            printf(" %s", ful_feature_name(bit));
    printf("\n");
}

static void check_model(bool half)
{
    model_fixture f;
    if (!model_fixture_open(&f, "", demo_dir, half, 256, 1024)) {
        printf("f16: not on this device\n");
        return;
    }
    check_device(ful_device_get_info(f.device.device));
    double got[TOKENS], worst = 0.0, mean = 0.0;
    EXPECT_OK(ful_prefill_logits(f.session, ids, TOKENS, take_row, got));
    for (size_t i = 0; i + 1 < TOKENS; i++) {
        worst = fmax(worst, fabs(got[i] - nll[i]));
        mean += (got[i] - nll[i]) / (TOKENS - 1);
    }
    printf("%s: worst difference of a token's likelihood %.1e, of the mean %.1e\n",
           half ? "f16" : "f32", worst, fabs(mean));
    EXPECT_ERROR_BELOW(fabs(mean), half ? 1e-3 : 1e-4, "mean nll");
    /* Halves may choose another expert where two are nearly as good. */
    EXPECT_ERROR_BELOW(worst, half ? 1.0 : 1e-3, "worst nll");
    if (!half)
        check_text(&f);
    model_fixture_close(&f);
}

static void test_f32(void **state)
{
    (void)state;
    check_model(false);
}

static void test_f16(void **state)
{
    (void)state;
    if (fixture_full())
        check_model(true);
    else
        skip();
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, read_golden, free_golden);
}
