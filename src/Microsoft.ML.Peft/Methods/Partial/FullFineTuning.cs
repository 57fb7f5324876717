// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// Full fine-tuning, the baseline: every weight and bias of the backbone is trained, as a copy in float32, so that the
/// frozen network stays whole and can be shared. Costs as many trained numbers as the backbone has.
/// </summary>
public sealed class FullFineTuningOptions : PeftMethod
{
    /// <summary>True to train the embedding tables too.</summary>
    public bool TrainEmbeddings { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "full";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "all";

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-5;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultHeadLearningRate => 1e-3;

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        using var scope = NewDisposeScope();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (WeightSite site in Sites(backbone)) TrainedCopies.Whole(adaptation, site);
        // What is tied stays tied: one trained table in both places.
        foreach (Projection site in backbone.Sites.OfType<Projection>())
            if (site.TiedTo is { } table && adaptation.Find($"{backbone.PathOf(table)}.weight") is { } weight) adaptation.Attach(site, new CopyPatch(weight, null));
        return adaptation;
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Sites(backbone).Sum(TrainedCopies.Count);

    private IEnumerable<WeightSite> Sites(Backbone backbone) =>
        backbone.Sites.OfType<WeightSite>().Where(site => (TrainEmbeddings || site is not Embedding) && site is not Projection { TiedTo: not null });
}
