/* A checkpoint loaded on a device for tests, next to the double-precision reference, with a tap
 * that records or injects what a step computes. */
#ifndef TESTS_UTIL_MODEL_FIXTURE_H
#define TESTS_UTIL_MODEL_FIXTURE_H

#include "../ref/ref_model.h"
#include "device_fixture.h"
#include "session/session.h"

typedef struct model_fixture {
    device_fixture device;
    ful_model *model;
    ful_session *session;
    bool half;
} model_fixture;

/* How the kernels of models opened from now on spread (op_shape); OP_SHAPE_AUTO at first. */
extern op_shape model_fixture_shape;

/* Opens a device under `caps` and loads `dir` with the HF decay rule, which goldens and demo model
 * were made with. chunk 0 = default. False (after closing everything) if half was asked for and the
 * device can't. */
bool model_fixture_open(model_fixture *f, const char *caps, const char *dir, bool half,
                        uint32_t chunk_tokens, size_t max_tokens);
void model_fixture_close(model_fixture *f);

/* Routing of the device against the reference's, gathered by a tap over any number of steps. */
typedef struct routing_watch {
    const ref_trace *trace; /* of all tokens fed while watching */
    model_fixture *fixture;
    bool inject; /* overwrite the device's choice by the reference's; weights come from the device's
                    logits */
    float *router_logits; /* of the step at hand */
    uint32_t rows;
    size_t first_token; /* session's tokens when the trace began */
    uint64_t choices, flips,
        downstream;     /* (token, layer) pairs; flips not caused by an earlier one; the others */
    double largest_gap; /* reference gap of a flip */
    size_t flip_token;  /* first token and layer flipped so far; SIZE_MAX: none */
    int32_t flip_layer;
} routing_watch;

void routing_watch_begin(routing_watch *w, model_fixture *f, const ref_trace *trace, bool inject);
void routing_watch_end(routing_watch *w);

#endif
