/* Recording, barriers, submitting, timing, and losing a device. */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { N = 1000 };

static log_seen seen;
static ful_instance *instance;
static ful_device *device;

static int setup(void **state)
{
    (void)state;
    instance = gpu_test_instance(&seen);
    device = gpu_test_open(instance, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gpu_test_close(&device);
    gpu_test_instance_end(&instance);
    return 0;
}

static gpu_buffer words_buffer(uint32_t count, uint32_t first)
{
    gpu_buffer b;
    uint32_t *words = malloc(count * sizeof(*words));
    assert_non_null(words);
    for (uint32_t i = 0; i < count; i++)
        words[i] = first + i;
    GPU_OK(gpu_buffer_create(device, count * 4, GPU_MEMORY_DEVICE, "test words", &b));
    GPU_OK(gpu_range_write(device, gpu_whole(&b), 0, words, count * 4));
    free(words);
    return b;
}

static uint32_t word_at(const gpu_buffer *b, uint32_t i)
{
    uint32_t w;
    GPU_OK(gpu_range_read(device, gpu_whole(b), (uint64_t)i * 4, &w, 4));
    return w;
}

static void run(gpu_commands *c)
{
    GPU_OK(gpu_commands_submit(c));
    GPU_OK(gpu_commands_wait(c));
}

static void test_map(void **state)
{
    (void)state;
    gpu_buffer a = words_buffer(N, 5), o = words_buffer(N + 8, 0);
    map_push push = {N, 3, 1};
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, 0, &c));
    gpu_dispatch d =
        gpu_test_map_dispatch(gpu_test_map(device, 100), gpu_whole(&a), gpu_whole(&o), &push);
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_end(c));
    run(c);
    assert_int_equal(gpu_commands_dispatches(c), 1);
    assert_int_equal(gpu_commands_submits(c), 1);
    for (uint32_t i = 0; i < N; i++)
        assert_int_equal(word_at(&o, i), (i + 5) * 3 + 101);
    assert_int_equal(word_at(&o, N), N); /* beyond count: untouched */
    GPU_FAILS(gpu_commands_submit(c), FUL_ERR_ARGUMENT);
    gpu_error_has("twice");
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &a);
    gpu_buffer_destroy(device, &o);
}

/* Every kind of dependency, and that independent steps get no barrier. */
static void test_barriers(void **state)
{
    (void)state;
    gpu_buffer a = words_buffer(1024, 0), b = words_buffer(1024, 0), x = words_buffer(1024, 0);
    gpu_pipeline *map = gpu_test_map(device, 0), *inplace = gpu_test_inplace(device);
    map_push push = {256, 2, 1};
    inplace_push twice = {256, 2, 0, 1};
    gpu_range a0 = gpu_part(gpu_whole(&a), 0, 1024), a1 = gpu_part(gpu_whole(&a), 1024, 1024);
    gpu_range b0 = gpu_part(gpu_whole(&b), 0, 1024), b1 = gpu_part(gpu_whole(&b), 1024, 1024);
    gpu_range x0 = gpu_part(gpu_whole(&x), 0, 1024);
    gpu_commands *c;
    gpu_dispatch d;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, &c));
    assert_int_equal(commands_barriers(c), 0);
    d = gpu_test_map_dispatch(map, a0, b0, &push);
    GPU_OK(gpu_commands_dispatch(c, &d));
    d = gpu_test_map_dispatch(map, a0, b1, &push); /* reads the same, writes beside */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 0);
    d = gpu_test_map_dispatch(map, b0, x0, &push); /* read after write */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 1);
    d = gpu_test_map_dispatch(map, b1, a1, &push); /* b1's write is behind that barrier */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 1);
    d = gpu_test_inplace_dispatch(inplace, b0, &twice); /* write after read */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 2);
    d = gpu_test_inplace_dispatch(inplace, b0, &twice); /* in place again */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 3);
    d = gpu_test_map_dispatch(map, a0, b0, &push); /* write after write */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 4);
    GPU_OK(gpu_commands_copy(c, b0, x0)); /* transfer reads what compute wrote */
    assert_int_equal(commands_barriers(c), 5);
    d = gpu_test_map_dispatch(map, x0, b1, &push); /* compute reads what transfer wrote */
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 6);
    GPU_OK(gpu_commands_end(c));
    for (int round = 0; round < 3; round++) {
        run(c);
        for (uint32_t i = 0; i < 256; i += 51) {
            assert_int_equal(word_at(&b, i), 2 * i + 1);
            assert_int_equal(word_at(&x, i), 2 * i + 1);
            assert_int_equal(word_at(&b, 256 + i), 4 * i + 3);
            assert_int_equal(word_at(&a, 256 + i), 4 * i + 3);
        }
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &a);
    gpu_buffer_destroy(device, &b);
    gpu_buffer_destroy(device, &x);
}

