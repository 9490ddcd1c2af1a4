/* tokenizer.json to tables. */
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "text/tokenizer.h"
#include "text/unicode.h"

enum { MAX_FILE_BYTES = 256 << 20 };

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

/* ---- small views on JSON ---- */

static bool json_absent(const json_t *value)
{
    return value == NULL || json_is_null(value);
}

static const char *json_type_field(const json_t *object)
{
    const char *type = json_string_value(json_object_get(object, "type"));
    return type ? type : "(no type)";
}

static bool json_is_type(const json_t *object, const char *type)
{
    return strcmp(json_type_field(object), type) == 0;
}

static bool json_empty_text(const json_t *value)
{
    return json_absent(value) || (json_is_string(value) && json_string_length(value) == 0);
}

/* ---- the parts ---- */

static ful_result normalizer_read(ful_tokenizer *t, const json_t *normalizer)
{
    if (json_absent(normalizer))
        return FUL_OK;
    if (json_is_type(normalizer, "NFC")) {
        t->normalise = true;
        return FUL_OK;
    }
    const json_t *parts = json_object_get(normalizer, "normalizers");
    if (!json_is_type(normalizer, "Sequence") || !json_is_array(parts))
        return fail(FUL_ERR_UNSUPPORTED, "normalizer %s; only NFC is supported",
                    json_type_field(normalizer));
    for (size_t i = 0; i < json_array_size(parts); i++) {
        const json_t *part = json_array_get(parts, i);
        if (!json_is_type(part, "NFC"))
            return fail(FUL_ERR_UNSUPPORTED, "normalizer %s in a Sequence; only NFC is supported",
                        json_type_field(part));
        t->normalise = true;
    }
    return FUL_OK;
}

static ful_result split_read(ful_tokenizer *t, const json_t *split)
{
    const json_t *pattern = json_object_get(json_object_get(split, "pattern"), "Regex");
    if (!json_is_string(pattern))
        return fail(FUL_ERR_UNSUPPORTED, "pre_tokenizer Split without pattern.Regex");
    const char *behavior = json_string_value(json_object_get(split, "behavior"));
    bool invert = json_is_true(json_object_get(split, "invert"));
    bool isolated = behavior != NULL && strcmp(behavior, "Isolated") == 0;
    bool removed = behavior != NULL && strcmp(behavior, "Removed") == 0 && invert;
    if (!isolated && !removed)
        return fail(FUL_ERR_UNSUPPORTED,
                    "pre_tokenizer Split with behavior %s, invert %s; supported "
                    "are Removed with "
                    "invert true, and Isolated",
                    behavior ? behavior : "(none)", invert ? "true" : "false");
    return splitter_create(&t->alloc, json_string_value(pattern), json_string_length(pattern),
                           isolated, &t->split);
}

static ful_result pre_tokenizer_read(ful_tokenizer *t, const json_t *pre)
{
    const json_t *parts = json_object_get(pre, "pretokenizers");
    if (!json_is_type(pre, "Sequence") || json_array_size(parts) != 2 ||
        !json_is_type(json_array_get(parts, 0), "Split") ||
        !json_is_type(json_array_get(parts, 1), "ByteLevel"))
        return fail(FUL_ERR_UNSUPPORTED,
                    "pre_tokenizer %s; only Sequence[Split, ByteLevel] is supported",
                    json_absent(pre) ? "null" : json_type_field(pre));
    const json_t *level = json_array_get(parts, 1);
    const json_t *use_regex = json_object_get(level, "use_regex");
    /* Absent means true for both, in the reference. */
    if (!json_is_false(use_regex))
        return fail(FUL_ERR_UNSUPPORTED, "pre_tokenizer ByteLevel with use_regex true");
    if (!json_is_false(json_object_get(level, "add_prefix_space")))
        return fail(FUL_ERR_UNSUPPORTED, "pre_tokenizer ByteLevel with add_prefix_space true");
    return split_read(t, json_array_get(parts, 0));
}

