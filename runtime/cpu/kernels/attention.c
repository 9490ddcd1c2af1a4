/* rope_append.comp, attention.comp (DSPLIT 1) and attention_merge.comp, with their formulas and
 * layouts. */
#include "cpu/kernels/simd.h"

enum { MOST_DIM = 256, MOST_ROWS = 64, KEYS = 16, HELD_ROWS = 8 };
#define LOWEST (-3.4028234e38f)

/* ---- rotating, and appending to the cache ---- */

typedef struct rope_push {
    uint32_t row_base, row_cap, qkv_stride, first_token, token_count, head_base;
} rope_push;

INLINE void rotate(const float *turn, uint32_t rotary, const float *x, float *out)
{
    uint32_t half = rotary / 2;
    for (uint32_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half], cosine = turn[2 * i], sine = turn[2 * i + 1];
        out[i] = a * cosine - b * sine;
        out[i + half] = b * cosine + a * sine;
    }
}

/* Halves and the scale that undoes the power of two they were multiplied by. */
INLINE void append_half(const float *x, uint32_t dim, uint16_t *halves, uint32_t *scale)
{
    uint32_t high = 0;
    for (uint32_t d = 0; d < dim; d++) {
        uint32_t a = bits_of(x[d]) & 0x7fffffffu;
        high = a > high ? a : high;
    }
    uint32_t e = high >> 23;
    bool finite = e != 255;
    e = e < 14 ? 14 : e;
    float multiplier = finite && high != 0 ? float_of((267 - e) << 23) : 1.0f;
    for (uint32_t d = 0; d < dim; d++)
        halves[d] = finite ? half_of(x[d] * multiplier) : 0;
    *scale = !finite ? 0x7fc00000u : high == 0 ? 0 : (e - 13) << 23;
}

INLINE void rope(const cpu_call *c, uint64_t line, uint64_t count, bool half)
{
    const rope_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, D, R, HEADS, KV_HEADS, KV_WORDS */
    uint32_t dim = s[1], rotary = s[2], heads = s[3], kv_heads = s[4];
    uint32_t rows = rows_from(c, p->row_base, p->row_cap);
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t head = (uint32_t)(i % c->groups[0]) + p->head_base;
        uint32_t row = (uint32_t)(i / c->groups[0]);
        if (row >= rows)
            continue;
        float *x = (float *)c->buffer[0] + (size_t)row * p->qkv_stride + (size_t)head * dim;
        const float *turn = (const float *)c->buffer[1] + (size_t)row * rotary;
        if (head < heads) {
            rotate(turn, rotary, x, x);
            continue;
        }
        uint32_t position = c->step->position + p->row_base + row, slot = head - heads;
        if (position < p->first_token || position - p->first_token >= p->token_count)
            continue;
        uint32_t *token = (uint32_t *)c->buffer[2] + (size_t)(position - p->first_token) * s[5];
        float turned[MOST_DIM];
        memcpy(turned, x, dim * sizeof(float));
        if (slot < kv_heads)
            rotate(turn, rotary, x, turned);
        if (half)
            append_half(turned, dim, (uint16_t *)(void *)token + (size_t)slot * dim,
                        token + kv_heads * dim + slot);
        else
            memcpy((float *)(void *)token + (size_t)slot * dim, turned, dim * sizeof(float));
    }
}

DECLARE(rope_append)
{
    (void)z;
    rope(c, line, count, false);
}

DECLARE(rope_append_f16)
{
    (void)z;
    rope(c, line, count, true);
}

/* ---- attention ---- */

typedef struct attention_push {
    uint32_t row_base, row_cap, qkv_stride4, out_stride4, first_token, token_count, splits;
    float scale;
    uint32_t split_keys;
} attention_push;

/* The sums of one row. */
typedef struct softmax_row {
    float top, weight;
    _Alignas(32) float o[MOST_DIM];
} softmax_row;

/* A block of at most KEYS keys and values as f32. */
typedef struct key_block {
    _Alignas(32) float keys[KEYS * MOST_DIM];
    _Alignas(32) float values[KEYS * MOST_DIM];
    float key_scale[KEYS], value_scale[KEYS];
} key_block;

