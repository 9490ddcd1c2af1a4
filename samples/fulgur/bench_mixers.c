/* Lightning and softmax attention in `fulgur bench ops`. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_ops.h"

/* ---- lightning attention ---- */

/* Slopes of head h of n in the first layer, as the published code has them (n a power of two). */
double bench_slope(uint32_t h, uint32_t n)
{
    return exp2(-8.0 * (h + 1) / n);
}

bool bench_decay_make(bench_case *c, uint32_t slot)
{
    const bench_shape *s = c->shape;
    double *slopes = malloc(sizeof *slopes * s->heads);
    for (uint32_t h = 0; slopes && h < s->heads; h++)
        slopes[h] = bench_slope(h, s->heads);
    bool good = slopes && ful_lightning_decay(&c->buffers[slot], c->device, s->heads, s->head_dim,
                                              slopes) == FUL_OK;
    free(slopes);
    return good;
}

enum { QKV, OUT, DECAY, STATE };

static bool lightning_buffers(bench_case *c, uint32_t rows, uint32_t states, double deviation)
{
    const bench_shape *s = c->shape;
    uint64_t inner = (uint64_t)s->heads * s->head_dim, state = inner * s->head_dim * states;
    snprintf(c->detail, sizeof c->detail, "%u heads of %u", s->heads, s->head_dim);
    if (!bench_fits(c, 24.0 * rows * (double)inner + 4.0 * (double)state))
        return false;
    return bench_buffer_make(c, QKV, 3 * inner * rows, 0.0, 0.5) &&
           bench_out_make(c, OUT, inner * rows) && bench_decay_make(c, DECAY) &&
           bench_buffer_make(c, STATE, state, 0.0, deviation);
}

bool bench_lightning_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    double inner = (double)s->heads * s->head_dim;
    if (!lightning_buffers(c, c->rows, 1, 0.0))
        return false;
    ful_lightning_args a = {.qkv = {c->buffers[QKV], 0, 0},
                            .heads = s->heads,
                            .head_dim = s->head_dim,
                            .rows = c->rows,
                            .decay = {c->buffers[DECAY], 0, 0},
                            .state = {c->buffers[STATE], 0, 0},
                            .out = {c->out, 0, 0}};
    c->bytes = 16.0 * c->rows * inner + 8.0 * inner * s->head_dim;
    c->flops = 4.0 * c->rows * inner * s->head_dim; /* of the recurrence itself */
    c->reset = STATE + 1;
    return ful_op_lightning_prefill(c->stream, &a) == FUL_OK;
}

/* The recurrence in double, for some value columns of some heads. */
bool bench_lightning_check(bench_case *c)
{
    enum { COLUMNS = 4, HEADS = 3, TOKENS = 256 };
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, row = 3 * s->heads * n;
    bench_deviation d = {0};
    float *qkv = malloc(4 * (size_t)row * TOKENS), *out = malloc(4 * (size_t)row * TOKENS);
    double *state = calloc((size_t)HEADS * COLUMNS * n, sizeof *state);
    float *end = malloc(4 * (size_t)n * n);
    bool good = qkv && out && state && end;
    for (uint32_t t0 = 0; good && t0 < c->rows; t0 += TOKENS) {
        uint32_t m = c->rows - t0 < TOKENS ? c->rows - t0 : TOKENS;
        good = bench_read_floats(c->buffers[QKV], (uint64_t)t0 * row, (uint64_t)m * row, qkv) &&
               bench_read_floats(c->out, (uint64_t)t0 * (row / 3), (uint64_t)m * (row / 3), out);
        for (uint32_t i = 0; good && i < HEADS; i++) {
            uint32_t h = bench_sample(i, HEADS, s->heads);
            double fade = exp(-bench_slope(h, s->heads));
            for (uint32_t t = 0; t < m; t++) {
                const float *q = qkv + (size_t)t * row + (size_t)h * 3 * n, *k = q + n, *v = k + n;
                for (uint32_t j = 0; j < COLUMNS; j++) {
                    uint32_t column = bench_sample(j, COLUMNS, n);
                    double *S = state + ((size_t)i * COLUMNS + j) * n, o = 0.0;
                    for (uint32_t x = 0; x < n; x++) {
                        S[x] = fade * S[x] + (double)k[x] * v[column];
                        o += q[x] * S[x];
                    }
                    bench_deviate(&d, out[((size_t)t * s->heads + h) * n + column], o);
                }
            }
        }
    }
    c->error = bench_deviation_of(&d);
    bench_deviation states = {0};
    for (uint32_t i = 0; good && i < HEADS; i++) {
        uint32_t h = bench_sample(i, HEADS, s->heads);
        good = bench_read_floats(c->buffers[STATE], (uint64_t)h * n * n, (uint64_t)n * n, end);
        for (uint32_t j = 0; good && j < COLUMNS; j++)
            for (uint32_t x = 0; x < n; x++)
                bench_deviate(&states, end[x * n + bench_sample(j, COLUMNS, n)],
                              state[((size_t)i * COLUMNS + j) * n + x]);
    }
    /* One figure for both: the state's limit is half of the outputs'. */
    double other = 2.0 * bench_deviation_of(&states);
    if (!(other <= c->error))
        c->error = other;
    c->limit = bench_half_limit(c);
    free(qkv);
    free(out);
    free(state);
    free(end);
    return good;
}

