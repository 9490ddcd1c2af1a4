/* Models quantised to files: every tensor's bytes are what the codec gives for its rows, whatever
 * the source, the types and the number of threads; keys; memory; everything that can go wrong. No
 * device. */
#include "../util/checkpoint.h"
#include "../util/fault_alloc.h"
#include "../util/scratch.h"
#include "format/gguf_write.h"
#include "format/quant.h"
#include "fulgur/model.h"
#include "model/gguf_names.h"
#include "model/mix.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define EXPERTS FUL_TEST_DATA "/golden/many-experts"
#define HYBRID FUL_TEST_DATA "/golden/hybrid-7to1"

static ful_instance *instance;
static ful_alloc libc;

static void must(ful_result result)
{
    if (result != FUL_OK)
        print_error("%s: %s\n", ful_result_name(result), ful_last_error());
    assert_int_equal(result, FUL_OK);
}

/* A new name in the scratch folder. */
static void fresh(char path[512])
{
    static int serial;
    char name[32];
    snprintf(name, sizeof name, "model-%d.gguf", serial++);
    snprintf(path, 512, "%s", scratch_path(name));
}

typedef struct opened {
    model_config config;
    tensor_file *files;
    ful_model_info info;
} opened;

static void open_model(const char *path, opened *m)
{
    memset(m, 0, sizeof *m);
    must(model_open_files(&libc, path, &m->config, &m->files, &m->info));
}

/* ---- what must be in the file ---- */

/* Importance of every tensor: column i of matrix e has 1 + (i * 7 + e) % 13, but for the tensors
 * of role `without`. */
static float importance_at(uint64_t col, uint64_t matrix)
{
    return (float)(1 + (col * 7 + matrix) % 13);
}

typedef struct expected {
    opened *to;
    const mix *mix; /* NULL: type */
    ful_type type;
    bool weighted;
    tensor_role without;
    uint64_t tensors, other;
} expected;

static ful_type expected_type(const expected *x, tensor_role role, uint32_t layer, uint64_t cols,
                              ful_type *wanted)
{
    *wanted = FUL_TYPE_DEFAULT;
    return cols == 0 || role == ROLE_ROUTER ? FUL_TYPE_F32
           : x->mix ? mix_type(x->mix, role, layer, x->to->config.block_count, cols, wanted)
                    : mix_fit(x->type, cols, wanted);
}

static ful_result compare(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                          const tensor_info *from)
{
    expected *x = ctx;
    tensor_info to;
    uint64_t rows, cols;
    ful_type wanted;
    must(tensor_get(x->to->files, &x->to->config, role, layer, expert, &to));
    tensor_shape(&x->to->config, role, &rows, &cols);
    assert_int_equal(to.type, expected_type(x, role, layer, cols, &wanted));
    x->other += wanted != FUL_TYPE_DEFAULT && expert == 0;
    x->tensors++;
    if (!cols) {
        cols = rows;
        rows = 1;
    }
    const size_t from_bytes = (size_t)type_row_bytes(from->type, cols),
                 bytes = (size_t)type_row_bytes(to.type, cols);
    assert_int_equal(to.bytes, rows * bytes);
    float *row = malloc((size_t)cols * sizeof *row), *importance = malloc((size_t)cols * 4);
    uint8_t *want = malloc(bytes);
    for (uint64_t i = 0; i < cols; i++)
        importance[i] = importance_at(i, expert);
    for (uint64_t r = expert % 3; r < rows;
         r += 3) { /* coding all again would take twice as long */
        row_to_floats(from->type, from->data + r * from_bytes, cols, row);
        row_from_floats(to.type, row, cols, x->weighted && role != x->without ? importance : NULL,
                        want);
        assert_memory_equal(to.data + r * bytes,
                            from->type == to.type ? from->data + r * bytes : want, bytes);
    }
    free(want);
    free(importance);
    free(row);
    return FUL_OK;
}

