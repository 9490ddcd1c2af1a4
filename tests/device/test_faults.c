/* Vulkan calls that fail, each in its turn, from the first one to a model's last token: the error
 * is clear, no token is wrong, nothing is left behind. */
#include "util/fault_story.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/device_fixture.h"
#include "util/gpu_fixture.h"

static story_text right[2]; /* plain, wide */

/* Memory that has to be flushed, where nothing else adds calls. */
static story story_of(fault_vulkan *f, bool wide, bool selftest)
{
    return (story){.faults = f,
                   .wide = wide,
                   .selftest = selftest,
                   .incoherent = !wide && !selftest,
                   .want = &right[wide]};
}

static size_t count_calls(VkResult result, bool wide, bool selftest)
{
    fault_vulkan f = {.result = result};
    story s = story_of(&f, wide, selftest);
    if (right[wide].count == 0)
        s.want = NULL;
    uint64_t start = time_ns();
    story_run(&s);
    if (s.result != FUL_OK)
        fail_msg("without a fault: %s: %s", s.stage, s.line);
    right[wide] = s.text;
    assert_int_equal(s.text.count, STORY_TOKENS);
    print_message("%s%s: %zu calls may give %s; %.0f ms\n", wide ? "wide" : "as it is",
                  selftest ? ", self-test" : "", (size_t)f.calls, vk_result_name(result),
                  (double)(time_ns() - start) / 1e6);
    return f.calls;
}

static void expect_clear(const story *s, const fault_vulkan *f, size_t at)
{
    static const struct {
        VkResult result;
        ful_result error;
    } errors[] = {{VK_ERROR_DEVICE_LOST, FUL_ERR_DEVICE_LOST},
                  {VK_ERROR_OUT_OF_HOST_MEMORY, FUL_ERR_HOST_MEMORY},
                  {VK_ERROR_OUT_OF_DEVICE_MEMORY, FUL_ERR_DEVICE_MEMORY}};
    if (getenv("FULGUR_TEST_LOG"))
        print_message("%4zu %-28s %-9s %2d tokens %s%s %s\n", at, f->failed,
                      s->stage ? s->stage : "-", s->text.count, ful_result_name(s->result),
                      s->went_on ? " (went on)" : "", s->line);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].result == f->result && s->result != errors[i].error)
            fail_msg("call %zu, %s: %s: %s", at, f->failed, ful_result_name(s->result), s->line);
    bool named = strstr(s->line, vk_result_name(f->result)) != NULL ||
                 strstr(s->line, " bytes asked for") != NULL;
    if (!named)
        fail_msg("call %zu, %s: unclear: %s", at, f->failed, s->line);
    if (f->result == VK_ERROR_DEVICE_LOST && strstr(s->line, "steps") == NULL)
        fail_msg("call %zu, %s: no step is named: %s", at, f->failed, s->line);
}

static void walk(VkResult result, bool wide, bool selftest, size_t stride)
{
    size_t calls = count_calls(result, wide, selftest), errors = 0, went_on = 0, walked = 0;
    uint64_t start = time_ns();
    for (size_t at = 1 + fixture_offset() % stride; at <= calls; at += stride) {
        fault_vulkan f = {.result = result, .fail_at = at};
        story s = story_of(&f, wide, selftest);
        story_run(&s);
        walked++;
        if (f.failed == NULL)
            fail_msg("call %zu of %zu never came", at, calls);
        if (s.result == FUL_OK) {
            assert_int_equal(s.text.count, STORY_TOKENS);
            if (getenv("FULGUR_TEST_LOG"))
                print_message("%4zu %-28s no error%s%s\n", at, f.failed, s.warnings ? "; " : "",
                              s.warning);
            continue;
        }
        errors++;
        went_on += s.went_on;
        expect_clear(&s, &f, at);
    }
    print_message("  %zu walked, %zu gave an error, %zu sessions went on; %.1f s\n", walked, errors,
                  went_on, (double)(time_ns() - start) / 1e9);
}

/* Strides at level quick: seconds on a driver that compiles kernels on the processor, where each
 * story is a third of one. */
static void walks(VkResult result, size_t stride)
{
    ful_instance *in;
    log_seen seen;
    in = gpu_test_instance(&seen);
    ful_device *d = gpu_test_open(in, NULL);
    bool built_in = device_is_built_in(d);
    gpu_test_close(&d);
    gpu_test_instance_end(&in);
    bool full = fixture_full();
    walk(result, false, false, full || built_in ? 1 : stride);
    walk(result, false, true, full && built_in ? 1 : full ? 3 : built_in ? 11 : 3 * stride);
    if (!built_in) /* it has one kind of kernels */
        walk(result, true, false, full ? 1 : stride);
    if (!built_in && full)
        walk(result, true, true, 9);
}

static void test_lost(void **state)
{
    (void)state;
    walks(VK_ERROR_DEVICE_LOST, 29);
}

static void test_host_memory(void **state)
{
    (void)state;
    walks(VK_ERROR_OUT_OF_HOST_MEMORY, 149);
}

static void test_device_memory(void **state)
{
    (void)state;
    walks(VK_ERROR_OUT_OF_DEVICE_MEMORY, 149);
}

int main(void)
{
    gpu_test_require_device();
    gpu_test_hold_driver();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lost),
        cmocka_unit_test(test_host_memory),
        cmocka_unit_test(test_device_memory),
    };
    return cmocka_run_group_tests_name("faults", tests, NULL, NULL);
}