/* Where byte-level BPE can't differ, e.g. unk_token when every byte has a token, nothing is
 * asked. */
static ful_result model_check(ful_tokenizer *t, const json_t *root, const json_t *model)
{
    if (!json_is_object(model))
        return fail(FUL_ERR_FORMAT, "no object \"model\"");
    /* Old files leave the type out. */
    if (json_object_get(model, "type") != NULL && !json_is_type(model, "BPE"))
        return fail(FUL_ERR_UNSUPPORTED, "model type %s; only BPE is supported",
                    json_type_field(model));
    const json_t *dropout = json_object_get(model, "dropout");
    if (!json_absent(dropout) && json_number_value(dropout) != 0.0)
        return fail(FUL_ERR_UNSUPPORTED, "model.dropout %g", json_number_value(dropout));
    if (!json_empty_text(json_object_get(model, "continuing_subword_prefix")))
        return fail(FUL_ERR_UNSUPPORTED, "model.continuing_subword_prefix");
    if (!json_empty_text(json_object_get(model, "end_of_word_suffix")))
        return fail(FUL_ERR_UNSUPPORTED, "model.end_of_word_suffix");
    t->ignore_merges = json_is_true(json_object_get(model, "ignore_merges"));
    const json_t *post = json_object_get(root, "post_processor");
    if (!json_absent(post) && !json_is_type(post, "ByteLevel"))
        return fail(FUL_ERR_UNSUPPORTED, "post_processor %s", json_type_field(post));
    const json_t *decoder = json_object_get(root, "decoder");
    if (!json_absent(decoder) && !json_is_type(decoder, "ByteLevel"))
        return fail(FUL_ERR_UNSUPPORTED, "decoder %s", json_type_field(decoder));
    return FUL_OK;
}

static ful_result id_check(json_int_t id, const char *what)
{
    if (id < 0 || id > TOKENIZER_MAX_ID)
        return fail(FUL_ERR_FORMAT, "id %lld of \"%.80s\"; ids go from 0 to %d", (long long)id,
                    what, (int)TOKENIZER_MAX_ID);
    return FUL_OK;
}

static ful_result ids_measure(ful_tokenizer *t, json_t *vocab, const json_t *added)
{
    json_int_t largest = -1;
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value)
    {
        if (!json_is_integer(value))
            return fail(FUL_ERR_FORMAT, "model.vocab: the id of \"%.80s\" is not an integer", key);
        TRY(id_check(json_integer_value(value), key));
        if (json_integer_value(value) > largest)
            largest = json_integer_value(value);
    }
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i);
        const char *content = json_string_value(json_object_get(token, "content"));
        const json_t *id = json_object_get(token, "id");
        if (content == NULL || content[0] == '\0' || !json_is_integer(id))
            return fail(FUL_ERR_FORMAT, "added_tokens[%zu] has no content or no id", i);
        TRY(id_check(json_integer_value(id), content));
        if (json_integer_value(id) > largest)
            largest = json_integer_value(id);
    }
    t->vocab_size = (uint32_t)(largest + 1);
    t->tokens = mem_zalloc(&t->alloc, t->vocab_size, sizeof *t->tokens);
    return t->tokens ? FUL_OK : mem_fail(t->vocab_size * sizeof *t->tokens, "the vocabulary");
}

