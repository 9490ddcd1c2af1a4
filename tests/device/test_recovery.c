/* A device that is lost in the middle of a text: the session still tells what it was fed, and a
 * session rebuilt from that goes on with the text as it would have been. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "fulgur/session.h"
#include "util/fault_vulkan.h"

#include <cmocka.h>

#include "util/device_fixture.h"
#include "util/gpu_fixture.h"

static const char *const model_dir = FUL_TEST_DATA "/golden/mixed-factors";
static const int32_t prompt[] = {5, 6, 7, 120, 44, 9, 31, 2, 3, 17, 80, 81, 82, 83, 84, 85, 86, 87};
enum { PROMPT = sizeof prompt / sizeof *prompt, NEW = 14, WHOLE = PROMPT + NEW, CHUNK = 8 };

/* The prompt and what was handed out. */
typedef struct text {
    int32_t tokens[WHOLE];
    size_t count;
} text;

typedef struct rig {
    fault_vulkan faults;
    bool wide; /* as on a GPU: tokens are drawn on the device, ahead of the host */
    ful_instance *instance;
    log_seen seen;
    ful_device *device;
    ful_model *model;
    ful_session *session;
} rig;

/* ---- building ---- */

static void build(rig *r)
{
    ful_plan plan;
    GPU_OK(ful_device_open(&r->device, r->instance,
                           ful_device_params(.cache_dir = "",
                                             .name_part = getenv("FULGUR_TEST_DEVICE"),
                                             .selftest = FUL_SELFTEST_NEVER)));
    if (r->wide && device_is_cpu(r->device))
        r->device->info.kind = FUL_DEVICE_OTHER;
    if (device_is_built_in(r->device))
        fault_vulkan_adopt(r->device);
    GPU_OK(ful_model_plan(r->instance, model_dir, r->device,
                          ful_plan_params(.max_tokens = WHOLE, .chunk_tokens = CHUNK,
                                          .decay = FUL_DECAY_HF, .precision = FUL_PRECISION_F32),
                          &plan));
    GPU_OK(ful_model_load(&r->model, r->device, model_dir, &plan, NULL, NULL));
    GPU_OK(ful_session_create(&r->session, r->model, ful_session_params(.chunk_tokens = CHUNK)));
}

static void take_down(rig *r)
{
    ful_session_destroy(&r->session);
    ful_model_destroy(&r->model);
    gpu_test_close(&r->device);
}

static void begin(rig *r, bool wide)
{
    *r = (rig){.faults = {.result = VK_ERROR_DEVICE_LOST}, .wide = wide};
    fault_vulkan_begin(&r->faults);
    r->instance = gpu_test_instance(&r->seen);
    build(r);
}

static void end(rig *r)
{
    take_down(r);
    gpu_test_instance_end(&r->instance);
    fault_vulkan_end();
    assert_int_equal(r->faults.live, 0);
}

/* ---- telling ---- */

static bool take(void *ctx, int32_t token)
{
    text *t = ctx;
    assert_true(t->count < WHOLE);
    t->tokens[t->count++] = token;
    return true;
}

/* Feeds what the session lacks of the text and draws what is missing. */
static ful_result go_on(ful_session *session, text *t, const ful_sampler_params *sampler)
{
    static const int32_t never = -1;
    size_t held = ful_session_tokens(session, NULL);
    TRY(ful_prefill(session, t->tokens + held, t->count - held));
    if (t->count == WHOLE)
        return FUL_OK;
    return ful_generate(session,
                        ful_generate_params(.max_tokens = WHOLE - t->count, .sampler = sampler,
                                            .stop_tokens = &never, .n_stop_tokens = 1),
                        take, t, NULL);
}

/* What the session says it holds is what was fed for certain: a beginning of the text, of whose
 * new tokens at most the last one is missing. A copy in `kept`. */
