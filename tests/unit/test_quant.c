/* Codecs of blocks: layouts against definitions of one element, the search against bounds, tensors
 * on a team of threads. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "format/quant.h"
#include "format/quantize.h"
#include "format/tensors.h"
#include "util/rng.h"

#include <cmocka.h>

enum { FIRST_BLOCKS = FUL_TYPE_Q8_0, MOST_COLS = 2048 };

#define TEST_MODEL FUL_TEST_DATA "/../samples/demo-model"

static void fill_bytes(rng *r, uint8_t *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = (uint8_t)rng_next(r);
}

/* ---- one element at a time, from the formats' definitions ---- */

static unsigned nibble(const uint8_t *at, unsigned span, unsigned e)
{
    return at[e / (2 * span) * span + e % span] >> 4 * (e / span % 2) & 15;
}

static unsigned pair(const uint8_t *at, unsigned e)
{
    return at[e / 128 * 32 + e % 32] >> 2 * (e / 32 % 4) & 3;
}

static unsigned k_scale(const uint8_t *s, unsigned i)
{
    return i < 4 ? s[i] & 63u : (s[i + 4] & 15u) | (unsigned)(s[i - 4] >> 6) << 4;
}

static unsigned k_minimum(const uint8_t *s, unsigned i)
{
    return i < 4 ? s[i + 4] & 63u : (unsigned)(s[i + 4] >> 4) | (unsigned)(s[i] >> 6) << 4;
}

static double half_at(const uint8_t *at)
{
    return (double)half_to_float((uint16_t)(at[0] | at[1] << 8));
}

static unsigned code_of(ful_type type, const uint8_t *b, unsigned e)
{
    switch (type) {
    case FUL_TYPE_Q8_0:
        return b[2 + e];
    case FUL_TYPE_Q4_0:
    case FUL_TYPE_IQ4_NL:
        return nibble(b + 2, 16, e);
    case FUL_TYPE_Q4_1:
        return nibble(b + 4, 16, e);
    case FUL_TYPE_Q5_0:
        return nibble(b + 6, 16, e) | (b[2 + e / 8] >> e % 8 & 1u) << 4;
    case FUL_TYPE_Q5_1:
        return nibble(b + 8, 16, e) | (b[4 + e / 8] >> e % 8 & 1u) << 4;
    case FUL_TYPE_MXFP4:
        return nibble(b + 1, 16, e);
    case FUL_TYPE_Q2_K:
        return pair(b + 16, e);
    case FUL_TYPE_Q3_K:
        return pair(b + 32, e) | (b[e % 32] >> e / 32 & 1u) << 2;
    case FUL_TYPE_Q4_K:
        return nibble(b + 16, 32, e);
    case FUL_TYPE_Q5_K:
        return nibble(b + 48, 32, e) | (b[16 + e % 32] >> e / 32 & 1u) << 4;
    default:
        return nibble(b, 64, e) | pair(b + 128, e) << 4; /* q6_k */
    }
}

