/* Opening a device and a model the way the options say, with a progress bar. */
#include "cli.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void cli_model_options(cli_model *m, cli_option *out)
{
    const cli_option options[CLI_MODEL_OPTIONS] = {
        {'d', "device", "WHICH", CLI_TEXT, &m->device_text,
         "device by number, UUID or part of its name; cpu = without Vulkan (default: the best)"},
        {0, "threads", "N", CLI_UINT, &m->threads, "threads of device cpu (default: all)"},
        {0, "precision", "f32|f16", CLI_CHOICE, &m->precision_text,
         "arithmetic of matrix products (default: f16 on GPUs that have it)"},
        {0, "decay", "hf|orig", CLI_CHOICE, &m->decay_text,
         "decay rule of lightning layers (default: the config's)"},
        {'c', "context", "N", CLI_UINT, &m->context, "tokens the session can hold"},
        {0, "chunk", "N", CLI_UINT, &m->chunk, "largest prefill chunk, in tokens"},
        {'v', "verbose", NULL, CLI_FLAG, &m->verbose, "say more on standard error"},
    };
    memcpy(out, options, sizeof options);
}

int cli_fail(const char *context)
{
    const char *error = ful_last_error();
    if (strstr(error, context)) /* most errors name their file already */
        fprintf(stderr, "fulgur: %s\n", error);
    else
        fprintf(stderr, "fulgur: %s: %s\n", context, error);
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

/* ---- device ---- */

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

static bool parse_index(const char *text, uint32_t *index)
{
    errno = 0;
    unsigned long long v = strtoull(text, NULL, 10);
    *index = (uint32_t)v;
    return *text && text[strspn(text, "0123456789")] == 0 && errno == 0 && v <= UINT32_MAX;
}

/* "4090" is more likely part of a name than the 4,091st device. */
static bool is_name(const cli_model *m, const char *text, uint32_t index)
{
    uint32_t n = 0;
    bool found = false;
    if (ful_device_list(m->instance, NULL, &n) != FUL_OK || index < n)
        return false;
    ful_device_info *infos = calloc(n ? n : 1, sizeof *infos);
    if (infos && ful_device_list(m->instance, infos, &n) == FUL_OK)
        for (uint32_t i = 0; i < n; i++)
            found |= strstr(infos[i].name, text) != NULL;
    free(infos);
    return found;
}

ful_result cli_open_device(cli_model *m)
{
    ful_device_params p = {.struct_size = sizeof p, .caps = m->caps_text, .threads = m->threads};
    uint8_t uuid[16];
    uint32_t index;
    if (m->device_text) {
        if (parse_uuid(m->device_text, uuid))
            p.uuid = uuid;
        else if (parse_index(m->device_text, &index) && !is_name(m, m->device_text, index))
            p.index = &index;
        else
            p.name_part = m->device_text;
    }
    return ful_device_open(&m->device, m->instance, &p);
}

/* ---- progress ---- */

bool cli_show_bar(void *ctx, const ful_progress *p)
{
    cli_bar *b = ctx;
    static const char *const names[] = {"", "reading", "loading", "compiling", "writing"};
    if (p->phase == FUL_PHASE_UPLOAD)
        b->loaded_ns = cli_now_ns();
    if (cli_interrupted())
        return false;
    /* A bar that flashes by for a small model is noise. */
    if (!cli_is_terminal(stderr) || cli_now_ns() - b->start_ns < 300000000u)
        return true;
    double part = (double)p->done / (double)p->total;
    int full = (int)(30.0 * part), percent = (int)(100.0 * part);
    char left[32] = "";
    if (p->phase == FUL_PHASE_WRITE && part > 0.0) {
        double seconds = (double)(cli_now_ns() - b->start_ns) / 1e9 * (1.0 - part) / part;
        snprintf(left, sizeof left, ", %.0f s left ", seconds);
    }
    if (b->shown && b->phase == (int)p->phase && b->percent == percent)
        return true;
    fprintf(stderr, "\r%-9s [%.*s%*s] %3d %%%s", b->label ? b->label : names[p->phase], full,
            "##############################", 30 - full, "", percent, left);
    b->shown = true;
    b->phase = (int)p->phase;
    b->percent = percent;
    return true;
}

void cli_end_bar(cli_bar *b)
{
    if (b->shown)
        fprintf(stderr, "\r%78s\r", "");
    b->shown = false;
}

/* ---- model ---- */

static ful_plan_params plan_params(const cli_model *m, size_t context)
{
    ful_plan_params p = {.struct_size = sizeof p,
                         .max_tokens = m->context ? m->context : context,
                         .chunk_tokens = m->chunk};
    if (m->precision_text)
        p.precision = strcmp(m->precision_text, "f16") == 0 ? FUL_PRECISION_F16 : FUL_PRECISION_F32;
    if (m->decay_text)
        p.decay = strcmp(m->decay_text, "hf") == 0 ? FUL_DECAY_HF : FUL_DECAY_ORIG;
    return p;
}

static ful_result load(cli_model *m, const char *path, size_t context, cli_bar *bar)
{
    ful_plan_params params = plan_params(m, context);
    ful_plan plan;
    ful_model_info info;
    const ful_synthetic_params *made = m->synthetic;
    ful_result r =
        made ? ful_synthetic_inspect(made, &info) : ful_model_inspect(m->instance, path, &info);
    if (r != FUL_OK)
        return r;
    if (!m->context && params.max_tokens > info.context_length)
        params.max_tokens = info.context_length;
    r = made ? ful_synthetic_plan(m->device, made, &params, &plan)
             : ful_model_plan(m->instance, path, m->device, &params, &plan);
    uint64_t start = cli_now_ns();
    if (r == FUL_OK)
        r = made ? ful_model_synthesize(&m->model, m->device, made, &plan, cli_show_bar, bar)
                 : ful_model_load(&m->model, m->device, path, &plan, cli_show_bar, bar);
    cli_end_bar(bar);
    uint64_t end = cli_now_ns();
    m->weights_ns = bar->loaded_ns > start ? bar->loaded_ns - start : 0;
    m->pipelines_ns = end - start - m->weights_ns;
    if (r == FUL_OK)
        r = cli_open_session(m);
    m->session_ns = cli_now_ns() - end;
    return r;
}

ful_result cli_open_session(cli_model *m)
{
    ful_session_destroy(&m->session);
    return ful_session_create(&m->session, m->model, ful_session_params(.profile = m->profile));
}

int cli_open_tokenizer(cli_model *m, const char *path)
{
    if (!m->instance && !cli_open_instance(&m->instance, m->verbose))
        return CLI_FAILED;
    if (ful_tokenizer_load(&m->tokenizer, m->instance, path) == FUL_OK)
        return CLI_OK;
    int code = cli_fail(path);
    cli_close_model(m);
    return code;
}

/* A driver that computes wrongly, with no kernel left that does not: the processor can still do it,
 * unless the device was asked for by name. */
static ful_result load_without_driver(cli_model *m, const char *path, size_t context, cli_bar *bar)
{
    fprintf(stderr, "fulgur: warning: %s\nfulgur: warning: going on without it, on the processor\n",
            ful_last_error());
    ful_device_close(&m->device);
    m->device_text = "cpu";
    ful_result r = cli_open_device(m);
    return r == FUL_OK ? load(m, path, context, bar) : r;
}

static ful_result load_anyhow(cli_model *m, cli_bar *bar)
{
    ful_result r = load(m, m->path, m->default_context, bar);
    if (r == FUL_ERR_SELFTEST && !m->device_text)
        r = load_without_driver(m, m->path, m->default_context, bar);
    return r;
}

int cli_open_model(cli_model *m, const char *path, size_t context)
{
    cli_bar bar = {.start_ns = cli_now_ns()};
    m->path = path;
    m->default_context = context;
    if (!m->instance && !cli_open_instance(&m->instance, m->verbose))
        return CLI_FAILED;
    int code = CLI_OK;
    bool opened = cli_open_device(m) == FUL_OK;
    m->device_ns = cli_now_ns() - bar.start_ns;
    ful_result r = opened ? load_anyhow(m, &bar) : FUL_OK;
    if (!opened)
        code = cli_fail(m->device_text ? m->device_text : "device");
    else if (r != FUL_OK)
        code = cli_interrupted() ? CLI_INTERRUPTED : cli_fail(path ? path : "synthetic model");
    m->load_ns = cli_now_ns() - bar.start_ns;
    if (code != CLI_OK)
        cli_close_model(m);
    return code;
}

static void close_device(cli_model *m)
{
    ful_session_destroy(&m->session);
    ful_model_destroy(&m->model);
    ful_device_close(&m->device);
}

ful_result cli_reopen_model(cli_model *m)
{
    cli_bar bar = {.start_ns = cli_now_ns()};
    close_device(m);
    ful_result r = cli_open_device(m);
    if (r == FUL_OK)
        r = load_anyhow(m, &bar);
    if (r != FUL_OK)
        close_device(m);
    return r;
}

void cli_close_model(cli_model *m)
{
    close_device(m);
    ful_tokenizer_destroy(&m->tokenizer);
    ful_instance_destroy(&m->instance);
}

ful_result cli_prefill(cli_model *m, const int32_t *ids, size_t n)
{
    /* In pieces, so that Ctrl-C need not wait for a long prompt. */
    size_t chunk = ful_model_get_plan(m->model)->chunk_tokens;
    const int32_t *held;
    size_t used = ful_session_tokens(m->session, &held);
    size_t most = ful_model_get_plan(m->model)->max_tokens;
    /* Too many: let the library say so before anything is fed. */
    chunk = chunk == 0 || n > most - used ? n : chunk;
    for (size_t at = 0; at < n && !cli_interrupted();) {
        size_t take = n - at < chunk ? n - at : chunk;
        ful_result r = ful_prefill(m->session, ids + at, take);
        if (r != FUL_OK)
            return r;
        at += take;
    }
    return cli_interrupted() ? FUL_ERR_CANCELLED : FUL_OK;
}
