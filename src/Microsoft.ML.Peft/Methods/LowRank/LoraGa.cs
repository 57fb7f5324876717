// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Which singular triplets of the gradient A and B start from; r is the rank.</summary>
public enum LoraGaDirection
{
    /// <summary>A from the first r, B from the next r.</summary>
    ArB2r,
    /// <summary>B from the first r, A from the next r.</summary>
    A2rBr,
    /// <summary>B from every other one of the first 2 r, A from those between.</summary>
    ArBr,
    /// <summary>The first 2 r, dealt at random.</summary>
    Random,
}

/// <summary>How large the factors start.</summary>
public enum LoraGaScale
{
    /// <summary>B times <c>out^¼ / √γ</c>.</summary>
    Stable,
    /// <summary>B's largest singular value becomes the weight's.</summary>
    WeightSvd,
    /// <summary>Both factors divided by the update's scaling.</summary>
    GdScale,
    /// <summary>As the decomposition gives them.</summary>
    Unit,
}

/// <summary>
/// LoRA-GA (Wang et al. 2024, arXiv 2407.05000): A and B start along the gradient of the weight, so that the first step of the
/// update is close to the first step of full fine-tuning; the weight gives up what they begin with. The gradient is the mean
/// over the first batches.
/// </summary>
public sealed class LoraGaStart : LoraStart
{
    /// <summary>Which singular triplets go where.</summary>
    public LoraGaDirection Direction { get; set; } = LoraGaDirection.ArB2r;

    /// <summary>How large the factors start.</summary>
    public LoraGaScale Scale { get; set; } = LoraGaScale.Stable;

    /// <summary>γ of <see cref="LoraGaScale.Stable"/>, above 0: larger starts smaller.</summary>
    public double Gamma { get; set; } = 16;

    internal override bool ChangesBase => true;

    private static readonly (string Name, LoraGaScale Scale)[] _scales =
        [("stable", LoraGaScale.Stable), ("weight_svd", LoraGaScale.WeightSvd), ("gd_scale", LoraGaScale.GdScale), ("unit", LoraGaScale.Unit)];

    internal static LoraGaStart From(JsonObject fields)
    {
        string scale = AdapterConfig.Get(fields, "scale", "stable"), direction = AdapterConfig.Get(fields, "direction", "ArB2r");
        if (_scales.All(s => s.Name != scale)) throw new ArgumentException($"adapter_config.json: the field 'lora_ga_config.scale' is '{scale}'; expected is {string.Join(", ", _scales.Select(s => s.Name))}.");
        if (!Enum.TryParse(direction == "random" ? "Random" : direction, out LoraGaDirection parsed) || !Enum.IsDefined(parsed))
            throw new ArgumentException($"adapter_config.json: the field 'lora_ga_config.direction' is '{direction}'; expected is ArB2r, A2rBr, ArBr or random.");
        return new LoraGaStart { Direction = parsed, Scale = _scales.First(s => s.Name == scale).Scale, Gamma = AdapterConfig.Get(fields, "stable_gamma", 16.0), Made = true };
    }

    internal override void Write(JsonObject config)
    {
        config["init_lora_weights"] = "lora_ga";
        config["lora_ga_config"] = new JsonObject
        {
            ["direction"] = Direction == LoraGaDirection.Random ? "random" : Direction.ToString(),
            ["scale"] = _scales.First(s => s.Scale == Scale).Name,
            ["stable_gamma"] = AdapterConfig.Number(Gamma),
        };
    }

    internal override void Validate(Func<string, object?, string, ArgumentException> invalid)
    {
        base.Validate(invalid);
        if (!(Gamma > 0) || !double.IsFinite(Gamma)) throw invalid(nameof(Gamma), Gamma, "a finite number above 0");
        if (!Enum.IsDefined(Direction)) throw invalid(nameof(Direction), Direction, string.Join(", ", Enum.GetNames<LoraGaDirection>()));
        if (!Enum.IsDefined(Scale)) throw invalid(nameof(Scale), Scale, string.Join(", ", Enum.GetNames<LoraGaScale>()));
    }

    internal override void Make(LoraAdaptation adaptation, LoraOptions options, Calibration calibration)
    {
        LoraFactors[] maps = Maps(adaptation);
        foreach (LoraFactors f in maps) CheckDense(f, 2 * (int)f.A.Value.shape[0]);
        using var scope = NewDisposeScope();
        IReadOnlyDictionary<WeightSite, Tensor> gradients = calibration.Gradients([.. maps.Select(f => f.Site)]);
        using var off = no_grad();
        foreach (LoraFactors f in maps)
        {
            (Tensor a, Tensor b) = FromGradient(gradients[f.Site], f.Site.Weight, (int)f.A.Value.shape[0], f.Scale, new Draws(0, f.A.Name));
            Take(f, a, b);
        }
        options.DataStart = new LoraGaStart { Direction = Direction, Scale = Scale, Gamma = Gamma, MostBatches = MostBatches, Made = true };
    }

    /// <summary>The factors that a gradient gives.</summary>
    /// <param name="gradient">Gradient of the weight, <c>[out, in]</c>.</param>
    /// <param name="weight">The weight, <c>[out, in]</c>.</param>
    /// <param name="rank">Rank r.</param>
    /// <param name="scaling">Scaling s of the update.</param>
    /// <param name="draws">Random numbers of <see cref="LoraGaDirection.Random"/>.</param>
    internal (Tensor A, Tensor B) FromGradient(Tensor gradient, Tensor weight, int rank, double scaling, Draws draws)
    {
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(gradient.to_type(ScalarType.Float64), fullMatrices: false);
        if (s[0].item<double>() == 0)
            throw new InvalidOperationException("A gradient that LoRA-GA should start from is zero: the loss does not depend on the module.");
        long[] all = [.. Enumerable.Range(0, 2 * rank)];
        long[] dealt = [.. all.Select(i => (Key: draws.Next(), i)).OrderBy(p => p.Key).Select(p => p.i)];
        (long[] ofA, long[] ofB) = Direction switch
        {
            LoraGaDirection.ArB2r => (all[..rank], all[rank..]),
            LoraGaDirection.A2rBr => (all[rank..], all[..rank]),
            LoraGaDirection.ArBr => ([.. all.Where(i => i % 2 == 1)], [.. all.Where(i => i % 2 == 0)]),
            _ => (dealt[..rank], dealt[rank..]),
        };
        Tensor a = vt.index_select(0, tensor(ofA).to(u.device)), b = (u * s).index_select(1, tensor(ofB).to(u.device));
        switch (Scale)
        {
            case LoraGaScale.Stable:
                b = b * (Math.Pow(weight.shape[0], 0.25) / Math.Sqrt(Gamma));
                break;
            case LoraGaScale.WeightSvd:
                b = b * (linalg.svdvals(weight.to_type(ScalarType.Float64))[0] / s.index_select(0, tensor(ofB).to(u.device))[0]);
                break;
            case LoraGaScale.GdScale:
                (a, b) = (a / scaling, b / scaling);
                break;
        }
        return (a.to_type(ScalarType.Float32), b.to_type(ScalarType.Float32));
    }
}
