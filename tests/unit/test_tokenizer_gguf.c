/* Tokenizers in the keys of a GGUF: the same tokens as from tokenizer.json, and keys that are
 * wrong. */
#include "../util/fault_alloc.h"
#include "../util/scratch.h"
#include "text/tokenizer.h"
#include "text/tokenizer_gguf.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char demo[] = FUL_TEST_DATA "/../samples/demo-model";

static void must(ful_result result)
{
    if (result != FUL_OK)
        print_error("%s: %s\n", ful_result_name(result), ful_last_error());
    assert_int_equal(result, FUL_OK);
}

static const char *fresh(void)
{
    static int serial;
    char name[32];
    snprintf(name, sizeof name, "t-%d.gguf", serial++);
    return scratch_path(name);
}

/* A file with the keys of this tokenizer.json and no tensors. */
static const char *keys_file(const char *json, uint32_t vocab_size)
{
    gguf_writer *w;
    const char *path = fresh();
    must(gguf_writer_open(NULL, path, &w));
    must(tokenizer_gguf_put(NULL, json, vocab_size, w));
    must(gguf_write_head(w));
    must(gguf_writer_finish(&w));
    return path;
}

static int32_t *encode(const ful_tokenizer *t, const char *text, size_t bytes, size_t *count)
{
    must(ful_tokenizer_encode(t, text, bytes, FUL_ENCODE_ADDED, NULL, count));
    int32_t *ids = malloc((*count + 1) * sizeof *ids);
    must(ful_tokenizer_encode(t, text, bytes, FUL_ENCODE_ADDED, ids, count));
    return ids;
}

static void expect_same(const ful_tokenizer *a, const ful_tokenizer *b)
{
    size_t n, m, bytes;
    char *text;
    assert_int_equal(ful_tokenizer_vocab_size(a), ful_tokenizer_vocab_size(b));
    for (uint32_t i = 0; i < ful_tokenizer_vocab_size(a); i++) {
        const char *x = ful_tokenizer_token_bytes(a, (int32_t)i, &n),
                   *y = ful_tokenizer_token_bytes(b, (int32_t)i, &m);
        assert_int_equal(n, m);
        assert_true((x == NULL) == (y == NULL));
        assert_true(n == 0 || memcmp(x, y, n) == 0);
        assert_int_equal(ful_tokenizer_is_added(a, (int32_t)i),
                         ful_tokenizer_is_added(b, (int32_t)i));
    }
    must(file_read(NULL, FUL_TEST_DATA "/../samples/demo-model/valid.txt", 1 << 24, &text, &bytes));
    if (bytes > 200000) {
        for (bytes = 200000; ((unsigned char)text[bytes] & 0xc0) == 0x80;)
            bytes--;
    }
    int32_t *p = encode(a, text, bytes, &n), *q = encode(b, text, bytes, &m);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, n * sizeof *p);
    free(p), free(q);
    mem_free(NULL, text);
    /* A mark, a letter and a combining accent, which NFC joins; bytes that no merge knows. */
    static const char odd[] =
        "<end_of_sentence>\ne\xcc\x81t\xc3\xa9 \xe4\xb8\xad\xf0\x9f\x98\x80 12345";
    p = encode(a, odd, sizeof odd - 1, &n), q = encode(b, odd, sizeof odd - 1, &m);
    assert_int_equal(n, m);
    assert_memory_equal(p, q, n * sizeof *p);
    free(p), free(q);
}

static void test_same_tokens(void **state)
{
    (void)state;
    ful_tokenizer *json, *gguf;
    must(tokenizer_create(&json, NULL, demo));
    /* More rows than tokens, as the published models have. */
    const char *path = keys_file(FUL_TEST_DATA "/../samples/demo-model/tokenizer.json", 4200);
    must(tokenizer_create(&gguf, NULL, path));
    expect_same(json, gguf);
    ful_tokenizer_destroy(&gguf);
    gguf_keys *keys;
    must(gguf_keys_open(NULL, path, &keys));
    assert_int_equal(gguf_keys_find(keys, "tokenizer.ggml.tokens")->count, 4200);
    assert_true(gguf_text_is(gguf_keys_one(keys, "tokenizer.ggml.pre"), "minimax-m2"));
    gguf_keys_close(&keys);
    ful_tokenizer_destroy(&json);
}

