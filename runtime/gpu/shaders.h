/* The SPIR-V modules of this build, generated from shaders/variants.txt. */
#ifndef FULGUR_GPU_SHADERS_H
#define FULGUR_GPU_SHADERS_H

#include <stddef.h>
#include <stdint.h>

typedef struct shader_module {
    const char *name;
    const uint32_t *code; /* NULL: the build's glslang lacks an extension that this variant needs */
    size_t code_bytes;
    const char *needs; /* words separated by single spaces; "" for the floor */
} shader_module;

extern const shader_module shader_modules[]; /* in the table's order, ended by a NULL name */
extern const uint32_t shader_module_count;

#endif
