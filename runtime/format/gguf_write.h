/* Writing GGUF files: keys, then tensors' descriptions, then their bytes in that order. The head is
 * held in memory, tensors go through. */
#ifndef FULGUR_FORMAT_GGUF_WRITE_H
#define FULGUR_FORMAT_GGUF_WRITE_H

#include "format/gguf.h"

typedef struct gguf_writer gguf_writer;

/* The file takes its name when it is finished; FUL_ERR_IO if the name is taken. */
ful_result gguf_writer_open(const ful_alloc *a, const char *path, gguf_writer **out);

/* What goes wrong in these is told by gguf_write_head. Keys and names must differ. */
void gguf_put_u32(gguf_writer *w, const char *key, uint32_t value);
void gguf_put_f32(gguf_writer *w, const char *key, float value);
void gguf_put_f64(gguf_writer *w, const char *key, double value);
void gguf_put_bool(gguf_writer *w, const char *key, bool value);
void gguf_put_text(gguf_writer *w, const char *key, const char *text, size_t bytes);
void gguf_put_i32s(gguf_writer *w, const char *key, const int32_t *values, size_t count);
void gguf_put_bools(gguf_writer *w, const char *key, const bool *values, size_t count);
/* Begins an array that gguf_put_item fills `count` times. */
void gguf_put_texts(gguf_writer *w, const char *key, size_t count);
void gguf_put_item(gguf_writer *w, const char *text, size_t bytes);
void gguf_put_value(gguf_writer *w, const gguf_value *value); /* as another file has it */
/* dims: slowest first */
void gguf_put_tensor(gguf_writer *w, const char *name, ful_type type, const uint64_t *dims,
                     uint32_t n_dims);

/* Ends the head. From here on only bytes come: of all tensors in the order they were put, in pieces
 * of any size that do not cross from one tensor into the next. */
ful_result gguf_write_head(gguf_writer *w);
ful_result gguf_write_data(gguf_writer *w, const void *data, size_t bytes);
uint64_t gguf_writer_bytes(const gguf_writer *w); /* of all tensors */
/* Both free the writer. FUL_ERR_ARGUMENT if bytes are missing. */
ful_result gguf_writer_finish(gguf_writer **w);
void gguf_writer_cancel(gguf_writer **w); /* leaves no file; NULL allowed */

#endif
