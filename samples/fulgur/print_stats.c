#include "print_stats.h"

#include <stdio.h>

static double rate(uint64_t n, uint64_t ns)
{
    return ns ? (double)n * 1e9 / (double)ns : 0.0;
}

static void print_profile(const cli_model *m)
{
    const ful_step_time *times;
    size_t n;
    if (ful_session_profile(m->session, &times, &n) != FUL_OK || n == 0) {
        fprintf(stderr, "profile     this device has no timestamps\n");
        return;
    }
    fprintf(stderr, "\n%-24s %5s %10s %8s\n", "op of the last step", "layer", "us", "GB/s");
    uint64_t total = 0;
    for (size_t i = 0; i < n; i++) {
        fprintf(stderr, "%-24s %5d %10.2f %8.2f\n", times[i].name, times[i].layer,
                (double)times[i].ns / 1e3,
                times[i].ns ? times[i].bytes / (double)times[i].ns : 0.0);
        total += times[i].ns;
    }
    fprintf(stderr, "%-24s %5s %10.2f\n", "sum", "", (double)total / 1e3);
}

void print_stats(const cli_model *m, uint64_t first_ns)
{
    const ful_device_info *d = ful_device_get_info(m->device);
    const ful_plan *plan = ful_model_get_plan(m->model);
    ful_stats s;
    uint64_t now, peak;
    if (ful_session_stats(m->session, &s) != FUL_OK)
        return;
    ful_device_memory(m->device, &now, &peak);
    fprintf(stderr, "\ndevice      %s (%s)\n", d->name, d->driver);
    fprintf(stderr, "precision   %s\n", plan->precision == FUL_PRECISION_F16 ? "f16" : "f32");
    fprintf(stderr, "load        %.0f ms\n", (double)m->load_ns / 1e6);
    if (first_ns)
        fprintf(stderr, "first token %.0f ms after program start\n", (double)first_ns / 1e6);
    fprintf(stderr, "prefill     %llu tokens in %.1f ms: %.1f tokens/s\n",
            (unsigned long long)s.prefill_tokens, (double)s.prefill_ns / 1e6,
            rate(s.prefill_tokens, s.prefill_ns));
    if (s.decode_tokens)
        fprintf(stderr,
                "decode      %llu tokens in %.1f ms: %.1f tokens/s; %u dispatches in %u submits, "
                "%.0f us of host time a "
                "token\n",
                (unsigned long long)s.decode_tokens, (double)s.decode_ns / 1e6,
                rate(s.decode_tokens, s.decode_ns), s.decode_dispatches, s.decode_submits,
                (double)s.decode_host_ns / 1e3 / (double)s.decode_tokens);
    fprintf(stderr, "memory      %.1f MiB on the device, %.1f at most; planned %.1f\n",
            (double)now / 1048576.0, (double)peak / 1048576.0,
            (double)plan->total_bytes / 1048576.0);
    if (m->profile)
        print_profile(m);
}
