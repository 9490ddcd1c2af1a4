/* fulgur/ops.h: the ops. Each checks its ranges and hands over to the one the schedule uses. */
#include "ops/public.h"

/* One range and what it must hold. */
typedef struct range_need {
    const char *name;
    const ful_range *in;
    uint64_t bytes;
    gpu_range *out;
} range_need;

static ful_result ranges_get(const ful_stream *s, const char *op, const range_need *needs,
                             size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const range_need *n = &needs[i];
        const ful_buffer *b = n->in->buffer;
        if (b == NULL)
            return fail(FUL_ERR_ARGUMENT, "%s: %s has no buffer", op, n->name);
        if (b->device != s->device)
            return fail(FUL_ERR_ARGUMENT, "%s: %s (buffer %s) belongs to another device", op,
                        n->name, b->name);
        uint64_t offset = n->in->offset_bytes;
        if (offset % 256 != 0 || offset > b->bytes)
            return fail(
                FUL_ERR_ARGUMENT,
                "%s: %s begins at byte %llu of buffer %s (%llu bytes); a multiple of 256 inside it "
                "is needed",
                op, n->name, (unsigned long long)offset, b->name, (unsigned long long)b->bytes);
        uint64_t rest = b->bytes - offset, bytes = n->in->bytes != 0 ? n->in->bytes : rest;
        if (bytes > rest || bytes < n->bytes)
            return fail(FUL_ERR_ARGUMENT,
                        "%s: %s has %llu bytes of %llu in buffer %s, %llu are needed", op, n->name,
                        (unsigned long long)bytes, (unsigned long long)rest, b->name,
                        (unsigned long long)n->bytes);
        *n->out = gpu_part(gpu_whole(&b->gpu), offset, n->bytes);
    }
    return FUL_OK;
}
#define RANGES(stream, op, ...)                                                                    \
    ranges_get(stream, op, (const range_need[]){__VA_ARGS__},                                      \
               sizeof((const range_need[]){__VA_ARGS__}) / sizeof(range_need))

static ful_result stream_check(const ful_stream *s, const void *args, const char *op, uint32_t rows)
{
    if (s == NULL || args == NULL)
        return fail(FUL_ERR_ARGUMENT, "%s: stream and args must be given", op);
    if (s->ended)
        return fail(FUL_ERR_ARGUMENT, "%s: the stream has run; begin another", op);
    if (rows == 0)
        return fail(FUL_ERR_ARGUMENT, "%s: 0 rows", op);
    return FUL_OK;
}

static ful_result tensor_check(const ful_stream *s, const ful_tensor *t, const char *op,
                               const char *name)
{
    if (t == NULL)
        return fail(FUL_ERR_ARGUMENT, "%s: %s must be given", op, name);
    if (t->device != s->device)
        return fail(FUL_ERR_ARGUMENT, "%s: %s (tensor %s) belongs to another device", op, name,
                    t->name);
    return FUL_OK;
}

/* Bytes of [rows][stride] f32. */
static uint64_t f32_bytes(uint64_t rows, uint64_t stride)
{
    return 4 * rows * stride;
}

/* After an op was recorded. */
static ful_result recorded(ful_stream *s, ful_result result, uint32_t rows)
{
    if (result == FUL_OK && rows > s->max_rows)
        s->max_rows = rows;
    return result;
}

/* Rows as the matrix kernels want them: f32 as they are, or halves in the stream's memory. */
static ful_result activation_make(ful_stream *s, gpu_range in, uint32_t rows, uint32_t dim,
                                  uint32_t stride, op_activation *out)
{
    *out = (op_activation){.data = in, .dim = dim, .stride = stride};
    /* Packing reads dense rows only. */
    if (!s->ctx.half || stride != dim)
        return FUL_OK;
    uint32_t half_stride = (dim + 7) / 8 * 8;
    out->half = true;
    out->stride = half_stride;
    TRY(stream_scratch_get(s, 2 * (uint64_t)rows * half_stride, &out->data));
    TRY(stream_scratch_get(s, 4 * (uint64_t)rows, &out->scale));
    return op_pack(&s->ctx, in, out, rows, false);
}

ful_result ful_op_embed(ful_stream *stream, const ful_embed_args *args)
{
    TRY(stream_check(stream, args, "ful_op_embed", args != NULL ? args->rows : 0));
    TRY(tensor_check(stream, args->table, "ful_op_embed", "table"));
    op_embed_args op = {.table = &args->table->gpu, .rows = args->rows};
    TRY(RANGES(stream, "ful_op_embed",
               {"tokens", &args->tokens, f32_bytes(args->rows, 1), &op.tokens},
               {"out", &args->out, f32_bytes(args->rows, op.table->cols), &op.out}));
    return recorded(stream, op_embed(&stream->ctx, &op), args->rows);
}

