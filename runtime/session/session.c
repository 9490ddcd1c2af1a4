/* Sessions: create, feed, read logits. */
#include "session/session.h"

#include <string.h>

/* ---- making and unmaking ---- */

static ful_result create_state(ful_session *s)
{
    const model_config *c = &s->model->config;
    ful_device *device = s->model->device;
    uint32_t sides = schedule_sides(device, c, s->model->shape);
    s->state.lightning = mem_zalloc(s->alloc, c->block_count, sizeof *s->state.lightning);
    s->state.kv = mem_zalloc(s->alloc, c->block_count, sizeof *s->state.kv);
    if (!s->state.lightning || !s->state.kv)
        return mem_fail(c->block_count * sizeof *s->state.kv, "a session's states");
    for (uint32_t i = 0; i < c->block_count; i++) {
        if (c->layers[i] == LAYER_LIGHTNING) {
            uint64_t bytes = (uint64_t)c->head_count * c->head_dim * c->head_dim * 4;
            TRY(gpu_buffer_create(device, sides * bytes, GPU_MEMORY_DEVICE, "lightning state",
                                  &s->state.lightning[i]));
        } else {
            ful_type type = model_half(s->model) ? FUL_TYPE_F16 : FUL_TYPE_F32;
            TRY(op_kv_create(device, type, c->kv_head_count, c->head_dim, (uint32_t)s->max_tokens,
                             &s->state.kv[i]));
        }
    }
    return FUL_OK;
}

/* Rows of a step that gives all logits: what 32 MiB of logits and one binding hold. */
static uint32_t rows_of_logits(const ful_session *s)
{
    uint64_t row = (uint64_t)s->model->config.vocab_size * 4, room = 32u << 20;
    uint64_t window = device_window_bytes(s->model->device);
    if (window < room)
        room = window;
    uint32_t rows = 1;
    while (rows < s->chunk_tokens && schedule_bucket(rows + 1) * row <= room)
        rows = schedule_bucket(rows + 1);
    return rows < s->chunk_tokens ? rows : s->chunk_tokens;
}

static ful_result create_io(ful_session *s)
{
    const model_config *c = &s->model->config;
    ful_device *device = s->model->device;
    schedule_io *io = &s->io;
    uint32_t rows = s->chunk_tokens;
    uint64_t rope = (uint64_t)rows * c->rotary_dim * 4, logits = (uint64_t)c->vocab_size * 4;
    uint64_t arena;
    TRY(schedule_arena_bytes_of(s->model, rows, (uint32_t)s->max_tokens, &arena));
    io->logits_rows = 1;
    TRY(gpu_buffer_create(device, sizeof(step_params), GPU_MEMORY_HOST, "step parameters",
                          &io->step));
    TRY(gpu_buffer_create(device, (uint64_t)rows * 4, GPU_MEMORY_HOST, "tokens", &io->tokens));
    TRY(gpu_buffer_create(device, rope ? rope : 4, GPU_MEMORY_HOST, "rope table", &io->rope));
    TRY(gpu_buffer_create(device, logits, GPU_MEMORY_DEVICE, "logits", &io->logits));
    TRY(gpu_buffer_create(device, logits, GPU_MEMORY_READBACK, "logits readback", &io->readback));
    TRY(gpu_buffer_create(device, 8, GPU_MEMORY_READBACK, "sampled token", &io->sampled));
    return gpu_buffer_create(device, arena, GPU_MEMORY_DEVICE, "activations", &io->arena);
}

static void destroy_io(ful_session *s)
{
    ful_device *device = s->model->device;
    gpu_buffer *buffers[] = {&s->io.step,     &s->io.tokens,  &s->io.rope, &s->io.logits,
                             &s->io.readback, &s->io.sampled, &s->io.arena};
    for (size_t i = 0; i < sizeof buffers / sizeof *buffers; i++)
        gpu_buffer_destroy(device, buffers[i]);
}

static void destroy_schedules(ful_session *s)
{
    for (uint32_t i = 0; i < s->schedule_count; i++)
        schedule_destroy(&s->schedules[i].recorded);
    s->schedule_count = 0;
    s->last = NULL;
}

