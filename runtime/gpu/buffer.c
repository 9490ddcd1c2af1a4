#include <string.h>

#include "gpu/gpu_internal.h"

/* Vector loads may reach past the last element; they stay inside the buffer. */
#define PAD_BYTES 256u

/* Bytes per step of a read through staging. */
#define READ_STEP_BYTES (8ull << 20)

ful_result gpu_buffer_create(ful_device *device, uint64_t bytes, gpu_memory memory,
                             const char *name, gpu_buffer *out)
{
    memset(out, 0, sizeof(*out));
    TRY(device_alive(device));
    const char *shown = name ? name : "without name";
    if (bytes == 0)
        return fail(FUL_ERR_ARGUMENT, "buffer %s: size is 0", shown);
    uint64_t limit = device->info.caps.allocation_bytes;
    if (bytes > limit || limit - bytes < PAD_BYTES)
        return fail(FUL_ERR_DEVICE_MEMORY,
                    "buffer %s: %llu bytes asked for, %llu bytes are the most in one allocation",
                    shown, (unsigned long long)bytes, (unsigned long long)limit);
    gpu_buffer b = {.bytes = bytes, .name = name};
    VkBufferCreateInfo info = {
        .sType = VK_STRUCTURE_TYPE_BUFFER_CREATE_INFO,
        .size = (bytes + PAD_BYTES - 1) & ~(uint64_t)(PAD_BYTES - 1),
        .usage = VK_BUFFER_USAGE_STORAGE_BUFFER_BIT | VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT |
                 VK_BUFFER_USAGE_INDIRECT_BUFFER_BIT | VK_BUFFER_USAGE_TRANSFER_SRC_BIT |
                 VK_BUFFER_USAGE_TRANSFER_DST_BIT,
        .sharingMode = VK_SHARING_MODE_EXCLUSIVE,
    };
    VkResult r = device->fn.vkCreateBuffer(device->vk, &info, NULL, &b.vk);
    if (r != VK_SUCCESS)
        return fail_context(vk_fail(device, r, "vkCreateBuffer"), "buffer %s, %llu bytes", shown,
                            (unsigned long long)bytes);
    device_name_object(device, VK_OBJECT_TYPE_BUFFER, (uint64_t)b.vk, name);
    ful_result result = memory_allocate(device, memory, &b);
    if (result != FUL_OK) {
        device->fn.vkDestroyBuffer(device->vk, b.vk, NULL);
        return result;
    }
    *out = b;
    return FUL_OK;
}

void gpu_buffer_destroy(ful_device *device, gpu_buffer *buffer)
{
    if (!buffer)
        return;
    if (buffer->vk && device_releasable(device)) {
        device->fn.vkDestroyBuffer(device->vk, buffer->vk, NULL);
        memory_free(device, buffer);
    }
    memset(buffer, 0, sizeof(*buffer));
}

/* The atoms around [offset, offset + bytes); false if there is nothing to do. */
static bool atoms_around(const ful_device *device, const gpu_buffer *b, uint64_t offset,
                         uint64_t bytes, VkMappedMemoryRange *range)
{
    if (!b->mapped || b->coherent || bytes == 0)
        return false;
    uint64_t atom = device->info.caps.non_coherent_atom_bytes;
    if (atom == 0)
        atom = 1;
    uint64_t begin = offset / atom * atom;
    uint64_t end = (offset + bytes + atom - 1) / atom * atom;
    *range = (VkMappedMemoryRange){
        .sType = VK_STRUCTURE_TYPE_MAPPED_MEMORY_RANGE,
        .memory = b->memory,
        .offset = begin,
        .size = end >= b->memory_bytes ? VK_WHOLE_SIZE : end - begin,
    };
    return true;
}

static ful_result sync_fail(ful_device *device, const gpu_buffer *b, VkResult r, const char *what)
{
    return fail_context(vk_fail(device, r, what), "buffer %s", b->name ? b->name : "without name");
}

ful_result gpu_buffer_flush(ful_device *device, const gpu_buffer *buffer, uint64_t offset,
                            uint64_t bytes)
{
    VkMappedMemoryRange range;
    if (!atoms_around(device, buffer, offset, bytes, &range))
        return FUL_OK;
    VkResult r = device->fn.vkFlushMappedMemoryRanges(device->vk, 1, &range);
    return r == VK_SUCCESS ? FUL_OK : sync_fail(device, buffer, r, "vkFlushMappedMemoryRanges");
}

ful_result gpu_buffer_invalidate(ful_device *device, const gpu_buffer *buffer, uint64_t offset,
                                 uint64_t bytes)
{
    VkMappedMemoryRange range;
    if (!atoms_around(device, buffer, offset, bytes, &range))
        return FUL_OK;
    VkResult r = device->fn.vkInvalidateMappedMemoryRanges(device->vk, 1, &range);
    return r == VK_SUCCESS ? FUL_OK
                           : sync_fail(device, buffer, r, "vkInvalidateMappedMemoryRanges");
}