static size_t expect_kept(rig *r, const text *t, int32_t kept[WHOLE])
{
    const int32_t *tokens;
    size_t held = ful_session_tokens(r->session, &tokens);
    assert_true(held <= t->count);
    assert_true(t->count == PROMPT ? held % CHUNK == 0 || held == PROMPT : held + 1 >= t->count);
    assert_memory_equal(tokens, t->tokens, held * sizeof *tokens);
    /* A call that fails leaves them as they are. */
    GPU_FAILS(ful_decode(r->session, 1), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(ful_prefill(r->session, prompt, 3), FUL_ERR_DEVICE_LOST);
    assert_int_equal(ful_session_tokens(r->session, &tokens), held);
    memcpy(kept, tokens, held * sizeof *tokens);
    return held;
}

/* Without a loss; returns how many calls it makes that may lose the device. */
static size_t tell_whole(rig *r, text *t, const ful_sampler_params *sampler)
{
    *t = (text){.count = PROMPT};
    memcpy(t->tokens, prompt, sizeof prompt);
    GPU_OK(ful_session_reset(r->session));
    size_t before = r->faults.calls;
    GPU_OK(go_on(r->session, t, sampler));
    assert_int_equal(t->count, WHOLE);
    return r->faults.calls - before;
}

/* Lost in the call with this number, a submission or a wait; true if the last token handed out had
 * not been fed. */
static bool lose(rig *r, size_t at, const text *want, const ful_sampler_params *sampler)
{
    text t = {.count = PROMPT};
    int32_t kept[WHOLE];
    memcpy(t.tokens, prompt, sizeof prompt);
    GPU_OK(ful_session_reset(r->session));
    r->faults.fail_at = r->faults.calls + at;
    GPU_FAILS(go_on(r->session, &t, sampler), FUL_ERR_DEVICE_LOST);
    r->faults.fail_at = 0;
    size_t handed = t.count, held = expect_kept(r, &t, kept);
    take_down(r);
    build(r);
    GPU_OK(ful_prefill(r->session, kept, held));
    GPU_OK(go_on(r->session, &t, sampler));
    assert_int_equal(t.count, WHOLE);
    for (int i = 0; i < WHOLE; i++)
        if (t.tokens[i] != want->tokens[i])
            fail_msg("lost at call %zu, with %zu tokens fed and %zu handed out: token %d is "
                     "%d, not %d",
                     at, held, handed - PROMPT, i, t.tokens[i], want->tokens[i]);
    return handed > PROMPT && held < handed;
}

static void walk(bool wide, const ful_sampler_params *sampler)
{
    static const char *const functions[] = {"vkQueueSubmit", "vkWaitForFences"};
    rig r;
    text want;
    size_t losses = 0, unfed = 0;
    begin(&r, wide);
    for (int i = 0; i < 2; i++) {
        if (!fixture_full() && i != (sampler != NULL))
            continue; /* a loss costs a whole model */
        r.faults.only = functions[i];
        size_t calls = tell_whole(&r, &want, sampler);
        for (size_t at = 1; at <= calls; at += fixture_full() ? 1 : 9, losses++)
            unfed += lose(&r, at, &want, sampler);
    }
    print_message("%s, %s: lost %zu times, %zu of them with a token not yet fed\n",
                  wide ? "wide" : "as it is", sampler ? "seeded" : "greedy", losses, unfed);
    assert_true(unfed > 0);
    end(&r);
}

static void walks(const ful_sampler_params *sampler)
{
    walk(false, sampler);
    if (!gpu_test_built_in()) /* it has one kind of kernels */
        walk(true, sampler);
}

static void test_greedy(void **state)
{
    (void)state;
    walks(NULL);
}

static void test_seeded(void **state)
{
    (void)state;
    walks(ful_sampler_params(.seed = 11, .temperature = 1.2f, .top_k = 40));
}

/* Of a test that failed. */
static int stop_faults(void **state)
{
    (void)state;
    fault_vulkan_end();
    return 0;
}

int main(void)
{
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_greedy, stop_faults),
        cmocka_unit_test_teardown(test_seeded, stop_faults),
    };
    return cmocka_run_group_tests_name("recovery", tests, NULL, NULL);
}
