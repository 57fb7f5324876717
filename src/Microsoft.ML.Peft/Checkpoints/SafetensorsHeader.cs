// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Immutable;
using System.Runtime.InteropServices;
using System.Text.Json;
using System.Text.Unicode;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>
/// The JSON header of a safetensors file, read in one pass and checked completely: what it says can be trusted
/// afterwards, whoever wrote it.
/// </summary>
internal sealed class SafetensorsHeader
{
    /// <summary>The format's own limit of the header's length, in bytes.</summary>
    public const long MaxLength = 100_000_000;

    /// <summary>Bytes in front of the header: its length, a little-endian 64-bit number.</summary>
    public const int PrefixLength = 8;

    // No library has tensors of more dimensions; the limit keeps the memory for shapes in proportion to the file.
    private const int MaxRank = 64;

    private readonly string _file;
    private readonly List<SafetensorsInfo> _tensors = [];
    private readonly Dictionary<string, SafetensorsInfo> _byName = new(StringComparer.Ordinal);
    private readonly OrderedDictionary<string, string> _metadata = new(StringComparer.Ordinal);

    private SafetensorsHeader(string file) => _file = file;

    /// <summary>All tensors in the order of their bytes in the file.</summary>
    public IReadOnlyList<SafetensorsInfo> Tensors => _tensors;

    public IReadOnlyDictionary<string, SafetensorsInfo> ByName => _byName;

    public OrderedDictionary<string, string> Metadata => _metadata;

    /// <summary>Whether the header has a metadata object, be it empty.</summary>
    public bool HasMetadata { get; private set; }

    /// <summary>Bytes that follow the header.</summary>
    public long DataLength { get; private set; }

    /// <summary>Checks the length that stands at the beginning of a file.</summary>
    /// <param name="file">The file's name for messages.</param>
    /// <param name="stated">The first eight bytes as a number.</param>
    /// <param name="fileLength">The file's length where known.</param>
    /// <returns>The header's length in bytes.</returns>
    public static int CheckLength(string file, ulong stated, long? fileLength)
    {
        if (stated > MaxLength)
        {
            throw new CheckpointFormatException(
                $"{file} is not a safetensors file: its first eight bytes say that the header has {stated} bytes; "
                + $"at most {MaxLength} are allowed.");
        }

        if (fileLength is long length && (long)stated > length - PrefixLength)
        {
            throw new CheckpointFormatException(
                $"{file} is cut off or not a safetensors file: the header should have {stated} bytes, the whole file "
                + $"has {length}.");
        }

        return (int)stated;
    }

    /// <summary>Reads and checks a header.</summary>
    /// <param name="file">The file's name for messages.</param>
    /// <param name="json">The header's bytes.</param>
    public static SafetensorsHeader Parse(string file, ReadOnlySpan<byte> json)
    {
        var header = new SafetensorsHeader(file);
        if (json.Length == 0 || json[0] != (byte)'{')
            throw header.Error("the header does not begin with '{'");
        if (!Utf8.IsValid(json))
            throw header.Error("the header is not valid UTF-8");
        try
        {
            header.Read(json);
        }
        catch (JsonException e)
        {
            throw header.Error($"the header is not valid JSON (byte {e.BytePositionInLine})", e);
        }
        catch (InvalidOperationException e)
        {
            // A string with half a surrogate pair: valid JSON, but not text.
            throw header.Error("the header holds a string that is not valid text", e);
        }

        header.CheckLayout();
        return header;
    }

    private void Read(ReadOnlySpan<byte> json)
    {
        var reader = new Utf8JsonReader(json);
        reader.Read();
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            string name = reader.GetString()!;
            reader.Read();
            if (name == "__metadata__")
                ReadMetadata(ref reader);
            else if (!_byName.TryAdd(name, null!))
                throw Error($"the tensor {NearNames.Quote(name)} is there twice");
            else
                Add(ReadTensor(ref reader, name));
        }

