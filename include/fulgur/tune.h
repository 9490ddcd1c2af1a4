/* Tuning: measuring once, on the device at hand, which of several kernels or sizes of a kernel is
 * fastest there. The choices are good without it. */
#ifndef FULGUR_TUNE_H
#define FULGUR_TUNE_H

#include "fulgur/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* One candidate of one choice, measured. */
typedef struct ful_tune_trial {
    const char *choice; /* "matmul tile, up to 16 rows"; static storage */
    const char *value; /* "64 x 128, subgroups", "65536"; "default" = what the library does untuned.
                        * Valid during the call */
    double us, least_us; /* median and least time; 0 if `wrong` */
    bool chosen;         /* from now on */
    const char *wrong;   /* NULL, or why it may not be chosen. Valid during the call */
} ful_tune_trial;

/* Called for every candidate, once the choice it belongs to is made. Returning false stops:
 * FUL_ERR_CANCELLED, and everything is as it was before. */
typedef bool (*ful_tune_fn)(void *ctx, const ful_tune_trial *trial);

typedef struct ful_tune_params {
    size_t struct_size;
    ful_tune_fn trial; /* may be NULL */
    void *ctx;
    const char *only; /* only choices whose name holds this; NULL = all */
    bool forget;      /* go back to the defaults instead of measuring */
} ful_tune_params;
#define ful_tune_params(...)                                                                       \
    (&(ful_tune_params){.struct_size = sizeof(ful_tune_params), __VA_ARGS__})

/* Measures the candidates of every choice that the device has, takes those that are at least 3 %
 * faster than the default, at their best too, and give the same results, and keeps them beside the
 * pipeline cache for devices opened later with this driver, this build of the library and the same
 * capabilities. Takes some ten seconds and up to 2 GiB of device memory on a GPU. Nothing of the
 * device may exist while it runs: no model, session, stream or buffer. On devices without choices
 * it does nothing.
 *
 * Errors: FUL_ERR_DEVICE_MEMORY, FUL_ERR_DEVICE_LOST, FUL_ERR_CANCELLED; FUL_ERR_IO if the choices
 * hold but could not be kept. */
FUL_API ful_result ful_device_tune(ful_device *device, const ful_tune_params *params);

/* The choices in effect, in the order of measuring: trial is called for each, without times; chosen
 * tells those that came from tuning. */
FUL_API ful_result ful_device_tuning(const ful_device *device, ful_tune_fn trial, void *ctx);

#ifdef __cplusplus
}
#endif

#endif
