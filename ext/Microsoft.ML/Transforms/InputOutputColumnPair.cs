// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>The name of a column to make, and of the one that it is made of (the same name by default).</summary>
public sealed class InputOutputColumnPair
{
    public InputOutputColumnPair(string outputColumnName, string inputColumnName = null)
    {
        Contracts.CheckNonEmpty(outputColumnName, nameof(outputColumnName));
        OutputColumnName = outputColumnName;
        InputColumnName = inputColumnName ?? outputColumnName;
    }

    public string InputColumnName { get; }

    public string OutputColumnName { get; }

    internal static (string outputColumnName, string inputColumnName)[] ToPairs(InputOutputColumnPair[] pairs)
        => pairs.Select(pair => (pair.OutputColumnName, pair.InputColumnName)).ToArray();
}
