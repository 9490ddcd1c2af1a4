/* Which shader modules can be trusted on this device: what self-tests found, from one opening of
 * the device to the next, and faults that tests put in. What is tested is the ops' business.
 *
 * The stored entry's payload, 32-bit little-endian words: version of this form, version of the
 * library, then for each module with a verdict: FNV-1a of its name (two words), gpu_trust, number
 * of the process that is testing it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/process.h"
#include "cpu/cpu.h"
#include "gpu/gpu_internal.h"
#include "gpu/shaders.h"

enum { TRUST_VERSION = 1, HEAD_BYTES = 8, RECORD_BYTES = 16 };

static const char *const type_suffixes[] = {"_f32", "_f16", "_bf16", "_quant"};
enum { SUFFIXES = sizeof(type_suffixes) / sizeof(type_suffixes[0]) };

/* ---- names ---- */

static uint32_t module_index(const char *name)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        if (strcmp(shader_modules[i].name, name) == 0)
            return i;
    return shader_module_count;
}

/* Is `module` `family` itself, or that with a type behind it? */
static bool in_family(const char *module, const char *family)
{
    size_t n = strlen(family);
    if (strncmp(module, family, n) != 0)
        return false;
    if (module[n] == 0)
        return true;
    for (int i = 0; i < SUFFIXES; i++)
        if (strcmp(module + n, type_suffixes[i]) == 0)
            return true;
    return false;
}

static bool in_build(uint32_t i)
{
    return i < shader_module_count && shader_modules[i].code != NULL;
}

/* ---- asking and noting ---- */

bool gpu_trust_quarantined(gpu_trust trust)
{
    return trust >= GPU_TRUST_WRONG;
}

const char *gpu_trust_text(gpu_trust trust)
{
    switch (trust) {
    case GPU_TRUST_WRONG:
        return "gave a wrong result in the self-test";
    case GPU_TRUST_LOST:
        return "did not return from the self-test";
    case GPU_TRUST_CRASHED:
        return "was being tested when an earlier process ended";
    case GPU_TRUST_REFUSED:
        return "was not compiled by the driver";
    case GPU_TRUST_HIDDEN:
        return "is left out for now";
    case GPU_TRUST_UNKNOWN:
    case GPU_TRUST_PASSED:
    case GPU_TRUST_NO_TEST:
    case GPU_TRUST_TESTING:
        break;
    }
    return "is in use";
}

static gpu_trust trust_at(const ful_device *d, uint32_t i)
{
    if (i >= shader_module_count)
        return GPU_TRUST_UNKNOWN;
    return atomic_load(&d->hidden[i]) ? GPU_TRUST_HIDDEN : (gpu_trust)atomic_load(&d->trust[i]);
}

gpu_trust gpu_module_trust(const ful_device *device, const char *module)
{
    return trust_at(device, module_index(module));
}

void gpu_module_set_trust(ful_device *device, const char *module, gpu_trust trust)
{
    uint32_t i = module_index(module);
    if (i == shader_module_count)
        return;
    gpu_trust before = (gpu_trust)atomic_exchange(&device->trust[i], (unsigned char)trust);
    if (gpu_trust_quarantined(before) != gpu_trust_quarantined(trust))
        atomic_fetch_add(&device->trust_changes, 1);
}

void gpu_family_set_trust(ful_device *device, const char *family, gpu_trust trust)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        if (in_family(shader_modules[i].name, family))
            gpu_module_set_trust(device, shader_modules[i].name, trust);
}

void gpu_relatives_set_trust(ful_device *device, const char *module, gpu_trust trust)
{
    char family[64];
    int n = snprintf(family, sizeof(family), "%s", module);
    if (n < 0 || (size_t)n >= sizeof(family))
        return;
    size_t all = (size_t)n;
    for (int i = 0; i < SUFFIXES; i++) {
        size_t bytes = strlen(type_suffixes[i]);
        if (all > bytes && strcmp(module + all - bytes, type_suffixes[i]) == 0)
            family[all - bytes] = 0;
    }
    gpu_module_set_trust(device, module, trust);
    gpu_family_set_trust(device, family, trust);
}

void gpu_family_hide(ful_device *device, const char *family)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        if (in_family(shader_modules[i].name, family))
            atomic_store(&device->hidden[i], 1);
}

void gpu_families_show(ful_device *device)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        atomic_store(&device->hidden[i], 0);
}

void gpu_trust_forget(ful_device *device)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        gpu_module_set_trust(device, shader_modules[i].name, GPU_TRUST_UNKNOWN);
}

static bool usable_at(const ful_device *d, uint32_t i)
{
    return in_build(i) && !gpu_trust_quarantined(trust_at(d, i)) &&
           caps_meet_needs(&d->info.caps, shader_modules[i].needs, NULL, NULL) &&
           (!d->info.built_in || cpu_has_kernel(d->vk, shader_modules[i].name));
}

bool gpu_module_usable(const ful_device *device, const char *module)
{
    return usable_at(device, module_index(module));
}

