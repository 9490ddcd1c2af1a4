/* Importance matrices as llama.cpp keeps them in a GGUF: of every tensor NAME the sums of squares
 * NAME.in_sum2 [matrices][cols] and NAME.counts [matrices][1]. */
#include "model/imatrix.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

#define SUMS ".in_sum2"
#define COUNTS ".counts"

enum { NAME_BYTES = 256 };

typedef struct imatrix_entry {
    const char *name; /* with SUMS, the file's */
    uint64_t cols, matrices;
    float *values;
} imatrix_entry;

struct imatrix {
    ful_alloc alloc;
    tensor_file *file;
    imatrix_entry *entries;
    uint32_t count;
};

static bool is_sums(const char *name)
{
    const size_t n = strlen(name), end = sizeof SUMS - 1;
    return n > end && n < NAME_BYTES && strcmp(name + n - end, SUMS) == 0;
}

static ful_result entry_read(imatrix *im, const tensor_info *sums)
{
    imatrix_entry *e = &im->entries[im->count++];
    char name[NAME_BYTES];
    *e = (imatrix_entry){.name = sums->name,
                         .cols = sums->dims[sums->n_dims - 1],
                         .matrices = sums->n_dims == 2 ? sums->dims[0] : 1};
    snprintf(name, sizeof name, "%.*s" COUNTS, (int)(strlen(sums->name) - (sizeof SUMS - 1)),
             sums->name);
    const tensor_info *counts = tensor_file_find(im->file, name);
    if (sums->n_dims > 2 || sums->bytes == 0 || sums->type != FUL_TYPE_F32 || !counts ||
        counts->type != FUL_TYPE_F32 || counts->bytes / 4 != e->matrices)
        return fail(FUL_ERR_FORMAT, "%s: tensor %s has no f32 sums and counts of as many matrices",
                    sums->path, sums->name);
    e->values = mem_alloc(&im->alloc, (size_t)sums->bytes);
    if (!e->values)
        return mem_fail((size_t)sums->bytes, "importance of columns");
    memcpy(e->values, sums->data, (size_t)sums->bytes);
    for (uint64_t m = 0; m < e->matrices; m++) {
        const float count = element_to_float(FUL_TYPE_F32, counts->data + 4 * m);
        if (!(count >= 0 && isfinite(count)))
            return fail(FUL_ERR_FORMAT, "%s: tensor %s: %g at index %llu is no count of rows",
                        counts->path, counts->name, (double)count, (unsigned long long)m);
        for (uint64_t i = m * e->cols; i < (m + 1) * e->cols; i++) {
            const float mean = count > 0 ? e->values[i] / count : 0;
            if (!isfinite(e->values[i]) || !isfinite(mean) || mean < 0)
                return fail(FUL_ERR_FORMAT,
                            "%s: tensor %s: %g at index %llu, of %g rows, is no sum of squares",
                            sums->path, sums->name, (double)e->values[i], (unsigned long long)i,
                            (double)count);
            e->values[i] = mean;
        }
    }
    return FUL_OK;
}

static ful_result entries_read(imatrix *im, const char *path)
{
    const uint32_t tensors = tensor_file_count(im->file);
    im->entries = mem_array(&im->alloc, tensors, sizeof *im->entries);
    if (!im->entries)
        return mem_fail(tensors * sizeof *im->entries, "a list of tensors");
    for (uint32_t i = 0; i < tensors; i++)
        if (is_sums(tensor_file_at(im->file, i)->name))
            TRY(entry_read(im, tensor_file_at(im->file, i)));
    return im->count ? FUL_OK : fail(FUL_ERR_FORMAT, "%s: is no importance matrix", path);
}

static ful_result create(const ful_alloc *a, const char *path, imatrix **out)
{
    imatrix *im = *out = mem_zalloc(a, 1, sizeof *im);
    if (!im)
        return mem_fail(sizeof *im, path);
    im->alloc = mem_functions(a);
    return FUL_OK;
}

static ful_result finish(ful_result r, const char *path, imatrix **out)
{
    if (r == FUL_OK)
        r = entries_read(*out, path);
    if (r != FUL_OK)
        imatrix_close(out);
    return r;
}

ful_result imatrix_open(const ful_alloc *a, const char *path, imatrix **out)
{
    TRY(create(a, path, out));
    return finish(tensor_file_open(a, path, &(*out)->file), path, out);
}

ful_result imatrix_read(const ful_alloc *a, const char *name, const void *data, uint64_t bytes,
                        imatrix **out)
{
    TRY(create(a, name, out));
    return finish(tensor_file_read(a, name, data, bytes, &(*out)->file), name, out);
}

bool imatrix_find(const imatrix *im, const char *name, uint64_t cols, uint64_t matrices,
                  const float **values)
{
    char full[NAME_BYTES];
    *values = NULL;
    snprintf(full, sizeof full, "%s" SUMS, name);
    for (uint32_t i = 0; i < im->count; i++) {
        const imatrix_entry *e = &im->entries[i];
        if (strcmp(e->name, full) == 0) {
            *values = e->values;
            return e->cols == cols && e->matrices == matrices;
        }
    }
    return false;
}

void imatrix_close(imatrix **out)
{
    imatrix *im = out ? *out : NULL;
    if (!im)
        return;
    for (uint32_t i = 0; i < im->count; i++)
        mem_free(&im->alloc, im->entries[i].values);
    mem_free(&im->alloc, im->entries);
    tensor_file_close(&im->file);
    ful_alloc a = im->alloc;
    mem_free(&a, im);
    *out = NULL;
}
