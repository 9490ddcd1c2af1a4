/* Whole models against the golden vectors: logits of every length, hidden states, sub-layers,
 * lightning states, greedy decode, any split of the prompt, and routing. Errors are max|a-b| /
 * max|b| per tensor. */
#include "../util/compare.h"
#include "../util/model_fixture.h"
#include "../util/rng.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const models[] = {"hybrid-7to1", "mixed-factors", "many-experts"};
static const uint32_t lengths[] = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 515};
#define COUNT(a) (sizeof(a) / sizeof *(a))

static const double f32_limit = 1e-5, f16_limit = 3e-3, f32_gap = 1e-5, f16_gap = 2e-3;

static tensor_file *golden_open(const char *model, char *dir, size_t bytes)
{
    static ful_alloc libc; /* outlives every file opened with it */
    char path[600];
    tensor_file *file = NULL;
    libc = mem_functions(NULL);
    snprintf(dir, bytes, "%s/golden/%s", FUL_TEST_DATA, model);
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    EXPECT_OK(tensor_file_open(&libc, path, &file));
    return file;
}

static double *golden(const tensor_file *file, size_t *count, const char *format, ...)
    PRINTF_LIKE(3, 4);
static double *golden(const tensor_file *file, size_t *count, const char *format, ...)
{
    char name[96];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    return ref_golden_f32(file, name, count);
}

static int32_t *golden_ids(const tensor_file *file, const char *kind, uint32_t T)
{
    char name[64];
    size_t n;
    snprintf(name, sizeof name, "%s_%u", kind, T);
    int32_t *ids = ref_golden_i32(file, name, &n);
    assert_non_null(ids);
    return ids;
}

/* ---- logits of a prompt ---- */

typedef struct rows_kept {
    float *rows; /* [T][vocab] */
    size_t vocab;
} rows_kept;

static bool keep_row(void *ctx, size_t row, const float *logits, size_t n)
{
    rows_kept *k = ctx;
    memcpy(k->rows + row * n, logits, n * sizeof *logits);
    return true;
}

/* Error of the logits at the rows a golden holds. */
static double logits_error(const tensor_file *file, uint32_t T, const float *rows, size_t vocab)
{
    size_t n;
    double *want = golden(file, &n, "logits_%u", T);
    assert_non_null(want);
    double error;
    if (T <= 65) {
        assert_int_equal(n, T * vocab);
        error = max_rel_error_f32(rows, want, n);
    } else {
        const size_t at[3] = {0, T / 2, T - 1};
        float *picked = malloc(3 * vocab * sizeof *picked);
        assert_int_equal(n, 3 * vocab);
        for (int i = 0; i < 3; i++)
            memcpy(picked + (size_t)i * vocab, rows + at[i] * vocab, vocab * sizeof *picked);
        error = max_rel_error_f32(picked, want, n);
        free(picked);
    }
    free(want);
    return error;
}

static void check_lengths(model_fixture *f, const tensor_file *file, const ref_model *ref,
                          const char *name, bool inject)
{
    size_t vocab = f->model->config.vocab_size;
    double limit = f->half ? f16_limit : f32_limit, gap = f->half ? f16_gap : f32_gap, worst = 0.0;
    uint64_t flips = 0, choices = 0, downstream = 0;
    double largest = 0.0;
    for (size_t i = 0; i < COUNT(lengths); i++) {
        uint32_t T = lengths[i];
        if (T == 515 && !fixture_full() && *f->device.caps)
            continue;
        int32_t *ids = golden_ids(file, "ids", T);
        ref_state *state = ref_state_create(ref);
        ref_trace *trace = ref_forward(ref, state, ids, T);
        rows_kept kept = {malloc(T * vocab * sizeof(float)), vocab};
        routing_watch w;
        EXPECT_OK(ful_session_reset(f->session));
        routing_watch_begin(&w, f, trace, inject);
        EXPECT_OK(ful_prefill_logits(f->session, ids, T, keep_row, &kept));
        routing_watch_end(&w);
        double error = logits_error(file, T, kept.rows, vocab);
        if (inject || !f->half || w.flips + w.downstream == 0)
            EXPECT_ERROR_BELOW(error, limit, "%s [%s] %s logits of %u tokens", name, f->device.caps,
                               f->half ? "f16" : "f32", T);
        if (!inject)
            EXPECT_ERROR_BELOW(w.largest_gap, gap, "%s [%s] routing of %u tokens: gap of a flip",
                               name, f->device.caps, T);
        if (!f->half && !inject)
            assert_int_equal(w.downstream, 0);
        worst = error > worst ? error : worst;
        flips += w.flips, choices += w.choices, downstream += w.downstream;
        largest = w.largest_gap > largest ? w.largest_gap : largest;
        ref_trace_destroy(&trace);
        ref_state_destroy(&state);
        free(kept.rows);
        free(ids);
    }
    printf("%s [%s] %s%s: worst error of logits %.2e; %llu of %llu routings flipped (+%llu "
           "downstream), largest gap %.1e\n",
           name, f->device.caps, f->half ? "f16" : "f32", inject ? " injected" : "", worst,
           (unsigned long long)flips, (unsigned long long)choices, (unsigned long long)downstream,
           largest);
}

