/* Models whose weights are made on the device. */
#include "../util/checkpoint.h"
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */
#include "format/quant.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { VOCAB = 1024, PROMPT = 40 };

typedef struct made {
    device_fixture device;
    ful_model *model;
    ful_session *session;
} made;

static void make(made *m, const char *caps, const ful_synthetic_params *params,
                 ful_precision precision)
{
    memset(m, 0, sizeof *m);
    fixture_open(&m->device, caps);
    ful_plan plan;
    EXPECT_OK(ful_synthetic_plan(
        m->device.device, params,
        ful_plan_params(.max_tokens = 128, .chunk_tokens = 64, .precision = precision), &plan));
    EXPECT_OK(ful_model_synthesize(&m->model, m->device.device, params, &plan, NULL, NULL));
    EXPECT_OK(ful_session_create(&m->session, m->model, NULL));
}

static void unmake(made *m)
{
    ful_session_destroy(&m->session);
    ful_model_destroy(&m->model);
    fixture_close(&m->device);
}

static void prompt_fill(int32_t *tokens, int32_t n)
{
    for (int32_t i = 0; i < n; i++)
        tokens[i] = (i * 397 + 11) % VOCAB;
}

/* Logits after a prompt, fed as one or token by token. */
static void logits_of(made *m, bool one_by_one, float *out)
{
    int32_t tokens[PROMPT];
    const float *logits;
    prompt_fill(tokens, PROMPT);
    EXPECT_OK(ful_session_reset(m->session));
    if (!one_by_one)
        EXPECT_OK(ful_prefill(m->session, tokens, PROMPT));
    for (int i = 0; one_by_one && i < PROMPT; i++)
        EXPECT_OK(ful_decode(m->session, tokens[i]));
    EXPECT_OK(ful_logits(m->session, &logits, NULL));
    memcpy(out, logits, VOCAB * sizeof *out);
}

static double largest_difference(const float *a, const float *b)
{
    double most = 0.0;
    for (int i = 0; i < VOCAB; i++) {
        assert_true(isfinite(a[i]) && isfinite(b[i]));
        most = fmax(most, fabs((double)a[i] - b[i]));
    }
    return most;
}

static double deviation(const float *a)
{
    double sum = 0.0;
    for (int i = 0; i < VOCAB; i++)
        sum += (double)a[i] * a[i];
    return sqrt(sum / VOCAB);
}

/* One seed, one model; on any cut of the tensors. */
static void test_same_seed(void **state)
{
    (void)state;
    static float first[VOCAB], again[VOCAB], cut[VOCAB], other[VOCAB], decoded[VOCAB];
    const ful_synthetic_params *params =
        ful_synthetic_params(.preset = "tiny", .block_count = 4, .softmax_every = 4, .seed = 5,
                             .expert_count = 4);
    made m;
    make(&m, "", params, FUL_PRECISION_F32);
    logits_of(&m, false, first);
    logits_of(&m, true, decoded);
    unmake(&m);
    make(&m, "", params, FUL_PRECISION_F32);
    logits_of(&m, false, again);
    unmake(&m);
    assert_memory_equal(first, again, sizeof first);
    assert_true(deviation(first) > 0.3 && deviation(first) < 3.0);
    EXPECT_ERROR_BELOW(largest_difference(first, decoded), 1e-3, "prefill against decode");

    make(&m, "range=262144", params, FUL_PRECISION_F32); /* windows of some rows of an expert */
    assert_true(m.model->layers[0].w13.window_count > 4);
    logits_of(&m, false, cut);
    unmake(&m);
    EXPECT_ERROR_BELOW(largest_difference(first, cut), 1e-3, "tensors in windows");

    make(&m, "",
         ful_synthetic_params(.preset = "tiny", .block_count = 4, .softmax_every = 4, .seed = 6,
                              .expert_count = 4),
         FUL_PRECISION_F32);
    logits_of(&m, false, other);
    unmake(&m);
    assert_true(largest_difference(first, other) > 0.3);
}

