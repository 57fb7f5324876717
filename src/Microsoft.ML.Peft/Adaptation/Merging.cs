// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Folds adaptations into weights. The original stays as it is: unmerging is going back to it.</summary>
public static class Merging
{
    /// <summary>Folds in, and measures what that changes of a probe's hidden states.</summary>
    /// <param name="adaptation">What to fold in.</param>
    /// <param name="probe">Tokens that both networks run over.</param>
    /// <returns>The folded backbone and the figures; dispose it when done.</returns>
    /// <exception cref="NotSupportedException">The method cannot be merged.</exception>
    /// <exception cref="InvalidOperationException">A merged weight, or a hidden state of the merged network, is not finite.</exception>
    /// <param name="onQuantised">What to do where the base is kept in few bits.</param>
    public static MergeReport Merge(PeftAdaptation adaptation, TokenBatch probe, QuantisedMerge onQuantised = QuantisedMerge.Refuse)
    {
        Backbone merged = Merge(adaptation, out double loss, onQuantised);
        try
        {
            using var off = no_grad();
            using var scope = NewDisposeScope();
            var pass = new Pass(adaptation.Table());
            adaptation.BeforePass(pass, probe);
            Tensor worn = Real(adaptation.Backbone.Forward(probe, pass)), folded = Real(merged.Forward(probe, new Pass()));
            Tensor difference = (worn - folded).abs();
            if (!folded.isfinite().all().item<bool>())
                throw new InvalidOperationException("The merged network gives hidden states that are not finite on the probe; the adapter is damaged or diverged.");
            IEnumerable<WeightSite> changed = adaptation.Patches.Keys.OfType<WeightSite>();
            return new MergeReport(merged, difference.max().item<float>(), difference.mean().item<float>(), folded.abs().max().item<float>(),
                changed.Sum(site => (site.Weight.numel() * site.Weight.element_size()) + (site.Bias is { } bias ? bias.numel() * bias.element_size() : 0)))
            {
                RoundingLoss = loss,
            };
        }
        catch
        {
            merged.Dispose();
            throw;
        }
    }

    // Hidden states of the tokens that are no padding, in float32 [tokens, hidden].
    private static Tensor Real(BackboneOutput output) =>
        output.Last.to_type(ScalarType.Float32)[output.Layout.Mask.to_type(ScalarType.Bool)];

    /// <summary>A backbone with the adaptation folded in; it shares every weight that the adaptation does not touch.</summary>
    /// <param name="adaptation">What to fold in.</param>
    /// <returns>A backbone of its own; dispose it when done, the original stays usable.</returns>
    /// <exception cref="NotSupportedException">The method cannot be merged.</exception>
    /// <exception cref="InvalidOperationException">A merged weight is not finite; the message names it.</exception>
    public static Backbone Merge(PeftAdaptation adaptation) => Merge(adaptation, out _);

    /// <summary>A backbone with the adaptation folded in, over a base that may be kept in few bits.</summary>
    /// <param name="adaptation">What to fold in.</param>
    /// <param name="roundingLoss">Largest difference of a merged weight by rounding it again, as a share of the weight's largest magnitude; 0 without rounding.</param>
    /// <param name="onQuantised">What to do where the base is kept in few bits.</param>
    /// <returns>A backbone of its own; dispose it when done, the original stays usable.</returns>
    /// <exception cref="NotSupportedException">The method cannot be merged, or the base is kept in few bits and nothing is said of that.</exception>
    /// <exception cref="InvalidOperationException">A merged weight is not finite; the message names it.</exception>
    public static Backbone Merge(PeftAdaptation adaptation, out double roundingLoss, QuantisedMerge onQuantised = QuantisedMerge.Refuse)
    {
        roundingLoss = 0;
        if (onQuantised == QuantisedMerge.Refuse && adaptation.Patches.Keys.OfType<WeightSite>().FirstOrDefault(s => s.Quantised is not null) is { } few)
            throw new NotSupportedException(
                $"The weight of {few.Name} is kept as {few.Quantised!.Format}, so a merged one would be rounded again or grow: say which (QuantisedMerge.Requantise or QuantisedMerge.Dense), or merge into the dense base model.");
        if (!adaptation.Method.Mergeable)
            throw new NotSupportedException(
                $"Method {adaptation.Method.Id} acts on activations and cannot be merged; save and load it as an adapter.");
        using var off = no_grad();
        using var scope = NewDisposeScope();
        var replaced = new Dictionary<Site, (Tensor Weight, Tensor? Bias)>();
        foreach ((Site site, Patch patch) in adaptation.Patches)
        {
            if (site is not WeightSite weightSite || patch is not WeightPatch weightPatch)
                throw new NotSupportedException($"The patch at {site.Name} acts on activations and cannot be merged.");
            (Tensor weight, Tensor? bias) = weightPatch.Rewrite(weightSite.Weight, weightSite.Bias, null);
            Check(weight, site);
            if (bias is not null) Check(bias, site);
            replaced[site] = (Own(weight, weightSite.Weight), bias is null ? null : Own(bias, weightSite.Bias));
        }
        Backbone merged = adaptation.Backbone.With(replaced);
        if (onQuantised == QuantisedMerge.Requantise) roundingLoss = RoundAgain(adaptation.Backbone, merged, replaced);
        return merged;
    }

