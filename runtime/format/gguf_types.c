/* GGUF's types of values and tensors. */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/utf8.h"
#include "format/gguf.h"

static const gguf_tensor_type types[] = {
    {0, "F32", 1, 4, FUL_TYPE_F32},
    {1, "F16", 1, 2, FUL_TYPE_F16},
    {2, "Q4_0", 32, 18, FUL_TYPE_Q4_0},
    {3, "Q4_1", 32, 20, FUL_TYPE_Q4_1},
    {6, "Q5_0", 32, 22, FUL_TYPE_Q5_0},
    {7, "Q5_1", 32, 24, FUL_TYPE_Q5_1},
    {8, "Q8_0", 32, 34, FUL_TYPE_Q8_0},
    {9, "Q8_1", 32, 40, FUL_TYPE_DEFAULT},
    {10, "Q2_K", 256, 84, FUL_TYPE_Q2_K},
    {11, "Q3_K", 256, 110, FUL_TYPE_Q3_K},
    {12, "Q4_K", 256, 144, FUL_TYPE_Q4_K},
    {13, "Q5_K", 256, 176, FUL_TYPE_Q5_K},
    {14, "Q6_K", 256, 210, FUL_TYPE_Q6_K},
    {15, "Q8_K", 256, 292, FUL_TYPE_DEFAULT},
    {16, "IQ2_XXS", 256, 66, FUL_TYPE_DEFAULT},
    {17, "IQ2_XS", 256, 74, FUL_TYPE_DEFAULT},
    {18, "IQ3_XXS", 256, 98, FUL_TYPE_DEFAULT},
    {19, "IQ1_S", 256, 50, FUL_TYPE_DEFAULT},
    {20, "IQ4_NL", 32, 18, FUL_TYPE_IQ4_NL},
    {21, "IQ3_S", 256, 110, FUL_TYPE_DEFAULT},
    {22, "IQ2_S", 256, 82, FUL_TYPE_DEFAULT},
    {23, "IQ4_XS", 256, 136, FUL_TYPE_DEFAULT},
    {24, "I8", 1, 1, FUL_TYPE_DEFAULT},
    {25, "I16", 1, 2, FUL_TYPE_DEFAULT},
    {26, "I32", 1, 4, FUL_TYPE_DEFAULT},
    {27, "I64", 1, 8, FUL_TYPE_DEFAULT},
    {28, "F64", 1, 8, FUL_TYPE_DEFAULT},
    {29, "IQ1_M", 256, 56, FUL_TYPE_DEFAULT},
    {30, "BF16", 1, 2, FUL_TYPE_BF16},
    {34, "TQ1_0", 256, 54, FUL_TYPE_DEFAULT},
    {35, "TQ2_0", 256, 66, FUL_TYPE_DEFAULT},
    {39, "MXFP4", 32, 17, FUL_TYPE_MXFP4},
    {40, "NVFP4", 64, 36, FUL_TYPE_DEFAULT},
    {41, "Q1_0", 128, 18, FUL_TYPE_DEFAULT},
};

const gguf_tensor_type *gguf_type_by_id(uint32_t id)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].id == id)
            return &types[i];
    return NULL;
}

const gguf_tensor_type *gguf_type_of(ful_type type)
{
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++)
        if (types[i].type == type && type != FUL_TYPE_DEFAULT)
            return &types[i];
    return NULL;
}

const char *gguf_kind_name(gguf_kind kind)
{
    static const char *const names[GGUF_KIND_COUNT] = {"u8",  "i8",  "u16",  "i16",  "u32",
                                                       "i32", "f32", "bool", "text", "array",
                                                       "u64", "i64", "f64"};
    return (unsigned)kind < GGUF_KIND_COUNT ? names[kind] : "unknown";
}

/* ---- values ---- */

static uint64_t little(const uint8_t *p, unsigned bytes)
{
    uint64_t n = 0;
    while (bytes-- > 0)
        n = n << 8 | p[bytes];
    return n;
}

