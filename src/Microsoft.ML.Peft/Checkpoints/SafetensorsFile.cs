// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// A safetensors file: an 8-byte length, a JSON header, the tensors' bytes. A file is mapped into memory, so opening
/// costs its header only and its pages are shared between processes. Reading is thread-safe; spans that were handed out
/// and reads under way end with <see cref="Dispose"/>. A mapped file must not be shortened while it is open.
/// </summary>
/// <remarks>Format: https://huggingface.co/docs/safetensors.</remarks>
public sealed partial class SafetensorsFile : IDisposable
{
    private readonly ByteStore _store;
    private readonly SafetensorsHeader _header;
    private readonly long _dataStart;
    private readonly long _unstored;

    private SafetensorsFile(string description, ByteStore store, SafetensorsHeader header, long dataStart, long unstored)
    {
        Description = description;
        _store = store;
        _header = header;
        _dataStart = dataStart;
        _unstored = unstored;
        Names = header.Tensors.Select(t => t.Name).ToArray();
    }

    /// <summary>The file's path, or the words given for it.</summary>
    public string Description { get; }

    /// <summary>Names of all tensors, in the order of their bytes.</summary>
    public IReadOnlyList<string> Names { get; }

    /// <summary>The texts of the header's <c>__metadata__</c>, in the file's order; empty where there are none.</summary>
    public IReadOnlyDictionary<string, string> Metadata => _header.Metadata;

    /// <summary>Length of the whole file in bytes.</summary>
    public long Length => _dataStart + _header.DataLength + _unstored;

    /// <summary>Whether the header has a metadata object at all; a copy that equals the file must know.</summary>
    internal bool HasMetadata => _header.HasMetadata;

    /// <summary>Maps a file and checks its header.</summary>
    /// <param name="path">Path of a safetensors file.</param>
    /// <exception cref="CheckpointFormatException">The file is damaged, cut off or no safetensors file.</exception>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    public static SafetensorsFile Open(string path)
    {
        ArgumentException.ThrowIfNullOrEmpty(path);
        var file = new FileInfo(path);
        if (!file.Exists)
        {
            throw new FileNotFoundException(Directory.Exists(path)
                ? $"'{path}' is a folder; a safetensors file is expected." : $"There is no file '{path}'.", path);
        }

        long length = LinkedFile.Length(file);
        if (length < SafetensorsHeader.PrefixLength)
            throw TooShort(path, length);
        return Open(ByteStore.Map(path, length), path);
    }

    /// <summary>Reads a file that lies in memory; nothing is copied, and the memory must not change while it is open.</summary>
    /// <param name="bytes">The whole file.</param>
    /// <param name="description">What messages call it.</param>
    /// <exception cref="CheckpointFormatException">The bytes are damaged, cut off or no safetensors file.</exception>
    public static SafetensorsFile Open(ReadOnlyMemory<byte> bytes, string description)
    {
        if (bytes.Length < SafetensorsHeader.PrefixLength)
            throw TooShort(description, bytes.Length);
        return Open(ByteStore.Pin(bytes), description);
    }

    /// <summary>
    /// Reads a stream (an entry of a zip) to its end into memory outside the managed heap; the stream stays open.
    /// No more memory is used than the stream has bytes, whatever its header says.
    /// </summary>
    /// <param name="stream">A readable stream at the file's beginning.</param>
    /// <param name="description">What messages call it.</param>
    /// <exception cref="CheckpointFormatException">The bytes are damaged, cut off or no safetensors file.</exception>
    public static SafetensorsFile Open(Stream stream, string description)
    {
        ArgumentNullException.ThrowIfNull(stream);
        long? length = stream.CanSeek ? stream.Length - stream.Position : null;
        Span<byte> prefix = stackalloc byte[SafetensorsHeader.PrefixLength];
        int got = stream.ReadAtLeast(prefix, prefix.Length, throwOnEndOfStream: false);
        if (got < prefix.Length)
            throw TooShort(description, got);
        int headerLength = SafetensorsHeader.CheckLength(
            description, BinaryPrimitives.ReadUInt64LittleEndian(prefix), length);

        ByteStore.Native store = ByteStore.Allocate(headerLength);
        try
        {
            long filled = store.Fill(stream, 0);
            if (filled < headerLength)
                throw CutOff(description, SafetensorsHeader.PrefixLength + (long)headerLength, prefix.Length + filled);
            SafetensorsHeader header = SafetensorsHeader.Parse(description, store.Slice(0, headerLength));
            long whole = headerLength + header.DataLength;
            if (length is long known)
                CheckWhole(description, SafetensorsHeader.PrefixLength + whole, known);
            store = Grow(store, whole, description);
            filled = store.Fill(stream, headerLength);
            if (filled < whole)
                throw CutOff(description, SafetensorsHeader.PrefixLength + whole, prefix.Length + filled);
            if (stream.ReadByte() >= 0)
                throw new CheckpointFormatException($"{description} goes on behind its last tensor (byte {whole}).");
            return new SafetensorsFile(description, store, header, headerLength, SafetensorsHeader.PrefixLength);
        }
        catch
        {
            store.Dispose();
            throw;
        }
    }

