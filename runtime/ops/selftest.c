/* Which kernels are tested when, and what follows from it. */
#include "fulgur/selftest.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "ops/selftest.h"

enum { REPEATS = 3 }; /* some drivers fail one run in four */

/* One module reads all types of blocks: one that is whole bytes, and one of two planes. */
static const ful_type types[] = {FUL_TYPE_F32, FUL_TYPE_F16, FUL_TYPE_BF16, FUL_TYPE_Q8_0,
                                 FUL_TYPE_Q5_0};
enum { TYPES = sizeof(types) / sizeof(types[0]), LADDERS_MOST = 40, MODULES_MOST = 96 };

/* ---- what a case asks for ---- */

typedef struct module_set {
    const char *names[MODULES_MOST]; /* of pipelines: as long as the device lives */
    uint32_t count;
} module_set;

static bool set_has(const module_set *s, const char *name)
{
    for (uint32_t i = 0; i < s->count; i++)
        if (strcmp(s->names[i], name) == 0)
            return true;
    return false;
}

static void set_add(module_set *s, const char *name)
{
    if (s->count < MODULES_MOST && !set_has(s, name))
        s->names[s->count++] = name;
}

static op_module variant_module(const ladder *l, uint32_t variant, ful_type type)
{
    op_module m;
    if (l->typed)
        return op_module_name(l->variants[variant], type);
    int n = snprintf(m.name, sizeof(m.name), "%s", l->variants[variant]);
    assert(n > 0 && (size_t)n < sizeof(m.name));
    (void)n;
    return m;
}

/* Records a case without buffers: the modules it asks for. FUL_ERR_UNSUPPORTED, FUL_ERR_SELFTEST or
 * FUL_ERR_ARGUMENT where there is nothing for it on this device. */
static ful_result case_look(kat *k, const ladder *l, ful_type type, module_set *asked)
{
    asked->count = 0;
    TRY(kat_begin(k, type));
    TRY(l->record(k, l->mode));
    TRY(kat_record_end(k));
    for (uint32_t i = 0; i < gpu_commands_dispatches(k->ctx.commands); i++)
        set_add(asked, gpu_commands_module(k->ctx.commands, i));
    return FUL_OK;
}

static bool nothing_there(ful_result r)
{
    return r == FUL_ERR_UNSUPPORTED || r == FUL_ERR_SELFTEST || r == FUL_ERR_ARGUMENT;
}

/* The first of the ladder's variants among the modules; LADDER_VARIANTS if none is. */
static uint32_t variant_in(const ladder *l, ful_type type, const module_set *asked)
{
    for (uint32_t v = 0; v < LADDER_VARIANTS && l->variants[v] != NULL; v++)
        if (set_has(asked, variant_module(l, v, type).name))
            return v;
    return LADDER_VARIANTS;
}

/* ---- running a case ---- */

typedef struct outcome {
    ful_selftest_verdict verdict;
    double error, tolerance, ms;
    uint64_t notes_ns; /* storing that the test begins; the rest of the time is in the kat */
    uint64_t all_ns;
    char why[160];
} outcome;

static ful_result case_repeat(kat *k, gpu_fault fault, outcome *o)
{
    bool over = false;
    for (uint32_t i = 0; i < REPEATS; i++) {
        if (fault == GPU_FAULT_LOST)
            return fail(FUL_ERR_DEVICE_LOST, "FULGUR_FAULT: the device stops");
        bool spoil = fault == GPU_FAULT_WRONG || (fault == GPU_FAULT_ONCE && i == 1) ||
                     (fault == GPU_FAULT_THIRD && i % 3 == 2);
        TRY(kat_run(k, spoil, &o->error, &o->tolerance, &over));
    }
    if (over) {
        o->verdict = FUL_SELFTEST_WRONG;
        snprintf(o->why, sizeof(o->why), "largest error %.2g, allowed %.2g", o->error,
                 o->tolerance);
    }
    return FUL_OK;
}

