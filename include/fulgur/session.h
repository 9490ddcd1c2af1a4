/* Sessions: one sequence of tokens on one model. A session is used by one thread at a time;
 * sessions of one model may be used from different threads. */
#ifndef FULGUR_SESSION_H
#define FULGUR_SESSION_H

#include "fulgur/model.h"
#include "fulgur/sampler.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ful_session ful_session;

typedef struct ful_session_params {
    size_t struct_size;
    size_t max_tokens;     /* 0 = the plan's */
    uint32_t chunk_tokens; /* largest prefill chunk; 0 = the plan's; at most that */
    bool profile; /* timestamps around every step, for ful_session_profile; costs a little */
} ful_session_params;
#define ful_session_params(...)                                                                    \
    (&(ful_session_params){.struct_size = sizeof(ful_session_params), __VA_ARGS__})

/* Allocates the plan's state, keys and values, and activations; waits for the device. */
FUL_API ful_result ful_session_create(ful_session **out, ful_model *model,
                                      const ful_session_params *params);
FUL_API void ful_session_destroy(ful_session **session);

/* Forgets all tokens. Cheap: no memory is given back. Needed after FUL_ERR_NOT_FINITE. */
FUL_API ful_result ful_session_reset(ful_session *session);

/* Tokens fed so far, after an error those that were fed for certain; works without the device. The
 * pointer is valid until the next call on the session.
 *
 * A lost device (FUL_ERR_DEVICE_LOST) takes all sessions and models on it along: their calls fail
 * from then on, but this one still gives the tokens. What was under way is not among them: the
 * chunk of a prefill, or the token that ful_generate gave to its callback last and was feeding. To
 * go on: copy the tokens, destroy sessions and model, close the device; open it or another one,
 * load the model, create a session, ful_prefill the copied tokens and those after them that the
 * caller has, and ful_generate with what is left of max_tokens. As draws depend on the seed and the
 * number of tokens only, the text goes on as it would have, up to the rounding between a token that
 * is prefilled and one that was decoded. (`fulgur run` and `fulgur chat` do so once.) */
FUL_API size_t ful_session_tokens(const ful_session *session, const int32_t **tokens);

/* Appends tokens; afterwards the logits are those of the last one. Any split into calls gives the
 * same result up to rounding. Waits for the device. Errors: FUL_ERR_ARGUMENT (a token outside the
 * vocabulary; nothing is appended), FUL_ERR_CONTEXT_FULL (nothing is appended), FUL_ERR_NOT_FINITE,
 * FUL_ERR_DEVICE_LOST. */
FUL_API ful_result ful_prefill(ful_session *session, const int32_t *tokens, size_t n_tokens);

/* Like ful_prefill, giving the logits of every token to fn in order (row counts from 0; borrowed
 * for the call). fn returning false cancels after the chunk at hand: FUL_ERR_CANCELLED; what was
 * appended stays. */
typedef bool (*ful_logits_fn)(void *ctx, size_t row, const float *logits, size_t n_vocab);
FUL_API ful_result ful_prefill_logits(ful_session *session, const int32_t *tokens, size_t n_tokens,
                                      ful_logits_fn fn, void *ctx);

/* Where the router sent one token: experts, best first, and their weights. */
typedef struct ful_route {
    uint32_t expert;
    float weight;
} ful_route;

/* Like ful_prefill, giving the routes [n_tokens][top_k] of every layer and chunk to fn (row counts
 * the chunk's first token from 0; borrowed for the call). Slow: every op is waited for. fn
 * returning false cancels: FUL_ERR_CANCELLED; the session then is to be reset. */
typedef bool (*ful_routes_fn)(void *ctx, int32_t layer, size_t row, const ful_route *routes,
                              size_t n_tokens, uint32_t top_k);
FUL_API ful_result ful_prefill_routes(ful_session *session, const int32_t *tokens, size_t n_tokens,
                                      ful_routes_fn fn, void *ctx);

/* Appends one token. Errors as ful_prefill. */
FUL_API ful_result ful_decode(ful_session *session, int32_t token);

/* Logits [n_vocab] f32 of the last token, borrowed until the next call on the session.
 * FUL_ERR_ARGUMENT if no token was fed yet. */
FUL_API ful_result ful_logits(ful_session *session, const float **logits, size_t *n_vocab);

/* Draws the next token from the logits, without feeding it. The draw depends on params->seed and
 * the number of tokens in the session only. NULL params: greedy. */
FUL_API ful_result ful_sample(ful_session *session, const ful_sampler_params *params,
                              int32_t *token);

/* Called with each new token before it is fed; false stops cleanly. (On GPUs the step that feeds it
 * is under way meanwhile. Whatever stops a generation, the session is as if it had not begun.) */
typedef bool (*ful_token_fn)(void *ctx, int32_t token);

typedef struct ful_generate_params {
    size_t struct_size;
    size_t max_tokens;                 /* 0 = until a stop token or the context is full */
    const ful_sampler_params *sampler; /* NULL = greedy */
    const int32_t *stop_tokens;        /* not given to the callback, not fed */
    size_t n_stop_tokens;              /* 0 = the model's eos_token_id, if it has one */
} ful_generate_params;
#define ful_generate_params(...)                                                                   \
    (&(ful_generate_params){.struct_size = sizeof(ful_generate_params), __VA_ARGS__})

typedef enum ful_stop {
    FUL_STOP_NONE = 0,
    FUL_STOP_TOKEN = 1, /* a stop token was drawn */
    FUL_STOP_MAX_TOKENS = 2,
    FUL_STOP_CALLBACK = 3, /* fn returned false */
    FUL_STOP_CONTEXT = 4   /* the session's max_tokens is reached */
} ful_stop;

/* Sample, hand over, decode, until something stops it (*stop, may be NULL; FUL_STOP_NONE: an
 * error). At least one token must have been fed. Sampling happens on the device when
 * params->sampler has no mask. */
FUL_API ful_result ful_generate(ful_session *session, const ful_generate_params *params,
                                ful_token_fn fn, void *ctx, ful_stop *stop);

typedef struct ful_stats {
    uint64_t prefill_tokens, decode_tokens;
    uint64_t prefill_ns, decode_ns; /* wall time, waiting for the device included */
    uint64_t sample_ns;
    uint64_t prefill_steps;     /* chunks */
    uint32_t decode_dispatches; /* of one decoded token */
    uint32_t decode_submits;    /* of one decoded token */
    uint64_t decode_host_ns;    /* processor time spent in ful_decode outside the wait, total */
    uint64_t device_bytes;      /* held by this session */
    uint64_t prefill_gpu_ns;    /* time on the device, 0 without timestamps */
    uint64_t decode_gpu_ns;
} ful_stats;
FUL_API ful_result ful_session_stats(const ful_session *session, ful_stats *out);

/* GPU time of the last step, one entry a dispatch, in order; needs params.profile and a device with
 * timestamps
 * (*count is 0 otherwise). Valid until the next call on the session. */
typedef struct ful_step_time {
    const char *name; /* op */
    int32_t layer;    /* -1: outside the layers */
    uint64_t ns;
    double bytes, flops; /* what the op must at least move and compute */
} ful_step_time;
FUL_API ful_result ful_session_profile(ful_session *session, const ful_step_time **out,
                                       size_t *count);

#ifdef __cplusplus
}
#endif

#endif
