/* One block with its codes apart, between files, devices, numbers and the search. */
#ifndef FULGUR_FORMAT_QUANT_BLOCK_H
#define FULGUR_FORMAT_QUANT_BLOCK_H

#include "format/quant.h"

enum { QUANT_MOST_ELEMENTS = 256 };

typedef struct quant_block {
    uint8_t codes[QUANT_MOST_ELEMENTS]; /* in order of elements; q8_0: signed */
    uint16_t d, m;                      /* fp16 scale, and minimum or its scale */
    /* q2_k, q4_k, q5_k: scales and minima of sub-blocks; q3_k: scales plus 32; q6_k: signed scales;
     * mxfp4: the exponent, in scales[0] */
    uint8_t scales[16], mins[16];
} quant_block;

/* The numbers that the codes of iq4_nl and mxfp4 stand for; mxfp4's are doubled. */
extern const int8_t quant_iq4_nl_values[16], quant_mxfp4_values[16];
/* Half of mxfp4's scale. */
float quant_mxfp4_half_scale(uint8_t exponent);

void quant_block_read(ful_type type, const uint8_t *file, quant_block *out);
void quant_block_write(ful_type type, const quant_block *block, uint8_t *file);
/* Of a row on the device, whose block `index` it is. */
void quant_block_read_device(ful_type type, const uint8_t *row, const type_planes *planes,
                             uint64_t index, quant_block *out);
void quant_block_decode(ful_type type, const quant_block *block, float *out);

/* The search: one block of 32, or of 256 elements; w: an importance for each, none below 0. */
void quant_search_32(ful_type type, const float *x, const float *w, quant_block *out);
void quant_search_256(ful_type type, const float *x, const float *w, quant_block *out);

#endif
