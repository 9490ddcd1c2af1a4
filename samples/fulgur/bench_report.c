/* fulgur bench report: everything about one device in one file for a browser, and as JSON. */
#include "report.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#ifndef _WIN32
#include <errno.h>
#include <sys/wait.h>
#include <unistd.h>
#endif

typedef struct report_run {
    bench_run bench;
    ful_synthetic_params made;
    const char *out, *json, *from, *path;
    uint32_t seconds;
    bool quick;
    uint64_t start_ns;
    json_t *root;
} report_run;

static void say(const char *what)
{
    fprintf(stderr, "fulgur bench report: %s\n", what);
}

/* When a part of the run that begins now is to end. */
static uint64_t until(const report_run *r, double share)
{
    return cli_now_ns() + (uint64_t)(share * 1e9 * r->seconds);
}

/* ---- what to measure ---- */

static uint32_t preset_for(const ful_device_info *d)
{
    enum { TINY, SMALL, MID };
    uint64_t gib = d->caps.device_memory_bytes >> 30;
    if (d->kind == FUL_DEVICE_CPU || gib < 2)
        return TINY;
    return d->kind == FUL_DEVICE_DISCRETE && gib >= 7 ? MID : SMALL;
}

static int choose_here(report_run *r, uint32_t *preset)
{
    cli_model m = r->bench.model;
    if (!cli_open_instance(&m.instance, m.verbose))
        return CLI_FAILED;
    int code = cli_open_device(&m) == FUL_OK ? CLI_OK : cli_fail("device");
    if (code == CLI_OK)
        *preset = preset_for(ful_device_get_info(m.device));
    ful_device_close(&m.device);
    ful_instance_destroy(&m.instance);
    return code;
}

#ifdef _WIN32

static int choose_preset(report_run *r, uint32_t *preset)
{
    return choose_here(r, preset);
}

static json_t *measure_first(report_run *r)
{
    (void)r;
    return NULL;
}

#else

/* In a child: the time to the first token is measured in processes that have not touched Vulkan,
 * which begin as copies of this one. */
static int choose_preset(report_run *r, uint32_t *preset)
{
    enum { FIRST_PRESET = 10 }; /* exit codes beyond those of failures */
    fflush(NULL);
    pid_t child = fork();
    if (child < 0) {
        fprintf(stderr, "fulgur: fork: %s\n", strerror(errno));
        return CLI_FAILED;
    }
    if (child == 0) {
        int code = choose_here(r, preset);
        exit(code == CLI_OK ? FIRST_PRESET + (int)*preset : code);
    }
    int status = 0;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return CLI_FAILED;
    if (!WIFEXITED(status))
        return CLI_FAILED;
    if (WEXITSTATUS(status) < FIRST_PRESET)
        return WEXITSTATUS(status);
    *preset = (uint32_t)(WEXITSTATUS(status) - FIRST_PRESET);
    return CLI_OK;
}

/* NULL: not to be had. */
static json_t *measure_first(report_run *r)
{
    enum { PROMPT = 16 };
    FILE *out = tmpfile();
    cli_model model = r->bench.model;
    bench_first f = {&model, r->path, PROMPT, r->bench.seed, true, out};
    json_t *o = NULL;
    if (out && bench_first_both(&f) == CLI_OK) {
        rewind(out);
        o = json_loadf(out, 0, NULL);
    }
    if (out)
        fclose(out);
    if (!o)
        return NULL;
    /* Fewer digits, and the device once. */
    static const char *const runs[] = {"cold", "warm"};
    json_t *all = json_object();
    report_set(all, "prompt", json_integer(PROMPT));
    for (int i = 0; i < 2; i++) {
        json_t *from = json_object_get(o, runs[i]), *to = json_object(), *value;
        const char *key;
        json_object_foreach(from, key, value) if (json_is_real(value))
            report_set_number(to, key, json_real_value(value));
        report_set(all, runs[i], to);
    }
    json_decref(o);
    return all;
}

#endif

