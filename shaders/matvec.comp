// Matrix-vector products for few rows: out[r][n] = act(sum_k x[r][k] * w[n][k]).
//
// x f32 [rows][x_stride], or halves with a scale a row (X_HALF); w [row_count][cols] of one window;
// out f32 [rows][out_stride]. An invocation has COLS weight rows and holds ROWS rows of x at a time:
// every weight is loaded once for ROWS rows. Nothing is shared, there is no barrier, and every
// invocation reads the same x: what drivers that run on the processor do best (matvec_wide.comp is for
// the others). Reduced over k: eight at a time, then in order.
// ACT 0: none. 1: SiLU below column `split`, sigmoid from there on. 2: weight rows 2i, 2i+1 give
// out[r][i] = SiLU(even) * odd.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint ROWS = 1;
layout(constant_id = 2) const uint COLS = 2; // even where ACT is 2
layout(constant_id = 3) const uint ACT = 0;
layout(constant_id = 4) const uint X_HALF = 0;
layout(constant_id = 5) const uint X_VEC = 1; // x_stride is a multiple of 4 (halves: 8)

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
}
p;

layout(set = 0, binding = 0) readonly buffer x4_block
{
    uvec4 x4[];
};
layout(set = 0, binding = 0) readonly buffer x1_block
{
    uint x1[];
};
layout(set = 0, binding = 1) readonly buffer w4_block
{
    uvec4 w4[];
};
layout(set = 0, binding = 1) readonly buffer w1_block
{
    uint w1[];
};
#if defined(WEIGHT_BLOCKS)
layout(set = 0, binding = 1) readonly buffer w2_block
{
    uvec2 w2[];
};
#define BLOCK_TYPE_ID 6
#include "inc/blocks.glsl"
#endif
layout(set = 0, binding = 2) writeonly buffer out_block
{
    float result[];
};
layout(set = 0, binding = 3) readonly buffer scale_block
{
    float scale[]; // X_HALF only
};

const uint ACCS = ROWS * COLS;

// x[r][k .. k+3], k a multiple of 4.
vec4 x_at(uint r, uint k)
{
    uint i = r * p.x_stride + k;
    if (X_HALF != 0u) {
        uvec2 w = (i & 4u) == 0u ? x4[i / 8u].xy : x4[i / 8u].zw;
        return vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
    }
    if (X_VEC != 0u)
        return uintBitsToFloat(x4[i / 4u]);
    return uintBitsToFloat(uvec4(x1[i], x1[i + 1u], x1[i + 2u], x1[i + 3u]));
}

float x_single(uint r, uint k)
{
    uint i = r * p.x_stride + k;
    if (X_HALF != 0u) {
        vec2 pair = unpackHalf2x16(x1[i / 2u]);
        return (i & 1u) == 0u ? pair.x : pair.y;
    }
    return uintBitsToFloat(x1[i]);
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

void main()
{
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.cols);
#endif
    uint line = gl_LocalInvocationID.x;
    uint r0 = row_group() * ROWS;
    uint rows = p.row_count;
    if (p.fixed_rows == 0u)
        rows = min(rows, step.n_rows > p.row0 ? step.n_rows - p.row0 : 0u);
    if (r0 >= rows)
        return; // the whole workgroup

    // Weight row of accumulator c: neighbouring invocations take neighbouring rows, pairs stay together.
    uint n0 = line_group() * WG * COLS;
    uint n[COLS];
    for (uint c = 0u; c < COLS; c++)
        n[c] = ACT == 2u ? n0 + ((c / 2u) * WG + line) * 2u + (c & 1u) : n0 + c * WG + line;
    uint base[COLS]; // clamped, so that every load stays inside
    for (uint c = 0u; c < COLS; c++)
        base[c] = min(n[c], p.w_rows - 1u) * p.w_stride;
    uint row[ROWS];
    for (uint r = 0u; r < ROWS; r++)
        row[r] = min(r0 + r, p.row_count - 1u);

    float acc[ACCS];
    for (uint i = 0u; i < ACCS; i++)
        acc[i] = 0.0;
    uint chunks = p.cols / 8u;
    for (uint k = 0u; k < chunks; k++) {
        vec4 low[COLS];
        vec4 high[COLS];
        for (uint c = 0u; c < COLS; c++) {
#if defined(WEIGHT_F32)
            low[c] = unpack_weights4(w4[base[c] + 2u * k]);
            high[c] = unpack_weights4(w4[base[c] + 2u * k + 1u]);
#elif defined(WEIGHT_BLOCKS)
            blocks8(base[c], k, low[c], high[c]);
#else
            uvec4 words = w4[base[c] + k];
            low[c] = unpack_weights_low(words);
            high[c] = unpack_weights_high(words);
#endif
        }
        for (uint r = 0u; r < ROWS; r++) {
            vec4 u = x_at(row[r], 8u * k);
            vec4 v = x_at(row[r], 8u * k + 4u);
            for (uint c = 0u; c < COLS; c++)
                acc[r * COLS + c] += dot(low[c], u) + dot(high[c], v);
        }
    }
#if !defined(WEIGHT_BLOCKS)
    for (uint k = chunks * 8u; k < p.cols; k++) {
        for (uint r = 0u; r < ROWS; r++) {
            float x = x_single(row[r], k);
            for (uint c = 0u; c < COLS; c++)
                acc[r * COLS + c] += x * w_single(min(n[c], p.w_rows - 1u), k);
        }
    }
#endif

    for (uint r = 0u; r < ROWS; r++) {
        if (r0 + r >= rows)
            break;
        float s = X_HALF != 0u ? scale[p.row0 + r0 + r] : 1.0;
        uint out0 = (r0 + r) * p.out_stride;
        if (ACT == 2u) {
            for (uint c = 0u; c < COLS; c += 2u)
                if (n[c] < p.w_rows)
                    result[out0 + (p.w_row0 + n[c]) / 2u] =
                        silu(acc[r * COLS + c] * s) * (acc[r * COLS + c + 1u] * s);
        } else {
            for (uint c = 0u; c < COLS; c++) {
                float y = acc[r * COLS + c] * s;
                uint column = p.w_row0 + n[c];
                if (ACT == 1u) {
                    float g = sigmoid(y);
                    y = column < p.split ? y * g : g;
                }
                if (n[c] < p.w_rows)
                    result[out0 + column] = y;
            }
        }
    }
}
