/* What the vendors' compilers make of every pipeline that sessions of some models would use:
 * registers, spills, occupancy. Runs on an imagined device (devices.txt), compares with a table.
 *
 *   vendors_stats DEVICE TABLE [--update | --accept]
 *
 * --update rewrites the device's lines, --accept also marks those that have a fault as known.
 *
 * The library is not asked to help: this program puts itself in front of two Vulkan functions, so
 * that the device has VK_KHR_pipeline_executable_properties and every pipeline keeps statistics. */
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/types.h"
#include "gpu/gpu_internal.h"
#include "gpu/shaders.h"
#include "schedule/schedule.h"
#include "test_shaders/plain_gemm.h"

/* ---- in front of Vulkan ---- */

static PFN_vkCreateDevice real_create_device;
static PFN_vkCreateComputePipelines real_create_pipelines;

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *alloc,
                                                    VkDevice *out)
{
    enum { MOST = 64 };
    const char *names[MOST];
    uint32_t n = 0;
    for (; n < info->enabledExtensionCount && n < MOST - 1; n++)
        names[n] = info->ppEnabledExtensionNames[n];
    names[n++] = VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
    VkPhysicalDevicePipelineExecutablePropertiesFeaturesKHR feature = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PIPELINE_EXECUTABLE_PROPERTIES_FEATURES_KHR,
        .pNext = (void *)info->pNext,
        .pipelineExecutableInfo = VK_TRUE,
    };
    VkDeviceCreateInfo more = *info;
    more.pNext = &feature;
    more.enabledExtensionCount = n;
    more.ppEnabledExtensionNames = names;
    return real_create_device(physical, &more, alloc, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_pipelines(VkDevice device, VkPipelineCache cache,
                                                       uint32_t count,
                                                       const VkComputePipelineCreateInfo *infos,
                                                       const VkAllocationCallbacks *alloc,
                                                       VkPipeline *out)
{
    (void)cache; /* what comes from a cache may lack statistics */
    for (uint32_t i = 0; i < count; i++) {
        VkComputePipelineCreateInfo info = infos[i];
        info.flags |= VK_PIPELINE_CREATE_CAPTURE_STATISTICS_BIT_KHR;
        VkResult r = real_create_pipelines(device, VK_NULL_HANDLE, 1, &info, alloc, &out[i]);
        if (r != VK_SUCCESS)
            return r;
    }
    return VK_SUCCESS;
}

/* ---- rows ---- */

enum { KEY_BYTES = 256, ROW_BYTES = 512, NOT_KNOWN = -1 };

typedef struct row {
    char key[KEY_BYTES]; /* device, module, constants, subgroup size */
    long registers, spills, scratch, shared, occupancy, instructions, code;
    bool known; /* its fault is known */
    bool seen;
} row;

typedef struct table {
    row *rows;
    size_t count, capacity;
} table;

static void stop(const char *what, const char *detail)
{
    fprintf(stderr, "vendors_stats: %s: %s\n", what, detail);
    exit(1);
}

static void check(ful_result r, const char *what)
{
    if (r != FUL_OK)
        stop(what, ful_last_error());
}

static row *table_add(table *t)
{
    if (t->count == t->capacity) {
        t->capacity = t->capacity ? t->capacity * 2 : 64;
        t->rows = realloc(t->rows, t->capacity * sizeof *t->rows);
        if (!t->rows)
            stop("out of memory", "rows");
    }
    row *r = &t->rows[t->count++];
    *r = (row){.registers = NOT_KNOWN,
               .scratch = NOT_KNOWN,
               .shared = NOT_KNOWN,
               .occupancy = NOT_KNOWN,
               .instructions = NOT_KNOWN,
               .code = NOT_KNOWN};
    return r;
}

static int row_compare(const void *a, const void *b)
{
    return strcmp(((const row *)a)->key, ((const row *)b)->key);
}

static row *table_find(const table *t, const char *key)
{
    for (size_t i = 0; i < t->count; i++)
        if (strcmp(t->rows[i].key, key) == 0)
            return &t->rows[i];
    return NULL;
}

/* ---- statistics of one pipeline ---- */

/* The drivers' names for what a row holds. Values with one target add up. */
static const struct {
    const char *name;
    size_t target;
} names[] = {
    {"VGPRs", offsetof(row, registers)}, /* RADV */
    {"Spilled SGPRs", offsetof(row, spills)},
    {"Spilled VGPRs", offsetof(row, spills)},
    {"Scratch size", offsetof(row, scratch)},
    {"LDS size", offsetof(row, shared)},
    {"Subgroups per SIMD", offsetof(row, occupancy)},
    {"Instructions", offsetof(row, instructions)}, /* ANV and Honeykrisp, too */
    {"Code size", offsetof(row, code)},
    {"Max live registers", offsetof(row, registers)}, /* ANV */
    {"Spills", offsetof(row, spills)},
    {"Fills", offsetof(row, spills)},
    {"Scratch Memory Size", offsetof(row, scratch)},
    {"Workgroup Memory Size", offsetof(row, shared)},
    {"Number of GPRs", offsetof(row, registers)}, /* NVK */
    {"Spills to memory", offsetof(row, spills)},
    {"Fills from memory", offsetof(row, spills)},
    {"SLM size", offsetof(row, scratch)},
    {"Max warps/SM", offsetof(row, occupancy)},
    {"Instruction count", offsetof(row, instructions)},
    {"Registers used", offsetof(row, registers)}, /* turnip */
    {"STP Count", offsetof(row, spills)},
    {"Max Waves Per Core", offsetof(row, occupancy)},
    {"Instruction Count", offsetof(row, instructions)},
    {"GPRs", offsetof(row, registers)}, /* Honeykrisp */
    {"Scratch", offsetof(row, scratch)},
    {"Threads", offsetof(row, occupancy)},    /* PanVK, too */
    {"Temp count", offsetof(row, registers)}, /* PowerVR */
    {"Spill count", offsetof(row, spills)},
    {"Inst group count", offsetof(row, instructions)},
};

static long statistic_value(const VkPipelineExecutableStatisticKHR *s)
{
    switch (s->format) {
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_BOOL32_KHR:
        return s->value.b32 != 0;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_INT64_KHR:
        return (long)s->value.i64;
    case VK_PIPELINE_EXECUTABLE_STATISTIC_FORMAT_UINT64_KHR:
        return (long)s->value.u64;
    default:
        return (long)s->value.f64;
    }
}

static void pipeline_read(const ful_device *d, VkPipeline pipeline, row *out, uint32_t *subgroup)
{
    VkPipelineInfoKHR info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_INFO_KHR, .pipeline = pipeline};
    uint32_t one = 1;
    VkPipelineExecutablePropertiesKHR properties = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_PROPERTIES_KHR};
    VkResult r = d->fn.vkGetPipelineExecutablePropertiesKHR(d->vk, &info, &one, &properties);
    if ((r != VK_SUCCESS && r != VK_INCOMPLETE) || one == 0)
        stop("the driver tells nothing about", out->key);
    *subgroup = properties.subgroupSize;
    VkPipelineExecutableInfoKHR which = {.sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_INFO_KHR,
                                         .pipeline = pipeline};
    enum { MOST = 64 };
    static VkPipelineExecutableStatisticKHR list[MOST];
    for (int i = 0; i < MOST; i++)
        list[i] = (VkPipelineExecutableStatisticKHR){
            .sType = VK_STRUCTURE_TYPE_PIPELINE_EXECUTABLE_STATISTIC_KHR};
    uint32_t count = MOST;
    d->fn.vkGetPipelineExecutableStatisticsKHR(d->vk, &which, &count, list);
    for (uint32_t i = 0; i < count; i++)
        for (size_t n = 0; n < sizeof names / sizeof *names; n++)
            if (strcmp(list[i].name, names[n].name) == 0) {
                long *target = (long *)(void *)((char *)out + names[n].target);
                *target = (*target == NOT_KNOWN ? 0 : *target) + statistic_value(&list[i]);
            }
    /* Intel's compiler tells no occupancy: every thread has the same registers. What falls there is
     * the width of a thread. */
    if (out->occupancy == NOT_KNOWN)
        out->occupancy = (long)*subgroup;
}

