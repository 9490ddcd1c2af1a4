/* The references themselves, against numbers worked out by hand and identities of the formulas. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "../ref/ref.h"
#include "../util/compare.h"
#include "../util/rng.h"

static void assert_close(double got, double want, double tolerance)
{
    if (!(fabs(got - want) <= tolerance))
        fail_msg("got %.17g, want %.17g, tolerance %g", got, want, tolerance);
}

static void assert_error_below(double error, double limit)
{
    if (!(error <= limit))
        fail_msg("error %g is above %g", error, limit);
}

static double *normals(rng *r, size_t n)
{
    double *p = ref_alloc(n);
    for (size_t i = 0; i < n; i++)
        p[i] = rng_normal(r);
    return p;
}

static float *normal_floats(rng *r, size_t n)
{
    float *p = ref_alloc_bytes(n, sizeof *p);
    rng_fill_normal(r, p, n, 1.0);
    return p;
}

/* ---- utilities ---- */

static void compare_refuses_nan_and_infinity(void **unused)
{
    (void)unused;
    double good[] = {1.0, -4.0, 2.0}, near[] = {1.0, -4.5, 2.0}, zero[3] = {0.0, 0.0, 0.0};
    double with_nan[] = {1.0, (double)NAN, 2.0}, with_inf[] = {1.0, (double)INFINITY, 2.0};
    assert_close(max_rel_error(near, good, 3), 0.125, 1e-15);
    assert_close(nmse(near, good, 3), 0.25 / 21.0, 1e-15);
    assert_close(max_abs_error(near, good, 3), 0.5, 1e-15);
    assert_true(isinf(max_rel_error(with_nan, good, 3)));
    assert_true(isinf(max_rel_error(good, with_nan, 3)));
    assert_true(isinf(max_rel_error(with_nan, with_nan, 3)));
    assert_true(isinf(max_rel_error(with_inf, with_inf, 3)));
    assert_true(isinf(nmse(with_nan, good, 3)));
    assert_true(isinf(max_abs_error(with_inf, good, 3)));
    assert_true(isinf(max_rel_error(good, good, 0)));
    assert_true(isinf(max_rel_error(good, zero, 3)));
    assert_close(max_rel_error(zero, zero, 3), 0.0, 0.0);
    float good32[] = {1.0F, -4.0F, 2.0F}, nan32[] = {1.0F, NAN, 2.0F};
    assert_close(max_rel_error_f32(good32, near, 3), 0.5 / 4.5, 1e-15);
    assert_true(isinf(max_rel_error_f32(nan32, good, 3)));
    assert_true(isinf(max_rel_error_ff(good32, nan32, 3)));
    assert_true(isinf(nmse_f32(nan32, good, 3)));
    assert_int_equal(argmax(with_nan, 3), 2);
    assert_int_equal(argmax_f32(nan32 + 1, 2), 1);
    double ties[] = {1.0, 3.0, 3.0};
    assert_int_equal(argmax(ties, 3), 1);
}

static void rng_gives_known_numbers(void **unused)
{
    (void)unused;
    rng r = rng_seed(1234567);
    assert_true(rng_next(&r) == 6457827717110365317U);
    assert_true(rng_next(&r) == 3203168211198807973U);
    double sum = 0.0, sum2 = 0.0;
    enum { COUNT = 20000 };
    for (int i = 0; i < COUNT; i++) {
        double x = rng_normal(&r);
        sum += x;
        sum2 += x * x;
        double u = rng_uniform(&r);
        assert_true(u >= 0.0 && u < 1.0);
        assert_true(rng_below(&r, 7) < 7);
    }
    assert_close(sum / COUNT, 0.0, 0.03);
    assert_close(sum2 / COUNT, 1.0, 0.05);
}

/* ---- norms ---- */

