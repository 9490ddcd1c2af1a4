#include "documents.h"

#include <string.h>

const char document_mark[] = "<|endoftext|>";

static const char *find_mark(const char *text, const char *end, const char *mark, size_t mark_bytes)
{
    for (const char *p = text; (size_t)(end - p) >= mark_bytes; p++) {
        bool starts = p == text || p[-1] == '\n';
        const char *after = p + mark_bytes;
        if (starts && memcmp(p, mark, mark_bytes) == 0 &&
            (after == end || *after == '\n' || *after == '\r'))
            return p;
    }
    return NULL;
}

static void trim(const char **text, const char **end)
{
    while (*text < *end && strchr(" \t\r\n", **text) && **text)
        ++*text;
    while (*text < *end && strchr(" \t\r\n", (*end)[-1]) && (*end)[-1])
        --*end;
}

bool document_next(const char **text, const char *end, const char *mark, const char **first,
                   const char **last)
{
    size_t mark_bytes = strlen(mark);
    while (*text < end) {
        const char *at = mark_bytes ? find_mark(*text, end, mark, mark_bytes) : NULL;
        *first = *text;
        *last = at ? at : end;
        *text = at ? at + mark_bytes : end;
        trim(first, last);
        if (*first < *last)
            return true;
    }
    return false;
}

bool document_longest(const ful_tokenizer *t, const char *text, size_t bytes, const char *mark,
                      size_t *most)
{
    const char *start = text, *end = text + bytes, *first, *last;
    *most = 0;
    while (document_next(&text, end, mark, &first, &last)) {
        size_t n = 0;
        if (ful_tokenizer_encode(t, first, (size_t)(last - first), FUL_ENCODE_PLAIN, NULL, &n) !=
            FUL_OK) {
            fprintf(stderr, "fulgur: in the document that begins at byte %zu: %s\n",
                    (size_t)(first - start), ful_last_error());
            return false;
        }
        *most = n > *most ? n : *most;
    }
    return true;
}
