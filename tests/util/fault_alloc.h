/* An allocator that fails at a chosen call and keeps the books: for walks over every allocation of
 * an operation. It also checks what fulgur.h promises to a caller's functions. */
#ifndef TESTS_UTIL_FAULT_ALLOC_H
#define TESTS_UTIL_FAULT_ALLOC_H

#include <stdatomic.h>

#include "fulgur/fulgur.h"

typedef struct fault_alloc {
    size_t fail_at;       /* 1: the first call fails; 0: none does */
    _Atomic size_t calls; /* of malloc and realloc */
    _Atomic size_t live;  /* blocks not freed */
    atomic_bool failed;   /* the call fail_at came */
    atomic_bool broken;   /* a NULL block, a size of 0, or a wrong old size was given */
} fault_alloc;

/* For any number of threads. `f` must outlive the result. */
ful_alloc fault_alloc_functions(fault_alloc *f);

#endif
