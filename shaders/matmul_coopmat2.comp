// Matrix product on cooperative matrices of whole workgroups (VK_NV_cooperative_matrix2):
// out[r][n] = act(sum_k x[r][k] * w[n][k]), dense or (GROUPED) for sorted pairs of every expert of a
// window. Shapes and bindings: inc/matmul.glsl; weights are f16 without scales of their own.
//
// A workgroup makes a tile of BN weight rows by BM rows of x in PARTS accumulators of f32, one below the
// other; the driver spreads them over the invocations and stages the halves that coopMatLoadTensorNV
// brings from device memory. Weights are the left factor: both operands are contiguous along k, so one
// of them must be turned on its way in, and x turned is the faster of the two.
//
//   ACT 0  as it is
//   ACT 1  SiLU for columns below split, sigmoid from there on
//   ACT 2  SiLU(even) * odd, half as many columns: PARTS is 2, one part takes the even weight rows, the
//          other the odd ones, by a stride of two rows
// OUT_BLOCKS: as halves with a power-of-two scale per row and block of BN / PARTS columns.
//
// Only rows and columns that exist are stored.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#extension GL_EXT_shader_explicit_arithmetic_types_float16 : require
#extension GL_EXT_shader_16bit_storage : require
#extension GL_KHR_memory_scope_semantics : require
#extension GL_KHR_cooperative_matrix : require
#extension GL_NV_cooperative_matrix2 : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"
#include "inc/matmul.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 1) const uint BM = 128;
layout(constant_id = 2) const uint BN = 128;
layout(constant_id = 3) const uint BK = 32;
layout(constant_id = 4) const uint PARTS = 1;
layout(constant_id = 5) const uint PANEL = 8;
layout(constant_id = 6) const uint ACT = 0;
// The matrices do not consist of whole tiles and of UNROLL steps of BK: loads look where they end, which
// halves the speed. Without it rows of x that are not real are read, too; their sums go nowhere.
layout(constant_id = 7) const uint EDGE = 0;

const uint PN = BN / PARTS;
const uint PAIR = ACT == 2u ? 2u : 1u; // weight rows a column of the result takes
// The driver moves the loads of a step ahead of the products before it only within a loop's body.
const uint UNROLL = 16u;

layout(set = 0, binding = 0) readonly buffer x_block
{
    float16_t x[];
};
layout(set = 0, binding = 1) readonly buffer w_block
{
    float16_t w[];
};
layout(set = 0, binding = 2) readonly buffer x_scale_block
{
    float x_scale[];
};
#if defined(OUT_BLOCKS)
layout(set = 0, binding = 3) writeonly buffer out_block
{
    float16_t halves[];
};
layout(set = 0, binding = 5) writeonly buffer out_scale_block
{
    float out_scale[];
};
#else
layout(set = 0, binding = 3) writeonly buffer out_block
{
    float result[];
};
#endif

#define SUMS coopmat<float, gl_ScopeWorkgroup, PN, BM, gl_MatrixUseAccumulator>
#define CLAMP_NONE gl_CooperativeMatrixClampModeUndefinedNV
#define CLAMP_ZERO gl_CooperativeMatrixClampModeConstantNV

// ---- what happens to every sum: n, r are its weight row and row of x within the tile ----

float scaled(const in uint n, const in uint r, const in float sum, const in uint scale0, const in uint rows)
{
    return sum * x_scale[scale0 + min(r, rows - 1u)];
}

float gated(const in uint n, const in uint r, const in float y, const in uint column0)
{
    float g = sigmoid(y);
    return column0 + n < p.split ? y * g : g;
}

float swiglu(const in uint n, const in uint r, const in float even, const in float odd)
{
    return silu(even) * odd;
}

#if defined(OUT_BLOCKS)
// Magnitudes are compared by their bits: NaN and infinity come out on top.
float magnitude(const in uint n, const in uint r, const in float y)
{
    return uintBitsToFloat(floatBitsToUint(y) & ABS_MASK);
}

float larger(const in float a, const in float b)
{
    return uintBitsToFloat(max(floatBitsToUint(a), floatBitsToUint(b)));
}

float to_half_range(const in uint n, const in uint r, const in float y, const in float largest)
{
    uint max_bits = floatBitsToUint(largest);
    return row_is_finite(max_bits) ? y * half_multiplier(max_bits) : uintBitsToFloat(NAN_BITS);
}

float scale_of(const in uint n, const in uint r, const in float largest)
{
    return half_row_scale(floatBitsToUint(largest));
}
#endif

// ---- the product ----

// With ACT 2 the rows of w_layout are pairs of weight rows, and the odd ones begin a row later.
#define ONE_STEP(k)                                                                                   \
    {                                                                                                 \
        coopmat<float16_t, gl_ScopeWorkgroup, BK, BM, gl_MatrixUseB> b;                               \
        coopMatLoadTensorNV(b, x, 0, sliceTensorLayoutNV(x_layout, tile.row0, BM, k, BK), turned);    \
        [[unroll]] for (uint i = 0u; i < PARTS; i++) {                                                \
            coopmat<float16_t, gl_ScopeWorkgroup, PN, BK, gl_MatrixUseA> a;                           \
            uint from = ACT == 2u ? w0 / 2u : w0 + i * PN;                                            \
            coopMatLoadTensorNV(a, w, ACT == 2u ? i * w_stride : 0u,                                  \
                                sliceTensorLayoutNV(w_layout, from, PN, k, BK));                      \
            sums[i] = coopMatMulAdd(a, b, sums[i]);                                                   \
        }                                                                                             \
    }

