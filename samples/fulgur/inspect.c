/* fulgur inspect: what a model's files hold, without a device. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static double mib(uint64_t bytes)
{
    return (double)bytes / 1048576.0;
}

static void print_text(const ful_model_info *m)
{
    printf("architecture  %s, %u layers: %u lightning, %u softmax\n", m->architecture,
           m->block_count, m->lightning_block_count, m->softmax_block_count);
    printf("sizes         hidden %u, %u heads (%u for keys) x %u, rotary %u of %u, vocabulary %u\n",
           m->hidden_size, m->head_count, m->kv_head_count, m->head_dim, m->rotary_dim, m->head_dim,
           m->vocab_size);
    printf("experts       %u a layer, %u used, width %u\n", m->expert_count, m->top_k,
           m->intermediate_size);
    printf("residuals     lightning %g, %g; softmax %g, %g; experts %g, %g (alpha, beta)\n",
           m->alpha_lightning, m->beta_lightning, m->alpha_softmax, m->beta_softmax, m->alpha_mlp,
           m->beta_mlp);
    printf("norms         eps %g, lightning %g; rope theta %g; decay rule %s; head %s\n",
           m->norm_eps, m->lightning_norm_eps, m->rope_theta,
           m->decay == FUL_DECAY_HF ? "hf" : "orig",
           m->tied_head ? "tied to the embedding" : "of its own");
    printf("tokens        context %u, begin %d, end %d\n", m->context_length, m->bos_token_id,
           m->eos_token_id);
    printf("parameters    %.3f M, %.3f M active a token; most weights %s\n",
           (double)m->parameter_count / 1e6, (double)m->active_parameter_count / 1e6,
           ful_type_name(m->weight_type));
    printf("bytes         files %.2f MiB, weights %.2f MiB (%u tensors), read for one token %.2f "
           "MiB\n",
           mib(m->file_bytes), mib(m->weight_bytes), m->tensor_count, mib(m->active_weight_bytes));
    printf("a session     states %.2f MiB whatever its length, keys and values %.2f KiB a token in "
           "f32, half in f16\n",
           mib(m->state_bytes), (double)m->kv_bytes_per_token / 1024.0);
}

static void print_json(const ful_model_info *m)
{
    printf(
        "{\"architecture\": \"%s\", \"block_count\": %u, \"lightning_block_count\": %u, "
        "\"softmax_block_count\": %u, "
        "\"hidden_size\": %u, \"intermediate_size\": %u, \"vocab_size\": %u, \"head_count\": %u, "
        "\"kv_head_count\": %u, \"head_dim\": %u, \"rotary_dim\": %u, \"expert_count\": %u, "
        "\"top_k\": %u, "
        "\"context_length\": %u, \"rope_theta\": %.17g, \"norm_eps\": %.17g, "
        "\"lightning_norm_eps\": %.17g, ",
        m->architecture, m->block_count, m->lightning_block_count, m->softmax_block_count,
        m->hidden_size, m->intermediate_size, m->vocab_size, m->head_count, m->kv_head_count,
        m->head_dim, m->rotary_dim, m->expert_count, m->top_k, m->context_length, m->rope_theta,
        m->norm_eps, m->lightning_norm_eps);
    printf("\"alpha_lightning\": %.17g, \"beta_lightning\": %.17g, \"alpha_softmax\": %.17g, "
           "\"beta_softmax\": %.17g, "
           "\"alpha_mlp\": %.17g, \"beta_mlp\": %.17g, \"decay\": \"%s\", \"tied_head\": %s, "
           "\"bos_token_id\": %d, "
           "\"eos_token_id\": %d, \"weight_type\": \"%s\", ",
           m->alpha_lightning, m->beta_lightning, m->alpha_softmax, m->beta_softmax, m->alpha_mlp,
           m->beta_mlp, m->decay == FUL_DECAY_HF ? "hf" : "orig", m->tied_head ? "true" : "false",
           m->bos_token_id, m->eos_token_id, ful_type_name(m->weight_type));
    printf("\"tensor_count\": %u, \"file_bytes\": %llu, \"parameter_count\": %llu, "
           "\"active_parameter_count\": %llu, "
           "\"weight_bytes\": %llu, \"active_weight_bytes\": %llu, \"state_bytes\": %llu, "
           "\"kv_bytes_per_token\": "
           "%llu",
           m->tensor_count, (unsigned long long)m->file_bytes,
           (unsigned long long)m->parameter_count, (unsigned long long)m->active_parameter_count,
           (unsigned long long)m->weight_bytes, (unsigned long long)m->active_weight_bytes,
           (unsigned long long)m->state_bytes, (unsigned long long)m->kv_bytes_per_token);
}

/* How conversations are written, and what becomes of the file's own template. */
static void print_chat(ful_instance *instance, const char *path, bool json)
{
    static const char *const templates[] = {"none", "known", "other"},
                             *const words[] = {"", ", as its chat template",
                                               "; its chat template is another one and not used"};
    ful_tokenizer *t;
    ful_chat_template told;
    if (ful_tokenizer_load(&t, instance, path) != FUL_OK) {
        if (!json)
            printf("chat          no tokenizer: %s\n", ful_last_error());
        return;
    }
    const char *format = ful_tokenizer_chat_format(t, &told) == FUL_CHAT_M1 ? "m1" : "text-01";
    if (json)
        printf(", \"chat_format\": \"%s\", \"chat_template\": \"%s\"", format, templates[told]);
    else
        printf("chat          format %s%s\n", format, words[told]);
    ful_tokenizer_destroy(&t);
}

