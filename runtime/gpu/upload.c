/* Writes through two staging buffers in turn: while the device copies from one, the caller fills
 * the other. */
#include <string.h>

#include "gpu/gpu_internal.h"

#define STAGING_BYTES (8ull << 20)
#define PROGRESS_BYTES (1ull << 20)

typedef struct staged_copy {
    gpu_range dst;
    uint64_t from;
} staged_copy;

typedef struct stage {
    gpu_buffer buffer; /* created when first needed */
    uint64_t used_bytes;
    staged_copy *copies;
    size_t count, capacity;
    gpu_commands *commands; /* of the copies under way */
} stage;

struct gpu_upload {
    ful_device *device;
    uint64_t total_bytes, done_bytes, reported_bytes, max_bytes;
    ful_progress_fn progress;
    void *progress_ctx;
    stage stages[2];
    uint32_t current;
    gpu_range mapped; /* handed out, to be flushed; empty if none */
};

ful_result gpu_upload_begin(ful_device *device, uint64_t total_bytes, ful_progress_fn progress,
                            void *progress_ctx, gpu_upload **out)
{
    *out = NULL;
    TRY(device_alive(device));
    gpu_upload *u = mem_zalloc(&device->alloc, 1, sizeof(*u));
    if (!u)
        return mem_fail(sizeof(*u), "an upload");
    u->device = device;
    u->total_bytes = total_bytes ? total_bytes : 1;
    u->max_bytes = STAGING_BYTES;
    if (total_bytes < u->max_bytes)
        u->max_bytes = total_bytes < 65536 ? 65536 : (total_bytes + 255) & ~(uint64_t)255;
    if (u->max_bytes > device_window_bytes(device) - 256)
        u->max_bytes = (device_window_bytes(device) - 256) & ~(uint64_t)255;
    u->progress = progress;
    u->progress_ctx = progress_ctx;
    *out = u;
    return FUL_OK;
}

uint64_t gpu_upload_max(const gpu_upload *u)
{
    return u->max_bytes;
}

/* Room given out earlier is filled by now. */
static ful_result mapped_flush(gpu_upload *u)
{
    gpu_range m = u->mapped;
    u->mapped.buffer = NULL;
    return m.buffer ? gpu_buffer_flush(u->device, m.buffer, m.offset, m.bytes) : FUL_OK;
}

static ful_result stage_wait(stage *s)
{
    if (!s->commands)
        return FUL_OK;
    ful_result r = gpu_commands_wait(s->commands);
    gpu_commands_destroy(&s->commands);
    return r;
}

static ful_result stage_submit(gpu_upload *u, stage *s)
{
    if (s->count == 0)
        return FUL_OK;
    TRY(gpu_buffer_flush(u->device, &s->buffer, 0, s->used_bytes));
    TRY(gpu_commands_begin(u->device, 0, &s->commands));
    ful_result r = FUL_OK;
    for (size_t i = 0; i < s->count && r == FUL_OK; i++)
        r = gpu_commands_copy(
            s->commands, gpu_part(gpu_whole(&s->buffer), s->copies[i].from, s->copies[i].dst.bytes),
            s->copies[i].dst);
    if (r == FUL_OK)
        r = gpu_commands_end(s->commands);
    if (r == FUL_OK)
        r = gpu_commands_submit(s->commands);
    s->count = 0;
    s->used_bytes = 0;
    return r;
}

static ful_result report(gpu_upload *u, bool always)
{
    if (!u->progress || (!always && u->done_bytes - u->reported_bytes < PROGRESS_BYTES))
        return FUL_OK;
    u->reported_bytes = u->done_bytes;
    ful_progress p = {FUL_PHASE_UPLOAD, u->done_bytes, u->total_bytes};
    if (!u->progress(u->progress_ctx, &p))
        return fail(FUL_ERR_CANCELLED, "the upload was cancelled after %llu of %llu bytes",
                    (unsigned long long)u->done_bytes, (unsigned long long)u->total_bytes);
    return FUL_OK;
}

/* A stage with at least `bytes` left. */
static ful_result stage_ready(gpu_upload *u, uint64_t bytes, stage **out)
{
    stage *s = &u->stages[u->current];
    if (s->buffer.vk && s->used_bytes + bytes > u->max_bytes) {
        TRY(stage_submit(u, s));
        u->current ^= 1;
        s = &u->stages[u->current];
        TRY(stage_wait(s));
    }
    if (!s->buffer.vk)
        TRY(gpu_buffer_create(u->device, u->max_bytes, GPU_MEMORY_HOST, "upload staging",
                              &s->buffer));
    *out = s;
    return FUL_OK;
}

ful_result gpu_upload_room(gpu_upload *u, gpu_range dst, uint64_t offset, uint64_t bytes,
                           void **room)
{
    *room = NULL;
    TRY(device_alive(u->device));
    TRY(mapped_flush(u));
    if (!dst.buffer || offset > dst.bytes || bytes > dst.bytes - offset || bytes == 0 ||
        bytes > u->max_bytes)
        return fail(FUL_ERR_ARGUMENT,
                    "upload to %s: %llu bytes at %llu of a range of %llu (at most %llu at once)",
                    dst.buffer && dst.buffer->name ? dst.buffer->name : "a buffer without name",
                    (unsigned long long)bytes, (unsigned long long)offset,
                    (unsigned long long)dst.bytes, (unsigned long long)u->max_bytes);
    TRY(report(u, false));
    gpu_range part = gpu_part(dst, offset, bytes);
    if (dst.buffer->mapped) {
        u->mapped = part;
        *room = (char *)dst.buffer->mapped + part.offset;
        u->done_bytes += bytes;
        return FUL_OK;
    }
    stage *s;
    TRY(stage_ready(u, bytes, &s));
    void *copies = s->copies;
    if (!mem_grow(&u->device->alloc, &copies, &s->capacity, s->count + 1, sizeof(*s->copies)))
        return mem_fail(sizeof(*s->copies), "a staged copy");
    s->copies = copies;
    s->copies[s->count++] = (staged_copy){part, s->used_bytes};
    *room = (char *)s->buffer.mapped + s->used_bytes;
    s->used_bytes = (s->used_bytes + bytes + 15) & ~(uint64_t)15;
    u->done_bytes += bytes;
    return FUL_OK;
}

static void upload_free(gpu_upload **u)
{
    gpu_upload *x = *u;
    ful_device *d = x->device;
    for (int i = 0; i < 2; i++) {
        gpu_commands_destroy(&x->stages[i].commands);
        gpu_buffer_destroy(d, &x->stages[i].buffer);
        mem_free(&d->alloc, x->stages[i].copies);
    }
    mem_free(&d->alloc, x);
    *u = NULL;
}

ful_result gpu_upload_end(gpu_upload **u)
{
    gpu_upload *x = *u;
    ful_result r = mapped_flush(x);
    if (r == FUL_OK)
        r = stage_submit(x, &x->stages[x->current]);
    for (int i = 0; i < 2; i++) {
        ful_result w = r == FUL_OK ? stage_wait(&x->stages[i]) : FUL_OK;
        if (r == FUL_OK)
            r = w;
    }
    if (r == FUL_OK)
        r = report(x, true);
    upload_free(u);
    return r;
}

void gpu_upload_cancel(gpu_upload **u)
{
    if (u && *u)
        upload_free(u);
}
