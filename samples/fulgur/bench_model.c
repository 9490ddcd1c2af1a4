/* fulgur bench model: prefill and decode speed of a model, loaded or made up, checked while it is
 * measured. */
#include "bench_model.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <fulgur/ops.h>

int32_t bench_token(uint64_t seed, uint64_t i, uint32_t vocab)
{
    uint64_t x = (seed + 1) * 0x9e3779b97f4a7c15u + i * 0xd1342543de82ef95u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    x = (x ^ x >> 32) * 0xd6e8feb86659fd93u;
    return (int32_t)((x ^ x >> 32) % vocab);
}

/* Of the calling thread; drivers that compute on the processor use others. */
static uint64_t cpu_now_ns(void)
{
#ifdef CLOCK_THREAD_CPUTIME_ID
    struct timespec t;
    if (clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t) == 0)
        return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
#endif
    return 0;
}

static bool parse_list(const char *what, const char *text, bench_list *out)
{
    out->count = 0;
    for (const char *p = text; p && *p;) {
        char *end;
        unsigned long long v = strtoull(p, &end, 10);
        if (end == p || *p == '-' || v > 1u << 30 || (*end && *end != ',') ||
            out->count == BENCH_LIST) {
            fprintf(stderr,
                    "fulgur bench model: --%s takes up to %d numbers with commas between, not "
                    "'%s'\n",
                    what, BENCH_LIST, text);
            return false;
        }
        out->values[out->count++] = (uint32_t)v;
        p = *end ? end + 1 : end;
    }
    return true;
}

/* ---- running ---- */

typedef struct feed {
    ful_session *session;
    int32_t *tokens; /* depth, then the test's */
    float *want;     /* logits of the first repetition */
    uint32_t vocab;
} feed;

static bool count_token(void *ctx, int32_t token)
{
    (void)token;
    ++*(uint32_t *)ctx;
    return !cli_interrupted();
}

/* As a program generates: each token drawn from the logits of the one before, with a temperature,
 * so that they vary. */
static ful_result decode_all(ful_session *s, uint64_t seed, uint32_t n)
{
    const int32_t never = -1;
    const ful_sampler_params *sampler = ful_sampler_params(.seed = seed, .temperature = 1.0f);
    uint32_t given = 0;
    return ful_generate(s,
                        ful_generate_params(.max_tokens = n, .sampler = sampler,
                                            .stop_tokens = &never, .n_stop_tokens = 1),
                        count_token, &given, NULL);
}

/* Fresh session, depth tokens in front; decoding needs one to draw from. */
static ful_result to_depth(bench_run *b, const feed *f, const bench_test *t)
{
    ful_result r = ful_session_reset(f->session);
    uint32_t n = t->depth == 0 && t->decode ? 1 : t->depth;
    return r == FUL_OK ? cli_prefill(&b->model, f->tokens, n) : r;
}

/* The library has checked that the logits are finite; here that they are those of the first time,
 * and not those of before the test. */
static ful_result check(const feed *f, bench_test *t, bool first)
{
    const float *logits;
    size_t n;
    ful_result r = ful_logits(f->session, &logits, &n);
    if (r != FUL_OK)
        return r;
    for (size_t i = 0; i < n; i++)
        if (!isfinite(logits[i]))
            t->wrong = "not finite";
    size_t bytes = n * sizeof *logits;
    if (first)
        memcpy(f->want, logits, bytes);
    else if (memcmp(f->want, logits, bytes) != 0)
        t->wrong = "differs from run to run";
    return FUL_OK;
}

/* Sums over repetitions. */
typedef struct spent {
    uint64_t cpu_ns, host_ns, gpu_ns;
} spent;

