// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Embeddings against plain loops in double precision, and against the kernels of their parts, bit by bit.
#pragma once
#include <string.h>
#include "checks.h"

struct EmbeddingData {
    vector<float> data[PN_TABLES], w, b;
    vector<int64_t> index[PN_TABLES];
    pn_embed e{};

    // Each table by an index of its own or one that repeats, counted, or by one row again and again.
    EmbeddingData(int64_t batch, int64_t tokens, int64_t width, int tables, bool shift, double dropout) : w(numbers(width)), b(numbers(width)) {
        e.rows = batch * tokens, e.width = width, e.tables = tables, e.weight = w.data(), e.bias = shift ? b.data() : nullptr;
        e.epsilon = 1e-5f, e.dropout = some_dropout(dropout), e.threads = 1;
        for (int t = 0; t < tables; t++) {
            pn_rows& table = e.table[t];
            int kind = t == 0 ? 0 : generator() % 4;
            table.count = tokens + generator() % 50;
            data[t] = numbers(table.count * width);
            table.data = data[t].data();
            table.period = kind == 0 ? e.rows : kind == 3 ? 1 : tokens;
            if (kind > 1) {
                table.first = generator() % (table.count - table.period + 1);
                continue;
            }
            index[t].resize(table.period);
            for (int64_t& i : index[t]) i = generator() % table.count;
            table.index = index[t].data();
        }
    }

    const float* row(int t, int64_t i) const {
        const pn_rows& table = e.table[t];
        return table.data + e.width * (table.index ? table.index[i % table.period] : table.first + i % table.period);
    }
};

static void embedding_case(int64_t batch, int64_t tokens, int64_t width, int tables, double dropout) {
    char text[100];
    snprintf(text, sizeof text, "embeddings %ld x %ld x %ld, %d tables, dropout %g", batch, tokens, width, tables, dropout);
    EmbeddingData d(batch, tokens, width, tables, tables != 2, dropout);
    pn_embed& e = d.e;
    vector<float> y(e.rows * width), sum(e.rows * width), parts(e.rows * width);
    e.y = y.data();
    expect_ok(text, pn_embed_run(&e));
    double worst = 0;
    for (int64_t i = 0; i < e.rows; i++) {
        vector<double> row(width);
        for (int64_t j = 0; j < width; j++) {
            float exact = d.row(0, i)[j];
            for (int t = 1; t < tables; t++) exact += d.row(t, i)[j];
            row[j] = sum[i * width + j] = exact;
        }
        double mean = 0, square = 0;
        for (double v : row) mean += v / width;
        for (double v : row) square += (v - mean) * (v - mean) / width;
        for (int64_t j = 0; j < width; j++) {
            double expected = ((row[j] - mean) / sqrt(square + 1e-5) * d.w[j] + (e.bias ? d.b[j] : 0)) * factor(e.dropout, (uint32_t)(i * width + j));
            worst = std::max(worst, fabs(expected - y[i * width + j]));
        }
    }
    expect(text, worst, 2e-5);
    pn_norm n{};
    n.rows = e.rows, n.width = width, n.x = sum.data(), n.weight = e.weight, n.bias = e.bias, n.epsilon = e.epsilon, n.y = parts.data(), n.threads = 1;
    expect_ok(text, pn_norm_forward(&n));
    if (dropout > 0) expect_ok(text, pn_dropout_run(parts.data(), parts.data(), e.rows * width, &e.dropout, 1));
    expect(std::string(text) + ", its parts", memcmp(y.data(), parts.data(), y.size() * sizeof(float)) != 0, 0);
    for (int threads : {2, 3, 8}) {
        vector<float> again(y.size());
        e.y = again.data(), e.threads = threads;
        expect_ok(text, pn_embed_run(&e));
        expect(std::string(text) + ", threads", memcmp(y.data(), again.data(), y.size() * sizeof(float)) != 0, 0);
    }
}

static void embedding_refusals() {
    EmbeddingData d(3, 5, 24, 3, true, 0);
    vector<float> y(d.e.rows * d.e.width);
    d.e.y = y.data();
    for (int64_t wrong : {(int64_t)-1, d.e.table[0].count, INT64_MIN, INT64_MAX})
        for (int64_t at : {(int64_t)0, d.e.rows - 1}) {
            std::swap(wrong, d.index[0][at]);
            expect("an index outside of its table", pn_embed_run(&d.e) == -3 && *pn_error() ? 0 : 1, 0);
            std::swap(wrong, d.index[0][at]);
        }
    expect_ok("indices inside of their tables", pn_embed_run(&d.e));
    auto refused = [](const char* what, pn_embed e) { expect(what, pn_embed_run(&e) == -1 && *pn_error() ? 0 : 1, 0); };
    refused("no embeddings", pn_embed{});
    pn_embed e = d.e;
    e.tables = PN_TABLES + 1;
    refused("four tables", e);
    e = d.e, e.table[1].index = nullptr, e.table[1].period = e.table[1].count, e.table[1].first = 1;
    refused("counting beyond the table", e);
    e.table[1].first = -1;
    refused("counting from before the table", e);
    e = d.e, e.table[2].data = nullptr;
    refused("no table", e);
    e = d.e, e.table[2].period = 0;
    refused("no period", e);
    e = d.e, e.rows = 0;
    expect_ok("no rows", pn_embed_run(&e));
}

static void embedding_cases() {
    for (int64_t width : {1, 5, 16, 31, 384, 1000})
        for (int tables = 1; tables <= PN_TABLES; tables++)
            for (double dropout : {0.0, 0.2}) embedding_case(1 + generator() % 20, 1 + generator() % 30, width, tables, dropout);
    embedding_case(16, 24, 384, 3, 0.1);
    embedding_refusals();
}
