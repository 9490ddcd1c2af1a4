// Tiled matrix product: out[r][n] = act(sum_k x[r][k] * w[n][k]).
//
// x f32 [rows][x_stride], or (HALF) halves with a power-of-two scale a row; w [w_rows][cols] of one
// window; out f32 [rows][out_stride]. A workgroup of WG = (BM / TM) * (BN / TN) invocations makes a tile of
// BM rows by BN weight rows, each invocation TM x TN of it in registers; k advances by BK through shared
// memory, f32 or (HALF) f16 there, sums in f32. HALF: weight rows outside fp16's range are multiplied by
// their power of two w_scale[n] on the way in (W_SCALE), undone in the epilogue with the row's scale.
// ACT as in matvec.comp. Where tiles are too few to fill a device the columns are split in `splits` parts
// side by side in the line of groups, each to its own result; matmul_reduce.comp adds them.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#if defined(HALF)
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#endif
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 16; // multiple of 8
layout(constant_id = 4) const uint TM = 8;  // multiple of 4
layout(constant_id = 5) const uint TN = 4;  // multiple of 4
layout(constant_id = 6) const uint ACT = 0;
layout(constant_id = 7) const uint VEC = 1;     // cols a multiple of 8, x rows aligned to 16 bytes
layout(constant_id = 8) const uint W_SCALE = 0; // HALF only
#define BLOCK_TYPE_ID 9

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; x and out begin at row0
    uint fixed_rows;      // not 0: n_rows is not read
    uint cols;
    uint x_stride, out_stride;
    uint w_rows;   // weight rows in this window
    uint w_row0;   // the first one's number
    uint w_stride; // in uvec4
    uint split;
    uint splits;       // parts of the columns
    uint split_stride; // floats from one part's result to the next
}
p;

layout(set = 0, binding = 0) readonly buffer x4_block
{
    uvec4 x4[];
};
layout(set = 0, binding = 0) readonly buffer x2_block
{
    uvec2 x2[];
};
layout(set = 0, binding = 0) readonly buffer x1_block
{
    uint x1[];
};
layout(set = 0, binding = 1) readonly buffer w4_block
{
    uvec4 w4[];
};
layout(set = 0, binding = 1) readonly buffer w2_block
{
    uvec2 w2[];
};
layout(set = 0, binding = 1) readonly buffer w1_block
{
    uint w1[];
};
layout(set = 0, binding = 2) writeonly buffer out_block
{
    float result[];
};
#if defined(WEIGHT_BLOCKS)
#include "inc/blocks.glsl"
#endif

#if defined(HALF)
layout(set = 0, binding = 3) readonly buffer scale_block
{
    float scale[];
};
layout(set = 0, binding = 4) readonly buffer w_scale_block
{
    float w_scale[]; // of all weight rows
};
#define TILE4 f16vec4
#else
#define TILE4 vec4
#endif

// [k][row / 4]: an invocation reads four neighbouring rows at once. The extra column spreads the
// stores over the banks.
const uint XS = BM / 4u + 1u;
const uint WS = BN / 4u + 1u;
// Columns of a row that an invocation loads at once. Small tiles are for devices with few registers.
const uint LOADED = TM == 4u ? 4u : 8u;
shared TILE4 x_tile[BK * XS];
shared TILE4 w_tile[BK * WS];

float x_single(uint r, uint k)
{
    uint i = r * p.x_stride + k;
#if defined(HALF)
    vec2 pair = unpackHalf2x16(x1[i / 2u]);
    return (i & 1u) == 0u ? pair.x : pair.y;
#else
    return uintBitsToFloat(x1[i]);
#endif
}