static void test_long_chain(void **state)
{
    (void)state;
    enum { STEPS = 700 };
    gpu_buffer x = words_buffer(4096, 0);
    gpu_pipeline *p = gpu_test_inplace(device);
    inplace_push push = {4096, 3, 1, 1};
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, 0, &c));
    for (int i = 0; i < STEPS; i++) {
        gpu_dispatch d = gpu_test_inplace_dispatch(p, gpu_whole(&x), &push);
        GPU_OK(gpu_commands_dispatch(c, &d));
    }
    GPU_OK(gpu_commands_end(c));
    run(c);
    uint32_t expected = 77;
    for (int i = 0; i < STEPS; i++)
        expected = expected * 3 + 1;
    assert_int_equal(word_at(&x, 77), expected);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &x);
}

/* A dispatch that would exceed the budget begins a new submission, and the results stay the same.
 */
static void test_time_budget(void **state)
{
    (void)state;
    ful_device *slow;
    GPU_OK(ful_device_open(&slow, instance,
                           ful_device_params(.max_submit_ms = 20, .cache_dir = "",
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    ful_device *before = device;
    device = slow;
    gpu_buffer x = words_buffer(64, 0);
    gpu_pipeline *p = gpu_test_inplace(slow);
    inplace_push push = {64, 3, 1, 1};
    double bytes = slow->bytes_per_ns * 7e6; /* 7 ms each: two fit, three don't */
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(slow, GPU_COMMANDS_REUSABLE, &c));
    for (int i = 0; i < 9; i++) {
        gpu_dispatch d = gpu_test_inplace_dispatch(p, gpu_whole(&x), &push);
        d.cost.bytes = i == 8 ? bytes * 100 : bytes; /* one alone may exceed it */
        GPU_OK(gpu_commands_dispatch(c, &d));
    }
    GPU_OK(gpu_commands_end(c));
    assert_int_equal(gpu_commands_submits(c), 5);
    uint32_t expected = 7;
    for (int round = 0; round < 2; round++) {
        run(c);
        for (int i = 0; i < 9; i++)
            expected = expected * 3 + 1;
        assert_int_equal(word_at(&x, 7), expected);
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(slow, &x);
    gpu_test_close(&slow);
    device = before;
}

static void test_estimate_learns(void **state)
{
    (void)state;
    gpu_cost cost = {device->bytes_per_ns * 1e7, 0}, none = {0, 0};
    double first = timer_estimate_ns(device, &cost) - timer_estimate_ns(device, &none);
    assert_true(first > 0.99e7 && first < 1.01e7);
    for (int i = 0; i < 40; i++)
        timer_learn(device, timer_estimate_ns(device, &cost), 4e7);
    double slower = timer_estimate_ns(device, &cost);
    assert_true(slower > 3.9e7 && slower < 4.1e7);
    timer_learn(device, 1e7, 1e5); /* too short to tell anything */
    assert_true(timer_estimate_ns(device, &cost) == slower);
    for (int i = 0; i < 40; i++)
        timer_learn(device, timer_estimate_ns(device, &cost), 1e7);
    double again = timer_estimate_ns(device, &cost);
    assert_true(again > 0.9e7 && again < 1.1e7);
    /* A pipeline's first run may hold its compilation and teaches nothing; later ones do. */
    gpu_buffer x = words_buffer(64, 0);
    inplace_push push = {64, 3, 1, 300000};
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, &c));
    gpu_dispatch d = gpu_test_inplace_dispatch(gpu_test_inplace(device), gpu_whole(&x), &push);
    d.cost.bytes = 1e3 * cost.bytes; /* said to take 10 s */
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_end(c));
    run(c);
    assert_true(timer_estimate_ns(device, &cost) == again);
    run(c);
    if (device_caps(device)->features & FUL_FEATURE_TIMESTAMP)
        assert_true(timer_estimate_ns(device, &cost) < again);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &x);
}

