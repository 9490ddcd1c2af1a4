/* Drivers that take back at the last moment what they listed, damaged caches, and kernels that give
 * wrong results: the text is right all the same, or an error says what is missing. */
#include "util/fault_story.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>

#include <cmocka.h>

#include "base/file.h"
#include "util/device_fixture.h"
#include "util/gpu_fixture.h"
#include "util/scratch.h"

enum { MODULES_MOST = 80 };

/* What a driver refuses, and what it was asked for. */
typedef struct refusal {
    int devices;           /* the first so many */
    const char *extension; /* those with this one, too */
    VkResult result;
    int asked;          /* how often for a device */
    const char *module; /* this pipeline */
    const char *seen[MODULES_MOST];
    int seen_count;
} refusal;

static VkResult refuse_device(void *ctx, const VkDeviceCreateInfo *info)
{
    refusal *r = ctx;
    bool named = false;
    for (uint32_t i = 0; i < info->enabledExtensionCount && r->extension != NULL; i++)
        named = named || strcmp(info->ppEnabledExtensionNames[i], r->extension) == 0;
    return ++r->asked <= r->devices || named ? r->result : VK_SUCCESS;
}

static VkResult refuse_shader(void *ctx, const char *module)
{
    refusal *r = ctx;
    bool known = false;
    for (int i = 0; i < r->seen_count; i++)
        known = known || strcmp(r->seen[i], module) == 0;
    if (!known && r->seen_count < MODULES_MOST)
        r->seen[r->seen_count++] = module;
    return r->module != NULL && strcmp(r->module, module) == 0 ? r->result : VK_SUCCESS;
}

static story_text right;
static bool built_in;

static story told(story s, fault_vulkan *f)
{
    s.faults = f;
    s.want = right.count > 0 ? &right : NULL;
    story_run(&s);
    if (getenv("FULGUR_TEST_LOG"))
        print_message("%s %s | %s\n", ful_result_name(s.result), s.line, s.warning);
    return s;
}

static void expect_right(const story *s)
{
    if (s->result != FUL_OK)
        fail_msg("%s: %s", s->stage, s->line);
    assert_int_equal(s->text.count, STORY_TOKENS);
}

static int setup(void **state)
{
    (void)state;
    unsetenv("FULGUR_FAULT");
    scratch_begin();
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unsetenv("FULGUR_FAULT");
    scratch_end();
    return 0;
}

/* ---- devices ---- */

/* True if the device has features of those that go first and of those that go last. */
static bool newer_and_older(void)
{
    log_seen seen;
    ful_instance *in = gpu_test_instance(&seen);
    ful_device *d = gpu_test_open(in, NULL);
    uint32_t have = device_caps(d)->features;
    gpu_test_close(&d);
    gpu_test_instance_end(&in);
    return (have & (FUL_FEATURE_TIMELINE | FUL_FEATURE_MEMORY_BUDGET)) != 0 &&
           (have & (FUL_FEATURE_FP16 | FUL_FEATURE_STORAGE16)) != 0;
}

static void test_features(void **state)
{
    (void)state;
    static const VkResult results[] = {VK_ERROR_FEATURE_NOT_PRESENT, VK_ERROR_EXTENSION_NOT_PRESENT,
                                       VK_ERROR_INITIALIZATION_FAILED, VK_ERROR_UNKNOWN};
    if (built_in)
        skip();
    bool both = newer_and_older();
    for (int run = 0; run < (fixture_full() ? 8 : 2); run++) {
        int times = 1 + run % 2;
        VkResult result = results[run / 2];
        refusal r = {.devices = times, .result = result};
        fault_vulkan f = {.refuse_device = refuse_device, .ctx = &r};
        story s = told((story){.wide = times == 1}, &f);
        expect_right(&s);
        if (!both && r.asked <= times)
            continue; /* there was less to leave out: the processor took over */
        assert_int_equal(r.asked, times + 1);
        assert_int_equal(s.warnings, 1);
        assert_non_null(strstr(s.warning, vk_result_name(result)));
        assert_non_null(strstr(s.warning, "going on without"));
        assert_true((strstr(s.warning, "storage16") != NULL) == (times == 2));
    }
    /* All of them: the processor, unless the device was asked for. */
    refusal r = {.devices = 100, .result = VK_ERROR_FEATURE_NOT_PRESENT};
    fault_vulkan f = {.refuse_device = refuse_device, .ctx = &r};
    bool named = getenv("FULGUR_TEST_DEVICE") != NULL || getenv("FULGUR_DEVICE") != NULL;
    story s = told((story){.wide = false}, &f);
    assert_true(r.asked == 3 || !both);
    assert_int_equal(s.result, named ? FUL_ERR_UNSUPPORTED : FUL_OK);
    const char *line = named ? s.line : s.warning;
    assert_non_null(strstr(line, "vkCreateDevice failed with VK_ERROR_FEATURE_NOT_PRESENT"));
}

