/* Listing, choosing, opening and closing devices. */
#include "util/gpu_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "util/fault_alloc.h"

static log_seen seen;
static ful_instance *instance;

static int setup(void **state)
{
    (void)state;
    instance = gpu_test_instance(&seen);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    gpu_test_instance_end(&instance);
    return 0;
}

static void test_list(void **state)
{
    (void)state;
    ful_device_info infos[16];
    uint32_t count = 0, full, none = 0;
    GPU_OK(ful_device_list(instance, NULL, &count));
    assert_true(count >= 1 && count <= 16);
    GPU_OK(ful_device_list(instance, infos, &none)); /* no room: only counts */
    assert_int_equal(none, count);
    full = 16;
    GPU_OK(ful_device_list(instance, infos, &full));
    assert_int_equal(full, count);
    for (uint32_t i = 0; i < count; i++) {
        const ful_caps *c = &infos[i].caps;
        assert_int_equal(infos[i].index, i);
        assert_true(infos[i].name[0] != 0 && infos[i].driver[0] != 0);
        assert_true(infos[i].usable == (infos[i].why_not[0] == 0));
        if (!infos[i].usable)
            continue;
        assert_true(c->api_version >= VK_API_VERSION_1_0);
        assert_true(c->workgroup_invocations >= 128 && c->shared_bytes >= 16384);
        assert_true(c->storage_buffers >= 4 && c->storage_range_bytes >= 128u << 20);
        assert_true(c->device_memory_bytes > 0);
        assert_true(c->subgroup_min <= c->subgroup_size && c->subgroup_size <= c->subgroup_max);
        if (c->unified_memory)
            assert_true(c->host_visible_local_bytes == c->device_memory_bytes);
        if (c->features & FUL_FEATURE_TIMESTAMP)
            assert_true(c->timestamp_period_ns > 0);
    }
    GPU_FAILS(ful_device_list(instance, infos, NULL), FUL_ERR_ARGUMENT);
    GPU_FAILS(ful_device_list(NULL, infos, &count), FUL_ERR_ARGUMENT);
}

/* The built-in device is there, and never the choice where Vulkan has a usable one. */
static void test_built_in(void **state)
{
    (void)state;
    ful_device_info infos[16];
    uint32_t count = 16;
    GPU_OK(ful_device_list(instance, infos, &count));
    for (uint32_t i = 0; i < count; i++)
        assert_true(infos[i].built_in == (i + 1 == count));
    ful_device *d = gpu_test_open(instance, NULL);
    assert_true(ful_device_get_info(d)->built_in == gpu_test_built_in());
    gpu_test_close(&d);
    GPU_OK(ful_device_open(&d, instance, ful_device_params(.name_part = "cpu", .cache_dir = "")));
    assert_true(ful_device_get_info(d)->built_in);
    assert_int_equal(ful_device_get_info(d)->index, count - 1);
    gpu_test_close(&d);
    assert_int_equal(seen.warnings, 0);
}

static void test_choose(void **state)
{
    (void)state;
    ful_device *d = gpu_test_open(instance, NULL);
    ful_device_info info = *ful_device_get_info(d);
    gpu_test_close(&d);
    assert_null(d);

    GPU_OK(ful_device_open(&d, instance, ful_device_params(.index = &info.index, .cache_dir = "")));
    assert_string_equal(ful_device_get_info(d)->name, info.name);
    ful_device_close(&d);
    GPU_OK(ful_device_open(&d, instance, ful_device_params(.uuid = info.uuid, .cache_dir = "")));
    assert_memory_equal(ful_device_get_info(d)->uuid, info.uuid, 16);
    ful_device_close(&d);
    char part[8];
    for (int i = 0; i < 7; i++) {
        char ch = info.name[1 + i];
        part[i] = ch >= 'a' && ch <= 'z' ? (char)(ch - 'a' + 'A') : ch;
    }
    part[7] = 0;
    GPU_OK(ful_device_open(&d, instance, ful_device_params(.name_part = part, .cache_dir = "")));
    ful_device_close(&d);
}

