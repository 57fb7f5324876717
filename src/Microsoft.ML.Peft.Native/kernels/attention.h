// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Attention of one row and head at a time: scores of a block of queries live in the thread's own memory, and padding is no
// work. The backward pass makes the shares again out of queries, keys and the sums that the forward pass left.
#pragma once
#include "kernels.h"
#include "tile.h"

namespace PN_NAMESPACE {

constexpr int64_t QueryBlock = 4 * MR;

// Rows of one head, readable to full tiles.
struct Rows {
    const float* data;
    int64_t row;
};

PN_INLINE Rows readable(const pn_heads& x, int64_t b, int64_t h, int64_t from, int64_t count, int64_t width, float* copy) {
    const float* data = x.data + b * x.batch + h * x.head + from * x.token;
    if (width % NR == 0) return {data, x.token};
    int64_t padded = (width + NR - 1) / NR * NR;
    for (int64_t i = 0; i < count; i++) {
        memcpy(copy + i * padded, data + i * x.token, sizeof(float) * width);
        memset(copy + i * padded + width, 0, sizeof(float) * (padded - width));
    }
    return {copy, padded};
}

// What one row and head need: how many keys count, and the thread's memory.
struct HeadTask {
    const pn_attention& a;
    int64_t b, h, keys, padded, wide;
    float scale;

    HeadTask(const pn_attention& attention, int64_t batch, int64_t head) : a(attention), b(batch), h(head) {
        int64_t valid = a.lengths ? a.lengths[b] : a.keys;
        // Where no key counts, all count alike.
        scale = valid > 0 ? a.scale : 0;
        keys = valid > 0 ? least(valid, a.keys) : a.keys;
        padded = (keys + NR - 1) / NR * NR;
        wide = (a.width + NR - 1) / NR * NR;
    }

    Left rows_of(const pn_heads& x, int64_t i) const { return {x.data + b * x.batch + h * x.head + i * x.token, x.token, 1}; }

    const float* bias_of(int64_t i) const { return a.bias ? a.bias + b * a.bias_batch + h * a.bias_head + i * a.bias_query : nullptr; }

    vf biased(vf s, const float* bias, int64_t j) const {
        if (!bias) return s;
        return s + (a.bias_key == 1 ? load(bias + j, keys - j) : all(bias[0]));
    }

    uint32_t place(int64_t i, int64_t j) const { return (uint32_t)(((b * a.heads + h) * a.queries + i) * a.keys + j); }
};

PN_INLINE vf only(vf v, int64_t count, float otherwise) {
    return count >= L ? v : (lanes() < (vi{} + (int32_t)count) ? v : all(otherwise));
}

// Scores of a query to its shares, in place; what makes them again goes to `sums`.
static void soften(const HeadTask& t, float* s, int64_t i, float* sums) {
    const float* bias = t.bias_of(i);
    vf high = all(-3.4028235e38f);
    for (int64_t j = 0; j < t.keys; j += L) {
        vf v = t.biased(load(s + j), bias, j);
        store(s + j, v);
        high = most(high, only(v, t.keys - j, -3.4028235e38f));
    }
    float top = largest(high);
    vf total = {};
    for (int64_t j = 0; j < t.keys; j += L) {
        vf e = only(exponential(load(s + j) - top), t.keys - j, 0);
        store(s + j, e);
        total += e;
    }
    float factor = 1 / sum(total);
    for (int64_t j = 0; j < t.keys; j += L) {
        vf e = load(s + j) * factor;
        if (t.a.dropout.threshold > 0) e *= kept(t.place(i, j), t.a.dropout);
        store(s + j, e);
    }
    if (sums) sums[0] = top, sums[1] = factor;
}

static bool attend(const pn_attention& a, int64_t b, int64_t h) {
    HeadTask t(a, b, h);
    int64_t key_head = h / (a.heads / a.key_heads);
    float* memory = pn::scratch(pn::SlotHeads, t.padded * a.width + QueryBlock * t.padded + t.keys * t.wide);
    if (!memory) return false;
    float *keys = memory, *scores = keys + t.padded * a.width, *copy = scores + QueryBlock * t.padded;
    pack(a.k.data + b * a.k.batch + key_head * a.k.head, t.keys, a.width, a.k.token, 1, 1.0f, keys);
    Rows values = readable(a.v, b, key_head, 0, t.keys, a.width, copy);
    float* out = (float*)a.out.data + b * a.out.batch + h * a.out.head;
    for (int64_t i0 = 0; i0 < a.queries; i0 += QueryBlock) {
        int64_t count = least(QueryBlock, a.queries - i0);
        panels(count, t.padded, a.width, t.rows_of(a.q, i0), keys, t.scale, false, scores, t.padded);
        float* sums = a.sums ? a.sums + 2 * ((b * a.heads + h) * a.queries + i0) : nullptr;
        for (int64_t i = 0; i < count; i++) soften(t, scores + i * t.padded, i0 + i, sums ? sums + 2 * i : nullptr);
        plain(count, a.width, t.keys, {scores, t.padded, 1}, values.data, values.row, 1.0f, false, out + i0 * a.out.token, a.out.token);
    }
    return true;
}

// Shares and gradients of scores of one query: `s` becomes the shares as they were applied, `g` the gradients of the products.
static void unsoften(const HeadTask& t, float* s, float* g, int64_t i, const float* sums) {
    const float* bias = t.bias_of(i);
    vf total = {};
    for (int64_t j = 0; j < t.keys; j += L) {
        vf share = only(exponential(t.biased(load(s + j), bias, j) - sums[0]) * sums[1], t.keys - j, 0), gradient = only(load(g + j), t.keys - j, 0);
        if (t.a.dropout.threshold > 0) gradient *= kept(t.place(i, j), t.a.dropout);
        store(s + j, share);
        store(g + j, gradient);
        total += share * gradient;
    }
    float mean = sum(total);
    for (int64_t j = 0; j < t.keys; j += L) {
        vf share = load(s + j);
        store(g + j, share * (load(g + j) - mean) * t.scale);
        if (t.a.dropout.threshold > 0) store(s + j, share * kept(t.place(i, j), t.a.dropout));
    }
}

struct BackwardMemory {
    float *keys, *values, *shares, *gradients, *key_rows, *query_rows, *out_rows;

