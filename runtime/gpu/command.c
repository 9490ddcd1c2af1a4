/* Recording, submitting and waiting.
 *
 * The recorder keeps the byte ranges that were touched since the last barrier. A step that meets
 * one of them (unless both only read) gets a barrier in front of it: one VkMemoryBarrier over
 * everything before it. A barrier makes earlier work visible to compute, and to transfers and
 * indirect arguments only when the step needs that; `stale` remembers which of these have missed a
 * barrier. */
#include <stdio.h>
#include <string.h>

#include "gpu/gpu_internal.h"

enum { UNIFORM_BINDING = 8, SETS_PER_POOL = 128, BUFFERS_PER_SET = 5, QUERIES_TIMED = 1024 };

/* What a step does with memory, besides compute. */
enum { CLASS_COMPUTE = 1, CLASS_TRANSFER = 2, CLASS_INDIRECT = 4, CLASS_ALL = 7 };

typedef struct access {
    VkBuffer buffer;
    uint64_t begin, end;
    bool write;
} access;

typedef struct step {
    const char *label;
    int32_t layer;
    gpu_cost cost;
    gpu_pipeline *pipeline; /* NULL: a copy or fill */
    uint32_t part, query;   /* GPU_COMMANDS_TIMED: the query behind it */
} step;

typedef struct part {
    VkCommandBuffer cmd;
    VkFence fence;
    VkQueryPool queries; /* VK_NULL_HANDLE without timestamps */
    uint32_t query_count;
    uint32_t first_step, step_count;
    double estimated_ns; /* all steps ... */
    double modelled_ns;  /* ... and dispatches alone, which the estimate learns from */
    uint64_t span_ns;    /* as measured last, 0: not */
    bool pending;
    bool fresh;                                /* holds pipelines that never ran */
    uint32_t processor_first, processor_count; /* steps that the processor takes behind it */
} part;

struct gpu_commands {
    ful_device *device;
    uint32_t flags;
    bool ended, submitted_once, times_ready;
    bool unwaited; /* a wait failed for want of memory: the next submission begins with another */
    ful_result error; /* the first one; its line is in message */
    char message[320];
    VkCommandPool pool;
    part *parts;
    size_t part_count, part_capacity;
    VkDescriptorPool *sets;
    size_t sets_count, sets_capacity;
    uint32_t sets_left, set_buffers_left; /* in the last pool */
    step *steps;
    size_t step_count, step_capacity;
    uint32_t dispatch_count, barrier_count;
    access *accesses;
    size_t access_count, access_capacity;
    uint32_t used;     /* classes used in this part */
    uint32_t stale;    /* classes that missed a barrier */
    VkBuffer *written; /* buffers that steps write, each once */
    size_t written_count, written_capacity;
    bool uniforms; /* one of them is read as a uniform buffer, too */
    const gpu_pipeline *bound;
    processor_step *processor_steps;
    size_t processor_count, processor_capacity;
    gpu_time *times;
};

/* ---- errors ---- */

static ful_result keep_error(gpu_commands *c, ful_result r)
{
    if (r != FUL_OK && c->error == FUL_OK) {
        c->error = r;
        snprintf(c->message, sizeof(c->message), "%s", ful_last_error());
    }
    return r;
}

static ful_result kept_error(const gpu_commands *c)
{
    return c->error == FUL_OK ? FUL_OK : fail(c->error, "%s", c->message);
}

/* ---- barriers ---- */

/* Uniform reads are left out where no step writes what one reads: their caches stay as they are. */
static void barrier_record(gpu_commands *c, VkCommandBuffer cmd, uint32_t from, uint32_t to,
                           bool uniforms)
{
    VkPipelineStageFlags src = 0, dst = 0;
    VkMemoryBarrier m = {.sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER};
    if (from & CLASS_COMPUTE) {
        src |= VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
        m.srcAccessMask |= VK_ACCESS_SHADER_WRITE_BIT;
    }
    if (from & CLASS_TRANSFER) {
        src |= VK_PIPELINE_STAGE_TRANSFER_BIT;
        m.srcAccessMask |= VK_ACCESS_TRANSFER_WRITE_BIT;
    }
    if (from & CLASS_INDIRECT)
        src |= VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
    if (to & CLASS_COMPUTE) {
        dst |= VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT;
        m.dstAccessMask |= VK_ACCESS_SHADER_READ_BIT | VK_ACCESS_SHADER_WRITE_BIT;
        if (uniforms)
            m.dstAccessMask |= VK_ACCESS_UNIFORM_READ_BIT;
    }
    if (to & CLASS_TRANSFER) {
        dst |= VK_PIPELINE_STAGE_TRANSFER_BIT;
        m.dstAccessMask |= VK_ACCESS_TRANSFER_READ_BIT | VK_ACCESS_TRANSFER_WRITE_BIT;
    }
    if (to & CLASS_INDIRECT) {
        dst |= VK_PIPELINE_STAGE_DRAW_INDIRECT_BIT;
        m.dstAccessMask |= VK_ACCESS_INDIRECT_COMMAND_READ_BIT;
    }
    c->device->fn.vkCmdPipelineBarrier(cmd, src, dst, 0, 1, &m, 0, NULL, 0, NULL);
}

