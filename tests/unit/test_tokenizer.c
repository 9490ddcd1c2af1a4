/* Encoding and decoding with the demo model's tokenizer. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../util/rng.h"
#include "../util/slowness.h"
#include "text/tokenizer.h"

/* cmocka's macro fail() must come behind the function of that name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#endif

#define DEMO FUL_TEST_DATA "/../samples/demo-model"

static ful_tokenizer *demo;

static int demo_open(void **state)
{
    (void)state;
    if (tokenizer_create(&demo, NULL, DEMO) == FUL_OK)
        return 0;
    print_error("%s\n", ful_last_error());
    return -1;
}

static int demo_close(void **state)
{
    (void)state;
    ful_tokenizer_destroy(&demo);
    return demo != NULL;
}

typedef struct tokens {
    int32_t *ids;
    size_t count;
} tokens;

static tokens encode(const char *text, size_t bytes, uint32_t flags)
{
    tokens t = {0};
    assert_int_equal(ful_tokenizer_encode(demo, text, bytes, flags, NULL, &t.count), FUL_OK);
    t.ids = malloc(t.count * sizeof *t.ids + 1);
    assert_non_null(t.ids);
    size_t count = t.count;
    assert_int_equal(ful_tokenizer_encode(demo, text, bytes, flags, t.ids, &count), FUL_OK);
    assert_int_equal(count, t.count);
    return t;
}

/* Encodes, decodes, and wants exactly `normal` back. */
static size_t round_trip(const char *text, size_t bytes, const char *normal, size_t normal_bytes)
{
    tokens t = encode(text, bytes, FUL_ENCODE_PLAIN);
    size_t size = 0;
    assert_int_equal(ful_tokenizer_decode(demo, t.ids, t.count, 0, NULL, &size), FUL_OK);
    assert_int_equal(size, normal_bytes);
    char *back = malloc(size + 1);
    assert_non_null(back);
    assert_int_equal(ful_tokenizer_decode(demo, t.ids, t.count, 0, back, &size), FUL_OK);
    assert_memory_equal(back, normal, size);
    free(back);
    free(t.ids);
    return t.count;
}

static void same(const char *text)
{
    round_trip(text, strlen(text), text, strlen(text));
}

static void becomes(const char *text, const char *normal)
{
    round_trip(text, strlen(text), normal, strlen(normal));
}

static void check_ids(const char *text, uint32_t flags, const int32_t *want, size_t n)
{
    tokens t = encode(text, strlen(text), flags);
    assert_int_equal(t.count, n);
    for (size_t i = 0; i < n; i++)
        assert_int_equal(t.ids[i], want[i]);
    free(t.ids);
}

static void test_table(void **state)
{
    (void)state;
    assert_int_equal(ful_tokenizer_vocab_size(demo), 4096);
    assert_int_equal(ful_tokenizer_token_id(demo, "<end_of_sentence>", 17), 4094);
    assert_int_equal(ful_tokenizer_token_id(demo, "A", 1), 'A');
    assert_int_equal(ful_tokenizer_token_id(demo, "\0", 1), 0);
    assert_int_equal(ful_tokenizer_token_id(demo, "no such token", 13), -1);
    assert_int_equal(ful_tokenizer_token_id(demo, "", 0), -1);
    assert_true(ful_tokenizer_is_added(demo, 4095));
    assert_false(ful_tokenizer_is_added(demo, 4092));
    assert_false(ful_tokenizer_is_added(demo, 4096));
    assert_false(ful_tokenizer_is_added(demo, -1));
    for (int32_t id = 0; id < 256; id++) { /* the demo's bytes are their own tokens */
        size_t bytes;
        const char *text = ful_tokenizer_token_bytes(demo, id, &bytes);
        assert_int_equal(bytes, 1);
        assert_int_equal((unsigned char)text[0], id);
    }
    size_t bytes = 9;
    assert_null(ful_tokenizer_token_bytes(demo, 4096, &bytes));
    assert_int_equal(bytes, 0);
}

