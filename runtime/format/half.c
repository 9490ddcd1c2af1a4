#include <string.h>

#include "format/tensors.h"

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float half_to_float(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
    uint32_t exponent = (h >> 10) & 31u, mantissa = h & 0x3ffu;
    if (exponent == 31)
        return float_of(sign | 0x7f800000u | mantissa << 13);
    if (exponent > 0)
        return float_of(sign | (exponent + 112) << 23 | mantissa << 13);
    /* Subnormal: mantissa * 2^-24 is exact in fp32. */
    float magnitude = (float)mantissa * 0x1p-24f;
    return sign ? -magnitude : magnitude;
}

uint16_t float_to_half(float f)
{
    uint32_t u = bits_of(f);
    uint32_t sign = u >> 16 & 0x8000u, magnitude = u & 0x7fffffffu;
    if (magnitude > 0x7f800000u) { /* NaN stays NaN, with the payload bits that fit */
        uint32_t payload = magnitude >> 13 & 0x3ffu;
        return (uint16_t)(sign | 0x7c00u | (payload ? payload : 0x200u));
    }
    if (magnitude >= 0x477ff000u) /* 65520: half way from the largest half to the next power */
        return (uint16_t)(sign | 0x7c00u);
    uint32_t value, shift;
    if (magnitude >= 0x38800000u) { /* 2^-14: normal */
        value = magnitude - 0x38000000u;
        shift = 13;
    } else if (magnitude >= 0x33000000u) { /* 2^-25: subnormal, or rounds to one */
        value = (magnitude & 0x7fffffu) | 0x800000u;
        shift = 126 - (magnitude >> 23);
    } else {
        return (uint16_t)sign;
    }
    uint32_t kept = value >> shift, rest = value & ((1u << shift) - 1), tie = 1u << (shift - 1);
    /* A carry out of the mantissa gives the next exponent, as it should. */
    kept += rest > tie || (rest == tie && (kept & 1u));
    return (uint16_t)(sign | kept);
}

float bfloat_to_float(uint16_t b)
{
    return float_of((uint32_t)b << 16);
}

uint16_t float_to_bfloat(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffffu) > 0x7f800000u) {
        uint32_t high = u >> 16;
        return (uint16_t)(high & 0x7fu ? high : high | 0x40u);
    }
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

float element_to_float(ful_type type, const void *p)
{
    uint16_t half;
    float f;
    switch (type) {
    case FUL_TYPE_F32:
        memcpy(&f, p, 4);
        return f;
    case FUL_TYPE_F16:
        memcpy(&half, p, 2);
        return half_to_float(half);
    default:
        memcpy(&half, p, 2);
        return bfloat_to_float(half);
    }
}
