// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products in int8 against whole sums of the same steps, and against the exact product within the bound that rounding gives.
#pragma once
#include <string.h>
#include <array>
#include "checks.h"

struct Steps {
    vector<int> q;
    float scale;
    int zero;
};

// 256 steps over the row and zero.
static Steps row_steps(const float* x, int64_t count) {
    float low = 0, high = 0;
    for (int64_t k = 0; k < count; k++) low = std::min(low, x[k]), high = std::max(high, x[k]);
    float range = high - low, inverse = range > 1e-30f ? 255 / range : 0;
    Steps s{vector<int>(count), range > 1e-30f ? range / 255 : 0, std::clamp((int)nearbyintf(-low * inverse), 0, 255)};
    for (int64_t k = 0; k < count; k++) s.q[k] = std::clamp((int)nearbyintf(x[k] * inverse) + s.zero, 0, 255) - s.zero;
    return s;
}

static void int8_case(int64_t rows, int64_t out, int64_t in, int64_t rank, int kind, double share, bool transposed, bool prepared, int threads) {
    char text[200];
    snprintf(text, sizeof text, "int8 %ld x %ld x %ld, rank %ld, activation %d, dropout %g, transposed %d, prepared %d", rows, out, in, rank, kind, share, transposed, prepared);
    std::string name = text;
    vector<float> x = numbers(rows * in), w = numbers(out * in, 1 / sqrtf(in)), low = numbers(rows * (rank + 3)), up = numbers(out * std::max<int64_t>(rank, 1), 0.3f), bias = numbers(out);
    if (rows > 2) for (int64_t k = 0; k < in; k++) x[k] = 0, x[in + k] = fabsf(x[in + k]), x[2 * in + k] = -fabsf(x[2 * in + k]);
    if (out > 2) for (int64_t k = 0; k < in; k++) w[transposed ? k * out + 1 : in + k] = 0;
    vector<float> y(rows * out, -7), before(rows * out, -7);
    int64_t w_out = transposed ? 1 : in, w_in = transposed ? out : 1;
    pn_weights* packed = pn_pack_int8(w.data(), out, in, w_out, w_in);
    pn_product p{};
    p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed;
    if (rank) p.low = low.data(), p.low_row = rank + 3, p.rank = rank, p.up = up.data(), p.up_out = rank, p.up_rank = 1, p.scale = 0.7f;
    p.bias = bias.data(), p.activation = kind, p.threads = threads, p.before = before.data(), p.y = y.data(), p.y_row = out, p.dropout = some_dropout(share);
    vector<int32_t> words(rows * pn_int8_words(in));
    if (prepared) {
        expect_ok(name, pn_quantise_run(x.data(), rows, in, in, words.data(), threads));
        p.rows_int8 = words.data();
    }
    expect_ok(name, pn_product_run(&p));
    vector<vector<int>> weights(out, vector<int>(in));
    vector<float> scales(out);
    for (int64_t n = 0; n < out; n++) {
        float largest = 0;
        for (int64_t k = 0; k < in; k++) largest = std::max(largest, fabsf(w[n * w_out + k * w_in]));
        scales[n] = largest / 127;
        for (int64_t k = 0; k < in && largest > 0; k++) weights[n][k] = (int)nearbyintf(w[n * w_out + k * w_in] * (127 / largest));
    }
    // A number half-way between two steps may go either way, where products and sums are fused.
    double apart = 0, worst = 0, worst_bound = 0, worst_after = 0;
    for (int64_t i = 0; i < rows; i++) {
        Steps s = row_steps(x.data() + i * in, in);
        for (int64_t n = 0; n < out; n++) {
            double whole = 0, exact = 0, bound = 1e-5, rest = bias[n];
            for (int64_t k = 0; k < in; k++) {
                double a = x[i * in + k], b = w[n * w_out + k * w_in];
                whole += (double)s.q[k] * weights[n][k], exact += a * b;
                bound += 0.501 * (s.scale * fabs(b) + scales[n] * fabs(a)) + 1.01 * s.scale * scales[n];
            }
            for (int64_t r = 0; r < rank; r++) rest += 0.7 * low[i * (rank + 3) + r] * up[n * rank + r];
            double found = before[i * out + n], expected = whole * s.scale * scales[n] + rest;
            apart += fabs(found - expected) / (rows * out);
            worst = std::max(worst, fabs(found - expected) - 2 * s.scale * scales[n] * 127);
            worst_bound = std::max(worst_bound, fabs(found - exact - rest) - bound);
            worst_after = std::max(worst_after, fabs(y[i * out + n] - activation(found, kind) * factor(p.dropout, (uint32_t)(i * out + n))));
        }
    }
    expect(name + ", whole sums", worst, 1e-5);
    expect(name + ", whole sums on average", apart, 1e-4);
    expect(name + ", bound of rounding", worst_bound, 0);
    expect(name + ", what follows", worst_after, kind == PN_GELU ? 2e-4 : 2e-5);
    vector<float> quick(rows * out);
    p.before = nullptr, p.y = quick.data();
    expect_ok(name, pn_product_run(&p));
    expect(name + ", what follows where no gradient is asked for", distance(quick, y), 0);
    if (kind == PN_GELU) {
        pn_product plain = p, sloped = p;
        vector<float> sum(rows * out), slopes(rows * out);
        plain.activation = PN_LINEAR, plain.dropout = {}, plain.y = sum.data();
        sloped.slopes = 1, sloped.before = before.data(), sloped.dropout = {}, sloped.y = slopes.data();
        expect_ok(name, pn_product_run(&plain));
        expect_ok(name, pn_product_run(&sloped));
        double worst_slope = 0;
        for (size_t i = 0; i < sum.size(); i++) {
            double at = before[i], slope = (activation(at + 1e-5, PN_GELU) - activation(at - 1e-5, PN_GELU)) / 2e-5;
            worst_slope = std::max(worst_slope, fabs(slopes[i] - slope * sum[i]) / (1 + fabs(sum[i])));
        }
        expect(name + ", slopes", worst_slope, 3e-4);
    }
    vector<float> summed(rows * out);
    p.residual = y.data(), p.residual_row = out, p.y = summed.data();
    expect_ok(name, pn_product_run(&p));
    for (size_t i = 0; i < summed.size(); i++) summed[i] -= y[i];
    expect(name + ", a residual comes behind all else", distance(summed, quick), 1e-5);
    p.residual = nullptr;
    if (rows > 1) {
        vector<float> row(out), all(rows * out);
        p.before = nullptr, p.activation = 0, p.dropout = {}, p.y = all.data();
        pn_product_run(&p);
        vector<float> added(rows * out, 1.5f);
        p.accumulate = 1, p.y = added.data();
        pn_product_run(&p);
        for (size_t i = 0; i < all.size(); i++) added[i] -= 1.5f;
        expect(name + ", added", distance(added, all), 1e-5);
        p.accumulate = 0, p.x = x.data() + (rows - 1) * in, p.rows = 1, p.y = row.data(), p.rows_int8 = nullptr;
        if (rank) p.low = low.data() + (rows - 1) * (rank + 3);
        pn_product_run(&p);
        expect(name + ", one row", memcmp(row.data(), all.data() + (rows - 1) * out, sizeof(float) * out) != 0, 0);
    }
    pn_free(packed);
}