static json_t *first_token(report_run *r)
{
    json_t *o = measure_first(r);
    if (o)
        return o;
    o = json_object();
    report_set(o, "left_out", json_string("not to be had on this system"));
    return o;
}

/* ---- one after the other ---- */

static int measure_device(report_run *r)
{
    cli_model *m = &r->bench.model;
    if (!cli_open_instance(&m->instance, m->verbose))
        return CLI_FAILED;
    if (cli_open_device(m) != FUL_OK)
        return cli_fail("device");
    say("measuring the device");
    const ful_device_info *d = ful_device_get_info(m->device);
    report_set(r->root, "versions", report_versions(d));
    report_set(r->root, "device", report_device(m->device));
    say("measuring ops");
    report_set(r->root, "ops",
               report_ops(m->device, report_at(r->root, "/device/rates"), (uint32_t)r->bench.seed,
                          r->quick, until(r, 0.35)));
    ful_device_close(&m->device);
    return CLI_OK;
}

static bool add_tests(report_run *r, size_t *most)
{
    const char *kind = json_string_value(report_at(r->root, "/device/kind"));
    bool less = r->quick || (kind && strcmp(kind, ful_device_kind_name(FUL_DEVICE_CPU)) == 0);
    bench_list prefill = {{less ? 128 : 512}, 1}, decode = {{less ? 32 : 128}, 1};
    bench_list depths = {{0, less ? 512 : 4096}, r->quick ? 1 : 2};
    return bench_model_add(&r->bench, &prefill, &decode, &depths, most);
}

static int measure_model(report_run *r)
{
    enum { ROOM = 1024 }; /* the least that a session of the sustained run holds */
    bench_run *b = &r->bench;
    size_t most;
    if (!add_tests(r, &most))
        return CLI_FAILED;
    say("measuring a model");
    int code = cli_open_model(&b->model, r->path, most < ROOM ? (size_t)ROOM : most);
    if (code != CLI_OK)
        return code;
    b->until_ns = until(r, 0.35);
    code = bench_model_tests(b, most);
    if (code != CLI_OK)
        return code;
    uint64_t now;
    ful_device_memory(b->model.device, &now, &b->peak_bytes);
    report_set(r->root, "model", report_model(b));
    b->model.profile = false;
    if (cli_open_session(&b->model) != FUL_OK)
        return cli_fail("session");
    say("generating for a while");
    json_t *sustained = report_sustained(b, r->seconds / 5.0);
    if (!sustained)
        return CLI_FAILED;
    report_set(r->root, "sustained", sustained);
    report_set(r->root, "correctness",
               report_correctness(r->root, r->path ? report_greedy(b, r->path) : NULL));
    return CLI_OK;
}

static int measure(report_run *r)
{
    cli_model *m = &r->bench.model;
    char date[32];
    time_t now = time(NULL);
    int code = CLI_OK;
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    if (!r->path && !r->made.preset) {
        uint32_t preset = 0;
        code = choose_preset(r, &preset);
        if (code != CLI_OK)
            return code;
        r->made.preset = ful_synthetic_preset(preset);
    }
    if (!r->path)
        m->synthetic = &r->made;
    r->bench.name = r->path ? r->path : r->made.preset;
    report_set(r->root, "format", json_string(REPORT_FORMAT));
    report_set(r->root, "format_version", json_integer(REPORT_VERSION));
    report_set(r->root, "generated", json_string(date));
    report_set(r->root, "quick", json_boolean(r->quick));
    const char *masked = getenv("FULGUR_CAPS");
    report_set(r->root, "masked",
               m->caps_text ? report_string(m->caps_text)
               : masked     ? report_string(masked)
                            : json_null());
    say("time to the first token");
    json_t *first = first_token(r);
    if (!cli_interrupted())
        code = measure_device(r);
    if (code == CLI_OK && !cli_interrupted())
        code = measure_model(r);
    cli_close_model(m);
    for (uint32_t i = 0; i < r->bench.test_count; i++)
        free(r->bench.tests[i].tokens_per_s);
    report_set(r->root, "first_token", first);
    report_set_number(r->root, "seconds", (double)(cli_now_ns() - r->start_ns) / 1e9);
    return cli_interrupted() ? CLI_INTERRUPTED : code;
}