/* What the keys can't say goes as tokenizer.json. */
static void test_other_structure(void **state)
{
    (void)state;
    char *text, *at;
    size_t bytes;
    ful_tokenizer *json, *gguf;
    must(file_read(NULL, FUL_TEST_DATA "/../samples/demo-model/tokenizer.json", 1 << 24, &text,
                   &bytes));
    at = strstr(text, "{1,3}");
    assert_non_null(at);
    at[3] = '2';
    const char *changed = scratch_write("changed/tokenizer.json", text, bytes);
    mem_free(NULL, text);
    must(tokenizer_create(&json, NULL, changed));
    const char *path = keys_file(changed, 4096);
    must(tokenizer_create(&gguf, NULL, path));
    expect_same(json, gguf);
    ful_tokenizer_destroy(&gguf);
    ful_tokenizer_destroy(&json);
    gguf_keys *keys;
    must(gguf_keys_open(NULL, path, &keys));
    assert_null(gguf_keys_find(keys, "tokenizer.ggml.tokens"));
    assert_non_null(gguf_keys_one(keys, TOKENIZER_GGUF_JSON));
    gguf_keys_close(&keys);
}

static void test_too_few_rows(void **state)
{
    (void)state;
    gguf_writer *w;
    must(gguf_writer_open(NULL, fresh(), &w));
    assert_int_equal(
        tokenizer_gguf_put(NULL, FUL_TEST_DATA "/../samples/demo-model/tokenizer.json", 4095, w),
        FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(), "tokenizer.json"));
    assert_non_null(strstr(ful_last_error(), "4095"));
    gguf_writer_cancel(&w);
}

/* ---- keys made by hand ---- */

enum { TOKENS = 260 };

typedef struct made {
    const char *chat;        /* template; NULL: none */
    const char *model, *pre; /* NULL: the usual; "": left out */
    const char *text_257;    /* in place of token 257's */
    const char *text_259;
    int32_t type_258, type_259; /* 0: the usual */
    int32_t type_count;         /* 0: as many as tokens */
    const char *merge;
    bool no_tokens, numbers_for_tokens, no_types;
} made;

static void byte_text(uint32_t byte, uint32_t *next, char *out)
{
    bool prints = (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte != 0xad);
    uint32_t point = prints ? byte : (*next)++;
    if (point < 0x80)
        snprintf(out, 4, "%c", (int)point);
    else
        snprintf(out, 4, "%c%c", (int)(0xc0 | point >> 6), (int)(0x80 | (point & 63)));
}

static const char *make(const made *m)
{
    int32_t types[TOKENS];
    gguf_writer *w;
    char text[8];
    uint32_t next = 0x100;
    const char *path = fresh(), *model = m->model ? m->model : "gpt2",
               *pre = m->pre ? m->pre : "minimax-m2", *merge = m->merge ? m->merge : "o n";
    must(gguf_writer_open(NULL, path, &w));
    if (*model)
        gguf_put_text(w, "tokenizer.ggml.model", model, strlen(model));
    if (*pre)
        gguf_put_text(w, "tokenizer.ggml.pre", pre, strlen(pre));
    if (m->chat)
        gguf_put_text(w, "tokenizer.chat_template", m->chat, strlen(m->chat));
    for (size_t i = 0; i < TOKENS; i++)
        types[i] = 1;
    types[258] = m->type_258 ? m->type_258 : 5;
    types[259] = m->type_259 ? m->type_259 : 3;
    if (m->numbers_for_tokens)
        gguf_put_i32s(w, "tokenizer.ggml.tokens", types, TOKENS);
    else if (!m->no_tokens) {
        gguf_put_texts(w, "tokenizer.ggml.tokens", TOKENS);
        for (uint32_t b = 0; b < 256; b++) {
            byte_text(b, &next, text);
            gguf_put_item(w, text, strlen(text));
        }
        const char *last[] = {"on", m->text_257 ? m->text_257 : "ce", "[PAD258]",
                              m->text_259 ? m->text_259 : "<end>"};
        for (size_t i = 0; i < 4; i++)
            gguf_put_item(w, last[i], strlen(last[i]));
    }
    if (!m->no_types)
        gguf_put_i32s(w, "tokenizer.ggml.token_type", types,
                      m->type_count ? (size_t)m->type_count : TOKENS);
    gguf_put_texts(w, "tokenizer.ggml.merges", 2);
    gguf_put_item(w, "c e", 3);
    gguf_put_item(w, merge, strlen(merge));
    must(gguf_write_head(w));
    must(gguf_writer_finish(&w));
    return path;
}

