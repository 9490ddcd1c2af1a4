/* Lightning attention on the device against the recurrence in double: every variant, dispatch shape
 * and capability mask. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ref/ref.h"
#include "util/compare.h"
#include "util/device_fixture.h"
#include "util/rng.h"

#include <cmocka.h> /* last: its fail() is a macro */

#define LIMIT_F32 1e-5
#define LIMIT_HALF 2e-3
static const uint32_t POISON = 0x7fc0dead;

/* One way to run the op. */
typedef struct variant {
    op_shape shape;
    bool half;
} variant;

static const char *variant_name(variant v)
{
    static const char *const names[2][2] = {{"narrow", "narrow half"}, {"wide", "wide half"}};
    return names[v.shape == OP_SHAPE_WIDE][v.half];
}

static double limit_of(variant v)
{
    return v.half ? LIMIT_HALF : LIMIT_F32;
}

typedef void (*variant_fn)(device_fixture *f, variant v);

static void on_variants(device_fixture *f, variant_fn fn)
{
    for (int i = 0; i < 4; i++) {
        variant v = {i & 1 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, (i & 2) != 0};
        if (!v.half || op_half_usable(f->device))
            fn(f, v);
    }
}

/* At the quick level the device as it is and the floor: some CPU drivers compile every shader anew
 * for each. */
static void on_every_mask(variant_fn fn)
{
    for (size_t i = 0; fixture_masks[i]; i++) {
        if (!fixture_full() && i > 0 && fixture_masks[i + 1])
            continue;
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        on_variants(&f, fn);
        fixture_close(&f);
    }
}

static void on_plain_device(variant_fn fn)
{
    device_fixture f;
    fixture_open(&f, "");
    on_variants(&f, fn);
    fixture_close(&f);
}

/* ---- one sequence ---- */

/* Inputs, reference results and device buffers of one sequence of at most `capacity` rows. */
typedef struct sequence {
    uint32_t heads, dim, rows, capacity, stride;
    float *qkv; /* [capacity][stride]; poison from `rows` on and in the columns past q, k, v */
    double *qkv64, *out64, *state64, *start64;
    float *start;
    double *slopes;
    test_buffer qkv_buffer, decay, state, out, scratch;
} sequence;

static size_t state_count(const sequence *s)
{
    return (size_t)s->heads * s->dim * s->dim;
}

static sequence sequence_make(uint32_t heads, uint32_t dim, uint32_t rows, uint32_t capacity,
                              const double *slopes, uint64_t seed)
{
    sequence s = {.heads = heads, .dim = dim, .rows = rows, .capacity = capacity};
    uint32_t width = 3 * heads * dim;
    s.stride = width + 16 * heads;
    size_t count = (size_t)capacity * s.stride, states = state_count(&s);
    s.qkv = ref_alloc_bytes(count, sizeof(float));
    s.qkv64 = ref_alloc(count);
    s.out64 = ref_alloc((size_t)rows * heads * dim);
    s.start = ref_alloc_bytes(states, sizeof(float));
    s.start64 = ref_alloc(states);
    s.state64 = ref_alloc(states);
    s.slopes = ref_alloc(heads);
    memcpy(s.slopes, slopes, heads * sizeof(double));
    rng r = rng_seed(seed);
    for (size_t i = 0; i < count; i++)
        memcpy(&s.qkv[i], &POISON, sizeof POISON);
    for (uint32_t t = 0; t < rows; t++)
        rng_fill_normal(&r, s.qkv + (size_t)t * s.stride, width, 1.0);
    rng_fill_normal_both(&r, s.start, s.start64, states, 1.0);
    return s;
}

static void sequence_reference(sequence *s)
{
    for (uint32_t t = 0; t < s->rows; t++)
        ref_from_f32(s->qkv + (size_t)t * s->stride, s->qkv64 + (size_t)t * s->stride,
                     3 * (size_t)s->heads * s->dim);
    ref_from_f32(s->start, s->start64, state_count(s));
    memcpy(s->state64, s->start64, state_count(s) * sizeof(double));
    ref_lightning(s->rows, s->heads, s->dim, s->qkv64, s->stride, s->slopes, s->state64, s->out64);
}