static ful_result case_record(kat *k, const ladder *l, ful_type type)
{
    TRY(kat_begin(k, type));
    TRY(l->record(k, l->mode));
    return kat_record_end(k);
}

/* What the driver did not compile or take. Memory and cancelling are no verdicts. */
static bool is_verdict(ful_result r)
{
    return r == FUL_ERR_UNSUPPORTED || r == FUL_ERR_ARGUMENT || r == FUL_ERR_SELFTEST;
}

/* Tests module `name`, the subject of the case, and notes what came of it for its family. Errors
 * are those that are no verdict, and FUL_ERR_DEVICE_LOST, noted before. note_to_disk: nothing on
 * the disk says yet that tests are going on. */
static ful_result case_test(kat *k, const ladder *l, ful_type type, const char *name,
                            const char *family, bool note_to_disk, outcome *o)
{
    ful_device *d = k->ctx.device;
    gpu_trust before = gpu_module_trust(d, name);
    *o = (outcome){.verdict = FUL_SELFTEST_PASSED};
    /* Whoever comes after a crash finds this. */
    gpu_module_set_trust(d, name, GPU_TRUST_TESTING);
    uint64_t noting = time_ns();
    ful_result stored = device_trust_store(d, note_to_disk);
    log_write(device_log(d), FUL_LOG_TRACE, "self-test of %s: %s", name, l->op);
    uint64_t start = time_ns();
    ful_result r = case_record(k, l, type);
    if (r == FUL_OK)
        r = case_repeat(k, gpu_module_fault(d, name), o);
    o->notes_ns = start - noting;
    o->all_ns = time_ns() - start;
    o->ms = (double)o->all_ns / 1e6;
    if (r == FUL_OK) {
        gpu_module_set_trust(d, name, before);
    } else if (is_verdict(r)) {
        o->verdict = FUL_SELFTEST_REFUSED;
        snprintf(o->why, sizeof(o->why), "%s", ful_last_error());
    } else if (r == FUL_ERR_DEVICE_LOST) {
        o->verdict = FUL_SELFTEST_LOST;
        snprintf(o->why, sizeof(o->why), "%s", ful_last_error());
    } else {
        gpu_module_set_trust(d, name, before);
        return r;
    }
    static const gpu_trust trusts[] = {[FUL_SELFTEST_WRONG] = GPU_TRUST_WRONG,
                                       [FUL_SELFTEST_LOST] = GPU_TRUST_LOST,
                                       [FUL_SELFTEST_REFUSED] = GPU_TRUST_REFUSED};
    if (o->verdict != FUL_SELFTEST_PASSED) {
        gpu_family_set_trust(d, family, trusts[o->verdict]);
        log_write(device_log(d), FUL_LOG_WARNING,
                  "self-test on %s (%s): %s %s (%s): %s; it is not used from now on",
                  ful_device_get_info(d)->name, ful_device_get_info(d)->driver, name,
                  gpu_trust_text(trusts[o->verdict]), l->op, o->why);
    }
    if (r == FUL_ERR_DEVICE_LOST) {
        (void)device_trust_store(d, true);
        return fail(FUL_ERR_DEVICE_LOST, "self-test of %s: %s", name, o->why);
    }
    (void)stored; /* told when all verdicts are stored */
    return FUL_OK;
}

static void store_verdicts(ful_device *d)
{
    if (device_trust_store(d, true) != FUL_OK)
        log_write(device_log(d), FUL_LOG_WARNING, "self-test: verdicts not stored: %s",
                  ful_last_error());
}

/* ---- what a model asks for ---- */

typedef struct pending {
    const ladder *ladder;
    ful_type type;
    uint32_t variant;
} pending;

struct selftest {
    ful_device *device;
    op_shape shape;
    pending list[LADDERS_MOST * TYPES];
    uint32_t count;
    module_set needed;  /* of unknown trust */
    module_set covered; /* asked for by cases that ran */
    uint64_t notes_ns, first_ns, others_ns, rest_ns;
};

