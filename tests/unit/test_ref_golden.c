/* The whole-model reference against the goldens: float64 runs of the published implementation (with
 * partial RoPE). Everything a device result is compared with later rests on this. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Before cmocka, whose fail() macro would rewrite the library's declaration of fail. */
#include "../ref/ref_model.h"
#include "../util/compare.h"

#include <cmocka.h>

/* The goldens' own floor: their norms, RoPE tables and decay buffers are fp32 in a float64 run. */
static const double limit = 1e-6;

/* True if FULGUR_TEST_LEVEL is quick: short prompts only, for emulated processors. */
static bool only_short(void)
{
    const char *level = getenv("FULGUR_TEST_LEVEL");
    return level != NULL && strcmp(level, "quick") == 0;
}

typedef struct golden {
    char dir[1024];
    const char *name;
    ref_model *model;
    tensor_file *file;
    double worst;
    char worst_name[64];
} golden;

static void must(ful_result result)
{
    if (result != FUL_OK)
        fail_msg("%s: %s", ful_result_name(result), ful_last_error());
}

static void golden_open(golden *g, const char *name, const char *folder)
{
    ful_alloc alloc = mem_functions(NULL);
    char path[1100];
    *g = (golden){.name = name};
    snprintf(g->dir, sizeof g->dir, "%s/%s", FUL_TEST_DATA, folder);
    snprintf(path, sizeof path, "%s/golden.safetensors", g->dir);
    must(ref_model_load(g->dir, DECAY_HF, &g->model));
    must(tensor_file_open(&alloc, path, &g->file));
}

static void golden_close(golden *g)
{
    print_message("%s: worst %.2e at %s\n", g->name, g->worst, g->worst_name);
    tensor_file_close(&g->file);
    ref_model_destroy(&g->model);
}

static double *values(const golden *g, const char *key, size_t *count)
{
    double *p = ref_golden_f32(g->file, key, count);
    if (p == NULL)
        fail_msg("%s has no F32 tensor %s", g->name, key);
    return p;
}

static int32_t *tokens(const golden *g, const char *key, uint32_t *count)
{
    size_t n;
    int32_t *p = ref_golden_i32(g->file, key, &n);
    if (p == NULL)
        fail_msg("%s has no I32 tensor %s", g->name, key);
    *count = (uint32_t)n;
    return p;
}

/* Compares a tensor of the golden file with n doubles. */
static void check_at(golden *g, const char *key, const double *want, const double *got, size_t n)
{
    double error = max_rel_error(got, want, n);
    if (!(error <= g->worst)) {
        g->worst = error;
        snprintf(g->worst_name, sizeof g->worst_name, "%s", key);
    }
    if (!(error <= limit))
        fail_msg("%s %s: error %.3e, limit %.0e", g->name, key, error, limit);
}

static void check(golden *g, const char *key, const double *got, size_t n)
{
    size_t count;
    double *want = values(g, key, &count);
    assert_int_equal(count, n);
    check_at(g, key, want, got, n);
    free(want);
}

static void key_of(char *out, size_t bytes, const char *stem, uint32_t a)
{
    snprintf(out, bytes, "%s_%u", stem, (unsigned)a);
}

static void key_of2(char *out, size_t bytes, const char *stem, uint32_t a, uint32_t b)
{
    snprintf(out, bytes, "%s_%u_%u", stem, (unsigned)a, (unsigned)b);
}

/* Slopes in double agree with the golden's fp32 buffers; the config's function agrees with ours. */
static void check_slopes(golden *g)
{
    const model_config *c = &g->model->config;
    double *own = ref_alloc(c->head_count), *library = ref_alloc(c->head_count);
    uint32_t checked = 0;
    for (uint32_t l = 0; l < c->block_count; l++) {
        char key[64];
        if (c->layers[l] != LAYER_LIGHTNING)
            continue;
        key_of(key, sizeof key, "slope", l);
        check(g, key, g->model->layers[l].slopes, c->head_count);
        for (int rule = DECAY_ORIG; rule <= DECAY_HF; rule++) {
            model_config other = *c;
            other.decay = (decay_rule)rule;
            config_slopes(&other, l, library);
            ref_slopes(rule, c->head_count, l, c->block_count, own);
            /* The last layer's factor is a difference of 1e-5: rounding grows by 1e5. */
            assert_true(max_rel_error(library, own, c->head_count) <= 1e-10);
        }
        checked++;
    }
    assert_true(checked > 0);
    free(own);
    free(library);
}

