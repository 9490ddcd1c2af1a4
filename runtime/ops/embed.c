/* Token embedding: one dispatch a window of the table. */
#include <assert.h>

#include "ops/op_common.h"

typedef struct embed_push {
    uint32_t row0, row_count;
    uint32_t dim;
    uint32_t window0, window_rows;
    uint32_t vocab;
    uint32_t row_words;
    uint32_t column_groups;
} embed_push;
static_assert(sizeof(embed_push) == 32, "as in embed.comp");

ful_result op_embed(const op_context *ctx, const op_embed_args *args)
{
    const gpu_tensor *table = args->table;
    assert(table->experts == 1);
    uint32_t dim = table->cols;
    uint32_t wg = op_wide(ctx) ? 64 : 8;
    op_module module = op_module_name("embed", table->type);
    gpu_pipeline_desc desc = {.module = module.name,
                              .buffer_count = 3,
                              .uniform = true,
                              .push_bytes = sizeof(embed_push),
                              .spec_count = 1,
                              .spec = {wg}};
    op_spec_type(&desc, table->type);
    uint32_t columns = type_is_blocks(table->type) ? 8 * wg : wg; /* of a group */
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));

    uint64_t row_bytes = 4 * (uint64_t)dim;
    uint32_t part;
    TRY(op_part_rows(ctx->device, "embed", &row_bytes, 1, args->rows, &part));
    for (uint32_t row0 = 0; row0 < args->rows; row0 += part) {
        uint32_t rows = args->rows - row0 < part ? args->rows - row0 : part;
        for (uint32_t i = 0; i < table->window_count; i++) {
            const gpu_window *window = &table->windows[i];
            embed_push push = {.row0 = row0,
                               .row_count = rows,
                               .dim = dim,
                               .window0 = window->row0,
                               .window_rows = window->row_count,
                               .vocab = table->rows,
                               .row_words = (uint32_t)(table->row_bytes / 4),
                               .column_groups = div_up_u32(dim, columns)};
            gpu_dispatch d = {.pipeline = pipeline,
                              .buffers = {op_rows(args->tokens, 0, args->rows, 4),
                                          gpu_whole(&window->buffer),
                                          op_rows(args->out, row0, rows, row_bytes)},
                              .writes = 1u << 2,
                              .uniform = ctx->step,
                              .push = &push,
                              .cost = {.bytes = (double)rows * dim * 8, .flops = 0},
                              .label = "embed",
                              .layer = ctx->layer};
            TRY(op_groups(ctx->device, "embed", (uint64_t)rows * push.column_groups, 1, d.groups));
            TRY(gpu_commands_dispatch(ctx->commands, &d));
        }
    }
    return FUL_OK;
}
