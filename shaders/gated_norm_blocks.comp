// The gated norm on block-scaled halves:
//     y = gate * (o / sqrt(mean(o^2) + eps) * weight)
// o    [rows][DIM] halves times o_scale [rows][DIM / O_BLOCK]
// gate [rows][gate_stride] halves from gate_offset, times gate_scale [rows][gate_stride / G_BLOCK]
// out  [rows][out_stride] halves with a power-of-two scale a row
//
// Workgroup = one row, read once: an invocation keeps its vectors of 8 halves in registers. Reduced over
// the row: the sum of squares (as a tree: fixed order) and the largest magnitude. A row whose sum is not
// finite becomes NaN.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/dispatch.glsl"
#include "inc/math.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128; // power of two
layout(constant_id = 1) const uint DIM = 8192;
layout(constant_id = 2) const uint O_BLOCK = 64;
layout(constant_id = 3) const uint G_BLOCK = 128;

layout(std430, binding = 0) readonly buffer O { uvec4 o8[]; };
layout(std430, binding = 1) readonly buffer OScale { float o_scale[]; };
layout(std430, binding = 2) readonly buffer Gate { uvec4 gate8[]; };
layout(std430, binding = 3) readonly buffer GateScale { float gate_scale[]; };
layout(std430, binding = 4) readonly buffer Weight { vec4 weight4[]; };
layout(std430, binding = 5) writeonly buffer Out { uvec4 out8[]; };
layout(std430, binding = 6) writeonly buffer OutScale { uint out_scale[]; }; // bits: NaN is kept

layout(push_constant) uniform Push {
    uint row0, row_count; // rows of this dispatch; all buffers but out_scale begin at row0
    uint fixed_rows;      // not 0: n_rows is not read
    uint gate_stride, gate_offset, out_stride;
    float eps;
} p;

const uint D8 = DIM / 8;
const uint VECS = (D8 + WG - 1) / WG;
shared float sums[WG];
shared uint largest[WG];

void main()
{
    uint t = gl_LocalInvocationID.x, r = line_group();
    uint rows = p.fixed_rows != 0 ? p.row0 + p.row_count : step.n_rows;
    if (r >= p.row_count || p.row0 + r >= rows)
        return;

    vec4 x[2 * VECS];
    float sum = 0;
    [[unroll]] for (uint n = 0; n < VECS; n++) {
        uint c8 = n * WG + t;
        x[2 * n] = x[2 * n + 1] = vec4(0);
        if (c8 < D8) {
            uvec4 w = o8[r * D8 + c8];
            float s = o_scale[r * (DIM / O_BLOCK) + c8 * 8 / O_BLOCK];
            x[2 * n] = vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y)) * s;
            x[2 * n + 1] = vec4(unpackHalf2x16(w.z), unpackHalf2x16(w.w)) * s;
            sum += dot(x[2 * n], x[2 * n]) + dot(x[2 * n + 1], x[2 * n + 1]);
        }
    }
    uint high = 0;
    [[unroll]] for (uint n = 0; n < VECS; n++) {
        uint c8 = n * WG + t;
        if (c8 < D8) {
            uvec4 w = gate8[(r * p.gate_stride + p.gate_offset) / 8 + c8];
            float s = gate_scale[(r * p.gate_stride + p.gate_offset + c8 * 8) / G_BLOCK];
            x[2 * n] *= weight4[2 * c8] * vec4(unpackHalf2x16(w.x), unpackHalf2x16(w.y)) * s;
            x[2 * n + 1] *= weight4[2 * c8 + 1] * vec4(unpackHalf2x16(w.z), unpackHalf2x16(w.w)) * s;
            uvec4 b = max(floatBitsToUint(x[2 * n]) & ABS_MASK, floatBitsToUint(x[2 * n + 1]) & ABS_MASK);
            high = max(high, max(max(b.x, b.y), max(b.z, b.w)));
        }
    }
    sums[t] = sum;
    largest[t] = high;
    barrier();
    for (uint half_wg = WG / 2; half_wg > 0; half_wg /= 2) {
        if (t < half_wg) {
            sums[t] += sums[t + half_wg];
            largest[t] = max(largest[t], largest[t + half_wg]);
        }
        barrier();
    }
    sum = sums[0];
    high = largest[0];

    float inverse = is_finite(sum) ? 1.0 / sqrt(sum / float(DIM) + p.eps) : uintBitsToFloat(NAN_BITS);
    if (row_is_finite(high))
        high = floatBitsToUint(uintBitsToFloat(high) * inverse) & ABS_MASK;
    float multiplier = half_multiplier(high);
    bool finite = row_is_finite(high);
    if (t == 0)
        out_scale[p.row0 + r] = floatBitsToUint(half_row_scale(high));
    [[unroll]] for (uint n = 0; n < VECS; n++) {
        uint c8 = n * WG + t;
        if (c8 < D8) {
            vec4 y = x[2 * n] * inverse * multiplier, z = x[2 * n + 1] * inverse * multiplier;
            out8[r * (p.out_stride / 8) + c8] =
                finite ? uvec4(packHalf2x16(y.xy), packHalf2x16(y.zw), packHalf2x16(z.xy),
                               packHalf2x16(z.zw))
                       : uvec4(0x7e007e00u);
        }
    }
}
