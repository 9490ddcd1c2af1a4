#include "format/json.h"

ful_result json_parse(const char *path, const char *text, size_t bytes, json_t **out)
{
    json_error_t error;
    *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out)
        return FUL_OK;
    ful_result result = FUL_ERR_FORMAT;
    if (json_error_code(&error) == json_error_out_of_memory)
        result = FUL_ERR_HOST_MEMORY;
    return fail(result, "%s:%d:%d: %s", path, error.line, error.column, error.text);
}

ful_result json_load_path(const ful_alloc *a, const char *path, uint64_t max_bytes, json_t **out)
{
    char *text;
    size_t bytes;
    *out = NULL;
    TRY(file_read(a, path, max_bytes, &text, &bytes));
    ful_result result = json_parse(path, text, bytes, out);
    mem_free(a, text);
    return result;
}
