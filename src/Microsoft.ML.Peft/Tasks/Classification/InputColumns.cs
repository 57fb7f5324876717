// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What messages about input columns share.</summary>
internal static class InputColumns
{
    /// <summary>A column that the data lacks.</summary>
    /// <param name="name">Name asked for.</param>
    /// <param name="role">Role of the column.</param>
    /// <param name="there">Names that the data has.</param>
    public static ArgumentOutOfRangeException Missing(string name, string role, IEnumerable<string> there) =>
        new("inputSchema", $"The {role} column '{name}' was not found.{Checkpoints.NearNames.Hint(name, there)}");
}
