/* safetensors files: good ones, and one test for each way to be malformed. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* the library has a function of this name */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"
#include "format/json.h"
#include "format/tensors.h"
#include "util/fault_alloc.h"
#include "util/rng.h"
#include "util/scratch.h"
#include "util/slowness.h"

/* ---- files to test with ---- */

/* A file image: length, header, `data_bytes` counting bytes. */
static uint8_t *image_make(const char *header, size_t data_bytes, size_t *bytes)
{
    size_t n = strlen(header);
    *bytes = 8 + n + data_bytes;
    uint8_t *image = malloc(*bytes);
    for (int i = 0; i < 8; i++)
        image[i] = (uint8_t)((uint64_t)n >> (8 * i));
    memcpy(image + 8, header, n);
    for (size_t i = 0; i < data_bytes; i++)
        image[8 + n + i] = (uint8_t)(i + 1);
    return image;
}

static const char *st_write(const char *name, const char *header, size_t data_bytes)
{
    size_t bytes;
    uint8_t *image = image_make(header, data_bytes, &bytes);
    const char *path = scratch_write(name, image, bytes);
    free(image);
    return path;
}

/* Opening fails with `result`, and the error line holds each of the texts (the list ends with
 * NULL). */
static void open_fails(ful_result result, const char *path, const char *const *texts)
{
    tensor_file *file = (tensor_file *)&file;
    ful_result got = tensor_file_open(NULL, path, &file);
    if (got != result)
        print_error("got %s: %s\n", ful_result_name(got), got ? ful_last_error() : "no error");
    assert_int_equal(got, result);
    assert_null(file);
    for (; *texts; texts++) {
        if (!strstr(ful_last_error(), *texts))
            print_error("'%s' lacks '%s'\n", ful_last_error(), *texts);
        assert_non_null(strstr(ful_last_error(), *texts));
    }
}

#define TEXTS(...)                                                                                 \
    (const char *const[])                                                                          \
    {                                                                                              \
        __VA_ARGS__, NULL                                                                          \
    }

#define T(name, type, shape, begin, end)                                                           \
    "\"" name "\":{\"dtype\":\"" type "\",\"shape\":" shape ",\"data_offsets\":[" #begin "," #end  \
    "]}"

/* ---- good files ---- */

static const char good_header[] =
    "{\"__metadata__\":{\"format\":\"pt\",\"n\":\"1\"}," T("b", "BF16", "[2,3]", 8, 20) "," T(
        "a", "F32", "[2]", 0, 8) "," T("none", "F16", "[0,7]", 20,
                                       20) "," T("scalar", "I64", "[]", 20,
                                                 28) "," T("nibbles", "F4", "[3,2]", 28, 31) "}  ";

static void test_single(void **state)
{
    (void)state;
    tensor_file *file;
    const char *path = st_write("good.safetensors", good_header, 31);
    assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 5);
    assert_int_equal(tensor_file_bytes(file), 8 + strlen(good_header) + 31);
    static const char *const names[] = {"a", "b", "nibbles", "none", "scalar"};
    for (uint32_t i = 0; i < 5; i++) {
        const tensor_info *t = tensor_file_at(file, i);
        assert_string_equal(t->name, names[i]);
        assert_ptr_equal(tensor_file_find(file, names[i]), t);
        assert_string_equal(t->path, path);
    }
    assert_null(tensor_file_at(file, 5));
    assert_null(tensor_file_find(file, "__metadata__"));
    assert_null(tensor_file_find(file, ""));
    assert_null(tensor_file_find(file, "aa"));
    assert_null(tensor_file_find(file, "zz"));
    const tensor_info *b = tensor_file_find(file, "b");
    assert_int_equal(b->type, FUL_TYPE_BF16);
    assert_string_equal(b->type_name, "BF16");
    assert_int_equal(b->n_dims, 2);
    assert_int_equal(b->dims[0], 2);
    assert_int_equal(b->dims[1], 3);
    assert_int_equal(b->bytes, 12);
    for (uint8_t i = 0; i < 12; i++)
        assert_int_equal(b->data[i], 8 + i + 1);
    assert_int_equal(tensor_file_find(file, "none")->bytes, 0);
    const tensor_info *scalar = tensor_file_find(file, "scalar");
    assert_int_equal(scalar->type, FUL_TYPE_DEFAULT);
    assert_string_equal(scalar->type_name, "I64");
    assert_int_equal(scalar->n_dims, 0);
    assert_int_equal(scalar->bytes, 8);
    assert_int_equal(tensor_file_find(file, "nibbles")->bytes, 3);
    tensor_file_close(&file);
    assert_null(file);
    tensor_file_close(&file);
    tensor_file_close(NULL);
    /* No tensors at all is a file too. */
    assert_int_equal(tensor_file_open(NULL, st_write("none.safetensors", "{}", 0), &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 0);
    assert_null(tensor_file_find(file, "a"));
    tensor_file_close(&file);
}

