// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The one small product that all others are made of: up to MR rows times NR columns, sums held in registers. Each sum runs
// over k in one order, so that a row's result depends neither on the rows beside it nor on the number of threads.
#pragma once
#include "vec.h"

namespace PN_NAMESPACE {

// a(i, k) = a[i * row + k * in]
struct Left {
    const float* data;
    int64_t row, in;
    Left at(int64_t i, int64_t k) const { return {data + i * row + k * in, row, in}; }
};

// Two lines of the cache: what a step of k reads of a panel in AVX-512. Beyond the memory's end it does nothing.
PN_INLINE void fetch(const void* p) {
    __builtin_prefetch(p, 0, 2);
    if (sizeof(vf) == 64) __builtin_prefetch((const char*)p + 64, 0, 2);
}

// What lies `ahead` numbers further is fetched meanwhile: the panel that comes next.
template <int Rows, bool Together>
PN_INLINE void multiply(vf (&c)[Rows][2], int64_t count, Left a, const float* b, int64_t b_row, int64_t ahead = 0) {
    for (int64_t k = 0; k < count; k++) {
        fetch(b + k * b_row + ahead);
        vf left = load(b + k * b_row), right = load(b + k * b_row + L);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; i++) {
            float x = a.data[i * a.row + (Together ? k : k * a.in)];
            c[i][0] += x * left;
            c[i][1] += x * right;
        }
    }
}

template <int Rows>
PN_INLINE void multiply(vf (&c)[Rows][2], int64_t count, Left a, const float* b, int64_t b_row, int64_t ahead = 0) {
    if (a.in == 1) multiply<Rows, true>(c, count, a, b, b_row, ahead);
    else multiply<Rows, false>(c, count, a, b, b_row, ahead);
}

template <int Rows>
PN_INLINE void read(vf (&c)[Rows][2], const float* y, int64_t y_row, int64_t columns) {
    for (int i = 0; i < Rows; i++) {
        c[i][0] = load(y + i * y_row, columns);
        c[i][1] = columns > L ? load(y + i * y_row + L, columns - L) : vf{};
    }
}

template <int Rows>
PN_INLINE void write(const vf (&c)[Rows][2], float* y, int64_t y_row, int64_t columns) {
    for (int i = 0; i < Rows; i++) {
        store(y + i * y_row, c[i][0], columns);
        if (columns > L) store(y + i * y_row + L, c[i][1], columns - L);
    }
}

template <int Rows>
PN_INLINE void add_rows(vf (&c)[Rows][2], const float* y, int64_t y_row, int64_t columns) {
    vf other[Rows][2];
    read<Rows>(other, y, y_row, columns);
    for (int i = 0; i < Rows; i++) c[i][0] += other[i][0], c[i][1] += other[i][1];
}

// y[rows, columns] = factor a b, or added to y. Columns of b beyond `columns` must be readable.
template <int Rows>
static void block(int64_t count, Left a, const float* b, int64_t b_row, float factor, bool add, float* y, int64_t y_row, int64_t columns) {
    vf c[Rows][2] = {};
    multiply<Rows>(c, count, a, b, b_row);
    if (factor != 1.0f)
        for (int i = 0; i < Rows; i++) c[i][0] *= factor, c[i][1] *= factor;
    if (add) add_rows<Rows>(c, y, y_row, columns);
    write<Rows>(c, y, y_row, columns);
}

template <int Rows = MR>
PN_INLINE void rows_of(int64_t rows, int64_t count, Left a, const float* b, int64_t b_row, float factor, bool add, float* y, int64_t y_row, int64_t columns) {
    if (rows == Rows) block<Rows>(count, a, b, b_row, factor, add, y, y_row, columns);
    else if constexpr (Rows > 1) rows_of<Rows - 1>(rows, count, a, b, b_row, factor, add, y, y_row, columns);
}

