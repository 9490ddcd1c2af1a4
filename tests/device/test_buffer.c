/* Buffers, reads and writes, uploads, and tensors in windows. */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static log_seen seen;
static ful_instance *instance;
static ful_device *device;

static int setup(void **state)
{
    (void)state;
    instance = gpu_test_instance(&seen);
    device = gpu_test_open(instance, NULL);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gpu_test_close(&device);
    gpu_test_instance_end(&instance);
    return 0;
}

static void pattern(uint32_t *words, size_t count, uint32_t seed)
{
    for (size_t i = 0; i < count; i++)
        words[i] = (uint32_t)i * 2654435761u + seed;
}

static void test_create(void **state)
{
    (void)state;
    const gpu_memory kinds[] = {GPU_MEMORY_DEVICE, GPU_MEMORY_HOST, GPU_MEMORY_READBACK};
    const uint64_t sizes[] = {1, 4, 255, 256, 257, 65536, 3u << 20};
    for (size_t k = 0; k < 3; k++) {
        for (size_t s = 0; s < sizeof(sizes) / sizeof(sizes[0]); s++) {
            gpu_buffer b;
            uint64_t now, after, peak;
            GPU_OK(gpu_buffer_create(device, sizes[s], kinds[k], "sizes", &b));
            assert_int_equal(b.bytes, sizes[s]);
            assert_true(b.memory_bytes >= ((sizes[s] + 255) & ~(uint64_t)255));
            if (kinds[k] != GPU_MEMORY_DEVICE)
                assert_non_null(b.mapped);
            ful_device_memory(device, &now, &peak);
            assert_true(peak >= now);
            if (device_caps(device)->unified_memory)
                assert_int_equal(now, b.memory_bytes);
            gpu_buffer_destroy(device, &b);
            gpu_buffer_destroy(device, &b); /* a zero one is allowed */
            ful_device_memory(device, &after, NULL);
            assert_int_equal(after, 0);
            assert_null(b.mapped);
        }
    }
}

static void test_create_wrong(void **state)
{
    (void)state;
    gpu_buffer b;
    GPU_FAILS(gpu_buffer_create(device, 0, GPU_MEMORY_DEVICE, "empty one", &b), FUL_ERR_ARGUMENT);
    gpu_error_has("empty one");
    GPU_FAILS(gpu_buffer_create(device, UINT64_MAX, GPU_MEMORY_DEVICE, "huge one", &b),
              FUL_ERR_DEVICE_MEMORY);
    gpu_error_has("huge one");
    gpu_error_has("18446744073709551615");
    assert_null(b.vk);
    ful_device *small;
    GPU_OK(ful_device_open(&small, instance,
                           ful_device_params(.memory_limit_bytes = 1u << 20, .cache_dir = "",
                                             .name_part = getenv("FULGUR_TEST_DEVICE"))));
    gpu_buffer a;
    assert_true(device_free_bytes(small) <= 1u << 20);
    GPU_OK(gpu_buffer_create(small, 600000, GPU_MEMORY_DEVICE, "first", &a));
    GPU_FAILS(gpu_buffer_create(small, 600000, GPU_MEMORY_DEVICE, "second", &b),
              FUL_ERR_DEVICE_MEMORY);
    gpu_error_has("second: 600000 bytes asked for");
    gpu_buffer_destroy(small, &a);
    GPU_OK(gpu_buffer_create(small, 600000, GPU_MEMORY_DEVICE, "third", &a));
    gpu_buffer_destroy(small, &a);
    gpu_test_close(&small);
    small = gpu_test_open(instance, "memory=500000,allocation=300000");
    GPU_FAILS(gpu_buffer_create(small, 300000, GPU_MEMORY_DEVICE, "padded", &b),
              FUL_ERR_DEVICE_MEMORY); /* fits exactly, but not with its padding */
    gpu_error_has("300000");
    GPU_OK(gpu_buffer_create(small, 290000, GPU_MEMORY_DEVICE, "fits", &a));
    GPU_FAILS(gpu_buffer_create(small, 290000, GPU_MEMORY_DEVICE, "over", &b),
              FUL_ERR_DEVICE_MEMORY);
    gpu_buffer_destroy(small, &a);
    gpu_test_close(&small);
}

