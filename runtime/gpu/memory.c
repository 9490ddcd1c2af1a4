/* Which memory type a buffer gets.
 *
 * One VkDeviceMemory per buffer: a model is about a thousand tensors, and drivers allow 4,096. */
#include <string.h>

#include "gpu/gpu_internal.h"

#define LOCAL VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
#define VISIBLE VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
#define COHERENT VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
#define CACHED VK_MEMORY_PROPERTY_HOST_CACHED_BIT

/* A visible window onto device memory of this size or less is never used for bulk. */
#define SMALL_BAR_BYTES (256ull << 20)
/* Host-written buffers up to this size may live in such a window. */
#define SMALL_BUFFER_BYTES (1ull << 20)

static bool heap_is_local(const VkPhysicalDeviceMemoryProperties *m, uint32_t heap)
{
    return (m->memoryHeaps[heap].flags & VK_MEMORY_HEAP_DEVICE_LOCAL_BIT) != 0;
}

static bool heap_is_visible(const VkPhysicalDeviceMemoryProperties *m, uint32_t heap)
{
    for (uint32_t i = 0; i < m->memoryTypeCount; i++)
        if (m->memoryTypes[i].heapIndex == heap && (m->memoryTypes[i].propertyFlags & VISIBLE))
            return true;
    return false;
}

bool memory_is_unified(const VkPhysicalDeviceMemoryProperties *m, ful_device_kind kind)
{
    bool any = false;
    if (kind == FUL_DEVICE_DISCRETE || kind == FUL_DEVICE_VIRTUAL)
        return false;
    for (uint32_t i = 0; i < m->memoryHeapCount; i++) {
        if (!heap_is_local(m, i))
            continue;
        any = true;
        if (!heap_is_visible(m, i))
            return false;
    }
    return any;
}

uint64_t memory_local_bytes(const VkPhysicalDeviceMemoryProperties *m, bool visible_only)
{
    uint64_t sum = 0;
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        if (heap_is_local(m, i) && (!visible_only || heap_is_visible(m, i)))
            sum += m->memoryHeaps[i].size;
    return sum;
}

/* Properties that a type must and must not have. */
typedef struct preference {
    VkMemoryPropertyFlags with, without;
} preference;

enum { PREFERENCE_COUNT = 4 };

/* In order of preference. Device memory must be device-local. */
static void preferences_fill(bool unified, gpu_memory kind, uint64_t bytes,
                             preference out[PREFERENCE_COUNT])
{
    const preference device[] = {
        {LOCAL | VISIBLE | COHERENT, 0}, {LOCAL | VISIBLE, 0}, {LOCAL, VISIBLE}, {LOCAL, 0}};
    const preference host_small[] = {{LOCAL | VISIBLE | COHERENT, 0},
                                     {VISIBLE | COHERENT, CACHED},
                                     {VISIBLE | COHERENT, 0},
                                     {VISIBLE, 0}};
    const preference host_bulk[] = {{VISIBLE | COHERENT, LOCAL | CACHED},
                                    {VISIBLE | COHERENT, LOCAL},
                                    {VISIBLE | COHERENT, 0},
                                    {VISIBLE, 0}};
    const preference readback[] = {{VISIBLE | COHERENT | CACHED, 0},
                                   {VISIBLE | CACHED, 0},
                                   {VISIBLE | COHERENT, LOCAL},
                                   {VISIBLE, 0}};
    const preference *from = device;
    if (kind == GPU_MEMORY_READBACK)
        from = readback;
    else if (kind == GPU_MEMORY_HOST)
        from = bytes <= SMALL_BUFFER_BYTES || unified ? host_small : host_bulk;
    memcpy(out, from, sizeof(device));
}

