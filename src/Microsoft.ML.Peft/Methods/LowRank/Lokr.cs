// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// LoKr (LyCORIS: Yeh et al. 2024, arXiv 2309.14859): <c>W' = W + α/r · (w1 ⊗ w2)</c>, a Kronecker product. out = a · c and
/// in = b · d with a ≤ c, b ≤ d as near the root as the divisors are; <c>w1 [a, b]</c>, <c>w2 [c, d]</c>, each given whole where
/// the rank is not below half of its longer side, else as a product of rank r (w1 only with
/// <see cref="DecomposeBoth"/>). w1 starts at 0. Trained numbers of a 768 x 768 map at rank 8: 24 · 24 + 2 · 8 · 32 = 1,088.
/// </summary>
public sealed class LokrOptions : LycorisMethod
{
    /// <summary>True to give w1 as a low-rank product too.</summary>
    public bool DecomposeBoth { get; set; }

    /// <summary>The first divisor of each width, where it divides it; else an upper bound of it. -1 for the one nearest the root.</summary>
    public int DecomposeFactor { get; set; } = -1;

    /// <summary>True to enlarge the rows that <see cref="LycorisMethod.RankDropout"/> leaves.</summary>
    public bool RankDropoutScale { get; set; }

    /// <summary>Initial values: <c>default</c> (w1 is 0), <c>lycoris</c> (w2 is 0), or <c>false</c> (nothing is 0; for tests).</summary>
    public string Init { get; set; } = "default";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lokr";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "m_in m_out + n_in n_out a site, or factors of rank r in their place";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Init != "false";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "LOKR";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (DecomposeFactor is not (-1 or > 0)) throw Invalid(nameof(DecomposeFactor), DecomposeFactor, "-1, or 1 or more");
        if (Init is not ("default" or "lycoris" or "false")) throw Invalid(nameof(Init), $"'{Init}'", "default, lycoris or false");
    }

    // Which factors a site has, by name and shape; w1 before w2.
    private List<(string Name, long[] Shape)> Factors(WeightSite site, string path)
    {
        long rank = RankAt(path);
        (long a, long c) = Divide(site.Weight.shape[0]);
        (long b, long d) = Divide(site.Weight.shape[1]);
        long[] kernel = [.. site.Weight.shape.Skip(2)];
        var factors = new List<(string, long[])>();
        if (DecomposeBoth && 2 * rank < Math.Max(a, b)) factors.AddRange([("w1_a", [a, rank]), ("w1_b", [rank, b])]);
        else factors.Add(("w1", [a, b]));
        if (2 * rank >= Math.Max(c, d)) factors.Add(("w2", [c, d, .. kernel]));
        else if (CoreKernel(site) is not null) factors.AddRange([("t2", [rank, rank, .. kernel]), ("w2_a", [rank, c]), ("w2_b", [rank, d])]);
        else factors.AddRange([("w2_a", [c, rank]), ("w2_b", [rank, d * kernel.Aggregate(1L, (x, y) => x * y)])]);
        return factors;
    }

    private (long First, long Second) Divide(long width)
    {
        if (DecomposeFactor > 0 && width % DecomposeFactor == 0) return (DecomposeFactor, width / DecomposeFactor);
        long first = (long)Math.Sqrt(width);
        if (DecomposeFactor > 0) first = Math.Min(first, DecomposeFactor);
        while (width % first != 0) first--;
        return (first, width / first);
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Factors(site, path).Sum(f => f.Shape.Aggregate(1L, (a, b) => a * b));

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string[] zero = Init switch { "default" => ["w1", "w1_a"], "lycoris" => ["w2", "w2_b"], _ => [] };
        var made = new Dictionary<string, NamedParameter>();
        foreach ((string name, long[] shape) in Factors(site, path))
        {
            string full = $"{path}.lokr_{name}";
            made[name] = Add(adaptation, full, zero.Contains(name) ? zeros(shape) : new Draws(seed, full).Kaiming(shape));
        }
        double scale = ScaleAt(path);
        (long rows, long columns) = (site.Weight.shape[0], site.Weight.shape[1]);
        (long a, long c) = Divide(rows);
        (long b, long d) = Divide(columns);
        Tensor? Value(string name) => made.TryGetValue(name, out NamedParameter? parameter) ? parameter.Value : null;
        Attach(adaptation, site, () =>
        {
            Tensor w1 = Value("w1") ?? Value("w1_a")!.matmul(Value("w1_b")!);
            Tensor w2 = Value("w2") ?? (Value("t2") is { } core ? Tucker(core, Value("w2_a")!, Value("w2_b")!) : Value("w2_a")!.matmul(Value("w2_b")!));
            // w1 ⊗ w2 with the kernel as a last axis.
            return (w1.view(a, 1, b, 1, 1) * (w2 * scale).reshape(1, c, 1, d, -1)).reshape(site.Weight.shape);
        }, RankDropoutScale);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        base.ReadHuggingFace(config);
        DecomposeBoth = AdapterConfig.Get(config, "decompose_both", false);
        DecomposeFactor = AdapterConfig.Get(config, "decompose_factor", -1);
        RankDropoutScale = AdapterConfig.Get(config, "rank_dropout_scale", false);
        Init = config["init_weights"] is JsonValue text && text.TryGetValue(out string? name) ? name
            : AdapterConfig.Get(config, "init_weights", true) ? "default" : "false";
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        base.WriteHuggingFace(config, backbone);
        config["decompose_both"] = DecomposeBoth;
        config["decompose_factor"] = DecomposeFactor;
        config["rank_dropout_scale"] = RankDropoutScale;
        config["init_weights"] = Init switch { "default" => true, "false" => false, _ => Init };
    }
}
