// Lightning attention of one token of each sequence, spread over many invocations:
//     S += expm1(-s) S + k^T v ;  o = q S
// Each element of the state is read and written once. (exp(-s) S + k^T v would drift: the rounding of
// exp(-s) near 1 is applied at every token.)
//
// qkv   [sequences][qkv_stride] f32, per head q, k, v of D
// decay [heads][DECAY_STRIDE], inc/lightning.glsl
// state [sequences x heads of this dispatch][D (key)][D (value)] f32; two of them where one is read and
//       the other written
// out   [sequences][heads][D] f32
//
// Workgroup = (slice of 4 W4 value columns, sequence and head); WG / W4 parts take every such key, W4
// invocations side by side four columns each. All loads of the state are in flight at once. The parts
// of an output are summed through shared memory, in order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/lightning.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 128;
layout(constant_id = 2) const uint W4 = 8;

layout(std430, binding = 0) readonly buffer Qkv { float qkv[]; };
layout(std430, binding = 0) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(std430, binding = 1) readonly buffer Decay { float decay[]; };
layout(std430, binding = 2) buffer State { vec4 state[]; };
layout(std430, binding = 3) writeonly buffer Out { float outputs[]; };

layout(push_constant) uniform Push {
    uint unit_base; // sequence x heads + head of the first state bound
    uint heads;
    uint qkv_stride; // floats from row to row, a multiple of 4
    uint from4, to4; // first vec4 of the state that is read, of the one that is written
} push;

const uint D4 = D / 4;
const uint PARTS = WG / W4;
const uint KEYS = (D + PARTS - 1) / PARTS; // of an invocation
shared vec4 partial[WG];

void main()
{
    uint unit = push.unit_base + gl_WorkGroupID.y;
    uint sequence = unit / push.heads, head = unit % push.heads;
    uint t = gl_LocalInvocationID.x, part = t / W4, column4 = gl_WorkGroupID.x * W4 + t % W4;
    uint row = sequence * push.qkv_stride + head * 3 * D;
    uint at = (gl_WorkGroupID.y * D + part) * D4 + column4;

    vec4 s[KEYS];
    [[unroll]] for (uint n = 0; n < KEYS; n++)
        s[n] = part + n * PARTS < D ? state[push.from4 + at + n * PARTS * D4] : vec4(0);
    float fade = decay[head * DECAY_STRIDE + FADE_AT + 1];
    vec4 v = qkv4[row / 4 + 2 * D4 + column4];
    vec4 o = vec4(0);
    [[unroll]] for (uint n = 0; n < KEYS; n++) {
        uint key = part + n * PARTS;
        if (key < D) {
            s[n] += fade * s[n] + qkv[row + D + key] * v;
            state[push.to4 + at + n * PARTS * D4] = s[n];
            o += qkv[row + key] * s[n];
        }
    }
    partial[t] = o;
    barrier();
    if (t < 4 * W4) {
        float sum = partial[t / 4][t % 4];
        for (uint p = 1; p < PARTS; p++)
            sum += partial[p * W4 + t / 4][t % 4];
        outputs[(sequence * push.heads + head) * D + gl_WorkGroupID.x * 4 * W4 + t] = sum;
    }
}
