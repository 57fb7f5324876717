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
    public static MergeReport Merge(PeftAdaptation adaptation, TokenBatch probe)
    {
        Backbone merged = Merge(adaptation);
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
                changed.Sum(site => (site.Weight.numel() * site.Weight.element_size()) + (site.Bias is { } bias ? bias.numel() * bias.element_size() : 0)));
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
    public static Backbone Merge(PeftAdaptation adaptation)
    {
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
        return adaptation.Backbone.With(replaced);
    }

    // What the patch gave back may be a parameter of the adaptation: the merged backbone must hold numbers of its own.
    private static Tensor Own(Tensor made, Tensor? frozen) =>
        ReferenceEquals(made, frozen) ? made : made.detach().clone();

    private static void Check(Tensor tensor, Site site)
    {
        if (!tensor.isfinite().all().item<bool>())
            throw new InvalidOperationException($"Merging gave numbers that are not finite at {site.Name}; the adapter is damaged or diverged.");
    }
}

/// <summary>A folded backbone and how far it is from the adaptation that it came from.</summary>
/// <param name="Backbone">The folded backbone; disposing the report disposes it.</param>
/// <param name="MaxDifference">Largest difference of a hidden state on the probe.</param>
/// <param name="MeanDifference">Mean difference of the hidden states on the probe.</param>
/// <param name="MaxValue">Largest magnitude of a hidden state of the folded network, to judge the differences by.</param>
/// <param name="Bytes">Memory of the weights that are no longer shared with the original.</param>
public sealed record MergeReport(Backbone Backbone, double MaxDifference, double MeanDifference, double MaxValue, long Bytes) : IDisposable
{
    /// <inheritdoc/>
    public void Dispose() => Backbone.Dispose();

    /// <inheritdoc/>
    public override string ToString() => FormattableString.Invariant(
        $"merged: largest difference {MaxDifference:0.0e+0}, mean {MeanDifference:0.0e+0} (values up to {MaxValue:0.0}), {Bytes / 1048576.0:0.0} MiB of new weights");
}
