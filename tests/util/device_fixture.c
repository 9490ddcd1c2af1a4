#include "util/device_fixture.h"

#include "base/types.h"
#include "ref/ref.h"
#include "util/rng.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

enum { GUARD_BYTES = 256 };
static const uint32_t GUARD_WORD = 0xfee1600du, POISON_WORD = 0x7fc0deadu;

const char *const fixture_masks[] = {
    "",
    "-subgroup",
    "-fp16",
    "-storage16",
    "shared=16384",
    "workgroup=128",
    "buffers=4",
    "range=1048576",
    "-subgroup,-fp16,-int8,-storage16,-storage8,-intdot,-coopmat,-address,-timeline,shared=16384,"
    "workgroup=128,buffers=4,range=1048576,push=128",
    NULL,
};

void expect_ok_(ful_result result, const char *what, const char *file, int line)
{
    if (result == FUL_OK)
        return;
    print_error("%s: %s: %s\n", what, ful_result_name(result), ful_last_error());
    _fail(file, line);
}

void expect_error_below_(double error, double limit, const char *file, int line, const char *format,
                         ...)
{
    if (error <= limit) /* false for NaN */
        return;
    char text[512];
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    print_error("%s: error %.3g, limit %.3g\n", text, error, limit);
    _fail(file, line);
}

size_t fixture_offset(void)
{
    const char *text = getenv("FULGUR_TEST_OFFSET");
    return text != NULL ? (size_t)strtoul(text, NULL, 10) : 0;
}

bool fixture_full(void)
{
    const char *level = getenv("FULGUR_TEST_LEVEL");
    return level != NULL && (strcmp(level, "full") == 0 || strcmp(level, "long") == 0);
}

bool fixture_long(void)
{
    const char *level = getenv("FULGUR_TEST_LEVEL");
    return level != NULL && strcmp(level, "long") == 0;
}

