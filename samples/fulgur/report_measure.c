/* What `fulgur bench report` measures, as JSON with the keys of `bench device`, `bench ops` and
 * `bench model`. */
#include "report.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#ifndef _WIN32
#include <sys/utsname.h>
#endif

#include <fulgur/ops.h>

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static void set_count(json_t *object, const char *key, uint64_t value)
{
    report_set(object, key, json_integer((json_int_t)value));
}

static void set_text(json_t *object, const char *key, const char *text)
{
    report_set(object, key, report_string(text));
}

/* ---- versions ---- */

#if defined(__clang__)
#define COMPILER "Clang " __clang_version__
#elif defined(__GNUC__)
#define COMPILER "GCC " __VERSION__
#else
#define COMPILER "unknown"
#endif

json_t *report_versions(const ful_device_info *d)
{
    json_t *o = json_object();
    char text[512];
    uint32_t v = ful_version(), api = d->caps.api_version;
    snprintf(text, sizeof text, "%u.%u.%u", v >> 16, v >> 8 & 255, v & 255);
    set_text(o, "fulgur", text);
    set_text(o, "driver", d->driver);
    snprintf(text, sizeof text, "%u.%u.%u", api >> 22 & 127, api >> 12 & 1023, api & 4095);
    set_text(o, "vulkan", text);
#ifdef _WIN32
    set_text(o, "system", "Windows");
#else
    struct utsname system;
    if (uname(&system) >= 0) {
        snprintf(text, sizeof text, "%s %s %s", system.sysname, system.release, system.machine);
        set_text(o, "system", text);
    }
#endif
    set_text(o, "compiler", COMPILER);
    return o;
}

/* ---- the device ---- */

static json_t *features_of(const ful_caps *c)
{
    json_t *list = json_array();
    for (uint32_t bit = 1; bit; bit <<= 1)
        if (c->features & bit && ful_feature_name(bit))
            (void)json_array_append_new(list, json_string(ful_feature_name(bit)));
    return list;
}

static json_t *matrices_of(const ful_caps *c)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < c->matrix_count; i++) {
        char text[48];
        snprintf(text, sizeof text, "%ux%ux%u", c->matrix[i].m, c->matrix[i].n, c->matrix[i].k);
        (void)json_array_append_new(list, json_string(text));
    }
    return list;
}

static json_t *rates_of(ful_device *device)
{
    static const struct {
        const char *unit;
        double factor;
    } units[] = {{"GB/s", 1e-9}, {"TFLOP/s", 1e-12}, {"Top/s", 1e-12}, {"us", 1e6}};
    json_t *list = json_array();
    for (int i = 0; i < FUL_RATE_COUNT && !cli_interrupted(); i++) {
        ful_rate_result r = {0};
        json_t *o = json_object();
        int u = i <= FUL_RATE_WRITE ? 0 : i == FUL_RATE_INT_DOT ? 2 : i < FUL_RATE_DISPATCH ? 1 : 3;
        bool good = ful_device_measure(device, (ful_rate)i, &r) == FUL_OK;
        set_text(o, "what", r.name ? r.name : "");
        set_text(o, "unit", units[u].unit);
        if (good) {
            report_set_number(o, "median", r.median * units[u].factor);
            report_set_number(o, "least", r.least * units[u].factor);
            report_set_number(o, "most", r.most * units[u].factor);
            set_count(o, "runs", r.runs);
        } else {
            set_text(o, "left_out", ful_last_error());
        }
        (void)json_array_append_new(list, o);
    }
    return list;
}

json_t *report_device(ful_device *device)
{
    const ful_device_info *d = ful_device_get_info(device);
    const ful_caps *c = &d->caps;
    json_t *o = json_object();
    set_text(o, "name", d->name);
    set_text(o, "kind", ful_device_kind_name(d->kind));
    set_text(o, "driver", d->driver);
    set_count(o, "vendor_id", d->vendor_id);
    set_count(o, "device_id", d->device_id);
    report_set(o, "pci", d->pci[0] ? report_string(d->pci) : json_null());
    report_set_number(o, "memory_mib", mib(c->device_memory_bytes));
    report_set_number(o, "host_visible_mib", mib(c->host_visible_local_bytes));
    report_set(o, "unified_memory", json_boolean(c->unified_memory));
    report_set_number(o, "binding_mib", mib(c->storage_range_bytes));
    report_set_number(o, "allocation_mib", mib(c->allocation_bytes));
    set_count(o, "workgroup_invocations", c->workgroup_invocations);
    report_set_number(o, "shared_kib", c->shared_bytes / 1024.0);
    set_count(o, "subgroup_size", c->subgroup_size);
    set_count(o, "storage_buffers", c->storage_buffers);
    report_set(o, "features", features_of(c));
    report_set(o, "matrices", matrices_of(c));
    set_count(o, "tuned_choices", bench_tuned_choices(device));
    report_set(o, "rates", rates_of(device));
    return o;
}

/* ---- ops ---- */

typedef struct ops_list {
    json_t *results;
    double bandwidth, peak; /* GB/s, TFLOP/s; 0: unknown */
} ops_list;

