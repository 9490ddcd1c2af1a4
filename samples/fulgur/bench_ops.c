/* fulgur bench ops: every op at the sizes of a model, checked in the same run. */
#include "bench_ops.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include <fulgur/tune.h>

static const bench_shape shapes[] = {
    {"real", 6144, 64, 8, 128, 64, 32, 2, 9216, 200064},
    {"mid", 2048, 16, 2, 128, 64, 16, 2, 1792, 32768},
    {"small", 1024, 8, 2, 128, 64, 8, 2, 1536, 8192},
    {"tiny", 256, 8, 2, 64, 32, 8, 2, 512, 1024},
};
enum { SHAPE_COUNT = sizeof shapes / sizeof *shapes, MOST_REPS = 101 };

typedef bench_rows row_list;
typedef bench_result result;
typedef bench_ops_run ops_run;

/* Prompts and steps that the published figures of this field are given for. */
static const row_list prompts = {{1024, 4096, 16384, 65536}, 4}, experts = {{512, 2048, 8192}, 3},
                      steps = {{1, 2, 4, 8, 16, 32, 64}, 7}, products = {{512, 2048}, 2},
                      norms = {{1, 2048}, 2}, single = {{1}, 1}, sequences = {{1, 16, 64, 256}, 4},
                      contexts = {{1024, 16384, 65536, 262144}, 4}, short_prompts = {{64, 256}, 2},
                      short_steps = {{1, 4, 16}, 3};

static const row_list *rows_of(const ops_run *b, const bench_kind *k)
{
    bool cpu = ful_device_get_info(b->model.device)->kind == FUL_DEVICE_CPU;
    if (b->rows.count)
        return &b->rows;
    if (strcmp(k->name, "sample") == 0)
        return &single;
    if (cpu)
        return k->decode ? &short_steps : &short_prompts;
    if (strncmp(k->name, "lightning", 9) == 0)
        return k->decode ? &sequences : &prompts;
    if (strncmp(k->name, "attention", 9) == 0)
        return k->decode ? &contexts : &prompts;
    if (strcmp(k->name, "moe") == 0)
        return &experts;
    if (strstr(k->name, "norm") || strcmp(k->name, "route") == 0 || strcmp(k->name, "embed") == 0)
        return &norms;
    return k->decode ? &steps : &products;
}

static bool parse_rows(const char *name, const char *text, row_list *out)
{
    for (const char *p = text; p && *p;) {
        char *end;
        unsigned long v = strtoul(p, &end, 10);
        if (end == p || *p == '-' || v == 0 || v > 1u << 20 || (*end && *end != ',') ||
            out->count == BENCH_MOST_ROWS) {
            fprintf(stderr,
                    "fulgur bench ops: --%s takes up to %d numbers from 1 to 1048576 with commas "
                    "between, not '%s'\n",
                    name, BENCH_MOST_ROWS, text);
            return false;
        }
        out->values[out->count++] = (uint32_t)v;
        p = *end ? end + 1 : end;
    }
    return true;
}

/* ---- one case ---- */

/* A quiet NaN with marks of its own: what a kernel leaves out is found. */
static const uint32_t POISON = 0x7fc0dead;

static bool run_once(bench_case *c, double *us)
{
    if (!bench_case_restore(c) || ful_buffer_fill(c->out, POISON) != FUL_OK)
        return false;
    uint64_t start = cli_now_ns();
    if (ful_stream_run(c->stream, &c->step) != FUL_OK)
        return false;
    uint64_t wall = cli_now_ns() - start, gpu = ful_stream_span_ns(c->stream);
    *us = (double)(gpu ? gpu : wall) / 1e3;
    return true;
}

/* True if every word of the output was written and is a finite number. */
static bool out_is_whole(const bench_case *c, const char **wrong)
{
    enum { AT_ONCE = 1 << 20 };
    uint32_t *words = malloc(4 * (size_t)AT_ONCE);
    bool good = words != NULL;
    for (uint64_t at = 0; good && at < c->out_floats; at += AT_ONCE) {
        uint64_t n = c->out_floats - at < AT_ONCE ? c->out_floats - at : AT_ONCE;
        good = ful_buffer_read(c->out, 4 * at, words, 4 * n) == FUL_OK;
        for (uint64_t i = 0; good && i < n; i++)
            if ((words[i] & 0x7f800000u) == 0x7f800000u)
                *wrong = words[i] == POISON ? "left out" : "not finite";
    }
    free(words);
    return good;
}