static void sequence_upload(sequence *s, device_fixture *f, variant v)
{
    op_context ctx = {.device = f->device, .half = v.half, .shape = v.shape};
    uint64_t decay_bytes = op_lightning_decay_bytes(f->device, s->heads, s->dim);
    void *decay = ref_alloc_bytes(1, (size_t)decay_bytes);
    op_lightning_decay_fill(f->device, s->heads, s->dim, s->slopes, decay);
    s->qkv_buffer = fixture_buffer(f, (uint64_t)s->capacity * s->stride * sizeof(float), s->qkv);
    s->decay = fixture_buffer(f, decay_bytes, decay);
    s->state = fixture_buffer(f, state_count(s) * sizeof(float), s->start);
    s->out = fixture_buffer(f, (uint64_t)s->capacity * s->heads * s->dim * sizeof(float), NULL);
    s->scratch = fixture_buffer(
        f, op_lightning_scratch_bytes(&ctx, s->capacity, s->heads, s->dim, false), NULL);
    free(decay);
}

static void sequence_free(sequence *s, device_fixture *f)
{
    if (f) {
        fixture_free(f, &s->qkv_buffer);
        fixture_free(f, &s->decay);
        fixture_free(f, &s->state);
        fixture_free(f, &s->out);
        fixture_free(f, &s->scratch);
    }
    free(s->qkv);
    free(s->qkv64);
    free(s->out64);
    free(s->start);
    free(s->start64);
    free(s->state64);
    free(s->slopes);
}

static op_lightning_args sequence_args(const sequence *s)
{
    return (op_lightning_args){.qkv = s->qkv_buffer.range,
                               .qkv_stride = s->stride,
                               .heads = s->heads,
                               .head_dim = s->dim,
                               .rows = s->capacity,
                               .decay = s->decay.range,
                               .state = s->state.range,
                               .out = s->out.range,
                               .scratch = s->scratch.range};
}

static void record_prefill(device_fixture *f, variant v, const op_lightning_args *args,
                           uint32_t n_rows)
{
    step_params step = {.n_rows = n_rows};
    op_context ctx = fixture_begin(f, &step, v.half);
    ctx.shape = v.shape;
    EXPECT_OK(op_lightning_prefill(&ctx, args));
}

/* Errors are taken per head: the slow heads' sums are far larger than the fast ones'. */
static double worst_head(const sequence *s, const float *out, const double *want, uint32_t rows)
{
    double worst = 0;
    float *a = ref_alloc_bytes((size_t)rows * s->dim, sizeof(float));
    double *b = ref_alloc((size_t)rows * s->dim);
    for (uint32_t h = 0; h < s->heads; h++) {
        for (uint32_t t = 0; t < rows; t++) {
            size_t from = ((size_t)t * s->heads + h) * s->dim;
            memcpy(a + (size_t)t * s->dim, out + from, s->dim * sizeof(float));
            memcpy(b + (size_t)t * s->dim, want + from, s->dim * sizeof(double));
        }
        double e = max_rel_error_f32(a, b, (size_t)rows * s->dim);
        worst = e > worst ? e : worst;
    }
    free(a);
    free(b);
    return worst;
}

static double worst_state(const sequence *s, const float *state, const double *want)
{
    double worst = 0;
    size_t one = (size_t)s->dim * s->dim;
    for (uint32_t h = 0; h < s->heads; h++) {
        double e = max_rel_error_f32(state + h * one, want + h * one, one);
        worst = e > worst ? e : worst;
    }
    return worst;
}

static void check_results(device_fixture *f, variant v, const sequence *s, const float *out,
                          const float *state, double limit)
{
    EXPECT_ERROR_BELOW(worst_head(s, out, s->out64, s->rows), limit,
                       "lightning out, %s, caps \"%s\", %u heads x %u, %u rows", variant_name(v),
                       f->caps, s->heads, s->dim, s->rows);
    EXPECT_ERROR_BELOW(worst_state(s, state, s->state64), limit,
                       "lightning state, %s, caps \"%s\", %u heads x %u, %u rows", variant_name(v),
                       f->caps, s->heads, s->dim, s->rows);
    size_t width = (size_t)s->heads * s->dim;
    for (size_t i = s->rows * width; i < s->capacity * width; i++)
        assert_memory_equal(&out[i], &POISON, sizeof POISON);
}