static void expect_coded(const char *from_path, const char *to_path, expected *x)
{
    static opened from, to;
    open_model(from_path, &from);
    open_model(to_path, &to);
    x->to = &to;
    must(tensor_visit(from.files, &from.config, compare, x));
    assert_true(x->tensors > 40);
    assert_int_equal(to.info.parameter_count, from.info.parameter_count);
    tensor_file_close(&from.files);
    tensor_file_close(&to.files);
}

/* general.file_type and general.quantization_version; -1: absent. */
static void expect_numbers(const char *path, int64_t file_type, int64_t version)
{
    gguf_keys *keys;
    int64_t type = -1, quantization = -1;
    must(gguf_keys_open(&libc, path, &keys));
    gguf_integer(gguf_keys_one(keys, "general.file_type"), 0, &type);
    gguf_integer(gguf_keys_one(keys, "general.quantization_version"), 0, &quantization);
    gguf_keys_close(&keys);
    assert_int_equal(type, file_type);
    assert_int_equal(quantization, version);
}

/* The tensors that were told of. */
typedef struct told {
    uint32_t tensors, other, weighted;
    uint64_t elements, bytes;
} told;

static void tell(void *ctx, const ful_converted_tensor *t)
{
    told *s = ctx;
    s->tensors++;
    s->other += t->type != t->wanted;
    s->weighted += t->weighted;
    s->elements += t->elements;
    s->bytes += t->bytes;
    assert_non_null(strstr(t->name, ".weight"));
}

static void expect_told(const told *s, const char *path, uint64_t other)
{
    static opened m;
    open_model(path, &m);
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < tensor_file_count(m.files); i++)
        bytes += tensor_file_at(m.files, i)->bytes;
    assert_int_equal(s->tensors, tensor_file_count(m.files));
    assert_int_equal(s->elements, m.info.parameter_count);
    assert_int_equal(s->bytes, bytes);
    assert_int_equal(s->other, other);
    tensor_file_close(&m.files);
}

static void quantise(const char *from, const char *to, const ful_convert_params *params)
{
    must(ful_model_convert(instance, from, to, params, NULL, NULL));
}

/* ---- types and mixes ---- */

static void types_are_coded(void **state)
{
    (void)state;
    static const uint8_t numbers[] = {0, 0, 1, 32, 7, 2, 3, 8, 9, 10, 11, 14, 16, 18, 25, 38};
    for (ful_type type = FUL_TYPE_F32; type <= FUL_TYPE_MXFP4; type = (ful_type)(type + 1)) {
        char path[512];
        told s = {0};
        expected x = {.type = type};
        fresh(path);
        quantise(EXPERTS, path, ful_convert_params(.type = type, .tensor = tell, .tensor_ctx = &s));
        expect_coded(EXPERTS, path, &x);
        expect_told(&s, path, x.other);
        /* Rows of 64 and 32 elements are no blocks of 256. */
        const bool super = type >= FUL_TYPE_Q2_K && type <= FUL_TYPE_Q6_K;
        assert_true(super ? x.other > 20 : x.other == 0);
        expect_numbers(path, numbers[type], type_is_blocks(type) ? 2 : -1);
        must(ful_model_check(instance, path, NULL, NULL));
    }
}

