/* The ops that `fulgur bench ops` measures: inputs, and what a double-precision evaluation of
 * samples of the output says about the result. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench_ops.h"

/* ---- inputs ---- */

static uint64_t mixed(uint64_t x)
{
    x = (x + 0x9e3779b97f4a7c15u) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return x ^ x >> 32;
}

/* Sizes that a device has no allocation for are left out, not failures. */
static bool allocates(bench_case *c, uint64_t floats)
{
    if (4 * floats <= ful_device_get_info(c->device)->caps.allocation_bytes)
        return true;
    c->skip = "larger than one allocation may be";
    return false;
}

ful_buffer *bench_buffer_make(bench_case *c, uint32_t slot, uint64_t floats, double mean,
                              double deviation)
{
    c->mean[slot] = mean;
    c->deviation[slot] = deviation;
    if (!allocates(c, floats) ||
        ful_buffer_create(&c->buffers[slot], c->device, ful_buffer_params(.bytes = 4 * floats)) !=
            FUL_OK ||
        ful_buffer_randomize(c->buffers[slot], mixed(c->seed) + slot, mean, deviation) != FUL_OK)
        return NULL;
    return c->buffers[slot];
}

ful_buffer *bench_out_make(bench_case *c, uint32_t slot, uint64_t floats)
{
    if (!allocates(c, floats) ||
        ful_buffer_create(&c->buffers[slot], c->device,
                          ful_buffer_params(.bytes = 4 * floats, .name = "out")) != FUL_OK)
        return NULL;
    c->out = c->buffers[slot];
    c->out_floats = floats;
    return c->out;
}

static ful_tensor *tensor_make(bench_case *c, uint32_t slot, uint32_t experts, uint32_t rows,
                               uint32_t cols)
{
    ful_tensor_params p = {sizeof p, c->type, experts, rows, cols, NULL};
    if (ful_tensor_create(&c->tensors[slot], c->device, &p) != FUL_OK ||
        ful_tensor_randomize(c->tensors[slot], mixed(c->seed) + 100 + slot,
                             1.0 / sqrt((double)cols)) != FUL_OK)
        return NULL;
    return c->tensors[slot];
}

/* Bytes of `rows` weight rows as files have them: what any device must read at least. */
static double file_bytes(const bench_case *c, double rows, uint32_t cols)
{
    return rows * (double)ful_row_bytes(c->type, cols);
}

/* False with c->skip set if so much would not fit. */
bool bench_fits(bench_case *c, double bytes)
{
    if (bytes <= (double)c->memory)
        return true;
    c->skip = "not enough device memory";
    return false;
}

/* ---- samples ---- */

void bench_deviate(bench_deviation *d, double got, double want)
{
    /* NaN stays NaN: what was not written is wrong. */
    d->wrong += (got - want) * (got - want);
    d->right += want * want;
}

double bench_deviation_of(const bench_deviation *d)
{
    return d->right > 0.0 ? sqrt(d->wrong / d->right) : d->wrong > 0.0 ? INFINITY : d->wrong;
}

bool bench_read_floats(const ful_buffer *b, uint64_t first, uint64_t n, float *out)
{
    return ful_buffer_read(b, 4 * first, out, 4 * n) == FUL_OK;
}

bool bench_read_row(const bench_case *c, uint32_t tensor, uint32_t expert, uint32_t row,
                    uint32_t cols, void *w, float *out)
{
    return ful_tensor_read(c->tensors[tensor], expert, row, 1, w) == FUL_OK &&
           ful_row_decode(c->type, w, cols, out) == FUL_OK;
}

static double row_product(const float *row, const double *x, uint32_t n)
{
    double sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += (double)row[i] * x[i];
    return sum;
}

static double silu(double x)
{
    return x / (1.0 + exp(-x));
}

/* The i-th of n samples among `all`, the first and the last among them. */
uint32_t bench_sample(uint32_t i, uint32_t n, uint32_t all)
{
    return n < 2 || all < n ? (i < all ? i : all - 1)
                            : (uint32_t)((uint64_t)i * (all - 1) / (n - 1));
}

double bench_half_limit(const bench_case *c)
{
    return c->half ? 2e-3 : 1e-5;
}

/* ---- dense products ---- */