/* Writes, reads and fills; `staged` hides the mapping, as on devices without one. */
static void write_and_read(bool staged)
{
    enum { WORDS = 5 << 20 }; /* more than two staging buffers hold */
    uint32_t *words = malloc(WORDS * 4u), *got = malloc(WORDS * 4u);
    assert_non_null(words);
    assert_non_null(got);
    gpu_buffer b;
    GPU_OK(gpu_buffer_create(device, WORDS * 4u, GPU_MEMORY_DEVICE, "data", &b));
    gpu_buffer view = b;
    if (staged)
        view.mapped = NULL;
    gpu_range all = gpu_whole(&view);
    pattern(words, WORDS, 1);
    GPU_OK(gpu_range_write(device, all, 0, words, WORDS * 4u));
    GPU_OK(gpu_range_read(device, all, 0, got, WORDS * 4u));
    assert_memory_equal(got, words, WORDS * 4u);
    GPU_OK(gpu_range_fill(device, gpu_part(all, 1024, 40), 0xabcd1234));
    for (int i = 256; i < 266; i++)
        words[i] = 0xabcd1234;
    pattern(words + 1001, 77, 99);
    GPU_OK(gpu_range_write(device, gpu_part(all, 4000, 400), 4, words + 1001, 77 * 4));
    memset(got, 0, WORDS * 4u);
    GPU_OK(gpu_range_read(device, all, 0, got, WORDS * 4u));
    assert_memory_equal(got, words, WORDS * 4u);
    GPU_OK(gpu_range_read(device, gpu_part(all, 4000, 400), 8, got, 12));
    assert_memory_equal(got, words + 1002, 12);
    gpu_buffer_destroy(device, &b);
    free(words);
    free(got);
}

static void test_mapped(void **state)
{
    (void)state;
    write_and_read(false);
}

static void test_staged(void **state)
{
    (void)state;
    write_and_read(true);
}

static void test_range_wrong(void **state)
{
    (void)state;
    gpu_buffer b;
    uint32_t words[4] = {0};
    gpu_range none = {NULL, 0, 0};
    GPU_OK(gpu_buffer_create(device, 1024, GPU_MEMORY_DEVICE, "b", &b));
    GPU_FAILS(gpu_range_write(device, gpu_whole(&b), 1020, words, 8), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_read(device, gpu_whole(&b), 1028, words, 4), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_read(device, gpu_whole(&b), UINT64_MAX - 3, words, 8), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_read(device, gpu_whole(&b), 2, words, 4), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_write(device, gpu_whole(&b), 0, words, 3), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_read(device, gpu_part(gpu_whole(&b), 1000, 100), 0, words, 4),
              FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_range_fill(device, none, 0), FUL_ERR_ARGUMENT);
    GPU_OK(gpu_range_write(device, gpu_whole(&b), 1024, words, 0));
    gpu_buffer_destroy(device, &b);
}

/* ---- uploads ---- */

typedef struct progress_seen {
    int calls;
    uint64_t last, total;
    uint64_t cancel_at; /* 0: never */
} progress_seen;

static bool progress_note(void *ctx, const ful_progress *p)
{
    progress_seen *s = ctx;
    assert_int_equal(p->phase, FUL_PHASE_UPLOAD);
    assert_true(p->done >= s->last && p->done <= p->total);
    s->calls++;
    s->last = p->done;
    s->total = p->total;
    return s->cancel_at == 0 || p->done < s->cancel_at;
}

