#include "format/gguf_write.h"

#include <inttypes.h>
#include <string.h>

enum { GGUF_VERSION = 3 };

typedef struct growing {
    void *data;
    size_t bytes, capacity;
} growing;

struct gguf_writer {
    ful_alloc alloc;
    const char *path; /* for error lines */
    file_writer *file;
    growing keys, tensors, sizes; /* sizes: uint64_t each */
    uint64_t key_count, tensor_count, tensor_bytes, data_bytes;
    uint64_t index, within; /* the tensor that is being written, and bytes of it so far */
    ful_result result;      /* the first failure */
    char path_room[];
};

static void grow(gguf_writer *w, growing *g, const void *data, size_t bytes)
{
    if (w->result != FUL_OK)
        return;
    if (bytes > SIZE_MAX - g->bytes ||
        !mem_grow(&w->alloc, &g->data, &g->capacity, g->bytes + bytes, 1)) {
        w->result = mem_fail(bytes, w->path);
        return;
    }
    if (bytes > 0)
        memcpy((char *)g->data + g->bytes, data, bytes);
    g->bytes += bytes;
}

static void number_put(gguf_writer *w, growing *g, uint64_t value, unsigned bytes)
{
    uint8_t b[8];
    for (unsigned i = 0; i < bytes; i++)
        b[i] = (uint8_t)(value >> 8 * i);
    grow(w, g, b, bytes);
}

static void text_put(gguf_writer *w, growing *g, const char *text, size_t bytes)
{
    number_put(w, g, bytes, 8);
    grow(w, g, text, bytes);
}

static void key_put(gguf_writer *w, const char *key, gguf_kind kind)
{
    text_put(w, &w->keys, key, strlen(key));
    number_put(w, &w->keys, (uint64_t)kind, 4);
    w->key_count++;
}

static void array_put(gguf_writer *w, const char *key, gguf_kind kind, uint64_t count)
{
    key_put(w, key, GGUF_ARRAY);
    number_put(w, &w->keys, (uint64_t)kind, 4);
    number_put(w, &w->keys, count, 8);
}

void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value)
{
    key_put(w, key, GGUF_U32);
    number_put(w, &w->keys, value, 4);
}

void gguf_put_f32(gguf_writer *w, const char *key, float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    key_put(w, key, GGUF_F32);
    number_put(w, &w->keys, bits, 4);
}

void gguf_put_f64(gguf_writer *w, const char *key, double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    key_put(w, key, GGUF_F64);
    number_put(w, &w->keys, bits, 8);
}

void gguf_put_bool(gguf_writer *w, const char *key, bool value)
{
    key_put(w, key, GGUF_BOOL);
    number_put(w, &w->keys, value, 1);
}

void gguf_put_text(gguf_writer *w, const char *key, const char *text, size_t bytes)
{
    key_put(w, key, GGUF_TEXT);
    text_put(w, &w->keys, text, bytes);
}

void gguf_put_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count)
{
    array_put(w, key, GGUF_I32, count);
    for (size_t i = 0; i < count; i++)
        number_put(w, &w->keys, (uint32_t)values[i], 4);
}

void gguf_put_bools(gguf_writer *w, const char *key, const bool *values, size_t count)
{
    array_put(w, key, GGUF_BOOL, count);
    for (size_t i = 0; i < count; i++)
        number_put(w, &w->keys, values[i], 1);
}

void gguf_put_texts(gguf_writer *w, const char *key, size_t count)
{
    array_put(w, key, GGUF_TEXT, count);
}

void gguf_put_item(gguf_writer *w, const char *text, size_t bytes)
{
    text_put(w, &w->keys, text, bytes);
}

void gguf_put_value(gguf_writer *w, const gguf_value *value)
{
    if (value->is_array)
        array_put(w, value->key, value->kind, value->count);
    else
        key_put(w, value->key, value->kind);
    grow(w, &w->keys, value->data, (size_t)value->bytes);
}

static uint64_t aligned(uint64_t bytes)
{
    return (bytes + GGUF_DEFAULT_ALIGNMENT - 1) & ~(uint64_t)(GGUF_DEFAULT_ALIGNMENT - 1);
}