        // Only blanks may follow; the reader itself refuses anything else.
        if (reader.Read())
            throw Error("something follows the header's JSON");
    }

    private void Add(SafetensorsInfo tensor)
    {
        _byName[tensor.Name] = tensor;
        _tensors.Add(tensor);
    }

    private void ReadMetadata(ref Utf8JsonReader reader)
    {
        if (HasMetadata)
            throw Error("'__metadata__' is there twice");
        if (reader.TokenType == JsonTokenType.Null)
            return;
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Error("'__metadata__' is not an object");
        HasMetadata = true;
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            string key = reader.GetString()!;
            reader.Read();
            if (reader.TokenType != JsonTokenType.String)
                throw Error($"'__metadata__' has a value that is not a string at {NearNames.Quote(key)}");
            if (!_metadata.TryAdd(key, reader.GetString()!))
                throw Error($"'__metadata__' has {NearNames.Quote(key)} twice");
        }
    }

    private SafetensorsInfo ReadTensor(ref Utf8JsonReader reader, string name)
    {
        if (reader.TokenType != JsonTokenType.StartObject)
            throw Error($"the entry of {NearNames.Quote(name)} is not an object");
        SafetensorsDtype? dtype = null;
        long[]? shape = null;
        long[]? offsets = null;
        while (reader.Read() && reader.TokenType == JsonTokenType.PropertyName)
        {
            if (reader.ValueTextEquals("dtype"u8) && dtype is null)
                dtype = ReadDtype(ref reader, name);
            else if (reader.ValueTextEquals("shape"u8) && shape is null)
                shape = ReadNumbers(ref reader, name, "shape", MaxRank);
            else if (reader.ValueTextEquals("data_offsets"u8) && offsets is null)
                offsets = ReadNumbers(ref reader, name, "data_offsets", 2);
            else
                throw Error($"{NearNames.Quote(name)} has the field {NearNames.Quote(reader.GetString()!)} twice or "
                    + "beyond dtype, shape and data_offsets");
        }

        if (dtype is null || shape is null || offsets is null)
            throw Error($"{NearNames.Quote(name)} lacks its dtype, shape or data_offsets");
        return Checked(name, dtype.Value, shape, offsets);
    }

    private SafetensorsDtype ReadDtype(ref Utf8JsonReader reader, string name)
    {
        reader.Read();
        if (reader.TokenType != JsonTokenType.String)
            throw Error($"the dtype of {NearNames.Quote(name)} is not a string");
        string text = reader.GetString()!;
        if (!SafetensorsDtypes.TryParse(text, out SafetensorsDtype dtype))
        {
            throw Error($"{NearNames.Quote(name)} has the unknown dtype {NearNames.Quote(text)}; known are "
                + string.Join(", ", SafetensorsDtypes.Names));
        }

        return dtype;
    }

    private long[] ReadNumbers(ref Utf8JsonReader reader, string name, string field, int most)
    {
        reader.Read();
        if (reader.TokenType != JsonTokenType.StartArray)
            throw Error($"the {field} of {NearNames.Quote(name)} is not an array");
        Span<long> numbers = stackalloc long[most];
        int count = 0;
        while (reader.Read() && reader.TokenType != JsonTokenType.EndArray)
        {
            if (reader.TokenType != JsonTokenType.Number || !reader.TryGetInt64(out long number) || number < 0)
                throw Error($"the {field} of {NearNames.Quote(name)} holds something else than whole numbers from 0");
            if (count == most)
                throw Error($"the {field} of {NearNames.Quote(name)} has more than {most} numbers");
            numbers[count++] = number;
        }

        return numbers[..count].ToArray();
    }

    private SafetensorsInfo Checked(string name, SafetensorsDtype dtype, long[] shape, long[] offsets)
    {
        UInt128 bits = (UInt128)dtype.Bits();
        foreach (long size in shape)
        {
            bits *= (UInt128)size;
            if (bits > (UInt128)long.MaxValue)
                throw Error($"{NearNames.Quote(name)} has the shape {SafetensorsInfo.ShapeText(shape)}: too large to be true");
        }

        if (offsets.Length != 2 || offsets[0] > offsets[1])
            throw Error($"the data_offsets of {NearNames.Quote(name)} are not a begin and an end behind it");
        long length = offsets[1] - offsets[0];
        if (bits % 8 != 0 || (long)(bits / 8) != length)
        {
            throw Error($"{NearNames.Quote(name)} should have {(double)(long)bits / 8:0.#} bytes by its shape "
                + $"{SafetensorsInfo.ShapeText(shape)} and dtype {dtype}, but has {length} by its data_offsets");
        }

        return new SafetensorsInfo(name, dtype, ImmutableCollectionsMarshal.AsImmutableArray(shape), offsets[0], length);
    }

    // Tensors follow each other from the first byte on, without hole or overlap.
    private void CheckLayout()
    {
        _tensors.Sort(static (a, b) => a.Start != b.Start ? a.Start.CompareTo(b.Start)
            : a.Length != b.Length ? a.Length.CompareTo(b.Length)
            : string.CompareOrdinal(a.Name, b.Name));
        long end = 0;
        foreach (SafetensorsInfo tensor in _tensors)
        {
            if (tensor.Start != end)
            {
                throw Error($"{NearNames.Quote(tensor.Name)} begins at byte {tensor.Start}, but the tensor before it ends "
                    + $"at {end}: tensors must follow each other without hole or overlap");
            }

            end += tensor.Length;
        }

        DataLength = end;
    }

    private CheckpointFormatException Error(string what, Exception? inner = null) =>
        new($"{_file} is not a valid safetensors file: {what}.", inner);
}
