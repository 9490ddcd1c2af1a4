/* Routing and mixture of experts on the device against the double-precision references: every
 * variant, capability mask, windowing and skew of the routing. */
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

enum { UNTOUCHED = 0x7fc0dead };

typedef enum routing {
    ROUTING_EVEN,  /* any experts */
    ROUTING_ONE,   /* every row's best expert is the last one */
    ROUTING_HOLES, /* low experts often, the highest never */
    ROUTING_COUNT
} routing;

typedef struct shape {
    uint32_t rows, experts, top_k, dim, width;
} shape;

typedef struct variant {
    ful_type type;
    op_shape shape;
    bool half;
    routing routing;
    uint32_t n_rows;  /* real rows; 0 = all */
    double x_scale;   /* of odd rows; even ones have 1 / x_scale */
    double row_scale; /* of every seventh weight row */
} variant;

/* Everything of one mixture: inputs, the reference's output, device copies. */
typedef struct problem {
    shape s;
    variant v;
    float *w13, *w2;  /* as stored */
    float *x;         /* [rows][dim] as the device sees it */
    uint16_t *x_half; /* packed, stride x_stride */
    float *x_half_scale;
    uint32_t x_stride;
    uint32_t *experts; /* [rows][top_k] */
    float *weights;
    double *want;
    gpu_tensor t13, t2;
    test_buffer bx, bscale, broutes, bout, bscratch;
    op_moe_args args;
} problem;

static void *take(size_t count, size_t size)
{
    return ref_alloc_bytes(count, size);
}

static void routes_make(problem *p, rng *r)
{
    const shape *s = &p->s;
    p->experts = take((size_t)s->rows * s->top_k, 4);
    p->weights = take((size_t)s->rows * s->top_k, 4);
    uint32_t span = s->experts;
    if (p->v.routing == ROUTING_HOLES && s->experts > s->top_k)
        span = s->experts - 1;
    for (uint32_t row = 0; row < s->rows; row++) {
        uint32_t *e = p->experts + (size_t)row * s->top_k;
        float sum = 0.0f;
        for (uint32_t k = 0; k < s->top_k; k++) {
            bool taken;
            do {
                e[k] = rng_below(r, span);
                if (p->v.routing == ROUTING_HOLES)
                    e[k] = rng_below(r, e[k] + 1);
                if (p->v.routing == ROUTING_ONE && k == 0)
                    e[k] = s->experts - 1;
                taken = false;
                for (uint32_t j = 0; j < k; j++)
                    taken = taken || e[j] == e[k];
            } while (taken);
            float w = (float)(0.1 + rng_uniform(r));
            p->weights[(size_t)row * s->top_k + k] = w;
            sum += w;
        }
        for (uint32_t k = 0; k < s->top_k; k++)
            p->weights[(size_t)row * s->top_k + k] /= sum;
    }
}

static void x_make(problem *p, rng *r)
{
    const shape *s = &p->s;
    p->x = take((size_t)s->rows * s->dim, 4);
    rng_fill_normal(r, p->x, (size_t)s->rows * s->dim, 1.0);
    p->x_stride = s->dim;
    for (uint32_t row = 0; row < s->rows; row++)
        for (uint32_t i = 0; i < s->dim; i++)
            p->x[(size_t)row * s->dim + i] *= (float)(row % 2 ? p->v.x_scale : 1.0 / p->v.x_scale);
    if (!p->v.half)
        return;
    p->x_stride = (s->dim + 7) / 8 * 8;
    p->x_half = take((size_t)s->rows * p->x_stride, 2);
    p->x_half_scale = take(s->rows, 4);
    for (uint32_t row = 0; row < s->rows; row++) {
        float *x = p->x + (size_t)row * s->dim;
        float top = 0.0f;
        for (uint32_t i = 0; i < s->dim; i++)
            top = fmaxf(top, fabsf(x[i]));
        int e;
        (void)frexpf(top, &e); /* top in [2^(e-1), 2^e) */
        p->x_half_scale[row] = ldexpf(1.0f, e - 14);
        for (uint32_t i = 0; i < p->x_stride; i++) {
            /* What lies behind the last column must not be read. */
            uint16_t h = i < s->dim ? f16_from_f32(ldexpf(x[i], 14 - e)) : 0x7e00;
            p->x_half[(size_t)row * p->x_stride + i] = h;
            if (i < s->dim)
                x[i] = f32_from_f16(h) * p->x_half_scale[row];
        }
    }
}

