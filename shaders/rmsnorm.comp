// RMSNorm, with the residual sum in front or the gate behind it:
//     x = alpha*a + beta*b          (HAS_B; else x = alpha*a)
//     y = x / sqrt(mean(x^2) + eps) * weight
// and with GATED instead: x = a, y = gate * that. Outputs f32 [rows][out_stride] (OUT_F32) and halves
// with a power-of-two scale a row (OUT_HALF).
//
// a, b f32 [rows][dim]; gate f32 [rows][gate_stride] from gate_offset; weight f32 [dim]. LANES
// invocations share a row, WG / LANES rows a workgroup. Reduced over a row: the sum of squares (each
// lane in blocks of 16 pairs, lanes as a tree: fixed order) and, for halves, the largest magnitude. A row
// whose sum is not finite becomes NaN: nothing that went wrong can look like a number.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint LANES = 128; // power of two
layout(constant_id = 2) const uint HAS_B = 0;

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; all buffers but scale begin at row0
    uint dim;
    uint fixed_rows; // not 0: n_rows is not read
    uint last_row;   // not 0: only row n_rows - 1, written as row 0
    uint gate_stride, gate_offset;
    uint out_stride, half_stride;
    float alpha, beta, eps;
}
p;

layout(set = 0, binding = 0) readonly buffer a_block
{
    float a[];
};
layout(set = 0, binding = 1) readonly buffer b_block
{
    float b[]; // or the gate
};
layout(set = 0, binding = 2) readonly buffer weight_block
{
    float weight[];
};
#if defined(OUT_F32)
layout(set = 0, binding = 3) writeonly buffer out_block
{
    float result[];
};
#define HALF_BINDING 4
#define SCALE_BINDING 5
#else
#define HALF_BINDING 3
#define SCALE_BINDING 4
#endif
#if defined(OUT_HALF)
layout(set = 0, binding = HALF_BINDING) writeonly buffer half_block
{
    uint halves[];
};
layout(set = 0, binding = SCALE_BINDING) writeonly buffer scale_block
{
    uint scale[]; // bits, so that a NaN is stored as it is
};
#endif

shared float sums[LANES > 1u ? WG : 1u];
#if defined(OUT_HALF)
shared uint largest[LANES > 1u ? WG : 1u];
#endif

float input_at(uint r, uint i)
{
#if defined(GATED)
    return a[r * p.dim + i];
#else
    float x = p.alpha * a[r * p.dim + i];
    if (HAS_B != 0u)
        x += p.beta * b[r * p.dim + i];
    return x;
#endif
}

// What the normalised value is multiplied by.
float factor_at(uint r, uint i)
{
#if defined(GATED)
    return weight[i] * b[r * p.gate_stride + p.gate_offset + i];
#else
    return weight[i];
#endif
}

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES;
    uint r = line_group() * (WG / LANES) + gl_LocalInvocationID.x / LANES;
    uint rows = p.fixed_rows != 0u ? p.row0 + p.row_count : step.n_rows;
    uint out_row = r;
    bool mine = r < p.row_count && p.row0 + r < rows;
    if (p.last_row != 0u) {
        mine = r == 0u && rows > p.row0 && rows <= p.row0 + p.row_count;
        r = mine ? rows - 1u - p.row0 : 0u;
        out_row = 0u;
    }
    if (!mine)
        r = 0u; // barriers below need everyone

    uint pairs = (p.dim + 1u) / 2u;
    float sum = 0.0;
    uint max_bits = 0u;
    if (mine) {
        uint i = lane;
        while (i < pairs) {
            float block = 0.0;
            for (uint n = 0u; n < 16u && i < pairs; n++, i += LANES) {
                float x = input_at(r, 2u * i);
                float y = 2u * i + 1u < p.dim ? input_at(r, 2u * i + 1u) : 0.0;
                block += x * x + y * y;
#if defined(OUT_HALF)
                max_bits = max(max_bits, floatBitsToUint(x * factor_at(r, 2u * i)) & ABS_MASK);
                if (2u * i + 1u < p.dim)
                    max_bits = max(max_bits, floatBitsToUint(y * factor_at(r, 2u * i + 1u)) & ABS_MASK);
#endif
            }
            sum += block;
        }
    }
    if (LANES > 1u) {
        uint t = gl_LocalInvocationID.x;
        sums[t] = sum;
#if defined(OUT_HALF)
        largest[t] = max_bits;
#endif
        barrier();
        for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
            if (lane < half_lanes) {
                sums[t] += sums[t + half_lanes];
#if defined(OUT_HALF)
                largest[t] = max(largest[t], largest[t + half_lanes]);
#endif
            }
            barrier();
        }
        sum = sums[t - lane];
#if defined(OUT_HALF)
        max_bits = largest[t - lane];
#endif
    }
    if (!mine)
        return;

    float mean = sum / float(p.dim);
    float inverse = is_finite(sum) ? 1.0 / sqrt(mean + p.eps) : uintBitsToFloat(NAN_BITS);
#if defined(OUT_HALF)
    if (row_is_finite(max_bits))
        max_bits = floatBitsToUint(uintBitsToFloat(max_bits) * inverse) & ABS_MASK;
    float multiplier = half_multiplier(max_bits);
    if (lane == 0u)
        scale[p.last_row != 0u ? 0u : p.row0 + r] = floatBitsToUint(half_row_scale(max_bits));
#endif
    for (uint i = lane; i < pairs; i += LANES) {
        bool second = 2u * i + 1u < p.dim;
        float x = input_at(r, 2u * i) * inverse * factor_at(r, 2u * i);
        float y = second ? input_at(r, 2u * i + 1u) * inverse * factor_at(r, 2u * i + 1u) : 0.0;
#if defined(OUT_F32)
        result[out_row * p.out_stride + 2u * i] = x;
        if (second)
            result[out_row * p.out_stride + 2u * i + 1u] = y;
#endif
#if defined(OUT_HALF)
        halves[(out_row * p.half_stride) / 2u + i] =
            row_is_finite(max_bits) ? packHalf2x16(vec2(x, y) * multiplier) : 0x7e007e00u;
#endif
    }
}