/* At most what the memory can bring or the arithmetic can compute, whichever is less. */
static double roof_of(const ops_list *l, double intensity)
{
    double by_memory = l->bandwidth * intensity / 1e3;
    return l->peak > 0.0 && l->peak < by_memory ? l->peak : by_memory;
}

static void take_op(void *ctx, const bench_result *r)
{
    ops_list *l = ctx;
    json_t *o = json_object();
    bool ok = !r->left_out[0] && !r->wrong;
    set_text(o, "op", r->op);
    set_text(o, "size", r->detail);
    set_count(o, "rows", r->rows);
    if (r->left_out[0] && !r->fault) {
        set_text(o, "left_out", r->left_out);
    } else {
        report_set(o, "ok", json_boolean(ok));
        if (!ok)
            set_text(o, "failed", r->fault ? r->left_out : r->wrong);
    }
    if (ok) {
        double intensity = r->bytes > 0.0 ? r->flops / r->bytes : 0.0;
        double roof = roof_of(l, intensity);
        report_set_number(o, "us", r->us);
        report_set_number(o, "least", r->least);
        report_set_number(o, "most", r->most);
        report_set_number(o, "gb_per_s", r->gbps);
        report_set_number(o, "tflop_per_s", r->tflops);
        report_set_number(o, "flop_per_byte", intensity);
        if (roof > 0.0)
            report_set_number(o, "percent_of_roof", 100.0 * r->tflops / roof);
        report_set_number(o, "error", r->error);
        report_set_number(o, "limit", r->limit);
    }
    (void)json_array_append_new(l->results, o);
    if (cli_is_terminal(stderr))
        fprintf(stderr, "\r  %-28s %7u rows ", r->op, r->rows);
}

static double rate_median(const json_t *rates, ful_rate which)
{
    return json_number_value(json_object_get(json_array_get(rates, which), "median"));
}

/* Shapes whose experts fit with room, so that reports of like devices compare. */
static const char *shape_for(const ful_device_info *d, bool quick)
{
    uint64_t gib = d->caps.device_memory_bytes >> 30;
    if (d->kind == FUL_DEVICE_CPU || gib < 2)
        return "tiny";
    if (d->kind != FUL_DEVICE_DISCRETE || gib < 7)
        return "small";
    return gib < 22 || quick ? "mid" : "real";
}

json_t *report_ops(ful_device *device, const json_t *rates, uint32_t seed, bool quick,
                   uint64_t until_ns)
{
    bench_ops_run run = {.reps = quick ? 3 : 9,
                         .seed = seed,
                         .shape_text = shape_for(ful_device_get_info(device), quick),
                         .model.device = device};
    (void)bench_ops_choose(&run); /* no text of the user's to misread */
    double matrix = rate_median(rates, FUL_RATE_MATRIX), f32 = rate_median(rates, FUL_RATE_F32);
    double read = rate_median(rates, FUL_RATE_READ), copy = rate_median(rates, FUL_RATE_COPY);
    ops_list l = {.results = json_array(),
                  .bandwidth = read > copy ? read : copy,
                  .peak = run.half && matrix > 0.0 ? matrix : f32};
    json_t *o = json_object();
    set_text(o, "shape", run.shape->name);
    set_text(o, "weights", ful_type_name(run.types.values[0]));
    set_text(o, "arithmetic", run.half ? "f16" : "f32");
    report_set_number(o, "roof_gb_per_s", l.bandwidth);
    report_set_number(o, "roof_tflop_per_s", l.peak);
    bench_ops_some(&run, until_ns, take_op, &l);
    if (cli_is_terminal(stderr))
        fprintf(stderr, "\r%48s\r", "");
    report_set(o, "results", l.results);
    return o;
}

/* ---- the model ---- */

static json_t *test_ops(const bench_test *t)
{
    json_t *list = json_array();
    for (uint32_t i = 0; i < t->op_count; i++) {
        const bench_op *op = &t->ops[i];
        json_t *o = json_object();
        set_text(o, "name", op->name);
        set_count(o, "calls", op->calls);
        report_set_number(o, "us", (double)op->ns / 1e3);
        if (t->profiled_ns > 0.0)
            report_set_number(o, "percent", 100.0 * (double)op->ns / t->profiled_ns);
        (void)json_array_append_new(list, o);
    }
    return list;
}

static json_t *test_of(const bench_test *t)
{
    json_t *o = json_object();
    set_text(o, "kind", t->decode ? "decode" : "prefill");
    set_count(o, "tokens", t->tokens);
    set_count(o, "depth", t->depth);
    if (t->left_out) {
        set_text(o, "left_out", "no time left");
        return o;
    }
    report_set(o, "ok", json_boolean(!t->wrong));
    if (t->wrong) {
        set_text(o, "failed", t->wrong);
        return o;
    }
    report_set_number(o, "tokens_per_s", t->rate.median);
    report_set_number(o, "least", t->rate.least);
    report_set_number(o, "most", t->rate.most);
    if (t->gpu_ns > 0.0)
        report_set_number(o, "gpu_us_per_token", t->gpu_ns / 1e3);
    report_set_number(o, "cpu_us_per_token", t->cpu_ns / 1e3);
    if (t->decode)
        report_set_number(o, "weight_gb_per_s", bench_weight_gbps(t));
    report_set_number(o, "experts", t->experts);
    set_count(o, "profiled_tokens", t->profiled_tokens);
    report_set(o, "ops", test_ops(t));
    return o;
}