static void test_choose_wrong(void **state)
{
    (void)state;
    ful_device *d = (ful_device *)&seen;
    const uint32_t index = 77;
    const uint8_t uuid[16] = {1, 2, 3};
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.name_part = "no such thing")),
              FUL_ERR_NO_DEVICE);
    assert_null(d);
    gpu_error_has("no such thing");
    gpu_error_has("0: "); /* lists what is there */
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.index = &index)), FUL_ERR_NO_DEVICE);
    gpu_error_has("77");
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.uuid = uuid)), FUL_ERR_NO_DEVICE);
    gpu_error_has("UUID");
    ful_device_params unset = {0};
    GPU_FAILS(ful_device_open(&d, instance, &unset), FUL_ERR_ARGUMENT);
    gpu_error_has("struct_size");
    GPU_FAILS(ful_device_open(&d, NULL, NULL), FUL_ERR_ARGUMENT);
    GPU_FAILS(ful_device_open(NULL, instance, NULL), FUL_ERR_ARGUMENT);
}

/* A caller built against a shorter struct. */
static void test_short_params(void **state)
{
    (void)state;
    ful_device_params p;
    memset(&p, 0x5a, sizeof(p));
    p.struct_size = offsetof(ful_device_params, index);
    p.uuid = NULL;
    p.name_part = getenv("FULGUR_TEST_DEVICE");
    ful_device *d;
    setenv("XDG_CACHE_HOME", "/nonexistent/cache", 1);
    GPU_OK(ful_device_open(&d, instance, &p));
    ful_device_close(&d);
    unsetenv("XDG_CACHE_HOME");
}

static void test_masks(void **state)
{
    (void)state;
    const char *name = getenv("FULGUR_TEST_DEVICE");
    ful_device *d = gpu_test_open(instance, NULL);
    ful_caps whole = *device_caps(d);
    gpu_test_close(&d);
    const uint32_t bits[] = {FUL_FEATURE_SUBGROUP,  FUL_FEATURE_FP16,         FUL_FEATURE_INT8,
                             FUL_FEATURE_STORAGE16, FUL_FEATURE_STORAGE8,     FUL_FEATURE_COOPMAT,
                             FUL_FEATURE_TIMELINE,  FUL_FEATURE_MEMORY_BUDGET};
    for (size_t i = 0; i < sizeof(bits) / sizeof(bits[0]); i++) {
        GPU_OK(ful_device_open(
            &d, instance,
            ful_device_params(.caps_off = bits[i], .cache_dir = "", .name_part = name)));
        assert_false(device_caps(d)->features & bits[i]);
        assert_int_equal(device_caps(d)->features & ~whole.features, 0);
        gpu_test_close(&d);
    }
    d = gpu_test_open(instance, "-fp16,shared=16384,workgroup=128,buffers=4,push=128");
    assert_int_equal(device_caps(d)->shared_bytes, 16384);
    assert_int_equal(device_caps(d)->storage_buffers, 4);
    assert_false(device_caps(d)->features & FUL_FEATURE_FP16);
    gpu_test_close(&d);
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.caps = "-fp61")), FUL_ERR_ARGUMENT);
    gpu_error_has("-fp61");
    GPU_FAILS(
        ful_device_open(&d, instance, ful_device_params(.caps = "buffers=3", .name_part = name)),
        FUL_ERR_UNSUPPORTED);
    gpu_error_has("storage buffers");
}

static void test_environment(void **state)
{
    (void)state;
    const char *before = getenv("FULGUR_CAPS");
    char *kept = before ? strdup(before) : NULL;
    ful_device_info infos[16];
    uint32_t count = 16;
    ful_device *d;
    setenv("FULGUR_CAPS", "-subgroup,shared=20000", 1);
    GPU_OK(ful_device_list(instance, infos, &count));
    assert_true(count > 0);
    for (uint32_t i = 0; i < count; i++) {
        assert_int_equal(infos[i].caps.subgroup_size, 1);
        assert_true(infos[i].caps.shared_bytes <= 20000);
    }
    d = gpu_test_open(instance, "shared=30000");
    assert_int_equal(device_caps(d)->shared_bytes, 20000);
    gpu_test_close(&d);
    setenv("FULGUR_CAPS", "shared=lots", 1);
    GPU_FAILS(ful_device_open(&d, instance, NULL), FUL_ERR_ARGUMENT);
    gpu_error_has("FULGUR_CAPS: \"shared=lots\"");
    GPU_FAILS(ful_device_list(instance, infos, &count), FUL_ERR_ARGUMENT);
    setenv("FULGUR_CAPS", "workgroup=64", 1); /* listed, but below the floor */
    count = 16;
    GPU_OK(ful_device_list(instance, infos, &count));
    assert_false(infos[0].usable);
    assert_non_null(strstr(infos[0].why_not, "64"));
    GPU_FAILS(ful_device_open(&d, instance, NULL), FUL_ERR_UNSUPPORTED);
    if (kept)
        setenv("FULGUR_CAPS", kept, 1);
    else
        unsetenv("FULGUR_CAPS");
    free(kept);
}

