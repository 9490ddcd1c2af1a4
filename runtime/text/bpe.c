#include "text/bpe.h"

#include <string.h>

enum {
    SHORT_PIECE = 32 /* up to here a scan for the lowest rank beats the heap */
};

static const uint32_t NO_MERGE = UINT32_MAX;
static const uint32_t NO_NODE = UINT32_MAX;

struct bpe_node {
    uint32_t previous, next;
    int32_t token;
    uint32_t rank; /* of the merge with `next`; NO_MERGE if there is none or the
                      node is gone */
};

static uint64_t pair_of(int32_t left, int32_t right)
{
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static size_t slot_of(const bpe_table *table, uint64_t pair)
{
    uint64_t h = pair * UINT64_C(0x9E3779B97F4A7C15);
    h ^= h >> 32;
    return (size_t)h & (table->slots - 1);
}

ful_result bpe_table_create(const ful_alloc *alloc, size_t n_merges, bpe_table *out)
{
    size_t slots = 16;
    while (slots / 2 < n_merges)
        slots *= 2;
    out->merges = mem_array(alloc, slots, sizeof *out->merges);
    if (out->merges == NULL)
        return mem_fail(slots * sizeof *out->merges, "merges");
    out->slots = slots;
    memset(out->merges, 0xFF, slots * sizeof *out->merges);
    return FUL_OK;
}

void bpe_table_destroy(const ful_alloc *alloc, bpe_table *table)
{
    mem_free(alloc, table->merges);
    *table = (bpe_table){0};
}

void bpe_table_add(bpe_table *table, int32_t left, int32_t right, uint32_t rank, int32_t token)
{
    uint64_t pair = pair_of(left, right);
    size_t i = slot_of(table, pair);
    while (table->merges[i].pair != UINT64_MAX && table->merges[i].pair != pair)
        i = (i + 1) & (table->slots - 1);
    table->merges[i] = (bpe_merge){.pair = pair, .rank = rank, .token = token};
}

const bpe_merge *bpe_table_find(const bpe_table *table, int32_t left, int32_t right)
{
    uint64_t pair = pair_of(left, right);
    size_t i = slot_of(table, pair);
    for (; table->merges[i].pair != UINT64_MAX; i = (i + 1) & (table->slots - 1))
        if (table->merges[i].pair == pair)
            return &table->merges[i];
    return NULL;
}

void bpe_scratch_release(bpe_scratch *scratch)
{
    mem_free(scratch->alloc, scratch->nodes);
    mem_free(scratch->alloc, scratch->heap);
    *scratch = (bpe_scratch){.alloc = scratch->alloc};
}

static size_t merge_short(const bpe_table *table, int32_t *tokens, size_t n)
{
    const bpe_merge *merge[SHORT_PIECE];
    for (size_t i = 0; i + 1 < n; i++)
        merge[i] = bpe_table_find(table, tokens[i], tokens[i + 1]);
    while (n > 1) {
        size_t best = n;
        uint32_t rank = NO_MERGE;
        for (size_t i = 0; i + 1 < n; i++) {
            if (merge[i] != NULL && merge[i]->rank < rank) {
                rank = merge[i]->rank;
                best = i;
            }
        }
        if (best == n)
            break;
        tokens[best] = merge[best]->token;
        n--;
        memmove(tokens + best + 1, tokens + best + 2, (n - best - 1) * sizeof *tokens);
        if (best + 1 < n) {
            memmove(merge + best + 1, merge + best + 2, (n - best - 2) * sizeof(merge[0]));
            merge[best] = bpe_table_find(table, tokens[best], tokens[best + 1]);
        }
        if (best > 0)
            merge[best - 1] = bpe_table_find(table, tokens[best - 1], tokens[best]);
    }
    return n;
}

static void heap_down(uint64_t *heap, size_t n, size_t i)
{
    uint64_t value = heap[i];
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= n)
            break;
        if (child + 1 < n && heap[child + 1] < heap[child])
            child++;
        if (heap[child] >= value)
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = value;
}

