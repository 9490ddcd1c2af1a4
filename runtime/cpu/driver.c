/* The objects of the device and its queue. */
#include "cpu/cpu.h"

#include <stdlib.h>
#include <string.h>

#include "cpu/cpu_internal.h"

#if defined(CPU_HAS_AVX2)
#include <cpuid.h>
#endif

/* ---- kernels ---- */

/* FULGUR_AVX2=0: as on a processor without. */
static bool avx2_usable(void)
{
#if defined(CPU_HAS_AVX2)
    const char *text = getenv("FULGUR_AVX2");
    if (text && strcmp(text, "0") == 0)
        return false;
    unsigned a, b, c = 0, d;
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
           __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C) != 0;
#else
    return false;
#endif
}

static const cpu_kernel *kernels(void)
{
#if defined(CPU_HAS_AVX2)
    if (avx2_usable())
        return cpu_kernels_avx2;
#endif
    return cpu_kernels_base;
}

const char *cpu_instructions(void)
{
    if (avx2_usable())
        return "AVX2";
#if defined(__x86_64__)
    return "SSE2";
#elif defined(__aarch64__) || defined(__ARM_NEON)
    return "NEON";
#else
    return "plain C";
#endif
}

static const cpu_kernel *kernel_find(const cpu_kernel *list, const char *module)
{
    for (const cpu_kernel *k = list; k && k->module; k++)
        if (strcmp(k->module, module) == 0)
            return k;
    return NULL;
}

static const cpu_kernel *kernel_of(VkDevice device, const char *module)
{
    const cpu_kernel *k = kernel_find(kernels(), module);
    return k ? k : kernel_find(CPU_OBJECT(cpu_device, device)->more, module);
}

const cpu_kernel *cpu_kernel_named(const char *module)
{
    return kernel_find(kernels(), module);
}

bool cpu_has_kernel(VkDevice device, const char *module)
{
    return kernel_of(device, module) != NULL;
}

void cpu_kernels_add(VkDevice device, const cpu_kernel *more)
{
    CPU_OBJECT(cpu_device, device)->more = more;
}

/* ---- memory ---- */

static const ful_alloc *alloc_of(VkDevice device)
{
    return &CPU_OBJECT(cpu_device, device)->alloc;
}