static bool matmul_record(bench_case *c, uint32_t out_rows, uint32_t cols)
{
    uint32_t t = c->rows;
    double w_bytes = file_bytes(c, out_rows, cols);
    snprintf(c->detail, sizeof c->detail, "%u x %u", out_rows, cols);
    if (!bench_fits(c, w_bytes + 8.0 * t * (out_rows + cols)))
        return false;
    if (!bench_buffer_make(c, 0, (uint64_t)t * cols, 0.0, 1.0) ||
        !bench_out_make(c, 1, (uint64_t)t * out_rows) || !tensor_make(c, 0, 1, out_rows, cols))
        return false;
    ful_matmul_args a = {
        .x = {c->buffers[0], 0, 0}, .w = c->tensors[0], .out = {c->out, 0, 0}, .rows = t};
    c->bytes = w_bytes + 4.0 * t * (out_rows + cols);
    c->flops = 2.0 * t * out_rows * (double)cols;
    return ful_op_matmul(c->stream, &a) == FUL_OK;
}

static bool matmul_check_size(bench_case *c, uint32_t out_rows, uint32_t cols)
{
    enum { ROWS = 9, COLUMNS = 24 };
    bench_deviation d = {0};
    float *x = malloc(4 * (size_t)cols), *out = malloc(4 * (size_t)out_rows);
    float *row = malloc(4 * (size_t)cols);
    double *xd = malloc(8 * (size_t)cols);
    void *w = malloc(4 * (size_t)cols);
    bool good = x && out && row && xd && w;
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint32_t r = bench_sample(i, ROWS, c->rows);
        good = bench_read_floats(c->buffers[0], (uint64_t)r * cols, cols, x) &&
               bench_read_floats(c->out, (uint64_t)r * out_rows, out_rows, out);
        for (uint32_t k = 0; good && k < cols; k++)
            xd[k] = x[k];
        for (uint32_t j = 0; good && j < COLUMNS; j++) {
            uint32_t n = bench_sample(j, COLUMNS, out_rows);
            good = bench_read_row(c, 0, 0, n, cols, w, row);
            if (good)
                bench_deviate(&d, out[n], row_product(row, xd, cols));
        }
    }
    free(x);
    free(out);
    free(row);
    free(xd);
    free(w);
    c->error = bench_deviation_of(&d);
    c->limit = bench_half_limit(c);
    return good;
}

static bool project_make(bench_case *c)
{
    return matmul_record(c, c->shape->hidden, c->shape->heads * c->shape->head_dim);
}

static bool project_check(bench_case *c)
{
    return matmul_check_size(c, c->shape->hidden, c->shape->heads * c->shape->head_dim);
}

static bool qkv_make(bench_case *c)
{
    return matmul_record(c, 4 * c->shape->heads * c->shape->head_dim, c->shape->hidden);
}

static bool qkv_check(bench_case *c)
{
    return matmul_check_size(c, 4 * c->shape->heads * c->shape->head_dim, c->shape->hidden);
}

/* ---- embedding ---- */

static bool embed_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    snprintf(c->detail, sizeof c->detail, "%u of %u", s->hidden, s->vocab);
    if (!bench_fits(c, file_bytes(c, s->vocab, s->hidden) + 4.0 * c->rows * (s->hidden + 1.0)))
        return false;
    uint32_t *tokens = malloc(4 * (size_t)c->rows);
    for (uint32_t r = 0; tokens && r < c->rows; r++)
        tokens[r] = (uint32_t)(mixed(c->seed + r) % s->vocab);
    bool good = tokens && bench_buffer_make(c, 0, c->rows, 0.0, 1.0) &&
                ful_buffer_write(c->buffers[0], 0, tokens, 4 * (uint64_t)c->rows) == FUL_OK &&
                bench_out_make(c, 1, (uint64_t)c->rows * s->hidden) &&
                tensor_make(c, 0, 1, s->vocab, s->hidden);
    free(tokens);
    if (!good)
        return false;
    ful_embed_args a = {.tokens = {c->buffers[0], 0, 0},
                        .table = c->tensors[0],
                        .out = {c->out, 0, 0},
                        .rows = c->rows};
    c->bytes = file_bytes(c, c->rows, s->hidden) + 4.0 * c->rows * (s->hidden + 1.0);
    c->flops = 0.0;
    return ful_op_embed(c->stream, &a) == FUL_OK;
}

static bool embed_check(bench_case *c)
{
    enum { ROWS = 64 };
    uint32_t n = c->shape->hidden;
    bench_deviation d = {0};
    float *out = malloc(8 * (size_t)n), *row = out + n;
    void *w = malloc(4 * (size_t)n);
    bool good = out && w;
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint32_t r = bench_sample(i, ROWS, c->rows), token;
        good = ful_buffer_read(c->buffers[0], 4 * (uint64_t)r, &token, 4) == FUL_OK &&
               bench_read_floats(c->out, (uint64_t)r * n, n, out) &&
               bench_read_row(c, 0, 0, token, n, w, row);
        for (uint32_t k = 0; good && k < n; k++)
            bench_deviate(&d, out[k], row[k]);
    }
    free(out);
    free(w);
    c->error = bench_deviation_of(&d);
    c->limit = 1e-6;
    return good;
}

