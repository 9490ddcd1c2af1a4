/* Double-precision references of every op, written from the model's formulas. No Vulkan, nothing
 * shared with the code under test.
 *
 * All matrices are row-major and dense unless a stride is named; strides count elements.
 * Activations are double, weights are float (already dequantised: exact values of bf16 or fp16). No
 * function fails except through assert() on a broken call or exhausted memory. Outputs may not
 * overlap inputs unless said. All functions are pure and may run on several threads at once. */
#ifndef TESTS_REF_REF_H
#define TESTS_REF_REF_H

#include <stddef.h>
#include <stdint.h>

#include "fulgur/fulgur.h"

/* ---- helpers (ref_util.c) ---- */

/* Zeroed memory, never NULL (aborts: tests only). Free with free(). */
double *ref_alloc(size_t n); /* n doubles */
void *ref_alloc_bytes(size_t count, size_t size);
void ref_from_f32(const float *in, double *out, size_t n); /* out[i] = in[i], exactly */
void ref_to_f32(const double *in, float *out, size_t n);   /* rounds */
double ref_sigmoid(double x);
double ref_silu(double x); /* x * sigmoid(x) */
/* Sum of a[i] * b[i] in double. */
double ref_dot(const double *a, const double *b, size_t n);

/* ---- quantised types (ref_blocks.c) ---- */

uint32_t ref_blocks_elements(ful_type type); /* of a block */
uint32_t ref_blocks_bytes(ful_type type);    /* of a block in a file */
/* One row of blocks as files have them, in double. */
void ref_blocks_decode(ful_type type, const void *file, size_t cols, double *out);
/* The same row as the device has it (base/types.h). */
size_t ref_blocks_device_bytes(ful_type type, size_t cols);
void ref_blocks_to_device(ful_type type, const void *file, size_t cols, void *planes);
/* A block of random codes and scales whose values are about `magnitude` (root mean square). */
void ref_blocks_random(ful_type type, uint64_t bits, double magnitude, void *block);

/* ---- norms (ref_norm.c) ---- */

/* out[r] = w * x[r] / sqrt(mean(x[r]^2) + eps). w == NULL: ones. out may be x. */
void ref_rmsnorm(uint32_t rows, uint32_t dim, const double *x, const float *w, double eps,
                 double *out);

/* sum = alpha * a + beta * y; out = rmsnorm(sum; w, eps). sum [rows][dim] may be NULL; out may be a
 * or y. */
void ref_residual_norm(uint32_t rows, uint32_t dim, const double *a, double alpha, const double *y,
                       double beta, const float *w, double eps, double *sum, double *out);

/* out = sigmoid(gate) * rmsnorm(o; w, eps), the norm over all `dim` = head_count * head_dim
 * channels. `gate` is the raw projection, [rows] of stride gate_stride (0: dim). If
 * gate_is_sigmoid != 0 the gate already went through the sigmoid. out may be o. */
void ref_gated_norm(uint32_t rows, uint32_t dim, const double *o, const double *gate,
                    size_t gate_stride, int gate_is_sigmoid, const float *w, double eps,
                    double *out);

/* ---- matmul (ref_matmul.c) ---- */

typedef enum ref_activation {
    REF_ACT_NONE = 0,
    REF_ACT_SILU,         /* every column */
    REF_ACT_SIGMOID,      /* columns >= split; the others SiLU (fused qkv and gate: split = 3HD) */
    REF_ACT_SIGMOID_ONLY, /* columns >= split; the others unchanged */
    REF_ACT_SWIGLU        /* out has N/2 columns: silu(column 2i) * column 2i+1 */
} ref_activation;

/* out[rows][N] = x[rows][K] * W[N][K]^T. */
void ref_matmul(uint32_t rows, uint32_t K, uint32_t N, const double *x, const float *W,
                double *out);
/* The same with an activation; out is [rows][N], or [rows][N/2] for REF_ACT_SWIGLU. `split` is read
 * by the two sigmoid variants only. */
void ref_matmul_act(uint32_t rows, uint32_t K, uint32_t N, const double *x, const float *W,
                    ref_activation act, uint32_t split, double *out);
/* w13[2i] = w1[i], w13[2i+1] = w3[i]; rows of K floats, i < I. */
void ref_interleave_w13(uint32_t I, uint32_t K, const float *w1, const float *w3, float *w13);

