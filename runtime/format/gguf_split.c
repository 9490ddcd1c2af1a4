/* Which files belong together: parts named NAME-00001-of-00003.gguf, and the GGUF in a folder. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "format/tensor_file.h"

enum { MAX_PARTS = 99999, TAIL_BYTES = sizeof "-00001-of-00003.gguf" - 1 };

static bool digits_read(const char *text, uint32_t *out)
{
    *out = 0;
    for (int i = 0; i < 5; i++) {
        if (text[i] < '0' || text[i] > '9')
            return false;
        *out = *out * 10 + (uint32_t)(text[i] - '0');
    }
    return true;
}

/* The number (from 1) and the count that a part's name ends with. */
static bool part_name(const char *path, uint32_t *number, uint32_t *count)
{
    size_t n = strlen(path);
    if (n < TAIL_BYTES)
        return false;
    const char *tail = path + n - TAIL_BYTES;
    return tail[0] == '-' && digits_read(tail + 1, number) && memcmp(tail + 6, "-of-", 4) == 0 &&
           digits_read(tail + 10, count) && strcmp(tail + 15, ".gguf") == 0 && *number >= 1 &&
           *number <= *count;
}

/* The path of part `number`, from that of another one. */
static char *part_path(const ful_alloc *a, const char *path, uint32_t number)
{
    char *copy = mem_strdup(a, path), digits[8];
    if (!copy)
        return NULL;
    snprintf(digits, sizeof digits, "%05u", (unsigned)(number % 100000));
    memcpy(copy + strlen(copy) - TAIL_BYTES + 1, digits, 5);
    return copy;
}

static ful_result split_key(const gguf_keys *keys, const char *path, const char *key,
                            int64_t otherwise, int64_t *out)
{
    char words[128];
    const gguf_value *v = gguf_keys_find(keys, key);
    *out = otherwise;
    if (v && (v->is_array || !gguf_integer(v, 0, out) || *out < 0))
        return fail(FUL_ERR_FORMAT, "%s: key '%s' is %s, it must be a whole number", path, key,
                    gguf_value_words(v, words, sizeof words));
    return FUL_OK;
}

/* The part's own keys say the same as its name. */
static ful_result part_check(const ful_alloc *a, const tensor_shard *shard, uint32_t index,
                             int64_t count)
{
    gguf_keys *keys;
    int64_t no, parts;
    TRY(gguf_keys_read(a, shard->path, shard->map.data, shard->map.bytes, &keys));
    ful_result r = split_key(keys, shard->path, "split.no", -1, &no);
    if (r == FUL_OK)
        r = split_key(keys, shard->path, "split.count", -1, &parts);
    if (r == FUL_OK && (no != (int64_t)index || parts != count))
        r = fail(FUL_ERR_FORMAT,
                 "%s: keys 'split.no' = %" PRId64 " and 'split.count' = %" PRId64
                 ", its name says part %" PRIu32 " of %" PRId64,
                 shard->path, no, parts, index, count);
    gguf_keys_close(&keys);
    return r;
}

static ful_result parts_open(tensor_file *file, const char *path, int64_t count)
{
    for (uint32_t i = 1; i < count; i++) {
        tensor_shard *shard;
        char *name = part_path(&file->alloc, path, i + 1);
        TRY(tensor_file_map(file, name, &shard));
        TRY(part_check(&file->alloc, shard, i, count));
        TRY(gguf_read(file, shard, shard->map.data, shard->map.bytes));
    }
    return FUL_OK;
}

/* Whatever part is named, reading begins with the first, which has the keys. */
ful_result gguf_open(tensor_file *file, const char *path)
{
    uint32_t number = 1, named = 1;
    int64_t no, count, tensors;
    bool is_part = part_name(path, &number, &named);
    TRY(tensor_file_shards(file, is_part ? named : 1, path));
    char *first = is_part ? part_path(&file->alloc, path, 1) : mem_strdup(&file->alloc, path);
    tensor_shard *shard;
    TRY(tensor_file_map(file, first, &shard));
    TRY(gguf_read(file, shard, shard->map.data, shard->map.bytes));
    TRY(split_key(file->keys, shard->path, "split.count", 1, &count));
    TRY(split_key(file->keys, shard->path, "split.no", 0, &no));
    if (count <= 1)
        return tensor_file_sort(file); /* whatever its name says */
    if (!is_part || count != (int64_t)named || no != 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: keys 'split.no' = %" PRId64 " and 'split.count' = %" PRId64
                    ": its name must end in -00001-of-%05" PRId64 ".gguf",
                    shard->path, no, count, count);
    TRY(parts_open(file, shard->path, count));
    TRY(split_key(file->keys, shard->path, "split.tensors.count", -1, &tensors));
    if (tensors >= 0 && (uint64_t)tensors != file->tensor_count)
        return fail(FUL_ERR_FORMAT,
                    "%s: key 'split.tensors.count' = %" PRId64 ", the %" PRId64
                    " parts have %zu tensors",
                    shard->path, tensors, count, file->tensor_count);
    return tensor_file_sort(file);
}

/* ---- folders ---- */

typedef struct folder_search {
    const ful_alloc *alloc;
    char *name; /* found first */
    char *part; /* a part that is not the first */
    uint32_t count;
    bool out_of_memory;
} folder_search;

static void folder_look(void *ctx, const char *name)
{
    folder_search *s = ctx;
    uint32_t number, count;
    if (!text_ends_with(name, ".gguf"))
        return;
    bool later = part_name(name, &number, &count) && number > 1;
    if (later ? s->part != NULL : s->count++ > 0)
        return;
    char *copy = mem_strdup(s->alloc, name);
    s->out_of_memory |= !copy;
    *(later ? &s->part : &s->name) = copy;
}

/* Caches of downloads name files by their hash. */
static bool begins_as_gguf(const char *path)
{
    file_map map;
    if (file_map_open(path, &map) != FUL_OK)
        return false;
    bool yes = gguf_magic(map.data, map.bytes);
    file_map_close(&map);
    return yes;
}

ful_result gguf_locate(const ful_alloc *a, const char *path, char **out)
{
    *out = NULL;
    if (!path_is_dir(path)) {
        uint32_t number, count;
        if (!text_ends_with(path, ".gguf") && !begins_as_gguf(path))
            return FUL_OK;
        *out = part_name(path, &number, &count) ? part_path(a, path, 1) : mem_strdup(a, path);
        return *out ? FUL_OK : mem_fail(strlen(path), "a file's path");
    }
    folder_search s = {.alloc = a};
    TRY(path_each_name(path, folder_look, &s));
    ful_result r = s.out_of_memory ? mem_fail(1, "a file's path") : FUL_OK;
    if (r == FUL_OK && s.count > 1)
        r = fail(FUL_ERR_FORMAT, "%s: holds %" PRIu32 " GGUF models; name one of the files", path,
                 s.count);
    if (r == FUL_OK && s.count == 0 && s.part) {
        /* Opening it tells what is missing. */
        s.name = part_path(a, s.part, 1);
        s.count = 1;
        r = s.name ? FUL_OK : mem_fail(strlen(s.part), "a file's path");
    }
    if (r == FUL_OK && s.count == 1) {
        *out = path_join(a, path, s.name);
        if (!*out)
            r = mem_fail(strlen(path) + strlen(s.name), "a file's path");
    }
    mem_free(a, s.name);
    mem_free(a, s.part);
    return r;
}
