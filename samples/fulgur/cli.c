#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- options ---- */

enum { MAX_OPTIONS = 32, HELP_VALUE = 1000 };

static void print_help(const cli_command *c, const cli_option *options, int count)
{
    printf("usage: fulgur %s %s\n\n%s\n\noptions:\n", c->name, c->arguments, c->summary);
    for (int i = 0; i < count; i++) {
        const cli_option *o = &options[i];
        char left[64];
        int at = snprintf(left, sizeof left, o->letter ? "-%c, " : "    ", o->letter);
        snprintf(left + at, sizeof left - (size_t)at, "--%s%s%s", o->name, o->value ? " " : "",
                 o->value ? o->value : "");
        printf("  %-26s %s\n", left, o->help);
    }
    printf("  -h, --help                 this text\n");
}

static bool store(const cli_command *c, const cli_option *o, const char *text)
{
    char *end = NULL;
    errno = 0;
    switch (o->kind) {
    case CLI_FLAG:
        *(bool *)o->target = true;
        return true;
    case CLI_TEXT:
        *(const char **)o->target = text;
        return true;
    case CLI_UINT:
    case CLI_UINT64: {
        unsigned long long v = strtoull(text, &end, 10);
        bool fits = o->kind == CLI_UINT64 || v <= UINT32_MAX;
        if (*text >= '0' && *text <= '9' && *end == 0 && errno == 0 && fits) {
            if (o->kind == CLI_UINT)
                *(uint32_t *)o->target = (uint32_t)v;
            else
                *(uint64_t *)o->target = v;
            return true;
        }
        break;
    }
    case CLI_FLOAT: {
        float v = strtof(text, &end);
        if (end != text && *end == 0 && isfinite(v)) {
            *(float *)o->target = v;
            return true;
        }
        break;
    }
    }
    fprintf(stderr, "fulgur %s: --%s takes a number, not '%s'\n", c->name, o->name, text);
    return false;
}

