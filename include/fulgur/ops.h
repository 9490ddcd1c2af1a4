/* The model's own operations on buffers of the caller's: for benchmarks, and for engines that want
 * only the kernels. A model runs through the same code.
 *
 *     ful_stream_begin -> ful_op_*, ful_op_* ... -> ful_stream_run (any number of times) -> destroy
 *
 * Conventions
 *  - Activations are f32 [rows][dim], row-major. Matrices are [rows][cols] of any ful_type; types
 *    of blocks are read as they are, never unpacked in memory.
 *  - A ful_range is a part of a buffer; its offset is a multiple of 256 bytes.
 *  - Ops only record; each checks the sizes of its ranges and returns FUL_ERR_ARGUMENT with both
 *    numbers if one is too small. Inputs and outputs must not overlap.
 *  - Scratch memory and halves for the fp16 variants belong to the stream.
 *  - Buffers, tensors and caches must outlive the streams that use them, and all of them end before
 *    the device is closed. Creating and destroying is safe from any thread; a stream, and the
 * contents of what it uses, belong to one thread at a time. */
#ifndef FULGUR_OPS_H
#define FULGUR_OPS_H

#include "fulgur/device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- buffers ---- */

typedef struct ful_buffer ful_buffer;

typedef struct ful_buffer_params {
    size_t struct_size;
    uint64_t bytes;   /* above 0 */
    const char *name; /* copied; for error lines; NULL = "buffer" */
} ful_buffer_params;
#define ful_buffer_params(...)                                                                     \
    (&(ful_buffer_params){.struct_size = sizeof(ful_buffer_params), __VA_ARGS__})

/* Device memory with undefined contents. Errors: FUL_ERR_DEVICE_MEMORY, FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_buffer_create(ful_buffer **out, ful_device *device,
                                     const ful_buffer_params *params);
FUL_API void ful_buffer_destroy(ful_buffer **buffer);
FUL_API uint64_t ful_buffer_bytes(const ful_buffer *buffer);

/* Copy from and to host memory; offset and size are multiples of 4 bytes. Each waits for the copy;
 * no stream that uses the bytes may be running. */
FUL_API ful_result ful_buffer_write(ful_buffer *buffer, uint64_t offset_bytes, const void *data,
                                    uint64_t bytes);
FUL_API ful_result ful_buffer_read(const ful_buffer *buffer, uint64_t offset_bytes, void *data,
                                   uint64_t bytes);
/* Every 32-bit word becomes `word`. */
FUL_API ful_result ful_buffer_fill(ful_buffer *buffer, uint32_t word);
/* f32 numbers, uniform with that standard deviation around `mean`; the same for the same seed. */
FUL_API ful_result ful_buffer_randomize(ful_buffer *buffer, uint64_t seed, double mean,
                                        double deviation);

typedef struct ful_range {
    ful_buffer *buffer;
    uint64_t offset_bytes; /* multiple of 256 */
    uint64_t bytes;        /* 0 = up to the buffer's end */
} ful_range;

/* ---- weight matrices ---- */

typedef struct ful_tensor ful_tensor;

typedef struct ful_tensor_params {
    size_t struct_size;
    ful_type type;    /* 0 = FUL_TYPE_BF16 */
    uint32_t experts; /* 0 = 1: a plain matrix */
    uint32_t rows, cols;
    const char *name; /* copied; for error lines; NULL = "tensor" */
} ful_tensor_params;
#define ful_tensor_params(...)                                                                     \
    (&(ful_tensor_params){.struct_size = sizeof(ful_tensor_params), __VA_ARGS__})

/* Matrices [experts][rows][cols], larger than one binding if need be. Contents undefined. Errors:
 * FUL_ERR_ARGUMENT for sizes of 0 and for columns that are no multiple of a block of the type (32
 * columns of q8_0, q4_0, q4_1, q5_0, q5_1, iq4_nl and mxfp4, 256 of q2_k .. q6_k);
 * FUL_ERR_DEVICE_MEMORY, FUL_ERR_HOST_MEMORY. */
FUL_API ful_result ful_tensor_create(ful_tensor **out, ful_device *device,
                                     const ful_tensor_params *params);
FUL_API void ful_tensor_destroy(ful_tensor **tensor);
/* Writes row_count rows of one expert from rows as files hold them, one behind the other, each of
 * ful_row_bytes; they may lie at any address. The device's own order of blocks is the tensor's
 * business. Rows whose largest magnitude fp16 can't hold well get a power of two for the fp16
 * variants. Waits. Not for hot paths: every row is looked through.
 * A tensor is written before ops that use it are recorded. */
