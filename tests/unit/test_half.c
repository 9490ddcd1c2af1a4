/* fp16 and bf16 against their definitions. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* the library has a function of this name */

#include <math.h>
#include <string.h>

#include "format/tensors.h"
#include "util/rng.h"

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

/* A 16-bit float's value from its fields; an infinity is what the next exponent would give. */
static double value_of(uint16_t pattern, int mantissa_bits, int bias)
{
    int exponent = (pattern & 0x7fff) >> mantissa_bits;
    int mantissa = pattern & ((1 << mantissa_bits) - 1);
    double v = exponent == 0
                   ? ldexp(mantissa, 1 - bias - mantissa_bits)
                   : ldexp(mantissa + (1 << mantissa_bits), exponent - bias - mantissa_bits);
    return pattern & 0x8000 ? -v : v;
}

static void check_patterns(int mantissa_bits, int bias, float (*widen)(uint16_t),
                           uint16_t (*narrow)(float))
{
    uint32_t top = 0x7fffu >> mantissa_bits << mantissa_bits;
    for (uint32_t p = 0; p <= 0xffff; p++) {
        float f = widen((uint16_t)p);
        uint32_t magnitude = p & 0x7fff;
        if (magnitude > top) {
            assert_true(isnan(f));
            assert_true((narrow(f) & 0x7fff) > top);
            continue;
        }
        if (magnitude == top)
            assert_true(isinf(f));
        else
            assert_true((double)f == value_of((uint16_t)p, mantissa_bits, bias));
        assert_int_equal(signbit(f) != 0, (p & 0x8000) != 0);
        assert_int_equal(narrow(f), p);
    }
}

/* The nearest of the result and its neighbours, the even one of two. */
static void check_rounding(float f, int mantissa_bits, int bias, uint16_t (*narrow)(float))
{
    uint16_t top = (uint16_t)(0x7fffu >> mantissa_bits << mantissa_bits);
    uint16_t got = (uint16_t)(narrow(fabsf(f)));
    double x = fabs((double)f), error = fabs(value_of(got, mantissa_bits, bias) - x);
    assert_int_equal(narrow(-fabsf(f)), got | 0x8000);
    assert_true(got <= top);
    if (got > 0) {
        double below = fabs(value_of((uint16_t)(got - 1), mantissa_bits, bias) - x);
        assert_true(error < below || (error == below && got % 2 == 0));
    }
    /* Beyond infinity is nothing, and whatever is nearer to it belongs to it. */
    if (got < top) {
        double above = fabs(value_of((uint16_t)(got + 1), mantissa_bits, bias) - x);
        assert_true(error < above || (error == above && got % 2 == 0));
    }
}

static void check_many(int mantissa_bits, int bias, uint16_t (*narrow)(float))
{
    rng r = rng_seed(16);
    for (int i = 0; i < 400000; i++) {
        float f = float_of((uint32_t)rng_next(&r));
        if (isfinite(f) && fabs((double)f) < value_of(0x7fff, mantissa_bits, bias))
            check_rounding(f, mantissa_bits, bias, narrow);
    }
    /* Every midpoint and its two neighbours in fp32. */
    uint32_t top = 0x7fffu >> mantissa_bits << mantissa_bits;
    for (uint32_t p = 0; p < top; p++) {
        double middle = 0.5 * (value_of((uint16_t)p, mantissa_bits, bias) +
                               value_of((uint16_t)(p + 1), mantissa_bits, bias));
        float f = (float)middle;
        if ((double)f != middle || !isfinite(f))
            continue;
        check_rounding(f, mantissa_bits, bias, narrow);
        assert_int_equal(narrow(f) % 2, 0);
        check_rounding(float_of(bits_of(f) + 1), mantissa_bits, bias, narrow);
        if (f > 0)
            check_rounding(float_of(bits_of(f) - 1), mantissa_bits, bias, narrow);
    }
}

static void test_half_patterns(void **state)
{
    (void)state;
    check_patterns(10, 15, half_to_float, float_to_half);
}

static void test_bfloat_patterns(void **state)
{
    (void)state;
    check_patterns(7, 127, bfloat_to_float, float_to_bfloat);
}

static void test_half_rounding(void **state)
{
    (void)state;
    check_many(10, 15, float_to_half);
}

static void test_bfloat_rounding(void **state)
{
    (void)state;
    check_many(7, 127, float_to_bfloat);
}

static void test_known_values(void **state)
{
    (void)state;
    assert_int_equal(float_to_half(1.0f), 0x3c00);
    assert_int_equal(float_to_half(-2.0f), 0xc000);
    assert_int_equal(float_to_half(65504.0f), 0x7bff);
    assert_int_equal(float_to_half(65519.996f), 0x7bff);
    assert_int_equal(float_to_half(65520.0f), 0x7c00);
    assert_int_equal(float_to_half(3e38f), 0x7c00);
    assert_int_equal(float_to_half(-INFINITY), 0xfc00);
    assert_int_equal(float_to_half(0x1p-24f), 1);
    assert_int_equal(float_to_half(0x1p-25f), 0);             /* a tie, to even */
    assert_int_equal(float_to_half(0x1.8p-24f), 2);           /* a tie, to even */
    assert_int_equal(float_to_half(0x1.002p-25f), 1);         /* just above the first */
    assert_int_equal(float_to_half(0x1.ffcp-15f), 0x3ff + 1); /* subnormal rounds up to normal */
    assert_int_equal(float_to_half(float_of(1)), 0);
    assert_true(isnan(half_to_float(float_to_half(float_of(0x7f800001)))));
    assert_true(isnan(bfloat_to_float(float_to_bfloat(float_of(0x7f800001)))));
    assert_int_equal(float_to_bfloat(1.0f), 0x3f80);
    assert_int_equal(float_to_bfloat(float_of(0x7f7fffff)), 0x7f80);
    assert_int_equal(float_to_bfloat(float_of(0x3f808000)), 0x3f80);
    assert_int_equal(float_to_bfloat(float_of(0x3f818000)), 0x3f82);
    assert_int_equal(type_bytes(FUL_TYPE_F32), 4);
    assert_int_equal(type_bytes(FUL_TYPE_F16), 2);
    assert_int_equal(type_bytes(FUL_TYPE_BF16), 2);
    assert_int_equal(type_bytes(FUL_TYPE_DEFAULT), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_half_patterns), cmocka_unit_test(test_bfloat_patterns),
        cmocka_unit_test(test_half_rounding), cmocka_unit_test(test_bfloat_rounding),
        cmocka_unit_test(test_known_values),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
