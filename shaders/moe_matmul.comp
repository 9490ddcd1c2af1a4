// Expert matrices times many rows, in tiles of BM weight rows x BN pairs of one expert:
//
//   MODE 0  h[s][i] = SiLU(w13[2i] . x) * (w13[2i+1] . x)   s = sorted index of the pair, x its row
//   MODE 1  d[p][n] = w2[n] . h[s]                          p = the pair
//
// x: MODE 0 [rows][x_stride], MODE 1 [pairs][x_stride]; f32, or with HALF packed halves and a scale a
// row. w: one window of [experts][rows][cols]. lists: tiles and sorted pairs from moe_sort. Groups
// (x, y): tile within the window, block of BM weight rows.
//
// WG = (BM / TM) * (BN / TN) invocations, each with TM x TN sums in f32. Per step BK columns of both
// sides go through shared memory, transposed. HALF: the shared tiles are pairs of halves along k;
// weight rows are multiplied by row_scale first where the tensor has one, undone at the end.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint TM = 4;
layout(constant_id = 4) const uint TN = 8;
layout(constant_id = 5) const uint BK = 16;
layout(constant_id = 6) const uint MODE = 0;
layout(constant_id = 7) const uint ROW_SCALE = 0;

#ifdef WEIGHT_BLOCKS
layout(std430, binding = 1) readonly buffer W1 { uint w1[]; };
layout(std430, binding = 1) readonly buffer W2 { uvec2 w2[]; };
layout(std430, binding = 1) readonly buffer W4 { uvec4 w4[]; };
#define BLOCK_TYPE_ID 8
#include "inc/blocks.glsl"
#else
layout(std430, binding = 1) readonly buffer W { uvec4 w[]; };
#endif
layout(std430, binding = 2) readonly buffer Lists { uint lists[]; };
layout(std430, binding = 3) writeonly buffer Out { float outputs[]; };
#ifdef HALF
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 4) readonly buffer XScale { float x_scale[]; };
layout(std430, binding = 5) readonly buffer WScale { float w_scale[]; };
#define CELL uint
const uint PER_CELL = 2u; // columns in one cell of a shared tile
#else
layout(std430, binding = 0) readonly buffer X { float x[]; };
#define CELL float
const uint PER_CELL = 1u;
#endif

layout(push_constant) uniform Push {
    uint row0;
    uint row_cap;
    uint top_k;
    uint experts;
    uint window_expert;
    uint window_experts;
    uint window_row;
    uint window_rows;
    uint cols;
    uint row_uvec4;
    uint x_stride;
    uint out_stride;
    uint rows; // of one expert, for w_scale
} push;

// One word of padding a line keeps transposed stores off a single bank.
const uint LINE_W = BM + 1u;
const uint LINE_X = BN + 1u;
const uint LINES = BK / PER_CELL;
shared CELL tile_w[LINES * LINE_W];
shared CELL tile_x[LINES * LINE_X];
shared uint x_row[BN];

#ifndef WEIGHT_BLOCKS
void unpack(uvec4 words, out float values[8])
{
#ifdef WEIGHT_F32
    vec4 four = unpack_weights4(words);
    values = float[8](four.x, four.y, four.z, four.w, 0.0, 0.0, 0.0, 0.0);
#else
    vec4 low = unpack_weights_low(words), high = unpack_weights_high(words);
    values = float[8](low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w);
#endif
}
#endif

