/* safetensors: 8 bytes of header length, little-endian; a JSON header; the tensors' bytes. A
 * sharded checkpoint adds an index, which names the file of every tensor. */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "format/tensor_file.h"

/* The limit of the format's own implementation. */
static const uint64_t header_limit_bytes = 100000000;
static const uint64_t index_limit_bytes = 512u << 20;

typedef struct dtype {
    const char *name;
    uint32_t bits;
    ful_type type;
} dtype;

static const dtype dtypes[] = {
    {"F32", 32, FUL_TYPE_F32},
    {"F16", 16, FUL_TYPE_F16},
    {"BF16", 16, FUL_TYPE_BF16},
    {"F64", 64, FUL_TYPE_DEFAULT},
    {"I64", 64, FUL_TYPE_DEFAULT},
    {"U64", 64, FUL_TYPE_DEFAULT},
    {"C64", 64, FUL_TYPE_DEFAULT},
    {"I32", 32, FUL_TYPE_DEFAULT},
    {"U32", 32, FUL_TYPE_DEFAULT},
    {"I16", 16, FUL_TYPE_DEFAULT},
    {"U16", 16, FUL_TYPE_DEFAULT},
    {"I8", 8, FUL_TYPE_DEFAULT},
    {"U8", 8, FUL_TYPE_DEFAULT},
    {"BOOL", 8, FUL_TYPE_DEFAULT},
    {"F8_E4M3", 8, FUL_TYPE_DEFAULT},
    {"F8_E5M2", 8, FUL_TYPE_DEFAULT},
    {"F8_E4M3FNUZ", 8, FUL_TYPE_DEFAULT},
    {"F8_E5M2FNUZ", 8, FUL_TYPE_DEFAULT},
    {"F8_E8M0", 8, FUL_TYPE_DEFAULT},
    {"F6_E2M3", 6, FUL_TYPE_DEFAULT},
    {"F6_E3M2", 6, FUL_TYPE_DEFAULT},
    {"F4", 4, FUL_TYPE_DEFAULT},
};

static const dtype *dtype_find(const char *name)
{
    for (size_t i = 0; i < sizeof dtypes / sizeof dtypes[0]; i++)
        if (strcmp(dtypes[i].name, name) == 0)
            return &dtypes[i];
    return NULL;
}

/* A JSON value as text, for error lines. */
static const char *value_text(const json_t *value, char *out, size_t bytes)
{
    if (!value)
        return "(absent)";
    memset(out, 0, bytes);
    json_dumpb(value, out, bytes - 1, JSON_ENCODE_ANY | JSON_COMPACT);
    return out;
}

/* ---- one tensor of a header ---- */

static bool size_read(const json_t *value, uint64_t *out)
{
    if (!json_is_integer(value) || json_integer_value(value) < 0)
        return false;
    *out = (uint64_t)json_integer_value(value);
    return true;
}

static ful_result shape_read(const char *path, const json_t *entry, tensor_info *t)
{
    char text[128];
    const json_t *shape = json_object_get(entry, "shape");
    if (!json_is_array(shape))
        return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s': shape is %s, not a list of sizes", path,
                    t->name, value_text(shape, text, sizeof text));
    if (json_array_size(shape) > TENSOR_MAX_DIMS)
        return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s': %zu dimensions, the limit is %d", path,
                    t->name, json_array_size(shape), (int)TENSOR_MAX_DIMS);
    t->n_dims = (uint32_t)json_array_size(shape);
    for (uint32_t i = 0; i < t->n_dims; i++)
        if (!size_read(json_array_get(shape, i), &t->dims[i]))
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor '%.256s': shape %s holds something else than sizes", path,
                        t->name, value_text(shape, text, sizeof text));
    return FUL_OK;
}

