/* Models as GGUF: what is converted is the same model; keys that other programs write; everything a
 * GGUF can say wrongly about a model. No device. */
#include "../util/checkpoint.h"
#include "../util/gguf_image.h"
#include "../util/scratch.h"
#include "format/gguf_write.h"
#include "fulgur/model.h"
#include "model/gguf_names.h"
#include "model/imatrix.h"
#include "model/names.h" /* before cmocka, whose fail() is a macro */

#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const models[] = {
    FUL_TEST_DATA "/golden/hybrid-7to1", FUL_TEST_DATA "/golden/many-experts",
    FUL_TEST_DATA "/golden/mixed-factors", FUL_TEST_DATA "/../samples/demo-model"};

static ful_instance *instance;
static ful_alloc libc;

static void must(ful_result result)
{
    if (result != FUL_OK)
        print_error("%s: %s\n", ful_result_name(result), ful_last_error());
    assert_int_equal(result, FUL_OK);
}

/* A new name in the scratch folder. */
static const char *fresh(void)
{
    static int serial;
    char name[32];
    snprintf(name, sizeof name, "model-%d.gguf", serial++);
    return scratch_path(name);
}

typedef struct opened {
    model_config config;
    tensor_file *files;
    ful_model_info info;
} opened;

static ful_result open_model(const char *path, opened *m)
{
    memset(m, 0, sizeof *m);
    return model_open_files(&libc, path, &m->config, &m->files, &m->info);
}

/* ---- converting ---- */

/* What a value becomes on its way to `type`. */
static float through(float f, ful_type type)
{
    return type == FUL_TYPE_F16    ? half_to_float(float_to_half(f))
           : type == FUL_TYPE_BF16 ? bfloat_to_float(float_to_bfloat(f))
                                   : f;
}

typedef struct pair {
    opened *to;
    ful_type type; /* FUL_TYPE_DEFAULT: as it was */
    uint64_t values, tensors;
} pair;

static ful_result compare(void *ctx, tensor_role role, uint32_t layer, uint32_t expert,
                          const tensor_info *from)
{
    pair *p = ctx;
    tensor_info to;
    must(tensor_get(p->to->files, &p->to->config, role, layer, expert, &to));
    bool wide = from->n_dims == 1 || role == ROLE_ROUTER;
    ful_type type = wide ? FUL_TYPE_F32 : p->type ? p->type : from->type;
    assert_int_equal(to.type, type);
    assert_int_equal(to.n_dims, from->n_dims);
    assert_memory_equal(to.dims, from->dims, to.n_dims * sizeof *to.dims);
    uint64_t n = from->bytes / type_bytes(from->type);
    assert_int_equal(to.bytes, n * type_bytes(type));
    for (uint64_t i = 0; i < n; i++) {
        float want =
            through(element_to_float(from->type, from->data + i * type_bytes(from->type)), type);
        float got = element_to_float(type, to.data + i * type_bytes(type));
        assert_true(memcmp(&want, &got, sizeof want) == 0);
    }
    p->values += n;
    p->tensors++;
    return FUL_OK;
}

static void expect_same_config(const model_config *from, const model_config *to)
{
    model_config a = *from, b = *to;
    assert_string_equal(b.model_type, "minimax-01");
    memset(a.model_type, 0, sizeof a.model_type);
    memset(b.model_type, 0, sizeof b.model_type);
    assert_memory_equal(&a, &b, sizeof a); /* every double to its last bit */
}

static void expect_same_model(const char *from_path, const char *to_path, ful_type type)
{
    static opened from, to;
    must(open_model(from_path, &from));
    must(open_model(to_path, &to));
    if (strcmp(from.config.model_type, "minimax-01") != 0)
        expect_same_config(&from.config, &to.config);
    pair p = {.to = &to, .type = type};
    must(tensor_visit(from.files, &from.config, compare, &p));
    assert_int_equal(p.values, from.info.parameter_count);
    assert_int_equal(to.info.parameter_count, from.info.parameter_count);
    assert_int_equal(to.info.active_parameter_count, from.info.active_parameter_count);
    if (!type) {
        assert_int_equal(to.info.weight_bytes, from.info.weight_bytes);
        assert_int_equal(to.info.active_weight_bytes, from.info.active_weight_bytes);
        assert_int_equal(to.info.weight_type, from.info.weight_type);
    } else {
        assert_int_equal(to.info.weight_type, type);
    }
    /* Experts of a layer are one tensor. */
    assert_int_equal(to.info.tensor_count, tensor_file_count(to.files));
    assert_int_equal(p.tensors - to.info.tensor_count,
                     3u * from.config.block_count * (from.config.expert_count - 1));
    tensor_file_close(&from.files);
    tensor_file_close(&to.files);
}

static void test_convert(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        for (ful_type type = FUL_TYPE_DEFAULT; type <= FUL_TYPE_BF16; type = (ful_type)(type + 1)) {
            char path[512];
            if (i == 3 && type != FUL_TYPE_DEFAULT)
                continue; /* 17 million values: once */
            snprintf(path, sizeof path, "%s", fresh());
            must(ful_model_convert(instance, models[i], path, ful_convert_params(.type = type),
                                   NULL, NULL));
            expect_same_model(models[i], path, type);
            must(ful_model_check(instance, path, NULL, NULL));
        }
    }
}

