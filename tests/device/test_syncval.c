/* Proof that synchronisation validation sees missing barriers, so that its silence over the other
 * tests means something: two dispatches that depend on each other, with and without their barrier.
 */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { COUNT = 256, BYTES = COUNT * 4 };

/* Layers before this one keep silent about read-write bindings. */
#define IN_PLACE_VERSION VK_MAKE_API_VERSION(0, 1, 4, 350)
static uint32_t layer_version;

typedef enum program {
    PROGRAM_IN_PLACE,         /* x = f(x) twice */
    PROGRAM_READ_AFTER_WRITE, /* b = f(a), c = f(b); bindings are readonly or writeonly */
    PROGRAM_WRITE_AFTER_READ, /* b = f(a), a = f(c) */
    PROGRAM_COPY              /* b = f(a), then b is copied */
} program;

static void record(gpu_commands *c, ful_device *device, program which, const gpu_range r[3])
{
    map_push push = {COUNT, 3, 1};
    inplace_push twice = {COUNT, 3, 1, 1};
    gpu_pipeline *map = gpu_test_map(device, 0);
    gpu_dispatch first = gpu_test_map_dispatch(map, r[0], r[1], &push);
    gpu_dispatch second = first;
    if (which == PROGRAM_IN_PLACE)
        first = second = gpu_test_inplace_dispatch(gpu_test_inplace(device), r[0], &twice);
    if (which == PROGRAM_READ_AFTER_WRITE)
        second = gpu_test_map_dispatch(map, r[1], r[2], &push);
    if (which == PROGRAM_WRITE_AFTER_READ)
        second = gpu_test_map_dispatch(map, r[2], r[0], &push);
    GPU_OK(gpu_commands_dispatch(c, &first));
    if (which == PROGRAM_COPY)
        GPU_OK(gpu_commands_copy(c, r[1], r[2]));
    else
        GPU_OK(gpu_commands_dispatch(c, &second));
}

/* Errors that validation reports while `which` runs. */
static uint64_t errors_of(program which, uint32_t flags)
{
    log_seen seen;
    gpu_buffer b[3];
    gpu_range r[3];
    gpu_commands *c;
    ful_instance *instance = gpu_test_instance(&seen);
    ful_device *device = gpu_test_open(instance, NULL);
    for (int i = 0; i < 3; i++) {
        GPU_OK(gpu_buffer_create(device, BYTES, GPU_MEMORY_DEVICE, "proof", &b[i]));
        r[i] = gpu_whole(&b[i]);
        GPU_OK(gpu_range_fill(device, r[i], (uint32_t)i));
    }
    assert_int_equal(ful_instance_validation_errors(instance), 0);
    GPU_OK(gpu_commands_begin(device, flags, &c));
    record(c, device, which, r);
    GPU_OK(gpu_commands_end(c));
    GPU_OK(gpu_commands_submit(c));
    GPU_OK(gpu_commands_wait(c));
    gpu_commands_destroy(&c);
    for (int i = 0; i < 3; i++)
        gpu_buffer_destroy(device, &b[i]);
    gpu_test_close(&device);
    uint64_t errors = ful_instance_validation_errors(instance);
    ful_instance_destroy(&instance);
    return errors;
}

static void test_silent_with_barriers(void **state)
{
    (void)state;
    assert_int_equal(errors_of(PROGRAM_IN_PLACE, 0), 0);
    assert_int_equal(errors_of(PROGRAM_READ_AFTER_WRITE, 0), 0);
    assert_int_equal(errors_of(PROGRAM_WRITE_AFTER_READ, 0), 0);
    assert_int_equal(errors_of(PROGRAM_COPY, 0), 0);
}

static void test_missing_in_place(void **state)
{
    (void)state;
    if (layer_version < IN_PLACE_VERSION) {
        print_message("the validation layer is too old to see read-write bindings\n");
        skip();
    }
    assert_true(errors_of(PROGRAM_IN_PLACE, GPU_COMMANDS_NO_BARRIER) > 0);
}

static void test_missing_read_after_write(void **state)
{
    (void)state;
    assert_true(errors_of(PROGRAM_READ_AFTER_WRITE, GPU_COMMANDS_NO_BARRIER) > 0);
}

static void test_missing_write_after_read(void **state)
{
    (void)state;
    assert_true(errors_of(PROGRAM_WRITE_AFTER_READ, GPU_COMMANDS_NO_BARRIER) > 0);
}

static void test_missing_before_copy(void **state)
{
    (void)state;
    assert_true(errors_of(PROGRAM_COPY, GPU_COMMANDS_NO_BARRIER) > 0);
}

/* Version of the validation layer; 0 if there is none. */
static uint32_t layer_find(void)
{
    VkLayerProperties layers[64];
    uint32_t count = sizeof(layers) / sizeof(layers[0]);
    if (vkEnumerateInstanceLayerProperties(&count, layers) < VK_SUCCESS)
        return 0;
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(layers[i].layerName, "VK_LAYER_KHRONOS_validation") == 0)
            return layers[i].specVersion;
    return 0;
}

int main(void)
{
    const char *wanted = getenv("FULGUR_TEST_VALIDATION");
    if (!wanted || strcmp(wanted, "0") == 0) {
        printf("skipped: FULGUR_TEST_VALIDATION is not set\n");
        return 77;
    }
    gpu_test_require_device();
    if (gpu_test_built_in()) {
        printf("skipped: no layer sees the built-in device\n");
        return 77;
    }
    layer_version = layer_find();
    if (layer_version == 0) {
        printf("skipped: no validation layer\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silent_with_barriers),
        cmocka_unit_test(test_missing_in_place),
        cmocka_unit_test(test_missing_read_after_write),
        cmocka_unit_test(test_missing_write_after_read),
        cmocka_unit_test(test_missing_before_copy),
    };
    return cmocka_run_group_tests_name("syncval", tests, NULL, NULL);
}
