/* Reads physical devices, and creates logical ones with what was read. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "gpu/gpu_internal.h"

/* Extensions that became core in `core` (0: never). */
typedef enum extension {
    EXT_STORAGE_CLASS,
    EXT_MAINTENANCE3,
    EXT_8BIT,
    EXT_FLOAT16_INT8,
    EXT_DRIVER_PROPERTIES,
    EXT_BUFFER_ADDRESS,
    EXT_TIMELINE,
    EXT_MEMORY_MODEL,
    EXT_SUBGROUP_SIZE,
    EXT_INT_DOT,
    EXT_MAINTENANCE4,
    EXT_MEMORY_BUDGET,
    EXT_PCI_BUS,
    EXT_PORTABILITY,
    EXT_COOPMAT,
    EXT_COOPMAT2,
    EXT_COUNT
} extension;

static const struct extension_row {
    const char *name;
    uint32_t core;
} extension_rows[EXT_COUNT] = {
    [EXT_STORAGE_CLASS] = {VK_KHR_STORAGE_BUFFER_STORAGE_CLASS_EXTENSION_NAME, VK_API_VERSION_1_1},
    [EXT_MAINTENANCE3] = {VK_KHR_MAINTENANCE_3_EXTENSION_NAME, VK_API_VERSION_1_1},
    [EXT_8BIT] = {VK_KHR_8BIT_STORAGE_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_FLOAT16_INT8] = {VK_KHR_SHADER_FLOAT16_INT8_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_DRIVER_PROPERTIES] = {VK_KHR_DRIVER_PROPERTIES_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_BUFFER_ADDRESS] = {VK_KHR_BUFFER_DEVICE_ADDRESS_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_TIMELINE] = {VK_KHR_TIMELINE_SEMAPHORE_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_MEMORY_MODEL] = {VK_KHR_VULKAN_MEMORY_MODEL_EXTENSION_NAME, VK_API_VERSION_1_2},
    [EXT_SUBGROUP_SIZE] = {VK_EXT_SUBGROUP_SIZE_CONTROL_EXTENSION_NAME, VK_API_VERSION_1_3},
    [EXT_INT_DOT] = {VK_KHR_SHADER_INTEGER_DOT_PRODUCT_EXTENSION_NAME, VK_API_VERSION_1_3},
    [EXT_MAINTENANCE4] = {VK_KHR_MAINTENANCE_4_EXTENSION_NAME, VK_API_VERSION_1_3},
    [EXT_MEMORY_BUDGET] = {VK_EXT_MEMORY_BUDGET_EXTENSION_NAME, 0},
    [EXT_PCI_BUS] = {VK_EXT_PCI_BUS_INFO_EXTENSION_NAME, 0},
    [EXT_PORTABILITY] = {"VK_KHR_portability_subset", 0},
    [EXT_COOPMAT] = {"VK_KHR_cooperative_matrix", 0},
    [EXT_COOPMAT2] = {"VK_NV_cooperative_matrix2", 0},
};

/* A device without some of its extensions would be another one, or none. */
static ful_result extensions_fail(VkResult r)
{
    return fail(vk_result_code(r), "vkEnumerateDeviceExtensionProperties failed with %s (%d)",
                vk_result_name(r), (int)r);
}

/* Bit i: extension i can be used, in core or by name. */
static ful_result extensions_read(const ful_instance *in, VkPhysicalDevice physical,
                                  uint32_t api_version, uint32_t *usable)
{
    uint32_t count = 0;
    *usable = 0;
    for (uint32_t e = 0; e < EXT_COUNT; e++)
        if (extension_rows[e].core && api_version >= extension_rows[e].core)
            *usable |= 1u << e;
    VkResult r = vkEnumerateDeviceExtensionProperties(physical, NULL, &count, NULL);
    if (r != VK_SUCCESS)
        return extensions_fail(r);
    if (count == 0)
        return FUL_OK;
    VkExtensionProperties *list = mem_array(&in->alloc, count, sizeof(*list));
    if (!list)
        return mem_fail(count * sizeof(*list), "the list of device extensions");
    r = vkEnumerateDeviceExtensionProperties(physical, NULL, &count, list);
    for (uint32_t i = 0; i < count && r >= VK_SUCCESS; i++)
        for (uint32_t e = 0; e < EXT_COUNT; e++)
            if (strcmp(list[i].extensionName, extension_rows[e].name) == 0)
                *usable |= 1u << e;
    mem_free(&in->alloc, list);
    return r >= VK_SUCCESS ? FUL_OK : extensions_fail(r);
}