/* "navi31 attention_f16 64:128:32 sg64" */
static void pipeline_key(const char *device, const gpu_pipeline *p, uint32_t subgroup, char *key)
{
    int n = snprintf(key, KEY_BYTES, "%s %s ", device, p->name);
    for (uint32_t i = 0; i < p->desc.spec_count && n < KEY_BYTES; i++)
        n +=
            snprintf(key + n, (size_t)(KEY_BYTES - n), "%s%" PRIu32, i ? ":" : "", p->desc.spec[i]);
    if (n < KEY_BYTES)
        n += snprintf(key + n, (size_t)(KEY_BYTES - n), "%s sg%" PRIu32,
                      p->desc.spec_count ? "" : "-", subgroup);
    if (n >= KEY_BYTES)
        stop("a key is too long", key);
}

/* ---- models without weights ---- */

typedef struct preset {
    const char *name;
    uint32_t hidden, heads, kv_heads, head_dim, rotary, experts, width, vocab;
    bool few;
} preset;

/* Compilers that run under qemu-user take a second a pipeline. */
#if defined(__aarch64__)
#define FEW 1
#else
#define FEW 0
#endif

static const preset presets[] = {
    {"tiny", 256, 8, 2, 64, 32, 8, 512, 1024, true},
    {"mid", 2048, 16, 2, 128, 64, 16, 1792, 32768, false},
    {"full8", 6144, 64, 8, 128, 64, 32, 9216, 200064, false},
};