/* The weights of all types are the same numbers, rounded. */
static void test_types(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "");
    static const ful_type types[] = {FUL_TYPE_F32, FUL_TYPE_F16, FUL_TYPE_BF16};
    static const double limits[] = {0.0, 1.0 / 2048, 1.0 / 256};
    enum {
        COLS = 40,
        ROW = 3 * 48 + 7
    }; /* a row of the second expert, columns no multiple of 16 */
    float want[COLS];
    for (size_t t = 0; t < 3; t++) {
        const ful_synthetic_params *params =
            ful_synthetic_params(.block_count = 1, .hidden_size = COLS, .intermediate_size = 48,
                                 .vocab_size = 64, .head_count = 1, .kv_head_count = 1,
                                 .head_dim = 16, .expert_count = 3, .weight_type = types[t]);
        ful_model *model;
        EXPECT_OK(ful_model_synthesize(&model, f.device, params, NULL, NULL, NULL));
        assert_int_equal(ful_model_get_info(model)->rotary_dim, 8);
        assert_int_equal(ful_model_get_info(model)->weight_type, types[t]);
        const gpu_tensor *w = &model->layers[0].w13;
        gpu_range row = gpu_tensor_row(w, 1, ROW % 96);
        uint8_t bytes[4 * COLS];
        EXPECT_OK(gpu_range_read(f.device, row, 0, bytes, type_bytes(types[t]) * COLS));
        double squares = 0.0;
        for (int c = 0; c < COLS; c++) {
            float got;
            uint16_t half;
            memcpy(&half, bytes + 2 * c, 2);
            memcpy(&got, bytes + (types[t] == FUL_TYPE_F32 ? 4 * c : 0), 4);
            if (types[t] == FUL_TYPE_F16)
                got = half_to_float(half);
            if (types[t] == FUL_TYPE_BF16)
                got = bfloat_to_float(half);
            if (t == 0)
                want[c] = got;
            squares += (double)got * got;
            if (fabs((double)got - want[c]) > limits[t] * fabs((double)want[c]) + 1e-9)
                fail_msg("%s, column %d: %g instead of %g", ful_type_name(types[t]), c, (double)got,
                         (double)want[c]);
        }
        assert_true(squares > 0.4 && squares < 1.9); /* 1 by expectation */
        ful_model_destroy(&model);
    }
    fixture_close(&f);
}

/* Random codes under scales that give weights of blocks the deviation of all others; the same ones
 * however tensors are cut. */
static void test_blocks(void **state)
{
    (void)state;
    enum { COLS = 512, WIDTH = 256, ROWS = 40 };
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type = (ful_type)(type + 1)) {
        const ful_synthetic_params *params =
            ful_synthetic_params(.block_count = 1, .hidden_size = COLS, .intermediate_size = WIDTH,
                                 .vocab_size = 64, .head_count = 2, .kv_head_count = 1,
                                 .head_dim = 128, .expert_count = 2, .weight_type = type);
        static uint8_t rows[2][ROWS][4 * COLS];
        uint64_t bytes = type_device_row_bytes(type, COLS);
        for (int cut = 0; cut < 2; cut++) {
            made m;
            make(&m, cut ? "range=262144" : "", params, FUL_PRECISION_F32);
            const gpu_tensor *w = &m.model->layers[0].w13;
            assert_int_equal(w->type, type);
            for (uint32_t r = 0; r < ROWS; r++)
                EXPECT_OK(gpu_range_read(m.device.device, gpu_tensor_row(w, 1, 471 + r), 0,
                                         rows[cut][r], bytes));
            unmake(&m);
        }
        double sum = 0.0, squares = 0.0, n = (double)ROWS * COLS;
        for (uint32_t r = 0; r < ROWS; r++) {
            float values[COLS];
            assert_memory_equal(rows[0][r], rows[1][r], bytes);
            quant_decode_device(type, rows[0][r], COLS, values);
            for (int c = 0; c < COLS; c++) {
                sum += (double)values[c];
                squares += (double)values[c] * values[c];
            }
        }
        /* 1/sqrt(COLS); mxfp4 comes as near as powers of two do. Codes reach further below 0 than
         * above: half a code in the mean. */
        double deviation_by = sqrt(squares / n * COLS);
        double most = type == FUL_TYPE_MXFP4 ? 1.45 : 1.1;
        if (deviation_by > most || deviation_by < 1.0 / most ||
            fabs(sum / n) * sqrt((double)COLS) > 0.2)
            fail_msg("%s: deviates by %g, mean %g", ful_type_name(type), deviation_by,
                     sum / n * sqrt((double)COLS));
    }
}

