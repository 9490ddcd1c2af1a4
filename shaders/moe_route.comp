// Routing: per row the top_k largest of E logits, best first, ties to the lowest expert, with
//     weight_k = exp(l_k - l_0) / sum_j exp(l_j - l_0)
// which is the softmax over all experts renormalised over the chosen ones.
//
// logits [rows][E] f32 -> routes [rows][top_k] {u32 expert, f32 weight}
//
// WIDE: one workgroup a row; every pick is a tree reduction in shared memory. Otherwise one
// invocation a row, for CPU devices, where barriers cost more than a serial search.
// A NaN logit counts as the largest: it is chosen, and a row whose best logit is not finite gets NaN
// weights. The expert index stays below E in every case.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"
#include "inc/moe.glsl"
#include "inc/route.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint TOP_K = 2;

layout(std430, binding = 0) readonly buffer Logits { float logits[]; };
layout(std430, binding = 1) writeonly buffer Routes { uint routes[]; };

layout(push_constant) uniform Push {
    uint row0; // of the step, that logits begin with
    uint row_cap;
    uint experts;
} push;

#ifdef WIDE
shared uint best_key[WG];
shared uint best_index[WG];
shared uint picked_key[TOP_K];
shared uint picked_index[TOP_K];
#endif

void main()
{
#ifdef WIDE
    uint row = gl_WorkGroupID.x;
    uint lane = gl_LocalInvocationID.x;
    if (row >= rows_from(push.row0, push.row_cap))
        return;
#else
    uint row = gl_GlobalInvocationID.x;
    if (row >= rows_from(push.row0, push.row_cap))
        return;
    uint picked_key[TOP_K];
    uint picked_index[TOP_K];
#endif
    uint base = row * push.experts;
    uint last_key = 0xffffffffu, last_index = 0u;
    bool first = true;
    for (uint k = 0u; k < TOP_K; k++) {
        // The best of those that come after the last pick; index E means none.
        uint key = 0u, index = push.experts;
#ifdef WIDE
        for (uint e = lane; e < push.experts; e += WG) {
#else
        for (uint e = 0u; e < push.experts; e++) {
#endif
            uint candidate = order_key(logits[base + e]);
            bool open = first || before(last_key, last_index, candidate, e);
            if (open && before(candidate, e, key, index)) {
                key = candidate;
                index = e;
            }
        }
#ifdef WIDE
        best_key[lane] = key;
        best_index[lane] = index;
        barrier();
        for (uint half_width = WG / 2u; half_width > 0u; half_width /= 2u) {
            if (lane < half_width) {
                uint other = lane + half_width;
                if (before(best_key[other], best_index[other], best_key[lane], best_index[lane])) {
                    best_key[lane] = best_key[other];
                    best_index[lane] = best_index[other];
                }
            }
            barrier();
        }
        key = best_key[0];
        index = best_index[0];
        barrier();
        if (lane == 0u) {
            picked_key[k] = key;
            picked_index[k] = index;
        }
#else
        picked_key[k] = key;
        picked_index[k] = index;
#endif
        last_key = key;
        last_index = index;
        first = false;
    }
#ifdef WIDE
    barrier();
    if (lane != 0u)
        return;
#endif
    float top = key_value(picked_key[0]);
    float sum = 0.0;
    for (uint k = 0u; k < TOP_K; k++)
        sum += exp(key_value(picked_key[k]) - top);
    bool finite = key_finite(picked_key[0]);
    for (uint k = 0u; k < TOP_K; k++) {
        float weight = exp(key_value(picked_key[k]) - top) / sum;
        uint at = (row * TOP_K + k) * 2u;
        routes[at] = min(picked_index[k], push.experts - 1u);
        routes[at + 1u] = finite ? floatBitsToUint(weight) : 0x7fc00000u;
    }
}
