/* config.json: three key styles, every rejected value, and the slopes. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#undef fail /* the library has a function of this name */

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "format/json.h"
#include "format/tensors.h"
#include "model/config.h"
#include "util/fault_alloc.h"
#include "util/rng.h"
#include "util/scratch.h"

static const char hub[] =
    "{\"architectures\":[\"MiniMaxText01ForCausalLM\"],\"model_type\":\"minimax_text_01\","
    "\"attn_type_list\":[0,1,0,1],\"head_dim\":32,\"hidden_act\":\"silu\",\"hidden_size\":96,"
    "\"intermediate_size\":80,\"layernorm_linear_attention_alpha\":1.7,"
    "\"layernorm_linear_attention_beta\":0.9,\"layernorm_full_attention_alpha\":2.1,"
    "\"layernorm_full_attention_beta\":1.1,\"layernorm_mlp_alpha\":1.4,\"layernorm_mlp_beta\":0.8,"
    "\"max_position_embeddings\":8192,\"num_attention_heads\":8,\"num_key_value_heads\":4,"
    "\"num_experts_per_tok\":3,\"num_hidden_layers\":4,\"num_local_experts\":5,\"postnorm\":true,"
    "\"rms_norm_eps\":2e-5,\"rope_theta\":10000,\"rotary_dim\":16,\"shared_intermediate_size\":0,"
    "\"shared_moe_mode\":\"sigmoid\",\"sliding_window\":null,\"tie_word_embeddings\":false,"
    "\"vocab_size\":331,\"bos_token_id\":null,\"eos_token_id\":[7,8]}";

static const char native[] =
    "{\"architectures\":[\"MiniMaxForCausalLM\"],\"model_type\":\"minimax\",\"block_size\":256,"
    "\"layer_types\":[\"linear_attention\",\"full_attention\",\"linear_attention\","
    "\"full_attention\"],\"head_dim\":32,\"hidden_size\":96,\"intermediate_size\":80,"
    "\"linear_attn_alpha_factor\":1.7,\"linear_attn_beta_factor\":0.9,"
    "\"full_attn_alpha_factor\":2.1,\"full_attn_beta_factor\":1.1,\"mlp_alpha_factor\":1.4,"
    "\"mlp_beta_factor\":0.8,\"max_position_embeddings\":8192,\"num_attention_heads\":8,"
    "\"num_key_value_heads\":4,\"num_experts_per_tok\":3,\"num_hidden_layers\":4,"
    "\"num_local_experts\":5,\"rms_norm_eps\":2e-5,"
    "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":10000.0},\"rotary_dim\":16,"
    "\"sliding_window\":null,\"vocab_size\":331,\"bos_token_id\":5,\"eos_token_id\":7}";

static model_config config; /* large: not on the stack */

static ful_result load_text(const char *text)
{
    return config_load(NULL, scratch_text("config.json", text), &config);
}

/* `base` with the keys of `changes` (an object) set, or removed where the change is "(remove)". */
static ful_result load_changed(const char *base, const char *changes)
{
    json_error_t error;
    const char *key;
    json_t *value, *root = json_loads(base, 0, &error), *set = json_loads(changes, 0, &error);
    if (!root || !set)
        print_error("%s: %s\n", error.text, changes);
    assert_non_null(root);
    assert_non_null(set);
    json_object_foreach(set, key, value)
    {
        const char *text = json_string_value(value);
        if (text && strcmp(text, "(remove)") == 0)
            assert_int_equal(json_object_del(root, key), 0);
        else
            json_object_set(root, key, value);
    }
    char *text = json_dumps(root, 0);
    ful_result result = load_text(text);
    free(text);
    json_decref(set);
    json_decref(root);
    return result;
}

static void accepts(const char *base, const char *changes)
{
    ful_result result = load_changed(base, changes);
    if (result != FUL_OK)
        print_error("%s: %s\n", changes, ful_last_error());
    assert_int_equal(result, FUL_OK);
}

/* The error line names the file, and holds both texts. */
static void rejects(const char *base, const char *changes, ful_result result, const char *key,
                    const char *value)
{
    ful_result got = load_changed(base, changes);
    if (got != result)
        print_error("%s: %s %s\n", changes, ful_result_name(got), got ? ful_last_error() : "");
    assert_int_equal(got, result);
    bool all = strstr(ful_last_error(), "config.json: ") && strstr(ful_last_error(), key) &&
               strstr(ful_last_error(), value);
    if (!all)
        print_error("'%s' lacks '%s' or '%s'\n", ful_last_error(), key, value);
    assert_true(all);
}

