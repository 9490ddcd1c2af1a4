/* The keys of a GGUF to a tokenizer's tables. */
#include "text/tokenizer_gguf.h"

#include <string.h>

#include "text/tokenizer_build.h"
#include "text/unicode.h"

typedef struct key_tokens {
    const gguf_keys *keys;
    const gguf_value *texts, *types; /* types: NULL if all are ordinary */
} key_tokens;

static ful_result array_get(const gguf_keys *keys, const char *key, bool texts,
                            const gguf_value **out)
{
    char words[128];
    const gguf_value *v = *out = gguf_keys_find(keys, key);
    if (!v)
        return fail(FUL_ERR_FORMAT, "key '%s' is missing", key);
    if (!v->is_array || (v->kind == GGUF_TEXT) != texts)
        return fail(FUL_ERR_FORMAT, "key '%s' is %s, not an array of %s", key,
                    gguf_value_words(v, words, sizeof words), texts ? "texts" : "numbers");
    return FUL_OK;
}

static ful_result text_get(const char *key, uint64_t index, gguf_text text)
{
    size_t offset;
    if (utf8_valid(text.data, text.bytes, &offset))
        return FUL_OK;
    return fail(FUL_ERR_FORMAT, "key '%s': item %llu is not UTF-8 at byte %zu", key,
                (unsigned long long)index, offset);
}

/* What a token is: of the vocabulary, added, or (TOKEN_NONE) nothing that text becomes. */
static ful_result kind_get(const key_tokens *k, uint64_t index, uint32_t *out)
{
    int64_t type = GGUF_TOKEN_NORMAL;
    if (k->types && !gguf_integer(k->types, index, &type))
        return fail(FUL_ERR_FORMAT, "key 'tokenizer.ggml.token_type' has no number for token %llu",
                    (unsigned long long)index);
    switch (type) {
    case GGUF_TOKEN_NORMAL:
        *out = TOKEN_MODEL;
        return FUL_OK;
    case GGUF_TOKEN_UNKNOWN:
    case GGUF_TOKEN_CONTROL:
    case GGUF_TOKEN_USER_DEFINED:
        *out = TOKEN_ADDED;
        return FUL_OK;
    case GGUF_TOKEN_UNUSED:
        *out = TOKEN_NONE;
        return FUL_OK;
    default:
        return fail(FUL_ERR_UNSUPPORTED,
                    "key 'tokenizer.ggml.token_type': token %llu has type %lld",
                    (unsigned long long)index, (long long)type);
    }
}

static ful_result tokens_find(key_tokens *k)
{
    static const char key[] = "tokenizer.ggml.tokens", types[] = "tokenizer.ggml.token_type";
    TRY(array_get(k->keys, key, true, &k->texts));
    if (k->texts->count == 0 || k->texts->count > TOKENIZER_MAX_ID)
        return fail(FUL_ERR_FORMAT, "key '%s' has %llu items, it must have 1 to %d", key,
                    (unsigned long long)k->texts->count, (int)TOKENIZER_MAX_ID);
    if (!gguf_keys_find(k->keys, types))
        return FUL_OK;
    TRY(array_get(k->keys, types, false, &k->types));
    if (k->types->count != k->texts->count)
        return fail(FUL_ERR_FORMAT, "key '%s' has %llu items, '%s' has %llu", types,
                    (unsigned long long)k->types->count, key, (unsigned long long)k->texts->count);
    return FUL_OK;
}

static ful_result tokens_read(ful_tokenizer *t, const key_tokens *k)
{
    size_t last = 0, n_model = 0, n_added = 0;
    uint32_t kind = TOKEN_NONE;
    gguf_text text;
    for (uint64_t i = 0; i < k->texts->count; i++) {
        TRY(kind_get(k, i, &kind));
        n_model += kind == TOKEN_MODEL;
        n_added += kind == TOKEN_ADDED;
        last = kind == TOKEN_NONE ? last : (size_t)i;
    }
    TRY(vocab_begin(t, (uint32_t)last + 1, n_model));
    TRY(added_begin(t, n_added));
    const uint8_t *at = k->texts->data;
    for (uint64_t i = 0; i <= last; i++) {
        at = gguf_text_next(at, &text);
        TRY(kind_get(k, i, &kind));
        if (kind == TOKEN_NONE)
            continue;
        TRY(text_get(k->texts->key, i, text));
        if (kind == TOKEN_MODEL)
            TRY(vocab_add(t, (int32_t)i, text.data, text.bytes));
    }
    TRY(vocab_end(t));
    /* After the vocabulary, which may spell them too. */
    at = k->texts->data;
    for (uint64_t i = 0; i <= last; i++) {
        at = gguf_text_next(at, &text);
        TRY(kind_get(k, i, &kind));
        if (kind != TOKEN_ADDED)
            continue;
        if (text.bytes == 0)
            return fail(FUL_ERR_FORMAT, "key '%s': token %llu is empty", k->texts->key,
                        (unsigned long long)i);
        TRY(added_add(t, (int32_t)i, text.data, text.bytes));
    }
    return added_end(t);
}

