// Lightning attention of one token:
//     S += expm1(-s) S + k^T v ;  o = q S
// Each element of the state is read and written once. (exp(-s) S + k^T v would drift: the rounding of
// exp(-s) near 1 is applied at every token.)
//
// qkv   f32, per head q, k, v of D
// decay as in lightning_scores
// state [heads of this dispatch][D (key)][D (value)] f32
// out   [heads][D] f32
//
// Workgroup = (slice of WG / DSPLIT value columns, head); invocation = one column times a DSPLIT-th
// part of the keys. The parts of an output are summed through shared memory, in order.
#version 450

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint C = 16;
layout(constant_id = 3) const uint DSPLIT = 4;

layout(std430, binding = 0) readonly buffer Qkv { float qkv[]; };
layout(std430, binding = 0) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(std430, binding = 1) readonly buffer Decay { float decay[]; };
layout(std430, binding = 2) buffer State { float state[]; };
layout(std430, binding = 3) writeonly buffer Out { float outputs[]; };

layout(push_constant) uniform Push {
    uint head_base;
} push;

const uint COLS = WG / DSPLIT;
const uint D4 = D / 4;
const uint DP4 = D4 / DSPLIT;
const uint PARTIALS = DSPLIT == 1 ? 1 : WG;
shared float partial[PARTIALS];

void main()
{
    uint head = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    uint part = DSPLIT == 1 ? 0 : lane / COLS;
    uint column = gl_WorkGroupID.x * COLS + (DSPLIT == 1 ? lane : lane % COLS);
    bool inside = column < D;
    uint d0 = part * DP4;
    uint row = (push.head_base + head) * 3 * D4;
    float o = 0;
    if (inside) {
        float fade = decay[(push.head_base + head) * 2 * (C + 1) + C + 2];
        float v = qkv[(row + 2 * D4) * 4 + column];
        uint at = (head * D + d0 * 4) * D + column;
        for (uint n = 0; n < DP4; n++) {
            vec4 q = qkv4[row + d0 + n], k = qkv4[row + D4 + d0 + n];
            for (uint x = 0; x < 4; x++) {
                float s = state[at + (n * 4 + x) * D];
                s += fade * s + k[x] * v;
                state[at + (n * 4 + x) * D] = s;
                o += q[x] * s;
            }
        }
    }
    if (DSPLIT > 1) {
        partial[lane] = o;
        barrier();
        if (part == 0)
            for (uint p = 1; p < DSPLIT; p++)
                o += partial[lane + p * COLS];
    }
    if (inside && part == 0)
        outputs[(push.head_base + head) * D + column] = o;
}
