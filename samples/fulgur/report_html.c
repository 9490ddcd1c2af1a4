/* A report as one page that needs nothing else: every figure in it is one of the JSON's, which the
 * page holds, too. An element with data-at shows the number at that place in it. */
#include "report.h"

#include <string.h>

enum { POINTER_BYTES = 128 };

void report_html_text(FILE *f, const char *text)
{
    for (; *text; text++)
        switch (*text) {
        case '<':
            fputs("&lt;", f);
            break;
        case '>':
            fputs("&gt;", f);
            break;
        case '&':
            fputs("&amp;", f);
            break;
        case '"':
            fputs("&quot;", f);
            break;
        default:
            fputc(*text, f);
        }
}

/* Text at a place; `absent` if there is none. */
static void text_at(FILE *f, const json_t *root, const char *pointer, const char *absent)
{
    const char *text = json_string_value(report_at(root, pointer));
    report_html_text(f, text ? text : absent);
}

static void element(FILE *f, const json_t *root, const char *tag, const char *pointer)
{
    char text[REPORT_TEXT];
    if (report_number_text(report_at(root, pointer), text)[0])
        fprintf(f, "<%s class=\"n\" data-at=\"%s\">%s</%s>", tag, pointer, text, tag);
    else
        fprintf(f, "<%s class=\"n none\">–</%s>", tag, tag);
}

/* Cells of a row: numbers under these keys of the object at `base`. */
static void cells(FILE *f, const json_t *root, const char *base, size_t index,
                  const char *const *keys, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        char pointer[POINTER_BYTES];
        snprintf(pointer, sizeof pointer, "%s/%zu/%s", base, index, keys[i]);
        element(f, root, "td", pointer);
    }
}

static void text_cell(FILE *f, const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    fputs("<td>", f);
    report_html_text(f, text ? text : "–");
    fputs("</td>", f);
}

/* Why a row has no numbers; false if it has. */
static bool reason_cell(FILE *f, const json_t *object, size_t columns)
{
    const char *left_out = json_string_value(json_object_get(object, "left_out"));
    const char *failed = json_string_value(json_object_get(object, "failed"));
    if (!left_out && !failed)
        return false;
    fprintf(f, "<td class=\"%s\" colspan=\"%zu\">%s: ", failed ? "worse" : "none", columns,
            failed ? "FAILED" : "left out");
    report_html_text(f, failed ? failed : left_out);
    fputs("</td></tr>\n", f);
    return true;
}

/* Headings; those that begin with "#" are of columns of numbers. */
static void table_head(FILE *f, const char *const *names, size_t n)
{
    fputs("<div class=\"scroll\"><table><tr>", f);
    for (size_t i = 0; i < n; i++)
        fprintf(f, names[i][0] == '#' ? "<th class=\"n\">%s</th>" : "<th>%s</th>",
                names[i] + (names[i][0] == '#'));
    fputs("</tr>\n", f);
}

#define COUNT(a) (sizeof(a) / sizeof *(a))

/* ---- head ---- */

static void tile(FILE *f, const json_t *root, const char *pointer, const char *unit,
                 const char *label)
{
    if (!json_is_number(report_at(root, pointer)))
        return;
    fputs("<div class=\"tile\">", f);
    element(f, root, "b", pointer);
    fprintf(f, "<div>%s, %s</div></div>\n", unit, label);
}

static void write_tiles(FILE *f, const json_t *root)
{
    size_t i;
    json_t *value;
    fputs("<div class=\"tiles\">\n", f);
    json_array_foreach(report_at(root, "/model/tests"), i, value)
    {
        char pointer[POINTER_BYTES], label[96];
        const char *kind = json_string_value(json_object_get(value, "kind"));
        if (json_integer_value(json_object_get(value, "depth")) != 0)
            continue;
        snprintf(pointer, sizeof pointer, "/model/tests/%zu/tokens_per_s", i);
        snprintf(label, sizeof label, "%s of %lld tokens",
                 kind && strcmp(kind, "decode") == 0 ? "decode" : "prefill",
                 json_integer_value(json_object_get(value, "tokens")));
        tile(f, root, pointer, "tokens/s", label);
    }
    tile(f, root, "/first_token/warm/process_ms", "ms",
         "from the program's start to the first token");
    tile(f, root, "/ops/roof_gb_per_s", "GB/s", "memory, as measured");
    tile(f, root, "/ops/roof_tflop_per_s", "TFLOP/s", "arithmetic, as measured");
    tile(f, root, "/sustained/held_percent", "%", "of its speed held to the end of the run");
    fputs("</div>\n", f);
}

