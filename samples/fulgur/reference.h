/* Logits of a text on disk, to hold other weights of the same model against.
 *
 * The file, little endian: "FULLOGIT", u32 version (1), u32 vocabulary, u64 rows, u64 FNV-1a over
 * the 32-bit token ids fed, window after window; then the rows, vocabulary float32 each. */
#ifndef FULGUR_SAMPLES_REFERENCE_H
#define FULGUR_SAMPLES_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

typedef struct reference {
    const char *path;
    char *part; /* name while it is written */
    FILE *file;
    bool writing;
    uint32_t vocab;
    uint64_t rows, row; /* in the file; next */
    uint64_t hash, want;
    float *logits;
} reference;

/* All print why and return false. A file that is there is never overwritten. */
bool reference_create(reference *r, const char *path, uint32_t vocab);
bool reference_open(reference *r, const char *path, uint32_t vocab);
/* What is fed next. */
void reference_feed(reference *r, const int32_t *ids, size_t n);
bool reference_write(reference *r, const float *logits);
const float *reference_read(reference *r); /* NULL: printed why */
/* Completes a file and gives it its name, or checks that all was read and that the text was the
 * same. keep false: nothing is left. */
bool reference_end(reference *r, bool keep);

/* How far logits are from the reference's, summed over rows. */
typedef struct divergence {
    uint64_t rows, same_top;
    double kl, kl_squares, most; /* of KL(reference || logits), nats */
    float *each;                 /* KL of each row; free() it */
    uint64_t capacity;
} divergence;
bool divergence_add(divergence *d, const float *from, const float *logits, size_t n);
double divergence_quantile(divergence *d, double share); /* sorts `each` */

#endif
