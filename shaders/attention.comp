// Causal softmax attention over one window of the cache, by online softmax over blocks of KB keys:
//     out = sum_j exp(q.k_j / sqrt(D) - m) v_j / sum_j exp(q.k_j / sqrt(D) - m),  j <= position of q
//
// qkv   [rows][qkv_stride] f32: rotated q heads first
// cache as in rope_append
// carry [rows][heads][splits][D + 4] f32: sums o [D], then the largest score m (times log2 e), the
//       sum of weights l. Here sums go from window to window; with several splits attention_merge
//       reads the last ones.
// out   [rows][out_stride] f32; written here if there is one split
//
// Workgroup = (tile, kv head, split). The rows of a tile are ROWS consecutive pairs (token, query
// head of this kv head), so the heads of a group share every load. DSPLIT invocations share a row:
// part p holds the vec4s p, p + DSPLIT, ... of q and o; their shares of the scores are summed through
// shared memory, in order. A split takes an equal share of the tile's keys and visits the windows
// that hold them. Scores, weights and sums are f32; keys and values f32 or (KV_F16) scaled halves.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint DSPLIT = 4;
layout(constant_id = 3) const uint KB = 8;
layout(constant_id = 4) const uint HEADS = 1;
layout(constant_id = 5) const uint KV_HEADS = 1;
layout(constant_id = 6) const uint KV_WORDS = 128;

layout(std430, binding = 0) readonly buffer Qkv { vec4 qkv[]; };
#ifdef KV_F16
layout(std430, binding = 1) readonly buffer Cache { uvec2 cache[]; };
layout(std430, binding = 1) readonly buffer CacheScale { float cache_scale[]; };
#else
layout(std430, binding = 1) readonly buffer Cache { vec4 cache[]; };
#endif
layout(std430, binding = 2) buffer Carry { vec4 carry[]; };
layout(std430, binding = 3) writeonly buffer Out { vec4 outputs[]; };

layout(push_constant) uniform Push {
    uint row_base;    // first row bound, counted in the step
    uint row_cap;     // rows bound
    uint qkv_stride4; // vec4s from row to row
    uint out_stride4;
    uint first_token; // of the window
    uint token_count; // of the window
    uint splits;
    float scale;      // log2(e) / sqrt(D)
    uint split_keys;  // fewest of a split
} push;

const uint ROWS = WG / DSPLIT;
const uint GROUP = HEADS / KV_HEADS;
const uint D4 = D / 4;
const uint DP4 = D4 / DSPLIT;
const uint C4 = D4 + 1; // of a carry, in vec4
const float LOWEST = -3.4028234e38;
const uint SHARES = DSPLIT == 1 ? 1 : WG * KB;
shared float share[SHARES];
shared float score[ROWS * KB];

vec4 cache_at(uint token, uint slot, uint d)
{
#ifdef KV_F16
    uvec2 w = cache[token * (KV_WORDS / 2) + slot * D4 + d];
    return vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
#else
    return cache[token * (KV_WORDS / 4) + slot * D4 + d];
#endif
}

#ifdef KV_F16
float scale_at(uint token, uint slot)
{
    return cache_scale[token * KV_WORDS + KV_HEADS * D + slot];
}
#endif

