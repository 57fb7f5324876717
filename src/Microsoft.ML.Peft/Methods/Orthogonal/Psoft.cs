// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How PSOFT deals the singular values out to its frozen factors.</summary>
public enum PsoftSplit
{
    /// <summary>A holds directions alone: it has orthonormal rows, and angles between W's principal directions are kept.</summary>
    Orthonormal,
    /// <summary>A and B hold the root of the singular values each.</summary>
    Even,
}

/// <summary>
/// PSOFT (Wu et al. 2025, arXiv 2505.11235): the weight's principal part is turned. <c>W_r = s B A</c> are the largest
/// <c>rank</c> singular directions, <c>ΔW = s B (diag(b) R diag(a) − I) A</c>, with R orthogonal out of <c>rank (rank − 1) / 2</c> trained
/// numbers and two trained vectors. A and B are frozen, made of W when the adapter is made and not in its files; R starts at I, the
/// vectors at 1. The signs of singular vectors are those that LAPACK gives: the files of others were made with them.
/// </summary>
public sealed class PsoftOptions : SiteMethod
{
    /// <summary>Number of principal directions, 2 to 4096, at most the narrower width of a module.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Scaling numerator α, s = α / rank; it cancels at the start.</summary>
    public double Alpha { get; set; } = 32;

    /// <summary>How the singular values are dealt out.</summary>
    public PsoftSplit Split { get; set; }

    /// <summary>True to train a, the factors of the directions before R.</summary>
    public bool TrainInputScale { get; set; } = true;

    /// <summary>True to train b, the factors of the directions after R.</summary>
    public bool TrainOutputScale { get; set; } = true;

    /// <summary>False to train R as any matrix, out of rank² numbers.</summary>
    public bool Orthogonal { get; set; } = true;

    /// <summary>True to make R by a cut series in place of the exact transform.</summary>
    public bool Series { get; set; }

    /// <summary>Terms of the series, 1 to 20; three are as four.</summary>
    public int Terms { get; set; } = 5;

    /// <summary>With the series: largest length of Q, which is scaled down to it; null for any.</summary>
    public double? Radius { get; set; }

    /// <summary>Share of the change's input that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    private readonly CarriedFields _carried = new(("psoft_svd_lowrank_niter", 10), ("random_seed", 0));

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "psoft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "orthogonal";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (r − 1) / 2 + 2 r a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "PSOFT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 2 or > 4096) throw Invalid(nameof(Rank), Rank, "2 to 4096");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        if (!Enum.IsDefined(Split)) throw Invalid(nameof(Split), Split, "orthonormal or even");
        if (Terms is < 1 or > 20) throw Invalid(nameof(Terms), Terms, "1 to 20");
        if (Radius is { } radius && (!(radius > 0) || !double.IsFinite(radius))) throw Invalid(nameof(Radius), radius, "null, or a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
    }

    // Trained numbers of R.
    private long Turns => Orthogonal ? Rank * (Rank - 1L) / 2 : (long)Rank * Rank;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) =>
        Turns + (TrainInputScale ? Rank : 0) + (TrainOutputScale ? Rank : 0);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (Rank > Math.Min(Wide(site), Narrow(site)))
            throw new ArgumentException($"PsoftOptions.Rank is {Rank} at {path}, whose weight is [{Wide(site)}, {Narrow(site)}]; at most {Math.Min(Wide(site), Narrow(site))} is allowed.", nameof(Rank));
        double scale = Alpha / Rank;
        (Tensor a, Tensor b) = Principal(site.Weight, scale);
        NamedParameter Frozen(string name, Tensor value) => adaptation.Add(
            new NamedParameter($"{path}.{name}", value.to_type(ScalarType.Float32).contiguous().to(adaptation.Backbone.Device), trainable: false) { Exchanged = false });
        NamedParameter upper = Add(adaptation, $"{path}.psoft_R.weight", Orthogonal ? zeros([Turns]) : eye(Rank));
        NamedParameter? after = TrainOutputScale ? Add(adaptation, $"{path}.psoft_R.vector_b", ones([Rank])) : null;
        NamedParameter? before = TrainInputScale ? Add(adaptation, $"{path}.psoft_R.vector_a", ones([Rank])) : null;
        NamedParameter first = Frozen("psoft_A", a), second = Frozen("psoft_B", b);
        adaptation.Attach(site, new TermsPatch(pass =>
        {
            Tensor turn = Orthogonal ? Rotation(upper.Value, pass) : upper.Value;
            if (before is not null) turn = turn * before.Value;
            if (after is not null) turn = turn * after.Value.unsqueeze(1);
            return [new LowRankTerm(first.Value, second.Value.matmul(turn - eye(Rank, device: turn.device)), scale, Dropout: Dropout)];
        }));
    }

    private (Tensor A, Tensor B) Principal(Tensor weight, double scale)
    {
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(weight.to_type(ScalarType.Float32), fullMatrices: false);
        Tensor values = s.narrow(0, 0, Rank) / scale, left = u.narrow(1, 0, Rank), right = vt.narrow(0, 0, Rank);
        return Split == PsoftSplit.Even ? (values.sqrt().unsqueeze(1) * right, left * values.sqrt()) : (right, left * values);
    }

    private Tensor Rotation(Tensor upper, Pass? pass)
    {
        Tensor q = Rotations.Skew(upper.unsqueeze(0), Rank, pass).squeeze(0);
        if (!Series) return Rotations.Cayley(-q);
        if (Radius is { } radius) q = q * (radius / q.pow(2).sum().clamp_min(1e-24).sqrt()).clamp_max(1);
        return Rotations.Neumann(q, Terms);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        Only(config, "psoft_svd", "full");                       // the other is random: nobody can repeat it
        ReadTargets(config);
        Orthogonal = AdapterConfig.Get(config, "psoft_orth", true);
        Rank = AdapterConfig.Get(config, "r", 32);
        Alpha = AdapterConfig.Get(config, "psoft_alpha", 32.0);
        Dropout = AdapterConfig.Get(config, "psoft_dropout", 0.0);
        Split = ConfigFields.Choice(config, "ab_svd_init", "psoft_init", ("psoft_init", PsoftSplit.Orthonormal), ("pissa_init", PsoftSplit.Even));
        TrainInputScale = AdapterConfig.Get(config, "psoft_mag_a", true);
        TrainOutputScale = AdapterConfig.Get(config, "psoft_mag_b", true);
        Series = AdapterConfig.Get(config, "use_cayley_neumann", false);
        Terms = AdapterConfig.Get(config, "num_cayley_neumann_terms", 5);
        Radius = config["cayley_neumann_eps"] is null ? null : AdapterConfig.Get(config, "cayley_neumann_eps", 0.0);
        _carried.Read(config);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        _carried.Write(config);
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["init_weights"] = true;
        config["psoft_svd"] = "full";
        config["psoft_orth"] = Orthogonal;
        config["r"] = Rank;
        config["psoft_alpha"] = AdapterConfig.Number(Alpha);
        config["psoft_dropout"] = Dropout;
        config["ab_svd_init"] = Split == PsoftSplit.Even ? "pissa_init" : "psoft_init";
        config["psoft_mag_a"] = TrainInputScale;
        config["psoft_mag_b"] = TrainOutputScale;
        config["use_cayley_neumann"] = Series;
        config["num_cayley_neumann_terms"] = Terms;
        config["cayley_neumann_eps"] = Radius is { } radius ? JsonValue.Create(radius) : null;
    }
}
