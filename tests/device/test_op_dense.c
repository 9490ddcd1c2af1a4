/* Embedding, norms, packing and matrix products against the double-precision references, under
 * every capability mask and in both dispatch shapes. Outputs are poisoned, guarded and computed
 * twice. */
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

/* Errors are max|a - b| / max|b| of a row. f32: sums of up to 6,144 products in f32, measured below
 * 3e-6. fp16: inputs rounded to 11 bits, 4.9e-4 each, averaging out over the sum. */
static const double F32_LIMIT = 1e-5, HALF_LIMIT = 2e-3;
static const uint32_t POISON = 0x7fc0deadu;

static const op_shape shapes[] = {OP_SHAPE_NARROW, OP_SHAPE_WIDE};
static const ful_type types[] = {FUL_TYPE_F32, FUL_TYPE_F16, FUL_TYPE_BF16};

/* Runs what was recorded twice; out (poisoned before each run) must hold the same bits after both.
 */
static float *run_twice(device_fixture *f, const test_buffer *out, size_t count)
{
    assert_int_equal(out->bytes, 4 * count);
    float *first = malloc(4 * count), *second = malloc(4 * count);
    assert_non_null(first);
    assert_non_null(second);
    fixture_fill(f, out, NULL);
    fixture_run(f);
    fixture_read(f, out, first);
    fixture_fill(f, out, NULL);
    fixture_run(f);
    fixture_read(f, out, second);
    assert_memory_equal(first, second, 4 * count);
    free(second);
    return first;
}

/* Words of rows and columns nobody may write still hold poison. */
static void check_untouched(const float *out, uint32_t rows, uint32_t stride, uint32_t row0,
                            uint32_t column0, const char *what)
{
    for (uint32_t r = 0; r < rows; r++) {
        for (uint32_t c = r < row0 ? column0 : 0; c < stride; c++) {
            uint32_t word;
            memcpy(&word, out + (size_t)r * stride + c, 4);
            if (word != POISON)
                fail_msg("%s: row %u column %u was written", what, (unsigned)r, (unsigned)c);
        }
    }
}

static double worst_row(const float *out, uint32_t out_stride, const double *want, uint32_t rows,
                        uint32_t columns)
{
    double worst = 0;
    for (uint32_t r = 0; r < rows; r++) {
        double e =
            max_rel_error_f32(out + (size_t)r * out_stride, want + (size_t)r * columns, columns);
        if (e > worst)
            worst = e;
    }
    return worst;
}

/* Lengths of the quick level: all of them on the device as it is, the edges under masks. */
static bool length_wanted(const device_fixture *f, uint32_t rows)
{
    return fixture_full() || f->caps[0] == '\0' || rows == 1 || rows == 17 || rows == 257;
}

/* Types of the quick level: under a single mask one of them, in turn. */
static bool type_wanted(const device_fixture *f, size_t type)
{
    size_t length = strlen(f->caps);
    return fixture_full() || length == 0 || length > 40 || length % 3 == type;
}

static void for_each_mask(void (*test)(device_fixture *f))
{
    for (size_t i = 0; fixture_masks[i] != NULL; i++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        test(&f);
        fixture_close(&f);
    }
}

/* ---- embedding ---- */

