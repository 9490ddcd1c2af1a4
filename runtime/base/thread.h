/* Threads: C11 <threads.h> where it exists, else pthreads (else Win32); only what the library uses.
 */
#ifndef FULGUR_BASE_THREAD_H
#define FULGUR_BASE_THREAD_H

#include "base/status.h"

typedef struct mutex mutex; /* opaque; heap object of the platform */
struct ful_alloc;

mutex *mutex_create(const ful_alloc *a); /* NULL on failure */
void mutex_destroy(const ful_alloc *a, mutex **m);
void mutex_lock(mutex *m);
void mutex_unlock(mutex *m);

unsigned thread_count(void); /* processors this process may use, at least 1 */

/* Runs fn(ctx, i) for i in [0, n) on up to `threads` threads (the caller's is one); returns when
 * all are done. Falls back to fewer threads if some can't be started. */
void parallel_for(unsigned threads, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx);

uint64_t time_ns(void); /* monotonic */

#endif
