// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Calls that are written down and run at once: the same bits as one by one, whatever is cut into parts.
#pragma once
#include "checks.h"

// A product with GELU and dropout, a norm of it, dropped out, and a low-rank product: over all rows, and cut into slices.
static void program_case(int64_t rows, int slices, int threads) {
    std::string text = "programs, " + std::to_string(rows) + " rows, " + std::to_string(slices) + " slices, " + std::to_string(threads) + " threads";
    const int64_t in = 37, out = 50, rank = 3;
    vector<float> x = numbers(rows * in), w = numbers(out * in), scale = numbers(out), a = numbers(rank * in), g = numbers(rows * out);
    pn_dropout after = some_dropout(0.3), before = some_dropout(0.2);
    pn_weights* packed = pn_pack(w.data(), out, in, in, 1);
    struct Results { vector<float> y, normed, slope, dropped, low, active; };
    auto run = [&](int parts, Results& r) {
        for (auto* v : {&r.y, &r.normed, &r.slope, &r.dropped, &r.active}) v->assign(rows * out, 0);
        r.low.assign(rows * rank, 0);
        vector<pn_product> products(parts);
        vector<pn_norm> norms(2 * parts);
        vector<pn_low_rank> factors(parts);
        vector<pn_activate> activations(parts);
        vector<pn_step> steps;
        vector<int32_t> ends;
        for (int part = 0; part < parts; part++) {
            int64_t from = rows * part / parts, count = rows * (part + 1) / parts - from;
            pn_product& p = products[part];
            p = {};
            p.rows = count, p.out = out, p.in = in, p.x = x.data() + from * in, p.x_row = in, p.x_in = 1, p.packed = packed, p.y = r.y.data() + from * out, p.y_row = out;
            p.threads = 1, p.activation = PN_GELU, p.dropout = after;
            p.dropout.first = (uint32_t)(from * out);
            pn_norm& n = norms[2 * part];
            n = {};
            n.rows = count, n.width = out, n.x = p.y, n.weight = scale.data(), n.epsilon = 1e-5f, n.y = r.normed.data() + from * out, n.threads = 1;
            pn_norm& back = norms[2 * part + 1];
            back = n;
            back.d_y = g.data() + from * out, back.d_x = r.slope.data() + from * out, back.d_dropped = r.dropped.data() + from * out, back.dropout = p.dropout;
            pn_low_rank& l = factors[part];
            l = {};
            l.rows = count, l.in = in, l.rank = rank, l.x = p.x, l.x_row = in, l.a = a.data(), l.a_rank = in, l.a_in = 1, l.low = r.low.data() + from * rank, l.low_row = rank;
            l.scale = 1, l.threads = 1, l.dropout = before;
            l.dropout.first = (uint32_t)(from * in);
            activations[part] = {p.y, r.active.data() + from * out, count * out, PN_RELU, 1};
            steps.insert(steps.end(), {{PN_PRODUCTS, 1, &p}, {PN_NORM_FORWARD, 1, &n}, {PN_NORM_BACKWARD, 1, &back}, {PN_LOW_RANK_PRODUCT, 1, &l}, {PN_ACTIVATION_FORWARD, 1, &activations[part]}});
            ends.push_back((int32_t)steps.size());
        }
        expect_ok(text, pn_run(steps.data(), ends.data(), parts, threads));
    };
    Results whole, cut;
    run(1, whole);
    run(slices, cut);
    double worst = 0, sum = 0;
    for (auto pair : {std::make_pair(&whole.y, &cut.y), {&whole.normed, &cut.normed}, {&whole.slope, &cut.slope}, {&whole.dropped, &cut.dropped}, {&whole.low, &cut.low}, {&whole.active, &cut.active}}) {
        worst = std::max(worst, (double)distance(*pair.first, *pair.second));
        for (float v : *pair.first) sum += fabs(v);
    }
    expect(text, worst, 0);
    expect(text + ", something came out", sum > 0 ? 0 : 1, 0);
    pn_free(packed);
}

static void program_cases() {
    program_case(1, 1, 2);
    program_case(7, 2, 2);
    program_case(64, 3, 2);
    program_case(513, 4, 8);
    pn_product bad{};
    pn_step steps[] = {{PN_PRODUCTS, 1, &bad}, {99, 1, &bad}, {PN_NORM_FORWARD, 1, nullptr}};
    for (int i = 0; i < 3; i++) {
        int32_t end = 1;
        expect("a program that fails says so", pn_run(steps + i, &end, 1, 2) == -1 && *pn_error() ? 0 : 1, 0);
    }
    int32_t ends[] = {1, 2, 3};
    expect("programs that fail at once", pn_run(steps, ends, 3, 3) == -1 ? 0 : 1, 0);
    expect("no programs", pn_run(nullptr, ends, 1, 1) == -1 && pn_run(steps, ends, 0, 1) == -1 ? 0 : 1, 0);
}
