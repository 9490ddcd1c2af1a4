/* What converting a model to a GGUF file is made of: a plan of its tensors, then keys, then bytes.
 */
#ifndef FULGUR_MODEL_CONVERT_H
#define FULGUR_MODEL_CONVERT_H

#include "base/team.h"
#include "format/gguf_write.h"
#include "model/mix.h"

/* One tensor of the file to be; the experts of a layer are one. */
typedef struct convert_entry {
    tensor_role role;
    uint32_t layer;
    ful_type type, wanted;   /* wanted: as in ful_converted_tensor */
    const float *importance; /* [experts or 1][cols] or NULL */
} convert_entry;

typedef struct converter {
    const ful_alloc *alloc;
    const tensor_file *files;
    const model_config *config;
    ful_convert_params params;
    const mix *mix; /* NULL: params.type, or each as it is */
    gguf_writer *writer;
    team *team;
    convert_entry *entries;
    uint32_t count;
    uint64_t done;
    ful_progress_fn progress;
    void *progress_ctx;
} converter;

/* Matrices that one tensor of the file has. */
uint32_t convert_matrices(const converter *v, tensor_role role);

/* All keys of the file; the entries are known. */
ful_result convert_keys_put(const converter *v, const char *path);

#endif
