/* fulgur chat: a conversation in the models' own chat format. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"
#include "print_stats.h"

typedef struct chat {
    cli_model *m;
    const cli_sampling *sampling;
    ful_chat_format format;
    ful_chat_message *messages;
    size_t count, capacity;
    char *reply; /* of the assistant, while it grows */
    size_t reply_bytes, reply_capacity;
    ful_utf8_stream stream;
    int32_t end_token;
} chat;

static bool add_message(chat *c, ful_role role, const char *text, size_t bytes)
{
    if (c->count == c->capacity) {
        size_t capacity = c->capacity ? 2 * c->capacity : 16;
        ful_chat_message *grown = realloc(c->messages, capacity * sizeof *grown);
        if (!grown)
            return false;
        c->messages = grown;
        c->capacity = capacity;
    }
    char *copy = malloc(bytes + 1);
    if (!copy)
        return false;
    memcpy(copy, text, bytes);
    copy[bytes] = 0;
    c->messages[c->count++] = (ful_chat_message){.role = role, .text = copy};
    return true;
}

static bool on_token(void *ctx, int32_t token)
{
    chat *c = ctx;
    size_t n;
    const char *bytes = ful_tokenizer_token_bytes(c->m->tokenizer, token, &n);
    char *out = malloc(FUL_UTF8_STREAM_ROOM(n));
    if (out && bytes) {
        fwrite(out, 1, ful_utf8_stream_push(&c->stream, bytes, n, out), stdout);
        fflush(stdout);
    }
    free(out);
    if (c->reply_bytes + n + 1 > c->reply_capacity) {
        size_t capacity = 2 * (c->reply_bytes + n) + 1024;
        char *grown = realloc(c->reply, capacity);
        if (!grown)
            return false;
        c->reply = grown;
        c->reply_capacity = capacity;
    }
    if (bytes)
        memcpy(c->reply + c->reply_bytes, bytes, n);
    c->reply_bytes += bytes ? n : 0;
    return !cli_interrupted();
}

/* The conversation as tokens, begin token in front where the model has one. */
static int32_t *conversation(const chat *c, size_t *count)
{
    const ful_chat_params *params = ful_chat_params(.format = c->format);
    int32_t bos = c->sampling->no_bos ? -1 : ful_model_get_info(c->m->model)->bos_token_id;
    size_t n = 0, front = bos >= 0;
    if (ful_chat_encode(c->m->tokenizer, c->messages, c->count, params, NULL, &n) != FUL_OK)
        return NULL;
    int32_t *ids = malloc((n + front) * sizeof *ids);
    if (ids && front)
        ids[0] = bos;
    if (ids && ful_chat_encode(c->m->tokenizer, c->messages, c->count, params, ids + front, &n) !=
                   FUL_OK) {
        free(ids);
        return NULL;
    }
    *count = n + front;
    return ids;
}

/* Feeds what the session does not hold yet; starts over if what it holds is no prefix. */
static ful_result feed(chat *c, const int32_t *ids, size_t n)
{
    const int32_t *have;
    size_t held = ful_session_tokens(c->m->session, &have), same = 0;
    while (same < held && same < n && have[same] == ids[same])
        same++;
    if (same < held || same == n) {
        ful_result r = ful_session_reset(c->m->session);
        if (r != FUL_OK)
            return r;
        same = 0;
    }
    return ful_prefill(c->m->session, ids + same, n - same);
}

static bool turn(chat *c)
{
    size_t n;
    int32_t *ids = conversation(c, &n);
    ful_sampler_params sampler = cli_sampler(c->sampling);
    ful_result r = ids ? feed(c, ids, n) : FUL_ERR_ARGUMENT;
    free(ids);
    c->reply_bytes = 0;
    c->stream = (ful_utf8_stream){0};
    if (r == FUL_OK)
        r = ful_generate(c->m->session,
                         ful_generate_params(.max_tokens = c->sampling->max_tokens,
                                             .sampler = &sampler, .stop_tokens = &c->end_token,
                                             .n_stop_tokens = c->end_token >= 0),
                         on_token, c, NULL);
    char end[8];
    fwrite(end, 1, ful_utf8_stream_finish(&c->stream, end), stdout);
    putchar('\n');
    cli_clear_interrupt();
    if (r != FUL_OK)
        return cli_fail("answering") == CLI_OK;
    return add_message(c, FUL_ROLE_ASSISTANT, c->reply ? c->reply : "", c->reply_bytes);
}