static void test_known_ids(void **state)
{
    (void)state;
    /* From the `tokenizers` package, 0.23.3. */
    check_ids("Once upon a time, there was a little girl named Lily.", FUL_ENCODE_PLAIN,
              (int32_t[]){1589, 621, 258, 534, 44, 443, 306, 258, 456, 760, 1720, 1618, 46}, 13);
    check_ids("It's NOT 1234567 o'clock; don't!\012\012  x\011 y", FUL_ENCODE_PLAIN,
              (int32_t[]){2970, 565, 79,   84, 32,  49,   50, 51, 52,  53, 54,
                          55,   265, 2470, 59, 766, 1695, 32, 32, 120, 9,  309},
              22);
    check_ids("Gr\303\274\303\237e, na\303\257ve caf\303\251 \342\200\224 \344\270\255\346\226\207 "
              "\341\240\216 \303\251\314\201",
              FUL_ENCODE_PLAIN,
              (int32_t[]){71,   114, 195, 188, 195, 159, 101, 44,  297, 97,  195, 175, 314,
                          2311, 102, 195, 169, 32,  226, 128, 148, 32,  228, 184, 173, 230,
                          150,  135, 32,  225, 160, 142, 32,  195, 169, 204, 129},
              37);
    check_ids(" \012 \015\012/ a/b//\012", FUL_ENCODE_PLAIN,
              (int32_t[]){32, 10, 32, 13, 10, 47, 258, 47, 98, 47, 47, 10}, 12);
}

static void test_added_tokens(void **state)
{
    (void)state;
    check_ids("<end_of_sentence><end_of_sentence>", FUL_ENCODE_ADDED, (int32_t[]){4094, 4094}, 2);
    check_ids("a<beginning_of_sentence>b<end_of_document>", FUL_ENCODE_ADDED,
              (int32_t[]){'a', 4093, 'b', 4095}, 4);
    tokens plain = encode("<end_of_sentence>", 17, FUL_ENCODE_PLAIN);
    assert_true(plain.count > 3);
    for (size_t i = 0; i < plain.count; i++)
        assert_false(ful_tokenizer_is_added(demo, plain.ids[i]));
    free(plain.ids);
    /* They are cut out before normalisation: the accent behind one stays alone. */
    tokens cut = encode("e<end_of_sentence>\xCC\x81", 20, FUL_ENCODE_ADDED);
    assert_int_equal(cut.ids[0], 'e');
    assert_int_equal(cut.ids[1], 4094);
    char back[64];
    size_t size = sizeof back;
    assert_int_equal(
        ful_tokenizer_decode(demo, cut.ids, cut.count, FUL_DECODE_SKIP_ADDED, back, &size), FUL_OK);
    assert_int_equal(size, 3);
    assert_memory_equal(back, "e\xCC\x81", 3);
    free(cut.ids);
    /* A broken mark is text. */
    tokens broken = encode("<end_of_sentence", 16, FUL_ENCODE_ADDED);
    for (size_t i = 0; i < broken.count; i++)
        assert_false(ful_tokenizer_is_added(demo, broken.ids[i]));
    free(broken.ids);
}

static void test_normalisation(void **state)
{
    (void)state;
    becomes("e\xCC\x81", "\xC3\xA9");
    becomes("x e\xCC\x81 y", "x \xC3\xA9 y");
    becomes("e\xCC\x81\xCC\xA3", "\xE1\xBA\xB9\xCC\x81"); /* reordered, then e + dot below */
    becomes("\xE2\x84\xAB", "\xC3\x85");                  /* ANGSTROM SIGN */
    becomes("\xE0\xA5\x98", "\xE0\xA4\x95\xE0\xA4\xBC");  /* excluded from composition */
    becomes("\xE1\x84\x80\xE1\x85\xA1\xE1\x86\xA8", "\xEA\xB0\x81"); /* Hangul */
    becomes("\xF0\x9D\x85\x9E", "\xF0\x9D\x85\x97\xF0\x9D\x85\xA5"); /* grows */
    becomes("\xE3\x81\x8B\xE3\x82\x99", "\xE3\x81\x8C");
    same("\xEF\xAC\x81 \xC2\xB2"); /* compatibility forms stay */
    same("\xCC\x81");
    same("");
    same("plain ASCII\tand\r\n\r\nlines  ");
    /* U+0898 (Unicode 14) is unknown to the reference's normaliser: nothing moves across it. */
    same("q\xCC\x81\xE0\xA2\x98\xCC\x96");
    round_trip("a\0b", 3, "a\0b", 3);
}

static void test_emoji_and_marks(void **state)
{
    (void)state;
    char text[8192];
    size_t n = 0;
    for (int i = 0; i < 100; i++) { /* family: four emoji joined by U+200D */
        static const char family[] = "\xF0\x9F\x91\xA8\xE2\x80\x8D\xF0\x9F\x91\xA9\xE2\x80\x8D"
                                     "\xF0\x9F\x91\xA7\xE2\x80\x8D\xF0\x9F\x91\xA6";
        memcpy(text + n, family, sizeof family - 1);
        n += sizeof family - 1;
    }
    round_trip(text, n, text, n);
    same("\xF0\x9F\x8F\xB3\xEF\xB8\x8F\xE2\x80\x8D\xF0\x9F\x8C\x88 "
         "\xF0\x9F\x87\xA9\xF0\x9F\x87\xAA");
    /* 40 pairs of marks in the wrong order: all below (220) come before all above (230). */
    char marks[4 * 40 + 1] = "q", sorted[4 * 40 + 1] = "q";
    for (size_t i = 0; i < 40; i++) {
        memcpy(marks + 1 + 4 * i, "\xCC\x87\xCC\xA3", 4);
        memcpy(sorted + 1 + 2 * i, "\xCC\xA3", 2);
        memcpy(sorted + 1 + 80 + 2 * i, "\xCC\x87", 2);
    }
    round_trip(marks, sizeof marks, sorted, sizeof sorted);
}