/* From a GGUF, whose other keys stay. */
static void test_convert_again(void **state)
{
    (void)state;
    char first[512], second[512];
    snprintf(first, sizeof first, "%s", fresh());
    snprintf(second, sizeof second, "%s", fresh());
    must(ful_model_convert(instance, models[3], first, NULL, NULL, NULL));
    must(ful_model_convert(instance, first, second, NULL, NULL, NULL));
    file_map a, b;
    must(file_map_open(first, &a));
    must(file_map_open(second, &b));
    gguf_keys *from, *to;
    must(gguf_keys_open(&libc, first, &from));
    must(gguf_keys_open(&libc, second, &to));
    assert_int_equal(gguf_keys_count(from), gguf_keys_count(to));
    for (uint32_t i = 0; i < gguf_keys_count(from); i++) {
        const gguf_value *v = gguf_keys_at(from, i), *w = gguf_keys_at(to, i);
        assert_string_equal(v->key, w->key);
        assert_int_equal(v->bytes, w->bytes);
        assert_memory_equal(v->data, w->data, (size_t)v->bytes);
    }
    gguf_keys_close(&from);
    gguf_keys_close(&to);
    expect_same_model(first, second, FUL_TYPE_DEFAULT);
    assert_int_equal(a.bytes, b.bytes);
    file_map_close(&a);
    file_map_close(&b);
}

static bool stop_half_way(void *ctx, const ful_progress *p)
{
    unsigned *calls = ctx;
    assert_int_equal(p->phase, FUL_PHASE_WRITE);
    assert_true(p->done > 0 && p->done <= p->total);
    ++*calls;
    return 2 * p->done < p->total;
}

static void count_name(void *ctx, const char *name)
{
    *(size_t *)ctx += name[0] != '.';
}

static void overflow(void *ctx, checkpoint_tensor *t)
{
    (void)ctx;
    if (strcmp(t->name, "lm_head.weight") == 0)
        t->data[7] = 0x7e; /* element 3, bf16: about 1e38 */
}

static void test_convert_failures(void **state)
{
    (void)state;
    char dir[512], path[600], source[512];
    unsigned calls = 0;
    size_t files = 0;
    snprintf(dir, sizeof dir, "%s", scratch_path("failures"));
    must(path_make_dirs(dir));
    snprintf(path, sizeof path, "%s/m.gguf", dir);
    assert_int_equal(ful_model_convert(instance, models[0], path, NULL, stop_half_way, &calls),
                     FUL_ERR_CANCELLED);
    assert_true(calls > 1);
    checkpoint_copy(models[1], overflow, NULL, NULL, NULL, source);
    assert_int_equal(ful_model_convert(instance, source, path,
                                       ful_convert_params(.type = FUL_TYPE_F16), NULL, NULL),
                     FUL_ERR_FORMAT);
    expect_error_words("lm_head.weight", "index 3", "f16", NULL);
    checkpoint_remove(source);
    assert_int_equal(ful_model_convert(instance, models[0], path,
                                       ful_convert_params(.type = (ful_type)99), NULL, NULL),
                     FUL_ERR_ARGUMENT);
    expect_error_words("99", NULL);
    assert_int_equal(ful_model_convert(instance, dir, path, NULL, NULL, NULL), FUL_ERR_IO);
    must(path_each_name(dir, count_name, &files));
    assert_int_equal(files, 0); /* nothing of all this is left */
    scratch_text("failures/m.gguf", "mine");
    assert_int_equal(ful_model_convert(instance, models[0], path, NULL, NULL, NULL), FUL_ERR_IO);
    expect_error_words("m.gguf", "exists", NULL);
}

/* ---- keys, as other programs write them ---- */

/* A model of zeros with the keys that the caller puts beside or instead of the usual ones. */
typedef struct made {
    const char *without, *without_too; /* keys or tensors that are left out */
    bool without_sizes;                /* the keys that put_kinds puts */
    const char *extra;                 /* one tensor more */
    void (*put)(gguf_writer *w);       /* more keys */
    ful_type type;                     /* of matrices; 0 = F32 */
    uint64_t experts;                  /* in the tensors; 0 = 2 */
    bool tied;
} made;

static bool left_out(const made *m, const char *name)
{
    return (m->without && strcmp(m->without, name) == 0) ||
           (m->without_too && strcmp(m->without_too, name) == 0);
}

enum { LAYERS = 3, HIDDEN = 32, HEADS = 2, HEAD = 32, WIDTH = 64, VOCAB = 40 };

