/* The steps of one pass through the model.
 *
 * Every sub-layer's residual is its normalised input (model.md's post-norm form), so the stream is
 * never stored un-normalised: a norm step reads the last normalised value and the sub-layer's
 * output and forms alpha*a + beta*b on the way. */
#include "schedule/steps.h"

#include <string.h>

enum {
    HALF_MIN_ROWS = 9
}; /* fewer rows run as matrix-vector products, which read f32 activations */

typedef struct builder {
    const step_source *source;
    step_list *list;
    op_context ctx; /* sizes of scratch buffers only */
    ful_result failed;
} builder;

static const value nothing = {NO_SLOT, NO_SLOT, NO_SLOT, 0, 0};

static int32_t new_slot(builder *b, uint64_t bytes)
{
    step_list *l = b->list;
    if (bytes == 0 || b->failed != FUL_OK)
        return NO_SLOT;
    if (!mem_grow(l->alloc, (void **)&l->slots, &l->slot_capacity, l->slot_count + 1,
                  sizeof *l->slots)) {
        b->failed = mem_fail((l->slot_count + 1) * sizeof *l->slots, "the schedule's slots");
        return NO_SLOT;
    }
    l->slots[l->slot_count] = (slot){.bytes = bytes, .first = UINT32_MAX};
    return (int32_t)l->slot_count++;
}

static void touch(step_list *l, int32_t id, uint32_t at)
{
    if (id == NO_SLOT)
        return;
    slot *s = &l->slots[id];
    if (at < s->first)
        s->first = at;
    if (at > s->last)
        s->last = at;
}

static void touch_value(step_list *l, value v, uint32_t at)
{
    touch(l, v.data, at);
    touch(l, v.half, at);
    touch(l, v.scale, at);
}

static void add(builder *b, step s)
{
    step_list *l = b->list;
    if (b->failed != FUL_OK)
        return;
    if (!mem_grow(l->alloc, (void **)&l->steps, &l->step_capacity, l->step_count + 1,
                  sizeof *l->steps)) {
        b->failed = mem_fail((l->step_count + 1) * sizeof *l->steps, "the schedule's steps");
        return;
    }
    uint32_t at = (uint32_t)l->step_count;
    l->steps[l->step_count++] = s;
    touch_value(l, s.in, at);
    touch_value(l, s.in2, at);
    touch_value(l, s.out, at);
    if (s.norm)
        touch_value(l, s.normed, at);
    if (s.routed)
        touch_value(l, s.logits, at);
    touch(l, s.scratch, at);
}

static value new_value(builder *b, uint32_t rows, uint32_t dim)
{
    value v = nothing;
    v.data = new_slot(b, (uint64_t)rows * dim * 4);
    v.dim = dim;
    return v;
}

static void add_half(builder *b, value *v, uint32_t rows)
{
    v->half = new_slot(b, (uint64_t)rows * v->dim * 2);
    v->scale = new_slot(b, (uint64_t)rows * 4);
}

static value new_blocks(builder *b, uint32_t rows, uint32_t dim, uint32_t block)
{
    value v = {NO_SLOT, NO_SLOT, NO_SLOT, dim, block};
    v.half = new_slot(b, (uint64_t)rows * dim * 2);
    v.scale = new_slot(b, (uint64_t)rows * (dim / block) * 4);
    return v;
}

/* Do products with these weights read packed halves? */
static bool wants_half(const builder *b, const gpu_tensor *w)
{
    ful_type type = w ? w->type : b->source->weight_type;
    return b->list->half && b->list->rows >= HALF_MIN_ROWS && type != FUL_TYPE_F32;
}

/* The residual that the next norm will form: alpha*a + beta*b. */
typedef struct residual {
    value a, b;
    double alpha, beta;
} residual;

