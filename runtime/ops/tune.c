/* fulgur/tune.h: the candidates of every choice, measured in turns so that clocks and neighbours
 * disturb all alike, and compared with what the default computes. */
#include "fulgur/tune.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "ops/lightning.h"
#include "ops/tiles.h"
#include "ops/tune.h"

enum {
    CANDIDATES = 16, /* the first is the default */
    ROUNDS = 24,
    REPEATS = 64, /* of the op in one submission, at most */
    POISON = 0x7fc00000
};
#define LEAST_NS 2e6   /* that a submission should last */
#define GAIN 0.97      /* a candidate must be that much faster than the default */
#define TOLERANCE 2e-3 /* relative RMS: sums in another order, inputs rounded to halves */

typedef struct candidate {
    uint32_t value;
    gpu_commands *commands;
    double us[ROUNDS];
    double median, least;
    char wrong[160]; /* why it may not be chosen; "" = it may */
} candidate;

typedef struct tuner {
    workbench bench;
    ful_tune_params params;
    candidate list[CANDIDATES];
    uint32_t count;
} tuner;

/* ---- candidates ---- */

static bool value_fits(const tuner *t, const tuning_field *f, uint32_t value)
{
    /* Processors have as many workgroups under way as they have threads. */
    if (f->work == TUNING_ATTENTION && strstr(f->name, "workgroups") != NULL)
        return op_wide(&t->bench.ctx) ? value >= 128 : value <= 16;
    return true;
}

static void candidates_list(tuner *t, const tuning_field *f)
{
    uint32_t codes[CANDIDATES - 1], n = 0;
    if (f->values[0] != 0) {
        for (uint32_t i = 0; i < TUNING_VALUES && f->values[i] != 0; i++)
            if (value_fits(t, f, f->values[i]))
                codes[n++] = f->values[i];
    } else if (f->work == TUNING_LIGHTNING) {
        n = lightning_tiles_codes(&t->bench.ctx, t->bench.sizes.head_dim, codes, CANDIDATES - 1);
    } else {
        n = tiles_candidates(&t->bench.ctx, codes, CANDIDATES - 1);
    }
    /* One kernel and the rule that picks it leave nothing to choose. */
    t->count = 0;
    if (n < 2 || (f->work == TUNING_MATVEC && !op_wide(&t->bench.ctx)) ||
        (f->work == TUNING_LIGHTNING &&
         lightning_tiles_codes(&t->bench.ctx, t->bench.sizes.head_dim, &(uint32_t){0}, 1) == 0))
        return;
    t->list[t->count++] = (candidate){.value = 0};
    for (uint32_t i = 0; i < n; i++)
        t->list[t->count++] = (candidate){.value = codes[i]};
}

static ful_result scratch_make(tuner *t, const tuning_field *f)
{
    uint64_t most = 4;
    for (uint32_t i = 0; i < t->count; i++) {
        tuning_set(t->bench.device, f, t->list[i].value);
        uint64_t bytes = work_scratch_bytes(&t->bench, f);
        most = bytes > most ? bytes : most;
    }
    return gpu_buffer_create(t->bench.device, most, GPU_MEMORY_DEVICE, "scratch",
                             &t->bench.scratch);
}

/* The commands of a candidate, `repeats` times one after the other. */
static ful_result candidate_record(tuner *t, const tuning_field *f, candidate *c, uint32_t repeats)
{
    if (c->commands != NULL)
        gpu_commands_destroy(&c->commands);
    tuning_set(t->bench.device, f, c->value);
    TRY(gpu_commands_begin(t->bench.device, GPU_COMMANDS_REUSABLE, &c->commands));
    t->bench.ctx.commands = c->commands;
    for (uint32_t i = 0; i < repeats; i++)
        TRY(work_record(&t->bench, f));
    return gpu_commands_end(c->commands);
}

static ful_result candidate_time(candidate *c, double *ns)
{
    uint64_t start = time_ns();
    TRY(work_run(c->commands));
    uint64_t span = gpu_commands_span_ns(c->commands);
    *ns = (double)(span != 0 ? span : time_ns() - start);
    return FUL_OK;
}

/* "" if `got` is all written and near `want`. */
static void compare(const float *want, const float *got, uint64_t count, char *wrong, size_t bytes)
{
    double error = 0, norm = 0;
    for (uint64_t i = 0; i < count; i++) {
        double d = (double)got[i] - (double)want[i];
        if (!isfinite(got[i])) {
            snprintf(wrong, bytes, "element %llu is %g", (unsigned long long)i, (double)got[i]);
            return;
        }
        error += d * d;
        norm += (double)want[i] * (double)want[i];
    }
    double relative = norm > 0 ? sqrt(error / norm) : error > 0 ? INFINITY : 0;
    if (!(relative <= TOLERANCE))
        snprintf(wrong, bytes, "differs from the default by %.2g", relative);
}