/* The optional feature structs, chained where the device knows them. Serves both for asking what
 * there is and for enabling it. */
typedef struct features {
    VkPhysicalDeviceFeatures2 base;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features float16_int8;
    VkPhysicalDeviceBufferDeviceAddressFeatures address;
    VkPhysicalDeviceTimelineSemaphoreFeatures timeline;
    VkPhysicalDeviceVulkanMemoryModelFeatures memory_model;
    VkPhysicalDeviceSubgroupSizeControlFeatures subgroup_size;
    VkPhysicalDeviceShaderIntegerDotProductFeatures int_dot;
#ifdef VK_KHR_cooperative_matrix
    VkPhysicalDeviceCooperativeMatrixFeaturesKHR coopmat;
#endif
#ifdef VK_NV_cooperative_matrix2
    VkPhysicalDeviceCooperativeMatrix2FeaturesNV coopmat2;
#endif
} features;

static void chain(void **tail, void *item, VkStructureType type)
{
    VkBaseOutStructure *s = item;
    s->sType = type;
    s->pNext = NULL;
    ((VkBaseOutStructure *)*tail)->pNext = s;
    *tail = s;
}

static void features_chain(features *f, uint32_t usable)
{
    memset(f, 0, sizeof(*f));
    f->base.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    void *tail = &f->base;
    chain(&tail, &f->storage16, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES);
    if (usable & 1u << EXT_8BIT)
        chain(&tail, &f->storage8, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES);
    if (usable & 1u << EXT_FLOAT16_INT8)
        chain(&tail, &f->float16_int8,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES);
    if (usable & 1u << EXT_BUFFER_ADDRESS)
        chain(&tail, &f->address, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES);
    if (usable & 1u << EXT_TIMELINE)
        chain(&tail, &f->timeline, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES);
    if (usable & 1u << EXT_MEMORY_MODEL)
        chain(&tail, &f->memory_model,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES);
    if (usable & 1u << EXT_SUBGROUP_SIZE)
        chain(&tail, &f->subgroup_size,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_FEATURES);
    if (usable & 1u << EXT_INT_DOT)
        chain(&tail, &f->int_dot,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_FEATURES);
#ifdef VK_KHR_cooperative_matrix
    if (usable & 1u << EXT_COOPMAT)
        chain(&tail, &f->coopmat,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_FEATURES_KHR);
#endif
#ifdef VK_NV_cooperative_matrix2
    if (usable & 1u << EXT_COOPMAT2)
        chain(&tail, &f->coopmat2,
              VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_COOPERATIVE_MATRIX_2_FEATURES_NV);
#endif
}

#ifdef VK_NV_cooperative_matrix2
static bool coopmat2_complete(const VkPhysicalDeviceCooperativeMatrix2FeaturesNV *f)
{
    return f->cooperativeMatrixWorkgroupScope && f->cooperativeMatrixFlexibleDimensions &&
           f->cooperativeMatrixReductions && f->cooperativeMatrixConversions &&
           f->cooperativeMatrixPerElementOperations && f->cooperativeMatrixTensorAddressing &&
           f->cooperativeMatrixBlockLoads;
}
#endif

