/* Finding, opening, losing and closing devices. */
#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/cpu.h"
#include "gpu/gpu_internal.h"

/* How often a driver without memory is asked to end a device's work. */
enum { SETTLE_TRIES = 3 };
/* How long a lost device is given to end its work before its objects are left behind. */
#define RELEASE_GRACE_NS (5ull * 1000 * 1000 * 1000)

static bool out_of_memory(VkResult r)
{
    return r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY;
}

/* Array from the instance's allocator; *count = 0 and NULL without devices. */
static ful_result physical_list(const ful_instance *in, VkPhysicalDevice **out, uint32_t *count)
{
    *out = NULL;
    *count = 0;
    if (!in->vk)
        return FUL_OK;
    uint32_t n = 0;
    VkResult r = vkEnumeratePhysicalDevices(in->vk, &n, NULL);
    if (r != VK_SUCCESS || n == 0) {
        if (out_of_memory(r))
            return fail(vk_result_code(r), "vkEnumeratePhysicalDevices failed with %s (%d)",
                        vk_result_name(r), (int)r);
        /* A loader without any driver answers VK_ERROR_INITIALIZATION_FAILED. */
        if (r != VK_SUCCESS)
            log_write(&in->log, FUL_LOG_INFO, "vkEnumeratePhysicalDevices: %s", vk_result_name(r));
        return FUL_OK;
    }
    VkPhysicalDevice *list = mem_array(&in->alloc, n, sizeof(VkPhysicalDevice));
    if (!list)
        return mem_fail(n * sizeof(VkPhysicalDevice), "the list of devices");
    r = vkEnumeratePhysicalDevices(in->vk, &n, list);
    if (r != VK_SUCCESS && r != VK_INCOMPLETE) {
        mem_free(&in->alloc, list);
        return fail(vk_result_code(r), "vkEnumeratePhysicalDevices failed with %s (%d)",
                    vk_result_name(r), (int)r);
    }
    *out = list;
    *count = n;
    return FUL_OK;
}

/* The built-in device follows the n of the list. */
static ful_result any_facts_read(const ful_instance *in, const VkPhysicalDevice *list, uint32_t n,
                                 uint32_t index, uint32_t threads, device_facts *facts)
{
    return index < n ? facts_read(in, list[index], index, facts)
                     : builtin_facts_read(index, threads, facts);
}

ful_result ful_device_list(ful_instance *instance, ful_device_info *out, uint32_t *count)
{
    if (!instance || !count)
        return fail(FUL_ERR_ARGUMENT, "ful_device_list: instance or count is NULL");
    VkPhysicalDevice *list;
    uint32_t n;
    uint32_t room = *count;
    TRY(physical_list(instance, &list, &n));
    ful_result r = FUL_OK;
    for (uint32_t i = 0; out && i <= n && i < room && r == FUL_OK; i++) {
        device_facts facts;
        r = any_facts_read(instance, list, n, i, 0, &facts);
        if (r == FUL_OK)
            out[i] = facts.info;
    }
    mem_free(&instance->alloc, list);
    if (r == FUL_OK)
        *count = n + 1;
    return r;
}

static bool name_contains(const char *name, const char *part)
{
    size_t n = strlen(part);
    for (; *name; name++) {
        size_t i = 0;
        while (i < n && name[i] &&
               tolower((unsigned char)name[i]) == tolower((unsigned char)part[i]))
            i++;
        if (i == n)
            return true;
    }
    return n == 0;
}

static bool info_matches(const ful_device_info *info, const ful_device_params *p)
{
    /* Other names may hold these letters, too. */
    bool built_in = device_named_built_in(p->name_part);
    return (!p->uuid || memcmp(p->uuid, info->uuid, sizeof(info->uuid)) == 0) &&
           (!p->index || *p->index == info->index) &&
           (!p->name_part || (built_in ? info->built_in : name_contains(info->name, p->name_part)));
}