static void test_half(void **state)
{
    (void)state;
    static float wide[VOCAB], half[VOCAB];
    const ful_synthetic_params *params =
        ful_synthetic_params(.preset = "tiny", .block_count = 2, .softmax_every = 2,
                             .expert_count = 1, .top_k = 1);
    made m;
    make(&m, "", params, FUL_PRECISION_F32);
    logits_of(&m, false, wide);
    bool usable = op_half_usable(m.device.device);
    unmake(&m);
    if (!usable)
        return;
    make(&m, "", params, FUL_PRECISION_F16);
    logits_of(&m, false, half);
    unmake(&m);
    EXPECT_ERROR_BELOW(largest_difference(wide, half), 0.03, "f16 against f32");
}

static void test_refusals(void **state)
{
    (void)state;
    ful_model_info info;
    device_fixture f;
    ful_plan plan;
    ful_model *model = (ful_model *)&plan;
    assert_int_equal(ful_synthetic_inspect(ful_synthetic_params(.preset = "huge"), &info),
                     FUL_ERR_ARGUMENT);
    expect_error_words("huge", "tiny", "full80", NULL);
    assert_int_equal(ful_synthetic_inspect(NULL, &info), FUL_ERR_ARGUMENT);
    expect_error_words("vocab_size", "0", NULL);
    assert_int_equal(
        ful_synthetic_inspect(ful_synthetic_params(.preset = "tiny", .hidden_size = 100), &info),
        FUL_ERR_ARGUMENT);
    expect_error_words("hidden_size", "100", "multiple of 8", NULL);
    assert_int_equal(
        ful_synthetic_inspect(ful_synthetic_params(.preset = "tiny", .top_k = 9), &info),
        FUL_ERR_ARGUMENT);
    expect_error_words("9", "8", NULL);
    assert_int_equal(
        ful_synthetic_inspect(ful_synthetic_params(.preset = "tiny", .expert_count = 2000000000u,
                                                   .hidden_size = 2000000000u, .block_count = 1000),
                              &info),
        FUL_ERR_ARGUMENT);
    assert_int_equal(
        ful_synthetic_inspect(ful_synthetic_params(.preset = "tiny", .weight_type = (ful_type)77),
                              &info),
        FUL_ERR_ARGUMENT);
    expect_error_words("77", NULL);
    assert_int_equal(
        ful_synthetic_inspect(ful_synthetic_params(.preset = "tiny", .intermediate_size = 128,
                                                   .weight_type = FUL_TYPE_Q4_K),
                              &info),
        FUL_ERR_ARGUMENT);
    expect_error_words("intermediate_size", "128", "256", "q4_k", NULL);

    /* The real thing's size is known without a device: 456 billion parameters. */
    EXPECT_OK(ful_synthetic_inspect(ful_synthetic_params(.preset = "full80"), &info));
    assert_in_range(info.parameter_count, 455000000000u, 457000000000u);
    assert_in_range(info.active_parameter_count, 44000000000u, 48000000000u);
    assert_int_equal(info.softmax_block_count, 10);

    fixture_open(&f, "memory=1000000");
    assert_int_equal(
        ful_synthetic_plan(f.device, ful_synthetic_params(.preset = "tiny"), NULL, &plan),
        FUL_ERR_DEVICE_MEMORY);
    expect_error_words("bytes", "free", NULL);
    assert_true(plan.total_bytes > plan.available_bytes && plan.available_bytes <= 1000000);
    assert_int_equal(ful_model_synthesize(&model, f.device, ful_synthetic_params(.preset = "full8"),
                                          NULL, NULL, NULL),
                     FUL_ERR_DEVICE_MEMORY);
    assert_null(model);
    fixture_close(&f);
}

/* One logit that is not finite is found wherever it lies, in a vocabulary of odd size. */
static void test_one_bad_logit(void **state)
{
    (void)state;
    enum { ODD = 77 };
    const ful_synthetic_params *params =
        ful_synthetic_params(.preset = "tiny", .block_count = 1, .hidden_size = 64,
                             .vocab_size = ODD, .weight_type = FUL_TYPE_F32);
    static const uint32_t rows[] = {0, 1, 38, ODD - 2, ODD - 1};
    static const uint32_t values[] = {0x7fc00000u, 0xff800000u, 0x7f800000u, 0xffc00000u,
                                      0x7fc00000u};
    made m;
    make(&m, "", params, FUL_PRECISION_F32);
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        uint32_t good;
        gpu_range row = gpu_tensor_row(&m.model->head, 0, rows[i]);
        EXPECT_OK(ful_session_reset(m.session));
        EXPECT_OK(ful_decode(m.session, 5));
        EXPECT_OK(gpu_range_read(m.device.device, row, 0, &good, 4));
        EXPECT_OK(gpu_range_write(m.device.device, row, 0, &values[i], 4));
        assert_int_equal(ful_decode(m.session, 6), FUL_ERR_NOT_FINITE);
        EXPECT_OK(gpu_range_write(m.device.device, row, 0, &good, 4));
    }
    unmake(&m);
}