/* ---- mixture of experts ---- */

/* Routes of tokens that vary: distinct experts, weights that sum to 1. Returns how many experts
 * anything was sent to. */
static uint32_t routes_make(bench_case *c, uint32_t *words)
{
    const bench_shape *s = c->shape;
    uint32_t used = 0;
    bool *seen = calloc(s->experts, sizeof *seen);
    for (uint32_t r = 0; seen && r < c->rows; r++) {
        uint32_t *row = words + (size_t)r * 2 * s->top_k;
        for (uint32_t k = 0; k < s->top_k; k++) {
            uint64_t n = c->seed + (uint64_t)r * 64 + k;
            uint32_t e;
            bool taken;
            do {
                e = (uint32_t)(mixed(n) % s->experts);
                taken = false;
                for (uint32_t q = 0; q < k; q++)
                    taken |= row[2 * q] == e;
                n += 0x100000001;
            } while (taken);
            float weight = 2.0f * (float)(s->top_k - k) / (float)(s->top_k * (s->top_k + 1));
            row[2 * k] = e;
            memcpy(&row[2 * k + 1], &weight, 4);
            used += !seen[e];
            seen[e] = true;
        }
    }
    free(seen);
    return used;
}

static bool moe_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    double expert = file_bytes(c, 2.0 * s->width, s->hidden) + file_bytes(c, s->hidden, s->width);
    snprintf(c->detail, sizeof c->detail, "%u experts top-%u of %u x %u", s->experts, s->top_k,
             s->hidden, s->width);
    if (!bench_fits(c, expert * s->experts + 16.0 * c->rows * s->top_k * (s->hidden + s->width)))
        return false;
    size_t words = (size_t)c->rows * 2 * s->top_k;
    uint32_t *routes = malloc(4 * words);
    uint32_t used = routes ? routes_make(c, routes) : 0;
    bool good = used && bench_buffer_make(c, 0, (uint64_t)c->rows * s->hidden, 0.0, 1.0) &&
                bench_out_make(c, 1, (uint64_t)c->rows * s->hidden) &&
                bench_buffer_make(c, 2, words, 0.0, 1.0) &&
                ful_buffer_write(c->buffers[2], 0, routes, 4 * words) == FUL_OK &&
                tensor_make(c, 0, s->experts, 2 * s->width, s->hidden) &&
                tensor_make(c, 1, s->experts, s->hidden, s->width);
    free(routes);
    if (!good)
        return false;
    snprintf(c->detail + strlen(c->detail), sizeof c->detail - strlen(c->detail), ", %u used",
             used);
    ful_moe_args a = {.x = {c->buffers[0], 0, 0},
                      .routes = {c->buffers[2], 0, 0},
                      .w13 = c->tensors[0],
                      .w2 = c->tensors[1],
                      .top_k = s->top_k,
                      .rows = c->rows,
                      .out = {c->out, 0, 0}};
    c->bytes = expert * used + 8.0 * c->rows * s->hidden;
    c->flops = 6.0 * c->rows * s->top_k * s->hidden * (double)s->width;
    return ful_op_moe(c->stream, &a) == FUL_OK;
}

/* h of one pair: all rows of W1 and W3 of its expert. */
static bool hidden_of(bench_case *c, uint32_t expert, const double *x, void *rows, float *row,
                      double *h)
{
    enum { AT_ONCE = 512 };
    const bench_shape *s = c->shape;
    size_t row_bytes = (size_t)ful_row_bytes(c->type, s->hidden);
    for (uint32_t i = 0; i < 2 * s->width; i += AT_ONCE) {
        uint32_t n = 2 * s->width - i < AT_ONCE ? 2 * s->width - i : AT_ONCE;
        if (ful_tensor_read(c->tensors[0], expert, i, n, rows) != FUL_OK)
            return false;
        for (uint32_t k = 0; k < n; k++) {
            if (ful_row_decode(c->type, (const char *)rows + k * row_bytes, s->hidden, row) !=
                FUL_OK)
                return false;
            double y = row_product(row, x, s->hidden), *to = &h[(i + k) / 2];
            *to = k % 2 ? *to * y : silu(y);
        }
    }
    return true;
}

