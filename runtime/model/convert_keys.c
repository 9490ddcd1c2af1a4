/* The keys of a model's GGUF: from its config, its tokenizer, and of a GGUF from there. */
#include <string.h>

#include "base/file_os.h"
#include "model/convert.h"
#include "model/gguf_names.h"
#include "text/tokenizer_gguf.h"

#define FILE_TYPE "general.file_type"
#define QUANTIZATION_VERSION "general.quantization_version"
#define BOS_TOKEN "tokenizer.ggml.bos_token_id"
#define ADD_BOS_TOKEN "tokenizer.ggml.add_bos_token"
#define EOS_TOKEN "tokenizer.ggml.eos_token_id"

static bool is_float(double x)
{
    return (double)(float)x == x;
}

/* Exactly what 32 bits can't hold. */
static void exact_put(gguf_writer *w, const char *key, double x)
{
    if (!is_float(x))
        gguf_put_f64(w, key, x);
}

static void layers_put(gguf_writer *w, const model_config *c)
{
    for (uint32_t k = 1; k <= c->block_count + 1; k++) {
        uint32_t l = 0;
        while (l < c->block_count && (c->layers[l] == LAYER_LIGHTNING) == ((l + 1) % k != 0))
            l++;
        if (l == c->block_count) {
            gguf_put_u32(w, GGUF_KEY("full_attention_interval"), k);
            return;
        }
    }
    bool recurrent[CONFIG_MAX_LAYERS];
    for (uint32_t l = 0; l < c->block_count; l++)
        recurrent[l] = c->layers[l] == LAYER_LIGHTNING;
    gguf_put_bools(w, GGUF_KEY("attention.recurrent_layers"), recurrent, c->block_count);
}

static void factors_put(gguf_writer *w, const model_config *c)
{
    const struct {
        const char *key;
        double value;
    } alphas[] = {{FULGUR_LIGHTNING_ALPHA, c->alpha_lightning},
                  {FULGUR_SOFTMAX_ALPHA, c->alpha_softmax},
                  {FULGUR_MLP_ALPHA, c->alpha_mlp}},
      betas[] = {{FULGUR_LIGHTNING_BETA, c->beta_lightning},
                 {FULGUR_SOFTMAX_BETA, c->beta_softmax},
                 {FULGUR_MLP_BETA, c->beta_mlp}};
    bool common = true;
    for (size_t i = 0; i < 3; i++)
        common = common && alphas[i].value == alphas[0].value && betas[i].value == 1.0;
    if (common)
        gguf_put_f32(w, GGUF_KEY("residual_scale"), (float)alphas[0].value);
    for (size_t i = 0; i < 3; i++) {
        if (!common || !is_float(alphas[i].value))
            gguf_put_f64(w, alphas[i].key, alphas[i].value);
        if (betas[i].value != 1.0)
            gguf_put_f64(w, betas[i].key, betas[i].value);
    }
}

/* Numbers of general.file_type. */
static const uint8_t file_types[TYPE_COUNT] = {
    [FUL_TYPE_F32] = 0,   [FUL_TYPE_F16] = 1,     [FUL_TYPE_BF16] = 32, [FUL_TYPE_Q8_0] = 7,
    [FUL_TYPE_Q4_0] = 2,  [FUL_TYPE_Q4_1] = 3,    [FUL_TYPE_Q5_0] = 8,  [FUL_TYPE_Q5_1] = 9,
    [FUL_TYPE_Q2_K] = 10, [FUL_TYPE_Q3_K] = 11,   [FUL_TYPE_Q4_K] = 14, [FUL_TYPE_Q5_K] = 16,
    [FUL_TYPE_Q6_K] = 18, [FUL_TYPE_IQ4_NL] = 25, [FUL_TYPE_MXFP4] = 38};

/* What was asked for; of a model that is kept as it is what its file says, else the type of most
 * elements. */
static uint32_t file_type(const converter *v)
{
    const gguf_keys *keys = tensor_file_keys(v->files);
    int64_t said;
    if (v->mix)
        return mix_file_type(v->mix);
    if (v->params.type)
        return file_types[v->params.type];
    if (keys && gguf_integer(gguf_keys_one(keys, FILE_TYPE), 0, &said) && said >= 0 &&
        said <= UINT32_MAX)
        return (uint32_t)said;
    uint64_t of_type[TYPE_COUNT] = {0};
    ful_type most = FUL_TYPE_F32;
    for (uint32_t i = 0; i < v->count; i++) {
        uint64_t rows, cols;
        tensor_shape(v->config, v->entries[i].role, &rows, &cols);
        of_type[v->entries[i].type] += rows * cols * convert_matrices(v, v->entries[i].role);
    }
    for (int t = FUL_TYPE_F16; t < TYPE_COUNT; t++)
        if (of_type[t] > of_type[most])
            most = (ful_type)t;
    return file_types[most];
}

