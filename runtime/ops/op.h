/* The model's operations on the device: each picks a shader variant, binds ranges and sizes the
 * dispatch. No mathematics here; formulas stand at the top of each shader.
 *
 * Conventions
 *  - Activations are f32 [rows][dim], row-major, in device memory, unless an op_activation says
 * half.
 *  - `rows` is the most rows a recorded step can have (the bucket); the kernels read how many there
 *    are this time from the step parameters, so a recording serves every smaller count. With
 * `fixed` exactly `rows` are processed whatever the step says.
 *  - Tensors and activations larger than a binding are split by the op into several dispatches.
 *  - Ranges begin at multiples of 256 bytes. Inputs and outputs must not overlap unless said.
 *  - Ops only record (gpu_commands); nothing runs before the commands are submitted.
 *  - Every op has a variant for the floor (Vulkan 1.1, 4 storage buffers, 128 invocations, 16 KiB
 * of shared memory, no subgroups); ctx->half asks for the fp16 variants where the device has them.
 */
#ifndef FULGUR_OPS_OP_H
#define FULGUR_OPS_OP_H

#include "gpu/gpu.h"

/* Read by kernels as a uniform block at binding 8; written by the host before each submission. All
 * members are 32 bits wide, so std140 and C agree. */
typedef struct step_params {
    uint32_t n_rows;    /* rows of this step that are real */
    uint32_t position;  /* position of row 0 in its sequence; row r has position + r */
    uint32_t kv_tokens; /* keys visible to the last row: position + n_rows */
    uint32_t reserved0;
    float temperature; /* sampling; 0 = greedy */
    float top_p;       /* 1 = off */
    float min_p;       /* 0 = off */
    uint32_t top_k;    /* 0 = off */
    float uniform;     /* draw in [0, 1) */
    uint32_t reserved1[7];
} step_params;
enum { STEP_BINDING = 8 };

/* How much faster products on cooperative matrices are counted than plain ones, where the time of a
 * dispatch is guessed. */
enum { OP_MATRIX_SPEED = 10 };

/* Whether kernels spread over many invocations that share memory (GPUs) or over few that do not
 * (CPU devices, where barriers are dear). */
typedef enum op_shape {
    OP_SHAPE_AUTO = 0, /* by device_is_cpu */
    OP_SHAPE_NARROW = 1,
    OP_SHAPE_WIDE = 2 /* tests force either, so that both run on any device */
} op_shape;

typedef struct op_context {
    ful_device *device;
    gpu_commands *commands;
    gpu_range step; /* sizeof(step_params) bytes of uniform buffer */
    bool half;      /* use fp16 variants where they exist and the device can */
    int32_t layer;  /* for labels; -1 = none */
    op_shape shape;
    uint32_t tile; /* tests: a tile_code (tuning.h) to take instead of the tuned one; 0 = none */
} op_context;

static inline bool op_wide(const op_context *ctx)
{
    if (device_is_built_in(ctx->device))
        return false; /* whoever asks: there are no others */
    return ctx->shape == OP_SHAPE_AUTO ? !device_is_cpu(ctx->device) : ctx->shape == OP_SHAPE_WIDE;
}

/* True if the device can run the fp16 variants (fp16 arithmetic, 16-bit storage, 6 storage
 * buffers). */
bool op_half_usable(const ful_device *device);

/* A matmul input. f32: data is [rows][stride] floats. half: data is [rows][stride] halves, and row
 * r stands for data * scale[r], scale a power of two chosen so that the row's largest magnitude
 * lies in [2^13, 2^14): no input can leave fp16's range, small ones keep their precision. */
typedef struct op_activation {
    gpu_range data;
    gpu_range scale; /* half only: [rows] f32 */
    uint32_t dim;    /* columns used */
    uint32_t stride; /* elements from row to row */
    bool half;
} op_activation;

/* Halves with a power-of-two scale per row and block of columns:
 * element (r, c) = data[r * stride + c] * scale[r * (stride / block) + c / block].
 * The scale of an all-zero block is 1, of a block with inf or NaN it is NaN. Data is empty
 * (buffer == NULL) where blocks are not used. */
typedef struct op_blocks {
    gpu_range data;
    gpu_range scale;
    uint32_t stride; /* elements from row to row, a multiple of block and of 8 */
    uint32_t block;  /* columns that share a scale */
} op_blocks;

