// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Numerics;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>
/// The conversions between types that the data pipeline knows. Signed numbers convert to signed numbers, unsigned
/// to unsigned, both and Boolean to floating point; keys to keys of the same count; everything to text and back.
/// </summary>
internal static class ValueConversions
{
    private static readonly Dictionary<(Type From, Type To), Delegate> _table = Build();

    /// <summary>The conversion of one raw type to another, as a function.</summary>
    public static Func<TFrom, TTo> Get<TFrom, TTo>() => (Func<TFrom, TTo>)_table[(typeof(TFrom), typeof(TTo))];

    /// <summary>The conversion of one column type to another, a function of the raw types; null where there is none.</summary>
    public static Delegate Find(DataViewType from, DataViewType to)
    {
        if (to is KeyDataViewType key)
        {
            if (from is TextDataViewType)
                return RowGetters.Call<Delegate>(KeyParser<uint>, key.RawType, key.Count);
            if (from is not KeyDataViewType other || other.Count != key.Count)
                return null;
        }
        else if (from is KeyDataViewType source && !Holds(to, source.Count))
        {
            return null;
        }

        return _table.GetValueOrDefault((from.RawType, to.RawType));
    }

    /// <summary>How key values and term lists write a value; keys are written from 0, missing ones as nothing.</summary>
    public static Func<T, string> Writer<T>(DataViewType type)
    {
        if (type is KeyDataViewType key)
        {
            Func<T, ulong> number = Get<T, ulong>();
            return value => number(value) is var raw && raw > 0 && raw <= key.Count ? (raw - 1).ToString(CultureInfo.InvariantCulture) : "";
        }

        return value => value switch
        {
            float.NaN or double.NaN => "?",
            float single => single.ToString("R", CultureInfo.InvariantCulture),
            bool flag => flag ? "1" : "0",
            _ => Get<T, ReadOnlyMemory<char>>()(value).ToString(),
        };
    }

    /// <summary>The largest count of a key that is stored as this type.</summary>
    public static ulong LargestKey(Type raw)
        => raw == typeof(byte) ? byte.MaxValue : raw == typeof(ushort) ? ushort.MaxValue : raw == typeof(uint) ? uint.MaxValue : ulong.MaxValue;

    private static bool Holds(DataViewType to, ulong count) => KeyDataViewType.IsValidDataType(to.RawType) && count <= LargestKey(to.RawType);

    private static Delegate KeyParser<T>(ulong count)
        where T : unmanaged, IBinaryInteger<T>
        => (ReadOnlyMemory<char> text) => TextValues.TryParseUnsigned(text.Span, out ulong value) && value < count ? T.CreateTruncating(value + 1) : T.Zero;

    private static Dictionary<(Type From, Type To), Delegate> Build()
    {
        var table = new Dictionary<(Type From, Type To), Delegate>();
        AddSigned<sbyte>(table);
        AddSigned<short>(table);
        AddSigned<int>(table);
        AddSigned<long>(table);
        AddUnsigned<byte>(table);
        AddUnsigned<ushort>(table);
        AddUnsigned<uint>(table);
        AddUnsigned<ulong>(table);
        AddFloating(table);
        AddTimes(table);
        AddFromText(table);
        Add(table, (bool x) => x);
        Add(table, (bool x) => (sbyte)(x ? 1 : 0));
        Add(table, (bool x) => (short)(x ? 1 : 0));
        Add(table, (bool x) => x ? 1 : 0);
        Add(table, (bool x) => x ? 1L : 0);
        Add(table, (bool x) => x ? 1f : 0);
        Add(table, (bool x) => x ? 1d : 0);
        AddText(table, (bool x) => x.ToString());
        Add(table, (DataViewRowId x) => x);
        Add(table, (DataViewRowId x) => x.High == 0 && x.Low <= byte.MaxValue ? (byte)x.Low : (byte)0);
        Add(table, (DataViewRowId x) => x.High == 0 && x.Low <= ushort.MaxValue ? (ushort)x.Low : (ushort)0);
        Add(table, (DataViewRowId x) => x.High == 0 && x.Low <= uint.MaxValue ? (uint)x.Low : 0);
        Add(table, (DataViewRowId x) => x.High == 0 ? x.Low : 0);
        AddText(table, (DataViewRowId x) => $"0x{x.High:x16}{x.Low:x16}");
        return table;
    }

    private static void Add<TFrom, TTo>(Dictionary<(Type From, Type To), Delegate> table, Func<TFrom, TTo> convert)
        => table.Add((typeof(TFrom), typeof(TTo)), convert);

    private static void AddText<TFrom>(Dictionary<(Type From, Type To), Delegate> table, Func<TFrom, string> convert)
        => Add(table, (TFrom x) => convert(x).AsMemory());

    // Narrowing keeps the low bits.
    private static void AddSigned<T>(Dictionary<(Type From, Type To), Delegate> table)
        where T : IBinaryInteger<T>
    {
        Add(table, (T x) => sbyte.CreateTruncating(x));
        Add(table, (T x) => short.CreateTruncating(x));
        Add(table, (T x) => int.CreateTruncating(x));
        Add(table, (T x) => long.CreateTruncating(x));
        AddNumber<T>(table);
    }

