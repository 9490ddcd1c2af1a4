/* fulgur/ops.h as a program outside uses it: every op against its reference, sizes checked. Shapes
 * and capability masks are the op tests' business. */
#include "ops/public.h"

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

/* As on GPUs: software drivers would run few rows without halves. */
static ful_stream *stream_begin_wide(bool half)
{
    ful_stream *s = stream_begin(half);
    s->ctx.shape = OP_SHAPE_WIDE;
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

/* ---- weights in blocks ---- */

/* A row of file bytes whose values are about `magnitude`. */
static void blocks_row(rng *random, ful_type type, uint32_t cols, double magnitude, uint8_t *row)
{
    uint32_t elements = ref_blocks_elements(type), bytes = ref_blocks_bytes(type);
    for (uint32_t b = 0; b < cols / elements; b++)
        ref_blocks_random(type, rng_next(random), magnitude, row + (size_t)b * bytes);
}

/* Rows of any bits, scales that are no numbers among them, come back as they went. */
static void test_block_rows(void **state)
{
    (void)state;
    enum { EXPERTS = 2, ROWS = 5, FIRST = 2 };
    rng random = rng_seed(21);
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        uint32_t block = ref_blocks_elements(type), cols = block == 32 ? 224 : 768;
        uint64_t bytes = (uint64_t)cols / block * ref_blocks_bytes(type);
        assert_int_equal(ful_row_bytes(type, cols), bytes);
        assert_int_equal(ful_row_bytes(type, cols - 1), 0);
        ful_tensor *t = NULL;
        EXPECT_OK(ful_tensor_create(
            &t, fixture.device,
            ful_tensor_params(.type = type, .experts = EXPERTS, .rows = ROWS, .cols = cols)));
        size_t all = EXPERTS * ROWS * bytes;
        uint8_t *data = malloc(all + 1), *back = malloc(all + 2);
        assert_true(data != NULL && back != NULL);
        for (size_t i = 0; i <= all; i++)
            data[i] = (uint8_t)(rng_next(&random) >> 24);
        memset(back, 0x5a, all + 2);
        /* Files align nothing. */
        const uint8_t *rows = data + 1;
        for (uint32_t e = 0; e < EXPERTS; e++) {
            const uint8_t *own = rows + e * ROWS * bytes;
            EXPECT_OK(ful_tensor_write(t, e, FIRST, ROWS - FIRST, own + FIRST * bytes));
            EXPECT_OK(ful_tensor_write(t, e, 0, FIRST, own));
            EXPECT_OK(ful_tensor_write(t, e, ROWS, 0, own));
        }
        for (uint32_t e = 0; e < EXPERTS; e++)
            EXPECT_OK(ful_tensor_read(t, e, 0, ROWS, back + 1 + e * ROWS * bytes));
        assert_memory_equal(back + 1, rows, all);
        assert_true(back[0] == 0x5a && back[all + 1] == 0x5a);
        EXPECT_OK(ful_tensor_read(t, 1, 3, 1, back + 1));
        assert_memory_equal(back + 1, rows + (ROWS + 3) * bytes, bytes);
        assert_int_equal(ful_tensor_read(t, 1, 3, 3, back + 1), FUL_ERR_ARGUMENT);
        ful_tensor_destroy(&t);
        free(back);
        free(data);
    }
}

static void test_block_errors(void **state)
{
    (void)state;
    ful_tensor *t = NULL;
    assert_int_equal(ful_tensor_create(&t, fixture.device,
                                       ful_tensor_params(.type = FUL_TYPE_Q8_0, .rows = 4,
                                                         .cols = 48, .name = "narrow")),
                     FUL_ERR_ARGUMENT);
    assert_null(t);
    assert_string_equal(ful_last_error(),
                        "ful_tensor_create: narrow: 48 columns are not a multiple "
                        "of the 32 of a block of q8_0");
    assert_int_equal(
        ful_tensor_create(&t, fixture.device,
                          ful_tensor_params(.type = FUL_TYPE_Q4_K, .rows = 4, .cols = 1024 + 128)),
        FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "1152 columns are not a multiple of the 256 of a "
                                             "block of q4_k"));
    assert_int_equal(ful_tensor_create(&t, fixture.device,
                                       ful_tensor_params(.type = (ful_type)(FUL_TYPE_MXFP4 + 1),
                                                         .rows = 4, .cols = 256)),
                     FUL_ERR_ARGUMENT);
    float row[32] = {0};
    uint8_t packed[64];
    assert_int_equal(ful_row_decode(FUL_TYPE_Q5_0, packed, 33, row), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_row_decode((ful_type)99, packed, 32, row), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_row_encode(FUL_TYPE_Q6_K, row, 32, NULL, packed), FUL_ERR_ARGUMENT);
    EXPECT_OK(ful_row_encode(FUL_TYPE_Q8_0, row, 32, NULL, packed));
    row[7] = INFINITY;
    assert_int_equal(ful_row_encode(FUL_TYPE_Q8_0, row, 32, NULL, packed), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "element 7 is inf"));
}