static void rmsnorm_by_hand(void **unused)
{
    (void)unused;
    double x[] = {3.0, 4.0}, out[2];
    float w[] = {2.0F, 0.5F};
    ref_rmsnorm(1, 2, x, w, 0.0, out);
    assert_close(out[0], 6.0 / sqrt(12.5), 1e-15);
    assert_close(out[1], 2.0 / sqrt(12.5), 1e-15);
    ref_rmsnorm(1, 2, x, NULL, 3.5, out); /* mean 12.5 + eps 3.5 = 16 */
    assert_close(out[0], 0.75, 1e-15);
    assert_close(out[1], 1.0, 1e-15);

    double a[] = {1.0, 1.0}, y[] = {1.0, 2.0}, sum[2];
    ref_residual_norm(1, 2, a, 2.0, y, 1.0, w, 0.0, sum, out); /* sum = (3, 4) */
    assert_close(sum[0], 3.0, 0.0);
    assert_close(sum[1], 4.0, 0.0);
    assert_close(out[0], 6.0 / sqrt(12.5), 1e-15);

    double gate[] = {0.0, log(3.0)}; /* sigmoid: 1/2, 3/4 */
    ref_gated_norm(1, 2, x, gate, 0, 0, w, 0.0, out);
    assert_close(out[0], 3.0 / sqrt(12.5), 1e-15);
    assert_close(out[1], 1.5 / sqrt(12.5), 1e-15);
    ref_gated_norm(1, 2, x, gate, 0, 1, w, 0.0, out);
    assert_close(out[0], 0.0, 0.0);
}

static void sigmoid_is_stable(void **unused)
{
    (void)unused;
    assert_close(ref_sigmoid(0.0), 0.5, 0.0);
    assert_close(ref_sigmoid(1000.0), 1.0, 0.0);
    assert_close(ref_sigmoid(-1000.0), 0.0, 0.0);
    assert_close(ref_sigmoid(-log(4.0)), 0.2, 1e-16);
    assert_close(ref_silu(-1e6), 0.0, 0.0);
    assert_close(ref_silu(log(4.0)), 0.8 * log(4.0), 1e-15);
}

/* ---- matmul ---- */

static void matmul_by_hand_and_by_rows(void **unused)
{
    (void)unused;
    double x[] = {1.0, 2.0, 3.0}, out[2];
    float W[] = {1.0F, 0.0F, -1.0F, 2.0F, 0.5F, 1.0F};
    ref_matmul(1, 3, 2, x, W, out);
    assert_close(out[0], -2.0, 0.0);
    assert_close(out[1], 6.0, 0.0);

    enum { ROWS = 7, K = 13, N = 6 };
    rng r = rng_seed(1);
    double *many = normals(&r, ROWS * K), together[ROWS * N], alone[ROWS * N];
    float *weights = normal_floats(&r, N * K);
    ref_matmul(ROWS, K, N, many, weights, together);
    for (size_t i = 0; i < ROWS; i++)
        ref_matmul(1, K, N, many + i * K, weights, alone + i * N);
    assert_error_below(max_rel_error(together, alone, ROWS * N), 1e-15);

    double silu[ROWS * N], split[ROWS * N], only[ROWS * N], swiglu[ROWS * N / 2];
    ref_matmul_act(ROWS, K, N, many, weights, REF_ACT_SILU, 0, silu);
    ref_matmul_act(ROWS, K, N, many, weights, REF_ACT_SIGMOID, 4, split);
    ref_matmul_act(ROWS, K, N, many, weights, REF_ACT_SIGMOID_ONLY, 4, only);
    ref_matmul_act(ROWS, K, N, many, weights, REF_ACT_SWIGLU, 0, swiglu);
    for (size_t i = 0; i < ROWS * N; i++) {
        double s = 1.0 / (1.0 + exp(-together[i]));
        assert_close(silu[i], together[i] * s, 1e-14);
        assert_close(split[i], i % N < 4 ? together[i] * s : s, 1e-14);
        assert_close(only[i], i % N < 4 ? together[i] : s, 1e-14);
        if (i % 2 == 0)
            assert_close(swiglu[i / 2], together[i] * s * together[i + 1], 1e-13);
    }
    free(many);
    free(weights);
}

/* ---- lightning ---- */

