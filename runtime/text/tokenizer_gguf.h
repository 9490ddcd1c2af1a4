/* Tokenizers in the keys of a GGUF. */
#ifndef FULGUR_TEXT_TOKENIZER_GGUF_H
#define FULGUR_TEXT_TOKENIZER_GGUF_H

#include "format/gguf_write.h"

/* The split that tokenizer.ggml.pre = "minimax-m2" stands for (the text is NFC before it). */
extern const char tokenizer_gguf_pattern[];
#define TOKENIZER_GGUF_PRE "minimax-m2"
/* All of a tokenizer.json, for what the other keys can't say. */
#define TOKENIZER_GGUF_JSON "tokenizer.huggingface.json"

/* tokenizer.ggml.type's values. */
enum {
    GGUF_TOKEN_NORMAL = 1,
    GGUF_TOKEN_UNKNOWN = 2,
    GGUF_TOKEN_CONTROL = 3,
    GGUF_TOKEN_USER_DEFINED = 4,
    GGUF_TOKEN_UNUSED = 5,
    GGUF_TOKEN_BYTE = 6
};

/* The keys of the tokenizer.json at `path`; vocab_size: rows of the model's embedding. */
ful_result tokenizer_gguf_put(const ful_alloc *a, const char *path, uint32_t vocab_size,
                              gguf_writer *w);

#endif
