#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

void ref_rope_table(uint32_t position, uint32_t rotary_dim, double theta, double *cosine,
                    double *sine)
{
    for (uint32_t i = 0; i < rotary_dim / 2; i++) {
        /* The published code forms the angle in fp32; at long positions its rounding is part of
         * the model, so it is repeated here. */
        float frequency = (float)(1.0 / pow(theta, 2.0 * (double)i / (double)rotary_dim));
        volatile float angle = (float)position * frequency;
        cosine[i] = cos((double)angle);
        sine[i] = sin((double)angle);
    }
}

void ref_rope(uint32_t rows, uint32_t heads, uint32_t D, uint32_t rotary_dim, double theta,
              uint32_t position, double *x, size_t stride)
{
    assert(rotary_dim <= D && rotary_dim % 2 == 0);
    uint32_t half = rotary_dim / 2;
    double *cosine = ref_alloc(half), *sine = ref_alloc(half);
    if (stride == 0)
        stride = (size_t)heads * D;
    for (uint32_t r = 0; r < rows; r++) {
        ref_rope_table(position + r, rotary_dim, theta, cosine, sine);
        for (uint32_t h = 0; h < heads; h++) {
            double *head = x + r * stride + (size_t)h * D;
            for (uint32_t i = 0; i < half; i++) {
                double a = head[i], b = head[i + half];
                head[i] = a * cosine[i] - b * sine[i];
                head[i + half] = b * cosine[i] + a * sine[i];
            }
        }
    }
    free(cosine);
    free(sine);
}

void ref_attention(uint32_t T, uint32_t position, uint32_t H, uint32_t Hk, uint32_t D,
                   const double *q, const double *k, const double *v, double *out)
{
    assert(Hk > 0 && H % Hk == 0);
    uint32_t group = H / Hk;
    double scale = 1.0 / sqrt((double)D);
    double *p = ref_alloc((size_t)position + T);
    for (uint32_t t = 0; t < T; t++) {
        uint32_t keys = position + t + 1;
        for (uint32_t h = 0; h < H; h++) {
            const double *query = q + ((size_t)t * H + h) * D;
            double *o = out + ((size_t)t * H + h) * D;
            for (uint32_t j = 0; j < keys; j++)
                p[j] = scale * ref_dot(query, k + ((size_t)j * Hk + h / group) * D, D);
            ref_softmax(keys, p, 1.0, p);
            memset(o, 0, D * sizeof(double));
            for (uint32_t j = 0; j < keys; j++) {
                const double *value = v + ((size_t)j * Hk + h / group) * D;
                for (uint32_t c = 0; c < D; c++)
                    o[c] += p[j] * value[c];
            }
        }
    }
    free(p);
}