static void put_keys(const made *m, gguf_writer *w)
{
    static const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"block_count", LAYERS},         {"context_length", 64},
                 {"embedding_length", HIDDEN},    {"feed_forward_length", WIDTH},
                 {"attention.head_count", HEADS}, {"attention.head_count_kv", 1},
                 {"attention.key_length", HEAD},  {"attention.value_length", HEAD},
                 {"rope.dimension_count", 16},    {"expert_count", 2},
                 {"expert_used_count", 1},        {"full_attention_interval", 3}};
    static const struct {
        const char *key;
        float value;
    } numbers[] = {{"attention.layer_norm_rms_epsilon", 1e-5f},
                   {"rope.freq_base", 10000.0f},
                   {"residual_scale", 3.5f}};
    char key[80];
    if (!left_out(m, "general.architecture"))
        gguf_put_text(w, "general.architecture", "minimax-01", 10);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++)
        if (!left_out(m, sizes[i].key) &&
            !(m->without_sizes && i != 5 && i != 6 && i != 7 && i != 8 && i != 11)) {
            snprintf(key, sizeof key, "minimax-01.%s", sizes[i].key);
            gguf_put_u32(w, key, sizes[i].value);
        }
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        if (!left_out(m, numbers[i].key)) {
            snprintf(key, sizeof key, "minimax-01.%s", numbers[i].key);
            gguf_put_f32(w, key, numbers[i].value);
        }
    if (m->put)
        m->put(w);
}

typedef struct made_tensor {
    char name[64];
    uint32_t n_dims;
    uint64_t dims[3];
} made_tensor;

static size_t layer_tensors(const made *m, uint32_t layer, made_tensor *out)
{
    const uint64_t inner = HEADS * HEAD, experts = m->experts ? m->experts : 2;
    const struct {
        const char *name;
        int softmax; /* -1: of both kinds */
        uint32_t n_dims;
        uint64_t dims[3];
    } all[] = {{"attn_norm", -1, 1, {HIDDEN}},
               {"ffn_norm", -1, 1, {HIDDEN}},
               {"attn_qkv", 0, 2, {3 * inner, HIDDEN}},
               {"attn_gate", 0, 2, {inner, HIDDEN}},
               {"attn_norm_2", 0, 1, {inner}},
               {"attn_q", 1, 2, {inner, HIDDEN}},
               {"attn_k", 1, 2, {HEAD, HIDDEN}},
               {"attn_v", 1, 2, {HEAD, HIDDEN}},
               {"attn_output", -1, 2, {HIDDEN, inner}},
               {"ffn_gate_inp", -1, 2, {2, HIDDEN}},
               {"ffn_gate_exps", -1, 3, {experts, WIDTH, HIDDEN}},
               {"ffn_down_exps", -1, 3, {experts, HIDDEN, WIDTH}},
               {"ffn_up_exps", -1, 3, {experts, WIDTH, HIDDEN}}};
    int softmax = (layer + 1) % 3 == 0;
    size_t n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        if (all[i].softmax >= 0 && all[i].softmax != softmax)
            continue;
        snprintf(out[n].name, sizeof out[n].name, "blk.%u.%s.weight", layer, all[i].name);
        out[n].n_dims = all[i].n_dims;
        memcpy(out[n++].dims, all[i].dims, sizeof all[i].dims);
    }
    return n;
}

static ful_type made_type(const made *m, const made_tensor *t)
{
    bool wide = t->n_dims == 1 || strstr(t->name, "gate_inp");
    return wide || !m->type ? FUL_TYPE_F32 : m->type;
}

static void write_zeros(gguf_writer *w, const made_tensor *t, ful_type type)
{
    static const uint8_t zeros[4096];
    uint64_t left = type_row_bytes(type, t->dims[t->n_dims - 1]);
    for (uint32_t d = 0; d + 1 < t->n_dims; d++)
        left *= t->dims[d];
    while (left > 0) {
        size_t n = left < sizeof zeros ? (size_t)left : sizeof zeros;
        must(gguf_write_data(w, zeros, n));
        left -= n;
    }
}

static const char *make(const made *m)
{
    static char path[512];
    made_tensor t[64] = {{"token_embd.weight", 2, {VOCAB, HIDDEN}},
                         {"output_norm.weight", 1, {HIDDEN}},
                         {"output.weight", 2, {VOCAB, HIDDEN}}};
    size_t n = m->tied ? 2 : 3;
    gguf_writer *w;
    for (uint32_t l = 0; l < LAYERS; l++)
        n += layer_tensors(m, l, t + n);
    if (m->extra) {
        t[n] = (made_tensor){.n_dims = 1, .dims = {8}};
        snprintf(t[n++].name, sizeof t->name, "%s", m->extra);
    }
    snprintf(path, sizeof path, "%s", fresh());
    must(gguf_writer_open(&libc, path, &w));
    put_keys(m, w);
    for (size_t i = 0; i < n; i++)
        if (!left_out(m, t[i].name))
            gguf_put_tensor(w, t[i].name, made_type(m, &t[i]), t[i].dims, t[i].n_dims);
    must(gguf_write_head(w));
    for (size_t i = 0; i < n; i++)
        if (!left_out(m, t[i].name))
            write_zeros(w, &t[i], made_type(m, &t[i]));
    must(gguf_writer_finish(&w));
    return path;
}

static void accepts(const made *m, opened *out)
{
    must(open_model(make(m), out));
    tensor_file_close(&out->files);
}

