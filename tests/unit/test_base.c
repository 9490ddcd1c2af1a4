/* Error line, memory, log, files, threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* the library has a function of this name */

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/file.h"
#include "base/log.h"
#include "base/thread.h"
#include "util/fault_alloc.h"
#include "util/scratch.h"

/* ---- error line ---- */

static void test_names(void **state)
{
    (void)state;
    assert_int_equal(ful_version(), FUL_VERSION);
    assert_string_equal(ful_result_name(FUL_OK), "FUL_OK");
    assert_string_equal(ful_result_name(FUL_ERR_NO_DEVICE), "FUL_ERR_NO_DEVICE");
    assert_string_equal(ful_result_name((ful_result)-99), "FUL_ERR_UNKNOWN");
    for (int i = -13; i <= 0; i++)
        for (int j = -14; j < i; j++)
            assert_string_not_equal(ful_result_name((ful_result)i), ful_result_name((ful_result)j));
    assert_string_equal(ful_type_name(FUL_TYPE_F32), "f32");
    assert_string_equal(ful_type_name(FUL_TYPE_F16), "f16");
    assert_string_equal(ful_type_name(FUL_TYPE_BF16), "bf16");
    assert_string_equal(ful_type_name(FUL_TYPE_DEFAULT), "unknown");
    assert_string_equal(ful_type_name((ful_type)77), "unknown");
}

static void test_error_line(void **state)
{
    (void)state;
    assert_int_equal(fail(FUL_ERR_IO, "%s: %d of %d", "a.bin", 3, 4), FUL_ERR_IO);
    assert_string_equal(ful_last_error(), "a.bin: 3 of 4");
    assert_int_equal(fail_context(FUL_ERR_IO, "loading '%s'", "m"), FUL_ERR_IO);
    assert_string_equal(ful_last_error(), "loading 'm': a.bin: 3 of 4");
    /* The present line as an argument. */
    fail(FUL_ERR_FORMAT, "[%s]", ful_last_error());
    assert_string_equal(ful_last_error(), "[loading 'm': a.bin: 3 of 4]");
    fail(FUL_ERR_FORMAT, "two\nlines\tand \x7f");
    assert_string_equal(ful_last_error(), "two?lines?and ?");
}

static void test_error_truncation(void **state)
{
    (void)state;
    char longer[5000];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    fail(FUL_ERR_IO, "%s", longer);
    size_t n = strlen(ful_last_error());
    assert_true(n >= 512 && n < sizeof longer);
    assert_string_equal(ful_last_error() + n - 4, "x...");
    for (int i = 0; i < 5; i++)
        fail_context(FUL_ERR_IO, "%s", longer);
    assert_int_equal(strlen(ful_last_error()), n);

    /* No half of a sequence, wherever the cut falls. */
    for (size_t shift = 0; shift < 4; shift++) {
        memset(longer, 'x', shift);
        for (size_t i = shift; i + 4 < sizeof longer; i += 4)
            memcpy(longer + i, "\xf0\x9f\x8c\xa9", 5);
        fail(FUL_ERR_IO, "%s", longer);
        n = strlen(ful_last_error());
        assert_int_equal((n - 3 - shift) % 4, 0);
        assert_string_equal(ful_last_error() + n - 3, "...");
    }
    /* A text that just fits is not cut. */
    for (size_t length = 1015; length < 1030; length++) {
        memset(longer, 'y', length);
        longer[length] = '\0';
        fail(FUL_ERR_IO, "%s", longer);
        if (length < 1024)
            assert_string_equal(ful_last_error(), longer);
        else
            assert_string_equal(ful_last_error() + strlen(ful_last_error()) - 3, "...");
        fail(FUL_ERR_IO, "%s", longer + 5);
        fail_context(FUL_ERR_IO, "abc");
        n = strlen(ful_last_error());
        assert_true(n < 1024);
        assert_int_equal(strcmp(ful_last_error() + n - 3, "...") == 0, length >= 1024);
    }
}

typedef struct two_lines {
    atomic_uint set;
    atomic_int right;
} two_lines;

