// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;

namespace Microsoft.ML.Data;

/// <summary>Reads values from text in the forms that the data pipeline accepts.</summary>
internal static class TextValues
{
    /// <summary>Digits only; false for nothing, for anything else, and on overflow.</summary>
    public static bool TryParseUnsigned(ReadOnlySpan<char> text, out ulong value)
        => ulong.TryParse(text, NumberStyles.None, CultureInfo.InvariantCulture, out value);

    /// <summary>NaN for what is no number.</summary>
    public static float ParseSingle(ReadOnlySpan<char> text) => RealText.TryParse(text, '.', emptyIsNaN: false, out float value) ? value : float.NaN;

    /// <summary>NaN for what is no number.</summary>
    public static double ParseDouble(ReadOnlySpan<char> text) => RealText.TryParse(text, '.', emptyIsNaN: false, out double value) ? value : double.NaN;

    /// <summary>True for t, true, y, yes, 1, +, +1 in any case; false for everything else.</summary>
    public static bool ParseBoolean(ReadOnlySpan<char> text)
    {
        ReadOnlySpan<string> words = ["t", "true", "y", "yes", "1", "+", "+1"];
        foreach (string word in words)
        {
            if (text.Equals(word, StringComparison.OrdinalIgnoreCase))
                return true;
        }

        return false;
    }
}
