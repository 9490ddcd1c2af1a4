/* Lightning attention as the schedule runs it where halves are used: block-scaled halves in and out
 * of prefill and the gated norm behind it; and decode of many sequences at once. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "ops/lightning.h"
#include "ops/tuning.h"
#include "ref/ref.h"
#include "util/compare.h"
#include "util/device_fixture.h"
#include "util/rng.h"

#include <cmocka.h> /* last: its fail() is a macro */

#define LIMIT_OUT 2e-3
#define LIMIT_STATE 1e-3
static const uint32_t POISON = 0x7fc0dead;

/* ---- halves on the host ---- */

/* Rows of f32 as halves with a scale per block; `exact` receives what they stand for. */
typedef struct halves {
    uint32_t rows, columns, block;
    uint16_t *data;
    float *scale;
} halves;

static halves halves_make(uint32_t rows, uint32_t columns, uint32_t block)
{
    return (halves){rows, columns, block, ref_alloc_bytes((size_t)rows * columns, 2),
                    ref_alloc_bytes((size_t)rows * (columns / block), sizeof(float))};
}

static void halves_free(halves *h)
{
    free(h->data);
    free(h->scale);
}

static void halves_pack(halves *h, uint32_t rows, const float *x, double *exact)
{
    for (size_t b = 0; b < (size_t)rows * (h->columns / h->block); b++) {
        const float *from = x + b * h->block;
        float most = 0;
        for (uint32_t c = 0; c < h->block; c++)
            most = fmaxf(most, fabsf(from[c]));
        int e = 0;
        frexpf(most, &e);
        h->scale[b] = most == 0 ? 1.0f : ldexpf(1.0f, e - 14);
        for (uint32_t c = 0; c < h->block; c++) {
            uint16_t half = f16_from_f32(from[c] / h->scale[b]);
            h->data[b * h->block + c] = half;
            exact[b * h->block + c] = (double)f32_from_f16(half) * (double)h->scale[b];
        }
    }
}

static void halves_unpack(const halves *h, uint32_t rows, float *x)
{
    for (size_t i = 0; i < (size_t)rows * h->columns; i++)
        x[i] = f32_from_f16(h->data[i]) * h->scale[i / h->block];
}

/* ---- prefill ---- */

typedef struct prefill_case {
    uint32_t heads, dim, rows, capacity;
    const double *slopes;
    double q_scale, k_scale, v_scale; /* of values ... */
    bool wild;                        /* ... or each block's from 1e-6 to 1e6 */
    uint32_t checked;                 /* heads compared, evenly spread; 0 = all */
    uint32_t chunk_blocks;            /* of a chunk; 0 = as the op likes */
} prefill_case;

/* q, k and v as SiLU leaves them: leaning to one side. */
static void fill_silu(rng *r, float *x, size_t n, double scale)
{
    for (size_t i = 0; i < n; i++) {
        double z = 1.5 * rng_normal(r);
        x[i] = (float)(scale * z / (1 + exp(-z)));
    }
}

static op_context wide_half(device_fixture *f)
{
    return (op_context){.device = f->device, .half = true, .shape = OP_SHAPE_WIDE};
}

