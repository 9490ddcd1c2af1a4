#include "text/tokenizer.h"

#include <string.h>

#include "text/unicode.h"

typedef struct encoder {
    const ful_tokenizer *tokenizer;
    splitter_match *match;
    nfc_buffer nfc;
    bpe_scratch bpe;
    int32_t *piece; /* tokens of the piece at hand */
    size_t piece_capacity;
    int32_t *out;
    size_t capacity, count; /* count goes on when the capacity is used up */
} encoder;

void ful_tokenizer_destroy(ful_tokenizer **tokenizer)
{
    if (tokenizer == NULL || *tokenizer == NULL)
        return;
    ful_tokenizer *t = *tokenizer;
    *tokenizer = NULL;
    ful_alloc alloc = t->alloc;
    splitter_destroy(&t->split);
    bpe_table_destroy(&alloc, &t->merges);
    mem_free(&alloc, t->tokens);
    mem_free(&alloc, t->arena);
    mem_free(&alloc, t->vocab.slots);
    mem_free(&alloc, t->added_table.slots);
    mem_free(&alloc, t->added);
    mem_free(&alloc, t);
}

uint32_t ful_tokenizer_vocab_size(const ful_tokenizer *t)
{
    return t ? t->vocab_size : 0;
}

int32_t ful_tokenizer_token_id(const ful_tokenizer *t, const char *text, size_t bytes)
{
    if (t == NULL || text == NULL)
        return -1;
    int32_t token = token_table_find(t, &t->added_table, text, bytes);
    return token >= 0 ? token : token_table_find(t, &t->vocab, text, bytes);
}

static const token_entry *token_at(const ful_tokenizer *t, int32_t token)
{
    if (t == NULL || token < 0 || (uint32_t)token >= t->vocab_size ||
        t->tokens[token].flags == TOKEN_NONE)
        return NULL;
    return &t->tokens[token];
}

bool ful_tokenizer_is_added(const ful_tokenizer *t, int32_t token)
{
    const token_entry *entry = token_at(t, token);
    return entry != NULL && (entry->flags & TOKEN_ADDED) != 0;
}

const char *ful_tokenizer_token_bytes(const ful_tokenizer *t, int32_t token, size_t *bytes)
{
    const token_entry *entry = token_at(t, token);
    *bytes = entry ? entry->bytes : 0;
    return entry ? t->arena + entry->offset : NULL;
}

/* ---- encoding ---- */

static void tokens_put(encoder *e, const int32_t *tokens, size_t n)
{
    if (e->count < e->capacity) {
        size_t room = e->capacity - e->count;
        memcpy(e->out + e->count, tokens, (n < room ? n : room) * sizeof *tokens);
    }
    e->count += n;
}

static ful_result piece_encode(encoder *e, const char *text, size_t bytes)
{
    const ful_tokenizer *t = e->tokenizer;
    if (t->ignore_merges) {
        int32_t whole = token_table_find(t, &t->vocab, text, bytes);
        if (whole >= 0) {
            tokens_put(e, &whole, 1);
            return FUL_OK;
        }
    }
    void *p = e->piece;
    if (!mem_grow(&t->alloc, &p, &e->piece_capacity, bytes, sizeof *e->piece))
        return mem_fail(bytes * sizeof *e->piece, "a piece of text");
    e->piece = p;
    for (size_t i = 0; i < bytes; i++)
        e->piece[i] = t->byte_token[(unsigned char)text[i]];
    size_t n = bytes;
    TRY(bpe_merge_all(&t->merges, &e->bpe, e->piece, &n));
    tokens_put(e, e->piece, n);
    return FUL_OK;
}

/* Text between added tokens. */
static ful_result plain_encode(encoder *e, const char *text, size_t bytes)
{
    const ful_tokenizer *t = e->tokenizer;
    if (bytes == 0)
        return FUL_OK;
    if (t->normalise)
        TRY(nfc_apply(&e->nfc, text, bytes, &text, &bytes));
    for (size_t at = 0;;) {
        size_t start, end;
        TRY(splitter_next(t->split, e->match, text, bytes, &at, &start, &end));
        if (start == end)
            return FUL_OK;
        TRY(piece_encode(e, text + start, end - start));
    }
}

/* The longest added token at this place, or -1. */
static int32_t added_at(const ful_tokenizer *t, const char *text, size_t bytes)
{
    unsigned char first = (unsigned char)text[0];
    for (uint32_t i = t->added_start[first]; i < t->added_start[first + 1]; i++) {
        const token_entry *entry = &t->tokens[t->added[i]];
        if (entry->bytes <= bytes && memcmp(t->arena + entry->offset, text, entry->bytes) == 0)
            return t->added[i];
    }
    return -1;
}