static void log_line(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

static ful_result try_open(ful_instance **instance, ful_device **device, const char *caps)
{
    bool validation = getenv("FULGUR_TEST_VALIDATION") != NULL;
    /* A processor that poses as a GPU is no faster for it. */
    uint32_t patience_ms = getenv("FULGUR_LAYER_PROFILE") != NULL ? 600000 : 0;
    TRY(ful_instance_create(instance,
                            ful_instance_params(.log = log_line, .log_level = FUL_LOG_WARNING,
                                                .validation = validation)));
    return ful_device_open(
        device, *instance,
        ful_device_params(.name_part = getenv("FULGUR_TEST_DEVICE"), .caps = caps, .cache_dir = "",
                          .wait_timeout_ms = patience_ms, .selftest = FUL_SELFTEST_NEVER));
}

/* Keeps drivers loaded until the process ends: some can't be unloaded and loaded again often. It is
 * never destroyed, because an exit handler may run after the driver's or the layer's own ones. */
static ful_instance *volatile anchor; /* volatile: leak checkers must find it */

void fixture_require_device(void)
{
    ful_instance *instance = NULL;
    ful_device *device = NULL;
    ful_result result = try_open(&instance, &device, NULL);
    if (result != FUL_OK) {
        printf("skipped: %s\n", ful_last_error());
        ful_instance_destroy(&instance);
        exit(result == FUL_ERR_NO_DEVICE ? 77 : 1);
    }
    const ful_device_info *info = ful_device_get_info(device);
    printf("device: %s (%s)\n", info->name, info->driver);
    if (info->built_in && getenv("FULGUR_DEVICE") == NULL) {
        printf("skipped: Vulkan has no usable device, and nobody asked for the built-in one\n");
        exit(77);
    }
    ful_device_close(&device);
    anchor = instance;
}

void fixture_open(device_fixture *f, const char *caps)
{
    memset(f, 0, sizeof *f);
    f->caps = caps;
    EXPECT_OK(try_open(&f->instance, &f->device, caps));
    EXPECT_OK(
        gpu_buffer_create(f->device, sizeof(step_params), GPU_MEMORY_HOST, "test step", &f->step));
}

void fixture_close(device_fixture *f)
{
    fixture_end(f);
    gpu_buffer_destroy(f->device, &f->step);
    uint64_t now, peak;
    ful_device_memory(f->device, &now, &peak);
    assert_int_equal(now, 0);
    ful_device_close(&f->device);
    assert_int_equal(ful_instance_validation_errors(f->instance), 0);
    ful_instance_destroy(&f->instance);
}

static void fill_words(uint32_t *out, uint64_t bytes, uint32_t word)
{
    for (uint64_t i = 0; i < bytes / 4; i++)
        out[i] = word;
}

test_buffer fixture_buffer(device_fixture *f, uint64_t bytes, const void *data)
{
    test_buffer b = {.bytes = bytes};
    uint64_t body = (bytes + 3) / 4 * 4, all = GUARD_BYTES + body + GUARD_BYTES;
    b.buffer = malloc(sizeof *b.buffer);
    assert_non_null(b.buffer);
    EXPECT_OK(gpu_buffer_create(f->device, all, GPU_MEMORY_DEVICE, "test", b.buffer));
    uint32_t *words = malloc(all);
    assert_non_null(words);
    fill_words(words, all, GUARD_WORD);
    uint32_t *inside = words + GUARD_BYTES / 4;
    fill_words(inside, body, POISON_WORD);
    if (data != NULL)
        memcpy(inside, data, bytes);
    EXPECT_OK(gpu_range_write(f->device, gpu_whole(b.buffer), 0, words, all));
    free(words);
    b.range = (gpu_range){b.buffer, GUARD_BYTES, bytes};
    return b;
}

void fixture_fill(device_fixture *f, const test_buffer *b, const void *data)
{
    uint64_t body = (b->bytes + 3) / 4 * 4;
    uint32_t *words = malloc(body);
    assert_non_null(words);
    fill_words(words, body, POISON_WORD);
    if (data != NULL)
        memcpy(words, data, b->bytes);
    EXPECT_OK(gpu_range_write(f->device, gpu_whole(b->buffer), GUARD_BYTES, words, body));
    free(words);
}

void fixture_read(device_fixture *f, const test_buffer *b, void *out)
{
    uint64_t body = (b->bytes + 3) / 4 * 4, all = GUARD_BYTES + body + GUARD_BYTES;
    uint32_t *words = malloc(all);
    assert_non_null(words);
    EXPECT_OK(gpu_range_read(f->device, gpu_whole(b->buffer), 0, words, all));
    for (uint64_t i = 0; i < GUARD_BYTES / 4; i++) {
        if (words[i] != GUARD_WORD || words[(GUARD_BYTES + body) / 4 + i] != GUARD_WORD)
            fail_msg("a guard word beside a buffer of %llu bytes changed (caps \"%s\")",
                     (unsigned long long)b->bytes, f->caps);
    }
    memcpy(out, words + GUARD_BYTES / 4, b->bytes);
    free(words);
}

void fixture_free(device_fixture *f, test_buffer *b)
{
    gpu_buffer_destroy(f->device, b->buffer);
    free(b->buffer);
    memset(b, 0, sizeof *b);
}

/* ---- conversions: round to nearest, ties to even ---- */

static uint32_t float_bits(float x)
{
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float bits_float(uint32_t u)
{
    float x;
    memcpy(&x, &u, 4);
    return x;
}

uint16_t bf16_from_f32(float x)
{
    uint32_t u = float_bits(x);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40u);
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float f32_from_bf16(uint16_t x)
{
    return bits_float((uint32_t)x << 16);
}

uint16_t f16_from_f32(float x)
{
    uint32_t u = float_bits(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) /* 65520 rounds to infinity */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) { /* below 2^-14: the addition rounds to a multiple of 2^-24 */
        float r = bits_float(a) + 0.5f;
        return (uint16_t)(sign | (float_bits(r) - float_bits(0.5f)));
    }
    a += 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | ((a >> 13) - (112u << 10)));
}

float f32_from_f16(uint16_t x)
{
    uint32_t sign = (uint32_t)(x & 0x8000u) << 16, e = x >> 10 & 31u, m = x & 1023u;
    if (e == 31)
        return bits_float(sign | 0x7f800000u | m << 13);
    if (e == 0) {
        float v = (float)m * 0x1p-24f;
        return sign != 0 ? -v : v;
    }
    return bits_float(sign | (e + 112u) << 23 | m << 13);
}

/* ---- tensors ---- */

/* 1, or the power of two that brings a row's largest magnitude to [2^14, 2^15). */
static float row_multiplier(uint32_t largest)
{
    if (bits_float(largest) <= 65504.0f)
        return 1.0f;
    return bits_float((127u + 14u - (largest >> 23) + 127u) << 23);
}

/* One row of blocks: random codes about as large as the values. Returns the largest magnitude. */
static uint32_t blocks_row(ful_type type, uint32_t cols, uint64_t seed, const float *values,
                           void *row, float *exact)
{
    uint32_t n = ref_blocks_elements(type), each = ref_blocks_bytes(type), largest = 0;
    uint8_t *file = malloc((size_t)cols / n * each);
    double *decoded = malloc(sizeof(double) * cols);
    assert_non_null(file);
    assert_non_null(decoded);
    rng random = rng_seed(seed);
    for (uint32_t b = 0; b < cols / n; b++) {
        double sum = 0;
        for (uint32_t e = 0; e < n; e++)
            sum += (double)values[b * n + e] * (double)values[b * n + e];
        ref_blocks_random(type, rng_next(&random), sqrt(sum / n), file + (size_t)b * each);
    }
    ref_blocks_decode(type, file, cols, decoded);
    ref_blocks_to_device(type, file, cols, row);
    for (uint32_t c = 0; c < cols; c++) {
        float stored = (float)decoded[c];
        uint32_t magnitude = float_bits(stored) & 0x7fffffffu;
        largest = magnitude > largest ? magnitude : largest;
        if (exact != NULL)
            exact[c] = stored;
    }
    free(decoded);
    free(file);
    return largest;
}

