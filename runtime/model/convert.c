/* Models to GGUF files, tensor by tensor: copied, or coded by all threads. */
#include "model/convert.h"

#include <inttypes.h>
#include <string.h>

#include "base/file_os.h"
#include "base/log.h"
#include "base/process.h"
#include "format/quantize.h"
#include "model/imatrix.h"

enum { PIECE_BYTES = 1 << 20, TOP_ENTRIES = 3, LAYER_ENTRIES = LAYER_ROLES + 3 };

uint32_t convert_matrices(const converter *v, tensor_role role)
{
    return role >= ROLE_W1 ? v->config->expert_count : 1;
}

/* ---- the plan ---- */

/* The type that all experts of an entry have, or f32. */
static ful_result type_kept(const converter *v, const convert_entry *e, ful_type *out)
{
    *out = FUL_TYPE_F32;
    for (uint32_t i = 0; i < convert_matrices(v, e->role); i++) {
        tensor_info t;
        TRY(tensor_get(v->files, v->config, e->role, e->layer, i, &t));
        *out = i == 0 || *out == t.type ? t.type : FUL_TYPE_F32;
    }
    return FUL_OK;
}

static ful_result entry_type(const converter *v, convert_entry *e, uint64_t cols)
{
    ful_type wanted = FUL_TYPE_DEFAULT;
    /* A tied embedding is the head, too. */
    const tensor_role role =
        e->role == ROLE_EMBEDDING && v->config->tied_head ? ROLE_HEAD : e->role;
    if (!cols || role == ROLE_ROUTER)
        e->type = FUL_TYPE_F32;
    else if (v->mix)
        e->type = mix_type(v->mix, role, e->layer, v->config->block_count, cols, &wanted);
    else if (v->params.type)
        e->type = mix_fit(v->params.type, cols, &wanted);
    else
        TRY(type_kept(v, e, &e->type));
    e->wanted = wanted ? wanted : e->type;
    return FUL_OK;
}

static ful_result entry_add(converter *v, tensor_role role, uint32_t layer)
{
    char name[TENSOR_NAME_BYTES];
    convert_entry *e = &v->entries[v->count++];
    uint64_t rows, cols, dims[3], *at = dims;
    tensor_shape(v->config, role, &rows, &cols);
    *e = (convert_entry){.role = role, .layer = layer};
    TRY(entry_type(v, e, cols));
    if (role >= ROLE_W1)
        *at++ = v->config->expert_count;
    *at++ = rows;
    if (cols)
        *at++ = cols;
    tensor_gguf_name(role, layer, name, sizeof name);
    gguf_put_tensor(v->writer, name, e->type, dims, (uint32_t)(at - dims));
    return FUL_OK;
}

static ful_result entries_add(converter *v)
{
    static const tensor_role experts[] = {ROLE_W1, ROLE_W2, ROLE_W3};
    const size_t most = TOP_ENTRIES + (size_t)v->config->block_count * LAYER_ENTRIES;
    v->entries = mem_array(v->alloc, most, sizeof *v->entries);
    if (!v->entries)
        return mem_fail(most * sizeof *v->entries, "the list of tensors");
    TRY(entry_add(v, ROLE_EMBEDDING, 0));
    for (uint32_t l = 0; l < v->config->block_count; l++) {
        const tensor_role *roles = tensor_layer_roles((layer_kind)v->config->layers[l]);
        for (size_t i = 0; i < LAYER_ROLES; i++)
            TRY(entry_add(v, roles[i], l));
        for (size_t i = 0; i < 3; i++)
            TRY(entry_add(v, experts[i], l));
    }
    TRY(entry_add(v, ROLE_FINAL_NORM, 0));
    return v->config->tied_head ? FUL_OK : entry_add(v, ROLE_HEAD, 0);
}

/* Gives entries that are coded in blocks what the file says about their inputs. */
static ful_result importance_join(converter *v, const imatrix *im)
{
    uint32_t blocks = 0, found = 0;
    for (uint32_t i = 0; i < v->count; i++) {
        convert_entry *e = &v->entries[i];
        char name[TENSOR_NAME_BYTES];
        uint64_t rows, cols;
        ful_type kept;
        TRY(type_kept(v, e, &kept));
        if (!type_is_blocks(e->type) || kept == e->type)
            continue;
        tensor_shape(v->config, e->role, &rows, &cols);
        tensor_gguf_name(e->role, e->layer, name, sizeof name);
        blocks++;
        const uint64_t matrices = convert_matrices(v, e->role);
        if (imatrix_find(im, name, cols, matrices, &e->importance))
            found++;
        else if (e->importance)
            return fail(FUL_ERR_FORMAT,
                        "%s: importance of %s is not of %" PRIu64 " matrices of %" PRIu64
                        " columns, which the model has",
                        v->params.importance_path, name, matrices, cols);
    }
    if (blocks > 0 && found == 0)
        return fail(FUL_ERR_FORMAT, "%s: has none of the %u tensors that become blocks",
                    v->params.importance_path, blocks);
    return FUL_OK;
}