/* The same prompt without a tap, as the product runs it: recorded schedules. */
static void check_recorded(model_fixture *f, const tensor_file *file, const char *name)
{
    size_t vocab = f->model->config.vocab_size;
    for (size_t i = 0; i < COUNT(lengths); i++) {
        uint32_t T = lengths[i];
        int32_t *ids = golden_ids(file, "ids", T);
        rows_kept kept = {malloc(T * vocab * sizeof(float)), vocab};
        EXPECT_OK(ful_session_reset(f->session));
        EXPECT_OK(ful_prefill_logits(f->session, ids, T, keep_row, &kept));
        EXPECT_ERROR_BELOW(logits_error(file, T, kept.rows, vocab), f32_limit,
                           "%s [%s] recorded, %u tokens", name, f->device.caps, T);
        free(kept.rows);
        free(ids);
    }
}

/* ---- any split of the prompt, then greedy decode ---- */

static void check_split(model_fixture *f, const tensor_file *file, const char *name, uint32_t T,
                        uint64_t seed)
{
    size_t vocab = f->model->config.vocab_size, n;
    int32_t *ids = golden_ids(file, "ids", T);
    double *want = golden(file, &n, "logits_%u", T);
    rng r = rng_seed(seed);
    EXPECT_OK(ful_session_reset(f->session));
    for (uint32_t at = 0; at < T;) {
        uint32_t take = seed == 0 ? 1 : 1 + rng_below(&r, seed % 2 ? 7 : 100);
        take = take < T - at ? take : T - at;
        EXPECT_OK(ful_prefill(f->session, ids + at, take));
        at += take;
    }
    const float *logits;
    size_t have;
    EXPECT_OK(ful_logits(f->session, &logits, &have));
    assert_int_equal(have, vocab);
    EXPECT_ERROR_BELOW(max_rel_error_f32(logits, want + n - vocab, vocab), f32_limit,
                       "%s [%s] %u tokens in pieces, seed %llu", name, f->device.caps, T,
                       (unsigned long long)seed);
    free(want);
    free(ids);
}

static void check_decode(model_fixture *f, const tensor_file *file, const char *name, uint32_t T)
{
    size_t vocab = f->model->config.vocab_size, n;
    int32_t *ids = golden_ids(file, "ids", T), *chosen = golden_ids(file, "decode_ids", T);
    double *want = golden(file, &n, "decode_logits_%u", T);
    float *rows = malloc(16 * vocab * sizeof *rows);
    assert_int_equal(n, 16 * vocab);
    EXPECT_OK(ful_session_reset(f->session));
    EXPECT_OK(ful_prefill(f->session, ids, T));
    for (int i = 0; i < 16; i++) {
        int32_t token;
        const float *logits;
        EXPECT_OK(ful_sample(f->session, NULL, &token));
        assert_int_equal(token, chosen[i]);
        EXPECT_OK(ful_decode(f->session, token));
        EXPECT_OK(ful_logits(f->session, &logits, NULL));
        memcpy(rows + (size_t)i * vocab, logits, vocab * sizeof *rows);
    }
    EXPECT_ERROR_BELOW(max_rel_error_f32(rows, want, n), f32_limit,
                       "%s [%s] greedy decode after %u tokens", name, f->device.caps, T);
    free(rows);
    free(want);
    free(chosen);
    free(ids);
}

