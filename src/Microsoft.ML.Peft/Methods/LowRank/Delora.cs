// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// DeLoRA (Bini et al. 2025, arXiv 2503.18225): the update's directions and its strength are trained apart.
/// <c>ΔW = B diag(λ / (r ‖a_i‖ ‖b_i‖)) A diag(n)</c> with <c>A [rank, in]</c>, <c>B [out, rank]</c>, one trained λ a module, and n the
/// lengths of W's columns. The change is bounded by λ, whatever the learning rate. B starts at 0.
/// </summary>
public sealed class DeloraOptions : BiasedMethod
{
    private const double Shortest = 1e-4;

    /// <summary>Rank r, 1 to 4096.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>Start of λ, the bound of the change's strength; above 0.</summary>
    public double Lambda { get; set; } = 15;

    /// <summary>Share of the change's input that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    /// <summary>Other ranks for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, int> RankPattern { get; set; } = [];

    /// <summary>Other λ for some modules: regular expressions of the path's end, first match wins.</summary>
    public OrderedDictionary<string, double> LambdaPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "delora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) + 1 a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "DELORA";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!(Lambda > 0) || !double.IsFinite(Lambda)) throw Invalid(nameof(Lambda), Lambda, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
        foreach ((string key, int rank) in RankPattern)
            if (rank is < 1 or > 4096) throw Invalid($"{nameof(RankPattern)}['{key}']", rank, "1 to 4096");
        foreach ((string key, double lambda) in LambdaPattern)
            if (!(lambda > 0) || !double.IsFinite(lambda)) throw Invalid($"{nameof(LambdaPattern)}['{key}']", lambda, "a finite number above 0");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => RankAt(path) * (Wide(site) + Narrow(site)) + 1;

    private long RankAt(string path) => TargetMatcher.FirstKey(RankPattern.Keys, path) is { } key ? RankPattern[key] : Rank;

    private double LambdaAt(string path) => TargetMatcher.FirstKey(LambdaPattern.Keys, path) is { } key ? LambdaPattern[key] : Lambda;

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long rank = RankAt(path);
        NamedParameter a = Add(adaptation, $"{path}.delora_A", new Draws(seed, $"{path}.delora_A").Kaiming(rank, Narrow(site)));
        NamedParameter b = Add(adaptation, $"{path}.delora_B", zeros([Wide(site), rank]));
        NamedParameter lambda = Add(adaptation, $"{path}.delora_lambda", full([1], LambdaAt(path)));
        NamedParameter lengths = Add(adaptation, $"{path}.delora_w_norm", site.Weight.to_type(ScalarType.Float32).pow(2).sum(0L).sqrt(), trainable: false);
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            Tensor share = lambda.Value / (a.Value.norm(1).clamp_min(Shortest) * b.Value.norm(0).clamp_min(Shortest) * rank);     // [rank]
            return [new LowRankTerm(share.unsqueeze(1) * a.Value * lengths.Value, b.Value, 1, Dropout: Dropout)];
        }));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 8);
        Lambda = AdapterConfig.Get(config, "delora_lambda", 15.0);
        Dropout = AdapterConfig.Get(config, "module_dropout", 0.0);
        RankPattern = ConfigFields.Ranks(config, "rank_pattern");
        LambdaPattern = AdapterConfig.Table(config, "lambda_pattern");
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        string[] paths = [.. SelectSites(backbone).Select(backbone.PathOf)];
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["delora_lambda"] = AdapterConfig.Number(Lambda);
        config["module_dropout"] = Dropout;
        ConfigFields.Write(config, "rank_pattern", RankPattern.Select(p => KeyValuePair.Create(p.Key, (double)p.Value)), paths);
        ConfigFields.Write(config, "lambda_pattern", LambdaPattern, paths);
    }
}
