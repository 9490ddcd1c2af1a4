/* fulgur bench lengths: what a long prompt costs in a lightning layer and in a softmax layer. One
 * pass over the longest prompt in chunks, the state carried from one to the next, gives the times
 * of all shorter ones on its way. */
#include "bench.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "bench_model.h"
#include "svg.h"

enum { MAX_REPS = 16 };

/* Of one kind of layer. */
typedef struct curve {
    uint32_t marks[BENCH_LIST]; /* ascending */
    uint32_t count;
    double op_ms[BENCH_LIST][MAX_REPS]; /* attention alone, from the first token on */
    double layer_ms[BENCH_LIST][MAX_REPS];
    bench_spread op[BENCH_LIST], layer[BENCH_LIST];
    uint64_t held_bytes[BENCH_LIST];   /* device memory when the mark was reached */
    uint64_t memory_bytes[BENCH_LIST]; /* that a token's attention reads: state, or keys and values
                                          so far */
    bool same;                         /* logits after each pass */
} curve;

typedef struct lengths {
    cli_model model;
    ful_synthetic_params made;
    uint32_t reps;
    uint64_t seed;
    curve lightning, softmax;
    char device[300];
    uint32_t heads, head_dim, chunk, hidden, experts, width;
    ful_precision precision;
    bool timed;
} lengths;

static bool is_attention(const char *name)
{
    return strncmp(name, "lightning", 9) == 0 || strncmp(name, "attention", 9) == 0 ||
           strncmp(name, "rope", 4) == 0;
}

/* Layer 0 of two: the last one's experts need not run before the last chunk. */
static ful_result add_step(ful_session *s, double *op_ns, double *layer_ns, bool *timed)
{
    const ful_step_time *times;
    size_t n;
    ful_result r = ful_session_profile(s, &times, &n);
    for (size_t i = 0; i < n && r == FUL_OK; i++) {
        if (times[i].layer != 0)
            continue;
        *timed = true;
        *layer_ns += (double)times[i].ns;
        if (is_attention(times[i].name))
            *op_ns += (double)times[i].ns;
    }
    return r;
}

static ful_result pass(lengths *l, curve *c, uint32_t rep, int32_t *tokens, bool kv)
{
    ful_session *s = l->model.session;
    const ful_model_info *info = ful_model_get_info(l->model.model);
    uint64_t peak;
    double op = 0.0, layer = 0.0;
    uint32_t at = 0;
    ful_result r = ful_session_reset(s);
    for (uint32_t i = 0; i < c->count && r == FUL_OK; i++) {
        while (at < c->marks[i] && r == FUL_OK && !cli_interrupted()) {
            uint32_t take = c->marks[i] - at < l->chunk ? c->marks[i] - at : l->chunk;
            for (uint32_t k = 0; k < take; k++)
                tokens[k] = bench_token(l->seed, at + k, info->vocab_size);
            r = ful_prefill(s, tokens, take);
            if (r == FUL_OK)
                r = add_step(s, &op, &layer, &l->timed);
            at += take;
        }
        c->op_ms[i][rep] = op / 1e6;
        c->layer_ms[i][rep] = layer / 1e6;
        ful_device_memory(l->model.device, &c->held_bytes[i], &peak);
        /* The plan's states are of both layers, and its keys and values are in its precision. */
        uint64_t token = info->kv_bytes_per_token / 2 / (l->precision == FUL_PRECISION_F16 ? 2 : 1);
        c->memory_bytes[i] = kv ? token * c->marks[i] : info->state_bytes / 2;
        if (cli_interrupted())
            return FUL_OK;
    }
    return r;
}

static ful_result compare_logits(ful_session *s, curve *c, float *want, bool first)
{
    const float *logits;
    size_t n;
    ful_result r = ful_logits(s, &logits, &n);
    if (r != FUL_OK)
        return r;
    if (first)
        memcpy(want, logits, n * sizeof *want);
    else
        c->same = c->same && memcmp(want, logits, n * sizeof *want) == 0;
    return FUL_OK;
}

