// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products with frozen weights, and what follows them: low-rank term, bias, activation, dropout, before the result leaves
// the registers.
#pragma once
#include "bfloat16.h"
#include "kernels.h"
#include "tile.h"

namespace PN_NAMESPACE {

constexpr int64_t KBlock = 384;     // a panel of so many rows stays in the first cache
constexpr int64_t RowBlock = 16 * MR, PanelGroup = 8;     // at most

struct Right {
    const float* data;              // panels, or rows b_row apart
    int64_t panel, row;             // from panel to panel, from k to k
    const float* last;              // the last panel where rows would end inside it; else null
    int64_t whole;                  // panels before that
    const uint16_t *rounded, *rounded_rows;     // panels, and rows of x, in bfloat16; null for float32
    int64_t even;                   // from such a row to the next
    float* up;                      // the low-rank term's second factor in panels

    const float* at(int64_t p, int64_t k, int64_t& b_row) const {
        if (last && p == whole) {
            b_row = NR;
            return last + k * NR;
        }
        b_row = row;
        return data + p * panel + k * row;
    }
};

// Rows of the argument of the activation, in either type.
template <int Rows>
PN_INLINE void write_before(const vf (&c)[Rows][2], const pn_product& p, int64_t m, int64_t n, int64_t columns) {
    if (!p.before_bfloat16) return write<Rows>(c, p.before + m * p.out + n, p.out, columns);
    for (int i = 0; i < Rows; i++)
        for (int64_t h = 0; h * L < columns; h++) store_rounded((uint16_t*)p.before + (m + i) * p.out + n + h * L, c[i][h], columns - h * L);
}

PN_INLINE vf read_before(const pn_product& p, int64_t at, int64_t columns) {
    if (columns <= 0) return vf{};
    return p.before_bfloat16 ? load_rounded((const uint16_t*)p.before + at, columns) : load(p.before + at, columns);
}

template <int Rows>
PN_INLINE void add_low_rank(vf (&c)[Rows][2], const pn_product& p, const float* up, int64_t m, int64_t n) {
    if (p.low_dropout.threshold == 0) return multiply<Rows, true>(c, p.rank, Left{p.low + m * p.low_row, p.low_row, 1}, up, NR);
    vf t[Rows][2];
    for (int i = 0; i < Rows; i++) t[i][0] = t[i][1] = vf{};
    multiply<Rows, true>(t, p.rank, Left{p.low + m * p.low_row, p.low_row, 1}, up, NR);
    for (int i = 0; i < Rows; i++)
        for (int h = 0; h < 2; h++) c[i][h] += t[i][h] * kept((uint32_t)((m + i) * p.out + n + h * L), p.low_dropout);
}

template <int Rows>
PN_INLINE void finish(vf (&c)[Rows][2], const pn_product& p, int64_t m, int64_t n, int64_t columns) {
    // Enough for what is rounded anyway.
    bool roughly = p.packed && (p.packed->bfloat16 || p.packed->int8);
    if (p.bias) {
        vf left = load(p.bias + n, columns), right = columns > L ? load(p.bias + n + L, columns - L) : vf{};
        for (int i = 0; i < Rows; i++) c[i][0] += left, c[i][1] += right;
    }
    if (p.slopes) {
        for (int i = 0; i < Rows; i++)
            for (int h = 0; h < 2; h++) {
                vf at = read_before(p, (m + i) * p.out + n + h * L, columns - h * L);
                c[i][h] *= roughly ? slope_roughly(at, p.activation) : slope(at, p.activation);
            }
    } else {
        if (p.before) write_before<Rows>(c, p, m, n, columns);
        if (roughly && p.activation == PN_GELU) {
            for (int i = 0; i < Rows; i++)
                for (int h = 0; h < 2; h++) c[i][h] = gelu_roughly(c[i][h]);
        } else if (p.activation != PN_LINEAR) {
            for (int i = 0; i < Rows; i++)
                for (int h = 0; h < 2; h++) c[i][h] = activate(c[i][h], p.activation);
        }
    }
    if (p.dropout.threshold > 0)
        for (int i = 0; i < Rows; i++)
            for (int h = 0; h < 2; h++) c[i][h] *= kept((uint32_t)((m + i) * p.out + n + h * L), p.dropout);
    if (p.residual) add_rows<Rows>(c, p.residual + m * p.residual_row + n, p.residual_row, columns);
}

template <int Rows>
static void product_tile(const pn_product& p, const Right& right, int64_t m, int64_t panel, int64_t k, int64_t count, int64_t ahead) {
    int64_t n = panel * NR, columns = least(NR, p.out - n), b_row;
    float* y = p.y + m * p.y_row + n;
    vf c[Rows][2];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++) c[i][0] = c[i][1] = vf{};
    if (k > 0 || p.accumulate) read<Rows>(c, y, p.y_row, columns);
#ifdef __AVX512BF16__
    if (right.rounded)
        multiply_pairs<Rows>(c, (count + 1) / 2, right.rounded_rows + m * right.even + k, right.even, right.rounded + panel * right.panel + k * NR, ahead);
    else
#endif
    {
        const float* b = right.at(panel, k, b_row);
        multiply<Rows>(c, count, Left{p.x + m * p.x_row + k * p.x_in, p.x_row, p.x_in}, b, b_row, ahead);
    }
    if (k + count == p.in) {
        if (p.low) add_low_rank<Rows>(c, p, right.up + panel * p.rank * NR, m, n);
        finish<Rows>(c, p, m, n, columns);
        if (p.y_bfloat16) {
            for (int i = 0; i < Rows; i++)
                for (int64_t h = 0; h * L < columns; h++) store_rounded((uint16_t*)p.y + (m + i) * p.y_row + n + h * L, c[i][h], columns - h * L);
            return;
        }
    }
    write<Rows>(c, y, p.y_row, columns);
}