/* Bytes that shape and type ask for. */
static ful_result shape_bytes(const char *path, const tensor_info *t, uint32_t bits, uint64_t *out)
{
    uint64_t elements = 1, all_bits;
    bool empty = false, fits = true;
    for (uint32_t i = 0; i < t->n_dims; i++)
        empty |= t->dims[i] == 0;
    for (uint32_t i = 0; i < t->n_dims && !empty && fits; i++)
        fits = size_mul(elements, t->dims[i], &elements);
    if (empty)
        elements = 0;
    if (!fits || !size_mul(elements, bits, &all_bits))
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.256s': its shape's size does not fit 64 bits (first dimension "
                    "%" PRIu64 " of %u)",
                    path, t->name, t->dims[0], t->n_dims);
    if (all_bits % 8 != 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.256s': %" PRIu64 " elements of type %s end inside a byte", path,
                    t->name, elements, t->type_name);
    *out = all_bits / 8;
    return FUL_OK;
}

static ful_result entry_read(const char *path, const json_t *entry, const uint8_t *data,
                             uint64_t data_bytes, tensor_info *t)
{
    char text[128];
    if (!json_is_object(entry))
        return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s': its entry is %s, not an object", path,
                    t->name, value_text(entry, text, sizeof text));
    const json_t *type_value = json_object_get(entry, "dtype");
    const dtype *type =
        json_is_string(type_value) ? dtype_find(json_string_value(type_value)) : NULL;
    if (!type)
        return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s': unknown dtype %s", path, t->name,
                    value_text(type_value, text, sizeof text));
    t->type = type->type;
    t->type_name = type->name;
    TRY(shape_read(path, entry, t));
    uint64_t want = 0, begin, end;
    TRY(shape_bytes(path, t, type->bits, &want));
    const json_t *offsets = json_object_get(entry, "data_offsets");
    if (!json_is_array(offsets) || json_array_size(offsets) != 2 ||
        !size_read(json_array_get(offsets, 0), &begin) ||
        !size_read(json_array_get(offsets, 1), &end))
        return fail(FUL_ERR_FORMAT, "%s: tensor '%.256s': data_offsets is %s, not two offsets",
                    path, t->name, value_text(offsets, text, sizeof text));
    if (begin > end)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.256s': data_offsets begin at %" PRIu64
                    " and end before, at %" PRIu64,
                    path, t->name, begin, end);
    if (end > data_bytes)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.256s': data_offsets end at %" PRIu64 ", the file holds %" PRIu64
                    " bytes of data",
                    path, t->name, end, data_bytes);
    if (end - begin != want)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensor '%.256s': %" PRIu64
                    " bytes between its data_offsets, its shape in %s "
                    "takes %" PRIu64,
                    path, t->name, end - begin, t->type_name, want);
    t->bytes = want;
    t->data = data + begin;
    return FUL_OK;
}

/* ---- one file ---- */

static int place_compare(const void *a, const void *b)
{
    const tensor_info *x = a, *y = b;
    if (x->data != y->data)
        return x->data < y->data ? -1 : 1;
    /* Empty tensors first, so that they do not look like overlaps. */
    return (x->bytes > y->bytes) - (x->bytes < y->bytes);
}

/* Every byte of data belongs to exactly one tensor: a hole would hide data, an overlap would let
 * one tensor's bytes be read as another's. */
static ful_result layout_check(const char *path, tensor_info *tensors, size_t count,
                               const uint8_t *data, uint64_t data_bytes)
{
    uint64_t covered = 0;
    if (count > 0)
        qsort(tensors, count, sizeof *tensors, place_compare);
    for (size_t i = 0; i < count; i++) {
        uint64_t begin = (uint64_t)(tensors[i].data - data);
        if (begin < covered)
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor '%.256s' begins at %" PRIu64
                        ", inside tensor '%.256s' which ends at "
                        "%" PRIu64,
                        path, tensors[i].name, begin, tensors[i - 1].name, covered);
        if (begin > covered)
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor '%.256s' begins at %" PRIu64
                        ", which leaves a hole after %" PRIu64,
                        path, tensors[i].name, begin, covered);
        covered = begin + tensors[i].bytes;
    }
    if (covered != data_bytes)
        return fail(FUL_ERR_FORMAT,
                    "%s: tensors end at %" PRIu64 ", the file holds %" PRIu64 " bytes of data",
                    path, covered, data_bytes);
    return FUL_OK;
}

static bool is_metadata(const char *key)
{
    return strcmp(key, "__metadata__") == 0;
}

