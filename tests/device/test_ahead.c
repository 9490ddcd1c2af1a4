/* Decoding ahead of the host: whatever ends a generation, the session is what it would be if each
 * token had been fed by itself. Compared bit for bit: the arithmetic is the same. */
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const golden_dir = FUL_TEST_DATA "/golden/hybrid-7to1";
static const int32_t prompt[] = {5, 6, 7, 120, 44}, never = -1;
enum { PROMPT = sizeof prompt / sizeof *prompt, MOST = 24, CONTEXT = 64 };

typedef struct drawn {
    int32_t tokens[CONTEXT];
    int count, stop_at;       /* the callback says no at this one; 0: never */
    ful_session *look;        /* if not NULL: logits are taken from inside the callback */
    float (*logits)[CONTEXT]; /* their first values */
} drawn;

static bool note(void *ctx, int32_t token)
{
    drawn *d = ctx;
    if (d->look != NULL) {
        const float *logits;
        EXPECT_OK(ful_logits(d->look, &logits, NULL));
        memcpy(d->logits[d->count], logits, sizeof d->logits[0]);
    }
    d->tokens[d->count++] = token;
    return d->count != d->stop_at;
}

static model_fixture open_wide(bool half)
{
    model_fixture f;
    model_fixture_shape = OP_SHAPE_WIDE;
    assert_true(model_fixture_open(&f, "", golden_dir, half, 64, CONTEXT));
    model_fixture_shape = OP_SHAPE_AUTO;
    if (device_is_built_in(f.device.device)) {
        model_fixture_close(&f);
        skip(); /* it has no wide kernels, which write states beside those they read */
    }
    assert_true(session_ahead_usable(f.session));
    return f;
}

static ful_session *fed_one_by_one(model_fixture *f, const int32_t *tokens, size_t n)
{
    ful_session *s = NULL;
    EXPECT_OK(ful_session_create(&s, f->model, ful_session_params(.max_tokens = CONTEXT)));
    EXPECT_OK(ful_prefill(s, tokens, PROMPT));
    for (size_t i = PROMPT; i < n; i++)
        EXPECT_OK(ful_decode(s, tokens[i]));
    return s;
}

static void expect_same_logits(ful_session *a, ful_session *b)
{
    const float *x, *y;
    size_t n;
    float *copy;
    EXPECT_OK(ful_logits(a, &x, &n));
    copy = malloc(n * sizeof *copy);
    memcpy(copy, x, n * sizeof *copy);
    EXPECT_OK(ful_logits(b, &y, &n));
    assert_memory_equal(copy, y, n * sizeof *copy);
    free(copy);
}

/* Logits and states of a session against one that was fed the same tokens by ful_decode; then both
 * go on with a chunk and a token. */
static void expect_settled(model_fixture *f)
{
    static const int32_t rest[] = {9, 8, 300};
    const int32_t *tokens;
    size_t n = ful_session_tokens(f->session, &tokens);
    ful_session *plain = fed_one_by_one(f, tokens, n);
    expect_same_logits(f->session, plain);
    for (uint32_t l = 0; l < f->model->config.block_count; l++) {
        gpu_buffer *a = &f->session->state.lightning[l], *b = &plain->state.lightning[l];
        if (a->bytes == 0)
            continue;
        size_t bytes = (size_t)(a->bytes / 2);
        void *x = malloc(bytes), *y = malloc(bytes);
        EXPECT_OK(gpu_range_read(f->device.device, gpu_whole(a), 0, x, bytes));
        EXPECT_OK(gpu_range_read(f->device.device, gpu_whole(b), 0, y, bytes));
        assert_memory_equal(x, y, bytes);
        free(x);
        free(y);
    }
    if (n + 4 <= CONTEXT) {
        EXPECT_OK(ful_prefill(f->session, rest, 3));
        EXPECT_OK(ful_prefill(plain, rest, 3));
        expect_same_logits(f->session, plain);
        EXPECT_OK(ful_decode(f->session, 1));
        EXPECT_OK(ful_decode(plain, 1));
        expect_same_logits(f->session, plain);
    }
    ful_session_destroy(&plain);
}

static ful_stop generate(model_fixture *f, drawn *d, size_t most, int32_t stop,
                         const ful_sampler_params *sampler)
{
    ful_stop why;
    EXPECT_OK(ful_generate(f->session,
                           ful_generate_params(.max_tokens = most, .sampler = sampler,
                                               .stop_tokens = &stop, .n_stop_tokens = 1),
                           note, d, &why));
    return why;
}

static void begin(model_fixture *f)
{
    EXPECT_OK(ful_session_reset(f->session));
    EXPECT_OK(ful_prefill(f->session, prompt, PROMPT));
}