/* Does the ladder have a variant of that type that is needed? */
static bool ladder_needed(const selftest *t, const ladder *l, ful_type type)
{
    for (uint32_t v = 0; v < LADDER_VARIANTS && l->variants[v] != NULL; v++)
        if (set_has(&t->needed, variant_module(l, v, type).name))
            return true;
    return false;
}

static ful_result cases_choose(selftest *t, kat *k)
{
    uint32_t count;
    const ladder *ladders = selftest_ladders(&count);
    module_set asked;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t j = 0; j < (ladders[i].typed ? TYPES : 1u); j++) {
            const ladder *l = &ladders[i];
            if (!ladder_needed(t, l, types[j]))
                continue;
            ful_result r = case_look(k, l, types[j], &asked);
            if (nothing_there(r))
                continue;
            if (r != FUL_OK)
                return r;
            uint32_t v = variant_in(l, types[j], &asked);
            if (v == LADDER_VARIANTS || !set_has(&t->needed, variant_module(l, v, types[j]).name))
                continue;
            t->list[t->count++] = (pending){l, types[j], v};
            for (uint32_t m = 0; m < asked.count; m++)
                set_add(&t->covered, asked.names[m]);
        }
    return FUL_OK;
}

ful_result selftest_prepare(ful_device *device, op_shape shape, selftest **out)
{
    const ful_alloc *a = device_alloc(device);
    uint32_t at = 0;
    const char *module;
    *out = NULL;
    if (!device_tests_itself(device) || !gpu_pipeline_next_unknown(device, &at, &module))
        return FUL_OK;
    selftest *t = mem_zalloc(a, 1, sizeof(*t));
    kat *k = mem_zalloc(a, 1, sizeof(*k));
    if (t == NULL || k == NULL) {
        mem_free(a, t);
        mem_free(a, k);
        return mem_fail(sizeof(*t) + sizeof(*k), "a self-test");
    }
    t->device = device;
    t->shape = shape;
    do
        set_add(&t->needed, module);
    while (gpu_pipeline_next_unknown(device, &at, &module));
    ful_result r = kat_open(device, shape, true, k);
    if (r == FUL_OK) {
        r = cases_choose(t, k);
        kat_close(k);
    }
    mem_free(a, k);
    *out = t;
    if (r != FUL_OK)
        selftest_end(out);
    return r;
}

void selftest_end(selftest **test)
{
    if (*test != NULL)
        mem_free(device_alloc((*test)->device), *test);
    *test = NULL;
}

/* One note on the disk for all tests, in case that one of them stops the machine. Those of single
 * ones, which would each wait for the disk, are then for the end of the process only. */
static void cases_note(selftest *t)
{
    ful_device *d = t->device;
    if (t->count < 2 || device_notes_to_disk(d))
        return;
    uint64_t start = time_ns();
    for (int testing = 1; testing >= 0; testing--) {
        for (uint32_t i = 0; i < t->count; i++) {
            const pending *p = &t->list[i];
            op_module m = variant_module(p->ladder, p->variant, p->type);
            gpu_trust from = testing ? GPU_TRUST_UNKNOWN : GPU_TRUST_TESTING;
            if (gpu_module_trust(d, m.name) == from)
                gpu_module_set_trust(d, m.name, testing ? GPU_TRUST_TESTING : GPU_TRUST_UNKNOWN);
        }
        if (testing)
            (void)device_trust_store(d, true); /* told when all verdicts are stored */
    }
    t->notes_ns += time_ns() - start;
}

