/* Host allocations that fail, each in its turn, from the instance to a model's last token and back:
 * the error is clear, no token is wrong, every block is given back. */
#include "util/fault_story.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/device_fixture.h"
#include "util/fault_alloc.h"
#include "util/gpu_fixture.h"
#include "util/scratch.h"

static story_text right[2]; /* plain, wide */
static bool built_in;

/* One story; the allocation `at` fails. Returns how many there were. */
static size_t told(story s, size_t at, bool *error, bool *went_on)
{
    fault_alloc memory = {.fail_at = at};
    ful_alloc functions = fault_alloc_functions(&memory);
    fault_vulkan books = {.fail_at = 0};
    s.alloc = &functions;
    s.faults = &books;
    s.want = right[s.wide].count > 0 ? &right[s.wide] : NULL;
    char folder[32];
    snprintf(folder, sizeof folder, "cache-%zu", at); /* what one story kept, the next would use */
    if (s.cache_dir != NULL)
        s.cache_dir = scratch_path(folder);
    story_run(&s);
    if (getenv("FULGUR_TEST_LOG"))
        print_message("%4zu %-9s %2d tokens %s%s %s | %s\n", at, s.stage ? s.stage : "-",
                      s.text.count, ful_result_name(s.result), s.went_on ? " (went on)" : "",
                      s.line, s.warning);
    if (memory.live != 0)
        fail_msg("allocation %zu: %zu blocks are left", at, (size_t)memory.live);
    assert_false(memory.broken);
    assert_true(memory.failed == (at > 0));
    *error = s.result != FUL_OK;
    *went_on = s.went_on;
    if (s.result == FUL_OK) {
        assert_int_equal(s.text.count, STORY_TOKENS);
        right[s.wide] = s.text;
        return memory.calls;
    }
    /* The built-in device's memory is the host's. */
    if (s.result != FUL_ERR_HOST_MEMORY && !(built_in && s.result == FUL_ERR_DEVICE_MEMORY))
        fail_msg("allocation %zu: %s: %s", at, ful_result_name(s.result), s.line);
    if (strstr(s.line, "bytes") == NULL && strstr(s.line, "VK_ERROR_OUT_OF_HOST_MEMORY") == NULL)
        fail_msg("allocation %zu: unclear: %s", at, s.line);
    return memory.calls;
}

/* Every `stride`th. */
static void walk(story s, size_t stride)
{
    bool error, went_on;
    size_t errors = 0, going = 0, walked = 0;
    uint64_t start = time_ns();
    size_t offset = fixture_offset();
    size_t calls = told(s, 0, &error, &went_on);
    for (size_t at = 1 + offset % stride; at <= calls; at += stride) {
        told(s, at, &error, &went_on);
        walked++;
        errors += error;
        going += went_on;
    }
    print_message("%s%s: %zu allocations, %zu walked, %zu gave an error, %zu sessions went on; "
                  "%.1f s\n",
                  s.wide ? "wide" : "as it is", s.selftest ? ", self-test" : "", calls, walked,
                  errors, going, (double)(time_ns() - start) / 1e9);
}

static void test_plain(void **state)
{
    (void)state;
    walk((story){.wide = false}, fixture_full() || built_in ? 1 : 97);
}

static void test_wide(void **state)
{
    (void)state;
    if (built_in)
        skip(); /* it has one kind of kernels */
    walk((story){.wide = true}, fixture_full() ? 1 : 97);
}

/* With verdicts and pipelines kept in a folder. */
static void test_selftest(void **state)
{
    (void)state;
    size_t stride = built_in ? 13 : 199;
    if (fixture_full())
        stride = built_in ? 1 : 5;
    scratch_begin();
    walk((story){.selftest = true, .cache_dir = scratch_dir()}, stride);
    scratch_end();
}

int main(void)
{
    gpu_test_require_device();
    gpu_test_hold_driver();
    built_in = gpu_test_built_in();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_plain),
        cmocka_unit_test(test_wide),
        cmocka_unit_test(test_selftest),
    };
    return cmocka_run_group_tests_name("faults_host", tests, NULL, NULL);
}
