/* The library's own device: the processor, without any driver. This room lies below gpu/ and above
 * base/. It is a Vulkan driver in the small: the functions of VkDevice that gpu/ calls, over host
 * memory and C kernels instead of SPIR-V, so that everything above runs on it unchanged, and so
 * that it needs no Vulkan loader.
 *
 *  - A shader stage's entry point is the name of a module of shaders/variants.txt. Only those with
 * a C kernel (kernels/) can be made into pipelines: all that the ops choose on a device that
 *    device_is_built_in, where they keep to the narrow shape and to f32.
 *  - A kernel has the shader's bindings, push constants and specialisation constants, and does what
 *    its groups do. Sums may be added in another order; that order depends on neither the number of
 *    threads nor on which of them comes first, so the same input gives the same bits.
 *  - vkQueueSubmit runs the work before it returns, on the calling thread and the device's own.
 * Work between two barriers is shared out in pieces; no thread waits for one that has not begun.
 *  - Where self-tests leave an op without any kernel on another device, gpu/processor.c runs the
 *    kernel of the same module from here on that device's buffers, if host and device share their
 *    memory. */
#ifndef FULGUR_CPU_CPU_H
#define FULGUR_CPU_CPU_H

#ifndef VK_NO_PROTOTYPES
#define VK_NO_PROTOTYPES
#endif
#include <volk.h>

#include "base/alloc.h"

/* Limits of what the kernels were written for. */
enum {
    CPU_STORAGE_BUFFERS = 8,
    CPU_UNIFORM_BINDING = 8,
    CPU_PUSH_BYTES = 128,
    CPU_MOST_CONSTANTS = 16,
    CPU_ALIGN_BYTES = 64
};

/* True if the device has a kernel for the module. */
bool cpu_has_kernel(VkDevice device, const char *module);
/* For tests: more of them, ended by a NULL module (kernels/kernel.h). */
struct cpu_kernel;
void cpu_kernels_add(VkDevice device, const struct cpu_kernel *more);
/* What the kernels in use were compiled for: "AVX2", "NEON", ... Static storage. */
const char *cpu_instructions(void);

/* NULL if there is no memory. Destroyed by its vkDestroyDevice. */
VkDevice cpu_device_create(const ful_alloc *a, unsigned threads);
void cpu_device_destroy(VkDevice *device); /* the same; NULL allowed */
/* One kernel by itself, on the device's threads; returns when it is done. One caller at a time. */
struct cpu_call;
const struct cpu_kernel *cpu_kernel_named(const char *module); /* NULL: there is none */
void cpu_dispatch(VkDevice device, const struct cpu_kernel *kernel, const struct cpu_call *call);
/* Sets the functions of a device that gpu/ calls; the others stay NULL. */
void cpu_device_functions(struct VolkDeviceTable *fn);

#endif
