/* tokenizer.json to a GGUF's keys. */
#include <stdio.h>
#include <string.h>

#include "format/json.h"
#include "text/tokenizer_gguf.h"

enum { MAX_FILE_BYTES = 256 << 20 };

const char tokenizer_gguf_pattern[] =
    "[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]*[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]+"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|[^\\r\\n\\p{L}\\p{N}]?[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]+[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]*"
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    "|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";

static bool text_at(const json_t *object, const char *key, const char *wanted)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text && strcmp(text, wanted) == 0;
}

static bool empty_at(const json_t *object, const char *key)
{
    const json_t *value = json_object_get(object, key);
    return !value || json_is_null(value) || json_is_false(value) ||
           (json_is_string(value) && json_string_length(value) == 0);
}

/* True if the keys say all of it: the published structure. */
static bool is_plain(const json_t *root)
{
    const json_t *model = json_object_get(root, "model"), *token;
    const json_t *parts = json_object_get(json_object_get(root, "pre_tokenizer"), "pretokenizers");
    const json_t *split = json_array_get(parts, 0), *level = json_array_get(parts, 1);
    const char *pattern =
        json_string_value(json_object_get(json_object_get(split, "pattern"), "Regex"));
    size_t i;
    json_array_foreach(json_object_get(root, "added_tokens"), i,
                       token) if (json_is_true(json_object_get(token, "single_word")) ||
                                  json_is_true(json_object_get(token, "lstrip")) ||
                                  json_is_true(json_object_get(token, "rstrip")) ||
                                  json_is_true(json_object_get(token, "normalized"))) return false;
    return text_at(json_object_get(root, "normalizer"), "type", "NFC") &&
           json_array_size(parts) == 2 && text_at(split, "type", "Split") &&
           text_at(split, "behavior", "Removed") &&
           json_is_true(json_object_get(split, "invert")) && pattern &&
           strcmp(pattern, tokenizer_gguf_pattern) == 0 && text_at(level, "type", "ByteLevel") &&
           json_is_false(json_object_get(level, "use_regex")) &&
           json_is_false(json_object_get(level, "add_prefix_space")) &&
           empty_at(root, "post_processor") && empty_at(model, "ignore_merges") &&
           empty_at(model, "continuing_subword_prefix") && empty_at(model, "end_of_word_suffix");
}

typedef struct token_list {
    const char **texts; /* [vocab_size], inside the JSON */
    int32_t *types;
    uint32_t count;
} token_list;

static ful_result token_set(token_list *list, const char *text, const json_t *id, int32_t type)
{
    if (!text || !json_is_integer(id) || json_integer_value(id) < 0 ||
        json_integer_value(id) >= list->count)
        return fail(FUL_ERR_FORMAT, "token \"%.80s\" has id %lld; the model has rows for %u tokens",
                    text ? text : "(none)", (long long)json_integer_value(id), list->count);
    int32_t *old = &list->types[json_integer_value(id)];
    if (*old != GGUF_TOKEN_UNUSED && type == GGUF_TOKEN_NORMAL)
        return fail(FUL_ERR_FORMAT, "id %lld of token \"%.80s\" is another token's too",
                    (long long)json_integer_value(id), text);
    list->texts[json_integer_value(id)] = text;
    *old = type;
    return FUL_OK;
}

static ful_result tokens_read(token_list *list, const json_t *root)
{
    json_t *vocab = json_object_get(json_object_get(root, "model"), "vocab"), *id, *token;
    const char *text;
    size_t i;
    json_object_foreach(vocab, text, id) TRY(token_set(list, text, id, GGUF_TOKEN_NORMAL));
    json_array_foreach(json_object_get(root, "added_tokens"), i, token) TRY(token_set(
        list, json_string_value(json_object_get(token, "content")), json_object_get(token, "id"),
        json_is_true(json_object_get(token, "special")) ? GGUF_TOKEN_CONTROL
                                                        : GGUF_TOKEN_USER_DEFINED));
    return FUL_OK;
}

