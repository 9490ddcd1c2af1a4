/* Checkpoints that do not fit their config, seen without a device: ful_model_inspect and
 * ful_model_check. */
#include "../util/checkpoint.h"
#include "fulgur/model.h" /* before cmocka, whose fail() is a macro */

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char *const golden_dir = FUL_TEST_DATA "/golden/many-experts";
static const char *const demo_dir = FUL_TEST_DATA "/../samples/demo-model";

static ful_instance *instance;

static int open_instance(void **state)
{
    (void)state;
    return ful_instance_create(&instance, NULL) == FUL_OK ? 0 : -1;
}

static int close_instance(void **state)
{
    (void)state;
    ful_instance_destroy(&instance);
    return 0;
}

/* ---- edits ---- */

typedef struct edit {
    const char *name;
    int kind;
} edit;
enum { EDIT_DROP, EDIT_TRANSPOSE, EDIT_INTEGER, EDIT_NAN, EDIT_INFINITY, EDIT_VECTOR };

static void apply(void *ctx, checkpoint_tensor *t)
{
    const edit *e = ctx;
    if (strcmp(t->name, e->name) != 0)
        return;
    switch (e->kind) {
    case EDIT_DROP:
        t->drop = true;
        break;
    case EDIT_TRANSPOSE: {
        uint64_t d = t->dims[0];
        t->dims[0] = t->dims[1];
        t->dims[1] = d;
        break;
    }
    case EDIT_INTEGER:
        snprintf(t->type, sizeof t->type, "I16");
        break;
    case EDIT_VECTOR:
        t->dims[0] *= t->dims[1];
        t->n_dims = 1;
        break;
    case EDIT_NAN:
    case EDIT_INFINITY:
        assert_string_equal(t->type, "BF16");
        memcpy(t->data + 2 * 77, e->kind == EDIT_NAN ? "\xc0\x7f" : "\x80\xff", 2);
        break;
    default:
        break;
    }
}

static ful_result inspect_edited(const char *name, int kind, bool check, ful_model_info *info)
{
    char dir[256];
    edit e = {name, kind};
    checkpoint_copy(golden_dir, apply, &e, NULL, NULL, dir);
    ful_result r =
        check ? ful_model_check(instance, dir, NULL, NULL) : ful_model_inspect(instance, dir, info);
    checkpoint_remove(dir);
    return r;
}

static ful_result inspect_config(const char *find, const char *replace)
{
    char dir[256];
    ful_model_info info;
    checkpoint_copy(golden_dir, NULL, NULL, find, replace, dir);
    ful_result r = ful_model_inspect(instance, dir, &info);
    checkpoint_remove(dir);
    return r;
}

/* ---- tests ---- */

static void test_numbers(void **state)
{
    (void)state;
    ful_model_info m;
    assert_int_equal(ful_model_inspect(instance, demo_dir, &m), FUL_OK);
    assert_int_equal(m.parameter_count, 17160192);
    assert_int_equal(m.block_count, 8);
    assert_int_equal(m.lightning_block_count, 7);
    assert_int_equal(m.state_bytes, 7 * 4 * 64 * 64 * 4);
    assert_int_equal(m.kv_bytes_per_token, 2 * 64 * 4);
    assert_int_equal(m.weight_type, FUL_TYPE_BF16);
    assert_int_equal(m.decay, FUL_DECAY_HF);
    /* a quarter of the experts, everything else but the embedding, one row of that */
    uint64_t experts = 8ull * 8 * 3 * 256 * 256, embedding = 4096 * 256;
    assert_int_equal(m.active_parameter_count,
                     m.parameter_count - experts - embedding + experts / 4 + 256);
    assert_int_equal(ful_model_inspect(instance, golden_dir, &m), FUL_OK);
    assert_int_equal(m.decay, FUL_DECAY_ORIG);
    assert_string_equal(m.architecture, "minimax_text_01");
}

static void test_copy_is_good(void **state)
{
    (void)state;
    ful_model_info m;
    assert_int_equal(inspect_edited("nothing", EDIT_DROP, false, &m), FUL_OK);
    assert_int_equal(inspect_edited("nothing", EDIT_DROP, true, &m), FUL_OK);
}

static void test_missing(void **state)
{
    (void)state;
    ful_model_info m;
    const char *name = "model.layers.2.block_sparse_moe.experts.31.w3.weight";
    assert_int_equal(inspect_edited(name, EDIT_DROP, false, &m), FUL_ERR_FORMAT);
    expect_error_words("model.safetensors", name, "missing", NULL);
    assert_int_equal(inspect_edited("lm_head.weight", EDIT_DROP, false, &m), FUL_ERR_FORMAT);
    expect_error_words("lm_head.weight", "missing", NULL);
}