/* The goldens decay by fp32 slopes; ours are double. Either meets them. */
static void use_golden_slopes(golden *g)
{
    const model_config *c = &g->model->config;
    for (uint32_t l = 0; l < c->block_count; l++) {
        char key[64];
        size_t n;
        if (c->layers[l] != LAYER_LIGHTNING)
            continue;
        key_of(key, sizeof key, "slope", l);
        double *slopes = values(g, key, &n);
        ref_model_set_slopes(g->model, l, slopes);
        free(slopes);
    }
}

static void check_logits(golden *g, const ref_trace *t)
{
    char key[64];
    size_t count, V = t->vocab_size;
    key_of(key, sizeof key, "logits", t->T);
    if (t->T <= 65) {
        check(g, key, t->logits, t->T * V);
        return;
    }
    double *want = values(g, key, &count);
    const uint32_t rows[] = {0, t->T / 2, t->T - 1};
    assert_int_equal(count, 3 * V);
    for (size_t i = 0; i < 3; i++)
        check_at(g, key, want + i * V, t->logits + rows[i] * V, V);
    free(want);
}

static void check_inside(golden *g, const ref_trace *t, const ref_state *state)
{
    const model_config *c = &g->model->config;
    size_t hidden = (size_t)t->T * c->hidden_size;
    size_t square = (size_t)c->head_count * c->head_dim * c->head_dim;
    char key[64];
    for (uint32_t l = 0; l < c->block_count; l++) {
        key_of2(key, sizeof key, "hidden_in", t->T, l);
        check(g, key, t->hidden_in[l], hidden);
        if (c->layers[l] == LAYER_LIGHTNING) {
            key_of2(key, sizeof key, "state", t->T, l);
            check(g, key, state->lightning[l], square);
        }
    }
    const uint32_t ends[] = {0, c->block_count - 1};
    for (size_t i = 0; i < 2; i++) {
        uint32_t l = ends[i];
        const double *parts[] = {t->norm1[l], t->mixer[l], t->norm2[l], t->moe[l]};
        const char *names[] = {"norm1", "attn", "norm2", "moe"};
        for (size_t p = 0; p < 4; p++) {
            snprintf(key, sizeof key, "sub_%u_%s_%u", (unsigned)t->T, names[p], (unsigned)l);
            check(g, key, parts[p], hidden);
        }
    }
    key_of(key, sizeof key, "hidden_final", t->T);
    check(g, key, t->hidden_final, hidden);
}

static void check_decode(golden *g, ref_state *state, const ref_trace *prefill)
{
    char key[64];
    uint32_t steps;
    size_t count, V = prefill->vocab_size;
    key_of(key, sizeof key, "decode_ids", prefill->T);
    int32_t *ids = tokens(g, key, &steps);
    key_of(key, sizeof key, "decode_logits", prefill->T);
    double *want = values(g, key, &count);
    assert_int_equal(count, steps * V);
    assert_int_equal(ids[0],
                     ref_argmax((uint32_t)V, prefill->logits + (size_t)(prefill->T - 1) * V));
    for (uint32_t s = 0; s < steps; s++) {
        ref_trace *t = ref_forward(g->model, state, &ids[s], 1);
        check_at(g, key, want + s * V, t->logits, V);
        if (s + 1 < steps)
            assert_int_equal(ids[s + 1], ref_argmax((uint32_t)V, t->logits));
        ref_trace_destroy(&t);
    }
    free(ids);
    free(want);
}

