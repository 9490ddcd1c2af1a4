/* Pseudo-random contents: weights of synthetic models, inputs of benchmarks. */
#include <assert.h>
#include <math.h>

#include "base/types.h"
#include "format/tensors.h"
#include "ops/op_common.h"

/* Of types of blocks, in 32-bit words of the plane of scales. */
typedef struct random_scales {
    uint32_t quad; /* where it begins, in 16 bytes */
    uint32_t period;
    uint32_t first, other; /* words i % period == 0, and the others */
    uint32_t other_random;
} random_scales;

typedef struct random_push {
    uint32_t first_row, rows, row_quads;
    uint32_t key[2];
    union {
        struct {
            float base, spread;
        } values;
        random_scales scales;
    } u;
} random_push;
static_assert(sizeof(random_push) == 40, "as in synthesize.comp");

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

/* Scales under which random bits deviate as wanted around 0. */
static random_scales scales_of(const op_random_args *args)
{
    /* Standard deviation of an element whose scale d is 1, with all bits random, and the offset
     * dmin (or m) in multiples of d that puts the mean near 0. Of q4_1 and q5_1: minus the mean of
     * the bits; of q2_k, q4_k and q5_k, whose scales and minima are random as well, the same. */
    static const struct {
        double deviation, offset;
        uint32_t period; /* words */
    } types[TYPE_COUNT] = {
        [FUL_TYPE_Q8_0] = {73.90, 0, 1},     [FUL_TYPE_Q4_0] = {4.610, 0, 1},
        [FUL_TYPE_Q4_1] = {4.610, -7.5, 1},  [FUL_TYPE_Q5_0] = {9.233, 0, 1},
        [FUL_TYPE_Q5_1] = {9.233, -15.5, 1}, [FUL_TYPE_Q2_K] = {13.87, 1.5, 5},
        [FUL_TYPE_Q3_K] = {43.34, 0, 4},     [FUL_TYPE_Q4_K] = {258.3, 7.5, 4},
        [FUL_TYPE_Q5_K] = {526.9, 15.5, 4},  [FUL_TYPE_Q6_K] = {1365.7, 0, 5},
        [FUL_TYPE_IQ4_NL] = {67.18, 0, 1},   [FUL_TYPE_MXFP4] = {2.926, 0, 1},
    };
    type_planes planes = type_device_planes(args->type, args->cols);
    double d = args->deviation / types[args->type].deviation;
    uint32_t scale = float_to_half((float)d),
             offset = float_to_half((float)(d * types[args->type].offset));
    random_scales s = {.quad = (uint32_t)(planes.scales / 16), .period = types[args->type].period};
    if (args->type == FUL_TYPE_MXFP4) {
        int exponent = 127 + (int)lround(log2(d));
        s.first = (uint32_t)(exponent < 0 ? 0 : exponent > 254 ? 254 : exponent) * 0x01010101u;
    } else if (types[args->type].offset != 0) {
        s.first = scale | offset << 16;
    } else {
        s.first = s.period > 1 ? scale : scale | scale << 16;
    }
    s.other_random = s.period > 1;
    return s;
}

ful_result op_random(const op_context *ctx, const op_random_args *args)
{
    uint32_t quads = (uint32_t)(args->row_bytes / 16);
    uint32_t wg = device_is_cpu(ctx->device) ? LEAST_GROUP : MOST_GROUP;
    op_module module = op_module_name("synthesize", args->type);
    gpu_pipeline_desc desc = {.module = module.name,
                              .buffer_count = 1,
                              .push_bytes = type_is_blocks(args->type) ? 40 : 28,
                              .spec_count = 1,
                              .spec = {wg}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    random_push push = {.first_row = args->first_row,
                        .rows = args->rows,
                        .row_quads = quads,
                        .key = {(uint32_t)args->key, (uint32_t)(args->key >> 32)}};
    bool blocks = type_is_blocks(args->type);
    if (blocks) {
        push.u.scales = scales_of(args);
    } else {
        push.u.values.base = (float)args->mean;
        /* Uniform in (-a, a) deviates by a / sqrt(3). */
        push.u.values.spread = (float)(args->deviation * sqrt(3.0));
    }
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
        part.cols = tensor->cols;
        TRY(op_random(ctx, &part));
    }
    return FUL_OK;
}
