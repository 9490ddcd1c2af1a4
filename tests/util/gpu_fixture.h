/* Shaders, devices and log for the tests of the device layer itself. */
#ifndef TESTS_UTIL_GPU_FIXTURE_H
#define TESTS_UTIL_GPU_FIXTURE_H

#include "gpu/gpu_internal.h"

/* What the log said; warnings are those of the library itself. */
typedef struct log_seen {
    _Atomic int messages, warnings, errors;
    char last_warning[400];
} log_seen;

/* An instance that notes its log in *seen. FULGUR_TEST_LOG=1 also prints it. */
ful_instance *gpu_test_instance(log_seen *seen);
/* Fails the test if validation complained. */
void gpu_test_instance_end(ful_instance **instance);

/* The device that FULGUR_TEST_DEVICE (part of a name) or else ful_device_open picks; caps may be
 * NULL. No pipeline cache. */
ful_device *gpu_test_open(ful_instance *instance, const char *caps);
/* Closes it; fails the test if memory is still held. */
void gpu_test_close(ful_device **device);

/* Prints why and exits with 77 if there is no usable device. */
void gpu_test_require_device(void);

/* Keeps the driver loaded until the program ends. For tests that open it more often than some can
 * be loaded. */
void gpu_test_hold_driver(void);

/* True if FULGUR_DEVICE asks for the built-in device. */
bool gpu_test_built_in(void);

/* o[i] = a[i]*mul + add + constant; buffers a, o. */
typedef struct map_push {
    uint32_t count, mul, add;
} map_push;
gpu_pipeline *gpu_test_map(ful_device *device, uint32_t constant);
/* x[i] = x[i]*mul + add, rounds times; buffer x. */
typedef struct inplace_push {
    uint32_t count, mul, add, rounds;
} inplace_push;
gpu_pipeline *gpu_test_inplace(ful_device *device);
/* o[i] = step[i % 8] + i; buffer o, uniform step. */
gpu_pipeline *gpu_test_step(ful_device *device);
enum { GPU_TEST_GROUP = 64 };

/* A dispatch over `count` elements. */
gpu_dispatch gpu_test_map_dispatch(gpu_pipeline *p, gpu_range a, gpu_range o, const map_push *push);
gpu_dispatch gpu_test_inplace_dispatch(gpu_pipeline *p, gpu_range x, const inplace_push *push);

void gpu_expect_(ful_result result, ful_result wanted, const char *what, const char *file,
                 int line);
#define GPU_OK(call) gpu_expect_((call), FUL_OK, #call, __FILE__, __LINE__)
#define GPU_FAILS(call, wanted) gpu_expect_((call), (wanted), #call, __FILE__, __LINE__)
/* Fails the test unless the error line holds `part`. */
void gpu_error_has(const char *part);

#endif