static ful_result cases_run(selftest *t, kat *k)
{
    cases_note(t);
    for (uint32_t i = 0; i < t->count; i++) {
        const pending *p = &t->list[i];
        op_module m = variant_module(p->ladder, p->variant, p->type);
        outcome o;
        if (gpu_trust_quarantined(gpu_module_trust(t->device, m.name)))
            continue; /* by a case before */
        TRY(case_test(k, p->ladder, p->type, m.name, p->ladder->variants[p->variant],
                      t->count < 2 || device_notes_to_disk(t->device), &o));
        t->notes_ns += o.notes_ns;
        t->first_ns += k->first_ns;
        t->others_ns += k->others_ns;
        t->rest_ns += o.all_ns - k->first_ns - k->others_ns;
    }
    return FUL_OK;
}

/* What was needed and is not quarantined now has passed, or no case reaches it. A round with a
 * failure settles only what did fail: the next one asks for other modules. */
static void needed_settle(selftest *t, uint32_t changes)
{
    bool failed = changes != gpu_trust_changes(t->device);
    for (uint32_t i = 0; i < t->needed.count && !failed; i++) {
        const char *name = t->needed.names[i];
        bool covered = set_has(&t->covered, name);
        if (gpu_module_trust(t->device, name) == GPU_TRUST_UNKNOWN)
            gpu_module_set_trust(t->device, name, covered ? GPU_TRUST_PASSED : GPU_TRUST_NO_TEST);
    }
}

ful_result selftest_run(selftest **test)
{
    selftest *t = *test;
    if (t == NULL)
        return FUL_OK;
    ful_device *d = t->device;
    const ful_alloc *a = device_alloc(d);
    uint64_t start = time_ns();
    uint32_t changes = gpu_trust_changes(d);
    kat *k = mem_zalloc(a, 1, sizeof(*k));
    ful_result r = k != NULL ? FUL_OK : mem_fail(sizeof(*k), "a self-test");
    if (r == FUL_OK && t->count > 0) {
        r = kat_open(d, t->shape, false, k);
        if (r == FUL_OK) {
            r = cases_run(t, k);
            kat_close(k);
        }
    }
    if (r == FUL_OK) {
        needed_settle(t, changes);
        store_verdicts(d);
        log_write(device_log(d), FUL_LOG_INFO,
                  "self-test: %u cases for %u kernels in %.1f ms: %.1f answers and recording, %.1f "
                  "first runs, %.1f repetitions, %.1f notes",
                  (unsigned)t->count, (unsigned)t->needed.count, (double)(time_ns() - start) / 1e6,
                  (double)t->rest_ns / 1e6, (double)t->first_ns / 1e6, (double)t->others_ns / 1e6,
                  (double)t->notes_ns / 1e6);
    }
    mem_free(a, k);
    selftest_end(test);
    if (r == FUL_ERR_DEVICE_MEMORY) {
        /* A model may fill the device; next time, perhaps. */
        log_write(device_log(d), FUL_LOG_WARNING, "self-test not run: %s", ful_last_error());
        return FUL_OK;
    }
    return r;
}

ful_result selftest_last_resort(const ful_device *device)
{
    char line[320];
    snprintf(line, sizeof(line), "%s", ful_last_error());
    log_write(device_log(device), FUL_LOG_ERROR, "%s", line);
    return fail(FUL_ERR_SELFTEST, "%s; update the driver, or use the device \"cpu\"", line);
}

/* ---- all of it ---- */

typedef struct tour {
    ful_device *device;
    const ful_selftest_params *params;
    kat look, run;
    uint32_t failed; /* ops without any variant left */
    char last[80];   /* one of them */
} tour;

static ful_result tour_report(const tour *t, const ladder *l, const char *module, uint32_t choice,
                              const outcome *o)
{
    ful_selftest_row row = {.op = l->op,
                            .variant = module,
                            .choice = choice,
                            .verdict = o->verdict,
                            .error = o->error,
                            .tolerance = o->tolerance,
                            .ms = o->ms,
                            .run_ms = (double)t->run.least_ns / 1e6,
                            .why = o->verdict == FUL_SELFTEST_PASSED ? NULL : o->why};
    if (t->params->row != NULL && !t->params->row(t->params->ctx, &row))
        return fail(FUL_ERR_CANCELLED, "the self-test was stopped at %s", module);
    return FUL_OK;
}

