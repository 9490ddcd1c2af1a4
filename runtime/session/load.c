/* Planning and loading a model: where files, weights and the schedule's memory meet. */
#include <inttypes.h>
#include <string.h>

#include "model/weights.h"
#include "schedule/schedule.h"
#include "session/session.h"

enum {
    DEFAULT_CONTEXT_TOKENS = 4096,
    DEFAULT_CHUNK_TOKENS = 512,
    DISCRETE_CHUNK_TOKENS = 2048, /* with fewer, each of many experts has but a few rows */
    LEAST_DEFAULT_CHUNK_TOKENS = 128,
    MAX_CHUNK_TOKENS = 8192
};

static decay_rule plan_decay(const model_config *c, ful_decay wanted)
{
    return wanted == FUL_DECAY_DEFAULT ? c->decay : wanted == FUL_DECAY_HF ? DECAY_HF : DECAY_ORIG;
}

static ful_result plan_precision(ful_device *device, ful_precision wanted, ful_precision *out)
{
    bool usable = op_half_usable(device);
    if (wanted == FUL_PRECISION_F16 && !usable)
        return fail(FUL_ERR_UNSUPPORTED,
                    "f16 precision needs fp16 arithmetic, 16-bit storage and 6 storage buffers; "
                    "%s lacks one of them",
                    ful_device_get_info(device)->name);
    *out = wanted;
    if (wanted == FUL_PRECISION_DEFAULT)
        *out = usable && !device_is_cpu(device) ? FUL_PRECISION_F16 : FUL_PRECISION_F32;
    return FUL_OK;
}

/* Rows of a chunk whose largest products stay within the time of a dispatch: a power of two. */
static uint32_t dispatch_rows(const schedule_shape *shape)
{
    enum { LEAST_ROWS = 32 };
    const model_config *c = shape->config;
    /* q, k, v and gate of a lightning layer; gate and up of a row's experts. */
    double projection = 4.0 * c->head_count * c->head_dim,
           experts = 2.0 * c->top_k * c->intermediate_size;
    double per_row = 2.0 * c->hidden_size * (projection > experts ? projection : experts);
    bool matrix = shape->half && (device_caps(shape->device)->features & FUL_FEATURE_COOPMAT) != 0;
    double flops = (matrix ? OP_MATRIX_SPEED : 1) * device_dispatch_flops(shape->device);
    uint32_t rows = LEAST_ROWS;
    while (rows < MAX_CHUNK_TOKENS && 2.0 * rows * per_row <= flops)
        rows *= 2;
    return rows;
}

static uint32_t default_chunk(const schedule_shape *shape, size_t max_tokens)
{
    bool discrete = ful_device_get_info(shape->device)->kind == FUL_DEVICE_DISCRETE;
    uint32_t chunk = discrete ? DISCRETE_CHUNK_TOKENS : DEFAULT_CHUNK_TOKENS;
    uint32_t most = dispatch_rows(shape);
    chunk = chunk < most ? chunk : most;
    /* A wider chunk than the session holds would never be full. */
    return max_tokens < chunk ? (uint32_t)max_tokens : chunk;
}

/* Activations and totals of a plan for chunks of at most `wanted` tokens. */
static ful_result plan_chunk(const schedule_shape *shape, uint32_t wanted, ful_plan *out)
{
    const model_config *c = shape->config;
    uint64_t arena;
    TRY(schedule_max_rows(shape, schedule_bucket(wanted), &out->chunk_tokens));
    TRY(schedule_arena_bytes(shape, out->chunk_tokens, &arena));
    out->activation_bytes = arena + sizeof(step_params) + 8 +
                            (uint64_t)out->chunk_tokens * (4 + 4 * c->rotary_dim) +
                            2 * (uint64_t)c->vocab_size * 4;
    /* The two recordings of decoding ahead. */
    if (schedule_sides(shape->device, c, OP_SHAPE_AUTO) == 2)
        out->activation_bytes += 2 * (sizeof(step_params) + 8 + 4 * (uint64_t)c->rotary_dim +
                                      4 * (uint64_t)c->vocab_size);
    out->total_bytes = out->weight_bytes + out->session_count * (out->state_bytes + out->kv_bytes +
                                                                 out->activation_bytes);
    return FUL_OK;
}

