// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.InteropServices;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Files that lie in memory, such as small entries of a zip.</summary>
public sealed class MemoryFileSet : IFileSet
{
    private readonly SortedDictionary<string, ReadOnlyMemory<byte>> _files = new(StringComparer.Ordinal);

    /// <summary>Creates an empty set.</summary>
    /// <param name="description">What messages call it.</param>
    public MemoryFileSet(string description = "memory") => Description = description;

    /// <inheritdoc/>
    public string Description { get; }

    /// <inheritdoc/>
    public IReadOnlyList<string> Names => [.. _files.Keys];

    /// <summary>Adds a file or replaces it; nothing is copied.</summary>
    /// <param name="name">Its relative name.</param>
    /// <param name="bytes">Its content, which must not change afterwards.</param>
    /// <returns>This set.</returns>
    public MemoryFileSet Add(string name, ReadOnlyMemory<byte> bytes)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        _files[name] = bytes;
        return this;
    }

    /// <inheritdoc/>
    public bool Exists(string name) => _files.ContainsKey(name);

    /// <summary>The content of a file.</summary>
    /// <param name="name">Its relative name.</param>
    /// <exception cref="FileNotFoundException">There is no such file.</exception>
    public ReadOnlyMemory<byte> Bytes(string name) =>
        _files.TryGetValue(name, out ReadOnlyMemory<byte> bytes) ? bytes : throw new FileNotFoundException(
            $"There is no file '{name}' in {Description}.{NearNames.Hint(name, _files.Keys)}", name);

    /// <inheritdoc/>
    public Stream Open(string name)
    {
        ReadOnlyMemory<byte> bytes = Bytes(name);
        return MemoryMarshal.TryGetArray(bytes, out ArraySegment<byte> array)
            ? new MemoryStream(array.Array!, array.Offset, array.Count, writable: false)
            : new MemoryStream(bytes.ToArray(), writable: false);
    }
}