static void lightning_by_hand(void **unused)
{
    (void)unused;
    /* D = 2, s = ln 2; rows are q, k, v. */
    const double qkv[] = {1, 2, 1, 0, 1, 2, 0, 1, 2, 1, 3, -1, 3, -1, -1, 1, 0, 4};
    const double want_out[] = {1, 2, 3, -1, 8.25, -17};
    const double want_state[3][4] = {{1, 2, 0, 0}, {6.5, -1, 3, -1}, {3.25, -4.5, 1.5, 3.5}};
    const double slope = log(2.0);
    double state[4] = {0}, out[6];
    for (uint32_t t = 0; t < 3; t++) {
        ref_lightning(1, 1, 2, qkv + 6 * t, 0, &slope, state, out + 2 * t);
        assert_error_below(max_rel_error(state, want_state[t], 4), 1e-15);
    }
    assert_error_below(max_rel_error(out, want_out, 6), 1e-15);
    for (uint32_t block = 1; block <= 4; block++) {
        memset(state, 0, sizeof state);
        ref_lightning_block(3, 1, 2, block, qkv, 0, &slope, state, out);
        assert_error_below(max_rel_error(out, want_out, 6), 1e-15);
        assert_error_below(max_rel_error(state, want_state[2], 4), 1e-15);
    }
}

static void lightning_block_equals_recurrence(void **unused)
{
    (void)unused;
    enum { H = 3, D = 16, T_MAX = 131, STRIDE = 3 * H * D + 5 };
    const uint32_t lengths[] = {1, 2, 15, 16, 17, 64, 131}, blocks[] = {1, 3, 16, 64, 256};
    const double slopes[H] = {0.917, 0.05, 4.9e-5};
    rng r = rng_seed(2);
    double *qkv = normals(&r, T_MAX * STRIDE), *start = normals(&r, H * D * D);
    double *a = ref_alloc(T_MAX * H * D), *b = ref_alloc(T_MAX * H * D);
    double sa[H * D * D], sb[H * D * D];
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        for (size_t j = 0; j < sizeof blocks / sizeof blocks[0]; j++) {
            uint32_t T = lengths[i];
            memcpy(sa, start, sizeof sa);
            memcpy(sb, start, sizeof sb);
            ref_lightning(T, H, D, qkv, STRIDE, slopes, sa, a);
            ref_lightning_block(T, H, D, blocks[j], qkv, STRIDE, slopes, sb, b);
            assert_error_below(max_rel_error(b, a, (size_t)T * H * D), 1e-13);
            assert_error_below(max_rel_error(sb, sa, H * D * D), 1e-13);
        }
    }
    /* Continuing from a kept state is the same as one call, exactly. */
    memcpy(sa, start, sizeof sa);
    memcpy(sb, start, sizeof sb);
    ref_lightning(T_MAX, H, D, qkv, STRIDE, slopes, sa, a);
    ref_lightning(50, H, D, qkv, STRIDE, slopes, sb, b);
    ref_lightning(T_MAX - 50, H, D, qkv + 50 * STRIDE, STRIDE, slopes, sb, b + 50 * H * D);
    assert_memory_equal(a, b, T_MAX * H * D * sizeof *a);
    assert_memory_equal(sa, sb, sizeof sa);
    free(qkv);
    free(start);
    free(a);
    free(b);
}