static void weights_make(problem *p, rng *r, device_fixture *f)
{
    const shape *s = &p->s;
    size_t n13 = (size_t)s->experts * 2 * s->width * s->dim;
    size_t n2 = (size_t)s->experts * s->dim * s->width;
    float *values = take(n13 > n2 ? n13 : n2, 4);
    p->w13 = take(n13, 4);
    p->w2 = take(n2, 4);
    rng_fill_normal(r, values, n13, 1.0 / sqrt(s->dim));
    for (size_t i = 0; i < n13; i++)
        values[i] *= i / s->dim % 7 == 3 ? (float)p->v.row_scale : 1.0f;
    p->t13 = fixture_tensor(f, p->v.type, s->experts, 2 * s->width, s->dim, values, p->w13);
    rng_fill_normal(r, values, n2, 1.0 / sqrt(s->width));
    for (size_t i = 0; i < n2; i++)
        values[i] *= i / s->width % 7 == 3 ? (float)p->v.row_scale : 1.0f;
    p->t2 = fixture_tensor(f, p->v.type, s->experts, s->dim, s->width, values, p->w2);
    free(values);
}

static void reference(problem *p)
{
    const shape *s = &p->s;
    size_t block = (size_t)s->width * s->dim;
    float *w1 = take(s->experts * block, 4), *w3 = take(s->experts * block, 4);
    ref_expert *experts = take(s->experts, sizeof *experts);
    for (uint32_t e = 0; e < s->experts; e++) {
        for (uint32_t i = 0; i < s->width; i++) {
            const float *pair = p->w13 + ((size_t)e * 2 * s->width + 2 * i) * s->dim;
            memcpy(w1 + e * block + (size_t)i * s->dim, pair, s->dim * sizeof(float));
            memcpy(w3 + e * block + (size_t)i * s->dim, pair + s->dim, s->dim * sizeof(float));
        }
        experts[e] = (ref_expert){w1 + e * block, w3 + e * block, p->w2 + e * block};
    }
    double *x = ref_alloc((size_t)s->rows * s->dim);
    double *weights = ref_alloc((size_t)s->rows * s->top_k);
    ref_from_f32(p->x, x, (size_t)s->rows * s->dim);
    ref_from_f32(p->weights, weights, (size_t)s->rows * s->top_k);
    p->want = ref_alloc((size_t)s->rows * s->dim);
    ref_moe(s->rows, s->dim, s->width, s->top_k, x, experts, p->experts, weights, p->want);
    free(x);
    free(weights);
    free(w1);
    free(w3);
    free(experts);
}

static void routes_upload(const problem *p, device_fixture *f, const test_buffer *to)
{
    size_t pairs = (size_t)p->s.rows * p->s.top_k;
    uint32_t *words = take(pairs, 8);
    for (size_t i = 0; i < pairs; i++) {
        words[2 * i] = p->experts[i];
        memcpy(&words[2 * i + 1], &p->weights[i], 4);
    }
    fixture_fill(f, to, words);
    free(words);
}

static op_context context(device_fixture *f, const problem *p)
{
    step_params step = {.n_rows = p->v.n_rows ? p->v.n_rows : p->s.rows};
    op_context ctx = fixture_begin(f, &step, p->v.half);
    ctx.shape = p->v.shape;
    return ctx;
}

static void problem_make(problem *p, device_fixture *f, const shape *s, const variant *v,
                         uint64_t seed)
{
    memset(p, 0, sizeof *p);
    p->s = *s;
    p->v = *v;
    if (p->v.x_scale == 0.0)
        p->v.x_scale = 1.0;
    if (p->v.row_scale == 0.0)
        p->v.row_scale = 1.0;
    rng r = rng_seed(seed);
    routes_make(p, &r);
    x_make(p, &r);
    weights_make(p, &r, f);
    reference(p);

    size_t pairs = (size_t)s->rows * s->top_k;
    p->broutes = fixture_buffer(f, pairs * 8, NULL);
    routes_upload(p, f, &p->broutes);
    if (v->half) {
        /* Whole words: the device reads halves two at a time. */
        p->bx = fixture_buffer(f, (size_t)s->rows * p->x_stride * 2, p->x_half);
        p->bscale = fixture_buffer(f, (size_t)s->rows * 4, p->x_half_scale);
    } else {
        p->bx = fixture_buffer(f, (size_t)s->rows * s->dim * 4, p->x);
    }
    p->bout = fixture_buffer(f, (size_t)s->rows * s->dim * 4, NULL);
    op_context ctx = {.device = f->device, .half = v->half, .shape = v->shape};
    /* Another NaN than the outputs hold: a processor hands on its bits. */
    uint64_t bytes = op_moe_scratch_bytes(&ctx, s->rows, s->top_k, s->experts, s->dim, s->width);
    uint32_t *words = take(bytes / 4, 4);
    for (uint64_t i = 0; i < bytes / 4; i++)
        words[i] = 0x7fc0f00d;
    p->bscratch = fixture_buffer(f, bytes, words);
    free(words);
    p->args = (op_moe_args){.x = {.data = p->bx.range,
                                  .scale = p->bscale.range,
                                  .dim = s->dim,
                                  .stride = p->x_stride,
                                  .half = v->half},
                            .routes = p->broutes.range,
                            .w13 = &p->t13,
                            .w2 = &p->t2,
                            .top_k = s->top_k,
                            .rows = s->rows,
                            .out = p->bout.range,
                            .scratch = p->bscratch.range};
}

