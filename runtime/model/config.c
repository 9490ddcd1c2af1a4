/* config.json in three key styles: the hub's minimax_text_01 and minimax_m1, and the native minimax
 * of transformers. Where a value has two spellings either may be given, or both if they agree. */
#include "model/config.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/json.h"

enum { FILE_LIMIT_BYTES = 16 << 20 };

typedef struct reader {
    const char *path;
    json_t *root;
    json_t *rope;           /* rope_parameters, NULL if absent */
    bool native;            /* model_type minimax: absent keys have the class's defaults */
    const config_key *keys; /* what keys are called where the values come from; NULL: as here */
    char text[96];          /* of the value that value_text showed last */
} reader;

/* A key as the reader of an error line knows it. */
static const char *shown(const reader *r, const char *key)
{
    for (const config_key *k = r->keys; k && k->key; k++)
        if (strcmp(k->key, key) == 0)
            return k->shown;
    return key;
}

/* "rope_parameters.X" lies inside rope_parameters. Null counts as absent, as it does in Python's
 * configs, where None means "not set". */
static json_t *value_get(const reader *r, const char *key)
{
    static const char inside[] = "rope_parameters.";
    json_t *value;
    if (strncmp(key, inside, sizeof inside - 1) == 0)
        value = json_object_get(r->rope, key + sizeof inside - 1);
    else
        value = json_object_get(r->root, key);
    return json_is_null(value) ? NULL : value;
}

static const char *value_text(reader *r, const json_t *value)
{
    memset(r->text, 0, sizeof r->text);
    size_t n = json_dumpb(value, r->text, sizeof r->text - 1,
                          JSON_ENCODE_ANY | JSON_COMPACT | JSON_REAL_PRECISION(15));
    if (n >= sizeof r->text)
        memcpy(r->text + sizeof r->text - 4, "...", 4);
    return r->text;
}

static ful_result value_fail(reader *r, ful_result result, const char *key, const json_t *value,
                             const char *why)
{
    return fail(result, "%s: key '%s' = %s: %s", r->path, shown(r, key), value_text(r, value), why);
}

static ful_result missing_fail(const reader *r, const char *key)
{
    return fail(FUL_ERR_FORMAT, "%s: key '%s' is missing", r->path, shown(r, key));
}

/* ---- single values ---- */

static ful_result integer_check(reader *r, const char *key, const json_t *value, int64_t min,
                                int64_t max)
{
    char why[96];
    if (!json_is_integer(value))
        return value_fail(r, FUL_ERR_FORMAT, key, value, "must be an integer");
    int64_t n = json_integer_value(value);
    if (n >= min && n <= max)
        return FUL_OK;
    snprintf(why, sizeof why, "must be from %" PRId64 " to %" PRId64, min, max);
    return value_fail(r, FUL_ERR_FORMAT, key, value, why);
}

/* A size the model can't do without; a native config may leave it to the class's default. */
static ful_result size_get(reader *r, const char *key, uint32_t otherwise, uint32_t max,
                           uint32_t *out)
{
    const json_t *value = value_get(r, key);
    if (!value) {
        if (!r->native)
            return missing_fail(r, key);
        *out = otherwise;
        return FUL_OK;
    }
    TRY(integer_check(r, key, value, 1, max));
    *out = (uint32_t)json_integer_value(value);
    return FUL_OK;
}

/* A number under any of `keys`, which end with NULL. *found is NULL if none is present. */
static ful_result number_get(reader *r, const char *const *keys, double min, double max,
                             double *out, const char **found)
{
    *found = NULL;
    for (size_t i = 0; keys[i]; i++) {
        const json_t *value = value_get(r, keys[i]);
        if (!value)
            continue;
        if (!json_is_number(value))
            return value_fail(r, FUL_ERR_FORMAT, keys[i], value, "must be a number");
        double x = json_number_value(value);
        if (!(x >= min && x <= max)) {
            char why[96];
            snprintf(why, sizeof why, "must be from %g to %g", min, max);
            return value_fail(r, FUL_ERR_FORMAT, keys[i], value, why);
        }
        if (*found && x != *out)
            return fail(FUL_ERR_FORMAT,
                        "%s: keys '%s' = %.17g and '%s' = %.17g contradict each other", r->path,
                        shown(r, *found), *out, shown(r, keys[i]), x);
        *found = keys[i];
        *out = x;
    }
    return FUL_OK;
}

