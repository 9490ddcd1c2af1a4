#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "cpu/cpu.h"
#include "cpu/kernels/kernel.h"
#include "test_shaders/inplace.h"
#include "test_shaders/map.h"
#include "test_shaders/step.h"

/* ---- the tests' own shaders, in C for the built-in device ---- */

static void map_run(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
{
    const map_push *p = c->push;
    const uint32_t *a = c->buffer[0];
    uint32_t *o = c->buffer[1];
    (void)z;
    for (uint64_t i = line * c->constant[0]; i < (line + count) * c->constant[0]; i++)
        if (i < p->count)
            o[i] = a[i] * p->mul + p->add + c->constant[3];
}

static void inplace_run(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
{
    const inplace_push *p = c->push;
    uint32_t *x = c->buffer[0];
    (void)z;
    for (uint64_t i = line * c->constant[0]; i < (line + count) * c->constant[0]; i++)
        for (uint32_t r = 0; i < p->count && r < p->rounds; r++)
            x[i] = x[i] * p->mul + p->add;
}

static void step_run(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
{
    const uint32_t *step = (const uint32_t *)c->step;
    uint32_t *o = c->buffer[0];
    (void)z;
    for (uint64_t i = line * c->constant[0]; i < (line + count) * c->constant[0]; i++)
        o[i] = step[i % 8] + (uint32_t)i;
}

static const cpu_kernel test_kernels[] = {
    {"test_map", map_run}, {"test_inplace", inplace_run}, {"test_step", step_run}, {NULL, NULL}};

static void kernels_add(const ful_device *device)
{
    if (device_is_built_in(device))
        cpu_kernels_add(device->vk, test_kernels);
}

bool gpu_test_built_in(void)
{
    return device_named_built_in(getenv("FULGUR_DEVICE"));
}

void gpu_expect_(ful_result result, ful_result wanted, const char *what, const char *file, int line)
{
    if (result == wanted)
        return;
    print_error("%s: %s instead of %s: %s\n", what, ful_result_name(result),
                ful_result_name(wanted), result == FUL_OK ? "" : ful_last_error());
    _fail(file, line);
}

void gpu_error_has(const char *part)
{
    if (!strstr(ful_last_error(), part))
        fail_msg("the error line \"%s\" does not hold \"%s\"", ful_last_error(), part);
}

static void log_note(void *ctx, ful_log_level level, const char *message)
{
    log_seen *seen = ctx;
    seen->messages++;
    if (level == FUL_LOG_ERROR)
        seen->errors++;
    if (level == FUL_LOG_WARNING && strncmp(message, "vulkan: ", 8) != 0) {
        seen->warnings++;
        snprintf(seen->last_warning, sizeof(seen->last_warning), "%s", message);
    }
    if (getenv("FULGUR_TEST_LOG") || level == FUL_LOG_ERROR)
        fprintf(stderr, "log %d: %s\n", (int)level, message);
}

ful_instance *gpu_test_instance(log_seen *seen)
{
    ful_instance *instance;
    memset(seen, 0, sizeof(*seen));
    GPU_OK(ful_instance_create(&instance, ful_instance_params(.log = log_note, .log_ctx = seen,
                                                              .log_level = FUL_LOG_DEBUG)));
    return instance;
}

void gpu_test_instance_end(ful_instance **instance)
{
    uint64_t errors = ful_instance_validation_errors(*instance);
    ful_instance_destroy(instance);
    assert_int_equal(errors, 0);
}

ful_device *gpu_test_open(ful_instance *instance, const char *caps)
{
    ful_device *device;
    GPU_OK(ful_device_open(&device, instance,
                           ful_device_params(.caps = caps, .cache_dir = "",
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    return device;
}

void gpu_test_close(ful_device **device)
{
    uint64_t now;
    ful_device_memory(*device, &now, NULL);
    ful_device_close(device);
    assert_int_equal(now, 0);
}

void gpu_test_require_device(void)
{
    ful_instance *instance;
    ful_device *device;
    bool found = false;
    if (ful_instance_create(&instance, NULL) != FUL_OK) {
        printf("skipped: %s\n", ful_last_error());
        exit(77);
    }
    ful_result r = ful_device_open(
        &device, instance,
        ful_device_params(.cache_dir = "", .name_part = getenv("FULGUR_TEST_DEVICE")));
    if (r != FUL_OK)
        printf("skipped: %s\n", ful_last_error());
    else if (device_is_built_in(device) && !gpu_test_built_in())
        printf("skipped: Vulkan has no usable device, and nobody asked for the built-in one\n");
    else
        found = true;
    ful_device_close(&device);
    if (!found) {
        ful_instance_destroy(&instance);
        exit(77);
    }
#if defined(__SANITIZE_ADDRESS__)
    /* Drivers keep some memory until the process ends; while one stays loaded, the leak checker can
     * tell it from ours by its name. */
    static ful_instance *volatile kept;
    kept = instance;
    instance = NULL;
    (void)kept;
#endif
    ful_instance_destroy(&instance);
}

void gpu_test_hold_driver(void)
{
    static ful_instance *held;
    static log_seen seen;
    held = held ? held : gpu_test_instance(&seen);
}

gpu_pipeline *gpu_test_map(ful_device *device, uint32_t constant)
{
    gpu_pipeline_desc desc = {.module = "test_map",
                              .buffer_count = 2,
                              .push_bytes = sizeof(map_push),
                              .spec_count = 4,
                              .spec = {GPU_TEST_GROUP, 1, 1, constant}};
    gpu_pipeline *p;
    kernels_add(device);
    GPU_OK(gpu_pipeline_from_words(device, &desc, spirv_map, sizeof(spirv_map), "", &p));
    return p;
}

gpu_pipeline *gpu_test_inplace(ful_device *device)
{
    gpu_pipeline_desc desc = {.module = "test_inplace",
                              .buffer_count = 1,
                              .push_bytes = sizeof(inplace_push),
                              .spec_count = 3,
                              .spec = {GPU_TEST_GROUP, 1, 1}};
    gpu_pipeline *p;
    kernels_add(device);
    GPU_OK(gpu_pipeline_from_words(device, &desc, spirv_inplace, sizeof(spirv_inplace), "", &p));
    return p;
}

gpu_pipeline *gpu_test_step(ful_device *device)
{
    gpu_pipeline_desc desc = {.module = "test_step",
                              .buffer_count = 1,
                              .uniform = true,
                              .spec_count = 3,
                              .spec = {GPU_TEST_GROUP, 1, 1}};
    gpu_pipeline *p;
    kernels_add(device);
    GPU_OK(gpu_pipeline_from_words(device, &desc, spirv_step, sizeof(spirv_step), "", &p));
    return p;
}

gpu_dispatch gpu_test_map_dispatch(gpu_pipeline *p, gpu_range a, gpu_range o, const map_push *push)
{
    gpu_dispatch d = {.pipeline = p,
                      .buffers = {a, o},
                      .writes = 2,
                      .push = push,
                      .groups = {(push->count + GPU_TEST_GROUP - 1) / GPU_TEST_GROUP, 1, 1},
                      .label = "map",
                      .layer = -1};
    return d;
}

gpu_dispatch gpu_test_inplace_dispatch(gpu_pipeline *p, gpu_range x, const inplace_push *push)
{
    gpu_dispatch d = {.pipeline = p,
                      .buffers = {x},
                      .updates = 1,
                      .push = push,
                      .groups = {(push->count + GPU_TEST_GROUP - 1) / GPU_TEST_GROUP, 1, 1},
                      .label = "inplace",
                      .layer = 3};
    return d;
}
