/* tokenizer.json to tables. */
#include <string.h>

#include "format/json.h"
#include "text/tokenizer_build.h"
#include "text/tokenizer_gguf.h"

enum { MAX_FILE_BYTES = 256 << 20 };

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
    return vocab_begin(t, (uint32_t)(largest + 1), json_object_size(vocab));
}

static ful_result vocab_read(ful_tokenizer *t, json_t *vocab)
{
    const char *key;
    json_t *value;
    json_object_foreach(vocab, key, value)
        TRY(vocab_add(t, (int32_t)json_integer_value(value), key, strlen(key)));
    return vocab_end(t);
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
        size_t length[2] = {0, 0};
        TRY(merge_parts(json_array_get(merges, i), i, part, length));
        TRY(merge_add(t, i, part, length));
    }
    return FUL_OK;
}

static ful_result added_tokens_read(ful_tokenizer *t, const json_t *added)
{
    static const char *const refused[] = {"single_word", "lstrip", "rstrip", "normalized"};
    TRY(added_begin(t, json_array_size(added)));
    for (size_t i = 0; i < json_array_size(added); i++) {
        const json_t *token = json_array_get(added, i),
                     *content = json_object_get(token, "content");
        for (size_t k = 0; k < sizeof refused / sizeof refused[0]; k++)
            if (json_is_true(json_object_get(token, refused[k])))
                return fail(FUL_ERR_UNSUPPORTED, "added token \"%.80s\" with %s true",
                            json_string_value(content), refused[k]);
        TRY(added_add(t, (int32_t)json_integer_value(json_object_get(token, "id")),
                      json_string_value(content), json_string_length(content)));
    }
    return added_end(t);
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

ful_result tokenizer_read_json(ful_tokenizer *t, const json_t *root, const char *file)
{
    ful_result result = root_read(t, root);
    return result == FUL_OK ? FUL_OK : fail_context(result, "%s", file);
}

static ful_result json_open(ful_tokenizer *t, const char *file)
{
    json_t *root;
    TRY(json_load_path(&t->alloc, file, MAX_FILE_BYTES, &root));
    ful_result result = tokenizer_read_json(t, root, file);
    json_decref(root);
    return result;
}

static ful_result gguf_open_keys(ful_tokenizer *t, const char *file)
{
    gguf_keys *keys;
    TRY(gguf_keys_open(&t->alloc, file, &keys));
    ful_result result = tokenizer_read_gguf(t, keys);
    gguf_keys_close(&keys);
    return result;
}

/* A folder's tokenizer.json comes before the keys of its GGUF. */
static ful_result path_open(ful_tokenizer *t, const char *path)
{
    char *joined = NULL, *gguf = NULL;
    if (path_is_dir(path)) {
        joined = path_join(&t->alloc, path, "tokenizer.json");
        if (joined == NULL)
            return mem_fail(strlen(path), "a path");
    }
    ful_result result = FUL_OK;
    if (joined == NULL || !file_exists(joined))
        result = gguf_locate(&t->alloc, path, &gguf);
    if (result == FUL_OK)
        result = gguf ? gguf_open_keys(t, gguf) : json_open(t, joined ? joined : path);
    mem_free(&t->alloc, joined);
    mem_free(&t->alloc, gguf);
    return result;
}

ful_result tokenizer_create(ful_tokenizer **out, const ful_alloc *alloc, const char *path)
{
    *out = NULL;
    ful_alloc functions = mem_functions(alloc);
    ful_tokenizer *t = mem_zalloc(&functions, 1, sizeof *t);
    if (t == NULL)
        return mem_fail(sizeof *t, "the tokenizer");
    t->alloc = functions;
    ful_result result = path_open(t, path);
    if (result != FUL_OK)
        ful_tokenizer_destroy(&t);
    *out = t;
    return result;
}
