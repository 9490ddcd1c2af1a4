/* The layer holds a device to its profile: what is asked, what is enabled, what is allocated, and
 * what goes through memory that is not coherent. The driver's own device must be able to do what is
 * refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>
#include <volk.h>

typedef struct device_at {
    VkInstance instance;
    VkPhysicalDevice physical;
    VkDevice device;
    struct VolkDeviceTable fn;
} device_at;

static VkResult instance_try(const char *profile, VkInstance *out)
{
    VkApplicationInfo app = {.sType = VK_STRUCTURE_TYPE_APPLICATION_INFO,
                             .apiVersion = VK_API_VERSION_1_3};
    VkInstanceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_INSTANCE_CREATE_INFO,
                                 .pApplicationInfo = &app};
    setenv("FULGUR_LAYER_PROFILE", profile, 1);
    return vkCreateInstance(&info, NULL, out);
}

static device_at at(const char *profile)
{
    device_at d = {.device = VK_NULL_HANDLE};
    uint32_t count = 1;
    assert_int_equal(instance_try(profile, &d.instance), VK_SUCCESS);
    volkLoadInstanceOnly(d.instance);
    assert_true(vkEnumeratePhysicalDevices(d.instance, &count, &d.physical) >= VK_SUCCESS);
    assert_int_equal(count, 1);
    return d;
}

static VkResult device_try(device_at *d, const void *chain, const char *extension, uint32_t family)
{
    const float priority = 1.0f;
    VkDeviceQueueCreateInfo queue = {.sType = VK_STRUCTURE_TYPE_DEVICE_QUEUE_CREATE_INFO,
                                     .queueFamilyIndex = family,
                                     .queueCount = 1,
                                     .pQueuePriorities = &priority};
    VkDeviceCreateInfo info = {.sType = VK_STRUCTURE_TYPE_DEVICE_CREATE_INFO,
                               .pNext = chain,
                               .queueCreateInfoCount = 1,
                               .pQueueCreateInfos = &queue,
                               .enabledExtensionCount = extension != NULL,
                               .ppEnabledExtensionNames = &extension};
    VkResult r = vkCreateDevice(d->physical, &info, NULL, &d->device);
    if (r == VK_SUCCESS)
        volkLoadDeviceTable(&d->fn, d->device);
    else
        d->device = VK_NULL_HANDLE;
    return r;
}

static void done(device_at *d)
{
    if (d->device)
        d->fn.vkDestroyDevice(d->device, NULL);
    vkDestroyInstance(d->instance, NULL);
}

static bool has_extension(const device_at *d, const char *name)
{
    uint32_t count = 0;
    bool found = false;
    assert_int_equal(vkEnumerateDeviceExtensionProperties(d->physical, NULL, &count, NULL),
                     VK_SUCCESS);
    VkExtensionProperties *list = calloc(count + 1, sizeof *list);
    assert_int_equal(vkEnumerateDeviceExtensionProperties(d->physical, NULL, &count, list),
                     VK_SUCCESS);
    for (uint32_t i = 0; i < count; i++)
        found |= strcmp(list[i].extensionName, name) == 0;
    free(list);
    return found;
}

/* True if the device can be created with it; it must refuse by this code if not. */
static bool creates(const char *profile, const void *chain, const char *extension, VkResult refusal)
{
    device_at d = at(profile);
    VkResult r = device_try(&d, chain, extension, 0);
    done(&d);
    if (r != VK_SUCCESS)
        assert_int_equal(r, refusal);
    return r == VK_SUCCESS;
}

static void test_limits(void **state)
{
    (void)state;
    VkPhysicalDeviceProperties wide, narrow;
    device_at d = at("driver");
    vkGetPhysicalDeviceProperties(d.physical, &wide);
    done(&d);
    d = at("powervr");
    VkPhysicalDeviceSubgroupProperties subgroup = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SUBGROUP_PROPERTIES};
    VkPhysicalDeviceProperties2 two = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                       .pNext = &subgroup};
    vkGetPhysicalDeviceProperties(d.physical, &narrow);
    vkGetPhysicalDeviceProperties2(d.physical, &two);
    done(&d);
    assert_true(wide.apiVersion >= VK_API_VERSION_1_3);
    assert_true(wide.limits.maxComputeWorkGroupInvocations > 128);
    const VkPhysicalDeviceProperties *both[] = {&narrow, &two.properties};
    for (int i = 0; i < 2; i++) {
        const VkPhysicalDeviceLimits *l = &both[i]->limits;
        assert_int_equal(both[i]->apiVersion, VK_API_VERSION_1_2);
        assert_int_equal(both[i]->vendorID, 0x1010);
        assert_int_equal(l->maxComputeWorkGroupInvocations, 128);
        assert_int_equal(l->maxComputeWorkGroupSize[2], 64);
        assert_int_equal(l->maxComputeSharedMemorySize, 16384);
        assert_int_equal(l->maxPerStageDescriptorStorageBuffers, 8);
        assert_int_equal(l->maxPushConstantsSize, 128);
    }
    assert_int_equal(subgroup.subgroupSize, 1);
    assert_int_equal(subgroup.supportedOperations, VK_SUBGROUP_FEATURE_BASIC_BIT);
}

