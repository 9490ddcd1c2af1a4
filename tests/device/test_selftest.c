/* Self-test: every kernel passes here; every fault put in is found, keeps its kernel out of use and
 * leaves the model right; verdicts outlive the device, and so does the note of a crash. */
#if !defined(_WIN32)
#define _POSIX_C_SOURCE 200809L
#endif

#include "util/gpu_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#if !defined(_WIN32)
#include <sys/wait.h>
#include <unistd.h>
#endif

#include <cmocka.h>

#include "base/process.h"
#include "fulgur/model.h"
#include "fulgur/selftest.h"
#include "fulgur/session.h"
#include "gpu/shaders.h"
#include "ops/selftest.h"
#include "util/compare.h"
#include "util/device_fixture.h"
#include "util/scratch.h"

static const char *const golden_dir = FUL_TEST_DATA "/golden/many-experts";
static const char *const demo_dir = FUL_TEST_DATA "/../samples/demo-model";

/* ---- log ---- */

static struct {
    int tests, warnings, errors; /* tests: kernels that were about to run */
    char last[400];              /* warning or error */
    const char *die_at;          /* a process that crashes in the test of this kernel */
    int taken;                   /* by the processor */
} told;

static void note(void *ctx, ful_log_level level, const char *message)
{
    static const char before[] = "self-test of ";
    (void)ctx;
    if (getenv("FULGUR_TEST_LOG"))
        fprintf(stderr, "log %d: %s\n", (int)level, message);
    if (level == FUL_LOG_TRACE && strncmp(message, before, sizeof(before) - 1) == 0) {
        told.tests++;
        if (told.die_at &&
            strncmp(message + sizeof(before) - 1, told.die_at, strlen(told.die_at)) == 0)
            _Exit(33);
    }
    if (strncmp(message, "vulkan: ", 8) == 0 || level > FUL_LOG_WARNING)
        return;
    told.warnings += level == FUL_LOG_WARNING;
    told.taken += strstr(message, "the processor takes its place") != NULL;
    told.errors += level == FUL_LOG_ERROR;
    snprintf(told.last, sizeof(told.last), "%s", message);
}

static ful_instance *instance;

static int setup(void **state)
{
    (void)state;
    memset(&told, 0, sizeof(told));
    unsetenv("FULGUR_FAULT");
    scratch_begin();
    GPU_OK(ful_instance_create(
        &instance, ful_instance_params(.log = note, .log_level = FUL_LOG_TRACE,
                                       .validation = getenv("FULGUR_TEST_VALIDATION") != NULL)));
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    unsetenv("FULGUR_FAULT");
    gpu_test_instance_end(&instance);
    scratch_end();
    return 0;
}

/* ---- devices and models ---- */

/* The verdicts alone, in memory; those of other faults are taken, too. */
typedef struct memory_cache {
    uint8_t bytes[8192];
    size_t size;
    int stored;
} memory_cache;

static bool cache_get(void *ctx, const char *key, void *data, size_t *bytes)
{
    memory_cache *m = ctx;
    if (m->size == 0 || strncmp(key, "selftest-", 9) != 0)
        return false;
    if (data && *bytes >= m->size)
        memcpy(data, m->bytes, m->size);
    *bytes = m->size;
    return true;
}

static void cache_set(void *ctx, const char *key, const void *data, size_t bytes)
{
    memory_cache *m = ctx;
    if (strncmp(key, "selftest-", 9) != 0)
        return;
    assert_true(bytes <= sizeof(m->bytes));
    memcpy(m->bytes, data, bytes);
    m->size = bytes;
    m->stored++;
}

/* wide: kernels as on a GPU, also if this is none. */
static ful_device *open_device(memory_cache *m, const char *fault, bool wide)
{
    ful_device *d;
    if (fault)
        setenv("FULGUR_FAULT", fault, 1);
    else
        unsetenv("FULGUR_FAULT");
    GPU_OK(ful_device_open(
        &d, instance,
        m ? ful_device_params(.cache_get = cache_get, .cache_set = cache_set, .cache_ctx = m,
                              .name_part = getenv("FULGUR_TEST_DEVICE"))
          : ful_device_params(.cache_dir = "", .name_part = getenv("FULGUR_TEST_DEVICE"))));
    if (wide && device_is_cpu(d))
        d->info.kind = FUL_DEVICE_OTHER;
    return d;
}

