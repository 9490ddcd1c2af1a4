// out[r][n] = sum_k weight[r][k] * down[r * top_k + k][n], added in the order of k.
//
// down [pairs][dim] f32, routes [rows][top_k] {expert, weight} -> out [rows][dim] f32. SORTED: the rows
// of down are sorted pairs, lists from moe_sort tell where each pair is.
//
// One invocation an element; workgroups are (columns, rows).
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"
#include "inc/moe.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;

layout(std430, binding = 0) readonly buffer Down { float down[]; };
layout(std430, binding = 1) readonly buffer Routes { uint routes[]; };
layout(std430, binding = 2) writeonly buffer Out { float outputs[]; };
#ifdef SORTED
layout(std430, binding = 3) readonly buffer Lists { uint lists[]; };
#endif

layout(push_constant) uniform Push {
    uint row0;
    uint row_cap;
    uint top_k;
    uint dim;
    uint experts; // SORTED only
} push;

void main()
{
    uint column = gl_GlobalInvocationID.x;
    uint row = gl_WorkGroupID.y;
    if (row >= rows_from(push.row0, push.row_cap) || column >= push.dim)
        return;
    float sum = 0.0;
    for (uint k = 0u; k < push.top_k; k++) {
        uint pair = row * push.top_k + k;
#ifdef SORTED
        uint at = lists[places_at(push.experts, push.row_cap * push.top_k) + pair];
#else
        uint at = pair;
#endif
        sum += uintBitsToFloat(routes[pair * 2u + 1u]) * down[at * push.dim + column];
    }
    outputs[row * push.dim + column] = sum;
}
