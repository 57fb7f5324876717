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
    expect(std::string(name) + ", added", distance(again, plain), 1e-5);
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
    expect(name, distance(y, expected), 2e-5);
    pn_free(packed);
}

static void product_cases() {
    for (int64_t rows : {1, 2, 5, 12, 13, 31, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {16, 16}, {33, 48}, {96, 40}, {70, 800}})
            for (int n = 0; n < 4; n++)
                product_case(rows, out, in, n % 3 ? 1 + generator() % 9 : 0, n, n == 2 ? 0.1 : 0, n % 2 == 0, generator() % 2, 1 + n % 2);
    for (int64_t rows : {1, 13, 50})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {33, 48}, {96, 41}, {70, 801}}) bfloat16_case(rows, out, in, rows == 13);
}
