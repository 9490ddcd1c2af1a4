/* Models of quantised weights: what a GGUF of blocks computes is what the same model computes from
 * the numbers that its blocks stand for, so that the error of quantising is excluded. Types differ
 * from tensor to tensor, as mixes have it and as they never do. */
#include "../util/compare.h"
#include "../util/model_fixture.h"
#include "../util/quant_model.h"
#include "../util/scratch.h"
#include "model/mix.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { PREFILL = 75, CHUNK = 64, DECODE = 4, ROWS = PREFILL + DECODE };

typedef struct rows {
    float *logits; /* [ROWS][n_vocab], NaN at first */
    size_t n_vocab, count;
    ful_model_info info;
    uint64_t tensor_bytes; /* on the device */
} rows;

static bool take_row(void *ctx, size_t row, const float *logits, size_t n)
{
    rows *r = ctx;
    assert_true(row < ROWS && n == r->n_vocab);
    memcpy(r->logits + row * n, logits, n * sizeof *logits);
    r->count++;
    return true;
}

static uint64_t device_bytes(const ful_model *m)
{
    uint64_t bytes = gpu_tensor_bytes(&m->embedding) + gpu_tensor_bytes(&m->head);
    for (uint32_t i = 0; i < m->config.block_count; i++) {
        const model_layer *l = &m->layers[i];
        bytes += gpu_tensor_bytes(&l->qkv) + gpu_tensor_bytes(&l->out) +
                 gpu_tensor_bytes(&l->router) + gpu_tensor_bytes(&l->w13) +
                 gpu_tensor_bytes(&l->w2);
    }
    return bytes;
}

/* Norms, which lie in plain buffers. */
static uint64_t vector_bytes(const ful_model *m)
{
    uint64_t inner = (uint64_t)m->config.head_count * m->config.head_dim,
             n = (1 + 2 * (uint64_t)m->config.block_count) * m->config.hidden_size;
    return 4 * (n + m->info.lightning_block_count * inner);
}

static rows run(const char *path, bool half, bool *usable)
{
    model_fixture f;
    rows r = {0};
    int32_t ids[ROWS];
    *usable = model_fixture_open(&f, "", path, half, CHUNK, 2 * ROWS);
    if (!*usable)
        return r;
    r.info = *ful_model_get_info(f.model);
    r.n_vocab = r.info.vocab_size;
    if (!half) /* in fp16 some rows may have scales */
        assert_int_equal(device_bytes(f.model) + vector_bytes(f.model), r.info.weight_bytes);
    r.logits = malloc(ROWS * r.n_vocab * sizeof *r.logits);
    memset(r.logits, 0xff, ROWS * r.n_vocab * sizeof *r.logits);
    for (uint32_t i = 0; i < ROWS; i++)
        ids[i] = (int32_t)((i * i + 7 * i + 3) % r.n_vocab);
    EXPECT_OK(ful_prefill_logits(f.session, ids, PREFILL, take_row, &r));
    for (size_t i = PREFILL; i < ROWS; i++) {
        const float *logits;
        size_t n;
        EXPECT_OK(ful_decode(f.session, ids[i]));
        EXPECT_OK(ful_logits(f.session, &logits, &n));
        take_row(&r, i, logits, n);
    }
    assert_int_equal(r.count, ROWS);
    model_fixture_close(&f);
    return r;
}

/* ---- types ---- */

static const ful_type all_types[] = {
    FUL_TYPE_Q8_0, FUL_TYPE_Q6_K,  FUL_TYPE_F32,  FUL_TYPE_Q4_K,   FUL_TYPE_Q5_0,
    FUL_TYPE_F16,  FUL_TYPE_Q5_K,  FUL_TYPE_Q4_0, FUL_TYPE_IQ4_NL, FUL_TYPE_Q3_K,
    FUL_TYPE_BF16, FUL_TYPE_MXFP4, FUL_TYPE_Q4_1, FUL_TYPE_Q2_K,   FUL_TYPE_Q5_1,
};
enum { ALL_TYPES = sizeof all_types / sizeof *all_types };

/* Every tensor its own type, norms and routers, too, and w1 another one than w3. */
static ful_type any_type(void *ctx, uint32_t index, const tensor_info *t)
{
    uint32_t i = index * *(const uint32_t *)ctx;
    while (type_row_bytes(all_types[i % ALL_TYPES], t->dims[t->n_dims - 1]) == 0)
        i++;
    return all_types[i % ALL_TYPES];
}

/* As named mixes choose them. */
static ful_type mixed_type(void *ctx, uint32_t index, const tensor_info *t)
{
    const mix *m = ctx;
    (void)index;
    uint32_t layer = 0;
    char name[96];
    bool in_layer = sscanf(t->name, "blk.%u.", &layer) == 1;
    for (tensor_role role = ROLE_EMBEDDING; role < ROLE_COUNT; role = (tensor_role)(role + 1)) {
        ful_type wanted;
        tensor_gguf_name(role, layer, name, sizeof name);
        if (strcmp(name, t->name) == 0 && in_layer == (role >= ROLE_INPUT_NORM))
            return mix_type(m, role, layer, 8, t->dims[t->n_dims - 1], &wanted);
    }
    fail_msg("tensor %s has no role", t->name);
    return FUL_TYPE_F32;
}

