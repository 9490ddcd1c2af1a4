/* GGUF, versions 2 and 3, little-endian: the keys of a file's head, and which file a path means.
 * Its tensors come through tensors.h. */
#ifndef FULGUR_FORMAT_GGUF_H
#define FULGUR_FORMAT_GGUF_H

#include "base/file.h"
#include "base/types.h"

typedef enum gguf_kind {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_TEXT = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
    GGUF_KIND_COUNT
} gguf_kind;

typedef struct gguf_text {
    const char *data; /* no zero behind it; zero bytes may be in it */
    size_t bytes;
} gguf_text;

typedef struct gguf_value {
    const char *key;
    gguf_kind kind; /* of an array: of its items */
    bool is_array;
    uint64_t count;      /* of items; 1 for a single value */
    const uint8_t *data; /* in the file, unaligned */
    uint64_t bytes;      /* of all items there */
} gguf_value;

typedef struct gguf_keys gguf_keys;

/* The keys of a GGUF file (of its first part, if it is split). Everything in the head, tensors too,
 * is checked. */
ful_result gguf_keys_open(const ful_alloc *a, const char *path, gguf_keys **out);
/* The same of bytes that stay the caller's and must outlive it. */
ful_result gguf_keys_read(const ful_alloc *a, const char *name, const uint8_t *data, uint64_t bytes,
                          gguf_keys **out);
void gguf_keys_close(gguf_keys **keys);

const char *gguf_keys_path(const gguf_keys *keys);
uint32_t gguf_keys_count(const gguf_keys *keys);
const gguf_value *gguf_keys_at(const gguf_keys *keys, uint32_t index);    /* sorted by key */
const gguf_value *gguf_keys_find(const gguf_keys *keys, const char *key); /* NULL if absent */
const gguf_value *gguf_keys_one(const gguf_keys *keys, const char *key);  /* no array, or NULL */

const char *gguf_kind_name(gguf_kind kind); /* "u32", ... */
/* A value in a few words, for error lines. */
const char *gguf_value_words(const gguf_value *value, char *out, size_t bytes);

/* Item `index` of a value; false if it is of another kind or out of range. */
bool gguf_integer(const gguf_value *value, uint64_t index, int64_t *out); /* any integer kind */
bool gguf_number(const gguf_value *value, uint64_t index, double *out);   /* any kind of number */
bool gguf_bool(const gguf_value *value, uint64_t index, bool *out);
/* The text at `at`; returns where the next item lies. Begin at a value's data, take as many as its
 * count. */
const uint8_t *gguf_text_next(const uint8_t *at, gguf_text *out);
bool gguf_text_is(const gguf_value *value, const char *text); /* a single text, equal */

/* The GGUF file that `path` means, from mem_alloc: the file itself (of parts the first) by its name
 * or its first bytes, or the only GGUF in a folder. *out is NULL if it means none. */
ful_result gguf_locate(const ful_alloc *a, const char *path, char **out);

/* ---- types of tensors ---- */

typedef struct gguf_tensor_type {
    uint32_t id;
    const char *name;
    uint32_t block_elements, block_bytes;
    ful_type type; /* FUL_TYPE_DEFAULT: fulgur can't compute with it */
} gguf_tensor_type;

const gguf_tensor_type *gguf_type_by_id(uint32_t id); /* NULL if unknown */
const gguf_tensor_type *gguf_type_of(ful_type type);  /* NULL if the format has none */

enum {
    GGUF_DEFAULT_ALIGNMENT = 32,
    GGUF_MAX_DIMS = 4,
    GGUF_MAX_KEY_BYTES = 65535,
    GGUF_MAX_NAME_BYTES = 1023, /* the format's own limit was 64; files have more by now */
    GGUF_MAX_DEPTH = 4          /* of arrays in arrays */
};

#endif
