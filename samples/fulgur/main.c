/* fulgur: MiniMax-01-class language models on any Vulkan GPU, from the command line. */
#include <stdio.h>
#include <string.h>

#include "cli.h"

static const cli_command *const commands[] = {
    &cmd_run, &cmd_chat, &cmd_devices, &cmd_inspect, &cmd_tokenize, &cmd_perplexity, &cmd_logits};

static void print_usage(FILE *out)
{
    fprintf(out,
            "fulgur %d.%d.%d: MiniMax-01-class language models on any Vulkan GPU\n\nusage: fulgur "
            "COMMAND ...\n\n",
            FUL_VERSION_MAJOR, FUL_VERSION_MINOR, FUL_VERSION_PATCH);
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        fprintf(out, "  %-11s %s\n", commands[i]->name, commands[i]->summary);
    fprintf(out, "\nMODEL is a folder with config.json, tokenizer.json and safetensors.\n"
                 "'fulgur COMMAND --help' lists a command's options.\n");
}

int main(int argc, char **argv)
{
    if (argc < 2) {
        print_usage(stderr);
        return CLI_USAGE;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_usage(stdout);
        return CLI_OK;
    }
    if (strcmp(argv[1], "--version") == 0) {
        uint32_t v = ful_version();
        printf("fulgur %u.%u.%u\n", v >> 16, v >> 8 & 255, v & 255);
        return CLI_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcmp(argv[1], commands[i]->name) == 0)
            return commands[i]->run(argc - 1, argv + 1);
    fprintf(stderr, "fulgur: there is no command '%s'\n\n", argv[1]);
    print_usage(stderr);
    return CLI_USAGE;
}
