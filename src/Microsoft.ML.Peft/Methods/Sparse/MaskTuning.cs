// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Which weights are masked where no target is given.</summary>
public enum MaskedPart
{
    /// <summary>The maps of attention, and the patches of images (R-AMT).</summary>
    Attention,
    /// <summary>The maps of the feed-forward part (R-MMT).</summary>
    FeedForward,
    /// <summary>Both (R-PMT).</summary>
    All,
}

/// <summary>
/// Regularized mask tuning (Zheng et al. 2023, arXiv 2307.15049): each frozen weight has a trained score s and counts only
/// where that is above a threshold, <c>W' = 1[s > α] ⊙ W</c>; the gradient of s is that of the mask, <c>∂L/∂W' ⊙ W</c>. The loss gets λ Σ‖s‖₂
/// over the sites. Trained numbers: in · out a site; kept: one bit each. All masks start at 1. Merging: W'.
/// </summary>
public sealed class MaskTuningOptions : SiteMethod
{
    /// <summary>Which weights are masked where <see cref="TargetedMethod.Targets"/> names none.</summary>
    public MaskedPart Part { get; set; }

    /// <summary>Scores above this α keep their weight. Below <see cref="InitScore"/>.</summary>
    public double Threshold { get; set; } = 5e-3;

    /// <summary>Initial score. A score must fall by the difference to the threshold before its weight is masked: with a small learning rate that takes many steps.</summary>
    public double InitScore { get; set; } = 1e-2;

    /// <summary>λ of the norms of the scores, 0 or more.</summary>
    public double Penalty { get; set; } = 1e-4;

    /// <summary>
    /// l in [0, 1]: how much of a gradient is dropped, entry by entry and at random, where it contradicts staying near the base
    /// model's scores; 0 for off. The base model is run beside each training pass with the same head, so a head that means
    /// something from the start is needed.
    /// </summary>
    public double GradientDropout { get; set; }

    /// <summary>True where the masks come from an exchanged file.</summary>
    [JsonIgnore]
    internal bool Packed { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "mask-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    // The way from the first score to the threshold is what counts, in long and short runs alike.
    /// <inheritdoc/>
    protected override double HighestLearningRate => DefaultLearningRate;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "in · out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles
    {
        get
        {
            SiteRole[] attention = [SiteRole.Query, SiteRole.Key, SiteRole.Value, SiteRole.QueryKeyValue, SiteRole.AttentionOutput, SiteRole.PatchEmbedding];
            SiteRole[] forward = [SiteRole.FeedForwardUp, SiteRole.FeedForwardGate, SiteRole.FeedForwardDown];
            return Part switch { MaskedPart.Attention => attention, MaskedPart.FeedForward => forward, _ => [.. attention, .. forward] };
        }
    }

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!Enum.IsDefined(Part)) throw Invalid(nameof(Part), Part, string.Join(", ", Enum.GetNames<MaskedPart>()));
        if (!double.IsFinite(InitScore)) throw Invalid(nameof(InitScore), InitScore, "a finite number");
        if (!(Threshold < InitScore)) throw Invalid(nameof(Threshold), Threshold, $"below InitScore, which is {InitScore}: otherwise every weight starts masked");
        if (!(Penalty >= 0) || !double.IsFinite(Penalty)) throw Invalid(nameof(Penalty), Penalty, "0 or more");
        if (!(GradientDropout >= 0 && GradientDropout <= 1)) throw Invalid(nameof(GradientDropout), GradientDropout, "0 to 1");
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution;

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new MaskAdaptation(this, backbone);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        var scores = new NamedParameter($"{path}.mask_scores", full(site.Weight.shape, InitScore, dtype: ScalarType.Float32, device: site.Weight.device))
        {
            Exchanged = !Packed,
            Decay = false,
        };
        adaptation.Add(scores);
        NamedParameter? bits = Packed
            ? adaptation.Add($"{path}.mask_bits", zeros((site.Weight.numel() + 7) / 8, dtype: ScalarType.Byte, device: site.Weight.device), trainable: false) : null;
        ((MaskAdaptation)adaptation).Add(scores, bits);
        adaptation.Attach(site, new RewritePatch((weight, bias, _) =>
        {
            Tensor kept = scores.Value.gt(Threshold).to_type(ScalarType.Float32);
            // Straight through: the value is the mask, the gradient is the score's own.
            if (scores.Value.requires_grad && is_grad_enabled()) kept = kept + (scores.Value - scores.Value.detach());
            return (weight * kept, bias);
        }));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => site.Weight.numel();

    /// <summary>Share of the weights that an adaptation masks, over all its sites.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    /// <exception cref="ArgumentException">It is of another method.</exception>
    public static double MaskedShare(PeftAdaptation adaptation) => adaptation is MaskAdaptation masks ? masks.MaskedShare()
        : throw new ArgumentException($"Only mask-tuning has masks; given is an adaptation of {adaptation.Method.Id}.", nameof(adaptation));

    /// <summary>Exchanged files hold one bit a weight.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        var packed = (MaskTuningOptions)PeftMethods.FromJson(PeftMethods.ToJson(this));
        packed.Packed = true;
        var made = (MaskAdaptation)packed.Attach(adaptation.Backbone, 0);
        made.Pack((MaskAdaptation)adaptation);
        return made;
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes) =>
        Packed = shapes.Keys.Any(key => key.EndsWith(".mask_bits", StringComparison.Ordinal));
}
