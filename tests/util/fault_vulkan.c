#include "util/fault_vulkan.h"

#include <stddef.h>
#include <string.h>

#include "gpu/shaders.h"

/* The errors a function may return, by the specification. */
enum { HOST = 1, DEVICE = 2, LOST = 4, MAP = 8 };

static fault_vulkan *faults; /* NULL: nothing stands between */
static struct VolkDeviceTable real;
static atomic_bool lost;
static _Thread_local const uint32_t *module_code; /* of the shader module made last */

static bool can_return(int errors, VkResult result)
{
    switch (result) {
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return (errors & HOST) != 0;
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return (errors & DEVICE) != 0;
    case VK_ERROR_DEVICE_LOST:
        return (errors & LOST) != 0;
    case VK_ERROR_MEMORY_MAP_FAILED:
        return (errors & MAP) != 0;
    default:
        return true;
    }
}

/* A real device stops by itself when it is lost; this one has to be waited for. */
static void device_stop(VkDevice device)
{
    atomic_store(&lost, true);
    if (real.vkDeviceWaitIdle != NULL)
        (void)real.vkDeviceWaitIdle(device);
}

static VkResult fault_at(const char *function, int errors)
{
    fault_vulkan *f = faults;
    if (!can_return(errors, f->result))
        return VK_SUCCESS;
    if (atomic_load(&lost))
        return VK_ERROR_DEVICE_LOST;
    if (f->only != NULL && strcmp(f->only, function) != 0)
        return VK_SUCCESS;
    size_t call = atomic_fetch_add(&f->calls, 1) + 1;
    if (f->fail_at == 0 || call < f->fail_at || (call > f->fail_at && !f->lasting))
        return VK_SUCCESS;
    if (call == f->fail_at)
        f->failed = function;
    return f->result;
}

static void live_add(long n)
{
    atomic_fetch_add(&faults->live, n);
}

/* ---- functions of a device ---- */

/* name, errors, objects made, parameters, arguments; the first argument is the device, or one of
 * its queue and command buffers */
