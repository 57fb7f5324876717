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
/// OSF, orthogonal subspace fine-tuning (Nayak et al. 2025, arXiv 2504.07097): of <c>W = U S Vᵀ</c> the largest triplets stay and
/// the rest is trained, with gradients of U and V projected off the directions that stay, so that what the model knew is
/// disturbed least. Trained numbers a site: (min(in, out) − r)(in + out + 1) for r triplets that stay. Starts from an SVD of the
/// base model, which is made again when a file is read. Merging: the sum of all triplets.
/// </summary>
public sealed class OsfOptions : SiteMethod
{
    /// <summary>
    /// How many of the largest triplets stay: a number of 1 or more, a share of all between 0 and 1, or null for half. May be
    /// changed by <see cref="RankPattern"/>.
    /// </summary>
    public double? EffectiveRank { get; set; }

    /// <summary>Other ranks for some modules: regular expressions that occur anywhere in the path, first match wins.</summary>
    public OrderedDictionary<string, double> RankPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "osf";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "spectral";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "(min(in, out) − r)(in + out + 1) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "OSF";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (EffectiveRank is { } rank && !Sound(rank)) throw Invalid(nameof(EffectiveRank), rank, "null, between 0 and 1, or a whole number of 1 or more");
        foreach ((string key, double value) in RankPattern)
            if (!Sound(value)) throw Invalid($"{nameof(RankPattern)}['{key}']", value, "between 0 and 1, or a whole number of 1 or more");
    }

    private static bool Sound(double rank) => rank is > 0 and < 1 || (rank >= 1 && rank == Math.Floor(rank) && rank < int.MaxValue);

    // Triplets that stay.
    private long KeptAt(WeightSite site, string path)
    {
        long all = Math.Min(Wide(site), Narrow(site));
        string? key = RankPattern.Keys.FirstOrDefault(k => Regex.IsMatch(path, k));
        double rank = key is not null ? RankPattern[key] : EffectiveRank ?? 0.5;
        long kept = rank < 1 ? (long)(rank * all) : (long)rank;
        return kept < all ? kept
            : throw Invalid(nameof(EffectiveRank), rank, $"below {all} at {path}, whose weight is [{Wide(site)}, {Narrow(site)}], or nothing is trained");
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (!site.Weight.is_floating_point()) throw new ArgumentException($"OsfOptions needs a dense weight, but that of {path} is quantised.");
        long kept = KeptAt(site, path), rest = Math.Min(Wide(site), Narrow(site)) - kept;
        // The decomposition's error counts, so it is made in float64.
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(site.Weight.to_type(ScalarType.Float64), fullMatrices: false);
        NamedParameter Trained(string part, Tensor value) => Add(adaptation, $"{path}.osf_svd_params.{part}", value.to_type(ScalarType.Float32).contiguous());
        NamedParameter Frozen(string part, Tensor value) => adaptation.Add(
            new NamedParameter($"{path}.osf_{part}", value.to_type(ScalarType.Float32).contiguous(), trainable: false) { Exchanged = false });
        NamedParameter left = Trained("U_low", u.narrow(1, kept, rest)), size = Trained("S_low", s.narrow(0, kept, rest)), right = Trained("V_low", vt.narrow(0, kept, rest));
        NamedParameter highLeft = Frozen("U_high", u.narrow(1, 0, kept)), highRight = Frozen("V_high", vt.narrow(0, 0, kept)), highSize = Frozen("S_high", s.narrow(0, 0, kept));
        adaptation.Attach(site, new DeltaPatch(_ =>
        {
            Tensor frozen = site.Weight.to_type(ScalarType.Float32) - (highLeft.Value * highSize.Value).matmul(highRight.Value);
            Tensor changed = (Guarded(left.Value, highLeft.Value) * size.Value).matmul(Guarded(right.Value.t(), highRight.Value.t()).t());
            return changed - frozen;
        }));
    }

    // The value itself; its gradient loses what lies in the span of the directions that stay.
    private static Tensor Guarded(Tensor value, Tensor directions)
    {
        if (!value.requires_grad || !is_grad_enabled()) return value;
        Tensor still = value.detach(), moved = value - still;                                // 0, with a gradient
        return still + (moved - directions.matmul(directions.t().matmul(moved)));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) =>
        (Math.Min(Wide(site), Narrow(site)) - KeptAt(site, path)) * (Wide(site) + Narrow(site) + 1);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        if (!AdapterConfig.IsEmpty(config, "target_svd_config"))
            throw new ArgumentException($"adapter_config.json: the field 'target_svd_config' is {config["target_svd_config"]!.ToJsonString()}; supported is null: use 'rank_pattern'.", nameof(config));
        ReadTargets(config);
        EffectiveRank = config["effective_rank"] is null ? null : AdapterConfig.Get(config, "effective_rank", 0.5);
        RankPattern = AdapterConfig.Table(config, "rank_pattern");
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["effective_rank"] = EffectiveRank is { } rank ? AdapterConfig.Number(rank) : null;
        config["rank_pattern"] = RankPattern.Count == 0 ? null : new JsonObject(RankPattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Number(p.Value))));
        config["target_svd_config"] = null;
        config["init_weights"] = true;
    }
}
