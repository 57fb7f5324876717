// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// PVeRA (a probabilistic VeRA; VeRA is arXiv 2310.11454): the shared A has 2r rows, <c>(μ, ℓ) = halves of λ_d ⊙ (A x)</c>. Training
/// samples <c>z = μ + ε e^(ℓ/2)</c>, scoring and merging take <c>z = μ</c>; <c>y = W x + b + λ_b ⊙ B z</c>. Trained numbers:
/// 2r + out a module. A fresh adaptation is the base model, as λ_b is 0.
/// </summary>
public sealed class PveraOptions : VeraMethod
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "pvera";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 r + out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "PVERA";

    private protected override string Word => "pvera";

    private protected override int Halves => 2;

    private protected override WeightPatch Patch(VeraParts parts) => new SampledPatch(parts, Rank, Dropout);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        Only(config, "sample_at_inference", false);
        base.ReadHuggingFace(config);
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        base.WriteHuggingFace(config, backbone);
        config["generator_seed"] = null;
        config["sample_at_inference"] = false;
    }

    private sealed class SampledPatch(VeraParts parts, int rank, double dropout) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            if (!pass.Training) return next(x) + Term(0).Apply(x, pass);
            Tensor input = pass.Dropout(x.to_type(ScalarType.Float32), dropout);
            Tensor latent = nn.functional.linear(input, parts.A) * parts.LambdaD.Value;              // [..., 2 · rank]
            Tensor mean = latent.narrow(-1, 0, rank), spread = (latent.narrow(-1, rank, rank) * 0.5).exp();
            Tensor sample = mean + spread * pass.Noise(mean.shape, mean.device);
            return next(x) + nn.functional.linear(sample, parts.B).to_type(x.dtype);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
            (weight + Term(0).Delta().to_type(weight.dtype), bias);

        private LowRankTerm Term(double drop) =>
            new(parts.A.narrow(0, 0, rank), parts.B * parts.LambdaD.Value.narrow(0, 0, rank), 1, null, drop);
    }
}