static ful_result run_once(bench_run *b, const feed *f, bench_test *t, uint32_t rep, double *rate,
                           spent *sum)
{
    ful_stats before, after;
    ful_result r = to_depth(b, f, t);
    if (r != FUL_OK || (r = ful_session_stats(f->session, &before)) != FUL_OK)
        return r;
    const int32_t *tokens = f->tokens + t->depth;
    uint64_t start = cli_now_ns(), cpu = cpu_now_ns();
    r = t->decode ? decode_all(f->session, b->seed, t->tokens)
                  : ful_prefill(f->session, tokens, t->tokens);
    uint64_t ns = cli_now_ns() - start;
    sum->cpu_ns += cpu_now_ns() - cpu;
    if (r != FUL_OK || (r = ful_session_stats(f->session, &after)) != FUL_OK)
        return r;
    sum->host_ns += after.decode_host_ns - before.decode_host_ns;
    sum->gpu_ns +=
        after.decode_gpu_ns + after.prefill_gpu_ns - before.decode_gpu_ns - before.prefill_gpu_ns;
    *rate = (double)t->tokens * 1e9 / (double)(ns ? ns : 1);
    t->dispatches = after.decode_dispatches;
    t->submits = after.decode_submits;
    return check(f, t, rep == 0);
}

static bool late(const bench_run *b)
{
    return b->until_ns && cli_now_ns() >= b->until_ns;
}

/* The first repetition records, warms up, and gives the logits that the others must repeat. */
static ful_result run_test(bench_run *b, const feed *f, bench_test *t)
{
    enum { WARM_MS = 300, WARM_RUNS = 20 }; /* idle GPUs take a while to reach their clocks */
    double rate;
    spent sum = {0};
    uint64_t until = cli_now_ns() + WARM_MS * 1000000ull;
    ful_result r = FUL_OK;
    for (uint32_t i = 0; i == 0 || (i < WARM_RUNS && cli_now_ns() < until && r == FUL_OK); i++)
        r = run_once(b, f, t, i, &rate, &sum);
    sum = (spent){0};
    uint32_t reps = 0;
    for (; reps < b->reps && r == FUL_OK && !cli_interrupted(); reps++) {
        if (reps > 0 && late(b))
            break;
        r = run_once(b, f, t, reps + 1, &t->tokens_per_s[reps], &sum);
    }
    if (r != FUL_OK || cli_interrupted())
        return r;
    t->rate = bench_spread_of(t->tokens_per_s, reps);
    double fed = (double)reps * t->tokens;
    t->cpu_ns = (double)sum.cpu_ns / fed;
    t->host_ns = (double)sum.host_ns / fed;
    t->gpu_ns = (double)sum.gpu_ns / fed;
    return FUL_OK;
}

/* ---- profile: the same work once more, in a session with timestamps around every op ---- */

static ful_result add_times(bench_test *t, ful_session *s)
{
    const ful_step_time *times;
    size_t n;
    ful_result r = ful_session_profile(s, &times, &n);
    for (size_t i = 0; i < n && r == FUL_OK; i++) {
        uint32_t at = 0;
        while (at < t->op_count && strcmp(t->ops[at].name, times[i].name) != 0)
            at++;
        if (at == BENCH_OPS)
            at--; /* more kinds of ops than there are: the last line sums what is left */
        bench_op *op = &t->ops[at];
        if (at == t->op_count)
            t->ops[t->op_count++] = (bench_op){.name = times[i].name};
        op->calls++;
        op->ns += times[i].ns;
        op->bytes += times[i].bytes;
        op->flops += times[i].flops;
        t->profiled_ns += (double)times[i].ns;
    }
    return r;
}

/* Logits that stay as they were were not written. */
static ful_result check_moved(const feed *f, bench_test *t, bool compare)
{
    const float *logits;
    size_t n;
    ful_result r = ful_logits(f->session, &logits, &n);
    if (r != FUL_OK)
        return r;
    if (compare && memcmp(f->want, logits, n * sizeof *logits) == 0)
        t->wrong = "two tokens give the same";
    memcpy(f->want, logits, n * sizeof *logits);
    return FUL_OK;
}

static int slower(const void *a, const void *b)
{
    const bench_op *x = a, *y = b;
    return (x->ns < y->ns) - (x->ns > y->ns);
}

