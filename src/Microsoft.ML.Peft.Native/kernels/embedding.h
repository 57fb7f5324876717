// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Rows of tables, their sum, its norm, dropout: what stands before the layers of a text encoder, a row at a time.
#pragma once
#include "norm.h"

namespace PN_NAMESPACE {

// Where a table's row for row i of the result lies; null where there is no such row.
PN_INLINE const float* row_of(const pn_rows& table, int64_t i, int64_t width) {
    int64_t at = table.index ? table.index[i % table.period] : table.first + i % table.period;
    return at >= 0 && at < table.count ? table.data + at * width : nullptr;
}

static int embed(const pn_embed& e) {
    int threads = e.rows * e.width < 32768 ? 1 : e.threads, failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < e.rows; i++) {
        const float* from[PN_TABLES] = {};
        bool found = true;
        for (int t = 0; t < e.tables; t++) found &= (from[t] = row_of(e.table[t], i, e.width)) != nullptr;
        if (!found) {
            failed = 1;
            continue;
        }
        float* y = e.y + i * e.width;
        for (int64_t j = 0; j < e.width; j += L) {
            vf v = load(from[0] + j, e.width - j);
            for (int t = 1; t < e.tables; t++) v += load(from[t] + j, e.width - j);
            store(y + j, v, e.width - j);
        }
        norm_row(y, y, e.width, e.weight, e.bias, e.epsilon, false);
        if (e.dropout.threshold > 0)
            for (int64_t j = 0; j < e.width; j += L) store(y + j, load(y + j, e.width - j) * kept((uint32_t)(i * e.width + j), e.dropout), e.width - j);
    }
    return failed ? -3 : 0;
}

}
