// Stable sort of the pairs by expert, the tiles over the sorted pairs, and the group counts of the
// indirect dispatches over them.
//
// routes [rows][top_k], counts [E] -> lists (layout in inc/moe.glsl), args [window] x 64 words
//
// One workgroup an expert: prefix sums over the counts of the experts before it, then a second look
// at all pairs, each invocation at its own stretch, so that pairs keep their order.
#version 450
#pragma use_storage_buffer
#extension GL_GOOGLE_include_directive : require
#include "inc/step.glsl"
#include "inc/moe.glsl"

layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint WG = 128;

layout(std430, binding = 0) readonly buffer Routes { uint routes[]; };
layout(std430, binding = 1) readonly buffer Counts { uint counts[]; };
layout(std430, binding = 2) writeonly buffer Lists { uint lists[]; };
layout(std430, binding = 3) writeonly buffer Args { uint args[]; };

// How the windows of one tensor follow each other: `span` whole experts each, or (span = 0) each
// expert in `pieces` windows. groups: workgroups along the rows of a window, and of the last piece.
struct Windows {
    uint span;
    uint pieces;
    uint groups;
    uint groups_last;
};

layout(push_constant) uniform Push {
    uint row0;
    uint row_cap;
    uint top_k;
    uint experts;
    uint tile_rows;
    uint args2; // index of the second tensor's first window in args
    Windows windows[2];
} push;

shared uvec4 sums[WG];

uint tiles_of(uint count)
{
    return (count + push.tile_rows - 1u) / push.tile_rows;
}

void write_args(uint index, uint tiles, uint groups)
{
    args[index * ARGS_STRIDE] = tiles;
    args[index * ARGS_STRIDE + 1u] = groups;
    args[index * ARGS_STRIDE + 2u] = 1u;
}

void write_windows(uint expert, uint own_tiles, Windows windows, uint first)
{
    if (windows.span > 0u) {
        if (expert % windows.span != 0u)
            return;
        uint tiles = 0u;
        uint end = min(expert + windows.span, push.experts);
        for (uint e = expert; e < end; e++)
            tiles += tiles_of(counts[e]);
        write_args(first + expert / windows.span, tiles, windows.groups);
        return;
    }
    for (uint i = 0u; i < windows.pieces; i++) {
        uint groups = i + 1u == windows.pieces ? windows.groups_last : windows.groups;
        write_args(first + expert * windows.pieces + i, own_tiles, groups);
    }
}

void main()
{
    uint lane = gl_LocalInvocationID.x;
    uint expert = gl_WorkGroupID.x;
    uint pairs = rows_from(push.row0, push.row_cap) * push.top_k;

    // x, y: pairs and tiles of the experts before this one; z: matches before this lane's stretch.
    uvec4 sum = uvec4(0u);
    for (uint e = lane; e < expert; e += WG) {
        uint count = counts[e];
        sum.x += count;
        sum.y += tiles_of(count);
    }
    uint stretch = (pairs + WG - 1u) / WG;
    uint begin = min(lane * stretch, pairs);
    uint end = min(begin + stretch, pairs);
    uint own = 0u;
    for (uint p = begin; p < end; p++)
        own += routes[p * 2u] == expert ? 1u : 0u;
    sum.z = own;
    sums[lane] = sum;
    barrier();
    // Inclusive scan; adding from the left keeps it exact for all three at once.
    for (uint distance = 1u; distance < WG; distance *= 2u) {
        uvec4 left = lane >= distance ? sums[lane - distance] : uvec4(0u);
        barrier();
        sums[lane] += left;
        barrier();
    }
    uint first_pair = sums[WG - 1u].x;
    uint first_tile = sums[WG - 1u].y;
    uint at = first_pair + sums[lane].z - own;

    uint sorted = sorted_at(push.experts);
    uint places = places_at(push.experts, push.row_cap * push.top_k);
    for (uint p = begin; p < end; p++) {
        if (routes[p * 2u] == expert) {
            lists[sorted + at] = p;
            lists[places + p] = at;
            at++;
        }
    }
    uint count = counts[expert];
    uint tiles = tiles_of(count);
    uint table = tiles_at(push.experts, push.row_cap * push.top_k);
    for (uint t = lane; t < tiles; t += WG) {
        uint word = table + (first_tile + t) * TILE_WORDS;
        lists[word] = expert;
        lists[word + 1u] = first_pair + t * push.tile_rows;
        lists[word + 2u] = min(push.tile_rows, count - t * push.tile_rows);
    }
    if (lane == 0u) {
        lists[expert] = first_tile;
        if (expert + 1u == push.experts)
            lists[push.experts] = first_tile + tiles;
        write_windows(expert, tiles, push.windows[0], 0u);
        write_windows(expert, tiles, push.windows[1], push.args2);
    }
}