/* No driver at all: the built-in device, with a warning unless it was asked for. */
static void test_no_driver(void **state)
{
    (void)state;
    const char *names[] = {"VK_DRIVER_FILES", "VK_ICD_FILENAMES", "VK_ADD_DRIVER_FILES"};
    char *kept[3];
    ful_instance *empty;
    ful_device *d;
    ful_device_info info;
    log_seen alone = {.messages = 0};
    const uint32_t vulkan_first = 0;
    uint32_t count = 1;
#if defined(_WIN32)
    skip(); /* the registry names the drivers; under wine the host's loader does not see the names
             */
#endif
    for (int i = 0; i < 3; i++) {
        const char *v = getenv(names[i]);
        kept[i] = v ? strdup(v) : NULL;
        setenv(names[i], "/nonexistent/driver.json", 1);
    }
    empty = gpu_test_instance(&alone);
    alone.warnings = 0; /* older loaders can't make an instance without a driver */
    GPU_OK(ful_device_list(empty, &info, &count));
    assert_int_equal(count, 1);
    assert_true(info.built_in && info.usable && info.kind == FUL_DEVICE_CPU && info.index == 0);
    GPU_OK(ful_device_open(&d, empty, ful_device_params(.cache_dir = "")));
    assert_true(ful_device_get_info(d)->built_in);
    assert_int_equal(alone.warnings, gpu_test_built_in() ? 0 : 1);
    if (!gpu_test_built_in())
        assert_non_null(strstr(alone.last_warning, "running on the processor"));
    ful_device_close(&d);
    alone.warnings = 0;
    GPU_OK(ful_device_open(&d, empty,
                           ful_device_params(.name_part = "CPU", .cache_dir = "", .threads = 3)));
    assert_non_null(strstr(ful_device_get_info(d)->name, "(3 threads)"));
    ful_device_close(&d);
    GPU_OK(ful_device_open(&d, empty, ful_device_params(.index = &vulkan_first, .cache_dir = "")));
    ful_device_close(&d);
    assert_int_equal(alone.warnings, 0);
    GPU_FAILS(ful_device_open(&d, empty, ful_device_params(.name_part = "GeForce")),
              FUL_ERR_NO_DEVICE);
    gpu_error_has("CPU (");
    gpu_test_instance_end(&empty);
    assert_null(empty);
    for (int i = 0; i < 3; i++) {
        if (kept[i])
            setenv(names[i], kept[i], 1);
        else
            unsetenv(names[i]);
        free(kept[i]);
    }
}

static VKAPI_ATTR VkResult VKAPI_CALL create_nothing(VkPhysicalDevice physical,
                                                     const VkDeviceCreateInfo *info,
                                                     const VkAllocationCallbacks *callbacks,
                                                     VkDevice *device)
{
    (void)physical, (void)info, (void)callbacks, (void)device;
    return VK_ERROR_INITIALIZATION_FAILED;
}

/* A driver that lists a device and then can't make it is left alone, unless it was asked for. */
static void test_refused(void **state)
{
    (void)state;
    ful_device *d;
    PFN_vkCreateDevice real = vkCreateDevice;
    char name[256];
    if (gpu_test_built_in())
        skip();
    d = gpu_test_open(instance, NULL);
    snprintf(name, sizeof name, "%s", ful_device_get_info(d)->name);
    gpu_test_close(&d);
    vkCreateDevice = create_nothing;
    assert_int_equal(seen.warnings, 0);
    GPU_OK(ful_device_open(&d, instance, ful_device_params(.cache_dir = "")));
    assert_true(ful_device_get_info(d)->built_in);
    gpu_test_close(&d);
    assert_int_equal(seen.warnings, 1);
    assert_non_null(strstr(seen.last_warning, "VK_ERROR_INITIALIZATION_FAILED"));
    assert_non_null(strstr(seen.last_warning, "running on the processor"));
    GPU_FAILS(ful_device_open(&d, instance, ful_device_params(.name_part = name, .cache_dir = "")),
              FUL_ERR_UNSUPPORTED);
    assert_null(d);
    vkCreateDevice = real;
    assert_int_equal(seen.warnings, 1);
}

