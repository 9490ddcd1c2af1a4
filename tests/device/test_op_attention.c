/* RoPE, the KV cache and causal attention on the device against double precision: every cache type,
 * dispatch shape and capability mask. */
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
#define THETA 10000.0
static const uint32_t POISON = 0x7fc0dead;

typedef struct variant {
    op_shape shape;
    ful_type type;
} variant;

static const char *variant_name(variant v)
{
    static const char *const names[2][2] = {{"narrow f32", "narrow f16"}, {"wide f32", "wide f16"}};
    return names[v.shape == OP_SHAPE_WIDE][v.type == FUL_TYPE_F16];
}

static double limit_of(variant v)
{
    return v.type == FUL_TYPE_F16 ? LIMIT_HALF : LIMIT_F32;
}

typedef void (*variant_fn)(device_fixture *f, variant v);

static void on_variants(device_fixture *f, variant_fn fn)
{
    for (int i = 0; i < 4; i++) {
        variant v = {i & 1 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, i & 2 ? FUL_TYPE_F16 : FUL_TYPE_F32};
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

/* Every shape on the device as it is and on the floor; the masks between select the same kernels,
 * and a driver takes long to compile hundreds of pipelines. */
static bool every_shape(const device_fixture *f)
{
    size_t last = 0;
    while (fixture_masks[last + 1])
        last++;
    return fixture_full() && (f->caps[0] == '\0' || strcmp(f->caps, fixture_masks[last]) == 0);
}

static void on_plain_device(variant_fn fn)
{
    device_fixture f;
    fixture_open(&f, "");
    on_variants(&f, fn);
    fixture_close(&f);
}

/* ---- one sequence ---- */

typedef struct shape {
    uint32_t heads, kv_heads, dim, rotary, tokens;
    uint32_t capacity; /* of the cache */
    uint32_t origin;   /* position of token 0 for RoPE */
} shape;

typedef struct sequence {
    shape s;
    uint32_t stride;   /* of a row of qkv */
    float *qkv;        /* [tokens][stride] */
    double *q, *k, *v; /* after RoPE: [tokens][heads][dim], [tokens][kv_heads][dim] */
    double *want;      /* [tokens][heads][dim]; rows not asked for stay 0 */
} sequence;

static sequence sequence_make(shape s, uint64_t seed)
{
    sequence q = {.s = s};
    uint32_t width = (s.heads + 2 * s.kv_heads) * s.dim;
    q.stride = width + 16;
    size_t count = (size_t)s.tokens * q.stride;
    q.qkv = ref_alloc_bytes(count, sizeof(float));
    for (size_t i = 0; i < count; i++)
        memcpy(&q.qkv[i], &POISON, sizeof POISON);
    rng r = rng_seed(seed);
    for (uint32_t t = 0; t < s.tokens; t++)
        rng_fill_normal(&r, q.qkv + (size_t)t * q.stride, width, 1.0);
    q.q = ref_alloc((size_t)s.tokens * s.heads * s.dim);
    q.k = ref_alloc((size_t)s.tokens * s.kv_heads * s.dim);
    q.v = ref_alloc((size_t)s.tokens * s.kv_heads * s.dim);
    q.want = ref_alloc((size_t)s.tokens * s.heads * s.dim);
    return q;
}

static void sequence_free(sequence *q)
{
    free(q->qkv);
    free(q->q);
    free(q->k);
    free(q->v);
    free(q->want);
}

/* Reference rows first, first + step, ... */
static void sequence_reference(sequence *q, uint32_t first, uint32_t step)
{
    shape s = q->s;
    size_t qn = (size_t)s.heads * s.dim, kn = (size_t)s.kv_heads * s.dim;
    for (uint32_t t = 0; t < s.tokens; t++) {
        const float *row = q->qkv + (size_t)t * q->stride;
        ref_from_f32(row, q->q + t * qn, qn);
        ref_from_f32(row + qn, q->k + t * kn, kn);
        ref_from_f32(row + qn + kn, q->v + t * kn, kn);
    }
    ref_rope(s.tokens, s.heads, s.dim, s.rotary, THETA, s.origin, q->q, 0);
    ref_rope(s.tokens, s.kv_heads, s.dim, s.rotary, THETA, s.origin, q->k, 0);
    for (uint32_t t = first; t < s.tokens; t += step)
        ref_attention(1, t, s.heads, s.kv_heads, s.dim, q->q + t * qn, q->k, q->v,
                      q->want + t * qn);
}

/* Device buffers for steps of up to `rows` rows. */
typedef struct runner {
    device_fixture *f;
    variant v;
    const sequence *q;
    uint32_t rows;
    op_kv kv;
    test_buffer qkv, rope, out, scratch;
} runner;

/* On the cache `kv`, which becomes the runner's. */
static runner runner_make_on(device_fixture *f, variant v, const sequence *q, uint32_t rows,
                             op_kv kv)
{
    shape s = q->s;
    runner r = {.f = f, .v = v, .q = q, .rows = rows, .kv = kv};
    r.qkv = fixture_buffer(f, (uint64_t)rows * q->stride * sizeof(float), NULL);
    r.rope = fixture_buffer(f, (uint64_t)rows * (s.rotary ? s.rotary : 2) * sizeof(float), NULL);
    r.out = fixture_buffer(f, (uint64_t)rows * s.heads * s.dim * sizeof(float), NULL);
    op_context ctx = {.device = f->device, .shape = v.shape};
    r.scratch =
        fixture_buffer(f, op_attention_scratch_bytes(&ctx, rows, s.heads, s.dim, &r.kv), NULL);
    step_params step = {.n_rows = 1, .kv_tokens = 1};
    ctx = fixture_begin(f, &step, v.type == FUL_TYPE_F16);
    ctx.shape = v.shape;
    op_attention_args args = {.qkv = r.qkv.range,
                              .qkv_stride = q->stride,
                              .heads = s.heads,
                              .head_dim = s.dim,
                              .rotary_dim = s.rotary,
                              .rows = rows,
                              .kv = &r.kv,
                              .out = r.out.range,
                              .scratch = r.scratch.range};
    if (s.rotary)
        args.rope = r.rope.range;
    EXPECT_OK(op_attention(&ctx, &args));
    return r;
}

static runner runner_make(device_fixture *f, variant v, const sequence *q, uint32_t rows)
{
    op_kv kv;
    EXPECT_OK(op_kv_create(f->device, v.type, q->s.kv_heads, q->s.dim, q->s.capacity, &kv));
    for (uint32_t w = 0; w < kv.window_count; w++)
        EXPECT_OK(gpu_range_fill(f->device, gpu_whole(&kv.windows[w]), POISON));
    return runner_make_on(f, v, q, rows, kv);
}

/* Runs tokens first .. first+count-1 through the recorded commands; out: [count][heads][dim]. */
static void runner_step(runner *r, uint32_t first, uint32_t count, float *out)
{
    const sequence *q = r->q;
    shape s = q->s;
    size_t width = (size_t)s.heads * s.dim;
    float *rows = ref_alloc_bytes((size_t)r->rows * q->stride, sizeof(float));
    memset(rows, 0xff, (size_t)r->rows * q->stride * sizeof(float)); /* NaN beyond the real rows */
    memcpy(rows, q->qkv + (size_t)first * q->stride, (size_t)count * q->stride * sizeof(float));
    fixture_fill(r->f, &r->qkv, rows);
    if (s.rotary) {
        float *table = ref_alloc_bytes((size_t)r->rows * s.rotary, sizeof(float));
        op_rope_table(s.origin + first, count, s.rotary, THETA, table);
        fixture_fill(r->f, &r->rope, table);
        free(table);
    }
    fixture_fill(r->f, &r->out, NULL);
    fixture_fill(r->f, &r->scratch, NULL);
    step_params step = {.n_rows = count, .position = first, .kv_tokens = first + count};
    fixture_step(r->f, &step);
    fixture_run(r->f);
    float *got = ref_alloc_bytes(1, (size_t)r->out.bytes);
    fixture_read(r->f, &r->out, got);
    memcpy(out, got, count * width * sizeof(float));
    for (size_t i = count * width; i < r->rows * width; i++)
        assert_memory_equal(&got[i], &POISON, sizeof POISON);
    free(got);
    got = ref_alloc_bytes(1, (size_t)r->scratch.bytes);
    fixture_read(r->f, &r->scratch, got); /* its guard words */
    free(got);
    free(rows);
}

static void runner_free(runner *r)
{
    fixture_end(r->f);
    fixture_free(r->f, &r->qkv);
    fixture_free(r->f, &r->rope);
    fixture_free(r->f, &r->out);
    fixture_free(r->f, &r->scratch);
    op_kv_destroy(r->f->device, &r->kv);
}

/* Compares rows first, first + step, ... of a whole run. */
static void check_rows(const device_fixture *f, variant v, const sequence *q, const float *out,
                       uint32_t first, uint32_t step, double limit)
{
    shape s = q->s;
    size_t width = (size_t)s.heads * s.dim;
    for (uint32_t t = first; t < s.tokens; t += step)
        EXPECT_ERROR_BELOW(
            max_rel_error_f32(out + t * width, q->want + t * width, width), limit,
            "attention, %s, caps \"%s\", heads %u / %u x %u, rotary %u, row %u of %u",
            variant_name(v), f->caps, s.heads, s.kv_heads, s.dim, s.rotary, t, s.tokens);
}

/* One prefill of all tokens; checks every step-th row and that a second run gives the same bits. */
static void run_prefill(device_fixture *f, variant v, shape s, uint32_t spare_rows)
{
    sequence q = sequence_make(s, 100 * s.dim + s.tokens);
    uint32_t step = s.tokens > 300 ? 97 : 1;
    sequence_reference(&q, (s.tokens - 1) % step, step);
    runner r = runner_make(f, v, &q, s.tokens + spare_rows);
    size_t count = (size_t)s.tokens * s.heads * s.dim;
    float *out = ref_alloc_bytes(count, sizeof(float)),
          *again = ref_alloc_bytes(count, sizeof(float));
    runner_step(&r, 0, s.tokens, out);
    check_rows(f, v, &q, out, (s.tokens - 1) % step, step, limit_of(v));
    runner_step(&r, 0, s.tokens, again);
    assert_memory_equal(out, again, count * sizeof(float));
    free(out);
    free(again);
    runner_free(&r);
    sequence_free(&q);
}

static shape shape_of(uint32_t heads, uint32_t kv_heads, uint32_t dim, uint32_t rotary,
                      uint32_t tokens)
{
    return (shape){heads, kv_heads, dim, rotary, tokens, tokens, 0};
}

/* ---- tests ---- */

static void shapes_of_variant(device_fixture *f, variant v)
{
    static const uint32_t lengths[] = {1, 15, 16, 17, 255, 256, 257, 4097};
    static const uint32_t dims[] = {16, 32, 48, 64, 96, 128, 256};
    static const uint32_t heads[][2] = {{1, 1}, {2, 1}, {4, 2}, {6, 2}, {6, 3}, {8, 8}, {16, 8}};
    bool full = every_shape(f);
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++)
        if (full || lengths[i] < 300)
            run_prefill(f, v, shape_of(2, 1, 32, 16, lengths[i]), 0);
    for (size_t i = 0; i < sizeof dims / sizeof *dims; i++)
        if (full || dims[i] == 48 || dims[i] == 64 || dims[i] == 128)
            run_prefill(f, v, shape_of(4, 2, dims[i], dims[i], 37), 27);
    for (size_t i = 0; full && i < sizeof heads / sizeof *heads; i++)
        run_prefill(f, v, shape_of(heads[i][0], heads[i][1], 16, 8, 33), 3);
    for (uint32_t rotary = 0; full && rotary <= 32; rotary += 2)
        run_prefill(f, v, shape_of(2, 1, 32, rotary, 20), 0);
    run_prefill(f, v, shape_of(2, 1, 32, 0, 20), 0);
    run_prefill(f, v, shape_of(2, 1, 32, 6, 20), 0);
}

static void test_shapes(void **unused)
{
    (void)unused;
    on_every_mask(shapes_of_variant);
}

/* One recording for steps of up to 8 rows, replayed from position 0 on: any cut gives the same
 * rows. */
static void splits_of_variant(device_fixture *f, variant v)
{
    static const uint32_t cuts[][8] = {{257}, {1, 256}, {255, 2}, {100, 1, 1, 99, 56}};
    shape s = shape_of(4, 2, 32, 32, 257);
    s.capacity = 300;
    sequence q = sequence_make(s, 17);
    sequence_reference(&q, 0, 1);
    size_t width = (size_t)s.heads * s.dim;
    float *out = ref_alloc_bytes(s.tokens * width, sizeof(float));
    for (size_t c = 0; c < sizeof cuts / sizeof *cuts; c++) {
        runner r = runner_make(f, v, &q, 257);
        uint32_t row = 0;
        for (size_t i = 0; i < 8 && cuts[c][i] != 0; i++) {
            runner_step(&r, row, cuts[c][i], out + row * width);
            row += cuts[c][i];
        }
        assert_int_equal(row, s.tokens);
        check_rows(f, v, &q, out, 0, 1, limit_of(v));
        runner_free(&r);
    }
    free(out);
    sequence_free(&q);
}

static void test_any_split(void **unused)
{
    (void)unused;
    on_plain_device(splits_of_variant);
}

/* Decode recorded once and replayed at every position, after a prefill of a recording of its own
 * cache; keys are split over workgroups, most of which have nothing to do at first. */
static void decode_of_variant(device_fixture *f, variant v)
{
    static const uint32_t rows[] = {1, 3};
    uint32_t tokens = every_shape(f) ? 700 : 150;
    for (size_t i = 0; i < 2; i++) {
        shape s = shape_of(4, 1, i ? 48 : 64, 32, tokens);
        s.capacity = 1500;
        sequence q = sequence_make(s, 23);
        sequence_reference(&q, 0, 1);
        runner r = runner_make(f, v, &q, rows[i]);
        size_t width = (size_t)s.heads * s.dim;
        float *out = ref_alloc_bytes(s.tokens * width, sizeof(float));
        for (uint32_t t = 0; t < s.tokens; t += rows[i]) {
            uint32_t n = s.tokens - t < rows[i] ? s.tokens - t : rows[i];
            runner_step(&r, t, n, out + t * width);
        }
        check_rows(f, v, &q, out, 0, 1, limit_of(v));
        free(out);
        runner_free(&r);
        sequence_free(&q);
    }
}

static void test_decode_replayed(void **unused)
{
    (void)unused;
    on_every_mask(decode_of_variant);
}

/* Decode at the sizes of real models, where most splits of the cache are empty at first: every
 * position against the reference, then again and again the same bits. GPUs get more of it: what
 * goes wrong there once in a thousand steps would end a conversation. */
static void deep_of_variant(device_fixture *f, variant v)
{
    static const uint32_t heads[][2] = {{16, 2}, {64, 8}, {4, 4}};
    bool gpu = ful_device_get_info(f->device)->kind != FUL_DEVICE_CPU;
    uint32_t tokens = gpu ? 200 : 40, repeats = gpu ? 2 : 1;
    for (size_t i = 0; i < (gpu || fixture_full() ? 3 : 1); i++) {
        shape s = shape_of(heads[i][0], heads[i][1], 128, 64, tokens);
        s.capacity = gpu ? 4200 : 1000;
        sequence q = sequence_make(s, 31 + i);
        sequence_reference(&q, 0, 1);
        runner r = runner_make(f, v, &q, 1);
        size_t width = (size_t)s.heads * s.dim;
        float *out = ref_alloc_bytes(s.tokens * width, sizeof(float)),
              *again = ref_alloc_bytes(width, sizeof(float));
        for (uint32_t t = 0; t < s.tokens; t++)
            runner_step(&r, t, 1, out + t * width);
        check_rows(f, v, &q, out, 0, 1, limit_of(v));
        for (uint32_t n = 0; n < repeats; n++)
            for (uint32_t t = 0; t < s.tokens; t++) {
                runner_step(&r, t, 1, again);
                assert_memory_equal(again, out + t * width, width * sizeof(float));
            }
        free(again);
        free(out);
        runner_free(&r);
        sequence_free(&q);
    }
}

static void test_decode_deep(void **unused)
{
    (void)unused;
    on_plain_device(deep_of_variant);
}

/* A binding of 1 MiB: the cache has several windows, and rows are cut too. */
static void windows_of_variant(device_fixture *f, variant v)
{
    shape s = shape_of(4, 4, 128, 64, v.type == FUL_TYPE_F16 ? 1060 : 560);
    s.capacity = s.tokens + 50;
    sequence q = sequence_make(s, 29);
    sequence_reference(&q, 3, 31);
    size_t width = (size_t)s.heads * s.dim;
    float *out = ref_alloc_bytes(s.tokens * width, sizeof(float));
    runner r = runner_make(f, v, &q, s.tokens - 4);
    assert_true(r.kv.window_count >= 3);
    runner_step(&r, 0, s.tokens - 4, out);
    op_kv kv = r.kv;
    r.kv = (op_kv){0};
    runner_free(&r);
    /* The last rows one by one, on the same cache: splits straddle windows. */
    r = runner_make_on(f, v, &q, 1, kv);
    for (uint32_t t = s.tokens - 4; t < s.tokens; t++)
        runner_step(&r, t, 1, out + t * width);
    check_rows(f, v, &q, out, 3, 31, limit_of(v));
    runner_free(&r);
    free(out);
    sequence_free(&q);
}

static void test_windows(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "range=1048576");
    on_variants(&f, windows_of_variant);
    fixture_close(&f);
}

