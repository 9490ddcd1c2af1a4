/* A checkpoint's files against its config: names, shapes, types, and the numbers of ful_model_info.
 */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/quant.h"
#include "model/names.h"

static const char *const role_names[ROLE_COUNT] = {
    [ROLE_EMBEDDING] = "model.embed_tokens.weight",
    [ROLE_FINAL_NORM] = "model.norm.weight",
    [ROLE_HEAD] = "lm_head.weight",
    [ROLE_INPUT_NORM] = "input_layernorm.weight",
    [ROLE_POST_NORM] = "post_attention_layernorm.weight",
    [ROLE_LIGHTNING_QKV] = "self_attn.qkv_proj.weight",
    [ROLE_LIGHTNING_GATE] = "self_attn.output_gate.weight",
    [ROLE_LIGHTNING_NORM] = "self_attn.norm.weight",
    [ROLE_LIGHTNING_OUT] = "self_attn.out_proj.weight",
    [ROLE_SOFTMAX_Q] = "self_attn.q_proj.weight",
    [ROLE_SOFTMAX_K] = "self_attn.k_proj.weight",
    [ROLE_SOFTMAX_V] = "self_attn.v_proj.weight",
    [ROLE_SOFTMAX_OUT] = "self_attn.o_proj.weight",
    [ROLE_ROUTER] = "block_sparse_moe.gate.weight",
    [ROLE_W1] = "w1.weight",
    [ROLE_W2] = "w2.weight",
    [ROLE_W3] = "w3.weight",
};

static const char *const gguf_names[ROLE_COUNT] = {
    [ROLE_EMBEDDING] = "token_embd",
    [ROLE_FINAL_NORM] = "output_norm",
    [ROLE_HEAD] = "output",
    [ROLE_INPUT_NORM] = "attn_norm",
    [ROLE_POST_NORM] = "ffn_norm",
    [ROLE_LIGHTNING_QKV] = "attn_qkv",
    [ROLE_LIGHTNING_GATE] = "attn_gate",
    [ROLE_LIGHTNING_NORM] = "attn_norm_2",
    [ROLE_LIGHTNING_OUT] = "attn_output",
    [ROLE_SOFTMAX_Q] = "attn_q",
    [ROLE_SOFTMAX_K] = "attn_k",
    [ROLE_SOFTMAX_V] = "attn_v",
    [ROLE_SOFTMAX_OUT] = "attn_output",
    [ROLE_ROUTER] = "ffn_gate_inp",
    [ROLE_W1] = "ffn_gate_exps",
    [ROLE_W2] = "ffn_down_exps",
    [ROLE_W3] = "ffn_up_exps",
};

void tensor_gguf_name(tensor_role role, uint32_t layer, char *out, size_t bytes)
{
    if (role < ROLE_INPUT_NORM)
        snprintf(out, bytes, "%s.weight", gguf_names[role]);
    else
        snprintf(out, bytes, "blk.%u.%s.weight", layer, gguf_names[role]);
}

static void role_name(tensor_role role, uint32_t layer, uint32_t expert, char *out, size_t bytes)
{
    if (role < ROLE_INPUT_NORM)
        snprintf(out, bytes, "%s", role_names[role]);
    else if (role < ROLE_W1)
        snprintf(out, bytes, "model.layers.%u.%s", layer, role_names[role]);
    else
        snprintf(out, bytes, "model.layers.%u.block_sparse_moe.experts.%u.%s", layer, expert,
                 role_names[role]);
}

