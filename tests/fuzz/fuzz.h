#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* How far an input was read. */
enum {
    FUZZ_OPENED = 1,
    FUZZ_MODEL = 2,
    FUZZ_TOKENS = 4, /* or there is no tokenizer here */
    FUZZ_IMPORTANCE = 8
};
unsigned fuzz_try(const uint8_t *data, size_t bytes);

typedef enum fuzz_format { FUZZ_ANY, FUZZ_GGUF, FUZZ_SAFETENSORS } fuzz_format;

typedef struct fuzz_seed {
    uint8_t *data;
    size_t bytes;
    fuzz_format format;
    unsigned read; /* how far it must be, or its mutations test little */
} fuzz_seed;

/* Allocates them; at most FUZZ_MADE. */
enum { FUZZ_MADE = 16 };
size_t fuzz_seeds_make(fuzz_seed *out);

/* libFuzzer's entry: 0, or it does not return. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#endif