static void compare_head(const prefill_case *c, const double *qkv, const float *start,
                         const float *out, const float *state, uint32_t h, const char *caps)
{
    size_t D = c->dim, inner = c->heads * D, one = 3 * D;
    double *mine = ref_alloc((size_t)c->rows * one), *want = ref_alloc((size_t)c->rows * D);
    double *memory = ref_alloc(D * D);
    float *got = ref_alloc_bytes((size_t)c->rows * D, sizeof(float));
    for (size_t t = 0; t < c->rows; t++) {
        memcpy(mine + t * one, qkv + t * 3 * inner + h * one, one * sizeof(double));
        memcpy(got + t * D, out + t * inner + h * D, D * sizeof(float));
    }
    ref_from_f32(start + h * D * D, memory, D * D);
    ref_lightning(c->rows, 1, c->dim, mine, one, c->slopes + h, memory, want);
    EXPECT_ERROR_BELOW(max_rel_error_f32(got, want, c->rows * D), LIMIT_OUT,
                       "out of head %u of %u x %u, %u rows, slope %g, caps \"%s\"", h, c->heads,
                       c->dim, c->rows, c->slopes[h], caps);
    EXPECT_ERROR_BELOW(max_rel_error_f32(state + h * D * D, memory, D * D), LIMIT_STATE,
                       "state of head %u of %u x %u, %u rows, slope %g, caps \"%s\"", h, c->heads,
                       c->dim, c->rows, c->slopes[h], caps);
    free(mine);
    free(want);
    free(memory);
    free(got);
}

/* With chunks as the case wants them. */
static ful_result record_prefill(const op_context *ctx, const prefill_case *c,
                                 const op_lightning_args *args, const lightning_tiles *tiles)
{
    return c->chunk_blocks != 0 ? lightning_tiles_prefill(ctx, args, tiles)
                                : op_lightning_prefill(ctx, args);
}

/* The same again, on poison: the same bits. */
static void run_again(device_fixture *f, test_buffer *to, test_buffer *to_scale,
                      test_buffer *memory, test_buffer *scratch, const halves *out,
                      const float *start, const float *state)
{
    fixture_fill(f, to, NULL);
    fixture_fill(f, to_scale, NULL);
    fixture_fill(f, scratch, NULL);
    fixture_fill(f, memory, start);
    fixture_run(f);
    const test_buffer *buffers[] = {to, to_scale, memory};
    const void *first[] = {out->data, out->scale, state};
    for (size_t i = 0; i < 3; i++) {
        void *now = ref_alloc_bytes(1, (size_t)buffers[i]->bytes);
        fixture_read(f, buffers[i], now);
        assert_memory_equal(now, first[i], buffers[i]->bytes);
        free(now);
    }
}