static value add_norm(builder *b, const char *name, int32_t layer, const residual *r,
                      const gpu_buffer *weight, double eps, bool half, bool last_row)
{
    uint32_t rows = last_row ? 1 : b->list->rows;
    value out = new_value(b, rows, b->source->config->hidden_size);
    if (half)
        add_half(b, &out, rows);
    add(b, (step){.kind = STEP_NORM,
                  .name = name,
                  .layer = layer,
                  .in = r->a,
                  .in2 = r->b,
                  .out = out,
                  .scratch = NO_SLOT,
                  .alpha = (float)r->alpha,
                  .beta = (float)r->beta,
                  .eps = (float)eps,
                  .vector = weight,
                  .last_row = last_row});
    return out;
}

/* The block in which q, k, v and the gate of a lightning layer, and its result, are handed on as
 * halves: 0 if they are not. */
static uint32_t lightning_block(const builder *b, const model_layer *layer)
{
    const model_config *c = b->source->config;
    uint32_t rows = b->list->rows, dim = c->head_dim;
    if (layer == NULL || !wants_half(b, &layer->qkv) || !wants_half(b, &layer->out) ||
        !op_matmul_blocks_usable(&b->ctx, &layer->qkv, rows, dim) ||
        !op_gated_norm_blocks_usable(&b->ctx, c->head_count * dim))
        return 0;
    return op_lightning_blocks(&b->ctx, rows, c->head_count, dim);
}

/* With `block` the result is halves in blocks of so many columns. */
static value add_matmul(builder *b, const char *name, int32_t layer, value in, const gpu_tensor *w,
                        uint32_t dim, op_act act, uint32_t split, uint32_t block)
{
    uint32_t rows = b->list->rows;
    value out = block != 0 ? new_blocks(b, rows, dim, block) : new_value(b, rows, dim);
    if (!wants_half(b, w))
        in.half = in.scale = NO_SLOT;
    else if (in.half != NO_SLOT)
        in.data = NO_SLOT;
    uint32_t weight_rows = act == OP_ACT_SWIGLU ? 2 * dim : dim;
    uint64_t scratch = op_matmul_scratch_bytes(&b->ctx, b->list->rows, weight_rows);
    add(b, (step){.kind = STEP_MATMUL,
                  .name = name,
                  .layer = layer,
                  .in = in,
                  .in2 = nothing,
                  .out = out,
                  .scratch = scratch > 0 ? new_slot(b, scratch) : NO_SLOT,
                  .weights = w,
                  .act = act,
                  .split = split});
    return out;
}

/* Can a norm over that many columns be part of the product behind it? */
static bool norm_fused(const builder *b, uint32_t columns, uint32_t gate_stride)
{
    return b->source->fused && b->list->rows == 1 &&
           op_matmul_norm_usable(&b->ctx, b->list->rows, columns, gate_stride);
}

/* A product and what is known of it before its input. */
typedef struct product {
    const char *name;
    int32_t layer;
    const gpu_tensor *w;
    uint32_t dim;
    op_act act;
    uint32_t split;
    uint32_t block; /* of a result in halves; 0: f32 */
} product;

/* The norm of a residual and the product behind it in one step. `normed` receives the normalised
 * row; logits go to the session's buffer. */
static value add_norm_matmul(builder *b, const residual *r, const gpu_buffer *weight, double eps,
                             const product *p, bool to_logits, value *normed)
{
    value out = to_logits ? (value){NO_SLOT, NO_SLOT, NO_SLOT, p->dim, 0}
                          : new_value(b, b->list->rows, p->dim);
    *normed = to_logits ? nothing : new_value(b, b->list->rows, r->a.dim);
    add(b, (step){.kind = STEP_MATMUL,
                  .name = p->name,
                  .layer = p->layer,
                  .in = r->a,
                  .in2 = r->b,
                  .out = out,
                  .normed = *normed,
                  .scratch = NO_SLOT,
                  .alpha = (float)r->alpha,
                  .beta = (float)r->beta,
                  .eps = (float)eps,
                  .vector = weight,
                  .weights = p->w,
                  .act = p->act,
                  .split = p->split,
                  .norm = true,
                  .one_row = to_logits,
                  .to_logits = to_logits});
    return out;
}

