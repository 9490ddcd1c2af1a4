/* Decoding ahead of the host: while a drawn token travels to the caller, the device already works
 * on the step that feeds it, so that it never waits for a host that waits for it.
 *
 * The step ahead may turn out not to be wanted (a stop token, a callback that says no). Keys and
 * values it appends lie beyond the session's end and are overwritten; lightning states are written
 * beside the ones they were computed from, by turns, so the last wanted ones are still there. */
#include <string.h>

#include "session/session.h"
#include "text/sampler.h"

bool session_ahead_usable(const ful_session *s)
{
    return schedule_sides(s->model->device, &s->model->config, s->model->shape) == 2;
}

step_params session_draw_params(const ful_sampler_params *p, size_t position)
{
    return (step_params){.n_rows = 1,
                         .position = (uint32_t)position,
                         .kv_tokens = (uint32_t)position + 1,
                         .temperature = p->temperature,
                         .top_k = p->top_k,
                         .top_p = p->top_p > 0.0f ? p->top_p : 1.0f,
                         .min_p = p->min_p,
                         .uniform = (float)sampler_uniform(p->seed, position + 1)};
}

/* ---- making and unmaking ---- */

static ful_result side_create(ful_session *s, ahead_side *side)
{
    const model_config *c = &s->model->config;
    ful_device *device = s->model->device;
    uint64_t logits = (uint64_t)c->vocab_size * 4, rope = (uint64_t)c->rotary_dim * 4;
    TRY(gpu_buffer_create(device, sizeof(step_params), GPU_MEMORY_HOST, "step parameters",
                          &side->step));
    TRY(gpu_buffer_create(device, rope ? rope : 4, GPU_MEMORY_HOST, "rope table", &side->rope));
    TRY(gpu_buffer_create(device, 8, GPU_MEMORY_READBACK, "sampled token", &side->sampled));
    return gpu_buffer_create(device, logits, GPU_MEMORY_DEVICE, "logits", &side->logits);
}

/* Side 0 goes from the session's states to those beside them, side 1 back. */
static ful_result side_record(ful_session *s, uint32_t n)
{
    ahead_side *side = &s->ahead.sides[n], *other = &s->ahead.sides[1 - n];
    schedule_io io = {.step = side->step,
                      .tokens = other->sampled,
                      .rope = side->rope,
                      .logits = side->logits,
                      .sampled = side->sampled,
                      .arena = s->io.arena,
                      .logits_rows = 1};
    sequence_state state = s->state;
    state.from = n;
    state.to = 1 - n;
    return schedule_create(s->model, SCHEDULE_DECODE, 1, &io, &state, true, s->profile,
                           &side->recorded);
}

static ful_result settle_record(ful_session *s, uint32_t n)
{
    ahead_side *side = &s->ahead.sides[n];
    gpu_range logits = gpu_whole(&side->logits);
    TRY(gpu_commands_begin(s->model->device, GPU_COMMANDS_REUSABLE, &side->settle));
    TRY(gpu_commands_copy(side->settle, logits,
                          gpu_part(gpu_whole(&s->io.logits), 0, logits.bytes)));
    for (uint32_t i = 0; i < s->model->config.block_count && n == 0; i++) {
        gpu_range both = gpu_whole(&s->state.lightning[i]);
        uint64_t half = both.bytes / 2;
        if (half > 0)
            TRY(gpu_commands_copy(side->settle, gpu_part(both, half, half),
                                  gpu_part(both, 0, half)));
    }
    return gpu_commands_end(side->settle);
}

void session_ahead_destroy(ful_session *s)
{
    ful_device *device = s->model->device;
    for (int i = 0; i < 2; i++) {
        ahead_side *side = &s->ahead.sides[i];
        schedule_destroy(&side->recorded);
        gpu_commands_destroy(&side->settle);
    }
    for (int i = 0; i < 2; i++) {
        ahead_side *side = &s->ahead.sides[i];
        gpu_buffer *buffers[] = {&side->step, &side->rope, &side->sampled, &side->logits};
        for (size_t b = 0; b < sizeof buffers / sizeof *buffers; b++)
            gpu_buffer_destroy(device, buffers[b]);
    }
    s->stats.device_bytes -= s->ahead.device_bytes;
    s->ahead = (session_ahead){0};
}

static ful_result ahead_create(ful_session *s)
{
    uint64_t before, peak, after;
    if (s->ahead.ready)
        return FUL_OK;
    ful_device_memory(s->model->device, &before, &peak);
    ful_result r = FUL_OK;
    for (uint32_t i = 0; i < 2 && r == FUL_OK; i++)
        r = side_create(s, &s->ahead.sides[i]);
    for (uint32_t i = 0; i < 2 && r == FUL_OK; i++)
        r = side_record(s, i);
    for (uint32_t i = 0; i < 2 && r == FUL_OK; i++)
        r = settle_record(s, i);
    if (r != FUL_OK) {
        session_ahead_destroy(s);
        return r;
    }
    ful_device_memory(s->model->device, &after, &peak);
    s->ahead.device_bytes = after - before;
    s->stats.device_bytes += after - before;
    s->ahead.ready = true;
    return FUL_OK;
}

