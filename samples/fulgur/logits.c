/* fulgur logits: logits of given tokens as a NumPy file, to hold fulgur against another engine. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#include "cli.h"

typedef struct npy {
    FILE *file;
    bool failed;
} npy;

static bool write_row(void *ctx, size_t row, const float *logits, size_t n)
{
    npy *out = ctx;
    (void)row;
    out->failed |= fwrite(logits, sizeof *logits, n, out->file) != n;
    return !out->failed && !cli_interrupted();
}

/* NumPy's format 1.0: magic, header length, a Python dictionary padded to 64 bytes. */
static void write_header(npy *out, size_t rows, size_t columns)
{
    char dictionary[192];
    int n =
        snprintf(dictionary, sizeof dictionary,
                 "{'descr': '<f4', 'fortran_order': False, 'shape': (%zu, %zu), }", rows, columns);
    int padded = (10 + n + 1 + 63) / 64 * 64 - 10;
    unsigned char head[10] = {0x93,
                              'N',
                              'U',
                              'M',
                              'P',
                              'Y',
                              1,
                              0,
                              (unsigned char)(padded & 255),
                              (unsigned char)(padded >> 8)};
    out->failed |= fwrite(head, 1, sizeof head, out->file) != sizeof head;
    out->failed |= fprintf(out->file, "%s%*s\n", dictionary, padded - n - 1, "") < 0;
}

/* Token ids, one a line. */
static int32_t *read_ids(const char *path, size_t *count)
{
    size_t bytes, n = 0;
    char *text = cli_read_file(path, &bytes);
    if (!text)
        return NULL;
    int32_t *ids = malloc((bytes / 2 + 1) * sizeof *ids);
    size_t line = 1;
    for (char *p = text; ids && *p; line++) {
        char *end = p + strcspn(p, "\n"), *after;
        bool last = *end == 0;
        *end = 0;
        p += strspn(p, " \t\r");
        if (*p) {
            errno = 0;
            long long id = strtoll(p, &after, 10);
            after += strspn(after, " \t\r");
            if (after == p || *after || errno || id < INT32_MIN || id > INT32_MAX) {
                fprintf(stderr, "fulgur: %s:%zu: '%.40s' is no token id\n", path, line, p);
                free(ids);
                ids = NULL;
                break;
            }
            ids[n++] = (int32_t)id;
        }
        p = last ? end : end + 1;
    }
    free(text);
    if (ids && n == 0) {
        fprintf(stderr, "fulgur: %s: no token ids\n", path);
        free(ids);
        ids = NULL;
    }
    *count = n;
    return ids;
}

/* Not a pipe or a device: those must not be removed. */
static bool is_file(const char *path)
{
    struct stat info;
    return stat(path, &info) == 0 && S_ISREG(info.st_mode);
}

static int compute(cli_model *m, const int32_t *ids, size_t n, size_t prefill, const char *path)
{
    npy out = {.file = fopen(path, "wb")};
    if (!out.file) {
        fprintf(stderr, "fulgur: %s: %s\n", path, strerror(errno));
        return CLI_FAILED;
    }
    write_header(&out, n, ful_model_get_info(m->model)->vocab_size);
    ful_result r = prefill ? ful_prefill_logits(m->session, ids, prefill, write_row, &out) : FUL_OK;
    for (size_t i = prefill; i < n && r == FUL_OK && !out.failed && !cli_interrupted(); i++) {
        const float *logits;
        size_t vocab;
        r = ful_decode(m->session, ids[i]);
        if (r == FUL_OK)
            r = ful_logits(m->session, &logits, &vocab);
        if (r == FUL_OK)
            write_row(&out, i, logits, vocab);
    }
    out.failed |= fclose(out.file) != 0;
    int code = CLI_OK;
    if (out.failed) {
        fprintf(stderr, "fulgur: %s: writing failed\n", path);
        code = CLI_FAILED;
    } else if (cli_interrupted()) {
        code = CLI_INTERRUPTED;
    } else if (r != FUL_OK) {
        code = cli_fail("computing logits");
    }
    if (code != CLI_OK && is_file(path))
        remove(path); /* half a file would read as a whole one */
    return code;
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    const char *tokens = NULL, *path = NULL;
    uint32_t prefill = UINT32_MAX;
    cli_option options[CLI_MODEL_OPTIONS + 3] = {
        {0, "tokens", "FILE", CLI_TEXT, &tokens, "token ids, one a line; - = standard input"},
        {0, "prefill", "N", CLI_UINT, &prefill,
         "feed the first N as one prompt, the rest one by one (default: all)"},
        {'o', "out", "FILE.npy", CLI_TEXT, &path,
         "where to: [tokens, vocabulary] float32, a row a token"},
    };
    cli_model_options(&m, options + 3);
    int first, code = cli_parse(&cmd_logits, argc, argv, options, sizeof options / sizeof *options,
                                &first);
    if (code >= 0)
        return code;
    if (argc - first != 1 || !tokens || !path) {
        fprintf(stderr, "usage: fulgur logits MODEL --tokens FILE --out FILE.npy (try --help)\n");
        return CLI_USAGE;
    }
    size_t n;
    int32_t *ids = read_ids(tokens, &n);
    if (!ids)
        return CLI_FAILED;
    cli_watch_interrupt();
    code = cli_open_model(&m, argv[first], n);
    if (code == CLI_OK) {
        code = compute(&m, ids, n, prefill < n ? prefill : n, path);
        cli_close_model(&m);
    }
    free(ids);
    return code;
}

const cli_command cmd_logits = {"logits", "MODEL --tokens FILE --out FILE.npy [options]",
                                "write the logits of given tokens; nothing is put in front", run};