/* norm1 and the projection of q, k, v behind it. */
static value add_qkv(builder *b, const residual *r, const model_layer *layer, const product *p,
                     value *n)
{
    const model_config *c = b->source->config;
    const gpu_buffer *weight = layer ? &layer->input_norm : NULL;
    if (norm_fused(b, c->hidden_size, 0))
        return add_norm_matmul(b, r, weight, c->norm_eps, p, false, n);
    *n = add_norm(b, "norm1", p->layer, r, weight, c->norm_eps, wants_half(b, p->w), false);
    return add_matmul(b, p->name, p->layer, *n, p->w, p->dim, p->act, p->split, p->block);
}

/* The projection behind a mixer. */
static value add_out(builder *b, uint32_t i, value h, const model_layer *layer)
{
    return add_matmul(b, "attn", (int32_t)i, h, layer ? &layer->out : NULL,
                      b->source->config->hidden_size, OP_ACT_NONE, 0, 0);
}

/* Lightning attention, with its output projection unless nothing behind it is wanted. */
static value add_lightning(builder *b, uint32_t i, value p, const model_layer *layer, bool last)
{
    const model_config *c = b->source->config;
    uint32_t inner = c->head_count * c->head_dim, rows = b->list->rows;
    bool halves = p.block != 0;
    value o =
        halves ? new_blocks(b, rows, inner, lightning_block(b, layer)) : new_value(b, rows, inner);
    uint64_t scratch =
        rows == 1 ? 0
                  : op_lightning_scratch_bytes(&b->ctx, rows, c->head_count, c->head_dim, halves);
    add(b, (step){.kind = STEP_LIGHTNING,
                  .name = "mixer",
                  .layer = (int32_t)i,
                  .in = p,
                  .in2 = nothing,
                  .out = o,
                  .scratch = new_slot(b, scratch),
                  .vector = layer ? &layer->decay : NULL});
    if (last)
        return nothing;
    const gpu_buffer *weight = layer ? &layer->lightning_norm : NULL;
    if (norm_fused(b, inner, p.dim)) {
        value y = new_value(b, rows, c->hidden_size);
        add(b, (step){.kind = STEP_MATMUL,
                      .name = "attn",
                      .layer = (int32_t)i,
                      .in = o,
                      .in2 = p,
                      .out = y,
                      .normed = nothing,
                      .scratch = NO_SLOT,
                      .eps = (float)c->lightning_norm_eps,
                      .vector = weight,
                      .weights = layer ? &layer->out : NULL,
                      .norm = true,
                      .gated = true});
        return y;
    }
    value h = {NO_SLOT, NO_SLOT, NO_SLOT, inner, 0};
    if (wants_half(b, layer ? &layer->out : NULL))
        add_half(b, &h, rows);
    else
        h = new_value(b, rows, inner);
    add(b, (step){.kind = STEP_GATED_NORM,
                  .name = "gated",
                  .layer = (int32_t)i,
                  .in = o,
                  .in2 = p,
                  .out = h,
                  .scratch = NO_SLOT,
                  .eps = (float)c->lightning_norm_eps,
                  .vector = weight});
    return add_out(b, i, h, layer);
}

static value add_attention(builder *b, uint32_t i, value p, const model_layer *layer, bool last)
{
    const model_config *c = b->source->config;
    uint32_t inner = c->head_count * c->head_dim, rows = b->list->rows;
    value o = new_value(b, rows, inner);
    op_kv shape = {.type = b->list->half ? FUL_TYPE_F16 : FUL_TYPE_F32,
                   .kv_heads = c->kv_head_count,
                   .head_dim = c->head_dim,
                   .capacity_tokens = b->source->kv_tokens};
    op_kv_layout(b->source->device, &shape);
    uint64_t scratch =
        op_attention_scratch_bytes(&b->ctx, rows, c->head_count, c->head_dim, &shape);
    add(b, (step){.kind = STEP_ATTENTION,
                  .name = "mixer",
                  .layer = (int32_t)i,
                  .in = p,
                  .in2 = nothing,
                  .out = o,
                  .scratch = new_slot(b, scratch)});
    if (last)
        return nothing;
    if (!wants_half(b, layer ? &layer->out : NULL))
        return add_out(b, i, o, layer);
    value h = {NO_SLOT, NO_SLOT, NO_SLOT, inner, 0};
    add_half(b, &h, rows);
    add(b, (step){.kind = STEP_PACK,
                  .name = "pack",
                  .layer = (int32_t)i,
                  .in = o,
                  .in2 = nothing,
                  .out = h,
                  .scratch = NO_SLOT});
    return add_out(b, i, h, layer);
}