    bool take(const HeadTask& t) {
        int64_t matrix = t.padded * t.a.width, block = QueryBlock * t.padded, tall = t.keys * t.wide, few = QueryBlock * t.wide;
        float* memory = pn::scratch(pn::SlotHeads, 2 * matrix + 2 * block + tall + 2 * few);
        if (!memory) return false;
        keys = memory, values = keys + matrix, shares = values + matrix, gradients = shares + block;
        key_rows = gradients + block, query_rows = key_rows + tall, out_rows = query_rows + few;
        return true;
    }
};

// One head of queries; `d_k` and `d_v` are added to where `add`.
static bool attend_backward(const pn_attention& a, int64_t b, int64_t h, int64_t key_head, bool add) {
    HeadTask t(a, b, h);
    BackwardMemory m;
    if (!m.take(t)) return false;
    pack(a.k.data + b * a.k.batch + key_head * a.k.head, t.keys, a.width, a.k.token, 1, 1.0f, m.keys);
    pack(a.v.data + b * a.v.batch + key_head * a.v.head, t.keys, a.width, a.v.token, 1, 1.0f, m.values);
    Rows keys = readable(a.k, b, key_head, 0, t.keys, a.width, m.key_rows);
    float* d_q = (float*)a.d_q.data + b * a.d_q.batch + h * a.d_q.head;
    float* d_k = (float*)a.d_k.data + b * a.d_k.batch + key_head * a.d_k.head;
    float* d_v = (float*)a.d_v.data + b * a.d_v.batch + key_head * a.d_v.head;
    for (int64_t i0 = 0; i0 < a.queries; i0 += QueryBlock, add = true) {
        int64_t count = least(QueryBlock, a.queries - i0);
        panels(count, t.padded, a.width, t.rows_of(a.q, i0), m.keys, t.scale, false, m.shares, t.padded);
        panels(count, t.padded, a.width, t.rows_of(a.d_out, i0), m.values, 1.0f, false, m.gradients, t.padded);
        const float* sums = a.sums + 2 * ((b * a.heads + h) * a.queries + i0);
        for (int64_t i = 0; i < count; i++) unsoften(t, m.shares + i * t.padded, m.gradients + i * t.padded, i0 + i, sums + 2 * i);
        Rows queries = readable(a.q, b, h, i0, count, a.width, m.query_rows), outs = readable(a.d_out, b, h, i0, count, a.width, m.out_rows);
        plain(count, a.width, t.keys, {m.gradients, t.padded, 1}, keys.data, keys.row, 1.0f, false, d_q + i0 * a.d_q.token, a.d_q.token);
        plain(t.keys, a.width, count, {m.gradients, 1, t.padded}, queries.data, queries.row, 1.0f, add, d_k, a.d_k.token);
        plain(t.keys, a.width, count, {m.shares, 1, t.padded}, outs.data, outs.row, 1.0f, add, d_v, a.d_v.token);
    }
    for (int64_t j = t.keys; j < a.keys; j++) {
        memset(d_k + j * a.d_k.token, 0, sizeof(float) * a.width);
        memset(d_v + j * a.d_v.token, 0, sizeof(float) * a.width);
    }
    return true;
}

PN_INLINE int attention_threads(const pn_attention& a) {
    return (double)a.batch * a.heads * a.queries * a.keys * a.width < 100e3 ? 1 : a.threads;
}

static int attention_forward(const pn_attention& a) {
    int failed = 0, threads = attention_threads(a);
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1) reduction(| : failed)
    for (int64_t task = 0; task < a.batch * a.heads; task++) failed |= !attend(a, task / a.heads, task % a.heads);
    return failed ? -2 : 0;
}

static int attention_backward(const pn_attention& a) {
    int failed = 0, threads = attention_threads(a);
    int64_t group = a.heads / a.key_heads;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4) if (threads > 1) reduction(| : failed)
    for (int64_t task = 0; task < a.batch * a.key_heads; task++) {
        int64_t key_head = task % a.key_heads;
        for (int64_t g = 0; g < group; g++)
            failed |= !attend_backward(a, task / a.key_heads, key_head * group + g, key_head, g > 0);
    }
    return failed ? -2 : 0;
}

}
