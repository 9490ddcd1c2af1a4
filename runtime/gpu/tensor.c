/* Weight matrices in windows. */
#include <string.h>

#include "base/types.h"
#include "gpu/gpu_internal.h"

enum { SPLIT_ROWS = 64 };

/* How a tensor is cut: windows of whole experts, or of rows of one expert. */
typedef struct cut {
    uint32_t experts_per_window; /* 0: experts are split */
    uint32_t rows_per_window;
    uint32_t windows_per_expert;
    uint32_t windows;
} cut;

static ful_result cut_make(const ful_device *d, const gpu_tensor *t, const char *name, cut *c)
{
    uint64_t window = device_window_bytes(d);
    uint64_t expert_bytes, all_bytes;
    memset(c, 0, sizeof(*c));
    if (!size_mul(t->rows, t->row_bytes, &expert_bytes) ||
        !size_mul(expert_bytes, t->experts, &all_bytes))
        return fail(FUL_ERR_ARGUMENT, "tensor %s: %u x %u x %u elements are too many", name,
                    (unsigned)t->experts, (unsigned)t->rows, (unsigned)t->cols);
    if (expert_bytes <= window) {
        uint64_t n = window / expert_bytes;
        c->experts_per_window = n > t->experts ? t->experts : (uint32_t)n;
        c->rows_per_window = t->rows;
        c->windows = (t->experts + c->experts_per_window - 1) / c->experts_per_window;
        return FUL_OK;
    }
    uint64_t rows = window / t->row_bytes / SPLIT_ROWS * SPLIT_ROWS;
    if (rows == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "tensor %s: %d rows of %llu bytes don't fit the device's binding of %llu bytes",
                    name, SPLIT_ROWS, (unsigned long long)t->row_bytes, (unsigned long long)window);
    c->rows_per_window = (uint32_t)rows;
    c->windows_per_expert = (uint32_t)((t->rows + rows - 1) / rows);
    uint64_t windows = (uint64_t)c->windows_per_expert * t->experts;
    if (windows > UINT32_MAX)
        return fail(FUL_ERR_UNSUPPORTED, "tensor %s: %llu windows", name,
                    (unsigned long long)windows);
    c->windows = (uint32_t)windows;
    return FUL_OK;
}

static void window_place(const gpu_tensor *t, const cut *c, uint32_t i, gpu_window *w)
{
    memset(w, 0, sizeof(*w));
    if (c->experts_per_window) {
        w->expert0 = i * c->experts_per_window;
        w->expert_count = t->experts - w->expert0 < c->experts_per_window ? t->experts - w->expert0
                                                                          : c->experts_per_window;
        w->row_count = t->rows;
        return;
    }
    w->expert0 = i / c->windows_per_expert;
    w->expert_count = 1;
    w->row0 = i % c->windows_per_expert * c->rows_per_window;
    w->row_count = t->rows - w->row0 < c->rows_per_window ? t->rows - w->row0 : c->rows_per_window;
}

ful_result gpu_tensor_create(ful_device *device, ful_type type, uint32_t experts, uint32_t rows,
                             uint32_t cols, const char *name, gpu_tensor *out)
{
    memset(out, 0, sizeof(*out));
    const char *shown = name ? name : "without name";
    if (type_row_bytes(type, cols) == 0 || experts == 0 || rows == 0)
        return fail(FUL_ERR_ARGUMENT, "tensor %s: type %s, %u x %u x %u elements", shown,
                    ful_type_name(type), (unsigned)experts, (unsigned)rows, (unsigned)cols);
    gpu_tensor t = {.type = type, .experts = experts, .rows = rows, .cols = cols};
    t.row_bytes = type_device_row_bytes(type, cols);
    cut c;
    TRY(cut_make(device, &t, shown, &c));
    t.windows = mem_zalloc(&device->alloc, c.windows, sizeof(*t.windows));
    if (!t.windows)
        return mem_fail(c.windows * sizeof(*t.windows), "a tensor's windows");
    t.window_count = c.windows;
    for (uint32_t i = 0; i < c.windows; i++) {
        gpu_window *w = &t.windows[i];
        window_place(&t, &c, i, w);
        uint64_t bytes = (uint64_t)w->expert_count * w->row_count * t.row_bytes;
        ful_result r = gpu_buffer_create(device, bytes, GPU_MEMORY_DEVICE, name, &w->buffer);
        if (r != FUL_OK) {
            gpu_tensor_destroy(device, &t);
            return r;
        }
    }
    *out = t;
    return FUL_OK;
}

