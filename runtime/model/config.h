/* What a config.json or the keys of a GGUF say, in one form. */
#ifndef FULGUR_MODEL_CONFIG_H
#define FULGUR_MODEL_CONFIG_H

#include "format/json.h"
#include "format/tensors.h"

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

/* What error lines call a key of config.json, where its value comes from elsewhere. */
typedef struct config_key {
    const char *key, *shown; /* key NULL ends a list */
} config_key;

/* The same from JSON that is no file; `name` stands for its path in error lines. keys: NULL for
 * config.json's own. */
ful_result config_read_json(const char *name, json_t *root, const config_key *keys,
                            model_config *out);

/* The same from the keys of a GGUF; its tensors tell the vocabulary and whether the head is tied.
 */
ful_result config_read_gguf(const tensor_file *files, model_config *out);

/* Slopes of one lightning layer, [head_count] in double (model.md section 2.1, both rules). */
void config_slopes(const model_config *config, uint32_t layer, double *slopes);

#endif
