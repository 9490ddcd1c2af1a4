// Causal softmax attention on matrix units over one window of a cache of halves, by online softmax
// over tiles of BC keys:
//     out = sum_j exp(q.k_j / sqrt(D) - m) v_j / sum_j exp(q.k_j / sqrt(D) - m),  j <= position of q
//
// qkv   [rows][qkv_stride] f32: rotated q heads first
// cache as in rope_append, KV_F16
// carry [rows][heads][splits][D + 4] f32: sums o [D], what was subtracted from their exponents m,
//       the sum of weights l, the unit. Here sums go from window to window; with several splits
//       attention_merge reads the last ones.
// out   [rows][out_stride] f32; written here if there is one split
//
// Workgroup = (kv head, tile, split). The rows of a tile are BR consecutive pairs (token, query head
// of this kv head), MM of them a subgroup; subgroups share the tiles of keys and values, which pass
// through registers while the tile before is worked on. Scores, weights and sums are f32; matrix
// units see scaled halves only:
//  - Scores are multiplied by the scales of their query and key afterwards.
//  - m is a row's largest score so far, so weights are at most 1. The sums are rescaled at every tile:
//    leaving that out where no score rises would need matrices that are changed in a branch, which two
//    compilers got wrong.
//  - Lanes are kept together: those that part over a condition need not have met again at the next
//    operation of a subgroup. With NVIDIA's driver 580 a largest scale by subgroupMax, after loads that
//    some lanes skip, came out as if other lanes were not there, in one step of decode out of a hundred.
//    So each lane looks at all scales, and all lanes work on a subgroup's rows, some twice.
//  - A weight goes to the matrix unit times its value's scale. To keep that a half, weights carry the
//    factor 2^(15 - unit), unit being the largest exponent of a value's scale so far (it cancels in
//    o / l). So values below 2^-28 of the largest in the tiles so far lose precision. To visit tiles of
//    wider range several times would need a loop around matrices, in which a driver hung.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_arithmetic : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_control_flow_attributes : require
#ifdef CONVERT
#extension GL_NV_cooperative_matrix2 : require
#endif
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 256;
layout(constant_id = 1) const uint SG = 32; // subgroup size
layout(constant_id = 2) const uint MM = 16; // a product: MM x KK times KK x NN
layout(constant_id = 3) const uint NN = 16;
layout(constant_id = 4) const uint KK = 16;
layout(constant_id = 5) const uint D = 128;
layout(constant_id = 6) const uint BC = 64; // keys of a tile
layout(constant_id = 7) const uint HEADS = 1;
layout(constant_id = 8) const uint KV_HEADS = 1;
layout(constant_id = 9) const uint KV_WORDS = 128;

layout(std430, binding = 0) readonly buffer Qkv { vec4 qkv[]; };
layout(std430, binding = 1) readonly buffer Cache { uvec4 cache[]; };
layout(std430, binding = 1) readonly buffer CacheScale { float cache_scale[]; };
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

const uint SUBGROUPS = WG / SG;
const uint BR = SUBGROUPS * MM; // pairs of a workgroup
const uint GROUP = HEADS / KV_HEADS;
const uint LD = D / 8 + 1;      // of a row of a tile, in uvec4: a step that spreads over the banks
const uint C4 = D / 4 + 1;      // of a carry, in vec4
const uint XN = (D / 4 + SG - 1) / SG;
const uint MINE = (MM + SG - 1) / SG; // rows of a lane, where each has its own
const uint K_AT = 0, V_AT = BC * LD;
const uint PC = 2 * KK;         // columns of weights that go through scratch at once
const uint PLD = PC / 8 + 1;
const uint SCRATCH = MM * PLD > MM * NN / 4 ? MM * PLD : MM * NN / 4;
const float LOWEST = -3.4028234e38;

shared uvec4 tiles[2 * BC * LD];
shared uvec4 scratch[SUBGROUPS * SCRATCH];
shared float key_scale[BC], value_scale[BC], column_of[NN];
shared float row_value[BR];
shared uvec4 value_bits[BC / 4]; // of the scales that are finite, else 0

