// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Files behind symbolic links, as caches of downloaded checkpoints keep them: the length of a link is that of its path.</summary>
internal static class LinkedFile
{
    /// <summary>Bytes of the file that a path leads to.</summary>
    public static long Length(FileInfo file) => (file.ResolveLinkTarget(returnFinalTarget: true) as FileInfo ?? file).Length;
}
