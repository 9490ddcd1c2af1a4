/* What is kept on disk or with the application from one opening of a device to the next: the
 * pipeline cache, the choices that ops measured, and the verdicts of self-tests.
 *
 * An entry is our header, all little-endian, then the payload: Vulkan's data, or 32-bit words.
 *   0 magic                8 u32 version        12 u32 vendor      16 u32 device
 *  20 u32 driver version  24 device UUID        40 driver UUID     56 pipeline cache UUID
 *  72 u64 hash of all shader modules            80 u64 payload bytes
 *  88 u64 FNV-1a of the payload                 96 u64 FNV-1a of bytes 0..95
 * 104 u64 zero
 * Whatever does not fit is ignored: a cache only saves time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "gpu/gpu_internal.h"
#include "gpu/shaders.h"

enum { CACHE_VERSION = 1, CACHE_KEY_BYTES = 96 };
#define CACHE_MOST_BYTES (256u << 20)

/* The kinds of entries. */
typedef struct entry_kind {
    const char *magic; /* 8 characters */
    const char *what;  /* for messages */
    const char *key;   /* begins the key */
    size_t least_bytes, most_bytes;
} entry_kind;
static const entry_kind pipelines_kind = {"FULCACHE", "pipeline cache", "pipelines",
                                          CACHE_HEADER_BYTES + 32, CACHE_MOST_BYTES};
static const entry_kind choices_kind = {"FULTUNED", "tuning", "tuning", CACHE_HEADER_BYTES,
                                        CACHE_HEADER_BYTES + 4 * DEVICE_CHOICES};
static const entry_kind verdicts_kind = {"FULTRUST", "self-test verdicts", "selftest",
                                         CACHE_HEADER_BYTES, CACHE_HEADER_BYTES + (64u << 10)};

uint64_t hash_bytes(uint64_t seed, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    uint64_t h = seed;
    for (size_t i = 0; i < bytes; i++)
        h = (h ^ p[i]) * 1099511628211u;
    return h;
}

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static void put64(uint8_t *p, uint64_t v)
{
    for (int i = 0; i < 8; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] | (uint32_t)p[1] << 8 | (uint32_t)p[2] << 16 | (uint32_t)p[3] << 24;
}

static uint64_t get64(const uint8_t *p)
{
    return get32(p) | (uint64_t)get32(p + 4) << 32;
}

/* Megabytes, so only once: every entry and every note of a self-test has it. */
static uint64_t modules_hash(void)
{
    static _Atomic uint64_t known; /* 0: not yet */
    uint64_t h = atomic_load(&known);
    if (h != 0)
        return h;
    h = HASH_SEED;
    for (const shader_module *m = shader_modules; m->name; m++) {
        h = hash_bytes(h, m->name, strlen(m->name) + 1);
        if (m->code)
            h = hash_bytes(h, m->code, m->code_bytes);
    }
    atomic_store(&known, h);
    return h;
}

static void header_fill(const ful_device *d, const entry_kind *kind, const uint8_t *payload,
                        size_t bytes, uint8_t header[CACHE_HEADER_BYTES])
{
    const ful_device_info *info = &d->info;
    memset(header, 0, CACHE_HEADER_BYTES);
    memcpy(header, kind->magic, 8);
    put32(header + 8, CACHE_VERSION);
    put32(header + 12, info->vendor_id);
    put32(header + 16, info->device_id);
    put32(header + 20, info->driver_version);
    memcpy(header + 24, info->uuid, 16);
    memcpy(header + 40, d->facts.driver_uuid, 16);
    memcpy(header + 56, d->facts.cache_uuid, 16);
    put64(header + 72, modules_hash());
    put64(header + 80, bytes);
    put64(header + 88, hash_bytes(HASH_SEED, payload, bytes));
    put64(header + 96, hash_bytes(HASH_SEED, header, 96));
}

