// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The C interface of the kernels: plain pointers to float32 in row-major order, strides in elements. Nothing here knows a
// tensor library. Functions return 0, or a negative number where an argument is refused or memory is lacking; pn_error says
// which. All of them may be called from many threads at once; results do not depend on the number of threads.
#pragma once
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PN_ABI 8
#define PN_API __attribute__((visibility("default")))

enum pn_activation { PN_LINEAR = 0, PN_GELU = 1, PN_GELU_TANH = 2, PN_RELU = 3 };

// Which of the library's instruction sets runs here: "avx512bf16", "avx512vnni", "avx512", "avx2", "baseline".
PN_API const char* pn_isa(void);
PN_API int pn_abi(void);
PN_API const char* pn_error(void);
// With all, freed memory stays with the process whatever there is of it; without, what is much goes back, now and from now on.
PN_API void pn_keep_memory(int all);

// Dropout: an entry is kept where hash(place, key) is at least the threshold. Keys and the share are mixed by the caller.
typedef struct {
    uint32_t low, high;     // halves of the mixed key
    int32_t threshold;      // of 2^24; 0 for no dropout
    float kept;             // factor of what is kept
    uint32_t first;         // place of the first entry: of a part of a matrix, how many entries lie before it
} pn_dropout;

// A matrix laid out for products, made once and read by all.
typedef struct pn_weights pn_weights;

// Packs w(n, k) = source[n * out_stride + k * in_stride] for products x [rows, in] -> [rows, out].
PN_API pn_weights* pn_pack(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride);
// The same in bfloat16: products round both factors to it and sum in float32. Null where the processor has no such instruction,
// which pn_error says; pn_has_bfloat16 tells before.
PN_API pn_weights* pn_pack_bfloat16(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride);
PN_API int pn_has_bfloat16(void);
// The same in int8: each row of w has a scale of its own, rows of x are rounded to 256 steps as they come, sums are whole numbers.
// Equal on all processors but for the last bits; pn_has_int8 tells where products of bytes make it fast. Refused beyond
// PN_INT8_MOST columns, whose sums could overflow.
#define PN_INT8_MOST 65536
PN_API pn_weights* pn_pack_int8(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride);
PN_API int pn_has_int8(void);
// Rows of x in int8, pn_int8_words(in) words each, for several products of the same rows.
PN_API int64_t pn_int8_words(int64_t in);
PN_API int pn_quantise_run(const float* x, int64_t rows, int64_t x_row, int64_t in, int32_t* target, int32_t threads);
PN_API void pn_free(pn_weights* weights);
PN_API int64_t pn_bytes(const pn_weights* weights);

// y = dropout(activation(x w' + scale low up' + bias)), or added to what y holds.
typedef struct {
    int64_t rows, out, in;
    const float* x;
    int64_t x_row, x_in;            // x(i, k) = x[i * x_row + k * x_in]
    const pn_weights* packed;       // w, or null and
    const float* w;                 // w(n, k) = w[n * w_out + k * w_in]
    int64_t w_out, w_in;
    const int32_t* rows_int8;       // x as pn_quantise_run wrote it, for a weight in int8; or null
    const float* low;               // [rows, rank], rows low_row apart; null for none
    int64_t low_row, rank;
    const float* up;                // up(n, r) = up[n * up_out + r * up_rank]
    int64_t up_out, up_rank;
    float scale;
    int32_t accumulate;             // not together with an activation or dropout
    const float* bias;              // [out] or null
    int32_t activation;
    int32_t threads;
    float* before;                  // where the activation's argument goes, [rows, out]; or null
    float* y;                       // rows y_row apart
    int64_t y_row;
    pn_dropout dropout;
    pn_dropout low_dropout;         // of the low-rank term alone
    const float* residual;          // added last, rows residual_row apart; null for none
    int64_t residual_row;
    int32_t slopes;                 // nonzero: `before` is read, and the result multiplied by the activation's slope there
    int32_t x_bfloat16;             // what lies at x, y and before is in bfloat16; for weights packed in bfloat16 alone
    int32_t y_bfloat16;
    int32_t before_bfloat16;
} pn_product;

PN_API int pn_product_run(const pn_product* p);
// Several products with packed weights at once; one that is added to the result of the one before it waits for that.
PN_API int pn_products_run(const pn_product* list, int32_t count);

// What a low-rank factor [rank, in] has to do with rows that may be dropped out, at place row * in + k. As a product,
// low = scale dropout(x) a'; as the factor's gradient, a = scale low' dropout(x).
typedef struct {
    int64_t rows, in, rank;
    const float* x;
    int64_t x_row;                  // entries of a row lie together
    float* a;                       // a(r, k) = a[r * a_rank + k * a_in]
    int64_t a_rank, a_in;
    float* low;
    int64_t low_row;
    float scale;
    int32_t threads;
    pn_dropout dropout;
} pn_low_rank;

PN_API int pn_low_rank_product(const pn_low_rank* l);
PN_API int pn_low_rank_gradient(const pn_low_rank* l);

// Softmax(scale q k' + bias) v by heads; heads of queries that share a head of keys lie one after the other.
typedef struct {
    const float* data;
    int64_t batch, head, token;     // strides; the width lies together
} pn_heads;