bool gpu_family_usable(const ful_device *device, const char *family)
{
    for (uint32_t i = 0; i < shader_module_count; i++)
        if (in_family(shader_modules[i].name, family) && usable_at(device, i))
            return true;
    return false;
}

uint32_t gpu_trust_changes(const ful_device *device)
{
    return atomic_load(&device->trust_changes);
}

bool gpu_pipeline_next_unknown(ful_device *device, uint32_t *at, const char **module)
{
    bool found = false;
    mutex_lock(device->pipeline_lock);
    while (!found && *at < device->pipeline_count) {
        const gpu_pipeline *p = device->pipelines[(*at)++];
        uint32_t i = module_index(p->name);
        found = in_build(i) && p->code == shader_modules[i].code &&
                atomic_load(&device->trust[i]) == GPU_TRUST_UNKNOWN;
        if (found)
            *module = shader_modules[i].name;
    }
    mutex_unlock(device->pipeline_lock);
    return found;
}

/* ---- faults put in by tests ---- */

/* The next word of a list separated by commas; false at the end. */
static bool fault_next(const char **text, char *word, size_t bytes)
{
    *text += strspn(*text, ", ");
    size_t n = strcspn(*text, ", ");
    if (n == 0)
        return false;
    snprintf(word, bytes, "%.*s", (int)n, *text);
    *text += n;
    return true;
}

/* "selftest:NAME" or "selftest:NAME:KIND" into its parts; false if it is something else. */
static bool fault_parse(char *word, const char **name, gpu_fault *kind)
{
    static const char prefix[] = "selftest:";
    if (strncmp(word, prefix, sizeof(prefix) - 1) != 0)
        return false;
    *name = word + sizeof(prefix) - 1;
    char *colon = strchr(word + sizeof(prefix) - 1, ':');
    *kind = GPU_FAULT_WRONG;
    if (colon != NULL) {
        *colon = 0;
        if (strcmp(colon + 1, "once") == 0)
            *kind = GPU_FAULT_ONCE;
        else if (strcmp(colon + 1, "third") == 0)
            *kind = GPU_FAULT_THIRD;
        else if (strcmp(colon + 1, "lost") == 0)
            *kind = GPU_FAULT_LOST;
        else if (strcmp(colon + 1, "wrong") != 0)
            return false;
    }
    return (*name)[0] != 0;
}

/* "lost:N" with N from 1; false if it is something else. */
static bool fault_parse_lost(const char *word, uint64_t *step)
{
    static const char prefix[] = "lost:";
    const char *digits = word + sizeof(prefix) - 1;
    if (strncmp(word, prefix, sizeof(prefix) - 1) != 0 || digits[0] == 0 ||
        digits[strspn(digits, "0123456789")] != 0 || strlen(digits) > 18)
        return false;
    *step = strtoull(digits, NULL, 10);
    return *step > 0;
}

ful_result gpu_step_fault(ful_device *device)
{
    const char *text = device->fault;
    char word[96];
    if (text == NULL)
        return FUL_OK;
    uint64_t lost, step = atomic_fetch_add(&device->instance->fault_steps, 1) + 1;
    while (fault_next(&text, word, sizeof(word))) {
        if (!fault_parse_lost(word, &lost) || lost != step)
            continue;
        /* A device that is really lost stops by itself. */
        mutex_lock(device->queue_lock);
        (void)device->fn.vkDeviceWaitIdle(device->vk);
        mutex_unlock(device->queue_lock);
        return vk_fail(device, VK_ERROR_DEVICE_LOST, "a step that FULGUR_FAULT names");
    }
    return FUL_OK;
}

gpu_fault gpu_module_fault(const ful_device *device, const char *module)
{
    const char *text = device->fault, *name;
    char word[96];
    gpu_fault kind;
    while (text != NULL && fault_next(&text, word, sizeof(word))) {
        if (!fault_parse(word, &name, &kind))
            continue;
        size_t n = strlen(name);
        if (name[n - 1] == '*' ? strncmp(module, name, n - 1) == 0 : in_family(module, name))
            return kind;
    }
    return GPU_FAULT_NONE;
}

static ful_result fault_open(ful_device *d)
{
    const char *text = getenv("FULGUR_FAULT"), *name;
    char word[96];
    gpu_fault kind;
    uint64_t step;
    if (text == NULL || text[0] == 0)
        return FUL_OK;
    d->fault = mem_strdup(&d->alloc, text);
    if (d->fault == NULL)
        return mem_fail(strlen(text), "FULGUR_FAULT");
    while (fault_next(&text, word, sizeof(word))) {
        char shown[sizeof(word)];
        memcpy(shown, word, sizeof(shown));
        if (!fault_parse(word, &name, &kind) && !fault_parse_lost(word, &step))
            return fail(FUL_ERR_ARGUMENT,
                        "FULGUR_FAULT: \"%s\" is not lost:STEP, selftest:MODULE or "
                        "selftest:MODULE:wrong, :once, :third or :lost",
                        shown);
    }
    /* Faults are those of drivers, for which the built-in device is the last resort. */
    if (d->info.built_in) {
        mem_free(&d->alloc, d->fault);
        d->fault = NULL;
    }
    return FUL_OK;
}

