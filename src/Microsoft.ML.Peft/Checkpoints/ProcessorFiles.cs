// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>The files of a checkpoint that say how images or sounds become what its network reads.</summary>
internal static class ProcessorFiles
{
    /// <summary>The file that most folders have.</summary>
    public const string Name = "preprocessor_config.json";

    /// <summary>Newer folders keep the same fields in a part of this one.</summary>
    public const string NewerName = "processor_config.json";

    /// <summary>Names of those that are there.</summary>
    /// <param name="files">Files of the checkpoint.</param>
    public static IEnumerable<string> In(IFileSet files) => new[] { Name, NewerName }.Where(files.Exists);
}