static float *read_floats(device_fixture *f, const test_buffer *b)
{
    float *out = ref_alloc_bytes(1, (size_t)b->bytes);
    fixture_read(f, b, out);
    return out;
}

/* Runs `s` as one prefill, twice; both must give the same bits. */
static void check_prefill(device_fixture *f, variant v, sequence *s, double limit)
{
    sequence_upload(s, f, v);
    op_lightning_args args = sequence_args(s);
    record_prefill(f, v, &args, s->rows);
    fixture_run(f);
    float *out = read_floats(f, &s->out), *state = read_floats(f, &s->state);
    check_results(f, v, s, out, state, limit);
    fixture_fill(f, &s->state, s->start);
    fixture_fill(f, &s->out, NULL);
    fixture_fill(f, &s->scratch, NULL);
    fixture_run(f);
    float *out2 = read_floats(f, &s->out), *state2 = read_floats(f, &s->state);
    assert_memory_equal(out, out2, s->out.bytes);
    assert_memory_equal(state, state2, s->state.bytes);
    float *qkv = read_floats(f, &s->qkv_buffer);
    assert_memory_equal(qkv, s->qkv, s->qkv_buffer.bytes);
    fixture_end(f);
    free(out);
    free(out2);
    free(state);
    free(state2);
    free(qkv);
}

static void run_shape(device_fixture *f, variant v, uint32_t heads, uint32_t dim, uint32_t rows,
                      uint32_t capacity)
{
    double slopes[64];
    ref_slopes(1, heads, 1, 8, slopes);
    sequence s = sequence_make(heads, dim, rows, capacity, slopes, 1000 * dim + rows + heads);
    sequence_reference(&s);
    check_prefill(f, v, &s, limit_of(v));
    sequence_free(&s, f);
}

/* ---- tests ---- */

static void shapes_of_variant(device_fixture *f, variant v)
{
    static const uint32_t lengths[] = {1, 15, 16, 17, 255, 256, 257, 4097};
    static const uint32_t dims[] = {16, 32, 48, 64, 96, 128, 256};
    static const uint32_t heads[] = {1, 2, 4, 6};
    bool full = fixture_full();
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        if (full || lengths[i] < 4097)
            run_shape(f, v, 2, 32, lengths[i], lengths[i]);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        if (full || dims[i] == 48 || dims[i] == 64 || dims[i] == 128)
            run_shape(f, v, 2, dims[i], 37, 64);
    for (size_t i = 0; full && i < sizeof heads / sizeof *heads; i++)
        run_shape(f, v, heads[i], 16, 65, 70);
    if (v.half && v.shape == OP_SHAPE_WIDE)
        run_shape(f, v, 1, 32, 1100, 1111); /* few heads: rows in chunks */
}

static void test_shapes(void **unused)
{
    (void)unused;
    on_every_mask(shapes_of_variant);
}

/* A binding of 1 MiB: rows are cut where the next part begins at a multiple of 256 bytes, heads
 * where their states no longer fit. */
static void test_small_bindings(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "range=1048576");
    for (int shape = OP_SHAPE_NARROW; shape <= OP_SHAPE_WIDE; shape++) {
        variant v = {(op_shape)shape, false};
        run_shape(&f, v, 2, 32, 2600, 2600);
        run_shape(&f, v, 20, 128, 45, 45); /* 33 rows and 16 states fit */
        run_shape(&f, v, 40, 128, 45, 45); /* 16 rows */
        run_shape(&f, v, 64, 128, 21, 24); /* 10 rows: less than a block */
        v.half = op_half_usable(f.device);
        if (v.half)
            run_shape(&f, v, 20, 128, 45, 45);
    }
    fixture_close(&f);
}