/* Some of the model's rows have 256 elements, most have not. */
static void mixes_are_coded(void **state)
{
    (void)state;
    static const struct {
        const char *name;
        uint8_t number;
    } mixes[] = {{"f16", 1},     {"bf16", 32},   {"q8_0", 7},    {"q6_k", 18},   {"q5_k_m", 17},
                 {"q5_k_s", 16}, {"Q4_K_M", 15}, {"q4_k_s", 14}, {"q3_k_m", 12}, {"q3_k_s", 11},
                 {"q2_k", 10},   {"q5_0", 8},    {"q5_1", 9},    {"q4_0", 2},    {"q4_1", 3},
                 {"iq4_nl", 25}, {"mxfp4", 38},  {"f32", 0}};
    assert_int_equal(sizeof mixes / sizeof *mixes, mix_count());
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i++)
        assert_int_equal(mix_file_type(mix_find(mixes[i].name)), mixes[i].number);
    for (size_t i = 0; i < sizeof mixes / sizeof *mixes; i += 3) {
        char path[512];
        told s = {0};
        expected x = {.mix = mix_find(mixes[i].name)};
        fresh(path);
        quantise(HYBRID, path,
                 ful_convert_params(.mix = mixes[i].name, .tensor = tell, .tensor_ctx = &s));
        expect_coded(HYBRID, path, &x);
        expect_told(&s, path, x.other);
        expect_numbers(path, mixes[i].number, i == 0 ? -1 : 2);
    }
    for (uint32_t i = 0; i < mix_count(); i++)
        assert_string_equal(ful_convert_mix(i), mix_name(mix_at(i)));
    assert_null(ful_convert_mix(mix_count()));
}

static void expect_same_file(const char *a, const char *b)
{
    file_map x, y;
    must(file_map_open(a, &x));
    must(file_map_open(b, &y));
    assert_int_equal(x.bytes, y.bytes);
    assert_memory_equal(x.data, y.data, (size_t)x.bytes);
    file_map_close(&x);
    file_map_close(&y);
}

static void any_threads_give_the_same_file(void **state)
{
    (void)state;
    char one[512], many[512];
    fresh(one);
    quantise(HYBRID, one, ful_convert_params(.mix = "q4_0", .threads = 1));
    for (uint32_t threads = 2; threads <= 1000; threads += 499) {
        fresh(many);
        quantise(HYBRID, many, ful_convert_params(.mix = "q4_0", .threads = threads));
        expect_same_file(one, many);
    }
}

/* Blocks are decoded, and coded anew; those of the right type stay. */
static void blocks_are_a_source(void **state)
{
    (void)state;
    char first[512], second[512];
    expected mixed = {.mix = mix_find("q4_k_m")}, halves = {.type = FUL_TYPE_F16},
             other = {.type = FUL_TYPE_Q5_1};
    fresh(first);
    quantise(HYBRID, first, ful_convert_params(.mix = "q4_k_m"));
    fresh(second);
    quantise(first, second, ful_convert_params(.type = FUL_TYPE_F16));
    expect_coded(first, second, &halves);
    expect_numbers(second, 1, -1);
    fresh(second);
    quantise(first, second, ful_convert_params(.type = FUL_TYPE_Q5_1));
    expect_coded(first, second, &other);
    fresh(second);
    quantise(first, second, ful_convert_params(.mix = "q4_k_m"));
    expect_same_file(first, second);
    fresh(second);
    quantise(first, second, NULL);
    expect_same_file(first, second); /* the file's own number, too */
    expect_coded(HYBRID, second, &mixed);
}

/* ---- importance ---- */

static void importance_tensor(gguf_writer *w, const opened *m, tensor_role role, uint32_t layer,
                              const char *prefix, bool values)
{
    uint64_t rows, cols, matrices = role >= ROLE_W1 ? m->config.expert_count : 1;
    char name[200], base[TENSOR_NAME_BYTES];
    tensor_shape(&m->config, role, &rows, &cols);
    tensor_gguf_name(role, layer, base, sizeof base);
    if (!values) {
        snprintf(name, sizeof name, "%s%s.in_sum2", prefix, base);
        gguf_put_tensor(w, name, FUL_TYPE_F32, (const uint64_t[]){matrices, cols}, 2);
        snprintf(name, sizeof name, "%s%s.counts", prefix, base);
        gguf_put_tensor(w, name, FUL_TYPE_F32, (const uint64_t[]){matrices, 1}, 2);
        return;
    }
    const float count = 4; /* so that means are exact */
    for (uint64_t e = 0; e < matrices; e++)
        for (uint64_t i = 0; i < cols; i++) {
            float sum = count * importance_at(i, e);
            must(gguf_write_data(w, &sum, sizeof sum));
        }
    for (uint64_t e = 0; e < matrices; e++)
        must(gguf_write_data(w, &count, sizeof count));
}