static ful_result range_check(gpu_range r, uint64_t offset, uint64_t bytes, const char *what)
{
    if (!r.buffer)
        return fail(FUL_ERR_ARGUMENT, "%s: the range is empty", what);
    if (offset > r.bytes || bytes > r.bytes - offset || r.offset > r.buffer->bytes ||
        r.bytes > r.buffer->bytes - r.offset)
        return fail(FUL_ERR_ARGUMENT,
                    "%s: bytes %llu + %llu of a range of %llu at %llu in buffer %s of %llu bytes",
                    what, (unsigned long long)offset, (unsigned long long)bytes,
                    (unsigned long long)r.bytes, (unsigned long long)r.offset,
                    r.buffer->name ? r.buffer->name : "without name",
                    (unsigned long long)r.buffer->bytes);
    if ((offset | bytes | r.offset) & 3)
        return fail(FUL_ERR_ARGUMENT, "%s: offset %llu or size %llu is no multiple of 4", what,
                    (unsigned long long)(r.offset + offset), (unsigned long long)bytes);
    return FUL_OK;
}

ful_result gpu_range_write(ful_device *device, gpu_range dst, uint64_t offset, const void *data,
                           uint64_t bytes)
{
    TRY(device_alive(device));
    TRY(range_check(dst, offset, bytes, "gpu_range_write"));
    const char *from = data;
    gpu_upload *u;
    if (bytes == 0)
        return FUL_OK;
    TRY(gpu_upload_begin(device, bytes, NULL, NULL, &u));
    for (uint64_t done = 0; done < bytes;) {
        uint64_t step = bytes - done < gpu_upload_max(u) ? bytes - done : gpu_upload_max(u);
        void *room;
        ful_result r = gpu_upload_room(u, dst, offset + done, step, &room);
        if (r != FUL_OK) {
            gpu_upload_cancel(&u);
            return r;
        }
        memcpy(room, from + done, (size_t)step);
        done += step;
    }
    return gpu_upload_end(&u);
}

/* Records with `record`, submits and waits. */
typedef ful_result (*record_fn)(gpu_commands *c, void *ctx);

static ful_result run_once(ful_device *device, record_fn record, void *ctx)
{
    gpu_commands *c;
    TRY(gpu_commands_begin(device, 0, &c));
    ful_result r = record(c, ctx);
    if (r == FUL_OK)
        r = gpu_commands_end(c);
    if (r == FUL_OK)
        r = gpu_commands_submit(c);
    if (r == FUL_OK)
        r = gpu_commands_wait(c);
    gpu_commands_destroy(&c);
    return r;
}

typedef struct copy_ctx {
    gpu_range src, dst;
    uint32_t word;
} copy_ctx;

static ful_result copy_record(gpu_commands *c, void *ctx)
{
    const copy_ctx *x = ctx;
    return gpu_commands_copy(c, x->src, x->dst);
}

static ful_result fill_record(gpu_commands *c, void *ctx)
{
    const copy_ctx *x = ctx;
    return gpu_commands_fill(c, x->dst, x->word);
}

ful_result gpu_range_read(ful_device *device, gpu_range src, uint64_t offset, void *data,
                          uint64_t bytes)
{
    TRY(device_alive(device));
    TRY(range_check(src, offset, bytes, "gpu_range_read"));
    if (bytes == 0)
        return FUL_OK;
    if (memory_reads_fast(device, src.buffer)) {
        TRY(gpu_buffer_invalidate(device, src.buffer, src.offset + offset, bytes));
        memcpy(data, (const char *)src.buffer->mapped + src.offset + offset, (size_t)bytes);
        return FUL_OK;
    }
    uint64_t step_bytes = bytes < READ_STEP_BYTES ? bytes : READ_STEP_BYTES;
    gpu_buffer staging;
    char *to = data;
    ful_result r = FUL_OK;
    TRY(gpu_buffer_create(device, step_bytes, GPU_MEMORY_READBACK, "readback", &staging));
    for (uint64_t done = 0; done < bytes && r == FUL_OK; done += step_bytes) {
        uint64_t step = bytes - done < step_bytes ? bytes - done : step_bytes;
        copy_ctx x = {gpu_part(src, offset + done, step), gpu_part(gpu_whole(&staging), 0, step),
                      0};
        r = run_once(device, copy_record, &x);
        if (r == FUL_OK)
            r = gpu_buffer_invalidate(device, &staging, 0, step);
        if (r == FUL_OK)
            memcpy(to + done, staging.mapped, (size_t)step);
    }
    gpu_buffer_destroy(device, &staging);
    return r;
}

ful_result gpu_range_fill(ful_device *device, gpu_range dst, uint32_t word)
{
    TRY(device_alive(device));
    TRY(range_check(dst, 0, dst.bytes, "gpu_range_fill"));
    copy_ctx x = {{NULL, 0, 0}, dst, word};
    return dst.bytes ? run_once(device, fill_record, &x) : FUL_OK;
}
