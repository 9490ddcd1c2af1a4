/* Schedules: built, recorded once, replayed; and the questions about their memory. */
#include "schedule/schedule.h"

#include <string.h>

#include "ops/selftest.h"
#include "schedule/record.h"

static const uint32_t buckets[] = {1, 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192};
enum { BUCKET_COUNT = sizeof buckets / sizeof *buckets };

struct schedule {
    ful_device *device;
    gpu_commands *commands;
    uint32_t rows;
};

uint32_t schedule_bucket(uint32_t rows)
{
    for (uint32_t i = 0; i < BUCKET_COUNT; i++)
        if (buckets[i] >= rows)
            return buckets[i];
    return buckets[BUCKET_COUNT - 1];
}

uint32_t schedule_sides(ful_device *device, const model_config *config, op_shape shape)
{
    op_context ctx = {.device = device, .layer = -1, .shape = shape};
    return op_lightning_decode_sides(&ctx, config->head_count, config->head_dim) ? 2 : 1;
}

static step_source source_of_shape(const schedule_shape *shape)
{
    return (step_source){.device = shape->device,
                         .config = shape->config,
                         .half = shape->half,
                         .weight_type = shape->weight_type,
                         .kv_tokens = shape->kv_tokens};
}

static step_source source_of_model(const ful_model *model, uint32_t kv_tokens)
{
    return (step_source){.device = model->device,
                         .config = &model->config,
                         .model = model,
                         .half = model_half(model),
                         .kv_tokens = kv_tokens,
                         .fused = true};
}

/* The bucket's prefill steps with logits of all rows hold every slot that any other kind has. */
static ful_result measure(const step_source *source, uint32_t rows, uint64_t *arena,
                          uint64_t *largest)
{
    static const schedule_kind kinds[] = {SCHEDULE_PREFILL, SCHEDULE_PREFILL_ALL};
    *arena = *largest = 0;
    for (size_t i = 0; i < 4; i++) {
        step_list list;
        step_source one = *source;
        one.fused = i >= 2;
        TRY(steps_build(&one, kinds[i % 2], rows, true, &list));
        if (list.arena_bytes > *arena)
            *arena = list.arena_bytes;
        if (list.largest_bytes > *largest)
            *largest = list.largest_bytes;
        steps_free(&list);
    }
    return FUL_OK;
}

/* Of the bucket that needs most: small ones may choose other kernels with other scratch. */
static ful_result largest_arena(const step_source *source, uint32_t rows, uint64_t *arena_bytes)
{
    *arena_bytes = 0;
    for (uint32_t i = 0; i < BUCKET_COUNT && buckets[i] <= rows; i++) {
        uint64_t arena, largest;
        TRY(measure(source, buckets[i], &arena, &largest));
        if (arena > *arena_bytes)
            *arena_bytes = arena;
    }
    return FUL_OK;
}

ful_result schedule_arena_bytes(const schedule_shape *shape, uint32_t rows, uint64_t *arena_bytes)
{
    step_source source = source_of_shape(shape);
    return largest_arena(&source, rows, arena_bytes);
}

ful_result schedule_arena_bytes_of(const ful_model *model, uint32_t rows, uint32_t kv_tokens,
                                   uint64_t *arena_bytes)
{
    step_source source = source_of_model(model, kv_tokens);
    return largest_arena(&source, rows, arena_bytes);
}

ful_result schedule_max_rows(const schedule_shape *shape, uint32_t wanted, uint32_t *rows)
{
    step_source source = source_of_shape(shape);
    uint64_t window = device_window_bytes(shape->device);
    uint64_t allocation = device_caps(shape->device)->allocation_bytes;
    *rows = 1;
    for (uint32_t i = 0; i < BUCKET_COUNT && buckets[i] <= wanted; i++) {
        uint64_t arena, largest;
        TRY(measure(&source, buckets[i], &arena, &largest));
        if (i > 0 && (largest > window || arena > allocation))
            break;
        *rows = buckets[i];
    }
    return FUL_OK;
}

static uint32_t state_capacity(const ful_model *model, const sequence_state *state)
{
    for (uint32_t i = 0; i < model->config.block_count; i++)
        if (model->config.layers[i] == LAYER_SOFTMAX)
            return state->kv[i].capacity_tokens;
    return 0;
}

static ful_result record_all(const recorder *r, gpu_commands *commands)
{
    for (size_t i = 0; i < r->list->step_count; i++)
        TRY(record_step(r, commands, &r->list->steps[i]));
    return gpu_commands_end(commands);
}