static void upload(bool staged, uint64_t cancel_at)
{
    enum { PIECES = 60, PIECE = 400 * 1024 };
    progress_seen progress = {.cancel_at = cancel_at};
    gpu_buffer b;
    gpu_upload *u;
    uint32_t *got = malloc(PIECE);
    assert_non_null(got);
    GPU_OK(gpu_buffer_create(device, PIECES * PIECE, GPU_MEMORY_DEVICE, "uploaded", &b));
    gpu_buffer view = b;
    if (staged)
        view.mapped = NULL;
    GPU_OK(gpu_upload_begin(device, PIECES * PIECE, progress_note, &progress, &u));
    assert_true(gpu_upload_max(u) >= PIECE && gpu_upload_max(u) <= 8u << 20);
    ful_result r = FUL_OK;
    for (uint32_t i = 0; i < PIECES && r == FUL_OK; i++) {
        void *room = NULL;
        r = gpu_upload_room(u, gpu_whole(&view), (uint64_t)i * PIECE, PIECE, &room);
        if (r == FUL_OK)
            pattern(room, PIECE / 4, i);
    }
    if (cancel_at) {
        assert_int_equal(r, FUL_ERR_CANCELLED);
        gpu_upload_cancel(&u);
    } else {
        GPU_OK(r);
        GPU_OK(gpu_upload_end(&u));
        assert_true(progress.calls > 5);
        assert_int_equal(progress.last, PIECES * PIECE);
        assert_int_equal(progress.total, PIECES * PIECE);
        for (uint32_t i = 0; i < PIECES; i++) {
            GPU_OK(gpu_range_read(device, gpu_whole(&b), (uint64_t)i * PIECE, got, PIECE));
            for (uint32_t k = 0; k < PIECE / 4; k += 997)
                assert_int_equal(got[k], k * 2654435761u + i);
        }
    }
    assert_null(u);
    free(got);
    gpu_buffer_destroy(device, &b);
}

static void test_upload(void **state)
{
    (void)state;
    upload(false, 0);
    upload(true, 0);
}

static void test_upload_cancel(void **state)
{
    (void)state;
    upload(false, 5u << 20);
    upload(true, 12u << 20); /* while a copy is under way */
}

static void test_upload_wrong(void **state)
{
    (void)state;
    gpu_buffer b;
    gpu_upload *u;
    void *room;
    GPU_OK(gpu_buffer_create(device, 1024, GPU_MEMORY_DEVICE, "target", &b));
    GPU_OK(gpu_upload_begin(device, 1024, NULL, NULL, &u));
    GPU_FAILS(gpu_upload_room(u, gpu_whole(&b), 1000, 100, &room), FUL_ERR_ARGUMENT);
    gpu_error_has("target");
    GPU_FAILS(gpu_upload_room(u, gpu_whole(&b), 0, 0, &room), FUL_ERR_ARGUMENT);
    GPU_OK(gpu_upload_end(&u));
    gpu_upload_cancel(&u);
    gpu_buffer_destroy(device, &b);
}

/* ---- tensors ---- */

static void check_windows(ful_device *d, const gpu_tensor *t)
{
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < t->window_count; i++) {
        const gpu_window *w = &t->windows[i];
        uint64_t need = (uint64_t)w->expert_count * w->row_count * t->row_bytes;
        assert_int_equal(w->buffer.bytes, need);
        assert_true(need <= device_window_bytes(d));
        bytes += need;
        if (w->row_count != t->rows) {
            assert_int_equal(w->expert_count, 1);
            if (w->row0 + w->row_count != t->rows)
                assert_int_equal(w->row_count % 64, 0);
        }
    }
    assert_int_equal(bytes, gpu_tensor_bytes(t));
    /* Rows are where the formula says, each its own. */
    for (uint32_t e = 0; e < t->experts; e++) {
        for (uint32_t row = 0; row < t->rows; row++) {
            gpu_range r = gpu_tensor_row(t, e, row);
            const gpu_window *w = NULL;
            for (uint32_t i = 0; i < t->window_count; i++)
                if (r.buffer == &t->windows[i].buffer)
                    w = &t->windows[i];
            assert_non_null(w);
            assert_true(e >= w->expert0 && e - w->expert0 < w->expert_count);
            assert_true(row >= w->row0 && row - w->row0 < w->row_count);
            assert_int_equal(r.offset, ((uint64_t)(e - w->expert0) * w->row_count + row - w->row0) *
                                           t->row_bytes);
            assert_int_equal(r.bytes, t->row_bytes);
        }
    }
    assert_null(gpu_tensor_row(t, t->experts, 0).buffer);
    assert_null(gpu_tensor_row(t, 0, t->rows).buffer);
}

