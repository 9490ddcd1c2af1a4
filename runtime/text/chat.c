/* Conversations to prompts, as the published chat templates render them. */
#include <string.h>

#include "text/tokenizer.h"

static const char TURN[] = "<beginning_of_sentence>";
static const char TURN_END[] = "<end_of_sentence>";
static const char DOCUMENT[] = "<begin_of_document>";

/* Receives the prompt piece by piece; marks are the format's own special tokens. */
typedef struct chat_writer {
    char *out; /* NULL: only measure */
    size_t capacity, bytes;
    text_run *runs; /* NULL: only count; neighbouring text is one run */
    size_t n_runs;
    const ful_tokenizer *tokenizer; /* to look marks up, if runs are wanted */
    const char *missing;            /* a mark the tokenizer lacks */
    bool in_text;                   /* the last run is text */
} chat_writer;

static void bytes_put(chat_writer *w, const char *text, size_t bytes)
{
    if (w->out != NULL && w->bytes <= w->capacity && bytes <= w->capacity - w->bytes && bytes > 0)
        memcpy(w->out + w->bytes, text, bytes);
    w->bytes += bytes;
}

static void text_put(chat_writer *w, const char *text)
{
    size_t bytes = strlen(text);
    if (bytes == 0)
        return;
    if (!w->in_text) {
        if (w->runs != NULL)
            w->runs[w->n_runs] = (text_run){.text = w->out + w->bytes, .token = -1};
        w->n_runs++;
        w->in_text = true;
    }
    if (w->runs != NULL)
        w->runs[w->n_runs - 1].bytes += bytes;
    bytes_put(w, text, bytes);
}

static void mark_put(chat_writer *w, const char *mark)
{
    size_t bytes = strlen(mark);
    if (w->runs != NULL) {
        int32_t token = ful_tokenizer_token_id(w->tokenizer, mark, bytes);
        if (token < 0)
            w->missing = mark;
        w->runs[w->n_runs] = (text_run){.token = token};
    }
    w->n_runs++;
    w->in_text = false;
    bytes_put(w, mark, bytes);
}

static void turn_begin(chat_writer *w, const char *head)
{
    mark_put(w, TURN);
    text_put(w, head);
    text_put(w, "\n");
}

static void turn_end(chat_writer *w)
{
    mark_put(w, TURN_END);
    text_put(w, "\n");
}

static const char *message_text(const ful_chat_message *message)
{
    return message->text ? message->text : "";
}

static const char USER[] = "user name=user";
static const char ASSISTANT[] = "ai name=assistant";
static const char SYSTEM[] = "system ai_setting=assistant";

static void text_01_write(chat_writer *w, const ful_chat_message *messages, size_t n_messages,
                          const ful_chat_params *params)
{
    for (size_t i = 0; i < n_messages; i++) {
        const ful_chat_message *m = &messages[i];
        if (m->role == FUL_ROLE_TOOL) {
            turn_begin(w, "system function_response=functions");
            text_put(w, "{\"name\": \"");
            text_put(w, m->name);
            text_put(w, "\", \"response\": ");
            text_put(w, message_text(m));
            text_put(w, "}");
        } else {
            turn_begin(w, m->role == FUL_ROLE_SYSTEM ? SYSTEM
                          : m->role == FUL_ROLE_USER ? USER
                                                     : ASSISTANT);
            text_put(w, message_text(m));
        }
        turn_end(w);
    }
    for (size_t i = 0; i < params->n_tools; i++) {
        turn_begin(w, "system function_setting=functions");
        text_put(w, params->tools[i]);
        turn_end(w);
    }
}

static void m1_system_write(chat_writer *w, const ful_chat_message *messages, size_t n_messages)
{
    bool any = false;
    for (size_t i = 0; i < n_messages; i++)
        any = any || (messages[i].role == FUL_ROLE_SYSTEM && message_text(&messages[i])[0] != '\0');
    if (!any)
        return;
    turn_begin(w, SYSTEM);
    for (size_t i = 0; i < n_messages; i++)
        if (messages[i].role == FUL_ROLE_SYSTEM)
            text_put(w, message_text(&messages[i]));
    turn_end(w);
}

static void m1_tools_write(chat_writer *w, const ful_chat_params *params)
{
    if (params->n_tools == 0)
        return;
    turn_begin(w, "system tool_setting=tools");
    text_put(w, "You are provided with these tools:\n<tools>\n");
    for (size_t i = 0; i < params->n_tools; i++) {
        text_put(w, params->tools[i]);
        text_put(w, "\n");
    }
    text_put(w, "</tools>\n\nIf you need to call tools, please respond with "
                "<tool_calls></tool_calls> XML tags, and provide tool-name and "
                "json-object of "
                "arguments, following the format below:\n<tool_calls>\n"
                "{name: <tool-name-1>, arguments: "
                "<args-json-object-1>}\n...\n</tool_calls>");
    turn_end(w);
}

