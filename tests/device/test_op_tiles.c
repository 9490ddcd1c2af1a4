/* Matrix products on matrix units: exact halves in, so that only the sums differ from the
 * reference; results as f32 and as block-scaled halves; rows of every magnitude, rows that are not
 * finite; every edge of the tiles. Outputs are poisoned, guarded and computed twice. */
#include "../util/device_fixture.h" /* before cmocka.h, whose fail() is a macro */
#include "base/types.h"
#include "ops/tiles.h"
#include "ops/tuning.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "../ref/ref.h"
#include "../util/compare.h"
#include "../util/rng.h"

/* Relative to the largest value of a row. Sums of up to 6,144 products in f32 in any order: below
 * 4e-6 measured. f32 weights become halves of 11 bits. */
static const double SUM_LIMIT = 2e-5, F32_WEIGHT_LIMIT = 1e-3;
/* A value of a block is off by half a unit in 11 bits of the block's largest: at most 2^-11. */
static const double BLOCK_LIMIT = 5e-4;
static const uint32_t POISON = 0x7fc0deadu;

/* The device as it is, without what may stand above subgroups' matrices, with less room; the odd
 * ones from the third on in the full set only. */
static const char *const masks[] = {"",
                                    "-coopmat2",
                                    "-coopmat2,shared=16384",
                                    "-coopmat2,workgroup=128",
                                    "-coopmat2,range=1048576",
                                    "-coopmat",
                                    NULL};

typedef struct tile_case {
    ful_type type;
    op_act act;
    uint32_t rows, n_rows, cols, weights, out_pad;
    uint32_t block; /* 0: f32 results */
    bool fixed;
    bool split;      /* columns in parts, if this device would */
    bool not_finite; /* some rows hold NaN or infinity, one is zero */
    double x_spread; /* rows have magnitudes from 1 / x_spread to x_spread */
    double w_spread; /* weight rows, too */
} tile_case;

/* Halves and scales of rows in double precision. */
static void rows_pack(uint32_t rows, uint32_t cols, uint32_t stride, const float *x, uint16_t *data,
                      float *scale, double *exact)
{
    for (uint32_t r = 0; r < rows; r++) {
        const float *in = x + (size_t)r * cols;
        float top = 0.0f;
        bool finite = true;
        for (uint32_t c = 0; c < cols; c++) {
            finite = finite && isfinite(in[c]);
            top = fmaxf(top, fabsf(in[c]));
        }
        int e = 14;
        if (finite && top > 0.0f)
            (void)frexpf(top, &e);
        scale[r] = finite ? ldexpf(1.0f, e - 14) : NAN;
        for (uint32_t c = 0; c < stride; c++) {
            /* What lies behind the last column must not be read. */
            uint16_t h = c < cols && finite ? f16_from_f32(ldexpf(in[c], 14 - e)) : 0x7e00;
            data[(size_t)r * stride + c] = h;
            if (c < cols)
                exact[(size_t)r * cols + c] = (double)f32_from_f16(h) * (double)scale[r];
        }
    }
}

/* All words of the rows from `real` on, and of columns from `used` on, are still poison. */
static void check_untouched(const void *data, uint32_t rows, uint32_t real, uint32_t used_words,
                            uint32_t words, const char *text)
{
    const uint32_t *w = data;
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t c = r < real ? used_words : 0; c < words; c++)
            if (w[(size_t)r * words + c] != POISON)
                fail_msg("%s: row %u word %u was written", text, (unsigned)r, (unsigned)c);
}

static bool row_is_finite(const tile_case *t, uint32_t r)
{
    return !t->not_finite || r % 5 < 3;
}

static void check_values(const tile_case *t, const float *got, uint32_t stride, const double *want,
                         uint32_t columns, uint32_t real, double limit, const char *text)
{
    for (uint32_t r = 0; r < real; r++) {
        const float *row = got + (size_t)r * stride;
        if (row_is_finite(t, r)) {
            double error = max_rel_error_f32(row, want + (size_t)r * columns, columns);
            EXPECT_ERROR_BELOW(error, limit, "%s: row %u", text, (unsigned)r);
            continue;
        }
        for (uint32_t c = 0; c < columns; c++)
            if (isfinite(row[c]))
                fail_msg("%s: row %u column %u hides that its input is not finite", text,
                         (unsigned)r, (unsigned)c);
    }
}

