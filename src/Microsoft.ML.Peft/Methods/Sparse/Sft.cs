// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>How sparse fine-tuning finds new places.</summary>
public enum SftGrowth
{
    /// <summary>By gradients that are summed over a few steps at candidate places (SFT-AG).</summary>
    Gradients,
    /// <summary>By the row and column maxima that SM3 keeps (SFT-MA); no further gradients are looked at.</summary>
    Accumulators,
}

/// <summary>How the share of places that move falls over the run.</summary>
public enum SftPolicy
{
    /// <summary>p₀ (1 − t/T); all places are chosen anew the first time.</summary>
    Linear,
    /// <summary>p₀ (1 + cos(π t/T)) / 2.</summary>
    Cosine,
}

/// <summary>
/// Sparse fine-tuning with moving places (Ansell et al. 2024, arXiv 2401.16405): <c>W' = W + S</c>, S zero but for k trained entries. Every S
/// steps the entries that changed least are dropped and places with much evidence are grown, with value 0. Trained numbers:
/// a budget N shared out by the sizes of the weights. Each entry has an age and moments of its own, so the method brings its
/// optimizer. Merging adds the entries.
/// </summary>
public sealed class SftOptions : TargetedMethod
{
    /// <summary>Budget as a share of all numbers of the backbone, embeddings included; in (0, 1].</summary>
    public double Density { get; set; } = 0.01;

    /// <summary>Budget as a number of entries, in place of <see cref="Density"/>; null for that.</summary>
    public long? Budget { get; set; }

    /// <summary>S: steps from one selection to the next; more than <see cref="AccumulationSteps"/>.</summary>
    public int SelectionEvery { get; set; } = 20;

    /// <summary>γ: steps over which gradients are summed before a selection; 1 or more.</summary>
    public int AccumulationSteps { get; set; } = 5;

    /// <summary>p₀: share of the entries that move at first, in [0, 1].</summary>
    public double ReplacedShare { get; set; } = 0.2;

    /// <summary>How that share falls.</summary>
    public SftPolicy Policy { get; set; }

    /// <summary>How new places are found, and which optimizer goes with it.</summary>
    public SftGrowth Growth { get; set; }

    /// <summary>T: steps over which the share falls; null for the run's own number.</summary>
    public long? TotalSteps { get; set; }

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "sft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => Growth == SftGrowth.Gradients ? 2e-4 : 1e-3;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "⌊density · numbers of the backbone⌋, shared out by size";

    /// <inheritdoc/>
    [JsonIgnore]
    protected override IReadOnlyList<SiteRole> DefaultRoles =>
    [
        SiteRole.Query, SiteRole.Key, SiteRole.Value, SiteRole.QueryKeyValue, SiteRole.AttentionOutput,
        SiteRole.FeedForwardUp, SiteRole.FeedForwardGate, SiteRole.FeedForwardDown,
    ];

    /// <inheritdoc/>
    public override void Validate()
    {
        base.Validate();
        if (!(Density > 0 && Density <= 1)) throw Invalid(nameof(Density), Density, "above 0, up to 1");
        if (Budget is < 1) throw Invalid(nameof(Budget), Budget, "null, or 1 or more");
        if (AccumulationSteps < 1) throw Invalid(nameof(AccumulationSteps), AccumulationSteps, "1 or more");
        if (SelectionEvery <= AccumulationSteps) throw Invalid(nameof(SelectionEvery), SelectionEvery, $"more than AccumulationSteps, which is {AccumulationSteps}");
        if (!(ReplacedShare >= 0 && ReplacedShare <= 1)) throw Invalid(nameof(ReplacedShare), ReplacedShare, "0 to 1");
        if (!Enum.IsDefined(Policy)) throw Invalid(nameof(Policy), Policy, string.Join(", ", Enum.GetNames<SftPolicy>()));
        if (!Enum.IsDefined(Growth)) throw Invalid(nameof(Growth), Growth, string.Join(", ", Enum.GetNames<SftGrowth>()));
        if (TotalSteps is < 1) throw Invalid(nameof(TotalSteps), TotalSteps, "null, or 1 or more");
    }

    /// <summary>Share of the entries that move at a selection.</summary>
    /// <param name="step">Completed steps t.</param>
    /// <param name="total">Steps of the run T, or null where nobody knows: the share then stays.</param>
    public double ShareAt(long step, long? total)
    {
        if (Policy == SftPolicy.Linear && step == AccumulationSteps) return 1;
        double done = total is { } t ? Math.Min(1, (double)step / t) : 0;
        return Policy == SftPolicy.Linear ? ReplacedShare * (1 - done) : ReplacedShare * (1 + Math.Cos(Math.PI * done)) / 2;
    }

    // Entries of each site: the budget times its share of the targets' numbers.
    private List<(Projection Site, long Count)> Shares(Backbone backbone)
    {
        List<Projection> sites = [.. SelectSites(backbone).Cast<Projection>()];
        long all = sites.Sum(site => site.Weight.numel()), budget = Budget ?? (long)(Density * backbone.ParameterCount);
        if (budget > all)
            throw Invalid(Budget is null ? nameof(Density) : nameof(Budget), Budget is null ? $"{Density} ({budget} entries)" : budget, $"at most {all} entries: the targets have no more");
        List<(Projection, long)> shares = [.. sites.Select(site => (site, (long)((double)budget * site.Weight.numel() / all))).Where(s => s.Item2 > 0)];
        return shares.Count > 0 ? shares : throw Invalid(nameof(Density), Density, $"large enough for one entry of a target: {budget} of {backbone.ParameterCount} numbers are shared out over {sites.Count} targets");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Shares(backbone).Sum(s => s.Count) + SavedWhole(backbone).Sum(TrainedCopies.Count);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new SftAdaptation(this, backbone);
        try
        {
            foreach ((Projection site, long count) in Shares(backbone))
            {
                string path = backbone.PathOf(site);
                long[] at = new TorchGenerator(unchecked((long)Pass.Mix(Pass.Mix((ulong)seed) ^ (ulong)site.Index))).First(site.Weight.numel(), count);
                Array.Sort(at);
                adaptation.AddSite(site, path, tensor(at));
            }
            foreach (WeightSite site in SavedWhole(backbone)) TrainedCopies.Whole(adaptation, site);
            return adaptation;
        }
        catch
        {
            adaptation.Dispose();
            throw;
        }
    }
}