static double value_of(ful_type type, const uint8_t *b, unsigned e)
{
    static const int iq4_nl[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                 1,    13,   25,  38,  53,  69,  89,  113};
    static const double mxfp4[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    const int code = (int)code_of(type, b, e);
    switch (type) {
    case FUL_TYPE_Q8_0:
        return half_at(b) * (code < 128 ? code : code - 256);
    case FUL_TYPE_Q4_0:
        return half_at(b) * (code - 8);
    case FUL_TYPE_Q5_0:
        return half_at(b) * (code - 16);
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        return half_at(b) * code + half_at(b + 2);
    case FUL_TYPE_IQ4_NL:
        return half_at(b) * iq4_nl[code];
    case FUL_TYPE_MXFP4:
        return ldexp(mxfp4[code & 7], b[0] - 127) * (code & 8 ? -1 : 1);
    case FUL_TYPE_Q2_K:
        return half_at(b + 80) * (b[e / 16] & 15) * code - half_at(b + 82) * (b[e / 16] >> 4);
    case FUL_TYPE_Q3_K: {
        const uint8_t *s = b + 96;
        unsigned i = e / 16;
        int scale = (s[i % 8] >> 4 * (i / 8) & 15) | (s[8 + i % 4] >> 2 * (i / 4) & 3) << 4;
        return half_at(b + 108) * (scale - 32) * (code - 4);
    }
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        return half_at(b) * k_scale(b + 4, e / 32) * code -
               half_at(b + 2) * k_minimum(b + 4, e / 32);
    default:
        return half_at(b + 208) * (int8_t)b[192 + e / 16] * (code - 32);
    }
}

/* ---- decoding ---- */

static void traits_are_those_of_the_formats(void **state)
{
    (void)state;
    static const struct {
        ful_type type;
        const char *name;
        unsigned elements, bytes, device_bytes_of_256;
    } table[] = {
        {FUL_TYPE_Q8_0, "q8_0", 32, 34, 272},     {FUL_TYPE_Q4_0, "q4_0", 32, 18, 144},
        {FUL_TYPE_Q4_1, "q4_1", 32, 20, 160},     {FUL_TYPE_Q5_0, "q5_0", 32, 22, 176},
        {FUL_TYPE_Q5_1, "q5_1", 32, 24, 192},     {FUL_TYPE_Q2_K, "q2_k", 256, 84, 84},
        {FUL_TYPE_Q3_K, "q3_k", 256, 110, 112},   {FUL_TYPE_Q4_K, "q4_k", 256, 144, 144},
        {FUL_TYPE_Q5_K, "q5_k", 256, 176, 176},   {FUL_TYPE_Q6_K, "q6_k", 256, 210, 212},
        {FUL_TYPE_IQ4_NL, "iq4_nl", 32, 18, 144}, {FUL_TYPE_MXFP4, "mxfp4", 32, 17, 136},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        ful_type t = table[i].type;
        assert_string_equal(ful_type_name(t), table[i].name);
        assert_true(type_is_blocks(t));
        assert_int_equal(type_row_bytes(t, 256), 256 / table[i].elements * table[i].bytes);
        assert_int_equal(type_row_bytes(t, table[i].elements - 1), 0);
        assert_int_equal(type_row_bytes(t, table[i].elements), table[i].bytes);
        /* 4096 elements: every plane is a multiple of 16 bytes */
        assert_int_equal(type_device_row_bytes(t, 4096), 16 * table[i].device_bytes_of_256);
        type_planes p = type_device_planes(t, 3 * table[i].elements);
        assert_int_equal(p.high % 16 + p.scales % 16 + p.bytes % 16, 0);
    }
}

static void decoding_is_the_definition(void **state)
{
    (void)state;
    enum { BLOCKS = 128 };
    static const uint16_t edges[] = {0,      0x8000, 1,      0x8001, 0x3ff,  0x83ff,
                                     0x0400, 0x3c00, 0xbc00, 0x7bff, 0xfbff, 0x7c00,
                                     0xfc00, 0x7c01, 0x7e00, 0xffff};
    static const uint8_t halves[TYPE_COUNT][2] = {
        [FUL_TYPE_Q4_1] = {0, 2},    [FUL_TYPE_Q5_1] = {0, 2},   [FUL_TYPE_Q4_K] = {0, 2},
        [FUL_TYPE_Q5_K] = {0, 2},    [FUL_TYPE_Q2_K] = {80, 82}, [FUL_TYPE_Q3_K] = {108, 108},
        [FUL_TYPE_Q6_K] = {208, 208}};
    rng r = rng_seed(1);
    for (int type = FIRST_BLOCKS; type < TYPE_COUNT; type++) {
        const type_traits *t = type_get((ful_type)type);
        static uint8_t blocks[BLOCKS * 210];
        static float got[BLOCKS * 256];
        fill_bytes(&r, blocks, sizeof blocks);
        for (unsigned i = 0; i < 48 && type != FUL_TYPE_MXFP4; i++) {
            for (unsigned k = 0; k < 2; k++) {
                uint16_t half = edges[(k ? i * 5 + i / 16 : i) % 16];
                memcpy(blocks + i * t->block_bytes + halves[type][k], &half, 2);
            }
        }
        if (type == FUL_TYPE_MXFP4) {
            for (unsigned i = 0; i < 64; i++)
                blocks[i * t->block_bytes] = (uint8_t)(i < 32 ? i : 255 - i + 32);
        }
        for (size_t i = 0; i < sizeof got / sizeof got[0]; i++)
            got[i] = -12345.0f;
        quant_decode((ful_type)type, blocks, (uint64_t)BLOCKS * t->block_elements, got);
        for (unsigned i = 0; i < BLOCKS * t->block_elements; i++) {
            unsigned e = i % t->block_elements;
            double want =
                value_of((ful_type)type, blocks + i / t->block_elements * t->block_bytes, e);
            if (isnan(want) ? !isnan(got[i]) : got[i] != (float)want)
                fail_msg("%s: block %u element %u is %g, not %g", t->name, i / t->block_elements, e,
                         (double)got[i], want);
        }
    }
}

/* ---- the device's planes ---- */

static unsigned device_code(const type_traits *t, const uint8_t *row, const type_planes *p,
                            unsigned e)
{
    uint32_t w;
    unsigned code, low = t->low / 32u;
    if (low == 8)
        return row[e];
    memcpy(&w, row + e / (32 / low) * 4, 4);
    unsigned in = e % (32 / low);
    code = w >> (low * (in / 2) + 16 * (in % 2)) & ((1u << low) - 1);
    unsigned high = t->high / 32u;
    if (high == 0)
        return code;
    memcpy(&w, row + p->high + e / (32 / high) * 4, 4);
    in = e % (32 / high);
    return code | (w >> (high * (in / 2) + 16 * (in % 2)) & ((1u << high) - 1)) << low;
}

static void check_device_scales(ful_type type, const uint8_t *b, const uint8_t *at)
{
    uint32_t w[5];
    memcpy(w, at, type_get(type)->block_elements == 256 ? type_get(type)->scales : 0);
    switch (type) {
    case FUL_TYPE_MXFP4:
        assert_int_equal(at[0], b[0]);
        break;
    case FUL_TYPE_Q4_1:
    case FUL_TYPE_Q5_1:
        assert_memory_equal(at, b, 4);
        break;
    case FUL_TYPE_Q2_K:
        assert_memory_equal(at, b + 80, 4);
        assert_memory_equal(at + 4, b, 16);
        break;
    case FUL_TYPE_Q3_K:
        assert_memory_equal(at, b + 108, 2);
        assert_int_equal(w[0] >> 16, 0);
        for (unsigned i = 0; i < 16; i++) {
            const uint8_t *s = b + 96;
            assert_int_equal(w[1 + i / 8] >> 4 * (i % 8) & 15, s[i % 8] >> 4 * (i / 8) & 15);
            assert_int_equal(w[3] >> 2 * i & 3, s[8 + i % 4] >> 2 * (i / 4) & 3);
        }
        break;
    case FUL_TYPE_Q4_K:
    case FUL_TYPE_Q5_K:
        assert_memory_equal(at, b, 4);
        for (unsigned i = 0; i < 8; i++) {
            assert_int_equal((w[1] >> 4 * i & 15) | (w[3] >> 2 * i & 3) << 4, k_scale(b + 4, i));
            assert_int_equal((w[2] >> 4 * i & 15) | (w[3] >> (16 + 2 * i) & 3) << 4,
                             k_minimum(b + 4, i));
        }
        break;
    case FUL_TYPE_Q6_K:
        assert_memory_equal(at, b + 208, 2);
        assert_int_equal(w[0] >> 16, 0);
        assert_memory_equal(at + 4, b + 192, 16);
        break;
    default:
        assert_memory_equal(at, b, 2);
    }
}

static void device_rows_hold_what_files_do(void **state)
{
    (void)state;
    static uint8_t file[MOST_COLS / 32 * 34], back[sizeof file], device[MOST_COLS * 2];
    static float a[MOST_COLS], b[MOST_COLS];
    rng r = rng_seed(2);
    for (int type = FIRST_BLOCKS; type < TYPE_COUNT; type++) {
        const type_traits *t = type_get((ful_type)type);
        for (unsigned blocks = 1; blocks <= 7; blocks += blocks < 3 ? 1 : 4) {
            const unsigned cols = blocks * t->block_elements;
            const size_t bytes = (size_t)type_row_bytes((ful_type)type, cols);
            const type_planes p = type_device_planes((ful_type)type, cols);
            fill_bytes(&r, file, bytes);
            memset(device, 0xa5, sizeof device);
            memset(back, 0xa5, sizeof back);
            quant_to_device((ful_type)type, file, cols, device + 16);
            const uint8_t *row = device + 16;
            for (unsigned e = 0; e < cols; e++) {
                const uint8_t *block = file + e / t->block_elements * t->block_bytes;
                if (device_code(t, row, &p, e) !=
                    code_of((ful_type)type, block, e % t->block_elements))
                    fail_msg("%s: element %u of %u has another code", t->name, e, cols);
            }
            for (unsigned i = 0; i < blocks; i++)
                check_device_scales((ful_type)type, file + i * t->block_bytes,
                                    row + p.scales + i * t->block_elements * t->scales / 256);
            /* Padding is zero; neighbours are untouched. */
            for (uint64_t i = cols * t->low / 256; i < p.high; i++)
                assert_int_equal(row[i], 0);
            for (uint64_t i = p.high + cols * t->high / 256; i < p.scales; i++)
                assert_int_equal(row[i], 0);
            for (uint64_t i = p.scales + cols * t->scales / 256; i < p.bytes; i++)
                assert_int_equal(row[i], 0);
            assert_int_equal(device[15], 0xa5);
            assert_int_equal(row[p.bytes], 0xa5);

            quant_from_device((ful_type)type, row, cols, back);
            assert_memory_equal(back, file, bytes);
            assert_int_equal(back[bytes], 0xa5);
            quant_decode((ful_type)type, file, cols, a);
            quant_decode_device((ful_type)type, row, cols, b);
            assert_memory_equal(a, b, cols * sizeof *a);
        }
    }
}

/* ---- encoding ---- */

/* Error relative to the values, with an importance for each column or NULL. */
static double coded_error(ful_type type, const float *x, unsigned rows, unsigned cols,
                          const float *importance, const float *measure)
{
    uint8_t *bytes = malloc((size_t)type_row_bytes(type, cols));
    float *y = malloc(cols * sizeof *y);
    double squares = 0, of = 0;
    for (unsigned i = 0; i < rows; i++) {
        quant_encode(type, x + (size_t)i * cols, cols, importance, bytes);
        quant_decode(type, bytes, cols, y);
        for (unsigned j = 0; j < cols; j++) {
            double v = (double)x[(size_t)i * cols + j], w = measure ? (double)measure[j] : 1;
            squares += w * ((double)y[j] - v) * ((double)y[j] - v);
            of += w * v * v;
        }
    }
    free(y);
    free(bytes);
    return of > 0 ? sqrt(squares / of) : sqrt(squares);
}

/* Of gaussian values: what the search reaches, and two per cent. */
static const double gaussian_bounds[TYPE_COUNT] = {
    [FUL_TYPE_Q8_0] = 0.00546, [FUL_TYPE_Q4_0] = 0.0828,   [FUL_TYPE_Q4_1] = 0.0705,
    [FUL_TYPE_Q5_0] = 0.0409,  [FUL_TYPE_Q5_1] = 0.0342,   [FUL_TYPE_Q2_K] = 0.2645,
    [FUL_TYPE_Q3_K] = 0.1467,  [FUL_TYPE_Q4_K] = 0.0713,   [FUL_TYPE_Q5_K] = 0.0353,
    [FUL_TYPE_Q6_K] = 0.0172,  [FUL_TYPE_IQ4_NL] = 0.0748, [FUL_TYPE_MXFP4] = 0.1140};

/* Values of a tensor of the demo model, or NULL. */
static float *model_values(unsigned *rows, unsigned *cols)
{
    tensor_file *file;
    if (tensor_file_open(NULL, TEST_MODEL, &file) != FUL_OK)
        return NULL;
    const tensor_info *t =
        tensor_file_find(file, "model.layers.2.block_sparse_moe.experts.4.w1.weight");
    float *x = NULL;
    if (t) {
        *rows = (unsigned)t->dims[0];
        *cols = (unsigned)t->dims[1];
        x = malloc((size_t)*rows * *cols * sizeof *x);
        row_to_floats(t->type, t->data, (uint64_t)*rows * *cols, x);
    }
    tensor_file_close(&file);
    return x;
}

static void errors_are_bounded(void **state)
{
    (void)state;
    enum { COLS = 512 };
    const char *level = getenv("FULGUR_TEST_LEVEL");
    const bool full = level && strcmp(level, "full") == 0;
    const unsigned rows = full ? 128 : 16;
    float *x = malloc((size_t)rows * COLS * sizeof *x), importance[COLS];
    rng r = rng_seed(3);
    rng_fill_normal(&r, x, (size_t)rows * COLS, 0.02);
    for (unsigned i = 0; i < COLS; i++)
        importance[i] = (float)(0.001 + pow(rng_normal(&r), 2));
    unsigned model_rows = 0, model_cols = 0;
    float *model = full ? model_values(&model_rows, &model_cols) : NULL;
    assert_true(!full || model);
    print_message("type     gaussian  by importance  (without it)%s\n", full ? "  model" : "");
    for (int type = FIRST_BLOCKS; type < TYPE_COUNT; type++) {
        double plain = coded_error((ful_type)type, x, rows, COLS, NULL, NULL);
        double with = coded_error((ful_type)type, x, rows, COLS, importance, importance);
        double without = coded_error((ful_type)type, x, rows, COLS, NULL, importance);
        print_message("%-7s  %.6f  %.6f       %.6f    ", ful_type_name((ful_type)type), plain, with,
                      without);
        if (model)
            print_message("   %.6f",
                          coded_error((ful_type)type, model, model_rows, model_cols, NULL, NULL));
        print_message("\n");
        assert_true(plain < gaussian_bounds[type]);
        assert_true(plain > gaussian_bounds[type] * 0.93); /* or the bound says nothing */
        assert_true(type == FUL_TYPE_Q8_0 ? with == without : with < without);
    }
    free(model);
    free(x);
}

/* Of every half that could be the scale, none does better by more than this: blocks of one scale.
 */
static void no_scale_is_much_better(void **state)
{
    (void)state;
    enum { BLOCKS = 48 };
    static const ful_type types[] = {FUL_TYPE_Q4_0, FUL_TYPE_Q5_0, FUL_TYPE_IQ4_NL};
    rng r = rng_seed(8);
    for (unsigned k = 0; k < sizeof types / sizeof types[0]; k++) {
        /* What codes stand for, from decoding each with the scale 1. */
        const unsigned codes = types[k] == FUL_TYPE_Q5_0 ? 32 : 16;
        float levels[32];
        uint8_t bytes[22] = {0x00, 0x3c};
        for (unsigned i = 0; i < 16; i++)
            bytes[(codes == 32 ? 6 : 2) + i] = (uint8_t)(codes == 32 ? i * 17 : i);
        if (codes == 32)
            memset(bytes + 4, 0xff, 2);
        quant_decode(types[k], bytes, 32, levels);
        double found = 0, best = 0;
        for (unsigned b = 0; b < BLOCKS; b++) {
            float x[32], y[32], w[32], most = 0;
            for (unsigned i = 0; i < 32; i++) {
                x[i] = (float)(rng_normal(&r) * (b % 3 == 2 ? exp(rng_normal(&r)) : 1));
                w[i] = b % 2 ? (float)pow(rng_normal(&r), 2) + 0.01f : 1;
                most = fmaxf(most, fabsf(x[i]));
            }
            quant_encode(types[k], x, 32, b % 2 ? w : NULL, bytes);
            quant_decode(types[k], bytes, 32, y);
            for (unsigned i = 0; i < 32; i++)
                found += (double)w[i] * pow((double)x[i] - (double)y[i], 2) / (double)(most * most);
            const float size = codes == 32 ? 16 : types[k] == FUL_TYPE_Q4_0 ? 8 : 127;
            double least = INFINITY;
            for (uint16_t half = float_to_half(0.4f * most / size);
                 half < float_to_half(1.6f * most / size); half = (uint16_t)(half + 4)) {
                for (int sign = -1; sign <= 1; sign += 2) {
                    double sum = 0;
                    for (unsigned i = 0; i < 32 && sum < least; i++) {
                        double e = INFINITY, d = sign * (double)half_to_float(half);
                        for (unsigned c = 0; c < codes; c++)
                            e = fmin(e, fabs((double)x[i] - d * (double)levels[c]));
                        sum += (double)w[i] * e * e;
                    }
                    least = fmin(least, sum);
                }
            }
            best += least / (double)(most * most);
        }
        print_message("%-7s %.5f of the best error\n", ful_type_name(types[k]), found / best);
        assert_true(found < best * 1.01);
        assert_true(found > best * 0.99);
    }
}

/* Whole codes with a scale that a half holds come back exactly, whatever the type. */
static void what_fits_comes_back(void **state)
{
    (void)state;
    static const int least[TYPE_COUNT] = {[FUL_TYPE_Q8_0] = -127,
                                          [FUL_TYPE_Q4_0] = -8,
                                          [FUL_TYPE_Q5_0] = -16,
                                          [FUL_TYPE_Q3_K] = -4,
                                          [FUL_TYPE_Q6_K] = -32};
    static const int most[TYPE_COUNT] = {
        [FUL_TYPE_Q8_0] = 127, [FUL_TYPE_Q4_0] = 7, [FUL_TYPE_Q4_1] = 15, [FUL_TYPE_Q5_0] = 15,
        [FUL_TYPE_Q5_1] = 31,  [FUL_TYPE_Q3_K] = 3, [FUL_TYPE_Q6_K] = 31};
    rng r = rng_seed(4);
    for (int type = FIRST_BLOCKS; type < TYPE_COUNT; type++) {
        if (most[type] == 0)
            continue;
        float x[256], y[256];
        uint8_t bytes[8 * 34];
        for (unsigned i = 0; i < 256; i++) {
            uint32_t span = (uint32_t)(most[type] - least[type] + 1);
            int code = (int)rng_below(&r, span) + least[type];
            if (i % 16 == 3)
                code = least[type];
            if (i % 16 == 7)
                code = most[type];
            x[i] = (float)code * 0.0625f;
        }
        quant_encode((ful_type)type, x, 256, NULL, bytes);
        quant_decode((ful_type)type, bytes, 256, y);
        for (unsigned i = 0; i < 256; i++) {
            /* q8_0's scale is 127 / 127, the others are found. */
            if (fabsf(x[i] - y[i]) > 1e-3f * 0.0625f * (float)most[type])
                fail_msg("%s: %g became %g", ful_type_name((ful_type)type), (double)x[i],
                         (double)y[i]);
        }
    }
}

static void bounds_hold(void **state)
{
    (void)state;
    rng r = rng_seed(12);
    enum { BOUND_COLS = 512 };
    static float x[BOUND_COLS], back[BOUND_COLS];
    static uint8_t row[4 * BOUND_COLS];
    for (ful_type type = FUL_TYPE_Q8_0; type <= FUL_TYPE_MXFP4; type++)
        for (int i = 0; i < 12; i++) {
            const double size = ldexp(1.0, i - 6);
            rng_fill_normal(&r, x, BOUND_COLS, size);
            quant_encode(type, x, BOUND_COLS, NULL, row);
            quant_decode(type, row, BOUND_COLS, back);
            float most = 0;
            for (int c = 0; c < BOUND_COLS; c++)
                most = fmaxf(most, fabsf(back[c]));
            const float bound = quant_row_bound(type, row, BOUND_COLS);
            if (!(bound >= most && bound <= 8 * most))
                fail_msg("%s: bound %g of %g", ful_type_name(type), (double)bound, (double)most);
            assert_true(row_half_scale(type, row, BOUND_COLS) == 1.0f);
        }
    /* One number alone, beyond fp16 and far below its normal range. */
    const struct {
        float most, scale;
    } cases[] = {{1e5f, 0x1p-3f}, {3e5f, 0x1p-5f}, {3e-4f, 0x1p+25f}, {0.0f, 1.0f}};
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        memset(x, 0, sizeof x);
        x[77] = cases[i].most;
        quant_encode(FUL_TYPE_Q8_0, x, BOUND_COLS, NULL, row);
        assert_true(row_half_scale(FUL_TYPE_Q8_0, row, BOUND_COLS) == cases[i].scale);
        assert_true(row_half_scale(FUL_TYPE_F32, x, BOUND_COLS) == cases[i].scale);
    }
}

