/* Kernels on weights in blocks, every type, against double precision with the same weights decoded
 * from the files' layout. Outputs are poisoned, guarded and computed twice. */
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

/* max|a - b| / max|b| of a row. */
static const double F32_LIMIT = 1e-5, HALF_LIMIT = 1e-3;
static const uint32_t POISON = 0x7fc0deadu;
static const op_shape shapes[] = {OP_SHAPE_NARROW, OP_SHAPE_WIDE};

static float *random_floats(rng *random, size_t count, double scale)
{
    float *data = malloc(4 * count);
    assert_non_null(data);
    rng_fill_normal(random, data, count, scale);
    return data;
}

/* Runs what was recorded twice; both times must give the same bits. */
static float *run_twice(device_fixture *f, const test_buffer *out)
{
    float *got[2];
    for (int i = 0; i < 2; i++) {
        got[i] = malloc(out->bytes);
        assert_non_null(got[i]);
        fixture_fill(f, out, NULL);
        fixture_run(f);
        fixture_read(f, out, got[i]);
    }
    assert_memory_equal(got[0], got[1], out->bytes);
    free(got[1]);
    return got[0];
}

static void check_rows(const float *got, const double *want, uint32_t stride, uint32_t columns,
                       uint32_t real, uint32_t rows, double limit, const char *text)
{
    double worst = 0;
    for (uint32_t r = 0; r < rows; r++) {
        const float *row = got + (size_t)r * stride;
        if (r < real) {
            double e = max_rel_error_f32(row, want + (size_t)r * columns, columns);
            EXPECT_ERROR_BELOW(e, limit, "%s row %u", text, (unsigned)r);
            worst = e > worst ? e : worst;
        }
        for (uint32_t c = r < real ? columns : 0; c < stride; c++) {
            uint32_t word;
            memcpy(&word, row + c, 4);
            if (word != POISON)
                fail_msg("%s: row %u column %u was written", text, (unsigned)r, (unsigned)c);
        }
    }
    if (getenv("FULGUR_TEST_VERBOSE") != NULL)
        printf("%s: %.2g\n", text, worst);
}

/* ---- embedding ---- */

static void embed_case(device_fixture *f, op_shape shape, ful_type type, uint32_t dim)
{
    enum { ROWS = 5, VOCAB = 7 };
    rng random = rng_seed(dim * 31u + (uint32_t)type);
    float *table = random_floats(&random, (size_t)VOCAB * dim, 1.0);
    gpu_tensor t = fixture_tensor(f, type, 1, VOCAB, dim, table, table);
    const uint32_t tokens[ROWS] = {6, 0, VOCAB, 3, 1};
    test_buffer in = fixture_buffer(f, sizeof tokens, tokens);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)ROWS * dim, NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = 4}, false);
    ctx.shape = shape;
    EXPECT_OK(op_embed(&ctx, &(op_embed_args){in.range, &t, out.range, ROWS}));
    float *got = run_twice(f, &out);
    for (uint32_t r = 0; r < ROWS; r++) {
        for (uint32_t c = 0; c < dim; c++) {
            float v = got[r * dim + c];
            uint32_t word;
            memcpy(&word, &v, 4);
            if (r == 4) {
                assert_int_equal(word, POISON);
                continue;
            }
            double want = r == 2 ? 0 : (double)table[tokens[r] * dim + c];
            EXPECT_ERROR_BELOW(fabs((double)v - want), 2e-7 * fabs(want),
                               "embed %s row %u column %u: %g, not %g", ful_type_name(type),
                               (unsigned)r, (unsigned)c, (double)v, want);
        }
    }
    free(got);
    fixture_end(f);
    fixture_free(f, &out);
    fixture_free(f, &in);
    fixture_tensor_free(f, &t);
    free(table);
}

/* ---- products ---- */

enum norm_kind { NORM_NONE, NORM_SUM, NORM_GATED };

typedef struct product {
    ful_type type;
    op_shape shape;
    bool half;
    op_act act;
    enum norm_kind norm;
    uint32_t rows, n_rows, cols, weights;
    double w_magnitude; /* 0: 1 / sqrt(cols) */
} product;

static double *reference_input(const product *m, const float *x, const float *b,
                               uint32_t gate_stride, const float *weight)
{
    size_t count = (size_t)m->rows * m->cols, b_count = (size_t)m->rows * gate_stride;
    double *in = ref_alloc(count), *second = ref_alloc(b_count);
    ref_from_f32(x, in, count);
    ref_from_f32(b, second, b_count);
    if (m->norm == NORM_GATED)
        ref_gated_norm(m->rows, m->cols, in, second, gate_stride, 1, weight, 1e-5, in);
    else if (m->norm == NORM_SUM)
        ref_residual_norm(m->rows, m->cols, in, 1.25, second, -0.75, weight, 1e-5, NULL, in);
    free(second);
    return in;
}

