/* Which tensor gets which type. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <string.h>

#include "model/mix.h"

#include <cmocka.h>

static void names_are_found(void **state)
{
    (void)state;
    assert_string_equal(mix_name(mix_find("q4_k_m")), "q4_k_m");
    assert_ptr_equal(mix_find("Q4_K_M"), mix_find("q4_k_m"));
    assert_null(mix_find("q4_k_"));
    assert_null(mix_find("q4_k_mm"));
    assert_null(mix_find(""));
    assert_null(mix_at(mix_count()));
    for (uint32_t i = 0; i < mix_count(); i++)
        assert_ptr_equal(mix_find(mix_name(mix_at(i))), mix_at(i));
}

static void small_tensors_stay_floats(void **state)
{
    (void)state;
    static const tensor_role plain[] = {ROLE_FINAL_NORM, ROLE_INPUT_NORM, ROLE_POST_NORM,
                                        ROLE_LIGHTNING_NORM, ROLE_ROUTER};
    for (uint32_t i = 0; i < mix_count(); i++) {
        for (unsigned k = 0; k < sizeof plain / sizeof plain[0]; k++) {
            ful_type wanted = FUL_TYPE_Q4_0;
            assert_int_equal(mix_type(mix_at(i), plain[k], 0, 8, 6144, &wanted), FUL_TYPE_F32);
            assert_int_equal(wanted, FUL_TYPE_DEFAULT);
        }
    }
}

static ful_type type_at(const char *name, tensor_role role, uint32_t layer)
{
    ful_type wanted;
    return mix_type(mix_find(name), role, layer, 80, 6144, &wanted);
}

static void q4_k_m_is_the_table(void **state)
{
    (void)state;
    assert_int_equal(type_at("q4_k_m", ROLE_EMBEDDING, 0), FUL_TYPE_Q4_K);
    assert_int_equal(type_at("q4_k_m", ROLE_HEAD, 0), FUL_TYPE_Q6_K);
    assert_int_equal(type_at("q4_k_m", ROLE_SOFTMAX_Q, 7), FUL_TYPE_Q4_K);
    assert_int_equal(type_at("q4_k_m", ROLE_LIGHTNING_GATE, 1), FUL_TYPE_Q4_K);
    assert_int_equal(type_at("q4_k_m", ROLE_W1, 0), FUL_TYPE_Q4_K);
    assert_int_equal(type_at("q4_k_m", ROLE_W3, 79), FUL_TYPE_Q4_K);
    /* The first and last ten of 80 layers, and every third between: 10 + 10 + 20. */
    unsigned more = 0;
    for (uint32_t layer = 0; layer < 80; layer++) {
        ful_type down = type_at("q4_k_m", ROLE_W2, layer);
        assert_int_equal(type_at("q4_k_m", ROLE_SOFTMAX_V, layer), down);
        assert_int_equal(type_at("q4_k_m", ROLE_LIGHTNING_QKV, layer), down);
        assert_true(down == FUL_TYPE_Q4_K || down == FUL_TYPE_Q6_K);
        more += down == FUL_TYPE_Q6_K;
    }
    assert_int_equal(more, 40);
    assert_int_equal(type_at("q4_k_m", ROLE_W2, 9), FUL_TYPE_Q6_K);
    assert_int_equal(type_at("q4_k_m", ROLE_W2, 10), FUL_TYPE_Q4_K);
    assert_int_equal(type_at("q4_k_m", ROLE_W2, 12), FUL_TYPE_Q6_K);
    assert_int_equal(type_at("q4_k_m", ROLE_W2, 70), FUL_TYPE_Q6_K);

    assert_int_equal(type_at("mxfp4", ROLE_W2, 0), FUL_TYPE_MXFP4);
    assert_int_equal(type_at("mxfp4", ROLE_SOFTMAX_V, 0), FUL_TYPE_Q8_0);
    assert_int_equal(type_at("q8_0", ROLE_W1, 0), FUL_TYPE_Q8_0);
    assert_int_equal(type_at("f16", ROLE_HEAD, 0), FUL_TYPE_F16);
}

static void narrow_rows_fall_back(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint64_t cols;
        ful_type type, wanted;
    } table[] = {
        {"q4_k_s", 256, FUL_TYPE_Q4_K, FUL_TYPE_DEFAULT},
        {"q4_k_s", 288, FUL_TYPE_Q5_0, FUL_TYPE_Q4_K},
        {"q4_k_s", 40, FUL_TYPE_F16, FUL_TYPE_Q4_K},
        {"q5_k_s", 96, FUL_TYPE_Q5_1, FUL_TYPE_Q5_K},
        {"q6_k", 96, FUL_TYPE_Q8_0, FUL_TYPE_Q6_K},
        {"q3_k_s", 96, FUL_TYPE_IQ4_NL, FUL_TYPE_Q3_K},
        {"q2_k", 96, FUL_TYPE_IQ4_NL, FUL_TYPE_Q2_K},
        {"q8_0", 33, FUL_TYPE_F16, FUL_TYPE_Q8_0},
        {"mxfp4", 32, FUL_TYPE_MXFP4, FUL_TYPE_DEFAULT},
        {"bf16", 7, FUL_TYPE_BF16, FUL_TYPE_DEFAULT},
    };
    for (unsigned i = 0; i < sizeof table / sizeof table[0]; i++) {
        ful_type wanted = FUL_TYPE_F32;
        ful_type got = mix_type(mix_find(table[i].name), ROLE_W1, 0, 8, table[i].cols, &wanted);
        assert_int_equal(got, table[i].type);
        assert_int_equal(wanted, table[i].wanted);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(names_are_found),
        cmocka_unit_test(small_tensors_stay_floats),
        cmocka_unit_test(q4_k_m_is_the_table),
        cmocka_unit_test(narrow_rows_fall_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
