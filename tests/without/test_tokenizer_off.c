/* The tokenizer's interface in a library that is built without it. */
#include <stdint.h>
#include <string.h>

#include "fulgur/tokenizer.h"

/* cmocka's macro fail() must come behind the function of that name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define DEMO FUL_TEST_DATA "/../samples/demo-model"

static void test_load_says_why(void **state)
{
    (void)state;
    ful_instance *instance = NULL;
    ful_tokenizer *tokenizer = (ful_tokenizer *)&instance;
    assert_int_equal(ful_instance_create(&instance, NULL), FUL_OK);
    assert_int_equal(ful_tokenizer_load(&tokenizer, instance, DEMO), FUL_ERR_UNSUPPORTED);
    assert_null(tokenizer);
    assert_non_null(strstr(ful_last_error(), DEMO));
    assert_non_null(strstr(ful_last_error(), "FULGUR_TOKENIZER=OFF"));
    assert_int_equal(ful_tokenizer_load(&tokenizer, NULL, DEMO), FUL_ERR_ARGUMENT);
    ful_tokenizer_destroy(&tokenizer);
    ful_instance_destroy(&instance);
}

static void test_calls_without_one(void **state)
{
    (void)state;
    size_t n = 7;
    int32_t ids[7];
    char text[7];
    assert_int_equal(ful_tokenizer_encode(NULL, "a", 1, FUL_ENCODE_PLAIN, ids, &n),
                     FUL_ERR_UNSUPPORTED);
    assert_int_equal(n, 0);
    n = 7;
    assert_int_equal(ful_tokenizer_decode(NULL, ids, 1, FUL_DECODE_ALL, text, &n),
                     FUL_ERR_UNSUPPORTED);
    assert_int_equal(n, 0);
    n = 7;
    assert_null(ful_tokenizer_token_bytes(NULL, 1, &n));
    assert_int_equal(n, 0);
    assert_int_equal(ful_tokenizer_token_id(NULL, "a", 1), -1);
    assert_false(ful_tokenizer_is_added(NULL, 1));
    assert_int_equal(ful_tokenizer_vocab_size(NULL), 0);
}

/* Prompts as text need no tables: they can be encoded elsewhere. */
static void test_chat_text(void **state)
{
    (void)state;
    const ful_chat_message message = {.role = FUL_ROLE_USER, .text = "Hello"};
    const ful_chat_params *params = ful_chat_params(.format = FUL_CHAT_TEXT_01);
    char text[256];
    size_t bytes = sizeof text;
    assert_int_equal(ful_chat_text(&message, 1, params, text, &bytes), FUL_OK);
    assert_true(bytes > 5 && bytes < sizeof text);
    size_t n = 0;
    assert_int_not_equal(ful_chat_encode(NULL, &message, 1, params, NULL, &n), FUL_OK);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_load_says_why),
        cmocka_unit_test(test_calls_without_one),
        cmocka_unit_test(test_chat_text),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