static void splits_of_variant(device_fixture *f, variant v)
{
    static const uint32_t cuts[][6] = {
        {257}, {1, 256}, {255, 2}, {16, 16, 17, 100, 108}, {129, 127, 1}};
    double slopes[2];
    ref_slopes(1, 2, 3, 8, slopes);
    sequence s = sequence_make(2, 32, 257, 257, slopes, 7);
    sequence_reference(&s);
    sequence_upload(&s, f, v);
    /* Parts begin at any row, ranges at multiples of 256 bytes: so a part has a buffer of its own.
     */
    test_buffer part = fixture_buffer(f, s.qkv_buffer.bytes, NULL);
    size_t width = (size_t)s.heads * s.dim;
    float *out = ref_alloc_bytes(257 * width, sizeof(float));
    for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
        fixture_fill(f, &s.state, s.start);
        op_lightning_args args = sequence_args(&s);
        args.qkv = part.range;
        record_prefill(f, v, &args, 1);
        uint32_t row = 0;
        for (size_t i = 0; i < 6 && cuts[c][i] != 0; i++) {
            float *moved = ref_alloc_bytes(1, (size_t)part.bytes);
            memset(moved, 0xff, (size_t)part.bytes);
            memcpy(moved, s.qkv + (size_t)row * s.stride,
                   (size_t)cuts[c][i] * s.stride * sizeof(float));
            fixture_fill(f, &part, moved);
            step_params step = {.n_rows = cuts[c][i], .position = row};
            fixture_step(f, &step);
            fixture_run(f);
            float *got = read_floats(f, &s.out);
            memcpy(out + row * width, got, cuts[c][i] * width * sizeof(float));
            row += cuts[c][i];
            free(got);
            free(moved);
        }
        assert_int_equal(row, 257);
        fixture_end(f);
        float *state = read_floats(f, &s.state);
        check_results(f, v, &s, out, state, limit_of(v));
        free(state);
    }
    free(out);
    fixture_free(f, &part);
    sequence_free(&s, f);
}

static void test_any_split(void **unused)
{
    (void)unused;
    on_plain_device(splits_of_variant);
}

/* Token by token through the decode kernel: the same as the recurrence. */
static void run_decode(device_fixture *f, variant v, uint32_t heads, uint32_t dim, uint32_t steps)
{
    double slopes[64];
    ref_slopes(2, heads, 2, 8, slopes);
    sequence s = sequence_make(heads, dim, steps, steps, slopes, 31 + dim);
    sequence_reference(&s);
    sequence_upload(&s, f, v);
    test_buffer row = fixture_buffer(f, s.stride * sizeof(float), s.qkv);
    test_buffer out = fixture_buffer(f, (uint64_t)heads * dim * sizeof(float), NULL);
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(f, &step, v.half);
    ctx.shape = v.shape;
    op_lightning_args args = sequence_args(&s);
    args.qkv = row.range;
    args.out = out.range;
    args.rows = 1;
    EXPECT_OK(op_lightning_decode(&ctx, &args));
    float *all = ref_alloc_bytes((size_t)steps * heads * dim, sizeof(float));
    for (uint32_t t = 0; t < steps; t++) {
        fixture_fill(f, &row, s.qkv + (size_t)t * s.stride);
        fixture_fill(f, &out, NULL);
        fixture_run(f);
        fixture_read(f, &out, all + (size_t)t * heads * dim);
    }
    fixture_end(f);
    float *state = read_floats(f, &s.state);
    EXPECT_ERROR_BELOW(worst_head(&s, all, s.out64, steps), LIMIT_F32,
                       "lightning decode, %s, caps \"%s\", %u heads x %u", variant_name(v), f->caps,
                       heads, dim);
    EXPECT_ERROR_BELOW(worst_state(&s, state, s.state64), LIMIT_F32,
                       "lightning decode state, %s, caps \"%s\", %u heads x %u", variant_name(v),
                       f->caps, heads, dim);
    free(all);
    free(state);
    fixture_free(f, &row);
    fixture_free(f, &out);
    sequence_free(&s, f);
}

static void decode_of_variant(device_fixture *f, variant v)
{
    static const uint32_t dims[] = {16, 32, 48, 64, 96, 128, 256};
    if (v.half)
        return; /* there is one decode kernel */
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        if (fixture_full() || dims[i] == 48 || dims[i] == 128)
            run_decode(f, v, 3, dims[i], 6);
    if (strstr(f->caps, "range="))
        run_decode(f, v, 20, 128, 3); /* the states of 16 heads fit a binding */
}

