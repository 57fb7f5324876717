// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// A step of Adam in one reading of what it changes, and the sum of squares that clipping needs.
#pragma once
#include <math.h>
#include "kernels.h"
#include "norm.h"

namespace PN_NAMESPACE {

// Whole vectors, and everywhere the same code: a number's bits do not depend on where a stretch begins or ends.
template <bool Largest>
static __attribute__((noinline)) void adamw_whole(const pn_adamw& a, int64_t count, float* __restrict value, const float* __restrict gradient, float* __restrict first, float* __restrict second, float* __restrict largest) {
    for (int64_t i = 0; i < count / L * L; i++) {
        float g = gradient[i] * a.gradient_factor + value[i] * a.gradient_decay;
        float m = first[i] * a.first_kept + g * a.first_new;
        float v = second[i] * a.second_kept + a.second_new * g * g, divisor = v;
        first[i] = m;
        second[i] = v;
        if (Largest) largest[i] = divisor = v < largest[i] ? largest[i] : v;    // a NaN stays
        value[i] = value[i] * a.value_factor - a.step * m / (sqrtf(divisor) * a.root_factor + a.epsilon);
    }
}

PN_INLINE void adamw_piece(const pn_adamw& a, int64_t from, int64_t to) {
    auto* whole = a.largest ? adamw_whole<true> : adamw_whole<false>;
    int64_t rest = (to - from) % L, at = to - rest;
    whole(a, to - from, a.value + from, a.gradient + from, a.first + from, a.second + from, a.largest ? a.largest + from : nullptr);
    if (rest == 0) return;
    float part[5][L] = {};
    float* all[] = {a.value, a.first, a.second, a.largest};
    for (int n = 0; n < 4; n++)
        if (all[n]) memcpy(part[n], all[n] + at, rest * sizeof(float));
    memcpy(part[4], a.gradient + at, rest * sizeof(float));
    whole(a, L, part[0], part[4], part[1], part[2], part[3]);
    for (int n = 0; n < 4; n++)
        if (all[n]) memcpy(all[n] + at, part[n], rest * sizeof(float));
}

static int adamw(const pn_adamw& a) {
    int threads = pieces_threads(a.count, a.threads);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t from = 0; from < a.count; from += Piece) adamw_piece(a, from, least(a.count, from + Piece));
    return 0;
}

// Eight sums side by side, in double: no square of a float32 is too large or too small for it.
PN_INLINE double squares(const float* x, int64_t count) {
    double sums[8] = {};
    int64_t i = 0;
    for (; i + 8 <= count; i += 8)
        for (int n = 0; n < 8; n++) sums[n] += (double)x[i + n] * x[i + n];
    for (int n = 0; i + n < count; n++) sums[n] += (double)x[i + n] * x[i + n];
    return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}

// Pieces have the same bounds, and are added in the same order, whatever the threads.
static int square_sum(const float* x, int64_t count, double* result, int wanted) {
    int64_t pieces = (count + Piece - 1) / Piece;
    auto* sums = (double*)pn::scratch(pn::SlotRows, 2 * (size_t)pieces);
    if (!sums && pieces) return -2;
    int threads = pieces_threads(count, wanted);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t piece = 0; piece < pieces; piece++) sums[piece] = squares(x + piece * Piece, least(Piece, count - piece * Piece));
    *result = 0;
    for (int64_t piece = 0; piece < pieces; piece++) *result += sums[piece];
    return 0;
}

}
