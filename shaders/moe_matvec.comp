// Expert matrices times few rows: each invocation holds COUPLES times two adjacent rows of one expert's
// matrix against at most R activation rows routed to it. What a weight costs to load and unpack is shared
// by R rows, what an activation costs by 2 * COUPLES weight rows.
//
//   MODE 0  h[i]   = SiLU(w13[2i] . x) * (w13[2i+1] . x)        x of the pair's row
//   MODE 1  d[p][n] = w2[n] . h                                 one output row a pair
//   MODE 2  z[r][n] = sum_k weight_rk * (w2_e(r,k)[n] . h[r,k]) down and combine at once, R = 1
//
// x: MODE 0 [rows][x_stride] f32, or with X_HALF packed halves and a scale a row; else hidden
// [pairs][width] f32. w: one window of [experts][rows][cols]. Groups (x, y): x names the activation
// rows by SOURCE, y the block of weight rows.
//   SOURCE 0  x = a pair p. The first pair of each expert collects the later ones of its expert; the
//             others leave. Hidden rows lie at their pair's index. (MODE 2: x = a row.)
//   SOURCE 1  x = a tile of moe_sort. Hidden rows lie at their sorted index.
// ROUTE (MODE 0, SOURCE 0, one row): lists holds the row's logits; every workgroup makes the choice that
// moe_route.comp makes, and the first one also writes the routes.
// There is neither shared memory nor a barrier: this is for CPU devices, which load x as a scalar then
// (moe_matvec_wide.comp is for the others). Sums are f32 in a fixed order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"
#include "inc/weights.glsl"
#ifdef ROUTE
#include "inc/route.glsl"
#endif

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint R = 1;
layout(constant_id = 2) const uint MODE = 0;
layout(constant_id = 3) const uint SOURCE = 0;
layout(constant_id = 4) const uint VEC4 = 0; // x_stride is a multiple of 4: f32 x is read by fours
layout(constant_id = 5) const uint COUPLES = 1;
#ifdef ROUTE
layout(constant_id = 6) const uint EXPERTS = 8;
layout(constant_id = 7) const uint TOP_K = 2;
#define BLOCK_TYPE_ID 8
#else
#define BLOCK_TYPE_ID 6
#endif

#ifdef X_HALF
layout(std430, binding = 0) readonly buffer X { uint x[]; };
layout(std430, binding = 4) readonly buffer XScale { float x_scale[]; };
#else
layout(std430, binding = 0) readonly buffer X { float x[]; };
layout(std430, binding = 0) readonly buffer X4 { vec4 x4[]; };
#endif
#ifdef WEIGHT_BLOCKS
layout(std430, binding = 1) readonly buffer W1 { uint w1[]; };
layout(std430, binding = 1) readonly buffer W2 { uvec2 w2[]; };
layout(std430, binding = 1) readonly buffer W4 { uvec4 w4[]; };
#include "inc/blocks.glsl"
#else
layout(std430, binding = 1) readonly buffer W { uvec4 w[]; };
#endif
layout(std430, binding = 2) readonly buffer Lists { uint lists[]; }; // SOURCE 0: the routes
layout(std430, binding = 3) writeonly buffer Out { float outputs[]; };

#ifdef ROUTE
layout(std430, binding = 4) writeonly buffer Routes { uint routes[]; };
#endif

layout(push_constant) uniform Push {
    uint row0;         // first row of this part of the step
    uint row_cap;      // most rows in this part
    uint top_k;
    uint experts;
    uint window_expert; // the window holds experts from here on ...
    uint window_experts;
    uint window_row;  // ... and their rows from here on
    uint window_rows;
    uint cols;
    uint row_uvec4;  // stride of the weight rows
    uint x_stride;
    uint out_stride;
    uint rows; // of one expert
} push;

const uint LINES = 2u * COUPLES;

uint x_at[R];
uint w_at[LINES];
float sums[LINES * R];

float load_x(uint index)
{
#ifdef X_HALF
    vec2 two = unpackHalf2x16(x[index >> 1]);
    return (index & 1u) == 0u ? two.x : two.y;
#else
    return x[index];
#endif
}

