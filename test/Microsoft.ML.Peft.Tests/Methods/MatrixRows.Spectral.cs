// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _spectral = new()
    {
        ["fourierft"] = () => new FourierFtOptions { Frequencies = 60, Scaling = 20 },
        ["fourierft at zero"] = () => new FourierFtOptions { Frequencies = 60, Scaling = 60, InitWeights = true, Targets = ["query", "dense"], FrequencyPattern = { ["query"] = 20 } },
        ["waveft"] = () => new WaveFtOptions { Frequencies = 80, Scaling = 3 },
        ["waveft sym4 shared out"] = () => new WaveFtOptions { Frequencies = 80, Scaling = 3, Wavelet = "sym4", Proportional = true, Targets = ["all-linear"] },
        ["waveft without transform"] = () => new WaveFtOptions { Frequencies = 80, Scaling = 3, UseTransform = false, PositionSeed = 5 },
        ["c3a"] = () => new C3aOptions { BlockSize = 16, Targets = ["all-linear"], BlockSizePattern = { ["query"] = 8 } },
        ["c3a at zero"] = () => new C3aOptions { BlockSize = 8, Init = "zeros", Layers = [1] },
        ["osf"] = () => new OsfOptions(),
        ["osf ranks"] = () => new OsfOptions { EffectiveRank = 0.25, RankPattern = { [@"layer\.1"] = 24 }, Targets = ["query", "value", "output.dense"] },
    };

    private static readonly Dictionary<string, Func<PeftMethod>> _sparse = new()
    {
        ["shira"] = () => new ShiraOptions { Rank = 4 },
        ["shira everywhere"] = () => new ShiraOptions { Rank = 2, Targets = ["all-linear"], PositionSeed = 9 },
        ["supertuning"] = () => new SuperTuningOptions { Sparsity = 0.8 },
        ["mask-tuning"] = () => new MaskTuningOptions(),
        ["mask-tuning everywhere"] = () => new MaskTuningOptions { Part = MaskedPart.All, Penalty = 0 },
        ["lt-sft"] = () => new LotteryTicketOptions { Count = 500, FirstSteps = 2 },
        ["lt-sft without tables"] = () => new LotteryTicketOptions { Count = 300, FirstSteps = 100, Penalty = 0.1, TrainEmbeddings = false },
        ["sft"] = () => new SftOptions { Density = 0.05, SelectionEvery = 4, AccumulationSteps = 1, TotalSteps = 40 },
        ["sft by accumulators"] = () => new SftOptions { Budget = 700, SelectionEvery = 5, AccumulationSteps = 2, Growth = SftGrowth.Accumulators, Policy = SftPolicy.Cosine, Targets = ["all-linear"], ExcludeTargets = ["pooler.dense"] },
        ["lofit select"] = () => new LofitOptions(),
        ["lofit tune"] = () => new LofitOptions { Stage = LofitStage.Tune, Heads = ["0:1", "1:3", "1:0"] },
        ["lofit at zero"] = () => new LofitOptions { Stage = LofitStage.Tune, Heads = ["1:2"], InitDeviation = 0 },
        ["supertuning with lora"] = () => new SuperTuningOptions { Sparsity = 0.9, SelectTop = false, Rank = 2, Alpha = 4, Dropout = 0.1, SaveIndices = false },
    };

    private static readonly Dictionary<string, Func<PeftMethod>> _scale = new()
    {
        ["partial last layer"] = () => new PartialTuningOptions(),
        ["partial parts"] = () => new PartialTuningOptions { LastLayers = 0, Norms = NormPart.Scales, Biases = true, Embeddings = true, Pooler = true },
        ["hft"] = () => new HalfTuningOptions(),
        ["hft layers"] = () => new HalfTuningOptions { Granularity = HalfOf.Layer, TrainEmbeddings = false, Round = 3 },
        ["hft model"] = () => new HalfTuningOptions { Granularity = HalfOf.Model, Ratio = 0.3 },
        ["ia3"] = () => new Ia3Options(),
        ["ia3 at inputs by name"] = () => new Ia3Options { Targets = ["value", "output.dense"], FeedForwardTargets = ["output.dense"], ExcludeTargets = ["layer.0.output.dense"] },
        ["ia3 pattern"] = () => new Ia3Options { Targets = ["all-linear"], FeedForwardPattern = @".*(query|intermediate\.dense)", InitWeights = false },
        ["ln-tuning"] = () => new LayerNormTuningOptions(),
        ["ln-tuning of a layer"] = () => new LayerNormTuningOptions { Targets = ["LayerNorm"], Layers = [1] },
        ["beft"] = () => new BeftOptions { Targets = ["query", "value", "dense"] },
        ["ssf"] = () => new SsfOptions(),
        ["ssf identity"] = () => new SsfOptions { IdentityInit = true, Targets = ["query", "LayerNorm", "intermediate.dense"], AllowNewBias = true },
        ["trainable-tokens at a map"] = () => new TrainableTokensOptions { TokenIndices = [0, 3, 17], Targets = ["word_embeddings", "pooler.dense"] },
        ["trainable-tokens"] = () => new TrainableTokensOptions { TokenIndices = [.. Enumerable.Range(3, 60)] },
    };
}
