/* fulgur tokenize: text to tokens and back. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static int decode(const ful_tokenizer *t, const char *text)
{
    size_t capacity = strlen(text) / 2 + 1, n = 0;
    int32_t *ids = malloc(capacity * sizeof *ids);
    for (const char *p = text; ids && *p;) {
        char *end;
        long id = strtol(p, &end, 10);
        if (end == p) {
            if (!strchr(" ,\n\t\r[]", *p)) {
                fprintf(stderr, "fulgur tokenize: '%.20s' is no token id\n", p);
                free(ids);
                return CLI_USAGE;
            }
            p++;
            continue;
        }
        ids[n++] = (int32_t)id;
        p = end;
    }
    size_t bytes = 0;
    if (!ids || ful_tokenizer_decode(t, ids, n, FUL_DECODE_ALL, NULL, &bytes) != FUL_OK) {
        free(ids);
        return cli_fail("decoding");
    }
    char *out = malloc(bytes + 1);
    if (out && ful_tokenizer_decode(t, ids, n, FUL_DECODE_ALL, out, &bytes) == FUL_OK)
        fwrite(out, 1, bytes, stdout);
    free(out);
    free(ids);
    return CLI_OK;
}

static int encode(const ful_tokenizer *t, const char *text, size_t bytes, bool added, bool json,
                  bool count)
{
    uint32_t flags = added ? FUL_ENCODE_ADDED : FUL_ENCODE_PLAIN;
    size_t n = 0;
    if (ful_tokenizer_encode(t, text, bytes, flags, NULL, &n) != FUL_OK)
        return cli_fail("tokenizing");
    int32_t *ids = malloc((n + 1) * sizeof *ids);
    if (!ids || (n && ful_tokenizer_encode(t, text, bytes, flags, ids, &n) != FUL_OK)) {
        free(ids);
        return cli_fail("tokenizing");
    }
    if (count)
        printf("%zu\n", n);
    else if (json)
        printf("[");
    for (size_t i = 0; i < n && !count; i++) {
        size_t size;
        const char *piece = ful_tokenizer_token_bytes(t, ids[i], &size);
        if (json) {
            printf("%s{\"id\": %d, \"text\": ", i ? ", " : "", ids[i]);
            cli_print_json_string(piece ? piece : "", size);
            printf("}");
        } else {
            printf("%d\n", ids[i]);
        }
    }
    if (json && !count)
        printf("]\n");
    free(ids);
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    bool json = false, added = false, reverse = false, count = false;
    const char *prompt = NULL, *file = NULL;
    const cli_option options[] = {
        {'p', "prompt", "TEXT", CLI_TEXT, &prompt, "the text"},
        {'f', "file", "FILE", CLI_TEXT, &file,
         "read the text from a file; - = standard input (the default)"},
        {0, "added", NULL, CLI_FLAG, &added,
         "let marks such as <end_of_sentence> be the tokens they name"},
        {0, "decode", NULL, CLI_FLAG, &reverse,
         "the text holds token ids; print what they stand for"},
        {0, "count", NULL, CLI_FLAG, &count, "print the number of tokens only"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
    };
    int first, code = cli_parse(&cmd_tokenize, argc, argv, options,
                                sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (argc - first != 1 || (prompt && file)) {
        fprintf(stderr, "usage: fulgur tokenize MODEL [-p TEXT | -f FILE]\n");
        return CLI_USAGE;
    }
    ful_instance *instance = NULL;
    ful_tokenizer *t = NULL;
    if (!cli_open_instance(&instance, false))
        return CLI_FAILED;
    char *read = NULL;
    size_t bytes = prompt ? strlen(prompt) : 0;
    code = CLI_OK;
    if (ful_tokenizer_load(&t, instance, argv[first]) != FUL_OK)
        code = cli_fail(argv[first]);
    else if (!prompt && !(read = cli_read_file(file ? file : "-", &bytes)))
        code = CLI_FAILED;
    else if (reverse)
        code = decode(t, prompt ? prompt : read);
    else
        code = encode(t, prompt ? prompt : read, bytes, added, json, count);
    free(read);
    ful_tokenizer_destroy(&t);
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_tokenize = {"tokenize", "MODEL [options]",
                                  "turn text into tokens, or back; needs no device", run};