/* One prefill with halves in and out. False if the device takes none. */
static bool run_prefill(device_fixture *f, const prefill_case *c, uint64_t seed)
{
    op_context ctx = wide_half(f);
    uint32_t block = op_lightning_blocks(&ctx, c->capacity, c->heads, c->dim);
    if (block == 0)
        return false;
    lightning_tiles tiles;
    assert_true(lightning_tiles_choose(&ctx, c->capacity, c->heads, c->dim, &tiles));
    if (c->chunk_blocks != 0)
        tiles.chunk_rows = c->chunk_blocks * tiles.block;
    uint64_t scratch_bytes =
        lightning_tiles_scratch_bytes(&tiles, c->capacity, c->heads, c->dim, true);
    uint32_t inner = c->heads * c->dim, wide = 3 * inner;
    size_t states = (size_t)inner * c->dim;
    halves in = halves_make(c->capacity, wide, c->dim);
    halves out = halves_make(c->capacity, inner, block);
    float *x = ref_alloc_bytes((size_t)c->rows * wide, sizeof(float));
    double *exact = ref_alloc((size_t)c->rows * wide);
    rng r = rng_seed(seed);
    const double scales[3] = {c->q_scale, c->k_scale, c->v_scale};
    for (size_t b = 0; b < (size_t)c->rows * c->heads * 3; b++)
        fill_silu(&r, x + b * c->dim, c->dim,
                  c->wild ? pow(10, 12 * rng_uniform(&r) - 6) : scales[b % 3]);
    /* What lies beyond the real rows is not to be read as a number. */
    memset(in.data, 0xff, (size_t)c->capacity * wide * 2);
    memset(in.scale, 0xff, (size_t)c->capacity * 3 * c->heads * sizeof(float));
    halves_pack(&in, c->rows, x, exact);
    float *start = ref_alloc_bytes(states, sizeof(float));
    rng_fill_normal(&r, start, states, c->wild ? 1.0 : 5 * c->k_scale * c->v_scale);

    test_buffer data = fixture_buffer(f, (uint64_t)c->capacity * wide * 2, in.data);
    test_buffer scale = fixture_buffer(f, (uint64_t)c->capacity * 3 * c->heads * 4, in.scale);
    test_buffer to = fixture_buffer(f, (uint64_t)c->capacity * inner * 2, NULL);
    test_buffer to_scale = fixture_buffer(f, (uint64_t)c->capacity * (inner / block) * 4, NULL);
    test_buffer memory = fixture_buffer(f, states * sizeof(float), start);
    test_buffer scratch = fixture_buffer(f, scratch_bytes != 0 ? scratch_bytes : 4, NULL);
    uint64_t decay_bytes = op_lightning_decay_bytes(f->device, c->heads, c->dim);
    void *table = ref_alloc_bytes(1, (size_t)decay_bytes);
    op_lightning_decay_fill(f->device, c->heads, c->dim, c->slopes, table);
    test_buffer decay = fixture_buffer(f, decay_bytes, table);

    step_params step = {.n_rows = c->rows};
    ctx = fixture_begin(f, &step, true);
    ctx.shape = OP_SHAPE_WIDE;
    op_lightning_args args = {.heads = c->heads,
                              .head_dim = c->dim,
                              .rows = c->capacity,
                              .decay = decay.range,
                              .state = memory.range,
                              .qkv_blocks = {data.range, scale.range, wide, c->dim},
                              .out_blocks = {to.range, to_scale.range, inner, block},
                              .scratch = scratch.range};
    EXPECT_OK(record_prefill(&ctx, c, &args, &tiles));
    fixture_run(f);

    fixture_read(f, &to, out.data);
    fixture_read(f, &to_scale, out.scale);
    float *state = ref_alloc_bytes(states, sizeof(float));
    fixture_read(f, &memory, state);
    if (tiles.chunk_rows != 0)
        run_again(f, &to, &to_scale, &memory, &scratch, &out, start, state);
    fixture_end(f);
    float *got = ref_alloc_bytes((size_t)c->rows * inner, sizeof(float));
    halves_unpack(&out, c->rows, got);
    uint32_t step_heads = c->checked > 1 ? (c->heads - 1) / (c->checked - 1) : 1;
    for (uint32_t h = 0; h < c->heads; h += step_heads)
        compare_head(c, exact, start, got, state, h, f->caps);
    for (size_t i = (size_t)c->rows * inner / 2; i < (size_t)c->capacity * inner / 2; i++)
        assert_memory_equal(out.data + 2 * i, &POISON, sizeof POISON);
    for (size_t i = (size_t)c->rows * (inner / block); i < (size_t)c->capacity * (inner / block);
         i++)
        assert_memory_equal(out.scale + i, &POISON, sizeof POISON);

    test_buffer *all[] = {&data, &scale, &to, &to_scale, &memory, &scratch, &decay};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        fixture_free(f, all[i]);
    halves_free(&in);
    halves_free(&out);
    free(x);
    free(exact);
    free(start);
    free(table);
    free(state);
    free(got);
    return true;
}

static void test_prefill_lengths(void **unused)
{
    (void)unused;
    static const uint32_t lengths[] = {1, 16, 31, 64, 65, 131, 300};
    double slopes[2] = {0.917, 4.9e-5};
    device_fixture f;
    fixture_open(&f, "");
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        prefill_case c = {2, 32, lengths[i], lengths[i] + 7, slopes, 1, 1, 1, false, 0, 0};
        if (!run_prefill(&f, &c, 100 + i))
            break;
        c.dim = 64;
        if (fixture_full())
            run_prefill(&f, &c, 200 + i);
    }
    fixture_close(&f);
}