static uint32_t features_bits(const features *f)
{
    uint32_t bits = 0;
    if (f->float16_int8.shaderFloat16)
        bits |= FUL_FEATURE_FP16;
    if (f->float16_int8.shaderInt8)
        bits |= FUL_FEATURE_INT8;
    if (f->storage16.storageBuffer16BitAccess)
        bits |= FUL_FEATURE_STORAGE16;
    if (f->storage8.storageBuffer8BitAccess)
        bits |= FUL_FEATURE_STORAGE8;
    if (f->address.bufferDeviceAddress)
        bits |= FUL_FEATURE_BUFFER_ADDRESS;
    if (f->timeline.timelineSemaphore)
        bits |= FUL_FEATURE_TIMELINE;
#ifdef VK_KHR_cooperative_matrix
    /* The shader extension speaks in terms of the Vulkan memory model. With that enabled, atomics
     * of every shader need the device scope, too. */
    if (f->coopmat.cooperativeMatrix && f->memory_model.vulkanMemoryModel &&
        f->memory_model.vulkanMemoryModelDeviceScope)
        bits |= FUL_FEATURE_COOPMAT;
#endif
#ifdef VK_NV_cooperative_matrix2
    if (coopmat2_complete(&f->coopmat2))
        bits |= FUL_FEATURE_COOPMAT2;
#endif
    return bits;
}

static ful_device_kind kind_of(VkPhysicalDeviceType type)
{
    switch (type) {
    case VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU:
        return FUL_DEVICE_INTEGRATED;
    case VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU:
        return FUL_DEVICE_DISCRETE;
    case VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU:
        return FUL_DEVICE_VIRTUAL;
    case VK_PHYSICAL_DEVICE_TYPE_CPU:
        return FUL_DEVICE_CPU;
    default:
        return FUL_DEVICE_OTHER;
    }
}

static uint32_t least32(uint32_t a, uint32_t b)
{
    return a < b ? a : b;
}

static void limits_read(const VkPhysicalDeviceLimits *l, ful_caps *caps)
{
    caps->workgroup_invocations = l->maxComputeWorkGroupInvocations;
    memcpy(caps->workgroup_size, l->maxComputeWorkGroupSize, sizeof(caps->workgroup_size));
    memcpy(caps->workgroup_count, l->maxComputeWorkGroupCount, sizeof(caps->workgroup_count));
    caps->shared_bytes = l->maxComputeSharedMemorySize;
    caps->push_bytes = l->maxPushConstantsSize;
    caps->storage_buffers =
        least32(l->maxPerStageDescriptorStorageBuffers,
                least32(l->maxDescriptorSetStorageBuffers, l->maxPerStageResources - 1));
    caps->storage_align_bytes = (uint32_t)l->minStorageBufferOffsetAlignment;
    caps->uniform_align_bytes = (uint32_t)l->minUniformBufferOffsetAlignment;
    caps->uniform_range_bytes = l->maxUniformBufferRange;
    caps->storage_range_bytes = l->maxStorageBufferRange;
    caps->non_coherent_atom_bytes = l->nonCoherentAtomSize;
    caps->timestamp_period_ns = (double)l->timestampPeriod;
}

static void driver_text(const VkPhysicalDeviceProperties *p,
                        const VkPhysicalDeviceDriverProperties *driver, char *out, size_t bytes)
{
    if (driver->driverName[0])
        snprintf(out, bytes, "%.120s%s%.120s", driver->driverName, driver->driverInfo[0] ? " " : "",
                 driver->driverInfo);
    else
        snprintf(out, bytes, "version 0x%08x", (unsigned)p->driverVersion);
}

/* A compute-only family leaves the graphics queue to the display; else the first that can compute.
 */
static bool queue_choose(const ful_instance *in, VkPhysicalDevice physical, device_facts *facts)
{
    VkQueueFamilyProperties families[16];
    uint32_t count = sizeof(families) / sizeof(families[0]);
    (void)in;
    vkGetPhysicalDeviceQueueFamilyProperties(physical, &count, families);
    uint32_t best = UINT32_MAX;
    for (uint32_t i = 0; i < count; i++) {
        if (!(families[i].queueFlags & VK_QUEUE_COMPUTE_BIT) || families[i].queueCount == 0)
            continue;
        bool alone = !(families[i].queueFlags & VK_QUEUE_GRAPHICS_BIT);
        if (best == UINT32_MAX ||
            (alone && (families[best].queueFlags & VK_QUEUE_GRAPHICS_BIT) &&
             families[i].timestampValidBits >= families[best].timestampValidBits))
            best = i;
    }
    if (best == UINT32_MAX)
        return false;
    facts->queue_family = best;
    facts->timestamp_bits = families[best].timestampValidBits;
    return true;
}

