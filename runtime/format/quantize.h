/* One tensor from one type into another, in parts of bounded size. */
#ifndef FULGUR_FORMAT_QUANTIZE_H
#define FULGUR_FORMAT_QUANTIZE_H

#include "base/team.h"
#include "base/types.h"

typedef struct quantize_params {
    const char *name; /* of the tensor, for errors */
    ful_type from, to;
    const void *data; /* [rows, cols] of `from`, rows one after the other; any alignment */
    uint64_t rows, cols;
    /* NULL, or a vector of `cols` for every `importance_rows` rows (as experts in one tensor have);
     * 0: one for all */
    const float *importance;
    uint64_t importance_rows;
    size_t part_bytes; /* of the result, held before they are written; 0: 4 MiB */
    const char *path;  /* NULL, or the file that has it, for errors */
} quantize_params;

/* Takes the next bytes of the result, in order, on the thread that called tensor_quantize. Its
 * failure ends the work and is returned. */
typedef ful_result (*quantize_write_fn)(void *ctx, const void *bytes, size_t count);

typedef struct quantize_error {
    /* sums over all elements, of (written - read)^2 and of read^2 */
    double squares, of;
} quantize_error;

/* Rows are coded on the team's threads; the bytes do not depend on how many they are. Holds a part
 * of the result, at least a row, and two rows of floats for each thread. FUL_ERR_ARGUMENT: cols no
 * multiple of a type's block; FUL_ERR_FORMAT: a value that is not finite or that `to` can't hold,
 * named with its row, column and index in the tensor; what was written before it stays. `error`:
 * NULL, or what the coding cost, which takes decoding, too. */
ful_result tensor_quantize(const ful_alloc *a, team *t, const quantize_params *params,
                           quantize_write_fn write, void *ctx, quantize_error *error);

#endif
