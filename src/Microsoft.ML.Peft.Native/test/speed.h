// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// How quick products and attention are: the best of many runs, in GFLOP/s.
#pragma once
#include <array>
#include <chrono>
#include "attention.h"
#include "checks.h"

static double seconds() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

static void speed() {
    for (int threads = 1; threads <= 2; threads++)
        for (auto [rows, out, in] : {std::array<int64_t, 3>{740, 384, 384}, {740, 1536, 384}, {740, 384, 1536}, {368, 384, 384}, {2048, 1536, 384}, {23, 1536, 384}}) {
            vector<float> x = numbers(rows * in), w = numbers(out * in), y(rows * out);
            pn_weights* packed = pn_pack(w.data(), out, in, in, 1);
            pn_product p{};
            p.rows = rows, p.out = out, p.in = in, p.x = x.data(), p.x_row = in, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = out, p.threads = threads;
            double best[2] = {1e9, 1e9};
            for (int n = 0; n < 200; n++) {
                p.activation = n % 2;
                double began = seconds();
                pn_product_run(&p);
                best[n % 2] = std::min(best[n % 2], seconds() - began);
            }
            printf("%d threads, %ld x %ld x %ld: %.0f GFLOP/s, with GELU %.0f\n", threads, rows, out, in, 2e-9 * rows * out * in / best[0], 2e-9 * rows * out * in / best[1]);
            pn_free(packed);
            for (bool bytes : {false, true}) {
                if (!bytes && !pn_has_bfloat16()) continue;
                p.packed = packed = (bytes ? pn_pack_int8 : pn_pack_bfloat16)(w.data(), out, in, in, 1);
                double quickest[2] = {1e9, 1e9};
                for (int n = 0; n < 200; n++) {
                    p.activation = n % 2;
                    double began = seconds();
                    pn_product_run(&p);
                    quickest[n % 2] = std::min(quickest[n % 2], seconds() - began);
                }
                printf("   %s %.0f, with GELU %.0f\n", bytes ? "int8" : "bfloat16", 2e-9 * rows * out * in / quickest[0], 2e-9 * rows * out * in / quickest[1]);
                pn_free(packed);
            }
        }
    for (int64_t tokens : {23, 64, 256}) {
        AttentionData t({32, 12, 12, tokens, tokens, 32, 0, true, 0});
        vector<float> out(t.q.size()), sums(2 * 32 * 12 * tokens), g = numbers(t.q.size()), d_q(t.q.size()), d_k(t.q.size()), d_v(t.q.size());
        t.a.out = t.places(out.data(), tokens, 12), t.a.sums = sums.data(), t.a.d_out = t.places(g.data(), tokens, 12);
        t.a.d_q = t.places(d_q.data(), tokens, 12), t.a.d_k = t.places(d_k.data(), tokens, 12), t.a.d_v = t.places(d_v.data(), tokens, 12), t.a.lengths = nullptr;
        double best[2] = {1e9, 1e9};
        for (int n = 0; n < 40; n++) {
            double began = seconds();
            if (n % 2) pn_attention_backward(&t.a);
            else pn_attention_forward(&t.a);
            best[n % 2] = std::min(best[n % 2], seconds() - began);
        }
        double work = 4e-9 * 32 * 12 * tokens * tokens * 32;
        printf("attention of %ld tokens: forward %.3f ms (%.0f GFLOP/s), backward %.3f ms (%.0f)\n", tokens, best[0] * 1e3, work / best[0], best[1] * 1e3, 2.5 * work / best[1]);
    }
}
