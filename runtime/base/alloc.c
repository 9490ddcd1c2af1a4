#include "base/alloc.h"

#include <stdlib.h>
#include <string.h>

static void *libc_malloc(void *ctx, size_t bytes)
{
    (void)ctx;
    return malloc(bytes);
}

static void *libc_realloc(void *ctx, void *p, size_t old_bytes, size_t bytes)
{
    (void)ctx;
    (void)old_bytes;
    return realloc(p, bytes);
}

static void libc_free(void *ctx, void *p)
{
    (void)ctx;
    free(p);
}

ful_alloc mem_functions(const ful_alloc *in)
{
    /* Without both malloc and free nothing of the caller's can be used: a block must go back to
     * where it came from. A missing realloc is made from the two (mem_grow). */
    if (in && in->malloc && in->free)
        return *in;
    return (ful_alloc){.malloc = libc_malloc, .realloc = libc_realloc, .free = libc_free};
}

void *mem_alloc(const ful_alloc *a, size_t bytes)
{
    ful_alloc f = mem_functions(a);
    return f.malloc(f.ctx, bytes ? bytes : 1);
}

void *mem_array(const ful_alloc *a, size_t count, size_t size)
{
    if (size && count > SIZE_MAX / size)
        return NULL;
    return mem_alloc(a, count * size);
}

void *mem_zalloc(const ful_alloc *a, size_t count, size_t size)
{
    void *p = mem_array(a, count, size);
    if (p)
        memset(p, 0, count * size);
    return p;
}

bool mem_grow(const ful_alloc *a, void **p, size_t *capacity, size_t need, size_t size)
{
    if (need <= *capacity)
        return true;
    size_t next = *capacity > SIZE_MAX / 2 ? need : *capacity * 2;
    if (next < need)
        next = need;
    if (next < 8)
        next = 8;
    if (size && next > SIZE_MAX / size) {
        next = need; /* doubling went too far; the exact size may still do */
        if (next > SIZE_MAX / size)
            return false;
    }
    ful_alloc f = mem_functions(a);
    size_t old_bytes = *capacity * size, bytes = next * size;
    if (bytes == 0)
        bytes = 1;
    void *grown;
    if (*p && f.realloc) {
        grown = f.realloc(f.ctx, *p, old_bytes, bytes);
    } else {
        grown = f.malloc(f.ctx, bytes);
        if (grown && *p) {
            memcpy(grown, *p, old_bytes);
            f.free(f.ctx, *p);
        }
    }
    if (!grown)
        return false;
    *p = grown;
    *capacity = next;
    return true;
}

char *mem_strndup(const ful_alloc *a, const char *text, size_t bytes)
{
    if (bytes == SIZE_MAX)
        return NULL;
    char *copy = mem_alloc(a, bytes + 1);
    if (copy) {
        memcpy(copy, text, bytes);
        copy[bytes] = '\0';
    }
    return copy;
}

char *mem_strdup(const ful_alloc *a, const char *text)
{
    return mem_strndup(a, text, strlen(text));
}

void mem_free(const ful_alloc *a, void *p)
{
    if (!p)
        return;
    ful_alloc f = mem_functions(a);
    f.free(f.ctx, p);
}

ful_result mem_fail(size_t bytes, const char *what)
{
    return fail(FUL_ERR_HOST_MEMORY, "out of host memory: %zu bytes for %s", bytes, what);
}

bool size_mul(uint64_t a, uint64_t b, uint64_t *out)
{
    if (a && b > UINT64_MAX / a)
        return false;
    *out = a * b;
    return true;
}

bool size_add(uint64_t a, uint64_t b, uint64_t *out)
{
    if (b > UINT64_MAX - a)
        return false;
    *out = a + b;
    return true;
}
