/* What the driver reports, cut down to the profile: properties, features, extensions. */
#include "layer.h"

#include <stdio.h>
#include <string.h>

/* Structs of the chains that exist with an extension, or from a version on. */
typedef struct struct_row {
    VkStructureType type;
    size_t bytes;
    const char *extension;
    uint32_t core; /* 0: never */
    bool features; /* else properties */
} struct_row;

#define FEATURES(type, name, extension, core)                                                      \
    {                                                                                              \
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##type, sizeof(VkPhysicalDevice##name), extension, core, \
            true                                                                                   \
    }
#define PROPERTIES(type, name, extension, core)                                                    \
    {                                                                                              \
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##type, sizeof(VkPhysicalDevice##name), extension, core, \
            false                                                                                  \
    }

static const struct_row struct_rows[] = {
    FEATURES(16BIT_STORAGE_FEATURES, 16BitStorageFeatures, "VK_KHR_16bit_storage",
             VK_API_VERSION_1_1),
    FEATURES(VARIABLE_POINTERS_FEATURES, VariablePointersFeatures, "VK_KHR_variable_pointers",
             VK_API_VERSION_1_1),
    FEATURES(8BIT_STORAGE_FEATURES, 8BitStorageFeatures, "VK_KHR_8bit_storage", VK_API_VERSION_1_2),
    FEATURES(SHADER_FLOAT16_INT8_FEATURES, ShaderFloat16Int8Features, "VK_KHR_shader_float16_int8",
             VK_API_VERSION_1_2),
    FEATURES(BUFFER_DEVICE_ADDRESS_FEATURES, BufferDeviceAddressFeatures,
             "VK_KHR_buffer_device_address", VK_API_VERSION_1_2),
    FEATURES(TIMELINE_SEMAPHORE_FEATURES, TimelineSemaphoreFeatures, "VK_KHR_timeline_semaphore",
             VK_API_VERSION_1_2),
    FEATURES(VULKAN_MEMORY_MODEL_FEATURES, VulkanMemoryModelFeatures, "VK_KHR_vulkan_memory_model",
             VK_API_VERSION_1_2),
    FEATURES(SCALAR_BLOCK_LAYOUT_FEATURES, ScalarBlockLayoutFeatures, "VK_EXT_scalar_block_layout",
             VK_API_VERSION_1_2),
    FEATURES(HOST_QUERY_RESET_FEATURES, HostQueryResetFeatures, "VK_EXT_host_query_reset",
             VK_API_VERSION_1_2),
    FEATURES(SUBGROUP_SIZE_CONTROL_FEATURES, SubgroupSizeControlFeatures,
             "VK_EXT_subgroup_size_control", VK_API_VERSION_1_3),
    FEATURES(SHADER_INTEGER_DOT_PRODUCT_FEATURES, ShaderIntegerDotProductFeatures,
             "VK_KHR_shader_integer_dot_product", VK_API_VERSION_1_3),
    FEATURES(SYNCHRONIZATION_2_FEATURES, Synchronization2Features, "VK_KHR_synchronization2",
             VK_API_VERSION_1_3),
    FEATURES(MAINTENANCE_4_FEATURES, Maintenance4Features, "VK_KHR_maintenance4",
             VK_API_VERSION_1_3),
    FEATURES(VULKAN_1_1_FEATURES, Vulkan11Features, NULL, VK_API_VERSION_1_2),
    FEATURES(VULKAN_1_2_FEATURES, Vulkan12Features, NULL, VK_API_VERSION_1_2),
    FEATURES(VULKAN_1_3_FEATURES, Vulkan13Features, NULL, VK_API_VERSION_1_3),
#ifdef VK_API_VERSION_1_4
    FEATURES(VULKAN_1_4_FEATURES, Vulkan14Features, NULL, VK_API_VERSION_1_4),
    PROPERTIES(VULKAN_1_4_PROPERTIES, Vulkan14Properties, NULL, VK_API_VERSION_1_4),
#endif
    PROPERTIES(VULKAN_1_1_PROPERTIES, Vulkan11Properties, NULL, VK_API_VERSION_1_2),
    PROPERTIES(VULKAN_1_2_PROPERTIES, Vulkan12Properties, NULL, VK_API_VERSION_1_2),
    PROPERTIES(VULKAN_1_3_PROPERTIES, Vulkan13Properties, NULL, VK_API_VERSION_1_3),
    PROPERTIES(SUBGROUP_PROPERTIES, SubgroupProperties, NULL, VK_API_VERSION_1_1),
    PROPERTIES(MAINTENANCE_3_PROPERTIES, Maintenance3Properties, "VK_KHR_maintenance3",
               VK_API_VERSION_1_1),
    PROPERTIES(DRIVER_PROPERTIES, DriverProperties, "VK_KHR_driver_properties", VK_API_VERSION_1_2),
    PROPERTIES(SUBGROUP_SIZE_CONTROL_PROPERTIES, SubgroupSizeControlProperties,
               "VK_EXT_subgroup_size_control", VK_API_VERSION_1_3),
    PROPERTIES(SHADER_INTEGER_DOT_PRODUCT_PROPERTIES, ShaderIntegerDotProductProperties,
               "VK_KHR_shader_integer_dot_product", VK_API_VERSION_1_3),
    PROPERTIES(MAINTENANCE_4_PROPERTIES, Maintenance4Properties, "VK_KHR_maintenance4",
               VK_API_VERSION_1_3),
    PROPERTIES(PCI_BUS_INFO_PROPERTIES_EXT, PCIBusInfoPropertiesEXT, "VK_EXT_pci_bus_info", 0),
    PROPERTIES(PUSH_DESCRIPTOR_PROPERTIES_KHR, PushDescriptorPropertiesKHR,
               "VK_KHR_push_descriptor", 0),
    PROPERTIES(EXTERNAL_MEMORY_HOST_PROPERTIES_EXT, ExternalMemoryHostPropertiesEXT,
               "VK_EXT_external_memory_host", 0),
#ifdef VK_KHR_cooperative_matrix
    FEATURES(COOPERATIVE_MATRIX_FEATURES_KHR, CooperativeMatrixFeaturesKHR,
             "VK_KHR_cooperative_matrix", 0),
    PROPERTIES(COOPERATIVE_MATRIX_PROPERTIES_KHR, CooperativeMatrixPropertiesKHR,
               "VK_KHR_cooperative_matrix", 0),
#endif
#ifdef VK_NV_cooperative_matrix2
    FEATURES(COOPERATIVE_MATRIX_2_FEATURES_NV, CooperativeMatrix2FeaturesNV,
             "VK_NV_cooperative_matrix2", 0),
    PROPERTIES(COOPERATIVE_MATRIX_2_PROPERTIES_NV, CooperativeMatrix2PropertiesNV,
               "VK_NV_cooperative_matrix2", 0),
#endif
};