/* A block's scale is a power of two, its largest half in [2^13, 2^14]. */
static void check_block(const uint16_t *halves, float scale, uint32_t block, const char *text)
{
    float top = 0.0f;
    int e;
    for (uint32_t c = 0; c < block; c++)
        top = fmaxf(top, fabsf(f32_from_f16(halves[c])));
    if (isnan(scale))
        return; /* judged by the values */
    if (frexpf(scale, &e) != 0.5f || (top == 0.0f && scale != 1.0f) ||
        (top != 0.0f && !(top >= 0x1p13f && top <= 0x1p14f)))
        fail_msg("%s: block with scale %g and largest half %g", text, (double)scale, (double)top);
}

static void run_case(device_fixture *f, const tile_case *t)
{
    uint32_t rows = t->rows, cols = t->cols, weights = t->weights;
    uint32_t columns = t->act == OP_ACT_SWIGLU ? weights / 2 : weights;
    uint32_t x_stride = (cols + 7) / 8 * 8 + 8, stride = columns + t->out_pad;
    uint32_t real = t->fixed ? rows : t->n_rows;
    char text[256];
    snprintf(text, sizeof text,
             "tiles %s caps \"%s\" act %d rows %u of %u cols %u weights %u block %u spread %g %g",
             ful_type_name(t->type), f->caps, (int)t->act, (unsigned)t->n_rows, (unsigned)rows,
             (unsigned)cols, (unsigned)weights, (unsigned)t->block, t->x_spread, t->w_spread);

    rng random = rng_seed(rows * 977u + cols * 31u + weights);
    float *x = ref_alloc_bytes((size_t)rows * cols, 4);
    float *w = ref_alloc_bytes((size_t)weights * cols, 4);
    uint16_t *data = ref_alloc_bytes((size_t)rows * x_stride, 2);
    float *scale = ref_alloc_bytes(rows, 4);
    double *exact = ref_alloc((size_t)rows * cols), *want = ref_alloc((size_t)rows * columns);
    rng_fill_normal(&random, x, (size_t)rows * cols, 1.0);
    rng_fill_normal(&random, w, (size_t)weights * cols, 1.0 / sqrt(cols));
    for (uint32_t r = 0; r < rows; r++) {
        double factor = t->x_spread > 1.0 ? pow(t->x_spread, (double)(r % 13) / 6.0 - 1.0) : 1.0;
        if (t->not_finite && r % 5 == 2)
            factor = 0.0;
        for (uint32_t c = 0; c < cols; c++)
            x[(size_t)r * cols + c] *= (float)factor;
        if (t->not_finite && r % 5 >= 3)
            x[(size_t)r * cols + r % cols] = r % 5 == 3 ? NAN : -INFINITY;
    }
    for (uint32_t n = 0; n < weights; n++) {
        double factor = t->w_spread > 1.0 ? pow(t->w_spread, (double)(n % 7) / 3.0 - 1.0) : 1.0;
        for (uint32_t c = 0; c < cols; c++)
            w[(size_t)n * cols + c] *= (float)factor;
    }
    rows_pack(rows, cols, x_stride, x, data, scale, exact);
    gpu_tensor tensor = fixture_tensor(f, t->type, 1, weights, cols, w, w);
    static const ref_activation acts[] = {REF_ACT_NONE, REF_ACT_SIGMOID, REF_ACT_SWIGLU};
    uint32_t split = weights / 3;
    ref_matmul_act(rows, cols, weights, exact, w, acts[t->act], split, want);

    uint32_t block = t->block == 0 ? 1 : t->block;
    uint32_t row_words = t->block == 0 ? stride : stride / 2;
    test_buffer in = fixture_buffer(f, 2 * (uint64_t)rows * x_stride, data);
    test_buffer in_scale = fixture_buffer(f, 4 * (uint64_t)rows, scale);
    test_buffer out = fixture_buffer(f, 4 * (uint64_t)rows * row_words, NULL);
    test_buffer out_scale = fixture_buffer(f, 4 * (uint64_t)rows * (stride / block), NULL);
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = t->n_rows}, true);
    ctx.shape = OP_SHAPE_WIDE;
    op_matmul_args args = {.x = {in.range, in_scale.range, cols, x_stride, true},
                           .w = &tensor,
                           .out = out.range,
                           .out_stride = stride,
                           .act = t->act,
                           .split = split,
                           .rows = rows,
                           .fixed = t->fixed};
    uint64_t scratch_bytes = t->split ? op_matmul_scratch_bytes(&ctx, rows, weights) : 0;
    test_buffer scratch = {0};
    if (scratch_bytes != 0) {
        scratch = fixture_buffer(f, scratch_bytes, NULL);
        args.scratch = scratch.range;
    }
    if (t->block != 0) {
        args.out = (gpu_range){0};
        args.out_blocks = (op_blocks){out.range, out_scale.range, stride, t->block};
    }
    bool usable = t->block == 0 || op_matmul_blocks_usable(&ctx, &tensor, rows, t->block);
    if (usable) {
        EXPECT_OK(op_matmul(&ctx, &args));
        /* A CPU counts as few workgroups wide; all these shapes leave it idle. */
        if (scratch_bytes != 0)
            assert_true(gpu_commands_dispatches(f->commands) >= 2);
        uint32_t *first = ref_alloc_bytes(out.bytes, 1), *got = ref_alloc_bytes(out.bytes, 1);
        float *scales = ref_alloc_bytes(out_scale.bytes, 1);
        fixture_run(f);
        fixture_read(f, &out, first);
        fixture_fill(f, &out, NULL);
        fixture_fill(f, &out_scale, NULL);
        fixture_run(f);
        fixture_read(f, &out, got);
        fixture_read(f, &out_scale, scales);
        assert_memory_equal(first, got, out.bytes);
        bool rounded = t->type == FUL_TYPE_F32 || type_is_blocks(t->type); /* to halves */
        double limit = rounded ? F32_WEIGHT_LIMIT : SUM_LIMIT;
        if (t->act == OP_ACT_SWIGLU)
            limit *= 4; /* errors of both factors, each relative to its own row */
        if (t->block == 0) {
            check_values(t, (const float *)got, stride, want, columns, real, limit, text);
            check_untouched(got, rows, real, columns, stride, text);
        } else {
            const uint16_t *halves = (const uint16_t *)got;
            float *values = ref_alloc_bytes((size_t)real * stride, 4);
            uint32_t blocks = stride / t->block;
            for (uint32_t r = 0; r < real; r++)
                for (uint32_t c = 0; c < columns; c++) {
                    const uint16_t *h = halves + (size_t)r * stride + c;
                    float s = scales[(size_t)r * blocks + c / t->block];
                    values[(size_t)r * stride + c] = f32_from_f16(*h) * s;
                    if (c % t->block == 0)
                        check_block(h, s, t->block, text);
                }
            check_values(t, values, stride, want, columns, real, limit + BLOCK_LIMIT, text);
            check_untouched(got, rows, real, columns / 2, stride / 2, text);
            check_untouched(scales, rows, real, columns / t->block, blocks, text);
            free(values);
        }
        free(scales);
        free(got);
        free(first);
    } else {
        assert_int_equal(op_matmul(&ctx, &args), FUL_ERR_UNSUPPORTED);
    }
    fixture_end(f);
    if (scratch_bytes != 0)
        fixture_free(f, &scratch);
    fixture_free(f, &out_scale);
    fixture_free(f, &out);
    fixture_free(f, &in_scale);
    fixture_free(f, &in);
    fixture_tensor_free(f, &tensor);
    free(want);
    free(exact);
    free(scale);
    free(data);
    free(w);
    free(x);
}

