/* Any bytes as a model's file: an error or a file that can be read, never a crash, never memory in
 * proportion to what is only promised. One function for libFuzzer and for fuzz_main.c. */
#include "fuzz.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/quant.h"
#include "format/tensors.h"
#include "model/config.h"
#include "model/imatrix.h"
#include "model/names.h"
#ifdef FUZZ_TOKENIZER
#include "text/tokenizer_build.h"
#endif

/* More than a reader may take for a file of this size: its tables' entries are a few times larger
 * than what a file needs for them, and arrays double. A tokenizer has tables of a fixed size. */
enum { FREE_BYTES = 8 << 20, BYTES_PER_BYTE = 64, BLOCK_MAX = 256 };

typedef struct books {
    size_t limit, held;
} books;

typedef union block {
    size_t bytes;
    max_align_t align;
} block;

static void *books_malloc(void *ctx, size_t bytes)
{
    books *b = ctx;
    if (bytes > b->limit - b->held) {
        fprintf(stderr, "%zu bytes wanted, %zu held, the limit is %zu\n", bytes, b->held, b->limit);
        abort();
    }
    block *p = malloc(sizeof *p + bytes);
    if (!p)
        return NULL;
    p->bytes = bytes;
    b->held += bytes;
    return p + 1;
}

static void books_free(void *ctx, void *p)
{
    books *b = ctx;
    block *head = (block *)p - 1;
    b->held -= head->bytes;
    free(head);
}

static void *books_realloc(void *ctx, void *p, size_t old_bytes, size_t bytes)
{
    void *to = books_malloc(ctx, bytes);
    if (to) {
        memcpy(to, p, old_bytes < bytes ? old_bytes : bytes);
        books_free(ctx, p);
    }
    return to;
}

/* Every byte that a tensor claims is there, and its first block is numbers whatever it holds. */
static uint64_t touch(const tensor_file *file)
{
    uint64_t sum = 0;
    float values[BLOCK_MAX];
    for (uint32_t i = 0; i < tensor_file_count(file); i++) {
        const tensor_info *t = tensor_file_at(file, i);
        sum += strlen(t->name) + strlen(t->type_name) + (tensor_file_find(file, t->name) == t);
        for (uint64_t k = 0; k < t->bytes;
             k += k + 64 < t->bytes || k + 1 == t->bytes ? 64 : t->bytes - 1 - k)
            sum += t->data[k];
        const type_traits *type = type_get(t->type);
        if (type && type->block_elements <= BLOCK_MAX && t->bytes > 0) {
            row_to_floats(t->type, t->data, type->block_elements, values);
            sum += values[0] > values[type->block_elements - 1];
        }
    }
    return sum;
}

static uint64_t touch_keys(const gguf_keys *keys)
{
    uint64_t sum = 0;
    char words[64];
    for (uint32_t i = 0; i < gguf_keys_count(keys); i++) {
        const gguf_value *v = gguf_keys_at(keys, i);
        double x;
        gguf_text text;
        sum += strlen(v->key) + strlen(gguf_value_words(v, words, sizeof words));
        sum += v->count > 0 && gguf_number(v, v->count - 1, &x);
        const uint8_t *at = v->data;
        for (uint64_t k = 0; v->kind == GGUF_TEXT && k < v->count; k++) {
            at = gguf_text_next(at, &text);
            sum += text.bytes && text.data[text.bytes - 1];
        }
    }
    return sum;
}

static unsigned read_model(const ful_alloc *a, const tensor_file *file)
{
    static model_config config;
    unsigned read = 0;
    if (config_read_gguf(file, &config) == FUL_OK && model_check_tensors(&config, file) == FUL_OK)
        read |= FUZZ_MODEL;
#ifdef FUZZ_TOKENIZER
    ful_tokenizer *t = mem_zalloc(a, 1, sizeof *t);
    if (!t)
        return read;
    t->alloc = *a;
    int32_t ids[64];
    size_t count = 64;
    if (tokenizer_read_gguf(t, tensor_file_keys(file)) == FUL_OK &&
        ful_tokenizer_encode(t, "Once upon a <end_of_sentence>", 29, FUL_ENCODE_ADDED, ids,
                             &count) == FUL_OK)
        read |= FUZZ_TOKENS;
    ful_tokenizer_destroy(&t);
#else
    (void)a;
    read |= read & FUZZ_MODEL ? FUZZ_TOKENS : 0;
#endif
    return read;
}

static unsigned read_importance(const ful_alloc *a, const uint8_t *data, size_t bytes)
{
    imatrix *im;
    const float *values;
    if (imatrix_read(a, "fuzz", data, bytes, &im) != FUL_OK)
        return 0;
    (void)imatrix_find(im, "blk.0.attn_qkv.weight", 32, 1, &values);
    imatrix_close(&im);
    return FUZZ_IMPORTANCE;
}

unsigned fuzz_try(const uint8_t *data, size_t bytes)
{
    unsigned read = 0;
    books b = {FREE_BYTES + BYTES_PER_BYTE * bytes, 0};
    ful_alloc a = {books_malloc, books_realloc, books_free, &b};
    tensor_file *file;
    if (tensor_file_read(&a, "fuzz", data, bytes, &file) == FUL_OK) {
        read = FUZZ_OPENED;
        uint64_t sum = touch(file);
        if (tensor_file_keys(file)) {
            sum += touch_keys(tensor_file_keys(file));
            read |= read_model(&a, file) | read_importance(&a, data, bytes);
        }
        tensor_file_close(&file);
        volatile uint64_t sink = sum; /* or nothing would be read */
        (void)sink;
    }
    if (b.held != 0) {
        fprintf(stderr, "%zu bytes are not freed\n", b.held);
        abort();
    }
    return read;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    fuzz_try(data, bytes);
    return 0;
}