/* Both threads set their line before either looks at its own. */
static void fail_in_thread(void *ctx, uint32_t i)
{
    two_lines *t = ctx;
    uint64_t start = time_ns();
    fail(FUL_ERR_IO, "thread %u", i);
    atomic_fetch_add(&t->set, 1);
    while (atomic_load(&t->set) < 2 && time_ns() - start < 20000000000u)
        ;
    char mine[32];
    snprintf(mine, sizeof mine, "thread %u", i);
    if (strcmp(ful_last_error(), mine) == 0)
        atomic_fetch_add(&t->right, 1);
}

static void test_error_threads(void **state)
{
    (void)state;
    two_lines t = {0};
    parallel_for(2, 2, fail_in_thread, &t);
    assert_int_equal(t.set, 2);
    assert_int_equal(t.right, 2);
}

/* ---- log ---- */

typedef struct logged {
    int count;
    ful_log_level level;
    char text[4096];
} logged;

static void log_keep(void *ctx, ful_log_level level, const char *message)
{
    logged *l = ctx;
    l->count++;
    l->level = level;
    snprintf(l->text, sizeof l->text, "%s", message);
}

static void test_log(void **state)
{
    (void)state;
    logged l = {0};
    log_sink sink = {.fn = log_keep, .ctx = &l};
    log_write(&sink, FUL_LOG_INFO, "%d bytes\n", 12);
    assert_int_equal(l.count, 1);
    assert_int_equal(l.level, FUL_LOG_INFO);
    assert_string_equal(l.text, "12 bytes");
    log_write(&sink, FUL_LOG_DEBUG, "quiet");
    assert_int_equal(l.count, 1);
    sink.level = FUL_LOG_TRACE;
    log_write(&sink, FUL_LOG_TRACE, "loud");
    assert_int_equal(l.count, 2);
    sink.level = FUL_LOG_ERROR;
    log_write(&sink, FUL_LOG_WARNING, "quiet");
    assert_int_equal(l.count, 2);
    char longer[5000];
    memset(longer, 'z', sizeof longer - 1);
    longer[sizeof longer - 1] = '\0';
    log_write(&sink, FUL_LOG_ERROR, "%s", longer);
    assert_int_equal(l.count, 3);
    assert_true(strlen(l.text) > 1000);
    sink.fn = NULL;
    log_write(&sink, FUL_LOG_ERROR, "nobody");
    log_write(NULL, FUL_LOG_ERROR, "nobody");
    assert_int_equal(l.count, 3);
}

/* ---- memory ---- */

static void test_memory(void **state)
{
    (void)state;
    fault_alloc books = {0};
    ful_alloc a = fault_alloc_functions(&books);
    void *p = mem_alloc(&a, 0);
    assert_non_null(p);
    mem_free(&a, p);
    mem_free(&a, NULL);
    assert_null(mem_array(&a, SIZE_MAX / 2, 3));
    assert_null(mem_zalloc(&a, SIZE_MAX, SIZE_MAX));
    uint8_t *zeros = mem_zalloc(&a, 100, 3);
    for (int i = 0; i < 300; i++)
        assert_int_equal(zeros[i], 0);
    mem_free(&a, zeros);
    char *copy = mem_strdup(&a, "abc"), *part = mem_strndup(&a, "abcdef", 2);
    assert_string_equal(copy, "abc");
    assert_string_equal(part, "ab");
    mem_free(&a, copy);
    mem_free(&a, part);
    assert_null(mem_strndup(&a, "", SIZE_MAX));

    uint32_t *list = NULL;
    size_t capacity = 0;
    for (uint32_t i = 0; i < 1000; i++) {
        assert_true(mem_grow(&a, (void **)&list, &capacity, i + 1, sizeof *list));
        assert_true(capacity > i);
        list[i] = i;
    }
    for (uint32_t i = 0; i < 1000; i++)
        assert_int_equal(list[i], i);
    assert_true(books.calls < 40); /* doubling */
    uint32_t *before = list;
    size_t capacity_before = capacity;
    assert_false(mem_grow(&a, (void **)&list, &capacity, SIZE_MAX / 2, sizeof *list));
    books.fail_at = books.calls + 1;
    assert_false(mem_grow(&a, (void **)&list, &capacity, capacity + 1, sizeof *list));
    assert_ptr_equal(list, before);
    assert_int_equal(capacity, capacity_before);
    mem_free(&a, list);
    assert_int_equal(books.live, 0);
    assert_false(books.broken);

    /* Without a realloc of the caller's. */
    a.realloc = NULL;
    list = NULL;
    capacity = 0;
    for (uint32_t i = 0; i < 100; i++) {
        assert_true(mem_grow(&a, (void **)&list, &capacity, i + 1, sizeof *list));
        list[i] = i;
    }
    assert_int_equal(list[3], 3);
    mem_free(&a, list);
    assert_int_equal(books.live, 0);

    /* libc, where nothing is given. */
    ful_alloc zero = {0};
    const ful_alloc *const none[] = {NULL, &zero};
    for (int i = 0; i < 2; i++) {
        char *text = mem_strdup(none[i], "libc");
        assert_string_equal(text, "libc");
        mem_free(none[i], text);
        ful_alloc f = mem_functions(none[i]);
        void *block = f.malloc(f.ctx, 8);
        block = f.realloc(f.ctx, block, 8, 64);
        assert_non_null(block);
        f.free(f.ctx, block);
    }
    assert_int_equal(mem_fail(77, "a list"), FUL_ERR_HOST_MEMORY);
    assert_string_equal(ful_last_error(), "out of host memory: 77 bytes for a list");
}

