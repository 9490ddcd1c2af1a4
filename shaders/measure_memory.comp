// How fast memory is copied, read or written. COPY: out[i] = in[i]. READ: in is read and summed, and the
// sum stored only if it is a number that the input does not give. WRITE: out[i] = i.
//
// in, out [words4] of four words. A group treats WG * EACH neighbours of them, an invocation EACH with WG
// between them, so that lanes read side by side and several loads are on their way at once.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#extension GL_EXT_control_flow_attributes : require
#include "inc/dispatch.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;
layout(constant_id = 1) const uint EACH = 8;

layout(push_constant) uniform push_block
{
    uint words4;
}
p;

#if defined(WRITE)
layout(set = 0, binding = 0) writeonly buffer out_block
{
    uvec4 result[];
};
#else
layout(set = 0, binding = 0) readonly buffer in_block
{
    uvec4 source[];
};
layout(set = 0, binding = 1) writeonly buffer out_block
{
    uvec4 result[];
};
#endif

void main()
{
    uint first = line_group() * WG * EACH + gl_LocalInvocationID.x;
#if defined(COPY)
    uvec4 words[EACH];
    [[unroll]] for (uint i = 0u; i < EACH; i++)
        words[i] = first + i * WG < p.words4 ? source[first + i * WG] : uvec4(0u);
    [[unroll]] for (uint i = 0u; i < EACH; i++)
        if (first + i * WG < p.words4)
            result[first + i * WG] = words[i];
#elif defined(READ)
    uvec4 sum = uvec4(0u);
    [[unroll]] for (uint i = 0u; i < EACH; i++)
        if (first + i * WG < p.words4)
            sum += source[first + i * WG];
    if (sum.x == 0x9e3779b9u && sum.y == 0x7f4a7c15u && sum.z == 0xf39cc060u)
        result[0] = sum;
#else
    [[unroll]] for (uint i = 0u; i < EACH; i++)
        if (first + i * WG < p.words4)
            result[first + i * WG] = uvec4(first + i * WG);
#endif
}
