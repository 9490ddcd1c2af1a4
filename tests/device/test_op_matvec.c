/* Matrix-vector kernels at the shapes decoding meets, alone and with a norm on the way in, against
 * the double-precision references, under every capability mask. Outputs are poisoned, guarded and
 * computed twice. */
#include "ops/op.h"

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

/* max|a - b| / max|b| of a row: sums of up to 6,144 products in f32. */
static const double LIMIT = 1e-5;
static const uint32_t POISON = 0x7fc0deadu;
static const float EPS = 1e-5f, ALPHA = 1.25f, BETA = -0.75f;

enum norm_kind { NORM_NONE, NORM_ONE, NORM_SUM, NORM_GATED };

typedef struct matvec_case {
    ful_type type;
    op_act act;
    enum norm_kind norm;
    bool normed; /* the normalised row is wanted */
    uint32_t rows, n_rows, cols, weights;
} matvec_case;

static float *random_floats(rng *random, size_t count, double scale)
{
    float *data = malloc(4 * count);
    assert_non_null(data);
    rng_fill_normal(random, data, count, scale);
    return data;
}

static double *doubles_of(const float *in, size_t count)
{
    double *out = ref_alloc(count);
    for (size_t i = 0; i < count; i++)
        out[i] = (double)in[i];
    return out;
}

/* The input of the product in double. gate: [rows][gate_stride] from gate_offset. */
static double *reference_input(const matvec_case *m, const float *x, const float *b,
                               uint32_t gate_stride, uint32_t gate_offset, const float *weight)
{
    size_t count = (size_t)m->rows * m->cols;
    double *in = doubles_of(x, count);
    if (m->norm == NORM_NONE)
        return in;
    if (m->norm == NORM_GATED) {
        double *gate = doubles_of(b, (size_t)m->rows * gate_stride);
        ref_gated_norm(m->rows, m->cols, in, gate + gate_offset, gate_stride, 1, weight,
                       (double)EPS, in);
        free(gate);
        return in;
    }
    double *second = doubles_of(b, count);
    ref_residual_norm(m->rows, m->cols, in, (double)ALPHA, second,
                      m->norm == NORM_SUM ? (double)BETA : 0.0, weight, (double)EPS, NULL, in);
    free(second);
    return in;
}

/* Runs what was recorded; both outputs are poisoned before. */
static void run_once(device_fixture *f, const test_buffer *out, const test_buffer *normed,
                     float *got, float *got_normed)
{
    fixture_fill(f, out, NULL);
    fixture_fill(f, normed, NULL);
    fixture_run(f);
    fixture_read(f, out, got);
    fixture_read(f, normed, got_normed);
}

static void check_rows(const float *got, const double *want, uint32_t stride, uint32_t columns,
                       uint32_t real, uint32_t rows, const char *text)
{
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = got + (size_t)r * stride;
        if (r < real)
            EXPECT_ERROR_BELOW(max_rel_error_f32(row, want + (size_t)r * columns, columns), LIMIT,
                               "%s row %u", text, (unsigned)r);
        for (uint32_t c = r < real ? columns : 0; c < stride; c++) {
            uint32_t word;
            memcpy(&word, row + c, 4);
            if (word != POISON)
                fail_msg("%s: row %u column %u was written", text, (unsigned)r, (unsigned)c);
        }
    }
}

