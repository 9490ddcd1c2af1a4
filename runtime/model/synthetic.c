/* Models that lie in no file: dimensions by name or one by one, weights computed on the device.
 *
 * Matrices are uniform with a standard deviation of 1/sqrt(columns), so that a normalised row gives
 * products of about 1, wherever in the model; norm weights lie around 1. Router rows are as random
 * as the rest, which spreads tokens over the experts. */
#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "model/weights.h"

/* ---- dimensions ---- */

typedef struct preset {
    const char *name;
    uint32_t block_count, hidden_size, head_count, kv_head_count, head_dim, rotary_dim,
        expert_count, intermediate_size, vocab_size;
} preset;

static const preset presets[] = {
    {"tiny", 8, 256, 8, 2, 64, 32, 8, 512, 1024},
    {"small", 8, 1024, 8, 2, 128, 64, 8, 1536, 8192},
    {"mid", 16, 2048, 16, 2, 128, 64, 16, 1792, 32768},
    {"full8x8", 8, 6144, 64, 8, 128, 64, 8, 9216, 200064},
    {"full8", 8, 6144, 64, 8, 128, 64, 32, 9216, 200064},
    {"full16", 16, 6144, 64, 8, 128, 64, 32, 9216, 200064},
    {"full80", 80, 6144, 64, 8, 128, 64, 32, 9216, 200064},
};
enum {
    PRESET_COUNT = sizeof presets / sizeof *presets,
    DEFAULT_TOP_K = 2,
    DEFAULT_SOFTMAX_EVERY = 8,
    DEFAULT_CONTEXT = 1 << 20
};

const char *ful_synthetic_preset(uint32_t index)
{
    return index < PRESET_COUNT ? presets[index].name : NULL;
}

static ful_result find_preset(const char *name, preset *out)
{
    memset(out, 0, sizeof *out);
    if (!name)
        return FUL_OK;
    char known[128] = "";
    for (size_t i = 0, at = 0; i < PRESET_COUNT; i++) {
        if (strcmp(presets[i].name, name) == 0) {
            *out = presets[i];
            return FUL_OK;
        }
        at +=
            (size_t)snprintf(known + at, sizeof known - at, "%s%s", i ? ", " : "", presets[i].name);
        assert(at < sizeof known);
    }
    return fail(FUL_ERR_ARGUMENT, "synthetic model: there is no preset '%.40s'; there are %s", name,
                known);
}

static uint32_t either(uint32_t given, uint32_t otherwise)
{
    return given ? given : otherwise;
}

/* As a config.json, so that one set of checks serves both; NULL: out of memory. */
static json_t *config_json(const ful_synthetic_params *p, const preset *base)
{
    static const double factor = 3.5565588200778455; /* of the published model */
    uint32_t layers = either(p->block_count, base->block_count);
    uint32_t every = either(p->softmax_every, DEFAULT_SOFTMAX_EVERY);
    const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {
        {"num_hidden_layers", layers},
        {"hidden_size", either(p->hidden_size, base->hidden_size)},
        {"intermediate_size", either(p->intermediate_size, base->intermediate_size)},
        {"vocab_size", either(p->vocab_size, base->vocab_size)},
        {"num_attention_heads", either(p->head_count, base->head_count)},
        {"num_key_value_heads", either(p->kv_head_count, base->kv_head_count)},
        {"head_dim", either(p->head_dim, base->head_dim)},
        {"num_local_experts", either(p->expert_count, base->expert_count)},
        {"num_experts_per_tok", either(p->top_k, DEFAULT_TOP_K)},
        {"max_position_embeddings", either(p->context_length, DEFAULT_CONTEXT)},
    };
    json_t *root = json_pack(
        "{s:s, s:b, s:f, s:f, s:f, s:f, s:f}", "model_type", "minimax_text_01", "postnorm", 1,
        "rope_theta", 1e7, "rms_norm_eps", 1e-5, "layernorm_linear_attention_alpha", factor,
        "layernorm_full_attention_alpha", factor, "layernorm_mlp_alpha", factor);
    bool good = root != NULL;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes && good; i++)
        good = json_object_set_new(root, sizes[i].key, json_integer(sizes[i].value)) == 0;
    /* Half of the head where nothing is said, as in the published model. */
    uint32_t rotary = either(p->rotary_dim, p->head_dim ? p->head_dim / 2 : base->rotary_dim);
    if (rotary && good)
        good = json_object_set_new(root, "rotary_dim", json_integer(rotary)) == 0;
    json_t *kinds = json_array();
    for (uint32_t i = 0; i < layers && i < CONFIG_MAX_LAYERS && kinds && good; i++)
        good = json_array_append_new(kinds, json_integer((i + 1) % every == 0)) == 0;
    if (!good || !kinds) {
        json_decref(kinds);
        json_decref(root);
        return NULL;
    }
    if (json_object_set_new(root, "attn_type_list", kinds) != 0) {
        json_decref(root);
        return NULL;
    }
    return root;
}

