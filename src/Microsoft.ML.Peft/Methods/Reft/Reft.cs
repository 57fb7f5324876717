// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;
using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Representation fine-tuning (Wu et al. 2024, arXiv 2404.03592): the output h of a layer is edited at the first and the last
/// real tokens of each row, <c>h + Rᵀ(φ(W h + b) − R h)</c> (LoReFT with orthonormal rows of R, NoReFT with a free R) or
/// <c>h + Rᵀ φ(W h + b)</c> (DiReFT). R and W <c>[r, hidden]</c>, b <c>[r]</c>; one unit for the first tokens and one for the last.
/// Trained numbers: 2 (2 r d + r) a layer, half of it with <see cref="TiedWeights"/>. Not mergeable.
/// </summary>
public class ReftOptions : PeftMethod, IAdapterHubMethod
{
    /// <summary>Name of the adapter inside tensor names.</summary>
    public string Name { get; set; } = "default";

    /// <summary>Rank r of the edit, 1 up to the hidden width.</summary>
    public int Rank { get; set; } = 1;

    /// <summary>Number of first tokens that are edited, 0 or more.</summary>
    public int PrefixPositions { get; set; } = 3;

    /// <summary>Number of last tokens that are edited, 0 or more; where both meet, the last ones' edit counts.</summary>
    public int SuffixPositions { get; set; }

    /// <summary>Layers that are edited, numbered from 0; empty for all.</summary>
    public int[] Layers { get; set; } = [];

    /// <summary>True to keep the rows of R orthonormal.</summary>
    public bool Orthogonal { get; set; } = true;

    /// <summary>True to replace what R reads of h, false to add to it.</summary>
    public bool SubtractProjection { get; set; } = true;

    /// <summary>φ: an activation by its name in config.json; null for none.</summary>
    public string? NonLinearity { get; set; }

    /// <summary>Share of the edited states, in [0, 1), that is dropped while training.</summary>
    public double Dropout { get; set; } = 0.05;

    /// <summary>True for one unit for first and last tokens.</summary>
    public bool TiedWeights { get; set; }

