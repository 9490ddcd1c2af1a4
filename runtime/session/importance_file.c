/* Importance matrices as GGUF files: which tensor has the sums of which matrix. */
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "format/gguf_write.h"
#include "model/names.h"
#include "session/importance.h"

static const char key_type[] = "general.type", key_datasets[] = "imatrix.datasets",
                  key_chunks[] = "imatrix.chunk_count", key_tokens[] = "imatrix.chunk_size";

/* ---- tensors ---- */

/* A tensor of a model's GGUF, and whose rows it reads. */
typedef struct entry {
    tensor_role role;
    uint32_t layer;
    importance_sums *sums; /* [matrices] */
    uint32_t matrices;
    bool first; /* no tensor before it reads the same rows */
} entry;

enum { LAYER_ENTRIES = 8 };

static importance_sums *sums_of(importance_layer *l, tensor_role role)
{
    switch (role) {
    case ROLE_LIGHTNING_QKV:
    case ROLE_LIGHTNING_GATE:
    case ROLE_SOFTMAX_Q:
    case ROLE_SOFTMAX_K:
    case ROLE_SOFTMAX_V:
        return &l->in;
    case ROLE_LIGHTNING_OUT:
    case ROLE_SOFTMAX_OUT:
        return &l->out;
    case ROLE_ROUTER:
        return &l->router;
    case ROLE_W1:
    case ROLE_W3:
        return l->expert_in;
    case ROLE_W2:
        return l->expert_out;
    default: /* norms */
        return NULL;
    }
}

/* The entries of a layer, or of what lies outside them (layer = block_count). */
static uint32_t entries_of(const ful_importance *m, uint32_t layer, entry *out)
{
    static const tensor_role experts[] = {ROLE_W1, ROLE_W3, ROLE_W2};
    const model_config *c = &m->model->config;
    uint32_t n = 0;
    if (layer == c->block_count) {
        /* Only what it points to is filled. */
        importance_sums *head = &((ful_importance *)m)->head;
        out[0] = (entry){c->tied_head ? ROLE_EMBEDDING : ROLE_HEAD, 0, head, 1, true};
        return 1;
    }
    importance_layer *l = &m->layers[layer];
    const tensor_role *roles = tensor_layer_roles((layer_kind)c->layers[layer]);
    for (uint32_t i = 0; i < LAYER_ROLES + 3; i++) {
        tensor_role role = i < LAYER_ROLES ? roles[i] : experts[i - LAYER_ROLES];
        importance_sums *sums = sums_of(l, role);
        if (sums)
            out[n++] = (entry){role, layer, sums, role >= ROLE_W1 ? c->expert_count : 1,
                               role != ROLE_LIGHTNING_GATE && role != ROLE_SOFTMAX_K &&
                                   role != ROLE_SOFTMAX_V && role != ROLE_W3};
    }
    return n;
}

static void entry_name(const entry *e, const char *suffix, char *out, size_t bytes)
{
    char name[TENSOR_NAME_BYTES];
    tensor_gguf_name(e->role, e->layer, name, sizeof name);
    snprintf(out, bytes, "%s.%s", name, suffix);
}

/* ---- notes ---- */

static ful_result dataset_add(ful_importance *m, const char *name, size_t bytes)
{
    for (uint32_t i = 0; i < m->dataset_count; i++)
        if (strlen(m->datasets[i]) == bytes && memcmp(m->datasets[i], name, bytes) == 0)
            return FUL_OK;
    if (!mem_grow(m->alloc, (void **)&m->datasets, &m->dataset_capacity, m->dataset_count + 1u,
                  sizeof *m->datasets))
        return mem_fail(sizeof *m->datasets, "names of texts");
    char *copy = mem_strndup(m->alloc, name, bytes);
    if (!copy)
        return mem_fail(bytes, "the name of a text");
    m->datasets[m->dataset_count++] = copy;
    return FUL_OK;
}

ful_result ful_importance_note(ful_importance *importance, const char *dataset,
                               uint32_t chunk_count, uint32_t chunk_tokens)
{
    if (!importance || !dataset)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_importance_note: importance and dataset must not be NULL");
    TRY(dataset_add(importance, dataset, strlen(dataset)));
    importance->chunks += chunk_count;
    importance->chunk_tokens = chunk_tokens;
    return FUL_OK;
}

/* ---- writing ---- */

