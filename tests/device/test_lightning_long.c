/* Lightning prefill of a long prompt at the published model's size, chunk after chunk as a session
 * feeds it, against the recurrence in double: every way to compute it, the slowest and the fastest
 * decay. Queries, keys and values are SiLU's of normal numbers, rounded to halves. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/tuning.h"
#include "ref/ref.h"
#include "util/compare.h"
#include "util/device_fixture.h"
#include "util/rng.h"

#include <cmocka.h> /* last: its fail() is a macro */

enum { DIM = 128, MOST_HEADS = 64, CHECKED = 4 };

/* At the long level the real thing; else as much of it as takes seconds. */
typedef struct extent {
    uint32_t heads, chunk, chunks;
} extent;

static extent extent_of_level(void)
{
    return fixture_long() ? (extent){64, 2048, 8} : (extent){4, 512, 2};
}

typedef struct way {
    const char *caps;
    op_shape shape;
    bool half;
    bool
        slow; /* on processors, which compute matrices element by element: the checked heads only */
    uint32_t groups; /* workgroups that tuning asks for: 1 = one walk, many = chunks side by side */
    double outputs, state; /* limits */
} way;

/* Heads compared with the reference: the fastest decay, the slowest, and two between. */
static void checked_heads(const extent *e, uint32_t out[CHECKED])
{
    const uint32_t h = e->heads;
    const uint32_t heads[CHECKED] = {0, h / 3, 2 * h / 3, h - 1};
    memcpy(out, heads, sizeof heads);
}

/* ---- the reference, once for all ways ---- */

typedef struct expected {
    extent extent;
    double slopes[MOST_HEADS];
    uint32_t heads[CHECKED];
    double *out;   /* [tokens][CHECKED][DIM] */
    double *state; /* [CHECKED][DIM][DIM] */
} expected;

static void chunk_make(const extent *e, uint32_t number, float *qkv)
{
    rng r = rng_seed(9000 + number);
    size_t count = (size_t)e->chunk * e->heads * 3 * DIM;
    rng_fill_normal(&r, qkv, count, 1.0);
    for (size_t i = 0; i < count; i++)
        qkv[i] = f32_from_f16(f16_from_f32(qkv[i] / (1.0f + expf(-qkv[i]))));
}

static expected *expected_make(void)
{
    expected *x = calloc(1, sizeof *x);
    extent e = x->extent = extent_of_level();
    uint32_t tokens = e.chunk * e.chunks;
    double first[MOST_HEADS], last[MOST_HEADS];
    ref_slopes(1, 64, 0, 80, first);
    ref_slopes(1, 64, 78, 80, last);
    /* Fast half: the first layer's; slow half: those of the last layer with lightning attention. */
    for (uint32_t h = 0; h < e.heads; h++) {
        uint32_t of64 = h * 64 / e.heads + (h + 1 == e.heads ? 64 / e.heads - 1 : 0);
        x->slopes[h] = h < e.heads / 2 ? first[of64] : last[of64];
    }
    checked_heads(&e, x->heads);
    x->out = ref_alloc((size_t)tokens * CHECKED * DIM);
    x->state = ref_alloc((size_t)CHECKED * DIM * DIM);
    float *qkv = ref_alloc_bytes((size_t)e.chunk * e.heads * 3 * DIM, sizeof(float));
    double *one = ref_alloc((size_t)e.chunk * 3 * DIM), *out = ref_alloc((size_t)e.chunk * DIM);
    for (uint32_t n = 0; n < e.chunks; n++) {
        chunk_make(&e, n, qkv);
        for (uint32_t c = 0; c < CHECKED; c++) {
            for (uint32_t t = 0; t < e.chunk; t++)
                ref_from_f32(qkv + ((size_t)t * e.heads + x->heads[c]) * 3 * DIM,
                             one + (size_t)t * 3 * DIM, 3 * DIM);
            ref_lightning_block(e.chunk, 1, DIM, 64, one, 3 * DIM, &x->slopes[x->heads[c]],
                                x->state + (size_t)c * DIM * DIM, out);
            for (uint32_t t = 0; t < e.chunk; t++)
                memcpy(x->out + (((size_t)n * e.chunk + t) * CHECKED + c) * DIM,
                       out + (size_t)t * DIM, DIM * sizeof(double));
        }
    }
    free(qkv);
    free(one);
    free(out);
    return x;
}

