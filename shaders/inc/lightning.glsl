// The decay table of a lightning layer, as op_lightning_decay_fill writes it: DECAY_STRIDE floats a head.
//     exp(-s r), r = 0..128 | at FADE_AT: expm1(-s r), r = 0..128 | at LOG_AT: s log2(e)
#ifndef FULGUR_INC_LIGHTNING
#define FULGUR_INC_LIGHTNING

const uint DECAY_STRIDE = 264;
const uint FADE_AT = 132;
const uint LOG_AT = 263;

#endif