template <int Rows = MR>
PN_INLINE void product_rows(int64_t rows, const pn_product& p, const Right& right, int64_t m, int64_t panel, int64_t k, int64_t count, int64_t ahead) {
    if (rows == Rows) product_tile<Rows>(p, right, m, panel, k, count, ahead);
    else if constexpr (Rows > 1) product_rows<Rows - 1>(rows, p, right, m, panel, k, count, ahead);
}

// Rows from m0 on and panels from p0 on, to before m1 and p1.
struct Part {
    int64_t m0, m1, p0, p1;
};

static void product_part(const pn_product& p, const Right& right, const Part& at) {
    // Sums that leave the registers are in float32: what is rounded at the end runs over all of k at once.
    int64_t step = p.y_bfloat16 ? p.in : right.rounded ? 2 * KBlock : KBlock, k = 0;
    do {
        int64_t count = least(step, p.in - k);
        for (int64_t panel = at.p0; panel < at.p1; panel++)
            for (int64_t m = at.m0; m < at.m1; m += MR) product_rows(least(MR, at.m1 - m), p, right, m, panel, k, count, m + MR < at.m1 ? 0 : right.panel);
        k += count;
    } while (k < p.in);
}

// Memory of the calling thread, taken once for all products of a call.
struct Supply {
    float* next;
    float* take(int64_t floats) {
        float* taken = next;
        next += (floats + L - 1) / L * L;
        return taken;
    }
};

PN_INLINE int64_t panels_of(const pn_product& p) { return (p.out + NR - 1) / NR; }
PN_INLINE int64_t even_of(const pn_product& p) { return (p.in + 1) / 2 * 2; }
PN_INLINE bool same_rows(const pn_product& a, const pn_product& b) { return a.x == b.x && a.x_row == b.x_row && a.x_in == b.x_in && a.rows == b.rows && a.in == b.in; }

// The low-rank term's second factor in panels, from as many floats as up_floats says.
PN_INLINE int64_t up_floats(const pn_product& p) { return p.low ? panels_of(p) * NR * p.rank + L : 0; }

static float* pack_up(const pn_product& p, Supply& supply) {
    if (!p.low) return nullptr;
    float* made = supply.take(panels_of(p) * NR * p.rank);
    pack(p.up, p.out, p.rank, p.up_out, p.up_rank, p.scale, made);
    return made;
}

// x in bfloat16, for all threads.
static void round_rows(const pn_product& p, Right& right, Supply& supply) {
#ifdef __AVX512BF16__
    uint16_t* made = (uint16_t*)supply.take(p.rows * right.even / 2 + 1);
    int threads = p.rows * p.in < 65536 ? 1 : p.threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < p.rows; i++) round_row(p.x + i * p.x_row, p.x_in, p.in, made + i * right.even);
    right.rounded_rows = made;
#else
    (void)p, (void)right, (void)supply;
#endif
}

