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

const cli_command cmd_bench = {"bench", "WHAT [options]",
                               "measure the device, ops and whole models", run};
