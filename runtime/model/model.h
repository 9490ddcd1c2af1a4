/* A loaded model: its config and where its weights live. */
#ifndef FULGUR_MODEL_MODEL_H
#define FULGUR_MODEL_MODEL_H

#include "format/tensors.h"
#include "fulgur/model.h"
#include "gpu/gpu.h"
#include "model/config.h"
#include "ops/op.h"

typedef struct model_layer {
    layer_kind kind;
    /* [hidden] f32 */
    gpu_buffer input_norm, post_norm;
    /* lightning: rows 3*H*D of qkv_proj, then H*D of output_gate; softmax: q, k, v. [rows][hidden]
     */
    gpu_tensor qkv;
    gpu_buffer lightning_norm; /* lightning: [H*D] f32 */
    gpu_buffer decay;          /* lightning: op_lightning_decay_fill */
    gpu_tensor out;            /* [hidden][H*D] */
    gpu_tensor router;         /* [experts][hidden], kept in f32 */
    gpu_tensor w13;            /* [experts][2*width][hidden], rows 2i of W1, 2i+1 of W3 */
    gpu_tensor w2;             /* [experts][hidden][width] */
} model_layer;

struct ful_model {
    ful_device *device;
    model_config config;
    ful_model_info info;
    ful_plan plan;
    gpu_tensor embedding; /* [vocab][hidden] */
    gpu_tensor head;      /* [vocab][hidden]; unused if config.tied_head */
    gpu_buffer final_norm;
    model_layer *layers; /* [block_count] */
    op_shape shape;      /* tests only: how sessions made from now on spread their kernels */
};

/* The tensor names and shapes a config asks for, against those in the files. */
ful_result model_check_tensors(const model_config *config, const tensor_file *files);
/* config_load + tensor_file_open + model_check_tensors + the numbers of ful_model_info. */
ful_result model_open_files(const ful_alloc *a, const char *path, model_config *config,
                            tensor_file **files, ful_model_info *info);

/* The numbers of ful_model_info for a model whose matrices are all of one type and that lies in no
 * file. */
void model_info_of(const model_config *config, ful_type type, ful_model_info *info);

/* True if the plan's precision means fp16 variants on this device. */
static inline bool model_half(const ful_model *m)
{
    return m->plan.precision == FUL_PRECISION_F16;
}
static inline const gpu_tensor *model_head(const ful_model *m)
{
    return m->config.tied_head ? &m->embedding : &m->head;
}

#endif