/* ---- what is read ---- */

static void check_common(void)
{
    static const uint8_t kinds[] = {LAYER_LIGHTNING, LAYER_SOFTMAX, LAYER_LIGHTNING, LAYER_SOFTMAX};
    assert_int_equal(config.vocab_size, 331);
    assert_int_equal(config.hidden_size, 96);
    assert_int_equal(config.intermediate_size, 80);
    assert_int_equal(config.block_count, 4);
    assert_int_equal(config.head_count, 8);
    assert_int_equal(config.kv_head_count, 4);
    assert_int_equal(config.head_dim, 32);
    assert_int_equal(config.rotary_dim, 16);
    assert_int_equal(config.expert_count, 5);
    assert_int_equal(config.top_k, 3);
    assert_int_equal(config.context_length, 8192);
    assert_true(config.rope_theta == 10000.0);
    assert_true(config.norm_eps == 2e-5);
    assert_true(config.lightning_norm_eps == 1e-6);
    assert_true(config.alpha_lightning == 1.7 && config.beta_lightning == 0.9);
    assert_true(config.alpha_softmax == 2.1 && config.beta_softmax == 1.1);
    assert_true(config.alpha_mlp == 1.4 && config.beta_mlp == 0.8);
    assert_false(config.tied_head);
    assert_memory_equal(config.layers, kinds, 4);
}

static void test_styles(void **state)
{
    (void)state;
    assert_int_equal(load_text(hub), FUL_OK);
    check_common();
    assert_string_equal(config.model_type, "minimax_text_01");
    assert_int_equal(config.decay, DECAY_ORIG);
    assert_int_equal(config.bos_token_id, -1);
    assert_int_equal(config.eos_token_id, 7);

    accepts(hub, "{\"model_type\":\"minimax_m1\",\"architectures\":[\"MiniMaxM1ForCausalLM\"]}");
    check_common();
    assert_string_equal(config.model_type, "minimax_m1");
    assert_int_equal(config.decay, DECAY_ORIG);

    assert_int_equal(load_text(native), FUL_OK);
    check_common();
    assert_string_equal(config.model_type, "minimax");
    assert_int_equal(config.decay, DECAY_HF);
    assert_int_equal(config.bos_token_id, 5);
    assert_int_equal(config.eos_token_id, 7);

    /* A folder is as good as the file. */
    assert_int_equal(config_load(NULL, scratch_dir(), &config), FUL_OK);
    check_common();
}

/* The class's defaults of model.md section 1.1. */
static void test_native_defaults(void **state)
{
    (void)state;
    assert_int_equal(load_text("{\"model_type\":\"minimax\"}"), FUL_OK);
    assert_int_equal(config.vocab_size, 32000);
    assert_int_equal(config.hidden_size, 4096);
    assert_int_equal(config.intermediate_size, 14336);
    assert_int_equal(config.block_count, 32);
    assert_int_equal(config.head_count, 32);
    assert_int_equal(config.kv_head_count, 8);
    assert_int_equal(config.head_dim, 128);
    assert_int_equal(config.rotary_dim, 128);
    assert_int_equal(config.expert_count, 8);
    assert_int_equal(config.top_k, 2);
    assert_int_equal(config.context_length, 131072);
    assert_true(config.rope_theta == 1e6);
    assert_true(config.norm_eps == 1e-5);
    assert_true(config.alpha_lightning == 1 && config.beta_lightning == 1);
    assert_true(config.alpha_softmax == 1 && config.beta_softmax == 1);
    assert_true(config.alpha_mlp == 1 && config.beta_mlp == 1);
    assert_int_equal(config.bos_token_id, 1);
    assert_int_equal(config.eos_token_id, 2);
    for (uint32_t l = 0; l < 32; l++)
        assert_int_equal(config.layers[l], l % 2 == 0 ? LAYER_SOFTMAX : LAYER_LIGHTNING);
    accepts(native, "{\"head_dim\":null,\"hidden_size\":128,\"rotary_dim\":\"(remove)\"}");
    assert_int_equal(config.head_dim, 16);
    assert_int_equal(config.rotary_dim, 16);
    accepts(native, "{\"layer_types\":null}");
    assert_int_equal(config.layers[0], LAYER_SOFTMAX);
    assert_int_equal(config.layers[1], LAYER_LIGHTNING);
}

