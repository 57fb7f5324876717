// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>Adds up a regression's errors, one row at a time.</summary>
internal sealed class RegressionCounter
{
    private double _rows;
    private double _absolute;
    private double _squared;
    private double _loss;
    private double _labels;
    private double _squaredLabels;

    public double MeanAbsoluteError => Mean(_absolute);

    public double MeanSquaredError => Mean(_squared);

    public double RootMeanSquaredError => Math.Sqrt(MeanSquaredError);

    public double Loss => Mean(_loss);

    public double RSquared
    {
        get
        {
            if (_rows == 0)
                return 0;
            double spread = _squaredLabels - (_labels * _labels / _rows);
            return spread == 0 ? double.NaN : 1 - (_squared / spread);
        }
    }

    public void Add(float label, float score)
    {
        _rows++;

        // The squared label and the loss are single-precision products, as in the real package: the figures show it.
        _labels += label;
        _squaredLabels += label * label;
        float difference = score - label;
        _loss += difference * difference;

        double error = Math.Abs((double)label - score);
        _absolute += error;
        _squared += error * error;
    }

    private double Mean(double sum) => _rows > 0 ? sum / _rows : 0;
}