static void test_prefill_magnitudes(void **unused)
{
    (void)unused;
    double slopes[3] = {0.917, 0.01, 4.9e-5};
    prefill_case c = {3, 32, 150, 150, slopes, 1, 1, 1, true, 0, 0};
    device_fixture f;
    fixture_open(&f, "");
    if (run_prefill(&f, &c, 1)) {
        static const double scales[][3] = {
            {1e-6, 1e-6, 1e-6}, {1e6, 1e6, 1e6}, {1e6, 1e-6, 1e6}, {1e-6, 1e6, 1}};
        c.wild = false;
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
            c.q_scale = scales[i][0], c.k_scale = scales[i][1], c.v_scale = scales[i][2];
            run_prefill(&f, &c, 2 + i);
        }
    }
    fixture_close(&f);
}

/* The published model's heads and slopes of its first and last lightning layers. On processors few
 * heads and tokens. */
static void test_prefill_real_size(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    bool small = device_is_cpu(f.device), full = fixture_full();
    static const uint32_t layers[] = {0, 78};
    for (size_t i = 0; i < 2; i++) {
        double all[64];
        ref_slopes(1, 64, layers[i], 80, all);
        double ends[2] = {all[0], all[63]};
        uint32_t rows = small ? (full ? 700 : 70) : (full ? 16384 : 2000);
        prefill_case c = {small ? 2 : 64, 128, rows, rows, small ? ends : all, 1, 1, 1,
                          false,          3,   0};
        if (small)
            c.checked = 0;
        if (!run_prefill(&f, &c, 300 + i))
            break;
    }
    fixture_close(&f);
}

/* ---- prefill in chunks ---- */

/* Ends within a chunk and within a block of it, one chunk, chunks without a row, single blocks. */
static void test_chunk_lengths(void **unused)
{
    (void)unused;
    static const struct {
        uint32_t rows, capacity, blocks;
    } cases[] = {{1, 300, 1},   {131, 200, 1}, {128, 128, 2}, {129, 150, 2},  {300, 310, 2},
                 {300, 300, 3}, {257, 700, 3}, {64, 64, 64},  {1000, 1003, 9}};
    double slopes[3] = {0.917, 0.01, 4.9e-5};
    device_fixture f;
    fixture_open(&f, "");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        prefill_case c = {3,     32, cases[i].rows,  cases[i].capacity, slopes, 1, 1, 1,
                          false, 0,  cases[i].blocks};
        if (!run_prefill(&f, &c, 500 + i))
            break;
        c.dim = 128;
        if (fixture_full() || cases[i].rows == 257)
            run_prefill(&f, &c, 600 + i);
    }
    fixture_close(&f);
}

static void test_chunk_magnitudes(void **unused)
{
    (void)unused;
    double slopes[3] = {0.917, 0.01, 4.9e-5};
    static const double scales[][3] = {
        {1e-6, 1e-6, 1e-6}, {1e6, 1e6, 1e6}, {1e6, 1e-6, 1e6}, {1e-6, 1e6, 1}};
    prefill_case c = {3, 32, 150, 150, slopes, 1, 1, 1, true, 0, 1};
    device_fixture f;
    fixture_open(&f, "");
    if (run_prefill(&f, &c, 11)) {
        c.wild = false;
        for (size_t i = 0; i < sizeof scales / sizeof *scales; i++) {
            c.q_scale = scales[i][0], c.k_scale = scales[i][1], c.v_scale = scales[i][2];
            run_prefill(&f, &c, 12 + i);
        }
    }
    fixture_close(&f);
}

/* A binding of 1 MiB: rows are cut, and heads whose chunks' states do not fit. */
static void test_chunk_bindings(void **unused)
{
    (void)unused;
    double slopes[8];
    ref_slopes(1, 8, 1, 8, slopes);
    prefill_case c = {8, 64, 400, 420, slopes, 1, 1, 1, false, 3, 1};
    device_fixture f;
    fixture_open(&f, "range=1048576");
    run_prefill(&f, &c, 700);
    fixture_close(&f);
}

