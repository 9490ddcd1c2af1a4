/* fulgur/ops.h as a program outside uses it: every op against its reference, sizes checked. Shapes
 * and capability masks are the op tests' business. */
#include "ops/op.h"

#include "fulgur/ops.h"
#include "fulgur/sampler.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "ref/ref.h"
#include "util/compare.h"
#include "util/device_fixture.h"
#include "util/rng.h"

static device_fixture fixture;

static ful_buffer *buffer_of(const void *data, uint64_t bytes)
{
    ful_buffer *b = NULL;
    EXPECT_OK(ful_buffer_create(&b, fixture.device, ful_buffer_params(.bytes = bytes)));
    if (data != NULL)
        EXPECT_OK(ful_buffer_write(b, 0, data, bytes));
    else
        EXPECT_OK(ful_buffer_fill(b, 0x7fc00000u));
    return b;
}

static ful_range whole(ful_buffer *b)
{
    return (ful_range){.buffer = b};
}

static float *normals(rng *random, size_t count, double scale, double **exact)
{
    float *x = malloc(sizeof(float) * count);
    assert_non_null(x);
    rng_fill_normal(random, x, count, scale);
    if (exact != NULL) {
        *exact = ref_alloc(count);
        ref_from_f32(x, *exact, count);
    }
    return x;
}

static ful_stream *stream_begin(bool half)
{
    ful_stream *s = NULL;
    EXPECT_OK(ful_stream_begin(&s, fixture.device, ful_stream_params(.half = half, .timed = true)));
    return s;
}

/* Runs twice and compares. */
static void finish(ful_stream **s, ful_buffer *out, const double *want, size_t count, double limit,
                   const char *what)
{
    float *got = malloc(sizeof(float) * count);
    assert_non_null(got);
    for (int i = 0; i < 2; i++) {
        EXPECT_OK(ful_buffer_fill(out, 0x7fc00000u));
        EXPECT_OK(ful_stream_run(*s, NULL));
        EXPECT_OK(ful_buffer_read(out, 0, got, sizeof(float) * count));
        EXPECT_ERROR_BELOW(max_rel_error_f32(got, want, count), limit, "%s", what);
    }
    uint32_t n = 0;
    EXPECT_OK(ful_stream_times(*s, NULL, &n));
    if (ful_device_get_info(fixture.device)->caps.timestamp_period_ns > 0)
        assert_true(n > 0);
    ful_stream_destroy(s);
    assert_null(*s);
    free(got);
}

static void test_buffers(void **state)
{
    (void)state;
    uint32_t data[4] = {1, 2, 3, 4}, back[4] = {0};
    ful_buffer *b = buffer_of(data, sizeof data);
    assert_int_equal(ful_buffer_bytes(b), 16);
    EXPECT_OK(ful_buffer_write(b, 8, data, 4));
    EXPECT_OK(ful_buffer_read(b, 0, back, 16));
    assert_int_equal(back[2], 1);
    assert_int_equal(back[3], 4);
    assert_int_equal(ful_buffer_write(b, 16, data, 4), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_buffer_read(b, UINT64_MAX - 3, back, 4), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_buffer_write(b, 2, data, 4), FUL_ERR_ARGUMENT);
    ful_buffer_destroy(&b);
    assert_null(b);
    ful_buffer_destroy(&b);
    assert_int_equal(ful_buffer_create(&b, fixture.device, ful_buffer_params(.bytes = 0)),
                     FUL_ERR_ARGUMENT);
}

