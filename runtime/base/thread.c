#if defined(__linux__) && !defined(_GNU_SOURCE)
#define _GNU_SOURCE /* sched_getaffinity */
#elif !defined(_POSIX_C_SOURCE) && !defined(__APPLE__)
#define _POSIX_C_SOURCE 200809L
#endif

#include "base/thread.h"

#include <stdatomic.h>

#include "base/alloc.h"

#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define UNDER_TSAN 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define UNDER_TSAN 1
#endif

/* ThreadSanitizer sees pthreads only. Android has threads.h from API 30, Apple not at all. */
#if defined(_WIN32)
#include <process.h>
#include <windows.h>
#elif defined(__STDC_NO_THREADS__) || defined(__ANDROID__) || defined(__APPLE__) ||                \
    defined(UNDER_TSAN)
#define USE_PTHREAD 1
#include <pthread.h>
#else
#include <threads.h>
#endif
#if !defined(_WIN32)
#include <time.h>
#include <unistd.h>
#endif
#if defined(__linux__) || defined(USE_PTHREAD)
#include <sched.h>
#endif

enum { MAX_THREADS = 64 };

/* What a thread runs; outlives it. */
typedef struct task {
    void (*fn)(void *ctx);
    void *ctx;
} task;

typedef struct job {
    void (*fn)(void *ctx, uint32_t i);
    void *ctx;
    uint32_t n;
    atomic_uint_fast64_t next; /* 64 bits: every thread counts once past n */
} job;

static void job_run(void *ctx)
{
    job *j = ctx;
    for (;;) {
        uint64_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n)
            return;
        j->fn(j->ctx, (uint32_t)i);
    }
}

#if defined(_WIN32)

struct mutex {
    SRWLOCK lock;
};

struct condition {
    CONDITION_VARIABLE event;
};

typedef HANDLE handle;

static bool mutex_start(mutex *m)
{
    InitializeSRWLock(&m->lock);
    return true;
}

static void mutex_stop(mutex *m)
{
    (void)m;
}

void mutex_lock(mutex *m)
{
    AcquireSRWLockExclusive(&m->lock);
}

void mutex_unlock(mutex *m)
{
    ReleaseSRWLockExclusive(&m->lock);
}

static bool condition_start(condition *c)
{
    InitializeConditionVariable(&c->event);
    return true;
}

static void condition_stop(condition *c)
{
    (void)c;
}

void condition_wait(condition *c, mutex *m)
{
    SleepConditionVariableSRW(&c->event, &m->lock, INFINITE, 0);
}

void condition_wake_all(condition *c)
{
    WakeAllConditionVariable(&c->event);
}

static unsigned __stdcall thread_main(void *arg)
{
    task *t = arg;
    t->fn(t->ctx);
    return 0;
}

static bool handle_start(handle *h, task *t)
{
    *h = (HANDLE)_beginthreadex(NULL, 0, thread_main, t, 0, NULL);
    return *h != NULL;
}

static void handle_join(handle h)
{
    WaitForSingleObject(h, INFINITE);
    CloseHandle(h);
}

void thread_yield(void)
{
    SwitchToThread();
}

uint64_t memory_physical_bytes(void)
{
    MEMORYSTATUSEX status = {.dwLength = sizeof status};
    return GlobalMemoryStatusEx(&status) ? status.ullTotalPhys : 0;
}

unsigned thread_count(void)
{
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwNumberOfProcessors ? (unsigned)info.dwNumberOfProcessors : 1;
}

uint64_t time_ns(void)
{
    LARGE_INTEGER now, rate;
    QueryPerformanceCounter(&now);
    QueryPerformanceFrequency(&rate);
    uint64_t ticks = (uint64_t)now.QuadPart, hz = (uint64_t)rate.QuadPart;
    return ticks / hz * 1000000000u + ticks % hz * 1000000000u / hz;
}

#else

#if defined(USE_PTHREAD)

struct mutex {
    pthread_mutex_t lock;
};

struct condition {
    pthread_cond_t event;
};

typedef pthread_t handle;

static bool mutex_start(mutex *m)
{
    return pthread_mutex_init(&m->lock, NULL) == 0;
}

static void mutex_stop(mutex *m)
{
    pthread_mutex_destroy(&m->lock);
}

void mutex_lock(mutex *m)
{
    pthread_mutex_lock(&m->lock);
}

void mutex_unlock(mutex *m)
{
    pthread_mutex_unlock(&m->lock);
}

static bool condition_start(condition *c)
{
    return pthread_cond_init(&c->event, NULL) == 0;
}

static void condition_stop(condition *c)
{
    pthread_cond_destroy(&c->event);
}