/* For tests of this program: a result that no check may let pass. */
static bool spoil(const bench_case *c)
{
    const char *want = getenv("FULGUR_BENCH_SPOIL");
    uint32_t word;
    if (!want || strcmp(want, c->kind->name) != 0)
        return true;
    if (ful_buffer_read(c->out, 0, &word, 4) != FUL_OK)
        return false;
    float value = 1e6f;
    memcpy(&word, &value, 4);
    return ful_buffer_fill(c->out, word) == FUL_OK;
}

static bool measure(ops_run *b, bench_case *c, result *r)
{
    enum { WARM_MS = 500, LONG_MS = 400 };
    double values[MOST_REPS], us = 0.0;
    bool cpu = ful_device_get_info(c->device)->kind == FUL_DEVICE_CPU;
    /* The first run compiles, while the device idles. */
    if (!run_once(c, &us))
        return false;
    uint64_t start = cli_now_ns();
    do
        if (!run_once(c, &us))
            return false;
    while (!cpu && cli_now_ns() - start < WARM_MS * 1000000u);
    /* Long runs are repeated less often, but never less than three times. */
    uint32_t reps = b->reps;
    while (reps > 3 && us * reps > LONG_MS * 1e3)
        reps--;
    for (uint32_t i = 0; i < reps; i++)
        if (!run_once(c, &values[i]))
            return false;
    if (!spoil(c) || !out_is_whole(c, &r->wrong))
        return false;
    bench_spread s = bench_spread_of(values, reps);
    r->us = s.median;
    r->least = s.least;
    r->most = s.most;
    if (r->wrong)
        return true;
    if (!c->kind->check(c))
        return false;
    r->error = c->error;
    r->limit = c->limit;
    if (!(c->error <= c->limit))
        r->wrong = "wrong";
    r->bytes = c->bytes;
    r->flops = c->flops;
    r->gbps = c->bytes / s.median / 1e3;
    r->tflops = c->flops / s.median / 1e6;
    r->of_copy = b->copy > 0.0 ? 100.0 * r->gbps * 1e9 / b->copy : 0.0;
    r->of_read = b->read > 0.0 ? 100.0 * r->gbps * 1e9 / b->read : 0.0;
    r->of_rate = b->rate > 0.0 ? 100.0 * r->tflops * 1e12 / b->rate : 0.0;
    return true;
}

/* ---- output ---- */

static bool count_tuned(void *ctx, const ful_tune_trial *choice)
{
    uint32_t *count = ctx;
    *count += choice->chosen;
    return true;
}

uint32_t bench_tuned_choices(const ful_device *device)
{
    uint32_t count = 0;
    return ful_device_tuning(device, count_tuned, &count) == FUL_OK ? count : 0;
}

static void print_head(const ops_run *b)
{
    uint32_t tuned = bench_tuned_choices(b->model.device);
    const ful_device_info *d = ful_device_get_info(b->model.device);
    char types[16 * BENCH_MOST_TYPES] = "";
    for (uint32_t i = 0; i < b->types.count; i++)
        snprintf(types + strlen(types), sizeof types - strlen(types), "%s%s", i ? "," : "",
                 ful_type_name(b->types.values[i]));
    if (b->json) {
        printf("{\"device\": ");
        cli_print_json_string(d->name, strlen(d->name));
        printf(", \"driver\": ");
        cli_print_json_string(d->driver, strlen(d->driver));
        printf(", \"shape\": \"%s\", \"weights\": \"%s\", \"arithmetic\": \"%s\", "
               "\"tuned_choices\": %u, \"copy_bytes_per_s\": %.6g, \"read_bytes_per_s\": %.6g, "
               "\"matrix_flops_per_s\": %.6g, \"results\": [",
               b->shape->name, types, b->half ? "f16" : "f32", tuned, b->copy, b->read, b->rate);
    } else if (b->csv) {
        printf("device,driver,shape,weights,arithmetic,op,size,rows,us,least,most,gb_per_s,"
               "tflop_per_s,percent_of_copy,percent_of_read,percent_of_rate,error,limit,result\n");
    } else {
        printf("device   %s (%s), %s\n", d->name, ful_device_kind_name(d->kind), d->driver);
        printf("limits   copy %.0f GB/s, read %.0f GB/s, %s %.1f TFLOP/s, all measured\n",
               b->copy / 1e9, b->read / 1e9, b->rate_name, b->rate / 1e12);
        printf("shape    %s; %s weights, %s arithmetic, %u tuned choices\n\n", b->shape->name,
               types, b->half ? "f16" : "f32", tuned);
        printf("%-18s %-7s %7s %11s %23s %8s %7s %7s %8s %6s %9s  %s\n", "op", "weights", "rows",
               "us", "least .. most", "GB/s", "of copy", "of read", "TFLOP/s", "of max", "error",
               "size");
    }
}