static void problem_free(problem *p, device_fixture *f)
{
    fixture_tensor_free(f, &p->t13);
    fixture_tensor_free(f, &p->t2);
    fixture_free(f, &p->bx);
    if (p->v.half)
        fixture_free(f, &p->bscale);
    fixture_free(f, &p->broutes);
    fixture_free(f, &p->bout);
    fixture_free(f, &p->bscratch);
    free(p->w13);
    free(p->w2);
    free(p->x);
    free(p->x_half);
    free(p->x_half_scale);
    free(p->experts);
    free(p->weights);
    free(p->want);
}

/* Rows may differ by many orders of magnitude: each is measured by itself. */
static double worst_row(const problem *p, const float *got, uint32_t rows)
{
    double worst = 0.0;
    for (uint32_t r = 0; r < rows; r++) {
        double e =
            max_rel_error_f32(got + (size_t)r * p->s.dim, p->want + (size_t)r * p->s.dim, p->s.dim);
        worst = e > worst ? e : worst;
    }
    return worst;
}

static float *run_once(problem *p, device_fixture *f)
{
    float *got = take((size_t)p->s.rows * p->s.dim, 4);
    fixture_fill(f, &p->bout, NULL);
    op_context ctx = context(f, p);
    EXPECT_OK(op_moe(&ctx, &p->args));
    fixture_run(f);
    fixture_read(f, &p->bout, got);
    fixture_end(f);
    /* Scratch has guards, too. */
    void *scratch = take(p->bscratch.bytes, 1);
    fixture_read(f, &p->bscratch, scratch);
    free(scratch);
    return got;
}

static void check_case(device_fixture *f, const shape *s, const variant *v, uint64_t seed)
{
    problem p;
    problem_make(&p, f, s, v, seed);
    float *got = run_once(&p, f);
    uint32_t rows = v->n_rows ? v->n_rows : s->rows;
    EXPECT_ERROR_BELOW(
        worst_row(&p, got, rows),
        v->half                   ? 2e-3
        : type_is_blocks(v->type) ? 1e-5
                                  : 5e-6,
        "moe rows %u of %u experts %u top_k %u dim %u width %u %s %s%s routing %d caps "
        "'%s' seed %llu",
        (unsigned)rows, (unsigned)s->rows, (unsigned)s->experts, (unsigned)s->top_k,
        (unsigned)s->dim, (unsigned)s->width, ful_type_name(v->type),
        v->shape == OP_SHAPE_WIDE ? "wide" : "narrow", v->half ? " half" : "", (int)v->routing,
        f->caps, (unsigned long long)seed);
    for (size_t i = (size_t)rows * s->dim; i < (size_t)s->rows * s->dim; i++) {
        uint32_t bits;
        memcpy(&bits, &got[i], 4);
        if (bits != UNTOUCHED)
            fail_msg("row %zu beyond the %u real ones was written", i / s->dim, (unsigned)rows);
    }
    free(got);
    problem_free(&p, f);
}

static const shape small_shapes[] = {
    {1, 1, 1, 16, 16},   {1, 8, 2, 48, 40},     {2, 8, 2, 37, 23},   {2, 2, 2, 64, 48},
    {8, 5, 3, 40, 33},   {8, 32, 2, 64, 32},    {15, 8, 2, 48, 40},  {16, 2, 1, 37, 23},
    {17, 32, 4, 64, 72}, {17, 300, 2, 24, 16},  {255, 8, 2, 37, 40}, {256, 5, 2, 64, 32},
    {257, 1, 1, 48, 23}, {257, 300, 3, 20, 12},
};
enum { SMALL_SHAPES = sizeof small_shapes / sizeof small_shapes[0] };

static const ful_type types[] = {FUL_TYPE_F32, FUL_TYPE_F16, FUL_TYPE_BF16};

/* Walks the variants so that shapes meet all of them in turn, every third shape under one mask;
 * with FULGUR_TEST_LEVEL=full all with all. */