static int group_setup(void **state)
{
    *state = expected_make();
    return 0;
}

static int group_teardown(void **state)
{
    expected *x = *state;
    free(x->out);
    free(x->state);
    free(x);
    return 0;
}

/* ---- one way to compute it ---- */

/* Of checked head c, which is head h of `out`. */
static double head_error(const expected *x, const extent *of, const float *out, uint32_t chunk,
                         uint32_t c, uint32_t h)
{
    extent e = *of;
    double worst = 0, largest = 0;
    for (uint32_t t = 0; t < e.chunk; t++) {
        const float *got = out + ((size_t)t * e.heads + h) * DIM;
        const double *want = x->out + (((size_t)chunk * e.chunk + t) * CHECKED + c) * DIM;
        for (uint32_t i = 0; i < DIM; i++) {
            if (!isfinite(got[i]))
                return INFINITY;
            worst = fmax(worst, fabs((double)got[i] - want[i]));
            largest = fmax(largest, fabs(want[i]));
        }
    }
    return worst / largest;
}

/* Leaves the checked heads alone in place. */
static void chunk_select(const expected *x, float *qkv)
{
    for (uint32_t t = 0; t < x->extent.chunk; t++)
        for (uint32_t c = 0; c < CHECKED; c++)
            memmove(qkv + ((size_t)t * CHECKED + c) * 3 * DIM,
                    qkv + ((size_t)t * x->extent.heads + x->heads[c]) * 3 * DIM,
                    3 * DIM * sizeof(float));
}

static void groups_set(device_fixture *f, uint32_t groups)
{
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(fields[i].name, "lightning prefill: workgroups") == 0)
            tuning_set(f->device, &fields[i], groups);
}

