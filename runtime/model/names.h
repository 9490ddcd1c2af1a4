/* Names of a model's tensors: the hub's, which transformers keeps, and a GGUF's, where the experts
 * of a layer are one tensor. */
#ifndef FULGUR_MODEL_NAMES_H
#define FULGUR_MODEL_NAMES_H

#include "model/model.h"

enum { TENSOR_NAME_BYTES = 160 };

typedef enum tensor_role {
    ROLE_EMBEDDING,
    ROLE_FINAL_NORM,
    ROLE_HEAD,
    ROLE_INPUT_NORM, /* from here on: of a layer */
    ROLE_POST_NORM,
    ROLE_LIGHTNING_QKV,
    ROLE_LIGHTNING_GATE,
    ROLE_LIGHTNING_NORM,
    ROLE_LIGHTNING_OUT,
    ROLE_SOFTMAX_Q,
    ROLE_SOFTMAX_K,
    ROLE_SOFTMAX_V,
    ROLE_SOFTMAX_OUT,
    ROLE_ROUTER,
    ROLE_W1, /* from here on: of an expert */
    ROLE_W2,
    ROLE_W3,
    ROLE_COUNT
} tensor_role;

/* Finds the tensor and checks type and shape. Of a GGUF's experts *out is the view of one: a matrix
 * under the name of all. */
ful_result tensor_get(const tensor_file *files, const model_config *config, tensor_role role,
                      uint32_t layer, uint32_t expert, tensor_info *out);
/* The type that a layer's experts have on the device, where those of `first` (and `second`, whose
 * rows alternate with its rows; or the same role) are one tensor: theirs if they agree, else f32.
 */
ful_result tensor_experts_type(const tensor_file *files, const model_config *config,
                               tensor_role first, tensor_role second, uint32_t layer,
                               ful_type *out);
/* A role's name in a GGUF; experts have one for all. */
void tensor_gguf_name(tensor_role role, uint32_t layer, char *out, size_t bytes);

/* The roles that layers of a kind have but for their experts: LAYER_ROLES of them. */
enum { LAYER_ROLES = 7 };
const tensor_role *tensor_layer_roles(layer_kind kind);

/* Rows and columns of a role's matrix; vectors have cols = 0. */
void tensor_shape(const model_config *config, tensor_role role, uint64_t *rows, uint64_t *cols);

/* Calls fn for every tensor the model uses, experts one by one. */
typedef ful_result (*tensor_visit_fn)(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                                      const tensor_info *tensor);
ful_result tensor_visit(const tensor_file *files, const model_config *config, tensor_visit_fn fn,
                        void *ctx);

#endif