static void matmul_and_norm(bool half)
{
    enum { ROWS = 20, K = 96, N = 64 };
    rng random = rng_seed(11);
    double *x64, want[ROWS * N], normed[ROWS * N];
    float *x = normals(&random, ROWS * K, 1.0, &x64), *w = normals(&random, K * N, 0.1, NULL),
          ones[N];
    /* One weight row beyond fp16: its scale must be found when it is written. */
    for (size_t i = 0; i < K; i++)
        w[3 * K + i] *= 1e7f;
    for (size_t i = 0; i < N; i++)
        ones[i] = 1.0f;
    ful_tensor *t = NULL;
    EXPECT_OK(ful_tensor_create(&t, fixture.device,
                                ful_tensor_params(.type = FUL_TYPE_F32, .rows = N, .cols = K)));
    EXPECT_OK(ful_tensor_write(t, 0, 0, 10, w));
    EXPECT_OK(ful_tensor_write(t, 0, 10, N - 10, w + 10 * K));
    assert_int_equal(ful_tensor_write(t, 0, 10, N, w), FUL_ERR_ARGUMENT);
    ref_matmul(ROWS, K, N, x64, w, want);
    ref_residual_norm(ROWS, N, want, 2.0, want, 0.0, ones, 1e-5, NULL, normed);
    ful_buffer *in = buffer_of(x, sizeof(float) * ROWS * K),
               *mid = buffer_of(NULL, sizeof(float) * ROWS * N);
    ful_buffer *weight = buffer_of(ones, sizeof ones),
               *out = buffer_of(NULL, sizeof(float) * ROWS * N);
    ful_stream *s = stream_begin(half);
    EXPECT_OK(ful_op_matmul(
        s, &(ful_matmul_args){.x = whole(in), .w = t, .out = whole(mid), .rows = ROWS}));
    EXPECT_OK(ful_op_norm(s, &(ful_norm_args){.a = whole(mid),
                                              .alpha = 2.0f,
                                              .weight = whole(weight),
                                              .eps = 1e-5f,
                                              .dim = N,
                                              .rows = ROWS,
                                              .out = whole(out)}));
    /* Too small, misaligned, absent. */
    ful_matmul_args bad = {.x = whole(in), .w = t, .out = whole(mid), .rows = ROWS + 1};
    assert_int_equal(ful_op_matmul(s, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "are needed"));
    bad.rows = 1;
    bad.x.offset_bytes = 4;
    assert_int_equal(ful_op_matmul(s, &bad), FUL_ERR_ARGUMENT);
    bad.x = (ful_range){0};
    assert_int_equal(ful_op_matmul(s, &bad), FUL_ERR_ARGUMENT);
    finish(&s, out, normed, ROWS * N, half ? 2e-3 : 1e-5, "matmul and norm");
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&weight);
    ful_buffer_destroy(&mid);
    ful_buffer_destroy(&in);
    ful_tensor_destroy(&t);
    free(w);
    free(x64);
    free(x);
}

static void test_matmul_and_norm(void **state)
{
    (void)state;
    matmul_and_norm(false);
    matmul_and_norm(true);
}

static void test_embed_and_gate(void **state)
{
    (void)state;
    enum { ROWS = 9, DIM = 64, VOCAB = 30 };
    rng random = rng_seed(12);
    double *table64, *gate64, want[ROWS * DIM];
    float *table = normals(&random, VOCAB * DIM, 1.0, &table64);
    float *gate = normals(&random, ROWS * DIM, 1.0, &gate64), ones[DIM];
    int32_t tokens[ROWS];
    for (int i = 0; i < ROWS; i++)
        tokens[i] = (i * 7) % VOCAB;
    for (int i = 0; i < DIM; i++)
        ones[i] = 1.0f;
    ref_embed(ROWS, DIM, tokens, table, want);
    ref_gated_norm(ROWS, DIM, want, gate64, 0, 1, ones, 1e-6, want);
    ful_tensor *t = NULL;
    EXPECT_OK(ful_tensor_create(
        &t, fixture.device, ful_tensor_params(.type = FUL_TYPE_F32, .rows = VOCAB, .cols = DIM)));
    EXPECT_OK(ful_tensor_write(t, 0, 0, VOCAB, table));
    ful_buffer *ids = buffer_of(tokens, sizeof tokens),
               *g = buffer_of(gate, sizeof(float) * ROWS * DIM);
    ful_buffer *weight = buffer_of(ones, sizeof ones),
               *mid = buffer_of(NULL, sizeof(float) * ROWS * DIM);
    ful_buffer *out = buffer_of(NULL, sizeof(float) * ROWS * DIM);
    ful_stream *s = stream_begin(false);
    EXPECT_OK(ful_op_embed(
        s, &(ful_embed_args){.tokens = whole(ids), .table = t, .out = whole(mid), .rows = ROWS}));
    EXPECT_OK(ful_op_gated_norm(s, &(ful_gated_norm_args){.o = whole(mid),
                                                          .gate = whole(g),
                                                          .gate_stride = DIM,
                                                          .weight = whole(weight),
                                                          .eps = 1e-6f,
                                                          .dim = DIM,
                                                          .rows = ROWS,
                                                          .out = whole(out)}));
    finish(&s, out, want, ROWS * DIM, 1e-5, "embedding and gated norm");
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&mid);
    ful_buffer_destroy(&weight);
    ful_buffer_destroy(&g);
    ful_buffer_destroy(&ids);
    ful_tensor_destroy(&t);
    free(gate64);
    free(gate);
    free(table64);
    free(table);
}

