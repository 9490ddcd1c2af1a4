// Weights out of nothing: element (r, c) of a tensor is a pseudo-random number that depends on the
// seed, the tensor's number, r and c only, however the tensor is cut into windows:
//     w = base + spread * u,   u uniform in (-1, 1), 16 bits of hash(key(seed, tensor, r), c)
//
// WEIGHT_BLOCKS: rows of the planes that types of blocks have on the device. The bits of elements are
// random bits; of the words of scales, word i is `first` where i is a multiple of `period`, else random
// bits or `other`.
//
// out [rows of this window][row_quads] of four words each, of the type WEIGHT_* says; the same
// numbers come out for every type, but for its rounding. Elements between the last column and the
// end of a row are random, too. One invocation four words.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 64;

layout(push_constant) uniform push_block
{
    uint first_row; // of the window, counted through all experts
    uint rows;
    uint row_quads;
    uint key0, key1; // seed and tensor
#if defined(WEIGHT_BLOCKS)
    uint scales_quad; // where they begin in a row
    uint period;
    uint first, other;
    uint other_random; // not 0: random bits
#else
    float base, spread;
#endif
}
p;

layout(set = 0, binding = 0) writeonly buffer out_block
{
    uvec4 result[];
};

// Every bit of x reaches every bit of the result.
uint mix_bits(uint x)
{
    x ^= x >> 16;
    x *= 0x21f0aaadu;
    x ^= x >> 15;
    x *= 0x735a2d97u;
    return x ^ (x >> 15);
}

#if !defined(WEIGHT_BLOCKS)
float value(uint bits)
{
    return p.base + p.spread * ((float(bits) + 0.5) / 32768.0 - 1.0);
}
#endif

#if defined(WEIGHT_BF16)
// Rounded to the nearest, ties to even. Weights are finite.
uint bf16(float x)
{
    uint bits = floatBitsToUint(x);
    return (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
}
#endif

// The word that holds elements 2i and 2i+1 of the row, or in f32 one of them.
uint pair(uint key, uint i)
{
    return mix_bits(key ^ mix_bits(i + 0x9e3779b9u));
}

uint word(uint key, uint i)
{
#if defined(WEIGHT_BLOCKS)
    uint bits = pair(key, i);
    if (i < 4u * p.scales_quad)
        return bits;
    if ((i - 4u * p.scales_quad) % p.period == 0u)
        return p.first;
    return p.other_random != 0u ? bits : p.other;
#elif defined(WEIGHT_F32)
    uint bits = pair(key, i / 2u);
    return floatBitsToUint(value((i & 1u) == 0u ? bits & 0xffffu : bits >> 16));
#else
    uint bits = pair(key, i);
    float low = value(bits & 0xffffu), high = value(bits >> 16);
#if defined(WEIGHT_F16)
    return packHalf2x16(vec2(low, high));
#else
    return bf16(low) | bf16(high) << 16;
#endif
#endif
}

void main()
{
    uint at = line_group() * WG + gl_LocalInvocationID.x;
    uint row = at / p.row_quads;
    if (row >= p.rows)
        return;
    uint column = at % p.row_quads * 4u;
    uint key = mix_bits(p.key0 ^ mix_bits(p.key1 ^ mix_bits(p.first_row + row)));
    result[at] = uvec4(word(key, column), word(key, column + 1u), word(key, column + 2u),
                       word(key, column + 3u));
}