static void host_barrier_record(gpu_commands *c, VkCommandBuffer cmd)
{
    VkMemoryBarrier m = {
        .sType = VK_STRUCTURE_TYPE_MEMORY_BARRIER,
        .srcAccessMask = VK_ACCESS_SHADER_WRITE_BIT | VK_ACCESS_TRANSFER_WRITE_BIT,
        .dstAccessMask = VK_ACCESS_HOST_READ_BIT,
    };
    c->device->fn.vkCmdPipelineBarrier(
        cmd, VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | VK_PIPELINE_STAGE_TRANSFER_BIT,
        VK_PIPELINE_STAGE_HOST_BIT, 0, 1, &m, 0, NULL, 0, NULL);
}

static bool accesses_meet(const gpu_commands *c, const access *a)
{
    for (size_t i = 0; i < c->access_count; i++) {
        const access *b = &c->accesses[i];
        if ((a->write || b->write) && a->buffer == b->buffer && a->begin < b->end &&
            b->begin < a->end)
            return true;
    }
    return false;
}

static bool written_has(const gpu_commands *c, VkBuffer buffer)
{
    for (size_t i = 0; i < c->written_count; i++)
        if (c->written[i] == buffer)
            return true;
    return false;
}

static ful_result written_add(gpu_commands *c, const access *list, size_t n)
{
    void *p = c->written;
    if (!mem_grow(&c->device->alloc, &p, &c->written_capacity, c->written_count + n,
                  sizeof(VkBuffer)))
        return mem_fail(n * sizeof(VkBuffer), "the barrier tracker");
    c->written = p;
    for (size_t i = 0; i < n; i++)
        if (list[i].write && !written_has(c, list[i].buffer))
            c->written[c->written_count++] = list[i].buffer;
    return FUL_OK;
}

/* Before the first step whose uniform buffer another one wrote: barriers from here on include
 * uniform reads, and this step gets one. */
static void uniform_note(gpu_commands *c, VkBuffer uniform)
{
    if (c->uniforms || !written_has(c, uniform))
        return;
    c->uniforms = true;
    if (c->used != 0) /* else the part begins with one */
        c->stale |= CLASS_COMPUTE;
}

/* Places a barrier if the step needs one, and notes the step's accesses. */
static ful_result accesses_add(gpu_commands *c, const access *list, size_t n, uint32_t classes)
{
    bool needed = (c->stale & classes) != 0;
    for (size_t i = 0; i < n && !needed; i++)
        needed = accesses_meet(c, &list[i]);
    void *p = c->accesses;
    if (!mem_grow(&c->device->alloc, &p, &c->access_capacity, c->access_count + n, sizeof(access)))
        return mem_fail(n * sizeof(access), "the barrier tracker");
    c->accesses = p;
    TRY(written_add(c, list, n));
    if (needed) {
        uint32_t to = classes | CLASS_COMPUTE;
        if (!(c->flags & GPU_COMMANDS_NO_BARRIER))
            barrier_record(c, c->parts[c->part_count - 1].cmd, c->used, to, c->uniforms);
        c->barrier_count++;
        c->access_count = 0;
        c->stale = (c->stale | CLASS_ALL) & ~to;
    }
    memcpy(c->accesses + c->access_count, list, n * sizeof(access));
    c->access_count += n;
    c->used |= classes;
    return FUL_OK;
}

static access access_of(gpu_range r, bool write)
{
    access a = {r.buffer->vk, r.offset, r.offset + r.bytes, write};
    return a;
}

/* ---- parts ---- */

static part *part_now(gpu_commands *c)
{
    return &c->parts[c->part_count - 1];
}

static ful_result part_begin(gpu_commands *c)
{
    ful_device *d = c->device;
    void *list = c->parts;
    if (!mem_grow(&d->alloc, &list, &c->part_capacity, c->part_count + 1, sizeof(part)))
        return mem_fail(sizeof(part), "a submission");
    c->parts = list;
    part p = {.first_step = (uint32_t)c->step_count};
    VkCommandBufferAllocateInfo alloc = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_ALLOCATE_INFO,
        .commandPool = c->pool,
        .level = VK_COMMAND_BUFFER_LEVEL_PRIMARY,
        .commandBufferCount = 1,
    };
    VkFenceCreateInfo fence = {.sType = VK_STRUCTURE_TYPE_FENCE_CREATE_INFO};
    VkQueryPoolCreateInfo queries = {
        .sType = VK_STRUCTURE_TYPE_QUERY_POOL_CREATE_INFO,
        .queryType = VK_QUERY_TYPE_TIMESTAMP,
        .queryCount = c->flags & GPU_COMMANDS_TIMED ? QUERIES_TIMED : 2,
    };
    VkCommandBufferBeginInfo begin = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_BUFFER_BEGIN_INFO,
        .flags = c->flags & GPU_COMMANDS_REUSABLE ? 0 : VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT,
    };
    VkResult r = d->fn.vkAllocateCommandBuffers(d->vk, &alloc, &p.cmd);
    if (r == VK_SUCCESS)
        r = d->fn.vkCreateFence(d->vk, &fence, NULL, &p.fence);
    if (r == VK_SUCCESS && (d->info.caps.features & FUL_FEATURE_TIMESTAMP))
        r = d->fn.vkCreateQueryPool(d->vk, &queries, NULL, &p.queries);
    if (r == VK_SUCCESS)
        r = d->fn.vkBeginCommandBuffer(p.cmd, &begin);
    if (r != VK_SUCCESS) {
        d->fn.vkDestroyQueryPool(d->vk, p.queries, NULL);
        d->fn.vkDestroyFence(d->vk, p.fence, NULL);
        return vk_fail(d, r, "beginning a command buffer");
    }
    c->parts[c->part_count++] = p;
    /* Covers all that was submitted before: other commands, and earlier rounds of these. */
    barrier_record(c, p.cmd, CLASS_ALL, CLASS_ALL, true);
    if (p.queries) {
        d->fn.vkCmdResetQueryPool(p.cmd, p.queries, 0, queries.queryCount);
        d->fn.vkCmdWriteTimestamp(p.cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, p.queries, 0);
        part_now(c)->query_count = 1;
    }
    c->access_count = 0;
    c->used = 0;
    c->stale = 0;
    c->bound = NULL;
    return FUL_OK;
}

