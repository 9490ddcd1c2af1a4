/* Running recorded commands on a team of threads.
 *
 * One batch is open at a time. Threads take pieces of it until none is left; whoever ends the last
 * one writes the batch's time stamps, counts the pieces of the next batch and opens that. A thread
 * that comes late or is held up finds the open batch and never keeps the others waiting, but for
 * the piece it is at. */
#include <stdatomic.h>
#include <string.h>

#include "cpu/cpu_internal.h"

enum { PIECES_PER_THREAD = 8 }; /* taken together: threads end within an eighth of each other */

struct cpu_progress {
    uint64_t pieces, share;
    _Atomic uint64_t taken, done;
};

typedef struct run {
    cpu_commands *commands;
    unsigned threads;
    atomic_size_t open; /* index of the batch */
} run;

size_t cpu_progress_bytes(void)
{
    return sizeof(struct cpu_progress);
}

static void stamps_write(const cpu_commands *c, const cpu_batch *batch)
{
    uint64_t now = batch->stamps > 0 ? time_ns() : 0;
    for (uint32_t i = 0; i < batch->stamps; i++)
        *c->list[batch->first + batch->count + i].stamp = now;
}

/* Counts the pieces of the batch; everything before it is done. */
static uint64_t batch_count(cpu_commands *c, const cpu_batch *batch)
{
    uint64_t pieces = 0;
    for (uint32_t i = 0; i < batch->count; i++) {
        cpu_command *command = &c->list[batch->first + i];
        if (command->indirect) {
            memcpy(command->call.groups, command->indirect, sizeof command->call.groups);
            command->pieces = (uint64_t)command->call.groups[0] * command->call.groups[1] *
                              command->call.groups[2];
        }
        pieces += command->pieces;
    }
    return pieces;
}

/* Opens batch b or, where it holds no work, one of those behind it. */
static void batch_open(run *r, size_t b)
{
    cpu_commands *c = r->commands;
    for (; b < c->batch_count; b++) {
        struct cpu_progress *p = &c->progress[b];
        p->pieces = batch_count(c, &c->batches[b]);
        p->share = p->pieces / (r->threads * PIECES_PER_THREAD);
        if (p->share == 0)
            p->share = 1;
        atomic_store_explicit(&p->taken, 0, memory_order_relaxed);
        atomic_store_explicit(&p->done, 0, memory_order_relaxed);
        if (p->pieces > 0)
            break;
        stamps_write(c, &c->batches[b]);
    }
    atomic_store_explicit(&r->open, b, memory_order_release);
}

static void pieces_run(const cpu_commands *c, const cpu_batch *batch, uint64_t first,
                       uint64_t count)
{
    for (uint32_t i = 0; i < batch->count && count > 0; i++) {
        const cpu_command *command = &c->list[batch->first + i];
        if (first >= command->pieces) {
            first -= command->pieces;
            continue;
        }
        uint64_t some = command->pieces - first < count ? command->pieces - first : count;
        cpu_command_run(command, first, some);
        first = 0;
        count -= some;
    }
}

static void run_thread(void *ctx)
{
    run *r = ctx;
    cpu_commands *c = r->commands;
    for (;;) {
        size_t b = atomic_load_explicit(&r->open, memory_order_acquire);
        if (b >= c->batch_count)
            return;
        struct cpu_progress *p = &c->progress[b];
        uint64_t first = atomic_fetch_add_explicit(&p->taken, p->share, memory_order_relaxed);
        if (first >= p->pieces) {
            for (uint32_t spins = 0; atomic_load_explicit(&r->open, memory_order_acquire) == b;)
                spin_wait(&spins);
            continue;
        }
        uint64_t count = p->pieces - first < p->share ? p->pieces - first : p->share;
        pieces_run(c, &c->batches[b], first, count);
        if (atomic_fetch_add_explicit(&p->done, count, memory_order_acq_rel) + count == p->pieces) {
            stamps_write(c, &c->batches[b]);
            batch_open(r, b + 1);
        }
    }
}

void cpu_run(cpu_commands *c)
{
    run r = {.commands = c, .threads = team_size(c->device->team)};
    atomic_init(&r.open, 0);
    batch_open(&r, 0);
    if (atomic_load(&r.open) < c->batch_count)
        team_run(c->device->team, run_thread, &r);
}

void cpu_dispatch(VkDevice device, const cpu_kernel *kernel, const cpu_call *call)
{
    cpu_command command = {.kind = CPU_DISPATCH,
                           .call = *call,
                           .run = kernel->run,
                           .pieces = (uint64_t)call->groups[0] * call->groups[1] * call->groups[2]};
    cpu_batch batch = {.count = 1};
    struct cpu_progress progress = {.pieces = 0};
    cpu_commands c = {.device = CPU_OBJECT(cpu_device, device),
                      .list = &command,
                      .count = 1,
                      .batches = &batch,
                      .batch_count = 1,
                      .progress = &progress};
    cpu_run(&c);
}
