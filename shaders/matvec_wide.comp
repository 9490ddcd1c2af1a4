// Matrix-vector products for few rows on devices whose invocations share memory:
//     out[r][n] = act(sum_k x[r][k] * w[n][k])
// and with NORM the normalisation of x on the way:
//     NORM_MODE 1  x = alpha*a + beta*b (HAS_B; else alpha*a);  y = x / sqrt(mean(x^2) + eps) * g
//     NORM_MODE 2  x = a;                                        y = gate * (the same)
//     out[r][n] = act(sum_k y[r][k] * w[n][k]) ;  with write_norm also y itself, to `normed`
// Every line of lanes meets all of x, so the sum of squares costs no further pass: the products are
// formed with x * g and multiplied by 1 / sqrt(...) at the end.
//
// x (a) f32 [rows][x_stride], or halves with a scale a row (X_HALF); w [w_rows][cols] of one window;
// out f32 [rows][out_stride]; b f32 [rows][x_stride] or the gate, f32 [rows][gate_stride] from
// gate_offset; g f32 [cols]; normed f32 [rows][cols]. NORM needs cols and strides in multiples of 8.
//
// LANES invocations share COLS weight rows and hold ROWS rows of x: every weight is loaded once. A
// workgroup covers WG / LANES * COLS weight rows. Reduced over k: eight at a time, then in order; then
// over the lanes (inc/lanesum.glsl). STAGED: the workgroup first puts x * g into shared memory. TILED
// (several rows of f32): x passes through shared memory in tiles of 8 LANES columns, because rows that long
// do not stay in a first-level cache that weights stream through; of blocks a lane then takes eight columns
// at a time, too, whose codes become weights once for all rows.
// ACT 0: none. 1: SiLU below column `split`, sigmoid from there on. 2: weight rows 2i, 2i+1 give
// out[r][i] = SiLU(even) * odd. A row of x whose sum of squares is not finite becomes NaN.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#if defined(SUBGROUP)
#extension GL_KHR_shader_subgroup_basic : require
#extension GL_KHR_shader_subgroup_shuffle : require
#endif
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint LANES = 32; // power of two
layout(constant_id = 2) const uint GROUP = 1;  // of them in one subgroup; 1 without SUBGROUP
layout(constant_id = 3) const uint ROWS = 1;
layout(constant_id = 4) const uint COLS = 2; // even where ACT is 2
layout(constant_id = 5) const uint UNROLL = 2;
layout(constant_id = 6) const uint ACT = 0;
#if defined(NORM)
layout(constant_id = 7) const uint NORM_MODE = 1;
layout(constant_id = 8) const uint HAS_B = 0;
layout(constant_id = 9) const uint STAGED = 0; // cols, or 0: x is read where it is needed. ROWS = 1
#else
layout(constant_id = 7) const uint X_HALF = 0;
layout(constant_id = 8) const uint X_VEC = 1; // x_stride is a multiple of 4 (halves: 8)
#if defined(WEIGHT_BLOCKS)
layout(constant_id = 9) const uint STAGED = 0; // as above
#endif
#endif

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; x and out begin at row0
    uint fixed_rows;      // not 0: n_rows is not read
    uint cols;
    uint x_stride, out_stride;
    uint w_rows;   // weight rows in this window
    uint w_row0;   // the first one's number
    uint w_stride; // in uvec4
    uint split;
#if defined(NORM)
    uint gate_stride, gate_offset;
    uint write_norm;
    float alpha, beta, eps;
#endif
}
p;

layout(set = 0, binding = 0) readonly buffer x4_block
{
    uvec4 x4[];
};
layout(set = 0, binding = 0) readonly buffer x1_block
{
    uint x1[];
};
layout(set = 0, binding = 1) readonly buffer w4_block
{
    uvec4 w4[];
};
layout(set = 0, binding = 1) readonly buffer w1_block
{
    uint w1[];
};
#if defined(WEIGHT_BLOCKS)
layout(set = 0, binding = 1) readonly buffer w2_block
{
    uvec2 w2[];
};
#define BLOCK_TYPE_ID 10
#include "inc/blocks.glsl"
#endif
layout(set = 0, binding = 2) writeonly buffer out_block
{
    float result[];
};
#if defined(NORM)
layout(set = 0, binding = 3) readonly buffer b_block
{
    vec4 b4[]; // or the gate
};
layout(set = 0, binding = 4) readonly buffer g_block
{
    vec4 g4[];
};
layout(set = 0, binding = 5) writeonly buffer normed_block
{
    vec4 normed4[];
};
#else
layout(set = 0, binding = 3) readonly buffer scale_block
{
    float scale[]; // X_HALF only
};
#endif

