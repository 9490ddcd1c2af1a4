/* fulgur run: continue a prompt. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "print_stats.h"

typedef struct story {
    const ful_tokenizer *tokenizer;
    ful_utf8_stream stream;
    char *text; /* for --json */
    size_t bytes, capacity, tokens;
    bool json;
    uint64_t start_ns, first_ns;
} story;

static void emit(story *s, const char *text, size_t bytes)
{
    if (!s->json) {
        fwrite(text, 1, bytes, stdout);
        fflush(stdout);
        return;
    }
    if (s->bytes + bytes > s->capacity) {
        size_t capacity = 2 * (s->bytes + bytes) + 4096;
        char *grown = realloc(s->text, capacity);
        if (!grown)
            return;
        s->text = grown;
        s->capacity = capacity;
    }
    memcpy(s->text + s->bytes, text, bytes);
    s->bytes += bytes;
}

static bool on_token(void *ctx, int32_t token)
{
    story *s = ctx;
    size_t n;
    const char *bytes = ful_tokenizer_token_bytes(s->tokenizer, token, &n);
    if (s->tokens++ == 0)
        s->first_ns = cli_now_ns();
    char *out = malloc(FUL_UTF8_STREAM_ROOM(n));
    if (out && bytes)
        emit(s, out, ful_utf8_stream_push(&s->stream, bytes, n, out));
    free(out);
    return !cli_interrupted();
}

static void finish(story *s)
{
    char end[8];
    emit(s, end, ful_utf8_stream_finish(&s->stream, end));
    if (!s->json)
        putchar('\n');
}

static void print_json(const story *s, const cli_model *m, const char *stop)
{
    ful_stats st;
    ful_session_stats(m->session, &st);
    printf("{\"text\": ");
    cli_print_json_string(s->text ? s->text : "", s->bytes);
    printf(", \"tokens\": %zu, \"stop\": \"%s\", \"device\": ", s->tokens, stop);
    const char *name = ful_device_get_info(m->device)->name;
    cli_print_json_string(name, strlen(name));
    printf(", \"load_ms\": %.1f, \"prefill_tokens\": %llu, \"prefill_ms\": %.3f, "
           "\"decode_tokens\": %llu, "
           "\"decode_ms\": %.3f, \"first_token_ms\": %.3f}\n",
           (double)m->load_ns / 1e6, (unsigned long long)st.prefill_tokens,
           (double)st.prefill_ns / 1e6, (unsigned long long)st.decode_tokens,
           (double)st.decode_ns / 1e6,
           s->first_ns ? (double)(s->first_ns - s->start_ns) / 1e6 : 0.0);
}

static int generate(cli_model *m, const cli_sampling *sampling, const char *prompt, size_t bytes,
                    bool json, bool stats, uint64_t start_ns)
{
    const ful_model_info *info = ful_model_get_info(m->model);
    int32_t bos = sampling->no_bos ? -1 : info->bos_token_id;
    size_t n;
    int32_t *ids = cli_encode(m->tokenizer, prompt, bytes, bos, &n);
    if (!ids)
        return CLI_FAILED;
    if (n == 0) {
        free(ids);
        fprintf(stderr, "fulgur run: the prompt is empty and the model has no begin token\n");
        return CLI_USAGE;
    }
    cli_text text = {.ids = ids, .count = n, .capacity = n};
    story s = {.tokenizer = m->tokenizer, .json = json, .start_ns = start_ns};
    ful_sampler_params sampler = cli_sampler(sampling);
    ful_stop stop = FUL_STOP_NONE;
    if (!json) {
        fwrite(prompt, 1, bytes, stdout);
        fflush(stdout);
    }
    ful_result r = cli_generate(
        m, &text, ful_generate_params(.max_tokens = sampling->max_tokens, .sampler = &sampler),
        on_token, &s, &stop);
    free(text.ids);
    finish(&s);
    if (r == FUL_ERR_CANCELLED && cli_interrupted() && m->session) {
        stop = FUL_STOP_CALLBACK; /* in the prompt */
    } else if (r != FUL_OK) {
        free(s.text);
        return cli_fail("generating");
    }
    static const char *const stops[] = {"none", "end", "max-tokens", "interrupted", "context-full"};
    if (json)
        print_json(&s, m, stops[stop]);
    if (stats)
        print_stats(m, s.first_ns ? s.first_ns - start_ns : 0);
    free(s.text);
    return cli_interrupted() ? CLI_INTERRUPTED : CLI_OK;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    cli_sampling sampling;
    const char *prompt = NULL, *file = NULL;
    bool json = false, stats = false;
    uint64_t start_ns = cli_now_ns();
    cli_option options[CLI_MODEL_OPTIONS + CLI_SAMPLING_OPTIONS + 5] = {
        {'p', "prompt", "TEXT", CLI_TEXT, &prompt, "what to continue"},
        {'f', "file", "FILE", CLI_TEXT, &file, "read the prompt from a file; - = standard input"},
        {0, "stats", NULL, CLI_FLAG, &stats, "print times and memory at the end"},
        {0, "profile", NULL, CLI_FLAG, &m.profile,
         "with --stats: device time of every op of the last token"},
        {0, "json", NULL, CLI_FLAG, &json, "print one JSON object instead of text"},
    };
    cli_sampling_options(&sampling, options + 5);
    cli_model_options(&m, options + 5 + CLI_SAMPLING_OPTIONS);
    int first,
        code = cli_parse(&cmd_run, argc, argv, options, sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 1 || (prompt && file)) {
        fprintf(stderr, "usage: fulgur run MODEL -p PROMPT (try --help)\n");
        return CLI_USAGE;
    }
    char *read = NULL;
    size_t bytes = prompt ? strlen(prompt) : 0;
    if (file) {
        read = cli_read_file(file, &bytes);
        if (!read)
            return CLI_FAILED;
        prompt = read;
    }
    cli_watch_interrupt();
    code = cli_open_tokenizer(&m, argv[first]);
    if (code == CLI_OK)
        code = cli_open_model(&m, argv[first], 0);
    if (code == CLI_OK)
        code = generate(&m, &sampling, prompt ? prompt : "", bytes, json, stats, start_ns);
    cli_close_model(&m);
    free(read);
    return code;
}

const cli_command cmd_run = {"run", "MODEL -p PROMPT [options]",
                             "continue a prompt, streaming text", run};
