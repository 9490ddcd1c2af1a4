/* Vectors through GCC's and Clang's extension, which any instruction set can carry out, and what
 * the kernels do with them. They are as long as a register of CPU_ISA: compilers keep longer ones
 * in memory. Everything here is inlined into files that are compiled for CPU_ISA. */
#ifndef FULGUR_CPU_KERNELS_SIMD_H
#define FULGUR_CPU_KERNELS_SIMD_H

#include <math.h>
#include <string.h>

#include "cpu/kernels/kernel.h"
#include "fulgur/fulgur.h"

#if defined(__AVX2__)
#include <immintrin.h>
#endif

/* Names of functions that exist once for each set of instructions. */
#define CPU_JOIN_(name, isa) cpu_##name##_##isa
#define CPU_JOIN(name, isa) CPU_JOIN_(name, isa)
#define KERNEL(name) CPU_JOIN(name, CPU_ISA)

#define INLINE static inline __attribute__((always_inline))
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

#if defined(__AVX2__)
#define VECTOR_BYTES 32
#else
#define VECTOR_BYTES 16
#endif
enum { LANES = VECTOR_BYTES / 4 }; /* 4 or 8 */
typedef float f32xn __attribute__((vector_size(VECTOR_BYTES)));
typedef uint32_t u32xn __attribute__((vector_size(VECTOR_BYTES)));
typedef int32_t i32xn __attribute__((vector_size(VECTOR_BYTES)));
typedef uint16_t u16xn __attribute__((vector_size(VECTOR_BYTES / 2)));

INLINE f32xn vec_load(const float *p)
{
    f32xn v;
    memcpy(&v, p, sizeof v);
    return v;
}

INLINE void vec_store(float *p, f32xn v)
{
    memcpy(p, &v, sizeof v);
}

INLINE f32xn vec_all(float x)
{
#if VECTOR_BYTES == 32
    return (f32xn){x, x, x, x, x, x, x, x};
#else
    return (f32xn){x, x, x, x};
#endif
}

INLINE float vec_sum(f32xn v)
{
#if VECTOR_BYTES == 32
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
#else
    return (v[0] + v[2]) + (v[1] + v[3]);
#endif
}

INLINE uint32_t bits_of(float x)
{
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    return u;
}

INLINE float float_of(uint32_t u)
{
    float x;
    memcpy(&x, &u, sizeof x);
    return x;
}

INLINE uint32_t least(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

/* Rows of the step from row0 on, at most cap. */
INLINE uint32_t rows_from(const cpu_call *c, uint32_t row0, uint32_t cap)
{
    uint32_t n = c->step->n_rows;
    return least(n > row0 ? n - row0 : 0, cap);
}

/* ---- stored types ---- */

/* Types of blocks are WEIGHT_BLOCKS plus their ful_type. */
typedef enum weight_type {
    WEIGHT_F32,
    WEIGHT_F16,
    WEIGHT_BF16,
    WEIGHT_BLOCKS,
    WEIGHT_LAST = WEIGHT_BLOCKS + FUL_TYPE_MXFP4
} weight_type;

/* The type that a specialisation constant of a kernel on blocks names. */
INLINE weight_type weight_blocks(const cpu_call *c, uint32_t constant)
{
    return (weight_type)(WEIGHT_BLOCKS + c->constant[constant]);
}

INLINE size_t weight_bytes(weight_type type)
{
    return type == WEIGHT_F32 ? 4 : 2;
}

INLINE float half_value(uint16_t h)
{
#if defined(__F16C__)
    return _cvtsh_ss(h);
#else
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16, rest = (uint32_t)(h & 0x7fffu) << 13;
    if (rest >= 0x0f800000u) /* infinity and NaN */
        return float_of(sign | 0x70000000u | rest);
    float value = rest < 0x00800000u ? float_of(rest + (113u << 23)) - 0x1p-14f
                                     : float_of(rest + (112u << 23));
    return float_of(bits_of(value) | sign);
#endif
}

/* Rounded to nearest, ties to even. */
INLINE uint16_t half_of(float x)
{
    uint32_t u = bits_of(x), sign = u >> 16 & 0x8000u, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00u);
    if (a >= 0x477ff000u) /* 65520 and more */
        return (uint16_t)(sign | 0x7c00u);
    if (a < 0x38800000u) /* below 2^-14: the sum rounds to a multiple of 2^-24 */
        return (uint16_t)(sign | (bits_of(float_of(a) + 0.5f) - 0x3f000000u));
    a += 0xfffu + (a >> 13 & 1u);
    return (uint16_t)(sign | ((a >> 13) - (112u << 10)));
}

