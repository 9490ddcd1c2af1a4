/* Steps into recorded commands: binds each step's slots, weights and sequence buffers to its op. */
#ifndef FULGUR_SCHEDULE_RECORD_H
#define FULGUR_SCHEDULE_RECORD_H

#include "schedule/steps.h"

typedef struct recorder {
    const step_list *list;
    const ful_model *model;
    const schedule_io *io;
    const sequence_state *state;
} recorder;

ful_result record_step(const recorder *r, gpu_commands *commands, const step *s);

/* Where a step's f32 output is; false if it has none (packed halves, copies). */
bool record_output(const recorder *r, const step *s, gpu_range *range, uint32_t *rows,
                   uint32_t *columns);
/* Where a mixture of experts leaves its hidden values, a row for each route; false for other steps,
 * and where it leaves none (op_moe_hidden). */
bool record_hidden(const recorder *r, const step *s, gpu_range *range, uint32_t *rows,
                   uint32_t *columns, bool *sorted);

#endif
