/* Importance: sums of squares of what each matrix is multiplied with, against the double-precision
 * model. */
#include "fulgur/importance.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/gguf_write.h"
#include "model/imatrix.h"
#include "session/importance.h"
#include "util/checkpoint.h"
#include "util/compare.h"
#include "util/model_fixture.h"
#include "util/scratch.h"

#include <cmocka.h>

static const char *const dir = FUL_TEST_DATA "/golden/mixed-factors";
enum { TOKENS = 90, CHUNK = 32, MOST_COLUMNS = 512 };
static const double bound = 1e-5;

typedef struct wanted {
    double squares[MOST_COLUMNS];
    uint64_t rows;
} wanted;

static void want_row(wanted *w, const double *x, uint32_t n)
{
    for (uint32_t i = 0; i < n; i++)
        w->squares[i] += x[i] * x[i];
    w->rows++;
}

static void check(const ful_importance *m, ful_matrix matrix, uint32_t layer, uint32_t expert,
                  const wanted *w, uint32_t from, uint32_t n, uint32_t all)
{
    const double *squares;
    size_t columns;
    uint64_t rows;
    EXPECT_OK(ful_importance_get(m, matrix, layer, expert, &squares, &columns, &rows));
    assert_int_equal(columns, all);
    assert_int_equal(rows, w->rows);
    if (rows > 0 && max_rel_error(squares + from, w->squares + from, n) > bound)
        fail_msg("matrix %d of layer %u, expert %u: off by %g", (int)matrix, layer, expert,
                 max_rel_error(squares + from, w->squares + from, n));
}

/* silu(w1 x) * (w3 x) */
static void hidden_of(const ref_expert *e, const double *x, uint32_t dim, uint32_t width,
                      double *out)
{
    for (uint32_t i = 0; i < width; i++) {
        double a = 0.0, b = 0.0;
        for (uint32_t k = 0; k < dim; k++) {
            a += (double)e->w1[(size_t)i * dim + k] * x[k];
            b += (double)e->w3[(size_t)i * dim + k] * x[k];
        }
        out[i] = a / (1.0 + exp(-a)) * b;
    }
}

static void check_experts(const ful_importance *m, const ref_model *model, const ref_trace *trace,
                          uint32_t layer)
{
    const model_config *c = &model->config;
    for (uint32_t e = 0; e < c->expert_count; e++) {
        wanted in = {.rows = 0}, out = {.rows = 0};
        for (uint32_t i = 0; i < TOKENS * c->top_k; i++) {
            if (trace->experts[layer][i] != e)
                continue;
            double hidden[MOST_COLUMNS];
            const double *x = trace->norm2[layer] + (size_t)(i / c->top_k) * c->hidden_size;
            hidden_of(&model->layers[layer].experts[e], x, c->hidden_size, c->intermediate_size,
                      hidden);
            want_row(&in, x, c->hidden_size);
            want_row(&out, hidden, c->intermediate_size);
        }
        check(m, FUL_MATRIX_EXPERT_IN, layer, e, &in, 0, c->hidden_size, c->hidden_size);
        check(m, FUL_MATRIX_EXPERT_OUT, layer, e, &out, 0, c->intermediate_size,
              c->intermediate_size);
    }
}

/* The reference shows an output projection's result only: with rows of the identity for its weights
 * that is its input, some columns at a time. */
static void check_out(const ful_importance *m, ref_model *model, const int32_t *ids, uint32_t layer)
{
    const model_config *c = &model->config;
    uint32_t d = c->hidden_size, inner = c->head_count * c->head_dim;
    float *identity = calloc((size_t)d * inner, sizeof *identity);
    const float *own = model->layers[layer].out;
    assert_non_null(identity);
    for (uint32_t from = 0; from < inner; from += d) {
        uint32_t n = inner - from < d ? inner - from : d;
        memset(identity, 0, (size_t)d * inner * sizeof *identity);
        for (uint32_t i = 0; i < n; i++)
            identity[(size_t)i * inner + from + i] = 1.0f;
        model->layers[layer].out = identity;
        ref_state *state = ref_state_create(model);
        ref_trace *trace = ref_forward(model, state, ids, TOKENS);
        wanted w = {.rows = TOKENS};
        for (uint32_t t = 0; t < TOKENS; t++)
            for (uint32_t i = 0; i < n; i++)
                w.squares[from + i] += pow(trace->mixer[layer][(size_t)t * d + i], 2.0);
        check(m, FUL_MATRIX_ATTENTION_OUT, layer, 0, &w, from, n, inner);
        ref_trace_destroy(&trace);
        ref_state_destroy(&state);
    }
    model->layers[layer].out = own;
    free(identity);
}