/* ---- the command ---- */

static int write_files(const report_run *r)
{
    bool good = true;
    if (r->out)
        good = report_write("bench report", r->out, report_write_html, r->root);
    if (r->json)
        good &= report_write("bench report", r->json, report_write_json, r->root);
    if (!good)
        return CLI_FAILED;
    if (r->out)
        printf("%s\n", r->out);
    if (r->json)
        printf("%s\n", r->json);
    if (r->from || json_is_true(report_at(r->root, "/correctness/ok")))
        return CLI_OK;
    fprintf(stderr, "fulgur bench report: wrong results; the report says which\n");
    return CLI_FAILED;
}

static int run(int argc, char **argv)
{
    static report_run r;
    r = (report_run){.bench = {.reps = 3, .seed = 1}, .made = {.struct_size = sizeof r.made}};
    cli_model *m = &r.bench.model;
    const cli_option options[] = {
        {'o', "out", "FILE", CLI_TEXT, &r.out,
         "page to write (default fulgur-report.html unless --json is given)"},
        {0, "json", "FILE", CLI_TEXT, &r.json, "the same figures as JSON"},
        {0, "from", "FILE", CLI_TEXT, &r.from, "measure nothing; a page from a report's JSON"},
        {0, "preset", "NAME", CLI_TEXT, &r.made.preset,
         "make this model up: tiny, small, mid, full8x8, ... (default: by device)"},
        {'m', "model", "DIR", CLI_TEXT, &r.path, "load a model instead; its greedy text is noted"},
        {0, "seconds", "N", CLI_UINT, &r.seconds,
         "about how long to measure; compiling and loading come on top (default 120, with --quick "
         "30)"},
        {0, "quick", NULL, CLI_FLAG, &r.quick, "fewer and smaller measurements"},
        {'d', "device", "WHICH", CLI_TEXT, &m->device_text,
         "device by number, UUID or part of its name (default: the best)"},
        {0, "caps", "LIST", CLI_TEXT, &m->caps_text, "what to pretend absent, as in FULGUR_CAPS"},
        {0, "precision", "f32|f16", CLI_CHOICE, &m->precision_text, "arithmetic of the model"},
        {0, "seed", "N", CLI_UINT64, &r.bench.seed, "of weights, inputs and tokens (default 1)"},
        {'v', "verbose", NULL, CLI_FLAG, &m->verbose, "say more on standard error"}};
    int first, code = cli_parse(&bench_report, argc, argv, options,
                                (int)(sizeof options / sizeof *options), &first);
    if (code >= 0)
        return code;
    if (first != argc || (r.path && r.made.preset) || (r.from && (r.path || r.made.preset))) {
        fprintf(stderr, "usage: fulgur bench report [--preset NAME | --model DIR | --from FILE] "
                        "[options] (try --help)\n");
        return CLI_USAGE;
    }
    if (!r.out && !r.json)
        r.out = "fulgur-report.html";
    if (r.seconds == 0)
        r.seconds = r.quick ? 30 : 120;
    r.made.seed = r.bench.seed;
    cli_watch_interrupt();
    r.start_ns = cli_now_ns();
    /* Minutes of measuring are not to end at a file that can't be written. */
    if ((r.out && !report_can_write("bench report", r.out)) ||
        (r.json && !report_can_write("bench report", r.json)))
        return CLI_FAILED;
    if (r.from) {
        r.root = report_load("bench report", r.from);
        code = r.root && report_check("bench report", r.from, r.root) ? CLI_OK : CLI_FAILED;
    } else {
        r.root = json_object();
        code = measure(&r);
    }
    if (code == CLI_OK)
        code = write_files(&r);
    json_decref(r.root);
    return code;
}

const cli_command bench_report = {"bench report", "[options]",
                                  "all of it in one file for a browser, and as JSON", run};
