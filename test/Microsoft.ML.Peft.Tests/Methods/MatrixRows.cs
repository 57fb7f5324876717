// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Reflection;
using Microsoft.ML.Peft.Adaptation;

namespace Microsoft.ML.Peft.Tests.Methods;

/// <summary>
/// The rows of the method matrix: a name and the options it stands for. Each family keeps its rows in a part of this class,
/// in a field of its own.
/// </summary>
internal static partial class MatrixRows
{
    /// <summary>All rows of all families.</summary>
    public static IReadOnlyDictionary<string, Func<PeftMethod>> All => typeof(MatrixRows)
        .GetFields(BindingFlags.NonPublic | BindingFlags.Static)
        .Where(rows => rows.FieldType == typeof(Dictionary<string, Func<PeftMethod>>))
        .SelectMany(rows => (Dictionary<string, Func<PeftMethod>>)rows.GetValue(null)!)
        .ToDictionary(row => row.Key, row => row.Value);
}
