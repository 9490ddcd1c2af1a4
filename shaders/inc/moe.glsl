// Pieces shared by the mixture-of-experts kernels. Needs step.glsl.
#ifndef FULGUR_INC_MOE
#define FULGUR_INC_MOE

// Rows of this step from row0 on, at most row_cap: the op may treat a step in several parts.
uint rows_from(uint row0, uint row_cap)
{
    return min(step.n_rows > row0 ? step.n_rows - row0 : 0u, row_cap);
}

// Layout of the lists moe_sort writes and the grouped kernels read, in words:
//     [0 .. E]          first tile of each expert, and the number of tiles
//     sorted_at ..      the pairs, sorted by expert, stable
//     places_at ..      of each pair its place among the sorted ones
//     tiles_at ..       {expert, index of the first sorted pair, pairs} a tile
const uint TILE_WORDS = 3u;
const uint ARGS_STRIDE = 64u; // words from one dispatch's group counts to the next: 256 bytes

uint sorted_at(uint experts)
{
    return experts + 1u;
}

uint places_at(uint experts, uint pair_cap)
{
    return experts + 1u + pair_cap;
}

uint tiles_at(uint experts, uint pair_cap)
{
    return experts + 1u + 2u * pair_cap;
}

#endif
