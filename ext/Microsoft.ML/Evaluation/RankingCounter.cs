// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Adds up the (normalized) discounted cumulative gains of groups.</summary>
internal sealed class RankingCounter
{
    private readonly int _levels;
    private readonly double[] _gains;
    private readonly double[] _ndcg;
    private readonly double[] _dcg;
    private readonly List<(short Label, float Score)> _group = [];
    private double _groups;

    public RankingCounter(RankingEvaluatorOptions options)
    {
        if (options.DcgTruncationLevel <= 0)
            throw Contracts.ExceptUserArg(nameof(options.DcgTruncationLevel), "DCG Truncation Level must be greater than 0");
        if (options.LabelGains == null)
            throw Contracts.ExceptUserArg(nameof(options.LabelGains), "Label gains cannot be null");
        _levels = options.DcgTruncationLevel;
        _gains = options.LabelGains.Split(',').Select(ParseGain).ToArray();
        _ndcg = new double[_levels];
        _dcg = new double[_levels];
    }

    public void Add(float label, float score) => _group.Add(((short)label, score));

    /// <summary>Closes the group of the rows added so far; does nothing where there are none.</summary>
    public void EndGroup()
    {
        if (_group.Count == 0)
            return;
        double[] best = Gains(_group.OrderByDescending(x => x.Label));

        // Among equal scores the less relevant row comes first: a model earns nothing from ties.
        double[] own = Gains(_group.OrderByDescending(x => x.Score).ThenBy(x => x.Label));
        for (int t = 0; t < _levels; t++)
        {
            _ndcg[t] += best[t] > 0 ? own[t] / best[t] : 0;
            _dcg[t] += own[t];
        }

        _groups++;
        _group.Clear();
    }

    public double[] MeanNdcg() => _ndcg.Select(x => x / _groups).ToArray();

    public double[] MeanDcg() => _dcg.Select(x => x / _groups).ToArray();

    private static double ParseGain(string text)
        => double.TryParse(text, NumberStyles.Float | NumberStyles.AllowThousands, CultureInfo.CurrentCulture, out double gain)
            ? gain
            : throw Contracts.ExceptUserArg(nameof(RankingEvaluatorOptions.LabelGains), "Label Gains must be of floating or integral type");

    private double[] Gains(IEnumerable<(short Label, float Score)> rows)
    {
        var sums = new double[_levels];
        double sum = 0;
        int t = 0;
        foreach (var (label, _) in rows.Take(_levels))
        {
            sum += _gains[label] * (1 / Math.Log(2 + t));
            sums[t++] = sum;
        }

        sums.AsSpan(t).Fill(sum);
        return sums;
    }
}