/* Rows whose values or keys leave fp16's range on either side. */
static void magnitudes_of_variant(device_fixture *f, variant v)
{
    static const double scales[][3] = {{1, 1, 1e6},      {1, 1, 1e-6},    {1e-6, 1e6, 1},
                                       {1e6, 1e-6, 1e6}, {1e-6, 1e-6, 1}, {1e-30, 1e30, 1e30}};
    for (size_t n = 0; n < sizeof scales / sizeof *scales; n++) {
        shape s = shape_of(4, 2, 32, 16, 50);
        sequence q = sequence_make(s, 60 + n);
        for (uint32_t t = 0; t < s.tokens; t++)
            for (uint32_t i = 0; i < 8 * s.dim; i++)
                q.qkv[(size_t)t * q.stride + i] *= (float)scales[n][i < 4 * s.dim   ? 0
                                                                    : i < 6 * s.dim ? 1
                                                                                    : 2];
        sequence_reference(&q, 0, 1);
        runner r = runner_make(f, v, &q, s.tokens);
        float *out = ref_alloc_bytes((size_t)s.tokens * s.heads * s.dim, sizeof(float));
        runner_step(&r, 0, s.tokens, out);
        check_rows(f, v, &q, out, 0, 1, limit_of(v));
        free(out);
        runner_free(&r);
        sequence_free(&q);
    }
}

