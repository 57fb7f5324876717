// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Bench;

/// <summary>
/// Floating-point operations that the products of an encoder of BERT's kind with LoRA on query and value need, real tokens only,
/// and in the last layer only what the first token's result needs. All else (norms, activations, softmax) is not counted.
/// </summary>
internal static class Work
{
    private const int Rank = 8;

    /// <summary>Operations of a forward pass over rows of the given lengths.</summary>
    public static double Scoring(BackboneConfig config, IEnumerable<int> lengths) => lengths.Sum(length => Layers(config).Sum(last => Forward(config, length, last)));

    /// <summary>
    /// Forward and backward: a frozen weight needs its input's gradient and none of its own, so that its work doubles; attention's
    /// and LoRA's doubles again. Below the lowest LoRA, in the first layer's query, key and value, nothing goes back.
    /// </summary>
    public static double Training(BackboneConfig config, IEnumerable<int> lengths) => lengths.Sum(length =>
        Layers(config).Sum(last => (2 * Forward(config, length, last)) + Small(config, length, last)) - Inputs(config, length));

    private static IEnumerable<bool> Layers(BackboneConfig config) => Enumerable.Range(1, config.LayerCount).Select(l => l == config.LayerCount);

    private static double Forward(BackboneConfig config, double length, bool last)
    {
        double d = config.HiddenSize, f = config.IntermediateSize, made = last ? 1 : length;
        return (2 * d * d * 2 * length) + (2 * d * ((2 * d) + (2 * f)) * made) + Small(config, length, last);
    }

    // Attention and the low-rank terms.
    private static double Small(BackboneConfig config, double length, bool last)
    {
        double d = config.HiddenSize, made = last ? 1 : length;
        return (4 * d * length * made) + (4 * d * Rank * (length + made));
    }

    private static double Inputs(BackboneConfig config, double length) => 3 * 2.0 * config.HiddenSize * config.HiddenSize * length;
}
