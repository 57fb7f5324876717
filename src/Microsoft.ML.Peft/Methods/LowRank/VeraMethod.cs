// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// What VeRA and PVeRA share: one pair of frozen random matrices for all sites, cut to each site's widths, and two trained
/// vectors a site. The matrices are drawn as PyTorch draws them from <see cref="ProjectionKey"/>, so that files without them
/// mean the same numbers.
/// </summary>
public abstract class VeraMethod : BiasedMethod
{
    /// <summary>Rank r of the shared matrices, 1 to 16384.</summary>
    public int Rank { get; set; } = 256;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Initial value of the vector over the rank.</summary>
    public double DInitial { get; set; } = 0.1;

    /// <summary>Seed of the shared matrices.</summary>
    public int ProjectionKey { get; set; }

    /// <summary>True to write the shared matrices into exchanged files.</summary>
    public bool SaveProjection { get; set; } = true;

    /// <summary>False to start with an update that is not 0; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 5e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <summary>What stands before the names of the tensors.</summary>
    private protected abstract string Word { get; }

    /// <summary>Rows of the first matrix for each of the second's columns.</summary>
    private protected virtual int Halves => 1;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 16384) throw Invalid(nameof(Rank), Rank, "1 to 16384");
        CheckShare(nameof(Dropout), Dropout);
        if (!double.IsFinite(DInitial) || DInitial == 0) throw Invalid(nameof(DInitial), DInitial, "a finite number other than 0, or nothing would be trained");
    }

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
        long wide = sites.Max(s => s.Weight.shape[0]), narrow = sites.Max(s => s.Weight.shape[1]), rows = Halves * Rank;
        var generator = new TorchGenerator(ProjectionKey);
        Share("A", generator.Uniform(Math.Sqrt(6.0 / narrow), rows * narrow), rows, narrow);
        Share("B", generator.Uniform(Math.Sqrt(6.0 / Rank), wide * Rank), wide, Rank);

        void Share(string name, float[] values, params long[] shape) => adaptation.Add(
            new NamedParameter($"{Word}_{name}", tensor(values, shape.AsSpan()).to(adaptation.Backbone.Device), trainable: false)
            {
                FileKey = $"base_model.{Word}_{name}",
                Exchanged = SaveProjection,
            });
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        string nameB = $"{path}.{Word}_lambda_b", nameD = $"{path}.{Word}_lambda_d";
        NamedParameter b = Add(adaptation, nameB, InitWeights ? zeros([site.Weight.shape[0]]) : ones([site.Weight.shape[0]]));
        NamedParameter d = Add(adaptation, nameD, InitWeights ? full([Halves * Rank], DInitial) : new Draws(seed, nameD).Normal(1, Halves * Rank));
        adaptation.Attach(site, Patch(new VeraParts(site, adaptation.Find($"{Word}_A")!, adaptation.Find($"{Word}_B")!, b, d)));
    }

    /// <summary>The patch of one site.</summary>
    /// <param name="parts">What it is made of.</param>
    private protected abstract WeightPatch Patch(VeraParts parts);

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => site.Weight.shape[0] + (Halves * Rank);

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        Rank = AdapterConfig.Get(config, "r", 256);
        Dropout = AdapterConfig.Get(config, $"{Word}_dropout", 0.0);
        DInitial = AdapterConfig.Get(config, "d_initial", 0.1);
        ProjectionKey = AdapterConfig.Get(config, "projection_prng_key", 0);
        SaveProjection = AdapterConfig.Get(config, "save_projection", true);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["r"] = Rank;
        config[$"{Word}_dropout"] = Dropout;
        config["d_initial"] = DInitial;
        config["projection_prng_key"] = ProjectionKey;
        config["save_projection"] = SaveProjection;
        config["init_weights"] = InitWeights;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}

/// <summary>What a site borrows: <c>A [rows, widest in]</c>, <c>B [widest out, rank]</c>, and its own vectors.</summary>
internal sealed record VeraParts(WeightSite Site, NamedParameter SharedA, NamedParameter SharedB, NamedParameter LambdaB, NamedParameter LambdaD)
{
    /// <summary>The shared A, cut to the site's inputs.</summary>
    public Tensor A => SharedA.Value.narrow(1, 0, Site.Weight.shape[1]);

    /// <summary>The shared B, cut to the site's outputs, times the vector over them.</summary>
    public Tensor B => SharedB.Value.narrow(0, 0, Site.Weight.shape[0]) * LambdaB.Value.unsqueeze(1);
}
