/* What the files of the layer share. */
#ifndef TESTS_LAYER_LAYER_H
#define TESTS_LAYER_LAYER_H

#include "profile.h"

/* ---- structs.c ---- */
bool extension_allowed(const profile *p, const char *name);
void restrict_properties(const profile *p, VkPhysicalDeviceProperties *out);
void restrict_properties2(const profile *p, VkPhysicalDeviceProperties2 *out);
/* api_version: of the restricted device. */
void restrict_features(const profile *p, uint32_t api_version, VkPhysicalDeviceFeatures2 *out);
/* False if something is enabled that restrict_features would have taken away. */
bool features_permitted(const profile *p, uint32_t api_version, const VkDeviceCreateInfo *info);

/* ---- layer.c ---- */
typedef struct instance_link {
    void *key;
    PFN_vkGetInstanceProcAddr get;
    PFN_vkDestroyInstance destroy;
    PFN_vkCreateDevice create_device;
    PFN_vkEnumerateDeviceExtensionProperties extensions;
    PFN_vkGetPhysicalDeviceProperties properties;
    PFN_vkGetPhysicalDeviceProperties2 properties2;
    PFN_vkGetPhysicalDeviceFeatures features;
    PFN_vkGetPhysicalDeviceFeatures2 features2;
    PFN_vkGetPhysicalDeviceMemoryProperties memory;
    PFN_vkGetPhysicalDeviceMemoryProperties2 memory2;
    PFN_vkGetPhysicalDeviceQueueFamilyProperties families;
    PFN_vkGetPhysicalDeviceQueueFamilyProperties2 families2;
    profile profile;
} instance_link;

typedef struct device_link {
    void *key;
    const instance_link *instance;
    PFN_vkGetDeviceProcAddr get;
    PFN_vkDestroyDevice destroy;
    PFN_vkGetDeviceQueue queue;
    PFN_vkCreateCommandPool create_pool;
    PFN_vkGetQueryPoolResults query_results;
    PFN_vkAllocateMemory allocate;
    PFN_vkFreeMemory free;
    PFN_vkMapMemory map;
    PFN_vkUnmapMemory unmap;
    PFN_vkGetBufferMemoryRequirements buffer_needs;
    PFN_vkGetBufferMemoryRequirements2 buffer_needs2;
    PFN_vkFlushMappedMemoryRanges flush;
    PFN_vkInvalidateMappedMemoryRanges invalidate;
    uint64_t allocation_bytes; /* no allocation is larger */
    uint32_t allocation_count;
    uint32_t real_family;
    double period_scale;                     /* driver's units in one of the profile's */
    uint32_t real_type[VK_MAX_MEMORY_TYPES]; /* behind each of the profile's */
    VkPhysicalDeviceMemoryProperties real;   /* the driver's */
} device_link;

/* The loader's table of an instance, device or queue, which is what their functions share. */
static inline void *dispatch_key(const void *handle)
{
    return *(void *const *)handle;
}
device_link *device_of(VkDevice device);

/* ---- memory.c ---- */
void restrict_memory(const profile *p, VkPhysicalDeviceMemoryProperties *out);
void restrict_memory2(const profile *p, VkPhysicalDeviceMemoryProperties2 *out);
/* Finds a driver's type behind each of the profile's; false if one has none. */
bool memory_link(device_link *d);
/* The layer's function of that name, or NULL. */
PFN_vkVoidFunction memory_function(const device_link *d, const char *name);
/* Forgets what the device left behind. */
void memory_forget(const device_link *d);

#endif