/* As `fulgur imatrix` writes: of all matrices but embedding and softmax q. */
static void importance_write(const char *model, const char *path, const char *prefix)
{
    static opened m;
    open_model(model, &m);
    static const char *const texts[] = {"text.txt"};
    gguf_writer *w;
    must(gguf_writer_open(&libc, path, &w));
    gguf_put_text(w, "general.type", "imatrix", 7);
    gguf_put_texts(w, "imatrix.datasets", 1);
    gguf_put_item(w, texts[0], strlen(texts[0]));
    gguf_put_u32(w, "imatrix.chunk_count", 4);
    gguf_put_u32(w, "imatrix.chunk_size", 512);
    for (int values = 0; values < 2; values++) {
        for (uint32_t l = 0; l < m.config.block_count; l++) {
            const tensor_role *roles = tensor_layer_roles((layer_kind)m.config.layers[l]);
            for (size_t i = 0; i < LAYER_ROLES + 3; i++) {
                uint64_t rows, cols;
                tensor_role role =
                    i < LAYER_ROLES ? roles[i] : (tensor_role)(ROLE_W1 + (i - LAYER_ROLES));
                tensor_shape(&m.config, role, &rows, &cols);
                if (cols && role != ROLE_SOFTMAX_Q)
                    importance_tensor(w, &m, role, l, prefix, values);
            }
        }
        importance_tensor(w, &m, ROLE_EMBEDDING, 0, prefix, values);
        importance_tensor(w, &m, ROLE_HEAD, 0, prefix, values);
        if (!values)
            must(gguf_write_head(w));
    }
    must(gguf_writer_finish(&w));
    tensor_file_close(&m.files);
}

static void importance_weighs(void **state)
{
    (void)state;
    char im[512], whole[512], again[512], plain[512];
    told s = {0};
    expected x = {.type = FUL_TYPE_Q4_0, .weighted = true, .without = ROLE_SOFTMAX_Q};
    fresh(im);
    importance_write(HYBRID, im, "");
    fresh(again);
    quantise(HYBRID, again,
             ful_convert_params(.type = FUL_TYPE_Q4_0, .importance_path = im, .tensor = tell,
                                .tensor_ctx = &s));
    expect_coded(HYBRID, again, &x);
    assert_int_equal(s.weighted, s.tensors - 7 * 4 - 3 - 1 - 1); /* norms, routers, softmax q */
    /* From a GGUF, whose experts are one tensor. */
    fresh(whole);
    quantise(HYBRID, whole, NULL);
    fresh(plain);
    quantise(whole, plain, ful_convert_params(.type = FUL_TYPE_Q4_0, .importance_path = im));
    expect_same_file(again, plain);
    gguf_keys *keys;
    must(gguf_keys_open(&libc, plain, &keys));
    assert_true(gguf_text_is(gguf_keys_one(keys, "quantize.imatrix.file"), strrchr(im, '/') + 1));
    gguf_keys_close(&keys);
    /* Of another model: nothing fits. */
    fresh(im);
    importance_write(HYBRID, im, "other.");
    fresh(plain);
    assert_int_equal(
        ful_model_convert(instance, EXPERTS, plain,
                          ful_convert_params(.type = FUL_TYPE_Q4_0, .importance_path = im), NULL,
                          NULL),
        FUL_ERR_FORMAT);
    expect_error_words(strrchr(im, '/') + 1, "none", NULL);
    /* Of another model with the same names: other columns. */
    fresh(im);
    importance_write(HYBRID, im, "");
    assert_int_equal(
        ful_model_convert(instance, EXPERTS, plain,
                          ful_convert_params(.type = FUL_TYPE_Q4_0, .importance_path = im), NULL,
                          NULL),
        FUL_ERR_FORMAT);
    expect_error_words(strrchr(im, '/') + 1, "token_embd.weight", "64 columns", NULL);
    assert_int_equal(ful_model_convert(instance, EXPERTS, plain,
                                       ful_convert_params(.type = FUL_TYPE_Q4_0,
                                                          .importance_path = "/nowhere/im.gguf"),
                                       NULL, NULL),
                     FUL_ERR_IO);
    expect_error_words("/nowhere/im.gguf", NULL);
    assert_false(file_exists(plain));
}