/* ---- embed.c: out[r] = table[token[r]]. Tokens outside the table write zeros. ---- */
typedef struct op_embed_args {
    gpu_range tokens;        /* [rows] u32 */
    const gpu_tensor *table; /* [vocab][dim] */
    gpu_range out;           /* [rows][dim] f32 */
    uint32_t rows;
} op_embed_args;
ful_result op_embed(const op_context *ctx, const op_embed_args *args);

/* ---- norm.c ---- */
/* x = alpha*a + beta*b;  out = x / sqrt(mean(x^2) + eps) * weight */
typedef struct op_norm_args {
    gpu_range a; /* [rows][dim] f32 */
    gpu_range b; /* [rows][dim] f32; empty: x = alpha*a */
    float alpha, beta;
    gpu_range weight; /* [dim] f32 */
    float eps;
    uint32_t dim, rows;
    bool last_row; /* only the last real row (n_rows - 1) is processed; it becomes row 0 of the
                      outputs */
    bool fixed;
    gpu_range out;        /* [rows][dim] f32; empty: not wanted (then half must be given) */
    op_activation packed; /* packed.half: also written as halves with scales */
} op_norm_args;
ful_result op_norm(const op_context *ctx, const op_norm_args *args);

/* out = gate * (o / sqrt(mean(o^2) + eps) * weight), gate already through its sigmoid */
typedef struct op_gated_norm_args {
    gpu_range o;    /* [rows][dim] f32 */
    gpu_range gate; /* [rows][gate_stride] f32, columns gate_offset.. */
    uint32_t gate_stride, gate_offset;
    gpu_range weight; /* [dim] f32 */
    float eps;
    uint32_t dim, rows;
    bool fixed;
    op_activation out;               /* f32 or half */
    op_blocks o_blocks, gate_blocks; /* if not empty: both are read instead of o and gate (from
                                        column gate_offset on), and out is half */
} op_gated_norm_args;
ful_result op_gated_norm(const op_context *ctx, const op_gated_norm_args *args);
/* Can it read rows of `dim` columns in blocks here? */
bool op_gated_norm_blocks_usable(const op_context *ctx, uint32_t dim);

/* f32 rows to halves with scales. */
ful_result op_pack(const op_context *ctx, gpu_range in, const op_activation *out, uint32_t rows,
                   bool fixed);

/* ---- matmul.c: out[r][n] = act(sum_k x[r][k] * w[n][k]) ---- */
typedef enum op_act {
    OP_ACT_NONE = 0,
    OP_ACT_SILU_SIGMOID = 1, /* SiLU for columns below split, sigmoid from there on */
    OP_ACT_SWIGLU = 2 /* rows 2i (W1) and 2i+1 (W3) of w: out[r][i] = SiLU(even) * odd; half as
                       * many columns come out */
} op_act;
/* A norm on the way into a product, which then reads y instead of x:
 *     v = alpha*x + beta*b;  y = v / sqrt(mean(v^2) + eps) * weight
 * and gated: v = x;          y = gate * (the same) */
typedef struct op_fused_norm {
    gpu_range b; /* second summand, [rows][dim] f32, or empty; gated: the gate, [rows][gate_stride]
                    f32, already through its sigmoid */
    bool gated;
    uint32_t gate_stride, gate_offset;
    float alpha, beta, eps;
    gpu_range weight; /* [dim] f32 */
    gpu_range out;    /* y, [rows][dim] f32; empty: not wanted */
} op_fused_norm;
typedef struct op_matmul_args {
    op_activation x;     /* dim = w->cols */
    const gpu_tensor *w; /* dense */
    gpu_range out;       /* f32 [rows][out_stride] */
    uint32_t out_stride;
    op_blocks out_blocks; /* if not empty: the result after act goes here instead of to out; needs
                             x.half and op_matmul_blocks_usable */
    op_act act;
    uint32_t split;
    uint32_t rows;
    bool fixed;
    const op_fused_norm *norm; /* NULL: none. Else x is f32, its stride its dim, and
                                  op_matmul_norm_usable */
    gpu_range scratch; /* may be empty; with op_matmul_scratch_bytes the columns can be split where
                          tiles are too few for the device */
} op_matmul_args;
uint64_t op_matmul_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t weight_rows);
/* Few rows (and CPU devices): matrix-vector kernels; else tiles. */
ful_result op_matmul(const op_context *ctx, const op_matmul_args *args);
/* True if op_matmul can write op_blocks of this size with these weights here. */
bool op_matmul_blocks_usable(const op_context *ctx, const gpu_tensor *w, uint32_t rows,
                             uint32_t block);
