/* GGUF: a head of keys and tensor descriptions, then the tensors' bytes at multiples of an
 * alignment. A model may be split over files: the first part has the keys, each has tensors.
 * Nothing in a head is believed before it was compared with the bytes that are there. */
#include "format/gguf.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/utf8.h"
#include "format/tensor_file.h"

enum {
    LEAST_KEY_BYTES = 8 + 4 + 1,        /* length, kind, value */
    LEAST_TENSOR_BYTES = 8 + 4 + 4 + 8, /* length, dimensions, type, offset */
    LEAST_NAME_BYTES = 8
};

struct gguf_keys {
    ful_alloc alloc;
    file_map map; /* if it was opened alone */
    char *path;
    uint32_t version;
    uint64_t alignment;
    gguf_value *values;
    size_t count, capacity;
    char *names;
    /* How far the head was read. */
    uint64_t tensor_count, tensors_at;
};

/* The head of one file, read from its beginning to its end. */
typedef struct cursor {
    const char *path;
    const uint8_t *data;
    uint64_t at, bytes;
} cursor;

/* What a piece of the head belongs to, for error lines. */
typedef struct place {
    const char *what; /* "key", "tensor" */
    const char *name; /* not terminated */
    uint64_t name_bytes;
} place;

static int place_width(const place *p)
{
    return (int)(p->name_bytes < 256 ? p->name_bytes : 256);
}

bool gguf_magic(const uint8_t *data, uint64_t bytes)
{
    return bytes >= 4 && memcmp(data, "GGUF", 4) == 0;
}

/* ---- pieces ---- */

static ful_result bytes_take(cursor *c, const place *p, uint64_t bytes, const char *what,
                             const uint8_t **out)
{
    *out = c->data + c->at;
    if (bytes > c->bytes - c->at)
        return fail(FUL_ERR_FORMAT,
                    "%s: %s '%.*s': %s takes %" PRIu64 " bytes at %" PRIu64
                    ", the file ends at %" PRIu64,
                    c->path, p->what, place_width(p), p->name, what, bytes, c->at, c->bytes);
    c->at += bytes;
    return FUL_OK;
}

static uint64_t little(const uint8_t *p, unsigned bytes)
{
    uint64_t n = 0;
    while (bytes-- > 0)
        n = n << 8 | p[bytes];
    return n;
}

static ful_result u32_take(cursor *c, const place *p, const char *what, uint32_t *out)
{
    const uint8_t *b;
    TRY(bytes_take(c, p, 4, what, &b));
    *out = (uint32_t)little(b, 4);
    return FUL_OK;
}

static ful_result u64_take(cursor *c, const place *p, const char *what, uint64_t *out)
{
    const uint8_t *b;
    TRY(bytes_take(c, p, 8, what, &b));
    *out = little(b, 8);
    return FUL_OK;
}

/* A key or a tensor's name: its bytes stay in the file, place holds it from now on. */
static ful_result name_take(cursor *c, place *p, uint64_t index, uint64_t limit)
{
    char number[32];
    const uint8_t *b;
    snprintf(number, sizeof number, "%" PRIu64, index);
    place here = {p->what, number, strlen(number)};
    uint64_t bytes;
    TRY(u64_take(c, &here, "the length of its name", &bytes));
    if (bytes == 0 || bytes > limit)
        return fail(FUL_ERR_FORMAT,
                    "%s: %s '%s': its name has %" PRIu64 " bytes, it must have 1 to %" PRIu64,
                    c->path, p->what, number, bytes, limit);
    TRY(bytes_take(c, &here, bytes, "its name", &b));
    for (uint64_t i = 0; i < bytes; i++)
        if (b[i] < 0x20 || b[i] == 0x7f)
            return fail(FUL_ERR_FORMAT, "%s: %s '%s': its name has byte 0x%02X at %" PRIu64,
                        c->path, p->what, number, b[i], i);
    size_t wrong;
    if (!utf8_valid((const char *)b, (size_t)bytes, &wrong))
        return fail(FUL_ERR_FORMAT, "%s: %s '%s': its name is not UTF-8 at byte %zu", c->path,
                    p->what, number, wrong);
    p->name = (const char *)b;
    p->name_bytes = bytes;
    return FUL_OK;
}

/* ---- values ---- */

