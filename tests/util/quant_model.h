/* A model's GGUF again with other types: blocks, or the numbers that these blocks stand for. */
#ifndef TESTS_UTIL_QUANT_MODEL_H
#define TESTS_UTIL_QUANT_MODEL_H

#include <stdbool.h>

#include "format/tensors.h"

/* The type of a tensor of the copy; its rows have dims[n_dims - 1] elements. */
typedef ful_type (*quant_model_type_fn)(void *ctx, uint32_t index, const tensor_info *t);

typedef struct quant_model {
    quant_model_type_fn type;
    void *ctx;
    const char *loud; /* a part of tensors' names whose values are multiplied by factor, or NULL */
    float factor;
} quant_model;

/* Keys are copied. `decoded`: every tensor is f32, and holds what its blocks decode to. */
void quant_model_write(const char *from, const char *to, const quant_model *model, bool decoded);

#endif
