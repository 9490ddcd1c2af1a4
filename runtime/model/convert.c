/* Models to GGUF files: keys from the config, tensors row by row. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/gguf_write.h"
#include "model/gguf_names.h"
#include "model/names.h"
#include "text/tokenizer_gguf.h"

enum { PIECE_BYTES = 1 << 20, MAX_ENTRIES = 3 + CONFIG_MAX_LAYERS * (LAYER_ROLES + 3) };

/* One tensor of the file to be; the experts of a layer are one. */
typedef struct entry {
    tensor_role role;
    uint32_t layer;
    ful_type type;
} entry;

typedef struct converter {
    const ful_alloc *alloc;
    const tensor_file *files;
    const model_config *config;
    ful_type type; /* FUL_TYPE_DEFAULT: as they are */
    gguf_writer *writer;
    entry *entries;
    uint32_t count;
    uint8_t *piece; /* PIECE_BYTES, or a row if that is more */
    size_t piece_bytes;
    uint64_t done;
    ful_progress_fn progress;
    void *progress_ctx;
} converter;

/* ---- keys ---- */

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

static uint32_t file_type(const converter *v)
{
    uint64_t of_type[TYPE_COUNT] = {0};
    ful_type most = FUL_TYPE_F32;
    for (uint32_t i = 0; i < v->count; i++) {
        uint64_t rows, cols;
        tensor_shape(v->config, v->entries[i].role, &rows, &cols);
        of_type[v->entries[i].type] +=
            rows * cols * (v->entries[i].role >= ROLE_W1 ? v->config->expert_count : 1);
    }
    for (int t = FUL_TYPE_F16; t < TYPE_COUNT; t++)
        if (of_type[t] > of_type[most])
            most = (ful_type)t;
    return most == FUL_TYPE_F16 ? 1 : most == FUL_TYPE_BF16 ? 32 : 0;
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
    gguf_put_u32(w, "general.file_type", file_type(v));
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
        gguf_put_u32(w, "tokenizer.ggml.bos_token_id", (uint32_t)c->bos_token_id);
        gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    }
    if (c->eos_token_id >= 0)
        gguf_put_u32(w, "tokenizer.ggml.eos_token_id", (uint32_t)c->eos_token_id);
}

/* The tokenizer's keys of another GGUF, but for those that config_put has written. */
static void tokenizer_copy(const converter *v, const gguf_keys *keys)
{
    static const char prefix[] = "tokenizer.";
    for (uint32_t i = 0; i < gguf_keys_count(keys); i++) {
        const gguf_value *value = gguf_keys_at(keys, i);
        const char *key = value->key;
        bool bos = strcmp(key, "tokenizer.ggml.bos_token_id") == 0 ||
                   strcmp(key, "tokenizer.ggml.add_bos_token") == 0;
        bool eos = strcmp(key, "tokenizer.ggml.eos_token_id") == 0;
        if (strncmp(key, prefix, sizeof prefix - 1) == 0 &&
            !(bos && v->config->bos_token_id >= 0) && !(eos && v->config->eos_token_id >= 0))
            gguf_put_value(v->writer, value);
    }
}

