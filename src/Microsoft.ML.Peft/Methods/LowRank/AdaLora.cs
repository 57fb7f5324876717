// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// AdaLoRA (Zhang et al. 2023, arXiv 2303.10512): <c>W' = W + α/r₀ · B diag(E) A</c>, <c>A [r₀, in]</c>, <c>E [r₀, 1]</c>, <c>B [out, r₀]</c>, with E
/// 0 at first and a loss term that keeps A and B near orthogonal. While training, the triplets (E_i, A_i, B_i) of least
/// importance over all modules are set to 0, until n r_T of n r₀ are left; which modules keep more of them is learned.
/// Trained numbers a module: r₀ (in + out + 1). Exchanged files hold the triplets that are left.
/// </summary>
public sealed class AdaLoraOptions : BiasedMethod
{
    // Fields of the configuration that would change what is computed.
    private static readonly string[] _unsupported =
    [
        "alora_invocation_tokens", "alpha_pattern", "arrow_config", "corda_config", "eva_config", "kasa_config", "layer_replication", "lora_bias", "lora_ga_config",
        "megatron_config", "monteclora_config", "target_parameters", "trainable_token_indices", "use_bdlora", "use_dora", "use_qalora", "use_rslora", "velora_config",
    ];

    private int _unusedRank = 8;

    /// <summary>Triplets a module at first, r₀, 1 to 4096.</summary>
    public int InitialRank { get; set; } = 12;

    /// <summary>Triplets a module that are left on average, r_T, 1 to <see cref="InitialRank"/>.</summary>
    public int TargetRank { get; set; } = 8;

    /// <summary>α: the update is scaled by α/r₀. Above 0.</summary>
    public double Alpha { get; set; } = 16;

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Optimizer steps of the whole training; null for those of the run.</summary>
    public int? TotalSteps { get; set; }

    /// <summary>Steps at the start in which nothing is taken away, t_i; null for a tenth of all.</summary>
    public int? InitialSteps { get; set; }

    /// <summary>Steps at the end with the final choice, t_f; null for three tenths of all.</summary>
    public int? FinalSteps { get; set; }

    /// <summary>Steps between two choices, ΔT, 1 or more.</summary>
    public int StepsBetween { get; set; } = 1;

    /// <summary>How slowly the mean importance moves, β₁, between 0 and 1.</summary>
    public double Beta1 { get; set; } = 0.85;

    /// <summary>How slowly the mean deviation of the importance moves, β₂, between 0 and 1.</summary>
    public double Beta2 { get; set; } = 0.85;

    /// <summary>Weight of the loss term for orthogonality, above 0.</summary>
    public double OrthogonalityWeight { get; set; } = 0.5;

    /// <summary>False to start with an update that is not 0; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <summary>The final choice: path and <c>.lora_E</c> to a flag a triplet. Set, the modules have the triplets of true alone, and no more are taken away.</summary>
    public OrderedDictionary<string, bool[]> RankPattern { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "adalora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r₀ (in + out + 1) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "ADALORA";

    private protected override string OwnBiases => "lora_only";

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution { Groups: 1 };

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (InitialRank is < 1 or > 4096) throw Invalid(nameof(InitialRank), InitialRank, "1 to 4096");
        if (TargetRank < 1 || TargetRank > InitialRank) throw Invalid(nameof(TargetRank), TargetRank, $"1 to InitialRank = {InitialRank}");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
        if (TotalSteps < 1) throw Invalid(nameof(TotalSteps), TotalSteps, "null, or 1 or more");
        if (InitialSteps < 0) throw Invalid(nameof(InitialSteps), InitialSteps, "null, or 0 or more");
        if (FinalSteps < 0) throw Invalid(nameof(FinalSteps), FinalSteps, "null, or 0 or more");
        if (StepsBetween < 1) throw Invalid(nameof(StepsBetween), StepsBetween, "1 or more");
        if (!(Beta1 > 0 && Beta1 < 1)) throw Invalid(nameof(Beta1), Beta1, "between 0 and 1");
        if (!(Beta2 > 0 && Beta2 < 1)) throw Invalid(nameof(Beta2), Beta2, "between 0 and 1");
        if (!(OrthogonalityWeight > 0)) throw Invalid(nameof(OrthogonalityWeight), OrthogonalityWeight, "above 0");
        foreach ((string key, bool[] kept) in RankPattern)
            if (kept.Length != InitialRank) throw Invalid($"{nameof(RankPattern)}['{key}']", $"{kept.Length} flags", $"{InitialRank}, one for each first triplet");
        if (TotalSteps is { } total) Schedule(total);
    }

