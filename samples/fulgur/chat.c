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
    ful_chat_message *messages; /* replies are left empty: their tokens are in ids */
    size_t count, capacity;
    cli_text text; /* the conversation, the model's own tokens as it drew them */
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
    return !cli_interrupted();
}

/* The tokens of all messages, with the head of a reply or without. NULL: see ful_last_error. */
static int32_t *encode_messages(const chat *c, bool head, size_t *count)
{
    const ful_chat_params *params = ful_chat_params(.format = c->format, .no_reply = !head);
    size_t n = 0;
    if (ful_chat_encode(c->m->tokenizer, c->messages, c->count, params, NULL, &n) != FUL_OK)
        return NULL;
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (ids && ful_chat_encode(c->m->tokenizer, c->messages, c->count, params, ids, &n) != FUL_OK) {
        free(ids);
        return NULL;
    }
    *count = n;
    return ids;
}

/* Adds to ids what the messages have beyond their first `known` tokens. Text that the model wrote
 * may come back from the tokenizer as other tokens; this way what the session holds stays valid. */
static bool add_messages(chat *c, bool head, size_t *known)
{
    size_t n = 0;
    int32_t *ids = encode_messages(c, head, &n);
    bool ok = ids && n >= *known && cli_text_add(&c->text, ids + *known, n - *known);
    *known = n;
    free(ids);
    return ok;
}

static ful_result answer(chat *c)
{
    ful_sampler_params sampler = cli_sampler(c->sampling);
    ful_stop stop;
    c->stream = (ful_utf8_stream){0};
    ful_result r = cli_generate(
        c->m, &c->text,
        ful_generate_params(.max_tokens = c->sampling->max_tokens, .sampler = &sampler,
                            .stop_tokens = &c->end_token, .n_stop_tokens = c->end_token >= 0),
        on_token, c, &stop);
    char end[8];
    fwrite(end, 1, ful_utf8_stream_finish(&c->stream, end), stdout);
    putchar('\n');
    fflush(stdout);
    return r == FUL_ERR_CANCELLED && cli_interrupted() && c->m->session ? FUL_OK : r;
}

/* One message and its answer; *known counts the tokens of the messages so far. */
static bool turn(chat *c, const char *line, size_t *known)
{
    if (!add_message(c, FUL_ROLE_USER, line, strlen(line)) || !add_messages(c, true, known))
        return cli_fail("preparing the message") == CLI_OK;
    if (answer(c) != FUL_OK)
        return cli_fail("answering") == CLI_OK;
    cli_clear_interrupt();
    if (!add_message(c, FUL_ROLE_ASSISTANT, "", 0) || !add_messages(c, false, known))
        return cli_fail("preparing the conversation") == CLI_OK;
    return true;
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
    size_t capacity = 0, known = 0;
    int code = CLI_OK;
    bool person = cli_is_terminal(stdin);
    int32_t bos = c->sampling->no_bos ? -1 : ful_model_get_info(c->m->model)->bos_token_id;
    if (bos >= 0 && !cli_text_add(&c->text, &bos, 1))
        return CLI_FAILED;
    if (person)
        fprintf(stderr, "Type a message; Ctrl-C stops an answer, Ctrl-D or /quit ends.\n");
    while (code == CLI_OK) {
        if (person) {
            fputs("> ", stdout);
            fflush(stdout);
        }
        bool got = read_line(&line, &capacity);
        if (cli_interrupted())
            code = CLI_INTERRUPTED;
        else if (!got || strcmp(line, "/quit") == 0)
            break;
        else if (*line && !turn(c, line, &known))
            code = CLI_FAILED;
    }
    if (person)
        putchar('\n');
    free(line);
    if (stats && c->m->session)
        print_stats(c->m, 0);
    return code;
}

static ful_chat_format choose_format(const ful_tokenizer *t, const char *text)
{
    if (!text)
        return ful_tokenizer_chat_format(t, NULL);
    return strcmp(text, "m1") == 0 ? FUL_CHAT_M1 : FUL_CHAT_TEXT_01;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    cli_sampling sampling;
    const char *system = NULL, *format = NULL;
    bool stats = false;
    cli_option options[CLI_MODEL_OPTIONS + CLI_SAMPLING_OPTIONS + 3] = {
        {0, "system", "TEXT", CLI_TEXT, &system, "system message"},
        {0, "format", "text-01|m1", CLI_CHOICE, &format,
         "chat format (default: the one that `fulgur inspect` names)"},
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
    code = cli_open_tokenizer(&m, argv[first]);
    if (code == CLI_OK)
        code = cli_open_model(&m, argv[first], 0);
    if (code != CLI_OK)
        return code;
    static const char end_mark[] = "<end_of_sentence>";
    chat c = {.m = &m, .sampling = &sampling, .format = choose_format(m.tokenizer, format)};
    c.end_token = ful_tokenizer_token_id(m.tokenizer, end_mark, sizeof end_mark - 1);
    if (!system || add_message(&c, FUL_ROLE_SYSTEM, system, strlen(system)))
        code = talk(&c, stats);
    else
        code = CLI_FAILED;
    for (size_t i = 0; i < c.count; i++)
        free((void *)(uintptr_t)c.messages[i].text);
    free(c.messages);
    free(c.text.ids);
    cli_close_model(&m);
    return code;
}

const cli_command cmd_chat = {"chat", "MODEL [options]", "talk with a model in its chat format",
                              run};