static void heap_push(uint64_t *heap, size_t *n, uint64_t value)
{
    size_t i = (*n)++;
    for (; i > 0 && heap[(i - 1) / 2] > value; i = (i - 1) / 2)
        heap[i] = heap[(i - 1) / 2];
    heap[i] = value;
}

static uint64_t heap_pop(uint64_t *heap, size_t *n)
{
    uint64_t top = heap[0];
    heap[0] = heap[--*n];
    if (*n > 0)
        heap_down(heap, *n, 0);
    return top;
}

/* Notes the merge of nodes[i] with its successor; true if there is one. */
static bool node_rank(const bpe_table *table, bpe_node *nodes, uint32_t i)
{
    const bpe_merge *merge = nodes[i].next == NO_NODE ? NULL
                                                      : bpe_table_find(table, nodes[i].token,
                                                                       nodes[nodes[i].next].token);
    nodes[i].rank = merge ? merge->rank : NO_MERGE;
    return merge != NULL;
}

static uint64_t heap_key(const bpe_node *nodes, uint32_t i)
{
    return (uint64_t)nodes[i].rank << 32 | i;
}

static ful_result merge_long(const bpe_table *table, bpe_scratch *scratch, int32_t *tokens,
                             size_t *n)
{
    if (*n >= NO_NODE / 3)
        return fail(FUL_ERR_ARGUMENT, "a run of %zu bytes without a place to split; at most %u", *n,
                    (unsigned)(NO_NODE / 3 - 1));
    uint32_t count = (uint32_t)*n;
    void *p = scratch->nodes;
    if (!mem_grow(scratch->alloc, &p, &scratch->nodes_capacity, count, sizeof(bpe_node)))
        return mem_fail(count * sizeof(bpe_node), "a long piece of text");
    scratch->nodes = p;
    /* One entry for each pair at the start and at most two for each merge. */
    p = scratch->heap;
    if (!mem_grow(scratch->alloc, &p, &scratch->heap_capacity, (size_t)count * 3, sizeof(uint64_t)))
        return mem_fail((size_t)count * 3 * sizeof(uint64_t), "a long piece of text");
    scratch->heap = p;

    bpe_node *nodes = scratch->nodes;
    uint64_t *heap = scratch->heap;
    size_t heap_n = 0;
    for (uint32_t i = 0; i < count; i++) {
        nodes[i].previous = i == 0 ? NO_NODE : i - 1;
        nodes[i].next = i + 1 == count ? NO_NODE : i + 1;
        nodes[i].token = tokens[i];
    }
    for (uint32_t i = 0; i < count; i++)
        if (node_rank(table, nodes, i))
            heap[heap_n++] = heap_key(nodes, i);
    for (size_t i = heap_n / 2; i-- > 0;)
        heap_down(heap, heap_n, i);
    while (heap_n > 0) {
        uint64_t key = heap_pop(heap, &heap_n);
        uint32_t i = (uint32_t)key;
        if (nodes[i].rank == NO_MERGE || heap_key(nodes, i) != key)
            continue; /* the pair it stood for is gone */
        uint32_t gone = nodes[i].next;
        nodes[i].token = bpe_table_find(table, nodes[i].token, nodes[gone].token)->token;
        nodes[i].next = nodes[gone].next;
        nodes[gone].rank = NO_MERGE;
        if (nodes[i].next != NO_NODE)
            nodes[nodes[i].next].previous = i;
        if (node_rank(table, nodes, i))
            heap_push(heap, &heap_n, heap_key(nodes, i));
        uint32_t before = nodes[i].previous;
        if (before != NO_NODE && node_rank(table, nodes, before))
            heap_push(heap, &heap_n, heap_key(nodes, before));
    }
    size_t kept = 0;
    for (uint32_t i = 0; i != NO_NODE; i = nodes[i].next)
        tokens[kept++] = nodes[i].token;
    *n = kept;
    return FUL_OK;
}

ful_result bpe_merge_all(const bpe_table *table, bpe_scratch *scratch, int32_t *tokens, size_t *n)
{
    if (*n > SHORT_PIECE)
        return merge_long(table, scratch, tokens, n);
    *n = merge_short(table, tokens, *n);
    return FUL_OK;
}
