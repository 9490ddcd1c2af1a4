/* Every device says the same: the demo model's greedy answers to four prompts, 128 tokens each,
 * against those of the reference in double precision (golden/greedy.txt). They are equal up to the
 * first step at which the reference itself hardly prefers its token (margin below 1e-2), which is
 * printed; behind it the device is fed the reference's tokens and held to every other choice. */
#include "../util/compare.h"
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PROMPTS = 4, STEPS = 128, PROMPT_TOKENS = 384 };

static const char *const demo_dir = FUL_TEST_DATA "/../samples/demo-model";

/* A margin that decides, and how far a device's may be from the reference's, in logits of up to 20.
 * Fp16 rounding also chooses other experts where two are nearly as good: behind a gap of routing
 * below f16_gap only flipped_margin decides. */
static const double f32_margin = 1e-2, f16_margin = 5e-2, flipped_margin = 2.5e-1;
static const double f32_error = 2e-4, f16_error = 5e-2, f16_gap = 2e-3;

typedef struct answer {
    int32_t tokens[PROMPT_TOKENS + STEPS]; /* the prompt, then what the reference says */
    size_t prompt;                         /* tokens of it */
    double margin[STEPS], gap[STEPS];
} answer;

static answer answers[PROMPTS];

/* The next line that is not a comment or empty. */
static char *next_line(FILE *in, char *line, size_t bytes)
{
    while (fgets(line, (int)bytes, in) != NULL)
        if (*line != '#' && *line != '\n')
            return line;
    return NULL;
}

static void read_answer(FILE *in, answer *a)
{
    char line[4096];
    size_t steps = 0;
    assert_non_null(next_line(in, line, sizeof line));
    assert_int_equal(sscanf(line, "prompt %zu", &a->prompt), 1);
    assert_in_range(a->prompt, 1, PROMPT_TOKENS);
    for (size_t i = 0; i < a->prompt;) {
        char *at = next_line(in, line, sizeof line), *end;
        assert_non_null(at);
        for (; i < a->prompt; i++, at = end) {
            a->tokens[i] = (int32_t)strtol(at, &end, 10);
            if (end == at)
                break;
        }
    }
    assert_non_null(next_line(in, line, sizeof line));
    assert_int_equal(sscanf(line, "greedy %zu", &steps), 1);
    assert_int_equal(steps, STEPS);
    for (size_t i = 0; i < STEPS; i++) {
        assert_non_null(next_line(in, line, sizeof line));
        assert_int_equal(
            sscanf(line, "%d %lf %lf", &a->tokens[a->prompt + i], &a->margin[i], &a->gap[i]), 3);
    }
}

static int read_answers(void **state)
{
    (void)state;
    FILE *in = fopen(FUL_TEST_DATA "/golden/greedy.txt", "r");
    assert_non_null(in);
    for (size_t p = 0; p < PROMPTS; p++)
        read_answer(in, &answers[p]);
    fclose(in);
    return 0;
}

/* True if other experts may have been chosen up to a step: the prompt's gaps are in the first. */
static bool flips(const answer *a, size_t step, bool half)
{
    bool found = false;
    for (size_t i = 0; i <= step; i++)
        found |= half && a->gap[i] < f16_gap;
    return found;
}

/* Whether a device has to make the reference's choice. */
static bool decides(const answer *a, size_t step, bool half)
{
    return a->margin[step] >= (flips(a, step, half) ? flipped_margin
                               : half               ? f16_margin
                                                    : f32_margin);
}

/* The first step at which it does not; STEPS: none. */
static size_t first_doubt(const answer *a, bool half)
{
    size_t i = 0;
    while (i < STEPS && decides(a, i, half))
        i++;
    return i;
}

/* ---- on the device ---- */

typedef struct spoken {
    int32_t tokens[STEPS];
    size_t count;
} spoken;

static bool keep_token(void *ctx, int32_t token)
{
    spoken *s = ctx;
    s->tokens[s->count++] = token;
    return true;
}

/* Choices of a device that is fed the reference's tokens. */
typedef struct forced {
    const answer *a;
    const char *what;
    bool half;
    size_t row0;             /* what the next row counts from */
    size_t others, compared; /* choices unlike the reference's; those held to it */
    double error;            /* of the margins */
} forced;