/* Rows of all matrices are of whole blocks. */
static ful_result columns_check(const model_config *c, ful_type type)
{
    const uint64_t cols[] = {c->hidden_size, (uint64_t)c->head_count * c->head_dim,
                             c->intermediate_size};
    static const char *const names[] = {"hidden_size", "head_count * head_dim",
                                        "intermediate_size"};
    for (size_t i = 0; i < sizeof cols / sizeof *cols; i++)
        if (type_row_bytes(type, cols[i]) == 0)
            return fail(FUL_ERR_ARGUMENT,
                        "synthetic model: %s of %llu is no multiple of %u, the block of %s",
                        names[i], (unsigned long long)cols[i], type_get(type)->block_elements,
                        ful_type_name(type));
    return FUL_OK;
}

ful_result synthetic_config(const ful_synthetic_params *params, model_config *config,
                            ful_model_info *info)
{
    preset base;
    TRY(find_preset(params->preset, &base));
    ful_type type = params->weight_type ? params->weight_type : FUL_TYPE_F16;
    if (!type_get(type))
        return fail(FUL_ERR_ARGUMENT, "synthetic model: weight type %d is not a known one",
                    (int)type);
    json_t *root = config_json(params, &base);
    if (!root)
        return fail(FUL_ERR_HOST_MEMORY, "synthetic model: out of host memory for its config");
    ful_result r = config_read_json("synthetic model", root, NULL, config);
    json_decref(root);
    if (r == FUL_ERR_FORMAT || r == FUL_ERR_UNSUPPORTED) {
        char line[320]; /* the caller's argument is at fault, not a file */
        snprintf(line, sizeof line, "%s", ful_last_error());
        return fail(FUL_ERR_ARGUMENT, "%s", line);
    }
    TRY(r);
    TRY(columns_check(config, type));
    snprintf(config->model_type, sizeof config->model_type, "synthetic %.20s",
             params->preset ? params->preset : "model");
    model_info_of(config, type, info);
    return FUL_OK;
}

/* ---- weights ---- */

typedef struct maker {
    ful_model *model;
    gpu_commands *commands; /* of one layer */
    uint64_t seed;
    uint64_t tensors; /* made so far: the number of the next */
    uint64_t done_bytes;
    ful_progress_fn progress;
    void *progress_ctx;
} maker;

static op_context maker_context(const maker *m)
{
    return (op_context){.device = m->model->device, .commands = m->commands, .layer = -1};
}

static ful_result make_tensor(maker *m, ful_type type, uint32_t experts, uint64_t rows,
                              uint64_t cols, double deviation, const char *name, gpu_tensor *out)
{
    TRY(gpu_tensor_create(m->model->device, type, experts, (uint32_t)rows, (uint32_t)cols, name,
                          out));
    op_context ctx = maker_context(m);
    TRY(op_random_tensor(
        &ctx, out,
        &(op_random_args){.key = op_random_key(m->seed, m->tensors), .deviation = deviation}));
    m->tensors++;
    m->done_bytes += gpu_tensor_bytes(out);
    return FUL_OK;
}

static ful_result make_matrix(maker *m, uint32_t experts, uint64_t rows, uint64_t cols,
                              const char *name, gpu_tensor *out)
{
    return make_tensor(m, m->model->info.weight_type, experts, rows, cols, 1.0 / sqrt((double)cols),
                       name, out);
}

