// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>Makes the exceptions of this folder, all of one form.</summary>
internal static class Malformed
{
    public static CheckpointFormatException In(string where, string found, string expected, Exception? inner = null) =>
        new($"{where}: found {found}; expected {expected}.", inner);

    public static CheckpointFormatException Kind(JsonAt node, string kind, string allowed) =>
        In(node.Path.Length == 0 ? node.File : $"{node.File}: {node.Path}", $"the type '{kind}'", $"one of {allowed}");
}
