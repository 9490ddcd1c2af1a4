// f32 rows to halves: scale[r] = 2^(e - 13) with 2^e <= max|x[r]| < 2^(e+1), data = x / scale[r].
//
// in f32 [rows][dim], data halves [rows][stride], scale f32 [rows]. LANES invocations share a row,
// WG / LANES rows a workgroup; reduced over a row: the largest magnitude, by its bits.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint LANES = 128; // power of two

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; all buffers but scale begin at row0
    uint dim, stride;
    uint fixed_rows; // not 0: n_rows is not read
}
p;

layout(set = 0, binding = 0) readonly buffer in_block
{
    uint x[]; // bits of floats
};
layout(set = 0, binding = 1) writeonly buffer half_block
{
    uint halves[];
};
layout(set = 0, binding = 2) writeonly buffer scale_block
{
    uint scale[];
};

shared uint largest[LANES > 1u ? WG : 1u];

void main()
{
    uint lane = gl_LocalInvocationID.x % LANES;
    uint r = line_group() * (WG / LANES) + gl_LocalInvocationID.x / LANES;
    bool mine = r < p.row_count && (p.fixed_rows != 0u || p.row0 + r < step.n_rows);
    uint max_bits = 0u;
    if (mine) {
        for (uint i = lane; i < p.dim; i += LANES)
            max_bits = max(max_bits, x[r * p.dim + i] & ABS_MASK);
    }
    if (LANES > 1u) {
        uint t = gl_LocalInvocationID.x;
        largest[t] = max_bits;
        barrier();
        for (uint half_lanes = LANES / 2u; half_lanes > 0u; half_lanes /= 2u) {
            if (lane < half_lanes)
                largest[t] = max(largest[t], largest[t + half_lanes]);
            barrier();
        }
        max_bits = largest[t - lane];
    }
    if (!mine)
        return;
    float multiplier = half_multiplier(max_bits);
    if (lane == 0u)
        scale[p.row0 + r] = floatBitsToUint(half_row_scale(max_bits));
    uint pairs = (p.dim + 1u) / 2u;
    for (uint i = lane; i < pairs; i += LANES) {
        float u = uintBitsToFloat(x[r * p.dim + 2u * i]);
        float v = 2u * i + 1u < p.dim ? uintBitsToFloat(x[r * p.dim + 2u * i + 1u]) : 0.0;
        halves[(r * p.stride) / 2u + i] =
            row_is_finite(max_bits) ? packHalf2x16(vec2(u, v) * multiplier) : 0x7e007e00u;
    }
}
