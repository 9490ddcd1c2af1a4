/* fulgur quantize: a model's files as one GGUF of smaller types. */
#include <ctype.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

/* What was written, by type. */
typedef struct sums {
    struct {
        uint32_t tensors;
        uint64_t bytes;
    } types[FUL_TYPE_MXFP4 + 1];
    /* Tensors that got another type than asked for, and the first of them. */
    uint32_t other;
    char other_name[160];
    ful_type other_type, other_wanted;
    uint32_t weighted, blocks;
    uint64_t elements, bytes;
    bool verbose;
    cli_bar *bar;
} sums;

static void add_tensor(void *ctx, const ful_converted_tensor *t)
{
    sums *s = ctx;
    s->types[t->type].tensors++;
    s->types[t->type].bytes += t->bytes;
    s->elements += t->elements;
    s->bytes += t->bytes;
    s->blocks += t->type >= FUL_TYPE_Q8_0;
    s->weighted += t->weighted;
    if (t->type != t->wanted && s->other++ == 0) {
        snprintf(s->other_name, sizeof s->other_name, "%s", t->name);
        s->other_type = t->type;
        s->other_wanted = t->wanted;
    }
    if (s->verbose) {
        cli_end_bar(s->bar);
        fprintf(stderr, "%-40s %-6s %12llu bytes%s\n", t->name, ful_type_name(t->type),
                (unsigned long long)t->bytes, t->weighted ? ", weighted" : "");
    }
}

static void print_sums(const sums *s, uint64_t file_bytes, uint64_t source_bytes, const char *out,
                       double seconds)
{
    printf("%s: %.2f MiB of %.2f, %.2f bits a weight, in %.1f s\n", out,
           (double)file_bytes / 1048576.0, (double)source_bytes / 1048576.0,
           8.0 * (double)s->bytes / (double)s->elements, seconds);
    for (int t = FUL_TYPE_F32; t <= FUL_TYPE_MXFP4; t++)
        if (s->types[t].tensors)
            printf("  %-6s %5u tensors %12.2f MiB\n", ful_type_name((ful_type)t),
                   s->types[t].tensors, (double)s->types[t].bytes / 1048576.0);
    if (s->other)
        printf("%u tensors have a type of smaller blocks, because their rows are no multiples of "
               "the block: the first is %s, %s for %s\n",
               s->other, s->other_name, ful_type_name(s->other_type),
               ful_type_name(s->other_wanted));
    if (s->weighted)
        printf("%u of %u tensors of blocks weighted by importance\n", s->weighted, s->blocks);
}

static int quantize(ful_instance *instance, const char *path, const char *out,
                    ful_convert_params *params, bool verbose)
{
    cli_bar bar = {.start_ns = cli_now_ns(), .label = "quantising"};
    sums s = {.verbose = verbose, .bar = &bar};
    params->tensor = add_tensor;
    params->tensor_ctx = &s;
    ful_result r = ful_model_convert(instance, path, out, params, cli_show_bar, &bar);
    cli_end_bar(&bar);
    if (r != FUL_OK)
        return cli_interrupted()               ? CLI_INTERRUPTED
               : strstr(ful_last_error(), out) ? cli_fail(out)
                                               : cli_fail(path);
    double seconds = (double)(cli_now_ns() - bar.start_ns) / 1e9;
    ful_model_info from, to;
    if (ful_model_inspect(instance, path, &from) != FUL_OK)
        return cli_fail(path);
    if (ful_model_inspect(instance, out, &to) != FUL_OK)
        return cli_fail(out);
    print_sums(&s, to.file_bytes, from.file_bytes, out, seconds);
    return CLI_OK;
}

static bool same_name(const char *a, const char *b)
{
    while (*a && tolower((unsigned char)*a) == tolower((unsigned char)*b)) {
        a++;
        b++;
    }
    return *a == *b;
}

/* A mix of that name; a type if there is none, or `pure` was asked for. */
static bool read_type(const char *name, bool pure, ful_convert_params *params)
{
    const char *mix;
    for (uint32_t i = 0; !pure && (mix = ful_convert_mix(i)); i++)
        if (same_name(mix, name))
            params->mix = mix;
    for (int t = FUL_TYPE_F32; !params->mix && t <= FUL_TYPE_MXFP4; t++)
        if (same_name(ful_type_name((ful_type)t), name))
            params->type = (ful_type)t;
    if (params->mix || params->type)
        return true;
    fprintf(stderr, "fulgur quantize: '%s' is no %stype; there are", name, pure ? "pure " : "");
    for (uint32_t i = 0; !pure && (mix = ful_convert_mix(i)); i++)
        fprintf(stderr, " %s", mix);
    for (int t = FUL_TYPE_F32; t <= FUL_TYPE_MXFP4; t++) {
        bool listed = false;
        for (uint32_t i = 0; !pure && (mix = ful_convert_mix(i)); i++)
            listed = listed || strcmp(mix, ful_type_name((ful_type)t)) == 0;
        if (!listed)
            fprintf(stderr, " %s", ful_type_name((ful_type)t));
    }
    fprintf(stderr, "\n");
    return false;
}

static int run(int argc, char **argv)
{
    const char *type = NULL;
    bool pure = false, verbose = false;
    ful_convert_params params = {.struct_size = sizeof params};
    const cli_option options[] = {
        {0, "type", "NAME", CLI_TEXT, &type,
         "a mix that keeps head and what errors cost most in more bits: q8_0, q6_k, q5_k_m, "
         "q4_k_m, q4_0, q3_k_m, q2_k, ... (a wrong name lists all); or q5_k, q4_k, q3_k alone"},
        {0, "pure", NULL, CLI_FLAG, &pure, "all matrices in the type; norms and routers are f32"},
        {0, "imatrix", "FILE", CLI_TEXT, &params.importance_path,
         "weigh errors by an importance matrix"},
        {0, "threads", "N", CLI_UINT, &params.threads, "that code (default: one a processor)"},
        {'v', "verbose", NULL, CLI_FLAG, &verbose, "name every tensor on standard error"},
    };
    int first, code = cli_parse(&cmd_quantize, argc, argv, options,
                                sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 2 || !type) {
        fprintf(stderr, "usage: fulgur quantize MODEL OUT.gguf --type NAME [--pure] "
                        "[--imatrix FILE] [--threads N]\n");
        return CLI_USAGE;
    }
    if (!read_type(type, pure, &params))
        return CLI_USAGE;
    cli_watch_interrupt();
    ful_instance *instance = NULL;
    if (!cli_open_instance(&instance, verbose))
        return CLI_FAILED;
    code = quantize(instance, argv[first], argv[first + 1], &params, verbose);
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_quantize = {"quantize", "MODEL OUT.gguf --type NAME [options]",
                                  "write a model as a GGUF file of smaller types; needs no device",
                                  run};
