// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products of rows, perhaps dropped out, with a factor of few ranks, and the factor's gradient: one reading of the rows.
#pragma once
#include "kernels.h"
#include "tile.h"

namespace PN_NAMESPACE {

// Where half a tile's width holds all ranks, the other half is no work.
template <int Rows>
static void narrow(int64_t count, const float* x, int64_t x_row, const float* panel, float* low, int64_t low_row, int64_t rank) {
    vf c[Rows];
    for (int i = 0; i < Rows; i++) c[i] = vf{};
    for (int64_t k = 0; k < count; k++) {
        vf a = load(panel + k * L);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; i++) c[i] += x[i * x_row + k] * a;
    }
    for (int i = 0; i < Rows; i++) store(low + i * low_row, c[i], rank);
}

template <int Rows = MR>
PN_INLINE void narrow_rows(int64_t rows, int64_t count, const float* x, int64_t x_row, const float* panel, float* low, int64_t low_row, int64_t rank) {
    if (rows == Rows) narrow<Rows>(count, x, x_row, panel, low, low_row, rank);
    else if constexpr (Rows > 1) narrow_rows<Rows - 1>(rows, count, x, x_row, panel, low, low_row, rank);
}

// a(r, k) * scale as panels of L ranks: [k, L].
static void pack_ranks(const pn_low_rank& l, float* target) {
    for (int64_t r0 = 0; r0 < l.rank; r0 += L, target += l.in * L)
        for (int64_t k = 0; k < l.in; k++)
            for (int64_t r = 0; r < L; r++) target[k * L + r] = r0 + r < l.rank ? l.scale * l.a[(r0 + r) * l.a_rank + k * l.a_in] : 0;
}

static int low_rank_product(const pn_low_rank& l) {
    float* panels = pn::scratch(pn::SlotWeights, (l.rank + L - 1) / L * L * l.in);
    if (!panels) return -2;
    pack_ranks(l, panels);
    int64_t blocks = (l.rows + MR - 1) / MR;
    int failed = 0, threads = (double)l.rows * l.in * l.rank < 100e3 ? 1 : l.threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : failed)
    for (int64_t block = 0; block < blocks; block++) {
        int64_t m = block * MR, rows = least(MR, l.rows - m), x_row = l.x_row;
        const float* x = l.x + m * x_row;
        if (l.dropout.threshold > 0) {
            float* dropped = pn::scratch(pn::SlotHeads, MR * (l.in + L));
            if (!dropped) {
                failed = 1;
                continue;
            }
            x_row = l.in;
            for (int64_t i = 0; i < rows; i++)
                for (int64_t k = 0; k < l.in; k += L)
                    store(dropped + i * l.in + k, load(x + i * l.x_row + k, l.in - k) * kept((uint32_t)((m + i) * l.in + k), l.dropout), l.in - k);
            x = dropped;
        }
        for (int64_t r = 0; r < l.rank; r += L) narrow_rows(rows, l.in, x, x_row, panels + r * l.in, l.low + m * l.low_row + r, l.low_row, least(L, l.rank - r));
    }
    return failed ? -2 : 0;
}

// Ranks r to r + Ranks of one stretch of k, over all rows.
template <int Ranks>
static void gradient(const pn_low_rank& l, int64_t r, int64_t k) {
    int64_t columns = least(NR, l.in - k);
    vf c[Ranks][2];
    for (int i = 0; i < Ranks; i++) c[i][0] = c[i][1] = vf{};
    for (int64_t m = 0; m < l.rows; m++) {
        const float *x = l.x + m * l.x_row + k, *low = l.low + m * l.low_row + r;
        vf left = load(x, columns), right = columns > L ? load(x + L, columns - L) : vf{};
        if (l.dropout.threshold > 0) {
            uint32_t place = (uint32_t)(m * l.in + k);
            left *= kept(place, l.dropout), right *= kept(place + L, l.dropout);
        }
#pragma GCC unroll 16
        for (int i = 0; i < Ranks; i++) {
            c[i][0] += low[i] * left;
            c[i][1] += low[i] * right;
        }
    }
    for (int i = 0; i < Ranks; i++)
        for (int64_t n = 0; n < columns; n++) l.a[(r + i) * l.a_rank + (k + n) * l.a_in] = l.scale * c[i][n / L][n % L];
}

template <int Ranks = MR>
PN_INLINE void gradient_of(int64_t ranks, const pn_low_rank& l, int64_t r, int64_t k) {
    if (ranks == Ranks) gradient<Ranks>(l, r, k);
    else if constexpr (Ranks > 1) gradient_of<Ranks - 1>(ranks, l, r, k);
}

static int low_rank_gradient(const pn_low_rank& l) {
    int64_t columns = (l.in + NR - 1) / NR, ranks = (l.rank + MR - 1) / MR;
    int threads = (double)l.rows * l.in * l.rank < 100e3 ? 1 : l.threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t part = 0; part < columns * ranks; part++) {
        int64_t r = part / columns * MR;
        gradient_of(least(MR, l.rank - r), l, r, part % columns * NR);
    }
    return 0;
}

}
