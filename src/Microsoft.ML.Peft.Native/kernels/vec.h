// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Vectors by the compiler's own types: the same source becomes AVX-512, AVX2, SSE or NEON. Everything lives in a namespace
// of the instruction set, and nothing of the standard library's templates is used: the linker would otherwise pick one
// instruction set's copy for all.
#pragma once
#include <stdint.h>
#include <string.h>
#include "../peft_native.h"

#define PN_INLINE static inline __attribute__((always_inline))

namespace PN_NAMESPACE {

constexpr int L = PN_LANES;             // floats of a vector
constexpr int NR = 2 * L;               // columns of a tile
constexpr int MR = PN_TILE_ROWS;        // rows of a tile

typedef float vf __attribute__((vector_size(4 * PN_LANES), aligned(4), may_alias));
typedef int32_t vi __attribute__((vector_size(4 * PN_LANES), aligned(4), may_alias));
typedef uint32_t vu __attribute__((vector_size(4 * PN_LANES), aligned(4), may_alias));

PN_INLINE vf load(const float* p) { return *(const vf*)p; }
PN_INLINE void store(float* p, vf v) { *(vf*)p = v; }
PN_INLINE vf all(float x) { return vf{} + x; }

// The first n lanes; the rest is zero.
PN_INLINE vf load(const float* p, int64_t n) {
    if (n >= L) return load(p);
    vf v = {};
    for (int64_t i = 0; i < n; i++) v[i] = p[i];
    return v;
}

PN_INLINE void store(float* p, vf v, int64_t n) {
    if (n >= L) store(p, v);
    else for (int64_t i = 0; i < n; i++) p[i] = v[i];
}

// A NaN in the first stays: what is not a number must come out as such, so that training and merging can see it.
PN_INLINE vf most(vf a, vf b) { return a < b ? b : a; }
PN_INLINE vf least(vf a, vf b) { return a > b ? b : a; }
PN_INLINE int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

#ifdef __clang__
template <int Half> PN_INLINE vf folded(vf v) {
    vf other = {};
    for (int i = 0; i < Half; i++) other[i] = v[i + Half];
    return other;
}
#else
// The lanes from Half on, where the first ones were.
template <int Half> PN_INLINE vf folded(vf v) {
    vi from;
    for (int i = 0; i < L; i++) from[i] = (i + Half) % L;
    return __builtin_shuffle(v, from);
}
#endif

template <int Half = L / 2> PN_INLINE float sum(vf v) {
    v += folded<Half>(v);
    if constexpr (Half > 1) return sum<Half / 2>(v);
    else return v[0];
}

template <int Half = L / 2> PN_INLINE float largest(vf v) {
    vf other = folded<Half>(v);
    v = v > other ? v : other;
    if constexpr (Half > 1) return largest<Half / 2>(v);
    else return v[0];
}

PN_INLINE vi lanes() {
    vi v = {};
    for (int i = 0; i < L; i++) v[i] = i;
    return v;
}

// e^x to about two units in the last place, for x within -87.3 and 88.7.
PN_INLINE vf exponential_within(vf x) {
    vf whole = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;
    vf r = x - whole * 0.693359375f + whole * 2.12194440e-4f;
    vf p = r * 1.9841270e-4f + 1.3888889e-3f;
    p = p * r + 8.3333333e-3f;
    p = p * r + 4.1666667e-2f;
    p = p * r + 1.6666667e-1f;
    p = p * r + 0.5f;
    p = p * r * r + r + 1.0f;
    vi exponent = (__builtin_convertvector(whole, vi) + 127) << 23;
    vf power;
    memcpy(&power, &exponent, sizeof power);
    return p * power;
}

// The same for any x; 0 below -87.3.
PN_INLINE vf exponential(vf x) {
    vf y = exponential_within(least(most(x, all(-87.3f)), all(88.7f)));
    return x < all(-87.3f) ? vf{} : y;
}

// The normal distribution's Phi(x): e^-P(|x|) / 2 on the one side, its complement on the other; P was fitted to 4e-8.
PN_INLINE vf normal_share(vf x) {
    vf far = x < vf{} ? -x : x;
    vf z = least(far, all(6.0f));
    vf p = z * 1.9650119611469563e-06f - 2.7294534447719343e-05f;
    p = p * z + 1.2905029871035367e-04f;
    p = p * z + 9.491708624409512e-05f;
    p = p * z - 4.895989783108234e-03f;
    p = p * z + 3.638757765293121e-02f;
    p = p * z + 3.18298876285553e-01f;
    p = p * z + 7.978852987289429e-01f;
    vf tail = 0.5f * exponential_within(-(p * z));
    tail = far > all(6.0f) ? vf{} : tail;
    return x < vf{} ? tail : 1.0f - tail;
}

PN_INLINE vf hyperbolic_tangent(vf x) { return 1.0f - 2.0f / (1.0f + exponential(2.0f * x)); }

PN_INLINE vf activate(vf x, int kind) {
    switch (kind) {
        case PN_GELU: return x * normal_share(x);
        case PN_GELU_TANH: return 0.5f * x * (1.0f + hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x)));
        case PN_RELU: return x < vf{} ? vf{} : x;
        default: return x;
    }
}