static void write_head(FILE *f, const json_t *root)
{
    bool ok = json_is_true(report_at(root, "/correctness/ok"));
    fputs("<header><h1>", f);
    text_at(f, root, "/device/name", "unknown device");
    fputs("</h1>\n<p class=\"soft\">", f);
    text_at(f, root, "/device/kind", "unknown kind");
    fputs(" · ", f);
    text_at(f, root, "/device/driver", "unknown driver");
    fputs(" · ", f);
    text_at(f, root, "/generated", "at an unknown time");
    fputs(" · fulgur ", f);
    text_at(f, root, "/versions/fulgur", "?");
    fputs("</p>\n", f);
    const char *masked = json_string_value(report_at(root, "/masked"));
    if (masked) {
        fputs("<p class=\"soft\">Measured as if the device had less: ", f);
        report_html_text(f, masked);
        fputs("</p>\n", f);
    }
    fprintf(f, "<p class=\"verdict %s\">%s: ", ok ? "right" : "wrong",
            ok ? "Results are right" : "WRONG RESULTS");
    element(f, root, "span", "/correctness/ops_right");
    fputs(" of ", f);
    element(f, root, "span", "/correctness/ops_checked");
    fputs(" op runs agree with double precision, ", f);
    element(f, root, "span", "/correctness/tests_right");
    fputs(" of ", f);
    element(f, root, "span", "/correctness/tests_checked");
    fputs(" model runs repeat their logits bit for bit</p></header>\n", f);
}

/* ---- sections ---- */

static void write_ops(FILE *f, const json_t *root)
{
    static const char *const head[] = {"#",        "op",         "#rows",      "#µs",    "#GB/s",
                                       "#TFLOP/s", "#% of roof", "#FLOP/byte", "#least", "#most",
                                       "#error",   "#limit",     "size"};
    static const char *const keys[] = {
        "us",   "gb_per_s", "tflop_per_s", "percent_of_roof", "flop_per_byte", "least",
        "most", "error",    "limit"};
    static const char *const families[] = {"lightning attention", "softmax attention",
                                           "dense products", "experts", "small ops"};
    size_t i;
    json_t *r;
    fputs("<section><h2>Ops under the roofline</h2>\n<p class=\"soft\">Shape <b>", f);
    text_at(f, root, "/ops/shape", "?");
    fputs("</b>, ", f);
    text_at(f, root, "/ops/weights", "?");
    fputs(" weights, ", f);
    text_at(f, root, "/ops/arithmetic", "?");
    fputs(" arithmetic. The lines are what this device showed of itself: it moves no more bytes "
          "and computes no faster. Dots above the slope found their data in a cache. Numbers are "
          "those of the table.</p>\n",
          f);
    report_plot_roofline(f, root, false);
    report_plot_roofline(f, root, true);
    fputs("<p class=\"legend\">", f);
    for (size_t k = 0; k < COUNT(families); k++)
        fprintf(f,
                "<span><svg viewBox=\"0 0 12 12\"><circle class=\"f%zu\" cx=\"6\" cy=\"6\" "
                "r=\"5\"/></svg>%s</span>",
                k, families[k]);
    fputs("</p>\n", f);
    table_head(f, head, COUNT(head));
    json_array_foreach(report_at(root, "/ops/results"), i, r)
    {
        static const char *const rows[] = {"rows"};
        fprintf(f, "<tr><td>%zu</td>", i + 1);
        text_cell(f, r, "op");
        cells(f, root, "/ops/results", i, rows, 1);
        if (reason_cell(f, r, COUNT(keys) + 1))
            continue;
        cells(f, root, "/ops/results", i, keys, COUNT(keys));
        text_cell(f, r, "size");
        fputs("</tr>\n", f);
    }
    fputs("</table></div>\n<p class=\"soft\">Time of the device from an op's first dispatch to its "
          "last one's end, in µs also least and most. Bytes and operations: what must at least be "
          "moved and computed. Error: "
          "norm of the difference from double precision over its norm.</p></section>\n",
          f);
}