/* The rows as kernels get them: packing has its own tests (op_dense). */
static void packed_input(device_fixture *f, const product *m, const test_buffer *data,
                         const test_buffer *scale, double *in)
{
    uint16_t *halves = ref_alloc_bytes(data->bytes, 1);
    float *scales = ref_alloc_bytes(scale->bytes, 1);
    fixture_read(f, data, halves);
    fixture_read(f, scale, scales);
    for (size_t i = 0; i < (size_t)m->n_rows * m->cols; i++)
        in[i] = (double)f32_from_f16(halves[i]) * (double)scales[i / m->cols];
    free(halves);
    free(scales);
}

static void run_product(device_fixture *f, const product *m)
{
    uint32_t rows = m->rows, cols = m->cols;
    uint32_t columns = m->act == OP_ACT_SWIGLU ? m->weights / 2 : m->weights;
    uint32_t out_stride = columns + 3;
    bool gated = m->norm == NORM_GATED;
    uint32_t gate_stride = gated ? cols + 8 : cols;
    char text[200];
    snprintf(text, sizeof text, "%s caps \"%s\" shape %d half %d norm %d act %d %u of %u, %u x %u",
             ful_type_name(m->type), f->caps, (int)m->shape, m->half, (int)m->norm, (int)m->act,
             (unsigned)m->n_rows, (unsigned)rows, (unsigned)cols, (unsigned)m->weights);
    rng random = rng_seed(cols * 31u + m->weights + rows * 7u + (uint32_t)m->type);
    float *x = random_floats(&random, (size_t)rows * cols, 3.0);
    float *b = random_floats(&random, (size_t)rows * gate_stride, 1.0);
    float *weight = random_floats(&random, cols, 1.0);
    double magnitude = m->w_magnitude > 0 ? m->w_magnitude : 1.0 / sqrt(cols);
    float *w = random_floats(&random, (size_t)cols * m->weights, magnitude);
    gpu_tensor t = fixture_tensor(f, m->type, 1, m->weights, cols, w, w);
    static const ref_activation acts[] = {REF_ACT_NONE, REF_ACT_SIGMOID, REF_ACT_SWIGLU};
    double *in = reference_input(m, x, b, gate_stride, weight);
    double *want = ref_alloc((size_t)rows * columns);
    test_buffer x_buffer = fixture_buffer(f, 4 * (uint64_t)rows * cols, x);
    test_buffer b_buffer = fixture_buffer(f, 4 * (uint64_t)rows * gate_stride, b);
    test_buffer weight_buffer = fixture_buffer(f, 4 * (uint64_t)cols, weight);
    test_buffer data = fixture_buffer(f, 2 * (uint64_t)rows * cols, NULL);
    test_buffer scale = fixture_buffer(f, 4 * (uint64_t)rows, NULL);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)rows * out_stride, NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = m->n_rows}, m->half);
    ctx.shape = m->shape;
    op_fused_norm norm = {.gated = gated,
                          .gate_stride = gated ? gate_stride : 0,
                          .alpha = 1.25f,
                          .beta = -0.75f,
                          .eps = 1e-5f,
                          .b = b_buffer.range,
                          .weight = weight_buffer.range};
    op_activation plain = {.data = x_buffer.range, .dim = cols, .stride = cols};
    op_activation packed = {data.range, scale.range, cols, cols, true};
    if (m->half)
        EXPECT_OK(op_pack(&ctx, x_buffer.range, &packed, rows, false));
    uint64_t scratch_bytes = op_matmul_scratch_bytes(&ctx, rows, m->weights);
    test_buffer scratch = {0};
    if (scratch_bytes > 0)
        scratch = fixture_buffer(f, scratch_bytes, NULL);
    EXPECT_OK(op_matmul(&ctx, &(op_matmul_args){.x = m->half ? packed : plain,
                                                .w = &t,
                                                .out = out.range,
                                                .out_stride = out_stride,
                                                .act = m->act,
                                                .split = m->weights / 3,
                                                .rows = rows,
                                                .norm = m->norm != NORM_NONE ? &norm : NULL,
                                                .scratch = scratch.range}));
    float *got = run_twice(f, &out);
    if (m->half)
        packed_input(f, m, &data, &scale, in);
    ref_matmul_act(rows, cols, m->weights, in, w, acts[m->act], m->weights / 3, want);
    /* SwiGLU multiplies two results, whose errors add. */
    double half_limit = m->act == OP_ACT_SWIGLU ? 2 * HALF_LIMIT : HALF_LIMIT;
    check_rows(got, want, out_stride, columns, m->n_rows, rows, m->half ? half_limit : F32_LIMIT,
               text);
    free(got);
    fixture_end(f);
    if (scratch_bytes > 0)
        fixture_free(f, &scratch);
    fixture_free(f, &out);
    fixture_free(f, &scale);
    fixture_free(f, &data);
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

