// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// The C interface: picks the instruction set once, checks arguments, keeps the threads' memory.
#ifdef __linux__
#include <malloc.h>
#endif
#include <stdlib.h>
#include <string.h>
#include <new>
#include "kernels/kernels.h"

#define PN_DECLARE(set) namespace set { extern const pn::Kernels kernels; }
#ifdef PN_X86
PN_DECLARE(avx512bf16)
PN_DECLARE(avx512vnni)
PN_DECLARE(avx512)
PN_DECLARE(avx2)
#endif
PN_DECLARE(baseline)

namespace {

thread_local const char* last_error = "";

int refuse(const char* why) {
    last_error = why;
    return -1;
}

int done(int result) {
    if (result == -2) last_error = "out of memory";
    return result;
}

// ONEDNN_MAX_CPU_ISA masks instruction sets in the libraries that people know; it does the same here.
int highest_allowed() {
    const char* limit = getenv("PEFT_NATIVE_ISA");
    if (!limit || !*limit) limit = getenv("ONEDNN_MAX_CPU_ISA");
    if (!limit || !*limit || !strcasecmp(limit, "all") || !strcasecmp(limit, "default")) return 4;
    if (!strcasecmp(limit, "avx512bf16") || !strcasecmp(limit, "avx512_core_bf16") || !strncasecmp(limit, "avx512_core_fp16", 16) || !strncasecmp(limit, "avx512_core_amx", 15) || !strncasecmp(limit, "avx10", 5)) return 4;
    if (!strcasecmp(limit, "avx512vnni") || !strcasecmp(limit, "avx512_core_vnni")) return 3;
    if (!strncasecmp(limit, "avx512", 6)) return 2;
    return !strncasecmp(limit, "avx2", 4) ? 1 : 0;
}

const pn::Kernels& choose() {
#ifdef PN_X86
    int allowed = highest_allowed();
    if (allowed >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq"))
        return allowed < 3 || !__builtin_cpu_supports("avx512vnni") ? avx512::kernels
            : allowed < 4 || !__builtin_cpu_supports("avx512bf16") ? avx512vnni::kernels : avx512bf16::kernels;
    if (allowed >= 1 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
    return baseline::kernels;
}

// Activations are large and short-lived: glibc would map each anew from the system and give it back, a page fault for every
// 4 KiB (a twelfth of the time of scoring). Its own variables, where somebody has set them, stay in force.
constexpr int Kept = 256 << 20;
constexpr int MmapsBefore = 65536;     // glibc's own

bool may_keep() { return !getenv("MALLOC_MMAP_THRESHOLD_") && !getenv("MALLOC_TRIM_THRESHOLD_") && !getenv("GLIBC_TUNABLES"); }

void keep_memory() {
#ifdef __GLIBC__
    if (!may_keep()) return;
    mallopt(M_MMAP_THRESHOLD, 32 << 20);
    mallopt(M_TRIM_THRESHOLD, Kept);
#endif
}

const pn::Kernels& kernels() {
    static const pn::Kernels& chosen = (keep_memory(), choose());
    return chosen;
}

float* aligned(size_t floats) { return (float*)aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64 + 64); }

struct Memory {
    float* data[pn::Slots] = {};
    size_t floats[pn::Slots] = {};
    ~Memory() {
        for (float* part : data) free(part);
    }
};

}

float* pn::scratch(int slot, size_t floats) {
    static thread_local Memory memory;
    if (memory.floats[slot] < floats) {
        free(memory.data[slot]);
        memory.data[slot] = aligned(floats);
        memory.floats[slot] = memory.data[slot] ? floats : 0;
    }
    return memory.data[slot];
}

const char* pn_isa(void) { return kernels().name; }
int pn_abi(void) { return PN_ABI; }
const char* pn_error(void) { return last_error; }

// A step of training frees gigabytes and takes them again at once.
void pn_keep_memory(int all) {
#ifdef __GLIBC__
    kernels();
    if (!may_keep()) return;
    mallopt(M_TRIM_THRESHOLD, all ? -1 : Kept);
    // No threshold may be above the 32 MiB that are set; what a layer of a large batch keeps is more.
    mallopt(M_MMAP_MAX, all ? 0 : MmapsBefore);
    if (!all) malloc_trim(0);
#endif
}

enum Form { Float32, BFloat16, Int8 };

static pn_weights* room(const float* source, int64_t out, int64_t in, Form form) {
    if (!source || out < 1 || in < 1) {
        refuse("a matrix to pack needs rows and columns");
        return nullptr;
    }
    int64_t panel = kernels().panel, padded = (out + panel - 1) / panel * panel, floats;
    switch (form) {
        case BFloat16: floats = padded * ((in + 1) / 2); break;
        case Int8: floats = padded * (2 + (in + kernels().group - 1) / kernels().group); break;
        default: floats = padded * in;
    }
    float* data = aligned((size_t)floats);
    auto* weights = data ? new (std::nothrow) pn_weights{out, in, data, sizeof(float) * floats, form == BFloat16, form == Int8} : nullptr;
    if (weights) return weights;
    free(data);
    done(-2);
    return nullptr;
}

pn_weights* pn_pack(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride) {
    pn_weights* weights = room(source, out, in, Float32);
    if (weights) kernels().pack(source, out, in, out_stride, in_stride, 1.0f, weights->data);
    return weights;
}

int pn_has_bfloat16(void) { return kernels().pack_bfloat16 != nullptr; }

pn_weights* pn_pack_bfloat16(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride) {
    if (!kernels().pack_bfloat16) {
        refuse("this processor has no products in bfloat16");
        return nullptr;
    }
    pn_weights* weights = room(source, out, in, BFloat16);
    if (weights) kernels().pack_bfloat16(source, out, in, out_stride, in_stride, weights->data);
    return weights;
}

int pn_has_int8(void) { return kernels().group == 4; }

pn_weights* pn_pack_int8(const float* source, int64_t out, int64_t in, int64_t out_stride, int64_t in_stride) {
    if (in > PN_INT8_MOST) {
        refuse("sums of so many products in int8 would overflow");
        return nullptr;
    }
    pn_weights* weights = room(source, out, in, Int8);
    if (weights) kernels().pack_int8(source, out, in, out_stride, in_stride, weights->data);
    return weights;
}

int64_t pn_int8_words(int64_t in) { return (in + kernels().group - 1) / kernels().group + 2; }

int pn_quantise_run(const float* x, int64_t rows, int64_t x_row, int64_t in, int32_t* target, int32_t threads) {
    if (!x || !target || rows < 0 || in < 1) return refuse("rows to quantise need numbers and a result");
    return done(kernels().quantise(x, rows, x_row, in, target, threads));
}

void pn_free(pn_weights* weights) {
    if (!weights) return;
    free(weights->data);
    delete weights;
}

int64_t pn_bytes(const pn_weights* weights) { return weights ? (int64_t)weights->bytes : 0; }

static int check(const pn_product* p) {
    if (!p || !p->x || !p->y || (!p->packed && !p->w) || p->in < 1 || p->rows < 0) return refuse("a product needs both factors and a result");
    if (p->packed && (p->packed->out != p->out || p->packed->in != p->in)) return refuse("the packed weight has another shape");
    if (p->rows_int8 && !(p->packed && p->packed->int8)) return refuse("rows in int8 need a weight in int8");
    if (p->packed && p->packed->int8 && p->x_in != 1) return refuse("a weight in int8 takes rows whose numbers lie together");
    if (p->low && (!p->up || p->rank < 1)) return refuse("a low-rank term needs both factors");
    if (p->accumulate && (p->activation || p->dropout.threshold > 0 || p->y_bfloat16)) return refuse("what is added to is neither activated nor dropped out nor rounded");
    if (p->slopes && (!p->before || p->activation == PN_LINEAR)) return refuse("slopes need the activation and its argument");
    if (!(p->x_bfloat16 || p->y_bfloat16 || p->before_bfloat16)) return 0;
    if (!p->packed || !p->packed->bfloat16) return refuse("rows in bfloat16 go with weights in bfloat16");
    return p->x_bfloat16 && (p->x_in != 1 || p->x_row < (p->in + 1) / 2 * 2) ? refuse("rows in bfloat16 lie together, an even number of them") : 0;
}

int pn_product_run(const pn_product* p) {
    if (int refused = check(p)) return refused;
    return done(kernels().products(p, 1));
}

int pn_products_run(const pn_product* list, int32_t count) {
    if (!list || count < 1 || count > pn::MostProducts) return refuse("products at once are one to eight");
    for (int32_t i = 0; i < count; i++) {
        if (int refused = check(list + i)) return refused;
        if (!list[i].packed) return refuse("products at once have packed weights");
        if (i > 0 && list[i].accumulate && list[i].y == list[i - 1].y && (list[i].rows != list[i - 1].rows || list[i].out != list[i - 1].out))
            return refuse("products that are added up have one shape");
    }
    return done(kernels().products(list, count));
}

static int check(const pn_low_rank* l) {
    return l && l->x && l->a && l->low && l->rows >= 0 && l->in > 0 && l->rank > 0 ? 0 : refuse("a low-rank factor needs rows and a result");
}

int pn_low_rank_product(const pn_low_rank* l) {
    if (int refused = check(l)) return refused;
    return done(kernels().low_rank_product(*l));
}

int pn_low_rank_gradient(const pn_low_rank* l) {
    if (int refused = check(l)) return refused;
    return done(kernels().low_rank_gradient(*l));
}

static int check(const pn_attention* a) {
    if (!a || !a->q.data || !a->k.data || !a->v.data || a->heads < 1 || a->key_heads < 1 || a->heads % a->key_heads || a->width < 1 || a->keys < 1)
        return refuse("attention needs queries, keys and values, and as many heads of queries for each of keys");
    if (a->bias && a->bias_key != 1 && a->bias_key != 0) return refuse("a bias lies together over the keys, or is one number");
    return 0;
}

int pn_attention_forward(const pn_attention* a) {
    if (int refused = check(a)) return refused;
    return a->out.data ? done(kernels().attention_forward(*a)) : refuse("attention needs a result");
}

int pn_attention_backward(const pn_attention* a) {
    if (int refused = check(a)) return refused;
    if (!a->sums || !a->d_out.data || !a->d_q.data || !a->d_k.data || !a->d_v.data) return refuse("the backward pass of attention needs sums and places for gradients");
    return done(kernels().attention_backward(*a));
}

int pn_norm_forward(const pn_norm* n) {
    if (!n || !n->x || !n->y || !n->weight || n->width < 1) return refuse("a norm needs rows, weights and a result");
    return done(kernels().norm_forward(*n));
}

int pn_norm_backward(const pn_norm* n) {
    if (!n || !n->x || !n->d_y || !n->d_x || !n->weight || n->width < 1) return refuse("the backward pass of a norm needs rows, weights, gradients and a result");
    if (n->add && (n->add_every < 1 || n->add_first < 0 || n->add_first >= n->add_every)) return refuse("what is added to a norm's gradient needs the rows that it is added to");
    if (n->d_dropped && n->dropped_bfloat16 && !pn_has_bfloat16()) return refuse("this processor has no numbers in bfloat16");
    return done(kernels().norm_backward(*n));
}

static int check(const pn_embed* e) {
    if (!e || !e->y || !e->weight || e->rows < 0 || e->width < 1 || e->tables < 1 || e->tables > PN_TABLES) return refuse("embeddings need one to three tables, a norm and a result");
    for (int t = 0; t < e->tables; t++) {
        const pn_rows& table = e->table[t];
        if (!table.data || table.count < 1 || table.period < 1) return refuse("a table needs rows, and which of them are taken");
        if (!table.index && (table.first < 0 || table.first > table.count - table.period)) return refuse("rows that are counted have to be in the table");
    }
    return 0;
}

int pn_embed_run(const pn_embed* e) {
    if (int refused = check(e)) return refused;
    int result = kernels().embed(*e);
    if (result == -3) last_error = "an index is outside of its table";
    return done(result);
}

int pn_dropout_run(const float* x, float* y, int64_t count, const pn_dropout* dropout, int32_t threads) {
    return x && y && dropout ? done(kernels().dropout(x, y, count, *dropout, threads)) : refuse("dropout needs numbers, a key and a result");
}

int pn_activation_forward(const float* x, float* y, int64_t count, int32_t activation, int32_t threads) {
    return x && y ? done(kernels().activation_forward(x, y, count, activation, threads)) : refuse("an activation needs numbers and a result");
}

int pn_activation_backward(const float* x, const float* d_y, float* d_x, int64_t count, int32_t activation, const pn_dropout* dropout, int32_t threads) {
    static const pn_dropout none = {};
    return d_y && d_x && (x || activation == PN_LINEAR)
        ? done(kernels().activation_backward(x, d_y, d_x, count, activation, dropout ? *dropout : none, threads))
        : refuse("the gradient of an activation needs its argument and a result");
}

int pn_adamw_run(const pn_adamw* a) {
    return a && a->value && a->gradient && a->first && a->second && a->count >= 0 ? done(kernels().adamw(*a)) : refuse("a step needs values, gradients and moments");
}

int pn_square_sum(const float* x, int64_t count, double* result, int32_t threads) {
    return (x || count == 0) && result && count >= 0 ? done(kernels().square_sum(x, count, result, threads)) : refuse("a sum of squares needs numbers and a result");
}

static int run(const pn_step& step) {
    switch (step.kind) {
        case PN_PRODUCTS: return pn_products_run((const pn_product*)step.what, step.count);
        case PN_LOW_RANK_PRODUCT: return pn_low_rank_product((const pn_low_rank*)step.what);
        case PN_LOW_RANK_GRADIENT: return pn_low_rank_gradient((const pn_low_rank*)step.what);
        case PN_ATTENTION_FORWARD: return pn_attention_forward((const pn_attention*)step.what);
        case PN_ATTENTION_BACKWARD: return pn_attention_backward((const pn_attention*)step.what);
        case PN_NORM_FORWARD: return pn_norm_forward((const pn_norm*)step.what);
        case PN_NORM_BACKWARD: return pn_norm_backward((const pn_norm*)step.what);
        case PN_ACTIVATION_FORWARD: {
            auto* a = (const pn_activate*)step.what;
            return pn_activation_forward(a->x, a->y, a->count, a->activation, a->threads);
        }
        default: return refuse("a step is of no kind that there is");
    }
}

static int run(const pn_step* steps, const int32_t* ends, int32_t program) {
    for (int32_t i = program ? ends[program - 1] : 0; i < ends[program]; i++)
        if (int failed = steps[i].what ? run(steps[i]) : refuse("a step needs arguments")) return failed;
    return 0;
}

int pn_run(const pn_step* steps, const int32_t* ends, int32_t programs, int32_t threads) {
    if (!steps || !ends || programs < 1 || threads < 1) return refuse("programs need steps and threads");
    int result = 0;
    if (threads == 1 || programs == 1) {
        // Not even a region of one thread around them: threads of regions inside of it would be made anew each time.
        for (int32_t program = 0; program < programs && !result; program++) result = run(steps, ends, program);
        return result;
    }
    const char* why = "";
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
    for (int32_t program = 0; program < programs; program++)
        if (int failed = run(steps, ends, program)) {
#pragma omp critical(pn_failure)
            result = failed, why = last_error;
        }
    if (result) last_error = why;
    return result;
}
