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
#if defined(__linux__)
#include <sched.h>
#endif

enum { MAX_THREADS = 64 };

typedef struct job {
    void (*fn)(void *ctx, uint32_t i);
    void *ctx;
    uint32_t n;
    atomic_uint_fast64_t next; /* 64 bits: every thread counts once past n */
} job;

static void job_run(job *j)
{
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

typedef HANDLE thread;

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

static unsigned __stdcall thread_main(void *arg)
{
    job_run(arg);
    return 0;
}

static bool thread_start(thread *t, job *j)
{
    *t = (HANDLE)_beginthreadex(NULL, 0, thread_main, j, 0, NULL);
    return *t != NULL;
}

static void thread_join(thread t)
{
    WaitForSingleObject(t, INFINITE);
    CloseHandle(t);
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

typedef pthread_t thread;

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

static void *thread_main(void *arg)
{
    job_run(arg);
    return NULL;
}

static bool thread_start(thread *t, job *j)
{
    return pthread_create(t, NULL, thread_main, j) == 0;
}

static void thread_join(thread t)
{
    pthread_join(t, NULL);
}

#else

struct mutex {
    mtx_t lock;
};

typedef thrd_t thread;

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

static int thread_main(void *arg)
{
    job_run(arg);
    return 0;
}

static bool thread_start(thread *t, job *j)
{
    return thrd_create(t, thread_main, j) == thrd_success;
}

static void thread_join(thread t)
{
    thrd_join(t, NULL);
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

void parallel_for(unsigned threads, uint32_t n, void (*fn)(void *ctx, uint32_t i), void *ctx)
{
    job j = {.fn = fn, .ctx = ctx, .n = n};
    atomic_init(&j.next, 0);
    thread others[MAX_THREADS];
    unsigned started = 0;
    if (threads > MAX_THREADS)
        threads = MAX_THREADS;
    if (threads > n)
        threads = n;
    while (started + 1 < threads && thread_start(&others[started], &j))
        started++;
    job_run(&j);
    for (unsigned i = 0; i < started; i++)
        thread_join(others[i]);
}
