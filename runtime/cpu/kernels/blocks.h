/* Weights in blocks as they lie in a device's planes (base/types.h): eight codes at a time as
 * floats, and the scales of a few groups of 32 columns. Everything is inlined with a type that the
 * compiler knows. */
#ifndef FULGUR_CPU_KERNELS_BLOCKS_H
#define FULGUR_CPU_KERNELS_BLOCKS_H

#include "cpu/kernels/simd.h"

/* Bits of an element in the low and the high plane. */
INLINE uint32_t block_low(ful_type type)
{
    return type == FUL_TYPE_Q8_0 ? 8 : type == FUL_TYPE_Q2_K || type == FUL_TYPE_Q3_K ? 2 : 4;
}

INLINE uint32_t block_high(ful_type type)
{
    return type == FUL_TYPE_Q6_K ? 2
           : type == FUL_TYPE_Q5_0 || type == FUL_TYPE_Q5_1 || type == FUL_TYPE_Q5_K ||
                   type == FUL_TYPE_Q3_K
               ? 1
               : 0;
}

/* The code of 0. */
INLINE uint32_t block_zero(ful_type type)
{
    return type == FUL_TYPE_Q4_0   ? 8
           : type == FUL_TYPE_Q5_0 ? 16
           : type == FUL_TYPE_Q6_K ? 32
           : type == FUL_TYPE_Q3_K ? 4
                                   : 0;
}

INLINE bool block_has_min(ful_type type)
{
    return type == FUL_TYPE_Q4_1 || type == FUL_TYPE_Q5_1 || type == FUL_TYPE_Q2_K ||
           type == FUL_TYPE_Q4_K || type == FUL_TYPE_Q5_K;
}

/* Scales of a group of 32. */
INLINE uint32_t block_scales(ful_type type)
{
    return type == FUL_TYPE_Q2_K || type == FUL_TYPE_Q3_K || type == FUL_TYPE_Q6_K ? 2 : 1;
}

INLINE bool block_has_table(ful_type type)
{
    return type == FUL_TYPE_IQ4_NL || type == FUL_TYPE_MXFP4;
}

/* Where planes begin in a row. */
typedef struct block_planes {
    size_t high, scales;
} block_planes;

INLINE block_planes planes_of(ful_type type, uint32_t cols)
{
    size_t high = ((size_t)cols / 8 * block_low(type) + 15) & ~(size_t)15;
    return (block_planes){high, high + (((size_t)cols / 8 * block_high(type) + 15) & ~(size_t)15)};
}

INLINE uint32_t word_at(const uint8_t *p, size_t i)
{
    uint32_t w;
    memcpy(&w, p + 4 * i, 4);
    return w;
}

/* ---- codes ---- */

enum { EIGHT = 8 / LANES }; /* vectors of eight values */

static const float table_nl[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
/* Twice e2m1's. */
static const float table_e2m1[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

#if VECTOR_BYTES == 32

/* Every lane shifts its own code down from a word that all have. */
INLINE u32xn all_words(uint32_t w)
{
    return (u32xn){w, w, w, w, w, w, w, w};
}

INLINE u32xn high_bits(ful_type type, const uint8_t *high, uint32_t group, uint32_t j)
{
    const u32xn of1 = {0, 16, 1, 17, 2, 18, 3, 19}, of2 = {0, 16, 2, 18, 4, 20, 6, 22};
    const uint32_t to = block_low(type);
    /* Bits that must go up are read from one byte before, in the plane of low ones. */
    if (block_high(type) == 2) {
        const uint8_t *at = high + 8 * (size_t)group + 4 * (j / 2);
        return (j % 2 == 0 ? all_words(word_at(at - 1, 0)) >> (of2 + (8 - to))
                           : all_words(word_at(at, 0)) >> (of2 + (8 - to))) &
               (3u << to);
    }
    const uint8_t *at = high + 4 * (size_t)group;
    return (j == 0 ? all_words(word_at(at - 1, 0)) >> (of1 + (8 - to))
                   : all_words(word_at(at, 0)) >> (of1 + (4 * j - to))) &
           (1u << to);
}

INLINE f32xn signed_bytes(const uint8_t *p)
{
    __m128i bytes = _mm_loadl_epi64((const void *)p);
    return __builtin_convertvector((i32xn)_mm256_cvtepi8_epi32(bytes), f32xn);
}

INLINE u32xn wide_bytes(const uint8_t *p)
{
    return (u32xn)_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)p));
}

