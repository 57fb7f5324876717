// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>Adds up binary predictions, one row at a time; a score above 0 predicts the positive class.</summary>
internal sealed class BinaryCounter
{
    private double _truePositive;
    private double _trueNegative;
    private double _falsePositive;
    private double _falseNegative;
    private double _positivesWithProbability;
    private double _negativesWithProbability;
    private double _logLoss;

    public double[][] Confusion => [[_truePositive, _falseNegative], [_falsePositive, _trueNegative]];

    public double Accuracy => (_trueNegative + _truePositive) / Rows;

    public double PositivePrecision => Share(_truePositive, _falsePositive);

    public double PositiveRecall => Share(_truePositive, _falseNegative);

    public double NegativePrecision => Share(_trueNegative, _falseNegative);

    public double NegativeRecall => Share(_trueNegative, _falsePositive);

    public double F1Score
    {
        get
        {
            double sum = PositivePrecision + PositiveRecall;
            return sum == 0 ? 0 : 2 * PositivePrecision * PositiveRecall / sum;
        }
    }

    /// <summary>The entropy of the labels in bits.</summary>
    public double Entropy => EntropyOf((_truePositive + _falseNegative) / Rows);

    public double LogLoss
    {
        get
        {
            double rows = RowsWithProbability;
            return double.IsNaN(_logLoss) ? double.NaN : rows > 0 ? _logLoss / rows : 0;
        }
    }

    public double LogLossReduction
    {
        get
        {
            double rows = RowsWithProbability;
            if (rows == 0)
                return 0;
            double prior = EntropyOf(_positivesWithProbability / rows);
            return (prior - (_logLoss / rows)) / prior;
        }
    }

    private double Rows => _truePositive + _trueNegative + _falseNegative + _falsePositive;

    private double RowsWithProbability => _positivesWithProbability + _negativesWithProbability;

    /// <summary>Counts a row; a probability that is NaN makes the log-loss NaN.</summary>
    public void Add(bool label, float score, float probability)
    {
        bool predicted = score > 0;
        if (label)
            (predicted ? ref _truePositive : ref _falseNegative)++;
        else
            (predicted ? ref _falsePositive : ref _trueNegative)++;

        if (float.IsNaN(probability))
        {
            _logLoss = double.NaN;
            return;
        }

        (label ? ref _positivesWithProbability : ref _negativesWithProbability)++;
        _logLoss += -Math.Log(label ? probability : 1.0 - probability, 2);
    }

    private static double Share(double hits, double misses) => hits + misses > 0 ? hits / (hits + misses) : 0;

    private static double EntropyOf(double p)
    {
        if (!(p >= 0 && p <= 1))
            return double.NaN;
        return p is 0 or 1 ? 0 : (-p * Math.Log(p, 2)) - ((1 - p) * Math.Log(1 - p, 2));
    }
}