static int run_curve(lengths *l, curve *c, bool softmax)
{
    if (c->count == 0)
        return CLI_OK;
    l->made.block_count = 2;
    l->made.softmax_every = softmax ? 1 : 3;
    l->made.context_length = c->marks[c->count - 1];
    l->model.synthetic = &l->made;
    l->model.profile = true;
    int code = cli_open_model(&l->model, NULL, c->marks[c->count - 1]);
    if (code != CLI_OK)
        return code;
    const ful_plan *plan = ful_model_get_plan(l->model.model);
    const ful_model_info *info = ful_model_get_info(l->model.model);
    const ful_device_info *d = ful_device_get_info(l->model.device);
    snprintf(l->device, sizeof l->device, "%.140s, %.140s", d->name, d->driver);
    l->heads = info->head_count;
    l->head_dim = info->head_dim;
    l->hidden = info->hidden_size;
    l->experts = info->expert_count;
    l->width = info->intermediate_size;
    l->chunk = plan->chunk_tokens;
    l->precision = plan->precision;
    int32_t *tokens = malloc(l->chunk * sizeof *tokens);
    float *want = malloc(info->vocab_size * sizeof *want);
    ful_result r = FUL_OK;
    if (!tokens || !want) {
        fprintf(stderr, "fulgur: out of memory for a chunk of %u tokens\n", l->chunk);
        code = CLI_FAILED;
    }
    c->same = true;
    if (code == CLI_OK) { /* warm up */
        curve first = {.marks = {c->marks[0]}, .count = 1};
        r = pass(l, &first, 0, tokens, softmax);
    }
    for (uint32_t i = 0; i < l->reps && code == CLI_OK && r == FUL_OK && !cli_interrupted(); i++) {
        r = pass(l, c, i, tokens, softmax);
        if (r == FUL_OK && !cli_interrupted())
            r = compare_logits(l->model.session, c, want, i == 0);
    }
    for (uint32_t i = 0; i < c->count; i++) {
        c->op[i] = bench_spread_of(c->op_ms[i], l->reps);
        c->layer[i] = bench_spread_of(c->layer_ms[i], l->reps);
    }
    if (r != FUL_OK && !cli_interrupted())
        code = cli_fail("measuring");
    free(tokens);
    free(want);
    cli_close_model(&l->model);
    return cli_interrupted() ? CLI_INTERRUPTED : code;
}

/* ---- output ---- */

static void print_curve(const lengths *l, const curve *c, const char *kind)
{
    if (c->count == 0)
        return;
    printf("\n%-10s %12s %12s %12s %14s %14s %12s\n", kind, "attention", "whole layer", "tokens/s",
           "ns a token", "context MiB", "held MiB");
    for (uint32_t i = 0; i < c->count; i++)
        printf("%10u %9.3f ms %9.3f ms %12.0f %14.2f %14.3f %12.1f\n", c->marks[i], c->op[i].median,
               c->layer[i].median,
               c->layer[i].median > 0.0 ? c->marks[i] * 1e3 / c->layer[i].median : 0.0,
               c->op[i].median * 1e6 / c->marks[i], (double)c->memory_bytes[i] / 1048576.0,
               (double)c->held_bytes[i] / 1048576.0);
    printf("logits after %u passes: %s\n", l->reps, c->same ? "finite, same" : "DIFFERENT");
}

static void print_table(const lengths *l)
{
    printf("%s\n%u heads of %u, hidden %u, %u experts of %u; %s; chunks of %u tokens; one layer of "
           "each kind, its ops timed one by one\n",
           l->device, l->heads, l->head_dim, l->hidden, l->experts, l->width,
           l->precision == FUL_PRECISION_F16 ? "f16" : "f32", l->chunk);
    if (!l->timed)
        printf("this device has no timestamps\n");
    print_curve(l, &l->lightning, "lightning");
    print_curve(l, &l->softmax, "softmax");
}

static void json_curve(const curve *c, const char *kind, bool last)
{
    printf(" \"%s\": {\"same\": %s, \"lengths\": [", kind, c->same ? "true" : "false");
    for (uint32_t i = 0; i < c->count; i++)
        printf("%s\n  {\"tokens\": %u, \"attention_ms\": %.4f, \"attention_least_ms\": %.4f, "
               "\"attention_most_ms\": %.4f, \"layer_ms\": %.4f, \"context_bytes\": %" PRIu64
               ", \"held_bytes\": %" PRIu64 "}",
               i ? "," : "", c->marks[i], c->op[i].median, c->op[i].least, c->op[i].most,
               c->layer[i].median, c->memory_bytes[i], c->held_bytes[i]);
    printf("]}%s\n", last ? "" : ",");
}

static void print_json(const lengths *l)
{
    printf("{\"device\": ");
    cli_print_json_string(l->device, strlen(l->device));
    printf(", \"heads\": %u, \"head_dim\": %u, \"hidden\": %u, \"chunk_tokens\": %u, "
           "\"precision\": \"%s\", \"reps\": %u,\n",
           l->heads, l->head_dim, l->hidden, l->chunk,
           l->precision == FUL_PRECISION_F16 ? "f16" : "f32", l->reps);
    json_curve(&l->lightning, "lightning", false);
    json_curve(&l->softmax, "softmax", true);
    printf("}\n");
}

