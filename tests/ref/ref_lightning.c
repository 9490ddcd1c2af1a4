#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

void ref_lightning(uint32_t T, uint32_t H, uint32_t D, const double *qkv, size_t stride,
                   const double *slopes, double *state, double *out)
{
    if (stride == 0)
        stride = (size_t)3 * H * D;
    for (uint32_t h = 0; h < H; h++) {
        double *S = state + (size_t)h * D * D;
        double decay = exp(-slopes[h]);
        for (uint32_t t = 0; t < T; t++) {
            const double *q = qkv + t * stride + (size_t)h * 3 * D;
            const double *k = q + D, *v = q + 2 * (size_t)D;
            double *o = out + ((size_t)t * H + h) * D;
            memset(o, 0, D * sizeof(double));
            for (uint32_t i = 0; i < D; i++) {
                double *row = S + (size_t)i * D;
                for (uint32_t j = 0; j < D; j++) {
                    row[j] = decay * row[j] + k[i] * v[j];
                    o[j] += q[i] * row[j];
                }
            }
        }
    }
}

/* One block of m tokens of one head; `qkv` points at its first q, `out` at its first output row. */
static void block_head(uint32_t m, uint32_t D, const double *qkv, size_t stride, double slope,
                       double *S, double *out, size_t out_stride)
{
    for (uint32_t i = 0; i < m; i++) {
        const double *q = qkv + i * stride;
        double *o = out + i * out_stride;
        memset(o, 0, D * sizeof(double));
        for (uint32_t j = 0; j <= i; j++) {
            const double *k = qkv + j * stride + D, *v = k + D;
            double score = exp(-slope * (double)(i - j)) * ref_dot(q, k, D);
            for (uint32_t c = 0; c < D; c++)
                o[c] += score * v[c];
        }
        double inter = exp(-slope * (double)(i + 1));
        for (uint32_t r = 0; r < D; r++) {
            for (uint32_t c = 0; c < D; c++)
                o[c] += inter * q[r] * S[(size_t)r * D + c];
        }
    }
    double carry = exp(-slope * (double)m);
    for (size_t e = 0; e < (size_t)D * D; e++)
        S[e] *= carry;
    for (uint32_t j = 0; j < m; j++) {
        const double *k = qkv + j * stride + D, *v = k + D;
        double weight = exp(-slope * (double)(m - 1 - j));
        for (uint32_t r = 0; r < D; r++) {
            for (uint32_t c = 0; c < D; c++)
                S[(size_t)r * D + c] += weight * k[r] * v[c];
        }
    }
}

void ref_lightning_block(uint32_t T, uint32_t H, uint32_t D, uint32_t block, const double *qkv,
                         size_t stride, const double *slopes, double *state, double *out)
{
    assert(block > 0);
    if (stride == 0)
        stride = (size_t)3 * H * D;
    size_t out_stride = (size_t)H * D;
    for (uint32_t start = 0; start < T; start += block) {
        uint32_t m = T - start < block ? T - start : block;
        for (uint32_t h = 0; h < H; h++)
            block_head(m, D, qkv + start * stride + (size_t)h * 3 * D, stride, slopes[h],
                       state + (size_t)h * D * D, out + start * out_stride + (size_t)h * D,
                       out_stride);
    }
}

/* ALiBi's slopes for a power of two. */
static void slopes_pow2(uint32_t count, uint32_t step, uint32_t take, double *out)
{
    for (uint32_t i = 0; i < take; i++)
        out[i] = pow(2.0, -8.0 * (double)(i * step + 1) / (double)count);
}

void ref_slopes(int rule, uint32_t H, uint32_t layer, uint32_t layers, double *slopes)
{
    assert(rule == 1 || rule == 2);
    double factor = 1.0 + 1e-5;
    if (rule == 2) {
        slopes_pow2(H, 1, H, slopes);
        factor -= (double)layer / ((double)(layers - 1) + 1e-5);
    } else {
        uint32_t c = 1;
        while (2 * c <= H)
            c *= 2;
        slopes_pow2(c, 1, c, slopes);
        slopes_pow2(2 * c, 2, H - c, slopes + c);
        if (layers > 1)
            factor -= (double)layer / (double)(layers - 1);
    }
    for (uint32_t h = 0; h < H; h++)
        slopes[h] *= factor;
}
