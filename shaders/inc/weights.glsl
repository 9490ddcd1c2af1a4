// Weights of any stored type, read as words so that no 16-bit storage is needed. Define exactly one
// of WEIGHT_F32, WEIGHT_F16, WEIGHT_BF16, WEIGHT_BLOCKS; for the last include blocks.glsl, too, behind the
// bindings. Rows begin at multiples of 16 bytes and their stride
// (row_bytes) is a multiple of 16, so a matrix may be declared as an array of uvec4; what lies between
// the last column and the end of a row is undefined.
#ifndef FULGUR_INC_WEIGHTS
#define FULGUR_INC_WEIGHTS

#if defined(WEIGHT_F32)
const uint WEIGHT_BYTES = 4u;
const uint WEIGHTS_PER_WORD = 1u;
const uint WEIGHTS_PER_UVEC4 = 4u;
#elif defined(WEIGHT_BLOCKS)
const uint WEIGHTS_PER_UVEC4 = 8u; // as many as are read at once
#else
const uint WEIGHT_BYTES = 2u;
const uint WEIGHTS_PER_WORD = 2u;
const uint WEIGHTS_PER_UVEC4 = 8u;
#endif

// Columns that an invocation of the matrix-vector kernels takes at once.
#if defined(WEIGHT_BLOCKS)
const uint WEIGHT_CHUNK = 32u;
#else
const uint WEIGHT_CHUNK = 8u;
#endif

// Two weights of one word of a 16-bit type.
vec2 unpack_bf16(uint word)
{
    return vec2(uintBitsToFloat(word << 16), uintBitsToFloat(word & 0xffff0000u));
}

#if defined(WEIGHT_F16)
vec2 unpack_weights(uint word)
{
    return unpackHalf2x16(word);
}
#elif defined(WEIGHT_BF16)
vec2 unpack_weights(uint word)
{
    return unpack_bf16(word);
}
#endif

#if defined(WEIGHT_F32)
// Four weights of one uvec4.
vec4 unpack_weights4(uvec4 words)
{
    return uintBitsToFloat(words);
}
#elif !defined(WEIGHT_BLOCKS)
// Eight weights of one uvec4: the low and the high four.
vec4 unpack_weights_low(uvec4 words)
{
    return vec4(unpack_weights(words.x), unpack_weights(words.y));
}
vec4 unpack_weights_high(uvec4 words)
{
    return vec4(unpack_weights(words.z), unpack_weights(words.w));
}
vec4 unpack_weights4(uvec2 words)
{
    return vec4(unpack_weights(words.x), unpack_weights(words.y));
}
#endif

#endif