/* True if op_matmul takes a norm for that many rows of x here (gate_stride 0: no gate). */
bool op_matmul_norm_usable(const op_context *ctx, uint32_t rows, uint32_t cols,
                           uint32_t gate_stride);

/* ---- moe.c ---- */
/* Softmax over all experts, top_k, renormalised. Ties go to the lowest index. */
typedef struct op_route_args {
    gpu_range logits; /* [rows][experts] f32 */
    uint32_t experts, top_k, rows;
    gpu_range routes; /* out: [rows][top_k] {u32 expert, f32 weight}, best first */
} op_route_args;
ful_result op_route(const op_context *ctx, const op_route_args *args);

/* z[r] = sum_k weight_rk * W2_e( SiLU(W1_e x_r) * (W3_e x_r) ), e = expert_rk. Few rows:
 * matrix-vector over the pairs. Else: count, sort pairs by expert, grouped matmuls over real tiles
 * only (indirect), combine in the order of k. */
typedef struct op_moe_args {
    op_activation x;       /* [rows][dim] */
    gpu_range routes;      /* as op_route writes them */
    const gpu_tensor *w13; /* [experts][2*width][dim], W1 and W3 rows interleaved */
    const gpu_tensor *w2;  /* [experts][dim][width] */
    uint32_t top_k, rows;
    gpu_range out;     /* [rows][dim] f32 */
    gpu_range scratch; /* op_moe_scratch_bytes */
    gpu_range logits;  /* if not empty: [experts] f32 of one row; routes are written first, as
                          op_route would. Needs op_moe_routes */
} op_moe_args;
/* True if op_moe takes logits for such a step here. */
bool op_moe_routes(const op_context *ctx, uint32_t rows, uint32_t experts, uint32_t top_k);
uint64_t op_moe_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t top_k,
                              uint32_t experts, uint32_t dim, uint32_t width);
ful_result op_moe(const op_context *ctx, const op_moe_args *args);
/* Where the step's hidden values are behind it: f32 [rows * top_k][width], in the order of the
 * routes, or sorted by expert, stable. False where they are not left: halves, or a step in several
 * parts. */
bool op_moe_hidden(const op_context *ctx, const op_moe_args *args, gpu_range *hidden, bool *sorted);

/* ---- lightning.c ---- */
/* Decay factors of one layer, computed in double on the host from its slopes: bytes, then contents
 * for a buffer of that size. */
uint64_t op_lightning_decay_bytes(const ful_device *device, uint32_t heads, uint32_t head_dim);
void op_lightning_decay_fill(const ful_device *device, uint32_t heads, uint32_t head_dim,
                             const double *slopes, void *out);

/* Per head: S_t = exp(-s) S_(t-1) + k_t^T v_t ; o_t = q_t S_t, in blocks with the state carried. */
typedef struct op_lightning_args {
    gpu_range qkv; /* f32 [rows][qkv_stride], per head q, k, v of head_dim (interleaved by head),
                      after SiLU */
    uint32_t qkv_stride;
    uint32_t heads, head_dim, rows;
    uint32_t sequences;   /* decode: rows of qkv and out, one token each; 0 = 1 */
    gpu_range decay;      /* storage buffer filled by op_lightning_decay_fill */
    gpu_range state;      /* in and out: f32 [sequences][heads][head_dim (key)][head_dim (value)] */
    uint32_t state_from;  /* decode: `state` holds two states one after the other; which is read */
    uint32_t state_to;    /* ... and which written. 0, 0: one state, in place. Different ones need
                             op_lightning_decode_sides */
    gpu_range out;        /* f32 [rows][heads*head_dim] */
    op_blocks qkv_blocks; /* prefill: if not empty, read instead of qkv; block = head_dim */
    op_blocks out_blocks; /* prefill: if not empty, written instead of out; block =
                             op_lightning_blocks */
    gpu_range scratch;    /* prefill: op_lightning_scratch_bytes */
} op_lightning_args;
/* `halves`: of a prefill that reads qkv_blocks and writes out_blocks. */
uint64_t op_lightning_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim, bool halves);
ful_result op_lightning_prefill(const op_context *ctx, const op_lightning_args *args);
/* The block of out_blocks if a prefill of so many rows can read and write halves here, else 0. */
uint32_t op_lightning_blocks(const op_context *ctx, uint32_t rows, uint32_t heads,
                             uint32_t head_dim);
