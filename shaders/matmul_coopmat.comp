// Matrix product on cooperative matrices of subgroups: out[r][n] = act(sum_k x[r][k] * w[n][k]), dense or
// (GROUPED) for sorted pairs of every expert of a window. Shapes and bindings: inc/matmul.glsl.
//
// A workgroup makes a tile of BM rows by BN weight rows, each of its subgroups WM x WN of it in
// TM x TN accumulators of f32. k advances by BK through shared memory, f16 there: while one step is
// multiplied the next one is on its way to registers. (One long step in shared memory hides more of that
// way than two short ones that take turns.) Weight rows outside fp16's range are multiplied by their power of two on the way in and
// divided by it at the end, where the row's scale is applied, too.
//
// The result goes through shared memory, TM rows of every subgroup at a time:
//   ACT 0  as it is
//   ACT 1  SiLU for columns below split, sigmoid from there on
//   ACT 2  SiLU(even) * odd: half as many columns
// OUT_BLOCKS: as halves with a power-of-two scale per row and block of BLOCK columns.
//
// Rows and weight rows beyond the edge repeat the last one and are not written.
//
// Where tiles are too few to fill a device, its columns are split in `splits` parts, a part for every z
// of the groups; matmul_reduce.comp adds the parts.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"
#include "inc/weights.glsl"
#include "inc/matmul.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint BM = 64;
layout(constant_id = 2) const uint BN = 64;
layout(constant_id = 3) const uint BK = 32; // multiple of 8 and TK
layout(constant_id = 4) const uint WM = 32;
layout(constant_id = 5) const uint WN = 32;
layout(constant_id = 6) const uint TM = 16;
layout(constant_id = 7) const uint TN = 16;
layout(constant_id = 8) const uint TK = 16;
layout(constant_id = 9) const uint PANEL = 8;
layout(constant_id = 10) const uint ACT = 0;
layout(constant_id = 11) const uint FLAGS = 0;
layout(constant_id = 12) const uint BLOCK = 64;
layout(constant_id = 13) const uint UNROLL = 1; // steps in one turn of the loop

const bool W_SCALE = (FLAGS & 1u) != 0u; // w_scale is there
const bool RAGGED = (FLAGS & 2u) != 0u;  // cols is no multiple of BK
const bool VEC_OUT = (FLAGS & 4u) != 0u; // weight rows and their windows, out_stride: multiples of 4

layout(set = 0, binding = 0) readonly buffer x_block
{
    uvec4 x[];
};
#if defined(WEIGHT_BLOCKS)
layout(set = 0, binding = 1) readonly buffer w1_block
{
    uint w1[];
};
layout(set = 0, binding = 1) readonly buffer w2_block
{
    uvec2 w2[];
};
layout(set = 0, binding = 1) readonly buffer w4_block
{
    uvec4 w4[];
};
#define BLOCK_TYPE_ID 14
#include "inc/blocks.glsl"
#else
layout(set = 0, binding = 1) readonly buffer w_block
{
    uvec4 w[];
};
#endif
layout(set = 0, binding = 2) readonly buffer x_scale_block
{
    float x_scale[];
};
#if defined(OUT_BLOCKS)
layout(set = 0, binding = 3) writeonly buffer out_block
{
    uvec2 halves[];
};
layout(set = 0, binding = 5) writeonly buffer out_scale_block
{
    uint out_scale[];
};
#else
layout(set = 0, binding = 3) writeonly buffer out1_block
{
    float result[];
};
layout(set = 0, binding = 3) writeonly buffer out2_block
{
    vec2 result2[];
};
layout(set = 0, binding = 3) writeonly buffer out4_block
{
    vec4 result4[];
};
#endif
layout(set = 0, binding = 4) readonly buffer w_scale_block
{
    float w_scale[];
};

// Lines of uvec4, an odd number of them: rows of a matrix begin in different banks.
const uint CHUNKS = BK / 8u;
const uint LINE = CHUNKS + 1u;
const uint STEP = (BM + BN) * LINE;
// The strip of results: TM rows of every row of subgroups, or of two of them at a time.
const uint STRIP_WAVES = (BM / WM) % 2u == 0u ? 2u : BM / WM;
const uint STRIP_ROWS = STRIP_WAVES * TM;
const uint STRIP_LINE = BN / 4u + 2u;
const uint STRIP = STRIP_ROWS * STRIP_LINE;
shared uvec4 tiles[STEP > STRIP ? STEP : STRIP];
#if defined(OUT_BLOCKS)
const uint ROW_BLOCKS = BN / BLOCK;
shared uint block_max[STRIP_ROWS * ROW_BLOCKS];
#endif

