// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// HiRA (Huang et al. 2025, ICLR, "HiRA: Parameter-Efficient Hadamard High-Rank Adaptation"): <c>W' = W + W ⊙ (B A)</c> with
/// <c>A [rank, in]</c>, <c>B [out, rank]</c>. The product with the frozen weight has a high rank, though A and B are as small
/// as LoRA's. B starts at 0. Projections, convolutions (over channels times kernel) and embedding tables.
/// </summary>
public sealed class HiraOptions : SiteMethod
{
    /// <summary>Rank of B A, 1 to 4096.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Share of the change's input that is dropped while training, in [0, 1); not at tables.</summary>
    public double Dropout { get; set; }

    /// <summary>Other ranks for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> RankPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "hira";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "HIRA";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        CheckShare(nameof(Dropout), Dropout);
        foreach ((string key, int rank) in RankPattern)
            if (rank is < 1 or > 4096) throw Invalid($"{nameof(RankPattern)}['{key}']", rank, "1 to 4096");
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution or Embedding;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => RankAt(path) * (Wide(site) + Narrow(site));

    private long RankAt(string path) => TargetMatcher.FirstKey(RankPattern.Keys, path) is { } key ? RankPattern[key] : Rank;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long rank = RankAt(path), wide = Wide(site), narrow = Narrow(site);
        if (site is Embedding table)
        {
            NamedParameter rows = Add(adaptation, $"{path}.hira_embedding_A", zeros([rank, narrow]));
            NamedParameter columns = Add(adaptation, $"{path}.hira_embedding_B", new Draws(seed, $"{path}.hira_embedding_B").Normal(1, wide, rank));
            adaptation.Attach(site, new TablePatch(table, rows, columns));
            return;
        }
        long[] kernel = site is Convolution convolution ? convolution.Kernel : [];
        NamedParameter a = Add(adaptation, $"{path}.hira_A", new Draws(seed, $"{path}.hira_A").Kaiming([rank, .. site.Weight.shape[1..]]));
        NamedParameter b = Add(adaptation, $"{path}.hira_B", zeros([wide, rank, .. kernel.Select(_ => 1L)]));
        adaptation.Attach(site, new AddedPatch(site, Dropout, _ =>
            site.Weight.to_type(ScalarType.Float32).reshape(wide, narrow) * b.Value.view(wide, rank).matmul(a.Value.view(rank, narrow))));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 32);
        Dropout = AdapterConfig.Get(config, "hira_dropout", 0.0);
        RankPattern = ConfigFields.Ranks(config, "rank_pattern");
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        IReadOnlyList<WeightSite> sites = SelectSites(backbone);
        WriteTargets(config, backbone);
        config["r"] = Rank;
        config["hira_dropout"] = Dropout;
        ConfigFields.Write(config, "rank_pattern", RankPattern.Select(p => KeyValuePair.Create(p.Key, (double)p.Value)), [.. sites.Select(backbone.PathOf)]);
        config["fan_in_fan_out"] = sites.OfType<Projection>().Any(site => site.StoredTransposed);
        config["init_weights"] = true;
    }

    // E' = E + E ⊙ (B A)ᵀ; only the rows that are looked up are made.
    private sealed class TablePatch(Embedding site, NamedParameter a, NamedParameter b) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor frozen = site.Forward(x, null, pass);
            Tensor factor = a.Value.index_select(1, x.reshape(-1)).t().matmul(b.Value.t()).reshape(frozen.shape);
            return next(x) + (frozen * factor).to_type(frozen.dtype);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
            (weight + (site.Weight * b.Value.matmul(a.Value).t()).to_type(weight.dtype), bias);
    }
}
