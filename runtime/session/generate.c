/* Sampling and generation. */
#include <stdio.h>
#include <string.h>

#include "session/session.h"
#include "text/sampler.h"

ful_result ful_sample(ful_session *session, const ful_sampler_params *params, int32_t *token)
{
    if (!session || !token)
        return fail(FUL_ERR_ARGUMENT, "ful_sample: session and token must not be NULL");
    uint64_t start = time_ns();
    TRY(session_fetch_logits(session));
    ful_result r = ful_sample_logits(session->logits, session->model->config.vocab_size, params,
                                     session->token_count, token);
    session->stats.sample_ns += time_ns() - start;
    return r;
}

typedef struct stop_list {
    const int32_t *tokens;
    size_t count;
} stop_list;

static bool is_stop(const stop_list *stops, int32_t token)
{
    for (size_t i = 0; i < stops->count; i++)
        if (stops->tokens[i] == token)
            return true;
    return false;
}

/* Feeds `token` and draws the next one on the device: logits never reach the host. */
static ful_result decode_and_sample(ful_session *s, int32_t token, const ful_sampler_params *p,
                                    int32_t *next)
{
    uint64_t start = time_ns(), waited = s->wait_ns;
    TRY(session_check_tokens(s, &token, 1));
    TRY(session_reserve(s, 1));
    session_step step = {
        .kind = SCHEDULE_DECODE, .sample = true, .params = session_draw_params(p, s->token_count)};
    TRY(session_run(s, &token, 1, &step));
    TRY(session_append(s, &token, 1));
    uint32_t drawn[2];
    TRY(gpu_buffer_invalidate(s->model->device, &s->io.sampled, 0, sizeof drawn));
    memcpy(drawn, s->io.sampled.mapped, sizeof drawn);
    uint64_t ns = time_ns() - start;
    s->stats.decode_tokens++;
    s->stats.decode_ns += ns;
    s->stats.decode_host_ns += ns - (s->wait_ns - waited);
    if (drawn[1] & 1u)
        return session_explain(s);
    *next = (int32_t)drawn[0];
    return FUL_OK;
}

typedef enum drawing {
    DRAW_HOST,
    DRAW_DEVICE,
    DRAW_AHEAD /* on the device, which does not wait for the host */
} drawing;

/* On a processor the host's sampler is the faster one and reads the same memory. */
static drawing drawing_choose(const ful_session *s, const ful_sampler_params *p)
{
    bool wide = s->model->shape == OP_SHAPE_WIDE || !device_is_cpu(s->model->device);
    if (p->mask || s->tap || !wide || !op_sample_usable(s->model->device))
        return DRAW_HOST;
    return session_ahead_usable(s) ? DRAW_AHEAD : DRAW_DEVICE;
}

static ful_result next_token(ful_session *s, int32_t token, const ful_sampler_params *p,
                             drawing how, bool more, int32_t *next)
{
    if (how == DRAW_AHEAD)
        return session_ahead_step(s, token, p, more, next);
    if (how == DRAW_DEVICE)
        return decode_and_sample(s, token, p, next);
    TRY(ful_decode(s, token));
    return ful_sample(s, p, next);
}

ful_result ful_generate(ful_session *session, const ful_generate_params *params, ful_token_fn fn,
                        void *ctx, ful_stop *stop)
{
    ful_session *s = session;
    if (stop)
        *stop = FUL_STOP_NONE;
    if (!s || !fn)
        return fail(FUL_ERR_ARGUMENT, "ful_generate: session and fn must not be NULL");
    ful_generate_params p;
    ful_sampler_params sampler;
    TRY(params_copy(&p, sizeof p, params, "ful_generate_params"));
    TRY(sampler_params_read(p.sampler, &sampler));
    int32_t eos = s->model->config.eos_token_id;
    stop_list stops = {p.stop_tokens, p.n_stop_tokens};
    if (stops.count == 0 && eos >= 0)
        stops = (stop_list){&eos, 1};
    drawing how = drawing_choose(s, &sampler);

    ful_stop why = FUL_STOP_NONE;
    int32_t token;
    ful_result r = ful_sample(s, &sampler, &token);
    for (size_t given = 0; r == FUL_OK; given++) {
        if (p.max_tokens && given == p.max_tokens)
            why = FUL_STOP_MAX_TOKENS;
        else if (is_stop(&stops, token))
            why = FUL_STOP_TOKEN;
        else if (!fn(ctx, token))
            why = FUL_STOP_CALLBACK;
        else if (s->token_count >= s->max_tokens)
            why = FUL_STOP_CONTEXT;
        if (why != FUL_STOP_NONE)
            break;
        bool more =
            (!p.max_tokens || given + 1 < p.max_tokens) && s->token_count + 1 < s->max_tokens;
        r = next_token(s, token, &sampler, how, more, &token);
    }
    if (stop)
        *stop = why;
    if (r == FUL_OK)
        return session_ahead_end(s);
    /* What went wrong first is what is reported. */
    char first[512];
    snprintf(first, sizeof first, "%s", ful_last_error());
    return session_ahead_end(s) == FUL_OK ? r : fail(r, "%s", first);
}
