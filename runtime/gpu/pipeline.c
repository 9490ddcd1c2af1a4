#include <stdio.h>
#include <string.h>

#include "cpu/cpu.h"
#include "gpu/gpu_internal.h"
#include "gpu/shaders.h"

enum { UNIFORM_BINDING = 8 };

static const shader_module *module_find(const char *name)
{
    for (const shader_module *m = shader_modules; m->name; m++)
        if (strcmp(m->name, name) == 0)
            return m;
    return NULL;
}

/* ---- layouts ---- */

static ful_result layout_create(ful_device *d, const gpu_pipeline_desc *desc, pipeline_layout *l)
{
    VkDescriptorSetLayoutBinding bindings[GPU_MAX_BUFFERS + 1];
    uint32_t n = 0;
    memset(bindings, 0, sizeof(bindings));
    for (; n < desc->buffer_count; n++) {
        bindings[n].binding = n;
        bindings[n].descriptorType = VK_DESCRIPTOR_TYPE_STORAGE_BUFFER;
        bindings[n].descriptorCount = 1;
        bindings[n].stageFlags = VK_SHADER_STAGE_COMPUTE_BIT;
    }
    if (desc->uniform) {
        bindings[n].binding = UNIFORM_BINDING;
        bindings[n].descriptorType = VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER;
        bindings[n].descriptorCount = 1;
        bindings[n].stageFlags = VK_SHADER_STAGE_COMPUTE_BIT;
        n++;
    }
    VkDescriptorSetLayoutCreateInfo set = {
        .sType = VK_STRUCTURE_TYPE_DESCRIPTOR_SET_LAYOUT_CREATE_INFO,
        .bindingCount = n,
        .pBindings = bindings,
    };
    VkResult r = d->fn.vkCreateDescriptorSetLayout(d->vk, &set, NULL, &l->set);
    if (r != VK_SUCCESS)
        return vk_fail(d, r, "vkCreateDescriptorSetLayout");
    VkPushConstantRange push = {VK_SHADER_STAGE_COMPUTE_BIT, 0, desc->push_bytes};
    VkPipelineLayoutCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_LAYOUT_CREATE_INFO,
        .setLayoutCount = 1,
        .pSetLayouts = &l->set,
        .pushConstantRangeCount = desc->push_bytes ? 1 : 0,
        .pPushConstantRanges = &push,
    };
    r = d->fn.vkCreatePipelineLayout(d->vk, &info, NULL, &l->vk);
    if (r != VK_SUCCESS) {
        d->fn.vkDestroyDescriptorSetLayout(d->vk, l->set, NULL);
        return vk_fail(d, r, "vkCreatePipelineLayout");
    }
    l->buffer_count = desc->buffer_count;
    l->uniform = desc->uniform;
    l->push_bytes = desc->push_bytes;
    return FUL_OK;
}

/* Under pipeline_lock. */
static ful_result layout_get(ful_device *d, const gpu_pipeline_desc *desc,
                             const pipeline_layout **out)
{
    for (size_t i = 0; i < d->layout_count; i++) {
        pipeline_layout *l = d->layouts[i];
        if (l->buffer_count == desc->buffer_count && l->uniform == desc->uniform &&
            l->push_bytes == desc->push_bytes) {
            *out = l;
            return FUL_OK;
        }
    }
    void *list = d->layouts;
    if (!mem_grow(&d->alloc, &list, &d->layout_capacity, d->layout_count + 1, sizeof(void *)))
        return mem_fail(sizeof(void *), "a pipeline layout");
    d->layouts = list;
    pipeline_layout *l = mem_zalloc(&d->alloc, 1, sizeof(*l));
    if (!l)
        return mem_fail(sizeof(*l), "a pipeline layout");
    ful_result r = layout_create(d, desc, l);
    if (r != FUL_OK) {
        mem_free(&d->alloc, l);
        return r;
    }
    d->layouts[d->layout_count++] = l;
    *out = l;
    return FUL_OK;
}

/* ---- compiling ---- */

