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

typedef struct condition condition;                     /* opaque, likewise */
condition *condition_create(const struct ful_alloc *a); /* NULL on failure */
void condition_destroy(const struct ful_alloc *a, condition **c);
void condition_wait(condition *c, mutex *m); /* gives m back meanwhile; may wake without reason */
void condition_wake_all(condition *c);

typedef struct thread thread; /* opaque, likewise */
thread *thread_create(const struct ful_alloc *a, void (*fn)(void *ctx), void *ctx); /* or NULL */
void thread_join(const struct ful_alloc *a, thread **t);
void thread_yield(void); /* lets others have the processor */

unsigned thread_count(void); /* processors this process may use, at least 1 */

/* Runs fn(ctx, i) for i in [0, n) on up to `threads` threads (the caller's is one); returns when
 * all are done. Falls back to fewer threads if some can't be started. */
void parallel_for(unsigned threads, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx);

uint64_t time_ns(void);               /* monotonic */
uint64_t memory_physical_bytes(void); /* of this machine; 0 if unknown */

#endif