gpu_tensor fixture_tensor(device_fixture *f, ful_type type, uint32_t experts, uint32_t rows,
                          uint32_t cols, const float *values, float *exact)
{
    gpu_tensor t;
    EXPECT_OK(gpu_tensor_create(f->device, type, experts, rows, cols, "test weights", &t));
    uint32_t *row = malloc(t.row_bytes);
    float *scale = malloc(sizeof(float) * experts * rows);
    assert_non_null(row);
    assert_non_null(scale);
    bool scaled = false;
    for (uint32_t w = 0; w < t.window_count; w++) {
        const gpu_window *window = &t.windows[w];
        uint64_t count = (uint64_t)window->expert_count * window->row_count;
        uint8_t *all = malloc(count * t.row_bytes);
        assert_non_null(all);
        for (uint64_t i = 0; i < count; i++) {
            uint64_t expert = window->expert0 + i / window->row_count;
            uint64_t r = expert * rows + window->row0 + i % window->row_count;
            const float *in = values + r * cols;
            uint32_t largest = 0; /* magnitude of what is stored: rounding may leave fp16's range */
            fill_words(row, t.row_bytes, POISON_WORD); /* padding must not matter */
            if (type_is_blocks(type))
                largest = blocks_row(type, cols, r, in, row, exact ? exact + r * cols : NULL);
            for (uint32_t c = 0; c < cols && !type_is_blocks(type); c++) {
                float stored = in[c];
                if (type == FUL_TYPE_F32) {
                    memcpy((float *)row + c, &stored, 4);
                } else {
                    uint16_t h =
                        type == FUL_TYPE_F16 ? f16_from_f32(stored) : bf16_from_f32(stored);
                    memcpy((uint16_t *)row + c, &h, 2);
                    stored = type == FUL_TYPE_F16 ? f32_from_f16(h) : f32_from_bf16(h);
                }
                uint32_t magnitude = float_bits(stored) & 0x7fffffffu;
                largest = magnitude > largest ? magnitude : largest;
                if (exact != NULL)
                    exact[r * cols + c] = stored;
            }
            scale[r] = row_multiplier(largest);
            scaled = scaled || scale[r] != 1.0f;
            memcpy(all + i * t.row_bytes, row, t.row_bytes);
        }
        EXPECT_OK(
            gpu_range_write(f->device, gpu_whole(&window->buffer), 0, all, count * t.row_bytes));
        free(all);
    }
    if (scaled) {
        uint64_t bytes = sizeof(float) * (uint64_t)experts * rows;
        EXPECT_OK(gpu_buffer_create(f->device, bytes, GPU_MEMORY_DEVICE, "test row scales",
                                    &t.row_scale));
        EXPECT_OK(gpu_range_write(f->device, gpu_whole(&t.row_scale), 0, scale, bytes));
    }
    free(scale);
    free(row);
    return t;
}

void fixture_tensor_free(device_fixture *f, gpu_tensor *t)
{
    gpu_tensor_destroy(f->device, t);
}

/* ---- recording ---- */

void fixture_step(device_fixture *f, const step_params *step)
{
    EXPECT_OK(gpu_range_write(f->device, gpu_whole(&f->step), 0, step, sizeof *step));
}

op_context fixture_begin(device_fixture *f, const step_params *step, bool half)
{
    fixture_end(f);
    fixture_step(f, step);
    EXPECT_OK(gpu_commands_begin(f->device, GPU_COMMANDS_REUSABLE, &f->commands));
    op_context ctx = {.device = f->device,
                      .commands = f->commands,
                      .step = gpu_whole(&f->step),
                      .half = half,
                      .layer = -1};
    f->ended = false;
    return ctx;
}

void fixture_run(device_fixture *f)
{
    if (!f->ended)
        EXPECT_OK(gpu_commands_end(f->commands));
    f->ended = true;
    EXPECT_OK(gpu_commands_submit(f->commands));
    EXPECT_OK(gpu_commands_wait(f->commands));
}

void fixture_end(device_fixture *f)
{
    if (f->commands != NULL)
        gpu_commands_destroy(&f->commands);
}