static ful_result profile_test(bench_run *b, const feed *f, bench_test *t)
{
    enum { DECODED = 8 };
    uint32_t chunk = ful_model_get_plan(b->model.model)->chunk_tokens;
    uint32_t n = t->decode && t->tokens > DECODED ? (uint32_t)DECODED : t->tokens;
    /* What the first steps do once is not what is asked about. */
    ful_result r = to_depth(b, f, t);
    if (r == FUL_OK && t->depth == 0 && !t->decode)
        r = ful_prefill(f->session, f->tokens, t->tokens < chunk ? t->tokens : chunk);
    if (r == FUL_OK && t->depth == 0 && !t->decode)
        r = ful_session_reset(f->session);
    const int32_t *tokens = f->tokens + t->depth;
    for (uint32_t at = 0; at < n && r == FUL_OK && !cli_interrupted();) {
        uint32_t take = t->decode ? 1 : n - at < chunk ? n - at : chunk;
        r = t->decode ? ful_decode(f->session, tokens[at])
                      : ful_prefill(f->session, tokens + at, take);
        if (r == FUL_OK)
            r = add_times(t, f->session);
        if (r == FUL_OK)
            r = check_moved(f, t, at > 0);
        at += take;
    }
    t->profiled_tokens = n;
    qsort(t->ops, t->op_count, sizeof *t->ops, slower);
    return r;
}

/* ---- which experts the tokens go to ---- */

typedef struct census {
    uint8_t *seen; /* [layers][experts] */
    uint32_t experts;
} census;

static bool note_routes(void *ctx, int32_t layer, size_t row, const ful_route *routes,
                        size_t n_tokens, uint32_t top_k)
{
    census *c = ctx;
    (void)row;
    for (size_t i = 0; i < n_tokens * top_k; i++)
        if (routes[i].expert < c->experts)
            c->seen[(size_t)layer * c->experts + routes[i].expert] = 1;
    return !cli_interrupted();
}

static ful_result count_experts(bench_run *b, const feed *f, bench_test *t)
{
    const ful_model_info *info = ful_model_get_info(b->model.model);
    uint32_t layers = info->block_count;
    census c = {calloc((size_t)layers * info->expert_count, 1), info->expert_count};
    if (!c.seen)
        return FUL_OK; /* the other figures stand without */
    ful_result r = to_depth(b, f, t);
    if (r == FUL_OK)
        r = ful_prefill_routes(f->session, f->tokens + t->depth, t->tokens, note_routes, &c);
    t->least_experts = c.experts;
    for (uint32_t l = 0; l < layers && r == FUL_OK; l++) {
        uint32_t n = 0;
        for (uint32_t e = 0; e < c.experts; e++)
            n += c.seen[(size_t)l * c.experts + e];
        t->experts += (double)n / layers;
        if (n < t->least_experts)
            t->least_experts = n;
    }
    free(c.seen);
    return r;
}

int bench_model_tests(bench_run *b, size_t most)
{
    const ful_model_info *info = ful_model_get_info(b->model.model);
    feed f = {.session = b->model.session,
              .vocab = info->vocab_size,
              .tokens = malloc((most + 1) * sizeof(int32_t)),
              .want = malloc(info->vocab_size * sizeof(float))};
    ful_result r = FUL_OK;
    int code = CLI_OK;
    if (!f.tokens || !f.want) {
        fprintf(stderr, "fulgur: out of memory for %zu tokens\n", most);
        code = CLI_FAILED;
    }
    for (size_t i = 0; i <= most && code == CLI_OK; i++)
        f.tokens[i] = bench_token(b->seed, i, f.vocab);
    for (uint32_t i = 0; i < b->test_count && code == CLI_OK && r == FUL_OK; i++) {
        bench_test *t = &b->tests[i];
        t->weight_bytes = t->decode ? (double)info->active_weight_bytes : 0.0;
        t->left_out = i > 1 && late(b);
        if (!t->left_out)
            r = run_test(b, &f, t);
    }
    if (code == CLI_OK && r == FUL_OK && !cli_interrupted()) {
        b->model.profile = true;
        r = cli_open_session(&b->model);
        f.session = b->model.session;
    }
    for (uint32_t i = 0; i < b->test_count && code == CLI_OK && r == FUL_OK && !cli_interrupted();
         i++)
        if (!b->tests[i].left_out && (r = profile_test(b, &f, &b->tests[i])) == FUL_OK)
            r = count_experts(b, &f, &b->tests[i]);
    if (r != FUL_OK && !cli_interrupted())
        code = cli_fail("measuring");
    free(f.tokens);
    free(f.want);
    return cli_interrupted() ? CLI_INTERRUPTED : code;
}

