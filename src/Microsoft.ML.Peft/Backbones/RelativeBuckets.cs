// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Backbones;

/// <summary>
/// Buckets of relative positions (Raffel et al. 2020, arXiv 1910.10683): one each for small distances, then logarithmic ones
/// up to a largest distance. Both directions have half of the buckets each, or keys behind the query have all of them.
/// </summary>
/// <param name="Buckets">Number of buckets.</param>
/// <param name="MaxDistance">Where the last bucket begins at the latest.</param>
/// <param name="Both">True where a query sees keys on either side.</param>
internal sealed record RelativeBuckets(int Buckets, int MaxDistance, bool Both)
{
    /// <summary>Bucket of each pair, <c>[queries · keys]</c>.</summary>
    /// <param name="first">Distance of the first key from the first query.</param>
    /// <param name="queries">Number of queries.</param>
    /// <param name="keys">Number of keys.</param>
    public long[] Table(long first, long queries, long keys)
    {
        var table = new long[queries * keys];
        for (long query = 0; query < queries; query++)
            for (long key = 0; key < keys; key++)
                table[query * keys + key] = Of(first + key - query);
        return table;
    }

    // In float32 throughout, as the reference: on a bucket's edge the last bit decides.
    private long Of(long delta)
    {
        int share = Both ? Buckets / 2 : Buckets, exact = share / 2;
        long distance = Both ? Math.Abs(delta) : Math.Max(-delta, 0);
        long bucket = distance < exact ? distance : Math.Min(share - 1,
            exact + (long)(MathF.Log(distance / (float)exact) / (float)Math.Log(MaxDistance / (double)exact) * (share - exact)));
        return bucket + (Both && delta > 0 ? share : 0);
    }
}