/* ---- a driver of a subset, as MoltenVK is one ---- */

static const char SUBSET[] = "VK_KHR_portability_subset";
static const char ENUMERATION[] = "VK_KHR_portability_enumeration";
static PFN_vkEnumerateInstanceExtensionProperties real_instance_list;
static PFN_vkEnumerateDeviceExtensionProperties real_device_list;
static PFN_vkCreateInstance real_create_instance;
static PFN_vkCreateDevice real_create_device;
static bool enumeration_hidden;
/* What the last instance and device were asked for with. */
static bool asked_enumeration, asked_flag, asked_subset;

/* What the loader lists, without the enumeration's extension if it is to be hidden. */
static VKAPI_ATTR VkResult VKAPI_CALL instance_list(const char *layer, uint32_t *count,
                                                    VkExtensionProperties *out)
{
    VkResult r = real_instance_list(layer, count, out);
    for (uint32_t i = 0; out != NULL && enumeration_hidden && i < *count; i++)
        if (strcmp(out[i].extensionName, ENUMERATION) == 0)
            out[i--] = out[--*count];
    return r;
}

/* What the driver lists, and the subset at the end. */
static VKAPI_ATTR VkResult VKAPI_CALL device_list(VkPhysicalDevice physical, const char *layer,
                                                  uint32_t *count, VkExtensionProperties *out)
{
    if (out != NULL)
        --*count;
    VkResult r = real_device_list(physical, layer, count, out);
    if (r == VK_SUCCESS && out != NULL)
        memcpy(out[*count].extensionName, SUBSET, sizeof SUBSET);
    ++*count;
    return r;
}

static VKAPI_ATTR VkResult VKAPI_CALL create_instance(const VkInstanceCreateInfo *info,
                                                      const VkAllocationCallbacks *a,
                                                      VkInstance *out)
{
    asked_flag = (info->flags & VK_INSTANCE_CREATE_ENUMERATE_PORTABILITY_BIT_KHR) != 0;
    asked_enumeration = false;
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (strcmp(info->ppEnabledExtensionNames[i], ENUMERATION) == 0)
            asked_enumeration = true;
    return real_create_instance(info, a, out);
}

/* The real driver does not know the subset. */
static VKAPI_ATTR VkResult VKAPI_CALL create_device(VkPhysicalDevice physical,
                                                    const VkDeviceCreateInfo *info,
                                                    const VkAllocationCallbacks *a, VkDevice *out)
{
    const char *names[32];
    VkDeviceCreateInfo less = *info;
    less.enabledExtensionCount = 0;
    less.ppEnabledExtensionNames = names;
    asked_subset = false;
    assert_true(info->enabledExtensionCount <= 32);
    for (uint32_t i = 0; i < info->enabledExtensionCount; i++)
        if (strcmp(info->ppEnabledExtensionNames[i], SUBSET) == 0)
            asked_subset = true;
        else
            names[less.enabledExtensionCount++] = info->ppEnabledExtensionNames[i];
    return real_create_device(physical, &less, a, out);
}

/* The loader shows such drivers only to who asks, and they want their subset enabled. */
static void test_portability(void **state)
{
    (void)state;
    if (gpu_test_built_in())
        skip();
    real_instance_list = vkEnumerateInstanceExtensionProperties;
    real_device_list = vkEnumerateDeviceExtensionProperties;
    real_create_instance = vkCreateInstance;
    real_create_device = vkCreateDevice;
    VkExtensionProperties listed[64];
    uint32_t count = 64;
    bool there = false;
    assert_true(vkEnumerateInstanceExtensionProperties(NULL, &count, listed) >= VK_SUCCESS);
    for (uint32_t i = 0; i < count; i++)
        there = there || strcmp(listed[i].extensionName, ENUMERATION) == 0;

    vkEnumerateInstanceExtensionProperties = instance_list;
    vkEnumerateDeviceExtensionProperties = device_list;
    vkCreateInstance = create_instance;
    vkCreateDevice = create_device;
    for (int hidden = 0; hidden < 2; hidden++) {
        static const char *const masks[] = {NULL, "-portability"};
        ful_instance *in;
        ful_device *d;
        log_seen said = {0};
        enumeration_hidden = hidden != 0;
        in = gpu_test_instance(&said);
        assert_true(asked_enumeration == (there && !hidden));
        assert_true(asked_flag == asked_enumeration);
        for (size_t i = 0; i < sizeof masks / sizeof masks[0]; i++) {
            asked_subset = false;
            d = gpu_test_open(in, masks[i]);
            assert_true(asked_subset);
            uint32_t features = ful_device_get_info(d)->caps.features;
            assert_true(((features & FUL_FEATURE_PORTABILITY) != 0) == (masks[i] == NULL));
            gpu_test_close(&d);
        }
        gpu_test_instance_end(&in);
    }
    vkEnumerateInstanceExtensionProperties = real_instance_list;
    vkEnumerateDeviceExtensionProperties = real_device_list;
    vkCreateInstance = real_create_instance;
    vkCreateDevice = real_create_device;
}

