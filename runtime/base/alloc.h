/* Host memory through the caller's functions, with overflow checks. All return NULL on failure and
 * leave no error line: callers say what they wanted the memory for (mem_fail). */
#ifndef FULGUR_BASE_ALLOC_H
#define FULGUR_BASE_ALLOC_H

#include "base/status.h"

/* Fills in libc's functions where `in` is NULL or zero. */
ful_alloc mem_functions(const ful_alloc *in);

void *mem_alloc(const ful_alloc *a, size_t bytes); /* bytes may be 0: one byte is taken */
void *mem_zalloc(const ful_alloc *a, size_t count,
                 size_t size); /* zeroed; NULL if count*size overflows */
void *mem_array(const ful_alloc *a, size_t count, size_t size); /* not zeroed; NULL on overflow */
/* Grows an array of `size`-byte elements to at least `need` elements (doubling); *capacity and *p
 * are untouched on failure, which returns false. */
bool mem_grow(const ful_alloc *a, void **p, size_t *capacity, size_t need, size_t size);
char *mem_strdup(const ful_alloc *a, const char *text);
char *mem_strndup(const ful_alloc *a, const char *text, size_t bytes);
void mem_free(const ful_alloc *a, void *p); /* NULL allowed */

/* FUL_ERR_HOST_MEMORY: "out of host memory: <bytes> bytes for <what>". */
ful_result mem_fail(size_t bytes, const char *what);

/* Checked arithmetic for sizes that come from files: false on overflow. */
bool size_mul(uint64_t a, uint64_t b, uint64_t *out);
bool size_add(uint64_t a, uint64_t b, uint64_t *out);

#endif
