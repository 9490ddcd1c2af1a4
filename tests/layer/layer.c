/* VK_LAYER_FULGUR_restrict: makes the device below it look like the one of a profile, and be no
 * more than that. Placed below the validation layer, which then judges a program by the small
 * device. The profile's name is in FULGUR_LAYER_PROFILE; without it nothing is changed. */
#include "layer.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include <vulkan/vk_layer.h>

enum { INSTANCES = 64, DEVICES = 64 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static instance_link *instances[INSTANCES]; /* under lock */
static device_link *devices[DEVICES];       /* under lock */

static instance_link *instance_of(const void *handle)
{
    instance_link *found = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < INSTANCES && !found; i++)
        if (instances[i] && instances[i]->key == dispatch_key(handle))
            found = instances[i];
    pthread_mutex_unlock(&lock);
    return found;
}

device_link *device_of(VkDevice device)
{
    device_link *found = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DEVICES && !found; i++)
        if (devices[i] && devices[i]->key == dispatch_key(device))
            found = devices[i];
    pthread_mutex_unlock(&lock);
    return found;
}

/* ---- what a physical device says ---- */

static VKAPI_ATTR void VKAPI_CALL properties(VkPhysicalDevice physical,
                                             VkPhysicalDeviceProperties *out)
{
    const instance_link *in = instance_of(physical);
    in->properties(physical, out);
    restrict_properties(&in->profile, out);
}

static VKAPI_ATTR void VKAPI_CALL properties2(VkPhysicalDevice physical,
                                              VkPhysicalDeviceProperties2 *out)
{
    const instance_link *in = instance_of(physical);
    in->properties2(physical, out);
    restrict_properties2(&in->profile, out);
}

static uint32_t version_of(const instance_link *in, VkPhysicalDevice physical)
{
    VkPhysicalDeviceProperties p;
    in->properties(physical, &p);
    restrict_properties(&in->profile, &p);
    return p.apiVersion;
}

static VKAPI_ATTR void VKAPI_CALL features(VkPhysicalDevice physical, VkPhysicalDeviceFeatures *out)
{
    const instance_link *in = instance_of(physical);
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2};
    in->features(physical, &f.features);
    restrict_features(&in->profile, version_of(in, physical), &f);
    *out = f.features;
}

static VKAPI_ATTR void VKAPI_CALL features2(VkPhysicalDevice physical,
                                            VkPhysicalDeviceFeatures2 *out)
{
    const instance_link *in = instance_of(physical);
    in->features2(physical, out);
    restrict_features(&in->profile, version_of(in, physical), out);
}

static VKAPI_ATTR void VKAPI_CALL memory(VkPhysicalDevice physical,
                                         VkPhysicalDeviceMemoryProperties *out)
{
    const instance_link *in = instance_of(physical);
    in->memory(physical, out);
    restrict_memory(&in->profile, out);
}

