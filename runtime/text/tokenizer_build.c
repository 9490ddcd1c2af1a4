/* A tokenizer's tables from its tokens, merges and added tokens, whatever file they come from. */
#include "text/tokenizer_build.h"

#include <stdlib.h>
#include <string.h>

#include "text/unicode.h"

/* The byte alphabet of byte-level BPE: bytes that print stand for themselves, the other 68 for
 * U+0100 onwards, in order. -1: the point stands for no byte. */
static int byte_of_point(uint32_t point)
{
    if ((point >= 0x21 && point <= 0x7E) || (point >= 0xA1 && point <= 0xFF && point != 0xAD))
        return (int)point;
    if (point < 0x100 || point > 0x143)
        return -1;
    int index = (int)point - 0x100;
    return index <= 0x20 ? index : index <= 0x42 ? 0x7F + (index - 0x21) : 0xAD;
}

static uint32_t bytes_hash(const char *text, size_t bytes)
{
    const uint64_t k = UINT64_C(0x9E3779B97F4A7C15);
    uint64_t h = (uint64_t)bytes * k;
    for (; bytes > 0;) {
        size_t n = bytes < 8 ? bytes : 8;
        uint64_t word = 0;
        memcpy(&word, text, n);
        h = (h ^ word) * k;
        h ^= h >> 29;
        text += n;
        bytes -= n;
    }
    return (uint32_t)(h ^ h >> 32);
}

int32_t token_table_find(const ful_tokenizer *t, const token_table *table, const char *text,
                         size_t bytes)
{
    if (table->n_slots == 0)
        return -1;
    uint32_t hash = bytes_hash(text, bytes);
    for (size_t i = hash & (table->n_slots - 1);; i = (i + 1) & (table->n_slots - 1)) {
        const token_slot *slot = &table->slots[i];
        if (slot->token < 0)
            return -1;
        const token_entry *entry = &t->tokens[slot->token];
        if (slot->hash == hash && entry->bytes == bytes &&
            memcmp(t->arena + entry->offset, text, bytes) == 0)
            return slot->token;
    }
}

static ful_result token_table_create(const ful_alloc *alloc, size_t n_tokens, token_table *out)
{
    size_t n = 16;
    while (n / 2 < n_tokens)
        n *= 2;
    out->slots = mem_array(alloc, n, sizeof *out->slots);
    if (out->slots == NULL)
        return mem_fail(n * sizeof *out->slots, "the vocabulary's hash table");
    memset(out->slots, 0xFF, n * sizeof *out->slots);
    out->n_slots = n;
    return FUL_OK;
}

static void token_table_add(ful_tokenizer *t, token_table *table, int32_t token)
{
    const token_entry *entry = &t->tokens[token];
    uint32_t hash = bytes_hash(t->arena + entry->offset, entry->bytes);
    size_t i = hash & (table->n_slots - 1);
    while (table->slots[i].token >= 0)
        i = (i + 1) & (table->n_slots - 1);
    table->slots[i] = (token_slot){.hash = hash, .token = token};
}

/* Room for `bytes` more behind the arena's end. */
static ful_result arena_reserve(ful_tokenizer *t, size_t bytes)
{
    if (bytes > UINT32_MAX - t->arena_bytes)
        return fail(FUL_ERR_FORMAT, "tokens of more than %u bytes in all", (unsigned)UINT32_MAX);
    void *p = t->arena;
    if (!mem_grow(&t->alloc, &p, &t->arena_capacity, t->arena_bytes + bytes, 1))
        return mem_fail(t->arena_bytes + bytes, "the tokens' bytes");
    t->arena = p;
    return FUL_OK;
}

/* Writes the bytes that `text` stands for in the byte alphabet; false if some character stands
 * for none. `out` has room for `bytes`. */
static bool alphabet_decode(const char *text, size_t bytes, char *out, size_t *out_bytes)
{
    size_t n = 0;
    for (size_t i = 0; i < bytes;) {
        uint32_t point;
        i += utf8_read(text + i, &point);
        int byte = byte_of_point(point);
        if (byte < 0)
            return false;
        out[n++] = (char)(unsigned char)byte;
    }
    *out_bytes = n;
    return true;
}