static void test_spellings(void **state)
{
    (void)state;
    /* Partial rotary in each of its spellings. */
    accepts(native, "{\"rotary_dim\":\"(remove)\",\"partial_rotary_factor\":0.25}");
    assert_int_equal(config.rotary_dim, 8);
    accepts(native, "{\"rotary_dim\":\"(remove)\",\"rope_parameters\":"
                    "{\"rope_theta\":5e5,\"partial_rotary_factor\":0.75}}");
    assert_int_equal(config.rotary_dim, 24);
    assert_true(config.rope_theta == 5e5);
    accepts(native, "{\"partial_rotary_factor\":0.5}");
    assert_int_equal(config.rotary_dim, 16);
    accepts(native, "{\"rotary_dim\":\"(remove)\",\"head_dim\":80,\"partial_rotary_factor\":0.1}");
    assert_int_equal(config.rotary_dim, 8); /* 0.1 * 80 is not exactly 8 */
    accepts(hub, "{\"rotary_dim\":\"(remove)\"}");
    assert_int_equal(config.rotary_dim, 32);

    /* The base at top level, inside, or both. */
    accepts(native, "{\"rope_parameters\":null,\"rope_theta\":123456}");
    assert_true(config.rope_theta == 123456);
    accepts(native, "{\"rope_theta\":10000}");
    assert_true(config.rope_theta == 10000);
    accepts(native, "{\"rope_scaling\":{\"type\":\"default\"}}");

    /* Both styles at once, if they agree. */
    accepts(native, "{\"attn_type_list\":[0,1,0,1],\"layernorm_mlp_alpha\":1.4}");
    check_common();
    accepts(hub, "{\"attn_type_list\":\"(remove)\",\"layer_types\":[\"full_attention\","
                 "\"full_attention\",\"linear_attention\",\"linear_attention\"]}");
    assert_int_equal(config.layers[0], LAYER_SOFTMAX);
    assert_int_equal(config.layers[2], LAYER_LIGHTNING);

    accepts(hub, "{\"tie_word_embeddings\":true,\"bos_token_id\":330,\"eos_token_id\":null,"
                 "\"layernorm_mlp_beta\":\"(remove)\",\"rope_theta\":10000000.0}");
    assert_true(config.tied_head);
    assert_int_equal(config.bos_token_id, 330);
    assert_int_equal(config.eos_token_id, -1);
    assert_true(config.beta_mlp == 1.0);
    accepts(hub, "{\"bos_token_id\":\"(remove)\",\"architectures\":\"(remove)\"}");
    assert_int_equal(config.bos_token_id, -1);
    accepts(native, "{\"bos_token_id\":null}");
    assert_int_equal(config.bos_token_id, -1);
}

static void test_goldens(void **state)
{
    (void)state;
    static const char *const names[] = {"hybrid-7to1", "many-experts", "mixed-factors"};
    for (size_t i = 0; i < 3; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/golden/%s", FUL_TEST_DATA, names[i]);
        assert_int_equal(config_load(NULL, path, &config), FUL_OK);
        assert_int_equal(config.decay, DECAY_ORIG);
    }
    assert_int_equal(config_load(NULL, FUL_TEST_DATA "/../samples/demo-model", &config), FUL_OK);
    assert_int_equal(config.decay, DECAY_HF);
    assert_int_equal(config.block_count, 8);
    assert_int_equal(config.head_dim, 64);
    assert_int_equal(config.rotary_dim, 32);
    assert_int_equal(config.bos_token_id, 4093);
    assert_int_equal(config.layers[6], LAYER_LIGHTNING);
    assert_int_equal(config.layers[7], LAYER_SOFTMAX);
}

/* ---- what is rejected ---- */

static void test_files(void **state)
{
    (void)state;
    assert_int_equal(config_load(NULL, scratch_path("absent"), &config), FUL_ERR_IO);
    assert_non_null(strstr(ful_last_error(), "/absent"));
    scratch_text("no-config/other", "");
    assert_int_equal(config_load(NULL, scratch_path("no-config"), &config), FUL_ERR_IO);
    assert_non_null(strstr(ful_last_error(), "no-config/config.json"));
    assert_int_equal(load_text("{\"a\":1,"), FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(), "config.json:1:"));
    assert_int_equal(load_text("[1]"), FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(), "config.json: not a JSON object"));
    assert_int_equal(load_text("{\"vocab_size\":1,\"vocab_size\":2}"), FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(), "vocab_size"));
    assert_int_equal(load_text(""), FUL_ERR_FORMAT);
}