static ful_result entries_read(tensor_file *file, tensor_shard *s, json_t *header,
                               const file_map *map, uint64_t header_bytes)
{
    const char *key;
    json_t *entry;
    size_t count = 0, name_bytes = 0;
    json_object_foreach(header, key, entry)
    {
        if (!is_metadata(key)) {
            count++;
            name_bytes += strlen(key) + 1;
        }
    }
    if (count > UINT32_MAX - file->tensor_count)
        return fail(FUL_ERR_FORMAT, "%s: %zu tensors, the limit is %" PRIu32 " in all files",
                    s->path, count, UINT32_MAX);
    if (count == 0)
        return layout_check(s->path, NULL, 0, NULL, map->bytes - 8 - header_bytes);
    size_t need = file->tensor_count + count;
    if (!mem_grow(&file->alloc, (void **)&file->tensors, &file->tensor_capacity, need,
                  sizeof *file->tensors))
        return mem_fail(need * sizeof *file->tensors, s->path);
    s->names = mem_alloc(&file->alloc, name_bytes);
    if (!s->names)
        return mem_fail(name_bytes, s->path);

    const uint8_t *data = map->data + 8 + header_bytes;
    uint64_t data_bytes = map->bytes - 8 - header_bytes;
    tensor_info *first = file->tensors + file->tensor_count, *t = first;
    char *name = s->names;
    json_object_foreach(header, key, entry)
    {
        if (is_metadata(key))
            continue;
        size_t n = strlen(key) + 1;
        memcpy(name, key, n);
        *t = (tensor_info){.name = name, .path = s->path};
        TRY(entry_read(s->path, entry, data, data_bytes, t));
        name += n;
        t++;
    }
    file->tensor_count = need;
    return layout_check(s->path, first, count, data, data_bytes);
}

static ful_result header_find(const char *path, const file_map *map, uint64_t *header_bytes)
{
    static const char pointer[] = "version https://git-lfs";
    if (map->bytes >= sizeof pointer && memcmp(map->data, pointer, sizeof pointer - 1) == 0)
        return fail(FUL_ERR_FORMAT,
                    "%s: a Git LFS pointer of %" PRIu64 " bytes, not the file itself", path,
                    map->bytes);
    if (map->bytes < 8)
        return fail(FUL_ERR_FORMAT, "%s: %" PRIu64 " bytes, a safetensors file has at least 8",
                    path, map->bytes);
    uint64_t n = 0;
    for (int i = 7; i >= 0; i--)
        n = n << 8 | map->data[i];
    if (n > header_limit_bytes)
        return fail(FUL_ERR_FORMAT, "%s: header of %" PRIu64 " bytes, the limit is %" PRIu64, path,
                    n, header_limit_bytes);
    if (n > map->bytes - 8)
        return fail(FUL_ERR_FORMAT,
                    "%s: header of %" PRIu64 " bytes in a file of %" PRIu64 ": truncated?", path, n,
                    map->bytes);
    if (n == 0 || map->data[8] != '{')
        return fail(FUL_ERR_FORMAT, "%s: its header of %" PRIu64 " bytes does not begin with '{'",
                    path, n);
    *header_bytes = n;
    return FUL_OK;
}

ful_result safetensors_read(tensor_file *file, tensor_shard *shard, const uint8_t *data,
                            uint64_t bytes)
{
    const file_map map = {data, bytes};
    uint64_t header_bytes = 0;
    TRY(header_find(shard->path, &map, &header_bytes));
    json_t *header;
    TRY(json_parse(shard->path, (const char *)data + 8, (size_t)header_bytes, &header));
    ful_result result = FUL_ERR_FORMAT;
    if (json_is_object(header))
        result = entries_read(file, shard, header, &map, header_bytes);
    else
        fail(result, "%s: its header is not a JSON object", shard->path);
    json_decref(header);
    return result;
}

/* ---- the index ---- */

typedef struct placed_name {
    const char *tensor, *file; /* inside the index's JSON */
} placed_name;

static int placed_compare(const void *a, const void *b)
{
    const placed_name *x = a, *y = b;
    return strcmp(x->file, y->file);
}