static bool plot(const lengths *l, const char *path)
{
    static double x[2][BENCH_LIST], op[2][BENCH_LIST], layer[BENCH_LIST];
    const curve *curves[2] = {&l->lightning, &l->softmax};
    for (int k = 0; k < 2; k++)
        for (uint32_t i = 0; i < curves[k]->count; i++) {
            x[k][i] = curves[k]->marks[i];
            op[k][i] = curves[k]->op[i].median;
            if (k == 0)
                layer[i] = curves[k]->layer[i].median;
        }
    char subtitle[160];
    snprintf(subtitle, sizeof subtitle,
             "%u heads of %u, hidden %u, %u experts of %u, %s, chunks of %u tokens", l->heads,
             l->head_dim, l->hidden, l->experts, l->width,
             l->precision == FUL_PRECISION_F16 ? "f16" : "f32", l->chunk);
    svg_plot p = {.title = "Prefill of one layer",
                  .subtitle = subtitle,
                  .source = l->device,
                  .x_label = "tokens",
                  .y_label = "ms on the device",
                  .binary_x = true};
    if (l->lightning.count) {
        p.series[p.count++] =
            (svg_series){"lightning attention", x[0], op[0], l->lightning.count, false};
        p.series[p.count++] =
            (svg_series){"whole lightning layer", x[0], layer, l->lightning.count, true};
    }
    if (l->softmax.count)
        p.series[p.count++] =
            (svg_series){"softmax attention", x[1], op[1], l->softmax.count, false};
    if (svg_write(path, &p))
        return true;
    fprintf(stderr, "fulgur: %s: %s\n", path, l->timed ? strerror(errno) : "nothing was timed");
    return false;
}

/* ---- the command ---- */

/* Doubled from `least` on, up to `most`. */
static void make_marks(curve *c, uint32_t least, uint32_t most)
{
    c->count = 0;
    for (uint64_t t = least; t <= most && c->count < BENCH_LIST; t *= 2)
        c->marks[c->count++] = (uint32_t)t;
}

static int run(int argc, char **argv)
{
    static lengths l;
    uint32_t least = 4096, most = 1u << 20, softmax = 65536;
    const char *type = NULL, *svg = NULL;
    bool json = false;
    l = (lengths){.reps = 3, .seed = 1, .made = {.struct_size = sizeof l.made}};
    cli_option options[CLI_MODEL_OPTIONS + 11] = {
        {0, "preset", "NAME", CLI_TEXT, &l.made.preset,
         "dimensions of the layer: tiny, small, mid, full8, ... (default mid)"},
        {0, "type", "TYPE", CLI_TEXT, &type, "weights: f16 (default), bf16, f32, q8_0, q4_k, ..."},
        {0, "experts", "N", CLI_UINT, &l.made.expert_count, "instead of the preset's"},
        {0, "from", "N", CLI_UINT, &least, "shortest prompt (default 4096)"},
        {0, "to", "N", CLI_UINT, &most, "longest prompt (default 1048576)"},
        {0, "softmax", "N", CLI_UINT, &softmax,
         "longest prompt of the softmax layer; 0 = none (default 65536)"},
        {'r', "reps", "N", CLI_UINT, &l.reps, "passes (default 3)"},
        {0, "seed", "N", CLI_UINT64, &l.seed, "of weights and tokens (default 1)"},
        {0, "svg", "FILE", CLI_TEXT, &svg, "also draw a plot"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
    };
    enum { OWN = 10 };
    cli_model_options(&l.model, options + OWN);
    int first,
        code = cli_parse(&bench_lengths, argc, argv, options, OWN + CLI_MODEL_OPTIONS, &first);
    if (code >= 0)
        return code;
    if (argc != first || l.reps == 0 || l.reps > MAX_REPS || least == 0 || least > most) {
        fprintf(stderr,
                "usage: fulgur bench lengths [options] (up to %d passes, --from at most --to; try "
                "--help)\n",
                MAX_REPS);
        return CLI_USAGE;
    }
    if (!l.made.preset)
        l.made.preset = "mid";
    bench_types types;
    if (!bench_types_parse(&bench_lengths, type, 1, FUL_TYPE_DEFAULT, &types))
        return CLI_USAGE;
    l.made.weight_type = types.values[0];
    l.made.seed = l.seed;
    make_marks(&l.lightning, least, most);
    make_marks(&l.softmax, least, softmax < most ? softmax : most);
    cli_watch_interrupt();
    code = run_curve(&l, &l.lightning, false);
    if (code == CLI_OK)
        code = run_curve(&l, &l.softmax, true);
    if (code != CLI_OK)
        return code;
    if (json)
        print_json(&l);
    else
        print_table(&l);
    if ((l.lightning.count && !l.lightning.same) || (l.softmax.count && !l.softmax.same))
        code = CLI_FAILED;
    return svg && code == CLI_OK && !plot(&l, svg) ? CLI_FAILED : code;
}

const cli_command bench_lengths = {"bench lengths", "[options]",
                                   "what prompts of growing length cost a layer", run};
