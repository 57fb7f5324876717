// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Steps of Adam against the formula in double precision; the same bits for all threads, and wherever a stretch begins.
#pragma once
#include <string.h>
#include "checks.h"

struct AdamState {
    vector<float> value, first, second, largest;
    bool operator==(const AdamState& o) const {
        auto same = [](const vector<float>& a, const vector<float>& b) { return !memcmp(a.data(), b.data(), a.size() * sizeof(float)); };
        return same(value, o.value) && same(first, o.first) && same(second, o.second) && same(largest, o.largest);
    }
};

static pn_adamw adamw_step(int step, bool climb, bool pull) {
    pn_adamw a{};
    a.gradient_factor = (climb ? -1 : 1) * (step % 2 ? 0.37f : 1), a.gradient_decay = pull ? 0.1f : 0, a.value_factor = pull ? 1 : 1 - 0.01f * 0.1f;
    a.first_kept = 0.9f, a.first_new = 0.1f, a.second_kept = 0.999f, a.second_new = 0.001f;
    a.step = (float)(0.01 / (1 - pow(0.9, step))), a.root_factor = (float)(1 / sqrt(1 - pow(0.999, step))), a.epsilon = 1e-8f;
    return a;
}

// The stretch from `from` on of a state, in steps that cut it at `cut`.
static void adamw_run(pn_adamw a, AdamState& s, const vector<float>& g, int64_t cut, int threads, bool largest, const std::string& name) {
    int64_t bounds[] = {0, cut, (int64_t)g.size()};
    for (int part = 0; part < 2; part++) {
        int64_t from = bounds[part];
        a.count = bounds[part + 1] - from, a.threads = threads;
        a.value = s.value.data() + from, a.gradient = g.data() + from, a.first = s.first.data() + from, a.second = s.second.data() + from;
        a.largest = largest ? s.largest.data() + from : nullptr;
        if (a.count > 0) expect_ok(name, pn_adamw_run(&a));
    }
}

static void adamw_case(int64_t count, bool largest, bool climb, bool pull) {
    std::string name = "Adam, " + std::to_string(count) + ", largest " + std::to_string(largest) + ", climb " + std::to_string(climb) + ", decay in the gradient " + std::to_string(pull);
    vector<float> zeros(count), start = numbers(count);
    AdamState one{start, zeros, zeros, zeros}, three = one, cut = one;
    vector<double> value(start.begin(), start.end()), first(count), second(count), most(count);
    for (int step = 1; step <= 5; step++) {
        vector<float> g = numbers(count, 1.0f / step);
        if (count > 2) g[1] = 0;
        pn_adamw a = adamw_step(step, climb, pull);
        adamw_run(a, one, g, 0, 1, largest, name);
        adamw_run(a, three, g, 0, 3, largest, name);
        adamw_run(a, cut, g, count * 3 / 7, 2, largest, name);
        for (int64_t i = 0; i < count; i++) {
            double slope = (double)g[i] * a.gradient_factor + value[i] * a.gradient_decay;
            first[i] = 0.9 * first[i] + 0.1 * slope, second[i] = 0.999 * second[i] + 0.001 * slope * slope;
            most[i] = std::max(most[i], second[i]);
            value[i] = value[i] * a.value_factor - 0.01 / (1 - pow(0.9, step)) * first[i] / (sqrt((largest ? most : second)[i] / (1 - pow(0.999, step))) + 1e-8);
        }
    }
    expect(name + ", value", distance(one.value, value), 2e-6);
    expect(name + ", first moment", distance(one.first, first), 1e-6);
    expect(name + ", second moment", distance(one.second, second), 1e-7);
    if (largest) expect(name + ", largest", distance(one.largest, most), 1e-7);
    expect(name + ", three threads", one == three ? 0 : 1, 0);
    expect(name + ", in two stretches", one == cut ? 0 : 1, 0);
}

static void squares_case(int64_t count) {
    vector<float> x = numbers(count);
    if (count > 20) x[3] = 1e18f, x[9] = 1e-30f;
    double expected = 0, found[3];
    for (float v : x) expected += (double)v * v;
    for (int threads = 1; threads <= 3; threads++) expect_ok("squares", pn_square_sum(x.data(), count, found + threads - 1, threads));
    expect("sum of squares of " + std::to_string(count), fabs(found[0] - expected), 1e-13 * expected);
    expect("sum of squares, threads", found[0] == found[1] && found[0] == found[2] ? 0 : 1, 0);
}

static void optimizer_cases() {
    for (int64_t count : {1, 3, 16, 31, 1000, 8193, 40001})
        for (int n = 0; n < 8; n++) adamw_case(count, n & 1, n & 2, n & 4);
    for (int64_t count : {0, 1, 7, 8, 1001, 8192, 100003}) squares_case(count);
    vector<float> x = numbers(50);
    for (float strange : {NAN, INFINITY}) {
        double found;
        x[20] = strange;
        expect_ok("squares of what is no number", pn_square_sum(x.data(), 50, &found, 1));
        expect("squares of what is no number", std::isfinite(found) ? 1 : 0, 0);
    }
    pn_adamw none{};
    none.count = 1;
    expect("a step without numbers is refused", pn_adamw_run(&none) == -1 && pn_square_sum(nullptr, 1, nullptr, 1) == -1 ? 0 : 1, 0);
}