void tensor_shape(const model_config *c, tensor_role role, uint64_t *rows, uint64_t *cols)
{
    uint64_t inner = (uint64_t)c->head_count * c->head_dim;
    uint64_t kv = (uint64_t)c->kv_head_count * c->head_dim;
    *rows = 0;
    *cols = c->hidden_size;
    switch (role) {
    case ROLE_EMBEDDING:
    case ROLE_HEAD:
        *rows = c->vocab_size;
        break;
    case ROLE_FINAL_NORM:
    case ROLE_INPUT_NORM:
    case ROLE_POST_NORM:
        *rows = c->hidden_size;
        *cols = 0;
        break;
    case ROLE_LIGHTNING_NORM:
        *rows = inner;
        *cols = 0;
        break;
    case ROLE_LIGHTNING_QKV:
        *rows = 3 * inner;
        break;
    case ROLE_LIGHTNING_GATE:
    case ROLE_SOFTMAX_Q:
        *rows = inner;
        break;
    case ROLE_SOFTMAX_K:
    case ROLE_SOFTMAX_V:
        *rows = kv;
        break;
    case ROLE_LIGHTNING_OUT:
    case ROLE_SOFTMAX_OUT:
        *rows = c->hidden_size;
        *cols = inner;
        break;
    case ROLE_ROUTER:
        *rows = c->expert_count;
        break;
    case ROLE_W1:
    case ROLE_W3:
        *rows = c->intermediate_size;
        break;
    case ROLE_W2:
        *rows = c->hidden_size;
        *cols = c->intermediate_size;
        break;
    case ROLE_COUNT:
        break;
    }
}

/* Shapes as text, for error lines. */
static void shape_text(const uint64_t *dims, uint32_t n_dims, char *out, size_t bytes)
{
    size_t at = 0;
    out[0] = '\0';
    for (uint32_t i = 0; i < n_dims && at + 24 < bytes; i++)
        at += (size_t)snprintf(out + at, bytes - at, "%s%" PRIu64, i ? ", " : "", dims[i]);
}

static ful_result shape_check(const tensor_info *t, const uint64_t *want, uint32_t n_dims)
{
    if (t->n_dims == n_dims && memcmp(t->dims, want, n_dims * sizeof *want) == 0)
        return FUL_OK;
    char have_text[128], want_text[128];
    shape_text(t->dims, t->n_dims, have_text, sizeof have_text);
    shape_text(want, n_dims, want_text, sizeof want_text);
    return fail(FUL_ERR_FORMAT, "%s: tensor %s has shape [%s]; the config asks for [%s]", t->path,
                t->name, have_text, want_text);
}

/* One expert of a tensor that holds all. */
static void expert_view(tensor_info *t, uint32_t expert)
{
    t->bytes /= t->dims[0];
    t->data += expert * t->bytes;
    t->n_dims--;
    memmove(t->dims, t->dims + 1, t->n_dims * sizeof t->dims[0]);
}

ful_result tensor_get(const tensor_file *files, const model_config *config, tensor_role role,
                      uint32_t layer, uint32_t expert, tensor_info *out)
{
    char name[TENSOR_NAME_BYTES];
    bool gguf = tensor_file_keys(files) != NULL, stacked = gguf && role >= ROLE_W1;
    if (gguf)
        tensor_gguf_name(role, layer, name, sizeof name);
    else
        role_name(role, layer, expert, name, sizeof name);
    const tensor_info *t = tensor_file_find(files, name);
    if (!t) {
        uint32_t count = tensor_file_count(files);
        const char *path = count ? tensor_file_at(files, 0)->path : "the checkpoint";
        return fail(FUL_ERR_FORMAT, "%s: tensor %s is missing (%u tensors in the checkpoint)", path,
                    name, count);
    }
    if (t->type == FUL_TYPE_DEFAULT)
        return fail(FUL_ERR_UNSUPPORTED,
                    "%s: tensor %s has type %s; F32, F16, BF16 and GGUF's types of blocks but the "
                    "IQ1, IQ2, IQ3, TQ and NV ones can be read",
                    t->path, name, t->type_name);
    uint64_t rows, cols, want[3], *at = want;
    tensor_shape(config, role, &rows, &cols);
    if (stacked)
        *at++ = config->expert_count;
    *at++ = rows;
    if (cols)
        *at++ = cols;
    TRY(shape_check(t, want, (uint32_t)(at - want)));
    *out = *t;
    if (stacked)
        expert_view(out, expert);
    return FUL_OK;
}

const tensor_role *tensor_layer_roles(layer_kind kind)
{
    static const tensor_role lightning[LAYER_ROLES] = {
        ROLE_INPUT_NORM,     ROLE_POST_NORM,      ROLE_ROUTER,       ROLE_LIGHTNING_QKV,
        ROLE_LIGHTNING_GATE, ROLE_LIGHTNING_NORM, ROLE_LIGHTNING_OUT};
    static const tensor_role softmax[LAYER_ROLES] = {
        ROLE_INPUT_NORM, ROLE_POST_NORM, ROLE_ROUTER,     ROLE_SOFTMAX_Q,
        ROLE_SOFTMAX_K,  ROLE_SOFTMAX_V, ROLE_SOFTMAX_OUT};
    return kind == LAYER_LIGHTNING ? lightning : softmax;
}