/* Everything a plan holds but for the check against what is free. */
static ful_result make_plan(ful_device *device, const model_config *c, const ful_model_info *info,
                            const ful_plan_params *p, ful_plan *out)
{
    memset(out, 0, sizeof *out);
    if ((unsigned)p->precision > FUL_PRECISION_F16 || (unsigned)p->decay > FUL_DECAY_HF)
        return fail(FUL_ERR_ARGUMENT, "plan: precision %d or decay %d is not a known value",
                    (int)p->precision, (int)p->decay);
    TRY(plan_precision(device, p->precision, &out->precision));
    bool half = out->precision == FUL_PRECISION_F16;
    out->decay = plan_decay(c, p->decay) == DECAY_HF ? FUL_DECAY_HF : FUL_DECAY_ORIG;
    out->max_tokens = p->max_tokens;
    if (!out->max_tokens)
        out->max_tokens =
            c->context_length < DEFAULT_CONTEXT_TOKENS ? c->context_length : DEFAULT_CONTEXT_TOKENS;
    if (out->max_tokens > c->context_length)
        return fail(FUL_ERR_ARGUMENT,
                    "plan: max_tokens %zu exceeds the model's context of %u tokens",
                    out->max_tokens, c->context_length);
    if (p->chunk_tokens > MAX_CHUNK_TOKENS)
        return fail(FUL_ERR_ARGUMENT, "plan: chunk_tokens %u exceeds %d", p->chunk_tokens,
                    MAX_CHUNK_TOKENS);
    schedule_shape shape = {device, c, half, info->weight_type, (uint32_t)out->max_tokens};
    out->session_count = p->session_count ? p->session_count : 1;
    out->weight_bytes = info->weight_bytes;
    out->state_bytes = info->state_bytes * schedule_sides(device, c, OP_SHAPE_AUTO);
    out->kv_bytes =
        info->softmax_block_count * op_kv_bytes(half ? FUL_TYPE_F16 : FUL_TYPE_F32,
                                                c->kv_head_count, c->head_dim, out->max_tokens);
    out->available_bytes = device_free_bytes(device);
    if (p->chunk_tokens)
        return plan_chunk(&shape, p->chunk_tokens, out);
    TRY(plan_chunk(&shape, default_chunk(&shape, out->max_tokens), out));
    while (out->total_bytes > out->available_bytes &&
           out->chunk_tokens > LEAST_DEFAULT_CHUNK_TOKENS)
        TRY(plan_chunk(&shape, out->chunk_tokens / 2, out));
    return FUL_OK;
}

static ful_result check_plan(const ful_plan *plan, ful_device *device)
{
    if (plan->total_bytes <= plan->available_bytes)
        return FUL_OK;
    return fail(FUL_ERR_DEVICE_MEMORY,
                "the plan needs %" PRIu64 " bytes (weights %" PRIu64
                ", %u session(s) of %zu tokens %" PRIu64 "); %s has %" PRIu64 " free",
                plan->total_bytes, plan->weight_bytes, plan->session_count, plan->max_tokens,
                plan->total_bytes - plan->weight_bytes, ful_device_get_info(device)->name,
                plan->available_bytes);
}

ful_result ful_model_plan(ful_instance *instance, const char *path, ful_device *device,
                          const ful_plan_params *params, ful_plan *out)
{
    if (!instance || !path || !device || !out)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_model_plan: instance, path, device and out must not be NULL");
    const ful_alloc *a = instance_alloc(instance);
    ful_plan_params p;
    TRY(params_copy(&p, sizeof p, params, "ful_plan_params"));
    model_config *config = mem_zalloc(a, 1, sizeof *config);
    tensor_file *files = NULL;
    ful_model_info info;
    ful_result r = config ? FUL_OK : mem_fail(sizeof *config, "the model's config");
    if (r == FUL_OK)
        r = model_open_files(a, path, config, &files, &info);
    if (r == FUL_OK)
        r = make_plan(device, config, &info, &p, out);
    if (r == FUL_OK)
        r = check_plan(out, device);
    tensor_file_close(&files);
    mem_free(a, config);
    return r;
}

ful_result ful_synthetic_inspect(const ful_synthetic_params *params, ful_model_info *out)
{
    ful_synthetic_params p;
    TRY(params_copy(&p, sizeof p, params, "ful_synthetic_params"));
    if (!out)
        return fail(FUL_ERR_ARGUMENT, "ful_synthetic_inspect: out must not be NULL");
    model_config config;
    return synthetic_config(&p, &config, out);
}

ful_result ful_synthetic_plan(ful_device *device, const ful_synthetic_params *params,
                              const ful_plan_params *plan_params, ful_plan *out)
{
    if (!device || !out)
        return fail(FUL_ERR_ARGUMENT, "ful_synthetic_plan: device and out must not be NULL");
    ful_synthetic_params s;
    ful_plan_params p;
    TRY(params_copy(&s, sizeof s, params, "ful_synthetic_params"));
    TRY(params_copy(&p, sizeof p, plan_params, "ful_plan_params"));
    model_config config;
    ful_model_info info;
    TRY(synthetic_config(&s, &config, &info));
    TRY(make_plan(device, &config, &info, &p, out));
    return check_plan(out, device);
}

