// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// RandLoRA (Albert et al. 2025, arXiv 2502.00987): an update of full rank, the sum of n = ⌈min(out, in)/r⌉ products of frozen
/// random matrices that all modules share (<c>A [r, 1, min]</c>, <c>B [max, n, r]</c>) and trained diagonals: λ <c>[r, n]</c>, 0 at first, and
/// γ <c>[n, min]</c>. <c>W' = W + α/r · Q P</c> with Q of B and P of λ, A and γ, transposed where the map widens less than it narrows.
/// Trained numbers a module: n (r + min(out, in)). The matrices are drawn as PyTorch draws them from
/// <see cref="ProjectionKey"/>.
/// </summary>
public sealed class RandLoraOptions : BiasedMethod
{
    /// <summary>Rank r of each product, 1 to 16384: a higher rank needs fewer products and trains fewer numbers.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>α: the update is scaled by α/r. Above 0; the paper takes 20 times the rank.</summary>
    public double Alpha { get; set; } = 640;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>True for matrices of −1, 0 and 1, two thirds of them 0.</summary>
    public bool Sparse { get; set; }

    /// <summary>True for matrices of −1, 0 and 1, all but one in √min(out, in) of them 0. Goes before <see cref="Sparse"/>.</summary>
    public bool VerySparse { get; set; }

    /// <summary>Seed of the shared matrices.</summary>
    public int ProjectionKey { get; set; }

    /// <summary>True to write the shared matrices into exchanged files.</summary>
    public bool SaveProjection { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "randlora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "(r + min(in, out)) ⌈min(in, out) / r⌉ a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "RANDLORA";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 16384) throw Invalid(nameof(Rank), Rank, "1 to 16384");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
    }

    private static (long Most, long Least) Extents(WeightSite site) =>
        (Math.Max(site.Weight.shape[0], site.Weight.shape[1]), Math.Min(site.Weight.shape[0], site.Weight.shape[1]));

    private long Bases(long least) => (least + Rank - 1) / Rank;

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
        long rows = sites.Max(s => s.Weight.shape[0]), columns = sites.Max(s => s.Weight.shape[1]);
        (long most, long least) = (Math.Max(rows, columns), Math.Min(rows, columns));
        long bases = Bases(least);
        var generator = new TorchGenerator(ProjectionKey);
        bool ternary = Sparse || VerySparse;
        double share = VerySparse ? Math.Sqrt(least) : 3;
        float[] a = ternary ? Ternary(generator.Rand(Rank * least), share) : Scaled(generator.UniformHalf(1 / Math.Sqrt(least), Rank * least));
        float[] b = ternary ? Ternary(generator.Rand(most * bases * Rank), share) : Scaled(Dense(generator, most, bases));
        Share("A", a, Rank, 1, least);
        Share("B", b, most, bases, Rank);

        void Share(string name, float[] values, params long[] shape) => adaptation.Add(
            new NamedParameter($"randlora_{name}", tensor(values, shape.AsSpan()).to(adaptation.Backbone.Device), trainable: false)
            {
                FileKey = $"base_model.randlora_{name}",
                Exchanged = SaveProjection,
                Copies = SaveProjection ? [.. sites.Select(site => $"{adaptation.Backbone.PathOf(site)}.randlora_{name}")] : [],
            });
    }

    // Drawn one basis after the other, kept side by side: [most, bases, rank].
    private float[] Dense(TorchGenerator generator, long most, long bases)
    {
        var all = new float[most * bases * Rank];
        for (long basis = 0; basis < bases; basis++)
        {
            float[] one = generator.UniformHalf(1 / Math.Sqrt(Rank), most * Rank);
            for (long row = 0; row < most; row++) Array.Copy(one, row * Rank, all, ((row * bases) + basis) * Rank, Rank);
        }
        return all;
    }

    // The reference keeps dense bases in bfloat16, so their spread and what is divided by it are rounded to it.
    private static float[] Scaled(float[] values)
    {
        float deviation = TorchGenerator.Rounded((float)Deviation(values));
        return [.. values.Select(v => TorchGenerator.Rounded(v / deviation))];
    }

    private static float[] Ternary(float[] uniform, double share)
    {
        (float low, float high) = ((float)(1 / (2 * share)), (float)(1 - (1 / (2 * share))));
        float[] signs = [.. uniform.Select(u => u < low ? -1f : u > high ? 1f : 0f)];
        float deviation = (float)Deviation(signs);
        return [.. signs.Select(s => s / deviation)];
    }

    private static double Deviation(float[] values)
    {
        double mean = values.Average(v => (double)v);
        return Math.Sqrt(values.Sum(v => (v - mean) * (v - mean)) / (values.Length - 1));
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        (long most, long least) = Extents(site);
        long bases = Bases(least);
        NamedParameter sharedA = adaptation.Find("randlora_A")!, sharedB = adaptation.Find("randlora_B")!;
        NamedParameter lambda = Add(adaptation, $"{path}.randlora_lambda", zeros([Rank, bases]));
        NamedParameter gamma = Add(adaptation, $"{path}.randlora_gamma", full([bases, least], 1.0 / Math.Max(bases, least)));
        bool wide = site.Weight.shape[0] >= site.Weight.shape[1];
        double scale = Alpha / Rank;
        // The flat axes number (rank, basis) and (basis, rank); they are multiplied as they are.
        Tensor P() => (lambda.Value.unsqueeze(-1) * sharedA.Value.narrow(2, 0, least) * gamma.Value).reshape(Rank * bases, least);
        Tensor Q() => sharedB.Value.narrow(0, 0, most).narrow(1, 0, bases).reshape(most, bases * Rank);
        adaptation.Attach(site, Dropout > 0
            ? new TermsPatch(_ => [wide ? new LowRankTerm(P(), Q(), scale, null, Dropout) : new LowRankTerm(Q().t(), P().t(), scale, null, Dropout)])
            : new DeltaPatch(_ => (wide ? Q().matmul(P()) : P().t().matmul(Q().t())) * scale));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        long least = Extents(site).Least;
        return Bases(least) * (Rank + least);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        Only(config, "init_weights", true);
        Rank = AdapterConfig.Get(config, "r", 32);
        Alpha = AdapterConfig.Get(config, "randlora_alpha", 640.0);
        Dropout = AdapterConfig.Get(config, "randlora_dropout", 0.0);
        Sparse = AdapterConfig.Get(config, "sparse", false);
        VerySparse = AdapterConfig.Get(config, "very_sparse", false);
        ProjectionKey = AdapterConfig.Get(config, "projection_prng_key", 0);
        SaveProjection = AdapterConfig.Get(config, "save_projection", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["randlora_alpha"] = AdapterConfig.Number(Alpha);
        config["randlora_dropout"] = Dropout;
        config["sparse"] = Sparse;
        config["very_sparse"] = VerySparse;
        config["projection_prng_key"] = ProjectionKey;
        config["save_projection"] = SaveProjection;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
