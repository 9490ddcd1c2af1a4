/* The problems of the self-test and their answers, computed in double from the formulas at the top
 * of each shader. Shapes are odd on purpose: tiles that are not full, rows that must stay as they
 * are, results of several subgroups and workgroups, tensors and caches in several windows. */
#include <math.h>
#include <string.h>

#include "ops/selftest.h"
#include "ops/tiles.h"

/* Streams of kat_value. */
enum { X, Y, W, W2, GATE, NORM, STATE, TABLE, LOGITS };

#define TOLERANCE_F32 3e-5
#define TOLERANCE_HALF 4e-3 /* values rounded to halves on the way */

static const double EPS = 1e-5, ALPHA = 1.25, BETA = -0.75;

static double sigmoid(double x)
{
    return 1 / (1 + exp(-x));
}

/* Too many results for the bench: a mistake in this file. */
static ful_result no_room(void)
{
    return fail(FUL_ERR_ARGUMENT, "self-test: the answer has no room");
}

static void set_rows(kat *k, uint32_t rows)
{
    kat_step(k, 0, &(step_params){.n_rows = rows, .kv_tokens = rows});
}

/* ---- embedding ---- */

static ful_result embed_record(kat *k, uint32_t mode)
{
    enum { ROWS = 7, REAL = 6, VOCAB = 71 };
    static const uint32_t tokens[ROWS] = {0, 63, 4000000000u, 64, 70, 17, 3};
    const uint32_t dim = type_is_blocks(k->type) ? 96 : 72;
    const gpu_tensor *table;
    void *host;
    (void)mode;
    op_embed_args a = {.tokens = kat_input(k, sizeof(tokens), &host), .rows = ROWS};
    memcpy(host, tokens, sizeof(tokens));
    TRY(kat_weights(k, 1, VOCAB, dim, 64, TABLE, &table));
    a.table = table;
    a.out = kat_result(k, (uint64_t)ROWS * dim * 4);
    set_rows(k, REAL);
    double *want = kat_want(k, (uint64_t)REAL * dim);
    if (want == NULL)
        return no_room();
    for (uint32_t r = 0; r < REAL; r++)
        for (uint32_t c = 0; c < dim && tokens[r] < VOCAB; c++)
            want[r * dim + c] = kat_value(TABLE, tokens[r] * dim + c);
    kat_expect(k, KAT_F32, a.out, REAL, dim, dim, want, 0);
    kat_untouched(k, a.out, REAL, dim * 4);
    TRY(kat_record_begin(k));
    return op_embed(&k->ctx, &a);
}

/* ---- norms ---- */

static op_activation half_result(kat *k, uint32_t rows, uint32_t cols)
{
    return (op_activation){.data = kat_result(k, 2 * (uint64_t)rows * cols),
                           .scale = kat_result(k, 4 * (uint64_t)rows),
                           .dim = cols,
                           .stride = cols,
                           .half = true};
}

static void expect_half(kat *k, const op_activation *a, uint32_t rows, const double *want)
{
    kat_expect(k, KAT_HALF, a->data, rows, a->dim, a->stride, want, 1e-3);
    k->checks[k->check_count - 1].scale = a->scale;
    kat_untouched(k, a->data, rows, 2 * (uint64_t)a->stride);
}

enum { NORM_ROWS = 5, NORM_REAL = 4 };

/* want[r] = x / sqrt(mean(x^2) + eps) * weight, in place. */
static void normalise(double *x, uint32_t dim)
{
    double sum = 0;
    for (uint32_t c = 0; c < dim; c++)
        sum += x[c] * x[c];
    for (uint32_t c = 0; c < dim; c++)
        x[c] *= (double)(float)kat_value(NORM, c) / sqrt(sum / dim + (double)(float)EPS);
}

enum { TO_F32 = 1, TO_HALF = 2 };

static ful_result norm_record(kat *k, uint32_t mode)
{
    enum { DIM = 200 };
    op_norm_args a = {.a = kat_floats(k, NORM_ROWS, DIM, DIM, X, true),
                      .b = kat_floats(k, NORM_ROWS, DIM, DIM, Y, true),
                      .alpha = (float)ALPHA,
                      .beta = (float)BETA,
                      .weight = kat_floats(k, 1, DIM, DIM, NORM, false),
                      .eps = (float)EPS,
                      .dim = DIM,
                      .rows = NORM_ROWS};
    double *want = kat_want(k, NORM_REAL * DIM);
    if (want == NULL)
        return no_room();
    for (uint32_t r = 0; r < NORM_REAL; r++) {
        for (uint32_t c = 0; c < DIM; c++)
            want[r * DIM + c] = kat_gain(r) * (ALPHA * kat_value(X, r * DIM + c) +
                                               BETA * kat_value(Y, r * DIM + c));
        normalise(want + r * DIM, DIM);
    }
    if (mode & TO_F32) {
        a.out = kat_result(k, NORM_ROWS * DIM * 4);
        kat_expect(k, KAT_F32, a.out, NORM_REAL, DIM, DIM, want, TOLERANCE_F32);
        kat_untouched(k, a.out, NORM_REAL, DIM * 4);
    }
    if (mode & TO_HALF) {
        a.packed = half_result(k, NORM_ROWS, DIM);
        expect_half(k, &a.packed, NORM_REAL, want);
    }
    set_rows(k, NORM_REAL);
    TRY(kat_record_begin(k));
    return op_norm(&k->ctx, &a);
}

