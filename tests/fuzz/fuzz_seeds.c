/* Small files of every kind that the readers know: what mutations begin with. */
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../util/gguf_image.h"
#include "fuzz.h"

enum { MODEL_SIZES = 12 };

static gguf_image made;
static fuzz_seed *room;
static size_t room_count;

static void seed_add(const gguf_image *image, fuzz_format format, unsigned read)
{
    fuzz_seed *s = &room[room_count++];
    *s = (fuzz_seed){malloc(image->n), image->n, format, read};
    if (!s->data)
        exit(1);
    memcpy(s->data, image->bytes, image->n);
}

static void seed_safetensors(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
        "\"data_offsets\":[8,20]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[20,20]}} ";
    made.n = 0;
    image_u64(&made, sizeof header - 1);
    image_raw(&made, header, sizeof header - 1);
    image_data(&made, 1, 20);
    seed_add(&made, FUZZ_SAFETENSORS, FUZZ_OPENED);
}

/* Every type of the format, and names as checkpoints have them. */
static void seed_index_of_types(void)
{
    static const char *const types[] = {"BOOL", "U8",  "I8",  "F8_E4M3", "F8_E5M2",
                                        "I16",  "U16", "F16", "BF16",    "I32",
                                        "U32",  "F32", "F64", "I64",     "U64"};
    static const unsigned bytes[] = {1, 1, 1, 1, 1, 2, 2, 2, 2, 4, 4, 4, 8, 8, 8};
    static char header[4096];
    size_t n = 0, at = 0;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) {
        n += (size_t)snprintf(header + n, sizeof header - n,
                              "%s\"model.layers.%zu.self_attn.x.weight\":{\"dtype\":\"%s\","
                              "\"shape\":[1,3],\"data_offsets\":[%zu,%zu]}",
                              i ? "," : "{", i, types[i], at, at + 3 * bytes[i]);
        at += 3 * bytes[i];
    }
    header[n++] = '}';
    made.n = 0;
    image_u64(&made, n);
    image_raw(&made, header, n);
    image_data(&made, 1, at);
    seed_add(&made, FUZZ_SAFETENSORS, FUZZ_OPENED);
}

static void byte_texts(gguf_image *g)
{
    char text[4];
    for (uint32_t b = 0, next = 0x100; b < 256; b++) {
        bool prints = (b >= 0x21 && b <= 0x7e) || (b >= 0xa1 && b != 0xad);
        uint32_t point = prints ? b : next++;
        if (point < 0x80)
            snprintf(text, sizeof text, "%c", (int)point);
        else
            snprintf(text, sizeof text, "%c%c", (int)(0xc0 | point >> 6),
                     (int)(0x80 | (point & 63)));
        image_text(g, text);
    }
}

/* One lightning and one softmax layer of the smallest sizes, with a tokenizer. */
typedef struct model_tensor {
    const char *name;
    uint32_t n_dims;
    uint64_t ne[3];
} model_tensor;

enum { HIDDEN = 32, ROWS = 260 };

static const model_tensor model_tensors[] = {
    {"token_embd.weight", 2, {HIDDEN, ROWS}},
    {"output_norm.weight", 1, {HIDDEN}},
    {"blk.0.attn_norm.weight", 1, {HIDDEN}},
    {"blk.0.ffn_norm.weight", 1, {HIDDEN}},
    {"blk.0.attn_qkv.weight", 2, {HIDDEN, 3 * HIDDEN}},
    {"blk.0.attn_gate.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.0.attn_norm_2.weight", 1, {HIDDEN}},
    {"blk.0.attn_output.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.0.ffn_gate_inp.weight", 2, {HIDDEN, 2}},
    {"blk.0.ffn_gate_exps.weight", 3, {HIDDEN, HIDDEN, 2}},
    {"blk.0.ffn_up_exps.weight", 3, {HIDDEN, HIDDEN, 2}},
    {"blk.0.ffn_down_exps.weight", 3, {HIDDEN, HIDDEN, 2}},
    {"blk.1.attn_norm.weight", 1, {HIDDEN}},
    {"blk.1.ffn_norm.weight", 1, {HIDDEN}},
    {"blk.1.attn_q.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.1.attn_k.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.1.attn_v.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.1.attn_output.weight", 2, {HIDDEN, HIDDEN}},
    {"blk.1.ffn_gate_inp.weight", 2, {HIDDEN, 2}},
    {"blk.1.ffn_gate_exps.weight", 3, {HIDDEN, HIDDEN, 2}},
    {"blk.1.ffn_up_exps.weight", 3, {HIDDEN, HIDDEN, 2}},
    {"blk.1.ffn_down_exps.weight", 3, {HIDDEN, HIDDEN, 2}}};