    private static double RoundAgain(Backbone original, Backbone merged, Dictionary<Site, (Tensor Weight, Tensor? Bias)> replaced)
    {
        double most = 0;
        foreach (WeightSite site in replaced.Keys.OfType<WeightSite>())
        {
            if (site.Quantised is not { } kept) continue;
            using var scope = NewDisposeScope();
            Tensor exact = replaced[site].Weight;
            QuantisedWeight rounded = QuantisedWeight.Of(exact, kept.Format);
            merged.Hold((WeightSite)merged.Sites[site.Index], rounded);
            double largest = exact.abs().max().item<float>();
            most = Math.Max(most, (rounded.Dequantise() - exact).abs().max().item<float>() / Math.Max(largest, 1e-30));
        }
        return most;
    }

    // Weights that are restored at each use are new tensors: those, too, are the merged backbone's own.
    // What the patch gave back may be a parameter of the adaptation: the merged backbone must hold numbers of its own.
    private static Tensor Own(Tensor made, Tensor? frozen) =>
        ReferenceEquals(made, frozen) ? made : made.detach().clone();

    private static void Check(Tensor tensor, Site site)
    {
        if (!tensor.isfinite().all().item<bool>())
            throw new InvalidOperationException($"Merging gave numbers that are not finite at {site.Name}; the adapter is damaged or diverged.");
    }
}

/// <summary>What merging does where the base's weights are kept in 4 or 8 bits.</summary>
public enum QuantisedMerge
{
    /// <summary>Refuse.</summary>
    Refuse,
    /// <summary>Merge into the restored weight and round that again; the loss is told.</summary>
    Requantise,
    /// <summary>Merge into the restored weight and keep that dense.</summary>
    Dense,
}

/// <summary>A folded backbone and how far it is from the adaptation that it came from.</summary>
/// <param name="Backbone">The folded backbone; disposing the report disposes it.</param>
/// <param name="MaxDifference">Largest difference of a hidden state on the probe.</param>
/// <param name="MeanDifference">Mean difference of the hidden states on the probe.</param>
/// <param name="MaxValue">Largest magnitude of a hidden state of the folded network, to judge the differences by.</param>
/// <param name="Bytes">Memory of the weights that are no longer shared with the original.</param>
public sealed record MergeReport(Backbone Backbone, double MaxDifference, double MeanDifference, double MaxValue, long Bytes) : IDisposable
{
    /// <summary>Largest difference by rounding a merged weight again (<see cref="QuantisedMerge.Requantise"/>), as a share of its largest magnitude; 0 without.</summary>
    public double RoundingLoss { get; init; }

    /// <inheritdoc/>
    public void Dispose() => Backbone.Dispose();

    /// <inheritdoc/>
    public override string ToString() => FormattableString.Invariant(
        $"merged: largest difference {MaxDifference:0.0e+0}, mean {MeanDifference:0.0e+0} (values up to {MaxValue:0.0}), {Bytes / 1048576.0:0.0} MiB of new weights");
}