enum { FROM_BLOCKS = 4 };

static ful_result gated_norm_record(kat *k, uint32_t mode)
{
    enum { DIM = 192, OFFSET = 64, GATES = DIM + OFFSET, BLOCK = 64 };
    op_gated_norm_args a = {.gate_stride = GATES,
                            .gate_offset = OFFSET,
                            .weight = kat_floats(k, 1, DIM, DIM, NORM, false),
                            .eps = (float)EPS,
                            .dim = DIM,
                            .rows = NORM_ROWS};
    if (mode & FROM_BLOCKS) {
        if (!op_gated_norm_blocks_usable(&k->ctx, DIM))
            return fail(FUL_ERR_UNSUPPORTED, "no gated norm of blocks");
        a.o_blocks = kat_halves(k, NORM_ROWS, DIM, BLOCK, X, true);
        a.gate_blocks = kat_halves(k, NORM_ROWS, GATES, BLOCK, GATE, false);
    } else {
        a.o = kat_floats(k, NORM_ROWS, DIM, DIM, X, true);
        a.gate = kat_floats(k, NORM_ROWS, GATES, GATES, GATE, false);
    }
    double *want = kat_want(k, NORM_REAL * DIM);
    if (want == NULL)
        return no_room();
    for (uint32_t r = 0; r < NORM_REAL; r++) {
        for (uint32_t c = 0; c < DIM; c++)
            want[r * DIM + c] = kat_gain(r) * kat_value(X, r * DIM + c);
        normalise(want + r * DIM, DIM);
        for (uint32_t c = 0; c < DIM; c++)
            want[r * DIM + c] *= kat_value(GATE, r * GATES + OFFSET + c);
    }
    if (mode & TO_HALF) {
        a.out = half_result(k, NORM_ROWS, DIM);
        expect_half(k, &a.out, NORM_REAL, want);
    } else {
        a.out =
            (op_activation){.data = kat_result(k, NORM_ROWS * DIM * 4), .dim = DIM, .stride = DIM};
        kat_expect(k, KAT_F32, a.out.data, NORM_REAL, DIM, DIM, want, TOLERANCE_F32);
        kat_untouched(k, a.out.data, NORM_REAL, DIM * 4);
    }
    set_rows(k, NORM_REAL);
    TRY(kat_record_begin(k));
    return op_gated_norm(&k->ctx, &a);
}

static ful_result pack_record(kat *k, uint32_t mode)
{
    enum { DIM = 200 };
    (void)mode;
    gpu_range in = kat_floats(k, NORM_ROWS, DIM, DIM, X, true);
    op_activation out = half_result(k, NORM_ROWS, DIM);
    double *want = kat_want(k, NORM_REAL * DIM);
    if (want == NULL)
        return no_room();
    for (uint32_t i = 0; i < NORM_REAL * DIM; i++)
        want[i] = kat_gain(i / DIM) * kat_value(X, i);
    expect_half(k, &out, NORM_REAL, want);
    set_rows(k, NORM_REAL);
    TRY(kat_record_begin(k));
    return op_pack(&k->ctx, in, &out, NORM_ROWS, false);
}

/* ---- products ---- */

enum {
    ROW_COUNT = 0xff, /* in a mode: rows of the recording; one less is real if more than one */
    OF_HALVES = 0x100,
    TO_BLOCKS = 0x200,
    IN_PARTS = 0x400, /* columns split, as room for their sums allows */
    WITH_NORM = 0x800,
    WITH_GATE = 0x1000,
    ON_WORKGROUPS = 0x2000, /* cooperative matrices of workgroups */
    WITH_CHOICE = 0x4000    /* of experts */
};

static uint32_t real_rows(uint32_t mode)
{
    uint32_t rows = mode & ROW_COUNT;
    return rows > 8 ? rows - 3 : rows > 1 ? rows - 1 : 1;
}

static op_activation inputs_of(kat *k, uint32_t mode, uint32_t cols)
{
    uint32_t rows = mode & ROW_COUNT;
    op_activation x = {.dim = cols, .stride = cols, .half = (mode & OF_HALVES) != 0};
    k->ctx.half = x.half;
    if (x.half) {
        op_blocks b = kat_halves(k, rows, cols, cols, X, true);
        x.data = b.data;
        x.scale = b.scale;
    } else {
        x.data = kat_floats(k, rows, cols, cols, X, true);
    }
    return x;
}

/* What a mode asks of the device. Kernels of workgroups are chosen by tuning only: their tile_code
 * is set here. */
static ful_result mode_begin(kat *k, uint32_t mode)
{
    if ((mode & OF_HALVES) && !op_half_usable(k->ctx.device))
        return fail(FUL_ERR_UNSUPPORTED, "no halves");
    if (!(mode & ON_WORKGROUPS))
        return FUL_OK;
    uint32_t codes[8], n = tiles_flexible_codes(&k->ctx, codes, 8);
    if (n == 0 || !op_wide(&k->ctx))
        return fail(FUL_ERR_UNSUPPORTED, "no matrices of workgroups");
    k->ctx.tile = codes[n - 1];
    return FUL_OK;
}

static double activated(double x, uint32_t col, uint32_t split)
{
    return col < split ? x * sigmoid(x) : sigmoid(x);
}

