/* Steps into recorded commands. */
#include "schedule/record.h"

#include <string.h>

static gpu_range slot_range(const recorder *r, int32_t id)
{
    if (id == NO_SLOT)
        return (gpu_range){0};
    const slot *s = &r->list->slots[id];
    return (gpu_range){&r->io->arena, s->offset, s->bytes};
}

static op_activation activation(const recorder *r, value v)
{
    bool half = v.data == NO_SLOT && v.half != NO_SLOT;
    return (op_activation){.data = slot_range(r, half ? v.half : v.data),
                           .scale = half ? slot_range(r, v.scale) : (gpu_range){0},
                           .dim = v.dim,
                           .stride = v.dim,
                           .half = half};
}

static op_blocks blocks(const recorder *r, value v)
{
    if (v.block == 0)
        return (op_blocks){0};
    return (op_blocks){slot_range(r, v.half), slot_range(r, v.scale), v.dim, v.block};
}

/* A norm's second, packed output. */
static op_activation packed(const recorder *r, value v)
{
    if (v.half == NO_SLOT)
        return (op_activation){0};
    return (op_activation){slot_range(r, v.half), slot_range(r, v.scale), v.dim, v.dim, true};
}

static ful_result record_norm(const recorder *r, const op_context *ctx, const step *s)
{
    op_norm_args args = {.a = slot_range(r, s->in.data),
                         .b = slot_range(r, s->in2.data),
                         .alpha = s->alpha,
                         .beta = s->beta,
                         .weight = gpu_whole(s->vector),
                         .eps = s->eps,
                         .dim = s->in.dim,
                         .rows = r->list->rows,
                         .last_row = s->last_row,
                         .out = slot_range(r, s->out.data),
                         .packed = packed(r, s->out)};
    return op_norm(ctx, &args);
}

static ful_result record_matmul(const recorder *r, const op_context *ctx, const step *s)
{
    uint32_t columns = s->out.dim;
    op_matmul_args args = {.x = activation(r, s->in),
                           .w = s->weights,
                           .out = slot_range(r, s->out.data),
                           .out_stride = columns,
                           .out_blocks = blocks(r, s->out),
                           .act = s->act,
                           .split = s->split,
                           .rows = s->one_row ? 1 : r->list->rows,
                           .fixed = s->one_row || r->list->rows == 1};
    if (s->scratch != NO_SLOT)
        args.scratch = slot_range(r, s->scratch);
    op_fused_norm norm;
    if (s->norm) {
        norm = (op_fused_norm){.b = slot_range(r, s->in2.data),
                               .gated = s->gated,
                               .gate_stride = s->gated ? s->in2.dim : 0,
                               .gate_offset = s->gated ? s->in2.dim - s->in.dim : 0,
                               .alpha = s->alpha,
                               .beta = s->beta,
                               .eps = s->eps,
                               .weight = gpu_whole(s->vector),
                               .out = slot_range(r, s->normed.data)};
        args.norm = &norm;
    }
    if (s->to_logits)
        args.out = gpu_part(gpu_whole(&r->io->logits), 0, (uint64_t)args.rows * columns * 4);
    return op_matmul(ctx, &args);
}

static ful_result record_lightning(const recorder *r, const op_context *ctx, const step *s)
{
    const model_config *c = &r->model->config;
    op_lightning_args args = {.qkv = slot_range(r, s->in.data),
                              .qkv_stride = s->in.dim,
                              .heads = c->head_count,
                              .head_dim = c->head_dim,
                              .rows = r->list->rows,
                              .decay = gpu_whole(s->vector),
                              .state = gpu_whole(&r->state->lightning[s->layer]),
                              .state_from = r->state->from,
                              .state_to = r->state->to,
                              .out = slot_range(r, s->out.data),
                              .qkv_blocks = blocks(r, s->in),
                              .out_blocks = blocks(r, s->out),
                              .scratch = slot_range(r, s->scratch)};
    return r->list->rows == 1 ? op_lightning_decode(ctx, &args) : op_lightning_prefill(ctx, &args);
}

static ful_result record_gated_norm(const recorder *r, const op_context *ctx, const step *s)
{
    op_gated_norm_args args = {.o = slot_range(r, s->in.data),
                               .gate = slot_range(r, s->in2.data),
                               .gate_stride = s->in2.dim,
                               .gate_offset = s->in2.dim - s->in.dim,
                               .weight = gpu_whole(s->vector),
                               .eps = s->eps,
                               .dim = s->in.dim,
                               .rows = r->list->rows,
                               .out = activation(r, s->out),
                               .o_blocks = blocks(r, s->in),
                               .gate_blocks = blocks(r, s->in2)};
    return op_gated_norm(ctx, &args);
}

static ful_result record_attention(const recorder *r, const op_context *ctx, const step *s)
{
    const model_config *c = &r->model->config;
    op_attention_args args = {.qkv = slot_range(r, s->in.data),
                              .qkv_stride = s->in.dim,
                              .heads = c->head_count,
                              .head_dim = c->head_dim,
                              .rotary_dim = c->rotary_dim,
                              .rows = r->list->rows,
                              .rope = gpu_whole(&r->io->rope),
                              .kv = &r->state->kv[s->layer],
                              .out = slot_range(r, s->out.data),
                              .scratch = slot_range(r, s->scratch)};
    return op_attention(ctx, &args);
}

