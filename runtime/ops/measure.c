/* What the device itself can do: memory, arithmetic in registers, dispatches and submissions. */
#include <math.h>
#include <stdlib.h>

#include "base/thread.h"
#include "ops/op_common.h"
#include "ops/public.h"

enum {
    RUNS = 11,
    WG = 128,
    EACH = 8, /* loads of 16 bytes an invocation */
    CHAINS = 8,
    VECTOR = 4,
    CHAIN_DISPATCHES = 256,
    RATE_GROUPS_GPU = 132 * 16, /* several groups for each of the processors of any GPU */
    RATE_GROUPS_CPU = 64
};

static const double WARM_S = 0.1; /* idle GPUs raise their clocks over tens of milliseconds */

static const struct {
    const char *name, *unit;
} rates[FUL_RATE_COUNT] = {
    [FUL_RATE_COPY] = {"copy", "bytes/s"},
    [FUL_RATE_READ] = {"read", "bytes/s"},
    [FUL_RATE_WRITE] = {"write", "bytes/s"},
    [FUL_RATE_F32] = {"f32 multiply-add", "FLOP/s"},
    [FUL_RATE_F16] = {"f16 multiply-add", "FLOP/s"},
    [FUL_RATE_MATRIX] = {"f16 matrices, f32 sums", "FLOP/s"},
    [FUL_RATE_FLEXIBLE] = {"f16 matrices of workgroups", "FLOP/s"},
    [FUL_RATE_INT_DOT] = {"int8 dot products", "op/s"},
    [FUL_RATE_DISPATCH] = {"dispatch after dispatch", "s"},
    [FUL_RATE_SUBMIT] = {"submission", "s"},
};

typedef struct memory_push {
    uint32_t words4;
} memory_push;

typedef struct rate_push {
    uint32_t loops;
    float seed;
} rate_push;

typedef struct measurement {
    ful_device *device;
    gpu_buffer in, out;
    gpu_commands *commands;
    double work;      /* of one run: bytes, FLOPs; 0: the time itself is the result */
    uint32_t repeats; /* dispatches that share a run's time */
} measurement;

static double now_s(void)
{
    return 1e-9 * (double)time_ns();
}

static ful_result run_once(measurement *m, double *wall_s)
{
    double begin = now_s();
    TRY(gpu_commands_submit(m->commands));
    TRY(gpu_commands_wait(m->commands));
    *wall_s = now_s() - begin;
    return FUL_OK;
}

/* Bytes of each buffer: large beside any cache, small beside the memory. */
static uint64_t memory_bytes(const ful_device *device)
{
    uint64_t bytes = device_is_cpu(device) ? 32u << 20 : 1u << 30;
    uint64_t free = device_free_bytes(device) / 4;
    if (bytes > device_window_bytes(device))
        bytes = device_window_bytes(device);
    if (bytes > free)
        bytes = free;
    return bytes / 4096 * 4096;
}

static ful_result record_memory(measurement *m, ful_rate rate)
{
    static const char *const modules[] = {"measure_copy", "measure_read", "measure_write"};
    uint64_t bytes = memory_bytes(m->device);
    bool reads = rate != FUL_RATE_WRITE;
    TRY(gpu_buffer_create(m->device, bytes, GPU_MEMORY_DEVICE, "measured memory", &m->out));
    if (reads) {
        TRY(gpu_buffer_create(m->device, bytes, GPU_MEMORY_DEVICE, "measured memory", &m->in));
        TRY(gpu_range_fill(m->device, gpu_whole(&m->in), 0x3f800001u));
    }
    TRY(gpu_range_fill(m->device, gpu_whole(&m->out), UINT32_MAX));
    gpu_pipeline_desc desc = {.module = modules[rate],
                              .buffer_count = reads ? 2 : 1,
                              .push_bytes = sizeof(memory_push),
                              .spec_count = 2,
                              .spec = {WG, EACH}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->device, &desc, &pipeline));
    memory_push push = {(uint32_t)(bytes / 16)};
    m->work = (double)bytes * (rate == FUL_RATE_COPY ? 2 : 1);
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {gpu_whole(reads ? &m->in : &m->out), gpu_whole(&m->out)},
                      .writes = reads ? 2 : 1,
                      .push = &push,
                      .cost = {.bytes = m->work},
                      .label = rates[rate].name,
                      .layer = -1};
    TRY(op_groups(m->device, "measure", (bytes / 16 + WG * EACH - 1) / (WG * EACH), 1, d.groups));
    return gpu_commands_dispatch(m->commands, &d);
}

static ful_result check_memory(measurement *m, ful_rate rate)
{
    uint64_t last = m->out.bytes - 16;
    uint32_t words[4];
    TRY(gpu_range_read(m->device, gpu_whole(&m->out), last, words, sizeof words));
    uint32_t expected = rate == FUL_RATE_COPY    ? 0x3f800001u
                        : rate == FUL_RATE_WRITE ? (uint32_t)(last / 16)
                                                 : UINT32_MAX;
    for (int i = 0; i < 4; i++)
        if (words[i] != expected)
            return fail(FUL_ERR_SELFTEST, "measuring %s: the last words are %08x, not %08x",
                        rates[rate].name, (unsigned)words[i], (unsigned)expected);
    return FUL_OK;
}

