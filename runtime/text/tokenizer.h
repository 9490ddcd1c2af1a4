/* The tokenizer's tables. Built by tokenizer_build.c, read by the rest of the room. */
#ifndef FULGUR_TEXT_TOKENIZER_H
#define FULGUR_TEXT_TOKENIZER_H

#include "fulgur/tokenizer.h"
#include "text/bpe.h"
#include "text/pretokenize.h"

enum {
    TOKENIZER_MAX_ID = (1 << 24) - 1, /* bounds what a hostile file can make us allocate */
    TOKEN_NONE = 0,
    TOKEN_MODEL = 1,   /* of the vocabulary */
    TOKEN_FOREIGN = 2, /* of the vocabulary, with characters that stand for no
                          byte: never made by encoding */
    TOKEN_ADDED = 4
};

typedef struct token_entry {
    uint32_t offset, bytes; /* in the arena */
    uint32_t flags;
} token_entry;

typedef struct token_slot {
    uint32_t hash;
    int32_t token; /* -1: empty */
} token_slot;

/* Bytes of tokens to ids; open-addressed, a power of two of slots. */
typedef struct token_table {
    token_slot *slots;
    size_t n_slots;
} token_table;

struct ful_tokenizer {
    ful_alloc alloc;
    token_entry *tokens; /* [vocab_size] */
    uint32_t vocab_size;
    char *arena; /* every token's bytes */
    size_t arena_bytes, arena_capacity;
    token_table vocab; /* TOKEN_MODEL */
    token_table added_table;
    int32_t *added; /* grouped by first byte, longest first */
    uint32_t added_count;
    uint32_t added_start[257]; /* per first byte, into added */
    int32_t byte_token[256];
    bpe_table merges;
    splitter *split;
    bool normalise;     /* NFC */
    bool ignore_merges; /* a piece that is a token stays whole */
    bool has_template;
    ful_chat_format template_format; /* 0: none of those known */
};

/* The format that a chat template writes; 0 if it is none of those known. */
ful_chat_format chat_template_format(const char *text, size_t bytes);

/* ful_tokenizer_load with an allocator in place of the instance. */
ful_result tokenizer_create(ful_tokenizer **out, const ful_alloc *alloc, const char *path);

/* -1 if there is none. */
int32_t token_table_find(const ful_tokenizer *t, const token_table *table, const char *text,
                         size_t bytes);

/* A part of a text: one token as it is, or text to encode on its own. */
typedef struct text_run {
    const char *text;
    size_t bytes;
    int32_t token; /* -1: text */
} text_run;

/* Encodes valid UTF-8; counts as ful_tokenizer_encode does. */
ful_result tokenizer_encode_runs(const ful_tokenizer *t, const text_run *runs, size_t n_runs,
                                 uint32_t flags, int32_t *out, size_t *count);
/* FUL_ERR_ARGUMENT with the offset unless the text is UTF-8. */
ful_result text_check(const char *text, size_t bytes);

#endif