static ful_result part_end(gpu_commands *c, bool last)
{
    ful_device *d = c->device;
    part *p = part_now(c);
    if (p->queries && !(c->flags & GPU_COMMANDS_TIMED)) {
        d->fn.vkCmdWriteTimestamp(p->cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, p->queries, 1);
        p->query_count = 2;
    }
    if (last)
        host_barrier_record(c, p->cmd);
    VkResult r = d->fn.vkEndCommandBuffer(p->cmd);
    return r == VK_SUCCESS ? FUL_OK : vk_fail(d, r, "vkEndCommandBuffer");
}

/* Closes the part before a step that would exceed the time budget. */
static ful_result part_reserve(gpu_commands *c, double ns)
{
    const part *p = part_now(c);
    bool late = c->device->max_submit_ms != UINT32_MAX &&
                p->estimated_ns + ns > (double)c->device->max_submit_ms * 1e6;
    bool full = (c->flags & GPU_COMMANDS_TIMED) && p->query_count >= QUERIES_TIMED;
    if (p->step_count == 0 || (!late && !full))
        return FUL_OK;
    TRY(part_end(c, false));
    return part_begin(c);
}

/* Notes the step that was just recorded. */
static void step_note(gpu_commands *c, const step *s, double estimated_ns)
{
    part *p = part_now(c);
    step *to = &c->steps[c->step_count++];
    *to = *s;
    to->part = (uint32_t)(c->part_count - 1);
    if (p->queries && (c->flags & GPU_COMMANDS_TIMED)) {
        c->device->fn.vkCmdWriteTimestamp(p->cmd, VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT, p->queries,
                                          p->query_count);
        to->query = p->query_count++;
    }
    p->step_count++;
    p->estimated_ns += estimated_ns;
    if (s->pipeline) {
        gpu_cost nothing = {0, 0};
        c->dispatch_count++;
        p->fresh = p->fresh || !atomic_load(&s->pipeline->seasoned);
        p->modelled_ns += estimated_ns - timer_estimate_ns(c->device, &nothing);
    }
}

static ful_result step_room(gpu_commands *c)
{
    void *list = c->steps;
    if (!mem_grow(&c->device->alloc, &list, &c->step_capacity, c->step_count + 1, sizeof(step)))
        return mem_fail(sizeof(step), "a step");
    c->steps = list;
    return FUL_OK;
}

/* ---- begin ---- */

ful_result gpu_commands_begin(ful_device *device, uint32_t flags, gpu_commands **out)
{
    *out = NULL;
    TRY(device_alive(device));
    gpu_commands *c = mem_zalloc(&device->alloc, 1, sizeof(*c));
    if (!c)
        return mem_fail(sizeof(*c), "commands");
    c->device = device;
    c->flags = flags;
    if (flags & GPU_COMMANDS_DRY) {
        *out = c;
        return FUL_OK;
    }
    VkCommandPoolCreateInfo pool = {
        .sType = VK_STRUCTURE_TYPE_COMMAND_POOL_CREATE_INFO,
        .queueFamilyIndex = device->facts.queue_family,
    };
    VkResult r = device->fn.vkCreateCommandPool(device->vk, &pool, NULL, &c->pool);
    ful_result result = r == VK_SUCCESS ? part_begin(c) : vk_fail(device, r, "vkCreateCommandPool");
    if (result != FUL_OK) {
        gpu_commands_destroy(&c);
        return result;
    }
    *out = c;
    return FUL_OK;
}

/* ---- dispatches ---- */