static void log_loaded(const ful_model *m)
{
    const ful_device_info *d = ful_device_get_info(m->device);
    log_write(device_log(m->device), FUL_LOG_INFO,
              "%s on %s: %u layers, %.1f M parameters, %.1f MiB of weights, %s, sessions of %zu "
              "tokens take %.1f MiB",
              m->info.architecture, d->name, m->info.block_count,
              (double)m->info.parameter_count / 1e6, (double)m->plan.weight_bytes / 1048576.0,
              m->plan.precision == FUL_PRECISION_F16 ? "f16" : "f32", m->plan.max_tokens,
              (double)(m->plan.state_bytes + m->plan.kv_bytes + m->plan.activation_bytes) /
                  1048576.0);
}

/* Where a model's weights come from: a path, or else what to make up. */
typedef struct weight_source {
    const char *path;
    const ful_synthetic_params *synthetic;
} weight_source;

/* The plan for what the source holds, again: the memory may have gone since the caller's. */
static ful_result plan_again(ful_model *m, const ful_plan *plan)
{
    ful_plan_params p = {0};
    if (plan)
        p = (ful_plan_params){.max_tokens = plan->max_tokens,
                              .chunk_tokens = plan->chunk_tokens,
                              .precision = plan->precision,
                              .decay = plan->decay,
                              .session_count = plan->session_count};
    TRY(make_plan(m->device, &m->config, &m->info, &p, &m->plan));
    TRY(check_plan(&m->plan, m->device));
    m->config.decay = plan_decay(&m->config, m->plan.decay);
    m->info.decay = m->plan.decay;
    return FUL_OK;
}

/* Activations of kernels that took the place of others. */
static ful_result replan(ful_model *m)
{
    ful_plan_params p = {.max_tokens = m->plan.max_tokens,
                         .chunk_tokens = m->plan.chunk_tokens,
                         .precision = m->plan.precision,
                         .decay = m->plan.decay,
                         .session_count = m->plan.session_count};
    return make_plan(m->device, &m->config, &m->info, &p, &m->plan);
}

static ful_result load(ful_model *m, const weight_source *source, const ful_plan *plan,
                       ful_progress_fn progress, void *ctx)
{
    tensor_file *files = NULL;
    if (source->path)
        TRY(model_open_files(device_alloc(m->device), source->path, &m->config, &files, &m->info));
    else
        TRY(synthetic_config(source->synthetic, &m->config, &m->info));
    ful_result r = plan_again(m, plan);
    if (r == FUL_OK)
        r = files ? weights_load(m, files, progress, ctx)
                  : synthetic_weights(m, source->synthetic->seed, progress, ctx);
    tensor_file_close(&files);
    uint32_t changes = gpu_trust_changes(m->device);
    if (r == FUL_OK)
        r = schedule_warm(m, (uint32_t)m->plan.max_tokens, progress, ctx);
    /* Other kernels, other activations; the weights are there. */
    if (r == FUL_OK && changes != gpu_trust_changes(m->device))
        r = replan(m);
    return r;
}

static ful_result make_model(ful_model **out, ful_device *device, const weight_source *source,
                             const ful_plan *plan, ful_progress_fn progress, void *progress_ctx)
{
    ful_model *m = mem_zalloc(device_alloc(device), 1, sizeof *m);
    if (!m)
        return mem_fail(sizeof *m, "a model");
    m->device = device;
    ful_result r = load(m, source, plan, progress, progress_ctx);
    if (r != FUL_OK) {
        ful_model_destroy(&m);
        return r;
    }
    log_loaded(m);
    *out = m;
    return FUL_OK;
}

ful_result ful_model_load(ful_model **out, ful_device *device, const char *path,
                          const ful_plan *plan, ful_progress_fn progress, void *progress_ctx)
{
    if (!out || !device || !path)
        return fail(FUL_ERR_ARGUMENT, "ful_model_load: out, device and path must not be NULL");
    *out = NULL;
    weight_source source = {.path = path};
    return make_model(out, device, &source, plan, progress, progress_ctx);
}

ful_result ful_model_synthesize(ful_model **out, ful_device *device,
                                const ful_synthetic_params *params, const ful_plan *plan,
                                ful_progress_fn progress, void *progress_ctx)
{
    if (!out || !device)
        return fail(FUL_ERR_ARGUMENT, "ful_model_synthesize: out and device must not be NULL");
    *out = NULL;
    ful_synthetic_params p;
    TRY(params_copy(&p, sizeof p, params, "ful_synthetic_params"));
    weight_source source = {.synthetic = &p};
    return make_model(out, device, &source, plan, progress, progress_ctx);
}

void ful_model_destroy(ful_model **model)
{
    if (!model || !*model)
        return;
    const ful_alloc *a = device_alloc((*model)->device);
    weights_destroy(*model);
    mem_free(a, *model);
    *model = NULL;
}

const ful_model_info *ful_model_get_info(const ful_model *model)
{
    return model ? &model->info : NULL;
}

const ful_plan *ful_model_get_plan(const ful_model *model)
{
    return model ? &model->plan : NULL;
}