/* ---- lightning attention (ref_lightning.c) ---- */

/* qkv: after SiLU, row t at qkv + t * stride (0: 3HD), layout [H][3][D] inside a row. slopes [H].
 * state [H][Dk][Dv]: read and replaced (zero it for a fresh sequence). out [T][H*D]. Token by
 * token: S = exp(-s) S + k^T v; o = q S. `slopes` > 0. */
void ref_lightning(uint32_t T, uint32_t H, uint32_t D, const double *qkv, size_t stride,
                   const double *slopes, double *state, double *out);

/* The same result through the block form, blocks of at most `block` tokens. */
void ref_lightning_block(uint32_t T, uint32_t H, uint32_t D, uint32_t block, const double *qkv,
                         size_t stride, const double *slopes, double *state, double *out);

/* Slopes in double by both rules, H heads of layer `layer` out of `layers` (independent of
 * config_slopes). rule: 1 = ORIG, 2 = HF, as decay_rule in model/config.h. */
void ref_slopes(int rule, uint32_t H, uint32_t layer, uint32_t layers, double *slopes);

/* ---- softmax attention (ref_attention.c) ---- */

/* cos/sin of fp32(position * fp32(1 / theta^(2i/rotary_dim))), i < rotary_dim/2, in double. */
void ref_rope_table(uint32_t position, uint32_t rotary_dim, double theta, double *cosine,
                    double *sine);

/* Rotates in place the first rotary_dim dims of each of `heads` heads: pairs (i, i + rotary_dim/2).
 * Row r has position `position + r` and starts at x + r * stride (0: heads * D); heads D apart. */
void ref_rope(uint32_t rows, uint32_t heads, uint32_t D, uint32_t rotary_dim, double theta,
              uint32_t position, double *x, size_t stride);

/* Causal attention of T rows at positions position .. position+T-1 against keys and values of
 * positions 0 .. position+T-1 (k, v: [positions][Hk][D], after RoPE). q, out: [T][H][D]. Query head
 * h reads kv head h / (H / Hk). Scale D^-0.5. */
void ref_attention(uint32_t T, uint32_t position, uint32_t H, uint32_t Hk, uint32_t D,
                   const double *q, const double *k, const double *v, double *out);

/* ---- mixture of experts (ref_moe.c) ---- */

/* logits = m * gate^T, p = softmax over all E, the top_k largest (ties: lowest index),
 * renormalised. gate [E][dim]. Outputs, each may be NULL: logits [rows][E]; indices and weights
 * [rows][top_k] in falling order of p; gap [rows] = k-th largest minus (k+1)-th largest logit
 * (INFINITY if top_k = E). A comparison of routed results makes sense only where the gap exceeds
 * the rounding. */
void ref_route(uint32_t rows, uint32_t dim, uint32_t E, uint32_t top_k, const double *m,
               const float *gate, double *logits, uint32_t *indices, double *weights, double *gap);
/* The same from given logits. */
void ref_route_logits(uint32_t rows, uint32_t E, uint32_t top_k, const double *logits,
                      uint32_t *indices, double *weights, double *gap);

/* Weights of one expert. */
typedef struct ref_expert {
    const float *w1, *w3; /* [I][dim] */
    const float *w2;      /* [dim][I] */
} ref_expert;

/* out[r] = sum_k weights[r][k] * W2( silu(W1 m[r]) * (W3 m[r]) ), experts from indices
 * [rows][top_k]. Rows are independent. */
void ref_moe(uint32_t rows, uint32_t dim, uint32_t I, uint32_t top_k, const double *m,
             const ref_expert *experts, const uint32_t *indices, const double *weights,
             double *out);

/* ---- embedding, sampling (ref_misc.c) ---- */

/* out[r] = table[ids[r]], table [vocab][dim]. */
void ref_embed(uint32_t rows, uint32_t dim, const int32_t *ids, const float *table, double *out);
/* Index of the largest logit, lowest index among equals. */
uint32_t ref_argmax(uint32_t n, const double *logits);
/* p = softmax(logits / temperature), temperature > 0; p may be logits. */
void ref_softmax(uint32_t n, const double *logits, double temperature, double *p);
/* -log softmax(logits)[target], in nats. */
double ref_nll(uint32_t n, const double *logits, uint32_t target);

#endif