const uint LINES = WG / LANES;
#if defined(NORM)
const uint VALS = ROWS * COLS + ROWS; // the sums of squares behind the products
float squares[ROWS];
shared float stage_sums[STAGED != 0u ? WG / GROUP : 1u];
#else
const uint VALS = ROWS * COLS;
#endif
#if defined(NORM) || defined(WEIGHT_BLOCKS)
shared vec4 staged[STAGED != 0u ? STAGED / 4u : 1u];

// Where quad i of x is staged, so that neighbours, who have neighbouring chunks, read neighbouring words.
uint stage_at(uint i)
{
    const uint quads = WEIGHT_CHUNK / 4u;
    return i % quads * (STAGED / WEIGHT_CHUNK) + i / quads;
}
#endif
uint row[ROWS];

#include "inc/lanesum.glsl"

#if defined(NORM)
// Columns 4i .. 4i + 3 of row r before the norm, and what the normalised values are multiplied by.
vec4 input_at(uint r, uint i)
{
    vec4 x = uintBitsToFloat(x4[r * (p.x_stride / 4u) + i]);
    if (NORM_MODE == 1u) {
        x *= p.alpha;
        if (HAS_B != 0u)
            x += p.beta * b4[r * (p.x_stride / 4u) + i];
    }
    return x;
}

vec4 factor_at(uint r, uint i)
{
    vec4 g = g4[i];
    return NORM_MODE == 2u ? g * b4[(r * p.gate_stride + p.gate_offset) / 4u + i] : g;
}

void x_chunk(uint r, uint k, out vec4 low, out vec4 high)
{
    if (STAGED != 0u) {
        low = staged[stage_at(2u * k)];
        high = staged[stage_at(2u * k + 1u)];
        return;
    }
    low = input_at(row[r], 2u * k);
    high = input_at(row[r], 2u * k + 1u);
    squares[r] += dot(low, low) + dot(high, high);
    low *= factor_at(row[r], 2u * k);
    high *= factor_at(row[r], 2u * k + 1u);
}

// Fills `staged`.
void stage(uint t)
{
    float sum = 0.0;
    for (uint i = t; i < p.cols / 4u; i += WG) {
        vec4 x = input_at(row[0], i);
        sum += dot(x, x);
        staged[stage_at(i)] = x * factor_at(row[0], i);
    }
    uint count = WG;
#if defined(SUBGROUP)
    [[unroll]] for (uint offset = GROUP / 2u; offset > 0u; offset /= 2u)
        sum += subgroupShuffleXor(sum, offset);
    count /= GROUP;
#endif
    if (t % GROUP == 0u)
        stage_sums[t / GROUP] = sum;
    barrier();
    sum = 0.0;
    for (uint i = 0u; i < count; i++)
        sum += stage_sums[i];
    squares[0] = sum;
}
#else
// x[r][k .. k+3], k a multiple of 4.
vec4 x_at(uint r, uint k)
{
    uint i = r * p.x_stride + k;
    if (X_VEC != 0u)
        return uintBitsToFloat(x4[i / 4u]);
    return uintBitsToFloat(uvec4(x1[i], x1[i + 1u], x1[i + 2u], x1[i + 3u]));
}

void x_load(uint r, uint k, out vec4 low, out vec4 high)
{
    if (X_HALF != 0u) {
        uvec4 w = x4[(row[r] * p.x_stride) / 8u + k];
        low = vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y));
        high = vec4(unpackHalf2x16(w.z), unpackHalf2x16(w.w));
    } else {
        low = x_at(row[r], 8u * k);
        high = x_at(row[r], 8u * k + 4u);
    }
}

void x_chunk(uint r, uint k, out vec4 low, out vec4 high)
{
#if defined(WEIGHT_BLOCKS)
    if (STAGED != 0u) {
        low = staged[stage_at(2u * k)];
        high = staged[stage_at(2u * k + 1u)];
        return;
    }
#endif
    x_load(r, k, low, high);
}