static void test_checked_sizes(void **state)
{
    (void)state;
    uint64_t n = 5;
    assert_true(size_mul(UINT64_MAX, 1, &n) && n == UINT64_MAX);
    assert_true(size_mul(0, UINT64_MAX, &n) && n == 0);
    assert_true(size_mul(1ull << 32, (1ull << 32) - 1, &n));
    assert_false(size_mul(1ull << 32, 1ull << 32, &n));
    assert_false(size_mul(UINT64_MAX, 2, &n));
    assert_true(size_add(UINT64_MAX - 1, 1, &n) && n == UINT64_MAX);
    assert_false(size_add(UINT64_MAX, 1, &n));
}

/* ---- files ---- */

static void error_has(const char *a, const char *b)
{
    bool both = strstr(ful_last_error(), a) && strstr(ful_last_error(), b);
    if (!both)
        print_error("'%s' lacks '%s' or '%s'\n", ful_last_error(), a, b);
    assert_true(both);
}

static void test_file_map(void **state)
{
    (void)state;
    file_map map;
    assert_int_equal(file_map_open(scratch_write("m.bin", "ab\0cd", 5), &map), FUL_OK);
    assert_int_equal(map.bytes, 5);
    assert_memory_equal(map.data, "ab\0cd", 5);
    file_map_close(&map);
    assert_null(map.data);
    file_map_close(&map);
    file_map_close(NULL);
    assert_int_equal(file_map_open(scratch_text("empty", ""), &map), FUL_OK);
    assert_null(map.data);
    assert_int_equal(map.bytes, 0);
    file_map_close(&map);
    assert_int_equal(file_map_open(scratch_path("absent"), &map), FUL_ERR_IO);
    error_has("/absent", "No such file");
    assert_int_equal(file_map_open(scratch_dir(), &map), FUL_ERR_IO);
    error_has(scratch_dir(), "folder");
#if !defined(_WIN32)
    assert_int_equal(file_map_open("/dev/null", &map), FUL_ERR_IO);
    error_has("/dev/null", "regular");
#endif
}

/* Names outside the system's code page. */
static void test_file_names(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    char dir[512];
    snprintf(dir, sizeof dir, "%s",
             scratch_path("gr\xC3\xBC\xC3\x9F \xE4\xB8\xAD\xF0\x9F\x98\x80"));
    assert_int_equal(path_make_dirs(dir), FUL_OK);
    char *path = path_join(NULL, dir, "\xCE\xB1.bin");
    assert_int_equal(file_write_atomic(path, "alpha", 5), FUL_OK);
    assert_true(file_exists(path));
    assert_int_equal(file_read(NULL, path, 100, &text, &bytes), FUL_OK);
    assert_string_equal(text, "alpha");
    mem_free(NULL, text);
    file_map map;
    assert_int_equal(file_map_open(path, &map), FUL_OK);
    assert_int_equal(map.bytes, 5);
    file_map_close(&map);
    mem_free(NULL, path);
    setenv("FUL_TEST_FOLDER", "/some/where", 1);
    path = path_from_environment(NULL, "FUL_TEST_FOLDER");
    assert_string_equal(path, "/some/where");
    mem_free(NULL, path);
    unsetenv("FUL_TEST_FOLDER");
    assert_null(path_from_environment(NULL, "FUL_TEST_FOLDER"));
}

