// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _hub = new()
    {
        ["pfeiffer-inv"] = () => new PfeifferInvertibleOptions { ReductionFactor = 4 },
        ["houlsby-inv"] = () => new HoulsbyInvertibleOptions { ReductionFactor = 4, InvertibleReductionFactor = 4 },
        ["parallel-adapter"] = () => new ParallelAdapterOptions { ReductionFactor = 4 },
        ["scaled-parallel-adapter"] = () => new ScaledParallelAdapterOptions { ReductionFactor = 4 },
        ["adapter-plus"] = () => new AdapterPlusOptions { ReductionFactor = 8, StochasticDepth = 0.3 },
        ["compacter"] = () => new CompacterOptions { ReductionFactor = 4 },
        ["compacter++"] = () => new CompacterPlusPlusOptions { ReductionFactor = 2, PhmDimension = 2, PhmRank = 3 },
        ["compacter factorized rule"] = () => new CompacterOptions { ReductionFactor = 2, FactorizedPhmRule = true, PhmRuleInit = "uniform", PhmRuleRange = 0.1, PhmWeightInit = "glorot-normal" },
        ["compacter own rule and whole matrices"] = () => new CompacterPlusPlusOptions { ReductionFactor = 4, SharedPhmRule = false, FactorizedPhmWeights = false, OwnNormBefore = true },
        ["compacter shared matrices"] = () => new CompacterOptions { ReductionFactor = 4, SharedPhmWeights = true, PhmBias = false },
        ["compacter frozen rule"] = () => new CompacterOptions { ReductionFactor = 4, LearnPhmRule = false, PhmRuleRange = 0.2 },
        ["adapterhub-lora"] = () => new HubLoraOptions { Rank = 4, Dropout = 0.1 },
        ["adapterhub-lora everywhere"] = () => new HubLoraOptions { Rank = 2, AttentionMatrices = ["q", "k", "v"], Intermediate = true, Output = true, Init = "bert" },
        ["adapterhub-lora gated"] = () => new HubLoraOptions { Rank = 4, Gate = true },
        ["adapterhub ia3"] = () => (HubLoraOptions)AdapterHubPresets.Create("ia3"),
        ["adapterhub dora"] = () => new HubLoraOptions { Rank = 4, UseDora = true },
        ["adapterhub vera"] = () => new HubLoraOptions { Rank = 4, VeraD = 0.1, VeraB = 0, Init = "vera" },
        ["adapterhub vera vectors"] = () => new HubLoraOptions { Rank = 4, VeraD = 0.1, VeraB = 0, Init = "vera", VeraVectors = true },
        ["adapterhub dvora"] = () => new HubLoraOptions { Rank = 4, VeraD = 0.1, VeraB = 0, Init = "vera", UseDora = true },
        ["mtl-lora"] = () => new MtlLoraOptions { Rank = 4, UpProjections = 3 },
        ["reft"] = () => new ReftOptions { Rank = 2, SuffixPositions = 2, NonLinearity = "gelu", Layers = [0] },
        ["loreft"] = () => new LoReftOptions { Rank = 2, SuffixPositions = 1 },
        ["noreft"] = () => new NoReftOptions { Rank = 2, TiedWeights = true, SuffixPositions = 1 },
        ["direft"] = () => new DiReftOptions { Rank = 2, PrefixPositions = 2, SuffixPositions = 1 },
        ["union"] = () => new UnionOptions { Methods = [new HubLoraOptions { Rank = 2, Gate = true }, new PfeifferOptions { ReductionFactor = 4 }, new LoReftOptions { SuffixPositions = 1 }] },
        ["mam"] = () => new MamOptions { Methods = [PrefixTuningOptions.ForAdapterHub(3, 10), new ParallelAdapterOptions { ReductionFactor = 4 }] },
        ["unipelt"] = () => new UniPeltOptions(),
        ["lst"] = () => new LadderSideOptions { Reduction = 4 },
        ["lst random"] = () => new LadderSideOptions { Reduction = 2, Layers = [1], Init = "random", GateTemperature = 1 },
        ["vqt"] = () => new VisualQueryOptions { Tokens = 2 },
        ["unified-view"] = () => new UnifiedViewOptions { Bottleneck = 4, Composition = UnifiedComposition.ScaledAdd, LearnedScale = true, NormBefore = true },
        ["unified-view beside attention"] = () => new UnifiedViewOptions { Bottleneck = 4, Target = UnifiedTarget.AttentionOutput, Function = UnifiedFunction.Gelu, Init = "bert" },
        ["unified-view behind both"] = () => new UnifiedViewOptions { Bottleneck = 4, Insertion = UnifiedInsertion.Sequential, Composition = UnifiedComposition.ScaledAdd, Scale = 2 },
        ["unified-view heads"] = () => new UnifiedViewOptions { Bottleneck = 3, Target = UnifiedTarget.HeadAttention, NormBefore = true },
        ["unified-view gated prefix"] = () => new UnifiedViewOptions { Bottleneck = 3, Target = UnifiedTarget.HeadAttention, Function = UnifiedFunction.SoftmaxKv, Composition = UnifiedComposition.Gated },
        ["unified-view low rank"] = () => new UnifiedViewOptions { Bottleneck = 3, Target = UnifiedTarget.FeedForwardWeights, Function = UnifiedFunction.Linear, Composition = UnifiedComposition.ScaledAdd, Scale = 2 },
        ["union of mergeable"] = () => new UnionOptions { Methods = [new LoraOptions { Rank = 2 }, new BitFitOptions { Groups = ["intermediate"] }] },
    };
}