/* ---- tests ---- */

typedef struct limits {
    double f32, f16; /* max|a - b| / max|b| in f32; sum (a - b)^2 / sum b^2 in f16 */
} limits;

static void compare(const char *model, const quant_model *as, const char *name, limits most)
{
    char whole[512], blocks[512], decoded[512];
    snprintf(whole, sizeof whole, "%s", scratch_path("whole.gguf"));
    snprintf(blocks, sizeof blocks, "%s", scratch_path("blocks.gguf"));
    snprintf(decoded, sizeof decoded, "%s", scratch_path("decoded.gguf"));
    ful_instance *instance;
    EXPECT_OK(ful_instance_create(&instance, NULL));
    EXPECT_OK(ful_model_convert(instance, model, whole, NULL, NULL, NULL));
    ful_instance_destroy(&instance);
    quant_model_write(whole, blocks, as, false);
    quant_model_write(whole, decoded, as, true);
    bool usable;
    rows want = run(decoded, false, &usable);
    for (int half = 0; half < 2; half++) {
        rows got = run(blocks, half, &usable);
        if (!usable)
            continue;
        size_t n = ROWS * want.n_vocab;
        assert_int_equal(want.n_vocab, got.n_vocab);
        assert_true(got.info.weight_bytes < want.info.weight_bytes);
        double worst = max_rel_error_ff(got.logits, want.logits, n);
        double squares = 0, of = 0;
        for (size_t i = 0; i < n; i++) {
            double d = (double)got.logits[i] - (double)want.logits[i];
            squares += d * d;
            of += (double)want.logits[i] * (double)want.logits[i];
        }
        print_message("%s, %s: largest error %.2g, squares %.2g\n", name, half ? "f16" : "f32",
                      worst, squares / of);
        if (half)
            EXPECT_ERROR_BELOW(squares / of, most.f16, "%s in f16", name);
        else
            EXPECT_ERROR_BELOW(worst, most.f32, "%s in f32", name);
        free(got.logits);
    }
    free(want.logits);
    scratch_remove("whole.gguf");
    scratch_remove("blocks.gguf");
    scratch_remove("decoded.gguf");
}

static const char demo[] = FUL_TEST_DATA "/../samples/demo-model";
static const char hybrid[] = FUL_TEST_DATA "/golden/hybrid-7to1";

static void test_mixes(void **state)
{
    (void)state;
    static const char *const names[] = {"q4_k_m", "q8_0", "q2_k", "mxfp4"};
    for (size_t i = 0; i < (fixture_full() ? 4 : 1); i++) {
        union {
            const mix *in;
            void *out;
        } m = {.in = mix_find(names[i])};
        compare(demo, &(quant_model){.type = mixed_type, .ctx = m.out}, names[i],
                (limits){1e-5, 1e-5});
    }
}

static void test_any(void **state)
{
    (void)state;
    uint32_t step = 1;
    const quant_model as = {.type = any_type, .ctx = &step};
    compare(hybrid, &as, "hybrid, any types", (limits){1e-5, 1e-5});
    /* Drivers compile half a minute for each of these. */
    for (step = 1; step < 14 && fixture_full(); step += 3)
        compare(demo, &as, "demo, any types", (limits){1e-5, 1e-5});
}

static ful_type one_type(void *ctx, uint32_t index, const tensor_info *t)
{
    (void)index;
    return t->n_dims < 2 ? FUL_TYPE_F32 : *(const ful_type *)ctx;
}

/* Weights beyond fp16: scales of blocks hold them, and so do fp16 tiles with a power of two a row.
 * Gates are what a model bears such numbers in. */
static void test_range(void **state)
{
    (void)state;
    static const ful_type types[] = {FUL_TYPE_Q8_0, FUL_TYPE_Q4_K, FUL_TYPE_MXFP4};
    model_fixture_shape = OP_SHAPE_WIDE; /* fp16 tiles, also on processors */
    for (size_t i = 0; i < (fixture_full() ? 3 : 1); i++) {
        union {
            const ful_type *in;
            void *out;
        } type = {.in = &types[i]};
        const quant_model as = {
            .type = one_type, .ctx = type.out, .loud = "attn_gate", .factor = 1048576.0f};
        compare(demo, &as, ful_type_name(types[i]), (limits){1e-5, 1e-3});
    }
    model_fixture_shape = OP_SHAPE_AUTO;
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
        cmocka_unit_test(test_mixes),
        cmocka_unit_test(test_any),
        cmocka_unit_test(test_range),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
