/* The config from a GGUF's keys: they become the hub's keys, so that one set of rules holds for
 * both. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "model/config.h"
#include "model/gguf_names.h"

static const config_key shown_keys[] = {
    {"vocab_size", GGUF_KEY("vocab_size")},
    {"hidden_size", GGUF_KEY("embedding_length")},
    {"intermediate_size", GGUF_KEY("feed_forward_length")},
    {"num_hidden_layers", GGUF_KEY("block_count")},
    {"num_attention_heads", GGUF_KEY("attention.head_count")},
    {"num_key_value_heads", GGUF_KEY("attention.head_count_kv")},
    {"head_dim", GGUF_KEY("attention.key_length")},
    {"num_local_experts", GGUF_KEY("expert_count")},
    {"num_experts_per_tok", GGUF_KEY("expert_used_count")},
    {"max_position_embeddings", GGUF_KEY("context_length")},
    {"rms_norm_eps", GGUF_KEY("attention.layer_norm_rms_epsilon")},
    {"rope_theta", GGUF_KEY("rope.freq_base")},
    {"rotary_dim", GGUF_KEY("rope.dimension_count")},
    {"attn_type_list", GGUF_KEY("attention.recurrent_layers")},
    {"layernorm_linear_attention_alpha", FULGUR_LIGHTNING_ALPHA},
    {"layernorm_linear_attention_beta", FULGUR_LIGHTNING_BETA},
    {"layernorm_full_attention_alpha", FULGUR_SOFTMAX_ALPHA},
    {"layernorm_full_attention_beta", FULGUR_SOFTMAX_BETA},
    {"layernorm_mlp_alpha", FULGUR_MLP_ALPHA},
    {"layernorm_mlp_beta", FULGUR_MLP_BETA},
    {"bos_token_id", "tokenizer.ggml.bos_token_id"},
    {"eos_token_id", "tokenizer.ggml.eos_token_id"},
    {NULL, NULL},
};

typedef struct translator {
    const tensor_file *files;
    const gguf_keys *keys;
    const char *path;
    json_t *root;
} translator;

static ful_result value_fail(const translator *t, ful_result result, const char *key,
                             const gguf_value *value, const char *why)
{
    char words[128];
    return fail(result, "%s: key '%s' = %s: %s", t->path, key,
                gguf_value_words(value, words, sizeof words), why);
}

/* The hub's key that a key of the file stands for. */
static const char *hub_key(const char *key)
{
    for (const config_key *k = shown_keys; k->key; k++)
        if (strcmp(k->shown, key) == 0)
            return k->key;
    return key;
}

static ful_result value_put(const translator *t, const char *key, json_t *value)
{
    if (json_object_set_new(t->root, key, value) == 0)
        return FUL_OK;
    return mem_fail(strlen(key), t->path);
}

/* ---- whole numbers ---- */

/* One number, or one for every layer: then all that are not 0 must be the same. */
static ful_result integer_get(const translator *t, const char *key, bool *found, int64_t *out)
{
    const gguf_value *v = gguf_keys_find(t->keys, key);
    *found = v != NULL;
    if (!v)
        return FUL_OK;
    *out = 0;
    if (v->is_array && v->count > CONFIG_MAX_LAYERS)
        return value_fail(t, FUL_ERR_FORMAT, key, v, "more values than layers");
    for (uint64_t i = 0; i < v->count; i++) {
        int64_t n;
        if (!gguf_integer(v, i, &n))
            return value_fail(t, FUL_ERR_FORMAT, key, v, "must be an integer");
        if (n != 0 && *out != 0 && n != *out)
            return fail(FUL_ERR_UNSUPPORTED,
                        "%s: key '%s': %" PRId64 " at layer %" PRIu64 " and %" PRId64
                        " before; layers of different sizes are not supported",
                        t->path, key, n, i, *out);
        *out = n != 0 ? n : *out;
    }
    return FUL_OK;
}

