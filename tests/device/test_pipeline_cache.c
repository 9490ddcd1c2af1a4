/* Pipelines: finding, batches, and the cache on disk or with the application. */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <dirent.h>

#include <cmocka.h>

#include "base/file.h"
#include "util/scratch.h"

static log_seen seen;
static ful_instance *instance;

static int setup(void **state)
{
    (void)state;
    scratch_begin();
    instance = gpu_test_instance(&seen);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gpu_test_instance_end(&instance);
    scratch_end();
    return 0;
}

static ful_device *open_in(const char *dir)
{
    ful_device *d;
    GPU_OK(ful_device_open(
        &d, instance,
        ful_device_params(.cache_dir = dir, .name_part = getenv("FULGUR_TEST_DEVICE"))));
    return d;
}

/* Compiles some pipelines and runs one. */
static void use(ful_device *d, uint32_t constant)
{
    gpu_buffer x;
    gpu_commands *c;
    uint32_t word;
    map_push push = {64, 1, 0};
    GPU_OK(gpu_buffer_create(d, 1024, GPU_MEMORY_DEVICE, "x", &x));
    GPU_OK(gpu_range_fill(d, gpu_whole(&x), 5));
    (void)gpu_test_inplace(d);
    GPU_OK(gpu_commands_begin(d, 0, &c));
    gpu_dispatch dispatch =
        gpu_test_map_dispatch(gpu_test_map(d, constant), gpu_part(gpu_whole(&x), 0, 256),
                              gpu_part(gpu_whole(&x), 256, 256), &push);
    GPU_OK(gpu_commands_dispatch(c, &dispatch));
    GPU_OK(gpu_commands_end(c));
    GPU_OK(gpu_commands_submit(c));
    GPU_OK(gpu_commands_wait(c));
    gpu_commands_destroy(&c);
    GPU_OK(gpu_range_read(d, gpu_whole(&x), 256, &word, 4));
    assert_int_equal(word, 5 + constant);
    gpu_buffer_destroy(d, &x);
}

/* The only file of `dir`; "" if there is none. */
static void only_file(const char *dir, char *path, size_t bytes)
{
    DIR *folder = opendir(dir);
    path[0] = 0;
    assert_non_null(folder);
    for (struct dirent *e; (e = readdir(folder)) != NULL;) {
        if (e->d_name[0] == '.')
            continue;
        assert_true(path[0] == 0);
        snprintf(path, bytes, "%s/%s", dir, e->d_name);
    }
    closedir(folder);
}

static uint8_t *file_bytes(const char *path, size_t *bytes)
{
    char *data;
    ful_alloc a = mem_functions(NULL);
    GPU_OK(file_read(&a, path, 1u << 28, &data, bytes));
    return (uint8_t *)data;
}

static void test_same_pipeline(void **state)
{
    (void)state;
    ful_device *d = gpu_test_open(instance, NULL);
    gpu_pipeline *a = gpu_test_map(d, 1);
    assert_ptr_equal(a, gpu_test_map(d, 1));
    assert_ptr_not_equal(a, gpu_test_map(d, 2));
    gpu_test_close(&d);
}

static void test_unknown(void **state)
{
    (void)state;
    ful_device *d = gpu_test_open(instance, "buffers=4");
    gpu_pipeline *p;
    gpu_pipeline_desc desc = {.module = "no_such_shader", .buffer_count = 1};
    const uint32_t words[1] = {0};
    assert_false(gpu_module_usable(d, "no_such_shader"));
    GPU_FAILS(gpu_pipeline_get(d, &desc, &p), FUL_ERR_UNSUPPORTED);
    gpu_error_has("no_such_shader");
    GPU_FAILS(gpu_pipeline_from_words(d, &desc, words, 4, "subgroup nonsense", &p),
              FUL_ERR_UNSUPPORTED);
    desc.buffer_count = 5;
    GPU_FAILS(gpu_pipeline_from_words(d, &desc, words, 4, "", &p), FUL_ERR_UNSUPPORTED);
    gpu_error_has("needs 5 storage buffers, the device has 4");
    desc.buffer_count = GPU_MAX_BUFFERS + 1;
    GPU_FAILS(gpu_pipeline_from_words(d, &desc, words, 4, "", &p), FUL_ERR_ARGUMENT);
    gpu_test_close(&d);
}

typedef struct batch_seen {
    int calls;
    uint64_t last;
    bool cancel;
} batch_seen;

static bool batch_note(void *ctx, const ful_progress *p)
{
    batch_seen *s = ctx;
    assert_int_equal(p->phase, FUL_PHASE_PIPELINES);
    assert_true(p->done > s->last && p->done <= p->total);
    s->last = p->done;
    s->calls++;
    return !s->cancel;
}