void main()
{
#ifdef WEIGHT_BLOCKS
    blocks_begin(push.cols);
#endif
    uint me = gl_LocalInvocationID.x;
    uint tile = lists[push.window_expert] + gl_WorkGroupID.x;
    if (tile >= lists[push.window_expert + push.window_experts])
        return;
    uint word = tiles_at(push.experts, push.row_cap * push.top_k) + tile * TILE_WORDS;
    uint expert = lists[word];
    uint first = lists[word + 1u];
    uint count = lists[word + 2u];
    uint block_row = gl_WorkGroupID.y * BM; // of the window
    uint window_base = (expert - push.window_expert) * push.window_rows;
    for (uint j = me; j < BN; j += WG) {
        uint at = first + min(j, count - 1u);
        x_row[j] = MODE == 0u ? lists[sorted_at(push.experts) + at] / push.top_k : at;
    }
    barrier();

    float sums[TM * TN];
    [[unroll]] for (uint i = 0u; i < TM * TN; i++)
        sums[i] = 0.0;
    uint my_row = (me % (BM / TM)) * TM, my_x = (me / (BM / TM)) * TN;
    const uint W_CHUNKS = BK / WEIGHTS_PER_UVEC4; // uvec4 a weight row and step

    for (uint k0 = 0u; k0 < push.cols; k0 += BK) {
        for (uint i = me; i < BM * W_CHUNKS; i += WG) {
            uint row = i / W_CHUNKS, chunk = i % W_CHUNKS;
            uint k = k0 + chunk * WEIGHTS_PER_UVEC4;
            uint from = min(block_row + row, push.window_rows - 1u);
            float values[8];
#ifdef WEIGHT_BLOCKS
            vec4 low = vec4(0.0), high = vec4(0.0);
            if (k < push.cols)
                blocks8((window_base + from) * push.row_uvec4, k / 8u, low, high);
            values = float[8](low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w);
#else
            uvec4 words = uvec4(0u);
            if (k < push.cols)
                words = w[(window_base + from) * push.row_uvec4 + k / WEIGHTS_PER_UVEC4];
            unpack(words, values);
#endif
            // Whatever pads the row to 16 bytes must not count.
            if (k + WEIGHTS_PER_UVEC4 > push.cols) {
                [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t++)
                    values[t] = k + t < push.cols ? values[t] : 0.0;
            }
#ifdef HALF
            if (ROW_SCALE != 0u) {
                float scale = w_scale[expert * push.rows + push.window_row + from];
                [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t++)
                    values[t] *= scale;
            }
            uint line = chunk * (WEIGHTS_PER_UVEC4 / 2u);
            [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4 / 2u; t++)
                tile_w[(line + t) * LINE_W + row] =
                    packHalf2x16(vec2(values[2u * t], values[2u * t + 1u]));
#else
            uint line = chunk * WEIGHTS_PER_UVEC4;
            [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t++)
                tile_w[(line + t) * LINE_W + row] = values[t];
#endif
        }
        for (uint i = me; i < BN * LINES; i += WG) {
            uint j = i / LINES, line = i % LINES;
            uint k = k0 + line * PER_CELL;
            CELL cell = CELL(0);
#ifdef HALF
            // Rows begin at even elements; the half after the last column is cut off.
            if (k < push.cols)
                cell = x[(x_row[j] * push.x_stride + k) >> 1];
            if (k + 1u >= push.cols)
                cell &= 0xffffu;
#else
            if (k < push.cols)
                cell = x[x_row[j] * push.x_stride + k];
#endif
            tile_x[line * LINE_X + j] = cell;
        }
        barrier();
        [[unroll]] for (uint line = 0u; line < LINES; line++) {
#ifdef HALF
            vec2 a[TM];
            [[unroll]] for (uint i = 0u; i < TM; i++)
                a[i] = unpackHalf2x16(tile_w[line * LINE_W + my_row + i]);
            [[unroll]] for (uint j = 0u; j < TN; j++) {
                vec2 b = unpackHalf2x16(tile_x[line * LINE_X + my_x + j]);
                [[unroll]] for (uint i = 0u; i < TM; i++) {
                    sums[j * TM + i] += a[i].x * b.x;
                    sums[j * TM + i] += a[i].y * b.y;
                }
            }
#else
            float a[TM];
            [[unroll]] for (uint i = 0u; i < TM; i++)
                a[i] = tile_w[line * LINE_W + my_row + i];
            [[unroll]] for (uint j = 0u; j < TN; j++) {
                float b = tile_x[line * LINE_X + my_x + j];
                [[unroll]] for (uint i = 0u; i < TM; i++)
                    sums[j * TM + i] += a[i] * b;
            }
#endif
        }
        barrier();
    }

    float undo[TM];
    [[unroll]] for (uint i = 0u; i < TM; i++) {
        undo[i] = 1.0;
#ifdef HALF
        if (ROW_SCALE != 0u) {
            uint from = min(block_row + my_row + i, push.window_rows - 1u);
            undo[i] = 1.0 / w_scale[expert * push.rows + push.window_row + from];
        }
#endif
    }
    [[unroll]] for (uint j = 0u; j < TN; j++) {
        uint slot = my_x + j;
        if (slot >= count)
            continue;
        float scale = 1.0;
#ifdef HALF
        scale = x_scale[x_row[slot]];
#endif
        uint out_row = MODE == 0u ? first + slot : lists[sorted_at(push.experts) + first + slot];
        uint at = out_row * push.out_stride;
        [[unroll]] for (uint i = 0u; i < TM; i += 2u) {
            uint row = block_row + my_row + i;
            // Scales one after the other: their product may leave f32's range.
            float a = sums[j * TM + i] * undo[i] * scale;
            float b = sums[j * TM + i + 1u] * undo[i + 1u] * scale;
            if (MODE == 0u) {
                if (row < push.window_rows)
                    outputs[at + (push.window_row + row) / 2u] = silu(a) * b;
            } else {
                if (row < push.window_rows)
                    outputs[at + push.window_row + row] = a;
                if (row + 1u < push.window_rows)
                    outputs[at + push.window_row + row + 1u] = b;
            }
        }
    }
}