/* Calls fn for every tensor that a config asks for. */
typedef ful_result (*role_fn)(void *ctx, tensor_role role, uint32_t layer, uint32_t expert);

static ful_result role_walk(const model_config *config, role_fn fn, void *ctx)
{
    static const tensor_role top[] = {ROLE_EMBEDDING, ROLE_FINAL_NORM, ROLE_HEAD};
    for (size_t i = 0; i < sizeof top / sizeof *top; i++) {
        if (top[i] == ROLE_HEAD && config->tied_head)
            continue;
        TRY(fn(ctx, top[i], 0, 0));
    }
    for (uint32_t l = 0; l < config->block_count; l++) {
        const tensor_role *roles = tensor_layer_roles((layer_kind)config->layers[l]);
        for (size_t i = 0; i < LAYER_ROLES; i++)
            TRY(fn(ctx, roles[i], l, 0));
        for (uint32_t e = 0; e < config->expert_count; e++)
            for (tensor_role r = ROLE_W1; r <= ROLE_W3; r = (tensor_role)(r + 1))
                TRY(fn(ctx, r, l, e));
    }
    return FUL_OK;
}

typedef struct file_visit {
    const tensor_file *files;
    const model_config *config;
    tensor_visit_fn fn;
    void *ctx;
} file_visit;

static ful_result visit_role(void *ctx, tensor_role role, uint32_t layer, uint32_t expert)
{
    const file_visit *v = ctx;
    tensor_info t;
    TRY(tensor_get(v->files, v->config, role, layer, expert, &t));
    return v->fn(v->ctx, role, layer, expert, &t);
}

ful_result tensor_visit(const tensor_file *files, const model_config *config, tensor_visit_fn fn,
                        void *ctx)
{
    file_visit v = {files, config, fn, ctx};
    return role_walk(config, visit_role, &v);
}

static ful_result visit_nothing(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                                const tensor_info *t)
{
    (void)ctx, (void)role, (void)layer, (void)expert, (void)t;
    return FUL_OK;
}

ful_result model_check_tensors(const model_config *config, const tensor_file *files)
{
    return tensor_visit(files, config, visit_nothing, NULL);
}

ful_result tensor_experts_type(const tensor_file *files, const model_config *config,
                               tensor_role first, tensor_role second, uint32_t layer, ful_type *out)
{
    uint32_t experts = tensor_file_keys(files) ? 1 : config->expert_count;
    *out = FUL_TYPE_DEFAULT;
    for (uint32_t e = 0; e < experts; e++) {
        tensor_info a, b;
        TRY(tensor_get(files, config, first, layer, e, &a));
        TRY(tensor_get(files, config, second, layer, e, &b));
        if (e == 0)
            *out = a.type;
        if (a.type != *out || b.type != *out) {
            *out = FUL_TYPE_F32;
            return FUL_OK;
        }
    }
    return FUL_OK;
}

typedef struct info_sums {
    const model_config *config;
    ful_model_info *info;
    const tensor_file *files;                 /* NULL: none, all matrices are of one type */
    bool stacked;                             /* the experts of a layer are one tensor */
    ful_type gate_up, down;                   /* of the current layer's experts on the device */
    uint64_t type_bytes[TYPE_COUNT];          /* by ful_type */
    uint64_t expert_parameters, expert_bytes; /* of all experts */
} info_sums;

/* `type`: on the device */
static void info_add(info_sums *s, tensor_role role, uint32_t expert, ful_type type)
{
    uint64_t rows, cols;
    tensor_shape(s->config, role, &rows, &cols);
    uint64_t n = rows * (cols ? cols : 1);
    bool of_expert = role >= ROLE_W1, wide = !cols || role == ROLE_ROUTER; /* kept in f32 */
    uint64_t bytes = wide ? 4 * n : rows * type_device_row_bytes(type, cols);
    s->info->tensor_count += !(s->stacked && role >= ROLE_W1 && expert > 0);
    s->info->parameter_count += n;
    s->info->weight_bytes += bytes;
    s->type_bytes[wide ? FUL_TYPE_F32 : type] += bytes;
    if (role == ROLE_EMBEDDING && !s->config->tied_head) {
        s->info->active_parameter_count += cols;
        s->info->active_weight_bytes += bytes / rows;
    } else if (of_expert) {
        s->expert_parameters += n;
        s->expert_bytes += bytes;
    } else {
        s->info->active_parameter_count += n;
        s->info->active_weight_bytes += bytes;
    }
}

