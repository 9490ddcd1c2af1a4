/* In place of the tokenizer where the library is built without it (FULGUR_TOKENIZER=OFF): none can
 * be loaded, so that nothing else is ever called with one. */
#include "text/tokenizer.h"

static ful_result no_tokenizer(void)
{
    return fail(FUL_ERR_UNSUPPORTED,
                "this library was built without the tokenizer (FULGUR_TOKENIZER=OFF)");
}

ful_result tokenizer_create(ful_tokenizer **out, const ful_alloc *alloc, const char *path)
{
    (void)alloc;
    *out = NULL;
    return fail(FUL_ERR_UNSUPPORTED,
                "%s: this library was built without the tokenizer (FULGUR_TOKENIZER=OFF)", path);
}

void ful_tokenizer_destroy(ful_tokenizer **tokenizer)
{
    if (tokenizer != NULL)
        *tokenizer = NULL;
}

uint32_t ful_tokenizer_vocab_size(const ful_tokenizer *t)
{
    (void)t;
    return 0;
}

int32_t ful_tokenizer_token_id(const ful_tokenizer *t, const char *text, size_t bytes)
{
    (void)t, (void)text, (void)bytes;
    return -1;
}

bool ful_tokenizer_is_added(const ful_tokenizer *t, int32_t token)
{
    (void)t, (void)token;
    return false;
}

const char *ful_tokenizer_token_bytes(const ful_tokenizer *t, int32_t token, size_t *bytes)
{
    (void)t, (void)token;
    *bytes = 0;
    return NULL;
}

ful_result text_check(const char *text, size_t bytes)
{
    (void)text, (void)bytes;
    return no_tokenizer();
}

ful_result tokenizer_encode_runs(const ful_tokenizer *t, const text_run *runs, size_t n_runs,
                                 uint32_t flags, int32_t *out, size_t *count)
{
    (void)t, (void)runs, (void)n_runs, (void)flags, (void)out;
    *count = 0;
    return no_tokenizer();
}

ful_result ful_tokenizer_encode(const ful_tokenizer *t, const char *text, size_t bytes,
                                uint32_t flags, int32_t *out, size_t *count)
{
    (void)t, (void)text, (void)bytes, (void)flags, (void)out;
    if (count != NULL)
        *count = 0;
    return no_tokenizer();
}

ful_result ful_tokenizer_decode(const ful_tokenizer *t, const int32_t *tokens, size_t n_tokens,
                                uint32_t flags, char *out, size_t *bytes)
{
    (void)t, (void)tokens, (void)n_tokens, (void)flags, (void)out;
    if (bytes != NULL)
        *bytes = 0;
    return no_tokenizer();
}
