// Inner loop of the matrix-vector kernels: LANES invocations walk along COLS weight rows, eight columns
// at a time, against ROWS rows of x. UNROLL steps are loaded before the first is used, so that enough
// bytes are under way to fill the memory's latency.
//
// Before including this, declare WG, ROWS, COLS, UNROLL and `readonly w4[]` (uvec4), and define
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
const uint STEP_WORDS = COLS * QUADS;
const uint WORDS = UNROLL * STEP_WORDS;
float acc[ACCS];
uvec4 words[WORDS];
uint base[COLS]; // where each weight row begins, in uvec4

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

// Loads the first steps of a lane: chunks first, first + step_chunks, ... below `chunks` are its share.
// The weight rows begin at offset + base[c]. May be called well before rows_dot, so that the weights are
// on their way while something else is waited for.
void rows_load(uint offset, uint k, uint step_chunks, uint chunks)
{
    if (k + (UNROLL - 1u) * step_chunks >= chunks)
        return;
    [[unroll]] for (uint s = 0u; s < UNROLL; s++)
        [[unroll]] for (uint c = 0u; c < COLS; c++)
            [[unroll]] for (uint q = 0u; q < QUADS; q++)
                words[s * STEP_WORDS + c * QUADS + q] =
                    w4[offset + base[c] + QUADS * (k + s * step_chunks) + q];
}

void step_dot(uint s, uint k, uint rows)
{
    [[unroll]] for (uint r = 0u; r < ROWS; r++) {
#if defined(ROWS_VARY)
        if (ROWS > 1u && r >= rows)
            break;
#endif
        vec4 low, high;
        x_chunk(r, k, low, high);
        chunk_add(s * STEP_WORDS, low, high, r);
    }
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
            [[unroll]] for (uint q = 0u; q < QUADS; q++)
                words[c * QUADS + q] = w4[offset + base[c] + QUADS * k + q];
        step_dot(0u, k, rows);
    }
}

#endif
