// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// FRoD (full-rank fine-tuning with rotational degrees of freedom): all modules of a kind share one basis, <c>W = U diag(λ) Vᵀ</c> with
/// unit columns of U, V the same for all layers (a generalised singular value decomposition of many matrices; Kempf et al. 2023).
/// Trained are λ <c>[in]</c> and a few entries of a sparse S at random places, <c>W' = U (S + diag λ) Vᵀ</c>; S starts at 0. V and the places
/// stand in the files once a kind; U follows from W and V.
/// </summary>
public sealed class FrodOptions : BiasedMethod
{
    /// <summary>Share of S's entries that are trained, in (0, 1).</summary>
    public double SparseRate { get; set; } = 0.01;

    /// <summary>Keeps the shared decomposition stable where matrices nearly lack directions; above 0.</summary>
    public double Regularization { get; set; } = 1e-3;

    /// <summary>Share of the change's input that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    /// <summary>Seed of the places of S: PyTorch's generator gives them, so that files without them mean the same.</summary>
    public long ProjectionSeed { get; set; }

    /// <summary>True to keep V and the places of S in exchanged files; readers make them again otherwise.</summary>
    public bool SaveProjection { get; set; } = true;

    /// <summary>Trained entries of S by kind of module, where they are not as many as the rate gives; reading a file fills it.</summary>
    public Dictionary<string, int> Entries { get; set; } = [];

    private readonly CarriedFields _carried = new(("progressbar", true), ("runtime_offload_base_weight", false));

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "frod";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "min(in, out) + sparse values a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "FROD";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!(SparseRate > 0 && SparseRate < 1)) throw Invalid(nameof(SparseRate), SparseRate, "between 0 and 1");
        if (!(Regularization > 0) || !double.IsFinite(Regularization)) throw Invalid(nameof(Regularization), Regularization, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
    }

    // Modules of one kind, by the last two parts of their names.
    private static string Kind(WeightSite site) => Kind(site.Name);

    private static string Kind(string name)
    {
        string[] parts = name.Split('.');
        if (parts is [.., "attention", "output", "dense"]) return "attention_output";
        return string.Join('_', parts.TakeLast(2).Where(part => !part.All(char.IsAsciiDigit)));
    }

    // Directions of the shared basis: the inputs, or all outputs of the kind together where they are fewer.
    private static long Directions(IEnumerable<WeightSite> kind) => Math.Min(Narrow(kind.First()), kind.Sum(Wide));

    private int EntriesOf(string kind, long directions) =>
        Entries.TryGetValue(kind, out int given) ? given : (int)Math.Clamp((long)(SparseRate * directions * directions), 1, directions * (directions - 1));

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => 0;

    /// <inheritdoc/>
    protected override long CountShared(Backbone backbone, IReadOnlyList<WeightSite> sites) =>
        sites.GroupBy(Kind).Sum(kind => kind.Count() * (Directions(kind) + EntriesOf(kind.Key, Directions(kind))));

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Adapted(this, backbone);

    /// <inheritdoc/>
    protected override void AddShared(PeftAdaptation adaptation, IReadOnlyList<WeightSite> sites, long seed)
    {
        var generator = new TorchGenerator(ProjectionSeed);
        foreach (IGrouping<string, WeightSite> kind in sites.GroupBy(Kind).OrderBy(kind => kind.Key, StringComparer.Ordinal))
        {
            if (kind.Select(Narrow).Distinct().Count() > 1)
                throw new ArgumentException($"FRoD shares a basis among all modules of the kind {kind.Key}, but they read different widths: {string.Join(", ", kind.Select(s => $"{s.Name} {Narrow(s)}"))}. Choose other Targets.", nameof(Targets));
            NamedParameter Shared(string name, Tensor value) => adaptation.Add(
                new NamedParameter($"{name}.{kind.Key}", value.to(adaptation.Backbone.Device), trainable: false) { FileKey = $"base_model.{name}.{kind.Key}", Exchanged = SaveProjection });
            Tensor basis = Basis([.. kind]);
            long directions = basis.shape[1];
            ((Adapted)adaptation).Shared[kind.Key] = (
                Shared("frod_V", basis.to_type(ScalarType.Float32).contiguous()),
                Shared("frod_s_indices", Places(directions, EntriesOf(kind.Key, directions), generator)));
            Shared("frod_s_size", tensor((long[])[directions, directions]));
        }
    }