    /// <summary>A seed that AdapterHub's files may hold; kept for them, the seed of <see cref="Attach"/> draws.</summary>
    public long? InitSeed { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "reft";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Family => "representations";

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool Mergeable => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override bool ExactAtStart => false;

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override double DefaultLearningRate => 9e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    public sealed override string Formula => "2 (2 r d + r) a layer";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Name.Length == 0 || Name.Contains('.')) throw Invalid(nameof(Name), $"'{Name}'", "a name without dots");
        if (Rank < 1) throw Invalid(nameof(Rank), Rank, "1 or more");
        if (PrefixPositions < 0) throw Invalid(nameof(PrefixPositions), PrefixPositions, "0 or more");
        if (SuffixPositions < 0) throw Invalid(nameof(SuffixPositions), SuffixPositions, "0 or more");
        if (PrefixPositions + SuffixPositions == 0) throw Invalid(nameof(PrefixPositions), 0, "1 or more here or at SuffixPositions: no token is edited");
        CheckShare(nameof(Dropout), Dropout);
        foreach (int layer in Layers)
            if (layer < 0) throw Invalid(nameof(Layers), layer, "0 or more");
        if (NonLinearity is null) return;
        try
        {
            Activations.Get(NonLinearity);
        }
        catch (NotSupportedException e)
        {
            throw Invalid(nameof(NonLinearity), $"'{NonLinearity}'", e.Message);
        }
    }

    private List<Block> Places(Backbone backbone)
    {
        List<Block> all = [.. backbone.Sites.OfType<Block>().Where(b => b.Role == SiteRole.LayerBlock)];
        if (all.Count == 0) throw new ArgumentException($"A {backbone.Config.ModelType} backbone has no layers whose input and output are alike, which ReFT edits; use lora.");
        foreach (int layer in Layers)
            if (all.All(b => b.Layer != layer)) throw Invalid(nameof(Layers), layer, $"0 to {all.Max(b => b.Layer)} for this {backbone.Config.ModelType} backbone");
        List<Block> places = Layers.Length == 0 ? all : [.. all.Where(b => Layers.Contains(b.Layer))];
        int narrowest = places.Min(b => backbone.WidthAt(b.Layer));
        if (Rank > narrowest) throw Invalid(nameof(Rank), Rank, $"at most the hidden width {narrowest}");
        return places;
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) =>
        Places(backbone).Sum(place => (TiedWeights ? 1L : 2L) * (2L * Rank * backbone.WidthAt(place.Layer) + Rank));

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        List<Block> places = Places(backbone);
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (Block place in places)
        {
            string path = $"{HubNames.Path(backbone, place.Name)}.reft_layer.refts.{Name}.units";
            ReftUnit first = new(this, adaptation, $"{path}.0", place.Layer, seed);
            adaptation.Attach(place, new ReftPatch(this, first, TiedWeights ? first : new ReftUnit(this, adaptation, $"{path}.1", place.Layer, seed)));
        }
        return adaptation;
    }

    string IAdapterHubMethod.Architecture => "reft";

    void IAdapterHubMethod.ReadAdapterHub(JsonObject config)
    {
        HubNames.Require(config, "dtype", "null", "null", "\"float32\"");
        HubNames.Require(config, "output_reft", "true", "true");
        Rank = AdapterConfig.Get(config, "r", 1);
        PrefixPositions = AdapterConfig.Get(config, "prefix_positions", 3);
        SuffixPositions = AdapterConfig.Get(config, "suffix_positions", 0);
        Layers = config["layers"] is JsonArray ? HubNames.Numbers(config, "layers") : [];
        HubNames.Require(config, "layers", "'all' or a list of layers", [config["layers"] is JsonArray list ? list.ToJsonString() : "\"all\""]);
        Orthogonal = AdapterConfig.Get(config, "orthogonality", false);
        // The package leaves this field out: a DiReFT that it wrote reads as NoReFT.
        SubtractProjection = AdapterConfig.Get(config, "subtract_projection", true);
        NonLinearity = AdapterConfig.Get<string?>(config, "non_linearity", null);
        Dropout = AdapterConfig.Get(config, "dropout", 0.05);
        TiedWeights = AdapterConfig.Get(config, "tied_weights", false);
        InitSeed = HubNames.ReadSeed(config);
    }

    JsonObject IAdapterHubMethod.WriteAdapterHub()
    {
        var config = new JsonObject
        {
            ["architecture"] = "reft",
            ["dropout"] = Dropout,
            ["dtype"] = null,
            ["init_weights_seed"] = HubNames.Seed(InitSeed),
            ["layers"] = Layers.Length == 0 ? "all" : AdapterConfig.Array(Layers),
            ["non_linearity"] = NonLinearity,
            ["orthogonality"] = Orthogonal,
            ["output_reft"] = true,
            ["prefix_positions"] = PrefixPositions,
            ["r"] = Rank,
            ["suffix_positions"] = SuffixPositions,
            ["tied_weights"] = TiedWeights,
        };
        if (!SubtractProjection) config["subtract_projection"] = false;
        return config;
    }
}

/// <summary>LoReFT (arXiv 2404.03592): orthonormal rows, <c>h + Rᵀ(W h + b − R h)</c>.</summary>
public sealed class LoReftOptions : ReftOptions
{
    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "loreft";
}

/// <summary>NoReFT (arXiv 2404.03592): LoReFT with a free R.</summary>
public sealed class NoReftOptions : ReftOptions
{
    /// <summary>Makes the preset.</summary>
    public NoReftOptions() => Orthogonal = false;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "noreft";
}

/// <summary>DiReFT (arXiv 2404.03592): <c>h + Rᵀ(W h + b)</c>, the cheapest of the three.</summary>
public sealed class DiReftOptions : ReftOptions
{
    /// <summary>Makes the preset.</summary>
    public DiReftOptions() => (Orthogonal, SubtractProjection) = (false, false);

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "direft";
}