/* A driver that has cooperative matrices in its list alone. */
static void test_extension(void **state)
{
    (void)state;
    refusal r = {.extension = "VK_KHR_cooperative_matrix",
                 .result = VK_ERROR_EXTENSION_NOT_PRESENT};
    fault_vulkan f = {.refuse_device = refuse_device, .ctx = &r};
    story s = told((story){.wide = true}, &f);
    expect_right(&s);
    assert_true(built_in || r.asked <= 2);
    if (r.asked == 2)
        assert_non_null(strstr(s.warning, "coopmat"));
    else
        assert_int_equal(s.warnings, 0);
}

/* ---- kernels ---- */

/* The modules that a story uses. */
static refusal modules_of(bool wide, bool selftest)
{
    refusal r = {.module = NULL};
    fault_vulkan f = {.refuse_shader = refuse_shader, .ctx = &r};
    story s = told((story){.wide = wide, .selftest = selftest}, &f);
    expect_right(&s);
    assert_int_equal(s.warnings, 0);
    assert_true(r.seen_count > 8);
    return r;
}

/* Every `stride`th one at level quick. */
static bool walked(int i, int stride)
{
    return fixture_full() || ((size_t)i + fixture_offset()) % (size_t)stride == 0;
}

/* True if the line names the module, or one that only other weights tell from it. */
static bool names_family(const char *line, const char *module)
{
    static const char *const suffixes[] = {"_f32", "_f16", "_bf16"};
    char family[96];
    snprintf(family, sizeof family, "%s", module);
    for (int i = 0; i < 3; i++) {
        size_t all = strlen(module), bytes = strlen(suffixes[i]);
        if (all > bytes && strcmp(module + all - bytes, suffixes[i]) == 0)
            family[all - bytes] = 0;
    }
    return strstr(line, family) != NULL;
}

/* Each pipeline in its turn can't be compiled: the next variant, the processor, or an error that
 * names it. */
static void check_refused(bool wide)
{
    refusal all = modules_of(wide, false);
    int others = 0, errors = 0;
    for (int i = 0; i < all.seen_count; i++) {
        if (!walked(i, built_in ? 1 : 9))
            continue;
        refusal r = {.module = all.seen[i],
                     .result = i % 2 == 0 ? VK_ERROR_UNKNOWN : VK_ERROR_INVALID_SHADER_NV};
        fault_vulkan f = {.refuse_shader = refuse_shader, .ctx = &r};
        story s = told((story){.wide = wide}, &f);
        if (s.result == FUL_OK) {
            expect_right(&s);
            others++;
            continue;
        }
        errors++;
        if (getenv("FULGUR_TEST_LOG"))
            print_message("without %s: %s\n", all.seen[i], s.line);
        assert_true(s.result == FUL_ERR_SELFTEST || s.result == FUL_ERR_UNSUPPORTED);
        if (!names_family(s.line, all.seen[i]))
            fail_msg("%s is not named: %s", all.seen[i], s.line);
    }
    print_message("%s: %d kernels; without one: %d texts, %d errors\n", wide ? "wide" : "as it is",
                  all.seen_count, others, errors);
    assert_true(built_in || errors == 0 || others > 0);
}

static void test_refused(void **state)
{
    (void)state;
    check_refused(false);
    if (!built_in)
        check_refused(true);
}

/* Each kernel in its turn is wrong: the self-test finds it before a token is. */
static void check_wrong(bool wide)
{
    refusal all = modules_of(wide, true);
    int found = 0, tried = 0;
    for (int i = 0; i < all.seen_count; i++) {
        char fault[96];
        if (!walked(i, 13))
            continue;
        snprintf(fault, sizeof fault, "selftest:%s", all.seen[i]);
        setenv("FULGUR_FAULT", fault, 1);
        fault_vulkan f = {.fail_at = 0};
        story s = told((story){.wide = wide, .selftest = true, .watched = all.seen[i]}, &f);
        unsetenv("FULGUR_FAULT");
        tried++;
        /* The last of its kind: the processor takes over only where it shares the memory. */
        if (s.result == FUL_ERR_SELFTEST && !s.unified) {
            if (!names_family(s.line, all.seen[i]))
                fail_msg("%s is not named: %s", all.seen[i], s.line);
            found++;
            continue;
        }
        expect_right(&s);
        found += s.warnings > 0;
        /* Some are part of another's test alone. */
        if (s.warnings > 0 && !s.seen)
            fail_msg("%s: %s", all.seen[i], s.warning);
    }
    print_message("%s: %d kernels made wrong, %d of them are the subject of a test\n",
                  wide ? "wide" : "as it is", tried, found);
    assert_true(!fixture_full() || found * 2 > tried);
}

static void test_wrong(void **state)
{
    (void)state;
    if (built_in)
        skip(); /* faults are those of drivers */
    check_wrong(false);
    check_wrong(true);
}

/* ---- caches ---- */