static void embed_case(device_fixture *f, op_shape shape, ful_type type, uint32_t rows,
                       uint32_t n_rows, uint32_t vocab, uint32_t dim)
{
    rng random = rng_seed(rows * 31u + dim);
    float *table = malloc(sizeof(float) * vocab * dim);
    uint32_t *tokens = malloc(sizeof(uint32_t) * rows);
    assert_non_null(table);
    assert_non_null(tokens);
    rng_fill_normal(&random, table, (size_t)vocab * dim, 1.0);
    for (uint32_t r = 0; r < rows; r++)
        tokens[r] = rng_below(&random, vocab);
    tokens[0] = vocab - 1;
    if (rows > 2)
        tokens[1] = vocab; /* outside: zeros */
    if (rows > 3)
        tokens[2] = UINT32_MAX;
    gpu_tensor t = fixture_tensor(f, type, 1, vocab, dim, table, table);
    test_buffer in = fixture_buffer(f, 4 * (uint64_t)rows, tokens);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)rows * dim, NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = n_rows}, false);
    ctx.shape = shape;
    EXPECT_OK(op_embed(&ctx, &(op_embed_args){in.range, &t, out.range, rows}));
    float *got = run_twice(f, &out, (size_t)rows * dim);
    for (uint32_t r = 0; r < n_rows; r++) {
        for (uint32_t c = 0; c < dim; c++) {
            float want = tokens[r] < vocab ? table[(size_t)tokens[r] * dim + c] : 0.0f;
            if (!(got[(size_t)r * dim + c] == want))
                fail_msg("embed %s caps \"%s\" rows %u dim %u: row %u column %u is %g, not %g",
                         ful_type_name(type), f->caps, (unsigned)rows, (unsigned)dim, (unsigned)r,
                         (unsigned)c, (double)got[(size_t)r * dim + c], (double)want);
        }
    }
    check_untouched(got, rows, dim, n_rows, dim, "embed");
    free(got);
    fixture_end(f);
    fixture_free(f, &out);
    fixture_free(f, &in);
    fixture_tensor_free(f, &t);
    free(tokens);
    free(table);
}

static void embed_mask(device_fixture *f)
{
    static const uint32_t rows[] = {1, 15, 16, 17, 255, 256, 257, 4097};
    for (size_t s = 0; s < 2; s++) {
        for (size_t t = 0; t < 3; t++) {
            if (!type_wanted(f, t))
                continue;
            for (size_t i = 0; i < 8; i++) {
                if (!length_wanted(f, rows[i]) ||
                    (!fixture_full() && f->caps[0] == '\0' && i % 3 != t))
                    continue;
                embed_case(f, shapes[s], types[t], rows[i], rows[i] == 257 ? 200 : rows[i], 301,
                           96);
            }
            /* More than one window where bindings are 1 MiB. */
            embed_case(f, shapes[s], types[t], 33, 33, 3000, 256);
        }
    }
}

static void test_embed(void **state)
{
    (void)state;
    for_each_mask(embed_mask);
}

/* ---- norms ---- */

typedef struct norm_case {
    op_shape shape;
    uint32_t rows, n_rows, dim;
    bool with_b, last_row, fixed, gated, half;
    double eps, magnitude;
} norm_case;

static void decode_halves(const uint16_t *data, const float *scale, uint32_t rows, uint32_t dim,
                          uint32_t stride, float *out)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = 0; c < dim; c++)
            out[(size_t)r * dim + c] = f32_from_f16(data[(size_t)r * stride + c]) * scale[r];
}

/* A packed row: scale is a power of two, the largest magnitude in [2^13, 2^14]. */
static void check_packing(const uint16_t *data, const float *scale, uint32_t rows, uint32_t dim,
                          uint32_t stride)
{
    for (uint32_t r = 0; r < rows; r++) {
        float largest = 0;
        for (uint32_t c = 0; c < dim; c++)
            largest = fmaxf(largest, fabsf(f32_from_f16(data[(size_t)r * stride + c])));
        int exponent;
        if (frexpf(scale[r], &exponent) != 0.5f)
            fail_msg("row %u: scale %g is no power of two", (unsigned)r, (double)scale[r]);
        if (largest == 0)
            assert_true(scale[r] == 1.0f);
        else if (!(largest >= 0x1p13f && largest <= 0x1p14f))
            fail_msg("row %u: largest half %g", (unsigned)r, (double)largest);
    }
}

