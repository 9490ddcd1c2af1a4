// Lightning prefill, first of two kernels: what the walk needs of each block of C tokens.
//     P[i][j] = exp(-s (i - j)) (q_i . k_j) for j <= i, else 0
//
// qkv     [rows][qkv_stride] f32, per head q, k, v of D
// decay   [heads][DECAY_STRIDE], inc/lightning.glsl
// scratch [blocks][heads of this dispatch][BLOCK_WORDS]:
//     f32:  P [C][C] | exp(-s (i+1)) [C] | exp(-s (m-1-j)) [C], 0 from m on | expm1(-s m)
//     HALF: the same with P as halves, at C*C/2 + 4 C: row scales of q, k, v, P [4][C] ..., then the
//           rows of q, k and v as halves, [3][C][D]
// where m is the number of real tokens in the block.
//
// Workgroup = one block of one head. JL invocations side by side take one key each, the groups of JL
// take IT queries each. Nothing is reduced across invocations but HALF's row maxima.
//
// HALF rounds q, k, v (per token and head) and the rows of P to fp16 after a power-of-two scale that
// puts the row's largest magnitude into [2^13, 2^14); products and sums stay f32.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/lightning.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint C = 16;
layout(constant_id = 3) const uint JL = 16;
layout(constant_id = 4) const uint IT = 2;
layout(constant_id = 5) const uint BLOCK_WORDS = 320;

layout(std430, binding = 0) readonly buffer Qkv { vec4 qkv[]; };
layout(std430, binding = 1) readonly buffer Decay { float decay[]; };
#ifdef HALF
layout(std430, binding = 2) writeonly buffer Scratch { uint scratch[]; };
#else
layout(std430, binding = 2) writeonly buffer Scratch { float scratch[]; };
#endif

layout(push_constant) uniform Push {
    uint row_base;    // first row bound, counted in the step
    uint row_cap;     // rows bound
    uint qkv_stride4; // vec4s from row to row
    uint head_base;   // first head of this dispatch
    uint head_count;
} push;

const uint D4 = D / 4;

#ifdef HALF
const uint LANES = 4; // invocations that share a row
const uint SCALES = C * C / 2 + 4 * C;
const uint TILES = SCALES + 4 * C;
shared uint row_max[WG];
shared float forward[3 * C]; // multipliers of the rows of q, k, v ...
shared float back[3 * C];    // ... and what undoes them
shared float scores[C * C];

vec4 rounded(vec4 x, float multiplier)
{
    vec4 y = x * multiplier;
    return vec4(unpackHalf2x16(packHalf2x16(y.xy)), unpackHalf2x16(packHalf2x16(y.zw)));
}

uint max_bits(vec4 x)
{
    uvec4 b = floatBitsToUint(x) & ABS_MASK;
    return max(max(b.x, b.y), max(b.z, b.w));
}

// Rows of q, k, v as halves with their scales; rows from m on are zeros.
void pack_tiles(uint base, uint out_at, uint m)
{
    uint lane = gl_LocalInvocationID.x % LANES;
    for (uint r0 = 0; r0 < 3 * C; r0 += WG / LANES) {
        uint r = r0 + gl_LocalInvocationID.x / LANES;
        uint part = r / C, token = r % C;
        bool real = r < 3 * C && token < m;
        uint at = base + token * push.qkv_stride4 + part * D4;
        uint high = 0;
        if (real)
            for (uint d = lane; d < D4; d += LANES)
                high = max(high, max_bits(qkv[at + d]));
        row_max[gl_LocalInvocationID.x] = high;
        barrier();
        uint first = gl_LocalInvocationID.x - lane;
        for (uint n = 0; n < LANES; n++)
            high = max(high, row_max[first + n]);
        float multiplier = half_multiplier(high);
        if (r < 3 * C) {
            if (lane == 0) {
                forward[r] = multiplier;
                back[r] = half_row_scale(high);
                scratch[out_at + SCALES + r] = floatBitsToUint(half_row_scale(high));
            }
            for (uint d = lane; d < D4; d += LANES) {
                vec4 x = real ? qkv[at + d] * multiplier : vec4(0);
                uint to = out_at + TILES + (r * D4 + d) * 2;
                scratch[to] = packHalf2x16(x.xy);
                scratch[to + 1] = packHalf2x16(x.zw);
            }
        }
        barrier();
    }
}

// Rows of P as halves. Invocation i takes row i: C is small.
void pack_scores(uint out_at)
{
    barrier();
    for (uint i = gl_LocalInvocationID.x; i < C; i += WG) {
        uint high = 0;
        for (uint j = 0; j < C; j++)
            high = max(high, floatBitsToUint(scores[i * C + j]) & ABS_MASK);
        float multiplier = half_multiplier(high);
        scratch[out_at + SCALES + 3 * C + i] = floatBitsToUint(half_row_scale(high));
        for (uint j = 0; j < C; j += 2)
            scratch[out_at + (i * C + j) / 2] =
                packHalf2x16(vec2(scores[i * C + j], scores[i * C + j + 1]) * multiplier);
    }
}
#endif

void put(uint at, float x)
{
#ifdef HALF
    scratch[at] = floatBitsToUint(x);
#else
    scratch[at] = x;
#endif
}

void main()
{
    uint block = gl_WorkGroupID.x, head = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint start = block * C;
    if (start >= rows)
        return;
    uint m = min(rows - start, C);
    uint base = start * push.qkv_stride4 + (push.head_base + head) * 3 * D4;
    uint decay_at = (push.head_base + head) * DECAY_STRIDE;
    uint out_at = (block * push.head_count + head) * BLOCK_WORDS;

#ifdef HALF
    pack_tiles(base, out_at, m);
    uint factors = out_at + C * C / 2;
#else
    uint factors = out_at + C * C;
#endif
    for (uint j0 = 0; j0 < C; j0 += JL) {
        uint j = j0 + lane % JL;
        // With one group the queries are the same for all invocations, and the compiler must see it.
        uint i0 = WG == JL ? 0 : lane / JL * IT;
        float sum[IT];
        for (uint n = 0; n < IT; n++)
            sum[n] = 0;
        // Beyond the last real token the last one stands in: what is computed there is not used.
        uint key = min(j, m - 1);
        // Unrolled whole, it would have all of q and k in registers.
        [[dont_unroll]] for (uint d = 0; d < D4; d++) {
            vec4 k = qkv[base + key * push.qkv_stride4 + D4 + d];
#ifdef HALF
            k = rounded(k, forward[C + key]);
#endif
            for (uint n = 0; n < IT; n++) {
                uint query = min(i0 + n, m - 1);
                vec4 q = qkv[base + query * push.qkv_stride4 + d];
#ifdef HALF
                q = rounded(q, forward[query]);
#endif
                sum[n] += dot(q, k);
            }
        }
        for (uint n = 0; n < IT; n++) {
            uint i = i0 + n;
            if (i < C) {
#ifdef HALF
                sum[n] *= back[min(i, m - 1)] * back[C + key];
#endif
                float p = j <= i ? sum[n] * decay[decay_at + (j <= i ? i - j : 0)] : 0.0;
#ifdef HALF
                scores[i * C + j] = p;
#else
                put(out_at + i * C + j, p);
#endif
            }
        }
    }
#ifdef HALF
    pack_scores(out_at);
#endif
    for (uint t = lane; t < C; t += WG) {
        put(factors + t, decay[decay_at + t + 1]);
        put(factors + C + t, t < m ? decay[decay_at + m - 1 - t] : 0.0);
        if (t == 0)
            put(factors + 2 * C, decay[decay_at + FADE_AT + m]);
    }
}