static void refuses(const made *m, ful_result result, const char *word, const char *word_too)
{
    static opened o;
    const char *path = make(m);
    ful_result got = open_model(path, &o);
    if (got != result)
        print_error("%s: %s\n", ful_result_name(got), got ? ful_last_error() : "no error");
    assert_int_equal(got, result);
    assert_null(o.files);
    expect_error_words(strrchr(path, '/') + 1, word, word_too, NULL);
}

static void put_exact(gguf_writer *w)
{
    gguf_put_f64(w, FULGUR_LIGHTNING_ALPHA, 3.5);
    gguf_put_f64(w, FULGUR_LIGHTNING_BETA, 0.25);
    gguf_put_f64(w, FULGUR_SOFTMAX_BETA, 0.5);
    gguf_put_f64(w, FULGUR_MLP_BETA, -1.0);
    gguf_put_f64(w, FULGUR_NORM_EPSILON, 1e-5);
    gguf_put_f64(w, FULGUR_LIGHTNING_NORM_EPSILON, 2e-6);
    gguf_put_text(w, FULGUR_LIGHTNING_DECAY, "hf", 2);
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 7);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true);
    gguf_put_u32(w, "tokenizer.ggml.eos_token_id", UINT32_MAX);
}

/* As published models have it: a begin token that is not put in front. */
static void put_bos_unused(gguf_writer *w)
{
    gguf_put_u32(w, "tokenizer.ggml.bos_token_id", 7);
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", false);
    gguf_put_u32(w, "tokenizer.ggml.eot_token_id", 9);
}

/* What other programs may say of the architecture, as it is. */
static void put_plain_features(gguf_writer *w)
{
    gguf_put_text(w, "minimax-01.rope.scaling.type", "linear", 6);
    gguf_put_f32(w, "minimax-01.rope.scaling.factor", 1.0f);
    gguf_put_u32(w, "minimax-01.expert_gating_func", 1);
    gguf_put_bool(w, "minimax-01.expert_weights_norm", true);
    gguf_put_f32(w, "minimax-01.expert_weights_scale", 1.0f);
    gguf_put_u32(w, "minimax-01.expert_group_count", 1);
    gguf_put_u32(w, "minimax-01.attention.sliding_window", 0);
}

static void put_no_scaling(gguf_writer *w)
{
    gguf_put_text(w, "minimax-01.rope.scaling.type", "none", 4);
    gguf_put_f32(w, "minimax-01.rope.scaling.factor", 4.0f); /* of no effect then */
}

/* The same number in every kind of integer. */
static void put_kinds(gguf_writer *w)
{
    static const struct {
        const char *key;
        gguf_kind kind;
        uint8_t data[8];
    } values[] = {
        {"block_count", GGUF_U8, {LAYERS}},         {"context_length", GGUF_I64, {64}},
        {"embedding_length", GGUF_I32, {HIDDEN}},   {"feed_forward_length", GGUF_U64, {WIDTH}},
        {"attention.head_count", GGUF_I8, {HEADS}}, {"expert_count", GGUF_U16, {2}},
        {"expert_used_count", GGUF_I16, {1}}};
    char key[80];
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        snprintf(key, sizeof key, "minimax-01.%s", values[i].key);
        static const uint8_t bytes[GGUF_KIND_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
        gguf_put_value(w, &(gguf_value){.key = key,
                                        .kind = values[i].kind,
                                        .count = 1,
                                        .data = values[i].data,
                                        .bytes = bytes[values[i].kind]});
    }
}

static void put_layers_as_numbers(gguf_writer *w)
{
    gguf_put_i32s(w, "minimax-01.attention.recurrent_layers", (int32_t[]){1, 1, 0}, 3);
}

static void put_layers(gguf_writer *w)
{
    static const bool recurrent[] = {true, true, false};
    gguf_put_bools(w, "minimax-01.attention.recurrent_layers", recurrent, 3);
}

static void put_arrays(gguf_writer *w)
{
    static const int32_t heads[] = {0, 0, 1};
    gguf_put_i32s(w, "minimax-01.attention.head_count_kv", heads, 3);
}

