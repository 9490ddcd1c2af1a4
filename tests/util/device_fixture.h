/* A device for tests, opened under a capability mask, with guarded buffers and one-shot command
 * recording. Everything here fails the running cmocka test on error; nothing returns a failure. */
#ifndef TESTS_UTIL_DEVICE_FIXTURE_H
#define TESTS_UTIL_DEVICE_FIXTURE_H

#include "ops/op.h"

typedef struct device_fixture {
    ful_instance *instance;
    ful_device *device;
    const char *caps; /* the mask, for messages */
    gpu_buffer step;  /* host: step_params */
    gpu_commands *commands;
    bool ended; /* commands: recording is closed */
} device_fixture;

/* Capability masks every op is tested under; NULL-terminated. The first is "" (the device as it
 * is), the last the floor of all. */
extern const char *const fixture_masks[];

/* True if FULGUR_TEST_LEVEL is full or long. */
bool fixture_full(void);
/* Where walks that take every so many begin, so that all can be walked in several runs:
 * FULGUR_TEST_OFFSET=N, else 0. */
size_t fixture_offset(void);
/* True if it is long: minutes on a processor, for what only size can show. */
bool fixture_long(void);

/* Exits with 77 after printing why if there is no usable device. Call it first in main(). */
void fixture_require_device(void);

/* Opens the best device (or what FULGUR_TEST_DEVICE, a part of its name, asks for) under `caps`,
 * with validation if FULGUR_TEST_VALIDATION is set. */
void fixture_open(device_fixture *f, const char *caps);
/* Closes it; fails if validation errors were seen or device memory is still held. */
void fixture_close(device_fixture *f);

/* A buffer with guard words on both sides of its range. */
typedef struct test_buffer {
    gpu_buffer *buffer; /* on the heap, so that range stays valid when this struct moves */
    gpu_range range;    /* what ops get: begins at 256 */
    uint64_t bytes;
} test_buffer;

/* data == NULL: filled with NaN words (0x7fc0dead). */
test_buffer fixture_buffer(device_fixture *f, uint64_t bytes, const void *data);
void fixture_fill(device_fixture *f, const test_buffer *b,
                  const void *data); /* again; NULL = NaN words */
/* Reads the range into out (b->bytes) and fails if a guard word changed. */
void fixture_read(device_fixture *f, const test_buffer *b, void *out);
void fixture_free(device_fixture *f, test_buffer *b);

/* A weight tensor from floats [experts][rows][cols], stored as `type`; `exact`, if not NULL,
 * receives the values as stored: of blocks random ones about as large. Sets row_scale where a row
 * leaves fp16's range. */
gpu_tensor fixture_tensor(device_fixture *f, ful_type type, uint32_t experts, uint32_t rows,
                          uint32_t cols, const float *values, float *exact);
void fixture_tensor_free(device_fixture *f, gpu_tensor *t);

/* fp32 to the stored type and back. */
uint16_t bf16_from_f32(float x);
float f32_from_bf16(uint16_t x);
uint16_t f16_from_f32(float x);
float f32_from_f16(uint16_t x);

/* Starts recording with these step parameters; ops take the returned context. */
op_context fixture_begin(device_fixture *f, const step_params *step, bool half);
/* Ends, submits and waits; call again to submit the same commands once more. */
void fixture_run(device_fixture *f);
/* Changes the step parameters of the recorded commands before the next fixture_run. */
void fixture_step(device_fixture *f, const step_params *step);
/* Drops the recording. */
void fixture_end(device_fixture *f);

/* Fails the test with ful_last_error() if the call did not return FUL_OK. */
void expect_ok_(ful_result result, const char *what, const char *file, int line);
#define EXPECT_OK(call) expect_ok_((call), #call, __FILE__, __LINE__)

/* Fails unless error <= limit, printing the text (op, shape, variant, seed). */
void expect_error_below_(double error, double limit, const char *file, int line, const char *format,
                         ...) PRINTF_LIKE(5, 6);
#define EXPECT_ERROR_BELOW(error, limit, ...)                                                      \
    expect_error_below_((error), (limit), __FILE__, __LINE__, __VA_ARGS__)

#endif
