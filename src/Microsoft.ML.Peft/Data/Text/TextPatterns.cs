// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text.RegularExpressions;

namespace Microsoft.ML.Peft.Data;

/// <summary>Finds stretches in a text of code points.</summary>
internal abstract class TextPattern
{
    /// <summary>The matches from left to right, without overlaps and without empty ones.</summary>
    public abstract List<(int From, int To)> Matches(ReadOnlySpan<int> text);

    public static TextPattern Parse(JsonAt node)
    {
        if (node.IsString)
            return new LiteralPattern(node.Text());
        if (!node["String"].IsNull)
            return new LiteralPattern(node["String"].Text());
        return node["Regex"].IsNull
            ? throw node.Bad("an object with String or Regex")
            : ForRegex(node["Regex"]);
    }

    private static TextPattern ForRegex(JsonAt node)
    {
        string pattern = node.Text();
        if (pattern == Gpt2Pattern.Source)
            return new Gpt2Pattern();
        try
        {
            return new RegexPattern(RegexDialect.Translate(pattern));
        }
        catch (ArgumentException e)
        {
            throw Malformed.In($"{node.File}: {node.Path}", $"a regular expression that cannot be read ({e.Message.TrimEnd('.')})", "one of the Oniguruma kind", e);
        }
    }
}

/// <summary>Each character that passes a test is a match of its own.</summary>
internal sealed class CharPattern(Func<int, bool> test) : TextPattern
{
    public override List<(int From, int To)> Matches(ReadOnlySpan<int> text)
    {
        var found = new List<(int, int)>();
        for (int i = 0; i < text.Length; i++)
        {
            if (test(text[i]))
                found.Add((i, i + 1));
        }
        return found;
    }
}

internal sealed class LiteralPattern(string literal) : TextPattern
{
    private readonly int[] literal = AlignedText.CodePoints(literal);

    public override List<(int From, int To)> Matches(ReadOnlySpan<int> text)
    {
        var found = new List<(int, int)>();
        int from = 0;
        while (literal.Length > 0 && from < text.Length)
        {
            int at = text[from..].IndexOf(literal);
            if (at < 0)
                break;
            found.Add((from + at, from + at + literal.Length));
            from += at + literal.Length;
        }
        return found;
    }
}

/// <summary>Runs of word characters, and runs of what is neither that nor blank.</summary>
internal sealed class WordPattern : TextPattern
{
    public override List<(int From, int To)> Matches(ReadOnlySpan<int> text)
    {
        var found = new List<(int, int)>();
        for (int at = 0; at < text.Length;)
        {
            int from = at++;
            if (Unicode.IsWhiteSpace(text[from]))
                continue;
            bool word = Unicode.IsWord(text[from]);
            while (at < text.Length && !Unicode.IsWhiteSpace(text[at]) && Unicode.IsWord(text[at]) == word)
                at++;
            found.Add((from, at));
        }
        return found;
    }
}

/// <summary>
/// A regular expression over code points. Characters beyond U+FFFF are shown to it as one character of the same category,
/// so that one place in its input is one code point.
/// </summary>
internal sealed class RegexPattern : TextPattern
{
    // A hostile pattern must not hang the caller.
    private static readonly TimeSpan Patience = TimeSpan.FromSeconds(5);
    private readonly Regex regex;

    public RegexPattern(string pattern) =>
        regex = new Regex(pattern, RegexOptions.CultureInvariant | RegexOptions.Multiline | RegexOptions.Compiled, Patience);

    public override List<(int From, int To)> Matches(ReadOnlySpan<int> text)
    {
        var found = new List<(int, int)>();
        char[] shadow = new char[text.Length];
        for (int i = 0; i < text.Length; i++)
            shadow[i] = text[i] <= 0xFFFF ? (char)text[i] : Double(text[i]);
        try
        {
            foreach (var match in regex.EnumerateMatches(shadow))
            {
                if (match.Length > 0)
                    found.Add((match.Index, match.Index + match.Length));
            }
        }
        catch (RegexMatchTimeoutException e)
        {
            throw new InvalidOperationException($"The tokenizer's pattern '{regex}' took more than {Patience.TotalSeconds:0} s on a text of {text.Length} characters. Shorten the text, or mend the pattern.", e);
        }
        return found;
    }

