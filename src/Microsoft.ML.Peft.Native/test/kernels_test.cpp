// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.
// Every kernel against plain loops in double precision, and gradients against finite differences of those loops; odd sizes,
// one token, no token, padding. For valgrind and the sanitizers: kernels_test [seed]; kernels_test speed measures products.
// The cases of a kernel are in the header of its name.
#include <string.h>
#include <thread>
#include "attention.h"
#include "embeddings.h"
#include "int8.h"
#include "norms.h"
#include "optimizers.h"
#include "products.h"
#include "programs.h"
#include "speed.h"

// Many threads at once give the same bits.
static void concurrent() {
    AttentionData t({3, 4, 4, 23, 23, 32, 0, true, 0.1});
    vector<float> x = numbers(50 * 96), w = numbers(200 * 96), first(50 * 200), out(t.q.size());
    pn_weights* packed = pn_pack(w.data(), 200, 96, 96, 1);
    auto run = [&](vector<float>& y, vector<float>& context) {
        pn_product p{};
        p.rows = 50, p.out = 200, p.in = 96, p.x = x.data(), p.x_row = 96, p.x_in = 1, p.packed = packed, p.y = y.data(), p.y_row = 200, p.threads = 2, p.activation = PN_GELU;
        pn_product_run(&p);
        pn_attention a = t.a;
        a.out = t.places(context.data(), 23, 4);
        pn_attention_forward(&a);
    };
    run(first, out);
    vector<std::thread> threads;
    vector<int> wrong(8);
    for (int n = 0; n < 8; n++)
        threads.emplace_back([&, n] {
            for (int turn = 0; turn < 20; turn++) {
                vector<float> y(first.size()), context(out.size());
                run(y, context);
                wrong[n] += memcmp(y.data(), first.data(), y.size() * sizeof(float)) != 0 || memcmp(context.data(), out.data(), out.size() * sizeof(float)) != 0;
            }
        });
    for (std::thread& thread : threads) thread.join();
    for (int n : wrong) expect("concurrent", n, 0);
    pn_free(packed);
}

static void refusals() {
    pn_product p{};
    expect("a product without factors is refused", pn_product_run(&p) == -1 ? 0 : 1, 0);
    pn_attention a{};
    expect("attention without queries is refused", pn_attention_forward(&a) == -1 && pn_attention_backward(&a) == -1 ? 0 : 1, 0);
    pn_norm n{};
    expect("a norm without rows is refused", pn_norm_forward(&n) == -1 && pn_norm_backward(&n) == -1 ? 0 : 1, 0);
    expect("nothing to pack", pn_pack(nullptr, 1, 1, 1, 1) == nullptr ? 0 : 1, 0);
    pn_free(nullptr);
}

int main(int count, char** words) {
    printf("instruction set: %s\n", pn_isa());
    if (count > 1 && !strcmp(words[1], "speed")) {
        speed();
        return 0;
    }
    if (count > 1) generator.seed(atoi(words[1]));
    product_cases();
    program_cases();
    int8_cases();
    attention_cases();
    norm_cases();
    embedding_cases();
    optimizer_cases();
    concurrent();
    refusals();
    printf("%d checks, %d failures\n", checks, failures);
    return failures ? 1 : 0;
}
