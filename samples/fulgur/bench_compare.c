/* fulgur bench compare: figures of several runs side by side. */
#include "report.h"

#include <math.h>
#include <stdarg.h>
#include <string.h>

enum { MOST_FILES = REPORT_MOST_FILES, WHAT_BYTES = 192 };

typedef enum file_kind { FILE_REPORT, FILE_OPS, FILE_MODEL, FILE_DEVICE, FILE_KINDS } file_kind;

typedef struct input {
    const char *path;
    json_t *root;
    file_kind kind;
} input;

typedef struct comparison {
    input files[MOST_FILES];
    size_t count;
    json_t *root, *figures, *wrong;
} comparison;

/* ---- what files hold ---- */

static bool find_kind(input *f)
{
    if (report_at(f->root, "/format")) {
        f->kind = FILE_REPORT;
        return report_check("bench compare", f->path, f->root);
    }
    if (json_is_array(report_at(f->root, "/results")))
        f->kind = FILE_OPS;
    else if (json_is_array(report_at(f->root, "/tests")))
        f->kind = FILE_MODEL;
    else if (json_is_array(report_at(f->root, "/rates")))
        f->kind = FILE_DEVICE;
    else {
        fprintf(stderr,
                "fulgur bench compare: %s: neither a report nor the JSON of 'bench ops', 'bench "
                "model' or 'bench device': no 'format', 'results', 'tests' or 'rates'\n",
                f->path);
        return false;
    }
    return true;
}

/* What must be the same for figures to be comparable, and where each kind of file says it. */
static const struct {
    const char *name;
    const char *at[FILE_KINDS];
} conditions[] = {
    {"device", {"/device/name", "/device", "/device", "/device"}},
    {"driver", {"/device/driver", "/driver", "/driver", "/driver"}},
    {"fulgur", {"/versions/fulgur", NULL, NULL, NULL}},
    {"Vulkan", {"/versions/vulkan", NULL, NULL, NULL}},
    {"system", {"/versions/system", NULL, NULL, NULL}},
    {"compiler", {"/versions/compiler", NULL, NULL, NULL}},
    {"pretended absent", {"/masked", NULL, NULL, NULL}},
    {"tuned choices", {"/device/tuned_choices", "/tuned_choices", NULL, NULL}},
    {"shape of ops", {"/ops/shape", "/shape", NULL, NULL}},
    {"weights of ops", {"/ops/weights", "/weights", NULL, NULL}},
    {"arithmetic of ops", {"/ops/arithmetic", "/arithmetic", NULL, NULL}},
    {"model", {"/model/name", NULL, "/model", NULL}},
    {"weights of the model", {"/model/weights", NULL, "/weights", NULL}},
    {"arithmetic of the model", {"/model/arithmetic", NULL, "/precision", NULL}},
    {"layers", {"/model/layers", NULL, "/layers", NULL}},
    {"hidden", {"/model/hidden", NULL, "/hidden", NULL}},
    {"experts", {"/model/experts", NULL, "/experts", NULL}},
    {"greedy text", {"/correctness/greedy/hash", NULL, NULL, NULL}},
};

static void find_differences(comparison *c)
{
    json_t *list = json_array();
    for (size_t i = 0; i < sizeof conditions / sizeof *conditions; i++) {
        json_t *values = json_array();
        const json_t *first = NULL;
        bool differ = false;
        for (size_t k = 0; k < c->count; k++) {
            const char *at = conditions[i].at[c->files[k].kind];
            const json_t *value = at ? report_at(c->files[k].root, at) : NULL;
            /* A null says something; a key that this kind of file lacks does not. */
            if (value && first)
                differ |= !json_equal(value, first);
            else if (value)
                first = value;
            (void)json_array_append_new(values, value ? json_deep_copy(value) : json_null());
        }
        if (differ) {
            json_t *o = json_object();
            report_set(o, "what", json_string(conditions[i].name));
            report_set(o, "values", values);
            (void)json_array_append_new(list, o);
        } else {
            json_decref(values);
        }
    }
    report_set(c->root, "differences", list);
}