static VKAPI_ATTR void VKAPI_CALL memory2(VkPhysicalDevice physical,
                                          VkPhysicalDeviceMemoryProperties2 *out)
{
    const instance_link *in = instance_of(physical);
    in->memory2(physical, out);
    restrict_memory2(&in->profile, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL extensions(VkPhysicalDevice physical, const char *layer,
                                                 uint32_t *count, VkExtensionProperties *out)
{
    const instance_link *in = instance_of(physical);
    uint32_t all = 0, n = 0, room = *count;
    if (layer)
        return in->extensions(physical, layer, count, out);
    VkResult r = in->extensions(physical, NULL, &all, NULL);
    VkExtensionProperties *list = r == VK_SUCCESS ? calloc(all + 1, sizeof(*list)) : NULL;
    if (r == VK_SUCCESS)
        r = list ? in->extensions(physical, NULL, &all, list) : VK_ERROR_OUT_OF_HOST_MEMORY;
    for (uint32_t i = 0; i < all && r >= VK_SUCCESS; i++) {
        if (!extension_allowed(&in->profile, list[i].extensionName))
            continue;
        if (out && n == room) {
            r = VK_INCOMPLETE;
            break;
        }
        if (out)
            out[n] = list[i];
        n++;
    }
    *count = n;
    free(list);
    return r;
}

/* The driver's family that stands for all of the profile's: one that can do everything. */
static uint32_t real_families(const instance_link *in, VkPhysicalDevice physical,
                              VkQueueFamilyProperties *out)
{
    VkQueueFamilyProperties list[16];
    uint32_t count = 16, best = 0;
    in->families(physical, &count, list);
    for (uint32_t i = 0; i < count; i++)
        if ((list[i].queueFlags & VK_QUEUE_COMPUTE_BIT) &&
            !(list[best].queueFlags & VK_QUEUE_COMPUTE_BIT))
            best = i;
    *out = list[best];
    return best;
}

static uint32_t families_fill(const instance_link *in, VkPhysicalDevice physical,
                              VkQueueFamilyProperties out[16])
{
    const profile *p = &in->profile;
    uint32_t n = 16;
    if (p->family_count > 0) {
        n = p->family_count;
        memcpy(out, p->families, n * sizeof(*out));
    } else {
        in->families(physical, &n, out);
    }
    for (uint32_t i = 0; i < n; i++)
        if (p->timestamp_bits >= 0 && out[i].timestampValidBits > (uint32_t)p->timestamp_bits)
            out[i].timestampValidBits = (uint32_t)p->timestamp_bits;
    return n;
}

static VKAPI_ATTR void VKAPI_CALL families(VkPhysicalDevice physical, uint32_t *count,
                                           VkQueueFamilyProperties *out)
{
    VkQueueFamilyProperties list[16];
    uint32_t n = families_fill(instance_of(physical), physical, list);
    if (out && *count < n)
        n = *count;
    if (out)
        memcpy(out, list, n * sizeof(*out));
    *count = n;
}

static VKAPI_ATTR void VKAPI_CALL families2(VkPhysicalDevice physical, uint32_t *count,
                                            VkQueueFamilyProperties2 *out)
{
    VkQueueFamilyProperties list[16];
    uint32_t n = families_fill(instance_of(physical), physical, list);
    if (out && *count < n)
        n = *count;
    for (uint32_t i = 0; out && i < n; i++)
        out[i].queueFamilyProperties = list[i];
    *count = n;
}

/* ---- devices ---- */

/* The link to the next layer, which is moved on for it. */
static VkLayerDeviceLink *device_chain(const VkDeviceCreateInfo *info)
{
    for (VkBaseOutStructure *s = (VkBaseOutStructure *)(uintptr_t)info->pNext; s; s = s->pNext) {
        VkLayerDeviceCreateInfo *l = (VkLayerDeviceCreateInfo *)s;
        if (s->sType == VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO &&
            l->function == VK_LAYER_LINK_INFO) {
            VkLayerDeviceLink *link = l->u.pLayerInfo;
            l->u.pLayerInfo = link->pNext;
            return link;
        }
    }
    return NULL;
}

/* VK_SUCCESS if the profile has all that the device is to be created with. */
static VkResult info_permitted(const instance_link *in, VkPhysicalDevice physical,
                               const VkDeviceCreateInfo *info)
{
    const profile *p = &in->profile;
    VkQueueFamilyProperties list[16];
    uint32_t n = families_fill(in, physical, list);
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (!extension_allowed(p, info->ppEnabledExtensionNames[i]))
            return VK_ERROR_EXTENSION_NOT_PRESENT;
    if (!features_permitted(p, version_of(in, physical), info))
        return VK_ERROR_FEATURE_NOT_PRESENT;
    for (uint32_t i = 0; i < info->queueCreateInfoCount; i++) {
        const VkDeviceQueueCreateInfo *q = &info->pQueueCreateInfos[i];
        if (q->queueFamilyIndex >= n || q->queueCount > list[q->queueFamilyIndex].queueCount)
            return VK_ERROR_INITIALIZATION_FAILED;
    }
    return VK_SUCCESS;
}

static void limits_note(device_link *d, VkPhysicalDevice physical)
{
    const instance_link *in = d->instance;
    VkPhysicalDeviceProperties real, shown;
    in->properties(physical, &real);
    shown = real;
    restrict_properties(&in->profile, &shown);
    d->allocation_count = shown.limits.maxMemoryAllocationCount;
    d->allocation_bytes = in->profile.allocation_bytes ? in->profile.allocation_bytes : UINT64_MAX;
    d->period_scale = (double)real.limits.timestampPeriod / (double)shown.limits.timestampPeriod;
    in->memory(physical, &d->real);
}

static bool device_keep(device_link *d)
{
    bool kept = false;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DEVICES && !kept; i++)
        if (!devices[i]) {
            devices[i] = d;
            kept = true;
        }
    pthread_mutex_unlock(&lock);
    return kept;
}

static void device_resolve(device_link *d, VkDevice device)
{
#define RESOLVE(field, name) d->field = (PFN_##name)d->get(device, #name)
    RESOLVE(destroy, vkDestroyDevice);
    RESOLVE(queue, vkGetDeviceQueue);
    RESOLVE(create_pool, vkCreateCommandPool);
    RESOLVE(query_results, vkGetQueryPoolResults);
    RESOLVE(allocate, vkAllocateMemory);
    RESOLVE(free, vkFreeMemory);
    RESOLVE(map, vkMapMemory);
    RESOLVE(unmap, vkUnmapMemory);
    RESOLVE(flush, vkFlushMappedMemoryRanges);
    RESOLVE(invalidate, vkInvalidateMappedMemoryRanges);
    RESOLVE(buffer_needs, vkGetBufferMemoryRequirements);
    RESOLVE(buffer_needs2, vkGetBufferMemoryRequirements2);
#undef RESOLVE
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *a, VkDevice *out)
{
    const instance_link *in = instance_of(physical);
    VkLayerDeviceLink *link = device_chain(info);
    VkResult r = link ? info_permitted(in, physical, info) : VK_ERROR_INITIALIZATION_FAILED;
    if (r != VK_SUCCESS)
        return r;
    device_link *d = calloc(1, sizeof(*d));
    if (!d)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    d->instance = in;
    limits_note(d, physical);
    VkDeviceCreateInfo real = *info;
    const float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    if (in->profile.family_count > 0) {
        VkQueueFamilyProperties family;
        queue.queueFamilyIndex = d->real_family = real_families(in, physical, &family);
        real.queueCreateInfoCount = 1;
        real.pQueueCreateInfos = &queue;
    }
    r = memory_link(d) ? in->create_device(physical, &real, a, out)
                       : VK_ERROR_INITIALIZATION_FAILED;
    if (r != VK_SUCCESS) {
        free(d);
        return r;
    }
    d->key = dispatch_key(*out);
    d->get = link->pfnNextGetDeviceProcAddr;
    device_resolve(d, *out);
    if (device_keep(d))
        return VK_SUCCESS;
    d->destroy(*out, a);
    free(d);
    return VK_ERROR_TOO_MANY_OBJECTS;
}

static VKAPI_ATTR void VKAPI_CALL destroy_device(VkDevice device, const VkAllocationCallbacks *a)
{
    if (!device)
        return;
    device_link *d = device_of(device);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < DEVICES; i++)
        if (devices[i] == d)
            devices[i] = NULL;
    pthread_mutex_unlock(&lock);
    d->destroy(device, a);
    memory_forget(d);
    free(d);
}

