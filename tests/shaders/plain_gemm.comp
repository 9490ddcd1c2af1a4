#version 450
#pragma use_storage_buffer
// The measure for the occupancy of matrix kernels: c[m][n] = sum over k of a[m][k] * b[k][n] in fp32,
// tiles of 64 x 64 x 16 in shared memory, 256 invocations with 4 x 4 sums each, as plain as it gets.
// m, n and k are multiples of the tile.
layout(local_size_x_id = 0) in;
layout(constant_id = 0) const uint GROUP = 256;

layout(binding = 0) readonly buffer A { float a[]; };
layout(binding = 1) readonly buffer B { float b[]; };
layout(binding = 2) writeonly buffer C { float c[]; };
layout(push_constant) uniform Push { uint m, n, k; };

const uint TILE = 64, DEPTH = 16, MINE = 4;
shared float tile_a[DEPTH][TILE];
shared float tile_b[DEPTH][TILE];

void main()
{
    uint i = gl_LocalInvocationIndex;
    uint row = gl_WorkGroupID.y * TILE, column = gl_WorkGroupID.x * TILE;
    uint my_row = i / (TILE / MINE) * MINE, my_column = i % (TILE / MINE) * MINE;
    float sums[MINE][MINE];
    for (uint y = 0; y < MINE; y++)
        for (uint x = 0; x < MINE; x++)
            sums[y][x] = 0.0;
    for (uint k0 = 0; k0 < k; k0 += DEPTH) {
        for (uint e = i; e < TILE * DEPTH; e += GROUP) {
            tile_a[e % DEPTH][e / DEPTH] = a[(row + e / DEPTH) * k + k0 + e % DEPTH];
            tile_b[e / TILE][e % TILE] = b[(k0 + e / TILE) * n + column + e % TILE];
        }
        barrier();
        for (uint d = 0; d < DEPTH; d++) {
            float left[MINE], right[MINE];
            for (uint y = 0; y < MINE; y++)
                left[y] = tile_a[d][my_row + y];
            for (uint x = 0; x < MINE; x++)
                right[x] = tile_b[d][my_column + x];
            for (uint y = 0; y < MINE; y++)
                for (uint x = 0; x < MINE; x++)
                    sums[y][x] += left[y] * right[x];
        }
        barrier();
    }
    for (uint y = 0; y < MINE; y++)
        for (uint x = 0; x < MINE; x++)
            c[(row + my_row + y) * n + column + my_column + x] = sums[y][x];
}
