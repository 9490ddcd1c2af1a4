/* The parts of `fulgur bench ops`. */
#ifndef FULGUR_SAMPLES_BENCH_OPS_H
#define FULGUR_SAMPLES_BENCH_OPS_H

#include <fulgur/ops.h>

#include "bench.h"

enum { CASE_BUFFERS = 8 };

/* Sizes of the model whose layers are measured. */
typedef struct bench_shape {
    const char *name;
    uint32_t hidden, heads, kv_heads, head_dim, rotary_dim, experts, top_k, width, vocab;
} bench_shape;

typedef struct bench_case bench_case;

/* One op. make records it on c->stream with random inputs; check compares samples of what the last
 * run left with double precision and sets c->error. Both return false after setting the library's
 * error line, or c->skip. */
typedef struct bench_kind {
    const char *name;
    bool (*make)(bench_case *c);
    bool (*check)(bench_case *c);
    bool decode;  /* rows are sequences or tokens of a step, not a prompt's length */
    bool weights; /* reads a matrix: measured with every type asked for */
} bench_kind;
extern const bench_kind bench_kinds[];
extern const uint32_t bench_kind_count;

struct bench_case {
    const bench_kind *kind;
    const bench_shape *shape;
    ful_device *device;
    ful_type type;   /* of weights */
    bool half;       /* fp16 variants */
    uint32_t rows;   /* tokens of a prompt, or of a step */
    uint32_t keys;   /* attention: that the last row sees */
    uint64_t memory; /* bytes that may be used */
    void *host;      /* of the kind's own, freed with the case */
    /* made by make */
    ful_stream *stream;
    ful_step step;
    ful_buffer *buffers[CASE_BUFFERS];
    ful_tensor *tensors[2];
    ful_kv *kv;
    ful_buffer *out; /* one of buffers: poisoned before each run, written whole by each */
    uint64_t out_floats;
    uint64_t seed;
    uint32_t reset; /* not 0: buffers[reset - 1] is changed by a run and restored before each */
    double mean[CASE_BUFFERS], deviation[CASE_BUFFERS]; /* of random buffers */
    double bytes, flops; /* what must move and be computed at least */
    char detail[64];
    /* made by check */
    double error, limit; /* norm of the difference over norm of the reference */
    const char *skip;
};

/* What one case gave. */
typedef struct bench_result {
    const char *op;
    ful_type type; /* of its weights; FUL_TYPE_DEFAULT: it has none */
    char detail[64];
    uint32_t rows;
    double us, least, most; /* of the device; wall clock where it has no timestamps */
    double bytes, flops;    /* what must move and be computed at least */
    double gbps, tflops, of_copy, of_read, of_rate;
    double error, limit;
    const char *wrong;  /* not NULL: no figures */
    char left_out[160]; /* not empty: why it was not measured */
    bool fault;         /* left_out is an error of the library's */
} bench_result;

enum { BENCH_MOST_ROWS = 16 };
typedef struct bench_rows {
    uint32_t values[BENCH_MOST_ROWS];
    uint32_t count;
} bench_rows;

/* Options and limits of a run over the ops. */
typedef struct bench_ops_run {
    cli_model model;
    const bench_shape *shape;
    const char *shape_text, *type_text, *filter, *rows_text;
    bench_types types;
    bool half, json, csv;
    uint32_t reps, count;
    uint64_t seed;
    double copy, read, rate; /* of the device: bytes/s, bytes/s, FLOP/s */
    const char *rate_name;
    bench_rows rows; /* empty: each op's own */
    bool failed;
} bench_ops_run;

/* Sizes, weights and arithmetic by the texts or by what suits the device; false after printing
 * which text can't be read. */
bool bench_ops_choose(bench_ops_run *b);
/* Every op at two of its sizes, the smaller of each op first; those that would take until after
 * `until_ns` are left out. */
void bench_ops_some(bench_ops_run *b, uint64_t until_ns,
                    void (*take)(void *ctx, const bench_result *r), void *ctx);
/* Kernels chosen by `fulgur tune` and not by the library's rules. */
uint32_t bench_tuned_choices(const ful_device *device);

void bench_case_free(bench_case *c);
/* Inputs that a run changes, as they were. */
bool bench_case_restore(bench_case *c);

/* ---- for the kinds ---- */

/* c->buffers[slot], random around mean; NULL with the error line set. */
ful_buffer *bench_buffer_make(bench_case *c, uint32_t slot, uint64_t floats, double mean,
                              double deviation);
/* c->buffers[slot] and c->out. */
ful_buffer *bench_out_make(bench_case *c, uint32_t slot, uint64_t floats);
bool bench_fits(bench_case *c, double bytes); /* false: c->skip is set */

/* Sums for the norm of a difference over the norm of what it differs from. */
typedef struct bench_deviation {
    double wrong, right;
} bench_deviation;
void bench_deviate(bench_deviation *d, double got, double want);
double bench_deviation_of(const bench_deviation *d);
double bench_half_limit(const bench_case *c);
bool bench_read_floats(const ful_buffer *b, uint64_t first, uint64_t n, float *out);
/* The i-th of n samples among `all`, the first and the last among them. */
uint32_t bench_sample(uint32_t i, uint32_t n, uint32_t all);

/* Row `row` of an expert of one of the tensors, decoded on the host, from `w`, room for a row of
 * any type. */
bool bench_read_row(const bench_case *c, uint32_t tensor, uint32_t expert, uint32_t row,
                    uint32_t cols, void *w, float *out);

/* bench_mixers.c */
bool bench_lightning_make(bench_case *c);
bool bench_lightning_check(bench_case *c);
bool bench_lightning_step_make(bench_case *c);
bool bench_lightning_step_check(bench_case *c);
bool bench_attention_make(bench_case *c);
bool bench_attention_check(bench_case *c);

double bench_slope(uint32_t head, uint32_t heads);
bool bench_decay_make(bench_case *c, uint32_t slot);

/* bench_halves.c */
bool bench_halves_make(bench_case *c);
bool bench_halves_check(bench_case *c);

/* bench_small.c */
bool bench_gated_make(bench_case *c);
bool bench_gated_check(bench_case *c);
bool bench_draw_make(bench_case *c);
bool bench_draw_check(bench_case *c);

#endif