/* y of op_fused_norm for the only row, or x itself. */
static void product_input(double *y, uint32_t mode, uint32_t row, uint32_t cols, uint32_t gates)
{
    for (uint32_t c = 0; c < cols; c++) {
        y[c] = kat_gain(row) * kat_value(X, row * cols + c);
        if (mode & WITH_NORM)
            y[c] = ALPHA * y[c] + BETA * kat_gain(row) * kat_value(Y, row * cols + c);
    }
    if (mode & (WITH_NORM | WITH_GATE))
        normalise(y, cols);
    for (uint32_t c = 0; c < cols && (mode & WITH_GATE); c++)
        y[c] *= kat_value(GATE, gates - cols + c);
}

static void product_norm(kat *k, uint32_t mode, uint32_t cols, uint32_t gates, op_fused_norm *norm)
{
    *norm = (op_fused_norm){.gated = (mode & WITH_GATE) != 0,
                            .alpha = (float)ALPHA,
                            .beta = (float)BETA,
                            .eps = (float)EPS,
                            .weight = kat_floats(k, 1, cols, cols, NORM, false)};
    if (norm->gated) {
        norm->b = kat_floats(k, 1, gates, gates, GATE, false);
        norm->gate_stride = gates;
        norm->gate_offset = gates - cols;
    } else {
        norm->b = kat_floats(k, 1, cols, cols, Y, true);
        norm->out = kat_result(k, 4 * (uint64_t)cols);
    }
}

/* Subgroups that share a sum are 8 lanes or more; 72 columns leave some of them without work. */
static ful_result matmul_record(kat *k, uint32_t mode)
{
    enum { COLS_MOST = 1032, BLOCK = 64, SPLIT = 70, GAP = 4, GATES_MORE = 64 };
    bool norm = (mode & (WITH_NORM | WITH_GATE)) != 0, blocks = (mode & TO_BLOCKS) != 0;
    uint32_t rows = mode & ROW_COUNT, real = real_rows(mode), first = 128;
    uint32_t outs = blocks ? 192 : 140, stride = blocks ? outs : outs + GAP;
    TRY(mode_begin(k, mode));
    uint32_t cols = mode & IN_PARTS ? COLS_MOST : rows > 1 && rows <= 8 ? 72 : 264;
    if (type_is_blocks(k->type))
        cols = cols == 72 ? 96 : cols / 32 * 32;
    op_fused_norm fused;
    op_matmul_args a = {.x = inputs_of(k, mode, cols),
                        .out_stride = stride,
                        .act = norm ? OP_ACT_NONE : OP_ACT_SILU_SIGMOID,
                        .split = SPLIT,
                        .rows = rows};
    if (norm) {
        if (!op_matmul_norm_usable(&k->ctx, rows, cols, mode & WITH_GATE ? cols + GATES_MORE : 0))
            return fail(FUL_ERR_UNSUPPORTED, "no product with a norm");
        product_norm(k, mode, cols, cols + GATES_MORE, &fused);
        a.norm = &fused;
    }
    TRY(kat_weights(k, 1, outs, cols, first, W, &a.w));
    if (blocks) {
        if (!op_matmul_blocks_usable(&k->ctx, a.w, rows, BLOCK))
            return fail(FUL_ERR_UNSUPPORTED, "no product to blocks");
        a.out_blocks = (op_blocks){kat_result(k, 2 * (uint64_t)rows * outs),
                                   kat_result(k, 4 * (uint64_t)rows * (outs / BLOCK)), outs, BLOCK};
    } else {
        a.out = kat_result(k, 4 * (uint64_t)rows * stride);
    }
    if (mode & IN_PARTS)
        a.scratch = gpu_whole(&k->scratch);
    double *want = kat_want(k, (uint64_t)real * outs), *y = kat_want(k, (uint64_t)real * cols);
    double weights[COLS_MOST];
    if (want == NULL || y == NULL)
        return no_room();
    for (uint32_t r = 0; r < real && !k->dry; r++)
        product_input(y + (uint64_t)r * cols, mode, r, cols, cols + GATES_MORE);
    for (uint32_t n = 0; n < outs && !k->dry; n++) {
        for (uint32_t c = 0; c < cols; c++)
            weights[c] = kat_value(W, n * cols + c);
        for (uint32_t r = 0; r < real; r++) {
            double sum = 0;
            for (uint32_t c = 0; c < cols; c++)
                sum += y[r * cols + c] * weights[c];
            want[r * outs + n] = norm ? sum : activated(sum, n, SPLIT);
        }
    }
    if (blocks) {
        kat_expect(k, KAT_HALF, a.out_blocks.data, real, outs, outs, want, TOLERANCE_HALF);
        k->checks[k->check_count - 1].scale = a.out_blocks.scale;
        k->checks[k->check_count - 1].block = BLOCK;
        kat_untouched(k, a.out_blocks.data, real, 2 * (uint64_t)outs);
    } else {
        kat_expect(k, KAT_F32, a.out, real, outs, stride, want, TOLERANCE_F32);
        kat_untouched(k, a.out, real, 4 * (uint64_t)stride);
    }
    if (norm && fused.out.buffer != NULL)
        kat_expect(k, KAT_F32, fused.out, 1, cols, cols, y, TOLERANCE_F32);
    set_rows(k, real);
    TRY(kat_record_begin(k));
    return op_matmul(&k->ctx, &a);
}

/* ---- experts ---- */