ful_result ful_session_create(ful_session **out, ful_model *model, const ful_session_params *params)
{
    if (!out || !model)
        return fail(FUL_ERR_ARGUMENT, "ful_session_create: out and model must not be NULL");
    *out = NULL;
    const ful_plan *plan = &model->plan;
    ful_session_params p;
    TRY(params_copy(&p, sizeof p, params, "ful_session_params"));
    if (p.max_tokens > model->config.context_length)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_session_create: max_tokens %zu exceeds the model's context of %u tokens",
                    p.max_tokens, model->config.context_length);
    if (p.chunk_tokens > plan->chunk_tokens)
        return fail(FUL_ERR_ARGUMENT, "ful_session_create: chunk_tokens %u exceeds the plan's %u",
                    p.chunk_tokens, plan->chunk_tokens);
    const ful_alloc *a = device_alloc(model->device);
    ful_session *s = mem_zalloc(a, 1, sizeof *s);
    if (!s)
        return mem_fail(sizeof *s, "a session");
    s->model = model;
    s->alloc = a;
    s->max_tokens = p.max_tokens ? p.max_tokens : plan->max_tokens;
    s->chunk_tokens = schedule_bucket(p.chunk_tokens ? p.chunk_tokens : plan->chunk_tokens);
    s->profile = p.profile;
    s->all_rows = rows_of_logits(s);
    uint64_t before, peak, after;
    ful_device_memory(model->device, &before, &peak);
    ful_result r = create_state(s);
    if (r == FUL_OK)
        r = create_io(s);
    s->logits = mem_array(a, model->config.vocab_size, sizeof *s->logits);
    if (r == FUL_OK && !s->logits)
        r = mem_fail(model->config.vocab_size * sizeof *s->logits, "logits");
    if (r == FUL_OK)
        r = session_clear_state(s);
    ful_device_memory(model->device, &after, &peak);
    s->stats.device_bytes = after - before;
    if (r != FUL_OK) {
        ful_session_destroy(&s);
        return r;
    }
    *out = s;
    return FUL_OK;
}

void ful_session_destroy(ful_session **session)
{
    if (!session || !*session)
        return;
    ful_session *s = *session;
    ful_device *device = s->model->device;
    session_ahead_destroy(s);
    destroy_schedules(s);
    for (uint32_t i = 0; i < s->model->config.block_count; i++) {
        if (s->state.lightning)
            gpu_buffer_destroy(device, &s->state.lightning[i]);
        if (s->state.kv)
            op_kv_destroy(device, &s->state.kv[i]);
    }
    destroy_io(s);
    mem_free(s->alloc, s->state.lightning);
    mem_free(s->alloc, s->state.kv);
    mem_free(s->alloc, s->tokens);
    mem_free(s->alloc, s->logits);
    mem_free(s->alloc, s->times);
    mem_free(s->alloc, s);
    *session = NULL;
}

ful_result session_clear_state(ful_session *s)
{
    TRY(session_ahead_end(s));
    for (uint32_t i = 0; i < s->model->config.block_count; i++)
        if (s->state.lightning[i].bytes)
            TRY(gpu_range_fill(s->model->device, gpu_whole(&s->state.lightning[i]), 0));
    return FUL_OK;
}

ful_result ful_session_reset(ful_session *session)
{
    if (!session)
        return fail(FUL_ERR_ARGUMENT, "ful_session_reset: session must not be NULL");
    session->token_count = 0;
    session->has_logits = session->host_logits = false;
    ful_result r = session_clear_state(session);
    session->stuck = r;
    session->failed = session->failed && r != FUL_OK;
    return r;
}

size_t ful_session_tokens(const ful_session *session, const int32_t **tokens)
{
    if (tokens)
        *tokens = session ? session->tokens : NULL;
    return session ? session->token_count : 0;
}

/* ---- running steps ---- */

static ful_result find_schedule(ful_session *s, schedule_kind kind, uint32_t rows, bool sample,
                                schedule **out)
{
    for (uint32_t i = 0; i < s->schedule_count; i++) {
        session_schedule *have = &s->schedules[i];
        if (have->kind == kind && have->rows == rows && have->sample == sample) {
            *out = have->recorded;
            return FUL_OK;
        }
    }
    if (s->schedule_count == SESSION_MAX_SCHEDULES)
        return fail(FUL_ERR_UNSUPPORTED, "a session can hold %d recorded schedules",
                    SESSION_MAX_SCHEDULES);
    session_schedule made = {kind, rows, sample, NULL};
    TRY(schedule_create(s->model, kind, rows, &s->io, &s->state, sample, s->profile,
                        &made.recorded));
    s->schedules[s->schedule_count++] = made;
    *out = made.recorded;
    return FUL_OK;
}