static void test_times(void **state)
{
    (void)state;
    gpu_buffer x = words_buffer(1 << 16, 0);
    gpu_pipeline *p = gpu_test_inplace(device);
    inplace_push quick = {1 << 16, 3, 1, 1}, slow = {1 << 16, 3, 1, 2000};
    gpu_commands *c;
    const gpu_time *times;
    uint32_t count;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_TIMED | GPU_COMMANDS_REUSABLE, &c));
    for (int i = 0; i < 3; i++) {
        gpu_dispatch d = gpu_test_inplace_dispatch(p, gpu_whole(&x), i == 1 ? &slow : &quick);
        d.layer = i;
        d.cost.flops = i;
        GPU_OK(gpu_commands_dispatch(c, &d));
        GPU_OK(gpu_commands_fill(c, gpu_part(gpu_whole(&x), 0, 256), 7)); /* not an entry */
    }
    GPU_OK(gpu_commands_end(c));
    run(c);
    GPU_OK(gpu_commands_times(c, &times, &count));
    if (!(device_caps(device)->features & FUL_FEATURE_TIMESTAMP)) {
        assert_int_equal(count, 0);
    } else {
        assert_int_equal(count, 3);
        for (int i = 0; i < 3; i++) {
            assert_string_equal(times[i].label, "inplace");
            assert_int_equal(times[i].layer, i);
            assert_true(times[i].cost.flops == i);
        }
        assert_true(times[1].ns > times[0].ns && times[1].ns > times[2].ns);
        assert_true(times[1].ns < 20000000000u);
    }
    run(c); /* and once more */
    GPU_OK(gpu_commands_times(c, &times, &count));
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &x);
}

/* More steps than one query pool holds. */
static void test_times_many(void **state)
{
    (void)state;
    enum { STEPS = 1500 };
    gpu_buffer x = words_buffer(64, 0);
    gpu_pipeline *p = gpu_test_inplace(device);
    inplace_push push = {64, 3, 1, 1};
    gpu_commands *c;
    const gpu_time *times;
    uint32_t count;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_TIMED, &c));
    for (int i = 0; i < STEPS; i++) {
        gpu_dispatch d = gpu_test_inplace_dispatch(p, gpu_whole(&x), &push);
        d.layer = i;
        GPU_OK(gpu_commands_dispatch(c, &d));
    }
    GPU_OK(gpu_commands_end(c));
    GPU_OK(gpu_commands_submit(c));
    if (device_caps(device)->features & FUL_FEATURE_TIMESTAMP)
        GPU_FAILS(gpu_commands_times(c, &times, &count), FUL_ERR_ARGUMENT); /* too early */
    GPU_OK(gpu_commands_wait(c));
    GPU_OK(gpu_commands_times(c, &times, &count));
    if (count > 0) {
        assert_int_equal(count, STEPS);
        for (int i = 0; i < STEPS; i++)
            assert_int_equal(times[i].layer, i);
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &x);
}

static void test_no_timestamps(void **state)
{
    (void)state;
    ful_device *plain = gpu_test_open(instance, "-timestamp");
    ful_device *before = device;
    device = plain;
    gpu_buffer x = words_buffer(64, 0);
    inplace_push push = {64, 3, 1, 1};
    gpu_commands *c;
    const gpu_time *times;
    uint32_t count = 9;
    GPU_OK(gpu_commands_begin(plain, GPU_COMMANDS_TIMED, &c));
    gpu_dispatch d = gpu_test_inplace_dispatch(gpu_test_inplace(plain), gpu_whole(&x), &push);
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_end(c));
    run(c);
    GPU_OK(gpu_commands_times(c, &times, &count));
    assert_int_equal(count, 0);
    assert_int_equal(word_at(&x, 5), 16);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(plain, &x);
    gpu_test_close(&plain);
    device = before;
}

/* The number of groups comes from what an earlier step wrote. */
static void test_indirect(void **state)
{
    (void)state;
    gpu_buffer source = words_buffer(64, 0), args = words_buffer(64, 0), x = words_buffer(1024, 0);
    uint32_t groups[3] = {2, 1, 1};
    GPU_OK(gpu_range_write(device, gpu_whole(&source), 0, groups, sizeof(groups)));
    gpu_commands *c;
    map_push copy = {3, 1, 0};
    inplace_push push = {1024, 0, 9, 1};
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, &c));
    gpu_dispatch d =
        gpu_test_map_dispatch(gpu_test_map(device, 0), gpu_whole(&source), gpu_whole(&args), &copy);
    GPU_OK(gpu_commands_dispatch(c, &d));
    d = gpu_test_inplace_dispatch(gpu_test_inplace(device), gpu_whole(&x), &push);
    d.indirect = gpu_part(gpu_whole(&args), 0, 12);
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 1);
    GPU_OK(
        gpu_commands_fill(c, gpu_part(gpu_whole(&args), 0, 12), 0)); /* after the device read it */
    assert_int_equal(commands_barriers(c), 2);
    GPU_OK(gpu_commands_end(c));
    for (int round = 0; round < 2; round++) {
        run(c);
        assert_int_equal(word_at(&x, 127), 9);
        assert_int_equal(word_at(&x, 128), 128);
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &source);
    gpu_buffer_destroy(device, &args);
    gpu_buffer_destroy(device, &x);
}