typedef struct census {
    uint32_t seen[4][4];
    size_t rows;
    int calls, most_calls;
} census;

static bool count_routes(void *ctx, int32_t layer, size_t row, const ful_route *routes,
                         size_t n_tokens, uint32_t top_k)
{
    census *c = ctx;
    assert_in_range(layer, 0, 3);
    assert_int_equal(top_k, 2);
    assert_int_equal(row % 64, 0);
    for (size_t i = 0; i < n_tokens; i++) {
        const ful_route *r = routes + i * top_k;
        assert_true(r[0].expert < 4 && r[1].expert < 4 && r[0].expert != r[1].expert);
        assert_true(r[0].weight >= r[1].weight && fabsf(r[0].weight + r[1].weight - 1.0f) < 1e-6f);
        c->seen[layer][r[0].expert]++;
    }
    c->rows += layer == 0 ? n_tokens : 0;
    return ++c->calls != c->most_calls;
}

/* Routes are looked at without changing what is computed, and they are spread. */
static void test_routes(void **state)
{
    (void)state;
    static float want[VOCAB];
    const ful_synthetic_params *params =
        ful_synthetic_params(.preset = "tiny", .block_count = 4, .softmax_every = 4,
                             .expert_count = 4);
    made m;
    const float *logits;
    int32_t tokens[100];
    prompt_fill(tokens, 100);
    make(&m, "", params, FUL_PRECISION_F32);
    EXPECT_OK(ful_prefill(m.session, tokens, 100));
    EXPECT_OK(ful_logits(m.session, &logits, NULL));
    memcpy(want, logits, sizeof want);
    ful_stats stats;
    EXPECT_OK(ful_session_stats(m.session, &stats));
    bool timed = ful_device_get_info(m.device.device)->caps.features & FUL_FEATURE_TIMESTAMP;
    assert_int_equal(stats.prefill_gpu_ns > 0, timed);
    assert_true(stats.prefill_gpu_ns <= stats.prefill_ns && stats.decode_gpu_ns == 0);

    census c = {0};
    EXPECT_OK(ful_session_reset(m.session));
    EXPECT_OK(ful_prefill_routes(m.session, tokens, 100, count_routes, &c));
    assert_int_equal(ful_session_tokens(m.session, NULL), 100);
    EXPECT_OK(ful_logits(m.session, &logits, NULL));
    EXPECT_ERROR_BELOW(largest_difference(want, logits), 1e-4, "with a look at routes");
    assert_int_equal(c.rows, 100);
    assert_int_equal(c.calls, 8); /* two chunks of four layers */
    for (int l = 0; l < 4; l++)
        for (int e = 0; e < 4; e++)
            assert_in_range(c.seen[l][e], 5, 60);

    c = (census){.most_calls = 3};
    EXPECT_OK(ful_session_reset(m.session));
    assert_int_equal(ful_prefill_routes(m.session, tokens, 100, count_routes, &c),
                     FUL_ERR_CANCELLED);
    assert_int_equal(c.calls, 3);
    EXPECT_OK(ful_session_reset(m.session));
    EXPECT_OK(ful_prefill(m.session, tokens, 100));
    EXPECT_OK(ful_logits(m.session, &logits, NULL));
    assert_memory_equal(want, logits, sizeof want);
    unmake(&m);
}