bool bench_lightning_step_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    double inner = (double)s->heads * s->head_dim;
    if (!lightning_buffers(c, c->rows, c->rows, 1.0))
        return false;
    ful_lightning_args a = {.qkv = {c->buffers[QKV], 0, 0},
                            .heads = s->heads,
                            .head_dim = s->head_dim,
                            .sequences = c->rows,
                            .decay = {c->buffers[DECAY], 0, 0},
                            .state = {c->buffers[STATE], 0, 0},
                            .out = {c->out, 0, 0}};
    c->bytes = c->rows * (16.0 * inner + 8.0 * inner * s->head_dim);
    c->flops = 5.0 * c->rows * inner * s->head_dim;
    c->reset = STATE + 1;
    return ful_op_lightning_decode(c->stream, &a) == FUL_OK;
}

/* One step of the recurrence in double, of some sequences. The states before it are random numbers
 * that restoring makes again. */
bool bench_lightning_step_check(bench_case *c)
{
    enum { SEQUENCES = 3, HEADS = 3 };
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, inner = s->heads * n, pairs = SEQUENCES * HEADS;
    size_t floats = (size_t)n * n;
    bench_deviation d = {0};
    float *qkv = malloc(12 * (size_t)inner), *out = malloc(4 * (size_t)inner),
          *before = malloc(4 * floats), *after = malloc(4 * floats * pairs);
    bool good = qkv && out && before && after;
    uint32_t sequences[SEQUENCES * HEADS], heads[SEQUENCES * HEADS];
    for (uint32_t i = 0; good && i < pairs; i++) {
        sequences[i] = bench_sample(i / HEADS, SEQUENCES, c->rows);
        heads[i] = bench_sample(i % HEADS, HEADS, s->heads);
        good = bench_read_floats(c->buffers[STATE],
                                 ((uint64_t)sequences[i] * s->heads + heads[i]) * floats, floats,
                                 after + i * floats);
    }
    good = good && bench_case_restore(c);
    for (uint32_t i = 0; good && i < pairs; i++) {
        uint64_t r = sequences[i];
        uint32_t h = heads[i];
        good = bench_read_floats(c->buffers[STATE], (r * s->heads + h) * floats, floats, before) &&
               bench_read_floats(c->buffers[QKV], r * 3 * inner, 3 * (uint64_t)inner, qkv) &&
               bench_read_floats(c->out, r * inner, inner, out);
        const float *q = qkv + (size_t)h * 3 * n, *k = q + n, *v = k + n;
        double fade = exp(-bench_slope(h, s->heads));
        for (uint32_t y = 0; good && y < n; y++) {
            double o = 0.0;
            for (uint32_t x = 0; x < n; x++) {
                double S = fade * before[x * n + y] + (double)k[x] * v[y];
                bench_deviate(&d, after[i * floats + x * n + y], S);
                o += q[x] * S;
            }
            bench_deviate(&d, out[(size_t)h * n + y], o);
        }
    }
    free(qkv);
    free(out);
    free(before);
    free(after);
    c->error = bench_deviation_of(&d);
    c->limit = 1e-5;
    return good;
}

/* ---- softmax attention ---- */

enum { ROPE = DECAY, FILL, FILL_ROPE, FILL_OUT, FILL_ROWS = 2048 };
static const double THETA = 1e7;