/* One token of each sequence. S += expm1(-s) S + k^T v, then q S; each element read and written
 * once. */
ful_result op_lightning_decode(const op_context *ctx, const op_lightning_args *args);
/* True if a decode can leave the state it read as it was and write another beside it. */
bool op_lightning_decode_sides(const op_context *ctx, uint32_t heads, uint32_t head_dim);

/* ---- attention.c ---- */
/* Keys (after RoPE) and values of one softmax layer of one sequence, in windows of tokens. A token
 * is [2 (k, v)][kv_heads][head_dim] f32, or f16 with a power-of-two scale a row: the halves, then
 * [2][kv_heads] f32 that undo the scales, then padding to 16 bytes. Sizes only through op_kv_bytes.
 */
typedef struct op_kv {
    ful_type type;
    uint32_t kv_heads, head_dim;
    uint32_t capacity_tokens, window_tokens, window_count;
    gpu_buffer *windows;
} op_kv;
/* Sets window_tokens and window_count from the other fields, allocating nothing. */
void op_kv_layout(const ful_device *device, op_kv *kv);
ful_result op_kv_create(ful_device *device, ful_type type, uint32_t kv_heads, uint32_t head_dim,
                        uint32_t capacity_tokens, op_kv *out);
void op_kv_destroy(ful_device *device, op_kv *kv);
uint64_t op_kv_bytes(ful_type type, uint32_t kv_heads, uint32_t head_dim, uint64_t tokens);

/* cos, sin of row r's position: f32 [rows][rotary_dim/2][2], written by the host for each step
 * (model.md: angle = fp32(position x fp32 inv_freq), cosine and sine of it in double). */
void op_rope_table(uint32_t first_position, uint32_t rows, uint32_t rotary_dim, double theta,
                   float *out);

typedef struct op_attention_args {
    gpu_range qkv; /* f32 [rows][qkv_stride]: q heads, then k heads, then v heads; q is rotated in
                      place */
    uint32_t qkv_stride;
    uint32_t heads, head_dim, rotary_dim, rows;
    gpu_range rope; /* op_rope_table */
    const op_kv *
        kv; /* rows are appended at step.position; then all kv_tokens keys are attended, causally */
    gpu_range out;     /* f32 [rows][heads*head_dim] */
    gpu_range scratch; /* op_attention_scratch_bytes */
} op_attention_args;
uint64_t op_attention_scratch_bytes(const op_context *ctx, uint32_t rows, uint32_t heads,
                                    uint32_t head_dim, const op_kv *kv);
/* RoPE, append, online softmax over key blocks; heads that share a KV head share its loads; few
 * rows: split over keys, then merged in fixed order. Scale head_dim^-0.5. */
ful_result op_attention(const op_context *ctx, const op_attention_args *args);

/* ---- sample.c ---- */
/* step.temperature .. uniform -> token; the same rule as the host's sampler. */
typedef struct op_sample_args {
    gpu_range logits; /* [vocab] f32 */
    uint32_t vocab;
    gpu_range out;     /* u32 token, u32 flags: bit 0 = a logit is not finite */
    gpu_range scratch; /* op_sample_scratch_bytes */
} op_sample_args;
/* False if the device's own sampling can't be trusted: the host's then draws. */
bool op_sample_usable(const ful_device *device);
uint64_t op_sample_scratch_bytes(const op_context *ctx, uint32_t vocab);
ful_result op_sample(const op_context *ctx, const op_sample_args *args);

/* ---- random.c: pseudo-random numbers, uniform around mean with that standard deviation. A row's
 * numbers depend on the key and the row's number only. Types of blocks get random bits under scales
 * that give the deviation; their mean is 0, nearly. ---- */
typedef struct op_random_args {
    gpu_range out; /* [rows][row_bytes], row_bytes a multiple of 16 */
    ful_type type;
    uint64_t key; /* op_random_key */
    uint32_t first_row, rows;
    uint64_t row_bytes;
    uint32_t cols; /* types of blocks only */
    double mean, deviation;
} op_random_args;
uint64_t op_random_key(uint64_t seed, uint64_t number);
ful_result op_random(const op_context *ctx, const op_random_args *args);
/* All of a tensor; of args only key, mean and deviation are read. */
ful_result op_random_tensor(const op_context *ctx, const gpu_tensor *tensor,
                            const op_random_args *args);

#endif