static void test_bad_utf8(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        size_t bytes, offset;
    } cases[] = {
        {"\x80", 1, 0},
        {"abc\xFF", 4, 3},
        {"abcdefghijkl\xC3", 13, 12},       /* cut off */
        {"ab\xE2\x82", 4, 2},               /* cut off */
        {"\xF0\x9F\x98", 3, 0},             /* cut off */
        {"x\xC0\xAF", 3, 1},                /* overlong */
        {"x\xE0\x9F\xBF", 4, 1},            /* overlong */
        {"x\xF0\x8F\xBF\xBF", 5, 1},        /* overlong */
        {"\xC3\xA9\xED\xA0\x80", 5, 2},     /* surrogate */
        {"\xC3\xA9\xED\xBF\xBF", 5, 2},     /* surrogate */
        {"1234567\xF4\x90\x80\x80", 11, 7}, /* past U+10FFFF */
        {"\xF5\x80\x80\x80", 4, 0},
        {"\xC3\xA9\xC3(", 4, 2},
        {"\xF0\x9F\x98\x80\xE2(\xA1", 7, 4},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        size_t count = 7;
        assert_int_equal(ful_tokenizer_encode(demo, cases[i].text, cases[i].bytes, 0, NULL, &count),
                         FUL_ERR_ARGUMENT);
        assert_int_equal(count, 0);
        char want[40];
        snprintf(want, sizeof want, "at byte %zu ", cases[i].offset);
        if (strstr(ful_last_error(), want) == NULL)
            fail_msg("case %zu: \"%s\" does not name byte %zu", i, ful_last_error(),
                     cases[i].offset);
    }
    same(
        "\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF\xEF\xBF\xBF\xF0\x90\x80\x80\xE0\xA0\x80\xC2\x80");
}

static void test_sizes_and_arguments(void **state)
{
    (void)state;
    int32_t ids[4] = {-7, -7, -7, -7};
    size_t count = 2;
    assert_int_equal(ful_tokenizer_encode(demo, "1a1a", 4, 0, ids, &count), FUL_ERR_ARGUMENT);
    assert_int_equal(count, 4);
    assert_int_equal(ids[2], -7); /* nothing behind the room given */
    assert_int_equal(ful_tokenizer_encode(demo, "1a1a", 4, 0, ids, &count), FUL_OK);
    assert_int_equal(count, 4);
    assert_int_equal(ful_tokenizer_encode(demo, NULL, 0, 0, ids, &count), FUL_OK);
    assert_int_equal(count, 0);
    assert_int_equal(ful_tokenizer_encode(NULL, "a", 1, 0, ids, &count), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_tokenizer_encode(demo, "a", 1, 2, NULL, &count), FUL_ERR_ARGUMENT);
    char text[4] = "????";
    size_t bytes = 3;
    assert_int_equal(ful_tokenizer_decode(demo, ids, 4, 0, text, &bytes), FUL_ERR_ARGUMENT);
    assert_int_equal(bytes, 4);
    assert_int_equal(text[3], '?');
    int32_t bad[2] = {65, 4096};
    bytes = sizeof text;
    assert_int_equal(ful_tokenizer_decode(demo, bad, 2, 0, text, &bytes), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "tokens[1] = 4096"));
    ful_tokenizer_destroy(NULL);
    ful_tokenizer *none = NULL;
    ful_tokenizer_destroy(&none);
}