/* The built-in device leaves FULGUR_FAULT alone. */
static void need_driver(void)
{
    ful_device *d = open_device(NULL, NULL, false);
    bool built_in = device_is_built_in(d);
    gpu_test_close(&d);
    if (built_in)
        skip();
}

static ful_result load(ful_device *d, const char *dir, ful_precision precision, ful_model **model)
{
    ful_plan plan;
    GPU_OK(ful_model_plan(instance, dir, d,
                          ful_plan_params(.max_tokens = 128, .chunk_tokens = 64,
                                          .decay = FUL_DECAY_HF, .precision = precision),
                          &plan));
    return ful_model_load(model, d, dir, &plan, NULL, NULL);
}

enum { PROMPT = 41, GOLDEN_VOCAB = 400 };

/* Logits behind a chunk and a token. */
static void logits_of(ful_model *model, float *out)
{
    ful_session *s;
    int32_t prompt[PROMPT];
    const float *logits;
    size_t n;
    for (int i = 0; i < PROMPT; i++)
        prompt[i] = (i * 37 + 5) % GOLDEN_VOCAB;
    GPU_OK(ful_session_create(&s, model, NULL));
    GPU_OK(ful_prefill(s, prompt, PROMPT - 1));
    GPU_OK(ful_decode(s, prompt[PROMPT - 1]));
    GPU_OK(ful_logits(s, &logits, &n));
    assert_int_equal(n, GOLDEN_VOCAB);
    memcpy(out, logits, n * sizeof(*logits));
    ful_session_destroy(&s);
}

/* Those of a device with nothing wrong. */
static void logits_sound(bool wide, ful_precision precision, float *out)
{
    ful_device *d = open_device(NULL, NULL, wide);
    ful_model *model;
    GPU_OK(load(d, golden_dir, precision, &model));
    assert_int_equal(told.warnings + told.errors, 0);
    logits_of(model, out);
    ful_model_destroy(&model);
    gpu_test_close(&d);
}

/* Loads the small model, whose logits must be near `want`. */
static void expect_right(ful_device *d, ful_precision precision, const float *want)
{
    static float got[GOLDEN_VOCAB];
    ful_model *model;
    GPU_OK(load(d, golden_dir, precision, &model));
    logits_of(model, got);
    EXPECT_ERROR_BELOW(max_rel_error_ff(got, want, GOLDEN_VOCAB),
                       precision == FUL_PRECISION_F16 ? 2e-2 : 1e-4, "logits");
    ful_model_destroy(&model);
}

/* ---- all kernels ---- */

typedef struct rows {
    uint32_t count, wrong, stop_at;
    char first[40][48]; /* variants of choice 0 */
    uint32_t first_count;
    double ms;
    const char *watched; /* a variant: its verdict, and that of the next choice */
    ful_selftest_verdict verdict, next;
    bool seen, next_seen;
} rows;

static bool row(void *ctx, const ful_selftest_row *r)
{
    rows *s = ctx;
    s->count++;
    s->ms += r->ms;
    assert_true((r->why == NULL) == (r->verdict == FUL_SELFTEST_PASSED));
    if (r->why) {
        s->wrong++;
        if (!getenv("FULGUR_FAULT"))
            print_error("%s, %s: %s\n", r->op, r->variant, r->why);
    } else {
        assert_true(r->error <= r->tolerance);
    }
    if (s->seen && !s->next_seen && r->choice > 0) {
        s->next_seen = true;
        s->next = r->verdict;
    }
    if (s->watched && !s->seen && strcmp(r->variant, s->watched) == 0) {
        s->seen = true;
        s->verdict = r->verdict;
    }
    if (r->choice == 0 && s->first_count < 40)
        snprintf(s->first[s->first_count++], sizeof(s->first[0]), "%s", r->variant);
    return s->count != s->stop_at;
}

