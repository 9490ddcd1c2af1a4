/* Recording: commands become a list, cut into batches at barriers and time stamps. */
#include <string.h>

#include "cpu/cpu_internal.h"

enum { PIECE_BYTES = 1 << 16 }; /* of copies and fills */

static cpu_commands *commands_of(VkCommandBuffer handle)
{
    return CPU_OBJECT(cpu_commands, handle);
}

static VKAPI_ATTR VkResult VKAPI_CALL pool_create(VkDevice device,
                                                  const VkCommandPoolCreateInfo *info,
                                                  const VkAllocationCallbacks *callbacks,
                                                  VkCommandPool *out)
{
    (void)info;
    (void)callbacks;
    cpu_pool *pool = mem_zalloc(&CPU_OBJECT(cpu_device, device)->alloc, 1, sizeof *pool);
    *out = CPU_HANDLE(VkCommandPool, pool);
    return pool ? VK_SUCCESS : VK_ERROR_OUT_OF_HOST_MEMORY;
}

static void commands_free(cpu_commands *c)
{
    const ful_alloc *a = &c->device->alloc;
    mem_free(a, c->list);
    mem_free(a, c->batches);
    mem_free(a, c->progress);
    mem_free(a, c);
}

static VKAPI_ATTR void VKAPI_CALL pool_destroy(VkDevice device, VkCommandPool handle,
                                               const VkAllocationCallbacks *callbacks)
{
    (void)callbacks;
    cpu_pool *pool = CPU_OBJECT(cpu_pool, handle);
    if (!pool)
        return;
    while (pool->first) {
        cpu_commands *c = pool->first;
        pool->first = c->next;
        commands_free(c);
    }
    mem_free(&CPU_OBJECT(cpu_device, device)->alloc, pool);
}

/* One at a time, as gpu/ asks for them. */
static VKAPI_ATTR VkResult VKAPI_CALL commands_allocate(VkDevice device,
                                                        const VkCommandBufferAllocateInfo *info,
                                                        VkCommandBuffer *out)
{
    cpu_device *d = CPU_OBJECT(cpu_device, device);
    cpu_pool *pool = CPU_OBJECT(cpu_pool, info->commandPool);
    *out = NULL;
    if (info->commandBufferCount != 1)
        return VK_ERROR_FEATURE_NOT_PRESENT;
    cpu_commands *c = mem_zalloc(&d->alloc, 1, sizeof *c);
    if (!c)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    c->device = d;
    c->next = pool->first;
    pool->first = c;
    *out = CPU_HANDLE(VkCommandBuffer, c);
    return VK_SUCCESS;
}

static VKAPI_ATTR VkResult VKAPI_CALL begin(VkCommandBuffer handle,
                                            const VkCommandBufferBeginInfo *info)
{
    (void)info;
    cpu_commands *c = commands_of(handle);
    c->count = c->batch_count = 0;
    c->barrier = false;
    c->error = VK_SUCCESS;
    return VK_SUCCESS;
}

/* A new batch where there is none or where the next command must wait. */
static cpu_batch *batch_for(cpu_commands *c, bool fresh)
{
    if (c->batch_count > 0 && !fresh)
        return &c->batches[c->batch_count - 1];
    void *list = c->batches;
    if (!mem_grow(&c->device->alloc, &list, &c->batch_capacity, c->batch_count + 1,
                  sizeof *c->batches)) {
        c->error = VK_ERROR_OUT_OF_HOST_MEMORY;
        return NULL;
    }
    c->batches = list;
    c->batches[c->batch_count] = (cpu_batch){.first = (uint32_t)c->count};
    return &c->batches[c->batch_count++];
}

/* NULL once memory has run out; vkEndCommandBuffer tells. */
static cpu_command *command_add(cpu_commands *c, cpu_command_kind kind)
{
    void *list = c->list;
    if (!mem_grow(&c->device->alloc, &list, &c->capacity, c->count + 1, sizeof *c->list)) {
        c->error = VK_ERROR_OUT_OF_HOST_MEMORY;
        return NULL;
    }
    c->list = list;
    bool stamp = kind == CPU_STAMP;
    bool after_stamp = c->batch_count > 0 && c->batches[c->batch_count - 1].stamps > 0;
    cpu_batch *batch = batch_for(c, !stamp && (c->barrier || after_stamp));
    if (!batch)
        return NULL;
    if (stamp) {
        batch->stamps++;
    } else {
        batch->count++;
        c->barrier = false;
    }
    cpu_command *command = &c->list[c->count++];
    *command = (cpu_command){.kind = kind};
    return command;
}

