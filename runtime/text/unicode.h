/* UTF-8 and NFC. */
#ifndef FULGUR_TEXT_UNICODE_H
#define FULGUR_TEXT_UNICODE_H

#include "base/alloc.h"
#include "base/utf8.h"

/* Length 1..4 of the code point at `text`, which must be valid. */
size_t utf8_read(const char *text, uint32_t *point);
/* Writes 1..4 bytes. */
size_t utf8_write(uint32_t point, char *out);

typedef struct nfc_buffer {
    const ful_alloc *alloc;
    int32_t *points; /* decomposed code points of the run at hand */
    size_t n_points, points_capacity;
    int32_t *sorted;
    size_t sorted_capacity;
    char *text;
    size_t bytes, capacity;
} nfc_buffer;

/* Composes valid UTF-8 as the reference's normaliser does. *out is `text` itself when nothing can
 * change, else the buffer's, valid until its next use. Linear time. */
ful_result nfc_apply(nfc_buffer *buffer, const char *text, size_t bytes, const char **out,
                     size_t *out_bytes);
void nfc_release(nfc_buffer *buffer);

#endif