static void run_way(const expected *x, const way *w)
{
    device_fixture f;
    fixture_open(&f, w->caps);
    if (w->half && !op_half_usable(f.device)) {
        fixture_close(&f);
        return;
    }
    extent e = x->extent;
    double slopes[MOST_HEADS];
    uint32_t heads[CHECKED];
    bool few = w->slow && device_is_cpu(f.device);
    memcpy(slopes, x->slopes, sizeof slopes);
    memcpy(heads, x->heads, sizeof heads);
    for (uint32_t c = 0; c < CHECKED && few; c++) {
        slopes[c] = x->slopes[x->heads[c]];
        heads[c] = c;
    }
    e.heads = few ? (uint32_t)CHECKED : e.heads;
    uint32_t inner = e.heads * DIM;
    size_t states = (size_t)inner * DIM;
    step_params step = {.n_rows = e.chunk};
    op_context ctx = fixture_begin(&f, &step, w->half);
    ctx.shape = w->shape;
    groups_set(&f, w->groups);
    float *qkv = ref_alloc_bytes((size_t)e.chunk * x->extent.heads * 3 * DIM, sizeof(float));
    float *out = ref_alloc_bytes((size_t)e.chunk * inner, sizeof(float));
    float *state = ref_alloc_bytes(states, sizeof(float)); /* zeros */
    uint64_t decay_bytes = op_lightning_decay_bytes(f.device, e.heads, DIM);
    void *table = ref_alloc_bytes(1, (size_t)decay_bytes);
    op_lightning_decay_fill(f.device, e.heads, DIM, slopes, table);
    test_buffer buffers[] = {
        fixture_buffer(&f, (uint64_t)e.chunk * 3 * inner * sizeof(float), NULL),
        fixture_buffer(&f, decay_bytes, table), fixture_buffer(&f, states * sizeof(float), state),
        fixture_buffer(&f, (uint64_t)e.chunk * inner * sizeof(float), NULL),
        fixture_buffer(&f, op_lightning_scratch_bytes(&ctx, e.chunk, e.heads, DIM, false), NULL)};
    op_lightning_args args = {.qkv = buffers[0].range,
                              .qkv_stride = 3 * inner,
                              .heads = e.heads,
                              .head_dim = DIM,
                              .rows = e.chunk,
                              .decay = buffers[1].range,
                              .state = buffers[2].range,
                              .out = buffers[3].range,
                              .scratch = buffers[4].range};
    EXPECT_OK(op_lightning_prefill(&ctx, &args));
    double worst[CHECKED] = {0}, worst_state[CHECKED];
    for (uint32_t n = 0; n < e.chunks; n++) {
        chunk_make(&x->extent, n, qkv);
        if (few)
            chunk_select(x, qkv);
        fixture_fill(&f, &buffers[0], qkv);
        fixture_fill(&f, &buffers[3], NULL);
        fixture_run(&f);
        fixture_read(&f, &buffers[3], out);
        for (uint32_t c = 0; c < CHECKED; c++)
            worst[c] = fmax(worst[c], head_error(x, &e, out, n, c, heads[c]));
    }
    fixture_end(&f);
    fixture_read(&f, &buffers[2], state);
    for (uint32_t c = 0; c < CHECKED; c++)
        worst_state[c] = max_rel_error_f32(state + (size_t)heads[c] * DIM * DIM,
                                           x->state + (size_t)c * DIM * DIM, (size_t)DIM * DIM);
    printf("%s%s, caps \"%s\", workgroups %u, %u heads, %u tokens: outputs",
           w->shape == OP_SHAPE_WIDE ? "wide" : "narrow", w->half ? " half" : "", w->caps,
           w->groups, e.heads, e.chunk * e.chunks);
    for (uint32_t c = 0; c < CHECKED; c++)
        printf(" %.1e", worst[c]);
    printf("; state");
    for (uint32_t c = 0; c < CHECKED; c++)
        printf(" %.1e", worst_state[c]);
    printf("\n");
    for (uint32_t c = 0; c < CHECKED; c++) {
        EXPECT_ERROR_BELOW(worst[c], w->outputs, "outputs of head %u, slope %g", x->heads[c],
                           x->slopes[x->heads[c]]);
        EXPECT_ERROR_BELOW(worst_state[c], w->state, "state of head %u, slope %g", x->heads[c],
                           x->slopes[x->heads[c]]);
    }
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        fixture_free(&f, &buffers[i]);
    free(qkv);
    free(out);
    free(state);
    free(table);
    fixture_close(&f);
}

static void test_f32(void **state)
{
    static const way ways[] = {{"", OP_SHAPE_NARROW, false, false, 0, 2e-5, 2e-5},
                               {"", OP_SHAPE_WIDE, false, false, 0, 2e-5, 2e-5}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        run_way(*state, &ways[i]);
}

static void test_halves(void **state)
{
    static const way ways[] = {{"-coopmat", OP_SHAPE_NARROW, true, false, 0, 2e-3, 1e-3},
                               {"-coopmat", OP_SHAPE_WIDE, true, false, 0, 2e-3, 1e-3}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        run_way(*state, &ways[i]);
}

static void test_matrices(void **state)
{
    static const way ways[] = {{"", OP_SHAPE_WIDE, true, true, 1, 2e-3, 1e-3},
                               {"", OP_SHAPE_WIDE, true, true, 1024, 2e-3, 1e-3}};
    for (size_t i = 0; i < sizeof ways / sizeof *ways; i++)
        run_way(*state, &ways[i]);
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_f32), cmocka_unit_test(test_halves),
                                       cmocka_unit_test(test_matrices)};
    return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