/* Runs once on poisoned output and fresh input. */
static ful_result candidate_check(tuner *t, const tuning_field *f, candidate *c, bool first)
{
    uint64_t count = work_outputs(&t->bench, f);
    float *out = first ? t->bench.want : t->bench.got;
    TRY(gpu_range_fill(t->bench.device, gpu_whole(&t->bench.out), POISON));
    /* Rotated in place; the state goes on from what it was. */
    if (f->work == TUNING_ATTENTION || f->work == TUNING_LIGHTNING)
        TRY(work_inputs(&t->bench, f->work));
    TRY(work_run(c->commands));
    TRY(gpu_range_read(t->bench.device, gpu_whole(&t->bench.out), 0, out, 4 * count));
    compare(t->bench.want, out, count, c->wrong, sizeof(c->wrong));
    return FUL_OK;
}

/* A candidate may be more than the device or its driver can do; the default may not. */
static ful_result candidate_begin(tuner *t, const tuning_field *f, uint32_t i)
{
    candidate *c = &t->list[i];
    ful_result r = candidate_record(t, f, c, 1);
    if (r == FUL_OK)
        r = candidate_check(t, f, c, i == 0);
    double ns = 0;
    if (r == FUL_OK)
        r = candidate_time(c, &ns);
    uint32_t repeats = ns > 0 ? (uint32_t)(LEAST_NS / ns) : 1;
    repeats = repeats < 1 ? 1 : repeats > REPEATS ? REPEATS : repeats;
    if (r == FUL_OK && repeats > 1)
        r = candidate_record(t, f, c, repeats);
    c->median = repeats; /* until there are measurements */
    if (r == FUL_OK || i == 0 || r == FUL_ERR_DEVICE_LOST || r == FUL_ERR_HOST_MEMORY)
        return r;
    snprintf(c->wrong, sizeof(c->wrong), "%s", ful_last_error());
    return FUL_OK;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static ful_result measure(tuner *t)
{
    uint32_t rounds = t->bench.sizes.rounds < ROUNDS ? t->bench.sizes.rounds : (uint32_t)ROUNDS;
    double ns;
    /* Clocks rise under load only. */
    for (uint64_t start = time_ns(); time_ns() - start < t->bench.sizes.warm_ms * 1000000ull;)
        TRY(candidate_time(&t->list[0], &ns));
    for (uint32_t round = 0; round < rounds; round++)
        for (uint32_t i = 0; i < t->count; i++) {
            candidate *c = &t->list[i];
            if (c->wrong[0] != 0)
                continue;
            TRY(candidate_time(c, &ns));
            c->us[round] = ns / 1e3 / c->median;
        }
    for (uint32_t i = 0; i < t->count; i++) {
        candidate *c = &t->list[i];
        if (c->wrong[0] != 0)
            continue;
        qsort(c->us, rounds, sizeof(c->us[0]), ascending);
        c->median = c->us[rounds / 2];
        c->least = c->us[0];
    }
    return FUL_OK;
}

static void value_text(const tuning_field *f, uint32_t value, char *text, size_t bytes)
{
    if (value == 0)
        snprintf(text, bytes, "default");
    else if (f->work == TUNING_LIGHTNING && f->values[0] == 0)
        snprintf(text, bytes, "%u tokens, %u columns, %u x %u subgroups", (unsigned)(value >> 20),
                 (unsigned)(value >> 8 & 0xfff), (unsigned)(value >> 4 & 0xf),
                 (unsigned)(value & 0xf));
    else if (f->values[0] == 0)
        snprintf(text, bytes, "%u x %u, %s", (unsigned)(value >> 14 & 0x3fff),
                 (unsigned)(value & 0x3fff),
                 value >> 28 == TILE_KIND_WORKGROUP ? "workgroups" : "subgroups");
    else
        snprintf(text, bytes, "%u", (unsigned)value);
}

static ful_result report(const tuner *t, const tuning_field *f, uint32_t best)
{
    for (uint32_t i = 0; i < t->count && t->params.trial != NULL; i++) {
        const candidate *c = &t->list[i];
        char value[64];
        bool wrong = c->wrong[0] != 0;
        value_text(f, c->value, value, sizeof(value));
        ful_tune_trial trial = {.choice = f->name,
                                .value = value,
                                .us = wrong ? 0 : c->median,
                                .least_us = wrong ? 0 : c->least,
                                .chosen = i == best,
                                .wrong = wrong ? c->wrong : NULL};
        if (!t->params.trial(t->params.ctx, &trial))
            return fail(FUL_ERR_CANCELLED, "tuning was stopped at %s", f->name);
    }
    return FUL_OK;
}

static ful_result choose(tuner *t, const tuning_field *f)
{
    uint32_t best = 0;
    if (f->work == TUNING_EXPERTS || f->work == TUNING_MATVEC)
        TRY(work_routes(&t->bench, f->work, work_rows(&t->bench, f)));
    step_params step = {.n_rows = work_rows(&t->bench, f)};
    step.position = f->work == TUNING_ATTENTION ? t->bench.sizes.keys - step.n_rows : 0;
    step.kv_tokens = step.position + step.n_rows;
    TRY(gpu_range_write(t->bench.device, gpu_whole(&t->bench.step), 0, &step, sizeof(step)));
    TRY(scratch_make(t, f));
    for (uint32_t i = 0; i < t->count; i++)
        TRY(candidate_begin(t, f, i));
    if (t->list[0].wrong[0] != 0)
        return fail(FUL_ERR_SELFTEST, "tuning %s: %s", f->name, t->list[0].wrong);
    TRY(measure(t));
    for (uint32_t i = 1; i < t->count; i++)
        if (t->list[i].wrong[0] == 0 && t->list[i].median < t->list[best].median &&
            t->list[i].median < GAIN * t->list[0].median &&
            t->list[i].least < t->list[0].least) /* neighbours disturb medians */
            best = i;
    tuning_set(t->bench.device, f, t->list[best].value);
    return report(t, f, best);
}

static ful_result tune_field(tuner *t, const tuning_field *f)
{
    candidates_list(t, f);
    if (t->count == 0)
        return FUL_OK;
    ful_result r = work_begin(&t->bench, f->work);
    if (r == FUL_OK)
        r = choose(t, f);
    for (uint32_t i = 0; i < t->count; i++)
        if (t->list[i].commands != NULL)
            gpu_commands_destroy(&t->list[i].commands);
    gpu_buffer_destroy(t->bench.device, &t->bench.scratch);
    return r;
}

/* ---- all of it ---- */

static ful_result tune_fields(tuner *t)
{
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++) {
        if (t->params.only != NULL && strstr(fields[i].name, t->params.only) == NULL)
            continue;
        tuning_set(t->bench.device, &fields[i], 0);
        if (!t->params.forget)
            TRY(tune_field(t, &fields[i]));
    }
    return FUL_OK;
}