static ful_result write_inputs(ful_session *s, const int32_t *tokens, uint32_t n,
                               const session_step *step)
{
    const model_config *c = &s->model->config;
    ful_device *device = s->model->device;
    step_params params = step->params;
    params.n_rows = n;
    params.position = (uint32_t)s->token_count;
    params.kv_tokens = (uint32_t)s->token_count + n;
    memcpy(s->io.step.mapped, &params, sizeof params);
    memcpy(s->io.tokens.mapped, tokens, n * sizeof *tokens);
    op_rope_table(params.position, n, c->rotary_dim, c->rope_theta, s->io.rope.mapped);
    TRY(gpu_buffer_flush(device, &s->io.step, 0, sizeof params));
    TRY(gpu_buffer_flush(device, &s->io.tokens, 0, n * sizeof *tokens));
    return gpu_buffer_flush(device, &s->io.rope, 0, (uint64_t)n * c->rotary_dim * 4);
}

/* Part of a step may have run, on states that it reads and writes. */
static ful_result stuck_note(ful_session *s, ful_result r)
{
    if (r != FUL_OK)
        s->stuck = r;
    return r;
}

ful_result session_run(ful_session *s, const int32_t *tokens, uint32_t n, const session_step *step)
{
    uint32_t rows = schedule_bucket(n);
    schedule_kind kind =
        rows == 1 && step->kind != SCHEDULE_PREFILL_ALL ? SCHEDULE_DECODE : step->kind;
    TRY(session_ahead_end(s));
    TRY(write_inputs(s, tokens, n, step));
    if (s->tap) {
        TRY(stuck_note(s, schedule_run_tapped(s->model, kind, rows, &s->io, &s->state, s->tap)));
    } else {
        TRY(find_schedule(s, kind, rows, step->sample, &s->last));
        TRY(stuck_note(s, gpu_step_fault(s->model->device)));
        TRY(stuck_note(s, gpu_commands_submit(schedule_commands(s->last))));
        uint64_t waiting = time_ns();
        TRY(stuck_note(s, gpu_commands_wait(schedule_commands(s->last))));
        s->wait_ns += time_ns() - waiting;
        *(kind == SCHEDULE_DECODE ? &s->stats.decode_gpu_ns : &s->stats.prefill_gpu_ns) +=
            gpu_commands_span_ns(schedule_commands(s->last));
    }
    s->has_logits = kind != SCHEDULE_PREFILL_NONE;
    s->host_logits = false;
    if (s->has_logits && !step->sample)
        TRY(stuck_note(
            s, gpu_buffer_invalidate(s->model->device, &s->io.readback, 0, s->io.readback.bytes)));
    return FUL_OK;
}

ful_result session_reserve(ful_session *s, size_t n)
{
    if (!mem_grow(s->alloc, (void **)&s->tokens, &s->token_capacity, s->token_count + n,
                  sizeof *s->tokens))
        return mem_fail((s->token_count + n) * sizeof *s->tokens, "a session's tokens");
    return FUL_OK;
}

ful_result session_append(ful_session *s, const int32_t *tokens, size_t n)
{
    TRY(session_reserve(s, n));
    memcpy(s->tokens + s->token_count, tokens, n * sizeof *tokens);
    s->token_count += n;
    return FUL_OK;
}

ful_result session_check_states(const ful_session *s)
{
    if (s->failed)
        return fail(FUL_ERR_NOT_FINITE, "the session's logits became not finite; reset it first");
    if (s->stuck == FUL_ERR_DEVICE_LOST)
        return fail(s->stuck, "the session's device was lost in a step; close and reopen it");
    if (s->stuck != FUL_OK)
        return fail(s->stuck, "a step of the session stopped halfway with %s; reset it first",
                    ful_result_name(s->stuck));
    return FUL_OK;
}

ful_result session_check_tokens(const ful_session *s, const int32_t *tokens, size_t n)
{
    uint32_t vocab = s->model->config.vocab_size;
    TRY(session_check_states(s));
    if (n > s->max_tokens || s->token_count > s->max_tokens - n)
        return fail(FUL_ERR_CONTEXT_FULL,
                    "%zu tokens more would exceed the session's max_tokens of %zu (%zu used)", n,
                    s->max_tokens, s->token_count);
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= vocab)
            return fail(FUL_ERR_ARGUMENT, "token %zu is %d; the vocabulary has %u entries", i,
                        tokens[i], vocab);
    return FUL_OK;
}

