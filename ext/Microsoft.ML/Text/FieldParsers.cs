// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Data;

/// <summary>Parses a field; false where it is no such value. The value is set either way.</summary>
internal delegate bool FieldParser<T>(ReadOnlySpan<char> text, out T value);

/// <summary>How fields of text files become values.</summary>
internal static class FieldParsers
{
    internal static FieldParser<T> Of<T>(PrimitiveDataViewType type, TextFormat format)
    {
        if (type is KeyDataViewType key)
            return (FieldParser<T>)(Delegate)ColumnTypeExtensions.InvokeGeneric<Delegate>(typeof(FieldParsers), null, nameof(Key), key.RawType, key);
        char marker = format.DecimalMarker;
        bool nan = format.MissingRealsAsNaNs;
        Delegate parser = default(T) switch
        {
            float => (FieldParser<float>)((ReadOnlySpan<char> text, out float value) => Number(RealText.TryParse(text, marker, nan, out value), text, ref value, float.NaN)),
            double => (FieldParser<double>)((ReadOnlySpan<char> text, out double value) => Number(RealText.TryParse(text, marker, nan, out value), text, ref value, double.NaN)),
            bool => (FieldParser<bool>)TryParseBoolean,
            ReadOnlyMemory<char> => throw Contracts.Except("Text is not parsed."),
            sbyte => Signed(sbyte.MaxValue, value => (sbyte)value),
            short => Signed(short.MaxValue, value => (short)value),
            int => Signed(int.MaxValue, value => (int)value),
            long => Signed(long.MaxValue, value => value),
            byte => Unsigned(byte.MaxValue, value => (byte)value),
            ushort => Unsigned(ushort.MaxValue, value => (ushort)value),
            uint => Unsigned(uint.MaxValue, value => (uint)value),
            ulong => Unsigned(ulong.MaxValue, value => value),
            TimeSpan => (FieldParser<TimeSpan>)((ReadOnlySpan<char> text, out TimeSpan value) =>
                TimeSpan.TryParse(text, CultureInfo.InvariantCulture, out value) || text.IsEmpty),
            DateTime => (FieldParser<DateTime>)((ReadOnlySpan<char> text, out DateTime value) =>
                DateTime.TryParse(text, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal | DateTimeStyles.AdjustToUniversal, out value) || text.IsEmpty),
            DateTimeOffset => (FieldParser<DateTimeOffset>)((ReadOnlySpan<char> text, out DateTimeOffset value) =>
                DateTimeOffset.TryParse(text, CultureInfo.InvariantCulture, DateTimeStyles.AssumeUniversal, out value) || text.IsEmpty),
            _ => throw Contracts.ExceptNotSupp($"Reading {type} from text needs the package Microsoft.ML."),
        };
        return (FieldParser<T>)parser;
    }

    private static bool Number<T>(bool parsed, ReadOnlySpan<char> text, ref T value, T missing)
    {
        if (parsed)
            return true;
        value = missing;
        return IsMissing(text);
    }

    /// <summary>?, NA, N/A, NaN, in any case.</summary>
    internal static bool IsMissing(ReadOnlySpan<char> text)
        => text is "?" || text.Equals("NA", StringComparison.OrdinalIgnoreCase) || text.Equals("N/A", StringComparison.OrdinalIgnoreCase) || text.Equals("NaN", StringComparison.OrdinalIgnoreCase);

    private static bool TryParseBoolean(ReadOnlySpan<char> text, out bool value)
    {
        value = TextValues.ParseBoolean(text);
        if (value || text.IsEmpty)
            return true;
        foreach (string no in (ReadOnlySpan<string>)["f", "false", "n", "no", "0", "-", "-1"])
            if (text.Equals(no, StringComparison.OrdinalIgnoreCase))
                return true;
        return false;
    }

    // A key is written from 0 on; the column holds it from 1 on.
    private static Delegate Key<T>(KeyDataViewType key) => (FieldParser<T>)((ReadOnlySpan<char> text, out T value) =>
    {
        value = default;
        if (text.IsEmpty || IsMissing(text))
            return true;
        if (!TextValues.TryParseUnsigned(text, out ulong raw) || raw >= key.Count)
            return false;
        value = (T)Convert.ChangeType(raw + 1, typeof(T));
        return true;
    });

    private static FieldParser<T> Signed<T>(long max, Func<long, T> narrow) => (ReadOnlySpan<char> text, out T value) =>
    {
        value = default;
        if (text.IsEmpty)
            return true;
        bool negative = text[0] == '-';
        if (!TextValues.TryParseUnsigned(negative ? text[1..] : text, out ulong size) || size > (ulong)max + (negative ? 1u : 0u))
            return false;
        value = narrow(negative ? unchecked(-(long)size) : (long)size);
        return true;
    };