void condition_wait(condition *c, mutex *m)
{
    pthread_cond_wait(&c->event, &m->lock);
}

void condition_wake_all(condition *c)
{
    pthread_cond_broadcast(&c->event);
}

static void *thread_main(void *arg)
{
    task *t = arg;
    t->fn(t->ctx);
    return NULL;
}

static bool handle_start(handle *h, task *t)
{
    return pthread_create(h, NULL, thread_main, t) == 0;
}

static void handle_join(handle h)
{
    pthread_join(h, NULL);
}

void thread_yield(void)
{
    sched_yield();
}

#else

struct mutex {
    mtx_t lock;
};

struct condition {
    cnd_t event;
};

typedef thrd_t handle;

static bool mutex_start(mutex *m)
{
    return mtx_init(&m->lock, mtx_plain) == thrd_success;
}

static void mutex_stop(mutex *m)
{
    mtx_destroy(&m->lock);
}

void mutex_lock(mutex *m)
{
    mtx_lock(&m->lock);
}

void mutex_unlock(mutex *m)
{
    mtx_unlock(&m->lock);
}

static bool condition_start(condition *c)
{
    return cnd_init(&c->event) == thrd_success;
}

static void condition_stop(condition *c)
{
    cnd_destroy(&c->event);
}

void condition_wait(condition *c, mutex *m)
{
    cnd_wait(&c->event, &m->lock);
}

void condition_wake_all(condition *c)
{
    cnd_broadcast(&c->event);
}

static int thread_main(void *arg)
{
    task *t = arg;
    t->fn(t->ctx);
    return 0;
}

static bool handle_start(handle *h, task *t)
{
    return thrd_create(h, thread_main, t) == thrd_success;
}

static void handle_join(handle h)
{
    thrd_join(h, NULL);
}

void thread_yield(void)
{
    thrd_yield();
}

#endif

unsigned thread_count(void)
{
#if defined(__linux__)
    /* A container or taskset may leave fewer than are online. */
    cpu_set_t set;
    CPU_ZERO(&set);
    if (sched_getaffinity(0, sizeof set, &set) == 0 && CPU_COUNT(&set) > 0)
        return (unsigned)CPU_COUNT(&set);
#endif
    long n = sysconf(_SC_NPROCESSORS_ONLN);
    return n > 0 ? (unsigned)n : 1;
}

uint64_t memory_physical_bytes(void)
{
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
    long pages = sysconf(_SC_PHYS_PAGES), bytes = sysconf(_SC_PAGESIZE);
    return pages > 0 && bytes > 0 ? (uint64_t)pages * (uint64_t)bytes : 0;
#else
    return 0;
#endif
}

uint64_t time_ns(void)
{
    struct timespec now = {0};
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

#endif

mutex *mutex_create(const ful_alloc *a)
{
    mutex *m = mem_zalloc(a, 1, sizeof *m);
    if (m && !mutex_start(m)) {
        mem_free(a, m);
        m = NULL;
    }
    return m;
}

void mutex_destroy(const ful_alloc *a, mutex **m)
{
    if (!m || !*m)
        return;
    mutex_stop(*m);
    mem_free(a, *m);
    *m = NULL;
}

condition *condition_create(const ful_alloc *a)
{
    condition *c = mem_zalloc(a, 1, sizeof *c);
    if (c && !condition_start(c)) {
        mem_free(a, c);
        c = NULL;
    }
    return c;
}

void condition_destroy(const ful_alloc *a, condition **c)
{
    if (!c || !*c)
        return;
    condition_stop(*c);
    mem_free(a, *c);
    *c = NULL;
}

struct thread {
    handle handle;
    task task;
};

thread *thread_create(const ful_alloc *a, void (*fn)(void *ctx), void *ctx)
{
    thread *t = mem_zalloc(a, 1, sizeof *t);
    if (!t)
        return NULL;
    t->task = (task){fn, ctx};
    if (!handle_start(&t->handle, &t->task)) {
        mem_free(a, t);
        return NULL;
    }
    return t;
}

void thread_join(const ful_alloc *a, thread **t)
{
    if (!t || !*t)
        return;
    handle_join((*t)->handle);
    mem_free(a, *t);
    *t = NULL;
}

void parallel_for(unsigned threads, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx)
{
    job j = {.fn = fn, .ctx = ctx, .n = n};
    atomic_init(&j.next, 0);
    task each = {job_run, &j};
    handle others[MAX_THREADS];
    unsigned started = 0;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > n)
        threads = n;
    while (started + 1 < threads && handle_start(&others[started], &each))
        started++;
    job_run(&j);
    for (unsigned i = 0; i < started; i++)
        handle_join(others[i]);
}