// The largest steps everywhere: sums that would not fit 16 bits, nor 32 beyond the allowed width.
static void int8_extremes() {
    int64_t in = PN_INT8_MOST;
    vector<float> x(in, 3.0f), w(2 * in, 2.0f), y(2);
    for (int64_t k = 0; k < in; k++) w[in + k] = -2.0f;
    pn_weights* packed = pn_pack_int8(w.data(), 2, in, in, 1);
    pn_product p{};
    p.rows = 1, p.out = 2, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = 2, p.threads = 1;
    expect_ok("int8, widest", pn_product_run(&p));
    expect("int8, widest", std::max(fabs(y[0] / (6.0 * in) - 1), fabs(y[1] / (6.0 * in) + 1)), 1e-5);
    x[5] = -3.0f;       // the place of zero in the middle
    expect_ok("int8, widest", pn_product_run(&p));
    expect("int8, widest, of both signs", fabs(y[0] / (6.0 * (in - 2)) - 1), 5e-3);
    for (float odd : {NAN, INFINITY, -INFINITY}) {
        x[7] = odd;
        pn_product_run(&p);
        expect("int8, what is not finite shows", std::isfinite(y[0]) || std::isfinite(y[1]), 0);
    }
    pn_free(packed);
    expect("int8, too wide", pn_pack_int8(w.data(), 1, in + 1, 1, 1) != nullptr, 0);
    w[3] = NAN, x[5] = x[7] = 3;
    packed = pn_pack_int8(w.data(), 2, 64, 64, 1);
    p.in = 64, p.x_row = 64, p.packed = packed;
    pn_product_run(&p);
    expect("int8, a weight that is not a number shows", std::isfinite(y[0]) || !std::isfinite(y[1]), 0);
    p.x_in = 2;
    expect("int8, scattered rows", pn_product_run(&p) == -1 ? 0 : 1, 0);
    pn_free(packed);
}

// Products of the same rows share them: the bits of each alone. The third has other rows.
static void int8_list(int64_t rows, int64_t in, int threads) {
    const int64_t out = 70, rank = 3;
    vector<float> x = numbers(rows * in), other = numbers(rows * in), low = numbers(rows * rank), up = numbers(out * rank);
    vector<float> together(3 * rows * out), alone(3 * rows * out);
    pn_product list[3] = {};
    pn_weights* packed[3];
    for (int i = 0; i < 3; i++) {
        vector<float> w = numbers(out * in);
        packed[i] = pn_pack_int8(w.data(), out, in, in, 1);
        pn_product& p = list[i];
        p.rows = rows, p.out = out, p.in = in, p.x = i < 2 ? x.data() : other.data(), p.x_row = in, p.x_in = 1, p.packed = packed[i], p.y = alone.data() + i * rows * out, p.y_row = out, p.threads = threads;
        if (i == 1) p.low = low.data(), p.low_row = rank, p.rank = rank, p.up = up.data(), p.up_out = rank, p.up_rank = 1, p.scale = 1;
        expect_ok("int8 list", pn_product_run(&p));
        p.y = together.data() + i * rows * out;
    }
    expect_ok("int8 list", pn_products_run(list, 3));
    expect("int8 list, same bits", memcmp(together.data(), alone.data(), together.size() * sizeof(float)) != 0, 0);
    for (pn_weights* p : packed) pn_free(p);
}

static void int8_cases() {
    int8_list(1, 7, 1);
    int8_list(50, 96, 2);
    for (int64_t rows : {1, 3, 12, 13, 50, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {33, 48}, {96, 41}, {70, 803}})
            for (int n = 0; n < 4; n++)
                int8_case(rows, out, in, n % 3 ? 1 + generator() % 9 : 0, n, n == 2 ? 0.1 : 0, n == 1, n % 2 == 0, 1 + n % 2);
    int8_extremes();
}