static void slopes_have_published_values(void **unused)
{
    (void)unused;
    double s[64];
    /* Nine digits each: rounded by up to 5e-9. */
    const double orig0[] = {0.917013213, 0.062500625, 0.00390628906};
    const double orig1[] = {0.905405567, 0.0617094858, 0.00385684286};
    const double orig78[] = {0.0116168162, 7.91764241e-4, 4.9485265e-5};
    const double hf78[] = {0.0116169304, 7.91772211e-4, 4.94857704e-5};
    const int heads[] = {0, 31, 63};
    for (int i = 0; i < 3; i++) {
        ref_slopes(1, 64, 0, 80, s);
        assert_close(s[heads[i]] / orig0[i], 1.0, 5e-9);
        ref_slopes(1, 64, 1, 80, s);
        assert_close(s[heads[i]] / orig1[i], 1.0, 5e-9);
        ref_slopes(1, 64, 78, 80, s);
        assert_close(s[heads[i]] / orig78[i], 1.0, 5e-9);
        /* Dumped from fp32 buffers with up to 4e-7 relative error of their own. */
        ref_slopes(2, 64, 78, 80, s);
        assert_close(s[heads[i]] / hf78[i], 1.0, 5e-7);
    }
    /* Layer 0's factor is 1 + 1e-5 under both rules; six heads tell them apart. */
    const double alibi6[] = {0.25, 0.0625, 0.015625, 0.00390625, 0.5, 0.125};
    const double plain6[] = {0.39685, 0.15749, 0.0625, 0.0248, 0.00984, 0.00391};
    ref_slopes(1, 6, 0, 8, s);
    for (int h = 0; h < 6; h++)
        assert_close(s[h], alibi6[h] * 1.00001, 1e-15);
    ref_slopes(2, 6, 0, 8, s);
    for (int h = 0; h < 6; h++)
        assert_close(s[h], plain6[h] * 1.00001, 6e-6);
    for (int rule = 1; rule <= 2; rule++) {
        ref_slopes(rule, 2, 0, 1, s);
        assert_close(s[0], 0.0625 * 1.00001, 1e-15);
    }
}

/* ---- softmax attention ---- */

static void rope_rotates_the_first_dims(void **unused)
{
    (void)unused;
    enum { ROWS = 5, HEADS = 2, D = 12, ROT = 8, N = ROWS * HEADS * D };
    rng r = rng_seed(3);
    double *x = normals(&r, N), y[N];
    memcpy(y, x, sizeof y);
    ref_rope(ROWS, HEADS, D, ROT, 1e4, 0, y, 0);
    assert_memory_equal(y, x, HEADS * D * sizeof *y); /* position 0: angle 0 */
    for (size_t i = 0; i < N; i++) {
        if (i % D >= ROT)
            assert_true(y[i] == x[i]);
        else if (i >= HEADS * D)
            assert_true(y[i] != x[i]);
        if (i % D < ROT / 2) /* pairs (i, i + ROT/2) keep their length */
            assert_close(hypot(y[i], y[i + ROT / 2]), hypot(x[i], x[i + ROT / 2]), 1e-14);
    }
    /* One pair at position 1 is a rotation by 1 radian: (1, 0) -> (cos 1, sin 1). */
    double pair[] = {1.0, 0.0};
    ref_rope(1, 1, 2, 2, 1e7, 1, pair, 0);
    assert_close(pair[0], cos(1.0), 1e-15);
    assert_close(pair[1], sin(1.0), 1e-15);
    free(x);
}

static void rope_depends_on_distance_only(void **unused)
{
    (void)unused;
    /* theta = 1: every frequency is 1, so that no fp32 angle is rounded. */
    enum { D = 8 };
    rng r = rng_seed(4);
    double *q = normals(&r, D), *k = normals(&r, D), first = 0.0;
    for (uint32_t shift = 0; shift < 4; shift++) {
        double a[D], b[D];
        memcpy(a, q, sizeof a);
        memcpy(b, k, sizeof b);
        ref_rope(1, 1, D, D, 1.0, 100 * shift + 7, a, 0);
        ref_rope(1, 1, D, D, 1.0, 100 * shift + 3, b, 0);
        double dot = ref_dot(a, b, D);
        if (shift == 0)
            first = dot;
        assert_close(dot, first, 1e-13);
    }
    free(q);
    free(k);
}

static void rope_angles_are_fp32_products(void **unused)
{
    (void)unused;
    double c[32], s[32];
    ref_rope_table(1, 64, 1e7, c, s);
    assert_close(atan2(s[1], c[1]), 0.60429639, 5e-9);
    assert_close(asin(s[31]) / 1.6548171e-7, 1.0, 1e-7);
    ref_rope_table(1000000, 64, 1e7, c, s);
    double angle = 0.0625 * floor(604296.39 / 0.0625 + 0.5); /* fp32 spacing there */
    assert_true(fabs(c[1] - cos(angle)) < 1e-9 || fabs(c[1] - cos(angle - 0.0625)) < 1e-9 ||
                fabs(c[1] - cos(angle + 0.0625)) < 1e-9);
}