/* An index comes from elsewhere: it may name files beside it and nothing else. */
static bool is_plain_name(const char *name)
{
    return name[0] != '\0' && !strpbrk(name, "/\\:") && !strstr(name, "..") &&
           strcmp(name, ".") != 0;
}

static ful_result map_read(const char *path, json_t *map, placed_name *placed)
{
    char text[128];
    const char *key;
    json_t *value;
    size_t i = 0;
    json_object_foreach(map, key, value)
    {
        if (!json_is_string(value))
            return fail(FUL_ERR_FORMAT, "%s: weight_map: tensor '%.256s' has %s, not a file name",
                        path, key, value_text(value, text, sizeof text));
        if (!is_plain_name(json_string_value(value)))
            return fail(
                FUL_ERR_FORMAT,
                "%s: weight_map: tensor '%.256s' names '%.256s'; only files beside the index "
                "are allowed",
                path, key, json_string_value(value));
        placed[i++] = (placed_name){key, json_string_value(value)};
    }
    qsort(placed, i, sizeof *placed, placed_compare);
    return FUL_OK;
}

static ful_result shards_open(tensor_file *file, const char *path, const placed_name *placed,
                              size_t count)
{
    size_t shard_count = 0;
    for (size_t i = 0; i < count; i++)
        shard_count += i == 0 || strcmp(placed[i].file, placed[i - 1].file) != 0;
    TRY(tensor_file_shards(file, shard_count, path));
    char *dir = mem_strndup(&file->alloc, path, (size_t)(path_last(path) - path));
    if (!dir)
        return mem_fail(strlen(path), path);
    ful_result result = FUL_OK;
    for (size_t i = 0; i < count && result == FUL_OK; i++) {
        if (i > 0 && strcmp(placed[i].file, placed[i - 1].file) == 0)
            continue;
        char *name = path_join(&file->alloc, dir, placed[i].file);
        tensor_shard *shard;
        bool missing = name && !file_exists(name);
        result = tensor_file_map(file, name, &shard);
        if (result == FUL_OK)
            result = safetensors_read(file, shard, shard->map.data, shard->map.bytes);
        if (result != FUL_OK && missing)
            fail_context(result, "%s: shard of tensor '%.256s' is missing", path, placed[i].tensor);
    }
    mem_free(&file->alloc, dir);
    return result;
}

/* Tensors that a shard holds and the index does not name are kept: they do no harm. */
static ful_result index_check(const tensor_file *file, const char *path, const placed_name *placed,
                              size_t count)
{
    for (size_t i = 0; i < count; i++) {
        const tensor_info *t = tensor_file_find(file, placed[i].tensor);
        if (!t)
            return fail(FUL_ERR_FORMAT, "%s: weight_map: tensor '%.256s' is not in '%.256s'", path,
                        placed[i].tensor, placed[i].file);
        if (strcmp(path_last(t->path), placed[i].file) != 0)
            return fail(FUL_ERR_FORMAT,
                        "%s: weight_map: tensor '%.256s' is not in '%.256s' but in '%s'", path,
                        placed[i].tensor, placed[i].file, path_last(t->path));
    }
    return FUL_OK;
}

ful_result safetensors_open_index(tensor_file *file, const char *path)
{
    char text[128];
    json_t *root;
    TRY(json_load_path(&file->alloc, path, index_limit_bytes, &root));
    json_t *map = json_object_get(root, "weight_map");
    size_t count = json_object_size(map);
    placed_name *placed = NULL;
    ful_result result = FUL_OK;
    if (!json_is_object(map) || count == 0)
        result = fail(FUL_ERR_FORMAT, "%s: weight_map is %s, not an object of tensors and files",
                      path, value_text(map, text, sizeof text));
    if (result == FUL_OK) {
        placed = mem_array(&file->alloc, count, sizeof *placed);
        if (!placed)
            result = mem_fail(count * sizeof *placed, path);
    }
    if (result == FUL_OK)
        result = map_read(path, map, placed);
    if (result == FUL_OK)
        result = shards_open(file, path, placed, count);
    if (result == FUL_OK)
        result = tensor_file_sort(file);
    if (result == FUL_OK)
        result = index_check(file, path, placed, count);
    mem_free(&file->alloc, placed);
    json_decref(root);
    return result;
}