/* ---- the vocabulary ---- */

ful_result vocab_begin(ful_tokenizer *t, uint32_t vocab_size, size_t n_tokens)
{
    t->vocab_size = vocab_size;
    t->tokens = mem_zalloc(&t->alloc, vocab_size, sizeof *t->tokens);
    if (t->tokens == NULL)
        return mem_fail(vocab_size * sizeof *t->tokens, "the vocabulary");
    for (size_t b = 0; b < 256; b++)
        t->byte_token[b] = -1;
    return token_table_create(&t->alloc, n_tokens, &t->vocab);
}

ful_result vocab_add(ful_tokenizer *t, int32_t id, const char *text, size_t length)
{
    size_t bytes = 0;
    token_entry *entry = &t->tokens[id];
    if (entry->flags != TOKEN_NONE)
        return fail(FUL_ERR_FORMAT, "model.vocab: id %d of \"%.*s\" is another token's too",
                    (int)id, (int)(length < 80 ? length : 80), text);
    TRY(arena_reserve(t, length));
    char *out = t->arena + t->arena_bytes;
    bool known = alphabet_decode(text, length, out, &bytes);
    if (!known) { /* the reference decodes these to their own characters */
        memcpy(out, text, length);
        bytes = length;
    }
    *entry = (token_entry){.offset = (uint32_t)t->arena_bytes,
                           .bytes = (uint32_t)bytes,
                           .flags = known ? TOKEN_MODEL : TOKEN_FOREIGN};
    t->arena_bytes += bytes;
    if (!known || bytes == 0)
        return FUL_OK;
    if (token_table_find(t, &t->vocab, out, bytes) >= 0)
        return fail(FUL_ERR_FORMAT, "model.vocab: \"%.*s\" is there twice",
                    (int)(length < 80 ? length : 80), text);
    if (bytes == 1)
        t->byte_token[(unsigned char)out[0]] = id;
    token_table_add(t, &t->vocab, id);
    return FUL_OK;
}

ful_result vocab_end(ful_tokenizer *t)
{
    for (size_t b = 0; b < 256; b++)
        if (t->byte_token[b] < 0)
            return fail(FUL_ERR_UNSUPPORTED, "model.vocab: byte 0x%02X has no token", (unsigned)b);
    return FUL_OK;
}

ful_result merge_add(ful_tokenizer *t, size_t index, const char *const part[2],
                     const size_t length[2])
{
    size_t bytes[2] = {0, 0};
    TRY(arena_reserve(t, length[0] + length[1]));
    char *out = t->arena + t->arena_bytes; /* not kept */
    int32_t id[3] = {-1, -1, -1};
    if (alphabet_decode(part[0], length[0], out, &bytes[0]) &&
        alphabet_decode(part[1], length[1], out + bytes[0], &bytes[1])) {
        id[0] = token_table_find(t, &t->vocab, out, bytes[0]);
        id[1] = token_table_find(t, &t->vocab, out + bytes[0], bytes[1]);
        id[2] = token_table_find(t, &t->vocab, out, bytes[0] + bytes[1]);
    }
    if (id[0] < 0 || id[1] < 0 || id[2] < 0)
        return fail(FUL_ERR_FORMAT,
                    "model.merges[%zu] (\"%.*s\" + \"%.*s\"): %s is not in model.vocab", index,
                    (int)(length[0] < 80 ? length[0] : 80), part[0],
                    (int)(length[1] < 80 ? length[1] : 80), part[1],
                    id[0] < 0   ? "the left part"
                    : id[1] < 0 ? "the right part"
                                : "the result");
    bpe_table_add(&t->merges, id[0], id[1], (uint32_t)index, id[2]);
    return FUL_OK;
}

/* ---- added tokens ---- */