/* ---- steps ---- */

/* Starts the step that feeds the token at `position`, which lies in what the other side drew. */
static ful_result side_submit(ful_session *s, uint32_t n, size_t position,
                              const ful_sampler_params *p)
{
    const model_config *c = &s->model->config;
    ful_device *device = s->model->device;
    ahead_side *side = &s->ahead.sides[n];
    step_params params = session_draw_params(p, position);
    memcpy(side->step.mapped, &params, sizeof params);
    op_rope_table((uint32_t)position, 1, c->rotary_dim, c->rope_theta, side->rope.mapped);
    TRY(gpu_buffer_flush(device, &side->step, 0, sizeof params));
    TRY(gpu_buffer_flush(device, &side->rope, 0, (uint64_t)c->rotary_dim * 4));
    TRY(gpu_step_fault(device));
    return gpu_commands_submit(schedule_commands(side->recorded));
}

static ful_result side_wait(ful_session *s, uint32_t n)
{
    uint64_t waiting = time_ns();
    ful_result r = gpu_commands_wait(schedule_commands(s->ahead.sides[n].recorded));
    s->wait_ns += time_ns() - waiting;
    return r;
}

static ful_result token_hand(ful_session *s, uint32_t n, int32_t token)
{
    gpu_buffer *sampled = &s->ahead.sides[n].sampled;
    const uint32_t words[2] = {(uint32_t)token, 0};
    memcpy(sampled->mapped, words, sizeof words);
    return gpu_buffer_flush(s->model->device, sampled, 0, sizeof words);
}

static ful_result step_run(ful_session *s, int32_t token, const ful_sampler_params *p, bool more,
                           uint32_t drawn[2])
{
    session_ahead *a = &s->ahead;
    uint32_t now = a->next;
    TRY(session_check_tokens(s, &token, 1));
    TRY(session_reserve(
        s, 1)); /* nothing may fail between the step and its token's place in the list */
    TRY(ahead_create(s));
    if (!a->underway) {
        TRY(token_hand(s, 1 - now, token));
        TRY(side_submit(s, now, s->token_count, p));
        a->underway = true;
    }
    if (more) {
        ful_result r = side_submit(s, 1 - now, s->token_count + 1, p);
        if (r != FUL_OK) {
            s->stuck = r;
            return r;
        }
    }
    ful_result r = side_wait(s, now);
    if (r == FUL_OK)
        r = gpu_buffer_invalidate(s->model->device, &a->sides[now].sampled, 0, 2 * sizeof *drawn);
    if (r != FUL_OK) {
        s->stuck = r; /* where this step reads its states, the one after it may write by now */
        return r;
    }
    a->next = 1 - now;
    a->underway = more;
    a->unsettled = true;
    s->last = a->sides[now].recorded;
    s->stats.decode_gpu_ns += gpu_commands_span_ns(schedule_commands(s->last));
    s->has_logits = true;
    s->host_logits = false;
    memcpy(drawn, a->sides[now].sampled.mapped, 2 * sizeof *drawn);
    return session_append(s, &token, 1);
}

const gpu_buffer *session_logits_buffer(const ful_session *s)
{
    return s->ahead.unsettled ? &s->ahead.sides[1 - s->ahead.next].logits : &s->io.logits;
}

ful_result session_ahead_step(ful_session *s, int32_t token, const ful_sampler_params *p, bool more,
                              int32_t *next)
{
    uint64_t start = time_ns(), waited = s->wait_ns;
    uint32_t drawn[2];
    TRY(step_run(s, token, p, more, drawn));
    uint64_t ns = time_ns() - start;
    s->stats.decode_tokens++;
    s->stats.decode_ns += ns;
    s->stats.decode_host_ns += ns - (s->wait_ns - waited);
    if (drawn[1] & 1u) {
        TRY(session_ahead_end(s));
        return session_explain(s);
    }
    *next = (int32_t)drawn[0];
    return FUL_OK;
}

ful_result session_ahead_end(ful_session *s)
{
    session_ahead *a = &s->ahead;
    uint32_t last = 1 - a->next;
    ful_result r = FUL_OK;
    if (a->underway) {
        r = side_wait(s, a->next);
        ful_result other = side_wait(s, last); /* under way after an error only */
        r = r != FUL_OK ? r : other;
    }
    bool unsettled = a->unsettled;
    a->underway = a->unsettled = false;
    a->next = 0;
    if (r == FUL_OK && unsettled)
        r = gpu_commands_submit(a->sides[last].settle);
    if (r == FUL_OK && unsettled)
        r = gpu_commands_wait(a->sides[last].settle);
    if (r != FUL_OK)
        s->stuck = r;
    return r;
}