static const uint8_t kind_bytes[GGUF_KIND_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};

static ful_result kind_take(cursor *c, const place *p, gguf_kind *out)
{
    uint32_t kind;
    TRY(u32_take(c, p, "its kind", &kind));
    if (kind >= GGUF_KIND_COUNT)
        return fail(FUL_ERR_FORMAT, "%s: %s '%.*s': unknown kind of value %" PRIu32, c->path,
                    p->what, place_width(p), p->name, kind);
    *out = (gguf_kind)kind;
    return FUL_OK;
}

static ful_result items_take(cursor *c, const place *p, gguf_kind kind, uint64_t count, int depth);

static ful_result array_take(cursor *c, const place *p, int depth, gguf_kind *kind, uint64_t *count)
{
    if (depth > GGUF_MAX_DEPTH)
        return fail(FUL_ERR_FORMAT,
                    "%s: %s '%.*s': arrays in arrays are deeper than the limit of %d", c->path,
                    p->what, place_width(p), p->name, (int)GGUF_MAX_DEPTH);
    TRY(kind_take(c, p, kind));
    TRY(u64_take(c, p, "the count of its array", count));
    return items_take(c, p, *kind, *count, depth);
}

static ful_result items_take(cursor *c, const place *p, gguf_kind kind, uint64_t count, int depth)
{
    uint64_t left = c->bytes - c->at;
    uint64_t least = kind == GGUF_TEXT ? 8 : kind == GGUF_ARRAY ? 12 : kind_bytes[kind];
    const uint8_t *b;
    if (count > left / least)
        return fail(FUL_ERR_FORMAT,
                    "%s: %s '%.*s': %" PRIu64 " values of kind %s do not fit the %" PRIu64
                    " bytes that are left",
                    c->path, p->what, place_width(p), p->name, count, gguf_kind_name(kind), left);
    if (kind_bytes[kind]) {
        TRY(bytes_take(c, p, count * least, "its value", &b));
        for (uint64_t i = 0; kind == GGUF_BOOL && i < count; i++)
            if (b[i] > 1)
                return fail(FUL_ERR_FORMAT, "%s: %s '%.*s': a bool of value %u, not 0 or 1",
                            c->path, p->what, place_width(p), p->name, b[i]);
        return FUL_OK;
    }
    for (uint64_t i = 0; i < count; i++) {
        uint64_t bytes;
        gguf_kind inner;
        if (kind == GGUF_ARRAY) {
            TRY(array_take(c, p, depth + 1, &inner, &bytes));
            continue;
        }
        TRY(u64_take(c, p, "the length of a text", &bytes));
        TRY(bytes_take(c, p, bytes, "a text", &b));
    }
    return FUL_OK;
}

static ful_result value_take(cursor *c, gguf_keys *keys, uint64_t index)
{
    place p = {"key", "", 0};
    TRY(name_take(c, &p, index, GGUF_MAX_KEY_BYTES));
    gguf_value v = {.key = p.name, .count = 1};
    TRY(kind_take(c, &p, &v.kind));
    v.is_array = v.kind == GGUF_ARRAY;
    if (v.is_array) {
        v.data = c->data + c->at + 12; /* behind kind and count, which array_take checks */
        TRY(array_take(c, &p, 1, &v.kind, &v.count));
    } else {
        v.data = c->data + c->at;
        TRY(items_take(c, &p, v.kind, 1, 1));
    }
    v.bytes = (uint64_t)(c->data + c->at - v.data);
    void *values = keys->values;
    if (!mem_grow(&keys->alloc, &values, &keys->capacity, keys->count + 1, sizeof *keys->values))
        return mem_fail((keys->count + 1) * sizeof *keys->values, c->path);
    keys->values = values;
    keys->values[keys->count++] = v;
    return FUL_OK;
}

/* A name in the file lies behind its length. */
static size_t name_bytes(const char *name)
{
    return (size_t)little((const uint8_t *)name - 8, 8);
}

/* Copies a name to `room` with a zero behind it, and moves on. */
static const char *name_copy(char **room, const char *name)
{
    size_t n = name_bytes(name);
    char *copy = *room;
    memcpy(copy, name, n);
    copy[n] = '\0';
    *room += n + 1;
    return copy;
}