/* Few heads are cut into chunks, unless there is little to do or tuning says that it is no gain. */
static void test_chunk_choice(void **unused)
{
    (void)unused;
    double slope = 0.003;
    prefill_case c = {1, 32, 1100, 1111, &slope, 1, 1, 1, false, 0, 0};
    device_fixture f;
    fixture_open(&f, "");
    op_context ctx = wide_half(&f);
    lightning_tiles t;
    if (lightning_tiles_choose(&ctx, c.capacity, 1, 32, &t)) {
        assert_true(t.chunk_rows >= 8 * t.block && t.chunk_rows % t.block == 0);
        assert_true(lightning_tiles_choose(&ctx, 15 * t.block, 1, 32, &t));
        assert_int_equal(t.chunk_rows, 0);
        assert_true(lightning_tiles_choose(&ctx, c.capacity, 4096, 32, &t));
        assert_int_equal(t.chunk_rows, 0);
        assert_true(run_prefill(&f, &c, 800));
        uint32_t count, i = 0;
        const tuning_field *fields = tuning_fields(&count);
        while (i < count && strcmp(fields[i].name, "lightning prefill: workgroups") != 0)
            i++;
        assert_true(i < count);
        uint32_t before = tuning_get(f.device, &fields[i]);
        tuning_set(f.device, &fields[i], 1);
        assert_true(lightning_tiles_choose(&ctx, c.capacity, 1, 32, &t));
        assert_int_equal(t.chunk_rows, 0);
        tuning_set(f.device, &fields[i], 512);
        assert_true(lightning_tiles_choose(&ctx, 512 * t.block, 16, 32, &t));
        assert_true(t.chunk_rows != 0);
        tuning_set(f.device, &fields[i], before);
    }
    fixture_close(&f);
}

/* ---- the gated norm ---- */