static void test_decode(void **unused)
{
    (void)unused;
    on_every_mask(decode_of_variant);
}

/* 10,000 tokens (100,000 at long level) of the slowest head of
 * the published model: its factor differs from 1 by 5e-5, so what rounding does to it adds up. */
static void decode_slowest_head(op_shape shape)
{
    enum { CYCLE = 500, DIM = 16, STRIDE = 64 };
    device_fixture f;
    fixture_open(&f, "");
    double slopes[64];
    ref_slopes(1, 64, 78, 80, slopes);
    sequence s = sequence_make(1, DIM, CYCLE, CYCLE, &slopes[63], 5);
    /* Keys and values of SiLU lean to one side: the state grows. */
    for (size_t i = 0; i < (size_t)CYCLE * s.stride; i++)
        s.qkv[i] = fabsf(s.qkv[i]) + 0.1f;
    assert_int_equal(s.stride, STRIDE); /* rows begin at multiples of 256 bytes */
    sequence_reference(&s);
    variant v = {shape, false};
    sequence_upload(&s, &f, v);
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(&f, &step, false);
    ctx.shape = shape;
    for (uint32_t t = 0; t < CYCLE; t++) {
        op_lightning_args args = sequence_args(&s);
        args.qkv = gpu_part(args.qkv, t * STRIDE * sizeof(float), STRIDE * sizeof(float));
        args.rows = 1;
        EXPECT_OK(op_lightning_decode(&ctx, &args));
    }
    int cycles = fixture_long() ? 200 : 20;
    for (int c = 0; c < cycles; c++) {
        fixture_run(&f);
        if (c > 0) /* the reference has run through the tokens once already */
            ref_lightning(CYCLE, 1, DIM, s.qkv64, s.stride, s.slopes, s.state64, s.out64);
    }
    fixture_end(&f);
    float *state = read_floats(&f, &s.state);
    EXPECT_ERROR_BELOW(worst_state(&s, state, s.state64), 1e-4, "%d steps of the slowest head, %s",
                       cycles * CYCLE, variant_name(v));
    free(state);
    sequence_free(&s, &f);
    fixture_close(&f);
}

static void test_decode_slowest_head(void **unused)
{
    (void)unused;
    decode_slowest_head(OP_SHAPE_NARROW);
    decode_slowest_head(OP_SHAPE_WIDE);
}

/* The slowest heads over 10,000 tokens that bring nothing: only the factor's own error is left. It
 * is expm1 on the host that keeps it small: exp(-s) - 1 in fp32 is wrong by up to 1e-3 of itself.
 */
static void test_decode_decay_alone(void **unused)
{
    (void)unused;
    enum { HEADS = 8, DIM = 16, STEPS = 500, CYCLES = 20 };
    device_fixture f;
    fixture_open(&f, "");
    double slopes[64];
    ref_slopes(1, 64, 78, 80, slopes);
    sequence s = sequence_make(HEADS, DIM, 1, 1, &slopes[56], 6);
    memset(s.qkv, 0, s.stride * sizeof(float));
    sequence_reference(&s);
    sequence_upload(&s, &f, (variant){OP_SHAPE_AUTO, false});
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(&f, &step, false);
    op_lightning_args args = sequence_args(&s);
    for (int t = 0; t < STEPS; t++)
        EXPECT_OK(op_lightning_decode(&ctx, &args));
    for (int c = 0; c < CYCLES; c++)
        fixture_run(&f);
    fixture_end(&f);
    for (size_t h = 0; h < HEADS; h++)
        for (size_t i = 0; i < (size_t)DIM * DIM; i++)
            s.state64[h * DIM * DIM + i] =
                s.start64[h * DIM * DIM + i] * exp(-s.slopes[h] * STEPS * CYCLES);
    float *state = read_floats(&f, &s.state);
    EXPECT_ERROR_BELOW(worst_state(&s, state, s.state64), 3e-5, "10,000 steps of decay alone");
    free(state);
    sequence_free(&s, &f);
    fixture_close(&f);
}

