// Lightning prefill with cooperative matrices: one workgroup walks through the blocks of one head
// and a slice of the value columns, the state in accumulators. For a block of m tokens and the
// incoming state S:
//     P[i][j] = exp(-s (i - j)) (q_i . k_j) for j <= i, else 0
//     o_i = sum_j P[i][j] v_j + exp(-s (i+1)) q_i S
//     S  += expm1(-s m) S + sum_j exp(-s (m-1-j)) k_j^T v_j
//
// data   [rows][stride] halves, per head q, k, v of D; times scale [rows][stride / D] (powers of two)
// decay  [heads][DECAY_STRIDE], inc/lightning.glsl
// state  [heads of this dispatch][D (key)][D (value)] f32; CHUNKED: [chunks][heads of this
//        dispatch][D][D], where each chunk starts (lightning_scan.comp), only read
// out    [rows][out_stride] halves; times out_scale [rows][out_stride / VS]
//
// Workgroup = (slice of VS value columns, head, chunk of the rows) in RG x CG subgroups: subgroup (r, c) has the rows of
// group r (queries of the block, then keys of the state) and the columns of group c. While a block is
// worked on, the next one's q, k and v are on their way to registers. Absent rows are zeros.
//
// Shared memory holds one thing after another: sh_x q, then k; sh_y v, then P; sh_s the state as halves,
// then o.
//
// Numerics: halves carry their scales outside: q's and P's row factors leave the sums (rows are
// scaled by powers of two so that no sum of halves can exceed fp16's range), k's and v's are joined
// with the decay in f32. The state's halves are scaled by a bound on its largest magnitude.
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
layout(constant_id = 7) const uint CHUNKED = 0; // 0: all rows are one chunk, its end becomes the state

layout(std430, binding = 0) readonly buffer Data { uvec4 data8[]; };
layout(std430, binding = 1) readonly buffer Scale { float scale[]; };
layout(std430, binding = 2) readonly buffer Decay { float decay[]; };
layout(std430, binding = 3) buffer State { float state[]; };
layout(std430, binding = 4) writeonly buffer Out { uvec4 out8[]; };
layout(std430, binding = 5) writeonly buffer OutScale { float out_scale[]; };

layout(push_constant) uniform Push {
    uint row_base;   // first row bound, counted in the step
    uint row_cap;    // rows bound
    uint stride;     // halves from row to row
    uint head_base;  // first head of this dispatch
    uint out_stride;
    uint chunk_rows; // CHUNKED: a multiple of C
} push;

const uint D8 = D / 8, V8 = VS / 8; // a row in vectors of 8 halves
// Rows in shared memory: odd numbers of vectors lie in different banks.
const uint XP = D8 + 1;
const uint SP = V8 + 1;
const uint YP = (C > VS ? C : VS) / 8 + 1;
shared uvec4 sh_x[C * XP];
shared uvec4 sh_y[C * YP];
shared uvec4 sh_s[(D > C ? D : C) * SP];
shared float sh_diagonal[T * T]; // exp(-s (i - j)) for j <= i, else 0
shared float sh_log[C];   // log2 of b_j c_j, the scales of k and v
shared float sh_scale[C]; // p_i, the power of two of P's row
shared float sh_row[C];   // p_i exp(-s (i mod T))
shared float sh_col[C];   // b_j c_j exp(-s (T - j mod T))
shared float sh_kv[C];    // b_j c_j
shared float sh_from[C];  // what q S is multiplied by to add P v
shared float sh_to[C];    // what the sum is multiplied by to become halves
shared float16_t sh_weight[C]; // of a key in the state's sum
shared float sh_upto[WG];
shared uint sh_max[2];
shared int sh_weights[2]; // log2 of a bound of the weights