static ful_result range_bindable(const gpu_dispatch *d, gpu_range r, uint32_t i, uint64_t limit)
{
    if (!r.buffer || r.bytes == 0)
        return fail(FUL_ERR_ARGUMENT, "%s: buffer %u is empty", d->label, (unsigned)i);
    const char *name = r.buffer->name ? r.buffer->name : "without name";
    if (r.offset % 256 != 0)
        return fail(FUL_ERR_ARGUMENT, "%s: buffer %u (%s): offset %llu is no multiple of 256",
                    d->label, (unsigned)i, name, (unsigned long long)r.offset);
    if (r.offset > r.buffer->bytes || r.bytes > r.buffer->bytes - r.offset)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: buffer %u (%s): %llu bytes at %llu are outside its %llu bytes", d->label,
                    (unsigned)i, name, (unsigned long long)r.bytes, (unsigned long long)r.offset,
                    (unsigned long long)r.buffer->bytes);
    if (r.bytes > limit)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: buffer %u (%s): %llu bytes are more than a binding's %llu", d->label,
                    (unsigned)i, name, (unsigned long long)r.bytes, (unsigned long long)limit);
    return FUL_OK;
}

static ful_result dispatch_check(const gpu_commands *c, const gpu_dispatch *d)
{
    const ful_caps *caps = &c->device->info.caps;
    if (c->ended)
        return fail(FUL_ERR_ARGUMENT, "%s: the commands have ended", d->label);
    if (!d->pipeline)
        return fail(FUL_ERR_ARGUMENT, "%s: no pipeline", d->label);
    const gpu_pipeline_desc *p = &d->pipeline->desc;
    for (uint32_t i = 0; i < p->buffer_count; i++)
        TRY(range_bindable(d, d->buffers[i], i, caps->storage_range_bytes));
    if (p->uniform)
        TRY(range_bindable(d, d->uniform, UNIFORM_BINDING, caps->uniform_range_bytes));
    if (p->push_bytes && !d->push)
        return fail(FUL_ERR_ARGUMENT, "%s: no push constants", d->label);
    if (d->indirect.buffer) {
        if (d->indirect.offset % 4 != 0 || d->indirect.bytes < 12 ||
            d->indirect.offset + 12 > d->indirect.buffer->bytes)
            return fail(FUL_ERR_ARGUMENT, "%s: indirect arguments of %llu bytes at %llu", d->label,
                        (unsigned long long)d->indirect.bytes,
                        (unsigned long long)d->indirect.offset);
        return FUL_OK;
    }
    for (int i = 0; i < 3; i++)
        if (d->groups[i] == 0 || d->groups[i] > caps->workgroup_count[i])
            return fail(FUL_ERR_ARGUMENT, "%s: %u workgroups in dimension %d, allowed 1 to %u",
                        d->label, (unsigned)d->groups[i], i, (unsigned)caps->workgroup_count[i]);
    return FUL_OK;
}

static VkResult sets_pool_add(gpu_commands *c)
{
    ful_device *d = c->device;
    void *list = c->sets;
    if (!mem_grow(&d->alloc, &list, &c->sets_capacity, c->sets_count + 1, sizeof(*c->sets)))
        return VK_ERROR_OUT_OF_HOST_MEMORY;
    c->sets = list;
    VkDescriptorPoolSize sizes[] = {
        {VK_DESCRIPTOR_TYPE_STORAGE_BUFFER, SETS_PER_POOL * BUFFERS_PER_SET},
        {VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER, SETS_PER_POOL},
    };
    VkDescriptorPoolCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_POOL_CREATE_INFO,
        .maxSets = SETS_PER_POOL,
        .poolSizeCount = 2,
        .pPoolSizes = sizes,
    };
    VkResult r = d->fn.vkCreateDescriptorPool(d->vk, &info, NULL, &c->sets[c->sets_count]);
    if (r == VK_SUCCESS) {
        c->sets_count++;
        c->sets_left = SETS_PER_POOL;
        c->set_buffers_left = SETS_PER_POOL * BUFFERS_PER_SET;
    }
    return r;
}

static ful_result set_allocate(gpu_commands *c, const pipeline_layout *layout, VkDescriptorSet *set)
{
    VkDescriptorSetAllocateInfo info = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_ALLOCATE_INFO,
        .descriptorSetCount = 1,
        .pSetLayouts = &layout->set,
    };
    /* Vulkan 1.0 does not say what happens when a pool is asked for more than it has. */
    VkResult r = VK_ERROR_OUT_OF_POOL_MEMORY;
    if (c->sets_count > 0 && c->sets_left > 0 && c->set_buffers_left >= layout->buffer_count) {
        info.descriptorPool = c->sets[c->sets_count - 1];
        r = c->device->fn.vkAllocateDescriptorSets(c->device->vk, &info, set);
    }
    if (r == VK_ERROR_OUT_OF_POOL_MEMORY || r == VK_ERROR_FRAGMENTED_POOL) {
        r = sets_pool_add(c);
        if (r == VK_SUCCESS) {
            info.descriptorPool = c->sets[c->sets_count - 1];
            r = c->device->fn.vkAllocateDescriptorSets(c->device->vk, &info, set);
        }
    }
    if (r != VK_SUCCESS)
        return vk_fail(c->device, r, "allocating a descriptor set");
    c->sets_left--;
    c->set_buffers_left -= layout->buffer_count;
    return FUL_OK;
}

/* Descriptor sizes are rounded up for vector loads at the end; buffers are padded for that. */
static VkDescriptorBufferInfo buffer_info(gpu_range r, uint64_t limit)
{
    uint64_t bytes = (r.bytes + 15) & ~(uint64_t)15;
    VkDescriptorBufferInfo info = {r.buffer->vk, r.offset, bytes <= limit ? bytes : r.bytes};
    return info;
}

