/* The GGUF reader: good files, every way a file can be wrong, split files; and the writer. */
#include "../util/fault_alloc.h"
#include "../util/gguf_image.h"
#include "../util/rng.h"
#include "../util/scratch.h"
#include "format/gguf_write.h"
#include "format/tensors.h" /* before cmocka, whose fail() is a macro */

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static gguf_image image;

#define TEXTS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

static void expect_words(const char *const *words)
{
    for (; *words; words++) {
        if (!strstr(ful_last_error(), *words))
            print_error("'%s' lacks '%s'\n", ful_last_error(), *words);
        assert_non_null(strstr(ful_last_error(), *words));
    }
}

/* The image is refused with `result` and an error line that names the file and holds the words. */
static void refused(ful_result result, const char *const *words)
{
    tensor_file *file = (tensor_file *)&file;
    ful_result got = tensor_file_read(NULL, "bad.gguf", image.bytes, image.n, &file);
    if (got != result)
        print_error("got %s: %s\n", ful_result_name(got), got ? ful_last_error() : "no error");
    assert_int_equal(got, result);
    assert_null(file);
    assert_memory_equal(ful_last_error(), "bad.gguf: ", 10);
    expect_words(words);
}

static const char *image_write(const char *name)
{
    return scratch_write(name, image.bytes, image.n);
}

/* ---- good files ---- */

static void expect_values(const gguf_keys *keys)
{
    static const struct {
        const char *key;
        int64_t value;
    } integers[] = {{"n.u8", 254},         {"n.i8", -2},  {"n.u16", 65534},     {"n.i16", -2},
                    {"n.u32", 4294967294}, {"n.i32", -2}, {"n.u64", INT64_MAX}, {"n.i64", -2}};
    int64_t n;
    double x;
    bool yes;
    gguf_text text;
    assert_int_equal(gguf_keys_count(keys), 15);
    for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
        const gguf_value *v = gguf_keys_one(keys, integers[i].key);
        assert_non_null(v);
        assert_true(gguf_integer(v, 0, &n));
        assert_int_equal(n, integers[i].value);
        assert_false(gguf_integer(v, 1, &n));
        assert_false(gguf_bool(v, 0, &yes));
    }
    assert_true(gguf_number(gguf_keys_one(keys, "n.f32"), 0, &x) && x == 1.5);
    assert_true(gguf_number(gguf_keys_one(keys, "n.f64"), 0, &x) && x == 1.5);
    assert_false(gguf_integer(gguf_keys_one(keys, "n.f64"), 0, &n));
    assert_true(gguf_bool(gguf_keys_one(keys, "n.bool"), 0, &yes) && yes);
    assert_true(gguf_text_is(gguf_keys_one(keys, "text"), "h\xc3\xa9llo"));
    assert_false(gguf_text_is(gguf_keys_one(keys, "text"), "h"));
    const gguf_value *bools = gguf_keys_find(keys, "a.bools");
    assert_true(bools->is_array && bools->kind == GGUF_BOOL && bools->count == 3);
    assert_true(gguf_bool(bools, 1, &yes) && !yes);
    assert_null(gguf_keys_one(keys, "a.bools"));
    static const char *const wanted[] = {"one", "", "three"};
    const gguf_value *texts = gguf_keys_find(keys, "a.texts");
    const uint8_t *at = texts->data;
    for (size_t i = 0; i < 3; i++) {
        at = gguf_text_next(at, &text);
        assert_int_equal(text.bytes, strlen(wanted[i]));
        assert_memory_equal(text.data, wanted[i], text.bytes);
    }
    assert_ptr_equal(at, texts->data + texts->bytes);
    assert_int_equal(gguf_keys_find(keys, "a.nested")->count, 2);
    assert_null(gguf_keys_find(keys, "n"));
}

static void expect_good(const tensor_file *file, const char *path)
{
    static const struct {
        const char *name, *type_name;
        ful_type type;
        uint32_t n_dims;
        uint64_t dims[3], bytes;
        uint8_t first;
    } tensors[] = {{"a", "F32", FUL_TYPE_F32, 2, {2, 3}, 24, 1},
                   {"i", "I8", FUL_TYPE_DEFAULT, 1, {5}, 5, 33},
                   {"q", "Q8_0", FUL_TYPE_Q8_0, 3, {2, 2, 64}, 272, 65}};
    assert_int_equal(tensor_file_count(file), 3);
    for (uint32_t i = 0; i < 3; i++) {
        const tensor_info *t = tensor_file_at(file, i);
        assert_string_equal(t->name, tensors[i].name);
        assert_string_equal(t->path, path);
        assert_string_equal(t->type_name, tensors[i].type_name);
        assert_int_equal(t->type, tensors[i].type);
        assert_int_equal(t->n_dims, tensors[i].n_dims);
        assert_memory_equal(t->dims, tensors[i].dims, t->n_dims * sizeof *t->dims);
        assert_int_equal(t->bytes, tensors[i].bytes);
        assert_int_equal(t->data[0], tensors[i].first);
    }
}

