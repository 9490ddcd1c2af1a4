// What the matrix kernels on matrix units share: out[r][n] = act(sum_k x[r][k] * w[n][k]).
//
// Bindings:
//     0  x        halves [rows][x_stride], x_stride a multiple of 8
//     1  w        one window of [experts][rows][cols] in uvec4
//     2  x_scale  f32 [rows]: what x must be multiplied by
//     3  out      f32 [rows][out_stride], or (OUT_BLOCKS) halves [rows][out_stride]
//     4  w_scale  f32 [experts * w_rows_all]: powers of two that bring weight rows into fp16's range
//     5  OUT_BLOCKS: f32 [rows][out_stride / block]; GROUPED: the lists of moe_sort
//
// GROUPED: rows are sorted pairs, contiguous for each expert; row_count is the most pairs there can
// be (pair_cap of the lists). Workgroup (x, y) of the dispatch makes one tile; matmul_place says
// which. Groups in a line of `line` = tiles x blocks follow each other so that neighbours share
// weights and the x of a panel of tiles stays in the caches.
//
// Needs dispatch.glsl, math.glsl, step.glsl, moe.glsl.
#ifndef FULGUR_INC_MATMUL
#define FULGUR_INC_MATMUL

layout(push_constant) uniform push_block
{
    uint row0, row_count; // rows of this dispatch; x and out begin at row0
    uint fixed_rows;      // not 0: n_rows is not read
    uint cols;
    uint x_stride, out_stride;
    uint w_rows;     // weight rows in this window (of one expert)
    uint w_row0;     // the first one's number
    uint w_stride;   // in uvec4
    uint w_rows_all; // of one expert, over all windows
    uint split;
    uint experts; // GROUPED only, as are the next two
    uint window_expert, window_experts;
    uint splits;       // parts of k, one a z of the groups, each to its own result
    uint split_stride; // floats from one part to the next
}
p;

struct matmul_tile {
    uint row0;   // first row of x and out
    uint count;  // rows; 0: nothing to do
    uint w0;     // first weight row of the window's uvec4 rows: expert's base
    uint n0;     // first weight row of the tile, within the expert's part of the window
    uint scale0; // of weight row 0 of the tile's expert in w_scale, w_row0 included
};

// Position `local` in a grid of tiles x blocks, in panels of `panel` tiles: (tile, block).
uvec2 matmul_panel(uint local, uint tiles, uint blocks, uint panel)
{
    uint whole = panel * blocks;
    uint first = (local / whole) * panel;
    uint height = min(panel, tiles - first);
    uint rest = local % whole;
    return uvec2(first + rest % height, rest / height);
}

#if defined(GROUPED)
layout(set = 0, binding = 5) readonly buffer lists_block
{
    uint lists[];
};

matmul_tile matmul_place(uint line, uint bm, uint bn, uint panel)
{
    uint blocks = (p.w_rows + bn - 1u) / bn;
    uint first_tile = lists[p.window_expert];
    uint tiles = lists[p.window_expert + p.window_experts] - first_tile;
    matmul_tile t = matmul_tile(0u, 0u, 0u, 0u, 0u);
    if (line >= tiles * blocks)
        return t;
    uint table = tiles_at(p.experts, p.row_count);
    uint expert = lists[table + (first_tile + line / blocks) * TILE_WORDS];
    uint own = lists[expert];
    uvec2 at = matmul_panel(line - (own - first_tile) * blocks, lists[expert + 1u] - own, blocks, panel);
    uint word = table + (own + at.x) * TILE_WORDS;
    t.row0 = lists[word + 1u];
    t.count = lists[word + 2u];
    t.w0 = (expert - p.window_expert) * p.w_rows;
    t.n0 = at.y * bn;
    t.scale0 = expert * p.w_rows_all + p.w_row0;
    return t;
}
#else
matmul_tile matmul_place(uint line, uint bm, uint bn, uint panel)
{
    uint rows = p.row_count;
    if (p.fixed_rows == 0u)
        rows = min(rows, step.n_rows > p.row0 ? step.n_rows - p.row0 : 0u);
    uint blocks = (p.w_rows + bn - 1u) / bn;
    uint tiles = (rows + bm - 1u) / bm;
    matmul_tile t = matmul_tile(0u, 0u, 0u, 0u, p.w_row0);
    if (line >= tiles * blocks)
        return t;
    uvec2 at = matmul_panel(line, tiles, blocks, panel);
    t.row0 = at.x * bm;
    t.count = min(bm, rows - t.row0);
    t.n0 = at.y * bn;
    return t;
}
#endif

#endif