/* NULL if the entry is sound and this device's; else why not. */
static const char *entry_fault(const ful_device *d, const entry_kind *kind, const uint8_t *entry,
                               size_t bytes)
{
    uint8_t expected[CACHE_HEADER_BYTES];
    if (bytes < kind->least_bytes)
        return "it is too short";
    if (memcmp(entry, kind->magic, 8) != 0)
        return "it is something else";
    if (get32(entry + 8) != CACHE_VERSION)
        return "it has another version";
    if (get64(entry + 96) != hash_bytes(HASH_SEED, entry, 96) || get64(entry + 104) != 0)
        return "its header is damaged";
    const uint8_t *payload = entry + CACHE_HEADER_BYTES;
    size_t payload_bytes = bytes - CACHE_HEADER_BYTES;
    if (get64(entry + 80) != payload_bytes)
        return "it is cut off";
    header_fill(d, kind, payload, payload_bytes, expected);
    if (memcmp(entry + 12, expected + 12, 60) != 0)
        return "it belongs to another device or driver";
    if (memcmp(entry + 72, expected + 72, 8) != 0)
        return "it belongs to other shaders";
    if (memcmp(entry + 88, expected + 88, 8) != 0)
        return "its content is damaged";
    return NULL;
}

/* Vulkan's own header: some drivers trust it blindly. */
static const char *pipelines_fault(const ful_device *d, const uint8_t *entry, size_t bytes)
{
    const char *fault = entry_fault(d, &pipelines_kind, entry, bytes);
    if (fault)
        return fault;
    const uint8_t *payload = entry + CACHE_HEADER_BYTES;
    size_t payload_bytes = bytes - CACHE_HEADER_BYTES;
    if (get32(payload) < 32 || get32(payload) > payload_bytes || get32(payload + 4) != 1 ||
        get32(payload + 8) != d->info.vendor_id || get32(payload + 12) != d->info.device_id ||
        memcmp(payload + 16, d->facts.cache_uuid, 16) != 0)
        return "the driver's header in it does not fit";
    return NULL;
}

static void entry_key(const ful_device *d, const entry_kind *kind, char key[CACHE_KEY_BYTES])
{
    uint64_t driver = hash_bytes(HASH_SEED, d->facts.driver_uuid, 16);
    size_t used = (size_t)snprintf(key, CACHE_KEY_BYTES, "%s-", kind->key);
    driver = hash_bytes(driver, d->facts.cache_uuid, 16);
    if (kind != &pipelines_kind) {
        /* What was measured or tested under a mask is of no use without it. */
        const ful_caps *c = &d->info.caps;
        const uint32_t caps[] = {c->features, c->shared_bytes, c->workgroup_invocations,
                                 c->subgroup_min, c->subgroup_max};
        driver = hash_bytes(driver, caps, sizeof(caps));
        /* Faults put in by a test are not the driver's. */
        if (kind == &verdicts_kind && d->fault)
            driver = hash_bytes(driver, d->fault, strlen(d->fault));
    }
    for (int i = 0; i < 16; i++)
        used += (size_t)snprintf(key + used, CACHE_KEY_BYTES - used, "%02x", d->info.uuid[i]);
    snprintf(key + used, CACHE_KEY_BYTES - used, "-%016llx.bin", (unsigned long long)driver);
}

/* From mem_alloc; NULL if the environment names no place. */
static char *folder_default(const ful_alloc *a)
{
#if defined(_WIN32)
    const char *within = "fulgur";
    char *base = path_from_environment(a, "LOCALAPPDATA");
#else
    const char *within = "fulgur";
    char *base = path_from_environment(a, "XDG_CACHE_HOME");
    if (!base || base[0] != '/') {
        mem_free(a, base);
        base = path_from_environment(a, "HOME");
        within = ".cache/fulgur";
    }
#endif
    char *path = base ? path_join(a, base, within) : NULL;
    mem_free(a, base);
    return path;
}

static void folder_choose(ful_device *d, const ful_device_params *p)
{
    if (p->cache_get || (p->cache_dir && p->cache_dir[0] == 0))
        return;
    d->cache_folder =
        p->cache_dir ? mem_strdup(&d->alloc, p->cache_dir) : folder_default(&d->alloc);
}