static void head_put(const ful_importance *m, gguf_writer *w)
{
    gguf_put_text(w, key_type, "imatrix", 7);
    gguf_put_texts(w, key_datasets, m->dataset_count);
    for (uint32_t i = 0; i < m->dataset_count; i++)
        gguf_put_item(w, m->datasets[i], strlen(m->datasets[i]));
    gguf_put_u32(w, key_chunks, m->chunks < UINT32_MAX ? (uint32_t)m->chunks : UINT32_MAX);
    gguf_put_u32(w, key_tokens, m->chunk_tokens);
}

static ful_result entry_write(gguf_writer *w, const entry *e, float *room)
{
    for (uint32_t x = 0; x < e->matrices; x++) {
        const importance_sums *s = &e->sums[x];
        for (uint32_t i = 0; i < s->columns; i++)
            room[i] = (float)s->squares[i];
        TRY(gguf_write_data(w, room, s->columns * sizeof *room));
    }
    for (uint32_t x = 0; x < e->matrices; x++) {
        float rows = (float)e->sums[x].rows;
        TRY(gguf_write_data(w, &rows, sizeof rows));
    }
    return FUL_OK;
}

static ful_result sums_write(const ful_importance *m, gguf_writer **w, float *room)
{
    entry entries[LAYER_ENTRIES];
    char name[TENSOR_NAME_BYTES + 16];
    const uint32_t layers = m->model->config.block_count;
    head_put(m, *w);
    for (uint32_t l = 0; l <= layers; l++)
        for (uint32_t i = 0, n = entries_of(m, l, entries); i < n; i++) {
            const entry *e = &entries[i];
            uint64_t dims[] = {e->matrices, e->sums->columns}, one[] = {e->matrices, 1};
            entry_name(e, "in_sum2", name, sizeof name);
            gguf_put_tensor(*w, name, FUL_TYPE_F32, dims, 2);
            entry_name(e, "counts", name, sizeof name);
            gguf_put_tensor(*w, name, FUL_TYPE_F32, one, 2);
        }
    TRY(gguf_write_head(*w));
    for (uint32_t l = 0; l <= layers; l++)
        for (uint32_t i = 0, n = entries_of(m, l, entries); i < n; i++)
            TRY(entry_write(*w, &entries[i], room));
    return gguf_writer_finish(w);
}

static uint32_t most_columns(const ful_importance *m)
{
    entry entries[LAYER_ENTRIES];
    uint32_t most = 0;
    for (uint32_t l = 0; l <= m->model->config.block_count; l++)
        for (uint32_t i = 0, n = entries_of(m, l, entries); i < n; i++)
            most = entries[i].sums->columns > most ? entries[i].sums->columns : most;
    return most;
}

ful_result ful_importance_write(const ful_importance *importance, const char *path)
{
    if (!importance || !path)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_write: importance and path must not be NULL");
    gguf_writer *w = NULL;
    size_t columns = most_columns(importance);
    float *room = mem_array(importance->alloc, columns, sizeof *room);
    ful_result r = room ? FUL_OK : mem_fail(columns * sizeof *room, "a row of importance");
    if (r == FUL_OK)
        r = gguf_writer_open(importance->alloc, path, &w);
    if (r == FUL_OK)
        r = sums_write(importance, &w, room);
    gguf_writer_cancel(&w);
    mem_free(importance->alloc, room);
    return r;
}

/* ---- reading ---- */

static ful_result numbers_check(const tensor_info *t)
{
    for (uint64_t i = 0; i < t->bytes / 4; i++) {
        float f = element_to_float(FUL_TYPE_F32, t->data + 4 * i);
        if (!(f >= 0 && f <= 3.402823466e38f))
            return fail(FUL_ERR_FORMAT,
                        "%s: tensor %s: %g at index %" PRIu64
                        "; sums of squares and counts are finite and not negative",
                        t->path, t->name, (double)f, i);
    }
    return FUL_OK;
}

static ful_result shape_check(const tensor_info *t, uint64_t matrices, uint64_t columns)
{
    bool flat = matrices == 1 && t->n_dims == 1 && t->dims[0] == columns;
    if (t->type == FUL_TYPE_F32 &&
        (flat || (t->n_dims == 2 && t->dims[0] == matrices && t->dims[1] == columns)))
        return FUL_OK;
    return fail(FUL_ERR_FORMAT,
                "%s: tensor %s of type %s and %" PRIu64 " bytes; the model asks for f32 [%" PRIu64
                ", %" PRIu64 "]",
                t->path, t->name, t->type_name, t->bytes, matrices, columns);
}