FUL_API ful_result ful_tensor_write(ful_tensor *tensor, uint32_t expert, uint32_t row0,
                                    uint32_t row_count, const void *data);
/* The other way round: bit for bit what was written. */
FUL_API ful_result ful_tensor_read(const ful_tensor *tensor, uint32_t expert, uint32_t row0,
                                   uint32_t row_count, void *data);
/* Pseudo-random numbers with that standard deviation around 0, uniform unless the type is one of
 * blocks: those get random bits under scales that give the deviation (mxfp4: the nearest power of
 * two does). The same for the same seed. Made on the device. */
FUL_API ful_result ful_tensor_randomize(ful_tensor *tensor, uint64_t seed, double deviation);

/* Bytes of a row of `cols` elements as files hold it; 0 for unknown types and where `cols` is 0 or
 * no multiple of the type's block. */
FUL_API uint64_t ful_row_bytes(ful_type type, uint32_t cols);
/* Between such a row and floats, on the host; each in the calling thread. Decoding is exact but for
 * the rounding of a minimum's subtraction. Encoding rounds floats to nearest and searches for the
 * blocks of least squared error, each column's weighted by importance[cols] (NULL: all alike).
 * Errors: FUL_ERR_ARGUMENT for columns that are no multiple of a block and, encoding blocks, for
 * values that are not finite or beyond what the type's scales hold. */
FUL_API ful_result ful_row_decode(ful_type type, const void *row, uint32_t cols, float *out);
FUL_API ful_result ful_row_encode(ful_type type, const float *row, uint32_t cols,
                                  const float *importance, void *out);

/* ---- streams ---- */

typedef struct ful_stream ful_stream;

typedef struct ful_stream_params {
    size_t struct_size;
    bool half;  /* fp16 variants where the device has them */
    bool timed; /* measure every dispatch, if the device can */
} ful_stream_params;
#define ful_stream_params(...)                                                                     \
    (&(ful_stream_params){.struct_size = sizeof(ful_stream_params), __VA_ARGS__})

FUL_API ful_result ful_stream_begin(ful_stream **out, ful_device *device,
                                    const ful_stream_params *params);
/* Waits if needed. */
FUL_API void ful_stream_destroy(ful_stream **stream);

/* What a run of the recorded ops reads. */
typedef struct ful_step {
    uint32_t n_rows; /* rows that are real, at most the `rows` given to the ops; the others are left
                      * as they are. 0 = the largest `rows` given */
    uint32_t position; /* of row 0 in its sequence: attention only */
    /* How ful_op_sample draws, as in ful_sampler_params; all zero: the largest logit. */
    float temperature, top_p, min_p;
    uint32_t top_k;
    float uniform; /* in [0, 1): which token of those that are left */
} ful_step;

/* Runs everything recorded, in order, and waits. The first run ends the recording. Errors:
 * FUL_ERR_DEVICE_LOST names the op. */
FUL_API ful_result ful_stream_run(ful_stream *stream, const ful_step *step);

/* One dispatch of the last run; an op may be several. */
typedef struct ful_op_time {
    const char *name; /* static storage */
    uint64_t ns;
    double bytes; /* that it moves to and from memory, by its formula */
    double flops;
} ful_op_time;

/* Copies at most *count entries and sets *count to how many there are: 0 unless the stream is timed
 * and the device has timestamps. out may be NULL to count. */
FUL_API ful_result ful_stream_times(ful_stream *stream, ful_op_time *out, uint32_t *count);

/* Device time of the last run from its first dispatch's begin to its last one's end, waits between
 * them included, in ns; 0 if the device has no timestamps. */
FUL_API uint64_t ful_stream_span_ns(const ful_stream *stream);

/* ---- ops ---- */

/* out[r] = table[tokens[r]]; tokens u32 [rows]; out [rows][table cols]. Tokens outside give zeros.
 */
typedef struct ful_embed_args {
    ful_range tokens;
    const ful_tensor *table;
    ful_range out;
    uint32_t rows;
} ful_embed_args;
FUL_API ful_result ful_op_embed(ful_stream *stream, const ful_embed_args *args);

/* x = alpha*a + beta*b; out = x / sqrt(mean(x^2) + eps) * weight. a, b, out [rows][dim]; weight
 * [dim]. */