int cli_parse(const cli_command *command, int argc, char **argv, const cli_option *options,
              int count, int *first)
{
    struct option longs[MAX_OPTIONS + 2];
    char shorts[2 * MAX_OPTIONS + 4] = "h";
    size_t at = 1;
    for (int i = 0; i < count && i < MAX_OPTIONS; i++) {
        const cli_option *o = &options[i];
        longs[i] = (struct option){o->name, o->value ? required_argument : no_argument, NULL,
                                   HELP_VALUE + 1 + i};
        if (o->letter) {
            shorts[at++] = o->letter;
            if (o->value)
                shorts[at++] = ':';
        }
    }
    shorts[at] = 0;
    longs[count] = (struct option){"help", no_argument, NULL, 'h'};
    longs[count + 1] = (struct option){0};
    optind = 1;
    for (int got; (got = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (got == 'h') {
            print_help(command, options, count);
            return CLI_OK;
        }
        const cli_option *o = got > HELP_VALUE ? &options[got - HELP_VALUE - 1] : NULL;
        for (int i = 0; i < count && !o; i++)
            if (options[i].letter == got)
                o = &options[i];
        if (!o) {
            fprintf(stderr, "try 'fulgur %s --help'\n", command->name);
            return CLI_USAGE;
        }
        if (!store(command, o, optarg))
            return CLI_USAGE;
    }
    *first = optind;
    return -1;
}

void cli_model_options(cli_model *m, cli_option *out)
{
    const cli_option options[CLI_MODEL_OPTIONS] = {
        {'d', "device", "WHICH", CLI_TEXT, &m->device_text,
         "device by number, UUID or part of its name"},
        {0, "precision", "f32|f16", CLI_TEXT, &m->precision_text, "arithmetic of matrix products"},
        {0, "decay", "hf|orig", CLI_TEXT, &m->decay_text, "decay rule of lightning layers"},
        {'c', "context", "N", CLI_UINT, &m->context, "tokens the session can hold"},
        {0, "chunk", "N", CLI_UINT, &m->chunk, "largest prefill chunk, in tokens"},
        {'v', "verbose", NULL, CLI_FLAG, &m->verbose, "say more on standard error"},
    };
    memcpy(out, options, sizeof options);
}

void cli_sampling_options(cli_sampling *s, cli_option *out)
{
    const cli_option options[CLI_SAMPLING_OPTIONS] = {
        {'s', "seed", "N", CLI_UINT64, &s->seed, "same seed, same text (default: from the clock)"},
        {'t', "temp", "X", CLI_FLOAT, &s->temp,
         "temperature; 0 = always the likeliest token (default 0.8)"},
        {0, "top-k", "N", CLI_UINT, &s->top_k,
         "draw from the N likeliest tokens; 0 = all (default 40)"},
        {0, "top-p", "X", CLI_FLOAT, &s->top_p,
         "draw from the likeliest tokens of total probability X"},
        {0, "min-p", "X", CLI_FLOAT, &s->min_p,
         "drop tokens less than X times as likely as the likeliest"},
        {'n', "max-tokens", "N", CLI_UINT, &s->max_tokens, "stop after N tokens (default 256)"},
        {0, "no-bos", NULL, CLI_FLAG, &s->no_bos, "do not put the model's begin token in front"},
    };
    *s = (cli_sampling){.seed = (uint64_t)time(NULL), .temp = 0.8f, .top_k = 40, .max_tokens = 256};
    memcpy(out, options, sizeof options);
}

ful_sampler_params cli_sampler(const cli_sampling *s)
{
    return (ful_sampler_params){.struct_size = sizeof(ful_sampler_params),
                                .seed = s->seed,
                                .temperature = s->temp,
                                .top_k = s->top_k,
                                .top_p = s->top_p,
                                .min_p = s->min_p};
}

/* ---- opening ---- */

int cli_fail(const char *context)
{
    fprintf(stderr, "fulgur: %s: %s\n", context, ful_last_error());
    return CLI_FAILED;
}

static void print_log(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    static const char *const names[] = {"", "error: ", "warning: ", "", "", ""};
    fprintf(stderr, "fulgur: %s%s\n", names[level], message);
}

bool cli_open_instance(ful_instance **instance, bool verbose)
{
    ful_result r = ful_instance_create(
        instance, ful_instance_params(.log = print_log,
                                      .log_level = verbose ? FUL_LOG_DEBUG : FUL_LOG_WARNING));
    return r == FUL_OK || cli_fail("starting") == CLI_OK;
}

static bool parse_uuid(const char *text, uint8_t uuid[16])
{
    int digits = 0;
    memset(uuid, 0, 16);
    for (; *text; text++) {
        if (*text == '-')
            continue;
        int v = *text >= '0' && *text <= '9'   ? *text - '0'
                : *text >= 'a' && *text <= 'f' ? *text - 'a' + 10
                : *text >= 'A' && *text <= 'F' ? *text - 'A' + 10
                                               : -1;
        if (v < 0 || digits == 32)
            return false;
        uuid[digits / 2] = (uint8_t)(uuid[digits / 2] << 4 | v);
        digits++;
    }
    return digits == 32;
}

static ful_result open_device(cli_model *m)
{
    ful_device_params p = {.struct_size = sizeof p};
    uint8_t uuid[16];
    uint32_t index;
    if (m->device_text) {
        char *end;
        unsigned long number = strtoul(m->device_text, &end, 10);
        index = (uint32_t)number;
        if (parse_uuid(m->device_text, uuid))
            p.uuid = uuid;
        else if (*m->device_text && *end == 0)
            p.index = &index;
        else
            p.name_part = m->device_text;
    }
    return ful_device_open(&m->device, m->instance, &p);
}

typedef struct bar {
    bool shown;
    uint64_t start_ns;
} bar;

static bool show_bar(void *ctx, const ful_progress *p)
{
    bar *b = ctx;
    static const char *const names[] = {"", "reading", "loading", "compiling"};
    if (cli_interrupted())
        return false;
    /* A bar that flashes by for a small model is noise. */
    if (!isatty(STDERR_FILENO) || cli_now_ns() - b->start_ns < 300000000u)
        return true;
    int full = (int)(30 * p->done / p->total);
    fprintf(stderr, "\r%-9s [%.*s%*s] %3d %%", names[p->phase], full,
            "##############################", 30 - full, "", (int)(100 * p->done / p->total));
    b->shown = true;
    return true;
}

static bool choose_plan(const cli_model *m, size_t context, ful_plan_params *p)
{
    *p = (ful_plan_params){.struct_size = sizeof *p,
                           .max_tokens = m->context ? m->context : context,
                           .chunk_tokens = m->chunk};
    if (m->precision_text && strcmp(m->precision_text, "f32") == 0)
        p->precision = FUL_PRECISION_F32;
    else if (m->precision_text && strcmp(m->precision_text, "f16") == 0)
        p->precision = FUL_PRECISION_F16;
    else if (m->precision_text)
        return fprintf(stderr, "fulgur: --precision is f32 or f16, not '%s'\n", m->precision_text),
               false;
    if (m->decay_text && strcmp(m->decay_text, "hf") == 0)
        p->decay = FUL_DECAY_HF;
    else if (m->decay_text && strcmp(m->decay_text, "orig") == 0)
        p->decay = FUL_DECAY_ORIG;
    else if (m->decay_text)
        return fprintf(stderr, "fulgur: --decay is hf or orig, not '%s'\n", m->decay_text), false;
    return true;
}

bool cli_open_model(cli_model *m, const char *path, bool with_tokenizer, size_t context)
{
    ful_plan_params params;
    ful_plan plan;
    bar b = {.start_ns = cli_now_ns()};
    if (!choose_plan(m, context, &params) || !cli_open_instance(&m->instance, m->verbose))
        return false;
    ful_result r = open_device(m);
    if (r == FUL_OK && params.max_tokens > 0) {
        ful_model_info info;
        r = ful_model_inspect(m->instance, path, &info);
        if (r == FUL_OK && !m->context && params.max_tokens > info.context_length)
            params.max_tokens = info.context_length;
    }
    if (r == FUL_OK)
        r = ful_model_plan(m->instance, path, m->device, &params, &plan);
    if (r == FUL_OK && with_tokenizer)
        r = ful_tokenizer_load(&m->tokenizer, m->instance, path);
    if (r == FUL_OK)
        r = ful_model_load(&m->model, m->device, path, &plan, show_bar, &b);
    if (b.shown)
        fprintf(stderr, "\r%60s\r", "");
    if (r == FUL_OK)
        r = ful_session_create(&m->session, m->model, ful_session_params(.profile = m->profile));
    m->load_ns = cli_now_ns() - b.start_ns;
    if (r != FUL_OK) {
        cli_fail(path);
        cli_close_model(m);
    }
    return r == FUL_OK;
}

void cli_close_model(cli_model *m)
{
    ful_session_destroy(&m->session);
    ful_model_destroy(&m->model);
    ful_tokenizer_destroy(&m->tokenizer);
    ful_device_close(&m->device);
    ful_instance_destroy(&m->instance);
}

/* ---- text ---- */

char *cli_read_file(const char *path, size_t *bytes)
{
    FILE *f = strcmp(path, "-") == 0 ? stdin : fopen(path, "rb");
    char *text = NULL;
    size_t capacity = 0;
    *bytes = 0;
    if (!f) {
        fprintf(stderr, "fulgur: %s: %s\n", path, strerror(errno));
        return NULL;
    }
    for (;;) {
        if (capacity - *bytes < 65536) {
            capacity = capacity ? 2 * capacity : 1 << 20;
            char *grown = realloc(text, capacity + 1);
            if (!grown) {
                fprintf(stderr, "fulgur: %s: out of memory after %zu bytes\n", path, *bytes);
                free(text);
                text = NULL;
                break;
            }
            text = grown;
        }
        size_t got = fread(text + *bytes, 1, capacity - *bytes, f);
        *bytes += got;
        text[*bytes] = 0;
        if (got == 0)
            break;
    }
    if (text && ferror(f)) {
        fprintf(stderr, "fulgur: %s: reading failed after %zu bytes\n", path, *bytes);
        free(text);
        text = NULL;
    }
    if (f != stdin)
        fclose(f);
    return text;
}

int32_t *cli_encode(const ful_tokenizer *t, const char *text, size_t bytes, int32_t bos,
                    size_t *count)
{
    size_t front = bos >= 0, n = 0;
    if (ful_tokenizer_encode(t, text, bytes, FUL_ENCODE_PLAIN, NULL, &n) != FUL_OK) {
        cli_fail("tokenizing");
        return NULL;
    }
    int32_t *ids = malloc((n + front + 1) * sizeof *ids);
    if (!ids) {
        fprintf(stderr, "fulgur: out of memory for %zu tokens\n", n);
        return NULL;
    }
    if (front)
        ids[0] = bos;
    if (n && ful_tokenizer_encode(t, text, bytes, FUL_ENCODE_PLAIN, ids + front, &n) != FUL_OK) {
        cli_fail("tokenizing");
        free(ids);
        return NULL;
    }
    *count = n + front;
    return ids;
}

void cli_print_json_string(const char *text, size_t bytes)
{
    char out[FUL_UTF8_STREAM_ROOM(1)];
    ful_utf8_stream stream = {0};
    putchar('"');
    for (size_t i = 0; i <= bytes; i++) {
        size_t n = i < bytes ? ful_utf8_stream_push(&stream, text + i, 1, out)
                             : ful_utf8_stream_finish(&stream, out);
        for (size_t j = 0; j < n; j++) {
            unsigned char c = (unsigned char)out[j];
            if (c == '"' || c == '\\')
                printf("\\%c", c);
            else if (c < 32)
                printf("\\u%04x", c);
            else
                putchar(c);
        }
    }
    putchar('"');
}

/* ---- Ctrl-C and time ---- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    (void)signal_number;
    interrupted = 1;
}

void cli_watch_interrupt(void)
{
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

void cli_clear_interrupt(void)
{
    interrupted = 0;
}

uint64_t cli_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
