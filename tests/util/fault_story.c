#include "util/fault_story.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const model_dir = FUL_TEST_DATA "/golden/mixed-factors";
static const int32_t prompt[] = {5, 6, 7, 120, 44, 9, 31, 2, 3, 17, 80, 81, 82, 83, 84, 85, 86, 87};
enum { PROMPT = sizeof prompt / sizeof *prompt, CHUNK = 16, CONTEXT = 64 };

static void note(void *ctx, ful_log_level level, const char *message)
{
    story *s = ctx;
    if (getenv("FULGUR_TEST_LOG"))
        fprintf(stderr, "log %d: %s\n", (int)level, message);
    if (level > FUL_LOG_WARNING || strncmp(message, "vulkan: ", 8) == 0)
        return;
    s->warnings++;
    s->seen = s->seen || (s->watched != NULL && strstr(message, s->watched) != NULL);
    snprintf(s->warning, sizeof s->warning, "%s", message);
}

static bool take(void *ctx, int32_t token)
{
    story_text *t = ctx;
    assert_true(t->count < STORY_TOKENS);
    t->tokens[t->count++] = token;
    return true;
}

/* The text must be what `want` says from `from` on. */
static void expect_text(const story *s, const story_text *t, int from, const char *when)
{
    if (s->want == NULL)
        return;
    for (int i = 0; i < t->count; i++)
        if (from + i >= s->want->count || t->tokens[i] != s->want->tokens[from + i])
            fail_msg("%s: token %d is %d, not %d", when, i, t->tokens[i],
                     from + i < s->want->count ? s->want->tokens[from + i] : -1);
}

static ful_result generate(ful_session *session, int most, story_text *t)
{
    static const int32_t never = -1;
    t->count = 0;
    return ful_generate(
        session,
        ful_generate_params(.max_tokens = (size_t)most, .stop_tokens = &never, .n_stop_tokens = 1),
        take, t, NULL);
}

/* With what the session says it holds, and the rest: an error, or the right text. */
static bool go_on(story *s, ful_session *session)
{
    story_text t = {.count = 0};
    size_t held = ful_session_tokens(session, NULL);
    ful_result r = FUL_OK;
    /* One by one: other recordings than those that failed. */
    for (; held < PROMPT && r == FUL_OK; held++)
        r = ful_decode(session, prompt[held]);
    int from = (int)(held - PROMPT);
    if (r == FUL_OK && from < STORY_TOKENS)
        r = generate(session, STORY_TOKENS - from, &t);
    expect_text(s, &t, from, "going on");
    if (r != FUL_OK)
        assert_true(ful_last_error()[0] != 0);
    return r == FUL_OK && from + t.count == STORY_TOKENS;
}

static void recover(story *s, ful_session *session)
{
    if (s->faults != NULL)
        s->faults->fail_at = 0;
    s->went_on = go_on(s, session);
    if (s->result == FUL_ERR_DEVICE_LOST)
        return;
    if (ful_session_reset(session) == FUL_OK) {
        bool right = go_on(s, session);
        s->went_on = s->went_on || right;
    }
}

typedef struct objects {
    ful_instance *instance;
    ful_device *device;
    ful_model *model;
    ful_session *session;
} objects;

static ful_result open_device(story *s, objects *o)
{
    TRY(ful_device_open(
        &o->device, o->instance,
        ful_device_params(.caps = s->caps, .cache_dir = s->cache_dir ? s->cache_dir : "",
                          .name_part = getenv("FULGUR_TEST_DEVICE"),
                          .selftest = s->selftest ? FUL_SELFTEST_ON_LOAD : FUL_SELFTEST_NEVER)));
    if (s->wide && device_is_cpu(o->device))
        o->device->info.kind = FUL_DEVICE_OTHER;
    VkPhysicalDeviceMemoryProperties *memory = &o->device->facts.memory;
    for (uint32_t i = 0; i < memory->memoryTypeCount && s->incoherent; i++)
        memory->memoryTypes[i].propertyFlags &=
            ~(VkMemoryPropertyFlags)VK_MEMORY_PROPERTY_HOST_COHERENT_BIT;
    if (s->faults != NULL && device_is_built_in(o->device))
        fault_vulkan_adopt(o->device);
    return FUL_OK;
}

static ful_result tell(story *s, objects *o)
{
    ful_plan plan;
    s->stage = "instance";
    TRY(ful_instance_create(
        &o->instance, ful_instance_params(.log = note, .log_ctx = s, .alloc = s->alloc,
                                          .log_level = FUL_LOG_WARNING,
                                          .validation = getenv("FULGUR_TEST_VALIDATION") != NULL)));
    s->stage = "device";
    TRY(open_device(s, o));
    s->unified = ful_device_get_info(o->device)->caps.unified_memory;
    s->stage = "plan";
    TRY(ful_model_plan(o->instance, model_dir, o->device,
                       ful_plan_params(.max_tokens = CONTEXT, .chunk_tokens = CHUNK,
                                       .decay = FUL_DECAY_HF, .precision = FUL_PRECISION_F32),
                       &plan));
    s->stage = "load";
    TRY(ful_model_load(&o->model, o->device, model_dir, &plan, NULL, NULL));
    s->stage = "session";
    TRY(ful_session_create(&o->session, o->model, NULL));
    s->stage = "prefill";
    TRY(ful_prefill(o->session, prompt, PROMPT));
    s->stage = "generate";
    TRY(generate(o->session, STORY_TOKENS, &s->text));
    s->stage = NULL;
    return FUL_OK;
}

void story_run(story *s)
{
    objects o = {NULL, NULL, NULL, NULL};
    s->text.count = s->warnings = 0;
    s->warning[0] = s->line[0] = 0;
    s->went_on = s->seen = false;
    if (s->faults != NULL)
        fault_vulkan_begin(s->faults);
    s->result = tell(s, &o);
    if (s->result != FUL_OK)
        snprintf(s->line, sizeof s->line, "%s", ful_last_error());
    expect_text(s, &s->text, 0, s->result == FUL_OK ? "text" : "text before an error");
    if (s->result != FUL_OK && o.session != NULL)
        recover(s, o.session);
    ful_session_destroy(&o.session);
    ful_model_destroy(&o.model);
    uint64_t held = 0;
    ful_device_memory(o.device, &held, NULL);
    ful_device_close(&o.device);
    uint64_t complaints = ful_instance_validation_errors(o.instance);
    ful_instance_destroy(&o.instance);
    if (s->faults != NULL) {
        fault_vulkan_end();
        assert_int_equal(s->faults->live, 0);
    }
    assert_int_equal(held, 0);
    assert_int_equal(complaints, 0);
}