static ful_result info_add_tensor(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                                  const tensor_info *t)
{
    info_sums *s = ctx;
    if (role == ROLE_W1 && expert == 0) {
        TRY(tensor_experts_type(s->files, s->config, ROLE_W1, ROLE_W3, layer, &s->gate_up));
        TRY(tensor_experts_type(s->files, s->config, ROLE_W2, ROLE_W2, layer, &s->down));
    }
    info_add(s, role, expert, role < ROLE_W1 ? t->type : role == ROLE_W2 ? s->down : s->gate_up);
    return FUL_OK;
}

/* What the sums of all tensors say. */
static void info_finish(info_sums *s)
{
    const model_config *c = s->config;
    s->info->active_parameter_count += s->expert_parameters / c->expert_count * c->top_k;
    s->info->active_weight_bytes += s->expert_bytes / c->expert_count * c->top_k;
    s->info->weight_type = FUL_TYPE_F32;
    for (int t = FUL_TYPE_F16; t < TYPE_COUNT; t++)
        if (s->type_bytes[t] > s->type_bytes[s->info->weight_type])
            s->info->weight_type = (ful_type)t;
}

static void info_from_config(const model_config *c, ful_model_info *info)
{
    memset(info, 0, sizeof *info);
    memcpy(info->architecture, c->model_type, sizeof info->architecture);
    info->block_count = c->block_count;
    for (uint32_t l = 0; l < c->block_count; l++)
        *(c->layers[l] == LAYER_LIGHTNING ? &info->lightning_block_count
                                          : &info->softmax_block_count) += 1;
    info->hidden_size = c->hidden_size;
    info->intermediate_size = c->intermediate_size;
    info->vocab_size = c->vocab_size;
    info->head_count = c->head_count;
    info->kv_head_count = c->kv_head_count;
    info->head_dim = c->head_dim;
    info->rotary_dim = c->rotary_dim;
    info->expert_count = c->expert_count;
    info->top_k = c->top_k;
    info->context_length = c->context_length;
    info->rope_theta = c->rope_theta;
    info->norm_eps = c->norm_eps;
    info->lightning_norm_eps = c->lightning_norm_eps;
    info->alpha_lightning = c->alpha_lightning;
    info->beta_lightning = c->beta_lightning;
    info->alpha_softmax = c->alpha_softmax;
    info->beta_softmax = c->beta_softmax;
    info->alpha_mlp = c->alpha_mlp;
    info->beta_mlp = c->beta_mlp;
    info->decay = c->decay == DECAY_HF ? FUL_DECAY_HF : FUL_DECAY_ORIG;
    info->tied_head = c->tied_head;
    info->bos_token_id = c->bos_token_id;
    info->eos_token_id = c->eos_token_id;
    info->state_bytes =
        (uint64_t)info->lightning_block_count * c->head_count * c->head_dim * c->head_dim * 4;
    info->kv_bytes_per_token =
        (uint64_t)info->softmax_block_count * 2 * c->kv_head_count * c->head_dim * 4;
}

ful_result model_open_files(const ful_alloc *a, const char *path, model_config *config,
                            tensor_file **files, ful_model_info *info)
{
    TRY(tensor_file_open(a, path, files));
    bool gguf = tensor_file_keys(*files) != NULL;
    info_sums sums = {.config = config, .info = info, .files = *files, .stacked = gguf};
    ful_result r = gguf ? config_read_gguf(*files, config) : config_load(a, path, config);
    if (r == FUL_OK) {
        info_from_config(config, info);
        r = tensor_visit(*files, config, info_add_tensor, &sums);
    }
    if (r != FUL_OK) {
        tensor_file_close(files);
        return r;
    }
    info->file_bytes = tensor_file_bytes(*files);
    info_finish(&sums);
    return FUL_OK;
}

typedef struct made_sums {
    info_sums sums;
    ful_type type;
} made_sums;