void gguf_put_tensor(gguf_writer *w, const char *name, ful_type type, const uint64_t *dims,
                     uint32_t n_dims)
{
    const gguf_tensor_type *t = gguf_type_of(type);
    if (w->result != FUL_OK)
        return;
    if (!t || n_dims == 0 || n_dims > GGUF_MAX_DIMS || dims[n_dims - 1] % t->block_elements != 0) {
        w->result = fail(FUL_ERR_ARGUMENT,
                         "%s: tensor %s of type %s, %u dimensions and rows of %" PRIu64
                         " elements can't be written",
                         w->path, name, ful_type_name(type), n_dims, n_dims ? dims[n_dims - 1] : 0);
        return;
    }
    uint64_t bytes = type_row_bytes(type, dims[n_dims - 1]);
    bool fits = true;
    for (uint32_t i = 0; i + 1 < n_dims; i++)
        fits = fits && size_mul(bytes, dims[i], &bytes);
    if (!fits || bytes > UINT64_MAX / 4 || w->data_bytes > UINT64_MAX / 4) {
        w->result =
            fail(FUL_ERR_ARGUMENT, "%s: tensor %s: its size does not fit 64 bits", w->path, name);
        return;
    }
    text_put(w, &w->tensors, name, strlen(name));
    number_put(w, &w->tensors, n_dims, 4);
    for (uint32_t i = n_dims; i-- > 0;)
        number_put(w, &w->tensors, dims[i], 8);
    number_put(w, &w->tensors, t->id, 4);
    number_put(w, &w->tensors, w->data_bytes, 8);
    grow(w, &w->sizes, &bytes, sizeof bytes);
    w->data_bytes += aligned(bytes);
    w->tensor_bytes += bytes;
    w->tensor_count++;
}

/* ---- the file ---- */

static ful_result padding_write(gguf_writer *w, uint64_t bytes)
{
    static const uint8_t zeros[GGUF_DEFAULT_ALIGNMENT];
    return file_writer_put(w->file, zeros, (size_t)(aligned(bytes) - bytes));
}

static uint64_t size_at(const gguf_writer *w, uint64_t index)
{
    return ((const uint64_t *)w->sizes.data)[index];
}

/* Steps over tensors that are complete. */
static ful_result tensor_end(gguf_writer *w)
{
    while (w->index < w->tensor_count && w->within == size_at(w, w->index)) {
        TRY(padding_write(w, w->within));
        w->within = 0;
        w->index++;
    }
    return FUL_OK;
}

ful_result gguf_write_head(gguf_writer *w)
{
    growing head = {0};
    grow(w, &head, "GGUF", 4);
    number_put(w, &head, GGUF_VERSION, 4);
    number_put(w, &head, w->tensor_count, 8);
    number_put(w, &head, w->key_count, 8);
    if (w->result == FUL_OK)
        w->result = file_writer_put(w->file, head.data, head.bytes);
    if (w->result == FUL_OK)
        w->result = file_writer_put(w->file, w->keys.data, w->keys.bytes);
    if (w->result == FUL_OK)
        w->result = file_writer_put(w->file, w->tensors.data, w->tensors.bytes);
    if (w->result == FUL_OK)
        w->result = padding_write(w, head.bytes + w->keys.bytes + w->tensors.bytes);
    if (w->result == FUL_OK)
        w->result = tensor_end(w);
    mem_free(&w->alloc, head.data);
    return w->result;
}

ful_result gguf_write_data(gguf_writer *w, const void *data, size_t bytes)
{
    if (w->result != FUL_OK)
        return w->result;
    if (w->index >= w->tensor_count || bytes > size_at(w, w->index) - w->within)
        return w->result = fail(FUL_ERR_ARGUMENT, "%s: more bytes than its tensors have", w->path);
    w->result = file_writer_put(w->file, data, bytes);
    w->within += bytes;
    if (w->result == FUL_OK)
        w->result = tensor_end(w);
    return w->result;
}

uint64_t gguf_writer_bytes(const gguf_writer *w)
{
    return w->tensor_bytes;
}

ful_result gguf_writer_open(const ful_alloc *a, const char *path, gguf_writer **out)
{
    size_t n = strlen(path) + 1;
    gguf_writer *w = *out = mem_zalloc(a, 1, sizeof *w + n);
    if (!w)
        return mem_fail(sizeof *w + n, path);
    w->alloc = mem_functions(a);
    w->path = memcpy(w->path_room, path, n);
    ful_result r = file_writer_open(a, path, &w->file);
    if (r != FUL_OK)
        gguf_writer_cancel(out);
    return r;
}

ful_result gguf_writer_finish(gguf_writer **writer)
{
    gguf_writer *w = *writer;
    ful_result r = w->result;
    if (r == FUL_OK && w->index < w->tensor_count)
        r = fail(FUL_ERR_ARGUMENT,
                 "%s: tensor %" PRIu64 " of %" PRIu64 " ends after %" PRIu64 " bytes", w->path,
                 w->index, w->tensor_count, w->within);
    if (r == FUL_OK)
        r = file_writer_finish(&w->file);
    gguf_writer_cancel(writer);
    return r;
}

void gguf_writer_cancel(gguf_writer **writer)
{
    if (!writer || !*writer)
        return;
    gguf_writer *w = *writer;
    ful_alloc a = w->alloc;
    file_writer_cancel(&w->file);
    mem_free(&a, w->keys.data);
    mem_free(&a, w->tensors.data);
    mem_free(&a, w->sizes.data);
    mem_free(&a, w);
    *writer = NULL;
}
