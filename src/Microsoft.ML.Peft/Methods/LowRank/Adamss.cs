// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// AdaMSS (Zheng et al. 2025, "AdaMSS: Adaptive Multi-Subspace Approach for Parameter-Efficient Fine-Tuning"): the outputs of a module
/// are parted into clusters, and each has an update of its own in a shared space of inputs, <c>[ΔW Δb]_i = B_i A_i N</c> on the rows of
/// cluster i, with <c>N [rank, in + 1]</c> the principal right directions of <c>[W b]</c> (frozen, in the files),
/// <c>A_i [subspace rank, rank]</c> and <c>B_i [rows of i, subspace rank]</c>. The clusters are those of the rows of <c>[W b]</c>'s left
/// singular vectors, by k-means; A_i starts with the main directions of its cluster's, B with 0.
/// </summary>
public sealed class AdamssOptions : SiteMethod
{
    /// <summary>Number of principal directions, 1 to 4096; where the narrower side of <c>[W b]</c> is less, that.</summary>
    public int Rank { get; set; } = 100;

    /// <summary>Clusters of outputs, 1 to 1024.</summary>
    public int Subspaces { get; set; } = 5;

    /// <summary>Rank of each cluster's update, 1 to <see cref="Rank"/>.</summary>
    public int SubspaceRank { get; set; } = 1;

    /// <summary>True to give a cluster fewer ranks where its directions fade out: those whose squared strength is above <see cref="Threshold"/> of the first's.</summary>
    public bool DynamicRank { get; set; }

    /// <summary>Share of the first direction's squared strength, in [0, 1), below which <see cref="DynamicRank"/> leaves directions out.</summary>
    public double Threshold { get; set; } = 0.1;

    /// <summary>
    /// Number of clusters, of all modules together, that are still trained in the end; the others stop where they are, the least
    /// important first. Null to train all of them to the end.
    /// </summary>
    public int? TargetSubspaces { get; set; }

    /// <summary>Step from which importance is watched and clusters stop, with <see cref="TargetSubspaces"/>.</summary>
    public int FirstStep { get; set; } = 50;

    /// <summary>Step at which <see cref="TargetSubspaces"/> are left, above <see cref="FirstStep"/>.</summary>
    public int LastStep { get; set; } = 1000;

    /// <summary>Steps between two choices, 1 or more.</summary>
    public int StepsBetween { get; set; } = 100;

    /// <summary>How fast the number falls at first: the exponent of the schedule, above 0.</summary>
    public double ScheduleExponent { get; set; } = 3;

    /// <summary>How slowly the mean importance moves, between 0 and 1.</summary>
    public double ImportanceBeta { get; set; } = 0.85;

    /// <summary>How slowly the mean deviation of the importance moves, between 0 and 1.</summary>
    public double UncertaintyBeta { get; set; } = 0.85;

    /// <summary>
    /// Module path to the outputs of each of its clusters. Empty to find them by k-means, which an adaptation then keeps here. Files of
    /// Hugging Face PEFT do not hold them: where its clusters were others, they must be given.
    /// </summary>
    public Dictionary<string, int[][]> Rows { get; set; } = [];

    private Dictionary<string, int[]> _sizesInFile = [];

