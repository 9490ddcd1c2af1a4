/* Runs the fuzz target without libFuzzer.
 *
 * fuzz_main SECONDS [SEED] [gguf|safetensors] [SEED-FILE...]: mutates the seeds (small files made
 * here, of that format if one is named, and the files) for so many seconds of processor time and
 * prints how many inputs were tried. The input at hand lies in
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

#include "../util/rng.h"

enum { MAX_BYTES = 1 << 20, MAX_SEEDS = 64 };

static fuzz_seed seeds[MAX_SEEDS + FUZZ_MADE];
static size_t seed_count;
static uint8_t input[MAX_BYTES];
static size_t input_bytes;

static void seed_add(const void *data, size_t bytes)
{
    if (seed_count == MAX_SEEDS || bytes == 0 || bytes > MAX_BYTES)
        return;
    fuzz_seed *s = &seeds[seed_count++];
    *s = (fuzz_seed){.data = malloc(bytes), .bytes = bytes};
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
    const fuzz_seed *s = &seeds[rng_below(r, (uint32_t)seed_count)];
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

/* Of the seeds made, those of one format stay. */
static void seeds_choose(fuzz_format format)
{
    size_t n = 0;
    for (size_t i = 0; i < seed_count; i++) {
        if (format == FUZZ_ANY || seeds[i].format == format)
            seeds[n++] = seeds[i];
        else
            free(seeds[i].data);
    }
    seed_count = n;
}

int main(int argc, char **argv)
{
    int named = 3;
    seed_count = fuzz_seeds_make(seeds);
    if (argc >= 2 && strcmp(argv[1], "--replay") == 0)
        return replay(argc, argv);
    if (argc == 3 && strcmp(argv[1], "--seeds") == 0)
        return write_seeds(argv[2]);
    if (argc < 2 || atof(argv[1]) <= 0.0) {
        fprintf(stderr,
                "usage: fuzz_main SECONDS [SEED] [gguf|safetensors] [SEED-FILE...] | --replay "
                "FILE... | --seeds FOLDER\n");
        return 2;
    }
    rng r = rng_seed(argc > 2 ? strtoull(argv[2], NULL, 10) : 1);
    if (argc > 3 && (strcmp(argv[3], "gguf") == 0 || strcmp(argv[3], "safetensors") == 0))
        seeds_choose(*argv[named++] == 'g' ? FUZZ_GGUF : FUZZ_SAFETENSORS);
    for (int i = named; i < argc; i++)
        seed_file(argv[i]);
    signal(SIGSEGV, on_death);
    signal(SIGABRT, on_death);
    clock_t end = clock() + (clock_t)(atof(argv[1]) * CLOCKS_PER_SEC);
    unsigned long long tried = 0, opened = 0, models = 0;
    for (size_t i = 0; i < seed_count; i++) {
        input_bytes = seeds[i].bytes;
        memcpy(input, seeds[i].data, input_bytes);
        unsigned read = try_input();
        if (seeds[i].format != FUZZ_ANY && read != seeds[i].read) {
            fprintf(stderr, "seed %zu: read to %u, not %u\n", i, read, seeds[i].read);
            return 1;
        }
    }
    while (clock() < end) {
        const fuzz_seed *s = &seeds[rng_below(&r, (uint32_t)seed_count)];
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
