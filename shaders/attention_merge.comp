// Joins the splits of attention, in order:
//     m = max_s m_s ;  out = sum_s 2^(m_s - m) o_s / sum_s 2^(m_s - m) l_s
//
// carry [rows][heads][splits][D + 4] as attention wrote it; splits past a tile's last key were not
// written and are not read
// out   [rows][out_stride] f32
//
// Workgroup = one query head of one row, in turns of WG vec4s. Nothing is reduced across invocations.
#version 450
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 32;
layout(constant_id = 1) const uint D = 64;
layout(constant_id = 2) const uint ROWS = 32; // of a tile of attention
layout(constant_id = 3) const uint HEADS = 1;
layout(constant_id = 4) const uint KV_HEADS = 1;

layout(std430, binding = 0) readonly buffer Carry { vec4 carry[]; };
layout(std430, binding = 1) writeonly buffer Out { vec4 outputs[]; };

layout(push_constant) uniform Push {
    uint row_base;
    uint row_cap;
    uint out_stride4;
    uint splits;
} push;

const uint GROUP = HEADS / KV_HEADS;
const uint D4 = D / 4;
const uint C4 = D4 + 1;
const float LOWEST = -3.4028234e38;

void main()
{
    uint head = gl_WorkGroupID.x, row = gl_WorkGroupID.y;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    if (row >= rows)
        return;
    // As attention counts them.
    uint first_pair = (row * GROUP + head % GROUP) / ROWS * ROWS;
    uint tile_keys = step.position + push.row_base +
                     (min(first_pair + ROWS, rows * GROUP) - 1) / GROUP + 1;
    uint per_split = (tile_keys + push.splits - 1) / push.splits;
    uint used = (tile_keys + per_split - 1) / per_split;
    uint from = (row * HEADS + head) * push.splits * C4;

    float top = LOWEST;
    for (uint s = 0; s < used; s++)
        top = max(top, carry[from + s * C4 + D4].x);
    for (uint d = gl_LocalInvocationID.x; d < D4; d += WG) {
        vec4 o = vec4(0);
        float weight = 0;
        for (uint s = 0; s < used; s++) {
            vec4 last = carry[from + s * C4 + D4];
            float keep = exp2(last.x - top);
            o += keep * carry[from + s * C4 + d];
            weight += keep * last.y;
        }
        outputs[row * push.out_stride4 + head * D4 + d] = o / weight;
    }
}
