// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Data;

/// <summary>AST's log filter bank as Kaldi makes it, <c>[frames, bins]</c>: samples in [-1, 1], no dither, rows of 0 behind the sound before normalising.</summary>
internal sealed class KaldiFrontEnd : AudioFrontEnd
{
    private const int Frame = 400, Hop = 160;
    private const double Emphasis = 0.97, Floor = 1.1920928955078125e-07, Lowest = 20;

    private readonly PowerSpectra _spectra = new(512);
    private readonly double[] _window = [.. Enumerable.Range(0, Frame).Select(i => 0.5 - 0.5 * Math.Cos(2 * Math.PI * i / (Frame - 1)))];
    private readonly bool _normalises;
    private readonly double _mean, _deviation;

    public KaldiFrontEnd(ConfigReader read, ConfigReader model, double? seconds)
    {
        Rate = Rated(read);
        int bins = read.Int("num_mel_bins", model.Int("num_mel_bins", 128));
        Length = seconds is { } given ? Math.Max(1, Frames((long)Math.Round(given * Rate))) : read.Int("max_length", model.Int("max_length", 1024));
        CheckSize("max_length times num_mel_bins", Length.Value, bins);
        CheckSize("num_mel_bins", bins, _spectra.Bins);
        _normalises = read.Flag("do_normalize", true);
        (_mean, _deviation) = (read.Number("mean", -4.2677393), read.Positive("std", 4.5689974));
        Filters = MelFilters.Kaldi(bins, _spectra.Bins, (double)Rate / _spectra.Length, Lowest, Rate / 2);
    }

    internal MelFilters Filters { get; }

    internal PowerSpectra Spectra => _spectra;

    internal IReadOnlyList<double> Window => _window;

    private static int Frames(long samples) => samples < Frame ? 0 : (int)((samples - Frame) / Hop + 1);

    public override AudioFeatures Make(float[] samples, string source, int? length)
    {
        int there = Frames(samples.Length), bins = Filters.Count, frames = length ?? there;
        if (there == 0)
            throw new AudioFormatException($"{source} has {samples.Length} samples at {Rate} Hz, too few for one frame of {Frame}; pad it with silence or leave it out.");
        int real = Math.Min(there, frames);
        var values = new float[frames * bins];
        _spectra.Run(real, (frame, to) => Windowed(samples.AsSpan(frame * Hop, Frame), to), (frame, power) =>
        {
            for (int b = 0; b < bins; b++) values[frame * bins + b] = (float)Math.Log(Math.Max(Filters.Apply(b, power), Floor));
        });
        if (_normalises)
            for (int i = 0; i < values.Length; i++) values[i] = (float)((values[i] - _mean) / (2 * _deviation));
        return new AudioFeatures(values, [frames, bins], real);
    }

    /// <summary>One frame without its mean, emphasised and under the window.</summary>
    internal void Windowed(ReadOnlySpan<float> samples, Span<double> frame)
    {
        double mean = 0;
        foreach (float sample in samples) mean += sample;
        mean /= Frame;
        double before = samples[0] - mean;
        for (int i = 0; i < Frame; i++)
        {
            double sample = samples[i] - mean;
            frame[i] = (sample - Emphasis * before) * _window[i];
            before = sample;
        }
    }
}

/// <summary>Whisper's log-mel spectrogram of a chunk of one length, <c>[bins, frames]</c>.</summary>
internal sealed class WhisperFrontEnd : AudioFrontEnd
{
    private const double Floor = 1e-10, Range = 8;

    private readonly PowerSpectra _spectra;
    private readonly double[] _window;
    private readonly int _hop;
    private readonly float _padding;
    private readonly bool _normalises;