static void test_unsupported(void **state)
{
    (void)state;
    static const char *const cases[][3] = {
        {"{\"model_type\":\"minimax_m2\"}", "'model_type'", "\"minimax_m2\""},
        {"{\"model_type\":\"minimax_vl_01\"}", "'model_type'", "\"minimax_vl_01\""},
        {"{\"model_type\":\"llama\"}", "'model_type'", "\"llama\""},
        {"{\"architectures\":[\"MiniMaxVL01ForConditionalGeneration\"]}", "'architectures'",
         "MiniMaxVL01ForConditionalGeneration"},
        {"{\"postnorm\":false}", "'postnorm'", "false"},
        {"{\"shared_intermediate_size\":512}", "'shared_intermediate_size'", "512"},
        {"{\"sliding_window\":4096}", "'sliding_window'", "4096"},
        {"{\"hidden_act\":\"gelu\"}", "'hidden_act'", "\"gelu\""},
        {"{\"hidden_act\":3}", "'hidden_act'", "3"},
        {"{\"quantization_config\":{\"quant_method\":\"fp8\"}}", "'quantization_config'", "fp8"},
        {"{\"rope_parameters\":{\"rope_type\":\"yarn\"}}", "rope_parameters.rope_type", "\"yarn\""},
        {"{\"rope_scaling\":{\"rope_type\":\"linear\"}}", "rope_scaling.rope_type", "\"linear\""},
        {"{\"rope_scaling\":{\"type\":\"dynamic\"}}", "rope_scaling.type", "\"dynamic\""},
        {"{\"rope_scaling\":{\"factor\":2.0}}", "'rope_scaling'", "2.0"},
        {"{\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1e4}}}", "'rope_parameters'",
         "full_attention"},
        {"{\"head_dim\":24,\"rotary_dim\":8}", "'head_dim' = 24", "multiple of 16"},
        {"{\"head_dim\":272}", "'head_dim' = 272", "256"},
        {"{\"hidden_size\":100}", "'hidden_size' = 100", "multiple of 8"},
        {"{\"intermediate_size\":12}", "'intermediate_size' = 12", "16 bytes"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        rejects(hub, cases[i][0], FUL_ERR_UNSUPPORTED, cases[i][1], cases[i][2]);
        rejects(native, cases[i][0], FUL_ERR_UNSUPPORTED, cases[i][1], cases[i][2]);
    }
    rejects(hub, "{\"postnorm\":\"(remove)\"}", FUL_ERR_UNSUPPORTED, "'postnorm'", "missing");
}

static void test_numbers(void **state)
{
    (void)state;
    static const char *const sizes[] = {
        "vocab_size",        "hidden_size",         "intermediate_size",
        "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
        "num_local_experts", "num_experts_per_tok", "max_position_embeddings",
        "head_dim",          "rotary_dim"};
    static const char *const values[] = {
        "0", "-4", "2.5", "4.0", "\"8\"", "[8]", "true", "2147483648", "9223372036854775807"};
    char change[128], key[64];
    for (size_t k = 0; k < sizeof sizes / sizeof sizes[0]; k++) {
        snprintf(key, sizeof key, "'%s'", sizes[k]);
        for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
            snprintf(change, sizeof change, "{\"%s\":%s}", sizes[k], values[v]);
            rejects(hub, change, FUL_ERR_FORMAT, key, values[v]);
            rejects(native, change, FUL_ERR_FORMAT, key, values[v]);
        }
        /* What a hub config does not say is not guessed. */
        snprintf(change, sizeof change, "{\"%s\":\"(remove)\"}", sizes[k]);
        if (k < 9)
            rejects(hub, change, FUL_ERR_FORMAT, key, "missing");
    }
    rejects(hub, "{\"rope_theta\":\"(remove)\"}", FUL_ERR_FORMAT, "'rope_theta'", "missing");
    rejects(hub, "{\"rms_norm_eps\":\"(remove)\"}", FUL_ERR_FORMAT, "'rms_norm_eps'", "missing");
    rejects(hub, "{\"attn_type_list\":\"(remove)\"}", FUL_ERR_FORMAT, "'attn_type_list'",
            "missing");
    rejects(hub, "{\"model_type\":\"(remove)\"}", FUL_ERR_FORMAT, "'model_type'", "missing");

    static const char *const factors[] = {"layernorm_linear_attention_alpha",
                                          "layernorm_full_attention_beta", "layernorm_mlp_alpha"};
    static const char *const wrong[] = {"\"2\"", "1e200", "-1e200", "[1]", "true"};
    static const char *const shown[] = {"\"2\"", "e200", "-1", "[1]", "true"};
    for (size_t k = 0; k < 3; k++) {
        snprintf(key, sizeof key, "'%s'", factors[k]);
        for (size_t v = 0; v < 5; v++) {
            snprintf(change, sizeof change, "{\"%s\":%s}", factors[k], wrong[v]);
            rejects(hub, change, FUL_ERR_FORMAT, key, shown[v]);
        }
    }
    static const char *const eps[] = {"0", "1", "-1e-5", "\"1e-5\"", "1.5"};
    static const char *const eps_shown[] = {"= 0:", "= 1:", "-1", "\"1e-5\"", "1.5"};
    for (size_t v = 0; v < 5; v++) {
        snprintf(change, sizeof change, "{\"rms_norm_eps\":%s}", eps[v]);
        rejects(hub, change, FUL_ERR_FORMAT, "'rms_norm_eps'", eps_shown[v]);
    }
    rejects(hub, "{\"rope_theta\":0}", FUL_ERR_FORMAT, "'rope_theta'", "= 0:");
    rejects(hub, "{\"rope_theta\":-10000}", FUL_ERR_FORMAT, "'rope_theta'", "-10000");
    rejects(hub, "{\"rope_theta\":\"1e4\"}", FUL_ERR_FORMAT, "'rope_theta'", "\"1e4\"");
    rejects(hub, "{\"num_hidden_layers\":1025}", FUL_ERR_FORMAT, "'num_hidden_layers'", "1024");
    rejects(hub, "{\"tie_word_embeddings\":1}", FUL_ERR_FORMAT, "'tie_word_embeddings'", "= 1:");
    rejects(hub, "{\"postnorm\":\"true\"}", FUL_ERR_FORMAT, "'postnorm'", "\"true\"");
    rejects(hub, "{\"shared_intermediate_size\":-1}", FUL_ERR_FORMAT, "'shared_intermediate_size'",
            "-1");
    rejects(hub, "{\"model_type\":5}", FUL_ERR_FORMAT, "'model_type'", "= 5:");
    rejects(hub, "{\"architectures\":\"x\"}", FUL_ERR_FORMAT, "'architectures'", "\"x\"");
    rejects(hub, "{\"architectures\":[1]}", FUL_ERR_FORMAT, "'architectures'", "[1]");
    rejects(hub, "{\"rope_parameters\":5}", FUL_ERR_FORMAT, "'rope_parameters'", "= 5:");
    rejects(hub, "{\"rope_scaling\":\"x\"}", FUL_ERR_FORMAT, "'rope_scaling'", "\"x\"");
    rejects(hub, "{\"rope_parameters\":{\"type\":5}}", FUL_ERR_FORMAT, "rope_parameters.type", "5");
}

