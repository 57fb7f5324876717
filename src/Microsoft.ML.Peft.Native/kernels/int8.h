// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Products in int8: weights by output row, symmetric; rows of x as they come, 0..255 with a place for zero. Sums are whole
// numbers, so all instruction sets have the same ones: bytes where the processor sums four products at once, pairs of 16 bits
// elsewhere (sums of two byte products would overflow the 16 bits that older instructions keep them in).
#pragma once
#ifdef PN_X86
#include <immintrin.h>
#endif
#include "product.h"

namespace PN_NAMESPACE {

#ifdef __AVX512VNNI__
constexpr int64_t Group = 4;
typedef uint8_t Activation8;
typedef int8_t Weight8;
#else
constexpr int64_t Group = 2;
typedef int16_t Activation8;
typedef int16_t Weight8;
#endif
typedef Activation8 Narrow __attribute__((vector_size(sizeof(Activation8) * PN_LANES), aligned(1), may_alias));

PN_INLINE int64_t groups_of(int64_t in) { return (in + Group - 1) / Group; }

// A weight begins with the scales and the sums of its columns, padded to whole panels; [groups, NR, Group] a panel follow.
struct Weights8 {
    const float* scales;
    const int32_t* sums;
    const int32_t* panels;

    Weights8(const pn_weights& w) {
        int64_t padded = (w.out + NR - 1) / NR * NR;
        scales = w.data, sums = (const int32_t*)w.data + padded, panels = sums + padded;
    }
};

PN_INLINE int32_t nearest(float x) {
    float moved = x + 12582912.0f;      // 1.5 * 2^23: the sum is rounded to a whole number, half to even
    int32_t bits;
    memcpy(&bits, &moved, sizeof bits);
    return bits - 0x4B400000;
}

static void pack_int8(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float* target) {
    int64_t padded = (out + NR - 1) / NR * NR, groups = groups_of(in);
    float* scales = target;
    int32_t* sums = (int32_t*)(target + padded);
    Weight8* panels = (Weight8*)(target + 2 * padded);
    memset(target, 0, sizeof(float) * padded * (2 + groups));
    for (int64_t n = 0; n < out; n++) {
        const float* row = source + n * out_stride;
        float largest = 0, poison = 0;
        for (int64_t k = 0; k < in; k++) {
            float size = row[k * in_stride] < 0 ? -row[k * in_stride] : row[k * in_stride];
            largest = size > largest ? size : largest;
            poison += size * 0.0f;
        }
        float inverse = largest > 1e-30f ? 127.0f / largest : 0;
        scales[n] = (largest > 1e-30f ? largest / 127.0f : 0) + poison;     // what is not a number comes out as such
        Weight8* panel = panels + n / NR * groups * NR * Group + n % NR * Group;
        for (int64_t k = 0; k < in; k++) {
            int32_t q = nearest(row[k * in_stride] * inverse);
            q = q > 127 ? 127 : q < -127 ? -127 : q;
            panel[k / Group * NR * Group + k % Group] = (Weight8)q;
            sums[n] += q;
        }
    }
}

// A row begins with its scale and the place of zero; `groups` words follow.
PN_INLINE int64_t row_words(int64_t in) { return groups_of(in) + 2; }

PN_INLINE void quantise_row(const float* x, int64_t count, int32_t* target) {
    vf low = {}, high = {}, bad = {};
    int64_t k = 0, whole = count / L * L;
    for (; k < whole; k += L) {
        vf v = load(x + k);
        low = v < low ? v : low, high = v > high ? v : high, bad += v * 0.0f;
    }
    if (k < count) {
        vf v = load(x + k, count - k);
        low = v < low ? v : low, high = v > high ? v : high, bad += v * 0.0f;
    }
    float bottom = -largest(-low), range = largest(high) - bottom, inverse = range > 1e-30f ? 255.0f / range : 0;
    int32_t zero = nearest(-bottom * inverse);
    zero = zero < 0 ? 0 : zero > 255 ? 255 : zero;
    float scale = (range > 1e-30f ? range / 255.0f : 0) + sum(bad);
    memcpy(target, &scale, sizeof scale);
    target[1] = zero;
    Activation8* to = (Activation8*)(target + 2);
    k = 0;
#ifdef __AVX512VNNI__
    for (; k < whole; k += L) {
        // The forms with a mask: the others make this compiler warn of its own header.
        vi q = (vi)_mm512_maskz_cvtps_epi32(0xffff, (__m512)(load(x + k) * inverse)) + zero;
        __m128i bytes = _mm512_maskz_cvtusepi32_epi8(0xffff, (__m512i)(q > 0 ? q : vi{}));
        memcpy(to + k, &bytes, sizeof bytes);
    }
#endif
    for (; k < count; k += L) {
        vf moved = load(x + k, count - k) * inverse + 12582912.0f;
        vi q;
        memcpy(&q, &moved, sizeof q);
        q += zero - 0x4B400000;
        q = q < 0 ? vi{} : q > 255 ? vi{} + 255 : q;
        Narrow narrow = __builtin_convertvector(q, Narrow);
        if (k < whole) memcpy(to + k, &narrow, sizeof narrow);
        else for (int64_t i = 0; i < count - k; i++) to[k + i] = narrow[i];
    }
    for (k = count; k < groups_of(count) * Group; k++) to[k] = 0;
}

static int quantise_rows(const float* x, int64_t rows, int64_t x_row, int64_t in, int32_t* target, int threads) {
    int64_t words = row_words(in);
    if (rows * in < 65536) threads = 1;
#pragma omp parallel for num_threads(threads) schedule(static) if (threads > 1)
    for (int64_t i = 0; i < rows; i++) quantise_row(x + i * x_row, in, target + i * words);
    return 0;
}

// c += the products of one group.
PN_INLINE vi add_products(vi c, int32_t a, vi b) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)c, _mm512_set1_epi32(a), (__m512i)b);
#elif defined(PN_X86) && PN_LANES == 16
    return c + (vi)_mm512_madd_epi16(_mm512_set1_epi32(a), (__m512i)b);
