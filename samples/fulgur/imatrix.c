/* fulgur imatrix: how strongly texts drive each column of a model's matrices, for quantising. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <fulgur/importance.h>

#include "documents.h"

enum { DEFAULT_WINDOW = 512 };

typedef struct request {
    const char *out, *in, *mark;
    uint32_t window, most; /* tokens read at a time; windows, 0: all */
    bool no_bos;
} request;

typedef struct collector {
    cli_model *m;
    const request *q;
    ful_importance *importance;
    size_t window;
    int32_t bos;
    uint64_t windows, tokens;
    int32_t *fed;
} collector;

static bool enough(const collector *c)
{
    return (c->q->most && c->windows >= c->q->most) || cli_interrupted();
}

/* Windows start anew, with the begin token if there is one. */
static bool collect_document(collector *c, const char *text, size_t bytes)
{
    size_t n, front = c->bos >= 0;
    int32_t *ids = cli_encode(c->m->tokenizer, text, bytes, -1, &n);
    bool ok = ids != NULL;
    for (size_t at = 0; ok && at < n && !enough(c);) {
        size_t take = n - at < c->window - front ? n - at : c->window - front;
        if (front)
            c->fed[0] = c->bos;
        memcpy(c->fed + front, ids + at, take * sizeof *ids);
        ok = ful_session_reset(c->m->session) == FUL_OK &&
             ful_importance_collect(c->importance, c->m->session, c->fed, take + front) == FUL_OK;
        if (!ok)
            cli_fail("collecting");
        c->windows++;
        c->tokens += take + front;
        at += take;
    }
    free(ids);
    return ok;
}

static bool collect_text(collector *c, const char *path)
{
    size_t bytes;
    char *text = cli_read_file(path, &bytes);
    if (!text)
        return false;
    const char *at = text, *end = text + bytes, *first, *last;
    uint64_t windows = c->windows;
    cli_bar bar = {.start_ns = cli_now_ns(), .label = "collecting"};
    bool ok = true;
    while (ok && !enough(c) && document_next(&at, end, c->q->mark, &first, &last)) {
        ok = collect_document(c, first, (size_t)(last - first));
        cli_show_bar(&bar, &(ful_progress){.done = (uint64_t)(at - text), .total = bytes});
    }
    cli_end_bar(&bar);
    free(text);
    if (!ok)
        return false;
    const char *name = strrchr(path, '/');
    if (ful_importance_note(c->importance, name ? name + 1 : path, (uint32_t)(c->windows - windows),
                            (uint32_t)c->window) == FUL_OK)
        return true;
    cli_fail(path);
    return false;
}

static int collect(cli_model *m, const request *q, char **texts, int count)
{
    collector c = {.m = m,
                   .q = q,
                   .window = ful_model_get_plan(m->model)->max_tokens,
                   .bos = q->no_bos ? -1 : ful_model_get_info(m->model)->bos_token_id};
    c.window = q->window < c.window ? q->window : c.window;
    c.fed = malloc((c.window + 1) * sizeof *c.fed);
    bool ok = c.fed && ful_importance_create(&c.importance, m->model) == FUL_OK;
    if (!ok)
        cli_fail("importance");
    if (ok && q->in && ful_importance_read(c.importance, q->in) != FUL_OK) {
        cli_fail(q->in);
        ok = false;
    }
    for (int i = 0; ok && i < count && !enough(&c); i++)
        ok = collect_text(&c, texts[i]);
    if (ok && !cli_interrupted() && c.tokens == 0) {
        fprintf(stderr, "fulgur imatrix: %s: no text to read\n", texts[0]);
        ok = false;
    }
    if (ok && !cli_interrupted()) {
        ok = ful_importance_write(c.importance, q->out) == FUL_OK;
        if (!ok)
            cli_fail(q->out);
        else
            printf("%s: %llu tokens in %llu windows of at most %zu%s%s\n", q->out,
                   (unsigned long long)c.tokens, (unsigned long long)c.windows, c.window,
                   q->in ? ", added to " : "", q->in ? q->in : "");
    }
    free(c.fed);
    ful_importance_destroy(&c.importance);
    return cli_interrupted() ? CLI_INTERRUPTED : ok ? CLI_OK : CLI_FAILED;
}

/* Hours of collecting must not end at a name that is taken. */
static bool name_is_free(const char *path)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return true;
    fclose(f);
    fprintf(stderr, "fulgur imatrix: %s: exists already and is not overwritten\n", path);
    return false;
}

static int run(int argc, char **argv)
{
    cli_model m = {.precision_text = "f32"}; /* rounded inputs are not what is asked for */
    request q = {.mark = document_mark, .window = DEFAULT_WINDOW};
    cli_option options[CLI_MODEL_OPTIONS + 6] = {
        {'o', "out", "FILE.gguf", CLI_TEXT, &q.out, "what is written"},
        {0, "in", "FILE.gguf", CLI_TEXT, &q.in, "add to what this file has, of the same model"},
        {'w', "window", "N", CLI_UINT, &q.window, "tokens read at a time (default 512)"},
        {0, "windows", "N", CLI_UINT, &q.most, "stop after so many"},
        {0, "mark", "LINE", CLI_TEXT, &q.mark,
         "line that ends a document (default <|endoftext|>); '' = none"},
        {0, "no-bos", NULL, CLI_FLAG, &q.no_bos,
         "do not put the model's begin token before each window"},
    };
    cli_model_options(&m, options + 6);
    int first, code = cli_parse(&cmd_imatrix, argc, argv, options, sizeof options / sizeof *options,
                                &first);
    if (code >= 0)
        return code;
    if (argc - first < 2 || !q.out || q.window < 2) {
        fprintf(stderr, "usage: fulgur imatrix MODEL TEXT... --out FILE.gguf [--in FILE.gguf] "
                        "[--window N] (N at least 2)\n");
        return CLI_USAGE;
    }
    if (!name_is_free(q.out))
        return CLI_FAILED;
    cli_watch_interrupt();
    code = cli_open_tokenizer(&m, argv[first]);
    if (code == CLI_OK)
        code = cli_open_model(&m, argv[first], q.window);
    if (code == CLI_OK)
        code = collect(&m, &q, argv + first + 1, argc - first - 1);
    cli_close_model(&m);
    return code;
}

const cli_command cmd_imatrix = {
    "imatrix", "MODEL TEXT... --out FILE.gguf [options]",
    "collect which columns of a model's matrices matter, for quantize --imatrix", run};