/* norm2 and the router behind it. */
static value add_router(builder *b, uint32_t i, const residual *r, const model_layer *layer,
                        bool half, value *m)
{
    const model_config *c = b->source->config;
    product router = {.name = "router",
                      .layer = (int32_t)i,
                      .w = layer ? &layer->router : NULL,
                      .dim = c->expert_count};
    const gpu_buffer *weight = layer ? &layer->post_norm : NULL;
    if (norm_fused(b, c->hidden_size, 0))
        return add_norm_matmul(b, r, weight, c->norm_eps, &router, false, m);
    *m = add_norm(b, "norm2", (int32_t)i, r, weight, c->norm_eps, half, false);
    value logits = new_value(b, b->list->rows, c->expert_count);
    add(b, (step){.kind = STEP_MATMUL,
                  .name = router.name,
                  .layer = (int32_t)i,
                  .in = {m->data, NO_SLOT, NO_SLOT, m->dim, 0},
                  .in2 = nothing,
                  .out = logits,
                  .scratch = NO_SLOT,
                  .weights = router.w});
    return logits;
}

static void add_layer(builder *b, uint32_t i, residual *r)
{
    const model_config *c = b->source->config;
    const model_layer *layer = b->source->model ? &b->source->model->layers[i] : NULL;
    bool lightning = c->layers[i] == LAYER_LIGHTNING;
    uint32_t rows = b->list->rows;

    uint32_t inner = c->head_count * c->head_dim, kv = c->kv_head_count * c->head_dim;
    product qkv = {.name = "qkv",
                   .layer = (int32_t)i,
                   .w = layer ? &layer->qkv : NULL,
                   .dim = lightning ? 4 * inner : inner + 2 * kv,
                   .act = lightning ? OP_ACT_SILU_SIGMOID : OP_ACT_NONE,
                   .split = lightning ? 3 * inner : 0,
                   .block = lightning && lightning_block(b, layer) != 0 ? c->head_dim : 0};
    value n;
    value p = add_qkv(b, r, layer, &qkv, &n);
    /* States and keys are all that later tokens see of these. */
    bool last = b->list->kind == SCHEDULE_PREFILL_NONE && i + 1 == c->block_count;
    value y = lightning ? add_lightning(b, i, p, layer, last) : add_attention(b, i, p, layer, last);
    if (last)
        return;
    residual after = {n, y, lightning ? c->alpha_lightning : c->alpha_softmax,
                      lightning ? c->beta_lightning : c->beta_softmax};

    bool half = wants_half(b, layer ? &layer->w13 : NULL);
    value m;
    /* The router always reads f32: a flipped expert costs more than any rounding. */
    value logits = add_router(b, i, &after, layer, half, &m);
    value m32 = {m.data, NO_SLOT, NO_SLOT, m.dim, 0};
    value routes = new_value(b, rows, 2 * c->top_k);
    bool routed = b->source->fused && op_moe_routes(&b->ctx, rows, c->expert_count, c->top_k);
    if (!routed)
        add(b, (step){.kind = STEP_ROUTE,
                      .name = "routes",
                      .layer = (int32_t)i,
                      .in = logits,
                      .in2 = nothing,
                      .out = routes,
                      .scratch = NO_SLOT});
    value z = new_value(b, rows, c->hidden_size);
    value x = half ? (value){NO_SLOT, m.half, m.scale, m.dim, 0} : m32;
    op_context moe = b->ctx;
    moe.half = half; /* f32 weights take f32 inputs, and another layout of the scratch */
    uint64_t scratch = op_moe_scratch_bytes(&moe, rows, c->top_k, c->expert_count, c->hidden_size,
                                            c->intermediate_size);
    add(b, (step){.kind = STEP_MOE,
                  .name = "moe",
                  .layer = (int32_t)i,
                  .in = x,
                  .in2 = routes,
                  .logits = logits,
                  .routed = routed,
                  .out = z,
                  .scratch = new_slot(b, scratch),
                  .weights = layer ? &layer->w13 : NULL,
                  .weights2 = layer ? &layer->w2 : NULL});
    *r = (residual){m32, z, c->alpha_mlp, c->beta_mlp};
}

