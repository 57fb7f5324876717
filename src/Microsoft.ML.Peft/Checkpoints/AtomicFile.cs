// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Files that are there whole or not at all: written under a temporary name beside, flushed, renamed.</summary>
internal static class AtomicFile
{
    /// <summary>Writes a file; an old one of that name stays until the new one is complete.</summary>
    /// <param name="path">The file's final path; its folder must exist.</param>
    /// <param name="write">Writes the content.</param>
    public static void Write(string path, Action<Stream> write)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        string full = Path.GetFullPath(path);
        string temporary = $"{full}.{Path.GetRandomFileName()}.tmp";
        try
        {
            using (var stream = new FileStream(temporary, FileMode.CreateNew, FileAccess.Write, FileShare.None, 1 << 16))
            {
                write(stream);
                stream.Flush(flushToDisk: true);
            }

            File.Move(temporary, full, overwrite: true);
        }
        catch
        {
            File.Delete(temporary);
            throw;
        }
    }
}
