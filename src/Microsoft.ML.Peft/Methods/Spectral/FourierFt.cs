// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// FourierFT (Gao et al. 2024, arXiv 2405.03003): <c>ΔW = s · Re(IFFT₂(F))</c>, F zero but for n trained coefficients at random
/// positions. Trained numbers: n a site, whatever its size (BERT-base: 24,000). Coefficients start as standard normal
/// numbers, so a fresh adaptation is not quite the base model. Merging: W + ΔW.
/// </summary>
public sealed class FourierFtOptions : SpectralMethod
{
    /// <inheritdoc/>
    public override int Frequencies { get; set; } = 1000;

    /// <inheritdoc/>
    public override double Scaling { get; set; } = 150;

    /// <summary>True to start the coefficients at 0, so that a fresh adaptation is the base model.</summary>
    public bool InitWeights { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "fourierft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 3e-2;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "n a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "FOURIERFT";

    private protected override string OwnBiases => "fourier_only";

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string name = $"{path}.fourierft_spectrum";
        long[] at = Positions(site, path);
        NamedParameter spectrum = Add(adaptation, name, InitWeights ? zeros(at.Length) : new Draws(seed, name).Normal(1, at.Length));
        NamedParameter positions = AddDerived(adaptation, $"{path}.fourierft_positions", tensor(at));
        long rows = Wide(site), columns = Narrow(site);
        adaptation.Attach(site, new DeltaPatch(_ =>
        {
            Tensor sparse = zeros(rows * columns, device: spectrum.Value.device).scatter(0, positions.Value, spectrum.Value);
            return real(fft.ifft2(sparse.reshape(rows, columns))) * Scaling;
        }));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadSpectrum(config, 1000, 150);
        InitWeights = AdapterConfig.Get(config, "init_weights", false);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteSpectrum(config, backbone);
        config["init_weights"] = InitWeights;
    }
}