static void test_magnitudes(void **unused)
{
    (void)unused;
    on_plain_device(magnitudes_of_variant);
}

/* Values of a millionth beside values of one, and rows of zeros: small ones are not lost where a
 * row sees nothing else, whatever hidden keys of the same tile hold. */
static void mixed_of_variant(device_fixture *f, variant v)
{
    shape s = shape_of(4, 2, 32, 16, 70);
    sequence q = sequence_make(s, 67);
    for (uint32_t t = 0; t < s.tokens; t++) {
        float scale = t < 3 ? 1e-6f : t < 6 ? 1e-3f : t % 11 == 6 ? 0.0f : 1.0f;
        for (uint32_t i = 6 * s.dim; i < 8 * s.dim; i++)
            q.qkv[(size_t)t * q.stride + i] *= scale;
    }
    sequence_reference(&q, 0, 1);
    runner r = runner_make(f, v, &q, s.tokens);
    float *out = ref_alloc_bytes((size_t)s.tokens * s.heads * s.dim, sizeof(float));
    runner_step(&r, 0, s.tokens, out);
    check_rows(f, v, &q, out, 0, 1, limit_of(v));
    free(out);
    runner_free(&r);
    sequence_free(&q);
}

static void test_mixed_magnitudes(void **unused)
{
    (void)unused;
    on_plain_device(mixed_of_variant);
}

