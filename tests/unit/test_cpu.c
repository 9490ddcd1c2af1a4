/* What only the built-in device has: its threads, and that their number changes nothing. */
#include "../util/model_fixture.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "base/team.h"
#include "cpu/cpu.h"
#include "cpu/kernels/kernel.h"
#include "gpu/gpu_internal.h"

static int setup(void **state)
{
    (void)state;
    setenv("FULGUR_DEVICE", "cpu", 1);
    return 0;
}

/* ---- kernels of this test ---- */

enum { GROUPS = 8, SLOW_NS = 200000 };

/* out[i] = in[GROUPS - 1 - i] + 1, element 0 late. */
static void turn_run(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
{
    const uint32_t *in = c->buffer[0];
    uint32_t *out = c->buffer[1];
    assert_int_equal(z, 0);
    for (uint64_t i = line; i < line + count; i++) {
        uint64_t begin = time_ns();
        while (i == 0 && time_ns() - begin < SLOW_NS)
            continue;
        out[i] = in[GROUPS - 1 - i] + 1;
    }
}

/* out[(z * groups y + y) * groups x + x] += 1 */
static void count_run(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
{
    uint64_t layer = (uint64_t)c->groups[0] * c->groups[1];
    assert_true(line + count <= layer && z < c->groups[2]);
    for (uint64_t i = 0; i < count; i++)
        ((uint32_t *)c->buffer[0])[z * layer + line + i]++;
}

static const cpu_kernel kernels[] = {{"turn", turn_run}, {"count", count_run}, {NULL, NULL}};

static gpu_pipeline *pipeline(ful_device *device, const char *name, uint32_t buffers)
{
    static const uint32_t no_words[1];
    gpu_pipeline_desc desc = {.module = name, .buffer_count = buffers};
    gpu_pipeline *p;
    cpu_kernels_add(device->vk, kernels);
    EXPECT_OK(gpu_pipeline_from_words(device, &desc, no_words, sizeof no_words, "", &p));
    return p;
}

static void open_threads(device_fixture *f, const char *threads)
{
    setenv("FULGUR_THREADS", threads, 1);
    fixture_open(f, "");
    unsetenv("FULGUR_THREADS");
    assert_true(device_is_built_in(f->device));
}

/* ---- the tests ---- */

/* A dispatch behind a barrier sees the slowest group of the one before it. */
static void test_barriers(void **state)
{
    (void)state;
    enum { CHAIN = 20 };
    device_fixture f;
    open_threads(&f, "4");
    gpu_buffer x, y;
    EXPECT_OK(gpu_buffer_create(f.device, 4 * GROUPS, GPU_MEMORY_DEVICE, "x", &x));
    EXPECT_OK(gpu_buffer_create(f.device, 4 * GROUPS, GPU_MEMORY_DEVICE, "y", &y));
    gpu_pipeline *turn = pipeline(f.device, "turn", 2);
    fixture_begin(&f, &(step_params){.n_rows = 1}, false);
    EXPECT_OK(gpu_commands_fill(f.commands, gpu_whole(&x), 5));
    for (int i = 0; i < CHAIN; i++) {
        gpu_dispatch d = {.pipeline = turn,
                          .buffers = {gpu_whole(i % 2 ? &y : &x), gpu_whole(i % 2 ? &x : &y)},
                          .writes = 2,
                          .groups = {GROUPS, 1, 1}};
        EXPECT_OK(gpu_commands_dispatch(f.commands, &d));
    }
    for (int round = 0; round < 3; round++) {
        uint32_t words[GROUPS];
        fixture_run(&f);
        EXPECT_OK(gpu_range_read(f.device, gpu_whole(&x), 0, words, sizeof words));
        for (int i = 0; i < GROUPS; i++)
            assert_int_equal(words[i], 5 + CHAIN);
    }
    fixture_end(&f);
    gpu_buffer_destroy(f.device, &x);
    gpu_buffer_destroy(f.device, &y);
    fixture_close(&f);
}

/* Every group of a grid runs once, also where the device says how many there are, and where that is
 * none; what follows none of them still runs. */
static void test_grids(void **state)
{
    (void)state;
    static const uint32_t grids[][3] = {{1, 1, 1}, {7, 1, 1}, {5, 3, 2}, {1, 1, 9}, {300, 2, 1}};
    enum { MOST = 600 };
    device_fixture f;
    open_threads(&f, "3");
    gpu_buffer counts, args;
    EXPECT_OK(gpu_buffer_create(f.device, 4 * MOST, GPU_MEMORY_DEVICE, "counts", &counts));
    EXPECT_OK(gpu_buffer_create(f.device, 12, GPU_MEMORY_DEVICE, "arguments", &args));
    gpu_pipeline *count = pipeline(f.device, "count", 1);
    for (size_t g = 0; g < sizeof grids / sizeof *grids; g++) {
        const uint32_t *n = grids[g], none[3] = {4, 0, 1};
        for (int indirect = 0; indirect < 3; indirect++) {
            fixture_begin(&f, &(step_params){.n_rows = 1}, false);
            EXPECT_OK(gpu_commands_fill(f.commands, gpu_whole(&counts), 0));
            gpu_dispatch d = {.pipeline = count,
                              .buffers = {gpu_whole(&counts)},
                              .updates = 1,
                              .groups = {n[0], n[1], n[2]}};
            EXPECT_OK(gpu_range_write(f.device, gpu_whole(&args), 0, indirect == 2 ? none : n, 12));
            if (indirect > 0)
                d.indirect = gpu_whole(&args);
            EXPECT_OK(gpu_commands_dispatch(f.commands, &d));
            d.indirect = (gpu_range){NULL, 0, 0};
            EXPECT_OK(gpu_commands_dispatch(f.commands, &d));
            fixture_run(&f);
            uint32_t words[MOST], all = n[0] * n[1] * n[2];
            EXPECT_OK(gpu_range_read(f.device, gpu_whole(&counts), 0, words, sizeof words));
            for (uint32_t i = 0; i < MOST; i++)
                assert_int_equal(words[i], i >= all ? 0 : indirect == 2 ? 1 : 2);
        }
    }
    fixture_end(&f);
    gpu_buffer_destroy(f.device, &counts);
    gpu_buffer_destroy(f.device, &args);
    fixture_close(&f);
}

/* Logits of a prefill and some tokens. */
static float *logits_of(const char *threads, size_t *n)
{
    model_fixture f;
    const float *logits;
    int32_t ids[70];
    for (int i = 0; i < 70; i++)
        ids[i] = (i * 37 + 11) % 300;
    setenv("FULGUR_THREADS", threads, 1);
    assert_true(model_fixture_open(&f, "", FUL_TEST_DATA "/golden/many-experts", false, 64, 128));
    unsetenv("FULGUR_THREADS");
    EXPECT_OK(ful_prefill(f.session, ids, 70));
    for (int i = 0; i < 3; i++)
        EXPECT_OK(ful_decode(f.session, ids[i]));
    EXPECT_OK(ful_logits(f.session, &logits, n));
    float *copy = malloc(*n * sizeof *copy);
    assert_non_null(copy);
    memcpy(copy, logits, *n * sizeof *copy);
    model_fixture_close(&f);
    return copy;
}

/* The number of threads shows in no bit of the result. */
static void test_same_bits(void **state)
{
    (void)state;
    static const char *const threads[] = {"2", "3", "7"};
    size_t n, m;
    float *one = logits_of("1", &n);
    for (int i = 0; i < 3; i++) {
        float *other = logits_of(threads[i], &m);
        assert_int_equal(n, m);
        assert_memory_equal(one, other, n * sizeof *one);
        free(other);
    }
    free(one);
}

typedef struct turns {
    atomic_uint taken;
    atomic_uint done[100];
} turns;

static void take_turns(void *ctx)
{
    turns *t = ctx;
    for (;;) {
        unsigned i = atomic_fetch_add(&t->taken, 1);
        if (i >= 100)
            return;
        atomic_fetch_add(&t->done[i], 1);
    }
}

/* Many short jobs one after the other, some after a pause in which threads fell asleep. */
static void test_team(void **state)
{
    (void)state;
    ful_alloc alloc = mem_functions(NULL);
    team *t = team_create(&alloc, 4);
    assert_non_null(t);
    assert_true(team_size(t) >= 1 && team_size(t) <= 4);
    for (int job = 0; job < 500; job++) {
        turns work = {.taken = 0};
        uint64_t begin = time_ns();
        while (job % 100 == 99 && time_ns() - begin < 2000000)
            thread_yield();
        team_run(t, take_turns, &work);
        for (int i = 0; i < 100; i++)
            assert_int_equal(work.done[i], 1);
    }
    team_destroy(&alloc, &t);
    assert_null(t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_team),
        cmocka_unit_test(test_barriers),
        cmocka_unit_test(test_grids),
        cmocka_unit_test(test_same_bits),
    };
    return cmocka_run_group_tests_name("cpu", tests, setup, NULL);
}
