#include <math.h>
#include <stdlib.h>

#include "ref.h"

static void norm_row(uint32_t dim, const double *x, const float *w, double eps, double *out)
{
    double scale = 1.0 / sqrt(ref_dot(x, x, dim) / (double)dim + eps);
    for (uint32_t i = 0; i < dim; i++)
        out[i] = x[i] * scale * (w != NULL ? (double)w[i] : 1.0);
}

void ref_rmsnorm(uint32_t rows, uint32_t dim, const double *x, const float *w, double eps,
                 double *out)
{
    for (uint32_t r = 0; r < rows; r++)
        norm_row(dim, x + (size_t)r * dim, w, eps, out + (size_t)r * dim);
}

void ref_residual_norm(uint32_t rows, uint32_t dim, const double *a, double alpha, const double *y,
                       double beta, const float *w, double eps, double *sum, double *out)
{
    double *row = ref_alloc(dim);
    for (uint32_t r = 0; r < rows; r++) {
        size_t at = (size_t)r * dim;
        for (uint32_t i = 0; i < dim; i++)
            row[i] = alpha * a[at + i] + beta * y[at + i];
        for (uint32_t i = 0; sum != NULL && i < dim; i++)
            sum[at + i] = row[i];
        norm_row(dim, row, w, eps, out + at);
    }
    free(row);
}

void ref_gated_norm(uint32_t rows, uint32_t dim, const double *o, const double *gate,
                    size_t gate_stride, int gate_is_sigmoid, const float *w, double eps,
                    double *out)
{
    if (gate_stride == 0)
        gate_stride = dim;
    double *row = ref_alloc(dim);
    for (uint32_t r = 0; r < rows; r++) {
        const double *g = gate + (size_t)r * gate_stride;
        norm_row(dim, o + (size_t)r * dim, w, eps, row);
        for (uint32_t i = 0; i < dim; i++)
            out[(size_t)r * dim + i] = (gate_is_sigmoid ? g[i] : ref_sigmoid(g[i])) * row[i];
    }
    free(row);
}
