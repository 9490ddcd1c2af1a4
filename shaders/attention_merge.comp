// Joins the splits of attention, in order:
//     m = max_s m_s ;  out = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s
//
// carry [rows][heads][splits][D + 4] as attention wrote it; splits past a tile's last key were not
// written and are not read
// out   [rows][out_stride] f32
//
// Workgroup = one query head of one row. PARTS invocations share a vec4 of the output: part p sums the
// splits p, p + PARTS, ...; the parts are summed through shared memory, in order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 32;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint ROWS = 32; // of a tile of attention
layout(constant_id = 3) const uint HEADS = 1;
layout(constant_id = 4) const uint KV_HEADS = 1;
layout(constant_id = 5) const uint PARTS = 1; // more than 1: WG = PARTS * D / 4

layout(std430, binding = 0) readonly buffer Carry { vec4 carry[]; };
layout(std430, binding = 1) writeonly buffer Out { vec4 outputs[]; };

layout(push_constant) uniform Push {
    uint row_base;
    uint row_cap;
    uint out_stride4;
    uint splits;
    uint split_keys; // fewest of a split
} push;

const uint GROUP = HEADS / KV_HEADS;
const uint D4 = D / 4;
const uint C4 = D4 + 1;
const float LOWEST = -3.4028234e38;
const uint SHARES = PARTS > 1 ? WG : 1;
shared vec4 sums[SHARES];
shared vec2 tops[SHARES]; // the largest m of a part, its sum of weights

void main()
{
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y, lane = gl_LocalInvocationID.x;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    if (row >= rows)
        return;
    // As attention counts them.
    uint first_pair = (row * GROUP + head % GROUP) / ROWS * ROWS;
    uint tile_keys = step.position + push.row_base +
                     (min(first_pair + ROWS, rows * GROUP) - 1) / GROUP + 1;
    uint per_split = max((tile_keys + push.splits - 1) / push.splits, push.split_keys);
    uint used = (tile_keys + per_split - 1) / per_split;
    uint from = (row * HEADS + head) * push.splits * C4;
    uint to = row * push.out_stride4 + head * D4;

    uint part = PARTS > 1 ? lane / D4 : 0;
    float top = LOWEST;
    for (uint s = part; s < used; s += PARTS)
        top = max(top, carry[from + s * C4 + D4].x);
    for (uint d = PARTS > 1 ? lane % D4 : lane; d < D4; d += PARTS > 1 ? D4 : WG) {
        vec4 o = vec4(0);
        float weight = 0;
        for (uint s = part; s < used; s += PARTS) {
            vec4 last = carry[from + s * C4 + D4];
            float keep = exp2(last.x - top);
            o += keep * carry[from + s * C4 + d];
            weight += keep * last.y;
        }
        if (PARTS == 1) {
            outputs[to + d] = o / weight;
        } else {
            sums[lane] = o;
            tops[lane] = vec2(top, weight);
        }
    }
    if (PARTS == 1)
        return;
    barrier();
    if (part > 0)
        return;
    float highest = top;
    for (uint p = 1; p < PARTS; p++)
        highest = max(highest, tops[p * D4 + lane].x);
    vec4 o = vec4(0);
    float weight = 0;
    for (uint p = 0; p < PARTS; p++) {
        float keep = exp2(tops[p * D4 + lane].x - highest);
        o += keep * sums[p * D4 + lane];
        weight += keep * tops[p * D4 + lane].y;
    }
    outputs[to + lane] = o / weight;
}