/* A small window onto device memory is left to small buffers. */
static bool heap_suits(const VkPhysicalDeviceMemoryProperties *m, bool unified, uint32_t type,
                       gpu_memory kind, uint64_t bytes)
{
    uint32_t heap = m->memoryTypes[type].heapIndex;
    VkMemoryPropertyFlags flags = m->memoryTypes[type].propertyFlags;
    if (bytes > m->memoryHeaps[heap].size)
        return false;
    if (unified || (flags & (LOCAL | VISIBLE)) != (LOCAL | VISIBLE))
        return true;
    bool small = m->memoryHeaps[heap].size <= SMALL_BAR_BYTES;
    /* With a resizable BAR the window is the device's main heap. */
    for (uint32_t i = 0; i < m->memoryHeapCount; i++)
        small =
            small || (heap_is_local(m, i) && m->memoryHeaps[i].size > m->memoryHeaps[heap].size);
    return !small || (kind == GPU_MEMORY_HOST && bytes <= SMALL_BUFFER_BYTES);
}

static bool type_matches(VkMemoryPropertyFlags flags, preference p)
{
    /* Protected, lazily allocated and vendors' special types have higher bits. */
    const VkMemoryPropertyFlags plain = LOCAL | VISIBLE | COHERENT | CACHED;
    return (flags & ~plain) == 0 && (flags & p.with) == p.with && (flags & p.without) == 0;
}

uint32_t memory_rank(const VkPhysicalDeviceMemoryProperties *m, bool unified, gpu_memory kind,
                     uint64_t bytes, uint32_t allowed_types, uint32_t out[VK_MAX_MEMORY_TYPES])
{
    preference preferences[PREFERENCE_COUNT];
    uint32_t n = 0;
    preferences_fill(unified, kind, bytes, preferences);
    for (int i = 0; i < PREFERENCE_COUNT; i++) {
        for (uint32_t type = 0; type < m->memoryTypeCount; type++) {
            if (!(allowed_types & (1u << type)) ||
                !type_matches(m->memoryTypes[type].propertyFlags, preferences[i]) ||
                !heap_suits(m, unified, type, kind, bytes))
                continue;
            allowed_types &= ~(1u << type);
            out[n++] = type;
        }
    }
    return n;
}

/* Free bytes of device-local memory by the driver's budget; UINT64_MAX if it gives none. */
static uint64_t budget_free_bytes(const ful_device *d)
{
    if (!(d->info.caps.features & FUL_FEATURE_MEMORY_BUDGET))
        return UINT64_MAX;
    VkPhysicalDeviceMemoryBudgetPropertiesEXT budget = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT};
    VkPhysicalDeviceMemoryProperties2 props = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_PROPERTIES_2, .pNext = &budget};
    vkGetPhysicalDeviceMemoryProperties2(d->facts.physical, &props);
    uint64_t sum = 0;
    bool known = false;
    for (uint32_t i = 0; i < d->facts.memory.memoryHeapCount; i++) {
        if (!heap_is_local(&d->facts.memory, i) || budget.heapBudget[i] == 0)
            continue;
        known = true;
        if (budget.heapBudget[i] > budget.heapUsage[i])
            sum += budget.heapBudget[i] - budget.heapUsage[i];
    }
    return known ? sum : UINT64_MAX;
}

static uint64_t free_bytes_locked(const ful_device *d)
{
    uint64_t now = d->memory_now_bytes;
    uint64_t size = memory_local_bytes(&d->facts.memory, false);
    uint64_t limit = d->memory_limit_bytes < size ? d->memory_limit_bytes : size;
    uint64_t left = limit > now ? limit - now : 0;
    uint64_t budget = budget_free_bytes(d);
    return budget < left ? budget : left;
}

uint64_t device_free_bytes(const ful_device *device)
{
    mutex_lock(device->memory_lock);
    uint64_t bytes = free_bytes_locked(device);
    mutex_unlock(device->memory_lock);
    return bytes;
}

static bool type_is_local(const ful_device *d, uint32_t type)
{
    return heap_is_local(&d->facts.memory, d->facts.memory.memoryTypes[type].heapIndex);
}

/* Reserves the bytes in the counters; false if they exceed what is free. */
static bool memory_reserve(ful_device *d, uint32_t type, uint64_t bytes)
{
    mutex_lock(d->memory_lock);
    bool ok = d->allocations < d->facts.max_allocations;
    if (type_is_local(d, type)) {
        ok = ok && bytes <= free_bytes_locked(d);
        if (ok) {
            d->memory_now_bytes += bytes;
            if (d->memory_now_bytes > d->memory_peak_bytes)
                d->memory_peak_bytes = d->memory_now_bytes;
        }
    }
    if (ok)
        d->allocations++;
    mutex_unlock(d->memory_lock);
    return ok;
}