/* The best top_k of a row of logits, the lowest among equals, and their weights. */
static void choose_experts(const double *logits, uint32_t experts, uint32_t top_k, double *pairs)
{
    double sum = 0;
    for (uint32_t k = 0; k < top_k; k++) {
        uint32_t best = experts;
        for (uint32_t e = 0; e < experts; e++) {
            bool taken = false;
            for (uint32_t i = 0; i < k; i++)
                taken = taken || (uint32_t)pairs[2 * i] == e;
            if (!taken && (best == experts || logits[e] > logits[best]))
                best = e;
        }
        pairs[2 * k] = best;
        pairs[2 * k + 1] = exp(logits[best] - logits[(uint32_t)pairs[0]]);
        sum += pairs[2 * k + 1];
    }
    for (uint32_t k = 0; k < top_k; k++)
        pairs[2 * k + 1] /= sum;
}

static ful_result route_record(kat *k, uint32_t mode)
{
    enum { ROWS = 9, REAL = 8, EXPERTS = 37, TOP_K = 3 };
    double logits[EXPERTS];
    (void)mode;
    op_route_args a = {.logits = kat_floats(k, ROWS, EXPERTS, EXPERTS, LOGITS, true),
                       .experts = EXPERTS,
                       .top_k = TOP_K,
                       .rows = ROWS,
                       .routes = kat_result(k, ROWS * TOP_K * 8)};
    double *want = kat_want(k, REAL * TOP_K * 2);
    if (want == NULL)
        return no_room();
    for (uint32_t r = 0; r < REAL; r++) {
        for (uint32_t e = 0; e < EXPERTS; e++)
            logits[e] = kat_gain(r) * kat_value(LOGITS, r * EXPERTS + e);
        choose_experts(logits, EXPERTS, TOP_K, want + (uint64_t)r * TOP_K * 2);
    }
    kat_expect(k, KAT_PAIRS, a.routes, REAL, TOP_K * 2, TOP_K * 2, want, TOLERANCE_F32);
    kat_untouched(k, a.routes, REAL, TOP_K * 8);
    set_rows(k, REAL);
    TRY(kat_record_begin(k));
    return op_route(&k->ctx, &a);
}

enum { EXPERTS = 5, TOP_K = 2, DIM_MOST = 96, WIDTH_MOST = 40 };

typedef struct moe_size {
    uint32_t dim, width;
    uint32_t w13, w2; /* weights of all experts */
} moe_size;

/* Blocks need multiples of 32. */
static moe_size moe_size_of(const kat *k)
{
    moe_size z = {.dim = 72, .width = 40};
    if (type_is_blocks(k->type))
        z = (moe_size){.dim = 96, .width = 32};
    z.w2 = EXPERTS * z.dim * z.width;
    z.w13 = 2 * z.w2;
    return z;
}

/* out += weight * W2 (SiLU(W1 x) * (W3 x)) of one expert; w: all of W1 and W3, then W2. */
static void expert_add(const moe_size *z, const double *w, const double *x, uint32_t expert,
                       double weight, double *out)
{
    const double *w13 = w + (uint64_t)expert * 2 * z->width * z->dim;
    const double *w2 = w + z->w13 + (uint64_t)expert * z->dim * z->width;
    double hidden[WIDTH_MOST];
    for (uint32_t i = 0; i < z->width; i++) {
        double sum[2] = {0, 0};
        for (uint32_t half = 0; half < 2; half++)
            for (uint32_t c = 0; c < z->dim; c++)
                sum[half] += x[c] * w13[(2 * i + half) * z->dim + c];
        hidden[i] = sum[0] * sigmoid(sum[0]) * sum[1];
    }
    for (uint32_t n = 0; n < z->dim; n++) {
        double sum = 0;
        for (uint32_t i = 0; i < z->width; i++)
            sum += hidden[i] * w2[n * z->width + i];
        out[n] += weight * sum;
    }
}

static void moe_routes(double *pairs, uint32_t rows, bool choose)
{
    double logits[EXPERTS];
    for (uint32_t e = 0; e < EXPERTS; e++)
        logits[e] = kat_value(LOGITS, e);
    if (choose)
        choose_experts(logits, EXPERTS, TOP_K, pairs);
    /* Expert 3 has no rows. */
    static const uint32_t first[] = {0, 4, 2, 1, 2, 0, 2}, second[] = {1, 2, 0, 4, 1, 4, 4};
    for (uint32_t r = 0; r < rows && !choose; r++) {
        double w = 0.25 + 0.0625 * (r % 8);
        double *p = pairs + (uint64_t)r * TOP_K * 2;
        p[0] = first[r % 7];
        p[1] = w;
        p[2] = second[r % 7];
        p[3] = 1 - w;
    }
}

