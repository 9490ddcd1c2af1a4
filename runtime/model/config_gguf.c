/* The config from a GGUF's keys: they become the hub's keys, so that one set of rules holds for
 * both. */
#include <inttypes.h>
#include <math.h>
#include <string.h>

#include "format/tensor_file.h"
#include "model/config.h"
#include "model/gguf_names.h"
#include "model/names.h"

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

static ful_result item_get(const translator *t, const char *key, const gguf_value *v, uint64_t i,
                           int64_t *out)
{
    return gguf_integer(v, i, out) ? FUL_OK
                                   : value_fail(t, FUL_ERR_FORMAT, key, v, "must be an integer");
}

static ful_result integer_get(const translator *t, const char *key, bool *found, int64_t *out)
{
    const gguf_value *v = gguf_keys_find(t->keys, key);
    *found = v != NULL;
    if (v && v->is_array)
        return value_fail(t, FUL_ERR_FORMAT, key, v, "must be one integer");
    return v ? item_get(t, key, v, 0, out) : FUL_OK;
}

/* One number, or one for every layer: then all that are not 0 must be the same. */
static ful_result layered_get(const translator *t, const char *key, bool *found, int64_t *out)
{
    const gguf_value *v = gguf_keys_find(t->keys, key);
    if (!v || !v->is_array)
        return integer_get(t, key, found, out);
    bool has_count;
    int64_t layers = 0, n = 0;
    TRY(integer_get(t, GGUF_KEY("block_count"), &has_count, &layers));
    if (!has_count || layers < 0 || v->count != (uint64_t)layers)
        return value_fail(t, FUL_ERR_FORMAT, key, v, "must have an item for every layer");
    *found = true;
    *out = 0;
    for (uint64_t i = 0; i < v->count; i++) {
        TRY(item_get(t, key, v, i, &n));
        if (n != 0 && *out != 0 && n != *out)
            return fail(FUL_ERR_UNSUPPORTED,
                        "%s: key '%s': %" PRId64 " at layer %" PRIu64 " and %" PRId64
                        " before; layers of different sizes are not supported",
                        t->path, key, n, i, *out);
        *out = n != 0 ? n : *out;
    }
    return FUL_OK;
}

static ful_result integer_move(const translator *t, const char *key, bool layered)
{
    bool found;
    int64_t n = 0;
    TRY((layered ? layered_get : integer_get)(t, key, &found, &n));
    return found ? value_put(t, hub_key(key), json_integer(n)) : FUL_OK;
}

static ful_result sizes_move(const translator *t)
{
    static const struct {
        const char *key;
        bool layered;
    } keys[] = {
        {GGUF_KEY("vocab_size"), false},           {GGUF_KEY("embedding_length"), false},
        {GGUF_KEY("feed_forward_length"), true},   {GGUF_KEY("block_count"), false},
        {GGUF_KEY("attention.head_count"), true},  {GGUF_KEY("attention.head_count_kv"), true},
        {GGUF_KEY("attention.key_length"), false}, {GGUF_KEY("expert_count"), false},
        {GGUF_KEY("expert_used_count"), false},    {GGUF_KEY("context_length"), false},
        {GGUF_KEY("rope.dimension_count"), false},
    };
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++)
        TRY(integer_move(t, keys[i].key, keys[i].layered));
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

/* ---- tokens ---- */

/* *out is -1 if the key is not there or says so. */
static ful_result token_get(const translator *t, const char *key, int64_t *out)
{
    const gguf_value *v = gguf_keys_find(t->keys, key);
    *out = -1;
    if (v && (v->is_array || !gguf_integer(v, 0, out)))
        return value_fail(t, FUL_ERR_FORMAT, key, v, "must be a token id");
    if (*out == UINT32_MAX)
        *out = -1;
    return FUL_OK;
}

/* A begin token counts if it is to stand in front: published models have one that does not. */
static ful_result tokens_move(const translator *t)
{
    static const char bos[] = "tokenizer.ggml.bos_token_id", eos[] = "tokenizer.ggml.eos_token_id",
                      eot[] = "tokenizer.ggml.eot_token_id", add[] = "tokenizer.ggml.add_bos_token";
    const gguf_value *v = gguf_keys_find(t->keys, add);
    bool front = false;
    int64_t n;
    if (v && (v->is_array || !gguf_bool(v, 0, &front)))
        return value_fail(t, FUL_ERR_FORMAT, add, v, "must be a bool");
    TRY(token_get(t, bos, &n));
    if (n != -1 && front)
        TRY(value_put(t, hub_key(bos), json_integer(n)));
    TRY(token_get(t, eos, &n));
    if (n == -1)
        TRY(token_get(t, eot, &n));
    return n != -1 ? value_put(t, hub_key(eos), json_integer(n)) : FUL_OK;
}

