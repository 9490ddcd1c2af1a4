/* Text to tokens and back, and the chat formats of the published models.
 *
 * All text is UTF-8 with its size in bytes; zero bytes are ordinary. A tokenizer may be used from
 * several threads at once. Functions that fill an array take its capacity in *count (or *bytes)
 * and leave there what the whole result needs: with out NULL they only count; with too little
 * room they fail with FUL_ERR_ARGUMENT and the contents of out are undefined. */
#ifndef FULGUR_TOKENIZER_H
#define FULGUR_TOKENIZER_H

#include "fulgur/fulgur.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ful_tokenizer ful_tokenizer;

/* Reads a Hugging Face tokenizer.json (the file, or the folder that holds it): byte-level BPE
 * behind a Split regex, with NFC or no normalisation; or the keys of a GGUF file (or of the one in
 * a folder without tokenizer.json). A tokenizer.json's truncation and padding settings are ignored.
 * The instance must outlive the tokenizer. Errors: FUL_ERR_IO, FUL_ERR_FORMAT (malformed or
 * contradicting itself), FUL_ERR_UNSUPPORTED (another kind of tokenizer; the line names what
 * differs; or a library built without: FULGUR_TOKENIZER=OFF), FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_tokenizer_load(ful_tokenizer **out, ful_instance *instance,
                                      const char *path);
FUL_API void ful_tokenizer_destroy(ful_tokenizer **tokenizer);

/* Largest token id + 1, added tokens included. Models may have more rows than that. */
FUL_API uint32_t ful_tokenizer_vocab_size(const ful_tokenizer *tokenizer);

/* The id of the token that stands for exactly this text ("<end_of_sentence>", " the"), or -1.
 * Added tokens come first. */
FUL_API int32_t ful_tokenizer_token_id(const ful_tokenizer *tokenizer, const char *text,
                                       size_t bytes);

/* True for tokens that the file lists as added (marks such as <end_of_sentence>). */
FUL_API bool ful_tokenizer_is_added(const ful_tokenizer *tokenizer, int32_t token);

typedef enum ful_encode_flags {
    FUL_ENCODE_PLAIN = 0, /* "<end_of_sentence>" in the text is plain text */
    FUL_ENCODE_ADDED = 1  /* ... is the token of that name; not for strangers' text */
} ful_encode_flags;

/* Nothing is put in front or behind. Text that is not valid UTF-8 (surrogates, overlong and
 * truncated sequences included) is FUL_ERR_ARGUMENT with the byte offset; *count is then 0. Time
 * is O(n log n) whatever the text. `flags`: ful_encode_flags. */
FUL_API ful_result ful_tokenizer_encode(const ful_tokenizer *tokenizer, const char *text,
                                        size_t bytes, uint32_t flags, int32_t *out, size_t *count);

/* The bytes of one token, borrowed from the tokenizer; they need not be whole code points. NULL
 * with *bytes = 0 for ids that have no token. */
FUL_API const char *ful_tokenizer_token_bytes(const ful_tokenizer *tokenizer, int32_t token,
                                              size_t *bytes);

typedef enum ful_decode_flags {
    FUL_DECODE_ALL = 0,
    FUL_DECODE_SKIP_ADDED = 1 /* leave out added tokens */
} ful_decode_flags;

/* Joins the bytes of the tokens; no zero byte is put behind. What was encoded comes back in NFC,
 * as the reference normalises it: with the data of Unicode 9, so that marks assigned later keep
 * their place. An id without a token is FUL_ERR_ARGUMENT. `flags`: ful_decode_flags. */
FUL_API ful_result ful_tokenizer_decode(const ful_tokenizer *tokenizer, const int32_t *tokens,
                                        size_t n_tokens, uint32_t flags, char *out, size_t *bytes);

/* ---- streaming: code points that are spread over several tokens ---- */

/* Start from all zero. One thread at a time. */
typedef struct ful_utf8_stream {
    uint8_t held[4];
    uint32_t held_bytes;
} ful_utf8_stream;