static void write_op_times(FILE *f, const json_t *root, size_t test, const json_t *value)
{
    static const char *const head[] = {"op", "#calls", "#µs", "#% of the time"};
    static const char *const keys[] = {"calls", "us", "percent"};
    const json_t *ops = json_object_get(value, "ops");
    const char *kind = json_string_value(json_object_get(value, "kind"));
    char base[POINTER_BYTES / 2];
    size_t i;
    json_t *op;
    if (json_array_size(ops) == 0)
        return;
    fprintf(f,
            "<details><summary>Where the time goes: %s of %lld"
            " tokens at depth %lld</summary>\n",
            kind && strcmp(kind, "decode") == 0 ? "decode" : "prefill",
            json_integer_value(json_object_get(value, "profiled_tokens")),
            json_integer_value(json_object_get(value, "depth")));
    table_head(f, head, COUNT(head));
    snprintf(base, sizeof base, "/model/tests/%zu/ops", test);
    json_array_foreach(ops, i, op)
    {
        fputs("<tr>", f);
        text_cell(f, op, "name");
        cells(f, root, base, i, keys, COUNT(keys));
        fputs("</tr>\n", f);
    }
    fputs("</table></div></details>\n", f);
}

static void write_model(FILE *f, const json_t *root)
{
    static const char *const head[] = {
        "test",  "#tokens",       "#depth",        "#tokens/s",     "#least",
        "#most", "#GPU µs/token", "#CPU µs/token", "#weights GB/s", "#experts a layer"};
    static const char *const first[] = {"tokens", "depth"};
    static const char *const keys[] = {
        "tokens_per_s",     "least",           "most",   "gpu_us_per_token",
        "cpu_us_per_token", "weight_gb_per_s", "experts"};
    static const struct {
        const char *pointer, *after;
    } facts[] = {{"/model/layers", " layers, "},
                 {"/model/softmax_layers", " of them softmax; "},
                 {"/model/hidden", " hidden, "},
                 {"/model/experts", " experts, top "},
                 {"/model/top_k", ", of "},
                 {"/model/width", "; "},
                 {"/model/parameters", " parameters, "},
                 {"/model/active_parameters", " active; "},
                 {"/model/weight_mib", " MiB of weights, "},
                 {"/model/peak_mib", " MiB held at most"}};
    size_t i;
    json_t *value;
    fputs("<section><h2>Model: ", f);
    text_at(f, root, "/model/name", "?");
    fputs("</h2>\n<p class=\"soft\">", f);
    for (size_t k = 0; k < COUNT(facts); k++) {
        element(f, root, "span", facts[k].pointer);
        fputs(facts[k].after, f);
    }
    fputs(". ", f);
    text_at(f, root, "/model/weights", "?");
    fputs(" weights, ", f);
    text_at(f, root, "/model/arithmetic", "?");
    fputs(" arithmetic.</p>\n", f);
    table_head(f, head, COUNT(head));
    json_array_foreach(report_at(root, "/model/tests"), i, value)
    {
        fputs("<tr>", f);
        text_cell(f, value, "kind");
        cells(f, root, "/model/tests", i, first, COUNT(first));
        if (reason_cell(f, value, COUNT(keys)))
            continue;
        cells(f, root, "/model/tests", i, keys, COUNT(keys));
        fputs("</tr>\n", f);
    }
    fputs("</table></div>\n<p class=\"soft\">Depth: tokens already in the session.</p>\n", f);
    json_array_foreach(report_at(root, "/model/tests"), i, value) write_op_times(f, root, i, value);
    fputs("</section>\n", f);
}