static ful_result set_make(gpu_commands *c, const gpu_dispatch *d, VkDescriptorSet *set)
{
    const ful_caps *caps = &c->device->info.caps;
    const gpu_pipeline_desc *p = &d->pipeline->desc;
    VkDescriptorBufferInfo infos[GPU_MAX_BUFFERS + 1];
    VkWriteDescriptorSet writes[GPU_MAX_BUFFERS + 1];
    uint32_t n = 0;
    TRY(set_allocate(c, d->pipeline->layout, set));
    for (; n < p->buffer_count; n++) {
        infos[n] = buffer_info(d->buffers[n], caps->storage_range_bytes);
        writes[n] = (VkWriteDescriptorSet){
            .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
            .dstSet = *set,
            .dstBinding = n,
            .descriptorCount = 1,
            .descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            .pBufferInfo = &infos[n],
        };
    }
    if (p->uniform) {
        infos[n] = buffer_info(d->uniform, caps->uniform_range_bytes);
        writes[n] = (VkWriteDescriptorSet){
            .sType = VK_STRUCTURE_TYPE_WRITE_DESCRIPTOR_SET,
            .dstSet = *set,
            .dstBinding = UNIFORM_BINDING,
            .descriptorCount = 1,
            .descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER,
            .pBufferInfo = &infos[n],
        };
        n++;
    }
    c->device->fn.vkUpdateDescriptorSets(c->device->vk, n, writes, 0, NULL);
    return FUL_OK;
}

static size_t dispatch_accesses(const gpu_dispatch *d, access *list)
{
    const gpu_pipeline_desc *p = &d->pipeline->desc;
    size_t n = 0;
    for (uint32_t i = 0; i < p->buffer_count; i++)
        list[n++] = access_of(d->buffers[i], ((d->writes | d->updates) >> i & 1) != 0);
    if (p->uniform)
        list[n++] = access_of(d->uniform, false);
    if (d->indirect.buffer)
        list[n++] = access_of(gpu_part(d->indirect, 0, 12), false);
    return n;
}

/* Closes the part in front of a step that the processor takes; those of one place stay together. */
static ful_result processor_record(gpu_commands *c, const gpu_dispatch *d)
{
    const ful_alloc *a = &c->device->alloc;
    void *list = c->processor_steps;
    if (!mem_grow(a, &list, &c->processor_capacity, c->processor_count + 1,
                  sizeof(*c->processor_steps)))
        return mem_fail(sizeof(*c->processor_steps), "a step on the processor");
    c->processor_steps = list;
    TRY(processor_step_make(d, &c->processor_steps[c->processor_count]));
    bool joins = part_now(c)->step_count == 0 && c->part_count > 1 &&
                 c->parts[c->part_count - 2].processor_count > 0;
    if (!joins) {
        TRY(part_end(c, true));
        part_now(c)->processor_first = (uint32_t)c->processor_count;
        TRY(part_begin(c));
    }
    c->parts[c->part_count - 2].processor_count++;
    c->processor_count++;
    c->dispatch_count++;
    return FUL_OK;
}

static ful_result dispatch_record(gpu_commands *c, const gpu_dispatch *d)
{
    ful_device *device = c->device;
    TRY(kept_error(c));
    TRY(dispatch_check(c, d));
    if (c->flags & GPU_COMMANDS_DRY) {
        TRY(step_room(c));
        c->steps[c->step_count++] = (step){.label = d->label, .pipeline = d->pipeline};
        c->dispatch_count++;
        return FUL_OK;
    }
    if (d->pipeline->on_processor)
        return processor_record(c, d);
    TRY(pipeline_ready(device, d->pipeline));
    TRY(step_room(c));
    double ns = timer_estimate_ns(device, &d->cost);
    TRY(part_reserve(c, ns));
    VkDescriptorSet set;
    TRY(set_make(c, d, &set));
    access list[GPU_MAX_BUFFERS + 2];
    size_t n = dispatch_accesses(d, list);
    if (d->pipeline->desc.uniform)
        uniform_note(c, d->uniform.buffer->vk);
    TRY(accesses_add(c, list, n, CLASS_COMPUTE | (d->indirect.buffer ? CLASS_INDIRECT : 0)));

    VkCommandBuffer cmd = part_now(c)->cmd;
    const pipeline_layout *layout = d->pipeline->layout;
    if (c->bound != d->pipeline)
        device->fn.vkCmdBindPipeline(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, d->pipeline->vk);
    c->bound = d->pipeline;
    device->fn.vkCmdBindDescriptorSets(cmd, VK_PIPELINE_BIND_POINT_COMPUTE, layout->vk, 0, 1, &set,
                                       0, NULL);
    if (layout->push_bytes)
        device->fn.vkCmdPushConstants(cmd, layout->vk, VK_SHADER_STAGE_COMPUTE_BIT, 0,
                                      layout->push_bytes, d->push);
    if (d->indirect.buffer)
        device->fn.vkCmdDispatchIndirect(cmd, d->indirect.buffer->vk, d->indirect.offset);
    else
        device->fn.vkCmdDispatch(cmd, d->groups[0], d->groups[1], d->groups[2]);
    step s = {.label = d->label, .layer = d->layer, .cost = d->cost, .pipeline = d->pipeline};
    step_note(c, &s, ns);
    return FUL_OK;
}

