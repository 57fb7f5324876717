// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using static TorchSharp.torch;

namespace Microsoft.ML.Peft.Adaptation;

/// <summary>
/// Several projections of one input (queries, keys, values): the first factors of all their low-rank terms in one product, so
/// that the input is read once. Where dropout gives each site an input of its own, there is nothing to share.
/// </summary>
internal sealed class SharedProduct
{
    private readonly Tensor _x;
    private readonly Dictionary<Projection, Terms> _sites = [];
    private Tensor? _low;

    private SharedProduct(Tensor x) => _x = x;

    /// <summary>What one site has of the product. Terms may be dear to make, or random: they are made once.</summary>
    internal sealed class Terms(SharedProduct shared, WeightPatch patch, LowRankTerm[] own, long at)
    {
        public WeightPatch Patch => patch;

        public LowRankTerm[] Own => own;

        /// <summary>The product of a term's first factor, <c>[rows, rank]</c>.</summary>
        public Tensor Low(int term) => shared.Low().narrow(1, at + own.Take(term).Sum(t => t.A.shape[0]), own[term].A.shape[0]);

        /// <summary>The site's one term with its columns of the product; without them where a graph is kept, which each site has of its own.</summary>
        public FrozenLinear.Beside Beside() => is_grad_enabled() ? new(own[0]) : new(own[0], shared.Low(), at);
    }

    /// <summary>The product of the sites' first factors, or null where fewer than two sites can share it.</summary>
    /// <param name="x">The input of all sites <c>[..., in]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <param name="sites">Projections of the same input width.</param>
    public static SharedProduct? Of(Tensor x, Pass pass, ReadOnlySpan<Projection> sites)
    {
        if (x.dtype != ScalarType.Float32) return null;
        var shared = new SharedProduct(x);
        long at = 0;
        foreach (Projection site in sites)
        {
            if (pass.Patches[site] is not WeightPatch { Form: PatchForm.LowRank } patch) continue;
            LowRankTerm[] terms = [.. patch.Terms(pass)];
            if (terms.Length == 0 || !terms.All(t => (t.Dropout <= 0 || !pass.Training) && t.A.dtype == ScalarType.Float32)) continue;
            shared._sites.Add(site, new Terms(shared, patch, terms, at));
            at += terms.Sum(t => t.A.shape[0]);
        }
        return shared._sites.Count > 1 ? shared : null;
    }

    // All ranks of all sites, [rows, ranks]; made when the first site asks.
    private Tensor Low()
    {
        if (_low is not null) return _low;
        using var scope = NewDisposeScope();
        Tensor factors = cat([.. _sites.Values.SelectMany(s => s.Own.Select(t => t.A))]);
        Tensor low = !is_grad_enabled() && NativeKernels.On && NativeKernels.Fits(_x) && NativeKernels.Fits(factors)
            ? FrozenLinear.FirstFactors(_x, factors)
            : nn.functional.linear(_x.reshape(-1, _x.shape[^1]), factors);
        return _low = low.MoveToOuterDisposeScope();
    }

    /// <summary>A site's terms where they were shared for this input; else null.</summary>
    public Terms? For(Projection site, WeightPatch patch, Tensor x) =>
        ReferenceEquals(x, _x) && _sites.TryGetValue(site, out Terms? found) && ReferenceEquals(found.Patch, patch) ? found : null;
}