/* ---- inside the model ---- */

typedef struct inside {
    model_fixture *fixture;
    const tensor_file *file;
    const char *name;
    uint32_t T;
    double limit;
    float *norm[2]; /* the last norm's output and ... */
    int checked;
    float alpha, beta;
    int32_t layer;
} inside;

static float *read_rows(inside *in, gpu_range range, uint32_t columns)
{
    float *rows = malloc((size_t)in->T * columns * sizeof *rows);
    EXPECT_OK(gpu_range_read(in->fixture->device.device, range, 0, rows,
                             (uint64_t)in->T * columns * sizeof *rows));
    return rows;
}

static void compare_inside(inside *in, const float *rows, double *want, size_t n, const char *what,
                           int32_t layer)
{
    if (!want)
        return;
    EXPECT_ERROR_BELOW(max_rel_error_f32(rows, want, n), in->limit, "%s [%s] %s of layer %d",
                       in->name, in->fixture->device.caps, what, layer);
    in->checked++;
    free(want);
}

/* The stream between layers is alpha*m + beta*z, which no kernel stores. */
static void check_stream(inside *in, const float *z, uint32_t columns, int32_t layer)
{
    const model_config *c = &in->fixture->model->config;
    size_t count, n = (size_t)in->T * columns;
    float *x = malloc(n * sizeof *x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)(c->alpha_mlp * in->norm[1][i] + c->beta_mlp * z[i]);
    compare_inside(in, x, golden(in->file, &count, "hidden_in_65_%d", layer + 1), n, "input",
                   layer + 1);
    free(x);
}

static ful_result look_inside(void *ctx, const char *name, int32_t layer, gpu_range range,
                              uint32_t rows, uint32_t columns)
{
    inside *in = ctx;
    size_t n = (size_t)in->T * columns, count;
    if (rows < in->T || strcmp(name, "routes") == 0)
        return FUL_OK;
    float *have = read_rows(in, range, columns);
    if (strcmp(name, "embed") == 0)
        compare_inside(in, have, golden(in->file, &count, "hidden_in_65_0"), n, "input", 0);
    else if (strcmp(name, "final") == 0)
        compare_inside(in, have, golden(in->file, &count, "hidden_final_65"), n, "final norm",
                       layer);
    else if (strcmp(name, "norm1") == 0 || strcmp(name, "norm2") == 0 ||
             strcmp(name, "attn") == 0 || strcmp(name, "moe") == 0)
        compare_inside(in, have, golden(in->file, &count, "sub_65_%s_%d", name, layer), n, name,
                       layer);
    if (strcmp(name, "moe") == 0)
        check_stream(in, have, columns, layer);
    int slot = strcmp(name, "norm2") == 0;
    if (slot || strcmp(name, "norm1") == 0) {
        free(in->norm[slot]);
        in->norm[slot] = have;
    } else {
        free(have);
    }
    return FUL_OK;
}

static bool ignore_row(void *ctx, size_t row, const float *logits, size_t n)
{
    (void)ctx, (void)row, (void)logits, (void)n;
    return true;
}