static op_context context(const recorder *r, gpu_commands *commands, const step *s)
{
    return (op_context){.device = r->model->device,
                        .commands = commands,
                        .step = gpu_whole(&r->io->step),
                        .half = r->list->half,
                        .shape = r->model->shape,
                        .layer = s->layer};
}

static op_moe_args moe_args(const recorder *r, const step *s)
{
    op_moe_args args = {.x = activation(r, s->in),
                        .routes = slot_range(r, s->in2.data),
                        .w13 = s->weights,
                        .w2 = s->weights2,
                        .top_k = r->model->config.top_k,
                        .rows = r->list->rows,
                        .out = slot_range(r, s->out.data),
                        .scratch = slot_range(r, s->scratch)};
    if (s->routed)
        args.logits = slot_range(r, s->logits.data);
    return args;
}

static ful_result record_moe(const recorder *r, const op_context *ctx, const step *s)
{
    op_moe_args args = moe_args(r, s);
    return op_moe(ctx, &args);
}

static ful_result record_route(const recorder *r, const op_context *ctx, const step *s)
{
    op_route_args args = {.logits = slot_range(r, s->in.data),
                          .experts = s->in.dim,
                          .top_k = r->model->config.top_k,
                          .rows = r->list->rows,
                          .routes = slot_range(r, s->out.data)};
    return op_route(ctx, &args);
}

static ful_result record_embed(const recorder *r, const op_context *ctx, const step *s)
{
    op_embed_args args = {.tokens = gpu_whole(&r->io->tokens),
                          .table = s->weights,
                          .out = slot_range(r, s->out.data),
                          .rows = r->list->rows};
    return op_embed(ctx, &args);
}

static ful_result record_sample(const recorder *r, const op_context *ctx, const step *s)
{
    uint32_t vocab = r->model->config.vocab_size;
    op_sample_args args = {.logits = gpu_part(gpu_whole(&r->io->logits), 0, (uint64_t)vocab * 4),
                           .vocab = vocab,
                           .out = gpu_whole(&r->io->sampled),
                           .scratch = slot_range(r, s->scratch)};
    return op_sample(ctx, &args);
}

static ful_result record_copy(const recorder *r, const op_context *ctx, const step *s)
{
    uint64_t bytes = (uint64_t)(s->one_row ? 1 : r->list->rows) * r->model->config.vocab_size * 4;
    return gpu_commands_copy(ctx->commands, gpu_part(gpu_whole(&r->io->logits), 0, bytes),
                             gpu_part(gpu_whole(&r->io->readback), 0, bytes));
}

ful_result record_step(const recorder *r, gpu_commands *commands, const step *s)
{
    op_context ctx = context(r, commands, s);
    switch (s->kind) {
    case STEP_EMBED:
        return record_embed(r, &ctx, s);
    case STEP_NORM:
        return record_norm(r, &ctx, s);
    case STEP_MATMUL:
        return record_matmul(r, &ctx, s);
    case STEP_LIGHTNING:
        return record_lightning(r, &ctx, s);
    case STEP_GATED_NORM:
        return record_gated_norm(r, &ctx, s);
    case STEP_ATTENTION:
        return record_attention(r, &ctx, s);
    case STEP_PACK: {
        op_activation out = activation(r, s->out);
        return op_pack(&ctx, slot_range(r, s->in.data), &out, r->list->rows, false);
    }
    case STEP_ROUTE:
        return record_route(r, &ctx, s);
    case STEP_MOE:
        return record_moe(r, &ctx, s);
    case STEP_COPY:
        return record_copy(r, &ctx, s);
    case STEP_SAMPLE:
        return record_sample(r, &ctx, s);
    }
    return FUL_OK;
}

bool record_output(const recorder *r, const step *s, gpu_range *range, uint32_t *rows,
                   uint32_t *columns)
{
    *rows = s->last_row || s->one_row ? 1 : r->list->rows;
    *columns = s->out.dim;
    if (s->to_logits)
        *range = gpu_part(gpu_whole(&r->io->logits), 0, (uint64_t)*rows * *columns * 4);
    else if (s->out.data != NO_SLOT)
        *range = gpu_part(slot_range(r, s->out.data), 0, (uint64_t)*rows * *columns * 4);
    else
        return false;
    return true;
}

bool record_hidden(const recorder *r, const step *s, gpu_range *range, uint32_t *rows,
                   uint32_t *columns, bool *sorted)
{
    if (s->kind != STEP_MOE)
        return false;
    op_context ctx = context(r, NULL, s);
    op_moe_args args = moe_args(r, s);
    *rows = r->list->rows * args.top_k;
    *columns = s->weights2->cols;
    return op_moe_hidden(&ctx, &args, range, sorted);
}