/* ---- from one opening to the next ---- */

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t name_hash(uint32_t i)
{
    return hash_bytes(HASH_SEED, shader_modules[i].name, strlen(shader_modules[i].name));
}

/* A verdict as found in a file. */
static gpu_trust trust_read(const uint8_t *record)
{
    uint32_t trust = get32(record + 8);
    if (trust == GPU_TRUST_TESTING)
        return process_other_runs(get32(record + 12)) ? GPU_TRUST_UNKNOWN : GPU_TRUST_CRASHED;
    return trust == GPU_TRUST_PASSED || trust == GPU_TRUST_NO_TEST || trust == GPU_TRUST_WRONG ||
                   trust == GPU_TRUST_LOST || trust == GPU_TRUST_CRASHED
               ? (gpu_trust)trust
               : GPU_TRUST_UNKNOWN;
}

static void payload_read(ful_device *d, const uint8_t *payload, size_t bytes)
{
    if (bytes < HEAD_BYTES || get32(payload) != TRUST_VERSION ||
        get32(payload + 4) != ful_version())
        return;
    /* The note for many kernels, with which tests begin: the machine stopped before the one of
     * the kernel that did it was on the disk. */
    uint32_t crashed = 0;
    for (size_t at = HEAD_BYTES; at + RECORD_BYTES <= bytes; at += RECORD_BYTES)
        crashed += get32(payload + at + 8) == GPU_TRUST_TESTING &&
                   trust_read(payload + at) == GPU_TRUST_CRASHED;
    d->notes_to_disk = crashed > 1;
    for (size_t at = HEAD_BYTES; at + RECORD_BYTES <= bytes; at += RECORD_BYTES) {
        uint64_t hash = get32(payload + at) | (uint64_t)get32(payload + at + 4) << 32;
        for (uint32_t i = 0; i < shader_module_count; i++)
            if (name_hash(i) == hash &&
                (crashed <= 1 || get32(payload + at + 8) != GPU_TRUST_TESTING))
                gpu_module_set_trust(d, shader_modules[i].name, trust_read(payload + at));
    }
}

static void quarantine_tell(const ful_device *d)
{
    for (uint32_t i = 0; i < shader_module_count; i++) {
        gpu_trust trust = (gpu_trust)atomic_load(&d->trust[i]);
        if (gpu_trust_quarantined(trust))
            log_write(&d->instance->log, FUL_LOG_WARNING,
                      "device %s: shader %s is not used: it %s; `fulgur selftest` tests it again",
                      d->info.name, shader_modules[i].name, gpu_trust_text(trust));
    }
}

ful_result trust_open(ful_device *d)
{
    size_t bytes;
    bool damaged;
    d->trust = mem_zalloc(&d->alloc, shader_module_count, sizeof(*d->trust));
    d->hidden = mem_zalloc(&d->alloc, shader_module_count, sizeof(*d->hidden));
    if (d->trust == NULL || d->hidden == NULL)
        return mem_fail(shader_module_count, "verdicts on shaders");
    TRY(fault_open(d));
    uint8_t *payload = cache_verdicts_load(d, &bytes, &damaged);
    d->notes_to_disk = damaged; /* a note that the machine's stop cut, perhaps */
    if (payload != NULL)
        payload_read(d, payload, bytes);
    mem_free(&d->alloc, payload);
    quarantine_tell(d);
    return FUL_OK;
}

void trust_close(ful_device *d)
{
    mem_free(&d->alloc, d->trust);
    mem_free(&d->alloc, d->hidden);
    mem_free(&d->alloc, d->fault);
}

ful_result device_trust_store(ful_device *d, bool to_disk)
{
    size_t bytes = HEAD_BYTES;
    uint8_t *payload =
        mem_alloc(&d->alloc, HEAD_BYTES + (size_t)RECORD_BYTES * shader_module_count);
    if (payload == NULL)
        return mem_fail(RECORD_BYTES * shader_module_count, "verdicts on shaders");
    put32(payload, TRUST_VERSION);
    put32(payload + 4, ful_version());
    for (uint32_t i = 0; i < shader_module_count; i++) {
        gpu_trust trust = (gpu_trust)atomic_load(&d->trust[i]);
        /* A compiler may have failed for want of memory. */
        if (trust == GPU_TRUST_UNKNOWN || trust == GPU_TRUST_REFUSED)
            continue;
        uint64_t hash = name_hash(i);
        put32(payload + bytes, (uint32_t)hash);
        put32(payload + bytes + 4, (uint32_t)(hash >> 32));
        put32(payload + bytes + 8, (uint32_t)trust);
        put32(payload + bytes + 12, trust == GPU_TRUST_TESTING ? process_id() : 0);
        bytes += RECORD_BYTES;
    }
    ful_result r = cache_verdicts_store(d, payload, bytes, to_disk);
    mem_free(&d->alloc, payload);
    return r;
}
