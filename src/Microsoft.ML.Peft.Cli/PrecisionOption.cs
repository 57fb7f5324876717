// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.CommandLine;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Cli;

/// <summary><c>--precision</c>, where a command trains or scores.</summary>
internal static class PrecisionOption
{
    public static Option<Precision> Make(string what) => new("--precision")
    {
        Description = $"In what numbers products with frozen weights are made {what}: {string.Join(", ", Enum.GetNames<Precision>())}.",
        DefaultValueFactory = _ => Precision.Float32,
    };
}
