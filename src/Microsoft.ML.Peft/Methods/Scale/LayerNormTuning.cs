// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// LN tuning (Zhao et al. 2023, arXiv 2312.11420; Qi et al. 2022, arXiv 2211.08682): scales and shifts of norms are trained, as
/// copies in float32 in the frozen ones' place. A norm without a shift (RMSNorm) gets none. BERT-base: 38,400 numbers.
/// Merging puts the copies in place.
/// </summary>
public sealed class LayerNormTuningOptions : SiteMethod
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "ln-tuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "scale";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (true, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 d a norm, d without a shift";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "LN_TUNING";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles =>
        [SiteRole.EmbeddingNorm, SiteRole.AttentionNorm, SiteRole.FeedForwardNorm, SiteRole.StageNorm, SiteRole.OtherNorm, SiteRole.FinalNorm];

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Norm;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        NamedParameter weight = Add(adaptation, $"{path}.ln_tuning_layers.weight", TrainedCopies.Copy(site.Weight));
        NamedParameter? bias = site.Bias is null ? null : Add(adaptation, $"{path}.ln_tuning_layers.bias", TrainedCopies.Copy(site.Bias));
        adaptation.Attach(site, new CopyPatch(weight, bias, RunningStatistics.Of(adaptation, site, $"{path}.ln_tuning_layers")));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => TrainedCopies.Count(site);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone) =>
        WriteTargets(config, backbone);
}