/* What a host decodes, and what comes of encoding it again. */
static void test_block_floats(void **state)
{
    (void)state;
    enum { COLS = 512 };
    rng random = rng_seed(22);
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        uint8_t row[4 * COLS], again[4 * COLS];
        float values[COLS], back[COLS];
        double exact[COLS], sum = 0, wrong = 0;
        blocks_row(&random, type, COLS, 0.5, row);
        ref_blocks_decode(type, row, COLS, exact);
        EXPECT_OK(ful_row_decode(type, row, COLS, values));
        EXPECT_ERROR_BELOW(max_rel_error_f32(values, exact, COLS), 1e-6, "%s", ful_type_name(type));
        EXPECT_OK(ful_row_encode(type, values, COLS, NULL, again));
        EXPECT_OK(ful_row_decode(type, again, COLS, back));
        for (uint32_t i = 0; i < COLS; i++) {
            sum += (double)values[i] * (double)values[i];
            wrong += ((double)back[i] - (double)values[i]) * ((double)back[i] - (double)values[i]);
        }
        /* Values that the type holds are found again, nearly. */
        EXPECT_ERROR_BELOW(sqrt(wrong / sum), 0.2, "%s encoded again", ful_type_name(type));
    }
}

/* Weight rows of ordinary size but for one beyond fp16 and one far below it, whose scales must be
 * found when they are written. */
static double magnitude_of(ful_type type, uint32_t row, uint32_t cols)
{
    if (row == 3)
        return type == FUL_TYPE_MXFP4 ? 0x1p60 : 4e5;
    if (row == 5)
        return type == FUL_TYPE_MXFP4 ? 0x1p-60 : 1e-3;
    return 1.0 / sqrt(cols);
}

static void block_product(ful_type type, bool half, uint32_t rows)
{
    enum { WEIGHTS = 40 };
    rng random = rng_seed(23 + (uint32_t)type);
    uint32_t cols = ref_blocks_elements(type) == 32 ? 288 : 512;
    size_t bytes = (size_t)ful_row_bytes(type, cols);
    double *x64, *w64 = ref_alloc(cols), *want = ref_alloc((size_t)rows * WEIGHTS);
    float *x = normals(&random, (size_t)rows * cols, 1.0, &x64);
    uint8_t *w = malloc(WEIGHTS * bytes);
    float *got = malloc(sizeof(float) * rows * WEIGHTS);
    assert_true(w != NULL && got != NULL);
    for (uint32_t n = 0; n < WEIGHTS; n++) {
        blocks_row(&random, type, cols, magnitude_of(type, n, cols), w + n * bytes);
        ref_blocks_decode(type, w + n * bytes, cols, w64);
        for (uint32_t r = 0; r < rows; r++)
            want[(size_t)r * WEIGHTS + n] = ref_dot(x64 + (size_t)r * cols, w64, cols);
    }
    ful_tensor *t = NULL;
    EXPECT_OK(ful_tensor_create(&t, fixture.device,
                                ful_tensor_params(.type = type, .rows = WEIGHTS, .cols = cols)));
    EXPECT_OK(ful_tensor_write(t, 0, 0, WEIGHTS, w));
    ful_buffer *in = buffer_of(x, sizeof(float) * rows * cols),
               *out = buffer_of(NULL, sizeof(float) * rows * WEIGHTS);
    ful_stream *s = half ? stream_begin_wide(half) : stream_begin(half);
    EXPECT_OK(ful_op_matmul(
        s, &(ful_matmul_args){.x = whole(in), .w = t, .out = whole(out), .rows = rows}));
    EXPECT_OK(ful_stream_run(s, NULL));
    EXPECT_OK(ful_buffer_read(out, 0, got, sizeof(float) * rows * WEIGHTS));
    for (uint32_t n = 0; n < WEIGHTS; n++) { /* each against its own size */
        double worst = 0, largest = 0;
        for (uint32_t r = 0; r < rows; r++) {
            double e = fabs((double)got[r * WEIGHTS + n] - want[(size_t)r * WEIGHTS + n]);
            worst = e > worst || isnan(e) ? e : worst;
            largest = fmax(largest, fabs(want[(size_t)r * WEIGHTS + n]));
        }
        EXPECT_ERROR_BELOW(worst / largest, half ? 1e-3 : 1e-5, "%s half %d, %u rows, column %u",
                           ful_type_name(type), half, (unsigned)rows, (unsigned)n);
    }
    ful_stream_destroy(&s);
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&in);
    ful_tensor_destroy(&t);
    free(got);
    free(w);
    free(x);
    free(want);
    free(w64);
    free(x64);
}

static void test_block_products(void **state)
{
    (void)state;
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        block_product(type, false, 24);
        block_product(type, true, 70);
        if (fixture_full()) {
            block_product(type, false, 3);
            block_product(type, true, 24);
        }
    }
}