static ful_result vocab_read(ful_tokenizer *t, json_t *vocab)
{
    TRY(token_table_create(&t->alloc, json_object_size(vocab), &t->vocab));
    for (size_t b = 0; b < 256; b++)
        t->byte_token[b] = -1;
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value)
    {
        int32_t id = (int32_t)json_integer_value(value);
        size_t length = strlen(key), bytes = 0;
        token_entry *entry = &t->tokens[id];
        if (entry->flags != TOKEN_NONE)
            return fail(FUL_ERR_FORMAT, "model.vocab: id %d of \"%.80s\" is another token's too",
                        (int)id, key);
        TRY(arena_reserve(t, length));
        char *out = t->arena + t->arena_bytes;
        bool known = alphabet_decode(key, length, out, &bytes);
        if (!known) { /* the reference decodes these to their own characters */
            memcpy(out, key, length);
            bytes = length;
        }
        *entry = (token_entry){.offset = (uint32_t)t->arena_bytes,
                               .bytes = (uint32_t)bytes,
                               .flags = known ? TOKEN_MODEL : TOKEN_FOREIGN};
        t->arena_bytes += bytes;
        if (!known || bytes == 0)
            continue;
        if (bytes == 1)
            t->byte_token[(unsigned char)out[0]] = id;
        token_table_add(t, &t->vocab, id);
    }
    for (size_t b = 0; b < 256; b++)
        if (t->byte_token[b] < 0)
            return fail(FUL_ERR_UNSUPPORTED, "model.vocab: byte 0x%02X has no token", (unsigned)b);
    return FUL_OK;
}

/* Both spellings: "left right" and ["left", "right"]. */
static ful_result merge_parts(const json_t *merge, size_t index, const char *part[2],
                              size_t length[2])
{
    if (json_is_array(merge) && json_array_size(merge) == 2) {
        for (size_t i = 0; i < 2; i++) {
            const json_t *text = json_array_get(merge, i);
            part[i] = json_string_value(text);
            length[i] = json_string_length(text);
        }
        if (part[0] != NULL && part[1] != NULL)
            return FUL_OK;
    } else if (json_is_string(merge)) {
        const char *text = json_string_value(merge), *space = strchr(text, ' ');
        if (space != NULL && strchr(space + 1, ' ') == NULL) {
            part[0] = text;
            length[0] = (size_t)(space - text);
            part[1] = space + 1;
            length[1] = json_string_length(merge) - length[0] - 1;
            return FUL_OK;
        }
    }
    return fail(FUL_ERR_FORMAT,
                "model.merges[%zu] is neither \"left right\" nor [\"left\", \"right\"]", index);
}

static ful_result merges_read(ful_tokenizer *t, const json_t *merges)
{
    size_t count = json_array_size(merges);
    TRY(bpe_table_create(&t->alloc, count, &t->merges));
    for (size_t i = 0; i < count; i++) {
        const char *part[2] = {NULL, NULL};
        size_t length[2] = {0, 0}, bytes[2] = {0, 0};
        TRY(merge_parts(json_array_get(merges, i), i, part, length));
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
                        "model.merges[%zu] (\"%.*s\" + \"%.*s\"): %s is not in model.vocab", i,
                        (int)(length[0] < 80 ? length[0] : 80), part[0],
                        (int)(length[1] < 80 ? length[1] : 80), part[1],
                        id[0] < 0   ? "the left part"
                        : id[1] < 0 ? "the right part"
                                    : "the result");
        bpe_table_add(&t->merges, id[0], id[1], (uint32_t)i, id[2]);
    }
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

static ful_result added_token_read(ful_tokenizer *t, const json_t *added, added_key *key)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip", "normalized"};
    const json_t *content = json_object_get(added, "content");
    const char *text = json_string_value(content);
    size_t bytes = json_string_length(content);
    int32_t id = (int32_t)json_integer_value(json_object_get(added, "id"));
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++)
        if (json_is_true(json_object_get(added, refused[i])))
            return fail(FUL_ERR_UNSUPPORTED, "added token \"%.80s\" with %s true", text,
                        refused[i]);
    if (token_table_find(t, &t->added_table, text, bytes) >= 0)
        return fail(FUL_ERR_FORMAT, "added token \"%.80s\" is listed twice", text);
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
        return fail(FUL_ERR_FORMAT, "added token \"%.80s\" has id %d, but %d in model.vocab", text,
                    (int)id, (int)in_vocab);
    if (entry->flags != TOKEN_NONE && in_vocab != id && !foreign_twin)
        return fail(FUL_ERR_FORMAT, "id %d of added token \"%.80s\" is another token's too",
                    (int)id, text);
    if (entry->flags == TOKEN_NONE || entry->flags == TOKEN_FOREIGN) {
        memcpy(out, text, bytes);
        *entry = (token_entry){.offset = (uint32_t)t->arena_bytes, .bytes = (uint32_t)bytes};
        t->arena_bytes += bytes;
    } else if (entry->bytes != bytes || memcmp(t->arena + entry->offset, text, bytes) != 0) {
        /* One entry can't have two spellings, and merges may need the vocabulary's.
         */
        return fail(FUL_ERR_UNSUPPORTED,
                    "added token \"%.80s\" is also a merged token with other bytes", text);
    }
    entry->flags |= TOKEN_ADDED;
    token_table_add(t, &t->added_table, id);
    *key = (added_key){.first = (unsigned char)text[0], .bytes = (uint32_t)bytes, .token = id};
    return FUL_OK;
}