typedef struct {
    int64_t batch, heads, key_heads, queries, keys, width;
    pn_heads q, k, v;
    const int32_t* lengths;         // [batch]: keys that count, the first ones; null for all
    const float* bias;              // null for none
    int64_t bias_batch, bias_head, bias_query, bias_key;
    float scale;
    int32_t threads;
    pn_dropout dropout;             // of the shares; place ((b * heads + h) * queries + i) * keys + j
    pn_heads out;                   // written by the forward pass, and read by none
    float* sums;                    // [batch, heads, queries, 2]: largest score, 1 / sum of exponentials; null where no backward pass follows
    pn_heads d_out, d_q, d_k, d_v;  // the backward pass reads the first and writes the others, all of their entries
} pn_attention;

PN_API int pn_attention_forward(const pn_attention* a);
PN_API int pn_attention_backward(const pn_attention* a);

// y = norm(x + add) * weight + bias over the last axis. The sum is written where asked for: the backward pass reads it.
typedef struct {
    int64_t rows, width;
    const float *x, *add;           // add may be null
    const float *weight, *bias;     // bias may be null
    float epsilon;
    int32_t root_mean_square;
    float *sum, *y;                 // sum may be null
    const float* d_y;               // backward: with x the sum
    float* d_x;
    int32_t threads;
    void* d_dropped;                // backward: d_x through the dropout of what was added, or null
    int32_t dropped_bfloat16;
    pn_dropout dropout;
    // backward: where there is an `add`, its row i is added to row i * add_every + add_first of d_x
    int64_t add_every, add_first;
} pn_norm;

PN_API int pn_norm_forward(const pn_norm* n);
PN_API int pn_norm_backward(const pn_norm* n);

// Rows of a table: row i of a result takes row index[i % period] of it, or first + i % period where there is no index.
typedef struct {
    const float* data;              // [count, width]
    int64_t count;
    const int64_t* index;           // [period] or null
    int64_t period, first;
} pn_rows;

// y = dropout(norm(the sum of one to three tables' rows, in their order) * weight + bias). -3 where an index is outside of its
// table, which is not read then.
#define PN_TABLES 3
typedef struct {
    int64_t rows, width;
    pn_rows table[PN_TABLES];
    int32_t tables;
    float epsilon;
    const float *weight, *bias;     // bias may be null
    float* y;
    int32_t threads;
    pn_dropout dropout;
} pn_embed;

PN_API int pn_embed_run(const pn_embed* e);

// y = x times the dropout's factors; x and y may be the same.
PN_API int pn_dropout_run(const float* x, float* y, int64_t count, const pn_dropout* dropout, int32_t threads);

// y = dropout(activation(x)), and its gradient d_x = d_y times the factors, times the activation's slope at x.
PN_API int pn_activation_forward(const float* x, float* y, int64_t count, int32_t activation, int32_t threads);
PN_API int pn_activation_backward(const float* x, const float* d_y, float* d_x, int64_t count, int32_t activation, const pn_dropout* dropout, int32_t threads);

// A step of Adam over numbers that lie together, all in one reading: with g = gradient_factor gradient + gradient_decay value,
// first = first_kept first + first_new g, second = second_kept second + second_new g g, and
// value = value_factor value - step first / (root_factor sqrt(second) + epsilon).
typedef struct {
    int64_t count;
    float* value;
    const float* gradient;
    float *first, *second;
    float* largest;                 // the second moment's maximum so far, in its place under the root; null for the moment itself
    float gradient_factor;          // of clipping; negative to climb
    float gradient_decay;           // of decay that goes into the gradient
    float value_factor;             // 1 - rate decay, of decay that does not
    float first_kept, first_new, second_kept, second_new;   // beta and 1 - beta
    float step;                     // rate / (1 - beta1^t)
    float root_factor;              // 1 / sqrt(1 - beta2^t)
    float epsilon;
    int32_t threads;
} pn_adamw;

PN_API int pn_adamw_run(const pn_adamw* a);
// The sum of the squares of all numbers.
PN_API int pn_square_sum(const float* x, int64_t count, double* result, int32_t threads);

// One of the calls above that rows pass through. Programs run at once, a thread each, and their steps in order: threads meet once at
// the end instead of after each step. Steps of several programs should ask for one thread. Where one fails, the result is that of a
// failing step.
enum pn_kind {
    PN_PRODUCTS = 0, PN_LOW_RANK_PRODUCT = 1, PN_LOW_RANK_GRADIENT = 2, PN_ATTENTION_FORWARD = 3, PN_ATTENTION_BACKWARD = 4,
    PN_NORM_FORWARD = 5, PN_NORM_BACKWARD = 6, PN_ACTIVATION_FORWARD = 7
};

typedef struct {
    int32_t kind, count;    // how many products; 1 for all else
    const void* what;       // pn_product, pn_low_rank, pn_attention, pn_norm, pn_activate
} pn_step;

typedef struct {
    const float* x;
    float* y;
    int64_t count;
    int32_t activation, threads;
} pn_activate;

// Steps of program i end before ends[i], and begin where those of the one before end.
PN_API int pn_run(const pn_step* steps, const int32_t* ends, int32_t programs, int32_t threads);

#ifdef __cplusplus
}
#endif
