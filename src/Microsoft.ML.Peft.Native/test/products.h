// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products against plain loops in double precision; those of bfloat16 against products of factors that were rounded before.
#pragma once
#include <string.h>
#include <array>
#include "checks.h"

static void product_case(int64_t rows, int64_t out, int64_t in, int64_t rank, int kind, double share, bool packed, bool transposed, int threads) {
    char name[200];
    snprintf(name, sizeof name, "product %ld x %ld x %ld, rank %ld, activation %d, dropout %g, packed %d, transposed %d", rows, out, in, rank, kind, share, packed, transposed);
    vector<float> x = numbers(rows * in), w = numbers(out * in, 1 / sqrtf(in)), low = numbers(rows * (rank + 3)), up = numbers(out * std::max<int64_t>(rank, 1), 0.3f), bias = numbers(out);
    vector<float> y(rows * out, -7), before(rows * out, -7);
    pn_product p{};
    p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1;
    int64_t w_out = transposed ? 1 : in, w_in = transposed ? out : 1;
    pn_weights* made = packed ? pn_pack(w.data(), out, in, w_out, w_in) : nullptr;
    p.packed = made, p.w = w.data(), p.w_out = w_out, p.w_in = w_in;
    if (rank) p.low = low.data(), p.low_row = rank + 3, p.rank = rank, p.up = up.data(), p.up_out = rank, p.up_rank = 1, p.scale = 0.7f;
    p.bias = bias.data(), p.activation = kind, p.threads = threads, p.before = before.data(), p.y = y.data(), p.y_row = out, p.dropout = some_dropout(share);
    expect_ok(name, pn_product_run(&p));
    vector<double> expected(rows * out), argument(rows * out);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < out; n++) {
            double s = bias[n];
            for (int64_t k = 0; k < in; k++) s += (double)x[i * in + k] * w[n * w_out + k * w_in];
            for (int64_t r = 0; r < rank; r++) s += 0.7 * low[i * (rank + 3) + r] * up[n * rank + r];
            argument[i * out + n] = s;
            expected[i * out + n] = activation(s, kind) * factor(p.dropout, (uint32_t)(i * out + n));
        }
    expect(name, distance(y, expected), 2e-5);
    expect(std::string(name) + ", before", distance(before, argument), 2e-5);
    vector<float> again(rows * out, 1.5f), plain(rows * out);
    p.before = nullptr, p.activation = 0, p.dropout = {}, p.y = plain.data();
    expect_ok(name, pn_product_run(&p));
    p.accumulate = 1, p.y = again.data();
    expect_ok(name, pn_product_run(&p));
    for (float& v : plain) v += 1.5f;
    expect(std::string(name) + ", added", distance(again, plain), 2e-5);
    // A row alone gives the same bits as among others.
    if (rows > 1) {
        vector<float> row(out), whole(rows * out);
        p.accumulate = 0, p.y = whole.data();
        pn_product_run(&p);
        p.x = x.data() + (rows - 1) * in, p.rows = 1, p.y = row.data();
        if (rank) p.low = low.data() + (rows - 1) * (rank + 3);
        pn_product_run(&p);
        expect(std::string(name) + ", one row", memcmp(row.data(), whole.data() + (rows - 1) * out, sizeof(float) * out) != 0, 0);
    }
    pn_free(made);
}

static float to_bfloat16(float x) {
    uint32_t bits;
    memcpy(&bits, &x, 4);
    bits = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    memcpy(&x, &bits, 4);
    return x;
}

// Against float32 products of factors that were rounded before.
static void bfloat16_case(int64_t rows, int64_t out, int64_t in, bool transposed) {
    std::string name = "bfloat16 " + std::to_string(rows) + " x " + std::to_string(out) + " x " + std::to_string(in);
    vector<float> x = numbers(rows * in), w = numbers(out * in, 1 / sqrtf(in)), bias = numbers(out), y(rows * out), expected(rows * out);
    int64_t w_out = transposed ? 1 : in, w_in = transposed ? out : 1;
    pn_weights* packed = pn_pack_bfloat16(w.data(), out, in, w_out, w_in);
    if (!pn_has_bfloat16()) {
        expect(name + ", refused", packed != nullptr, 0);
        return;
    }
    pn_product p{};
    p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.bias = bias.data(), p.activation = PN_GELU, p.threads = 2, p.y = y.data(), p.y_row = out;
    expect_ok(name, pn_product_run(&p));
    for (float& v : x) v = to_bfloat16(v);
    for (float& v : w) v = to_bfloat16(v);
    p.packed = nullptr, p.w = w.data(), p.w_out = w_out, p.w_in = w_in, p.y = expected.data();
    expect_ok(name, pn_product_run(&p));
    expect(name, distance(y, expected), 5e-4);     // its GELU is a rough one
    p.packed = packed, p.activation = 0, p.y = y.data();
    expect_ok(name, pn_product_run(&p));
    p.packed = nullptr, p.y = expected.data();
    expect_ok(name, pn_product_run(&p));
    expect(name + ", no activation", distance(y, expected), 2e-5);
    pn_free(packed);
}

