// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How many values RoAd trains.</summary>
public enum RoadVariant
{
    /// <summary>An angle and a length a pair of outputs: out numbers a module.</summary>
    Road1 = 1,
    /// <summary>An angle and a length an output: 2 · out numbers a module.</summary>
    Road2 = 2,
    /// <summary>Angle and length of cosine and sine apart: 4 · out numbers a module.</summary>
    Road4 = 4,
}

/// <summary>
/// RoAd (Liao and Monz 2024, arXiv 2409.00119): outputs are rotated and scaled in pairs. A group of g consecutive outputs pairs
/// its halves, <c>(y₁, y₂) → (c₁ y₁ − s₁ y₂, c₂ y₂ + s₂ y₁)</c> with <c>c = α cos θ</c>, <c>s = α sin θ</c>; the bias is rotated with them.
/// θ starts at 0 and α at 1.
/// </summary>
public sealed class RoadOptions : SiteMethod
{
    /// <summary>How many values are trained.</summary>
    public RoadVariant Variant { get; set; } = RoadVariant.Road1;

    /// <summary>Outputs in a group, an even divisor of every module's outputs.</summary>
    public int GroupSize { get; set; } = 64;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "road";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "orthogonal";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "out, 2 out or 4 out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 3e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "ROAD";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!Enum.IsDefined(Variant)) throw Invalid(nameof(Variant), Variant, "road1, road2 or road4");
        if (GroupSize < 2 || GroupSize % 2 != 0) throw Invalid(nameof(GroupSize), GroupSize, "an even number from 2");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => 2 * Values(site);

    private long Values(WeightSite site) => Wide(site) * (int)Variant / 2;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (Wide(site) % GroupSize != 0)
            throw new ArgumentException($"RoadOptions.GroupSize is {GroupSize}, which does not divide the {Wide(site)} outputs of {path}.", nameof(GroupSize));
        NamedParameter theta = Add(adaptation, $"{path}.road_theta", zeros([Values(site)]));
        NamedParameter alpha = Add(adaptation, $"{path}.road_alpha", ones([Values(site)]));
        adaptation.Attach(site, new RotatedOutput(theta, alpha, Variant, GroupSize));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Variant = ConfigFields.Choice(config, "variant", "road_1", ("road_1", RoadVariant.Road1), ("road_2", RoadVariant.Road2), ("road_4", RoadVariant.Road4));
        GroupSize = AdapterConfig.Get(config, "group_size", 64);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["init_weights"] = true;
        config["variant"] = $"road_{(int)Variant}";
        config["group_size"] = GroupSize;
    }

    private sealed class RotatedOutput(NamedParameter theta, NamedParameter alpha, RoadVariant variant, int group) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor y = next(x);
            return Rotate(y.to_type(ScalarType.Float32)).to_type(y.dtype);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
            (Rotate(weight.to_type(ScalarType.Float32).t()).t().to_type(weight.dtype), bias is null ? null : Rotate(bias.to_type(ScalarType.Float32)).to_type(bias.dtype));

        // y [..., out]
        private Tensor Rotate(Tensor y)
        {
            (Tensor cosine, Tensor sine) = Factors();                                                            // [groups, 1 or 2, g / 2]
            long[] shape = y.shape;
            Tensor pairs = y.reshape([.. shape[..^1], -1, 2, group / 2]);
            Tensor turned = cat([-pairs.narrow(-2, 1, 1), pairs.narrow(-2, 0, 1)], -2);                          // (−y₂, y₁)
            return (pairs * cosine + turned * sine).reshape(shape);
        }

        private (Tensor Cosine, Tensor Sine) Factors()
        {
            Tensor cosine = alpha.Value * theta.Value.cos(), sine = alpha.Value * theta.Value.sin();
            if (variant != RoadVariant.Road4) return (cosine.view(-1, (int)variant, group / 2), sine.view(-1, (int)variant, group / 2));
            return (cosine.view(-1, 2, 2, group / 2).select(1, 0), sine.view(-1, 2, 2, group / 2).select(1, 1));
        }
    }
}