/* Down one ladder, hiding each variant once it was tested. */
static ful_result tour_ladder(tour *t, const ladder *l, ful_type type)
{
    uint32_t passed = 0, tested = 0;
    for (uint32_t step = 0; step < LADDER_VARIANTS; step++) {
        module_set asked;
        ful_result r = case_look(&t->look, l, type, &asked);
        uint32_t v = r == FUL_OK ? variant_in(l, type, &asked) : (uint32_t)LADDER_VARIANTS;
        if (r != FUL_OK && !nothing_there(r))
            return r;
        if (v == LADDER_VARIANTS)
            break;
        op_module m = variant_module(l, v, type);
        outcome o;
        r = case_test(&t->run, l, type, m.name, l->variants[v], true, &o);
        if (r != FUL_OK && r != FUL_ERR_DEVICE_LOST)
            return r;
        tested++;
        passed += o.verdict == FUL_SELFTEST_PASSED;
        if (o.verdict == FUL_SELFTEST_PASSED)
            for (uint32_t i = 0; i < asked.count; i++)
                if (gpu_module_trust(t->device, asked.names[i]) == GPU_TRUST_UNKNOWN)
                    gpu_module_set_trust(t->device, asked.names[i], GPU_TRUST_PASSED);
        TRY(tour_report(t, l, m.name, step, &o));
        if (r != FUL_OK)
            return fail(r, "%s", o.why);
        gpu_family_hide(t->device, l->variants[v]);
    }
    if (tested > 0 && passed == 0 && !l->optional) {
        t->failed++;
        snprintf(t->last, sizeof(t->last), "%s", l->op);
    }
    return FUL_OK;
}

static ful_result tour_all(tour *t)
{
    uint32_t count;
    const ladder *ladders = selftest_ladders(&count);
    for (uint32_t i = 0; i < count; i++) {
        if (t->params->only != NULL && strstr(ladders[i].op, t->params->only) == NULL)
            continue;
        for (uint32_t j = 0; j < (ladders[i].typed ? TYPES : 1u); j++) {
            ful_result r = tour_ladder(t, &ladders[i], types[j]);
            gpu_families_show(t->device);
            if (r != FUL_OK)
                return r;
        }
    }
    if (t->failed > 0)
        return fail(FUL_ERR_SELFTEST, "%u ops have no kernel that gives right results, the last %s",
                    (unsigned)t->failed, t->last);
    return FUL_OK;
}

ful_result selftest_device(ful_device *device, op_shape shape, const ful_selftest_params *params)
{
    const ful_alloc *a = device_alloc(device);
    tour *t = mem_zalloc(a, 1, sizeof(*t));
    if (t == NULL)
        return mem_fail(sizeof(*t), "a self-test");
    t->device = device;
    t->params = params;
    gpu_trust_forget(device);
    ful_result r = kat_open(device, shape, true, &t->look);
    if (r == FUL_OK) {
        r = kat_open(device, shape, false, &t->run);
        if (r == FUL_OK) {
            r = tour_all(t);
            kat_close(&t->run);
        }
        kat_close(&t->look);
    }
    mem_free(a, t);
    char line[320];
    snprintf(line, sizeof(line), "%s", ful_last_error());
    store_verdicts(device);
    return r == FUL_OK ? FUL_OK : fail(r, "%s", line);
}

ful_result ful_device_selftest(ful_device *device, const ful_selftest_params *params)
{
    if (device == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_device_selftest: device must be given");
    ful_selftest_params p;
    TRY(params_copy(&p, sizeof(p), params, "ful_selftest_params"));
    return selftest_device(device, OP_SHAPE_AUTO, &p);
}
