/* What a caller can do to a session, rightly and wrongly. */
#include "../util/checkpoint.h"
#include "../util/compare.h"
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */
#include "gpu/gpu_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const golden_dir = FUL_TEST_DATA "/golden/many-experts";

static void test_arguments(void **state)
{
    (void)state;
    model_fixture f;
    assert_true(model_fixture_open(&f, "", golden_dir, false, 64, 32));
    const int32_t good[] = {5, 6, 7}, bad[] = {5, 400}, negative[] = {-1};
    int32_t many[40] = {0};
    const float *logits;
    size_t n;
    assert_int_equal(ful_logits(f.session, &logits, &n), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_prefill(f.session, bad, 2), FUL_ERR_ARGUMENT);
    expect_error_words("token 1", "400", NULL);
    assert_int_equal(ful_prefill(f.session, negative, 1), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_session_tokens(f.session, NULL), 0);
    EXPECT_OK(ful_prefill(f.session, good, 3));
    assert_int_equal(ful_prefill(f.session, many, 30), FUL_ERR_CONTEXT_FULL);
    expect_error_words("32", "30", NULL);
    assert_int_equal(ful_session_tokens(f.session, NULL), 3);
    EXPECT_OK(ful_prefill(f.session, many, 29));
    assert_int_equal(ful_decode(f.session, 1), FUL_ERR_CONTEXT_FULL);
    EXPECT_OK(ful_logits(f.session, &logits, &n));
    assert_int_equal(n, 400);
    assert_int_equal(ful_prefill(NULL, good, 1), FUL_ERR_ARGUMENT);
    EXPECT_OK(ful_prefill(f.session, NULL, 0));
    model_fixture_close(&f);
}

typedef struct count {
    int left, seen;
} count;

static bool stop_after(void *ctx, int32_t token)
{
    count *c = ctx;
    assert_in_range(token, 0, 399);
    c->seen++;
    return --c->left > 0;
}

static void check_generate(void)
{
    model_fixture f;
    assert_true(model_fixture_open(&f, "", golden_dir, false, 64, 64));
    const int32_t prompt[] = {5, 6, 7};
    const int32_t *tokens;
    ful_stop why;
    count c = {5, 0};
    EXPECT_OK(ful_prefill(f.session, prompt, 3));
    EXPECT_OK(ful_generate(f.session, ful_generate_params(.max_tokens = 20), stop_after, &c, &why));
    assert_int_equal(why, FUL_STOP_CALLBACK);
    assert_int_equal(c.seen, 5);
    c = (count){1000, 0};
    int32_t never = 400; /* no token: overrides the model's own end token */
    EXPECT_OK(ful_generate(
        f.session, ful_generate_params(.max_tokens = 7, .stop_tokens = &never, .n_stop_tokens = 1),
        stop_after, &c, &why));
    assert_int_equal(why, FUL_STOP_MAX_TOKENS);
    assert_int_equal(c.seen, 7);
    c = (count){1000, 0};
    EXPECT_OK(ful_generate(f.session,
                           ful_generate_params(.stop_tokens = &never, .n_stop_tokens = 1),
                           stop_after, &c, &why));
    assert_int_equal(why, FUL_STOP_CONTEXT);
    assert_int_equal(ful_session_tokens(f.session, &tokens), 64);
    assert_int_equal(tokens[0], 5);
    ful_stats s;
    EXPECT_OK(ful_session_stats(f.session, &s));
    assert_int_equal(s.prefill_tokens, 3);
    assert_int_equal(s.decode_tokens, 61);
    assert_true(s.decode_dispatches > 10 && s.decode_submits >= 1);
    /* the same seed draws the same text */
    int32_t first = 0, second = 0;
    const ful_sampler_params *p = ful_sampler_params(.seed = 9, .temperature = 2.0f);
    EXPECT_OK(ful_sample(f.session, p, &first));
    EXPECT_OK(ful_sample(f.session, p, &second));
    assert_int_equal(first, second);
    model_fixture_close(&f);
}

static void test_generate(void **state)
{
    (void)state;
    check_generate();
    model_fixture_shape = OP_SHAPE_WIDE; /* tokens are drawn on the device */
    check_generate();
    model_fixture_shape = OP_SHAPE_AUTO;
}

