#include "gguf_image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void image_raw(gguf_image *g, const void *data, size_t bytes)
{
    if (bytes > sizeof g->bytes - g->n) {
        fprintf(stderr, "gguf_image: more than %zu bytes\n", sizeof g->bytes);
        abort();
    }
    if (bytes > 0)
        memcpy(g->bytes + g->n, data, bytes);
    g->n += bytes;
}

void image_u32(gguf_image *g, uint32_t value)
{
    uint8_t b[4] = {(uint8_t)value, (uint8_t)(value >> 8), (uint8_t)(value >> 16),
                    (uint8_t)(value >> 24)};
    image_raw(g, b, 4);
}

void image_u64(gguf_image *g, uint64_t value)
{
    image_u32(g, (uint32_t)value);
    image_u32(g, (uint32_t)(value >> 32));
}

void image_text(gguf_image *g, const char *text)
{
    image_u64(g, strlen(text));
    image_raw(g, text, strlen(text));
}

void image_head(gguf_image *g, uint32_t version, uint64_t tensors, uint64_t keys)
{
    g->n = 0;
    image_raw(g, "GGUF", 4);
    image_u32(g, version);
    image_u64(g, tensors);
    image_u64(g, keys);
}

void image_key(gguf_image *g, const char *key, uint32_t kind)
{
    image_text(g, key);
    image_u32(g, kind);
}

void image_key_u32(gguf_image *g, const char *key, uint32_t value)
{
    image_key(g, key, GGUF_U32);
    image_u32(g, value);
}

void image_key_u16(gguf_image *g, const char *key, uint16_t value)
{
    uint8_t b[2] = {(uint8_t)value, (uint8_t)(value >> 8)};
    image_key(g, key, GGUF_U16);
    image_raw(g, b, 2);
}

void image_key_text(gguf_image *g, const char *key, const char *text)
{
    image_key(g, key, GGUF_TEXT);
    image_text(g, text);
}

void image_tensor(gguf_image *g, const char *name, uint32_t n_dims, const uint64_t *ne,
                  uint32_t type, uint64_t offset)
{
    image_text(g, name);
    image_u32(g, n_dims);
    for (uint32_t i = 0; i < n_dims; i++)
        image_u64(g, ne[i]);
    image_u32(g, type);
    image_u64(g, offset);
}

void image_data(gguf_image *g, size_t alignment, size_t bytes)
{
    while (g->n % alignment != 0)
        image_raw(g, "", 1);
    for (size_t i = 0; i < bytes; i++) {
        uint8_t b = (uint8_t)(i + 1);
        image_raw(g, &b, 1);
    }
}

void image_good(gguf_image *g)
{
    static const uint8_t numbers[] = {0xfe, 0xfe, 0xff, 0xfe, 0xff, 0xff, 0xff};
    static const uint8_t bools[] = {1, 0, 1};
    static const uint64_t ne_a[] = {3, 2}, ne_q[] = {64, 2, 2}, ne_i[] = {5};
    image_head(g, 3, 3, 15);
    image_key(g, "n.u8", GGUF_U8), image_raw(g, numbers, 1);
    image_key(g, "n.i8", GGUF_I8), image_raw(g, numbers, 1);
    image_key_u16(g, "n.u16", 0xfffe);
    image_key(g, "n.i16", GGUF_I16), image_raw(g, numbers + 1, 2);
    image_key_u32(g, "n.u32", 0xfffffffeu);
    image_key(g, "n.i32", GGUF_I32), image_raw(g, numbers + 3, 4);
    image_key(g, "n.f32", GGUF_F32), image_u32(g, 0x3fc00000);
    image_key(g, "n.bool", GGUF_BOOL), image_raw(g, bools, 1);
    image_key_text(g, "text", "h\xc3\xa9llo");
    image_key(g, "n.u64", GGUF_U64), image_u64(g, UINT64_MAX);
    image_key(g, "n.i64", GGUF_I64), image_u64(g, (uint64_t)-2);
    image_key(g, "n.f64", GGUF_F64), image_u64(g, 0x3ff8000000000000u);
    image_key(g, "a.bools", GGUF_ARRAY), image_u32(g, GGUF_BOOL), image_u64(g, 3);
    image_raw(g, bools, 3);
    image_key(g, "a.texts", GGUF_ARRAY), image_u32(g, GGUF_TEXT), image_u64(g, 3);
    image_text(g, "one"), image_text(g, ""), image_text(g, "three");
    image_key(g, "a.nested", GGUF_ARRAY), image_u32(g, GGUF_ARRAY), image_u64(g, 2);
    image_u32(g, GGUF_U8), image_u64(g, 1), image_raw(g, "x", 1);
    image_u32(g, GGUF_TEXT), image_u64(g, 1), image_text(g, "y");
    image_tensor(g, "q", 3, ne_q, 8, 64);  /* Q8_0: 8 blocks of 34 bytes */
    image_tensor(g, "a", 2, ne_a, 0, 0);   /* F32: 24 bytes */
    image_tensor(g, "i", 1, ne_i, 24, 32); /* I8, which is not computed with */
    image_data(g, 32, 64 + 272);
}