typedef struct chain {
    VkPhysicalDeviceFeatures2 base;
    VkPhysicalDevice16BitStorageFeatures storage16;
    VkPhysicalDevice8BitStorageFeatures storage8;
    VkPhysicalDeviceShaderFloat16Int8Features small;
    VkPhysicalDeviceSynchronization2Features sync2;
    VkPhysicalDeviceBufferDeviceAddressFeatures address;
    VkPhysicalDeviceVulkanMemoryModelFeatures model;
    VkPhysicalDeviceTimelineSemaphoreFeatures timeline;
} chain;

static void chain_make(chain *c)
{
    memset(c, 0, sizeof *c);
    c->base.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2;
    c->base.pNext = &c->storage16;
    c->storage16.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_16BIT_STORAGE_FEATURES;
    c->storage16.pNext = &c->storage8;
    c->storage8.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_8BIT_STORAGE_FEATURES;
    c->storage8.pNext = &c->small;
    c->small.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SHADER_FLOAT16_INT8_FEATURES;
    c->small.pNext = &c->sync2;
    c->sync2.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_SYNCHRONIZATION_2_FEATURES;
    c->sync2.pNext = &c->address;
    c->address.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES;
    c->address.pNext = &c->model;
    c->model.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_MEMORY_MODEL_FEATURES;
    c->model.pNext = &c->timeline;
    c->timeline.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES;
}

static chain chain_ask(const char *profile)
{
    chain c;
    device_at d = at(profile);
    chain_make(&c);
    vkGetPhysicalDeviceFeatures2(d.physical, &c.base);
    done(&d);
    return c;
}

static void test_features(void **state)
{
    (void)state;
    chain wide = chain_ask("driver"), narrow = chain_ask("powervr");
    assert_true(wide.sync2.synchronization2 && wide.address.bufferDeviceAddress &&
                wide.model.vulkanMemoryModel && wide.timeline.timelineSemaphore &&
                wide.base.features.samplerAnisotropy);
    assert_false(narrow.storage16.storageBuffer16BitAccess);
    assert_false(narrow.storage8.storageBuffer8BitAccess);
    assert_false(narrow.small.shaderFloat16);
    assert_false(narrow.sync2.synchronization2);
    assert_false(narrow.address.bufferDeviceAddress);
    assert_false(narrow.model.vulkanMemoryModel);
    assert_false(narrow.base.features.samplerAnisotropy); /* not listed, not even named */
    assert_true(narrow.timeline.timelineSemaphore);
    assert_true(narrow.base.features.robustBufferAccess);

    /* Extensions that are not listed do not show. */
    device_at d = at("driver");
    assert_true(has_extension(&d, "VK_KHR_vulkan_memory_model"));
    done(&d);
    d = at("mali-g52");
    assert_true(has_extension(&d, "VK_KHR_timeline_semaphore"));
    assert_false(has_extension(&d, "VK_KHR_vulkan_memory_model"));
    done(&d);

    /* The same through the struct of a whole version. */
    VkPhysicalDeviceVulkan12Features twelve = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES};
    VkPhysicalDeviceFeatures2 f = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                   .pNext = &twelve};
    d = at("adreno618");
    vkGetPhysicalDeviceFeatures2(d.physical, &f);
    done(&d);
    assert_true(twelve.timelineSemaphore && twelve.bufferDeviceAddress);
    assert_false(twelve.storageBuffer8BitAccess);
    assert_false(twelve.descriptorIndexing);
}