    /// <summary>The steps of the schedule: all, before the first choice, after the last.</summary>
    /// <param name="total">Optimizer steps of the training.</param>
    /// <exception cref="ArgumentException">Nothing lies between the first and the last choice.</exception>
    internal (long Total, long Initial, long Final) Schedule(long total)
    {
        (long initial, long final) = (InitialSteps ?? total / 10, FinalSteps ?? total * 3 / 10);
        if (initial >= total - final)
            throw new ArgumentException(
                $"AdaLoraOptions.InitialSteps is {initial} and FinalSteps {final}, of {total} steps; allowed is a sum below the steps of the training, so that triplets can be taken away between.", nameof(InitialSteps));
        return (total, initial, final);
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new AdaLoraAdaptation(this, backbone);

    private long RankOf(WeightSite site, string path)
    {
        string name = path + ".lora_E", bare = site.Name + ".lora_E";
        foreach ((string key, bool[] kept) in RankPattern)
            if (TargetMatcher.Names(name, key) || key == bare) return kept.Count(k => k);
        return InitialRank;
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => RankOf(site, path) * (Wide(site) + Narrow(site) + 1);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long rank = RankOf(site, path);
        NamedParameter Draw(string name, double deviation, params long[] shape) =>
            Add(adaptation, $"{path}.{name}", deviation == 0 ? zeros(shape) : new Draws(seed, $"{path}.{name}").Normal(deviation, shape));
        var triplets = new AdaLoraTriplets(path, Draw("lora_A", 0.02, rank, Narrow(site)), Draw("lora_B", 0.02, Wide(site), rank), Draw("lora_E", InitWeights ? 0 : 1, rank, 1));
        ((AdaLoraAdaptation)adaptation).Add(triplets);
        double scale = Alpha / (InitialRank + 1e-5);
        adaptation.Attach(site, new TermsPatch(_ => [new LowRankTerm(triplets.A.Value * triplets.E.Value, triplets.B.Value, scale, null, Dropout)]));
    }

    /// <summary>Once the final choice is made: an adaptation of the triplets that are left.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation)
    {
        var whole = (AdaLoraAdaptation)adaptation;
        if (RankPattern.Count > 0 || !whole.HasChosen) return adaptation;
        var small = (AdaLoraOptions)MemberwiseClone();
        small.RankPattern = new(whole.Triplets.Select(t => KeyValuePair.Create(t.Path + ".lora_E", t.Kept())));
        if (whole.Steps is { } steps) (small.TotalSteps, small.InitialSteps, small.FinalSteps) = ((int)steps.Total, (int)steps.Initial, (int)steps.Final);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        PeftAdaptation made = small.Attach(adaptation.Backbone, 0);
        foreach (NamedParameter parameter in made.Parameters)
        {
            Tensor value = adaptation.Find(parameter.Name)!.Value;
            if (whole.Triplets.FirstOrDefault(t => parameter.Name.StartsWith(t.Path + ".lora_", StringComparison.Ordinal)) is { } of)
            {
                Tensor kept = tensor(of.Kept().Select((keep, i) => keep ? i : -1L).Where(i => i >= 0).ToArray()).to(value.device);
                value = value.index_select(parameter.Name.EndsWith(".lora_B", StringComparison.Ordinal) ? 1 : 0, kept);
            }
            parameter.Load(value);
        }
        return made;
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        foreach (string field in _unsupported)
            if (!AdapterConfig.IsEmpty(config, field))
                throw new ArgumentException($"adapter_config.json: the field '{field}' is {config[field]!.ToJsonString()}; it is not supported with AdaLoRA. Supported is null.", field);
        ReadTargets(config);
        ReadBias(config);
        InitialRank = AdapterConfig.Get(config, "init_r", 12);
        TargetRank = Math.Min(AdapterConfig.Get(config, "target_r", 8), InitialRank);
        _unusedRank = AdapterConfig.Get(config, "r", 8);
        Alpha = AdapterConfig.Get(config, "lora_alpha", 8.0);
        Dropout = AdapterConfig.Get(config, "lora_dropout", 0.0);
        TotalSteps = config["total_step"] is null ? null : AdapterConfig.Get(config, "total_step", 0);
        InitialSteps = AdapterConfig.Get(config, "tinit", 0);
        FinalSteps = AdapterConfig.Get(config, "tfinal", 0);
        StepsBetween = AdapterConfig.Get(config, "deltaT", 1);
        Beta1 = AdapterConfig.Get(config, "beta1", 0.85);
        Beta2 = AdapterConfig.Get(config, "beta2", 0.85);
        OrthogonalityWeight = AdapterConfig.Get(config, "orth_reg_weight", 0.5);
        InitWeights = AdapterConfig.Get(config, "init_lora_weights", true);
        RankPattern = new((config["rank_pattern"] as JsonObject ?? []).Select(p => KeyValuePair.Create(p.Key, AdapterConfig.List<bool>(new JsonObject { ["rank_pattern." + p.Key] = p.Value?.DeepClone() }, "rank_pattern." + p.Key).ToArray())));
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        foreach (string field in _unsupported) config[field] = field is "use_rslora" or "use_dora" or "use_qalora" or "lora_bias" ? false : null;
        config["alpha_pattern"] = new JsonObject();
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_r"] = InitialRank;
        config["target_r"] = TargetRank;
        config["r"] = _unusedRank;
        config["lora_alpha"] = AdapterConfig.Number(Alpha);
        config["lora_dropout"] = Dropout;
        // Readers refuse a configuration without a number of steps, though it means nothing to them.
        config["total_step"] = TotalSteps ?? (FromFile ? null : (JsonNode)1);
        config["tinit"] = InitialSteps ?? 0;
        config["tfinal"] = FinalSteps ?? 0;
        config["deltaT"] = StepsBetween;
        config["beta1"] = Beta1;
        config["beta2"] = Beta2;
        config["orth_reg_weight"] = OrthogonalityWeight;
        config["init_lora_weights"] = InitWeights;
        config["rank_pattern"] = RankPattern.Count == 0 ? null
            : new JsonObject(RankPattern.Select(p => KeyValuePair.Create(p.Key, (JsonNode?)AdapterConfig.Array(p.Value))));
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["ensure_weight_tying"] = false;
        config["layer_replication"] = null;
        config["loftq_config"] = new JsonObject();
        config["megatron_core"] = "megatron.core";
        config["qalora_group_size"] = 16;
    }
}