static void test_types(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        int bits;
    } types[] = {{"F64", 64},    {"F32", 32},        {"F16", 16},        {"BF16", 16},
                 {"I64", 64},    {"I32", 32},        {"I16", 16},        {"I8", 8},
                 {"U64", 64},    {"U32", 32},        {"U16", 16},        {"U8", 8},
                 {"BOOL", 8},    {"F8_E4M3", 8},     {"F8_E5M2", 8},     {"F8_E8M0", 8},
                 {"C64", 64},    {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F4", 4},
                 {"F6_E2M3", 6}, {"F6_E3M2", 6}};
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        char header[200];
        tensor_file *file;
        int bytes = 4 * types[i].bits / 8;
        snprintf(header, sizeof header,
                 "{\"x\":{\"dtype\":\"%s\",\"shape\":[4],\"data_offsets\":[0,%d]}}", types[i].name,
                 bytes);
        assert_int_equal(
            tensor_file_open(NULL, st_write("t.safetensors", header, (size_t)bytes), &file),
            FUL_OK);
        assert_string_equal(tensor_file_at(file, 0)->type_name, types[i].name);
        ful_type type = tensor_file_at(file, 0)->type;
        if (type != FUL_TYPE_DEFAULT)
            assert_int_equal(type_bytes(type) * 8, types[i].bits);
        assert_int_equal(type != FUL_TYPE_DEFAULT, i >= 1 && i <= 3);
        tensor_file_close(&file);
    }
}

static void test_goldens(void **state)
{
    (void)state;
    static const char *const names[] = {"hybrid-7to1", "many-experts", "mixed-factors"};
    static const uint32_t counts[] = {155, 415, 113};
    for (size_t i = 0; i < 3; i++) {
        char path[512], index[600];
        tensor_file *file, *same;
        snprintf(path, sizeof path, "%s/golden/%s", FUL_TEST_DATA, names[i]);
        snprintf(index, sizeof index, "%s/model.safetensors.index.json", path);
        assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
        assert_int_equal(tensor_file_open(NULL, index, &same), FUL_OK);
        assert_int_equal(tensor_file_count(file), counts[i]);
        assert_int_equal(tensor_file_count(same), counts[i]);
        for (uint32_t t = 0; t < counts[i]; t++) {
            const tensor_info *info = tensor_file_at(file, t);
            uint64_t bytes = type_bytes(info->type);
            for (uint32_t d = 0; d < info->n_dims; d++)
                bytes *= info->dims[d];
            assert_int_equal(bytes, info->bytes);
            assert_string_equal(info->name, tensor_file_at(same, t)->name);
            assert_memory_equal(info->data, tensor_file_at(same, t)->data, (size_t)bytes);
        }
        tensor_file_close(&same);
        tensor_file_close(&file);
    }
}

static const char shard_one[] = "{" T("a", "F32", "[1]", 0, 4) "," T("b", "U8", "[2]", 4, 6) "}";
static const char shard_two[] = "{" T("c", "F16", "[2]", 0, 4) "}";

static void shards_write(const char *folder, const char *index)
{
    char name[256];
    snprintf(name, sizeof name, "%s/one.safetensors", folder);
    st_write(name, shard_one, 6);
    snprintf(name, sizeof name, "%s/two.safetensors", folder);
    st_write(name, shard_two, 4);
    snprintf(name, sizeof name, "%s/model.safetensors.index.json", folder);
    scratch_text(name, index);
}

static const char good_index[] =
    "{\"metadata\":{\"total_size\":10},\"weight_map\":{\"a\":\"one.safetensors\","
    "\"c\":\"two.safetensors\",\"b\":\"one.safetensors\"}}";

