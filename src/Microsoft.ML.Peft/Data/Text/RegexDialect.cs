// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// Writes Oniguruma's regular expressions in .NET's: classes inside classes, possessive quantifiers, Unicode words,
/// a few names of properties. What neither knows is refused by .NET with a message.
/// </summary>
internal sealed class RegexDialect
{
    private const string Word = @"\p{L}\p{M}\p{N}\p{Pc}\u24B6-\u24E9";
    private readonly string source;
    private readonly StringBuilder target = new();
    private readonly Stack<int> groups = new();
    private int at;
    private int atom = -1;

    private RegexDialect(string source) => this.source = source;

    public static string Translate(string pattern) => new RegexDialect(pattern).Run();

    private string Run()
    {
        while (at < source.Length)
        {
            char c = source[at];
            if (char.IsSurrogate(c))
                throw new ArgumentException("characters beyond U+FFFF are not supported in patterns");
            switch (c)
            {
                case '\\':
                    Start();
                    target.Append(Escape(inClass: false));
                    break;
                case '[':
                    Start();
                    target.Append(ClassText());
                    break;
                case '(':
                    groups.Push(target.Length);
                    atom = -1;
                    target.Append(c);
                    at++;
                    if (at < source.Length && source[at] == '?')
                        Option();
                    break;
                case ')':
                    atom = groups.Count > 0 ? groups.Pop() : -1;
                    target.Append(c);
                    at++;
                    break;
                case '?' or '*' or '+':
                    Quantifier();
                    break;
                case '{':
                    CopyBraces();
                    break;
                default:
                    Start();
                    target.Append(c);
                    at++;
                    break;
            }
        }
        return target.ToString();
    }

    private void Start() => atom = target.Length;

    // The "?" after "(" is no quantifier, nor is what belongs to it: "?:", "?=", "?<!", "?i:", "?<name>".
    private void Option()
    {
        target.Append('?');
        at++;
        while (at < source.Length && source[at] is ':' or '=' or '!' or '<' or '>' or '-' || at < source.Length && char.IsAsciiLetter(source[at]))
        {
            char c = source[at];
            target.Append(c);
            at++;
            if (c is ':' or '=' or '!' or '>')
                return;
        }
    }

    private void Quantifier()
    {
        target.Append(source[at++]);
        if (at >= source.Length)
            return;
        if (source[at] == '?')
            target.Append(source[at++]);
        else if (source[at] == '+')
        {
            at++;
            if (atom < 0)
                throw new ArgumentException("a possessive quantifier with nothing before it");
            target.Insert(atom, "(?>").Append(')');
        }
    }

    private void CopyBraces()
    {
        int end = source.IndexOf('}', at);
        bool counts = end > at + 1 && source.AsSpan(at + 1, end - at - 1).IndexOfAnyExcept("0123456789,") < 0;
        if (!counts)
        {
            Start();
            target.Append("\\{");
            at++;
            return;
        }
        string text = source[at..(end + 1)];
        // "{,n}" counts from 0.
        target.Append(text.StartsWith("{,", StringComparison.Ordinal) ? "{0" + text[1..] : text);
        at = end + 1;
    }

    private string Escape(bool inClass)
    {
        if (at + 1 >= source.Length)
            throw new ArgumentException("a backslash at the end");
        char c = source[at + 1];
        at += 2;
        switch (c)
        {
            case 'w':
                return inClass ? Word : $"[{Word}]";
            case 'W' when !inClass:
                return $"[^{Word}]";
            case 'h':
                return inClass ? "0-9a-fA-F" : "[0-9a-fA-F]";
            case 'H' when !inClass:
                return "[^0-9a-fA-F]";
            case 'A' or 'z' or 'Z' or 'b' or 'B' or 'G' when !inClass:
                return "\\" + c;
            case 'x' when at < source.Length && source[at] == '{':
                return Hex();
            case 'p' or 'P' when at < source.Length && source[at] == '{':
                return Property(c, inClass);
            default:
                return char.IsAscii(c) ? "\\" + c : c.ToString();
        }
    }

    private string Hex()
    {
        int end = source.IndexOf('}', at);
        if (end < 0 || !int.TryParse(source.AsSpan(at + 1, end - at - 1), NumberStyles.HexNumber, CultureInfo.InvariantCulture, out int code) || code > 0xFFFF)
            throw new ArgumentException("\\x{...} needs up to four hexadecimal digits");
        at = end + 1;
        return $"\\u{code:X4}";
    }

    private string Property(char sign, bool inClass)
    {
        int end = source.IndexOf('}', at);
        if (end < 0)
            throw new ArgumentException("\\p{ without }");
        string name = source[(at + 1)..end];
        at = end + 1;
        bool negative = sign == 'P';
        if (name.StartsWith('^'))
        {
            negative = !negative;
            name = name[1..];
        }
        string? set = name switch
        {
            "Han" => @"\u2E80-\u2FD5\u3005\u3007\u3021-\u3029\u3038-\u303B\u3400-\u4DBF\u4E00-\u9FFF\uF900-\uFAD9",
            "Hiragana" => @"\u3041-\u3096\u309D-\u309F",
            "Katakana" => @"\u30A1-\u30FA\u30FD-\u30FF\u31F0-\u31FF\uFF66-\uFF6F\uFF71-\uFF9D",
            "Letter" or "Alpha" => @"\p{L}",
            "Number" => @"\p{N}",
            "Punct" or "Punctuation" => @"\p{P}",
            "Symbol" => @"\p{S}",
            "Mark" => @"\p{M}",
            "Digit" => @"\p{Nd}",
            "Upper" => @"\p{Lu}",
            "Lower" => @"\p{Ll}",
            "Space" => @"\s",
            "Word" => Word,
            _ => null,
        };
        if (set is null)
            return $"\\{(negative ? 'P' : 'p')}{{{name}}}";
        if (negative && inClass)
            throw new ArgumentException($"\\P{{{name}}} inside a class is not supported");
        return inClass ? set : $"[{(negative ? "^" : "")}{set}]";
    }

    private string ClassText()
    {
        var inside = new StringBuilder("[");
        at++;
        if (at < source.Length && source[at] == '^')
        {
            inside.Append('^');
            at++;
        }
        int start = inside.Length;
        ClassBody(inside, start, depth: 0);
        return inside.Append(']').ToString();
    }

    private void ClassBody(StringBuilder inside, int start, int depth)
    {
        bool first = true;
        while (true)
        {
            if (at >= source.Length || depth > 20)
                throw new ArgumentException("a class without ]");
            char c = source[at];
            if (c == ']' && !first)
            {
                at++;
                return;
            }
            if (char.IsSurrogate(c))
                throw new ArgumentException("characters beyond U+FFFF are not supported in patterns");
            if (c == '&' && at + 1 < source.Length && source[at + 1] == '&')
                throw new ArgumentException("intersections of classes (&&) are not supported");
            if (c == '[')
                Nested(inside, start, depth);
            else if (c == '\\')
                inside.Append(Escape(inClass: true));
            else
            {
                inside.Append(c == ']' ? "\\]" : c.ToString());
                at++;
            }
            first = false;
        }
    }

    private void Nested(StringBuilder inside, int start, int depth)
    {
        if (at + 1 < source.Length && source[at + 1] is ':' or '^')
            throw new ArgumentException("[: or [^ inside a class is not supported");
        at++;
        ClassBody(inside, start, depth + 1);
    }
}
