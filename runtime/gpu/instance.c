#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_internal.h"

#define LAYER_VALIDATION "VK_LAYER_KHRONOS_validation"

/* volk keeps the loader's entry points in globals: they are filled once for the process. All
 * instances come from the same loader, whose functions serve any of them. */
static atomic_flag loader_lock = ATOMIC_FLAG_INIT;
static int loader_state; /* 0: not tried, 1: there, -1: absent; under loader_lock */
static bool loader_filled;

static bool loader_open(void)
{
    while (atomic_flag_test_and_set_explicit(&loader_lock, memory_order_acquire)) {
    }
    if (loader_state == 0)
        loader_state = volkInitialize() == VK_SUCCESS ? 1 : -1;
    bool there = loader_state == 1;
    atomic_flag_clear_explicit(&loader_lock, memory_order_release);
    return there;
}

static void loader_fill(VkInstance instance)
{
    while (atomic_flag_test_and_set_explicit(&loader_lock, memory_order_acquire)) {
    }
    if (!loader_filled) {
        volkLoadInstanceOnly(instance);
        loader_filled = true;
    }
    atomic_flag_clear_explicit(&loader_lock, memory_order_release);
}

const char *vk_result_name(VkResult result)
{
    switch (result) {
    case VK_SUCCESS:
        return "VK_SUCCESS";
    case VK_NOT_READY:
        return "VK_NOT_READY";
    case VK_TIMEOUT:
        return "VK_TIMEOUT";
    case VK_INCOMPLETE:
        return "VK_INCOMPLETE";
    case VK_ERROR_OUT_OF_HOST_MEMORY:
        return "VK_ERROR_OUT_OF_HOST_MEMORY";
    case VK_ERROR_OUT_OF_DEVICE_MEMORY:
        return "VK_ERROR_OUT_OF_DEVICE_MEMORY";
    case VK_ERROR_INITIALIZATION_FAILED:
        return "VK_ERROR_INITIALIZATION_FAILED";
    case VK_ERROR_DEVICE_LOST:
        return "VK_ERROR_DEVICE_LOST";
    case VK_ERROR_MEMORY_MAP_FAILED:
        return "VK_ERROR_MEMORY_MAP_FAILED";
    case VK_ERROR_LAYER_NOT_PRESENT:
        return "VK_ERROR_LAYER_NOT_PRESENT";
    case VK_ERROR_EXTENSION_NOT_PRESENT:
        return "VK_ERROR_EXTENSION_NOT_PRESENT";
    case VK_ERROR_FEATURE_NOT_PRESENT:
        return "VK_ERROR_FEATURE_NOT_PRESENT";
    case VK_ERROR_INCOMPATIBLE_DRIVER:
        return "VK_ERROR_INCOMPATIBLE_DRIVER";
    case VK_ERROR_TOO_MANY_OBJECTS:
        return "VK_ERROR_TOO_MANY_OBJECTS";
    case VK_ERROR_FRAGMENTED_POOL:
        return "VK_ERROR_FRAGMENTED_POOL";
    case VK_ERROR_OUT_OF_POOL_MEMORY:
        return "VK_ERROR_OUT_OF_POOL_MEMORY";
    case VK_ERROR_UNKNOWN:
        return "VK_ERROR_UNKNOWN";
    default:
        return "VkResult";
    }
}

static VKAPI_ATTR VkBool32 VKAPI_CALL message_received(
    VkDebugUtilsMessageSeverityFlagBitsEXT severity, VkDebugUtilsMessageTypeFlagsEXT types,
    const VkDebugUtilsMessengerCallbackDataEXT *data, void *user)
{
    ful_instance *instance = user;
    const char *id = data->pMessageIdName ? data->pMessageIdName : "";
    const char *text = data->pMessage ? data->pMessage : "";
    bool about_use = (types & (VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                               VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT)) != 0;
    bool error = (severity & VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT) != 0;
    /* volk asks for every function by vkGetDeviceProcAddr. */
    bool from_volk = strcmp(id, "WARNING-vkGetDeviceProcAddr-device") == 0;
    bool hazard = strncmp(id, "SYNC-HAZARD", 11) == 0;
    ful_log_level level = FUL_LOG_TRACE;
    if (about_use && (error || hazard)) {
        atomic_fetch_add(&instance->validation_errors, 1);
        level = FUL_LOG_ERROR;
    } else if (error || (severity & VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT)) {
        /* The loader reports drivers that it could not open as errors; they are not ours. */
        level = about_use && !from_volk ? FUL_LOG_WARNING : FUL_LOG_DEBUG;
    }
    log_write(&instance->log, level, "vulkan: %s: %s", id, text);
    return VK_FALSE;
}