static void tour(bool wide, const char *only, uint32_t least)
{
    ful_device *d = open_device(NULL, NULL, wide);
    rows s = {0};
    GPU_OK(ful_device_selftest(d, ful_selftest_params(.row = row, .ctx = &s, .only = only)));
    print_message("%s: %u kernels tried, %.0f ms\n", wide ? "wide" : "as it is", s.count, s.ms);
    assert_int_equal(s.wrong, 0);
    assert_true(s.count >= least);
    assert_int_equal(told.warnings + told.errors, 0);
    gpu_test_close(&d);
}

static void test_all(void **state)
{
    (void)state;
    tour(false, NULL, 30);
}

static void test_all_wide(void **state)
{
    (void)state;
    need_driver();
    /* All of them on GPUs. Compilers of software drivers take a minute for what uses matrices. */
    ful_device *d = open_device(NULL, NULL, false);
    bool cpu = device_is_cpu(d);
    gpu_test_close(&d);
    if (!cpu) {
        tour(true, NULL, 60);
        return;
    }
    static const char *const some[] = {
        "norm",        "lightning",       "experts, 1 row",     "matmul, 1 row",
        "matmul with", "routing",         "experts, few",       "experts with",
        "sampling",    "matmul in parts", "attention on halves"};
    for (uint32_t i = 0; i < (fixture_full() ? 11u : 1u); i++)
        tour(true, some[i], 1);
}

static void test_arguments(void **state)
{
    (void)state;
    ful_device *d = open_device(NULL, NULL, false);
    rows s = {.stop_at = 2};
    GPU_FAILS(ful_device_selftest(NULL, NULL), FUL_ERR_ARGUMENT);
    GPU_FAILS(ful_device_selftest(d, ful_selftest_params(.row = row, .ctx = &s)),
              FUL_ERR_CANCELLED);
    assert_int_equal(s.count, 2);
    GPU_OK(ful_device_selftest(d, ful_selftest_params(.only = "no such op")));
    gpu_test_close(&d);
    static const char *const bad[] = {"selftest", "selftest:", "selftest:pack:often",
                                      "pack",     "lost",      "lost:",
                                      "lost:0",   "lost:2x"};
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        setenv("FULGUR_FAULT", bad[i], 1);
        GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.cache_dir = "")),
                  FUL_ERR_ARGUMENT);
        gpu_error_has("FULGUR_FAULT");
    }
    unsetenv("FULGUR_FAULT");
    GPU_FAILS(ful_device_open(&d, instance,
                              ful_device_params(.cache_dir = "", .selftest = (ful_selftest_when)7)),
              FUL_ERR_ARGUMENT);
}

/* One kernel after the other is made to fail, in one of its three runs at times: it is found and
 * kept out, its relatives of other weights with it, and the next choice is tried. */
static void test_each_fault(void **state)
{
    (void)state;
    need_driver();
    static const struct {
        const char *fault, *only, *variant;
        bool next, wide;
    } cases[] = {
        {"selftest:lightning_walk_half", "lightning prefill of", "lightning_walk_half", true,
         false},
        {"selftest:lightning_walk_half:once", "lightning prefill of", "lightning_walk_half", true,
         false},
        {"selftest:matvec_f16:third", "matmul, 1 row", "matvec_f16", false, false},
        {"selftest:moe_route_w*", "routing", "moe_route_wide", true, true},
        {"selftest:lightning_decode_wide:once", "lightning decode", "lightning_decode_wide", true,
         true},
        {"selftest:moe_route_up_subgroup", "experts with their choice", "moe_route_up_subgroup_f32",
         true, true},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        ful_device *d = open_device(NULL, cases[i].fault, cases[i].wide);
        const char *variant = cases[i].variant;
        bool there = gpu_module_usable(d, variant) && (cases[i].wide || device_is_cpu(d));
        rows s = {.watched = variant};
        ful_result r = ful_device_selftest(
            d, ful_selftest_params(.row = row, .ctx = &s, .only = cases[i].only));
        if (there && s.seen) {
            assert_int_equal(r, cases[i].next ? FUL_OK : FUL_ERR_SELFTEST);
            assert_int_equal(s.verdict, FUL_SELFTEST_WRONG);
            assert_false(gpu_module_usable(d, variant));
            assert_true(s.next_seen == cases[i].next);
            if (cases[i].next)
                assert_int_equal(s.next, FUL_SELFTEST_PASSED);
        } else {
            print_message("%s is not used here\n", variant);
        }
        gpu_test_close(&d);
    }
}

