#include "reference.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "cli.h"

static const char magic[8] = {'F', 'U', 'L', 'L', 'O', 'G', 'I', 'T'};
enum { VERSION = 1, HEADER_BYTES = 32 };

static void put(unsigned char *at, uint64_t value, int bytes)
{
    for (int i = 0; i < bytes; i++)
        at[i] = (unsigned char)(value >> 8 * i);
}

static uint64_t get(const unsigned char *at, int bytes)
{
    uint64_t value = 0;
    for (int i = 0; i < bytes; i++)
        value |= (uint64_t)at[i] << 8 * i;
    return value;
}

static bool say(const reference *r, const char *what)
{
    fprintf(stderr, "fulgur: %s: %s\n", r->path, what);
    return false;
}

static bool header_write(reference *r)
{
    unsigned char head[HEADER_BYTES] = {0};
    memcpy(head, magic, sizeof magic);
    put(head + 8, VERSION, 4);
    put(head + 12, r->vocab, 4);
    put(head + 16, r->rows, 8);
    put(head + 24, r->hash, 8);
    return fwrite(head, 1, sizeof head, r->file) == sizeof head || say(r, strerror(errno));
}

static void begin(reference *r, const char *path, uint32_t vocab)
{
    *r = (reference){.path = path, .vocab = vocab, .hash = UINT64_C(0xcbf29ce484222325)};
}

bool reference_create(reference *r, const char *path, uint32_t vocab)
{
    begin(r, path, vocab);
    r->writing = true;
    FILE *there = fopen(path, "rb");
    if (there) {
        fclose(there);
        return say(r, "is there already and is not overwritten");
    }
    size_t bytes = strlen(path) + sizeof ".part";
    r->part = malloc(bytes);
    if (!r->part)
        return say(r, "out of memory");
    snprintf(r->part, bytes, "%s.part", path);
    r->file = fopen(r->part, "wb");
    if (!r->file)
        return say(r, strerror(errno));
    return header_write(r);
}

bool reference_open(reference *r, const char *path, uint32_t vocab)
{
    unsigned char head[HEADER_BYTES];
    char line[128];
    begin(r, path, vocab);
    r->logits = malloc(vocab * sizeof *r->logits);
    if (!r->logits)
        return say(r, "out of memory");
    r->file = fopen(path, "rb");
    if (!r->file)
        return say(r, strerror(errno));
    if (fread(head, 1, sizeof head, r->file) != sizeof head ||
        memcmp(head, magic, sizeof magic) != 0)
        return say(r, "holds no logits that --save-logits wrote");
    snprintf(line, sizeof line, "has version %" PRIu64 " of its format; this program reads %d",
             get(head + 8, 4), VERSION);
    if (get(head + 8, 4) != VERSION)
        return say(r, line);
    snprintf(line, sizeof line, "is of a vocabulary of %" PRIu64 "; the model has %" PRIu32,
             get(head + 12, 4), vocab);
    if (get(head + 12, 4) != vocab)
        return say(r, line);
    r->rows = get(head + 16, 8);
    r->want = get(head + 24, 8);
    return true;
}

void reference_feed(reference *r, const int32_t *ids, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (int b = 0; b < 4; b++)
            r->hash = (r->hash ^ ((uint32_t)ids[i] >> 8 * b & 255u)) * UINT64_C(0x100000001b3);
}

bool reference_write(reference *r, const float *logits)
{
    r->rows++;
    return fwrite(logits, sizeof *logits, r->vocab, r->file) == r->vocab || say(r, strerror(errno));
}

const float *reference_read(reference *r)
{
    char line[128];
    snprintf(line, sizeof line, "has %" PRIu64 " rows; the text has more: it is of another one",
             r->rows);
    if (r->row == r->rows) {
        say(r, line);
        return NULL;
    }
    snprintf(line, sizeof line, "is cut off in row %" PRIu64 " of %" PRIu64, r->row + 1, r->rows);
    if (fread(r->logits, sizeof *r->logits, r->vocab, r->file) != r->vocab) {
        say(r, line);
        return NULL;
    }
    r->row++;
    return r->logits;
}

static bool complete(reference *r)
{
    if (!r->writing) {
        if (r->row != r->rows || r->hash != r->want)
            return say(r, "is of another text, window or begin token");
        return true;
    }
    if (fseek(r->file, 0, SEEK_SET) != 0 || !header_write(r))
        return say(r, "its header can't be written");
    bool written = fclose(r->file) == 0;
    r->file = NULL;
    if (!written || rename(r->part, r->path) != 0)
        return say(r, strerror(errno));
    free(r->part);
    r->part = NULL;
    return true;
}

bool reference_end(reference *r, bool keep)
{
    bool ok = keep && r->file && complete(r);
    if (r->file)
        fclose(r->file);
    if (r->part)
        remove(r->part);
    free(r->part);
    free(r->logits);
    *r = (reference){.path = NULL};
    return ok;
}

static double log_sum(const float *logits, size_t n, size_t *top)
{
    double sum = 0.0;
    *top = 0;
    for (size_t i = 1; i < n; i++)
        if (logits[i] > logits[*top])
            *top = i;
    for (size_t i = 0; i < n; i++)
        sum += exp((double)logits[i] - logits[*top]);
    return logits[*top] + log(sum);
}

bool divergence_add(divergence *d, const float *from, const float *logits, size_t n)
{
    size_t top, other;
    double p0 = log_sum(from, n, &top), q0 = log_sum(logits, n, &other), kl = 0.0;
    for (size_t i = 0; i < n; i++) {
        double p = from[i] - p0;
        kl += exp(p) * (p - (logits[i] - q0));
    }
    if (d->rows == d->capacity) {
        uint64_t more = d->capacity ? 2 * d->capacity : 1024;
        float *each = realloc(d->each, more * sizeof *each);
        if (!each) {
            fprintf(stderr, "fulgur: out of memory\n");
            return false;
        }
        d->each = each;
        d->capacity = more;
    }
    d->each[d->rows++] = (float)kl;
    d->same_top += top == other;
    d->kl += kl;
    d->kl_squares += kl * kl;
    d->most = fmax(d->most, kl);
    return true;
}

static int compare(const void *a, const void *b)
{
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

double divergence_quantile(divergence *d, double share)
{
    if (d->rows == 0)
        return 0.0;
    qsort(d->each, d->rows, sizeof *d->each, compare);
    return d->each[(uint64_t)(share * (double)(d->rows - 1) + 0.5)];
}
