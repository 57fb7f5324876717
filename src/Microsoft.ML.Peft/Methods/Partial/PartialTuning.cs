// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>What is trained of norms.</summary>
public enum NormPart
{
    /// <summary>Nothing.</summary>
    None,
    /// <summary>Scales alone; shifts stay.</summary>
    Scales,
    /// <summary>Scales, and shifts where there are any.</summary>
    All,
}

/// <summary>
/// Partial tuning: parts of the network are trained as they are, and the rest stays: the last layers (Howard and Ruder 2018,
/// arXiv 1801.06146), norms, biases, tables, the pooler. What is chosen adds up, no tensor twice. Trained copies are
/// float32. Merging puts them in place.
/// </summary>
public sealed class PartialTuningOptions : PeftMethod
{
    /// <summary>k: the last k layers, and the norm after them, are trained whole; 0 for none.</summary>
    public int LastLayers { get; set; } = 1;

    /// <summary>What is trained of the norms of all layers.</summary>
    public NormPart Norms { get; set; }

    /// <summary>True to train the biases of all layers, shifts of norms included.</summary>
    public bool Biases { get; set; }

    /// <summary>True to train the embedding tables.</summary>
    public bool Embeddings { get; set; }

    /// <summary>True to train the pooler.</summary>
    public bool Pooler { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 1e-4;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "the numbers of what is chosen";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (LastLayers < 0) throw Invalid(nameof(LastLayers), LastLayers, "0 or more");
        if (!Enum.IsDefined(Norms)) throw Invalid(nameof(Norms), Norms, string.Join(", ", Enum.GetNames<NormPart>()));
        if (LastLayers == 0 && Norms == NormPart.None && !Biases && !Embeddings && !Pooler)
            throw Invalid(nameof(LastLayers), LastLayers, "1 or more where nothing else is chosen; for no trained part take head-only");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) =>
        Parts(backbone).Sum(p => (p.Weight ? p.Site.Weight.numel() : 0) + (p.Bias ? p.Site.Bias!.numel() : 0));

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach ((WeightSite site, bool weight, bool bias) in Parts(backbone))
        {
            NamedParameter? scale = weight ? adaptation.Add($"{backbone.PathOf(site)}.weight", TrainedCopies.Copy(site.Weight)) : null;
            NamedParameter? shift = bias ? TrainedCopies.Bias(adaptation, site) : null;
            adaptation.Attach(site, scale is null ? new BiasPatch(shift!)
                : new CopyPatch(scale, shift, RunningStatistics.Of(adaptation, site, backbone.PathOf(site))));
        }
        return adaptation;
    }

    private List<(WeightSite Site, bool Weight, bool Bias)> Parts(Backbone backbone)
    {
        int layers = backbone.Config.LayerCount;
        if (LastLayers > layers) throw Invalid(nameof(LastLayers), LastLayers, $"at most {layers}, the layers of this {backbone.Config.ModelType} backbone");
        var parts = new List<(WeightSite, bool, bool)>();
        foreach (WeightSite site in backbone.Sites.OfType<WeightSite>().Where(s => s.Role != SiteRole.LanguageHead))
        {
            bool whole = (LastLayers > 0 && site.Layer >= layers - LastLayers && site.Role != SiteRole.Pooler)
                || (Embeddings && site is Embedding) || (Pooler && site.Role == SiteRole.Pooler);
            bool weight = whole || (site is Norm && Norms != NormPart.None);
            bool bias = site.Bias is not null && (whole || Biases || (site is Norm && Norms == NormPart.All));
            if (weight || bias) parts.Add((site, weight, bias));
        }
        return parts.Count > 0 ? parts
            : throw new ArgumentException($"This {backbone.Config.ModelType} backbone has nothing of what PartialTuningOptions chooses (it has no biases, or no pooler); choose another part.");
    }
}
