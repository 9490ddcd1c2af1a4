/* A session's inside, for the files of this room and for tests. */
#ifndef FULGUR_SESSION_SESSION_H
#define FULGUR_SESSION_SESSION_H

#include "fulgur/session.h"
#include "schedule/schedule.h"

enum { SESSION_MAX_SCHEDULES = 40 };

typedef struct session_schedule {
    schedule_kind kind;
    uint32_t rows;
    bool sample;
    schedule *recorded;
} session_schedule;

/* Decoding ahead of the host (ahead.c): two recordings of the decode step, each of which takes its
 * token from what the other drew, and the lightning states from where the other left them. */
typedef struct ahead_side {
    gpu_buffer step, rope, sampled, logits;
    schedule *recorded;
    gpu_commands *settle; /* makes what this side wrote the session's own */
} ahead_side;

typedef struct session_ahead {
    bool ready;
    uint64_t device_bytes;
    ahead_side sides[2];
    uint32_t next;  /* the side that feeds the next token */
    bool underway;  /* ... and does so already */
    bool unsettled; /* the session's state is what the other side wrote */
} session_ahead;

struct ful_session {
    ful_model *model;
    const ful_alloc *alloc;
    size_t max_tokens;
    uint32_t chunk_tokens;
    uint32_t all_rows; /* most rows of a step that gives all logits */
    bool profile;

    sequence_state state;
    schedule_io io;
    session_schedule schedules[SESSION_MAX_SCHEDULES];
    uint32_t schedule_count;
    schedule *last; /* the schedule run last, for its times */

    int32_t *tokens;
    size_t token_count, token_capacity;
    bool failed;      /* logits became not finite: reset first */
    ful_result stuck; /* not FUL_OK: why a step stopped halfway; nobody knows the states: reset */
    bool has_logits;  /* of the last token, on the device */
    bool host_logits; /* ... and in `logits` */
    float *logits;    /* [vocab] */
    ful_stats stats;
    uint64_t wait_ns; /* spent waiting for the device */
    ful_step_time *times;
    size_t times_capacity;
    session_ahead ahead;
    const schedule_tap *tap; /* tests: every step goes through schedule_run_tapped */
};

/* Runs one step of `n` tokens that continue the session; `uniform` etc. only matter for sampling.
 * Does not append to session->tokens. */
typedef struct session_step {
    schedule_kind kind;
    bool sample;
    step_params params; /* sampling fields */
} session_step;
ful_result session_run(ful_session *s, const int32_t *tokens, uint32_t n, const session_step *step);

/* ---- ahead.c ---- */
bool session_ahead_usable(const ful_session *s);
/* Feeds `token` and draws the next one on the device. `more`: the next one will be fed by the same
 * call again unless the caller ends it; the device goes on with it at once. */
ful_result session_ahead_step(ful_session *s, int32_t token, const ful_sampler_params *p, bool more,
                              int32_t *next);
/* After the last step, before another kind of step or a reset; also after errors. Nothing is done
 * where nothing is to do. */
ful_result session_ahead_end(ful_session *s);
void session_ahead_destroy(ful_session *s);
/* Where the logits of the last token are. */
const gpu_buffer *session_logits_buffer(const ful_session *s);

/* Sampling parameters of a step that feeds the token at `position`. */
step_params session_draw_params(const ful_sampler_params *p, size_t position);

/* Makes room for so many tokens more; appends to the list of tokens. */
ful_result session_reserve(ful_session *s, size_t n);
ful_result session_append(ful_session *s, const int32_t *tokens, size_t n);
/* An error if the states can't be relied on. */
ful_result session_check_states(const ful_session *s);
ful_result session_check_tokens(const ful_session *s, const int32_t *tokens, size_t n);
/* Zeroes the states; keys need none. */
ful_result session_clear_state(ful_session *s);
/* Replays all tokens step by step and names the first layer with a value that is not finite. Always
 * returns FUL_ERR_NOT_FINITE (or the error that stopped the replay); marks the session failed. */
ful_result session_explain(ful_session *s);
/* Logits of the last token in session->logits. */
ful_result session_fetch_logits(ful_session *s);

#endif
