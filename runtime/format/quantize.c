#include "format/quantize.h"

#include <math.h>
#include <stdatomic.h>

#include "base/alloc.h"
#include "format/quant.h"

enum { PART_BYTES = 4 << 20 };

/* A part: some rows, coded by whoever comes, then written. */
typedef struct part {
    const quantize_params *params;
    uint64_t from_bytes, to_bytes; /* of a row */
    uint64_t first, rows;
    uint8_t *out;       /* [rows, to_bytes] */
    float *floats;      /* [threads, 2, cols], the second for what was written */
    double *errors;     /* [rows, 2], or NULL */
    atomic_uint thread; /* that came */
    atomic_ullong next; /* row of the part */
    atomic_ullong bad;  /* the first row of the part that has an unfit value, or rows */
} part;

static void row_error(const part *p, uint64_t row, const float *read, float *written)
{
    const uint64_t cols = p->params->cols;
    double squares = 0, of = 0;
    row_to_floats(p->params->to, p->out + row * p->to_bytes, cols, written);
    for (uint64_t i = 0; i < cols; i++) {
        double e = (double)written[i] - (double)read[i];
        squares += e * e;
        of += (double)read[i] * (double)read[i];
    }
    p->errors[2 * row] = squares;
    p->errors[2 * row + 1] = of;
}

static void part_work(void *ctx)
{
    part *p = ctx;
    const quantize_params *q = p->params;
    float *floats = p->floats + 2 * q->cols * atomic_fetch_add(&p->thread, 1);
    for (;;) {
        const uint64_t row = atomic_fetch_add(&p->next, 1);
        if (row >= p->rows)
            return;
        const uint64_t at = p->first + row;
        row_to_floats(q->from, (const uint8_t *)q->data + at * p->from_bytes, q->cols, floats);
        if (quant_find_unfit(q->to, floats, q->cols) < q->cols) {
            unsigned long long bad = atomic_load(&p->bad);
            while (row < bad && !atomic_compare_exchange_weak(&p->bad, &bad, row))
                ;
            continue;
        }
        const float *importance = q->importance;
        if (importance && q->importance_rows)
            importance += at / q->importance_rows * q->cols;
        row_from_floats(q->to, floats, q->cols, importance, p->out + row * p->to_bytes);
        if (p->errors)
            row_error(p, row, floats, floats + q->cols);
    }
}

static ful_result unfit(const part *p)
{
    const quantize_params *q = p->params;
    const uint64_t row = p->first + atomic_load(&p->bad);
    row_to_floats(q->from, (const uint8_t *)q->data + row * p->from_bytes, q->cols, p->floats);
    const uint64_t col = quant_find_unfit(q->to, p->floats, q->cols);
    const double value = (double)p->floats[col];
    const char *path = q->path ? q->path : "", *colon = q->path ? ": " : "";
    const unsigned long long index = row * q->cols + col;
    if (!isfinite(value))
        return fail(FUL_ERR_FORMAT,
                    "%s%stensor %s: row %llu, column %llu (index %llu) is %g, which is not finite",
                    path, colon, q->name, (unsigned long long)row, (unsigned long long)col, index,
                    value);
    return fail(FUL_ERR_FORMAT,
                "%s%stensor %s: row %llu, column %llu (index %llu) is %g; %s holds at most %g",
                path, colon, q->name, (unsigned long long)row, (unsigned long long)col, index,
                value, ful_type_name(q->to), (double)quant_largest(q->to));
}

static ful_result parts_run(team *t, part *p, uint64_t most_rows, quantize_write_fn write,
                            void *ctx, quantize_error *error)
{
    const quantize_params *q = p->params;
    for (p->first = 0; p->first < q->rows; p->first += p->rows) {
        p->rows = q->rows - p->first < most_rows ? q->rows - p->first : most_rows;
        atomic_store(&p->thread, 0);
        atomic_store(&p->next, 0);
        atomic_store(&p->bad, p->rows);
        team_run(t, part_work, p);
        if (atomic_load(&p->bad) < p->rows)
            return unfit(p);
        for (uint64_t row = 0; error && row < p->rows; row++) {
            error->squares += p->errors[2 * row];
            error->of += p->errors[2 * row + 1];
        }
        TRY(write(ctx, p->out, (size_t)(p->rows * p->to_bytes)));
    }
    return FUL_OK;
}

static ful_result shape_check(const quantize_params *q)
{
    const ful_type types[2] = {q->from, q->to};
    for (unsigned i = 0; i < 2; i++) {
        const type_traits *traits = type_get(types[i]);
        if (!traits)
            return fail(FUL_ERR_ARGUMENT, "tensor %s: no element type has the number %d", q->name,
                        (int)types[i]);
        if (q->cols == 0 || q->cols % traits->block_elements != 0)
            return fail(FUL_ERR_ARGUMENT,
                        "tensor %s: rows of %llu elements; blocks of %s need a multiple of %u",
                        q->name, (unsigned long long)q->cols, traits->name, traits->block_elements);
    }
    return FUL_OK;
}

ful_result tensor_quantize(const ful_alloc *a, team *t, const quantize_params *params,
                           quantize_write_fn write, void *ctx, quantize_error *error)
{
    TRY(shape_check(params));
    part p = {.params = params,
              .from_bytes = type_row_bytes(params->from, params->cols),
              .to_bytes = type_row_bytes(params->to, params->cols)};
    if (error)
        *error = (quantize_error){0, 0};
    if (params->rows == 0)
        return FUL_OK;
    uint64_t bytes = 0;
    uint64_t most_rows = (params->part_bytes ? params->part_bytes : PART_BYTES) / p.to_bytes;
    most_rows = most_rows < 1 ? 1 : most_rows > params->rows ? params->rows : most_rows;
    const size_t threads = team_size(t);
    if (!size_mul(2 * threads * sizeof(float), params->cols, &bytes) || bytes > SIZE_MAX)
        return mem_fail(SIZE_MAX, "rows of floats");
    p.out = mem_array(a, (size_t)most_rows, (size_t)p.to_bytes);
    p.floats = mem_alloc(a, (size_t)bytes);
    p.errors = error ? mem_array(a, (size_t)most_rows, 2 * sizeof *p.errors) : NULL;
    ful_result result;
    if (!p.out || !p.floats || (error && !p.errors))
        result = mem_fail((size_t)(most_rows * p.to_bytes + bytes), "a part of a quantised tensor");
    else
        result = parts_run(t, &p, most_rows, write, ctx, error);
    mem_free(a, p.errors);
    mem_free(a, p.floats);
    mem_free(a, p.out);
    return result;
}
