// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// BitFit (Ben Zaken et al. 2022, arXiv 2106.10199): only biases are trained, those of projections and the shifts of norms.
/// BERT-base: 102,912 numbers. A fresh adaptation is the base model; merging puts the biases in place.
/// </summary>
public sealed class BitFitOptions : PeftMethod
{
    private static readonly Dictionary<string, SiteRole[]> _groups = new(StringComparer.Ordinal)
    {
        ["query"] = [SiteRole.Query],
        ["key"] = [SiteRole.Key],
        ["value"] = [SiteRole.Value],
        ["query_key_value"] = [SiteRole.QueryKeyValue],
        ["attention_output"] = [SiteRole.AttentionOutput],
        ["intermediate"] = [SiteRole.FeedForwardUp, SiteRole.FeedForwardGate],
        ["output"] = [SiteRole.FeedForwardDown],
        ["attention_layernorm"] = [SiteRole.AttentionNorm],
        ["output_layernorm"] = [SiteRole.FeedForwardNorm],
        ["embedding_layernorm"] = [SiteRole.EmbeddingNorm],
        ["final_layernorm"] = [SiteRole.FinalNorm],
        ["pooler"] = [SiteRole.Pooler],
    };

    /// <summary>
    /// Which biases: <c>query</c>, <c>key</c>, <c>value</c>, <c>query_key_value</c>, <c>attention_output</c>, <c>intermediate</c>,
    /// <c>output</c>, <c>attention_layernorm</c>, <c>output_layernorm</c>, <c>embedding_layernorm</c>, <c>final_layernorm</c>,
    /// <c>pooler</c>. Empty for all. Half of the quality is in <c>query</c> and <c>intermediate</c>.
    /// </summary>
    public string[] Groups { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "bitfit";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "one a bias";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 8e-4;

    /// <inheritdoc/>
    public override void Validate()
    {
        foreach (string group in Groups)
            if (!_groups.ContainsKey(group))
                throw Invalid(nameof(Groups), $"'{group}'", $"any of {string.Join(", ", _groups.Keys)}.{NearNames.Hint(group, _groups.Keys)}");
    }

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        List<WeightSite> sites = Sites(backbone);
        using var scope = NewDisposeScope();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (WeightSite site in sites) adaptation.Attach(site, new BiasPatch(TrainedCopies.Bias(adaptation, site)));
        return adaptation;
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Sites(backbone).Sum(site => site.Bias!.numel());

    private List<WeightSite> Sites(Backbone backbone)
    {
        List<WeightSite> biased = [.. backbone.Sites.OfType<WeightSite>().Where(site => site.Bias is not null)];
        if (biased.Count == 0)
            throw new ArgumentException($"This {backbone.Config.ModelType} backbone has no biases, so BitFit has nothing to train; use lora.");
        if (Groups.Length == 0) return biased;
        List<WeightSite> chosen = [.. biased.Where(site => Groups.Any(group => _groups[group].Contains(site.Role)))];
        if (chosen.Count == 0)
        {
            IEnumerable<string> present = _groups.Where(g => biased.Any(site => g.Value.Contains(site.Role))).Select(g => g.Key);
            throw Invalid(nameof(Groups), string.Join(", ", Groups), $"a group that this {backbone.Config.ModelType} backbone has: {string.Join(", ", present)}");
        }
        return chosen;
    }
}
