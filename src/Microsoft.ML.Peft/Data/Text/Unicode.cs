// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>Character classes over code points, as Unicode-aware tokenizers define them.</summary>
internal static class Unicode
{
    public static UnicodeCategory Category(int c) => CharUnicodeInfo.GetUnicodeCategory(c);

    /// <summary>The property White_Space.</summary>
    public static bool IsWhiteSpace(int c) => c < 0x80 ? c is ' ' or (>= 9 and <= 13) : c <= 0xFFFF && char.IsWhiteSpace((char)c);

    /// <summary>Categories P*, and the ASCII symbols.</summary>
    public static bool IsPunctuation(int c)
    {
        if (c < 0x80)
            return c is (>= 33 and <= 47) or (>= 58 and <= 64) or (>= 91 and <= 96) or (>= 123 and <= 126);
        return Category(c) is >= UnicodeCategory.ConnectorPunctuation and <= UnicodeCategory.OtherPunctuation;
    }

    public static bool IsLetter(int c) =>
        c < 0x80 ? c is (>= 'a' and <= 'z') or (>= 'A' and <= 'Z') : Category(c) <= UnicodeCategory.OtherLetter;

    /// <summary>Categories Nd, Nl and No.</summary>
    public static bool IsNumber(int c) =>
        c < 0x80 ? c is >= '0' and <= '9' : Category(c) is UnicodeCategory.DecimalDigitNumber or UnicodeCategory.LetterNumber or UnicodeCategory.OtherNumber;

    public static bool IsNonSpacingMark(int c) => c >= 0x300 && Category(c) == UnicodeCategory.NonSpacingMark;

    public static bool IsMark(int c) =>
        c >= 0x300 && Category(c) is UnicodeCategory.NonSpacingMark or UnicodeCategory.SpacingCombiningMark or UnicodeCategory.EnclosingMark;

    /// <summary>What \w means to Unicode: alphabetic, marks, decimal digits, connectors, joiners.</summary>
    public static bool IsWord(int c)
    {
        if (c < 0x80)
            return IsLetter(c) || c is '_' or (>= '0' and <= '9');
        return Category(c) switch
        {
            <= UnicodeCategory.OtherLetter => true,
            UnicodeCategory.NonSpacingMark or UnicodeCategory.SpacingCombiningMark or UnicodeCategory.EnclosingMark => true,
            UnicodeCategory.DecimalDigitNumber or UnicodeCategory.LetterNumber or UnicodeCategory.ConnectorPunctuation => true,
            UnicodeCategory.OtherSymbol => IsAlphabeticSymbol(c),
            UnicodeCategory.Format => c is 0x200C or 0x200D,
            _ => false,
        };
    }

    /// <summary>Letters in circles and squares: symbols that count as alphabetic.</summary>
    public static bool IsAlphabeticSymbol(int c) =>
        c is (>= 0x24B6 and <= 0x24E9) or (>= 0x1F130 and <= 0x1F149) or (>= 0x1F150 and <= 0x1F169) or (>= 0x1F170 and <= 0x1F189);

    /// <summary>Deleted by BERT's cleaning: Cc, Cf and Co (unassigned code points stay).</summary>
    public static bool IsControl(int c)
    {
        if (c < 0x80)
            return c is < 32 or 127 && c is not (9 or 10 or 13);
        return Category(c) is UnicodeCategory.Control or UnicodeCategory.Format or UnicodeCategory.PrivateUse or UnicodeCategory.Surrogate;
    }

    /// <summary>The blocks of CJK ideographs that BERT puts blanks around.</summary>
    public static bool IsIdeograph(int c) =>
        c >= 0x3400 && c is (>= 0x4E00 and <= 0x9FFF) or (>= 0x3400 and <= 0x4DBF) or (>= 0xF900 and <= 0xFAFF)
            or (>= 0x20000 and <= 0x2A6DF) or (>= 0x2A700 and <= 0x2B73F) or (>= 0x2B740 and <= 0x2B81F)
            or (>= 0x2B920 and <= 0x2CEAF) or (>= 0x2F800 and <= 0x2FA1F);

    public static bool IsCased(int c) =>
        Category(c) is UnicodeCategory.UppercaseLetter or UnicodeCategory.LowercaseLetter or UnicodeCategory.TitlecaseLetter;

    /// <summary>What may stand inside a word without ending it: marks, modifiers, format characters, apostrophes, points.</summary>
    public static bool IsCaseIgnorable(int c) =>
        c is '\'' or '.' or ':' or 0xB7 or 0x2018 or 0x2019 or 0x2024 or 0x2027
        || Category(c) is UnicodeCategory.NonSpacingMark or UnicodeCategory.EnclosingMark or UnicodeCategory.Format
            or UnicodeCategory.ModifierLetter or UnicodeCategory.ModifierSymbol;

    /// <summary>Lower case of one character alone; U+0130 alone gives two, i and U+0307, which the caller adds.</summary>
    public static int ToLower(int c)
    {
        if (c < 0x80)
            return c is >= 'A' and <= 'Z' ? c + 32 : c;
        if (c == 0x130)
            return 'i';
        return c is >= 0xD800 and <= 0xDFFF ? c : Rune.ToLowerInvariant(new Rune(c)).Value;
    }
}
