/* What importance collects, for its files. */
#ifndef FULGUR_SESSION_IMPORTANCE_H
#define FULGUR_SESSION_IMPORTANCE_H

#include "fulgur/importance.h"
#include "session/session.h"

/* One matrix, or one expert's. */
typedef struct importance_sums {
    double *squares; /* [columns] */
    uint32_t columns;
    uint64_t rows;
} importance_sums;

typedef struct importance_layer {
    importance_sums in, out, router;
    importance_sums *expert_in, *expert_out; /* [expert_count] */
} importance_layer;

struct ful_importance {
    ful_model *model;
    const ful_alloc *alloc;
    importance_layer *layers; /* [block_count] */
    importance_sums head;
    double *room; /* of all squares */

    char **datasets; /* names of texts that were counted */
    size_t dataset_capacity;
    uint32_t dataset_count;
    uint64_t chunks;
    uint32_t chunk_tokens;

    ful_session *session; /* fed now */
    float *values;        /* read back from one step */
    size_t capacity;
    float *experts; /* norm2's rows, until the routes are known */
    size_t experts_capacity;
    ful_route *routes;
    size_t routes_capacity;
};

#endif
