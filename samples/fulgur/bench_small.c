/* fulgur bench ops: small ops, checked like the others. */
#include "bench_ops.h"

#include <math.h>
#include <stdlib.h>

/* ---- gated norm ---- */

static const float gate_eps = 1e-5f;

bool bench_gated_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    uint32_t dim = s->heads * s->head_dim;
    uint64_t n = (uint64_t)c->rows * dim;
    snprintf(c->detail, sizeof c->detail, "%u columns", dim);
    if (!bench_fits(c, 12.0 * (double)n) || !bench_buffer_make(c, 0, n, 0.0, 1.0) ||
        !bench_buffer_make(c, 1, n, 0.5, 0.2) || !bench_buffer_make(c, 2, dim, 1.0, 0.2) ||
        !bench_out_make(c, 3, n))
        return false;
    ful_gated_norm_args a = {.o = {c->buffers[0], 0, 0},
                             .gate = {c->buffers[1], 0, 0},
                             .gate_stride = dim,
                             .weight = {c->buffers[2], 0, 0},
                             .eps = gate_eps,
                             .dim = dim,
                             .rows = c->rows,
                             .out = {c->out, 0, 0}};
    c->bytes = 12.0 * (double)n;
    c->flops = 5.0 * (double)n;
    return ful_op_gated_norm(c->stream, &a) == FUL_OK;
}

bool bench_gated_check(bench_case *c)
{
    enum { ROWS = 5 };
    uint32_t n = c->shape->heads * c->shape->head_dim;
    bench_deviation d = {0};
    float *w = malloc(16 * (size_t)n);
    bool good = w && bench_read_floats(c->buffers[2], 0, n, w);
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint64_t at = (uint64_t)bench_sample(i, ROWS, c->rows) * n;
        float *o = w + n, *gate = o + n, *out = gate + n;
        good = bench_read_floats(c->buffers[0], at, n, o) &&
               bench_read_floats(c->buffers[1], at, n, gate) &&
               bench_read_floats(c->out, at, n, out);
        double sum = 0.0;
        for (uint32_t k = 0; k < n; k++)
            sum += (double)o[k] * o[k];
        double scale = 1.0 / sqrt(sum / n + (double)gate_eps);
        for (uint32_t k = 0; k < n; k++)
            bench_deviate(&d, out[k], gate[k] * (o[k] * scale * w[k]));
    }
    free(w);
    c->error = bench_deviation_of(&d);
    c->limit = 1e-5;
    return good;
}

/* ---- sampling ---- */

enum { TOP_K = 40 };
static const float temperature = 0.8f, top_p = 0.95f;

bool bench_draw_make(bench_case *c)
{
    uint32_t n = c->shape->vocab;
    snprintf(c->detail, sizeof c->detail, "of %u, temperature, top-%d, top-p", n, TOP_K);
    if (c->rows != 1) {
        c->skip = "a draw is of one row";
        return false;
    }
    if (!bench_buffer_make(c, 0, n, 0.0, 3.0) || !bench_out_make(c, 1, 2))
        return false;
    c->step.temperature = temperature;
    c->step.top_k = TOP_K;
    c->step.top_p = top_p;
    c->step.uniform = 0.637f;
    c->bytes = 4.0 * n;
    c->flops = 4.0 * n; /* at least: the largest, and one exponential each */
    ful_sample_args a = {.logits = {c->buffers[0], 0, 0}, .vocab = n, .out = {c->out, 0, 0}};
    return ful_op_sample(c->stream, &a) == FUL_OK;
}

typedef struct logit {
    float value;
    uint32_t id;
} logit;

static int larger_first(const void *a, const void *b)
{
    const logit *x = a, *y = b;
    if (x->value != y->value)
        return x->value < y->value ? 1 : -1;
    return (x->id > y->id) - (x->id < y->id);
}

static int lower_id(const void *a, const void *b)
{
    const logit *x = a, *y = b;
    return (x->id > y->id) - (x->id < y->id);
}

/* How far the uniform number lies outside the drawn token's part of what is left. */
bool bench_draw_check(bench_case *c)
{
    uint32_t n = c->shape->vocab, drawn[2];
    logit *list = malloc(n * sizeof *list);
    float *values = malloc(n * sizeof *values);
    bool good = list && values && bench_read_floats(c->buffers[0], 0, n, values) &&
                ful_buffer_read(c->out, 0, drawn, sizeof drawn) == FUL_OK;
    for (uint32_t i = 0; good && i < n; i++)
        list[i] = (logit){values[i], i};
    c->error = 1.0;
    c->limit = 1e-5;
    if (good) {
        qsort(list, n, sizeof *list, larger_first);
        double largest = list[0].value, all = 0.0, kept = 0.0, below = 0.0;
        uint32_t count = 0;
        for (uint32_t i = 0; i < n && i < TOP_K; i++)
            all += exp((list[i].value - largest) / (double)temperature);
        while (count < n && count < TOP_K && kept < (double)top_p * all)
            kept += exp((list[count++].value - largest) / (double)temperature);
        qsort(list, count, sizeof *list, lower_id);
        for (uint32_t i = 0; i < count; i++) {
            double part = exp((list[i].value - largest) / (double)temperature) / kept;
            double u = (double)c->step.uniform;
            if (list[i].id == drawn[0] && drawn[1] == 0)
                c->error = u < below ? below - u : u > below + part ? u - below - part : 0.0;
            below += part;
        }
    }
    free(list);
    free(values);
    return good;
}