/* ---- loading a model ---- */

static void test_families(void **state)
{
    (void)state;
    need_driver();
    ful_device *d = open_device(NULL, NULL, false);
    uint32_t changes = gpu_trust_changes(d);
    gpu_family_set_trust(d, "matvec", GPU_TRUST_WRONG);
    assert_true(gpu_trust_changes(d) > changes);
    assert_false(gpu_family_usable(d, "matvec"));
    assert_false(gpu_module_usable(d, "matvec_bf16"));
    assert_true(gpu_module_usable(d, "matvec_wide_f32"));
    gpu_pipeline *p;
    gpu_pipeline_desc desc = {.module = "matvec_f16", .buffer_count = 4};
    if (processor_serves(d, "matvec_f16")) {
        GPU_OK(gpu_pipeline_get(d, &desc, &p));
        assert_true(p->on_processor);
    } else {
        GPU_FAILS(gpu_pipeline_get(d, &desc, &p), FUL_ERR_SELFTEST);
        gpu_error_has("matvec_f16");
    }
    gpu_trust_forget(d);
    gpu_family_hide(d, "matvec_wide");
    assert_false(gpu_module_usable(d, "matvec_wide_f32"));
    assert_true(gpu_module_usable(d, "matvec_f32"));
    gpu_families_show(d);
    assert_true(gpu_module_usable(d, "matvec_wide_f32"));
    gpu_test_close(&d);
}

/* Every kernel that a model asks for is reached by a test, but for what makes weights up; a device
 * with those verdicts tests nothing. */
static void check_covered(bool wide, ful_precision precision)
{
    memory_cache m = {.size = 0};
    ful_device *d = open_device(&m, NULL, wide);
    ful_model *model;
    if (precision == FUL_PRECISION_F16 && !op_half_usable(d)) {
        gpu_test_close(&d);
        return;
    }
    told.tests = 0;
    uint64_t start = time_ns();
    GPU_OK(load(d, golden_dir, precision, &model));
    print_message("%s: loaded in %.0f ms with %d tests\n", wide ? "wide" : "as it is",
                  (double)(time_ns() - start) / 1e6, told.tests);
    assert_true(told.tests >= 8);
    uint32_t passed = 0;
    for (uint32_t i = 0; i < shader_module_count; i++) {
        gpu_trust trust = gpu_module_trust(d, shader_modules[i].name);
        passed += trust == GPU_TRUST_PASSED;
        if (trust != GPU_TRUST_PASSED && trust != GPU_TRUST_UNKNOWN)
            fail_msg("no test reaches %s (%d)", shader_modules[i].name, (int)trust);
    }
    assert_true(passed >= 12);
    ful_model_destroy(&model);
    gpu_test_close(&d);
    int tests = told.tests;
    d = open_device(&m, NULL, wide);
    GPU_OK(load(d, golden_dir, precision, &model));
    assert_int_equal(told.tests, tests);
    assert_int_equal(told.warnings + told.errors, 0);
    ful_model_destroy(&model);
    gpu_test_close(&d);
}

static void test_covered(void **state)
{
    (void)state;
    check_covered(false, FUL_PRECISION_F32);
    if (!fixture_full())
        return; /* the same with other kernels, each of which a software driver compiles again */
    check_covered(false, FUL_PRECISION_F16);
    check_covered(true, FUL_PRECISION_F32);
    check_covered(true, FUL_PRECISION_F16);
}

/* Loads with faults in the kernels that the device would choose; the next ones are right. */
static void check_fallback(bool wide, ful_precision precision, const char *fault, uint32_t least)
{
    static float want[GOLDEN_VOCAB];
    memory_cache m = {.size = 0};
    told.warnings = 0;
    ful_device *d = open_device(&m, fault, wide);
    if (precision == FUL_PRECISION_F16 && !op_half_usable(d)) {
        gpu_test_close(&d);
        return;
    }
    gpu_test_close(&d);
    logits_sound(wide, precision, want);
    d = open_device(&m, fault, wide);
    expect_right(d, precision, want);
    if (told.warnings < (int)least)
        fail_msg("%s: %d kernels failed, at least %u should", fault, told.warnings, least);
    gpu_test_close(&d);
    /* The verdicts hold without the fault, and without testing again. */
    int tests = told.tests, warnings = told.warnings;
    d = open_device(&m, NULL, wide);
    assert_true(told.warnings > warnings);
    expect_right(d, precision, want);
    assert_int_equal(told.tests, tests);
    gpu_test_close(&d);
    told.warnings = 0;
}

