// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Data;
using Microsoft.ML.Runtime;

namespace Microsoft.ML;

/// <summary>How types and values look in binary data files.</summary>
internal static class ValueCodec
{
    // The names of the codecs; of plain numbers the .NET type's.
    private const string TextName = "TextSpan";
    private const string KeyName = "Key2";
    private const string OldKeyName = "Key";
    private const string VectorName = "VBuffer";

    internal static bool Knows(DataViewType type) => type is KeyDataViewType || type is VectorDataViewType vector && Knows(vector.ItemType) || type.IsStandardScalar();

    /// <summary>Name, then the length of what follows: for a key its inner type and count, for a vector its item type and dimensions.</summary>
    internal static void WriteType(BinaryWriter writer, DataViewType type)
    {
        using var parameters = new MemoryStream();
        using (var inner = new BinaryWriter(parameters, Encoding.UTF8, leaveOpen: true))
            if (type is KeyDataViewType key)
            {
                WriteType(inner, ColumnTypeExtensions.PrimitiveTypeFromType(key.RawType));
                inner.Write(key.Count);
            }
            else if (type is VectorDataViewType vector)
            {
                WriteType(inner, vector.ItemType);
                inner.Write(vector.Dimensions.Length);
                foreach (int dimension in vector.Dimensions)
                    inner.Write(dimension);
            }
        writer.Write(type switch { KeyDataViewType => KeyName, VectorDataViewType => VectorName, TextDataViewType => TextName, _ => type.RawType.Name });
        writer.Write7BitEncodedInt64(parameters.Length);
        writer.Write(parameters.ToArray());
    }

    internal static DataViewType ReadType(BinaryReader reader)
    {
        string name = reader.ReadString();
        reader.Read7BitEncodedInt64();
        switch (name)
        {
            case TextName:
                return TextDataViewType.Instance;
            case KeyName:
                return new KeyDataViewType(ReadType(reader).RawType, reader.ReadUInt64());
            case OldKeyName:
                var raw = ReadType(reader).RawType;
                Contracts.CheckDecode(reader.ReadByte() != 0 && reader.ReadUInt64() == 0, "The key type is of a kind no longer supported");
                int count = reader.ReadInt32();
                return count > 0 ? new KeyDataViewType(raw, count) : new KeyDataViewType(raw, raw == typeof(byte) ? byte.MaxValue : raw == typeof(ushort) ? ushort.MaxValue : raw == typeof(uint) ? uint.MaxValue : ulong.MaxValue);
            case VectorName:
                var item = ReadType(reader) as PrimitiveDataViewType ?? throw Contracts.ExceptDecode("A vector of vectors");
                int rank = reader.ReadInt32();
                Contracts.CheckDecode(rank is >= 0 and < 1024, "Corrupt vector type");
                int[] dimensions = [.. Enumerable.Range(0, rank).Select(_ => reader.ReadInt32())];
                return rank == 0 ? new VectorDataViewType(item) : new VectorDataViewType(item, dimensions);
            case "DvBool":
                return BooleanDataViewType.Instance;
            case "DvDateTime":
                return DateTimeDataViewType.Instance;
            case "DvDateTimeZone":
                return DateTimeOffsetDataViewType.Instance;
            case "DvTimeSpan":
                return TimeSpanDataViewType.Instance;
            default:
                return Enum.GetValues<DataKind>().Select(ColumnTypeExtensions.PrimitiveTypeFromKind).Append(RowIdDataViewType.Instance)
                    .FirstOrDefault(type => type.RawType.Name == name) ?? throw Contracts.ExceptNotSupp($"A column of the type '{name}' needs the package Microsoft.ML.");
        }
    }

    /// <summary>An annotation's value as bytes.</summary>
    internal static byte[] Encode(DataViewType type, DataViewSchema.Annotations annotations, DataViewSchema.Column annotation)
    {
        using var stream = new MemoryStream();
        using (var writer = new BinaryWriter(stream, Encoding.UTF8, leaveOpen: true))
            ColumnTypeExtensions.InvokeGeneric<bool>(typeof(ValueCodec), null, type is VectorDataViewType ? nameof(EncodeVector) : nameof(EncodeOne),
                type.GetItemType().RawType, writer, type, annotations, annotation);
        return stream.ToArray();
    }

    private static bool EncodeOne<T>(BinaryWriter writer, DataViewType type, DataViewSchema.Annotations annotations, DataViewSchema.Column annotation)
    {
        T value = default;
        annotations.GetValue(annotation.Name, ref value);
        WriteValues<T>(writer, [value]);
        return true;
    }

    // int: vectors; int: their common length; per vector int: explicit values, -1 for dense; int: indices, the indices; the values
    private static bool EncodeVector<T>(BinaryWriter writer, DataViewType type, DataViewSchema.Annotations annotations, DataViewSchema.Column annotation)
    {
        VBuffer<T> value = default;
        annotations.GetValue(annotation.Name, ref value);
        int size = type.GetVectorSize();
        Contracts.Check(size == 0 || value.Length == size, $"Length mismatch: expected {size} slots but got {value.Length}");
        writer.Write(1);
        writer.Write(value.Length);
        if (value.Length == 0)
            writer.Write(0);
        writer.Write(value.IsDense ? -1 : value.GetValues().Length);
        writer.Write(value.GetIndices().Length);
        foreach (int index in value.GetIndices())
            writer.Write(index);
        WriteValues(writer, value.GetValues());
        return true;
    }