/* queue_choose, and whether the queue has timestamps: before anything is taken away, which takes
 * the period of absent ones. */
static bool queue_read(const ful_instance *in, device_facts *facts)
{
    ful_caps *caps = &facts->info.caps;
    bool queue = queue_choose(in, facts->physical, facts);
    if (queue && facts->timestamp_bits > 0 && caps->timestamp_period_ns > 0)
        caps->features |= FUL_FEATURE_TIMESTAMP;
    return queue;
}

/* What every device has, once its properties and features are read. */
static ful_result facts_settle(const VkPhysicalDeviceProperties *plain, VkDriverId driver,
                               bool queue, device_facts *facts)
{
    ful_device_info *info = &facts->info;
    ful_caps *caps = &info->caps;
    caps_remove(0, caps); /* makes what depends on absent features absent, too */
    facts->raw = *caps;
    caps_identity identity = {plain->vendorID, plain->deviceID, driver};
    caps_distrust(&identity, caps);
    TRY(caps_apply(getenv("FULGUR_CAPS"), "FULGUR_CAPS", info->kind, caps));
    info->usable = caps_meet_floor(caps, &facts->raw, info->why_not, sizeof(info->why_not));
    if (info->usable && !queue) {
        info->usable = false;
        snprintf(info->why_not, sizeof(info->why_not), "no queue that can compute");
    }
    return FUL_OK;
}

static void memory_read(device_facts *facts)
{
    ful_caps *caps = &facts->info.caps;
    vkGetPhysicalDeviceMemoryProperties(facts->physical, &facts->memory);
    caps->device_memory_bytes = memory_local_bytes(&facts->memory, false);
    caps->host_visible_local_bytes = memory_local_bytes(&facts->memory, true);
    caps->unified_memory = memory_is_unified(&facts->memory, facts->info.kind);
}

