// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Backbones;

/// <content>Frozen weights in few bits.</content>
public abstract partial class Backbone
{
    [ThreadStatic]
    private static WeightFormat? _format;

    private readonly List<QuantisedWeight> _quantised = [];

    /// <summary>
    /// Keeps the linear maps in 4 or 8 bits from now on (QLoRA's storage, whatever method is attached); embeddings, norms, biases and
    /// the language head stay. Not while another thread runs the network.
    /// </summary>
    /// <param name="format">How to keep them.</param>
    public void Quantise(WeightFormat format)
    {
        foreach (Projection site in Sites.OfType<Projection>()) Quantise(site, format);
    }

    /// <summary>Memory of the frozen weights, in bytes.</summary>
    public long WeightBytes => _owned.Sum(t => t.numel() * t.element_size()) + _quantised.Sum(q => q.Bytes);

    // A head reads the scores off: it stays dense, and a tied one has no weight of its own.
    private void Quantise(Projection site, WeightFormat format)
    {
        if (site.Quantised is not null || site.TiedTo is not null || site.Role == SiteRole.LanguageHead) return;
        Hold(site, QuantisedWeight.Of(site.Weight, format));
    }

    internal void Hold(WeightSite site, QuantisedWeight quantised)
    {
        Tensor? dense = site.Quantised is null ? site.Weight : null;
        site.Hold(quantised);
        _quantised.Add(quantised);
        // By identity: equal tensors count as one another otherwise.
        int at = dense is null ? -1 : _owned.FindIndex(t => ReferenceEquals(t, dense));
        if (at < 0) return;
        _underConstruction?.RemoveAll(t => ReferenceEquals(t, dense));
        _owned.RemoveAt(at);
        dense!.Dispose();
    }
}
