#include "text/unicode.h"

#include <string.h>
#include <utf8proc.h>

/* The reference tokenizer's normaliser carries Unicode 9's data: what came later it leaves as it
 * stands and never moves a mark across it. Tokens must be the same whatever the version of
 * utf8proc, so these code points (assigned after Unicode 9, up to 18, with a combining class or a
 * part in a canonical decomposition) end a run and are copied. */
static const struct {
    uint32_t first, last;
} late_points[] = {
    {0x05C8, 0x05C9},   {0x07FD, 0x07FD},   {0x0897, 0x089F},   {0x08CA, 0x08D3},
    {0x09FE, 0x09FE},   {0x0C3C, 0x0C3C},   {0x0D3B, 0x0D3C},   {0x0EBA, 0x0EBA},
    {0x1715, 0x1715},   {0x1ABF, 0x1AF0},   {0x1DF6, 0x1DFA},   {0xA82C, 0xA82C},
    {0x105C9, 0x105C9}, {0x105D2, 0x105D2}, {0x105DA, 0x105DA}, {0x105E4, 0x105E4},
    {0x10D24, 0x10D27}, {0x10D69, 0x10D6D}, {0x10EAB, 0x10EAC}, {0x10ECB, 0x10ECF},
    {0x10EF0, 0x10EFB}, {0x10EFD, 0x10EFF}, {0x10F46, 0x10F50}, {0x10F82, 0x10F85},
    {0x11070, 0x11070}, {0x1133B, 0x1133B}, {0x11382, 0x11385}, {0x1138B, 0x1138B},
    {0x1138E, 0x1138E}, {0x11390, 0x11391}, {0x113B8, 0x113B8}, {0x113BB, 0x113BB},
    {0x113C2, 0x113C2}, {0x113C5, 0x113C5}, {0x113C7, 0x113C9}, {0x113CE, 0x113D0},
    {0x1145E, 0x1145E}, {0x11839, 0x1183A}, {0x11930, 0x11930}, {0x11935, 0x11935},
    {0x11938, 0x11938}, {0x1193D, 0x1193E}, {0x11943, 0x11943}, {0x119E0, 0x119E0},
    {0x11A34, 0x11A34}, {0x11A47, 0x11A47}, {0x11A99, 0x11A99}, {0x11D42, 0x11D42},
    {0x11D44, 0x11D45}, {0x11D97, 0x11D97}, {0x11F41, 0x11F42}, {0x1611E, 0x16129},
    {0x1612F, 0x1612F}, {0x16D63, 0x16D63}, {0x16D67, 0x16D6A}, {0x16FF0, 0x16FF1},
    {0x1D127, 0x1D128}, {0x1D250, 0x1D252}, {0x1D25B, 0x1D25C}, {0x1D25F, 0x1D25F},
    {0x1D280, 0x1D281}, {0x1E08F, 0x1E08F}, {0x1E130, 0x1E136}, {0x1E2AE, 0x1E2AE},
    {0x1E2EC, 0x1E2EF}, {0x1E4EC, 0x1E4EF}, {0x1E5EE, 0x1E5EF}, {0x1E6E3, 0x1E6E3},
    {0x1E6E6, 0x1E6E6}, {0x1E6EE, 0x1E6EF}, {0x1E6F5, 0x1E6F5},
};

enum {
    FIRST_MARK = 0x300,     /* no code point below composes with what stands before it */
    FIRST_MARK_LEAD = 0xCC, /* first byte of U+0300 in UTF-8 */
    SHORT_RUN = 16
};

size_t utf8_read(const char *text, uint32_t *point)
{
    const uint8_t *t = (const uint8_t *)text;
    uint32_t b = t[0];
    if (b < 0x80) {
        *point = b;
        return 1;
    }
    if (b < 0xE0) {
        *point = (b & 0x1Fu) << 6 | (t[1] & 0x3Fu);
        return 2;
    }
    if (b < 0xF0) {
        *point = (b & 0x0Fu) << 12 | (t[1] & 0x3Fu) << 6 | (t[2] & 0x3Fu);
        return 3;
    }
    *point = (b & 0x07u) << 18 | (t[1] & 0x3Fu) << 12 | (t[2] & 0x3Fu) << 6 | (t[3] & 0x3Fu);
    return 4;
}

size_t utf8_write(uint32_t point, char *out)
{
    uint8_t b[4];
    size_t n;
    if (point < 0x80) {
        b[0] = (uint8_t)point;
        n = 1;
    } else if (point < 0x800) {
        b[0] = (uint8_t)(0xC0 | point >> 6);
        b[1] = (uint8_t)(0x80 | (point & 0x3F));
        n = 2;
    } else if (point < 0x10000) {
        b[0] = (uint8_t)(0xE0 | point >> 12);
        b[1] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
        b[2] = (uint8_t)(0x80 | (point & 0x3F));
        n = 3;
    } else {
        b[0] = (uint8_t)(0xF0 | point >> 18);
        b[1] = (uint8_t)(0x80 | (point >> 12 & 0x3F));
        b[2] = (uint8_t)(0x80 | (point >> 6 & 0x3F));
        b[3] = (uint8_t)(0x80 | (point & 0x3F));
        n = 4;
    }
    memcpy(out, b, n);
    return n;
}

static bool point_is_late(uint32_t point)
{
    size_t low = 0, high = sizeof late_points / sizeof late_points[0];
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (point > late_points[middle].last)
            low = middle + 1;
        else
            high = middle;
    }
    return low < sizeof late_points / sizeof late_points[0] && point >= late_points[low].first;
}