PN_INLINE vf slope(vf x, int kind) {
    switch (kind) {
        case PN_GELU: return normal_share(x) + x * 0.3989422804014327f * exponential(-0.5f * x * x);
        case PN_GELU_TANH: {
            vf t = hyperbolic_tangent(0.7978845608028654f * (x + 0.044715f * x * x * x));
            return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * 0.7978845608028654f * (1.0f + 0.134145f * x * x);
        }
        case PN_RELU: return x > vf{} ? all(1.0f) : vf{};
        default: return all(1.0f);
    }
}

// The same two of GELU within 1e-4, for what is rounded by more than that, to bfloat16 or to int8: odd polynomials, exact where they end.
PN_INLINE vf gelu_roughly(vf x) {
    vf u = least(most(x, all(-4.2f)), all(4.2f)), z = u * u;
    vf p = z * 5.524179725e-11f - 5.262054348e-09f;
    p = p * z + 2.223551405e-07f;
    p = p * z - 5.553677056e-06f;
    p = p * z + 9.252873861e-05f;
    p = p * z - 1.102582086e-03f;
    p = p * z + 9.794963524e-03f;
    p = p * z - 6.631120294e-02f;
    p = p * z + 3.988864124e-01f;
    return x * (p * u + 0.5f);
}

PN_INLINE vf slope_roughly(vf x, int kind) {
    if (kind != PN_GELU) return slope(x, kind);
    vf u = least(most(x, all(-4.6f)), all(4.6f)), z = u * u;
    vf p = 2.175871705e-09f - z * 1.835309509e-11f;
    p = p * z - 1.134855552e-07f;
    p = p * z + 3.442561137e-06f;
    p = p * z - 6.776129885e-05f;
    p = p * z + 9.148234967e-04f;
    p = p * z - 8.704578504e-03f;
    p = p * z + 5.835130438e-02f;
    p = p * z - 2.646574378e-01f;
    p = p * z + 7.975457311e-01f;
    return p * u + 0.5f;
}

// 0 or the kept factor for the entries from `place` on: two rounds of a 32-bit finisher, half of the mixed key before each.
PN_INLINE vf kept(uint32_t place, const pn_dropout& d) {
    vi at = lanes();
    vu x;
    memcpy(&x, &at, sizeof x);
    x = (x + (place + d.first)) * 0x9E3779B9u + d.low;
    x ^= x >> 16;
    x *= 0x21F0AAADu;
    x ^= (x >> 15) ^ d.high;
    x *= 0x735A2D97u;
    x ^= x >> 15;
    vu high = x >> 8;
    vi drawn;
    memcpy(&drawn, &high, sizeof drawn);
    return drawn >= (vi{} + d.threshold) ? all(d.kept) : vf{};
}

}
