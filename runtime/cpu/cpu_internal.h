/* What the files of this room share. Handles of Vulkan are pointers to these. */
#ifndef FULGUR_CPU_CPU_INTERNAL_H
#define FULGUR_CPU_CPU_INTERNAL_H

#include "base/team.h"
#include "cpu/cpu.h"
#include "cpu/kernels/kernel.h"

typedef struct cpu_device {
    ful_alloc alloc;
    team *team;
    const cpu_kernel *more; /* tests' own kernels, or NULL */
} cpu_device;

typedef struct cpu_memory {
    void *allocated;
    uint8_t *data; /* aligned */
} cpu_memory;

typedef struct cpu_buffer {
    uint64_t bytes;
    uint8_t *data; /* NULL until bound */
} cpu_buffer;

typedef struct cpu_pipeline {
    cpu_kernel_fn run;
    uint32_t constants[CPU_MOST_CONSTANTS];
} cpu_pipeline;

/* Where the bindings of a descriptor set begin. */
typedef struct cpu_set {
    uint8_t *binding[CPU_UNIFORM_BINDING + 1];
} cpu_set;

typedef struct cpu_fence {
    bool signalled;
} cpu_fence;

typedef struct cpu_queries {
    uint64_t ns[1]; /* as many as were asked for */
} cpu_queries;

#define CPU_OBJECT(type, handle) ((type *)(uintptr_t)(handle))
#define CPU_HANDLE(type, object) ((type)(uintptr_t)(object))

/* ---- commands.c: recording ---- */
typedef enum cpu_command_kind {
    CPU_DISPATCH,
    CPU_COPY,
    CPU_FILL,
    CPU_STAMP /* once everything before it is done */
} cpu_command_kind;

typedef struct cpu_command {
    cpu_command_kind kind;
    cpu_call call;            /* dispatches; groups are filled in before they run if ... */
    const uint32_t *indirect; /* ... this is not NULL */
    cpu_kernel_fn run;
    uint64_t push[CPU_PUSH_BYTES / 8];
    const uint8_t *from; /* copies; ... */
    uint8_t *to;         /* ... and fills */
    uint64_t bytes;
    uint32_t word;
    uint64_t *stamp;
    uint64_t pieces; /* that threads take: groups, or stretches of bytes */
} cpu_command;

/* Commands that may run beside each other, then stamps. */
typedef struct cpu_batch {
    uint32_t first, count, stamps;
} cpu_batch;

typedef struct cpu_commands {
    cpu_device *device;
    struct cpu_commands *next; /* in the pool */
    VkResult error;
    cpu_command *list;
    size_t count, capacity;
    cpu_batch *batches;
    size_t batch_count, batch_capacity;
    bool barrier; /* before the next command */
    cpu_pipeline *pipeline;
    const cpu_set *set;
    uint64_t push[CPU_PUSH_BYTES / 8];
    struct cpu_progress *progress; /* of each batch */
} cpu_commands;

typedef struct cpu_pool {
    cpu_commands *first;
} cpu_pool;

/* Pieces first .. first + count - 1 of a command. */
void cpu_command_run(const cpu_command *c, uint64_t first, uint64_t count);
void cpu_recording_functions(struct VolkDeviceTable *fn);

/* ---- run.c ---- */
size_t cpu_progress_bytes(void); /* of one batch */
void cpu_run(cpu_commands *c);

#endif