static void compare_choice(forced *f, size_t step, const float *logits, size_t n)
{
    const answer *a = f->a;
    size_t token = (size_t)a->tokens[a->prompt + step], top = argmax_f32(logits, n), next = token;
    for (size_t i = 0; i < n; i++)
        if (i != token && (next == token || logits[i] > logits[next]))
            next = i;
    double margin = (double)logits[token] - (double)logits[next];
    double error = fabs(margin - a->margin[step]);
    f->error = fmax(f->error, error);
    if (!flips(a, step, f->half))
        EXPECT_ERROR_BELOW(error, f->half ? f16_error : f32_error, "%s: margin at step %zu",
                           f->what, step);
    f->others += top != token;
    if (!decides(a, step, f->half))
        return;
    f->compared++;
    if (top != token)
        fail_msg("%s: at step %zu, where the reference's margin is %.2e, token %zu instead of %zu",
                 f->what, step, a->margin[step], top, token);
}

static bool take_row(void *ctx, size_t row, const float *logits, size_t n)
{
    forced *f = ctx;
    size_t next = f->row0 + row + 1; /* token that the row chooses */
    if (next >= f->a->prompt && next < f->a->prompt + STEPS)
        compare_choice(f, next - f->a->prompt, logits, n);
    return true;
}

static void check_answer(model_fixture *m, size_t number)
{
    const answer *a = &answers[number];
    size_t doubt = first_doubt(a, false), same = 0;
    spoken s = {.count = 0};
    const int32_t none = -1;
    char what[64];
    snprintf(what, sizeof what, "prompt %zu %s", number + 1, m->half ? "f16" : "f32");

    EXPECT_OK(ful_session_reset(m->session));
    EXPECT_OK(ful_prefill(m->session, a->tokens, a->prompt));
    EXPECT_OK(ful_generate(
        m->session,
        ful_generate_params(.max_tokens = STEPS, .stop_tokens = &none, .n_stop_tokens = 1),
        keep_token, &s, NULL));
    assert_int_equal(s.count, STEPS);
    while (same < STEPS && s.tokens[same] == a->tokens[a->prompt + same])
        same++;

    /* The prompt's kernels, then those that decode, where the text went its own way. */
    forced f = {.a = a, .what = what, .half = m->half};
    EXPECT_OK(ful_session_reset(m->session));
    EXPECT_OK(ful_prefill_logits(m->session, a->tokens, a->prompt + STEPS - 1, take_row, &f));
    if (same < STEPS) {
        EXPECT_OK(ful_session_reset(m->session));
        EXPECT_OK(ful_prefill(m->session, a->tokens, a->prompt + same));
        for (size_t i = same; i < STEPS; i++) {
            const float *logits;
            size_t n;
            EXPECT_OK(ful_decode(m->session, a->tokens[a->prompt + i]));
            EXPECT_OK(ful_logits(m->session, &logits, &n));
            f.row0 = a->prompt + i;
            take_row(&f, 0, logits, n);
        }
    }
    printf("%s: the same %zu tokens", what, same);
    if (doubt < STEPS)
        printf(", first margin below %.0e at step %zu (%.1e)", f32_margin, doubt, a->margin[doubt]);
    printf("; fed the reference's, %zu choices compared, %zu other ones, margins within %.1e\n",
           f.compared, f.others, f.error);
    if (same < first_doubt(a, m->half))
        fail_msg("%s: other text from step %zu on, where the reference's margin is %.2e", what,
                 same, a->margin[same]);
}

static void check_precision(bool half)
{
    model_fixture m;
    if (!model_fixture_open(&m, "", demo_dir, half, 0, 1024)) {
        printf("f16: not on this device\n");
        return;
    }
    for (size_t p = 0; p < PROMPTS; p++)
        check_answer(&m, p);
    model_fixture_close(&m);
}

static void test_f32(void **state)
{
    (void)state;
    for (size_t p = 0; p < PROMPTS; p++) /* the reference's choices decide something */
        assert_true(first_doubt(&answers[p], false) > 8);
    check_precision(false);
}

static void test_f16(void **state)
{
    (void)state;
    check_precision(true);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_f16),
    };
    return cmocka_run_group_tests(tests, read_answers, NULL);
}
