// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _relatives = new()
    {
        ["hira"] = () => new HiraOptions { Rank = 4 },
        ["hira dropout and table"] = () => new HiraOptions { Rank = 4, Dropout = 0.1, Targets = ["query", "dense", "word_embeddings"], RankPattern = { ["dense"] = 2 } },
        ["glora"] = () => new GloraOptions { Rank = 3 },
        ["glora vectors"] = () => new GloraOptions { WeightSupport = GloraSupport.Vector, PromptSupport = GloraSupport.Vector, BiasSupport = GloraSupport.Vector },
        ["glora of the weight"] = () => new GloraOptions { WeightSupport = GloraSupport.Constant, PromptSupport = GloraSupport.None, BiasSupport = GloraSupport.None, Targets = ["query", "dense"] },
        ["gralora"] = () => new GraloraOptions { Rank = 4 },
        ["gralora hybrid"] = () => new GraloraOptions { Rank = 4, Blocks = 4, GeneralRank = 2, Dropout = 0.1, Targets = ["query", "dense"] },
        ["delora"] = () => new DeloraOptions(),
        ["delora patterns"] = () => new DeloraOptions { Rank = 3, Targets = ["query", "dense"], Dropout = 0.1, RankPattern = { ["dense"] = 2 }, LambdaPattern = { ["query"] = 4 } },
        ["deft"] = () => new DeftOptions { Rank = 3 },
        ["deft qr"] = () => new DeftOptions { Rank = 3, Decomposition = DeftDecomposition.Qr, Alpha = 6, Targets = ["query", "dense"], Dropout = 0.1 },
        ["para"] = () => new DeftOptions { Rank = 3, Para = true, Decomposition = DeftDecomposition.Qr },
        ["frod"] = () => new FrodOptions { SparseRate = 0.03, Targets = ["query", "AttentionOutput"] },
        ["frod dropout and one layer"] = () => new FrodOptions { SparseRate = 0.1, Dropout = 0.1, Targets = ["intermediate.dense", "output.dense"], Layers = [1] },
        ["adamss dynamic"] = () => new AdamssOptions { Rank = 8, Subspaces = 5, SubspaceRank = 4, DynamicRank = true, Threshold = 0.3, TargetSubspaces = 4, FirstStep = 0, LastStep = 4, StepsBetween = 1, Targets = ["query", "dense"] },
        ["adamss"] = () => new AdamssOptions { Rank = 8, Subspaces = 3, SubspaceRank = 2, Targets = ["query", "dense"] },
        ["lily"] = () => new LilyOptions { Rank = 4, Stride = 2, Experts = 3 },
        ["lily of layers"] = () => new LilyOptions { Rank = 4, Scaling = 1.5, Targets = ["query", "dense"] },
        ["miss"] = () => new MissOptions { Rank = 5, Dropout = 0.1 },
        ["miss mini"] = () => new MissOptions { Rank = 4, Mode = MissMode.Mini, MiniRank = 8 },
        ["miss bat"] = () => new MissOptions { Rank = 4, Mode = MissMode.Bat, Targets = ["query", "dense"] },
        ["bone"] = () => new BoneOptions { Rank = 4 },
        ["peanut"] = () => new PeanutOptions { Rank = 4, Scaling = 1.5 },
        ["peanut deep"] = () => new PeanutOptions { Rank = 4, Depth = 2, Activation = "gelu", Targets = ["query", "dense"] },
    };
}