/* ---- bytes ---- */

static ful_result bytes_write(void *ctx, const void *data, size_t bytes)
{
    converter *v = ctx;
    TRY(gguf_write_data(v->writer, data, bytes));
    v->done += bytes;
    ful_progress p = {FUL_PHASE_WRITE, v->done, gguf_writer_bytes(v->writer)};
    if (v->progress && !v->progress(v->progress_ctx, &p))
        return fail(FUL_ERR_CANCELLED, "cancelled while writing");
    return FUL_OK;
}

static ful_result bytes_copy(converter *v, const uint8_t *data, uint64_t bytes)
{
    for (uint64_t at = 0; at < bytes;) {
        size_t n = bytes - at < PIECE_BYTES ? (size_t)(bytes - at) : PIECE_BYTES;
        TRY(bytes_write(v, data + at, n));
        at += n;
    }
    return FUL_OK;
}

/* `matrices` of them, one after the other in the file. */
static ful_result matrices_write(converter *v, const convert_entry *e, const tensor_info *t,
                                 uint32_t matrices, const float *importance)
{
    if (t->type == e->type)
        return bytes_copy(v, t->data, t->bytes * matrices);
    uint64_t rows, cols;
    tensor_shape(v->config, e->role, &rows, &cols);
    const quantize_params p = {.name = t->name,
                               .from = t->type,
                               .to = e->type,
                               .data = t->data,
                               .rows = cols ? rows * matrices : 1,
                               .cols = cols ? cols : rows,
                               .importance = importance,
                               .importance_rows = rows,
                               .path = t->path};
    return tensor_quantize(v->alloc, v->team, &p, bytes_write, v, NULL);
}

static ful_result entry_write(converter *v, const convert_entry *e)
{
    /* Where the experts are one tensor, too, they are coded as one. */
    const uint32_t matrices = convert_matrices(v, e->role),
                   whole = tensor_file_keys(v->files) ? matrices : 1;
    uint64_t rows, cols;
    tensor_shape(v->config, e->role, &rows, &cols);
    for (uint32_t i = 0; i < matrices; i += whole) {
        tensor_info t;
        TRY(tensor_get(v->files, v->config, e->role, e->layer, i, &t));
        TRY(matrices_write(v, e, &t, whole, e->importance ? e->importance + i * cols : NULL));
    }
    return FUL_OK;
}

static void entry_tell(const converter *v, const convert_entry *e)
{
    char name[TENSOR_NAME_BYTES];
    uint64_t rows, cols;
    tensor_gguf_name(e->role, e->layer, name, sizeof name);
    tensor_shape(v->config, e->role, &rows, &cols);
    const uint64_t n = (cols ? rows : 1) * convert_matrices(v, e->role);
    cols = cols ? cols : rows;
    ful_converted_tensor t = {.name = name,
                              .type = e->type,
                              .wanted = e->wanted,
                              .elements = n * cols,
                              .bytes = n * type_row_bytes(e->type, cols),
                              .weighted = e->importance != NULL};
    v->params.tensor(v->params.tensor_ctx, &t);
}

static ful_result entries_write(converter *v)
{
    const unsigned threads = v->params.threads ? v->params.threads : thread_count();
    v->team = team_create(v->alloc, threads < TEAM_MOST_THREADS ? threads : TEAM_MOST_THREADS);
    if (!v->team)
        return mem_fail(sizeof *v, "a team of threads");
    for (uint32_t i = 0; i < v->count; i++) {
        TRY(entry_write(v, &v->entries[i]));
        if (v->params.tensor)
            entry_tell(v, &v->entries[i]);
    }
    return FUL_OK;
}

/* ---- what killed processes left ---- */

typedef struct left_overs {
    const log_sink *log;
    const char *folder, *name;
    int folder_bytes;
    size_t name_bytes;
} left_overs;

/* The number that text begins with, if a minus follows; else 0. */
static uint32_t process_of(const char *text)
{
    uint64_t n = 0;
    for (; *text >= '0' && *text <= '9' && n <= UINT32_MAX; text++)
        n = 10 * n + (uint64_t)(*text - '0');
    return *text == '-' && n <= UINT32_MAX ? (uint32_t)n : 0;
}

