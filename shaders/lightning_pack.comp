// Rows between f32 and block-scaled halves, for lightning_coopmat.
//     pack:   halves[r][c] = x[r][c] * 2^e, scale[r][b] = 2^-e, with e such that the largest magnitude of
//             the block b of B columns lies in [2^13, 2^14); a block with inf or NaN has zeros and NaN
//     UNPACK: x[r][c] = halves[r][c] * scale[r][b]
//
// x [rows][x_stride] f32, columns used: blocks * B; halves [rows][blocks * B]; scale [rows][blocks].
// LANES invocations share a block, WG / LANES blocks a workgroup. B is a multiple of 4.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint B = 128;
layout(constant_id = 2) const uint LANES = 16;

#ifdef UNPACK
layout(std430, binding = 0) writeonly buffer X { vec4 x[]; };
layout(std430, binding = 1) readonly buffer Halves { uvec2 halves[]; };
layout(std430, binding = 2) readonly buffer Scale { float scale[]; };
#else
layout(std430, binding = 0) readonly buffer X { vec4 x[]; };
layout(std430, binding = 1) writeonly buffer Halves { uvec2 halves[]; };
layout(std430, binding = 2) writeonly buffer Scale { uint scale[]; }; // bits: NaN is kept as it is
shared uint largest[WG];
#endif

layout(push_constant) uniform Push {
    uint row_base;  // first row bound, counted in the step
    uint row_cap;   // rows bound
    uint blocks;    // of a row
    uint x_stride4; // vec4s from row to row
} push;

const uint B4 = B / 4;

void main()
{
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    uint lane = gl_LocalInvocationID.x % LANES;
    uint unit = line_group() * (WG / LANES) + gl_LocalInvocationID.x / LANES;
    uint row = unit / push.blocks, block = unit % push.blocks;
    bool mine = row < rows;
    uint x_at = row * push.x_stride4 + block * B4, at = unit * B4;
#ifdef UNPACK
    if (!mine)
        return;
    float s = scale[unit];
    for (uint n = lane; n < B4; n += LANES) {
        uvec2 w = halves[at + n];
        x[x_at + n] = vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y)) * s;
    }
#else
    uint high = 0;
    if (mine) {
        for (uint n = lane; n < B4; n += LANES) {
            uvec4 b = floatBitsToUint(x[x_at + n]) & ABS_MASK;
            high = max(high, max(max(b.x, b.y), max(b.z, b.w)));
        }
    }
    largest[gl_LocalInvocationID.x] = high;
    barrier();
    for (uint n = 0; n < LANES; n++)
        high = max(high, largest[gl_LocalInvocationID.x - lane + n]);
    if (!mine)
        return;
    float multiplier = half_multiplier(high);
    if (lane == 0)
        scale[unit] = floatBitsToUint(half_row_scale(high));
    for (uint n = lane; n < B4; n += LANES) {
        vec4 y = row_is_finite(high) ? x[x_at + n] * multiplier : vec4(0);
        halves[at + n] = uvec2(packHalf2x16(y.xy), packHalf2x16(y.zw));
    }
#endif
}