static ful_result moe_record(kat *k, uint32_t mode)
{
    uint32_t rows = mode & ROW_COUNT, real = real_rows(mode);
    bool choose = (mode & WITH_CHOICE) != 0, half = (mode & OF_HALVES) != 0;
    double x[DIM_MOST];
    const moe_size z = moe_size_of(k);
    TRY(mode_begin(k, mode));
    op_moe_args a = {.x = inputs_of(k, mode, z.dim), .top_k = TOP_K, .rows = rows};
    if (choose && !op_moe_routes(&k->ctx, rows, EXPERTS, TOP_K))
        return fail(FUL_ERR_UNSUPPORTED, "no choice of experts on the way");
    TRY(kat_weights(k, EXPERTS, 2 * z.width, z.dim, 3, W, &a.w13));
    /* The second matrix in one window lets one row go through it and the sum at once. */
    TRY(kat_weights(k, EXPERTS, z.dim, z.width, rows == 1 ? (uint32_t)EXPERTS : 4, W2, &a.w2));
    double *pairs = kat_want(k, (uint64_t)rows * TOP_K * 2);
    double *want = kat_want(k, (uint64_t)real * z.dim), *w = kat_want(k, z.w13 + z.w2);
    if (pairs == NULL || want == NULL || w == NULL)
        return no_room();
    for (uint32_t i = 0; i < z.w13 && !k->dry; i++)
        w[i] = kat_value(W, i);
    for (uint32_t i = 0; i < z.w2 && !k->dry; i++)
        w[z.w13 + i] = kat_value(W2, i);
    moe_routes(pairs, rows, choose);
    uint8_t *host;
    if (choose) {
        a.logits = kat_floats(k, 1, EXPERTS, EXPERTS, LOGITS, false);
        a.routes = kat_result(k, 8 * TOP_K);
        kat_expect(k, KAT_PAIRS, a.routes, 1, TOP_K * 2, TOP_K * 2, pairs, TOLERANCE_F32);
    } else {
        a.routes = kat_input(k, 8 * (uint64_t)TOP_K * rows, &host);
        for (uint32_t i = 0; i < rows * TOP_K; i++) {
            uint32_t expert = (uint32_t)pairs[2 * i];
            float weight = (float)pairs[2 * i + 1];
            memcpy(host + 8 * (uint64_t)i, &expert, 4);
            memcpy(host + 8 * (uint64_t)i + 4, &weight, 4);
        }
    }
    for (uint32_t r = 0; r < real && !k->dry; r++) {
        for (uint32_t c = 0; c < z.dim; c++)
            x[c] = kat_gain(r) * kat_value(X, r * z.dim + c);
        for (uint32_t i = 0; i < TOP_K; i++) {
            const double *pair = pairs + (uint64_t)(r * TOP_K + i) * 2;
            expert_add(&z, w, x, (uint32_t)pair[0], pair[1], want + (uint64_t)r * z.dim);
        }
    }
    a.out = kat_result(k, (uint64_t)rows * z.dim * 4);
    kat_expect(k, KAT_F32, a.out, real, z.dim, z.dim, want, half ? TOLERANCE_HALF : TOLERANCE_F32);
    kat_untouched(k, a.out, real, z.dim * 4);
    a.scratch = gpu_whole(&k->scratch);
    set_rows(k, real);
    TRY(kat_record_begin(k));
    return op_moe(&k->ctx, &a);
}

/* ---- lightning attention ---- */

enum { HEADS = 2, HEAD_DIM = 64, STATE_SIZE = HEADS * HEAD_DIM * HEAD_DIM };
static const double slopes[HEADS] = {0.4, 0.003};

static gpu_range decay_input(kat *k)
{
    void *host;
    gpu_range r = kat_input(k, op_lightning_decay_bytes(k->ctx.device, HEADS, HEAD_DIM), &host);
    op_lightning_decay_fill(k->ctx.device, HEADS, HEAD_DIM, slopes, host);
    return r;
}

/* One token of one head: S = exp(-s) S + k^T v; o = q S. */
static void lightning_token(uint32_t row, uint32_t h, uint32_t heads, double *state, double *out)
{
    uint32_t first = (row * heads + h) * 3 * HEAD_DIM;
    double decay = exp(-slopes[h]), gain = kat_gain(row), q[HEAD_DIM], v[HEAD_DIM];
    for (uint32_t i = 0; i < HEAD_DIM; i++) {
        q[i] = gain * kat_value(X, first + i);
        v[i] = gain * kat_value(X, first + 2 * HEAD_DIM + i);
    }
    for (uint32_t i = 0; i < HEAD_DIM; i++) {
        double key = gain * kat_value(X, first + HEAD_DIM + i);
        for (uint32_t j = 0; j < HEAD_DIM; j++) {
            double *s = &state[i * HEAD_DIM + j];
            *s = decay * *s + key * v[j];
            out[j] += q[i] * *s;
        }
    }
}

static gpu_range state_given(kat *k, uint32_t sequences, double *state)
{
    float *host;
    gpu_range r = kat_given(k, (uint64_t)sequences * STATE_SIZE * 4, &host);
    for (uint32_t i = 0; i < sequences * STATE_SIZE; i++) {
        state[i] = kat_value(STATE, i);
        host[i] = (float)state[i];
    }
    return r;
}

/* So many rows of one head that they are walked in chunks side by side. */
enum { LONG = 1 };