/* ---- keys of another GGUF ---- */

static void names_and_licences_stay(void **state)
{
    (void)state;
    char first[512], named[512], last[512];
    static opened m;
    gguf_writer *w;
    fresh(first);
    quantise(EXPERTS, first, NULL);
    open_model(first, &m);
    fresh(named);
    must(gguf_writer_open(&libc, named, &w));
    const gguf_keys *from = tensor_file_keys(m.files);
    for (uint32_t i = 0; i < gguf_keys_count(from); i++)
        gguf_put_value(w, gguf_keys_at(from, i));
    gguf_put_text(w, "general.name", "Some model", 10);
    gguf_put_text(w, "general.license", "cc0-1.0", 7);
    gguf_put_u32(w, "general.alignment", 32);
    gguf_put_u32(w, "split.count", 1);
    for (uint32_t i = 0; i < tensor_file_count(m.files); i++) {
        const tensor_info *t = tensor_file_at(m.files, i);
        gguf_put_tensor(w, t->name, t->type, t->dims, t->n_dims);
    }
    must(gguf_write_head(w));
    for (uint32_t i = 0; i < tensor_file_count(m.files); i++)
        must(gguf_write_data(w, tensor_file_at(m.files, i)->data,
                             (size_t)tensor_file_at(m.files, i)->bytes));
    must(gguf_writer_finish(&w));
    tensor_file_close(&m.files);
    fresh(last);
    quantise(named, last, ful_convert_params(.mix = "q8_0"));
    gguf_keys *keys;
    must(gguf_keys_open(&libc, last, &keys));
    assert_true(gguf_text_is(gguf_keys_one(keys, "general.name"), "Some model"));
    assert_true(gguf_text_is(gguf_keys_one(keys, "general.license"), "cc0-1.0"));
    assert_null(gguf_keys_find(keys, "general.alignment"));
    assert_null(gguf_keys_find(keys, "split.count"));
    gguf_keys_close(&keys);
    expect_numbers(last, 7, 2);
}

/* ---- memory ---- */

/* Memory in use, and the most of it. */
typedef struct counted {
    atomic_size_t now, most;
} counted;

typedef union block {
    size_t bytes;
    max_align_t align;
} block;

static void *counted_malloc(void *ctx, size_t bytes)
{
    counted *c = ctx;
    block *b = malloc(sizeof *b + bytes);
    assert_non_null(b);
    b->bytes = bytes;
    size_t now = atomic_fetch_add(&c->now, bytes) + bytes, most = atomic_load(&c->most);
    while (now > most && !atomic_compare_exchange_weak(&c->most, &most, now))
        ;
    return b + 1;
}

static void counted_free(void *ctx, void *p)
{
    block *b = (block *)p - 1;
    atomic_fetch_sub(&((counted *)ctx)->now, b->bytes);
    free(b);
}

static void *counted_realloc(void *ctx, void *p, size_t old_bytes, size_t bytes)
{
    void *to = counted_malloc(ctx, bytes);
    memcpy(to, p, old_bytes < bytes ? old_bytes : bytes);
    counted_free(ctx, p);
    return to;
}

