// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Super-tuning: the entries of each weight that are largest (or smallest) by magnitude are trained, ⌊(1 − sparsity) · in · out⌋
/// a site; with <see cref="Rank"/> a LoRA (Hu et al. 2022, arXiv 2106.09685) stands beside them, r (in + out) numbers more. Values start at 0; merging adds
/// values and <c>α/r · B A</c>.
/// </summary>
public sealed class SuperTuningOptions : SiteMethod
{
    /// <summary>Share of the entries that stay frozen, in [0, 1).</summary>
    public double Sparsity { get; set; } = 0.99;

    /// <summary>True for the largest entries by magnitude, false for the smallest.</summary>
    public bool SelectTop { get; set; } = true;

    /// <summary>False to leave the places out of exchanged files: readers find them again in the base model's weights.</summary>
    public bool SaveIndices { get; set; } = true;

    /// <summary>Rank of a LoRA beside the entries, 1 to 4096; null for none.</summary>
    public int? Rank { get; set; }

    /// <summary>α of that LoRA, scaled by α/r; null for r.</summary>
    public double? Alpha { get; set; }

    /// <summary>Share of the input's entries, in [0, 1), that the LoRA does not see while training.</summary>
    public double Dropout { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "supertuning";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    protected override (bool Exclude, bool Layers) TargetFields => (false, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "⌊(1 − sparsity) in · out⌋ a site";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string? HuggingFaceType => "SUPERTUNING";

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        CheckShare(nameof(Sparsity), Sparsity);
        if (Rank is < 1 or > 4096) throw Invalid(nameof(Rank), Rank, "null, or 1 to 4096");
        if (Alpha is { } alpha && (!(alpha > 0) || !double.IsFinite(alpha))) throw Invalid(nameof(Alpha), alpha, "null, or a finite number above 0");
        CheckShare(nameof(Dropout), Dropout);
        if (Rank is null && Alpha is not null) throw Invalid(nameof(Alpha), Alpha, "null where Rank is null");
    }

    /// <inheritdoc/>
    protected override void AddSite(PeftAdaptation adaptation, WeightSite site, string path, long seed)
    {
        if (!site.Weight.is_floating_point()) throw new ArgumentException($"SuperTuningOptions ranks the weight's entries, but that of {path} is quantised.");
        if (Rank is { } rank) AddLora(adaptation, site, path, rank, seed);
        long count = Entries(site, path);
        NamedParameter values = Add(adaptation, $"{path}.supertuning_values", zeros(count));
        Tensor best = site.Weight.to_type(ScalarType.Float32).abs().reshape(-1).topk((int)count, 0, SelectTop, true).indexes;
        NamedParameter indices = adaptation.Add(new NamedParameter($"{path}.supertuning_indices", best.to_type(ScalarType.Int32), trainable: false) { Exchanged = SaveIndices });
        adaptation.Attach(site, new SparsePatch((Projection)site, values, indices));
    }

    private void AddLora(PeftAdaptation adaptation, WeightSite site, string path, int rank, long seed)
    {
        string name = $"{path}.supertuning_lora_A.weight";
        NamedParameter a = Add(adaptation, name, new Draws(seed, name).Kaiming(rank, Narrow(site)));
        NamedParameter b = Add(adaptation, $"{path}.supertuning_lora_B.weight", zeros(Wide(site), rank));
        adaptation.Attach(site, new TermsPatch(_ => [new LowRankTerm(a.Value, b.Value, (Alpha ?? rank) / rank, null, Dropout)]));
    }

    private long Entries(WeightSite site, string path)
    {
        long count = (long)((1 - Sparsity) * site.Weight.numel());
        return count > 0 ? count : throw Invalid(nameof(Sparsity), Sparsity, $"small enough to leave an entry of {path}, whose weight is [{Wide(site)}, {Narrow(site)}]");
    }

    /// <inheritdoc/>
    protected override long CountSite(WeightSite site, string path) => Entries(site, path) + ((Rank ?? 0) * (Wide(site) + Narrow(site)));

    /// <inheritdoc/>
    public override void ReadHuggingFace(JsonObject config)
    {
        ReadTargets(config);
        Sparsity = AdapterConfig.Get(config, "sparsity", 0.99);
        SelectTop = AdapterConfig.Get(config, "select_top", true);
        SaveIndices = AdapterConfig.Get(config, "save_precomputed_indices", true);
        Rank = config["r"] is null ? null : AdapterConfig.Get(config, "r", 8);
        Alpha = config["lora_alpha"] is null ? null : AdapterConfig.Get(config, "lora_alpha", 8.0);
        Dropout = AdapterConfig.Get(config, "lora_dropout", 0.0);
        Validate();
    }

    /// <inheritdoc/>
    public override void WriteHuggingFace(JsonObject config, Backbone backbone)
    {
        WriteTargets(config, backbone);
        config["sparsity"] = Sparsity;
        config["select_top"] = SelectTop;
        config["save_precomputed_indices"] = SaveIndices;
        config["r"] = Rank;
        config["lora_alpha"] = Alpha is { } alpha ? AdapterConfig.Number(alpha) : null;
        config["lora_dropout"] = Dropout;
        config["init_weights"] = true;
    }
}