static void test_fallback(void **state)
{
    (void)state;
    need_driver();
    ful_device *d = open_device(NULL, NULL, false);
    bool cpu = device_is_cpu(d);
    bool subgroup = (ful_device_get_info(d)->caps.features & FUL_FEATURE_SUBGROUP) != 0;
    gpu_test_close(&d);
    if (cpu) {
        check_fallback(false, FUL_PRECISION_F32, "selftest:moe_route_up_narrow:once", 1);
        if (!fixture_full())
            return;
        check_fallback(false, FUL_PRECISION_F16, "selftest:lightning_walk_half", 1);
    }
    check_fallback(true, FUL_PRECISION_F32,
                   "selftest:matvec_norm*,selftest:matvec_*subgroup,selftest:moe_route_wide,"
                   "selftest:lightning_decode_wide,selftest:moe_route_up_*,selftest:sample,"
                   "selftest:moe_matvec_subgroup,selftest:matmul_f32,selftest:matmul,"
                   "selftest:moe_matmul",
                   subgroup ? 8 : 6);
    if (fixture_full())
        check_fallback(true, FUL_PRECISION_F16,
                       "selftest:*coopmat*,selftest:matmul_coopmat,selftest:moe_coopmat,"
                       "selftest:attention_coopmat,selftest:lightning_coopmat,"
                       "selftest:matmul_half,selftest:moe_matmul_half,selftest:gated_norm_blocks,"
                       "selftest:matmul_coopmat_blocks",
                       2);
}

/* Nothing left, but memory that the processor shares: it takes over, with a line in the log for
 * each kernel. Every op, the kernels that it falls back to last. */
static void test_processor(void **state)
{
    (void)state;
    static float want[GOLDEN_VOCAB];
    static const char *const fault =
        "selftest:embed,selftest:rmsnorm,selftest:gated_norm,selftest:matvec*,selftest:matmul*,"
        "selftest:moe_*,selftest:lightning_*,selftest:rope_append*,selftest:attention*,"
        "selftest:sample";
    need_driver();
    ful_device *d = open_device(NULL, NULL, false);
    bool unified = ful_device_get_info(d)->caps.unified_memory;
    gpu_test_close(&d);
    if (!unified)
        skip();
    for (int wide = 0; wide < (fixture_full() ? 2 : 1); wide++) {
        told.warnings = told.taken = 0;
        logits_sound(wide, FUL_PRECISION_F32, want);
        d = open_device(NULL, fault, wide);
        expect_right(d, FUL_PRECISION_F32, want);
        assert_true(told.taken > 8);
        gpu_test_close(&d);
    }
}

/* Nothing left: an error that names the kernel, and a line in the log. */
static void test_nothing_left(void **state)
{
    (void)state;
    need_driver();
    ful_model *model = NULL;
    ful_device *d = open_device(NULL, "selftest:embed", false);
    d->info.caps.unified_memory = false; /* else the processor takes over */
    GPU_FAILS(load(d, golden_dir, FUL_PRECISION_F32, &model), FUL_ERR_SELFTEST);
    gpu_error_has("embed_");
    gpu_error_has("wrong result");
    assert_null(model);
    assert_int_equal(told.warnings, 1);
    assert_int_equal(told.errors, 1);
    gpu_test_close(&d);
}

