/* RMSNorm with the residual sum or the gate, and packing of rows into halves. */
#include <assert.h>

#include "ops/op_common.h"

typedef struct norm_push {
    uint32_t row0, row_count;
    uint32_t dim;
    uint32_t fixed_rows;
    uint32_t last_row;
    uint32_t gate_stride, gate_offset;
    uint32_t out_stride, half_stride;
    float alpha, beta, eps;
} norm_push;
static_assert(sizeof(norm_push) == 48, "as in rmsnorm.comp");

typedef struct pack_push {
    uint32_t row0, row_count;
    uint32_t dim, stride;
    uint32_t fixed_rows;
} pack_push;
static_assert(sizeof(pack_push) == 20, "as in pack.comp");

typedef struct gated_blocks_push {
    uint32_t row0, row_count;
    uint32_t fixed_rows;
    uint32_t gate_stride, gate_offset, out_stride;
    float eps;
} gated_blocks_push;
static_assert(sizeof(gated_blocks_push) == 28, "as in gated_norm_blocks.comp");

/* Both norms in one form. */
typedef struct norm_job {
    const char *label;
    gpu_range a, b, weight; /* b: second summand, or the gate */
    uint64_t b_row_bytes;   /* 0: b is not there */
    bool gated;
    gpu_range out; /* f32, may be empty */
    uint64_t out_row_bytes;
    const op_activation *half; /* or NULL */
    uint32_t rows;
    norm_push push;
} norm_job;

enum { NARROW_WG = 8 };

static ful_result half_check(const op_context *ctx, const char *what, const op_activation *a)
{
    if (a->stride % 8 != 0 || a->scale.buffer == NULL)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: halves need a stride that is a multiple of 8 (it is %u) and scales", what,
                    (unsigned)a->stride);
    if (!op_half_usable(ctx->device))
        return fail(FUL_ERR_UNSUPPORTED, "%s: halves are not usable on this device", what);
    return FUL_OK;
}