static void for_variants(device_fixture *f, const shape *shapes, uint32_t count, uint32_t offset)
{
    bool can_half = op_half_usable(f->device);
    for (uint32_t i = fixture_full() || count < 3 ? 0 : offset % 3; i < count;
         i += fixture_full() ? 1 : 3) {
        uint32_t all = 3 * 2 * 2 * ROUTING_COUNT;
        uint32_t step = fixture_full() ? 1 : 11; /* no common factor with `all` */
        for (uint32_t j = fixture_full() ? 0 : (i + offset) % 11; j < all; j += step) {
            variant v = {.type = types[j % 3],
                         .shape = j / 3 % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW,
                         .half = j / 6 % 2 != 0,
                         .routing = (routing)(j / 12 % ROUTING_COUNT)};
            if (v.half && !can_half)
                continue;
            check_case(f, &shapes[i], &v, 1000 * i + j);
        }
    }
}

static void test_all_masks(void **state)
{
    (void)state;
    for (uint32_t m = 0; fixture_masks[m] != NULL; m++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[m]);
        for_variants(&f, small_shapes, SMALL_SHAPES, m);
        fixture_close(&f);
    }
}

/* Every matrix kernel that the device can run, each chosen as tuning would; whole tiles and others.
 */
static void test_candidates(void **state)
{
    (void)state;
    static const shape shapes[] = {{300, 4, 2, 512, 512}, {120, 8, 2, 520, 264}};
    device_fixture f;
    fixture_open(&f, "");
    op_context ctx = fixture_begin(&f, &(step_params){.n_rows = 1}, true);
    uint32_t codes[32], count = tiles_candidates(&ctx, codes, 32), fields_count;
    const tuning_field *fields = tuning_fields(&fields_count);
    fixture_end(&f);
    for (uint32_t i = 0; i <= count; i++) {
        for (uint32_t j = 0; j < fields_count; j++)
            if (strncmp(fields[j].name, "expert tile", 11) == 0)
                tuning_set(f.device, &fields[j], i < count ? codes[i] : 0);
        bool subgroups = i < count && codes[i] >> 28 == TILE_KIND_SUBGROUP;
        for (uint32_t j = 0; j < 4 && i < count; j++) {
            if (subgroups && !fixture_full() && j != i % 4)
                continue;
            variant v = {.type = j == 3 ? FUL_TYPE_BF16 : FUL_TYPE_F16,
                         .shape = OP_SHAPE_WIDE,
                         .half = true,
                         .routing = (routing)(j % ROUTING_COUNT)};
            check_case(&f, &shapes[j % 2], &v, 50 + j);
        }
    }
    fixture_close(&f);
    if (count == 0 || codes[count - 1] >> 28 != TILE_KIND_WORKGROUP)
        print_message("no tiles of whole workgroups: the device has no cooperative matrices of "
                      "workgroup scope\n");
}

/* Many rows: parts of rows where the binding is small. */
static void test_long(void **state)
{
    (void)state;
    static const shape s = {4097, 8, 2, 48, 40};
    static const char *const masks[] = {"", "range=1048576"};
    for (uint32_t m = 0; m < 2; m++) {
        device_fixture f;
        fixture_open(&f, masks[m]);
        for_variants(&f, &s, 1, m);
        fixture_close(&f);
    }
}

/* Tensors beyond one binding: windows of whole experts, and of parts of one. */
static void test_windows(void **state)
{
    (void)state;
    static const shape shapes[] = {
        {1, 40, 2, 96, 128},  {17, 40, 2, 96, 128}, {5, 3, 2, 320, 450},
        {33, 3, 2, 320, 450}, {2, 2, 2, 1040, 272}, {40, 2, 1, 1040, 272},
    };
    device_fixture f;
    fixture_open(&f, "range=1048576");
    for (uint32_t i = 0; i < 6; i++) {
        for (uint32_t j = 0; j < 4; j++) {
            variant v = {.type = j < 2 ? FUL_TYPE_F32 : FUL_TYPE_BF16,
                         .shape = j % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW,
                         .half = j == 3 && op_half_usable(f.device)};
            problem p;
            problem_make(&p, &f, &shapes[i], &v, i);
            if (j < 2)
                assert_true(p.t13.window_count > 1);
            if (j < 2 && i >= 4)
                assert_true(p.t2.window_count > p.t2.experts);
            problem_free(&p, &f);
            check_case(&f, &shapes[i], &v, i);
        }
    }
    fixture_close(&f);
}