    // Narrowing makes 0, which is a missing key, of what does not fit.
    private static void AddUnsigned<T>(Dictionary<(Type From, Type To), Delegate> table)
        where T : IBinaryInteger<T>
    {
        Add(table, (T x) => ulong.CreateTruncating(x) <= byte.MaxValue ? byte.CreateTruncating(x) : (byte)0);
        Add(table, (T x) => ulong.CreateTruncating(x) <= ushort.MaxValue ? ushort.CreateTruncating(x) : (ushort)0);
        Add(table, (T x) => ulong.CreateTruncating(x) <= uint.MaxValue ? uint.CreateTruncating(x) : 0);
        Add(table, (T x) => ulong.CreateTruncating(x));
        Add(table, (T x) => new DataViewRowId(ulong.CreateTruncating(x), 0));
        AddNumber<T>(table);
    }

    private static void AddNumber<T>(Dictionary<(Type From, Type To), Delegate> table)
        where T : IBinaryInteger<T>
    {
        Add(table, (T x) => float.CreateTruncating(x));
        Add(table, (T x) => double.CreateTruncating(x));
        Add(table, (T x) => !T.IsZero(x));
        AddText(table, (T x) => x.ToString(null, CultureInfo.InvariantCulture));
    }

    private static void AddFloating(Dictionary<(Type From, Type To), Delegate> table)
    {
        Add(table, (float x) => x);
        Add(table, (float x) => (double)x);
        Add(table, (float x) => x != 0);
        AddText(table, (float x) => x.ToString("G7", CultureInfo.InvariantCulture));
        Add(table, (double x) => (float)x);
        Add(table, (double x) => x);
        Add(table, (double x) => x != 0);
        AddText(table, (double x) => x.ToString("G17", CultureInfo.InvariantCulture));
    }

    private static void AddTimes(Dictionary<(Type From, Type To), Delegate> table)
    {
        Add(table, (TimeSpan x) => x.Ticks);
        Add(table, (TimeSpan x) => (float)x.Ticks);
        Add(table, (TimeSpan x) => (double)x.Ticks);
        AddText(table, (TimeSpan x) => x.ToString("c"));
        Add(table, (DateTime x) => x);
        Add(table, (DateTime x) => x.Ticks);
        Add(table, (DateTime x) => (float)x.Ticks);
        Add(table, (DateTime x) => (double)x.Ticks);
        AddText(table, (DateTime x) => x.ToString("o"));
        Add(table, (DateTimeOffset x) => x.UtcTicks);
        Add(table, (DateTimeOffset x) => (float)x.UtcTicks);
        Add(table, (DateTimeOffset x) => (double)x.UtcTicks);
        AddText(table, (DateTimeOffset x) => x.ToString("o"));
    }

    // Text that is no such number becomes NaN or, for unsigned numbers, 0; for signed ones it is an error.
    private static void AddFromText(Dictionary<(Type From, Type To), Delegate> table)
    {
        Add(table, (ReadOnlyMemory<char> x) => x);
        Add(table, (ReadOnlyMemory<char> x) => (sbyte)Signed(x, sbyte.MaxValue, "sbyte"));
        Add(table, (ReadOnlyMemory<char> x) => (short)Signed(x, short.MaxValue, "short"));
        Add(table, (ReadOnlyMemory<char> x) => (int)Signed(x, int.MaxValue, "int"));
        Add(table, (ReadOnlyMemory<char> x) => Signed(x, long.MaxValue, "long"));
        Add(table, (ReadOnlyMemory<char> x) => (byte)Unsigned(x, byte.MaxValue));
        Add(table, (ReadOnlyMemory<char> x) => (ushort)Unsigned(x, ushort.MaxValue));
        Add(table, (ReadOnlyMemory<char> x) => (uint)Unsigned(x, uint.MaxValue));
        Add(table, (ReadOnlyMemory<char> x) => Unsigned(x, ulong.MaxValue));
        Add(table, (ReadOnlyMemory<char> x) => TextValues.ParseSingle(x.Span));
        Add(table, (ReadOnlyMemory<char> x) => TextValues.ParseDouble(x.Span));
        Add(table, (ReadOnlyMemory<char> x) => TextValues.ParseBoolean(x.Span));
        Add(table, (ReadOnlyMemory<char> x) => TimeSpan.TryParse(x.Span, CultureInfo.InvariantCulture, out TimeSpan value) ? value : default);
        Add(table, (ReadOnlyMemory<char> x) => DateTime.TryParse(x.Span, CultureInfo.InvariantCulture,
            DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal, out DateTime value) ? value : default);
        Add(table, (ReadOnlyMemory<char> x) => DateTimeOffset.TryParse(x.Span, CultureInfo.InvariantCulture,
            DateTimeStyles.AssumeUniversal, out DateTimeOffset value) ? value : default);
    }

    private static ulong Unsigned(ReadOnlyMemory<char> text, ulong maximum)
        => TextValues.TryParseUnsigned(text.Span, out ulong value) && value <= maximum ? value : 0;

    private static long Signed(ReadOnlyMemory<char> text, long maximum, string name)
    {
        if (text.IsEmpty)
            return 0;
        bool negative = text.Span[0] == '-';
        ulong limit = negative ? (ulong)maximum + 1 : (ulong)maximum;
        if (!TextValues.TryParseUnsigned(text.Span[(negative ? 1 : 0)..], out ulong value) || value > limit)
            throw Contracts.Except($"Value could not be parsed from text to {name}.");
        return negative ? -(long)value : (long)value;
    }
}
