/* The layer schedule: for one session and one bucket of rows, the steps of all layers, their
 * buffers placed by lifetime in one arena, recorded once and replayed. */
#ifndef FULGUR_SCHEDULE_SCHEDULE_H
#define FULGUR_SCHEDULE_SCHEDULE_H

#include "model/model.h"

/* Buffers that belong to a sequence and outlive a step. */
typedef struct sequence_state {
    gpu_buffer *lightning; /* [block_count]; bytes == 0 for softmax layers. Two states one after the
                              other where schedule_sides says so; the first counts */
    op_kv *kv;             /* [block_count]; window_count == 0 for lightning layers */
    uint32_t from, to;     /* decode: which of the two is read, which written; 0, 0: in place */
} sequence_state;

/* What a session shares among its schedules. */
typedef struct schedule_io {
    gpu_buffer step;     /* host: step_params */
    gpu_buffer tokens;   /* host: u32 [max rows] */
    gpu_buffer rope;     /* host: f32 [max rows][rotary_dim/2][2] */
    gpu_buffer logits;   /* device: f32 [logits_rows][vocab] */
    gpu_buffer readback; /* readback: the same */
    gpu_buffer sampled;  /* readback: u32 token, u32 flags */
    gpu_buffer arena;    /* activations: plan_memory's bytes of the largest bucket */
    uint32_t logits_rows;
} schedule_io;

typedef enum schedule_kind {
    SCHEDULE_DECODE = 0,      /* one row, logits of it */
    SCHEDULE_PREFILL = 1,     /* a chunk, logits of its last row */
    SCHEDULE_PREFILL_ALL = 2, /* a chunk, logits of all rows (at most logits_rows of them a step) */
    SCHEDULE_PREFILL_NONE = 3 /* a chunk that is not the last of its prompt: no logits */
} schedule_kind;

typedef struct schedule schedule;

/* States that a sequence has room for: 2 where decode steps can go ahead of the host, which may not
 * want their results. */
uint32_t schedule_sides(ful_device *device, const model_config *config, op_shape shape);

/* For tests and for looking into a model: called after each step has finished, with a host-readable
 * view of what it wrote (gpu_range_read); it may also overwrite it (routing injection). */
typedef struct schedule_tap {
    /* name: "embed", "norm1", "qkv", "mixer", "gated", "attn", "norm2", "router", "routes", "moe",
     * "final", "logits"; rows * columns f32 (routes: {u32, f32} pairs) at `range`. Before "moe"
     * also "moe hidden" if wanted and there: a row for each route, in their order; "moe sorted": by
     * expert, those of one in the order of the routes. */
    ful_result (*fn)(void *ctx, const char *name, int32_t layer, gpu_range range, uint32_t rows,
                     uint32_t columns);
    void *ctx;
    bool hidden; /* "moe hidden", too; FUL_ERR_UNSUPPORTED where it is not left */
} schedule_tap;

/* Buckets: 1 (decode); 8, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192
 * (prefill). */
uint32_t schedule_bucket(uint32_t rows);

/* What memory questions depend on before a model is loaded. */
typedef struct schedule_shape {
    ful_device *device;
    const model_config *config;
    bool half;
    ful_type weight_type; /* of the matrices */
    uint32_t kv_tokens;   /* the session's capacity */
} schedule_shape;

/* Bytes of the arena for a bucket of rows, without recording anything. */
ful_result schedule_arena_bytes(const schedule_shape *shape, uint32_t rows, uint64_t *arena_bytes);
/* The same for a loaded model, whose weights may be of several types. */
ful_result schedule_arena_bytes_of(const ful_model *model, uint32_t rows, uint32_t kv_tokens,
                                   uint64_t *arena_bytes);
/* Largest bucket, at most `wanted`, whose activations each fit one binding and whose arena fits one
 * allocation. */
ful_result schedule_max_rows(const schedule_shape *shape, uint32_t wanted, uint32_t *rows);

/* sample: the last step draws a token into io->sampled and no logits are copied to io->readback. */
ful_result schedule_create(const ful_model *model, schedule_kind kind, uint32_t rows,
                           const schedule_io *io, const sequence_state *state, bool sample,
                           bool timed, schedule **out);
void schedule_destroy(schedule **s);
uint32_t schedule_rows(const schedule *s);
gpu_commands *schedule_commands(schedule *s); /* to submit, wait, and for times and counts */

/* The same steps, each submitted alone, with the tap after each. */
ful_result schedule_run_tapped(const ful_model *model, schedule_kind kind, uint32_t rows,
                               const schedule_io *io, const sequence_state *state,
                               const schedule_tap *tap);

/* Compiles every pipeline that sessions of this model will use, and tests those kernels among them
 * that were never tested here. If that quarantines some (gpu_trust_changes), a plan made before may
 * not hold. */
ful_result schedule_warm(const ful_model *model, uint32_t kv_tokens, ful_progress_fn progress,
                         void *ctx);

#endif