#define FALLIBLE(X)                                                                                \
    X(vkAllocateMemory, HOST | DEVICE, 1,                                                          \
      (VkDevice device, const VkMemoryAllocateInfo *info, const VkAllocationCallbacks *a,          \
       VkDeviceMemory *out),                                                                       \
      (device, info, a, out))                                                                      \
    X(vkMapMemory, HOST | DEVICE | MAP, 0,                                                         \
      (VkDevice device, VkDeviceMemory memory, VkDeviceSize offset, VkDeviceSize bytes,            \
       VkMemoryMapFlags flags, void **out),                                                        \
      (device, memory, offset, bytes, flags, out))                                                 \
    X(vkFlushMappedMemoryRanges, HOST | DEVICE, 0,                                                 \
      (VkDevice device, uint32_t n, const VkMappedMemoryRange *list), (device, n, list))           \
    X(vkInvalidateMappedMemoryRanges, HOST | DEVICE, 0,                                            \
      (VkDevice device, uint32_t n, const VkMappedMemoryRange *list), (device, n, list))           \
    X(vkCreateBuffer, HOST | DEVICE, 1,                                                            \
      (VkDevice device, const VkBufferCreateInfo *info, const VkAllocationCallbacks *a,            \
       VkBuffer *out),                                                                             \
      (device, info, a, out))                                                                      \
    X(vkBindBufferMemory, HOST | DEVICE, 0,                                                        \
      (VkDevice device, VkBuffer buffer, VkDeviceMemory memory, VkDeviceSize offset),              \
      (device, buffer, memory, offset))                                                            \
    X(vkCreateShaderModule, HOST | DEVICE, 1,                                                      \
      (VkDevice device, const VkShaderModuleCreateInfo *info, const VkAllocationCallbacks *a,      \
       VkShaderModule *out),                                                                       \
      (device, info, a, out))                                                                      \
    X(vkCreateDescriptorSetLayout, HOST | DEVICE, 1,                                               \
      (VkDevice device, const VkDescriptorSetLayoutCreateInfo *info,                               \
       const VkAllocationCallbacks *a, VkDescriptorSetLayout *out),                                \
      (device, info, a, out))                                                                      \
    X(vkCreatePipelineLayout, HOST | DEVICE, 1,                                                    \
      (VkDevice device, const VkPipelineLayoutCreateInfo *info, const VkAllocationCallbacks *a,    \
       VkPipelineLayout *out),                                                                     \
      (device, info, a, out))                                                                      \
    X(vkCreateComputePipelines, HOST | DEVICE, 1,                                                  \
      (VkDevice device, VkPipelineCache cache, uint32_t n,                                         \
       const VkComputePipelineCreateInfo *info, const VkAllocationCallbacks *a, VkPipeline *out),  \
      (device, cache, n, info, a, out))                                                            \
    X(vkCreatePipelineCache, HOST | DEVICE, 1,                                                     \
      (VkDevice device, const VkPipelineCacheCreateInfo *info, const VkAllocationCallbacks *a,     \
       VkPipelineCache *out),                                                                      \
      (device, info, a, out))                                                                      \
    X(vkGetPipelineCacheData, HOST | DEVICE, 0,                                                    \
      (VkDevice device, VkPipelineCache cache, size_t * bytes, void *data),                        \
      (device, cache, bytes, data))                                                                \
    X(vkCreateDescriptorPool, HOST | DEVICE, 1,                                                    \
      (VkDevice device, const VkDescriptorPoolCreateInfo *info, const VkAllocationCallbacks *a,    \
       VkDescriptorPool *out),                                                                     \
      (device, info, a, out))                                                                      \
    X(vkAllocateDescriptorSets, HOST | DEVICE, 0,                                                  \
      (VkDevice device, const VkDescriptorSetAllocateInfo *info, VkDescriptorSet *out),            \
      (device, info, out))                                                                         \
    X(vkCreateQueryPool, HOST | DEVICE, 1,                                                         \
      (VkDevice device, const VkQueryPoolCreateInfo *info, const VkAllocationCallbacks *a,         \
       VkQueryPool *out),                                                                          \
      (device, info, a, out))                                                                      \
    X(vkGetQueryPoolResults, HOST | DEVICE | LOST, 0,                                              \
      (VkDevice device, VkQueryPool pool, uint32_t first, uint32_t n, size_t bytes, void *data,    \
       VkDeviceSize stride, VkQueryResultFlags flags),                                             \
      (device, pool, first, n, bytes, data, stride, flags))                                        \
    X(vkCreateFence, HOST | DEVICE, 1,                                                             \
      (VkDevice device, const VkFenceCreateInfo *info, const VkAllocationCallbacks *a,             \
       VkFence *out),                                                                              \
      (device, info, a, out))                                                                      \
    X(vkResetFences, DEVICE, 0, (VkDevice device, uint32_t n, const VkFence *list),                \
      (device, n, list))                                                                           \
    X(vkGetFenceStatus, HOST | DEVICE | LOST, 0, (VkDevice device, VkFence fence),                 \
      (device, fence))                                                                             \
    X(vkWaitForFences, HOST | DEVICE | LOST, 0,                                                    \
      (VkDevice device, uint32_t n, const VkFence *list, VkBool32 all, uint64_t ns),               \
      (device, n, list, all, ns))                                                                  \
    X(vkDeviceWaitIdle, HOST | DEVICE | LOST, 0, (VkDevice device), (device))                      \
    X(vkCreateCommandPool, HOST | DEVICE, 1,                                                       \
      (VkDevice device, const VkCommandPoolCreateInfo *info, const VkAllocationCallbacks *a,       \
       VkCommandPool *out),                                                                        \
      (device, info, a, out))                                                                      \
    X(vkAllocateCommandBuffers, HOST | DEVICE, 0,                                                  \
      (VkDevice device, const VkCommandBufferAllocateInfo *info, VkCommandBuffer *out),            \
      (device, info, out))                                                                         \
    X(vkBeginCommandBuffer, HOST | DEVICE, 0,                                                      \
      (VkCommandBuffer device, const VkCommandBufferBeginInfo *info), (device, info))              \
    X(vkEndCommandBuffer, HOST | DEVICE, 0, (VkCommandBuffer device), (device))                    \
    X(vkQueueSubmit, HOST | DEVICE | LOST, 0,                                                      \
      (VkQueue device, uint32_t n, const VkSubmitInfo *list, VkFence fence),                       \
      (device, n, list, fence))

static VkDevice device_now;

static VkResult shader_refused(const char *function, const void *device)
{
    (void)device;
    if (faults->refuse_shader == NULL || strcmp(function, "vkCreateComputePipelines") != 0)
        return VK_SUCCESS;
    for (uint32_t i = 0; i < shader_module_count; i++)
        if (module_code != NULL && shader_modules[i].code == module_code)
            return faults->refuse_shader(faults->ctx, shader_modules[i].name);
    return VK_SUCCESS;
}

static VkResult failure(const char *function, int errors)
{
    VkResult r = fault_at(function, errors);
    if (r == VK_ERROR_DEVICE_LOST && !atomic_load(&lost))
        device_stop(device_now);
    return r;
}

