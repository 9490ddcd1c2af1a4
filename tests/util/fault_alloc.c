#include "util/fault_alloc.h"

#include <stdlib.h>
#include <string.h>

typedef union block {
    size_t bytes;
    max_align_t align;
} block;

static bool fails(fault_alloc *f)
{
    bool now = atomic_fetch_add(&f->calls, 1) + 1 == f->fail_at;
    if (now)
        atomic_store(&f->failed, true);
    return now;
}

static void *fault_malloc(void *ctx, size_t bytes)
{
    fault_alloc *f = ctx;
    if (bytes == 0)
        atomic_store(&f->broken, true);
    if (fails(f) || bytes > SIZE_MAX - sizeof(block))
        return NULL;
    block *b = malloc(sizeof *b + bytes);
    if (!b)
        return NULL;
    b->bytes = bytes;
    f->live++;
    return b + 1;
}

static void fault_free(void *ctx, void *p)
{
    fault_alloc *f = ctx;
    if (!p) {
        f->broken = true;
        return;
    }
    f->live--;
    free((block *)p - 1);
}

static void *fault_realloc(void *ctx, void *p, size_t old_bytes, size_t bytes)
{
    fault_alloc *f = ctx;
    if (!p || bytes == 0 || ((block *)p - 1)->bytes != old_bytes)
        f->broken = true;
    if (!p || fails(f) || bytes > SIZE_MAX - sizeof(block))
        return NULL;
    /* Always moves, so that a stale pointer is seen. */
    block *b = malloc(sizeof *b + bytes);
    if (!b)
        return NULL;
    b->bytes = bytes;
    memcpy(b + 1, p, old_bytes < bytes ? old_bytes : bytes);
    free((block *)p - 1);
    return b + 1;
}

ful_alloc fault_alloc_functions(fault_alloc *f)
{
    return (ful_alloc){
        .malloc = fault_malloc, .realloc = fault_realloc, .free = fault_free, .ctx = f};
}
