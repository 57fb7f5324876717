// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// SSF, scaling and shifting features (Lian et al. 2022, arXiv 2210.08823): behind every projection, norm and patch convolution each
/// channel is scaled and shifted, <c>y = γ ⊙ f(x) + β</c>. Trained numbers: 2 · channels a site (ViT-B/16: 205,824). γ starts
/// near 1 and β near 0. Merging folds both into weight and bias: rows of maps, channels of convolutions, scales of norms.
/// </summary>
public sealed class SsfOptions : SiteMethod
{
    /// <summary>True to start at γ = 1 and β = 0, where the output is the base model's; false for the paper's N(1, 0.02²) and N(0, 0.02²).</summary>
    public bool IdentityInit { get; set; }

    /// <summary>
    /// True to shift also behind maps and norms that have no bias of their own (LLaMA, T5): a merged model then has biases that
    /// its file format does not know. False to scale only there.
    /// </summary>
    public bool AllowNewBias { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "ssf";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "scale";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => IdentityInit;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "2 · channels a site, 1 · channels without a bias";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles =>
    [
        SiteRole.PatchEmbedding, SiteRole.EmbeddingNorm, SiteRole.EmbeddingProjection, SiteRole.Query, SiteRole.Key, SiteRole.Value,
        SiteRole.QueryKeyValue, SiteRole.AttentionOutput, SiteRole.FeedForwardUp, SiteRole.FeedForwardGate, SiteRole.FeedForwardDown,
        SiteRole.AttentionNorm, SiteRole.CrossAttentionNorm, SiteRole.FeedForwardNorm, SiteRole.FinalNorm, SiteRole.DepthwiseConvolution,
        SiteRole.OtherConvolution, SiteRole.StageProjection, SiteRole.StageNorm, SiteRole.OtherNorm,
    ];

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection { Role: not SiteRole.LanguageHead } or Convolution or Norm;

    private bool Shifts(WeightSite site) => AllowNewBias || site.Bias is not null;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string gammaName = $"{path}.ssf_gamma", betaName = $"{path}.ssf_beta";
        long channels = Wide(site);
        Tensor Noise(string name) => IdentityInit ? zeros(channels) : new Draws(seed, name).Normal(0.02, channels);
        // One axis: no weight decay.
        NamedParameter gamma = Add(adaptation, gammaName, Noise(gammaName) + 1);
        NamedParameter? beta = Shifts(site) ? Add(adaptation, betaName, Noise(betaName)) : null;
        adaptation.Attach(site, new ChannelPatch(site) { Scale = () => gamma.Value, Shift = beta is null ? null : () => beta.Value });
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Wide(site) * (Shifts(site) ? 2 : 1);
}