// x[r][k .. k+LOADED-1]; zeros outside.
void load_x(uint r, uint rows, uint k, out vec4 low, out vec4 high)
{
    low = vec4(0.0);
    high = vec4(0.0);
    if (r >= rows)
        return;
    if (VEC != 0u) {
        if (k >= p.cols)
            return;
        uint i = r * p.x_stride + k;
#if defined(HALF)
        uvec4 words = LOADED == 4u ? uvec4(x2[i / 4u], 0u, 0u) : x4[i / 8u];
        low = vec4(unpackHalf2x16(words.x), unpackHalf2x16(words.y));
        high = vec4(unpackHalf2x16(words.z), unpackHalf2x16(words.w));
#else
        low = uintBitsToFloat(x4[i / 4u]);
        if (LOADED == 8u)
            high = uintBitsToFloat(x4[i / 4u + 1u]);
#endif
        return;
    }
    for (uint j = 0u; j < 4u; j++) {
        if (k + j < p.cols)
            low[j] = x_single(r, k + j);
        if (LOADED == 8u && k + 4u + j < p.cols)
            high[j] = x_single(r, k + 4u + j);
    }
}

#if !defined(WEIGHT_BLOCKS)
float w_single(uint n, uint k)
{
    uint word = w1[n * p.w_stride * 4u + k / WEIGHTS_PER_WORD];
#if defined(WEIGHT_F32)
    return uintBitsToFloat(word);
#else
    vec2 pair = unpack_weights(word);
    return (k & 1u) == 0u ? pair.x : pair.y;
#endif
}
#endif

void load_w(uint n, uint k, out vec4 low, out vec4 high)
{
    low = vec4(0.0);
    high = vec4(0.0);
    if (n >= p.w_rows)
        return;
#if defined(WEIGHT_BLOCKS)
    if (k >= p.cols)
        return;
    blocks8(n * p.w_stride, k / 8u, low, high);
    if (LOADED == 4u && (k & 4u) != 0u)
        low = high;
#else
    if (VEC != 0u) {
        if (k >= p.cols)
            return;
#if defined(WEIGHT_F32)
        low = unpack_weights4(w4[n * p.w_stride + k / 4u]);
        if (LOADED == 8u)
            high = unpack_weights4(w4[n * p.w_stride + k / 4u + 1u]);
#else
        uvec4 words = LOADED == 4u ? uvec4(w2[n * p.w_stride * 2u + k / 4u], 0u, 0u)
                                   : w4[n * p.w_stride + k / 8u];
        low = unpack_weights_low(words);
        high = unpack_weights_high(words);
#endif
    } else {
        for (uint j = 0u; j < 4u; j++) {
            if (k + j < p.cols)
                low[j] = w_single(n, k + j);
            if (LOADED == 8u && k + 4u + j < p.cols)
                high[j] = w_single(n, k + 4u + j);
        }
    }
#endif
#if defined(HALF)
    if (W_SCALE != 0u) {
        float s = w_scale[p.w_row0 + n];
        low *= s;
        high *= s;
    }
#endif
}

