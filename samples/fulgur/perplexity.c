/* fulgur perplexity: how well a model predicts a text. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char default_mark[] = "<|endoftext|>";

typedef struct score {
    const int32_t *ids; /* fed now, begin token included */
    size_t n;
    double nll;
    uint64_t tokens, bytes, documents, windows;
} score;

static bool add_row(void *ctx, size_t row, const float *logits, size_t n)
{
    score *s = ctx;
    if (row + 1 >= s->n)
        return !cli_interrupted();
    double top = -INFINITY, sum = 0.0;
    for (size_t i = 0; i < n; i++)
        top = fmax(top, logits[i]);
    for (size_t i = 0; i < n; i++)
        sum += exp(logits[i] - top);
    s->nll += top + log(sum) - logits[s->ids[row + 1]];
    s->tokens++;
    return !cli_interrupted();
}

/* One document in windows of at most `window` tokens, each starting anew with the begin token if
 * there is one. */
static bool score_document(cli_model *m, score *s, const char *text, size_t bytes, int32_t bos,
                           size_t window)
{
    size_t n, front = bos >= 0;
    int32_t *ids = cli_encode(m->tokenizer, text, bytes, -1, &n);
    int32_t *fed = malloc((window + 1) * sizeof *fed);
    ful_result r = FUL_OK;
    for (size_t at = 0; ids && fed && at < n && r == FUL_OK;) {
        size_t take = n - at < window - front ? n - at : window - front;
        if (front)
            fed[0] = bos;
        memcpy(fed + front, ids + at, take * sizeof *fed);
        s->ids = fed;
        s->n = take + front;
        r = ful_session_reset(m->session);
        if (r == FUL_OK)
            r = ful_prefill_logits(m->session, fed, s->n, add_row, s);
        s->windows++;
        at += take;
    }
    s->bytes += bytes;
    s->documents++;
    bool ok = ids && fed && r == FUL_OK;
    if (r != FUL_OK && !cli_interrupted())
        cli_fail("computing logits");
    free(ids);
    free(fed);
    return ok;
}

static const char *find_mark(const char *text, const char *end, const char *mark, size_t mark_bytes)
{
    for (const char *p = text; (size_t)(end - p) >= mark_bytes; p++) {
        bool starts = p == text || p[-1] == '\n';
        const char *after = p + mark_bytes;
        if (starts && memcmp(p, mark, mark_bytes) == 0 &&
            (after == end || *after == '\n' || *after == '\r'))
            return p;
    }
    return NULL;
}

static void trim(const char **text, const char **end)
{
    while (*text < *end && strchr(" \t\r\n", **text) && **text)
        ++*text;
    while (*text < *end && strchr(" \t\r\n", (*end)[-1]) && (*end)[-1])
        --*end;
}

/* Takes the next document off *text; false when there is none. */
static bool next_document(const char **text, const char *end, const char *mark, const char **first,
                          const char **last)
{
    size_t mark_bytes = strlen(mark);
    while (*text < end) {
        const char *at = mark_bytes ? find_mark(*text, end, mark, mark_bytes) : NULL;
        *first = *text;
        *last = at ? at : end;
        *text = at ? at + mark_bytes : end;
        trim(first, last);
        if (*first < *last)
            return true;
    }
    return false;
}

static bool score_text(cli_model *m, score *s, const char *text, size_t bytes, const char *mark,
                       int32_t bos, size_t window)
{
    const char *start = text, *end = text + bytes, *first, *last;
    cli_bar bar = {.start_ns = cli_now_ns(), .label = "scoring"};
    bool ok = true;
    while (ok && next_document(&text, end, mark, &first, &last)) {
        ok = score_document(m, s, first, (size_t)(last - first), bos, window);
        cli_show_bar(&bar, &(ful_progress){.done = (uint64_t)(text - start), .total = bytes});
    }
    cli_end_bar(&bar);
    return ok;
}

/* Tokens of the longest document: what a session must be able to hold. False after printing the
 * error. */
static bool longest_document(const ful_tokenizer *t, const char *text, size_t bytes,
                             const char *mark, size_t *most)
{
    const char *start = text, *end = text + bytes, *first, *last;
    *most = 0;
    while (next_document(&text, end, mark, &first, &last)) {
        size_t n = 0;
        if (ful_tokenizer_encode(t, first, (size_t)(last - first), FUL_ENCODE_PLAIN, NULL, &n) !=
            FUL_OK) {
            fprintf(stderr, "fulgur: in the document that begins at byte %zu: %s\n",
                    (size_t)(first - start), ful_last_error());
            return false;
        }
        *most = n > *most ? n : *most;
    }
    return true;
}