/* ---- figures ---- */

/* Where file `k` has its value; made if no file before had it. */
static void add(comparison *c, size_t k, const char *section, const char *unit, double value,
                const char *what, ...)
{
    char text[WHAT_BYTES];
    va_list args;
    va_start(args, what);
    vsnprintf(text, sizeof text, what, args);
    va_end(args);
    size_t i;
    json_t *figure, *found = NULL;
    json_array_foreach(c->figures, i, figure)
    {
        const char *name = json_string_value(json_object_get(figure, "what"));
        const char *in = json_string_value(json_object_get(figure, "unit"));
        if (name && in && strcmp(name, text) == 0 && strcmp(in, unit) == 0)
            found = figure;
    }
    if (!found) {
        json_t *values = json_array();
        for (size_t n = 0; n < c->count; n++)
            (void)json_array_append_new(values, json_null());
        found = json_object();
        report_set(found, "section", json_string(section));
        report_set(found, "what", report_string(text));
        report_set(found, "unit", json_string(unit));
        report_set(found, "values", values);
        (void)json_array_append_new(c->figures, found);
    }
    (void)json_array_set_new(json_object_get(found, "values"), k, report_number(value));
}

/* What an element of a list must hold to be a figure. */
static bool needs(const input *f, const char *list, size_t index, const json_t *object,
                  const char *key, bool text)
{
    const json_t *value = json_object_get(object, key);
    if (text ? json_is_string(value) : json_is_number(value) && json_number_value(value) >= 0.0)
        return true;
    fprintf(stderr, "fulgur bench compare: %s: no %s at '%s/%zu/%s'\n", f->path,
            text ? "text" : "number", list, index, key);
    return false;
}

static bool is_measured(comparison *c, size_t k, const json_t *object, const char *what)
{
    if (json_object_get(object, "left_out"))
        return false;
    if (!json_object_get(object, "failed") && !json_is_false(json_object_get(object, "ok")))
        return true;
    char text[WHAT_BYTES];
    snprintf(text, sizeof text, "%s: %s", report_letter(k), what);
    (void)json_array_append_new(c->wrong, report_string(text));
    return false;
}

static bool take_rates(comparison *c, size_t k, const char *at)
{
    static const struct {
        const char *unit, *shown;
        double factor;
    } units[] = {{"bytes/s", "GB/s", 1e-9}, {"FLOP/s", "TFLOP/s", 1e-12},
                 {"op/s", "Top/s", 1e-12},  {"s", "us", 1e6},
                 {"GB/s", "GB/s", 1.0},     {"TFLOP/s", "TFLOP/s", 1.0},
                 {"Top/s", "Top/s", 1.0},   {"us", "us", 1.0}};
    const input *f = &c->files[k];
    size_t i;
    json_t *r;
    json_array_foreach(report_at(f->root, at), i, r)
    {
        if (!needs(f, at, i, r, "what", true))
            return false;
        const char *what = json_string_value(json_object_get(r, "what"));
        if (!is_measured(c, k, r, what))
            continue;
        if (!needs(f, at, i, r, "unit", true) || !needs(f, at, i, r, "median", false))
            return false;
        const char *unit = json_string_value(json_object_get(r, "unit"));
        double median = json_number_value(json_object_get(r, "median"));
        for (size_t u = 0; u < sizeof units / sizeof *units; u++)
            if (strcmp(units[u].unit, unit) == 0)
                add(c, k, "device", units[u].shown, median * units[u].factor, "%s", what);
    }
    return true;
}