ful_result gpu_commands_dispatch(gpu_commands *c, const gpu_dispatch *d)
{
    gpu_dispatch copy = *d;
    if (!copy.label)
        copy.label = copy.pipeline ? copy.pipeline->name : "dispatch";
    return keep_error(c, dispatch_record(c, &copy));
}

/* ---- copies and fills ---- */

static ful_result transfer_check(const gpu_commands *c, gpu_range r, const char *what)
{
    if (c->ended)
        return fail(FUL_ERR_ARGUMENT, "%s: the commands have ended", what);
    if (!r.buffer || r.bytes == 0 || r.offset > r.buffer->bytes ||
        r.bytes > r.buffer->bytes - r.offset)
        return fail(FUL_ERR_ARGUMENT, "%s: %llu bytes at %llu of buffer %s", what,
                    (unsigned long long)r.bytes, (unsigned long long)r.offset,
                    r.buffer && r.buffer->name ? r.buffer->name : "without name");
    return FUL_OK;
}

static ful_result transfer_begin(gpu_commands *c, const access *list, size_t n, double bytes,
                                 double *ns)
{
    gpu_cost cost = {bytes, 0};
    *ns = timer_estimate_ns(c->device, &cost);
    TRY(step_room(c));
    TRY(part_reserve(c, *ns));
    return accesses_add(c, list, n, CLASS_TRANSFER);
}

static ful_result copy_record(gpu_commands *c, gpu_range src, gpu_range dst)
{
    double ns;
    TRY(kept_error(c));
    src.bytes = dst.bytes;
    TRY(transfer_check(c, src, "copy from"));
    TRY(transfer_check(c, dst, "copy to"));
    if (c->flags & GPU_COMMANDS_DRY)
        return FUL_OK;
    access list[2] = {access_of(src, false), access_of(dst, true)};
    TRY(transfer_begin(c, list, 2, 2.0 * (double)dst.bytes, &ns));
    VkBufferCopy region = {src.offset, dst.offset, dst.bytes};
    c->device->fn.vkCmdCopyBuffer(part_now(c)->cmd, src.buffer->vk, dst.buffer->vk, 1, &region);
    step s = {.label = "copy", .layer = -1};
    step_note(c, &s, ns);
    return FUL_OK;
}

static ful_result fill_record(gpu_commands *c, gpu_range dst, uint32_t word)
{
    double ns;
    TRY(kept_error(c));
    TRY(transfer_check(c, dst, "fill"));
    if ((dst.offset | dst.bytes) & 3)
        return fail(FUL_ERR_ARGUMENT, "fill: %llu bytes at %llu are no whole words",
                    (unsigned long long)dst.bytes, (unsigned long long)dst.offset);
    if (c->flags & GPU_COMMANDS_DRY)
        return FUL_OK;
    access list[1] = {access_of(dst, true)};
    TRY(transfer_begin(c, list, 1, (double)dst.bytes, &ns));
    c->device->fn.vkCmdFillBuffer(part_now(c)->cmd, dst.buffer->vk, dst.offset, dst.bytes, word);
    step s = {.label = "fill", .layer = -1};
    step_note(c, &s, ns);
    return FUL_OK;
}

ful_result gpu_commands_copy(gpu_commands *c, gpu_range src, gpu_range dst)
{
    return keep_error(c, copy_record(c, src, dst));
}

ful_result gpu_commands_fill(gpu_commands *c, gpu_range dst, uint32_t word)
{
    return keep_error(c, fill_record(c, dst, word));
}

/* ---- end, submit, wait ---- */

ful_result gpu_commands_end(gpu_commands *c)
{
    TRY(kept_error(c));
    if (c->ended)
        return FUL_OK;
    c->ended = true;
    return c->flags & GPU_COMMANDS_DRY ? FUL_OK : keep_error(c, part_end(c, true));
}

const char *gpu_commands_module(const gpu_commands *c, uint32_t i)
{
    return c->steps[i].pipeline->name;
}

uint32_t gpu_commands_dispatches(const gpu_commands *c)
{
    return c->dispatch_count;
}

uint32_t gpu_commands_submits(const gpu_commands *c)
{
    return (uint32_t)c->part_count;
}

uint32_t commands_barriers(const gpu_commands *c)
{
    return c->barrier_count;
}

static VkResult part_submit(gpu_commands *c, part *p)
{
    ful_device *d = c->device;
    VkSubmitInfo info = {
        .sType = VK_STRUCTURE_TYPE_SUBMIT_INFO,
        .commandBufferCount = 1,
        .pCommandBuffers = &p->cmd,
    };
    VkResult r = VK_SUCCESS;
    if (c->submitted_once)
        r = d->fn.vkResetFences(d->vk, 1, &p->fence);
    if (r == VK_SUCCESS)
        r = d->fn.vkQueueSubmit(d->queue, 1, &info, p->fence);
    p->pending = r == VK_SUCCESS;
    return r;
}