static void test_good(void **state)
{
    (void)state;
    tensor_file *file;
    image_good(&image);
    assert_int_equal(tensor_file_read(NULL, "good", image.bytes, image.n, &file), FUL_OK);
    expect_good(file, "good");
    expect_values(tensor_file_keys(file));
    tensor_file_close(&file);

    const char *path = image_write("good.gguf");
    assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
    expect_good(file, path);
    assert_int_equal(tensor_file_bytes(file), image.n);
    tensor_file_close(&file);
    image.bytes[4] = 2; /* version 2 has the same layout */
    path = image_write("folder/model.gguf");
    assert_int_equal(tensor_file_open(NULL, scratch_path("folder"), &file), FUL_OK);
    expect_good(file, path);
    tensor_file_close(&file);
    gguf_keys *keys;
    assert_int_equal(gguf_keys_open(NULL, path, &keys), FUL_OK);
    expect_values(keys);
    assert_string_equal(gguf_keys_path(keys), path);
    gguf_keys_close(&keys);

    char *found; /* a name does not matter, if the first bytes say what it is */
    path = image_write("blobs/sha256-0123");
    assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
    expect_good(file, path);
    tensor_file_close(&file);
    assert_int_equal(gguf_locate(NULL, path, &found), FUL_OK);
    assert_string_equal(found, path);
    mem_free(NULL, found);
    assert_int_equal(gguf_locate(NULL, scratch_text("blobs/other", "{}"), &found), FUL_OK);
    assert_null(found);

    image_write("folder/other.gguf");
    assert_int_equal(tensor_file_open(NULL, scratch_path("folder"), &file), FUL_ERR_FORMAT);
    expect_words(TEXTS("2 GGUF models", "folder"));
}

/* A hostile text in an error line: one line of UTF-8, and it ends. */
static void test_words(void **state)
{
    (void)state;
    static const uint8_t most[] = {255, 255, 255, 255, 255, 255, 255, 255};
    static const struct {
        const char *text, *words;
    } cases[] = {{"plain \xc3\xa9", "\"plain \xc3\xa9\""},
                 {"\33[2Ja\nb\x7f", "\"?[2Ja?b?\""},
                 {"\xff\xe2\x82", "\"???\""}};
    char words[128], longest[100];
    gguf_keys *keys;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        image_head(&image, 3, 0, 1);
        image_key_text(&image, "k", cases[i].text);
        assert_int_equal(gguf_keys_read(NULL, "w", image.bytes, image.n, &keys), FUL_OK);
        assert_string_equal(gguf_value_words(gguf_keys_one(keys, "k"), words, sizeof words),
                            cases[i].words);
        gguf_keys_close(&keys);
    }
    gguf_value number = {.kind = GGUF_U64, .count = 1, .data = most, .bytes = 8};
    assert_string_equal(gguf_value_words(&number, words, sizeof words),
                        "18446744073709551615 (u64)");
    /* Cut between code points: byte 80 is the second of one. */
    memset(longest, 'x', sizeof longest);
    memcpy(longest + 79, "\xc3\xa9", 2);
    longest[90] = '\0';
    image_head(&image, 3, 0, 1);
    image_key_text(&image, "k", longest);
    assert_int_equal(gguf_keys_read(NULL, "w", image.bytes, image.n, &keys), FUL_OK);
    gguf_value_words(gguf_keys_one(keys, "k"), words, sizeof words);
    assert_int_equal(strlen(words), 79 + 2 + 3);
    assert_string_equal(words + 79, "x\"...");
    gguf_keys_close(&keys);
}

/* ---- wrong heads ---- */