static void add_head(builder *b, const residual *r, bool sample)
{
    const ful_model *model = b->source->model;
    const model_config *c = b->source->config;
    bool last = b->list->kind != SCHEDULE_PREFILL_ALL;
    const gpu_tensor *head = model ? model_head(model) : NULL;
    bool half = !last && wants_half(b, head);
    const gpu_buffer *weight = model ? &model->final_norm : NULL;
    if (norm_fused(b, c->hidden_size, 0)) {
        product logits = {.name = "logits", .layer = -1, .w = head, .dim = c->vocab_size};
        value normed;
        add_norm_matmul(b, r, weight, c->norm_eps, &logits, true, &normed);
    } else {
        value f = add_norm(b, "final", -1, r, weight, c->norm_eps, half, last);
        if (half)
            f.data = NO_SLOT;
        add(b, (step){.kind = STEP_MATMUL,
                      .name = "logits",
                      .layer = -1,
                      .in = f,
                      .in2 = nothing,
                      .out = {NO_SLOT, NO_SLOT, NO_SLOT, c->vocab_size, 0},
                      .scratch = NO_SLOT,
                      .weights = head,
                      .one_row = last,
                      .to_logits = true});
    }
    step end = {.kind = sample ? STEP_SAMPLE : STEP_COPY,
                .name = sample ? "sample" : "copy",
                .layer = -1,
                .in = nothing,
                .in2 = nothing,
                .out = nothing,
                .scratch =
                    sample ? new_slot(b, op_sample_scratch_bytes(&b->ctx, c->vocab_size)) : NO_SLOT,
                .one_row = last};
    add(b, end);
}

ful_result steps_build(const step_source *source, schedule_kind kind, uint32_t rows, bool sample,
                       step_list *out)
{
    const model_config *c = source->config;
    *out = (step_list){
        .alloc = device_alloc(source->device), .rows = rows, .kind = kind, .half = source->half};
    builder b = {.source = source,
                 .list = out,
                 .ctx = {.device = source->device,
                         .half = source->half,
                         .shape = source->model ? source->model->shape : OP_SHAPE_AUTO,
                         .layer = -1},
                 .failed = FUL_OK};
    value x = new_value(&b, rows, c->hidden_size);
    add(&b, (step){.kind = STEP_EMBED,
                   .name = "embed",
                   .layer = -1,
                   .in = nothing,
                   .in2 = nothing,
                   .out = x,
                   .scratch = NO_SLOT,
                   .weights = source->model ? &source->model->embedding : NULL});
    residual r = {x, nothing, 1.0, 0.0};
    for (uint32_t i = 0; i < c->block_count; i++)
        add_layer(&b, i, &r);
    if (kind != SCHEDULE_PREFILL_NONE)
        add_head(&b, &r, sample);
    if (b.failed == FUL_OK)
        b.failed = slots_place(out);
    if (b.failed != FUL_OK)
        steps_free(out);
    return b.failed;
}

void steps_free(step_list *list)
{
    mem_free(list->alloc, list->steps);
    mem_free(list->alloc, list->slots);
    *list = (step_list){.alloc = list->alloc};
}
