// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using System.Text.RegularExpressions;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// (IA)³ (Liu et al. 2022, arXiv 2205.05638): vectors l that scale keys, values and the hidden activations of the feed-forward
/// part: <c>y = l ⊙ (W x + b)</c> at keys and values, <c>y = W (l ⊙ x) + b</c> at the last feed-forward map. All l start at
/// 1. BERT-base: 55,296 numbers. Merging scales rows and bias, or columns.
/// </summary>
public sealed class Ia3Options : SiteMethod
{
    /// <summary>
    /// Which of the targets are scaled at their input: ends of module names, or roles. Null for the last feed-forward map;
    /// empty for none.
    /// </summary>
    public string[]? FeedForwardTargets { get; set; }

    /// <summary>A regular expression of whole module paths, in place of <see cref="FeedForwardTargets"/>; null for none.</summary>
    public string? FeedForwardPattern { get; set; }

    /// <summary>
    /// True to scale queries too where one projection makes queries, keys and values (GPT-2), as Hugging Face PEFT does; false
    /// for keys and values alone, as in the paper.
    /// </summary>
    public bool ScaleFusedQuery { get; set; }

    /// <summary>False to start from normal random numbers in place of 1; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "ia3";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "scale";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 3e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (true, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "d a site: outputs, or inputs of the last feed-forward map";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "IA3";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles =>
        [SiteRole.Key, SiteRole.Value, SiteRole.QueryKeyValue, SiteRole.FeedForwardDown];

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (FeedForwardPattern is not null && FeedForwardTargets is { Length: > 0 })
            throw Invalid(nameof(FeedForwardPattern), FeedForwardPattern, "null where FeedForwardTargets names modules: give one of the two");
        if (FeedForwardTargets?.Any(string.IsNullOrWhiteSpace) == true) throw Invalid(nameof(FeedForwardTargets), "''", "names of modules, without empty ones");
        try
        {
            if (FeedForwardPattern is not null) _ = new Regex(FeedForwardPattern);
        }
        catch (ArgumentException e)
        {
            throw Invalid(nameof(FeedForwardPattern), FeedForwardPattern, $"a regular expression ({e.Message})");
        }
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string name = $"{path}.ia3_l";
        bool input = ScalesInput(site, path);
        long count = CountSite(site, path);
        long[] shape = site is Convolution convolution ? [1, count, .. convolution.Kernel.Select(_ => 1L)] : input ? [1, count] : [count, 1];
        NamedParameter l = Add(adaptation, name, InitWeights ? ones(shape) : new Draws(seed, name).Normal(1, shape));
        l.Decay = false;                                                        // decay would pull towards 0, not towards 1
        adaptation.Attach(site, input
            ? new ChannelPatch(site) { Input = () => l.Value }
            : new ChannelPatch(site) { Scale = SplitsQuery(site) ? () => AfterQuery(l.Value) : () => l.Value });
    }

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed) => TakeDefaultInputs(adaptation.Backbone);

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites)
    {
        TakeDefaultInputs(backbone);
        return 0;
    }

    // A file without feedforward_modules means its writer's defaults.
    private void TakeDefaultInputs(Backbone backbone)
    {
        if (FromFile && FeedForwardTargets is null && FeedForwardPattern is null)
            FeedForwardTargets = [.. DefaultTargets.ScaledInputsOf(backbone.Config.ModelType) ?? []];
    }

    // [2 d, 1] of keys and values behind ones for the queries.
    private static Tensor AfterQuery(Tensor l) => cat([ones(l.numel() / 2, device: l.device), l.reshape(-1)]);

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) =>
        ScalesInput(site, path) ? site is Convolution convolution ? convolution.In : Narrow(site)
        : SplitsQuery(site) ? Wide(site) / 3 * 2 : Wide(site);

    private bool SplitsQuery(WeightSite site) => !ScaleFusedQuery && site.Role == SiteRole.QueryKeyValue && Wide(site) % 3 == 0;

    private bool ScalesInput(WeightSite site, string path)
    {
        if (FeedForwardPattern is not null) return Regex.IsMatch(path, $@"\A(?:{FeedForwardPattern})\z");
        if (FeedForwardTargets is null) return site.Role == SiteRole.FeedForwardDown;
        return FeedForwardTargets.Any(name => path.EndsWith(name, StringComparison.Ordinal) || site.Role.ToString() == name);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        FeedForwardPattern = config["feedforward_modules"] is JsonValue value && value.TryGetValue(out string? pattern) ? pattern : null;
        FeedForwardTargets = FeedForwardPattern is not null || config["feedforward_modules"] is null ? null : [.. AdapterConfig.List<string>(config, "feedforward_modules")];
        InitWeights = AdapterConfig.Get(config, "init_ia3_weights", true);
        ScaleFusedQuery = true;
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        TakeDefaultInputs(backbone);
        IReadOnlyList<WeightSite> sites = SelectSites(backbone);
        string[] paths = [.. sites.Select(backbone.PathOf)], inputs = [.. sites.Where(s => ScalesInput(s, backbone.PathOf(s))).Select(backbone.PathOf)];
        bool plain = FeedForwardTargets is not null && FeedForwardTargets.All(name => !Enum.TryParse(name, out SiteRole _));
        config["feedforward_modules"] = FeedForwardPattern is not null ? FeedForwardPattern
            : AdapterConfig.Array(plain ? FeedForwardTargets! : TargetMatcher.Shorten(inputs, paths.Except(inputs)));
        config["init_ia3_weights"] = InitWeights;
        config["fan_in_fan_out"] = sites.OfType<Projection>().Any(site => site.StoredTransposed);
    }

    /// <summary>Files hold one vector for a whole fused projection: that of the queries is 1.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        IReadOnlyList<WeightSite> sites = SelectSites(adaptation.Backbone);
        if (!sites.Any(site => SplitsQuery(site) && !ScalesInput(site, adaptation.Backbone.PathOf(site)))) return adaptation;
        var whole = (Ia3Options)PeftMethods.FromJson(PeftMethods.ToJson(this));
        whole.ScaleFusedQuery = true;
        PeftAdaptation made = whole.Attach(adaptation.Backbone, 0);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        foreach (NamedParameter target in made.Parameters)
        {
            Tensor source = adaptation.Find(target.Name)!.Value;
            target.Load(source.numel() == target.Value.numel() ? source : AfterQuery(source).reshape(target.Value.shape));
        }
        return made;
    }
}
