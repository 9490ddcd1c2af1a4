/* GGUF files put together byte by byte, right or wrong. */
#ifndef TESTS_UTIL_GGUF_IMAGE_H
#define TESTS_UTIL_GGUF_IMAGE_H

#include "format/gguf.h"

typedef struct gguf_image {
    uint8_t bytes[1 << 17];
    size_t n;
} gguf_image;

void image_raw(gguf_image *g, const void *data, size_t bytes);
void image_u32(gguf_image *g, uint32_t value);
void image_u64(gguf_image *g, uint64_t value);
void image_text(gguf_image *g, const char *text); /* length and bytes */
void image_head(gguf_image *g, uint32_t version, uint64_t tensors, uint64_t keys);
/* A key and its kind; its value comes behind. */
void image_key(gguf_image *g, const char *key, uint32_t kind);
void image_key_u32(gguf_image *g, const char *key, uint32_t value);
void image_key_u16(gguf_image *g, const char *key, uint16_t value);
void image_key_text(gguf_image *g, const char *key, const char *text);
/* ne: fastest first, as in the file */
void image_tensor(gguf_image *g, const char *name, uint32_t n_dims, const uint64_t *ne,
                  uint32_t type, uint64_t offset);
/* Zeros up to a multiple of the alignment, then counting bytes. */
void image_data(gguf_image *g, size_t alignment, size_t bytes);

/* A good one with every kind of value, arrays in arrays, and three tensors. */
void image_good(gguf_image *g);

#endif