static void decay_ends_of_variant(device_fixture *f, variant v)
{
    /* No decay: the state is the plain sum. A large one: only the token itself is left. */
    double none[2] = {0, 0}, large[2] = {200, 90};
    sequence s = sequence_make(2, 32, 100, 112, none, 77);
    sequence_reference(&s);
    check_prefill(f, v, &s, limit_of(v));
    sequence_free(&s, f);

    s = sequence_make(2, 32, 100, 112, large, 78);
    sequence_reference(&s);
    for (uint32_t t = 0; t < s.rows; t++) {
        for (uint32_t h = 0; h < 2; h++) {
            const double *q = s.qkv64 + (size_t)t * s.stride + h * 3 * 32, *k = q + 32;
            double score = ref_dot(q, k, 32);
            for (uint32_t c = 0; c < 32; c++)
                s.out64[(t * 2 + h) * 32 + c] = score * k[32 + c];
        }
    }
    check_prefill(f, v, &s, limit_of(v));
    sequence_free(&s, f);
}

static void test_decay_ends(void **unused)
{
    (void)unused;
    on_plain_device(decay_ends_of_variant);
}

/* Slopes of layer 78 of 80, heads 0, 31 and 63 of 64. */
static void late_layer_of_variant(device_fixture *f, variant v)
{
    double all[64];
    ref_slopes(1, 64, 78, 80, all);
    double slopes[3] = {all[0], all[31], all[63]};
    sequence s = sequence_make(3, 32, 4097, 4097, slopes, 12);
    sequence_reference(&s);
    check_prefill(f, v, &s, limit_of(v));
    sequence_free(&s, f);
}

static void test_late_layer(void **unused)
{
    (void)unused;
    on_plain_device(late_layer_of_variant);
}

/* The two decay rules differ by 1e-5 of the slope in late layers. A state that only decays shows it
 * multiplied by slope x tokens. */
static void decay_rules_of_variant(device_fixture *f, variant v)
{
    enum { TOKENS = 1000, DIM = 16 };
    double orig[64], hf[64];
    ref_slopes(1, 64, 78, 80, orig);
    ref_slopes(2, 64, 78, 80, hf);
    sequence s = sequence_make(1, DIM, TOKENS, TOKENS, orig, 3);
    for (uint32_t t = 0; t < TOKENS; t++)
        memset(s.qkv + (size_t)t * s.stride + DIM, 0, 2 * DIM * sizeof(float));
    sequence_reference(&s);
    check_prefill(f, v, &s, v.half ? LIMIT_HALF : 3 * LIMIT_F32);
    float *state = read_floats(f, &s.state);
    EXPECT_ERROR_BELOW(worst_state(&s, state, s.state64), 3 * LIMIT_F32, "decay alone, %s",
                       variant_name(v));
    s.slopes[0] = hf[0];
    sequence_reference(&s);
    double other = worst_state(&s, state, s.state64);
    if (!(other > 6e-5))
        fail_msg("the other decay rule is only %g away", other);
    free(state);
    sequence_free(&s, f);
}

static void test_decay_rules(void **unused)
{
    (void)unused;
    on_plain_device(decay_rules_of_variant);
}

static void magnitudes_of_variant(device_fixture *f, variant v)
{
    static const double scales[][3] = {{1e-6, 1e-6, 1e-6}, {1e6, 1e6, 1e6}, {1e6, 1e-6, 1e6},
                                       {1e-6, 1e6, 1},     {1, 1, 1e6},     {0, 0, 0}};
    double slopes[2];
    ref_slopes(1, 2, 1, 8, slopes);
    for (size_t n = 0; n < sizeof scales / sizeof *scales; n++) {
        sequence s = sequence_make(2, 32, 50, 50, slopes, 90 + n);
        bool mixed = n == 5; /* every row of every head from the whole range */
        rng r = rng_seed(4);
        for (uint32_t t = 0; t < s.rows; t++) {
            for (uint32_t part = 0; part < 6; part++) {
                double scale = mixed ? pow(10, 12 * rng_uniform(&r) - 6) : scales[n][part % 3];
                for (uint32_t d = 0; d < 32; d++)
                    s.qkv[(size_t)t * s.stride + part * 32 + d] *= (float)scale;
            }
        }
        if (!mixed)
            for (size_t i = 0; i < state_count(&s); i++)
                s.start[i] *= (float)(scales[n][1] * scales[n][2]);
        sequence_reference(&s);
        check_prefill(f, v, &s, limit_of(v));
        sequence_free(&s, f);
    }
}