ful_result ful_op_norm(ful_stream *stream, const ful_norm_args *args)
{
    TRY(stream_check(stream, args, "ful_op_norm", args != NULL ? args->rows : 0));
    op_norm_args op = {.alpha = args->alpha,
                       .beta = args->beta,
                       .eps = args->eps,
                       .dim = args->dim,
                       .rows = args->rows};
    uint64_t bytes = f32_bytes(args->rows, args->dim);
    TRY(RANGES(stream, "ful_op_norm", {"a", &args->a, bytes, &op.a},
               {"weight", &args->weight, f32_bytes(1, args->dim), &op.weight},
               {"out", &args->out, bytes, &op.out}));
    if (args->b.buffer != NULL)
        TRY(RANGES(stream, "ful_op_norm", {"b", &args->b, bytes, &op.b}));
    return recorded(stream, op_norm(&stream->ctx, &op), args->rows);
}

ful_result ful_op_gated_norm(ful_stream *stream, const ful_gated_norm_args *args)
{
    TRY(stream_check(stream, args, "ful_op_gated_norm", args != NULL ? args->rows : 0));
    if ((uint64_t)args->gate_offset + args->dim > args->gate_stride)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_op_gated_norm: gate columns %u + %u exceed its stride %u",
                    (unsigned)args->gate_offset, (unsigned)args->dim, (unsigned)args->gate_stride);
    op_gated_norm_args op = {.gate_stride = args->gate_stride,
                             .gate_offset = args->gate_offset,
                             .eps = args->eps,
                             .dim = args->dim,
                             .rows = args->rows,
                             .out = {.dim = args->dim, .stride = args->dim}};
    uint64_t bytes = f32_bytes(args->rows, args->dim);
    TRY(RANGES(stream, "ful_op_gated_norm", {"o", &args->o, bytes, &op.o},
               {"gate", &args->gate, f32_bytes(args->rows, args->gate_stride), &op.gate},
               {"weight", &args->weight, f32_bytes(1, args->dim), &op.weight},
               {"out", &args->out, bytes, &op.out.data}));
    return recorded(stream, op_gated_norm(&stream->ctx, &op), args->rows);
}

ful_result ful_op_matmul(ful_stream *stream, const ful_matmul_args *args)
{
    TRY(stream_check(stream, args, "ful_op_matmul", args != NULL ? args->rows : 0));
    TRY(tensor_check(stream, args->w, "ful_op_matmul", "w"));
    if (args->act != FUL_ACT_NONE && args->act != FUL_ACT_SILU_SIGMOID &&
        args->act != FUL_ACT_SWIGLU)
        return fail(FUL_ERR_ARGUMENT, "ful_op_matmul: activation %d", (int)args->act);
    const gpu_tensor *w = &args->w->gpu;
    if (w->experts != 1)
        return fail(FUL_ERR_ARGUMENT, "ful_op_matmul: tensor %s has %u experts", args->w->name,
                    (unsigned)w->experts);
    uint32_t columns = args->act == FUL_ACT_SWIGLU ? w->rows / 2 : w->rows;
    uint32_t x_stride = args->x_stride != 0 ? args->x_stride : w->cols;
    uint32_t out_stride = args->out_stride != 0 ? args->out_stride : columns;
    if (x_stride < w->cols || out_stride < columns)
        return fail(FUL_ERR_ARGUMENT, "ful_op_matmul: strides %u and %u, columns %u and %u",
                    (unsigned)x_stride, (unsigned)out_stride, (unsigned)w->cols, (unsigned)columns);
    op_matmul_args op = {.w = w,
                         .out_stride = out_stride,
                         .act = (op_act)args->act,
                         .split = args->split,
                         .rows = args->rows};
    gpu_range x;
    TRY(RANGES(stream, "ful_op_matmul", {"x", &args->x, f32_bytes(args->rows, x_stride), &x},
               {"out", &args->out, f32_bytes(args->rows, out_stride), &op.out}));
    TRY(activation_make(stream, x, args->rows, w->cols, x_stride, &op.x));
    return recorded(stream, op_matmul(&stream->ctx, &op), args->rows);
}

ful_result ful_op_route(ful_stream *stream, const ful_route_args *args)
{
    TRY(stream_check(stream, args, "ful_op_route", args != NULL ? args->rows : 0));
    op_route_args op = {.experts = args->experts, .top_k = args->top_k, .rows = args->rows};
    TRY(RANGES(
        stream, "ful_op_route",
        {"logits", &args->logits, f32_bytes(args->rows, args->experts), &op.logits},
        {"routes", &args->routes, f32_bytes(args->rows, 2 * (uint64_t)args->top_k), &op.routes}));
    return recorded(stream, op_route(&stream->ctx, &op), args->rows);
}