static void test_tokens(void **state)
{
    (void)state;
    rejects(hub, "{\"bos_token_id\":331}", FUL_ERR_FORMAT, "'bos_token_id' = 331", "330");
    rejects(hub, "{\"bos_token_id\":-1}", FUL_ERR_FORMAT, "'bos_token_id'", "-1");
    rejects(hub, "{\"eos_token_id\":[]}", FUL_ERR_FORMAT, "'eos_token_id'", "[]");
    rejects(hub, "{\"eos_token_id\":[2,400]}", FUL_ERR_FORMAT, "'eos_token_id'", "400");
    rejects(hub, "{\"eos_token_id\":\"</s>\"}", FUL_ERR_FORMAT, "'eos_token_id'", "</s>");
    rejects(native, "{\"eos_token_id\":2.0}", FUL_ERR_FORMAT, "'eos_token_id'", "2.0");
}

static void test_contradictions(void **state)
{
    (void)state;
    rejects(hub, "{\"num_key_value_heads\":3}", FUL_ERR_FORMAT, "'num_attention_heads' = 8",
            "'num_key_value_heads' = 3");
    rejects(hub, "{\"num_experts_per_tok\":6}", FUL_ERR_FORMAT, "'num_experts_per_tok' = 6",
            "'num_local_experts' = 5");
    rejects(hub, "{\"rotary_dim\":34}", FUL_ERR_FORMAT, "'rotary_dim'", "34");
    rejects(hub, "{\"rotary_dim\":15}", FUL_ERR_FORMAT, "'rotary_dim'", "15");
    rejects(hub, "{\"head_dim\":null,\"num_attention_heads\":20}", FUL_ERR_FORMAT,
            "'hidden_size' = 96", "'num_attention_heads' = 20");
    rejects(native, "{\"partial_rotary_factor\":0.25}", FUL_ERR_FORMAT, "'rotary_dim' = 16",
            "'partial_rotary_factor' = 0.25");
    rejects(native, "{\"rope_parameters\":{\"partial_rotary_factor\":0.25}}", FUL_ERR_FORMAT,
            "'rotary_dim' = 16", "'rope_parameters.partial_rotary_factor' = 0.25");
    rejects(native,
            "{\"partial_rotary_factor\":0.5,\"rope_parameters\":{\"partial_rotary_factor\":0.25}}",
            FUL_ERR_FORMAT, "'partial_rotary_factor' = 0.5", "0.25");
    rejects(native, "{\"rotary_dim\":\"(remove)\",\"partial_rotary_factor\":0.26}", FUL_ERR_FORMAT,
            "'partial_rotary_factor' = 0.26", "8.32");
    rejects(native, "{\"rotary_dim\":\"(remove)\",\"partial_rotary_factor\":0}", FUL_ERR_FORMAT,
            "'partial_rotary_factor'", " 0 ");
    rejects(native, "{\"rotary_dim\":\"(remove)\",\"partial_rotary_factor\":1.5}", FUL_ERR_FORMAT,
            "'partial_rotary_factor'", "1.5");
    rejects(native, "{\"rope_theta\":20000}", FUL_ERR_FORMAT, "'rope_theta' = 20000", "10000");
    rejects(native, "{\"layernorm_mlp_alpha\":1.5}", FUL_ERR_FORMAT, "'layernorm_mlp_alpha' = 1.5",
            "'mlp_alpha_factor' = 1.3999999999999999");
    rejects(native, "{\"attn_type_list\":[0,1,1,1]}", FUL_ERR_FORMAT, "layer 2",
            "linear_attention");
}