static ful_result bool_get(reader *r, const char *key, bool otherwise, bool *out)
{
    const json_t *value = value_get(r, key);
    *out = value ? json_is_true(value) : otherwise;
    if (value && !json_is_boolean(value))
        return value_fail(r, FUL_ERR_FORMAT, key, value, "must be true or false");
    return FUL_OK;
}

/* An id, a list of ids of which the first counts, or nothing. */
static ful_result token_get(reader *r, const char *key, int32_t otherwise, uint32_t vocab_size,
                            int32_t *out)
{
    const json_t *value = json_object_get(r->root, key);
    *out = -1;
    if (!value) {
        if (r->native && (uint32_t)otherwise < vocab_size)
            *out = otherwise;
        return FUL_OK;
    }
    if (json_is_null(value))
        return FUL_OK;
    if (json_is_array(value) && json_array_size(value) == 0)
        return value_fail(r, FUL_ERR_FORMAT, key, value, "must be a token id or a list of them");
    size_t count = json_is_array(value) ? json_array_size(value) : 1;
    for (size_t i = 0; i < count; i++) {
        const json_t *id = json_is_array(value) ? json_array_get(value, i) : value;
        TRY(integer_check(r, key, id, 0, (int64_t)vocab_size - 1));
        if (i == 0)
            *out = (int32_t)json_integer_value(id);
    }
    return FUL_OK;
}

/* ---- what fulgur does not do ---- */

static bool in_list(const char *text, const char *const *list)
{
    for (; *list; list++)
        if (strcmp(text, *list) == 0)
            return true;
    return false;
}

static ful_result architecture_check(reader *r, model_config *c)
{
    static const char *const types[] = {"minimax_text_01", "minimax_m1", "minimax", NULL};
    static const char *const classes[] = {"MiniMaxText01ForCausalLM", "MiniMaxM1ForCausalLM",
                                          "MiniMaxForCausalLM", NULL};
    const json_t *type = value_get(r, "model_type"), *list = value_get(r, "architectures");
    if (!type)
        return missing_fail(r, "model_type");
    if (!json_is_string(type))
        return value_fail(r, FUL_ERR_FORMAT, "model_type", type, "must be a string");
    if (!in_list(json_string_value(type), types))
        return value_fail(r, FUL_ERR_UNSUPPORTED, "model_type", type,
                          "only minimax_text_01, minimax_m1 and minimax are supported");
    if (list && !json_is_array(list))
        return value_fail(r, FUL_ERR_FORMAT, "architectures", list, "must be a list");
    for (size_t i = 0; i < json_array_size(list); i++) {
        const json_t *name = json_array_get(list, i);
        if (!json_is_string(name))
            return value_fail(r, FUL_ERR_FORMAT, "architectures", list, "must hold strings");
        if (!in_list(json_string_value(name), classes))
            return value_fail(r, FUL_ERR_UNSUPPORTED, "architectures", list,
                              "only MiniMaxText01ForCausalLM, MiniMaxM1ForCausalLM and "
                              "MiniMaxForCausalLM are supported");
    }
    snprintf(c->model_type, sizeof c->model_type, "%s", json_string_value(type));
    r->native = strcmp(c->model_type, "minimax") == 0;
    c->decay = r->native ? DECAY_HF : DECAY_ORIG;
    return FUL_OK;
}

static ful_result rope_kind_check(reader *r, const char *where, const json_t *rope)
{
    static const char *const keys[] = {"rope_type", "type"};
    char name[64];
    for (size_t i = 0; i < 2; i++) {
        const json_t *kind = json_object_get(rope, keys[i]);
        if (!kind || json_is_null(kind))
            continue;
        snprintf(name, sizeof name, "%s.%s", where, keys[i]);
        if (!json_is_string(kind))
            return value_fail(r, FUL_ERR_FORMAT, name, kind, "must be a string");
        if (strcmp(json_string_value(kind), "default") != 0)
            return value_fail(r, FUL_ERR_UNSUPPORTED, name, kind, "only default is supported");
    }
    return FUL_OK;
}