static void test_gated_norm(void **unused)
{
    (void)unused;
    static const uint32_t dims[][3] = {{128, 16, 32}, {384, 32, 128}, {8192, 64, 128}}; /* blocks */
    enum { ROWS = 5, CAPACITY = 7 };
    device_fixture f;
    fixture_open(&f, "");
    for (size_t n = 0; n < sizeof dims / sizeof *dims; n++) {
        uint32_t dim = dims[n][0], wide = 4 * dim;
        op_context ctx = wide_half(&f);
        if (!op_gated_norm_blocks_usable(&ctx, dim))
            continue;
        halves o = halves_make(CAPACITY, dim, dims[n][1]);
        halves gate = halves_make(CAPACITY, wide, dims[n][2]);
        float *x = ref_alloc_bytes((size_t)ROWS * wide, sizeof(float));
        double *o64 = ref_alloc((size_t)ROWS * dim), *all = ref_alloc((size_t)ROWS * wide);
        double *want = ref_alloc((size_t)ROWS * dim);
        float *weight = ref_alloc_bytes(dim, sizeof(float));
        rng r = rng_seed(40 + n);
        memset(o.data, 0xff, (size_t)CAPACITY * dim * 2);
        memset(gate.data, 0xff, (size_t)CAPACITY * wide * 2);
        for (uint32_t t = 0; t < ROWS; t++)
            rng_fill_normal(&r, x + (size_t)t * dim, dim, pow(10, 3.0 * t - 6));
        halves_pack(&o, ROWS, x, o64);
        rng_fill_uniform(&r, x, (size_t)ROWS * wide, 0, 1);
        halves_pack(&gate, ROWS, x, all);
        rng_fill_normal(&r, weight, dim, 1.0);
        ref_gated_norm(ROWS, dim, o64, all + 3 * dim, wide, 1, weight, 1e-6, want);

        test_buffer buffers[] = {
            fixture_buffer(&f, (uint64_t)CAPACITY * dim * 2, o.data),
            fixture_buffer(&f, (uint64_t)CAPACITY * (dim / o.block) * 4, o.scale),
            fixture_buffer(&f, (uint64_t)CAPACITY * wide * 2, gate.data),
            fixture_buffer(&f, (uint64_t)CAPACITY * (wide / gate.block) * 4, gate.scale),
            fixture_buffer(&f, (uint64_t)dim * 4, weight),
            fixture_buffer(&f, (uint64_t)CAPACITY * dim * 2, NULL),
            fixture_buffer(&f, (uint64_t)CAPACITY * 4, NULL)};
        step_params step = {.n_rows = ROWS};
        ctx = fixture_begin(&f, &step, true);
        ctx.shape = OP_SHAPE_WIDE;
        op_gated_norm_args args = {
            .gate_offset = 3 * dim,
            .weight = buffers[4].range,
            .eps = 1e-6f,
            .dim = dim,
            .rows = CAPACITY,
            .out = {buffers[5].range, buffers[6].range, dim, dim, true},
            .o_blocks = {buffers[0].range, buffers[1].range, dim, o.block},
            .gate_blocks = {buffers[2].range, buffers[3].range, wide, gate.block}};
        EXPECT_OK(op_gated_norm(&ctx, &args));
        fixture_run(&f);
        fixture_end(&f);
        halves out = halves_make(CAPACITY, dim, dim);
        fixture_read(&f, &buffers[5], out.data);
        fixture_read(&f, &buffers[6], out.scale);
        float *got = ref_alloc_bytes((size_t)ROWS * dim, sizeof(float));
        halves_unpack(&out, ROWS, got);
        for (uint32_t t = 0; t < ROWS; t++)
            EXPECT_ERROR_BELOW(
                max_rel_error_f32(got + (size_t)t * dim, want + (size_t)t * dim, dim), 6e-4,
                "gated norm of halves, row %u of %u", t, dim);
        assert_memory_equal(out.data + (size_t)ROWS * dim, &POISON, sizeof POISON);
        assert_memory_equal(out.scale + ROWS, &POISON, sizeof POISON);
        for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
            fixture_free(&f, &buffers[i]);
        halves_free(&o);
        halves_free(&gate);
        halves_free(&out);
        free(x);
        free(o64);
        free(all);
        free(want);
        free(weight);
        free(got);
    }
    fixture_close(&f);
}

/* ---- decode of several sequences ---- */

