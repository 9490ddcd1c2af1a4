/* The last resort for one op: where no kernel for it can be trusted on a device that shares its
 * memory with the host, the C kernel of the built-in device takes the place of the last one. The
 * commands then stop in front of it, and go on behind it. */
#include <string.h>

#include "base/team.h"
#include "cpu/kernels/kernel.h"
#include "gpu/gpu_internal.h"

bool processor_serves(const ful_device *device, const char *module)
{
    return !device->info.built_in && device->info.caps.unified_memory &&
           cpu_kernel_named(module) != NULL;
}

/* Under pipeline_lock. */
static bool taken_before(const ful_device *d, const char *module)
{
    for (size_t i = 0; i < d->pipeline_count; i++)
        if (d->pipelines[i]->on_processor && strcmp(d->pipelines[i]->name, module) == 0)
            return true;
    return false;
}

ful_result processor_pipeline(ful_device *device, const gpu_pipeline_desc *desc, gpu_pipeline **out)
{
    const cpu_kernel *kernel = cpu_kernel_named(desc->module);
    mutex_lock(device->pipeline_lock);
    if (!device->processor)
        device->processor = cpu_device_create(&device->alloc, thread_count());
    bool known = taken_before(device, desc->module);
    mutex_unlock(device->pipeline_lock);
    if (!device->processor)
        return mem_fail(sizeof(void *), "threads for an op");
    /* The kernel's address tells it from the module's pipelines on the device. */
    TRY(gpu_pipeline_from_words(device, desc, (const uint32_t *)(const void *)kernel, 0, "", out));
    if (!known)
        log_write(&device->instance->log, FUL_LOG_WARNING,
                  "device %s: shader %s %s: the processor takes its place", device->info.name,
                  desc->module, gpu_trust_text(gpu_module_trust(device, desc->module)));
    return FUL_OK;
}

/* As a command buffer does, a step keeps what it needs of a buffer, whose gpu_buffer may move. */
static ful_result buffer_keep(const gpu_dispatch *d, gpu_range r, gpu_buffer *out)
{
    *out = r.buffer ? *r.buffer : (gpu_buffer){.vk = VK_NULL_HANDLE};
    if (r.buffer && !r.buffer->mapped)
        return fail(FUL_ERR_SELFTEST,
                    "%s: shader %s can't be trusted, and buffer %s is out of the processor's reach",
                    d->label, d->pipeline->name, r.buffer->name ? r.buffer->name : "without name");
    return FUL_OK;
}

ful_result processor_step_make(const gpu_dispatch *d, processor_step *step)
{
    const gpu_pipeline_desc *p = &d->pipeline->desc;
    *step = (processor_step){.dispatch = *d};
    for (uint32_t i = 0; i < p->buffer_count; i++)
        TRY(buffer_keep(d, d->buffers[i], &step->buffers[i]));
    if (p->uniform)
        TRY(buffer_keep(d, d->uniform, &step->uniform));
    TRY(buffer_keep(d, d->indirect, &step->indirect));
    if (p->push_bytes > sizeof(step->push))
        return fail(FUL_ERR_ARGUMENT, "%s: %u push bytes", d->label, (unsigned)p->push_bytes);
    if (p->push_bytes)
        memcpy(step->push, d->push, p->push_bytes);
    return FUL_OK;
}

/* Where a range begins, after the device's writes became visible. */
static ful_result reach(ful_device *device, const gpu_buffer *b, gpu_range r, void **out)
{
    TRY(gpu_buffer_invalidate(device, b, r.offset, r.bytes));
    *out = (char *)b->mapped + r.offset;
    return FUL_OK;
}

ful_result processor_run(ful_device *device, processor_step *step)
{
    const gpu_dispatch *d = &step->dispatch;
    const gpu_pipeline_desc *p = &d->pipeline->desc;
    uint64_t begin = time_ns();
    cpu_call call = {.constant = p->spec, .push = step->push};
    for (uint32_t i = 0; i < p->buffer_count; i++)
        TRY(reach(device, &step->buffers[i], d->buffers[i], &call.buffer[i]));
    void *at;
    if (p->uniform) {
        TRY(reach(device, &step->uniform, d->uniform, &at));
        call.step = at;
    }
    memcpy(call.groups, d->groups, sizeof(call.groups));
    if (step->indirect.mapped) {
        TRY(reach(device, &step->indirect, gpu_part(d->indirect, 0, 12), &at));
        memcpy(call.groups, at, sizeof(call.groups));
    }
    mutex_lock(device->queue_lock);
    cpu_dispatch(device->processor, (const cpu_kernel *)(const void *)d->pipeline->code, &call);
    mutex_unlock(device->queue_lock);
    for (uint32_t i = 0; i < p->buffer_count; i++)
        if ((d->writes | d->updates) >> i & 1)
            TRY(gpu_buffer_flush(device, &step->buffers[i], d->buffers[i].offset,
                                 d->buffers[i].bytes));
    step->ns = time_ns() - begin;
    return FUL_OK;
}
