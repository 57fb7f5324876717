// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// GraLoRA (Jung et al. 2025, arXiv 2505.20355): the weight is cut into <c>blocks × blocks</c> parts, each with a low-rank
/// update of its own, of rank <c>rank / blocks</c>. <c>gralora_A [blocks, in / blocks, rank]</c>,
/// <c>gralora_B [blocks, rank, out / blocks]</c>; as many numbers as LoRA of the same rank, but a change of rank up to
/// <c>blocks · rank</c>. B starts at 0.
/// </summary>
public sealed class GraloraOptions : BiasedMethod
{
    /// <summary>Rank of the blocks together, a multiple of <see cref="Blocks"/>.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Scaling numerator α; the change is scaled by α over rank plus general rank.</summary>
    public double Alpha { get; set; } = 64;

    /// <summary>Number of blocks along each axis; it divides the rank and both widths of every module.</summary>
    public int Blocks { get; set; } = 2;

    /// <summary>Rank of an ordinary LoRA pair beside the blocks; 0 for none.</summary>
    public int GeneralRank { get; set; }

    /// <summary>Share of the change's input that is dropped while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "gralora";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "GRALORA";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, true);

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (Blocks < 1 || Rank % Blocks != 0) throw Invalid(nameof(Blocks), Blocks, $"a divisor of Rank = {Rank}");
        if (GeneralRank is < 0 or > 4096) throw Invalid(nameof(GeneralRank), GeneralRank, "0 to 4096");
        if (!(Alpha > 0) || !double.IsFinite(Alpha)) throw Invalid(nameof(Alpha), Alpha, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => (Rank + GeneralRank) * (Wide(site) + Narrow(site));

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        if (wide % Blocks != 0 || narrow % Blocks != 0)
            throw new ArgumentException($"GraloraOptions.Blocks is {Blocks}, which does not divide both widths of {path} [{wide}, {narrow}].", nameof(Blocks));
        double bound = 1 / Math.Sqrt((double)narrow / Blocks);
        NamedParameter a = Add(adaptation, $"{path}.gralora_A", new Draws(seed, $"{path}.gralora_A").Uniform(bound, Blocks, narrow / Blocks, Rank));
        NamedParameter b = Add(adaptation, $"{path}.gralora_B", zeros([Blocks, Rank, wide / Blocks]));
        NamedParameter? generalA = null, generalB = null;
        if (GeneralRank > 0)
        {
            generalA = Add(adaptation, $"{path}.gralora_A_general.weight", new Draws(seed, $"{path}.gralora_A_general.weight").Kaiming(GeneralRank, narrow));
            generalB = Add(adaptation, $"{path}.gralora_B_general.weight", zeros([wide, GeneralRank]));
        }
        double scale = Alpha / (Rank + GeneralRank);
        adaptation.Attach(site, new TermsPatch(_ =>
        {
            (Tensor first, Tensor second) = Factors(a.Value, b.Value);
            if (generalA is not null) (first, second) = (cat([first, generalA.Value], 0), cat([second, generalB!.Value], 1));
            return [new LowRankTerm(first, second, scale, Dropout: Dropout)];
        }));
    }

    // The blocks as one pair of factors of rank blocks · rank, mostly zeros: input block i feeds its ranks, of which the j-th
    // slice feeds output block j.
    private static (Tensor A, Tensor B) Factors(Tensor a, Tensor b)
    {
        long blocks = a.shape[0], rank = a.shape[2];
        Tensor diagonal = eye(blocks, device: a.device);
        Tensor first = a.transpose(1, 2).unsqueeze(2) * diagonal.view(blocks, 1, blocks, 1);               // [i, rank, i', in / blocks]
        Tensor slices = b.view(blocks, blocks, 1, rank / blocks, -1).permute(0, 4, 1, 2, 3);               // [j, out / blocks, i, 1, rank / blocks]
        Tensor second = slices * diagonal.view(blocks, 1, 1, blocks, 1);                                   // [j, out / blocks, i, j', rank / blocks]
        return (first.reshape(blocks * rank, -1), second.reshape(-1, blocks * rank));
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 32);
        Alpha = AdapterConfig.Get(config, "alpha", 64.0);
        Blocks = AdapterConfig.Get(config, "gralora_k", 2);
        GeneralRank = AdapterConfig.Get(config, "hybrid_r", 0);
        Dropout = AdapterConfig.Get(config, "gralora_dropout", 0.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        IReadOnlyList<WeightSite> sites = SelectSites(backbone);
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["fan_in_fan_out"] = sites.OfType<Projection>().Any(site => site.StoredTransposed);
        config["r"] = Rank;
        config["alpha"] = AdapterConfig.Number(Alpha);
        config["gralora_k"] = Blocks;
        config["hybrid_r"] = GeneralRank;
        config["gralora_dropout"] = Dropout;
    }
}