static void write_first(FILE *f, const json_t *root)
{
    static const char *const head[] = {"pipeline cache",
                                       "#start to first token, ms",
                                       "#device, ms",
                                       "#weights, ms",
                                       "#pipelines, ms",
                                       "#session, ms",
                                       "#load to first token, ms",
                                       "#next token, ms"};
    static const char *const keys[] = {"process_ms",     "device_ms",  "weights_ms",
                                       "pipelines_ms",   "session_ms", "after_load_ms",
                                       "second_token_ms"};
    static const char *const runs[][2] = {{"cold", "empty"}, {"warm", "filled"}};
    fputs("<section><h2>First token</h2>\n", f);
    if (!report_at(root, "/first_token/warm")) {
        fputs("<p class=\"soft\">Not available: ", f);
        text_at(f, root, "/first_token/left_out", "not measured");
        fputs("</p></section>\n", f);
        return;
    }
    fputs("<p class=\"soft\">A new process each, prompt of ", f);
    element(f, root, "span", "/first_token/prompt");
    fputs(" tokens.</p>\n", f);
    table_head(f, head, COUNT(head));
    for (size_t i = 0; i < 2; i++) {
        fprintf(f, "<tr><td>%s</td>", runs[i][1]);
        for (size_t k = 0; k < COUNT(keys); k++) {
            char pointer[POINTER_BYTES];
            snprintf(pointer, sizeof pointer, "/first_token/%s/%s", runs[i][0], keys[k]);
            element(f, root, "td", pointer);
        }
        fputs("</tr>\n", f);
    }
    fputs("</table></div></section>\n", f);
}

static void write_sustained(FILE *f, const json_t *root)
{
    static const struct {
        const char *pointer, *name, *unit;
    } rows[] = {{"/sustained/seconds", "duration", "s"},
                {"/sustained/median", "median", "tokens/s"},
                {"/sustained/least", "slowest second", "tokens/s"},
                {"/sustained/most", "fastest second", "tokens/s"},
                {"/sustained/first_fifth", "first fifth", "tokens/s"},
                {"/sustained/last_fifth", "last fifth", "tokens/s"},
                {"/sustained/held_percent", "held", "%"}};
    static const struct {
        report_sensor sensor;
        const char *name;
        const char *colour;
    } sources[] = {{SENSOR_DEVICE_CLOCK, "device clock", "c0"},
                   {SENSOR_CPU_CLOCK, "processor clock", "c1"},
                   {SENSOR_DEVICE_TEMPERATURE, "device temperature", "c0"},
                   {SENSOR_CPU_TEMPERATURE, "processor temperature", "c1"}};
    fputs("<section><h2>Sustained decoding</h2>\n<p class=\"soft\">Text of up to ", f);
    element(f, root, "span", "/sustained/window_tokens");
    fputs(" tokens again and again, counted second by second.</p>\n", f);
    report_plot_sustained(f, root, false);
    report_plot_sustained(f, root, true);
    fputs("<dl>", f);
    for (size_t i = 0; i < COUNT(rows); i++) {
        fprintf(f, "<dt>%s</dt><dd>", rows[i].name);
        element(f, root, "span", rows[i].pointer);
        fprintf(f, " %s</dd>\n", rows[i].unit);
    }
    for (size_t i = 0; i < COUNT(sources); i++) {
        char pointer[POINTER_BYTES];
        snprintf(pointer, sizeof pointer, "/sustained/sources/%s",
                 report_sensor_keys[sources[i].sensor]);
        bool there = json_is_string(report_at(root, pointer));
        fprintf(f, "<dt>%s</dt><dd%s>", sources[i].name, there ? "" : " class=\"none\"");
        if (there)
            fprintf(f,
                    "<svg class=\"key\" viewBox=\"0 0 18 4\" style=\"width:18px;height:4px;"
                    "display:inline-block;margin:0 6px 4px 0\"><path class=\"curve %s\" "
                    "d=\"M0 2H18\"/></svg>",
                    sources[i].colour);
        text_at(f, root, pointer, "not available on this system");
        fputs("</dd>\n", f);
    }
    fputs("</dl></section>\n", f);
}

static void write_list(FILE *f, const json_t *list)
{
    size_t i;
    json_t *value;
    json_array_foreach(list, i, value)
    {
        fputs(i ? ", " : "", f);
        report_html_text(f, json_is_string(value) ? json_string_value(value) : "?");
    }
    if (json_array_size(list) == 0)
        fputs("none", f);
}

