// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Spans of frames, or of channels, that a network does not hear in training (SpecAugment, Park et al. 2019, arXiv 1904.08779), as
/// config.json's <c>mask_time_*</c> and <c>mask_feature_*</c> say.
/// </summary>
/// <param name="Share">Share of places that are masked, about; 0 for none.</param>
/// <param name="Width">Places a span.</param>
/// <param name="Least">Fewest spans a row.</param>
internal readonly record struct FrameMasks(double Share, int Width, int Least)
{
    /// <summary>Reads the settings of one axis.</summary>
    public static FrameMasks Of(ConfigReader read, string axis, double share, int least) =>
        new(read.Share($"mask_{axis}_prob", share), read.Int($"mask_{axis}_length", 10), read.Int($"mask_{axis}_min_masks", least, 0));

    /// <summary>Marks spans in the rows of a batch.</summary>
    /// <param name="lengths">Real places of each row.</param>
    /// <param name="places">Places of every row.</param>
    /// <param name="key">The numbers follow from it alone.</param>
    /// <returns>True for what is masked <c>[rows, places]</c>; null for nothing.</returns>
    public Tensor? Draw(IReadOnlyList<long> lengths, long places, ulong key)
    {
        if (Share <= 0) return null;
        ulong next = key;
        double Uniform() => (Pass.Mix(unchecked(next++)) >> 11) * (1.0 / (1UL << 53));
        double rounding = Uniform();
        var masked = new bool[lengths.Count * places];
        for (int row = 0; row < lengths.Count; row++)
        {
            int length = (int)lengths[row], spans = Math.Min(Math.Max((int)(Share * length / Width + rounding), Least), length / Width);
            int[] starts = [.. Enumerable.Range(0, Math.Max(0, length - Width + 1))];
            for (int span = 0; span < Math.Min(spans, starts.Length); span++)
            {
                int chosen = span + (int)(Uniform() * (starts.Length - span));
                (starts[span], starts[chosen]) = (starts[chosen], starts[span]);
                masked.AsSpan((int)(row * places) + starts[span], Width).Fill(true);
            }
        }
        return tensor(masked, [lengths.Count, places]);
    }
}