static void run_norm(device_fixture *f, const norm_case *n)
{
    uint32_t rows = n->rows, dim = n->dim, gate_stride = 3 * dim, gate_offset = dim + 7;
    size_t count = (size_t)rows * dim, b_count = n->gated ? (size_t)rows * gate_stride : count;
    rng random = rng_seed(rows * 7919u + dim);
    float *a = malloc(4 * count), *b = malloc(4 * b_count), *w = malloc(4 * (size_t)dim);
    assert_true(a != NULL && b != NULL && w != NULL);
    double *a64 = ref_alloc(count), *b64 = ref_alloc(b_count), *want = ref_alloc(count);
    rng_fill_normal(&random, a, count, n->magnitude);
    rng_fill_normal(&random, b, b_count, n->gated ? 1.0 : n->magnitude);
    rng_fill_uniform(&random, w, dim, 0.5, 1.5);
    float alpha = 2.25f, beta = 0.75f;
    ref_from_f32(a, a64, count);
    ref_from_f32(b, b64, b_count);
    if (n->gated) {
        double *gate = ref_alloc(count);
        for (size_t r = 0; r < rows; r++)
            memcpy(gate + r * dim, b64 + r * gate_stride + gate_offset, dim * sizeof(double));
        ref_gated_norm(rows, dim, a64, gate, 0, 1, w, n->eps, want);
        free(gate);
    } else {
        ref_residual_norm(rows, dim, a64, (double)alpha, n->with_b ? b64 : a64,
                          n->with_b ? (double)beta : 0.0, w, n->eps, NULL, want);
    }

    uint32_t stride = n->gated ? dim + 24 : dim, half_stride = (dim + 7) / 8 * 8 + 8;
    uint32_t out_rows = n->last_row ? 1 : rows;
    test_buffer in_a = fixture_buffer(f, 4 * count, a), in_b = fixture_buffer(f, 4 * b_count, b);
    test_buffer weight = fixture_buffer(f, 4 * (uint64_t)dim, w);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)out_rows * stride, NULL);
    test_buffer data = fixture_buffer(f, 2 * (uint64_t)out_rows * half_stride, NULL);
    test_buffer scale = fixture_buffer(f, 4 * (uint64_t)out_rows, NULL);
    op_activation packed = {data.range, scale.range, dim, half_stride, true};
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = n->n_rows}, n->half);
    ctx.shape = n->shape;
    bool f32_out = !(n->half && n->gated);
    if (n->gated) {
        op_activation plain = {.data = out.range, .dim = dim, .stride = stride};
        EXPECT_OK(op_gated_norm(&ctx, &(op_gated_norm_args){.o = in_a.range,
                                                            .gate = in_b.range,
                                                            .gate_stride = gate_stride,
                                                            .gate_offset = gate_offset,
                                                            .weight = weight.range,
                                                            .eps = (float)n->eps,
                                                            .dim = dim,
                                                            .rows = rows,
                                                            .fixed = n->fixed,
                                                            .out = n->half ? packed : plain}));
    } else {
        const op_activation none = {.half = false};
        gpu_range second = n->with_b ? in_b.range : (gpu_range){0};
        EXPECT_OK(op_norm(&ctx, &(op_norm_args){.a = in_a.range,
                                                .b = second,
                                                .alpha = alpha,
                                                .beta = beta,
                                                .weight = weight.range,
                                                .eps = (float)n->eps,
                                                .dim = dim,
                                                .rows = rows,
                                                .last_row = n->last_row,
                                                .fixed = n->fixed,
                                                .out = out.range,
                                                .packed = n->half ? packed : none}));
    }
    fixture_fill(f, &data, NULL);
    fixture_fill(f, &scale, NULL);
    float *got = run_twice(f, &out, (size_t)out_rows * stride);
    uint32_t real = n->last_row ? 1 : n->fixed ? rows : n->n_rows;
    const double *expected = n->last_row ? want + (size_t)(n->n_rows - 1) * dim : want;
    char text[256];
    snprintf(
        text, sizeof text,
        "%s caps \"%s\" shape %d rows %u of %u dim %u b %d last %d fixed %d half %d eps %g x %g",
        n->gated ? "gated norm" : "norm", f->caps, (int)n->shape, (unsigned)n->n_rows,
        (unsigned)rows, (unsigned)dim, n->with_b, n->last_row, n->fixed, n->half, n->eps,
        n->magnitude);
    if (f32_out) {
        EXPECT_ERROR_BELOW(worst_row(got, stride, expected, real, dim), F32_LIMIT / 4, "%s", text);
        check_untouched(got, out_rows, stride, real, dim, text);
    }
    if (n->half) {
        uint16_t *halves = malloc(data.bytes);
        float *scales = malloc(scale.bytes), *values = malloc(4 * (size_t)real * dim);
        assert_true(halves != NULL && scales != NULL && values != NULL);
        fixture_read(f, &data, halves);
        fixture_read(f, &scale, scales);
        check_packing(halves, scales, real, dim, half_stride);
        decode_halves(halves, scales, real, dim, half_stride, values);
        EXPECT_ERROR_BELOW(worst_row(values, dim, expected, real, dim), 5e-4, "%s (halves)", text);
        for (uint32_t r = real; r < out_rows; r++)
            assert_memory_equal(&scales[r], &POISON, 4);
        free(values);
        free(scales);
        free(halves);
    }
    free(got);
    fixture_end(f);
    fixture_free(f, &scale);
    fixture_free(f, &data);
    fixture_free(f, &out);
    fixture_free(f, &weight);
    fixture_free(f, &in_b);
    fixture_free(f, &in_a);
    free(want);
    free(b64);
    free(a64);
    free(w);
    free(b);
    free(a);
}

