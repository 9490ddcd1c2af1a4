/* Importance: how strongly a text drives each column of a model's matrices, as sums of squares of
 * what the columns are multiplied with. Quantisers weigh their errors with it.
 *
 * One object collects over any number of texts and sessions of one model, on one thread at a time.
 */
#ifndef FULGUR_IMPORTANCE_H
#define FULGUR_IMPORTANCE_H

#include "fulgur/session.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct ful_importance ful_importance;

/* Of a model that was loaded with FUL_PRECISION_F32 (FUL_ERR_UNSUPPORTED otherwise: rounded
 * activations would be counted), which it must not outlive. */
FUL_API ful_result ful_importance_create(ful_importance **out, ful_model *model);
FUL_API void ful_importance_destroy(ful_importance **importance);

/* Feeds tokens to the session as ful_prefill does and adds what every matrix sees of them. Slow:
 * every op is waited for and read back. After an error the session is to be reset; what was
 * collected before the chunk at hand stays, of that chunk some layers may have been counted. */
FUL_API ful_result ful_importance_collect(ful_importance *importance, ful_session *session,
                                          const int32_t *tokens, size_t n_tokens);

/* Matrices whose inputs are told apart. */
typedef enum ful_matrix {
    FUL_MATRIX_ATTENTION_IN = 0,  /* q, k, v and gate of a layer */
    FUL_MATRIX_ATTENTION_OUT = 1, /* output projection */
    FUL_MATRIX_ROUTER = 2,
    FUL_MATRIX_EXPERT_IN = 3,  /* W1 and W3 of one expert */
    FUL_MATRIX_EXPERT_OUT = 4, /* W2 of one expert */
    FUL_MATRIX_HEAD = 5        /* layer is not looked at */
} ful_matrix;

/* squares[column] = sum of x^2 over *rows rows seen so far (0: an expert no token was sent to).
 * Borrowed until the object changes. expert: not looked at where there is none. */
FUL_API ful_result ful_importance_get(const ful_importance *importance, ful_matrix matrix,
                                      uint32_t layer, uint32_t expert, const double **squares,
                                      size_t *columns, uint64_t *rows);

/* ---- files ---- */

/* What a file says of its texts: a name, and how many pieces of how many tokens at most were fed.
 * Names and pieces of several calls add up; the length of pieces is the last. */
FUL_API ful_result ful_importance_note(ful_importance *importance, const char *dataset,
                                       uint32_t chunk_count, uint32_t chunk_tokens);

/* Writes a GGUF as llama.cpp lays importance matrices out, which ful_convert_params.importance_path
 * takes: keys general.type = "imatrix", imatrix.datasets, imatrix.chunk_count, imatrix.chunk_size;
 * for every matrix under its name in a model's GGUF NAME.in_sum2, f32 [experts or 1][columns], and
 * NAME.counts, f32 [experts or 1][1]: sums of squares, and of how many rows. Matrices that read the
 * same rows (q, k, v and gate; W1 and W3) have the same. A tied head is under the embedding's name.
 *
 * The file takes its name when it is whole; FUL_ERR_IO if the name is taken. */
FUL_API ful_result ful_importance_write(const ful_importance *importance, const char *path);

/* Adds what a file has, as if its texts had been collected here, up to the rounding of its f32
 * numbers. Matrices it lacks stay as they are. FUL_ERR_FORMAT, and nothing is added: it is no
 * importance matrix or has no matrix of the model, a shape is another one, or a number is negative
 * or not finite. */
FUL_API ful_result ful_importance_read(ful_importance *importance, const char *path);

#ifdef __cplusplus
}
#endif

#endif
