/* Activation slots in one arena, by lifetime: largest first, each at the lowest offset that is free
 * during its whole life. */
#include "schedule/steps.h"

enum { SLOT_ALIGN = 256 }; /* the largest offset alignment a device may ask for */

static bool lives_overlap(const slot *a, const slot *b)
{
    return a->first <= b->last && b->first <= a->last;
}

/* Lowest offset for `s` clear of the placed slots it lives together with. */
static uint64_t lowest_offset(const step_list *list, const uint32_t *order, size_t placed,
                              const slot *s)
{
    uint64_t at = 0;
    for (bool moved = true; moved;) {
        moved = false;
        for (size_t i = 0; i < placed; i++) {
            const slot *p = &list->slots[order[i]];
            if (lives_overlap(p, s) && at < p->offset + p->bytes && p->offset < at + s->bytes) {
                at = p->offset + p->bytes;
                moved = true;
            }
        }
    }
    return at;
}

ful_result slots_place(step_list *list)
{
    size_t n = list->slot_count;
    uint32_t *order = mem_array(list->alloc, n ? n : 1, sizeof *order);
    if (!order)
        return mem_fail(n * sizeof *order, "placing activations");
    for (size_t i = 0; i < n; i++) {
        slot *s = &list->slots[i];
        s->bytes = (s->bytes + SLOT_ALIGN - 1) / SLOT_ALIGN * SLOT_ALIGN;
        size_t at = i;
        for (; at > 0 && list->slots[order[at - 1]].bytes < s->bytes; at--)
            order[at] = order[at - 1];
        order[at] = (uint32_t)i;
    }
    list->arena_bytes = 0;
    list->largest_bytes = 0;
    for (size_t i = 0; i < n; i++) {
        slot *s = &list->slots[order[i]];
        s->offset = lowest_offset(list, order, i, s);
        if (s->offset + s->bytes > list->arena_bytes)
            list->arena_bytes = s->offset + s->bytes;
        if (s->bytes > list->largest_bytes)
            list->largest_bytes = s->bytes;
    }
    mem_free(list->alloc, order);
    return FUL_OK;
}
