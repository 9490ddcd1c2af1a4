/* What the measuring commands share. */
#ifndef FULGUR_SAMPLES_BENCH_H
#define FULGUR_SAMPLES_BENCH_H

#include "cli.h"

/* `fulgur bench NAME`; the command's own name is "bench NAME". */
extern const cli_command bench_device, bench_ops, bench_model, bench_lengths, bench_report,
    bench_compare;

/* Sorts `values`. */
typedef struct bench_spread {
    double median, least, most;
} bench_spread;
bench_spread bench_spread_of(double *values, size_t n);

#endif