static void test_shapes(void **state)
{
    (void)state;
    ful_model_info m;
    const char *name = "model.layers.0.self_attn.qkv_proj.weight";
    assert_int_equal(inspect_edited(name, EDIT_TRANSPOSE, false, &m), FUL_ERR_FORMAT);
    expect_error_words("model.safetensors", name, "[64, 768]", "[768, 64]", NULL);
    assert_int_equal(inspect_edited(name, EDIT_VECTOR, false, &m), FUL_ERR_FORMAT);
    expect_error_words(name, "[49152]", "[768, 64]", NULL);
}

static void test_type(void **state)
{
    (void)state;
    ful_model_info m;
    const char *name = "model.layers.1.self_attn.out_proj.weight";
    assert_int_equal(inspect_edited(name, EDIT_INTEGER, false, &m), FUL_ERR_UNSUPPORTED);
    expect_error_words("model.safetensors", name, "I16", "BF16", NULL);
}

static void test_not_finite(void **state)
{
    (void)state;
    ful_model_info m;
    const char *name = "model.layers.3.block_sparse_moe.experts.7.w2.weight";
    assert_int_equal(inspect_edited(name, EDIT_NAN, false, &m), FUL_OK);
    assert_int_equal(inspect_edited(name, EDIT_NAN, true, &m), FUL_ERR_FORMAT);
    expect_error_words("model.safetensors", name, "77", "not finite", NULL);
    assert_int_equal(inspect_edited(name, EDIT_INFINITY, true, &m), FUL_ERR_FORMAT);
    expect_error_words(name, "77", "not finite", NULL);
}

static void test_config_against_files(void **state)
{
    (void)state;
    assert_int_equal(inspect_config("\"num_local_experts\": 32", "\"num_local_experts\": 33"),
                     FUL_ERR_FORMAT);
    expect_error_words("block_sparse_moe.gate.weight", "[32, 64]", "[33, 64]", NULL);
    assert_int_equal(inspect_config("\"hidden_size\": 64", "\"hidden_size\": 72"), FUL_ERR_FORMAT);
    expect_error_words("model.embed_tokens.weight", "72", NULL);
    assert_int_equal(inspect_config("\"minimax_text_01\"", "\"llama\""), FUL_ERR_UNSUPPORTED);
    expect_error_words("config.json", "llama", NULL);
    assert_int_equal(inspect_config("\"vocab_size\": 400", "\"vocab_size\": 4000000000000"),
                     FUL_ERR_FORMAT);
    expect_error_words("config.json", "vocab_size", "4000000000000", NULL);
}

static void test_no_files(void **state)
{
    (void)state;
    ful_model_info m;
    assert_int_equal(ful_model_inspect(instance, "/nonexistent/model", &m), FUL_ERR_IO);
    expect_error_words("/nonexistent/model", NULL);
    assert_int_equal(ful_model_inspect(NULL, golden_dir, &m), FUL_ERR_ARGUMENT);
    assert_int_equal(ful_model_inspect(instance, NULL, &m), FUL_ERR_ARGUMENT);
}

/* The index in a folder stands for the folder. */
static void test_path_of_file(void **state)
{
    (void)state;
    ful_model_info m, n;
    assert_int_equal(ful_model_inspect(instance, demo_dir, &m), FUL_OK);
    assert_int_equal(
        ful_model_inspect(instance,
                          FUL_TEST_DATA "/../samples/demo-model/model.safetensors.index.json", &n),
        FUL_OK);
    assert_int_equal(m.parameter_count, n.parameter_count);
    assert_int_equal(
        ful_model_inspect(
            instance, FUL_TEST_DATA "/../samples/demo-model/model-00000-of-00003.safetensors", &n),
        FUL_ERR_FORMAT);
    expect_error_words("model-00000-of-00003.safetensors", "missing", NULL);
}

static bool cancel(void *ctx, const ful_progress *p)
{
    (void)ctx;
    assert_true(p->done <= p->total);
    return false;
}

static void test_cancel(void **state)
{
    (void)state;
    assert_int_equal(ful_model_check(instance, golden_dir, cancel, NULL), FUL_ERR_CANCELLED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_numbers),
        cmocka_unit_test(test_copy_is_good),
        cmocka_unit_test(test_missing),
        cmocka_unit_test(test_shapes),
        cmocka_unit_test(test_type),
        cmocka_unit_test(test_not_finite),
        cmocka_unit_test(test_config_against_files),
        cmocka_unit_test(test_no_files),
        cmocka_unit_test(test_path_of_file),
        cmocka_unit_test(test_cancel),
    };
    return cmocka_run_group_tests(tests, open_instance, close_instance);
}