static int value_compare(const void *a, const void *b)
{
    const gguf_value *x = a, *y = b;
    return strcmp(x->key, y->key);
}

static ful_result keys_sort(gguf_keys *keys)
{
    size_t bytes = 0;
    for (size_t i = 0; i < keys->count; i++)
        bytes += name_bytes(keys->values[i].key) + 1;
    if (bytes == 0)
        return FUL_OK;
    char *room = keys->names = mem_alloc(&keys->alloc, bytes);
    if (!room)
        return mem_fail(bytes, keys->path);
    for (size_t i = 0; i < keys->count; i++)
        keys->values[i].key = name_copy(&room, keys->values[i].key);
    qsort(keys->values, keys->count, sizeof *keys->values, value_compare);
    for (size_t i = 1; i < keys->count; i++)
        if (strcmp(keys->values[i].key, keys->values[i - 1].key) == 0)
            return fail(FUL_ERR_FORMAT, "%s: key '%.256s' is there twice", keys->path,
                        keys->values[i].key);
    return FUL_OK;
}

static ful_result alignment_get(gguf_keys *keys)
{
    char words[128];
    int64_t n;
    const gguf_value *v = gguf_keys_find(keys, "general.alignment");
    keys->alignment = GGUF_DEFAULT_ALIGNMENT;
    if (!v)
        return FUL_OK;
    if (v->is_array || !gguf_integer(v, 0, &n) || n <= 0 || n > UINT32_MAX || (n & (n - 1)) != 0)
        return fail(FUL_ERR_FORMAT, "%s: key 'general.alignment' is %s, it must be a power of two",
                    keys->path, gguf_value_words(v, words, sizeof words));
    keys->alignment = (uint64_t)n;
    return FUL_OK;
}

/* The head up to the tensors. */
static ful_result head_take(cursor *c, gguf_keys *keys)
{
    static const char pointer[] = "version https://git-lfs";
    place p = {"the", "head", 4};
    uint64_t key_count;
    if (c->bytes >= sizeof pointer && memcmp(c->data, pointer, sizeof pointer - 1) == 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: a Git LFS pointer of %" PRIu64 " bytes, not the file itself", c->path,
                    c->bytes);
    if (!gguf_magic(c->data, c->bytes))
        return fail(FUL_ERR_FORMAT, "%s: does not begin with 'GGUF' (%" PRIu64 " bytes)", c->path,
                    c->bytes);
    c->at = 4;
    TRY(u32_take(c, &p, "the version", &keys->version));
    if (keys->version != 0 && (keys->version & 0xffffu) == 0)
        return fail(FUL_ERR_UNSUPPORTED, "%s: a big-endian GGUF file; only little-endian is read",
                    c->path);
    if (keys->version != 2 && keys->version != 3)
        return fail(FUL_ERR_UNSUPPORTED, "%s: GGUF version %" PRIu32 "; 2 and 3 are read", c->path,
                    keys->version);
    TRY(u64_take(c, &p, "the count of tensors", &keys->tensor_count));
    TRY(u64_take(c, &p, "the count of keys", &key_count));
    uint64_t left = c->bytes - c->at;
    if (key_count > left / LEAST_KEY_BYTES)
        return fail(FUL_ERR_FORMAT,
                    "%s: %" PRIu64 " keys do not fit the %" PRIu64 " bytes that are left", c->path,
                    key_count, left);
    for (uint64_t i = 0; i < key_count; i++)
        TRY(value_take(c, keys, i));
    TRY(keys_sort(keys));
    left = c->bytes - c->at;
    if (keys->tensor_count > left / LEAST_TENSOR_BYTES || keys->tensor_count > UINT32_MAX)
        return fail(FUL_ERR_FORMAT,
                    "%s: %" PRIu64 " tensors do not fit the %" PRIu64 " bytes that are left",
                    c->path, keys->tensor_count, left);
    keys->tensors_at = c->at;
    return alignment_get(keys);
}

/* ---- tensors ---- */