static void test_keys(void **state)
{
    (void)state;
    static opened o;
    accepts(&(made){0}, &o);
    assert_int_equal(o.config.vocab_size, VOCAB);
    assert_int_equal(o.config.block_count, LAYERS);
    assert_int_equal(o.config.layers[0], LAYER_LIGHTNING);
    assert_int_equal(o.config.layers[1], LAYER_LIGHTNING);
    assert_int_equal(o.config.layers[2], LAYER_SOFTMAX);
    assert_int_equal(o.config.rotary_dim, 16);
    assert_int_equal(o.config.decay, DECAY_ORIG);
    assert_true(o.config.alpha_lightning == 3.5 && o.config.alpha_softmax == 3.5);
    assert_true(o.config.alpha_mlp == 3.5 && o.config.beta_mlp == 1.0);
    assert_true(o.config.beta_lightning == 1.0 && o.config.beta_softmax == 1.0);
    assert_true(o.config.norm_eps == (double)1e-5f && o.config.lightning_norm_eps == 1e-6);
    assert_true(o.config.rope_theta == 10000.0 && !o.config.tied_head);
    assert_int_equal(o.config.bos_token_id, -1);
    accepts(&(made){.put = put_exact}, &o);
    assert_true(o.config.beta_lightning == 0.25 && o.config.beta_softmax == 0.5);
    assert_true(o.config.beta_mlp == -1.0 && o.config.alpha_mlp == 3.5);
    assert_true(o.config.norm_eps == 1e-5 && o.config.lightning_norm_eps == 2e-6);
    assert_int_equal(o.config.decay, DECAY_HF);
    assert_int_equal(o.config.bos_token_id, 7);
    assert_int_equal(o.config.eos_token_id, -1);
    accepts(&(made){.without = "full_attention_interval", .put = put_layers}, &o);
    assert_int_equal(o.config.layers[1], LAYER_LIGHTNING);
    assert_int_equal(o.config.layers[2], LAYER_SOFTMAX);
    accepts(&(made){.without = "attention.head_count_kv", .put = put_arrays}, &o);
    assert_int_equal(o.config.kv_head_count, 1);
    accepts(&(made){.without = "full_attention_interval", .put = put_layers_as_numbers}, &o);
    assert_int_equal(o.config.layers[1], LAYER_LIGHTNING);
    assert_int_equal(o.config.layers[2], LAYER_SOFTMAX);
    accepts(&(made){.without_sizes = true, .put = put_kinds}, &o);
    assert_int_equal(o.config.block_count, LAYERS);
    assert_int_equal(o.config.context_length, 64);
    assert_int_equal(o.config.intermediate_size, WIDTH);
    assert_int_equal(o.config.head_count, HEADS);
    accepts(&(made){.put = put_bos_unused}, &o);
    assert_int_equal(o.config.bos_token_id, -1);
    assert_int_equal(o.config.eos_token_id, 9);
    accepts(&(made){.put = put_plain_features}, &o);
    accepts(&(made){.put = put_no_scaling}, &o);
    accepts(&(made){.extra = "note"}, &o); /* no weight */
    accepts(&(made){.without = "rope.dimension_count"}, &o);
    assert_int_equal(o.config.rotary_dim, HEAD);
    /* Without head sizes they are hidden size / heads, which the shapes contradict here. */
    refuses(&(made){.without = "attention.key_length", .without_too = "attention.value_length"},
            FUL_ERR_FORMAT, "blk.0.attn_qkv.weight", "[192, 32]");
}

static void test_tied(void **state)
{
    (void)state;
    static opened o;
    accepts(&(made){.tied = true}, &o);
    assert_true(o.config.tied_head && o.info.tied_head);
}

/* A type of blocks is told, and its values are looked at. */
static void test_blocks(void **state)
{
    (void)state;
    static opened o;
    made m = {.type = FUL_TYPE_Q8_0};
    const char *path = make(&m);
    must(open_model(path, &o));
    assert_int_equal(o.info.weight_type, FUL_TYPE_Q8_0);
    tensor_file_close(&o.files);
    assert_int_equal(ful_model_check(instance, path, NULL, NULL), FUL_OK);
    assert_int_equal(ful_model_convert(instance, path, scratch_path("f16.gguf"),
                                       ful_convert_params(.type = FUL_TYPE_F16), NULL, NULL),
                     FUL_OK);
}

#define PUT(name, ...)                                                                             \
    static void put_##name(gguf_writer *w)                                                         \
    {                                                                                              \
        __VA_ARGS__;                                                                               \
    }
PUT(other, gguf_put_text(w, "general.architecture", "llama", 5))
PUT(scaling, gguf_put_text(w, "minimax-01.rope.scaling.type", "yarn", 4))
PUT(window, gguf_put_u32(w, "minimax-01.attention.sliding_window", 128))
PUT(shared, gguf_put_u32(w, "minimax-01.expert_shared_count", 1))
PUT(sigmoid, gguf_put_u32(w, "minimax-01.expert_gating_func", 2))
PUT(values, gguf_put_u32(w, "minimax-01.attention.value_length", 64))
PUT(alpha, gguf_put_f64(w, FULGUR_MLP_ALPHA, 2.0))
PUT(theta, gguf_put_f64(w, FULGUR_ROPE_FREQ_BASE, 5.0))
PUT(nan, gguf_put_f32(w, "minimax-01.residual_scale", NAN))
PUT(text, gguf_put_text(w, "minimax-01.rope.freq_base", "1e4", 3))
PUT(decay, gguf_put_text(w, FULGUR_LIGHTNING_DECAY, "plain", 5))
PUT(eps, gguf_put_f64(w, FULGUR_LIGHTNING_NORM_EPSILON, 1.5))
PUT(bos, gguf_put_u32(w, "tokenizer.ggml.bos_token_id", VOCAB),
    gguf_put_bool(w, "tokenizer.ggml.add_bos_token", true))
PUT(add_bos, gguf_put_u32(w, "tokenizer.ggml.add_bos_token", 1))
PUT(eos, gguf_put_text(w, "tokenizer.ggml.eos_token_id", "</s>", 4))
PUT(factor, gguf_put_f32(w, "minimax-01.rope.scaling.factor", 4.0f))
PUT(linear, gguf_put_text(w, "minimax-01.rope.scaling.type", "linear", 6),
    gguf_put_f32(w, "minimax-01.rope.scale_linear", 2.0f))