/* Scores far apart: a lone key takes everything, and nothing overflows on the way. */
static void peaks_of_variant(device_fixture *f, variant v)
{
    shape s = shape_of(2, 1, 32, 0, 120);
    sequence q = sequence_make(s, 91);
    for (uint32_t t = 0; t < s.tokens; t++) {
        float *row = q.qkv + (size_t)t * q.stride;
        for (uint32_t d = 0; d < s.dim; d++) {
            row[d] = row[s.dim + d] = d == 0 ? 400.0f : 0.0f;
            /* Rises to token 70, falls after it: the largest score is not the first or the last. */
            row[2 * s.dim + d] = d == 0 ? 100.0f - fabsf((float)t - 70.0f) : 0.0f;
        }
    }
    sequence_reference(&q, 0, 1);
    runner r = runner_make(f, v, &q, s.tokens);
    float *out = ref_alloc_bytes((size_t)s.tokens * s.heads * s.dim, sizeof(float));
    runner_step(&r, 0, s.tokens, out);
    check_rows(f, v, &q, out, 0, 1, limit_of(v));
    const double *v70 = q.v + 70 * (size_t)s.dim;
    assert_true(max_rel_error_f32(out + 119 * 2 * (size_t)s.dim, v70, s.dim) < limit_of(v));
    free(out);
    runner_free(&r);
    sequence_free(&q);
}