enum { ROWS = 300000, COLS = 64, HEADS = 2, HEAD = 32, WIDTH = 32 };

/* One softmax layer under an embedding of 38 MB in bf16, tied. */
static void wide_write(const char *path)
{
    static const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"vocab_size", ROWS},
                 {"block_count", 1},
                 {"context_length", 64},
                 {"embedding_length", COLS},
                 {"feed_forward_length", WIDTH},
                 {"attention.head_count", HEADS},
                 {"attention.head_count_kv", 1},
                 {"attention.key_length", HEAD},
                 {"attention.value_length", HEAD},
                 {"rope.dimension_count", 16},
                 {"expert_count", 2},
                 {"expert_used_count", 1},
                 {"full_attention_interval", 1}};
    static const struct {
        const char *name;
        uint64_t dims[3];
        uint32_t n_dims;
    } tensors[] = {{"token_embd", {ROWS, COLS}, 2},
                   {"output_norm", {COLS}, 1},
                   {"blk.0.attn_norm", {COLS}, 1},
                   {"blk.0.ffn_norm", {COLS}, 1},
                   {"blk.0.attn_q", {HEADS * HEAD, COLS}, 2},
                   {"blk.0.attn_k", {HEAD, COLS}, 2},
                   {"blk.0.attn_v", {HEAD, COLS}, 2},
                   {"blk.0.attn_output", {COLS, HEADS * HEAD}, 2},
                   {"blk.0.ffn_gate_inp", {2, COLS}, 2},
                   {"blk.0.ffn_gate_exps", {2, WIDTH, COLS}, 3},
                   {"blk.0.ffn_down_exps", {2, COLS, WIDTH}, 3},
                   {"blk.0.ffn_up_exps", {2, WIDTH, COLS}, 3}};
    const size_t count = sizeof tensors / sizeof *tensors;
    gguf_writer *w;
    char name[80];
    must(gguf_writer_open(&libc, path, &w));
    gguf_put_text(w, "general.architecture", GGUF_ARCHITECTURE, strlen(GGUF_ARCHITECTURE));
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        snprintf(name, sizeof name, "minimax-01.%s", sizes[i].key);
        gguf_put_u32(w, name, sizes[i].value);
    }
    gguf_put_f32(w, GGUF_KEY("attention.layer_norm_rms_epsilon"), 1e-5f);
    gguf_put_f32(w, GGUF_KEY("rope.freq_base"), 10000.0f);
    gguf_put_f32(w, GGUF_KEY("residual_scale"), 1.0f);
    for (size_t i = 0; i < count; i++) {
        snprintf(name, sizeof name, "%s.weight", tensors[i].name);
        gguf_put_tensor(w, name, FUL_TYPE_BF16, tensors[i].dims, tensors[i].n_dims);
    }
    must(gguf_write_head(w));
    uint16_t row[COLS];
    for (size_t i = 0; i < count; i++) {
        uint64_t n = 1;
        for (uint32_t d = 0; d < tensors[i].n_dims; d++)
            n *= tensors[i].dims[d];
        for (uint64_t at = 0; at < n; at += COLS) {
            for (size_t k = 0; k < COLS; k++)
                row[k] = float_to_bfloat((float)((at + k * 5) % 127) - 63);
            must(gguf_write_data(w, row, sizeof row));
        }
    }
    must(gguf_writer_finish(&w));
}

