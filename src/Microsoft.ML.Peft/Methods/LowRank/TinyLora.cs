// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// TinyLoRA (2026; after LoRA-XS, Bałazy et al. 2024, arXiv 2405.17604): <c>W' = W + B (Σ_i v_i P_i) A</c>, with <c>A [r, in]</c> and
/// <c>B [out, r]</c> the first singular directions of W, each scaled by the root of the singular value, P <c>[u, r, r]</c> frozen random
/// numbers, and only the vector v <c>[u]</c> trained, one a module or one a group of modules: as few as u numbers in all. v starts at 0.
/// At embedding tables (rows, width) the same with the table as W. P is drawn as PyTorch draws it from
/// <see cref="ProjectionSeed"/> and the module's number.
/// </summary>
public sealed class TinyLoraOptions : BiasedMethod
{
    private const string Vector = "tinylora_v.";

    /// <summary>Rank r of the frozen factors, 1 to 4096; cut to a module's smaller width.</summary>
    public int Rank { get; set; } = 2;

    /// <summary>Length u of each trained vector, 1 or more.</summary>
    public int U { get; set; } = 64;

    /// <summary>How far modules share vectors: 0 for one each, 1 for one in all.</summary>
    public double WeightTying { get; set; }

    /// <summary>Share of the entries of x, in [0, 1), that the update does not see while training.</summary>
    public double Dropout { get; set; }

    /// <summary>Seed of P.</summary>
    public int ProjectionSeed { get; set; } = 42;

    /// <summary>True to write P into exchanged files.</summary>
    public bool SaveProjection { get; set; } = true;

    /// <summary>Initial vectors: <c>default</c> (0) or <c>uniform</c>.</summary>
    public string Init { get; set; } = "default";

    /// <summary>With <c>uniform</c>: vectors are uniform in ± this.</summary>
    public double InitVBound { get; set; } = 0.02;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "tinylora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "u a group of sites";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => Init == "default";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "TINYLORA";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Embedding;

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (U < 1) throw Invalid(nameof(U), U, "1 or more");
        if (!(WeightTying >= 0 && WeightTying <= 1)) throw Invalid(nameof(WeightTying), WeightTying, "0 to 1");
        CheckShare(nameof(Dropout), Dropout);
        if (Init is not ("default" or "uniform")) throw Invalid(nameof(Init), $"'{Init}'", "default or uniform");
        if (!(InitVBound > 0)) throw Invalid(nameof(InitVBound), InitVBound, "above 0");
    }

    private int Groups(int sites) => Math.Max(1, (int)Math.Round(sites * (1 - WeightTying), MidpointRounding.ToEven));

    // Neighbours share; what is left over joins the last group.
    private int GroupOf(int number, int sites) => Math.Min(number / Math.Max(1, sites / Groups(sites)), Groups(sites) - 1);

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
        for (int i = 0; i < sites.Count; i++)
        {
            string name = Vector + GroupOf(i, sites.Count);
            if (adaptation.Find(name) is null)
                adaptation.Add(new NamedParameter(name, (Init == "default" ? zeros([U]) : new Draws(seed, name).Uniform(InitVBound, U)).to(adaptation.Backbone.Device))
                {
                    FileKey = "base_model." + name,
                });
        }
        for (int i = 0; i < sites.Count; i++) AddSite(adaptation, sites[i], i, adaptation.Find(Vector + GroupOf(i, sites.Count))!);
    }

    // All sites are added together, as they are numbered.
    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
    }

    private void AddSite(PeftAdaptation adaptation, WeightSite site, int number, NamedParameter vector)
    {
        string path = adaptation.Backbone.PathOf(site);
        if (!site.Weight.is_floating_point()) throw new ArgumentException($"TinyLoRA needs a dense weight, but that of {path} is quantised; exclude it.", nameof(Targets));
        long rank = Math.Min(Rank, Math.Min(site.Weight.shape[0], site.Weight.shape[1]));
        (Tensor u, Tensor s, Tensor vt) = linalg.svd(site.Weight.cpu().to_type(ScalarType.Float32), fullMatrices: false);
        Tensor root = s.narrow(0, 0, rank).sqrt();
        NamedParameter a = Add(adaptation, $"{path}.tinylora_A", (root.unsqueeze(1) * vt.narrow(0, 0, rank)).contiguous(), trainable: false);
        NamedParameter b = Add(adaptation, $"{path}.tinylora_B", (u.narrow(1, 0, rank) * root).contiguous(), trainable: false);
        float[] drawn = new TorchGenerator((long)ProjectionSeed + number).Normal(1 / Math.Sqrt(rank), U * rank * rank);
        NamedParameter p = adaptation.Add(new NamedParameter($"{path}.tinylora_P", tensor(drawn, [U, rank, rank]).to(adaptation.Backbone.Device), trainable: false) { Exchanged = SaveProjection });
        Tensor Core() => vector.Value.unsqueeze(0).matmul(p.Value.reshape(U, rank * rank)).reshape(rank, rank);
        adaptation.Attach(site, site is Embedding
            ? new TablePatch(a, b, Core)
            : new TermsPatch(_ => [new LowRankTerm(a.Value, b.Value.matmul(Core()), 1, null, Dropout)]));
    }

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) =>
        (long)U * Enumerable.Range(0, sites.Count).Select(i => GroupOf(i, sites.Count)).Distinct().Count();

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => 0;

    // Only the rows that are looked up are made.
    private sealed class TablePatch(NamedParameter a, NamedParameter b, Func<Tensor> core) : WeightPatch
    {
        public override PatchForm Form => PatchForm.Around;

        public override Tensor Around(Tensor x, Func<Tensor, Tensor> next, Pass pass)
        {
            Tensor rows = next(x);
            Tensor low = b.Value.index_select(0, x.reshape(-1));                                     // [tokens, r]
            return rows + low.matmul(core()).matmul(a.Value).reshape(rows.shape).to_type(rows.dtype);
        }

        public override (Tensor Weight, Tensor? Bias) Rewrite(Tensor weight, Tensor? bias, Pass? pass) =>
            (weight + b.Value.matmul(core()).matmul(a.Value).to_type(weight.dtype), bias);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        ReadBias(config);
        Rank = AdapterConfig.Get(config, "r", 2);
        U = AdapterConfig.Get(config, "u", 64);
        WeightTying = AdapterConfig.Get(config, "weight_tying", 0.0);
        Dropout = AdapterConfig.Get(config, "tinylora_dropout", 0.0);
        ProjectionSeed = AdapterConfig.Get(config, "projection_seed", 42);
        SaveProjection = AdapterConfig.Get(config, "save_projection", true);
        InitVBound = AdapterConfig.Get(config, "init_v_bound", 0.02);
        Init = config["init_weights"] is JsonValue text && text.TryGetValue(out string? name) ? name : "default";
        if (Init == "default") Only(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["r"] = Rank;
        config["u"] = U;
        config["weight_tying"] = WeightTying;
        config["tinylora_dropout"] = Dropout;
        config["projection_seed"] = ProjectionSeed;
        config["save_projection"] = SaveProjection;
        config["init_v_bound"] = InitVBound;
        config["init_weights"] = Init == "default" ? true : Init;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
