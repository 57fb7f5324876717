// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _lowRank = new()
    {
        ["adalora"] = () => new AdaLoraOptions { InitialRank = 4, TargetRank = 2, TotalSteps = 30, InitialSteps = 1, FinalSteps = 10 },
        ["adalora with its final choice"] = () => new AdaLoraOptions { Targets = ["query", "dense"], InitialRank = 5, TargetRank = 2, TotalSteps = 3, InitialSteps = 0, FinalSteps = 1, Dropout = 0.1, OrthogonalityWeight = 0.1 },
        ["adalora not exact"] = () => new AdaLoraOptions { InitialRank = 3, TargetRank = 3, TotalSteps = 40, StepsBetween = 5, InitWeights = false, Layers = [1] },
        ["loha"] = () => new LohaOptions { Rank = 4 },
        ["loha dropout and patterns"] = () => new LohaOptions { Targets = ["query", "dense"], Rank = 4, RankDropout = 0.1, ModuleDropout = 0.1, RankPattern = { ["query"] = 2 }, AlphaPattern = { [@"output\.dense"] = 3 } },
        ["loha uniform"] = () => new LohaOptions { Rank = 2, InitWeights = false },
        ["lokr"] = () => new LokrOptions { Rank = 2 },
        ["lokr both"] = () => new LokrOptions { Targets = ["all-linear"], Rank = 1, DecomposeBoth = true, DecomposeFactor = 4, RankDropout = 0.1, RankDropoutScale = true },
        ["lokr whole"] = () => new LokrOptions { Rank = 8, ExcludeTargets = ["value"] },
        ["lokr lycoris"] = () => new LokrOptions { Rank = 2, Init = "lycoris", Layers = [1] },
        ["lokr uniform"] = () => new LokrOptions { Rank = 2, Init = "false" },
        ["vera"] = () => new VeraOptions { Rank = 16, ProjectionKey = 5 },
        ["vera all-linear without matrices in the file"] = () => new VeraOptions { Targets = ["all-linear"], Rank = 8, SaveProjection = false, Dropout = 0.1, DInitial = 0.5 },
        ["vera not exact"] = () => new VeraOptions { Rank = 4, InitWeights = false, ExcludeTargets = ["value"] },
        ["pvera"] = () => new PveraOptions { Rank = 16, Dropout = 0.1 },
        ["vblora"] = () => new VbLoraOptions { Rank = 3, NumVectors = 12, VectorLength = 8 },
        ["vblora small files"] = () => new VbLoraOptions { Targets = ["query", "intermediate.dense"], Rank = 3, NumVectors = 12, VectorLength = 8, Topk = 3, SaveOnlyTopkWeights = true, Dropout = 0.1 },
        ["unilora"] = () => new UniLoraOptions { ThetaLength = 300, SaveIndices = true, InitThetaBound = 0.5 },
        ["unilora by seed"] = () => new UniLoraOptions { Targets = ["all-linear"], Rank = 2, ThetaLength = 37, ProjectionSeed = 3, Dropout = 0.1, InitThetaBound = 0.5 },
        ["randlora"] = () => new RandLoraOptions { Targets = ["query", "dense"], Rank = 12, Alpha = 12 },
        ["randlora sparse by seed"] = () => new RandLoraOptions { Rank = 16, Alpha = 16, Sparse = true, SaveProjection = false, ProjectionKey = 3, Dropout = 0.1 },
        ["randlora very sparse"] = () => new RandLoraOptions { Targets = ["all-linear"], Rank = 12, Alpha = 4, VerySparse = true, Dropout = 0.1 },
        ["tinylora"] = () => new TinyLoraOptions { U = 8 },
        ["tinylora tied"] = () => new TinyLoraOptions { Targets = ["query", "word_embeddings", "dense"], Rank = 3, U = 6, WeightTying = 0.5, SaveProjection = false, Dropout = 0.1 },
        ["tinylora uniform"] = () => new TinyLoraOptions { U = 4, Init = "uniform", InitVBound = 0.5, WeightTying = 1 },
    };
}
