// counts[e] = number of pairs routed to expert e. A pair is one (row, k); pair p = row * top_k + k.
//
// routes [rows][top_k] {u32 expert, f32 weight} -> counts [E]
//
// One workgroup an expert. Integer sums only, so the order is of no consequence.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"
#include "inc/moe.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;

layout(std430, binding = 0) readonly buffer Routes { uint routes[]; };
layout(std430, binding = 1) writeonly buffer Counts { uint counts[]; };

layout(push_constant) uniform Push {
    uint row0; // of the step, that routes begin with
    uint row_cap;
    uint top_k;
} push;

shared uint sums[WG];

void main()
{
    uint lane = gl_LocalInvocationID.x;
    uint expert = gl_WorkGroupID.x;
    uint pairs = rows_from(push.row0, push.row_cap) * push.top_k;
    uint sum = 0u;
    for (uint p = lane; p < pairs; p += WG)
        sum += routes[p * 2u] == expert ? 1u : 0u;
    sums[lane] = sum;
    barrier();
    for (uint half_width = WG / 2u; half_width > 0u; half_width /= 2u) {
        if (lane < half_width)
            sums[lane] += sums[lane + half_width];
        barrier();
    }
    if (lane == 0u)
        counts[expert] = sums[0];
}