static void test_experts(void **state)
{
    (void)state;
    enum { ROWS = 17, DIM = 64, WIDTH = 32, EXPERTS = 4, TOP_K = 2 };
    rng random = rng_seed(13);
    double *x64, *logits64, want[ROWS * DIM], weights[ROWS * TOP_K];
    uint32_t indices[ROWS * TOP_K];
    float *x = normals(&random, ROWS * DIM, 1.0, &x64);
    float *logits = normals(&random, ROWS * EXPERTS, 1.0, &logits64);
    float *w13 = normals(&random, EXPERTS * 2 * WIDTH * DIM, 0.1, NULL);
    float *w2 = normals(&random, EXPERTS * DIM * WIDTH, 0.1, NULL);
    float *w1 = malloc(sizeof(float) * EXPERTS * WIDTH * DIM),
          *w3 = malloc(sizeof(float) * EXPERTS * WIDTH * DIM);
    assert_true(w1 != NULL && w3 != NULL);
    ref_expert experts[EXPERTS];
    for (size_t e = 0; e < EXPERTS; e++) {
        for (size_t i = 0; i < WIDTH; i++) {
            memcpy(w1 + (e * WIDTH + i) * DIM, w13 + (e * 2 * WIDTH + 2 * i) * DIM,
                   sizeof(float) * DIM);
            memcpy(w3 + (e * WIDTH + i) * DIM, w13 + (e * 2 * WIDTH + 2 * i + 1) * DIM,
                   sizeof(float) * DIM);
        }
        experts[e] = (ref_expert){w1 + e * WIDTH * DIM, w3 + e * WIDTH * DIM, w2 + e * DIM * WIDTH};
    }
    ref_route_logits(ROWS, EXPERTS, TOP_K, logits64, indices, weights, NULL);
    ref_moe(ROWS, DIM, WIDTH, TOP_K, x64, experts, indices, weights, want);
    ful_tensor *t13 = NULL, *t2 = NULL;
    EXPECT_OK(ful_tensor_create(&t13, fixture.device,
                                ful_tensor_params(.type = FUL_TYPE_F32, .experts = EXPERTS,
                                                  .rows = 2 * WIDTH, .cols = DIM)));
    EXPECT_OK(ful_tensor_create(
        &t2, fixture.device,
        ful_tensor_params(.type = FUL_TYPE_F32, .experts = EXPERTS, .rows = DIM, .cols = WIDTH)));
    for (uint32_t e = 0; e < EXPERTS; e++) {
        EXPECT_OK(ful_tensor_write(t13, e, 0, 2 * WIDTH, w13 + (size_t)e * 2 * WIDTH * DIM));
        EXPECT_OK(ful_tensor_write(t2, e, 0, DIM, w2 + (size_t)e * DIM * WIDTH));
    }
    ful_buffer *in = buffer_of(x, sizeof(float) * ROWS * DIM);
    ful_buffer *scores = buffer_of(logits, sizeof(float) * ROWS * EXPERTS);
    ful_buffer *routes = buffer_of(NULL, 8 * ROWS * TOP_K),
               *out = buffer_of(NULL, sizeof(float) * ROWS * DIM);
    for (int half = 0; half < 2; half++) {
        ful_stream *s = stream_begin(half);
        EXPECT_OK(ful_op_route(s, &(ful_route_args){.logits = whole(scores),
                                                    .experts = EXPERTS,
                                                    .top_k = TOP_K,
                                                    .rows = ROWS,
                                                    .routes = whole(routes)}));
        EXPECT_OK(ful_op_moe(s, &(ful_moe_args){.x = whole(in),
                                                .routes = whole(routes),
                                                .w13 = t13,
                                                .w2 = t2,
                                                .top_k = TOP_K,
                                                .rows = ROWS,
                                                .out = whole(out)}));
        finish(&s, out, want, ROWS * DIM, half ? 3e-3 : 1e-5, "experts");
    }
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&routes);
    ful_buffer_destroy(&scores);
    ful_buffer_destroy(&in);
    ful_tensor_destroy(&t2);
    ful_tensor_destroy(&t13);
    free(w3);
    free(w1);
    free(w2);
    free(w13);
    free(logits64);
    free(logits);
    free(x64);
    free(x);
}