/* A reset session gives the bits of a fresh one; so does the same session twice. */
static void test_reset(void **state)
{
    (void)state;
    model_fixture f;
    assert_true(model_fixture_open(&f, "", golden_dir, false, 64, 512));
    int32_t prompt[150];
    for (int i = 0; i < 150; i++)
        prompt[i] = 3 + i * 7 % 390;
    float want[400];
    const float *logits;
    for (int round = 0; round < 3; round++) {
        EXPECT_OK(ful_session_reset(f.session));
        EXPECT_OK(ful_prefill(f.session, prompt, 150));
        EXPECT_OK(ful_decode(f.session, 11));
        EXPECT_OK(ful_logits(f.session, &logits, NULL));
        if (round == 0)
            memcpy(want, logits, sizeof want);
        assert_memory_equal(want, logits, sizeof want);
    }
    model_fixture_close(&f);
}

/* ---- values that are not finite ---- */

static void poison(void *ctx, checkpoint_tensor *t)
{
    if (strcmp(t->name, ctx) == 0)
        memcpy(t->data, "\xc0\x7f", 2);
}

static bool any_row(void *ctx, size_t row, const float *logits, size_t n)
{
    (void)ctx, (void)row, (void)logits, (void)n;
    return true;
}

static void expect_layer(const char *tensor, const char *layer, const char *step)
{
    char dir[256], name[96];
    snprintf(name, sizeof name, "%s", tensor);
    checkpoint_copy(golden_dir, poison, name, NULL, NULL, dir);
    model_fixture f;
    assert_true(model_fixture_open(&f, "", dir, false, 64, 256));
    int32_t prompt[20];
    for (int i = 0; i < 20; i++)
        prompt[i] = 10 + i;
    assert_int_equal(ful_prefill(f.session, prompt, 20), FUL_ERR_NOT_FINITE);
    expect_error_words("not finite", layer, step, NULL);
    assert_int_equal(ful_decode(f.session, 3), FUL_ERR_NOT_FINITE);
    expect_error_words("reset", NULL);
    EXPECT_OK(ful_session_reset(f.session));
    assert_int_equal(ful_prefill_logits(f.session, prompt, 20, any_row, NULL), FUL_ERR_NOT_FINITE);
    model_fixture_close(&f);
    checkpoint_remove(dir);
}

static void test_not_finite(void **state)
{
    (void)state;
    expect_layer("model.layers.1.self_attn.out_proj.weight", "layer 1", "attn");
    expect_layer("model.layers.3.self_attn.v_proj.weight", "layer 3", "qkv");
    expect_layer("model.norm.weight", "final", "token position");
}

/* ---- memory ---- */

static void test_memory(void **state)
{
    (void)state;
    device_fixture d;
    ful_plan plan;
    fixture_open(&d, "memory=1048576");
    assert_int_equal(ful_model_plan(d.instance, golden_dir, d.device, NULL, &plan),
                     FUL_ERR_DEVICE_MEMORY);
    expect_error_words("bytes", "free", NULL);
    assert_true(plan.total_bytes > plan.available_bytes);
    ful_model *model = NULL;
    assert_int_equal(ful_model_load(&model, d.device, golden_dir, NULL, NULL, NULL),
                     FUL_ERR_DEVICE_MEMORY);
    assert_null(model);
    fixture_close(&d);
}

/* What a loaded model and a session take is what the plan said. */
static void test_plan(void **state)
{
    (void)state;
    model_fixture f;
    assert_true(model_fixture_open(&f, "", golden_dir, false, 128, 2048));
    const ful_plan *p = ful_model_get_plan(f.model);
    uint64_t now, peak;
    ful_device_memory(f.device.device, &now, &peak);
    /* alignment of some hundred small buffers */
    assert_true(now <= p->total_bytes + (1u << 20));
    assert_true(now + (1u << 20) >= p->total_bytes);
    model_fixture_close(&f);
}

/* ---- the largest allocation and dispatch ---- */

static PFN_vkAllocateMemory allocate;
static uint64_t largest;
static bool slow;

static VKAPI_ATTR VkResult VKAPI_CALL allocate_noting(VkDevice device,
                                                      const VkMemoryAllocateInfo *info,
                                                      const VkAllocationCallbacks *callbacks,
                                                      VkDeviceMemory *memory)
{
    largest = info->allocationSize > largest ? info->allocationSize : largest;
    return allocate(device, info, callbacks, memory);
}

