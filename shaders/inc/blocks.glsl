// Weights in blocks that share scales (types from FUL_TYPE_Q8_0 on): a row is three planes, each from a
// multiple of 16 bytes on, laid out as runtime/base/types.h says. A weight is d * code + m.
//
// Before including this, declare readonly w1[], w2[] and w4[] (uint, uvec2 and uvec4 of one binding) and
// define BLOCK_TYPE_ID, the specialisation constant that says which type; whatever belongs to other types
// is folded away. Call blocks_begin(cols) before reading. Rows are counted in uvec4, groups in 32 columns.
#ifndef FULGUR_INC_BLOCKS
#define FULGUR_INC_BLOCKS

layout(constant_id = BLOCK_TYPE_ID) const uint BLOCK_TYPE = 4;

const bool Q8_0 = BLOCK_TYPE == 4u, Q4_0 = BLOCK_TYPE == 5u, Q4_1 = BLOCK_TYPE == 6u;
const bool Q5_0 = BLOCK_TYPE == 7u, Q5_1 = BLOCK_TYPE == 8u, Q2_K = BLOCK_TYPE == 9u;
const bool Q3_K = BLOCK_TYPE == 10u, Q4_K = BLOCK_TYPE == 11u, Q5_K = BLOCK_TYPE == 12u;
const bool Q6_K = BLOCK_TYPE == 13u, IQ4_NL = BLOCK_TYPE == 14u, MXFP4 = BLOCK_TYPE == 15u;

const bool LOW2 = Q2_K || Q3_K; // bits of the low plane: 8 for q8_0, else 4
const bool HIGH1 = Q5_0 || Q5_1 || Q3_K || Q5_K;
const bool HIGH2 = Q6_K;
const bool SCALES_OF_16 = Q2_K || Q3_K || Q6_K; // two scales a group
const bool HAS_MIN = Q4_1 || Q5_1 || Q2_K || Q4_K || Q5_K;
// Bytes of 256 elements.
const uint LOW_BYTES = Q8_0 ? 256u : LOW2 ? 64u : 128u;
const uint HIGH_BYTES = HIGH2 ? 64u : HIGH1 ? 32u : 0u;
// What a code is above its value.
const float CODE_ZERO = Q8_0 ? 128.0 : Q6_K ? 32.0 : Q5_0 ? 16.0 : Q4_0 ? 8.0 : Q3_K ? 4.0 : 0.0;

uint blocks_high, blocks_scales; // where the planes begin, in uvec4 from a row's begin

void blocks_begin(uint cols)
{
    uint groups = cols / 32u;
    blocks_high = (groups * (LOW_BYTES / 8u) + 15u) / 16u;
    blocks_scales = blocks_high + (groups * (HIGH_BYTES / 8u) + 15u) / 16u;
}

// The words that hold the scales of a group.
uvec4 block_scale_words(uint row, uint group)
{
    uint at = row + blocks_scales;
    if (Q3_K || Q4_K || Q5_K)
        return w4[at + group / 8u];
    if (Q2_K || Q6_K) {
        at = 4u * at + 5u * (group / 8u);
        return uvec4(w1[at], w1[at + 1u + group % 8u / 2u], 0u, 0u);
    }
    uint each = Q4_1 || Q5_1 ? 1u : MXFP4 ? 4u : 2u; // groups a word
    return uvec4(w1[4u * at + group / each], 0u, 0u, 0u);
}