static void for_each_mask(void (*test)(device_fixture *f))
{
    bool have2 = false;
    for (size_t i = 0; masks[i] != NULL; i++) {
        if (i > 1 && i % 2 == 1 && !fixture_full())
            continue;
        device_fixture f;
        fixture_open(&f, masks[i]);
        if (i == 0)
            have2 = (device_caps(f.device)->features & FUL_FEATURE_COOPMAT2) != 0;
        if ((i != 1 || have2) && op_half_usable(f.device))
            test(&f);
        fixture_close(&f);
    }
}

static const ful_type types[] = {FUL_TYPE_F16, FUL_TYPE_BF16, FUL_TYPE_F32};

/* Rows, columns and weight rows on both sides of every tile's edge. */
static void edges(device_fixture *f)
{
    static const uint32_t rows[] = {9, 15, 17, 33, 64, 65, 130};
    static const uint32_t cols[] = {64, 8, 96, 101, 256, 39, 32};
    static const uint32_t weights[] = {64, 66, 128, 150, 34, 260, 2};
    for (size_t i = 0; i < 7; i++) {
        for (size_t t = 0; t < 3; t++) {
            tile_case c = {.type = types[t],
                           .act = (op_act)((i + t) % 3),
                           .rows = rows[i],
                           .n_rows = i % 2 == 0 ? rows[i] - 3 : rows[i],
                           .cols = cols[(i + t) % 7],
                           .weights = weights[(i + 2 * t) % 7],
                           .out_pad = (uint32_t)(i % 3) * 2,
                           .fixed = i == 4};
            run_case(f, &c);
        }
    }
}