/* Eight numbers of four bits from `low` with two bits above them from `high`. */
INLINE f32xn six_bits(uint32_t low, uint32_t high, int32_t zero)
{
    const u32xn of4 = {0, 4, 8, 12, 16, 20, 24, 28}, of2 = {0, 2, 4, 6, 8, 10, 12, 14};
    u32xn n = (all_words(low) >> of4 & 15) | (all_words(high) >> of2 & 3) << 4;
    return __builtin_convertvector((i32xn)n - zero, f32xn);
}

INLINE f32xn table_values(const float *table, u32xn n)
{
    __m256 low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table), (__m256i)n);
    __m256 high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table + 8), (__m256i)n);
    return (f32xn)_mm256_blendv_ps(low, high, (__m256)(n << 28));
}

/* What codes_eight gives has to be multiplied by. */
INLINE f32xn code_factor(ful_type type)
{
    (void)type;
    return vec_all(1.0f);
}

/* Values of columns 8 j .. 8 j + 7 of a group, j < 4, before they are scaled. */
INLINE void codes_eight(ful_type type, const uint8_t *low, const uint8_t *high, uint32_t group,
                        uint32_t j, f32xn *out)
{
    const u32xn of4 = {0, 16, 4, 20, 8, 24, 12, 28}, of2 = {0, 16, 2, 18, 4, 20, 6, 22};
    u32xn n;
    if (block_low(type) == 8) {
        out[0] = signed_bytes(low + 32 * (size_t)group + 8 * j);
        return;
    }
    if (block_low(type) == 4) {
        n = all_words(word_at(low, 4 * (size_t)group + j)) >> of4;
        if (block_has_table(type)) {
            out[0] = table_values(type == FUL_TYPE_MXFP4 ? table_e2m1 : table_nl, n);
            return;
        }
        n &= 15;
    } else {
        n = all_words(word_at(low, 2 * (size_t)group + j / 2)) >> (of2 + 8 * (j % 2)) & 3;
    }
    if (block_high(type) != 0)
        n |= high_bits(type, high, group, j);
    out[0] = __builtin_convertvector((i32xn)(n - block_zero(type)), f32xn);
}

#else

/* No shift of each lane's own: codes are converted where they lie in a word that all lanes have,
 * which is a power of two of each lane, code_factor(), above their values. */
INLINE f32xn in_place(const uint8_t *at, u32xn mask)
{
    uint32_t word = word_at(at, 0);
    u32xn w = {word, word, word, word};
    return __builtin_convertvector((i32xn)(w & mask), f32xn);
}

/* Bytes in the highest places of words. */
INLINE void top_bytes(const uint8_t *p, i32xn out[2])
{
    typedef uint8_t u8x16 __attribute__((vector_size(16)));
    typedef uint16_t u16x8 __attribute__((vector_size(16)));
    uint8_t bytes[16] = {0};
    memcpy(bytes, p, 8);
    const u8x16 zero = {0};
    u8x16 b;
    memcpy(&b, bytes, sizeof b);
#if defined(__clang__)
    u16x8 h = (u16x8)__builtin_shufflevector(zero, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6,
                                             22, 7, 23);
    out[0] = (i32xn)__builtin_shufflevector((u16x8)zero, h, 0, 8, 1, 9, 2, 10, 3, 11);
    out[1] = (i32xn)__builtin_shufflevector((u16x8)zero, h, 4, 12, 5, 13, 6, 14, 7, 15);
#else
    u16x8 h = (u16x8)__builtin_shuffle(
        zero, b, (u8x16){0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23});
    out[0] = (i32xn)__builtin_shuffle((u16x8)zero, h, (u16x8){0, 8, 1, 9, 2, 10, 3, 11});
    out[1] = (i32xn)__builtin_shuffle((u16x8)zero, h, (u16x8){4, 12, 5, 13, 6, 14, 7, 15});
#endif
}