/* A barrier between compute steps does not make an earlier fill visible to indirect arguments. */
static void test_indirect_after_barrier(void **state)
{
    (void)state;
    gpu_buffer args = words_buffer(64, 0), x = words_buffer(1024, 0), y = words_buffer(1024, 0);
    gpu_pipeline *p = gpu_test_inplace(device);
    inplace_push push = {1024, 0, 9, 1};
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, 0, &c));
    GPU_OK(gpu_commands_fill(c, gpu_part(gpu_whole(&args), 0, 12), 1));
    gpu_dispatch d = gpu_test_inplace_dispatch(p, gpu_whole(&x), &push);
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 1);
    d = gpu_test_inplace_dispatch(p, gpu_whole(&y), &push);
    d.indirect = gpu_part(gpu_whole(&args), 0, 12);
    GPU_OK(gpu_commands_dispatch(c, &d));
    assert_int_equal(commands_barriers(c), 2);
    GPU_OK(gpu_commands_end(c));
    run(c);
    assert_int_equal(word_at(&y, 63), 9);
    assert_int_equal(word_at(&y, 64), 64);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &args);
    gpu_buffer_destroy(device, &x);
    gpu_buffer_destroy(device, &y);
}

/* The host changes the uniform block between submissions of one recording. */
static void test_uniform(void **state)
{
    (void)state;
    gpu_buffer step, o = words_buffer(64, 0);
    GPU_OK(gpu_buffer_create(device, 64, GPU_MEMORY_HOST, "step", &step));
    assert_non_null(step.mapped);
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, &c));
    gpu_dispatch d = {.pipeline = gpu_test_step(device),
                      .buffers = {gpu_whole(&o)},
                      .writes = 1,
                      .uniform = gpu_whole(&step),
                      .groups = {1, 1, 1}};
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_end(c));
    for (uint32_t round = 0; round < 3; round++) {
        uint32_t words[16];
        for (uint32_t i = 0; i < 16; i++)
            words[i] = 1000 * round + 10 * i;
        memcpy(step.mapped, words, sizeof(words));
        GPU_OK(gpu_buffer_flush(device, &step, 0, sizeof(words)));
        run(c);
        for (uint32_t i = 0; i < 64; i += 7)
            assert_int_equal(word_at(&o, i), 1000 * round + 10 * (i % 8) + i);
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &step);
    gpu_buffer_destroy(device, &o);
}

/* Barriers leave uniform reads out until a step reads so what another one wrote. */
static void test_uniform_after_barrier(void **state)
{
    (void)state;
    gpu_buffer u = words_buffer(64, 0), x = words_buffer(1024, 0), o = words_buffer(64, 0);
    inplace_push push = {1024, 0, 9, 1};
    gpu_commands *c;
    GPU_OK(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, &c));
    gpu_dispatch change = gpu_test_inplace_dispatch(gpu_test_inplace(device), gpu_whole(&x), &push);
    gpu_dispatch step = {.pipeline = gpu_test_step(device),
                         .buffers = {gpu_whole(&o)},
                         .writes = 1,
                         .uniform = gpu_part(gpu_whole(&u), 0, 64),
                         .groups = {1, 1, 1}};
    GPU_OK(gpu_commands_fill(c, gpu_part(gpu_whole(&u), 0, 64), 500));
    GPU_OK(gpu_commands_dispatch(c, &change));
    GPU_OK(gpu_commands_dispatch(c, &change));
    assert_int_equal(commands_barriers(c), 1);
    GPU_OK(gpu_commands_dispatch(c, &step));
    assert_int_equal(commands_barriers(c), 2);
    step.uniform = gpu_part(gpu_whole(&u), 0, 64);
    GPU_OK(gpu_commands_dispatch(c, &change));
    GPU_OK(gpu_commands_dispatch(c, &step)); /* writes o again */
    assert_int_equal(commands_barriers(c), 3);
    GPU_OK(gpu_commands_end(c));
    for (int round = 0; round < 2; round++) {
        run(c);
        for (uint32_t i = 0; i < 64; i += 7)
            assert_int_equal(word_at(&o, i), 500 + i);
    }
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &u);
    gpu_buffer_destroy(device, &x);
    gpu_buffer_destroy(device, &o);
}

