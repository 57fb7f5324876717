// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// The mel cepstrum that a Keyword Transformer reads, <c>[frames, coefficients]</c>: window, magnitudes, mel filters, logarithm
/// and cosine transform by the tensors <c>frontend.*</c> beside the network's weights. Sounds are centred in silence, or their
/// middle is taken.
/// </summary>
internal sealed class CepstrumFrontEnd : AudioFrontEnd
{
    private readonly PowerSpectra _spectra;
    private readonly MelFilters _filters;
    private readonly double[] _window, _factors;
    private readonly double[][] _cosines;
    private readonly double _shift, _floor;
    private readonly int _hop, _samples;

    public CepstrumFrontEnd(IFileSet files, ConfigReader model)
    {
        Rate = Rated(model, model.Int("sample_rate", 16_000));
        _samples = model.Int("samples", Rate);
        int frame = model.Int("frame", 480, 2), mel = model.Int("mel", 80), coefficients = model.Int("mfcc", 40);
        _hop = model.Int("hop", 160);
        CheckSize("config.json's samples", _samples, coefficients);
        if (_samples < frame) throw new CheckpointFormatException($"config.json: samples {_samples} are less than one frame of {frame}.");
        Length = (_samples - frame) / _hop + 1;
        if (model.Int("frames", Length.Value) is var frames && frames != Length)
            throw new CheckpointFormatException($"config.json: frames is {frames}, but samples {_samples}, frame {frame} and hop {_hop} make {Length}.");
        using CheckpointFolder folder = CheckpointFolder.Open(files);
        double[] Read(string name, params long[] shape) => Numbers(folder, "frontend." + name, shape);
        _window = Read("window", frame);
        int bins = (int)(folder.Find("frontend.mel")?.Shape is [_, var found] ? found : 1);
        double[] weights = Read("mel", mel, bins), cosines = Read("dct", coefficients, mel);
        _filters = new MelFilters([.. weights.Chunk(bins)]);
        _cosines = [.. cosines.Chunk(mel)];
        (_factors, _shift, _floor) = (Read("normalizer_mul", coefficients), Read("normalizer_sub", 1)[0], Read("log_floor", 1)[0]);
        _spectra = new PowerSpectra(TransformLength(folder, bins, frame));
        if (bins > _spectra.Bins) throw new CheckpointFormatException($"{folder.Description}: frontend.mel reads {bins} bins; a transform of length {_spectra.Length} has {_spectra.Bins}.");
    }

    // The stored transform is a plain one of frames that are followed by zeros: its second row turns by one bin a sample.
    private static int TransformLength(CheckpointFolder folder, int bins, int frame)
    {
        double[] real = Numbers(folder, "frontend.dft_real", bins, frame), imaginary = Numbers(folder, "frontend.dft_imag", bins, frame);
        double turn = bins < 2 ? 0 : Math.Atan2(Math.Abs(imaginary[frame + 1]), real[frame + 1]);
        int length = (int)Math.Round(2 * Math.PI / Math.Max(turn, 1e-6));
        if (length < frame || length > 1 << 20) throw new CheckpointFormatException($"{folder.Description}: frontend.dft_real is no transform of frames of {frame} samples.");
        for (int bin = 0; bin < bins; bin += Math.Max(1, bins / 16))
            for (int i = 0; i < frame; i++)
                if (!(Math.Abs(real[bin * frame + i] - Math.Cos(2 * Math.PI * ((long)bin * i % length) / length)) < 1e-4))
                    throw new CheckpointFormatException($"{folder.Description}: frontend.dft_real is no plain transform of length {length} (row {bin}, column {i}); others are not computed.");
        return length;
    }

    private static double[] Numbers(CheckpointFolder folder, string name, params long[] shape)
    {
        using TorchSharp.torch.Tensor tensor = folder.Load(name, shape, TorchSharp.torch.ScalarType.Float64);
        double[] numbers = [.. tensor.data<double>()];
        return numbers.All(double.IsFinite) ? numbers : throw new CheckpointFormatException($"{folder.Description}: {name} holds numbers that are not finite.");
    }

    public override AudioFeatures Make(float[] samples, string source, int? length)
    {
        int frames = Length!.Value, coefficients = _cosines.Length, count = Math.Min(samples.Length, _samples);
        var centred = new double[_samples];
        int to = (_samples - count) / 2, from = (samples.Length - count) / 2;
        for (int i = 0; i < count; i++) centred[to + i] = samples[from + i];
        var values = new float[frames * coefficients];
        var logs = new double[_filters.Count];
        var magnitudes = new double[_spectra.Bins];
        _spectra.Run(frames, (frame, fill) =>
        {
            for (int i = 0; i < _window.Length; i++) fill[i] = centred[frame * _hop + i] * _window[i];
        }, (frame, power) =>
        {
            for (int i = 0; i < power.Length; i++) magnitudes[i] = Math.Sqrt(power[i]);
            for (int m = 0; m < logs.Length; m++) logs[m] = Math.Log(Math.Max(_filters.Apply(m, magnitudes), _floor));
            for (int c = 0; c < coefficients; c++)
            {
                double sum = 0;
                for (int m = 0; m < logs.Length; m++) sum += _cosines[c][m] * logs[m];
                values[frame * coefficients + c] = (float)((sum - _shift) * _factors[c]);
            }
        });
        return new AudioFeatures(values, [frames, coefficients], frames);
    }
}
