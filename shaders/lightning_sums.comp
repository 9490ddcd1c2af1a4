// Lightning prefill in chunks, first of three kernels (then lightning_scan, lightning_coopmat): what
// each chunk of n tokens adds to a state,
//     sum_j exp(-s (n-1-j)) k_j^T v_j
// block after block of m tokens:
//     S += expm1(-s m) S + sum_j exp(-s (m-1-j)) k_j^T v_j, from S = 0
//
// data   [rows][stride] halves, per head q, k, v of D; times scale [rows][stride / D] (powers of two)
// decay  [heads][DECAY_STRIDE], inc/lightning.glsl
// sums   [chunks][heads of this dispatch][D (key)][D (value)] f32; those of chunks without a real row
//        are left as they are
//
// Workgroup = (slice of VS value columns, head, chunk) in RG x CG subgroups: subgroup (r, c) has the
// keys of group r and the columns of group c. The next block's k and v are on their way to registers
// while one is worked on. Numerics as in lightning_coopmat.
#version 450
#pragma use_storage_buffer
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_GOOGLE_include_directive : require
#include "inc/lightning.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 256;
layout(constant_id = 1) const uint D = 128;
layout(constant_id = 2) const uint C = 64;  // tokens of a block
layout(constant_id = 3) const uint VS = 64; // value columns of a workgroup
layout(constant_id = 4) const uint RG = 4;
layout(constant_id = 5) const uint CG = 2;
layout(constant_id = 6) const uint T = 16; // matrices are T x T x T

layout(std430, binding = 0) readonly buffer Data { uvec4 data8[]; };
layout(std430, binding = 1) readonly buffer Scale { float scale[]; };
layout(std430, binding = 2) readonly buffer Decay { float decay[]; };
layout(std430, binding = 3) writeonly buffer Sums { float sums[]; };

layout(push_constant) uniform Push {
    uint row_base;   // first row bound, counted in the step
    uint row_cap;    // rows bound
    uint stride;     // halves from row to row
    uint head_base;  // first head of this dispatch
    uint chunk_rows; // a multiple of C
} push;

const uint D8 = D / 8, V8 = VS / 8; // a row in vectors of 8 halves
// Rows in shared memory: odd numbers of vectors lie in different banks.
const uint XP = D8 + 1;
const uint YP = V8 + 1;
shared uvec4 sh_k[C * XP];
shared uvec4 sh_v[C * YP];
shared float sh_log[C];        // log2 of b_j c_j, the scales of k and v
shared float16_t sh_weight[C]; // of a key in the sum

#define ACC coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define MA coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseA>
#define MB coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseB>
const int ROW = gl_CooperativeMatrixLayoutRowMajor;
const int COL = gl_CooperativeMatrixLayoutColumnMajor;

const uint OT = VS / CG / T; // column tiles of a subgroup
const uint KT = D / RG / T;  // its row tiles
const uint CT = C / T;
const uint K_LOADS = C * D8 / WG; // of an invocation
const uint V_LOADS = C * V8 / WG;

float power_of_two(int e)
{
    return uintBitsToFloat(uint(clamp(e, -126, 127) + 127) << 23);
}

int exponent_of(float x) // of a power of two
{
    return int((floatBitsToUint(x) >> 23) & 255u) - 127;
}

// Starts loading rows of the block at `start`.
#define FETCH(start)                                                                               \
    [[unroll]] for (uint n = 0; n < K_LOADS; n++) {                                                \
        uint e = n * WG + t, r = (start) + e / D8;                                                 \
        next_k[n] = r < rows ? data8[r * stride8 + k8 + e % D8] : uvec4(0);                        \
    }                                                                                              \
    [[unroll]] for (uint n = 0; n < V_LOADS; n++) {                                                \
        uint e = n * WG + t, r = (start) + e / V8;                                                 \
        next_v[n] = r < rows ? data8[r * stride8 + v8 + e % V8] : uvec4(0);                        \
    }                                                                                              \
    if (t < C && (start) + t < rows) {                                                             \
        uint at = ((start) + t) * scales + h * 3;                                                  \
        next_scale = vec2(scale[at + 1], scale[at + 2]);                                           \
    }

