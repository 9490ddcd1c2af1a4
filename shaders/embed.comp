// Embedding: out[r] = table[token[r]], the table's rows of any stored type as f32.
//
// tokens u32 [rows], table [vocab][dim], out f32 [rows][dim]. One dispatch a window of the table:
// each writes the rows whose token lies in its window; the first also writes zeros for tokens outside
// the table. A workgroup covers WG columns of one row, or WG times eight of blocks.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/dispatch.glsl"
#include "inc/step.glsl"
#include "inc/weights.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 64;

layout(push_constant) uniform push_block
{
    uint row0, row_count;      // rows of this dispatch; out begins at row0
    uint dim;
    uint window0, window_rows; // table rows of this window
    uint vocab;
    uint row_words; // stride of the table
    uint column_groups;
}
p;

layout(set = 0, binding = 0) readonly buffer tokens_block
{
    uint tokens[];
};
#if defined(WEIGHT_BLOCKS)
layout(set = 0, binding = 1) readonly buffer w1_block
{
    uint w1[];
};
layout(set = 0, binding = 1) readonly buffer w2_block
{
    uvec2 w2[];
};
layout(set = 0, binding = 1) readonly buffer w4_block
{
    uvec4 w4[];
};
#define BLOCK_TYPE_ID 1
#include "inc/blocks.glsl"
const uint COLUMNS = 8u; // of an invocation
#else
layout(set = 0, binding = 1) readonly buffer table_block
{
    uint table[];
};
const uint COLUMNS = 1u;
#endif
layout(set = 0, binding = 2) writeonly buffer out_block
{
    float result[];
};

void main()
{
    uint line = line_group();
    uint r = line / p.column_groups;
    uint c = ((line % p.column_groups) * WG + gl_LocalInvocationID.x) * COLUMNS;
    if (r >= p.row_count || p.row0 + r >= step.n_rows || c >= p.dim)
        return;
    uint token = tokens[p.row0 + r];
    if (token >= p.vocab) {
        if (p.window0 == 0u)
            for (uint i = 0u; i < COLUMNS; i++)
                result[r * p.dim + c + i] = 0.0;
        return;
    }
    if (token < p.window0 || token >= p.window0 + p.window_rows)
        return;
#if defined(WEIGHT_BLOCKS)
    blocks_begin(p.dim);
    vec4 low, high;
    blocks8((token - p.window0) * (p.row_words / 4u), c / 8u, low, high);
    for (uint i = 0u; i < 4u; i++) {
        result[r * p.dim + c + i] = low[i];
        result[r * p.dim + c + 4u + i] = high[i];
    }
#else
    uint word = table[(token - p.window0) * p.row_words + c / WEIGHTS_PER_WORD];
#if defined(WEIGHT_F32)
    result[r * p.dim + c] = uintBitsToFloat(word);
#else
    vec2 pair = unpack_weights(word);
    result[r * p.dim + c] = (c & 1u) == 0u ? pair.x : pair.y;
#endif
#endif
}
