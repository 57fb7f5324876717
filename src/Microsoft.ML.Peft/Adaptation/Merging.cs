// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>Folds adaptations into weights. The original stays as it is: unmerging is going back to it.</summary>
public static class Merging
{
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
