/* The pipeline cache on disk or with the application.
 *
 * An entry is our header, all little-endian, then Vulkan's data:
 *   0 magic "FULCACHE"     8 u32 version        12 u32 vendor      16 u32 device
 *  20 u32 driver version  24 device UUID        40 driver UUID     56 pipeline cache UUID
 *  72 u64 hash of all shader modules            80 u64 payload bytes
 *  88 u64 FNV-1a of the payload                 96 u64 FNV-1a of bytes 0..95
 * Whatever does not fit is ignored: a cache only saves time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/file.h"
#include "gpu/gpu_internal.h"
#include "gpu/shaders.h"

enum { CACHE_VERSION = 1, CACHE_KEY_BYTES = 96 };
#define CACHE_MOST_BYTES (256u << 20)

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

static uint64_t modules_hash(void)
{
    uint64_t h = HASH_SEED;
    for (const shader_module *m = shader_modules; m->name; m++) {
        h = hash_bytes(h, m->name, strlen(m->name) + 1);
        if (m->code)
            h = hash_bytes(h, m->code, m->code_bytes);
    }
    return h;
}

static void header_fill(const ful_device *d, const uint8_t *payload, size_t bytes,
                        uint8_t header[CACHE_HEADER_BYTES])
{
    const ful_device_info *info = &d->info;
    memset(header, 0, CACHE_HEADER_BYTES);
    memcpy(header, "FULCACHE", 8);
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
static const char *entry_fault(const ful_device *d, const uint8_t *entry, size_t bytes)
{
    uint8_t expected[CACHE_HEADER_BYTES];
    if (bytes < CACHE_HEADER_BYTES + 32)
        return "it is too short";
    if (memcmp(entry, "FULCACHE", 8) != 0)
        return "it is no pipeline cache";
    if (get32(entry + 8) != CACHE_VERSION)
        return "it has another version";
    if (get64(entry + 96) != hash_bytes(HASH_SEED, entry, 96))
        return "its header is damaged";
    const uint8_t *payload = entry + CACHE_HEADER_BYTES;
    size_t payload_bytes = bytes - CACHE_HEADER_BYTES;
    if (get64(entry + 80) != payload_bytes)
        return "it is cut off";
    header_fill(d, payload, payload_bytes, expected);
    if (memcmp(entry + 12, expected + 12, 60) != 0)
        return "it belongs to another device or driver";
    if (memcmp(entry + 72, expected + 72, 8) != 0)
        return "it belongs to other shaders";
    if (memcmp(entry + 88, expected + 88, 8) != 0)
        return "its content is damaged";
    /* Vulkan's own header: some drivers trust it blindly. */
    if (get32(payload) < 32 || get32(payload) > payload_bytes || get32(payload + 4) != 1 ||
        get32(payload + 8) != d->info.vendor_id || get32(payload + 12) != d->info.device_id ||
        memcmp(payload + 16, d->facts.cache_uuid, 16) != 0)
        return "the driver's header in it does not fit";
    return NULL;
}

static void entry_key(const ful_device *d, char key[CACHE_KEY_BYTES])
{
    uint64_t driver = hash_bytes(HASH_SEED, d->facts.driver_uuid, 16);
    size_t used = (size_t)snprintf(key, CACHE_KEY_BYTES, "pipelines-");
    driver = hash_bytes(driver, d->facts.cache_uuid, 16);
    for (int i = 0; i < 16; i++)
        used += (size_t)snprintf(key + used, CACHE_KEY_BYTES - used, "%02x", d->info.uuid[i]);
    snprintf(key + used, CACHE_KEY_BYTES - used, "-%016llx.bin", (unsigned long long)driver);
}

/* From mem_alloc; NULL if the environment names no place. */
static char *folder_default(const ful_alloc *a)
{
#if defined(_WIN32)
    const char *base = getenv("LOCALAPPDATA");
    return base && base[0] ? path_join(a, base, "fulgur") : NULL;
#else
    const char *base = getenv("XDG_CACHE_HOME");
    if (base && base[0] == '/')
        return path_join(a, base, "fulgur");
    const char *home = getenv("HOME");
    return home && home[0] ? path_join(a, home, ".cache/fulgur") : NULL;
#endif
}