static void test_peaks(void **unused)
{
    (void)unused;
    on_plain_device(peaks_of_variant);
}

static void nan_of_variant(device_fixture *f, variant v)
{
    enum { BAD = 37, TOKENS = 60, DIM = 32 };
    for (uint32_t part = 0; part < 3; part++) { /* q of head 1, k, v */
        sequence q = sequence_make(shape_of(2, 1, DIM, 16, TOKENS), 71);
        q.qkv[(size_t)BAD * q.stride + (1 + part) * DIM + 20] = NAN;
        runner r = runner_make(f, v, &q, TOKENS);
        float *out = ref_alloc_bytes((size_t)TOKENS * 2 * DIM, sizeof(float));
        runner_step(&r, 0, TOKENS, out);
        for (uint32_t t = 0; t < TOKENS; t++) {
            for (uint32_t h = 0; h < 2; h++) {
                bool bad = false;
                for (uint32_t c = 0; c < DIM; c++)
                    bad = bad || !isfinite(out[(t * 2 + h) * DIM + c]);
                bool expected = part == 0 ? h == 1 && t == BAD : t >= BAD;
                if (bad != expected)
                    fail_msg("%s: NaN in %c of row %d: row %u of head %u is%s finite",
                             variant_name(v), "qkv"[part], BAD, t, h, bad ? " not" : "");
            }
        }
        free(out);
        runner_free(&r);
        sequence_free(&q);
    }
}