/* Both tensors of an entry, or NULLs. */
static ful_result entry_find(const tensor_file *file, const entry *e, const tensor_info **sums,
                             const tensor_info **counts)
{
    char name[TENSOR_NAME_BYTES + 16];
    entry_name(e, "in_sum2", name, sizeof name);
    *sums = tensor_file_find(file, name);
    *counts = NULL;
    if (!*sums)
        return FUL_OK;
    entry_name(e, "counts", name, sizeof name);
    *counts = tensor_file_find(file, name);
    if (!*counts)
        return fail(FUL_ERR_FORMAT, "%s: tensor %s is missing beside %s", (*sums)->path, name,
                    (*sums)->name);
    TRY(shape_check(*sums, e->matrices, e->sums->columns));
    TRY(shape_check(*counts, e->matrices, 1));
    TRY(numbers_check(*sums));
    return numbers_check(*counts);
}

static void entry_add(const entry *e, const tensor_info *sums, const tensor_info *counts)
{
    for (uint32_t x = 0; x < e->matrices; x++) {
        importance_sums *s = &e->sums[x];
        const uint8_t *from = sums->data + 4 * (uint64_t)x * s->columns;
        for (uint32_t i = 0; i < s->columns; i++)
            s->squares[i] += (double)element_to_float(FUL_TYPE_F32, from + 4 * (uint64_t)i);
        s->rows += (uint64_t)llroundf(element_to_float(FUL_TYPE_F32, counts->data + 4 * x));
    }
}

/* Checks every entry, or adds them. */
static ful_result entries_walk(const ful_importance *m, const tensor_file *file, bool add,
                               uint32_t *found)
{
    entry entries[LAYER_ENTRIES];
    for (uint32_t l = 0; l <= m->model->config.block_count; l++)
        for (uint32_t i = 0, n = entries_of(m, l, entries); i < n; i++) {
            const tensor_info *sums, *counts;
            TRY(entry_find(file, &entries[i], &sums, &counts));
            *found += sums != NULL;
            if (add && sums && entries[i].first)
                entry_add(&entries[i], sums, counts);
        }
    return FUL_OK;
}

static ful_result notes_add(ful_importance *m, const gguf_keys *keys)
{
    const gguf_value *names = gguf_keys_find(keys, key_datasets);
    if (names && names->kind == GGUF_TEXT) {
        const uint8_t *at = names->data;
        for (uint64_t i = 0; i < names->count; i++) {
            gguf_text text;
            at = gguf_text_next(at, &text);
            TRY(dataset_add(m, text.data, text.bytes));
        }
    }
    const gguf_value *chunks = gguf_keys_one(keys, key_chunks),
                     *tokens = gguf_keys_one(keys, key_tokens);
    int64_t n;
    if (chunks && gguf_integer(chunks, 0, &n) && n > 0)
        m->chunks += (uint64_t)n;
    if (tokens && gguf_integer(tokens, 0, &n) && n > 0 && n <= UINT32_MAX)
        m->chunk_tokens = (uint32_t)n;
    return FUL_OK;
}

static ful_result sums_read(ful_importance *m, const tensor_file *file, const char *path)
{
    const gguf_keys *keys = tensor_file_keys(file);
    const gguf_value *type = keys ? gguf_keys_one(keys, key_type) : NULL;
    if (!type || !gguf_text_is(type, "imatrix"))
        return fail(FUL_ERR_FORMAT, "%s: is no importance matrix: its key %s is not \"imatrix\"",
                    path, key_type);
    uint32_t found = 0;
    TRY(entries_walk(m, file, false, &found));
    if (found == 0)
        return fail(FUL_ERR_FORMAT, "%s: none of its %u tensors is of a matrix of this model", path,
                    tensor_file_count(file));
    TRY(notes_add(m, keys));
    return entries_walk(m, file, true, &found);
}

ful_result ful_importance_read(ful_importance *importance, const char *path)
{
    if (!importance || !path)
        return fail(FUL_ERR_ARGUMENT, "ful_importance_read: importance and path must not be NULL");
    tensor_file *file = NULL;
    TRY(tensor_file_open(importance->alloc, path, &file));
    ful_result r = sums_read(importance, file, path);
    tensor_file_close(&file);
    return r;
}