static void check_inside(model_fixture *f, const tensor_file *file, const char *name)
{
    const model_config *c = &f->model->config;
    if (f->session->all_rows < 65) {
        printf("%s [%s]: chunks of %u tokens are too short to look inside\n", name, f->device.caps,
               f->session->all_rows);
        return;
    }
    int32_t *ids = golden_ids(file, "ids", 65);
    inside in = {.fixture = f, .file = file, .name = name, .T = 65, .limit = f32_limit};
    schedule_tap tap = {.fn = look_inside, .ctx = &in};
    EXPECT_OK(ful_session_reset(f->session));
    f->session->tap = &tap;
    EXPECT_OK(ful_prefill_logits(f->session, ids, 65, ignore_row, NULL));
    f->session->tap = NULL;
    for (uint32_t l = 0; l < c->block_count; l++) {
        size_t n;
        double *want = golden(file, &n, "state_65_%u", l);
        if (!want)
            continue;
        float *state = malloc(n * sizeof *state);
        assert_true(f->session->state.lightning[l].bytes >= n * sizeof *state);
        EXPECT_OK(gpu_range_read(f->device.device, gpu_whole(&f->session->state.lightning[l]), 0,
                                 state, n * sizeof *state));
        compare_inside(&in, state, want, n, "state", (int32_t)l);
        free(state);
    }
    /* inputs of all layers, final norm, four sub-layers of two layers, states */
    uint32_t lightning = 0;
    for (uint32_t l = 0; l < c->block_count; l++)
        lightning += c->layers[l] == LAYER_LIGHTNING;
    assert_int_equal(in.checked, c->block_count + 1 + 8 + lightning);
    free(in.norm[0]);
    free(in.norm[1]);
    free(ids);
}

/* ---- the tests ---- */

static void run_f32(const char *model, const char *caps)
{
    char dir[512];
    tensor_file *file = golden_open(model, dir, sizeof dir);
    model_fixture f;
    assert_true(model_fixture_open(&f, caps, dir, false, 0, 1024));
    ref_model *ref = NULL;
    EXPECT_OK(ref_model_load(dir, DECAY_HF, &ref));
    check_lengths(&f, file, ref, model, false);
    check_recorded(&f, file, model);
    check_inside(&f, file, model);
    check_decode(&f, file, model, 17);
    check_decode(&f, file, model, 257);
    check_split(&f, file, model, 64, 0);
    for (uint64_t seed = 1; seed <= (fixture_full() ? 8u : 3u); seed++) {
        check_split(&f, file, model, 65, seed);
        check_split(&f, file, model, seed % 2 ? 257 : 515, seed);
    }
    ref_model_destroy(&ref);
    model_fixture_close(&f);
    tensor_file_close(&file);
}

static void run_f16(const char *model, const char *caps)
{
    char dir[512];
    tensor_file *file = golden_open(model, dir, sizeof dir);
    model_fixture f;
    if (model_fixture_open(&f, caps, dir, true, 0, 1024)) {
        ref_model *ref = NULL;
        EXPECT_OK(ref_model_load(dir, DECAY_HF, &ref));
        check_lengths(&f, file, ref, model, true);
        check_lengths(&f, file, ref, model, false);
        ref_model_destroy(&ref);
        model_fixture_close(&f);
    } else {
        printf("%s [%s] f16: not on this device\n", model, caps);
    }
    tensor_file_close(&file);
}

static void test_f32(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT(models); m++)
        run_f32(models[m], "");
}

static void test_f32_masks(void **state)
{
    (void)state;
    for (size_t i = 1; fixture_masks[i]; i++) {
        bool last = !fixture_masks[i + 1];
        if (!last && !fixture_full())
            continue;
        for (size_t m = 0; m < COUNT(models); m++)
            if (last || m == i % COUNT(models))
                run_f32(models[m], fixture_masks[i]);
    }
}

/* The kernels that GPUs run, on whatever device this is. */
static void test_wide(void **state)
{
    (void)state;
    model_fixture_shape = OP_SHAPE_WIDE;
    size_t last = 0;
    while (fixture_masks[last + 1])
        last++;
    for (size_t m = 0; m < COUNT(models); m++) {
        run_f32(models[m], "");
        run_f16(models[m], "");
        if (fixture_full() || m == 0)
            run_f32(models[m], fixture_masks[last]);
    }
    model_fixture_shape = OP_SHAPE_AUTO;
}

static void test_f16(void **state)
{
    (void)state;
    for (size_t m = 0; m < COUNT(models); m++)
        run_f16(models[m], "");
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_f32),
        cmocka_unit_test(test_f32_masks),
        cmocka_unit_test(test_f16),
        cmocka_unit_test(test_wide),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
