/* lightning_scores.comp, lightning_walk.comp (without HALF) and lightning_decode.comp, with their
 * formulas and layouts. A walk and a decode take LANES columns of a state at a time. */
#include "cpu/kernels/simd.h"

enum { DECAY_STRIDE = 264, FADE_AT = 132, MOST_DIM = 256, MOST_BLOCK = 16 };

INLINE float dot(const float *a, const float *b, uint32_t n) /* n: a multiple of LANES */
{
    f32xn sum = vec_all(0.0f);
    for (uint32_t i = 0; i < n; i += LANES)
        sum += vec_load(a + i) * vec_load(b + i);
    return vec_sum(sum);
}

typedef struct scores_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count;
} scores_push;

DECLARE(lightning_scores)
{
    const scores_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, D, C, JL, IT, BLOCK_WORDS */
    uint32_t dim = s[1], block_tokens = s[2], rows = rows_from(c, p->row_base, p->row_cap);
    size_t stride = (size_t)p->qkv_stride4 * 4;
    (void)z;
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t block = (uint32_t)(i % c->groups[0]), head = (uint32_t)(i / c->groups[0]);
        uint32_t start = block * block_tokens;
        if (start >= rows)
            continue;
        uint32_t m = least(rows - start, block_tokens);
        size_t of_model = p->head_base + head;
        const float *q = (const float *)c->buffer[0] + start * stride + of_model * 3 * dim;
        const float *k = q + dim, *decay = (const float *)c->buffer[1] + of_model * DECAY_STRIDE;
        float *out = (float *)c->buffer[2] + ((size_t)block * p->head_count + head) * s[5];
        for (uint32_t a = 0; a < block_tokens; a++)
            for (uint32_t b = 0; b < block_tokens; b++)
                out[a * block_tokens + b] =
                    b <= a && a < m ? decay[a - b] * dot(q + a * stride, k + b * stride, dim)
                                    : 0.0f;
        float *factors = out + block_tokens * block_tokens;
        for (uint32_t t = 0; t < block_tokens; t++) {
            factors[t] = decay[t + 1];
            factors[block_tokens + t] = t < m ? decay[m - 1 - t] : 0.0f;
        }
        factors[2 * block_tokens] = decay[FADE_AT + m];
    }
}

typedef struct walk_push {
    uint32_t row_base, row_cap, qkv_stride4, head_base, head_count, out_stride;
} walk_push;

/* A block of at most MOST_BLOCK tokens, as the walk sees it. */
typedef struct walk_block {
    const float *q, *k, *v, *scores, *factors;
    uint32_t tokens, block_tokens, dim;
    size_t stride;
} walk_block;

/* q S of `tokens` tokens from number t on. */
INLINE void from_state(const walk_block *b, uint32_t t, const uint32_t tokens, const float *state,
                       f32xn *out)
{
    f32xn sum[4];
    const float *q = b->q + t * b->stride;
    UNROLL for (uint32_t i = 0; i < tokens; i++) sum[i] = vec_all(0.0f);
    for (uint32_t d = 0; d < b->dim; d++) {
        f32xn s = vec_load(state + d * LANES);
        UNROLL for (uint32_t i = 0; i < tokens; i++) sum[i] += s * q[i * b->stride + d];
    }
    UNROLL for (uint32_t i = 0; i < tokens; i++) out[t + i] = sum[i];
}

/* Four rows of the state at a time: S += fade S + k^T v of all tokens. */
INLINE void state_add(const walk_block *b, const f32xn *weighted, float *state)
{
    float fade = b->factors[2 * b->block_tokens];
    for (uint32_t d = 0; d < b->dim; d += 4) {
        f32xn sum[4];
        UNROLL for (uint32_t i = 0; i < 4; i++)
        {
            f32xn s = vec_load(state + (d + i) * LANES);
            sum[i] = s + s * fade;
        }
        for (uint32_t t = 0; t < b->tokens; t++) {
            const float *k = b->k + t * b->stride + d;
            UNROLL for (uint32_t i = 0; i < 4; i++) sum[i] += weighted[t] * k[i];
        }
        UNROLL for (uint32_t i = 0; i < 4; i++) vec_store(state + (d + i) * LANES, sum[i]);
    }
}

INLINE void walk_one(const walk_block *b, float *state, size_t out_stride, float *out)
{
    f32xn inter[MOST_BLOCK + 4], v[MOST_BLOCK], weighted[MOST_BLOCK];
    uint32_t t = 0;
    for (; t + 4 <= b->tokens; t += 4)
        from_state(b, t, 4, state, inter);
    for (; t < b->tokens; t++)
        from_state(b, t, 1, state, inter);
    for (t = 0; t < b->tokens; t++) {
        v[t] = vec_load(b->v + t * b->stride);
        weighted[t] = v[t] * b->factors[b->block_tokens + t];
        f32xn o = inter[t] * b->factors[t];
        for (uint32_t j = 0; j <= t; j++) /* later tokens may be NaN */
            o += v[j] * b->scores[t * b->block_tokens + j];
        vec_store(out + t * out_stride, o);
    }
    state_add(b, weighted, state);
}