/* The cache of pipelines in `dir`; "" if there is none. */
static void cache_file(const char *dir, char *path, size_t bytes)
{
    DIR *folder = opendir(dir);
    path[0] = 0;
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder)) != NULL;)
        if (strncmp(e->d_name, "pipelines-", 10) == 0)
            snprintf(path, bytes, "%s/%s", dir, e->d_name);
    closedir(folder);
}

static size_t file_size(const char *path)
{
    char *data = NULL;
    size_t bytes = 0;
    ful_alloc a = mem_functions(NULL);
    EXPECT_OK(file_read(&a, path, 1u << 28, &data, &bytes));
    free(data);
    return bytes;
}

/* Whatever is in it, the model loads, and a sound one takes its place. */
static void check_cache(const char *dir, const char *path, const uint8_t *bytes, size_t count,
                        size_t sound, bool warned)
{
    fault_vulkan f = {.fail_at = 0};
    EXPECT_OK(file_write_atomic(path, bytes, count));
    story s = told((story){.cache_dir = dir}, &f);
    expect_right(&s);
    assert_true(s.warnings > 0 || !warned);
    if (warned)
        assert_non_null(strstr(s.warning, "pipeline cache"));
    /* What drivers keep of the same kernels varies: NVIDIA's twofold. */
    size_t size = file_size(path);
    if (size < sound / 2)
        fail_msg("a cache of %zu bytes in place of %zu, after one of %zu", size, sound, count);
    s = told((story){.cache_dir = dir}, &f);
    expect_right(&s);
    assert_int_equal(s.warnings, 0);
}

static void test_cache(void **state)
{
    (void)state;
    if (built_in)
        skip(); /* it compiles nothing */
    char path[600], *data;
    const char *dir = scratch_path("cache");
    fault_vulkan f = {.fail_at = 0};
    story s = told((story){.cache_dir = dir}, &f);
    expect_right(&s);
    assert_int_equal(s.warnings, 0);
    cache_file(dir, path, sizeof path);
    assert_true(path[0] != 0);
    size_t bytes;
    ful_alloc a = mem_functions(NULL);
    EXPECT_OK(file_read(&a, path, 1u << 28, &data, &bytes));
    uint8_t *bad = malloc(bytes);
    assert_non_null(bad);
    memcpy(bad, data, bytes);
    check_cache(dir, path, bad, 0, bytes, false);
    check_cache(dir, path, bad, bytes, bytes, false);
    size_t step = fixture_full() ? 8 : 80;
    for (size_t cut = 1; cut < CACHE_HEADER_BYTES + 40 && cut < bytes; cut += step)
        check_cache(dir, path, bad, cut, bytes, true);
    check_cache(dir, path, bad, bytes - 1, bytes, true);
    const size_t flips[] = {60, 116, bytes / 2}; /* our UUID, the driver's header, its data */
    for (size_t i = 0; i < sizeof flips / sizeof *flips; i++) {
        bad[flips[i]] ^= 0x10;
        check_cache(dir, path, bad, bytes, bytes, true);
        bad[flips[i]] ^= 0x10;
    }
    free(bad);
    free(data);
}

/* The cache's own calls fail: only time is lost, or the error is clear. */
static void test_cache_calls(void **state)
{
    (void)state;
    static const char *const names[] = {"vkCreatePipelineCache", "vkGetPipelineCacheData"};
    static const VkResult results[] = {VK_ERROR_OUT_OF_HOST_MEMORY, VK_ERROR_OUT_OF_DEVICE_MEMORY,
                                       VK_INCOMPLETE};
    if (built_in)
        skip();
    const char *dir = scratch_path("cache");
    for (int name = 0; name < 2; name++)
        for (int i = 0; i < (name == 0 ? 2 : 3); i++)
            for (size_t at = 1; at <= 2; at++) {
                if (!fixture_full() && ((size_t)i + at) % 2 == 0)
                    continue;
                fault_vulkan f = {.result = results[i], .fail_at = at, .only = names[name]};
                story s = told((story){.cache_dir = dir}, &f);
                if (s.result != FUL_OK)
                    assert_non_null(strstr(s.line, names[name]));
                else
                    expect_right(&s);
                f = (fault_vulkan){.fail_at = 0};
                s = told((story){.cache_dir = dir}, &f);
                expect_right(&s);
                assert_int_equal(s.warnings, 0);
            }
}

int main(void)
{
    gpu_test_require_device();
    gpu_test_hold_driver();
    built_in = gpu_test_built_in();
    fault_vulkan f = {.fail_at = 0};
    story s = told((story){.wide = false}, &f);
    right = s.text;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_features, setup, teardown),
        cmocka_unit_test_setup_teardown(test_extension, setup, teardown),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cache, setup, teardown),
        cmocka_unit_test_setup_teardown(test_cache_calls, setup, teardown),
    };
    return cmocka_run_group_tests_name("faults_device", tests, NULL, NULL);
}
