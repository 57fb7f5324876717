// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;

namespace Microsoft.ML.Data;

/// <summary>The figures of a multiclass evaluation.</summary>
public sealed class MulticlassClassificationMetrics
{
    internal MulticlassClassificationMetrics(MulticlassCounter counter, int topKPredictionCount, ConfusionMatrix confusionMatrix)
    {
        MicroAccuracy = counter.MicroAccuracy;
        MacroAccuracy = counter.MacroAccuracy;
        LogLoss = counter.LogLoss;
        LogLossReduction = counter.LogLossReduction;
        PerClassLogLoss = counter.PerClassLogLoss().ToImmutableArray();
        TopKPredictionCount = topKPredictionCount;
        TopKAccuracyForAllK = topKPredictionCount > 0 ? counter.TopKAccuracies(topKPredictionCount).ToImmutableArray() : null!;
        ConfusionMatrix = confusionMatrix;
    }

    public double LogLoss { get; }

    public double LogLossReduction { get; }

    public double MacroAccuracy { get; }

    public double MicroAccuracy { get; }

    public double TopKAccuracy => TopKAccuracyForAllK?.LastOrDefault() ?? 0;

    public int TopKPredictionCount { get; }

    /// <summary>Null unless asked for, as in the real package.</summary>
    public IReadOnlyList<double> TopKAccuracyForAllK { get; }

    public IReadOnlyList<double> PerClassLogLoss { get; }

    public ConfusionMatrix ConfusionMatrix { get; }
}