static void run_case(device_fixture *f, const matvec_case *m)
{
    uint32_t rows = m->rows, cols = m->cols;
    uint32_t columns = m->act == OP_ACT_SWIGLU ? m->weights / 2 : m->weights;
    uint32_t out_stride = columns + 3, gate_stride = 2 * cols + 8, gate_offset = cols;
    bool gated = m->norm == NORM_GATED;
    char text[200];
    snprintf(text, sizeof text, "matvec %s caps \"%s\" norm %d act %d rows %u of %u, %u x %u",
             ful_type_name(m->type), f->caps, (int)m->norm, (int)m->act, (unsigned)m->n_rows,
             (unsigned)rows, (unsigned)cols, (unsigned)m->weights);
    rng random = rng_seed(cols * 31u + m->weights + rows * 7u + (uint32_t)m->norm);
    size_t b_count = (size_t)rows * (gated ? gate_stride : cols);
    float *x = random_floats(&random, (size_t)rows * cols, 3.0);
    float *b = random_floats(&random, b_count, 1.0);
    float *weight = random_floats(&random, cols, 1.0);
    float *w = random_floats(&random, (size_t)cols * m->weights, 1.0 / sqrt(cols));
    gpu_tensor t = fixture_tensor(f, m->type, 1, m->weights, cols, w, w);
    static const ref_activation acts[] = {REF_ACT_NONE, REF_ACT_SIGMOID, REF_ACT_SWIGLU};
    double *in = reference_input(m, x, b, gate_stride, gate_offset, weight);
    double *want = ref_alloc((size_t)rows * columns);
    ref_matmul_act(rows, cols, m->weights, in, w, acts[m->act], m->weights / 3, want);

    test_buffer x_buffer = fixture_buffer(f, 4 * (uint64_t)rows * cols, x);
    test_buffer b_buffer = fixture_buffer(f, 4 * (uint64_t)b_count, b);
    test_buffer weight_buffer = fixture_buffer(f, 4 * (uint64_t)cols, weight);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)rows * out_stride, NULL);
    test_buffer normed = fixture_buffer(f, 4 * (uint64_t)rows * cols, NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = m->n_rows}, false);
    ctx.shape = OP_SHAPE_WIDE;
    op_fused_norm norm = {.gated = gated,
                          .gate_stride = gated ? gate_stride : 0,
                          .gate_offset = gated ? gate_offset : 0,
                          .alpha = ALPHA,
                          .beta = BETA,
                          .eps = EPS,
                          .weight = weight_buffer.range};
    if (m->norm >= NORM_SUM)
        norm.b = b_buffer.range;
    if (m->normed)
        norm.out = normed.range;
    EXPECT_OK(op_matmul(
        &ctx, &(op_matmul_args){.x = {.data = x_buffer.range, .dim = cols, .stride = cols},
                                .w = &t,
                                .out = out.range,
                                .out_stride = out_stride,
                                .act = m->act,
                                .split = m->weights / 3,
                                .rows = rows,
                                .norm = m->norm != NORM_NONE ? &norm : NULL}));
    float *got[2], *got_normed[2];
    for (int i = 0; i < 2; i++) {
        got[i] = malloc(out.bytes);
        got_normed[i] = malloc(normed.bytes);
        assert_true(got[i] != NULL && got_normed[i] != NULL);
        run_once(f, &out, &normed, got[i], got_normed[i]);
    }
    assert_memory_equal(got[0], got[1], out.bytes);
    assert_memory_equal(got_normed[0], got_normed[1], normed.bytes);
    check_rows(got[0], want, out_stride, columns, m->n_rows, rows, text);
    check_rows(got_normed[0], in, cols, cols, m->normed ? m->n_rows : 0, rows, text);
    for (int i = 0; i < 2; i++) {
        free(got_normed[i]);
        free(got[i]);
    }
    fixture_end(f);
    fixture_free(f, &normed);
    fixture_free(f, &out);
    fixture_free(f, &weight_buffer);
    fixture_free(f, &b_buffer);
    fixture_free(f, &x_buffer);
    fixture_tensor_free(f, &t);
    free(want);
    free(in);
    free(w);
    free(weight);
    free(b);
    free(x);
}

/* Few weight rows for long lines, many for short ones, and numbers that no unrolling divides. */
static const struct {
    uint32_t cols, weights;
} sizes[] = {{256, 16}, {2048, 16}, {1792, 70}, {72, 6}, {520, 300}, {2048, 1024}, {6144, 64}};
static const ful_type types[] = {FUL_TYPE_F32, FUL_TYPE_F16, FUL_TYPE_BF16};

static void each_mask(void (*run)(device_fixture *f))
{
    for (size_t i = 0; fixture_masks[i] != NULL; i++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        run(&f);
        fixture_close(&f);
    }
}

static void run_mask(device_fixture *f)
{
    static const uint32_t row_counts[] = {1, 2, 3, 8};
    size_t length = strlen(f->caps);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (size_t t = 0; t < 3; t++) {
            /* The quick level takes each size in one type. */
            if (!fixture_full() && (i + length) % 3 != t)
                continue;
            if ((uint64_t)sizes[i].cols * 64 * (types[t] == FUL_TYPE_F32 ? 4 : 2) >
                device_window_bytes(f->device))
                continue;
            for (int norm = NORM_NONE; norm <= NORM_GATED; norm++) {
                uint32_t rows = row_counts[(i + (size_t)norm) % 4];
                op_context ctx = {.device = f->device, .shape = OP_SHAPE_WIDE, .layer = -1};
                if (norm != NORM_NONE &&
                    !op_matmul_norm_usable(&ctx, rows, sizes[i].cols,
                                           norm == NORM_GATED ? 2 * sizes[i].cols + 8 : 0))
                    continue;
                matvec_case m = {.type = types[t],
                                 .act = (op_act)((i + (size_t)norm) % 3),
                                 .norm = (enum norm_kind)norm,
                                 .normed = norm == NORM_SUM || (norm == NORM_ONE && i != 1),
                                 .rows = rows,
                                 .n_rows = rows > 2 ? rows - 1 : rows,
                                 .cols = sizes[i].cols,
                                 .weights = sizes[i].weights};
                run_case(f, &m);
                m.rows = m.n_rows = 1;
                run_case(f, &m);
            }
        }
    }
}

static void test_sizes(void **state)
{
    (void)state;
    each_mask(run_mask);
}

