// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>The forms of MiSS.</summary>
public enum MissMode
{
    /// <summary>One matrix, repeated along the inputs.</summary>
    Miss,
    /// <summary>One smaller matrix, repeated along inputs and outputs.</summary>
    Mini,
    /// <summary>Blocks multiplied with the weight's own blocks (the first paper's Bone).</summary>
    Bat,
}

/// <summary>
/// MiSS, once Bone (Kang and Yin 2024, arXiv 2409.15371): one matrix <c>M [rank, out]</c> repeated along the inputs,
/// <c>ΔW[o, c] = M[c mod rank, o]</c>; with <see cref="MissMode.Mini"/> also along the outputs; with <see cref="MissMode.Bat"/> blocks
/// <c>D [out / rank, rank, rank]</c> guided by the weight, <c>ΔW_ij = W_ij D_i + D_i</c>. All start at 0; there is no scaling.
/// </summary>
public class MissOptions : BiasedMethod
{
    /// <summary>Rank r, or size of a block; 1 to 4096, at most the inputs of a module; with bat a divisor of both its widths.</summary>
    public int Rank { get; set; } = 64;

    /// <summary>The form.</summary>
    public MissMode Mode { get; set; }

    /// <summary>With mini: columns m of the matrix, a divisor of every module's outputs.</summary>
    public int MiniRank { get; set; } = 1;

    /// <summary>Share of the change's input that is dropped while training, in [0, 1); not with bat, which has no input of its own.</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "miss";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "low rank";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Formula => "r out a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "MISS";

    private protected override string OwnBiases => "MiSS_only";

    private string Block => $"{HuggingFaceType!.ToLowerInvariant()}_block";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "1 to 4096");
        if (!Enum.IsDefined(Mode)) throw Invalid(nameof(Mode), Mode, "miss, mini or bat");
        if (MiniRank < 1) throw Invalid(nameof(MiniRank), MiniRank, "1 or more");
        CheckShare(nameof(Dropout), Dropout);
        if (Mode == MissMode.Bat && Dropout > 0 && !FromFile) throw Invalid(nameof(Dropout), Dropout, "0 with Mode = bat");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Mode == MissMode.Mini ? (long)Rank * MiniRank : Rank * Wide(site);

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long wide = Wide(site), narrow = Narrow(site);
        Check(path, wide, narrow);
        NamedParameter block = Add(adaptation, $"{path}.{Block}", zeros(Mode switch
        {
            MissMode.Bat => [wide / Rank, Rank, Rank],
            MissMode.Mini => [Rank, MiniRank],
            _ => [Rank, wide],
        }));
        adaptation.Attach(site, Mode == MissMode.Bat ? new RewritePatch((weight, bias, _) => (Guided(weight, block.Value), bias)) : new TermsPatch(pass =>
        {
            Tensor repeated = Mode == MissMode.Mini ? block.Value.repeat(1, wide / MiniRank) : block.Value;
            return [new LowRankTerm(Grouping(narrow, pass, repeated.device), repeated.t(), 1, Dropout: Dropout)];
        }));
    }

    private void Check(string path, long wide, long narrow)
    {
        if (Mode == MissMode.Bat && (wide % Rank != 0 || narrow % Rank != 0))
            throw new ArgumentException($"Mode = bat needs Rank to divide both widths of {path}: Rank is {Rank}, the widths are {narrow} in and {wide} out.", nameof(Rank));
        if (Mode == MissMode.Mini && wide % MiniRank != 0)
            throw new ArgumentException($"Mode = mini needs MiniRank to divide the {wide} outputs of {path}; it is {MiniRank}.", nameof(MiniRank));
        if (Rank > narrow) throw new ArgumentException($"MissOptions.Rank is {Rank} at {path}, which has {narrow} inputs; at most that many are allowed.", nameof(Rank));
    }

    // A [rank, in] with A[k, c] = 1 where c mod rank = k: the sum over groups of inputs, as a factor.
    private Tensor Grouping(long inputs, Pass? pass, Device device)
    {
        Tensor Make() => (arange(inputs, device: device).unsqueeze(0).remainder(Rank) == arange(Rank, device: device).unsqueeze(1)).to_type(ScalarType.Float32);
        return pass is null ? Make() : pass.Once((nameof(MissOptions), Rank, inputs), Make);
    }

    // Block row i of the weight, [rank, in / rank, rank], is multiplied with D_i on the side of the inputs.
    private Tensor Guided(Tensor weight, Tensor blocks)
    {
        long wide = weight.shape[0], narrow = weight.shape[1];
        Tensor product = weight.reshape(wide / Rank, narrow, Rank).matmul(blocks).view(wide / Rank, Rank, narrow / Rank, Rank);
        return weight + (product + blocks.unsqueeze(2)).reshape(wide, narrow);
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadBias(config);
        ReadTargets(config);
        Rank = AdapterConfig.Get(config, "r", 64);
        MiniRank = AdapterConfig.Get(config, "mini_r", 1);
        Dropout = AdapterConfig.Get(config, "miss_dropout", 0.0);
        Mode = config["init_weights"] is JsonValue value && value.TryGetValue(out string? _)
            ? ConfigFields.Choice(config, "init_weights", "", ("bat", MissMode.Bat), ("mini", MissMode.Mini))
            : MissMode.Miss;
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        WriteBias(config);
        config["init_weights"] = Mode switch { MissMode.Bat => "bat", MissMode.Mini => "mini", _ => true };
        config["r"] = Rank;
        config["mini_r"] = MiniRank;
        config["miss_dropout"] = Dropout;
    }
}

/// <summary>MiSS in the files of its earlier name: <c>peft_type</c> BONE, tensors <c>bone_block</c>. The same maths.</summary>
public sealed class BoneOptions : MissOptions
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "bone";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "BONE";

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        if (Mode == MissMode.Mini) throw new NotSupportedException("Files of type BONE have no form for Mode = mini; use the method miss.");
        base.WriteHuggingFace(config, backbone);
        config.Remove("mini_r");
        config.Remove("miss_dropout");
    }
}
