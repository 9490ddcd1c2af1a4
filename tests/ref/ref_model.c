#include "ref_model.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/thread.h"

/* ---- loading ---- */

typedef struct loader {
    ref_model *model;
    const tensor_file *file;
    ful_result result; /* first failure; later reads are skipped */
} loader;

static float *tensor_floats(const tensor_info *t)
{
    uint64_t n = 1;
    for (uint32_t i = 0; i < t->n_dims; i++)
        n *= t->dims[i];
    float *out = ref_alloc_bytes(n, sizeof *out);
    for (uint64_t i = 0; i < n; i++) {
        if (t->type == FUL_TYPE_F32) {
            memcpy(&out[i], t->data + 4 * i, 4);
        } else {
            uint16_t bits;
            memcpy(&bits, t->data + 2 * i, 2);
            out[i] = t->type == FUL_TYPE_BF16 ? bfloat_to_float(bits) : half_to_float(bits);
        }
    }
    return out;
}

/* A weight [rows][columns], or [rows] if columns is 0. */
static const float *load(loader *l, uint64_t rows, uint64_t columns, const char *format, ...)
    PRINTF_LIKE(4, 5);

static const float *load(loader *l, uint64_t rows, uint64_t columns, const char *format, ...)
{
    char name[256];
    va_list args;
    va_start(args, format);
    vsnprintf(name, sizeof name, format, args);
    va_end(args);
    if (l->result != FUL_OK)
        return NULL;
    const tensor_info *t = tensor_file_find(l->file, name);
    if (t == NULL) {
        l->result = fail(FUL_ERR_FORMAT, "reference: no tensor %s", name);
        return NULL;
    }
    bool shape = columns == 0 ? t->n_dims == 1 && t->dims[0] == rows
                              : t->n_dims == 2 && t->dims[0] == rows && t->dims[1] == columns;
    if (!shape || type_bytes(t->type) == 0) {
        l->result = fail(FUL_ERR_FORMAT, "reference: tensor %s: wrong shape or type %s", name,
                         t->type_name);
        return NULL;
    }
    float *data = tensor_floats(t);
    l->model->owned[l->model->owned_count++] = data;
    return data;
}

static void load_layer(loader *l, uint32_t index)
{
    const model_config *c = &l->model->config;
    ref_layer *layer = &l->model->layers[index];
    uint64_t d = c->hidden_size, hd = (uint64_t)c->head_count * c->head_dim;
    uint64_t kd = (uint64_t)c->kv_head_count * c->head_dim, I = c->intermediate_size;
    char p[64];
    snprintf(p, sizeof p, "model.layers.%u", (unsigned)index);
    layer->norm1 = load(l, d, 0, "%s.input_layernorm.weight", p);
    layer->norm2 = load(l, d, 0, "%s.post_attention_layernorm.weight", p);
    if (c->layers[index] == LAYER_LIGHTNING) {
        layer->qkv = load(l, 3 * hd, d, "%s.self_attn.qkv_proj.weight", p);
        layer->gate = load(l, hd, d, "%s.self_attn.output_gate.weight", p);
        layer->norm = load(l, hd, 0, "%s.self_attn.norm.weight", p);
        layer->out = load(l, d, hd, "%s.self_attn.out_proj.weight", p);
    } else {
        layer->q = load(l, hd, d, "%s.self_attn.q_proj.weight", p);
        layer->k = load(l, kd, d, "%s.self_attn.k_proj.weight", p);
        layer->v = load(l, kd, d, "%s.self_attn.v_proj.weight", p);
        layer->out = load(l, d, hd, "%s.self_attn.o_proj.weight", p);
    }
    layer->router = load(l, c->expert_count, d, "%s.block_sparse_moe.gate.weight", p);
    layer->experts = ref_alloc_bytes(c->expert_count, sizeof *layer->experts);
    for (uint32_t e = 0; e < c->expert_count; e++) {
        ref_expert *x = &layer->experts[e];
        x->w1 = load(l, I, d, "%s.block_sparse_moe.experts.%u.w1.weight", p, (unsigned)e);
        x->w2 = load(l, d, I, "%s.block_sparse_moe.experts.%u.w2.weight", p, (unsigned)e);
        x->w3 = load(l, I, d, "%s.block_sparse_moe.experts.%u.w3.weight", p, (unsigned)e);
    }
}