// Panels b(k, n) = panels[(n / NR) * count * NR + k * NR + n % NR].
PN_INLINE void panels(int64_t rows, int64_t columns, int64_t count, Left a, const float* b, float factor, bool add, float* y, int64_t y_row) {
    for (int64_t n = 0; n < columns; n += NR)
        for (int64_t m = 0; m < rows; m += MR)
            rows_of(least(MR, rows - m), count, a.at(m, 0), b + n * count, NR, factor, add, y + m * y_row + n, y_row, least(NR, columns - n));
}

// Rows b(k, n) = b[k * b_row + n], the last of them readable to a full tile.
PN_INLINE void plain(int64_t rows, int64_t columns, int64_t count, Left a, const float* b, int64_t b_row, float factor, bool add, float* y, int64_t y_row) {
    for (int64_t n = 0; n < columns; n += NR)
        for (int64_t m = 0; m < rows; m += MR)
            rows_of(least(MR, rows - m), count, a.at(m, 0), b + n, b_row, factor, add, y + m * y_row + n, y_row, least(NR, columns - n));
}

#ifndef __clang__
// A square of L vectors on its diagonal, in log2(L) rounds: in each, half of the lanes change places with those of a partner.
template <int Step = 1>
PN_INLINE void transpose(vf (&r)[L]) {
    if constexpr (Step < L) {
        vi low, high;
        for (int j = 0; j < L; j++) low[j] = j & Step ? L + j - Step : j, high[j] = j & Step ? L + j : j + Step;
#pragma GCC unroll 16
        for (int i = 0; i < L; i++) {
            if (i & Step) continue;
            vf a = r[i], b = r[i + Step];
            r[i] = __builtin_shuffle(a, b, low);
            r[i + Step] = __builtin_shuffle(a, b, high);
        }
        transpose<2 * Step>(r);
    }
}

// Up to L columns of a panel whose k lie together in the source, zeros beyond them.
PN_INLINE void pack_together(const float* source, int64_t columns, int64_t in, int64_t out_stride, float factor, float* target) {
    int64_t k = 0;
    for (; k + L <= in; k += L) {
        vf r[L];
#pragma GCC unroll 16
        for (int n = 0; n < L; n++) r[n] = n < columns ? load(source + n * out_stride + k) : vf{};
        transpose(r);
#pragma GCC unroll 16
        for (int j = 0; j < L; j++) store(target + (k + j) * NR, factor * r[j]);
    }
    for (; k < in; k++)
        for (int64_t n = 0; n < L; n++) target[k * NR + n] = n < columns ? factor * source[n * out_stride + k] : 0;
}
#endif

// Panels of w(n, k) = factor * source[n * out_stride + k * in_stride], with zeros beyond the last column.
static void pack_panel(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float factor, float* target) {
    int64_t columns = least(NR, out), done = 0;
#ifndef __clang__
    if (in_stride == 1)
        for (; done < columns; done += L) pack_together(source + done * out_stride, least((int64_t)L, columns - done), in, out_stride, factor, target + done);
#endif
    if (columns < NR && done < NR)
        for (int64_t k = 0; k < in; k++) memset(target + k * NR + done, 0, sizeof(float) * (NR - done));
    if (out_stride == 1) {
        for (int64_t k = 0; k < in; k++)
            for (int64_t n = done; n < columns; n++) target[k * NR + n] = factor * source[k * in_stride + n];
        return;
    }
    // Eight of k at a time: what is written stays in the cache.
    for (int64_t k0 = 0; k0 < in && done < columns; k0 += 8)
        for (int64_t n = done; n < columns; n++)
            for (int64_t k = k0; k < least(in, k0 + 8); k++) target[k * NR + n] = factor * source[n * out_stride + k * in_stride];
}

static void pack(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float factor, float* target) {
    for (int64_t n = 0; n < out; n += NR)
        pack_panel(source + n * out_stride, out - n, in, out_stride, in_stride, factor, target + n * in);
}

}
