/* Changed copies of checkpoints, for tests of bad input. */
#ifndef TESTS_UTIL_CHECKPOINT_H
#define TESTS_UTIL_CHECKPOINT_H

#include "format/tensors.h"

/* One tensor on its way into the copy; the callback may change anything (data is its own copy, of
 * `bytes` bytes). */
typedef struct checkpoint_tensor {
    char name[160], type[8];
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS];
    uint64_t bytes;
    uint8_t *data;
    bool drop;
} checkpoint_tensor;

typedef void (*checkpoint_edit)(void *ctx, checkpoint_tensor *tensor);

/* Writes a copy of the checkpoint in `source` as one file under a new temporary folder, whose name
 * is put into dir[256]. In config.json the text `find` (if not NULL; it must be there) is replaced.
 */
void checkpoint_copy(const char *source, checkpoint_edit edit, void *ctx, const char *find,
                     const char *replace, char *dir);
/* Fails the test unless every one of the words, ended by NULL, is in ful_last_error(). */
void expect_error_words(const char *first, ...);

/* Deletes a folder that checkpoint_copy made. */
void checkpoint_remove(const char *dir);

#endif
