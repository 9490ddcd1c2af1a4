/* Reading tokenizer.json: the published size in both spellings, and files that must be refused. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/file.h"
#include "base/thread.h"
#include "text/tokenizer.h"
#include "util/slowness.h"

/* cmocka's macro fail() must come behind the function of that name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

/* ---- writing a tokenizer.json ---- */

typedef struct text_buffer {
    char *text;
    size_t bytes, capacity;
} text_buffer;

static void put(text_buffer *b, const char *format, ...)
{
    va_list args;
    for (;;) {
        va_start(args, format);
        size_t room = b->capacity - b->bytes;
        char none[1]; /* nothing is written where there is no room */
        int n = vsnprintf(b->text ? b->text + b->bytes : none, room, format, args);
        va_end(args);
        assert_true(n >= 0);
        if ((size_t)n < room) {
            b->bytes += (size_t)n;
            return;
        }
        b->capacity = b->capacity * 2 + (size_t)n + 64;
        b->text = realloc(b->text, b->capacity);
        assert_non_null(b->text);
    }
}

/* One byte in the byte alphabet, as a JSON escape or itself. */
static void put_byte(text_buffer *b, unsigned byte)
{
    if (byte == '"' || byte == '\\')
        put(b, "\\%c", (int)byte);
    else if (byte >= 0x21 && byte <= 0x7E)
        put(b, "%c", (int)byte);
    else if (byte >= 0xA1 && byte != 0xAD)
        put(b, "\\u%04x", byte);
    else
        put(b, "\\u%04x",
            byte <= 0x20   ? 0x100 + byte
            : byte <= 0xA0 ? 0x121 + byte - 0x7F
                           : 0x143u);
}

static void put_token(text_buffer *b, const char *token)
{
    for (; *token != '\0'; token++)
        put_byte(b, (unsigned char)*token);
}

static const char split_published[] =
    "[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?[\\\\p{Lu}\\\\p{Lt}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]+"
    "[\\\\p{Ll}\\\\p{Lm}\\\\p{Lo}\\\\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\\\p{N}{1,3}| "
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n/]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+";

/* What a test may change about the file. NULL: as published. */
typedef struct file_parts {
    const char *normalizer, *split, *level, *pre_tokenizer, *model_fields, *vocab, *merges, *added,
        *root_fields;
} file_parts;

static void put_head(text_buffer *b, const file_parts *p)
{
    put(b, "{\n  %s\n", p->root_fields ? p->root_fields : "\"version\": \"1.0\",");
    put(b, "  \"added_tokens\": [\n%s\n  ],\n", p->added ? p->added : "");
    put(b, "  \"normalizer\": %s,\n", p->normalizer ? p->normalizer : "{\"type\": \"NFC\"}");
    if (p->pre_tokenizer)
        put(b, "  \"pre_tokenizer\": %s,\n", p->pre_tokenizer);
    else
        put(b,
            "  \"pre_tokenizer\": {\"type\": \"Sequence\", \"pretokenizers\": [\n"
            "    {\"type\": \"Split\", %s},\n    {\"type\": \"ByteLevel\", %s}]},\n",
            p->split ? p->split
                     : "\"pattern\": {\"Regex\": \"[a-z]+|[^a-z]\"}, \"behavior\": \"Removed\", "
                       "\"invert\": true",
            p->level ? p->level : "\"add_prefix_space\": false, \"use_regex\": false");
    put(b, "  \"model\": {\n    %s\n    \"vocab\": {\n",
        p->model_fields ? p->model_fields
                        : "\"type\": \"BPE\", \"dropout\": null, \"unk_token\": null,");
    for (unsigned byte = 0; byte < 256;
         byte++) { /* ids run backwards: nothing may assume id = byte */
        put(b, "      \"");
        put_byte(b, byte);
        put(b, "\": %u%s\n", 255 - byte, byte < 255 ? "," : "");
    }
}

static void put_small(text_buffer *b, const file_parts *p)
{
    put_head(b, p);
    put(b, "%s    },\n    \"merges\": [%s]\n  }\n}\n", p->vocab ? p->vocab : "",
        p->merges ? p->merges : "");
}