static void check_all(const ful_importance *m, const int32_t *ids)
{
    ref_model *model;
    EXPECT_OK(ref_model_load(dir, DECAY_HF, &model));
    const model_config *c = &model->config;
    ref_state *state = ref_state_create(model);
    ref_trace *trace = ref_forward(model, state, ids, TOKENS);
    wanted head = {.rows = 0};
    uint32_t d = c->hidden_size;
    for (uint32_t t = 0; t < TOKENS; t++)
        want_row(&head, trace->hidden_final + (size_t)t * d, d);
    check(m, FUL_MATRIX_HEAD, 0, 0, &head, 0, d, d);
    for (uint32_t i = 0; i < c->block_count; i++) {
        wanted in = {.rows = 0}, router = {.rows = 0};
        for (uint32_t t = 0; t < TOKENS; t++) {
            want_row(&in, trace->norm1[i] + (size_t)t * d, d);
            want_row(&router, trace->norm2[i] + (size_t)t * d, d);
        }
        check(m, FUL_MATRIX_ATTENTION_IN, i, 0, &in, 0, d, d);
        check(m, FUL_MATRIX_ROUTER, i, 0, &router, 0, d, d);
        check_experts(m, model, trace, i);
        check_out(m, model, ids, i);
    }
    ref_trace_destroy(&trace);
    ref_state_destroy(&state);
    ref_model_destroy(&model);
}

static void run(op_shape shape)
{
    model_fixture f;
    ful_importance *m;
    int32_t ids[TOKENS];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (i * 71 + 13) % 331;
    model_fixture_shape = shape;
    assert_true(model_fixture_open(&f, NULL, dir, false, CHUNK, 128));
    model_fixture_shape = OP_SHAPE_AUTO;
    EXPECT_OK(ful_importance_create(&m, f.model));
    /* In pieces: chunks, the rest of one, single tokens. */
    EXPECT_OK(ful_importance_collect(m, f.session, ids, 50));
    EXPECT_OK(ful_importance_collect(m, f.session, ids + 50, 1));
    EXPECT_OK(ful_importance_collect(m, f.session, ids + 51, TOKENS - 51));
    check_all(m, ids);
    ful_importance_destroy(&m);
    model_fixture_close(&f);
}

static void test_as_it_is(void **state)
{
    (void)state;
    run(OP_SHAPE_AUTO);
}

/* Kernels as on a GPU: experts' rows go through sorted tiles. */
static void test_wide(void **state)
{
    (void)state;
    run(OP_SHAPE_WIDE);
}

static void test_errors(void **state)
{
    (void)state;
    model_fixture f;
    ful_importance *m;
    const double *squares;
    size_t columns;
    uint64_t rows;
    const int32_t bad = 331;
    assert_true(model_fixture_open(&f, NULL, dir, false, CHUNK, 128));
    EXPECT_OK(ful_importance_create(&m, f.model));
    assert_int_equal(ful_importance_collect(m, f.session, &bad, 1), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_importance_get(m, FUL_MATRIX_ROUTER, 5, 0, &squares, &columns, &rows),
                     FUL_ERR_ARGUMENT);
    assert_int_equal(ful_importance_get(m, FUL_MATRIX_EXPERT_IN, 0, 5, &squares, &columns, &rows),
                     FUL_ERR_ARGUMENT);
    EXPECT_OK(ful_importance_get(m, FUL_MATRIX_ROUTER, 0, 0, &squares, &columns, &rows));
    assert_int_equal(rows, 0);
    ful_importance_destroy(&m);
    model_fixture_close(&f);
    if (!model_fixture_open(&f, NULL, dir, true, CHUNK, 128))
        return;
    assert_int_equal(ful_importance_create(&m, f.model), FUL_ERR_UNSUPPORTED);
    assert_non_null(strstr(ful_last_error(), "FUL_PRECISION_F32"));
    model_fixture_close(&f);
}