static bool info_better(const ful_device_info *a, const ful_device_info *b)
{
    static const int rank[] = {
        [FUL_DEVICE_OTHER] = 0,   [FUL_DEVICE_INTEGRATED] = 3, [FUL_DEVICE_DISCRETE] = 4,
        [FUL_DEVICE_VIRTUAL] = 2, [FUL_DEVICE_CPU] = 1,
    };
    if (a->usable != b->usable)
        return a->usable;
    if (a->built_in != b->built_in)
        return b->built_in;
    if (rank[a->kind] != rank[b->kind])
        return rank[a->kind] > rank[b->kind];
    return a->caps.device_memory_bytes > b->caps.device_memory_bytes;
}

static void names_append(char *text, size_t bytes, const ful_device_info *info)
{
    size_t used = strlen(text);
    snprintf(text + used, bytes - used, "%s%u: %s", used ? ", " : "", (unsigned)info->index,
             info->name);
}

/* What is said where nobody asked for the built-in device. */
static void warn_last_resort(const ful_instance *in, uint32_t n, const ful_device_info *first)
{
    if (n > 0)
        log_write(&in->log, FUL_LOG_WARNING,
                  "no usable Vulkan device (%s: %s): running on the processor", first->name,
                  first->why_not);
    else
        log_write(&in->log, FUL_LOG_WARNING,
                  "no Vulkan %s: running on the processor; a Vulkan driver may be faster "
                  "(mesa-vulkan-drivers on Debian)",
                  in->vk ? "device" : "driver");
}

/* Chooses by params, and fills *facts. */
static ful_result device_choose(const ful_instance *in, const ful_device_params *p,
                                device_facts *facts)
{
    VkPhysicalDevice *list;
    uint32_t n;
    TRY(physical_list(in, &list, &n));
    char names[400] = "";
    bool found = false;
    ful_device_info first = {0};
    ful_result r = FUL_OK;
    for (uint32_t i = 0; i <= n && r == FUL_OK; i++) {
        device_facts f;
        r = any_facts_read(in, list, n, i, p->threads, &f);
        if (r != FUL_OK)
            break;
        if (i == 0)
            first = f.info;
        names_append(names, sizeof(names), &f.info);
        if (info_matches(&f.info, p) && (!found || info_better(&f.info, &facts->info))) {
            *facts = f;
            found = true;
        }
    }
    mem_free(&in->alloc, list);
    if (r != FUL_OK)
        return r;
    if (found && facts->info.built_in && !p->uuid && !p->index && !p->name_part)
        warn_last_resort(in, n, &first);
    if (!found && p->index)
        return fail(FUL_ERR_NO_DEVICE, "no device matches index %u; there are %s",
                    (unsigned)*p->index, names);
    if (!found)
        return fail(FUL_ERR_NO_DEVICE, "no device matches %s \"%s\"; there are %s",
                    p->name_part ? "name" : "the given", p->name_part ? p->name_part : "UUID",
                    names);
    return FUL_OK;
}

/* What is there without `features`. */
static ful_caps caps_without(ful_caps caps, uint32_t features)
{
    caps_remove(features, &caps);
    /* A size that neither the host nor the device fixes is none to count on. */
    if (!(caps.features & FUL_FEATURE_SUBGROUP_SIZE) && caps.subgroup_min != caps.subgroup_max)
        caps_remove(FUL_FEATURE_SUBGROUP, &caps);
    return caps;
}

static void reduced_tell(const ful_device *d, uint32_t features, VkResult r)
{
    char names[200] = "";
    for (uint32_t bit = 1; bit <= features && bit != 0; bit <<= 1)
        if (features & bit) {
            size_t used = strlen(names);
            snprintf(names + used, sizeof(names) - used, "%s%s", used ? ", " : "",
                     ful_feature_name(bit));
        }
    log_write(&d->instance->log, FUL_LOG_WARNING,
              "device %s: vkCreateDevice failed with %s (%d), though all that was asked for is "
              "listed: going on without %s",
              d->info.name, vk_result_name(r), (int)r, names);
}