static ful_result parts_wait(gpu_commands *c, size_t count);

/* "12 steps that begin with matmul of layer 3". */
static void part_describe(const gpu_commands *c, const part *p, char *text, size_t bytes)
{
    const step *s = p->step_count > 0 ? &c->steps[p->first_step] : NULL;
    char layer[32] = "";
    if (s && s->layer >= 0)
        snprintf(layer, sizeof(layer), " of layer %d", (int)s->layer);
    snprintf(text, bytes, "%u steps that begin with %s%s", (unsigned)p->step_count,
             s ? s->label : "nothing", layer);
}

/* Submits parts first.. up to one behind which the processor takes over, or to the last; *next is
 * the one after it. */
static VkResult parts_submit(gpu_commands *c, size_t first, size_t *next)
{
    VkResult r = VK_SUCCESS;
    bool stop = false;
    mutex_lock(c->device->queue_lock);
    for (*next = first; *next < c->part_count && !stop && r == VK_SUCCESS; ++*next) {
        r = part_submit(c, &c->parts[*next]);
        stop = c->parts[*next].processor_count > 0;
    }
    mutex_unlock(c->device->queue_lock);
    return r;
}

static ful_result processor_take(gpu_commands *c, size_t parts)
{
    const part *p = &c->parts[parts - 1];
    TRY(parts_wait(c, parts));
    for (uint32_t i = 0; i < p->processor_count; i++)
        TRY(processor_run(c->device, &c->processor_steps[p->processor_first + i]));
    return FUL_OK;
}

/* Waits for what was submitted before the part that failed; without memory the same commands may
 * succeed another time. */
static ful_result submit_fail(gpu_commands *c, VkResult r)
{
    char what[128], line[sizeof(c->message)];
    size_t i = 0;
    while (i + 1 < c->part_count && c->parts[i].pending)
        i++;
    part_describe(c, &c->parts[i], what, sizeof(what));
    ful_result result =
        fail_context(vk_fail(c->device, r, "vkQueueSubmit"), "submission of %s", what);
    if (atomic_load(&c->device->lost))
        return keep_error(c, result);
    snprintf(line, sizeof(line), "%s", ful_last_error());
    (void)parts_wait(c, i);
    return fail(result, "%s", line);
}

ful_result gpu_commands_submit(gpu_commands *c)
{
    TRY(kept_error(c));
    TRY(device_alive(c->device));
    if (!c->ended)
        return fail(FUL_ERR_ARGUMENT, "commands were submitted before they had ended");
    if (c->flags & GPU_COMMANDS_DRY)
        return fail(FUL_ERR_ARGUMENT, "a dry recording can't be submitted");
    if (c->submitted_once && !(c->flags & GPU_COMMANDS_REUSABLE))
        return fail(FUL_ERR_ARGUMENT, "commands were submitted twice without being reusable");
    if (c->unwaited)
        TRY(parts_wait(c, c->part_count));
    for (size_t i = 0; i < c->part_count; i++)
        if (c->parts[i].pending)
            return fail(FUL_ERR_ARGUMENT, "commands were submitted again before their last "
                                          "submission was waited for");
    VkResult r = VK_SUCCESS;
    for (size_t i = 0; i < c->part_count && r == VK_SUCCESS;) {
        r = parts_submit(c, i, &i);
        if (r == VK_SUCCESS && c->parts[i - 1].processor_count > 0)
            TRY(processor_take(c, i));
    }
    c->submitted_once = true;
    c->times_ready = false;
    return r == VK_SUCCESS ? FUL_OK : submit_fail(c, r);
}

static bool queries_read(gpu_commands *c, const part *p, uint32_t first, uint32_t count,
                         uint64_t *out)
{
    return c->device->fn.vkGetQueryPoolResults(c->device->vk, p->queries, first, count,
                                               count * sizeof(*out), out, sizeof(*out),
                                               VK_QUERY_RESULT_64_BIT) == VK_SUCCESS;
}

/* Parts that are mostly dispatches tell how fast the device is, but not where a driver may have
 * compiled kernels between them. */
static void part_learn(gpu_commands *c, part *p)
{
    uint64_t first, last;
    p->span_ns = 0;
    if (p->queries && p->query_count >= 2 && queries_read(c, p, 0, 1, &first) &&
        queries_read(c, p, p->query_count - 1, 1, &last))
        p->span_ns = timer_delta_ns(c->device, first, last);
    if (p->fresh) {
        for (uint32_t i = 0; i < p->step_count; i++)
            if (c->steps[p->first_step + i].pipeline)
                atomic_store(&c->steps[p->first_step + i].pipeline->seasoned, true);
        p->fresh = false;
        return;
    }
    if (p->span_ns && p->modelled_ns >= p->estimated_ns / 2)
        timer_learn(c->device, p->estimated_ns, (double)p->span_ns);
}