static bool needs_word(const char *needs, const char *wanted)
{
    size_t n = strlen(wanted);
    for (const char *p = needs; p && *p;) {
        size_t bytes = strcspn(p, " ,");
        if (bytes == n && memcmp(p, wanted, n) == 0)
            return true;
        p += bytes;
        p += strspn(p, " ,");
    }
    return false;
}

/* Safe on several threads for different pipelines: touches no shared state but the cache, which
 * Vulkan guards. */
static VkResult pipeline_compile(ful_device *d, gpu_pipeline *p)
{
    VkShaderModuleCreateInfo code = {
        .sType = VK_STRUCTURE_TYPE_SHADER_MODULE_CREATE_INFO,
        .codeSize = p->code_bytes,
        .pCode = p->code,
    };
    VkShaderModule module;
    VkResult r = d->fn.vkCreateShaderModule(d->vk, &code, NULL, &module);
    if (r != VK_SUCCESS)
        return r;
    VkSpecializationMapEntry entries[GPU_MAX_SPEC];
    for (uint32_t i = 0; i < p->desc.spec_count; i++)
        entries[i] = (VkSpecializationMapEntry){i, i * 4, 4};
    VkSpecializationInfo spec = {p->desc.spec_count, entries, p->desc.spec_count * 4, p->desc.spec};
    VkPipelineShaderStageRequiredSubgroupSizeCreateInfo size = {
        .sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_REQUIRED_SUBGROUP_SIZE_CREATE_INFO,
        .requiredSubgroupSize = p->subgroup_size,
    };
    VkComputePipelineCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_COMPUTE_PIPELINE_CREATE_INFO,
        .stage = {.sType = VK_STRUCTURE_TYPE_PIPELINE_SHADER_STAGE_CREATE_INFO,
                  .pNext = p->subgroup_size != 0 ? &size : NULL,
                  .flags = p->full_subgroups
                               ? VK_PIPELINE_SHADER_STAGE_CREATE_REQUIRE_FULL_SUBGROUPS_BIT
                               : 0,
                  .stage = VK_SHADER_STAGE_COMPUTE_BIT,
                  .module = module,
                  .pName = d->info.built_in ? p->name : "main",
                  .pSpecializationInfo = p->desc.spec_count ? &spec : NULL},
        .layout = p->layout->vk,
        .basePipelineIndex = -1,
    };
    log_write(&d->instance->log, FUL_LOG_TRACE, "compiling %s", p->name);
    uint64_t start = time_ns();
    r = d->fn.vkCreateComputePipelines(d->vk, d->cache, 1, &info, NULL, &p->vk);
    log_write(&d->instance->log, FUL_LOG_DEBUG, "compiling %s took %.1f ms", p->name,
              (double)(time_ns() - start) / 1e6);
    d->fn.vkDestroyShaderModule(d->vk, module, NULL);
    if (r != VK_SUCCESS) {
        p->vk = VK_NULL_HANDLE;
        return r;
    }
    device_name_object(d, VK_OBJECT_TYPE_PIPELINE, (uint64_t)p->vk, p->name);
    return VK_SUCCESS;
}

static ful_result compile_fail(ful_device *d, const gpu_pipeline *p, VkResult r)
{
    const shader_module *m = module_find(p->name);
    (void)vk_fail(d, r, "vkCreateComputePipelines");
    ful_result result = r == VK_ERROR_OUT_OF_HOST_MEMORY     ? FUL_ERR_HOST_MEMORY
                        : r == VK_ERROR_OUT_OF_DEVICE_MEMORY ? FUL_ERR_DEVICE_MEMORY
                        : r == VK_ERROR_DEVICE_LOST          ? FUL_ERR_DEVICE_LOST
                                                             : FUL_ERR_UNSUPPORTED;
    if (result == FUL_ERR_UNSUPPORTED && m && m->code == p->code)
        gpu_relatives_set_trust(d, p->name, GPU_TRUST_REFUSED);
    return fail_context(result, "shader %s", p->name);
}