static void path_choose(ful_device *d, const ful_device_params *p)
{
    char key[CACHE_KEY_BYTES];
    if (p->cache_get || (p->cache_dir && p->cache_dir[0] == 0))
        return;
    char *folder = p->cache_dir ? mem_strdup(&d->alloc, p->cache_dir) : folder_default(&d->alloc);
    if (!folder)
        return;
    entry_key(d, key);
    d->cache_path = path_join(&d->alloc, folder, key);
    mem_free(&d->alloc, folder);
}

/* The stored entry, or NULL. */
static uint8_t *entry_load(ful_device *d, size_t *bytes)
{
    char *entry = NULL;
    *bytes = 0;
    if (d->cache_get) {
        char key[CACHE_KEY_BYTES];
        entry_key(d, key);
        if (!d->cache_get(d->cache_ctx, key, NULL, bytes) || *bytes == 0 ||
            *bytes > CACHE_MOST_BYTES)
            return NULL;
        size_t room = *bytes;
        entry = mem_alloc(&d->alloc, room);
        if (entry && (!d->cache_get(d->cache_ctx, key, entry, bytes) || *bytes > room)) {
            mem_free(&d->alloc, entry);
            return NULL;
        }
        return (uint8_t *)entry;
    }
    if (!d->cache_path || !file_exists(d->cache_path))
        return NULL;
    if (file_read(&d->alloc, d->cache_path, CACHE_MOST_BYTES, &entry, bytes) != FUL_OK) {
        log_write(&d->instance->log, FUL_LOG_WARNING, "pipeline cache ignored: %s",
                  ful_last_error());
        return NULL;
    }
    return (uint8_t *)entry;
}

ful_result cache_open(ful_device *d, const ful_device_params *params)
{
    d->cache_get = params->cache_get;
    d->cache_set = params->cache_set;
    d->cache_ctx = params->cache_ctx;
    path_choose(d, params);
    size_t bytes;
    uint8_t *entry = entry_load(d, &bytes);
    const char *fault = entry ? entry_fault(d, entry, bytes) : NULL;
    if (fault)
        log_write(&d->instance->log, FUL_LOG_WARNING, "pipeline cache %s ignored: %s",
                  d->cache_path ? d->cache_path : "of the application", fault);
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

static void entry_store(ful_device *d, const uint8_t *entry, size_t bytes)
{
    if (d->cache_set) {
        char key[CACHE_KEY_BYTES];
        entry_key(d, key);
        d->cache_set(d->cache_ctx, key, entry, bytes);
        return;
    }
    char *folder = mem_strdup(&d->alloc, d->cache_path);
    char *slash = folder ? strrchr(folder, '/') : NULL;
    ful_result r = FUL_OK;
    if (slash && slash != folder) {
        *slash = 0;
        r = path_make_dirs(folder);
    }
    mem_free(&d->alloc, folder);
    if (r == FUL_OK)
        r = file_write_atomic(d->cache_path, entry, bytes);
    if (r != FUL_OK)
        log_write(&d->instance->log, FUL_LOG_WARNING, "pipeline cache not stored: %s",
                  ful_last_error());
}

void cache_close(ful_device *d, bool releasable)
{
    if (!d->cache)
        return;
    size_t bytes = 0;
    bool wanted =
        releasable && !atomic_load(&d->lost) && d->compiled > 0 && (d->cache_path || d->cache_set);
    if (wanted && d->fn.vkGetPipelineCacheData(d->vk, d->cache, &bytes, NULL) == VK_SUCCESS &&
        bytes > d->cache_loaded_bytes && bytes <= CACHE_MOST_BYTES - CACHE_HEADER_BYTES) {
        uint8_t *entry = mem_alloc(&d->alloc, CACHE_HEADER_BYTES + bytes);
        if (entry && d->fn.vkGetPipelineCacheData(d->vk, d->cache, &bytes,
                                                  entry + CACHE_HEADER_BYTES) == VK_SUCCESS) {
            header_fill(d, entry + CACHE_HEADER_BYTES, bytes, entry);
            entry_store(d, entry, CACHE_HEADER_BYTES + bytes);
        }
        mem_free(&d->alloc, entry);
    }
    if (releasable)
        d->fn.vkDestroyPipelineCache(d->vk, d->cache, NULL);
    d->cache = VK_NULL_HANDLE;
}
