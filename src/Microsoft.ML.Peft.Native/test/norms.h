// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Norms, activations and dropout against plain loops in double precision.
#pragma once
#include "checks.h"

static void norm_case(int64_t rows, int64_t width, bool add, bool root) {
    char text[100];
    snprintf(text, sizeof text, "norm %ld x %ld, add %d, root mean square %d", rows, width, add, root);
    vector<float> x = numbers(rows * width), more = numbers(rows * width), w = numbers(width), b = numbers(width), g = numbers(rows * width);
    vector<float> y(rows * width), sum(rows * width), d(rows * width);
    pn_norm n{};
    n.rows = rows, n.width = width, n.x = x.data(), n.add = add ? more.data() : nullptr, n.weight = w.data(), n.bias = root ? nullptr : b.data();
    n.epsilon = 1e-5f, n.root_mean_square = root, n.sum = sum.data(), n.y = y.data(), n.threads = 2;
    expect_ok(text, pn_norm_forward(&n));
    vector<double> z(x.begin(), x.end());
    if (add) for (size_t i = 0; i < z.size(); i++) z[i] += more[i];
    auto reference = [&](int64_t i, vector<double>& row) {
        double mean = 0, square = 0, total = 0;
        for (double v : row) mean += root ? 0 : v / width;
        for (double v : row) square += (v - mean) * (v - mean) / width;
        vector<double> out(width);
        for (int64_t j = 0; j < width; j++) {
            out[j] = (row[j] - mean) / sqrt(square + 1e-5) * w[j] + (root ? 0 : b[j]);
            total += out[j] * g[i * width + j];
        }
        return std::make_pair(total, out);
    };
    pn_norm back = n;
    back.x = add ? sum.data() : x.data(), back.add = nullptr, back.d_y = g.data(), back.d_x = d.data();
    expect_ok(text, pn_norm_backward(&back));
    vector<float> dropped(rows * width), again(rows * width);
    back.d_dropped = dropped.data(), back.d_x = again.data(), back.dropout = some_dropout(add ? 0.2 : 0);
    expect_ok(text, pn_norm_backward(&back));
    for (int64_t i = 0; i < rows * width; i++) again[i] *= (float)factor(back.dropout, (uint32_t)i);
    expect(std::string(text) + ", dropped", distance(dropped, again), 0);
    // A gradient of some rows beside.
    back.d_dropped = nullptr, back.add = more.data(), back.add_every = 1 + rows % 3, back.add_first = back.add_every - 1;
    expect_ok(text, pn_norm_backward(&back));
    vector<float> both = d;
    for (int64_t i = back.add_first; i < rows; i += back.add_every)
        for (int64_t j = 0; j < width; j++) both[i * width + j] += more[i / back.add_every * width + j];
    expect(std::string(text) + ", with what is added", distance(again, both), 0);
    double worst = 0, worst_slope = 0;
    for (int64_t i = 0; i < rows; i++) {
        vector<double> row(z.begin() + i * width, z.begin() + (i + 1) * width);
        vector<double> out = reference(i, row).second;
        for (int64_t j = 0; j < width; j++) worst = std::max(worst, fabs(out[j] - y[i * width + j]));
        int64_t j = generator() % width;
        double old = row[j], step = 1e-6;
        row[j] = old + step;
        double up = reference(i, row).first;
        row[j] = old - step;
        double slope = (up - reference(i, row).first) / (2 * step);
        worst_slope = std::max(worst_slope, fabs(slope - d[i * width + j]) / (1 + fabs(slope)));
    }
    expect(text, worst, 2e-5);
    expect(std::string(text) + ", gradients", worst_slope, width < 3 ? 2e-2 : 1e-4);   // a row of one or two numbers is all cancellation
}

static void pointwise_case(int64_t count) {
    std::string name = "pointwise, " + std::to_string(count);
    vector<float> x = numbers(count, 3), g = numbers(count), y(count), d(count);
    if (count > 8) x[0] = 0, x[1] = -100, x[2] = 100, x[3] = -5.9f, x[4] = -6.1f, x[5] = 6.1f, x[6] = 1e-30f;
    pn_dropout drop = some_dropout(0.3);
    for (int kind = 1; kind <= 3; kind++) {
        expect_ok(name, pn_activation_forward(x.data(), y.data(), count, kind, 2));
        expect_ok(name, pn_activation_backward(x.data(), g.data(), d.data(), count, kind, &drop, 2));
        double worst = 0, worst_slope = 0;
        for (int64_t i = 0; i < count; i++) {
            worst = std::max(worst, fabs(activation(x[i], kind) - y[i]) / (1 + fabs(x[i])));
            if (kind == PN_RELU && fabs(x[i]) < 1e-3) continue;
            double slope = (activation(x[i] + 1e-5, kind) - activation(x[i] - 1e-5, kind)) / 2e-5 * g[i] * factor(drop, (uint32_t)i);
            worst_slope = std::max(worst_slope, fabs(slope - d[i]));
        }
        expect(name + ", activation " + std::to_string(kind), worst, 2e-7);
        expect(name + ", slope " + std::to_string(kind), worst_slope, 1e-5);
    }
    expect_ok(name, pn_dropout_run(x.data(), y.data(), count, &drop, 2));
    vector<double> expected(count);
    for (int64_t i = 0; i < count; i++) expected[i] = (float)(x[i] * (float)factor(drop, (uint32_t)i));
    expect(name + ", dropout", distance(y, expected), 0);
}

static void norm_cases() {
    for (int64_t width : {1, 2, 5, 16, 31, 384, 1000})
        for (int n = 0; n < 4; n++) norm_case(1 + generator() % 200, width, n & 1, n & 2);
    for (int64_t length : {1, 7, 16, 1000, 8192, 40001}) pointwise_case(length);
}