static gpu_buffer imagined(uint64_t bytes)
{
    return (gpu_buffer){.bytes = bytes, .name = "imagined"};
}

/* In windows as gpu_tensor_create cuts them, but for the rows of experts larger than a window. */
static gpu_tensor imagined_tensor(const ful_device *d, ful_type type, uint32_t experts,
                                  uint32_t rows, uint32_t cols)
{
    gpu_tensor t = {.type = type, .experts = experts, .rows = rows, .cols = cols};
    t.row_bytes = type_device_row_bytes(type, cols);
    uint64_t window = device_window_bytes(d) - 256;
    uint64_t expert_bytes = rows * t.row_bytes;
    uint32_t a_window = expert_bytes <= window ? (uint32_t)(window / expert_bytes) : 1;
    uint32_t window_rows = rows;
    while (window_rows * t.row_bytes > window)
        window_rows = (window_rows / 2 + 63) / 64 * 64;
    uint32_t parts = (rows + window_rows - 1) / window_rows;
    t.windows = calloc((size_t)experts * parts, sizeof *t.windows);
    if (!t.windows)
        stop("out of memory", "windows");
    for (uint32_t e = 0; e < experts; e += a_window)
        for (uint32_t row0 = 0; row0 < rows; row0 += window_rows) {
            gpu_window *w = &t.windows[t.window_count++];
            w->expert0 = e;
            w->expert_count = experts - e < a_window ? experts - e : a_window;
            w->row0 = row0;
            w->row_count = rows - row0 < window_rows ? rows - row0 : window_rows;
            w->buffer = imagined((uint64_t)w->expert_count * w->row_count * t.row_bytes);
        }
    return t;
}