    public WhisperFrontEnd(ConfigReader read, ConfigReader model, double? seconds)
    {
        Rate = Rated(read);
        int length = read.Int("n_fft", 400, 2), bins = read.Int("feature_size", model.Int("num_mel_bins", 80));
        _hop = read.Int("hop_length", 160);
        CheckSize("n_fft times feature_size", length, bins);
        long samples = seconds is { } given ? (long)Math.Round(given * Rate) : read.Int("chunk_length", 30) * (long)Rate;
        CheckSize("chunk_length", samples);
        Length = (int)Math.Max(1, samples / _hop);
        CheckSize("chunk_length times feature_size", Length.Value, bins);
        Samples = (int)samples;
        if (Samples <= length / 2)
            throw new Checkpoints.CheckpointFormatException($"{Checkpoints.ProcessorFiles.Name}: a chunk of {Samples} samples is too short for frames of n_fft {length}.");
        _padding = (float)read.Number("padding_value", 0);
        _normalises = read.Flag("do_normalize", false);
        _spectra = new PowerSpectra(length);
        _window = [.. Enumerable.Range(0, length).Select(i => 0.5 - 0.5 * Math.Cos(2 * Math.PI * i / length))];
        Filters = MelFilters.Slaney(bins, _spectra.Bins, (double)Rate / length, 0, 8000);
    }

    internal MelFilters Filters { get; }

    private int Samples { get; }

    public override int TimeAxis => 1;

    public override AudioFeatures Make(float[] samples, string source, int? length)
    {
        int frames = Length!.Value, bins = Filters.Count, half = _spectra.Length / 2, there = Math.Min(samples.Length, Samples);
        var padded = new double[Samples];
        for (int i = 0; i < there; i++) padded[i] = samples[i];
        if (_normalises) WaveformFrontEnd.Normalise(padded.AsSpan(0, there));
        padded.AsSpan(there).Fill(_padding);
        var logs = new double[bins * frames];
        _spectra.Run(frames, (frame, to) =>
        {
            for (int i = 0; i < to.Length; i++) to[i] = padded[Mirrored(frame * _hop + i - half)] * _window[i];
        }, (frame, power) =>
        {
            for (int b = 0; b < bins; b++) logs[b * frames + frame] = Math.Log10(Math.Max(Filters.Apply(b, power), Floor));
        });
        double least = logs.Max() - Range;
        var values = Array.ConvertAll(logs, log => (float)((Math.Max(log, least) + 4) / 4));
        return new AudioFeatures(values, [bins, frames], Math.Min(frames, (there + _hop - 1) / _hop));
    }

    // The sound goes on backwards beyond its ends, which are not repeated.
    private int Mirrored(int at)
    {
        if (at < 0) at = -at;
        return at < Samples ? at : 2 * (Samples - 1) - at;
    }
}

/// <summary>Samples as they are, normalised where the settings say so, <c>[samples]</c>.</summary>
internal sealed class WaveformFrontEnd : AudioFrontEnd
{
    private const double Epsilon = 1e-7;

    private readonly bool _normalises;

    public WaveformFrontEnd(ConfigReader read, ConfigReader model, double? seconds)
    {
        Rate = Rated(read);
        if (read.Int("feature_size", 1) != 1)
            throw new Checkpoints.CheckpointFormatException($"{Checkpoints.ProcessorFiles.Name}: feature_size is {read.Int("feature_size", 1)}; samples have 1.");
        _normalises = read.Flag("do_normalize", true);
        Padding = (float)read.Number("padding_value", 0);
        Masked = read.Flag("return_attention_mask", model.Text("feat_extract_norm", "group") == "layer");
        if (seconds is { } given) Length = (int)Math.Max(1, Math.Round(given * Rate));
    }

    public override bool Masked { get; }

    public override float Padding { get; }

    public override AudioFeatures Make(float[] samples, string source, int? length)
    {
        int count = length ?? samples.Length, real = Math.Min(count, samples.Length);
        var wide = new double[count];
        for (int i = 0; i < real; i++) wide[i] = samples[i];
        wide.AsSpan(real).Fill(Padding);
        // A network that is not told what padding is gets rows that are normalised with it.
        if (_normalises) Normalise(Masked ? wide.AsSpan(0, real) : wide);
        return new AudioFeatures(Array.ConvertAll(wide, x => (float)x), [count], real);
    }

    /// <summary>Mean 0 and variance 1, by the variance of the whole population.</summary>
    public static void Normalise(Span<double> samples)
    {
        double mean = 0, square = 0;
        foreach (double x in samples) mean += x;
        mean /= samples.Length;
        foreach (double x in samples) square += (x - mean) * (x - mean);
        double factor = 1 / Math.Sqrt(square / samples.Length + Epsilon);
        for (int i = 0; i < samples.Length; i++) samples[i] = (samples[i] - mean) * factor;
    }
}