/* Some drivers list what they then refuse: newer features go first, then all but the floor. */
static VkResult device_create_reduced(ful_device *d)
{
    static const uint32_t last[] = {
        FUL_FEATURE_COOPMAT | FUL_FEATURE_COOPMAT2 | FUL_FEATURE_INT_DOT |
            FUL_FEATURE_BUFFER_ADDRESS | FUL_FEATURE_TIMELINE | FUL_FEATURE_MEMORY_BUDGET |
            FUL_FEATURE_SUBGROUP_SIZE,
        FUL_FEATURE_FP16 | FUL_FEATURE_INT8 | FUL_FEATURE_STORAGE16 | FUL_FEATURE_STORAGE8};
    VkResult first = facts_create_device(&d->facts, &d->info.caps, &d->vk), r = first;
    ful_caps caps = d->info.caps;
    for (size_t i = 0; i < sizeof(last) / sizeof(last[0]); i++) {
        uint32_t before = caps.features;
        if (vk_result_code(r) != FUL_ERR_UNSUPPORTED || r == VK_SUCCESS)
            break;
        caps = caps_without(caps, last[i]);
        if (caps.features != before)
            r = facts_create_device(&d->facts, &caps, &d->vk);
    }
    if (r == VK_SUCCESS && first != VK_SUCCESS) {
        reduced_tell(d, d->info.caps.features & ~caps.features, first);
        d->info.caps = caps;
    }
    return r == VK_SUCCESS || vk_result_code(r) != FUL_ERR_UNSUPPORTED ? r : first;
}

static ful_result device_create_vulkan(ful_device *d)
{
    if (d->info.built_in) {
        d->vk = cpu_device_create(&d->alloc, d->facts.threads);
        if (!d->vk)
            return mem_fail(sizeof(void *), "the device's threads");
        cpu_device_functions(&d->fn);
        d->fn.vkGetDeviceQueue(d->vk, 0, 0, &d->queue);
        VkFenceCreateInfo idle = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
        VkResult made = d->fn.vkCreateFence(d->vk, &idle, NULL, &d->idle_fence);
        return made == VK_SUCCESS ? FUL_OK : vk_fail(d, made, "creating a fence");
    }
    VkResult r = device_create_reduced(d);
    if (r != VK_SUCCESS) {
        d->vk = VK_NULL_HANDLE;
        return fail(vk_result_code(r), "device %s: vkCreateDevice failed with %s (%d)",
                    d->info.name, vk_result_name(r), (int)r);
    }
    volkLoadDeviceTable(&d->fn, d->vk);
    d->fn.vkGetDeviceQueue(d->vk, d->facts.queue_family, 0, &d->queue);
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    r = d->fn.vkCreateFence(d->vk, &fence, NULL, &d->idle_fence);
    return r == VK_SUCCESS ? FUL_OK : vk_fail(d, r, "vkCreateFence");
}

/* Cautious first guesses: too slow a guess only means shorter submissions. */
static void device_guess_speed(ful_device *d)
{
    static const struct {
        double bytes_per_ns, flops_per_ns;
    } guess[] = {
        [FUL_DEVICE_OTHER] = {8, 100},       [FUL_DEVICE_INTEGRATED] = {20, 300},
        [FUL_DEVICE_DISCRETE] = {150, 3000}, [FUL_DEVICE_VIRTUAL] = {20, 300},
        [FUL_DEVICE_CPU] = {4, 8},
    };
    double one = 1.0;
    uint64_t bits;
    d->bytes_per_ns = guess[d->info.kind].bytes_per_ns;
    d->flops_per_ns = guess[d->info.kind].flops_per_ns;
    memcpy(&bits, &one, sizeof(bits));
    atomic_store(&d->rate_bits, bits);
}

/* What ful_device_params.max_allocation_bytes says, or the default. */
static uint64_t allocation_limit(const ful_device_info *info, uint64_t asked)
{
    if (asked != 0)
        return asked;
    bool roomy = info->kind == FUL_DEVICE_DISCRETE || info->built_in;
    return roomy ? UINT64_MAX : UINT64_C(256) << 20;
}

/* What ful_device_params.max_dispatch_ms says, or the default. */
static uint32_t dispatch_limit(const ful_device_info *info, uint32_t asked)
{
    static const uint32_t phones[] = {0x5143 /* Qualcomm */, 0x13B5 /* Arm */,
                                      0x1010 /* Imagination */, 0x144D /* Samsung */};
    if (asked != 0)
        return asked;
    if (info->kind == FUL_DEVICE_CPU)
        return UINT32_MAX; /* no watchdog, and nobody looks at what it draws */
#ifdef __ANDROID__
    bool phone = true;
#else
    bool phone = false;
#endif
    for (size_t i = 0; i < sizeof(phones) / sizeof(phones[0]); i++)
        phone = phone || info->vendor_id == phones[i];
    return phone ? 10 : 50;
}

