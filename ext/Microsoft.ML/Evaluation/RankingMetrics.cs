// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;

namespace Microsoft.ML.Data;

/// <summary>The figures of a ranking's evaluation: the mean over groups at each truncation level from 1.</summary>
public sealed class RankingMetrics
{
    internal RankingMetrics(RankingCounter counter)
    {
        NormalizedDiscountedCumulativeGains = counter.MeanNdcg().ToImmutableArray();
        DiscountedCumulativeGains = counter.MeanDcg().ToImmutableArray();
    }

    public IReadOnlyList<double> NormalizedDiscountedCumulativeGains { get; }

    public IReadOnlyList<double> DiscountedCumulativeGains { get; }
}