static void edges_are_coded(void **state)
{
    (void)state;
    float x[256], y[256], importance[256];
    uint8_t bytes[8 * 34];
    rng r = rng_seed(5);
    for (int t = FIRST_BLOCKS; t < TYPE_COUNT; t++) {
        const ful_type type = (ful_type)t;
        /* Zeros are zeros. */
        memset(x, 0, sizeof x);
        memset(bytes, 0xff, sizeof bytes);
        quant_encode(type, x, 256, NULL, bytes);
        quant_decode(type, bytes, 256, y);
        for (unsigned i = 0; i < 256; i++)
            assert_true(y[i] == 0);
        /* One huge among small: it survives, and nothing becomes larger than it. */
        for (unsigned i = 0; i < 256; i++)
            x[i] = (float)(0.01 * rng_normal(&r));
        x[77] = -60000.0f;
        quant_encode(type, x, 256, NULL, bytes);
        quant_decode(type, bytes, 256, y);
        const float kept = type == FUL_TYPE_MXFP4 ? 0.15f : 0.05f; /* its codes are sparse */
        if (!(fabsf(y[77] + 60000.0f) < 60000.0f * kept))
            fail_msg("%s: -60000 became %g", ful_type_name(type), (double)y[77]);
        for (unsigned i = 0; i < 256; i++)
            assert_true(isfinite(y[i]) && (i == 77 || fabsf(y[i]) <= 10000.0f));
        /* From the largest fp16 down to subnormal floats: never worse than zeros would be. */
        for (int e = 15; e >= -149; e -= 4) {
            rng_fill_normal(&r, x, 256, 1);
            double squares = 0, of = 0;
            for (unsigned i = 0; i < 256; i++)
                x[i] = ldexpf(fminf(fmaxf(x[i], -1.9f), 1.9f), e);
            quant_encode(type, x, 256, NULL, bytes);
            quant_decode(type, bytes, 256, y);
            for (unsigned i = 0; i < 256; i++) {
                assert_true(isfinite(y[i]));
                squares += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
                of += (double)x[i] * (double)x[i];
            }
            if (squares > of * 1.00001)
                fail_msg("%s: values of 2^%d have the error %g of themselves", ful_type_name(type),
                         e, sqrt(squares / of));
        }
        /* Importance of zeros, infinities, NaN and huge values does no harm. */
        rng_fill_normal(&r, x, 256, 1);
        for (unsigned i = 0; i < 256; i++)
            importance[i] = i % 5 == 0   ? 0
                            : i % 5 == 1 ? INFINITY
                            : i % 5 == 2 ? NAN
                            : i % 5 == 3 ? 3e38f
                                         : 1.0f;
        quant_encode(type, x, 256, importance, bytes);
        quant_decode(type, bytes, 256, y);
        for (unsigned i = 0; i < 256; i++)
            assert_true(isfinite(y[i]) && fabsf(y[i]) < 10);
        memset(importance, 0, sizeof importance);
        quant_encode(type, x, 256, importance, bytes);
        uint8_t other[sizeof bytes];
        quant_encode(type, x, 256, NULL, other);
        assert_memory_equal(bytes, other, (size_t)type_row_bytes(type, 256));
    }
}

