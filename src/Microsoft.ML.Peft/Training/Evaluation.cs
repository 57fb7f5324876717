// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Training;

/// <summary>Metrics of an evaluation.</summary>
/// <param name="Rows">Number of rows.</param>
/// <param name="Metrics">
/// Values by name: <c>loss</c> always; for classes <c>accuracy</c>, <c>macro_f1</c>, <c>mcc</c>, <c>log_loss</c>; for
/// numbers <c>mse</c>, <c>mae</c>, <c>pearson</c>.
/// </param>
public sealed record Evaluation(long Rows, IReadOnlyDictionary<string, double> Metrics)
{
    /// <summary>The training objective's mean over the rows.</summary>
    public double Loss => Metrics["loss"];

    /// <summary>True where a larger value of a metric is the better one.</summary>
    /// <param name="metric">Name of a metric.</param>
    public static bool HigherIsBetter(string metric) => metric is not ("loss" or "log_loss" or "mse" or "mae");

    /// <inheritdoc/>
    public override string ToString() =>
        string.Join(", ", Metrics.Select(m => FormattableString.Invariant($"{m.Key} {m.Value:0.0000}")));
}

/// <summary>Sums from which metrics are computed at the end, so that they add up over batches and processes.</summary>
public abstract class MetricSums
{
    private double _loss, _count;

    /// <summary>Number of rows so far.</summary>
    public long Rows { get; private set; }

    /// <summary>Adds a batch.</summary>
    /// <param name="scores">Scores of all rows, row by row.</param>
    /// <param name="rows">The rows.</param>
    /// <param name="lossSum">The objective's sum over the rows.</param>
    /// <param name="lossCount">The objective's count of the rows.</param>
    public void Add(ReadOnlySpan<float> scores, IReadOnlyList<Example> rows, double lossSum, double lossCount)
    {
        _loss += lossSum;
        _count += lossCount;
        Rows += rows.Count;
        int width = scores.Length / Math.Max(1, rows.Count);
        for (int r = 0; r < rows.Count; r++) AddRow(scores.Slice(r * width, width), rows[r]);
    }

    /// <summary>Adds a row.</summary>
    /// <param name="scores">Its scores.</param>
    /// <param name="row">The row.</param>
    protected abstract void AddRow(ReadOnlySpan<float> scores, Example row);

    /// <summary>Adds the metrics but the loss.</summary>
    /// <param name="metrics">Values by name.</param>
    protected abstract void Fill(Dictionary<string, double> metrics);

    /// <summary>The metrics of all rows so far.</summary>
    public Evaluation Result()
    {
        var metrics = new Dictionary<string, double> { ["loss"] = _count == 0 ? 0 : _loss / _count };
        Fill(metrics);
        return new Evaluation(Rows, metrics);
    }
}

/// <summary>Metrics of classes: from the table of true against predicted classes and the summed log-likelihood.</summary>
internal sealed class ClassSums(int classes, bool oneLogit = false) : MetricSums
{
    private readonly double[,] _table = new double[classes, classes];
    private double _negativeLog, _weight;

    public static IReadOnlyList<string> Names { get; } = ["loss", "accuracy", "macro_f1", "mcc", "log_loss"];

    protected override void AddRow(ReadOnlySpan<float> scores, Example row)
    {
        int wanted = oneLogit ? (row.Target >= 0.5f ? 1 : 0) : row.Label;
        if (wanted == Example.Ignored) return;
        double likelihood;
        int predicted = 0;
        if (oneLogit)
        {
            predicted = scores[0] > 0 ? 1 : 0;
            likelihood = -SoftPlus(wanted == 1 ? -scores[0] : scores[0]);
        }
        else
        {
            for (int k = 1; k < scores.Length; k++)
                if (scores[k] > scores[predicted]) predicted = k;
            double sum = 0;
            foreach (float score in scores) sum += Math.Exp((double)score - scores[predicted]);
            likelihood = (double)scores[wanted] - scores[predicted] - Math.Log(sum);
        }
        _table[wanted, predicted] += row.Weight;
        _negativeLog -= row.Weight * likelihood;
        _weight += row.Weight;
    }

    private static double SoftPlus(double x) => Math.Max(x, 0) + Math.Log(1 + Math.Exp(-Math.Abs(x)));

    protected override void Fill(Dictionary<string, double> metrics)
    {
        double hits = 0, f1 = 0, products = 0, squareTrue = 0, squarePredicted = 0;
        int present = 0;
        for (int k = 0; k < classes; k++)
        {
            double asTrue = 0, asPredicted = 0;
            for (int other = 0; other < classes; other++)
            {
                asTrue += _table[k, other];
                asPredicted += _table[other, k];
            }
            hits += _table[k, k];
            products += asTrue * asPredicted;
            squareTrue += asTrue * asTrue;
            squarePredicted += asPredicted * asPredicted;
            if (asTrue + asPredicted == 0) continue;
            present++;
            f1 += 2 * _table[k, k] / (asTrue + asPredicted);
        }
        double total = _weight * _weight, spread = Math.Sqrt((total - squareTrue) * (total - squarePredicted));
        metrics["accuracy"] = _weight == 0 ? 0 : hits / _weight;
        metrics["macro_f1"] = present == 0 ? 0 : f1 / present;
        metrics["mcc"] = spread == 0 ? 0 : (hits * _weight - products) / spread;
        metrics["log_loss"] = _weight == 0 ? 0 : _negativeLog / _weight;
    }
}

/// <summary>Metrics of numbers.</summary>
internal sealed class NumberSums : MetricSums
{
    private double _weight, _squares, _absolute, _x, _y, _xx, _yy, _xy;

    public static IReadOnlyList<string> Names { get; } = ["loss", "mse", "mae", "pearson"];

    protected override void AddRow(ReadOnlySpan<float> scores, Example row)
    {
        double x = scores[0], y = row.Target, w = row.Weight;
        _weight += w;
        _squares += w * (x - y) * (x - y);
        _absolute += w * Math.Abs(x - y);
        _x += w * x;
        _y += w * y;
        _xx += w * x * x;
        _yy += w * y * y;
        _xy += w * x * y;
    }

    protected override void Fill(Dictionary<string, double> metrics)
    {
        double n = Math.Max(_weight, double.Epsilon);
        double spread = Math.Sqrt(Math.Max(0, _xx - _x * _x / n) * Math.Max(0, _yy - _y * _y / n));
        metrics["mse"] = _squares / n;
        metrics["mae"] = _absolute / n;
        metrics["pearson"] = spread == 0 ? 0 : (_xy - _x * _y / n) / spread;
    }
}