static bool take_ops(comparison *c, size_t k, const char *at)
{
    const input *f = &c->files[k];
    size_t i;
    json_t *r;
    json_array_foreach(report_at(f->root, at), i, r)
    {
        char what[WHAT_BYTES];
        if (!needs(f, at, i, r, "op", true) || !needs(f, at, i, r, "rows", false) ||
            !needs(f, at, i, r, "size", true))
            return false;
        const char *weights = json_string_value(json_object_get(r, "weights"));
        snprintf(what, sizeof what, "%s%s%s, %.0f rows, %s",
                 json_string_value(json_object_get(r, "op")), weights ? ", " : "",
                 weights ? weights : "", json_number_value(json_object_get(r, "rows")),
                 json_string_value(json_object_get(r, "size")));
        if (!is_measured(c, k, r, what))
            continue;
        if (!needs(f, at, i, r, "us", false))
            return false;
        add(c, k, "ops", "us", json_number_value(json_object_get(r, "us")), "%s", what);
    }
    return true;
}

/* A model is the same wherever its folder is. */
static const char *model_name(const json_t *root, const char *at)
{
    const char *name = json_string_value(report_at(root, at));
    return name ? report_base_name(name) : "model";
}

static bool take_tests(comparison *c, size_t k, const char *at, const char *model)
{
    const input *f = &c->files[k];
    size_t i;
    json_t *t;
    json_array_foreach(report_at(f->root, at), i, t)
    {
        char what[WHAT_BYTES];
        if (!needs(f, at, i, t, "kind", true) || !needs(f, at, i, t, "tokens", false) ||
            !needs(f, at, i, t, "depth", false))
            return false;
        snprintf(what, sizeof what, "%s: %s of %.0f at depth %.0f", model,
                 json_string_value(json_object_get(t, "kind")),
                 json_number_value(json_object_get(t, "tokens")),
                 json_number_value(json_object_get(t, "depth")));
        if (!is_measured(c, k, t, what))
            continue;
        if (!needs(f, at, i, t, "tokens_per_s", false))
            return false;
        add(c, k, "model", "tokens/s", json_number_value(json_object_get(t, "tokens_per_s")), "%s",
            what);
    }
    return true;
}

/* Figures that a report may lack. */
static void take_rest(comparison *c, size_t k)
{
    static const struct {
        const char *at, *unit, *what;
    } rows[] = {{"/first_token/cold/process_ms", "ms", "first token, empty pipeline cache"},
                {"/first_token/warm/process_ms", "ms", "first token, filled pipeline cache"},
                {"/sustained/median", "tokens/s", "sustained decoding"},
                {"/sustained/last_fifth", "tokens/s", "its last fifth"}};
    const json_t *root = c->files[k].root;
    const char *model = model_name(root, "/model/name");
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++) {
        const json_t *value = report_at(root, rows[i].at);
        if (json_is_number(value))
            add(c, k, "model", rows[i].unit, json_number_value(value), "%s: %s", model,
                rows[i].what);
    }
}

static bool take_figures(comparison *c, size_t k)
{
    const json_t *root = c->files[k].root;
    switch (c->files[k].kind) {
    case FILE_OPS:
        return take_ops(c, k, "/results");
    case FILE_MODEL:
        return take_tests(c, k, "/tests", model_name(root, "/model"));
    case FILE_DEVICE:
        return take_rates(c, k, "/rates");
    default:
        if (!take_rates(c, k, "/device/rates") || !take_ops(c, k, "/ops/results") ||
            !take_tests(c, k, "/model/tests", model_name(root, "/model/name")))
            return false;
        take_rest(c, k);
        return true;
    }
}

/* ---- ratios ---- */

/* How many times as fast as the first file; times are the better the smaller. */
static double ratio_of(const json_t *figure, size_t k)
{
    const char *unit = json_string_value(json_object_get(figure, "unit"));
    const json_t *values = json_object_get(figure, "values");
    double a = json_number_value(json_array_get(values, 0));
    double b = json_number_value(json_array_get(values, k));
    if (!(a > 0.0 && b > 0.0))
        return 0.0;
    return unit && (strcmp(unit, "us") == 0 || strcmp(unit, "ms") == 0) ? a / b : b / a;
}