static ful_result lightning_prefill_record(kat *k, uint32_t mode)
{
    enum { ROWS = 83, REAL = 77, LONG_ROWS = 1037, LONG_REAL = 1030 };
    uint32_t heads = mode & LONG ? 1 : HEADS, inner = heads * HEAD_DIM, stride = 3 * inner + 16;
    uint32_t rows = mode & LONG ? LONG_ROWS : ROWS, real = mode & LONG ? LONG_REAL : REAL;
    double tolerance = mode & OF_HALVES ? TOLERANCE_HALF : TOLERANCE_F32;
    k->ctx.half = (mode & OF_HALVES) != 0;
    double *state = kat_want(k, STATE_SIZE), *want = kat_want(k, (uint64_t)real * inner);
    if (state == NULL || want == NULL)
        return no_room();
    op_lightning_args a = {.qkv = kat_floats(k, rows, 3 * inner, stride, X, true),
                           .qkv_stride = stride,
                           .heads = heads,
                           .head_dim = HEAD_DIM,
                           .rows = rows,
                           .decay = decay_input(k),
                           .state = state_given(k, 1, state),
                           .out = kat_result(k, (uint64_t)rows * inner * 4),
                           .scratch = gpu_whole(&k->scratch)};
    for (uint32_t t = 0; t < real && !k->dry; t++)
        for (uint32_t h = 0; h < heads; h++)
            lightning_token(t, h, heads, state + (uint64_t)h * HEAD_DIM * HEAD_DIM,
                            want + (uint64_t)t * inner + h * HEAD_DIM);
    kat_expect(k, KAT_F32, a.out, real, inner, inner, want, tolerance);
    kat_expect(k, KAT_F32, a.state, HEADS, HEAD_DIM * HEAD_DIM, HEAD_DIM * HEAD_DIM, state,
               tolerance);
    kat_untouched(k, a.out, real, 4 * (uint64_t)inner);
    set_rows(k, real);
    TRY(kat_record_begin(k));
    return op_lightning_prefill(&k->ctx, &a);
}

enum { BESIDE = 1 }; /* in a mode: the state read stays as it was, another is written */

static ful_result lightning_decode_record(kat *k, uint32_t mode)
{
    enum { STRIDE = 3 * HEADS * HEAD_DIM, INNER = HEADS * HEAD_DIM };
    uint32_t sequences = mode & BESIDE ? 1 : 3, states = mode & BESIDE ? 2 : 3;
    if ((mode & BESIDE) && !op_lightning_decode_sides(&k->ctx, HEADS, HEAD_DIM))
        return fail(FUL_ERR_UNSUPPORTED, "no decode beside the state");
    double *state = kat_want(k, (uint64_t)states * STATE_SIZE);
    double *want = kat_want(k, (uint64_t)sequences * INNER);
    if (state == NULL || want == NULL)
        return no_room();
    op_lightning_args a = {.qkv = kat_floats(k, sequences, STRIDE, STRIDE, X, true),
                           .qkv_stride = STRIDE,
                           .heads = HEADS,
                           .head_dim = HEAD_DIM,
                           .rows = 1,
                           .sequences = sequences,
                           .decay = decay_input(k),
                           .state = state_given(k, states, state),
                           .state_to = mode & BESIDE,
                           .out = kat_result(k, (uint64_t)sequences * INNER * 4)};
    double *first = state;
    if (mode & BESIDE) {
        first += STATE_SIZE;
        memcpy(first, state, STATE_SIZE * sizeof(*state));
    }
    for (uint32_t t = 0; t < sequences && !k->dry; t++)
        for (uint32_t h = 0; h < HEADS; h++)
            lightning_token(t, h, HEADS, first + (uint64_t)(t * HEADS + h) * HEAD_DIM * HEAD_DIM,
                            want + t * INNER + h * HEAD_DIM);
    kat_expect(k, KAT_F32, a.out, sequences, INNER, INNER, want, TOLERANCE_F32);
    kat_expect(k, KAT_F32, a.state, states * HEADS, HEAD_DIM * HEAD_DIM, HEAD_DIM * HEAD_DIM, state,
               TOLERANCE_F32);
    set_rows(k, 1);
    TRY(kat_record_begin(k));
    return op_lightning_decode(&k->ctx, &a);
}

/* ---- softmax attention ---- */

enum {
    Q_HEADS = 4,
    KV_HEADS = 2,
    ROTARY = 32,
    PAIRS = ROTARY / 2,
    CHUNK = 70, /* recorded; CHUNK_REAL then a token of its own */
    CHUNK_REAL = 67,
    TOKENS = CHUNK_REAL + 1,
    QKV_WIDTH = (Q_HEADS + 2 * KV_HEADS) * HEAD_DIM
};

/* Head `head` of token t, rotated by the table if it is no value. */
static void head_read(const float *rope, uint32_t t, uint32_t head, double *out)
{
    for (uint32_t i = 0; i < HEAD_DIM; i++)
        out[i] = kat_value(X, (t * (Q_HEADS + 2 * KV_HEADS) + head) * HEAD_DIM + i);
    for (uint32_t i = 0; i < PAIRS && head < Q_HEADS + KV_HEADS; i++) {
        double c = (double)rope[(t * PAIRS + i) * 2], s = (double)rope[(t * PAIRS + i) * 2 + 1];
        double a = out[i], b = out[i + PAIRS];
        out[i] = a * c - b * s;
        out[i + PAIRS] = b * c + a * s;
    }
}

/* keys, values: [TOKENS][KV_HEADS][HEAD_DIM], keys rotated. */
static void attend(const float *rope, const double *keys, const double *values, uint32_t t,
                   uint32_t head, double *out)
{
    uint32_t kv = head / (Q_HEADS / KV_HEADS);
    double q[HEAD_DIM], weight[TOKENS], most = -INFINITY, sum = 0;
    head_read(rope, t, head, q);
    for (uint32_t j = 0; j <= t; j++) {
        const double *key = keys + (uint64_t)(j * KV_HEADS + kv) * HEAD_DIM;
        weight[j] = 0;
        for (uint32_t i = 0; i < HEAD_DIM; i++)
            weight[j] += q[i] * key[i] / sqrt(HEAD_DIM);
        most = fmax(most, weight[j]);
    }
    for (uint32_t j = 0; j <= t; j++)
        sum += weight[j] = exp(weight[j] - most);
    for (uint32_t j = 0; j <= t; j++) {
        const double *value = values + (uint64_t)(j * KV_HEADS + kv) * HEAD_DIM;
        for (uint32_t i = 0; i < HEAD_DIM; i++)
            out[i] += weight[j] / sum * value[i];
    }
}

