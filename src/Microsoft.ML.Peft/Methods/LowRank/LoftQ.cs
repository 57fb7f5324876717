// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Methods;

/// <summary>
/// LoftQ (Li et al. 2023, arXiv 2310.08659): the linear maps are kept in few bits, and LoRA starts with what rounding lost:
/// again and again <c>Q = round(W − B A)</c>, <c>(B, A) = svd_r(W − Q)</c>, so that <c>Q + s B A</c> is closer to W than Q alone.
/// </summary>
public static class LoftQ
{
    /// <summary>Quantises a backbone and attaches LoRA that makes up for it.</summary>
    /// <param name="dense">The dense backbone; stays as it is.</param>
    /// <param name="options">Where and how LoRA is attached; its initial values must be the default ones.</param>
    /// <param name="format">How the linear maps are kept.</param>
    /// <param name="iterations">Rounds, 1 or more.</param>
    /// <param name="seed">Seed of what is drawn elsewhere (tables).</param>
    /// <returns>A quantised backbone of its own, and the adaptation on it; dispose both.</returns>
    /// <exception cref="ArgumentException">The options do not fit.</exception>
    public static (Backbone Backbone, PeftAdaptation Adaptation) Attach(Backbone dense, LoraOptions options, WeightFormat format = WeightFormat.Nf4, int iterations = 1, long seed = 0)
    {
        if (iterations < 1) throw new ArgumentException($"LoftQ's iterations are {iterations}; allowed is 1 or more.", nameof(iterations));
        if (options is not { Init: "default", Variant: null, DataStart: null, UseDora: false })
            throw new ArgumentException("LoftQ makes LoRA's initial values: Init must be 'default', without Variant, DataStart and UseDora.", nameof(options));
        using var scope = NewDisposeScope();
        using var off = no_grad();
        Backbone kept = dense.With(new Dictionary<Site, (Tensor, Tensor?)>());
        PeftAdaptation? made = null;
        try
        {
            made = options.Attach(kept, seed);
            foreach (LoraFactors f in ((LoraAdaptation)made).Factors.Where(f => f.Site is Projection { TiedTo: null }))
            {
                (QuantisedWeight quantised, Tensor a, Tensor b) = Decompose(dense.Sites[f.Site.Index] is WeightSite site ? site.Weight : f.Site.Weight, (int)f.A.Value.shape[0], format, iterations);
                kept.Hold(f.Site, quantised);
                // No scaling enters the rounds: both factors share it.
                double root = 1 / Math.Sqrt(f.Scale);
                f.A.Load(a * root);
                f.B.Load(b * root);
            }
            kept.Quantise(format);
            return (kept, made);
        }
        catch
        {
            made?.Dispose();
            kept.Dispose();
            throw;
        }
    }

    /// <summary>The rounds for one weight.</summary>
    /// <param name="weight">Dense weight <c>[out, in]</c>.</param>
    /// <param name="rank">Rank of the factors.</param>
    /// <param name="format">How the weight is kept.</param>
    /// <param name="iterations">Rounds.</param>
    internal static (QuantisedWeight Kept, Tensor A, Tensor B) Decompose(Tensor weight, int rank, WeightFormat format, int iterations)
    {
        Tensor w = weight.to_type(ScalarType.Float32), product = zeros_like(w), a = w, b = w;
        QuantisedWeight? kept = null;
        for (int i = 0; i < iterations; i++)
        {
            kept?.Dispose();
            kept = QuantisedWeight.Of(w - product, format, halfScales: true);
            (a, b) = Factors.Even(w - kept.Dequantise(), rank);
            product = b.matmul(a);
        }
        return (kept!, a, b);
    }
}