ful_result ref_model_load(const char *dir, decay_rule rule, ref_model **out)
{
    *out = NULL;
    ful_alloc alloc = mem_functions(NULL);
    ref_model *model = ref_alloc_bytes(1, sizeof *model);
    tensor_file *file = NULL;
    ful_result result = config_load(&alloc, dir, &model->config);
    if (result == FUL_OK)
        result = tensor_file_open(&alloc, dir, &file);
    if (result == FUL_OK) {
        model_config *c = &model->config;
        loader l = {.model = model, .file = file};
        model->threads = thread_count();
        model->owned = ref_alloc_bytes(tensor_file_count(file), sizeof *model->owned);
        model->layers = ref_alloc_bytes(c->block_count, sizeof *model->layers);
        model->embed = load(&l, c->vocab_size, c->hidden_size, "model.embed_tokens.weight");
        model->final_norm = load(&l, c->hidden_size, 0, "model.norm.weight");
        model->head =
            c->tied_head ? model->embed : load(&l, c->vocab_size, c->hidden_size, "lm_head.weight");
        if (rule != 0)
            c->decay = rule;
        for (uint32_t i = 0; i < c->block_count && l.result == FUL_OK; i++) {
            load_layer(&l, i);
            if (c->layers[i] == LAYER_LIGHTNING) {
                model->layers[i].slopes = ref_alloc(c->head_count);
                ref_slopes((int)c->decay, c->head_count, i, c->block_count,
                           model->layers[i].slopes);
            }
        }
        result = l.result;
    }
    tensor_file_close(&file);
    if (result != FUL_OK)
        ref_model_destroy(&model);
    *out = model;
    return result;
}

void ref_model_destroy(ref_model **model)
{
    ref_model *m = *model;
    if (m == NULL)
        return;
    for (uint32_t i = 0; m->layers != NULL && i < m->config.block_count; i++) {
        free(m->layers[i].experts);
        free(m->layers[i].slopes);
    }
    for (size_t i = 0; i < m->owned_count; i++)
        free(m->owned[i]);
    free(m->owned);
    free(m->layers);
    free(m);
    *model = NULL;
}

void ref_model_set_slopes(ref_model *model, uint32_t layer, const double *slopes)
{
    memcpy(model->layers[layer].slopes, slopes, model->config.head_count * sizeof *slopes);
}

/* ---- state ---- */

ref_state *ref_state_create(const ref_model *model)
{
    const model_config *c = &model->config;
    ref_state *s = ref_alloc_bytes(1, sizeof *s);
    s->block_count = c->block_count;
    s->lightning = ref_alloc_bytes(c->block_count, sizeof *s->lightning);
    s->k = ref_alloc_bytes(c->block_count, sizeof *s->k);
    s->v = ref_alloc_bytes(c->block_count, sizeof *s->v);
    for (uint32_t i = 0; i < c->block_count; i++) {
        if (c->layers[i] == LAYER_LIGHTNING)
            s->lightning[i] = ref_alloc((size_t)c->head_count * c->head_dim * c->head_dim);
    }
    return s;
}

static double *grown(double *old, size_t old_count, size_t count)
{
    double *p = ref_alloc(count);
    if (old_count > 0)
        memcpy(p, old, old_count * sizeof *p);
    free(old);
    return p;
}

static void state_reserve(const ref_model *model, ref_state *s, uint32_t tokens)
{
    if (tokens <= s->capacity)
        return;
    uint32_t capacity = tokens > 2 * s->capacity ? tokens : 2 * s->capacity;
    size_t row = (size_t)model->config.kv_head_count * model->config.head_dim;
    for (uint32_t i = 0; i < s->block_count; i++) {
        if (model->config.layers[i] != LAYER_SOFTMAX)
            continue;
        s->k[i] = grown(s->k[i], s->position * row, capacity * row);
        s->v[i] = grown(s->v[i], s->position * row, capacity * row);
    }
    s->capacity = capacity;
}