/* Vulkan 1.0 with two extensions is enough for the kernels of the floor. */
static ful_result facts_read_1_0(const ful_instance *in, const VkPhysicalDeviceProperties *plain,
                                 uint32_t usable, device_facts *facts)
{
    ful_device_info *info = &facts->info;
    ful_caps *caps = &info->caps;
    VkPhysicalDeviceDriverProperties driver;
    memset(&driver, 0, sizeof(driver));
    /* volk's globals are those of core; this one belongs to the instance. */
    PFN_vkGetPhysicalDeviceProperties2KHR get =
        (PFN_vkGetPhysicalDeviceProperties2KHR)vkGetInstanceProcAddr(
            in->vk, "vkGetPhysicalDeviceProperties2KHR");
    bool acceptable = in->properties2 && get != NULL && (usable & 1u << EXT_STORAGE_CLASS);
    memory_read(facts);
    caps->allocation_bytes = 1u << 30;
    caps->subgroup_size = caps->subgroup_min = caps->subgroup_max = 1;
    if (acceptable) {
        VkPhysicalDeviceProperties2 props = {.sType =
                                                 VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
        VkPhysicalDeviceIDProperties id;
        VkPhysicalDeviceMaintenance3Properties maintenance3;
        memset(&id, 0, sizeof(id));
        memset(&maintenance3, 0, sizeof(maintenance3));
        void *tail = &props;
        if (in->device_ids)
            chain(&tail, &id, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES);
        if (usable & 1u << EXT_DRIVER_PROPERTIES)
            chain(&tail, &driver, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES);
        if (usable & 1u << EXT_MAINTENANCE3)
            chain(&tail, &maintenance3, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES);
        get(facts->physical, &props);
        memcpy(info->uuid, id.deviceUUID, VK_UUID_SIZE);
        memcpy(facts->driver_uuid, id.driverUUID, VK_UUID_SIZE);
        if (maintenance3.maxMemoryAllocationSize > 0)
            caps->allocation_bytes = maintenance3.maxMemoryAllocationSize;
    }
    driver_text(plain, &driver, info->driver, sizeof(info->driver));
    bool queue = queue_read(in, facts);
    TRY(facts_settle(plain, driver.driverID, queue, facts));
    if (info->usable && !acceptable) {
        info->usable = false;
        snprintf(info->why_not, sizeof(info->why_not),
                 "Vulkan 1.0 without VK_KHR_get_physical_device_properties2 or "
                 "VK_KHR_storage_buffer_storage_class");
    }
    return FUL_OK;
}

ful_result facts_read(const ful_instance *in, VkPhysicalDevice physical, uint32_t index,
                      device_facts *facts)
{
    memset(facts, 0, sizeof(*facts));
    facts->physical = physical;
    VkPhysicalDeviceProperties plain;
    vkGetPhysicalDeviceProperties(physical, &plain);
    ful_device_info *info = &facts->info;
    ful_caps *caps = &info->caps;
    info->index = index;
    info->kind = kind_of(plain.deviceType);
    snprintf(info->name, sizeof(info->name), "%s", plain.deviceName);
    info->vendor_id = plain.vendorID;
    info->device_id = plain.deviceID;
    info->driver_version = plain.driverVersion;
    memcpy(facts->cache_uuid, plain.pipelineCacheUUID, VK_UUID_SIZE);
    facts->api_version = plain.apiVersion < in->api_version ? plain.apiVersion : in->api_version;
    caps->api_version = facts->api_version;
    limits_read(&plain.limits, caps);
    facts->max_allocations = plain.limits.maxMemoryAllocationCount;
    uint32_t usable;
    TRY(extensions_read(in, physical, facts->api_version, &usable));
    if (plain.apiVersion < VK_API_VERSION_1_1)
        return facts_read_1_0(in, &plain, usable, facts);

    VkPhysicalDeviceProperties2 props = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2};
    VkPhysicalDeviceIDProperties id;
    VkPhysicalDeviceSubgroupProperties subgroup;
    VkPhysicalDeviceMaintenance3Properties maintenance3;
    VkPhysicalDeviceDriverProperties driver;
    VkPhysicalDeviceMaintenance4Properties maintenance4;
    VkPhysicalDeviceSubgroupSizeControlProperties sizes;
    VkPhysicalDeviceShaderIntegerDotProductProperties dot;
    VkPhysicalDevicePCIBusInfoPropertiesEXT pci;
    memset(&id, 0, sizeof(id));
    memset(&subgroup, 0, sizeof(subgroup));
    memset(&maintenance3, 0, sizeof(maintenance3));
    memset(&driver, 0, sizeof(driver));
    memset(&maintenance4, 0, sizeof(maintenance4));
    memset(&sizes, 0, sizeof(sizes));
    memset(&dot, 0, sizeof(dot));
    memset(&pci, 0, sizeof(pci));
    void *tail = &props;
    chain(&tail, &id, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_ID_PROPERTIES);
    chain(&tail, &subgroup, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES);
    chain(&tail, &maintenance3, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES);
    if (usable & 1u << EXT_DRIVER_PROPERTIES)
        chain(&tail, &driver, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_DRIVER_PROPERTIES);
    if (usable & 1u << EXT_MAINTENANCE4)
        chain(&tail, &maintenance4, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_4_PROPERTIES);
    if (usable & 1u << EXT_SUBGROUP_SIZE)
        chain(&tail, &sizes, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_SIZE_CONTROL_PROPERTIES);
    if (usable & 1u << EXT_INT_DOT)
        chain(&tail, &dot, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_INTEGER_DOT_PRODUCT_PROPERTIES);
    if (usable & 1u << EXT_PCI_BUS)
        chain(&tail, &pci, VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PCI_BUS_INFO_PROPERTIES_EXT);
    vkGetPhysicalDeviceProperties2(physical, &props);
    features have;
    features_chain(&have, usable);
    vkGetPhysicalDeviceFeatures2(physical, &have.base);

    driver_text(&plain, &driver, info->driver, sizeof(info->driver));
    memcpy(info->uuid, id.deviceUUID, VK_UUID_SIZE);
    if (usable & 1u << EXT_PCI_BUS)
        snprintf(info->pci, sizeof(info->pci), "%04x:%02x:%02x.%x", pci.pciDomain, pci.pciBus,
                 pci.pciDevice, pci.pciFunction);
    memcpy(facts->driver_uuid, id.driverUUID, VK_UUID_SIZE);
    caps->allocation_bytes = maintenance3.maxMemoryAllocationSize;
    if (maintenance4.maxBufferSize && maintenance4.maxBufferSize < caps->allocation_bytes)
        caps->allocation_bytes = maintenance4.maxBufferSize;
    memory_read(facts);

    caps->features = features_bits(&have);
    caps->subgroup_size = subgroup.subgroupSize ? subgroup.subgroupSize : 1;
    caps->subgroup_min = sizes.minSubgroupSize ? sizes.minSubgroupSize : caps->subgroup_size;
    caps->subgroup_max = sizes.maxSubgroupSize ? sizes.maxSubgroupSize : caps->subgroup_size;
    const VkSubgroupFeatureFlags wanted = VK_SUBGROUP_FEATURE_BASIC_BIT |
                                          VK_SUBGROUP_FEATURE_ARITHMETIC_BIT |
                                          VK_SUBGROUP_FEATURE_SHUFFLE_BIT;
    if (subgroup.subgroupSize > 1 && (subgroup.supportedStages & VK_SHADER_STAGE_COMPUTE_BIT) &&
        (subgroup.supportedOperations & wanted) == wanted)
        caps->features |= FUL_FEATURE_SUBGROUP;
    if (have.subgroup_size.subgroupSizeControl && have.subgroup_size.computeFullSubgroups &&
        (sizes.requiredSubgroupSizeStages & VK_SHADER_STAGE_COMPUTE_BIT))
        caps->features |= FUL_FEATURE_SUBGROUP_SIZE;
    /* Intel reports its largest size, which leaves a lane a quarter of the registers that the
     * smallest does: kernels that keep sums in registers spill. */
    enum { VENDOR_INTEL = 0x8086 };
    if (plain.vendorID == VENDOR_INTEL && (caps->features & FUL_FEATURE_SUBGROUP_SIZE))
        caps->subgroup_size = caps->subgroup_min;
    if (have.int_dot.shaderIntegerDotProduct && dot.integerDotProduct4x8BitPackedSignedAccelerated)
        caps->features |= FUL_FEATURE_INT_DOT;
    if (usable & 1u << EXT_MEMORY_BUDGET)
        caps->features |= FUL_FEATURE_MEMORY_BUDGET;
    if (usable & 1u << EXT_PORTABILITY)
        caps->features |= FUL_FEATURE_PORTABILITY;
    bool queue = queue_read(in, facts);
    matrices_read(in->vk, physical, plain.vendorID, caps);
    return facts_settle(&plain, driver.driverID, queue, facts);
}