static void test_layers(void **state)
{
    (void)state;
    rejects(hub, "{\"attn_type_list\":[0,1,0]}", FUL_ERR_FORMAT, "'attn_type_list' has 3",
            "'num_hidden_layers' is 4");
    rejects(hub, "{\"attn_type_list\":[0,1,0,2]}", FUL_ERR_FORMAT, "entry 3 = 2", "attn_type_list");
    rejects(hub, "{\"attn_type_list\":[0,1,\"0\",1]}", FUL_ERR_FORMAT, "entry 2 = \"0\"",
            "attn_type_list");
    rejects(hub, "{\"attn_type_list\":[0,true,0,1]}", FUL_ERR_FORMAT, "entry 1 = true",
            "attn_type_list");
    rejects(hub, "{\"attn_type_list\":7}", FUL_ERR_FORMAT, "'attn_type_list'", "= 7:");
    rejects(native, "{\"layer_types\":[\"full_attention\"]}", FUL_ERR_FORMAT, "'layer_types' has 1",
            "is 4");
    rejects(native,
            "{\"layer_types\":[\"full_attention\",\"full_attention\",\"sliding_attention\","
            "\"full_attention\"]}",
            FUL_ERR_FORMAT, "entry 2 = \"sliding_attention\"", "layer_types");
    rejects(native, "{\"layer_types\":[0,1,0,1]}", FUL_ERR_FORMAT, "entry 0 = 0", "layer_types");
}

static void test_overflow(void **state)
{
    (void)state;
    rejects(hub, "{\"num_attention_heads\":1073741824,\"head_dim\":256}", FUL_ERR_FORMAT,
            "'num_attention_heads' = 1073741824", "'head_dim' = 256");
    rejects(hub,
            "{\"hidden_size\":2147483640,\"intermediate_size\":2147483640,"
            "\"num_local_experts\":2147483647}",
            FUL_ERR_FORMAT, "'hidden_size' = 2147483640", "'num_local_experts' = 2147483647");
    rejects(hub, "{\"hidden_size\":1073741824,\"intermediate_size\":1073741824}", FUL_ERR_FORMAT,
            "'intermediate_size' = 1073741824", "2^60");
    rejects(hub, "{\"hidden_size\":1073741824,\"intermediate_size\":67108864}", FUL_ERR_FORMAT,
            "'intermediate_size' = 67108864", "2^60"); /* fits 64 bits */
    accepts(hub, "{\"hidden_size\":65536,\"intermediate_size\":65536,\"num_local_experts\":256}");
}

/* ---- slopes ---- */

static void slope_near(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance * fabs(want)))
        print_error("%.12g instead of %.12g\n", got, want);
    assert_true(fabs(got - want) <= tolerance * fabs(want));
}