const uint X_COUNT = BM * CHUNKS; // uvec4 of halves a step
const uint W_COUNT = BN * CHUNKS;
const uint X_EACH = (X_COUNT + WG - 1u) / WG;
const uint W_EACH = (W_COUNT + WG - 1u) / WG;
const bool X_EVEN = X_COUNT % WG == 0u;
const bool W_EVEN = W_COUNT % WG == 0u;
#if defined(WEIGHT_F32)
const uint W_WORDS = 2u;
#else
const uint W_WORDS = 1u;
#endif

uvec4 x_next[X_EACH];
#if defined(WEIGHT_BLOCKS)
block_eight w_next[W_EACH];
#else
uvec4 w_next[W_EACH * W_WORDS];
#endif
uint x_at[X_EACH];
uint w_at[W_EACH];
float w_times[W_EACH];

// Zeros from the column `left` on.
uvec4 cut(uvec4 eight, uint left)
{
    if (left >= 8u)
        return eight;
    [[unroll]] for (uint j = 0u; j < 4u; j++)
        eight[j] = left >= 2u * j + 2u ? eight[j] : left == 2u * j + 1u ? eight[j] & 0xffffu : 0u;
    return eight;
}

uint columns_left(uint chunk)
{
    return 8u * chunk < p.cols ? p.cols - 8u * chunk : 0u;
}

// Does the step from this uvec4 of a row on reach beyond the last column?
bool is_ragged(uint from)
{
    return RAGGED && 8u * from + BK > p.cols;
}

// From device memory to registers. Whatever pads a row to 16 bytes must not count.
void fetch(uint from)
{
    uint t = gl_LocalInvocationID.x;
    if (is_ragged(from)) {
        [[unroll]] for (uint j = 0u; j < X_EACH; j++) {
            uint left = columns_left(from + (t + j * WG) % CHUNKS);
            x_next[j] = uvec4(0u);
            if (left != 0u && (X_EVEN || t + j * WG < X_COUNT))
                x_next[j] = cut(x[x_at[j] + from], left);
        }
        [[unroll]] for (uint j = 0u; j < W_EACH; j++) {
            uint left = columns_left(from + (t + j * WG) % CHUNKS);
#if defined(WEIGHT_BLOCKS)
            if (left != 0u && (W_EVEN || t + j * WG < W_COUNT))
                w_next[j] = blocks8_load(w_at[j], from + (t + j * WG) % CHUNKS);
#else
            [[unroll]] for (uint c = 0u; c < W_WORDS; c++) {
                w_next[j * W_WORDS + c] = uvec4(0u);
                if (left > c * WEIGHTS_PER_UVEC4 && (W_EVEN || t + j * WG < W_COUNT))
                    w_next[j * W_WORDS + c] = w[w_at[j] + from * W_WORDS + c];
            }
#endif
        }
        return;
    }
    [[unroll]] for (uint j = 0u; j < X_EACH; j++)
        if (X_EVEN || t + j * WG < X_COUNT)
            x_next[j] = x[x_at[j] + from];
    [[unroll]] for (uint j = 0u; j < W_EACH; j++)
#if defined(WEIGHT_BLOCKS)
        if (W_EVEN || t + j * WG < W_COUNT)
            w_next[j] = blocks8_load(w_at[j], from + (t + j * WG) % CHUNKS);
#else
        [[unroll]] for (uint c = 0u; c < W_WORDS; c++)
            if (W_EVEN || t + j * WG < W_COUNT)
                w_next[j * W_WORDS + c] = w[w_at[j] + from * W_WORDS + c];
#endif
}

uvec4 pack8(vec4 low, vec4 high)
{
    return uvec4(packHalf2x16(low.xy), packHalf2x16(low.zw), packHalf2x16(high.xy),
                 packHalf2x16(high.zw));
}

uvec4 weights8(uint j, uint chunk)
{
#if defined(WEIGHT_BLOCKS)
    vec4 low, high;
    blocks8_weights(w_next[j], chunk, low, high);
#elif defined(WEIGHT_F32)
    vec4 low = unpack_weights4(w_next[2u * j]), high = unpack_weights4(w_next[2u * j + 1u]);
#else
#if defined(WEIGHT_F16)
    if (!W_SCALE)
        return w_next[j];
#endif
    vec4 low = unpack_weights_low(w_next[j]), high = unpack_weights_high(w_next[j]);
#endif
    if (W_SCALE) {
        low *= w_times[j];
        high *= w_times[j];
    }
    return pack8(low, high);
}

