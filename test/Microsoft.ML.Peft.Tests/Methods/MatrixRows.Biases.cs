// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    // Biases beside the method, and further forms of some.
    private static readonly Dictionary<string, Func<PeftMethod>> _biases = new()
    {
        ["adalora with biases"] = () => new AdaLoraOptions { InitialRank = 4, TargetRank = 2, BiasMode = BiasMode.LoraOnly, TotalSteps = 100 },
        ["boft with biases"] = () => new BoftOptions { Targets = ["query", "dense"], BiasMode = BiasMode.LoraOnly },
        ["boft with all biases"] = () => new BoftOptions { BiasMode = BiasMode.All },
        ["c3a with biases"] = () => new C3aOptions { BlockSize = 8, BiasMode = BiasMode.All },
        ["fourierft with biases"] = () => new FourierFtOptions { Frequencies = 40, BiasMode = BiasMode.LoraOnly },
        ["frod with biases"] = () => new FrodOptions { SparseRate = 0.03, BiasMode = BiasMode.LoraOnly },
        ["glora with biases"] = () => new GloraOptions { Rank = 3, BiasMode = BiasMode.All },
        ["hra with biases"] = () => new HraOptions { BiasMode = BiasMode.LoraOnly },
        ["miss bat with biases"] = () => new MissOptions { Rank = 4, Mode = MissMode.Bat, BiasMode = BiasMode.LoraOnly },
        ["oft with biases"] = () => new OftOptions { BlockSize = 8, BiasMode = BiasMode.All, ModulesToSave = ["pooler"] },
        ["tinylora with biases"] = () => new TinyLoraOptions { U = 5, BiasMode = BiasMode.LoraOnly },
        ["vblora with biases"] = () => new VbLoraOptions { Rank = 2, VectorLength = 8, NumVectors = 12, BiasMode = BiasMode.All },
        ["vera with biases"] = () => new VeraOptions { Rank = 8, BiasMode = BiasMode.All, Dropout = 0.1 },
        ["pvera with biases"] = () => new PveraOptions { Rank = 8, BiasMode = BiasMode.LoraOnly },
        ["psoft free"] = () => new PsoftOptions { Rank = 5, Alpha = 5, Orthogonal = false },
        ["velora of each batch"] = () => new LoraOptions { Variant = new VeloraVariant { Groups = 5, Direction = VeloraDirection.EachBatch }, Dropout = 0 },
        ["velora random"] = () => new LoraOptions { Variant = new VeloraVariant { Groups = 5, Direction = VeloraDirection.Random } },
        ["peanut of another bend"] = () => new PeanutOptions { Rank = 4, Depth = 1, Activation = "leaky_relu" },
    };
}