static ful_result device_fill(ful_device *d, const ful_device_params *p)
{
    enum { LEAST_ALLOCATION = 64 << 10 };
    ful_caps caps = d->facts.info.caps;
    uint64_t limit = allocation_limit(&d->facts.info, p->max_allocation_bytes);
    if (limit < LEAST_ALLOCATION)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_device_params.max_allocation_bytes: %llu, below the least of %d",
                    (unsigned long long)limit, (int)LEAST_ALLOCATION);
    if (caps.allocation_bytes > limit)
        caps.allocation_bytes = limit;
    caps_remove(p->caps_off, &caps);
    TRY(caps_apply(p->caps, "ful_device_params.caps", d->facts.info.kind, &caps));
    d->info = d->facts.info;
    d->info.caps = caps;
    if (d->info.usable)
        d->info.usable =
            caps_meet_floor(&caps, &d->facts.raw, d->info.why_not, sizeof(d->info.why_not));
    if (!d->info.usable)
        return fail(FUL_ERR_UNSUPPORTED, "device %s can't be used: %s", d->info.name,
                    d->info.why_not);
    d->max_submit_ms = p->max_submit_ms ? p->max_submit_ms : 100;
    d->max_dispatch_ms = dispatch_limit(&d->info, p->max_dispatch_ms);
    /* Drivers that run on the processor may compile kernels inside the first submission: some 30 s
     * for a whole model with the oldest ones. */
    uint32_t patience_ms = d->info.kind == FUL_DEVICE_CPU ? 600000 : 30000;
    d->wait_timeout_ms = p->wait_timeout_ms ? p->wait_timeout_ms : patience_ms;
    d->memory_limit_bytes = p->memory_limit_bytes ? p->memory_limit_bytes : UINT64_MAX;
    if (caps.device_memory_bytes < d->facts.raw.device_memory_bytes &&
        caps.device_memory_bytes < d->memory_limit_bytes)
        d->memory_limit_bytes = caps.device_memory_bytes;
    device_guess_speed(d);
    d->queue_lock = mutex_create(&d->alloc);
    d->memory_lock = mutex_create(&d->alloc);
    d->pipeline_lock = mutex_create(&d->alloc);
    if (!d->queue_lock || !d->memory_lock || !d->pipeline_lock)
        return mem_fail(sizeof(void *), "the device's locks");
    TRY(device_create_vulkan(d));
    TRY(cache_open(d, p));
    d->tests_itself = p->selftest != FUL_SELFTEST_NEVER;
    return trust_open(d);
}

/* True if the driver would not make the device that it lists. */
static bool device_refused(const ful_device *d, ful_result r)
{
    return r == FUL_ERR_UNSUPPORTED && d->info.usable && !d->info.built_in && !d->vk;
}

/* Chooses and makes; *d keeps what there is if that fails. */
static ful_result device_make(ful_device **d, ful_instance *instance, const ful_device_params *p)
{
    *d = mem_zalloc(&instance->alloc, 1, sizeof(**d));
    if (!*d)
        return mem_fail(sizeof(**d), "the device");
    (*d)->instance = instance;
    (*d)->alloc = instance->alloc;
    TRY(device_choose(instance, p, &(*d)->facts));
    return device_fill(*d, p);
}