/* Chunks beyond what most devices would choose: planned, placed and computed like small ones. */
static void test_wide_chunks(void **state)
{
    (void)state;
    enum { TOKENS = 5000 };
    static float want[VOCAB];
    const ful_synthetic_params *params =
        ful_synthetic_params(.preset = "tiny", .block_count = 2, .softmax_every = 2,
                             .hidden_size = 64, .intermediate_size = 32, .expert_count = 8);
    static int32_t tokens[TOKENS];
    prompt_fill(tokens, TOKENS);
    device_fixture f;
    fixture_open(&f, "");
    static const uint32_t chunks[] = {512, 4096, 8192};
    for (size_t i = 0; i < 3; i++) {
        ful_plan plan;
        ful_model *model;
        ful_session *session;
        const float *logits;
        uint64_t now, peak;
        EXPECT_OK(
            ful_synthetic_plan(f.device, params,
                               ful_plan_params(.max_tokens = TOKENS, .chunk_tokens = chunks[i],
                                               .precision = FUL_PRECISION_F32),
                               &plan));
        assert_int_equal(plan.chunk_tokens, chunks[i]);
        EXPECT_OK(ful_model_synthesize(&model, f.device, params, &plan, NULL, NULL));
        EXPECT_OK(ful_session_create(&session, model, NULL));
        ful_device_memory(f.device, &now, &peak);
        assert_true(now <= plan.total_bytes + (1u << 20) && now + (1u << 20) >= plan.total_bytes);
        EXPECT_OK(ful_prefill(session, tokens, TOKENS));
        EXPECT_OK(ful_logits(session, &logits, NULL));
        if (i == 0)
            memcpy(want, logits, sizeof want);
        EXPECT_ERROR_BELOW(largest_difference(want, logits), 1e-3, "chunks of %u", chunks[i]);
        ful_session_destroy(&session);
        ful_model_destroy(&model);
    }
    ful_plan plan;
    assert_int_equal(
        ful_synthetic_plan(f.device, params, ful_plan_params(.chunk_tokens = 8193), &plan),
        FUL_ERR_ARGUMENT);
    expect_error_words("8193", "8192", NULL);
    fixture_close(&f);
}

/* Without a wish the widest chunk that the memory has room for, which a fixed one would not fit. */
static void test_default_chunk(void **state)
{
    (void)state;
    const ful_synthetic_params *params = ful_synthetic_params(.preset = "tiny");
    device_fixture f;
    ful_plan wide, narrow;
    fixture_open(&f, "");
    EXPECT_OK(ful_synthetic_plan(f.device, params, NULL, &wide));
    bool discrete = ful_device_get_info(f.device)->kind == FUL_DEVICE_DISCRETE;
    assert_int_equal(wide.chunk_tokens, discrete ? 2048 : 512);
    EXPECT_OK(ful_synthetic_plan(f.device, params, ful_plan_params(.max_tokens = 100), &narrow));
    assert_int_equal(narrow.chunk_tokens, 128);
    fixture_close(&f);

    char mask[64];
    snprintf(mask, sizeof mask, "memory=%llu", (unsigned long long)(wide.total_bytes - 1));
    fixture_open(&f, mask);
    EXPECT_OK(ful_synthetic_plan(f.device, params, NULL, &narrow));
    assert_true(narrow.chunk_tokens < wide.chunk_tokens && narrow.chunk_tokens >= 128);
    assert_int_equal(ful_synthetic_plan(f.device, params,
                                        ful_plan_params(.chunk_tokens = wide.chunk_tokens),
                                        &narrow),
                     FUL_ERR_DEVICE_MEMORY);
    fixture_close(&f);
}

static bool cancel(void *ctx, const ful_progress *p)
{
    int *calls = ctx;
    assert_true(p->total > 0 && p->done <= p->total);
    return ++*calls < 2;
}

static void test_plan_and_cancel(void **state)
{
    (void)state;
    made m;
    make(&m, "", ful_synthetic_params(.preset = "tiny"), FUL_PRECISION_DEFAULT);
    const ful_plan *p = ful_model_get_plan(m.model);
    uint64_t now, peak;
    ful_device_memory(m.device.device, &now, &peak);
    assert_true(now <= p->total_bytes + (1u << 20) && now + (1u << 20) >= p->total_bytes);
    ful_model *model;
    int calls = 0;
    assert_int_equal(ful_model_synthesize(&model, m.device.device,
                                          ful_synthetic_params(.preset = "tiny"), NULL, cancel,
                                          &calls),
                     FUL_ERR_CANCELLED);
    assert_null(model);
    unmake(&m); /* fails if anything is still held */
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_seed),     cmocka_unit_test(test_types),
        cmocka_unit_test(test_blocks),        cmocka_unit_test(test_half),
        cmocka_unit_test(test_refusals),      cmocka_unit_test(test_plan_and_cancel),
        cmocka_unit_test(test_routes),        cmocka_unit_test(test_wide_chunks),
        cmocka_unit_test(test_default_chunk), cmocka_unit_test(test_one_bad_logit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
