/* fulgur bench ops: lightning prefill as a model's layer runs it, halves with scales in and out. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_ops.h"

enum {
    DATA,
    OUT,
    DECAY,
    STATE,
    SCALE,
    OUT_SCALE,
    PATTERN = 61, /* rows after which the inputs repeat: a prime, so that blocks differ */
    STEP = 8      /* inputs are multiples of it up to 1,023 times: exact in halves */
};

/* The inputs: an integer that a half holds, times the power of two of its row and head. */
static int32_t input_integer(const bench_case *c, uint32_t row, uint32_t column)
{
    uint32_t x = (uint32_t)c->seed + (row % PATTERN) * 0x9e3779b9u + column * 0x85ebca6bu;
    x = (x ^ x >> 16) * 0x21f0aaadu;
    x = (x ^ x >> 15) * 0x735a2d97u;
    x ^= x >> 15;
    return STEP * ((int32_t)(x % 2047) - 1023);
}

static float input_scale(uint32_t row, uint32_t block)
{
    return ldexpf(1.0f, -14 + (int)((row % PATTERN + block) % 3));
}

static double input_value(const bench_case *c, uint32_t row, uint32_t column)
{
    return input_integer(c, row, column) * (double)input_scale(row, column / c->shape->head_dim);
}

static uint16_t half_of(int32_t integer)
{
    int exponent;
    float fraction = frexpf(fabsf((float)integer), &exponent); /* in [1/2, 1) */
    if (integer == 0)
        return 0;
    uint32_t bits = (uint32_t)(exponent + 14) << 10 | ((uint32_t)(fraction * 2048.0f) & 0x3ff);
    return (uint16_t)(bits | (integer < 0 ? 0x8000u : 0));
}

static double value_of(uint16_t half)
{
    int exponent = half >> 10 & 31, fraction = half & 0x3ff;
    double x = exponent == 0 ? ldexp(fraction, -24) : ldexp(1024 + fraction, exponent - 25);
    if (exponent == 31)
        x = NAN;
    return half & 0x8000 ? -x : x;
}

static bool write_inputs(bench_case *c)
{
    uint32_t heads3 = 3 * c->shape->heads, columns = heads3 * c->shape->head_dim;
    uint16_t *data = malloc(2 * (size_t)columns * PATTERN);
    float *scale = malloc(4 * (size_t)heads3 * PATTERN);
    bool good = data && scale;
    for (uint32_t r = 0; good && r < PATTERN; r++) {
        for (uint32_t i = 0; i < columns; i++)
            data[(size_t)r * columns + i] = half_of(input_integer(c, r, i));
        for (uint32_t i = 0; i < heads3; i++)
            scale[(size_t)r * heads3 + i] = input_scale(r, i);
    }
    for (uint32_t r = 0; good && r < c->rows; r += PATTERN) {
        uint64_t n = c->rows - r < PATTERN ? c->rows - r : PATTERN;
        good = ful_buffer_write(c->buffers[DATA], 2 * (uint64_t)r * columns, data,
                                2 * n * columns) == FUL_OK &&
               ful_buffer_write(c->buffers[SCALE], 4 * (uint64_t)r * heads3, scale,
                                4 * n * heads3) == FUL_OK;
    }
    free(data);
    free(scale);
    return good;
}