ful_result ful_device_open(ful_device **out, ful_instance *instance,
                           const ful_device_params *params)
{
    if (!out || !instance)
        return fail(FUL_ERR_ARGUMENT, "ful_device_open: out or instance is NULL");
    *out = NULL;
    ful_device_params p;
    TRY(params_copy(&p, sizeof(p), params, "ful_device_params"));
    if ((unsigned)p.selftest > FUL_SELFTEST_NEVER)
        return fail(FUL_ERR_ARGUMENT, "ful_device_open: selftest %d is not a known value",
                    (int)p.selftest);
    if (!p.cache_get != !p.cache_set)
        return fail(FUL_ERR_ARGUMENT, "ful_device_open: cache_get and cache_set go together");
    if (!p.uuid && !p.index && !p.name_part) {
        const char *named = getenv("FULGUR_DEVICE");
        p.name_part = named && named[0] ? named : NULL;
    }
    ful_device *d;
    bool any = !p.uuid && !p.index && !p.name_part;
    ful_result r = device_make(&d, instance, &p);
    if (r != FUL_OK && any && d && device_refused(d, r)) {
        log_write(&instance->log, FUL_LOG_WARNING, "%s: running on the processor",
                  ful_last_error());
        ful_device_close(&d);
        p.name_part = "cpu";
        r = device_make(&d, instance, &p);
    }
    if (r != FUL_OK) {
        ful_device_close(&d);
        return r;
    }
    log_write(&instance->log, FUL_LOG_INFO, "device %u: %s (%s), %s, Vulkan %u.%u, %.1f GiB",
              (unsigned)d->info.index, d->info.name, ful_device_kind_name(d->info.kind),
              d->info.driver, (unsigned)VK_API_VERSION_MAJOR(d->info.caps.api_version),
              (unsigned)VK_API_VERSION_MINOR(d->info.caps.api_version),
              (double)d->info.caps.device_memory_bytes / (1024.0 * 1024.0 * 1024.0));
    *out = d;
    return FUL_OK;
}

/* Every submission was waited for by its owner, so this only settles what a bug left behind. */
static bool device_settle(ful_device *d)
{
    if (atomic_load(&d->lost))
        return device_releasable(d);
    VkResult r = VK_ERROR_OUT_OF_HOST_MEMORY;
    mutex_lock(d->queue_lock);
    for (int i = 0; i < SETTLE_TRIES && out_of_memory(r); i++)
        r = d->fn.vkQueueSubmit(d->queue, 0, NULL, d->idle_fence);
    mutex_unlock(d->queue_lock);
    if (r == VK_SUCCESS)
        r = VK_ERROR_OUT_OF_HOST_MEMORY;
    for (int i = 0; i < SETTLE_TRIES && out_of_memory(r); i++)
        r = d->fn.vkWaitForFences(d->vk, 1, &d->idle_fence, VK_TRUE,
                                  (uint64_t)d->wait_timeout_ms * 1000000u);
    return r == VK_SUCCESS || r == VK_ERROR_DEVICE_LOST;
}

void ful_device_close(ful_device **device)
{
    if (!device || !*device)
        return;
    ful_device *d = *device;
    *device = NULL;
    if (d->vk) {
        bool releasable = d->idle_fence == VK_NULL_HANDLE || device_settle(d);
        cache_close(d, releasable);
        pipelines_destroy(d, releasable);
        if (releasable) {
            d->fn.vkDestroyFence(d->vk, d->idle_fence, NULL);
            d->fn.vkDestroyDevice(d->vk, NULL);
        } else {
            log_write(&d->instance->log, FUL_LOG_ERROR,
                      "device %s still works on a lost submission; its objects are left behind",
                      d->info.name);
        }
    }
    cpu_device_destroy(&d->processor);
    mutex_destroy(&d->alloc, &d->queue_lock);
    mutex_destroy(&d->alloc, &d->memory_lock);
    mutex_destroy(&d->alloc, &d->pipeline_lock);
    trust_close(d);
    mem_free(&d->alloc, d->cache_folder);
    ful_alloc alloc = d->alloc;
    mem_free(&alloc, d);
}

const ful_device_info *ful_device_get_info(const ful_device *device)
{
    return device ? &device->info : NULL;
}

void ful_device_memory(const ful_device *device, uint64_t *now_bytes, uint64_t *peak_bytes)
{
    uint64_t now = 0, peak = 0;
    if (device) {
        mutex_lock(device->memory_lock);
        now = device->memory_now_bytes;
        peak = device->memory_peak_bytes;
        mutex_unlock(device->memory_lock);
    }
    if (now_bytes)
        *now_bytes = now;
    if (peak_bytes)
        *peak_bytes = peak;
}

/* ---- losing it ---- */

ful_result device_alive(const ful_device *d)
{
    if (atomic_load(&d->lost))
        return fail(FUL_ERR_DEVICE_LOST, "device %s was lost before; close and reopen it",
                    d->info.name);
    return FUL_OK;
}

