/* Runs the fuzz target without libFuzzer.
 *
 * fuzz_main SECONDS [SEED] [SEED-FILE...]: mutates the seeds (small files made here, and those
 * named) for so long and prints how many inputs were tried. The input at hand lies in
 * fuzz-input.bin of the working folder if the program dies. Without libFuzzer's feedback it finds
 * less; so mutations know what numbers the formats trip over. fuzz_main --replay FILE...: tries
 * these inputs once. fuzz_main --seeds FOLDER: writes the seeds, a corpus for libFuzzer to begin
 * with.
 */
#include "fuzz.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "../util/gguf_image.h"
#include "../util/rng.h"

enum { MAX_BYTES = 1 << 20, MAX_SEEDS = 64 };

typedef struct seed {
    uint8_t *data;
    size_t bytes;
} seed;

static seed seeds[MAX_SEEDS];
static size_t seed_count;
static uint8_t input[MAX_BYTES];
static size_t input_bytes;

static void seed_add(const void *data, size_t bytes)
{
    if (seed_count == MAX_SEEDS || bytes == 0 || bytes > MAX_BYTES)
        return;
    seed *s = &seeds[seed_count++];
    s->data = malloc(bytes);
    s->bytes = bytes;
    if (!s->data)
        exit(1);
    memcpy(s->data, data, bytes);
}

static void seed_file(const char *path)
{
    static uint8_t room[MAX_BYTES];
    FILE *f = fopen(path, "rb");
    if (!f) {
        perror(path);
        exit(2);
    }
    seed_add(room, fread(room, 1, sizeof room, f));
    fclose(f);
}

/* ---- seeds ---- */

