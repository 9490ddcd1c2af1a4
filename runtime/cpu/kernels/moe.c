/* moe_route.comp, moe_count.comp, moe_sort.comp, moe_matvec.comp (f32 inputs; with and without
 * ROUTE) and moe_combine.comp, with their formulas and layouts. */
#include "cpu/kernels/simd.h"

enum { TILE_WORDS = 3, ARGS_STRIDE = 64 };

/* ---- inc/route.glsl ---- */

/* Order of floats as unsigned integers; NaN above everything, -0 equal to +0. */
INLINE uint32_t order_key(float v)
{
    uint32_t bits = bits_of(v);
    if ((bits & 0x7fffffffu) > 0x7f800000u)
        return 0xffffffffu;
    if (bits == 0x80000000u)
        bits = 0;
    return (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
}

INLINE float key_value(uint32_t key)
{
    return float_of((key & 0x80000000u) != 0 ? key & 0x7fffffffu : ~key);
}

INLINE bool key_finite(uint32_t key)
{
    return key < 0xff800000u && key > 0x007fffffu;
}

typedef struct pick {
    uint32_t key, index;
} pick;

INLINE bool before(pick a, pick b)
{
    return a.key > b.key || (a.key == b.key && a.index < b.index);
}

/* The best of those that come after `last`; the first of all if `first`. */
INLINE pick pick_next(const float *logits, uint32_t experts, pick last, bool first)
{
    pick best = {0, experts};
    for (uint32_t e = 0; e < experts; e++) {
        pick candidate = {order_key(logits[e]), e};
        if ((first || before(last, candidate)) && before(candidate, best))
            best = candidate;
    }
    best.index = least(best.index, experts - 1);
    return best;
}

/* routes: {expert, weight} of the top_k best, best first. */
INLINE void route_row(const float *logits, uint32_t experts, uint32_t top_k, uint32_t *routes)
{
    pick last = {0, 0};
    float top = 0.0f, sum = 0.0f;
    bool finite = false;
    for (uint32_t k = 0; k < top_k; k++) {
        last = pick_next(logits, experts, last, k == 0);
        if (k == 0) {
            top = key_value(last.key);
            finite = key_finite(last.key);
        }
        float weight = expf(key_value(last.key) - top);
        sum += weight;
        routes[2 * k] = last.index;
        routes[2 * k + 1] = bits_of(weight);
    }
    for (uint32_t k = 0; k < top_k; k++)
        routes[2 * k + 1] = finite ? bits_of(float_of(routes[2 * k + 1]) / sum) : 0x7fc00000u;
}

typedef struct route_push {
    uint32_t row0, row_cap, experts;
} route_push;

INLINE void route(const cpu_call *c, uint64_t line, uint64_t count, uint32_t each)
{
    const route_push *p = c->push;
    uint32_t rows = rows_from(c, p->row0, p->row_cap), top_k = c->constant[1];
    uint64_t end = (line + count) * each;
    for (uint64_t r = line * each; r < (end < rows ? end : rows); r++)
        route_row((const float *)c->buffer[0] + r * p->experts, p->experts, top_k,
                  (uint32_t *)c->buffer[1] + r * top_k * 2);
}

DECLARE(moe_route_narrow)
{
    (void)z;
    route(c, line, count, c->constant[0]);
}

DECLARE(moe_route_wide)
{
    (void)z;
    route(c, line, count, 1);
}

/* ---- counting and sorting ---- */

typedef struct count_push {
    uint32_t row0, row_cap, top_k;
} count_push;

DECLARE(moe_count)
{
    const count_push *p = c->push;
    const uint32_t *routes = c->buffer[0];
    uint32_t *counts = c->buffer[1], pairs = rows_from(c, p->row0, p->row_cap) * p->top_k;
    (void)z;
    for (uint64_t e = line; e < line + count; e++) {
        uint32_t n = 0;
        for (uint32_t i = 0; i < pairs; i++)
            n += routes[2 * i] == e;
        counts[e] = n;
    }
}

typedef struct sort_windows {
    uint32_t span, pieces, groups, groups_last;
} sort_windows;

typedef struct sort_push {
    uint32_t row0, row_cap, top_k, experts, tile_rows, args2;
    sort_windows windows[2];
} sort_push;

INLINE uint32_t tiles_of(const sort_push *p, uint32_t count)
{
    return (count + p->tile_rows - 1) / p->tile_rows;
}

INLINE void write_args(uint32_t *args, uint32_t index, uint32_t tiles, uint32_t groups)
{
    args[index * ARGS_STRIDE] = tiles;
    args[index * ARGS_STRIDE + 1] = groups;
    args[index * ARGS_STRIDE + 2] = 1;
}

INLINE void write_windows(const cpu_call *c, uint32_t expert, const sort_windows *w, uint32_t first)
{
    const sort_push *p = c->push;
    const uint32_t *counts = c->buffer[1];
    uint32_t *args = c->buffer[3];
    if (w->span > 0) {
        if (expert % w->span != 0)
            return;
        uint32_t tiles = 0;
        for (uint32_t e = expert; e < least(expert + w->span, p->experts); e++)
            tiles += tiles_of(p, counts[e]);
        write_args(args, first + expert / w->span, tiles, w->groups);
        return;
    }
    for (uint32_t i = 0; i < w->pieces; i++)
        write_args(args, first + expert * w->pieces + i, tiles_of(p, counts[expert]),
                   i + 1 == w->pieces ? w->groups_last : w->groups);
}

static void sort_expert(const cpu_call *c, uint32_t expert)
{
    const sort_push *p = c->push;
    const uint32_t *routes = c->buffer[0], *counts = c->buffer[1];
    uint32_t *lists = c->buffer[2];
    uint32_t pairs = rows_from(c, p->row0, p->row_cap) * p->top_k, cap = p->row_cap * p->top_k;
    uint32_t *sorted = lists + p->experts + 1, *places = sorted + cap, *table = places + cap;
    uint32_t first_pair = 0, first_tile = 0;
    for (uint32_t e = 0; e < expert; e++) {
        first_pair += counts[e];
        first_tile += tiles_of(p, counts[e]);
    }
    uint32_t at = first_pair;
    for (uint32_t i = 0; i < pairs; i++) {
        if (routes[2 * i] != expert)
            continue;
        sorted[at] = i;
        places[i] = at++;
    }
    uint32_t tiles = tiles_of(p, counts[expert]);
    for (uint32_t t = 0; t < tiles; t++) {
        uint32_t *word = table + (first_tile + t) * TILE_WORDS;
        word[0] = expert;
        word[1] = first_pair + t * p->tile_rows;
        word[2] = least(p->tile_rows, counts[expert] - t * p->tile_rows);
    }
    lists[expert] = first_tile;
    if (expert + 1 == p->experts)
        lists[p->experts] = first_tile + tiles;
    write_windows(c, expert, &p->windows[0], 0);
    write_windows(c, expert, &p->windows[1], p->args2);
}

DECLARE(moe_sort)
{
    (void)z;
    for (uint64_t e = line; e < line + count; e++)
        sort_expert(c, (uint32_t)e);
}

/* ---- expert matrices ---- */

typedef struct group_push {
    uint32_t row0, row_cap, top_k, experts;
    uint32_t window_expert, window_experts, window_row, window_rows;
    uint32_t cols, row_uvec4, x_stride, out_stride, rows;
} group_push;

enum { MODE_UP = 0, MODE_DOWN = 1, MODE_DOWN_COMBINE = 2, SOURCE_ROUTES = 0 };

/* Rows of x that share an expert, and where their results go. */
typedef struct gathered {
    uint32_t expert, count;
    uint32_t x_row[PRODUCT_ROWS], out_row[PRODUCT_ROWS];
} gathered;

INLINE bool in_window(const group_push *p, uint32_t expert)
{
    return expert >= p->window_expert && expert - p->window_expert < p->window_experts;
}

/* The first pair of each expert collects the later ones. */
INLINE bool gather_pairs(const cpu_call *c, uint32_t item, uint32_t most, gathered *g)
{
    const group_push *p = c->push;
    const uint32_t *routes = c->buffer[2];
    uint32_t pairs = rows_from(c, p->row0, p->row_cap) * p->top_k;
    if (item >= pairs || !in_window(p, routes[2 * item]))
        return false;
    g->expert = routes[2 * item];
    g->count = 0;
    for (uint32_t i = 0; i < item; i++)
        if (routes[2 * i] == g->expert)
            return false;
    for (uint32_t i = item; i < pairs && g->count < most; i++) {
        if (routes[2 * i] != g->expert)
            continue;
        g->x_row[g->count] = c->constant[2] == MODE_UP ? i / p->top_k : i;
        g->out_row[g->count++] = i;
    }
    return true;
}

INLINE bool gather_tile(const cpu_call *c, uint32_t item, gathered *g)
{
    const group_push *p = c->push;
    const uint32_t *lists = c->buffer[2];
    uint32_t tile = lists[p->window_expert] + item, cap = p->row_cap * p->top_k;
    if (tile >= lists[p->window_expert + p->window_experts])
        return false;
    const uint32_t *sorted = lists + p->experts + 1;
    const uint32_t *word = sorted + 2 * (size_t)cap + (size_t)tile * TILE_WORDS;
    g->expert = word[0];
    g->count = least(word[2], PRODUCT_ROWS);
    for (uint32_t i = 0; i < g->count; i++) {
        uint32_t at = word[1] + i, pair = sorted[at];
        g->x_row[i] = c->constant[2] == MODE_UP ? pair / p->top_k : at;
        g->out_row[i] = c->constant[2] == MODE_UP ? at : pair;
    }
    return true;
}

/* Weight rows first .. first + count - 1 of the window, of g's expert, times g's rows. */
INLINE void expert_product(const cpu_call *c, const gathered *g, weight_type type, uint32_t first,
                           uint32_t count, float *sums)
{
    const group_push *p = c->push;
    const float *x[PRODUCT_ROWS];
    for (uint32_t i = 0; i < g->count; i++)
        x[i] = (const float *)c->buffer[0] + (size_t)g->x_row[i] * p->x_stride;
    size_t row = (size_t)(g->expert - p->window_expert) * p->window_rows + first;
    size_t stride = (size_t)p->row_uvec4 * 16;
    KERNEL(product)
    (x, g->count, type, (const uint8_t *)c->buffer[1] + row * stride, stride, count, p->cols, sums);
}

INLINE void store_up(const gathered *g, uint32_t count, size_t out_stride, const float *sums,
                     float *out)
{
    if (g->count == 1) {
        float even[PRODUCT_WEIGHTS / 2 + LANES] = {0}, odd[PRODUCT_WEIGHTS / 2 + LANES] = {0};
        float *to = out + g->out_row[0] * out_stride;
        for (uint32_t n = 0; n < count / 2; n++) {
            even[n] = sums[2 * n * PRODUCT_ROWS];
            odd[n] = sums[(2 * n + 1) * PRODUCT_ROWS];
        }
        for (uint32_t n = 0; n < count / 2; n += LANES) {
            f32xn y = vec_silu(vec_load(even + n)) * vec_load(odd + n);
            for (uint32_t i = 0; i < least(LANES, count / 2 - n); i++)
                to[n + i] = y[i];
        }
        return;
    }
    for (uint32_t n = 0; n < count / 2; n++)
        for (uint32_t r = 0; r < g->count; r += LANES) {
            const float *from = sums + 2 * n * PRODUCT_ROWS + r;
            f32xn y = vec_silu(vec_load(from)) * vec_load(from + PRODUCT_ROWS);
            for (uint32_t i = 0; i < least(LANES, g->count - r); i++)
                out[g->out_row[r + i] * out_stride + n] = y[i];
        }
}

INLINE void store_down(const gathered *g, uint32_t count, size_t out_stride, const float *sums,
                       float *out)
{
    for (uint32_t r = 0; r < g->count; r++)
        for (uint32_t n = 0; n < count; n++)
            out[g->out_row[r] * out_stride + n] = sums[n * PRODUCT_ROWS + r];
}

INLINE void down_combine(const cpu_call *c, uint32_t item, weight_type type, uint32_t first,
                         uint32_t count)
{
    const group_push *p = c->push;
    const uint32_t *routes = c->buffer[2];
    if (item >= rows_from(c, p->row0, p->row_cap))
        return;
    _Alignas(64) float sums[PRODUCT_WEIGHTS * PRODUCT_ROWS];
    float total[PRODUCT_WEIGHTS] = {0};
    for (uint32_t k = 0; k < p->top_k; k++) {
        uint32_t pair = item * p->top_k + k;
        gathered g = {.expert = routes[2 * pair], .count = 1, .x_row = {pair}};
        if (!in_window(p, g.expert))
            continue;
        expert_product(c, &g, type, first, count, sums);
        for (uint32_t n = 0; n < count; n++)
            total[n] += float_of(routes[2 * pair + 1]) * sums[n * PRODUCT_ROWS];
    }
    memcpy((float *)c->buffer[3] + (size_t)item * p->out_stride + p->window_row + first, total,
           count * sizeof(float));
}

INLINE void moe_group(const cpu_call *c, const gathered *g, uint32_t item, weight_type type,
                      uint32_t first, uint32_t end)
{
    const group_push *p = c->push;
    for (; first < end; first += PRODUCT_WEIGHTS) {
        uint32_t count = least(end - first, PRODUCT_WEIGHTS);
        if (!g) {
            down_combine(c, item, type, first, count);
            continue;
        }
        _Alignas(64) float sums[PRODUCT_WEIGHTS * PRODUCT_ROWS];
        expert_product(c, g, type, first, count, sums);
        uint32_t column = p->window_row + first;
        if (c->constant[2] == MODE_UP)
            store_up(g, count, p->out_stride, sums, (float *)c->buffer[3] + column / 2);
        else
            store_down(g, count, p->out_stride, sums, (float *)c->buffer[3] + column);
    }
}

INLINE void moe_matvec(const cpu_call *c, uint64_t line, uint64_t count, weight_type type)
{
    const group_push *p = c->push;
    const uint32_t *s = c->constant; /* WG, R, MODE, SOURCE, VEC4, COUPLES */
    uint32_t each = 2 * s[0] * s[5];
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t item = (uint32_t)(i % c->groups[0]), first = (uint32_t)(i / c->groups[0]) * each;
        uint32_t end = least(first + each, p->window_rows);
        gathered g;
        if (s[2] == MODE_DOWN_COMBINE)
            moe_group(c, NULL, item, type, first, end);
        else if (s[3] == SOURCE_ROUTES ? gather_pairs(c, item, least(s[1], PRODUCT_ROWS), &g)
                                       : gather_tile(c, item, &g))
            moe_group(c, &g, item, type, first, end);
    }
}