// One text for both ways to treat what lies beyond x_rows, w_rows and the last column.
#define ALL_STEPS(CLAMP, x_rows, w_rows, steps)                                                       \
    {                                                                                                 \
        tensorLayoutNV<2, CLAMP> x_layout = createTensorLayoutNV(2, CLAMP);                           \
        tensorLayoutNV<2, CLAMP> w_layout = createTensorLayoutNV(2, CLAMP);                           \
        x_layout = setTensorLayoutDimensionNV(x_layout, x_rows, p.cols);                              \
        x_layout = setTensorLayoutStrideNV(x_layout, x_stride, 1u);                                   \
        w_layout = setTensorLayoutDimensionNV(w_layout, (w_rows) / PAIR, p.cols);                     \
        w_layout = setTensorLayoutStrideNV(w_layout, w_stride * PAIR, 1u);                            \
        [[dont_unroll]] for (uint k0 = 0u; k0 < p.cols; k0 += steps * BK)                             \
            [[unroll]] for (uint u = 0u; u < steps; u++)                                              \
                ONE_STEP(k0 + u * BK)                                                                 \
    }

void main()
{
    matmul_tile tile = matmul_place(line_group(), BM, BN, PANEL);
    if (tile.count == 0u)
        return; // the whole workgroup
    // In a form that lets the compiler see multiples of 16 bytes; without it loads are of single halves.
    uint x_stride = p.x_stride & ~7u;
    uint w_stride = p.w_stride * 8u;
    uint w0 = tile.w0 + tile.n0;
    tensorViewNV<2, false, 1, 0> turned = createTensorViewNV(2, false, 1, 0);

    SUMS sums[PARTS];
    [[unroll]] for (uint i = 0u; i < PARTS; i++)
        sums[i] = SUMS(0.0);
    if (EDGE != 0u)
        ALL_STEPS(CLAMP_ZERO, tile.row0 + tile.count, tile.w0 + p.w_rows, 1u)
    else
        ALL_STEPS(CLAMP_NONE, p.row_count, tile.w0 + p.w_rows, UNROLL)

#if defined(GROUPED)
    uint scale0 = tile.row0;
#else
    uint scale0 = p.row0 + tile.row0;
#endif
    uint column0 = (p.w_row0 + tile.n0) / PAIR;
    [[unroll]] for (uint i = 0u; i < PARTS; i++) {
        coopMatPerElementNV(sums[i], sums[i], scaled, scale0, tile.count);
        if (ACT == 1u)
            coopMatPerElementNV(sums[i], sums[i], gated, column0 + i * PN);
    }

    // What lies beyond these is not stored.
    uint out_rows = tile.row0 + tile.count;
    tensorLayoutNV<2, CLAMP_ZERO> out_layout = createTensorLayoutNV(2, CLAMP_ZERO);
    out_layout = setTensorLayoutDimensionNV(out_layout, out_rows, (p.w_row0 + p.w_rows) / PAIR);
    out_layout = setTensorLayoutStrideNV(out_layout, p.out_stride, 1u);
#if defined(OUT_BLOCKS)
    // A block's scale is all over its part; one column of that is stored.
    tensorLayoutNV<2, CLAMP_ZERO> scale_layout = createTensorLayoutNV(2, CLAMP_ZERO);
    scale_layout = setTensorLayoutDimensionNV(scale_layout, out_rows, 1u);
    scale_layout = setTensorLayoutStrideNV(scale_layout, p.out_stride / PN, 1u);
    [[unroll]] for (uint i = 0u; i < PARTS; i++) {
        uint column = column0 + i * PN;
        SUMS largest;
        coopMatPerElementNV(largest, sums[i], magnitude);
        coopMatReduceNV(largest, largest, gl_CooperativeMatrixReduceColumnNV, larger);
        coopMatPerElementNV(sums[i], sums[i], to_half_range, largest);
        coopMatPerElementNV(largest, largest, scale_of);
        if (tile.n0 + i * PN < p.w_rows) {
            coopMatStoreTensorNV(
                coopmat<float16_t, gl_ScopeWorkgroup, PN, BM, gl_MatrixUseAccumulator>(sums[i]), halves, 0,
                sliceTensorLayoutNV(out_layout, tile.row0, BM, column, PN), turned);
            coopMatStoreTensorNV(largest, out_scale, column / PN,
                                 sliceTensorLayoutNV(scale_layout, tile.row0, BM, 0u, PN), turned);
        }
    }
#else
    if (ACT == 2u) {
        coopMatPerElementNV(sums[0], sums[0], swiglu, sums[PARTS - 1u]);
        coopMatStoreTensorNV(sums[0], result, 0,
                             sliceTensorLayoutNV(out_layout, tile.row0, BM, column0, PN), turned);
    } else {
        [[unroll]] for (uint i = 0u; i < PARTS; i++)
            coopMatStoreTensorNV(sums[i], result, 0,
                                 sliceTensorLayoutNV(out_layout, tile.row0, BM, column0 + i * PN, PN),
                                 turned);
    }
#endif
}
