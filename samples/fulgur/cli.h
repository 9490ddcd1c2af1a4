/* What the commands of the fulgur program share: options, opening a model with a progress bar,
 * Ctrl-C. */
#ifndef FULGUR_SAMPLES_CLI_H
#define FULGUR_SAMPLES_CLI_H

#include <stdio.h>

#include <fulgur/model.h>
#include <fulgur/session.h>
#include <fulgur/tokenizer.h>

/* Exit codes. */
enum { CLI_OK = 0, CLI_FAILED = 1, CLI_USAGE = 2, CLI_INTERRUPTED = 130 };

typedef enum cli_kind {
    CLI_FLAG,
    CLI_TEXT,
    CLI_CHOICE, /* one of the words that `value` lists: "one|two" */
    CLI_UINT,
    CLI_UINT64,
    CLI_FLOAT, /* at least 0 */
    CLI_SHARE  /* 0 to 1 */
} cli_kind;

typedef struct cli_option {
    char letter;       /* 0 = none */
    const char *name;  /* long name */
    const char *value; /* what to call its value in the help; NULL for flags */
    cli_kind kind;
    void *target; /* bool, const char *, uint32_t, uint64_t, float */
    const char *help;
} cli_option;

typedef struct cli_command {
    const char *name;
    const char *arguments; /* for the usage line */
    const char *summary;
    int (*run)(int argc, char **argv);
} cli_command;

/* Reads options; positional arguments are moved to the end of argv and *first is the index of the
 * first. Returns -1 to go on, else the exit code (help was asked for, or an error was printed). */
int cli_parse(const cli_command *command, int argc, char **argv, const cli_option *options,
              int count, int *first);

extern const cli_command cmd_devices, cmd_inspect, cmd_run, cmd_chat, cmd_tokenize, cmd_perplexity,
    cmd_logits, cmd_bench, cmd_tune, cmd_selftest, cmd_convert, cmd_quantize, cmd_imatrix;

/* Options of every command that runs a model, and what they open. */
typedef struct cli_model {
    const char *device_text, *precision_text, *decay_text;
    const char *caps_text; /* what to pretend absent, as in FULGUR_CAPS; NULL = nothing */
    uint32_t context, chunk, threads;
    bool verbose, profile;
    const ful_synthetic_params *synthetic; /* if not NULL: what to make instead of loading a path */

    ful_instance *instance;
    ful_device *device;
    ful_model *model;
    ful_session *session;
    ful_tokenizer *tokenizer; /* if wanted */
    const char *path;         /* what was opened, and with what context */
    size_t default_context;
    bool reopened;    /* after the device was lost */
    uint64_t load_ns; /* all of these: */
    uint64_t device_ns, weights_ns, pipelines_ns, session_ns;
} cli_model;

enum { CLI_MODEL_OPTIONS = 7 };
void cli_model_options(cli_model *m, cli_option *out); /* fills CLI_MODEL_OPTIONS of them */

/* Prints "fulgur: CONTEXT: ful_last_error()", without CONTEXT if the error names it. Returns
 * CLI_FAILED. */
int cli_fail(const char *context);
bool cli_open_instance(ful_instance **instance, bool verbose); /* false: printed why */

/* Both return an exit code after printing what went wrong and closing everything. The tokenizer may
 * come first. path: NULL for synthetic models. context: tokens wanted if the user did not say; 0 =
 * default. */
int cli_open_tokenizer(cli_model *m, const char *path);
ful_result cli_open_device(cli_model *m); /* on m->instance */
int cli_open_model(cli_model *m, const char *path, size_t context);
ful_result cli_open_session(cli_model *m); /* instead of the one that is open */
/* Device, model and session anew, nothing fed. After an error there is neither of them. */
ful_result cli_reopen_model(cli_model *m);
void cli_close_model(cli_model *m);

/* ful_prefill that Ctrl-C stops between chunks: FUL_ERR_CANCELLED. */
ful_result cli_prefill(cli_model *m, const int32_t *ids, size_t n);

/* A text in tokens. */
typedef struct cli_text {
    int32_t *ids; /* free() it */
    size_t count, capacity;
} cli_text;
bool cli_text_add(cli_text *text, const int32_t *ids, size_t n);
/* ful_generate behind the text, of which the session is given what it does not hold yet; new tokens
 * go to the end of the text before fn gets them. If the device is lost, it is reopened and the text
 * goes on, once in the life of m, with a warning. After an error m may have no session. */
ful_result cli_generate(cli_model *m, cli_text *text, const ful_generate_params *params,
                        ful_token_fn fn, void *ctx, ful_stop *stop);

/* Progress on standard error if that is a terminal, from a third of a second on. */
typedef struct cli_bar {
    uint64_t start_ns;
    uint64_t loaded_ns; /* when the last weights had come */
    const char *label;  /* NULL: the phase's name */
    bool shown;
    int phase, percent;
} cli_bar;
bool cli_show_bar(void *bar, const ful_progress *p); /* false once Ctrl-C was pressed */
void cli_end_bar(cli_bar *bar);

/* Reads a whole file or, for "-", standard input; free() the result. */
char *cli_read_file(const char *path, size_t *bytes);
/* Encodes text; free() the result. NULL after printing the error. bos: put in front if >= 0. */
int32_t *cli_encode(const ful_tokenizer *t, const char *text, size_t bytes, int32_t bos,
                    size_t *count);

/* Sampling options shared by run and chat. */
typedef struct cli_sampling {
    uint64_t seed;
    float temp, top_p, min_p;
    uint32_t top_k, max_tokens;
    bool no_bos;
} cli_sampling;
enum { CLI_SAMPLING_OPTIONS = 7 };
void cli_sampling_options(cli_sampling *s, cli_option *out);
ful_sampler_params cli_sampler(const cli_sampling *s);

/* True once Ctrl-C was pressed (after cli_watch_interrupt). */
void cli_watch_interrupt(void);
bool cli_interrupted(void);
void cli_clear_interrupt(void);

ful_type cli_type(const char *name); /* by its name; NULL and others: the default */

bool cli_is_terminal(FILE *file);
uint64_t cli_now_ns(void);
/* With quotes; bytes that are no UTF-8 become U+FFFD. */
void cli_write_json_string(FILE *file, const char *text, size_t bytes);
void cli_print_json_string(const char *text, size_t bytes);

#endif