/* FUL_SELFTEST_NEVER tests nothing, but keeps what is known. */
static void test_never(void **state)
{
    (void)state;
    ful_device *d;
    ful_model *model;
    setenv("FULGUR_FAULT", "selftest:embed", 1);
    GPU_OK(ful_device_open(&d, instance,
                           ful_device_params(.cache_dir = "", .selftest = FUL_SELFTEST_NEVER,
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    GPU_OK(load(d, golden_dir, FUL_PRECISION_F32, &model));
    assert_int_equal(told.tests, 0);
    ful_model_destroy(&model);
    gpu_test_close(&d);
}

static void greedy(ful_device *d, int32_t out[24])
{
    static const int32_t prompt[] = {4093, 512, 1040, 300, 77};
    ful_model *model;
    ful_session *s;
    const float *logits;
    size_t n;
    GPU_OK(load(d, demo_dir, FUL_PRECISION_F32, &model));
    GPU_OK(ful_session_create(&s, model, NULL));
    GPU_OK(ful_prefill(s, prompt, 5));
    for (int i = 0; i < 24; i++) {
        GPU_OK(ful_logits(s, &logits, &n));
        out[i] = (int32_t)argmax_f32(logits, n);
        GPU_OK(ful_decode(s, out[i]));
    }
    ful_session_destroy(&s);
    ful_model_destroy(&model);
}

/* The demo model's text does not change with the kernels. */
static void test_text(void **state)
{
    (void)state;
    need_driver();
    if (!fixture_full())
        skip(); /* test_fallback has the small model's logits */
    int32_t want[24], got[24];
    ful_device *d = open_device(NULL, NULL, false);
    greedy(d, want);
    gpu_test_close(&d);
    d = open_device(NULL, "selftest:moe_route_up_*,selftest:matvec_norm*", false);
    greedy(d, got);
    assert_true(told.warnings >= 1);
    gpu_test_close(&d);
    assert_memory_equal(want, got, sizeof(want));
}

/* ---- from one process to the next ---- */

/* A device that stops is lost, but the next one does without the kernel. */
static void test_lost(void **state)
{
    (void)state;
    need_driver();
    static float want[GOLDEN_VOCAB];
    memory_cache m = {.size = 0};
    ful_model *model = NULL;
    logits_sound(true, FUL_PRECISION_F32, want);
    ful_device *d = open_device(&m, "selftest:lightning_decode_wide:lost", true);
    GPU_FAILS(load(d, golden_dir, FUL_PRECISION_F32, &model), FUL_ERR_DEVICE_LOST);
    gpu_error_has("lightning_decode_wide");
    gpu_test_close(&d);
    d = open_device(&m, NULL, true);
    assert_int_equal(gpu_module_trust(d, "lightning_decode_wide"), GPU_TRUST_LOST);
    expect_right(d, FUL_PRECISION_F32, want);
    gpu_test_close(&d);
}

#if !defined(_WIN32)
/* Its cache folder is that of the caller. */
static int crash(const char *folder)
{
    ful_device *d;
    ful_model *model;
    GPU_OK(ful_instance_create(&instance,
                               ful_instance_params(.log = note, .log_level = FUL_LOG_TRACE)));
    told.die_at = "lightning_";
    GPU_OK(ful_device_open(
        &d, instance,
        ful_device_params(.cache_dir = folder, .name_part = getenv("FULGUR_TEST_DEVICE"))));
    (void)load(d, golden_dir, FUL_PRECISION_F32, &model);
    return 34; /* it went on */
}

/* This program again, started as it was, perhaps by a dynamic linker of the driver's own. */
static int run_crash(const char *folder)
{
    static char line[4096], word[] = "crash";
    char *list[64], path[1024];
    int status = 0, n = 0;
    FILE *f = fopen("/proc/self/cmdline", "rb");
    size_t bytes = f ? fread(line, 1, sizeof(line) - 1, f) : 0;
    if (f)
        fclose(f);
    for (size_t at = 0; at < bytes && n < 60; at += strlen(line + at) + 1)
        list[n++] = line + at;
    snprintf(path, sizeof(path), "%s", folder);
    list[n++] = word;
    list[n++] = path;
    list[n] = NULL;
    pid_t child = fork();
    if (child == 0) {
        execv(list[0], list);
        _exit(35);
    }
    assert_true(child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* A process that ended in the middle of a test leaves the note. */
static void test_crash(void **state)
{
    (void)state;
    ful_device *d;
    const char *folder = scratch_path("cache");
    if (access("/proc/self/cmdline", R_OK) != 0)
        skip();
    assert_int_equal(run_crash(folder), 33);
    GPU_OK(ful_device_open(
        &d, instance,
        ful_device_params(.cache_dir = folder, .name_part = getenv("FULGUR_TEST_DEVICE"))));
    uint32_t crashed = 0;
    for (uint32_t i = 0; i < shader_module_count; i++)
        crashed += gpu_module_trust(d, shader_modules[i].name) == GPU_TRUST_CRASHED;
    assert_int_equal(crashed, 1);
    assert_int_equal(told.warnings, 1);
    assert_non_null(strstr(told.last, "earlier process"));
    rows s = {0};
    GPU_OK(ful_device_selftest(d, ful_selftest_params(.row = row, .ctx = &s, .only = "lightning")));
    assert_int_equal(s.wrong, 0);
    gpu_test_close(&d);
    told.warnings = 0;
    GPU_OK(ful_device_open(
        &d, instance,
        ful_device_params(.cache_dir = folder, .name_part = getenv("FULGUR_TEST_DEVICE"))));
    assert_int_equal(told.warnings, 0); /* tested again, and forgiven */
    gpu_test_close(&d);
}
#endif

/* The note of a process that still runs is none of a crash. */
static void test_other_process(void **state)
{
    (void)state;
    memory_cache m = {.size = 0};
    ful_device *d = open_device(&m, NULL, false);
    gpu_module_set_trust(d, "pack", GPU_TRUST_TESTING);
    GPU_OK(device_trust_store(d, true));
    size_t bytes;
    bool damaged;
    uint8_t *payload = cache_verdicts_load(d, &bytes, &damaged);
    assert_non_null(payload);
    assert_int_equal(bytes, 24);
    uint32_t id = process_id();
    assert_memory_equal(payload + 20, &id, 4); /* on a little-endian host */
    assert_false(process_other_runs(id));
#if !defined(_WIN32)
    uint32_t other = (uint32_t)getppid();
    if (process_other_runs(other)) {
        memcpy(payload + 20, &other, 4);
        GPU_OK(cache_verdicts_store(d, payload, bytes, true));
        ful_device *e = open_device(&m, NULL, false);
        assert_int_equal(gpu_module_trust(e, "pack"), GPU_TRUST_UNKNOWN);
        gpu_test_close(&e);
    }
#endif
    id = 0x7ffffff1; /* no process */
    memcpy(payload + 20, &id, 4);
    GPU_OK(cache_verdicts_store(d, payload, bytes, true));
    mem_free(&d->alloc, payload);
    gpu_test_close(&d);
    d = open_device(&m, NULL, false);
    assert_int_equal(gpu_module_trust(d, "pack"), GPU_TRUST_CRASHED);
    gpu_test_close(&d);
}

/* Verdicts of another driver, or of another version of it, are none of this one's. */
static void test_other_driver(void **state)
{
    (void)state;
    static const uint8_t words[] = {12, 16, 20, 24, 40, 55, 56, 71, 72}; /* see gpu/cache.c */
    memory_cache m = {.size = 0}, other;
    ful_device *d = open_device(&m, NULL, false);
    gpu_module_set_trust(d, "pack", GPU_TRUST_WRONG);
    GPU_OK(device_trust_store(d, true));
    gpu_test_close(&d);
    for (size_t i = 0; i < sizeof(words); i++) {
        other = m;
        for (int changed = 0; changed < 2; changed++) {
            other.bytes[words[i]] ^= (uint8_t)changed;
            uint64_t hash = hash_bytes(HASH_SEED, other.bytes, 96);
            memcpy(other.bytes + 96, &hash, 8); /* on a little-endian host */
            d = open_device(&other, NULL, false);
            assert_int_equal(gpu_module_trust(d, "pack"),
                             changed ? GPU_TRUST_UNKNOWN : GPU_TRUST_WRONG);
            gpu_test_close(&d);
        }
    }
    /* And it tests again. */
    ful_model *model;
    d = open_device(&other, NULL, false);
    told.tests = 0;
    GPU_OK(load(d, golden_dir, FUL_PRECISION_F32, &model));
    assert_true(told.tests >= 8);
    ful_model_destroy(&model);
    gpu_test_close(&d);
}

/* The note for all tests, behind which the machine stopped: nothing is known of any of them, but
 * the next tests leave notes of their own on the disk. So they do where a note is cut. */
static void test_stopped_machine(void **state)
{
    (void)state;
    memory_cache m = {.size = 0};
    ful_device *d = open_device(&m, NULL, false);
    assert_false(device_notes_to_disk(d));
    gpu_module_set_trust(d, "pack", GPU_TRUST_TESTING);
    gpu_module_set_trust(d, "embed_f32", GPU_TRUST_TESTING);
    gpu_module_set_trust(d, "sample", GPU_TRUST_CRASHED);
    GPU_OK(device_trust_store(d, true));
    size_t bytes;
    bool damaged;
    uint8_t *payload = cache_verdicts_load(d, &bytes, &damaged);
    assert_non_null(payload);
    assert_false(damaged);
    const uint32_t none = 0x7ffffff1; /* no process */
    for (size_t at = 8; at < bytes; at += 16)
        memcpy(payload + at + 12, &none, 4);
    GPU_OK(cache_verdicts_store(d, payload, bytes, false));
    mem_free(&d->alloc, payload);
    gpu_test_close(&d);
    d = open_device(&m, NULL, false);
    assert_int_equal(gpu_module_trust(d, "pack"), GPU_TRUST_UNKNOWN);
    assert_int_equal(gpu_module_trust(d, "embed_f32"), GPU_TRUST_UNKNOWN);
    assert_int_equal(gpu_module_trust(d, "sample"), GPU_TRUST_CRASHED);
    assert_true(device_notes_to_disk(d));
    gpu_test_close(&d);
    m.size -= 7;
    d = open_device(&m, NULL, false);
    assert_true(device_notes_to_disk(d));
    gpu_test_close(&d);
}

/* Bytes changed and files cut: verdicts are believed whole or not at all. */
static void test_damaged(void **state)
{
    (void)state;
    memory_cache m = {.size = 0}, bad;
    ful_device *d = open_device(&m, NULL, false);
    gpu_module_set_trust(d, "pack", GPU_TRUST_WRONG);
    gpu_module_set_trust(d, "embed_f32", GPU_TRUST_PASSED);
    GPU_OK(device_trust_store(d, true));
    gpu_test_close(&d);
    d = open_device(&m, NULL, false);
    assert_int_equal(gpu_module_trust(d, "pack"), GPU_TRUST_WRONG);
    assert_int_equal(gpu_module_trust(d, "embed_f32"), GPU_TRUST_PASSED);
    gpu_test_close(&d);
    for (size_t i = 0; i < m.size; i += 9) {
        bad = m;
        bad.bytes[i] ^= 0x41;
        d = open_device(&bad, NULL, false);
        assert_int_equal(gpu_module_trust(d, "pack"), GPU_TRUST_UNKNOWN);
        gpu_test_close(&d);
        bad = m;
        bad.size = i;
        d = open_device(&bad, NULL, false);
        assert_int_equal(gpu_module_trust(d, "pack"), GPU_TRUST_UNKNOWN);
        gpu_test_close(&d);
    }
}

int main(int argc, char **argv)
{
#if !defined(_WIN32)
    if (argc == 3 && strcmp(argv[1], "crash") == 0)
        return crash(argv[2]);
#else
    (void)argc, (void)argv;
#endif
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_all, setup, teardown),
        cmocka_unit_test_setup_teardown(test_all_wide, setup, teardown),
        cmocka_unit_test_setup_teardown(test_arguments, setup, teardown),
        cmocka_unit_test_setup_teardown(test_families, setup, teardown),
        cmocka_unit_test_setup_teardown(test_each_fault, setup, teardown),
        cmocka_unit_test_setup_teardown(test_covered, setup, teardown),
        cmocka_unit_test_setup_teardown(test_fallback, setup, teardown),
        cmocka_unit_test_setup_teardown(test_processor, setup, teardown),
        cmocka_unit_test_setup_teardown(test_nothing_left, setup, teardown),
        cmocka_unit_test_setup_teardown(test_never, setup, teardown),
        cmocka_unit_test_setup_teardown(test_text, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
#if !defined(_WIN32)
        cmocka_unit_test_setup_teardown(test_crash, setup, teardown),
#endif
        cmocka_unit_test_setup_teardown(test_other_process, setup, teardown),
        cmocka_unit_test_setup_teardown(test_other_driver, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stopped_machine, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
    };
    return cmocka_run_group_tests_name("selftest", tests, NULL, NULL);
}