#define ACC coopmat<float, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define ACC16 coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseAccumulator>
#define MA coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseA>
#define MB coopmat<float16_t, gl_ScopeSubgroup, T, T, gl_MatrixUseB>
const int ROW = gl_CooperativeMatrixLayoutRowMajor;
const int COL = gl_CooperativeMatrixLayoutColumnMajor;

const uint RT = C / RG / T;  // row tiles of a subgroup
const uint ST = C / CG / T;  // its column tiles of P
const uint OT = VS / CG / T; // its column tiles of o and of the state
const uint KT = D / RG / T;  // its row tiles of the state
const uint DT = D / T;
const uint CT = C / T;
const uint X_LOADS = C * D8 / WG; // of an invocation, for q and for k
const uint PARTS = WG / C;
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
#define FETCH_QK(start)                                                                            \
    [[unroll]] for (uint n = 0; n < X_LOADS; n++) {                                                \
        uint e = n * WG + t, r = (start) + e / D8, at = r * stride8 + q8 + e % D8;                 \
        next_q[n] = r < rows ? data8[at] : uvec4(0);                                               \
        next_k[n] = r < rows ? data8[at + D8] : uvec4(0);                                          \
    }
#define FETCH_V(start)                                                                             \
    [[unroll]] for (uint n = 0; n < V_LOADS; n++) {                                                \
        uint e = n * WG + t, r = (start) + e / V8;                                                 \
        next_v[n] = r < rows ? data8[r * stride8 + v8 + e % V8] : uvec4(0);                        \
    }                                                                                              \
    if (t < C && (start) + t < rows) {                                                             \
        uint at = ((start) + t) * scales + h * 3;                                                  \
        next_scale = vec3(scale[at], scale[at + 1], scale[at + 2]);                                \
    }