INLINE f32xn code_factor(ful_type type)
{
    if (block_has_table(type))
        return vec_all(1.0f);
    if (block_low(type) == 8)
        return vec_all(0x1p-24f);
    if (block_low(type) == 4)
        return (f32xn){1.0f, 0x1p-16f, 0x1p-4f, 0x1p-20f};
    return (f32xn){1.0f, 0x1p-16f, 0x1p-2f, 0x1p-18f};
}

INLINE f32xn signed_bytes(const uint8_t *p)
{
    return (f32xn){(float)(int8_t)p[0], (float)(int8_t)p[1], (float)(int8_t)p[2],
                   (float)(int8_t)p[3]};
}

INLINE u32xn wide_bytes(const uint8_t *p)
{
    return (u32xn){p[0], p[1], p[2], p[3]};
}

INLINE void codes_eight(ful_type type, const uint8_t *low, const uint8_t *high, uint32_t group,
                        uint32_t j, f32xn *out)
{
    /* What a lane's code is multiplied by, and the masks of words whose lanes have 4, 2, 1 bits. */
    const u32xn of4 = {0xf, 0xf0000, 0xf0, 0xf00000}, of1 = {0x1, 0x10000, 0x2, 0x20000};
    const u32xn of2 = {0x3, 0x30000, 0xc, 0xc0000}, of2_higher = of2 << 4;
    const f32xn unit = block_low(type) == 4 ? (f32xn){1.0f, 0x1p16f, 0x1p4f, 0x1p20f}
                                            : (f32xn){1.0f, 0x1p16f, 0x1p2f, 0x1p18f};
    const uint8_t *at = low + (size_t)group * 4 * block_low(type) + j * block_low(type);
    if (block_has_table(type)) {
        const float *table = type == FUL_TYPE_MXFP4 ? table_e2m1 : table_nl;
        uint32_t w = word_at(at, 0);
        for (uint32_t h = 0; h < 2; h++, w >>= 8)
            out[h] = (f32xn){table[w & 15], table[w >> 16 & 15], table[w >> 4 & 15],
                             table[w >> 20 & 15]};
        return;
    }
    if (block_low(type) == 8) {
        i32xn both[2];
        top_bytes(at, both);
        out[0] = __builtin_convertvector(both[0], f32xn);
        out[1] = __builtin_convertvector(both[1], f32xn);
        return;
    }
    UNROLL for (uint32_t h = 0; h < 2; h++)
    {
        /* Words are read from the byte on in which the codes begin; what a word has of the next one
         * is masked out. Two bits a code: eight of them begin at half a word's end. */
        if (block_low(type) == 4)
            out[h] = in_place(at + h, of4);
        else
            out[h] = h == 0 ? in_place(low + 8 * (size_t)group + 4 * (j / 2) + j % 2, of2)
                            : in_place(low + 8 * (size_t)group + 4 * (j / 2) + j % 2, of2_higher) *
                                  0x1p-4f;
        if (block_high(type) == 2) {
            const uint8_t *from = high + 8 * (size_t)group + 4 * (j / 2) + j % 2;
            const f32xn times = {16.0f, 16.0f, 64.0f, 64.0f};
            out[h] += h == 0 ? in_place(from, of2) * times
                             : in_place(from, of2_higher) * (times * 0x1p-4f);
        }
        if (block_high(type) == 1) { /* of eight columns at bits 4 j and 4 j + 16 */
            const uint8_t *from = high + 4 * (size_t)group + j / 2;
            const uint32_t shift = j % 2 * 4 + 2 * h;
            const f32xn times = block_low(type) == 4 ? (f32xn){16.0f, 16.0f, 128.0f, 128.0f}
                                                     : (f32xn){4.0f, 4.0f, 8.0f, 8.0f};
            out[h] += in_place(from, of1 << shift) * (times * (1.0f / (float)(1u << shift)));
        }
        if (block_zero(type) != 0)
            out[h] -= unit * (float)block_zero(type);
    }
}

#endif

/* ---- scales ---- */

enum { SCALE_GROUPS = 8 }; /* together; where 256 columns share something, these are they */