PUT(attention_factor, gguf_put_f32(w, "minimax-01.rope.scaling.attn_factor", 0.5f))
PUT(weights_scale, gguf_put_f32(w, "minimax-01.expert_weights_scale", 2.5f))
PUT(weights_norm, gguf_put_bool(w, "minimax-01.expert_weights_norm", false))
PUT(soft_cap, gguf_put_f32(w, "minimax-01.attn_logit_softcapping", 50.0f))
PUT(heads_few, gguf_put_i32s(w, "minimax-01.attention.head_count_kv", (int32_t[]){1, 1}, 2))
PUT(heads_none, gguf_put_i32s(w, "minimax-01.attention.head_count_kv", (int32_t[]){1, 1, 0}, 3))
PUT(width_none, gguf_put_i32s(w, "minimax-01.feed_forward_length", (int32_t[]){WIDTH, 0, WIDTH}, 3))
PUT(hidden_list, gguf_put_i32s(w, "minimax-01.embedding_length", (int32_t[]){32, 32, 32}, 3))
PUT(hidden_negative, gguf_put_i32s(w, "minimax-01.embedding_length", (int32_t[]){-32}, 1))
PUT(heads_big, gguf_put_value(w, &(gguf_value){.key = "minimax-01.attention.head_count",
                                               .kind = GGUF_U64,
                                               .count = 1,
                                               .data = (const uint8_t[]){2, 0, 0, 0, 1, 0, 0, 0},
                                               .bytes = 8}))
PUT(used, gguf_put_u32(w, "minimax-01.expert_used_count", 3))
PUT(rotary, gguf_put_u32(w, "minimax-01.rope.dimension_count", 48))
PUT(epsilon, gguf_put_f32(w, "minimax-01.attention.layer_norm_rms_epsilon", 0.0f))
PUT(escape, gguf_put_text(w, "general.architecture", "a\33[31m\xff\xc3", 8))

static void put_tokens(gguf_writer *w)
{
    gguf_put_texts(w, "tokenizer.ggml.tokens", VOCAB + 1);
    for (int i = 0; i <= VOCAB; i++)
        gguf_put_item(w, "x", 1);
}

PUT(vocab, gguf_put_u32(w, "minimax-01.vocab_size", VOCAB + 1))
PUT(interval, gguf_put_u32(w, "minimax-01.full_attention_interval", 0))
PUT(huge, gguf_put_u32(w, "minimax-01.block_count", 4000000000u))
PUT(list, gguf_put_i32s(w, "minimax-01.attention.recurrent_layers", (int32_t[]){1, 2, 0}, 3))
PUT(list_short, gguf_put_bools(w, "minimax-01.attention.recurrent_layers", (bool[]){1, 1}, 2))
PUT(heads, gguf_put_i32s(w, "minimax-01.attention.head_count_kv", (int32_t[]){1, 2, 1}, 3))
PUT(float_heads, gguf_put_f32(w, "minimax-01.attention.head_count", 2.0f))