bool gguf_integer(const gguf_value *v, uint64_t index, int64_t *out)
{
    if (!v || index >= v->count)
        return false;
    uint64_t n;
    switch (v->kind) {
    case GGUF_U8:
        *out = v->data[index];
        return true;
    case GGUF_I8:
        *out = (int8_t)v->data[index];
        return true;
    case GGUF_U16:
        *out = (int64_t)little(v->data + 2 * index, 2);
        return true;
    case GGUF_I16:
        *out = (int16_t)little(v->data + 2 * index, 2);
        return true;
    case GGUF_U32:
        *out = (int64_t)little(v->data + 4 * index, 4);
        return true;
    case GGUF_I32:
        *out = (int32_t)little(v->data + 4 * index, 4);
        return true;
    case GGUF_U64:
        n = little(v->data + 8 * index, 8);
        *out = n > INT64_MAX ? INT64_MAX : (int64_t)n; /* beyond every limit either way */
        return true;
    case GGUF_I64:
        *out = (int64_t)little(v->data + 8 * index, 8);
        return true;
    default:
        return false;
    }
}

bool gguf_number(const gguf_value *v, uint64_t index, double *out)
{
    int64_t n;
    if (gguf_integer(v, index, &n)) {
        *out = (double)n;
        return true;
    }
    if (!v || index >= v->count)
        return false;
    if (v->kind == GGUF_F32) {
        uint32_t bits = (uint32_t)little(v->data + 4 * index, 4);
        float f;
        memcpy(&f, &bits, sizeof f);
        *out = (double)f;
        return true;
    }
    if (v->kind == GGUF_F64) {
        uint64_t bits = little(v->data + 8 * index, 8);
        memcpy(out, &bits, sizeof *out);
        return true;
    }
    return false;
}

bool gguf_bool(const gguf_value *v, uint64_t index, bool *out)
{
    if (!v || v->kind != GGUF_BOOL || index >= v->count)
        return false;
    *out = v->data[index] != 0;
    return true;
}

const uint8_t *gguf_text_next(const uint8_t *at, gguf_text *out)
{
    out->bytes = (size_t)little(at, 8);
    out->data = (const char *)at + 8;
    return at + 8 + out->bytes;
}

bool gguf_text_is(const gguf_value *v, const char *text)
{
    gguf_text t;
    if (!v || v->is_array || v->kind != GGUF_TEXT)
        return false;
    gguf_text_next(v->data, &t);
    return t.bytes == strlen(text) && memcmp(t.data, text, t.bytes) == 0;
}

/* A text's beginning in quotes. It goes to terminals and logs: of what no line should hold, and of
 * what is not UTF-8, a question mark is seen. */
static void text_words(const gguf_text *t, char *out, size_t bytes)
{
    char shown[80];
    size_t n = t->bytes < sizeof shown ? t->bytes : sizeof shown, wrong;
    /* Not half a code point at the end. */
    for (int i = 0; n < t->bytes && i < 3 && n > 0 && ((uint8_t)t->data[n] & 0xc0) == 0x80; i++)
        n--;
    memcpy(shown, t->data, n);
    for (size_t i = 0; i < n; i++)
        if ((uint8_t)shown[i] < 0x20 || shown[i] == 0x7f)
            shown[i] = '?';
    while (!utf8_valid(shown, n, &wrong))
        shown[wrong] = '?';
    snprintf(out, bytes, "\"%.*s\"%s", (int)n, shown, n < t->bytes ? "..." : "");
}

const char *gguf_value_words(const gguf_value *v, char *out, size_t bytes)
{
    double x;
    int64_t n;
    bool yes;
    gguf_text t;
    if (!v)
        snprintf(out, bytes, "(absent)");
    else if (v->is_array)
        snprintf(out, bytes, "an array of %" PRIu64 " %s", v->count, gguf_kind_name(v->kind));
    else if (v->kind == GGUF_U64)
        snprintf(out, bytes, "%" PRIu64 " (u64)", little(v->data, 8));
    else if (gguf_integer(v, 0, &n))
        snprintf(out, bytes, "%" PRId64 " (%s)", n, gguf_kind_name(v->kind));
    else if (gguf_number(v, 0, &x))
        snprintf(out, bytes, "%.9g (%s)", x, gguf_kind_name(v->kind));
    else if (gguf_bool(v, 0, &yes))
        snprintf(out, bytes, "%s", yes ? "true" : "false");
    else {
        gguf_text_next(v->data, &t);
        text_words(&t, out, bytes);
    }
    return out;
}