static void print_result(ops_run *b, const result *r)
{
    const ful_device_info *d = ful_device_get_info(b->model.device);
    const char *type = r->type != FUL_TYPE_DEFAULT ? ful_type_name(r->type) : "-";
    if (b->json) {
        printf("%s\n  {\"op\": \"%s\", ", b->count ? "," : "", r->op);
        if (r->type != FUL_TYPE_DEFAULT && b->types.count > 1)
            printf("\"weights\": \"%s\", ", type);
        printf("\"size\": \"%s\", \"rows\": %u, ", r->detail, r->rows);
        if (r->wrong)
            printf("\"failed\": \"%s\"}", r->wrong);
        else
            printf("\"us\": %.3f, \"least\": %.3f, \"most\": %.3f, \"gb_per_s\": %.2f, "
                   "\"tflop_per_s\": %.4f, \"error\": %.3g, \"limit\": %.3g}",
                   r->us, r->least, r->most, r->gbps, r->tflops, r->error, r->limit);
    } else if (b->csv) {
        printf("\"%s\",\"%s\",%s,%s,%s,%s,\"%s\",%u,", d->name, d->driver, b->shape->name, type,
               b->half ? "f16" : "f32", r->op, r->detail, r->rows);
        if (r->wrong)
            printf(",,,,,,,,,,FAILED: %s\n", r->wrong);
        else
            printf("%.3f,%.3f,%.3f,%.2f,%.4f,%.1f,%.1f,%.1f,%.3g,%.3g,right\n", r->us, r->least,
                   r->most, r->gbps, r->tflops, r->of_copy, r->of_read, r->of_rate, r->error,
                   r->limit);
    } else if (r->wrong) {
        printf("%-18s %-7s %7u %11s  FAILED: %s", r->op, type, r->rows, "-", r->wrong);
        if (r->limit > 0.0)
            printf(", error %.2e above %.0e", r->error, r->limit);
        printf("; %s\n", r->detail);
    } else {
        char spread[48];
        snprintf(spread, sizeof spread, "%.2f .. %.2f", r->least, r->most);
        printf("%-18s %-7s %7u %11.2f %23s %8.1f %5.0f %% %5.0f %% %8.2f %4.0f %% %9.1e  %s\n",
               r->op, type, r->rows, r->us, spread, r->gbps, r->of_copy, r->of_read, r->tflops,
               r->of_rate, r->error, r->detail);
    }
    fflush(stdout);
    b->count++;
}

/* ---- all of them ---- */