/* Logits of a prompt on a device opened with these limits; *chunk: the plan's. */
static float *logits_within(uint64_t limit, uint32_t dispatch_ms, size_t *n_vocab, uint32_t *chunk)
{
    int32_t prompt[200];
    for (int i = 0; i < 200; i++)
        prompt[i] = (i * 37 + 5) % 400;
    ful_instance *instance = NULL;
    ful_device *device = NULL;
    ful_model *model = NULL;
    ful_session *session = NULL;
    ful_plan plan;
    EXPECT_OK(ful_instance_create(
        &instance, ful_instance_params(.validation = getenv("FULGUR_TEST_VALIDATION") != NULL)));
    EXPECT_OK(ful_device_open(&device, instance,
                              ful_device_params(.name_part = getenv("FULGUR_TEST_DEVICE"),
                                                .max_allocation_bytes = limit,
                                                .max_dispatch_ms = dispatch_ms, .cache_dir = "",
                                                .selftest = FUL_SELFTEST_NEVER)));
    if (limit != UINT64_MAX && limit != 0)
        assert_true(ful_device_get_info(device)->caps.allocation_bytes <= limit);
    slow = ful_device_get_info(device)->kind == FUL_DEVICE_CPU;
    allocate = device->fn.vkAllocateMemory;
    device->fn.vkAllocateMemory = allocate_noting;
    largest = 0;
    EXPECT_OK(ful_model_plan(instance, golden_dir, device,
                             ful_plan_params(.precision = FUL_PRECISION_F32), &plan));
    EXPECT_OK(ful_model_load(&model, device, golden_dir, &plan, NULL, NULL));
    EXPECT_OK(ful_session_create(&session, model, NULL));
    *chunk = ful_model_get_plan(model)->chunk_tokens;
    EXPECT_OK(ful_prefill(session, prompt, 200));
    const float *logits;
    EXPECT_OK(ful_logits(session, &logits, n_vocab));
    float *copy = malloc(*n_vocab * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, logits, *n_vocab * sizeof *copy);
    ful_session_destroy(&session);
    ful_model_destroy(&model);
    ful_device_close(&device);
    ful_instance_destroy(&instance);
    return copy;
}

/* Tensors that one allocation has no room for lie in several, and nothing else changes. */
static void test_allocations(void **state)
{
    (void)state;
    enum { LIMIT = 256 << 10 };
    size_t n_vocab, again;
    uint32_t chunk;
    float *whole = logits_within(UINT64_MAX, 0, &n_vocab, &chunk);
    assert_true(largest > LIMIT);
    float *parts = logits_within(LIMIT, 0, &again, &chunk);
    assert_in_range(largest, 1, LIMIT);
    assert_int_equal(n_vocab, again);
    EXPECT_ERROR_BELOW(max_rel_error_ff(parts, whole, n_vocab), 1e-5, "logits");
    free(parts);
    free(whole);
}

/* A device that would take long for a dispatch gets shorter chunks, and nothing else changes. */
static void test_dispatches(void **state)
{
    (void)state;
    size_t n_vocab, again;
    uint32_t chunk, shorter;
    float *whole = logits_within(0, UINT32_MAX, &n_vocab, &chunk);
    float *parts = logits_within(0, 1, &again, &shorter);
    assert_in_range(shorter, 32, chunk); /* less where the device is guessed slow: processors */
    if (slow)
        assert_true(shorter < chunk);
    assert_int_equal(n_vocab, again);
    EXPECT_ERROR_BELOW(max_rel_error_ff(parts, whole, n_vocab), 1e-5, "logits");
    free(parts);
    free(whole);
}

static bool cancel_at_once(void *ctx, const ful_progress *p)
{
    (void)ctx;
    assert_true(p->total > 0 && p->done <= p->total);
    return false;
}

static void test_cancel_load(void **state)
{
    (void)state;
    device_fixture d;
    ful_model *model = NULL;
    fixture_open(&d, "");
    assert_int_equal(ful_model_load(&model, d.device, golden_dir, NULL, cancel_at_once, NULL),
                     FUL_ERR_CANCELLED);
    assert_null(model);
    fixture_close(&d); /* fails if anything is still held */
}

int main(void)
{
    fixture_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_arguments),   cmocka_unit_test(test_generate),
        cmocka_unit_test(test_reset),       cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_memory),      cmocka_unit_test(test_plan),
        cmocka_unit_test(test_cancel_load), cmocka_unit_test(test_allocations),
        cmocka_unit_test(test_dispatches),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
