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
/// singular vectors, by k-means. B starts at 0.
/// </summary>
public sealed class AdamssOptions : SiteMethod
{
    /// <summary>Number of principal directions, 1 to 4096, at most the narrower side of <c>[W b]</c>.</summary>
    public int Rank { get; set; } = 100;

    /// <summary>Clusters of outputs, 1 to 1024.</summary>
    public int Subspaces { get; set; } = 5;

    /// <summary>Rank of each cluster's update, 1 to <see cref="Rank"/>.</summary>
    public int SubspaceRank { get; set; } = 1;

    /// <summary>
    /// Module path to the outputs of each of its clusters. Empty to find them by k-means, which an adaptation then keeps here. Files of
    /// Hugging Face PEFT do not hold them: where its clusters were others, they must be given.
    /// </summary>
    public Dictionary<string, int[][]> Rows { get; set; } = [];

    private Dictionary<string, int[]> _sizesInFile = [];

    private readonly CarriedFields _carried = new(("asa_importance_beta", 0.85), ("asa_schedule_exponent", 3.0), ("asa_target_subspaces", 50), ("asa_uncertainty_beta", 0.85),
        ("final_warmup", 1000), ("init_warmup", 50), ("init_weights", "orthogonal"), ("mask_interval", 100), ("random_seed", 0), ("svd_threshold", 0.1));

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
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) =>
        SubspaceRank * ((Rows.TryGetValue(path, out int[][]? given) ? given.Length : Subspaces) * (long)Rank + Wide(site));

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone)
    {
        // The clusters belong to the adaptation: its own copy of the options says them.
        var own = (AdamssOptions)MemberwiseClone();
        own.Rows = new Dictionary<string, int[][]>(Rows);
        return new PeftAdaptation(own, backbone);
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        int[][] rows = Clusters(site, path, out Tensor basis);
        ((AdamssOptions)adaptation.Method).Rows[path] = rows;
        NamedParameter space = Add(adaptation, $"{path}.adamss_newB", basis, trainable: false);
        NamedParameter[] first = [.. rows.Select((_, i) => Add(adaptation, $"{path}.adamss_A.{i}", Orthonormal(new Draws(seed, $"{path}.adamss_A.{i}"))))];
        NamedParameter[] second = [.. rows.Select((row, i) => Add(adaptation, $"{path}.adamss_B.{i}", zeros([row.Length, SubspaceRank])))];
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

    private Tensor Orthonormal(Draws draws) => linalg.qr(draws.Normal(1, Rank, SubspaceRank)).Item1.t().contiguous();

    private int[][] Clusters(WeightSite site, string path, out Tensor basis)
    {
        Tensor matrix = site.Weight.to_type(ScalarType.Float64);
        if (site.Bias is not null) matrix = cat([matrix, site.Bias.to_type(ScalarType.Float64).unsqueeze(1)], 1);
        if (Rank > matrix.shape.Min())
            throw new ArgumentException($"AdamssOptions.Rank is {Rank} at {path}, whose [W b] is [{string.Join(", ", matrix.shape)}]; at most {matrix.shape.Min()} is allowed.", nameof(Rank));
        (Tensor u, _, Tensor vt) = linalg.svd(matrix, fullMatrices: false);
        basis = vt.narrow(0, 0, Rank).to_type(ScalarType.Float32).contiguous();
        if (Rows.TryGetValue(path, out int[][]? given)) return Checked(given, site, path);
        if (Subspaces > Wide(site)) throw new ArgumentException($"AdamssOptions.Subspaces is {Subspaces} at {path}, which has {Wide(site)} outputs.", nameof(Subspaces));
        int[][] found = KMeans.Cluster(u.narrow(1, 0, Rank).cpu().contiguous(), Subspaces, new Draws(0, path));
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
        Only(config, "use_asa", false);
        Only(config, "use_dynamic_rank", false);
        ReadTargets(config);
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
        config["use_asa"] = false;
        config["use_dynamic_rank"] = false;
        config["r"] = Rank;
        config["num_subspaces"] = Subspaces;
        config["subspace_rank"] = SubspaceRank;
    }
}