/* Under pipeline_lock. */
static ful_result ready_locked(ful_device *d, gpu_pipeline *p)
{
    if (p->vk || p->on_processor)
        return FUL_OK;
    TRY(device_alive(d));
    VkResult r = pipeline_compile(d, p);
    if (r != VK_SUCCESS)
        return compile_fail(d, p, r);
    d->compiled++;
    return FUL_OK;
}

ful_result pipeline_ready(ful_device *device, gpu_pipeline *pipeline)
{
    mutex_lock(device->pipeline_lock);
    ful_result r = ready_locked(device, pipeline);
    mutex_unlock(device->pipeline_lock);
    return r;
}

/* ---- finding ---- */

static ful_result desc_check(const ful_device *d, const gpu_pipeline_desc *desc)
{
    const ful_caps *caps = &d->info.caps;
    if (d->info.built_in && !cpu_has_kernel(d->vk, desc->module))
        return fail(FUL_ERR_UNSUPPORTED, "shader %s: device %s has no kernel in C for it",
                    desc->module, d->info.name);
    if (desc->buffer_count > GPU_MAX_BUFFERS || desc->spec_count > GPU_MAX_SPEC ||
        desc->push_bytes % 4 != 0 || (desc->buffer_count == 0 && !desc->uniform))
        return fail(FUL_ERR_ARGUMENT, "shader %s: %u buffers, %u constants, %u push bytes",
                    desc->module, (unsigned)desc->buffer_count, (unsigned)desc->spec_count,
                    (unsigned)desc->push_bytes);
    if (desc->buffer_count > caps->storage_buffers)
        return fail(FUL_ERR_UNSUPPORTED, "shader %s: needs %u storage buffers, the device has %u",
                    desc->module, (unsigned)desc->buffer_count, (unsigned)caps->storage_buffers);
    if (desc->push_bytes > caps->push_bytes)
        return fail(FUL_ERR_UNSUPPORTED, "shader %s: needs %u push bytes, the device has %u",
                    desc->module, (unsigned)desc->push_bytes, (unsigned)caps->push_bytes);
    return FUL_OK;
}

static bool desc_equal(const gpu_pipeline_desc *a, const gpu_pipeline_desc *b)
{
    return a->buffer_count == b->buffer_count && a->uniform == b->uniform &&
           a->push_bytes == b->push_bytes && a->subgroup_size == b->subgroup_size &&
           a->spec_count == b->spec_count &&
           memcmp(a->spec, b->spec, a->spec_count * sizeof(a->spec[0])) == 0;
}

static uint64_t desc_hash(const gpu_pipeline_desc *desc, const uint32_t *code)
{
    uint64_t h = hash_bytes(HASH_SEED, &code, sizeof(code));
    h = hash_bytes(h, &desc->buffer_count, sizeof(desc->buffer_count));
    h = hash_bytes(h, &desc->push_bytes, sizeof(desc->push_bytes));
    h = hash_bytes(h, &desc->subgroup_size, sizeof(desc->subgroup_size));
    return hash_bytes(h, desc->spec, desc->spec_count * sizeof(desc->spec[0]));
}