enum { MODEL_TENSORS = sizeof model_tensors / sizeof *model_tensors };

static void model_sizes(gguf_image *g)
{
    static const struct {
        const char *key;
        uint32_t value;
    } sizes[MODEL_SIZES] = {{"block_count", 2},
                            {"context_length", 64},
                            {"embedding_length", HIDDEN},
                            {"feed_forward_length", HIDDEN},
                            {"attention.head_count", 1},
                            {"attention.head_count_kv", 1},
                            {"attention.key_length", HIDDEN},
                            {"attention.value_length", HIDDEN},
                            {"rope.dimension_count", 8},
                            {"expert_count", 2},
                            {"expert_used_count", 1},
                            {"full_attention_interval", 2}};
    char key[80];
    image_key_text(g, "general.architecture", "minimax-01");
    for (size_t i = 0; i < MODEL_SIZES; i++) {
        snprintf(key, sizeof key, "minimax-01.%s", sizes[i].key);
        image_key_u32(g, key, sizes[i].value);
    }
    image_key(g, "minimax-01.attention.layer_norm_rms_epsilon", GGUF_F32);
    image_u32(g, 0x3727c5ac);
    image_key(g, "minimax-01.rope.freq_base", GGUF_F32), image_u32(g, 0x461c4000);
    image_key(g, "minimax-01.residual_scale", GGUF_F32), image_u32(g, 0x40000000);
}

static void model_tokenizer(gguf_image *g)
{
    image_key_text(g, "tokenizer.ggml.model", "gpt2");
    image_key_text(g, "tokenizer.ggml.pre", "minimax-m2");
    image_key(g, "tokenizer.ggml.tokens", GGUF_ARRAY);
    image_u32(g, GGUF_TEXT), image_u64(g, ROWS);
    byte_texts(g);
    image_text(g, "on"), image_text(g, "ce"), image_text(g, "[PAD258]");
    image_text(g, "<end_of_sentence>");
    image_key(g, "tokenizer.ggml.token_type", GGUF_ARRAY);
    image_u32(g, GGUF_I32), image_u64(g, ROWS);
    for (uint32_t i = 0; i < ROWS; i++)
        image_u32(g, i == 258 ? 5 : i == 259 ? 3 : 1);
    image_key(g, "tokenizer.ggml.merges", GGUF_ARRAY);
    image_u32(g, GGUF_TEXT), image_u64(g, 2);
    image_text(g, "o n"), image_text(g, "c e");
    image_key_u32(g, "tokenizer.ggml.bos_token_id", 259);
    image_key(g, "tokenizer.ggml.add_bos_token", GGUF_BOOL), image_raw(g, "\1", 1);
    image_key_u32(g, "tokenizer.ggml.eos_token_id", 259);
    image_key_text(g, "tokenizer.chat_template", "<beginning_of_sentence>ai name=assistant");
}

/* Places a tensor of rows of blocks behind those before it. */
static void tensor_put(gguf_image *g, const char *name, uint32_t n_dims, const uint64_t *ne,
                       uint32_t id, uint64_t *offset)
{
    const gguf_tensor_type *type = gguf_type_by_id(id);
    image_tensor(g, name, n_dims, ne, id, *offset);
    uint64_t bytes = ne[0] / type->block_elements * type->block_bytes;
    for (uint32_t d = 1; d < n_dims; d++)
        bytes *= ne[d];
    *offset += (bytes + 31) / 32 * 32;
}