static ful_result collect(ful_device *d, const preset *p, ful_type type)
{
    enum { LAYERS = 2, KV_TOKENS = 4096 };
    ful_model *m = calloc(1, sizeof *m);
    model_layer *layers = calloc(LAYERS, sizeof *layers);
    if (!m || !layers)
        stop("out of memory", p->name);
    uint32_t inner = p->heads * p->head_dim;
    m->device = d;
    m->layers = layers;
    m->config = (model_config){
        .vocab_size = p->vocab,
        .hidden_size = p->hidden,
        .intermediate_size = p->width,
        .block_count = LAYERS,
        .head_count = p->heads,
        .kv_head_count = p->kv_heads,
        .head_dim = p->head_dim,
        .rotary_dim = p->rotary,
        .expert_count = p->experts,
        .top_k = 2,
        .context_length = 1u << 20,
        .rope_theta = 10000000.0,
        .norm_eps = 1e-5,
        .lightning_norm_eps = 1e-6,
        .alpha_lightning = 1.5,
        .beta_lightning = 1.0,
        .alpha_softmax = 1.5,
        .beta_softmax = 1.0,
        .alpha_mlp = 1.5,
        .beta_mlp = 1.0,
        .layers = {LAYER_LIGHTNING, LAYER_SOFTMAX},
    };
    m->plan.precision = op_half_usable(d) ? FUL_PRECISION_F16 : FUL_PRECISION_F32;
    m->plan.max_tokens = KV_TOKENS;
    m->embedding = imagined_tensor(d, type, 1, p->vocab, p->hidden);
    m->head = imagined_tensor(d, type, 1, p->vocab, p->hidden);
    m->final_norm = imagined(p->hidden * 4u);
    for (uint32_t i = 0; i < LAYERS; i++) {
        model_layer *l = &layers[i];
        bool lightning = m->config.layers[i] == LAYER_LIGHTNING;
        l->kind = lightning ? LAYER_LIGHTNING : LAYER_SOFTMAX;
        l->input_norm = l->post_norm = imagined(p->hidden * 4u);
        l->lightning_norm = imagined(inner * 4u);
        l->decay = imagined(op_lightning_decay_bytes(d, p->heads, p->head_dim));
        l->qkv = imagined_tensor(d, type, 1,
                                 lightning ? 4 * inner : (p->heads + 2 * p->kv_heads) * p->head_dim,
                                 p->hidden);
        l->out = imagined_tensor(d, type, 1, p->hidden, inner);
        l->router = imagined_tensor(d, FUL_TYPE_F32, 1, p->experts, p->hidden);
        l->w13 = imagined_tensor(d, type, p->experts, 2 * p->width, p->hidden);
        l->w2 = imagined_tensor(d, type, p->experts, p->hidden, p->width);
    }
    schedule_shape shape = {d, &m->config, model_half(m), type, KV_TOKENS};
    TRY(schedule_max_rows(&shape, 2048, &m->plan.chunk_tokens));
    /* The model stays: what was noted down may point into it until the program ends. */
    return schedule_warm(m, KV_TOKENS, NULL, NULL);
}

/* At every subgroup size there is: as the compiler likes, and required. */
static void collect_plain(ful_device *d)
{
    const ful_caps *caps = device_caps(d);
    gpu_pipeline_desc desc = {
        .module = "plain_gemm", .buffer_count = 3, .push_bytes = 12, .spec_count = 2};
    for (uint32_t size = 0; size <= 64; size = size ? 2 * size : 8) {
        if (size && (!(caps->features & FUL_FEATURE_SUBGROUP_SIZE) || size < caps->subgroup_min ||
                     size > caps->subgroup_max))
            continue;
        gpu_pipeline *p = NULL;
        desc.spec[0] = 256;
        desc.spec[1] = size; /* only tells the pipelines apart */
        gpu_pipelines_begin(d);
        check(gpu_pipeline_from_words(d, &desc, spirv_plain_gemm, sizeof spirv_plain_gemm, "", &p),
              "plain_gemm");
        p->subgroup_size = size;
        check(gpu_pipelines_end(d, NULL, NULL), "plain_gemm");
    }
}

/* ---- comparing ---- */

