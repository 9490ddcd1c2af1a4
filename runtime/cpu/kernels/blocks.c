/* Weights in blocks: rows decoded into floats, and products with few rows of x, for which codes
 * stay in registers and scales are applied to the sums of a group. */
#include "cpu/kernels/blocks.h"

/* Every line of `bytes`, which may begin anywhere in one. */
INLINE void fetch_lines(const uint8_t *at, uint32_t bytes)
{
    UNROLL for (uint32_t b = 0; b < bytes; b += 64) __builtin_prefetch(at + b);
    __builtin_prefetch(at + bytes - 1);
}

/* SCALE_GROUPS groups of a row, but for their low bits. */
INLINE void fetch_short_planes(const ful_type type, const uint8_t *row, block_planes planes,
                               uint32_t group)
{
    const uint32_t high = 4 * block_high(type), scales = scale_bytes(type);
    if (high != 0)
        fetch_lines(row + planes.high + (size_t)group * high, high * SCALE_GROUPS);
    fetch_lines(row + planes.scales + (size_t)(group / SCALE_GROUPS) * scales, scales);
}

/* ---- decoding ---- */

INLINE void decode(ful_type type, const uint8_t *row, block_planes planes, uint32_t first,
                   uint32_t cols, size_t ahead, float *out)
{
    const uint8_t *high = row + planes.high, *scales = row + planes.scales;
    const uint32_t split = block_scales(type);
    for (uint32_t at = first / 32, end = (first + cols) / 32; at < end;) {
        /* Scales are read from a multiple of SCALE_GROUPS on. */
        uint32_t from = at / SCALE_GROUPS * SCALE_GROUPS, groups = least(end - from, SCALE_GROUPS);
        group_scales s;
        if (ahead != 0) {
            const uint32_t low = 4 * block_low(type);
            fetch_lines(row + ahead + (size_t)from * low, low * SCALE_GROUPS);
            fetch_short_planes(type, row + ahead, planes, from);
        }
        scales_get(type, scales, from, groups, &s);
        for (; at < from + groups; at++) {
            UNROLL for (uint32_t j = 0; j < 4; j++)
            {
                uint32_t i = (at - from) * split + (split == 2 ? j / 2 : 0);
                f32xn v[EIGHT];
                codes_eight(type, row, high, at, j, v);
                UNROLL for (uint32_t p = 0; p < EIGHT; p++, out += LANES)
                {
                    f32xn y = v[p] * (code_factor(type) * s.d[i]);
                    vec_store(out, block_has_min(type) ? y + vec_all(s.m[i]) : y);
                }
            }
        }
    }
}

/* ---- products ---- */

enum {
    SUM_COLUMNS = 2048, /* whose sums of x are kept at a time */
    SUMS = SUM_COLUMNS / 16,
    BLOCK_ROWS = 4, /* of x, at most */
    AHEAD_BYTES = 1024
};

/* Sums of each row's columns that share a minimum, for types that have one: the minimum's part of a
 * product. */
INLINE void sum_columns(const float *const *x, uint32_t rows, uint32_t first, uint32_t cols,
                        uint32_t each, float sums[BLOCK_ROWS][SUMS])
{
    for (uint32_t r = 0; r < rows; r++) {
        uint32_t n = cols / each, padded = (n + 15) / 16 * 16;
        for (uint32_t i = 0; i < n; i++) {
            const float *from = x[r] + first + i * each;
            f32xn sum = vec_load(from);
            for (uint32_t k = LANES; k < each; k += LANES)
                sum += vec_load(from + k);
            sums[r][i] = vec_sum(sum);
        }
        for (uint32_t i = n; i < padded; i++)
            sums[r][i] = 0.0f;
    }
}