static ful_result wait_fail(gpu_commands *c, const part *p, VkResult r)
{
    ful_device *d = c->device;
    char what[128];
    part_describe(c, p, what, sizeof(what));
    if (r != VK_TIMEOUT)
        return fail_context(vk_fail(d, r, "vkWaitForFences"), "submission of %s", what);
    device_mark_timeout(d);
    return fail(FUL_ERR_DEVICE_LOST, "device %s did not finish %s within %u ms", d->info.name, what,
                (unsigned)d->wait_timeout_ms);
}

static ful_result parts_wait(gpu_commands *c, size_t count)
{
    ful_device *d = c->device;
    uint64_t timeout = (uint64_t)d->wait_timeout_ms * 1000000u;
    for (size_t i = 0; i < count; i++) {
        part *p = &c->parts[i];
        if (!p->pending)
            continue;
        TRY(device_alive(d));
        VkResult r = d->fn.vkWaitForFences(d->vk, 1, &p->fence, VK_TRUE, timeout);
        c->unwaited = r == VK_ERROR_OUT_OF_HOST_MEMORY || r == VK_ERROR_OUT_OF_DEVICE_MEMORY;
        if (c->unwaited)
            return wait_fail(c, p, r);
        if (r != VK_SUCCESS)
            return keep_error(c, wait_fail(c, p, r));
        p->pending = false;
        part_learn(c, p);
    }
    return kept_error(c);
}

ful_result gpu_commands_wait(gpu_commands *c)
{
    return parts_wait(c, c->part_count);
}

void gpu_commands_destroy(gpu_commands **commands)
{
    if (!commands || !*commands)
        return;
    gpu_commands *c = *commands;
    ful_device *d = c->device;
    *commands = NULL;
    bool pending = false;
    for (size_t i = 0; i < c->part_count; i++)
        pending = pending || c->parts[i].pending;
    if (pending && !atomic_load(&d->lost) && gpu_commands_wait(c) != FUL_OK &&
        !atomic_load(&d->lost))
        device_mark_timeout(d); /* the driver has no memory even to wait: it may still work */
    if (device_releasable(d)) {
        for (size_t i = 0; i < c->part_count; i++) {
            d->fn.vkDestroyFence(d->vk, c->parts[i].fence, NULL);
            d->fn.vkDestroyQueryPool(d->vk, c->parts[i].queries, NULL);
        }
        for (size_t i = 0; i < c->sets_count; i++)
            d->fn.vkDestroyDescriptorPool(d->vk, c->sets[i], NULL);
        d->fn.vkDestroyCommandPool(d->vk, c->pool, NULL);
    }
    mem_free(&d->alloc, c->parts);
    mem_free(&d->alloc, c->sets);
    mem_free(&d->alloc, c->steps);
    mem_free(&d->alloc, c->accesses);
    mem_free(&d->alloc, c->written);
    mem_free(&d->alloc, c->processor_steps);
    mem_free(&d->alloc, c->times);
    mem_free(&d->alloc, c);
}

/* ---- times ---- */

static ful_result times_fill(gpu_commands *c)
{
    uint64_t raw[QUERIES_TIMED];
    uint32_t n = 0;
    for (size_t i = 0; i < c->part_count; i++) {
        const part *p = &c->parts[i];
        if (p->query_count > 0 && !queries_read(c, p, 0, p->query_count, raw))
            return fail(FUL_ERR_UNSUPPORTED, "device %s gave no timestamps", c->device->info.name);
        for (uint32_t k = 0; k < p->step_count; k++) {
            const step *s = &c->steps[p->first_step + k];
            if (!s->pipeline)
                continue;
            gpu_time *t = &c->times[n++];
            t->label = s->label;
            t->layer = s->layer;
            t->cost = s->cost;
            t->ns = timer_delta_ns(c->device, raw[s->query - 1], raw[s->query]);
        }
        for (uint32_t k = 0; k < p->processor_count; k++) {
            const processor_step *s = &c->processor_steps[p->processor_first + k];
            c->times[n++] =
                (gpu_time){s->dispatch.label, s->dispatch.layer, s->ns, s->dispatch.cost};
        }
    }
    return FUL_OK;
}

uint64_t gpu_commands_span_ns(const gpu_commands *c)
{
    uint64_t ns = 0;
    for (size_t i = 0; i < c->part_count; i++)
        ns += c->parts[i].span_ns;
    return ns;
}

ful_result gpu_commands_times(gpu_commands *c, const gpu_time **out, uint32_t *count)
{
    *out = NULL;
    *count = 0;
    TRY(kept_error(c));
    if (!(c->flags & GPU_COMMANDS_TIMED) || c->dispatch_count == 0 ||
        !(c->device->info.caps.features & FUL_FEATURE_TIMESTAMP))
        return FUL_OK;
    for (size_t i = 0; i < c->part_count; i++)
        if (c->parts[i].pending || !c->submitted_once)
            return fail(FUL_ERR_ARGUMENT, "times are there after a wait only");
    if (!c->times)
        c->times = mem_zalloc(&c->device->alloc, c->dispatch_count, sizeof(*c->times));
    if (!c->times)
        return mem_fail(c->dispatch_count * sizeof(*c->times), "times");
    if (!c->times_ready)
        TRY(times_fill(c));
    c->times_ready = true;
    *out = c->times;
    *count = c->dispatch_count;
    return FUL_OK;
}
