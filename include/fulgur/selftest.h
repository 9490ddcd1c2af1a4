/* Self-test: every kernel that a device would use, tried on small problems with known answers.
 * Drivers that report a feature and compute it wrongly are common, on phones above all.
 *
 * When a model is loaded, the kernels that it will use and that were never tried on this device are
 * tried before anything depends on them: three times each, on odd shapes, against double precision.
 * One that gives a wrong answer even once is quarantined, a warning goes to the log, and the next
 * choice takes its place, down to the plainest kernels. If none is left, the processor takes the op
 * over where it shares the device's memory: the device waits for it then, so it is slow, but right.
 * Where it does not, loading fails with FUL_ERR_SELFTEST, and the built-in device (name_part "cpu")
 * is what remains; the fulgur program then takes it by itself. Verdicts are kept beside the
 * pipeline cache, for this device, driver, version of the library and set of capabilities: a device
 * that was tried once costs nothing more.
 *
 * A kernel is noted as being tested before it first runs. If the process or the driver does not
 * live to see the end, the next one finds the note and does without the kernel. On the disk there
 * is one note for all tests of a load; after a stop of the whole machine, each test waits until its
 * own is there, so that the next stop tells the kernel.
 *
 * FULGUR_FAULT makes tests fail, to see what follows: words "selftest:KERNEL" (wrong results),
 * "selftest:KERNEL:once" (wrong in one of the three runs), "selftest:KERNEL:third" (wrong every
 * third time) or "selftest:KERNEL:lost" (the device stops), separated by commas. KERNEL is a name
 * as the rows below have it, with or without the weights' type at its end; a * at the end stands
 * for anything. The built-in device has no such faults. Verdicts under FULGUR_FAULT are kept apart
 * from the others.
 *
 * Another word is "lost:N": the device is lost in the Nth step that sessions submit (a chunk of a
 * prefill or a decoded token), counted through all devices of an instance. */
#ifndef FULGUR_SELFTEST_H
#define FULGUR_SELFTEST_H

#include "fulgur/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum ful_selftest_verdict {
    FUL_SELFTEST_PASSED = 0,
    FUL_SELFTEST_WRONG = 1,   /* in one of the runs at least */
    FUL_SELFTEST_LOST = 2,    /* the device did not return; it is lost */
    FUL_SELFTEST_REFUSED = 3, /* the driver did not compile or take it */
} ful_selftest_verdict;

/* One kernel on one problem. */
typedef struct ful_selftest_row {
    const char *op;      /* "matmul of halves"; static storage */
    const char *variant; /* the kernel, "matmul_coopmat_f16"; static storage */
    uint32_t choice;     /* 0: what the device uses for this; 1: what it would use without; ... */
    ful_selftest_verdict verdict;
    double error, tolerance; /* largest error found, relative to the largest element of its row, and
                              * what is allowed; error is infinite if a result is not finite or an
                              * element is missing */
    double ms;               /* all runs and the answer on the processor, without compiling */
    const char *why;         /* NULL if passed. Valid during the call */
    double run_ms;           /* the fastest run, from submission to result: some drivers compile in
                              * the first one */
} ful_selftest_row;

/* Returning false stops: FUL_ERR_CANCELLED. */
typedef bool (*ful_selftest_fn)(void *ctx, const ful_selftest_row *row);

typedef struct ful_selftest_params {
    size_t struct_size;
    ful_selftest_fn row; /* may be NULL */
    void *ctx;
    const char *only; /* only ops whose name holds this; NULL = all */
} ful_selftest_params;
#define ful_selftest_params(...)                                                                   \
    (&(ful_selftest_params){.struct_size = sizeof(ful_selftest_params), __VA_ARGS__})

/* Forgets all verdicts, those of other ops than `only` too, and tries every kernel that the device
 * can run, the first choice of each op, then the next ones; keeps the new verdicts. Nothing of the
 * device may exist while it runs: no model, session, stream or buffer. Takes a few MiB of device
 * memory and, the first time, some seconds of compiling.
 *
 * FUL_OK also if kernels failed: the rows tell, and others take their place. Errors:
 * FUL_ERR_SELFTEST if an op has none left, FUL_ERR_DEVICE_LOST, FUL_ERR_DEVICE_MEMORY,
 * FUL_ERR_CANCELLED. */
FUL_API ful_result ful_device_selftest(ful_device *device, const ful_selftest_params *params);

#ifdef __cplusplus
}
#endif

#endif