static ful_result norm_record(const op_context *ctx, const norm_job *job)
{
    static const char *const modules[2][3] = {{"rmsnorm", "rmsnorm_half", "rmsnorm_both"},
                                              {"gated_norm", "gated_norm_half", NULL}};
    bool to_f32 = job->out.buffer != NULL, to_half = job->half != NULL;
    if (!to_f32 && !to_half)
        return fail(FUL_ERR_ARGUMENT, "%s: no output", job->label);
    if (to_half)
        TRY(half_check(ctx, job->label, job->half));
    const char *module = modules[job->gated][to_half ? (to_f32 ? 2 : 1) : 0];
    assert(module != NULL);

    uint32_t lanes = op_row_lanes(ctx, 8);
    uint32_t wg = lanes == 1 ? NARROW_WG : lanes;
    uint32_t count = 3 + (to_f32 ? 1u : 0u) + (to_half ? 2u : 0u);
    bool has_b = job->b_row_bytes != 0;
    gpu_pipeline_desc desc = {.module = module,
                              .buffer_count = count,
                              .uniform = true,
                              .push_bytes = sizeof(norm_push),
                              .spec_count = 3,
                              .spec = {wg, lanes, has_b && !job->gated}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t a_row_bytes = 4 * (uint64_t)job->push.dim;
    uint64_t half_row_bytes = to_half ? 2 * (uint64_t)job->half->stride : 0;
    bool last = job->push.last_row != 0;
    uint64_t row_bytes[] = {a_row_bytes, job->b_row_bytes, last || !to_f32 ? 0 : job->out_row_bytes,
                            last ? 0 : half_row_bytes};
    uint32_t part;
    TRY(op_part_rows(ctx->device, job->label, row_bytes, 4, job->rows, &part));
    for (uint32_t row0 = 0; row0 < job->rows; row0 += part) {
        uint32_t rows = job->rows - row0 < part ? job->rows - row0 : part;
        uint32_t out0 = last ? 0 : row0, out_rows = last ? 1 : rows;
        norm_push push = job->push;
        push.row0 = row0;
        push.row_count = rows;
        gpu_range a = op_rows(job->a, row0, rows, a_row_bytes);
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {a, has_b ? op_rows(job->b, row0, rows, job->b_row_bytes) : a,
                        gpu_part(job->weight, 0, a_row_bytes)},
            .uniform = ctx->step,
            .push = &push,
            .cost = {.bytes = (double)rows * (double)(a_row_bytes + job->b_row_bytes +
                                                      job->out_row_bytes + half_row_bytes),
                     .flops = 8.0 * rows * push.dim},
            .label = job->label,
            .layer = ctx->layer};
        uint32_t n = 3;
        if (to_f32)
            d.buffers[n++] = op_rows(job->out, out0, out_rows, job->out_row_bytes);
        if (to_half) {
            d.buffers[n++] = op_rows(job->half->data, out0, out_rows, half_row_bytes);
            d.buffers[n++] = op_rows(job->half->scale, 0, last ? 1 : job->rows, 4);
        }
        d.writes = ((1u << n) - 1) & ~7u;
        TRY(op_groups(ctx->device, job->label, last ? 1 : div_up_u32(rows, wg / lanes), 1,
                      d.groups));
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}

ful_result op_norm(const op_context *ctx, const op_norm_args *args)
{
    uint64_t row_bytes = 4 * (uint64_t)args->dim;
    norm_job job = {.label = "norm",
                    .a = args->a,
                    .b = args->b,
                    .weight = args->weight,
                    .b_row_bytes = args->b.buffer != NULL ? row_bytes : 0,
                    .out = args->out,
                    .out_row_bytes = args->out.buffer != NULL ? row_bytes : 0,
                    .half = args->packed.half ? &args->packed : NULL,
                    .rows = args->rows,
                    .push = {.dim = args->dim,
                             .fixed_rows = args->fixed,
                             .last_row = args->last_row,
                             .out_stride = args->dim,
                             .half_stride = args->packed.stride,
                             .alpha = args->alpha,
                             .beta = args->beta,
                             .eps = args->eps}};
    return norm_record(ctx, &job);
}

bool op_gated_norm_blocks_usable(const op_context *ctx, uint32_t dim)
{
    uint32_t lanes = op_row_lanes(ctx, 8);
    /* An invocation holds its part of a row in registers. */
    return lanes > 1 && dim % 8 == 0 && dim <= lanes * 64 && op_half_usable(ctx->device) &&
           gpu_module_usable(ctx->device, "gated_norm_blocks");
}

static ful_result gated_blocks(const op_context *ctx, const op_gated_norm_args *args)
{
    const op_blocks *o = &args->o_blocks, *gate = &args->gate_blocks;
    static const char *const what = "gated norm of halves";
    TRY(half_check(ctx, what, &args->out));
    if (!args->out.half || !op_gated_norm_blocks_usable(ctx, args->dim))
        return fail(FUL_ERR_UNSUPPORTED, "%s: rows of %u are not usable here, or not to f32", what,
                    (unsigned)args->dim);
    if (o->stride != args->dim || o->block % 8 != 0 || gate->block % 8 != 0 ||
        args->gate_offset % gate->block != 0 || gate->stride < args->gate_offset + args->dim)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: rows of %u by %u in blocks of %u, the gate from %u in rows of %u in "
                    "blocks of %u",
                    what, (unsigned)args->dim, (unsigned)o->stride, (unsigned)o->block,
                    (unsigned)args->gate_offset, (unsigned)gate->stride, (unsigned)gate->block);
    /* Longer rows on more invocations: a part is at most 32 values. */
    const ful_caps *caps = device_caps(ctx->device);
    uint32_t lanes = op_row_lanes(ctx, 8);
    while (lanes * 32 < args->dim && 2 * lanes <= caps->workgroup_invocations &&
           2 * lanes <= caps->workgroup_size[0] && lanes * 16 <= caps->shared_bytes)
        lanes *= 2;
    gpu_pipeline_desc desc = {.module = "gated_norm_blocks",
                              .buffer_count = 7,
                              .uniform = true,
                              .push_bytes = sizeof(gated_blocks_push),
                              .spec_count = 4,
                              .spec = {lanes, args->dim, o->block, gate->block}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    uint64_t row_bytes[] = {2 * (uint64_t)o->stride, 4 * (uint64_t)(o->stride / o->block),
                            2 * (uint64_t)gate->stride, 4 * (uint64_t)(gate->stride / gate->block),
                            2 * (uint64_t)args->out.stride};
    uint32_t part;
    TRY(op_part_rows(ctx->device, what, row_bytes, 5, args->rows, &part));
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        gated_blocks_push push = {
            row0, rows, args->fixed, gate->stride, args->gate_offset, args->out.stride, args->eps};
        gpu_dispatch d = {
            .pipeline = pipeline,
            .buffers = {op_rows(o->data, row0, rows, row_bytes[0]),
                        op_rows(o->scale, row0, rows, row_bytes[1]),
                        op_rows(gate->data, row0, rows, row_bytes[2]),
                        op_rows(gate->scale, row0, rows, row_bytes[3]),
                        gpu_part(args->weight, 0, 4 * (uint64_t)args->dim),
                        op_rows(args->out.data, row0, rows, row_bytes[4]),
                        op_rows(args->out.scale, 0, args->rows, 4)},
            .writes = 1u << 5 | 1u << 6,
            .uniform = ctx->step,
            .push = &push,
            .cost = {.bytes = 6.0 * rows * args->dim, .flops = 8.0 * rows * args->dim},
            .label = "gated norm",
            .layer = ctx->layer};
        TRY(op_groups(ctx->device, what, rows, 1, d.groups));
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}

ful_result op_gated_norm(const op_context *ctx, const op_gated_norm_args *args)
{
    if (args->o_blocks.data.buffer != NULL)
        return gated_blocks(ctx, args);
    norm_job job = {.label = "gated norm",
                    .a = args->o,
                    .b = args->gate,
                    .weight = args->weight,
                    .b_row_bytes = 4 * (uint64_t)args->gate_stride,
                    .gated = true,
                    .rows = args->rows,
                    .push = {.dim = args->dim,
                             .fixed_rows = args->fixed,
                             .gate_stride = args->gate_stride,
                             .gate_offset = args->gate_offset,
                             .out_stride = args->out.stride,
                             .half_stride = args->out.stride,
                             .alpha = 1.0f,
                             .eps = args->eps}};
    if (args->out.half) {
        job.half = &args->out;
    } else {
        job.out = args->out.data;
        job.out_row_bytes = 4 * (uint64_t)args->out.stride;
    }
    return norm_record(ctx, &job);
}

ful_result op_pack(const op_context *ctx, gpu_range in, const op_activation *out, uint32_t rows,
                   bool fixed)
{
    TRY(half_check(ctx, "pack", out));
    uint32_t lanes = op_row_lanes(ctx, 4);
    uint32_t wg = lanes == 1 ? NARROW_WG : lanes;
    gpu_pipeline_desc desc = {.module = "pack",
                              .buffer_count = 3,
                              .uniform = true,
                              .push_bytes = sizeof(pack_push),
                              .spec_count = 2,
                              .spec = {wg, lanes}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t row_bytes[] = {4 * (uint64_t)out->dim, 2 * (uint64_t)out->stride};
    uint32_t part;
    TRY(op_part_rows(ctx->device, "pack", row_bytes, 2, rows, &part));
    for (uint32_t row0 = 0; row0 < rows; row0 += part) {
        uint32_t count = rows - row0 < part ? rows - row0 : part;
        pack_push push = {row0, count, out->dim, out->stride, fixed};
        gpu_dispatch d = {.pipeline = pipeline,
                          .buffers = {op_rows(in, row0, count, row_bytes[0]),
                                      op_rows(out->data, row0, count, row_bytes[1]),
                                      op_rows(out->scale, 0, rows, 4)},
                          .writes = 1u << 1 | 1u << 2,
                          .uniform = ctx->step,
                          .push = &push,
                          .cost = {.bytes = (double)count * (double)(row_bytes[0] + row_bytes[1]),
                                   .flops = 3.0 * count * out->dim},
                          .label = "pack",
                          .layer = ctx->layer};
        TRY(op_groups(ctx->device, "pack", div_up_u32(count, wg / lanes), 1, d.groups));
        TRY(gpu_commands_dispatch(ctx->commands, &d));
    }
    return FUL_OK;
}