static VKAPI_ATTR VkResult VKAPI_CALL end(VkCommandBuffer handle)
{
    cpu_commands *c = commands_of(handle);
    if (c->error != VK_SUCCESS)
        return c->error;
    mem_free(&c->device->alloc, c->progress);
    c->progress = mem_zalloc(&c->device->alloc, c->batch_count + 1, cpu_progress_bytes());
    if (!c->progress)
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    /* The list does not move any more. */
    for (size_t i = 0; i < c->count; i++)
        c->list[i].call.push = c->list[i].push;
    return VK_SUCCESS;
}

static VKAPI_ATTR void VKAPI_CALL barrier(VkCommandBuffer handle, VkPipelineStageFlags from,
                                          VkPipelineStageFlags to, VkDependencyFlags flags,
                                          uint32_t memory_count, const VkMemoryBarrier *memory,
                                          uint32_t buffer_count,
                                          const VkBufferMemoryBarrier *buffers,
                                          uint32_t image_count, const VkImageMemoryBarrier *images)
{
    (void)from, (void)to, (void)flags, (void)memory_count, (void)memory;
    (void)buffer_count, (void)buffers, (void)image_count, (void)images;
    commands_of(handle)->barrier = true;
}

static VKAPI_ATTR void VKAPI_CALL bind_pipeline(VkCommandBuffer handle, VkPipelineBindPoint point,
                                                VkPipeline pipeline)
{
    (void)point;
    commands_of(handle)->pipeline = CPU_OBJECT(cpu_pipeline, pipeline);
}

static VKAPI_ATTR void VKAPI_CALL bind_sets(VkCommandBuffer handle, VkPipelineBindPoint point,
                                            VkPipelineLayout layout, uint32_t first, uint32_t count,
                                            const VkDescriptorSet *sets, uint32_t offset_count,
                                            const uint32_t *offsets)
{
    (void)point, (void)layout, (void)first, (void)count, (void)offset_count, (void)offsets;
    commands_of(handle)->set = CPU_OBJECT(const cpu_set, sets[0]);
}

static VKAPI_ATTR void VKAPI_CALL push(VkCommandBuffer handle, VkPipelineLayout layout,
                                       VkShaderStageFlags stages, uint32_t offset, uint32_t bytes,
                                       const void *values)
{
    (void)layout, (void)stages;
    memcpy((uint8_t *)commands_of(handle)->push + offset, values, bytes);
}

static cpu_command *dispatch_add(cpu_commands *c)
{
    cpu_command *command = command_add(c, CPU_DISPATCH);
    if (!command)
        return NULL;
    command->run = c->pipeline->run;
    command->call.constant = c->pipeline->constants;
    for (int i = 0; i < CPU_STORAGE_BUFFERS; i++)
        command->call.buffer[i] = c->set->binding[i];
    command->call.step = (const cpu_step *)(const void *)c->set->binding[CPU_UNIFORM_BINDING];
    memcpy(command->push, c->push, sizeof command->push);
    return command;
}

static VKAPI_ATTR void VKAPI_CALL dispatch(VkCommandBuffer handle, uint32_t x, uint32_t y,
                                           uint32_t z)
{
    cpu_command *command = dispatch_add(commands_of(handle));
    if (!command)
        return;
    command->call.groups[0] = x;
    command->call.groups[1] = y;
    command->call.groups[2] = z;
    command->pieces = (uint64_t)x * y * z;
}

static VKAPI_ATTR void VKAPI_CALL dispatch_indirect(VkCommandBuffer handle, VkBuffer buffer,
                                                    VkDeviceSize offset)
{
    cpu_command *command = dispatch_add(commands_of(handle));
    if (command)
        command->indirect =
            (const uint32_t *)(const void *)(CPU_OBJECT(cpu_buffer, buffer)->data + offset);
}

