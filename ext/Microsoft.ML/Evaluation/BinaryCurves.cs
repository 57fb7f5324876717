// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Collects scores by label for the areas under the ROC and precision-recall curves.</summary>
internal sealed class BinaryCurves
{
    // The precision-recall curve keeps a uniform sample of at most this many rows; the ROC curve keeps all.
    private const int SampleSize = 100_000;

    private readonly Random _random;
    private readonly List<float> _positives = [];
    private readonly List<float> _negatives = [];
    private readonly List<(float Score, bool Label)> _sample = [];
    private long _rows;

    public BinaryCurves(Random random) => _random = random;

    public void Add(bool label, float score)
    {
        (label ? _positives : _negatives).Add(score);
        _rows++;
        if (_sample.Count < SampleSize)
            _sample.Add((score, label));
        else if (_random.NextDouble() * _rows < SampleSize)
            _sample[_random.Next(SampleSize)] = (score, label);
    }

    /// <summary>The share of pairs (positive, negative) in the right order; a tie is half a pair.</summary>
    public double AreaUnderRoc()
    {
        if (_positives.Count == 0)
            throw Contracts.ExceptParam("PosSample", "AUC is not defined when there is no positive class in the data");
        if (_negatives.Count == 0)
            throw Contracts.ExceptParam("NegSample", "AUC is not defined when there is no negative class in the data");

        float[] positives = Descending(_positives);
        float[] negatives = Descending(_negatives);
        double pairs = 0;
        int above = 0;
        int notBelow = 0;
        foreach (float score in negatives)
        {
            while (above < positives.Length && positives[above] > score)
                above++;
            notBelow = Math.Max(notBelow, above);
            while (notBelow < positives.Length && positives[notBelow] == score)
                notBelow++;
            pairs += above + (0.5 * (notBelow - above));
        }

        return pairs / ((double)positives.Length * negatives.Length);
    }

    /// <summary>The lower-trapezoid estimate of Boyd, Eng and Page (ECML 2013).</summary>
    public double AreaUnderPrecisionRecall()
    {
        int positives = _sample.Count(x => x.Label);
        double area = 0;
        double recall = 0;
        double precisionBefore = 1;
        int hits = 0;
        int seen = 0;

        // OrderByDescending is stable: rows of equal score stay in the order of the data, which the figure depends on.
        foreach (var (_, label) in _sample.OrderByDescending(x => x.Score))
        {
            seen++;
            if (label)
                hits++;
            double precision = (double)hits / seen;
            if (label)
            {
                double reached = (double)hits / positives;
                area += (reached - recall) * (precisionBefore + precision) / 2;
                recall = reached;
            }

            precisionBefore = precision;
        }

        return area;
    }

    private static float[] Descending(List<float> scores)
    {
        float[] sorted = scores.ToArray();
        Array.Sort(sorted);
        Array.Reverse(sorted);
        return sorted;
    }
}