// Uvec4 c of a row of weights, or the c-th eight of a row of blocks.
void unpack(uint row, uint c, out float values[8])
{
#ifdef WEIGHT_BLOCKS
    vec4 low, high;
    blocks8(row, c, low, high);
    values = float[8](low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w);
#else
    uvec4 words = w[row + c];
#ifdef WEIGHT_F32
    vec4 four = unpack_weights4(words);
    values = float[8](four.x, four.y, four.z, four.w, 0.0, 0.0, 0.0, 0.0);
#else
    vec4 low = unpack_weights_low(words), high = unpack_weights_high(words);
    values = float[8](low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w);
#endif
#endif
}

void clear()
{
    [[unroll]] for (uint i = 0u; i < LINES * R; i++)
        sums[i] = 0.0;
}

// Sets the sums to the products of the weight rows at w_at with the activation rows at x_at.
void multiply()
{
    clear();
    uint whole = push.cols / WEIGHTS_PER_UVEC4;
    for (uint c = 0u; c < whole; c++) {
        float values[LINES][8];
        [[unroll]] for (uint l = 0u; l < LINES; l++)
            unpack(w_at[l], c, values[l]);
        uint column = c * WEIGHTS_PER_UVEC4;
#ifndef X_HALF
        if (VEC4 != 0u) {
            [[unroll]] for (uint j = 0u; j < R; j++) {
                [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t += 4u) {
                    vec4 four = x4[(x_at[j] + column + t) >> 2];
                    [[unroll]] for (uint l = 0u; l < LINES; l++) {
                        [[unroll]] for (uint i = 0u; i < 4u; i++)
                            sums[l * R + j] += values[l][t + i] * four[i];
                    }
                }
            }
            continue;
        }
#endif
        [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t++) {
            [[unroll]] for (uint j = 0u; j < R; j++) {
                float value = load_x(x_at[j] + column + t);
                [[unroll]] for (uint l = 0u; l < LINES; l++)
                    sums[l * R + j] += values[l][t] * value;
            }
        }
    }
    uint rest = push.cols - whole * WEIGHTS_PER_UVEC4;
    if (rest > 0u) {
        float values[LINES][8];
        [[unroll]] for (uint l = 0u; l < LINES; l++)
            unpack(w_at[l], whole, values[l]);
        uint column = whole * WEIGHTS_PER_UVEC4;
        [[unroll]] for (uint t = 0u; t < WEIGHTS_PER_UVEC4; t++) {
            if (t < rest) {
                [[unroll]] for (uint j = 0u; j < R; j++) {
                    float value = load_x(x_at[j] + column + t);
                    [[unroll]] for (uint l = 0u; l < LINES; l++)
                        sums[l * R + j] += values[l][t] * value;
                }
            }
        }
    }
}

bool in_window(uint expert)
{
    return expert >= push.window_expert && expert - push.window_expert < push.window_experts;
}

#ifdef ROUTE
uint picked[TOP_K];

// Best first, ties to the lowest expert.
void pick()
{
    uint key[EXPERTS];
    for (uint e = 0u; e < EXPERTS; e++)
        key[e] = order_key(uintBitsToFloat(lists[e]));
    for (uint k = 0u; k < TOP_K; k++) {
        uint found = EXPERTS; // the first that comes after the one picked before
        for (uint e = 0u; e < EXPERTS; e++) {
            bool after = k == 0u || before(order_key(uintBitsToFloat(lists[picked[k - 1u]])),
                                           picked[k - 1u], key[e], e);
            if (after && (found == EXPERTS ||
                          before(key[e], e, order_key(uintBitsToFloat(lists[found])), found)))
                found = e;
        }
        picked[k] = found;
    }
}

void routes_store()
{
    uint best = order_key(uintBitsToFloat(lists[picked[0]]));
    float top = key_value(best), sum = 0.0;
    for (uint k = 0u; k < TOP_K; k++)
        sum += exp(key_value(order_key(uintBitsToFloat(lists[picked[k]]))) - top);
    for (uint k = 0u; k < TOP_K; k++) {
        float weight = exp(key_value(order_key(uintBitsToFloat(lists[picked[k]]))) - top) / sum;
        routes[2u * k] = picked[k];
        routes[2u * k + 1u] = key_finite(best) ? floatBitsToUint(weight) : NAN_BITS;
    }
}
#endif

void place(uint expert, uint line[LINES])
{
    uint base = (expert - push.window_expert) * push.window_rows;
    [[unroll]] for (uint l = 0u; l < LINES; l++)
        w_at[l] = (base + min(line[l], push.window_rows - 1u)) * push.row_uvec4;
}