VkResult facts_create_device(const device_facts *facts, const ful_caps *caps, VkDevice *out)
{
    const struct {
        uint32_t feature;
        extension needs[2];
    } rows[] = {
        {FUL_FEATURE_STORAGE8, {EXT_8BIT, EXT_8BIT}},
        {FUL_FEATURE_FP16 | FUL_FEATURE_INT8, {EXT_FLOAT16_INT8, EXT_FLOAT16_INT8}},
        {FUL_FEATURE_BUFFER_ADDRESS, {EXT_BUFFER_ADDRESS, EXT_BUFFER_ADDRESS}},
        {FUL_FEATURE_TIMELINE, {EXT_TIMELINE, EXT_TIMELINE}},
        {FUL_FEATURE_SUBGROUP_SIZE, {EXT_SUBGROUP_SIZE, EXT_SUBGROUP_SIZE}},
        {FUL_FEATURE_INT_DOT, {EXT_INT_DOT, EXT_INT_DOT}},
        {FUL_FEATURE_MEMORY_BUDGET, {EXT_MEMORY_BUDGET, EXT_MEMORY_BUDGET}},
        {FUL_FEATURE_COOPMAT, {EXT_COOPMAT, EXT_MEMORY_MODEL}},
        {FUL_FEATURE_COOPMAT2, {EXT_COOPMAT2, EXT_COOPMAT2}},
    };
    uint32_t wanted = 0;
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        if (caps->features & rows[i].feature)
            wanted |= 1u << rows[i].needs[0] | 1u << rows[i].needs[1];
    /* A device that lists the portability subset must be created with it, masked or not. */
    if (facts->raw.features & FUL_FEATURE_PORTABILITY)
        wanted |= 1u << EXT_PORTABILITY;
    bool old = facts->api_version < VK_API_VERSION_1_1;
    if (old)
        wanted |= 1u << EXT_STORAGE_CLASS;

    features f;
    features_chain(&f, wanted);
    f.storage16.storageBuffer16BitAccess = (caps->features & FUL_FEATURE_STORAGE16) != 0;
    f.storage8.storageBuffer8BitAccess = (caps->features & FUL_FEATURE_STORAGE8) != 0;
    f.float16_int8.shaderFloat16 = (caps->features & FUL_FEATURE_FP16) != 0;
    f.float16_int8.shaderInt8 = (caps->features & FUL_FEATURE_INT8) != 0;
    f.address.bufferDeviceAddress = (caps->features & FUL_FEATURE_BUFFER_ADDRESS) != 0;
    f.timeline.timelineSemaphore = (caps->features & FUL_FEATURE_TIMELINE) != 0;
    f.subgroup_size.subgroupSizeControl = (caps->features & FUL_FEATURE_SUBGROUP_SIZE) != 0;
    f.subgroup_size.computeFullSubgroups = (caps->features & FUL_FEATURE_SUBGROUP_SIZE) != 0;
    f.int_dot.shaderIntegerDotProduct = (caps->features & FUL_FEATURE_INT_DOT) != 0;
    f.memory_model.vulkanMemoryModel = (caps->features & FUL_FEATURE_COOPMAT) != 0;
    f.memory_model.vulkanMemoryModelDeviceScope = (caps->features & FUL_FEATURE_COOPMAT) != 0;
#ifdef VK_KHR_cooperative_matrix
    f.coopmat.cooperativeMatrix = (caps->features & FUL_FEATURE_COOPMAT) != 0;
#endif
#ifdef VK_NV_cooperative_matrix2
    VkBool32 coopmat2 = (caps->features & FUL_FEATURE_COOPMAT2) != 0;
    f.coopmat2.cooperativeMatrixWorkgroupScope = coopmat2;
    f.coopmat2.cooperativeMatrixFlexibleDimensions = coopmat2;
    f.coopmat2.cooperativeMatrixReductions = coopmat2;
    f.coopmat2.cooperativeMatrixConversions = coopmat2;
    f.coopmat2.cooperativeMatrixPerElementOperations = coopmat2;
    f.coopmat2.cooperativeMatrixTensorAddressing = coopmat2;
    f.coopmat2.cooperativeMatrixBlockLoads = coopmat2;
#endif

    const char *names[EXT_COUNT];
    uint32_t name_count = 0;
    for (uint32_t e = 0; e < EXT_COUNT; e++) {
        bool in_core = extension_rows[e].core && facts->api_version >= extension_rows[e].core;
        if ((wanted & 1u << e) && !in_core)
            names[name_count++] = extension_rows[e].name;
    }
    const float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
        .queueFamilyIndex = facts->queue_family,
        .queueCount = 1,
        .pQueuePriorities = &priority,
    };
    VkDeviceCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
        .pNext = old ? NULL : &f.base,
        .queueCreateInfoCount = 1,
        .pQueueCreateInfos = &queue,
        .enabledExtensionCount = name_count,
        .ppEnabledExtensionNames = names,
    };
    return vkCreateDevice(facts->physical, &info, NULL, out);
}