static VKAPI_ATTR void VKAPI_CALL get_queue(VkDevice device, uint32_t family, uint32_t index,
                                            VkQueue *out)
{
    const device_link *d = device_of(device);
    bool stands = d->instance->profile.family_count > 0;
    d->queue(device, stands ? d->real_family : family, stands ? 0 : index, out);
}

static VKAPI_ATTR VkResult VKAPI_CALL create_pool(VkDevice device,
                                                  const VkCommandPoolCreateInfo *info,
                                                  const VkAllocationCallbacks *a,
                                                  VkCommandPool *out)
{
    const device_link *d = device_of(device);
    VkCommandPoolCreateInfo real = *info;
    if (d->instance->profile.family_count > 0)
        real.queueFamilyIndex = d->real_family;
    return d->create_pool(device, &real, a, out);
}

/* Timestamps, which are all that is queried here: in the profile's units, without its invalid bits.
 */
static VKAPI_ATTR VkResult VKAPI_CALL query_results(VkDevice device, VkQueryPool pool,
                                                    uint32_t first, uint32_t count, size_t bytes,
                                                    void *data, VkDeviceSize stride,
                                                    VkQueryResultFlags flags)
{
    const device_link *d = device_of(device);
    const profile *p = &d->instance->profile;
    VkResult r = d->query_results(device, pool, first, count, bytes, data, stride, flags);
    uint32_t bits = 64;
    for (uint32_t i = 0; i < p->family_count; i++)
        if (p->families[i].timestampValidBits > 0 && p->families[i].timestampValidBits < bits)
            bits = p->families[i].timestampValidBits;
    if (p->timestamp_bits > 0 && (uint32_t)p->timestamp_bits < bits)
        bits = (uint32_t)p->timestamp_bits;
    for (uint32_t i = 0; r == VK_SUCCESS && (flags & VK_QUERY_RESULT_64_BIT) && i < count; i++) {
        uint64_t t;
        memcpy(&t, (char *)data + i * stride, sizeof(t));
        if (p->timestamp_period > 0.0)
            t = (uint64_t)((double)t * d->period_scale);
        if (bits < 64)
            t &= ((uint64_t)1 << bits) - 1;
        memcpy((char *)data + i * stride, &t, sizeof(t));
    }
    return r;
}