#define SUM coopmat<float, gl_ScopeSubgroup, MM, NN, gl_MatrixUseAccumulator>
#define HALF_SUM coopmat<float16_t, gl_ScopeSubgroup, MM, NN, gl_MatrixUseAccumulator>
#define LEFT coopmat<float16_t, gl_ScopeSubgroup, MM, KK, gl_MatrixUseA>
#define RIGHT coopmat<float16_t, gl_ScopeSubgroup, KK, NN, gl_MatrixUseB>

// On their way into shared memory: a tile of keys or of values, and its scales.
const uint TILE = BC * D / 8;
const uint PRE = (TILE + WG - 1) / WG, PRE_SCALES = (BC + WG - 1) / WG;
uvec4 pre[PRE];
float pre_scale[PRE_SCALES];

void fetch(uint token0, uint end, uint slot)
{
    [[unroll]] for (uint i = 0; i < PRE; i++) {
        uint at = i * WG + gl_LocalInvocationID.x, token = token0 + at / (D / 8);
        pre[i] = uvec4(0);
        if (at < TILE && token < end)
            pre[i] = cache[token * (KV_WORDS / 4) + slot * (D / 8) + at % (D / 8)];
    }
    [[unroll]] for (uint i = 0; i < PRE_SCALES; i++) {
        uint key = i * WG + gl_LocalInvocationID.x;
        pre_scale[i] = key < BC && token0 + key < end
                           ? cache_scale[(token0 + key) * KV_WORDS + KV_HEADS * D + slot]
                           : 0.0;
    }
}

void stage(bool keys)
{
    [[unroll]] for (uint i = 0; i < PRE; i++) {
        uint at = i * WG + gl_LocalInvocationID.x;
        if (at < TILE)
            tiles[(keys ? K_AT : V_AT) + at / (D / 8) * LD + at % (D / 8)] = pre[i];
    }
    [[unroll]] for (uint i = 0; i < PRE_SCALES; i++) {
        uint key = i * WG + gl_LocalInvocationID.x;
        if (key < BC && keys)
            key_scale[key] = pre_scale[i];
        else if (key < BC) {
            value_scale[key] = pre_scale[i];
            value_bits[key / 4][key % 4] = is_finite(pre_scale[i]) ? floatBitsToUint(pre_scale[i]) : 0;
        }
    }
}

// The largest exponent of the scale of a value that is finite and not zero; -127: there is none.
int highest_scale()
{
    uvec4 high = uvec4(0);
    [[unroll]] for (uint k = 0; k < BC / 4; k++)
        high = max(high, value_bits[k]);
    return int(max(max(high.x, high.y), max(high.z, high.w)) >> 23) - 127;
}