static void norm_mask(device_fixture *f)
{
    static const uint32_t rows[] = {1, 15, 16, 17, 255, 256, 257, 4097};
    static const uint32_t dims[] = {64, 96, 256, 6144, 50};
    bool half_too = op_half_usable(f->device);
    for (size_t s = 0; s < 2; s++) {
        for (int half = 0; half <= half_too; half++) {
            for (size_t i = 0; i < 8; i++) {
                uint32_t dim = dims[i % 3];
                norm_case n = {.shape = shapes[s],
                               .rows = rows[i],
                               .n_rows = rows[i] > 16 ? rows[i] - 3 : rows[i],
                               .dim = dim,
                               .with_b = i % 2 == 0,
                               .half = half,
                               .eps = 1e-5,
                               .magnitude = 1.0};
                if (!length_wanted(f, rows[i]))
                    continue;
                run_norm(f, &n);
                n.last_row = true;
                run_norm(f, &n);
                n.last_row = false;
                n.fixed = true;
                run_norm(f, &n);
                n.gated = true;
                run_norm(f, &n);
                n.fixed = false;
                run_norm(f, &n);
            }
            for (size_t i = 3; i < 5; i++) {
                norm_case n = {.shape = shapes[s],
                               .rows = 50, /* at 6,144 columns more than a binding of 1 MiB */
                               .n_rows = 50,
                               .dim = dims[i],
                               .with_b = true,
                               .half = half,
                               .eps = 1e-6,
                               .magnitude = 100.0};
                run_norm(f, &n);
                n.last_row = true;
                n.n_rows = 47;
                run_norm(f, &n);
            }
            /* x so small that the two epsilons of the model give results 3 times apart, and rows so
             * large or small that halves need their scale. */
            static const double eps[] = {1e-5, 1e-6};
            static const double magnitudes[] = {1e-6, 1e-3, 1e6};
            for (size_t e = 0; e < 2; e++) {
                for (size_t m = 0; m < 3; m++) {
                    norm_case n = {.shape = shapes[s],
                                   .rows = 5,
                                   .n_rows = 5,
                                   .dim = 96,
                                   .half = half,
                                   .eps = eps[e],
                                   .magnitude = magnitudes[m]};
                    run_norm(f, &n);
                    n.gated = true;
                    run_norm(f, &n);
                }
            }
        }
    }
}