static void test_head(void **state)
{
    (void)state;
    image_good(&image);
    image.n = 0;
    tensor_file *file;
    assert_int_equal(tensor_file_open(NULL, scratch_text("e.gguf", ""), &file), FUL_ERR_FORMAT);
    expect_words(TEXTS("e.gguf", "'GGUF'", "0 bytes"));
    assert_int_equal(tensor_file_open(NULL, scratch_text("m.gguf", "GGML1234"), &file),
                     FUL_ERR_FORMAT);
    expect_words(TEXTS("m.gguf", "'GGUF'"));
    assert_int_equal(
        tensor_file_open(NULL, scratch_text("l.gguf", "version https://git-lfs.github.com/spec"),
                         &file),
        FUL_ERR_FORMAT);
    expect_words(TEXTS("l.gguf", "Git LFS"));
    image_head(&image, 1, 0, 0);
    refused(FUL_ERR_UNSUPPORTED, TEXTS("version 1", "2 and 3"));
    image_head(&image, 4, 0, 0);
    refused(FUL_ERR_UNSUPPORTED, TEXTS("version 4"));
    image_head(&image, 0x03000000, 0, 0);
    refused(FUL_ERR_UNSUPPORTED, TEXTS("big-endian"));
    for (size_t n = 4; n < 24; n++) {
        image_head(&image, 3, 0, 0);
        image.n = n;
        refused(FUL_ERR_FORMAT, TEXTS("head"));
    }
    static const uint64_t counts[] = {1, UINT64_C(1) << 31, UINT64_C(1) << 32, UINT64_C(1) << 63,
                                      UINT64_MAX};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++) {
        char text[32];
        snprintf(text, sizeof text, "%" PRIu64, counts[i]);
        image_head(&image, 3, counts[i], 0);
        refused(FUL_ERR_FORMAT, TEXTS("tensors", text, "0 bytes"));
        image_head(&image, 3, 0, counts[i]);
        refused(FUL_ERR_FORMAT, TEXTS("keys", text, "0 bytes"));
    }
    image_head(&image, 3, 0, 0); /* nothing at all is fine */
    assert_int_equal(tensor_file_read(NULL, "none", image.bytes, image.n, &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 0);
    tensor_file_close(&file);
}

static void one_key(const char *key, uint32_t kind)
{
    image_head(&image, 3, 0, 1);
    image_key(&image, key, kind);
}

static void test_keys(void **state)
{
    (void)state;
    static const uint64_t big[] = {9, UINT64_C(1) << 61, UINT64_C(1) << 63, UINT64_MAX};
    static const uint8_t zeros[8];
    for (size_t i = 0; i < 4; i++) {
        char text[32];
        snprintf(text, sizeof text, "%" PRIu64, big[i]);
        for (uint32_t kind = 0; kind < GGUF_KIND_COUNT; kind++) {
            one_key("k", GGUF_ARRAY);
            image_u32(&image, kind), image_u64(&image, big[i]);
            image_raw(&image, zeros, 8);
            refused(FUL_ERR_FORMAT, TEXTS("'k'", text, gguf_kind_name((gguf_kind)kind), "8 bytes"));
        }
        one_key("k", GGUF_TEXT);
        image_u64(&image, big[i]), image_raw(&image, zeros, 8);
        refused(FUL_ERR_FORMAT, TEXTS("'k'", "a text", text));
        one_key("k", GGUF_ARRAY);
        image_u32(&image, GGUF_TEXT), image_u64(&image, 1);
        image_u64(&image, big[i]), image_raw(&image, zeros, 8);
        refused(FUL_ERR_FORMAT, TEXTS("'k'", "a text", text));
    }
    image_head(&image, 3, 0, 1);
    image_u64(&image, UINT64_C(1) << 63), image_u64(&image, 0);
    refused(FUL_ERR_FORMAT, TEXTS("key '0'", "9223372036854775808", "65535"));
    image_head(&image, 3, 0, 1);
    image_u64(&image, 0), image_u64(&image, 0);
    refused(FUL_ERR_FORMAT, TEXTS("key '0'", "0 bytes"));
    image_head(&image, 3, 0, 1);
    image_u64(&image, 40), image_u64(&image, 0);
    refused(FUL_ERR_FORMAT, TEXTS("key '0'", "40 bytes", "ends at"));
    one_key("a\nb", GGUF_U8), image_raw(&image, zeros, 1);
    refused(FUL_ERR_FORMAT, TEXTS("key '0'", "0x0A at 1"));
    one_key("k\xc3", GGUF_U8), image_raw(&image, zeros, 1);
    refused(FUL_ERR_FORMAT, TEXTS("key '0'", "UTF-8 at byte 1"));
    one_key("k", 13), image_raw(&image, zeros, 8);
    refused(FUL_ERR_FORMAT, TEXTS("'k'", "unknown kind", "13"));
    one_key("k", GGUF_ARRAY), image_u32(&image, 77), image_u64(&image, 0);
    refused(FUL_ERR_FORMAT, TEXTS("'k'", "unknown kind", "77"));
    one_key("k", GGUF_BOOL), image_raw(&image, "\2", 1);
    refused(FUL_ERR_FORMAT, TEXTS("'k'", "bool", "2"));
    one_key("k", GGUF_ARRAY);
    for (int depth = 0; depth < 5; depth++)
        image_u32(&image, GGUF_ARRAY), image_u64(&image, 1);
    image_u32(&image, GGUF_U8), image_u64(&image, 0);
    refused(FUL_ERR_FORMAT, TEXTS("'k'", "deeper", "4"));
    image_head(&image, 3, 0, 2);
    image_key_u32(&image, "twice", 1), image_key_text(&image, "twice", "x");
    refused(FUL_ERR_FORMAT, TEXTS("'twice'", "there twice"));
}