static void seed_safetensors(void)
{
    static const char header[] =
        "{\"__metadata__\":{\"format\":\"pt\"},\"b\":{\"dtype\":\"BF16\",\"shape\":[2,3],"
        "\"data_offsets\":[8,20]},\"a\":{\"dtype\":\"F32\",\"shape\":[2],\"data_offsets\":[0,8]},"
        "\"none\":{\"dtype\":\"F16\",\"shape\":[0,7],\"data_offsets\":[20,20]}} ";
    gguf_image g = {.n = 0};
    image_u64(&g, sizeof header - 1);
    image_raw(&g, header, sizeof header - 1);
    image_data(&g, 1, 20);
    seed_add(g.bytes, g.n);
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
static void seed_model(void)
{
    static const struct {
        const char *name;
        uint32_t n_dims;
        uint64_t ne[3];
    } tensors[] = {
        {"token_embd.weight", 2, {16, 260}},         {"output_norm.weight", 1, {16}},
        {"blk.0.attn_norm.weight", 1, {16}},         {"blk.0.ffn_norm.weight", 1, {16}},
        {"blk.0.attn_qkv.weight", 2, {16, 48}},      {"blk.0.attn_gate.weight", 2, {16, 16}},
        {"blk.0.attn_norm_2.weight", 1, {16}},       {"blk.0.attn_output.weight", 2, {16, 16}},
        {"blk.0.ffn_gate_inp.weight", 2, {16, 2}},   {"blk.0.ffn_gate_exps.weight", 3, {16, 8, 2}},
        {"blk.0.ffn_up_exps.weight", 3, {16, 8, 2}}, {"blk.0.ffn_down_exps.weight", 3, {8, 16, 2}},
        {"blk.1.attn_norm.weight", 1, {16}},         {"blk.1.ffn_norm.weight", 1, {16}},
        {"blk.1.attn_q.weight", 2, {16, 16}},        {"blk.1.attn_k.weight", 2, {16, 16}},
        {"blk.1.attn_v.weight", 2, {16, 16}},        {"blk.1.attn_output.weight", 2, {16, 16}},
        {"blk.1.ffn_gate_inp.weight", 2, {16, 2}},   {"blk.1.ffn_gate_exps.weight", 3, {16, 8, 2}},
        {"blk.1.ffn_up_exps.weight", 3, {16, 8, 2}}, {"blk.1.ffn_down_exps.weight", 3, {8, 16, 2}}};
    static const struct {
        const char *key;
        uint32_t value;
    } sizes[] = {{"block_count", 2},           {"context_length", 64},
                 {"embedding_length", 16},     {"feed_forward_length", 8},
                 {"attention.head_count", 1},  {"attention.head_count_kv", 1},
                 {"attention.key_length", 16}, {"attention.value_length", 16},
                 {"rope.dimension_count", 8},  {"expert_count", 2},
                 {"expert_used_count", 1},     {"full_attention_interval", 2}};
    enum { TENSORS = sizeof tensors / sizeof *tensors, SIZES = sizeof sizes / sizeof *sizes };
    gguf_image g;
    char key[80];
    uint64_t offset = 0;
    image_head(&g, 3, TENSORS, SIZES + 11);
    image_key_text(&g, "general.architecture", "minimax-01");
    for (size_t i = 0; i < SIZES; i++) {
        snprintf(key, sizeof key, "minimax-01.%s", sizes[i].key);
        image_key_u32(&g, key, sizes[i].value);
    }
    image_key(&g, "minimax-01.attention.layer_norm_rms_epsilon", GGUF_F32);
    image_u32(&g, 0x3727c5ac);
    image_key(&g, "minimax-01.rope.freq_base", GGUF_F32), image_u32(&g, 0x461c4000);
    image_key(&g, "minimax-01.residual_scale", GGUF_F32), image_u32(&g, 0x40000000);
    image_key_text(&g, "tokenizer.ggml.model", "gpt2");
    image_key_text(&g, "tokenizer.ggml.pre", "minimax-m2");
    image_key(&g, "tokenizer.ggml.tokens", GGUF_ARRAY);
    image_u32(&g, GGUF_TEXT), image_u64(&g, 260);
    byte_texts(&g);
    image_text(&g, "on"), image_text(&g, "ce"), image_text(&g, "[PAD258]");
    image_text(&g, "<end_of_sentence>");
    image_key(&g, "tokenizer.ggml.token_type", GGUF_ARRAY);
    image_u32(&g, GGUF_I32), image_u64(&g, 260);
    for (uint32_t i = 0; i < 260; i++)
        image_u32(&g, i == 258 ? 5 : i == 259 ? 3 : 1);
    image_key(&g, "tokenizer.ggml.merges", GGUF_ARRAY);
    image_u32(&g, GGUF_TEXT), image_u64(&g, 2);
    image_text(&g, "o n"), image_text(&g, "c e");
    image_key_u32(&g, "tokenizer.ggml.bos_token_id", 259);
    image_key_u32(&g, "tokenizer.ggml.eos_token_id", 259);
    for (size_t i = 0; i < TENSORS; i++) {
        image_tensor(&g, tensors[i].name, tensors[i].n_dims, tensors[i].ne, 0, offset);
        uint64_t bytes = 4;
        for (uint32_t d = 0; d < tensors[i].n_dims; d++)
            bytes *= tensors[i].ne[d];
        offset += (bytes + 31) / 32 * 32;
    }
    image_data(&g, 32, (size_t)offset);
    seed_add(g.bytes, g.n);
}

static void seeds_make(void)
{
    static gguf_image g;
    image_good(&g);
    seed_add(g.bytes, g.n);
    seed_model();
    seed_safetensors();
}

/* ---- mutations ---- */

static void number_put(rng *r, size_t at)
{
    static const uint64_t odd[] = {0,
                                   1,
                                   2,
                                   31,
                                   32,
                                   255,
                                   256,
                                   65535,
                                   INT32_MAX,
                                   UINT32_MAX,
                                   INT64_MAX,
                                   UINT64_MAX,
                                   UINT64_C(1) << 63,
                                   UINT64_C(1) << 61,
                                   UINT64_C(1) << 32,
                                   1000000};
    uint64_t n = odd[rng_below(r, sizeof odd / sizeof *odd)];
    size_t bytes = (size_t)1 << rng_below(r, 4);
    for (size_t i = 0; i < bytes && at + i < input_bytes; i++)
        input[at + i] = (uint8_t)(n >> 8 * i);
}

/* A stretch of a seed (the same one, or another) in this place. */
static void stretch_put(rng *r, size_t at)
{
    const seed *s = &seeds[rng_below(r, (uint32_t)seed_count)];
    size_t from = rng_below(r, (uint32_t)s->bytes), n = 1 + rng_below(r, 64);
    n = n < s->bytes - from ? n : s->bytes - from;
    n = n < input_bytes - at ? n : input_bytes - at;
    memcpy(input + at, s->data + from, n);
}

static void mutate(rng *r)
{
    /* Most of what matters is in the head. */
    uint32_t within = rng_below(r, 4) ? (uint32_t)(input_bytes < 8192 ? input_bytes : 8192)
                                      : (uint32_t)input_bytes;
    size_t at = rng_below(r, within), n;
    switch (rng_below(r, 8)) {
    case 0:
        input[at] ^= (uint8_t)(1u << rng_below(r, 8));
        break;
    case 1:
        input[at] = (uint8_t)rng_next(r);
        break;
    case 2:
    case 3:
        number_put(r, at);
        break;
    case 4:
        stretch_put(r, at);
        break;
    case 5: /* some bytes fewer */
        n = 1 + rng_below(r, 16);
        if (n < input_bytes - at) {
            memmove(input + at, input + at + n, input_bytes - at - n);
            input_bytes -= n;
        }
        break;
    case 6: /* some bytes more */
        n = 1 + rng_below(r, 16);
        if (n <= MAX_BYTES - input_bytes) {
            memmove(input + at + n, input + at, input_bytes - at);
            input_bytes += n;
        }
        break;
    default:
        if (rng_below(r, 8) == 0)
            input_bytes = at + 1;
        break;
    }
}

static unsigned try_input(void)
{
    uint8_t *copy = malloc(input_bytes); /* its end is the block's */
    if (!copy)
        exit(1);
    memcpy(copy, input, input_bytes);
    unsigned read = fuzz_try(copy, input_bytes);
    free(copy);
    return read;
}

static void on_death(int number)
{
    FILE *f = fopen("fuzz-input.bin", "wb");
    if (f) {
        fwrite(input, 1, input_bytes, f);
        fclose(f);
    }
    signal(number, SIG_DFL);
    raise(number);
}

static int replay(int argc, char **argv)
{
    for (int i = 2; i < argc; i++) {
        seed_count = 0;
        seed_file(argv[i]);
        if (seed_count > 0)
            LLVMFuzzerTestOneInput(seeds[0].data, seeds[0].bytes);
    }
    printf("%d inputs\n", argc - 2);
    return 0;
}

static int write_seeds(const char *folder)
{
    char path[4096];
    for (size_t i = 0; i < seed_count; i++) {
        snprintf(path, sizeof path, "%s/seed-%zu", folder, i);
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(seeds[i].data, 1, seeds[i].bytes, f) != seeds[i].bytes || fclose(f) != 0) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    seeds_make();
    if (argc >= 2 && strcmp(argv[1], "--replay") == 0)
        return replay(argc, argv);
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
        return write_seeds(argv[2]);
    if (argc < 2 || atof(argv[1]) <= 0.0) {
        fprintf(stderr,
                "usage: fuzz_main SECONDS [SEED] [SEED-FILE...] | --replay FILE... | --seeds "
                "FOLDER\n");
        return 2;
    }
    rng r = rng_seed(argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    for (int i = 3; i < argc; i++)
        seed_file(argv[i]);
    signal(SIGSEGV, on_death);
    signal(SIGABRT, on_death);
    clock_t end = clock() + (clock_t)(atof(argv[1]) * CLOCKS_PER_SEC);
    unsigned long long tried = 0, opened = 0, models = 0;
    /* The seeds made here must be read in full, or their mutations test little. */
    static const unsigned wanted[] = {FUZZ_OPENED, FUZZ_OPENED | FUZZ_MODEL | FUZZ_TOKENS,
                                      FUZZ_OPENED};
    for (size_t i = 0; i < seed_count; i++) {
        input_bytes = seeds[i].bytes;
        memcpy(input, seeds[i].data, input_bytes);
        unsigned read = try_input();
        if (i < sizeof wanted / sizeof *wanted && read != wanted[i]) {
            fprintf(stderr, "seed %zu: read to %u, not %u\n", i, read, wanted[i]);
            return 1;
        }
    }
    while (clock() < end) {
        const seed *s = &seeds[rng_below(&r, (uint32_t)seed_count)];
        input_bytes = s->bytes;
        memcpy(input, s->data, input_bytes);
        for (uint32_t n = 1 + rng_below(&r, 4); n > 0; n--)
            mutate(&r);
        unsigned read = try_input();
        tried++;
        opened += (read & FUZZ_OPENED) != 0;
        models += (read & FUZZ_MODEL) != 0;
    }
    printf("%llu inputs tried, none failed; %llu could be opened, %llu were models\n", tried,
           opened, models);
    return 0;
}