// d and m of the first 16 columns of a group, then of the others.
vec4 block_scales(uvec4 words, uint group)
{
    uint i = group % 8u;
    if (Q4_1 || Q5_1)
        return unpackHalf2x16(words.x).xyxy;
    if (MXFP4) { // 2^(e - 128): codes are doubled
        uint e = words.x >> (8u * (group % 4u)) & 0xffu;
        return vec4(uintBitsToFloat(e < 2u ? 0x00200000u << e : (e - 1u) << 23), 0.0, 0.0, 0.0).xyxy;
    }
    vec2 both = unpackHalf2x16(words.x);
    if (Q4_K || Q5_K) {
        uint scale = (words.y >> (4u * i) & 15u) | (words.w >> (2u * i) & 3u) << 4;
        uint least = (words.z >> (4u * i) & 15u) | (words.w >> (16u + 2u * i) & 3u) << 4;
        return (both * vec2(float(scale), -float(least))).xyxy;
    }
    if (Q3_K) {
        uint low = (i < 4u ? words.y : words.z) >> (8u * (i % 4u));
        uint high = words.w >> (4u * i);
        vec2 s = vec2(float((low & 15u) | (high & 3u) << 4), float((low >> 4 & 15u) | (high >> 2 & 3u) << 4));
        s = both.x * (s - 32.0);
        return vec4(s.x, 0.0, s.y, 0.0);
    }
    uint two = words.y >> (16u * (i % 2u));
    if (Q6_K) {
        vec2 s = both.x * vec2(float(int(two << 24) >> 24), float(int(two << 16) >> 24));
        return vec4(s.x, 0.0, s.y, 0.0);
    }
    if (Q2_K) {
        vec4 s = vec4(float(two & 15u), float(two >> 4 & 15u), float(two >> 8 & 15u), float(two >> 12 & 15u));
        return both.xyxy * s * vec4(1.0, -1.0, 1.0, -1.0);
    }
    return vec4(unpackHalf2x16(words.x >> (16u * (group % 2u))).x, 0.0, 0.0, 0.0).xyxy;
}

// Codes as floats by their place in the mantissa of a power of two, which is then subtracted: exact, and
// two operations everywhere.
const uint MAGIC = 0x4b000000u; // 2^23, in steps of 1

float code_of(uint n)
{
    if (IQ4_NL) { // a table of bytes, 128 above their values
        uint low = (n & 4u) != 0u ? 0x766a5d4fu : 0x3f2d1801u;
        uint high = (n & 4u) != 0u ? 0xf1d9c5b5u : 0xa6998d81u;
        uint byte = ((n & 8u) != 0u ? high : low) >> (8u * (n & 3u)) & 0xffu;
        return uintBitsToFloat(byte | MAGIC) - 8388736.0;
    }
    if (MXFP4) { // a sign and one of 0 1 2 3 4 6 8 12, which is twice the value
        uint value = 0xc8643210u >> (4u * (n & 7u)) & 15u;
        float f = uintBitsToFloat(value | MAGIC) - 8388608.0;
        return uintBitsToFloat(floatBitsToUint(f) | (n & 8u) << 28);
    }
    return uintBitsToFloat(n | MAGIC) - (8388608.0 + CODE_ZERO);
}

// Eight codes. low: their word of 4 bits, or two words of 8; 2 bits and the high bits: shifted so that
// the first two are bits 0 and 16.
void block_codes(uvec2 low, uint high, out vec4 a, out vec4 b)
{
    if (Q8_0) {
        const uvec4 mask = uvec4(0xffu, 0xff00u, 0xffu, 0xff00u);
        const uvec4 magic = uvec4(MAGIC, 0x47000000u, MAGIC, 0x47000000u);
        const vec4 zero = vec4(8388608.0, 32768.0, 8388608.0, 32768.0) + CODE_ZERO;
        uvec2 w = low ^ 0x80808080u;
        a = uintBitsToFloat((uvec2(w.x, w.x >> 16).xxyy & mask) | magic) - zero;
        b = uintBitsToFloat((uvec2(w.y, w.y >> 16).xxyy & mask) | magic) - zero;
        return;
    }
    if (!LOW2 && !HIGH1 && !HIGH2 && !IQ4_NL && !MXFP4) { // where they are
        uvec4 w = uvec2(low.x, low.x >> 16).xyxy;
        a = uintBitsToFloat((w & uvec4(0xfu, 0xfu, 0xf0u, 0xf0u)) |
                            uvec4(MAGIC, MAGIC, 0x49000000u, 0x49000000u)) -
            (vec4(8388608.0, 8388608.0, 524288.0, 524288.0) + CODE_ZERO);
        b = uintBitsToFloat((w & uvec4(0xf00u, 0xf00u, 0xf000u, 0xf000u)) |
                            uvec4(0x47000000u, 0x47000000u, 0x45000000u, 0x45000000u)) -
            (vec4(32768.0, 32768.0, 2048.0, 2048.0) + CODE_ZERO);
        return;
    }
    uvec4 pairs; // two neighbours each, in the halves of a word
    if (LOW2)
        pairs = uvec4(low.x, low.x >> 2, low.x >> 4, low.x >> 6) & 0x00030003u;
    else
        pairs = uvec4(low.x, low.x >> 4, low.x >> 8, low.x >> 12) & 0x000f000fu;
    if (HIGH2)
        pairs |= uvec4(high << 4, high << 2, high, high >> 2) & 0x00300030u;
    else if (HIGH1 && LOW2)
        pairs |= uvec4(high << 2, high << 1, high, high >> 1) & 0x00040004u;
    else if (HIGH1)
        pairs |= uvec4(high << 4, high << 3, high << 2, high << 1) & 0x00100010u;
    a = vec4(code_of(pairs.x & 0xffffu), code_of(pairs.x >> 16), code_of(pairs.y & 0xffffu),
             code_of(pairs.y >> 16));
    b = vec4(code_of(pairs.z & 0xffffu), code_of(pairs.z >> 16), code_of(pairs.w & 0xffffu),
             code_of(pairs.w >> 16));
}