static ful_result tokenizer_put(const converter *v, const char *path)
{
    const gguf_keys *keys = tensor_file_keys(v->files);
    char *json = NULL;
    if (keys) {
        tokenizer_copy(v, keys);
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

/* ---- tensors ---- */

/* The type that all experts of an entry can have. */
static ful_result entry_type(const converter *v, entry *e)
{
    uint32_t experts = e->role >= ROLE_W1 ? v->config->expert_count : 1;
    uint64_t rows, cols;
    tensor_shape(v->config, e->role, &rows, &cols);
    e->type = v->type;
    for (uint32_t i = 0; i < experts; i++) {
        tensor_info t;
        TRY(tensor_get(v->files, v->config, e->role, e->layer, i, &t));
        if (v->type == FUL_TYPE_DEFAULT)
            e->type = i == 0 || e->type == t.type ? t.type : FUL_TYPE_F32;
    }
    if (!cols || e->role == ROLE_ROUTER)
        e->type = FUL_TYPE_F32;
    return FUL_OK;
}

static ful_result entry_add(converter *v, tensor_role role, uint32_t layer)
{
    char name[TENSOR_NAME_BYTES];
    entry *e = &v->entries[v->count++];
    *e = (entry){role, layer, FUL_TYPE_F32};
    TRY(entry_type(v, e));
    uint64_t rows, cols, dims[3], *at = dims;
    tensor_shape(v->config, role, &rows, &cols);
    if (role >= ROLE_W1)
        *at++ = v->config->expert_count;
    *at++ = rows;
    if (cols)
        *at++ = cols;
    tensor_gguf_name(role, layer, name, sizeof name);
    gguf_put_tensor(v->writer, name, e->type, dims, (uint32_t)(at - dims));
    size_t row = (size_t)type_row_bytes(e->type, cols ? cols : rows);
    v->piece_bytes = row > v->piece_bytes ? row : v->piece_bytes;
    return FUL_OK;
}

static ful_result entries_add(converter *v)
{
    static const tensor_role experts[] = {ROLE_W1, ROLE_W2, ROLE_W3};
    v->entries = mem_array(v->alloc, MAX_ENTRIES, sizeof *v->entries);
    if (!v->entries)
        return mem_fail(MAX_ENTRIES * sizeof *v->entries, "the list of tensors");
    TRY(entry_add(v, ROLE_EMBEDDING, 0));
    for (uint32_t l = 0; l < v->config->block_count; l++) {
        const tensor_role *roles = tensor_layer_roles((layer_kind)v->config->layers[l]);
        for (size_t i = 0; i < LAYER_ROLES; i++)
            TRY(entry_add(v, roles[i], l));
        for (size_t i = 0; i < 3; i++)
            TRY(entry_add(v, experts[i], l));
    }
    TRY(entry_add(v, ROLE_FINAL_NORM, 0));
    return v->config->tied_head ? FUL_OK : entry_add(v, ROLE_HEAD, 0);
}

/* n elements from one plain type to another. */
static ful_result elements_convert(const tensor_info *t, uint64_t first, ful_type to, void *out,
                                   uint64_t n)
{
    size_t size = type_bytes(t->type);
    const uint8_t *in = t->data + first * size;
    for (uint64_t i = 0; i < n; i++) {
        float f = element_to_float(t->type, in + i * size);
        uint16_t half = to == FUL_TYPE_F16 ? float_to_half(f) : float_to_bfloat(f);
        if (to == FUL_TYPE_F32)
            memcpy((float *)out + i, &f, sizeof f);
        else
            memcpy((uint16_t *)out + i, &half, sizeof half);
        if (to != FUL_TYPE_F32 && isfinite(f) && !isfinite(element_to_float(to, &half)))
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor %s: %g at index %" PRIu64 " is outside the range of %s",
                        t->path, t->name, (double)f, first + i, ful_type_name(to));
    }
    return FUL_OK;
}

static ful_result piece_write(converter *v, const void *data, size_t bytes)
{
    TRY(gguf_write_data(v->writer, data, bytes));
    v->done += bytes;
    ful_progress p = {FUL_PHASE_WRITE, v->done, gguf_writer_bytes(v->writer)};
    if (v->progress && !v->progress(v->progress_ctx, &p))
        return fail(FUL_ERR_CANCELLED, "cancelled while writing");
    return FUL_OK;
}

static ful_result tensor_write(converter *v, const tensor_info *t, ful_type to)
{
    bool same = t->type == to;
    if (!same && type_is_blocks(t->type))
        return fail(FUL_ERR_UNSUPPORTED, "%s: tensor %s has type %s, which can't be made %s",
                    t->path, t->name, t->type_name, ful_type_name(to));
    if (same) {
        for (uint64_t at = 0; at < t->bytes;) {
            size_t n = t->bytes - at < PIECE_BYTES ? (size_t)(t->bytes - at) : PIECE_BYTES;
            TRY(piece_write(v, t->data + at, n));
            at += n;
        }
        return FUL_OK;
    }
    uint64_t count = t->bytes / type_bytes(t->type), most = v->piece_bytes / type_bytes(to);
    for (uint64_t at = 0; at < count;) {
        uint64_t n = count - at < most ? count - at : most;
        TRY(elements_convert(t, at, to, v->piece, n));
        TRY(piece_write(v, v->piece, (size_t)n * type_bytes(to)));
        at += n;
    }
    return FUL_OK;
}

static ful_result entries_write(converter *v)
{
    for (uint32_t i = 0; i < v->count; i++) {
        const entry *e = &v->entries[i];
        uint32_t experts = e->role >= ROLE_W1 ? v->config->expert_count : 1;
        for (uint32_t x = 0; x < experts; x++) {
            tensor_info t;
            TRY(tensor_get(v->files, v->config, e->role, e->layer, x, &t));
            TRY(tensor_write(v, &t, e->type));
        }
    }
    return FUL_OK;
}

static ful_result convert(converter *v, const char *path, const char *out_path)
{
    TRY(gguf_writer_open(v->alloc, out_path, &v->writer));
    v->piece_bytes = PIECE_BYTES;
    TRY(entries_add(v));
    config_put(v);
    TRY(tokenizer_put(v, path));
    TRY(gguf_write_head(v->writer));
    v->piece = mem_alloc(v->alloc, v->piece_bytes);
    if (!v->piece)
        return mem_fail(v->piece_bytes, "a piece of a tensor");
    TRY(entries_write(v));
    return gguf_writer_finish(&v->writer);
}

ful_result ful_model_convert(ful_instance *instance, const char *path, const char *out_path,
                             const ful_convert_params *params, ful_progress_fn progress,
                             void *progress_ctx)
{
    if (!instance || !path || !out_path)
        return fail(FUL_ERR_ARGUMENT, "ful_model_convert: instance, path and out_path must not be "
                                      "NULL");
    ful_convert_params p;
    TRY(params_copy(&p, sizeof p, params, "ful_convert_params"));
    if ((unsigned)p.type > FUL_TYPE_BF16)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_model_convert: type %s; F32, F16 and BF16 can be written",
                    ful_type_name(p.type));
    if (file_exists(out_path)) /* before a long look at the model */
        return fail(FUL_ERR_IO, "%s: exists already and is not overwritten", out_path);
    const ful_alloc *a = instance_alloc(instance);
    tensor_file *files = NULL;
    ful_model_info info;
    model_config *config = mem_zalloc(a, 1, sizeof *config);
    if (!config)
        return mem_fail(sizeof *config, "the model's config");
    converter v = {.alloc = a,
                   .config = config,
                   .type = p.type,
                   .progress = progress,
                   .progress_ctx = progress_ctx};
    ful_result r = model_open_files(a, path, config, &files, &info);
    v.files = files;
    if (r == FUL_OK)
        r = convert(&v, path, out_path);
    gguf_writer_cancel(&v.writer);
    mem_free(a, v.entries);
    mem_free(a, v.piece);
    tensor_file_close(&files);
    mem_free(a, config);
    return r;
}
