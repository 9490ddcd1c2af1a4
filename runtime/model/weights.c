/* Weights from files onto the device: types stay as they are in the file, rows are laid out as the
 * ops want them (blocks in planes; q, k, v and gate in one matrix, in parts if types differ; W1 and
 * W3 interleaved), norms and routers become f32. */
#include "model/weights.h"

#include <inttypes.h>
#include <stdatomic.h>
#include <string.h>

#include "base/team.h"
#include "format/quant.h"
#include "model/names.h"

typedef struct loader {
    ful_model *model;
    const ful_alloc *alloc;
    const tensor_file *files;
    gpu_upload *upload;
    team *team; /* puts rows where staging buffers have room */
} loader;

/* Up to three matrices whose rows follow each other, or alternate, in one device tensor. */
typedef struct source {
    tensor_info parts[3];
    uint32_t count;
    bool interleaved;
} source;

static void convert_row(void *dst, ful_type to, const uint8_t *src, ful_type from, uint64_t n)
{
    if (to !=
        from) /* to is f32 here: where one type must do for all, it is the one that is exact */
        row_to_floats(from, src, n, dst);
    else if (type_is_blocks(to))
        quant_to_device(to, src, n, dst);
    else
        memcpy(dst, src, n * type_bytes(to));
}

static const uint8_t *source_row(const source *s, uint32_t row, const tensor_info **part)
{
    uint32_t i = 0;
    if (s->interleaved) {
        i = row % s->count;
        row /= s->count;
    } else {
        while (row >= s->parts[i].dims[0])
            row -= (uint32_t)s->parts[i++].dims[0];
    }
    *part = &s->parts[i];
    return (*part)->data + row * type_row_bytes((*part)->type, (*part)->dims[1]);
}

/* Only if a row needs one. */
static ful_result put_scales(loader *l, const float *scales, const char *name, gpu_tensor *t)
{
    uint64_t n = (uint64_t)t->experts * t->rows, bytes = n * sizeof *scales;
    bool needed = false;
    for (uint64_t i = 0; i < n; i++)
        needed |= scales[i] != 1.0f;
    if (!needed)
        return FUL_OK;
    TRY(gpu_buffer_create(l->model->device, bytes, GPU_MEMORY_DEVICE, name, &t->row_scale));
    return gpu_range_write(l->model->device, gpu_whole(&t->row_scale), 0, scales, bytes);
}

/* Some rows of a window, laid out by whoever comes: one thread reads pages of a file and packs
 * blocks slower than a GPU takes them. */
typedef struct rows_job {
    const source *sources;
    const gpu_tensor *tensor;
    const gpu_window *window;
    uint64_t first, count; /* of the window's rows */
    uint8_t *room;
    float *scales;      /* [experts*rows], NULL: not wanted */
    atomic_ullong next; /* of these */
} rows_job;

static void rows_work(void *ctx)
{
    enum { ROWS_AT_ONCE = 8 };
    rows_job *job = ctx;
    const gpu_window *w = job->window;
    const gpu_tensor *t = job->tensor;
    for (;;) {
        uint64_t i = atomic_fetch_add(&job->next, ROWS_AT_ONCE);
        uint64_t end = i + ROWS_AT_ONCE < job->count ? i + ROWS_AT_ONCE : job->count;
        if (i >= end)
            return;
        for (; i < end; i++) {
            uint32_t expert = w->expert0 + (uint32_t)((job->first + i) / w->row_count);
            uint32_t row = w->row0 + (uint32_t)((job->first + i) % w->row_count);
            const tensor_info *part;
            const uint8_t *data = source_row(&job->sources[expert], row, &part);
            convert_row(job->room + i * t->row_bytes, t->type, data, part->type, t->cols);
            if (job->scales)
                job->scales[(uint64_t)expert * t->rows + row] =
                    row_half_scale(part->type, data, t->cols);
        }
    }
}

/* The rows of one window, in pieces that staging buffers hold. */
static ful_result load_window(loader *l, const source *sources, const gpu_tensor *t,
                              const gpu_window *window, float *scales)
{
    uint64_t most = gpu_upload_max(l->upload) / t->row_bytes;
    if (most == 0)
        return fail(FUL_ERR_UNSUPPORTED,
                    "tensor %s: a row of %" PRIu64 " bytes exceeds the %" PRIu64
                    " of a staging buffer",
                    sources[0].parts[0].name, t->row_bytes, gpu_upload_max(l->upload));
    uint64_t total = (uint64_t)window->expert_count * window->row_count;
    for (uint64_t first = 0; first < total;) {
        uint64_t n = total - first < most ? total - first : most;
        uint8_t *room;
        TRY(gpu_upload_room(l->upload, gpu_whole(&window->buffer), first * t->row_bytes,
                            n * t->row_bytes, (void **)&room));
        rows_job job = {sources, t, window, first, n, room, scales, 0};
        team_run(l->team, rows_work, &job);
        first += n;
    }
    return FUL_OK;
}