static void test_file_read(void **state)
{
    (void)state;
    fault_alloc books = {0};
    ful_alloc a = fault_alloc_functions(&books);
    char *text;
    size_t bytes;
    const char *path = scratch_write("r.txt", "hello\0you", 9);
    assert_int_equal(file_read(&a, path, 9, &text, &bytes), FUL_OK);
    assert_int_equal(bytes, 9);
    assert_memory_equal(text, "hello\0you", 10);
    mem_free(&a, text);
    assert_int_equal(file_read(&a, path, 8, &text, &bytes), FUL_ERR_IO);
    error_has("r.txt: 9 bytes", "limit of 8");
    assert_null(text);
    assert_int_equal(file_read(&a, scratch_text("empty", ""), 0, &text, &bytes), FUL_OK);
    assert_string_equal(text, "");
    assert_int_equal(bytes, 0);
    mem_free(&a, text);
#if !defined(_WIN32)
    assert_int_equal(file_read(&a, "/dev/zero", 100000, &text, &bytes), FUL_ERR_IO);
    error_has("/dev/zero", "limit of 100000");
#endif
    assert_int_equal(file_read(&a, scratch_dir(), 100, &text, &bytes), FUL_ERR_IO);
    assert_int_equal(file_read(&a, scratch_path("absent"), 100, &text, &bytes), FUL_ERR_IO);
    books.fail_at = books.calls + 1;
    assert_int_equal(file_read(&a, path, 9, &text, &bytes), FUL_ERR_HOST_MEMORY);
    error_has("out of host memory", "r.txt");
    assert_int_equal(books.live, 0);
    assert_false(books.broken);

    static char large[300000];
    memset(large, 'q', sizeof large);
    path = scratch_write("large", large, sizeof large);
    assert_int_equal(file_read(NULL, path, UINT64_MAX, &text, &bytes), FUL_OK);
    assert_int_equal(bytes, sizeof large);
    assert_memory_equal(text, large, sizeof large);
    mem_free(NULL, text);
}

static void test_file_write(void **state)
{
    (void)state;
    char *text;
    size_t bytes;
    char dir[512], target[512], other[520];
    snprintf(dir, sizeof dir, "%s", scratch_path("deep/er/est"));
    assert_false(path_is_dir(dir));
    assert_int_equal(path_make_dirs(dir), FUL_OK);
    assert_int_equal(path_make_dirs(dir), FUL_OK);
    assert_true(path_is_dir(dir));
    char *joined = path_join(NULL, dir, "w.bin");
    snprintf(target, sizeof target, "%s", joined);
    mem_free(NULL, joined);
    assert_false(file_exists(target));
    assert_int_equal(file_write_atomic(target, "one", 3), FUL_OK);
    assert_int_equal(file_write_atomic(target, "second", 6), FUL_OK);
    assert_true(file_exists(target));
    assert_false(path_is_dir(target));
    assert_int_equal(file_read(NULL, target, 100, &text, &bytes), FUL_OK);
    assert_string_equal(text, "second");
    mem_free(NULL, text);
    assert_int_equal(file_write_quick(target, "third", 5), FUL_OK);
    assert_int_equal(file_read(NULL, target, 100, &text, &bytes), FUL_OK);
    assert_string_equal(text, "third");
    mem_free(NULL, text);
    assert_int_equal(file_write_atomic(target, NULL, 0), FUL_OK);
    assert_int_equal(file_read(NULL, target, 100, &text, &bytes), FUL_OK);
    assert_int_equal(bytes, 0);
    mem_free(NULL, text);

    /* A folder can't be replaced, and nothing is left beside it: it goes with one rmdir. */
    snprintf(other, sizeof other, "%s", scratch_path("only/folder"));
    assert_int_equal(path_make_dirs(other), FUL_OK);
    assert_int_equal(file_write_atomic(other, "x", 1), FUL_ERR_IO);
    error_has("only/folder", "cannot replace");
    assert_int_equal(rmdir(other), 0);
    assert_int_equal(rmdir(scratch_path("only")), 0);

    assert_int_equal(file_write_atomic(scratch_path("no/such/f"), "x", 1), FUL_ERR_IO);
    error_has("no/such/f", "No such file");
    snprintf(other, sizeof other, "%s/below", target);
    assert_int_equal(path_make_dirs(other), FUL_ERR_IO);
    error_has("w.bin: cannot create the folder", "exists");
    static char longer[6000];
    memset(longer, 'p', sizeof longer - 1);
    assert_int_equal(path_make_dirs(longer), FUL_ERR_ARGUMENT);
    error_has("5999", "4096");
    assert_int_equal(file_write_atomic(longer, "x", 1), FUL_ERR_ARGUMENT);
    assert_int_equal(path_make_dirs(""), FUL_ERR_ARGUMENT);
}