bool bench_halves_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    double inner = (double)s->heads * s->head_dim;
    uint32_t block = ful_op_lightning_block(c->stream, c->rows, s->heads, s->head_dim);
    if (block == 0) {
        c->skip = "no kernel here takes halves";
        return false;
    }
    uint64_t n = (uint64_t)s->heads * s->head_dim, rows = c->rows;
    snprintf(c->detail, sizeof c->detail, "%u heads of %u", s->heads, s->head_dim);
    if (!bench_fits(c, 9.0 * (double)rows * inner + 4.0 * inner * s->head_dim) ||
        !bench_buffer_make(c, DATA, 3 * n * rows / 2, 0.0, 0.0) ||
        !bench_out_make(c, OUT, n * rows / 2) || !bench_decay_make(c, DECAY) ||
        !bench_buffer_make(c, STATE, n * s->head_dim, 0.0, 0.0) ||
        !bench_buffer_make(c, SCALE, 3 * (uint64_t)s->heads * rows, 0.0, 0.0) ||
        !bench_buffer_make(c, OUT_SCALE, n / block * rows, 0.0, 0.0) || !write_inputs(c) ||
        ful_buffer_fill(c->buffers[OUT_SCALE], 0x7fc0deadu) != FUL_OK)
        return false;
    ful_lightning_args a = {.heads = s->heads,
                            .head_dim = s->head_dim,
                            .rows = c->rows,
                            .decay = {c->buffers[DECAY], 0, 0},
                            .state = {c->buffers[STATE], 0, 0},
                            .qkv_blocks = {{c->buffers[DATA], 0, 0}, {c->buffers[SCALE], 0, 0}},
                            .out_blocks = {{c->out, 0, 0}, {c->buffers[OUT_SCALE], 0, 0}}};
    c->bytes = 8.0 * c->rows * inner + 8.0 * inner * s->head_dim;
    c->flops = 4.0 * c->rows * inner * s->head_dim; /* of the recurrence itself */
    c->reset = STATE + 1;
    return ful_op_lightning_prefill(c->stream, &a) == FUL_OK;
}

/* The recurrence in double, for some value columns of some heads. */
bool bench_halves_check(bench_case *c)
{
    enum { COLUMNS = 4, HEADS = 3 };
    const bench_shape *s = c->shape;
    uint32_t n = s->head_dim, inner = s->heads * n;
    uint32_t block = ful_op_lightning_block(c->stream, c->rows, s->heads, n),
             blocks = inner / block;
    bench_deviation d = {0}, states = {0};
    uint16_t *out = malloc(2 * (size_t)inner);
    float *scale = malloc(4 * (size_t)blocks), *end = malloc(4 * (size_t)n * n);
    double *state = calloc((size_t)HEADS * COLUMNS * n, sizeof *state);
    bool good = out && scale && end && state;
    /* All rows count for the state; of the outputs the first ones, the last ones and some between
     * are read. */
    for (uint32_t t = 0; good && t < c->rows; t++) {
        bool compared = t < 64 || c->rows - t <= 64 || t % 97 == 0;
        if (compared)
            good = ful_buffer_read(c->out, 2 * (uint64_t)t * inner, out, 2 * (uint64_t)inner) ==
                       FUL_OK &&
                   bench_read_floats(c->buffers[OUT_SCALE], (uint64_t)t * blocks, blocks, scale);
        for (uint32_t i = 0; good && i < HEADS; i++) {
            uint32_t h = bench_sample(i, HEADS, s->heads), at = 3 * h * n;
            double fade = exp(-bench_slope(h, s->heads)), o[COLUMNS] = {0}, v[COLUMNS];
            for (uint32_t j = 0; j < COLUMNS; j++)
                v[j] = input_value(c, t, at + 2 * n + bench_sample(j, COLUMNS, n));
            for (uint32_t x = 0; x < n; x++) {
                double k = input_value(c, t, at + n + x), q = input_value(c, t, at + x);
                for (uint32_t j = 0; j < COLUMNS; j++) {
                    double *S = state + ((size_t)i * COLUMNS + j) * n + x;
                    *S = fade * *S + k * v[j];
                    o[j] += q * *S;
                }
            }
            for (uint32_t j = 0; compared && j < COLUMNS; j++) {
                uint32_t column = h * n + bench_sample(j, COLUMNS, n);
                bench_deviate(&d, value_of(out[column]) * (double)scale[column / block], o[j]);
            }
        }
    }
    for (uint32_t i = 0; good && i < HEADS; i++) {
        uint32_t h = bench_sample(i, HEADS, s->heads);
        good = bench_read_floats(c->buffers[STATE], (uint64_t)h * n * n, (uint64_t)n * n, end);
        for (uint32_t j = 0; good && j < COLUMNS; j++)
            for (uint32_t x = 0; x < n; x++)
                bench_deviate(&states, end[x * n + bench_sample(j, COLUMNS, n)],
                              state[((size_t)i * COLUMNS + j) * n + x]);
    }
    c->error = bench_deviation_of(&d);
    double other = 2.0 * bench_deviation_of(&states); /* its limit is half of the outputs' */
    if (!(other <= c->error))
        c->error = other;
    c->limit = bench_half_limit(c);
    free(out);
    free(scale);
    free(end);
    free(state);
    return good;
}