static bool extension_listed(const VkExtensionProperties *list, uint32_t count, const char *name)
{
    for (uint32_t i = 0; i < count; i++)
        if (strcmp(list[i].extensionName, name) == 0)
            return true;
    return false;
}

static bool layer_present(const ful_alloc *a, const char *name)
{
    uint32_t count = 0;
    bool found = false;
    if (vkEnumerateInstanceLayerProperties(&count, NULL) != VK_SUCCESS || count == 0)
        return false;
    VkLayerProperties *layers = mem_array(a, count, sizeof(*layers));
    if (layers && vkEnumerateInstanceLayerProperties(&count, layers) >= VK_SUCCESS)
        for (uint32_t i = 0; i < count; i++)
            found = found || strcmp(layers[i].layerName, name) == 0;
    mem_free(a, layers);
    return found;
}

/* Without a usable loader only the built-in device is left, which is no error. */
static ful_result instance_open_vulkan(ful_instance *in, bool validation, const char *app_name)
{
    const log_sink *log = &in->log;
    if (device_named_built_in(getenv("FULGUR_DEVICE")))
        return FUL_OK; /* not even a driver that crashes is in the way */
    if (!loader_open()) {
        log_write(log, FUL_LOG_INFO, "no Vulkan loader found");
        return FUL_OK;
    }
    uint32_t loader_version = volkGetInstanceVersion();
    if (loader_version < VK_API_VERSION_1_1) {
        log_write(log, FUL_LOG_WARNING, "the Vulkan loader is older than 1.1");
        return FUL_OK;
    }
    in->api_version = loader_version < VK_API_VERSION_1_3 ? loader_version : VK_API_VERSION_1_3;

    uint32_t count = 0;
    VkExtensionProperties *list = NULL;
    if (vkEnumerateInstanceExtensionProperties(NULL, &count, NULL) == VK_SUCCESS && count > 0) {
        list = mem_array(&in->alloc, count, sizeof(*list));
        if (!list)
            return mem_fail(count * sizeof(*list), "the list of Vulkan extensions");
        if (vkEnumerateInstanceExtensionProperties(NULL, &count, list) < VK_SUCCESS)
            count = 0;
    }
    const char *extensions[4];
    const char *layers[1];
    VkInstanceCreateFlags flags = 0;
    uint32_t extension_count = 0, layer_count = 0;
    bool debug_utils = extension_listed(list, count, VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
#ifdef VK_KHR_portability_enumeration
    if (extension_listed(list, count, VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME)) {
        extensions[extension_count++] = VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME;
        flags |= VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR;
    }
#endif
    in->properties2 =
        extension_listed(list, count, VK_KHR_GET_PHYSICAL_DEVICE_PROPERTIES_2_EXTENSION_NAME);
    if (in->properties2)
        extensions[extension_count++] = VK_KHR_GET_PHYSICAL_DEVICE_PROPERTIES_2_EXTENSION_NAME;
    in->device_ids =
        in->properties2 &&
        extension_listed(list, count, VK_KHR_EXTERNAL_MEMORY_CAPABILITIES_EXTENSION_NAME);
    if (in->device_ids)
        extensions[extension_count++] = VK_KHR_EXTERNAL_MEMORY_CAPABILITIES_EXTENSION_NAME;
    mem_free(&in->alloc, list);
    if (validation) {
        if (layer_present(&in->alloc, LAYER_VALIDATION))
            layers[layer_count++] = LAYER_VALIDATION;
        else
            log_write(log, FUL_LOG_WARNING,
                      "validation was asked for, but " LAYER_VALIDATION " is not installed");
        /* The layer brings the extension even where no driver has it. */
        debug_utils = debug_utils || layer_count > 0;
    }
    if (debug_utils)
        extensions[extension_count++] = VK_EXT_DEBUG_UTILS_EXTENSION_NAME;

    VkDebugUtilsMessengerCreateInfoEXT messenger = {
        .sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT,
        .messageSeverity = VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT |
                           VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        .messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_GENERAL_BIT_EXT |
                       VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT |
                       VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT,
        .pfnUserCallback = message_received,
        .pUserData = in,
    };
    if (in->log.level >= FUL_LOG_TRACE)
        messenger.messageSeverity |= VK_DEBUG_UTILS_MESSAGE_SEVERITY_INFO_BIT_EXT;
    VkApplicationInfo app = {
        .sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
        .pApplicationName = app_name ? app_name : "fulgur",
        .pEngineName = "fulgur",
        .engineVersion = FUL_VERSION,
        .apiVersion = in->api_version,
    };
    VkInstanceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
        .pNext = debug_utils && validation ? &messenger : NULL,
        .flags = flags,
        .pApplicationInfo = &app,
        .enabledLayerCount = layer_count,
        .ppEnabledLayerNames = layers,
        .enabledExtensionCount = extension_count,
        .ppEnabledExtensionNames = extensions,
    };
    VkResult r = vkCreateInstance(&info, NULL, &in->vk);
    if (r != VK_SUCCESS) {
        in->vk = VK_NULL_HANDLE;
        if (r == VK_ERROR_OUT_OF_HOST_MEMORY)
            return fail(FUL_ERR_HOST_MEMORY, "vkCreateInstance failed with %s (%d)",
                        vk_result_name(r), (int)r);
        log_write(log, FUL_LOG_WARNING, "vkCreateInstance failed with %s (%d)", vk_result_name(r),
                  (int)r);
        return FUL_OK;
    }
    loader_fill(in->vk);
    if (!debug_utils)
        return FUL_OK;
    /* Extension functions belong to one instance, so volk's globals are not used for them. */
    PFN_vkCreateDebugUtilsMessengerEXT create =
        (PFN_vkCreateDebugUtilsMessengerEXT)vkGetInstanceProcAddr(in->vk,
                                                                  "vkCreateDebugUtilsMessengerEXT");
    in->destroy_messenger = (PFN_vkDestroyDebugUtilsMessengerEXT)vkGetInstanceProcAddr(
        in->vk, "vkDestroyDebugUtilsMessengerEXT");
    if (validation || in->log.level >= FUL_LOG_DEBUG)
        in->set_name = (PFN_vkSetDebugUtilsObjectNameEXT)vkGetInstanceProcAddr(
            in->vk, "vkSetDebugUtilsObjectNameEXT");
    if (validation && create && in->destroy_messenger &&
        create(in->vk, &messenger, NULL, &in->messenger) != VK_SUCCESS)
        in->messenger = VK_NULL_HANDLE;
    return FUL_OK;
}

