// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How DEFT makes its projection out of P.</summary>
public enum DeftDecomposition
{
    /// <summary>Q = P, and W is projected by max(P, 0).</summary>
    Relu,
    /// <summary>Q = the orthonormal factor of P, on both sides.</summary>
    Qr,
}

/// <summary>
/// DEFT (decompositional fine-tuning) and PaRa (parameter rank reduction; Chen et al. 2024, arXiv 2406.05641): a trained
/// subspace <c>P [out, rank]</c> of the weight's outputs is taken out and written anew, <c>ΔW = Q (s R − Rightᵀ W)</c> with
/// <c>R [rank, in]</c>. R starts at what is taken out, so a fresh adapter changes nothing; PaRa has no R and only takes out.
/// Several at one site refer to the frozen W and add up.
/// </summary>
public sealed class DeftOptions : BiasedMethod
{
    /// <summary>Rank of the subspace, 1 to 4096, at most the narrower output.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>Scaling numerator α of R, s = α / rank; null for s = 1.</summary>
    public double? Alpha { get; set; }

    /// <summary>How the projection is made.</summary>
    public DeftDecomposition Decomposition { get; set; }

    /// <summary>True for PaRa: the subspace is only taken out. A fresh adapter is then not the base model.</summary>
    public bool Para { get; set; }

    /// <summary>Share of the change's input that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    private readonly CarriedFields _carried = new(("init_scale", 1.0));

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "deft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "out r + r in a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => !Para;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "DEFT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (Alpha is { } alpha && (!(alpha > 0) || !double.IsFinite(alpha))) throw Invalid(nameof(Alpha), alpha, "null, or a finite number above 0");
        if (!Enum.IsDefined(Decomposition)) throw Invalid(nameof(Decomposition), Decomposition, "relu or qr");
        CheckShare(nameof(Dropout), Dropout);
    }

    private double Scale => Alpha is { } alpha ? alpha / Rank : 1;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Rank * (Wide(site) + (Para ? 0 : Narrow(site)));

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (Rank > Wide(site))
            throw new ArgumentException($"DeftOptions.Rank is {Rank} at {path}, which has {Wide(site)} outputs; at most that many are allowed.", nameof(Rank));
        Tensor start = new Draws(seed, $"{path}.deft_P").Normal(0.02, Wide(site), Rank).to(adaptation.Backbone.Device);
        NamedParameter p = Add(adaptation, $"{path}.deft_P", start);
        NamedParameter? r = Para ? null : Add(adaptation, $"{path}.deft_R", Removed(Projectors(start).Right, site) / Scale);
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            (Tensor q, Tensor right) = Projectors(p.Value);
            Tensor removed = Removed(right, site);
            return [new LowRankTerm(r is null ? -removed : r.Value * Scale - removed, q, 1, Dropout: Dropout)];
        }));
    }

    private (Tensor Q, Tensor Right) Projectors(Tensor p)
    {
        if (Decomposition == DeftDecomposition.Relu) return (p, p.relu());
        Tensor q = linalg.qr(p).Item1;
        return (q, q);
    }

    private static Tensor Removed(Tensor right, WeightSite site) => right.t().matmul(site.Weight.to_type(ScalarType.Float32));     // [rank, in]

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 8);
        Alpha = config["alpha"] is null ? null : AdapterConfig.Get(config, "alpha", 0.0);
        Decomposition = ConfigFields.Choice(config, "decomposition_method", "relu", ("relu", DeftDecomposition.Relu), ("qr", DeftDecomposition.Qr));
        Para = AdapterConfig.Get(config, "para", false);
        Dropout = AdapterConfig.Get(config, "deft_dropout", 0.0);
        _carried.Read(config);                                                   // only said how a fresh P was drawn
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        _carried.Write(config);
        WriteBias(config);
        config["init_weights"] = true;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["r"] = Rank;
        config["alpha"] = Alpha is { } alpha ? AdapterConfig.Number(alpha) : null;
        config["decomposition_method"] = Decomposition == DeftDecomposition.Qr ? "qr" : "relu";
        config["para"] = Para;
        config["deft_dropout"] = Dropout;
    }
}