static void test_edges(void **state)
{
    (void)state;
    for_each_mask(edges);
}

static void blocks(device_fixture *f)
{
    static const uint32_t block[] = {32, 64, 128};
    for (size_t i = 0; i < 3; i++) {
        for (size_t t = 0; t < 3; t++) {
            tile_case c = {.type = types[t],
                           .act = (op_act)((i + t) % 2),
                           .rows = i == 0   ? 37
                                   : i == 1 ? 5
                                            : 70,
                           .n_rows = i == 0   ? 30
                                     : i == 1 ? 5
                                              : 70,
                           .cols = i == 1 ? 101 : 64,
                           .weights = block[i] * (t == 1 ? 3 : 2),
                           .out_pad = t == 2 ? block[i] : 0,
                           .block = block[i]};
            run_case(f, &c);
            c.not_finite = true;
            c.x_spread = 1e6;
            run_case(f, &c);
        }
    }
    /* No kernel splits a block, or pairs weight rows for one. */
    op_context ctx = fixture_begin(f, &(step_params){.n_rows = 1}, true);
    ctx.shape = OP_SHAPE_WIDE;
    float zeros[64 * 8] = {0};
    gpu_tensor w = fixture_tensor(f, FUL_TYPE_F16, 1, 64, 8, zeros, NULL);
    assert_false(op_matmul_blocks_usable(&ctx, &w, 64, 48));
    assert_false(op_matmul_blocks_usable(&ctx, &w, 64, 128));
    fixture_end(f);
    fixture_tensor_free(f, &w);
}

/* Tiles too few for the device: columns in parts, the last one shorter. */
static void splits(device_fixture *f)
{
    static const uint32_t cols[] = {1024, 525, 520}, weights[] = {64, 50, 36};
    for (size_t i = 0; i < 3; i++) {
        tile_case c = {.type = types[i],
                       .act = (op_act)i,
                       .rows = 20,
                       .n_rows = i == 0 ? 17 : 20,
                       .cols = cols[i],
                       .weights = weights[i],
                       .out_pad = (uint32_t)i,
                       .split = true};
        run_case(f, &c);
        c.not_finite = true;
        c.act = OP_ACT_NONE;
        run_case(f, &c);
    }
}

static void test_splits(void **state)
{
    (void)state;
    for_each_mask(splits);
}

static void test_blocks(void **state)
{
    (void)state;
    for_each_mask(blocks);
}

/* Rows from 1e-6 to 1e6 in one matrix; weights outside fp16's range on both sides; rows that are
 * not finite stay alone. */
static void extremes(device_fixture *f)
{
    for (size_t t = 0; t < 3; t++) {
        tile_case c = {.type = types[t],
                       .act = (op_act)t,
                       .rows = 40,
                       .n_rows = 40,
                       .cols = 200,
                       .weights = 96,
                       .x_spread = 1e6};
        run_case(f, &c);
        c.act = OP_ACT_NONE;
        c.not_finite = true;
        run_case(f, &c);
        c.not_finite = false;
        c.w_spread = types[t] == FUL_TYPE_F16 ? 1e3 : 1e7;
        c.x_spread = 1.0;
        run_case(f, &c);
    }
}

static void test_extremes(void **state)
{
    (void)state;
    for_each_mask(extremes);
}

/* Every type of blocks: with and without a ragged end, scales of rows, to blocks, in parts. At the
 * quick level one of these each, under masks two of the types: drivers compile a pipeline for each.
 */