/* Widened: compilers make two halves of the conversion by themselves. */
INLINE u32xn vec_words(const uint16_t *p)
{
#if defined(__AVX2__)
    __m128i h;
    memcpy(&h, p, sizeof h);
    return (u32xn)_mm256_cvtepu16_epi32(h);
#else
    u16xn h;
    memcpy(&h, p, sizeof h);
    return __builtin_convertvector(h, u32xn);
#endif
}

/* Halves in the low bits of words whose high bits are 0. */
INLINE f32xn vec_half_words(u32xn w)
{
    u32xn rest = (w & 0x7fffu) << 13;
    u32xn special = (u32xn)(rest >= 0x0f800000u), tiny = (u32xn)(rest < 0x00800000u);
    /* Subnormal halves without subnormal floats, which take long: with 2^-14 added. */
    u32xn usual = rest + (112u << 23);
    u32xn least_ones = (u32xn)((f32xn)(rest + (113u << 23)) - 0x1p-14f);
    return (f32xn)((usual & ~special & ~tiny) | ((rest | 0x70000000u) & special) |
                   (least_ones & tiny) | (w & 0x8000u) << 16);
}

INLINE f32xn vec_half(const uint16_t *p)
{
#if defined(__F16C__)
    __m128i h;
    memcpy(&h, p, sizeof h);
    return (f32xn)_mm256_cvtph_ps(h);
#else
    return vec_half_words(vec_words(p));
#endif
}

INLINE float weight_at(weight_type type, const void *row, uint32_t k)
{
    uint16_t h = 0;
    float x;
    if (type == WEIGHT_F32) {
        memcpy(&x, (const uint8_t *)row + 4 * (size_t)k, 4);
        return x;
    }
    memcpy(&h, (const uint8_t *)row + 2 * (size_t)k, 2);
    return type == WEIGHT_F16 ? half_value(h) : float_of((uint32_t)h << 16);
}

INLINE f32xn vec_weights(weight_type type, const void *row, uint32_t k)
{
    if (type == WEIGHT_F32)
        return vec_load((const float *)row + k);
    if (type == WEIGHT_F16)
        return vec_half((const uint16_t *)row + k);
    return (f32xn)(vec_words((const uint16_t *)row + k) << 16);
}

/* ---- functions ---- */

/* 2^n of whole n in [-252, 254], by two factors that are never subnormal or infinite. */
INLINE f32xn vec_scaled(f32xn x, i32xn n)
{
    i32xn low = n >> 1, high = n - low;
    return x * (f32xn)((low + 127) << 23) * (f32xn)((high + 127) << 23);
}

/* 2^x of |x| <= 1/2, to 1e-7. */
INLINE f32xn vec_exp2_near(f32xn x)
{
    f32xn p = vec_all(1.535336188319500e-4f);
    p = p * x + 1.339887440266574e-3f;
    p = p * x + 9.618437357674640e-3f;
    p = p * x + 5.550332471162809e-2f;
    p = p * x + 2.402264791363012e-1f;
    p = p * x + 6.931472028550421e-1f;
    return p * x + 1.0f;
}

INLINE f32xn vec_clamped(f32xn x, float low, float high)
{
    i32xn below = x<low, above = x> high; /* NaN is neither */
    i32xn bits = ((i32xn)x & ~(below | above)) | ((i32xn)vec_all(low) & below) |
                 ((i32xn)vec_all(high) & above);
    return (f32xn)bits;
}