static ful_result rope_check(reader *r)
{
    const char *key;
    json_t *inner, *rope = value_get(r, "rope_parameters"), *scaling = value_get(r, "rope_scaling");
    if (rope && !json_is_object(rope))
        return value_fail(r, FUL_ERR_FORMAT, "rope_parameters", rope, "must be an object");
    if (scaling && !json_is_object(scaling))
        return value_fail(r, FUL_ERR_FORMAT, "rope_scaling", scaling, "must be an object");
    json_object_foreach(rope, key, inner) if (json_is_object(inner)) return value_fail(
        r, FUL_ERR_UNSUPPORTED, "rope_parameters", rope,
        "one set for each layer type is not supported");
    TRY(rope_kind_check(r, "rope_parameters", rope));
    TRY(rope_kind_check(r, "rope_scaling", scaling));
    /* A scaling that does not say its kind is one of the old forms, all of which scale. */
    if (scaling && !json_object_get(scaling, "rope_type") && !json_object_get(scaling, "type"))
        return value_fail(r, FUL_ERR_UNSUPPORTED, "rope_scaling", scaling,
                          "scaled rotary embeddings are not supported");
    r->rope = rope;
    return FUL_OK;
}

static ful_result features_check(reader *r)
{
    bool postnorm;
    TRY(bool_get(r, "postnorm", r->native, &postnorm));
    if (!value_get(r, "postnorm") && !r->native)
        return fail(FUL_ERR_UNSUPPORTED,
                    "%s: key 'postnorm' is missing: only models that say true are supported",
                    r->path);
    if (!postnorm)
        return value_fail(r, FUL_ERR_UNSUPPORTED, "postnorm", value_get(r, "postnorm"),
                          "only true is supported (the normalised value is the residual)");
    const json_t *shared = value_get(r, "shared_intermediate_size");
    if (shared) {
        TRY(integer_check(r, "shared_intermediate_size", shared, 0, INT32_MAX));
        if (json_integer_value(shared) > 0)
            return value_fail(r, FUL_ERR_UNSUPPORTED, "shared_intermediate_size", shared,
                              "a shared expert is not supported, only 0");
    }
    const json_t *window = value_get(r, "sliding_window");
    if (window)
        return value_fail(r, FUL_ERR_UNSUPPORTED, "sliding_window", window,
                          "only null is supported");
    const json_t *act = value_get(r, "hidden_act");
    if (act && (!json_is_string(act) || strcmp(json_string_value(act), "silu") != 0))
        return value_fail(r, FUL_ERR_UNSUPPORTED, "hidden_act", act, "only silu is supported");
    const json_t *quantized = value_get(r, "quantization_config");
    if (quantized)
        return value_fail(r, FUL_ERR_UNSUPPORTED, "quantization_config", quantized,
                          "quantized checkpoints are not supported");
    return FUL_OK;
}

/* ---- sizes ---- */

static ful_result multiple_check(const reader *r, const char *key, uint32_t value, uint32_t unit,
                                 const char *why)
{
    if (value % unit == 0)
        return FUL_OK;
    return fail(FUL_ERR_UNSUPPORTED, "%s: key '%s' = %u: must be a multiple of %u%s", r->path,
                shown(r, key), value, unit, why);
}

static ful_result head_dim_get(reader *r, model_config *c)
{
    if (value_get(r, "head_dim")) {
        TRY(size_get(r, "head_dim", 0, INT32_MAX, &c->head_dim));
    } else {
        if (c->hidden_size % c->head_count != 0)
            return fail(FUL_ERR_FORMAT,
                        "%s: key '%s' is missing, and '%s' = %u is not a multiple of '%s' = %u",
                        r->path, shown(r, "head_dim"), shown(r, "hidden_size"), c->hidden_size,
                        shown(r, "num_attention_heads"), c->head_count);
        c->head_dim = c->hidden_size / c->head_count;
    }
    if (c->head_dim > 256)
        return fail(FUL_ERR_UNSUPPORTED, "%s: key '%s' = %u: the limit is 256", r->path,
                    shown(r, "head_dim"), c->head_dim);
    return multiple_check(r, "head_dim", c->head_dim, 16, "");
}

