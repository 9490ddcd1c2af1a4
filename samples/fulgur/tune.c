/* fulgur tune: measures once which kernels are fastest here, and shows what was chosen. */
#include <string.h>

#include <fulgur/tune.h>

#include "cli.h"

typedef struct printer {
    bool json;
    uint32_t lines;
    const char *choice; /* of the last line */
    double default_us;
    uint32_t changed;
} printer;

static void print_trial(printer *p, const ful_tune_trial *t)
{
    if (!p->choice || strcmp(p->choice, t->choice) != 0) {
        printf("%s%s\n", p->choice ? "\n" : "", t->choice);
        p->default_us = t->us;
    }
    p->choice = t->choice;
    printf("  %c %-36s ", t->chosen ? '*' : ' ', t->value);
    if (t->wrong)
        printf("FAILED: %s\n", t->wrong);
    else
        printf("%12.2f us, least %12.2f %8.1f%%\n", t->us, t->least_us,
               p->default_us > 0 ? 100.0 * t->us / p->default_us : 0.0);
}

static void print_json(const printer *p, const ful_tune_trial *t)
{
    printf("%s\n  {\"choice\": ", p->lines ? "," : "");
    cli_print_json_string(t->choice, strlen(t->choice));
    printf(", \"value\": ");
    cli_print_json_string(t->value, strlen(t->value));
    if (t->us > 0)
        printf(", \"us\": %.3f, \"least_us\": %.3f", t->us, t->least_us);
    if (t->wrong) {
        printf(", \"wrong\": ");
        cli_print_json_string(t->wrong, strlen(t->wrong));
    }
    printf(", \"chosen\": %s}", t->chosen ? "true" : "false");
}

static bool note(void *ctx, const ful_tune_trial *t)
{
    printer *p = ctx;
    if (p->json)
        print_json(p, t);
    else
        print_trial(p, t);
    fflush(stdout);
    p->lines++;
    p->changed += t->chosen && strcmp(t->value, "default") != 0;
    return !cli_interrupted();
}

static bool note_present(void *ctx, const ful_tune_trial *t)
{
    printer *p = ctx;
    if (p->json)
        print_json(p, t);
    else
        printf("  %c %-32s %s\n", t->chosen ? '*' : ' ', t->choice, t->value);
    p->lines++;
    return true;
}

static int tune(ful_device *device, printer *p, const ful_tune_params *params, bool show)
{
    const ful_device_info *d = ful_device_get_info(device);
    if (p->json) {
        printf("{\"device\": ");
        cli_print_json_string(d->name, strlen(d->name));
        printf(", \"driver\": ");
        cli_print_json_string(d->driver, strlen(d->driver));
        printf(", \"trials\": [");
    } else {
        printf("device   %s (%s), %s\n\n", d->name, ful_device_kind_name(d->kind), d->driver);
    }
    ful_result r =
        show ? ful_device_tuning(device, note_present, p) : ful_device_tune(device, params);
    if (p->json)
        printf("]}\n");
    if (r != FUL_OK && !cli_interrupted())
        return cli_fail("tuning");
    if (cli_interrupted())
        return CLI_INTERRUPTED;
    if (p->json || show)
        return CLI_OK;
    if (params->forget)
        printf("the defaults are in use again\n");
    else if (p->lines == 0)
        printf("nothing to choose on this device\n");
    else
        printf("\n%u choices differ from the defaults; kept for this device and driver\n",
               p->changed);
    return CLI_OK;
}

static int run(int argc, char **argv)
{
    printer p = {0};
    ful_tune_params params = {.struct_size = sizeof params, .trial = note, .ctx = &p};
    cli_model m = {0};
    bool show = false;
    const cli_option options[] = {
        {0, "device", "N|UUID|NAME", CLI_TEXT, &m.device_text, "the device (default: the best)"},
        {0, "caps", "LIST", CLI_TEXT, &m.caps_text,
         "capabilities to pretend absent, as in FULGUR_CAPS"},
        {0, "only", "TEXT", CLI_TEXT, &params.only, "only choices whose name holds TEXT"},
        {0, "show", NULL, CLI_FLAG, &show, "print what is in use; measure nothing"},
        {0, "forget", NULL, CLI_FLAG, &params.forget, "go back to the defaults"},
        {0, "json", NULL, CLI_FLAG, &p.json, "print JSON"},
        {'v', "verbose", NULL, CLI_FLAG, &m.verbose, "say more on standard error"},
    };
    int first,
        code = cli_parse(&cmd_tune, argc, argv, options, sizeof options / sizeof *options, &first);
    if (code >= 0)
        return code;
    if (first != argc || (show && params.forget)) {
        fprintf(stderr, "usage: fulgur tune [options] (try --help)\n");
        return CLI_USAGE;
    }
    if (!cli_open_instance(&m.instance, m.verbose))
        return CLI_FAILED;
    cli_watch_interrupt();
    if (cli_open_device(&m) == FUL_OK)
        code = tune(m.device, &p, &params, show);
    else
        code = cli_fail(m.device_text ? m.device_text : "device");
    cli_close_model(&m);
    return code;
}

const cli_command cmd_tune = {"tune", "[options]", "measure which kernels are fastest here", run};
