// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// WaveFT (Bilican et al. 2025, arXiv 2505.12532): n trained wavelet coefficients of the update at random positions; one level of the inverse
/// transform makes ΔW of them. Each coefficient touches L × L neighbouring weights (L: the filter's length), so the update
/// is a sparse sum. Trained numbers: n a site. Coefficients start at 0; merging: W + ΔW.
/// </summary>
public sealed class WaveFtOptions : SpectralMethod
{
    // By site, which belongs to one backbone: options may be used for several at once.
    private readonly ConditionalWeakTable<WeightSite, object> _shares = [];

    /// <inheritdoc/>
    public override int Frequencies { get; set; } = 2592;

    /// <inheritdoc/>
    public override double Scaling { get; set; } = 25;

    /// <summary>The wavelet: <c>haar</c>, <c>db1</c> to <c>db20</c>, <c>sym2</c> to <c>sym8</c>, <c>coif1</c> to <c>coif3</c>.</summary>
    public string Wavelet { get; set; } = "db1";

    /// <summary>False to train entries of the weight themselves, without the transform.</summary>
    public bool UseTransform { get; set; } = true;

    /// <summary>True to share the coefficients of all sites out by the sizes of their weights; <see cref="SpectralMethod.FrequencyPattern"/> then has no effect.</summary>
    public bool Proportional { get; set; }

    /// <summary>False to start from standard normal coefficients; a fresh adaptation is then not the base model.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "waveft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "n a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "WAVEFT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!Wavelets.Names.Contains(Wavelet)) throw Invalid(nameof(Wavelet), $"'{Wavelet}'", $"any of {string.Join(", ", Wavelets.Names)}.{NearNames.Hint(Wavelet, Wavelets.Names)}");
    }

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed) => ShareOut(sites);

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites)
    {
        ShareOut(sites);
        return 0;
    }

    private void ShareOut(IReadOnlyList<WeightSite> sites)
    {
        double total = sites.Sum(site => (double)site.Weight.numel());
        foreach (WeightSite site in sites)
            _shares.AddOrUpdate(site, Math.Max(1, (long)Math.Round(site.Weight.numel() / total * ((double)Frequencies * sites.Count))));
    }

    /// <inheritdoc/>
    protected override long CoefficientsAt(WeightSite site, string path) =>
        Proportional && _shares.TryGetValue(site, out object? share) ? (long)share : base.CoefficientsAt(site, path);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string name = $"{path}.waveft_spectrum";
        long[] at = Positions(site, path);
        long rows = Wide(site), columns = Narrow(site);
        NamedParameter spectrum = Add(adaptation, name, InitWeights ? zeros(at.Length) : new Draws(seed, name).Normal(1, at.Length));
        (long[] touched, float[] weights) = UseTransform ? Waves(at, rows, columns) : (at, [.. at.Select(_ => 1f)]);
        long each = touched.Length / at.Length;
        NamedParameter places = AddDerived(adaptation, $"{path}.waveft_places", tensor(touched));
        NamedParameter shape = AddDerived(adaptation, $"{path}.waveft_waves", tensor(weights, [at.Length, each]));
        adaptation.Attach(site, new DeltaPatch(_ =>
        {
            Tensor parts = spectrum.Value.unsqueeze(1) * shape.Value;                        // [n, L * L]
            return zeros(rows * columns, device: parts.device).index_add(0, places.Value, parts.reshape(-1), 1).reshape(rows, columns) * Scaling;
        }));
    }

    // Weights that each coefficient touches, and by how much; what falls outside counts 0 at the first weight.
    private (long[] Touched, float[] Weights) Waves(long[] at, long rows, long columns)
    {
        double[] low = Wavelets.LowPass(Wavelet), high = Wavelets.HighPass(low);
        var down = new Axis(rows, low.Length);
        var across = new Axis(columns, low.Length);
        int length = low.Length, filled = 0;
        var touched = new long[at.Length * length * length];
        var weights = new float[touched.Length];
        foreach (long position in at)
        {
            // The upper right quarter is the one that is high-pass over the rows.
            (long row, bool lower) = down.Coefficient(position / columns);
            (long column, bool right) = across.Coefficient(position % columns);
            double[] over = right ? high : low, along = lower ? high : low;
            for (int i = 0; i < length; i++)
                for (int j = 0; j < length; j++, filled++)
                {
                    long y = down.Place(row, i), x = across.Place(column, j);
                    if (y < 0 || y >= rows || x < 0 || x >= columns) continue;
                    touched[filled] = (y * columns) + x;
                    weights[filled] = (float)(over[i] * along[j]);
                }
        }
        return (touched, weights);
    }

    // One axis: coefficients are padded on both sides by the filter's overhang, to an even number; the result is cut to the middle.
    private readonly struct Axis
    {
        private readonly long _offset, _half, _cut;

        public Axis(long size, int length)
        {
            long padded = size + length - 2;
            padded += padded % 2;
            _half = padded / 2;
            _offset = (padded - size) / 2;
            long made = padded + 2 - length;                                                // after dropping L - 2 on either side
            _cut = length - 2 + ((made - size) / 2);
        }

        public (long Index, bool Second) Coefficient(long position)
        {
            long at = position + _offset;
            return at < _half ? (at, false) : (at - _half, true);
        }

        public long Place(long coefficient, int tap) => (2 * coefficient) + tap - _cut;
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadSpectrum(config, 2592, 25);
        Wavelet = AdapterConfig.Get(config, "wavelet_family", "db1");
        UseTransform = AdapterConfig.Get(config, "use_idwt", true);
        Proportional = AdapterConfig.Get(config, "proportional_parameters", false);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteSpectrum(config, backbone);
        config["wavelet_family"] = Wavelet;
        config["use_idwt"] = UseTransform;
        config["proportional_parameters"] = Proportional;
        config["init_weights"] = InitWeights;
    }
}
