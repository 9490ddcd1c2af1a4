/* Weights from files onto the device. */
#ifndef FULGUR_MODEL_WEIGHTS_H
#define FULGUR_MODEL_WEIGHTS_H

#include "model/model.h"

/* Fills in model->layers and the tensors from the files; model->device, config, info and plan are
 * set. On failure everything made so far is left for weights_destroy. */
ful_result weights_load(ful_model *model, const tensor_file *files, ful_progress_fn progress,
                        void *progress_ctx);
void weights_destroy(ful_model *model);

#endif