#if defined(WEIGHT_BLOCKS)
void stage(uint t)
{
    for (uint k = t; k < p.cols / 8u; k += WG) {
        vec4 low, high;
        x_load(0u, k, low, high);
        staged[stage_at(2u * k)] = low;
        staged[stage_at(2u * k + 1u)] = high;
    }
    barrier();
}
#endif

float x_single(uint r, uint k)
{
    uint i = r * p.x_stride + k;
    if (X_HALF != 0u) {
        vec2 pair = unpackHalf2x16(x1[i / 2u]);
        return (i & 1u) == 0u ? pair.x : pair.y;
    }
    return uintBitsToFloat(x1[i]);
}

#if !defined(WEIGHT_BLOCKS)
float w_single(uint base, uint k)
{
    uint word = w1[base * 4u + k / WEIGHTS_PER_WORD];
#if defined(WEIGHT_F32)
    return uintBitsToFloat(word);
#else
    vec2 pair = unpack_weights(word);
    return (k & 1u) == 0u ? pair.x : pair.y;
#endif
}
#endif
#endif

#include "inc/rowdot.glsl"

#if defined(TILED)
const uint TILE_QUADS = ROWS * 2u * LANES; // of four values: by row, low or high half, lane
const uint TILE_LOADS = (TILE_QUADS + WG - 1u) / WG;
shared vec4 tiles[2u * TILE_QUADS];
vec4 coming[TILE_LOADS];

#if defined(WEIGHT_BLOCKS)
block_eight eights[COLS];

void tile_weights(uint k)
{
    [[unroll]] for (uint c = 0u; c < COLS; c++)
        eights[c] = blocks8_load(base[c], k);
}
#else
void tile_weights(uint k)
{
    rows_load(0u, k, 1u, p.cols / 8u);
}
#endif

// Quad i of the tile whose first chunk is k0: neighbours load neighbouring words.
void tile_load(uint k0, uint t)
{
    [[unroll]] for (uint n = 0u; n < TILE_LOADS; n++) {
        uint i = n * WG + t;
        uint r = i / (2u * LANES), quad = i % (2u * LANES);
        uint k = k0 + quad / 2u;
        coming[n] = i < TILE_QUADS && k < p.cols / 8u ? x_at(row[min(r, ROWS - 1u)], 4u * (2u * k0 + quad))
                                                      : vec4(0.0);
    }
}

void tile_store(uint buffer_index, uint t)
{
    [[unroll]] for (uint n = 0u; n < TILE_LOADS; n++) {
        uint i = n * WG + t;
        uint r = i / (2u * LANES), quad = i % (2u * LANES);
        if (i < TILE_QUADS)
            tiles[buffer_index * TILE_QUADS + (2u * r + (quad & 1u)) * LANES + quad / 2u] = coming[n];
    }
}

void tiles_dot(uint lane, uint t)
{
    uint chunks = p.cols / 8u;
    tile_load(0u, t);
    tile_weights(min(lane, chunks - 1u));
    tile_store(0u, t);
    barrier();
    uint now = 0u;
    for (uint k0 = 0u; k0 < chunks; k0 += LANES) {
#if defined(WEIGHT_BLOCKS)
        vec4 u[COLS];
        vec4 v[COLS];
        [[unroll]] for (uint c = 0u; c < COLS; c++)
            blocks8_weights(eights[c], min(k0 + lane, chunks - 1u), u[c], v[c]);
#else
        uvec4 here[STEP_WORDS];
        [[unroll]] for (uint i = 0u; i < STEP_WORDS; i++)
            here[i] = words[i];
#endif
        // The next tile is loaded while this one is used. Behind the end the last chunk is read again.
        uint k = min(k0 + LANES + lane, chunks - 1u);
        tile_weights(k);
        tile_load(k0 + LANES, t);
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
            vec4 low = tiles[now * TILE_QUADS + 2u * r * LANES + lane];
            vec4 high = tiles[now * TILE_QUADS + (2u * r + 1u) * LANES + lane];
            [[unroll]] for (uint c = 0u; c < COLS; c++) {
#if defined(WEIGHT_BLOCKS)
                acc[r * COLS + c] += dot(u[c], low) + dot(v[c], high);
#elif defined(WEIGHT_F32)
                acc[r * COLS + c] += dot(unpack_weights4(here[2u * c]), low) +
                                     dot(unpack_weights4(here[2u * c + 1u]), high);
#else
                acc[r * COLS + c] += dot(unpack_weights_low(here[c]), low) +
                                     dot(unpack_weights_high(here[c]), high);
#endif
            }
        }
        now ^= 1u;
        tile_store(now, t);
        barrier();
    }
}
#endif