#elif defined(PN_X86) && PN_LANES == 8
    return c + (vi)_mm256_madd_epi16(_mm256_set1_epi32(a), (__m256i)b);
#elif defined(PN_X86)
    return c + (vi)_mm_madd_epi16(_mm_set1_epi32(a), (__m128i)b);
#else
    return c + (a & 0xffff) * ((b << 16) >> 16) + (a >> 16) * (b >> 16);
#endif
}

template <int Rows>
PN_INLINE void multiply_groups(vi (&c)[Rows][2], int64_t groups, const int32_t* a, int64_t row, const int32_t* b, int64_t ahead) {
    vi s[Rows][2] = {};
    for (int64_t g = 0; g < groups; g++) {
        fetch(b + g * NR + ahead);
        vi left, right;
        memcpy(&left, b + g * NR, sizeof left);
        memcpy(&right, b + g * NR + L, sizeof right);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; i++) {
            int32_t x = a[i * row + g];
            s[i][0] = add_products(s[i][0], x, left);
            s[i][1] = add_products(s[i][1], x, right);
        }
    }
    memcpy(c, s, sizeof s);
}

template <int Rows>
static void tile_int8(const pn_product& p, const Weights8& w, const int32_t* rows, const float* up, int64_t m, int64_t panel, bool last) {
    int64_t n = panel * NR, columns = least(NR, p.out - n), groups = groups_of(p.in), words = groups + 2;
    const int32_t* first = rows + m * words;
    vi s[Rows][2];
    multiply_groups<Rows>(s, groups, first + 2, words, w.panels + panel * groups * NR, last ? groups * NR : 0);
    vf c[Rows][2], left = load(w.scales + n), right = load(w.scales + n + L);
    vi sum_left, sum_right;
    memcpy(&sum_left, w.sums + n, sizeof sum_left);
    memcpy(&sum_right, w.sums + n + L, sizeof sum_right);
    for (int i = 0; i < Rows; i++) {
        float scale;
        memcpy(&scale, first + i * words, sizeof scale);
        int32_t zero = first[i * words + 1];
        c[i][0] = __builtin_convertvector(s[i][0] - zero * sum_left, vf) * (scale * left);
        c[i][1] = __builtin_convertvector(s[i][1] - zero * sum_right, vf) * (scale * right);
    }
    float* y = p.y + m * p.y_row + n;
    if (p.accumulate) add_rows<Rows>(c, y, p.y_row, columns);
    if (p.low) add_low_rank<Rows>(c, p, up + panel * p.rank * NR, m, n);
    finish<Rows>(c, p, m, n, columns);
    write<Rows>(c, y, p.y_row, columns);
}

template <int Rows = MR>
PN_INLINE void rows_int8(int64_t count, const pn_product& p, const Weights8& w, const int32_t* rows, const float* up, int64_t m, int64_t panel, bool last) {
    if (count == Rows) tile_int8<Rows>(p, w, rows, up, m, panel, last);
    else if constexpr (Rows > 1) rows_int8<Rows - 1>(count, p, w, rows, up, m, panel, last);
}

// `rows` are those of the product before, where it had the same; else null. They stay for the next one.
static int product_int8(const pn_product& p, const int32_t*& rows) {
    Weights8 w(*p.packed);
    Supply supply{pn::scratch(pn::SlotWeights, up_floats(p) + L)};
    if (!supply.next) return -2;
    const float* up = pack_up(p, supply);
    if (p.rows_int8) rows = p.rows_int8;
    if (!rows) {
        int32_t* made = (int32_t*)pn::scratch(pn::SlotRows, p.rows * row_words(p.in));
        if (!made) return -2;
        quantise_rows(p.x, p.rows, p.x_row, p.in, made, p.threads);
        rows = made;
    }
    Split split(p, 0, 1);
    int threads = (double)p.rows * p.out * (p.in / Group + p.rank) < 250e3 ? 1 : p.threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t part = 0; part < split.parts(); part++) {
        Part at = split.part(p, part);
        for (int64_t panel = at.p0; panel < at.p1; panel++)
            for (int64_t m = at.m0; m < at.m1; m += MR) rows_int8(least(MR, at.m1 - m), p, w, rows, up, m, panel, m + MR >= at.m1);
    }
    return 0;
}

}
