/* The whole model in double precision: what every device result is compared with. Reads checkpoints
 * through the library's own file code, shares nothing else with it. */
#ifndef TESTS_REF_REF_MODEL_H
#define TESTS_REF_REF_MODEL_H

#include "format/tensors.h"
#include "model/config.h"
#include "ref.h"

typedef struct ref_layer {
    const float *norm1, *norm2;           /* [d] */
    const float *qkv, *gate, *norm, *out; /* lightning: [3HD][d], [HD][d], [HD], [d][HD] */
    const float *q, *k, *v;               /* softmax: [HD][d], [KD][d] twice; `out` [d][HD] */
    const float *router;                  /* [E][d] */
    ref_expert *experts;                  /* [E] */
    double *slopes;                       /* [H]; lightning layers only, else NULL */
} ref_layer;

typedef struct ref_model {
    model_config config;
    const float *embed, *final_norm, *head; /* [V][d], [d], [V][d] (= embed if tied) */
    ref_layer *layers;                      /* [block_count] */
    unsigned threads;                       /* used by ref_forward; thread_count() after loading */
    float **owned;                          /* every weight array */
    size_t owned_count;
} ref_model;

/* `dir`: a checkpoint folder (config.json and safetensors). Slopes follow `rule` in double; 0: the
 * config's own. Errors as config_load and tensor_file_open, and FUL_ERR_FORMAT for a missing tensor
 * or a wrong shape. */
ful_result ref_model_load(const char *dir, decay_rule rule, ref_model **out);
void ref_model_destroy(ref_model **model); /* NULL allowed */
/* Replaces one layer's slopes, [head_count]. */
void ref_model_set_slopes(ref_model *model, uint32_t layer, const double *slopes);

/* What a sequence remembers. Layers hold either a state or keys and values. */
typedef struct ref_state {
    uint32_t position; /* tokens seen */
    uint32_t block_count, capacity;
    double **lightning; /* [layer]: [H][Dk][Dv], NULL for softmax layers */
    double **k, **v;    /* [layer]: [capacity][Hk][D], keys after RoPE; NULL for lightning layers */
} ref_state;

ref_state *ref_state_create(const ref_model *model);
ref_state *ref_state_copy(const ref_model *model, const ref_state *state);
void ref_state_destroy(ref_state **state);

/* What one call of ref_forward computed, T rows each. */
typedef struct ref_trace {
    uint32_t T, block_count, vocab_size, expert_count, top_k;
    double *logits;       /* [T][V] */
    double *hidden_final; /* [T][d], after the final norm */
    double **hidden_in;   /* [layer]: [T][d], the input of the layer */
    double **norm1,
        **mixer; /* [layer]: [T][d]; mixer = output of the attention, before alpha, beta */
    double **norm2, **moe;   /* [layer]: [T][d] */
    double **router_logits;  /* [layer]: [T][E] */
    uint32_t **experts;      /* [layer]: [T][top_k], falling weight */
    double **expert_weights; /* [layer]: [T][top_k] */
    double **router_gap;     /* [layer]: [T], see ref_route */
} ref_trace;

/* Runs T >= 1 tokens behind what `state` holds and advances it. Any split of a prompt gives the
 * same results to rounding. Returns everything computed; the caller destroys it. */
ref_trace *ref_forward(const ref_model *model, ref_state *state, const int32_t *ids, uint32_t T);
void ref_trace_destroy(ref_trace **trace);

/* Smallest router gap of row t over all layers: below a device's rounding another choice of expert
 * is legitimate there (and in every later token). */
double ref_trace_min_gap(const ref_trace *trace, uint32_t row);

/* ---- tensors of golden files ---- */

/* A tensor of a golden file as doubles (F32) or int32 (I32); *count gets the element count. NULL if
 * absent or of another type. Free with free(). */
double *ref_golden_f32(const tensor_file *file, const char *name, size_t *count);
int32_t *ref_golden_i32(const tensor_file *file, const char *name, size_t *count);

#endif
