// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Attention against plain loops in double precision, its gradients against finite differences of those loops.
#pragma once
#include "checks.h"

struct AttentionCase {
    int64_t batch, heads, key_heads, queries, keys, width;
    int bias;       // 0 none, 1 a number a key, 2 by head and query, 3 one number a query, 4 the lowest number everywhere
    bool lengths;
    double share;
};

struct AttentionData {
    AttentionCase c;
    vector<float> q, k, v, bias;
    vector<int32_t> lengths;
    pn_attention a{};

    explicit AttentionData(const AttentionCase& given) : c(given) {
        q = numbers(c.batch * c.queries * c.heads * c.width);
        k = numbers(c.batch * c.keys * c.key_heads * c.width);
        v = numbers(c.batch * c.keys * c.key_heads * c.width);
        a.batch = c.batch, a.heads = c.heads, a.key_heads = c.key_heads, a.queries = c.queries, a.keys = c.keys, a.width = c.width;
        a.q = places(q.data(), c.queries, c.heads), a.k = places(k.data(), c.keys, c.key_heads), a.v = places(v.data(), c.keys, c.key_heads);
        if (c.lengths) {
            for (int64_t b = 0; b < c.batch; b++) lengths.push_back(b == 0 ? (int32_t)c.keys : (int32_t)(generator() % (c.keys + 1)));
            a.lengths = lengths.data();
        }
        if (c.bias == 4) {      // nothing counts: all alike
            bias.assign(1, -3.3895313892515355e38f);
            a.bias = bias.data();
        } else if (c.bias) {
            bias = numbers(c.bias == 1 ? c.batch * c.keys : c.bias == 2 ? c.heads * c.queries * c.keys : c.queries);
            a.bias = bias.data();
            if (c.bias == 1) a.bias_batch = c.keys, a.bias_key = 1;
            if (c.bias == 2) a.bias_head = c.queries * c.keys, a.bias_query = c.keys, a.bias_key = 1;
            if (c.bias == 3) a.bias_query = 1;
        }
        a.scale = 1 / sqrtf(c.width), a.threads = 2, a.dropout = some_dropout(c.share);
    }

    pn_heads places(const float* data, int64_t tokens, int64_t heads) const { return {data, tokens * heads * c.width, c.width, heads * c.width}; }

    // Weighted sum of the results, in double: what finite differences are taken of.
    template <class T>
    double reference(const vector<T>& q, const vector<T>& k, const vector<T>& v, const vector<float>& weights, vector<double>* out) const {
        double total = 0;
        vector<double> s(c.keys);
        for (int64_t b = 0; b < c.batch; b++)
            for (int64_t h = 0; h < c.heads; h++)
                for (int64_t i = 0; i < c.queries; i++) {
                    int64_t length = c.lengths ? lengths[b] : c.keys, g = h / (c.heads / c.key_heads), seen = length ? length : c.keys;
                    double top = -1e300, whole = 0;
                    for (int64_t j = 0; j < seen; j++) {
                        s[j] = 0;
                        for (int64_t d = 0; d < c.width; d++)
                            s[j] += (double)q[((b * c.queries + i) * c.heads + h) * c.width + d] * (double)k[((b * c.keys + j) * c.key_heads + g) * c.width + d];
                        s[j] *= length ? 1 / sqrt((double)c.width) : 0;
                        if (c.bias == 1) s[j] += bias[b * c.keys + j];
                        if (c.bias == 4) s[j] = -3.3895313892515355e38;
                        if (c.bias == 2) s[j] += bias[(h * c.queries + i) * c.keys + j];
                        if (c.bias == 3) s[j] += bias[i];
                        top = std::max(top, s[j]);
                    }
                    for (int64_t j = 0; j < seen; j++) whole += s[j] = exp(s[j] - top);
                    for (int64_t d = 0; d < c.width; d++) {
                        double y = 0;
                        for (int64_t j = 0; j < seen; j++)
                            y += s[j] / whole * factor(a.dropout, (uint32_t)(((b * c.heads + h) * c.queries + i) * c.keys + j)) * (double)v[((b * c.keys + j) * c.key_heads + g) * c.width + d];
                        int64_t at = ((b * c.queries + i) * c.heads + h) * c.width + d;
                        if (out) (*out)[at] = y;
                        total += y * weights[at];
                    }
                }
        return total;
    }
};

static void attention_case(const AttentionCase& c, int differences) {
    char text[200];
    snprintf(text, sizeof text, "attention %ld x %ld/%ld heads, %ld queries, %ld keys, width %ld, bias %d, lengths %d, dropout %g", c.batch, c.heads, c.key_heads, c.queries, c.keys, c.width, c.bias, c.lengths, c.share);
    std::string name = text;
    AttentionData t(c);
    pn_attention& a = t.a;
    vector<float> out(t.q.size(), -7), sums(2 * c.batch * c.heads * c.queries), weights = numbers(t.q.size());
    a.out = t.places(out.data(), c.queries, c.heads), a.sums = sums.data();
    expect_ok(name, pn_attention_forward(&a));
    vector<double> expected(out.size());
    t.reference(t.q, t.k, t.v, weights, &expected);
    expect(name, distance(out, expected), 1e-5);
    vector<float> d_q(t.q.size(), -7), d_k(t.k.size(), -7), d_v(t.v.size(), -7);
    a.d_out = t.places(weights.data(), c.queries, c.heads);
    a.d_q = t.places(d_q.data(), c.queries, c.heads), a.d_k = t.places(d_k.data(), c.keys, c.key_heads), a.d_v = t.places(d_v.data(), c.keys, c.key_heads);
    expect_ok(name, pn_attention_backward(&a));
    vector<double> inputs[3] = {{t.q.begin(), t.q.end()}, {t.k.begin(), t.k.end()}, {t.v.begin(), t.v.end()}};
    vector<float>* found[3] = {&d_q, &d_k, &d_v};
    double worst = 0, size = 1;
    for (int n = 0; n < 3 * differences; n++) {
        int which = n % 3;
        size_t at = generator() % inputs[which].size();
        double old = inputs[which][at], step = 1e-5;
        inputs[which][at] = old + step;
        double more = t.reference(inputs[0], inputs[1], inputs[2], weights, nullptr);
        inputs[which][at] = old - step;
        double less = t.reference(inputs[0], inputs[1], inputs[2], weights, nullptr);
        inputs[which][at] = old;
        double slope = (more - less) / (2 * step);
        worst = std::max(worst, fabs(slope - (*found[which])[at]));
        size = std::max(size, fabs(slope));
    }
    expect(name + ", gradients", worst / size, 2e-5);
    for (vector<float>* g : found) expect(name + ", finite gradients", distance(*g, *g), 0);
}

static void attention_cases() {
    for (int64_t tokens : {1, 2, 3, 7, 16, 23, 31, 32, 33, 47, 49, 64, 100}) {
        attention_case({2, 3, 3, tokens, tokens, 32, 0, true, 0}, 12);
        attention_case({2, 2, 1, tokens, tokens + 3, 8, 1, false, 0.2}, 12);
        attention_case({1, 4, 2, tokens, tokens, 20, 2, true, 0}, 12);
        attention_case({3, 2, 2, 1, tokens, 64, 3, true, 0.1}, 12);
    }
    attention_case({2, 2, 2, 7, 9, 8, 4, false, 0}, 0);
    attention_case({1, 1, 1, 513, 513, 32, 2, false, 0.1}, 2);
    for (int64_t tokens = 110; tokens < 513; tokens += 67) attention_case({2, 1, 1, tokens, tokens, 16, 0, true, 0.1}, 1);
}