/* Parts of a joined tensor: neighbours of one type together. */
static ful_result parts_make(ful_device *device, const ful_type *types, const uint32_t *rows,
                             uint32_t count, const char *name, gpu_tensor *t)
{
    uint32_t row0 = 0;
    for (uint32_t i = 0, next; i < count; i = next) {
        uint32_t n = 0;
        for (next = i; next < count && types[next] == types[i]; next++)
            n += rows[next];
        gpu_tensor *part = &t->parts[t->part_count];
        TRY(gpu_tensor_create(device, types[i], 1, n, t->cols, name, part));
        t->part_count++;
        part->rows = t->rows;
        for (uint32_t w = 0; w < part->window_count; w++)
            part->windows[w].row0 += row0;
        row0 += n;
    }
    return FUL_OK;
}

ful_result gpu_tensor_create_joined(ful_device *device, const ful_type *types, const uint32_t *rows,
                                    uint32_t count, uint32_t cols, const char *name,
                                    gpu_tensor *out)
{
    gpu_tensor t = {.type = types[0], .experts = 1, .cols = cols};
    bool alike = true;
    for (uint32_t i = 0; i < count; i++) {
        t.rows += rows[i];
        alike = alike && types[i] == types[0];
        t.type = types[i] == FUL_TYPE_F32 ? FUL_TYPE_F32 : t.type;
    }
    if (alike)
        return gpu_tensor_create(device, t.type, 1, t.rows, cols, name, out);
    memset(out, 0, sizeof *out);
    t.parts = mem_zalloc(&device->alloc, count, sizeof *t.parts);
    if (!t.parts)
        return mem_fail(count * sizeof *t.parts, "a tensor's parts");
    ful_result r = parts_make(device, types, rows, count, name, &t);
    if (r != FUL_OK) {
        gpu_tensor_destroy(device, &t);
        return r;
    }
    *out = t;
    return FUL_OK;
}

void gpu_tensor_destroy(ful_device *device, gpu_tensor *tensor)
{
    if (!tensor)
        return;
    for (uint32_t i = 0; i < tensor->part_count; i++)
        gpu_tensor_destroy(device, &tensor->parts[i]);
    mem_free(&device->alloc, tensor->parts);
    for (uint32_t i = 0; tensor->windows && i < tensor->window_count; i++)
        gpu_buffer_destroy(device, &tensor->windows[i].buffer);
    gpu_buffer_destroy(device, &tensor->row_scale);
    mem_free(&device->alloc, tensor->windows);
    memset(tensor, 0, sizeof(*tensor));
}

uint64_t gpu_tensor_bytes(const gpu_tensor *tensor)
{
    uint64_t bytes = tensor->row_scale.bytes;
    for (uint32_t i = 0; i < tensor->window_count; i++) {
        const gpu_window *w = &tensor->windows[i];
        bytes += (uint64_t)w->expert_count * w->row_count * tensor->row_bytes;
    }
    for (uint32_t i = 0; i < tensor->part_count; i++)
        bytes += gpu_tensor_bytes(&tensor->parts[i]);
    return bytes;
}

/* The part that holds a row: the last that begins at or before it. */
static const gpu_tensor *part_of(const gpu_tensor *tensor, uint32_t row)
{
    const gpu_tensor *part = tensor;
    for (uint32_t i = 0; i < tensor->part_count; i++)
        if (tensor->parts[i].windows[0].row0 <= row)
            part = &tensor->parts[i];
    return part;
}

gpu_range gpu_tensor_row(const gpu_tensor *tensor, uint32_t expert, uint32_t row)
{
    gpu_range none = {NULL, 0, 0};
    if (expert >= tensor->experts || row >= tensor->rows)
        return none;
    tensor = part_of(tensor, row);
    /* The last window that begins at or before the row. */
    uint32_t low = 0, high = tensor->window_count;
    while (high - low > 1) {
        uint32_t mid = low + (high - low) / 2;
        const gpu_window *m = &tensor->windows[mid];
        if (m->expert0 < expert || (m->expert0 == expert && m->row0 <= row))
            low = mid;
        else
            high = mid;
    }
    const gpu_window *w = &tensor->windows[low];
    uint64_t index = (uint64_t)(expert - w->expert0) * w->row_count + (row - w->row0);
    gpu_range r = {&w->buffer, index * tensor->row_bytes, tensor->row_bytes};
    return r;
}