/* ---- the command ---- */

bool bench_model_add(bench_run *b, const bench_list *prefill, const bench_list *decode,
                     const bench_list *depths, size_t *most)
{
    *most = 0;
    for (uint32_t d = 0; d < depths->count; d++)
        for (uint32_t i = 0; i < prefill->count + decode->count; i++) {
            bool decodes = i >= prefill->count;
            uint32_t n = decodes ? decode->values[i - prefill->count] : prefill->values[i];
            if (n == 0)
                continue;
            if (b->test_count == BENCH_TESTS) {
                fprintf(stderr, "fulgur bench model: more than %d tests\n", BENCH_TESTS);
                return false;
            }
            bench_test *t = &b->tests[b->test_count++];
            *t = (bench_test){.decode = decodes, .tokens = n, .depth = depths->values[d]};
            t->tokens_per_s = calloc(b->reps, sizeof(double));
            if (!t->tokens_per_s) {
                fprintf(stderr, "fulgur: out of memory for %u repetitions\n", b->reps);
                return false;
            }
            size_t whole = (size_t)t->depth + n + (decodes && t->depth == 0);
            if (whole > *most)
                *most = whole;
        }
    return true;
}

static double rate_of(ful_device *device, ful_rate rate)
{
    ful_rate_result r;
    return ful_device_measure(device, rate, &r) == FUL_OK ? r.median : 0.0;
}

static int measure(bench_run *b, const char *path, size_t most, const char *format)
{
    int code = cli_open_model(&b->model, path, most);
    if (code != CLI_OK)
        return code;
    b->type = ful_model_get_info(b->model.model)->weight_type;
    code = bench_model_tests(b, most);
    if (code == CLI_OK) {
        /* In the same run, and last: the device is warm. */
        uint64_t now;
        ful_device_memory(b->model.device, &now, &b->peak_bytes);
        ful_session_destroy(&b->model.session);
        b->read = rate_of(b->model.device, FUL_RATE_READ);
        b->copy = rate_of(b->model.device, FUL_RATE_COPY);
        b->matrix = rate_of(b->model.device, FUL_RATE_MATRIX);
        if (strcmp(format, "json") == 0)
            bench_model_json(b);
        else if (strcmp(format, "csv") == 0)
            bench_model_csv(b);
        else
            bench_model_table(b);
        if (b->profile && strcmp(format, "table") == 0)
            bench_model_ops(b);
        for (uint32_t i = 0; i < b->test_count; i++)
            if (b->tests[i].wrong)
                code = CLI_FAILED;
    }
    cli_close_model(&b->model);
    return code;
}