static void test_magnitudes(void **unused)
{
    (void)unused;
    on_plain_device(magnitudes_of_variant);
}

/* A NaN stays in its head and in later rows, and is seen there. */
static void nan_of_variant(device_fixture *f, variant v)
{
    enum { BAD = 37, ROWS = 60, DIM = 32 };
    double slopes[2];
    ref_slopes(1, 2, 1, 8, slopes);
    for (uint32_t part = 0; part < 3; part++) { /* in q, k, v of head 1 */
        sequence s = sequence_make(2, DIM, ROWS, ROWS, slopes, 55);
        s.qkv[(size_t)BAD * s.stride + (3 + part) * DIM + 5] = NAN;
        sequence_upload(&s, f, v);
        op_lightning_args args = sequence_args(&s);
        record_prefill(f, v, &args, ROWS);
        fixture_run(f);
        float *out = read_floats(f, &s.out);
        for (uint32_t t = 0; t < ROWS; t++) {
            for (uint32_t h = 0; h < 2; h++) {
                uint32_t bad = 0;
                for (uint32_t c = 0; c < DIM; c++)
                    bad += isfinite(out[(t * 2 + h) * DIM + c]) ? 0u : 1u;
                bool expected = h == 1 && (part == 0 ? t == BAD : t >= BAD);
                if ((bad > 0) != expected)
                    fail_msg("%s: NaN in %c of row %d: row %u of head %u has %u bad values",
                             variant_name(v), "qkv"[part], BAD, t, h, bad);
            }
        }
        fixture_end(f);
        free(out);
        sequence_free(&s, f);
    }
}

static void test_nan_is_visible(void **unused)
{
    (void)unused;
    on_plain_device(nan_of_variant);
}

static void test_many_repeats(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    double slopes[4];
    ref_slopes(1, 4, 1, 8, slopes);
    variant v = {OP_SHAPE_AUTO, false};
    sequence s = sequence_make(4, 64, 150, 150, slopes, 8);
    sequence_upload(&s, &f, v);
    op_lightning_args args = sequence_args(&s);
    record_prefill(&f, v, &args, 150);
    fixture_run(&f);
    float *first = read_floats(&f, &s.out);
    for (int i = 0; i < 50; i++) {
        fixture_fill(&f, &s.state, s.start);
        fixture_run(&f);
        float *again = read_floats(&f, &s.out);
        assert_memory_equal(first, again, s.out.bytes);
        free(again);
    }
    fixture_end(&f);
    free(first);
    sequence_free(&s, &f);
    fixture_close(&f);
}

static void test_bad_arguments(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    double slopes[2] = {0.5, 0.25};
    variant v = {OP_SHAPE_AUTO, false};
    sequence s = sequence_make(2, 32, 4, 4, slopes, 8);
    sequence_upload(&s, &f, v);
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(&f, &step, false);
    op_lightning_args good = sequence_args(&s), bad = good;
    bad.head_dim = 24;
    assert_int_equal(op_lightning_prefill(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "head_dim 24"));
    bad = good;
    bad.qkv_stride = 3 * 2 * 32 - 4;
    assert_int_equal(op_lightning_decode(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "row stride 188"));
    bad = good;
    bad.scratch.bytes -= 4;
    assert_int_equal(op_lightning_prefill(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "scratch"));
    bad = good;
    bad.state.bytes -= 4;
    assert_int_equal(op_lightning_prefill(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "state"));
    fixture_end(&f);
    sequence_free(&s, &f);
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_small_bindings),
        cmocka_unit_test(test_any_split),
        cmocka_unit_test(test_decode),
        cmocka_unit_test(test_decode_slowest_head),
        cmocka_unit_test(test_decode_decay_alone),
        cmocka_unit_test(test_decay_ends),
        cmocka_unit_test(test_late_layer),
        cmocka_unit_test(test_decay_rules),
        cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_nan_is_visible),
        cmocka_unit_test(test_many_repeats),
        cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