static void test_lightning(void **state)
{
    (void)state;
    enum { ROWS = 40, H = 2, D = 32 };
    rng random = rng_seed(14);
    double slopes[H] = {0.5, 0.05}, *qkv64, want[ROWS * H * D], memory[H * D * D] = {0};
    float *qkv = normals(&random, ROWS * H * 3 * D, 0.5, &qkv64), zeros[H * D * D] = {0},
          got[H * D];
    ref_lightning(ROWS, H, D, qkv64, 0, slopes, memory, want);
    ful_buffer *decay = NULL;
    EXPECT_OK(ful_lightning_decay(&decay, fixture.device, H, D, slopes));
    ful_buffer *in = buffer_of(qkv, sizeof(float) * ROWS * H * 3 * D),
               *memo = buffer_of(zeros, sizeof zeros);
    ful_buffer *out = buffer_of(NULL, sizeof(float) * ROWS * H * D),
               *one = buffer_of(NULL, sizeof got);
    /* All but the last row as a prefill, then the last as a decode step. */
    ful_stream *s = stream_begin(false);
    ful_lightning_args args = {.qkv = whole(in),
                               .heads = H,
                               .head_dim = D,
                               .rows = ROWS - 1,
                               .decay = whole(decay),
                               .state = whole(memo),
                               .out = whole(out)};
    EXPECT_OK(ful_op_lightning_prefill(s, &args));
    EXPECT_OK(ful_stream_run(s, NULL));
    float *all = malloc(sizeof(float) * ROWS * H * D);
    assert_non_null(all);
    EXPECT_OK(ful_buffer_read(out, 0, all, sizeof(float) * ROWS * H * D));
    EXPECT_ERROR_BELOW(max_rel_error_f32(all, want, (ROWS - 1) * H * D), 1e-5, "lightning prefill");
    ful_stream_destroy(&s);
    EXPECT_OK(ful_buffer_write(in, 0, qkv + (ROWS - 1) * H * 3 * D, sizeof(float) * H * 3 * D));
    s = stream_begin(false);
    args.out = whole(one);
    EXPECT_OK(ful_op_lightning_decode(s, &args));
    EXPECT_OK(ful_stream_run(s, NULL));
    EXPECT_OK(ful_buffer_read(one, 0, got, sizeof got));
    EXPECT_ERROR_BELOW(max_rel_error_f32(got, want + (ROWS - 1) * H * D, H * D), 1e-5,
                       "lightning decode");
    ful_stream_destroy(&s);
    free(all);
    ful_buffer_destroy(&one);
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&memo);
    ful_buffer_destroy(&in);
    ful_buffer_destroy(&decay);
    free(qkv64);
    free(qkv);
}

static void test_attention(void **state)
{
    (void)state;
    enum { ROWS = 24, H = 4, HK = 2, D = 32, ROTARY = 16, STRIDE = (H + 2 * HK) * D };
    rng random = rng_seed(15);
    double *qkv64, want[ROWS * H * D], q[ROWS * H * D], k[ROWS * HK * D], v[ROWS * HK * D];
    float *qkv = normals(&random, ROWS * STRIDE, 1.0, &qkv64), rope[ROWS * ROTARY];
    for (uint32_t r = 0; r < ROWS; r++) {
        memcpy(q + r * H * D, qkv64 + r * STRIDE, H * D * sizeof(double));
        memcpy(k + r * HK * D, qkv64 + r * STRIDE + H * D, HK * D * sizeof(double));
        memcpy(v + r * HK * D, qkv64 + r * STRIDE + (H + HK) * D, HK * D * sizeof(double));
        ref_rope(1, H, D, ROTARY, 10000.0, r, q + r * H * D, H * D);
        ref_rope(1, HK, D, ROTARY, 10000.0, r, k + r * HK * D, HK * D);
    }
    ref_attention(ROWS, 0, H, HK, D, q, k, v, want);
    ful_kv *kv = NULL;
    EXPECT_OK(ful_kv_create(&kv, fixture.device,
                            ful_kv_params(.type = FUL_TYPE_F32, .kv_heads = HK, .head_dim = D,
                                          .capacity_tokens = ROWS)));
    ful_rope_table(0, ROWS, ROTARY, 10000.0, rope);
    ful_buffer *in = buffer_of(qkv, sizeof(float) * ROWS * STRIDE),
               *turns = buffer_of(rope, sizeof rope);
    ful_buffer *out = buffer_of(NULL, sizeof(float) * ROWS * H * D);
    ful_stream *s = stream_begin(false);
    EXPECT_OK(ful_op_attention(s, &(ful_attention_args){.qkv = whole(in),
                                                        .heads = H,
                                                        .rotary_dim = ROTARY,
                                                        .rows = ROWS,
                                                        .rope = whole(turns),
                                                        .kv = kv,
                                                        .out = whole(out)}));
    assert_int_equal(ful_stream_run(s, &(ful_step){.n_rows = ROWS, .position = 1}),
                     FUL_ERR_CONTEXT_FULL);
    EXPECT_OK(ful_stream_run(s, NULL));
    float got[ROWS * H * D];
    EXPECT_OK(ful_buffer_read(out, 0, got, sizeof got));
    EXPECT_ERROR_BELOW(max_rel_error_f32(got, want, ROWS * H * D), 1e-5, "attention");
    ful_stream_destroy(&s);
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&turns);
    ful_buffer_destroy(&in);
    ful_kv_destroy(&kv);
    free(qkv64);
    free(qkv);
}