    private static char Double(int c) => Unicode.Category(c) switch
    {
        UnicodeCategory.UppercaseLetter => '\u10A0',
        UnicodeCategory.LowercaseLetter => '\u2D00',
        UnicodeCategory.TitlecaseLetter => '\u1F88',
        UnicodeCategory.ModifierLetter => '\u02B0',
        UnicodeCategory.OtherLetter => '\uA000',
        UnicodeCategory.NonSpacingMark => '\u0300',
        UnicodeCategory.SpacingCombiningMark => '\u0903',
        UnicodeCategory.EnclosingMark => '\u20DD',
        UnicodeCategory.DecimalDigitNumber => '\u0E50',
        UnicodeCategory.LetterNumber => '\u2160',
        UnicodeCategory.OtherNumber => '\u2460',
        UnicodeCategory.ConnectorPunctuation => '\u203F',
        UnicodeCategory.DashPunctuation => '\u2013',
        UnicodeCategory.OpenPunctuation => '\u2045',
        UnicodeCategory.ClosePunctuation => '\u2046',
        UnicodeCategory.InitialQuotePunctuation => '\u00AB',
        UnicodeCategory.FinalQuotePunctuation => '\u00BB',
        UnicodeCategory.OtherPunctuation => '\u2020',
        UnicodeCategory.MathSymbol => '\u2200',
        UnicodeCategory.CurrencySymbol => '\u20A0',
        UnicodeCategory.ModifierSymbol => '\u02C2',
        UnicodeCategory.OtherSymbol => Unicode.IsAlphabeticSymbol(c) ? '\u24B6' : '\u2800',
        UnicodeCategory.Format => '\u2060',
        UnicodeCategory.PrivateUse => '\uE000',
        _ => '\u0378',
    };
}

/// <summary>The split of GPT-2, by hand: contractions, then words, numbers and symbols with one space before, blanks.</summary>
internal sealed class Gpt2Pattern : TextPattern
{
    public const string Source = @"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";

    private enum Kind
    {
        Blank,
        Letter,
        Number,
        Symbol,
    }

    public override List<(int From, int To)> Matches(ReadOnlySpan<int> text)
    {
        var found = new List<(int, int)>(text.Length / 4);
        int at = 0;
        while (at < text.Length)
        {
            int to = Next(text, at);
            found.Add((at, to));
            at = to;
        }
        return found;
    }

    private static int Next(ReadOnlySpan<int> text, int at)
    {
        int contraction = text[at] == '\'' ? Contraction(text[(at + 1)..]) : 0;
        if (contraction > 0)
            return at + 1 + contraction;
        int from = at;
        if (text[at] == ' ' && at + 1 < text.Length && KindOf(text[at + 1]) != Kind.Blank)
            from++;
        Kind kind = KindOf(text[from]);
        int to = from + 1;
        while (to < text.Length && KindOf(text[to]) == kind)
            to++;
        // A run of blanks leaves its last one to the word that follows, unless it is that one alone.
        return kind == Kind.Blank && to < text.Length && to - at > 1 ? to - 1 : to;
    }

    private static int Contraction(ReadOnlySpan<int> rest)
    {
        if (rest.Length == 0)
            return 0;
        if (rest.Length > 1 && (rest[0], rest[1]) is ('r', 'e') or ('v', 'e') or ('l', 'l'))
            return 2;
        return rest[0] is 's' or 't' or 'm' or 'd' ? 1 : 0;
    }

    private static Kind KindOf(int c)
    {
        if (Unicode.IsWhiteSpace(c))
            return Kind.Blank;
        return Unicode.IsLetter(c) ? Kind.Letter : Unicode.IsNumber(c) ? Kind.Number : Kind.Symbol;
    }
}
