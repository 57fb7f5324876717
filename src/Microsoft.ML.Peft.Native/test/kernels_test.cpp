// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Every kernel against plain loops in double precision, and gradients against finite differences of those loops; odd sizes,
// one token, no token, padding. For valgrind and the sanitizers: kernels_test [seed]; kernels_test speed measures products.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <random>
#include <string>
#include <thread>
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

// Many threads at once give the same bits.
static void concurrent() {
    AttentionData t({3, 4, 4, 23, 23, 32, 0, true, 0.1});
    vector<float> x = numbers(50 * 96), w = numbers(200 * 96), first(50 * 200), out(t.q.size());
    pn_weights* packed = pn_pack(w.data(), 200, 96, 96, 1);
    auto run = [&](vector<float>& y, vector<float>& context) {
        pn_product p{};
        p.rows = 50, p.out = 200, p.in = 96, p.x = x.data(), p.x_row = 96, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = 200, p.threads = 2, p.activation = PN_GELU;
        pn_product_run(&p);
        pn_attention a = t.a;
        a.out = t.places(context.data(), 23, 4);
        pn_attention_forward(&a);
    };
    run(first, out);
    vector<std::thread> threads;
    vector<int> wrong(8);
    for (int n = 0; n < 8; n++)
        threads.emplace_back([&, n] {
            for (int turn = 0; turn < 20; turn++) {
                vector<float> y(first.size()), context(out.size());
                run(y, context);
                wrong[n] += memcmp(y.data(), first.data(), y.size() * sizeof(float)) != 0 || memcmp(context.data(), out.data(), out.size() * sizeof(float)) != 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (int n : wrong) expect("concurrent", n, 0);
    pn_free(packed);
}

static void refusals() {
    pn_product p{};
    expect("a product without factors is refused", pn_product_run(&p) == -1 ? 0 : 1, 0);
    pn_attention a{};
    expect("attention without queries is refused", pn_attention_forward(&a) == -1 && pn_attention_backward(&a) == -1 ? 0 : 1, 0);
    pn_norm n{};
    expect("a norm without rows is refused", pn_norm_forward(&n) == -1 && pn_norm_backward(&n) == -1 ? 0 : 1, 0);
    expect("nothing to pack", pn_pack(nullptr, 1, 1, 1, 1) == nullptr ? 0 : 1, 0);
    pn_free(nullptr);
}

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static void speed() {
    for (int threads = 1; threads <= 2; threads++)
        for (auto [rows, out, in] : {std::array<int64_t, 3>{740, 384, 384}, {740, 1536, 384}, {740, 384, 1536}, {368, 384, 384}, {2048, 1536, 384}, {23, 1536, 384}}) {
            vector<float> x = numbers(rows * in), w = numbers(out * in), y(rows * out);
            pn_weights* packed = pn_pack(w.data(), out, in, in, 1);
            pn_product p{};
            p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = out, p.threads = threads;
            double best[2] = {1e9, 1e9};
            for (int n = 0; n < 200; n++) {
                p.activation = n % 2;
                double began = seconds();
                pn_product_run(&p);
                best[n % 2] = std::min(best[n % 2], seconds() - began);
            }
            printf("%d threads, %ld x %ld x %ld: %.0f GFLOP/s, with GELU %.0f\n", threads, rows, out, in, 2e-9 * rows * out * in / best[0], 2e-9 * rows * out * in / best[1]);
            pn_free(packed);
            if (!pn_has_bfloat16()) continue;
            p.packed = packed = pn_pack_bfloat16(w.data(), out, in, in, 1);
            p.activation = 0;
            double quickest = 1e9;
            for (int n = 0; n < 100; n++) {
                double began = seconds();
                pn_product_run(&p);
                quickest = std::min(quickest, seconds() - began);
            }
            printf("   bfloat16 %.0f\n", 2e-9 * rows * out * in / quickest);
            pn_free(packed);
        }
    for (int64_t tokens : {23, 64, 256}) {
        AttentionData t({32, 12, 12, tokens, tokens, 32, 0, true, 0});
        vector<float> out(t.q.size()), sums(2 * 32 * 12 * tokens), g = numbers(t.q.size()), d_q(t.q.size()), d_k(t.q.size()), d_v(t.q.size());
        t.a.out = t.places(out.data(), tokens, 12), t.a.sums = sums.data(), t.a.d_out = t.places(g.data(), tokens, 12);
        t.a.d_q = t.places(d_q.data(), tokens, 12), t.a.d_k = t.places(d_k.data(), tokens, 12), t.a.d_v = t.places(d_v.data(), tokens, 12), t.a.lengths = nullptr;
        double best[2] = {1e9, 1e9};
        for (int n = 0; n < 40; n++) {
            double began = seconds();
            if (n % 2) pn_attention_backward(&t.a);
            else pn_attention_forward(&t.a);
            best[n % 2] = std::min(best[n % 2], seconds() - began);
        }
        double work = 4e-9 * 32 * 12 * tokens * tokens * 32;
        printf("attention of %ld tokens: forward %.3f ms (%.0f GFLOP/s), backward %.3f ms (%.0f)\n", tokens, best[0] * 1e3, work / best[0], best[1] * 1e3, 2.5 * work / best[1]);
    }
}

int main(int count, char** words) {
    printf("instruction set: %s\n", pn_isa());
    if (count > 1 && !strcmp(words[1], "speed")) {
        speed();
        return 0;
    }
    if (count > 1) generator.seed(atoi(words[1]));
    for (int64_t rows : {1, 2, 5, 12, 13, 31, 200})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {16, 16}, {33, 48}, {96, 40}, {70, 800}})
            for (int n = 0; n < 4; n++)
                product_case(rows, out, in, n % 3 ? 1 + generator() % 9 : 0, n, n == 2 ? 0.1 : 0, n % 2 == 0, generator() % 2, 1 + n % 2);
    for (int64_t rows : {1, 13, 50})
        for (auto [out, in] : {std::array<int64_t, 2>{1, 1}, {3, 7}, {33, 48}, {96, 41}, {70, 801}}) bfloat16_case(rows, out, in, rows == 13);
    for (int64_t tokens : {1, 2, 3, 7, 16, 23, 31, 32, 33, 47, 49, 64, 100}) {
        attention_case({2, 3, 3, tokens, tokens, 32, 0, true, 0}, 12);
        attention_case({2, 2, 1, tokens, tokens + 3, 8, 1, false, 0.2}, 12);
        attention_case({1, 4, 2, tokens, tokens, 20, 2, true, 0}, 12);
        attention_case({3, 2, 2, 1, tokens, 64, 3, true, 0.1}, 12);
    }
    attention_case({2, 2, 2, 7, 9, 8, 4, false, 0}, 0);
    attention_case({1, 1, 1, 513, 513, 32, 2, false, 0.1}, 2);
    for (int64_t tokens = 110; tokens < 513; tokens += 67) attention_case({2, 1, 1, tokens, tokens, 16, 0, true, 0.1}, 1);
    for (int64_t width : {1, 2, 5, 16, 31, 384, 1000})
        for (int n = 0; n < 4; n++) norm_case(1 + generator() % 200, width, n & 1, n & 2);
    for (int64_t length : {1, 7, 16, 1000, 8192, 40001}) pointwise_case(length);
    concurrent();
    refusals();
    printf("%d checks, %d failures\n", checks, failures);
    return failures ? 1 : 0;
}