static vector<uint16_t> halves(const vector<float>& v) {
    vector<uint16_t> made;
    for (float x : v) {
        x = to_bfloat16(x);
        uint32_t bits;
        memcpy(&bits, &x, 4);
        made.push_back((uint16_t)(bits >> 16));
    }
    return made;
}

static float whole(uint16_t half) {
    uint32_t bits = (uint32_t)half << 16;
    float x;
    memcpy(&x, &bits, 4);
    return x;
}

// What backward passes ask for: slopes, a mask on the low-rank term alone, a residual, several products at once.
static void followed_case(int64_t rows, int64_t out, int64_t in, int kind, double share, int threads) {
    std::string name = "followed product " + std::to_string(rows) + " x " + std::to_string(out) + " x " + std::to_string(in) + ", activation " + std::to_string(kind);
    int64_t rank = 3;
    vector<float> x = numbers(rows * in), w = numbers(out * in, 1 / sqrtf(in)), v = numbers(out * in, 1 / sqrtf(in)), low = numbers(rows * rank), up = numbers(out * rank), at = numbers(rows * out, 2), residual = numbers(rows * (out + 1)), other = numbers(rows * in);
    vector<float> y(rows * out), second(rows * out), sum(rows * out), third(rows * out);
    pn_weights *packed = pn_pack(w.data(), out, in, in, 1), *more = pn_pack(v.data(), out, in, in, 1);
    pn_product p{};
    p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = out, p.threads = threads;
    p.low = low.data(), p.low_row = rank, p.rank = rank, p.up = up.data(), p.up_out = 1, p.up_rank = out, p.scale = 0.5f, p.low_dropout = some_dropout(share);
    p.slopes = 1, p.activation = kind, p.before = at.data(), p.residual = residual.data(), p.residual_row = out + 1;
    expect_ok(name, pn_product_run(&p));
    vector<double> expected(rows * out), bare(rows * out), added(rows * out);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t n = 0; n < out; n++) {
            double s = 0, t = 0, u = 0, z = at[i * out + n], step = 1e-5;
            for (int64_t k = 0; k < in; k++) s += (double)x[i * in + k] * w[n * in + k], u += (double)other[i * in + k] * v[n * in + k];
            for (int64_t r = 0; r < rank; r++) t += 0.5 * low[i * rank + r] * up[r * out + n];
            double slope = kind == PN_RELU ? z > 0 : (activation(z + step, kind) - activation(z - step, kind)) / (2 * step);
            expected[i * out + n] = (s + t * factor(p.low_dropout, (uint32_t)(i * out + n))) * slope + residual[i * (out + 1) + n];
            bare[i * out + n] = s, added[i * out + n] = s + u;
        }
    expect(name, distance(y, expected), 3e-5);
    // Three at once: one by itself, one, and one that is added to it.
    pn_product list[3] = {};
    for (pn_product& q : list) q.rows = rows, q.out = out, q.in = in, q.x = x.data(), q.x_row = in, q.x_in = 1, q.packed = packed, q.y_row = out, q.threads = threads;
    list[0].y = second.data(), list[1].y = sum.data(), list[2].y = sum.data(), list[2].accumulate = 1, list[2].packed = more, list[2].x = other.data();
    expect_ok(name, pn_products_run(list, 3));
    expect(name + ", at once", std::max(distance(second, bare), distance(sum, added)), 3e-5);
    p = list[0], p.y = third.data();
    expect_ok(name, pn_product_run(&p));
    expect(name + ", same bits as alone", memcmp(third.data(), second.data(), sizeof(float) * rows * out) != 0, 0);
    list[1].packed = nullptr;
    expect(name + ", refused", pn_products_run(list, 3) == -1 ? 0 : 1, 0);
    pn_free(packed), pn_free(more);
}