// From registers to shared memory.
void keep(uint from)
{
    uint t = gl_LocalInvocationID.x;
    [[unroll]] for (uint j = 0u; j < X_EACH; j++) {
        uint i = t + j * WG;
        if (X_EVEN || i < X_COUNT)
            tiles[i / CHUNKS * LINE + i % CHUNKS] = x_next[j];
    }
    [[unroll]] for (uint j = 0u; j < W_EACH; j++) {
        uint i = t + j * WG;
        uvec4 eight = weights8(j, from + i % CHUNKS);
        if (is_ragged(from))
            eight = cut(eight, columns_left(from + i % CHUNKS));
        if (W_EVEN || i < W_COUNT)
            tiles[(BM + i / CHUNKS) * LINE + i % CHUNKS] = eight;
    }
}

#if !defined(OUT_BLOCKS)
void write4(uint row, uint n, vec4 y)
{
    uint at = row_group() * p.split_stride + row * p.out_stride;
    uint column = p.w_row0 + n;
    if (ACT == 2u) {
        vec2 h = vec2(silu(y.x) * y.y, silu(y.z) * y.w);
        at += column / 2u;
        if (VEC_OUT) {
            result2[at / 2u] = h;
        } else {
            result[at] = h.x;
            if (n + 2u < p.w_rows)
                result[at + 1u] = h.y;
        }
    } else {
        at += column;
        if (VEC_OUT)
            result4[at / 4u] = y;
        else
            for (uint c = 0u; c < 4u && n + c < p.w_rows; c++)
                result[at + c] = y[c];
    }
}
#endif

void main()
{
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.cols);
#endif
    uint t = gl_LocalInvocationID.x;
    matmul_tile tile = matmul_place(line_group(), BM, BN, PANEL);
    if (tile.count == 0u)
        return; // the whole workgroup
    [[unroll]] for (uint j = 0u; j < X_EACH; j++) {
        uint i = t + j * WG;
        uint row = tile.row0 + min(i / CHUNKS, tile.count - 1u);
        x_at[j] = row * (p.x_stride / 8u) + i % CHUNKS;
    }
    [[unroll]] for (uint j = 0u; j < W_EACH; j++) {
        uint i = t + j * WG;
        uint n = min(tile.n0 + i / CHUNKS, p.w_rows - 1u);
#if defined(WEIGHT_BLOCKS)
        w_at[j] = (tile.w0 + n) * p.w_stride;
#else
        w_at[j] = (tile.w0 + n) * p.w_stride + i % CHUNKS * W_WORDS;
#endif
        w_times[j] = 1.0;
        if (W_SCALE)
            w_times[j] = w_scale[tile.scale0 + n];
    }

    const uint COUNT_M = WM / TM, COUNT_N = WN / TN;
    uint wave_m = gl_SubgroupID / (BN / WN), wave_n = gl_SubgroupID % (BN / WN);
    coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator> sums[COUNT_M * COUNT_N];
    [[unroll]] for (uint i = 0u; i < COUNT_M * COUNT_N; i++)
        sums[i] = coopmat<float, gl_ScopeSubgroup, TM, TN, gl_MatrixUseAccumulator>(0.0);

    // Steps are counted in uvec4 of halves. Split columns: z of the groups counts their parts.
    uint chunks = (p.cols + 7u) / 8u;
#if defined(GROUPED)
    uint begin = 0u, end = chunks;
#else
    uint each = (chunks + p.splits * CHUNKS - 1u) / (p.splits * CHUNKS) * CHUNKS;
    uint begin = row_group() * each, end = min(chunks, begin + each);
#endif
#if defined(GROUPED)
    // The last tile of an expert may be almost empty: subgroups without rows do not multiply.
    bool busy = wave_m * WM < tile.count;
#else
    const bool busy = true; // the test would cost full tiles time