/* ---- files ---- */

static void each(const ful_importance *a, const ful_importance *b, double most)
{
    const model_config *c = &a->model->config;
    for (uint32_t layer = 0; layer < c->block_count; layer++)
        for (int matrix = FUL_MATRIX_ATTENTION_IN; matrix <= FUL_MATRIX_HEAD; matrix++)
            for (uint32_t e = 0; e < c->expert_count; e++) {
                const double *x, *y;
                size_t n, columns;
                uint64_t rows, others;
                EXPECT_OK(ful_importance_get(a, (ful_matrix)matrix, layer, e, &x, &n, &rows));
                EXPECT_OK(
                    ful_importance_get(b, (ful_matrix)matrix, layer, e, &y, &columns, &others));
                assert_int_equal(n, columns);
                assert_int_equal(rows, others);
                if (rows > 0)
                    EXPECT_ERROR_BELOW(max_rel_error(x, y, n), most, "matrix %d, layer %u", matrix,
                                       (unsigned)layer);
            }
}

/* What was collected comes back, halves add up to the whole, and quantising finds the means. */
static void test_files(void **state)
{
    (void)state;
    model_fixture f;
    ful_importance *whole, *half, *again;
    int32_t ids[TOKENS];
    char path[512], other[512];
    for (int i = 0; i < TOKENS; i++)
        ids[i] = (i * 71 + 13) % 331;
    snprintf(path, sizeof path, "%s", scratch_path("half.gguf"));
    snprintf(other, sizeof other, "%s", scratch_path("whole.gguf"));
    assert_true(model_fixture_open(&f, NULL, dir, false, CHUNK, 128));
    EXPECT_OK(ful_importance_create(&whole, f.model));
    EXPECT_OK(ful_importance_create(&half, f.model));
    EXPECT_OK(ful_importance_create(&again, f.model));
    EXPECT_OK(ful_importance_collect(whole, f.session, ids, TOKENS));
    EXPECT_OK(ful_session_reset(f.session));
    EXPECT_OK(ful_importance_collect(half, f.session, ids, 40));
    EXPECT_OK(ful_importance_note(half, "one", 2, 20));
    EXPECT_OK(ful_importance_write(half, path));
    assert_int_equal(ful_importance_write(half, path), FUL_ERR_IO);
    EXPECT_OK(ful_importance_read(again, path));
    each(again, half, 1e-7);
    EXPECT_OK(ful_importance_collect(again, f.session, ids + 40, TOKENS - 40));
    each(again, whole, 1e-6);
    EXPECT_OK(ful_importance_note(again, "two", 3, 30));
    EXPECT_OK(ful_importance_note(again, "one", 1, 30));
    EXPECT_OK(ful_importance_write(again, other));

    tensor_file *file;
    int64_t chunks, tokens;
    const ful_alloc a = mem_functions(NULL);
    EXPECT_OK(tensor_file_open(&a, other, &file));
    const gguf_keys *keys = tensor_file_keys(file);
    assert_int_equal(gguf_keys_find(keys, "imatrix.datasets")->count, 2);
    assert_true(gguf_integer(gguf_keys_one(keys, "imatrix.chunk_count"), 0, &chunks));
    assert_true(gguf_integer(gguf_keys_one(keys, "imatrix.chunk_size"), 0, &tokens));
    assert_int_equal(chunks, 6);
    assert_int_equal(tokens, 30);
    tensor_file_close(&file);

    const double *squares;
    const float *means;
    size_t columns;
    uint64_t rows;
    imatrix *im;
    EXPECT_OK(imatrix_open(&a, other, &im));
    EXPECT_OK(ful_importance_get(again, FUL_MATRIX_EXPERT_OUT, 1, 2, &squares, &columns, &rows));
    assert_true(imatrix_find(im, "blk.1.ffn_down_exps.weight", columns,
                             f.model->config.expert_count, &means));
    assert_true(rows > 0);
    for (size_t i = 0; i < columns; i++)
        assert_true(fabs((double)means[2 * columns + i] - squares[i] / (double)rows) <=
                    1e-6 * squares[i] / (double)rows);
    imatrix_close(&im);
    ful_importance_destroy(&whole);
    ful_importance_destroy(&half);
    ful_importance_destroy(&again);
    model_fixture_close(&f);
}