static void add_ratios(comparison *c)
{
    size_t i;
    json_t *figure;
    json_array_foreach(c->figures, i, figure)
    {
        json_t *times = json_array();
        for (size_t k = 1; k < c->count; k++) {
            double ratio = ratio_of(figure, k);
            (void)json_array_append_new(times, ratio > 0.0 ? report_number(ratio) : json_null());
        }
        report_set(figure, "times_as_fast", times);
    }
}

/* Geometric means of what both files have. */
static void add_means(comparison *c)
{
    static const char *const sections[] = {"device", "ops", "model"};
    json_t *means = json_array();
    for (size_t s = 0; s < sizeof sections / sizeof *sections; s++) {
        json_t *o = json_object(), *times = json_array();
        size_t most = 0;
        for (size_t k = 1; k < c->count; k++) {
            double sum = 0.0;
            size_t n = 0, i;
            json_t *figure;
            json_array_foreach(c->figures, i, figure)
            {
                const char *in = json_string_value(json_object_get(figure, "section"));
                double ratio = ratio_of(figure, k);
                if (!in || strcmp(in, sections[s]) != 0 || !(ratio > 0.0))
                    continue;
                sum += log(ratio);
                n++;
            }
            most = n > most ? n : most;
            (void)json_array_append_new(times,
                                        n ? report_number(exp(sum / (double)n)) : json_null());
        }
        report_set(o, "section", json_string(sections[s]));
        report_set(o, "figures", json_integer((json_int_t)most));
        report_set(o, "times_as_fast", times);
        if (most)
            (void)json_array_append_new(means, o);
        else
            json_decref(o);
    }
    report_set(c->root, "means", means);
}

/* ---- the command ---- */

static bool compare(comparison *c)
{
    json_t *files = json_array();
    c->root = json_object();
    c->figures = json_array();
    c->wrong = json_array();
    report_set(c->root, "format", json_string("fulgur bench comparison"));
    report_set(c->root, "files", files);
    report_set(c->root, "figures", c->figures);
    report_set(c->root, "wrong", c->wrong);
    for (size_t k = 0; k < c->count; k++) {
        input *f = &c->files[k];
        f->root = report_load("bench compare", f->path);
        if (!f->root || !find_kind(f))
            return false;
    }
    for (size_t k = 0; k < c->count; k++) {
        const input *f = &c->files[k];
        const char *at = conditions[0].at[f->kind];
        const char *device = json_string_value(report_at(f->root, at));
        json_t *o = json_object();
        report_set(o, "path", report_string(f->path));
        report_set(o, "device", device ? report_string(device) : json_null());
        (void)json_array_append_new(files, o);
        if (!take_figures(c, k))
            return false;
    }
    find_differences(c);
    add_ratios(c);
    add_means(c);
    return true;
}

static int run(int argc, char **argv)
{
    comparison c = {.count = 0};
    const char *html = NULL, *json = NULL;
    const cli_option options[] = {
        {0, "html", "FILE", CLI_TEXT, &html, "also write a page for a browser"},
        {0, "json", "FILE", CLI_TEXT, &json, "also write JSON"}};
    int first, code = cli_parse(&bench_compare, argc, argv, options, 2, &first);
    if (code >= 0)
        return code;
    if (argc - first < 2 || argc - first > MOST_FILES) {
        fprintf(stderr,
                "usage: fulgur bench compare A.json B.json [...]: two to %d files of 'bench report "
                "--json', 'bench ops --json', 'bench model --json' or 'bench device --json'\n",
                MOST_FILES);
        return CLI_USAGE;
    }
    for (int i = first; i < argc; i++)
        c.files[c.count++].path = argv[i];
    bool good = compare(&c);
    if (good)
        report_compare_text(c.root);
    if (good && html)
        good = report_write("bench compare", html, report_compare_html, c.root);
    if (good && json)
        good = report_write("bench compare", json, report_write_json, c.root);
    for (size_t k = 0; k < c.count; k++)
        json_decref(c.files[k].root);
    json_decref(c.root);
    return good ? CLI_OK : CLI_FAILED;
}

const cli_command bench_compare = {"bench compare", "A.json B.json [C.json ...] [options]",
                                   "figures of several runs side by side", run};
