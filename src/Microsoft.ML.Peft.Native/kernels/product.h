// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products with frozen weights, and what follows them: low-rank term, bias, activation, dropout, before the result leaves
// the registers.
#pragma once
#include "bfloat16.h"
#include "kernels.h"
#include "tile.h"

namespace PN_NAMESPACE {

constexpr int64_t KBlock = 384;     // a panel of so many rows stays in the first cache
constexpr int64_t RowBlock = 16 * MR, PanelGroup = 8;

struct Right {
    const float* data;              // panels, or rows b_row apart
    int64_t panel, row;             // from panel to panel, from k to k
    const float* last;              // the last panel where rows would end inside it; else null
    int64_t whole;                  // panels before that
    const uint16_t *rounded, *rounded_rows;     // panels, and rows of x, in bfloat16; null for float32
    int64_t even;                   // k of such a row

    const float* at(int64_t p, int64_t k, int64_t& b_row) const {
        if (last && p == whole) {
            b_row = NR;
            return last + k * NR;
        }
        b_row = row;
        return data + p * panel + k * row;
    }
};

template <int Rows>
PN_INLINE void finish(vf (&c)[Rows][2], const pn_product& p, int64_t m, int64_t n, int64_t columns) {
    if (p.bias) {
        vf left = load(p.bias + n, columns), right = columns > L ? load(p.bias + n + L, columns - L) : vf{};
        for (int i = 0; i < Rows; i++) c[i][0] += left, c[i][1] += right;
    }
    if (p.before) write<Rows>(c, p.before + m * p.out + n, p.out, columns);
    if (p.activation != PN_LINEAR)
        for (int i = 0; i < Rows; i++)
            for (int h = 0; h < 2; h++) c[i][h] = activate(c[i][h], p.activation);
    if (p.dropout.threshold > 0)
        for (int i = 0; i < Rows; i++)
            for (int h = 0; h < 2; h++) c[i][h] *= kept((uint32_t)((m + i) * p.out + n + h * L), p.dropout);
}

template <int Rows>
static void product_tile(const pn_product& p, const Right& right, const float* up, int64_t m, int64_t panel, int64_t k, int64_t count) {
    int64_t n = panel * NR, columns = least(NR, p.out - n), b_row;
    float* y = p.y + m * p.y_row + n;
    vf c[Rows][2] = {};
    if (k > 0 || p.accumulate) read<Rows>(c, y, p.y_row, columns);
#ifdef __AVX512BF16__
    if (right.rounded)
        multiply_pairs<Rows>(c, (count + 1) / 2, right.rounded_rows + m * right.even + k, right.even, right.rounded + panel * right.even * NR + k * NR);
    else
#endif
    {
        const float* b = right.at(panel, k, b_row);
        multiply<Rows>(c, count, Left{p.x + m * p.x_row + k * p.x_in, p.x_row, p.x_in}, b, b_row);
    }
    if (k + count == p.in) {
        if (p.low) multiply<Rows, true>(c, p.rank, Left{p.low + m * p.low_row, p.low_row, 1}, up + panel * p.rank * NR, NR);
        finish<Rows>(c, p, m, n, columns);
    }
    write<Rows>(c, y, p.y_row, columns);
}

template <int Rows = MR>
PN_INLINE void product_rows(int64_t rows, const pn_product& p, const Right& right, const float* up, int64_t m, int64_t panel, int64_t k, int64_t count) {
    if (rows == Rows) product_tile<Rows>(p, right, up, m, panel, k, count);
    else if constexpr (Rows > 1) product_rows<Rows - 1>(rows, p, right, up, m, panel, k, count);
}

static void product_part(const pn_product& p, const Right& right, const float* up, int64_t m0, int64_t m1, int64_t p0, int64_t p1) {
    int64_t k = 0;
    do {
        int64_t count = least(KBlock, p.in - k);
        for (int64_t panel = p0; panel < p1; panel++)
            for (int64_t m = m0; m < m1; m += MR) product_rows(least(MR, m1 - m), p, right, up, m, panel, k, count);
        k += count;
    } while (k < p.in);
}

// x in bfloat16, for all threads.
static bool round_rows(const pn_product& p, Right& right) {
#ifdef __AVX512BF16__
    right.even = (p.in + 1) / 2 * 2;
    uint16_t* made = (uint16_t*)pn::scratch(pn::SlotRows, p.rows * right.even / 2 + 1);
    if (!made) return false;
    int threads = p.rows * p.in < 65536 ? 1 : p.threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < p.rows; i++) round_row(p.x + i * p.x_row, p.x_in, p.in, made + i * right.even);
    right.rounded_rows = made;
    right.rounded = (const uint16_t*)p.packed->data;
    return true;
#else
    (void)p, (void)right;
    return false;
#endif
}

static int product_int8(const pn_product& p);

static int product(const pn_product& p) {
    if (p.rows == 0 || p.out == 0) return 0;
    if (p.packed && p.packed->int8) return product_int8(p);
    int64_t all_panels = (p.out + NR - 1) / NR, padded = all_panels * NR;
    Right right{};
    if (p.packed && !p.packed->bfloat16) right.data = p.packed->data, right.panel = p.in * NR, right.row = NR;
    else if (p.packed) {
        if (!round_rows(p, right)) return -2;
    } else if (p.w_out == 1) {
        right.data = p.w, right.panel = NR, right.row = p.w_in, right.whole = p.out / NR;
        if (p.out % NR) {
            float* last = pn::scratch(pn::SlotWeights, p.in * NR);
            if (!last) return -2;
            pack_panel(p.w + right.whole * NR, p.out % NR, p.in, 1, p.w_in, 1.0f, last);
            right.last = last;
        }
    } else {
        float* made = pn::scratch(pn::SlotWeights, padded * p.in);
        if (!made) return -2;
        pack(p.w, p.out, p.in, p.w_out, p.w_in, 1.0f, made);
        right.data = made, right.panel = p.in * NR, right.row = NR;
    }
    float* up = nullptr;
    if (p.low) {
        up = pn::scratch(pn::SlotUp, padded * p.rank);
        if (!up) return -2;
        pack(p.up, p.out, p.rank, p.up_out, p.up_rank, p.scale, up);
    }
    int64_t row_blocks = (p.rows + RowBlock - 1) / RowBlock, groups = (all_panels + PanelGroup - 1) / PanelGroup, parts = row_blocks * groups;
    int threads = (double)p.rows * p.out * (p.in + p.rank) < 250e3 ? 1 : p.threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t m = part / groups * RowBlock, g = part % groups * PanelGroup;
        product_part(p, right, up, m, least(p.rows, m + RowBlock), g, least(all_panels, g + PanelGroup));
    }
    return 0;
}

}