static void write_device(FILE *f, const json_t *root)
{
    static const char *const head[] = {"what", "#median", "unit", "#least", "#most", "#runs"};
    static const char *const spread[] = {"least", "most", "runs"};
    static const struct {
        const char *pointer, *name, *unit;
    } rows[] = {{"/device/memory_mib", "memory", "MiB"},
                {"/device/host_visible_mib", "writable by the host", "MiB"},
                {"/device/binding_mib", "largest binding", "MiB"},
                {"/device/allocation_mib", "largest allocation", "MiB"},
                {"/device/workgroup_invocations", "workgroup", "invocations"},
                {"/device/shared_kib", "shared memory", "KiB"},
                {"/device/subgroup_size", "subgroup", "invocations"},
                {"/device/storage_buffers", "storage buffers", "a stage"},
                {"/device/tuned_choices", "kernels chosen by tuning", ""}};
    static const char *const median[] = {"median"};
    size_t i;
    json_t *rate;
    fputs("<section><h2>Device</h2>\n<dl>", f);
    for (size_t k = 0; k < COUNT(rows); k++) {
        fprintf(f, "<dt>%s</dt><dd>", rows[k].name);
        element(f, root, "span", rows[k].pointer);
        fprintf(f, " %s</dd>\n", rows[k].unit);
    }
    fputs("<dt>features</dt><dd>", f);
    write_list(f, report_at(root, "/device/features"));
    fputs("</dd>\n<dt>matrix shapes</dt><dd>", f);
    write_list(f, report_at(root, "/device/matrices"));
    fputs("</dd>\n<dt>PCI address</dt><dd>", f);
    text_at(f, root, "/device/pci", "not available");
    fputs("</dd></dl>\n<h3>What it reaches</h3>\n", f);
    table_head(f, head, COUNT(head));
    json_array_foreach(report_at(root, "/device/rates"), i, rate)
    {
        fputs("<tr>", f);
        text_cell(f, rate, "what");
        if (reason_cell(f, rate, COUNT(head) - 1))
            continue;
        cells(f, root, "/device/rates", i, median, 1);
        text_cell(f, rate, "unit");
        cells(f, root, "/device/rates", i, spread, COUNT(spread));
        fputs("</tr>\n", f);
    }
    fputs("</table></div></section>\n", f);
}

static void write_rest(FILE *f, const json_t *root)
{
    static const char *const names[][2] = {{"fulgur", "fulgur"},
                                           {"driver", "driver"},
                                           {"vulkan", "Vulkan"},
                                           {"system", "system"},
                                           {"compiler", "compiler"}};
    if (json_is_string(report_at(root, "/correctness/greedy/hash"))) {
        fputs("<section><h2>Greedy text</h2>\n<p class=\"soft\">After “", f);
        text_at(f, root, "/correctness/greedy/prompt", "");
        fputs("”, ", f);
        element(f, root, "span", "/correctness/greedy/tokens");
        fputs(" tokens, hash <b>", f);
        text_at(f, root, "/correctness/greedy/hash", "");
        fputs("</b></p><pre>", f);
        text_at(f, root, "/correctness/greedy/text", "");
        fputs("</pre></section>\n", f);
    }
    if (json_is_string(report_at(root, "/correctness/greedy/left_out"))) {
        fputs("<section><h2>Greedy text</h2>\n<p class=\"soft\">Not available: ", f);
        text_at(f, root, "/correctness/greedy/left_out", "");
        fputs("</p></section>\n", f);
    }
    fputs("<section><h2>Versions</h2><dl>", f);
    for (size_t i = 0; i < COUNT(names); i++) {
        char pointer[POINTER_BYTES];
        snprintf(pointer, sizeof pointer, "/versions/%s", names[i][0]);
        fprintf(f, "<dt>%s</dt><dd>", names[i][1]);
        text_at(f, root, pointer, "not available");
        fputs("</dd>\n", f);
    }
    fputs("<dt>measuring took</dt><dd>", f);
    element(f, root, "span", "/seconds");
    fputs(" s</dd></dl></section>\n", f);
}

void report_write_html(FILE *f, const json_t *root)
{
    fputs("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
          "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>",
          f);
    text_at(f, root, "/device/name", "unknown device");
    fprintf(f, " – fulgur</title>\n<style>\n%s</style></head>\n<body><main>\n", report_html_style);
    write_head(f, root);
    write_tiles(f, root);
    write_ops(f, root);
    write_model(f, root);
    write_sustained(f, root);
    write_first(f, root);
    write_device(f, root);
    write_rest(f, root);
    fputs("<p class=\"soft\">All figures are in this page as JSON, too: the element with the id "
          "<b>report</b>.</p>\n</main>\n<script type=\"application/json\" id=\"report\">\n",
          f);
    report_write_json(f, root);
    fputs("</script></body></html>\n", f);
}
