/* Which memory a buffer gets on the kinds of devices there are. */
#include "gpu/gpu_internal.h"

#include <setjmp.h>
#include <stdarg.h>
#include <string.h>

#include <cmocka.h>

enum { L = 1, V = 2, C = 4, K = 8 }; /* device-local, visible, coherent, cached */
#define GIB (1ull << 30)
#define MIB (1ull << 20)

typedef struct type_row {
    uint32_t flags, heap;
} type_row;

typedef struct heap_row {
    uint64_t bytes;
    uint32_t local;
} heap_row;

static VkPhysicalDeviceMemoryProperties make(const heap_row *heaps, uint32_t heap_count,
                                             const type_row *types, uint32_t type_count)
{
    VkPhysicalDeviceMemoryProperties m;
    memset(&m, 0, sizeof(m));
    m.memoryHeapCount = heap_count;
    m.memoryTypeCount = type_count;
    for (uint32_t i = 0; i < heap_count; i++) {
        m.memoryHeaps[i].size = heaps[i].bytes;
        m.memoryHeaps[i].flags = heaps[i].local ? VK_MEMORY_HEAP_DEVICE_LOCAL_BIT : 0;
    }
    for (uint32_t i = 0; i < type_count; i++) {
        m.memoryTypes[i].propertyFlags = types[i].flags;
        m.memoryTypes[i].heapIndex = types[i].heap;
    }
    return m;
}

static bool unified; /* the device in question */

/* The best type; UINT32_MAX if there is none. */
static uint32_t best(const VkPhysicalDeviceMemoryProperties *m, gpu_memory kind, uint64_t bytes)
{
    uint32_t order[VK_MAX_MEMORY_TYPES];
    uint32_t n = memory_rank(m, unified, kind, bytes, UINT32_MAX, order);
    return n ? order[0] : UINT32_MAX;
}

static bool among(const VkPhysicalDeviceMemoryProperties *m, gpu_memory kind, uint64_t bytes,
                  uint32_t type)
{
    uint32_t order[VK_MAX_MEMORY_TYPES];
    uint32_t n = memory_rank(m, unified, kind, bytes, UINT32_MAX, order);
    bool found = false;
    for (uint32_t i = 0; i < n; i++)
        found = found || order[i] == type;
    return found;
}

/* 8 GiB of its own, 256 MiB of it visible. */
static void test_discrete_small_window(void **state)
{
    (void)state;
    unified = false;
    const heap_row heaps[] = {{8 * GIB, 1}, {16 * GIB, 0}, {256 * MIB, 1}};
    const type_row types[] = {{L, 0}, {V | C, 1}, {V | C | K, 1}, {L | V | C, 2}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 3, types, 4);
    assert_false(memory_is_unified(&m, FUL_DEVICE_DISCRETE));
    assert_false(memory_is_unified(&m, FUL_DEVICE_INTEGRATED));
    assert_true(memory_local_bytes(&m, false) == 8 * GIB + 256 * MIB);
    assert_true(memory_local_bytes(&m, true) == 256 * MIB);
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 64 * MIB), 0);
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 4096), 0);
    assert_false(among(&m, GPU_MEMORY_DEVICE, 64 * MIB, 3));
    assert_false(among(&m, GPU_MEMORY_DEVICE, 64 * MIB, 1)); /* never silently in host memory */
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 64), 3);      /* step parameters */
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 8 * MIB), 1); /* staging */
    assert_true(among(&m, GPU_MEMORY_HOST, 64, 1));          /* if the window is full */
    assert_int_equal(best(&m, GPU_MEMORY_READBACK, MIB), 2);
}

/* All of it visible. */
static void test_discrete_resizable(void **state)
{
    (void)state;
    unified = false;
    const heap_row heaps[] = {{16 * GIB, 1}, {32 * GIB, 0}};
    const type_row types[] = {{L, 0}, {V | C, 1}, {V | C | K, 1}, {L | V | C, 0}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 2, types, 4);
    assert_false(memory_is_unified(&m, FUL_DEVICE_DISCRETE)); /* though all is visible */
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 512 * MIB), 3);
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 8 * MIB), 1); /* staging is not worth VRAM */
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 64), 3);
    assert_int_equal(best(&m, GPU_MEMORY_READBACK, MIB), 2);
}

/* A large window that is still only a part of the device's memory. */
static void test_discrete_partial_window(void **state)
{
    (void)state;
    unified = false;
    const heap_row heaps[] = {{16 * GIB, 1}, {32 * GIB, 0}, {512 * MIB, 1}};
    const type_row types[] = {{L, 0}, {V | C, 1}, {L | V | C, 2}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 3, types, 3);
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 64 * MIB), 0);
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 64), 2);
}

static void test_unified(void **state)
{
    (void)state;
    unified = true;
    const heap_row heaps[] = {{6 * GIB, 1}};
    const type_row types[] = {{L, 0}, {L | V | C, 0}, {L | V | K, 0}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 1, types, 3);
    assert_true(memory_is_unified(&m, FUL_DEVICE_INTEGRATED));
    assert_true(memory_is_unified(&m, FUL_DEVICE_CPU));
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 64 * MIB), 1);
    assert_int_equal(best(&m, GPU_MEMORY_HOST, 8 * MIB), 1);
    assert_int_equal(best(&m, GPU_MEMORY_READBACK, MIB), 2); /* cached, though not coherent */
}

/* A phone without cached memory. */
static void test_unified_without_cached(void **state)
{
    (void)state;
    unified = true;
    const heap_row heaps[] = {{6 * GIB, 1}};
    const type_row types[] = {{L, 0}, {L | V | C, 0}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 1, types, 2);
    assert_int_equal(best(&m, GPU_MEMORY_READBACK, MIB), 1);
    assert_int_equal(best(&m, GPU_MEMORY_DEVICE, 7 * GIB), UINT32_MAX); /* larger than the heap */
}

/* Vendors' special types, protected and lazily allocated ones are no one's choice. */
static void test_special_types(void **state)
{
    (void)state;
    unified = true;
    const heap_row heaps[] = {{4 * GIB, 1}};
    const type_row types[] = {{L | 0x20, 0}, {L | V | C | 0x40, 0}, {L | 0x10, 0}, {L | V, 0}};
    VkPhysicalDeviceMemoryProperties m = make(heaps, 1, types, 4);
    for (int kind = GPU_MEMORY_DEVICE; kind <= GPU_MEMORY_READBACK; kind++) {
        uint32_t order[VK_MAX_MEMORY_TYPES];
        uint32_t n = memory_rank(&m, unified, (gpu_memory)kind, 4096, UINT32_MAX, order);
        assert_int_equal(n, 1);
        assert_int_equal(order[0], 3);
        assert_int_equal(memory_rank(&m, unified, (gpu_memory)kind, 4096, 7, order), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_discrete_small_window),   cmocka_unit_test(test_discrete_resizable),
        cmocka_unit_test(test_discrete_partial_window), cmocka_unit_test(test_unified),
        cmocka_unit_test(test_unified_without_cached),  cmocka_unit_test(test_special_types),
    };
    return cmocka_run_group_tests_name("memory_types", tests, NULL, NULL);
}