static const char header[] =
    "# What the vendors' compilers make of every pipeline that sessions would use, one line each:\n"
    "#\n"
    "#   device module constants subgroup | registers spills scratch shared occupancy instructions "
    "code\n"
    "#\n"
    "#   registers  AMD: VGPRs; NVIDIA and Apple: GPRs; Adreno: full registers; Intel: most "
    "registers "
    "alive\n#              at once; Mali: work registers, 64 at most; PowerVR: temporaries\n"
    "#   spills     stores and loads of registers to memory; PowerVR: registers\n"
    "#   occupancy  AMD: subgroups of 32 lanes per SIMD; NVIDIA: warps per SM; Intel: lanes per "
    "thread;\n#              Adreno: waves per core; Apple: threads; Mali: 2 for all threads, 1 "
    "for "
    "half;\n#              PowerVR: lanes of a subgroup\n"
    "#   -          the compiler does not tell\n"
    "#\n"
    "# The tests labelled vendors fail where a pipeline spills, where occupancy falls, where "
    "registers"
    "\n# grow by more than an eighth (and more than 4) or instructions by more than a quarter (and "
    "more"
    "\n# than 64), where a matrix, lightning or attention kernel has less than half the occupancy "
    "of\n"
    "# plain_gemm at the same subgroup size, and where a line is missing or out of use. A line "
    "that ends"
    "\n# in 'known' may have the occupancy it has, but no less. With another version of a driver "
    "than the\n"
    "# one named here only spills and plain_gemm's measure count.\n"
    "#\n"
    "# A change of a line needs a line in CHANGELOG.md. Rewritten by: tests/vendors/update BUILD\n";

static void print_value(FILE *f, long v)
{
    if (v == NOT_KNOWN)
        fputs(" -", f);
    else
        fprintf(f, " %ld", v);
}

static void print_row(FILE *f, const row *r)
{
    fprintf(f, "%s |", r->key);
    const long v[] = {r->registers, r->spills,       r->scratch, r->shared,
                      r->occupancy, r->instructions, r->code};
    for (size_t i = 0; i < sizeof v / sizeof *v; i++)
        print_value(f, v[i]);
    fputs(r->known ? " known\n" : "\n", f);
}

static long scan_value(char **p)
{
    *p += strspn(*p, " ");
    if (**p == '-') {
        ++*p;
        return NOT_KNOWN;
    }
    return strtol(*p, p, 10);
}

static bool starts_with_word(const char *line, const char *word)
{
    size_t n = strlen(word);
    return strncmp(line, word, n) == 0 && line[n] == ' ';
}

/* This device's lines of the table go to *t and its driver to driver[]; all others to `rest`.
 * Returns where in those the device's lines were. */
static long table_load(const char *path, const char *device, table *t, char *driver, size_t bytes,
                       FILE *rest)
{
    driver[0] = '\0';
    long at = LONG_MAX;
    FILE *f = fopen(path, "r");
    if (!f)
        return at;
    char line[ROW_BYTES];
    while (fgets(line, sizeof line, f)) {
        char *bar = strstr(line, " |");
        if (line[0] == '#' || line[0] == '\n')
            continue;
        if (strncmp(line, "driver ", 7) == 0 && starts_with_word(line + 7, device)) {
            snprintf(driver, bytes, "%s", line + 7 + strlen(device) + 1);
            driver[strcspn(driver, "\n")] = '\0';
            at = ftell(rest);
        } else if (starts_with_word(line, device) && bar) {
            row *r = table_add(t);
            *bar = '\0';
            if (strlen(line) >= sizeof r->key)
                stop("a key is too long", line);
            memcpy(r->key, line, strlen(line) + 1);
            char *p = bar + 2;
            long *v[] = {&r->registers, &r->spills,       &r->scratch, &r->shared,
                         &r->occupancy, &r->instructions, &r->code};
            for (size_t i = 0; i < sizeof v / sizeof *v; i++)
                *v[i] = scan_value(&p);
            r->known = strstr(p, " known") != NULL;
        } else {
            fputs(line, rest);
        }
    }
    fclose(f);
    return at;
}

static int failures;

static void failed(const row *r, const char *what, long wanted, long is)
{
    printf("%s: %s: %ld against %ld\n", r->key, what, is, wanted);
    failures++;
}

static bool grew(long was, long is, long part, long least)
{
    return was != NOT_KNOWN && is != NOT_KNOWN && is - was > least && (is - was) * part > was;
}

/* A kernel that should live from doing much at once. */
static bool is_hot(const char *module)
{
    static const char *const hot[] = {"matmul", "moe_matmul", "moe_coopmat", "lightning_",
                                      "attention"};
    for (size_t i = 0; i < sizeof hot / sizeof *hot; i++)
        if (strncmp(module, hot[i], strlen(hot[i])) == 0)
            return true;
    return false;
}