/* Copies a row, which may be onto itself, and says whether all of it is finite. In one pass and two
 * values at a time, because vocabularies are large: an exponent of all ones carries into the sign's
 * place, from which nothing carries on. */
static bool copy_finite(float *out, const float *row, uint32_t n)
{
    const uint64_t exponents = 0x7f8000007f800000u, ones = 0x0080000000800000u;
    uint64_t found = 0, pair;
    uint32_t at = 0;
    for (; at + 2 <= n; at += 2) {
        memcpy(&pair, row + at, sizeof pair);
        memcpy(out + at, &pair, sizeof pair);
        found |= (pair & exponents) + ones;
    }
    if (at < n) {
        pair = 0;
        memcpy(&pair, row + at, sizeof *row);
        out[at] = row[at];
        found |= (pair & exponents) + ones;
    }
    return (found & 0x8000000080000000u) == 0;
}

ful_result session_fetch_logits(ful_session *s)
{
    uint32_t vocab = s->model->config.vocab_size;
    if (s->stuck != FUL_OK)
        return session_check_states(s);
    if (s->host_logits)
        return FUL_OK;
    if (!s->has_logits)
        return fail(FUL_ERR_ARGUMENT, "no token was fed to the session yet");
    TRY(gpu_range_read(s->model->device, gpu_whole(session_logits_buffer(s)), 0, s->logits,
                       (uint64_t)vocab * 4));
    s->host_logits = true;
    return copy_finite(s->logits, s->logits, vocab) ? FUL_OK : session_explain(s);
}

/* The last token's logits from the readback buffer, row `row` of the step. */
static ful_result take_logits(ful_session *s, uint32_t row)
{
    uint32_t vocab = s->model->config.vocab_size;
    const float *logits = (const float *)s->io.readback.mapped + (uint64_t)row * vocab;
    s->host_logits = true;
    return copy_finite(s->logits, logits, vocab) ? FUL_OK : session_explain(s);
}

/* Grows the logits buffers for steps that give all rows; recordings that use the old ones go. */
static ful_result want_all_logits(ful_session *s)
{
    ful_device *device = s->model->device;
    uint64_t bytes = (uint64_t)s->all_rows * s->model->config.vocab_size * 4;
    if (s->io.logits_rows >= s->all_rows)
        return FUL_OK;
    if (s->has_logits)
        TRY(session_fetch_logits(s));
    TRY(session_ahead_end(s));
    session_ahead_destroy(s);
    destroy_schedules(s);
    gpu_buffer logits = {0}, readback = {0};
    TRY(gpu_buffer_create(device, bytes, GPU_MEMORY_DEVICE, "logits", &logits));
    ful_result r =
        gpu_buffer_create(device, bytes, GPU_MEMORY_READBACK, "logits readback", &readback);
    if (r != FUL_OK) {
        gpu_buffer_destroy(device, &logits);
        return r;
    }
    gpu_buffer_destroy(device, &s->io.logits);
    gpu_buffer_destroy(device, &s->io.readback);
    s->stats.device_bytes += 2 * (bytes - (uint64_t)s->model->config.vocab_size * 4);
    s->io.logits = logits;
    s->io.readback = readback;
    s->io.logits_rows = s->all_rows;
    return FUL_OK;
}

static ful_result give_rows(ful_session *s, uint32_t n, size_t first, ful_logits_fn fn, void *ctx)
{
    uint32_t vocab = s->model->config.vocab_size;
    for (uint32_t i = 0; i < n; i++) {
        TRY(take_logits(s, i));
        if (!fn(ctx, first + i, s->logits, vocab)) {
            TRY(take_logits(s, n - 1));
            return fail(FUL_ERR_CANCELLED, "cancelled by the logits callback at token %zu",
                        first + i);
        }
    }
    return FUL_OK;
}

