/* What the files of ful_device_tune share. */
#ifndef FULGUR_OPS_TUNE_H
#define FULGUR_OPS_TUNE_H

#include "ops/op_common.h"
#include "ops/tuning.h"

/* What one kind of work needs, made once for all choices that it decides. */
typedef struct workbench {
    ful_device *device;
    op_context ctx; /* commands: those to record into */
    tune_sizes sizes;
    tuning_work work;
    bool ready;
    gpu_buffer step, rope, x, half, scale, routes, decay, state;
    gpu_buffer out;
    gpu_buffer scratch;   /* enough for every candidate of the choice */
    gpu_tensor w, w2;     /* dense; w2 back from what w leads to */
    gpu_tensor w13, down; /* experts */
    op_kv kv;
    float *want, *got; /* [out_count] */
    uint64_t out_count;
} workbench;

/* Allocates and fills; ends what was there before. */
ful_result work_begin(workbench *t, tuning_work work);
void work_end(workbench *t);
/* Inputs that a run changes, and all others, as they were at first. */
ful_result work_inputs(workbench *t, tuning_work work);
/* Pairs of rows and experts. */
ful_result work_routes(workbench *t, tuning_work work, uint32_t rows);
uint32_t work_rows(const workbench *t, const tuning_field *f);
uint64_t work_outputs(const workbench *t, const tuning_field *f); /* floats */
uint64_t work_scratch_bytes(const workbench *t, const tuning_field *f);
ful_result work_record(workbench *t, const tuning_field *f); /* once */
ful_result work_run(gpu_commands *commands);

#endif
