// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>Among what half of the parts is drawn.</summary>
public enum HalfOf
{
    /// <summary>Half of the attention maps, half of the feed-forward maps of each layer, half of all norms.</summary>
    Category,
    /// <summary>Half of the layers, whole.</summary>
    Layer,
    /// <summary>Half of all parts, wherever they are.</summary>
    Model,
}

/// <summary>
/// HFT, half fine-tuning (Hui et al. 2024, arXiv 2404.18466): a random half of the matrices is trained, the other half stays and
/// keeps what the model knew; the next task draws anew. Tables are always trained. Trained numbers: about half of the layers',
/// and the tables. Merging puts the trained copies in place.
/// </summary>
public sealed class HalfTuningOptions : PeftMethod
{
    /// <summary>Share of the parts that is trained, above 0 and below 1.</summary>
    public double Ratio { get; set; } = 0.5;

    /// <summary>Among what the share is drawn.</summary>
    public HalfOf Granularity { get; set; }

    /// <summary>Seed of the choice, so that a model file knows which half it holds.</summary>
    public long SelectionSeed { get; set; }

    /// <summary>Number of the task in a row of tasks, from 0: each draws another half.</summary>
    public int Round { get; set; }

    /// <summary>True to train the embedding tables.</summary>
    public bool TrainEmbeddings { get; set; } = true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "hft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "partial";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-5;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "half of the layers' numbers, and the tables";

    private static readonly SiteRole[] _attention = [SiteRole.Query, SiteRole.Key, SiteRole.Value, SiteRole.QueryKeyValue, SiteRole.AttentionOutput];
    private static readonly SiteRole[] _forward = [SiteRole.FeedForwardUp, SiteRole.FeedForwardGate, SiteRole.FeedForwardDown];

    /// <inheritdoc/>
    public override void Validate()
    {
        if (!(Ratio > 0 && Ratio < 1)) throw Invalid(nameof(Ratio), Ratio, "above 0 and below 1");
        if (!Enum.IsDefined(Granularity)) throw Invalid(nameof(Granularity), Granularity, string.Join(", ", Enum.GetNames<HalfOf>()));
        if (Round < 0) throw Invalid(nameof(Round), Round, "0 or more");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Chosen(backbone).Sum(TrainedCopies.Count);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        var adaptation = new PeftAdaptation(this, backbone);
        foreach (WeightSite site in Chosen(backbone)) TrainedCopies.Whole(adaptation, site);
        return adaptation;
    }

    private List<WeightSite> Chosen(Backbone backbone)
    {
        List<WeightSite> all = [.. backbone.Sites.OfType<WeightSite>().Where(s => s.Role != SiteRole.LanguageHead)];
        List<WeightSite> inside = [.. all.Where(s => s is Norm || _attention.Contains(s.Role) || _forward.Contains(s.Role))];
        HashSet<WeightSite> chosen = Granularity switch
        {
            HalfOf.Model => [.. Draw("model", inside, (int)Math.Round(Ratio * inside.Count))],
            HalfOf.Layer => OfLayers(inside),
            _ => [.. OfGroups("attention", inside, _attention), .. OfGroups("forward", inside, _forward), .. OfNorms(inside)],
        };
        if (TrainEmbeddings) chosen.UnionWith(all.OfType<Embedding>());
        return chosen.Count > 0 ? [.. all.Where(chosen.Contains)]
            : throw Invalid(nameof(Ratio), Ratio, $"large enough to choose a part of this {backbone.Config.ModelType} backbone");
    }

    private IEnumerable<WeightSite> OfNorms(List<WeightSite> inside)
    {
        List<WeightSite> norms = [.. inside.Where(s => s is Norm)];
        return Draw("norms", norms, (int)(Ratio * norms.Count));
    }

    private HashSet<WeightSite> OfLayers(List<WeightSite> inside)
    {
        List<int> layers = [.. inside.Where(s => s is not Norm).Select(s => s.Layer).Distinct()];
        HashSet<int> drawn = [.. Draw("layers", layers, (int)Math.Round(Ratio * layers.Count))];
        return [.. inside.Where(s => drawn.Contains(s.Layer))];
    }

    // The same share of each layer's group; where that is no whole number, some layers give one more, and the whole comes out right.
    private IEnumerable<WeightSite> OfGroups(string name, List<WeightSite> inside, SiteRole[] roles)
    {
        List<List<WeightSite>> groups = [.. inside.Where(s => roles.Contains(s.Role)).GroupBy(s => s.Layer).Select(g => g.ToList())];
        double fraction = groups.Sum(g => (Ratio * g.Count) - Math.Floor(Ratio * g.Count));
        HashSet<int> more = [.. Draw(name, Enumerable.Range(0, groups.Count).Where(i => Ratio * groups[i].Count % 1 > 0).ToList(), (int)Math.Round(fraction))];
        return groups.SelectMany((group, i) => Draw($"{name} {group[0].Layer}", group, (int)(Ratio * group.Count) + (more.Contains(i) ? 1 : 0)));
    }

    // The first of a shuffled list.
    private IEnumerable<T> Draw<T>(string name, List<T> from, int count)
    {
        var draws = new Draws(SelectionSeed, $"hft {Round} {name}");
        List<T> shuffled = [.. from];
        for (int i = 0; i < shuffled.Count; i++)
        {
            int other = i + (int)(draws.Next() * (shuffled.Count - i));
            (shuffled[i], shuffled[other]) = (shuffled[other], shuffled[i]);
        }
        return shuffled.Take(count);
    }
}
