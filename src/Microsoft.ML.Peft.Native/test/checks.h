// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// What the cases of all kernels share: random numbers, expectations, and the plain forms of dropout and activations.
#pragma once
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <algorithm>
#include <random>
#include <string>
#include <vector>
#include "../peft_native.h"

using std::vector;

static std::mt19937 generator(1);
static int failures, checks;

static vector<float> numbers(size_t count, float scale = 1) {
    std::normal_distribution<float> normal(0, scale);
    vector<float> v(count);
    for (float& x : v) x = normal(generator);
    return v;
}

static void expect(const std::string& what, double found, double limit) {
    checks++;
    if (found <= limit) return;
    failures++;
    printf("FAILED %s: %.3g, allowed %.3g\n", what.c_str(), found, limit);
}

static void expect_ok(const std::string& what, int code) {
    if (code != 0) printf("%s\n", pn_error());
    expect(what + ": return code", abs(code), 0);
}

template <class A, class B>
static double distance(const vector<A>& a, const vector<B>& b) {
    double most = a.size() == b.size() ? 0 : 1e9;
    for (size_t i = 0; i < std::min(a.size(), b.size()); i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        most = std::isfinite(d) ? std::max(most, d) : 1e9;
    }
    return most;
}

static double factor(const pn_dropout& d, uint32_t place) {
    if (d.threshold == 0) return 1;
    uint32_t x = place * 0x9E3779B9u + d.low;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= (x >> 15) ^ d.high;
    x *= 0x735A2D97u;
    x ^= x >> 15;
    return (int32_t)(x >> 8) >= d.threshold ? d.kept : 0;
}

static pn_dropout some_dropout(double share) {
    return share == 0 ? pn_dropout{} : pn_dropout{(uint32_t)generator(), (uint32_t)generator(), (int32_t)lrint(share * (1 << 24)), (float)(1 / (1 - share))};
}

static double activation(double x, int kind) {
    switch (kind) {
        case PN_GELU: return 0.5 * x * erfc(-x / sqrt(2.0));
        case PN_GELU_TANH: return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
        case PN_RELU: return x > 0 ? x : 0;
        default: return x;
    }
}