/* The bound of fulgur/model.h, and far below the tensor. */
static void memory_is_bounded(void **state)
{
    (void)state;
    static opened m;
    char from[512], to[512];
    fresh(from);
    wide_write(from);
    for (uint32_t threads = 1; threads <= 3; threads += 2) {
        counted c = {0};
        ful_alloc a = {counted_malloc, counted_realloc, counted_free, &c};
        ful_instance *own;
        must(ful_instance_create(&own, ful_instance_params(.alloc = &a)));
        const size_t before = atomic_load(&c.now);
        atomic_store(&c.most, before);
        fresh(to);
        must(ful_model_convert(own, from, to,
                               ful_convert_params(.type = FUL_TYPE_Q8_0, .threads = threads), NULL,
                               NULL));
        assert_int_equal(atomic_load(&c.now), before); /* nothing stays */
        const size_t most = atomic_load(&c.most) - before, part = 4 << 20,
                     floats = 2 * sizeof(float) * COLS * threads;
        assert_true(most >= part - type_row_bytes(FUL_TYPE_Q8_0, COLS));
        assert_true(most <= part + floats + 65536);
        open_model(to, &m);
        const uint64_t tensor = tensor_file_find(m.files, "token_embd.weight")->bytes;
        assert_true(tensor > 4 * most);
        print_message("%u threads: %zu bytes for a tensor of %llu\n", threads, most,
                      (unsigned long long)tensor);
        tensor_file_close(&m.files);
        ful_instance_destroy(&own);
    }
    /* A tied embedding is the head, and has its type. */
    fresh(to);
    quantise(from, to, ful_convert_params(.mix = "q4_0"));
    open_model(to, &m);
    assert_int_equal(tensor_file_find(m.files, "token_embd.weight")->type, FUL_TYPE_Q8_0);
    assert_int_equal(tensor_file_find(m.files, "blk.0.attn_q.weight")->type, FUL_TYPE_Q4_0);
    tensor_file_close(&m.files);
}

/* Each allocation fails once: nothing leaks, no file is left. */
static void allocations_may_fail(void **state)
{
    (void)state;
    char path[512], im[512];
    fault_alloc f = {0};
    ful_alloc a = fault_alloc_functions(&f);
    ful_instance *own;
    fresh(im);
    importance_write(EXPERTS, im, "");
    must(ful_instance_create(&own, ful_instance_params(.alloc = &a)));
    const size_t live = f.live;
    unsigned failures = 0;
    for (size_t k = 1;; k += 1 + k / 40) {
        fresh(path);
        f.failed = false;
        f.fail_at = f.calls + k;
        ful_result r = ful_model_convert(
            own, EXPERTS, path,
            ful_convert_params(.type = FUL_TYPE_Q8_0, .importance_path = im, .threads = 2), NULL,
            NULL);
        f.fail_at = 0;
        assert_int_equal(f.live, live);
        assert_false(f.broken);
        if (r == FUL_OK && !f.failed)
            break;
        if (r != FUL_OK) {
            assert_int_equal(r, FUL_ERR_HOST_MEMORY);
            assert_false(file_exists(path));
            failures++;
        }
    }
    assert_true(failures > 20);
    ful_instance_destroy(&own);
}

/* ---- what can go wrong ---- */

typedef struct watched {
    unsigned calls;
    uint64_t done, total;
    bool stop;
} watched;

static bool watch(void *ctx, const ful_progress *p)
{
    watched *w = ctx;
    assert_int_equal(p->phase, FUL_PHASE_WRITE);
    assert_true(p->done > w->done && p->done <= p->total);
    w->done = p->done;
    w->total = p->total;
    w->calls++;
    return !w->stop || 2 * p->done < p->total;
}

static void count_name(void *ctx, const char *name)
{
    *(size_t *)ctx += name[0] != '.';
}

static void spoil(void *ctx, checkpoint_tensor *t)
{
    if (strcmp(t->name, ctx) == 0) {
        t->data[2 * 70 + 0] = 0x80; /* element 70, bf16: infinity */
        t->data[2 * 70 + 1] = 0xff;
    }
}

static void expect_failure(const char *model, const char *path, const ful_convert_params *params,
                           ful_result result)
{
    assert_int_equal(ful_model_convert(instance, model, path, params, NULL, NULL), result);
}