ful_result ful_instance_create(ful_instance **out, const ful_instance_params *params)
{
    if (!out)
        return fail(FUL_ERR_ARGUMENT, "ful_instance_create: out is NULL");
    *out = NULL;
    ful_instance_params p;
    TRY(params_copy(&p, sizeof(p), params, "ful_instance_params"));
    ful_alloc alloc = mem_functions(p.alloc);
    ful_instance *in = mem_zalloc(&alloc, 1, sizeof(*in));
    if (!in)
        return mem_fail(sizeof(*in), "the instance");
    in->alloc = alloc;
    in->log.fn = p.log;
    in->log.ctx = p.log_ctx;
    in->log.level = p.log_level == FUL_LOG_DEFAULT ? FUL_LOG_INFO : p.log_level;
    const char *env = getenv("FULGUR_VALIDATION");
    bool validation = p.validation || (env && env[0] && strcmp(env, "0") != 0);
    ful_result r = instance_open_vulkan(in, validation, p.app_name);
    if (r != FUL_OK) {
        ful_instance_destroy(&in);
        return r;
    }
    *out = in;
    return FUL_OK;
}

void ful_instance_destroy(ful_instance **instance)
{
    if (!instance || !*instance)
        return;
    ful_instance *in = *instance;
    if (in->messenger)
        in->destroy_messenger(in->vk, in->messenger, NULL);
    if (in->vk)
        vkDestroyInstance(in->vk, NULL);
    ful_alloc alloc = in->alloc;
    mem_free(&alloc, in);
    *instance = NULL;
}

uint64_t ful_instance_validation_errors(const ful_instance *instance)
{
    return instance ? atomic_load(&instance->validation_errors) : 0;
}

const ful_alloc *instance_alloc(const ful_instance *instance)
{
    return &instance->alloc;
}

const log_sink *instance_log(const ful_instance *instance)
{
    return &instance->log;
}