/* Greedy tokens are those of the host's sampler; every way to stop, at every early step. */
static void check_stops(bool half)
{
    model_fixture f = open_wide(half);
    drawn all = {0};
    begin(&f);
    assert_int_equal(generate(&f, &all, MOST, never, NULL), FUL_STOP_MAX_TOKENS);
    assert_int_equal(all.count, MOST);
    expect_settled(&f);
    ful_session *plain = fed_one_by_one(&f, prompt, PROMPT);
    for (int i = 0; i < MOST; i++) {
        int32_t token;
        EXPECT_OK(ful_sample(plain, NULL, &token));
        assert_int_equal(token, all.tokens[i]);
        EXPECT_OK(ful_decode(plain, token));
    }
    ful_session_destroy(&plain);

    for (int at = 1; at <= 5; at++) {
        drawn d = {.stop_at = at};
        begin(&f);
        assert_int_equal(generate(&f, &d, 0, never, NULL), FUL_STOP_CALLBACK);
        assert_int_equal(ful_session_tokens(f.session, NULL), PROMPT + at - 1);
        expect_settled(&f);

        d = (drawn){0};
        begin(&f);
        assert_int_equal(generate(&f, &d, (size_t)at, never, NULL), FUL_STOP_MAX_TOKENS);
        assert_memory_equal(d.tokens, all.tokens, (size_t)at * sizeof *d.tokens);
        expect_settled(&f);

        d = (drawn){0};
        begin(&f);
        int first = 0;
        while (all.tokens[first] != all.tokens[at])
            first++;
        assert_int_equal(generate(&f, &d, 0, all.tokens[at], NULL), FUL_STOP_TOKEN);
        assert_int_equal(d.count, first);
        expect_settled(&f);
    }
    model_fixture_close(&f);
}

static void test_stops(void **state)
{
    (void)state;
    check_stops(false);
}

static void test_stops_half(void **state)
{
    (void)state;
    model_fixture f;
    if (model_fixture_open(&f, "", golden_dir, true, 64, CONTEXT)) {
        model_fixture_close(&f);
        check_stops(true);
    }
}

/* The last token the session has room for, one generation after the other, and other seeds. */
static void test_going_on(void **state)
{
    (void)state;
    model_fixture f = open_wide(false);
    drawn d = {0};
    begin(&f);
    const ful_sampler_params *warm = ful_sampler_params(.seed = 3, .temperature = 1.5f);
    assert_int_equal(generate(&f, &d, 7, never, warm), FUL_STOP_MAX_TOKENS);
    assert_int_equal(generate(&f, &d, 6, never, warm), FUL_STOP_MAX_TOKENS);
    expect_settled(&f);
    drawn whole = {0};
    begin(&f);
    assert_int_equal(generate(&f, &whole, 13, never, warm), FUL_STOP_MAX_TOKENS);
    assert_memory_equal(whole.tokens, d.tokens, 13 * sizeof *d.tokens);
    begin(&f);
    d = (drawn){0};
    assert_int_equal(generate(&f, &d, 0, never, warm), FUL_STOP_CONTEXT);
    assert_int_equal(ful_session_tokens(f.session, NULL), CONTEXT);
    expect_settled(&f);
    model_fixture_close(&f);
}

/* Inside the callback the logits are those its token was drawn from. */
static void test_look(void **state)
{
    (void)state;
    model_fixture f = open_wide(false);
    float seen[MOST][CONTEXT];
    drawn d = {.look = f.session, .logits = seen};
    begin(&f);
    assert_int_equal(generate(&f, &d, MOST, never, NULL), FUL_STOP_MAX_TOKENS);
    ful_session *plain = fed_one_by_one(&f, prompt, PROMPT);
    for (int i = 0; i < MOST; i++) {
        const float *logits;
        EXPECT_OK(ful_logits(plain, &logits, NULL));
        assert_memory_equal(seen[i], logits, sizeof seen[i]);
        EXPECT_OK(ful_decode(plain, d.tokens[i]));
    }
    ful_session_destroy(&plain);
    expect_settled(&f);
    model_fixture_close(&f);
}

static bool any_row(void *ctx, size_t row, const float *logits, size_t n)
{
    (void)ctx, (void)row, (void)logits, (void)n;
    return true;
}

static bool feed_more(void *ctx, int32_t token)
{
    drawn *d = ctx;
    d->tokens[d->count++] = token;
    EXPECT_OK(ful_decode(d->look, 17));
    return d->count < 4;
}

/* A callback that feeds tokens itself finds the session as it should be, and so does what follows.
 */
static void test_feed_inside(void **state)
{
    (void)state;
    model_fixture f = open_wide(false);
    drawn d = {.look = f.session};
    ful_stop why;
    begin(&f);
    EXPECT_OK(ful_generate(f.session,
                           ful_generate_params(.stop_tokens = &never, .n_stop_tokens = 1),
                           feed_more, &d, &why));
    assert_int_equal(why, FUL_STOP_CALLBACK);
    assert_int_equal(ful_session_tokens(f.session, NULL), PROMPT + 7);
    expect_settled(&f);
    /* All logits need other buffers, which what was recorded does not know. */
    d = (drawn){0};
    EXPECT_OK(ful_session_reset(f.session));
    EXPECT_OK(ful_prefill_logits(f.session, prompt, PROMPT, any_row, NULL));
    assert_int_equal(generate(&f, &d, 3, never, NULL), FUL_STOP_MAX_TOKENS);
    expect_settled(&f);
    model_fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_stops),       cmocka_unit_test(test_stops_half),
        cmocka_unit_test(test_going_on),    cmocka_unit_test(test_look),
        cmocka_unit_test(test_feed_inside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