static void unfit_values_are_found(void **state)
{
    (void)state;
    float x[64] = {0};
    assert_int_equal(quant_find_unfit(FUL_TYPE_Q4_0, x, 64), 64);
    x[40] = NAN;
    assert_int_equal(quant_find_unfit(FUL_TYPE_Q4_0, x, 64), 40);
    assert_int_equal(quant_find_unfit(FUL_TYPE_BF16, x, 64), 40);
    x[31] = -INFINITY;
    assert_int_equal(quant_find_unfit(FUL_TYPE_F32, x, 64), 31);
    x[3] = 65505.0f;
    assert_int_equal(quant_find_unfit(FUL_TYPE_Q6_K, x, 64), 3);
    assert_int_equal(quant_find_unfit(FUL_TYPE_F16, x, 64), 3);
    assert_int_equal(quant_find_unfit(FUL_TYPE_MXFP4, x, 64), 31);
    x[3] = 65504.0f;
    assert_int_equal(quant_find_unfit(FUL_TYPE_Q6_K, x, 64), 31);
    x[3] = 3.4e38f; /* bf16 would round it to infinity */
    assert_int_equal(quant_find_unfit(FUL_TYPE_BF16, x, 64), 3);
    assert_int_equal(quant_find_unfit(FUL_TYPE_F32, x, 64), 31);
    x[3] = bfloat_to_float(0x7f7f); /* its largest */
    assert_int_equal(quant_find_unfit(FUL_TYPE_BF16, x, 64), 31);
}

