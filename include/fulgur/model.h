/* Models: what a checkpoint holds, what it needs on a device, and loading it. */
#ifndef FULGUR_MODEL_H
#define FULGUR_MODEL_H

#include "fulgur/device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ful_model ful_model;

/* How the decay slopes of lightning layers depend on the layer (they differ by up to 1e-5, and for
 * head counts that are no power of two in form). */
typedef enum ful_decay {
    FUL_DECAY_DEFAULT = 0, /* ORIG for minimax_text_01 and minimax_m1, HF for minimax */
    FUL_DECAY_ORIG = 1,    /* as the code published with the checkpoints */
    FUL_DECAY_HF = 2       /* as transformers */
} ful_decay;

/* Arithmetic of matrix products. Sums, states, softmax, norms and the residual stream are always
 * 32-bit. */
typedef enum ful_precision {
    FUL_PRECISION_DEFAULT = 0, /* F16 where the device has fp16 and is no CPU, else F32 */
    FUL_PRECISION_F32 = 1,     /* f32 products, f32 keys and values */
    FUL_PRECISION_F16 = 2      /* f16 products with guarded range, f16 keys and values */
} ful_precision;

/* What the files say; no device needed. */
typedef struct ful_model_info {
    char architecture[32]; /* model_type in config.json */
    uint32_t block_count, lightning_block_count, softmax_block_count;
    uint32_t hidden_size, intermediate_size, vocab_size;
    uint32_t head_count, kv_head_count, head_dim, rotary_dim;
    uint32_t expert_count, top_k;
    uint32_t context_length; /* tokens */
    double rope_theta, norm_eps, lightning_norm_eps;
    double alpha_lightning, beta_lightning, alpha_softmax, beta_softmax, alpha_mlp, beta_mlp;
    ful_decay decay;
    bool tied_head;
    int32_t bos_token_id;  /* to put in front of a text; -1: none given (of a GGUF: or its key
                              add_bos_token is not true) */
    int32_t eos_token_id;  /* -1: none given */
    uint32_t tensor_count; /* that the model uses */
    uint64_t file_bytes, parameter_count;
    uint64_t active_parameter_count; /* read for one decoded token; the embedding counts one row */
    uint64_t weight_bytes;           /* on the device */
    uint64_t active_weight_bytes;    /* read from memory for one decoded token */
    uint64_t state_bytes;            /* lightning states of one session */
    uint64_t kv_bytes_per_token;     /* keys and values of one session, f32; half of it in f16 */
    ful_type weight_type;            /* of most of the weights */
} ful_model_info;

/* path: a folder with config.json and safetensors, or with a GGUF; one .safetensors file beside a
 * config.json; a .gguf file (any part of a split one). Checks names, shapes and types of all
 * tensors against the config and reads no weights. Errors: FUL_ERR_IO, FUL_ERR_FORMAT,
 * FUL_ERR_UNSUPPORTED, FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_model_inspect(ful_instance *instance, const char *path, ful_model_info *out);

/* Reads every weight on the host and fails with FUL_ERR_FORMAT at the first NaN or infinity
 * (tensor, index and file in the error line). Cancellable. */
FUL_API ful_result ful_model_check(ful_instance *instance, const char *path,
                                   ful_progress_fn progress, void *progress_ctx);

/* One tensor as ful_model_tensors lists them. Pointers are valid during the call only. */
typedef struct ful_tensor_info {
    const char *name, *file, *type;
    uint32_t n_dims;
    uint64_t dims[8]; /* slowest first */
    uint64_t bytes;
} ful_tensor_info;
typedef bool (*ful_tensor_fn)(void *ctx,
                              const ful_tensor_info *tensor); /* false stops the listing */
FUL_API ful_result ful_model_tensors(ful_instance *instance, const char *path, ful_tensor_fn fn,
                                     void *ctx);

/* One tensor of a file that is written. Pointers are valid during the call only. */
typedef struct ful_converted_tensor {
    const char *name; /* the experts of a layer are one */
    ful_type type;
    ful_type wanted; /* what was asked for: another than `type` where rows are no multiples of its
                        block, and one of smaller blocks and no fewer bits took its place */
    uint64_t elements, bytes;
    bool weighted; /* by importance */
} ful_converted_tensor;
/* Called when a tensor is written, on the thread of the call. */
typedef void (*ful_converted_fn)(void *ctx, const ful_converted_tensor *tensor);

typedef struct ful_convert_params {
    size_t struct_size;
    ful_type type; /* of all matrices. Norms and routers are F32 in any case */
    /* Instead of a type: a mix of types by name, in any case ("q4_k_m"; ful_convert_mix lists
     * them), where head, embedding and what errors cost most in have more bits. Neither: every
     * matrix as it is. */
    const char *mix;
    /* NULL, or a file of what the columns of matrices are multiplied with, as `fulgur imatrix`
     * writes: errors are weighted by it. Matrices it does not have are coded without. */
    const char *importance_path;
    uint32_t threads; /* that code; 0 = one for each processor. The file does not depend on it */
    ful_converted_fn tensor; /* may be NULL */
    void *tensor_ctx;
} ful_convert_params;
#define ful_convert_params(...)                                                                    \
    (&(ful_convert_params){.struct_size = sizeof(ful_convert_params), __VA_ARGS__})

/* Name of the mix `index`; NULL beyond the last. Static storage. */
FUL_API const char *ful_convert_mix(uint32_t index);