static void test_alignment(void **state)
{
    (void)state;
    static const uint32_t wrong[] = {0, 3, 48, 0xffffffffu};
    static const uint64_t ne[] = {8};
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char text[32];
        snprintf(text, sizeof text, "%" PRIu32 " ", wrong[i]);
        image_head(&image, 3, 0, 1);
        image_key_u32(&image, "general.alignment", wrong[i]);
        refused(FUL_ERR_FORMAT, TEXTS("'general.alignment'", text, "power of two"));
    }
    image_head(&image, 3, 0, 1);
    image_key_text(&image, "general.alignment", "32");
    refused(FUL_ERR_FORMAT, TEXTS("'general.alignment'", "\"32\""));
    /* Any power of two will do. */
    for (uint32_t alignment = 1; alignment <= 1024; alignment *= 2) {
        tensor_file *file;
        image_head(&image, 3, 2, 1);
        image_key_u32(&image, "general.alignment", alignment);
        image_tensor(&image, "a", 1, ne, 24, 0);
        image_tensor(&image, "b", 1, ne, 24, alignment > 8 ? alignment : 8);
        image_data(&image, alignment, 2 * alignment + 16);
        assert_int_equal(tensor_file_read(NULL, "aligned", image.bytes, image.n, &file), FUL_OK);
        assert_int_equal(tensor_file_find(file, "a")->data[0], 1);
        assert_int_equal(tensor_file_find(file, "b")->data[0],
                         (uint8_t)((alignment > 8 ? alignment : 8) + 1));
        tensor_file_close(&file);
    }
    /* An alignment beyond the file leaves no room for data. */
    image_head(&image, 3, 1, 1);
    image_key_u32(&image, "general.alignment", 1u << 31);
    image_tensor(&image, "a", 1, ne, 24, 0);
    image_data(&image, 32, 64);
    refused(FUL_ERR_FORMAT, TEXTS("'a'", "holds 0 bytes"));
}

/* ---- wrong tensors ---- */

typedef struct one_tensor {
    uint32_t n_dims;
    uint64_t ne[9];
    uint32_t type;
    uint64_t offset;
} one_tensor;

static void tensor_refused(one_tensor t, ful_result result, const char *const *words)
{
    image_head(&image, 3, 1, 0);
    image_tensor(&image, "bad", t.n_dims, t.ne, t.type, t.offset);
    image_data(&image, 32, 128);
    refused(result, words);
}