static void test_norm(void **state)
{
    (void)state;
    for_each_mask(norm_mask);
}

/* A NaN or infinity in a row makes the whole row NaN, and no other. */
static void test_norm_not_finite(void **state)
{
    (void)state;
    enum { ROWS = 5, DIM = 64 };
    device_fixture f;
    fixture_open(&f, "");
    for (size_t s = 0; s < 2; s++) {
        float a[ROWS * DIM], w[DIM], got[ROWS * DIM], scales[ROWS];
        uint16_t halves[ROWS * DIM];
        rng random = rng_seed(5);
        rng_fill_normal(&random, a, ROWS * DIM, 1.0);
        for (size_t i = 0; i < DIM; i++) {
            w[i] = 1.0f;
            a[3 * DIM + i] = 0.0f;
            a[4 * DIM + i] = 1e30f; /* the square overflows */
        }
        a[1 * DIM + 17] = NAN;
        a[2 * DIM + 40] = INFINITY;
        bool half = op_half_usable(f.device);
        test_buffer in = fixture_buffer(&f, sizeof a, a), weight = fixture_buffer(&f, sizeof w, w);
        test_buffer out = fixture_buffer(&f, sizeof a, NULL);
        test_buffer data = fixture_buffer(&f, sizeof halves, NULL);
        test_buffer scale = fixture_buffer(&f, sizeof scales, NULL);
        op_context ctx = fixture_begin(&f, &(step_params){.n_rows = ROWS}, half);
        ctx.shape = shapes[s];
        EXPECT_OK(
            op_norm(&ctx, &(op_norm_args){.a = in.range,
                                          .alpha = 1.0f,
                                          .weight = weight.range,
                                          .eps = 1e-5f,
                                          .dim = DIM,
                                          .rows = ROWS,
                                          .out = out.range,
                                          .packed = {data.range, scale.range, DIM, DIM, half}}));
        fixture_run(&f);
        fixture_read(&f, &out, got);
        fixture_read(&f, &data, halves);
        fixture_read(&f, &scale, scales);
        for (size_t r = 0; r < ROWS; r++) {
            for (size_t i = 0; i < DIM; i++) {
                bool finite = r == 0 || r == 3;
                assert_int_equal(isfinite(got[r * DIM + i]) != 0, finite);
                if (half) { /* either alone is enough for a consumer */
                    assert_int_equal(isfinite(f32_from_f16(halves[r * DIM + i])) != 0, finite);
                    assert_int_equal(isfinite(scales[r]) != 0, finite);
                }
                if (r == 3)
                    assert_true(got[r * DIM + i] == 0.0f);
            }
        }
        fixture_end(&f);
        fixture_free(&f, &scale);
        fixture_free(&f, &data);
        fixture_free(&f, &out);
        fixture_free(&f, &weight);
        fixture_free(&f, &in);
    }
    fixture_close(&f);
}

/* ---- matrix products, packing ---- */

typedef struct matmul_case {
    op_shape shape;
    ful_type type;
    bool half;
    op_act act;
    uint32_t rows, n_rows, cols, weights, x_stride, out_pad;
    bool fixed;
    bool extreme; /* rows of x from 1e-6 to 1e6 */
    double w_magnitude;
} matmul_case;

