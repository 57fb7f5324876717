// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Tasks;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>--precision</c>, where a command trains or scores.</summary>
internal static class PrecisionOption
{
    public static Option<Precision> Make(string what) => new("--precision")
    {
        Description = $"In what numbers products with frozen weights are made {what}: {string.Join(", ", Enum.GetNames<Precision>())}.",
        DefaultValueFactory = _ => Precision.Float32,
    };

    /// <summary>Says on standard error what Auto chose.</summary>
    public static void Tell(ClassificationTransformer model)
    {
        if (model.ScoringPrecision != Precision.Auto) return;
        Console.Error.WriteLine(model.ScoringPrecisionChoice?.ToString() ?? "Auto scored in Float32: there were too few rows to choose by");
    }
}
