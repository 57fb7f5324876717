// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Serialization;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// LT-SFT, lottery-ticket sparse fine-tuning (Ansell et al. 2022, arXiv 2110.07560): all weights but norms are trained for some steps;
/// the K that changed most, over all tensors together, are chosen; everything goes back, and those alone are trained. What is
/// left is a sparse difference, which adds to others (a language's and a task's). Trained numbers: all while training, K kept.
/// Merging adds the difference.
/// </summary>
public sealed class LotteryTicketOptions : PeftMethod
{
    /// <summary>K: how many numbers are kept, at most as many as there are.</summary>
    public long Count { get; set; } = 100_000;

    /// <summary>Optimizer steps of the first phase; null for a quarter of the run.</summary>
    public long? FirstSteps { get; set; }

    /// <summary>
    /// How many times the rate of the first phase, at its start, the second begins with, above 0; null for <c>√(N/K)</c>, with which
    /// a step of the K numbers is as long as one of all N. 1 as in the paper, whose phases are thousands of steps long.
    /// </summary>
    public double? SecondRateFactor { get; set; }

    /// <summary>λ of <c>λ Σ|θ − θ₀| / N</c> in the loss, 0 or more; 0.1 is usual for languages.</summary>
    public double Penalty { get; set; }

    /// <summary>True to train the embedding tables, too.</summary>
    public bool TrainEmbeddings { get; set; } = true;

    /// <summary>Entries of each tensor where they come from an exchanged file.</summary>
    [JsonIgnore]
    internal Dictionary<string, long> Entries { get; set; } = [];

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Id => "lt-sft";

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Family => "sparse";

    /// <inheritdoc/>
    [JsonIgnore]
    public override bool Mergeable => true;

    /// <inheritdoc/>
    [JsonIgnore]
    public override double DefaultLearningRate => 2e-5;

    /// <inheritdoc/>
    [JsonIgnore]
    public override string Formula => "everything but norms while training, K kept";

    /// <inheritdoc/>
    public override void Validate()
    {
        if (Count < 1) throw Invalid(nameof(Count), Count, "1 or more");
        if (FirstSteps is < 1) throw Invalid(nameof(FirstSteps), FirstSteps, "null, or 1 or more");
        if (SecondRateFactor is { } factor && !(factor > 0 && double.IsFinite(factor))) throw Invalid(nameof(SecondRateFactor), factor, "null, or a finite number above 0");
        if (!(Penalty >= 0) || !double.IsFinite(Penalty)) throw Invalid(nameof(Penalty), Penalty, "0 or more");
    }

    private List<WeightSite> Sites(Backbone backbone)
    {
        List<WeightSite> sites = [.. backbone.Sites.OfType<WeightSite>()
            .Where(s => s is not Norm && s.Role != SiteRole.LanguageHead && (TrainEmbeddings || s is not Embedding))];
        long all = sites.Sum(TrainedCopies.Count);
        return Count <= all ? sites : throw Invalid(nameof(Count), Count, $"at most {all}, the numbers that may be trained");
    }

    /// <inheritdoc/>
    public override long CountTrainable(Backbone backbone) => Entries.Count > 0 ? Entries.Values.Sum() : Sites(backbone).Sum(TrainedCopies.Count);

    /// <inheritdoc/>
    public override PeftAdaptation Attach(Backbone backbone, long seed)
    {
        Validate();
        using var scope = NewDisposeScope();
        using var off = no_grad();
        var adaptation = new LotteryTicketAdaptation(this, backbone);
        foreach (WeightSite site in Sites(backbone)) adaptation.AddSite(site, backbone.PathOf(site));
        return adaptation;
    }

    /// <summary>Exchanged files hold the entries that differ, with their places.</summary>
    /// <param name="adaptation">An adaptation of this method.</param>
    public override PeftAdaptation ToExchange(PeftAdaptation adaptation) =>
        Entries.Count > 0 ? adaptation : ((LotteryTicketAdaptation)adaptation).Sparse();

    /// <inheritdoc/>
    public override void ReadTensors(IReadOnlyDictionary<string, long[]> shapes)
    {
        const string prefix = "base_model.model.", suffix = ".lt_entries";
        Entries = shapes.Where(t => t.Key.EndsWith(suffix, StringComparison.Ordinal) && t.Value.Length == 1)
            .ToDictionary(t => t.Key.StartsWith(prefix, StringComparison.Ordinal) ? t.Key[prefix.Length..^suffix.Length] : t.Key[..^suffix.Length], t => t.Value[0]);
    }
}