static void test_batch(void **state)
{
    (void)state;
    enum { COUNT = 30 };
    ful_device *d = gpu_test_open(instance, NULL);
    gpu_pipeline *list[COUNT];
    batch_seen progress = {0};
    gpu_pipelines_begin(d);
    for (uint32_t i = 0; i < COUNT; i++) {
        list[i] = gpu_test_map(d, i);
        assert_true(list[i]->vk == VK_NULL_HANDLE);
    }
    GPU_OK(gpu_pipelines_end(d, batch_note, &progress));
    assert_int_equal(progress.last, COUNT);
    for (uint32_t i = 0; i < COUNT; i++)
        assert_true(list[i]->vk != VK_NULL_HANDLE);
    GPU_OK(gpu_pipelines_end(d, batch_note, &progress)); /* nothing left to do */
    assert_int_equal(progress.last, COUNT);
    /* Cancelled, but still usable: what is missing is compiled when needed. */
    batch_seen cancelled = {.cancel = true};
    gpu_pipelines_begin(d);
    for (uint32_t i = 0; i < 1000; i++)
        (void)gpu_test_map(d, 1000 + i);
    GPU_FAILS(gpu_pipelines_end(d, batch_note, &cancelled), FUL_ERR_CANCELLED);
    assert_int_equal(cancelled.calls, 1);
    use(d, 1999);
    gpu_test_close(&d);
}

static void test_stored(void **state)
{
    (void)state;
    char path[600];
    const char *dir = scratch_path("deep/cache");
    ful_device *d = open_in(dir);
    assert_int_equal(d->cache_loaded_bytes, 0);
    use(d, 1);
    gpu_test_close(&d);
    only_file(dir, path, sizeof(path));
    assert_true(path[0] != 0);
    size_t bytes, again;
    uint8_t *first = file_bytes(path, &bytes);
    d = open_in(dir);
    assert_int_equal(d->cache_loaded_bytes, bytes - CACHE_HEADER_BYTES);
    use(d, 1);
    gpu_test_close(&d);
    uint8_t *second = file_bytes(path, &again);
    /* Nothing new: not written again, but SwiftShader adds a header to its data each time. */
    assert_true(again >= bytes && again <= bytes + 64);
    if (again == bytes)
        assert_memory_equal(first, second, bytes);
    assert_int_equal(seen.warnings, 0);
    free(first);
    free(second);
}

static void test_none(void **state)
{
    (void)state;
    ful_device *d = gpu_test_open(instance, NULL); /* cache_dir "" */
    assert_null(d->cache_folder);
    use(d, 1);
    gpu_test_close(&d);
}

/* The user's cache folder by default. */
static void test_default_folder(void **state)
{
    (void)state;
#if defined(_WIN32)
    const char *variable = "LOCALAPPDATA";
#else
    const char *variable = "XDG_CACHE_HOME";
#endif
    const char *before = getenv(variable);
    char *kept = before ? strdup(before) : NULL;
    char path[600];
    setenv(variable, scratch_path("home"), 1);
    ful_device *d = open_in(NULL);
    use(d, 1);
    gpu_test_close(&d);
    only_file(scratch_path("home/fulgur"), path, sizeof(path));
    assert_non_null(strstr(path, "pipelines-"));
    if (kept)
        setenv(variable, kept, 1);
    else
        unsetenv(variable);
    free(kept);
}

/* Every field of the header changed, damaged content, and cut off at many lengths: ignored with a
 * line in the log, and replaced by a sound file. */
static void test_damaged(void **state)
{
    (void)state;
    char path[600];
    const char *dir = scratch_path("cache");
    ful_device *d = open_in(dir);
    use(d, 1);
    gpu_test_close(&d);
    only_file(dir, path, sizeof(path));
    size_t bytes;
    uint8_t *sound = file_bytes(path, &bytes), *bad = malloc(bytes + 16);
    assert_non_null(bad);
    const size_t flips[] = {0,  8,  12, 16, 20,  24,  39,  40,  55,  56,       71,
                            72, 80, 88, 96, 103, 112, 116, 120, 128, bytes - 1};
    for (size_t i = 0; i < sizeof(flips) / sizeof(flips[0]); i++) {
        memcpy(bad, sound, bytes);
        bad[flips[i]] ^= 0x40;
        GPU_OK(file_write_atomic(path, bad, bytes));
        int warnings = seen.warnings;
        d = open_in(dir);
        assert_int_equal(d->cache_loaded_bytes, 0);
        assert_int_equal(seen.warnings, warnings + 1);
        assert_non_null(strstr(seen.last_warning, path));
        if (i % 5 == 0)
            use(d, 1);
        gpu_test_close(&d);
    }
    const size_t cuts[] = {0, 1, 7, 8, 50, 111, 112, 113, 143, 144, bytes - 1, bytes + 1};
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        memcpy(bad, sound, bytes);
        bad[bytes] = 0;
        if (cuts[i] == bytes)
            continue;
        GPU_OK(file_write_atomic(path, bad, cuts[i]));
        d = open_in(dir);
        assert_int_equal(d->cache_loaded_bytes, 0);
        gpu_test_close(&d);
    }
    d = open_in(dir);
    use(d, 1);
    gpu_test_close(&d);
    d = open_in(dir);
    assert_true(d->cache_loaded_bytes > 0);
    gpu_test_close(&d);
    free(sound);
    free(bad);
}

