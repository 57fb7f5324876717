// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>The figures of a regression's evaluation.</summary>
public sealed class RegressionMetrics
{
    internal RegressionMetrics(RegressionCounter counter)
    {
        MeanAbsoluteError = counter.MeanAbsoluteError;
        MeanSquaredError = counter.MeanSquaredError;
        RootMeanSquaredError = counter.RootMeanSquaredError;
        LossFunction = counter.Loss;
        RSquared = counter.RSquared;
    }

    public double MeanAbsoluteError { get; }

    public double MeanSquaredError { get; }

    public double RootMeanSquaredError { get; }

    public double LossFunction { get; }

    public double RSquared { get; }
}
