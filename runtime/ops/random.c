/* Pseudo-random contents: weights of synthetic models, inputs of benchmarks. */
#include <assert.h>
#include <math.h>

#include "ops/op_common.h"

typedef struct random_push {
    uint32_t first_row, rows, row_quads;
    uint32_t key[2];
    float base, spread;
} random_push;
static_assert(sizeof(random_push) == 28, "as in synthesize.comp");

enum { LEAST_GROUP = 8, MOST_GROUP = 64 };

/* Steele, Lea and Flood's splitmix64. */
static uint64_t mixed(uint64_t x)
{
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
}

uint64_t op_random_key(uint64_t seed, uint64_t number)
{
    return mixed(mixed(seed) ^ number);
}

ful_result op_random(const op_context *ctx, const op_random_args *args)
{
    uint32_t quads = (uint32_t)(args->row_bytes / 16);
    uint32_t wg = device_is_cpu(ctx->device) ? LEAST_GROUP : MOST_GROUP;
    op_module module = op_module_name("synthesize", args->type);
    gpu_pipeline_desc desc = {.module = module.name,
                              .buffer_count = 1,
                              .push_bytes = sizeof(random_push),
                              .spec_count = 1,
                              .spec = {wg}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    random_push push = {.first_row = args->first_row,
                        .rows = args->rows,
                        .row_quads = quads,
                        .key = {(uint32_t)args->key, (uint32_t)(args->key >> 32)},
                        .base = (float)args->mean,
                        /* Uniform in (-a, a) deviates by a / sqrt(3). */
                        .spread = (float)(args->deviation * sqrt(3.0))};
    double bytes = (double)args->rows * (double)args->row_bytes;
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {args->out},
                      .writes = 1,
                      .push = &push,
                      .cost = {.bytes = bytes, .flops = 10.0 * bytes},
                      .label = "random",
                      .layer = -1};
    TRY(op_groups(ctx->device, "random", ((uint64_t)args->rows * quads + wg - 1) / wg, 1,
                  d.groups));
    return gpu_commands_dispatch(ctx->commands, &d);
}

ful_result op_random_tensor(const op_context *ctx, const gpu_tensor *tensor,
                            const op_random_args *args)
{
    for (uint32_t i = 0; i < tensor->window_count; i++) {
        const gpu_window *window = &tensor->windows[i];
        op_random_args part = *args;
        part.out = gpu_whole(&window->buffer);
        part.type = tensor->type;
        /* Row numbers may wrap: they are a hash's. */
        part.first_row = window->expert0 * tensor->rows + window->row0;
        part.rows = window->expert_count * window->row_count;
        part.row_bytes = tensor->row_bytes;
        TRY(op_random(ctx, &part));
    }
    return FUL_OK;
}
