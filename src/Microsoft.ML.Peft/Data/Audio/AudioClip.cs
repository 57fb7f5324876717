// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// A sound that is damaged, cut off, of a kind that is not read, or of no use to a network. The message names the source, what
/// was found and what was expected.
/// </summary>
public sealed class AudioFormatException : FormatException
{
    /// <summary>Creates the exception.</summary>
    /// <param name="message">Source, what was found, what was expected.</param>
    /// <param name="inner">The error underneath; null for none.</param>
    public AudioFormatException(string message, Exception? inner = null) : base(message, inner)
    {
    }
}

/// <summary>A sound: samples of one or more channels, nominally in [-1, 1], at a rate. Immutable where nobody writes to its arrays.</summary>
public sealed class AudioClip
{
    /// <summary>Lowest rate that is taken for one, in samples a second.</summary>
    public const int LowestRate = 100;

    /// <summary>Highest rate that is taken for one, in samples a second.</summary>
    public const int HighestRate = 768_000;

    /// <summary>Makes a clip of one channel.</summary>
    /// <param name="samples">The samples <c>[samples]</c>; not copied.</param>
    /// <param name="rate">Samples a second.</param>
    /// <param name="source">Where they come from, for messages.</param>
    /// <exception cref="AudioFormatException">No samples, a sample that is no finite number, or a rate that is none.</exception>
    public AudioClip(float[] samples, int rate, string source = "the samples") : this([samples], rate, source)
    {
    }

    /// <summary>Makes a clip of several channels.</summary>
    /// <param name="channels">Samples <c>[channels][samples]</c>, all of one length; not copied.</param>
    /// <param name="rate">Samples a second.</param>
    /// <param name="source">Where they come from, for messages.</param>
    /// <exception cref="AudioFormatException">No samples, a sample that is no finite number, channels of several lengths, or a rate that is none.</exception>
    public AudioClip(IReadOnlyList<float[]> channels, int rate, string source = "the samples")
    {
        ArgumentNullException.ThrowIfNull(channels);
        CheckRate(rate, source);
        if (channels.Count == 0 || channels[0].Length == 0) throw new AudioFormatException($"{source} holds no samples; a sound of at least one is expected.");
        for (int c = 0; c < channels.Count; c++)
        {
            if (channels[c].Length != channels[0].Length)
                throw new AudioFormatException($"{source}: channel {c} has {channels[c].Length} samples and channel 0 {channels[0].Length}; equal lengths are expected.");
            if (FirstNotFinite(channels[c]) is var at and >= 0)
                throw new AudioFormatException(FormattableString.Invariant($"{source}: sample {at} of channel {c} is {channels[c][at]}; finite numbers are expected."));
        }
        (Channels, Rate, Source) = (channels, rate, source);
    }

    /// <summary>The samples, <c>[channels][samples]</c>.</summary>
    public IReadOnlyList<float[]> Channels { get; }

    /// <summary>Samples a second.</summary>
    public int Rate { get; }

    /// <summary>Where the sound comes from, for messages.</summary>
    public string Source { get; }

    /// <summary>Samples of each channel.</summary>
    public int Length => Channels[0].Length;

    /// <summary>Length in seconds.</summary>
    public double Seconds => (double)Length / Rate;

    /// <summary>One channel, the mean of all; this clip itself where it has one.</summary>
    public AudioClip ToMono()
    {
        if (Channels.Count == 1) return this;
        var mean = new float[Length];
        for (int i = 0; i < mean.Length; i++)
        {
            float sum = Channels[0][i];
            for (int c = 1; c < Channels.Count; c++) sum += Channels[c][i];
            mean[i] = sum / Channels.Count;
        }
        return new AudioClip(mean, Rate, Source);
    }

    /// <summary>
    /// The clip at another rate, by a polyphase low-pass: a windowed sinc of ten zero crossings a side (Kaiser, β = 5), computed
    /// in double precision. This clip itself where the rate is the same.
    /// </summary>
    /// <param name="rate">Samples a second.</param>
    /// <exception cref="AudioFormatException">The rate is none, or the result would be too large.</exception>
    public AudioClip Resampled(int rate)
    {
        CheckRate(rate, Source);
        if (rate == Rate) return this;
        var resampler = Resampler.Between(Rate, rate);
        if (resampler.LengthOf(Length) * Channels.Count > AudioReader.DefaultMostSamples)
            throw new AudioFormatException($"{Source}: {Length} samples at {Rate} Hz are {resampler.LengthOf(Length)} at {rate} Hz, more than the {AudioReader.DefaultMostSamples} that are made.");
        return new AudioClip([.. Channels.Select(resampler.Run)], rate, Source);
    }

    private static void CheckRate(int rate, string source)
    {
        if (rate is < LowestRate or > HighestRate)
            throw new AudioFormatException($"{source}: the rate is {rate} samples a second; expected {LowestRate} to {HighestRate}.");
    }

    private static int FirstNotFinite(float[] samples)
    {
        for (int i = 0; i < samples.Length; i++)
            if (!float.IsFinite(samples[i])) return i;
        return -1;
    }
}