typedef struct wrong {
    const char *type, *name; /* of a tensor */
    uint64_t matrices, columns;
    float value, count;
    bool no_counts;
    const char *words[2]; /* of the error */
} wrong;

static const char *wrong_file(const wrong *w)
{
    const ful_alloc a = mem_functions(NULL);
    gguf_writer *out;
    char name[96];
    scratch_remove("wrong.gguf");
    const char *path = scratch_path("wrong.gguf");
    float values[512];
    EXPECT_OK(gguf_writer_open(&a, path, &out));
    gguf_put_text(out, "general.type", w->type, strlen(w->type));
    snprintf(name, sizeof name, "%s.in_sum2", w->name);
    gguf_put_tensor(out, name, FUL_TYPE_F32, (uint64_t[]){w->matrices, w->columns}, 2);
    snprintf(name, sizeof name, "%s.counts", w->name);
    if (!w->no_counts)
        gguf_put_tensor(out, name, FUL_TYPE_F32, (uint64_t[]){w->matrices, 1}, 2);
    EXPECT_OK(gguf_write_head(out));
    for (size_t i = 0; i < 512; i++)
        values[i] = i == 3 ? w->value : 1.0f;
    EXPECT_OK(gguf_write_data(out, values, w->matrices * w->columns * 4));
    for (uint64_t i = 0; !w->no_counts && i < w->matrices; i++)
        EXPECT_OK(gguf_write_data(out, &w->count, 4));
    EXPECT_OK(gguf_writer_finish(&out));
    return path;
}

static void test_wrong_files(void **state)
{
    (void)state;
    static const char router[] = "blk.0.ffn_gate_inp.weight";
    static const wrong cases[] = {
        {"model", router, 1, 96, 1, 1, false, {"wrong.gguf", "imatrix"}},
        {"imatrix", "blk.0.ffn_gate.weight", 1, 96, 1, 1, false, {"wrong.gguf", "none of its 2"}},
        {"imatrix", router, 1, 64, 1, 1, false, {"in_sum2", "[1, 96]"}},
        {"imatrix", router, 2, 96, 1, 1, false, {"in_sum2", "[1, 96]"}},
        {"imatrix", "blk.0.ffn_up_exps.weight", 4, 96, 1, 1, false, {"ffn_up_exps", "[5, 96]"}},
        {"imatrix", router, 1, 96, -1, 1, false, {"-1 at index 3", "in_sum2"}},
        {"imatrix", router, 1, 96, INFINITY, 1, false, {"inf at index 3", "in_sum2"}},
        {"imatrix", router, 1, 96, 1, NAN, false, {"nan at index 0", "counts"}},
        {"imatrix", router, 1, 96, 1, 1, true, {"counts is missing", router}},
    };
    model_fixture f;
    ful_importance *m;
    const double *squares;
    size_t columns;
    uint64_t rows;
    assert_true(model_fixture_open(&f, NULL, dir, false, CHUNK, 128));
    EXPECT_OK(ful_importance_create(&m, f.model));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        assert_int_equal(ful_importance_read(m, wrong_file(&cases[i])), FUL_ERR_FORMAT);
        expect_error_words(cases[i].words[0], cases[i].words[1], NULL);
        EXPECT_OK(ful_importance_get(m, FUL_MATRIX_ROUTER, 0, 0, &squares, &columns, &rows));
        assert_int_equal(rows, 0);
    }
    EXPECT_OK(
        ful_importance_read(m, wrong_file(&(wrong){"imatrix", router, 1, 96, 2, 7, false, {""}})));
    EXPECT_OK(ful_importance_get(m, FUL_MATRIX_ROUTER, 0, 0, &squares, &columns, &rows));
    assert_int_equal(rows, 7);
    assert_true(squares[3] == 2.0 && squares[4] == 1.0);
    ful_importance_destroy(&m);
    model_fixture_close(&f);
}

static int begin(void **state)
{
    (void)state;
    scratch_begin();
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_end();
    return 0;
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_as_it_is),    cmocka_unit_test(test_wide),
        cmocka_unit_test(test_errors),      cmocka_unit_test(test_files),
        cmocka_unit_test(test_wrong_files),
    };
    return cmocka_run_group_tests_name("importance", tests, begin, end);
}