    private static FieldParser<T> Unsigned<T>(ulong max, Func<ulong, T> narrow) => (ReadOnlySpan<char> text, out T value) =>
    {
        value = default;
        if (!TextValues.TryParseUnsigned(text, out ulong size) || size > max)
            return false;
        value = narrow(size);
        return true;
    };
}

/// <summary>Reads real numbers: as the loader does, whose results differ from .NET's in the last bit here and there.</summary>
internal static class RealText
{
    private static readonly double[] _powers = [.. Enumerable.Range(-323, 323 + 308 + 1).Select(e => double.Parse("1e" + e, CultureInfo.InvariantCulture))];

    internal static bool TryParse(ReadOnlySpan<char> text, char marker, bool emptyIsNaN, out float value)
    {
        if (!Read(text, marker, emptyIsNaN, out double special, out bool negative, out ulong digits, out long exponent))
        {
            value = 0;
            return false;
        }
        // The digits times the power of ten, in double precision, rounded to single.
        value = digits == 0 ? (float)special
            : exponent > 308 ? float.PositiveInfinity
            : exponent < -323 ? 0
            : (float)(_powers[exponent + 323] * digits);
        if (negative)
            value = -value;
        return true;
    }

    internal static bool TryParse(ReadOnlySpan<char> text, char marker, bool emptyIsNaN, out double value)
    {
        if (!Read(text, marker, emptyIsNaN, out double special, out bool negative, out ulong digits, out long exponent))
        {
            value = 0;
            return false;
        }
        value = digits == 0 ? special : double.Parse(FormattableString.Invariant($"{digits}e{Math.Clamp(exponent, -9999, 9999)}"), CultureInfo.InvariantCulture);
        if (negative)
            value = -value;
        return true;
    }

    // A number as digits and exponent, or what is no number as a special value with no digits.
    private static bool Read(ReadOnlySpan<char> text, char marker, bool emptyIsNaN, out double special, out bool negative, out ulong digits, out long exponent)
    {
        special = 0;
        negative = false;
        digits = 0;
        exponent = 0;
        // Blanks before a number spoil it, but for one digit at the very end: so they do in the real package.
        var rest = text.TrimStart();
        if (rest.Length > 1 && rest.Length < text.Length)
            return false;
        text = rest.TrimEnd();
        if (text.IsEmpty)
        {
            special = emptyIsNaN ? double.NaN : 0;
            return true;
        }
        switch (text)
        {
            case "?" or "NaN":
                special = double.NaN;
                return true;
            case "Infinity" or "∞":
                special = double.PositiveInfinity;
                return true;
            case "-Infinity" or "-∞":
                special = double.NegativeInfinity;
                return true;
        }
        negative = text[0] == '-';
        int at = text[0] is '-' or '+' ? 1 : 0;
        return ReadDigits(text, marker, ref at, ref digits, ref exponent) && ReadExponent(text, ref at, ref exponent) && at == text.Length;
    }

    private static bool ReadDigits(ReadOnlySpan<char> text, char marker, ref int at, ref ulong digits, ref long exponent)
    {
        // Digits beyond what 64 bits hold are dropped.
        const ulong Full = (ulong.MaxValue - 9) / 10;
        bool any = false, inFraction = false;
        for (; at < text.Length; at++)
        {
            if (text[at] == marker && !inFraction)
            {
                inFraction = true;
                continue;
            }
            if (!char.IsAsciiDigit(text[at]))
                break;
            any = true;
            if (digits < Full)
            {
                digits = 10 * digits + (ulong)(text[at] - '0');
                exponent -= inFraction ? 1 : 0;
            }
            else
                exponent += inFraction ? 0 : 1;
        }
        return any;
    }

    private static bool ReadExponent(ReadOnlySpan<char> text, ref int at, ref long exponent)
    {
        if (at >= text.Length)
            return true;
        if (text[at++] is not ('e' or 'E') || at >= text.Length)
            return false;
        bool negative = text[at] == '-';
        if (text[at] is '-' or '+')
            at++;
        int start = at;
        long size = 0;
        for (; at < text.Length && char.IsAsciiDigit(text[at]); at++)
            size = Math.Min(size * 10 + (text[at] - '0'), 1_000_000_000);
        exponent += negative ? -size : size;
        return at > start;
    }
}