static result run_case(ops_run *b, const bench_kind *kind, ful_type type, uint32_t rows)
{
    uint64_t now = 0, peak = 0;
    ful_device_memory(b->model.device, &now, &peak);
    const ful_caps *caps = &ful_device_get_info(b->model.device)->caps;
    bool contexts_vary = strcmp(kind->name, "attention decode") == 0;
    bench_case c = {.kind = kind,
                    .shape = b->shape,
                    .device = b->model.device,
                    .type = type,
                    .half = b->half,
                    .rows = contexts_vary ? 1 : rows,
                    .keys = rows,
                    .memory = (caps->device_memory_bytes - now) / 5 * 4,
                    .seed = b->seed};
    result r = {.op = kind->name, .type = kind->weights ? type : FUL_TYPE_DEFAULT, .rows = rows};
    bool good =
        ful_stream_begin(&c.stream, c.device, ful_stream_params(.half = b->half)) == FUL_OK &&
        kind->make(&c) && measure(b, &c, &r);
    memcpy(r.detail, c.detail, sizeof r.detail);
    r.fault = !good && !c.skip;
    if (!good)
        snprintf(r.left_out, sizeof r.left_out, "%s", c.skip ? c.skip : ful_last_error());
    b->failed |= r.fault || (good && r.wrong);
    bench_case_free(&c);
    return r;
}

static void measure_limits(ops_run *b)
{
    ful_rate_result r;
    if (ful_device_measure(b->model.device, FUL_RATE_COPY, &r) == FUL_OK)
        b->copy = r.median;
    if (ful_device_measure(b->model.device, FUL_RATE_READ, &r) == FUL_OK)
        b->read = r.median;
    static const struct {
        ful_rate rate;
        const char *name;
    } from[] = {{FUL_RATE_MATRIX, "f16 matrices"}, {FUL_RATE_F32, "f32"}};
    for (int i = b->half ? 0 : 1; i < 2 && b->rate == 0.0; i++)
        if (ful_device_measure(b->model.device, from[i].rate, &r) == FUL_OK) {
            b->rate = r.median;
            b->rate_name = from[i].name;
        }
}

static void take(ops_run *b, result r)
{
    if (!r.left_out[0]) {
        print_result(b, &r);
        return;
    }
    fprintf(stderr, "fulgur bench ops: %s of %u rows", r.op, r.rows);
    if (r.type != FUL_TYPE_DEFAULT)
        fprintf(stderr, ", %s weights", ful_type_name(r.type));
    fprintf(stderr, "%s: %s\n", r.fault ? "" : " left out", r.left_out);
}

static void run_all(ops_run *b)
{
    measure_limits(b);
    print_head(b);
    for (uint32_t k = 0; k < bench_kind_count; k++) {
        const bench_kind *kind = &bench_kinds[k];
        if (b->filter && !strstr(kind->name, b->filter))
            continue;
        const row_list *rows = rows_of(b, kind);
        uint32_t types = kind->weights ? b->types.count : 1;
        for (uint32_t i = 0; i < rows->count * types && !cli_interrupted(); i++)
            take(b, run_case(b, kind, b->types.values[i % types], rows->values[i / types]));
    }
    if (b->json)
        printf("\n]}\n");
    else if (!b->csv)
        printf(
            "\ntime of the device from an op's first dispatch to its last one's end; GB/s and "
            "TFLOP/s: what must\nmove and be computed at least, weights in bytes of files; error: "
            "norm of the difference from double\nprecision, with the weights a host decodes, over "
            "its norm\n");
}

/* A case is run at least five times; the work of attention grows with the square of a prompt. */
static bool has_time(const result *smaller, uint32_t rows, uint64_t until_ns)
{
    enum { RUNS = 5 };
    uint64_t now = cli_now_ns();
    double ratio = (double)rows / (double)smaller->rows;
    if (strcmp(smaller->op, "attention prefill") == 0)
        ratio *= ratio;
    return now < until_ns && smaller->us * 1e3 * ratio * RUNS < (double)(until_ns - now);
}

void bench_ops_some(ops_run *b, uint64_t until_ns, void (*give)(void *ctx, const result *r),
                    void *ctx)
{
    enum { MOST_KINDS = 64 };
    result first[MOST_KINDS] = {0};
    for (uint32_t round = 0; round < 2; round++)
        for (uint32_t k = 0; k < bench_kind_count && k < MOST_KINDS && !cli_interrupted(); k++) {
            const row_list *rows = rows_of(b, &bench_kinds[k]);
            uint32_t n = rows->values[round ? rows->count / 2 : 0];
            result r = {.op = bench_kinds[k].name, .rows = n};
            if (round == 0)
                first[k] = r;
            else if (rows->count < 2 || first[k].left_out[0])
                continue;
            if (has_time(&first[k], n, until_ns))
                r = run_case(b, &bench_kinds[k], b->types.values[0], n);
            else
                snprintf(r.left_out, sizeof r.left_out, "no time left");
            if (round == 0)
                first[k] = r;
            give(ctx, &r);
        }
}