// Columns 8 k8 .. 8 k8 + 7 of a row as they are stored: what blocks8_weights makes weights of.
struct block_eight {
    uvec2 low;
    uint high;
    uvec4 scales;
};

block_eight blocks8_load(uint row, uint k8)
{
    block_eight e;
    e.low = Q8_0 ? w2[2u * row + k8] : uvec2(LOW2 ? w1[4u * row + k8 / 2u] : w1[4u * row + k8], 0u);
    e.high = 0u;
    if (HIGH1)
        e.high = w1[4u * (row + blocks_high) + k8 / 4u];
    if (HIGH2)
        e.high = w1[4u * (row + blocks_high) + k8 / 2u];
    e.scales = block_scale_words(row, k8 / 4u);
    return e;
}

void blocks8_weights(block_eight e, uint k8, out vec4 a, out vec4 b)
{
    if (LOW2)
        e.low.x >>= 8u * (k8 % 2u);
    e.high >>= HIGH2 ? 8u * (k8 % 2u) : 4u * (k8 % 4u);
    block_codes(e.low, e.high, a, b);
    vec4 s = block_scales(e.scales, k8 / 4u);
    vec2 own = SCALES_OF_16 && (k8 & 2u) != 0u ? s.zw : s.xy;
    a = own.x * a + own.y;
    b = own.x * b + own.y;
}

void blocks8(uint row, uint k8, out vec4 a, out vec4 b)
{
    blocks8_weights(blocks8_load(row, k8), k8, a, b);
}

// A whole group as it is stored, in loads as wide as its planes.
struct block_group {
    uvec4 low, more; // more: columns 16 .. 31 of 8 bits
    uvec2 high;
    uvec4 scales;
};

block_group block_load(uint row, uint group)
{
    block_group g;
    g.more = uvec4(0u);
    g.high = uvec2(0u);
    if (Q8_0) {
        g.low = w4[row + 2u * group];
        g.more = w4[row + 2u * group + 1u];
    } else if (LOW2) {
        g.low = uvec4(w2[2u * row + group], 0u, 0u);
    } else {
        g.low = w4[row + group];
    }
    if (HIGH1)
        g.high.x = w1[4u * (row + blocks_high) + group];
    if (HIGH2)
        g.high = w2[2u * (row + blocks_high) + group];
    g.scales = block_scale_words(row, group);
    return g;
}

// Columns 8 j .. 8 j + 7 of a group; j should be known to the compiler.
void block_group_codes(block_group g, uint j, out vec4 a, out vec4 b)
{
    uvec2 low = uvec2(g.low[j], 0u);
    if (Q8_0)
        low = j == 0u ? g.low.xy : j == 1u ? g.low.zw : j == 2u ? g.more.xy : g.more.zw;
    if (LOW2)
        low.x = (j < 2u ? g.low.x : g.low.y) >> (8u * (j % 2u));
    uint high = g.high.x >> (4u * j);
    if (HIGH2)
        high = (j < 2u ? g.high.x : g.high.y) >> (8u * (j % 2u));
    block_codes(low, high, a, b);
}

#endif
