// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Runtime.CompilerServices;
using System.Runtime.InteropServices;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// How a model stores a list of values: the name of their type, the length of its parameters and those (none but for
/// keys: the stored type and the count), then the values as they lie in memory, little-endian; Boolean values as bits.
/// </summary>
internal static class TermBlocks
{
    private const string KeyName = "Key2";

    private static readonly PrimitiveDataViewType[] _types =
    [
        NumberDataViewType.SByte, NumberDataViewType.Byte, NumberDataViewType.Int16, NumberDataViewType.UInt16, NumberDataViewType.Int32,
        NumberDataViewType.UInt32, NumberDataViewType.Int64, NumberDataViewType.UInt64, NumberDataViewType.Single, NumberDataViewType.Double,
        TimeSpanDataViewType.Instance, RowIdDataViewType.Instance, BooleanDataViewType.Instance, DateTimeDataViewType.Instance,
    ];

    public static void WriteType(BinaryWriter writer, PrimitiveDataViewType type)
    {
        if (type is KeyDataViewType key)
        {
            // The parameters: a type without any, written in the same way, and the count.
            writer.Write(KeyName);
            writer.Write7BitEncodedInt(key.RawType.Name.Length + 1 + 1 + sizeof(ulong));
            writer.Write(key.RawType.Name);
            writer.Write7BitEncodedInt(0);
            writer.Write(key.Count);
            return;
        }

        if (!_types.Contains(type))
            throw Contracts.ExceptNotSupp($"Saving keys of values of type '{type}' needs the package Microsoft.ML.");
        writer.Write(type.RawType.Name);
        writer.Write7BitEncodedInt(0);
    }

    public static PrimitiveDataViewType ReadType(BinaryReader reader)
    {
        string name = reader.ReadString();
        int parameters = reader.Read7BitEncodedInt();
        if (name == KeyName)
            return new KeyDataViewType(ReadType(reader).RawType, reader.ReadUInt64());
        Contracts.CheckDecode(parameters == 0, $"A list of terms of type '{name}' has parameters");
        return _types.FirstOrDefault(type => type.RawType.Name == name)
            ?? throw Contracts.ExceptNotSupp($"Loading keys of values of type '{name}' needs the package Microsoft.ML.");
    }

    public static void WriteValues<T>(BinaryWriter writer, T[] values)
    {
        if (values is bool[] flags)
        {
            for (int start = 0; start < flags.Length; start += 8)
                writer.Write((byte)flags.Skip(start).Take(8).Select((flag, bit) => flag ? 1 << bit : 0).Sum());
        }
        else if (values is DateTime[] times)
        {
            WriteValues(writer, times.Select(time => time.Ticks).ToArray());
        }
        else
        {
            foreach (T value in values)
                writer.Write(BytesOf(ref Unsafe.AsRef(in value)));
        }
    }

    public static T[] ReadValues<T>(BinaryReader reader, int count)
    {
        if (typeof(T) == typeof(bool))
        {
            byte[] bits = reader.ReadBytes((count + 7) / 8);
            Contracts.CheckDecode(bits.Length == (count + 7) / 8, "A list of terms is cut short");
            return (T[])(object)Enumerable.Range(0, count).Select(i => (bits[i / 8] >> (i % 8) & 1) != 0).ToArray();
        }

        if (typeof(T) == typeof(DateTime))
            return (T[])(object)ReadValues<long>(reader, count).Select(ticks => new DateTime(ticks)).ToArray();

        // Read one by one, so that a corrupt count ends at the end of the stream and not in a huge allocation.
        var values = new List<T>();
        T value = default;
        for (int i = 0; i < count; i++)
        {
            reader.BaseStream.ReadExactly(BytesOf(ref value));
            values.Add(value);
        }

        return values.ToArray();
    }

    private static Span<byte> BytesOf<T>(ref T value)
        => MemoryMarshal.CreateSpan(ref Unsafe.As<T, byte>(ref value), Unsafe.SizeOf<T>());
}