static ful_result load_text(const char *name, text_buffer *b, ful_tokenizer **out)
{
    assert_int_equal(file_write_atomic(name, b->text, b->bytes), FUL_OK);
    free(b->text);
    ful_result result = tokenizer_create(out, NULL, name);
    remove(name);
    return result;
}

static ful_tokenizer *load_small(const file_parts *p)
{
    text_buffer b = {0};
    ful_tokenizer *t = NULL;
    put_small(&b, p);
    if (load_text("test_tokenizer_small.json", &b, &t) != FUL_OK)
        fail_msg("%s", ful_last_error());
    return t;
}

static void refuse(const file_parts *p, ful_result want, const char *words)
{
    text_buffer b = {0};
    ful_tokenizer *t = (ful_tokenizer *)&b;
    put_small(&b, p);
    ful_result result = load_text("test_tokenizer_small.json", &b, &t);
    assert_null(t);
    if (result != want || strstr(ful_last_error(), words) == NULL ||
        strstr(ful_last_error(), "test_tokenizer_small.json") == NULL)
        fail_msg("%s: \"%s\"; wanted %s with the file's name and \"%s\"", ful_result_name(result),
                 ful_last_error(), ful_result_name(want), words);
}

static void check_ids(const ful_tokenizer *t, const char *text, uint32_t flags, const int32_t *want,
                      size_t n)
{
    int32_t ids[64];
    size_t count = 64;
    assert_int_equal(ful_tokenizer_encode(t, text, strlen(text), flags, ids, &count), FUL_OK);
    assert_int_equal(count, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(ids[i], want[i]);
}
#define IDS(...)                                                                                   \
    (const int32_t[]){__VA_ARGS__}, sizeof((const int32_t[]){__VA_ARGS__}) / sizeof(int32_t)

/* ---- small files ---- */

static void test_small(void **state)
{
    (void)state;
    /* Ranks come from the order of merges, not from ids: "bc" merges before "ab". */
    file_parts parts = {.vocab = ", \"ab\": 300, \"bc\": 299, \"abc\": 301, \"cc\": 302\n",
                        .merges = "\"b c\", [\"a\", \"b\"], \"ab c\", [\"a\", \"bc\"]"};
    ful_tokenizer *t = load_small(&parts);
    assert_int_equal(ful_tokenizer_vocab_size(t), 303);
    check_ids(t, "ab", 0, IDS(300));
    check_ids(t, "abc", 0, IDS(301));
    check_ids(t, "abb", 0, IDS(300, 255 - 'b'));
    check_ids(t, "cc", 0, IDS(255 - 'c', 255 - 'c')); /* in the vocabulary, but no merge makes it */
    check_ids(t, "B b", 0, IDS(255 - 'B', 255 - ' ', 255 - 'b'));
    size_t bytes;
    assert_null(ful_tokenizer_token_bytes(t, 280, &bytes)); /* a hole */
    char out[4];
    bytes = sizeof out;
    assert_int_equal(ful_tokenizer_decode(t, (int32_t[]){280}, 1, 0, out, &bytes),
                     FUL_ERR_ARGUMENT);
    ful_tokenizer_destroy(&t);

    parts.model_fields = "\"type\": \"BPE\", \"ignore_merges\": true,";
    t = load_small(&parts);
    check_ids(t, "cc", 0, IDS(302));
    check_ids(t, "ccc", 0, IDS(255 - 'c', 255 - 'c', 255 - 'c'));
    ful_tokenizer_destroy(&t);
}

static void test_forms(void **state)
{
    (void)state;
    /* No normalisation; text that no piece holds is dropped with Removed, kept with Isolated. */
    file_parts parts = {
        .normalizer = "null",
        .split =
            "\"pattern\": {\"Regex\": \"[a-c]+\"}, \"behavior\": \"Removed\", \"invert\": true",
        .vocab = ", \"ab\": 300, \"xy\": 301\n",
        .merges = "\"a b\", \"x y\""};
    ful_tokenizer *t = load_small(&parts);
    check_ids(t, "xyabxy", 0, IDS(300));
    check_ids(t, "xy", 0, NULL, 0);
    ful_tokenizer_destroy(&t);
    parts.split =
        "\"pattern\": {\"Regex\": \"[a-c]+\"}, \"behavior\": \"Isolated\", \"invert\": false";
    parts.normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"NFC\"}]}";
    t = load_small(&parts);
    check_ids(t, "xyabxy", 0, IDS(301, 300, 301));
    check_ids(t, "abxy", 0, IDS(300, 301));
    check_ids(t, "xy", 0, IDS(301));
    check_ids(t, "e\xCC\x81", 0, IDS(255 - 0xC3, 255 - 0xA9));
    ful_tokenizer_destroy(&t);
}

static void test_added(void **state)
{
    (void)state;
    /* Longest first at the earliest place; neighbours; one that is the start of another. */
    file_parts parts = {
        .added = "{\"id\": 400, \"content\": \"<a>\"}, {\"id\": 401, \"content\": \"<a><b>\"},"
                 "{\"id\": 402, \"content\": \"a><\"}, {\"id\": 403, \"content\": \"\\u00e9 z\"},"
                 "{\"id\": 300, \"content\": \"qq\", \"special\": true}",
        .vocab = ", \"qq\": 300\n"};
    ful_tokenizer *t = load_small(&parts);
    assert_int_equal(ful_tokenizer_vocab_size(t), 404);
    check_ids(t, "<a><a><b><a>", FUL_ENCODE_ADDED, IDS(400, 401, 400));
    check_ids(t, "<<a><c", FUL_ENCODE_ADDED, IDS(255 - '<', 400, 255 - '<', 255 - 'c'));
    check_ids(t, "a><a>", FUL_ENCODE_ADDED, IDS(402, 255 - 'a', 255 - '>'));
    check_ids(t, "\xC3\xA9 zqqq", FUL_ENCODE_ADDED, IDS(403, 300, 255 - 'q'));
    check_ids(t, "qq", FUL_ENCODE_PLAIN, IDS(255 - 'q', 255 - 'q'));
    size_t bytes;
    const char *text = ful_tokenizer_token_bytes(t, 403, &bytes);
    assert_int_equal(bytes, 4);
    assert_memory_equal(text, "\xC3\xA9 z", 4);
    assert_int_equal(ful_tokenizer_token_id(t, "<a><b>", 6), 401);
    ful_tokenizer_destroy(&t);
}

static void test_refused(void **state)
{
    (void)state;
#define REFUSE(result, words, ...) refuse(&(file_parts){__VA_ARGS__}, result, words)
    const ful_result unsupported = FUL_ERR_UNSUPPORTED, format = FUL_ERR_FORMAT;
    REFUSE(unsupported, "normalizer NFKC", .normalizer = "{\"type\": \"NFKC\"}");
    REFUSE(unsupported, "normalizer Lowercase in a Sequence",
           .normalizer = "{\"type\": \"Sequence\", \"normalizers\": [{\"type\": \"Lowercase\"}]}");
    REFUSE(unsupported, "pre_tokenizer ByteLevel;", .pre_tokenizer = "{\"type\": \"ByteLevel\"}");
    REFUSE(unsupported, "pre_tokenizer null", .pre_tokenizer = "null");
    REFUSE(unsupported, "use_regex", .level = "\"add_prefix_space\": false");
    REFUSE(unsupported, "add_prefix_space", .level = "\"use_regex\": false");
    REFUSE(unsupported, "behavior Removed, invert false",
           .split =
               "\"pattern\": {\"Regex\": \"a+\"}, \"behavior\": \"Removed\", \"invert\": false");
    REFUSE(unsupported, "pattern.Regex", .split = "\"pattern\": {\"String\": \"a\"}");
#define REFUSE_REGEX(regex, words)                                                                 \
    REFUSE(unsupported, words,                                                                     \
           .split = "\"pattern\": {\"Regex\": \"" regex "\"}, \"behavior\": \"Isolated\"")
    REFUSE_REGEX("a*", "empty text");
    REFUSE_REGEX("\\\\w+", "escape \\w at byte 0");
    REFUSE_REGEX("[a[bc]]", "'[' within a character class at byte 2");
    REFUSE_REGEX("[a&&b]", "'&&'");
    REFUSE_REGEX("a$", "anchor at byte 1");
    REFUSE_REGEX("(?<x>a)", "group at byte 0");
    REFUSE_REGEX("[^\\\\S]", "escape \\S");
    REFUSE_REGEX("a{2}+", "'}+'");
    REFUSE_REGEX("(a", "parenthesis");
    REFUSE(unsupported, "Unigram", .model_fields = "\"type\": \"Unigram\",");
    REFUSE(unsupported, "dropout", .model_fields = "\"type\": \"BPE\", \"dropout\": 0.1,");
    REFUSE(unsupported, "end_of_word_suffix",
           .model_fields = "\"type\": \"BPE\", \"end_of_word_suffix\": \"</w>\",");
    REFUSE(unsupported, "post_processor TemplateProcessing",
           .root_fields = "\"post_processor\": {\"type\": \"TemplateProcessing\"},");
    REFUSE(unsupported, "decoder WordPiece",
           .root_fields = "\"decoder\": {\"type\": \"WordPiece\"},");
    REFUSE(unsupported, "lstrip", .added = "{\"id\": 400, \"content\": \"<a>\", \"lstrip\": true}");
    REFUSE(unsupported, "normalized",
           .added = "{\"id\": 400, \"content\": \"<a>\", \"normalized\": true}");
    REFUSE(format, "listed twice",
           .added = "{\"id\": 400, \"content\": \"<a>\"}, {\"id\": 401, \"content\": \"<a>\"}");
    REFUSE(format, "another token's too",
           .added = "{\"id\": 400, \"content\": \"<a>\"}, {\"id\": 400, \"content\": \"<b>\"}");
    REFUSE(format, "id 65 of added token", .added = "{\"id\": 65, \"content\": \"<a>\"}");
    REFUSE(format, "but 300 in model.vocab", .vocab = ", \"qq\": 300\n",
           .added = "{\"id\": 301, \"content\": \"qq\"}");
    REFUSE(format, "no content", .added = "{\"id\": 400}");
    REFUSE(format, "no content", .added = "{\"id\": 400, \"content\": \"\"}");
    REFUSE(format, "added_tokens[0]", .added = "5");
    REFUSE(format, "is another token's too", .vocab = ", \"xx\": 7\n");
    REFUSE(format, "not an integer", .vocab = ", \"xx\": \"7\"\n");
    REFUSE(format, "ids go from 0", .vocab = ", \"xx\": -1\n");
    REFUSE(format, "ids go from 0", .vocab = ", \"xx\": 99999999999\n");
    REFUSE(format, "model.merges[0]", .merges = "\"a b\"");
    REFUSE(format, "the left part", .merges = "\"zz b\"");
    REFUSE(format, "neither", .merges = "\"ab\"");
    REFUSE(format, "neither", .merges = "\"a b c\"");
    REFUSE(format, "neither", .merges = "[\"a\"]");
    REFUSE(format, "neither", .merges = "[1, 2]");
    REFUSE(format, "neither", .merges = "7");

    /* A byte without a token. */
    text_buffer b = {0};
    ful_tokenizer *t = NULL;
    put_small(&b, &(file_parts){0});
    char *entry = strstr(b.text, "\"A\": 190");
    assert_non_null(entry);
    memcpy(entry, "\"AA\":190", 8);
    assert_int_equal(load_text("test_tokenizer_small.json", &b, &t), FUL_ERR_UNSUPPORTED);
    assert_non_null(strstr(ful_last_error(), "byte 0x41"));

    /* Cut off at many places: an error each time, never a tokenizer. */
    text_buffer whole = {0};
    put_small(&whole, &(file_parts){0});
    for (size_t bytes = 0; bytes < whole.bytes - 2; bytes += 211) {
        text_buffer cut = {.text = malloc(bytes + 1), .bytes = bytes};
        assert_non_null(cut.text);
        memcpy(cut.text, whole.text, bytes);
        assert_int_equal(load_text("test_tokenizer_small.json", &cut, &t), FUL_ERR_FORMAT);
        assert_null(t);
    }
    free(whole.text);
    assert_int_equal(tokenizer_create(&t, NULL, "no/such/file.json"), FUL_ERR_IO);
    assert_non_null(strstr(ful_last_error(), "no/such/file.json"));
    assert_int_equal(tokenizer_create(&t, NULL, FUL_TEST_DATA),
                     FUL_ERR_IO); /* a folder without one */
}

/* ---- running out of memory at every allocation ---- */

typedef struct counted {
    size_t left, live;
} counted;

static void *counted_malloc(void *ctx, size_t bytes)
{
    counted *c = ctx;
    if (c->left == 0)
        return NULL;
    c->left--;
    c->live++;
    return malloc(bytes);
}

static void *counted_realloc(void *ctx, void *p, size_t old_bytes, size_t bytes)
{
    counted *c = ctx;
    (void)old_bytes;
    if (c->left == 0)
        return NULL;
    c->left--;
    return realloc(p, bytes);
}

static void counted_free(void *ctx, void *p)
{
    ((counted *)ctx)->live--;
    free(p);
}

static void test_out_of_memory(void **state)
{
    (void)state;
    text_buffer b = {0};
    char split[1200];
    snprintf(split, sizeof split,
             "\"pattern\": {\"Regex\": \"%s\"}, \"behavior\": \"Removed\", \"invert\": true",
             split_published);
    put_small(&b, &(file_parts){.split = split,
                                .added = "{\"id\": 400, \"content\": \"<a>\"}",
                                .vocab = ", \"ab\": 300\n",
                                .merges = "\"a b\""});
    assert_int_equal(file_write_atomic("test_tokenizer_memory.json", b.text, b.bytes), FUL_OK);
    free(b.text);
    char text[400];
    memset(text, 'a', sizeof text);
    memcpy(text + 300, "e\xCC\x81\xCC\xA3 <a> x", 12);
    size_t failures = 0;
    bool done = false;
    for (size_t limit = 0; !done; limit++) {
        counted c = {.left = limit};
        ful_alloc alloc = {counted_malloc, counted_realloc, counted_free, &c};
        ful_tokenizer *t = NULL;
        size_t count = 0;
        ful_result result = tokenizer_create(&t, &alloc, "test_tokenizer_memory.json");
        if (result == FUL_OK)
            result = ful_tokenizer_encode(t, text, sizeof text, FUL_ENCODE_ADDED, NULL, &count);
        ful_tokenizer_destroy(&t);
        assert_int_equal(c.live, 0);
        done = result == FUL_OK;
        if (!done) {
            if (result != FUL_ERR_HOST_MEMORY)
                fail_msg("limit %zu: %s: %s", limit, ful_result_name(result), ful_last_error());
            failures++;
        }
        assert_true(limit < 1000);
    }
    remove("test_tokenizer_memory.json");
    print_message("%u allocations failed in turn\n", (unsigned)failures);
    assert_true(failures > 15);
}

/* ---- the published size: 200,000 entries, 199,744 merges, about 9 MB ---- */

enum { PAIRS = 3844, QUADS = 48974, OCTETS = 146926, BIG = 256 + PAIRS + QUADS + OCTETS };

static const char letters[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789";

/* Texts that are all different: the strides have no factor in common with the counts. */
static void big_parts(size_t i, char left[9], char right[9])
{
    if (i < PAIRS) {
        snprintf(left, 9, "%c", letters[i / 62]);
        snprintf(right, 9, "%c", letters[i % 62]);
    } else if (i < PAIRS + QUADS) {
        size_t k = (i - PAIRS) * 301;
        char a[9], b[9], c[9], d[9];
        big_parts(k / PAIRS % PAIRS, a, b);
        big_parts(k % PAIRS, c, d);
        snprintf(left, 9, "%.1s%.1s", a, b);
        snprintf(right, 9, "%.1s%.1s", c, d);
    } else {
        size_t k = (i - PAIRS - QUADS) * 16001;
        char a[9], b[9], c[9], d[9];
        big_parts(PAIRS + k / QUADS % QUADS, a, b);
        big_parts(PAIRS + k % QUADS, c, d);
        snprintf(left, 9, "%.2s%.2s", a, b);
        snprintf(right, 9, "%.2s%.2s", c, d);
    }
}

static void big_file(text_buffer *b, bool pairs)
{
    char split[1200];
    snprintf(split, sizeof split,
             "\"pattern\": {\"Regex\": \"%s\"}, \"behavior\": \"Removed\", \"invert\": true",
             split_published);
    put_head(b, &(file_parts){
                    .split = split,
                    .added = "    {\"id\": 200019, \"content\": \"<beginning_of_sentence>\"},\n"
                             "    {\"id\": 200020, \"content\": \"<end_of_sentence>\"}"});
    char left[9], right[9];
    for (size_t i = 0; i < BIG - 256; i++) {
        big_parts(i, left, right);
        put(b, "      ,\"");
        put_token(b, left);
        put_token(b, right);
        put(b, "\": %zu\n", i + 256);
    }
    put(b, "    },\n    \"merges\": [\n");
    for (size_t i = 0; i < BIG - 256; i++) {
        big_parts(i, left, right);
        put(b, pairs ? "      %s[\"" : "      %s\"", i ? "," : "");
        put_token(b, left);
        put(b, pairs ? "\", \"" : " ");
        put_token(b, right);
        put(b, pairs ? "\"]\n" : "\"\n");
    }
    put(b, "    ]\n  }\n}\n");
}

static void test_published_size(void **state)
{
    (void)state;
    for (int pairs = 0; pairs < 2; pairs++) {
        text_buffer b = {0};
        big_file(&b, pairs != 0);
        double megabytes = (double)b.bytes * 1e-6;
        assert_int_equal(file_write_atomic("test_tokenizer_big.json", b.text, b.bytes), FUL_OK);
        free(b.text);
        double best = 1e9, wall = 1e9;
        ful_tokenizer *t = NULL;
        for (int round = 0; round < 3; round++) { /* the best of three: the machine may be busy */
            ful_tokenizer_destroy(&t);
            uint64_t start = time_ns();
            clock_t busy = clock();
            if (tokenizer_create(&t, NULL, "test_tokenizer_big.json") != FUL_OK)
                fail_msg("%s", ful_last_error());
            double seconds = (double)(time_ns() - start) * 1e-9;
            double busy_seconds = (double)(clock() - busy) / CLOCKS_PER_SEC;
            wall = seconds < wall ? seconds : wall;
            best = busy_seconds < best ? busy_seconds : best;
        }
        remove("test_tokenizer_big.json");
        print_message("%d entries, %.1f MB, merges as %s: %.3f s, processor time %.3f s\n",
                      (int)BIG, megabytes, pairs ? "pairs" : "strings", wall, best);
/* clock() of Windows counts waiting, too. */
#if defined(__OPTIMIZE__) && !defined(SANITIZED) && !defined(_WIN32)
        assert_true(best < 1.0 * test_slowness());
#endif
        assert_int_equal(ful_tokenizer_vocab_size(t), 200021);
        for (size_t i = 0; i < BIG - 256; i += 997) { /* every token is found and has its bytes */
            char left[9], right[9], text[17];
            big_parts(i, left, right);
            snprintf(text, sizeof text, "%s%s", left, right);
            assert_int_equal(ful_tokenizer_token_id(t, text, strlen(text)), (int)(i + 256));
        }
        /* "ab" and "cd" are pairs 1 and 2 * 62 + 3. */
        check_ids(t, "ab<end_of_sentence>", FUL_ENCODE_ADDED, IDS(257, 200020));
        int32_t ids[8];
        size_t count = 8;
        assert_int_equal(ful_tokenizer_encode(t, "ab cd", 5, 0, ids, &count), FUL_OK);
        assert_int_equal(ids[0], 257);
        assert_int_equal(ids[1], 255 - ' ');
        assert_int_equal(ids[2], 256 + 2 * 62 + 3);
        ful_tokenizer_destroy(&t);
    }
}

/* A run of one letter whose doublings merge: the worst case for a list of candidates. */
static void test_doubling(void **state)
{
    (void)state;
    text_buffer b = {0};
    file_parts parts = {0};
    put_head(&b, &parts);
    char run[4097];
    memset(run, 'a', sizeof run);
    for (int k = 1; k <= 12; k++)
        put(&b, "      ,\"%.*s\": %d\n", 1 << k, run, 255 + k);
    put(&b, "    },\n    \"merges\": [\n");
    for (int k = 1; k <= 12; k++)
        put(&b, "      %s\"%.*s %.*s\"\n", k > 1 ? "," : "", 1 << (k - 1), run, 1 << (k - 1), run);
    put(&b, "    ]\n  }\n}\n");
    ful_tokenizer *t = NULL;
    if (load_text("test_tokenizer_doubling.json", &b, &t) != FUL_OK)
        fail_msg("%s", ful_last_error());
    enum { N = (1 << 20) + 4096 + 5 };
    char *text = malloc(N);
    assert_non_null(text);
    memset(text, 'a', N);
    int32_t ids[300];
    size_t count = 300;
    clock_t start = clock();
    assert_int_equal(ful_tokenizer_encode(t, text, N, 0, ids, &count), FUL_OK);
    double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
    print_message("1 MiB of one character, 12 levels of merges: %.3f s\n", seconds);
    assert_int_equal(count, 257 + 2);
    assert_int_equal(ids[0], 267);
    assert_int_equal(ids[256], 267);
    assert_int_equal(ids[257], 257); /* aaaa */
    assert_int_equal(ids[258], 255 - 'a');
#if defined(__OPTIMIZE__) && !defined(SANITIZED) && !defined(_WIN32)
    assert_true(seconds < 1.0 * test_slowness());
#endif
    free(text);
    ful_tokenizer_destroy(&t);
}

/* \s is White_Space, within classes and outside, and never U+180E. */
static void test_white_space(void **state)
{
    (void)state;
    static const char *const splits[] = {"\\\\s+", "[x\\\\s]+", "(?:(?!\\\\S).)+"};
    for (size_t i = 0; i < 3; i++) {
        char split[200];
        snprintf(split, sizeof split,
                 "\"pattern\": {\"Regex\": \"%s\"}, \"behavior\": \"Removed\", \"invert\": true",
                 splits[i]);
        ful_tokenizer *t = load_small(&(file_parts){.split = split, .normalizer = "null"});
        size_t found = 0;
        for (uint32_t point = 0; point < 0x11000; point++) {
            if (point >= 0xD800 && point < 0xE000)
                continue;
            char text[4];
            size_t bytes = point < 0x80      ? 1
                           : point < 0x800   ? 2
                           : point < 0x10000 ? 3
                                             : 4,
                   count = 0;
            static const uint8_t lead[5] = {0, 0, 0xC0, 0xE0, 0xF0};
            for (size_t k = bytes; k-- > 1;)
                text[k] = (char)(0x80 | (point >> 6 * (bytes - 1 - k) & 0x3F));
            text[0] = (char)(lead[bytes] | point >> 6 * (bytes - 1));
            assert_int_equal(ful_tokenizer_encode(t, text, bytes, 0, NULL, &count), FUL_OK);
            bool space = (point >= 9 && point <= 13) || point == 0x20 || point == 0x85 ||
                         point == 0xA0 || point == 0x1680 || (point >= 0x2000 && point <= 0x200A) ||
                         point == 0x2028 || point == 0x2029 || point == 0x202F || point == 0x205F ||
                         point == 0x3000;
            if (i == 1 && point == 'x')
                space = true;
            if (i == 2 && point == '\n')
                space = false; /* the dot excludes it */
            if ((count != 0) != space)
                fail_msg("%s on U+%04X", splits[i], (unsigned)point);
            found += count != 0;
        }
        assert_true(found >= 24);
        ful_tokenizer_destroy(&t);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_small),         cmocka_unit_test(test_forms),
        cmocka_unit_test(test_added),         cmocka_unit_test(test_refused),
        cmocka_unit_test(test_out_of_memory), cmocka_unit_test(test_published_size),
        cmocka_unit_test(test_doubling),      cmocka_unit_test(test_white_space),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