ful_result added_begin(ful_tokenizer *t, size_t count)
{
    if (count == 0)
        return FUL_OK;
    t->added = mem_array(&t->alloc, count, sizeof *t->added);
    if (t->added == NULL)
        return mem_fail(count * sizeof *t->added, "added tokens");
    return token_table_create(&t->alloc, count, &t->added_table);
}

ful_result added_add(ful_tokenizer *t, int32_t id, const char *text, size_t bytes)
{
    int shown = (int)(bytes < 80 ? bytes : 80); /* of the text, in error lines */
    if (token_table_find(t, &t->added_table, text, bytes) >= 0)
        return fail(FUL_ERR_FORMAT, "added token \"%.*s\" is listed twice", shown, text);
    TRY(arena_reserve(t, 2 * bytes));
    /* The vocabulary may hold the token as well, spelled in the byte alphabet. */
    char *out = t->arena + t->arena_bytes;
    token_entry *entry = &t->tokens[id];
    size_t decoded = 0;
    bool known = alphabet_decode(text, bytes, out + bytes, &decoded);
    int32_t in_vocab = known ? token_table_find(t, &t->vocab, out + bytes, decoded) : -1;
    bool foreign_twin = entry->flags == TOKEN_FOREIGN && entry->bytes == bytes &&
                        memcmp(t->arena + entry->offset, text, bytes) == 0;
    if (in_vocab >= 0 && in_vocab != id)
        return fail(FUL_ERR_FORMAT, "added token \"%.*s\" has id %d, but %d in model.vocab", shown,
                    text, (int)id, (int)in_vocab);
    if (entry->flags != TOKEN_NONE && in_vocab != id && !foreign_twin)
        return fail(FUL_ERR_FORMAT, "id %d of added token \"%.*s\" is another token's too", (int)id,
                    shown, text);
    if (entry->flags == TOKEN_NONE || entry->flags == TOKEN_FOREIGN) {
        memcpy(out, text, bytes);
        *entry = (token_entry){.offset = (uint32_t)t->arena_bytes, .bytes = (uint32_t)bytes};
        t->arena_bytes += bytes;
    } else if (entry->bytes != bytes || memcmp(t->arena + entry->offset, text, bytes) != 0) {
        /* One entry can't have two spellings, and merges may need the vocabulary's.
         */
        return fail(FUL_ERR_UNSUPPORTED,
                    "added token \"%.*s\" is also a merged token with other bytes", shown, text);
    }
    entry->flags |= TOKEN_ADDED;
    token_table_add(t, &t->added_table, id);
    t->added[t->added_count++] = id;
    return FUL_OK;
}

typedef struct added_key {
    unsigned char first;
    uint32_t bytes;
    int32_t token;
} added_key;

static int added_key_compare(const void *a, const void *b)
{
    const added_key *x = a, *y = b;
    if (x->first != y->first)
        return x->first < y->first ? -1 : 1;
    if (x->bytes != y->bytes)
        return x->bytes > y->bytes ? -1 : 1;
    return x->token < y->token ? -1 : x->token > y->token;
}

ful_result added_end(ful_tokenizer *t)
{
    size_t count = t->added_count;
    if (count == 0)
        return FUL_OK;
    added_key *keys = mem_array(&t->alloc, count, sizeof *keys);
    if (keys == NULL)
        return mem_fail(count * sizeof *keys, "added tokens");
    for (size_t i = 0; i < count; i++) {
        const token_entry *entry = &t->tokens[t->added[i]];
        keys[i] = (added_key){.first = (unsigned char)t->arena[entry->offset],
                              .bytes = entry->bytes,
                              .token = t->added[i]};
    }
    qsort(keys, count, sizeof *keys, added_key_compare);
    for (size_t i = 0; i < count; i++) {
        t->added[i] = keys[i].token;
        t->added_start[keys[i].first + 1]++;
    }
    for (size_t b = 0; b < 256; b++)
        t->added_start[b + 1] += t->added_start[b];
    mem_free(&t->alloc, keys);
    return FUL_OK;
}
