/* synthesize.comp, measure_memory.comp and measure_rate.comp (F32), with their formulas. */
#include "cpu/kernels/simd.h"

/* ---- synthesize ---- */

typedef struct random_push {
    uint32_t first_row, rows, row_quads, key0, key1;
    float base, spread;
} random_push;

INLINE uint32_t mix_bits(uint32_t x)
{
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    return x ^ x >> 15;
}

INLINE float random_value(const random_push *p, uint32_t bits)
{
    return p->base + p->spread * (((float)bits + 0.5f) / 32768.0f - 1.0f);
}

INLINE uint32_t random_pair(uint32_t key, uint32_t i)
{
    return mix_bits(key ^ mix_bits(i + 0x9e3779b9u));
}

INLINE uint32_t bf16_of(float x)
{
    uint32_t bits = bits_of(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}

INLINE uint32_t random_word(const random_push *p, uint32_t key, uint32_t i, weight_type type)
{
    if (type == WEIGHT_F32) {
        uint32_t bits = random_pair(key, i / 2);
        return bits_of(random_value(p, i % 2 == 0 ? bits & 0xffffu : bits >> 16));
    }
    uint32_t bits = random_pair(key, i);
    float low = random_value(p, bits & 0xffffu), high = random_value(p, bits >> 16);
    if (type == WEIGHT_F16)
        return half_of(low) | (uint32_t)half_of(high) << 16;
    return bf16_of(low) | bf16_of(high) << 16;
}

INLINE void synthesize(const cpu_call *c, uint64_t line, uint64_t count, weight_type type)
{
    const random_push *p = c->push;
    uint64_t wg = c->constant[0], end = (line + count) * wg;
    uint64_t quads = (uint64_t)p->rows * p->row_quads;
    for (uint64_t i = line * wg; i < (end < quads ? end : quads); i++) {
        uint32_t row = (uint32_t)(i / p->row_quads), first = (uint32_t)(i % p->row_quads) * 4;
        uint32_t key = mix_bits(p->key0 ^ mix_bits(p->key1 ^ mix_bits(p->first_row + row)));
        uint32_t *out = (uint32_t *)c->buffer[0] + 4 * i;
        for (uint32_t k = 0; k < 4; k++)
            out[k] = random_word(p, key, first + k, type);
    }
}

typedef struct random_blocks_push {
    uint32_t first_row, rows, row_quads, key0, key1;
    uint32_t scales_quad, period, first, other, other_random;
} random_blocks_push;

DECLARE(synthesize_quant)
{
    const random_blocks_push *p = c->push;
    uint64_t wg = c->constant[0], end = (line + count) * wg;
    uint64_t quads = (uint64_t)p->rows * p->row_quads;
    (void)z;
    for (uint64_t i = line * wg; i < (end < quads ? end : quads); i++) {
        uint32_t row = (uint32_t)(i / p->row_quads), first = (uint32_t)(i % p->row_quads) * 4;
        uint32_t key = mix_bits(p->key0 ^ mix_bits(p->key1 ^ mix_bits(p->first_row + row)));
        uint32_t *out = (uint32_t *)c->buffer[0] + 4 * i;
        for (uint32_t k = 0; k < 4; k++) {
            uint32_t word = first + k, scale = word - 4 * p->scales_quad;
            bool bits = word < 4 * p->scales_quad || (scale % p->period != 0 && p->other_random);
            out[k] = bits ? random_pair(key, word) : scale % p->period == 0 ? p->first : p->other;
        }
    }
}

#define SYNTHESIZE(suffix, type)                                                                   \
    DECLARE(synthesize_##suffix)                                                                   \
    {                                                                                              \
        (void)z;                                                                                   \
        synthesize(c, line, count, type);                                                          \
    }
SYNTHESIZE(f32, WEIGHT_F32)
SYNTHESIZE(f16, WEIGHT_F16)
SYNTHESIZE(bf16, WEIGHT_BF16)

/* ---- measuring ---- */

/* Bytes of groups line .. line + count - 1: *first and how many. */
INLINE size_t measured_bytes(const cpu_call *c, uint64_t line, uint64_t count, size_t *first)
{
    uint64_t group = (uint64_t)c->constant[0] * c->constant[1], all = *(const uint32_t *)c->push;
    uint64_t begin = line * group, end = (line + count) * group;
    begin = begin < all ? begin : all;
    end = end < all ? end : all;
    *first = (size_t)begin * 16;
    return (size_t)(end - begin) * 16;
}

DECLARE(measure_copy)
{
    size_t first, bytes = measured_bytes(c, line, count, &first);
    (void)z;
    memcpy((char *)c->buffer[1] + first, (const char *)c->buffer[0] + first, bytes);
}

DECLARE(measure_read)
{
    size_t first, bytes = measured_bytes(c, line, count, &first);
    const float *from = (const float *)(const void *)((const char *)c->buffer[0] + first);
    u32xn sum[4] = {{0}};
    (void)z;
    size_t i = 0;
    for (; i + 4 * LANES <= bytes / 4; i += 4 * LANES)
        UNROLL for (uint32_t k = 0; k < 4; k++) sum[k] += (u32xn)vec_load(from + i + k * LANES);
    sum[0] += sum[1] + sum[2] + sum[3];
    if (sum[0][0] == 0x9e3779b9u && sum[0][1] == 0x7f4a7c15u && sum[0][2] == 0xf39cc060u)
        memcpy(c->buffer[1], &sum[0], sizeof sum[0]);
}

DECLARE(measure_write)
{
    size_t first, bytes = measured_bytes(c, line, count, &first);
    uint32_t *to = (uint32_t *)(void *)((char *)c->buffer[0] + first);
    (void)z;
    for (size_t i = 0; i < bytes / 4; i++)
        to[i] = (uint32_t)((first / 4 + i) / 4);
}

typedef struct rate_push {
    uint32_t loops;
    float seed;
} rate_push;

DECLARE(measure_rate_f32)
{
    enum { CHAINS = 8, VECTOR = 4 };
    const rate_push *p = c->push;
    float *result = c->buffer[0];
    (void)z;
    for (uint64_t i = line; i < line + count; i++) {
        float sum = 0.0f;
        /* Of the group's invocations, as many vectors of them as there are. */
        for (uint32_t n = 0; n < c->constant[0] * VECTOR / LANES; n++) {
            f32xn a = vec_all(0.5f + p->seed), b = vec_all(0.5f + p->seed), chain[CHAINS];
            UNROLL for (uint32_t k = 0; k < CHAINS; k++) chain[k] = vec_all(p->seed);
            for (uint32_t loop = 0; loop < p->loops; loop++)
                UNROLL for (uint32_t k = 0; k < CHAINS; k++) chain[k] = chain[k] * a + b;
            sum = 0.0f;
            UNROLL for (uint32_t k = 0; k < CHAINS; k++) sum += vec_sum(chain[k]) * VECTOR / LANES;
        }
        result[i] = sum;
    }
}