void main()
{
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.cols);
#endif
    uint t = gl_LocalInvocationID.x;
    uint m0 = row_group() * BM;
    uint blocks = (p.w_rows + BN - 1u) / BN;
    uint n0 = line_group() % blocks * BN;
    uint part = line_group() / blocks;
    uint rows = p.row_count;
    if (p.fixed_rows == 0u)
        rows = min(rows, step.n_rows > p.row0 ? step.n_rows - p.row0 : 0u);
    if (m0 >= rows || part >= p.splits)
        return; // the whole workgroup
    uint each = (p.cols + p.splits * BK - 1u) / (p.splits * BK) * BK;
    uint k_end = min(p.cols, (part + 1u) * each);
    uint tm = (t / (BN / TN)) * TM;
    uint tn = (t % (BN / TN)) * TN;

    vec4 acc[TM * (TN / 4u)];
    for (uint i = 0u; i < TM * (TN / 4u); i++)
        acc[i] = vec4(0.0);

    for (uint k0 = part * each; k0 < k_end; k0 += BK) {
        // Four rows by LOADED k at a time, turned so that rows are neighbours.
        for (uint i = t; i < (BM / 4u) * (BK / LOADED); i += WG) {
            uint m = i % (BM / 4u);
            uint k = (i / (BM / 4u)) * LOADED;
            vec4 l0, l1, l2, l3, h0, h1, h2, h3;
            load_x(m0 + 4u * m, rows, k0 + k, l0, h0);
            load_x(m0 + 4u * m + 1u, rows, k0 + k, l1, h1);
            load_x(m0 + 4u * m + 2u, rows, k0 + k, l2, h2);
            load_x(m0 + 4u * m + 3u, rows, k0 + k, l3, h3);
            for (uint j = 0u; j < 4u; j++) {
                x_tile[(k + j) * XS + m] = TILE4(l0[j], l1[j], l2[j], l3[j]);
                if (LOADED == 8u)
                    x_tile[(k + 4u + j) * XS + m] = TILE4(h0[j], h1[j], h2[j], h3[j]);
            }
        }
        for (uint i = t; i < (BN / 4u) * (BK / LOADED); i += WG) {
            uint n = i % (BN / 4u);
            uint k = (i / (BN / 4u)) * LOADED;
            vec4 l0, l1, l2, l3, h0, h1, h2, h3;
            load_w(n0 + 4u * n, k0 + k, l0, h0);
            load_w(n0 + 4u * n + 1u, k0 + k, l1, h1);
            load_w(n0 + 4u * n + 2u, k0 + k, l2, h2);
            load_w(n0 + 4u * n + 3u, k0 + k, l3, h3);
            for (uint j = 0u; j < 4u; j++) {
                w_tile[(k + j) * WS + n] = TILE4(l0[j], l1[j], l2[j], l3[j]);
                if (LOADED == 8u)
                    w_tile[(k + 4u + j) * WS + n] = TILE4(h0[j], h1[j], h2[j], h3[j]);
            }
        }
        barrier();
        for (uint k = 0u; k < BK; k++) {
            vec4 b[TN / 4u];
            for (uint j = 0u; j < TN / 4u; j++)
                b[j] = vec4(w_tile[k * WS + tn / 4u + j]);
            for (uint i = 0u; i < TM / 4u; i++) {
                vec4 a = vec4(x_tile[k * XS + tm / 4u + i]);
                for (uint j = 0u; j < TN / 4u; j++) {
                    acc[(4u * i) * (TN / 4u) + j] += a.x * b[j];
                    acc[(4u * i + 1u) * (TN / 4u) + j] += a.y * b[j];
                    acc[(4u * i + 2u) * (TN / 4u) + j] += a.z * b[j];
                    acc[(4u * i + 3u) * (TN / 4u) + j] += a.w * b[j];
                }
            }
        }
        barrier();
    }

    for (uint j = 0u; j < TN / 4u; j++) {
        uint n = n0 + tn + 4u * j;
        vec4 unscale = vec4(1.0);
#if defined(HALF)
        if (W_SCALE != 0u)
            for (uint c = 0u; c < 4u; c++)
                if (n + c < p.w_rows)
                    unscale[c] = 1.0 / w_scale[p.w_row0 + n + c];
#endif
        for (uint i = 0u; i < TM; i++) {
            uint r = m0 + tm + i;
            if (r >= rows)
                break;
            vec4 y = acc[i * (TN / 4u) + j];
#if defined(HALF)
            y = y * scale[p.row0 + r] * unscale;
#endif
            uint out0 = part * p.split_stride + r * p.out_stride;
            if (ACT == 2u) {
                for (uint c = 0u; c < 4u; c += 2u)
                    if (n + c < p.w_rows)
                        result[out0 + (p.w_row0 + n + c) / 2u] = silu(y[c]) * y[c + 1u];
            } else {
                for (uint c = 0u; c < 4u; c++) {
                    uint column = p.w_row0 + n + c;
                    float v = y[c];
                    if (ACT == 1u) {
                        float g = sigmoid(v);
                        v = column < p.split ? v * g : g;
                    }
                    if (n + c < p.w_rows)
                        result[out0 + column] = v;
                }
            }
        }
    }
}