#endif
    fetch(begin);
    keep(begin);
    for (uint turn = begin; turn < end; turn += UNROLL * CHUNKS) {
        [[unroll]] for (uint u = 0u; u < UNROLL; u++) {
            uint now = turn + u * CHUNKS;
            if (now >= end)
                break;
            barrier();
            bool more = now + CHUNKS < end;
            if (more)
                fetch(now + CHUNKS);
            if (busy) {
                uint x_from = wave_m * WM * LINE;
                uint w_from = (BM + wave_n * WN) * LINE;
                [[unroll]] for (uint k = 0u; k < BK; k += TK) {
                    coopmat<float16_t, gl_ScopeSubgroup, TM, TK, gl_MatrixUseA> a[COUNT_M];
                    [[unroll]] for (uint i = 0u; i < COUNT_M; i++)
                        coopMatLoad(a[i], tiles, x_from + i * TM * LINE + k / 8u, LINE,
                                    gl_CooperativeMatrixLayoutRowMajor);
                    [[unroll]] for (uint j = 0u; j < COUNT_N; j++) {
                        coopmat<float16_t, gl_ScopeSubgroup, TK, TN, gl_MatrixUseB> b;
                        coopMatLoad(b, tiles, w_from + j * TN * LINE + k / 8u, LINE,
                                    gl_CooperativeMatrixLayoutColumnMajor);
                        [[unroll]] for (uint i = 0u; i < COUNT_M; i++)
                            sums[i * COUNT_N + j] = coopMatMulAdd(a[i], b, sums[i * COUNT_N + j]);
                    }
                }
            }
            barrier();
            if (more)
                keep(now + CHUNKS);
        }
    }

    [[unroll]] for (uint i = 0u; i < COUNT_M; i++)
        for (uint wave0 = 0u; wave0 < BM / WM; wave0 += STRIP_WAVES) {
            barrier(); // the last step, or the strip before, has been read
            if (wave_m >= wave0 && wave_m < wave0 + STRIP_WAVES)
                [[unroll]] for (uint j = 0u; j < COUNT_N; j++)
                    coopMatStore(sums[i * COUNT_N + j], tiles,
                                 (wave_m - wave0) * TM * STRIP_LINE + (wave_n * WN + j * TN) / 4u,
                                 STRIP_LINE, gl_CooperativeMatrixLayoutRowMajor);
#if defined(OUT_BLOCKS)
            for (uint e = t; e < STRIP_ROWS * ROW_BLOCKS; e += WG)
                block_max[e] = 0u;
#endif
            barrier();
            for (uint e = t; e < STRIP_ROWS * (BN / 4u); e += WG) {
                uint line = e / (BN / 4u), quad = e % (BN / 4u);
                uint r = (wave0 + line / TM) * WM + i * TM + line % TM;
                uint n = tile.n0 + 4u * quad;
                if (r >= tile.count || n >= p.w_rows)
                    continue;
                vec4 y = uintBitsToFloat(tiles[line * STRIP_LINE + quad]);
                // One scale after the other: their product may leave f32's range.
                if (W_SCALE)
                    for (uint c = 0u; c < 4u; c++)
                        y[c] /= w_scale[tile.scale0 + min(n + c, p.w_rows - 1u)];
#if defined(GROUPED)
                y *= x_scale[tile.row0 + r];
#else
                y *= x_scale[p.row0 + tile.row0 + r];
#endif
                if (ACT == 1u) {
                    for (uint c = 0u; c < 4u; c++) {
                        float g = sigmoid(y[c]);
                        y[c] = p.w_row0 + n + c < p.split ? y[c] * g : g;
                    }
                }
#if defined(OUT_BLOCKS)
                uvec4 bits = floatBitsToUint(y);
                tiles[line * STRIP_LINE + quad] = bits;
                bits &= ABS_MASK;
                atomicMax(block_max[line * ROW_BLOCKS + 4u * quad / BLOCK],
                          max(max(bits.x, bits.y), max(bits.z, bits.w)));
#else
                write4(tile.row0 + r, n, y);
#endif
            }
#if defined(OUT_BLOCKS)
            barrier();
            for (uint e = t; e < STRIP_ROWS * (BN / 4u); e += WG) {
                uint line = e / (BN / 4u), quad = e % (BN / 4u);
                uint r = (wave0 + line / TM) * WM + i * TM + line % TM;
                uint n = tile.n0 + 4u * quad;
                if (r >= tile.count || n >= p.w_rows)
                    continue;
                uint column = p.w_row0 + n;
                uint max_bits = block_max[line * ROW_BLOCKS + 4u * quad / BLOCK];
                vec4 y = uintBitsToFloat(tiles[line * STRIP_LINE + quad]) * half_multiplier(max_bits);
                halves[((tile.row0 + r) * p.out_stride + column) / 4u] =
                    row_is_finite(max_bits) ? uvec2(packHalf2x16(y.xy), packHalf2x16(y.zw))
                                            : uvec2(0x7e007e00u);
                if (column % BLOCK == 0u)
                    out_scale[(tile.row0 + r) * (p.out_stride / BLOCK) + column / BLOCK] =
                        floatBitsToUint(half_row_scale(max_bits));
            }
#endif
        }
}