/* ---- instances ---- */

static void instance_resolve(instance_link *in, VkInstance instance)
{
    /* Now: asked later with the instance's handle, the next layer may come back to this one. */
#define RESOLVE(field, name) in->field = (PFN_##name)in->get(instance, #name)
    RESOLVE(destroy, vkDestroyInstance);
    RESOLVE(create_device, vkCreateDevice);
    RESOLVE(extensions, vkEnumerateDeviceExtensionProperties);
    RESOLVE(properties, vkGetPhysicalDeviceProperties);
    RESOLVE(properties2, vkGetPhysicalDeviceProperties2);
    RESOLVE(features, vkGetPhysicalDeviceFeatures);
    RESOLVE(features2, vkGetPhysicalDeviceFeatures2);
    RESOLVE(memory, vkGetPhysicalDeviceMemoryProperties);
    RESOLVE(memory2, vkGetPhysicalDeviceMemoryProperties2);
    RESOLVE(families, vkGetPhysicalDeviceQueueFamilyProperties);
    RESOLVE(families2, vkGetPhysicalDeviceQueueFamilyProperties2);
#undef RESOLVE
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *a,
                                                      VkInstance *out)
{
    const char *name = getenv("FULGUR_LAYER_PROFILE");
    VkLayerInstanceCreateInfo *l = (VkLayerInstanceCreateInfo *)(uintptr_t)info->pNext;
    while (l && (l->sType != VK_STRUCTURE_TYPE_LOADER_INSTANCE_CREATE_INFO ||
                 l->function != VK_LAYER_LINK_INFO))
        l = (VkLayerInstanceCreateInfo *)(uintptr_t)l->pNext;
    instance_link *in = l ? calloc(1, sizeof(*in)) : NULL;
    if (!in)
        return VK_ERROR_INITIALIZATION_FAILED;
    if (!profile_read(FUL_LAYER_PROFILES, name ? name : "driver", &in->profile)) {
        free(in);
        return VK_ERROR_INITIALIZATION_FAILED;
    }
    in->get = l->u.pLayerInfo->pfnNextGetInstanceProcAddr;
    l->u.pLayerInfo = l->u.pLayerInfo->pNext;
    PFN_vkCreateInstance create = (PFN_vkCreateInstance)in->get(NULL, "vkCreateInstance");
    VkResult r = create ? create(info, a, out) : VK_ERROR_INITIALIZATION_FAILED;
    if (r != VK_SUCCESS) {
        free(in);
        return r;
    }
    in->key = dispatch_key(*out);
    instance_resolve(in, *out);
    pthread_mutex_lock(&lock);
    int i = 0;
    while (i < INSTANCES && instances[i])
        i++;
    if (i < INSTANCES)
        instances[i] = in;
    pthread_mutex_unlock(&lock);
    if (i < INSTANCES)
        return VK_SUCCESS;
    in->destroy(*out, a);
    free(in);
    return VK_ERROR_TOO_MANY_OBJECTS;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance instance,
                                                   const VkAllocationCallbacks *a)
{
    if (!instance)
        return;
    instance_link *in = instance_of(instance);
    pthread_mutex_lock(&lock);
    for (int i = 0; i < INSTANCES; i++)
        if (instances[i] == in)
            instances[i] = NULL;
    pthread_mutex_unlock(&lock);
    in->destroy(instance, a);
    free(in);
}

