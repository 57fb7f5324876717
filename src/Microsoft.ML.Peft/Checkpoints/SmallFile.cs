// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Reads whole files that are small by nature, with a limit for those that are not.</summary>
internal static class SmallFile
{
    /// <summary>Reads a file of a set; never more than the limit.</summary>
    /// <param name="files">The set.</param>
    /// <param name="name">The file's name.</param>
    /// <param name="most">Largest length allowed, in bytes.</param>
    /// <exception cref="CheckpointFormatException">The file is longer.</exception>
    public static ReadOnlyMemory<byte> Read(IFileSet files, string name, int most)
    {
        if (files is MemoryFileSet memory)
        {
            ReadOnlyMemory<byte> bytes = memory.Bytes(name);
            return bytes.Length <= most ? bytes : throw TooLong(files, name, most);
        }

        using Stream stream = files.Open(name);
        byte[] buffer = new byte[stream.CanSeek ? Math.Min(stream.Length + 1, most + 1L) : 4096];
        int filled = 0;
        while (true)
        {
            int read = stream.Read(buffer, filled, buffer.Length - filled);
            if (read == 0)
                return buffer.AsMemory(0, filled);
            filled += read;
            if (filled > most)
                throw TooLong(files, name, most);
            if (filled == buffer.Length)
                Array.Resize(ref buffer, (int)Math.Min(buffer.Length * 2L, most + 1L));
        }
    }

    /// <summary>The text behind a byte order mark, which some editors write.</summary>
    public static ReadOnlyMemory<byte> WithoutMark(ReadOnlyMemory<byte> text) =>
        text.Span.StartsWith("\uFEFF"u8) ? text[3..] : text;

    private static CheckpointFormatException TooLong(IFileSet files, string name, int most) =>
        new($"{files.Description}/{name} has more than {most} bytes; no such file is that long.");
}
