#include <assert.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

/* Four rows of x at a time against one row of W: each weight is converted to double once for four
 * products, and the four sums are independent chains. */
static void rows4(uint32_t K, uint32_t N, const double *x, const float *W, double *out)
{
    const double *x0 = x, *x1 = x + K, *x2 = x + 2 * (size_t)K, *x3 = x + 3 * (size_t)K;
    for (uint32_t n = 0; n < N; n++) {
        const float *w = W + (size_t)n * K;
        double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
        for (uint32_t k = 0; k < K; k++) {
            double wk = (double)w[k];
            s0 += x0[k] * wk;
            s1 += x1[k] * wk;
            s2 += x2[k] * wk;
            s3 += x3[k] * wk;
        }
        out[n] = s0;
        out[n + (size_t)N] = s1;
        out[n + 2 * (size_t)N] = s2;
        out[n + 3 * (size_t)N] = s3;
    }
}

static void row1(uint32_t K, uint32_t N, const double *x, const float *W, double *out)
{
    for (uint32_t n = 0; n < N; n++) {
        const float *w = W + (size_t)n * K;
        double s0 = 0.0, s1 = 0.0, s2 = 0.0, s3 = 0.0;
        uint32_t k = 0;
        for (; k + 4 <= K; k += 4) {
            s0 += x[k] * (double)w[k];
            s1 += x[k + 1] * (double)w[k + 1];
            s2 += x[k + 2] * (double)w[k + 2];
            s3 += x[k + 3] * (double)w[k + 3];
        }
        for (; k < K; k++)
            s0 += x[k] * (double)w[k];
        out[n] = (s0 + s1) + (s2 + s3);
    }
}

void ref_matmul(uint32_t rows, uint32_t K, uint32_t N, const double *x, const float *W, double *out)
{
    uint32_t r = 0;
    for (; rows - r >= 4; r += 4)
        rows4(K, N, x + (size_t)r * K, W, out + (size_t)r * N);
    for (; r < rows; r++)
        row1(K, N, x + (size_t)r * K, W, out + (size_t)r * N);
}

void ref_matmul_act(uint32_t rows, uint32_t K, uint32_t N, const double *x, const float *W,
                    ref_activation act, uint32_t split, double *out)
{
    if (act == REF_ACT_SWIGLU) {
        assert(N % 2 == 0);
        double *both = ref_alloc((size_t)rows * N);
        ref_matmul(rows, K, N, x, W, both);
        for (size_t i = 0; i < (size_t)rows * (N / 2); i++)
            out[i] = ref_silu(both[2 * i]) * both[2 * i + 1];
        free(both);
        return;
    }
    ref_matmul(rows, K, N, x, W, out);
    for (uint32_t r = 0; r < rows && act != REF_ACT_NONE; r++) {
        double *row = out + (size_t)r * N;
        for (uint32_t n = 0; n < N; n++) {
            if (act != REF_ACT_SILU && n >= split)
                row[n] = ref_sigmoid(row[n]);
            else if (act != REF_ACT_SIGMOID_ONLY)
                row[n] = ref_silu(row[n]);
        }
    }
}

void ref_interleave_w13(uint32_t I, uint32_t K, const float *w1, const float *w3, float *w13)
{
    for (uint32_t i = 0; i < I; i++) {
        memcpy(w13 + 2 * (size_t)i * K, w1 + (size_t)i * K, K * sizeof(float));
        memcpy(w13 + (2 * (size_t)i + 1) * K, w3 + (size_t)i * K, K * sizeof(float));
    }
}
