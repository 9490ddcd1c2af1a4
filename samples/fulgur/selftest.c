/* fulgur selftest: tries every kernel on problems with known answers. */
#include <math.h>
#include <string.h>

#include <fulgur/selftest.h>

#include "cli.h"

typedef struct printer {
    bool json;
    uint32_t lines, failed;
    const char *op; /* of the last line */
    double ms, run_ms;
} printer;

static const char *verdict_name(ful_selftest_verdict v)
{
    switch (v) {
    case FUL_SELFTEST_PASSED:
        return "passed";
    case FUL_SELFTEST_WRONG:
        return "wrong";
    case FUL_SELFTEST_LOST:
        return "lost";
    case FUL_SELFTEST_REFUSED:
        return "refused";
    }
    return "unknown";
}

static void print_json(const printer *p, const ful_selftest_row *r)
{
    printf("%s\n  {\"op\": ", p->lines ? "," : "");
    cli_print_json_string(r->op, strlen(r->op));
    printf(", \"variant\": ");
    cli_print_json_string(r->variant, strlen(r->variant));
    printf(", \"choice\": %u, \"verdict\": \"%s\", \"error\": ", r->choice,
           verdict_name(r->verdict));
    if (isfinite(r->error))
        printf("%.3g", r->error);
    else
        printf("null");
    printf(", \"tolerance\": %.3g, \"ms\": %.3f, \"run_ms\": %.3f", r->tolerance, r->ms, r->run_ms);
    if (r->why) {
        printf(", \"why\": ");
        cli_print_json_string(r->why, strlen(r->why));
    }
    printf("}");
}

static void print_row(const printer *p, const ful_selftest_row *r)
{
    if (!p->lines)
        printf("%-32s   %-30s %-8s %9s %9s %8s %8s\n", "op", "variant", "result", "error",
               "allowed", "ms", "run ms");
    printf("%-32s %u %-30s %-8s %9.2g %9.2g %8.2f %8.3f\n",
           p->op && strcmp(p->op, r->op) == 0 ? "" : r->op, r->choice, r->variant,
           verdict_name(r->verdict), r->error, r->tolerance, r->ms, r->run_ms);
    if (r->why)
        printf("    %s\n", r->why);
}

static bool note(void *ctx, const ful_selftest_row *r)
{
    printer *p = ctx;
    if (p->json)
        print_json(p, r);
    else
        print_row(p, r);
    fflush(stdout);
    p->lines++;
    p->op = r->op;
    p->ms += r->ms;
    p->run_ms += r->run_ms;
    p->failed += r->verdict != FUL_SELFTEST_PASSED;
    return !cli_interrupted();
}

static int selftest(ful_device *device, printer *p, const ful_selftest_params *params)
{
    const ful_device_info *d = ful_device_get_info(device);
    if (p->json) {
        printf("{\"device\": ");
        cli_print_json_string(d->name, strlen(d->name));
        printf(", \"driver\": ");
        cli_print_json_string(d->driver, strlen(d->driver));
        printf(", \"rows\": [");
    } else {
        printf("device   %s (%s), %s\n\n", d->name, ful_device_kind_name(d->kind), d->driver);
    }
    ful_result r = ful_device_selftest(device, params);
    if (p->json)
        printf("], \"failed\": %u, \"usable\": %s, \"ms\": %.3f, \"run_ms\": %.3f}\n", p->failed,
               r == FUL_OK ? "true" : "false", p->ms, p->run_ms);
    if (cli_interrupted())
        return CLI_INTERRUPTED;
    if (r != FUL_OK)
        return cli_fail("self-test");
    if (!p->json && p->failed)
        printf("\n%u of %u failed; others are used in their place\n", p->failed, p->lines);
    else if (!p->json)
        printf("\nall %u passed, in %.0f ms; one run of each takes %.1f ms\n", p->lines, p->ms,
               p->run_ms);
    return p->failed ? CLI_FAILED : CLI_OK;
}

static int run(int argc, char **argv)
{
    printer p = {0};
    ful_selftest_params params = {.struct_size = sizeof params, .row = note, .ctx = &p};
    cli_model m = {0};
    const cli_option options[] = {
        {0, "device", "N|UUID|NAME", CLI_TEXT, &m.device_text, "the device (default: the best)"},
        {0, "caps", "LIST", CLI_TEXT, &m.caps_text,
         "capabilities to pretend absent, as in FULGUR_CAPS"},
        {0, "only", "TEXT", CLI_TEXT, &params.only, "only ops whose name holds TEXT"},
        {0, "json", NULL, CLI_FLAG, &p.json, "print JSON"},
        {'v', "verbose", NULL, CLI_FLAG, &m.verbose, "say more on standard error"},
    };
    int first, code = cli_parse(&cmd_selftest, argc, argv, options,
                                sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (first != argc) {
        fprintf(stderr, "usage: fulgur selftest [options] (try --help)\n");
        return CLI_USAGE;
    }
    if (!cli_open_instance(&m.instance, m.verbose))
        return CLI_FAILED;
    cli_watch_interrupt();
    if (cli_open_device(&m) == FUL_OK)
        code = selftest(m.device, &p, &params);
    else
        code = cli_fail(m.device_text ? m.device_text : "device");
    cli_close_model(&m);
    return code;
}

const cli_command cmd_selftest = {"selftest", "[options]",
                                  "try every kernel on problems with known answers", run};