static int run(int argc, char **argv)
{
    static bench_run b;
    ful_synthetic_params made = {.struct_size = sizeof made};
    const char *path = NULL, *type = NULL, *first_token = NULL;
    const char *p_text = NULL, *n_text = NULL, *d_text = "0";
    bool json = false, csv = false;
    b = (bench_run){.reps = 5, .seed = 1};
    cli_option options[CLI_MODEL_OPTIONS + 24] = {
        {0, "preset", "NAME", CLI_TEXT, &made.preset,
         "make a model up: tiny, small, mid, full8x8, full8, full16, full80"},
        {'m', "model", "DIR", CLI_TEXT, &path, "load a model"},
        {0, "type", "TYPE", CLI_TEXT, &type,
         "weights made up: f16 (default), bf16, f32, q8_0, q4_k, ..."},
        {0, "layers", "N", CLI_UINT, &made.block_count, "dimensions other than the preset's:"},
        {0, "hidden", "N", CLI_UINT, &made.hidden_size, ""},
        {0, "experts", "N", CLI_UINT, &made.expert_count, ""},
        {0, "width", "N", CLI_UINT, &made.intermediate_size, "of an expert"},
        {0, "top-k", "N", CLI_UINT, &made.top_k, "experts a token (default 2)"},
        {0, "vocab", "N", CLI_UINT, &made.vocab_size, ""},
        {0, "heads", "N", CLI_UINT, &made.head_count, ""},
        {0, "kv-heads", "N", CLI_UINT, &made.kv_head_count, ""},
        {0, "head-dim", "N", CLI_UINT, &made.head_dim, ""},
        {0, "softmax-every", "N", CLI_UINT, &made.softmax_every,
         "one layer in N is a softmax layer (default 8)"},
        {'p', "prefill", "N,N", CLI_TEXT, &p_text, "tokens to prefill (default 512)"},
        {'n', "decode", "N,N", CLI_TEXT, &n_text, "tokens to decode (default 128)"},
        {0, "depth", "N,N", CLI_TEXT, &d_text, "tokens already in the session (default 0)"},
        {'r', "reps", "N", CLI_UINT, &b.reps, "repetitions after a first one (default 5)"},
        {0, "seed", "N", CLI_UINT64, &b.seed, "of weights and tokens (default 1)"},
        {0, "profile", NULL, CLI_FLAG, &b.profile, "also time by op"},
        {0, "first-token", "both|here", CLI_CHOICE, &first_token,
         "time to the first token instead: in new processes with an empty and a filled pipeline "
         "cache, or in this one"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
        {0, "csv", NULL, CLI_FLAG, &csv, "print comma-separated values"},
    };
    enum { OWN = 22 };
    cli_model_options(&b.model, options + OWN);
    int first, code = cli_parse(&bench_model, argc, argv, options, OWN + CLI_MODEL_OPTIONS, &first);
    if (code >= 0)
        return code;
    bool dimensions = made.preset || made.hidden_size;
    if (argc != first || dimensions == (path != NULL) || b.reps == 0 || (json && csv)) {
        fprintf(stderr, "usage: fulgur bench model --preset NAME | --model DIR [options] (try "
                        "--help)\n");
        return CLI_USAGE;
    }
    bench_list prefill, decode, depths;
    if (!p_text && !n_text) {
        p_text = "512";
        n_text = "128";
    }
    if (!parse_list("prefill", p_text, &prefill) || !parse_list("decode", n_text, &decode) ||
        !parse_list("depth", d_text, &depths))
        return CLI_USAGE;
    bench_types types;
    if (!bench_types_parse(&bench_model, type, 1, FUL_TYPE_DEFAULT, &types))
        return CLI_USAGE;
    made.weight_type = types.values[0];
    made.seed = b.seed;
    if (!path)
        b.model.synthetic = &made;
    b.name = path ? path : made.preset ? made.preset : "own dimensions";
    cli_watch_interrupt();
    bench_first alone = {&b.model, path, prefill.count ? prefill.values[0] : 16,
                         b.seed,   json, NULL};
    if (first_token)
        return strcmp(first_token, "both") == 0 ? bench_first_both(&alone)
                                                : bench_first_here(&alone);
    size_t most;
    code = bench_model_add(&b, &prefill, &decode, &depths, &most) ? CLI_OK : CLI_USAGE;
    if (code == CLI_OK)
        code = measure(&b, path, most, json ? "json" : csv ? "csv" : "table");
    for (uint32_t i = 0; i < b.test_count; i++)
        free(b.tests[i].tokens_per_s);
    return code;
}

const cli_command bench_model = {"bench model", "--preset NAME | --model DIR [options]",
                                 "prefill and decode speed of a model, loaded or made up", run};
