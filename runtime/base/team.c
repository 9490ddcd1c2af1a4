#include "base/team.h"

#include <stdatomic.h>

#include "base/alloc.h"

enum {
    SPINS_BEFORE_YIELD = 4096,
    SPINS_PER_LOOK = 64,    /* at the clock */
    SLEEP_AFTER_NS = 200000 /* more than the pause between two tokens */
};

struct team {
    unsigned size;
    thread *threads[TEAM_MOST_THREADS];
    /* Odd while a job is open. A worker that counts itself in and then still finds the job open may
     * run it; the caller closes it and waits until nobody is inside. */
    atomic_uint turn;
    atomic_uint inside;
    atomic_uint sleepers;
    atomic_bool stop;
    mutex *lock;
    condition *wake;
    void (*fn)(void *ctx);
    void *ctx;
};

static void spin_pause(void)
{
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__) || (defined(__ARM_ARCH) && __ARM_ARCH >= 7)
    __asm__ volatile("yield");
#endif
}

void spin_wait(uint32_t *spins)
{
    /* Whoever is waited for may need this processor. */
    if (++*spins % SPINS_BEFORE_YIELD == 0)
        thread_yield();
    else
        spin_pause();
}

/* Waits for a turn other than `seen`. */
static unsigned next_turn(team *t, unsigned seen)
{
    uint64_t begin = time_ns();
    for (uint32_t spins = 0; spins % SPINS_PER_LOOK != 1 || time_ns() - begin < SLEEP_AFTER_NS;) {
        unsigned turn = atomic_load(&t->turn);
        if (turn != seen || atomic_load(&t->stop))
            return turn;
        spin_wait(&spins);
    }
    mutex_lock(t->lock);
    atomic_fetch_add(&t->sleepers, 1);
    while (atomic_load(&t->turn) == seen && !atomic_load(&t->stop))
        condition_wait(t->wake, t->lock);
    atomic_fetch_sub(&t->sleepers, 1);
    mutex_unlock(t->lock);
    return atomic_load(&t->turn);
}

static void worker(void *ctx)
{
    team *t = ctx;
    unsigned seen = 0;
    while (!atomic_load(&t->stop)) {
        unsigned turn = next_turn(t, seen);
        if (turn == seen)
            continue;
        seen = turn;
        if (turn % 2 == 0)
            continue;
        atomic_fetch_add(&t->inside, 1);
        if (atomic_load(&t->turn) == turn)
            t->fn(t->ctx);
        atomic_fetch_sub(&t->inside, 1);
    }
}

team *team_create(const ful_alloc *a, unsigned threads)
{
    team *t = mem_zalloc(a, 1, sizeof *t);
    if (!t)
        return NULL;
    t->lock = mutex_create(a);
    t->wake = condition_create(a);
    t->size = 1;
    if (!t->lock || !t->wake) {
        team_destroy(a, &t);
        return NULL;
    }
    if (threads > TEAM_MOST_THREADS)
        threads = TEAM_MOST_THREADS;
    while (t->size < threads && (t->threads[t->size] = thread_create(a, worker, t)) != NULL)
        t->size++;
    return t;
}

static void wake_sleepers(team *t)
{
    if (atomic_load(&t->sleepers) == 0)
        return;
    mutex_lock(t->lock);
    condition_wake_all(t->wake);
    mutex_unlock(t->lock);
}

void team_destroy(const ful_alloc *a, team **team_)
{
    if (!team_ || !*team_)
        return;
    team *t = *team_;
    *team_ = NULL;
    atomic_store(&t->stop, true);
    if (t->lock && t->wake)
        wake_sleepers(t);
    for (unsigned i = 1; i < t->size; i++)
        thread_join(a, &t->threads[i]);
    mutex_destroy(a, &t->lock);
    condition_destroy(a, &t->wake);
    mem_free(a, t);
}

unsigned team_size(const team *t)
{
    return t->size;
}

void team_run(team *t, void (*fn)(void *ctx), void *ctx)
{
    if (t->size == 1) {
        fn(ctx);
        return;
    }
    t->fn = fn;
    t->ctx = ctx;
    atomic_fetch_add(&t->turn, 1);
    wake_sleepers(t);
    fn(ctx);
    atomic_fetch_add(&t->turn, 1);
    for (uint32_t spins = 0; atomic_load(&t->inside) != 0;)
        spin_wait(&spins);
}