static void test_sharded(void **state)
{
    (void)state;
    tensor_file *file;
    shards_write("good", good_index);
    assert_int_equal(tensor_file_open(NULL, scratch_path("good"), &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 3);
    assert_int_equal(tensor_file_bytes(file), 16 + strlen(shard_one) + strlen(shard_two) + 10);
    assert_string_equal(tensor_file_find(file, "c")->path, scratch_path("good/two.safetensors"));
    assert_string_equal(tensor_file_find(file, "b")->path, scratch_path("good/one.safetensors"));
    tensor_file_close(&file);

    /* The index counts where both are there; without it the single file does. */
    st_write("good/model.safetensors", "{" T("other", "F16", "[2]", 0, 4) "}", 4);
    assert_int_equal(tensor_file_open(NULL, scratch_path("good"), &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 3);
    tensor_file_close(&file);
    scratch_remove("good/model.safetensors.index.json");
    assert_int_equal(tensor_file_open(NULL, scratch_path("good"), &file), FUL_OK);
    assert_int_equal(tensor_file_count(file), 1);
    assert_non_null(tensor_file_find(file, "other"));
    tensor_file_close(&file);
}

/* ---- malformed files ---- */

static void test_no_file(void **state)
{
    (void)state;
    open_fails(FUL_ERR_IO, scratch_path("absent.safetensors"), TEXTS("absent.safetensors"));
    scratch_text("bare/readme", "x");
    open_fails(FUL_ERR_IO, scratch_path("bare"),
               TEXTS("bare", "model.safetensors.index.json", "model.safetensors"));
}

static void test_header_length(void **state)
{
    (void)state;
    open_fails(FUL_ERR_FORMAT, scratch_text("h.safetensors", ""),
               TEXTS("h.safetensors", "0 bytes", "at least 8"));
    open_fails(FUL_ERR_FORMAT, scratch_text("h.safetensors", "1234567"), TEXTS("7 bytes"));
    open_fails(FUL_ERR_FORMAT, scratch_write("h.safetensors", "\0\0\0\0\0\0\0\0", 8),
               TEXTS("h.safetensors", "0 bytes", "'{'"));
    open_fails(FUL_ERR_FORMAT, scratch_write("h.safetensors", "\x0b\0\0\0\0\0\0\0{}", 10),
               TEXTS("h.safetensors", "11 bytes", "10", "truncated"));
    open_fails(FUL_ERR_FORMAT, scratch_write("h.safetensors", "\x03\0\0\0\0\0\0\0{}", 10),
               TEXTS("3 bytes", "10", "truncated"));
    open_fails(FUL_ERR_FORMAT, scratch_write("h.safetensors", "\x01\xe1\xf5\x05\0\0\0\0{}", 10),
               TEXTS("h.safetensors", "100000001", "limit is 100000000"));
    open_fails(FUL_ERR_FORMAT,
               scratch_write("h.safetensors", "\xff\xff\xff\xff\xff\xff\xff\xff{}", 10),
               TEXTS("h.safetensors", "18446744073709551615", "100000000"));
    open_fails(FUL_ERR_FORMAT, st_write("h.safetensors", " {}", 0), TEXTS("'{'"));
    open_fails(FUL_ERR_FORMAT, st_write("h.safetensors", "[1]", 0), TEXTS("'{'"));
}

static void test_other_formats(void **state)
{
    (void)state;
    open_fails(FUL_ERR_FORMAT,
               scratch_text("l.safetensors", "version https://git-lfs.github.com/spec/v1\noid 1"),
               TEXTS("l.safetensors", "Git LFS"));
}

static void test_header_json(void **state)
{
    (void)state;
    open_fails(FUL_ERR_FORMAT, st_write("j.safetensors", "{\"a\":", 0), TEXTS("j.safetensors:1:"));
    open_fails(FUL_ERR_FORMAT, st_write("j.safetensors", "{}}", 0), TEXTS("j.safetensors:1:3"));
    open_fails(FUL_ERR_FORMAT, st_write("j.safetensors", "{\"\xff\":1}", 0),
               TEXTS("j.safetensors:1:2", "0xff"));
    open_fails(FUL_ERR_FORMAT,
               st_write("j.safetensors",
                        "{" T("twice", "U8", "[1]", 0, 1) "," T("twice", "U8", "[1]", 1, 2) "}", 2),
               TEXTS("j.safetensors", "duplicate", "twice"));
    open_fails(FUL_ERR_FORMAT, st_write("j.safetensors", "{\"x\":[1,\"two\"]}", 0),
               TEXTS("j.safetensors", "'x'", "[1,\"two\"]", "not an object"));
    open_fails(FUL_ERR_FORMAT, st_write("j.safetensors", "{\"\\u0000\":{}}", 0),
               TEXTS("j.safetensors", "u0000"));
}

static void entry_fails(const char *entry, size_t data_bytes, const char *const *texts)
{
    char header[1000];
    snprintf(header, sizeof header, "{\"w.x\":{%s}}", entry);
    const char *path = st_write("e.safetensors", header, data_bytes);
    open_fails(FUL_ERR_FORMAT, path, TEXTS("e.safetensors", "'w.x'"));
    open_fails(FUL_ERR_FORMAT, path, texts);
}

static void test_dtype(void **state)
{
    (void)state;
    entry_fails("\"dtype\":\"Q4_K\",\"shape\":[1],\"data_offsets\":[0,1]", 1,
                TEXTS("dtype", "\"Q4_K\""));
    entry_fails("\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]", 4, TEXTS("\"f32\""));
    entry_fails("\"dtype\":7,\"shape\":[1],\"data_offsets\":[0,1]", 1, TEXTS("dtype", "7"));
    entry_fails("\"shape\":[1],\"data_offsets\":[0,1]", 1, TEXTS("dtype", "absent"));
}

static void test_shape(void **state)
{
    (void)state;
    entry_fails("\"dtype\":\"U8\",\"data_offsets\":[0,1]", 1, TEXTS("shape", "absent"));
    entry_fails("\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]", 1, TEXTS("shape is 1"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[-1],\"data_offsets\":[0,1]", 1, TEXTS("[-1]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1.0],\"data_offsets\":[0,1]", 1, TEXTS("[1.0]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[\"1\"],\"data_offsets\":[0,1]", 1, TEXTS("[\"1\"]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,1],\"data_offsets\":[0,1]", 1,
                TEXTS("9 dimensions", "limit is 8"));
    entry_fails("\"dtype\":\"F4\",\"shape\":[3],\"data_offsets\":[0,1]", 1,
                TEXTS("3 elements", "F4"));
}

static void test_shape_overflow(void **state)
{
    (void)state;
    /* 2^32 * 2^32 elements would be 0 in 64 bits, as would 2^62 floats in bytes. */
    entry_fails("\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]", 0,
                TEXTS("4294967296", "64 bits"));
    entry_fails("\"dtype\":\"F32\",\"shape\":[4611686018427387904],\"data_offsets\":[0,0]", 0,
                TEXTS("4611686018427387904", "64 bits"));
    open_fails(FUL_ERR_FORMAT,
               st_write("e.safetensors", "{" T("x", "F32", "[99999999999999999999]", 0, 0) "}", 0),
               TEXTS("e.safetensors:1:", "too big integer"));
}

static void test_offsets(void **state)
{
    (void)state;
    entry_fails("\"dtype\":\"U8\",\"shape\":[1]", 1, TEXTS("data_offsets", "absent"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]", 1, TEXTS("[0]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,2]", 1, TEXTS("[0,1,2]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]", 1, TEXTS("[-1,0]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1.5]", 1, TEXTS("[0,1.5]"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,1]", 3,
                TEXTS("begin at 2", "at 1"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]", 3,
                TEXTS("end at 4", "holds 3"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[9223372036854775806,"
                "9223372036854775807]",
                3, TEXTS("9223372036854775807", "holds 3"));
    entry_fails("\"dtype\":\"BF16\",\"shape\":[2,3],\"data_offsets\":[0,11]", 11,
                TEXTS("11 bytes", "BF16", "takes 12"));
    entry_fails("\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,1]", 1, TEXTS("1 bytes", "0"));
}

static void test_layout(void **state)
{
    (void)state;
    open_fails(FUL_ERR_FORMAT,
               st_write("o.safetensors",
                        "{" T("first", "U8", "[4]", 0, 4) "," T("second", "U8", "[4]", 3, 7) "}",
                        7),
               TEXTS("o.safetensors", "'second'", "at 3", "'first'", "at 4"));
    open_fails(FUL_ERR_FORMAT,
               st_write("o.safetensors",
                        "{" T("big", "U8", "[7]", 0, 7) "," T("inside", "U8", "[2]", 3, 5) "}", 7),
               TEXTS("'inside'", "'big'", "3", "7"));
    open_fails(FUL_ERR_FORMAT,
               st_write("o.safetensors",
                        "{" T("x", "U8", "[2]", 0, 2) "," T("y", "U8", "[2]", 0, 2) "}", 2),
               TEXTS("o.safetensors", "at 0", "at 2"));
    open_fails(FUL_ERR_FORMAT,
               st_write("o.safetensors",
                        "{" T("x", "U8", "[2]", 0, 2) "," T("empty", "U8", "[0]", 1, 1) "}", 2),
               TEXTS("'empty'", "'x'"));
    open_fails(FUL_ERR_FORMAT,
               st_write("o.safetensors",
                        "{" T("x", "U8", "[2]", 0, 2) "," T("late", "U8", "[2]", 3, 5) "}", 5),
               TEXTS("o.safetensors", "'late'", "at 3", "hole after 2"));
    open_fails(FUL_ERR_FORMAT, st_write("o.safetensors", "{" T("x", "U8", "[1]", 1, 2) "}", 2),
               TEXTS("'x'", "hole after 0"));
    open_fails(FUL_ERR_FORMAT, st_write("o.safetensors", "{" T("x", "U8", "[2]", 0, 2) "}", 5),
               TEXTS("o.safetensors", "end at 2", "holds 5"));
    open_fails(FUL_ERR_FORMAT, st_write("o.safetensors", "{}", 1), TEXTS("end at 0", "holds 1"));
}

static void index_fails(ful_result result, const char *index, const char *const *texts)
{
    shards_write("bad", index);
    open_fails(result, scratch_path("bad"), TEXTS("bad/"));
    open_fails(result, scratch_path("bad"), texts);
}

static void test_index(void **state)
{
    (void)state;
    static const char *const escapes[] = {"../one.safetensors",
                                          "/etc/passwd",
                                          "sub/one.safetensors",
                                          "..",
                                          ".",
                                          "a\\\\b",
                                          "C:one",
                                          ""};
    index_fails(FUL_ERR_FORMAT, "{\"weight_map\":", TEXTS("index.json:1:"));
    index_fails(FUL_ERR_FORMAT, "[]", TEXTS("index.json", "weight_map", "absent"));
    index_fails(FUL_ERR_FORMAT, "{\"weight_map\":[3]}", TEXTS("index.json", "weight_map is [3]"));
    index_fails(FUL_ERR_FORMAT, "{\"weight_map\":{}}", TEXTS("index.json", "weight_map is {}"));
    index_fails(FUL_ERR_FORMAT, "{\"weight_map\":{\"a\":5}}", TEXTS("index.json", "'a'", "5"));
    index_fails(FUL_ERR_FORMAT,
                "{\"weight_map\":{\"a\":\"one.safetensors\",\"a\":\"two.safetensors\"}}",
                TEXTS("index.json", "duplicate", "\"a\""));
    for (size_t i = 0; i < sizeof escapes / sizeof escapes[0]; i++) {
        char index[200];
        snprintf(index, sizeof index, "{\"weight_map\":{\"b\":\"%s\"}}", escapes[i]);
        index_fails(FUL_ERR_FORMAT, index, TEXTS("index.json", "'b'", "beside the index"));
    }
    index_fails(FUL_ERR_IO,
                "{\"weight_map\":{\"a\":\"one.safetensors\",\"c\":\"three.safetensors\"}}",
                TEXTS("index.json", "'c'", "bad/three.safetensors", "No such file"));
    index_fails(FUL_ERR_FORMAT,
                "{\"weight_map\":{\"a\":\"one.safetensors\",\"d\":\"two.safetensors\"}}",
                TEXTS("index.json", "'d'", "'two.safetensors'"));
    index_fails(FUL_ERR_FORMAT,
                "{\"weight_map\":{\"a\":\"two.safetensors\",\"b\":\"one.safetensors\"}}",
                TEXTS("index.json", "'a'", "'two.safetensors'", "'one.safetensors'"));
}

static void test_shard_conflicts(void **state)
{
    (void)state;
    shards_write("both", good_index);
    st_write("both/two.safetensors",
             "{" T("c", "F16", "[2]", 0, 4) "," T("a", "U8", "[1]", 4, 5) "}", 5);
    open_fails(FUL_ERR_FORMAT, scratch_path("both"),
               TEXTS("'a'", "both/one.safetensors", "both/two.safetensors"));
    st_write("both/two.safetensors", "{" T("c", "F16", "[3]", 0, 4) "}", 4);
    open_fails(FUL_ERR_FORMAT, scratch_path("both"),
               TEXTS("both/two.safetensors", "'c'", "4 bytes", "takes 6"));
}

/* ---- failing memory ---- */

static void walk_allocations(const char *path)
{
    for (size_t n = 1;; n++) {
        assert_true(n < 1000);
        fault_alloc books = {.fail_at = n};
        ful_alloc a = fault_alloc_functions(&books);
        tensor_file *file;
        ful_result result = tensor_file_open(&a, path, &file);
        if (!books.failed) {
            assert_int_equal(result, FUL_OK);
            assert_true(n > 4);
            tensor_file_close(&file);
        } else {
            assert_int_equal(result, FUL_ERR_HOST_MEMORY);
            assert_non_null(strstr(ful_last_error(), "out of host memory"));
            assert_null(file);
        }
        assert_int_equal(books.live, 0);
        assert_false(books.broken);
        if (!books.failed)
            return;
    }
}

static void test_allocation_failures(void **state)
{
    (void)state;
    walk_allocations(FUL_TEST_DATA "/golden/hybrid-7to1");
    walk_allocations(FUL_TEST_DATA "/golden/mixed-factors/golden.safetensors");
}

static struct {
    size_t fail_at, calls, live;
} json_books;

static void *json_malloc(size_t bytes)
{
    if (++json_books.calls == json_books.fail_at)
        return NULL;
    void *p = malloc(bytes);
    json_books.live += p != NULL;
    return p;
}

static void json_free(void *p)
{
    json_books.live -= p != NULL;
    free(p);
}

/* The JSON library's own memory. */
static void test_json_allocation_failures(void **state)
{
    (void)state;
    shards_write("json", good_index);
    json_set_alloc_funcs(json_malloc, json_free);
    for (size_t n = 1;; n++) {
        assert_true(n < 5000);
        json_books.fail_at = n;
        json_books.calls = 0;
        tensor_file *file;
        ful_result result = tensor_file_open(NULL, scratch_path("json"), &file);
        bool failed = json_books.calls >= n;
        /* Its lexer may drop a character and go on, so the result is not certain; but nothing
         * crashes and nothing stays behind. */
        if (!failed)
            assert_int_equal(result, FUL_OK);
        tensor_file_close(&file);
        assert_int_equal(json_books.live, 0);
        if (!failed)
            break;
    }
    json_set_alloc_funcs(malloc, free);
}

/* ---- random damage ---- */

/* Whatever opens must be readable to its last byte. */
static uint32_t sum_all(const tensor_file *file)
{
    uint32_t sum = 0;
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < tensor_file_count(file); i++) {
        const tensor_info *t = tensor_file_at(file, i);
        assert_true(i == 0 || strcmp(tensor_file_at(file, i - 1)->name, t->name) < 0);
        for (uint64_t b = 0; b < t->bytes; b++)
            sum += t->data[b];
        bytes += t->bytes;
    }
    assert_true(bytes < tensor_file_bytes(file));
    return sum;
}

static void test_mutations(void **state)
{
    (void)state;
    static const char interesting[] = "0123456789{}[]\",:-.eE\\ \xff\x80\x01";
    size_t bytes, opened = 0;
    uint8_t *good = image_make(good_header, 31, &bytes), *bad = malloc(bytes + 64);
    rng r = rng_seed(7);
    for (int i = 0; i < 6000; i++) {
        size_t n = bytes;
        memcpy(bad, good, bytes);
        uint32_t edits = 1 + rng_below(&r, 4);
        for (uint32_t e = 0; e < edits; e++) {
            size_t at = rng_below(&r, (uint32_t)n);
            switch (rng_below(&r, 5)) {
            case 0:
                bad[at] ^= (uint8_t)(1u << rng_below(&r, 8));
                break;
            case 1:
                bad[at] = (uint8_t)interesting[rng_below(&r, sizeof interesting - 1)];
                break;
            case 2: /* the length field, where a random byte seldom falls */
                bad[rng_below(&r, 8)] = (uint8_t)rng_next(&r);
                break;
            case 3:
                n = 1 + rng_below(&r, (uint32_t)n);
                break;
            default: /* a byte more */
                if (n < bytes + 64) {
                    memmove(bad + at + 1, bad + at, n - at);
                    n++;
                }
                break;
            }
        }
        tensor_file *file;
        ful_result result = tensor_file_open(NULL, scratch_write("mut.safetensors", bad, n), &file);
        if (result == FUL_OK) {
            opened++;
            sum_all(file);
            tensor_file_close(&file);
        } else {
            assert_null(file);
            assert_non_null(strstr(ful_last_error(), "mut.safetensors"));
            assert_true(result == FUL_ERR_FORMAT || result == FUL_ERR_UNSUPPORTED);
        }
    }
    /* Both ways were walked. */
    assert_true(opened > 50 && opened < 5000);
    free(good);
    free(bad);
}

/* ---- size of the real model ---- */

static void test_real_size(void **state)
{
    (void)state;
    enum { SHARDS = 413, TENSORS = 8243 };
    size_t capacity = 200 * TENSORS, at = 0;
    char *index = malloc(capacity), *header = malloc(capacity), name[64];
    at += (size_t)snprintf(index, capacity, "{\"weight_map\":{");
    for (int s = 0, t = 0; s < SHARDS; s++) {
        int end = (int)((int64_t)TENSORS * (s + 1) / SHARDS);
        size_t n = 1, offset = 0;
        header[0] = '{';
        for (; t < end; t++, offset += 4) {
            bool first = offset == 0;
            n += (size_t)snprintf(header + n, capacity - n,
                                  "%s\"model.layers.%d.block_sparse_moe.experts.%d.w1.weight\":"
                                  "{\"dtype\":\"BF16\",\"shape\":[2,1],\"data_offsets\":[%zu,%zu]}",
                                  first ? "" : ",", t % 80, t / 80, offset, offset + 4);
            at += (size_t)snprintf(index + at, capacity - at,
                                   "%s\"model.layers.%d.block_sparse_moe.experts.%d.w1.weight\":"
                                   "\"model-%05d-of-00413.safetensors\"",
                                   t == 0 ? "" : ",", t % 80, t / 80, s);
        }
        snprintf(header + n, capacity - n, "}");
        snprintf(name, sizeof name, "real/model-%05d-of-00413.safetensors", s);
        st_write(name, header, offset);
    }
    snprintf(index + at, capacity - at, "}}");
    scratch_text("real/model.safetensors.index.json", index);
    tensor_file *file;
    uint64_t start = time_ns();
    assert_int_equal(tensor_file_open(NULL, scratch_path("real"), &file), FUL_OK);
    uint64_t ms = (time_ns() - start) / 1000000;
    assert_int_equal(tensor_file_count(file), TENSORS);
    for (uint32_t i = 0; i < TENSORS; i++) {
        const tensor_info *t = tensor_file_at(file, i);
        assert_ptr_equal(tensor_file_find(file, t->name), t);
    }
    tensor_file_close(&file);
    print_message("8,243 tensors in 413 files: %u ms\n", (unsigned)ms);
    /* Tens of ms; something quadratic would take minutes. */
    assert_true((double)ms < 5000 * test_slowness());
    free(index);
    free(header);
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
        cmocka_unit_test(test_single),
        cmocka_unit_test(test_types),
        cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_sharded),
        cmocka_unit_test(test_no_file),
        cmocka_unit_test(test_header_length),
        cmocka_unit_test(test_other_formats),
        cmocka_unit_test(test_header_json),
        cmocka_unit_test(test_dtype),
        cmocka_unit_test(test_shape),
        cmocka_unit_test(test_shape_overflow),
        cmocka_unit_test(test_offsets),
        cmocka_unit_test(test_layout),
        cmocka_unit_test(test_index),
        cmocka_unit_test(test_shard_conflicts),
        cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_json_allocation_failures),
        cmocka_unit_test(test_mutations),
        cmocka_unit_test(test_real_size),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
