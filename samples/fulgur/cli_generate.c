/* Generation that goes on when the device is lost. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

bool cli_text_add(cli_text *text, const int32_t *ids, size_t n)
{
    if (text->count + n > text->capacity) {
        size_t capacity = 2 * (text->count + n) + 256;
        int32_t *grown = realloc(text->ids, capacity * sizeof *grown);
        if (!grown)
            return false;
        text->ids = grown;
        text->capacity = capacity;
    }
    memcpy(text->ids + text->count, ids, n * sizeof *ids);
    text->count += n;
    return true;
}

/* Feeds what the session does not hold yet; starts over if what it holds is no prefix. */
static ful_result feed(cli_model *m, const cli_text *text)
{
    const int32_t *have;
    size_t held = ful_session_tokens(m->session, &have), same = 0;
    while (same < held && same < text->count && have[same] == text->ids[same])
        same++;
    if (same < held || same == text->count) {
        ful_result r = ful_session_reset(m->session);
        if (r != FUL_OK)
            return r;
        same = 0;
    }
    return cli_prefill(m, text->ids + same, text->count - same);
}

typedef struct taker {
    cli_text *text;
    size_t taken;
    ful_token_fn fn;
    void *ctx;
} taker;

static bool take(void *ctx, int32_t token)
{
    taker *t = ctx;
    t->taken++;
    return cli_text_add(t->text, &token, 1) && t->fn(t->ctx, token);
}

static ful_result reopen(cli_model *m)
{
    fprintf(stderr, "fulgur: warning: %s; reopening it to go on\n", ful_last_error());
    m->reopened = true;
    return cli_reopen_model(m);
}

ful_result cli_generate(cli_model *m, cli_text *text, const ful_generate_params *params,
                        ful_token_fn fn, void *ctx, ful_stop *stop)
{
    ful_generate_params p = *params;
    taker t = {.text = text, .fn = fn, .ctx = ctx};
    for (;;) {
        *stop = FUL_STOP_NONE;
        ful_result r = feed(m, text);
        if (r == FUL_OK)
            r = ful_generate(m->session, &p, take, &t, stop);
        if (*stop == FUL_STOP_NONE && params->max_tokens && t.taken == params->max_tokens)
            *stop = FUL_STOP_MAX_TOKENS;
        if (r != FUL_ERR_DEVICE_LOST)
            return r;
        /* Nothing is missing: the loss is the next one's to meet. */
        if (*stop != FUL_STOP_NONE)
            return FUL_OK;
        if (m->reopened)
            return r;
        if (params->max_tokens)
            p.max_tokens = params->max_tokens - t.taken;
        r = reopen(m);
        if (r != FUL_OK)
            return r;
    }
}
