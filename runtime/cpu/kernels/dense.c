/* embed.comp, rmsnorm.comp (OUT_F32), matvec.comp (X_HALF 0), with their formulas. */
#include "cpu/kernels/simd.h"

/* ---- embed ---- */

typedef struct embed_push {
    uint32_t row0, row_count, dim, window0, window_rows, vocab, row_words, column_groups;
} embed_push;

INLINE void embed(const cpu_call *c, uint64_t line, uint64_t count, weight_type type)
{
    const embed_push *p = c->push;
    const uint32_t *tokens = c->buffer[0];
    uint32_t rows = rows_from(c, p->row0, p->row_count), wg = c->constant[0];
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t r = (uint32_t)(i / p->column_groups);
        uint32_t first = (uint32_t)(i % p->column_groups) * wg;
        if (r >= rows || first >= p->dim)
            continue;
        uint32_t last = least(first + wg, p->dim), token = tokens[p->row0 + r];
        float *out = (float *)c->buffer[2] + (size_t)r * p->dim;
        if (token >= p->vocab) {
            for (uint32_t k = first; k < last && p->window0 == 0; k++)
                out[k] = 0.0f;
        } else if (token >= p->window0 && token - p->window0 < p->window_rows) {
            const uint32_t *row =
                (const uint32_t *)c->buffer[1] + (size_t)(token - p->window0) * p->row_words;
            for (uint32_t k = first; k < last; k++)
                out[k] = weight_at(type, row, k);
        }
    }
}

#define EMBED(suffix, type)                                                                        \
    DECLARE(embed_##suffix)                                                                        \
    {                                                                                              \
        (void)z;                                                                                   \
        embed(c, line, count, type);                                                               \
    }
EMBED(f32, WEIGHT_F32)
EMBED(f16, WEIGHT_F16)
EMBED(bf16, WEIGHT_BF16)

DECLARE(embed_quant)
{
    const embed_push *p = c->push;
    const uint32_t *tokens = c->buffer[0];
    uint32_t rows = rows_from(c, p->row0, p->row_count), each = 8 * c->constant[0];
    (void)z;
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t r = (uint32_t)(i / p->column_groups);
        uint32_t first = (uint32_t)(i % p->column_groups) * each;
        if (r >= rows || first >= p->dim)
            continue;
        uint32_t last = least(first + each, p->dim), token = tokens[p->row0 + r];
        float *out = (float *)c->buffer[2] + (size_t)r * p->dim;
        if (token >= p->vocab) {
            for (uint32_t k = first; k < last && p->window0 == 0; k++)
                out[k] = 0.0f;
        } else if (token >= p->window0 && token - p->window0 < p->window_rows) {
            const uint32_t *row =
                (const uint32_t *)c->buffer[1] + (size_t)(token - p->window0) * p->row_words;
            KERNEL(blocks)
            ((ful_type)c->constant[1], row, p->dim, first, last - first, 0, out + first);
        }
    }
}

/* ---- norms ---- */

typedef struct norm_push {
    uint32_t row0, row_count, dim, fixed_rows, last_row;
    uint32_t gate_stride, gate_offset, out_stride, half_stride;
    float alpha, beta, eps;
} norm_push;

/* b: NULL, or the second summand; gate: NULL, or what the result is multiplied by. */
INLINE void norm_row(const norm_push *p, const float *a, const float *b, const float *gate,
                     const float *weight, float *out)
{
    f32xn sum = vec_all(0.0f);
    float rest = 0.0f;
    uint32_t i = 0;
    for (; i + LANES <= p->dim; i += LANES) {
        f32xn x = gate ? vec_load(a + i) : vec_load(a + i) * p->alpha;
        if (b)
            x += vec_load(b + i) * p->beta;
        sum += x * x;
        vec_store(out + i, x);
    }
    for (; i < p->dim; i++) {
        float x = gate ? a[i] : a[i] * p->alpha;
        if (b)
            x += b[i] * p->beta;
        rest += x * x;
        out[i] = x;
    }
    float total = vec_sum(sum) + rest;
    /* A row whose sum is not finite becomes NaN. */
    float inverse = (bits_of(total) & 0x7f800000u) == 0x7f800000u
                        ? float_of(0x7fc00000u)
                        : 1.0f / sqrtf(total / (float)p->dim + p->eps);
    for (i = 0; i + LANES <= p->dim; i += LANES) {
        f32xn factor = vec_load(weight + i);
        if (gate)
            factor *= vec_load(gate + i);
        vec_store(out + i, vec_load(out + i) * inverse * factor);
    }
    for (; i < p->dim; i++)
        out[i] = out[i] * inverse * (gate ? weight[i] * gate[i] : weight[i]);
}