static void test_nan_is_visible(void **unused)
{
    (void)unused;
    on_plain_device(nan_of_variant);
}

/* The table at positions near a million, where the fp32 angle is rounded to 1/16 rad, and what the
 * kernel makes of it. */
static void test_rope_far_positions(void **unused)
{
    (void)unused;
    static const uint32_t positions[] = {0, 1, 999983, 1048575, 10239999};
    for (size_t i = 0; i < sizeof positions / sizeof *positions; i++) {
        float table[2 * 64];
        double cosine[32], sine[32];
        op_rope_table(positions[i], 2, 64, 1e7, table);
        for (uint32_t r = 0; r < 2; r++) {
            ref_rope_table(positions[i] + r, 64, 1e7, cosine, sine);
            for (uint32_t p = 0; p < 32; p++) {
                assert_true(fabs((double)table[(r * 32 + p) * 2] - cosine[p]) < 1e-7);
                assert_true(fabs((double)table[(r * 32 + p) * 2 + 1] - sine[p]) < 1e-7);
            }
        }
    }
    device_fixture f;
    fixture_open(&f, "");
    for (int i = 1; i <= 2; i++) {
        variant v = {(op_shape)i, FUL_TYPE_F32};
        shape s = shape_of(3, 1, 48, 32, 20);
        s.origin = 1000000;
        s.capacity += 2;
        sequence q = sequence_make(s, 41);
        sequence_reference(&q, 0, 1);
        runner r = runner_make(&f, v, &q, s.tokens + 2);
        float *out = ref_alloc_bytes((size_t)s.tokens * s.heads * s.dim, sizeof(float));
        runner_step(&r, 0, s.tokens, out);
        check_rows(&f, v, &q, out, 0, 1, LIMIT_F32);
        /* q in place, k and v in the cache; k in qkv is left as it was. */
        float *qkv = ref_alloc_bytes(1, (size_t)r.qkv.bytes);
        float *cache = ref_alloc_bytes((size_t)s.capacity * 2 * s.dim, sizeof(float));
        fixture_read(&f, &r.qkv, qkv);
        EXPECT_OK(gpu_range_read(f.device, gpu_whole(&r.kv.windows[0]), 0, cache,
                                 (uint64_t)s.capacity * 2 * s.dim * sizeof(float)));
        for (size_t n = (size_t)s.tokens * 2 * s.dim; n < (size_t)s.capacity * 2 * s.dim; n++)
            assert_memory_equal(&cache[n], &POISON, sizeof POISON); /* no row, no key */
        size_t width = (size_t)s.heads * s.dim;
        for (uint32_t t = 0; t < s.tokens; t++) {
            const float *row = qkv + (size_t)t * q.stride, *given = q.qkv + (size_t)t * q.stride;
            EXPECT_ERROR_BELOW(max_rel_error_f32(row, q.q + t * width, width), 1e-6, "rotated q");
            assert_memory_equal(row + width, given + width, 2 * s.dim * sizeof(float));
            EXPECT_ERROR_BELOW(
                max_rel_error_f32(cache + (size_t)t * 2 * s.dim, q.k + (size_t)t * s.dim, s.dim),
                1e-6, "cached k");
            assert_memory_equal(cache + ((size_t)t * 2 + 1) * s.dim, given + width + s.dim,
                                s.dim * sizeof(float));
        }
        free(qkv);
        free(cache);
        free(out);
        runner_free(&r);
        sequence_free(&q);
    }
    fixture_close(&f);
}