static void attention_by_hand(void **unused)
{
    (void)unused;
    enum { D = 4 };
    /* One key: its value. Two keys: a sigmoid of the scaled score difference. */
    double q[2 * D] = {0, 0, 0, 0, 2, 0, 0, 0}, k[2 * D] = {1, 5, 5, 5, 3, 7, 7, 7};
    double v[2 * D] = {1, 2, 3, 4, 5, 6, 7, 8}, out[2 * D];
    ref_attention(2, 0, 1, 1, D, q, k, v, out);
    double p = 1.0 / (1.0 + exp(-2.0 * (3.0 - 1.0) / 2.0));
    for (size_t i = 0; i < D; i++) {
        assert_close(out[i], v[i], 1e-15);
        assert_close(out[D + i], (1.0 - p) * v[i] + p * v[D + i], 1e-14);
    }
}

static void attention_groups_masks_and_continues(void **unused)
{
    (void)unused;
    enum { T = 9, H = 6, HK = 2, D = 8 };
    rng r = rng_seed(5);
    double *q = normals(&r, T * H * D), *k = normals(&r, T * HK * D), *v = normals(&r, T * HK * D);
    double whole[T * H * D], parts[T * H * D], changed[T * H * D];
    ref_attention(T, 0, H, HK, D, q, k, v, whole);
    ref_attention(4, 0, H, HK, D, q, k, v, parts);
    ref_attention(T - 4, 4, H, HK, D, q + 4 * H * D, k, v, parts + 4 * H * D);
    assert_memory_equal(whole, parts, sizeof whole);
    /* Only later rows and the query heads 3..5 may see a change in kv head 1 of position 5. */
    v[(5 * HK + 1) * D] += 1.0;
    k[(5 * HK + 1) * D + 2] += 1.0;
    ref_attention(T, 0, H, HK, D, q, k, v, changed);
    for (size_t t = 0; t < T; t++) {
        for (size_t h = 0; h < H; h++) {
            size_t at = (t * H + h) * D;
            bool same = memcmp(whole + at, changed + at, D * sizeof(double)) == 0;
            assert_true(same == (t < 5 || h < 3));
        }
    }
    free(q);
    free(k);
    free(v);
}

/* ---- experts ---- */

static void routing_breaks_ties_low_and_renormalises(void **unused)
{
    (void)unused;
    const double logits[2][5] = {{1.0, 2.0, 2.0, 0.5, 2.0}, {-1.0, 3.0, 0.0, 5.0, 1.5}};
    uint32_t index[4];
    double weight[4], gap[2];
    ref_route_logits(2, 5, 2, &logits[0][0], index, weight, gap);
    assert_int_equal(index[0], 1);
    assert_int_equal(index[1], 2);
    assert_close(weight[0], 0.5, 1e-16);
    assert_close(gap[0], 0.0, 0.0);
    assert_int_equal(index[2], 3);
    assert_int_equal(index[3], 1);
    /* The softmax over all, renormalised, is the softmax over the chosen. */
    assert_close(weight[2], 1.0 / (1.0 + exp(-2.0)), 1e-15);
    assert_close(weight[2] + weight[3], 1.0, 1e-15);
    assert_close(gap[1], 1.5, 1e-15);
    double one_gap;
    ref_route_logits(1, 5, 5, &logits[1][0], NULL, NULL, &one_gap);
    assert_true(isinf(one_gap));

    double m[] = {1.0, 2.0}, got[3];
    float gate[] = {1.0F, 0.0F, 0.0F, 1.0F, 1.0F, 1.0F};
    ref_route(1, 2, 3, 2, m, gate, got, index, weight, gap);
    assert_close(got[2], 3.0, 0.0);
    assert_int_equal(index[0], 2);
    assert_int_equal(index[1], 1);
}