/* Under pipeline_lock: finds it or adds it without compiling. */
static ful_result pipeline_note(ful_device *d, const gpu_pipeline_desc *desc, const uint32_t *code,
                                size_t code_bytes, const char *needs, gpu_pipeline **out)
{
    uint64_t hash = desc_hash(desc, code);
    for (size_t i = 0; i < d->pipeline_count; i++) {
        gpu_pipeline *p = d->pipelines[i];
        if (p->hash == hash && p->code == code && desc_equal(&p->desc, desc)) {
            *out = p;
            return FUL_OK;
        }
    }
    const pipeline_layout *layout = NULL;
    TRY(layout_get(d, desc, &layout));
    void *list = d->pipelines;
    if (!mem_grow(&d->alloc, &list, &d->pipeline_capacity, d->pipeline_count + 1, sizeof(void *)))
        return mem_fail(sizeof(void *), "a pipeline");
    d->pipelines = list;
    gpu_pipeline *p = mem_zalloc(&d->alloc, 1, sizeof(*p));
    if (!p)
        return mem_fail(sizeof(*p), "a pipeline");
    char *name = mem_strdup(&d->alloc, desc->module ? desc->module : "shader");
    if (!name) {
        mem_free(&d->alloc, p);
        return mem_fail(1, "a pipeline's name");
    }
    p->desc = *desc;
    p->name = name;
    p->desc.module = name;
    p->code = code;
    p->code_bytes = code_bytes;
    p->hash = hash;
    p->layout = layout;
    p->on_processor = code_bytes == 0;
    if (d->info.caps.features & FUL_FEATURE_SUBGROUP_SIZE) {
        const ful_caps *caps = &d->info.caps;
        if (needs_word(needs, "coopmat"))
            p->subgroup_size = caps->matrix_subgroup;
        else if (needs_word(needs, "subgroup"))
            p->subgroup_size = desc->subgroup_size != 0 ? desc->subgroup_size : caps->subgroup_size;
        p->full_subgroups = needs_word(needs, "coopmat") || needs_word(needs, "coopmat2");
    }
    d->pipelines[d->pipeline_count++] = p;
    *out = p;
    return FUL_OK;
}

ful_result gpu_pipeline_from_words(ful_device *device, const gpu_pipeline_desc *desc,
                                   const uint32_t *words, size_t bytes, const char *needs,
                                   gpu_pipeline **out)
{
    *out = NULL;
    TRY(device_alive(device));
    const char *word;
    size_t word_bytes;
    if (!caps_meet_needs(&device->info.caps, needs, &word, &word_bytes))
        return fail(FUL_ERR_UNSUPPORTED, "shader %s: needs %.*s, which device %s lacks",
                    desc->module, (int)word_bytes, word, device->info.name);
    TRY(desc_check(device, desc));
    gpu_pipeline *p = NULL;
    mutex_lock(device->pipeline_lock);
    size_t before = device->pipeline_count;
    ful_result r = pipeline_note(device, desc, words, bytes, needs, &p);
    if (r == FUL_OK && device->batch_depth == 0)
        r = ready_locked(device, p);
    /* One that nobody can use must not fail every batch that follows. */
    if (r != FUL_OK && device->pipeline_count > before) {
        device->pipeline_count--;
        mem_free(&device->alloc, (void *)p->desc.module);
        mem_free(&device->alloc, p);
    }
    mutex_unlock(device->pipeline_lock);
    if (r == FUL_OK)
        *out = p;
    return r;
}

ful_result gpu_pipeline_get(ful_device *device, const gpu_pipeline_desc *desc, gpu_pipeline **out)
{
    *out = NULL;
    const shader_module *m = module_find(desc->module);
    if (!m)
        return fail(FUL_ERR_UNSUPPORTED, "shader %s is not in this build", desc->module);
    if (!m->code)
        return fail(FUL_ERR_UNSUPPORTED,
                    "shader %s is not in this build: its compiler was too old for it",
                    desc->module);
    gpu_trust trust = gpu_module_trust(device, desc->module);
    if (gpu_trust_quarantined(trust) && trust != GPU_TRUST_HIDDEN &&
        processor_serves(device, desc->module))
        return processor_pipeline(device, desc, out);
    if (gpu_trust_quarantined(trust))
        return fail(FUL_ERR_SELFTEST, "shader %s %s on %s (%s), and nothing is left in its place",
                    desc->module, gpu_trust_text(trust), device->info.name, device->info.driver);
    return gpu_pipeline_from_words(device, desc, m->code, m->code_bytes, m->needs, out);
}

/* ---- batches ---- */

void gpu_pipelines_begin(ful_device *device)
{
    mutex_lock(device->pipeline_lock);
    device->batch_depth++;
    mutex_unlock(device->pipeline_lock);
}

typedef struct batch {
    ful_device *device;
    gpu_pipeline **list;
    VkResult *results;
} batch;

