/* How long things take: raw timestamps, and the estimate that keeps submissions short. */
#include <string.h>

#include "gpu/gpu_internal.h"

/* What every dispatch costs, however small. */
#define DISPATCH_NS 3000.0
/* Shorter measurements say more about submitting than about the device. */
#define LEARN_LEAST_NS 1e6
#define RATE_LEAST (1.0 / 256)
#define RATE_MOST 256.0

static double rate_get(const ful_device *d)
{
    uint64_t bits = atomic_load_explicit(&d->rate_bits, memory_order_relaxed);
    double rate;
    memcpy(&rate, &bits, sizeof(rate));
    return rate;
}

double timer_estimate_ns(const ful_device *d, const gpu_cost *cost)
{
    double by_bytes = cost->bytes / d->bytes_per_ns;
    double by_flops = cost->flops / d->flops_per_ns;
    double ns = by_bytes > by_flops ? by_bytes : by_flops;
    return DISPATCH_NS + ns / rate_get(d);
}

void timer_learn(ful_device *d, double estimated_ns, double measured_ns)
{
    if (measured_ns < LEARN_LEAST_NS || estimated_ns <= 0)
        return;
    /* Half the way each time: one odd measurement does little harm. Down fast, up slowly. */
    double step = estimated_ns / measured_ns;
    if (step < 1.0 / 8)
        step = 1.0 / 8;
    if (step > 2.0)
        step = 2.0;
    double rate = rate_get(d) * (1.0 + step) / 2;
    if (rate < RATE_LEAST)
        rate = RATE_LEAST;
    if (rate > RATE_MOST)
        rate = RATE_MOST;
    uint64_t bits;
    memcpy(&bits, &rate, sizeof(bits));
    atomic_store_explicit(&d->rate_bits, bits, memory_order_relaxed);
}

uint64_t timer_delta_ns(const ful_device *d, uint64_t from, uint64_t to)
{
    uint32_t bits = d->facts.timestamp_bits;
    uint64_t mask = bits >= 64 ? UINT64_MAX : (1ull << bits) - 1;
    uint64_t ticks = (to - from) & mask;
    /* A clock that went back a little shows as nearly a whole turn. */
    if (ticks > mask - mask / 4)
        return 0;
    return (uint64_t)((double)ticks * d->info.caps.timestamp_period_ns);
}
