// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using TorchSharp;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Uni-LoRA (Li et al. 2025, arXiv 2506.00799): every entry of every A <c>[r, in]</c> and B <c>[out, r]</c> is an entry of one
/// trained vector θ, chosen at random once and divided by the root of how often it is used. <c>W' = W + B A</c>. Trained
/// numbers: the length of θ, for the whole model. The choice follows NumPy's generator for <see cref="ProjectionSeed"/>, so
/// that files without it mean the same. A fresh adaptation is not quite the base model.
/// </summary>
public sealed class UniLoraOptions : BiasedMethod
{
    private const string Theta = "unilora_theta_d";

    /// <summary>Rank r, 1 to 4096.</summary>
    public int Rank { get; set; } = 4;

    /// <summary>Length of θ, 1 or more.</summary>
    public int ThetaLength { get; set; } = 256;

    /// <summary>Seed of the choice of entries.</summary>
    public int ProjectionSeed { get; set; } = 42;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>A fresh θ is uniform in ± this.</summary>
    public double InitThetaBound { get; set; } = 0.02;

    /// <summary>True to write the choice of entries into exchanged files.</summary>
    public bool SaveIndices { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "unilora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "the length of θ, once";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-2;

    /// <inheritdoc/>
    protected override double HighestLearningRate => 1e-1;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "UNILORA";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (ThetaLength < 1) throw Invalid(nameof(ThetaLength), ThetaLength, "1 or more");
        if (ProjectionSeed < 0) throw Invalid(nameof(ProjectionSeed), ProjectionSeed, "0 or more");
        CheckShare(nameof(Dropout), Dropout);
        if (!(InitThetaBound > 0)) throw Invalid(nameof(InitThetaBound), InitThetaBound, "above 0");
    }

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed) => adaptation.Add(
        new NamedParameter(Theta, new Draws(seed, Theta).Uniform(InitThetaBound, ThetaLength).to(adaptation.Backbone.Device)) { FileKey = "base_model." + Theta });

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        NamedParameter theta = adaptation.Find(Theta)!;
        (long rows, long columns) = (site.Weight.shape[0], site.Weight.shape[1]);
        Func<Tensor> a = Factor(adaptation, theta, path, "A", Rank, columns), b = Factor(adaptation, theta, path, "B", rows, Rank);
        adaptation.Attach(site, new TermsPatch(_ => [new LowRankTerm(a(), b(), 1, null, Dropout)]));
    }

    private Func<Tensor> Factor(PeftAdaptation adaptation, NamedParameter theta, string path, string name, params long[] shape)
    {
        NamedParameter Buffer(string kind, Tensor value) => adaptation.Add(
            new NamedParameter($"{path}.unilora_{kind}_{name}", value.to(adaptation.Backbone.Device), trainable: false) { Exchanged = SaveIndices });
        NamedParameter indices = Buffer("indices", zeros(shape, dtype: ScalarType.Int64)), scales = Buffer("scales", ones(shape));
        return () => theta.Value.index_select(0, indices.Value.reshape(-1)).reshape(shape) * scales.Value;
    }

    // One run of the generator over all sites: each entry of θ is used as often as any other, give or take one.
    /// <inheritdoc/>
    protected override void Completed(PeftAdaptation adaptation, long seed)
    {
        NamedParameter[] chosen = [.. adaptation.Parameters.Where(p => p.Value.dtype == ScalarType.Int64)];
        long total = chosen.Sum(p => p.Value.numel());
        int whole = (int)(total / ThetaLength), rest = (int)(total % ThetaLength);
        var generator = new NumpyGenerator(ProjectionSeed);
        var uses = new int[ThetaLength];
        Array.Fill(uses, whole);
        var entries = new List<long>((int)total);
        for (long i = 0; i < ThetaLength; i++) entries.AddRange(Enumerable.Repeat(i, whole));
        if (rest > 0)
            foreach (long more in generator.Choose(ThetaLength, rest))
            {
                entries.Add(more);
                uses[more]++;
            }
        long[] order = [.. entries];
        generator.Shuffle(order);
        int at = 0;
        foreach (NamedParameter parameter in chosen)
        {
            long[] mine = order[at..(at += (int)parameter.Value.numel())];
            parameter.Load(tensor(mine, parameter.Value.shape.AsSpan()));
            float[] scales = [.. mine.Select(i => 1f / MathF.Sqrt(uses[i]))];
            adaptation.Find(parameter.Name.Replace("_indices_", "_scales_", StringComparison.Ordinal))!.Load(tensor(scales, parameter.Value.shape.AsSpan()));
        }
    }

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) => ThetaLength;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => 0;

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        Only(config, "init_weights", true);
        Rank = AdapterConfig.Get(config, "r", 4);
        ThetaLength = AdapterConfig.Get(config, "theta_d_length", 256);
        ProjectionSeed = AdapterConfig.Get(config, "proj_seed", 42);
        Dropout = AdapterConfig.Get(config, "unilora_dropout", 0.0);
        InitThetaBound = AdapterConfig.Get(config, "init_theta_d_bound", 0.02);
        SaveIndices = AdapterConfig.Get(config, "save_indices", false);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["r"] = Rank;
        config["theta_d_length"] = ThetaLength;
        config["proj_seed"] = ProjectionSeed;
        config["unilora_dropout"] = Dropout;
        config["init_theta_d_bound"] = InitThetaBound;
        config["save_indices"] = SaveIndices;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
