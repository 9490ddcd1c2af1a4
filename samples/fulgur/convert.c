/* fulgur convert: a model's files as one GGUF. */
#include <stdio.h>

#include "cli.h"

static int convert(ful_instance *instance, const char *path, const char *out, ful_type type)
{
    cli_bar bar = {.start_ns = cli_now_ns()};
    ful_result r = ful_model_convert(instance, path, out, ful_convert_params(.type = type),
                                     cli_show_bar, &bar);
    cli_end_bar(&bar);
    if (r != FUL_OK)
        return cli_interrupted() ? CLI_INTERRUPTED : cli_fail(path);
    ful_model_info info;
    if (ful_model_inspect(instance, out, &info) != FUL_OK)
        return cli_fail(out);
    double seconds = (double)(cli_now_ns() - bar.start_ns) / 1e9,
           mib = (double)info.file_bytes / 1048576.0;
    printf("%s: %.2f MiB, %u tensors, %.3f M parameters, most %s, in %.1f s\n", out, mib,
           info.tensor_count, (double)info.parameter_count / 1e6, ful_type_name(info.weight_type),
           seconds);
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    const char *type = NULL;
    bool verbose = false;
    const cli_option options[] = {
        {0, "type", "f32|f16|bf16", CLI_CHOICE, &type,
         "of the matrices (default: each as it is); norms and routers are f32"},
        {'v', "verbose", NULL, CLI_FLAG, &verbose, "say more on standard error"},
    };
    int first, code = cli_parse(&cmd_convert, argc, argv, options, sizeof options / sizeof *options,
                                &first);
    if (code >= 0)
        return code;
    if (argc - first != 2) {
        fprintf(stderr, "usage: fulgur convert MODEL OUT.gguf [--type f32|f16|bf16]\n");
        return CLI_USAGE;
    }
    cli_watch_interrupt();
    ful_instance *instance = NULL;
    if (!cli_open_instance(&instance, verbose))
        return CLI_FAILED;
    code = convert(instance, argv[first], argv[first + 1], cli_type(type));
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_convert = {"convert", "MODEL OUT.gguf [options]",
                                 "write a model as one GGUF file; needs no device", run};