static void tokens_put(const token_list *list, gguf_writer *w)
{
    char unused[32];
    gguf_put_texts(w, "tokenizer.ggml.tokens", list->count);
    for (uint32_t i = 0; i < list->count; i++) {
        snprintf(unused, sizeof unused, "[PAD%u]", (unsigned)i);
        const char *text = list->texts[i] ? list->texts[i] : unused;
        gguf_put_item(w, text, strlen(text));
    }
    gguf_put_i32s(w, "tokenizer.ggml.token_type", list->types, list->count);
}

static ful_result merges_put(const ful_alloc *a, const json_t *merges, gguf_writer *w)
{
    char *room = NULL;
    size_t capacity = 0, i;
    json_t *merge;
    ful_result r = FUL_OK;
    gguf_put_texts(w, "tokenizer.ggml.merges", json_array_size(merges));
    json_array_foreach(merges, i, merge)
    {
        if (json_is_string(merge)) {
            gguf_put_item(w, json_string_value(merge), json_string_length(merge));
            continue;
        }
        const json_t *left = json_array_get(merge, 0), *right = json_array_get(merge, 1);
        size_t n = json_string_length(left), m = json_string_length(right);
        if (!json_is_string(left) || !json_is_string(right)) {
            r = fail(FUL_ERR_FORMAT,
                     "model.merges[%zu] is neither \"left right\" nor [\"left\", \"right\"]", i);
            break;
        }
        void *p = room;
        if (!mem_grow(a, &p, &capacity, n + m + 1, 1)) {
            r = mem_fail(n + m + 1, "a merge");
            break;
        }
        room = p;
        memcpy(room, json_string_value(left), n);
        room[n] = ' ';
        memcpy(room + n + 1, json_string_value(right), m);
        gguf_put_item(w, room, n + m + 1);
    }
    mem_free(a, room);
    return r;
}

static ful_result plain_put(const ful_alloc *a, const json_t *root, uint32_t vocab_size,
                            gguf_writer *w)
{
    token_list list = {.count = vocab_size};
    list.texts = mem_zalloc(a, vocab_size, sizeof *list.texts);
    list.types = mem_array(a, vocab_size, sizeof *list.types);
    ful_result r = list.texts && list.types
                       ? FUL_OK
                       : mem_fail(vocab_size * sizeof *list.texts, "the vocabulary");
    for (uint32_t i = 0; r == FUL_OK && i < vocab_size; i++)
        list.types[i] = GGUF_TOKEN_UNUSED;
    if (r == FUL_OK)
        r = tokens_read(&list, root);
    if (r == FUL_OK) {
        gguf_put_text(w, "tokenizer.ggml.model", "gpt2", 4);
        gguf_put_text(w, "tokenizer.ggml.pre", TOKENIZER_GGUF_PRE, strlen(TOKENIZER_GGUF_PRE));
        tokens_put(&list, w);
        r = merges_put(a, json_object_get(json_object_get(root, "model"), "merges"), w);
    }
    mem_free(a, list.texts);
    mem_free(a, list.types);
    return r;
}

ful_result tokenizer_gguf_put(const ful_alloc *a, const char *path, uint32_t vocab_size,
                              gguf_writer *w)
{
    char *text;
    size_t bytes;
    json_t *root = NULL;
    TRY(file_read(a, path, MAX_FILE_BYTES, &text, &bytes));
    ful_result r = json_parse(path, text, bytes, &root);
    if (r == FUL_OK && is_plain(root)) {
        r = plain_put(a, root, vocab_size, w);
        if (r != FUL_OK)
            fail_context(r, "%s", path);
    } else if (r == FUL_OK) {
        gguf_put_text(w, "tokenizer.ggml.model", "no_vocab", 8);
        gguf_put_text(w, TOKENIZER_GGUF_JSON, text, bytes);
    }
    json_decref(root);
    mem_free(a, text);
    return r;
}