    private readonly CarriedFields _carried = new(("asa_target_subspaces", 50), ("init_weights", "orthogonal"), ("random_seed", 0));

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "adamss";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "q (clusters r + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "ADAMSS";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (Subspaces is < 1 or > 1024) throw Invalid(nameof(Subspaces), Subspaces, "1 to 1024");
        if (SubspaceRank < 1 || SubspaceRank > Rank) throw Invalid(nameof(SubspaceRank), SubspaceRank, $"1 to Rank = {Rank}");
        CheckShare(nameof(Threshold), Threshold);
        if (TargetSubspaces < 1) throw Invalid(nameof(TargetSubspaces), TargetSubspaces, "null, or 1 or more");
        if (FirstStep < 0) throw Invalid(nameof(FirstStep), FirstStep, "0 or more");
        if (LastStep <= FirstStep) throw Invalid(nameof(LastStep), LastStep, $"above FirstStep = {FirstStep}");
        if (StepsBetween < 1) throw Invalid(nameof(StepsBetween), StepsBetween, "1 or more");
        if (!(ScheduleExponent > 0) || !double.IsFinite(ScheduleExponent)) throw Invalid(nameof(ScheduleExponent), ScheduleExponent, "a finite number above 0");
        if (!(ImportanceBeta > 0 && ImportanceBeta < 1)) throw Invalid(nameof(ImportanceBeta), ImportanceBeta, "between 0 and 1");
        if (!(UncertaintyBeta > 0 && UncertaintyBeta < 1)) throw Invalid(nameof(UncertaintyBeta), UncertaintyBeta, "between 0 and 1");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        // Where ranks may differ they have to be looked for; elsewhere the formula is enough.
        if (!DynamicRank && !Rows.ContainsKey(path) && Wide(site) / Subspaces > 8 * SubspaceRank) return SubspaceRank * (Subspaces * RankOf(site) + Wide(site));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        int[][] rows = Clusters(site, path, out _, out Tensor left);
        return rows.Sum(row => Start(left, row).shape[0] * (RankOf(site) + row.Length));
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone)
    {
        // The clusters belong to the adaptation: its own copy of the options says them.
        var own = (AdamssOptions)MemberwiseClone();
        own.Rows = new Dictionary<string, int[][]>(Rows);
        return new AdamssAdaptation(own, backbone);
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        int[][] rows = Clusters(site, path, out Tensor basis, out Tensor left);
        ((AdamssOptions)adaptation.Method).Rows[path] = rows;
        NamedParameter space = Add(adaptation, $"{path}.adamss_newB", basis, trainable: false);
        NamedParameter[] first = [.. rows.Select((row, i) => Add(adaptation, $"{path}.adamss_A.{i}", Start(left, row)))];
        NamedParameter[] second = [.. rows.Select((row, i) => Add(adaptation, $"{path}.adamss_B.{i}", zeros([row.Length, first[i].Value.shape[0]])))];
        ((AdamssAdaptation)adaptation).Add(path, first, second);
        var place = new long[wide];
        foreach ((int at, int row) in rows.SelectMany(r => r).Select((row, at) => (at, row))) place[row] = at;
        NamedParameter order = adaptation.Add(new NamedParameter($"{path}.adamss_order", tensor(place).to(adaptation.Backbone.Device), trainable: false) { Saved = false, Exchanged = false });
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            Tensor b = cat([.. second.Zip(first, (down, up) => down.Value.matmul(up.Value))], 0).index_select(0, order.Value);      // [out, rank]
            Tensor a = space.Value.narrow(1, 0, narrow);
            return [new LowRankTerm(a, b, 1, site.Bias is null ? null : b.matmul(space.Value.select(1, narrow)))];
        }));
    }

    // The main directions of a cluster's rows of the left singular vectors, [its rank, rank].
    private Tensor Start(Tensor left, int[] rows)
    {
        (_, Tensor s, Tensor vt) = linalg.svd(left.index_select(0, tensor(Array.ConvertAll(rows, row => (long)row)).to(left.device)), fullMatrices: false);
        long most = Math.Min(Math.Min(rows.Length, SubspaceRank), left.shape[1]);
        if (DynamicRank) most = Math.Clamp((s.square() > s[0].square() * Threshold).sum().item<long>(), 1, most);
        return vt.narrow(0, 0, most).to_type(ScalarType.Float32).contiguous();
    }

    private long RankOf(WeightSite site) => Math.Min(Rank, Math.Min(Wide(site), Narrow(site) + (site.Bias is null ? 0 : 1)));

    private int[][] Clusters(WeightSite site, string path, out Tensor basis, out Tensor left)
    {
        Tensor matrix = site.Weight.to_type(ScalarType.Float64);
        if (site.Bias is not null) matrix = cat([matrix, site.Bias.to_type(ScalarType.Float64).unsqueeze(1)], 1);
        (Tensor u, _, Tensor vt) = linalg.svd(matrix, fullMatrices: false);
        basis = vt.narrow(0, 0, RankOf(site)).to_type(ScalarType.Float32).contiguous();
        left = u.narrow(1, 0, RankOf(site));
        if (Rows.TryGetValue(path, out int[][]? given)) return Checked(given, site, path);
        if (Subspaces > Wide(site)) throw new ArgumentException($"AdamssOptions.Subspaces is {Subspaces} at {path}, which has {Wide(site)} outputs.", nameof(Subspaces));
        int[][] found = KMeans.Cluster(left.cpu().contiguous(), Subspaces, new Draws(0, path));
        if (_sizesInFile.FirstOrDefault(s => path.EndsWith(s.Key, StringComparison.Ordinal)).Value is { } sizes && !sizes.SequenceEqual(found.Select(f => f.Length)))
            throw new ArgumentException(
                $"The file's clusters at {path} have {string.Join(", ", sizes)} outputs, those found here {string.Join(", ", found.Select(f => f.Length))}. Adapter files do not say which outputs they are: give them as AdamssOptions.Rows.", nameof(Rows));
        return found;
    }

    private static int[][] Checked(int[][] rows, WeightSite site, string path) => rows.SelectMany(r => r).Order().SequenceEqual(Enumerable.Range(0, (int)Wide(site)))
        ? rows
        : throw new ArgumentException($"AdamssOptions.Rows['{path}'] must hold each of the outputs 0 to {Wide(site) - 1} once.", nameof(Rows));

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
        const string Marker = ".adamss_B.", Prefix = "base_model.model.";
        _sizesInFile = shapes.Where(s => s.Key.Contains(Marker, StringComparison.Ordinal) && s.Value.Length == 2)
            .GroupBy(s => s.Key[(s.Key.StartsWith(Prefix, StringComparison.Ordinal) ? Prefix.Length : 0)..s.Key.IndexOf(Marker, StringComparison.Ordinal)])
            .ToDictionary(g => g.Key, g => g.OrderBy(s => s.Key.Length).ThenBy(s => s.Key, StringComparer.Ordinal).Select(s => (int)s.Value[0]).ToArray());
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        DynamicRank = AdapterConfig.Get(config, "use_dynamic_rank", false);
        Threshold = AdapterConfig.Get(config, "svd_threshold", 0.1);
        TargetSubspaces = AdapterConfig.Get(config, "use_asa", false) ? AdapterConfig.Get(config, "asa_target_subspaces", 50) : null;
        FirstStep = AdapterConfig.Get(config, "init_warmup", 50);
        LastStep = AdapterConfig.Get(config, "final_warmup", 1000);
        StepsBetween = AdapterConfig.Get(config, "mask_interval", 100);
        ScheduleExponent = AdapterConfig.Get(config, "asa_schedule_exponent", 3.0);
        ImportanceBeta = AdapterConfig.Get(config, "asa_importance_beta", 0.85);
        UncertaintyBeta = AdapterConfig.Get(config, "asa_uncertainty_beta", 0.85);
        Rank = AdapterConfig.Get(config, "r", 100);
        Subspaces = AdapterConfig.Get(config, "num_subspaces", 5);
        SubspaceRank = AdapterConfig.Get(config, "subspace_rank", 1);
        _carried.Read(config);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        _carried.Write(config);
        config["use_dynamic_rank"] = DynamicRank;
        config["svd_threshold"] = Threshold;
        config["use_asa"] = TargetSubspaces is not null;
        if (TargetSubspaces is { } target) config["asa_target_subspaces"] = target;
        config["init_warmup"] = FirstStep;
        config["final_warmup"] = LastStep;
        config["mask_interval"] = StepsBetween;
        config["asa_schedule_exponent"] = ScheduleExponent;
        config["asa_importance_beta"] = ImportanceBeta;
        config["asa_uncertainty_beta"] = UncertaintyBeta;
        config["r"] = Rank;
        config["num_subspaces"] = Subspaces;
        config["subspace_rank"] = SubspaceRank;
    }
}