ful_result vk_result_code(VkResult result)
{
    switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return FUL_ERR_HOST_MEMORY;
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
    case VK_ERROR_OUT_OF_POOL_MEMORY:
    case VK_ERROR_TOO_MANY_OBJECTS:
    case VK_ERROR_MEMORY_MAP_FAILED:
        return FUL_ERR_DEVICE_MEMORY;
    case VK_ERROR_DEVICE_LOST:
        return FUL_ERR_DEVICE_LOST;
    default:
        return FUL_ERR_UNSUPPORTED;
    }
}

ful_result vk_fail(ful_device *d, VkResult result, const char *what)
{
    ful_result r = vk_result_code(result);
    if (r == FUL_ERR_DEVICE_LOST) {
        /* The specification lets everything be destroyed then. */
        atomic_store(&d->released, 1);
        atomic_store(&d->lost, 1);
    }
    return fail(r, "device %s: %s failed with %s (%d)", d->info.name, what, vk_result_name(result),
                (int)result);
}

void device_mark_timeout(ful_device *d)
{
    int was = 0;
    mutex_lock(d->queue_lock);
    if (atomic_compare_exchange_strong(&d->lost, &was, 1)) {
        VkResult r = d->fn.vkQueueSubmit(d->queue, 0, NULL, d->idle_fence);
        if (r != VK_SUCCESS)
            atomic_store(&d->released, r == VK_ERROR_DEVICE_LOST ? 1 : 2);
    }
    mutex_unlock(d->queue_lock);
}

bool device_releasable(ful_device *d)
{
    if (!atomic_load(&d->lost))
        return true;
    mutex_lock(d->queue_lock);
    if (atomic_load(&d->released) == 0) {
        VkResult r = d->fn.vkWaitForFences(d->vk, 1, &d->idle_fence, VK_TRUE, RELEASE_GRACE_NS);
        atomic_store(&d->released, r == VK_SUCCESS || r == VK_ERROR_DEVICE_LOST ? 1 : 2);
    }
    mutex_unlock(d->queue_lock);
    return atomic_load(&d->released) == 1;
}

void device_name_object(const ful_device *d, VkObjectType type, uint64_t handle, const char *name)
{
    if (!d->instance->set_name || !name || d->info.built_in)
        return;
    VkDebugUtilsObjectNameInfoEXT info = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_OBJECT_NAME_INFO_EXT,
        .objectType = type,
        .objectHandle = handle,
        .pObjectName = name,
    };
    (void)d->instance->set_name(d->vk, &info);
}

/* ---- for other rooms ---- */

ful_instance *device_instance(const ful_device *device)
{
    return device->instance;
}

const ful_alloc *device_alloc(const ful_device *device)
{
    return &device->alloc;
}

const log_sink *device_log(const ful_device *device)
{
    return &device->instance->log;
}

const ful_caps *device_caps(const ful_device *device)
{
    return &device->info.caps;
}

bool device_tests_itself(const ful_device *device)
{
    return device->tests_itself;
}

bool device_notes_to_disk(const ful_device *device)
{
    return device->notes_to_disk;
}

bool device_is_cpu(const ful_device *device)
{
    return device->info.kind == FUL_DEVICE_CPU;
}

bool device_is_built_in(const ful_device *device)
{
    return device->info.built_in;
}

double device_dispatch_flops(const ful_device *device)
{
    if (device->max_dispatch_ms == UINT32_MAX)
        return INFINITY;
    return device->max_dispatch_ms * 1e6 * device->flops_per_ns;
}

uint64_t device_window_bytes(const ful_device *device)
{
    enum { WINDOW_ALIGN = 256 };
    /* Every window is a dispatch of its own, and their ends leave a device idle; but small windows
     * find room more easily. */
    bool roomy = device->info.caps.device_memory_bytes >= 16ull << 30;
    uint64_t bytes = roomy ? 4ull << 30 : 1ull << 30;
    if (bytes > device->info.caps.storage_range_bytes)
        bytes = device->info.caps.storage_range_bytes;
    /* An allocation holds padding, too. */
    if (bytes > device->info.caps.allocation_bytes - WINDOW_ALIGN)
        bytes = device->info.caps.allocation_bytes - WINDOW_ALIGN;
    return bytes & ~(uint64_t)(WINDOW_ALIGN - 1);
}
