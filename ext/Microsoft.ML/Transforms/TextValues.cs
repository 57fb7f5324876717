// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;

namespace Microsoft.ML.Data;

/// <summary>Reads values from text in the forms that the data pipeline accepts.</summary>
internal static class TextValues
{
    /// <summary>Any casing of ?, NaN, NA and N/A.</summary>
    public static bool IsMissing(ReadOnlySpan<char> text)
    {
        ReadOnlySpan<string> words = ["?", "NaN", "NA", "N/A"];
        return IsAmong(text, words);
    }

    /// <summary>Digits only; false for nothing, for anything else, and on overflow.</summary>
    public static bool TryParseUnsigned(ReadOnlySpan<char> text, out ulong value)
        => ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);

    /// <summary>Digits after at most a minus sign; nothing is 0; false for anything else and beyond the maximum of a type.</summary>
    public static bool TryParseSigned(ReadOnlySpan<char> text, long maximum, out long value)
    {
        value = 0;
        if (text.IsEmpty)
            return true;
        bool negative = text[0] == '-';
        ulong limit = negative ? (ulong)maximum + 1 : (ulong)maximum;
        if (!TryParseUnsigned(text[(negative ? 1 : 0)..], out ulong size) || size > limit)
            return false;
        value = negative ? -(long)size : (long)size;
        return true;
    }

    /// <summary>A key is written from 0; nothing and the words for missing values are the missing key.</summary>
    public static bool TryParseKey(ReadOnlySpan<char> text, ulong count, out ulong value)
    {
        value = 0;
        if (text.IsEmpty || IsMissing(text))
            return true;
        if (!TryParseUnsigned(text, out ulong index) || index >= count)
            return false;
        value = index + 1;
        return true;
    }

    /// <summary>t, true, y, yes, 1, + and +1 are true, f, false, n, no, 0, -, -1 and nothing are false, in any casing.</summary>
    public static bool TryParseBoolean(ReadOnlySpan<char> text, out bool value)
    {
        value = IsAmong(text, ["t", "true", "y", "yes", "1", "+", "+1"]);
        return value || text.IsEmpty || IsAmong(text, ["f", "false", "n", "no", "0", "-", "-1"]);
    }

    public static bool TryParseSingle(ReadOnlySpan<char> text, out float value, char decimalMark = '.', float empty = 0)
    {
        bool parsed = RealText.TryParse(text, out RealText number, decimalMark);
        value = !parsed ? float.NaN : number.IsEmpty ? empty : number.ToSingle();
        return parsed || IsMissing(text);
    }

    public static bool TryParseDouble(ReadOnlySpan<char> text, out double value, char decimalMark = '.', double empty = 0)
    {
        bool parsed = RealText.TryParse(text, out RealText number, decimalMark);
        value = !parsed ? double.NaN : number.IsEmpty ? empty : number.ToDouble();
        return parsed || IsMissing(text);
    }

    private static bool IsAmong(ReadOnlySpan<char> text, ReadOnlySpan<string> words)
    {
        foreach (string word in words)
        {
            if (text.Equals(word, StringComparison.OrdinalIgnoreCase))
                return true;
        }

        return false;
    }
}