/* From mem_alloc; NULL without a folder. */
static char *entry_path(const ful_device *d, const entry_kind *kind)
{
    char key[CACHE_KEY_BYTES];
    if (!d->cache_folder)
        return NULL;
    entry_key(d, kind, key);
    return path_join(&d->alloc, d->cache_folder, key);
}

static uint8_t *entry_ask(const ful_device *d, const entry_kind *kind, size_t *bytes)
{
    char key[CACHE_KEY_BYTES];
    entry_key(d, kind, key);
    if (!d->cache_get(d->cache_ctx, key, NULL, bytes) || *bytes == 0 || *bytes > kind->most_bytes)
        return NULL;
    size_t room = *bytes;
    uint8_t *entry = mem_alloc(&d->alloc, room);
    if (entry && (!d->cache_get(d->cache_ctx, key, entry, bytes) || *bytes > room)) {
        mem_free(&d->alloc, entry);
        return NULL;
    }
    return entry;
}

/* The stored entry, or NULL. */
static uint8_t *entry_load(const ful_device *d, const entry_kind *kind, size_t *bytes)
{
    char *entry = NULL;
    *bytes = 0;
    if (d->cache_get)
        return entry_ask(d, kind, bytes);
    char *path = entry_path(d, kind);
    if (path && file_exists(path) &&
        file_read(&d->alloc, path, kind->most_bytes, &entry, bytes) != FUL_OK) {
        log_write(&d->instance->log, FUL_LOG_WARNING, "%s ignored: %s", kind->what,
                  ful_last_error());
        entry = NULL;
    }
    mem_free(&d->alloc, path);
    return (uint8_t *)entry;
}

static void entry_ignored(const ful_device *d, const entry_kind *kind, const char *fault)
{
    char *path = entry_path(d, kind);
    log_write(&d->instance->log, FUL_LOG_WARNING, "%s %s ignored: %s", kind->what,
              path ? path : "of the application", fault);
    mem_free(&d->alloc, path);
}

/* `entry` has room for the header before its payload. */
static ful_result entry_store(const ful_device *d, const entry_kind *kind, uint8_t *entry,
                              size_t bytes, bool to_disk)
{
    header_fill(d, kind, entry + CACHE_HEADER_BYTES, bytes - CACHE_HEADER_BYTES, entry);
    if (d->cache_set) {
        char key[CACHE_KEY_BYTES];
        entry_key(d, kind, key);
        d->cache_set(d->cache_ctx, key, entry, bytes);
        return FUL_OK;
    }
    char *path = entry_path(d, kind);
    if (!path)
        return mem_fail(CACHE_KEY_BYTES, "a cache path");
    ful_result r = path_make_dirs(d->cache_folder);
    if (r == FUL_OK)
        r = to_disk ? file_write_atomic(path, entry, bytes) : file_write_quick(path, entry, bytes);
    mem_free(&d->alloc, path);
    return r;
}

static void choices_open(ful_device *d)
{
    size_t bytes;
    uint8_t *entry = entry_load(d, &choices_kind, &bytes);
    const char *fault = entry ? entry_fault(d, &choices_kind, entry, bytes) : NULL;
    if (fault)
        entry_ignored(d, &choices_kind, fault);
    else if (entry)
        for (size_t i = 0; i < (bytes - CACHE_HEADER_BYTES) / 4; i++)
            d->choices[i] = get32(entry + CACHE_HEADER_BYTES + 4 * i);
    mem_free(&d->alloc, entry);
}

uint32_t device_choice(const ful_device *device, uint32_t index)
{
    return device->choices[index];
}

void device_choice_set(ful_device *device, uint32_t index, uint32_t word)
{
    device->choices[index] = word;
}

ful_result device_choices_store(ful_device *device)
{
    uint8_t entry[CACHE_HEADER_BYTES + 4 * DEVICE_CHOICES];
    if (!device->cache_folder && !device->cache_set)
        return FUL_OK;
    for (size_t i = 0; i < DEVICE_CHOICES; i++)
        put32(entry + CACHE_HEADER_BYTES + 4 * i, device->choices[i]);
    return entry_store(device, &choices_kind, entry, sizeof(entry), true);
}