static void batch_compile(void *ctx, uint32_t i)
{
    batch *b = ctx;
    b->results[i] = pipeline_compile(b->device, b->list[i]);
}

/* Long code first: what takes longest must not be begun last. */
static void sort_longest(gpu_pipeline **list, uint32_t n)
{
    for (uint32_t i = 1; i < n; i++) {
        gpu_pipeline *p = list[i];
        uint32_t at = i;
        for (; at > 0 && list[at - 1]->code_bytes < p->code_bytes; at--)
            list[at] = list[at - 1];
        list[at] = p;
    }
}

/* Compiles list[0..n) in rounds, so that progress can be told on this thread. Under pipeline_lock.
 */
static ful_result batch_run(ful_device *d, gpu_pipeline **list, VkResult *results, uint32_t n,
                            ful_progress_fn progress, void *progress_ctx)
{
    unsigned threads = thread_count();
    uint32_t round = threads * 4;
    for (uint32_t done = 0; done < n;) {
        uint32_t step = n - done < round ? n - done : round;
        batch b = {d, list + done, results};
        parallel_for(threads, step, batch_compile, &b);
        VkResult bad = VK_SUCCESS;
        uint32_t which = 0;
        for (uint32_t i = 0; i < step; i++) {
            if (results[i] == VK_SUCCESS) {
                d->compiled++;
            } else if (bad == VK_SUCCESS) {
                bad = results[i];
                which = i;
            }
        }
        if (bad != VK_SUCCESS)
            return compile_fail(d, list[done + which], bad);
        done += step;
        ful_progress p = {FUL_PHASE_PIPELINES, done, n};
        if (progress && !progress(progress_ctx, &p))
            return fail(FUL_ERR_CANCELLED, "cancelled after %u of %u pipelines", (unsigned)done,
                        (unsigned)n);
    }
    return FUL_OK;
}

ful_result gpu_pipelines_end(ful_device *device, ful_progress_fn progress, void *progress_ctx)
{
    ful_result r = FUL_OK;
    mutex_lock(device->pipeline_lock);
    if (device->batch_depth > 0)
        device->batch_depth--;
    size_t count = device->pipeline_count;
    gpu_pipeline **list = mem_array(&device->alloc, count ? count : 1, sizeof(*list));
    VkResult *results = mem_array(&device->alloc, count ? count : 1, sizeof(*results));
    uint32_t n = 0;
    if (!list || !results)
        r = mem_fail(count * sizeof(*list), "a batch of pipelines");
    for (size_t i = 0; r == FUL_OK && i < count; i++)
        if (!device->pipelines[i]->vk && !device->pipelines[i]->on_processor &&
            !gpu_trust_quarantined(gpu_module_trust(device, device->pipelines[i]->name)))
            list[n++] = device->pipelines[i];
    if (r == FUL_OK && n > 0)
        r = device_alive(device);
    if (r == FUL_OK && n > 0) {
        sort_longest(list, n);
        r = batch_run(device, list, results, n, progress, progress_ctx);
    }
    mem_free(&device->alloc, list);
    mem_free(&device->alloc, results);
    mutex_unlock(device->pipeline_lock);
    return r;
}

void pipelines_destroy(ful_device *d, bool releasable)
{
    for (size_t i = 0; i < d->pipeline_count; i++) {
        gpu_pipeline *p = d->pipelines[i];
        if (releasable)
            d->fn.vkDestroyPipeline(d->vk, p->vk, NULL);
        mem_free(&d->alloc, (void *)p->desc.module);
        mem_free(&d->alloc, p);
    }
    for (size_t i = 0; i < d->layout_count; i++) {
        pipeline_layout *l = d->layouts[i];
        if (releasable) {
            d->fn.vkDestroyPipelineLayout(d->vk, l->vk, NULL);
            d->fn.vkDestroyDescriptorSetLayout(d->vk, l->set, NULL);
        }
        mem_free(&d->alloc, l);
    }
    mem_free(&d->alloc, d->pipelines);
    mem_free(&d->alloc, d->layouts);
}