static void run_matmul(device_fixture *f, const matmul_case *m)
{
    uint32_t rows = m->rows, cols = m->cols, weights = m->weights;
    uint32_t x_stride = m->half ? cols : m->x_stride;
    size_t x_count = (size_t)rows * x_stride;
    rng random = rng_seed(rows * 104729u + cols * 31u + weights);
    float *x = malloc(4 * x_count), *w = malloc(4 * (size_t)cols * weights);
    assert_true(x != NULL && w != NULL);
    double *x64 = ref_alloc((size_t)rows * cols);
    uint32_t columns = m->act == OP_ACT_SWIGLU ? weights / 2 : weights;
    double *want = ref_alloc((size_t)rows * columns);
    rng_fill_normal(&random, x, x_count, 1.0);
    double w_scale = m->w_magnitude != 0 ? m->w_magnitude : 1.0 / sqrt(cols);
    rng_fill_normal(&random, w, (size_t)cols * weights, w_scale);
    for (size_t r = 0; r < rows; r++) {
        double factor = m->extreme ? pow(10.0, (double)(r % 13) - 6.0) : 1.0;
        for (size_t c = 0; c < x_stride; c++) {
            float *v = &x[r * x_stride + c];
            *v = c < cols ? (float)((double)*v * factor) : NAN; /* the stride's rest is not read */
            if (c < cols)
                x64[r * cols + c] = (double)*v;
        }
    }
    gpu_tensor t = fixture_tensor(f, m->type, 1, weights, cols, w, w);
    uint32_t split = weights / 3;
    static const ref_activation acts[] = {REF_ACT_NONE, REF_ACT_SIGMOID, REF_ACT_SWIGLU};
    ref_matmul_act(rows, cols, weights, x64, w, acts[m->act], split, want);

    uint32_t half_stride = (cols + 7) / 8 * 8 + 8, out_stride = columns + m->out_pad;
    test_buffer in = fixture_buffer(f, 4 * (uint64_t)x_count, x);
    test_buffer data = fixture_buffer(f, 2 * (uint64_t)rows * half_stride, NULL);
    test_buffer scale = fixture_buffer(f, 4 * (uint64_t)rows, NULL);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)rows * out_stride, NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = m->n_rows}, m->half);
    ctx.shape = m->shape;
    op_activation packed = {data.range, scale.range, cols, half_stride, true};
    op_activation plain = {.data = in.range, .dim = cols, .stride = x_stride};
    if (m->half)
        EXPECT_OK(op_pack(&ctx, in.range, &packed, rows, m->fixed));
    /* Every other shape may split its columns. */
    uint64_t scratch_bytes =
        (cols + weights) % 4 < 2 ? op_matmul_scratch_bytes(&ctx, rows, weights) : 0;
    test_buffer scratch = {0};
    if (scratch_bytes > 0)
        scratch = fixture_buffer(f, scratch_bytes, NULL);
    EXPECT_OK(op_matmul(&ctx, &(op_matmul_args){.x = m->half ? packed : plain,
                                                .w = &t,
                                                .out = out.range,
                                                .out_stride = out_stride,
                                                .act = m->act,
                                                .split = split,
                                                .rows = rows,
                                                .fixed = m->fixed,
                                                .scratch = scratch.range}));
    float *got = run_twice(f, &out, (size_t)rows * out_stride);
    uint32_t real = m->fixed ? rows : m->n_rows;
    char text[256];
    snprintf(
        text, sizeof text,
        "matmul %s caps \"%s\" shape %d half %d act %d rows %u of %u cols %u weights %u extreme %d",
        ful_type_name(m->type), f->caps, (int)m->shape, m->half, (int)m->act, (unsigned)m->n_rows,
        (unsigned)rows, (unsigned)cols, (unsigned)weights, m->extreme);
    if (m->half) {
        uint16_t *halves = malloc(data.bytes);
        float *scales = malloc(scale.bytes);
        assert_true(halves != NULL && scales != NULL);
        fixture_read(f, &data, halves);
        fixture_read(f, &scale, scales);
        check_packing(halves, scales, real, cols, half_stride);
        free(scales);
        free(halves);
    }
    double error = worst_row(got, out_stride, want, real, columns);
    if (getenv("FULGUR_TEST_VERBOSE") != NULL)
        printf("%s: %.2g\n", text, error);
    /* SwiGLU multiplies two products: their relative errors add. */
    double half_limit = m->act == OP_ACT_SWIGLU ? 2 * HALF_LIMIT : HALF_LIMIT;
    EXPECT_ERROR_BELOW(error, m->half ? half_limit : F32_LIMIT, "%s", text);
    check_untouched(got, rows, out_stride, real, columns, text);
    free(got);
    fixture_end(f);
    if (scratch_bytes > 0)
        fixture_free(f, &scratch);
    fixture_free(f, &out);
    fixture_free(f, &scale);
    fixture_free(f, &data);
    fixture_free(f, &in);
    fixture_tensor_free(f, &t);
    free(want);
    free(x64);
    free(w);
    free(x);
}