/* Recordings serve fewer rows than they were made for, and leave the others alone. */
static void test_fewer_rows(void **state)
{
    (void)state;
    static const shape s[] = {
        {2, 5, 2, 48, 40}, {8, 5, 2, 48, 40}, {64, 8, 2, 48, 40}, {512, 5, 2, 48, 40}};
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 4; i++) {
        const uint32_t real[] = {1, s[i].rows / 2 + 1, s[i].rows - 1};
        for (uint32_t j = 0; j < 12; j++) {
            variant v = {.shape = j % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW,
                         .type = FUL_TYPE_BF16,
                         .half = j / 6 != 0 && op_half_usable(f.device),
                         .n_rows = real[j / 2 % 3]};
            check_case(&f, &s[i], &v, j);
        }
    }
    fixture_close(&f);
}

static void test_magnitudes(void **state)
{
    (void)state;
    static const shape s[] = {{7, 5, 2, 48, 40}, {70, 5, 2, 48, 40}};
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 2; i++) {
        for (uint32_t j = 0; j < 8; j++) {
            variant v = {.shape = j % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW,
                         .type = j / 4 ? FUL_TYPE_F32 : FUL_TYPE_BF16,
                         .half = j / 2 % 2 != 0,
                         .x_scale = 1e9,
                         .row_scale = 3e5};
            if (!v.half || op_half_usable(f.device))
                check_case(&f, &s[i], &v, j);
        }
    }
    fixture_close(&f);
}

static void test_same_bits(void **state)
{
    (void)state;
    static const shape s[] = {{1, 8, 2, 96, 64}, {8, 5, 3, 96, 64}, {100, 8, 2, 96, 64}};
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 6; i++) {
        variant v = {.shape = i % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, .type = FUL_TYPE_BF16};
        problem p;
        problem_make(&p, &f, &s[i / 2], &v, i);
        float *first = run_once(&p, &f), *again = take(p.bout.bytes, 1);
        op_context ctx = context(&f, &p);
        EXPECT_OK(op_moe(&ctx, &p.args));
        for (uint32_t n = 0; n < 50; n++) {
            fixture_fill(&f, &p.bout, NULL);
            fixture_run(&f);
            fixture_read(&f, &p.bout, again);
            assert_memory_equal(first, again, p.bout.bytes);
        }
        fixture_end(&f);
        free(first);
        free(again);
        problem_free(&p, &f);
    }
    fixture_close(&f);
}

/* Experts in another order, and the routes with them: the same bits. */
static void test_permuted_experts(void **state)
{
    (void)state;
    static const shape s[] = {{2, 8, 2, 48, 40}, {8, 8, 2, 48, 40}, {90, 8, 2, 48, 40}};
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 6; i++) {
        variant v = {.shape = i % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, .type = FUL_TYPE_F32};
        problem p;
        problem_make(&p, &f, &s[i / 2], &v, i);
        float *first = run_once(&p, &f);
        uint32_t experts = p.s.experts;
        size_t n13 = (size_t)2 * p.s.width * p.s.dim, n2 = (size_t)p.s.width * p.s.dim;
        float *w13 = take(experts * n13, 4), *w2 = take(experts * n2, 4);
        for (uint32_t e = 0; e < experts; e++) {
            uint32_t to = (e * 3 + 5) % experts;
            memcpy(w13 + to * n13, p.w13 + e * n13, n13 * 4);
            memcpy(w2 + to * n2, p.w2 + e * n2, n2 * 4);
        }
        fixture_tensor_free(&f, &p.t13);
        fixture_tensor_free(&f, &p.t2);
        p.t13 = fixture_tensor(&f, FUL_TYPE_F32, experts, 2 * p.s.width, p.s.dim, w13, NULL);
        p.t2 = fixture_tensor(&f, FUL_TYPE_F32, experts, p.s.dim, p.s.width, w2, NULL);
        for (uint32_t j = 0; j < p.s.rows * p.s.top_k; j++)
            p.experts[j] = (p.experts[j] * 3 + 5) % experts;
        routes_upload(&p, &f, &p.broutes);
        float *moved = run_once(&p, &f);
        assert_memory_equal(first, moved, p.bout.bytes);
        free(first);
        free(moved);
        free(w13);
        free(w2);
        problem_free(&p, &f);
    }
    fixture_close(&f);
}

