/* Products of weight rows with a few rows of x. Few rows: dot products along k, in several sums.
 * More: x is turned so that its rows are the lanes, a panel of columns at a time, and every weight
 * is spread over them. */
#include "cpu/kernels/simd.h"

/* Weight rows at a time: with the rows of x in PARTS vectors their sums fill most of the registers,
 * 12 of AVX2's 16, 24 of NEON's 32, 12 of SSE2's 16. */
enum {
    PARTS = PRODUCT_ROWS / LANES,
#if defined(__AVX2__) || defined(__aarch64__)
    SPREAD_LINES = 6,
#else
    SPREAD_LINES = 3,
#endif
    PANEL =
        256, /* columns; the turned rows and unpacked weight rows of so many stay in the cache */
    DOT_ROWS = 4 /* up to here along k */
};

/* ---- along k: `rows` rows of x by one weight row after the other, as they lie in memory ---- */

enum { AHEAD_BYTES = 256 }; /* what processors prefetch by themselves begins too late */

/* One weight row in rows * parts sums. */
INLINE void dot_line(const float *const *x, const uint32_t rows, weight_type type, const uint8_t *w,
                     const uint32_t parts, uint32_t cols, float *out)
{
    f32xn sum[8];
    UNROLL for (uint32_t i = 0; i < rows * parts; i++) sum[i] = vec_all(0.0f);
    uint32_t k = 0;
    for (; k + parts * LANES <= cols; k += parts * LANES) {
        __builtin_prefetch(w + k * weight_bytes(type) + AHEAD_BYTES);
        UNROLL for (uint32_t p = 0; p < parts; p++)
        {
            f32xn v = vec_weights(type, w, k + p * LANES);
            UNROLL for (uint32_t r = 0; r < rows; r++) sum[r * parts + p] +=
                vec_load(x[r] + k + p * LANES) * v;
        }
    }
    UNROLL for (uint32_t r = 0; r < rows; r++)
    {
        f32xn all = sum[r * parts];
        UNROLL for (uint32_t p = 1; p < parts; p++) all += sum[r * parts + p];
        float s = vec_sum(all);
        for (uint32_t i = k; i < cols; i++)
            s += x[r][i] * weight_at(type, w, i);
        out[r] = s;
    }
}

INLINE void dot_product(const float *const *x, uint32_t rows, weight_type type, const uint8_t *w,
                        size_t stride, uint32_t count, uint32_t cols, float *out)
{
    for (uint32_t n = 0; n < count; n++, w += stride, out += PRODUCT_ROWS) {
        if (rows == 1)
            dot_line(x, 1, type, w, 4, cols, out);
        else if (rows == 2)
            dot_line(x, 2, type, w, 4, cols, out);
        else if (rows == 3)
            dot_line(x, 3, type, w, 2, cols, out);
        else
            dot_line(x, 4, type, w, 2, cols, out);
    }
}

/* ---- rows as lanes ---- */

/* `lines` unpacked weight rows of `cols` columns, PANEL apart, against turned rows in `parts`
 * vectors; added to out. */
INLINE void spread_block(const float *turned, const uint32_t parts, const float *w,
                         const uint32_t lines, uint32_t cols, float *out)
{
    f32xn sum[PARTS * SPREAD_LINES];
    UNROLL for (uint32_t i = 0; i < parts * lines; i++) sum[i] = vec_all(0.0f);
    for (uint32_t k = 0; k < cols; k++) {
        f32xn u[PARTS];
        UNROLL for (uint32_t p = 0; p < parts; p++) u[p] =
            vec_load(turned + k * PRODUCT_ROWS + p * LANES);
        UNROLL for (uint32_t c = 0; c < lines; c++)
        {
            f32xn v = vec_all(w[c * PANEL + k]);
            UNROLL for (uint32_t p = 0; p < parts; p++) sum[c * parts + p] += u[p] * v;
        }
    }
    UNROLL for (uint32_t c = 0; c < lines; c++) UNROLL for (uint32_t p = 0; p < parts; p++)
    {
        float *to = out + c * PRODUCT_ROWS + p * LANES;
        vec_store(to, vec_load(to) + sum[c * parts + p]);
    }
}

INLINE void spread_lines(const float *turned, uint32_t rows, const float *w, const uint32_t lines,
                         uint32_t cols, float *out)
{
    if (rows <= PRODUCT_ROWS / 2)
        spread_block(turned, PARTS / 2, w, lines, cols, out);
    else
        spread_block(turned, PARTS, w, lines, cols, out);
}

/* The row that is unpacked after those of this step begins `ahead` bytes later. */
INLINE void unpack(weight_type type, const uint8_t *row, uint32_t all, uint32_t first,
                   uint32_t cols, size_t ahead, float *out)
{
    if (type >= WEIGHT_BLOCKS) {
        KERNEL(blocks)((ful_type)(type - WEIGHT_BLOCKS), row, all, first, cols, ahead, out);
        return;
    }
    uint32_t k = 0;
    for (; k + LANES <= cols; k += LANES) {
        __builtin_prefetch(row + (first + k) * weight_bytes(type) + ahead);
        vec_store(out + k, vec_weights(type, row, first + k));
    }
    for (; k < cols; k++)
        out[k] = weight_at(type, row, first + k);
}