static void check_real_slopes(decay_rule rule, uint32_t layer, double a, double b, double c,
                              double tolerance)
{
    double slopes[64];
    config = (model_config){.head_count = 64, .block_count = 80, .decay = rule};
    config_slopes(&config, layer, slopes);
    slope_near(slopes[0], a, tolerance);
    slope_near(slopes[31], b, tolerance);
    slope_near(slopes[63], c, tolerance);
}

static void test_slope_values(void **state)
{
    (void)state;
    check_real_slopes(DECAY_ORIG, 0, 0.917013213, 0.062500625, 0.00390628906, 2e-9);
    check_real_slopes(DECAY_ORIG, 1, 0.905405567, 0.0617094858, 0.00385684286, 2e-9);
    check_real_slopes(DECAY_ORIG, 78, 0.0116168162, 7.91764241e-4, 4.9485265e-5, 6e-9);
    check_real_slopes(DECAY_HF, 0, .917013228, .0625006407, .00390629051, 4e-7);
    check_real_slopes(DECAY_HF, 78, .0116169304, 7.91772211e-4, 4.94857704e-5, 4e-7);

    /* Six heads: interleaved against plain. */
    static const double alibi[] = {0.25, .0625, .015625, .00390625, .5, .125};
    static const double plain[] = {.39685, .15749, .0625, .0248, .00984, .00391};
    double slopes[6];
    config = (model_config){.head_count = 6, .block_count = 5, .decay = DECAY_ORIG};
    config_slopes(&config, 0, slopes);
    for (int h = 0; h < 6; h++)
        slope_near(slopes[h], alibi[h] * (1 + 1e-5), 1e-12);
    config_slopes(&config, 4, slopes);
    for (int h = 0; h < 6; h++)
        slope_near(slopes[h], alibi[h] * 1e-5, 1e-9);
    config.decay = DECAY_HF;
    config_slopes(&config, 0, slopes);
    for (int h = 0; h < 6; h++)
        slope_near(slopes[h], plain[h] * (1 + 1e-5), 1e-3);

    /* One layer, one head. */
    config = (model_config){.head_count = 1, .block_count = 1, .decay = DECAY_ORIG};
    config_slopes(&config, 0, slopes);
    slope_near(slopes[0], 0x1p-8 * (1 + 1e-5), 1e-12);
    config.decay = DECAY_HF;
    config_slopes(&config, 0, slopes);
    slope_near(slopes[0], 0x1p-8 * (1 + 1e-5), 1e-12);
}

static void test_slope_goldens(void **state)
{
    (void)state;
    static const char *const names[] = {"hybrid-7to1", "many-experts", "mixed-factors"};
    int compared = 0;
    for (size_t i = 0; i < 3; i++) {
        char path[512], name[32];
        tensor_file *file;
        snprintf(path, sizeof path, "%s/golden/%s", FUL_TEST_DATA, names[i]);
        assert_int_equal(config_load(NULL, path, &config), FUL_OK);
        config.decay = DECAY_HF; /* the goldens were made with it */
        snprintf(path, sizeof path, "%s/golden/%s/golden.safetensors", FUL_TEST_DATA, names[i]);
        assert_int_equal(tensor_file_open(NULL, path, &file), FUL_OK);
        for (uint32_t l = 0; l < config.block_count; l++) {
            double slopes[64];
            snprintf(name, sizeof name, "slope_%u", l);
            const tensor_info *t = tensor_file_find(file, name);
            assert_int_equal(t != NULL, config.layers[l] == LAYER_LIGHTNING);
            if (!t)
                continue;
            assert_int_equal(t->type, FUL_TYPE_F32);
            assert_int_equal(t->bytes, 4 * config.head_count);
            config_slopes(&config, l, slopes);
            for (uint32_t h = 0; h < config.head_count; h++, compared++) {
                float want;
                memcpy(&want, t->data + 4 * h, 4);
                slope_near(slopes[h], (double)want, 1e-6);
            }
        }
        tensor_file_close(&file);
    }
    assert_int_equal(compared, 7 * 2 + 3 * 4 + 3 * 8);
}

/* ---- failing memory, random damage ---- */