static void test_wrong_keys(void **state)
{
    (void)state;
    static const struct {
        made m;
        ful_result result;
        const char *words[2];
    } cases[] = {
        {{.without = "general.architecture"}, FUL_ERR_FORMAT, {"general.architecture", "missing"}},
        {{.without = "general.architecture", .put = put_other},
         FUL_ERR_UNSUPPORTED,
         {"llama", "minimax-01"}},
        {{.without = "block_count"}, FUL_ERR_FORMAT, {"minimax-01.block_count", "missing"}},
        {{.without = "block_count", .put = put_huge},
         FUL_ERR_FORMAT,
         {"minimax-01.block_count", "4000000000"}},
        {{.without = "embedding_length"},
         FUL_ERR_FORMAT,
         {"minimax-01.embedding_length", "missing"}},
        {{.without = "feed_forward_length"},
         FUL_ERR_FORMAT,
         {"minimax-01.feed_forward_length", "missing"}},
        {{.without = "attention.head_count"},
         FUL_ERR_FORMAT,
         {"minimax-01.attention.head_count", "missing"}},
        {{.without = "expert_count"}, FUL_ERR_FORMAT, {"minimax-01.expert_count", "missing"}},
        {{.without = "expert_used_count"},
         FUL_ERR_FORMAT,
         {"minimax-01.expert_used_count", "missing"}},
        {{.without = "context_length"}, FUL_ERR_FORMAT, {"minimax-01.context_length", "missing"}},
        {{.without = "residual_scale"}, FUL_ERR_FORMAT, {"minimax-01.residual_scale", "missing"}},
        {{.without = "rope.freq_base"}, FUL_ERR_FORMAT, {"minimax-01.rope.freq_base", "missing"}},
        {{.without = "attention.layer_norm_rms_epsilon"}, FUL_ERR_FORMAT, {"epsilon", "missing"}},
        {{.put = put_scaling}, FUL_ERR_UNSUPPORTED, {"minimax-01.rope.scaling.type", "yarn"}},
        {{.put = put_window}, FUL_ERR_UNSUPPORTED, {"sliding_window", "128"}},
        {{.put = put_shared}, FUL_ERR_UNSUPPORTED, {"expert_shared_count", "shared expert"}},
        {{.put = put_sigmoid}, FUL_ERR_UNSUPPORTED, {"expert_gating_func", "softmax"}},
        {{.without = "attention.value_length", .put = put_values},
         FUL_ERR_UNSUPPORTED,
         {"value_length", "64"}},
        {{.put = put_alpha}, FUL_ERR_FORMAT, {FULGUR_MLP_ALPHA, "contradict"}},
        {{.put = put_theta}, FUL_ERR_FORMAT, {FULGUR_ROPE_FREQ_BASE, "contradict"}},
        {{.without = "residual_scale", .put = put_nan},
         FUL_ERR_FORMAT,
         {"residual_scale", "finite"}},
        {{.without = "rope.freq_base", .put = put_text},
         FUL_ERR_FORMAT,
         {"rope.freq_base", "\"1e4\""}},
        {{.put = put_decay}, FUL_ERR_FORMAT, {FULGUR_LIGHTNING_DECAY, "plain"}},
        {{.put = put_eps}, FUL_ERR_FORMAT, {FULGUR_LIGHTNING_NORM_EPSILON, "1.5"}},
        {{.put = put_bos}, FUL_ERR_FORMAT, {"tokenizer.ggml.bos_token_id", "40"}},
        {{.put = put_vocab}, FUL_ERR_FORMAT, {"token_embd.weight", "[41, 32]"}},
        {{.without = "full_attention_interval", .put = put_interval},
         FUL_ERR_FORMAT,
         {"full_attention_interval", "at least 1"}},
        {{.put = put_list}, FUL_ERR_FORMAT, {"recurrent_layers", "bool"}},
        {{.put = put_list_short}, FUL_ERR_FORMAT, {"recurrent_layers", "2 entries"}},
        {{.without = "attention.head_count_kv", .put = put_heads},
         FUL_ERR_UNSUPPORTED,
         {"head_count_kv", "layer 1"}},
        {{.without = "attention.head_count", .put = put_float_heads},
         FUL_ERR_FORMAT,
         {"head_count", "integer"}},
        {{.without = "token_embd.weight"}, FUL_ERR_FORMAT, {"vocab_size", "missing"}},
        {{.without = "blk.1.ffn_norm.weight"},
         FUL_ERR_FORMAT,
         {"blk.1.ffn_norm.weight", "missing"}},
        {{.without = "blk.2.ffn_up_exps.weight"},
         FUL_ERR_FORMAT,
         {"blk.2.ffn_up_exps.weight", "missing"}},
        {{.without = "general.architecture", .put = put_escape},
         FUL_ERR_UNSUPPORTED,
         {"\"a?[31m??\"", "minimax-01"}},
        {{.put = put_add_bos}, FUL_ERR_FORMAT, {"add_bos_token", "bool"}},
        {{.put = put_eos}, FUL_ERR_FORMAT, {"eos_token_id", "</s>"}},
        {{.put = put_tokens}, FUL_ERR_FORMAT, {"tokenizer.ggml.tokens", "41 items"}},
        {{.put = put_factor}, FUL_ERR_UNSUPPORTED, {"rope.scaling.factor", "4"}},
        {{.put = put_linear}, FUL_ERR_UNSUPPORTED, {"rope.scale_linear", "2"}},
        {{.put = put_attention_factor}, FUL_ERR_UNSUPPORTED, {"attn_factor", "0.5"}},
        {{.put = put_weights_scale}, FUL_ERR_UNSUPPORTED, {"expert_weights_scale", "2.5"}},
        {{.put = put_weights_norm}, FUL_ERR_UNSUPPORTED, {"expert_weights_norm", "false"}},
        {{.put = put_soft_cap}, FUL_ERR_UNSUPPORTED, {"softcapping", "50"}},
        {{.without = "attention.head_count_kv", .put = put_heads_few},
         FUL_ERR_FORMAT,
         {"head_count_kv", "every layer"}},
        {{.without = "attention.head_count_kv", .put = put_heads_none},
         FUL_ERR_FORMAT,
         {"head_count_kv", "0 at layer 2"}},
        {{.without = "feed_forward_length", .put = put_width_none},
         FUL_ERR_FORMAT,
         {"feed_forward_length", "0 at layer 1"}},
        {{.without = "embedding_length", .put = put_hidden_list},
         FUL_ERR_FORMAT,
         {"embedding_length", "one integer"}},
        {{.without = "embedding_length", .put = put_hidden_negative},
         FUL_ERR_FORMAT,
         {"embedding_length", "one integer"}},
        {{.without = "attention.head_count", .put = put_heads_big},
         FUL_ERR_FORMAT,
         {"head_count", "4294967298"}},
        {{.without = "expert_used_count", .put = put_used},
         FUL_ERR_FORMAT,
         {"expert_used_count", "3"}},
        {{.without = "rope.dimension_count", .put = put_rotary},
         FUL_ERR_FORMAT,
         {"rope.dimension_count", "48"}},
        {{.without = "attention.layer_norm_rms_epsilon", .put = put_epsilon},
         FUL_ERR_FORMAT,
         {"epsilon", "0"}},
        {{.extra = "blk.0.attn_q.bias"}, FUL_ERR_UNSUPPORTED, {"blk.0.attn_q.bias", "minimax-01"}},
        {{.extra = "blk.0.attn_q.weight"}, FUL_ERR_UNSUPPORTED, {"blk.0.attn_q.weight", "none"}},
        {{.extra = "blk.3.ffn_norm.weight"},
         FUL_ERR_UNSUPPORTED,
         {"blk.3.ffn_norm.weight", "none"}},
        {{.extra = "blk.99999999999.x"}, FUL_ERR_UNSUPPORTED, {"blk.99999999999.x", "none"}},
        {{.extra = "rope_freqs.weight"}, FUL_ERR_UNSUPPORTED, {"rope_freqs.weight", "none"}},
        {{.experts = 3}, FUL_ERR_FORMAT, {"blk.0.ffn_gate_exps.weight", "[3, 64, 32]"}},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        refuses(&cases[i].m, cases[i].result, cases[i].words[0], cases[i].words[1]);
}

/* ---- importance matrices ---- */

typedef struct sums_case {
    const char *second; /* name of the second tensor */
    uint32_t sums_dims;
    uint64_t sums[3], counts[2]; /* fastest first */
    float sum, count;            /* of every column, of every matrix */
    const char *word;            /* of the error line; NULL: it is good */
} sums_case;

static void floats_put(gguf_image *g, float value, size_t n)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    for (size_t i = 0; i < n; i++)
        image_u32(g, bits);
}