static void attention_answer(const float *rope, double *keys, double *values, double *want)
{
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t h = 0; h < KV_HEADS; h++) {
            uint64_t at = (uint64_t)(t * KV_HEADS + h) * HEAD_DIM;
            head_read(rope, t, Q_HEADS + h, keys + at);
            head_read(rope, t, Q_HEADS + KV_HEADS + h, values + at);
        }
    for (uint32_t t = 0; t < TOKENS; t++)
        for (uint32_t h = 0; h < Q_HEADS; h++)
            attend(rope, keys, values, t, h, want + (uint64_t)(t * Q_HEADS + h) * HEAD_DIM);
}

/* A chunk whose keys cross from one window into the next, then a token on its own; the cache is
 * large enough that keys are split among workgroups everywhere. */
static ful_result attention_record(kat *k, uint32_t mode)
{
    enum { INNER = Q_HEADS * HEAD_DIM, CAPACITY = 272, WINDOW = 64 };
    bool half = (mode & OF_HALVES) != 0;
    double tolerance = half ? TOLERANCE_HALF : TOLERANCE_F32;
    float *table, *decode_table;
    double *keys = kat_want(k, TOKENS * KV_HEADS * HEAD_DIM), *want = kat_want(k, TOKENS * INNER);
    double *values = kat_want(k, TOKENS * KV_HEADS * HEAD_DIM);
    if (keys == NULL || want == NULL || values == NULL)
        return no_room();
    float *host;
    op_attention_args a = {.qkv_stride = QKV_WIDTH,
                           .heads = Q_HEADS,
                           .head_dim = HEAD_DIM,
                           .rotary_dim = ROTARY,
                           .rows = CHUNK,
                           .qkv = kat_input(k, CHUNK * QKV_WIDTH * 4, &host),
                           .rope = kat_input(k, CHUNK * ROTARY * 4, &table),
                           .kv = &k->kv,
                           .scratch = gpu_whole(&k->scratch)};
    op_attention_args one = a;
    float *decode_host;
    one.rows = 1;
    one.qkv = kat_input(k, QKV_WIDTH * 4, &decode_host);
    one.rope = kat_input(k, ROTARY * 4, &decode_table);
    TRY(kat_kv(k, half ? FUL_TYPE_F16 : FUL_TYPE_F32, KV_HEADS, HEAD_DIM, CAPACITY, WINDOW));
    op_rope_table(0, TOKENS, ROTARY, 10000.0, table);
    memcpy(decode_table, table + (uint64_t)CHUNK_REAL * ROTARY, ROTARY * 4);
    for (uint32_t i = 0; i < CHUNK * QKV_WIDTH && !k->dry; i++)
        host[i] = (float)kat_value(X, i);
    memcpy(decode_host, host + (uint64_t)CHUNK_REAL * QKV_WIDTH, QKV_WIDTH * 4);
    if (!k->dry)
        attention_answer(table, keys, values, want);
    a.out = kat_result(k, CHUNK * INNER * 4);
    one.out = kat_result(k, INNER * 4);
    kat_expect(k, KAT_F32, a.out, CHUNK_REAL, INNER, INNER, want, tolerance);
    kat_untouched(k, a.out, CHUNK_REAL, INNER * 4);
    kat_expect(k, KAT_F32, one.out, 1, INNER, INNER, want + (uint64_t)CHUNK_REAL * INNER,
               tolerance);
    kat_step(k, 0, &(step_params){.n_rows = CHUNK_REAL, .kv_tokens = CHUNK_REAL});
    kat_step(k, 1, &(step_params){.n_rows = 1, .position = CHUNK_REAL, .kv_tokens = TOKENS});
    TRY(kat_record_begin(k));
    TRY(op_attention(&k->ctx, &a));
    k->ctx.step = kat_step_range(k, 1);
    return op_attention(&k->ctx, &one);
}

/* ---- sampling ---- */

/* The largest; then a draw among the best three, whose shares in order of ids end at 0.307, 0.814
 * and 1. */
static ful_result sample_record(kat *k, uint32_t mode)
{
    enum { VOCAB = 1500 };
    float *host;
    (void)mode;
    op_sample_args a = {.logits = kat_input(k, VOCAB * 4, &host),
                        .vocab = VOCAB,
                        .out = kat_result(k, 8),
                        .scratch = gpu_whole(&k->scratch)};
    for (uint32_t i = 0; i < VOCAB; i++)
        host[i] = (float)(10 * kat_value(LOGITS, i));
    host[3] = 19.5f;
    host[700] = 20.0f;
    host[1499] = 19.0f;
    op_sample_args draw = a;
    draw.out = kat_result(k, 8);
    double *want = kat_want(k, 4);
    if (want == NULL)
        return no_room();
    want[0] = 700;
    want[2] = 1499;
    kat_expect(k, KAT_WORDS, a.out, 1, 2, 2, want, 0);
    kat_expect(k, KAT_WORDS, draw.out, 1, 2, 2, want + 2, 0);
    kat_step(k, 0, &(step_params){.n_rows = 1, .top_p = 1});
    kat_step(
        k, 1,
        &(step_params){.n_rows = 1, .temperature = 1, .top_p = 1, .top_k = 3, .uniform = 0.9f});
    TRY(kat_record_begin(k));
    TRY(op_sample(&k->ctx, &a));
    k->ctx.step = kat_step_range(k, 1);
    return op_sample(&k->ctx, &draw);
}

