/* fulgur: MiniMax-01-class language models on any Vulkan GPU, from the command line. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "cli.h"

static const cli_command *const commands[] = {
    &cmd_run,        &cmd_chat,   &cmd_devices, &cmd_inspect,  &cmd_tokenize,
    &cmd_perplexity, &cmd_logits, &cmd_convert, &cmd_quantize, &cmd_imatrix,
    &cmd_bench,      &cmd_tune,   &cmd_selftest};

static void print_usage(FILE *out)
{
    fprintf(out,
            "fulgur %d.%d.%d: MiniMax-01-class language models on any Vulkan GPU\n\nusage: fulgur "
            "COMMAND ...\n\n",
            FUL_VERSION_MAJOR, FUL_VERSION_MINOR, FUL_VERSION_PATCH);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(
        out,
        "\nMODEL is a folder with config.json, tokenizer.json and safetensors, or a GGUF file.\n"
        "'fulgur COMMAND --help' lists a command's options.\n");
}

static int run_command(int argc, char **argv)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[0], commands[i]->name) == 0)
            return commands[i]->run(argc, argv);
    fprintf(stderr, "fulgur: there is no command '%s'\n\n", argv[0]);
    print_usage(stderr);
    return CLI_USAGE;
}

int main(int argc, char **argv)
{
    int code = CLI_OK;
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    bool help = strcmp(argv[1], "help") == 0;
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 || (help && argc == 2)) {
        print_usage(stdout);
    } else if (strcmp(argv[1], "--version") == 0) {
        uint32_t v = ful_version();
        printf("fulgur %u.%u.%u\n", v >> 16, v >> 8 & 255, v & 255);
    } else if (help) {
        char flag[] = "--help", *asked[] = {argv[2], flag, NULL};
        code = run_command(2, asked);
    } else {
        code = run_command(argc - 1, argv + 1);
    }
    /* A full disk shows up here at the latest. */
    if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_OK) {
        fprintf(stderr, "fulgur: writing to standard output failed: %s\n", strerror(errno));
        code = CLI_FAILED;
    }
    return code;
}