DECLARE(lightning_walk)
{
    const walk_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, D, C, DSPLIT, BLOCK_WORDS */
    uint32_t dim = s[1], block_tokens = s[2], rows = rows_from(c, p->row_base, p->row_cap);
    uint32_t each = s[0] / s[3]; /* columns of a group */
    size_t stride = (size_t)p->qkv_stride4 * 4;
    (void)z;
    if (rows == 0)
        return;
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t first = (uint32_t)(i % c->groups[0]) * each, head = (uint32_t)(i / c->groups[0]);
        size_t of_model = p->head_base + head;
        const float *qkv = (const float *)c->buffer[3] + of_model * 3 * dim;
        float *out = (float *)c->buffer[2] + of_model * dim;
        for (uint32_t column = first; column < least(first + each, dim); column += LANES) {
            _Alignas(64) float state[MOST_DIM * LANES];
            float *stored = (float *)c->buffer[1] + (size_t)head * dim * dim + column;
            for (uint32_t d = 0; d < dim; d++)
                vec_store(state + d * LANES, vec_load(stored + (size_t)d * dim));
            for (uint32_t start = 0; start < rows; start += block_tokens) {
                const float *scores = (const float *)c->buffer[0] +
                                      (start / block_tokens * (size_t)p->head_count + head) * s[4];
                const float *q = qkv + start * stride;
                walk_block b = {.q = q,
                                .k = q + dim,
                                .v = q + 2 * dim + column,
                                .scores = scores,
                                .factors = scores + block_tokens * block_tokens,
                                .tokens = least(rows - start, block_tokens),
                                .block_tokens = block_tokens,
                                .dim = dim,
                                .stride = stride};
                walk_one(&b, state, p->out_stride, out + (size_t)start * p->out_stride + column);
            }
            for (uint32_t d = 0; d < dim; d++)
                vec_store(stored + (size_t)d * dim, vec_load(state + d * LANES));
        }
    }
}

typedef struct decode_push {
    uint32_t unit_base, heads, qkv_stride;
} decode_push;

/* `parts` vectors of columns from `column` on. */
INLINE void decode_columns(const float *q, uint32_t dim, float fade, uint32_t column,
                           const uint32_t parts, float *state, float *out)
{
    const float *k = q + dim;
    f32xn v[4], o[4];
    UNROLL for (uint32_t i = 0; i < parts; i++)
    {
        v[i] = vec_load(q + 2 * dim + column + i * LANES);
        o[i] = vec_all(0.0f);
    }
    for (uint32_t d = 0; d < dim; d++) {
        float *row = state + (size_t)d * dim + column;
        UNROLL for (uint32_t i = 0; i < parts; i++)
        {
            f32xn s = vec_load(row + i * LANES);
            s += s * fade + v[i] * k[d];
            vec_store(row + i * LANES, s);
            o[i] += s * q[d];
        }
    }
    UNROLL for (uint32_t i = 0; i < parts; i++) vec_store(out + column + i * LANES, o[i]);
}

DECLARE(lightning_decode)
{
    const decode_push *p = c->push;
    uint32_t each = c->constant[0], dim = c->constant[1]; /* WG, D */
    (void)z;
    for (uint64_t i = line; i < line + count;) {
        uint32_t x = (uint32_t)(i % c->groups[0]), y = (uint32_t)(i / c->groups[0]);
        /* Neighbouring groups of one state together. */
        uint64_t some = c->groups[0] - x < line + count - i ? c->groups[0] - x : line + count - i;
        uint32_t column = x * each, end = least((uint32_t)(x + some) * each, dim);
        uint32_t unit = p->unit_base + y, head = unit % p->heads;
        const float *q = (const float *)c->buffer[0] + (size_t)(unit / p->heads) * p->qkv_stride +
                         (size_t)head * 3 * dim;
        float fade = ((const float *)c->buffer[1])[(size_t)head * DECAY_STRIDE + FADE_AT + 1];
        float *state = (float *)c->buffer[2] + (size_t)y * dim * dim;
        float *out = (float *)c->buffer[3] + (size_t)unit * dim;
        for (; column + 4 * LANES <= end; column += 4 * LANES)
            decode_columns(q, dim, fade, column, 4, state, out);
        for (; column < end; column += LANES)
            decode_columns(q, dim, fade, column, 1, state, out);
        i += some;
    }
}
