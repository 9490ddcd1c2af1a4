/* fulgur perplexity: how well a model predicts a text, and how far its logits are from those of the
 * same model with other weights. */
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "documents.h"
#include "reference.h"

typedef struct score {
    const int32_t *ids; /* fed now, begin token included */
    size_t n;
    double nll;
    uint64_t tokens, bytes, documents, windows;
    reference *save, *against; /* NULL: not asked for */
    divergence apart;
    bool failed; /* in a file, which was said */
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
    if (s->save)
        s->failed = !reference_write(s->save, logits);
    if (s->against) {
        const float *other = reference_read(s->against);
        s->failed = !other || !divergence_add(&s->apart, other, logits, n);
    }
    return !s->failed && !cli_interrupted();
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
        if (s->save)
            reference_feed(s->save, fed, s->n);
        if (s->against)
            reference_feed(s->against, fed, s->n);
        r = ful_session_reset(m->session);
        if (r == FUL_OK)
            r = ful_prefill_logits(m->session, fed, s->n, add_row, s);
        s->windows++;
        at += take;
    }
    s->bytes += bytes;
    s->documents++;
    bool ok = ids && fed && r == FUL_OK;
    if (r != FUL_OK && !s->failed && !cli_interrupted())
        cli_fail("computing logits");
    free(ids);
    free(fed);
    return ok;
}

static bool score_text(cli_model *m, score *s, const char *text, size_t bytes, const char *mark,
                       int32_t bos, size_t window)
{
    const char *start = text, *end = text + bytes, *first, *last;
    cli_bar bar = {.start_ns = cli_now_ns(), .label = "scoring"};
    bool ok = true;
    while (ok && document_next(&text, end, mark, &first, &last)) {
        ok = score_document(m, s, first, (size_t)(last - first), bos, window);
        cli_show_bar(&bar, &(ful_progress){.done = (uint64_t)(text - start), .total = bytes});
    }
    cli_end_bar(&bar);
    return ok;
}

static void print_json(score *s, size_t window, int32_t bos, uint64_t ns)
{
    printf(
        "{\"nll_per_token\": %.9g, \"perplexity\": %.9g, \"bits_per_byte\": %.9g, \"tokens\": "
        "%llu, "
        "\"bytes\": %llu, \"documents\": %llu, \"windows\": %llu, \"window\": %zu, \"bos\": %d, ",
        s->nll / (double)s->tokens, exp(s->nll / (double)s->tokens),
        s->nll / log(2.0) / (double)s->bytes, (unsigned long long)s->tokens,
        (unsigned long long)s->bytes, (unsigned long long)s->documents,
        (unsigned long long)s->windows, window, bos);
    if (s->against)
        printf("\"kl\": %.9g, \"kl_median\": %.9g, \"kl_99\": %.9g, \"kl_max\": %.9g, "
               "\"top1_agreement\": %.9g, ",
               s->apart.kl / (double)s->apart.rows, divergence_quantile(&s->apart, 0.5),
               divergence_quantile(&s->apart, 0.99), s->apart.most,
               (double)s->apart.same_top / (double)s->apart.rows);
    printf("\"seconds\": %.3f}\n", (double)ns / 1e9);
}

static void print_text(score *s, size_t window, int32_t bos)
{
    double mean = s->nll / (double)s->tokens;
    printf("perplexity %.4f   %.5f nats a token   %.5f bits a byte\n", exp(mean), mean,
           s->nll / log(2.0) / (double)s->bytes);
    if (s->against) {
        double n = (double)s->apart.rows, kl = s->apart.kl / n;
        double spread = sqrt(fmax(s->apart.kl_squares / n - kl * kl, 0.0) / n);
        printf(
            "KL divergence from the reference %.6f +- %.6f nats a token (median %.6f, 99 %% below "
            "%.5f, most %.5f)   the same top token %.2f %%\n",
            kl, spread, divergence_quantile(&s->apart, 0.5), divergence_quantile(&s->apart, 0.99),
            s->apart.most, 100.0 * (double)s->apart.same_top / n);
    }
    printf("%llu tokens scored, %llu bytes, %llu documents, %llu windows of at most %zu tokens; "
           "each window starts %s\n",
           (unsigned long long)s->tokens, (unsigned long long)s->bytes,
           (unsigned long long)s->documents, (unsigned long long)s->windows, window,
           bos >= 0 ? "with the begin token" : "without a begin token, its first token unscored");
}