static void test_types_of_tokens(void **state)
{
    (void)state;
    ful_tokenizer *t;
    size_t n;
    must(tokenizer_create(&t, NULL, make(&(made){0})));
    assert_int_equal(ful_tokenizer_vocab_size(t), TOKENS);
    assert_int_equal(ful_tokenizer_token_id(t, "on", 2), 256);
    assert_int_equal(ful_tokenizer_token_id(t, "[PAD258]", 8), -1);
    assert_null(ful_tokenizer_token_bytes(t, 258, &n));
    assert_true(ful_tokenizer_is_added(t, 259));
    int32_t *ids = encode(t, "once<end>[PAD258]", 17, &n);
    assert_int_equal(n, 3 + 8);
    assert_true(ids[0] == 256 && ids[1] == 257 && ids[2] == 259);
    free(ids);
    ful_tokenizer_destroy(&t);
    must(tokenizer_create(&t, NULL, make(&(made){.type_258 = 5, .type_259 = 5})));
    assert_int_equal(ful_tokenizer_vocab_size(t), 258); /* unused ones at the end are none */
    ful_tokenizer_destroy(&t);
    must(tokenizer_create(&t, NULL, make(&(made){.type_258 = 4, .type_259 = 2})));
    assert_true(ful_tokenizer_is_added(t, 258) && ful_tokenizer_is_added(t, 259));
    ful_tokenizer_destroy(&t);
}

#define TURNS                                                                                      \
    "{{ '<beginning_of_sentence>user name=user\\n' }}"                                             \
    "{{ '<beginning_of_sentence>ai name=assistant\\n' + x + '<end_of_sentence>\\n' }}"
#define SYSTEM "{{ '<beginning_of_sentence>system ai_setting=assistant\\n' }}"

/* A template that writes a known format decides; others leave it to the tokenizer's marks. */
static void test_chat_formats(void **state)
{
    (void)state;
    static const struct {
        const char *chat, *mark;
        ful_chat_format format;
        ful_chat_template told;
    } cases[] = {
        {NULL, NULL, FUL_CHAT_TEXT_01, FUL_CHAT_TEMPLATE_NONE},
        {NULL, "<begin_of_document>", FUL_CHAT_M1, FUL_CHAT_TEMPLATE_NONE},
        {SYSTEM TURNS, "<begin_of_document>", FUL_CHAT_TEXT_01, FUL_CHAT_TEMPLATE_KNOWN},
        {"{{ '<begin_of_document>' }}" SYSTEM TURNS, NULL, FUL_CHAT_M1, FUL_CHAT_TEMPLATE_KNOWN},
        {TURNS, NULL, FUL_CHAT_TEXT_01, FUL_CHAT_TEMPLATE_OTHER},
        {"{{ '<begin_of_document><beginning_of_sentence>system ai_setting=Other AI\n' }}" TURNS,
         "<begin_of_document>", FUL_CHAT_M1, FUL_CHAT_TEMPLATE_OTHER},
        {SYSTEM TURNS "{{ '<beginning_of_sentence>system tool_setting=tools' }}", NULL,
         FUL_CHAT_TEXT_01, FUL_CHAT_TEMPLATE_OTHER},
        {"", NULL, FUL_CHAT_TEXT_01, FUL_CHAT_TEMPLATE_OTHER},
        {"<beginning_of_sentence>system ai_setting=assistan", "<begin_of_document>", FUL_CHAT_M1,
         FUL_CHAT_TEMPLATE_OTHER},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ful_tokenizer *t;
        ful_chat_template told;
        must(tokenizer_create(&t, NULL,
                              make(&(made){.chat = cases[i].chat, .text_259 = cases[i].mark})));
        assert_int_equal(ful_tokenizer_chat_format(t, &told), cases[i].format);
        assert_int_equal(told, cases[i].told);
        assert_int_equal(ful_tokenizer_chat_format(t, NULL), cases[i].format);
        ful_tokenizer_destroy(&t);
    }
}