/* ---- tensors ---- */

typedef struct sink {
    uint8_t *bytes;
    size_t count, room, calls;
    ful_result result;
} sink;

static ful_result sink_write(void *ctx, const void *bytes, size_t count)
{
    sink *s = ctx;
    s->calls++;
    if (s->result != FUL_OK)
        return s->result;
    assert_true(s->count + count <= s->room);
    memcpy(s->bytes + s->count, bytes, count);
    s->count += count;
    return FUL_OK;
}

static void tensors_are_quantised_on_threads(void **state)
{
    (void)state;
    enum { ROWS = 37, COLS = 512, PER = 10 };
    static uint16_t data[ROWS * COLS];
    static float importance[4 * COLS], row[COLS];
    rng r = rng_seed(6);
    for (unsigned i = 0; i < ROWS * COLS; i++)
        data[i] = float_to_bfloat((float)rng_normal(&r));
    for (unsigned i = 0; i < 4 * COLS; i++)
        importance[i] = (float)rng_uniform(&r);
    static const ful_type types[] = {FUL_TYPE_Q4_K, FUL_TYPE_Q8_0, FUL_TYPE_F32, FUL_TYPE_F16,
                                     FUL_TYPE_Q2_K};
    for (unsigned threads = 1; threads <= 3; threads += 2) {
        team *t = team_create(NULL, threads);
        for (unsigned k = 0; k < sizeof types / sizeof types[0]; k++) {
            const size_t bytes = (size_t)type_row_bytes(types[k], COLS);
            sink s = {malloc(ROWS * bytes), 0, ROWS * bytes, 0, FUL_OK};
            quantize_params p = {
                "some.weight", FUL_TYPE_BF16,         types[k], data, ROWS, COLS, importance,
                PER,           k % 2 ? 0 : 7 * bytes, NULL};
            quantize_error error;
            assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, &error), FUL_OK);
            assert_int_equal(s.count, s.room);
            double squares = 0;
            for (unsigned i = 0; i < ROWS; i++) {
                static uint8_t want[COLS * 4];
                static float back[COLS];
                row_to_floats(FUL_TYPE_BF16, data + i * COLS, COLS, row);
                row_from_floats(types[k], row, COLS, importance + i / PER * COLS, want);
                assert_memory_equal(s.bytes + i * bytes, want, bytes);
                row_to_floats(types[k], want, COLS, back);
                for (unsigned j = 0; j < COLS; j++)
                    squares +=
                        ((double)back[j] - (double)row[j]) * ((double)back[j] - (double)row[j]);
            }
            assert_true(fabs(error.squares - squares) <= 1e-9 * squares);
            assert_true(error.of > 0.9 * ROWS * COLS && error.of < 1.1 * ROWS * COLS);
            free(s.bytes);
        }
        team_destroy(NULL, &t);
    }
}

