/* Drawing a token on the device. */
#include "ops/op_common.h"

bool op_sample_usable(const ful_device *device)
{
    return gpu_module_usable(device, "sample");
}

uint64_t op_sample_scratch_bytes(const op_context *ctx, uint32_t vocab)
{
    (void)ctx;
    (void)vocab;
    return 256; /* unused: the search keeps everything in shared memory */
}

ful_result op_sample(const op_context *ctx, const op_sample_args *args)
{
    if (args->vocab == 0)
        return fail(FUL_ERR_ARGUMENT, "sampling from no logits");
    const ful_caps *caps = device_caps(ctx->device);
    /* 24 bytes of shared memory an invocation, and a few words. */
    uint32_t wg = !op_wide(ctx) ? 32 : op_small_device(ctx->device) ? 512 : 1024;
    /* Older CPU drivers leave a shader after 65,535 turns of its loops; the longest search makes
     * some eighty passes. */
    while (wg < 512 && args->vocab / wg >= 65535 / 80)
        wg *= 2;
    while (wg > caps->workgroup_invocations || wg > caps->workgroup_size[0] ||
           wg * 24 + 64 > caps->shared_bytes)
        wg /= 2;
    uint32_t push = args->vocab;
    gpu_pipeline_desc desc = {.module = "sample",
                              .buffer_count = 2,
                              .uniform = true,
                              .push_bytes = sizeof(push),
                              .spec_count = 1,
                              .spec = {wg}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(ctx->device, &desc, &pipeline));
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {gpu_part(args->logits, 0, 4 * (uint64_t)args->vocab), args->out},
                      .writes = 1u << 1,
                      .uniform = ctx->step,
                      .push = &push,
                      .groups = {1, 1, 1},
                      .cost = {.bytes = 4.0 * args->vocab, .flops = 40.0 * args->vocab},
                      .label = "sample",
                      .layer = ctx->layer};
    return gpu_commands_dispatch(ctx->commands, &d);
}