/* A NaN weight reaches its row's output and no other. */
static void test_nan_weight(void **state)
{
    (void)state;
    static const shape s[] = {{1, 8, 2, 48, 40}, {6, 8, 2, 48, 40}, {40, 8, 2, 48, 40}};
    device_fixture f;
    fixture_open(&f, "");
    for (uint32_t i = 0; i < 6; i++) {
        variant v = {.shape = i % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW, .type = FUL_TYPE_F32};
        problem p;
        problem_make(&p, &f, &s[i / 2], &v, i);
        uint32_t bad = p.s.rows / 2;
        p.weights[bad * p.s.top_k + 1] = NAN;
        routes_upload(&p, &f, &p.broutes);
        float *got = run_once(&p, &f);
        for (uint32_t r = 0; r < p.s.rows; r++)
            for (uint32_t c = 0; c < p.s.dim; c++)
                assert_int_equal(!isfinite(got[r * p.s.dim + c]), r == bad);
        free(got);
        problem_free(&p, &f);
    }
    fixture_close(&f);
}

static void test_refusals(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "range=1048576");
    variant v = {.type = FUL_TYPE_F32, .shape = OP_SHAPE_WIDE};
    problem p;
    problem_make(&p, &f, &(shape){9, 4, 2, 48, 40}, &v, 1);
    op_context ctx = context(&f, &p);
    op_moe_args args = p.args;
    args.top_k = 5;
    assert_int_equal(op_moe(&ctx, &args), FUL_ERR_ARGUMENT);
    args = p.args;
    args.w2 = &p.t13;
    assert_int_equal(op_moe(&ctx, &args), FUL_ERR_ARGUMENT);
    args = p.args;
    args.scratch.bytes -= 256;
    assert_int_equal(op_moe(&ctx, &args), FUL_ERR_ARGUMENT);
    fixture_end(&f);
    problem_free(&p, &f);
    fixture_close(&f);
}

/* ---- routing ---- */

typedef struct route_case {
    uint32_t rows, experts, top_k;
} route_case;

static void route_run(device_fixture *f, const route_case *c, op_shape shape_, uint32_t n_rows,
                      const float *logits, uint32_t *routes)
{
    test_buffer in = fixture_buffer(f, (uint64_t)c->rows * c->experts * 4, logits);
    test_buffer out = fixture_buffer(f, (uint64_t)c->rows * c->top_k * 8, NULL);
    step_params step = {.n_rows = n_rows};
    op_context ctx = fixture_begin(f, &step, false);
    ctx.shape = shape_;
    op_route_args args = {in.range, c->experts, c->top_k, c->rows, out.range};
    EXPECT_OK(op_route(&ctx, &args));
    fixture_run(f);
    fixture_read(f, &out, routes);
    fixture_end(f);
    fixture_free(f, &in);
    fixture_free(f, &out);
}

static void route_check(device_fixture *f, const route_case *c, op_shape shape_, uint64_t seed)
{
    rng r = rng_seed(seed);
    size_t n = (size_t)c->rows * c->experts, pairs = (size_t)c->rows * c->top_k;
    float *logits = take(n, 4);
    double *exact = ref_alloc(n), *weights = ref_alloc(pairs);
    uint32_t *indices = take(pairs, 4), *routes = take(pairs, 8);
    /* Every other row has many equal logits, zeros of both signs among them. */
    for (size_t i = 0; i < n; i++) {
        double x = 3.0 * rng_normal(&r);
        logits[i] = i / c->experts % 2 ? (float)(round(x) / 2.0) : (float)x;
    }
    ref_from_f32(logits, exact, n);
    ref_route_logits(c->rows, c->experts, c->top_k, exact, indices, weights, NULL);
    uint32_t real = c->rows > 3 ? c->rows - 2 : c->rows;
    route_run(f, c, shape_, real, logits, routes);
    for (size_t i = 0; i < pairs; i++) {
        float w;
        memcpy(&w, &routes[2 * i + 1], 4);
        if (i / c->top_k >= real) {
            assert_int_equal(routes[2 * i], UNTOUCHED);
            assert_int_equal(routes[2 * i + 1], UNTOUCHED);
            continue;
        }
        if (routes[2 * i] != indices[i])
            fail_msg(
                "route rows %u experts %u top_k %u caps '%s' seed %llu: pair %zu has expert %u, "
                "not %u",
                (unsigned)c->rows, (unsigned)c->experts, (unsigned)c->top_k, f->caps,
                (unsigned long long)seed, i, (unsigned)routes[2 * i], (unsigned)indices[i]);
        EXPECT_ERROR_BELOW(fabs((double)w - weights[i]), 1e-6,
                           "route weight of pair %zu, seed %llu", i, (unsigned long long)seed);
    }
    free(logits);
    free(exact);
    free(weights);
    free(indices);
    free(routes);
}

static const route_case route_cases[] = {
    {1, 1, 1},    {1, 8, 2},    {2, 2, 2},    {8, 5, 5},    {15, 32, 2},   {16, 8, 2},
    {17, 300, 9}, {255, 64, 8}, {257, 65, 3}, {33, 300, 1}, {3, 3000, 17}, {4097, 300, 2},
};

