/* Importance matrices: what the columns of a model's matrices are multiplied with, from a file. */
#ifndef FULGUR_MODEL_IMATRIX_H
#define FULGUR_MODEL_IMATRIX_H

#include "format/tensors.h"

typedef struct imatrix imatrix;

ful_result imatrix_open(const ful_alloc *a, const char *path, imatrix **out);
/* The same of a whole file's bytes, which stay the caller's and must outlive it. */
ful_result imatrix_read(const ful_alloc *a, const char *name, const void *data, uint64_t bytes,
                        imatrix **out);
/* [matrices][cols] mean squared inputs of a tensor under its name in a model's GGUF, zeros of a
 * matrix that none came to; valid until the file is closed. False if there are none
 * (*values is NULL) or of another shape (*values is not). */
bool imatrix_find(const imatrix *im, const char *name, uint64_t cols, uint64_t matrices,
                  const float **values);
void imatrix_close(imatrix **im);

#endif