    // W_i = Q_i R for the stacked weights; the eigenvectors Z of the mean of (Q_iᵀQ_i + πI)⁻¹ turn all Q_i at once: V = Rᵀ Z.
    private Tensor Basis(IReadOnlyList<WeightSite> kind)
    {
        (Tensor q, Tensor r) = linalg.qr(cat([.. kind.Select(site => site.Weight.to_type(ScalarType.Float64))], 0));
        Tensor identity = eye(r.shape[0], dtype: ScalarType.Float64, device: r.device), mean = zeros_like(identity);
        long from = 0;
        foreach (WeightSite site in kind)
        {
            Tensor part = q.narrow(0, from, Wide(site));
            mean = mean + linalg.inv(part.t().matmul(part) + identity * Regularization) / kind.Count;
            from += Wide(site);
        }
        return r.t().matmul(linalg.eigh((mean + mean.t()) / 2).Item2);
    }

    // Places off the diagonal, which λ has.
    private static Tensor Places(long directions, int count, TorchGenerator generator)
    {
        if (directions < 2) throw new ArgumentException("FRoD needs modules that read two numbers or more.", nameof(Targets));
        long[] flat = [.. generator.Permutation(checked((int)(directions * (directions - 1)))).Take(count).Select(k => k + k / directions + 1)];
        return tensor([.. flat.Select(place => place / directions), .. flat.Select(place => place % directions)], [2, count]);
    }

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
        const string Values = ".frod_lambda_s_values", Lengths = ".frod_lambda_l";
        foreach ((string key, long[] shape) in shapes)
        {
            if (!key.EndsWith(Values, StringComparison.Ordinal) || shape.Length != 1 || !shapes.TryGetValue(key[..^Values.Length] + Lengths, out long[]? lengths)) continue;
            string kind = Kind(key[..^Values.Length]);
            Entries.Remove(kind);
            if (EntriesOf(kind, lengths[0]) != shape[0]) Entries[kind] = (int)shape[0];
        }
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        (NamedParameter v, NamedParameter places) = ((Adapted)adaptation).Shared[Kind(site)];
        (Tensor unit, Tensor lengths) = Left(site, v.Value);
        NamedParameter lambda = Add(adaptation, $"{path}.frod_lambda_l", lengths);
        NamedParameter values = Add(adaptation, $"{path}.frod_lambda_s_values", zeros([places.Value.shape[1]]));
        NamedParameter u = adaptation.Add(new NamedParameter($"{path}.frod_U", unit, trainable: false) { Exchanged = false });
        ((Adapted)adaptation).Left.Add((site, v, u));
        adaptation.Attach(site, new AddedPatch(site, Dropout, _ =>
        {
            Tensor moved = u.Value.index_select(1, places.Value.select(0, 0)) * values.Value;                          // columns of U, for U S
            Tensor turned = (u.Value * lambda.Value).index_add(1, places.Value.select(0, 1), moved, 1);
            return turned.matmul(v.Value.t()) - site.Weight.to_type(ScalarType.Float32).reshape(Wide(site), Narrow(site));
        }));
    }

    // The columns of W V⁻ᵀ, and their lengths.
    private static (Tensor Unit, Tensor Lengths) Left(WeightSite site, Tensor v)
    {
        Tensor basis = v.to_type(ScalarType.Float64), weight = site.Weight.to_type(ScalarType.Float64);
        Tensor columns = v.shape[0] == v.shape[1] ? linalg.solve(basis, weight.t()).t() : weight.matmul(linalg.pinv(basis, rtol: 1e-12).t());
        Tensor lengths = columns.norm(0).clamp_min(1e-12);
        return ((columns / lengths).to_type(ScalarType.Float32).contiguous(), lengths.to_type(ScalarType.Float32));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        ProjectionSeed = AdapterConfig.Get(config, "projection_prng_key", 0);
        SaveProjection = AdapterConfig.Get(config, "save_projection", true);
        SparseRate = AdapterConfig.Get(config, "sparse_rate", 0.01);
        Regularization = AdapterConfig.Get(config, "regularization_alpha", 1e-3);
        Dropout = AdapterConfig.Get(config, "frod_dropout", 0.0);
        _carried.Read(config);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        _carried.Write(config);
        WriteBias(config);
        config["init_weights"] = true;
        config["save_projection"] = SaveProjection;
        config["projection_prng_key"] = ProjectionSeed;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["sparse_rate"] = SparseRate;
        config["regularization_alpha"] = Regularization;
        config["frod_dropout"] = Dropout;
    }

    private sealed class Adapted(PeftMethod method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public Dictionary<string, (NamedParameter V, NamedParameter Places)> Shared { get; } = [];

        public List<(WeightSite Site, NamedParameter V, NamedParameter U)> Left { get; } = [];

        // V came from a file: U follows from it.
        public override void Filled()
        {
            using var scope = NewDisposeScope();
            using var off = no_grad();
            foreach ((WeightSite site, NamedParameter v, NamedParameter u) in Left) u.Load(FrodOptions.Left(site, v.Value).Unit);
        }
    }
}