typedef struct request {
    const char *path, *mark, *save, *against;
    uint32_t window;
    bool no_bos, json;
} request;

static int score_file(cli_model *m, score *s, const request *q, const char *text, size_t bytes)
{
    int32_t bos = q->no_bos ? -1 : ful_model_get_info(m->model)->bos_token_id;
    size_t most = ful_model_get_plan(m->model)->max_tokens;
    size_t used = q->window && q->window < most ? q->window : most;
    if (used < 2) {
        fprintf(stderr, "fulgur perplexity: a window of %zu tokens leaves nothing to score\n",
                used);
        return CLI_FAILED;
    }
    uint64_t start = cli_now_ns();
    if (!score_text(m, s, text, bytes, q->mark, bos, used))
        return cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    if (s->tokens == 0) {
        fprintf(stderr, "fulgur perplexity: %s: no token to score in %zu bytes\n", q->path, bytes);
        return CLI_FAILED;
    }
    if (s->against && !reference_end(s->against, true))
        return CLI_FAILED;
    if (q->json)
        print_json(s, used, bos, cli_now_ns() - start);
    else
        print_text(s, used, bos);
    return s->save && !reference_end(s->save, true) ? CLI_FAILED : CLI_OK;
}

/* With the files of --save-logits and --kl. */
static int score_with_files(cli_model *m, const request *q, const char *text, size_t bytes)
{
    uint32_t vocab = ful_model_get_info(m->model)->vocab_size;
    reference save = {.path = NULL}, against = {.path = NULL};
    score s = {.save = q->save ? &save : NULL, .against = q->against ? &against : NULL};
    int code = CLI_FAILED;
    if ((!q->save || reference_create(&save, q->save, vocab)) &&
        (!q->against || reference_open(&against, q->against, vocab)))
        code = score_file(m, &s, q, text, bytes);
    if (q->save)
        reference_end(&save, false);
    if (q->against)
        reference_end(&against, false);
    free(s.apart.each);
    return code;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    request q = {.mark = document_mark};
    cli_option options[CLI_MODEL_OPTIONS + 6] = {
        {'w', "window", "N", CLI_UINT, &q.window,
         "tokens read at a time (default: whole documents up to the context)"},
        {0, "mark", "LINE", CLI_TEXT, &q.mark,
         "line that ends a document (default <|endoftext|>); '' = none"},
        {0, "no-bos", NULL, CLI_FLAG, &q.no_bos,
         "do not put the model's begin token before each window"},
        {0, "save-logits", "FILE", CLI_TEXT, &q.save,
         "keep the logits of every scored token: 4 bytes for each word of the vocabulary"},
        {0, "kl", "FILE", CLI_TEXT, &q.against,
         "hold the logits against those that --save-logits kept of the same text"},
        {0, "json", NULL, CLI_FLAG, &q.json, "print JSON"},
    };
    cli_model_options(&m, options + 6);
    int first, code = cli_parse(&cmd_perplexity, argc, argv, options,
                                sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 2 || q.window == 1) {
        fprintf(stderr, "usage: fulgur perplexity MODEL FILE [--window N] (N at least 2)\n");
        return CLI_USAGE;
    }
    size_t bytes;
    q.path = argv[first + 1];
    char *text = cli_read_file(q.path, &bytes);
    if (!text)
        return CLI_FAILED;
    cli_watch_interrupt();
    size_t most = 0;
    code = cli_open_tokenizer(&m, argv[first]);
    if (code == CLI_OK && !document_longest(m.tokenizer, text, bytes, q.mark, &most))
        code = CLI_FAILED;
    if (code == CLI_OK && most == 0) {
        fprintf(stderr, "fulgur perplexity: %s: no text in its %zu bytes\n", q.path, bytes);
        code = CLI_FAILED;
    }
    if (code == CLI_OK)
        code = cli_open_model(&m, argv[first], q.window ? q.window : most + 1);
    if (code == CLI_OK)
        code = score_with_files(&m, &q, text, bytes);
    cli_close_model(&m);
    free(text);
    return code;
}

const cli_command cmd_perplexity = {"perplexity", "MODEL FILE [options]",
                                    "measure how well a model predicts a text", run};