static void m1_write(chat_writer *w, const ful_chat_message *messages, size_t n_messages,
                     const ful_chat_params *params)
{
    mark_put(w, DOCUMENT);
    m1_system_write(w, messages, n_messages);
    m1_tools_write(w, params);
    for (size_t i = 0; i < n_messages; i++) {
        const ful_chat_message *m = &messages[i];
        if (m->role == FUL_ROLE_SYSTEM)
            continue;
        if (m->role != FUL_ROLE_TOOL) {
            turn_begin(w, m->role == FUL_ROLE_USER ? USER : ASSISTANT);
            text_put(w, message_text(m));
            turn_end(w);
            continue;
        }
        if (i == 0 || messages[i - 1].role != FUL_ROLE_TOOL)
            turn_begin(w, "tool name=tools");
        text_put(w, "tool name: ");
        text_put(w, m->name);
        text_put(w, "\ntool result: ");
        text_put(w, message_text(m));
        text_put(w, "\n\n");
        if (i + 1 == n_messages || messages[i + 1].role != FUL_ROLE_TOOL)
            turn_end(w);
    }
}

/* Checks everything and copies the params with the caller's struct_size respected. */
static ful_result chat_check(const ful_chat_message *messages, size_t n_messages,
                             const ful_chat_params *given, ful_chat_params *params)
{
    if (given == NULL || (messages == NULL && n_messages > 0))
        return fail(FUL_ERR_ARGUMENT, "chat: params or messages is NULL");
    TRY(params_copy(params, sizeof *params, given, "ful_chat_params"));
    if (params->format != FUL_CHAT_TEXT_01 && params->format != FUL_CHAT_M1)
        return fail(FUL_ERR_ARGUMENT, "chat: unknown format %d", (int)params->format);
    for (size_t i = 0; i < n_messages; i++) {
        if (messages[i].role < FUL_ROLE_SYSTEM || messages[i].role > FUL_ROLE_TOOL)
            return fail(FUL_ERR_ARGUMENT, "chat: messages[%zu] has the unknown role %d", i,
                        (int)messages[i].role);
        if (messages[i].role == FUL_ROLE_TOOL && messages[i].name == NULL)
            return fail(FUL_ERR_ARGUMENT, "chat: messages[%zu] is a tool's, but has no name", i);
    }
    for (size_t i = 0; i < params->n_tools; i++)
        if (params->tools == NULL || params->tools[i] == NULL)
            return fail(FUL_ERR_ARGUMENT, "chat: tools[%zu] is NULL", i);
    return FUL_OK;
}

static void chat_write(chat_writer *w, const ful_chat_message *messages, size_t n_messages,
                       const ful_chat_params *params)
{
    if (params->format == FUL_CHAT_M1)
        m1_write(w, messages, n_messages, params);
    else
        text_01_write(w, messages, n_messages, params);
    if (!params->no_reply)
        turn_begin(w, ASSISTANT);
}

ful_result ful_chat_text(const ful_chat_message *messages, size_t n_messages,
                         const ful_chat_params *params, char *out, size_t *bytes)
{
    if (bytes == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_chat_text: bytes is NULL");
    chat_writer w = {.out = out, .capacity = out ? *bytes : 0};
    ful_chat_params p;
    *bytes = 0;
    TRY(chat_check(messages, n_messages, params, &p));
    chat_write(&w, messages, n_messages, &p);
    *bytes = w.bytes;
    if (out != NULL && w.bytes > w.capacity)
        return fail(FUL_ERR_ARGUMENT, "ful_chat_text: room for %zu bytes, %zu are needed",
                    w.capacity, w.bytes);
    return FUL_OK;
}

ful_result ful_chat_encode(const ful_tokenizer *t, const ful_chat_message *messages,
                           size_t n_messages, const ful_chat_params *params, int32_t *out,
                           size_t *count)
{
    if (t == NULL || count == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_chat_encode: tokenizer or count is NULL");
    size_t capacity = *count;
    *count = 0;
    ful_chat_params p;
    TRY(chat_check(messages, n_messages, params, &p));
    chat_writer size = {0};
    chat_write(&size, messages, n_messages, &p);
    chat_writer w = {.capacity = size.bytes, .tokenizer = t};
    w.out = mem_alloc(&t->alloc, size.bytes);
    w.runs = mem_array(&t->alloc, size.n_runs, sizeof *w.runs);
    ful_result result = w.out && w.runs ? FUL_OK : mem_fail(size.bytes, "a prompt");
    if (result == FUL_OK) {
        chat_write(&w, messages, n_messages, &p);
        result = text_check(w.out, w.bytes);
    }
    if (result == FUL_OK && w.missing != NULL)
        result = fail(FUL_ERR_UNSUPPORTED, "the tokenizer has no token \"%s\" for this chat format",
                      w.missing);
    if (result == FUL_OK) {
        *count = capacity;
        result = tokenizer_encode_runs(
            t, w.runs, w.n_runs, p.trust_text ? FUL_ENCODE_ADDED : FUL_ENCODE_PLAIN, out, count);
    }
    mem_free(&t->alloc, w.out);
    mem_free(&t->alloc, w.runs);
    return result;
}