void main()
{
#ifdef WEIGHT_BLOCKS
    blocks_begin(push.cols);
#endif
    // Neighbouring invocations take neighbouring couples. Rows that are not there read the last one;
    // nothing of it is stored.
    uint line[LINES]; // rows of the window
    [[unroll]] for (uint l = 0u; l < LINES; l++)
        line[l] = ((gl_WorkGroupID.y * COUPLES + l / 2u) * WG + gl_LocalInvocationID.x) * 2u + l % 2u;
    uint rows = rows_from(push.row0, push.row_cap);
    uint item = gl_WorkGroupID.x;

    if (MODE == 2u) {
        if (item >= rows)
            return;
        float z[LINES];
        [[unroll]] for (uint l = 0u; l < LINES; l++)
            z[l] = 0.0;
        for (uint k = 0u; k < push.top_k; k++) {
            uint pair = item * push.top_k + k;
            uint expert = lists[pair * 2u];
            if (!in_window(expert))
                continue;
            x_at[0] = pair * push.x_stride;
            place(expert, line);
            multiply();
            float weight = uintBitsToFloat(lists[pair * 2u + 1u]);
            [[unroll]] for (uint l = 0u; l < LINES; l++)
                z[l] += weight * sums[l * R];
        }
        [[unroll]] for (uint l = 0u; l < LINES; l++)
            if (line[l] < push.window_rows)
                outputs[item * push.out_stride + push.window_row + line[l]] = z[l];
        return;
    }

    uint expert, count;
    uint out_row[R];
    uint x_row[R];
#ifdef ROUTE
    if (item >= TOP_K)
        return;
    pick();
    expert = picked[item];
    if (item == 0u && gl_GlobalInvocationID.y == 0u && gl_LocalInvocationID.x == 0u &&
        push.window_expert == 0u && push.window_row == 0u)
        routes_store();
    if (!in_window(expert))
        return;
    count = 1u;
    x_row[0] = 0u;
    out_row[0] = item;
#else
    if (SOURCE == 0u) {
        uint pairs = rows * push.top_k;
        if (item >= pairs)
            return;
        expert = lists[item * 2u];
        if (!in_window(expert))
            return;
        for (uint p = 0u; p < item; p++) {
            if (lists[p * 2u] == expert)
                return;
        }
        count = 0u;
        uint p = item;
        [[unroll]] for (uint j = 0u; j < R; j++) {
            while (p < pairs && lists[p * 2u] != expert)
                p++;
            count += p < pairs ? 1u : 0u;
            uint found = p < pairs ? p : item;
            x_row[j] = MODE == 0u ? found / push.top_k : found;
            out_row[j] = found;
            p++;
        }
    } else {
        uint tile = lists[push.window_expert] + item;
        if (tile >= lists[push.window_expert + push.window_experts])
            return;
        uint word = tiles_at(push.experts, push.row_cap * push.top_k) + tile * TILE_WORDS;
        expert = lists[word];
        uint first = lists[word + 1u];
        count = lists[word + 2u];
        [[unroll]] for (uint j = 0u; j < R; j++) {
            uint at = first + min(j, count - 1u);
            uint pair = lists[sorted_at(push.experts) + at];
            x_row[j] = MODE == 0u ? pair / push.top_k : at;
            out_row[j] = MODE == 0u ? at : pair;
        }
    }
#endif
    [[unroll]] for (uint j = 0u; j < R; j++)
        x_at[j] = x_row[j] * push.x_stride;
    place(expert, line);
    multiply();
    [[unroll]] for (uint j = 0u; j < R; j++) {
        if (j >= count)
            break;
#ifdef X_HALF
        float scale = x_scale[x_row[j]];
#else
        const float scale = 1.0;
#endif
        uint at = out_row[j] * push.out_stride;
        [[unroll]] for (uint c = 0u; c < COUPLES; c++) {
            float a = sums[2u * c * R + j] * scale, b = sums[(2u * c + 1u) * R + j] * scale;
            uint n = line[2u * c];
            if (MODE == 0u) {
                if (n < push.window_rows)
                    outputs[at + (push.window_row + n) / 2u] = silu(a) * b;
            } else {
                if (n < push.window_rows)
                    outputs[at + push.window_row + n] = a;
                if (n + 1u < push.window_rows)
                    outputs[at + push.window_row + n + 1u] = b;
            }
        }
    }
}
