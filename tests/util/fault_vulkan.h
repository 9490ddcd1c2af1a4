/* Vulkan calls that fail when a test wants them to, and books of the objects that live: for walks
 * over every call of an operation. Stands between the library and the driver, from the first call
 * for an instance on; on the built-in device, from where fault_vulkan_adopt was called. */
#ifndef TESTS_UTIL_FAULT_VULKAN_H
#define TESTS_UTIL_FAULT_VULKAN_H

#include <stdatomic.h>

#include "gpu/gpu_internal.h"

typedef struct fault_vulkan {
    /* ---- what fails ---- */
    VkResult result;  /* an error; calls that can't return it are not counted */
    size_t fail_at;   /* 1: the first call that can; 0: none does */
    bool lasting;     /* every call after it, too; a lost device stays lost in any case */
    const char *only; /* a function: its calls alone are counted; NULL: those of all */
    VkResult (*refuse_device)(void *ctx, const VkDeviceCreateInfo *info); /* NULL: never */
    VkResult (*refuse_shader)(void *ctx, const char *module);             /* at its pipeline */
    void *ctx;

    /* ---- what came of it ---- */
    _Atomic size_t calls; /* that could have failed so */
    const char *failed;   /* the function whose call did first; NULL: none */
    _Atomic long live;    /* objects created and not destroyed */
    _Atomic long devices; /* ... devices among them */
} fault_vulkan;

/* `f` must live until fault_vulkan_end. After the process' first instance. */
void fault_vulkan_begin(fault_vulkan *f);
void fault_vulkan_end(void);
/* The functions of a device that came without vkCreateDevice. */
void fault_vulkan_adopt(ful_device *device);

#endif
