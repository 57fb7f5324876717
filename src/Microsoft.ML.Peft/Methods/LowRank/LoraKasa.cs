// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// KaSA (Wang et al. 2024, arXiv 2412.06071): the weight loses its r smallest singular components, and the update
/// <c>s B diag(d) A</c> has singular values d of its own, kept small and its factors orthogonal by a loss term. Not exact at
/// the start: what the weight loses, it loses at once. Trained numbers a site: r (in + out + 1).
/// </summary>
public sealed class KasaVariant : LoraVariant
{
    /// <summary>Weight of <c>Σ d²</c> in the loss, 0 or more.</summary>
    public double Beta { get; set; } = 1e-4;

    /// <summary>Weight of <c>‖BᵀB − I‖ + ‖A Aᵀ − I‖</c> in the loss, 0 or more.</summary>
    public double Gamma { get; set; } = 1e-3;

    internal override bool ExactAtStart => false;

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        if (!(Beta >= 0) || !double.IsFinite(Beta)) throw invalid(nameof(Beta), Beta, "a finite number, 0 or more");
        if (!(Gamma >= 0) || !double.IsFinite(Gamma)) throw invalid(nameof(Gamma), Gamma, "a finite number, 0 or more");
    }

    internal override void Write(JsonObject config) => config["kasa_config"] = new JsonObject { ["beta"] = Beta, ["gamma"] = Gamma };

    internal override long CountBeside(int rank) => rank;

    internal override void Add(LoraAdaptation adaptation, LoraFactors factors, string path, long seed)
    {
        Tensor weight = factors.Site.Weight;
        int rank = (int)factors.A.Value.shape[0];
        if (!weight.is_floating_point() || rank > Math.Min(weight.shape[0], weight.shape[1]))
            throw new ArgumentException($"KaSA needs a dense weight of at least rank {rank} at {path}; found [{string.Join(", ", weight.shape)}], {weight.dtype}.", "Variant");
        string name = $"{path}.lora_diag";
        factors.More["diag"] = adaptation.Add(name, new Draws(seed, name).Normal(1, rank).to(weight.device));
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(weight.to_type(ScalarType.Float64), fullMatrices: false);
        long kept = s.shape[0] - rank;
        NamedParameter Lost(string end, Tensor value) => factors.More[end] = adaptation.Add(
            new NamedParameter($"{path}.{end}", value.to_type(ScalarType.Float32).contiguous().to(weight.device), trainable: false) { Exchanged = false });
        Lost("lora_lost_A", vt.narrow(0, kept, rank));
        Lost("lora_lost_B", u.narrow(1, kept, rank) * s.narrow(0, kept, rank));
    }

    internal override WeightPatch Patch(LoraFactors factors) => new KasaPatch(factors);

    internal override Tensor? ExtraLoss(LoraAdaptation adaptation, Pass pass)
    {
        if (!pass.Training) return null;
        Tensor sum = zeros(1, device: adaptation.Backbone.Device);
        foreach (LoraFactors f in adaptation.Factors)
        {
            if (!f.More.TryGetValue("diag", out NamedParameter? diagonal)) continue;
            Tensor a = f.A.Value, b = f.B.Value, d = diagonal.Value, one = eye(d.shape[0], device: d.device);
            sum = sum + (d * d).sum() * Beta + ((b.t().matmul(b) - one).norm() + (a.matmul(a.t()) - one).norm()) * Gamma;
        }
        return sum.sum();
    }

    private sealed class KasaPatch(LoraFactors factors) : WeightPatch
    {
        public override PatchForm Form => PatchForm.LowRank;

        public override IReadOnlyList<LowRankTerm> Terms(Pass? pass) =>
        [
            factors.Term with { A = factors.A.Value * factors.More["diag"].Value.unsqueeze(1) },
            new(factors.More["lora_lost_A"].Value, factors.More["lora_lost_B"].Value, -1),
        ];

        public override Tensor? RewriteBias(Tensor? bias, Pass? pass) => Bias(factors, bias);
    }
}
