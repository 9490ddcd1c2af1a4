// Inner loop of the matrix-vector kernels: LANES invocations walk along COLS weight rows, WEIGHT_CHUNK
// columns at a time, against ROWS rows of x. UNROLL steps are loaded before the first is used, so that enough
// bytes are under way to fill the memory's latency.
//
// Before including this, declare WG, ROWS, COLS, UNROLL and `readonly w4[]` (uvec4; WEIGHT_BLOCKS: include
// blocks.glsl), and define
//     void x_chunk(uint r, uint k, out vec4 low, out vec4 high)    eight values of row r from column 8k
// and ROWS_VARY where far fewer than ROWS rows are usual.
#ifndef FULGUR_INC_ROWDOT
#define FULGUR_INC_ROWDOT

#ifdef WEIGHT_F32
const uint QUADS = 2u; // uvec4 words of eight weights
#else
const uint QUADS = 1u;
#endif

const uint ACCS = ROWS * COLS;
float acc[ACCS];
uint base[COLS]; // where each weight row begins, in uvec4
#ifdef WEIGHT_BLOCKS
const uint STEP_WORDS = COLS;
block_group words[UNROLL * STEP_WORDS];

void words_load(uint at, uint row, uint k)
{
    words[at] = block_load(row, k);
}

// One row of x: codes are summed up before their scales are applied.
void group_dot(uint at, uint k)
{
    float part[2u * COLS];
    float sum_x[2];
    [[unroll]] for (uint i = 0u; i < 2u * COLS; i++)
        part[i] = 0.0;
    sum_x[0] = sum_x[1] = 0.0;
    [[unroll]] for (uint j = 0u; j < 4u; j++) {
        vec4 low, high;
        x_chunk(0u, 4u * k + j, low, high);
        if (HAS_MIN)
            sum_x[j / 2u] += dot(low, vec4(1.0)) + dot(high, vec4(1.0));
        [[unroll]] for (uint c = 0u; c < COLS; c++) {
            vec4 u, v;
            block_group_codes(words[at + c], j, u, v);
            part[2u * c + j / 2u] += dot(u, low) + dot(v, high);
        }
    }
    [[unroll]] for (uint c = 0u; c < COLS; c++) {
        vec4 s = block_scales(words[at + c].scales, k);
        if (SCALES_OF_16)
            acc[c] += s.x * part[2u * c] + s.z * part[2u * c + 1u];
        else
            acc[c] += s.x * (part[2u * c] + part[2u * c + 1u]);
        if (HAS_MIN)
            acc[c] += s.y * sum_x[0] + s.w * sum_x[1];
    }
}

// Several rows share the work of making weights of codes.
void group_rows_dot(uint at, uint k, uint rows)
{
    vec4 scales[COLS];
    [[unroll]] for (uint c = 0u; c < COLS; c++)
        scales[c] = block_scales(words[at + c].scales, k);
    [[unroll]] for (uint j = 0u; j < 4u; j++) {
        vec4 u[COLS];
        vec4 v[COLS];
        [[unroll]] for (uint c = 0u; c < COLS; c++) {
            vec2 own = j < 2u ? scales[c].xy : scales[c].zw;
            block_group_codes(words[at + c], j, u[c], v[c]);
            u[c] = own.x * u[c] + own.y;
            v[c] = own.x * v[c] + own.y;
        }
        [[unroll]] for (uint r = 0u; r < ROWS; r++) {
#if defined(ROWS_VARY)
            if (r >= rows)
                break;
#endif
            vec4 low, high;
            x_chunk(r, 4u * k + j, low, high);
            [[unroll]] for (uint c = 0u; c < COLS; c++)
                acc[r * COLS + c] += dot(u[c], low) + dot(v[c], high);
        }
    }
}
#else
const uint STEP_WORDS = COLS * QUADS;
const uint WORDS = UNROLL * STEP_WORDS;
uvec4 words[WORDS];

// One weight row's share of a step.
void words_load(uint at, uint row, uint k)
{
    [[unroll]] for (uint q = 0u; q < QUADS; q++)
        words[at * QUADS + q] = w4[row + QUADS * k + q];
}

void chunk_add(uint at, vec4 low, vec4 high, uint r)
{
    [[unroll]] for (uint c = 0u; c < COLS; c++) {
#ifdef WEIGHT_F32
        vec4 u = unpack_weights4(words[at + 2u * c]);
        vec4 v = unpack_weights4(words[at + 2u * c + 1u]);
#else
        vec4 u = unpack_weights_low(words[at + c]);
        vec4 v = unpack_weights_high(words[at + c]);
#endif
        acc[r * COLS + c] += dot(u, low) + dot(v, high);
    }
}
#endif

// Loads the first steps of a lane: chunks first, first + step_chunks, ... below `chunks` are its share.
// The weight rows begin at offset + base[c]. May be called well before rows_dot, so that the weights are
// on their way while something else is waited for.
void rows_load(uint offset, uint k, uint step_chunks, uint chunks)
{
    if (k + (UNROLL - 1u) * step_chunks >= chunks)
        return;
    [[unroll]] for (uint s = 0u; s < UNROLL; s++)
        [[unroll]] for (uint c = 0u; c < COLS; c++)
            words_load(s * COLS + c, offset + base[c], k + s * step_chunks);
}

void step_dot(uint s, uint k, uint rows)
{
#ifdef WEIGHT_BLOCKS
    if (ROWS == 1u)
        group_dot(s * COLS, k);
    else
        group_rows_dot(s * COLS, k, rows);
#else
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
#if defined(ROWS_VARY)
        if (ROWS > 1u && r >= rows)
            break;
#endif
        vec4 low, high;
        x_chunk(r, k, low, high);
        chunk_add(s * STEP_WORDS, low, high, r);
    }
#endif
}

// Behind rows_load: adds this lane's share of the products with rows 0 .. rows - 1 of x.
void rows_dot(uint offset, uint first, uint step_chunks, uint chunks, uint rows)
{
    uint k = first;
    while (k + (UNROLL - 1u) * step_chunks < chunks) {
        [[unroll]] for (uint s = 0u; s < UNROLL; s++)
            step_dot(s, k + s * step_chunks, rows);
        k += UNROLL * step_chunks;
        rows_load(offset, k, step_chunks, chunks);
    }
    for (; k < chunks; k += step_chunks) {
        [[unroll]] for (uint c = 0u; c < COLS; c++)
            words_load(c, offset + base[c], k);
        step_dot(0u, k, rows);
    }
}

#endif