INLINE void norm(const cpu_call *c, uint64_t line, uint64_t count, bool gated)
{
    const norm_push *p = c->push;
    uint32_t each = c->constant[0] / c->constant[1]; /* rows of a group */
    uint32_t rows = p->fixed_rows != 0 ? p->row0 + p->row_count : c->step->n_rows;
    uint64_t first = line * each, end = (line + count) * each;
    if (p->last_row != 0) {
        if (first > 0 || rows <= p->row0 || rows > p->row0 + p->row_count)
            return;
        end = 1;
    } else {
        uint32_t here = rows > p->row0 ? least(rows - p->row0, p->row_count) : 0;
        end = end < here ? end : here;
    }
    for (uint64_t to = first; to < end; to++) {
        size_t r = p->last_row != 0 ? rows - 1 - p->row0 : (size_t)to;
        const float *a = (const float *)c->buffer[0] + r * p->dim, *b = c->buffer[1];
        float *out = (float *)c->buffer[3] + to * p->out_stride;
        if (gated)
            norm_row(p, a, NULL, b + r * p->gate_stride + p->gate_offset, c->buffer[2], out);
        else
            norm_row(p, a, c->constant[2] != 0 ? b + r * p->dim : NULL, NULL, c->buffer[2], out);
    }
}

DECLARE(rmsnorm)
{
    (void)z;
    norm(c, line, count, false);
}

DECLARE(gated_norm)
{
    (void)z;
    norm(c, line, count, true);
}

/* ---- matvec ---- */

typedef struct matvec_push {
    uint32_t row0, row_count, fixed_rows, cols, x_stride, out_stride;
    uint32_t w_rows, w_row0, w_stride, split;
} matvec_push;

enum { ACT_NONE = 0, ACT_SILU_SIGMOID = 1, ACT_SWIGLU = 2 };

/* sums[n][r] of `count` weight rows from number n0 on, to out[r][n0 + n]. */
INLINE void store_columns(const float *sums, uint32_t rows, uint32_t count, size_t out_stride,
                          float *out)
{
    for (uint32_t r = 0; r < rows; r++)
        for (uint32_t n = 0; n < count; n++)
            out[r * out_stride + n] = sums[n * PRODUCT_ROWS + r];
}

/* In place; with pairs the results take the first half. */
INLINE void activate(uint32_t act, uint32_t split, uint32_t n0, uint32_t count, uint32_t parts,
                     float *sums)
{
    if (act == ACT_SILU_SIGMOID) {
        for (uint32_t n = 0; n < count; n++)
            for (uint32_t p = 0; p < parts; p++) {
                float *at = sums + n * PRODUCT_ROWS + p * LANES;
                f32xn y = vec_load(at), g = vec_sigmoid(y);
                vec_store(at, n0 + n < split ? y * g : g);
            }
    } else if (act == ACT_SWIGLU) {
        for (uint32_t n = 0; n < count / 2; n++)
            for (uint32_t p = 0; p < parts; p++) {
                const float *from = sums + 2 * n * PRODUCT_ROWS + p * LANES;
                f32xn y = vec_silu(vec_load(from)) * vec_load(from + PRODUCT_ROWS);
                vec_store(sums + n * PRODUCT_ROWS + p * LANES, y);
            }
    }
}

