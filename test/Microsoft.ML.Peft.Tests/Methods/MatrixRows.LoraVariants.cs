// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _loraVariants = new()
    {
        ["kasa"] = () => new LoraOptions { Variant = new KasaVariant(), Rank = 4 },
        ["bd-lora"] = () => new LoraOptions
        {
            Targets = ["query", "value", "intermediate.dense"],
            Variant = new BlockDiagonalVariant { Blocks = 4, BlocksInA = ["intermediate", "query"], BlocksInB = ["value"] },
            BiasMode = BiasMode.LoraOnly,
        },
        ["alora"] = () => new LoraOptions { Variant = new ActivatedVariant { InvocationTokens = [7] }, Targets = ["query", "value", "dense"], Rank = 4 },
        ["velora"] = () => new LoraOptions { Variant = new VeloraVariant { Groups = 5, Scale = 1.5 }, Dropout = 0 },
        ["monteclora"] = () => new LoraOptions { Variant = new MonteCloraVariant { Samples = 3, Scaler = 0.05 } },
        ["qalora"] = () => new LoraOptions { Variant = new QaLoraVariant { GroupSize = 8 }, Targets = ["query", "dense"] },
        ["poly"] = () => new PolyOptions { Rank = 3, Splits = 4 },
        ["lora riemannian"] = () => new LoraOptions { RiemannianDamping = 0.1 },
        ["lora eva, before it is made"] = () => new LoraOptions { DataStart = new EvaStart() },
        ["lora trained tokens"] = () => new LoraOptions { TrainableTokens = { [""] = [5, 2, 97] } },
        ["lora trained tokens of named tables"] = () => new LoraOptions { TrainableTokens = { ["word_embeddings"] = [3, 4], ["token_type_embeddings"] = [0] } },
    };
}