void main()
{
    uint lane = gl_SubgroupInvocationID, sub = gl_SubgroupID, local = gl_LocalInvocationID.x;
    uint kv_head = gl_WorkGroupID.x, split = gl_WorkGroupID.z;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint pairs = rows * GROUP;
    // Tiles with most keys come first.
    uint first_pair = (gl_NumWorkGroups.y - 1 - gl_WorkGroupID.y) * BR;
    if (first_pair >= pairs)
        return;
    // Keys of the tile, of the split's share of them, and of this window's part of that.
    uint position = step.position + push.row_base;
    uint tile_keys = position + (min(first_pair + BR, pairs) - 1) / GROUP + 1;
    uint per_split = max((tile_keys + push.splits - 1) / push.splits, push.split_keys);
    uint share_begin = split * per_split, share_end = min(share_begin + per_split, tile_keys);
    uint begin = max(share_begin, push.first_token);
    uint end = min(share_end, push.first_token + push.token_count);
    if (begin >= end)
        return;
    bool fresh = begin == share_begin;
    uint first_row = first_pair / GROUP;
    uint all_visible = position + first_row + 1; // keys, to every row of the tile
    uint row_at = sub * MM, scratch_at = sub * SCRATCH;
    uint window_end = end - push.first_token;

    // Queries become halves with a scale a row.
    fetch(begin - push.first_token, window_end, kv_head);
    vec4 x[MM * XN];
    [[unroll]] for (uint i = 0; i < MM * XN; i++) {
        uint pair = first_pair + row_at + i / XN, d = i % XN * SG + lane;
        x[i] = pair < pairs && d < D / 4 ? qkv[pair / GROUP * push.qkv_stride4 +
                                               (kv_head * GROUP + pair % GROUP) * (D / 4) + d]
                                         : vec4(0);
    }
    subgroupBarrier();
    [[unroll]] for (uint r = 0; r < MM; r++) {
        uint high = 0;
        [[unroll]] for (uint i = 0; i < XN; i++) {
            uvec4 bits = floatBitsToUint(x[r * XN + i]) & ABS_MASK;
            high = max(high, max(max(bits.x, bits.y), max(bits.z, bits.w)));
        }
        high = subgroupMax(high);
        float multiplier = half_multiplier(high);
        bool good = row_is_finite(high);
        [[unroll]] for (uint i = 0; i < XN; i++) {
            uint d = i * SG + lane, at = (row_at + r) * LD + d / 2;
            vec4 h = x[r * XN + i] * multiplier;
            if (d < D / 4) {
                tiles[at][d % 2 * 2] = good ? packHalf2x16(h.xy) : 0;
                tiles[at][d % 2 * 2 + 1] = good ? packHalf2x16(h.zw) : 0;
            }
        }
        if (lane == 0)
            row_value[row_at + r] = half_row_scale(high) * push.scale;
    }
    for (uint c = local; c < NN; c += WG)
        column_of[c] = float(c);
    barrier();
    LEFT q[D / KK];
    SUM q_scale, relative, column, top = SUM(0.0), weight = SUM(0.0), o[D / NN];
    [[unroll]] for (uint i = 0; i < D / KK; i++)
        coopMatLoad(q[i], tiles, row_at * LD + i * (KK / 8), LD,
                    gl_CooperativeMatrixLayoutRowMajor);
    coopMatLoad(q_scale, row_value, row_at, 0, gl_CooperativeMatrixLayoutColumnMajor);
    coopMatLoad(column, column_of, 0, 0, gl_CooperativeMatrixLayoutRowMajor);
    barrier();
    [[unroll]] for (uint i = 0; i < MINE; i++) {
        uint r = i * SG + lane;
        if (r < MM)
            row_value[row_at + r] = float((first_pair + row_at + r) / GROUP - first_row);
    }
    stage(true);
    fetch(begin - push.first_token, window_end, KV_HEADS + kv_head);
    barrier();
    coopMatLoad(relative, row_value, row_at, 0, gl_CooperativeMatrixLayoutColumnMajor);
    int unit = -88;
    if (fresh) {
        [[unroll]] for (uint n = 0; n < D / NN; n++)
            o[n] = SUM(0.0);
    } else {
        [[unroll]] for (uint n = 0; n < D / NN; n++) {
            subgroupBarrier();
            for (uint i = lane; i < MM * NN / 4; i += SG) {
                uint pair = min(first_pair + row_at + i / (NN / 4), pairs - 1);
                uint head = kv_head * GROUP + pair % GROUP;
                scratch[scratch_at + i] = floatBitsToUint(
                    carry[((pair / GROUP * HEADS + head) * push.splits + split) * C4 +
                          n * (NN / 4) + i % (NN / 4)]);
            }
            subgroupBarrier();
            coopMatLoad(o[n], scratch, scratch_at, NN / 4, gl_CooperativeMatrixLayoutRowMajor);
        }
        // What was subtracted, the sum of weights, and the unit, which is the same in all rows.
        vec4 last[MINE];
        [[unroll]] for (uint i = 0; i < MINE; i++) {
            uint r = i * SG + lane, pair = min(first_pair + row_at + r, pairs - 1);
            uint head = kv_head * GROUP + pair % GROUP;
            last[i] = vec4(0);
            if (r < MM) {
                last[i] = carry[((pair / GROUP * HEADS + head) * push.splits + split) * C4 + D / 4];
                row_value[row_at + r] = last[i].x;
            }
        }
        uint one = min(first_pair + row_at, pairs - 1); // any row: its unit is that of all
        unit = int(carry[((one / GROUP * HEADS + kv_head * GROUP + one % GROUP) * push.splits + split) *
                             C4 + D / 4].z);
        subgroupBarrier();
        coopMatLoad(top, row_value, row_at, 0, gl_CooperativeMatrixLayoutColumnMajor);
        subgroupBarrier();
        [[unroll]] for (uint i = 0; i < MINE; i++)
            if (i * SG + lane < MM)
                row_value[row_at + i * SG + lane] = last[i].y;
        subgroupBarrier();
        coopMatLoad(weight, row_value, row_at, 0, gl_CooperativeMatrixLayoutColumnMajor);
        [[unroll]] for (int e = 0; e < weight.length(); e++)
            weight[e] = column[e] == 0.0 ? weight[e] : 0.0;
    }

    for (uint key0 = begin; key0 < end; key0 += BC) {
        uint next_token = key0 + BC - push.first_token;
        SUM s[BC / NN], high = SUM(LOWEST);
        [[unroll]] for (uint n = 0; n < BC / NN; n++)
            s[n] = SUM(0.0);
        [[unroll]] for (uint i = 0; i < D / KK; i++) {
            [[unroll]] for (uint n = 0; n < BC / NN; n++) {
                RIGHT k;
                coopMatLoad(k, tiles, K_AT + n * NN * LD + i * (KK / 8), LD,
                            gl_CooperativeMatrixLayoutColumnMajor);
                s[n] = coopMatMulAdd(q[i], k, s[n]);
            }
        }
        [[unroll]] for (uint n = 0; n < BC / NN; n++) {
            SUM scale;
            coopMatLoad(scale, key_scale, n * NN, 0, gl_CooperativeMatrixLayoutRowMajor);
            [[unroll]] for (int e = 0; e < scale.length(); e++)
                s[n][e] = s[n][e] * q_scale[e] * scale[e];
        }
        bool masked = key0 + BC > min(all_visible, end);
        if (masked) {
            // Keys up to this column are visible to the tile's first row.
            float ahead = float(int(all_visible - key0) - 1), last = float(end - key0 - 1);
            [[unroll]] for (uint n = 0; n < BC / NN; n++)
                [[unroll]] for (int e = 0; e < high.length(); e++)
                    s[n][e] = column[e] + float(n * NN) > min(relative[e] + ahead, last) ? LOWEST
                                                                                        : s[n][e];
        }
        [[unroll]] for (uint n = 0; n < BC / NN; n++)
            [[unroll]] for (int e = 0; e < high.length(); e++)
                high[e] = max(high[e], s[n][e]);
        stage(false);
        barrier(); // values are there, keys no longer needed
        if (key0 + BC < end)
            fetch(next_token, window_end, kv_head);

        int new_unit = max(unit, highest_scale());
        {
            bool start = fresh && key0 == begin;
            subgroupBarrier();
            coopMatStore(high, scratch, scratch_at, NN / 4, gl_CooperativeMatrixLayoutRowMajor);
            subgroupBarrier();
            [[unroll]] for (uint i = 0; i < MINE; i++) {
                uint r = (i * SG + lane) % MM;
                float m = LOWEST;
                for (uint c = 0; c < NN / 4; c++) {
                    vec4 four = uintBitsToFloat(scratch[scratch_at + r * (NN / 4) + c]);
                    m = max(m, max(max(four.x, four.y), max(four.z, four.w)));
                }
                row_value[row_at + r] = m;
            }
            subgroupBarrier();
            SUM keep;
            coopMatLoad(keep, row_value, row_at, 0, gl_CooperativeMatrixLayoutColumnMajor);
            float shift = float(new_unit - 15), rise = float(new_unit - unit);
            [[unroll]] for (int e = 0; e < keep.length(); e++) {
                float next = keep[e] + shift;
                next = start ? next : max(next, top[e] + rise);
                keep[e] = start ? 0.0 : exp2(top[e] - next);
                top[e] = next;
                weight[e] *= keep[e];
            }
            [[unroll]] for (uint n = 0; n < D / NN; n++)
                [[unroll]] for (int e = 0; e < keep.length(); e++)
                    o[n][e] *= keep[e];
            unit = new_unit;
        }

        // Weights; -1 marks those of keys that a row does not see.
        if (masked) {
            [[unroll]] for (uint n = 0; n < BC / NN; n++)
                [[unroll]] for (int e = 0; e < high.length(); e++) {
                    bool hidden = s[n][e] == LOWEST;
                    float w = exp2(s[n][e] - top[e]);
                    s[n][e] = hidden ? -1.0 : w;
                    weight[e] += hidden ? 0.0 : w;
                }
        } else {
            [[unroll]] for (uint n = 0; n < BC / NN; n++)
                [[unroll]] for (int e = 0; e < high.length(); e++) {
                    s[n][e] = exp2(s[n][e] - top[e]);
                    weight[e] += s[n][e];
                }
        }
        LEFT p[BC / KK];
        [[unroll]] for (uint c = 0; c < BC / PC; c++) {
#ifndef CONVERT
            subgroupBarrier();
#endif
            [[unroll]] for (uint h = 0; h < PC / NN; h++) {
                uint n = c * (PC / NN) + h;
                SUM w;
                coopMatLoad(w, value_scale, n * NN, 0, gl_CooperativeMatrixLayoutRowMajor);
                if (masked) {
                    [[unroll]] for (int e = 0; e < w.length(); e++)
                        w[e] = s[n][e] == -1.0 ? 0.0 : s[n][e] * w[e];
                } else {
                    [[unroll]] for (int e = 0; e < w.length(); e++)
                        w[e] *= s[n][e];
                }
#ifdef CONVERT
                p[n] = LEFT(HALF_SUM(w));
            }
#else
                coopMatStore(HALF_SUM(w), scratch, scratch_at + h * (NN / 8), PLD,
                             gl_CooperativeMatrixLayoutRowMajor);
            }
            subgroupBarrier();
            [[unroll]] for (uint h = 0; h < PC / KK; h++)
                coopMatLoad(p[c * (PC / KK) + h], scratch, scratch_at + h * (KK / 8), PLD,
                            gl_CooperativeMatrixLayoutRowMajor);
#endif
        }
        [[unroll]] for (uint c = 0; c < BC / KK; c++)
            [[unroll]] for (uint n = 0; n < D / NN; n++) {
                RIGHT v;
                coopMatLoad(v, tiles, V_AT + c * KK * LD + n * (NN / 8), LD,
                            gl_CooperativeMatrixLayoutRowMajor);
                o[n] = coopMatMulAdd(p[c], v, o[n]);
            }
        if (key0 + BC < end) {
            stage(true);
            fetch(next_token, window_end, KV_HEADS + kv_head);
        }
        barrier(); // keys are there, values no longer needed
    }

    bool finish = end == share_end && push.splits == 1;
    subgroupBarrier();
    coopMatStore(weight, scratch, scratch_at, NN / 4, gl_CooperativeMatrixLayoutRowMajor);
    subgroupBarrier();
    float total[MINE];
    [[unroll]] for (uint i = 0; i < MINE; i++) {
        uint r = (i * SG + lane) % MM;
        vec4 four = vec4(0);
        for (uint c = 0; c < NN / 4; c++)
            four += uintBitsToFloat(scratch[scratch_at + r * (NN / 4) + c]);
        total[i] = (four.x + four.y) + (four.z + four.w);
        row_value[row_at + r] = finish ? 1.0 / total[i] : 1.0;
    }
    subgroupBarrier();
    if (!finish) {
        coopMatStore(top, scratch, scratch_at, NN / 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        float m[MINE];
        [[unroll]] for (uint i = 0; i < MINE; i++)
            m[i] = uintBitsToFloat(scratch[scratch_at + (i * SG + lane) % MM * (NN / 4)].x);
        subgroupBarrier();
        [[unroll]] for (uint i = 0; i < MINE; i++) {
            uint r = i * SG + lane, pair = first_pair + row_at + r;
            if (r < MM && pair < pairs) {
                uint head = kv_head * GROUP + pair % GROUP;
                carry[((pair / GROUP * HEADS + head) * push.splits + split) * C4 + D / 4] =
                    vec4(m[i], total[i], float(unit), 0);
            }
        }
    }
    [[unroll]] for (uint n = 0; n < D / NN; n++) {
        subgroupBarrier();
        coopMatStore(o[n], scratch, scratch_at, NN / 4, gl_CooperativeMatrixLayoutRowMajor);
        subgroupBarrier();
        for (uint i = lane; i < MM * NN / 4; i += SG) {
            uint r = i / (NN / 4), d = n * (NN / 4) + i % (NN / 4);
            uint pair = first_pair + row_at + r;
            uint head = kv_head * GROUP + pair % GROUP;
            vec4 sums = uintBitsToFloat(scratch[scratch_at + i]) * row_value[row_at + r];
            if (pair < pairs && finish)
                outputs[pair / GROUP * push.out_stride4 + head * (D / 4) + d] = sums;
            else if (pair < pairs)
                carry[((pair / GROUP * HEADS + head) * push.splits + split) * C4 + d] = sums;
        }
    }
}