static bool moe_check(bench_case *c)
{
    enum { COLUMNS = 40, AT_ONCE = 512 };
    const bench_shape *s = c->shape;
    uint32_t samples = c->rows > 1 ? 2 : 1;
    bench_deviation d = {0};
    float *x = malloc(4 * (size_t)s->hidden), *out = malloc(4 * (size_t)s->hidden);
    double *xd = malloc(8 * (size_t)s->hidden), *h = malloc(8 * (size_t)s->width),
           *want = malloc(sizeof(double) * COLUMNS);
    uint32_t *route = malloc(8 * (size_t)s->top_k),
             wide = s->hidden > s->width ? s->hidden : s->width;
    float *row = malloc(4 * (size_t)wide);
    void *w = malloc(4 * (size_t)AT_ONCE * wide);
    bool good = x && out && xd && h && want && route && row && w;
    for (uint32_t i = 0; good && i < samples; i++) {
        uint32_t r = bench_sample(i, samples, c->rows);
        good = bench_read_floats(c->buffers[0], (uint64_t)r * s->hidden, s->hidden, x) &&
               bench_read_floats(c->out, (uint64_t)r * s->hidden, s->hidden, out) &&
               ful_buffer_read(c->buffers[2], 8 * (uint64_t)r * s->top_k, route,
                               8 * (uint64_t)s->top_k) == FUL_OK;
        for (uint32_t k = 0; good && k < s->hidden; k++)
            xd[k] = x[k];
        memset(want, 0, sizeof(double) * COLUMNS);
        for (uint32_t k = 0; good && k < s->top_k; k++) {
            float weight;
            memcpy(&weight, &route[2 * k + 1], 4);
            good = hidden_of(c, route[2 * k], xd, w, row, h);
            for (uint32_t j = 0; good && j < COLUMNS; j++) {
                good = bench_read_row(c, 1, route[2 * k], bench_sample(j, COLUMNS, s->hidden),
                                      s->width, w, row);
                if (good)
                    want[j] += weight * row_product(row, h, s->width);
            }
        }
        for (uint32_t j = 0; good && j < COLUMNS; j++)
            bench_deviate(&d, out[bench_sample(j, COLUMNS, s->hidden)], want[j]);
    }
    free(x);
    free(out);
    free(xd);
    free(h);
    free(want);
    free(route);
    free(row);
    free(w);
    c->error = bench_deviation_of(&d);
    c->limit = c->half ? 4e-3 : 1e-5; /* two products, one after the other */
    return good;
}

/* ---- norms, routing ---- */

enum { NORM_EPS_MILLIONTHS = 10 };

static bool norm_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    uint64_t n = (uint64_t)c->rows * s->hidden;
    snprintf(c->detail, sizeof c->detail, "%u columns", s->hidden);
    if (!bench_buffer_make(c, 0, n, 0.0, 1.0) || !bench_buffer_make(c, 1, n, 0.0, 1.0) ||
        !bench_buffer_make(c, 2, s->hidden, 1.0, 0.2) || !bench_out_make(c, 3, n))
        return false;
    ful_norm_args a = {.a = {c->buffers[0], 0, 0},
                       .b = {c->buffers[1], 0, 0},
                       .alpha = 3.5f,
                       .beta = 0.75f,
                       .weight = {c->buffers[2], 0, 0},
                       .eps = NORM_EPS_MILLIONTHS * 1e-6f,
                       .dim = s->hidden,
                       .rows = c->rows,
                       .out = {c->out, 0, 0}};
    c->bytes = 12.0 * (double)n;
    c->flops = 6.0 * (double)n;
    return ful_op_norm(c->stream, &a) == FUL_OK;
}

static bool norm_check(bench_case *c)
{
    enum { ROWS = 5 };
    uint32_t n = c->shape->hidden;
    bench_deviation d = {0};
    float *v = malloc(16 * (size_t)n);
    bool good = v && bench_read_floats(c->buffers[2], 0, n, v);
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint64_t at = (uint64_t)bench_sample(i, ROWS, c->rows) * n;
        float *a = v + n, *b = a + n, *out = b + n;
        good = bench_read_floats(c->buffers[0], at, n, a) &&
               bench_read_floats(c->buffers[1], at, n, b) && bench_read_floats(c->out, at, n, out);
        double sum = 0.0;
        for (uint32_t k = 0; k < n; k++) {
            double x = 3.5 * a[k] + 0.75 * b[k];
            sum += x * x;
        }
        double scale = 1.0 / sqrt(sum / n + (double)(NORM_EPS_MILLIONTHS * 1e-6f));
        for (uint32_t k = 0; k < n; k++)
            bench_deviate(&d, out[k], (3.5 * a[k] + 0.75 * b[k]) * scale * v[k]);
    }
    free(v);
    c->error = bench_deviation_of(&d);
    c->limit = 1e-5;
    return good;
}

