/* An allocator that fails at a chosen call and keeps the books: for walks over every allocation of
 * an operation. It also checks what fulgur.h promises to a caller's functions. */
#ifndef TESTS_UTIL_FAULT_ALLOC_H
#define TESTS_UTIL_FAULT_ALLOC_H

#include "fulgur/fulgur.h"

typedef struct fault_alloc {
    size_t fail_at; /* 1: the first call fails; 0: none does */
    size_t calls;   /* of malloc and realloc */
    size_t live;    /* blocks not freed */
    bool failed;    /* the call fail_at came */
    bool broken;    /* a NULL block, a size of 0, or a wrong old size was given */
} fault_alloc;

/* Not thread-safe: for operations on one thread. `f` must outlive the result. */
ful_alloc fault_alloc_functions(fault_alloc *f);

#endif