/* Fills a tensor or, one after the other, its parts. */
static ful_result load_rows(loader *l, const source *sources, const char *name, gpu_tensor *t)
{
    for (uint32_t i = 0; i < t->part_count; i++)
        TRY(load_rows(l, sources, name, &t->parts[i]));
    if (t->part_count > 0)
        return FUL_OK;
    float *scales = NULL;
    if (model_half(l->model) && (t->type == FUL_TYPE_BF16 || type_is_blocks(t->type))) {
        uint64_t n = (uint64_t)t->experts * t->rows;
        scales = mem_array(l->alloc, n, sizeof *scales);
        if (!scales)
            return mem_fail(n * sizeof *scales, "row scales");
        for (uint64_t i = 0; i < n; i++) /* rows of other parts keep it */
            scales[i] = 1.0f;
    }
    ful_result r = FUL_OK;
    for (uint32_t w = 0; w < t->window_count && r == FUL_OK; w++)
        r = load_window(l, sources, t, &t->windows[w], scales);
    if (r == FUL_OK && scales)
        r = put_scales(l, scales, name, t);
    mem_free(l->alloc, scales);
    return r;
}

static ful_result load_role(loader *l, tensor_role role, uint32_t layer, bool wide,
                            const char *name, gpu_tensor *out)
{
    source s = {.count = 1};
    const tensor_info *t = &s.parts[0];
    TRY(tensor_get(l->files, &l->model->config, role, layer, 0, &s.parts[0]));
    TRY(gpu_tensor_create(l->model->device, wide ? FUL_TYPE_F32 : t->type, 1, (uint32_t)t->dims[0],
                          (uint32_t)t->dims[1], name, out));
    return load_rows(l, &s, name, out);
}

static ful_result load_joined(loader *l, const tensor_role *roles, uint32_t count, uint32_t layer,
                              const char *name, gpu_tensor *out)
{
    source s = {.count = count};
    ful_type types[3];
    uint32_t rows[3];
    for (uint32_t i = 0; i < count; i++) {
        TRY(tensor_get(l->files, &l->model->config, roles[i], layer, 0, &s.parts[i]));
        types[i] = s.parts[i].type;
        rows[i] = (uint32_t)s.parts[i].dims[0];
    }
    TRY(gpu_tensor_create_joined(l->model->device, types, rows, count, (uint32_t)s.parts[0].dims[1],
                                 name, out));
    return load_rows(l, &s, name, out);
}

static ful_result load_experts(loader *l, tensor_role first, tensor_role second, uint32_t layer,
                               const char *name, gpu_tensor *out)
{
    uint32_t n = l->model->config.expert_count, count = second == first ? 1 : 2;
    ful_type type;
    TRY(tensor_experts_type(l->files, &l->model->config, first, second, layer, &type));
    source *s = mem_zalloc(l->alloc, n, sizeof *s);
    if (!s)
        return mem_fail(n * sizeof *s, "the list of experts");
    ful_result r = FUL_OK;
    for (uint32_t e = 0; e < n && r == FUL_OK; e++) {
        s[e].count = count;
        s[e].interleaved = true;
        r = tensor_get(l->files, &l->model->config, first, layer, e, &s[e].parts[0]);
        if (r == FUL_OK && count == 2)
            r = tensor_get(l->files, &l->model->config, second, layer, e, &s[e].parts[1]);
    }
    if (r == FUL_OK)
        r = gpu_tensor_create(l->model->device, type, n, count * (uint32_t)s[0].parts[0].dims[0],
                              (uint32_t)s[0].parts[0].dims[1], name, out);
    if (r == FUL_OK)
        r = load_rows(l, s, name, out);
    mem_free(l->alloc, s);
    return r;
}

static ful_result load_vector(loader *l, tensor_role role, uint32_t layer, const char *name,
                              gpu_buffer *out)
{
    tensor_info t;
    TRY(tensor_get(l->files, &l->model->config, role, layer, 0, &t));
    uint64_t n = t.dims[0];
    float *values = mem_array(l->alloc, n, sizeof *values);
    if (!values)
        return mem_fail(n * sizeof *values, t.name);
    convert_row(values, FUL_TYPE_F32, t.data, t.type, n);
    ful_result r =
        gpu_buffer_create(l->model->device, n * sizeof *values, GPU_MEMORY_DEVICE, name, out);
    if (r == FUL_OK)
        r = gpu_range_write(l->model->device, gpu_whole(out), 0, values, n * sizeof *values);
    mem_free(l->alloc, values);
    return r;
}