INLINE void keys_load(const cpu_call *c, uint32_t token0, uint32_t count, uint32_t kv_head,
                      bool half, key_block *b)
{
    const uint32_t *s = c->constant; /* WG, D, DSPLIT, KB, HEADS, KV_HEADS, KV_WORDS */
    uint32_t dim = s[1];
    for (uint32_t k = 0; k < count; k++) {
        const uint32_t *token = (const uint32_t *)c->buffer[1] + (size_t)(token0 + k) * s[6];
        for (uint32_t part = 0; part < 2; part++) {
            uint32_t slot = part * s[5] + kv_head;
            float *to = (part == 0 ? b->keys : b->values) + k * dim;
            if (half) {
                for (uint32_t d = 0; d < dim; d += LANES)
                    vec_store(to + d, vec_half((const uint16_t *)(const void *)token +
                                               (size_t)slot * dim + d));
                (part == 0 ? b->key_scale : b->value_scale)[k] = float_of(token[s[5] * dim + slot]);
            } else {
                memcpy(to, (const float *)(const void *)token + (size_t)slot * dim,
                       dim * sizeof(float));
            }
        }
    }
}

/* Adds the first `seen` keys of the block to the row. q is scaled. */
INLINE void keys_add(const key_block *b, uint32_t seen, uint32_t dim, bool half, const float *q,
                     softmax_row *row)
{
    _Alignas(32) float score[KEYS];
    float top = row->top;
    if (seen == 0)
        return;
    for (uint32_t k = 0; k < KEYS; k++)
        score[k] = LOWEST;
    for (uint32_t k = 0; k < seen; k++) {
        f32xn sum = vec_all(0.0f);
        for (uint32_t d = 0; d < dim; d += LANES)
            sum += vec_load(q + d) * vec_load(b->keys + k * dim + d);
        score[k] = half ? vec_sum(sum) * b->key_scale[k] : vec_sum(sum);
        top = score[k] > top ? score[k] : top;
    }
    float keep = exp2f(row->top - top);
    row->top = top;
    for (uint32_t k = 0; k < KEYS; k += LANES)
        vec_store(score + k, vec_exp2(vec_load(score + k) - top));
    float weight = row->weight * keep;
    for (uint32_t k = 0; k < seen; k++) {
        weight += score[k];
        if (half)
            score[k] *= b->value_scale[k];
    }
    row->weight = weight;
    for (uint32_t d = 0; d < dim; d += LANES) {
        f32xn o = vec_load(row->o + d) * keep;
        for (uint32_t k = 0; k < seen; k++)
            o += vec_load(b->values + k * dim + d) * score[k];
        vec_store(row->o + d, o);
    }
}

