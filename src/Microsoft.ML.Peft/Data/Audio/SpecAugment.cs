// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Masks of frequencies and times of a spectrogram (SpecAugment, Park et al. 2019, arXiv 1904.08779): of two uniform numbers the
/// first gives a width below the limit, the second the place. Masked is 0, the mean of a normalised spectrogram.
/// </summary>
public sealed record SpecAugment
{
    /// <summary>Widest mask in bins; 0 for none.</summary>
    public int FrequencyLimit { get; init; } = 24;

    /// <summary>Widest mask in frames; 0 for none. At most the number of real frames is used.</summary>
    public int TimeLimit { get; init; } = 80;

    /// <summary>Masks of either kind.</summary>
    public int Masks { get; init; } = 1;

    /// <summary>Checks the settings.</summary>
    /// <exception cref="ArgumentOutOfRangeException">A number is negative.</exception>
    public void Validate()
    {
        ArgumentOutOfRangeException.ThrowIfNegative(FrequencyLimit);
        ArgumentOutOfRangeException.ThrowIfNegative(TimeLimit);
        ArgumentOutOfRangeException.ThrowIfNegative(Masks);
    }

    /// <summary>A masked copy of a spectrogram, by numbers that follow from seed, epoch and row alone.</summary>
    /// <param name="features">A spectrogram; samples have no frequencies and are given back as they are.</param>
    /// <param name="timeAxis">Which axis is time; the other one is frequency.</param>
    /// <param name="seed">Seed of the run.</param>
    /// <param name="epoch">Number of the epoch.</param>
    /// <param name="row">Number of the row.</param>
    public AudioFeatures Apply(AudioFeatures features, int timeAxis, long seed, int epoch, long row)
    {
        ArgumentNullException.ThrowIfNull(features);
        Validate();
        if (features.Shape.Length != 2 || Masks == 0) return features;
        ulong state = Pass.Mix(Pass.Mix(Pass.Mix(unchecked((ulong)seed)) ^ (ulong)(uint)epoch) ^ unchecked((ulong)row));
        var uniform = new double[4 * Masks];
        for (int i = 0; i < uniform.Length; i++) uniform[i] = (Pass.Mix(unchecked(state + (ulong)i)) >> 11) * (1.0 / (1UL << 53));
        return Apply(features, timeAxis, uniform);
    }

    /// <summary>A masked copy of a spectrogram, by given numbers.</summary>
    /// <param name="features">A spectrogram of two axes.</param>
    /// <param name="timeAxis">Which axis is time; the other one is frequency.</param>
    /// <param name="uniform">Numbers in [0, 1), four a mask: width and place in frequency, width and place in time.</param>
    public AudioFeatures Apply(AudioFeatures features, int timeAxis, IReadOnlyList<double> uniform)
    {
        ArgumentNullException.ThrowIfNull(features);
        ArgumentNullException.ThrowIfNull(uniform);
        if (features.Shape.Length != 2 || timeAxis is not (0 or 1))
            throw new ArgumentException($"A spectrogram has two axes, one of which is time; given are [{string.Join(", ", features.Shape)}] and time axis {timeAxis}.", nameof(features));
        if (uniform.Count != 4 * Masks) throw new ArgumentException($"{Masks} masks need {4 * Masks} numbers; given are {uniform.Count}.", nameof(uniform));
        float[] values = [.. features.Values];
        for (int mask = 0; mask < Masks; mask++)
        {
            Mask(values, features.Shape, 1 - timeAxis, Range(uniform[4 * mask], uniform[4 * mask + 1], features.Shape[1 - timeAxis], FrequencyLimit));
            Mask(values, features.Shape, timeAxis, Range(uniform[4 * mask + 2], uniform[4 * mask + 3], features.Real, TimeLimit));
        }
        return features with { Values = values };
    }

    /// <summary>The masked range of an axis: a width of <c>⌊u₁ limit⌋</c> from <c>⌊u₂ (size - u₁ limit)⌋</c> on.</summary>
    internal static (int Start, int End) Range(double width, double place, int size, int limit)
    {
        double wide = width * Math.Min(limit, size);
        int start = (int)(place * (size - wide));
        return (start, start + (int)wide);
    }

    private static void Mask(float[] values, int[] shape, int axis, (int Start, int End) range)
    {
        if (axis == 0)
        {
            values.AsSpan(range.Start * shape[1], (range.End - range.Start) * shape[1]).Clear();
            return;
        }
        for (int row = 0; row < shape[0]; row++) values.AsSpan(row * shape[1] + range.Start, range.End - range.Start).Clear();
    }
}
