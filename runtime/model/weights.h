/* Weights from files onto the device. */
#ifndef FULGUR_MODEL_WEIGHTS_H
#define FULGUR_MODEL_WEIGHTS_H

#include "model/model.h"

/* Fills in model->layers and the tensors from the files; model->device, config, info and plan are
 * set. On failure everything made so far is left for weights_destroy. */
ful_result weights_load(ful_model *model, const tensor_file *files, ful_progress_fn progress,
                        void *progress_ctx);
void weights_destroy(ful_model *model);
/* The table of decay factors of one lightning layer. */
ful_result weights_decay(ful_model *model, uint32_t layer, gpu_buffer *out);

/* ---- models that lie in no file ---- */

/* The config and numbers of a synthetic model. FUL_ERR_ARGUMENT names the dimension that can't be.
 */
ful_result synthetic_config(const ful_synthetic_params *params, model_config *config,
                            ful_model_info *info);
/* As weights_load; the weights are computed on the device. */
ful_result synthetic_weights(ful_model *model, uint64_t seed, ful_progress_fn progress,
                             void *progress_ctx);

#endif