uint8_t *cache_verdicts_load(const ful_device *d, size_t *bytes, bool *damaged)
{
    uint8_t *entry = entry_load(d, &verdicts_kind, bytes);
    const char *fault = entry ? entry_fault(d, &verdicts_kind, entry, *bytes) : NULL;
    *damaged = fault != NULL;
    if (fault) {
        entry_ignored(d, &verdicts_kind, fault);
        mem_free(&d->alloc, entry);
        entry = NULL;
    }
    if (!entry)
        return NULL;
    *bytes -= CACHE_HEADER_BYTES;
    memmove(entry, entry + CACHE_HEADER_BYTES, *bytes);
    return entry;
}

ful_result cache_verdicts_store(const ful_device *d, const uint8_t *payload, size_t bytes,
                                bool to_disk)
{
    if (!d->cache_folder && !d->cache_set)
        return FUL_OK;
    uint8_t *entry = mem_alloc(&d->alloc, CACHE_HEADER_BYTES + bytes);
    if (!entry)
        return mem_fail(CACHE_HEADER_BYTES + bytes, "self-test verdicts");
    memcpy(entry + CACHE_HEADER_BYTES, payload, bytes);
    ful_result r = entry_store(d, &verdicts_kind, entry, CACHE_HEADER_BYTES + bytes, to_disk);
    mem_free(&d->alloc, entry);
    return r;
}

ful_result cache_open(ful_device *d, const ful_device_params *params)
{
    d->cache_get = params->cache_get;
    d->cache_set = params->cache_set;
    d->cache_ctx = params->cache_ctx;
    folder_choose(d, params);
    choices_open(d);
    size_t bytes;
    uint8_t *entry = entry_load(d, &pipelines_kind, &bytes);
    const char *fault = entry ? pipelines_fault(d, entry, bytes) : NULL;
    if (fault)
        entry_ignored(d, &pipelines_kind, fault);
    VkPipelineCacheCreateInfo info = {.sType = VK_STRUCTURE_TYPE_PIPELINE_CACHE_CREATE_INFO};
    if (entry && !fault) {
        info.initialDataSize = bytes - CACHE_HEADER_BYTES;
        info.pInitialData = entry + CACHE_HEADER_BYTES;
        d->cache_loaded_bytes = info.initialDataSize;
    }
    VkResult r = d->fn.vkCreatePipelineCache(d->vk, &info, NULL, &d->cache);
    if (r != VK_SUCCESS && info.initialDataSize) {
        info.initialDataSize = 0;
        d->cache_loaded_bytes = 0;
        r = d->fn.vkCreatePipelineCache(d->vk, &info, NULL, &d->cache);
    }
    mem_free(&d->alloc, entry);
    if (r != VK_SUCCESS) {
        d->cache = VK_NULL_HANDLE;
        return vk_fail(d, r, "vkCreatePipelineCache");
    }
    return FUL_OK;
}

void cache_close(ful_device *d, bool releasable)
{
    if (!d->cache)
        return;
    size_t bytes = 0;
    bool wanted = releasable && !atomic_load(&d->lost) && d->compiled > 0 &&
                  (d->cache_folder || d->cache_set);
    if (wanted && d->fn.vkGetPipelineCacheData(d->vk, d->cache, &bytes, NULL) == VK_SUCCESS &&
        bytes > d->cache_loaded_bytes && bytes <= CACHE_MOST_BYTES - CACHE_HEADER_BYTES) {
        uint8_t *entry = mem_alloc(&d->alloc, CACHE_HEADER_BYTES + bytes);
        if (entry && d->fn.vkGetPipelineCacheData(d->vk, d->cache, &bytes,
                                                  entry + CACHE_HEADER_BYTES) == VK_SUCCESS) {
            if (entry_store(d, &pipelines_kind, entry, CACHE_HEADER_BYTES + bytes, true) != FUL_OK)
                log_write(&d->instance->log, FUL_LOG_WARNING, "pipeline cache not stored: %s",
                          ful_last_error());
        }
        mem_free(&d->alloc, entry);
    }
    if (releasable)
        d->fn.vkDestroyPipelineCache(d->vk, d->cache, NULL);
    d->cache = VK_NULL_HANDLE;
}
