/* The parts of `fulgur bench model`. */
#ifndef FULGUR_SAMPLES_BENCH_MODEL_H
#define FULGUR_SAMPLES_BENCH_MODEL_H

#include "bench.h"

enum { BENCH_LIST = 16, BENCH_TESTS = 96, BENCH_OPS = 48 };

typedef struct bench_list {
    uint32_t values[BENCH_LIST];
    uint32_t count;
} bench_list;

/* All steps of one op, summed over a profiled run. */
typedef struct bench_op {
    const char *name;
    uint64_t calls, ns;
    double bytes, flops;
} bench_op;

typedef struct bench_test {
    bool decode;
    uint32_t tokens, depth;
    double *tokens_per_s; /* [reps], sorted */
    bench_spread rate;
    double cpu_ns;                /* per token: this thread's, all of it */
    double host_ns;               /* per token: outside the wait for the device; decode only */
    double gpu_ns;                /* per token; 0: no timestamps */
    double profiled_ns;           /* sum of all ops in the profiled run ... */
    uint32_t profiled_tokens;     /* ... of these */
    double weight_bytes;          /* read per token by decode */
    uint32_t dispatches, submits; /* per token; decode only */
    double experts;               /* distinct ones a layer, on average over the layers ... */
    uint32_t least_experts;       /* ... and in the layer with fewest */
    bool left_out;                /* no time was left */
    const char *wrong;            /* NULL: logits finite, and the same bits in every repetition */
    bench_op ops[BENCH_OPS];
    uint32_t op_count;
} bench_test;

typedef struct bench_run {
    cli_model model;
    bench_test tests[BENCH_TESTS];
    uint32_t test_count, reps;
    uint64_t seed;
    uint64_t until_ns; /* not 0: tests after the second that would begin later are left out */
    bool profile;
    const char *name;          /* preset or folder */
    ful_type type;             /* of most weights */
    uint64_t peak_bytes;       /* held by the measured runs */
    double read, copy, matrix; /* what the device can do, bytes/s and FLOP/s; 0: not measured */
} bench_run;

/* Every test at every depth; *most is what the longest needs of a session. False after printing
 * why not. free() each tokens_per_s. */
bool bench_model_add(bench_run *b, const bench_list *prefill, const bench_list *decode,
                     const bench_list *depths, size_t *most);
/* Runs them on b->model, whose session is then one with timestamps around every op. Returns an exit
 * code after printing what went wrong. */
int bench_model_tests(bench_run *b, size_t most);
/* GB/s: weights alone, the least that a decoded token must read. */
double bench_weight_gbps(const bench_test *t);

void bench_model_table(const bench_run *b);
void bench_model_csv(const bench_run *b);
void bench_model_json(const bench_run *b);
void bench_model_ops(const bench_run *b); /* one table a test */

/* First token: here, in this process, or in two processes of their own, with an empty and with a
 * filled pipeline cache; Vulkan must not have been touched before. */
typedef struct bench_first {
    cli_model *model;
    const char *path;
    uint32_t prompt;
    uint64_t seed;
    bool json;
    FILE *out; /* NULL: standard output */
} bench_first;
int bench_first_here(const bench_first *f);
int bench_first_both(const bench_first *f);

/* Token i of a sequence that any seed makes anew. */
int32_t bench_token(uint64_t seed, uint64_t i, uint32_t vocab);

#endif