/* Later sums over all weights must not overflow 64 bits, nor row counts 31. */
static ful_result products_check(const reader *r, const model_config *c)
{
    uint64_t d = c->hidden_size, inner = (uint64_t)c->head_count * c->head_dim;
    uint64_t experts, router, head, total = 0;
    if (inner > INT32_MAX / 3)
        return fail(FUL_ERR_FORMAT, "%s: '%s' = %u times '%s' = %u is over the limit of %d",
                    r->path, shown(r, "num_attention_heads"), c->head_count, shown(r, "head_dim"),
                    c->head_dim, INT32_MAX / 3);
    bool fits = size_mul(3 * d, c->intermediate_size, &experts) &&
                size_mul(experts, c->expert_count, &experts) &&
                size_mul(d, c->expert_count, &router) && size_mul(2 * d, c->vocab_size, &head) &&
                size_mul(d, 5 * inner, &total) && size_add(total, experts, &total) &&
                size_add(total, router, &total) && size_mul(total, c->block_count, &total) &&
                size_add(total, head, &total);
    if (!fits || total > UINT64_MAX / 16)
        return fail(
            FUL_ERR_FORMAT,
            "%s: '%s' = %u, '%s' = %u, '%s' = %u and '%s' = %u give more weights than the limit of "
            "2^60",
            r->path, shown(r, "hidden_size"), c->hidden_size, shown(r, "intermediate_size"),
            c->intermediate_size, shown(r, "num_local_experts"), c->expert_count,
            shown(r, "num_hidden_layers"), c->block_count);
    return FUL_OK;
}

static ful_result sizes_get(reader *r, model_config *c)
{
    TRY(size_get(r, "vocab_size", 32000, INT32_MAX, &c->vocab_size));
    TRY(size_get(r, "hidden_size", 4096, INT32_MAX, &c->hidden_size));
    TRY(size_get(r, "intermediate_size", 14336, INT32_MAX, &c->intermediate_size));
    TRY(size_get(r, "num_hidden_layers", 32, CONFIG_MAX_LAYERS, &c->block_count));
    TRY(size_get(r, "num_attention_heads", 32, INT32_MAX, &c->head_count));
    TRY(size_get(r, "num_key_value_heads", 8, INT32_MAX, &c->kv_head_count));
    TRY(size_get(r, "num_local_experts", 8, INT32_MAX, &c->expert_count));
    TRY(size_get(r, "num_experts_per_tok", 2, INT32_MAX, &c->top_k));
    TRY(size_get(r, "max_position_embeddings", 131072, INT32_MAX, &c->context_length));
    TRY(head_dim_get(r, c));
    static const char packed[] = ", because rows are stored in units of 16 bytes";
    TRY(multiple_check(r, "hidden_size", c->hidden_size, 8, packed));
    TRY(multiple_check(r, "intermediate_size", c->intermediate_size, 8, packed));
    if (c->head_count % c->kv_head_count != 0)
        return fail(FUL_ERR_FORMAT, "%s: key '%s' = %u: must be a multiple of '%s' = %u", r->path,
                    shown(r, "num_attention_heads"), c->head_count, shown(r, "num_key_value_heads"),
                    c->kv_head_count);
    if (c->top_k > c->expert_count)
        return fail(FUL_ERR_FORMAT, "%s: key '%s' = %u: must be from 1 to '%s' = %u", r->path,
                    shown(r, "num_experts_per_tok"), c->top_k, shown(r, "num_local_experts"),
                    c->expert_count);
    return products_check(r, c);
}

/* ---- layers ---- */

/* One of the two lists, numbers or names, into kinds[]. */
static ful_result kinds_read(reader *r, const char *key, const json_t *list, uint32_t block_count,
                             uint8_t *kinds)
{
    if (!json_is_array(list))
        return value_fail(r, FUL_ERR_FORMAT, key, list, "must be a list");
    if (json_array_size(list) != block_count)
        return fail(FUL_ERR_FORMAT, "%s: key '%s' has %zu entries, '%s' is %u", r->path,
                    shown(r, key), json_array_size(list), shown(r, "num_hidden_layers"),
                    block_count);
    bool names = strcmp(key, "layer_types") == 0;
    for (uint32_t i = 0; i < block_count; i++) {
        const json_t *entry = json_array_get(list, i);
        int kind = -1;
        if (names && json_is_string(entry)) {
            if (strcmp(json_string_value(entry), "linear_attention") == 0)
                kind = LAYER_LIGHTNING;
            else if (strcmp(json_string_value(entry), "full_attention") == 0)
                kind = LAYER_SOFTMAX;
        } else if (!names && json_is_integer(entry)) {
            if (json_integer_value(entry) == 0)
                kind = LAYER_LIGHTNING;
            else if (json_integer_value(entry) == 1)
                kind = LAYER_SOFTMAX;
        }
        if (kind < 0)
            return fail(FUL_ERR_FORMAT, "%s: key '%s': entry %u = %s: must be %s", r->path, key, i,
                        value_text(r, entry),
                        names ? "\"linear_attention\" or \"full_attention\""
                              : "0 (lightning) or 1 (softmax)");
        kinds[i] = (uint8_t)kind;
    }
    return FUL_OK;
}