    /// <summary>Opens a file of a set in the way that copies least.</summary>
    /// <param name="files">The set.</param>
    /// <param name="name">The file's name in it.</param>
    internal static SafetensorsFile Open(IFileSet files, string name)
    {
        if (files is FolderFileSet folder && folder.PathOf(name) is string path)
            return Open(path);
        string description = $"{files.Description}/{name}";
        if (files is MemoryFileSet memory)
            return Open(memory.Bytes(name), description);
        Stream stream = files.Open(name);
        if (stream is UnmanagedMemoryStream fixedStream && fixedStream.Length >= SafetensorsHeader.PrefixLength)
            return Open(ByteStore.Borrow(fixedStream), description);
        using (stream)
            return Open(stream, description);
    }

    /// <summary>Whether there is a tensor of that name.</summary>
    /// <param name="name">The tensor's name in the file.</param>
    public bool Contains(string name) => _header.ByName.ContainsKey(name);

    /// <summary>Type, shape and place of a tensor.</summary>
    /// <param name="name">The tensor's name in the file.</param>
    /// <exception cref="CheckpointFormatException">There is no such tensor; the message lists near names.</exception>
    public SafetensorsInfo Info(string name)
    {
        ArgumentNullException.ThrowIfNull(name);
        return _header.ByName.TryGetValue(name, out SafetensorsInfo? info) ? info : throw new CheckpointFormatException(
            $"{Description} has no tensor {NearNames.Quote(name)}.{NearNames.Hint(name, Names)}");
    }

    /// <summary>A tensor's bytes as they lie in the file, little-endian, row by row; valid until the file is disposed.</summary>
    /// <param name="name">The tensor's name in the file.</param>
    /// <exception cref="CheckpointFormatException">There is no such tensor.</exception>
    /// <exception cref="NotSupportedException">The tensor has more than 2 GB: read it in parts.</exception>
    public ReadOnlySpan<byte> Bytes(string name)
    {
        SafetensorsInfo info = Info(name);
        if (info.Length > int.MaxValue)
        {
            throw new NotSupportedException($"{Description}: {NearNames.Quote(name)} has {info.Length} bytes, more than "
                + "one span can hold. Read it in parts, by Bytes(name, start, count).");
        }

        return _store.Slice(_dataStart + info.Start, (int)info.Length);
    }

    /// <summary>A part of a tensor's bytes; valid until the file is disposed.</summary>
    /// <param name="name">The tensor's name in the file.</param>
    /// <param name="start">First byte, counted from the tensor's beginning.</param>
    /// <param name="count">Number of bytes.</param>
    /// <exception cref="CheckpointFormatException">There is no such tensor.</exception>
    /// <exception cref="ArgumentOutOfRangeException">The part does not lie within the tensor.</exception>
    public ReadOnlySpan<byte> Bytes(string name, long start, int count) => Bytes(Info(name), start, count);

    /// <summary>Frees the map or memory. Spans that were handed out must not be used afterwards.</summary>
    public void Dispose() => _store.Dispose();

    internal ReadOnlySpan<byte> Bytes(SafetensorsInfo info, long start, int count)
    {
        if (start < 0 || count < 0 || start > info.Length - count)
        {
            throw new ArgumentOutOfRangeException(
                nameof(start), $"Bytes {start} to {start + count} do not lie within the {info.Length} bytes of '{info.Name}'.");
        }

        return _store.Slice(_dataStart + info.Start + start, count);
    }

    internal static SafetensorsFile Open(ByteStore store, string description)
    {
        try
        {
            int headerLength = SafetensorsHeader.CheckLength(
                description, BinaryPrimitives.ReadUInt64LittleEndian(store.Slice(0, 8)), store.Length);
            SafetensorsHeader header = SafetensorsHeader.Parse(
                description, store.Slice(SafetensorsHeader.PrefixLength, headerLength));
            long dataStart = SafetensorsHeader.PrefixLength + headerLength;
            CheckWhole(description, dataStart + header.DataLength, store.Length);
            return new SafetensorsFile(description, store, header, dataStart, 0);
        }
        catch
        {
            store.Dispose();
            throw;
        }
    }

    private static ByteStore.Native Grow(ByteStore.Native store, long length, string description)
    {
        try
        {
            return store.Grow(length);
        }
        catch (OutOfMemoryException e)
        {
            throw new CheckpointFormatException(
                $"{description}: its header speaks of {length} bytes, which this process cannot hold in memory.", e);
        }
    }

    private static void CheckWhole(string file, long expected, long found)
    {
        if (found < expected)
            throw CutOff(file, expected, found);
        if (found > expected)
        {
            throw new CheckpointFormatException(
                $"{file} has {found} bytes, but its last tensor ends at byte {expected}: the file goes on behind it.");
        }
    }

    private static CheckpointFormatException CutOff(string file, long expected, long found) =>
        new($"{file} is cut off: by its header it should have {expected} bytes, but it has {found}.");

    private static CheckpointFormatException TooShort(string file, long length) =>
        new($"{file} is not a safetensors file: it has {length} bytes, fewer than the eight of the header's length.");
}