static void moe_ignores_the_order_of_experts(void **unused)
{
    (void)unused;
    enum { ROWS = 11, DIM = 10, I = 6, E = 5, K = 3 };
    rng r = rng_seed(6);
    double *m = normals(&r, ROWS * DIM), out[ROWS * DIM], permuted[ROWS * DIM];
    float *w = normal_floats(&r, E * 3 * I * DIM), *gate = normal_floats(&r, E * DIM);
    float moved_gate[E * DIM];
    ref_expert experts[E], moved[E];
    const uint32_t to[E] = {3, 0, 4, 1, 2};
    for (size_t e = 0; e < E; e++) {
        const float *base = w + e * 3 * I * DIM;
        experts[e] = (ref_expert){.w1 = base, .w3 = base + I * DIM, .w2 = base + 2 * I * DIM};
        moved[to[e]] = experts[e];
        memcpy(moved_gate + to[e] * DIM, gate + e * DIM, DIM * sizeof *gate);
    }
    uint32_t index[ROWS * K];
    double weight[ROWS * K];
    ref_route(ROWS, DIM, E, K, m, gate, NULL, index, weight, NULL);
    ref_moe(ROWS, DIM, I, K, m, experts, index, weight, out);
    ref_route(ROWS, DIM, E, K, m, moved_gate, NULL, index, weight, NULL);
    ref_moe(ROWS, DIM, I, K, m, moved, index, weight, permuted);
    assert_error_below(max_rel_error(permuted, out, ROWS * DIM), 1e-14);

    /* One row spelt out, through the interleaved form that a fused kernel uses. */
    float w13[2 * I * DIM];
    double want[DIM] = {0}, h[I], y[DIM];
    for (size_t s = 0; s < K; s++) {
        const ref_expert *x = &moved[index[s]];
        ref_interleave_w13(I, DIM, x->w1, x->w3, w13);
        ref_matmul_act(1, DIM, 2 * I, m, w13, REF_ACT_SWIGLU, 0, h);
        ref_matmul(1, I, DIM, h, x->w2, y);
        for (size_t c = 0; c < DIM; c++)
            want[c] += weight[s] * y[c];
    }
    assert_error_below(max_rel_error(permuted, want, DIM), 1e-14);
    free(m);
    free(w);
    free(gate);
}

/* ---- embedding, logits ---- */

static void embedding_and_likelihood(void **unused)
{
    (void)unused;
    const float table[] = {1.0F, 2.0F, 3.0F, 4.0F, 5.0F, 6.0F};
    const int32_t ids[] = {2, 0};
    double x[4], p[3];
    ref_embed(2, 2, ids, table, x);
    assert_close(x[0], 5.0, 0.0);
    assert_close(x[3], 2.0, 0.0);
    const double logits[] = {log(1.0), log(2.0), log(5.0)}, flat[] = {1000.0, 1000.0, -1000.0};
    assert_int_equal(ref_argmax(3, logits), 2);
    assert_int_equal(ref_argmax(3, flat), 0);
    ref_softmax(3, logits, 1.0, p);
    assert_close(p[1], 0.25, 1e-16);
    ref_softmax(3, logits, 0.5, p);
    assert_close(p[2], 25.0 / 30.0, 1e-15);
    assert_close(ref_nll(3, logits, 1), log(4.0), 1e-15);
    assert_close(ref_nll(3, flat, 1), log(2.0), 1e-12);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(compare_refuses_nan_and_infinity),
        cmocka_unit_test(rng_gives_known_numbers),
        cmocka_unit_test(rmsnorm_by_hand),
        cmocka_unit_test(sigmoid_is_stable),
        cmocka_unit_test(matmul_by_hand_and_by_rows),
        cmocka_unit_test(lightning_by_hand),
        cmocka_unit_test(lightning_block_equals_recurrence),
        cmocka_unit_test(slopes_have_published_values),
        cmocka_unit_test(rope_rotates_the_first_dims),
        cmocka_unit_test(rope_depends_on_distance_only),
        cmocka_unit_test(rope_angles_are_fp32_products),
        cmocka_unit_test(attention_by_hand),
        cmocka_unit_test(attention_groups_masks_and_continues),
        cmocka_unit_test(routing_breaks_ties_low_and_renormalises),
        cmocka_unit_test(moe_ignores_the_order_of_experts),
        cmocka_unit_test(embedding_and_likelihood),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
