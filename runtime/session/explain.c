/* Which layer first produced a value that is not finite: the tokens are replayed step by step.
 * Slow, and only done once something is wrong, so that no kernel pays for looking. */
#include <math.h>

#include "session/session.h"

typedef struct search {
    ful_session *session;
    size_t chunk_start;
    const char *name; /* step found; NULL = none yet */
    int32_t layer;
    size_t row, column;
    float *values;
    size_t capacity;
} search;

static ful_result look(void *ctx, const char *name, int32_t layer, gpu_range range, uint32_t rows,
                       uint32_t columns)
{
    search *f = ctx;
    ful_session *s = f->session;
    uint32_t real = rows;
    const step_params *step = s->io.step.mapped;
    if (rows > 1 && step->n_rows < rows)
        real = step->n_rows; /* the rest of the bucket was never written */
    if (f->name)
        return FUL_OK;
    size_t n = (size_t)real * columns;
    if (!mem_grow(s->alloc, (void **)&f->values, &f->capacity, n, sizeof *f->values))
        return mem_fail(n * sizeof *f->values, "looking for values that are not finite");
    TRY(gpu_range_read(s->model->device, range, 0, f->values, n * sizeof *f->values));
    for (size_t i = 0; i < n; i++) {
        /* Routes hold expert numbers, whose bits read as tiny floats. */
        if (isfinite(f->values[i]))
            continue;
        f->name = name;
        f->layer = layer;
        f->row = rows > 1 ? i / columns : step->n_rows - 1;
        f->column = i % columns;
        return FUL_OK;
    }
    return FUL_OK;
}

static ful_result replay(ful_session *s, search *f)
{
    size_t total = s->token_count;
    const schedule_tap tap = {.fn = look, .ctx = f}, *before = s->tap;
    ful_result r = session_clear_state(s);
    s->token_count = 0;
    s->tap = &tap;
    while (r == FUL_OK && !f->name && s->token_count < total) {
        size_t left = total - s->token_count;
        uint32_t take = left < s->chunk_tokens ? (uint32_t)left : s->chunk_tokens;
        session_step step = {.kind = SCHEDULE_PREFILL};
        f->chunk_start = s->token_count;
        r = session_run(s, s->tokens + s->token_count, take, &step);
        s->token_count += take;
    }
    s->tap = before;
    s->token_count = total;
    return r;
}

ful_result session_explain(ful_session *s)
{
    search f = {.session = s};
    s->failed = true;
    ful_result r = replay(s, &f);
    mem_free(s->alloc, f.values);
    s->has_logits = s->host_logits = false;
    if (r != FUL_OK)
        return r;
    if (!f.name)
        return fail(FUL_ERR_NOT_FINITE,
                    "logits are not finite after token %zu, yet a replay of all tokens is finite: "
                    "the device or its driver computes unreliably",
                    s->token_count);
    size_t position = f.chunk_start + f.row;
    if (f.layer < 0)
        return fail(FUL_ERR_NOT_FINITE,
                    "logits are not finite; the first such value came from the %s step, token "
                    "position %zu (token %d), column %zu",
                    f.name, position, s->tokens[position], f.column);
    return fail(FUL_ERR_NOT_FINITE,
                "logits are not finite; the first such value came from layer %d (%s), token "
                "position %zu (token %d), column %zu",
                f.layer, f.name, position, s->tokens[position], f.column);
}