static ful_result layers_get(reader *r, model_config *c)
{
    const json_t *numbers = value_get(r, "attn_type_list"), *names = value_get(r, "layer_types");
    uint8_t other[CONFIG_MAX_LAYERS];
    if (!numbers && !names) {
        if (!r->native)
            return missing_fail(r, "attn_type_list");
        for (uint32_t i = 0; i < c->block_count; i++)
            c->layers[i] = i % 2 == 0 ? LAYER_SOFTMAX : LAYER_LIGHTNING;
        return FUL_OK;
    }
    if (numbers)
        TRY(kinds_read(r, "attn_type_list", numbers, c->block_count, c->layers));
    if (!names)
        return FUL_OK;
    uint8_t *kinds = numbers ? other : c->layers;
    TRY(kinds_read(r, "layer_types", names, c->block_count, kinds));
    for (uint32_t i = 0; numbers && i < c->block_count; i++)
        if (other[i] != c->layers[i])
            return fail(
                FUL_ERR_FORMAT,
                "%s: keys 'attn_type_list' and 'layer_types' contradict each other at layer "
                "%u: %u and %s",
                r->path, i, c->layers[i], value_text(r, json_array_get(names, i)));
    return FUL_OK;
}

/* ---- numbers ---- */

static ful_result rotary_get(reader *r, model_config *c)
{
    static const char *const factors[] = {"rope_parameters.partial_rotary_factor",
                                          "partial_rotary_factor", NULL};
    const json_t *dim = value_get(r, "rotary_dim");
    const char *found;
    double factor = 1.0;
    c->rotary_dim = c->head_dim;
    TRY(number_get(r, factors, 0.0, 1.0, &factor, &found));
    if (found) {
        double wanted = factor * c->head_dim;
        c->rotary_dim = (uint32_t)lround(wanted);
        if (fabs(wanted - c->rotary_dim) > 1e-6)
            return fail(FUL_ERR_FORMAT,
                        "%s: key '%s' = %.17g: 'head_dim' = %u times it is %g, not a whole number",
                        r->path, found, factor, c->head_dim, wanted);
    }
    if (dim) {
        TRY(integer_check(r, "rotary_dim", dim, 1, INT32_MAX));
        if (found && json_integer_value(dim) != (json_int_t)c->rotary_dim)
            return fail(FUL_ERR_FORMAT,
                        "%s: keys 'rotary_dim' = %lld and '%s' = %g (%u of "
                        "'head_dim' = %u) contradict each other",
                        r->path, json_integer_value(dim), found, factor, c->rotary_dim,
                        c->head_dim);
        c->rotary_dim = (uint32_t)json_integer_value(dim);
    }
    const char *key = dim || !found ? "rotary_dim" : found;
    if (c->rotary_dim == 0 || c->rotary_dim % 2 != 0 || c->rotary_dim > c->head_dim)
        return fail(FUL_ERR_FORMAT,
                    "%s: key '%s' gives %u rotary dimensions: must be even, from 2 to '%s' = %u",
                    r->path, shown(r, key), c->rotary_dim, shown(r, "head_dim"), c->head_dim);
    return FUL_OK;
}

static ful_result factors_get(reader *r, model_config *c)
{
    /* Kept in fp32 later: the limit is far inside its range. */
    static const double limit = 1e30;
    struct {
        const char *keys[3];
        double *out;
    } const factors[] = {
        {{"layernorm_linear_attention_alpha", "linear_attn_alpha_factor"}, &c->alpha_lightning},
        {{"layernorm_linear_attention_beta", "linear_attn_beta_factor"}, &c->beta_lightning},
        {{"layernorm_full_attention_alpha", "full_attn_alpha_factor"}, &c->alpha_softmax},
        {{"layernorm_full_attention_beta", "full_attn_beta_factor"}, &c->beta_softmax},
        {{"layernorm_mlp_alpha", "mlp_alpha_factor"}, &c->alpha_mlp},
        {{"layernorm_mlp_beta", "mlp_beta_factor"}, &c->beta_mlp},
    };
    const char *found;
    for (size_t i = 0; i < sizeof factors / sizeof factors[0]; i++) {
        *factors[i].out = 1.0;
        TRY(number_get(r, factors[i].keys, -limit, limit, factors[i].out, &found));
    }
    return FUL_OK;
}