ref_state *ref_state_copy(const ref_model *model, const ref_state *state)
{
    const model_config *c = &model->config;
    ref_state *s = ref_state_create(model);
    size_t square = (size_t)c->head_count * c->head_dim * c->head_dim;
    size_t row = (size_t)c->kv_head_count * c->head_dim;
    state_reserve(model, s, state->position);
    s->position = state->position;
    for (uint32_t i = 0; i < c->block_count; i++) {
        if (c->layers[i] == LAYER_LIGHTNING) {
            memcpy(s->lightning[i], state->lightning[i], square * sizeof(double));
        } else if (s->position > 0) {
            memcpy(s->k[i], state->k[i], s->position * row * sizeof(double));
            memcpy(s->v[i], state->v[i], s->position * row * sizeof(double));
        }
    }
    return s;
}

void ref_state_destroy(ref_state **state)
{
    ref_state *s = *state;
    if (s == NULL)
        return;
    for (uint32_t i = 0; i < s->block_count; i++) {
        free(s->lightning[i]);
        free(s->k[i]);
        free(s->v[i]);
    }
    free(s->lightning);
    free(s->k);
    free(s->v);
    free(s);
    *state = NULL;
}

/* ---- forward ---- */

enum { CHUNK_ROWS = 32 }; /* rows of one parallel job */

/* One layer's work, shared by the jobs of a parallel_for. */
typedef struct forward {
    const ref_model *model;
    const ref_layer *layer;
    ref_state *state;
    ref_trace *trace;
    uint32_t index, T;
    double *qkv, *gate; /* [T][3HD], [T][HD]; softmax layers use qkv for q only */
    double *mixed;      /* [T][HD] */
    double *next;       /* [T][d]: the layer's output */
} forward;

static uint32_t chunk_rows(const forward *f, uint32_t chunk)
{
    uint32_t left = f->T - chunk * CHUNK_ROWS;
    return left < CHUNK_ROWS ? left : CHUNK_ROWS;
}

/* Norm and projections of some rows. */
static void stage_project(void *ctx, uint32_t chunk)
{
    forward *f = ctx;
    const model_config *c = &f->model->config;
    const ref_layer *w = f->layer;
    uint32_t start = chunk * CHUNK_ROWS, rows = chunk_rows(f, chunk), d = c->hidden_size;
    uint32_t hd = c->head_count * c->head_dim, kd = c->kv_head_count * c->head_dim;
    double *n = f->trace->norm1[f->index] + (size_t)start * d;
    ref_rmsnorm(rows, d, f->trace->hidden_in[f->index] + (size_t)start * d, w->norm1, c->norm_eps,
                n);
    if (c->layers[f->index] == LAYER_LIGHTNING) {
        ref_matmul_act(rows, d, 3 * hd, n, w->qkv, REF_ACT_SILU, 0,
                       f->qkv + (size_t)start * 3 * hd);
        ref_matmul(rows, d, hd, n, w->gate, f->gate + (size_t)start * hd);
        return;
    }
    uint32_t position = f->state->position + start;
    double *q = f->qkv + (size_t)start * hd;
    double *k = f->state->k[f->index] + (size_t)position * kd;
    ref_matmul(rows, d, hd, n, w->q, q);
    ref_matmul(rows, d, kd, n, w->k, k);
    ref_matmul(rows, d, kd, n, w->v, f->state->v[f->index] + (size_t)position * kd);
    ref_rope(rows, c->head_count, c->head_dim, c->rotary_dim, c->rope_theta, position, q, 0);
    ref_rope(rows, c->kv_head_count, c->head_dim, c->rotary_dim, c->rope_theta, position, k, 0);
}

/* Lightning attention of one head. */
static void stage_lightning(void *ctx, uint32_t head)
{
    forward *f = ctx;
    const model_config *c = &f->model->config;
    uint32_t D = c->head_dim, H = c->head_count;
    double *out = ref_alloc((size_t)f->T * D);
    ref_lightning(f->T, 1, D, f->qkv + (size_t)head * 3 * D, (size_t)3 * H * D,
                  f->layer->slopes + head, f->state->lightning[f->index] + (size_t)head * D * D,
                  out);
    for (uint32_t t = 0; t < f->T; t++)
        memcpy(f->mixed + ((size_t)t * H + head) * D, out + (size_t)t * D, D * sizeof(double));
    free(out);
}