static void test_tensors(void **state)
{
    (void)state;
    const uint64_t half = UINT64_C(1) << 63;
    tensor_refused((one_tensor){0, {0}, 0, 0}, FUL_ERR_FORMAT, TEXTS("'bad'", "0 dimensions"));
    tensor_refused((one_tensor){5, {1, 1, 1, 1, 1}, 0, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "5 dimensions", "4"));
    tensor_refused((one_tensor){1, {8}, 4, 0}, FUL_ERR_UNSUPPORTED, TEXTS("'bad'", "type 4"));
    /* Numbers of types that the format once had, and those it has not given yet. */
    static const uint32_t removed[] = {4, 5, 31, 32, 33, 36, 37, 38, 42, 255, UINT32_MAX};
    for (size_t i = 0; i < sizeof removed / sizeof *removed; i++) {
        char text[32];
        snprintf(text, sizeof text, "type %" PRIu32, removed[i]);
        tensor_refused((one_tensor){1, {256}, removed[i], 0}, FUL_ERR_UNSUPPORTED,
                       TEXTS("'bad'", text));
    }
    tensor_refused((one_tensor){1, {8}, 4000000000u, 0}, FUL_ERR_UNSUPPORTED,
                   TEXTS("'bad'", "type 4000000000"));
    tensor_refused((one_tensor){1, {33}, 8, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "33 elements", "blocks of 32", "Q8_0"));
    tensor_refused((one_tensor){1, {128}, 12, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "128 elements", "blocks of 256", "Q4_K"));
    tensor_refused((one_tensor){1, {33}, 0, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "132 bytes at 0", "holds 128", "truncated"));
    tensor_refused((one_tensor){1, {25}, 0, 32}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "100 bytes at 32", "holds 128"));
    tensor_refused((one_tensor){1, {1}, 0, 4}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "offset 4", "multiple", "32"));
    tensor_refused((one_tensor){1, {1}, 0, 160}, FUL_ERR_FORMAT, TEXTS("'bad'", "at 160"));
    tensor_refused((one_tensor){1, {1}, 0, UINT64_MAX - 31}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "18446744073709551584"));
    tensor_refused((one_tensor){1, {half}, 0, 0}, FUL_ERR_FORMAT, TEXTS("'bad'", "64 bits"));
    tensor_refused((one_tensor){2, {half, 2}, 24, 0}, FUL_ERR_FORMAT, TEXTS("'bad'", "64 bits"));
    tensor_refused((one_tensor){4, {65536, 65536, 65536, 65536}, 24, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "64 bits"));
    tensor_refused((one_tensor){1, {UINT64_C(1) << 60}, 24, 0}, FUL_ERR_FORMAT,
                   TEXTS("'bad'", "1152921504606846976 bytes"));
    /* Empty tensors are there, without bytes. */
    tensor_file *file;
    static const uint64_t none[] = {0, half}, eight[] = {8};
    image_head(&image, 3, 1, 0);
    image_tensor(&image, "none", 2, none, 0, 0);
    assert_int_equal(tensor_file_read(NULL, "none", image.bytes, image.n, &file), FUL_OK);
    assert_int_equal(tensor_file_find(file, "none")->bytes, 0);
    tensor_file_close(&file);

    image_head(&image, 3, 2, 0);
    image_tensor(&image, "same", 1, eight, 24, 0), image_tensor(&image, "same", 1, eight, 24, 32);
    image_data(&image, 32, 64);
    refused(FUL_ERR_FORMAT, TEXTS("'same'"));
    image_head(&image, 3, 2, 0);
    static const uint64_t forty[] = {40};
    image_tensor(&image, "one", 1, forty, 24, 0), image_tensor(&image, "two", 1, eight, 24, 32);
    image_data(&image, 32, 64);
    refused(FUL_ERR_FORMAT, TEXTS("'two'", "inside", "'one'"));
    image_head(&image, 3, 1, 0);
    image_tensor(&image, "a\xff", 1, eight, 24, 0), image_data(&image, 32, 64);
    refused(FUL_ERR_FORMAT, TEXTS("tensor '0'", "UTF-8 at byte 1"));
    image_head(&image, 3, 1, 0);
    image_u64(&image, 1024), image_data(&image, 32, 2000);
    refused(FUL_ERR_FORMAT, TEXTS("tensor '0'", "1024 bytes", "1023"));
}

/* Whatever is cut off, the rest is refused. */
static void test_truncated(void **state)
{
    (void)state;
    image_good(&image);
    size_t whole = image.n;
    for (size_t n = 0; n < whole; n++) {
        tensor_file *file;
        assert_int_not_equal(tensor_file_read(NULL, "cut", image.bytes, n, &file), FUL_OK);
        assert_null(file);
    }
}

/* Bits and bytes that change at random: an error or a file that can be read, nothing else. The
 * image lies at the end of a block of its own size, where sanitizers see the first byte too many.
 */
static void test_mutations(void **state)
{
    (void)state;
    rng r = rng_seed(11);
    image_good(&image);
    size_t opened = 0;
    for (int i = 0; i < 40000; i++) {
        size_t n = rng_below(&r, 8) ? image.n : 1 + rng_below(&r, (uint32_t)image.n);
        uint8_t *bad = malloc(n);
        memcpy(bad, image.bytes, n);
        for (uint32_t e = 1 + rng_below(&r, 3); e > 0; e--) {
            size_t at = rng_below(&r, (uint32_t)n);
            bad[at] = rng_below(&r, 2) ? (uint8_t)rng_next(&r)
                                       : (uint8_t)(bad[at] ^ 1u << rng_below(&r, 8));
        }
        tensor_file *file;
        ful_result result = tensor_file_read(NULL, "mut", bad, n, &file);
        if (result == FUL_OK) {
            uint32_t sum = 0;
            for (uint32_t t = 0; t < tensor_file_count(file); t++) {
                const tensor_info *info = tensor_file_at(file, t);
                for (uint64_t b = 0; b < info->bytes; b++)
                    sum += info->data[b];
            }
            opened += sum != 1;
            tensor_file_close(&file);
        } else {
            assert_null(file);
            assert_true(result == FUL_ERR_FORMAT || result == FUL_ERR_UNSUPPORTED);
        }
        free(bad);
    }
    assert_true(opened > 1000 && opened < 39000);
}

/* ---- split files ---- */

static const char *part_write(const char *name, uint16_t no, uint16_t count, const char *tensor,
                              int32_t total)
{
    static const uint64_t ne[] = {4};
    image_head(&image, 3, tensor ? 1 : 0, total >= 0 ? 3 : 2);
    image_key_u16(&image, "split.no", no);
    image_key_u16(&image, "split.count", count);
    if (total >= 0)
        image_key(&image, "split.tensors.count", GGUF_I32), image_u32(&image, (uint32_t)total);
    if (tensor)
        image_tensor(&image, tensor, 1, ne, 0, 0);
    image_data(&image, 32, tensor ? 32 : 0);
    return image_write(name);
}