/* Keys, turned, and values of the last KV head: what the check needs of the tokens before. */
typedef struct seen {
    uint32_t tokens;
    float values[]; /* [tokens][2][head_dim] */
} seen;

/* The first rotary_dim of a head turn in pairs (i, i + rotary_dim/2). */
static void turn(const float *angles, uint32_t rotary_dim, float *x)
{
    uint32_t half = rotary_dim / 2;
    for (uint32_t i = 0; i < half; i++) {
        float c = angles[2 * i], s = angles[2 * i + 1], a = x[i], b = x[i + half];
        x[i] = a * c - b * s;
        x[i + half] = b * c + a * s;
    }
}

static void keep(const bench_case *c, const float *angles, const float *row, uint32_t heads,
                 uint32_t token)
{
    const bench_shape *s = c->shape;
    seen *all = c->host;
    uint32_t n = s->head_dim;
    float *at = all->values + (size_t)token * 2 * n;
    memcpy(at, row + (size_t)(heads + s->kv_heads - 1) * n, 4 * (size_t)n);
    memcpy(at + n, row + (size_t)(heads + 2 * s->kv_heads - 1) * n, 4 * (size_t)n);
    turn(angles, s->rotary_dim, at);
}

static bool rope_write(bench_case *c, uint32_t slot, uint32_t position, uint32_t rows,
                       float *angles)
{
    ful_rope_table(position, rows, c->shape->rotary_dim, THETA, angles);
    return ful_buffer_write(c->buffers[slot], 0, angles,
                            4 * (uint64_t)rows * c->shape->rotary_dim) == FUL_OK;
}

/* Keys and values of `tokens` tokens, by way of attention with as few query heads as there may be.
 */
static bool cache_fill(bench_case *c, uint32_t tokens)
{
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, row = 3 * s->kv_heads * n;
    float *angles = malloc(4 * (size_t)FILL_ROWS * s->rotary_dim),
          *qkv = malloc(4 * (size_t)FILL_ROWS * row);
    ful_stream *stream = NULL;
    bool good = angles && qkv && bench_buffer_make(c, FILL, (uint64_t)FILL_ROWS * row, 0.0, 0.7) &&
                bench_buffer_make(c, FILL_ROPE, (uint64_t)FILL_ROWS * s->rotary_dim, 0.0, 0.0) &&
                bench_buffer_make(c, FILL_OUT, (uint64_t)FILL_ROWS * s->kv_heads * n, 0.0, 0.0) &&
                ful_stream_begin(&stream, c->device, ful_stream_params(.half = c->half)) == FUL_OK;
    ful_attention_args a = {.qkv = {c->buffers[FILL], 0, 0},
                            .heads = s->kv_heads,
                            .rotary_dim = s->rotary_dim,
                            .rows = FILL_ROWS,
                            .rope = {c->buffers[FILL_ROPE], 0, 0},
                            .kv = c->kv,
                            .out = {c->buffers[FILL_OUT], 0, 0}};
    good = good && ful_op_attention(stream, &a) == FUL_OK;
    for (uint32_t t = 0; good && t < tokens; t += FILL_ROWS) {
        uint32_t m = tokens - t < FILL_ROWS ? tokens - t : FILL_ROWS;
        good = ful_buffer_randomize(c->buffers[FILL], c->seed + 1000 + t, 0.0, 0.7) == FUL_OK &&
               bench_read_floats(c->buffers[FILL], 0, (uint64_t)m * row, qkv) &&
               rope_write(c, FILL_ROPE, t, FILL_ROWS, angles) &&
               ful_stream_run(stream, &(ful_step){.n_rows = m, .position = t}) == FUL_OK;
        for (uint32_t r = 0; good && r < m; r++)
            keep(c, angles + (size_t)r * s->rotary_dim, qkv + (size_t)r * row, s->kv_heads, t + r);
    }
    ful_stream_destroy(&stream);
    free(angles);
    free(qkv);
    return good;
}