static void test_tensors(void **state)
{
    (void)state;
    ful_device *small = gpu_test_open(instance, "range=1048576");
    const struct {
        ful_type type;
        uint32_t experts, rows, cols, windows;
    } rows[] = {
        {FUL_TYPE_BF16, 1, 10, 7, 1},      /* row padded to 16 bytes */
        {FUL_TYPE_F32, 1, 512, 512, 1},    /* exactly one window */
        {FUL_TYPE_F32, 1, 513, 512, 2},    /* one row too many */
        {FUL_TYPE_F16, 5, 256, 1024, 3},   /* two experts a window */
        {FUL_TYPE_F16, 3, 1000, 1024, 6},  /* experts split: 512 + 488 rows */
        {FUL_TYPE_F32, 1, 1000, 4000, 16}, /* 64 rows a window */
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++) {
        gpu_tensor t;
        GPU_OK(gpu_tensor_create(small, rows[i].type, rows[i].experts, rows[i].rows, rows[i].cols,
                                 "weights", &t));
        assert_int_equal(t.window_count, rows[i].windows);
        assert_int_equal(t.row_bytes % 16, 0);
        check_windows(small, &t);
        gpu_tensor_destroy(small, &t);
        gpu_tensor_destroy(small, &t);
    }
    gpu_tensor t;
    GPU_FAILS(gpu_tensor_create(small, FUL_TYPE_F32, 1, 100, 5000, "too wide", &t),
              FUL_ERR_UNSUPPORTED);
    gpu_error_has("too wide");
    GPU_FAILS(gpu_tensor_create(small, FUL_TYPE_F32, 1, 0, 16, "no rows", &t), FUL_ERR_ARGUMENT);
    GPU_FAILS(gpu_tensor_create(small, FUL_TYPE_DEFAULT, 1, 1, 16, "no type", &t),
              FUL_ERR_ARGUMENT);
    GPU_FAILS(
        gpu_tensor_create(small, FUL_TYPE_F32, UINT32_MAX, UINT32_MAX, UINT32_MAX, "absurd", &t),
        FUL_ERR_ARGUMENT);
    gpu_test_close(&small);
    /* Out of memory halfway: what was there is given back. */
    small = gpu_test_open(instance, "range=1048576,memory=3000000");
    GPU_FAILS(gpu_tensor_create(small, FUL_TYPE_F16, 8, 512, 1024, "too big", &t),
              FUL_ERR_DEVICE_MEMORY);
    gpu_error_has("too big");
    gpu_test_close(&small);
}

int main(void)
{
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_create, setup, teardown),
        cmocka_unit_test_setup_teardown(test_create_wrong, setup, teardown),
        cmocka_unit_test_setup_teardown(test_mapped, setup, teardown),
        cmocka_unit_test_setup_teardown(test_staged, setup, teardown),
        cmocka_unit_test_setup_teardown(test_range_wrong, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upload, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upload_cancel, setup, teardown),
        cmocka_unit_test_setup_teardown(test_upload_wrong, setup, teardown),
        cmocka_unit_test_setup_teardown(test_tensors, setup, teardown),
    };
    return cmocka_run_group_tests_name("buffer", tests, NULL, NULL);
}