static void test_wrong_keys(void **state)
{
    (void)state;
    static const struct {
        made m;
        ful_result result;
        const char *words[2];
    } cases[] = {
        {{.model = ""}, FUL_ERR_UNSUPPORTED, {"no tokenizer", "absent"}},
        {{.model = "no_vocab"}, FUL_ERR_UNSUPPORTED, {"no tokenizer", "no_vocab"}},
        {{.model = "llama"}, FUL_ERR_UNSUPPORTED, {"\"llama\"", "gpt2"}},
        {{.pre = "qwen2"}, FUL_ERR_UNSUPPORTED, {"\"qwen2\"", "minimax-m2"}},
        {{.pre = ""}, FUL_ERR_UNSUPPORTED, {"tokenizer.ggml.pre", "absent"}},
        {{.no_tokens = true}, FUL_ERR_FORMAT, {"tokenizer.ggml.tokens", "missing"}},
        {{.numbers_for_tokens = true}, FUL_ERR_FORMAT, {"an array of 260 i32", "texts"}},
        {{.type_count = 100}, FUL_ERR_FORMAT, {"token_type", "100"}},
        {{.type_258 = 6}, FUL_ERR_UNSUPPORTED, {"token 258", "6"}},
        {{.text_257 = "on"}, FUL_ERR_FORMAT, {"\"on\"", "twice"}},
        {{.text_257 = "\xff\xfe"}, FUL_ERR_FORMAT, {"item 257", "UTF-8"}},
        {{.text_259 = ""}, FUL_ERR_FORMAT, {"token 259", "empty"}},
        {{.type_258 = 3, .text_259 = "[PAD258]"}, FUL_ERR_FORMAT, {"[PAD258]", "twice"}},
        {{.text_259 = "on"}, FUL_ERR_FORMAT, {"\"on\"", "256"}},
        {{.merge = "on"}, FUL_ERR_FORMAT, {"item 1", "left right"}},
        {{.merge = "o n e"}, FUL_ERR_FORMAT, {"item 1", "left right"}},
        {{.merge = "o x"}, FUL_ERR_FORMAT, {"merges[1]", "the result"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        ful_tokenizer *t;
        const char *path = make(&cases[i].m);
        ful_result got = tokenizer_create(&t, NULL, path);
        if (got != cases[i].result)
            print_error("case %zu: %s: %s\n", i, ful_result_name(got), ful_last_error());
        assert_int_equal(got, cases[i].result);
        assert_null(t);
        assert_int_equal(strncmp(ful_last_error(), path, strlen(path)), 0);
        for (size_t k = 0; k < 2; k++) {
            if (!strstr(ful_last_error(), cases[i].words[k]))
                print_error("'%s' lacks '%s'\n", ful_last_error(), cases[i].words[k]);
            assert_non_null(strstr(ful_last_error(), cases[i].words[k]));
        }
    }
    ful_tokenizer *t; /* all are ordinary tokens then, "<end>" and "[PAD258]" too */
    must(tokenizer_create(&t, NULL, make(&(made){.no_types = true})));
    assert_false(ful_tokenizer_is_added(t, 259));
    ful_tokenizer_destroy(&t);
}

static void test_memory(void **state)
{
    (void)state;
    const char *path = make(&(made){0});
    size_t refused = 0;
    for (size_t n = 1;; n++) {
        assert_true(n < 1000);
        fault_alloc books = {.fail_at = n};
        ful_alloc a = fault_alloc_functions(&books);
        ful_tokenizer *t;
        ful_result result = tokenizer_create(&t, &a, path);
        /* The compiler of patterns can go without some of its memory. */
        assert_true(result == FUL_OK || (books.failed && result == FUL_ERR_HOST_MEMORY));
        refused += result != FUL_OK;
        ful_tokenizer_destroy(&t);
        assert_int_equal(books.live, 0);
        assert_false(books.broken);
        if (!books.failed)
            break;
    }
    assert_true(refused > 10);
}

static int begin(void **state)
{
    (void)state;
    scratch_begin();
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_end();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_same_tokens),  cmocka_unit_test(test_other_structure),
        cmocka_unit_test(test_too_few_rows), cmocka_unit_test(test_types_of_tokens),
        cmocka_unit_test(test_chat_formats), cmocka_unit_test(test_wrong_keys),
        cmocka_unit_test(test_memory),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