static ful_result marked_encode(encoder *e, const char *text, size_t bytes)
{
    const ful_tokenizer *t = e->tokenizer;
    size_t start = 0;
    for (size_t i = 0; i < bytes;) {
        int32_t token = added_at(t, text + i, bytes - i);
        if (token < 0) {
            i++;
            continue;
        }
        TRY(plain_encode(e, text + start, i - start));
        tokens_put(e, &token, 1);
        i += t->tokens[token].bytes;
        start = i;
    }
    return plain_encode(e, text + start, bytes - start);
}

ful_result tokenizer_encode_runs(const ful_tokenizer *t, const text_run *runs, size_t n_runs,
                                 uint32_t flags, int32_t *out, size_t *count)
{
    size_t capacity = out ? *count : 0;
    *count = 0;
    encoder e = {.tokenizer = t,
                 .nfc = {.alloc = &t->alloc},
                 .bpe = {.alloc = &t->alloc},
                 .out = out,
                 .capacity = capacity};
    ful_result result = splitter_match_create(t->split, &e.match);
    for (size_t i = 0; i < n_runs && result == FUL_OK; i++) {
        if (runs[i].token >= 0)
            tokens_put(&e, &runs[i].token, 1);
        else if (flags & FUL_ENCODE_ADDED)
            result = marked_encode(&e, runs[i].text, runs[i].bytes);
        else
            result = plain_encode(&e, runs[i].text, runs[i].bytes);
    }
    splitter_match_destroy(&e.match);
    nfc_release(&e.nfc);
    bpe_scratch_release(&e.bpe);
    mem_free(&t->alloc, e.piece);
    if (result != FUL_OK)
        return result;
    *count = e.count;
    if (out != NULL && e.count > capacity)
        return fail(FUL_ERR_ARGUMENT, "room for %zu tokens, %zu are needed", capacity, e.count);
    return FUL_OK;
}

ful_result text_check(const char *text, size_t bytes)
{
    size_t offset;
    if (utf8_valid(text, bytes, &offset))
        return FUL_OK;
    return fail(FUL_ERR_ARGUMENT, "text is not UTF-8 at byte %zu (0x%02X)", offset,
                (unsigned)(unsigned char)text[offset]);
}

ful_result ful_tokenizer_encode(const ful_tokenizer *t, const char *text, size_t bytes,
                                uint32_t flags, int32_t *out, size_t *count)
{
    if (t == NULL || count == NULL || (text == NULL && bytes > 0))
        return fail(FUL_ERR_ARGUMENT, "ful_tokenizer_encode: tokenizer, text or count is NULL");
    ful_result result = text_check(text, bytes);
    if (result == FUL_OK && (flags & ~(uint32_t)FUL_ENCODE_ADDED) != 0)
        result =
            fail(FUL_ERR_ARGUMENT, "ful_tokenizer_encode: unknown flags 0x%x", (unsigned)flags);
    if (result != FUL_OK) {
        *count = 0;
        return result;
    }
    text_run run = {.text = text, .bytes = bytes, .token = -1};
    return tokenizer_encode_runs(t, &run, 1, flags, out, count);
}

/* ---- decoding ---- */

ful_result ful_tokenizer_decode(const ful_tokenizer *t, const int32_t *tokens, size_t n_tokens,
                                uint32_t flags, char *out, size_t *bytes)
{
    if (t == NULL || bytes == NULL || (tokens == NULL && n_tokens > 0))
        return fail(FUL_ERR_ARGUMENT, "ful_tokenizer_decode: tokenizer, tokens or bytes is NULL");
    size_t capacity = out ? *bytes : 0, n = 0;
    *bytes = 0;
    if ((flags & ~(uint32_t)FUL_DECODE_SKIP_ADDED) != 0)
        return fail(FUL_ERR_ARGUMENT, "ful_tokenizer_decode: unknown flags 0x%x", (unsigned)flags);
    for (size_t i = 0; i < n_tokens; i++) {
        const token_entry *entry = token_at(t, tokens[i]);
        if (entry == NULL)
            return fail(FUL_ERR_ARGUMENT, "tokens[%zu] = %d is no token; ids end at %u", i,
                        (int)tokens[i], (unsigned)t->vocab_size - 1u);
        if ((flags & FUL_DECODE_SKIP_ADDED) && (entry->flags & TOKEN_ADDED))
            continue;
        if (out != NULL && n <= capacity && entry->bytes <= capacity - n)
            memcpy(out + n, t->arena + entry->offset, entry->bytes);
        n += entry->bytes;
    }
    *bytes = n;
    if (out != NULL && n > capacity)
        return fail(FUL_ERR_ARGUMENT, "ful_tokenizer_decode: room for %zu bytes, %zu are needed",
                    capacity, n);
    return FUL_OK;
}