static ful_result merges_read(ful_tokenizer *t, const gguf_keys *keys)
{
    const gguf_value *merges;
    gguf_text text;
    TRY(array_get(keys, "tokenizer.ggml.merges", true, &merges));
    TRY(bpe_table_create(&t->alloc, (size_t)merges->count, &t->merges));
    const uint8_t *at = merges->data;
    for (uint64_t i = 0; i < merges->count; i++) {
        at = gguf_text_next(at, &text);
        TRY(text_get(merges->key, i, text));
        const char *space = memchr(text.data, ' ', text.bytes);
        size_t left = space ? (size_t)(space - text.data) : 0;
        size_t right = space ? text.bytes - left - 1 : 0;
        if (!space || memchr(space + 1, ' ', right))
            return fail(FUL_ERR_FORMAT, "key '%s': item %llu is not \"left right\"", merges->key,
                        (unsigned long long)i);
        const char *const part[2] = {text.data, space + 1};
        const size_t length[2] = {left, right};
        TRY(merge_add(t, (size_t)i, part, length));
    }
    return FUL_OK;
}

static ful_result json_read(ful_tokenizer *t, const gguf_keys *keys, const gguf_value *value)
{
    gguf_text text;
    json_t *root;
    gguf_text_next(value->data, &text);
    TRY(json_parse(gguf_keys_path(keys), text.data, text.bytes, &root));
    ful_result result = tokenizer_read_json(t, root, TOKENIZER_GGUF_JSON);
    json_decref(root);
    return result;
}

static ful_result keys_read(ful_tokenizer *t, const gguf_keys *keys)
{
    static const char model_key[] = "tokenizer.ggml.model", pre_key[] = "tokenizer.ggml.pre";
    char words[128];
    const gguf_value *model = gguf_keys_find(keys, model_key), *pre = gguf_keys_find(keys, pre_key),
                     *json = gguf_keys_one(keys, TOKENIZER_GGUF_JSON);
    bool plain = gguf_text_is(model, "gpt2") && gguf_text_is(pre, TOKENIZER_GGUF_PRE);
    if (!plain && json && json->kind == GGUF_TEXT)
        return json_read(t, keys, json);
    if (!model || gguf_text_is(model, "no_vocab"))
        return fail(FUL_ERR_UNSUPPORTED, "the file has no tokenizer (key '%s' is %s)", model_key,
                    gguf_value_words(model, words, sizeof words));
    if (!gguf_text_is(model, "gpt2"))
        return fail(FUL_ERR_UNSUPPORTED, "key '%s' is %s; only gpt2 is supported", model_key,
                    gguf_value_words(model, words, sizeof words));
    if (!plain)
        return fail(FUL_ERR_UNSUPPORTED, "key '%s' is %s; only " TOKENIZER_GGUF_PRE " is supported",
                    pre_key, gguf_value_words(pre, words, sizeof words));
    key_tokens k = {.keys = keys};
    t->normalise = true;
    TRY(splitter_create(&t->alloc, tokenizer_gguf_pattern, strlen(tokenizer_gguf_pattern), false,
                        &t->split));
    TRY(tokens_find(&k));
    TRY(tokens_read(t, &k));
    return merges_read(t, keys);
}

static void template_read(ful_tokenizer *t, const gguf_keys *keys)
{
    gguf_text text;
    const gguf_value *v = gguf_keys_one(keys, "tokenizer.chat_template");
    t->has_template = v && v->kind == GGUF_TEXT;
    if (!t->has_template)
        return;
    gguf_text_next(v->data, &text);
    t->template_format = chat_template_format(text.data, text.bytes);
}

ful_result tokenizer_read_gguf(ful_tokenizer *t, const gguf_keys *keys)
{
    template_read(t, keys);
    ful_result result = keys_read(t, keys);
    return result == FUL_OK ? FUL_OK : fail_context(result, "%s", gguf_keys_path(keys));
}
