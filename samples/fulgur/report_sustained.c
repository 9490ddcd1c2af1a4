/* `fulgur bench report`: a model that generates for a while, second by second, with what the system
 * tells about clocks and temperatures. */
#include "report.h"

#include <stdlib.h>

enum { WINDOW_TOKENS = 512, SMALL_WINDOW_TOKENS = 128, WARM_TOKENS = 4 };

typedef struct sustained {
    const report_sensors *sensors;
    json_t *samples;
    uint64_t start_ns, end_ns, second_ns; /* second_ns: of the sample under way */
    uint32_t tokens;
    double *rates;
    size_t count, capacity;
} sustained;

static void take_sample(sustained *s, uint64_t now)
{
    json_t *o = json_object();
    double rate = s->tokens * 1e9 / (double)(now - s->second_ns), value;
    report_set_number(o, "t_s", (double)(now - s->start_ns) / 1e9);
    report_set_number(o, "tokens_per_s", rate);
    for (int i = 0; i < SENSOR_COUNT; i++)
        report_set(o, report_sensor_keys[i],
                   report_sensors_read(s->sensors, (report_sensor)i, &value) ? report_number(value)
                                                                             : json_null());
    (void)json_array_append_new(s->samples, o);
    if (s->count < s->capacity)
        s->rates[s->count++] = rate;
    s->tokens = 0;
    s->second_ns = now;
}

static bool on_token(void *ctx, int32_t token)
{
    sustained *s = ctx;
    (void)token;
    s->tokens++;
    uint64_t now = cli_now_ns();
    if (now - s->second_ns >= 1000000000u)
        take_sample(s, now);
    return now < s->end_ns && !cli_interrupted();
}

/* One text of that many tokens after an empty session. */
static ful_result generate_once(bench_run *b, uint32_t tokens, ful_token_fn fn, void *ctx)
{
    const int32_t never = -1, one = bench_token(b->seed, 0, 2);
    const ful_sampler_params *sampler = ful_sampler_params(.seed = b->seed, .temperature = 1.0f);
    ful_result r = ful_session_reset(b->model.session);
    if (r == FUL_OK)
        r = ful_prefill(b->model.session, &one, 1);
    if (r == FUL_OK)
        r = ful_generate(b->model.session,
                         ful_generate_params(.max_tokens = tokens, .sampler = sampler,
                                             .stop_tokens = &never, .n_stop_tokens = 1),
                         fn, ctx, NULL);
    return r;
}

static bool go_on(void *ctx, int32_t token)
{
    (void)ctx;
    (void)token;
    return !cli_interrupted();
}

static double mean(const double *values, size_t n)
{
    double sum = 0.0;
    for (size_t i = 0; i < n; i++)
        sum += values[i];
    return sum / (double)n;
}

/* The last fifth against the first: what the heat took. Less than five seconds do not tell. */
static void summarise(json_t *o, sustained *s)
{
    size_t fifth = s->count / 5;
    if (s->count == 0)
        return;
    if (fifth) {
        double first = mean(s->rates, fifth), last = mean(s->rates + s->count - fifth, fifth);
        report_set_number(o, "first_fifth", first);
        report_set_number(o, "last_fifth", last);
        report_set_number(o, "held_percent", 100.0 * last / first);
    }
    bench_spread all = bench_spread_of(s->rates, s->count); /* sorts */
    report_set_number(o, "median", all.median);
    report_set_number(o, "least", all.least);
    report_set_number(o, "most", all.most);
}

json_t *report_sustained(bench_run *b, double seconds)
{
    const ful_device_info *d = ful_device_get_info(b->model.device);
    size_t room = ful_model_get_plan(b->model.model)->max_tokens;
    uint32_t window = d->kind == FUL_DEVICE_CPU ? SMALL_WINDOW_TOKENS : WINDOW_TOKENS;
    window = room - 2 < window ? (uint32_t)room - 2 : window;
    report_sensors *sensors = report_sensors_open(d);
    sustained s = {.sensors = sensors, .samples = json_array(), .capacity = (size_t)seconds + 2};
    s.rates = calloc(s.capacity, sizeof *s.rates);
    if (!sensors || !s.rates) {
        fprintf(stderr, "fulgur: out of memory for %zu samples\n", s.capacity);
        report_sensors_close(sensors);
        free(s.rates);
        json_decref(s.samples);
        return NULL;
    }
    /* A session's first tokens record its steps, which is not what is asked about. */
    ful_result r = generate_once(b, WARM_TOKENS, go_on, NULL);
    s.start_ns = s.second_ns = cli_now_ns();
    s.end_ns = s.start_ns + (uint64_t)(seconds * 1e9);
    while (r == FUL_OK && cli_now_ns() < s.end_ns && !cli_interrupted())
        r = generate_once(b, window, on_token, &s);
    /* What remains of the last second, if it is long enough to tell. */
    uint64_t now = cli_now_ns();
    if (s.tokens && (json_array_size(s.samples) == 0 || now - s.second_ns > 500000000u))
        take_sample(&s, now);
    json_t *o = json_object(), *sources = json_object();
    report_set_number(o, "seconds", (double)(now - s.start_ns) / 1e9);
    report_set(o, "window_tokens", json_integer(window));
    for (int i = 0; i < SENSOR_COUNT; i++) {
        const char *source = report_sensors_source(sensors, (report_sensor)i);
        report_set(sources, report_sensor_keys[i], source ? report_string(source) : json_null());
    }
    report_set(o, "sources", sources);
    summarise(o, &s);
    report_set(o, "samples", s.samples);
    report_sensors_close(sensors);
    free(s.rates);
    if (r != FUL_OK && !cli_interrupted()) {
        cli_fail("sustained run");
        json_decref(o);
        return NULL;
    }
    return o;
}
