// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _orthogonal = new()
    {
        ["oft"] = () => new OftOptions { BlockSize = 8 },
        ["oft exact"] = () => new OftOptions { Blocks = 4, BlockSize = 0, Series = false, Targets = ["query", "dense"], Dropout = 0.2 },
        ["oft constrained"] = () => new OftOptions { BlockSize = 8, Constrained = true, Radius = 0.5, Series = false },
        ["oft shared and table"] = () => new OftOptions { BlockSize = 8, ShareBlock = true, Terms = 7, Targets = ["query", "word_embeddings"] },
        ["boft"] = () => new BoftOptions { Targets = ["query", "value", "dense"] },
        ["boft butterfly"] = () => new BoftOptions { BlockSize = 4, Factors = 3, Dropout = 0.1 },
        ["boft blocks"] = () => new BoftOptions { BlockSize = 0, Blocks = 2 },
        ["hra"] = () => new HraOptions(),
        ["hra odd"] = () => new HraOptions { Rank = 3, Targets = ["query", "dense"] },
        ["hra gram-schmidt"] = () => new HraOptions { Rank = 4, GramSchmidt = true },
        ["psoft"] = () => new PsoftOptions { Rank = 5, Alpha = 5, Dropout = 0.1 },
        ["psoft series"] = () => new PsoftOptions { Rank = 6, Split = PsoftSplit.Even, Series = true, Radius = 0.9, TrainInputScale = false, Targets = ["query", "dense"] },
        ["road"] = () => new RoadOptions { GroupSize = 8 },
        ["road of outputs"] = () => new RoadOptions { GroupSize = 16, Variant = RoadVariant.Road2, Targets = ["all-linear"] },
        ["road in four"] = () => new RoadOptions { GroupSize = 16, Variant = RoadVariant.Road4 },
    };
}