static ful_result integer_move(const translator *t, const char *key)
{
    bool found;
    int64_t n;
    TRY(integer_get(t, key, &found, &n));
    return found ? value_put(t, hub_key(key), json_integer(n)) : FUL_OK;
}

/* A key that may only say what the architecture means anyway. */
static ful_result integer_must(const translator *t, const char *key, int64_t wanted,
                               const char *why)
{
    bool found;
    int64_t n;
    TRY(integer_get(t, key, &found, &n));
    if (!found || n == wanted)
        return FUL_OK;
    return value_fail(t, FUL_ERR_UNSUPPORTED, key, gguf_keys_find(t->keys, key), why);
}

static ful_result sizes_move(const translator *t)
{
    static const char *const keys[] = {
        GGUF_KEY("vocab_size"),           GGUF_KEY("embedding_length"),
        GGUF_KEY("feed_forward_length"),  GGUF_KEY("block_count"),
        GGUF_KEY("attention.head_count"), GGUF_KEY("attention.head_count_kv"),
        GGUF_KEY("attention.key_length"), GGUF_KEY("expert_count"),
        GGUF_KEY("expert_used_count"),    GGUF_KEY("context_length"),
        GGUF_KEY("rope.dimension_count"),
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        TRY(integer_move(t, keys[i]));
    const tensor_info *embedding = tensor_file_find(t->files, "token_embd.weight");
    if (!json_object_get(t->root, "vocab_size") && embedding && embedding->dims[0] <= INT32_MAX)
        TRY(value_put(t, "vocab_size", json_integer((json_int_t)embedding->dims[0])));
    if (!json_object_get(t->root, "num_key_value_heads")) {
        const json_t *heads = json_object_get(t->root, "num_attention_heads");
        if (heads)
            TRY(value_put(t, "num_key_value_heads", json_integer(json_integer_value(heads))));
    }
    return FUL_OK;
}

static ful_result token_move(const translator *t, const char *key)
{
    int64_t n;
    const gguf_value *v = gguf_keys_find(t->keys, key);
    if (!v)
        return FUL_OK;
    if (v->is_array || !gguf_integer(v, 0, &n))
        return value_fail(t, FUL_ERR_FORMAT, key, v, "must be a token id");
    if (n == UINT32_MAX || n == -1) /* none */
        return FUL_OK;
    return value_put(t, hub_key(key), json_integer(n));
}

/* ---- layers ---- */

static ful_result layers_put(const translator *t, const gguf_value *recurrent, int64_t interval)
{
    bool yes = false;
    uint64_t count =
        recurrent ? recurrent->count
                  : (uint64_t)json_integer_value(json_object_get(t->root, "num_hidden_layers"));
    json_t *list = json_array();
    bool good = list != NULL;
    for (uint64_t i = 0; i < count && good; i++) {
        if (recurrent)
            gguf_bool(recurrent, i, &yes);
        else
            yes = (i + 1) % (uint64_t)interval != 0;
        good =
            json_array_append_new(list, json_integer(yes ? LAYER_LIGHTNING : LAYER_SOFTMAX)) == 0;
    }
    if (!good) {
        json_decref(list);
        return mem_fail((size_t)count, t->path);
    }
    return value_put(t, "attn_type_list", list);
}

static ful_result layers_move(const translator *t)
{
    static const char list_key[] = GGUF_KEY("attention.recurrent_layers"),
                      interval_key[] = GGUF_KEY("full_attention_interval");
    const gguf_value *list = gguf_keys_find(t->keys, list_key);
    bool found;
    int64_t interval = 8;
    const json_t *layers = json_object_get(t->root, "num_hidden_layers");
    /* Wrong counts are the reader's to refuse; here they must only not cost memory. */
    if (json_integer_value(layers) < 0 || json_integer_value(layers) > CONFIG_MAX_LAYERS)
        return FUL_OK;
    if (list) {
        if (!list->is_array || list->kind != GGUF_BOOL || list->count > CONFIG_MAX_LAYERS)
            return value_fail(t, FUL_ERR_FORMAT, list_key, list, "must be a bool for every layer");
        return layers_put(t, list, interval);
    }
    TRY(integer_get(t, interval_key, &found, &interval));
    if (!found)
        interval = 8;
    if (interval < 1)
        return value_fail(t, FUL_ERR_FORMAT, interval_key, gguf_keys_find(t->keys, interval_key),
                          "must be at least 1");
    return layers_put(t, NULL, interval);
}

/* ---- other numbers ---- */

static ful_result number_get(const translator *t, const char *key, bool *found, double *out)
{
    const gguf_value *v = gguf_keys_find(t->keys, key);
    *found = v != NULL;
    if (v && (v->is_array || !gguf_number(v, 0, out) || !isfinite(*out)))
        return value_fail(t, FUL_ERR_FORMAT, key, v, "must be a finite number");
    return FUL_OK;
}

/* The value of `exact`, a key of fulgur's, or of `common`, which has it in 32 bits. */
static ful_result number_either(const translator *t, const char *exact, const char *common,
                                bool *found, double *out)
{
    bool has_common;
    double x = 0.0;
    TRY(number_get(t, exact, found, out));
    TRY(number_get(t, common, &has_common, &x));
    if (*found && has_common && (float)x != (float)*out)
        return fail(FUL_ERR_FORMAT, "%s: keys '%s' = %.9g and '%s' = %.9g contradict each other",
                    t->path, exact, *out, common, x);
    if (!*found && has_common)
        *out = x;
    *found |= has_common;
    return FUL_OK;
}

static ful_result numbers_move(const translator *t)
{
    static const char scale[] = GGUF_KEY("residual_scale");
    static const char *const alphas[] = {FULGUR_LIGHTNING_ALPHA, FULGUR_SOFTMAX_ALPHA,
                                         FULGUR_MLP_ALPHA};
    static const char *const betas[] = {FULGUR_LIGHTNING_BETA, FULGUR_SOFTMAX_BETA,
                                        FULGUR_MLP_BETA};
    bool found;
    double x = 0.0;
    for (size_t i = 0; i < 3; i++) {
        TRY(number_either(t, alphas[i], scale, &found, &x));
        if (!found)
            return fail(FUL_ERR_FORMAT, "%s: key '%s' is missing", t->path, scale);
        TRY(value_put(t, hub_key(alphas[i]), json_real(x)));
        TRY(number_get(t, betas[i], &found, &x));
        TRY(value_put(t, hub_key(betas[i]), json_real(found ? x : 1.0)));
    }
    TRY(number_either(t, FULGUR_ROPE_FREQ_BASE, GGUF_KEY("rope.freq_base"), &found, &x));
    if (found)
        TRY(value_put(t, "rope_theta", json_real(x)));
    TRY(number_either(t, FULGUR_NORM_EPSILON, GGUF_KEY("attention.layer_norm_rms_epsilon"), &found,
                      &x));
    return found ? value_put(t, "rms_norm_eps", json_real(x)) : FUL_OK;
}

/* ---- what fulgur does not do ---- */

static ful_result features_check(const translator *t)
{
    static const char architecture[] = "general.architecture",
                      scaling[] = GGUF_KEY("rope.scaling.type");
    const gguf_value *v = gguf_keys_find(t->keys, architecture);
    if (!v)
        return fail(FUL_ERR_FORMAT, "%s: key '%s' is missing", t->path, architecture);
    if (!gguf_text_is(v, GGUF_ARCHITECTURE))
        return value_fail(t, FUL_ERR_UNSUPPORTED, architecture, v,
                          "only " GGUF_ARCHITECTURE " is supported");
    v = gguf_keys_find(t->keys, scaling);
    if (v && !gguf_text_is(v, "none"))
        return value_fail(t, FUL_ERR_UNSUPPORTED, scaling, v, "only none is supported");
    TRY(integer_must(t, GGUF_KEY("attention.sliding_window"), 0, "only 0 is supported"));
    TRY(integer_must(t, GGUF_KEY("expert_shared_count"), 0, "a shared expert is not supported"));
    TRY(integer_must(t, GGUF_KEY("expert_shared_feed_forward_length"), 0,
                     "a shared expert is not supported"));
    TRY(integer_must(t, GGUF_KEY("expert_gating_func"), 1, "only 1 (softmax) is supported"));
    bool found, norm = true;
    int64_t keys = 0, values = 0;
    TRY(integer_get(t, GGUF_KEY("attention.key_length"), &found, &keys));
    TRY(integer_get(t, GGUF_KEY("attention.value_length"), &found, &values));
    if (found && keys != values)
        return fail(FUL_ERR_UNSUPPORTED,
                    "%s: keys '" GGUF_KEY("attention.key_length") "' = %" PRId64 " and '" GGUF_KEY(
                        "attention.value_length") "' = %" PRId64 " must be the same",
                    t->path, keys, values);
    v = gguf_keys_find(t->keys, GGUF_KEY("expert_weights_norm"));
    if (v && (!gguf_bool(v, 0, &norm) || !norm))
        return value_fail(t, FUL_ERR_UNSUPPORTED, GGUF_KEY("expert_weights_norm"), v,
                          "only true is supported");
    return FUL_OK;
}

/* ---- what config.json has no key for ---- */

static ful_result own_keys_read(const translator *t, model_config *out)
{
    bool found;
    double eps = 0.0;
    const gguf_value *decay = gguf_keys_find(t->keys, FULGUR_LIGHTNING_DECAY);
    TRY(number_get(t, FULGUR_LIGHTNING_NORM_EPSILON, &found, &eps));
    if (found && !(eps > 0.0 && eps < 1.0))
        return value_fail(t, FUL_ERR_FORMAT, FULGUR_LIGHTNING_NORM_EPSILON,
                          gguf_keys_find(t->keys, FULGUR_LIGHTNING_NORM_EPSILON),
                          "must be a number between 0 and 1");
    if (found)
        out->lightning_norm_eps = eps;
    if (gguf_text_is(decay, "hf"))
        out->decay = DECAY_HF;
    else if (decay && !gguf_text_is(decay, "orig"))
        return value_fail(t, FUL_ERR_FORMAT, FULGUR_LIGHTNING_DECAY, decay,
                          "must be \"orig\" or \"hf\"");
    return FUL_OK;
}

static ful_result translate(const translator *t)
{
    TRY(features_check(t));
    TRY(value_put(t, "model_type", json_string("minimax_text_01")));
    TRY(value_put(t, "postnorm", json_true()));
    TRY(sizes_move(t));
    TRY(layers_move(t));
    TRY(numbers_move(t));
    TRY(token_move(t, "tokenizer.ggml.bos_token_id"));
    TRY(token_move(t, "tokenizer.ggml.eos_token_id"));
    bool tied = !tensor_file_find(t->files, "output.weight");
    return value_put(t, "tie_word_embeddings", json_boolean(tied));
}

ful_result config_read_gguf(const tensor_file *files, model_config *out)
{
    translator t = {.files = files, .keys = tensor_file_keys(files), .root = json_object()};
    t.path = gguf_keys_path(t.keys);
    ful_result r = t.root ? translate(&t) : mem_fail(1, t.path);
    if (r == FUL_OK)
        r = config_read_json(t.path, t.root, shown_keys, out);
    if (r == FUL_OK) {
        strcpy(out->model_type, GGUF_ARCHITECTURE);
        r = own_keys_read(&t, out);
    }
    json_decref(t.root);
    return r;
}