static ful_result shape_take(cursor *c, const place *p, const gguf_tensor_type **type,
                             tensor_info *t)
{
    uint32_t id;
    uint64_t elements = 1, bits = 0;
    TRY(u32_take(c, p, "the count of its dimensions", &t->n_dims));
    if (t->n_dims == 0 || t->n_dims > GGUF_MAX_DIMS)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.*s': %" PRIu32 " dimensions, it must have 1 to %d", c->path,
                    place_width(p), p->name, t->n_dims, (int)GGUF_MAX_DIMS);
    bool fits = true, empty = false;
    for (uint32_t i = t->n_dims; i-- > 0;) {
        TRY(u64_take(c, p, "a dimension", &t->dims[i]));
        empty |= t->dims[i] == 0;
    }
    TRY(u32_take(c, p, "its type", &id));
    *type = gguf_type_by_id(id);
    if (!*type)
        return fail(FUL_ERR_UNSUPPORTED, "%s: tensor '%.*s': unknown type %" PRIu32, c->path,
                    place_width(p), p->name, id);
    t->type = (*type)->type;
    t->type_name = (*type)->name;
    uint64_t row = t->dims[t->n_dims - 1];
    if (row % (*type)->block_elements != 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.*s': rows of %" PRIu64
                    " elements are not whole blocks of %" PRIu32 " (%s)",
                    c->path, place_width(p), p->name, row, (*type)->block_elements, t->type_name);
    for (uint32_t i = 0; i < t->n_dims && !empty && fits; i++)
        fits = size_mul(elements, t->dims[i], &elements);
    if (empty)
        elements = 0;
    fits = fits && size_mul(elements / (*type)->block_elements, (*type)->block_bytes, &t->bytes) &&
           size_mul(t->bytes, 8, &bits);
    if (!fits)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.*s': its shape's size does not fit 64 bits (rows of %" PRIu64
                    ", %" PRIu32 " dimensions)",
                    c->path, place_width(p), p->name, row, t->n_dims);
    return FUL_OK;
}

/* data is the offset from the tensors' beginning until the head's end is known. */
static ful_result tensor_take(cursor *c, const gguf_keys *keys, uint64_t index, tensor_info *t,
                              uint64_t *offset)
{
    place p = {"tensor", "", 0};
    const gguf_tensor_type *type;
    TRY(name_take(c, &p, index, GGUF_MAX_NAME_BYTES));
    *t = (tensor_info){.name = p.name, .path = c->path};
    TRY(shape_take(c, &p, &type, t));
    TRY(u64_take(c, &p, "its offset", offset));
    if (*offset % keys->alignment != 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.*s': offset %" PRIu64
                    " is not a multiple of the alignment of %" PRIu64,
                    c->path, place_width(&p), p.name, *offset, keys->alignment);
    return FUL_OK;
}

static int place_compare(const void *a, const void *b)
{
    const tensor_info *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    /* Empty tensors first, so that they do not look like overlaps. */
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Holes are allowed, for alignment makes some; tensors that share bytes are not. */
static ful_result layout_check(tensor_info *tensors, size_t count)
{
    qsort(tensors, count, sizeof *tensors, place_compare);
    for (size_t i = 1; i < count; i++)
        if (tensors[i].data < tensors[i - 1].data + tensors[i - 1].bytes)
            return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s' begins inside tensor '%.256s'",
                        tensors[i].path, tensors[i].name, tensors[i - 1].name);
    return FUL_OK;
}

/* The descriptions are read twice: their end tells where the tensors' bytes begin. */
static ful_result tensors_take(cursor *c, const gguf_keys *keys, tensor_file *file,
                               tensor_shard *shard)
{
    uint64_t offset, data_at = 0, name_room = 0, begin = c->at;
    tensor_info t;
    if (keys->tensor_count == 0)
        return FUL_OK;
    for (uint64_t i = 0; i < keys->tensor_count; i++) {
        TRY(tensor_take(c, keys, i, &t, &offset));
        name_room += name_bytes(t.name) + 1;
    }
    if (!size_add(c->at, keys->alignment - 1, &data_at))
        data_at = UINT64_MAX;
    data_at &= ~(keys->alignment - 1);
    uint64_t data_bytes = data_at < c->bytes ? c->bytes - data_at : 0;
    size_t count = (size_t)keys->tensor_count, need = file->tensor_count + count;
    if (need > UINT32_MAX)
        return fail(FUL_ERR_FORMAT, "%s: %zu tensors, the limit is %" PRIu32 " in all files",
                    c->path, need, UINT32_MAX);
    if (!mem_grow(&file->alloc, (void **)&file->tensors, &file->tensor_capacity, need,
                  sizeof *file->tensors))
        return mem_fail(need * sizeof *file->tensors, c->path);
    char *room = shard->names = mem_alloc(&file->alloc, (size_t)name_room);
    if (!room)
        return mem_fail((size_t)name_room, c->path);
    tensor_info *first = file->tensors + file->tensor_count;
    c->at = begin;
    for (size_t i = 0; i < count; i++) {
        TRY(tensor_take(c, keys, i, &first[i], &offset));
        first[i].name = name_copy(&room, first[i].name);
        if (offset > data_bytes || first[i].bytes > data_bytes - offset)
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor '%.256s': %" PRIu64 " bytes at %" PRIu64
                        ", the file holds %" PRIu64 " bytes of data: truncated?",
                        c->path, first[i].name, first[i].bytes, offset, data_bytes);
        first[i].data = c->data + (data_bytes ? data_at : 0) + offset;
    }
    file->tensor_count = need;
    return layout_check(first, count);
}