static ful_result added_tokens_read(ful_tokenizer *t, const json_t *added)
{
    size_t count = json_array_size(added);
    if (count == 0)
        return FUL_OK;
    TRY(token_table_create(&t->alloc, count, &t->added_table));
    added_key *keys = mem_array(&t->alloc, count, sizeof *keys);
    t->added = mem_array(&t->alloc, count, sizeof *t->added);
    ful_result result = keys && t->added ? FUL_OK : mem_fail(count * sizeof *keys, "added tokens");
    for (size_t i = 0; i < count && result == FUL_OK; i++)
        result = added_token_read(t, json_array_get(added, i), &keys[i]);
    if (result == FUL_OK) {
        qsort(keys, count, sizeof *keys, added_key_compare);
        for (size_t i = 0; i < count; i++) {
            t->added[i] = keys[i].token;
            t->added_start[keys[i].first + 1]++;
        }
        for (size_t b = 0; b < 256; b++)
            t->added_start[b + 1] += t->added_start[b];
        t->added_count = (uint32_t)count;
    }
    mem_free(&t->alloc, keys);
    return result;
}

static ful_result root_read(ful_tokenizer *t, const json_t *root)
{
    const json_t *model = json_object_get(root, "model");
    const json_t *added = json_object_get(root, "added_tokens");
    TRY(model_check(t, root, model));
    json_t *vocab = json_object_get(model, "vocab");
    const json_t *merges = json_object_get(model, "merges");
    if (!json_is_object(vocab) || !json_is_array(merges))
        return fail(FUL_ERR_FORMAT, "model.vocab is no object, or model.merges no array");
    if (!json_absent(added) && !json_is_array(added))
        return fail(FUL_ERR_FORMAT, "added_tokens is no array");
    TRY(normalizer_read(t, json_object_get(root, "normalizer")));
    TRY(pre_tokenizer_read(t, json_object_get(root, "pre_tokenizer")));
    TRY(ids_measure(t, vocab, added));
    TRY(vocab_read(t, vocab));
    TRY(merges_read(t, merges));
    return added_tokens_read(t, added);
}

ful_result tokenizer_create(ful_tokenizer **out, const ful_alloc *alloc, const char *path)
{
    *out = NULL;
    ful_alloc functions = mem_functions(alloc);
    ful_tokenizer *t = mem_zalloc(&functions, 1, sizeof *t);
    if (t == NULL)
        return mem_fail(sizeof *t, "the tokenizer");
    t->alloc = functions;
    char *joined = NULL;
    ful_result result = FUL_OK;
    if (path_is_dir(path)) {
        joined = path_join(&t->alloc, path, "tokenizer.json");
        if (joined == NULL)
            result = mem_fail(strlen(path), "a path");
    }
    const char *file = joined ? joined : path;
    json_t *root = NULL;
    if (result == FUL_OK)
        result = json_load_path(&t->alloc, file, MAX_FILE_BYTES, &root);
    if (result == FUL_OK) {
        result = root_read(t, root);
        if (result != FUL_OK)
            fail_context(result, "%s", file);
    }
    json_decref(root);
    mem_free(&t->alloc, joined);
    if (result != FUL_OK)
        ful_tokenizer_destroy(&t);
    *out = t;
    return result;
}