static void test_many_repeats(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    sequence q = sequence_make(shape_of(4, 1, 64, 32, 100), 33);
    variant v = {OP_SHAPE_AUTO, FUL_TYPE_F16};
    runner r = runner_make(&f, v, &q, 100);
    size_t count = (size_t)100 * 4 * 64;
    float *first = ref_alloc_bytes(count, sizeof(float)),
          *again = ref_alloc_bytes(count, sizeof(float));
    runner_step(&r, 0, 100, first);
    for (int i = 0; i < 50; i++) {
        runner_step(&r, 0, 100, again);
        assert_memory_equal(first, again, count * sizeof(float));
    }
    free(first);
    free(again);
    runner_free(&r);
    sequence_free(&q);
    fixture_close(&f);
}

static void test_bad_arguments(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    op_kv kv;
    assert_int_equal(op_kv_create(f.device, FUL_TYPE_BF16, 1, 32, 8, &kv), FUL_ERR_ARGUMENT);
    assert_int_equal(op_kv_create(f.device, FUL_TYPE_F32, 1, 24, 8, &kv), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "head_dim 24"));
    sequence q = sequence_make(shape_of(4, 2, 32, 16, 8), 33);
    variant v = {OP_SHAPE_AUTO, FUL_TYPE_F32};
    runner r = runner_make(&f, v, &q, 8);
    op_context ctx = {.device = f.device, .commands = f.commands, .step = gpu_whole(&f.step)};
    op_attention_args good = {.qkv = r.qkv.range,
                              .qkv_stride = q.stride,
                              .heads = 4,
                              .head_dim = 32,
                              .rotary_dim = 16,
                              .rows = 8,
                              .rope = r.rope.range,
                              .kv = &r.kv,
                              .out = r.out.range,
                              .scratch = r.scratch.range};
    op_attention_args bad = good;
    bad.heads = 3;
    assert_int_equal(op_attention(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "3 heads"));
    bad = good;
    bad.rotary_dim = 34;
    assert_int_equal(op_attention(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "rotary_dim 34"));
    bad = good;
    bad.head_dim = 48;
    assert_int_equal(op_attention(&ctx, &bad), FUL_ERR_ARGUMENT);
    bad = good;
    bad.scratch.bytes = 4;
    assert_int_equal(op_attention(&ctx, &bad), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "scratch"));
    runner_free(&r);
    sequence_free(&q);
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_shapes),           cmocka_unit_test(test_any_split),
        cmocka_unit_test(test_decode_replayed),  cmocka_unit_test(test_decode_deep),
        cmocka_unit_test(test_windows),          cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_mixed_magnitudes), cmocka_unit_test(test_peaks),
        cmocka_unit_test(test_nan_is_visible),   cmocka_unit_test(test_rope_far_positions),
        cmocka_unit_test(test_many_repeats),     cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
