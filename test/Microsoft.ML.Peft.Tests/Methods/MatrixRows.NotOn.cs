// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tests.Methods;

internal static partial class MatrixRows
{
    /// <summary>Why a row does not apply to a network, by <c>network: row</c>.</summary>
    public static IReadOnlyDictionary<string, string> NotOn { get; } = new Dictionary<string, string>
    {
        ["t5: bitfit"] = "the network has no biases",
        ["t5: bitfit groups"] = "the network has no biases",
        ["llama: bitfit"] = "the network has no biases",
        ["llama: bitfit groups"] = "the network has no biases",
        ["vit: trainable-tokens"] = "the network has no table of words",
        ["vit: trainable-tokens at a map"] = "the network has no table of words",
        ["vit: cpt"] = "the network has no table of words",
        ["t5: cpt"] = "it fits decoders without an encoder",
        ["t5: shadow"] = "it runs beside one stack of layers",
        ["t5: shadow of one layer"] = "it runs beside one stack of layers",
        ["vit: pfeiffer-inv"] = "the network has no table of words",
        ["vit: houlsby-inv"] = "the network has no table of words",
        ["t5: vpt"] = "the token that stands for the row is not the first",
        ["t5: vpt shallow"] = "the token that stands for the row is not the first",
        ["gpt2: vpt"] = "the token that stands for the row is not the first",
        ["gpt2: vpt shallow"] = "the token that stands for the row is not the first",
        ["llama: vpt"] = "the token that stands for the row is not the first",
        ["llama: vpt shallow"] = "the token that stands for the row is not the first",
        ["t5: alora"] = "the tokens that switch it on are those of one sequence",
        ["t5: multitask-prompt-tuning"] = "the exchanged file of these networks does not say which task is scored",
        ["gpt2: multitask-prompt-tuning"] = "the exchanged file of these networks does not say which task is scored",
        ["llama: multitask-prompt-tuning"] = "the exchanged file of these networks does not say which task is scored",
        ["llama: lst"] = "side blocks have no rotated positions",
        ["llama: lst random"] = "side blocks have no rotated positions",
        ["t5: vqt"] = "tokens of a decoder do not see each other",
        ["gpt2: vqt"] = "tokens of a decoder do not see each other",
        ["llama: vqt"] = "tokens of a decoder do not see each other",
        ["gpt2: mtl-lora"] = "one projection makes queries, keys and values",
    };
}