static void memory_return(ful_device *d, uint32_t type, uint64_t bytes)
{
    mutex_lock(d->memory_lock);
    if (type_is_local(d, type))
        d->memory_now_bytes -= bytes;
    d->allocations--;
    mutex_unlock(d->memory_lock);
}

/* *binding: it came that far, and no other type can be tried. */
static VkResult type_try(ful_device *d, uint32_t type, gpu_buffer *b, bool *binding)
{
    VkMemoryPropertyFlags flags = d->facts.memory.memoryTypes[type].propertyFlags;
    *binding = false;
    if (!memory_reserve(d, type, b->memory_bytes))
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    VkMemoryAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
        .allocationSize = b->memory_bytes,
        .memoryTypeIndex = type,
    };
    VkResult r = d->fn.vkAllocateMemory(d->vk, &info, NULL, &b->memory);
    if (r != VK_SUCCESS)
        b->memory = VK_NULL_HANDLE;
    /* A bound buffer could not be bound again, to memory of another type that can be mapped. */
    if (r == VK_SUCCESS && (flags & VISIBLE))
        r = d->fn.vkMapMemory(d->vk, b->memory, 0, VK_WHOLE_SIZE, 0, &b->mapped);
    *binding = r == VK_SUCCESS;
    if (r == VK_SUCCESS)
        r = d->fn.vkBindBufferMemory(d->vk, b->vk, b->memory, 0);
    if (r == VK_SUCCESS) {
        b->coherent = (flags & COHERENT) != 0;
        b->memory_type = type;
        return VK_SUCCESS;
    }
    d->fn.vkFreeMemory(d->vk, b->memory, NULL);
    b->memory = VK_NULL_HANDLE;
    b->mapped = NULL;
    memory_return(d, type, b->memory_bytes);
    return r;
}

ful_result memory_allocate(ful_device *d, gpu_memory kind, gpu_buffer *b)
{
    VkMemoryRequirements need;
    uint32_t types[VK_MAX_MEMORY_TYPES];
    d->fn.vkGetBufferMemoryRequirements(d->vk, b->vk, &need);
    b->memory_bytes = (need.size + 255) & ~(uint64_t)255;
    uint32_t n = memory_rank(&d->facts.memory, d->info.caps.unified_memory, kind, b->bytes,
                             need.memoryTypeBits, types);
    VkResult last = VK_ERROR_OUT_OF_DEVICE_MEMORY;
    bool binding = false;
    for (uint32_t i = 0; i < n && !binding; i++) {
        VkResult r = type_try(d, types[i], b, &binding);
        if (r == VK_SUCCESS)
            return FUL_OK;
        if (r != VK_ERROR_OUT_OF_DEVICE_MEMORY && r != VK_ERROR_OUT_OF_HOST_MEMORY &&
            r != VK_ERROR_TOO_MANY_OBJECTS && r != VK_ERROR_MEMORY_MAP_FAILED)
            return vk_fail(d, r, "allocating memory");
        last = r;
    }
    return fail(last == VK_ERROR_OUT_OF_HOST_MEMORY ? FUL_ERR_HOST_MEMORY : FUL_ERR_DEVICE_MEMORY,
                "buffer %s: %llu bytes asked for, %llu bytes free on %s (%s)",
                b->name ? b->name : "without name", (unsigned long long)b->bytes,
                (unsigned long long)device_free_bytes(d), d->info.name,
                n ? vk_result_name(last) : "no heap of that size");
}

void memory_free(ful_device *d, gpu_buffer *b)
{
    if (!b->memory)
        return;
    d->fn.vkFreeMemory(d->vk, b->memory, NULL);
    memory_return(d, b->memory_type, b->memory_bytes);
}

bool memory_reads_fast(const ful_device *d, const gpu_buffer *b)
{
    VkMemoryPropertyFlags flags = d->facts.memory.memoryTypes[b->memory_type].propertyFlags;
    return b->mapped && ((flags & CACHED) || d->info.caps.unified_memory || !(flags & LOCAL));
}