void main()
{
    uint lane = gl_LocalInvocationID.x, kv_head = gl_WorkGroupID.y, split = gl_WorkGroupID.z;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint pairs = rows * GROUP;
    uint first_pair = gl_WorkGroupID.x * ROWS;
    if (first_pair >= pairs)
        return;
    // Keys of the tile, of the split's share of them, and of this window's part of that.
    uint position = step.position + push.row_base;
    uint tile_keys = position + (min(first_pair + ROWS, pairs) - 1) / GROUP + 1;
    uint per_split = max((tile_keys + push.splits - 1) / push.splits, push.split_keys);
    uint share_begin = split * per_split, share_end = min(share_begin + per_split, tile_keys);
    uint begin = max(share_begin, push.first_token);
    uint end = min(share_end, push.first_token + push.token_count);
    if (begin >= end)
        return;

    uint part = DSPLIT == 1 ? 0 : lane % DSPLIT;
    uint in_tile = DSPLIT == 1 ? lane : lane / DSPLIT;
    bool inside = first_pair + in_tile < pairs;
    uint pair = min(first_pair + in_tile, pairs - 1);
    uint row = pair / GROUP, head = kv_head * GROUP + pair % GROUP;
    uint visible = position + row + 1; // keys
    uint all_visible = position + first_pair / GROUP + 1; // to every row of the tile
    uint carry_at = ((row * HEADS + head) * push.splits + split) * C4;

    vec4 q[DP4], o[DP4];
    float top = LOWEST, weight = 0;
    uint q_at = row * push.qkv_stride4 + head * D4 + part;
    for (uint n = 0; n < DP4; n++)
        q[n] = qkv[q_at + n * DSPLIT] * push.scale;
    if (begin == share_begin) {
        for (uint n = 0; n < DP4; n++)
            o[n] = vec4(0);
    } else {
        for (uint n = 0; n < DP4; n++)
            o[n] = carry[carry_at + part + n * DSPLIT];
        vec4 last = carry[carry_at + D4];
        top = last.x;
        weight = last.y;
    }

    uint seen = min(visible, end); // end of this row's keys
    for (uint key0 = begin; key0 < end; key0 += KB) {
        // Loops over keys are not unrolled: with all of q and o in registers that would make code of
        // thousands of loads.
        uint token0 = key0 - push.first_token, count = min(KB, end - key0);
        for (uint k = 0; k < count; k++) {
            vec4 sum = vec4(0);
            for (uint n = 0; n < DP4; n++)
                sum += q[n] * cache_at(token0 + k, kv_head, part + n * DSPLIT);
            float s = (sum.x + sum.y) + (sum.z + sum.w);
#ifdef KV_F16
            s *= scale_at(token0 + k, kv_head);
#endif
            if (DSPLIT == 1)
                score[k * ROWS + in_tile] = s;
            else
                share[k * WG + lane] = s;
        }
        if (DSPLIT > 1) {
            barrier();
            for (uint k = part; k < count; k += DSPLIT) {
                uint at = k * WG + in_tile * DSPLIT;
                float s = share[at];
                for (uint p = 1; p < DSPLIT; p++)
                    s += share[at + p];
                score[k * ROWS + in_tile] = s;
            }
            barrier();
        }
        float new_top = top;
        for (uint k = 0; k < count; k++)
            if (key0 + k < seen)
                new_top = max(new_top, score[k * ROWS + in_tile]);
        float keep = exp2(top - new_top);
        top = new_top;
        weight *= keep;
        for (uint n = 0; n < DP4; n++)
            o[n] *= keep;
        // Keys that every row of the tile sees, then those that some do not.
        uint full = all_visible > key0 ? min(all_visible - key0, count) : 0;
        for (uint k = 0; k < full; k++) {
            float p = exp2(score[k * ROWS + in_tile] - top);
            weight += p;
#ifdef KV_F16
            p *= scale_at(token0 + k, KV_HEADS + kv_head);
#endif
            for (uint n = 0; n < DP4; n++)
                o[n] += p * cache_at(token0 + k, KV_HEADS + kv_head, part + n * DSPLIT);
        }
        for (uint k = full; k < count; k++) {
            // Later values are left out, not multiplied by zero: they may be NaN.
            bool sees = key0 + k < seen;
            float p = exp2(score[k * ROWS + in_tile] - top);
            weight += sees ? p : 0.0;
#ifdef KV_F16
            p *= scale_at(token0 + k, KV_HEADS + kv_head);
#endif
            for (uint n = 0; n < DP4; n++) {
                vec4 v = cache_at(token0 + k, KV_HEADS + kv_head, part + n * DSPLIT);
                o[n] += sees ? p * v : vec4(0);
            }
        }
    }

    if (!inside)
        return;
    if (end == share_end && push.splits == 1) {
        uint to = row * push.out_stride4 + head * D4 + part;
        float inverse = 1.0 / weight;
        for (uint n = 0; n < DP4; n++)
            outputs[to + n * DSPLIT] = o[n] * inverse;
    } else {
        for (uint n = 0; n < DP4; n++)
            carry[carry_at + part + n * DSPLIT] = o[n];
        if (part == 0)
            carry[carry_at + D4] = vec4(top, weight, 0, 0);
    }
}
