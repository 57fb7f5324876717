// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// What each instruction set offers, and what all of them share.
#pragma once
#include <stddef.h>
#include "../peft_native.h"

struct pn_weights {
    int64_t out, in;
    float* data;    // panels of the instruction set's tile width, [in, width] each, padded with zeros
    size_t bytes;
    bool bfloat16;  // pairs of k side by side: [in / 2, width, 2]
    bool int8;      // scales and sums of the columns, then groups of k side by side; see int8.h
};

namespace pn {

struct Kernels {
    const char* name;
    int64_t panel;  // columns of a panel
    void (*pack)(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float factor, float* target);
    void (*pack_bfloat16)(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float* target);   // null where the set has none
    int64_t group;  // numbers in the 32 bits of a group: 4 where there are products of bytes
    void (*pack_int8)(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride, float* target);
    int (*quantise)(const float* x, int64_t rows, int64_t x_row, int64_t in, int32_t* target, int threads);
    int (*products)(const pn_product* list, int count);
    int (*low_rank_product)(const pn_low_rank& l);
    int (*low_rank_gradient)(const pn_low_rank& l);
    int (*attention_forward)(const pn_attention& a);
    int (*attention_backward)(const pn_attention& a);
    int (*norm_forward)(const pn_norm& n);
    int (*norm_backward)(const pn_norm& n);
    int (*embed)(const pn_embed& e);
    int (*dropout)(const float* x, float* y, int64_t count, const pn_dropout& d, int threads);
    int (*activation_forward)(const float* x, float* y, int64_t count, int kind, int threads);
    int (*activation_backward)(const float* x, const float* d_y, float* d_x, int64_t count, int kind, const pn_dropout& d, int threads);
    int (*adamw)(const pn_adamw& a);
    int (*square_sum)(const float* x, int64_t count, double* result, int threads);
};

// Memory of the calling thread that stays for its next call; a slot each for what is needed at once. Null where there is none left.
float* scratch(int slot, size_t floats);

constexpr int SlotWeights = 0, SlotHeads = 1, SlotRows = 2, Slots = 3, MostProducts = 8;

}