void main()
{
    uint head = gl_WorkGroupID.y, slice = gl_WorkGroupID.x, t = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint from = 0, unit = head; // the chunk's first row, the state it starts with
    if (CHUNKED != 0) {
        from = gl_WorkGroupID.z * push.chunk_rows;
        unit += gl_WorkGroupID.z * gl_NumWorkGroups.y;
    }
    if (from >= rows)
        return;
    if (CHUNKED != 0)
        rows = min(rows, from + push.chunk_rows);
    uint rg = gl_SubgroupID / CG, cg = gl_SubgroupID % CG;
    uint h = push.head_base + head;
    uint table = h * DECAY_STRIDE;
    float log_slope = decay[table + LOG_AT];
    uint q8 = h * 3 * D8, v8 = q8 + 2 * D8 + slice * V8;
    uint stride8 = push.stride / 8, scales = push.stride / D;

    ACC s[KT * OT];
    if (t < 2)
        sh_max[t] = 0, sh_weights[t] = -100;
    for (uint n = t; n < T * T; n += WG) {
        uint i = n / T, j = n % T;
        sh_diagonal[n] = j <= i ? decay[table + (j <= i ? i - j : 0)] : 0.0;
    }

    // The incoming state.
    uint state_at = unit * D * D + slice * VS + cg * OT * T + rg * KT * T * D;
    [[unroll]] for (uint kt = 0; kt < KT; kt++)
        [[unroll]] for (uint ot = 0; ot < OT; ot++)
            coopMatLoad(s[kt * OT + ot], state, state_at + kt * T * D + ot * T, D, ROW);
    barrier();
    {
        uint high = 0;
        for (uint n = t; n < D * VS; n += WG)
            high = max(high, floatBitsToUint(abs(state[unit * D * D + slice * VS + n / VS * D + n % VS])));
        atomicMax(sh_max[1], high);
    }
    barrier();
    // Magnitudes of the state are below 2^state_exponent.
    int state_exponent = clamp(int(sh_max[1] >> 23) - 126, -100, 140);

    uvec4 next_q[X_LOADS], next_k[X_LOADS], next_v[V_LOADS];
    vec3 next_scale = vec3(1);
    FETCH_QK(from)
    FETCH_V(from)

    uint blocks = (rows - from + C - 1) / C;
    for (uint block = 0; block < blocks; block++) {
        uint first = from + block * C, high = min(rows - first, C);
        [[unroll]] for (uint n = 0; n < X_LOADS; n++) {
            uint e = n * WG + t;
            sh_x[e / D8 * XP + e % D8] = next_q[n];
        }
        [[unroll]] for (uint n = 0; n < V_LOADS; n++) {
            uint e = n * WG + t;
            sh_y[e / V8 * YP + e % V8] = next_v[n];
        }
        vec3 scale_now = next_scale;
        bool real = t < high, zero = !real;
        // The scale of an all-zero block is 1 and says nothing about magnitudes.
        if (real && (scale_now.y == 1.0 || scale_now.z == 1.0)) {
            uint at = (first + t) * stride8 + q8 + D8;
            uvec4 k = uvec4(0), v = uvec4(0);
            for (uint n = 0; n < D8; n++) {
                k |= data8[at + n];
                v |= data8[at + D8 + n];
            }
            // Zeros of either sign.
            zero = (k & 0x7fff7fffu) == uvec4(0) || (v & 0x7fff7fffu) == uvec4(0);
        }
        float kv = zero ? 0.0 : scale_now.y * scale_now.z;
        if (t < C)
            sh_log[t] =
                zero ? -1e30 : float(exponent_of(scale_now.y) + exponent_of(scale_now.z));
        barrier();

        // For the factors below. A part of the keys each: log2 of the largest b_j c_j exp(-s (i - j)),
        // j <= i, and of the largest weight of the state's sum.
        {
            float i = float(t % C), last = float(high - 1), upto = -1e30, all = -100;
            [[unroll]] for (uint n = 0; n < C / PARTS; n++) {
                float lg = sh_log[t / C + n * PARTS], j = float(t / C + n * PARTS);
                all = max(all, lg - log_slope * (last - j));
                upto = j <= i ? max(upto, lg - log_slope * (i - j)) : upto;
            }
            sh_upto[t] = upto;
            int bound = subgroupMax(int(ceil(min(all, 100.0))));
            if (subgroupElect())
                atomicMax(sh_weights[block & 1], bound);
        }
        MA q[RT * DT];
        MB v[CT * OT];
        [[unroll]] for (uint rt = 0; rt < RT; rt++)
            [[unroll]] for (uint d = 0; d < DT; d++)
                coopMatLoad(q[rt * DT + d], sh_x, (rg * RT + rt) * T * XP + d * T / 8, XP, ROW);
        [[unroll]] for (uint c = 0; c < CT; c++)
            [[unroll]] for (uint ot = 0; ot < OT; ot++)
                coopMatLoad(v[c * OT + ot], sh_y, c * T * YP + (cg * OT + ot) * T / 8, YP, ROW);
        {
            float mu = power_of_two(15 - state_exponent), most = 0;
            [[unroll]] for (uint kt = 0; kt < KT; kt++) {
                [[unroll]] for (uint ot = 0; ot < OT; ot++) {
                    ACC x = s[kt * OT + ot];
                    coopMatStore(ACC16(x * mu), sh_s,
                                 (rg * KT + kt) * T * SP + (cg * OT + ot) * T / 8, SP, ROW);
                    [[unroll]] for (uint e = 0; e < x.length(); e++)
                        most = max(most, abs(x[e]));
                }
            }
            uint bits = subgroupMax(floatBitsToUint(most));
            if (subgroupElect())
                atomicMax(sh_max[block & 1], bits);
        }
        barrier();
        [[unroll]] for (uint n = 0; n < X_LOADS; n++) {
            uint e = n * WG + t;
            sh_x[e / D8 * XP + e % D8] = next_k[n];
        }
        if (block + 1 < blocks) {
            FETCH_V(first + C)
        }
        barrier();

        // Factors of row (query and key) t.
        if (t < C) {
            float upto = sh_upto[t];
            [[unroll]] for (uint n = 1; n < PARTS; n++)
                upto = max(upto, sh_upto[n * C + t]);
            int weights = sh_weights[block & 1];
            sh_max[(block + 1) & 1] = 0; // by all: nothing here may split a subgroup
            sh_weights[(block + 1) & 1] = -100;
            float carried = float(state_exponent) - log_slope * float(t + 1);
            int e = int(ceil(clamp(max(upto, carried - 60.0), -90.0, 100.0)));
            float p = power_of_two(-20 - e);
            sh_scale[t] = p;
            sh_row[t] = p * decay[table + t % T];
            sh_col[t] = kv * decay[table + T - t % T];
            sh_kv[t] = kv;
            sh_from[t] =
                real ? decay[table + t + 1] * power_of_two(state_exponent - 15 - 20 - e) : 0.0;
            // Sums are below 2^bound: 2^15 2^14 C from the block, 2^14 D 2^carried p from the state.
            int bound = 1 + max(29 + findMSB(C), int(ceil(carried)) + 14 + findMSB(D) - 20 - e);
            sh_to[t] = power_of_two(15 - bound);
            sh_weight[t] = float16_t(!zero ? kv * power_of_two(-weights) *
                                                 decay[table + (real ? high - 1 - t : 0)]
                                          : 0.0);
            if (real)
                out_scale[(first + t) * (push.out_stride / VS) + h * (D / VS) + slice] =
                    scale_now.x * power_of_two(bound - 15 + 20 + e);
        }

        // q k^T
        ACC p[RT * ST];
        [[unroll]] for (uint rt = 0; rt < RT; rt++) {
            [[unroll]] for (uint st = 0; st < ST; st++) {
                uint i = rg * RT + rt, j = cg + CG * st;
                p[rt * ST + st] = ACC(0);
                if (j <= i) {
                    [[unroll]] for (uint d = 0; d < DT; d++) {
                        MB k;
                        coopMatLoad(k, sh_x, j * T * XP + d * T / 8, XP, COL);
                        p[rt * ST + st] = coopMatMulAdd(q[rt * DT + d], k, p[rt * ST + st]);
                    }
                }
            }
        }
        // q S
        ACC o[RT * OT];
        [[unroll]] for (uint n = 0; n < RT * OT; n++)
            o[n] = ACC(0);
        [[unroll]] for (uint ot = 0; ot < OT; ot++) {
            [[unroll]] for (uint d = 0; d < DT; d++) {
                MB b;
                coopMatLoad(b, sh_s, d * T * SP + (cg * OT + ot) * T / 8, SP, ROW);
                [[unroll]] for (uint rt = 0; rt < RT; rt++)
                    o[rt * OT + ot] = coopMatMulAdd(q[rt * DT + d], b, o[rt * OT + ot]);
            }
        }
        barrier();
        [[unroll]] for (uint rt = 0; rt < RT; rt++) {
            uint i = rg * RT + rt;
            ACC factor;
            coopMatLoad(factor, sh_row, i * T, 0, COL);
            [[unroll]] for (uint st = 0; st < ST; st++) {
                uint j = cg + CG * st;
                if (j < i) {
                    ACC column;
                    coopMatLoad(column, sh_col, j * T, 0, ROW);
                    float between = decay[table + (i - j - 1) * T];
                    ACC x = p[rt * ST + st] * factor;
                    x = x * column;
                    coopMatStore(ACC16(x * between), sh_y, i * T * YP + j * T / 8, YP, ROW);
                } else if (j == i) {
                    ACC row, column, diagonal;
                    coopMatLoad(diagonal, sh_diagonal, 0, T, ROW);
                    coopMatLoad(row, sh_scale, i * T, 0, COL);
                    coopMatLoad(column, sh_kv, j * T, 0, ROW);
                    ACC x = p[rt * ST + st] * row;
                    x = x * column;
                    // Later keys are left out, not multiplied by zero: they may be NaN.
                    [[unroll]] for (uint e = 0; e < x.length(); e++)
                        x[e] = diagonal[e] == 0.0 ? 0.0 : x[e] * diagonal[e];
                    coopMatStore(ACC16(x), sh_y, i * T * YP + j * T / 8, YP, ROW);
                }
            }
            coopMatLoad(factor, sh_from, i * T, 0, COL);
            [[unroll]] for (uint ot = 0; ot < OT; ot++)
                o[rt * OT + ot] = o[rt * OT + ot] * factor;
        }
        barrier();
        // Later than v: with fewer registers waiting the products overlap better.
        if (block + 1 < blocks) {
            FETCH_QK(first + C)
        }
        // P v
        [[unroll]] for (uint rt = 0; rt < RT; rt++) {
            uint i = rg * RT + rt;
            [[unroll]] for (uint c = 0; c < CT; c++) {
                if (c <= i) {
                    MA a;
                    coopMatLoad(a, sh_y, i * T * YP + c * T / 8, YP, ROW);
                    [[unroll]] for (uint ot = 0; ot < OT; ot++)
                        o[rt * OT + ot] = coopMatMulAdd(a, v[c * OT + ot], o[rt * OT + ot]);
                }
            }
        }
        [[unroll]] for (uint rt = 0; rt < RT; rt++) {
            ACC factor;
            coopMatLoad(factor, sh_to, (rg * RT + rt) * T, 0, COL);
            [[unroll]] for (uint ot = 0; ot < OT; ot++)
                coopMatStore(ACC16(o[rt * OT + ot] * factor), sh_s,
                             (rg * RT + rt) * T * SP + (cg * OT + ot) * T / 8, SP, ROW);
        }

        // The state
        [[unroll]] for (uint c = 0; c < CT; c++) {
            MB weight;
            coopMatLoad(weight, sh_weight, c * T, 0, COL);
            [[unroll]] for (uint ot = 0; ot < OT; ot++)
                v[c * OT + ot] = v[c * OT + ot] * weight;
        }
        float fade = decay[table + FADE_AT + high];
        float w = power_of_two(sh_weights[block & 1]);
        [[unroll]] for (uint kt = 0; kt < KT; kt++) {
            ACC u[OT];
            [[unroll]] for (uint ot = 0; ot < OT; ot++)
                u[ot] = ACC(0);
            [[unroll]] for (uint c = 0; c < CT; c++) {
                MA k;
                coopMatLoad(k, sh_x, c * T * XP + (rg * KT + kt) * T / 8, XP, COL);
                [[unroll]] for (uint ot = 0; ot < OT; ot++)
                    u[ot] = coopMatMulAdd(k, v[c * OT + ot], u[ot]);
            }
            [[unroll]] for (uint ot = 0; ot < OT; ot++) {
                s[kt * OT + ot] = s[kt * OT + ot] + s[kt * OT + ot] * fade;
                s[kt * OT + ot] = s[kt * OT + ot] + u[ot] * w;
            }
        }
        int held = int(sh_max[block & 1] >> 23) - 126;
        held -= int(floor(log_slope * float(high)));
        state_exponent =
            clamp(max(held, 28 + findMSB(C) + sh_weights[block & 1]), -100, 140) + 1;
        barrier();
        [[unroll]] for (uint n = 0; n < V_LOADS; n++) {
            uint e = n * WG + t, r = e / V8;
            if (r < high)
                out8[(first + r) * (push.out_stride / 8) + h * D8 + slice * V8 + e % V8] =
                    sh_s[r * SP + e % V8];
        }
    }

    if (CHUNKED != 0)
        return;
    [[unroll]] for (uint kt = 0; kt < KT; kt++)
        [[unroll]] for (uint ot = 0; ot < OT; ot++)
            coopMatStore(s[kt * OT + ot], state, state_at + kt * T * D + ot * T, D, ROW);
}