bool bench_attention_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, row = (s->heads + 2 * s->kv_heads) * n;
    uint32_t before = c->keys - c->rows;
    snprintf(c->detail, sizeof c->detail, "%u/%u heads of %u, %u keys", s->heads, s->kv_heads, n,
             c->keys);
    double kv = 2.0 * c->keys * s->kv_heads * n * (c->half ? 2 : 4);
    if (!bench_fits(c, 2.0 * kv + 16.0 * c->rows * row))
        return false;
    c->host = malloc(sizeof(seen) + 8 * (size_t)c->keys * n);
    ful_kv_params p = {sizeof p, c->half ? FUL_TYPE_F16 : FUL_TYPE_F32, s->kv_heads, n,
                       c->keys + FILL_ROWS};
    float *angles = malloc(4 * (size_t)c->rows * s->rotary_dim);
    bool good = c->host && angles && ful_kv_create(&c->kv, c->device, &p) == FUL_OK &&
                (before == 0 || cache_fill(c, before)) &&
                bench_buffer_make(c, QKV, (uint64_t)c->rows * row, 0.0, 0.7) &&
                bench_out_make(c, OUT, (uint64_t)c->rows * s->heads * n) &&
                bench_buffer_make(c, ROPE, (uint64_t)c->rows * s->rotary_dim, 0.0, 0.0) &&
                rope_write(c, ROPE, before, c->rows, angles);
    free(angles);
    if (!good)
        return false;
    ful_attention_args a = {.qkv = {c->buffers[QKV], 0, 0},
                            .heads = s->heads,
                            .rotary_dim = s->rotary_dim,
                            .rows = c->rows,
                            .rope = {c->buffers[ROPE], 0, 0},
                            .kv = c->kv,
                            .out = {c->out, 0, 0}};
    c->step = (ful_step){.n_rows = c->rows, .position = before};
    c->bytes = kv + 8.0 * c->rows * s->heads * n;
    c->flops = 4.0 * s->heads * n * ((double)before * c->rows + 0.5 * c->rows * (c->rows + 1.0));
    c->reset = QKV + 1; /* queries are turned in place */
    return ful_op_attention(c->stream, &a) == FUL_OK;
}

bool bench_attention_check(bench_case *c)
{
    enum { ROWS = 3 };
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, row = (s->heads + 2 * s->kv_heads) * n, before = c->keys - c->rows;
    bench_deviation d = {0};
    float *qkv = malloc(4 * (size_t)c->rows * row), *out = malloc(4 * (size_t)n),
          *angles = malloc(4 * (size_t)c->rows * s->rotary_dim);
    double *weights = malloc(sizeof *weights * c->keys), *o = malloc(sizeof *o * n);
    bool good = qkv && out && angles && weights && o &&
                bench_case_restore(c) && /* as they were before the queries were turned */
                bench_read_floats(c->buffers[QKV], 0, (uint64_t)c->rows * row, qkv);
    if (good)
        ful_rope_table(before, c->rows, s->rotary_dim, THETA, angles);
    for (uint32_t r = 0; good && r < c->rows; r++)
        keep(c, angles + (size_t)r * s->rotary_dim, qkv + (size_t)r * row, s->heads, before + r);
    const seen *all = c->host;
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint32_t r = bench_sample(i, ROWS, c->rows),
                 h = s->heads - 1 - (s->heads > s->kv_heads) * (i % 2);
        float *q = qkv + (size_t)r * row + (size_t)h * n;
        turn(angles + (size_t)r * s->rotary_dim, s->rotary_dim, q);
        double most = -INFINITY, sum = 0.0;
        for (uint32_t k = 0; k <= before + r; k++) {
            double x = 0.0;
            for (uint32_t e = 0; e < n; e++)
                x += (double)q[e] * all->values[(size_t)k * 2 * n + e];
            weights[k] = x / sqrt((double)n);
            most = fmax(most, weights[k]);
        }
        memset(o, 0, sizeof *o * n);
        for (uint32_t k = 0; k <= before + r; k++) {
            double w = exp(weights[k] - most);
            sum += w;
            for (uint32_t e = 0; e < n; e++)
                o[e] += w * all->values[((size_t)k * 2 + 1) * n + e];
        }
        good = bench_read_floats(c->out, ((uint64_t)r * s->heads + h) * n, n, out);
        for (uint32_t e = 0; good && e < n; e++)
            bench_deviate(&d, out[e], o[e] / sum);
    }
    free(qkv);
    free(out);
    free(angles);
    free(weights);
    free(o);
    c->error = bench_deviation_of(&d);
    c->limit = bench_half_limit(c);
    return good;
}
