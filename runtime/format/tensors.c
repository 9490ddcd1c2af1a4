/* Opening tensors by path, whatever the format, and finding them by name. */
#include "format/tensors.h"

#include <stdlib.h>
#include <string.h>

#include "format/tensor_file.h"

#define INDEX_NAME "model.safetensors.index.json"
#define SINGLE_NAME "model.safetensors"

const char *path_last(const char *path)
{
    const char *last = path;
    for (const char *p = path; *p; p++)
        if (*p == '/' || *p == '\\')
            last = p + 1;
    return last;
}

bool text_ends_with(const char *text, const char *end)
{
    size_t n = strlen(text), m = strlen(end);
    return n >= m && strcmp(text + n - m, end) == 0;
}

/* ---- for the formats ---- */

ful_result tensor_file_shards(tensor_file *file, size_t count, const char *path)
{
    file->shards = mem_zalloc(&file->alloc, count, sizeof *file->shards);
    return file->shards ? FUL_OK : mem_fail(count * sizeof *file->shards, path);
}

ful_result tensor_file_map(tensor_file *file, char *path, tensor_shard **out)
{
    tensor_shard *s = *out = &file->shards[file->shard_count++];
    s->path = path;
    if (!path)
        return mem_fail(1, "a file's path");
    TRY(file_map_open(path, &s->map));
    file->bytes += s->map.bytes;
    return FUL_OK;
}

static int name_compare(const void *a, const void *b)
{
    const tensor_info *x = a, *y = b;
    return strcmp(x->name, y->name);
}

ful_result tensor_file_sort(tensor_file *file)
{
    if (file->tensor_count > 0)
        qsort(file->tensors, file->tensor_count, sizeof *file->tensors, name_compare);
    for (size_t i = 1; i < file->tensor_count; i++) {
        const tensor_info *a = &file->tensors[i - 1], *b = &file->tensors[i];
        if (strcmp(a->name, b->name) == 0)
            return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s' is in %s too", a->path, a->name,
                        b->path);
    }
    return FUL_OK;
}

/* ---- opening ---- */

static ful_result bytes_read(tensor_file *file, tensor_shard *s, const uint8_t *data,
                             uint64_t bytes)
{
    return gguf_magic(data, bytes) ? gguf_read(file, s, data, bytes)
                                   : safetensors_read(file, s, data, bytes);
}

static ful_result single_open(tensor_file *file, const char *path)
{
    tensor_shard *s;
    TRY(tensor_file_shards(file, 1, path));
    TRY(tensor_file_map(file, mem_strdup(&file->alloc, path), &s));
    TRY(bytes_read(file, s, s->map.data, s->map.bytes));
    return tensor_file_sort(file);
}

static ful_result file_open(tensor_file *file, const char *path)
{
    if (text_ends_with(path, ".json"))
        return safetensors_open_index(file, path);
    return text_ends_with(path, ".gguf") ? gguf_open(file, path) : single_open(file, path);
}

static ful_result folder_open(tensor_file *file, const char *dir)
{
    static const char *const names[] = {INDEX_NAME, SINGLE_NAME};
    char *path;
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++) {
        path = path_join(&file->alloc, dir, names[i]);
        if (!path)
            return mem_fail(strlen(dir) + sizeof INDEX_NAME + 1, "a file's path");
        bool here = file_exists(path);
        ful_result result = here ? file_open(file, path) : FUL_OK;
        mem_free(&file->alloc, path);
        if (here)
            return result;
    }
    TRY(gguf_locate(&file->alloc, dir, &path));
    if (!path)
        return fail(FUL_ERR_IO,
                    "%s: holds neither " INDEX_NAME " nor " SINGLE_NAME " nor a GGUF file", dir);
    ful_result result = gguf_open(file, path);
    mem_free(&file->alloc, path);
    return result;
}

static ful_result file_create(const ful_alloc *a, const char *path, tensor_file **out)
{
    *out = mem_zalloc(a, 1, sizeof **out);
    if (!*out)
        return mem_fail(sizeof **out, path);
    (*out)->alloc = mem_functions(a);
    return FUL_OK;
}

ful_result tensor_file_open(const ful_alloc *a, const char *path, tensor_file **out)
{
    TRY(file_create(a, path, out));
    ful_result result = path_is_dir(path) ? folder_open(*out, path) : file_open(*out, path);
    if (result != FUL_OK)
        tensor_file_close(out);
    return result;
}

ful_result tensor_file_read(const ful_alloc *a, const char *name, const void *data, uint64_t bytes,
                            tensor_file **out)
{
    tensor_shard *s = NULL;
    TRY(file_create(a, name, out));
    ful_result result = tensor_file_shards(*out, 1, name);
    if (result == FUL_OK) {
        s = &(*out)->shards[(*out)->shard_count++];
        s->path = mem_strdup(a, name);
        (*out)->bytes = bytes;
        result = s->path ? FUL_OK : mem_fail(strlen(name), "a file's path");
    }
    if (result == FUL_OK)
        result = bytes_read(*out, s, data, bytes);
    if (result == FUL_OK)
        result = tensor_file_sort(*out);
    if (result != FUL_OK)
        tensor_file_close(out);
    return result;
}

void tensor_file_close(tensor_file **file)
{
    if (!file || !*file)
        return;
    tensor_file *f = *file;
    ful_alloc a = f->alloc;
    gguf_keys_close(&f->keys);
    for (uint32_t i = 0; i < f->shard_count; i++) {
        file_map_close(&f->shards[i].map);
        mem_free(&a, f->shards[i].names);
        mem_free(&a, f->shards[i].path);
    }
    mem_free(&a, f->shards);
    mem_free(&a, f->tensors);
    mem_free(&a, f);
    *file = NULL;
}

/* ---- looking ---- */

uint32_t tensor_file_count(const tensor_file *file)
{
    return (uint32_t)file->tensor_count;
}

const tensor_info *tensor_file_at(const tensor_file *file, uint32_t index)
{
    return index < file->tensor_count ? &file->tensors[index] : NULL;
}

const tensor_info *tensor_file_find(const tensor_file *file, const char *name)
{
    size_t low = 0, high = file->tensor_count;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        int order = strcmp(name, file->tensors[middle].name);
        if (order == 0)
            return &file->tensors[middle];
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    return NULL;
}

uint64_t tensor_file_bytes(const tensor_file *file)
{
    return file->bytes;
}

const gguf_keys *tensor_file_keys(const tensor_file *file)
{
    return file->keys;
}