static ful_result prefill(ful_session *s, const int32_t *tokens, size_t n, ful_logits_fn fn,
                          void *ctx)
{
    TRY(session_check_tokens(s, tokens, n));
    if (fn)
        TRY(want_all_logits(s));
    uint32_t most = fn ? s->all_rows : s->chunk_tokens;
    for (size_t at = 0; at < n;) {
        uint64_t start = time_ns();
        uint32_t take = n - at < most ? (uint32_t)(n - at) : most;
        bool end = at + take == n;
        session_step step = {.kind = fn    ? SCHEDULE_PREFILL_ALL
                                     : end ? SCHEDULE_PREFILL
                                           : SCHEDULE_PREFILL_NONE};
        TRY(session_reserve(s, take)); /* nothing may fail between a step and its tokens' places */
        TRY(session_run(s, tokens + at, take, &step));
        TRY(session_append(s, tokens + at, take));
        s->stats.prefill_tokens += take;
        s->stats.prefill_steps++;
        s->stats.prefill_ns += time_ns() - start;
        if (fn)
            TRY(give_rows(s, take, at, fn, ctx));
        else if (end)
            TRY(take_logits(s, 0));
        at += take;
    }
    return FUL_OK;
}

ful_result ful_prefill(ful_session *session, const int32_t *tokens, size_t n_tokens)
{
    if (!session || (!tokens && n_tokens))
        return fail(FUL_ERR_ARGUMENT, "ful_prefill: session and tokens must not be NULL");
    return prefill(session, tokens, n_tokens, NULL, NULL);
}

ful_result ful_prefill_logits(ful_session *session, const int32_t *tokens, size_t n_tokens,
                              ful_logits_fn fn, void *ctx)
{
    if (!session || !fn || (!tokens && n_tokens))
        return fail(FUL_ERR_ARGUMENT,
                    "ful_prefill_logits: session, tokens and fn must not be NULL");
    return prefill(session, tokens, n_tokens, fn, ctx);
}

ful_result ful_decode(ful_session *session, int32_t token)
{
    if (!session)
        return fail(FUL_ERR_ARGUMENT, "ful_decode: session must not be NULL");
    ful_session *s = session;
    uint64_t start = time_ns(), waited = s->wait_ns;
    TRY(session_check_tokens(s, &token, 1));
    TRY(session_reserve(s, 1));
    session_step step = {.kind = SCHEDULE_DECODE};
    TRY(session_run(s, &token, 1, &step));
    TRY(session_append(s, &token, 1));
    ful_result r = take_logits(s, 0);
    uint64_t ns = time_ns() - start;
    s->stats.decode_tokens++;
    s->stats.decode_ns += ns;
    s->stats.decode_host_ns += ns - (s->wait_ns - waited);
    return r;
}

ful_result ful_logits(ful_session *session, const float **logits, size_t *n_vocab)
{
    if (!session || !logits)
        return fail(FUL_ERR_ARGUMENT, "ful_logits: session and logits must not be NULL");
    TRY(session_fetch_logits(session));
    *logits = session->logits;
    if (n_vocab)
        *n_vocab = session->model->config.vocab_size;
    return FUL_OK;
}

/* ---- figures ---- */

static void decode_counts(schedule *recorded, ful_stats *out)
{
    out->decode_dispatches = gpu_commands_dispatches(schedule_commands(recorded));
    out->decode_submits = gpu_commands_submits(schedule_commands(recorded));
}

ful_result ful_session_stats(const ful_session *session, ful_stats *out)
{
    if (!session || !out)
        return fail(FUL_ERR_ARGUMENT, "ful_session_stats: session and out must not be NULL");
    *out = session->stats;
    for (uint32_t i = 0; i < session->schedule_count; i++) {
        const session_schedule *have = &session->schedules[i];
        if (have->kind == SCHEDULE_DECODE)
            decode_counts(have->recorded, out);
    }
    if (session->ahead.ready)
        decode_counts(session->ahead.sides[0].recorded, out);
    return FUL_OK;
}

ful_result ful_session_profile(ful_session *session, const ful_step_time **out, size_t *count)
{
    if (!session || !out || !count)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_session_profile: session, out and count must not be NULL");
    *out = NULL;
    *count = 0;
    if (!session->profile || !session->last)
        return FUL_OK;
    const gpu_time *times;
    uint32_t n;
    TRY(gpu_commands_times(schedule_commands(session->last), &times, &n));
    if (!mem_grow(session->alloc, (void **)&session->times, &session->times_capacity, n,
                  sizeof *session->times))
        return mem_fail(n * sizeof *session->times, "step times");
    for (uint32_t i = 0; i < n; i++)
        session->times[i] = (ful_step_time){times[i].label, times[i].layer, times[i].ns,
                                            times[i].cost.bytes, times[i].cost.flops};
    *out = session->times;
    *count = n;
    return FUL_OK;
}
