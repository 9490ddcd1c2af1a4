// Partial RoPE, in the pairs (i, i + R/2) of the first R dims of a head:
//     a' = a cos - b sin ;  b' = b cos + a sin
// rotates q in place and writes rotated keys and the values into the window of the cache that holds
// the row's position (rows of other windows are left to their dispatches).
//
// qkv   [rows][qkv_stride] f32: q heads, then k heads, then v heads, D each
// rope  [rows][R/2] {cos, sin}
// cache [window tokens][KV_WORDS]: [2 (k, v)][kv heads][D] as f32, or KV_F16: as halves, then the
//       scales [2][kv heads] that undo the power of two each row was multiplied by; 0 for a row of
//       zeros. A row that is not finite is zeros with a scale of NaN, so that no product with a
//       weight of zero brings NaN to rows that do not see it.
//
// Workgroup = one head of one row. KV_F16 reduces the row's largest magnitude across the workgroup.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 32;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint R = 64;
layout(constant_id = 3) const uint HEADS = 1;
layout(constant_id = 4) const uint KV_HEADS = 1;
layout(constant_id = 5) const uint KV_WORDS = 128;

layout(std430, binding = 0) buffer Qkv { float qkv[]; };
layout(std430, binding = 1) readonly buffer Rope { vec2 rope[]; };
layout(std430, binding = 2) writeonly buffer Cache { uint cache[]; };

layout(push_constant) uniform Push {
    uint row_base;     // first row bound, counted in the step
    uint row_cap;      // rows bound
    uint qkv_stride;   // floats from row to row
    uint first_token;  // of the window
    uint token_count;  // of the window
    uint head_base;    // HEADS in windows after the first: q is rotated once
} push;

// Element d of the head at `at`, rotated.
float rotated(uint at, uint turn_at, uint d)
{
    float x = qkv[at + d];
    if (d >= R)
        return x;
    bool low = d < R / 2;
    float partner = qkv[at + (low ? d + R / 2 : d - R / 2)];
    vec2 turn = rope[turn_at + (low ? d : d - R / 2)];
    return low ? x * turn.x - partner * turn.y : x * turn.x + partner * turn.y;
}

#ifdef KV_F16
shared uint high_of[WG];
#endif

void main()
{
    uint head = gl_WorkGroupID.x + push.head_base, row = gl_WorkGroupID.y;
    uint lane = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    if (row >= rows)
        return;
    uint at = row * push.qkv_stride + head * D;
    uint turn_at = row * (R / 2);
    if (head < HEADS) {
        for (uint i = lane; i < R / 2; i += WG) {
            float a = qkv[at + i], b = qkv[at + i + R / 2];
            vec2 turn = rope[turn_at + i];
            qkv[at + i] = a * turn.x - b * turn.y;
            qkv[at + i + R / 2] = b * turn.x + a * turn.y;
        }
        return;
    }
    uint position = step.position + push.row_base + row;
    if (position < push.first_token || position - push.first_token >= push.token_count)
        return;
    uint slot = head - HEADS; // keys, then values
    bool is_key = slot < KV_HEADS;
    uint to = (position - push.first_token) * KV_WORDS;
#ifdef KV_F16
    uint high = 0;
    for (uint d = lane; d < D; d += WG) {
        float x = is_key ? rotated(at, turn_at, d) : qkv[at + d];
        high = max(high, floatBitsToUint(x) & ABS_MASK);
    }
    high_of[lane] = high;
    barrier();
    for (uint n = 0; n < WG; n++)
        high = max(high, high_of[n]);
    float multiplier = half_multiplier(high);
    bool finite = row_is_finite(high);
    for (uint w = lane; w < D / 2; w += WG) {
        vec2 x = is_key ? vec2(rotated(at, turn_at, 2 * w), rotated(at, turn_at, 2 * w + 1))
                        : vec2(qkv[at + 2 * w], qkv[at + 2 * w + 1]);
        cache[to + slot * (D / 2) + w] = finite ? packHalf2x16(x * multiplier) : 0;
    }
    if (lane == 0)
        cache[to + KV_HEADS * D + slot] = high == 0 ? 0 : floatBitsToUint(half_row_scale(high));
#else
    for (uint d = lane; d < D; d += WG)
        cache[to + slot * D + d] =
            floatBitsToUint(is_key ? rotated(at, turn_at, d) : qkv[at + d]);
#endif
}
