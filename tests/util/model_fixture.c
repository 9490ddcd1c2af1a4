#include "model_fixture.h"

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

op_shape model_fixture_shape = OP_SHAPE_AUTO;

bool model_fixture_open(model_fixture *f, const char *caps, const char *dir, bool half,
                        uint32_t chunk_tokens, size_t max_tokens)
{
    memset(f, 0, sizeof *f);
    f->half = half;
    fixture_open(&f->device, caps);
    if (half && !op_half_usable(f->device.device)) {
        fixture_close(&f->device);
        return false;
    }
    ful_plan plan;
    EXPECT_OK(
        ful_model_plan(f->device.instance, dir, f->device.device,
                       ful_plan_params(.max_tokens = max_tokens, .chunk_tokens = chunk_tokens,
                                       .decay = FUL_DECAY_HF,
                                       .precision = half ? FUL_PRECISION_F16 : FUL_PRECISION_F32),
                       &plan));
    EXPECT_OK(ful_model_load(&f->model, f->device.device, dir, &plan, NULL, NULL));
    f->model->shape = model_fixture_shape;
    EXPECT_OK(ful_session_create(&f->session, f->model, NULL));
    return true;
}

void model_fixture_close(model_fixture *f)
{
    ful_session_destroy(&f->session);
    ful_model_destroy(&f->model);
    fixture_close(&f->device);
}

/* ---- routing ---- */

typedef struct route {
    uint32_t expert;
    float weight;
} route;

static bool same_choice(const route *r, const uint32_t *experts, uint32_t k)
{
    for (uint32_t i = 0; i < k; i++) {
        bool found = false;
        for (uint32_t j = 0; j < k; j++)
            found |= r[i].expert == experts[j];
        if (!found)
            return false;
    }
    return true;
}

static void note_flip(routing_watch *w, size_t token, int32_t layer, double gap)
{
    /* What a flip changes reaches every later layer of its token and of those after it. */
    if (w->flip_token != SIZE_MAX && token >= w->flip_token && layer > w->flip_layer) {
        w->downstream++;
        return;
    }
    w->flips++;
    if (gap > w->largest_gap)
        w->largest_gap = gap;
    if (w->flip_token == SIZE_MAX || layer < w->flip_layer) {
        w->flip_token = token;
        w->flip_layer = layer;
    } else if (layer == w->flip_layer && token < w->flip_token) {
        w->flip_token = token;
    }
}

static void inject(const routing_watch *w, route *r, const float *logits, const uint32_t *experts)
{
    uint32_t k = w->trace->top_k;
    double top = -INFINITY, sum = 0.0;
    for (uint32_t i = 0; i < k; i++)
        top = fmax(top, logits[experts[i]]);
    for (uint32_t i = 0; i < k; i++)
        sum += exp(logits[experts[i]] - top);
    for (uint32_t i = 0; i < k; i++)
        r[i] = (route){experts[i], (float)(exp(logits[experts[i]] - top) / sum)};
}

static ful_result watch(void *ctx, const char *name, int32_t layer, gpu_range range, uint32_t rows,
                        uint32_t columns)
{
    routing_watch *w = ctx;
    ful_session *s = w->fixture->session;
    ful_device *device = w->fixture->device.device;
    if (strcmp(name, "router") == 0) {
        w->router_logits = realloc(w->router_logits, (size_t)rows * columns * sizeof(float));
        return gpu_range_read(device, range, 0, w->router_logits,
                              (uint64_t)rows * columns * sizeof(float));
    }
    if (strcmp(name, "routes") != 0)
        return FUL_OK;
    uint32_t k = w->trace->top_k, real = ((const step_params *)s->io.step.mapped)->n_rows;
    size_t first = s->token_count - w->first_token;
    route *routes = malloc((size_t)rows * k * sizeof *routes);
    EXPECT_OK(gpu_range_read(device, range, 0, routes, (uint64_t)rows * k * sizeof *routes));
    for (uint32_t r = 0; r < real && r < rows; r++) {
        size_t t = first + r;
        const uint32_t *experts = w->trace->experts[layer] + t * k;
        w->choices++;
        if (!same_choice(routes + (size_t)r * k, experts, k))
            note_flip(w, t, layer, w->trace->router_gap[layer][t]);
        if (w->inject)
            inject(w, routes + (size_t)r * k, w->router_logits + (size_t)r * w->trace->expert_count,
                   experts);
    }
    if (w->inject)
        EXPECT_OK(gpu_range_write(device, range, 0, routes, (uint64_t)rows * k * sizeof *routes));
    free(routes);
    return FUL_OK;
}

static schedule_tap watch_tap; /* one test at a time */

void routing_watch_begin(routing_watch *w, model_fixture *f, const ref_trace *trace,
                         bool inject_routes)
{
    memset(w, 0, sizeof *w);
    w->trace = trace;
    w->fixture = f;
    w->inject = inject_routes;
    w->first_token = f->session->token_count;
    w->flip_token = SIZE_MAX;
    watch_tap = (schedule_tap){.fn = watch, .ctx = w};
    f->session->tap = &watch_tap;
}

void routing_watch_end(routing_watch *w)
{
    w->fixture->session->tap = NULL;
    free(w->router_logits);
    w->router_logits = NULL;
}
