/* fulgur bench: what the device, the ops and whole models achieve. */
#include "bench.h"

#include <stdlib.h>
#include <string.h>

static const cli_command *const parts[] = {&bench_device,  &bench_ops,    &bench_model,
                                           &bench_lengths, &bench_report, &bench_compare};
enum { PART_COUNT = sizeof parts / sizeof *parts };

static const char *part_name(const cli_command *c)
{
    return strchr(c->name, ' ') + 1;
}

static void print_usage(FILE *out)
{
    fprintf(out, "usage: fulgur bench WHAT [options]\n\nmeasures; WHAT is one of\n");
    for (size_t i = 0; i < PART_COUNT; i++)
        fprintf(out, "  %-10s %s\n", part_name(parts[i]), parts[i]->summary);
    fprintf(out, "\n'fulgur bench WHAT --help' lists its options.\n");
}

static int run(int argc, char **argv)
{
    if (argc > 1 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        print_usage(stdout);
        return CLI_OK;
    }
    for (size_t i = 0; argc > 1 && i < PART_COUNT; i++)
        if (strcmp(argv[1], part_name(parts[i])) == 0)
            return parts[i]->run(argc - 1, argv + 1);
    if (argc > 1)
        fprintf(stderr, "fulgur bench: there is no benchmark '%s'\n\n", argv[1]);
    print_usage(stderr);
    return CLI_USAGE;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

bench_spread bench_spread_of(double *values, size_t n)
{
    bench_spread s = {0};
    if (n == 0)
        return s;
    qsort(values, n, sizeof *values, compare);
    s.least = values[0];
    s.most = values[n - 1];
    s.median = n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2.0;
    return s;
}

bool bench_types_parse(const cli_command *command, const char *text, uint32_t most,
                       ful_type or_else, bench_types *out)
{
    *out = (bench_types){{or_else}, 1};
    if (!text)
        return true;
    out->count = 0;
    bool good = true;
    if (most > 1 && strcmp(text, "all") == 0)
        for (int t = FUL_TYPE_F32; t <= FUL_TYPE_MXFP4; t++)
            out->values[out->count++] = (ful_type)t;
    else
        for (const char *p = text; p && good;) {
            char name[16] = "";
            size_t n = strcspn(p, ",");
            if (n < sizeof name)
                memcpy(name, p, n);
            ful_type type = cli_type(name);
            good = type != FUL_TYPE_DEFAULT && out->count < most;
            if (good)
                out->values[out->count++] = type;
            p = p[n] ? p + n + 1 : NULL;
        }
    if (good)
        return true;
    fprintf(stderr, "fulgur %s: --type takes ", command->name);
    for (int t = FUL_TYPE_F32; t <= FUL_TYPE_MXFP4; t++)
        fprintf(stderr, "%s%s",
                t == FUL_TYPE_F32    ? ""
                : t < FUL_TYPE_MXFP4 ? ", "
                                     : " or ",
                ful_type_name((ful_type)t));
    fprintf(stderr, "%s, not '%s'\n", most > 1 ? ", some of them with commas between, or all" : "",
            text);
    return false;
}

const cli_command cmd_bench = {"bench", "WHAT [options]",
                               "measure the device, ops and whole models", run};