static VKAPI_ATTR VkResult VKAPI_CALL memory_create(VkDevice device,
                                                    const VkMemoryAllocateInfo *info,
                                                    const VkAllocationCallbacks *callbacks,
                                                    VkDeviceMemory *out)
{
    (void)callbacks;
    const ful_alloc *a = alloc_of(device);
    cpu_memory *m = mem_zalloc(a, 1, sizeof *m);
    *out = VK_NULL_HANDLE;
    if (!m)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    uint64_t bytes = info->allocationSize + CPU_ALIGN_BYTES;
    m->allocated = bytes <= SIZE_MAX ? mem_alloc(a, (size_t)bytes) : NULL;
    if (!m->allocated) {
        mem_free(a, m);
        return VK_ERROR_OUT_OF_DEVICE_MEMORY;
    }
    uintptr_t at = (uintptr_t)m->allocated;
    m->data = (uint8_t *)m->allocated + (CPU_ALIGN_BYTES - at % CPU_ALIGN_BYTES) % CPU_ALIGN_BYTES;
    *out = CPU_HANDLE(VkDeviceMemory, m);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL memory_destroy(VkDevice device, VkDeviceMemory handle,
                                                 const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    cpu_memory *m = CPU_OBJECT(cpu_memory, handle);
    if (m)
        mem_free(alloc_of(device), m->allocated);
    mem_free(alloc_of(device), m);
}

static VKAPI_ATTR VkResult VKAPI_CALL memory_map(VkDevice device, VkDeviceMemory memory,
                                                 VkDeviceSize offset, VkDeviceSize bytes,
                                                 VkMemoryMapFlags flags, void **out)
{
    (void)device, (void)bytes, (void)flags;
    *out = CPU_OBJECT(cpu_memory, memory)->data + offset;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL memory_sync(VkDevice device, uint32_t count,
                                                  const VkMappedMemoryRange *ranges)
{
    (void)device, (void)count, (void)ranges;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL buffer_create(VkDevice device, const VkBufferCreateInfo *info,
                                                    const VkAllocationCallbacks *callbacks,
                                                    VkBuffer *out)
{
    (void)callbacks;
    cpu_buffer *b = mem_zalloc(alloc_of(device), 1, sizeof *b);
    *out = CPU_HANDLE(VkBuffer, b);
    if (!b)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    b->bytes = info->size;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL buffer_destroy(VkDevice device, VkBuffer handle,
                                                 const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    mem_free(alloc_of(device), CPU_OBJECT(cpu_buffer, handle));
}

static VKAPI_ATTR void VKAPI_CALL buffer_needs(VkDevice device, VkBuffer handle,
                                               VkMemoryRequirements *out)
{
    (void)device;
    *out = (VkMemoryRequirements){CPU_OBJECT(cpu_buffer, handle)->bytes, CPU_ALIGN_BYTES, 1};
}

static VKAPI_ATTR VkResult VKAPI_CALL buffer_bind(VkDevice device, VkBuffer handle,
                                                  VkDeviceMemory memory, VkDeviceSize offset)
{
    (void)device;
    CPU_OBJECT(cpu_buffer, handle)->data = CPU_OBJECT(cpu_memory, memory)->data + offset;
    return VK_SUCCESS;
}

/* ---- pipelines ---- */

/* Objects of which nothing has to be known: one address serves them all. */
static const char nothing;
#define NOTHING(type) CPU_HANDLE(type, &nothing)

static VKAPI_ATTR VkResult VKAPI_CALL module_create(VkDevice device,
                                                    const VkShaderModuleCreateInfo *info,
                                                    const VkAllocationCallbacks *callbacks,
                                                    VkShaderModule *out)
{
    (void)device, (void)info, (void)callbacks;
    *out = NOTHING(VkShaderModule);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL module_destroy(VkDevice device, VkShaderModule module,
                                                 const VkAllocationCallbacks *callbacks)
{
    (void)device, (void)module, (void)callbacks;
}

static VKAPI_ATTR VkResult VKAPI_CALL set_layout_create(VkDevice device,
                                                        const VkDescriptorSetLayoutCreateInfo *info,
                                                        const VkAllocationCallbacks *callbacks,
                                                        VkDescriptorSetLayout *out)
{
    (void)device, (void)info, (void)callbacks;
    *out = NOTHING(VkDescriptorSetLayout);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL set_layout_destroy(VkDevice device, VkDescriptorSetLayout layout,
                                                     const VkAllocationCallbacks *callbacks)
{
    (void)device, (void)layout, (void)callbacks;
}

static VKAPI_ATTR VkResult VKAPI_CALL layout_create(VkDevice device,
                                                    const VkPipelineLayoutCreateInfo *info,
                                                    const VkAllocationCallbacks *callbacks,
                                                    VkPipelineLayout *out)
{
    (void)device, (void)info, (void)callbacks;
    *out = NOTHING(VkPipelineLayout);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL layout_destroy(VkDevice device, VkPipelineLayout layout,
                                                 const VkAllocationCallbacks *callbacks)
{
    (void)device, (void)layout, (void)callbacks;
}

static VKAPI_ATTR VkResult VKAPI_CALL pipeline_create(VkDevice device, VkPipelineCache cache,
                                                      uint32_t count,
                                                      const VkComputePipelineCreateInfo *info,
                                                      const VkAllocationCallbacks *callbacks,
                                                      VkPipeline *out)
{
    (void)cache, (void)callbacks;
    *out = VK_NULL_HANDLE;
    const cpu_kernel *kernel = kernel_of(device, info->stage.pName);
    const VkSpecializationInfo *constants = info->stage.pSpecializationInfo;
    if (count != 1 || !kernel)
        return VK_ERROR_FEATURE_NOT_PRESENT;
    cpu_pipeline *p = mem_zalloc(alloc_of(device), 1, sizeof *p);
    if (!p)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    p->run = kernel->run;
    for (uint32_t i = 0; constants && i < constants->mapEntryCount; i++) {
        const VkSpecializationMapEntry *e = &constants->pMapEntries[i];
        if (e->constantID < CPU_MOST_CONSTANTS)
            memcpy(&p->constants[e->constantID], (const char *)constants->pData + e->offset, 4);
    }
    *out = CPU_HANDLE(VkPipeline, p);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL pipeline_destroy(VkDevice device, VkPipeline handle,
                                                   const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    mem_free(alloc_of(device), CPU_OBJECT(cpu_pipeline, handle));
}

/* There is nothing to keep from one run to the next. */
static VKAPI_ATTR VkResult VKAPI_CALL cache_create(VkDevice device,
                                                   const VkPipelineCacheCreateInfo *info,
                                                   const VkAllocationCallbacks *callbacks,
                                                   VkPipelineCache *out)
{
    (void)device, (void)info, (void)callbacks;
    *out = NOTHING(VkPipelineCache);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL cache_destroy(VkDevice device, VkPipelineCache cache,
                                                const VkAllocationCallbacks *callbacks)
{
    (void)device, (void)cache, (void)callbacks;
}

static VKAPI_ATTR VkResult VKAPI_CALL cache_data(VkDevice device, VkPipelineCache cache,
                                                 size_t *bytes, void *data)
{
    (void)device, (void)cache, (void)data;
    *bytes = 0;
    return VK_SUCCESS;
}

/* ---- descriptor sets ---- */

typedef struct cpu_sets {
    uint32_t count, most;
    cpu_set list[1]; /* as many as were asked for */
} cpu_sets;

static VKAPI_ATTR VkResult VKAPI_CALL sets_create(VkDevice device,
                                                  const VkDescriptorPoolCreateInfo *info,
                                                  const VkAllocationCallbacks *callbacks,
                                                  VkDescriptorPool *out)
{
    (void)callbacks;
    size_t bytes = sizeof(cpu_sets) + info->maxSets * sizeof(cpu_set);
    cpu_sets *sets = mem_zalloc(alloc_of(device), 1, bytes);
    *out = CPU_HANDLE(VkDescriptorPool, sets);
    if (!sets)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    sets->most = info->maxSets;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL sets_destroy(VkDevice device, VkDescriptorPool handle,
                                               const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    mem_free(alloc_of(device), CPU_OBJECT(cpu_sets, handle));
}

static VKAPI_ATTR VkResult VKAPI_CALL set_allocate(VkDevice device,
                                                   const VkDescriptorSetAllocateInfo *info,
                                                   VkDescriptorSet *out)
{
    (void)device;
    cpu_sets *sets = CPU_OBJECT(cpu_sets, info->descriptorPool);
    if (sets->most - sets->count < info->descriptorSetCount)
        return VK_ERROR_OUT_OF_POOL_MEMORY;
    for (uint32_t i = 0; i < info->descriptorSetCount; i++)
        out[i] = CPU_HANDLE(VkDescriptorSet, &sets->list[sets->count++]);
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL sets_update(VkDevice device, uint32_t count,
                                              const VkWriteDescriptorSet *writes,
                                              uint32_t copy_count,
                                              const VkCopyDescriptorSet *copies)
{
    (void)device, (void)copy_count, (void)copies;
    for (uint32_t i = 0; i < count; i++) {
        const VkDescriptorBufferInfo *info = writes[i].pBufferInfo;
        if (writes[i].dstBinding <= CPU_UNIFORM_BINDING)
            CPU_OBJECT(cpu_set, writes[i].dstSet)->binding[writes[i].dstBinding] =
                CPU_OBJECT(cpu_buffer, info->buffer)->data + info->offset;
    }
}

/* ---- queries, fences, the queue ---- */

static VKAPI_ATTR VkResult VKAPI_CALL queries_create(VkDevice device,
                                                     const VkQueryPoolCreateInfo *info,
                                                     const VkAllocationCallbacks *callbacks,
                                                     VkQueryPool *out)
{
    (void)callbacks;
    cpu_queries *q = mem_zalloc(alloc_of(device), info->queryCount + 1, sizeof *q);
    *out = CPU_HANDLE(VkQueryPool, q);
    return q ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
}

static VKAPI_ATTR void VKAPI_CALL queries_destroy(VkDevice device, VkQueryPool handle,
                                                  const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    mem_free(alloc_of(device), CPU_OBJECT(cpu_queries, handle));
}

static VKAPI_ATTR VkResult VKAPI_CALL queries_results(VkDevice device, VkQueryPool handle,
                                                      uint32_t first, uint32_t count, size_t bytes,
                                                      void *out, VkDeviceSize stride,
                                                      VkQueryResultFlags flags)
{
    (void)device, (void)bytes, (void)flags;
    for (uint32_t i = 0; i < count; i++)
        memcpy((char *)out + i * stride, &CPU_OBJECT(cpu_queries, handle)->ns[first + i],
               sizeof(uint64_t));
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL fence_create(VkDevice device, const VkFenceCreateInfo *info,
                                                   const VkAllocationCallbacks *callbacks,
                                                   VkFence *out)
{
    (void)callbacks;
    cpu_fence *f = mem_zalloc(alloc_of(device), 1, sizeof *f);
    *out = CPU_HANDLE(VkFence, f);
    if (!f)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    f->signalled = (info->flags & VK_FENCE_CREATE_SIGNALED_BIT) != 0;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL fence_destroy(VkDevice device, VkFence handle,
                                                const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    mem_free(alloc_of(device), CPU_OBJECT(cpu_fence, handle));
}

static VKAPI_ATTR VkResult VKAPI_CALL fences_reset(VkDevice device, uint32_t count,
                                                   const VkFence *fences)
{
    (void)device;
    for (uint32_t i = 0; i < count; i++)
        CPU_OBJECT(cpu_fence, fences[i])->signalled = false;
    return VK_SUCCESS;
}

/* Submissions end before they return, so there is nothing to wait for. */
static VKAPI_ATTR VkResult VKAPI_CALL fences_wait(VkDevice device, uint32_t count,
                                                  const VkFence *fences, VkBool32 all,
                                                  uint64_t timeout)
{
    (void)device, (void)all, (void)timeout;
    for (uint32_t i = 0; i < count; i++)
        if (!CPU_OBJECT(cpu_fence, fences[i])->signalled)
            return VK_TIMEOUT;
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL submit(VkQueue queue, uint32_t count,
                                             const VkSubmitInfo *infos, VkFence fence)
{
    (void)queue;
    for (uint32_t i = 0; i < count; i++)
        for (uint32_t k = 0; k < infos[i].commandBufferCount; k++)
            cpu_run(CPU_OBJECT(cpu_commands, infos[i].pCommandBuffers[k]));
    if (fence)
        CPU_OBJECT(cpu_fence, fence)->signalled = true;
    return VK_SUCCESS;
}

/* ---- the device ---- */

static VKAPI_ATTR void VKAPI_CALL queue_get(VkDevice device, uint32_t family, uint32_t index,
                                            VkQueue *out)
{
    (void)family, (void)index;
    *out = CPU_HANDLE(VkQueue, CPU_OBJECT(cpu_device, device));
}

static VKAPI_ATTR void VKAPI_CALL device_destroy(VkDevice device,
                                                 const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    cpu_device *d = CPU_OBJECT(cpu_device, device);
    ful_alloc alloc = d->alloc;
    team_destroy(&alloc, &d->team);
    mem_free(&alloc, d);
}

void cpu_device_destroy(VkDevice *device)
{
    if (*device)
        device_destroy(*device, NULL);
    *device = NULL;
}

VkDevice cpu_device_create(const ful_alloc *a, unsigned threads)
{
    cpu_device *d = mem_zalloc(a, 1, sizeof *d);
    if (!d)
        return NULL;
    d->alloc = *a;
    d->team = team_create(a, threads);
    if (!d->team) {
        mem_free(a, d);
        return NULL;
    }
    return CPU_HANDLE(VkDevice, d);
}

void cpu_device_functions(struct VolkDeviceTable *fn)
{
    memset(fn, 0, sizeof *fn);
    cpu_recording_functions(fn);
    fn->vkAllocateMemory = memory_create;
    fn->vkFreeMemory = memory_destroy;
    fn->vkMapMemory = memory_map;
    fn->vkFlushMappedMemoryRanges = memory_sync;
    fn->vkInvalidateMappedMemoryRanges = memory_sync;
    fn->vkCreateBuffer = buffer_create;
    fn->vkDestroyBuffer = buffer_destroy;
    fn->vkGetBufferMemoryRequirements = buffer_needs;
    fn->vkBindBufferMemory = buffer_bind;
    fn->vkCreateShaderModule = module_create;
    fn->vkDestroyShaderModule = module_destroy;
    fn->vkCreateDescriptorSetLayout = set_layout_create;
    fn->vkDestroyDescriptorSetLayout = set_layout_destroy;
    fn->vkCreatePipelineLayout = layout_create;
    fn->vkDestroyPipelineLayout = layout_destroy;
    fn->vkCreateComputePipelines = pipeline_create;
    fn->vkDestroyPipeline = pipeline_destroy;
    fn->vkCreatePipelineCache = cache_create;
    fn->vkDestroyPipelineCache = cache_destroy;
    fn->vkGetPipelineCacheData = cache_data;
    fn->vkCreateDescriptorPool = sets_create;
    fn->vkDestroyDescriptorPool = sets_destroy;
    fn->vkAllocateDescriptorSets = set_allocate;
    fn->vkUpdateDescriptorSets = sets_update;
    fn->vkCreateQueryPool = queries_create;
    fn->vkDestroyQueryPool = queries_destroy;
    fn->vkGetQueryPoolResults = queries_results;
    fn->vkCreateFence = fence_create;
    fn->vkDestroyFence = fence_destroy;
    fn->vkResetFences = fences_reset;
    fn->vkWaitForFences = fences_wait;
    fn->vkQueueSubmit = submit;
    fn->vkGetDeviceQueue = queue_get;
    fn->vkDestroyDevice = device_destroy;
}