/* Everything behind the mixer, of some rows; softmax attention too, which is independent by row. */
static void stage_finish(void *ctx, uint32_t chunk)
{
    forward *f = ctx;
    const model_config *c = &f->model->config;
    const ref_layer *w = f->layer;
    ref_trace *t = f->trace;
    uint32_t start = chunk * CHUNK_ROWS, rows = chunk_rows(f, chunk), d = c->hidden_size;
    uint32_t hd = c->head_count * c->head_dim, l = f->index;
    double *mixed = f->mixed + (size_t)start * hd;
    bool softmax = c->layers[l] == LAYER_SOFTMAX;
    double alpha = softmax ? c->alpha_softmax : c->alpha_lightning;
    double beta = softmax ? c->beta_softmax : c->beta_lightning;
    if (softmax) {
        ref_attention(rows, f->state->position + start, c->head_count, c->kv_head_count,
                      c->head_dim, f->qkv + (size_t)start * hd, f->state->k[l], f->state->v[l],
                      mixed);
    } else {
        ref_gated_norm(rows, hd, mixed, f->gate + (size_t)start * hd, 0, 0, w->norm,
                       c->lightning_norm_eps, mixed);
    }
    size_t at = (size_t)start * d, route = (size_t)start * c->top_k;
    double *y = t->mixer[l] + at, *m = t->norm2[l] + at, *z = t->moe[l] + at;
    ref_matmul(rows, hd, d, mixed, w->out, y);
    ref_residual_norm(rows, d, t->norm1[l] + at, alpha, y, beta, w->norm2, c->norm_eps, NULL, m);
    ref_route(rows, d, c->expert_count, c->top_k, m, w->router,
              t->router_logits[l] + (size_t)start * c->expert_count, t->experts[l] + route,
              t->expert_weights[l] + route, t->router_gap[l] + start);
    ref_moe(rows, d, c->intermediate_size, c->top_k, m, w->experts, t->experts[l] + route,
            t->expert_weights[l] + route, z);
    for (size_t i = 0; i < (size_t)rows * d; i++)
        f->next[at + i] = c->alpha_mlp * m[i] + c->beta_mlp * z[i];
}

/* Final norm and head of some rows; `next` holds the last layer's output. */
static void stage_head(void *ctx, uint32_t chunk)
{
    forward *f = ctx;
    const model_config *c = &f->model->config;
    uint32_t start = chunk * CHUNK_ROWS, rows = chunk_rows(f, chunk), d = c->hidden_size;
    double *n = f->trace->hidden_final + (size_t)start * d;
    ref_rmsnorm(rows, d, f->next + (size_t)start * d, f->model->final_norm, c->norm_eps, n);
    ref_matmul(rows, d, c->vocab_size, n, f->model->head,
               f->trace->logits + (size_t)start * c->vocab_size);
}

static double **per_layer(uint32_t layers, size_t n)
{
    double **p = ref_alloc_bytes(layers, sizeof *p);
    for (uint32_t i = 0; i < layers; i++)
        p[i] = ref_alloc(n);
    return p;
}

static ref_trace *trace_create(const model_config *c, uint32_t T)
{
    ref_trace *t = ref_alloc_bytes(1, sizeof *t);
    uint32_t L = c->block_count;
    size_t hidden = (size_t)T * c->hidden_size, route = (size_t)T * c->top_k;
    t->T = T;
    t->block_count = L;
    t->vocab_size = c->vocab_size;
    t->expert_count = c->expert_count;
    t->top_k = c->top_k;
    t->logits = ref_alloc((size_t)T * c->vocab_size);
    t->hidden_final = ref_alloc(hidden);
    t->hidden_in = per_layer(L, hidden);
    t->norm1 = per_layer(L, hidden);
    t->mixer = per_layer(L, hidden);
    t->norm2 = per_layer(L, hidden);
    t->moe = per_layer(L, hidden);
    t->router_logits = per_layer(L, (size_t)T * c->expert_count);
    t->expert_weights = per_layer(L, route);
    t->router_gap = per_layer(L, T);
    t->experts = ref_alloc_bytes(L, sizeof *t->experts);
    for (uint32_t i = 0; i < L; i++)
        t->experts[i] = ref_alloc_bytes(route, sizeof **t->experts);
    return t;
}