static void matmul_mask(device_fixture *f)
{
    static const uint32_t rows[] = {1, 2, 3, 7, 15, 16, 17, 255, 256, 257, 4097};
    bool half_too = op_half_usable(f->device), full = fixture_full();
    for (size_t s = 0; s < 2; s++) {
        for (int half = 0; half <= half_too; half++) {
            for (size_t t = 0; t < 3; t++) {
                if (!type_wanted(f, t))
                    continue;
                for (size_t i = 0; i < 11; i++) {
                    if (!length_wanted(f, rows[i]) ||
                        (!full && f->caps[0] == '\0' && (i + t) % 3 != 0))
                        continue;
                    matmul_case m = {.shape = shapes[s],
                                     .type = types[t],
                                     .half = half,
                                     .act = (op_act)(i % 3),
                                     .rows = rows[i],
                                     .n_rows = rows[i] > 16 ? rows[i] - 3 : rows[i],
                                     .cols = 64,
                                     .weights = 150,
                                     .x_stride = 72,
                                     .out_pad = 10};
                    run_matmul(f, &m);
                    if (!full && i == 10)
                        continue;
                    m.act = (op_act)((i + 1) % 3);
                    m.cols = 96;
                    m.weights = 66;
                    m.x_stride = 96;
                    m.out_pad = 0;
                    m.fixed = true;
                    run_matmul(f, &m);
                }
                /* Columns that no vector load fits, and rows that are not aligned to one. */
                static const uint32_t few_many[] = {2, 20};
                for (size_t i = 0; i < 2; i++) {
                    matmul_case m = {.shape = shapes[s],
                                     .type = types[t],
                                     .half = half,
                                     .act = OP_ACT_NONE,
                                     .rows = few_many[i],
                                     .n_rows = few_many[i],
                                     .cols = 101,
                                     .weights = 33,
                                     .x_stride = 101};
                    run_matmul(f, &m);
                    /* The longest sum, and windows of weights and of rows at 1 MiB. */
                    bool windows = strstr(f->caps, "range") != NULL;
                    if (full || windows || types[t] == FUL_TYPE_BF16) {
                        m.cols = m.x_stride = 6144;
                        m.weights = 140;
                        m.rows = m.n_rows = i == 0 ? 1 : 50;
                        /* else not even the smallest window holds it */
                        if (m.cols * 64u * (m.type == FUL_TYPE_F32 ? 4u : 2u) <=
                            device_window_bytes(f->device))
                            run_matmul(f, &m);
                        m.cols = m.x_stride = 256;
                        m.weights = windows ? 2100 : 600;
                        m.rows = m.n_rows = i == 0 ? 4 : 70;
                        m.act = OP_ACT_SWIGLU;
                        run_matmul(f, &m);
                    }
                    m.cols = m.x_stride = 256;
                    /* Rows of all magnitudes; weights beyond fp16. */
                    m.act = OP_ACT_NONE;
                    m.extreme = true;
                    m.weights = 48;
                    m.rows = m.n_rows = i == 0 ? 8 : 26;
                    run_matmul(f, &m);
                    if (types[t] != FUL_TYPE_F16) {
                        m.w_magnitude = 1e6;
                        /* few rows keep weights in f32 */
                        run_matmul(f, &m);
                    }
                }
            }
        }
    }
}