static void quantised(device_fixture *f)
{
    size_t length = strlen(f->caps);
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++) {
        if (!fixture_full() && length > 0 && length % 6 != (size_t)type % 6)
            continue;
        uint32_t n = ref_blocks_elements(type);
        for (uint32_t i = 0; i < 4; i++) {
            tile_case c = {.type = type,
                           .act = (op_act)(i % 3),
                           .rows = 40 + 13 * i,
                           .n_rows = 40 + 12 * i,
                           .cols = n * (n == 32 ? 2 + i : 1 + i / 2),
                           .weights = i == 1 ? 128 : 150,
                           .block = i == 1 ? 64 : 0,
                           .w_spread = i == 2 ? 1e3 : 1.0};
            if (!fixture_full() && i != (uint32_t)type % 4)
                continue;
            if (i == 3) {
                c.split = true;
                c.rows = c.n_rows = 20;
                c.cols = 1024;
                c.weights = 64;
            }
            run_case(f, &c);
        }
    }
}

static void test_quantised(void **state)
{
    (void)state;
    for_each_mask(quantised);
}

/* Slices of the real shapes. */
static void test_long(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "");
    if (op_half_usable(f.device)) {
        bool full = fixture_full();
        tile_case c = {.type = FUL_TYPE_BF16,
                       .act = OP_ACT_SILU_SIGMOID,
                       .rows = full ? 300 : 70,
                       .n_rows = full ? 299 : 70,
                       .cols = 6144,
                       .weights = full ? 512 : 128,
                       .block = 128};
        run_case(&f, &c);
        c.block = 0;
        c.act = OP_ACT_SWIGLU;
        run_case(&f, &c);
        if (full) {
            c.type = FUL_TYPE_F16;
            c.act = OP_ACT_NONE;
            c.cols = 9216;
            run_case(&f, &c);
        }
    }
    fixture_close(&f);
}

/* Makes `code` the choice for every number of rows. */
static void choose_tile(device_fixture *f, uint32_t code)
{
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++)
        if (strncmp(fields[i].name, "matmul tile", 11) == 0)
            tuning_set(f->device, &fields[i], code);
}

/* Whole tiles and steps, which are read without bounds, and some a little larger. */
static void whole_tiles(device_fixture *f)
{
    for (uint32_t i = 0; i < 12; i++) {
        tile_case c = {.type = i == 5 ? FUL_TYPE_BF16 : FUL_TYPE_F16,
                       .act = (op_act)(i % 3),
                       .rows = i < 6 ? 256 : 512 + i,
                       .n_rows = i % 2 == 0 ? 130 + i : 256,
                       .cols = i % 4 == 3 ? 1024 : 512,
                       .weights = i < 9 ? 256 : 258,
                       .out_pad = i % 2 * 8};
        run_case(f, &c);
        if (i % 3 == 2 || i >= 9)
            continue;
        c.block = i % 2 == 0 ? 64 : 128;
        c.out_pad = i % 4 / 2 * c.block;
        run_case(f, &c);
    }
}

/* Every kernel that the device can run, each chosen as tuning would. */
static void test_candidates(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "");
    op_context ctx = fixture_begin(&f, &(step_params){.n_rows = 1}, true);
    uint32_t codes[32], count = tiles_candidates(&ctx, codes, 32), flexible = 0;
    fixture_end(&f);
    for (uint32_t i = 0; i < count; i++) {
        choose_tile(&f, codes[i]);
        bool workgroup = codes[i] >> 28 == TILE_KIND_WORKGROUP;
        if (workgroup && (flexible++ == 0 || fixture_full())) {
            edges(&f);
            blocks(&f);
            extremes(&f);
        }
        if (workgroup || fixture_full())
            whole_tiles(&f);
    }
    choose_tile(&f, 0);
    fixture_close(&f);
    if (flexible == 0)
        print_message("no tiles of whole workgroups: the device has no cooperative matrices of "
                      "workgroup scope\n");
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_edges),      cmocka_unit_test(test_splits),
        cmocka_unit_test(test_blocks),     cmocka_unit_test(test_extremes),
        cmocka_unit_test(test_quantised),  cmocka_unit_test(test_long),
        cmocka_unit_test(test_candidates),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
