// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>How often each true class (row) was predicted as each class (column).</summary>
public sealed class ConfusionMatrix
{
    private readonly bool _isBinary;
    private string? _formatted;

    internal ConfusionMatrix(double[][] counts, IReadOnlyList<string> classNames, bool isBinary)
    {
        int n = counts.Length;
        var precision = new double[n];
        var recall = new double[n];
        for (int i = 0; i < n; i++)
        {
            double predicted = 0;
            double actual = 0;
            for (int j = 0; j < n; j++)
            {
                predicted += counts[j][i];
                actual += counts[i][j];
            }

            precision[i] = predicted > 0 ? counts[i][i] / predicted : 0;
            recall[i] = actual > 0 ? counts[i][i] / actual : 0;
        }

        _isBinary = isBinary;
        ClassNames = classNames;
        NumberOfClasses = n;
        PerClassPrecision = precision.ToImmutableArray();
        PerClassRecall = recall.ToImmutableArray();
        Counts = Array.AsReadOnly(counts.Select(row => (IReadOnlyList<double>)Array.AsReadOnly(row)).ToArray());
    }

    public IReadOnlyList<double> PerClassPrecision { get; }

    public IReadOnlyList<double> PerClassRecall { get; }

    public IReadOnlyList<IReadOnlyList<double>> Counts { get; }

    public int NumberOfClasses { get; }

    internal IReadOnlyList<string> ClassNames { get; }

    public string GetFormattedConfusionTable() => _formatted ??= ConfusionTable.Format(this, _isBinary);

    public double GetCountForClassPair(int predictedClassIndicatorIndex, int actualClassIndicatorIndex)
    {
        CheckIndex(predictedClassIndicatorIndex, nameof(predictedClassIndicatorIndex));
        CheckIndex(actualClassIndicatorIndex, nameof(actualClassIndicatorIndex));
        return Counts[actualClassIndicatorIndex][predictedClassIndicatorIndex];
    }

    private void CheckIndex(int index, string name)
    {
        if (index < 0 || index >= NumberOfClasses)
            throw Contracts.ExceptParam(name, "Invalid index. Should be non-negative, less than the number of classes.");
    }
}
