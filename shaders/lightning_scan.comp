// Lightning prefill in chunks, second of three kernels: from what each chunk of n tokens adds to a
// state, U, to the states that chunks start with, and behind the last one:
//     S' = S + expm1(-s n) S + U
//
// decay [heads][DECAY_STRIDE], inc/lightning.glsl
// units [chunks][heads of this dispatch][D (key)][D (value)] f32: in U, out S; those of chunks
//       without a real row are left as they are
// state [heads of this dispatch][D][D] f32, in and out
//
// Workgroup = (WG vec4s of the state, head); invocation = one vec4. Nothing is shared.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/lightning.glsl"
#include "inc/step.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint D = 128;

layout(std430, binding = 0) readonly buffer Decay { float decay[]; };
layout(std430, binding = 1) buffer Units { vec4 units[]; };
layout(std430, binding = 2) buffer State { vec4 state[]; };

layout(push_constant) uniform Push {
    uint row_base;   // first row bound, counted in the step
    uint row_cap;    // rows bound
    uint head_base;  // first head of this dispatch
    uint chunk_rows;
} push;

const uint QUADS = D * D / 4;

// expm1(-s n): the table ends at MOST, and expm1(a + b) = expm1(a) + expm1(b) + expm1(a) expm1(b).
// exp(-s n) - 1 would have the slow heads drift.
const uint MOST = 128;
float fade_of(uint table, uint n)
{
    float e = decay[table + FADE_AT + n % MOST], part = decay[table + FADE_AT + MOST];
    for (uint m = n / MOST; m > 0; m >>= 1) {
        if ((m & 1) != 0)
            e += part + e * part;
        part *= 2.0 + part;
    }
    return e;
}

void main()
{
    uint at = gl_GlobalInvocationID.x, head = gl_WorkGroupID.y, heads = gl_NumWorkGroups.y;
    uint rows = step.n_rows > push.row_base ? min(step.n_rows - push.row_base, push.row_cap) : 0;
    if (rows == 0 || at >= QUADS)
        return;
    uint table = (push.head_base + head) * DECAY_STRIDE;
    uint chunks = (rows + push.chunk_rows - 1) / push.chunk_rows;
    float fade = fade_of(table, push.chunk_rows);
    vec4 s = state[head * QUADS + at];
    for (uint c = 0; c < chunks; c++) {
        uint unit = (c * heads + head) * QUADS + at;
        vec4 u = units[unit];
        units[unit] = s;
        if (c + 1 == chunks)
            fade = fade_of(table, rows - c * push.chunk_rows);
        s += s * fade + u;
    }
    state[head * QUADS + at] = s;
}