/* Each wrong dispatch is refused by name, and the commands keep the first error. */
static void test_errors(void **state)
{
    (void)state;
    gpu_buffer a = words_buffer(1024, 0), o = words_buffer(1024, 0);
    gpu_pipeline *p = gpu_test_map(device, 0);
    map_push push = {64, 1, 0};
    const gpu_dispatch good = gpu_test_map_dispatch(p, gpu_whole(&a), gpu_whole(&o), &push);
    const char *parts[] = {"0 workgroups in dimension 1", "buffer 1 is empty", "no multiple of 256",
                           "are outside its 4096 bytes",  "no push constants", "no pipeline",
                           "workgroups in dimension 0",   "indirect arguments"};
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++) {
        gpu_dispatch d = good;
        gpu_commands *c;
        switch (i) {
        case 0:
            d.groups[1] = 0;
            break;
        case 1:
            d.buffers[1].buffer = NULL;
            break;
        case 2:
            d.buffers[0] = gpu_part(gpu_whole(&a), 16, 64);
            break;
        case 3:
            d.buffers[0].bytes = 4100;
            break;
        case 4:
            d.push = NULL;
            break;
        case 5:
            d.pipeline = NULL;
            break;
        case 6:
            d.groups[0] = UINT32_MAX;
            break;
        default:
            d.indirect = gpu_part(gpu_whole(&a), 4092, 4);
            break;
        }
        GPU_OK(gpu_commands_begin(device, 0, &c));
        GPU_OK(gpu_commands_dispatch(c, &good));
        GPU_FAILS(gpu_commands_dispatch(c, &d), FUL_ERR_ARGUMENT);
        gpu_error_has(parts[i]);
        (void)gpu_range_fill(device, gpu_part(gpu_whole(&a), 2, 4), 0); /* another error line */
        GPU_FAILS(gpu_commands_end(c), FUL_ERR_ARGUMENT);
        gpu_error_has(parts[i]);
        GPU_FAILS(gpu_commands_submit(c), FUL_ERR_ARGUMENT);
        gpu_commands_destroy(&c);
    }
    gpu_buffer_destroy(device, &a);
    gpu_buffer_destroy(device, &o);
}

static void test_binding_limit(void **state)
{
    (void)state;
    ful_device *small = gpu_test_open(instance, "range=65536");
    ful_device *before = device;
    device = small;
    gpu_buffer a = words_buffer(20000, 0), o = words_buffer(64, 0);
    map_push push = {64, 1, 0};
    gpu_commands *c;
    assert_int_equal(device_window_bytes(small), 65536);
    GPU_OK(gpu_commands_begin(small, 0, &c));
    gpu_dispatch d =
        gpu_test_map_dispatch(gpu_test_map(small, 0), gpu_whole(&a), gpu_whole(&o), &push);
    GPU_FAILS(gpu_commands_dispatch(c, &d), FUL_ERR_ARGUMENT);
    gpu_error_has("65536");
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(small, &a);
    gpu_buffer_destroy(small, &o);
    gpu_test_close(&small);
    device = before;
}

/* Commands on several threads at once. */
typedef struct worker {
    gpu_pipeline *pipeline;
    uint32_t last[8];
    ful_result results[8];
} worker;

static ful_result worker_steps(worker *w, uint32_t i, gpu_buffer *x, gpu_commands **c)
{
    inplace_push push = {64, 3, i, 1};
    TRY(gpu_buffer_create(device, 256, GPU_MEMORY_DEVICE, "worker", x));
    TRY(gpu_range_fill(device, gpu_whole(x), i));
    TRY(gpu_commands_begin(device, GPU_COMMANDS_REUSABLE, c));
    gpu_dispatch d = gpu_test_inplace_dispatch(w->pipeline, gpu_whole(x), &push);
    TRY(gpu_commands_dispatch(*c, &d));
    TRY(gpu_commands_end(*c));
    for (int round = 0; round < 20; round++) {
        TRY(gpu_commands_submit(*c));
        TRY(gpu_commands_wait(*c));
    }
    return gpu_range_read(device, gpu_whole(x), 0, &w->last[i], 4);
}

