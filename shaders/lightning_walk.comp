// Lightning prefill, second of two kernels: walks through the blocks of one head with the state in
// registers. For a block of m tokens and the incoming state S:
//     o_i = sum_{j<=i} P[i][j] v_j + exp(-s (i+1)) q_i S
//     S  += expm1(-s m) S + sum_j exp(-s (m-1-j)) k_j^T v_j
// P and the factors come from lightning_scores, whose header gives the layout of scratch. All sums
// and the state are f32. HALF reads q, k, v and P as the scaled halves that kernel wrote.
//
// qkv   [rows][qkv_stride] f32, per head q, k, v of D (not bound by HALF)
// state [heads of this dispatch][D (key)][D (value)] f32
// out   [rows][out_stride] f32
//
// Workgroup = (slice of WG / DSPLIT value columns, head); invocation = one column of the state times
// a DSPLIT-th part of its keys. The parts of an output are summed through shared memory, in order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint C = 16;
layout(constant_id = 3) const uint DSPLIT = 4;
layout(constant_id = 4) const uint BLOCK_WORDS = 320;

#ifdef HALF
layout(std430, binding = 0) readonly buffer Scratch { float scratch[]; };
layout(std430, binding = 0) readonly buffer Scratch2 { uvec2 scratch2[]; };
#else
layout(std430, binding = 0) readonly buffer Scratch { float scratch[]; };
layout(std430, binding = 0) readonly buffer Scratch4 { vec4 scratch4[]; };
layout(std430, binding = 3) readonly buffer Qkv4 { vec4 qkv4[]; };
layout(std430, binding = 3) readonly buffer Qkv { float qkv[]; };
#endif
layout(std430, binding = 1) buffer State { float state[]; };
layout(std430, binding = 2) writeonly buffer Out { float outputs[]; };

layout(push_constant) uniform Push {
    uint row_base;
    uint row_cap;
    uint qkv_stride4;
    uint head_base;
    uint head_count;
    uint out_stride; // floats from row to row
} push;

const uint COLS = WG / DSPLIT;
const uint D4 = D / 4;
const uint DP4 = D4 / DSPLIT; // of an invocation's keys, in vec4
const uint CP4 = C / 4 > DSPLIT ? C / 4 / DSPLIT : 1; // of the tokens whose part of o it sums, if any
const uint PARTIALS = DSPLIT == 1 ? 1 : C * WG;
shared float partial[PARTIALS];

#ifdef HALF
const uint SCALES = C * C / 2 + 4 * C;
const uint TILES2 = (SCALES + 4 * C) / 2;
vec4 halves(uvec2 w)
{
    return vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
}
#endif