static void test_allocation_failures(void **state)
{
    (void)state;
    scratch_text("config.json", hub);
    for (size_t n = 1;; n++) {
        assert_true(n < 100);
        fault_alloc books = {.fail_at = n};
        ful_alloc a = fault_alloc_functions(&books);
        ful_result result = config_load(&a, scratch_dir(), &config);
        assert_int_equal(result, books.failed ? FUL_ERR_HOST_MEMORY : FUL_OK);
        assert_int_equal(books.live, 0);
        assert_false(books.broken);
        if (!books.failed) {
            assert_true(n > 2);
            return;
        }
    }
}

/* Whatever is accepted is inside what the runtime can do. */
static void check_limits(void)
{
    const model_config *c = &config;
    assert_true(c->vocab_size && c->context_length && c->expert_count);
    assert_true(c->hidden_size && c->hidden_size % 8 == 0);
    assert_true(c->intermediate_size && c->intermediate_size % 8 == 0);
    assert_true(c->block_count >= 1 && c->block_count <= CONFIG_MAX_LAYERS);
    assert_true(c->kv_head_count && c->head_count % c->kv_head_count == 0);
    assert_true(c->head_dim >= 16 && c->head_dim <= 256 && c->head_dim % 16 == 0);
    assert_true(c->rotary_dim >= 2 && c->rotary_dim <= c->head_dim && c->rotary_dim % 2 == 0);
    assert_true(c->top_k >= 1 && c->top_k <= c->expert_count);
    assert_true(c->norm_eps > 0 && c->norm_eps < 1);
    assert_true(isfinite((float)c->rope_theta) && c->rope_theta >= 1);
    assert_true(isfinite((float)c->alpha_lightning) && isfinite((float)c->beta_mlp));
    assert_true(c->bos_token_id >= -1 && c->bos_token_id < (int64_t)c->vocab_size);
    assert_true(c->eos_token_id >= -1 && c->eos_token_id < (int64_t)c->vocab_size);
    for (uint32_t l = 0; l < c->block_count; l++)
        assert_true(c->layers[l] <= 1);
}

static void mutate(const char *base, uint64_t seed, size_t *accepted)
{
    static const char interesting[] = "0123456789{}[]\",:-.eE\\ntf \xff\x01";
    char bad[2048];
    rng r = rng_seed(seed);
    for (int i = 0; i < 4000; i++) {
        size_t n = strlen(base);
        memcpy(bad, base, n);
        uint32_t edits = 1 + rng_below(&r, 3);
        for (uint32_t e = 0; e < edits; e++) {
            size_t at = rng_below(&r, (uint32_t)n);
            switch (rng_below(&r, 4)) {
            case 0:
                bad[at] = (char)(bad[at] ^ (1 << rng_below(&r, 8)));
                break;
            case 1:
                bad[at] = interesting[rng_below(&r, sizeof interesting - 1)];
                break;
            case 2: /* numbers grow or lose a digit */
                at = strcspn(bad + at, "0123456789") + at;
                if (at < n)
                    bad[at] = (char)('0' + rng_below(&r, 10));
                break;
            default:
                memmove(bad + at + 1, bad + at, n - at);
                bad[at] = interesting[rng_below(&r, sizeof interesting - 1)];
                n++;
                break;
            }
            bad[n] = '\0';
        }
        ful_result result = config_load(NULL, scratch_write("mut.json", bad, n), &config);
        if (result == FUL_OK) {
            ++*accepted;
            check_limits();
        } else {
            assert_true(result == FUL_ERR_FORMAT || result == FUL_ERR_UNSUPPORTED);
            assert_non_null(strstr(ful_last_error(), "mut.json"));
        }
    }
}

static void test_mutations(void **state)
{
    (void)state;
    size_t accepted = 0;
    mutate(hub, 3, &accepted);
    mutate(native, 4, &accepted);
    assert_true(accepted > 200 && accepted < 7000);
}

static int begin(void **state)
{
    (void)state;
    scratch_begin();
    return 0;
}

static int end(void **state)
{
    (void)state;
    scratch_end();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_styles),         cmocka_unit_test(test_native_defaults),
        cmocka_unit_test(test_spellings),      cmocka_unit_test(test_goldens),
        cmocka_unit_test(test_files),          cmocka_unit_test(test_unsupported),
        cmocka_unit_test(test_numbers),        cmocka_unit_test(test_tokens),
        cmocka_unit_test(test_contradictions), cmocka_unit_test(test_layers),
        cmocka_unit_test(test_overflow),       cmocka_unit_test(test_slope_values),
        cmocka_unit_test(test_slope_goldens),  cmocka_unit_test(test_allocation_failures),
        cmocka_unit_test(test_mutations),
    };
    return cmocka_run_group_tests(tests, begin, end);
}