/* A part has its own alignment. */
static void part_align_write(const char *name, uint16_t no, uint16_t count, const char *tensor,
                             uint32_t alignment)
{
    static const uint64_t ne[] = {4};
    image_head(&image, 3, 1, 3);
    image_key_u16(&image, "split.no", no);
    image_key_u16(&image, "split.count", count);
    image_key_u32(&image, "general.alignment", alignment);
    image_tensor(&image, tensor, 1, ne, 0, alignment);
    image_data(&image, alignment, alignment + 32);
    image_write(name);
}

static void parts_write(void)
{
    part_write("split/m-00001-of-00003.gguf", 0, 3, NULL, 2);
    part_write("split/m-00002-of-00003.gguf", 1, 3, "b", -1);
    part_write("split/m-00003-of-00003.gguf", 2, 3, "a", -1);
}

static void split_refused(const char *name, ful_result result, const char *const *words)
{
    tensor_file *file;
    assert_int_equal(tensor_file_open(NULL, scratch_path(name), &file), result);
    assert_null(file);
    expect_words(words);
}

static void test_split(void **state)
{
    (void)state;
    tensor_file *file;
    parts_write();
    static const char *const ways[] = {"split", "split/m-00001-of-00003.gguf",
                                       "split/m-00003-of-00003.gguf"};
    for (size_t i = 0; i < 3; i++) {
        assert_int_equal(tensor_file_open(NULL, scratch_path(ways[i]), &file), FUL_OK);
        assert_int_equal(tensor_file_count(file), 2);
        assert_non_null(strstr(tensor_file_find(file, "a")->path, "m-00003-of"));
        assert_non_null(strstr(tensor_file_find(file, "b")->path, "m-00002-of"));
        assert_non_null(strstr(gguf_keys_path(tensor_file_keys(file)), "m-00001-of"));
        tensor_file_close(&file);
    }
    for (size_t i = 0; i < 3; i++) {
        char *found;
        assert_int_equal(gguf_locate(NULL, scratch_path(ways[i]), &found), FUL_OK);
        assert_string_equal(found, scratch_path("split/m-00001-of-00003.gguf"));
        mem_free(NULL, found);
    }
    part_write("split/m-00001-of-00003.gguf", 0, 3, NULL, 3);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("split.tensors.count", "= 3", "2 tensors"));
    parts_write();
    part_write("split/m-00003-of-00003.gguf", 1, 3, "a", -1);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("m-00003-of", "'split.no' = 1"));
    part_write("split/m-00003-of-00003.gguf", 2, 4, "a", -1);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("m-00003-of", "'split.count' = 4"));
    part_write("split/m-00003-of-00003.gguf", 2, 3, "b", -1);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("'b'", "m-00002-of", "m-00003-of"));
    scratch_remove("split/m-00003-of-00003.gguf");
    split_refused("split", FUL_ERR_IO, TEXTS("m-00003-of"));
    parts_write();
    scratch_remove("split/m-00001-of-00003.gguf");
    split_refused("split", FUL_ERR_IO, TEXTS("m-00001-of-00003.gguf"));
    split_refused("split/m-00002-of-00003.gguf", FUL_ERR_IO, TEXTS("m-00001-of-00003.gguf"));
    /* The first part's count against the others' and its own name. */
    parts_write();
    part_write("split/m-00001-of-00003.gguf", 0, 2, NULL, 2);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("m-00001-of", "'split.count' = 2", "-of-00002"));
    part_write("split/m-00001-of-00003.gguf", 1, 3, NULL, 2);
    split_refused("split", FUL_ERR_FORMAT, TEXTS("m-00001-of", "'split.no' = 1"));
    parts_write();
    part_align_write("split/m-00002-of-00003.gguf", 1, 3, "b", 128);
    assert_int_equal(tensor_file_open(NULL, scratch_path("split"), &file), FUL_OK);
    assert_int_equal(tensor_file_find(file, "b")->data[0], 129); /* behind a hole of 128 bytes */
    assert_int_equal(tensor_file_find(file, "a")->data[0], 1);
    tensor_file_close(&file);
    part_write("alone.gguf", 0, 2, NULL, -1);
    split_refused("alone.gguf", FUL_ERR_FORMAT, TEXTS("alone.gguf", "-00001-of-00002.gguf"));
}

/* ---- failing memory ---- */

