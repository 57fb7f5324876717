// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// OFT (Qiu et al. 2023, arXiv 2306.07280): what a module reads is rotated block by block, <c>W' = W Rᵀ</c>. Each block of size n has
/// <c>n (n − 1) / 2</c> trained numbers, the upper triangle of a skew Q, and R is its Cayley transform <c>(I − Q)(I + Q)⁻¹</c>, or that
/// of −Q by a cut series (the default, faster). Q starts at 0. Projections, convolutions (over channels times kernel), tables.
/// </summary>
public sealed class OftOptions : BiasedMethod
{
    /// <summary>Size n of a block; 0 where <see cref="Blocks"/> is given. Where it does not divide a width, the nearest size that does.</summary>
    public int BlockSize { get; set; } = 32;

    /// <summary>Number of blocks; 0 where <see cref="BlockSize"/> is given. Where it does not divide a width, the nearest number that does.</summary>
    public int Blocks { get; set; }

    /// <summary>True to use one block for all.</summary>
    public bool ShareBlock { get; set; }

    /// <summary>True for the series, false for the exact transform. The two turn in opposite directions, as in the files.</summary>
    public bool Series { get; set; } = true;

    /// <summary>Terms of the series, 1 to 20; three are as four.</summary>
    public int Terms { get; set; } = 5;

    /// <summary>True for constrained OFT: each block's Q is kept within <see cref="Radius"/> / √blocks.</summary>
    public bool Constrained { get; set; }

    /// <summary>Largest length of all blocks' Q together, with <see cref="Constrained"/>.</summary>
    public double Radius { get; set; } = 6e-5;

    /// <summary>Share of the blocks that are left out while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "oft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "orthogonal";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "blocks n (n − 1) / 2 a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "OFT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        Rotations.CheckBlocks(BlockSize, Blocks, Invalid);
        if (Terms is < 1 or > 20) throw Invalid(nameof(Terms), Terms, "1 to 20");
        if (!(Radius > 0) || !double.IsFinite(Radius)) throw Invalid(nameof(Radius), Radius, "a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution or Embedding;

    private static long Width(WeightSite site) => site is Embedding ? Wide(site) : Narrow(site);

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        (long blocks, int size) = Shape(Width(site), path);
        return blocks * size * (size - 1) / 2;
    }

    private (long Blocks, int Size) Shape(long width, string path)
    {
        long size = Blocks > 0 ? width / Nearest(Blocks, width) : Nearest(BlockSize, width);
        if (size < 2) throw new ArgumentException($"OftOptions gives blocks of one number at {path}, of width {width}: nothing could turn. Use a larger BlockSize or fewer Blocks.", nameof(BlockSize));
        return (ShareBlock ? 1 : width / size, (int)size);
    }

    // The divisor of the width that is nearest to what is wanted; the smaller of two.
    private static long Nearest(long wanted, long width)
    {
        for (long distance = 0; distance < width; distance++)
        {
            if (wanted - distance >= 1 && width % (wanted - distance) == 0) return wanted - distance;
            if (width % (wanted + distance) == 0) return wanted + distance;
        }
        return width;
    }

    /// <inheritdoc/>
    protected override PeftAdaptation Make(Backbone backbone) => new Adapted(this, backbone);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        (long blocks, int size) = Shape(Width(site), path);
        NamedParameter upper = Add(adaptation, $"{path}.{(site is Embedding ? "oft_embedding_R" : "oft_R")}.weight", zeros([blocks, size * (size - 1L) / 2]));
        adaptation.Attach(site, new InputMapPatch(site, (rows, transposed, pass) =>
        {
            // A constraint acts on the value and not on the gradient.
            Tensor free = Constrained ? upper.Value + (Within(upper.Value) - upper.Value).detach() : upper.Value;
            Tensor q = Rotations.Skew(free, size, pass);
            Tensor r = Rotations.DropBlocks(Series ? Rotations.Neumann(q, Terms) : Rotations.Cayley(q), Dropout, pass);
            return Rotations.Multiply(rows, transposed || site is Embedding ? r : r.transpose(1, 2));
        }));
    }

    private Tensor Within(Tensor upper)
    {
        Tensor length = upper.norm(1, keepdim: true) * Math.Sqrt(2);                       // of the whole skew matrix
        return upper * (Radius / Math.Sqrt(upper.shape[0]) / length.clamp_min(1e-30)).clamp_max(1);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        BlockSize = AdapterConfig.Get(config, "oft_block_size", 32);
        Blocks = AdapterConfig.Get(config, "r", 0);
        ShareBlock = AdapterConfig.Get(config, "block_share", false);
        Series = AdapterConfig.Get(config, "use_cayley_neumann", true);
        Terms = AdapterConfig.Get(config, "num_cayley_neumann_terms", 5);
        Constrained = AdapterConfig.Get(config, "coft", false);
        Radius = AdapterConfig.Get(config, "eps", 6e-5);
        Dropout = AdapterConfig.Get(config, "module_dropout", 0.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["oft_block_size"] = BlockSize;
        config["r"] = Blocks;
        config["block_share"] = ShareBlock;
        config["use_cayley_neumann"] = Series;
        config["num_cayley_neumann_terms"] = Terms;
        config["coft"] = Constrained;
        config["eps"] = Radius;
        config["module_dropout"] = Dropout;
    }

    // The optimizer steps from the constrained values, and leaves constrained ones.
    private sealed class Adapted(OftOptions method, Backbone backbone) : PeftAdaptation(method, backbone)
    {
        public override void BeforeStep(long step) => Constrain();

        public override void AfterStep(long step) => Constrain();

        private void Constrain()
        {
            if (!method.Constrained) return;
            using var scope = NewDisposeScope();
            using var off = no_grad();
            foreach (NamedParameter parameter in Parameters)
                if (parameter.Name.EndsWith("_R.weight", StringComparison.Ordinal)) parameter.Value.copy_(method.Within(parameter.Value));
        }
    }
}