ful_result tune_device(ful_device *device, op_shape shape, const tune_sizes *sizes,
                       const ful_tune_params *params)
{
    uint32_t before[DEVICE_CHOICES];
    for (uint32_t i = 0; i < DEVICE_CHOICES; i++)
        before[i] = device_choice(device, i);
    const ful_alloc *a = device_alloc(device);
    tuner *t = mem_zalloc(a, 1, sizeof(*t));
    if (t == NULL)
        return mem_fail(sizeof(*t), "tuning");
    t->params = *params;
    t->bench = (workbench){
        .device = device,
        .sizes = *sizes,
        .ctx = {.device = device, .half = op_half_usable(device), .layer = -1, .shape = shape}};
    ful_result r = tune_fields(t);
    work_end(&t->bench);
    mem_free(a, t);
    for (uint32_t i = 0; i < DEVICE_CHOICES && r != FUL_OK; i++)
        device_choice_set(device, i, before[i]);
    return r == FUL_OK ? device_choices_store(device) : r;
}

static tune_sizes sizes_for(const ful_device *device)
{
    ful_device_kind kind = ful_device_get_info(device)->kind;
    if (device_is_cpu(device))
        return (tune_sizes){256, 256, 4, 128, 64, 128, 8, 2, 64, 1024, 256, 0, 5};
    if (kind == FUL_DEVICE_DISCRETE && device_free_bytes(device) >= 4ull << 30)
        return (tune_sizes){6144, 8192, 8, 6144, 2304, 9216, 64, 8, 128, 16384, 4096, 100, 15};
    return (tune_sizes){2048, 2048, 8, 1024, 1024, 2048, 16, 2, 128, 8192, 2048, 100, 9};
}

ful_result ful_device_tune(ful_device *device, const ful_tune_params *params)
{
    if (device == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_device_tune: device must be given");
    ful_tune_params p;
    TRY(params_copy(&p, sizeof(p), params, "ful_tune_params"));
    tune_sizes sizes = sizes_for(device);
    return tune_device(device, OP_SHAPE_AUTO, &sizes, &p);
}

ful_result ful_device_tuning(const ful_device *device, ful_tune_fn trial, void *ctx)
{
    if (device == NULL || trial == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_device_tuning: device and trial must be given");
    uint32_t count;
    const tuning_field *fields = tuning_fields(&count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t value = tuning_get(device, &fields[i]);
        char text[64];
        value_text(&fields[i], value, text, sizeof(text));
        ful_tune_trial line = {.choice = fields[i].name, .value = text, .chosen = value != 0};
        if (!trial(ctx, &line))
            return fail(FUL_ERR_CANCELLED, "the list was stopped at %s", fields[i].name);
    }
    return FUL_OK;
}
