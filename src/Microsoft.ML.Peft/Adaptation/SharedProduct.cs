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
    private readonly Dictionary<Projection, (WeightPatch Patch, LowRankTerm[] Terms, Tensor[] Low)> _shared = [];

    private SharedProduct(Tensor x) => _x = x;

    /// <summary>The product of the sites' first factors, or null where fewer than two sites can share it.</summary>
    /// <param name="x">The input of all sites <c>[..., in]</c>.</param>
    /// <param name="pass">The running forward pass.</param>
    /// <param name="sites">Projections of the same input width.</param>
    public static SharedProduct? Of(Tensor x, Pass pass, ReadOnlySpan<Projection> sites)
    {
        if (x.dtype != ScalarType.Float32) return null;
        List<(Projection Site, WeightPatch Patch, LowRankTerm[] Terms)>? sharing = null;
        foreach (Projection site in sites)
        {
            if (pass.Patches[site] is not WeightPatch { Form: PatchForm.LowRank } patch) continue;
            LowRankTerm[] terms = [.. patch.Terms(pass)];
            if (terms.Length > 0 && terms.All(t => (t.Dropout <= 0 || !pass.Training) && t.A.dtype == ScalarType.Float32)) (sharing ??= []).Add((site, patch, terms));
        }
        if (sharing is not { Count: > 1 }) return null;
        var shared = new SharedProduct(x);
        Tensor low = nn.functional.linear(x.reshape(-1, x.shape[^1]), cat([.. sharing.SelectMany(s => s.Terms.Select(t => t.A))]));   // [rows, all ranks]
        long at = 0;
        foreach ((Projection site, WeightPatch patch, LowRankTerm[] terms) in sharing)
            shared._shared[site] = (patch, terms, [.. terms.Select(t => low.narrow(1, (at += t.A.shape[0]) - t.A.shape[0], t.A.shape[0]))]);
        return shared;
    }

    /// <summary>
    /// The terms of a site's patch and the products of their first factors, <c>[rows, rank]</c> each, where they were shared for
    /// this input; else null. Terms may be dear to make, or random: they are made once.
    /// </summary>
    public (LowRankTerm[] Terms, Tensor[] Low)? For(Projection site, WeightPatch patch, Tensor x) =>
        ReferenceEquals(x, _x) && _shared.TryGetValue(site, out var found) && ReferenceEquals(found.Patch, patch) ? (found.Terms, found.Low) : null;
}