/* ---- every type under every mask ---- */

static void each_mask(void (*run)(device_fixture *f))
{
    for (size_t i = 0; fixture_masks[i] != NULL; i++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        run(&f);
        fixture_close(&f);
    }
}

/* All types on the device as it is and, at the quick level every second one, on the floor of all;
 * else one of three, or at the quick level of six. Drivers compile a pipeline for each. */
static bool type_wanted(const device_fixture *f, ful_type type)
{
    size_t length = strlen(f->caps), part = fixture_full() ? 3 : 6;
    bool floor = length > 40 && (fixture_full() || type % 2 == 0);
    return length == 0 || floor || length % part == (size_t)type % part;
}

static void embed_mask(device_fixture *f)
{
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        if (!type_wanted(f, type))
            continue;
        uint32_t n = ref_blocks_elements(type);
        for (size_t s = 0; s < 2; s++) {
            embed_case(f, shapes[s], type, n);
            embed_case(f, shapes[s], type, 5 * n);
        }
    }
}

static void product_mask(device_fixture *f)
{
    static const uint32_t row_counts[] = {1, 2, 3, 8, 9, 33, 64};
    bool half_too = op_half_usable(f->device);
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        if (!type_wanted(f, type))
            continue;
        uint32_t n = ref_blocks_elements(type);
        for (uint32_t i = 0; i < 28; i++) {
            uint32_t rows = row_counts[i % 7];
            bool half = (i / 7) % 2 != 0;
            if ((half && !half_too) || (i + (uint32_t)type) % (fixture_full() ? 2 : 5) != 0)
                continue;
            product m = {.type = type,
                         .shape = shapes[i / 14],
                         .half = half,
                         .act = (op_act)(i % 3),
                         .rows = rows,
                         .n_rows = rows > 8 ? rows - 2 : rows,
                         .cols = n * (n == 32 ? 1 + 2 * (i % 5) : 1 + 2 * (i % 2)),
                         .weights = 38 + 2 * i};
            run_product(f, &m);
        }
    }
}

static void norm_mask(device_fixture *f)
{
    op_context probe = {.device = f->device, .shape = OP_SHAPE_WIDE, .layer = -1};
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        if (!type_wanted(f, type))
            continue;
        for (uint32_t i = 0; i < 4; i++) {
            product m = {.type = type,
                         .shape = OP_SHAPE_WIDE,
                         .act = (op_act)((i + (uint32_t)type) % 3),
                         .norm = i % 2 ? NORM_GATED : NORM_SUM,
                         .rows = i < 2 ? 1 : 3,
                         .n_rows = i < 2 ? 1 : 2,
                         .cols = 768,
                         .weights = 50};
            if (op_matmul_norm_usable(&probe, m.rows, m.cols, i % 2 ? m.cols + 8 : 0))
                run_product(f, &m);
        }
    }
}

static void test_embed(void **state)
{
    (void)state;
    each_mask(embed_mask);
}

static void test_product(void **state)
{
    (void)state;
    each_mask(product_mask);
}

static void test_norm(void **state)
{
    (void)state;
    each_mask(norm_mask);
}

/* Long rows, several windows, few and many lines, weights near fp16's end. */
static void test_sizes(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "range=1048576");
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        for (uint32_t i = 0; i < 4; i++) {
            product m = {.type = type,
                         .shape = shapes[i % 2],
                         .rows = 1 + 3 * (i / 2),
                         .n_rows = 1 + 3 * (i / 2),
                         .cols = 6144,
                         .weights = type == FUL_TYPE_Q8_0 ? 220 : 420};
            if (i != (uint32_t)type % 4 && !fixture_full())
                continue;
            run_product(&f, &m);
            m.cols = 512;
            m.weights = 30;
            m.w_magnitude = 3e4;
            run_product(&f, &m);
        }
    }
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_embed),
        cmocka_unit_test(test_product),
        cmocka_unit_test(test_norm),
        cmocka_unit_test(test_sizes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