static void test_route(void **state)
{
    (void)state;
    for (uint32_t m = 0; fixture_masks[m] != NULL; m++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[m]);
        for (uint32_t i = 0; i < sizeof route_cases / sizeof route_cases[0]; i++) {
            route_check(&f, &route_cases[i], OP_SHAPE_NARROW, i);
            route_check(&f, &route_cases[i], OP_SHAPE_WIDE, i + 100);
        }
        fixture_close(&f);
    }
}

static void test_route_not_finite(void **state)
{
    (void)state;
    device_fixture f;
    fixture_open(&f, "");
    static const route_case c = {6, 7, 3};
    for (uint32_t shape_ = OP_SHAPE_NARROW; shape_ <= OP_SHAPE_WIDE; shape_++) {
        float logits[6 * 7];
        uint32_t routes[6 * 3 * 2];
        for (uint32_t i = 0; i < 6 * 7; i++)
            logits[i] = (float)(i % 5);
        logits[1 * 7 + 4] = NAN;
        logits[2 * 7 + 6] = -NAN;
        logits[3 * 7 + 0] = INFINITY;
        for (uint32_t i = 0; i < 7; i++)
            logits[4 * 7 + i] = i % 2 ? NAN : -INFINITY;
        logits[5 * 7 + 2] = -INFINITY;
        route_run(&f, &c, (op_shape)shape_, 6, logits, routes);
        for (uint32_t row = 0; row < 6; row++) {
            for (uint32_t k = 0; k < 3; k++) {
                float w;
                memcpy(&w, &routes[(row * 3 + k) * 2 + 1], 4);
                assert_true(routes[(row * 3 + k) * 2] < 7);
                assert_int_equal(isnan(w) != 0, row >= 1 && row <= 4);
            }
        }
    }
    fixture_close(&f);
}

/* ---- the choice of experts on the way ---- */

/* Routes and results of the problem, whose routes buffer and outputs are poisoned first. */
static void routed_run(problem *p, device_fixture *f, const test_buffer *logits, bool on_the_way,
                       float *out, uint32_t *routes)
{
    op_moe_args args = p->args;
    fixture_fill(f, &p->bout, NULL);
    fixture_fill(f, &p->broutes, NULL);
    op_context ctx = context(f, p);
    if (on_the_way)
        args.logits = logits->range;
    else
        EXPECT_OK(op_route(&ctx, &(op_route_args){.logits = logits->range,
                                                  .experts = p->s.experts,
                                                  .top_k = p->s.top_k,
                                                  .rows = 1,
                                                  .routes = p->broutes.range}));
    EXPECT_OK(op_moe(&ctx, &args));
    fixture_run(f);
    fixture_read(f, &p->bout, out);
    fixture_read(f, &p->broutes, routes);
    fixture_end(f);
}

/* Both ways give the same bits, also where logits are equal or not finite. */
static void routed_case(device_fixture *f, const shape *s, op_shape spread, ful_type type, int kind)
{
    variant v = {.type = type, .shape = spread};
    problem p;
    problem_make(&p, f, s, &v, s->experts * 7u + (uint32_t)kind);
    rng random = rng_seed(s->experts + (uint32_t)kind);
    float *logits = take(s->experts, 4);
    rng_fill_normal(&random, logits, s->experts, 3.0);
    for (uint32_t e = 0; e < s->experts && kind == 1; e++)
        logits[e] = (float)(e % 3);
    if (kind == 2)
        logits[s->experts / 2] = NAN;
    if (kind == 3)
        logits[s->experts - 1] = INFINITY;
    if (kind == 4)
        logits[0] = -INFINITY;
    test_buffer b = fixture_buffer(f, 4 * (uint64_t)s->experts, logits);
    float *out[2];
    uint32_t *routes[2];
    for (int way = 0; way < 2; way++) {
        out[way] = take(s->dim, 4);
        routes[way] = take(s->top_k, 8);
        routed_run(&p, f, &b, way == 1, out[way], routes[way]);
    }
    if (memcmp(routes[0], routes[1], 8 * (size_t)s->top_k) != 0 ||
        memcmp(out[0], out[1], 4 * (size_t)s->dim) != 0)
        fail_msg("%u experts top_k %u %s %s caps '%s' logits %d: routes %u %08x, not %u %08x",
                 (unsigned)s->experts, (unsigned)s->top_k, ful_type_name(type),
                 spread == OP_SHAPE_WIDE ? "wide" : "narrow", f->caps, kind, (unsigned)routes[1][0],
                 (unsigned)routes[1][1], (unsigned)routes[0][0], (unsigned)routes[0][1]);
    for (int way = 0; way < 2; way++) {
        free(routes[way]);
        free(out[way]);
    }
    fixture_free(f, &b);
    free(logits);
    problem_free(&p, f);
}