/* One line of any length from standard input, without its newline; false at the end. */
static bool read_line(char **line, size_t *capacity)
{
    size_t n = 0;
    for (int ch; (ch = getchar()) != EOF;) {
        if (n + 2 > *capacity) {
            size_t larger = *capacity ? 2 * *capacity : 256;
            char *grown = realloc(*line, larger);
            if (!grown)
                return false;
            *line = grown;
            *capacity = larger;
        }
        if (ch == '\n') {
            (*line)[n] = 0;
            return true;
        }
        (*line)[n++] = (char)ch;
        (*line)[n] = 0;
    }
    return n > 0;
}

static int talk(chat *c, bool stats)
{
    char *line = NULL;
    size_t capacity = 0;
    int code = CLI_OK;
    fprintf(stderr, "Type a message; Ctrl-C stops an answer, Ctrl-D or /quit ends.\n");
    for (;;) {
        fputs("> ", stdout);
        fflush(stdout);
        if (!read_line(&line, &capacity) || cli_interrupted() || strcmp(line, "/quit") == 0)
            break;
        if (!*line)
            continue;
        if (!add_message(c, FUL_ROLE_USER, line, strlen(line)) || !turn(c)) {
            code = CLI_FAILED;
            break;
        }
    }
    putchar('\n');
    free(line);
    if (stats)
        print_stats(c->m, 0);
    return code;
}

static bool choose_format(const ful_tokenizer *t, const char *text, ful_chat_format *format)
{
    static const char m1_mark[] = "<begin_of_document>";
    if (!text)
        *format = ful_tokenizer_token_id(t, m1_mark, sizeof m1_mark - 1) >= 0 ? FUL_CHAT_M1
                                                                              : FUL_CHAT_TEXT_01;
    else if (strcmp(text, "m1") == 0)
        *format = FUL_CHAT_M1;
    else if (strcmp(text, "text-01") == 0)
        *format = FUL_CHAT_TEXT_01;
    else
        return fprintf(stderr, "fulgur: --format is text-01 or m1, not '%s'\n", text), false;
    return true;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    cli_sampling sampling;
    const char *system = NULL, *format = NULL;
    bool stats = false;
    cli_option options[CLI_MODEL_OPTIONS + CLI_SAMPLING_OPTIONS + 3] = {
        {0, "system", "TEXT", CLI_TEXT, &system, "system message"},
        {0, "format", "text-01|m1", CLI_TEXT, &format,
         "chat format (default: m1 if the tokenizer knows its mark)"},
        {0, "stats", NULL, CLI_FLAG, &stats, "print times and memory at the end"},
    };
    cli_sampling_options(&sampling, options + 3);
    cli_model_options(&m, options + 3 + CLI_SAMPLING_OPTIONS);
    int first,
        code = cli_parse(&cmd_chat, argc, argv, options, sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 1) {
        fprintf(stderr, "usage: fulgur chat MODEL [options]\n");
        return CLI_USAGE;
    }
    cli_watch_interrupt();
    if (!cli_open_model(&m, argv[first], true, 0))
        return cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    static const char end_mark[] = "<end_of_sentence>";
    chat c = {.m = &m, .sampling = &sampling};
    c.end_token = ful_tokenizer_token_id(m.tokenizer, end_mark, sizeof end_mark - 1);
    code = CLI_FAILED;
    if (choose_format(m.tokenizer, format, &c.format) &&
        (!system || add_message(&c, FUL_ROLE_SYSTEM, system, strlen(system))))
        code = talk(&c, stats);
    for (size_t i = 0; i < c.count; i++)
        free((void *)(uintptr_t)c.messages[i].text);
    free(c.messages);
    free(c.reply);
    cli_close_model(&m);
    return code;
}

const cli_command cmd_chat = {"chat", "MODEL [options]", "talk with a model in its chat format",
                              run};
