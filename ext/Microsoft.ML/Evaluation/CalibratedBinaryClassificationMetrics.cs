// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Data;

/// <summary>The figures of a binary evaluation, with those of the probability; logarithms to base 2.</summary>
public sealed class CalibratedBinaryClassificationMetrics : BinaryClassificationMetrics
{
    internal CalibratedBinaryClassificationMetrics(BinaryCounter counter, double auc, double auprc, ConfusionMatrix confusionMatrix)
        : base(counter, auc, auprc, confusionMatrix)
    {
        LogLoss = counter.LogLoss;
        LogLossReduction = counter.LogLossReduction;
        Entropy = counter.Entropy;
    }

    public double LogLoss { get; }

    public double LogLossReduction { get; }

    public double Entropy { get; }
}