static ful_result text_append(nfc_buffer *b, const char *text, size_t bytes)
{
    void *p = b->text;
    if (!mem_grow(b->alloc, &p, &b->capacity, b->bytes + bytes, 1))
        return mem_fail(b->bytes + bytes, "normalised text");
    b->text = p;
    if (bytes > 0)
        memcpy(b->text + b->bytes, text, bytes);
    b->bytes += bytes;
    return FUL_OK;
}

static unsigned combining_class(int32_t point)
{
    return (unsigned)utf8proc_get_property(point)->combining_class;
}

/* Stable sort of one run of marks by combining class. */
static ful_result marks_sort(nfc_buffer *b, int32_t *run, size_t n)
{
    if (n <= SHORT_RUN) {
        for (size_t i = 1; i < n; i++) {
            int32_t point = run[i];
            unsigned class = combining_class(point);
            size_t k = i;
            for (; k > 0 && combining_class(run[k - 1]) > class; k--)
                run[k] = run[k - 1];
            run[k] = point;
        }
        return FUL_OK;
    }
    void *p = b->sorted;
    if (!mem_grow(b->alloc, &p, &b->sorted_capacity, n, sizeof *b->sorted))
        return mem_fail(n * sizeof *b->sorted, "combining marks");
    b->sorted = p;
    size_t start[257] = {0};
    for (size_t i = 0; i < n; i++)
        start[combining_class(run[i]) + 1]++;
    for (size_t c = 1; c < 257; c++)
        start[c] += start[c - 1];
    for (size_t i = 0; i < n; i++)
        b->sorted[start[combining_class(run[i])]++] = run[i];
    memcpy(run, b->sorted, n * sizeof *run);
    return FUL_OK;
}

/* Orders, composes and appends the decomposed code points gathered so far. */
static ful_result points_flush(nfc_buffer *b)
{
    size_t n = b->n_points;
    for (size_t i = 0; i < n;) {
        size_t end = i;
        while (end < n && combining_class(b->points[end]) != 0)
            end++;
        if (end - i > 1)
            TRY(marks_sort(b, b->points + i, end - i));
        i = end + (end == i);
    }
    if (n > 1) {
        utf8proc_ssize_t length = utf8proc_normalize_utf32(b->points, (utf8proc_ssize_t)n,
                                                           UTF8PROC_COMPOSE | UTF8PROC_STABLE);
        if (length < 0)
            return fail(FUL_ERR_ARGUMENT, "text can't be normalised: %s", utf8proc_errmsg(length));
        n = (size_t)length;
    }
    b->n_points = 0;
    for (size_t i = 0; i < n; i++) {
        char utf8[4];
        TRY(text_append(b, utf8, utf8_write((uint32_t)b->points[i], utf8)));
    }
    return FUL_OK;
}

static ful_result point_add(nfc_buffer *b, uint32_t point)
{
    enum { LONGEST = 8 }; /* no canonical decomposition has more than four */
    void *p = b->points;
    if (!mem_grow(b->alloc, &p, &b->points_capacity, b->n_points + LONGEST, sizeof *b->points))
        return mem_fail((b->n_points + LONGEST) * sizeof *b->points, "code points");
    b->points = p;
    int boundary = 0;
    utf8proc_ssize_t n =
        utf8proc_decompose_char((utf8proc_int32_t)point, b->points + b->n_points, LONGEST,
                                UTF8PROC_COMPOSE | UTF8PROC_STABLE, &boundary);
    if (n < 0 || n > LONGEST)
        return fail(FUL_ERR_ARGUMENT, "U+%04X can't be normalised: %s", (unsigned)point,
                    n < 0 ? utf8proc_errmsg(n) : "too long");
    b->n_points += (size_t)n;
    return FUL_OK;
}

ful_result nfc_apply(nfc_buffer *b, const char *text, size_t bytes, const char **out,
                     size_t *out_bytes)
{
    size_t i = 0; /* everything before is in the buffer */
    b->bytes = 0;
    b->n_points = 0;
    for (size_t at = 0; at < bytes;) {
        if ((uint8_t)text[at] < FIRST_MARK_LEAD) {
            at++;
            continue;
        }
        /* A run: the code point before the first high one, and all high ones that
         * follow. */
        size_t start = at;
        if (at > i) {
            start--;
            while (((uint8_t)text[start] & 0xC0) == 0x80)
                start--;
        }
        TRY(text_append(b, text + i, start - i));
        for (i = start; i < bytes;) {
            uint32_t point;
            size_t length = utf8_read(text + i, &point);
            if (i > at && point < FIRST_MARK)
                break;
            /* Ideographs take no part in composition; cutting there keeps runs short.
             */
            bool inert = (point >= 0x3400 && point <= 0x9FFF) || point_is_late(point);
            if (inert) {
                TRY(points_flush(b));
                TRY(text_append(b, text + i, length));
            } else {
                TRY(point_add(b, point));
            }
            i += length;
        }
        TRY(points_flush(b));
        at = i;
    }
    if (i == 0) {
        *out = text;
        *out_bytes = bytes;
        return FUL_OK;
    }
    TRY(text_append(b, text + i, bytes - i));
    *out = b->text;
    *out_bytes = b->bytes;
    return FUL_OK;
}

void nfc_release(nfc_buffer *b)
{
    mem_free(b->alloc, b->points);
    mem_free(b->alloc, b->sorted);
    mem_free(b->alloc, b->text);
    *b = (nfc_buffer){.alloc = b->alloc};
}
