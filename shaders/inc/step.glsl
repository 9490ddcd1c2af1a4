// The parameters of this step, written by the host before each submission: step_params in
// runtime/ops/op.h. Members are single words, so std140 and C agree.
#ifndef FULGUR_INC_STEP
#define FULGUR_INC_STEP

layout(std140, set = 0, binding = 8) uniform step_block
{
    uint n_rows;    // rows of this step that are real
    uint position;  // position of row 0
    uint kv_tokens; // keys visible to the last row
    uint reserved0;
    float temperature;
    float top_p;
    float min_p;
    uint top_k;
    float uniform_draw; // in [0, 1)
    uint reserved1;
    uint reserved2;
    uint reserved3;
    uint reserved4;
    uint reserved5;
    uint reserved6;
    uint reserved7;
}
step;

#endif
