// Scalar pieces shared by the ops: activations that are safe for any magnitude, and exact powers of
// two by their exponent bits.
#ifndef FULGUR_INC_MATH
#define FULGUR_INC_MATH

const uint NAN_BITS = 0x7fc00000u;
const uint INF_BITS = 0x7f800000u;
const uint ABS_MASK = 0x7fffffffu;

// By bits, so that no driver may assume it away.
bool is_finite(float x)
{
    return (floatBitsToUint(x) & INF_BITS) != INF_BITS;
}

// The argument of exp is never positive: nothing overflows, and NaN stays NaN.
float sigmoid(float x)
{
    float e = exp(-abs(x));
    float s = 1.0 / (1.0 + e);
    return x >= 0.0 ? s : e * s;
}

float silu(float x)
{
    return x * sigmoid(x);
}

// Row scaling for fp16. `max_bits` is the largest of floatBitsToUint(x) & ABS_MASK over the row;
// compared as integers, NaN and infinity come out on top.
bool row_is_finite(uint max_bits)
{
    return max_bits < INF_BITS;
}

// The power of two by which the row's values are multiplied before they become halves: puts the
// largest into [2^13, 2^14). 1 for an all-zero or non-finite row. Rows below 2^-113 get less.
float half_multiplier(uint max_bits)
{
    uint e = max_bits >> 23; // biased exponent of the largest magnitude
    if (max_bits == 0u || e == 255u)
        return 1.0;
    e = max(e, 14u);
    return uintBitsToFloat((267u - e) << 23); // 2^(13 - (e - 127)) = 2^(140 - e)
}

// Its exact reciprocal, which consumers multiply by. NaN for a row that is not finite, so that no
// consumer can hide it.
float half_row_scale(uint max_bits)
{
    uint e = max_bits >> 23;
    if (e == 255u)
        return uintBitsToFloat(NAN_BITS);
    if (max_bits == 0u)
        return 1.0;
    e = max(e, 14u);
    return uintBitsToFloat((e - 13u) << 23); // 2^((e - 127) - 13)
}

#endif