static void test_routed(void **state)
{
    (void)state;
    static const shape shapes[] = {
        {1, 1, 1, 16, 16}, {1, 8, 2, 48, 40}, {1, 5, 3, 37, 23}, {1, 128, 4, 64, 24}};
    for (size_t i = 0; fixture_masks[i]; i++) {
        device_fixture f;
        fixture_open(&f, fixture_masks[i]);
        for (op_shape spread = OP_SHAPE_NARROW; spread <= OP_SHAPE_WIDE; spread++) {
            op_context ctx = {.device = f.device, .shape = spread};
            assert_false(op_moe_routes(&ctx, 2, 8, 2));
            assert_false(op_moe_routes(&ctx, 1, 129, 2));
            for (size_t s = 0; s < 4; s++)
                for (int kind = 0; kind < 5; kind++)
                    if (op_moe_routes(&ctx, 1, shapes[s].experts, shapes[s].top_k) &&
                        (fixture_full() || i == 0 || (s + i + (size_t)kind) % 4 == 0))
                        routed_case(&f, &shapes[s], spread, types[(s + (size_t)kind + i) % 3],
                                    kind);
        }
        fixture_close(&f);
    }
}

/* Every type of blocks, few and many rows, choices of experts on the way: on the device as it is,
 * without subgroups and on the floor of all. */
static void test_blocks(void **state)
{
    (void)state;
    static const shape shapes[] = {{1, 8, 2, 96, 160},  {2, 8, 2, 32, 96},   {7, 3, 2, 160, 32},
                                   {37, 8, 2, 96, 64},  {1, 4, 2, 256, 512}, {1, 3, 3, 768, 256},
                                   {6, 4, 2, 256, 256}, {33, 3, 1, 512, 256}};
    enum { SHAPES = sizeof shapes / sizeof *shapes, ALL = 4 * SHAPES };
    for (uint32_t m = 0; fixture_masks[m] != NULL; m++) {
        if (m != 0 && fixture_masks[m + 1] != NULL && strcmp(fixture_masks[m], "-subgroup") != 0)
            continue;
        device_fixture f;
        fixture_open(&f, fixture_masks[m]);
        for (uint32_t j = 0; j <= FUL_TYPE_MXFP4 - FUL_TYPE_Q8_0; j++) {
            ful_type type = (ful_type)(FUL_TYPE_Q8_0 + j);
            uint32_t most = fixture_full() ? 8 : m == 0 ? 2 : 1;
            if (m != 0 && (j + m) % 2 != 0 && !fixture_full())
                continue; /* drivers compile pipelines for each */
            /* Shapes of whole blocks only; some in turn, two at the quick level. */
            uint32_t begin = ref_blocks_elements(type) == 256 ? 4 : 0, taken = 0;
            for (uint32_t i = (j * 5 + m) % ALL, n = 0; n < ALL; n++, i = (i + 11) % ALL) {
                const shape *s = &shapes[i % SHAPES];
                variant v = {.type = type,
                             .shape = i / SHAPES % 2 ? OP_SHAPE_WIDE : OP_SHAPE_NARROW,
                             .half = i / SHAPES / 2 != 0,
                             .n_rows = s->rows > 8 ? s->rows - 3 : 0,
                             .routing = (routing)(i % ROUTING_COUNT)};
                if (i % SHAPES < begin || (v.half && !op_half_usable(f.device)) || taken == most)
                    continue;
                taken++;
                check_case(&f, s, &v, 100 * i + (uint32_t)type);
                op_context ctx = {.device = f.device, .shape = v.shape};
                if (s->rows == 1 && op_moe_routes(&ctx, 1, s->experts, s->top_k))
                    routed_case(&f, s, v.shape, type, (int)(i % 5));
            }
        }
        fixture_close(&f);
    }
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_routed),           cmocka_unit_test(test_route),
        cmocka_unit_test(test_route_not_finite), cmocka_unit_test(test_fewer_rows),
        cmocka_unit_test(test_windows),          cmocka_unit_test(test_magnitudes),
        cmocka_unit_test(test_same_bits),        cmocka_unit_test(test_permuted_experts),
        cmocka_unit_test(test_nan_weight),       cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_all_masks),        cmocka_unit_test(test_long),
        cmocka_unit_test(test_candidates),       cmocka_unit_test(test_blocks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