static bool print_tensor(void *ctx, const ful_tensor_info *t)
{
    (void)ctx;
    char shape[128] = "";
    size_t at = 0;
    for (uint32_t i = 0; i < t->n_dims && at + 24 < sizeof shape; i++)
        at += (size_t)snprintf(shape + at, sizeof shape - at, "%s%llu", i ? " x " : "",
                               (unsigned long long)t->dims[i]);
    printf("%-64s %-5s %-20s %12llu\n", t->name, t->type, shape, (unsigned long long)t->bytes);
    return true;
}

static bool print_tensor_json(void *ctx, const ful_tensor_info *t)
{
    bool *first = ctx;
    printf("%s\n {\"name\": ", *first ? "" : ",");
    *first = false;
    cli_print_json_string(t->name, strlen(t->name));
    printf(", \"file\": ");
    cli_print_json_string(t->file, strlen(t->file));
    printf(", \"type\": ");
    cli_print_json_string(t->type, strlen(t->type));
    printf(", \"shape\": [");
    for (uint32_t i = 0; i < t->n_dims; i++)
        printf("%s%llu", i ? ", " : "", (unsigned long long)t->dims[i]);
    printf("], \"bytes\": %llu}", (unsigned long long)t->bytes);
    return true;
}

/* How many tensors of each type there are, in the order met. */
typedef struct type_sums {
    struct {
        char name[16];
        uint32_t count;
        uint64_t bytes;
    } types[16];
    size_t n;
} type_sums;

static bool add_type(void *ctx, const ful_tensor_info *t)
{
    type_sums *s = ctx;
    size_t i = 0;
    while (i < s->n && strcmp(s->types[i].name, t->type) != 0)
        i++;
    if (i == sizeof s->types / sizeof *s->types)
        return true; /* files of so many types are not models */
    if (i == s->n)
        snprintf(s->types[s->n++].name, sizeof s->types[i].name, "%s", t->type);
    s->types[i].count++;
    s->types[i].bytes += t->bytes;
    return true;
}

static void print_types(const type_sums *s)
{
    for (size_t i = 0; i < s->n; i++)
        printf("%s%s: %u tensors, %.2f MiB", i ? "; " : "types         ", s->types[i].name,
               s->types[i].count, mib(s->types[i].bytes));
    printf("\n");
}

static void print_types_json(const type_sums *s)
{
    printf(", \"types\": {");
    for (size_t i = 0; i < s->n; i++)
        printf("%s\"%s\": {\"tensors\": %u, \"bytes\": %llu}", i ? ", " : "", s->types[i].name,
               s->types[i].count, (unsigned long long)s->types[i].bytes);
    printf("}");
}

static int print_all(ful_instance *instance, const char *path, const ful_model_info *info,
                     bool tensors, bool check)
{
    type_sums sums = {.n = 0};
    if (ful_model_tensors(instance, path, add_type, &sums) != FUL_OK)
        return cli_fail(path);
    print_text(info);
    print_types(&sums);
    print_chat(instance, path, false);
    if (check)
        printf("check         every weight is finite\n");
    if (tensors && ful_model_tensors(instance, path, print_tensor, NULL) != FUL_OK)
        return cli_fail(path);
    return CLI_OK;
}

static int print_all_json(ful_instance *instance, const char *path, const ful_model_info *info,
                          bool tensors, bool check)
{
    bool first = true;
    type_sums sums = {.n = 0};
    if (ful_model_tensors(instance, path, add_type, &sums) != FUL_OK)
        return cli_fail(path);
    print_json(info);
    print_types_json(&sums);
    print_chat(instance, path, true);
    if (check)
        printf(", \"finite\": true");
    if (tensors) {
        printf(", \"tensors\": [");
        if (ful_model_tensors(instance, path, print_tensor_json, &first) != FUL_OK)
            return cli_fail(path);
        printf("]");
    }
    printf("}\n");
    return CLI_OK;
}

static int inspect(ful_instance *instance, const char *path, bool json, bool tensors, bool check)
{
    ful_model_info info;
    if (ful_model_inspect(instance, path, &info) != FUL_OK)
        return cli_fail(path);
    /* First of all, so that what is printed is never half an answer. */
    if (check) {
        cli_bar bar = {.start_ns = cli_now_ns()};
        ful_result r = ful_model_check(instance, path, cli_show_bar, &bar);
        cli_end_bar(&bar);
        if (r != FUL_OK)
            return cli_interrupted() ? CLI_INTERRUPTED : cli_fail(path);
    }
    return json ? print_all_json(instance, path, &info, tensors, check)
                : print_all(instance, path, &info, tensors, check);
}

static int run(int argc, char **argv)
{
    bool json = false, tensors = false, check = false, verbose = false;
    const cli_option options[] = {
        {0, "tensors", NULL, CLI_FLAG, &tensors, "list every tensor: name, type, shape, bytes"},
        {0, "check", NULL, CLI_FLAG, &check, "read all weights and look for NaN and infinity"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
        {'v', "verbose", NULL, CLI_FLAG, &verbose, "say more on standard error"},
    };
    int first, code = cli_parse(&cmd_inspect, argc, argv, options, sizeof options / sizeof *options,
                                &first);
    if (code >= 0)
        return code;
    if (argc - first != 1) {
        fprintf(stderr, "usage: fulgur inspect MODEL [--check] [--tensors] [--json]\n");
        return CLI_USAGE;
    }
    cli_watch_interrupt();
    ful_instance *instance = NULL;
    if (!cli_open_instance(&instance, verbose))
        return CLI_FAILED;
    code = inspect(instance, argv[first], json, tensors, check);
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_inspect = {"inspect", "MODEL [options]",
                                 "say what a model's files hold; needs no device", run};