static void print_result(const score *s, size_t window, int32_t bos, bool json, uint64_t ns)
{
    double mean = s->nll / (double)s->tokens;
    double bits = s->nll / log(2.0) / (double)s->bytes;
    if (json) {
        printf("{\"nll_per_token\": %.9g, \"perplexity\": %.9g, \"bits_per_byte\": %.9g, "
               "\"tokens\": %llu, \"bytes\": "
               "%llu, \"documents\": %llu, \"windows\": %llu, \"window\": %zu, \"bos\": %d, "
               "\"seconds\": %.3f}\n",
               mean, exp(mean), bits, (unsigned long long)s->tokens, (unsigned long long)s->bytes,
               (unsigned long long)s->documents, (unsigned long long)s->windows, window, bos,
               (double)ns / 1e9);
        return;
    }
    printf("perplexity %.4f   %.5f nats a token   %.5f bits a byte\n", exp(mean), mean, bits);
    printf("%llu tokens scored, %llu bytes, %llu documents, %llu windows of at most %zu tokens; "
           "each window starts %s\n",
           (unsigned long long)s->tokens, (unsigned long long)s->bytes,
           (unsigned long long)s->documents, (unsigned long long)s->windows, window,
           bos >= 0 ? "with the begin token" : "without a begin token, its first token unscored");
}

static int score_file(cli_model *m, const char *path, const char *text, size_t bytes,
                      const char *mark, bool no_bos, size_t window, bool json)
{
    int32_t bos = no_bos ? -1 : ful_model_get_info(m->model)->bos_token_id;
    size_t most = ful_model_get_plan(m->model)->max_tokens;
    size_t used = window && window < most ? window : most;
    if (used < 2) {
        fprintf(stderr, "fulgur perplexity: a window of %zu tokens leaves nothing to score\n",
                used);
        return CLI_FAILED;
    }
    score s = {0};
    uint64_t start = cli_now_ns();
    if (!score_text(m, &s, text, bytes, mark, bos, used))
        return cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    if (s.tokens == 0) {
        fprintf(stderr, "fulgur perplexity: %s: no token to score in %zu bytes\n", path, bytes);
        return CLI_FAILED;
    }
    print_result(&s, used, bos, json, cli_now_ns() - start);
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    uint32_t window = 0;
    const char *mark = default_mark;
    bool json = false, no_bos = false;
    cli_option options[CLI_MODEL_OPTIONS + 4] = {
        {'w', "window", "N", CLI_UINT, &window,
         "tokens read at a time (default: whole documents up to the context)"},
        {0, "mark", "LINE", CLI_TEXT, &mark,
         "line that ends a document (default <|endoftext|>); '' = none"},
        {0, "no-bos", NULL, CLI_FLAG, &no_bos,
         "do not put the model's begin token before each window"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
    };
    cli_model_options(&m, options + 4);
    int first, code = cli_parse(&cmd_perplexity, argc, argv, options,
                                sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 2 || window == 1) {
        fprintf(stderr, "usage: fulgur perplexity MODEL FILE [--window N] (N at least 2)\n");
        return CLI_USAGE;
    }
    size_t bytes;
    char *text = cli_read_file(argv[first + 1], &bytes);
    if (!text)
        return CLI_FAILED;
    cli_watch_interrupt();
    size_t most = 0;
    code = cli_open_tokenizer(&m, argv[first]);
    if (code == CLI_OK && !longest_document(m.tokenizer, text, bytes, mark, &most))
        code = CLI_FAILED;
    if (code == CLI_OK && most == 0) {
        fprintf(stderr, "fulgur perplexity: %s: no text in its %zu bytes\n", argv[first + 1],
                bytes);
        code = CLI_FAILED;
    }
    if (code == CLI_OK)
        code = cli_open_model(&m, argv[first], window ? window : most + 1);
    if (code == CLI_OK)
        code = score_file(&m, argv[first + 1], text, bytes, mark, no_bos, window, json);
    cli_close_model(&m);
    free(text);
    return code;
}

const cli_command cmd_perplexity = {"perplexity", "MODEL FILE [options]",
                                    "measure how well a model predicts a text", run};
