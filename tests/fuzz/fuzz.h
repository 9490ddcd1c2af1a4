#ifndef TESTS_FUZZ_FUZZ_H
#define TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/* How far an input was read. */
enum { FUZZ_OPENED = 1, FUZZ_MODEL = 2, FUZZ_TOKENS = 4 /* or there is no tokenizer here */ };
unsigned fuzz_try(const uint8_t *data, size_t bytes);

/* libFuzzer's entry: 0, or it does not return. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

#endif