static VKAPI_ATTR void VKAPI_CALL copy(VkCommandBuffer handle, VkBuffer from, VkBuffer to,
                                       uint32_t count, const VkBufferCopy *regions)
{
    for (uint32_t i = 0; i < count; i++) {
        cpu_command *command = command_add(commands_of(handle), CPU_COPY);
        if (!command)
            return;
        command->from = CPU_OBJECT(cpu_buffer, from)->data + regions[i].srcOffset;
        command->to = CPU_OBJECT(cpu_buffer, to)->data + regions[i].dstOffset;
        command->bytes = regions[i].size;
        command->pieces = (command->bytes + PIECE_BYTES - 1) / PIECE_BYTES;
    }
}

static void copy_run(const cpu_command *c, uint64_t first, uint64_t count)
{
    uint64_t begin = first * PIECE_BYTES, left = c->bytes - begin, bytes = count * PIECE_BYTES;
    memmove(c->to + begin, c->from + begin, (size_t)(bytes < left ? bytes : left));
}

static VKAPI_ATTR void VKAPI_CALL fill(VkCommandBuffer handle, VkBuffer to, VkDeviceSize offset,
                                       VkDeviceSize bytes, uint32_t word)
{
    cpu_command *command = command_add(commands_of(handle), CPU_FILL);
    if (!command)
        return;
    command->to = CPU_OBJECT(cpu_buffer, to)->data + offset;
    command->bytes = bytes;
    command->word = word;
    command->pieces = (bytes + PIECE_BYTES - 1) / PIECE_BYTES;
}

static void fill_run(const cpu_command *c, uint64_t first, uint64_t count)
{
    uint64_t begin = first * PIECE_BYTES, left = c->bytes - begin, bytes = count * PIECE_BYTES;
    uint32_t *to = (uint32_t *)(void *)(c->to + begin);
    for (uint64_t i = 0; i < (bytes < left ? bytes : left) / 4; i++)
        to[i] = c->word;
}

void cpu_command_run(const cpu_command *c, uint64_t first, uint64_t count)
{
    if (c->kind == CPU_COPY) {
        copy_run(c, first, count);
    } else if (c->kind == CPU_FILL) {
        fill_run(c, first, count);
    } else {
        uint64_t layer = (uint64_t)c->call.groups[0] * c->call.groups[1];
        while (count > 0) {
            uint64_t line = first % layer, some = layer - line < count ? layer - line : count;
            c->run(&c->call, line, some, (uint32_t)(first / layer));
            first += some;
            count -= some;
        }
    }
}

static VKAPI_ATTR void VKAPI_CALL reset_queries(VkCommandBuffer handle, VkQueryPool pool,
                                                uint32_t first, uint32_t count)
{
    (void)handle, (void)pool, (void)first, (void)count; /* they are overwritten */
}

static VKAPI_ATTR void VKAPI_CALL write_stamp(VkCommandBuffer handle, VkPipelineStageFlagBits stage,
                                              VkQueryPool pool, uint32_t query)
{
    (void)stage;
    cpu_command *command = command_add(commands_of(handle), CPU_STAMP);
    if (command)
        command->stamp = &CPU_OBJECT(cpu_queries, pool)->ns[query];
}

void cpu_recording_functions(struct VolkDeviceTable *fn)
{
    fn->vkCreateCommandPool = pool_create;
    fn->vkDestroyCommandPool = pool_destroy;
    fn->vkAllocateCommandBuffers = commands_allocate;
    fn->vkBeginCommandBuffer = begin;
    fn->vkEndCommandBuffer = end;
    fn->vkCmdPipelineBarrier = barrier;
    fn->vkCmdBindPipeline = bind_pipeline;
    fn->vkCmdBindDescriptorSets = bind_sets;
    fn->vkCmdPushConstants = push;
    fn->vkCmdDispatch = dispatch;
    fn->vkCmdDispatchIndirect = dispatch_indirect;
    fn->vkCmdCopyBuffer = copy;
    fn->vkCmdFillBuffer = fill;
    fn->vkCmdResetQueryPool = reset_queries;
    fn->vkCmdWriteTimestamp = write_stamp;
}
