// Expert matrices times few rows, on devices whose invocations share memory: lines of LANES invocations
// hold COLS rows of one expert's matrix against at most ROWS activation rows routed to it, so the weights
// are read once.
//
//   MODE 0  h[p][i] = SiLU(w13[2i] . x) * (w13[2i+1] . x)       x of the pair's row
//   MODE 1  d[p][n] = w2[n] . h[p]                              one output row a pair
//   MODE 2  z[r][n] = sum_k weight_rk * (w2_e(r,k)[n] . h[r,k]) down and combine at once, ROWS = 1
//
// x: MODE 0 f32 [rows][x_stride], or with X_HALF packed halves and a scale a row; else hidden f32
// [pairs][x_stride]. w: one window of [experts][rows][cols]. lists: the routes, {expert, weight} a pair;
// with ROUTE (MODE 0, one row) the logits [experts] f32, from which every workgroup makes the choice that
// moe_route.comp makes, and the first one also the routes.
// Groups (x, y): y is the block of weight rows; x a pair, the first of each expert collecting the later
// ones of its expert while the others leave; in MODE 2 a row, whose experts are dealt to SPLIT parts
// of the line. Reduced over k: eight at a time, then in order; then over the lanes (inc/lanesum.glsl).
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#if defined(SUBGROUP)
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"
#if defined(ROUTE)
#include "inc/route.glsl"
#endif
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint LANES = 32; // power of two times SPLIT
layout(constant_id = 2) const uint GROUP = 1;  // of them in one subgroup; 1 without SUBGROUP
layout(constant_id = 3) const uint ROWS = 1;
layout(constant_id = 4) const uint COLS = 2; // even in MODE 0
layout(constant_id = 5) const uint UNROLL = 2;
layout(constant_id = 6) const uint MODE = 0;
layout(constant_id = 7) const uint SPLIT = 1; // 1 unless MODE is 2
layout(constant_id = 8) const uint X_VEC = 1; // x_stride is a multiple of 4 (halves: 8)
#if defined(ROUTE)
layout(constant_id = 9) const uint EXPERTS = 8;
layout(constant_id = 10) const uint TOP_K = 2;
#define STAGED_ID 11
#define BLOCK_TYPE_ID 12
#else
#define STAGED_ID 9
#define BLOCK_TYPE_ID 10
#endif
#if defined(WEIGHT_BLOCKS)
// Floats of x in shared memory, or 0: x is read where it is needed. ROWS = 1; MODE 2: all of top_k.
layout(constant_id = STAGED_ID) const uint STAGED = 0;
#endif