/* One row, whose experts every group chooses again; the first group writes the routes. */
INLINE void moe_route_up(const cpu_call *c, uint64_t line, uint64_t count, weight_type type)
{
    const group_push *p = c->push;
    const uint32_t *s = c->constant; /* as above, then EXPERTS, TOP_K */
    const float *logits = c->buffer[2];
    uint32_t each = 2 * s[0] * s[5], top_k = s[7];
    if (line == 0 && p->window_expert == 0 && p->window_row == 0)
        route_row(logits, s[6], top_k, c->buffer[4]);
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t item = (uint32_t)(i % c->groups[0]), first = (uint32_t)(i / c->groups[0]) * each;
        if (item >= top_k)
            continue;
        pick chosen = {0, 0};
        for (uint32_t k = 0; k <= item; k++)
            chosen = pick_next(logits, s[6], chosen, k == 0);
        gathered g = {.expert = chosen.index, .count = 1, .out_row = {item}};
        if (in_window(p, g.expert))
            moe_group(c, &g, item, type, first, least(first + each, p->window_rows));
    }
}

#define MOE(suffix, type, route_type)                                                              \
    DECLARE(moe_matvec_##suffix)                                                                   \
    {                                                                                              \
        (void)z;                                                                                   \
        moe_matvec(c, line, count, type);                                                          \
    }                                                                                              \
    DECLARE(moe_route_up_##suffix)                                                                 \
    {                                                                                              \
        (void)z;                                                                                   \
        moe_route_up(c, line, count, route_type);                                                  \
    }
MOE(f32, WEIGHT_F32, WEIGHT_F32)
MOE(f16, WEIGHT_F16, WEIGHT_F16)
MOE(bf16, WEIGHT_BF16, WEIGHT_BF16)
MOE(quant, weight_blocks(c, 6), weight_blocks(c, 8))

typedef struct combine_push {
    uint32_t row0, row_cap, top_k, dim, experts;
} combine_push;

DECLARE(moe_combine)
{
    const combine_push *p = c->push;
    const float *down = c->buffer[0];
    const uint32_t *routes = c->buffer[1];
    uint32_t rows = rows_from(c, p->row0, p->row_cap), each = c->constant[0];
    (void)z;
    for (uint64_t i = line; i < line + count; i++) {
        uint32_t first = (uint32_t)(i % c->groups[0]) * each;
        size_t row = (size_t)(i / c->groups[0]);
        if (row >= rows)
            continue;
        float *out = (float *)c->buffer[2] + row * p->dim;
        for (uint32_t n = first; n < least(first + each, p->dim); n++) {
            float sum = 0.0f;
            for (uint32_t k = 0; k < p->top_k; k++) {
                size_t pair = row * p->top_k + k;
                sum += float_of(routes[2 * pair + 1]) * down[pair * p->dim + n];
            }
            out[n] = sum;
        }
    }
}