static void test_matmul(void **state)
{
    (void)state;
    for_each_mask(matmul_mask);
}

/* SiLU and sigmoid far outside the range where exp overflows. */
static void test_activation_range(void **state)
{
    (void)state;
    enum { COLS = 8, WEIGHTS = 40 };
    device_fixture f;
    fixture_open(&f, "");
    for (size_t s = 0; s < 2; s++) {
        for (uint32_t rows = 1; rows <= 16; rows += 15) {
            float x[16 * COLS] = {0}, w[WEIGHTS * COLS] = {0}, got[16 * WEIGHTS];
            for (uint32_t r = 0; r < 16; r++)
                x[r * COLS] = 1.0f;
            for (uint32_t n = 0; n < WEIGHTS; n++)
                w[n * COLS] = (n % 2 != 0 ? -1.0f : 1.0f) * ldexpf(1.0f, (int)(n / 2) * 2 - 4);
            gpu_tensor t = fixture_tensor(&f, FUL_TYPE_F32, 1, WEIGHTS, COLS, w, NULL);
            test_buffer in = fixture_buffer(&f, sizeof(float) * COLS * rows, x);
            test_buffer out = fixture_buffer(&f, sizeof(float) * WEIGHTS * rows, NULL);
            op_context ctx = fixture_begin(&f, &(step_params){.n_rows = rows}, false);
            ctx.shape = shapes[s];
            EXPECT_OK(op_matmul(
                &ctx, &(op_matmul_args){.x = {.data = in.range, .dim = COLS, .stride = COLS},
                                        .w = &t,
                                        .out = out.range,
                                        .out_stride = WEIGHTS,
                                        .act = OP_ACT_SILU_SIGMOID,
                                        .split = WEIGHTS / 2,
                                        .rows = rows}));
            fixture_run(&f);
            fixture_read(&f, &out, got);
            for (uint32_t n = 0; n < WEIGHTS; n++) {
                double v = (double)w[n * COLS];
                double want = n < WEIGHTS / 2 ? ref_silu(v) : ref_sigmoid(v);
                EXPECT_ERROR_BELOW(fabs((double)got[n] - want), 1e-5 * (1e-30 + fabs(want)) + 1e-36,
                                   "activation of %g is %g, not %g", v, (double)got[n], want);
            }
            fixture_end(&f);
            fixture_free(&f, &out);
            fixture_free(&f, &in);
            fixture_tensor_free(&f, &t);
        }
    }
    fixture_close(&f);
}

static void test_arguments(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "");
    float zeros[64 * 9] = {0};
    gpu_tensor t = fixture_tensor(&f, FUL_TYPE_F32, 1, 9, 64, zeros, NULL);
    test_buffer in = fixture_buffer(&f, 256, zeros), out = fixture_buffer(&f, 256, NULL);
    op_context ctx = fixture_begin(&f, &(step_params){.n_rows = 1}, false);
    op_matmul_args args = {.x = {.data = in.range, .dim = 63, .stride = 63},
                           .w = &t,
                           .out = out.range,
                           .out_stride = 9,
                           .rows = 1};
    assert_int_equal(op_matmul(&ctx, &args), FUL_ERR_ARGUMENT);
    args.x.dim = args.x.stride = 64;
    args.act = OP_ACT_SWIGLU; /* nine rows do not pair up */
    assert_int_equal(op_matmul(&ctx, &args), FUL_ERR_ARGUMENT);
    args.act = OP_ACT_NONE;
    args.rows = 0;
    assert_int_equal(op_matmul(&ctx, &args), FUL_ERR_ARGUMENT);
    fixture_end(&f);
    fixture_free(&f, &out);
    fixture_free(&f, &in);
    fixture_tensor_free(&f, &t);
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_norm_not_finite),
        cmocka_unit_test(test_matmul),
        cmocka_unit_test(test_activation_range),
        cmocka_unit_test(test_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