/* Long runs must not cost quadratic time. */
static void test_long_runs(void **state)
{
    (void)state;
    enum { N = 1 << 20 };
    static const char *const units[] = {"a",
                                        " ",
                                        "\n",
                                        "A",
                                        "9",
                                        "\xCC\x81",
                                        "\xCC\x81\xCC\x96",
                                        "ab",
                                        "e\xCC\x81",
                                        "\xE4\xB8\xAD",
                                        "\xF0\x9F\x98\x80",
                                        "<",
                                        "the"};
    char *text = malloc(N);
    assert_non_null(text);
    for (size_t u = 0; u < sizeof units / sizeof units[0]; u++) {
        size_t unit = strlen(units[u]), n = 0, count = 0;
        for (; n + unit <= N; n += unit)
            memcpy(text + n, units[u], unit);
        clock_t start = clock(); /* of this process: the machine may be busy */
        assert_int_equal(ful_tokenizer_encode(demo, text, n, FUL_ENCODE_ADDED, NULL, &count),
                         FUL_OK);
        double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
        print_message("1 MiB of unit %u: %u tokens in %.3f s\n", (unsigned)u, (unsigned)count,
                      seconds);
        assert_true(count > 0);
#if defined(__OPTIMIZE__) && !defined(SANITIZED) && !defined(_WIN32)
        assert_true(seconds < 1.0 * test_slowness());
#else
        assert_true(seconds < 20.0 * test_slowness());
#endif
    }
    free(text);
}

/* Both merging routines, against the plain definition: merge the lowest rank, leftmost, again and
 * again. */
static void test_merging(void **state)
{
    (void)state;
    rng r = rng_seed(5);
    bpe_scratch scratch = {.alloc = &demo->alloc};
    for (int round = 0; round < 300; round++) {
        int32_t fast[200], slow[200];
        size_t n = 1 + rng_below(&r, round < 150 ? 32 : 200), m = n;
        for (size_t i = 0; i < n; i++)
            fast[i] = slow[i] = (int32_t) "the and"[rng_below(&r, 7)];
        for (;;) {
            size_t best = m;
            const bpe_merge *found = NULL;
            for (size_t i = 0; i + 1 < m; i++) {
                const bpe_merge *merge = bpe_table_find(&demo->merges, slow[i], slow[i + 1]);
                if (merge != NULL && (found == NULL || merge->rank < found->rank)) {
                    found = merge;
                    best = i;
                }
            }
            if (found == NULL)
                break;
            slow[best] = found->token;
            memmove(slow + best + 1, slow + best + 2, (m - best - 2) * sizeof slow[0]);
            m--;
        }
        assert_int_equal(bpe_merge_all(&demo->merges, &scratch, fast, &n), FUL_OK);
        assert_int_equal(n, m);
        assert_memory_equal(fast, slow, n * sizeof fast[0]);
    }
    bpe_scratch_release(&scratch);
}

static void stream_check(const char *text, size_t bytes, size_t step, const char *want,
                         size_t want_bytes)
{
    ful_utf8_stream stream = {0};
    char out[256];
    size_t n = 0;
    for (size_t i = 0; i < bytes; i += step) {
        size_t part = bytes - i < step ? bytes - i : step;
        char room[FUL_UTF8_STREAM_ROOM(64)];
        size_t got = ful_utf8_stream_push(&stream, text + i, part, room);
        assert_true(got <= FUL_UTF8_STREAM_ROOM(part));
        memcpy(out + n, room, got);
        n += got;
    }
    n += ful_utf8_stream_finish(&stream, out + n);
    assert_int_equal(n, want_bytes);
    assert_memory_equal(out, want, n);
}

static void test_stream(void **state)
{
    (void)state;
    static const char good[] = "a\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80z\xED\x9F\xBF";
    static const char bad[] = "a\xE2\x82z\x80\xED\xA0\x80\xC0\xAF\xF0\x9F\x98";
    static const char mended[] = "a\xEF\xBF\xBDz\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"
                                 "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD";
    for (size_t step = 1; step < 16; step++) {
        stream_check(good, sizeof good - 1, step, good, sizeof good - 1);
        stream_check(bad, sizeof bad - 1, step, mended, sizeof mended - 1);
    }
    ful_utf8_stream stream = {0};
    char out[FUL_UTF8_STREAM_ROOM(2)];
    assert_int_equal(ful_utf8_stream_push(&stream, "\xF0\x9F", 2, out), 0); /* held back */
    assert_int_equal(ful_utf8_stream_push(&stream, "\x98\x80", 2, out), 4);
    assert_int_equal(ful_utf8_stream_finish(&stream, out), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),
        cmocka_unit_test(test_known_ids),
        cmocka_unit_test(test_added_tokens),
        cmocka_unit_test(test_normalisation),
        cmocka_unit_test(test_emoji_and_marks),
        cmocka_unit_test(test_bad_utf8),
        cmocka_unit_test(test_sizes_and_arguments),
        cmocka_unit_test(test_long_runs),
        cmocka_unit_test(test_merging),
        cmocka_unit_test(test_stream),
    };
    return cmocka_run_group_tests(tests, demo_open, demo_close);
}
