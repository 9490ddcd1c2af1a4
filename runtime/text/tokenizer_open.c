#include "gpu/gpu.h"
#include "text/tokenizer.h"

ful_result ful_tokenizer_load(ful_tokenizer **out, ful_instance *instance, const char *path)
{
    if (out != NULL)
        *out = NULL;
    if (out == NULL || instance == NULL || path == NULL)
        return fail(FUL_ERR_ARGUMENT, "ful_tokenizer_load: out, instance or path is NULL");
    return tokenizer_create(out, instance_alloc(instance), path);
}
