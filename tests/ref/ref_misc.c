#include <assert.h>
#include <math.h>

#include "ref.h"

void ref_embed(uint32_t rows, uint32_t dim, const int32_t *ids, const float *table, double *out)
{
    for (uint32_t r = 0; r < rows; r++) {
        assert(ids[r] >= 0);
        ref_from_f32(table + (size_t)ids[r] * dim, out + (size_t)r * dim, dim);
    }
}

uint32_t ref_argmax(uint32_t n, const double *logits)
{
    uint32_t best = 0;
    for (uint32_t i = 1; i < n; i++)
        best = logits[i] > logits[best] ? i : best;
    return best;
}

static double max_of(uint32_t n, const double *x)
{
    return x[ref_argmax(n, x)];
}

void ref_softmax(uint32_t n, const double *logits, double temperature, double *p)
{
    double top = max_of(n, logits), sum = 0.0;
    for (uint32_t i = 0; i < n; i++) {
        p[i] = exp((logits[i] - top) / temperature);
        sum += p[i];
    }
    for (uint32_t i = 0; i < n; i++)
        p[i] /= sum;
}

double ref_nll(uint32_t n, const double *logits, uint32_t target)
{
    assert(target < n);
    double top = max_of(n, logits), sum = 0.0;
    for (uint32_t i = 0; i < n; i++)
        sum += exp(logits[i] - top);
    return log(sum) + top - logits[target];
}