static void test_importance_files(void **state)
{
    (void)state;
    const uint64_t quarter = UINT64_C(1) << 62;
    const sums_case cases[] = {
        {"x.counts", 2, {4, 2}, {1, 2}, 6.0f, 3.0f, NULL},
        {"x.counts", 2, {4, 2}, {1, 2}, 6.0f, 0.0f, NULL}, /* none came to it */
        {"x.counts", 2, {0, quarter}, {0, 1}, 0.0f, 0.0f, "counts of as many"},
        {"x.counts", 2, {0, 2}, {1, 2}, 0.0f, 1.0f, "counts of as many"},
        {"x.counts", 2, {4, 2}, {1, 3}, 6.0f, 3.0f, "counts of as many"},
        {"x.counts", 3, {4, 2, 1}, {1, 2}, 6.0f, 3.0f, "counts of as many"},
        {"y.counts", 2, {4, 2}, {1, 2}, 6.0f, 3.0f, "counts of as many"},
        {"x.counts", 2, {4, 2}, {1, 2}, -6.0f, 3.0f, "-6 at index 0"},
        {"x.counts", 2, {4, 2}, {1, 2}, NAN, 3.0f, "at index 0"},
        {"x.counts", 2, {4, 2}, {1, 2}, 6.0f, 1e-44f, "at index 0, of 9.8"},
        {"x.counts", 2, {4, 2}, {1, 2}, 6.0f, NAN, "no count of rows"},
        {"x.counts", 2, {4, 2}, {1, 2}, 6.0f, -1.0f, "no count of rows"},
    };
    static gguf_image g;
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const sums_case *c = &cases[i];
        const float *values;
        imatrix *im;
        image_head(&g, 3, 2, 0);
        image_tensor(&g, "x.in_sum2", c->sums_dims, c->sums, 0, 0);
        image_tensor(&g, c->second, 2, c->counts, 0, 32);
        image_data(&g, 32, 0);
        floats_put(&g, c->sum, 8), floats_put(&g, c->count, 8);
        ful_result r = imatrix_read(&libc, "sums", g.bytes, g.n, &im);
        if (c->word) {
            assert_int_equal(r, FUL_ERR_FORMAT);
            assert_null(im);
            expect_error_words("sums", "x.", c->word, NULL);
            continue;
        }
        must(r);
        assert_true(imatrix_find(im, "x", 4, 2, &values));
        assert_true(values[7] == (c->count > 0 ? 2.0f : 0.0f));
        assert_false(imatrix_find(im, "x", 2, 4, &values));
        assert_non_null(values);
        assert_false(imatrix_find(im, "y", 4, 2, &values));
        assert_null(values);
        imatrix_close(&im);
    }
    imatrix *im;
    image_good(&g);
    assert_int_equal(imatrix_read(&libc, "none", g.bytes, g.n, &im), FUL_ERR_FORMAT);
    expect_error_words("none", "no importance matrix", NULL);
}

static int begin(void **state)
{
    (void)state;
    libc = mem_functions(NULL);
    scratch_begin();
    return ful_instance_create(&instance, NULL) == FUL_OK ? 0 : -1;
}

static int end(void **state)
{
    (void)state;
    ful_instance_destroy(&instance);
    scratch_end();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_convert),
        cmocka_unit_test(test_convert_again),
        cmocka_unit_test(test_convert_failures),
        cmocka_unit_test(test_keys),
        cmocka_unit_test(test_tied),
        cmocka_unit_test(test_blocks),
        cmocka_unit_test(test_wrong_keys),
        cmocka_unit_test(test_importance_files),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