/* NAME.PROCESS-N.tmp */
static void left_over_tell(void *ctx, const char *name)
{
    const left_overs *l = ctx;
    const size_t n = strlen(name);
    if (n < l->name_bytes + 5 || memcmp(name, l->name, l->name_bytes) != 0 ||
        name[l->name_bytes] != '.' || strcmp(name + n - 4, ".tmp") != 0)
        return;
    const uint32_t process = process_of(name + l->name_bytes + 1);
    if (process && !process_other_runs(process))
        log_write(l->log, FUL_LOG_WARNING,
                  "%.*s%s: left by a process that was stopped while writing, and can be deleted",
                  l->folder_bytes, l->folder, name);
}

/* Such files take as much of the disk as the one to be, but are not ours to delete: the process may
 * run on another machine. */
static void left_overs_tell(const ful_alloc *a, const log_sink *log, const char *out_path)
{
    const char *name = out_path;
    for (const char *at = out_path; *at; at++)
        if (IS_SEPARATOR(*at))
            name = at + 1;
    left_overs l = {.log = log,
                    .folder = out_path,
                    .name = name,
                    .folder_bytes = (int)(name - out_path),
                    .name_bytes = strlen(name)};
    char *folder =
        name > out_path ? mem_strndup(a, out_path, (size_t)(name - out_path)) : mem_strdup(a, ".");
    if (folder) /* a folder that can't be read fails when the file is made */
        (void)path_each_name(folder, left_over_tell, &l);
    mem_free(a, folder);
}

/* ---- all ---- */

static ful_result write_all(converter *v, const char *path, const imatrix *im)
{
    TRY(entries_add(v));
    if (im)
        TRY(importance_join(v, im));
    TRY(convert_keys_put(v, path));
    TRY(gguf_write_head(v->writer));
    return entries_write(v);
}

static ful_result convert(converter *v, const char *path, const char *out_path)
{
    imatrix *im = NULL;
    if (v->params.importance_path)
        TRY(imatrix_open(v->alloc, v->params.importance_path, &im));
    ful_result r = gguf_writer_open(v->alloc, out_path, &v->writer);
    if (r == FUL_OK)
        r = write_all(v, path, im);
    imatrix_close(&im);
    TRY(r);
    return gguf_writer_finish(&v->writer);
}

const char *ful_convert_mix(uint32_t index)
{
    const mix *m = mix_at(index);
    return m ? mix_name(m) : NULL;
}

static ful_result types_check(converter *v)
{
    const ful_convert_params *p = &v->params;
    if (p->type && !type_get(p->type))
        return fail(FUL_ERR_ARGUMENT, "ful_model_convert: no element type has the number %d",
                    (int)p->type);
    if (p->type && p->mix)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_model_convert: type %s and mix %s; only one can be asked for",
                    ful_type_name(p->type), p->mix);
    v->mix = p->mix ? mix_find(p->mix) : NULL;
    if (p->mix && !v->mix)
        return fail(FUL_ERR_ARGUMENT,
                    "ful_model_convert: no mix of types is named %s; ful_convert_mix lists them",
                    p->mix);
    return FUL_OK;
}

ful_result ful_model_convert(ful_instance *instance, const char *path, const char *out_path,
                             const ful_convert_params *params, ful_progress_fn progress,
                             void *progress_ctx)
{
    if (!instance || !path || !out_path)
        return fail(FUL_ERR_ARGUMENT, "ful_model_convert: instance, path and out_path must not be "
                                      "NULL");
    converter v = {
        .alloc = instance_alloc(instance), .progress = progress, .progress_ctx = progress_ctx};
    TRY(params_copy(&v.params, sizeof v.params, params, "ful_convert_params"));
    TRY(types_check(&v));
    if (file_exists(out_path)) /* before a long look at the model */
        return fail(FUL_ERR_IO, "%s: exists already and is not overwritten", out_path);
    left_overs_tell(v.alloc, instance_log(instance), out_path);
    tensor_file *files = NULL;
    ful_model_info info;
    model_config *config = mem_zalloc(v.alloc, 1, sizeof *config);
    if (!config)
        return mem_fail(sizeof *config, "the model's config");
    ful_result r = model_open_files(v.alloc, path, config, &files, &info);
    v.config = config;
    v.files = files;
    if (r == FUL_OK)
        r = convert(&v, path, out_path);
    gguf_writer_cancel(&v.writer);
    team_destroy(v.alloc, &v.team);
    mem_free(v.alloc, v.entries);
    tensor_file_close(&files);
    mem_free(v.alloc, config);
    return r;
}
