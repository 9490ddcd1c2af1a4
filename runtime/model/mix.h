/* Which tensor of a model gets which type, for models of one named size. */
#ifndef FULGUR_MODEL_MIX_H
#define FULGUR_MODEL_MIX_H

#include "model/names.h"

typedef struct mix mix;

/* By its name ("q4_k_m", in any case), or NULL. */
const mix *mix_find(const char *name);
uint32_t mix_count(void);
const mix *mix_at(uint32_t index);
const char *mix_name(const mix *m);
uint32_t mix_file_type(const mix *m); /* its number in a GGUF's general.file_type */

/* The type of a role's tensor in layer `layer` of `layers` (both 0 outside layers) whose rows have
 * `cols` elements. Norms and routers are f32 in all mixes. Where cols is not a multiple of the
 * type's block, a type of smaller blocks and as many bits or more takes its place, and *wanted is
 * the type that the mix names; else FUL_TYPE_DEFAULT. */
ful_type mix_type(const mix *m, tensor_role role, uint32_t layer, uint32_t layers, uint64_t cols,
                  ful_type *wanted);
/* The same for a type that is named itself. */
ful_type mix_fit(ful_type named, uint64_t cols, ful_type *wanted);

#endif