/* A prompt in uneven pieces and from a copied state gives what one call gives. */
static void check_pieces(golden *g, const int32_t *ids, const ref_trace *whole)
{
    size_t V = whole->vocab_size;
    uint32_t half = whole->T / 3;
    ref_state *state = ref_state_create(g->model);
    ref_trace *t = ref_forward(g->model, state, ids, half);
    assert_true(max_rel_error(t->logits, whole->logits, half * V) <= 1e-12);
    ref_trace_destroy(&t);
    ref_state *copy = ref_state_copy(g->model, state);
    ref_state_destroy(&state);
    t = ref_forward(g->model, copy, ids + half, whole->T - half);
    assert_true(max_rel_error(t->logits, whole->logits + half * V, (whole->T - half) * V) <= 1e-12);
    for (uint32_t r = 0; r < t->T; r++) {
        assert_true(ref_trace_min_gap(t, r) >= 0.0);
        for (uint32_t l = 0; l < t->block_count; l++)
            assert_true(ref_trace_min_gap(t, r) <= t->router_gap[l][r]);
    }
    ref_trace_destroy(&t);
    ref_state_destroy(&copy);
}

static void run_golden(const char *name)
{
    static const uint32_t lengths[] = {1, 15, 16, 17, 63, 64, 65, 255, 256, 257, 515};
    char folder[256];
    golden g;
    snprintf(folder, sizeof folder, "golden/%s", name);
    golden_open(&g, name, folder);
    check_slopes(&g);
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        char key[64];
        uint32_t T;
        if (lengths[i] > 65 && only_short())
            break;
        key_of(key, sizeof key, "ids", lengths[i]);
        int32_t *ids = tokens(&g, key, &T);
        assert_int_equal(T, lengths[i]);
        ref_state *state = ref_state_create(g.model);
        ref_trace *t = ref_forward(g.model, state, ids, T);
        check_logits(&g, t);
        if (T == 65) {
            check_inside(&g, t, state);
            check_pieces(&g, ids, t);
        }
        if (T == 17 || T == 257)
            check_decode(&g, state, t);
        ref_trace_destroy(&t);
        ref_state_destroy(&state);
        if (T == 257) {
            use_golden_slopes(&g);
            state = ref_state_create(g.model);
            t = ref_forward(g.model, state, ids, T);
            check_logits(&g, t);
            ref_trace_destroy(&t);
            ref_state_destroy(&state);
        }
        free(ids);
    }
    golden_close(&g);
}

static void hybrid_7to1(void **unused)
{
    (void)unused;
    run_golden("hybrid-7to1");
}

static void mixed_factors(void **unused)
{
    (void)unused;
    run_golden("mixed-factors");
}

static void many_experts(void **unused)
{
    (void)unused;
    run_golden("many-experts");
}

static void demo_model(void **unused)
{
    (void)unused;
    golden g;
    uint32_t T;
    size_t count;
    golden_open(&g, "demo-model", "../samples/demo-model");
    int32_t *ids = tokens(&g, "ids", &T);
    uint32_t given = T;
    if (only_short() && T > 129)
        T = 129;
    ref_state *state = ref_state_create(g.model);
    ref_trace *t = ref_forward(g.model, state, ids, T);
    size_t V = t->vocab_size, nll_count;
    double *nll = ref_alloc(T - 1), *want = values(&g, "logits_every_32", &count);
    double *want_nll = values(&g, "nll", &nll_count);
    for (uint32_t i = 0; i + 1 < T; i++)
        nll[i] = ref_nll((uint32_t)V, t->logits + i * V, (uint32_t)ids[i + 1]);
    assert_int_equal(nll_count, given - 1);
    check_at(&g, "nll", want_nll, nll, T - 1);
    assert_int_equal(count, given / 32 * V);
    for (uint32_t i = 0; i < T / 32; i++) /* rows 31, 63, ... */
        check_at(&g, "logits_every_32", want + i * V, t->logits + (size_t)(32 * i + 31) * V, V);
    free(nll);
    free(want_nll);
    free(want);
    free(ids);
    ref_trace_destroy(&t);
    ref_state_destroy(&state);
    golden_close(&g);
}

static void missing_folder_is_an_error(void **unused)
{
    (void)unused;
    ref_model *model = NULL;
    assert_int_not_equal(ref_model_load(FUL_TEST_DATA "/golden/absent", 0, &model), FUL_OK);
    assert_null(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hybrid_7to1),
        cmocka_unit_test(mixed_factors),
        cmocka_unit_test(many_experts),
        cmocka_unit_test(demo_model),
        cmocka_unit_test(missing_folder_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