static int open_device(void **state)
{
    (void)state;
    fixture_open(&fixture, "");
    return 0;
}

static int close_device(void **state)
{
    (void)state;
    fixture_close(&fixture);
    return 0;
}

/* Drawn as a host draws; the step says how. */
static void test_sample(void **state)
{
    (void)state;
    enum { VOCAB = 1000, PLACES = 6 };
    rng random = rng_seed(16);
    float *logits = normals(&random, VOCAB, 2.0, NULL);
    ful_buffer *in = buffer_of(logits, sizeof(float) * VOCAB), *out = buffer_of(NULL, 8);
    ful_stream *s = stream_begin(false);
    ful_sample_args a = {.logits = whole(in), .vocab = VOCAB, .out = whole(out)};
    EXPECT_OK(ful_op_sample(s, &a));
    int32_t want;
    uint32_t got[2];
    EXPECT_OK(ful_sample_logits(logits, VOCAB, NULL, 0, &want));
    EXPECT_OK(ful_stream_run(s, NULL));
    EXPECT_OK(ful_buffer_read(out, 0, got, 8));
    assert_int_equal(got[0], want);
    assert_int_equal(got[1], 0);
    /* Of the two best the uniform number chooses in the order of ids. */
    for (int i = 0; i < PLACES; i++) {
        ful_step step = {.temperature = 1.0f, .top_k = 1, .uniform = (float)i / PLACES};
        EXPECT_OK(ful_stream_run(s, &step));
        EXPECT_OK(ful_buffer_read(out, 0, got, 8));
        assert_int_equal(got[0], want);
    }
    uint32_t second = want == 0 ? 1 : 0;
    for (uint32_t i = 0; i < VOCAB; i++)
        if (i != (uint32_t)want && logits[i] > logits[second])
            second = i;
    uint32_t low = second < (uint32_t)want ? second : (uint32_t)want;
    ful_step step = {.temperature = 1.0f, .top_k = 2, .uniform = 0.0f};
    EXPECT_OK(ful_stream_run(s, &step));
    EXPECT_OK(ful_buffer_read(out, 0, got, 8));
    assert_int_equal(got[0], low);
    step.uniform = 0.999999f;
    EXPECT_OK(ful_stream_run(s, &step));
    EXPECT_OK(ful_buffer_read(out, 0, got, 8));
    assert_int_equal(got[0], low ^ second ^ (uint32_t)want);
    ful_stream_destroy(&s);
    s = stream_begin(false);
    a.vocab = VOCAB + 1;
    assert_int_equal(ful_op_sample(s, &a), FUL_ERR_ARGUMENT);
    a.vocab = 0;
    assert_int_equal(ful_op_sample(s, &a), FUL_ERR_ARGUMENT);
    ful_stream_destroy(&s);
    ful_buffer_destroy(&in);
    ful_buffer_destroy(&out);
    free(logits);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_buffers),        cmocka_unit_test(test_matmul_and_norm),
        cmocka_unit_test(test_embed_and_gate), cmocka_unit_test(test_experts),
        cmocka_unit_test(test_lightning),      cmocka_unit_test(test_attention),
        cmocka_unit_test(test_sample),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