/* One row: the sums lie PRODUCT_ROWS apart, so they are brought together first. */
INLINE void activate_one(uint32_t act, uint32_t split, uint32_t n0, uint32_t count, float *sums)
{
    float y[PRODUCT_WEIGHTS + LANES];
    for (uint32_t n = 0; n < count; n++)
        y[n] = sums[n * PRODUCT_ROWS];
    for (uint32_t n = count; n % LANES != 0; n++)
        y[n] = 0.0f;
    if (act == ACT_SILU_SIGMOID) {
        for (uint32_t n = 0; n < count; n += LANES) {
            f32xn v = vec_load(y + n), g = vec_sigmoid(v);
            for (uint32_t i = 0; i < LANES; i++)
                y[n + i] = n0 + n + i < split ? v[i] * g[i] : g[i];
        }
    } else if (act == ACT_SWIGLU) {
        float even[PRODUCT_WEIGHTS / 2 + LANES], odd[PRODUCT_WEIGHTS / 2 + LANES];
        count /= 2;
        for (uint32_t n = 0; n < (count + LANES - 1) / LANES * LANES; n++) {
            even[n] = n < count ? y[2 * n] : 0.0f;
            odd[n] = n < count ? y[2 * n + 1] : 0.0f;
        }
        for (uint32_t n = 0; n < count; n += LANES)
            vec_store(y + n, vec_silu(vec_load(even + n)) * vec_load(odd + n));
    }
    for (uint32_t n = 0; n < count; n++)
        sums[n * PRODUCT_ROWS] = y[n];
}

INLINE void matvec(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z, weight_type type)
{
    const matvec_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, ROWS, COLS, ACT */
    uint32_t all = p->fixed_rows != 0 ? p->row_count : rows_from(c, p->row0, p->row_count);
    uint32_t each = s[0] * s[2], act = s[3];
    uint64_t end = (line + count) * each;
    if (end > p->w_rows)
        end = p->w_rows;
    for (uint32_t r0 = z * s[1]; r0 < least(all, (z + 1) * s[1]); r0 += PRODUCT_ROWS) {
        uint32_t rows = least(least(all, (z + 1) * s[1]) - r0, PRODUCT_ROWS);
        const float *x[PRODUCT_ROWS];
        for (uint32_t r = 0; r < rows; r++)
            x[r] = (const float *)c->buffer[0] + (size_t)(r0 + r) * p->x_stride;
        for (uint64_t n0 = line * each; n0 < end; n0 += PRODUCT_WEIGHTS) {
            _Alignas(64) float sums[PRODUCT_WEIGHTS * PRODUCT_ROWS];
            uint32_t n = (uint32_t)(end - n0 < PRODUCT_WEIGHTS ? end - n0 : PRODUCT_WEIGHTS);
            const uint8_t *w = (const uint8_t *)c->buffer[1] + n0 * p->w_stride * 16;
            KERNEL(product)(x, rows, type, w, (size_t)p->w_stride * 16, n, p->cols, sums);
            uint32_t column = p->w_row0 + (uint32_t)n0;
            if (rows == 1)
                activate_one(act, p->split, column, n, sums);
            else
                activate(act, p->split, column, n, (rows + LANES - 1) / LANES, sums);
            bool pairs = act == ACT_SWIGLU;
            store_columns(sums, rows, pairs ? n / 2 : n, p->out_stride,
                          (float *)c->buffer[2] + (size_t)r0 * p->out_stride +
                              (pairs ? column / 2 : column));
        }
    }
}

#define MATVEC(suffix, type)                                                                       \
    DECLARE(matvec_##suffix)                                                                       \
    {                                                                                              \
        matvec(c, line, count, z, type);                                                           \
    }
MATVEC(f32, WEIGHT_F32)
MATVEC(f16, WEIGHT_F16)
MATVEC(bf16, WEIGHT_BF16)
MATVEC(quant, weight_blocks(c, 6))