static void run_decode(device_fixture *f, op_shape shape, uint32_t sequences, uint32_t heads,
                       uint32_t dim)
{
    enum { STEPS = 3 };
    uint32_t inner = heads * dim, stride = 3 * inner + 64;
    size_t states = (size_t)inner * dim;
    double slopes[64];
    ref_slopes(1, heads, 3, 8, slopes);
    rng r = rng_seed(7 * sequences + dim);
    float *qkv = ref_alloc_bytes((size_t)STEPS * sequences * stride, sizeof(float));
    double *qkv64 = ref_alloc((size_t)STEPS * sequences * stride);
    float *state = ref_alloc_bytes(sequences * states, sizeof(float));
    double *state64 = ref_alloc(sequences * states), *want = ref_alloc((size_t)sequences * inner);
    rng_fill_normal_both(&r, qkv, qkv64, (size_t)STEPS * sequences * stride, 1.0);
    rng_fill_normal_both(&r, state, state64, sequences * states, 1.0);
    uint64_t decay_bytes = op_lightning_decay_bytes(f->device, heads, dim);
    void *table = ref_alloc_bytes(1, (size_t)decay_bytes);
    op_lightning_decay_fill(f->device, heads, dim, slopes, table);
    test_buffer in = fixture_buffer(f, (uint64_t)sequences * stride * 4, qkv);
    test_buffer memory = fixture_buffer(f, sequences * states * 4, state);
    test_buffer out = fixture_buffer(f, (uint64_t)sequences * inner * 4, NULL);
    test_buffer decay = fixture_buffer(f, decay_bytes, table);
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(f, &step, false);
    ctx.shape = shape;
    op_lightning_args args = {.qkv = in.range,
                              .qkv_stride = stride,
                              .heads = heads,
                              .head_dim = dim,
                              .rows = 1,
                              .sequences = sequences,
                              .decay = decay.range,
                              .state = memory.range,
                              .out = out.range};
    EXPECT_OK(op_lightning_decode(&ctx, &args));
    float *got = ref_alloc_bytes((size_t)sequences * inner, sizeof(float));
    for (uint32_t n = 0; n < STEPS; n++) {
        size_t at = (size_t)n * sequences * stride;
        fixture_fill(f, &in, qkv + at);
        fixture_fill(f, &out, NULL);
        fixture_run(f);
        for (uint32_t s = 0; s < sequences; s++)
            ref_lightning(1, heads, dim, qkv64 + at + (size_t)s * stride, stride, slopes,
                          state64 + s * states, want + (size_t)s * inner);
        fixture_read(f, &out, got);
        EXPECT_ERROR_BELOW(max_rel_error_f32(got, want, (size_t)sequences * inner), 1e-5,
                           "decode of %u sequences, %u heads x %u, caps \"%s\"", sequences, heads,
                           dim, f->caps);
    }
    fixture_end(f);
    fixture_read(f, &memory, state);
    EXPECT_ERROR_BELOW(max_rel_error_f32(state, state64, sequences * states), 1e-5,
                       "states of %u sequences, %u heads x %u, caps \"%s\"", sequences, heads, dim,
                       f->caps);
    fixture_free(f, &in);
    fixture_free(f, &memory);
    fixture_free(f, &out);
    fixture_free(f, &decay);
    free(qkv);
    free(qkv64);
    free(state);
    free(state64);
    free(want);
    free(table);
    free(got);
}

static void test_decode_sequences(void **unused)
{
    (void)unused;
    for (size_t i = 0; fixture_masks[i]; i++) {
        if (!fixture_full() && i > 0 && fixture_masks[i + 1])
            continue;
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        for (int shape = OP_SHAPE_NARROW; shape <= OP_SHAPE_WIDE; shape++) {
            run_decode(&f, (op_shape)shape, 1, 3, 48);
            run_decode(&f, (op_shape)shape, 5, 2, 64);
            run_decode(&f, (op_shape)shape, 7, 3, 128); /* more than 1 MiB of states */
            if (fixture_full())
                run_decode(&f, (op_shape)shape, 256, 2, 16);
        }
        fixture_close(&f);
    }
}

static void test_bad_arguments(void **unused)
{
    (void)unused;
    device_fixture f;
    fixture_open(&f, "");
    test_buffer b = fixture_buffer(&f, 1 << 16, NULL);
    step_params step = {.n_rows = 1};
    op_context ctx = fixture_begin(&f, &step, true);
    op_lightning_args args = {.qkv = b.range,
                              .qkv_stride = 96,
                              .heads = 1,
                              .head_dim = 32,
                              .rows = 1,
                              .sequences = 17,
                              .decay = b.range,
                              .state = b.range,
                              .out = b.range,
                              .scratch = b.range};
    assert_int_equal(op_lightning_decode(&ctx, &args), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "a state of 65536 bytes, 69632 needed"));
    args.sequences = 2;
    assert_int_equal(op_lightning_prefill(&ctx, &args), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "one sequence"));
    fixture_end(&f);
    fixture_free(&f, &b);
    fixture_close(&f);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_prefill_lengths),   cmocka_unit_test(test_prefill_magnitudes),
        cmocka_unit_test(test_prefill_real_size), cmocka_unit_test(test_chunk_lengths),
        cmocka_unit_test(test_chunk_magnitudes),  cmocka_unit_test(test_chunk_bindings),
        cmocka_unit_test(test_chunk_choice),      cmocka_unit_test(test_gated_norm),
        cmocka_unit_test(test_decode_sequences),  cmocka_unit_test(test_bad_arguments),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
