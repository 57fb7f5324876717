// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// BOFT (Liu et al. 2023, arXiv 2311.06243): what a module reads is turned by a product of sparse rotations in a butterfly's
/// order, and its outputs are scaled, <c>W' = s ⊙ (W Bᵀ)</c>. <c>boft_R [factors, blocks, size, size]</c>, of which the skew part ½ (R − Rᵀ)
/// goes through Cayley's transform; <c>boft_s</c> one number an output. R starts at 0, s at 1. Projections and convolutions.
/// </summary>
public sealed class BoftOptions : BiasedMethod
{
    /// <summary>Size of a block; 0 where <see cref="Blocks"/> is given. It divides every width, and is even with several factors.</summary>
    public int BlockSize { get; set; } = 4;

    /// <summary>Number of blocks; 0 where <see cref="BlockSize"/> is given. It divides every width.</summary>
    public int Blocks { get; set; }

    /// <summary>Factors of the butterfly, 1 to 16; each further one mixes twice as many blocks.</summary>
    public int Factors { get; set; } = 1;

    /// <summary>Share of the blocks that are left out while training, in [0, 1).</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "boft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "orthogonal";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "factors · blocks n² + out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "BOFT";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        Rotations.CheckBlocks(BlockSize, Blocks, Invalid);
        if (Factors is < 1 or > 16) throw Invalid(nameof(Factors), Factors, "1 to 16");
        CheckShare(nameof(Dropout), Dropout);
    }

    /// <inheritdoc/>
    protected override bool Adapts(WeightSite site) => site is Projection or Convolution;

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        (long blocks, long size) = Shape(Narrow(site), path);
        return Factors * blocks * size * size + Wide(site);
    }

    private (long Blocks, long Size) Shape(long width, string path)
    {
        long size = Blocks > 0 ? width / Blocks : BlockSize;
        bool fits = size >= 2 && width % size == 0 && (Blocks == 0 || width % Blocks == 0);
        if (!fits) throw new ArgumentException($"BoftOptions.{(Blocks > 0 ? nameof(Blocks) : nameof(BlockSize))} is {Math.Max(Blocks, BlockSize)}, which does not cut the width {width} of {path} into equal blocks of two or more.", nameof(BlockSize));
        if (Factors > 1 && (size % 2 != 0 || width % (size << (Factors - 1)) != 0))
            throw new ArgumentException(
                $"BoftOptions.Factors is {Factors} at {path}: with several factors blocks are of even size, and {size << (Factors - 1)} (the size times 2 for each further factor) divides the width {width}.", nameof(Factors));
        return (width / size, size);
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        (long blocks, long size) = Shape(Narrow(site), path);
        NamedParameter r = Add(adaptation, $"{path}.boft_R", zeros([Factors, blocks, size, size]));
        NamedParameter s = Add(adaptation, $"{path}.boft_s", ones(site is Convolution ? [1, Wide(site)] : [Wide(site), 1]));
        adaptation.Attach(site, new InputMapPatch(site, (rows, transposed, pass) => Turn(rows, r.Value, transposed, pass), s, BiasOf(adaptation, path)));
    }

    // B = F_m … F_1 with F_i = P_i C_i P_iᵀ; rows are multiplied with B, or with Bᵀ.
    private Tensor Turn(Tensor rows, Tensor r, bool byB, Pass? pass)
    {
        Tensor rotation = Rotations.Cayley((r - r.transpose(-2, -1)) * 0.5);
        for (int step = 0; step < Factors; step++)
        {
            int factor = byB ? Factors - 1 - step : step;
            Tensor blocks = Rotations.DropBlocks(rotation.select(0, factor), Dropout, pass);
            if (!byB) blocks = blocks.transpose(1, 2);
            if (factor == 0)
            {
                rows = Rotations.Multiply(rows, blocks);
                continue;
            }
            Tensor[] order = Order(factor, rows.shape[^1], r.shape[^1], pass, rows.device);
            rows = Rotations.Multiply(rows.index_select(-1, order[1]), blocks).index_select(-1, order[0]);
        }
        return rows;
    }

    // Segments of 2^factor blocks list their half blocks of even number first, then those of odd number; and the way back.
    private static Tensor[] Order(int factor, long width, long size, Pass? pass, Device device)
    {
        Tensor[] Make()
        {
            long half = size / 2, pairs = 1L << factor;
            Tensor order = arange(width, device: device).view(-1, pairs, 2, half).transpose(1, 2).reshape(-1);
            return [order, order.argsort()];
        }
        return pass is null ? Make() : pass.Once((nameof(BoftOptions), factor, width, size), Make);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        BlockSize = AdapterConfig.Get(config, "boft_block_size", 4);
        Blocks = AdapterConfig.Get(config, "boft_block_num", 0);
        Factors = AdapterConfig.Get(config, "boft_n_butterfly_factor", 1);
        Dropout = AdapterConfig.Get(config, "boft_dropout", 0.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = true;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
        config["boft_block_size"] = BlockSize;
        config["boft_block_num"] = Blocks;
        config["boft_n_butterfly_factor"] = Factors;
        config["boft_dropout"] = Dropout;
    }
}