layout(push_constant) uniform push_block
{
    uint row0;    // first row of this part of the step
    uint row_cap; // most rows in this part
    uint top_k;
    uint experts;
    uint window_expert; // the window holds experts from here on ...
    uint window_experts;
    uint window_row; // ... and their rows from here on
    uint window_rows;
    uint cols;
    uint row_uvec4; // stride of the weight rows
    uint x_stride;
    uint out_stride;
    uint rows; // of one expert
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
#include "inc/blocks.glsl"
#endif
layout(set = 0, binding = 2) readonly buffer lists_block
{
    uint lists[];
};
layout(set = 0, binding = 3) writeonly buffer out_block
{
    float result[];
};
#if defined(X_HALF)
layout(set = 0, binding = 4) readonly buffer scale_block
{
    float x_scale[];
};
#endif

#if defined(ROUTE)
layout(set = 0, binding = 4) writeonly buffer routes_block
{
    uint routes[];
};
shared uint logit_key[EXPERTS];
shared uint picked[TOP_K];
#endif

const uint LINES = WG / LANES;
const uint PART = LANES / SPLIT;
const uint VALS = ROWS * COLS;
uint x_base[ROWS]; // in elements

#include "inc/lanesum.glsl"

vec4 x_at(uint i)
{
    if (X_VEC != 0u)
        return uintBitsToFloat(x4[i / 4u]);
    return uintBitsToFloat(uvec4(x1[i], x1[i + 1u], x1[i + 2u], x1[i + 3u]));
}

void x_load(uint r, uint k, out vec4 low, out vec4 high)
{
#if defined(X_HALF)
    uvec4 w = x4[x_base[r] / 8u + k];
    low = vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
    high = vec4(unpackHalf2x16(w.z), unpackHalf2x16(w.w));
#else
    low = x_at(x_base[r] + 8u * k);
    high = x_at(x_base[r] + 8u * k + 4u);
#endif
}

#if defined(WEIGHT_BLOCKS)
shared vec4 staged[STAGED != 0u ? STAGED / 4u : 1u];
uint stage_base; // of the row in use

// Neighbours, who have neighbouring groups, read neighbouring words.
uint stage_at(uint i)
{
    return i % 8u * (p.cols / 32u) + i / 8u;
}

void x_chunk(uint r, uint k, out vec4 low, out vec4 high)
{
    if (STAGED != 0u) {
        low = staged[stage_base + stage_at(2u * k)];
        high = staged[stage_base + stage_at(2u * k + 1u)];
        return;
    }
    x_load(r, k, low, high);
}

// `count` rows of x behind each other, the first one at x_base[0].
void stage(uint t, uint count)
{
    uint first = x_base[0];
    for (uint row = 0u; row < count; row++) {
        x_base[0] = first + row * p.x_stride;
        for (uint k = t; k < p.cols / 8u; k += WG) {
            vec4 low, high;
            x_load(0u, k, low, high);
            staged[row * (p.cols / 4u) + stage_at(2u * k)] = low;
            staged[row * (p.cols / 4u) + stage_at(2u * k + 1u)] = high;
        }
    }
    x_base[0] = first;
    barrier();
}
#else
void x_chunk(uint r, uint k, out vec4 low, out vec4 high)
{
    x_load(r, k, low, high);
}

float x_single(uint r, uint k)
{
    uint i = x_base[r] + k;
#if defined(X_HALF)
    vec2 pair = unpackHalf2x16(x1[i / 2u]);
    return (i & 1u) == 0u ? pair.x : pair.y;
#else
    return uintBitsToFloat(x1[i]);
#endif
}

float w_single(uint base, uint k)
{
    uint word = w1[base * 4u + k / WEIGHTS_PER_WORD];
#if defined(WEIGHT_F32)
    return uintBitsToFloat(word);
#else
    vec2 pair = unpack_weights(word);
    return (k & 1u) == 0u ? pair.x : pair.y;
#endif
}
#endif

#define ROWS_VARY
#include "inc/rowdot.glsl"

// Adds one expert's products.
void expert_dot(uint expert, uint lane, uint rows)
{
    uint offset = (expert - p.window_expert) * p.window_rows * p.row_uvec4;
    rows_load(offset, lane, PART, p.cols / WEIGHT_CHUNK);
    rows_dot(offset, lane, PART, p.cols / WEIGHT_CHUNK, rows);
#if !defined(WEIGHT_BLOCKS)
    if (lane == 0u) {
        for (uint k = p.cols / 8u * 8u; k < p.cols; k++) {
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                float x = x_single(r, k);
                [[unroll]] for (uint c = 0u; c < COLS; c++)
                    acc[r * COLS + c] += x * w_single(offset + base[c], k);
            }
        }
    }
#endif
}

#if defined(ROUTE)
// Fills `picked`, best first, ties to the lowest expert: an expert's place is the number of those before
// it.
void pick(uint t)
{
    for (uint e = t; e < EXPERTS; e += WG)
        logit_key[e] = order_key(uintBitsToFloat(lists[e]));
    barrier();
    for (uint e = t; e < EXPERTS; e += WG) {
        uint place = 0u;
        for (uint other = 0u; other < EXPERTS; other++)
            place += before(logit_key[other], other, logit_key[e], e) ? 1u : 0u;
        if (place < TOP_K)
            picked[place] = e;
    }
    barrier();
}

void routes_store()
{
    uint best = logit_key[picked[0]];
    float top = key_value(best), sum = 0.0;
    for (uint k = 0u; k < TOP_K; k++)
        sum += exp(key_value(logit_key[picked[k]]) - top);
    for (uint k = 0u; k < TOP_K; k++) {
        float weight = exp(key_value(logit_key[picked[k]]) - top) / sum;
        routes[2u * k] = picked[k];
        routes[2u * k + 1u] = key_finite(best) ? floatBitsToUint(weight) : NAN_BITS;
    }
}
#endif

bool in_window(uint expert)
{
    return expert >= p.window_expert && expert - p.window_expert < p.window_experts;
}

