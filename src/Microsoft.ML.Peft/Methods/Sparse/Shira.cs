// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// SHiRA, sparse high-rank adapters (Bhardwaj et al. 2024, arXiv 2406.13175): r (in + out) entries of each weight are trained,
/// at fixed random places that are kept in the file. As many numbers as LoRA of rank r, but an update of high rank that
/// touches little, so several can be worn together. Values start at 0; merging adds them.
/// </summary>
public sealed class ShiraOptions : SiteMethod
{
    /// <summary>r: r (in + out) entries a site are trained, at most in · out. 1 or more.</summary>
    public int Rank { get; set; } = 32;

    /// <summary>Seed of the places, the same at all sites; null to draw by the seed of the run.</summary>
    public long? PositionSeed { get; set; }

    /// <summary>False to start from standard normal values in place of 0; for tests.</summary>
    public bool InitWeights { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "shira";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool ExactAtStart => InitWeights;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "r (in + out) a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "SHIRA";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (Rank < 1) throw Invalid(nameof(Rank), Rank, "1 or more");
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        long count = CountSite(site, path), columns = Narrow(site);
        string name = $"{path}.shira_weight";
        NamedParameter values = Add(adaptation, name, InitWeights ? zeros(count) : new Draws(seed, name).Normal(1, count));
        long[] at = new TorchGenerator(PositionSeed ?? unchecked((long)Pass.Mix((ulong)seed))).First(site.Weight.numel(), count);
        Array.Sort(at);
        int[] rowsThenColumns = [.. at.Select(i => (int)(i / columns)), .. at.Select(i => (int)(i % columns))];
        NamedParameter indices = Add(adaptation, $"{path}.shira_indices", tensor(rowsThenColumns, [2, count]), trainable: false);
        adaptation.Attach(site, new SparsePatch((Projection)site, values, indices));
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path)
    {
        long count = Rank * (Wide(site) + Narrow(site)), all = site.Weight.numel();
        return count <= all ? count
            : throw Invalid(nameof(Rank), Rank, $"at most {all / (Wide(site) + Narrow(site))} at {path}, whose weight is [{Wide(site)}, {Narrow(site)}]");
    }

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Only(config, "mask_type", "random");
        Rank = AdapterConfig.Get(config, "r", 32);
        PositionSeed = config["random_seed"] is null ? null : AdapterConfig.Get(config, "random_seed", 0);
        InitWeights = AdapterConfig.Get(config, "init_weights", true);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["mask_type"] = "random";
        config["r"] = Rank;
        config["random_seed"] = PositionSeed;
        config["init_weights"] = InitWeights;
        config["fan_in_fan_out"] = StoresTransposed(backbone);
    }
}