static void large_tensors_come_in_parts(void **state)
{
    (void)state;
    enum { ROWS = 700, COLS = 8192 };
    float *data = malloc((size_t)ROWS * COLS * sizeof *data);
    for (size_t i = 0; i < (size_t)ROWS * COLS; i++)
        data[i] = (float)(i % 251) - 125;
    const size_t room = ROWS * (size_t)type_row_bytes(FUL_TYPE_Q8_0, COLS);
    sink s = {malloc(room), 0, room, 0, FUL_OK};
    team *t = team_create(NULL, 2);
    quantize_params p = {.name = "w",
                         .from = FUL_TYPE_F32,
                         .to = FUL_TYPE_Q8_0,
                         .data = data,
                         .rows = ROWS,
                         .cols = COLS};
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_OK);
    assert_int_equal(s.count, room);
    assert_true(s.calls == 2);
    uint8_t *want = malloc((size_t)type_row_bytes(FUL_TYPE_Q8_0, COLS));
    for (unsigned i = 0; i < ROWS; i += 233) {
        quant_encode(FUL_TYPE_Q8_0, data + (size_t)i * COLS, COLS, NULL, want);
        assert_memory_equal(s.bytes + i * (size_t)type_row_bytes(FUL_TYPE_Q8_0, COLS), want,
                            (size_t)type_row_bytes(FUL_TYPE_Q8_0, COLS));
    }
    free(want);
    team_destroy(NULL, &t);
    free(s.bytes);
    free(data);
}

