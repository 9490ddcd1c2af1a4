/* Heaps and types of the profile in front of the driver's. Memory that is not coherent is mapped as
 * a copy, so that a missing flush or invalidation shows in the results; memory that the host does
 * not see can't be mapped. */
#include "layer.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define VISIBLE VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
#define COHERENT VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
#define LOCAL VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
/* Of what the copy holds until it is invalidated. */
enum { STALE = 0xcd };

typedef struct block {
    struct block *next;
    const device_link *device;
    VkDeviceMemory memory;
    VkDeviceSize bytes;
    uint32_t type, heap;
    char *real, *copy; /* NULL unless mapped and not coherent */
    VkDeviceSize mapped_offset, mapped_bytes;
} block;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static block *blocks;                           /* under lock */
static uint64_t heap_used[VK_MAX_MEMORY_HEAPS]; /* of all devices; under lock */

void restrict_memory(const profile *p, VkPhysicalDeviceMemoryProperties *out)
{
    if (p->type_count == 0)
        return;
    memset(out, 0, sizeof(*out));
    out->memoryHeapCount = p->heap_count;
    out->memoryTypeCount = p->type_count;
    memcpy(out->memoryHeaps, p->heaps, sizeof(out->memoryHeaps));
    memcpy(out->memoryTypes, p->types, sizeof(out->memoryTypes));
}

void restrict_memory2(const profile *p, VkPhysicalDeviceMemoryProperties2 *out)
{
    restrict_memory(p, &out->memoryProperties);
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext) {
        if (s->sType != VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MEMORY_BUDGET_PROPERTIES_EXT)
            continue;
        VkPhysicalDeviceMemoryBudgetPropertiesEXT *b = (void *)s;
        if (!extension_allowed(p, VK_EXT_MEMORY_BUDGET_EXTENSION_NAME)) {
            memset(b->heapBudget, 0, sizeof(b->heapBudget));
            memset(b->heapUsage, 0, sizeof(b->heapUsage));
        } else if (p->type_count > 0) {
            pthread_mutex_lock(&lock);
            memcpy(b->heapBudget, p->budget, sizeof(b->heapBudget));
            memcpy(b->heapUsage, heap_used, sizeof(b->heapUsage));
            pthread_mutex_unlock(&lock);
        }
    }
}

bool memory_link(device_link *d)
{
    const profile *p = &d->instance->profile;
    for (uint32_t i = 0; i < p->type_count; i++) {
        VkMemoryPropertyFlags want =
            p->types[i].propertyFlags & VISIBLE ? VISIBLE | COHERENT : LOCAL;
        uint32_t found = UINT32_MAX;
        for (uint32_t j = 0; j < d->real.memoryTypeCount && found == UINT32_MAX; j++)
            if ((d->real.memoryTypes[j].propertyFlags & want) == want)
                found = j;
        if (found == UINT32_MAX)
            return false;
        d->real_type[i] = found;
    }
    return true;
}

static block *block_find(const device_link *d, VkDeviceMemory memory)
{
    block *b = blocks;
    while (b && (b->memory != memory || b->device != d))
        b = b->next;
    return b;
}