#if defined(__AVX2__)
/* Eight columns of eight rows, turned. */
INLINE void turn_square(const float *const *from, uint32_t k, float *out)
{
    __m256 a[8], b[8];
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        __m256 low = _mm256_loadu_ps(from[2 * i] + k), high = _mm256_loadu_ps(from[2 * i + 1] + k);
        a[i] = _mm256_unpacklo_ps(low, high);     /* columns 0 1, 4 5 */
        a[i + 4] = _mm256_unpackhi_ps(low, high); /* 2 3, 6 7 */
    }
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        uint32_t j = i / 2 * 4 + i % 2 * 2;
        b[j] = _mm256_shuffle_ps(a[j], a[j + 1], 0x44);
        b[j + 1] = _mm256_shuffle_ps(a[j], a[j + 1], 0xee);
    }
    UNROLL for (uint32_t i = 0; i < 4; i++)
    {
        uint32_t j = i / 2 * 4 + i % 2; /* rows 0-3 of columns i, i + 4; j + 2: rows 4-7 */
        _mm256_storeu_ps(out + i * PRODUCT_ROWS, _mm256_permute2f128_ps(b[j], b[j + 2], 0x20));
        _mm256_storeu_ps(out + (i + 4) * PRODUCT_ROWS,
                         _mm256_permute2f128_ps(b[j], b[j + 2], 0x31));
    }
}
#endif

/* turned[k][r] = x[r][first + k]; the last row in place of those from `rows` on. */
INLINE void turn(const float *const *x, uint32_t rows, uint32_t first, uint32_t cols, float *turned)
{
    const float *from[PRODUCT_ROWS];
    uint32_t done = 0;
    for (uint32_t r = 0; r < PRODUCT_ROWS; r++)
        from[r] = x[least(r, rows - 1)] + first;
#if defined(__AVX2__)
    for (; done + 8 <= cols; done += 8)
        for (uint32_t r = 0; r < PRODUCT_ROWS; r += 8)
            turn_square(from + r, done, turned + done * PRODUCT_ROWS + r);
#endif
    for (uint32_t r = 0; r < PRODUCT_ROWS; r++)
        for (uint32_t k = done; k < cols; k++)
            turned[k * PRODUCT_ROWS + r] = from[r][k];
}

INLINE void spread_product(const float *const *x, uint32_t rows, weight_type type, const uint8_t *w,
                           size_t stride, uint32_t count, uint32_t cols, float *out)
{
    _Alignas(64) float turned[PANEL * PRODUCT_ROWS];
    _Alignas(64) float unpacked[SPREAD_LINES * PANEL];
    memset(out, 0, (size_t)count * PRODUCT_ROWS * sizeof *out);
    for (uint32_t first = 0; first < cols; first += PANEL) {
        uint32_t panel = least(cols - first, PANEL);
        turn(x, rows, first, panel, turned);
        for (uint32_t n = 0; n < count; n += SPREAD_LINES) {
            uint32_t lines = least(count - n, SPREAD_LINES);
            for (uint32_t c = 0; c < lines; c++)
                unpack(type, w + (n + c) * stride, cols, first, panel, SPREAD_LINES * stride,
                       unpacked + c * PANEL);
            float *to = out + n * PRODUCT_ROWS;
            if (lines == SPREAD_LINES)
                spread_lines(turned, rows, unpacked, SPREAD_LINES, panel, to);
            else
                for (uint32_t c = 0; c < lines; c++)
                    spread_lines(turned, rows, unpacked + c * PANEL, 1, panel,
                                 to + c * PRODUCT_ROWS);
        }
    }
}

INLINE void product(const float *const *x, uint32_t rows, weight_type type, const uint8_t *w,
                    size_t stride, uint32_t count, uint32_t cols, float *out)
{
    if (rows <= DOT_ROWS)
        dot_product(x, rows, type, w, stride, count, cols, out);
    else
        spread_product(x, rows, type, w, stride, count, cols, out);
}

void KERNEL(product)(const float *const *x, uint32_t rows, weight_type type, const void *w,
                     size_t stride, uint32_t count, uint32_t cols, float *out)
{
    if (type == WEIGHT_F32)
        product(x, rows, WEIGHT_F32, w, stride, count, cols, out);
    else if (type == WEIGHT_F16)
        product(x, rows, WEIGHT_F16, w, stride, count, cols, out);
    else if (type == WEIGHT_BF16)
        product(x, rows, WEIGHT_BF16, w, stride, count, cols, out);
    else if (rows <= DOT_ROWS)
        KERNEL(blocks_few)(x, rows, (ful_type)(type - WEIGHT_BLOCKS), w, stride, count, cols, out);
    else
        spread_product(x, rows, type, w, stride, count, cols, out);
}
