/* Sums of squares of what the matrices are multiplied with: a prefill step by step, with a look at
 * the inputs of each product. */
#include "fulgur/importance.h"

#include <string.h>

#include "session/importance.h"

/* Hands out parts of the room in order; counts them if there is none yet. */
static size_t deal(ful_importance *m, double *room)
{
    const model_config *c = &m->model->config;
    uint32_t inner = c->head_count * c->head_dim;
    size_t used = 0;
#define DEAL(s, n)                                                                                 \
    do {                                                                                           \
        if (room)                                                                                  \
            (s) = (importance_sums){.squares = room + used, .columns = (n)};                       \
        used += (n);                                                                               \
    } while (0)
    for (uint32_t i = 0; i < c->block_count; i++) {
        DEAL(m->layers[i].in, c->hidden_size);
        DEAL(m->layers[i].out, inner);
        DEAL(m->layers[i].router, c->hidden_size);
        for (uint32_t e = 0; e < c->expert_count; e++) {
            DEAL(m->layers[i].expert_in[e], c->hidden_size);
            DEAL(m->layers[i].expert_out[e], c->intermediate_size);
        }
    }
    DEAL(m->head, c->hidden_size);
#undef DEAL
    return used;
}

ful_result ful_importance_create(ful_importance **out, ful_model *model)
{
    if (!out || !model)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_create: out and model must not be NULL");
    *out = NULL;
    if (model_half(model))
        return fail(FUL_ERR_UNSUPPORTED,
                    "importance is collected in f32 arithmetic: load the model with "
                    "FUL_PRECISION_F32");
    const ful_alloc *a = device_alloc(model->device);
    const model_config *c = &model->config;
    ful_importance *m = mem_zalloc(a, 1, sizeof *m);
    if (!m)
        return mem_fail(sizeof *m, "importance");
    m->model = model;
    m->alloc = a;
    m->layers = mem_zalloc(a, c->block_count, sizeof *m->layers);
    bool ok = m->layers != NULL;
    for (uint32_t i = 0; ok && i < c->block_count; i++) {
        m->layers[i].expert_in = mem_zalloc(a, c->expert_count, sizeof(importance_sums));
        m->layers[i].expert_out = mem_zalloc(a, c->expert_count, sizeof(importance_sums));
        ok = m->layers[i].expert_in && m->layers[i].expert_out;
    }
    size_t count = ok ? deal(m, NULL) : 0;
    m->room = ok ? mem_zalloc(a, count, sizeof *m->room) : NULL;
    if (!m->room) {
        ful_importance_destroy(&m);
        return mem_fail(count * sizeof(double), "importance");
    }
    deal(m, m->room);
    *out = m;
    return FUL_OK;
}

void ful_importance_destroy(ful_importance **importance)
{
    if (!importance || !*importance)
        return;
    ful_importance *m = *importance;
    const ful_alloc *a = m->alloc;
    for (uint32_t i = 0; m->layers && i < m->model->config.block_count; i++) {
        mem_free(a, m->layers[i].expert_in);
        mem_free(a, m->layers[i].expert_out);
    }
    mem_free(a, m->layers);
    mem_free(a, m->room);
    mem_free(a, m->values);
    mem_free(a, m->experts);
    mem_free(a, m->routes);
    for (uint32_t i = 0; i < m->dataset_count; i++)
        mem_free(a, m->datasets[i]);
    mem_free(a, m->datasets);
    mem_free(a, m);
    *importance = NULL;
}

static void add_row(importance_sums *s, const float *x)
{
    for (uint32_t i = 0; i < s->columns; i++)
        s->squares[i] += (double)x[i] * x[i];
    s->rows++;
}

static void add_rows(importance_sums *s, const float *x, uint32_t rows)
{
    for (uint32_t r = 0; r < rows; r++)
        add_row(s, x + (size_t)r * s->columns);
}

static ful_result read_values(ful_importance *m, gpu_range range, size_t n)
{
    if (!mem_grow(m->alloc, (void **)&m->values, &m->capacity, n, sizeof *m->values))
        return mem_fail(n * sizeof *m->values, "activations");
    return gpu_range_read(m->model->device, range, 0, m->values, n * sizeof *m->values);
}

/* What the experts' first matrices gave, by the routes that were seen before. */
static ful_result look_at_hidden(ful_importance *m, importance_layer *l, gpu_range range,
                                 bool sorted)
{
    const model_config *c = &m->model->config;
    size_t n = (size_t)((const step_params *)m->session->io.step.mapped)->n_rows * c->top_k;
    TRY(read_values(m, range, n * c->intermediate_size));
    const float *x = m->values;
    /* Sorted rows: once through the routes for each expert. */
    for (uint32_t turn = 0; turn < (sorted ? c->expert_count : 1); turn++)
        for (size_t i = 0; i < n; i++) {
            uint32_t expert = m->routes[i].expert;
            if ((sorted && expert != turn) || expert >= c->expert_count)
                continue;
            add_row(&l->expert_out[expert], sorted ? x : m->values + i * c->intermediate_size);
            x += c->intermediate_size;
        }
    return FUL_OK;
}