/* plain_gemm at the row's subgroup size. RADV counts the lanes of subgroups in 32s. */
static const row *plain_for(const table *t, const row *r)
{
    size_t sg = strlen(strrchr(r->key, ' '));
    for (size_t i = 0; i < t->count; i++) {
        const row *p = &t->rows[i];
        size_t n = strlen(p->key);
        if (strstr(p->key, " plain_gemm ") && n > sg &&
            strcmp(p->key + n - sg, strrchr(r->key, ' ')) == 0)
            return p;
    }
    return NULL;
}

/* What holds without a table; false: the row has a fault that may be known. Spills never may. */
static bool check_alone(const table *t, const row *r, bool known)
{
    const char *module = strchr(r->key, ' ') + 1;
    if (r->spills > 0 && strncmp(module, "plain_gemm ", 11) != 0)
        failed(r, "spills", 0, r->spills);
    int before = failures;
    const row *plain = plain_for(t, r);
    if (is_hot(module) && plain && r->occupancy * 2 < plain->occupancy)
        failed(r, "has less than half the occupancy of plain_gemm", plain->occupancy, r->occupancy);
    bool good = failures == before;
    if (known && !good) {
        puts("    (known)");
        failures = before;
    }
    return good;
}

static void check_against(const row *r, const row *was)
{
    if (r->spills > was->spills && was->spills > 0)
        failed(r, "spills more", was->spills, r->spills);
    if (r->scratch > was->scratch)
        failed(r, "uses more scratch memory", was->scratch, r->scratch);
    if (r->occupancy < was->occupancy)
        failed(r, "lost occupancy", was->occupancy, r->occupancy);
    if (grew(was->registers, r->registers, 8, 4))
        failed(r, "needs more registers", was->registers, r->registers);
    if (grew(was->instructions, r->instructions, 4, 64))
        failed(r, "has more instructions", was->instructions, r->instructions);
}

static bool module_in_build(const char *key)
{
    const char *module = strchr(key, ' ') + 1;
    size_t bytes = strcspn(module, " ");
    for (const shader_module *m = shader_modules; m->name; m++)
        if (strlen(m->name) == bytes && memcmp(m->name, module, bytes) == 0)
            return m->code != NULL;
    return true; /* plain_gemm; and a removed module's line is out of use */
}

static void compare(const table *now, const table *was, bool same_driver)
{
    for (size_t i = 0; i < now->count; i++) {
        const row *r = &now->rows[i];
        row *old = table_find(was, r->key);
        bool known = old && old->known;
        if (old)
            old->seen = true;
        if (check_alone(now, r, known) && known && same_driver) {
            printf("%s: has no fault, but is marked 'known'\n", r->key);
            failures++;
        }
        if (!same_driver)
            continue;
        if (old) {
            check_against(r, old);
        } else {
            printf("%s: not in the table\n", r->key);
            failures++;
        }
    }
    for (size_t i = 0; i < was->count && same_driver; i++) {
        const row *r = &was->rows[i];
        if (r->seen)
            continue;
        if (module_in_build(r->key)) {
            printf("%s: in the table, but out of use\n", r->key);
            failures++;
        } else {
            printf("skipped %s: not in this build\n", r->key);
        }
    }
}

static void section_write(FILE *f, const char *device, const char *driver, const table *t)
{
    fprintf(f, "\ndriver %s %s\n", device, driver);
    for (size_t i = 0; i < t->count; i++)
        print_row(f, &t->rows[i]);
}

/* This device's lines stay where they were: `at` of the others. */
static void table_write(const char *path, FILE *rest, long at, const char *device,
                        const char *driver, const table *t)
{
    FILE *f = fopen(path, "w");
    if (!f)
        stop("can't write", path);
    fputs(header, f);
    char line[ROW_BYTES];
    rewind(rest);
    long here = 0;
    while (fgets(line, sizeof line, rest)) {
        if (here == at)
            section_write(f, device, driver, t);
        if (strncmp(line, "driver ", 7) == 0)
            fputc('\n', f);
        fputs(line, f);
        here = ftell(rest);
    }
    if (here <= at)
        section_write(f, device, driver, t);
    if (fclose(f) != 0)
        stop("can't write", path);
}

