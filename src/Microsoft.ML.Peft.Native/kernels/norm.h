// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Norms over the last axis with the residual sum before them, dropout, activations: what is bound by memory, in one reading.
#pragma once
#include <math.h>
#include "bfloat16.h"
#include "kernels.h"

namespace PN_NAMESPACE {

// Mean and 1 / deviation of a row; the mean is 0 for the root of the mean square.
PN_INLINE void moments(const float* x, int64_t width, float epsilon, bool root_mean_square, float& mean, float& rate) {
    mean = 0;
    if (!root_mean_square) {
        vf total = {};
        for (int64_t j = 0; j < width; j += L) total += load(x + j, width - j);
        mean = sum(total) / width;
    }
    vf square = {};
    for (int64_t j = 0; j + L <= width; j += L) {
        vf d = load(x + j) - mean;
        square += d * d;
    }
    float rest = 0;
    for (int64_t j = width / L * L; j < width; j++) rest += (x[j] - mean) * (x[j] - mean);
    rate = 1 / sqrtf((sum(square) + rest) / width + epsilon);
}

// y = norm(x) * weight + bias of one row; x and y may be the same.
PN_INLINE void norm_row(const float* x, float* y, int64_t width, const float* weight, const float* bias, float epsilon, bool root_mean_square) {
    float mean, rate;
    moments(x, width, epsilon, root_mean_square, mean, rate);
    for (int64_t j = 0; j < width; j += L) {
        vf v = (load(x + j, width - j) - mean) * rate * load(weight + j, width - j);
        if (bias) v += load(bias + j, width - j);
        store(y + j, v, width - j);
    }
}

static int norm_forward(const pn_norm& n) {
    int threads = n.rows * n.width < 32768 ? 1 : n.threads, failed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1) reduction(| : failed)
    for (int64_t i = 0; i < n.rows; i++) {
        const float* x = n.x + i * n.width;
        float* y = n.y + i * n.width;
        if (n.add) {
            float* s = n.sum ? n.sum + i * n.width : y;
            const float* add = n.add + i * n.width;
            for (int64_t j = 0; j < n.width; j += L) store(s + j, load(x + j, n.width - j) + load(add + j, n.width - j), n.width - j);
            x = s;
        }
        norm_row(x, y, n.width, n.weight, n.bias, n.epsilon, n.root_mean_square);
    }
    return failed ? -2 : 0;
}

static int norm_backward(const pn_norm& n) {
    int threads = n.rows * n.width < 32768 ? 1 : n.threads;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < n.rows; i++) {
        const float *x = n.x + i * n.width, *d_y = n.d_y + i * n.width;
        float* d_x = n.d_x + i * n.width;
        float mean, rate;
        moments(x, n.width, n.epsilon, n.root_mean_square, mean, rate);
        vf plain = {}, turned = {};
        for (int64_t j = 0; j < n.width; j += L) {
            vf g = load(d_y + j, n.width - j) * load(n.weight + j, n.width - j);
            plain += g;
            turned += g * (load(x + j, n.width - j) - mean) * rate;
        }
        float level = n.root_mean_square ? 0 : sum(plain) / n.width, tilt = sum(turned) / n.width;
        const float* add = n.add && i % n.add_every == n.add_first ? n.add + i / n.add_every * n.width : nullptr;
        for (int64_t j = 0; j < n.width; j += L) {
            vf g = load(d_y + j, n.width - j) * load(n.weight + j, n.width - j);
            vf normed = (load(x + j, n.width - j) - mean) * rate;
            vf d = (g - level - normed * tilt) * rate;
            if (add) d += load(add + j, n.width - j);
            store(d_x + j, d, n.width - j);
            if (!n.d_dropped) continue;
            int64_t at = i * n.width + j;
            if (n.dropout.threshold > 0) d *= kept((uint32_t)at, n.dropout);
            if (n.dropped_bfloat16) store_rounded((uint16_t*)n.d_dropped + at, d, n.width - j);
            else store((float*)n.d_dropped + at, d, n.width - j);
        }
    }
    return 0;
}

constexpr int64_t Piece = 8192;

PN_INLINE int pieces_threads(int64_t count, int threads) { return count < 4 * Piece ? 1 : threads; }

static int dropout(const float* x, float* y, int64_t count, const pn_dropout& d, int wanted) {
    int threads = pieces_threads(count, wanted);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t from = 0; from < count; from += Piece) {
        int64_t to = least(count, from + Piece);
        for (int64_t j = from; j < to; j += L) store(y + j, load(x + j, to - j) * kept((uint32_t)j, d), to - j);
    }
    return 0;
}

static int activation_forward(const float* x, float* y, int64_t count, int kind, int wanted) {
    int threads = pieces_threads(count, wanted);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t from = 0; from < count; from += Piece) {
        int64_t to = least(count, from + Piece);
        for (int64_t j = from; j < to; j += L) store(y + j, activate(load(x + j, to - j), kind), to - j);
    }
    return 0;
}

static int activation_backward(const float* x, const float* d_y, float* d_x, int64_t count, int kind, const pn_dropout& d, int wanted) {
    int threads = pieces_threads(count, wanted);
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t from = 0; from < count; from += Piece) {
        int64_t to = least(count, from + Piece);
        for (int64_t j = from; j < to; j += L) {
            vf g = load(d_y + j, to - j);
            if (kind != PN_LINEAR) g *= slope(load(x + j, to - j), kind);
            if (d.threshold > 0) g *= kept((uint32_t)j, d);
            store(d_x + j, g, to - j);
        }
    }
    return 0;
}

}