static void test_allocation_failures(void **state)
{
    (void)state;
    parts_write();
    const char *path = scratch_path("split");
    for (size_t n = 1;; n++) {
        assert_true(n < 1000);
        fault_alloc books = {.fail_at = n};
        ful_alloc a = fault_alloc_functions(&books);
        tensor_file *file;
        ful_result result = tensor_file_open(&a, path, &file);
        assert_int_equal(result, books.failed ? FUL_ERR_HOST_MEMORY : FUL_OK);
        tensor_file_close(&file);
        assert_int_equal(books.live, 0);
        assert_false(books.broken);
        if (!books.failed)
            return;
    }
}

/* What a head promises costs no memory before it is there. */
static void test_no_memory_for_promises(void **state)
{
    (void)state;
    fault_alloc books = {0};
    ful_alloc a = fault_alloc_functions(&books);
    tensor_file *file;
    image_head(&image, 3, UINT64_C(1) << 62, UINT64_C(1) << 62);
    image_data(&image, 32, 4000);
    assert_int_equal(tensor_file_read(&a, "greedy", image.bytes, image.n, &file), FUL_ERR_FORMAT);
    assert_true(books.calls < 8);
    assert_int_equal(books.live, 0);
}

/* ---- the writer ---- */

static const uint64_t small_dims[] = {2, 3}, block_dims[] = {2, 64}, empty_dims[] = {0};
static const int32_t some_numbers[] = {1, -2, INT32_MAX};
static const bool some_bools[] = {true, false};

static ful_result put_all(gguf_writer *w)
{
    static const uint8_t data[136] = {7};
    gguf_put_u32(w, "u32", 5);
    gguf_put_f32(w, "f32", 0.5f);
    gguf_put_f64(w, "f64", 1e-5);
    gguf_put_bool(w, "bool", true);
    gguf_put_text(w, "text", "a\0b", 3);
    gguf_put_i32s(w, "i32s", some_numbers, 3);
    gguf_put_bools(w, "bools", some_bools, 2);
    gguf_put_texts(w, "texts", 2);
    gguf_put_item(w, "x", 1);
    gguf_put_item(w, "", 0);
    gguf_put_tensor(w, "small", FUL_TYPE_F16, small_dims, 2);
    gguf_put_tensor(w, "empty", FUL_TYPE_F32, empty_dims, 1);
    gguf_put_tensor(w, "blocks", FUL_TYPE_Q8_0, block_dims, 2);
    TRY(gguf_write_head(w));
    assert_int_equal(gguf_writer_bytes(w), 12 + 136);
    TRY(gguf_write_data(w, data, 5));
    TRY(gguf_write_data(w, data, 7));
    return gguf_write_data(w, data, 136);
}

static void expect_written(const char *path)
{
    tensor_file *file;
    int64_t n;
    double x;
    bool yes;
    gguf_text text;
    assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
    const gguf_keys *keys = tensor_file_keys(file);
    assert_int_equal(gguf_keys_count(keys), 8);
    assert_true(gguf_integer(gguf_keys_one(keys, "u32"), 0, &n) && n == 5);
    assert_true(gguf_number(gguf_keys_one(keys, "f32"), 0, &x) && x == 0.5);
    assert_true(gguf_number(gguf_keys_one(keys, "f64"), 0, &x) && x == 1e-5);
    assert_true(gguf_bool(gguf_keys_one(keys, "bool"), 0, &yes) && yes);
    gguf_text_next(gguf_keys_one(keys, "text")->data, &text);
    assert_int_equal(text.bytes, 3);
    assert_memory_equal(text.data, "a\0b", 3);
    const gguf_value *numbers = gguf_keys_find(keys, "i32s");
    for (uint64_t i = 0; i < 3; i++)
        assert_true(gguf_integer(numbers, i, &n) && n == some_numbers[i]);
    assert_true(gguf_bool(gguf_keys_find(keys, "bools"), 1, &yes) && !yes);
    assert_int_equal(gguf_keys_find(keys, "texts")->count, 2);
    const tensor_info *t = tensor_file_find(file, "small");
    assert_int_equal(t->type, FUL_TYPE_F16);
    assert_int_equal(t->dims[0], 2);
    assert_int_equal(t->dims[1], 3);
    assert_int_equal(t->data[5], 7);
    assert_int_equal(tensor_file_find(file, "empty")->bytes, 0);
    t = tensor_file_find(file, "blocks");
    assert_int_equal(t->type, FUL_TYPE_Q8_0);
    assert_int_equal(t->bytes, 136);
    assert_int_equal(t->data[0], 7);
    tensor_file_close(&file);
}

static void count_name(void *ctx, const char *name)
{
    size_t *count = ctx;
    *count += name[0] != '.';
}