/* Reserves the bytes; VK_SUCCESS unless the profile has no room. */
static VkResult reserve(const device_link *d, uint32_t heap, VkDeviceSize bytes)
{
    const profile *p = &d->instance->profile;
    uint32_t count = 0;
    for (const block *b = blocks; b; b = b->next)
        count += b->device == d;
    if (count >= d->allocation_count)
        return VK_ERROR_TOO_MANY_OBJECTS;
    if (bytes > d->allocation_bytes ||
        (p->type_count > 0 && bytes > p->heaps[heap].size - heap_used[heap]))
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    heap_used[heap] += bytes;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL allocate(VkDevice device, const VkMemoryAllocateInfo *info,
                                               const VkAllocationCallbacks *a, VkDeviceMemory *out)
{
    const device_link *d = device_of(device);
    const profile *p = &d->instance->profile;
    VkMemoryAllocateInfo real = *info;
    block *b = calloc(1, sizeof(*b));
    if (!b)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    b->type = info->memoryTypeIndex;
    if (p->type_count > 0 && b->type >= p->type_count) {
        free(b);
        return VK_ERROR_UNKNOWN;
    }
    b->heap =
        p->type_count > 0 ? p->types[b->type].heapIndex : d->real.memoryTypes[b->type].heapIndex;
    b->bytes = info->allocationSize;
    b->device = d;
    if (p->type_count > 0)
        real.memoryTypeIndex = d->real_type[b->type];
    pthread_mutex_lock(&lock);
    VkResult r = reserve(d, b->heap, b->bytes);
    if (r == VK_SUCCESS) {
        r = d->allocate(device, &real, a, out);
        if (r != VK_SUCCESS)
            heap_used[b->heap] -= b->bytes;
    }
    if (r == VK_SUCCESS) {
        b->memory = *out;
        b->next = blocks;
        blocks = b;
    } else {
        free(b);
    }
    pthread_mutex_unlock(&lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL release(VkDevice device, VkDeviceMemory memory,
                                          const VkAllocationCallbacks *a)
{
    const device_link *d = device_of(device);
    pthread_mutex_lock(&lock);
    block *b = memory ? block_find(d, memory) : NULL;
    if (b) {
        block **at = &blocks;
        while (*at != b)
            at = &(*at)->next;
        *at = b->next;
        heap_used[b->heap] -= b->bytes;
        free(b->copy);
        free(b);
    }
    pthread_mutex_unlock(&lock);
    d->free(device, memory, a);
}

void memory_forget(const device_link *d)
{
    pthread_mutex_lock(&lock);
    for (block **at = &blocks; *at;) {
        block *b = *at;
        if (b->device != d) {
            at = &b->next;
            continue;
        }
        *at = b->next;
        heap_used[b->heap] -= b->bytes;
        free(b->copy);
        free(b);
    }
    pthread_mutex_unlock(&lock);
}

static VKAPI_ATTR VkResult VKAPI_CALL map(VkDevice device, VkDeviceMemory memory,
                                          VkDeviceSize offset, VkDeviceSize bytes,
                                          VkMemoryMapFlags flags, void **out)
{
    const device_link *d = device_of(device);
    const profile *p = &d->instance->profile;
    pthread_mutex_lock(&lock);
    block *b = block_find(d, memory);
    VkMemoryPropertyFlags has = b && p->type_count > 0 ? p->types[b->type].propertyFlags
                                                       : (VkMemoryPropertyFlags)VISIBLE | COHERENT;
    VkResult r = VK_ERROR_MEMORY_MAP_FAILED;
    if (has & VISIBLE)
        r = d->map(device, memory, offset, bytes, flags, out);
    if (r == VK_SUCCESS && !(has & COHERENT)) {
        /* A copy begins at a page's start as mappings do. */
        b->mapped_offset = offset;
        b->mapped_bytes = bytes == VK_WHOLE_SIZE ? b->bytes - offset : bytes;
        b->real = *out;
        b->copy = aligned_alloc(4096, (size_t)(b->mapped_bytes + 4095) & ~(size_t)4095);
        if (b->copy) {
            memset(b->copy, STALE, (size_t)b->mapped_bytes);
            *out = b->copy;
        } else {
            d->unmap(device, memory);
            r = VK_ERROR_OUT_OF_HOST_MEMORY;
        }
    }
    pthread_mutex_unlock(&lock);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL unmap(VkDevice device, VkDeviceMemory memory)
{
    const device_link *d = device_of(device);
    pthread_mutex_lock(&lock);
    block *b = block_find(d, memory);
    if (b) {
        free(b->copy);
        b->copy = NULL;
    }
    pthread_mutex_unlock(&lock);
    d->unmap(device, memory);
}

/* Between the copies and the driver's mappings. */
static void ranges_copy(const device_link *d, uint32_t count, const VkMappedMemoryRange *ranges,
                        bool to_device)
{
    pthread_mutex_lock(&lock);
    for (uint32_t i = 0; i < count; i++) {
        const block *b = block_find(d, ranges[i].memory);
        if (!b || !b->copy || ranges[i].offset < b->mapped_offset)
            continue;
        size_t at = (size_t)(ranges[i].offset - b->mapped_offset);
        size_t rest = (size_t)b->mapped_bytes - at;
        size_t n = ranges[i].size < rest ? (size_t)ranges[i].size : rest;
        if (to_device)
            memcpy(b->real + at, b->copy + at, n);
        else
            memcpy(b->copy + at, b->real + at, n);
    }
    pthread_mutex_unlock(&lock);
}

static VKAPI_ATTR VkResult VKAPI_CALL flush(VkDevice device, uint32_t count,
                                            const VkMappedMemoryRange *ranges)
{
    const device_link *d = device_of(device);
    ranges_copy(d, count, ranges, true);
    return d->flush(device, count, ranges);
}

static VKAPI_ATTR VkResult VKAPI_CALL invalidate(VkDevice device, uint32_t count,
                                                 const VkMappedMemoryRange *ranges)
{
    const device_link *d = device_of(device);
    VkResult r = d->invalidate(device, count, ranges);
    ranges_copy(d, count, ranges, false);
    return r;
}

/* Bits of the profile's types whose driver's type is among `real`. Lazily allocated memory is for
 * attachments of images. */
static uint32_t type_bits(const device_link *d, uint32_t real)
{
    const profile *p = &d->instance->profile;
    uint32_t bits = 0;
    for (uint32_t i = 0; i < p->type_count; i++)
        if ((real & 1u << d->real_type[i]) &&
            !(p->types[i].propertyFlags & VK_MEMORY_PROPERTY_LAZILY_ALLOCATED_BIT))
            bits |= 1u << i;
    return p->type_count > 0 ? bits : real;
}

static VKAPI_ATTR void VKAPI_CALL buffer_needs(VkDevice device, VkBuffer buffer,
                                               VkMemoryRequirements *out)
{
    const device_link *d = device_of(device);
    d->buffer_needs(device, buffer, out);
    out->memoryTypeBits = type_bits(d, out->memoryTypeBits);
}

static VKAPI_ATTR void VKAPI_CALL buffer_needs2(VkDevice device,
                                                const VkBufferMemoryRequirementsInfo2 *info,
                                                VkMemoryRequirements2 *out)
{
    const device_link *d = device_of(device);
    d->buffer_needs2(device, info, out);
    out->memoryRequirements.memoryTypeBits = type_bits(d, out->memoryRequirements.memoryTypeBits);
}

PFN_vkVoidFunction memory_function(const device_link *d, const char *name)
{
    const struct {
        const char *name;
        PFN_vkVoidFunction ours;
        bool there;
    } rows[] = {
        {"vkAllocateMemory", (PFN_vkVoidFunction)allocate, true},
        {"vkFreeMemory", (PFN_vkVoidFunction)release, true},
        {"vkMapMemory", (PFN_vkVoidFunction)map, true},
        {"vkUnmapMemory", (PFN_vkVoidFunction)unmap, true},
        {"vkFlushMappedMemoryRanges", (PFN_vkVoidFunction)flush, true},
        {"vkInvalidateMappedMemoryRanges", (PFN_vkVoidFunction)invalidate, true},
        {"vkGetBufferMemoryRequirements", (PFN_vkVoidFunction)buffer_needs, true},
        {"vkGetBufferMemoryRequirements2", (PFN_vkVoidFunction)buffer_needs2, d->buffer_needs2},
        {"vkGetBufferMemoryRequirements2KHR", (PFN_vkVoidFunction)buffer_needs2, d->buffer_needs2},
    };
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (rows[i].there && strcmp(rows[i].name, name) == 0)
            return rows[i].ours;
    return NULL;
}