/* ---- layers ---- */

/* A bool, or what other writers put for one. */
static bool flag_get(const gguf_value *v, uint64_t i, bool *out)
{
    int64_t n;
    if (gguf_bool(v, i, out))
        return true;
    *out = gguf_integer(v, i, &n) && n == 1;
    return *out || (gguf_integer(v, i, &n) && n == 0);
}

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
            flag_get(recurrent, i, &yes);
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
        bool yes, good = list->is_array && list->count <= CONFIG_MAX_LAYERS;
        for (uint64_t i = 0; good && i < list->count; i++)
            good = flag_get(list, i, &yes);
        if (!good)
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

/* Of the sizes that layers have each, only a lightning layer's key heads may be 0. */
static ful_result zeros_check(const translator *t)
{
    static const char *const keys[] = {GGUF_KEY("feed_forward_length"),
                                       GGUF_KEY("attention.head_count"),
                                       GGUF_KEY("attention.head_count_kv")};
    const json_t *kinds = json_object_get(t->root, "attn_type_list");
    for (size_t k = 0; k < sizeof keys / sizeof keys[0]; k++) {
        const gguf_value *v = gguf_keys_find(t->keys, keys[k]);
        for (uint64_t i = 0; v && v->is_array && i < v->count; i++) {
            int64_t n = 0;
            const json_t *kind = json_array_get(kinds, (size_t)i);
            TRY(item_get(t, keys[k], v, i, &n));
            if (n == 0 && (k < 2 || json_integer_value(kind) == LAYER_SOFTMAX))
                return fail(FUL_ERR_FORMAT, "%s: key '%s': 0 at layer %" PRIu64, t->path, keys[k],
                            i);
        }
    }
    return FUL_OK;
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

/* Keys that may only say what the architecture means anyway. */
static ful_result features_check(const translator *t)
{
    static const struct {
        const char *key;
        double wanted, or_wanted;
        const char *why;
    } keys[] = {
        {GGUF_KEY("attention.sliding_window"), 0, 0, "only 0 is supported"},
        {GGUF_KEY("attention.scale"), 0, 0,
         "only 0 (one over the root of a head's size) is supported"},
        {GGUF_KEY("attention.clamp_kqv"), 0, 0, "only 0 is supported"},
        {GGUF_KEY("attn_logit_softcapping"), 0, 0, "only 0 is supported"},
        {GGUF_KEY("final_logit_softcapping"), 0, 0, "only 0 is supported"},
        {GGUF_KEY("logit_scale"), 0, 1, "only 1 is supported"},
        {GGUF_KEY("embedding_scale"), 0, 1, "only 1 is supported"},
        {GGUF_KEY("expert_shared_count"), 0, 0, "a shared expert is not supported"},
        {GGUF_KEY("expert_shared_feed_forward_length"), 0, 0, "a shared expert is not supported"},
        {GGUF_KEY("expert_gating_func"), 1, 1, "only 1 (softmax) is supported"},
        {GGUF_KEY("expert_weights_scale"), 0, 1, "only 1 is supported"},
        {GGUF_KEY("expert_group_count"), 0, 1, "groups of experts are not supported"},
        {GGUF_KEY("leading_dense_block_count"), 0, 0, "dense layers are not supported"},
        {GGUF_KEY("nextn_predict_layers"), 0, 0, "layers for drafts are not supported"},
        {GGUF_KEY("rope.scaling.attn_factor"), 0, 1, "only 1 is supported"},
    };
    static const char architecture[] = "general.architecture",
                      norm_key[] = GGUF_KEY("expert_weights_norm");
    const gguf_value *v = gguf_keys_find(t->keys, architecture);
    bool norm = true;
    if (!v)
        return fail(FUL_ERR_FORMAT, "%s: key '%s' is missing", t->path, architecture);
    if (!gguf_text_is(v, GGUF_ARCHITECTURE))
        return value_fail(t, FUL_ERR_UNSUPPORTED, architecture, v,
                          "only " GGUF_ARCHITECTURE " is supported");
    for (size_t i = 0; i < sizeof keys / sizeof keys[0]; i++) {
        double x;
        v = gguf_keys_find(t->keys, keys[i].key);
        if (v && (v->is_array || !gguf_number(v, 0, &x) ||
                  (x != keys[i].wanted && x != keys[i].or_wanted)))
            return value_fail(t, FUL_ERR_UNSUPPORTED, keys[i].key, v, keys[i].why);
    }
    v = gguf_keys_find(t->keys, norm_key);
    if (v && (v->is_array || !flag_get(v, 0, &norm) || !norm))
        return value_fail(t, FUL_ERR_UNSUPPORTED, norm_key, v, "only true is supported");
    return FUL_OK;
}

/* Without a type a factor means linear scaling. */
static ful_result rope_check(const translator *t)
{
    static const char type[] = GGUF_KEY("rope.scaling.type");
    static const char *const factors[] = {GGUF_KEY("rope.scaling.factor"),
                                          GGUF_KEY("rope.scale_linear")};
    const gguf_value *v = gguf_keys_find(t->keys, type);
    if (gguf_text_is(v, "none"))
        return FUL_OK;
    if (v && !gguf_text_is(v, "linear"))
        return value_fail(t, FUL_ERR_UNSUPPORTED, type, v, "only none is supported");
    for (size_t i = 0; i < 2; i++) {
        double x = 1.0;
        v = gguf_keys_find(t->keys, factors[i]);
        if (v && (v->is_array || !gguf_number(v, 0, &x) || (x != 1.0 && x != 0.0)))
            return value_fail(t, FUL_ERR_UNSUPPORTED, factors[i], v, "only 1 is supported");
    }
    return FUL_OK;
}

static ful_result head_sizes_check(const translator *t)
{
    bool found;
    int64_t keys = 0, values = 0;
    TRY(integer_get(t, GGUF_KEY("attention.key_length"), &found, &keys));
    TRY(integer_get(t, GGUF_KEY("attention.value_length"), &found, &values));
    if (found && keys != values)
        return fail(FUL_ERR_UNSUPPORTED,
                    "%s: keys '" GGUF_KEY("attention.key_length") "' = %" PRId64 " and '" GGUF_KEY(
                        "attention.value_length") "' = %" PRId64 " must be the same",
                    t->path, keys, values);
    return FUL_OK;
}

static bool tensor_known(const model_config *c, const char *name)
{
    char known[TENSOR_NAME_BYTES];
    unsigned layer = 0;
    if (strncmp(name, "blk.", 4) != 0) {
        for (tensor_role r = ROLE_EMBEDDING; r < ROLE_INPUT_NORM; r = (tensor_role)(r + 1)) {
            tensor_gguf_name(r, 0, known, sizeof known);
            if (strcmp(name, known) == 0)
                return true;
        }
        return false;
    }
    for (const char *p = name + 4; *p >= '0' && *p <= '9' && layer <= CONFIG_MAX_LAYERS; p++)
        layer = 10 * layer + (unsigned)(*p - '0');
    if (layer >= c->block_count)
        return false;
    const tensor_role *roles = tensor_layer_roles((layer_kind)c->layers[layer]);
    for (size_t i = 0; i < LAYER_ROLES + 3; i++) {
        tensor_role r = i < LAYER_ROLES ? roles[i] : (tensor_role)(ROLE_W1 + i - LAYER_ROLES);
        tensor_gguf_name(r, layer, known, sizeof known);
        if (strcmp(name, known) == 0)
            return true;
    }
    return false;
}

/* Weights that would go unused make another model: biases, shared experts, further layers. */
static ful_result tensors_check(const tensor_file *files, const model_config *c)
{
    static const char *const ends[] = {".weight", ".bias", ".scale"};
    for (uint32_t i = 0; i < tensor_file_count(files); i++) {
        const tensor_info *info = tensor_file_at(files, i);
        bool weight = strncmp(info->name, "blk.", 4) == 0;
        for (size_t k = 0; k < sizeof ends / sizeof ends[0]; k++)
            weight = weight || text_ends_with(info->name, ends[k]);
        if (weight && !tensor_known(c, info->name))
            return fail(FUL_ERR_UNSUPPORTED,
                        "%s: tensor '%.256s' is none that a " GGUF_ARCHITECTURE
                        " model of these keys has",
                        info->path, info->name);
    }
    return FUL_OK;
}

/* ---- what config.json has no key for ---- */

/* Every token has a row. */
static ful_result tokens_check(const translator *t, const model_config *c)
{
    static const char key[] = "tokenizer.ggml.tokens";
    const gguf_value *v = gguf_keys_find(t->keys, key);
    if (!v || !v->is_array || v->count <= c->vocab_size)
        return FUL_OK;
    return fail(FUL_ERR_FORMAT,
                "%s: key '%s' has %" PRIu64 " items, the embedding %" PRIu32 " rows", t->path, key,
                v->count, c->vocab_size);
}

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
    TRY(rope_check(t));
    TRY(head_sizes_check(t));
    TRY(value_put(t, "model_type", json_string("minimax_text_01")));
    TRY(value_put(t, "postnorm", json_true()));
    TRY(sizes_move(t));
    TRY(layers_move(t));
    TRY(zeros_check(t));
    TRY(numbers_move(t));
    TRY(tokens_move(t));
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
    if (r == FUL_OK)
        r = tokens_check(&t, out);
    if (r == FUL_OK)
        r = tensors_check(files, out);
    json_decref(t.root);
    return r;
}
