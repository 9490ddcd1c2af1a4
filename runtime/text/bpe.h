/* Byte-pair merging. */
#ifndef FULGUR_TEXT_BPE_H
#define FULGUR_TEXT_BPE_H

#include "base/alloc.h"

typedef struct bpe_merge {
    uint64_t pair; /* left token << 32 | right token; UINT64_MAX: an empty slot */
    uint32_t rank; /* lower merges first */
    int32_t token;
} bpe_merge;

/* Open-addressed; `slots` is a power of two. */
typedef struct bpe_table {
    bpe_merge *merges;
    size_t slots;
} bpe_table;

ful_result bpe_table_create(const ful_alloc *alloc, size_t n_merges, bpe_table *out);
void bpe_table_destroy(const ful_alloc *alloc, bpe_table *table);
/* A later merge of the same pair takes the place of an earlier one, as in the reference. At most
 * n_merges different pairs. */
void bpe_table_add(bpe_table *table, int32_t left, int32_t right, uint32_t rank, int32_t token);
/* NULL if the pair may not merge. */
const bpe_merge *bpe_table_find(const bpe_table *table, int32_t left, int32_t right);

typedef struct bpe_node bpe_node;

typedef struct bpe_scratch {
    const ful_alloc *alloc;
    bpe_node *nodes;
    size_t nodes_capacity;
    uint64_t *heap;
    size_t heap_capacity;
} bpe_scratch;

void bpe_scratch_release(bpe_scratch *scratch);

/* Merges tokens[0..*n) in place: always the pair of lowest rank, the leftmost of equal ones. O(n
 * log n). */
ful_result bpe_merge_all(const bpe_table *table, bpe_scratch *scratch, int32_t *tokens, size_t *n);

#endif