/* Groups first / 32 on of one weight row, cols / 32 of them; added to out. */
INLINE void dot_groups(const float *const *x, const uint32_t rows, const ful_type type,
                       const uint8_t *row, block_planes planes, size_t stride, uint32_t first,
                       uint32_t cols, float sums[BLOCK_ROWS][SUMS], float *out)
{
    const uint8_t *high = row + planes.high, *scales = row + planes.scales;
    const uint32_t split = block_scales(type);
    f32xn total[BLOCK_ROWS], minima[BLOCK_ROWS];
    UNROLL for (uint32_t r = 0; r < rows; r++) total[r] = minima[r] = vec_all(0.0f);
    const uint32_t groups = cols / 32, low = 4 * block_low(type);
    const uint32_t eights = 4 / split; /* that share a scale */
    for (uint32_t g0 = 0; g0 < groups; g0 += SCALE_GROUPS) {
        uint32_t n = least(groups - g0, SCALE_GROUPS);
        group_scales s;
        /* Processors fetch the low plane ahead by themselves, but late; the short planes behind it
         * begin anew in every row. */
        fetch_lines(row + AHEAD_BYTES + (size_t)(first / 32 + g0) * low, low * SCALE_GROUPS);
        fetch_short_planes(type, row + stride, planes, first / 32 + g0);
        scales_get(type, scales, first / 32 + g0, n, &s);
        for (uint32_t g = 0; g < n; g++) {
            uint32_t group = first / 32 + g0 + g;
            const uint32_t column = 32 * group;
            UNROLL for (uint32_t h = 0; h < split; h++)
            {
                f32xn part[BLOCK_ROWS];
                UNROLL for (uint32_t i = 0; i < eights; i++)
                {
                    const uint32_t j = h * eights + i;
                    f32xn v[EIGHT];
                    codes_eight(type, row, high, group, j, v);
                    UNROLL for (uint32_t r = 0; r < rows; r++)
                    {
                        UNROLL for (uint32_t p = 0; p < EIGHT; p++)
                        {
                            f32xn from = vec_load(x[r] + column + 8 * j + p * LANES);
                            bool begins = i == 0 && p == 0;
                            part[r] = begins ? from * v[p] : part[r] + from * v[p];
                        }
                    }
                }
                UNROLL for (uint32_t r = 0; r < rows; r++) total[r] +=
                    part[r] * (code_factor(type) * s.d[g * split + h]);
            }
        }
        if (block_has_min(type))
            for (uint32_t i = 0; i < split * SCALE_GROUPS; i += LANES)
                UNROLL for (uint32_t r = 0; r < rows; r++) minima[r] +=
                    vec_load(s.m + i) * vec_load(sums[r] + split * g0 + i);
    }
    UNROLL for (uint32_t r = 0; r < rows; r++) out[r] +=
        vec_sum(block_has_min(type) ? total[r] + minima[r] : total[r]);
}

INLINE void blocks_dot(const float *const *x, uint32_t rows, const ful_type type, const uint8_t *w,
                       size_t stride, uint32_t count, uint32_t cols, float *out)
{
    block_planes planes = planes_of(type, cols);
    float sums[BLOCK_ROWS][SUMS];
    for (uint32_t n = 0; n < count; n++)
        memset(out + n * PRODUCT_ROWS, 0, BLOCK_ROWS * sizeof *out);
    for (uint32_t first = 0; first < cols; first += SUM_COLUMNS) {
        uint32_t some = least(cols - first, SUM_COLUMNS);
        if (block_has_min(type))
            sum_columns(x, rows, first, some, 32 / block_scales(type), sums);
        const uint8_t *row = w;
        for (uint32_t n = 0; n < count; n++, row += stride) {
            float *to = out + n * PRODUCT_ROWS;
            if (rows == 1)
                dot_groups(x, 1, type, row, planes, stride, first, some, sums, to);
            else if (rows == 2)
                dot_groups(x, 2, type, row, planes, stride, first, some, sums, to);
            else
                dot_groups(x, BLOCK_ROWS, type, row, planes, stride, first, some, sums, to);
        }
    }
}

/* ---- by type ---- */

#define EACH_TYPE(type, does)                                                                      \
    switch (type) {                                                                                \
    case FUL_TYPE_Q8_0:                                                                            \
        does(FUL_TYPE_Q8_0);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q4_0:                                                                            \
        does(FUL_TYPE_Q4_0);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q4_1:                                                                            \
        does(FUL_TYPE_Q4_1);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q5_0:                                                                            \
        does(FUL_TYPE_Q5_0);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q5_1:                                                                            \
        does(FUL_TYPE_Q5_1);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q2_K:                                                                            \
        does(FUL_TYPE_Q2_K);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q3_K:                                                                            \
        does(FUL_TYPE_Q3_K);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q4_K:                                                                            \
        does(FUL_TYPE_Q4_K);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q5_K:                                                                            \
        does(FUL_TYPE_Q5_K);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_Q6_K:                                                                            \
        does(FUL_TYPE_Q6_K);                                                                       \
        break;                                                                                     \
    case FUL_TYPE_IQ4_NL:                                                                          \
        does(FUL_TYPE_IQ4_NL);                                                                     \
        break;                                                                                     \
    default:                                                                                       \
        does(FUL_TYPE_MXFP4);                                                                      \
        break;                                                                                     \
    }

void KERNEL(blocks)(ful_type type, const void *row, uint32_t all, uint32_t first, uint32_t cols,
                    size_t ahead, float *out)
{
#define DECODE(known) decode(known, row, planes_of(known, all), first, cols, ahead, out)
    EACH_TYPE(type, DECODE)
}

void KERNEL(blocks_few)(const float *const *x, uint32_t rows, ful_type type, const void *w,
                        size_t stride, uint32_t count, uint32_t cols, float *out)
{
    const float *from[BLOCK_ROWS];
    for (uint32_t r = 0; r < BLOCK_ROWS; r++)
        from[r] = x[least(r, rows - 1)];
#define DOT(known) blocks_dot(from, rows, known, w, stride, count, cols, out)
    EACH_TYPE(type, DOT)
}