typedef struct ful_norm_args {
    ful_range a;
    ful_range b; /* buffer NULL: x = alpha*a */
    float alpha, beta;
    ful_range weight;
    float eps;
    uint32_t dim, rows;
    ful_range out;
} ful_norm_args;
FUL_API ful_result ful_op_norm(ful_stream *stream, const ful_norm_args *args);

/* out = gate * (o / sqrt(mean(o^2) + eps) * weight); gate [rows][gate_stride] from gate_offset,
 * already through its sigmoid; o, out [rows][dim]. */
typedef struct ful_gated_norm_args {
    ful_range o;
    ful_range gate;
    uint32_t gate_stride, gate_offset;
    ful_range weight;
    float eps;
    uint32_t dim, rows;
    ful_range out;
} ful_gated_norm_args;
FUL_API ful_result ful_op_gated_norm(ful_stream *stream, const ful_gated_norm_args *args);

typedef enum ful_act {
    FUL_ACT_NONE = 0,
    FUL_ACT_SILU_SIGMOID = 1, /* SiLU for columns below split, sigmoid from there on */
    FUL_ACT_SWIGLU = 2        /* out[r][i] = SiLU(row 2i) * (row 2i + 1): half as many columns */
} ful_act;

/* out[r][n] = act(sum_k x[r][k] * w[n][k]). x [rows][x_stride], out [rows][out_stride]. */
typedef struct ful_matmul_args {
    ful_range x;
    uint32_t x_stride; /* 0 = w's columns */
    const ful_tensor *w;
    ful_range out;
    uint32_t out_stride; /* 0 = as many columns as come out */
    ful_act act;
    uint32_t split;
    uint32_t rows;
} ful_matmul_args;
FUL_API ful_result ful_op_matmul(ful_stream *stream, const ful_matmul_args *args);

/* Softmax over the experts, the top_k largest, renormalised. logits [rows][experts]; routes
 * [rows][top_k] pairs of u32 expert and f32 weight, best first. */
typedef struct ful_route_args {
    ful_range logits;
    uint32_t experts, top_k, rows;
    ful_range routes;
} ful_route_args;
FUL_API ful_result ful_op_route(ful_stream *stream, const ful_route_args *args);

/* out[r] = sum over the routes of r of weight * W2_e(SiLU(W1_e x_r) * (W3_e x_r)). w13
 * [experts][2*width][dim] with row 2i of W1 and 2i+1 of W3; w2 [experts][dim][width]; x, out
 * [rows][dim]. */
typedef struct ful_moe_args {
    ful_range x;
    ful_range routes;
    const ful_tensor *w13;
    const ful_tensor *w2;
    uint32_t top_k, rows;
    ful_range out;
} ful_moe_args;
FUL_API ful_result ful_op_moe(ful_stream *stream, const ful_moe_args *args);

/* The decay factors of `heads` lightning heads from their slopes, for ful_lightning_args.decay. */
FUL_API ful_result ful_lightning_decay(ful_buffer **out, ful_device *device, uint32_t heads,
                                       uint32_t head_dim, const double *slopes);

/* Halves with a power-of-two scale per row and block of columns: element (r, c) is
 * data[r*stride + c] * scale[r*(stride/block) + c/block]. The largest magnitude of a block's halves
 * is below 2^14; the scale of an all-zero block is 1. */
typedef struct ful_blocks {
    ful_range data;  /* f16 [rows][stride]; buffer NULL: not given */
    ful_range scale; /* f32 [rows][stride/block] */
} ful_blocks;

/* Per head: S_t = exp(-slope) S_(t-1) + k_t^T v_t; o_t = q_t S_t. qkv [rows][qkv_stride]: q, k, v
 * of head_dim for each head in turn, after SiLU. state [heads][head_dim (key)][head_dim (value)],
 * read and written. out [rows][heads*head_dim]. head_dim: a multiple of 16, at most 256. */
typedef struct ful_lightning_args {
    ful_range qkv;
    uint32_t qkv_stride; /* 0 = 3*heads*head_dim */
    uint32_t heads, head_dim, rows;
    ful_range decay;
    ful_range state;
    ful_range out;
    uint32_t sequences; /* decode: one token each, rows of qkv and out; state [sequences][heads]...;
                         * 0 = 1 */
    ful_blocks qkv_blocks; /* prefill: if given, read instead of qkv, in blocks of head_dim and rows
                            * of 3*heads*head_dim */
    ful_blocks out_blocks; /* prefill: if given, written instead of out, in blocks of
                            * ful_op_lightning_block and rows of heads*head_dim */
} ful_lightning_args;
FUL_API ful_result ful_op_lightning_prefill(ful_stream *stream, const ful_lightning_args *args);
/* The columns that share a scale in out_blocks; 0 if this stream and device take no blocks. */
FUL_API uint32_t ful_op_lightning_block(const ful_stream *stream, uint32_t rows, uint32_t heads,
                                        uint32_t head_dim);