// Rows, results and arguments in bfloat16.
static void halves_case(int64_t rows, int64_t out, int64_t in, int threads) {
    if (!pn_has_bfloat16()) return;
    std::string name = "halves " + std::to_string(rows) + " x " + std::to_string(out) + " x " + std::to_string(in);
    vector<float> x = numbers(rows * in), w = numbers(out * in, 1 / sqrtf(in)), y(rows * out), from_halves(rows * out), before(rows * out);
    vector<uint16_t> small = halves(x), rounded(rows * out), argument(rows * out);
    pn_weights* packed = pn_pack_bfloat16(w.data(), out, in, in, 1);
    pn_product p{};
    p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = out, p.threads = threads, p.activation = PN_GELU, p.before = before.data();
    expect_ok(name, pn_product_run(&p));
    p.x = (const float*)small.data(), p.x_bfloat16 = 1, p.y = from_halves.data();
    expect_ok(name, pn_product_run(&p));
    expect(name + ", x", memcmp(y.data(), from_halves.data(), sizeof(float) * rows * out) != 0, 0);
    p.y = (float*)rounded.data(), p.y_bfloat16 = 1, p.before = (float*)argument.data(), p.before_bfloat16 = 1;
    expect_ok(name, pn_product_run(&p));
    expect(name + ", y", rounded != halves(y), 0);
    expect(name + ", before", argument != halves(before), 0);
    p.slopes = 1, p.y_bfloat16 = 0, p.y = from_halves.data();
    expect_ok(name, pn_product_run(&p));
    p.slopes = 0, p.activation = 0, p.before = nullptr, p.y = y.data();
    expect_ok(name, pn_product_run(&p));
    double worst = 0;
    for (int64_t i = 0; i < rows * out; i++) {
        double at = whole(argument[i]), slope = (activation(at + 1e-5, PN_GELU) - activation(at - 1e-5, PN_GELU)) / 2e-5;
        worst = std::max(worst, fabs(y[i] * slope - from_halves[i]) / (1 + fabs(y[i])));
    }
    expect(name + ", slope", worst, 2e-4);
    pn_free(packed);
}

static void low_rank_case(int64_t rows, int64_t in, int64_t rank, double share, bool transposed) {
    std::string name = "low rank " + std::to_string(rows) + " x " + std::to_string(in) + ", rank " + std::to_string(rank);
    vector<float> x = numbers(rows * (in + 2)), a = numbers(rank * in, 1 / sqrtf(in)), low(rows * (rank + 1), 9), given = numbers(rows * (rank + 1)), slope(rank * in, 9);
    pn_low_rank l{};
    l.rows = rows, l.in = in, l.rank = rank, l.x = x.data(), l.x_row = in + 2, l.a = a.data(), l.a_rank = transposed ? 1 : in, l.a_in = transposed ? rank : 1;
    l.low = low.data(), l.low_row = rank + 1, l.scale = 0.7f, l.threads = 2, l.dropout = some_dropout(share);
    expect_ok(name, pn_low_rank_product(&l));
    vector<double> expected(rows * (rank + 1), 9), gradient(rank * in);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t r = 0; r < rank; r++) {
            double s = 0;
            for (int64_t k = 0; k < in; k++) {
                double seen = x[i * (in + 2) + k] * factor(l.dropout, (uint32_t)(i * in + k));
                s += seen * a[r * l.a_rank + k * l.a_in];
                gradient[r * l.a_rank + k * l.a_in] += 0.7 * seen * given[i * (rank + 1) + r];
            }
            expected[i * (rank + 1) + r] = 0.7 * s;
        }
    expect(name, distance(low, expected), 2e-5);
    l.low = given.data(), l.a = slope.data();
    expect_ok(name, pn_low_rank_gradient(&l));
    expect(name + ", gradient", distance(slope, gradient), 2e-5 * (1 + sqrt(rows)));
}

static void product_cases() {
    for (int64_t rows : {1, 2, 5, 12, 13, 31, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {16, 16}, {33, 48}, {96, 40}, {70, 800}})
            for (int n = 0; n < 4; n++)
                product_case(rows, out, in, n % 3 ? 1 + generator() % 9 : 0, n, n == 2 ? 0.1 : 0, n % 2 == 0, generator() % 2, 1 + n % 2);
    for (int64_t rows : {1, 13, 50})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {33, 48}, {96, 41}, {70, 801}}) bfloat16_case(rows, out, in, rows == 13);
    for (int64_t rows : {1, 13, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {33, 48}, {70, 800}})
            for (int kind = 1; kind <= 3; kind++) followed_case(rows, out, in, kind, kind == 2 ? 0 : 0.3, 1 + kind % 2);
    for (int64_t rows : {1, 13, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 2}, {33, 48}, {70, 802}}) halves_case(rows, out, in, 2);
    for (int64_t rows : {1, 12, 37, 300})
        for (int64_t in : {1, 17, 384})
            for (int64_t rank : {1, 8, 16, 19, 64}) low_rank_case(rows, in, rank, rank % 2 ? 0 : 0.1, rank == 8 || rank == 19);
}