/* One tile of rows against one split's part of the window. */
INLINE void attend(const cpu_call *c, uint32_t tile, uint32_t kv_head, uint32_t split, bool half)
{
    const attention_push *p = c->push;
    const uint32_t *s = c->constant;
    uint32_t dim = s[1], heads = s[4], group = heads / s[5], tile_rows = s[0] / s[2];
    uint32_t rows = rows_from(c, p->row_base, p->row_cap), pairs = rows * group;
    uint32_t first_pair = tile * tile_rows;
    if (first_pair >= pairs)
        return;
    uint32_t count = least(tile_rows, pairs - first_pair);
    uint32_t position = c->step->position + p->row_base;
    uint32_t tile_keys = position + (first_pair + count - 1) / group + 1;
    uint32_t per_split = (tile_keys + p->splits - 1) / p->splits;
    per_split = per_split < p->split_keys ? p->split_keys : per_split;
    uint32_t share_begin = split * per_split;
    uint32_t share_end = least(share_begin + per_split, tile_keys);
    uint32_t begin = share_begin > p->first_token ? share_begin : p->first_token;
    uint32_t end = least(share_end, p->first_token + p->token_count);
    if (begin >= end)
        return;
    for (uint32_t from = 0; from < count; from += HELD_ROWS) {
        uint32_t some = least(count - from, HELD_ROWS);
        softmax_row held[HELD_ROWS];
        _Alignas(32) float q[HELD_ROWS][MOST_DIM];
        float *carry[HELD_ROWS];
        for (uint32_t r = 0; r < some; r++) {
            uint32_t pair = first_pair + from + r, row = pair / group;
            uint32_t head = kv_head * group + pair % group;
            const float *x =
                (const float *)c->buffer[0] + (size_t)row * p->qkv_stride4 * 4 + (size_t)head * dim;
            for (uint32_t d = 0; d < dim; d++)
                q[r][d] = x[d] * p->scale;
            carry[r] = (float *)c->buffer[2] +
                       (((size_t)row * heads + head) * p->splits + split) * (dim + 4);
            held[r].top = begin == share_begin ? LOWEST : carry[r][dim];
            held[r].weight = begin == share_begin ? 0.0f : carry[r][dim + 1];
            for (uint32_t d = 0; d < dim; d++)
                held[r].o[d] = begin == share_begin ? 0.0f : carry[r][d];
        }
        for (uint32_t key0 = begin; key0 < end; key0 += KEYS) {
            key_block b;
            uint32_t keys = least(KEYS, end - key0);
            keys_load(c, key0 - p->first_token, keys, kv_head, half, &b);
            for (uint32_t r = 0; r < some; r++) {
                uint32_t visible = position + (first_pair + from + r) / group + 1;
                keys_add(&b, visible > key0 ? least(visible - key0, keys) : 0, dim, half, q[r],
                         &held[r]);
            }
        }
        for (uint32_t r = 0; r < some; r++) {
            uint32_t pair = first_pair + from + r, head = kv_head * group + pair % group;
            if (end == share_end && p->splits == 1) {
                float *out = (float *)c->buffer[3] + (size_t)(pair / group) * p->out_stride4 * 4 +
                             (size_t)head * dim;
                float inverse = 1.0f / held[r].weight;
                for (uint32_t d = 0; d < dim; d++)
                    out[d] = held[r].o[d] * inverse;
            } else {
                memcpy(carry[r], held[r].o, dim * sizeof(float));
                carry[r][dim] = held[r].top;
                carry[r][dim + 1] = held[r].weight;
                carry[r][dim + 2] = carry[r][dim + 3] = 0.0f;
            }
        }
    }
}

DECLARE(attention)
{
    for (uint64_t i = line; i < line + count; i++)
        attend(c, (uint32_t)(i % c->groups[0]), (uint32_t)(i / c->groups[0]), z, false);
}

DECLARE(attention_f16)
{
    for (uint64_t i = line; i < line + count; i++)
        attend(c, (uint32_t)(i % c->groups[0]), (uint32_t)(i / c->groups[0]), z, true);
}

/* ---- joining splits ---- */

typedef struct merge_push {
    uint32_t row_base, row_cap, out_stride4, splits, split_keys;
} merge_push;

DECLARE(attention_merge)
{
    const merge_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, D, ROWS, HEADS, KV_HEADS, PARTS */
    uint32_t dim = s[1], tile_rows = s[2], heads = s[3], group = heads / s[4];
    uint32_t rows = rows_from(c, p->row_base, p->row_cap);
    (void)z;
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t head = (uint32_t)(i % c->groups[0]), row = (uint32_t)(i / c->groups[0]);
        if (row >= rows)
            continue;
        uint32_t first_pair = (row * group + head % group) / tile_rows * tile_rows;
        uint32_t last_pair = least(first_pair + tile_rows, rows * group) - 1;
        uint32_t tile_keys = c->step->position + p->row_base + last_pair / group + 1;
        uint32_t per_split = (tile_keys + p->splits - 1) / p->splits;
        per_split = per_split < p->split_keys ? p->split_keys : per_split;
        uint32_t used = (tile_keys + per_split - 1) / per_split;
        const float *from =
            (const float *)c->buffer[0] + ((size_t)row * heads + head) * p->splits * (dim + 4);
        float *out = (float *)c->buffer[1] + (size_t)row * p->out_stride4 * 4 + (size_t)head * dim;
        float top = LOWEST, weight = 0.0f;
        _Alignas(32) float o[MOST_DIM] = {0};
        for (uint32_t n = 0; n < used; n++)
            top = from[n * (dim + 4) + dim] > top ? from[n * (dim + 4) + dim] : top;
        for (uint32_t n = 0; n < used; n++) {
            const float *part = from + n * (dim + 4);
            float keep = exp2f(part[dim] - top);
            weight += keep * part[dim + 1];
            for (uint32_t d = 0; d < dim; d += LANES)
                vec_store(o + d, vec_load(o + d) + vec_load(part + d) * keep);
        }
        for (uint32_t d = 0; d < dim; d++)
            out[d] = o[d] / weight;
    }
}
