/* fulgur bench device: memory, arithmetic, dispatches and submissions of the device itself. */
#include <string.h>

#include <fulgur/ops.h>

#include "bench.h"

typedef struct rate_unit {
    const char *name;
    double factor;
} rate_unit;

static rate_unit unit_of(ful_rate rate)
{
    if (rate <= FUL_RATE_WRITE)
        return (rate_unit){"GB/s", 1e-9};
    if (rate == FUL_RATE_INT_DOT)
        return (rate_unit){"Top/s", 1e-12};
    return rate < FUL_RATE_DISPATCH ? (rate_unit){"TFLOP/s", 1e-12} : (rate_unit){"us", 1e6};
}

typedef struct device_run {
    ful_rate_result results[FUL_RATE_COUNT];
    char why_not[FUL_RATE_COUNT][160]; /* not empty: no figure */
} device_run;

static void print_table(const ful_device_info *d, const device_run *r)
{
    printf("device   %s (%s), %s\n\n%-26s %12s  %-8s %24s %5s\n", d->name,
           ful_device_kind_name(d->kind), d->driver, "what", "median", "unit", "least .. most",
           "runs");
    for (int i = 0; i < FUL_RATE_COUNT; i++) {
        const ful_rate_result *x = &r->results[i];
        rate_unit u = unit_of((ful_rate)i);
        char spread[48];
        snprintf(spread, sizeof spread, "%.4g .. %.4g", x->least * u.factor, x->most * u.factor);
        if (r->why_not[i][0])
            printf("%-26s %12s  %s\n", x->name, "-", r->why_not[i]);
        else
            printf("%-26s %12.4g  %-8s %24s %5u\n", x->name, x->median * u.factor, u.name, spread,
                   x->runs);
    }
}

static void print_csv(const ful_device_info *d, const device_run *r)
{
    printf("device,driver,what,median,least,most,unit,runs\n");
    for (int i = 0; i < FUL_RATE_COUNT; i++) {
        const ful_rate_result *x = &r->results[i];
        if (!r->why_not[i][0])
            printf("\"%s\",\"%s\",%s,%.6g,%.6g,%.6g,%s,%u\n", d->name, d->driver, x->name,
                   x->median, x->least, x->most, x->unit, x->runs);
    }
}

static void print_json(const ful_device_info *d, const device_run *r)
{
    printf("{\"device\": ");
    cli_print_json_string(d->name, strlen(d->name));
    printf(", \"driver\": ");
    cli_print_json_string(d->driver, strlen(d->driver));
    printf(", \"rates\": [");
    const char *comma = "";
    for (int i = 0; i < FUL_RATE_COUNT; i++) {
        const ful_rate_result *x = &r->results[i];
        if (r->why_not[i][0])
            continue;
        printf("%s\n  {\"what\": \"%s\", \"unit\": \"%s\", \"median\": %.6g, \"least\": %.6g, "
               "\"most\": %.6g, \"runs\": %u}",
               comma, x->name, x->unit, x->median, x->least, x->most, x->runs);
        comma = ",";
    }
    printf("\n]}\n");
}

static int run(int argc, char **argv)
{
    cli_model m = {0};
    bool json = false, csv = false;
    const cli_option options[] = {
        {'d', "device", "NAME|INDEX", CLI_TEXT, &m.device_text, "device to measure"},
        {0, "caps", "LIST", CLI_TEXT, &m.caps_text, "what to pretend absent, as in FULGUR_CAPS"},
        {0, "json", NULL, CLI_FLAG, &json, "print JSON"},
        {0, "csv", NULL, CLI_FLAG, &csv, "print comma-separated values"},
        {'v', "verbose", NULL, CLI_FLAG, &m.verbose, "log what the library does"}};
    int first, code = cli_parse(&bench_device, argc, argv, options, 5, &first);
    if (code >= 0)
        return code;
    if (first < argc) {
        fprintf(stderr, "fulgur bench device: unexpected argument '%s'\n", argv[first]);
        return CLI_USAGE;
    }
    if (!cli_open_instance(&m.instance, m.verbose))
        return CLI_FAILED;
    code = cli_open_device(&m) == FUL_OK ? CLI_OK : cli_fail("device");
    if (code == CLI_OK) {
        device_run r = {0};
        for (int i = 0; i < FUL_RATE_COUNT; i++)
            if (ful_device_measure(m.device, (ful_rate)i, &r.results[i]) != FUL_OK)
                snprintf(r.why_not[i], sizeof r.why_not[i], "%s", ful_last_error());
        (json ? print_json : csv ? print_csv : print_table)(ful_device_get_info(m.device), &r);
    }
    ful_device_close(&m.device);
    ful_instance_destroy(&m.instance);
    return code;
}

const cli_command bench_device = {"bench device", "[options]",
                                  "memory, arithmetic, dispatches of the device itself", run};
