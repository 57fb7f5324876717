// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    private static readonly Dictionary<string, Func<PeftMethod>> _prompts = new()
    {
        ["prompt-tuning"] = () => new PromptTuningOptions { Length = 4 },
        ["prompt-tuning read by the head"] = () => new PromptTuningOptions { Length = 4, HeadReadsPrompt = true },
        ["prompt-tuning behind embeddings"] = () => new PromptTuningOptions { Length = 4, Insertion = PromptInsertion.PostEmbedding, Init = PromptInit.Uniform, Dropout = 0.1 },
        ["prompt-tuning after first"] = () => new PromptTuningOptions { Length = 3, Order = PromptOrder.AfterFirst, Init = PromptInit.SampleVocabulary, SampleFrom = 50 },
        ["prompt-tuning from tokens"] = () => new PromptTuningOptions { Length = 5, Init = PromptInit.Text, InitTokenIds = [7, 8, 9] },
        ["p-tuning"] = () => new PTuningOptions { Length = 4, HiddenSize = 10 },
        ["p-tuning lstm"] = () => new PTuningOptions { Length = 4, HiddenSize = 6, Encoder = PromptEncoderKind.Lstm, EncoderDropout = 0.1, HeadReadsPrompt = true },
        ["multitask-prompt-tuning"] = () => new MultitaskPromptTuningOptions { Length = 4, Tasks = 3, Ranks = 2, Task = 1 },
        ["prefix-tuning"] = () => new PrefixTuningOptions { Length = 4, LeaveOut = [1] },
        ["prefix-tuning shifted"] = () => new PrefixTuningOptions { Length = 4, ShiftPositions = true, InitTokenIds = [3, 4, 5] },
        ["prefix-tuning projected"] = () => new PrefixTuningOptions { Length = 4, Projection = true, HiddenSize = 10, ShiftPositions = true },
        ["prefix-tuning gated"] = () => new PrefixTuningOptions { Length = 4, Gate = PrefixGate.Separate, Name = "task" },
        ["p-tuning-v2"] = () => new PTuningV2Options { Length = 4 },
        ["p-tuning-v2 shifted"] = () => new PTuningV2Options { Length = 4, ShiftPositions = true, Projection = true, HiddenSize = 0 },
        ["cartridge"] = () => new CartridgeOptions { Length = 4, FrozenTokens = 2, InitTokenIds = [11, 12] },
        ["cartridge shifted"] = () => new CartridgeOptions { Length = 4, ShiftPositions = true },
        ["cpt"] = () => new CptOptions { TokenIds = [7, 8, 9, 10], TokenTypes = [1, 2, 3, 4], Epsilon = 20, FormatEpsilon = 10 },
        ["adaption-prompt"] = () => new AdaptionPromptOptions { Length = 3 },
        ["adaption-prompt by head"] = () => new AdaptionPromptOptions { Length = 3, AdapterLayers = 1, Gate = AdaptionGate.TanhPerHead, ThroughOutput = false },
        ["shadow"] = () => new ShadowOptions { Rank = 4, ShadowIntermediateSize = 12 },
        ["shadow of one layer"] = () => new ShadowOptions { Rank = 4, ShadowLayers = 2, Layers = [1], UpdateHiddenSize = 5 },
        ["vpt"] = () => new VisualPromptTuningOptions { Length = 3 },
        ["vpt shallow"] = () => new VisualPromptTuningOptions { Length = 3, Deep = false, ProjectFrom = 8 },
    };
}