/* Writes the model at `path`, of any types, as one GGUF file, with its tokenizer if there is one
 * (tokenizer.json in the folder, or a GGUF's). The file lies beside out_path under another name
 * (out_path.PROCESS-N.tmp, which is all that a killed process leaves, and in nobody's way) until it
 * is whole; FUL_ERR_IO if out_path exists. Keys of the architecture minimax-01, and "fulgur." ones
 * for what those can't say; residual_scale is left out where the factors of residuals differ, so
 * that no other program runs such a model wrongly.
 *
 * Host memory, whatever the size of the tensors: 4 MiB or one row of the result if that is more,
 * two rows of floats for each thread, the tokenizer and some hundred bytes for each tensor of both
 * files, and the file of importance. The model's files are mapped.
 *
 * FUL_ERR_FORMAT names a value that is not finite or that the type can't hold with its tensor and
 * index; tensors that keep their type are copied as they are. Cancellable. */
FUL_API ful_result ful_model_convert(ful_instance *instance, const char *path, const char *out_path,
                                     const ful_convert_params *params, ful_progress_fn progress,
                                     void *progress_ctx);

typedef struct ful_plan_params {
    size_t struct_size;
    size_t max_tokens;     /* context of one session; 0 = min(context_length, 4096) */
    uint32_t chunk_tokens; /* largest prefill chunk, at most 8192; 0 = 2048 on discrete GPUs, 512 on
                              others, less where a binding or the memory is small or a dispatch
                              would take longer than ful_device_params.max_dispatch_ms */
    ful_precision precision;
    ful_decay decay;
    uint32_t session_count; /* sessions to plan memory for; 0 = 1 */
} ful_plan_params;
#define ful_plan_params(...)                                                                       \
    (&(ful_plan_params){.struct_size = sizeof(ful_plan_params), __VA_ARGS__})

/* Bytes on the device, known before anything is loaded. */
typedef struct ful_plan {
    ful_precision precision;
    ful_decay decay;
    size_t max_tokens;
    uint32_t chunk_tokens;
    uint32_t session_count;
    uint64_t weight_bytes;
    uint64_t state_bytes;      /* per session: lightning states */
    uint64_t kv_bytes;         /* per session: keys and values for max_tokens */
    uint64_t activation_bytes; /* per session: the arena, logits and step buffers */
    uint64_t total_bytes;      /* weights + session_count * (states + kv + activations) */
    uint64_t available_bytes;  /* what the device has now */
} ful_plan;

/* FUL_ERR_DEVICE_MEMORY (with *out filled in) if total_bytes exceeds available_bytes. */
FUL_API ful_result ful_model_plan(ful_instance *instance, const char *path, ful_device *device,
                                  const ful_plan_params *params, ful_plan *out);

/* Loads the weights onto the device and compiles the pipelines. plan NULL: the default plan. The
 * files are not needed afterwards. Takes as long as reading the files; progress (may be NULL) can
 * cancel. The device must outlive the model. */
FUL_API ful_result ful_model_load(ful_model **out, ful_device *device, const char *path,
                                  const ful_plan *plan, ful_progress_fn progress,
                                  void *progress_ctx);

/* ---- synthetic models: random weights of any dimensions, made on the device, for measuring ----
 */

/* A preset, or every dimension, or a preset with some dimensions changed: zero = the preset's. */
typedef struct ful_synthetic_params {
    size_t struct_size;
    const char *preset; /* "tiny", "small", "mid", "full8x8", "full8", "full16", "full80"; NULL:
                           all dimensions are given below */
    uint32_t block_count, hidden_size, intermediate_size, vocab_size;
    uint32_t head_count, kv_head_count, head_dim;
    uint32_t rotary_dim; /* 0 without a preset: half of head_dim */
    uint32_t expert_count;
    uint32_t top_k;          /* 0 = 2 */
    uint32_t softmax_every;  /* every so many layers the last is a softmax layer; 0 = 8 */
    uint32_t context_length; /* 0 = 1,048,576 tokens */
    ful_type weight_type;    /* of matrices; routers and norms are f32; 0 = f16 */
    uint64_t seed;           /* the same seed and dimensions give the same weights */
} ful_synthetic_params;
#define ful_synthetic_params(...)                                                                  \
    (&(ful_synthetic_params){.struct_size = sizeof(ful_synthetic_params), __VA_ARGS__})

/* Name of the preset `index`, smallest first; NULL beyond the last. Static storage. */
FUL_API const char *ful_synthetic_preset(uint32_t index);

/* As ful_model_inspect; no device is needed. FUL_ERR_ARGUMENT names the dimension that can't be. */
FUL_API ful_result ful_synthetic_inspect(const ful_synthetic_params *params, ful_model_info *out);

/* As ful_model_plan. */
FUL_API ful_result ful_synthetic_plan(ful_device *device, const ful_synthetic_params *params,
                                      const ful_plan_params *plan_params, ful_plan *out);

/* As ful_model_load, with weights computed on the device: neither files nor host memory are
 * needed. */
FUL_API ful_result ful_model_synthesize(ful_model **out, ful_device *device,
                                        const ful_synthetic_params *params, const ful_plan *plan,
                                        ful_progress_fn progress, void *progress_ctx);

/* All sessions of the model must be gone. */
FUL_API void ful_model_destroy(ful_model **model);

FUL_API const ful_model_info *ful_model_get_info(const ful_model *model);
FUL_API const ful_plan *ful_model_get_plan(const ful_model *model);

#ifdef __cplusplus
}
#endif

#endif
