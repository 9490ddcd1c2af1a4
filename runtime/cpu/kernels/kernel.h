/* What a C kernel gets and the list of them. The files of this folder are compiled once for every
 * set of instructions that is worth it (CPU_ISA names it); the processor decides which is used. */
#ifndef FULGUR_CPU_KERNELS_KERNEL_H
#define FULGUR_CPU_KERNELS_KERNEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* As in shaders/inc/step.glsl. */
typedef struct cpu_step {
    uint32_t n_rows, position, kv_tokens, reserved0;
    float temperature, top_p, min_p;
    uint32_t top_k;
    float uniform_draw;
    uint32_t reserved1[7];
} cpu_step;

typedef struct cpu_call cpu_call;
struct cpu_call {
    void *buffer[8]; /* by binding */
    const cpu_step *step;
    const uint32_t *constant; /* by id */
    const void *push;
    uint32_t groups[3];
};

/* Does what groups `line` .. line + count - 1 of layer z of the grid do, where line = y * groups[0]
 * + x. All lie in that layer. */
typedef void (*cpu_kernel_fn)(const cpu_call *c, uint64_t line, uint64_t count, uint32_t z);

typedef struct cpu_kernel cpu_kernel;
struct cpu_kernel {
    const char *module;
    cpu_kernel_fn run;
};

/* Ended by a NULL module. */
extern const cpu_kernel cpu_kernels_base[];
extern const cpu_kernel cpu_kernels_avx2[]; /* x86-64 only; with FMA and F16C */

#endif