/* What a kernel of measure_rate.comp does in one step of a chain, and what it should store. */
typedef struct rate_kernel {
    const char *module;
    double step_work; /* of one group */
    uint32_t wg, shape[3];
    double loop_sum; /* added to the result in every loop, or ... */
    double sum;      /* ... the result */
} rate_kernel;

/* Sums of all chains in half of the registers that an invocation may have on known devices. */
static bool flexible_shape(const ful_caps *caps, rate_kernel *k)
{
    enum { M = 64, N = 32, K = 16 };
    for (uint32_t i = 0; i < caps->flexible_count; i++) {
        const ful_matrix_grain *g = &caps->flexible[i];
        if (g->workgroup && g->invocations == WG && M % g->m == 0 && N % g->n == 0 &&
            K % g->k == 0) {
            k->shape[0] = M;
            k->shape[1] = N;
            k->shape[2] = K;
            return true;
        }
    }
    return false;
}

static ful_result rate_kernel_of(const ful_device *device, ful_rate rate, rate_kernel *k)
{
    const ful_caps *caps = device_caps(device);
    *k = (rate_kernel){.wg = WG, .shape = {16, 16, 16}};
    switch (rate) {
    case FUL_RATE_F32:
        k->module = "measure_rate_f32";
        k->step_work = 2.0 * VECTOR * WG;
        k->sum = VECTOR * CHAINS;
        break;
    case FUL_RATE_F16:
        k->module = "measure_rate_f16";
        k->step_work = 2.0 * VECTOR * WG;
        k->sum = VECTOR * CHAINS;
        break;
    case FUL_RATE_INT_DOT:
        k->module = "measure_rate_intdot";
        k->step_work = 8.0 * WG;
        k->sum = CHAINS;
        break;
    case FUL_RATE_FLEXIBLE:
        k->module = "measure_rate_coopmat2";
        if (!flexible_shape(caps, k))
            return fail(FUL_ERR_UNSUPPORTED,
                        "the device has no cooperative matrices of workgroups");
        k->step_work = 2.0 * k->shape[0] * k->shape[1] * k->shape[2];
        k->loop_sum = CHAINS * k->shape[2] / 16.0;
        break;
    default:
        k->module = "measure_rate_coopmat";
        if (caps->matrix_count == 0)
            return fail(FUL_ERR_UNSUPPORTED, "the device has no cooperative matrices");
        k->shape[0] = caps->matrix[0].m;
        k->shape[1] = caps->matrix[0].n;
        k->shape[2] = caps->matrix[0].k;
        k->wg = caps->matrix_subgroup > WG ? caps->matrix_subgroup : WG;
        k->step_work =
            2.0 * k->shape[0] * k->shape[1] * k->shape[2] * (k->wg / caps->matrix_subgroup);
        k->loop_sum = CHAINS * k->shape[2] / 16.0;
        break;
    }
    if (!gpu_module_usable(device, k->module))
        return fail(FUL_ERR_UNSUPPORTED, "the device or the build has no %s", rates[rate].name);
    return FUL_OK;
}

static ful_result record_rate(measurement *m, ful_rate rate, uint32_t loops)
{
    rate_kernel k;
    TRY(rate_kernel_of(m->device, rate, &k));
    uint32_t groups = device_is_cpu(m->device) ? RATE_GROUPS_CPU : RATE_GROUPS_GPU;
    TRY(gpu_buffer_create(m->device, 4 * (uint64_t)groups, GPU_MEMORY_DEVICE, "measured sums",
                          &m->out));
    TRY(gpu_range_fill(m->device, gpu_whole(&m->out), UINT32_MAX));
    gpu_pipeline_desc desc = {.module = k.module,
                              .buffer_count = 1,
                              .push_bytes = sizeof(rate_push),
                              .spec_count = 4,
                              .spec = {k.wg, k.shape[0], k.shape[1], k.shape[2]}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->device, &desc, &pipeline));
    rate_push push = {loops, 0.0f};
    m->work = k.step_work * CHAINS * loops * groups;
    gpu_dispatch d = {.pipeline = pipeline,
                      .buffers = {gpu_whole(&m->out)},
                      .writes = 1,
                      .push = &push,
                      .groups = {groups, 1, 1},
                      .cost = {.flops = m->work},
                      .label = rates[rate].name,
                      .layer = -1};
    return gpu_commands_dispatch(m->commands, &d);
}

static ful_result check_rate(measurement *m, ful_rate rate, uint32_t loops)
{
    rate_kernel k;
    TRY(rate_kernel_of(m->device, rate, &k));
    double expected = k.loop_sum != 0.0 ? k.loop_sum * loops : k.sum;
    float got[2];
    TRY(gpu_range_read(m->device, gpu_whole(&m->out), 0, &got[0], 4));
    TRY(gpu_range_read(m->device, gpu_whole(&m->out), m->out.bytes - 4, &got[1], 4));
    for (int i = 0; i < 2; i++)
        if (!(fabs(got[i] - expected) <= 0.01 * expected))
            return fail(FUL_ERR_SELFTEST, "measuring %s: the kernel gave %g, not %g",
                        rates[rate].name, (double)got[i], expected);
    return FUL_OK;
}

