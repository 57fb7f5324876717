// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// The files of a checkpoint, wherever they lie: a folder, the entries of a model zip, resources of an assembly, memory.
/// Names are relative, with <c>/</c> between folders.
/// </summary>
public interface IFileSet
{
    /// <summary>Where the files lie, in words for error messages: a folder's path, a zip and the prefix inside it.</summary>
    string Description { get; }

    /// <summary>The names of all files, in ordinal order.</summary>
    IReadOnlyList<string> Names { get; }

    /// <summary>Whether there is a file of that name.</summary>
    /// <param name="name">A relative name.</param>
    bool Exists(string name);

    /// <summary>Opens a file for reading from its beginning; the caller disposes the stream.</summary>
    /// <param name="name">A relative name.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    Stream Open(string name);
}