/* Of that many groups. */
INLINE uint32_t scale_bytes(ful_type type)
{
    return type == FUL_TYPE_MXFP4                           ? 8
           : type == FUL_TYPE_Q2_K || type == FUL_TYPE_Q6_K ? 20
           : type == FUL_TYPE_Q4_1 || type == FUL_TYPE_Q5_1 ? 32
                                                            : 16;
}

/* Those of `groups` <= SCALE_GROUPS groups from number `first` on, a multiple of SCALE_GROUPS:
 * block_scales(type) of each group. Whatever lies behind them becomes 0. */
typedef struct group_scales {
    float d[2 * SCALE_GROUPS], m[2 * SCALE_GROUPS];
} group_scales;

/* Blocks of 256, from their scales' first byte on. */
INLINE void scales_of_256(ful_type type, const uint8_t *at, group_scales *s)
{
    uint32_t w[4];
    memcpy(w, at, sizeof w);
    const float d = half_value((uint16_t)w[0]), minimum = -half_value((uint16_t)(w[0] >> 16));
    if (type == FUL_TYPE_Q6_K) {
        for (uint32_t i = 0; i < 2 * SCALE_GROUPS; i += LANES)
            vec_store(s->d + i, signed_bytes(at + 4 + i) * d);
        return;
    }
    if (type == FUL_TYPE_Q2_K) {
        for (uint32_t i = 0; i < 2 * SCALE_GROUPS; i += LANES) {
            i32xn both = (i32xn)wide_bytes(at + 4 + i);
            vec_store(s->d + i, __builtin_convertvector(both & 15, f32xn) * d);
            vec_store(s->m + i, __builtin_convertvector(both >> 4, f32xn) * minimum);
        }
        return;
    }
    const bool q3 = type == FUL_TYPE_Q3_K;
    const int32_t zero = q3 ? 32 : 0;
    const float other = q3 ? d : minimum;
    float *to = q3 ? s->d + SCALE_GROUPS : s->m;
#if VECTOR_BYTES == 32
    vec_store(s->d, six_bits(w[1], w[3], zero) * d);
    vec_store(to, six_bits(w[2], w[3] >> 16, zero) * other);
#else
    for (uint32_t i = 0; i < SCALE_GROUPS; i++) {
        uint32_t a = (w[1] >> (4 * i) & 15) | (w[3] >> (2 * i) & 3) << 4;
        uint32_t b = (w[2] >> (4 * i) & 15) | (w[3] >> (16 + 2 * i) & 3) << 4;
        s->d[i] = d * (float)((int32_t)a - zero);
        to[i] = other * (float)((int32_t)b - zero);
    }
#endif
}

INLINE void scales_get(ful_type type, const uint8_t *plane, uint32_t first, uint32_t groups,
                       group_scales *s)
{
    const uint32_t bytes = scale_bytes(type) / SCALE_GROUPS;
    const uint8_t *at = plane + (size_t)(first / SCALE_GROUPS) * scale_bytes(type);
    if (block_scales(type) == 2 || type == FUL_TYPE_Q4_K || type == FUL_TYPE_Q5_K) {
        scales_of_256(type, at, s);
        return;
    }
    _Alignas(16) uint8_t some[4 * SCALE_GROUPS] = {0};
    if (groups < SCALE_GROUPS) {
        memcpy(some, at, (size_t)groups * bytes);
        at = some;
    }
    for (uint32_t i = 0; i < SCALE_GROUPS; i += LANES) {
        if (bytes == 2) {
            vec_store(s->d + i, vec_half((const uint16_t *)(const void *)at + i));
        } else if (bytes == 4) {
            u32xn w;
            memcpy(&w, at + 4 * i, sizeof w);
            vec_store(s->d + i, vec_half_words(w & 0xffff));
            vec_store(s->m + i, vec_half_words(w >> 16));
        } else { /* codes are doubled; the least two are subnormal */
            u32xn e = wide_bytes(at + i), small = (u32xn)(e < 2);
            vec_store(s->d + i, (f32xn)((((e + 1) << 21) & small) | (((e - 1) << 23) & ~small)));
        }
    }
}

#endif