json_t *report_model(const bench_run *b)
{
    const ful_model_info *i = ful_model_get_info(b->model.model);
    const ful_plan *p = ful_model_get_plan(b->model.model);
    json_t *o = json_object(), *tests = json_array();
    set_text(o, "name", report_base_name(b->name)); /* folders are nobody's business */
    set_text(o, "weights", ful_type_name(i->weight_type));
    set_text(o, "arithmetic", p->precision == FUL_PRECISION_F16 ? "f16" : "f32");
    set_count(o, "layers", i->block_count);
    set_count(o, "softmax_layers", i->softmax_block_count);
    set_count(o, "hidden", i->hidden_size);
    set_count(o, "experts", i->expert_count);
    set_count(o, "top_k", i->top_k);
    set_count(o, "width", i->intermediate_size);
    set_count(o, "vocab", i->vocab_size);
    set_count(o, "parameters", i->parameter_count);
    set_count(o, "active_parameters", i->active_parameter_count);
    report_set_number(o, "weight_mib", mib(p->weight_bytes));
    report_set_number(o, "total_mib", mib(p->total_bytes));
    report_set_number(o, "peak_mib", mib(b->peak_bytes));
    set_count(o, "chunk_tokens", p->chunk_tokens);
    report_set_number(o, "weights_ms", (double)b->model.weights_ns / 1e6);
    report_set_number(o, "pipelines_ms", (double)b->model.pipelines_ns / 1e6);
    for (uint32_t k = 0; k < b->test_count; k++)
        (void)json_array_append_new(tests, test_of(&b->tests[k]));
    report_set(o, "tests", tests);
    return o;
}

/* ---- greedy text ---- */

typedef struct greedy {
    const ful_tokenizer *tokenizer;
    uint64_t hash;
    uint32_t count;
    char text[2048]; /* enough for the tokens that are asked for; cut else */
    size_t bytes;
} greedy;

static bool take_token(void *ctx, int32_t token)
{
    greedy *g = ctx;
    size_t n;
    const char *bytes = ful_tokenizer_token_bytes(g->tokenizer, token, &n);
    for (int i = 0; i < 4; i++) /* FNV-1a */
        g->hash = (g->hash ^ ((uint32_t)token >> 8 * i & 255)) * 0x100000001b3u;
    g->count++;
    for (size_t i = 0; bytes && i < n && g->bytes + 1 < sizeof g->text; i++)
        g->text[g->bytes++] = bytes[i];
    return !cli_interrupted();
}

json_t *report_greedy(bench_run *b, const char *path)
{
    static const char prompt[] = "Once upon a time";
    enum { TOKENS = 64 };
    cli_model *m = &b->model;
    ful_tokenizer *t = NULL;
    size_t n;
    int32_t *ids = NULL;
    if (ful_tokenizer_load(&t, m->instance, path) == FUL_OK)
        ids = cli_encode(t, prompt, strlen(prompt), ful_model_get_info(m->model)->bos_token_id, &n);
    greedy g = {.tokenizer = t, .hash = 0xcbf29ce484222325u};
    ful_sampler_params first = {.struct_size = sizeof first};
    bool good =
        ids && ful_session_reset(m->session) == FUL_OK && cli_prefill(m, ids, n) == FUL_OK &&
        ful_generate(m->session, ful_generate_params(.max_tokens = TOKENS, .sampler = &first),
                     take_token, &g, NULL) == FUL_OK;
    free(ids);
    ful_tokenizer_destroy(&t);
    json_t *o = json_object();
    if (!good) {
        set_text(o, "left_out", ful_last_error());
        return o;
    }
    char hash[20];
    snprintf(hash, sizeof hash, "%016" PRIx64, g.hash);
    set_text(o, "prompt", prompt);
    set_count(o, "tokens", g.count);
    set_text(o, "hash", hash);
    set_text(o, "text", g.text);
    return o;
}

/* ---- correctness ---- */

static bool count_right(const json_t *list, json_t *o, const char *checked, const char *right)
{
    size_t i;
    json_t *value;
    uint64_t all = 0, good = 0;
    json_array_foreach(list, i, value)
    {
        const json_t *ok = json_object_get(value, "ok");
        all += json_is_boolean(ok);
        good += json_is_true(ok);
    }
    set_count(o, checked, all);
    set_count(o, right, good);
    return all == good;
}

json_t *report_correctness(const json_t *root, json_t *text)
{
    json_t *o = json_object();
    bool ops = count_right(report_at(root, "/ops/results"), o, "ops_checked", "ops_right");
    bool tests = count_right(report_at(root, "/model/tests"), o, "tests_checked", "tests_right");
    report_set(o, "ok", json_boolean(ops && tests));
    report_set(o, "greedy", text ? text : json_null());
    return o;
}
