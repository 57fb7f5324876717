// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Which directions CorDA trains.</summary>
public enum CordaMethod
{
    /// <summary>Those that the data use most: for learning the task that the batches show.</summary>
    InstructionPreviewed,
    /// <summary>Those that the data use least: for keeping what the batches show.</summary>
    KnowledgePreserved,
}

/// <summary>
/// CorDA (Yang et al. 2024, arXiv 2406.05223): the weight is decomposed with regard to the covariance C of its inputs,
/// <c>U S Vᵀ = svd(W C)</c>, <c>V ← C⁻¹V</c>; A and B take over the components that the data use most, or least.
/// </summary>
public sealed class CordaStart : LoraStart
{
    private const double Damping = 0.01, Enough = 0.05;
    private bool _keepFields;

    /// <summary>Which components are taken.</summary>
    public CordaMethod Method { get; set; } = CordaMethod.InstructionPreviewed;

    internal override bool ChangesBase => true;

    internal static CordaStart From(JsonObject fields) => new()
    {
        Method = AdapterConfig.Get(fields, "corda_method", "ipm") switch
        {
            "ipm" => CordaMethod.InstructionPreviewed,
            "kpm" => CordaMethod.KnowledgePreserved,
            var other => throw new ArgumentException($"adapter_config.json: the field 'corda_config.corda_method' is '{other}'; expected is ipm or kpm."),
        },
        _keepFields = !AdapterConfig.Get(fields, "prune_temporary_fields", true),
        Made = true,
    };

    internal override void Write(JsonObject config)
    {
        config["init_lora_weights"] = "corda";
        config["corda_config"] = new JsonObject
        {
            ["cache_file"] = null,
            ["corda_method"] = Method == CordaMethod.InstructionPreviewed ? "ipm" : "kpm",
            ["covariance_file"] = null,
            ["prune_temporary_fields"] = !_keepFields,
            ["use_float16_for_covariance"] = false,
            ["verbose"] = false,
        };
    }

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        base.Validate(invalid);
        if (!Enum.IsDefined(Method)) throw invalid(nameof(Method), Method, string.Join(", ", Enum.GetNames<CordaMethod>()));
    }

    internal override void Make(LoraAdaptation adaptation, LoraOptions options, Calibration calibration)
    {
        LoraFactors[] maps = Maps(adaptation);
        foreach (LoraFactors f in maps) CheckDense(f, (int)f.A.Value.shape[0]);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        IReadOnlyDictionary<WeightSite, Tensor> covariances = Covariances(maps, calibration);
        foreach (LoraFactors f in maps)
        {
            (Tensor a, Tensor b) = FromCovariance(covariances[f.Site], f.Site.Weight, (int)f.A.Value.shape[0], f.Scale, f.Site.Name);
            Take(f, a, b);
        }
        options.DataStart = new CordaStart { Method = Method, MostBatches = MostBatches, Made = true };
    }

    // The mean over batches of Xᵀ X, X over its largest entry.
    internal static IReadOnlyDictionary<WeightSite, Tensor> Covariances(LoraFactors[] maps, Calibration calibration)
    {
        var sums = maps.ToDictionary(f => f.Site, f => zeros([f.Site.Weight.shape[1], f.Site.Weight.shape[1]], device: f.Site.Weight.device));
        for (int batch = 0; batch < calibration.Batches; batch++)
        {
            using var scope = NewDisposeScope();
            calibration.Inputs(batch, sums.Keys, (site, x) =>
            {
                Tensor rows = x.detach().reshape(-1, x.shape[^1]).to_type(ScalarType.Float32);
                rows = rows / rows.max().abs();
                sums[site].add_(rows.t().matmul(rows), 1.0 / calibration.Batches);
            });
        }
        return sums;
    }

    /// <summary>The factors that a covariance gives.</summary>
    /// <param name="covariance">Covariance of the inputs, <c>[in, in]</c>.</param>
    /// <param name="weight">The weight, <c>[out, in]</c>.</param>
    /// <param name="rank">Rank r.</param>
    /// <param name="scaling">Scaling s of the update.</param>
    /// <param name="name">Name of the module, for messages.</param>
    internal (Tensor A, Tensor B) FromCovariance(Tensor covariance, Tensor weight, int rank, double scaling, string name)
    {
        Tensor c = covariance.to_type(ScalarType.Float64), one = eye(c.shape[0], dtype: ScalarType.Float64, device: c.device);
        double mean = c.diag().mean().item<double>();
        if (!double.IsFinite(mean) || mean <= 0)
            throw new InvalidOperationException($"The inputs of {name} have no finite covariance; CorDA cannot start from them.");
        (Tensor damped, Tensor inverse) = (c, c);
        for (double damping = Damping; ; damping *= 2)
        {
            damped = c + one * (damping * mean);
            inverse = linalg.inv(damped);
            if ((damped.matmul(inverse) - one).norm().item<double>() < Enough) break;
        }
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(weight.to_type(ScalarType.Float64).matmul(damped), fullMatrices: false);
        long first = Method == CordaMethod.InstructionPreviewed ? 0 : s.shape[0] - rank;
        Tensor root = (s.narrow(0, first, rank) / scaling).sqrt();
        return (
            (root.unsqueeze(1) * vt.narrow(0, first, rank).matmul(inverse)).to_type(ScalarType.Float32),
            (u.narrow(1, first, rank) * root).to_type(ScalarType.Float32));
    }
}
