// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The small product in bfloat16: two of k in one instruction, sums in float32.
#pragma once
#include "tile.h"
#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

namespace PN_NAMESPACE {

#ifdef __AVX512BF16__
PN_INLINE uint16_t rounded(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return (uint16_t)((bits & 0x7fffffff) > 0x7f800000 ? (bits >> 16) | 0x40 : (bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

// Rows of x in bfloat16, an even number of k each.
PN_INLINE void round_row(const float* x, int64_t x_in, int64_t count, uint16_t* target) {
    int64_t k = 0;
    if (x_in == 1)
        for (; k + 32 <= count; k += 32) {
            __m512bh v = _mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + k + 16), _mm512_loadu_ps(x + k));
            memcpy(target + k, &v, sizeof v);
        }
    for (; k < count; k++) target[k] = rounded(x[k * x_in]);
    if (count % 2) target[count] = 0;
}

static void pack_bfloat16(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float* target) {
    int64_t even = (in + 1) / 2 * 2;
    uint16_t* panel = (uint16_t*)target;
    memset(target, 0, sizeof(uint16_t) * even * ((out + NR - 1) / NR * NR));
    for (int64_t n0 = 0; n0 < out; n0 += NR, panel += even * NR)
        for (int64_t k0 = 0; k0 < in; k0 += 8)
            for (int64_t n = 0; n < least(NR, out - n0); n++)
                for (int64_t k = k0; k < least(in, k0 + 8); k++)
                    panel[k / 2 * 2 * NR + 2 * n + k % 2] = rounded(source[(n0 + n) * out_stride + k * in_stride]);
}

// `pairs` of k; a rows `row` apart.
template <int Rows>
PN_INLINE void multiply_pairs(vf (&c)[Rows][2], int64_t pairs, const uint16_t* a, int64_t row, const uint16_t* b, int64_t ahead) {
    __m512 s[Rows][2];
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++) s[i][0] = (__m512)c[i][0], s[i][1] = (__m512)c[i][1];
    for (int64_t k = 0; k < pairs; k++) {
        fetch(b + 2 * k * NR + ahead);
        __m512bh left = (__m512bh)_mm512_loadu_si512(b + 2 * k * NR), right = (__m512bh)_mm512_loadu_si512(b + 2 * k * NR + 2 * L);
#pragma GCC unroll 16
        for (int i = 0; i < Rows; i++) {
            int32_t pair;
            memcpy(&pair, a + i * row + 2 * k, sizeof pair);
            __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
            s[i][0] = _mm512_dpbf16_ps(s[i][0], x, left);
            s[i][1] = _mm512_dpbf16_ps(s[i][1], x, right);
        }
    }
#pragma GCC unroll 16
    for (int i = 0; i < Rows; i++) c[i][0] = (vf)s[i][0], c[i][1] = (vf)s[i][1];
}

// The first n lanes of 16, rounded, and back.
PN_INLINE void store_rounded(uint16_t* p, vf v, int64_t n) {
    __m256bh r = _mm512_cvtneps_pbh((__m512)v);
    if (n >= L) memcpy(p, &r, sizeof r);
    else memcpy(p, &r, sizeof(uint16_t) * n);
}

PN_INLINE vf load_rounded(const uint16_t* p, int64_t n) {
    typedef uint16_t halves __attribute__((vector_size(2 * PN_LANES)));
    halves r = {};
    if (n >= L) memcpy(&r, p, sizeof r);
    else memcpy(&r, p, sizeof(uint16_t) * n);
    vu wide = __builtin_convertvector(r, vu) << 16;
    vf v;
    memcpy(&v, &wide, sizeof v);
    return v;
}
#else
// Never reached: the interface refuses bfloat16 on this instruction set.
PN_INLINE void store_rounded(uint16_t*, vf, int64_t) {}
PN_INLINE vf load_rounded(const uint16_t*, int64_t) { return vf{}; }
#endif

}
