// The rows of x in the order of the sorted pairs: out[s] = x[row of pair s], its scale with it.
//
// x halves [rows][stride], x_scale f32 [rows], lists from moe_sort -> out halves [pairs][out_stride],
// scale f32 [pairs]. Strides in uvec4, out_stride <= stride. One workgroup a pair.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/step.glsl"
#include "inc/moe.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;

layout(std430, binding = 0) readonly buffer X { uvec4 x[]; };
layout(std430, binding = 1) readonly buffer XScale { float x_scale[]; };
layout(std430, binding = 2) readonly buffer Lists { uint lists[]; };
layout(std430, binding = 3) writeonly buffer Out { uvec4 sorted_x[]; };
layout(std430, binding = 4) writeonly buffer Scale { float sorted_scale[]; };

layout(push_constant) uniform Push {
    uint row0;
    uint row_cap;
    uint top_k;
    uint experts;
    uint stride, out_stride;
} push;

void main()
{
    uint s = line_group();
    if (s >= rows_from(push.row0, push.row_cap) * push.top_k)
        return;
    uint row = lists[sorted_at(push.experts) + s] / push.top_k;
    for (uint i = gl_LocalInvocationID.x; i < push.out_stride; i += WG)
        sorted_x[s * push.out_stride + i] = x[row * push.stride + i];
    if (gl_LocalInvocationID.x == 0u)
        sorted_scale[s] = x_scale[row];
}