/* A header that is sound, of another device, driver or set of shaders. */
static void test_foreign(void **state)
{
    (void)state;
    char path[600];
    const char *dir = scratch_path("cache");
    ful_device *d = open_in(dir);
    use(d, 1);
    gpu_test_close(&d);
    only_file(dir, path, sizeof(path));
    size_t bytes;
    uint8_t *entry = file_bytes(path, &bytes);
    const size_t at[] = {12, 16, 20, 30, 45, 60, 74};
    for (size_t i = 0; i < sizeof(at) / sizeof(at[0]); i++) {
        entry[at[i]] ^= 1;
        uint64_t sum = hash_bytes(HASH_SEED, entry, 96);
        for (int k = 0; k < 8; k++)
            entry[96 + k] = (uint8_t)(sum >> (8 * k));
        GPU_OK(file_write_atomic(path, entry, bytes));
        d = open_in(dir);
        assert_int_equal(d->cache_loaded_bytes, 0);
        assert_non_null(strstr(seen.last_warning, "belongs to"));
        gpu_test_close(&d);
        entry[at[i]] ^= 1;
    }
    free(entry);
}

static void test_unwritable(void **state)
{
    (void)state;
    const char *file = scratch_text("plain", "not a folder");
    int warnings = seen.warnings;
    ful_device *d = open_in(file);
    use(d, 1);
    gpu_test_close(&d);
    assert_true(seen.warnings > warnings); /* said, and nothing else */
}

/* ---- the application's own cache ---- */

typedef struct own_cache {
    uint8_t data[1 << 20];
    size_t bytes;
    char key[120];
    int gets, sets;
    bool lie; /* names a size and then has no data */
} own_cache;

static bool own_get(void *ctx, const char *key, void *data, size_t *bytes)
{
    own_cache *c = ctx;
    c->gets++;
    if (c->bytes == 0 || strcmp(key, c->key) != 0 || (c->lie && data))
        return false;
    if (data)
        memcpy(data, c->data, *bytes < c->bytes ? *bytes : c->bytes);
    *bytes = c->bytes;
    return true;
}

static void own_set(void *ctx, const char *key, const void *data, size_t bytes)
{
    own_cache *c = ctx;
    c->sets++;
    assert_true(bytes <= sizeof(c->data));
    snprintf(c->key, sizeof(c->key), "%s", key);
    memcpy(c->data, data, bytes);
    c->bytes = bytes;
}

static ful_device *open_own(own_cache *c)
{
    ful_device *d;
    GPU_OK(ful_device_open(&d, instance,
                           ful_device_params(.cache_get = own_get, .cache_set = own_set,
                                             .cache_ctx = c,
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    return d;
}

static void test_callbacks(void **state)
{
    (void)state;
    own_cache *c = calloc(1, sizeof(*c));
    assert_non_null(c);
    ful_device *d = open_own(c);
    use(d, 1);
    gpu_test_close(&d);
    assert_int_equal(c->sets, 1);
    assert_true(c->bytes > CACHE_HEADER_BYTES);
    d = open_own(c);
    assert_int_equal(d->cache_loaded_bytes, c->bytes - CACHE_HEADER_BYTES);
    gpu_test_close(&d);
    assert_int_equal(c->sets, 1); /* nothing was compiled */
    c->lie = true;
    d = open_own(c);
    assert_int_equal(d->cache_loaded_bytes, 0);
    gpu_test_close(&d);
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.cache_get = own_get)),
              FUL_ERR_ARGUMENT);
    free(c);
}

int main(void)
{
    gpu_test_require_device();
    if (gpu_test_built_in()) {
        printf("skipped: the built-in device compiles nothing\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_same_pipeline, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unknown, setup, teardown),
        cmocka_unit_test_setup_teardown(test_batch, setup, teardown),
        cmocka_unit_test_setup_teardown(test_stored, setup, teardown),
        cmocka_unit_test_setup_teardown(test_none, setup, teardown),
        cmocka_unit_test_setup_teardown(test_default_folder, setup, teardown),
        cmocka_unit_test_setup_teardown(test_damaged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_foreign, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unwritable, setup, teardown),
        cmocka_unit_test_setup_teardown(test_callbacks, setup, teardown),
    };
    return cmocka_run_group_tests_name("pipeline_cache", tests, NULL, NULL);
}
