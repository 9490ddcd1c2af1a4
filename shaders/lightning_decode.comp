// Lightning attention of one token of each sequence:
//     S += expm1(-s) S + k^T v ;  o = q S
// Each element of the state is read and written once. (exp(-s) S + k^T v would drift: the rounding of
// exp(-s) near 1 is applied at every token.)
//
// qkv   [sequences][qkv_stride] f32, per head q, k, v of D
// decay [heads][DECAY_STRIDE], inc/lightning.glsl
// state [sequences x heads of this dispatch][D (key)][D (value)] f32
// out   [sequences][heads][D] f32
//
// Workgroup = (slice of WG value columns, sequence and head); invocation = one column: no shared memory
// and no barrier, and the loads of q and k are the same for all lanes.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/lightning.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 64;

layout(std430, binding = 0) readonly buffer Qkv { float qkv[]; };
layout(std430, binding = 0) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(std430, binding = 1) readonly buffer Decay { float decay[]; };
layout(std430, binding = 2) buffer State { float state[]; };
layout(std430, binding = 3) writeonly buffer Out { float outputs[]; };

layout(push_constant) uniform Push {
    uint unit_base; // sequence x heads + head of the first state bound
    uint heads;
    uint qkv_stride; // floats from row to row, a multiple of 4
} push;

const uint D4 = D / 4;

void main()
{
    uint unit = push.unit_base + gl_WorkGroupID.y;
    uint sequence = unit / push.heads, head = unit % push.heads;
    uint column = gl_GlobalInvocationID.x;
    if (column >= D)
        return;
    uint row = sequence * (push.qkv_stride / 4) + head * 3 * D4;
    float fade = decay[head * DECAY_STRIDE + FADE_AT + 1];
    float v = qkv[(row + 2 * D4) * 4 + column];
    uint at = gl_WorkGroupID.y * D * D + column;
    float o = 0;
    for (uint n = 0; n < D4; n++) {
        vec4 q = qkv4[row + n], k = qkv4[row + D4 + n];
        for (uint x = 0; x < 4; x++) {
            float s = state[at + (n * 4 + x) * D];
            s += fade * s + k[x] * v;
            state[at + (n * 4 + x) * D] = s;
            o += q[x] * s;
        }
    }
    outputs[(sequence * push.heads + head) * D + column] = o;
}