/* ---- */

static void log_line(void *ctx, ful_log_level level, const char *message)
{
    (void)ctx;
    (void)level;
    fprintf(stderr, "%s\n", message);
}

int main(int argc, char **argv)
{
    bool accept = argc == 4 && strcmp(argv[3], "--accept") == 0;
    bool update = accept || (argc == 4 && strcmp(argv[3], "--update") == 0);
    if (argc < 3 || argc > 4 || (argc == 4 && !update)) {
        fputs("Usage: vendors_stats DEVICE TABLE [--update | --accept]\n", stderr);
        return 2;
    }
    const char *name = argv[1], *path = argv[2];
    ful_instance *instance = NULL;
    ful_device *d = NULL;
    check(ful_instance_create(&instance,
                              ful_instance_params(.log = log_line, .log_level = FUL_LOG_WARNING)),
          "instance");
    real_create_device = vkCreateDevice;
    vkCreateDevice = create_device;
    check(ful_device_open(&d, instance,
                          ful_device_params(.cache_dir = "", .selftest = FUL_SELFTEST_NEVER)),
          "device");
    real_create_pipelines = d->fn.vkCreateComputePipelines;
    d->fn.vkCreateComputePipelines = create_pipelines;
    const ful_device_info *info = ful_device_get_info(d);
    printf("%s: %s (%s)\n", name, info->name, info->driver);
    if (device_is_cpu(d))
        stop(name, "this is a software driver");

    collect_plain(d);
    /* Of blocks one type each of 8 and 4 bits and with a second plane: the rest is between. */
    static const ful_type types[] = {FUL_TYPE_F32,  FUL_TYPE_F16,  FUL_TYPE_BF16,
                                     FUL_TYPE_Q8_0, FUL_TYPE_Q4_K, FUL_TYPE_Q6_K};
    for (size_t p = 0; p < sizeof presets / sizeof *presets; p++)
        for (size_t t = 0; t < sizeof types / sizeof *types; t++)
            if (FEW ? presets[p].few && types[t] == FUL_TYPE_BF16
                    : !type_is_blocks(types[t]) || presets[p].hidden > 4096)
                check(collect(d, &presets[p], types[t]), presets[p].name);

    table now = {0}, was = {0};
    for (size_t i = 0; i < d->pipeline_count; i++) {
        row *r = table_add(&now);
        uint32_t subgroup = 0;
        pipeline_read(d, d->pipelines[i]->vk, r, &subgroup);
        pipeline_key(name, d->pipelines[i], subgroup, r->key);
    }
    qsort(now.rows, now.count, sizeof *now.rows, row_compare);

    char driver[256];
    FILE *rest = tmpfile();
    if (!rest)
        stop("can't make", "a temporary file");
    long at = table_load(path, name, &was, driver, sizeof driver, rest);
    if (update) {
        for (size_t i = 0; i < now.count; i++) {
            row *old = table_find(&was, now.rows[i].key);
            bool known = accept || (old && old->known);
            now.rows[i].known = !check_alone(&now, &now.rows[i], known) && known;
        }
        table_write(path, rest, at, name, info->driver, &now);
    } else {
        bool same_driver = strcmp(driver, info->driver) == 0;
        if (!same_driver)
            printf("the table is of driver \"%s\": only spills and half of plain_gemm's occupancy "
                   "are checked\n",
                   driver);
        compare(&now, &was, same_driver);
    }
    printf("%zu pipelines, %d failures%s\n", now.count, failures,
           failures && !update ? "; tests/vendors/update rewrites the table" : "");
    fclose(rest);
    free(now.rows);
    free(was.rows);
    ful_device_close(&d);
    ful_instance_destroy(&instance);
    return failures ? 1 : 0;
}