void main()
{
    uint head = gl_WorkGroupID.y, slice = gl_WorkGroupID.x, t = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint from = gl_WorkGroupID.z * push.chunk_rows;
    if (from >= rows)
        return;
    rows = min(rows, from + push.chunk_rows);
    uint rg = gl_SubgroupID / CG, cg = gl_SubgroupID % CG;
    uint h = push.head_base + head;
    uint table = h * DECAY_STRIDE;
    float log_slope = decay[table + LOG_AT];
    uint k8 = h * 3 * D8 + D8, v8 = k8 + D8 + slice * V8;
    uint stride8 = push.stride / 8, scales = push.stride / D;

    ACC s[KT * OT];
    [[unroll]] for (uint n = 0; n < KT * OT; n++)
        s[n] = ACC(0);
    uvec4 next_k[K_LOADS], next_v[V_LOADS];
    vec2 next_scale = vec2(1);
    FETCH(from)

    uint blocks = (rows - from + C - 1) / C;
    for (uint block = 0; block < blocks; block++) {
        uint first = from + block * C, high = min(rows - first, C);
        [[unroll]] for (uint n = 0; n < K_LOADS; n++) {
            uint e = n * WG + t;
            sh_k[e / D8 * XP + e % D8] = next_k[n];
        }
        [[unroll]] for (uint n = 0; n < V_LOADS; n++) {
            uint e = n * WG + t;
            sh_v[e / V8 * YP + e % V8] = next_v[n];
        }
        vec2 scale_now = next_scale;
        bool zero = t >= high;
        // The scale of an all-zero block is 1 and says nothing about magnitudes.
        if (!zero && (scale_now.x == 1.0 || scale_now.y == 1.0)) {
            uint at = (first + t) * stride8 + h * 3 * D8 + D8;
            uvec4 k = uvec4(0), v = uvec4(0);
            for (uint n = 0; n < D8; n++) {
                k |= data8[at + n];
                v |= data8[at + D8 + n];
            }
            // Zeros of either sign.
            zero = (k & 0x7fff7fffu) == uvec4(0) || (v & 0x7fff7fffu) == uvec4(0);
        }
        if (t < C)
            sh_log[t] =
                zero ? -1e30 : float(exponent_of(scale_now.x) + exponent_of(scale_now.y));
        barrier();
        if (block + 1 < blocks) {
            FETCH(first + C)
        }

        // log2 of a bound of the weights: every subgroup finds the same one.
        float most = -100, last = float(high - 1);
        uint steps = (C + gl_SubgroupSize - 1) / gl_SubgroupSize;
        for (uint n = 0; n < steps; n++) {
            uint j = n * gl_SubgroupSize + gl_SubgroupInvocationID;
            float lg = j < C ? sh_log[min(j, C - 1)] : -1e30;
            most = max(most, lg - log_slope * (last - float(j)));
        }
        int weights = int(ceil(min(subgroupMax(most), 100.0)));
        if (t < C)
            sh_weight[t] =
                float16_t(zero ? 0.0
                               : scale_now.x * scale_now.y * power_of_two(-weights) *
                                     decay[table + (zero ? 0 : high - 1 - t)]);
        barrier();

        ACC u[KT * OT];
        [[unroll]] for (uint n = 0; n < KT * OT; n++)
            u[n] = ACC(0);
        [[unroll]] for (uint c = 0; c < CT; c++) {
            MB v[OT], weight;
            coopMatLoad(weight, sh_weight, c * T, 0, COL);
            [[unroll]] for (uint ot = 0; ot < OT; ot++) {
                coopMatLoad(v[ot], sh_v, c * T * YP + (cg * OT + ot) * T / 8, YP, ROW);
                v[ot] = v[ot] * weight;
            }
            [[unroll]] for (uint kt = 0; kt < KT; kt++) {
                MA k;
                coopMatLoad(k, sh_k, c * T * XP + (rg * KT + kt) * T / 8, XP, COL);
                [[unroll]] for (uint ot = 0; ot < OT; ot++)
                    u[kt * OT + ot] = coopMatMulAdd(k, v[ot], u[kt * OT + ot]);
            }
        }
        float fade = decay[table + FADE_AT + high];
        float w = power_of_two(weights);
        [[unroll]] for (uint n = 0; n < KT * OT; n++) {
            s[n] = s[n] + s[n] * fade;
            s[n] = s[n] + u[n] * w;
        }
        barrier();
    }

    uint at = (gl_WorkGroupID.z * gl_NumWorkGroups.y + head) * D * D + slice * VS + cg * OT * T +
              rg * KT * T * D;
    [[unroll]] for (uint kt = 0; kt < KT; kt++)
        [[unroll]] for (uint ot = 0; ot < OT; ot++)
            coopMatStore(s[kt * OT + ot], sums, at + kt * T * D + ot * T, D, ROW);
}
