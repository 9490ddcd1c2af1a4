/* Which experts tokens are sent to: a prefill step by step, with a look at what the routers wrote.
 */
#include <string.h>

#include "session/session.h"

typedef struct look {
    ful_session *session;
    ful_routes_fn fn;
    void *ctx;
    size_t row; /* of the chunk's first token */
    ful_route *routes;
    size_t capacity;
} look;

static ful_result look_at(void *ctx, const char *name, int32_t layer, gpu_range range,
                          uint32_t rows, uint32_t columns)
{
    look *l = ctx;
    ful_session *s = l->session;
    if (strcmp(name, "routes") != 0)
        return FUL_OK;
    uint32_t real = ((const step_params *)s->io.step.mapped)->n_rows;
    uint32_t top_k = s->model->config.top_k;
    size_t n = (size_t)(real < rows ? real : rows) * top_k;
    (void)columns;
    if (!mem_grow(s->alloc, (void **)&l->routes, &l->capacity, n, sizeof *l->routes))
        return mem_fail(n * sizeof *l->routes, "routes");
    TRY(gpu_range_read(s->model->device, range, 0, l->routes, n * sizeof *l->routes));
    if (!l->fn(l->ctx, layer, l->row, l->routes, n / top_k, top_k))
        return fail(FUL_ERR_CANCELLED, "cancelled by the routes callback at token %zu", l->row);
    return FUL_OK;
}

ful_result ful_prefill_routes(ful_session *session, const int32_t *tokens, size_t n_tokens,
                              ful_routes_fn fn, void *ctx)
{
    ful_session *s = session;
    if (!s || !fn || (!tokens && n_tokens))
        return fail(FUL_ERR_ARGUMENT,
                    "ful_prefill_routes: session, tokens and fn must not be NULL");
    TRY(session_check_tokens(s, tokens, n_tokens));
    look l = {.session = s, .fn = fn, .ctx = ctx};
    const schedule_tap tap = {.fn = look_at, .ctx = &l}, *before = s->tap;
    ful_result r = FUL_OK;
    s->tap = &tap;
    while (l.row < n_tokens && r == FUL_OK) {
        size_t left = n_tokens - l.row;
        uint32_t take = left < s->chunk_tokens ? (uint32_t)left : s->chunk_tokens;
        /* Also of the last layer, whose routes a chunk without logits would not need. */
        session_step step = {.kind = SCHEDULE_PREFILL};
        r = session_reserve(s, take);
        if (r == FUL_OK)
            r = session_run(s, tokens + l.row, take, &step);
        if (r == FUL_OK)
            r = session_append(s, tokens + l.row, take);
        l.row += take;
    }
    s->tap = before;
    mem_free(s->alloc, l.routes);
    return r;
}