static void test_path_join(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"a", "b", "a/b"}, {"a/", "b", "a/b"}, {"", "b", "b"}, {"/", "b", "/b"}};
    for (size_t i = 0; i < 4; i++) {
        char *path = path_join(NULL, cases[i][0], cases[i][1]);
        assert_string_equal(path, cases[i][2]);
        mem_free(NULL, path);
    }
}

/* ---- threads ---- */

typedef struct counted {
    atomic_uint seen[5000];
    mutex *lock;
    uint64_t sum; /* under the lock */
} counted;

static void count_one(void *ctx, uint32_t i)
{
    counted *c = ctx;
    atomic_fetch_add(&c->seen[i], 1);
    mutex_lock(c->lock);
    c->sum += i;
    mutex_unlock(c->lock);
}

static void test_parallel(void **state)
{
    (void)state;
    static const unsigned threads[] = {0, 1, 2, 5, 1000};
    for (size_t t = 0; t < 5; t++) {
        counted *c = calloc(1, sizeof *c);
        c->lock = mutex_create(NULL);
        assert_non_null(c->lock);
        parallel_for(threads[t], 0, count_one, c);
        assert_int_equal(c->sum, 0);
        parallel_for(threads[t], 5000, count_one, c);
        for (int i = 0; i < 5000; i++)
            assert_int_equal(c->seen[i], 1);
        assert_int_equal(c->sum, 5000ull * 4999 / 2);
        mutex_destroy(NULL, &c->lock);
        assert_null(c->lock);
        mutex_destroy(NULL, &c->lock);
        free(c);
    }
    assert_true(thread_count() >= 1);
    fault_alloc books = {.fail_at = 1};
    ful_alloc a = fault_alloc_functions(&books);
    assert_null(mutex_create(&a));
}

typedef struct meeting {
    atomic_uint here;
    atomic_bool together;
} meeting;

/* Each waits until another one is inside too: possible only if they really run side by side. */
static void meet(void *ctx, uint32_t i)
{
    (void)i;
    meeting *m = ctx;
    uint64_t start = time_ns();
    atomic_fetch_add(&m->here, 1);
    while (!atomic_load(&m->together) && time_ns() - start < 5000000000u)
        if (atomic_load(&m->here) >= 2)
            atomic_store(&m->together, true);
}

static void test_parallel_is_parallel(void **state)
{
    (void)state;
    meeting m = {0};
    parallel_for(2, 2, meet, &m);
    assert_true(m.together);
    uint64_t before = time_ns();
    for (int i = 0; i < 1000; i++) {
        uint64_t now = time_ns();
        assert_true(now >= before);
        before = now;
    }
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
        cmocka_unit_test(test_names),
        cmocka_unit_test(test_error_line),
        cmocka_unit_test(test_error_truncation),
        cmocka_unit_test(test_error_threads),
        cmocka_unit_test(test_log),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_checked_sizes),
        cmocka_unit_test(test_file_map),
        cmocka_unit_test(test_file_names),
        cmocka_unit_test(test_file_read),
        cmocka_unit_test(test_file_write),
        cmocka_unit_test(test_path_join),
        cmocka_unit_test(test_parallel),
        cmocka_unit_test(test_parallel_is_parallel),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