static void test_refusals(void **state)
{
    (void)state;
    const VkResult no_feature = VK_ERROR_FEATURE_NOT_PRESENT;
    VkPhysicalDeviceTimelineSemaphoreFeatures timeline = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_TIMELINE_SEMAPHORE_FEATURES,
        .timelineSemaphore = VK_TRUE};
    VkPhysicalDeviceBufferDeviceAddressFeatures address = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_BUFFER_DEVICE_ADDRESS_FEATURES,
        .bufferDeviceAddress = VK_TRUE};
    VkPhysicalDeviceVulkan12Features twelve = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_VULKAN_1_2_FEATURES,
        .vulkanMemoryModel = VK_TRUE};
    VkPhysicalDeviceFeatures2 base = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_FEATURES_2,
                                      .features.samplerAnisotropy = VK_TRUE};
    const void *hidden[] = {&address, &twelve, &base};
    assert_true(creates("powervr", &timeline, NULL, no_feature));
    for (size_t i = 0; i < sizeof hidden / sizeof hidden[0]; i++) {
        assert_true(creates("driver", hidden[i], NULL, no_feature));
        assert_false(creates("powervr", hidden[i], NULL, no_feature));
    }
    assert_true(creates("driver", NULL, "VK_EXT_external_memory_host", VK_SUCCESS));
    assert_false(
        creates("mali-g610", NULL, "VK_EXT_external_memory_host", VK_ERROR_EXTENSION_NOT_PRESENT));

    VkInstance instance;
    assert_int_not_equal(instance_try("no such profile", &instance), VK_SUCCESS);
}

static VkResult allocate(const device_at *d, uint32_t type, uint64_t bytes, VkDeviceMemory *out)
{
    VkMemoryAllocateInfo info = {.sType = VK_STRUCTURE_TYPE_MEMORY_ALLOCATE_INFO,
                                 .allocationSize = bytes,
                                 .memoryTypeIndex = type};
    return d->fn.vkAllocateMemory(d->device, &info, NULL, out);
}

