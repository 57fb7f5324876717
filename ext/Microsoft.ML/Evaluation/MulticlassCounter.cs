// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>Adds up multiclass predictions, one row at a time.</summary>
internal sealed class MulticlassCounter
{
    // Probabilities below this count as this, so that a certain error costs much, not infinitely much.
    private const float Epsilon = 1e-15f;

    private readonly int _classes;
    private readonly double[] _rowsOfClass;
    private readonly double[] _logLossOfClass;
    private readonly double[] _rowsWithRank;
    private double _rows;
    private double _correct;
    private double _logLoss;

    public MulticlassCounter(int classes)
    {
        _classes = classes;
        _rowsOfClass = new double[classes];
        _logLossOfClass = new double[classes];
        _rowsWithRank = new double[classes + 1];
        Confusion = Enumerable.Range(0, classes).Select(_ => new double[classes]).ToArray();
    }

    public double[][] Confusion { get; }

    public double MicroAccuracy => _rows > 0 ? _correct / _rows : 0;

    public double MacroAccuracy
    {
        get
        {
            double sum = 0;
            int seen = 0;
            for (int i = 0; i < _classes; i++)
            {
                if (_rowsOfClass[i] == 0)
                    continue;
                seen++;
                sum += Confusion[i][i] / _rowsOfClass[i];
            }

            return seen > 0 ? sum / seen : 0;
        }
    }

    public double LogLoss => _rows > 0 ? _logLoss / _rows : 0;

    /// <summary>How much better than always predicting the classes' shares; infinite where only one class was seen.</summary>
    public double LogLossReduction
    {
        get
        {
            double prior = 0;
            foreach (double rows in _rowsOfClass)
            {
                if (rows != 0)
                    prior += rows * Math.Log(rows / _rows);
            }

            prior /= -_rows;
            return (prior - LogLoss) / prior;
        }
    }

    /// <summary>Counts a row whose label (from 0) may be a class that the scores do not have.</summary>
    public void Add(int label, ReadOnlySpan<float> scores)
    {
        bool known = label < _classes;
        double logLoss = -Math.Log(known ? Math.Min(1, Math.Max(Epsilon, scores[label])) : Epsilon);

        // Ties rank in order of appearance; an unknown label ranks behind every class with a positive score.
        float own = known ? scores[label] : 0;
        int rank = 0;
        int predicted = 0;
        for (int i = 0; i < scores.Length; i++)
        {
            if (scores[i] > own || (scores[i] == own && i < label))
                rank++;
            if (scores[i] > scores[predicted])
                predicted = i;
        }

        _rows++;
        _logLoss += logLoss;
        _rowsWithRank[rank]++;
        if (rank == 0)
            _correct++;

        // Where all scores are negative an unknown label ranks first, and has no place in the matrix: as in the real package.
        if (!known && rank > 0)
            return;
        _rowsOfClass[label]++;
        _logLossOfClass[label] += logLoss;
        Confusion[label][rank == 0 ? label : predicted]++;
    }

    public double[] PerClassLogLoss()
        => _logLossOfClass.Select((loss, i) => _rowsOfClass[i] > 0 ? loss / _rowsOfClass[i] : 0).ToArray();

    /// <summary>The share of rows whose label is among the first 1, 2, ... k predictions.</summary>
    public double[] TopKAccuracies(int k)
    {
        var result = new double[k];
        double sum = 0;
        for (int i = 0; i < result.Length; i++)
            result[i] = sum += _rowsWithRank[i] / _rows;
        return result;
    }
}