static void test_instances(void **state)
{
    (void)state;
    ful_instance *a, *b;
    ful_device *d;
    GPU_OK(ful_instance_create(&a, NULL));
    GPU_OK(ful_instance_create(&b, ful_instance_params(.app_name = "tests")));
    ful_instance_destroy(&a);
    d = gpu_test_open(b, NULL); /* works after another instance is gone */
    ful_device *second = gpu_test_open(b, NULL);
    assert_ptr_equal(device_instance(d), b);
    gpu_test_close(&d);
    gpu_test_close(&second);
    ful_instance_destroy(&b);
    ful_instance_destroy(&b);
    ful_instance_destroy(NULL);
    ful_device_close(NULL);
    assert_int_equal(ful_instance_validation_errors(NULL), 0);
    GPU_FAILS(ful_instance_create(NULL, NULL), FUL_ERR_ARGUMENT);
}

/* Each host allocation fails once; nothing leaks and nothing crashes. */
static void test_allocation_failures(void **state)
{
    (void)state;
    for (size_t at = 1;; at++) {
        fault_alloc fault = {.fail_at = at};
        ful_alloc functions = fault_alloc_functions(&fault);
        ful_instance *in;
        ful_device *d = NULL;
        gpu_buffer x = {0};
        gpu_commands *c = NULL;
        ful_result r = ful_instance_create(&in, ful_instance_params(.alloc = &functions));
        if (r == FUL_OK)
            r = ful_device_open(&d, in, ful_device_params(.cache_dir = ""));
        if (r == FUL_OK)
            r = gpu_buffer_create(d, 4096, GPU_MEMORY_DEVICE, "x", &x);
        if (r == FUL_OK)
            r = gpu_range_fill(d, gpu_whole(&x), 3);
        if (r == FUL_OK)
            r = gpu_commands_begin(d, GPU_COMMANDS_TIMED, &c);
        gpu_commands_destroy(&c);
        gpu_buffer_destroy(d, &x);
        ful_device_close(&d);
        ful_instance_destroy(&in);
        assert_int_equal(fault.live, 0);
        assert_false(fault.broken);
        if (!fault.failed) {
            assert_int_equal(r, FUL_OK);
            assert_true(at > 5);
            return;
        }
        /* Only the look for the validation layer goes on without its memory. */
        if (r != FUL_OK && !(gpu_test_built_in() && r == FUL_ERR_DEVICE_MEMORY))
            assert_int_equal(r, FUL_ERR_HOST_MEMORY);
    }
}

int main(void)
{
    gpu_test_require_device();
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_list, setup, teardown),
        cmocka_unit_test_setup_teardown(test_built_in, setup, teardown),
        cmocka_unit_test_setup_teardown(test_choose, setup, teardown),
        cmocka_unit_test_setup_teardown(test_choose_wrong, setup, teardown),
        cmocka_unit_test_setup_teardown(test_short_params, setup, teardown),
        cmocka_unit_test_setup_teardown(test_masks, setup, teardown),
        cmocka_unit_test_setup_teardown(test_environment, setup, teardown),
        cmocka_unit_test(test_no_driver),
        cmocka_unit_test_setup_teardown(test_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(test_portability, setup, teardown),
        cmocka_unit_test(test_instances),
        cmocka_unit_test(test_allocation_failures),
    };
    return cmocka_run_group_tests_name("device", tests, NULL, NULL);
}