static ful_result record_chain(measurement *m, uint32_t dispatches)
{
    TRY(gpu_buffer_create(m->device, 4096, GPU_MEMORY_DEVICE, "measured chain", &m->in));
    TRY(gpu_buffer_create(m->device, 4096, GPU_MEMORY_DEVICE, "measured chain", &m->out));
    TRY(gpu_range_fill(m->device, gpu_whole(&m->in), 1));
    gpu_pipeline_desc desc = {.module = "measure_copy",
                              .buffer_count = 2,
                              .push_bytes = sizeof(memory_push),
                              .spec_count = 2,
                              .spec = {WG, EACH}};
    gpu_pipeline *pipeline;
    TRY(gpu_pipeline_get(m->device, &desc, &pipeline));
    memory_push push = {4096 / 16};
    for (uint32_t i = 0; i < dispatches; i++) {
        gpu_range a = gpu_whole(i % 2 ? &m->out : &m->in), b = gpu_whole(i % 2 ? &m->in : &m->out);
        gpu_dispatch d = {.pipeline = pipeline,
                          .buffers = {a, b},
                          .writes = 2,
                          .push = &push,
                          .groups = {1, 1, 1},
                          .cost = {.bytes = 8192},
                          .label = "chain",
                          .layer = -1};
        TRY(gpu_commands_dispatch(m->commands, &d));
    }
    m->repeats = dispatches;
    return FUL_OK;
}

static int ascending(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static ful_result time_runs(measurement *m, ful_rate rate, ful_rate_result *out)
{
    bool host = rate == FUL_RATE_SUBMIT;
    double begin = now_s(), wall, values[RUNS];
    do
        TRY(run_once(m, &wall));
    while (now_s() - begin < WARM_S);
    for (int i = 0; i < RUNS; i++) {
        TRY(run_once(m, &wall));
        uint64_t ns = gpu_commands_span_ns(m->commands);
        double s = host || ns == 0 ? wall : 1e-9 * (double)ns;
        values[i] = m->work > 0.0 ? m->work / s : s / m->repeats;
    }
    qsort(values, RUNS, sizeof *values, ascending);
    *out = (ful_rate_result){rates[rate].name, rates[rate].unit, values[RUNS / 2],
                             values[0],        values[RUNS - 1], RUNS};
    return FUL_OK;
}

static ful_result record_loops(measurement *m, ful_rate rate, uint32_t loops)
{
    TRY(gpu_commands_begin(m->device, GPU_COMMANDS_REUSABLE, &m->commands));
    if (rate <= FUL_RATE_WRITE)
        TRY(record_memory(m, rate));
    else if (rate >= FUL_RATE_DISPATCH)
        TRY(record_chain(m, rate == FUL_RATE_DISPATCH ? CHAIN_DISPATCHES : 1));
    else
        TRY(record_rate(m, rate, loops));
    return gpu_commands_end(m->commands);
}

static void release(measurement *m)
{
    if (m->commands != NULL)
        gpu_commands_destroy(&m->commands);
    gpu_buffer_destroy(m->device, &m->in);
    gpu_buffer_destroy(m->device, &m->out);
}

static ful_result measure(measurement *m, ful_rate rate, ful_rate_result *out)
{
    uint32_t loops = 64;
    TRY(record_loops(m, rate, loops));
    if (rate >= FUL_RATE_F32 && rate <= FUL_RATE_INT_DOT) {
        /* As many loops as take some milliseconds. */
        double wall;
        TRY(run_once(m, &wall));
        TRY(run_once(m, &wall));
        uint64_t ns = gpu_commands_span_ns(m->commands);
        double s = ns != 0 ? 1e-9 * (double)ns : wall;
        double more = s > 0.0 ? 4e-3 / s : 1.0;
        loops = more > 4096.0 ? 64 * 4096 : more > 1.0 ? (uint32_t)(64 * more) : 64;
        release(m);
        TRY(record_loops(m, rate, loops));
    }
    TRY(time_runs(m, rate, out));
    if (rate <= FUL_RATE_WRITE)
        return check_memory(m, rate);
    return rate < FUL_RATE_DISPATCH ? check_rate(m, rate, loops) : FUL_OK;
}

ful_result ful_device_measure(ful_device *device, ful_rate rate, ful_rate_result *out)
{
    if (device == NULL || out == NULL || (unsigned)rate >= FUL_RATE_COUNT)
        return fail(FUL_ERR_ARGUMENT, "ful_device_measure: device, a rate and out must be given");
    *out = (ful_rate_result){.name = rates[rate].name, .unit = rates[rate].unit};
    measurement m = {.device = device, .repeats = 1};
    ful_result r = measure(&m, rate, out);
    release(&m);
    return r;
}