static ful_result numbers_get(reader *r, model_config *c)
{
    static const char *const theta_keys[] = {"rope_parameters.rope_theta", "rope_theta", NULL};
    const char *found;
    c->rope_theta = 1e6;
    TRY(number_get(r, theta_keys, 1.0, 1e30, &c->rope_theta, &found));
    if (!found && !r->native)
        return missing_fail(r, "rope_theta");

    const json_t *eps = value_get(r, "rms_norm_eps");
    c->norm_eps = 1e-5;
    c->lightning_norm_eps = 1e-6; /* fixed in the published code, no key says otherwise */
    if (!eps && !r->native)
        return missing_fail(r, "rms_norm_eps");
    if (eps) {
        c->norm_eps = json_number_value(eps);
        if (!json_is_number(eps) || !(c->norm_eps > 0.0 && c->norm_eps < 1.0))
            return value_fail(r, FUL_ERR_FORMAT, "rms_norm_eps", eps,
                              "must be a number between 0 and 1");
    }
    TRY(rotary_get(r, c));
    return factors_get(r, c);
}

static ful_result config_read(reader *r, model_config *c)
{
    if (!json_is_object(r->root))
        return fail(FUL_ERR_FORMAT, "%s: not a JSON object", r->path);
    TRY(architecture_check(r, c));
    TRY(rope_check(r));
    TRY(features_check(r));
    TRY(sizes_get(r, c));
    TRY(layers_get(r, c));
    TRY(numbers_get(r, c));
    TRY(bool_get(r, "tie_word_embeddings", false, &c->tied_head));
    TRY(token_get(r, "bos_token_id", 1, c->vocab_size, &c->bos_token_id));
    return token_get(r, "eos_token_id", 2, c->vocab_size, &c->eos_token_id);
}

ful_result config_read_json(const char *name, json_t *root, const config_key *keys,
                            model_config *out)
{
    reader r = {.path = name, .root = root, .keys = keys};
    memset(out, 0, sizeof *out);
    return config_read(&r, out);
}

static bool ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* The config.json of a folder, or beside a checkpoint's file; NULL for other paths. */
static ful_result config_path(const ful_alloc *a, const char *path, char **out)
{
    *out = NULL;
    size_t n = strlen(path);
    if (ends_with(path, ".safetensors") || ends_with(path, ".safetensors.index.json")) {
        while (n > 0 && path[n - 1] != '/' && path[n - 1] != '\\')
            n--;
    } else if (!path_is_dir(path)) {
        return FUL_OK;
    }
    char *folder = mem_strndup(a, path, n);
    if (folder)
        *out = path_join(a, folder, "config.json");
    mem_free(a, folder);
    return *out ? FUL_OK : mem_fail(n + 13, "a file's path");
}

ful_result config_load(const ful_alloc *a, const char *path, model_config *out)
{
    char *joined;
    memset(out, 0, sizeof *out);
    TRY(config_path(a, path, &joined));
    reader r = {.path = joined ? joined : path};
    ful_result result = json_load_path(a, r.path, FILE_LIMIT_BYTES, &r.root);
    if (result == FUL_OK)
        result = config_read(&r, out);
    json_decref(r.root);
    mem_free(a, joined);
    return result;
}

/* ---- slopes ---- */

void config_slopes(const model_config *config, uint32_t layer, double *slopes)
{
    uint32_t heads = config->head_count;
    double l = layer, last = (double)config->block_count - 1.0, factor;
    if (config->decay == DECAY_HF) {
        factor = 1.0 - l / (last + 1e-5) + 1e-5;
        for (uint32_t h = 0; h < heads; h++)
            slopes[h] = exp2(-8.0 * (h + 1.0) / heads) * factor;
        return;
    }
    /* ALiBi's: the slopes of the largest power of two, then every second of the next one's. */
    factor = (last > 0.0 ? 1.0 - l / last : 1.0) + 1e-5;
    uint32_t power = 1;
    while (power <= heads / 2)
        power *= 2;
    for (uint32_t h = 0; h < heads; h++) {
        double exponent =
            h < power ? -8.0 * (h + 1.0) / power : -8.0 * (2.0 * (h - power) + 1.0) / (2.0 * power);
        slopes[h] = exp2(exponent) * factor;
    }
}