// What a product needs beside its rows: the packed weight, low-rank factors in panels, rows in bfloat16.
static bool prepare(const pn_product& p, Right& right, Supply& supply) {
    right.up = pack_up(p, supply);
    if (p.packed && !p.packed->bfloat16) right.data = p.packed->data, right.panel = p.in * NR, right.row = NR;
    else if (p.packed) {
        right.rounded = (const uint16_t*)p.packed->data, right.panel = even_of(p) * NR, right.even = even_of(p);
        if (p.x_bfloat16) right.rounded_rows = (const uint16_t*)p.x, right.even = p.x_row;
        else if (!right.rounded_rows) round_rows(p, right, supply);
    } else if (p.w_out == 1) {
        right.data = p.w, right.panel = NR, right.row = p.w_in, right.whole = p.out / NR;
        if (p.out % NR) {
            float* last = pn::scratch(pn::SlotWeights, p.in * NR);
            if (!last) return false;
            pack_panel(p.w + right.whole * NR, p.out % NR, p.in, 1, p.w_in, 1.0f, last);
            right.last = last;
        }
    } else {
        float* made = pn::scratch(pn::SlotWeights, panels_of(p) * NR * p.in);
        if (!made) return false;
        pack(p.w, p.out, p.in, p.w_out, p.w_in, 1.0f, made);
        right.data = made, right.panel = p.in * NR, right.row = NR;
    }
    return true;
}

// How a result is split over the threads: even parts, several a thread, no wider than what a cache holds.
struct Split {
    int64_t first, count, row_block, row_blocks, panel_group, groups;

    Split() = default;
    Split(const pn_product& p, int64_t at, int64_t products) : first(at), count(products) {
        int64_t panels = panels_of(p), wanted = 4 * (p.threads > 1 ? p.threads : 1);
        row_blocks = (p.rows + RowBlock - 1) / RowBlock;
        row_block = ((p.rows + row_blocks - 1) / row_blocks + MR - 1) / MR * MR;
        row_blocks = (p.rows + row_block - 1) / row_block;
        groups = (panels + PanelGroup - 1) / PanelGroup;
        if (p.threads > 1 && groups * row_blocks < wanted) groups = least(panels, (wanted + row_blocks - 1) / row_blocks);
        panel_group = (panels + groups - 1) / groups;
        groups = (panels + panel_group - 1) / panel_group;
    }

    int64_t parts() const { return row_blocks * groups; }

    Part part(const pn_product& p, int64_t at) const {
        int64_t m = at / groups * row_block, n = at % groups * panel_group;
        return {m, least(p.rows, m + row_block), n, least(panels_of(p), n + panel_group)};
    }
};

static int product_int8(const pn_product& p, const int32_t*& rows);

PN_INLINE bool is_int8(const pn_product& p) { return p.packed && p.packed->int8; }

static int products(const pn_product* list, int count) {
    const int32_t* rows = nullptr;
    for (const pn_product* before = nullptr; count > 0 && is_int8(*list); before = list++, count--) {
        if (list->rows == 0 || list->out == 0) continue;
        if (!before || !same_rows(*before, *list)) rows = nullptr;
        if (int failed = product_int8(*list, rows)) return failed;
    }
    if (count == 0) return 0;
    Right rights[pn::MostProducts] = {};
    Split splits[pn::MostProducts] = {};
    int64_t floats = 0, parts = 0;
    double work = 0;
    int groups = 0;
    for (int i = 0; i < count; i++) {
        const pn_product& p = list[i];
        if (p.rows == 0 || p.out == 0) return 0;
        if (is_int8(p)) {
            // What is before it comes first: it may be added to that.
            int failed = products(list, i);
            return failed ? failed : products(list + i, count - i);
        }
        floats += up_floats(p);
        if (p.packed && p.packed->bfloat16 && !p.x_bfloat16) floats += p.rows * even_of(p) / 2 + 1 + L;
        work += (double)p.rows * p.out * (p.in + p.rank);
    }
    Supply supply{floats ? pn::scratch(pn::SlotRows, floats) : nullptr};
    if (floats && !supply.next) return -2;
    for (int i = 0; i < count; i++) {
        if (i > 0 && same_rows(list[i], list[i - 1])) rights[i].rounded_rows = rights[i - 1].rounded_rows;
        if (!prepare(list[i], rights[i], supply)) return -2;
        if (i > 0 && list[i].accumulate && list[i].y == list[i - 1].y) splits[groups - 1].count++;
        else splits[groups] = Split(list[i], i, 1), parts += splits[groups++].parts();
    }
    int threads = work < 250e3 ? 1 : list[0].threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t part = 0; part < parts; part++) {
        int64_t rest = part;
        const Split* split = splits;
        while (rest >= split->parts()) rest -= (split++)->parts();
        for (int64_t i = split->first; i < split->first + split->count; i++) product_part(list[i], rights[i], split->part(list[i], rest));
    }
    return 0;
}

}
