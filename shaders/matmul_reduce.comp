// The parts of a matrix product whose columns were split: out[r][n] = act(sum_s part[s][r][n]), added in
// the order of s.
//
// part f32 [splits][row_count][w_rows] -> out f32 [rows][out_stride]. ACT as in matvec.comp. One invocation for two weight rows, workgroups in a line over pairs of weight rows, then rows.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint ACT = 0;

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; both buffers begin at row0
    uint fixed_rows;      // not 0: n_rows is not read
    uint splits;
    uint w_rows;
    uint out_stride;
    uint split;
}
p;

layout(set = 0, binding = 0) readonly buffer part_block
{
    float part[];
};
layout(set = 0, binding = 1) writeonly buffer out_block
{
    float result[];
};

float activated(float v, uint column)
{
    if (ACT != 1u)
        return v;
    float g = sigmoid(v);
    return column < p.split ? v * g : g;
}

void main()
{
    uint pairs = (p.w_rows + 1u) / 2u;
    uint i = line_group() * WG + gl_LocalInvocationID.x;
    uint r = i / pairs, n = i % pairs * 2u;
    if (r >= p.row_count || (p.fixed_rows == 0u && p.row0 + r >= step.n_rows))
        return;
    bool two = n + 1u < p.w_rows;
    float a = 0.0, b = 0.0;
    uint at = r * p.w_rows + n;
    for (uint s = 0u; s < p.splits; s++) {
        a += part[at];
        if (two)
            b += part[at + 1u];
        at += p.row_count * p.w_rows;
    }
    if (ACT == 2u) {
        result[r * p.out_stride + n / 2u] = silu(a) * b;
    } else {
        result[r * p.out_stride + n] = activated(a, n);
        if (two)
            result[r * p.out_stride + n + 1u] = activated(b, n + 1u);
    }
}