ful_result weights_decay(ful_model *model, uint32_t layer, gpu_buffer *out)
{
    const model_config *c = &model->config;
    ful_device *device = model->device;
    const ful_alloc *a = device_alloc(device);
    uint64_t bytes = op_lightning_decay_bytes(device, c->head_count, c->head_dim);
    double *slopes = mem_array(a, c->head_count, sizeof *slopes);
    void *table = mem_alloc(a, bytes);
    ful_result r = slopes && table ? FUL_OK : mem_fail(bytes, "the table of decay factors");
    if (r == FUL_OK) {
        config_slopes(c, layer, slopes);
        op_lightning_decay_fill(device, c->head_count, c->head_dim, slopes, table);
        r = gpu_buffer_create(device, bytes, GPU_MEMORY_DEVICE, "decay", out);
    }
    if (r == FUL_OK)
        r = gpu_range_write(device, gpu_whole(out), 0, table, bytes);
    mem_free(a, slopes);
    mem_free(a, table);
    return r;
}

static ful_result load_layer(loader *l, uint32_t i)
{
    model_layer *layer = &l->model->layers[i];
    layer->kind = (layer_kind)l->model->config.layers[i];
    TRY(load_vector(l, ROLE_INPUT_NORM, i, "input_norm", &layer->input_norm));
    TRY(load_vector(l, ROLE_POST_NORM, i, "post_norm", &layer->post_norm));
    TRY(load_role(l, ROLE_ROUTER, i, true, "router", &layer->router));
    if (layer->kind == LAYER_LIGHTNING) {
        static const tensor_role roles[] = {ROLE_LIGHTNING_QKV, ROLE_LIGHTNING_GATE};
        TRY(load_joined(l, roles, 2, i, "qkv_gate", &layer->qkv));
        TRY(load_vector(l, ROLE_LIGHTNING_NORM, i, "lightning_norm", &layer->lightning_norm));
        TRY(weights_decay(l->model, i, &layer->decay));
        TRY(load_role(l, ROLE_LIGHTNING_OUT, i, false, "out", &layer->out));
    } else {
        static const tensor_role roles[] = {ROLE_SOFTMAX_Q, ROLE_SOFTMAX_K, ROLE_SOFTMAX_V};
        TRY(load_joined(l, roles, 3, i, "qkv", &layer->qkv));
        TRY(load_role(l, ROLE_SOFTMAX_OUT, i, false, "out", &layer->out));
    }
    TRY(load_experts(l, ROLE_W1, ROLE_W3, i, "w13", &layer->w13));
    return load_experts(l, ROLE_W2, ROLE_W2, i, "w2", &layer->w2);
}

ful_result weights_load(ful_model *model, const tensor_file *files, ful_progress_fn progress,
                        void *progress_ctx)
{
    loader l = {.model = model, .alloc = device_alloc(model->device), .files = files};
    enum { MOST_THREADS = 8 };
    unsigned threads = thread_count();
    uint32_t n = model->config.block_count;
    model->layers = mem_zalloc(l.alloc, n, sizeof *model->layers);
    if (!model->layers)
        return mem_fail(n * sizeof *model->layers, "the layers");
    TRY(gpu_upload_begin(model->device, model->info.weight_bytes, progress, progress_ctx,
                         &l.upload));
    l.team = team_create(l.alloc, threads < MOST_THREADS ? threads : MOST_THREADS);
    ful_result r = l.team ? FUL_OK : mem_fail(sizeof(void *), "a team of threads");
    if (r == FUL_OK)
        r = load_role(&l, ROLE_EMBEDDING, 0, false, "embedding", &model->embedding);
    if (r == FUL_OK && !model->config.tied_head)
        r = load_role(&l, ROLE_HEAD, 0, false, "head", &model->head);
    if (r == FUL_OK)
        r = load_vector(&l, ROLE_FINAL_NORM, 0, "final_norm", &model->final_norm);
    for (uint32_t i = 0; i < n && r == FUL_OK; i++)
        r = load_layer(&l, i);
    team_destroy(l.alloc, &l.team);
    if (r != FUL_OK) {
        gpu_upload_cancel(&l.upload);
        return r;
    }
    return gpu_upload_end(&l.upload);
}

void weights_destroy(ful_model *model)
{
    ful_device *d = model->device;
    for (uint32_t i = 0; model->layers && i < model->config.block_count; i++) {
        model_layer *layer = &model->layers[i];
        gpu_buffer_destroy(d, &layer->input_norm);
        gpu_buffer_destroy(d, &layer->post_norm);
        gpu_buffer_destroy(d, &layer->lightning_norm);
        gpu_buffer_destroy(d, &layer->decay);
        gpu_tensor_destroy(d, &layer->qkv);
        gpu_tensor_destroy(d, &layer->out);
        gpu_tensor_destroy(d, &layer->router);
        gpu_tensor_destroy(d, &layer->w13);
        gpu_tensor_destroy(d, &layer->w2);
    }
    gpu_tensor_destroy(d, &model->embedding);
    gpu_tensor_destroy(d, &model->head);
    gpu_buffer_destroy(d, &model->final_norm);
    mem_free(device_alloc(d), model->layers);
    model->layers = NULL;
}
