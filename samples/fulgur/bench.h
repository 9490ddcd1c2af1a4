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

/* Types of weights: up to `most` names with commas between, or "all" of them. False after printing
 * what is wrong with the text. NULL: `or_else` alone. */
enum { BENCH_MOST_TYPES = FUL_TYPE_MXFP4 };
typedef struct bench_types {
    ful_type values[BENCH_MOST_TYPES];
    uint32_t count;
} bench_types;
bool bench_types_parse(const cli_command *command, const char *text, uint32_t most,
                       ful_type or_else, bench_types *out);

#endif
