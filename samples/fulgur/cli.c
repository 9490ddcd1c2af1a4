/* What the commands share: options, files, text, Ctrl-C. */
#include "cli.h"

#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifdef _WIN32
#include <io.h>
#else
#include <unistd.h>
#endif

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

/* True if `text` is one of the words in "one|two". */
static bool is_choice(const char *words, const char *text)
{
    size_t bytes = strlen(text);
    for (const char *w = words; *w;) {
        size_t n = strcspn(w, "|");
        if (n == bytes && memcmp(w, text, n) == 0)
            return true;
        w += n + (w[n] == '|');
    }
    return false;
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
    case CLI_CHOICE:
        if (is_choice(o->value, text)) {
            *(const char **)o->target = text;
            return true;
        }
        fprintf(stderr, "fulgur %s: --%s is one of %s, not '%s'\n", c->name, o->name, o->value,
                text);
        return false;
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
    case CLI_FLOAT:
    case CLI_SHARE: {
        float v = strtof(text, &end);
        bool fits = v >= 0.0f && (o->kind == CLI_FLOAT || v <= 1.0f);
        if (end != text && *end == 0 && isfinite(v) && fits) {
            *(float *)o->target = v;
            return true;
        }
        break;
    }
    }
    static const char *const wanted[] = {[CLI_UINT] = "a whole number below 4294967296",
                                         [CLI_UINT64] = "a whole number",
                                         [CLI_FLOAT] = "a number of at least 0",
                                         [CLI_SHARE] = "a number from 0 to 1"};
    fprintf(stderr, "fulgur %s: --%s takes %s, not '%s'\n", c->name, o->name, wanted[o->kind],
            text);
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
    char program[32]; /* getopt puts it before its complaints */
    snprintf(program, sizeof program, "fulgur %s", command->name);
    char *name = argv[0];
    argv[0] = program;
    optind = 1;
    int code = -1;
    for (int got; code < 0 && (got = getopt_long(argc, argv, shorts, longs, NULL)) != -1;) {
        if (got == 'h') {
            print_help(command, options, count);
            code = CLI_OK;
            continue;
        }
        const cli_option *o = got > HELP_VALUE ? &options[got - HELP_VALUE - 1] : NULL;
        for (int i = 0; i < count && !o; i++)
            if (options[i].letter == got)
                o = &options[i];
        if (!o) {
            fprintf(stderr, "try 'fulgur %s --help'\n", command->name);
            code = CLI_USAGE;
        } else if (!store(command, o, optarg)) {
            code = CLI_USAGE;
        }
    }
    argv[0] = name;
    *first = optind;
    return code;
}

void cli_sampling_options(cli_sampling *s, cli_option *out)
{
    const cli_option options[CLI_SAMPLING_OPTIONS] = {
        {'s', "seed", "N", CLI_UINT64, &s->seed, "same seed, same text (default: from the clock)"},
        {'t', "temp", "X", CLI_FLOAT, &s->temp,
         "temperature; 0 = always the likeliest token (default 0.7)"},
        {0, "top-k", "N", CLI_UINT, &s->top_k,
         "draw from the N likeliest tokens; 0 = all (default)"},
        {0, "top-p", "X", CLI_SHARE, &s->top_p,
         "draw from the likeliest tokens of total probability X (default 0.9)"},
        {0, "min-p", "X", CLI_SHARE, &s->min_p,
         "drop tokens less than X times as likely as the likeliest (default 0.05)"},
        {'n', "max-tokens", "N", CLI_UINT, &s->max_tokens,
         "stop after N tokens; 0 = when the model or the context ends (default 256)"},
        {0, "no-bos", NULL, CLI_FLAG, &s->no_bos, "do not put the model's begin token in front"},
    };
    *s = (cli_sampling){.seed = (uint64_t)time(NULL),
                        .temp = 0.7f,
                        .top_p = 0.9f,
                        .min_p = 0.05f,
                        .max_tokens = 256};
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

void cli_write_json_string(FILE *file, const char *text, size_t bytes)
{
    char out[FUL_UTF8_STREAM_ROOM(1)];
    ful_utf8_stream stream = {0};
    fputc('"', file);
    for (size_t i = 0; i <= bytes; i++) {
        size_t n = i < bytes ? ful_utf8_stream_push(&stream, text + i, 1, out)
                             : ful_utf8_stream_finish(&stream, out);
        for (size_t j = 0; j < n; j++) {
            unsigned char c = (unsigned char)out[j];
            if (c == '"' || c == '\\')
                fprintf(file, "\\%c", c);
            else if (c < 32)
                fprintf(file, "\\u%04x", c);
            else
                fputc(c, file);
        }
    }
    fputc('"', file);
}

void cli_print_json_string(const char *text, size_t bytes)
{
    cli_write_json_string(stdout, text, bytes);
}

/* ---- Ctrl-C and time ---- */

static volatile sig_atomic_t interrupted;

static void on_interrupt(int signal_number)
{
    /* A second one while the first waits to be seen: something hangs. */
    if (interrupted)
        _Exit(CLI_INTERRUPTED);
    interrupted = 1;
#ifdef _WIN32
    signal(signal_number, on_interrupt);
#else
    (void)signal_number;
#endif
}

void cli_watch_interrupt(void)
{
#ifdef _WIN32
    signal(SIGINT, on_interrupt);
#else
    struct sigaction action = {.sa_handler = on_interrupt};
    sigemptyset(&action.sa_mask);
    sigaction(SIGINT, &action, NULL);
#endif
}

bool cli_interrupted(void)
{
    return interrupted != 0;
}

void cli_clear_interrupt(void)
{
    interrupted = 0;
}

ful_type cli_type(const char *name)
{
    for (int t = FUL_TYPE_F32; name && t <= FUL_TYPE_MXFP4; t++)
        if (strcmp(name, ful_type_name((ful_type)t)) == 0)
            return (ful_type)t;
    return FUL_TYPE_DEFAULT;
}

bool cli_is_terminal(FILE *file)
{
#ifdef _WIN32
    return _isatty(_fileno(file)) != 0;
#else
    return isatty(fileno(file)) != 0;
#endif
}

uint64_t cli_now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}