ful_result ful_op_moe(ful_stream *stream, const ful_moe_args *args)
{
    TRY(stream_check(stream, args, "ful_op_moe", args != NULL ? args->rows : 0));
    TRY(tensor_check(stream, args->w13, "ful_op_moe", "w13"));
    TRY(tensor_check(stream, args->w2, "ful_op_moe", "w2"));
    const gpu_tensor *w13 = &args->w13->gpu, *w2 = &args->w2->gpu;
    uint32_t dim = w13->cols, width = w2->cols;
    if (w13->experts != w2->experts || w13->rows != 2 * (uint64_t)width || w2->rows != dim)
        return fail(FUL_ERR_ARGUMENT, "ful_op_moe: w13 [%u][%u][%u] and w2 [%u][%u][%u] do not fit",
                    (unsigned)w13->experts, (unsigned)w13->rows, (unsigned)dim,
                    (unsigned)w2->experts, (unsigned)w2->rows, (unsigned)width);
    if (args->top_k == 0 || args->top_k > w13->experts)
        return fail(FUL_ERR_ARGUMENT, "ful_op_moe: top_k %u of %u experts", (unsigned)args->top_k,
                    (unsigned)w13->experts);
    op_moe_args op = {.w13 = w13, .w2 = w2, .top_k = args->top_k, .rows = args->rows};
    gpu_range x;
    TRY(RANGES(
        stream, "ful_op_moe", {"x", &args->x, f32_bytes(args->rows, dim), &x},
        {"routes", &args->routes, f32_bytes(args->rows, 2 * (uint64_t)args->top_k), &op.routes},
        {"out", &args->out, f32_bytes(args->rows, dim), &op.out}));
    TRY(activation_make(stream, x, args->rows, dim, dim, &op.x));
    TRY(stream_scratch_get(
        stream,
        op_moe_scratch_bytes(&stream->ctx, args->rows, args->top_k, w13->experts, dim, width),
        &op.scratch));
    return recorded(stream, op_moe(&stream->ctx, &op), args->rows);
}

static ful_result lightning_make(ful_stream *stream, const char *name,
                                 const ful_lightning_args *args, uint32_t rows, uint32_t sequences,
                                 op_lightning_args *op)
{
    TRY(stream_check(stream, args, name, rows));
    if (args->heads == 0 || args->head_dim == 0 || args->head_dim % 16 != 0 || args->head_dim > 256)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: %u heads of %u; head_dim must be a multiple of 16 up to 256", name,
                    (unsigned)args->heads, (unsigned)args->head_dim);
    uint64_t dim = (uint64_t)args->heads * args->head_dim;
    uint32_t stride = args->qkv_stride != 0 ? args->qkv_stride : (uint32_t)(3 * dim);
    if (stride < 3 * dim)
        return fail(FUL_ERR_ARGUMENT, "%s: qkv_stride %u, columns %llu", name, (unsigned)stride,
                    (unsigned long long)(3 * dim));
    *op = (op_lightning_args){.qkv_stride = stride,
                              .heads = args->heads,
                              .head_dim = args->head_dim,
                              .rows = rows,
                              .sequences = sequences};
    return RANGES(stream, name,
                  {"decay", &args->decay,
                   op_lightning_decay_bytes(stream->device, args->heads, args->head_dim),
                   &op->decay},
                  {"state", &args->state, f32_bytes(sequences * dim, args->head_dim), &op->state});
}

/* Halves of `columns` in blocks. */
static ful_result blocks_get(const ful_stream *stream, const char *op, const ful_blocks *in,
                             uint64_t rows, uint64_t columns, uint32_t block, op_blocks *out)
{
    if (block == 0)
        return fail(FUL_ERR_UNSUPPORTED, "%s: this stream and device take no halves in blocks", op);
    out->stride = (uint32_t)columns;
    out->block = block;
    return RANGES(stream, op, {"data of blocks", &in->data, 2 * rows * columns, &out->data},
                  {"scale of blocks", &in->scale, f32_bytes(rows, columns / block), &out->scale});
}

uint32_t ful_op_lightning_block(const ful_stream *stream, uint32_t rows, uint32_t heads,
                                uint32_t head_dim)
{
    return stream == NULL ? 0 : op_lightning_blocks(&stream->ctx, rows, heads, head_dim);
}