INLINE f32xn vec_exp2(f32xn x)
{
    x = vec_clamped(x, -152.0f, 129.0f);
    f32xn shifted = x + 12582912.0f; /* 1.5 * 2^23: what is left of x is whole */
    i32xn n = (i32xn)shifted - 0x4b400000;
    /* NaN has no whole part; its own stays. */
    n &= (i32xn)(x == x);
    return vec_scaled(vec_exp2_near(x - (shifted - 12582912.0f)), n);
}

INLINE f32xn vec_exp(f32xn x)
{
    x = vec_clamped(x, -105.0f, 89.0f);
    f32xn shifted = x * 1.44269504f + 12582912.0f;
    f32xn whole = shifted - 12582912.0f;
    i32xn n = ((i32xn)shifted - 0x4b400000) & (i32xn)(x == x);
    f32xn r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    f32xn p = vec_all(1.9875691500e-4f);
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    return vec_scaled(p * r * r + r + 1.0f, n);
}

INLINE f32xn vec_sigmoid(f32xn x)
{
    f32xn e = vec_exp((f32xn)((i32xn)x | (i32xn)vec_all(-0.0f))); /* of -|x| */
    f32xn s = 1.0f / (1.0f + e);
    i32xn positive = x >= 0.0f;
    return (f32xn)(((i32xn)s & positive) | ((i32xn)(e * s) & ~positive));
}

INLINE f32xn vec_silu(f32xn x)
{
    return x * vec_sigmoid(x);
}

/* ---- blocks.c ---- */

/* Columns first .. first + cols - 1, multiples of 32, of a row of `all` columns. Those of the row
 * that begins `ahead` bytes later are fetched into the cache. */
void KERNEL(blocks)(ful_type type, const void *row, uint32_t all, uint32_t first, uint32_t cols,
                    size_t ahead, float *out);
/* As product() below, for at most 4 rows of x. */
void KERNEL(blocks_few)(const float *const *x, uint32_t rows, ful_type type, const void *w,
                        size_t stride, uint32_t count, uint32_t cols, float *out);

/* ---- products, product.c ---- */

enum { PRODUCT_ROWS = 16, PRODUCT_WEIGHTS = 128 };

/* out[n][r] = sum_k x[r][k] * w[n][k] for `rows` <= PRODUCT_ROWS rows, n < count; weight rows
 * `stride` bytes apart. out has PRODUCT_ROWS columns, those from `rows` on are undefined. */
void KERNEL(product)(const float *const *x, uint32_t rows, weight_type type, const void *w,
                     size_t stride, uint32_t count, uint32_t cols, float *out);

/* ---- the kernels ---- */
#define DECLARE(name)                                                                              \
    void KERNEL(name)(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z)
#define DECLARE_TYPES(name)                                                                        \
    DECLARE(name##_f32);                                                                           \
    DECLARE(name##_f16);                                                                           \
    DECLARE(name##_bf16)
#define DECLARE_ALL(name)                                                                          \
    DECLARE_TYPES(name);                                                                           \
    DECLARE(name##_quant)
DECLARE_ALL(embed);
DECLARE(rmsnorm);
DECLARE(gated_norm);
DECLARE_ALL(matvec);
DECLARE(moe_route_narrow);
DECLARE(moe_route_wide);
DECLARE(moe_count);
DECLARE(moe_sort);
DECLARE_ALL(moe_matvec);
DECLARE_ALL(moe_route_up);
DECLARE(moe_combine);
DECLARE(lightning_scores);
DECLARE(lightning_walk);
DECLARE(lightning_decode);
DECLARE(rope_append);
DECLARE(rope_append_f16);
DECLARE(attention);
DECLARE(attention_f16);
DECLARE(attention_merge);
DECLARE(sample);
DECLARE_TYPES(synthesize);
DECLARE(synthesize_quant);
DECLARE(measure_copy);
DECLARE(measure_read);
DECLARE(measure_write);
DECLARE(measure_rate_f32);

#endif