static ful_result look_at(void *ctx, const char *name, int32_t layer, gpu_range range,
                          uint32_t rows, uint32_t columns)
{
    ful_importance *m = ctx;
    const model_config *c = &m->model->config;
    uint32_t real = ((const step_params *)m->session->io.step.mapped)->n_rows;
    real = real < rows ? real : rows;
    if (layer < 0) {
        if (strcmp(name, "final") != 0)
            return FUL_OK;
        TRY(read_values(m, range, (size_t)real * columns));
        add_rows(&m->head, m->values, real);
        return FUL_OK;
    }
    importance_layer *l = &m->layers[layer];
    bool lightning = c->layers[layer] == LAYER_LIGHTNING;
    if (strcmp(name, "norm1") == 0) {
        TRY(read_values(m, range, (size_t)real * columns));
        add_rows(&l->in, m->values, real);
    } else if (strcmp(name, lightning ? "gated" : "mixer") == 0) {
        TRY(read_values(m, range, (size_t)real * columns));
        add_rows(&l->out, m->values, real);
    } else if (strcmp(name, "norm2") == 0) {
        size_t n = (size_t)real * columns;
        TRY(read_values(m, range, n));
        add_rows(&l->router, m->values, real);
        if (!mem_grow(m->alloc, (void **)&m->experts, &m->experts_capacity, n, sizeof(float)))
            return mem_fail(n * sizeof(float), "activations");
        memcpy(m->experts, m->values, n * sizeof(float));
    } else if (strcmp(name, "routes") == 0) {
        size_t n = (size_t)real * c->top_k;
        if (!mem_grow(m->alloc, (void **)&m->routes, &m->routes_capacity, n, sizeof *m->routes))
            return mem_fail(n * sizeof *m->routes, "routes");
        TRY(gpu_range_read(m->model->device, range, 0, m->routes, n * sizeof *m->routes));
        for (size_t i = 0; i < n; i++)
            if (m->routes[i].expert < c->expert_count)
                add_row(&l->expert_in[m->routes[i].expert],
                        m->experts + i / c->top_k * c->hidden_size);
    } else if (strncmp(name, "moe ", 4) == 0) {
        return look_at_hidden(m, l, range, strcmp(name, "moe sorted") == 0);
    }
    return FUL_OK;
}

static bool go_on(void *ctx, size_t row, const float *logits, size_t n)
{
    (void)ctx, (void)row, (void)logits, (void)n;
    return true;
}

ful_result ful_importance_collect(ful_importance *importance, ful_session *session,
                                  const int32_t *tokens, size_t n_tokens)
{
    if (!importance || !session || (!tokens && n_tokens))
        return fail(FUL_ERR_ARGUMENT,
                    "ful_importance_collect: importance, session and tokens must not be NULL");
    if (session->model != importance->model)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_importance_collect: the session is of another model than the importance");
    const schedule_tap tap = {.fn = look_at, .ctx = importance, .hidden = true},
                       *before = session->tap;
    importance->session = session;
    session->tap = &tap;
    ful_result r = ful_prefill_logits(session, tokens, n_tokens, go_on, NULL);
    session->tap = before;
    importance->session = NULL;
    return r;
}

ful_result ful_importance_get(const ful_importance *importance, ful_matrix matrix, uint32_t layer,
                              uint32_t expert, const double **squares, size_t *columns,
                              uint64_t *rows)
{
    if (!importance || !squares || !columns || !rows)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_get: nothing may be NULL");
    const model_config *c = &importance->model->config;
    bool experts = matrix == FUL_MATRIX_EXPERT_IN || matrix == FUL_MATRIX_EXPERT_OUT;
    if (matrix != FUL_MATRIX_HEAD && layer >= c->block_count)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_get: layer %u of %u", (unsigned)layer,
                    (unsigned)c->block_count);
    if (experts && expert >= c->expert_count)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_get: expert %u of %u", (unsigned)expert,
                    (unsigned)c->expert_count);
    const importance_sums *s = &importance->head;
    const importance_layer *l = matrix == FUL_MATRIX_HEAD ? NULL : &importance->layers[layer];
    switch (matrix) {
    case FUL_MATRIX_HEAD:
        break;
    case FUL_MATRIX_ATTENTION_IN:
        s = &l->in;
        break;
    case FUL_MATRIX_ATTENTION_OUT:
        s = &l->out;
        break;
    case FUL_MATRIX_ROUTER:
        s = &l->router;
        break;
    case FUL_MATRIX_EXPERT_IN:
        s = &l->expert_in[expert];
        break;
    case FUL_MATRIX_EXPERT_OUT:
        s = &l->expert_out[expert];
        break;
    default:
        return fail(FUL_ERR_ARGUMENT, "ful_importance_get: matrix %d", (int)matrix);
    }
    *squares = s->squares;
    *columns = s->columns;
    *rows = s->rows;
    return FUL_OK;
}