static size_t folder_count(const char *dir)
{
    size_t count = 0;
    assert_int_equal(path_each_name(dir, count_name, &count), FUL_OK);
    return count;
}

static void test_writer(void **state)
{
    (void)state;
    gguf_writer *w;
    char dir[512], path[600];
    snprintf(dir, sizeof dir, "%s", scratch_path("written"));
    assert_int_equal(path_make_dirs(dir), FUL_OK);
    snprintf(path, sizeof path, "%s/w.gguf", dir);
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    assert_int_equal(put_all(w), FUL_OK);
    assert_false(file_exists(path)); /* not before it is whole */
    assert_int_equal(gguf_writer_finish(&w), FUL_OK);
    assert_null(w);
    expect_written(path);
    assert_int_equal(folder_count(dir), 1);

    /* Nothing is overwritten, neither when writing begins nor when a file came in between. */
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_ERR_IO);
    assert_null(w);
    expect_words(TEXTS("w.gguf", "exists"));
    scratch_remove("written/w.gguf");
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    assert_int_equal(put_all(w), FUL_OK);
    scratch_text("written/w.gguf", "another's");
    assert_int_equal(gguf_writer_finish(&w), FUL_ERR_IO);
    expect_words(TEXTS("w.gguf", "exists"));
    assert_int_equal(folder_count(dir), 1);
    scratch_remove("written/w.gguf");

    /* What is cancelled or not complete leaves nothing. */
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    gguf_writer_cancel(&w);
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    gguf_put_tensor(w, "half", FUL_TYPE_F32, small_dims, 2);
    assert_int_equal(gguf_write_head(w), FUL_OK);
    assert_int_equal(gguf_write_data(w, "1234", 4), FUL_OK);
    assert_int_equal(gguf_writer_finish(&w), FUL_ERR_ARGUMENT);
    expect_words(TEXTS("w.gguf", "4 bytes"));
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    gguf_put_tensor(w, "a", FUL_TYPE_F32, small_dims, 1);
    assert_int_equal(gguf_write_head(w), FUL_OK);
    assert_int_equal(gguf_write_data(w, "123456789", 9), FUL_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_finish(&w), FUL_ERR_ARGUMENT);
    assert_int_equal(gguf_writer_open(NULL, path, &w), FUL_OK);
    gguf_put_tensor(w, "part", FUL_TYPE_Q8_0, small_dims, 2);
    assert_int_equal(gguf_write_head(w), FUL_ERR_ARGUMENT);
    expect_words(TEXTS("part", "q8_0", "3 elements"));
    gguf_writer_cancel(&w);
    assert_int_equal(folder_count(dir), 0);
    assert_int_equal(gguf_writer_open(NULL, scratch_path("no/such/w.gguf"), &w), FUL_ERR_IO);
}

static void test_writer_memory(void **state)
{
    (void)state;
    for (size_t n = 1;; n++) {
        assert_true(n < 1000);
        fault_alloc books = {.fail_at = n};
        ful_alloc a = fault_alloc_functions(&books);
        gguf_writer *w;
        ful_result result = gguf_writer_open(&a, scratch_path("memory.gguf"), &w);
        if (result == FUL_OK)
            result = put_all(w);
        gguf_writer_cancel(&w);
        assert_int_equal(result, books.failed ? FUL_ERR_HOST_MEMORY : FUL_OK);
        assert_int_equal(books.live, 0);
        assert_false(books.broken);
        if (!books.failed)
            return;
    }
}

/* Values of another file, copied as they are. */
static void test_put_value(void **state)
{
    (void)state;
    gguf_keys *from, *to;
    gguf_writer *w;
    image_good(&image);
    assert_int_equal(gguf_keys_read(NULL, "good", image.bytes, image.n, &from), FUL_OK);
    assert_int_equal(gguf_writer_open(NULL, scratch_path("copy.gguf"), &w), FUL_OK);
    for (uint32_t i = 0; i < gguf_keys_count(from); i++)
        gguf_put_value(w, gguf_keys_at(from, i));
    assert_int_equal(gguf_write_head(w), FUL_OK);
    assert_int_equal(gguf_writer_finish(&w), FUL_OK);
    assert_int_equal(gguf_keys_open(NULL, scratch_path("copy.gguf"), &to), FUL_OK);
    expect_values(to);
    gguf_keys_close(&from);
    gguf_keys_close(&to);
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
        cmocka_unit_test(test_good),
        cmocka_unit_test(test_words),
        cmocka_unit_test(test_head),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_alignment),
        cmocka_unit_test(test_tensors),
        cmocka_unit_test(test_truncated),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_split),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_no_memory_for_promises),
        cmocka_unit_test(test_writer),
        cmocka_unit_test(test_writer_memory),
        cmocka_unit_test(test_put_value),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