    /// <summary>A getter of the value that the bytes hold.</summary>
    internal static Delegate Decode(DataViewType type, byte[] bytes)
    {
        using var reader = new BinaryReader(new MemoryStream(bytes), Encoding.UTF8);
        return ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(ValueCodec), null, type is VectorDataViewType ? nameof(DecodeVector) : nameof(DecodeOne),
            type.GetItemType().RawType, reader, type);
    }

    private static Delegate DecodeOne<T>(BinaryReader reader, DataViewType type) => ConstantGetters.Constant(ReadValues<T>(reader, 1)[0]);

    private static Delegate DecodeVector<T>(BinaryReader reader, DataViewType type)
    {
        Contracts.CheckDecode(reader.ReadInt32() == 1, "Corrupt vector value");
        int length = reader.ReadInt32();
        if (length == 0)
            length = reader.ReadInt32();
        int count = reader.ReadInt32();
        int indexCount = reader.ReadInt32();
        Contracts.CheckDecode(length >= 0 && count >= -1 && count <= length && indexCount == Math.Max(count, 0), "Corrupt vector value");
        int[] indices = [.. Enumerable.Range(0, indexCount).Select(_ => reader.ReadInt32())];
        var values = ReadValues<T>(reader, count < 0 ? length : count);
        return ConstantGetters.Constant(count < 0 ? new VBuffer<T>(length, values) : new VBuffer<T>(length, count, values, indices));
    }

    internal static void WriteValues<T>(BinaryWriter writer, ReadOnlySpan<T> values)
    {
        var items = values.ToArray();
        switch (items)
        {
            case ReadOnlyMemory<char>[] texts:
                // int: texts; per text int: where it ends; all texts as one string
                writer.Write(texts.Length);
                int end = 0;
                foreach (var text in texts)
                    writer.Write(end += text.Length);
                writer.Write(string.Concat(texts.Select(text => text.ToString())));
                break;
            case bool[] flags:
                // 8 in a byte, the first in the lowest bit
                foreach (var eight in flags.Chunk(8))
                    writer.Write((byte)eight.Select((flag, bit) => flag ? 1 << bit : 0).Sum());
                break;
            case DateTime[] times:
                foreach (var time in times)
                    writer.Write(time.Ticks);
                break;
            case DateTimeOffset[] times:
                foreach (var time in times)
                    writer.Write((short)time.Offset.TotalMinutes);
                foreach (var time in times)
                    writer.Write(time.DateTime.Ticks);
                break;
            case TimeSpan[] spans:
                foreach (var span in spans)
                    writer.Write(span.Ticks);
                break;
            case DataViewRowId[] ids:
                foreach (var id in ids)
                {
                    writer.Write(id.Low);
                    writer.Write(id.High);
                }
                break;
            default:
                writer.Write(NumberBytes(items));
                break;
        }
    }

    internal static T[] ReadValues<T>(BinaryReader reader, int count)
    {
        var values = new T[count];
        switch (values)
        {
            case ReadOnlyMemory<char>[] texts:
                Contracts.CheckDecode(reader.ReadInt32() == count, "Corrupt text value");
                int[] ends = [.. texts.Select(_ => reader.ReadInt32() & int.MaxValue)];
                var all = reader.ReadString().AsMemory();
                for (int i = 0; i < count; i++)
                    texts[i] = all[(i == 0 ? 0 : ends[i - 1])..ends[i]];
                break;
            case bool[] flags:
                byte bits = 0;
                for (int i = 0; i < count; i++, bits >>= 1)
                {
                    if (i % 8 == 0)
                        bits = reader.ReadByte();
                    flags[i] = (bits & 1) != 0;
                }
                break;
            case DateTime[] times:
                for (int i = 0; i < count; i++)
                    times[i] = new DateTime(reader.ReadInt64());
                break;
            case DateTimeOffset[] times:
                short[] offsets = [.. times.Select(_ => reader.ReadInt16())];
                for (int i = 0; i < count; i++)
                    times[i] = new DateTimeOffset(new DateTime(reader.ReadInt64()), TimeSpan.FromMinutes(offsets[i]));
                break;
            case TimeSpan[] spans:
                for (int i = 0; i < count; i++)
                    spans[i] = new TimeSpan(reader.ReadInt64());
                break;
            case DataViewRowId[] ids:
                for (int i = 0; i < count; i++)
                    ids[i] = new DataViewRowId(reader.ReadUInt64(), reader.ReadUInt64());
                break;
            default:
                int size = Buffer.ByteLength((Array)(object)values);
                var bytes = reader.ReadBytes(size);
                Contracts.CheckDecode(bytes.Length == size, "Truncated value");
                Buffer.BlockCopy(bytes, 0, (Array)(object)values, 0, size);
                break;
        }
        return values;
    }

    private static byte[] NumberBytes<T>(T[] values)
    {
        var bytes = new byte[Buffer.ByteLength(values)];
        Buffer.BlockCopy(values, 0, bytes, 0, bytes.Length);
        return bytes;
    }
}