static bool route_make(bench_case *c)
{
    const bench_shape *s = c->shape;
    uint64_t n = (uint64_t)c->rows * s->experts;
    snprintf(c->detail, sizeof c->detail, "%u experts top-%u", s->experts, s->top_k);
    if (!bench_buffer_make(c, 0, n, 0.0, 1.0) ||
        !bench_out_make(c, 1, 2 * (uint64_t)c->rows * s->top_k))
        return false;
    ful_route_args a = {.logits = {c->buffers[0], 0, 0},
                        .experts = s->experts,
                        .top_k = s->top_k,
                        .rows = c->rows,
                        .routes = {c->out, 0, 0}};
    c->bytes = 4.0 * (double)n + 8.0 * c->rows * s->top_k;
    c->flops = (double)n * s->top_k;
    return ful_op_route(c->stream, &a) == FUL_OK;
}

static bool route_check(bench_case *c)
{
    enum { ROWS = 64 };
    const bench_shape *s = c->shape;
    bench_deviation d = {0};
    float *logits = malloc(4 * (size_t)s->experts);
    uint32_t *routes = malloc(8 * (size_t)s->top_k);
    bool good = logits && routes;
    for (uint32_t i = 0; good && i < ROWS && i < c->rows; i++) {
        uint32_t r = bench_sample(i, ROWS, c->rows);
        good = bench_read_floats(c->buffers[0], (uint64_t)r * s->experts, s->experts, logits) &&
               ful_buffer_read(c->out, 8 * (uint64_t)r * s->top_k, routes,
                               8 * (uint64_t)s->top_k) == FUL_OK;
        double sum = 0.0;
        for (uint32_t k = 0; good && k < s->top_k; k++) {
            uint32_t best = 0;
            for (uint32_t e = 1; e < s->experts; e++)
                if (logits[e] > logits[best])
                    best = e;
            if (routes[2 * k] != best)
                bench_deviate(&d, NAN, 1.0); /* another expert is no rounding */
            else
                sum += exp((double)logits[best]);
            routes[2 * k] = best;
            logits[best] = -logits[best] - 1e30f; /* comes back below */
        }
        for (uint32_t k = 0; good && k < s->top_k; k++) {
            float weight;
            memcpy(&weight, &routes[2 * k + 1], 4);
            float logit;
            good = bench_read_floats(c->buffers[0], (uint64_t)r * s->experts + routes[2 * k], 1,
                                     &logit);
            bench_deviate(&d, weight, exp((double)logit) / sum);
        }
    }
    free(logits);
    free(routes);
    c->error = bench_deviation_of(&d);
    c->limit = 1e-5;
    return good;
}

const bench_kind bench_kinds[] = {
    {"lightning prefill", bench_lightning_make, bench_lightning_check, false, false},
    {"lightning halves", bench_halves_make, bench_halves_check, false, false},
    {"lightning decode", bench_lightning_step_make, bench_lightning_step_check, true, false},
    {"attention prefill", bench_attention_make, bench_attention_check, false, false},
    {"attention decode", bench_attention_make, bench_attention_check, true, false},
    {"moe", moe_make, moe_check, false, true},
    {"moe rows", moe_make, moe_check, true, true},
    {"matmul qkv", qkv_make, qkv_check, false, true},
    {"matmul out", project_make, project_check, false, true},
    {"matvec qkv", qkv_make, qkv_check, true, true},
    {"matvec out", project_make, project_check, true, true},
    {"embed", embed_make, embed_check, false, true},
    {"norm", norm_make, norm_check, false, false},
    {"gated norm", bench_gated_make, bench_gated_check, false, false},
    {"sample", bench_draw_make, bench_draw_check, true, false},
    {"route", route_make, route_check, false, false},
};
const uint32_t bench_kind_count = sizeof bench_kinds / sizeof *bench_kinds;

bool bench_case_restore(bench_case *c)
{
    if (c->reset == 0)
        return true;
    uint32_t slot = c->reset - 1;
    return ful_buffer_randomize(c->buffers[slot], mixed(c->seed) + slot, c->mean[slot],
                                c->deviation[slot]) == FUL_OK;
}

void bench_case_free(bench_case *c)
{
    ful_stream_destroy(&c->stream);
    for (int i = 0; i < CASE_BUFFERS; i++)
        ful_buffer_destroy(&c->buffers[i]);
    ful_tensor_destroy(&c->tensors[0]);
    ful_tensor_destroy(&c->tensors[1]);
    ful_kv_destroy(&c->kv);
    free(c->host);
    c->host = NULL;
}
