/* The built-in device as gpu/ sees it: the facts that others read from their driver. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/team.h"
#include "cpu/cpu.h"
#include "gpu/gpu_internal.h"

#define BINDING_BYTES (4ull << 30)
#define UNKNOWN_MEMORY_BYTES (4ull << 30)

static uint32_t threads_choose(uint32_t asked)
{
    const char *text = getenv("FULGUR_THREADS");
    long said = text ? strtol(text, NULL, 10) : 0;
    uint32_t threads = asked != 0 ? asked : said > 0 && said < 4096 ? (uint32_t)said : 0;
    if (threads == 0)
        threads = thread_count();
    return threads < TEAM_MOST_THREADS ? threads : TEAM_MOST_THREADS;
}

bool device_named_built_in(const char *name)
{
    return name && (name[0] == 'c' || name[0] == 'C') && (name[1] == 'p' || name[1] == 'P') &&
           (name[2] == 'u' || name[2] == 'U') && name[3] == 0;
}

static void limits_fill(uint64_t memory, ful_caps *caps)
{
    *caps = (ful_caps){.features = FUL_FEATURE_TIMESTAMP,
                       .api_version = VK_API_VERSION_1_1,
                       .subgroup_size = 1,
                       .subgroup_min = 1,
                       .subgroup_max = 1,
                       .workgroup_invocations = 1024,
                       .workgroup_size = {1024, 1024, 1024},
                       .workgroup_count = {65535, 65535, 65535},
                       .shared_bytes = 32768,
                       .push_bytes = CPU_PUSH_BYTES,
                       .storage_buffers = CPU_STORAGE_BUFFERS,
                       .storage_align_bytes = CPU_ALIGN_BYTES,
                       .uniform_align_bytes = CPU_ALIGN_BYTES,
                       .uniform_range_bytes = 65536,
                       .storage_range_bytes = memory < BINDING_BYTES ? memory : BINDING_BYTES,
                       .allocation_bytes = memory,
                       .non_coherent_atom_bytes = CPU_ALIGN_BYTES,
                       .device_memory_bytes = memory,
                       .host_visible_local_bytes = memory,
                       .timestamp_period_ns = 1.0,
                       .unified_memory = true};
}

ful_result builtin_facts_read(uint32_t index, uint32_t threads, device_facts *facts)
{
    memset(facts, 0, sizeof(*facts));
    uint64_t memory = memory_physical_bytes();
    if (memory == 0)
        memory = UNKNOWN_MEMORY_BYTES;
    if (memory > SIZE_MAX / 2)
        memory = SIZE_MAX / 2;
    facts->threads = threads_choose(threads);
    facts->api_version = VK_API_VERSION_1_1;
    facts->timestamp_bits = 64;
    facts->max_allocations = UINT32_MAX;
    facts->memory.memoryHeapCount = 1;
    facts->memory.memoryHeaps[0] = (VkMemoryHeap){memory, VK_MEMORY_HEAP_DEVICE_LOCAL_BIT};
    facts->memory.memoryTypeCount = 1;
    facts->memory.memoryTypes[0].propertyFlags =
        VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT | VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT |
        VK_MEMORY_PROPERTY_HOST_COHERENT_BIT | VK_MEMORY_PROPERTY_HOST_CACHED_BIT;

    ful_device_info *info = &facts->info;
    info->index = index;
    info->kind = FUL_DEVICE_CPU;
    info->built_in = true;
    snprintf(info->name, sizeof(info->name), "CPU (%u thread%s)", (unsigned)facts->threads,
             facts->threads == 1 ? "" : "s");
    snprintf(info->driver, sizeof(info->driver), "built in, %s", cpu_instructions());
    memcpy(info->uuid, "fulgur built in", sizeof(info->uuid));
    info->driver_version = FUL_VERSION;
    limits_fill(memory, &info->caps);
    facts->raw = info->caps;
    TRY(caps_apply(getenv("FULGUR_CAPS"), "FULGUR_CAPS", info->kind, &info->caps));
    info->usable = caps_meet_floor(&info->caps, &facts->raw, info->why_not, sizeof(info->why_not));
    return FUL_OK;
}