bool bench_ops_choose(ops_run *b)
{
    bool cpu = ful_device_get_info(b->model.device)->kind == FUL_DEVICE_CPU;
    const char *shape = b->shape_text ? b->shape_text : cpu ? "tiny" : "real";
    for (int i = 0; i < SHAPE_COUNT; i++)
        if (strcmp(shapes[i].name, shape) == 0)
            b->shape = &shapes[i];
    const char *p = b->model.precision_text;
    b->half = p && strcmp(p, "f32") == 0 ? false : (p && strcmp(p, "f16") == 0) || !cpu;
    return bench_types_parse(&bench_ops, b->type_text, BENCH_MOST_TYPES, FUL_TYPE_F16, &b->types) &&
           parse_rows("rows", b->rows_text, &b->rows);
}

static int run(int argc, char **argv)
{
    ops_run b = {.reps = 15, .seed = 1};
    const cli_option options[] = {
        {'d', "device", "NAME|INDEX", CLI_TEXT, &b.model.device_text, "device to measure"},
        {0, "caps", "LIST", CLI_TEXT, &b.model.caps_text,
         "what to pretend absent, as in FULGUR_CAPS: chooses other variants"},
        {0, "precision", "f16|f32", CLI_CHOICE, &b.model.precision_text,
         "arithmetic; f16 except on CPU devices"},
        {'t', "type", "LIST", CLI_TEXT, &b.type_text,
         "weights, one type or several with commas between: f32, bf16, q8_0, q4_k, ...; all; f16"},
        {0, "shape", "real|mid|small|tiny", CLI_CHOICE, &b.shape_text,
         "sizes; real, tiny on CPU devices"},
        {'f', "filter", "TEXT", CLI_TEXT, &b.filter, "only ops whose name has it"},
        {'n', "rows", "LIST", CLI_TEXT, &b.rows_text,
         "tokens, sequences or keys instead of each op's own"},
        {'r', "reps", "N", CLI_UINT, &b.reps, "runs of each; 15"},
        {0, "seed", "N", CLI_UINT64, &b.seed, "of inputs; 1"},
        {0, "json", NULL, CLI_FLAG, &b.json, "print JSON"},
        {0, "csv", NULL, CLI_FLAG, &b.csv, "print comma-separated values"},
        {'v', "verbose", NULL, CLI_FLAG, &b.model.verbose, "log what the library does"}};
    int first, code = cli_parse(&bench_ops, argc, argv, options,
                                (int)(sizeof options / sizeof *options), &first);
    if (code >= 0)
        return code;
    if (first < argc || b.reps == 0 || b.reps > MOST_REPS) {
        if (first < argc)
            fprintf(stderr, "fulgur bench ops: unexpected argument '%s'\n", argv[first]);
        else
            fprintf(stderr, "fulgur bench ops: --reps is from 1 to %d\n", MOST_REPS);
        return CLI_USAGE;
    }
    if (!bench_types_parse(&bench_ops, b.type_text, BENCH_MOST_TYPES, FUL_TYPE_F16, &b.types))
        return CLI_USAGE;
    if (!cli_open_instance(&b.model.instance, b.model.verbose))
        return CLI_FAILED;
    cli_watch_interrupt();
    code = cli_open_device(&b.model) == FUL_OK ? CLI_OK : cli_fail("device");
    if (code == CLI_OK && !bench_ops_choose(&b))
        code = CLI_USAGE;
    if (code == CLI_OK)
        run_all(&b);
    if (code == CLI_OK && (b.failed || cli_interrupted()))
        code = cli_interrupted() ? CLI_INTERRUPTED : CLI_FAILED;
    ful_device_close(&b.model.device);
    ful_instance_destroy(&b.model.instance);
    return code;
}

const cli_command bench_ops = {"bench ops", "[options]",
                               "every op at the sizes of a model, checked in the same run", run};