void main()
{
    uint head = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    if (rows == 0)
        return;
    // With one part the compiler must see that keys are the same for all invocations.
    uint part = DSPLIT == 1 ? 0 : lane / COLS;
    uint column = gl_WorkGroupID.x * COLS + (DSPLIT == 1 ? lane : lane % COLS);
    bool inside = column < D;
    uint c = min(column, D - 1);
    uint d0 = part * DP4;     // first key, in vec4
    uint t0 = part * CP4 * 4; // first token of its part of a block

    vec4 s[DP4];
    uint state_at = (head * D + d0 * 4) * D + c;
    for (uint n = 0; n < DP4; n++)
        s[n] = vec4(state[state_at + (n * 4) * D], state[state_at + (n * 4 + 1) * D],
                    state[state_at + (n * 4 + 2) * D], state[state_at + (n * 4 + 3) * D]);

    for (uint start = 0; start < rows; start += C) {
        uint m = min(rows - start, C);
        uint block = (start / C * push.head_count + head) * BLOCK_WORDS;
#ifdef HALF
        uint factors = block + C * C / 2;
        uint q_at = block / 2 + TILES2 + d0, k_at = q_at + C * D4, stride4 = D4;
        uint v_at = block / 2 + TILES2 + 2 * C * D4 + c / 4;
#else
        uint factors = block + C * C;
        uint row0 = start * push.qkv_stride4 + (push.head_base + head) * 3 * D4;
        uint q_at = row0 + d0, k_at = q_at + D4, stride4 = push.qkv_stride4;
        uint v_at = (row0 + 2 * D4) * 4 + c;
#endif
        // Values of the tokens whose scores this invocation applies; no row has scores of absent ones.
        vec4 v[CP4];
        for (uint n = 0; n < CP4; n++) {
            for (uint x = 0; x < 4; x++) {
                uint token = min(t0 + n * 4 + x, m - 1);
#ifdef HALF
                v[n][x] = halves(scratch2[v_at + token * D4])[c % 4] *
                          scratch[block + SCALES + 2 * C + token];
#else
                v[n][x] = qkv[v_at + token * push.qkv_stride4 * 4];
#endif
            }
        }
        for (uint i = 0; i < m; i++) {
            vec4 inter = vec4(0);
            for (uint n = 0; n < DP4; n++) {
#ifdef HALF
                inter += halves(scratch2[q_at + i * stride4 + n]) * s[n];
#else
                inter += qkv4[q_at + i * stride4 + n] * s[n];
#endif
            }
            vec4 intra = vec4(0);
            for (uint n = 0; n < CP4; n++) {
                uint j = t0 + n * 4;
                if (CP4 * DSPLIT * 4 > C && j >= C)
                    break;
#ifdef HALF
                vec4 p = halves(scratch2[block / 2 + (i * C + j) / 4]);
#else
                vec4 p = scratch4[(block + i * C + j) / 4];
#endif
                // Later tokens are left out, not multiplied by zero: they may be NaN.
                vec4 w = v[n];
                if (j + 3 > i)
                    w = vec4(j <= i ? w.x : 0.0, j + 1 <= i ? w.y : 0.0, j + 2 <= i ? w.z : 0.0, 0.0);
                intra += p * w;
            }
            float from_state = (inter.x + inter.y) + (inter.z + inter.w);
            float from_block = (intra.x + intra.y) + (intra.z + intra.w);
#ifdef HALF
            from_state *= scratch[block + SCALES + i];
            from_block *= scratch[block + SCALES + 3 * C + i];
#endif
            float o = from_block + scratch[factors + i] * from_state;
            if (DSPLIT == 1) {
                if (inside)
                    outputs[(start + i) * push.out_stride + (push.head_base + head) * D + column] = o;
            } else {
                partial[i * WG + lane] = o;
            }
        }
        if (DSPLIT > 1) {
            barrier();
            for (uint e = lane; e < m * COLS; e += WG) {
                uint i = e / COLS, at = i * WG + e % COLS;
                uint to = gl_WorkGroupID.x * COLS + e % COLS;
                float o = partial[at];
                for (uint p = 1; p < DSPLIT; p++)
                    o += partial[at + p * COLS];
                if (to < D)
                    outputs[(start + i) * push.out_stride + (push.head_base + head) * D + to] = o;
            }
            barrier();
        }

        float fade = scratch[factors + 2 * C];
        for (uint n = 0; n < DP4; n++)
            s[n] += fade * s[n];
        // Unrolled it would be C conditions in each other, all with the state in registers.
        [[dont_unroll]] for (uint j = 0; j < m; j++) {
#ifdef HALF
            float value = halves(scratch2[v_at + j * D4])[c % 4] *
                          scratch[block + SCALES + 2 * C + j] * scratch[block + SCALES + C + j];
#else
            float value = qkv[v_at + j * push.qkv_stride4 * 4];
#endif
            float w = scratch[factors + C + j] * value;
            for (uint n = 0; n < DP4; n++) {
#ifdef HALF
                s[n] += halves(scratch2[k_at + j * stride4 + n]) * w;
#else
                s[n] += qkv4[k_at + j * stride4 + n] * w;
#endif
            }
        }
    }

    // Where the state was read from, as the compiler can't know: it would keep all those addresses in
    // registers until here.
    state_at += rows >> 31;
    if (inside) {
        for (uint n = 0; n < DP4; n++)
            for (uint x = 0; x < 4; x++)
                state[state_at + (n * 4 + x) * D] = s[n][x];
    }
}