#define HOOK(name, errors, makes, parameters, arguments)                                           \
    static VKAPI_ATTR VkResult VKAPI_CALL hook_##name parameters                                   \
    {                                                                                              \
        VkResult r = failure(#name, errors);                                                       \
        if (r == VK_SUCCESS)                                                                       \
            r = shader_refused(#name, device);                                                     \
        if (r == VK_SUCCESS)                                                                       \
            r = real.name arguments;                                                               \
        if (r == VK_SUCCESS && (makes))                                                            \
            live_add(makes);                                                                       \
        return r;                                                                                  \
    }
FALLIBLE(HOOK)

#define DESTROYS(X)                                                                                \
    X(vkFreeMemory, VkDeviceMemory)                                                                \
    X(vkDestroyBuffer, VkBuffer)                                                                   \
    X(vkDestroyShaderModule, VkShaderModule)                                                       \
    X(vkDestroyDescriptorSetLayout, VkDescriptorSetLayout)                                         \
    X(vkDestroyPipelineLayout, VkPipelineLayout)                                                   \
    X(vkDestroyPipeline, VkPipeline)                                                               \
    X(vkDestroyPipelineCache, VkPipelineCache)                                                     \
    X(vkDestroyDescriptorPool, VkDescriptorPool)                                                   \
    X(vkDestroyQueryPool, VkQueryPool)                                                             \
    X(vkDestroyFence, VkFence)                                                                     \
    X(vkDestroyCommandPool, VkCommandPool)

#define DESTROY_HOOK(name, type)                                                                   \
    static VKAPI_ATTR void VKAPI_CALL hook_##name(VkDevice device, type object,                    \
                                                  const VkAllocationCallbacks *a)                  \
    {                                                                                              \
        if (object != VK_NULL_HANDLE)                                                              \
            live_add(-1);                                                                          \
        real.name(device, object, a);                                                              \
    }
DESTROYS(DESTROY_HOOK)

/* As hook_vkCreateShaderModule, but remembers whose code it is. */
static VKAPI_ATTR VkResult VKAPI_CALL note_shader(VkDevice device,
                                                  const VkShaderModuleCreateInfo *info,
                                                  const VkAllocationCallbacks *a,
                                                  VkShaderModule *out)
{
    module_code = info->pCode;
    return hook_vkCreateShaderModule(device, info, a, out);
}

static VKAPI_ATTR void VKAPI_CALL hook_vkDestroyDevice(VkDevice device,
                                                       const VkAllocationCallbacks *a)
{
    if (device != VK_NULL_HANDLE) {
        live_add(-1);
        atomic_fetch_add(&faults->devices, -1);
    }
    real.vkDestroyDevice(device, a);
    atomic_store(&lost, false);
}

static const struct hook {
    const char *name;
    PFN_vkVoidFunction function;
    size_t at; /* in a table */
} hooks[] = {
#define ROW(name, errors, makes, parameters, arguments)                                            \
    {#name, (PFN_vkVoidFunction)hook_##name, offsetof(struct VolkDeviceTable, name)},
#define DESTROY_ROW(name, type)                                                                    \
    {#name, (PFN_vkVoidFunction)hook_##name, offsetof(struct VolkDeviceTable, name)},
    FALLIBLE(ROW) DESTROYS(DESTROY_ROW){"vkDestroyDevice", (PFN_vkVoidFunction)hook_vkDestroyDevice,
                                        offsetof(struct VolkDeviceTable, vkDestroyDevice)},
};
enum { HOOKS = sizeof hooks / sizeof *hooks };

static PFN_vkVoidFunction hook_function(const struct hook *h)
{
    return strcmp(h->name, "vkCreateShaderModule") == 0 ? (PFN_vkVoidFunction)note_shader
                                                        : h->function;
}

/* ---- functions of the loader and of instances ---- */

static PFN_vkGetDeviceProcAddr real_get;
static PFN_vkCreateInstance real_create_instance;
static PFN_vkDestroyInstance real_destroy_instance;
static PFN_vkEnumeratePhysicalDevices real_devices;
static PFN_vkEnumerateDeviceExtensionProperties real_extensions;
static PFN_vkEnumerateInstanceExtensionProperties real_instance_extensions;
static PFN_vkEnumerateInstanceLayerProperties real_layers;
static PFN_vkCreateDevice real_create_device;

static VKAPI_ATTR PFN_vkVoidFunction VKAPI_CALL get_function(VkDevice device, const char *name)
{
    PFN_vkVoidFunction have = real_get(device, name);
    for (size_t i = 0; have != NULL && i < HOOKS; i++)
        if (strcmp(hooks[i].name, name) == 0) {
            memcpy((char *)&real + hooks[i].at, &have, sizeof have);
            return hook_function(&hooks[i]);
        }
    return have;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *a,
                                                      VkInstance *out)
{
    VkResult r = failure("vkCreateInstance", HOST | DEVICE);
    if (r == VK_SUCCESS)
        r = real_create_instance(info, a, out);
    live_add(r == VK_SUCCESS);
    return r;
}

static VKAPI_ATTR void VKAPI_CALL destroy_instance(VkInstance instance,
                                                   const VkAllocationCallbacks *a)
{
    live_add(instance != VK_NULL_HANDLE ? -1 : 0);
    real_destroy_instance(instance, a);
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_devices(VkInstance instance, uint32_t *n,
                                                        VkPhysicalDevice *list)
{
    VkResult r = failure("vkEnumeratePhysicalDevices", HOST | DEVICE);
    return r == VK_SUCCESS ? real_devices(instance, n, list) : r;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_extensions(VkPhysicalDevice device,
                                                           const char *layer, uint32_t *n,
                                                           VkExtensionProperties *list)
{
    VkResult r = failure("vkEnumerateDeviceExtensionProperties", HOST | DEVICE);
    return r == VK_SUCCESS ? real_extensions(device, layer, n, list) : r;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_instance_extensions(const char *layer, uint32_t *n,
                                                                    VkExtensionProperties *list)
{
    VkResult r = failure("vkEnumerateInstanceExtensionProperties", HOST | DEVICE);
    return r == VK_SUCCESS ? real_instance_extensions(layer, n, list) : r;
}

static VKAPI_ATTR VkResult VKAPI_CALL enumerate_layers(uint32_t *n, VkLayerProperties *list)
{
    VkResult r = failure("vkEnumerateInstanceLayerProperties", HOST | DEVICE);
    return r == VK_SUCCESS ? real_layers(n, list) : r;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *a, VkDevice *out)
{
    VkResult r = failure("vkCreateDevice", HOST | DEVICE);
    if (r == VK_SUCCESS && faults->refuse_device != NULL)
        r = faults->refuse_device(faults->ctx, info);
    if (r == VK_SUCCESS)
        r = real_create_device(physical, info, a, out);
    if (r == VK_SUCCESS) {
        live_add(1);
        atomic_fetch_add(&faults->devices, 1);
        device_now = *out;
    }
    return r;
}

void fault_vulkan_begin(fault_vulkan *f)
{
    faults = f;
    atomic_store(&lost, false);
    real_get = vkGetDeviceProcAddr;
    if (real_get == NULL)
        return; /* no loader here */
    real_create_instance = vkCreateInstance;
    real_destroy_instance = vkDestroyInstance;
    real_devices = vkEnumeratePhysicalDevices;
    real_extensions = vkEnumerateDeviceExtensionProperties;
    real_instance_extensions = vkEnumerateInstanceExtensionProperties;
    real_layers = vkEnumerateInstanceLayerProperties;
    real_create_device = vkCreateDevice;
    vkGetDeviceProcAddr = get_function;
    vkCreateInstance = create_instance;
    vkDestroyInstance = destroy_instance;
    vkEnumeratePhysicalDevices = enumerate_devices;
    vkEnumerateDeviceExtensionProperties = enumerate_extensions;
    vkEnumerateInstanceExtensionProperties = enumerate_instance_extensions;
    vkEnumerateInstanceLayerProperties = enumerate_layers;
    vkCreateDevice = create_device;
}

void fault_vulkan_end(void)
{
    faults = NULL;
    if (real_get == NULL)
        return;
    vkGetDeviceProcAddr = real_get;
    vkCreateInstance = real_create_instance;
    vkDestroyInstance = real_destroy_instance;
    vkEnumeratePhysicalDevices = real_devices;
    vkEnumerateDeviceExtensionProperties = real_extensions;
    vkEnumerateInstanceExtensionProperties = real_instance_extensions;
    vkEnumerateInstanceLayerProperties = real_layers;
    vkCreateDevice = real_create_device;
}

void fault_vulkan_adopt(ful_device *device)
{
    real = device->fn;
    device_now = device->vk;
    /* Its fence and its pipeline cache were made before. */
    live_add(3);
    atomic_fetch_add(&faults->devices, 1);
    for (size_t i = 0; i < HOOKS; i++) {
        PFN_vkVoidFunction function = hook_function(&hooks[i]), have;
        memcpy(&have, (char *)&real + hooks[i].at, sizeof have);
        if (have != NULL)
            memcpy((char *)&device->fn + hooks[i].at, &function, sizeof function);
    }
}