/* Of a file with blocks: which version of their layouts it has. */
static void quantization_put(const converter *v)
{
    uint32_t i = 0;
    while (i < v->count && !type_is_blocks(v->entries[i].type))
        i++;
    if (i < v->count)
        gguf_put_u32(v->writer, QUANTIZATION_VERSION, 2);
    if (v->params.importance_path) {
        const char *name = v->params.importance_path;
        for (const char *at = name; *at; at++)
            if (IS_SEPARATOR(*at))
                name = at + 1;
        gguf_put_text(v->writer, "quantize.imatrix.file", name, strlen(name));
    }
}

static void config_put(const converter *v)
{
    gguf_writer *w = v->writer;
    const model_config *c = v->config;
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        {GGUF_KEY("vocab_size"), c->vocab_size},
        {GGUF_KEY("block_count"), c->block_count},
        {GGUF_KEY("context_length"), c->context_length},
        {GGUF_KEY("embedding_length"), c->hidden_size},
        {GGUF_KEY("feed_forward_length"), c->intermediate_size},
        {GGUF_KEY("attention.head_count"), c->head_count},
        {GGUF_KEY("attention.head_count_kv"), c->kv_head_count},
        {GGUF_KEY("attention.key_length"), c->head_dim},
        {GGUF_KEY("attention.value_length"), c->head_dim},
        {GGUF_KEY("rope.dimension_count"), c->rotary_dim},
        {GGUF_KEY("expert_count"), c->expert_count},
        {GGUF_KEY("expert_used_count"), c->top_k},
    };
    gguf_put_text(w, "general.architecture", GGUF_ARCHITECTURE, strlen(GGUF_ARCHITECTURE));
    gguf_put_text(w, "general.type", "model", 5);
    gguf_put_u32(w, FILE_TYPE, file_type(v));
    quantization_put(v);
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        gguf_put_u32(w, sizes[i].key, sizes[i].value);
    gguf_put_f32(w, GGUF_KEY("attention.layer_norm_rms_epsilon"), (float)c->norm_eps);
    gguf_put_f32(w, GGUF_KEY("rope.freq_base"), (float)c->rope_theta);
    layers_put(w, c);
    factors_put(w, c);
    exact_put(w, FULGUR_NORM_EPSILON, c->norm_eps);
    exact_put(w, FULGUR_ROPE_FREQ_BASE, c->rope_theta);
    gguf_put_f64(w, FULGUR_LIGHTNING_NORM_EPSILON, c->lightning_norm_eps);
    const char *decay = c->decay == DECAY_HF ? "hf" : "orig";
    gguf_put_text(w, FULGUR_LIGHTNING_DECAY, decay, strlen(decay));
    if (c->bos_token_id >= 0) {
        gguf_put_u32(w, BOS_TOKEN, (uint32_t)c->bos_token_id);
        gguf_put_bool(w, ADD_BOS_TOKEN, true);
    }
    if (c->eos_token_id >= 0)
        gguf_put_u32(w, EOS_TOKEN, (uint32_t)c->eos_token_id);
}

static bool is_one_of(const char *key, const char *const *keys, size_t count)
{
    size_t i = 0;
    while (i < count && strcmp(keys[i], key) != 0)
        i++;
    return i < count;
}

/* What another GGUF says about itself (name, author, licence) and its tokenizer's keys, but for
 * those that are written anew. */
static void others_copy(const converter *v, const gguf_keys *keys)
{
    static const char tokenizer[] = "tokenizer.", general[] = "general.";
    static const char *const bos[] = {BOS_TOKEN, ADD_BOS_TOKEN}, *const eos[] = {EOS_TOKEN},
                             *const anew[] = {"general.architecture", "general.type",
                                              "general.alignment", FILE_TYPE, QUANTIZATION_VERSION};
    for (uint32_t i = 0; i < gguf_keys_count(keys); i++) {
        const gguf_value *value = gguf_keys_at(keys, i);
        const char *key = value->key;
        if ((strncmp(key, tokenizer, sizeof tokenizer - 1) == 0 ||
             strncmp(key, general, sizeof general - 1) == 0) &&
            !is_one_of(key, anew, sizeof anew / sizeof *anew) &&
            !(v->config->bos_token_id >= 0 && is_one_of(key, bos, 2)) &&
            !(v->config->eos_token_id >= 0 && is_one_of(key, eos, 1)))
            gguf_put_value(v->writer, value);
    }
}

static ful_result tokenizer_put(const converter *v, const char *path)
{
    const gguf_keys *keys = tensor_file_keys(v->files);
    char *json = NULL;
    if (keys) {
        others_copy(v, keys);
    } else if (path_is_dir(path)) {
        json = path_join(v->alloc, path, "tokenizer.json");
        if (!json)
            return mem_fail(strlen(path), "a file's path");
    }
    ful_result r = FUL_OK;
    if (json && file_exists(json))
        r = tokenizer_gguf_put(v->alloc, json, v->config->vocab_size, v->writer);
    else if (!keys || !gguf_keys_find(keys, "tokenizer.ggml.model"))
        gguf_put_text(v->writer, "tokenizer.ggml.model", "no_vocab", 8);
    mem_free(v->alloc, json);
    return r;
}

ful_result convert_keys_put(const converter *v, const char *path)
{
    config_put(v);
    return tokenizer_put(v, path);
}
