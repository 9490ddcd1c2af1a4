/* A tokenizer opened through an instance, and used by several threads at once. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "base/thread.h"
#include "fulgur/tokenizer.h"

/* cmocka's macro fail() must come behind the function of that name. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#define DEMO FUL_TEST_DATA "/../samples/demo-model"

enum { SLICES = 64, SLICE_BYTES = 4096 };

typedef struct slices {
    const ful_tokenizer *tokenizer;
    const char *text;
    size_t start[SLICES + 1]; /* between code points */
    uint64_t sum[SLICES];     /* of one slice's tokens; 0: failed */
} slices;

static void slice_encode(void *ctx, uint32_t i)
{
    slices *s = ctx;
    static const size_t room = 2 * SLICE_BYTES;
    int32_t *ids = malloc(room * sizeof *ids);
    size_t count = ids ? room : 0;
    s->sum[i] = 0;
    if (ids != NULL &&
        ful_tokenizer_encode(s->tokenizer, s->text + s->start[i], s->start[i + 1] - s->start[i],
                             FUL_ENCODE_ADDED, ids, &count) == FUL_OK) {
        uint64_t sum = count + 1;
        for (size_t k = 0; k < count; k++)
            sum = sum * UINT64_C(0x100000001B3) + (uint32_t)ids[k];
        s->sum[i] = sum;
    }
    free(ids);
}

static void test_open_and_threads(void **state)
{
    (void)state;
    ful_instance *instance = NULL;
    ful_tokenizer *tokenizer = NULL;
    assert_int_equal(ful_instance_create(&instance, NULL), FUL_OK);
    assert_int_equal(ful_tokenizer_load(NULL, instance, DEMO), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_tokenizer_load(&tokenizer, NULL, DEMO), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_tokenizer_load(&tokenizer, instance, DEMO "/none"), FUL_ERR_IO);
    assert_null(tokenizer);
    assert_int_equal(ful_tokenizer_load(&tokenizer, instance, DEMO), FUL_OK);

    file_map map;
    assert_int_equal(file_map_open(DEMO "/valid.txt", &map), FUL_OK);
    slices one = {.tokenizer = tokenizer, .text = (const char *)map.data};
    for (size_t i = 0; i <= SLICES; i++) {
        one.start[i] = i * SLICE_BYTES;
        while ((one.text[one.start[i]] & 0xC0) == 0x80)
            one.start[i]++;
    }
    assert_true(map.bytes > one.start[SLICES]);
    slices many = one;
    for (uint32_t i = 0; i < SLICES; i++) {
        slice_encode(&one, i);
        assert_true(one.sum[i] != 0);
        assert_true(i == 0 || one.sum[i] != one.sum[i - 1]);
    }
    for (int round = 0; round < 5; round++) {
        parallel_for(4, SLICES, slice_encode, &many);
        assert_memory_equal(one.sum, many.sum, sizeof one.sum);
    }
    file_map_close(&map);
    ful_tokenizer_destroy(&tokenizer);
    assert_null(tokenizer);
    ful_instance_destroy(&instance);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_open_and_threads)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
