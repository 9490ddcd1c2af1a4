/* Known-answer tests of the ops' kernels (fulgur/selftest.h). They stand in this room, not with the
 * device, because they run ops: which kernel an op takes, with what sizes and helpers, is the ops'
 * own choice, and that choice is what is tested. */
#ifndef FULGUR_OPS_SELFTEST_H
#define FULGUR_OPS_SELFTEST_H

#include "ops/op_common.h"

/* ---- for whoever loads a model ----
 *     gpu_pipelines_begin ... record dry ... selftest_prepare ... gpu_pipelines_end, selftest_run
 * and all again while that changed what is quarantined (gpu_trust_changes). */
typedef struct selftest selftest;
/* Asks for the pipelines of the tests of all modules of unknown trust that were asked for. *out is
 * NULL if there is nothing to test. */
ful_result selftest_prepare(ful_device *device, op_shape shape, selftest **out);
/* Runs them and keeps the verdicts. *test may be NULL; it is NULL afterwards. FUL_OK also if some
 * failed. */
ful_result selftest_run(selftest **test);
void selftest_end(selftest **test);

/* An op has no kernel left that can be trusted, and the processor can't take its place, either
 * (gpu/processor.c): says so in the log and gives FUL_ERR_SELFTEST. */
ful_result selftest_last_resort(const ful_device *device);

/* ful_device_selftest with kernels for the shape. */
struct ful_selftest_params;
ful_result selftest_device(ful_device *device, op_shape shape,
                           const struct ful_selftest_params *params);

/* ---- selftest_bench.c: what a test runs on ---- */
enum {
    KAT_INPUT_BYTES = 1 << 20,
    KAT_RESULT_BYTES = 320 << 10,
    KAT_SCRATCH_BYTES = 1 << 20,
    KAT_STEPS = 2,
    KAT_KV_WINDOWS = 8,
    KAT_POISON = 0x7fc0dead
};

typedef enum kat_form {
    KAT_F32,
    KAT_HALF,     /* halves with a scale a row or a block of columns */
    KAT_PAIRS,    /* u32, f32 */
    KAT_WORDS,    /* u32 */
    KAT_UNTOUCHED /* still poison */
} kat_form;

/* A part of the results and what it must be. */
typedef struct kat_check {
    kat_form form;
    gpu_range at, scale;
    uint32_t rows, cols, stride, block; /* block: columns of a scale */
    const double *want;                 /* [rows][cols] */
    double tolerance;
} kat_check;

typedef struct kat {
    op_context ctx;
    ful_type type; /* of weights */
    bool dry;      /* only to see which modules are asked for: no buffer exists */
    gpu_buffer image, inputs, results, scratch, steps, readback;
    uint8_t *host; /* of the image: inputs, then what results begin as */
    uint64_t input_bytes, result_bytes;
    gpu_range given[4]; /* of results: begin as the image says */
    uint32_t given_count;
    gpu_tensor w[2];
    gpu_window windows[2][2];
    uint32_t tensor_count;
    op_kv kv;
    gpu_buffer kv_windows[KAT_KV_WINDOWS];
    double *want; /* [KAT_RESULT_BYTES / 4] */
    uint64_t want_count;
    kat_check checks[4];
    uint32_t check_count;
    uint32_t runs;
    uint64_t first_ns, others_ns, least_ns; /* of runs, from submission to result */
} kat;

ful_result kat_open(ful_device *device, op_shape shape, bool dry, kat *k);
void kat_close(kat *k);
/* Ends the case before and begins one. */
ful_result kat_begin(kat *k, ful_type type);

/* A multiple of 1/16 below 1, the same everywhere: exact in every type. */
double kat_value(uint32_t stream, uint32_t index);
/* Powers of two, so that rows differ and stay exact. */
double kat_gain(uint32_t row);

/* Ranges of inputs; *host is where to write them, zeroed. Errors show when recording begins. */
gpu_range kat_input(kat *k, uint64_t bytes, void *host);
/* [rows][stride] f32: kat_value(stream, r * cols + c) * kat_gain(r), or without the gain. */
gpu_range kat_floats(kat *k, uint32_t rows, uint32_t cols, uint32_t stride, uint32_t stream,
                     bool gain);
/* The same numbers as halves with a scale for each block of columns. */
op_blocks kat_halves(kat *k, uint32_t rows, uint32_t cols, uint32_t block, uint32_t stream,
                     bool gain);
/* Poisoned before every run. */
gpu_range kat_result(kat *k, uint64_t bytes);
/* Begins as written to *host before every run. */
gpu_range kat_given(kat *k, uint64_t bytes, void *host);
/* Weights of kat_value(stream, (expert * rows + row) * cols + col); `first` experts, or rows of
 * one, in the first window, the rest, no more than these, in a second. */
ful_result kat_weights(kat *k, uint32_t experts, uint32_t rows, uint32_t cols, uint32_t first,
                       uint32_t stream, const gpu_tensor **out);
ful_result kat_kv(kat *k, ful_type type, uint32_t kv_heads, uint32_t head_dim, uint32_t tokens,
                  uint32_t window_tokens);
/* Step parameters i. */
void kat_step(kat *k, uint32_t i, const step_params *step);
gpu_range kat_step_range(const kat *k, uint32_t i);

/* [rows * cols] for the answer, zeroed; NULL if there are too many. */
double *kat_want(kat *k, uint64_t count);
void kat_expect(kat *k, kat_form form, gpu_range at, uint32_t rows, uint32_t cols, uint32_t stride,
                const double *want, double tolerance);
/* Rows first.. of a result with `row_bytes` a row are not written. */
void kat_untouched(kat *k, gpu_range at, uint32_t first, uint64_t row_bytes);

/* Records what comes before and after the ops, into ctx.commands. */
ful_result kat_record_begin(kat *k);
ful_result kat_record_end(kat *k);
/* Runs the recorded commands; *error is the largest of all checks, INFINITY for what is not finite.
 * *over is true if one exceeds its tolerance, which *tolerance then is. */
ful_result kat_run(kat *k, bool spoil, double *error, double *tolerance, bool *over);

/* ---- selftest_cases.c ---- */
enum { LADDER_VARIANTS = 6 };

/* One problem, and the kernels for it in the order in which ops choose. */
typedef struct ladder {
    const char *op;
    /* Everything between kat_begin and kat_run. FUL_ERR_UNSUPPORTED: not on this device. */
    ful_result (*record)(kat *k, uint32_t mode);
    uint32_t mode;
    bool typed;    /* variants are families: the type is appended */
    bool optional; /* ops do without any of them */
    const char *variants[LADDER_VARIANTS + 1];
} ladder;
const ladder *selftest_ladders(uint32_t *count);

#endif