/* Room that `out` must have for `bytes` of input. */
#define FUL_UTF8_STREAM_ROOM(bytes) (3 * ((size_t)(bytes) + 4))

/* Copies the bytes to out and returns how many were written: whole code points only. A sequence
 * that may still be completed is held back for the next call; what can't be UTF-8 any more
 * becomes U+FFFD. */
FUL_API size_t ful_utf8_stream_push(ful_utf8_stream *stream, const char *in, size_t bytes,
                                    char *out);
/* At the end: U+FFFD for what is still held back (out: 3 bytes), else nothing. */
FUL_API size_t ful_utf8_stream_finish(ful_utf8_stream *stream, char *out);

/* ---- chat ---- */

typedef enum ful_chat_format {
    FUL_CHAT_TEXT_01 = 1, /* MiniMax-Text-01's template */
    FUL_CHAT_M1 = 2       /* MiniMax-M1's own template (not the one other engines ship) */
} ful_chat_format;

typedef enum ful_chat_template {
    FUL_CHAT_TEMPLATE_NONE = 0,  /* the file has none; a tokenizer.json never has one */
    FUL_CHAT_TEMPLATE_KNOWN = 1, /* it writes one of the formats */
    FUL_CHAT_TEMPLATE_OTHER = 2  /* it writes another one; it is not used */
} ful_chat_template;

/* The format for conversations with the model this tokenizer belongs to: the one that the GGUF's
 * chat template writes, or, if there is none or another one, M1's if the tokenizer knows its mark,
 * else Text-01's. chat_template: what the file has (NULL allowed). */
FUL_API ful_chat_format ful_tokenizer_chat_format(const ful_tokenizer *tokenizer,
                                                  ful_chat_template *chat_template);

typedef enum ful_role {
    FUL_ROLE_SYSTEM = 1,
    FUL_ROLE_USER = 2,
    FUL_ROLE_ASSISTANT = 3,
    FUL_ROLE_TOOL = 4 /* a tool's result; name says which tool */
} ful_role;

typedef struct ful_chat_message {
    ful_role role;
    const char *text; /* zero-terminated; NULL = "" */
    const char *name; /* FUL_ROLE_TOOL only, required there */
} ful_chat_message;

/* M1: system messages are joined without a separator and come first; they make no turn if they
 * are empty; neighbouring tool messages are the results of one turn. Text-01: every message is a
 * turn where it stands, and the tools come behind the messages, a turn each. */
typedef struct ful_chat_params {
    size_t struct_size;
    ful_chat_format format;   /* required */
    const char *const *tools; /* descriptions of tools, each one line of JSON, put
                                 in as they are */
    size_t n_tools;
    bool no_reply;   /* leave out the head of the assistant's turn at the end */
    bool trust_text; /* ful_chat_encode: messages may hold marks like
                        <end_of_sentence> that are tokens */
} ful_chat_params;
#define ful_chat_params(...)                                                                       \
    (&(ful_chat_params){.struct_size = sizeof(ful_chat_params), __VA_ARGS__})

/* The prompt as text. Encoding it with FUL_ENCODE_ADDED lets a message forge turns; use
 * ful_chat_encode to make tokens. Errors: FUL_ERR_ARGUMENT. */
FUL_API ful_result ful_chat_text(const ful_chat_message *messages, size_t n_messages,
                                 const ful_chat_params *params, char *out, size_t *bytes);

/* The prompt as tokens. Only the format's own marks become added tokens, unless trust_text is
 * set: no message can forge a turn. For messages without marks this equals encoding
 * ful_chat_text's text with FUL_ENCODE_ADDED. Errors: FUL_ERR_ARGUMENT (text that is not UTF-8:
 * the offset counts in ful_chat_text's text), FUL_ERR_UNSUPPORTED (the tokenizer lacks one of the
 * marks), FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_chat_encode(const ful_tokenizer *tokenizer, const ful_chat_message *messages,
                                   size_t n_messages, const ful_chat_params *params, int32_t *out,
                                   size_t *count);

#ifdef __cplusplus
}
#endif

#endif