void main()
{
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.cols);
#endif
    uint t = lane_thread();
    uint lane = t % LANES;
    uint line = t / LANES;
    uint r0 = row_group() * ROWS;
    uint rows = p.row_count;
    if (p.fixed_rows == 0u)
        rows = min(rows, step.n_rows > p.row0 ? step.n_rows - p.row0 : 0u);
    if (r0 >= rows)
        return; // the whole workgroup

    // Weight row of accumulator c: neighbouring lines take neighbouring rows, pairs stay together.
    uint n0 = line_group() * LINES * COLS;
    uint n[COLS];
    [[unroll]] for (uint c = 0u; c < COLS; c++) {
        n[c] = ACT == 2u ? n0 + ((c / 2u) * LINES + line) * 2u + (c & 1u) : n0 + c * LINES + line;
        // Clamped, so that every load stays inside.
        base[c] = min(n[c], p.w_rows - 1u) * p.w_stride;
    }
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        row[r] = min(r0 + r, p.row_count - 1u);
    [[unroll]] for (uint i = 0u; i < ROWS * COLS; i++)
        acc[i] = 0.0;
#if defined(TILED)
    if (p.cols >= 8u)
        tiles_dot(lane, t);
#else
    rows_load(0u, lane, LANES, p.cols / WEIGHT_CHUNK);
#endif
#if defined(NORM)
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        squares[r] = 0.0;
#endif
#if defined(NORM) || defined(WEIGHT_BLOCKS)
    if (STAGED != 0u)
        stage(t);
#endif
#if !defined(TILED)
    rows_dot(0u, lane, LANES, p.cols / WEIGHT_CHUNK, ROWS);
#endif
#if !defined(NORM) && !defined(WEIGHT_BLOCKS)
    if (lane == 0u) {
        for (uint k = p.cols / 8u * 8u; k < p.cols; k++) {
            [[unroll]] for (uint r = 0u; r < ROWS; r++) {
                float x = x_single(row[r], k);
                [[unroll]] for (uint c = 0u; c < COLS; c++)
                    acc[r * COLS + c] += x * w_single(base[c], k);
            }
        }
    }
#endif

    [[unroll]] for (uint i = 0u; i < ROWS * COLS; i++)
        sums[i] = acc[i];
#if defined(NORM)
    [[unroll]] for (uint r = 0u; r < ROWS; r++)
        sums[ROWS * COLS + r] = squares[r];
#endif
    lanes_sum(t);

    float factor[ROWS];
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
#if defined(NORM)
        float square = STAGED != 0u ? squares[r] : sums[ROWS * COLS + r];
        float mean = square / float(p.cols);
        factor[r] = is_finite(square) ? 1.0 / sqrt(mean + p.eps) : uintBitsToFloat(NAN_BITS);
#else
        factor[r] = X_HALF != 0u && r0 + r < rows ? scale[p.row0 + r0 + r] : 1.0;
#endif
    }
#if defined(NORM)
    // The first workgroups also store the normalised rows.
    if (p.write_norm != 0u) {
        uint groups = gl_NumWorkGroups.x * gl_NumWorkGroups.y;
        for (uint i = line_group() * WG + t; i < p.cols / 4u; i += groups * WG)
            [[unroll]] for (uint r = 0u; r < ROWS; r++)
                if (r0 + r < rows)
                    normed4[(r0 + r) * (p.cols / 4u) + i] =
                        input_at(row[r], i) * factor[r] * factor_at(row[r], i);
    }
#endif
    if (lane != 0u)
        return;
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
        if (r0 + r >= rows)
            break;
        float s = factor[r];
        uint out0 = (r0 + r) * p.out_stride;
        [[unroll]] for (uint c = 0u; c < COLS; c++) {
            if (n[c] >= p.w_rows)
                continue;
            float y = sums[r * COLS + c] * s;
            uint column = p.w_row0 + n[c];
            if (ACT == 2u) {
                if ((c & 1u) == 0u)
                    result[out0 + column / 2u] = silu(y) * (sums[r * COLS + c + 1u] * s);
                continue;
            }
            if (ACT == 1u) {
                float g = sigmoid(y);
                y = column < p.split ? y * g : g;
            }
            result[out0 + column] = y;
        }
    }
}
