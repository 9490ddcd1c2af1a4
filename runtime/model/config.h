/* What a config.json says, in one form for all three key styles. */
#ifndef FULGUR_MODEL_CONFIG_H
#define FULGUR_MODEL_CONFIG_H

#include "format/json.h"

typedef enum layer_kind { LAYER_LIGHTNING = 0, LAYER_SOFTMAX = 1 } layer_kind;

typedef enum decay_rule { DECAY_ORIG = 1, DECAY_HF = 2 } decay_rule; /* = ful_decay */

enum { CONFIG_MAX_LAYERS = 1024 };

typedef struct model_config {
    char model_type[32];
    uint32_t vocab_size, hidden_size, intermediate_size, block_count;
    uint32_t head_count, kv_head_count, head_dim, rotary_dim;
    uint32_t expert_count, top_k;
    uint32_t context_length; /* max_position_embeddings */
    double rope_theta;
    double norm_eps;           /* the three ordinary norms */
    double lightning_norm_eps; /* 1e-6 */
    double alpha_lightning, beta_lightning, alpha_softmax, beta_softmax, alpha_mlp, beta_mlp;
    bool tied_head;
    decay_rule decay;                   /* the style's default; callers may override */
    int32_t bos_token_id, eos_token_id; /* -1: the config gives none */
    uint8_t layers[CONFIG_MAX_LAYERS];  /* layer_kind */
} model_config;

/* Reads `dir`/config.json (or the given file). Contradictions, unknown architectures and values
 * outside what the runtime can do are errors that name key, value and limit. */
ful_result config_load(const ful_alloc *a, const char *path, model_config *out);

/* The same from JSON that is no file; `name` stands for its path in error lines. */
ful_result config_read_json(const char *name, json_t *root, model_config *out);

/* Slopes of one lightning layer, [head_count] in double (model.md section 2.1, both rules). */
void config_slopes(const model_config *config, uint32_t layer, double *slopes);

#endif
