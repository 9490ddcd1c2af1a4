/* fulgur tokenize: text to tokens and back. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

/* Token ids between blanks, commas and brackets. NULL after printing the error. */
static int32_t *parse_ids(const char *text, size_t *count)
{
    size_t n = 0;
    int32_t *ids = malloc((strlen(text) / 2 + 1) * sizeof *ids); /* a digit and what parts it */
    for (const char *p = text; ids && *p;) {
        p += strspn(p, " ,\n\t\r[]");
        size_t digits = strspn(p, "0123456789");
        errno = 0;
        unsigned long long id = strtoull(p, NULL, 10);
        if (*p && (digits == 0 || errno || id > INT32_MAX || !strchr(" ,\n\t\r[]", p[digits]))) {
            fprintf(stderr, "fulgur tokenize: '%.20s' is no token id\n", p);
            free(ids);
            return NULL;
        }
        if (*p)
            ids[n++] = (int32_t)id;
        p += digits;
    }
    if (!ids)
        fprintf(stderr, "fulgur tokenize: out of memory\n");
    *count = n;
    return ids;
}

static int decode(const ful_tokenizer *t, const char *text, bool json)
{
    size_t n = 0, bytes = 0;
    int32_t *ids = parse_ids(text, &n);
    if (!ids)
        return CLI_FAILED;
    char *out = NULL;
    ful_result r = ful_tokenizer_decode(t, ids, n, FUL_DECODE_ALL, NULL, &bytes);
    if (r == FUL_OK && (out = malloc(bytes + 1)))
        r = ful_tokenizer_decode(t, ids, n, FUL_DECODE_ALL, out, &bytes);
    free(ids);
    if (r != FUL_OK || !out) {
        free(out);
        if (r != FUL_OK)
            return cli_fail("decoding");
        fprintf(stderr, "fulgur tokenize: out of memory for %zu bytes\n", bytes);
        return CLI_FAILED;
    }
    if (json)
        cli_print_json_string(out, bytes);
    else
        fwrite(out, 1, bytes, stdout);
    if (json)
        putchar('\n');
    free(out);
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
    if (argc - first != 1 || (prompt && file) || (count && reverse)) {
        fprintf(stderr, "usage: fulgur tokenize MODEL [-p TEXT | -f FILE] [--count | --decode]\n");
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
        code = decode(t, prompt ? prompt : read, json);
    else
        code = encode(t, prompt ? prompt : read, bytes, added, json, count);
    free(read);
    ful_tokenizer_destroy(&t);
    ful_instance_destroy(&instance);
    return code;
}

const cli_command cmd_tokenize = {"tokenize", "MODEL [options]",
                                  "turn text into tokens, or back; needs no device", run};
