/* Tuning: measuring the candidates, keeping the choices, and not believing what is not this
 * device's. */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/file.h"
#include "fulgur/tune.h"
#include "ops/tuning.h"
#include "util/device_fixture.h"
#include "util/scratch.h"

static log_seen seen;
static ful_instance *instance;

static int setup(void **state)
{
    (void)state;
    memset(&seen, 0, sizeof(seen));
    scratch_begin();
    instance = gpu_test_instance(&seen);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gpu_test_instance_end(&instance);
    scratch_end();
    return 0;
}

static ful_device *open_with(const char *caps)
{
    ful_device *d;
    GPU_OK(ful_device_open(&d, instance,
                           ful_device_params(.cache_dir = scratch_path("cache"), .caps = caps,
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    return d;
}

/* What the trials said. */
typedef struct trials {
    uint32_t count, defaults, chosen, wrong, stop_at;
    char last_wrong[200];
} trials;

static bool note(void *ctx, const ful_tune_trial *t)
{
    trials *s = ctx;
    s->count++;
    s->defaults += strcmp(t->value, "default") == 0;
    s->chosen += t->chosen;
    if (t->wrong) {
        s->wrong++;
        snprintf(s->last_wrong, sizeof(s->last_wrong), "%s, %s: %s", t->choice, t->value, t->wrong);
    } else {
        assert_true(t->us > 0 && t->least_us > 0 && t->least_us <= t->us);
    }
    return s->count != s->stop_at;
}

static const tune_sizes small = {.cols = 256,
                                 .weight_rows = 256,
                                 .experts = 4,
                                 .dim = 128,
                                 .width = 64,
                                 .step_width = 192,
                                 .heads = 8,
                                 .kv_heads = 2,
                                 .head_dim = 64,
                                 .keys = 512,
                                 .tokens = 200,
                                 .rounds = 3};

static ful_result tune_small(ful_device *d, trials *s, const char *only)
{
    return tune_device(d, OP_SHAPE_WIDE, &small,
                       ful_tune_params(.trial = note, .ctx = s, .only = only));
}

/* Every candidate gives what the default gives, and one of each choice's is taken. Tiles are the
 * same kernels for all numbers of rows: some of these do at the quick level. */
static void test_all(void **state)
{
    (void)state;
    ful_device *d = open_with(NULL);
    trials s = {0};
    static const char *const some[] = {"up to 32 rows", "matvec", "attention", NULL};
    for (int i = 0; some[i] && !fixture_full(); i++)
        GPU_OK(tune_small(d, &s, some[i]));
    if (fixture_full())
        GPU_OK(tune_small(d, &s, NULL));
    if (s.wrong > 0)
        fail_msg("%u candidates are wrong, the last %s", s.wrong, s.last_wrong);
    assert_true(s.count > 2 && s.defaults > 0);
    assert_int_equal(s.chosen, s.defaults);
    if (ful_device_get_info(d)->caps.features & FUL_FEATURE_COOPMAT)
        assert_true(s.defaults >= (fixture_full() ? 12u : 4u));
    gpu_test_close(&d);
}

static void test_public(void **state)
{
    (void)state;
    ful_device *d = open_with(NULL);
    trials s = {0};
    if (device_is_cpu(d)) {
        GPU_OK(ful_device_tune(d, ful_tune_params(.trial = note, .ctx = &s)));
        assert_int_equal(s.chosen, s.defaults);
        assert_int_equal(s.wrong, 0);
    }
    GPU_FAILS(ful_device_tune(NULL, NULL), FUL_ERR_ARGUMENT);
    GPU_FAILS(ful_device_tuning(d, NULL, NULL), FUL_ERR_ARGUMENT);
    gpu_test_close(&d);
}

static bool count_chosen(void *ctx, const ful_tune_trial *t)
{
    uint32_t *n = ctx;
    *n += t->chosen;
    return true;
}

static uint32_t chosen_now(const ful_device *d)
{
    uint32_t n = 0;
    GPU_OK(ful_device_tuning(d, count_chosen, &n));
    return n;
}

/* Stopping leaves things as they were; forgetting is for good. */
static void test_stopped(void **state)
{
    (void)state;
    uint32_t count;
    const tuning_field *f = tuning_fields(&count);
    ful_device *d = open_with(NULL);
    tuning_set(d, &f[count - 1], 64);
    trials s = {.stop_at = 2};
    GPU_FAILS(tune_small(d, &s, NULL), FUL_ERR_CANCELLED);
    assert_int_equal(tuning_get(d, &f[count - 1]), 64);
    assert_int_equal(chosen_now(d), 1);
    GPU_OK(device_choices_store(d));
    gpu_test_close(&d);
    d = open_with(NULL);
    assert_int_equal(chosen_now(d), 1);
    GPU_OK(ful_device_tune(d, ful_tune_params(.forget = true, .only = "no such choice")));
    assert_int_equal(chosen_now(d), 1);
    GPU_OK(ful_device_tune(d, ful_tune_params(.forget = true)));
    assert_int_equal(chosen_now(d), 0);
    gpu_test_close(&d);
    d = open_with(NULL);
    assert_int_equal(chosen_now(d), 0);
    gpu_test_close(&d);
    assert_int_equal(seen.warnings, 0);
}

/* What no build of this kind writes is not taken. */
static void test_unknown_values(void **state)
{
    (void)state;
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    ful_device *d = open_with(NULL);
    for (uint32_t i = 0; i < count; i++) {
        tuning_set(d, &fields[i], 12345);
        assert_int_equal(tuning_get(d, &fields[i]), 0);
    }
    tuning_set(d, &fields[0], tile_code(TILE_KIND_SUBGROUP, 16, 64));
    assert_int_equal(device_tuning(d).tile[0], tile_code(TILE_KIND_SUBGROUP, 16, 64));
    device_choice_set(d, 0, 99); /* the table's version */
    assert_int_equal(device_tuning(d).tile[0], 0);
    /* A kernel that the device does not have: the rule's is used. */
    tuning_set(d, &fields[0], tile_code(TILE_KIND_WORKGROUP, 4096, 4096));
    tuning_set(d, &fields[6], tile_code(TILE_KIND_SUBGROUP, 4096, 4096));
    trials s = {0};
    GPU_OK(tune_small(d, &s, "up to 32 rows"));
    assert_int_equal(s.wrong, 0);
    gpu_test_close(&d);
}

static void test_classes(void **state)
{
    (void)state;
    assert_int_equal(tuning_rows_class(1), 0);
    assert_int_equal(tuning_rows_class(16), 0);
    assert_int_equal(tuning_rows_class(17), 1);
    assert_int_equal(tuning_rows_class(512), 4);
    assert_int_equal(tuning_rows_class(513), 5);
    assert_int_equal(tuning_rows_class(UINT32_MAX), 5);
}

/* ---- the file ---- */

/* The application's cache, in memory. */
typedef struct memory_cache {
    char key[128];
    uint8_t bytes[1024];
    size_t size;
} memory_cache;

static bool cache_get(void *ctx, const char *key, void *data, size_t *bytes)
{
    memory_cache *m = ctx;
    if (m->size == 0 || strcmp(key, m->key) != 0)
        return false;
    if (data && *bytes >= m->size)
        memcpy(data, m->bytes, m->size);
    *bytes = m->size;
    return true;
}

static void cache_set(void *ctx, const char *key, const void *data, size_t bytes)
{
    memory_cache *m = ctx;
    if (strncmp(key, "tuning-", 7) != 0)
        return;
    assert_true(bytes <= sizeof(m->bytes) && strlen(key) < sizeof(m->key));
    strcpy(m->key, key);
    memcpy(m->bytes, data, bytes);
    m->size = bytes;
}

static ful_device *open_cached(memory_cache *m, const char *caps)
{
    ful_device *d;
    GPU_OK(ful_device_open(&d, instance,
                           ful_device_params(.cache_get = cache_get, .cache_set = cache_set,
                                             .cache_ctx = m, .caps = caps,
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    return d;
}

/* Each byte changed, and every length: never half believed. */
static void test_damaged(void **state)
{
    (void)state;
    uint32_t count;
    const tuning_field *f = tuning_fields(&count);
    memory_cache m = {.size = 0}, bad;
    ful_device *d = open_cached(&m, NULL);
    tuning_set(d, &f[count - 1], 64);
    GPU_OK(device_choices_store(d));
    gpu_test_close(&d);
    assert_true(m.size > 100);
    d = open_cached(&m, NULL);
    assert_int_equal(tuning_get(d, &f[count - 1]), 64);
    bool subgroups = (device_caps(d)->features & FUL_FEATURE_SUBGROUP) != 0;
    gpu_test_close(&d);
    assert_int_equal(seen.warnings, 0);
    d = open_cached(&m, "-subgroup"); /* others have their own */
    assert_int_equal(chosen_now(d), subgroups ? 0 : 1);
    gpu_test_close(&d);
    assert_int_equal(seen.warnings, 0);
    int warnings = 0;
    for (size_t i = 0; i < m.size; i += i < 112 ? 5 : 31) {
        bad = m;
        bad.bytes[i] ^= 0x41;
        d = open_cached(&bad, NULL);
        if (chosen_now(d) != 0)
            fail_msg("a tuning file with byte %zu of %zu changed is believed", i, m.size);
        gpu_test_close(&d);
        assert_int_equal(seen.warnings, ++warnings);
        bad = m;
        bad.size = i;
        d = open_cached(&bad, NULL);
        assert_int_equal(chosen_now(d), 0);
        gpu_test_close(&d);
        warnings += i > 0; /* an empty one is none */
        assert_int_equal(seen.warnings, warnings);
    }
    bad = m;
    bad.size += 8; /* longer than any */
    d = open_cached(&bad, NULL);
    assert_int_equal(chosen_now(d), 0);
    gpu_test_close(&d);
}

int main(void)
{
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_all, setup, teardown),
        cmocka_unit_test_setup_teardown(test_public, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown_values, setup, teardown),
        cmocka_unit_test_setup_teardown(test_classes, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
    };
    return cmocka_run_group_tests_name("tuning", tests, NULL, NULL);
}
