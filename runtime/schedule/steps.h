/* The schedule's own form: steps that name activation slots, and slots placed in the arena by
 * lifetime. */
#ifndef FULGUR_SCHEDULE_STEPS_H
#define FULGUR_SCHEDULE_STEPS_H

#include "schedule/schedule.h"

enum { NO_SLOT = -1, MAX_SLOTS_A_STEP = 10 };

typedef enum step_kind {
    STEP_EMBED,
    STEP_NORM,
    STEP_MATMUL,
    STEP_LIGHTNING,
    STEP_GATED_NORM,
    STEP_ATTENTION,
    STEP_PACK,
    STEP_ROUTE,
    STEP_MOE,
    STEP_COPY, /* logits to the readback buffer */
    STEP_SAMPLE
} step_kind;

/* An activation: f32 [rows][dim] in slot data, or packed halves in half with scales: one a row, or
 * with `block` one a block of so many columns. */
typedef struct value {
    int32_t data, half, scale;
    uint32_t dim, block;
} value;

typedef struct step {
    step_kind kind;
    const char *name; /* as the tap sees it */
    int32_t layer;
    value in;  /* what the op reads: x, qkv, o ... */
    value in2; /* second operand of norms (b), gate, routes of the MoE */
    value out;
    value normed; /* matmul with a norm: the normalised row, where later steps need it */
    value logits; /* experts, where they are still to be chosen; in2, the routes, is written then */
    int32_t scratch;
    float alpha, beta, eps;
    const gpu_buffer *vector; /* norm weights, decay */
    const gpu_tensor *weights, *weights2;
    op_act act;
    uint32_t split;
    bool norm;     /* matmul: in and in2 pass through a norm (vector, alpha, beta, eps) first ... */
    bool gated;    /* ... of this kind; in2 is the gate then */
    bool routed;   /* experts: logits are there */
    bool one_row;  /* works on the single row that a last_row norm left */
    bool last_row; /* is that norm */
    bool to_logits; /* out is io->logits */
} step;

typedef struct slot {
    uint64_t bytes;
    uint32_t first, last; /* steps that write it first and use it last */
    uint64_t offset;      /* in the arena */
} slot;

typedef struct step_list {
    const ful_alloc *alloc;
    step *steps;
    size_t step_count, step_capacity;
    slot *slots;
    size_t slot_count, slot_capacity;
    uint64_t arena_bytes;
    uint64_t largest_bytes; /* of one slot */
    uint32_t rows;
    schedule_kind kind;
    bool half;
} step_list;

/* What the builder needs to know. */
typedef struct step_source {
    ful_device *device;
    const model_config *config;
    const ful_model *model; /* NULL: sizes only */
    bool half;
    ful_type weight_type; /* of all matrices, where model is NULL */
    uint32_t kv_tokens;
    bool fused; /* norms may be part of the products behind them; not where a tap looks at each */
} step_source;

ful_result steps_build(const step_source *source, schedule_kind kind, uint32_t rows, bool sample,
                       step_list *out);
void steps_free(step_list *list);

/* Gives every slot an offset such that slots alive at the same time do not overlap; sets
 * arena_bytes. */
ful_result slots_place(step_list *list);

#endif