ful_result schedule_create(const ful_model *model, schedule_kind kind, uint32_t rows,
                           const schedule_io *io, const sequence_state *state, bool sample,
                           bool timed, schedule **out)
{
    const ful_alloc *a = device_alloc(model->device);
    *out = NULL;
    step_source source = source_of_model(model, state_capacity(model, state));
    step_list list;
    TRY(steps_build(&source, kind, rows, sample, &list));
    schedule *s = mem_zalloc(a, 1, sizeof *s);
    ful_result r = s ? FUL_OK : mem_fail(sizeof *s, "a schedule");
    if (r == FUL_OK && list.arena_bytes > io->arena.bytes)
        r = fail(FUL_ERR_DEVICE_MEMORY,
                 "a step of %u rows needs %llu bytes of activations; the session has %llu", rows,
                 (unsigned long long)list.arena_bytes, (unsigned long long)io->arena.bytes);
    if (r == FUL_OK) {
        s->device = model->device;
        s->rows = rows;
        uint32_t flags = GPU_COMMANDS_REUSABLE | (timed ? (uint32_t)GPU_COMMANDS_TIMED : 0);
        r = gpu_commands_begin(model->device, flags, &s->commands);
    }
    if (r == FUL_OK) {
        recorder rec = {&list, model, io, state};
        r = record_all(&rec, s->commands);
    }
    steps_free(&list);
    if (r == FUL_OK)
        *out = s;
    else
        schedule_destroy(&s);
    return r;
}

void schedule_destroy(schedule **s)
{
    if (!s || !*s)
        return;
    ful_device *device = (*s)->device;
    if ((*s)->commands)
        gpu_commands_destroy(&(*s)->commands);
    if (device)
        mem_free(device_alloc(device), *s);
    *s = NULL;
}

uint32_t schedule_rows(const schedule *s)
{
    return s->rows;
}

gpu_commands *schedule_commands(schedule *s)
{
    return s->commands;
}

static ful_result run_one(const recorder *r, const step *s, const schedule_tap *tap)
{
    gpu_commands *commands = NULL;
    TRY(gpu_commands_begin(r->model->device, 0, &commands));
    ful_result result = record_step(r, commands, s);
    if (result == FUL_OK)
        result = gpu_commands_end(commands);
    if (result == FUL_OK)
        result = gpu_commands_submit(commands);
    if (result == FUL_OK)
        result = gpu_commands_wait(commands);
    gpu_commands_destroy(&commands);
    gpu_range range;
    uint32_t rows, columns;
    if (result == FUL_OK && tap->hidden && s->kind == STEP_MOE) {
        bool sorted;
        if (!record_hidden(r, s, &range, &rows, &columns, &sorted))
            return fail(FUL_ERR_UNSUPPORTED,
                        "layer %d: what %u rows leave between the matrices of their experts is not "
                        "kept: use shorter chunks",
                        (int)s->layer, (unsigned)r->list->rows);
        result =
            tap->fn(tap->ctx, sorted ? "moe sorted" : "moe hidden", s->layer, range, rows, columns);
    }
    if (result == FUL_OK && record_output(r, s, &range, &rows, &columns))
        result = tap->fn(tap->ctx, s->name, s->layer, range, rows, columns);
    return result;
}

ful_result schedule_run_tapped(const ful_model *model, schedule_kind kind, uint32_t rows,
                               const schedule_io *io, const sequence_state *state,
                               const schedule_tap *tap)
{
    step_source source = source_of_model(model, state_capacity(model, state));
    source.fused = false;
    step_list list;
    TRY(steps_build(&source, kind, rows, false, &list));
    recorder rec = {&list, model, io, state};
    ful_result r = FUL_OK;
    for (size_t i = 0; i < list.step_count && r == FUL_OK; i++)
        r = run_one(&rec, &list.steps[i], tap);
    steps_free(&list);
    return r;
}

/* ---- compiling ahead ---- */

static gpu_buffer imagined(uint64_t bytes)
{
    return (gpu_buffer){.bytes = bytes, .name = "dry run"};
}

