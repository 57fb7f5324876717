// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>How ranking is evaluated.</summary>
public sealed class RankingEvaluatorOptions
{
    /// <summary>The largest truncation level for (N)DCG.</summary>
    public int DcgTruncationLevel = 10;

    /// <summary>The gain of each relevance level, from 0 up, separated by commas.</summary>
    public string LabelGains = "0,3,7,15,31";
}