/* blocks: matrices of every type that has blocks of 32, one after the other */
static void seed_model(bool blocks)
{
    static const uint32_t ids[] = {8, 2, 3, 6, 7, 20, 39};
    uint64_t offset = 0;
    image_head(&made, 3, MODEL_TENSORS, 1 + MODEL_SIZES + 3 + 9);
    model_sizes(&made);
    model_tokenizer(&made);
    for (size_t i = 0; i < MODEL_TENSORS; i++) {
        const model_tensor *t = &model_tensors[i];
        bool wide = t->n_dims == 1 || strstr(t->name, "gate_inp");
        uint32_t id = wide ? 0 : blocks ? ids[i % (sizeof ids / sizeof *ids)] : 30;
        tensor_put(&made, t->name, t->n_dims, t->ne, id, &offset);
    }
    image_data(&made, 32, (size_t)offset);
    seed_add(&made, FUZZ_GGUF, FUZZ_OPENED | FUZZ_MODEL | FUZZ_TOKENS);
}

/* A block of each type that the format has. */
static void seed_types(void)
{
    enum { MAX_TYPE = 64 };
    uint64_t offset = 0, count = 0;
    char name[32];
    for (uint32_t id = 0; id < MAX_TYPE; id++)
        count += gguf_type_by_id(id) != NULL;
    image_head(&made, 3, count, 0);
    for (uint32_t id = 0; id < MAX_TYPE; id++) {
        const gguf_tensor_type *type = gguf_type_by_id(id);
        if (!type)
            continue;
        snprintf(name, sizeof name, "of_%s", type->name);
        tensor_put(&made, name, 1, (const uint64_t[]){type->block_elements}, id, &offset);
    }
    image_data(&made, 32, (size_t)offset);
    seed_add(&made, FUZZ_GGUF, FUZZ_OPENED);
}

/* Sums of squared activations and counts, as tools that weigh columns keep them. */
static void seed_importance(void)
{
    static const model_tensor tensors[] = {{"blk.0.attn_qkv.weight.in_sum2", 2, {HIDDEN, 1}},
                                           {"blk.0.attn_qkv.weight.counts", 2, {1, 1}},
                                           {"blk.0.ffn_up_exps.weight.in_sum2", 2, {HIDDEN, 2}},
                                           {"blk.0.ffn_up_exps.weight.counts", 2, {1, 2}}};
    uint64_t offset = 0;
    image_head(&made, 3, sizeof tensors / sizeof *tensors, 4);
    image_key_text(&made, "general.type", "imatrix");
    image_key(&made, "imatrix.datasets", GGUF_ARRAY);
    image_u32(&made, GGUF_TEXT), image_u64(&made, 1), image_text(&made, "text.txt");
    image_key_u32(&made, "imatrix.chunk_count", 3);
    image_key_u32(&made, "imatrix.chunk_size", 512);
    for (size_t i = 0; i < sizeof tensors / sizeof *tensors; i++)
        tensor_put(&made, tensors[i].name, tensors[i].n_dims, tensors[i].ne, 0, &offset);
    image_data(&made, 32, 0);
    for (uint64_t i = 0; i < offset / 4; i++)
        image_u32(&made, 0x3f800000u); /* 1: any other number might be no count */
    seed_add(&made, FUZZ_GGUF, FUZZ_OPENED | FUZZ_IMPORTANCE);
}

size_t fuzz_seeds_make(fuzz_seed *out)
{
    room = out;
    room_count = 0;
    image_good(&made);
    seed_add(&made, FUZZ_GGUF, FUZZ_OPENED);
    seed_model(false);
    seed_model(true);
    seed_types();
    seed_importance();
    seed_safetensors();
    seed_index_of_types();
    return room_count;
}
