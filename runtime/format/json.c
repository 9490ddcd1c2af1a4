#include "format/json.h"

ful_result json_parse(const char *path, const char *text, size_t bytes, json_t **out)
{
    json_error_t error;
    *out = json_loadb(text, bytes, JSON_REJECT_DUPLICATES, &error);
    if (*out)
        return FUL_OK;
    /* Where jansson's own memory runs out it mostly says nothing at all. */
    if (error.text[0] == '\0' || json_error_code(&error) == json_error_out_of_memory)
        return fail(FUL_ERR_HOST_MEMORY, "%s: out of host memory while parsing JSON", path);
    return fail(FUL_ERR_FORMAT, "%s:%d:%d: %s", path, error.line, error.column, error.text);
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
