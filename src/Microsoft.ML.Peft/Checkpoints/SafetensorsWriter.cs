// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Buffers.Binary;
using System.Collections.Immutable;
using System.Globalization;
using System.Text;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// Writes safetensors files that equal those of the format's own library byte for byte: tensors by falling element type
/// and rising name, compact JSON with <c>__metadata__</c> first, padded with blanks to eight bytes. The order of
/// adding does not matter. What was added is read when the file is written: keep it alive until then.
/// </summary>
public sealed partial class SafetensorsWriter
{
    private readonly Dictionary<string, Entry> _entries = new(StringComparer.Ordinal);
    private readonly OrderedDictionary<string, string> _metadata = new(StringComparer.Ordinal);

    /// <summary>
    /// Texts for the header, written in the order of adding. Empty: no metadata object. Hugging Face's files have
    /// <c>format</c> = <c>pt</c>, and its readers ask for it.
    /// </summary>
    public IDictionary<string, string> Metadata => _metadata;

    /// <summary>Number of tensors that were added.</summary>
    public int Count => _entries.Count;

    /// <summary>Adds a tensor given by its bytes.</summary>
    /// <param name="name">The tensor's name; not empty, not yet there.</param>
    /// <param name="dtype">Element type.</param>
    /// <param name="shape">Sizes of all dimensions; empty for a single number.</param>
    /// <param name="bytes">The elements, little-endian, row by row.</param>
    /// <exception cref="ArgumentException">The name is there already, or the length does not fit the shape.</exception>
    public void Add(string name, SafetensorsDtype dtype, ReadOnlySpan<long> shape, ReadOnlyMemory<byte> bytes) =>
        Add(name, dtype, shape.ToImmutableArray(), bytes.Length, stream => stream.Write(bytes.Span));

    /// <summary>Adds a tensor of an open file, bytes unchanged; the file must stay open until the writing.</summary>
    /// <param name="name">The name to write it under; not empty, not yet there.</param>
    /// <param name="file">The file it is in.</param>
    /// <param name="source">Its name there; <paramref name="name"/> when null.</param>
    /// <exception cref="ArgumentException">The name is there already.</exception>
    public void Add(string name, SafetensorsFile file, string? source = null)
    {
        ArgumentNullException.ThrowIfNull(file);
        SafetensorsInfo info = file.Info(source ?? name);
        Add(name, info.Dtype, info.Shape, info.Length, stream => CopyTo(file, info, stream));
    }

    /// <summary>Writes the file under a temporary name beside its own, flushes it to disk and renames it.</summary>
    /// <param name="path">The file's path; its folder must exist.</param>
    public void Save(string path) => AtomicFile.Write(path, Save);

    /// <summary>Writes the file into a stream (an entry of a zip), which stays open.</summary>
    /// <param name="stream">A writable stream.</param>
    public void Save(Stream stream)
    {
        ArgumentNullException.ThrowIfNull(stream);
        Entry[] entries = [.. _entries.Values];
        Array.Sort(entries, static (a, b) => a.Dtype != b.Dtype ? b.Dtype.CompareTo(a.Dtype)
            : a.NameBytes.AsSpan().SequenceCompareTo(b.NameBytes));
        byte[] header = Encoding.UTF8.GetBytes(Header(entries));
        int padded = (header.Length + 7) / 8 * 8;
        if (padded > SafetensorsHeader.MaxLength)
        {
            throw new InvalidOperationException($"The header of {entries.Length} tensors would have {padded} bytes; the "
                + $"format allows {SafetensorsHeader.MaxLength}.");
        }

        Span<byte> prefix = stackalloc byte[SafetensorsHeader.PrefixLength];
        BinaryPrimitives.WriteInt64LittleEndian(prefix, padded);
        stream.Write(prefix);
        stream.Write(header);
        stream.Write("       "u8[..(padded - header.Length)]);
        foreach (Entry entry in entries)
            entry.Write(stream);
    }

    private void Add(string name, SafetensorsDtype dtype, ImmutableArray<long> shape, long length, Action<Stream> write)
    {
        ArgumentException.ThrowIfNullOrEmpty(name);
        if (name == "__metadata__")
            throw new ArgumentException("'__metadata__' is the name of the header's texts, not of a tensor.", nameof(name));
        UInt128 bits = (UInt128)dtype.Bits();
        foreach (long size in shape)
            bits = size < 0 || bits > long.MaxValue ? UInt128.MaxValue : bits * (UInt128)size;
        if (bits != (UInt128)length * 8)
        {
            throw new ArgumentException($"{length} bytes do not fit the shape {SafetensorsInfo.ShapeText(shape.AsSpan())} "
                + $"of {dtype} for '{name}'.", nameof(shape));
        }

        if (!_entries.TryAdd(name, new Entry(name, Encoding.UTF8.GetBytes(name), dtype, shape, length, write)))
            throw new ArgumentException($"A tensor '{name}' was added already.", nameof(name));
    }

    private string Header(Entry[] entries)
    {
        var text = new StringBuilder("{");
        if (_metadata.Count > 0)
        {
            text.Append("\"__metadata__\":{");
            foreach ((string key, string value) in _metadata)
                AppendString(AppendString(text, key).Append(':'), value).Append(',');
            text.Length--;
            text.Append("},");
        }

        long start = 0;
        foreach (Entry entry in entries)
        {
            AppendString(text, entry.Name).Append(":{\"dtype\":\"").Append(entry.Dtype).Append("\",\"shape\":[")
                .AppendJoin(',', entry.Shape).Append("],\"data_offsets\":[").Append(start).Append(',')
                .Append(start + entry.Length).Append("]},");
            start += entry.Length;
        }

        if (text.Length > 1)
            text.Length--;
        return text.Append('}').ToString();
    }

    // Only what JSON demands is escaped, as the format's library does; everything else stays UTF-8.
    private static StringBuilder AppendString(StringBuilder text, string value)
    {
        text.Append('"');
        foreach (char c in value)
        {
            _ = c switch
            {
                '"' => text.Append("\\\""),
                '\\' => text.Append("\\\\"),
                '\b' => text.Append("\\b"),
                '\f' => text.Append("\\f"),
                '\n' => text.Append("\\n"),
                '\r' => text.Append("\\r"),
                '\t' => text.Append("\\t"),
                < ' ' => text.Append(CultureInfo.InvariantCulture, $"\\u{(int)c:x4}"),
                _ => text.Append(c),
            };
        }

        return text.Append('"');
    }

    private static void CopyTo(SafetensorsFile file, SafetensorsInfo info, Stream stream)
    {
        const int part = 1 << 24;
        for (long at = 0; at < info.Length; at += part)
            stream.Write(file.Bytes(info, at, (int)Math.Min(part, info.Length - at)));
    }

    private sealed record Entry(
        string Name, byte[] NameBytes, SafetensorsDtype Dtype, ImmutableArray<long> Shape, long Length, Action<Stream> Write);
}