/* Several windows of weights: the normalised row comes from one of them. */
static void test_windows(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "range=1048576");
    op_context probe = {.device = f.device, .shape = OP_SHAPE_WIDE, .layer = -1};
    if (!op_matmul_norm_usable(&probe, 1, 512, 0)) {
        fixture_close(&f);
        skip();
    }
    matvec_case m = {.type = FUL_TYPE_F16,
                     .norm = NORM_SUM,
                     .normed = true,
                     .rows = 1,
                     .n_rows = 1,
                     .cols = 512,
                     .weights = 2500};
    run_case(&f, &m);
    m.norm = NORM_GATED;
    m.normed = false;
    run_case(&f, &m);
    fixture_close(&f);
}

/* Real sizes: a full model's projections. */
static void test_real_sizes(void **state)
{
    (void)state;
    if (!fixture_full())
        skip();
    device_fixture f;
    fixture_open(&f, "");
    op_context probe = {.device = f.device, .shape = OP_SHAPE_WIDE, .layer = -1};
    static const uint32_t real[][2] = {{6144, 32768}, {8192, 6144}, {6144, 1024}, {2048, 8192}};
    for (size_t i = 0; i < 4; i++) {
        for (int norm = NORM_NONE; norm <= NORM_GATED; norm++) {
            if (norm != NORM_NONE &&
                !op_matmul_norm_usable(&probe, 1, real[i][0],
                                       norm == NORM_GATED ? 2 * real[i][0] + 8 : 0))
                continue;
            matvec_case m = {.type = FUL_TYPE_F16,
                             .act = OP_ACT_SILU_SIGMOID,
                             .norm = (enum norm_kind)norm,
                             .normed = norm == NORM_SUM,
                             .rows = 1,
                             .n_rows = 1,
                             .cols = real[i][0],
                             .weights = real[i][1]};
            run_case(&f, &m);
        }
    }
    fixture_close(&f);
}

/* What is not finite stays visible, in that row alone. */
static void test_not_finite(void **state)
{
    (void)state;
    enum { ROWS = 4, COLS = 64, WEIGHTS = 20 };
    device_fixture f;
    fixture_open(&f, "");
    op_context probe = {.device = f.device, .shape = OP_SHAPE_WIDE, .layer = -1};
    if (!op_matmul_norm_usable(&probe, ROWS, COLS, 0)) {
        fixture_close(&f);
        return;
    }
    float x[ROWS * COLS], w[WEIGHTS * COLS], weight[COLS], got[ROWS * WEIGHTS];
    rng random = rng_seed(9);
    rng_fill_normal(&random, x, ROWS * COLS, 1.0);
    rng_fill_normal(&random, w, WEIGHTS * COLS, 1.0);
    for (int i = 0; i < COLS; i++) {
        weight[i] = 1.0f;
        x[3 * COLS + i] = 1e30f; /* the square overflows */
    }
    x[1 * COLS + 17] = NAN;
    x[2 * COLS + 40] = INFINITY;
    gpu_tensor t = fixture_tensor(&f, FUL_TYPE_F32, 1, WEIGHTS, COLS, w, NULL);
    test_buffer in = fixture_buffer(&f, sizeof x, x), g = fixture_buffer(&f, sizeof weight, weight);
    test_buffer out = fixture_buffer(&f, sizeof got, NULL);
    op_context ctx = fixture_begin(&f, &(step_params){.n_rows = ROWS}, false);
    ctx.shape = OP_SHAPE_WIDE;
    op_fused_norm norm = {.alpha = 1.0f, .eps = EPS, .weight = g.range};
    EXPECT_OK(
        op_matmul(&ctx, &(op_matmul_args){.x = {.data = in.range, .dim = COLS, .stride = COLS},
                                          .w = &t,
                                          .out = out.range,
                                          .out_stride = WEIGHTS,
                                          .rows = ROWS,
                                          .norm = &norm}));
    fixture_run(&f);
    fixture_read(&f, &out, got);
    for (int r = 0; r < ROWS; r++)
        for (int c = 0; c < WEIGHTS; c++)
            assert_int_equal(isfinite(got[r * WEIGHTS + c]) != 0, r == 0);
    fixture_end(&f);
    fixture_free(&f, &out);
    fixture_free(&f, &g);
    fixture_free(&f, &in);
    fixture_tensor_free(&f, &t);
    fixture_close(&f);
}

/* A norm is refused where its kernels do not serve. */
static void test_arguments(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "buffers=4");
    op_context ctx = {.device = f.device, .shape = OP_SHAPE_WIDE, .layer = -1};
    assert_false(op_matmul_norm_usable(&ctx, 1, 64, 0));
    fixture_close(&f);
    fixture_open(&f, "");
    ctx.device = f.device;
    assert_false(op_matmul_norm_usable(&ctx, 9, 64, 0));
    assert_false(op_matmul_norm_usable(&ctx, 1, 60, 0));
    assert_false(op_matmul_norm_usable(&ctx, 1, 64, 100));
    ctx.shape = OP_SHAPE_NARROW;
    assert_false(op_matmul_norm_usable(&ctx, 1, 64, 0));
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_sizes),      cmocka_unit_test(test_windows),
        cmocka_unit_test(test_real_sizes), cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
