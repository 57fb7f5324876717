// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _lowRank = new()
    {
        ["loha"] = () => new LohaOptions { Rank = 4 },
        ["loha dropout and patterns"] = () => new LohaOptions { Targets = ["query", "dense"], Rank = 4, RankDropout = 0.1, ModuleDropout = 0.1, RankPattern = { ["query"] = 2 }, AlphaPattern = { [@"output\.dense"] = 3 } },
        ["loha uniform"] = () => new LohaOptions { Rank = 2, InitWeights = false },
        ["lokr"] = () => new LokrOptions { Rank = 2 },
        ["lokr both"] = () => new LokrOptions { Targets = ["all-linear"], Rank = 1, DecomposeBoth = true, DecomposeFactor = 4, RankDropout = 0.1, RankDropoutScale = true },
        ["lokr whole"] = () => new LokrOptions { Rank = 8, ExcludeTargets = ["value"] },
        ["lokr lycoris"] = () => new LokrOptions { Rank = 2, Init = "lycoris", Layers = [1] },
        ["lokr uniform"] = () => new LokrOptions { Rank = 2, Init = "false" },
    };
}