/* Features that have a name in profiles: where a profile lists features, all others are off. */
typedef struct feature_row {
    VkStructureType type;
    size_t offset;
    const char *name;
} feature_row;

#define NAMED(type, name, field)                                                                   \
    {                                                                                              \
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_##type, offsetof(VkPhysicalDevice##name, field), #field  \
    }
/* A feature of an extension that became core. */
#define TWICE(type, name, version, field)                                                          \
    NAMED(type, name, field),                                                                      \
        NAMED(VULKAN_1_##version##_FEATURES, Vulkan1##version##Features, field)
#define PLAIN(field)                                                                               \
    {                                                                                              \
        VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,                                              \
            offsetof(VkPhysicalDeviceFeatures2, features) +                                        \
                offsetof(VkPhysicalDeviceFeatures, field),                                         \
            #field                                                                                 \
    }

static const feature_row feature_rows[] = {
    PLAIN(robustBufferAccess),
    PLAIN(shaderInt16),
    PLAIN(shaderInt64),
    PLAIN(shaderFloat64),
    PLAIN(pipelineStatisticsQuery),
    PLAIN(sparseBinding),
    TWICE(16BIT_STORAGE_FEATURES, 16BitStorageFeatures, 1, storageBuffer16BitAccess),
    TWICE(16BIT_STORAGE_FEATURES, 16BitStorageFeatures, 1, uniformAndStorageBuffer16BitAccess),
    TWICE(16BIT_STORAGE_FEATURES, 16BitStorageFeatures, 1, storagePushConstant16),
    TWICE(VARIABLE_POINTERS_FEATURES, VariablePointersFeatures, 1, variablePointers),
    TWICE(VARIABLE_POINTERS_FEATURES, VariablePointersFeatures, 1, variablePointersStorageBuffer),
    TWICE(8BIT_STORAGE_FEATURES, 8BitStorageFeatures, 2, storageBuffer8BitAccess),
    TWICE(8BIT_STORAGE_FEATURES, 8BitStorageFeatures, 2, uniformAndStorageBuffer8BitAccess),
    TWICE(8BIT_STORAGE_FEATURES, 8BitStorageFeatures, 2, storagePushConstant8),
    TWICE(SHADER_FLOAT16_INT8_FEATURES, ShaderFloat16Int8Features, 2, shaderFloat16),
    TWICE(SHADER_FLOAT16_INT8_FEATURES, ShaderFloat16Int8Features, 2, shaderInt8),
    TWICE(BUFFER_DEVICE_ADDRESS_FEATURES, BufferDeviceAddressFeatures, 2, bufferDeviceAddress),
    TWICE(TIMELINE_SEMAPHORE_FEATURES, TimelineSemaphoreFeatures, 2, timelineSemaphore),
    TWICE(VULKAN_MEMORY_MODEL_FEATURES, VulkanMemoryModelFeatures, 2, vulkanMemoryModel),
    TWICE(VULKAN_MEMORY_MODEL_FEATURES, VulkanMemoryModelFeatures, 2, vulkanMemoryModelDeviceScope),
    TWICE(SCALAR_BLOCK_LAYOUT_FEATURES, ScalarBlockLayoutFeatures, 2, scalarBlockLayout),
    TWICE(HOST_QUERY_RESET_FEATURES, HostQueryResetFeatures, 2, hostQueryReset),
    TWICE(SUBGROUP_SIZE_CONTROL_FEATURES, SubgroupSizeControlFeatures, 3, subgroupSizeControl),
    TWICE(SUBGROUP_SIZE_CONTROL_FEATURES, SubgroupSizeControlFeatures, 3, computeFullSubgroups),
    TWICE(SHADER_INTEGER_DOT_PRODUCT_FEATURES, ShaderIntegerDotProductFeatures, 3,
          shaderIntegerDotProduct),
    TWICE(SYNCHRONIZATION_2_FEATURES, Synchronization2Features, 3, synchronization2),
    TWICE(MAINTENANCE_4_FEATURES, Maintenance4Features, 3, maintenance4),
#ifdef VK_KHR_cooperative_matrix
    NAMED(COOPERATIVE_MATRIX_FEATURES_KHR, CooperativeMatrixFeaturesKHR, cooperativeMatrix),
#endif
};
enum {
    STRUCT_ROWS = sizeof(struct_rows) / sizeof(struct_rows[0]),
    FEATURE_ROWS = sizeof(feature_rows) / sizeof(feature_rows[0])
};

bool feature_known(const char *name)
{
    for (size_t i = 0; i < FEATURE_ROWS; i++)
        if (strcmp(feature_rows[i].name, name) == 0)
            return true;
    /* The headers this was built with may be older. */
    return strcmp(name, "cooperativeMatrix") == 0;
}

static const struct_row *row_find(VkStructureType type)
{
    for (size_t i = 0; i < STRUCT_ROWS; i++)
        if (struct_rows[i].type == type)
            return &struct_rows[i];
    return NULL;
}

static bool feature_allowed(const profile *p, VkStructureType type, size_t offset)
{
    const char *name = NULL;
    for (size_t i = 0; i < FEATURE_ROWS && !name; i++)
        if (feature_rows[i].type == type && feature_rows[i].offset == offset)
            name = feature_rows[i].name;
    if (name && words_hold(p->off, name))
        return false;
    return !p->lists_features || (name && words_hold(p->features, name));
}

bool extension_allowed(const profile *p, const char *name)
{
    return !words_hold(p->hide, name) && (!p->lists_extensions || words_hold(p->extensions, name));
}

/* Whether a device of this version has the struct: by core, or by an extension that is shown. */
static bool row_present(const profile *p, const struct_row *row, uint32_t api_version)
{
    return (row->core && api_version >= row->core) ||
           (row->extension && extension_allowed(p, row->extension));
}

static VkBool32 *bool_at(void *s, size_t offset)
{
    return (VkBool32 *)((char *)s + offset);
}

void restrict_features(const profile *p, uint32_t api_version, VkPhysicalDeviceFeatures2 *f)
{
    size_t first = offsetof(VkPhysicalDeviceFeatures2, features);
    for (size_t o = 0; o < sizeof(f->features); o += sizeof(VkBool32))
        if (!feature_allowed(p, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, first + o))
            *bool_at(f, first + o) = VK_FALSE;
    for (VkBaseOutStructure *s = f->pNext; s; s = s->pNext) {
        const struct_row *row = row_find(s->sType);
        if (!row || !row->features)
            continue;
        bool present = row_present(p, row, api_version);
        for (size_t o = sizeof(*s); o + sizeof(VkBool32) <= row->bytes; o += sizeof(VkBool32))
            if (!present || !feature_allowed(p, s->sType, o))
                *bool_at(s, o) = VK_FALSE;
    }
}

bool features_permitted(const profile *p, uint32_t api_version, const VkDeviceCreateInfo *info)
{
    const size_t first = offsetof(VkPhysicalDeviceFeatures2, features);
    if (info->pEnabledFeatures)
        for (size_t o = 0; o < sizeof(VkPhysicalDeviceFeatures); o += sizeof(VkBool32))
            if (*(const VkBool32 *)((const char *)info->pEnabledFeatures + o) == VK_TRUE &&
                !feature_allowed(p, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2, first + o))
                return false;
    for (const VkBaseInStructure *s = info->pNext; s; s = s->pNext) {
        const struct_row *row = row_find(s->sType);
        bool base = s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
        if (!base && (!row || !row->features)) {
            /* What is not known can't be let through where features are listed. */
            if (p->lists_features && s->sType != VK_STRUCTURE_TYPE_LOADER_DEVICE_CREATE_INFO &&
                s->sType != VK_STRUCTURE_TYPE_DEVICE_GROUP_DEVICE_CREATE_INFO)
                return false;
            continue;
        }
        bool present = base || row_present(p, row, api_version);
        size_t bytes = base ? sizeof(VkPhysicalDeviceFeatures2) : row->bytes;
        for (size_t o = sizeof(*s); o + sizeof(VkBool32) <= bytes; o += sizeof(VkBool32))
            /* The last may be padding. */
            if (*(const VkBool32 *)((const char *)s + o) == VK_TRUE &&
                (!present || !feature_allowed(p, s->sType, o)))
                return false;
    }
    return true;
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static void limit_apply(const profile_limit *l, VkPhysicalDeviceLimits *out)
{
    for (uint32_t i = 0; i < l->row->count; i++) {
        char *at = (char *)out + l->row->offset + i * l->row->bytes;
        uint32_t v32 = 0;
        uint64_t v = 0;
        memcpy(l->row->bytes == 4 ? (void *)&v32 : (void *)&v, at, l->row->bytes);
        if (l->row->bytes == 4)
            v = v32;
        if (l->row->raises ? v < l->value[i] : v > l->value[i])
            v = l->value[i];
        v32 = (uint32_t)v;
        memcpy(at, l->row->bytes == 4 ? (void *)&v32 : (void *)&v, l->row->bytes);
    }
}

void restrict_properties(const profile *p, VkPhysicalDeviceProperties *out)
{
    char name[VK_MAX_PHYSICAL_DEVICE_NAME_SIZE];
    snprintf(name, sizeof(name), "%s on %.150s", p->name, out->deviceName);
    memcpy(out->deviceName, name, sizeof(name));
    if (p->api_version && p->api_version < out->apiVersion)
        out->apiVersion = p->api_version;
    if (p->device_type >= 0)
        out->deviceType = (VkPhysicalDeviceType)p->device_type;
    if (p->vendor_id)
        out->vendorID = p->vendor_id;
    for (size_t i = 0; i < p->limit_count; i++)
        limit_apply(&p->limits[i], &out->limits);
    if (p->timestamp_period > 0.0)
        out->limits.timestampPeriod = (float)p->timestamp_period;
}

static void subgroup_restrict(const profile *p, uint32_t *size, VkSubgroupFeatureFlags *operations)
{
    if (p->subgroup_size)
        *size = p->subgroup_size;
    if (p->masks_subgroup)
        *operations &= p->subgroup_operations;
}

void restrict_properties2(const profile *p, VkPhysicalDeviceProperties2 *out)
{
    restrict_properties(p, &out->properties);
    for (VkBaseOutStructure *s = out->pNext; s; s = s->pNext) {
        const struct_row *row = row_find(s->sType);
        void *any = s;
        if (row && !row_present(p, row, out->properties.apiVersion)) {
            memset((char *)s + sizeof(*s), 0, row->bytes - sizeof(*s));
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES) {
            VkPhysicalDeviceMaintenance3Properties *m = any;
            if (p->allocation_bytes)
                m->maxMemoryAllocationSize = least(m->maxMemoryAllocationSize, p->allocation_bytes);
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES) {
            VkPhysicalDeviceMaintenance4Properties *m = any;
            if (p->buffer_bytes)
                m->maxBufferSize = least(m->maxBufferSize, p->buffer_bytes);
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES) {
            VkPhysicalDeviceSubgroupProperties *g = any;
            subgroup_restrict(p, &g->subgroupSize, &g->supportedOperations);
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES) {
            VkPhysicalDeviceSubgroupSizeControlProperties *g = any;
            if (p->subgroup_size)
                g->minSubgroupSize = g->maxSubgroupSize = p->subgroup_size;
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES) {
            VkPhysicalDeviceDriverProperties *d = any;
            if (p->driver_id)
                d->driverID = (VkDriverId)p->driver_id;
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_1_PROPERTIES) {
            VkPhysicalDeviceVulkan11Properties *v = any;
            if (p->allocation_bytes)
                v->maxMemoryAllocationSize = least(v->maxMemoryAllocationSize, p->allocation_bytes);
            subgroup_restrict(p, &v->subgroupSize, &v->subgroupSupportedOperations);
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_PROPERTIES) {
            VkPhysicalDeviceVulkan12Properties *v = any;
            if (p->driver_id)
                v->driverID = (VkDriverId)p->driver_id;
        } else if (s->sType == VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_3_PROPERTIES) {
            VkPhysicalDeviceVulkan13Properties *v = any;
            if (p->buffer_bytes)
                v->maxBufferSize = least(v->maxBufferSize, p->buffer_bytes);
            if (p->subgroup_size)
                v->minSubgroupSize = v->maxSubgroupSize = p->subgroup_size;
        }
    }
}