/* Experts of blocks: rows beyond fp16 in both matrices. */
static void block_experts(ful_type w13_type, ful_type w2_type, bool half)
{
    enum { ROWS = 40, DIM = 256, WIDTH = 256, EXPERTS = 3, TOP_K = 2 };
    rng random = rng_seed(24);
    double *x64, *want = ref_alloc((size_t)ROWS * DIM), *logits64, weights[ROWS * TOP_K];
    uint32_t indices[ROWS * TOP_K];
    float *x = normals(&random, (size_t)ROWS * DIM, 1.0, &x64);
    float *logits = normals(&random, (size_t)ROWS * EXPERTS, 1.0, &logits64);
    size_t n13 = (size_t)EXPERTS * 2 * WIDTH, n2 = (size_t)EXPERTS * DIM;
    size_t bytes13 = (size_t)ful_row_bytes(w13_type, DIM),
           bytes2 = (size_t)ful_row_bytes(w2_type, WIDTH);
    uint8_t *w13 = malloc(n13 * bytes13), *w2 = malloc(n2 * bytes2);
    float *w1 = malloc(sizeof(float) * EXPERTS * WIDTH * DIM),
          *w3 = malloc(sizeof(float) * EXPERTS * WIDTH * DIM),
          *down = malloc(sizeof(float) * n2 * WIDTH);
    assert_true(w13 != NULL && w2 != NULL && w1 != NULL && w3 != NULL && down != NULL);
    ref_expert experts[EXPERTS];
    for (size_t i = 0; i < n13; i++) { /* rows of W1 and of W3 in turn; a large one of W3 */
        blocks_row(&random, w13_type, DIM, i % (2 * WIDTH) == 7 ? 3e4 : 1.0 / 16,
                   w13 + i * bytes13);
        EXPECT_OK(
            ful_row_decode(w13_type, w13 + i * bytes13, DIM, (i % 2 == 0 ? w1 : w3) + i / 2 * DIM));
    }
    for (size_t i = 0; i < n2; i++) {
        blocks_row(&random, w2_type, WIDTH, i % DIM == 9 ? 3e4 : 1.0 / 16, w2 + i * bytes2);
        EXPECT_OK(ful_row_decode(w2_type, w2 + i * bytes2, WIDTH, down + i * WIDTH));
    }
    for (size_t e = 0; e < EXPERTS; e++)
        experts[e] =
            (ref_expert){w1 + e * WIDTH * DIM, w3 + e * WIDTH * DIM, down + e * DIM * WIDTH};
    ref_route_logits(ROWS, EXPERTS, TOP_K, logits64, indices, weights, NULL);
    ref_moe(ROWS, DIM, WIDTH, TOP_K, x64, experts, indices, weights, want);
    ful_tensor *t13 = NULL, *t2 = NULL;
    EXPECT_OK(ful_tensor_create(
        &t13, fixture.device,
        ful_tensor_params(.type = w13_type, .experts = EXPERTS, .rows = 2 * WIDTH, .cols = DIM)));
    EXPECT_OK(ful_tensor_create(
        &t2, fixture.device,
        ful_tensor_params(.type = w2_type, .experts = EXPERTS, .rows = DIM, .cols = WIDTH)));
    for (uint32_t e = 0; e < EXPERTS; e++) {
        EXPECT_OK(ful_tensor_write(t13, e, 0, 2 * WIDTH, w13 + (size_t)e * 2 * WIDTH * bytes13));
        EXPECT_OK(ful_tensor_write(t2, e, 0, DIM, w2 + (size_t)e * DIM * bytes2));
    }
    ful_buffer *in = buffer_of(x, sizeof(float) * ROWS * DIM);
    ful_buffer *scores = buffer_of(logits, sizeof(float) * ROWS * EXPERTS);
    ful_buffer *routes = buffer_of(NULL, 8 * ROWS * TOP_K),
               *out = buffer_of(NULL, sizeof(float) * ROWS * DIM);
    ful_stream *s = half ? stream_begin_wide(half) : stream_begin(half);
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
    finish(&s, out, want, (size_t)ROWS * DIM, half ? 3e-3 : 1e-5, "experts of blocks");
    ful_buffer_destroy(&out);
    ful_buffer_destroy(&routes);
    ful_buffer_destroy(&scores);
    ful_buffer_destroy(&in);
    ful_tensor_destroy(&t2);
    ful_tensor_destroy(&t13);
    free(down);
    free(w3);
    free(w1);
    free(w2);
    free(w13);
    free(logits64);
    free(logits);
    free(want);
    free(x64);
    free(x);
}

static void test_block_experts(void **state)
{
    (void)state;
    block_experts(FUL_TYPE_Q4_K, FUL_TYPE_Q6_K, false);
    block_experts(FUL_TYPE_Q4_K, FUL_TYPE_Q6_K, true);
    block_experts(FUL_TYPE_MXFP4, FUL_TYPE_Q8_0, true);
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
        cmocka_unit_test(test_sample),         cmocka_unit_test(test_block_rows),
        cmocka_unit_test(test_block_errors),   cmocka_unit_test(test_block_floats),
        cmocka_unit_test(test_block_products), cmocka_unit_test(test_block_experts),
    };
    return cmocka_run_group_tests(tests, open_device, close_device);
}