static void test_memory(void **state)
{
    (void)state;
    VkPhysicalDeviceMemoryProperties m;
    VkDeviceMemory memory, more;
    void *mapped;
    device_at d = at("small-bar");
    vkGetPhysicalDeviceMemoryProperties(d.physical, &m);
    assert_int_equal(m.memoryHeapCount, 3);
    assert_int_equal(m.memoryTypeCount, 5);
    assert_int_equal(m.memoryTypes[1].propertyFlags, VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT);
    assert_int_equal(m.memoryHeaps[2].size, 256u << 20);
    assert_int_equal(device_try(&d, NULL, NULL, 0), VK_SUCCESS);

    /* Lazily allocated memory is not for buffers. */
    VkBufferCreateInfo info = {.sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
                               .size = 4096,
                               .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT};
    VkBuffer buffer;
    VkMemoryRequirements need;
    assert_int_equal(d.fn.vkCreateBuffer(d.device, &info, NULL, &buffer), VK_SUCCESS);
    d.fn.vkGetBufferMemoryRequirements(d.device, buffer, &need);
    assert_int_equal(need.memoryTypeBits, 0x1e);
    d.fn.vkDestroyBuffer(d.device, buffer, NULL);

    /* The host does not see the device's. */
    assert_int_equal(allocate(&d, 1, 4096, &memory), VK_SUCCESS);
    assert_int_equal(d.fn.vkMapMemory(d.device, memory, 0, VK_WHOLE_SIZE, 0, &mapped),
                     VK_ERROR_MEMORY_MAP_FAILED);
    d.fn.vkFreeMemory(d.device, memory, NULL);

    /* Heaps have an end. */
    assert_int_equal(allocate(&d, 3, 200u << 20, &memory), VK_SUCCESS);
    assert_int_equal(allocate(&d, 3, 100u << 20, &more), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    d.fn.vkFreeMemory(d.device, memory, NULL);
    assert_int_equal(allocate(&d, 3, 100u << 20, &memory), VK_SUCCESS);
    d.fn.vkFreeMemory(d.device, memory, NULL);
    done(&d);

    /* Allocations have a largest size. */
    d = at("tiny-memory");
    VkPhysicalDeviceMaintenance3Properties three = {
        .sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_MAINTENANCE_3_PROPERTIES};
    VkPhysicalDeviceProperties2 two = {.sType = VK_STRUCTURE_TYPE_PHYSICAL_DEVICE_PROPERTIES_2,
                                       .pNext = &three};
    vkGetPhysicalDeviceProperties2(d.physical, &two);
    assert_int_equal(three.maxMemoryAllocationSize, 128u << 20);
    assert_int_equal(device_try(&d, NULL, NULL, 0), VK_SUCCESS);
    assert_int_equal(allocate(&d, 0, (128u << 20) + 1, &memory), VK_ERROR_OUT_OF_DEVICE_MEMORY);
    assert_int_equal(allocate(&d, 0, 128u << 20, &memory), VK_SUCCESS);
    d.fn.vkFreeMemory(d.device, memory, NULL);
    done(&d);
}

static void test_non_coherent(void **state)
{
    (void)state;
    VkDeviceMemory memory;
    void *any;
    device_at d = at("non-coherent");
    assert_int_equal(device_try(&d, NULL, NULL, 0), VK_SUCCESS);
    assert_int_equal(allocate(&d, 0, 4096, &memory), VK_SUCCESS);
    assert_int_equal(d.fn.vkMapMemory(d.device, memory, 0, VK_WHOLE_SIZE, 0, &any), VK_SUCCESS);
    volatile uint8_t *mapped = any;
    VkMappedMemoryRange front = {.sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE,
                                 .memory = memory,
                                 .size = 256},
                        all = front;
    all.size = VK_WHOLE_SIZE;
    memset(any, 1, 4096);
    assert_int_equal(d.fn.vkFlushMappedMemoryRanges(d.device, 1, &all), VK_SUCCESS);
    memset(any, 2, 4096);
    assert_int_equal(d.fn.vkFlushMappedMemoryRanges(d.device, 1, &front), VK_SUCCESS);
    assert_int_equal(d.fn.vkInvalidateMappedMemoryRanges(d.device, 1, &all), VK_SUCCESS);
    assert_int_equal(mapped[255], 2);
    assert_int_equal(mapped[256], 1); /* was never flushed */
    d.fn.vkUnmapMemory(d.device, memory);
    assert_int_equal(d.fn.vkMapMemory(d.device, memory, 0, VK_WHOLE_SIZE, 0, &any), VK_SUCCESS);
    mapped = any;
    assert_int_not_equal(mapped[0], 2); /* was not invalidated */
    assert_int_equal(d.fn.vkInvalidateMappedMemoryRanges(d.device, 1, &all), VK_SUCCESS);
    assert_int_equal(mapped[0], 2);
    d.fn.vkFreeMemory(d.device, memory, NULL);
    done(&d);
}

static void test_queues(void **state)
{
    (void)state;
    VkQueueFamilyProperties families[4];
    uint32_t count = 4;
    device_at d = at("compute-queue");
    vkGetPhysicalDeviceQueueFamilyProperties(d.physical, &count, families);
    assert_int_equal(count, 2);
    assert_false(families[0].queueFlags & VK_QUEUE_COMPUTE_BIT);
    assert_int_equal(families[1].queueFlags, VK_QUEUE_COMPUTE_BIT | VK_QUEUE_TRANSFER_BIT);
    assert_int_equal(families[1].timestampValidBits, 36);
    assert_int_not_equal(device_try(&d, NULL, NULL, 2), VK_SUCCESS);
    assert_int_equal(device_try(&d, NULL, NULL, 1), VK_SUCCESS);
    VkQueue queue = VK_NULL_HANDLE;
    d.fn.vkGetDeviceQueue(d.device, 1, 0, &queue);
    assert_non_null(queue);
    VkCommandPool pool;
    VkCommandPoolCreateInfo info = {.sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
                                    .queueFamilyIndex = 1};
    assert_int_equal(d.fn.vkCreateCommandPool(d.device, &info, NULL, &pool), VK_SUCCESS);
    d.fn.vkDestroyCommandPool(d.device, pool, NULL);
    done(&d);

    count = 4;
    d = at("one-queue");
    vkGetPhysicalDeviceQueueFamilyProperties(d.physical, &count, families);
    assert_int_equal(count, 1);
    assert_int_equal(families[0].timestampValidBits, 0);
    done(&d);
}

int main(void)
{
    if (volkInitialize() != VK_SUCCESS) {
        printf("skipped: no Vulkan loader\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_limits),   cmocka_unit_test(test_features),
        cmocka_unit_test(test_refusals), cmocka_unit_test(test_memory),
        cmocka_unit_test(test_queues),   cmocka_unit_test(test_non_coherent),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