/* ---- one file ---- */

static ful_result keys_create(const ful_alloc *a, const char *path, gguf_keys **out)
{
    gguf_keys *keys = mem_zalloc(a, 1, sizeof *keys);
    *out = keys;
    if (!keys)
        return mem_fail(sizeof *keys, path);
    keys->alloc = mem_functions(a);
    keys->path = mem_strdup(a, path);
    return keys->path ? FUL_OK : mem_fail(strlen(path), "a file's path");
}

void gguf_keys_close(gguf_keys **keys)
{
    if (!keys || !*keys)
        return;
    gguf_keys *k = *keys;
    ful_alloc a = k->alloc;
    file_map_close(&k->map);
    mem_free(&a, k->path);
    mem_free(&a, k->values);
    mem_free(&a, k->names);
    mem_free(&a, k);
    *keys = NULL;
}

/* All of one file. */
static ful_result file_take(const char *path, const uint8_t *data, uint64_t bytes, gguf_keys *keys,
                            tensor_file *file, tensor_shard *shard)
{
    cursor c = {path, data, 0, bytes};
    TRY(head_take(&c, keys));
    return tensors_take(&c, keys, file, shard);
}

ful_result gguf_read(tensor_file *file, tensor_shard *shard, const uint8_t *data, uint64_t bytes)
{
    gguf_keys *keys;
    ful_result r = keys_create(&file->alloc, shard->path, &keys);
    if (r == FUL_OK)
        r = file_take(shard->path, data, bytes, keys, file, shard);
    if (r == FUL_OK && !file->keys)
        file->keys = keys;
    else
        gguf_keys_close(&keys);
    return r;
}

ful_result gguf_keys_read(const ful_alloc *a, const char *name, const uint8_t *data, uint64_t bytes,
                          gguf_keys **out)
{
    cursor c = {name, data, 0, bytes};
    ful_result r = keys_create(a, name, out);
    if (r == FUL_OK)
        r = head_take(&c, *out);
    if (r != FUL_OK)
        gguf_keys_close(out);
    return r;
}

ful_result gguf_keys_open(const ful_alloc *a, const char *path, gguf_keys **out)
{
    file_map map;
    *out = NULL;
    TRY(file_map_open(path, &map));
    ful_result r = gguf_keys_read(a, path, map.data, map.bytes, out);
    if (r == FUL_OK)
        (*out)->map = map;
    else
        file_map_close(&map);
    return r;
}

const char *gguf_keys_path(const gguf_keys *keys)
{
    return keys->path;
}

uint32_t gguf_keys_count(const gguf_keys *keys)
{
    return (uint32_t)keys->count;
}

const gguf_value *gguf_keys_at(const gguf_keys *keys, uint32_t index)
{
    return index < keys->count ? &keys->values[index] : NULL;
}

const gguf_value *gguf_keys_find(const gguf_keys *keys, const char *key)
{
    gguf_value wanted = {.key = key};
    return keys->count ? bsearch(&wanted, keys->values, keys->count, sizeof wanted, value_compare)
                       : NULL;
}

const gguf_value *gguf_keys_one(const gguf_keys *keys, const char *key)
{
    const gguf_value *v = gguf_keys_find(keys, key);
    return v && !v->is_array ? v : NULL;
}