ref_trace *ref_forward(const ref_model *model, ref_state *state, const int32_t *ids, uint32_t T)
{
    const model_config *c = &model->config;
    size_t hd = (size_t)c->head_count * c->head_dim;
    uint32_t chunks = (T + CHUNK_ROWS - 1) / CHUNK_ROWS;
    ref_trace *trace = trace_create(c, T);
    forward f = {.model = model, .state = state, .trace = trace, .T = T};
    double *last = ref_alloc((size_t)T * c->hidden_size);
    f.qkv = ref_alloc((size_t)T * 3 * hd);
    f.gate = ref_alloc((size_t)T * hd);
    f.mixed = ref_alloc((size_t)T * hd);
    state_reserve(model, state, state->position + T);
    ref_embed(T, c->hidden_size, ids, model->embed, trace->hidden_in[0]);
    for (uint32_t l = 0; l < c->block_count; l++) {
        f.index = l;
        f.layer = &model->layers[l];
        f.next = l + 1 < c->block_count ? trace->hidden_in[l + 1] : last;
        parallel_for(model->threads, chunks, stage_project, &f);
        if (c->layers[l] == LAYER_LIGHTNING)
            parallel_for(model->threads, c->head_count, stage_lightning, &f);
        parallel_for(model->threads, chunks, stage_finish, &f);
    }
    parallel_for(model->threads, chunks, stage_head, &f);
    state->position += T;
    free(f.qkv);
    free(f.gate);
    free(f.mixed);
    free(last);
    return trace;
}

static void free_layers(double **p, uint32_t layers)
{
    for (uint32_t i = 0; i < layers; i++)
        free(p[i]);
    free(p);
}

void ref_trace_destroy(ref_trace **trace)
{
    ref_trace *t = *trace;
    if (t == NULL)
        return;
    free(t->logits);
    free(t->hidden_final);
    double **arrays[] = {t->hidden_in, t->norm1,         t->mixer,          t->norm2,
                         t->moe,       t->router_logits, t->expert_weights, t->router_gap};
    for (size_t i = 0; i < sizeof arrays / sizeof arrays[0]; i++)
        free_layers(arrays[i], t->block_count);
    for (uint32_t i = 0; i < t->block_count; i++)
        free(t->experts[i]);
    free(t->experts);
    free(t);
    *trace = NULL;
}

double ref_trace_min_gap(const ref_trace *trace, uint32_t row)
{
    double least = trace->router_gap[0][row];
    for (uint32_t l = 1; l < trace->block_count; l++)
        least = trace->router_gap[l][row] < least ? trace->router_gap[l][row] : least;
    return least;
}

/* ---- golden files ---- */

static const tensor_info *golden_find(const tensor_file *file, const char *name, const char *type,
                                      size_t *count)
{
    const tensor_info *t = tensor_file_find(file, name);
    *count = 0;
    if (t == NULL || strcmp(t->type_name, type) != 0)
        return NULL;
    *count = (size_t)(t->bytes / 4);
    return t;
}

double *ref_golden_f32(const tensor_file *file, const char *name, size_t *count)
{
    const tensor_info *t = golden_find(file, name, "F32", count);
    if (t == NULL)
        return NULL;
    double *out = ref_alloc(*count);
    for (size_t i = 0; i < *count; i++) {
        float value;
        memcpy(&value, t->data + 4 * i, 4);
        out[i] = (double)value;
    }
    return out;
}

int32_t *ref_golden_i32(const tensor_file *file, const char *name, size_t *count)
{
    const tensor_info *t = golden_find(file, name, "I32", count);
    if (t == NULL)
        return NULL;
    int32_t *out = ref_alloc_bytes(*count, sizeof *out);
    memcpy(out, t->data, *count * sizeof *out);
    return out;
}