ful_result ful_op_lightning_prefill(ful_stream *stream, const ful_lightning_args *args)
{
    static const char *const name = "ful_op_lightning_prefill";
    op_lightning_args op;
    uint32_t rows = args != NULL ? args->rows : 0;
    TRY(lightning_make(stream, name, args, rows, 1, &op));
    uint64_t dim = (uint64_t)args->heads * args->head_dim;
    uint32_t block = op_lightning_blocks(&stream->ctx, rows, args->heads, args->head_dim);
    if (args->qkv_blocks.data.buffer != NULL)
        TRY(blocks_get(stream, name, &args->qkv_blocks, rows, 3 * dim,
                       block != 0 ? args->head_dim : 0, &op.qkv_blocks));
    else
        TRY(RANGES(stream, name, {"qkv", &args->qkv, f32_bytes(rows, op.qkv_stride), &op.qkv}));
    if (args->out_blocks.data.buffer != NULL)
        TRY(blocks_get(stream, name, &args->out_blocks, rows, dim, block, &op.out_blocks));
    else
        TRY(RANGES(stream, name, {"out", &args->out, f32_bytes(rows, dim), &op.out}));
    bool halves = args->qkv_blocks.data.buffer != NULL && args->out_blocks.data.buffer != NULL;
    TRY(stream_scratch_get(
        stream, op_lightning_scratch_bytes(&stream->ctx, rows, args->heads, args->head_dim, halves),
        &op.scratch));
    return recorded(stream, op_lightning_prefill(&stream->ctx, &op), rows);
}

ful_result ful_op_lightning_decode(ful_stream *stream, const ful_lightning_args *args)
{
    static const char *const name = "ful_op_lightning_decode";
    op_lightning_args op;
    uint32_t sequences = args != NULL && args->sequences > 1 ? args->sequences : 1;
    TRY(lightning_make(stream, name, args, 1, sequences, &op));
    uint64_t dim = (uint64_t)args->heads * args->head_dim;
    TRY(RANGES(stream, name, {"qkv", &args->qkv, f32_bytes(sequences, op.qkv_stride), &op.qkv},
               {"out", &args->out, f32_bytes(sequences, dim), &op.out}));
    return recorded(stream, op_lightning_decode(&stream->ctx, &op), 1);
}

ful_result ful_op_attention(ful_stream *stream, const ful_attention_args *args)
{
    TRY(stream_check(stream, args, "ful_op_attention", args != NULL ? args->rows : 0));
    if (args->kv == NULL || args->kv->device != stream->device)
        return fail(FUL_ERR_ARGUMENT, "ful_op_attention: kv must be given, of the stream's device");
    const op_kv *kv = &args->kv->gpu;
    if (args->heads == 0 || args->heads % kv->kv_heads != 0 || args->rotary_dim == 0 ||
        args->rotary_dim % 2 != 0 || args->rotary_dim > kv->head_dim)
        return fail(FUL_ERR_ARGUMENT, "ful_op_attention: %u heads on %u, rotary_dim %u of %u",
                    (unsigned)args->heads, (unsigned)kv->kv_heads, (unsigned)args->rotary_dim,
                    (unsigned)kv->head_dim);
    uint64_t columns = ((uint64_t)args->heads + 2 * (uint64_t)kv->kv_heads) * kv->head_dim;
    uint32_t stride = args->qkv_stride != 0 ? args->qkv_stride : (uint32_t)columns;
    if (stride < columns)
        return fail(FUL_ERR_ARGUMENT, "ful_op_attention: qkv_stride %u, columns %llu",
                    (unsigned)stride, (unsigned long long)columns);
    op_attention_args op = {.qkv_stride = stride,
                            .heads = args->heads,
                            .head_dim = kv->head_dim,
                            .rotary_dim = args->rotary_dim,
                            .rows = args->rows,
                            .kv = kv};
    TRY(RANGES(
        stream, "ful_op_attention", {"qkv", &args->qkv, f32_bytes(args->rows, stride), &op.qkv},
        {"rope", &args->rope, f32_bytes(args->rows, args->rotary_dim), &op.rope},
        {"out", &args->out, f32_bytes(args->rows, (uint64_t)args->heads * kv->head_dim), &op.out}));
    TRY(stream_scratch_get(
        stream, op_attention_scratch_bytes(&stream->ctx, args->rows, args->heads, kv->head_dim, kv),
        &op.scratch));
    if (stream->kv_tokens == 0 || kv->capacity_tokens < stream->kv_tokens)
        stream->kv_tokens = kv->capacity_tokens;
    return recorded(stream, op_attention(&stream->ctx, &op), args->rows);
}

ful_result ful_op_sample(ful_stream *stream, const ful_sample_args *args)
{
    TRY(stream_check(stream, args, "ful_op_sample", 1));
    if (args->vocab == 0)
        return fail(FUL_ERR_ARGUMENT, "ful_op_sample: no logits");
    op_sample_args op = {.vocab = args->vocab};
    TRY(RANGES(stream, "ful_op_sample",
               {"logits", &args->logits, f32_bytes(1, args->vocab), &op.logits},
               {"out", &args->out, 8, &op.out}));
    TRY(stream_scratch_get(stream, op_sample_scratch_bytes(&stream->ctx, args->vocab),
                           &op.scratch));
    return recorded(stream, op_sample(&stream->ctx, &op), 1);
}