static void refusals_say_where(void **state)
{
    (void)state;
    enum { ROWS = 9, COLS = 64 };
    static float data[ROWS * COLS];
    static uint8_t room[ROWS * COLS * 4];
    sink s = {room, 0, sizeof room, 0, FUL_OK};
    team *t = team_create(NULL, 3);
    quantize_params p = {.name = "blk.7.w",
                         .from = FUL_TYPE_F32,
                         .to = FUL_TYPE_Q4_0,
                         .data = data,
                         .rows = ROWS,
                         .cols = COLS};
    data[6 * COLS + 1] = NAN;
    data[5 * COLS + 33] = INFINITY;
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(), "blk.7.w: row 5, column 33 (index 353)"));
    assert_non_null(strstr(ful_last_error(), "not finite"));
    data[2 * COLS + 9] = -70000.0f;
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_ERR_FORMAT);
    assert_non_null(strstr(ful_last_error(),
                           "row 2, column 9 (index 137) is -70000; q4_0 holds at most 65504"));
    assert_int_equal(s.calls, 0);
    p.to = FUL_TYPE_Q4_K;
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_ERR_ARGUMENT);
    assert_non_null(strstr(ful_last_error(), "rows of 64 elements"));
    p.to = (ful_type)99;
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_ERR_ARGUMENT);
    p.to = FUL_TYPE_Q5_1;
    memset(data, 0, sizeof data);
    s.result = FUL_ERR_IO;
    assert_int_equal(tensor_quantize(NULL, t, &p, sink_write, &s, NULL), FUL_ERR_IO);
    assert_int_equal(s.calls, 1);
    team_destroy(NULL, &t);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(traits_are_those_of_the_formats),
        cmocka_unit_test(decoding_is_the_definition),
        cmocka_unit_test(device_rows_hold_what_files_do),
        cmocka_unit_test(errors_are_bounded),
        cmocka_unit_test(no_scale_is_much_better),
        cmocka_unit_test(what_fits_comes_back),
        cmocka_unit_test(bounds_hold),
        cmocka_unit_test(edges_are_coded),
        cmocka_unit_test(unfit_values_are_found),
        cmocka_unit_test(tensors_are_quantised_on_threads),
        cmocka_unit_test(large_tensors_come_in_parts),
        cmocka_unit_test(refusals_say_where),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