static ful_result info_add_made(void *ctx, tensor_role role, uint32_t layer, uint32_t expert)
{
    made_sums *m = ctx;
    (void)layer;
    info_add(&m->sums, role, expert, m->type);
    return FUL_OK;
}

void model_info_of(const model_config *config, ful_type type, ful_model_info *info)
{
    made_sums made = {.sums = {.config = config, .info = info}, .type = type};
    info_from_config(config, info);
    role_walk(config, info_add_made, &made);
    info_finish(&made.sums);
    info->weight_type = type;
}

ful_result ful_model_inspect(ful_instance *instance, const char *path, ful_model_info *out)
{
    if (!instance || !path || !out)
        return fail(FUL_ERR_ARGUMENT, "ful_model_inspect: instance, path and out must not be NULL");
    const ful_alloc *a = instance_alloc(instance);
    tensor_file *files = NULL;
    model_config *config = mem_zalloc(a, 1, sizeof *config);
    if (!config)
        return mem_fail(sizeof *config, "the model's config");
    ful_result r = model_open_files(a, path, config, &files, out);
    tensor_file_close(&files);
    mem_free(a, config);
    return r;
}

ful_result ful_model_tensors(ful_instance *instance, const char *path, ful_tensor_fn fn, void *ctx)
{
    if (!instance || !path || !fn)
        return fail(FUL_ERR_ARGUMENT, "ful_model_tensors: instance, path and fn must not be NULL");
    tensor_file *files = NULL;
    TRY(tensor_file_open(instance_alloc(instance), path, &files));
    for (uint32_t i = 0; i < tensor_file_count(files); i++) {
        const tensor_info *t = tensor_file_at(files, i);
        ful_tensor_info info = {.name = t->name,
                                .file = t->path,
                                .type = t->type_name,
                                .n_dims = t->n_dims,
                                .bytes = t->bytes};
        memcpy(info.dims, t->dims, sizeof info.dims);
        if (!fn(ctx, &info))
            break;
    }
    tensor_file_close(&files);
    return FUL_OK;
}

/* ---- looking for values that are not finite ---- */

typedef struct check_state {
    ful_progress_fn progress;
    void *progress_ctx;
    uint64_t done, total;
} check_state;

enum { CHECK_ELEMENTS = 2048 }; /* a multiple of every block */

static ful_result check_tensor(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                               const tensor_info *t)
{
    check_state *s = ctx;
    (void)role, (void)layer, (void)expert;
    uint64_t count = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        count *= t->dims[i];
    for (uint64_t at = 0; at < count; at += CHECK_ELEMENTS) {
        float values[CHECK_ELEMENTS];
        uint64_t n = count - at < CHECK_ELEMENTS ? count - at : CHECK_ELEMENTS;
        row_to_floats(t->type, t->data + type_row_bytes(t->type, at), n, values);
        for (uint64_t i = 0; i < n; i++)
            if (!isfinite(values[i]))
                return fail(FUL_ERR_FORMAT,
                            "%s: tensor %s holds a value that is not finite at index %" PRIu64,
                            t->path, t->name, at + i);
    }
    s->done += t->bytes;
    ful_progress p = {FUL_PHASE_READ, s->done, s->total ? s->total : 1};
    if (s->progress && !s->progress(s->progress_ctx, &p))
        return fail(FUL_ERR_CANCELLED, "cancelled while checking %s", t->path);
    return FUL_OK;
}

ful_result ful_model_check(ful_instance *instance, const char *path, ful_progress_fn progress,
                           void *progress_ctx)
{
    if (!instance || !path)
        return fail(FUL_ERR_ARGUMENT, "ful_model_check: instance and path must not be NULL");
    const ful_alloc *a = instance_alloc(instance);
    tensor_file *files = NULL;
    ful_model_info info;
    model_config *config = mem_zalloc(a, 1, sizeof *config);
    if (!config)
        return mem_fail(sizeof *config, "the model's config");
    ful_result r = model_open_files(a, path, config, &files, &info);
    if (r == FUL_OK) {
        check_state s = {progress, progress_ctx, 0, info.file_bytes};
        r = tensor_visit(files, config, check_tensor, &s);
    }
    tensor_file_close(&files);
    mem_free(a, config);
    return r;
}