/* ---- the ladders ---- */

static const ladder ladders[] = {
    {"embedding", embed_record, 0, true, false, {"embed"}},
    {"norm", norm_record, TO_F32, false, false, {"rmsnorm"}},
    {"norm to halves", norm_record, TO_HALF, false, false, {"rmsnorm_half"}},
    {"norm to both", norm_record, TO_F32 | TO_HALF, false, false, {"rmsnorm_both"}},
    {"gated norm", gated_norm_record, TO_F32, false, false, {"gated_norm"}},
    {"gated norm to halves", gated_norm_record, TO_HALF, false, false, {"gated_norm_half"}},
    {"gated norm of blocks",
     gated_norm_record,
     TO_HALF | FROM_BLOCKS,
     false,
     true,
     {"gated_norm_blocks"}},
    {"pack", pack_record, 0, false, false, {"pack"}},
    {"matmul, 1 row",
     matmul_record,
     1,
     true,
     false,
     {"matvec_wide_subgroup", "matvec_wide", "matvec"}},
    {"matmul, few rows",
     matmul_record,
     5,
     true,
     false,
     {"matvec_rows_subgroup", "matvec_wide_subgroup", "matvec_wide", "matvec"}},
    {"matmul with norm",
     matmul_record,
     1 | WITH_NORM,
     true,
     true,
     {"matvec_norm_subgroup", "matvec_norm"}},
    {"matmul with gated norm",
     matmul_record,
     1 | WITH_GATE,
     true,
     true,
     {"matvec_norm_subgroup", "matvec_norm"}},
    {"matmul", matmul_record, 40, true, false, {"matmul", "matvec"}},
    {"matmul of halves",
     matmul_record,
     40 | OF_HALVES,
     true,
     false,
     {"matmul_coopmat", "matmul_half", "matvec_wide_subgroup", "matvec_wide", "matvec"}},
    {"matmul of halves on workgroups",
     matmul_record,
     40 | OF_HALVES | ON_WORKGROUPS,
     true,
     true,
     {"matmul_coopmat2"}},
    {"matmul to blocks",
     matmul_record,
     40 | OF_HALVES | TO_BLOCKS,
     true,
     true,
     {"matmul_coopmat_blocks"}},
    {"matmul to blocks on workgroups",
     matmul_record,
     40 | OF_HALVES | TO_BLOCKS | ON_WORKGROUPS,
     true,
     true,
     {"matmul_coopmat2_blocks"}},
    {"matmul in parts", matmul_record, 40 | IN_PARTS, false, true, {"matmul_reduce"}},
    {"routing", route_record, 0, false, false, {"moe_route_wide", "moe_route_narrow"}},
    {"experts with their choice, 1 row",
     moe_record,
     1 | WITH_CHOICE,
     true,
     true,
     {"moe_route_up_subgroup", "moe_route_up_wide", "moe_route_up_narrow"}},
    {"experts, 1 row",
     moe_record,
     1,
     true,
     false,
     {"moe_matvec_subgroup", "moe_matvec_wide", "moe_matvec_narrow"}},
    {"experts, few rows",
     moe_record,
     4,
     true,
     false,
     {"moe_matvec_subgroup", "moe_matvec_wide", "moe_matmul", "moe_matvec_narrow"}},
    {"experts of halves, few rows",
     moe_record,
     4 | OF_HALVES,
     true,
     false,
     {"moe_matvec_subgroup_half", "moe_matvec_wide_half", "moe_coopmat", "moe_matmul_half",
      "moe_matvec_narrow_half"}},
    {"experts", moe_record, 40, true, false, {"moe_matmul", "moe_matvec_narrow"}},
    {"experts of halves",
     moe_record,
     40 | OF_HALVES,
     true,
     false,
     {"moe_coopmat", "moe_matmul_half", "moe_matvec_narrow_half"}},
    {"experts of halves on workgroups",
     moe_record,
     40 | OF_HALVES | ON_WORKGROUPS,
     true,
     true,
     {"moe_coopmat2"}},
    {"lightning prefill of halves",
     lightning_prefill_record,
     OF_HALVES,
     false,
     false,
     {"lightning_coopmat", "lightning_walk_half", "lightning_walk"}},
    {"lightning prefill in chunks",
     lightning_prefill_record,
     OF_HALVES | LONG,
     false,
     true,
     {"lightning_sums"}},
    {"lightning prefill", lightning_prefill_record, 0, false, false, {"lightning_walk"}},
    {"lightning decode",
     lightning_decode_record,
     0,
     false,
     false,
     {"lightning_decode_wide", "lightning_decode"}},
    {"lightning decode beside the state",
     lightning_decode_record,
     BESIDE,
     false,
     true,
     {"lightning_decode_wide"}},
    {"attention on halves",
     attention_record,
     OF_HALVES,
     false,
     false,
     {"attention_coopmat", "attention_f16"}},
    {"attention", attention_record, 0, false, false, {"attention"}},
    {"sampling", sample_record, 0, false, true, {"sample"}},
};

const ladder *selftest_ladders(uint32_t *count)
{
    *count = sizeof(ladders) / sizeof(ladders[0]);
    return ladders;
}
