// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _lora = new()
    {
        ["lora"] = () => new LoraOptions(),
        ["lora rank pattern"] = () => new LoraOptions { Targets = ["query", "dense"], Rank = 4, RankPattern = { ["query"] = 2 }, AlphaPattern = { [@"output\.dense"] = 3 } },
        ["lora all-linear"] = () => new LoraOptions { Targets = ["all-linear"], Rank = 2 },
        ["lora roles of one layer"] = () => new LoraOptions { Targets = ["FeedForwardUp", "Key"], Layers = [1] },
        ["lora pattern"] = () => new LoraOptions { TargetPattern = @".*layer\.1\..*(query|dense)", ExcludeTargets = ["attention.output.dense"] },
        ["lora embedding"] = () => new LoraOptions { Targets = ["word_embeddings", "query"] },
        ["lora biases of all"] = () => new LoraOptions { BiasMode = BiasMode.All },
        ["lora biases of adapted"] = () => new LoraOptions { BiasMode = BiasMode.LoraOnly },
        ["lora bias of B"] = () => new LoraOptions { LoraBias = true },
        ["lora pooler whole"] = () => new LoraOptions { ModulesToSave = ["pooler"] },
        ["lora gaussian"] = () => new LoraOptions { Init = "gaussian" },
        ["lora orthogonal"] = () => new LoraOptions { Init = "orthogonal" },
        ["lora mica"] = () => new LoraOptions { Init = "mica" },
        ["lora uniform both"] = () => new LoraOptions { Init = "false" },
        ["rslora"] = () => new LoraOptions { UseRsLora = true, Rank = 6 },
        ["dora"] = () => new LoraOptions { UseDora = true, Targets = ["query", "value", "dense"] },
        ["dora embedding and biases"] = () => new LoraOptions { UseDora = true, Targets = ["word_embeddings", "query"], BiasMode = BiasMode.LoraOnly },
        ["dora from pissa"] = () => new LoraOptions { UseDora = true, Init = "pissa" },
        ["pissa"] = () => new LoraOptions { Init = "pissa" },
        ["pissa by rounds"] = () => new LoraOptions { Init = "pissa_niter_3", UseRsLora = true },
        ["olora"] = () => new LoraOptions { Init = "olora" },
        ["lora+"] = () => new LoraOptions { LoraPlusRatio = 16 },
        ["lora-fa"] = () => new LoraOptions { LoraFa = LoraFaMode.Freeze },
        ["lora-fa projected"] = () => new LoraOptions { LoraFa = LoraFaMode.Project },
    };
}