/* Asks for the pipelines of one schedule by recording it with buffers that do not exist. */
static ful_result collect(const ful_model *model, schedule_kind kind, uint32_t rows, bool sample,
                          const sequence_state *state)
{
    const model_config *c = &model->config;
    step_source source = source_of_model(model, state_capacity(model, state));
    step_list list;
    TRY(steps_build(&source, kind, rows, sample, &list));
    schedule_io io = {.step = imagined(sizeof(step_params)),
                      .tokens = imagined((uint64_t)rows * 4),
                      .rope = imagined((uint64_t)rows * c->rotary_dim * 4),
                      .logits = imagined((uint64_t)rows * c->vocab_size * 4),
                      .readback = imagined((uint64_t)rows * c->vocab_size * 4),
                      .sampled = imagined(8),
                      .arena = imagined(list.arena_bytes),
                      .logits_rows = rows};
    gpu_commands *commands = NULL;
    recorder rec = {&list, model, &io, state};
    ful_result r = gpu_commands_begin(model->device, GPU_COMMANDS_DRY, &commands);
    if (r == FUL_OK)
        r = record_all(&rec, commands);
    if (commands)
        gpu_commands_destroy(&commands);
    steps_free(&list);
    return r;
}

static ful_result imagine_state(const ful_model *model, uint32_t kv_tokens, sequence_state *state)
{
    const model_config *c = &model->config;
    const ful_alloc *a = device_alloc(model->device);
    state->lightning = mem_zalloc(a, c->block_count, sizeof *state->lightning);
    state->kv = mem_zalloc(a, c->block_count, sizeof *state->kv);
    if (!state->lightning || !state->kv)
        return mem_fail(c->block_count * sizeof *state->kv, "a dry run");
    for (uint32_t i = 0; i < c->block_count; i++) {
        if (c->layers[i] == LAYER_LIGHTNING) {
            state->lightning[i] = imagined((uint64_t)c->head_count * c->head_dim * c->head_dim * 4);
            continue;
        }
        op_kv *kv = &state->kv[i];
        *kv = (op_kv){.type = model_half(model) ? FUL_TYPE_F16 : FUL_TYPE_F32,
                      .kv_heads = c->kv_head_count,
                      .head_dim = c->head_dim,
                      .capacity_tokens = kv_tokens};
        op_kv_layout(model->device, kv);
        kv->windows = mem_zalloc(a, kv->window_count, sizeof *kv->windows);
        if (!kv->windows)
            return mem_fail(kv->window_count * sizeof *kv->windows, "a dry run");
        for (uint32_t w = 0; w < kv->window_count; w++)
            kv->windows[w] =
                imagined(op_kv_bytes(kv->type, kv->kv_heads, kv->head_dim, kv->window_tokens));
    }
    return FUL_OK;
}

static void forget_state(const ful_model *model, sequence_state *state)
{
    const ful_alloc *a = device_alloc(model->device);
    for (uint32_t i = 0; state->kv && i < model->config.block_count; i++)
        mem_free(a, state->kv[i].windows);
    mem_free(a, state->lightning);
    mem_free(a, state->kv);
}

/* Asks for every pipeline of the model's sessions. */
static ful_result collect_all(const ful_model *model, uint32_t kv_tokens)
{
    sequence_state state = {0};
    ful_result r = imagine_state(model, kv_tokens, &state);
    if (r == FUL_OK)
        r = collect(model, SCHEDULE_DECODE, 1, false, &state);
    if (r == FUL_OK && !device_is_cpu(model->device) && op_sample_usable(model->device))
        r = collect(model, SCHEDULE_DECODE, 1, true, &state);
    for (uint32_t i = 1; i < BUCKET_COUNT && buckets[i] <= model->plan.chunk_tokens && r == FUL_OK;
         i++)
        r = collect(model, SCHEDULE_PREFILL, buckets[i], false, &state);
    forget_state(model, &state);
    return r == FUL_ERR_SELFTEST ? selftest_last_resort(model->device) : r;
}

ful_result schedule_warm(const ful_model *model, uint32_t kv_tokens, ful_progress_fn progress,
                         void *ctx)
{
    /* Each turn but the last quarantines a kernel, so that others are asked for. */
    for (;;) {
        uint32_t changes = gpu_trust_changes(model->device);
        selftest *test = NULL;
        gpu_pipelines_begin(model->device);
        ful_result r = collect_all(model, kv_tokens);
        if (r == FUL_OK)
            r = selftest_prepare(model->device, model->shape, &test);
        ful_result built = gpu_pipelines_end(model->device, r == FUL_OK ? progress : NULL, ctx);
        if (r == FUL_OK)
            r = built;
        if (r == FUL_OK)
            r = selftest_run(&test);
        selftest_end(&test);
        bool again = changes != gpu_trust_changes(model->device);
        if (!again || (r != FUL_OK && r != FUL_ERR_UNSUPPORTED))
            return r;
    }
}
