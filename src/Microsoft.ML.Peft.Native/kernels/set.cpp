// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// All kernels for one instruction set: compiled once for each, with the set's flags and PN_NAMESPACE, PN_LANES, PN_TILE_ROWS.
#include "attention.h"
#include "embedding.h"
#include "int8.h"
#include "low_rank.h"
#include "norm.h"
#include "optimizer.h"
#include "product.h"

#ifdef __AVX512BF16__
#define PN_PACK_BFLOAT16 pack_bfloat16
#else
#define PN_PACK_BFLOAT16 nullptr
#endif

#define PN_TEXT(x) PN_QUOTE(x)
#define PN_QUOTE(x) #x

namespace PN_NAMESPACE {

extern const pn::Kernels kernels;
const pn::Kernels kernels = {
    PN_TEXT(PN_NAMESPACE), NR, pack, PN_PACK_BFLOAT16, Group, pack_int8, quantise_rows, products, low_rank_product, low_rank_gradient, attention_forward, attention_backward, norm_forward, norm_backward, embed,
    dropout, activation_forward, activation_backward, adamw, square_sum,
};

}
