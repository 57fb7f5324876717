// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// HRA (Yuan, Liu and Xu 2024, arXiv 2405.17484): the weight is multiplied by a chain of Householder reflections,
/// <c>W' = W Π (I − 2 u uᵀ / ‖u‖²)</c> over the columns of <c>hra_u [in, rank]</c>, the first on the left. The columns start in equal pairs,
/// which cancel. Projections and convolutions (over channels times kernel).
/// </summary>
public sealed class HraOptions : BiasedMethod
{
    /// <summary>Number of reflections, 1 to 1024, at most the inputs of a module; an even one starts at the base model.</summary>
    public int Rank { get; set; } = 8;

    /// <summary>True to make the vectors orthogonal first, W' = W (I − 2 U Uᵀ); the start is then not the base model.</summary>
    public bool GramSchmidt { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "hra";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "orthogonal";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r in a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Rank % 2 == 0 && !GramSchmidt;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "HRA";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 1024) throw Invalid(nameof(Rank), Rank, "1 to 1024");
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Rank * Narrow(site);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (Rank > Narrow(site))
            throw new ArgumentException($"HraOptions.Rank is {Rank} at {path}, which reads {Narrow(site)} numbers; at most that many are allowed.", nameof(Rank));
        var draws = new Draws(seed, $"{path}.hra_u");
        Tensor start = ExactAtStart ? draws.Kaiming(Narrow(site), Rank / 2).repeat_interleave(2, 1) : draws.Kaiming(Narrow(site), Rank);
        NamedParameter u = Add(adaptation, $"{path}.hra_u", start);
        adaptation.Attach(site, new InputMapPatch(site, (rows, transposed, _) => Reflect(rows, u.Value, transposed)));
    }

    // The chain as I − U T Uᵀ with U of unit columns and T⁻¹ = ½ I + the upper triangle of UᵀU (Schreiber and Van Loan 1989).
    private Tensor Reflect(Tensor rows, Tensor vectors, bool transposed)
    {
        if (GramSchmidt)
        {
            Tensor q = linalg.qr(vectors).Item1;
            return rows - rows.matmul(q).matmul(q.t()) * 2;
        }
        Tensor unit = vectors / vectors.norm(0);
        Tensor inverse = unit.t().matmul(unit).triu(1) + eye(Rank, device: unit.device) * 0.5;
        Tensor t = linalg.inv(inverse);
        return rows - rows.matmul(unit).matmul(transposed ? t.t() : t).matmul(unit.t());
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 8);
        GramSchmidt = AdapterConfig.Get(config, "apply_GS", false);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["apply_GS"] = GramSchmidt;
    }
}