static void worker_run(void *ctx, uint32_t i)
{
    worker *w = ctx;
    gpu_buffer x = {0};
    gpu_commands *c = NULL;
    w->results[i] = worker_steps(w, i, &x, &c);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(device, &x);
}

static void test_threads(void **state)
{
    (void)state;
    worker w = {.pipeline = gpu_test_inplace(device)};
    parallel_for(4, 8, worker_run, &w);
    for (uint32_t i = 0; i < 8; i++) {
        uint32_t expected = i;
        for (int round = 0; round < 20; round++)
            expected = expected * 3 + i;
        assert_int_equal(w.results[i], FUL_OK);
        assert_int_equal(w.last[i], expected);
    }
}

/* A dispatch that takes far longer than the wait allows: an error, then errors at once, then a
 * clean end. */
static void test_lost(void **state)
{
    (void)state;
    ful_device *lost;
    if (device_is_built_in(device))
        skip(); /* what is submitted has ended */
    GPU_OK(ful_device_open(&lost, instance,
                           ful_device_params(.wait_timeout_ms = 1, .cache_dir = "",
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    gpu_buffer x, y;
    GPU_OK(gpu_buffer_create(lost, 4096, GPU_MEMORY_DEVICE, "x", &x));
    GPU_OK(gpu_buffer_create(lost, 4096, GPU_MEMORY_HOST, "y", &y));
    inplace_push push = {64, 3, 1, 2000000};
    gpu_commands *c, *other;
    GPU_OK(gpu_commands_begin(lost, GPU_COMMANDS_REUSABLE, &c));
    GPU_OK(gpu_commands_begin(lost, 0, &other));
    gpu_dispatch d = gpu_test_inplace_dispatch(gpu_test_inplace(lost), gpu_whole(&x), &push);
    GPU_OK(gpu_commands_dispatch(c, &d));
    GPU_OK(gpu_commands_end(c));
    GPU_OK(gpu_commands_submit(c));
    GPU_FAILS(gpu_commands_wait(c), FUL_ERR_DEVICE_LOST);
    gpu_error_has("inplace of layer 3");
    gpu_error_has("within 1 ms");
    uint32_t word = 0;
    gpu_buffer z;
    gpu_commands *none;
    uint64_t began = time_ns();
    GPU_FAILS(gpu_commands_submit(c), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(gpu_commands_wait(c), FUL_ERR_DEVICE_LOST);
    GPU_OK(gpu_commands_end(other));
    GPU_FAILS(gpu_commands_submit(other), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(gpu_buffer_create(lost, 64, GPU_MEMORY_HOST, "z", &z), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(gpu_range_write(lost, gpu_whole(&y), 0, &word, 4), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(gpu_range_read(lost, gpu_whole(&x), 0, &word, 4), FUL_ERR_DEVICE_LOST);
    GPU_FAILS(gpu_commands_begin(lost, 0, &none), FUL_ERR_DEVICE_LOST);
    gpu_error_has("close and reopen");
    assert_true(time_ns() - began < 100000000u);
    gpu_commands_destroy(&other);
    gpu_commands_destroy(&c);
    gpu_buffer_destroy(lost, &x);
    gpu_buffer_destroy(lost, &y);
    ful_device_close(&lost);
    assert_true(time_ns() - began < 20000000000u);
}

int main(void)
{
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_map, setup, teardown),
        cmocka_unit_test_setup_teardown(test_barriers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_long_chain, setup, teardown),
        cmocka_unit_test_setup_teardown(test_time_budget, setup, teardown),
        cmocka_unit_test_setup_teardown(test_estimate_learns, setup, teardown),
        cmocka_unit_test_setup_teardown(test_times, setup, teardown),
        cmocka_unit_test_setup_teardown(test_times_many, setup, teardown),
        cmocka_unit_test_setup_teardown(test_no_timestamps, setup, teardown),
        cmocka_unit_test_setup_teardown(test_indirect, setup, teardown),
        cmocka_unit_test_setup_teardown(test_indirect_after_barrier, setup, teardown),
        cmocka_unit_test_setup_teardown(test_uniform, setup, teardown),
        cmocka_unit_test_setup_teardown(test_uniform_after_barrier, setup, teardown),
        cmocka_unit_test_setup_teardown(test_errors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_binding_limit, setup, teardown),
        cmocka_unit_test_setup_teardown(test_threads, setup, teardown),
        cmocka_unit_test_setup_teardown(test_lost, setup, teardown),
    };
    return cmocka_run_group_tests_name("command", tests, NULL, NULL);
}
