/* What a GGUF of this architecture calls things (model.md section 5), for reading and writing. */
#ifndef FULGUR_MODEL_GGUF_NAMES_H
#define FULGUR_MODEL_GGUF_NAMES_H

#define GGUF_ARCHITECTURE "minimax-01"
#define GGUF_KEY(name) GGUF_ARCHITECTURE "." name

/* Keys of this project's own: what the architecture's keys can't say, or say in 32 bits only. Each
 * may be absent. */
#define FULGUR_LIGHTNING_ALPHA "fulgur.lightning.alpha"               /* f64 */
#define FULGUR_LIGHTNING_BETA "fulgur.lightning.beta"                 /* f64 */
#define FULGUR_SOFTMAX_ALPHA "fulgur.softmax.alpha"                   /* f64 */
#define FULGUR_SOFTMAX_BETA "fulgur.softmax.beta"                     /* f64 */
#define FULGUR_MLP_ALPHA "fulgur.mlp.alpha"                           /* f64 */
#define FULGUR_MLP_BETA "fulgur.mlp.beta"                             /* f64 */
#define FULGUR_LIGHTNING_NORM_EPSILON "fulgur.lightning.norm_epsilon" /* f64 */
#define FULGUR_LIGHTNING_DECAY "fulgur.lightning.decay"               /* "orig" or "hf" */
#define FULGUR_NORM_EPSILON "fulgur.norm_epsilon"                     /* f64 */
#define FULGUR_ROPE_FREQ_BASE "fulgur.rope.freq_base"                 /* f64 */

#endif
