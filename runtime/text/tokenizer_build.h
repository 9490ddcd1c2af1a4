/* Building a tokenizer's tables, the vocabulary first, then merges and added tokens. */
#ifndef FULGUR_TEXT_TOKENIZER_BUILD_H
#define FULGUR_TEXT_TOKENIZER_BUILD_H

#include "format/gguf.h"
#include "format/json.h"
#include "text/tokenizer.h"

/* Texts are valid UTF-8 in the byte alphabet. vocab_size: the largest id + 1, added tokens too;
 * n_tokens: how many vocab_add will follow at most. */
ful_result vocab_begin(ful_tokenizer *t, uint32_t vocab_size, size_t n_tokens);
ful_result vocab_add(ful_tokenizer *t, int32_t id, const char *text, size_t length);
ful_result vocab_end(ful_tokenizer *t); /* every byte has a token */

/* After bpe_table_create on t->merges; index: the merge's rank. */
ful_result merge_add(ful_tokenizer *t, size_t index, const char *const part[2],
                     const size_t length[2]);

/* Texts as they stand in the text, not empty. */
ful_result added_begin(ful_tokenizer *t, size_t count);
ful_result added_add(ful_tokenizer *t, int32_t id, const char *text, size_t bytes);
ful_result added_end(ful_tokenizer *t);

/* Into a tokenizer of which only alloc is set; error lines begin with the file. */
ful_result tokenizer_read_json(ful_tokenizer *t, const json_t *root, const char *file);
ful_result tokenizer_read_gguf(ful_tokenizer *t, const gguf_keys *keys);

#endif