/* One token of each sequence; args->rows is not read. */
FUL_API ful_result ful_op_lightning_decode(ful_stream *stream, const ful_lightning_args *args);

/* Keys and values of one softmax layer of one sequence. */
typedef struct ful_kv ful_kv;

typedef struct ful_kv_params {
    size_t struct_size;
    ful_type type; /* f32 or f16; 0 = f16 */
    uint32_t kv_heads, head_dim, capacity_tokens;
} ful_kv_params;
#define ful_kv_params(...) (&(ful_kv_params){.struct_size = sizeof(ful_kv_params), __VA_ARGS__})

FUL_API ful_result ful_kv_create(ful_kv **out, ful_device *device, const ful_kv_params *params);
FUL_API void ful_kv_destroy(ful_kv **kv);

/* Cosines and sines of `rows` positions, f32 [rows][rotary_dim/2][2]: the contents of
 * ful_attention_args.rope. Runs on the host. */
FUL_API void ful_rope_table(uint32_t first_position, uint32_t rows, uint32_t rotary_dim,
                            double theta, float *out);

/* RoPE on the first rotary_dim columns, rows appended to kv at the step's position, causal softmax
 * attention over all keys so far, scale head_dim^-0.5. qkv [rows][qkv_stride]: q heads, k heads, v
 * heads; q is rotated in place. out [rows][heads*head_dim]. */
typedef struct ful_attention_args {
    ful_range qkv;
    uint32_t qkv_stride; /* 0 = (heads + 2*kv_heads)*head_dim */
    uint32_t heads, rotary_dim, rows;
    ful_range rope;
    ful_kv *kv;
    ful_range out;
} ful_attention_args;
FUL_API ful_result ful_op_attention(ful_stream *stream, const ful_attention_args *args);

/* Draws one token by the rule of ful_sample_logits, with the step's parameters and its uniform
 * number. logits [vocab] f32; out: u32 token, u32 flags (bit 0: a logit is not finite). */
typedef struct ful_sample_args {
    ful_range logits;
    uint32_t vocab;
    ful_range out;
} ful_sample_args;
FUL_API ful_result ful_op_sample(ful_stream *stream, const ful_sample_args *args);

/* ---- what the device itself can do ---- */

typedef enum ful_rate {
    FUL_RATE_COPY = 0,     /* bytes/s read and written, both counted */
    FUL_RATE_READ = 1,     /* bytes/s */
    FUL_RATE_WRITE = 2,    /* bytes/s */
    FUL_RATE_F32 = 3,      /* FLOP/s of multiply-adds in registers, each counted as two */
    FUL_RATE_F16 = 4,      /* likewise */
    FUL_RATE_MATRIX = 5,   /* FLOP/s of f16 cooperative matrices with f32 sums, in subgroups */
    FUL_RATE_FLEXIBLE = 6, /* likewise, matrices of whole workgroups */
    FUL_RATE_INT_DOT = 7,  /* op/s of packed 4 x 8-bit dot products, each counted as eight */
    FUL_RATE_DISPATCH = 8, /* s from one dispatch to the next that waits for it */
    FUL_RATE_SUBMIT = 9,   /* s from the submission of one dispatch until the host knows it ended */
    FUL_RATE_COUNT = 10
} ful_rate;

typedef struct ful_rate_result {
    const char *name, *unit;    /* static storage */
    double median, least, most; /* in the unit named above */
    uint32_t runs;
} ful_rate_result;

/* Measures it, in a fraction of a second on a GPU, with up to 2 GiB of device memory (less where
 * there is less). The results of the kernels are checked. Errors: FUL_ERR_UNSUPPORTED if the device
 * lacks what is to be measured, FUL_ERR_DEVICE_MEMORY, FUL_ERR_DEVICE_LOST,
 * FUL_ERR_SELFTEST if a kernel gave a wrong result. */
FUL_API ful_result ful_device_measure(ful_device *device, ful_rate rate, ful_rate_result *out);

#ifdef __cplusplus
}
#endif

#endif
