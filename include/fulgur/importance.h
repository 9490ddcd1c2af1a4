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

#ifdef __cplusplus
}
#endif

#endif