static void values_must_be_finite(void **state)
{
    (void)state;
    static char expert[] = "model.layers.2.block_sparse_moe.experts.3.w2.weight";
    char path[512], source[512], first[512];
    fresh(path);
    checkpoint_copy(EXPERTS, spoil, expert, NULL, NULL, source);
    expect_failure(source, path, ful_convert_params(.type = FUL_TYPE_Q8_0), FUL_ERR_FORMAT);
    expect_error_words(source, expert, "row 2, column 6", "index 70", "-inf", NULL);
    /* In a GGUF the index is that of the whole tensor: expert 3 of 64 x 32. */
    fresh(first);
    quantise(source, first, NULL);
    expect_failure(first, path, ful_convert_params(.mix = "q4_0"), FUL_ERR_FORMAT);
    expect_error_words(first, "blk.2.ffn_down_exps.weight", "index 6214", "not finite", NULL);
    assert_false(file_exists(path));
    checkpoint_remove(source);
}

static void failures_leave_nothing(void **state)
{
    (void)state;
    char dir[512], path[600], lost[700];
    size_t files = 0;
    snprintf(dir, sizeof dir, "%s", scratch_path("failures"));
    must(path_make_dirs(dir));
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    watched stop = {.stop = true}, go = {0};
    const ful_convert_params *q8 = ful_convert_params(.type = FUL_TYPE_Q8_0);
    assert_int_equal(ful_model_convert(instance, HYBRID, path, q8, watch, &stop),
                     FUL_ERR_CANCELLED);
    assert_true(stop.calls > 1 && stop.done < stop.total);
    expect_failure(HYBRID, path, ful_convert_params(.mix = "q9_k"), FUL_ERR_ARGUMENT);
    expect_error_words("q9_k", NULL);
    expect_failure(HYBRID, path, ful_convert_params(.mix = "q4_k_m", .type = FUL_TYPE_F16),
                   FUL_ERR_ARGUMENT);
    expect_error_words("q4_k_m", "f16", NULL);
    expect_failure(dir, path, q8, FUL_ERR_IO);
    snprintf(lost, sizeof lost, "%s/no/folder/m.gguf", dir);
    expect_failure(HYBRID, lost, q8, FUL_ERR_IO);
    expect_error_words("no/folder/m.gguf", NULL);
    must(path_each_name(dir, count_name, &files));
    assert_int_equal(files, 0);
    /* What a killed process leaves is in nobody's way. */
    for (int i = 0; i < 3; i++) {
        char name[80];
        snprintf(name, sizeof name, "failures/m.gguf.%lu-%d.tmp", 4242ul, i);
        scratch_text(name, "half a file");
    }
    must(ful_model_convert(instance, HYBRID, path, q8, watch, &go));
    assert_true(go.done == go.total && go.calls > 40);
    must(path_each_name(dir, count_name, &files));
    assert_int_equal(files, 4);
    expect_failure(HYBRID, path, q8, FUL_ERR_IO);
    expect_error_words("m.gguf", "exists", NULL);
    expected x = {.type = FUL_TYPE_Q8_0};
    expect_coded(HYBRID, path, &x);
}

static int open_all(void **state)
{
    (void)state;
    scratch_begin();
    return ful_instance_create(&instance, NULL) == FUL_OK ? 0 : -1;
}

static int close_all(void **state)
{
    (void)state;
    ful_instance_destroy(&instance);
    scratch_end();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(types_are_coded),
        cmocka_unit_test(mixes_are_coded),
        cmocka_unit_test(any_threads_give_the_same_file),
        cmocka_unit_test(blocks_are_a_source),
        cmocka_unit_test(importance_weighs),
        cmocka_unit_test(names_and_licences_stay),
        cmocka_unit_test(memory_is_bounded),
        cmocka_unit_test(allocations_may_fail),
        cmocka_unit_test(values_must_be_finite),
        cmocka_unit_test(failures_leave_nothing),
    };
    return cmocka_run_group_tests(tests, open_all, close_all);
}