void main()
{
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.cols);
#endif
    uint t = lane_thread();
    uint lane = t % LANES;
    uint line = t / LANES;
    // A single row is always there: no need to wait for the parameters.
    uint rows = p.row_cap == 1u && p.row0 == 0u ? 1u : rows_from(p.row0, p.row_cap);
    uint item = gl_WorkGroupID.x;
    if (item >= (MODE == 2u ? rows : rows * p.top_k))
        return; // the whole workgroup

    uint n0 = gl_WorkGroupID.y * LINES * COLS;
    uint n[COLS];
    [[unroll]] for (uint c = 0u; c < COLS; c++) {
        n[c] = MODE == 0u ? n0 + ((c / 2u) * LINES + line) * 2u + (c & 1u) : n0 + c * LINES + line;
        // Clamped, so that every load stays inside.
        base[c] = min(n[c], p.window_rows - 1u) * p.row_uvec4;
    }
    [[unroll]] for (uint i = 0u; i < VALS; i++)
        acc[i] = 0.0;

    if (MODE == 2u) {
        [[unroll]] for (uint i = 0u; i < VALS; i++)
            sums[i] = 0.0;
#if defined(WEIGHT_BLOCKS)
        x_base[0] = item * p.top_k * p.x_stride;
        if (STAGED != 0u)
            stage(t, p.top_k);
#endif
        for (uint k = lane / PART; k < p.top_k; k += SPLIT) {
            uint pair = item * p.top_k + k;
            uint expert = lists[pair * 2u];
            if (!in_window(expert))
                continue;
            x_base[0] = pair * p.x_stride;
#if defined(WEIGHT_BLOCKS)
            stage_base = k * (p.cols / 4u);
#endif
            [[unroll]] for (uint i = 0u; i < VALS; i++)
                acc[i] = 0.0;
            expert_dot(expert, lane % PART, 1u);
            float weight = uintBitsToFloat(lists[pair * 2u + 1u]);
            [[unroll]] for (uint i = 0u; i < VALS; i++)
                sums[i] += weight * acc[i];
        }
        lanes_sum(t);
        if (lane == 0u)
            [[unroll]] for (uint c = 0u; c < COLS; c++)
                if (n[c] < p.window_rows)
                    result[item * p.out_stride + p.window_row + n[c]] = sums[c];
        return;
    }

#if defined(ROUTE)
    pick(t);
    uint expert = picked[item];
    if (item == 0u && gl_WorkGroupID.y == 0u && t == 0u && p.window_expert == 0u && p.window_row == 0u)
        routes_store();
    if (!in_window(expert))
        return;
#else
    uint expert = lists[item * 2u];
    if (!in_window(expert))
        return;
    for (uint q = 0u; q < item; q++)
        if (lists[q * 2u] == expert)
            return;
#endif
    uint pairs = rows * p.top_k, count = 0u, next = item;
    uint x_row[ROWS];
    uint pair_of[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        while (ROWS > 1u && next < pairs && lists[next * 2u] != expert)
            next++;
        count += next < pairs ? 1u : 0u;
        pair_of[r] = next < pairs ? next : item;
        x_row[r] = MODE == 0u ? pair_of[r] / p.top_k : pair_of[r];
        x_base[r] = x_row[r] * p.x_stride;
        next++;
    }
#if defined(WEIGHT_BLOCKS)
    stage_base = 0u;
    if (STAGED != 0u)
        stage(t, 1u);
#endif
    expert_dot(expert, lane, count);
    [[unroll]] for (uint i = 0u; i < VALS; i++)
        sums[i] = acc[i];
    lanes_sum(t);
    if (lane != 0u)
        return;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        if (r >= count)
            break;
#if defined(X_HALF)
        float s = x_scale[x_row[r]];
#else
        float s = 1.0;
#endif
        uint at = pair_of[r] * p.out_stride;
        [[unroll]] for (uint c = 0u; c < COLS; c++) {
            if (n[c] >= p.window_rows)
                continue;
            float y = sums[r * COLS + c] * s;
            if (MODE != 0u)
                result[at + p.window_row + n[c]] = y;
            else if ((c & 1u) == 0u)
                result[at + (p.window_row + n[c]) / 2u] = silu(y) * (sums[r * COLS + c + 1u] * s);
        }
    }
}