static ful_result make_vector(maker *m, uint64_t n, const char *name, gpu_buffer *out)
{
    uint64_t row_bytes = (4 * n + 15) / 16 * 16;
    TRY(gpu_buffer_create(m->model->device, row_bytes, GPU_MEMORY_DEVICE, name, out));
    op_context ctx = maker_context(m);
    TRY(op_random(&ctx, &(op_random_args){.out = gpu_whole(out),
                                          .type = FUL_TYPE_F32,
                                          .key = op_random_key(m->seed, m->tensors),
                                          .rows = 1,
                                          .row_bytes = row_bytes,
                                          .mean = 1.0,
                                          .deviation = 0.25 / sqrt(3.0)}));
    m->tensors++;
    m->done_bytes += row_bytes;
    return FUL_OK;
}

static ful_result make_ends(maker *m)
{
    const model_config *c = &m->model->config;
    TRY(make_tensor(m, m->model->info.weight_type, 1, c->vocab_size, c->hidden_size, 1.0,
                    "embedding", &m->model->embedding));
    TRY(make_matrix(m, 1, c->vocab_size, c->hidden_size, "head", &m->model->head));
    return make_vector(m, c->hidden_size, "final_norm", &m->model->final_norm);
}

static ful_result make_layer(maker *m, uint32_t i)
{
    const model_config *c = &m->model->config;
    model_layer *layer = &m->model->layers[i];
    uint64_t d = c->hidden_size, inner = (uint64_t)c->head_count * c->head_dim,
             kv = (uint64_t)c->kv_head_count * c->head_dim;
    layer->kind = (layer_kind)c->layers[i];
    bool lightning = layer->kind == LAYER_LIGHTNING;
    TRY(make_vector(m, d, "input_norm", &layer->input_norm));
    TRY(make_vector(m, d, "post_norm", &layer->post_norm));
    TRY(make_tensor(m, FUL_TYPE_F32, 1, c->expert_count, d, 1.0 / sqrt((double)d), "router",
                    &layer->router));
    TRY(make_matrix(m, 1, lightning ? 4 * inner : inner + 2 * kv, d, lightning ? "qkv_gate" : "qkv",
                    &layer->qkv));
    if (lightning) {
        TRY(make_vector(m, inner, "lightning_norm", &layer->lightning_norm));
        TRY(weights_decay(m->model, i, &layer->decay));
    }
    TRY(make_matrix(m, 1, d, inner, "out", &layer->out));
    TRY(make_matrix(m, c->expert_count, 2 * (uint64_t)c->intermediate_size, d, "w13", &layer->w13));
    return make_matrix(m, c->expert_count, d, c->intermediate_size, "w2", &layer->w2);
}

/* One layer, or what lies outside the layers (i == block_count), up to the end of its work. */
static ful_result make_part(maker *m, uint32_t i)
{
    const model_config *c = &m->model->config;
    TRY(gpu_commands_begin(m->model->device, 0, &m->commands));
    ful_result r = i == c->block_count ? make_ends(m) : make_layer(m, i);
    if (r == FUL_OK)
        r = gpu_commands_end(m->commands);
    if (r == FUL_OK)
        r = gpu_commands_submit(m->commands);
    if (r == FUL_OK)
        r = gpu_commands_wait(m->commands);
    gpu_commands_destroy(&m->commands);
    TRY(r);
    uint64_t total = m->model->info.weight_bytes;
    ful_progress p = {FUL_PHASE_UPLOAD, m->done_bytes < total ? m->done_bytes : total, total};
    if (m->progress && !m->progress(m->progress_ctx, &p))
        return fail(FUL_ERR_CANCELLED, "making the weights was cancelled after %llu of %llu bytes",
                    (unsigned long long)p.done, (unsigned long long)total);
    return FUL_OK;
}

ful_result synthetic_weights(ful_model *model, uint64_t seed, ful_progress_fn progress,
                             void *progress_ctx)
{
    maker m = {.model = model, .seed = seed, .progress = progress, .progress_ctx = progress_ctx};
    uint32_t n = model->config.block_count;
    model->layers = mem_zalloc(device_alloc(model->device), n, sizeof *model->layers);
    if (!model->layers)
        return mem_fail(n * sizeof *model->layers, "the layers");
    for (uint32_t i = 0; i <= n; i++)
        TRY(make_part(&m, i));
    return FUL_OK;
}