/* ---- names ---- */

typedef struct entry {
    const char *name;
    PFN_vkVoidFunction ours;
} entry;

static PFN_vkVoidFunction entry_find(const entry *list, const char *name)
{
    for (; list->name; list++)
        if (strcmp(list->name, name) == 0)
            return list->ours;
    return NULL;
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_device(VkDevice device, const char *name)
{
    static const entry entries[] = {
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device},
        {"vkDestroyDevice", (PFN_vkVoidFunction)destroy_device},
        {"vkGetDeviceQueue", (PFN_vkVoidFunction)get_queue},
        {"vkCreateCommandPool", (PFN_vkVoidFunction)create_pool},
        {"vkGetQueryPoolResults", (PFN_vkVoidFunction)query_results},
        {NULL, NULL},
    };
    const device_link *d = device_of(device);
    PFN_vkVoidFunction ours = entry_find(entries, name);
    if (!ours)
        ours = memory_function(d, name);
    if (ours)
        return ours;
    /* Ways around what is restricted here. */
    if (strncmp(name, "vkMapMemory2", 12) == 0 || strncmp(name, "vkUnmapMemory2", 14) == 0 ||
        strcmp(name, "vkGetDeviceQueue2") == 0)
        return NULL;
    return d->get(device, name);
}

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_instance(VkInstance instance, const char *name)
{
    static const entry entries[] = {
        {"vkGetInstanceProcAddr", (PFN_vkVoidFunction)get_instance},
        {"vkGetDeviceProcAddr", (PFN_vkVoidFunction)get_device},
        {"vkCreateInstance", (PFN_vkVoidFunction)create_instance},
        {"vkDestroyInstance", (PFN_vkVoidFunction)destroy_instance},
        {"vkCreateDevice", (PFN_vkVoidFunction)create_device},
        {"vkEnumerateDeviceExtensionProperties", (PFN_vkVoidFunction)extensions},
        {"vkGetPhysicalDeviceProperties", (PFN_vkVoidFunction)properties},
        {"vkGetPhysicalDeviceProperties2", (PFN_vkVoidFunction)properties2},
        {"vkGetPhysicalDeviceProperties2KHR", (PFN_vkVoidFunction)properties2},
        {"vkGetPhysicalDeviceFeatures", (PFN_vkVoidFunction)features},
        {"vkGetPhysicalDeviceFeatures2", (PFN_vkVoidFunction)features2},
        {"vkGetPhysicalDeviceFeatures2KHR", (PFN_vkVoidFunction)features2},
        {"vkGetPhysicalDeviceMemoryProperties", (PFN_vkVoidFunction)memory},
        {"vkGetPhysicalDeviceMemoryProperties2", (PFN_vkVoidFunction)memory2},
        {"vkGetPhysicalDeviceMemoryProperties2KHR", (PFN_vkVoidFunction)memory2},
        {"vkGetPhysicalDeviceQueueFamilyProperties", (PFN_vkVoidFunction)families},
        {"vkGetPhysicalDeviceQueueFamilyProperties2", (PFN_vkVoidFunction)families2},
        {"vkGetPhysicalDeviceQueueFamilyProperties2KHR", (PFN_vkVoidFunction)families2},
        {NULL, NULL},
    };
    PFN_vkVoidFunction ours = entry_find(entries, name);
    const instance_link *in = instance && !ours ? instance_of(instance) : NULL;
    return ours ? ours : in ? in->get(instance, name) : NULL;
}

__attribute__((visibility("default"))) VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *versions);

VKAPI_ATTR VkResult VKAPI_CALL
vkNegotiateLoaderLayerInterfaceVersion(VkNegotiateLayerInterface *versions)
{
    if (versions->loaderLayerInterfaceVersion < 2)
        return VK_ERROR_INITIALIZATION_FAILED;
    versions->loaderLayerInterfaceVersion = 2;
    versions->pfnGetInstanceProcAddr = get_instance;
    versions->pfnGetDeviceProcAddr = get_device;
    versions->pfnGetPhysicalDeviceProcAddr = NULL;
    return VK_SUCCESS;
}
