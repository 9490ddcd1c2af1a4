#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "ref.h"

void ref_route_logits(uint32_t rows, uint32_t E, uint32_t top_k, const double *logits,
                      uint32_t *indices, double *weights, double *gap)
{
    assert(top_k >= 1 && top_k <= E);
    double *p = ref_alloc(E);
    uint32_t *order = ref_alloc_bytes(E, sizeof *order);
    for (uint32_t r = 0; r < rows; r++) {
        const double *row = logits + (size_t)r * E;
        ref_softmax(E, row, 1.0, p);
        /* Chosen by logit: softmax is monotonic, and two different logits may round to one p. An
         * insertion sort keeps the lowest index first among equals. */
        for (uint32_t e = 0; e < E; e++) {
            uint32_t at = e;
            for (; at > 0 && row[order[at - 1]] < row[e]; at--)
                order[at] = order[at - 1];
            order[at] = e;
        }
        double sum = 0.0;
        for (uint32_t k = 0; k < top_k; k++)
            sum += p[order[k]];
        for (uint32_t k = 0; k < top_k; k++) {
            if (indices != NULL)
                indices[(size_t)r * top_k + k] = order[k];
            if (weights != NULL)
                weights[(size_t)r * top_k + k] = p[order[k]] / sum;
        }
        if (gap != NULL)
            gap[r] = top_k < E ? row[order[top_k - 1]] - row[order[top_k]] : (double)INFINITY;
    }
    free(order);
    free(p);
}

void ref_route(uint32_t rows, uint32_t dim, uint32_t E, uint32_t top_k, const double *m,
               const float *gate, double *logits, uint32_t *indices, double *weights, double *gap)
{
    double *own = logits != NULL ? NULL : ref_alloc((size_t)rows * E);
    double *scores = logits != NULL ? logits : own;
    ref_matmul(rows, dim, E, m, gate, scores);
    ref_route_logits(rows, E, top_k, scores, indices, weights, gap);
    free(own);
}

/* All (row, slot) pairs of one expert: gathered, pushed through its SwiGLU, added to `out`. */
static void expert_rows(uint32_t count, const uint32_t *pairs, uint32_t dim, uint32_t I,
                        uint32_t top_k, const double *m, const ref_expert *expert,
                        const double *weights, double *out)
{
    double *x = ref_alloc((size_t)count * dim), *y = ref_alloc((size_t)count * dim);
    double *a = ref_alloc((size_t)count * I), *b = ref_alloc((size_t)count * I);
    for (uint32_t i = 0; i < count; i++)
        memcpy(x + (size_t)i * dim, m + (size_t)(pairs[i] / top_k) * dim, dim * sizeof(double));
    ref_matmul(count, dim, I, x, expert->w1, a);
    ref_matmul(count, dim, I, x, expert->w3, b);
    for (size_t i = 0; i < (size_t)count * I; i++)
        a[i] = ref_silu(a[i]) * b[i];
    ref_matmul(count, I, dim, a, expert->w2, y);
    for (uint32_t i = 0; i < count; i++) {
        double *row = out + (size_t)(pairs[i] / top_k) * dim;
        for (uint32_t c = 0; c < dim; c++)
            row[c] += weights[pairs[i]] * y[(size_t)i * dim + c];
    }
    free(x);
    free(y);
    free(a);
    free(b);
}

void ref_moe(uint32_t rows, uint32_t dim, uint32_t I, uint32_t top_k, const double *m,
             const ref_expert *experts, const uint32_t *indices, const double *weights, double *out)
{
    uint32_t total = rows * top_k, experts_used = 0;
    uint32_t *pairs = ref_alloc_bytes(total, sizeof *pairs);
    memset(out, 0, (size_t)rows * dim * sizeof(double));
    for (uint32_t i = 0; i < total; i++)
        experts_used = indices[i] >= experts_used ? indices[i] + 1 : experts_used;
    for (uint32_t e = 0; e < experts_used; e++) {
        uint32_t count = 0;
        for (uint32_t i = 0; i < total; i++) {
            if (indices[i] == e)
                pairs[count++] = i;
        }
        if (count > 0)
            expert_rows(count, pairs, dim, I, top_k, m, &experts[e], weights, out);
    }
    free(pairs);
}
