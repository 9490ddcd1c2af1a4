/* A team of threads that waits for work: briefly spinning, so that short jobs one after the other
 * start within a microsecond, then asleep. */
#ifndef FULGUR_BASE_TEAM_H
#define FULGUR_BASE_TEAM_H

#include "base/thread.h"

enum { TEAM_MOST_THREADS = 64 };

typedef struct team team;

/* The caller of team_run is one of the threads; fewer if some can't be started. NULL if there is no
 * memory. */
team *team_create(const struct ful_alloc *a, unsigned threads);
void team_destroy(const struct ful_alloc *a, team **t);
unsigned team_size(const team *t);

/* Runs fn(ctx) on the calling thread and on all others that come before that returns; returns when
 * all that came have left. fn must get its work done however few come. One caller at a time. */
void team_run(team *t, void (*fn)(void *ctx), void *ctx);

/* A step of a wait for another thread that is busy: *spins counts them and begins at 0. */
void spin_wait(uint32_t *spins);

#endif
