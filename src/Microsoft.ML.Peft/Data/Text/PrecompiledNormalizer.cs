// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Globalization;
using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// SentencePiece's table of character changes: a trie of what is replaced (a double array of units of 32 bits) and the
/// replacements, each ended by a zero byte.
/// </summary>
internal sealed class CharacterMap
{
    private readonly uint[] units;
    private readonly byte[] replacements;

    private CharacterMap(uint[] units, byte[] replacements)
    {
        this.units = units;
        this.replacements = replacements;
    }

    public static CharacterMap? Read(ReadOnlySpan<byte> bytes, string where)
    {
        if (bytes.Length == 0)
            return null;
        uint size = bytes.Length >= 4 ? BitConverter.ToUInt32(bytes) : 0;
        if (size == 0 || size % 4 != 0 || size > bytes.Length - 4)
            throw Malformed.In(where, $"a character map of {bytes.Length} bytes that gives its trie {size} bytes", "a trie of whole units inside the map");
        var units = new uint[size / 4];
        for (int i = 0; i < units.Length; i++)
            units[i] = BitConverter.ToUInt32(bytes[(4 + (4 * i))..]);
        return new CharacterMap(units, bytes[(int)(4 + size)..].ToArray());
    }

    /// <summary>The replacement of the shortest, or longest, beginning of a text that has one; and how many bytes it replaces.</summary>
    public string? Find(ReadOnlySpan<byte> text, bool longest, out int length)
    {
        length = 0;
        uint place = Offset(units[0]);
        int found = -1;
        for (int i = 0; i < text.Length && text[i] != 0; i++)
        {
            place ^= text[i];
            if (place >= units.Length)
                break;
            uint unit = units[place];
            if ((unit & 0x800000FFu) != text[i])
                break;
            place ^= Offset(unit);
            if (((unit >> 8) & 1) == 0)
                continue;
            if (place >= units.Length)
                break;
            found = (int)(units[place] & 0x7FFFFFFF);
            length = i + 1;
            if (!longest)
                break;
        }
        if (found < 0 || found > replacements.Length)
            return null;
        var rest = replacements.AsSpan(found);
        int end = rest.IndexOf((byte)0);
        return Encoding.UTF8.GetString(end < 0 ? rest : rest[..end]);
    }

    private static uint Offset(uint unit) => (unit >> 10) << (int)((unit & (1u << 9)) >> 6);
}

/// <summary>
/// Applies a character map as tokenizer.json's pipelines do: graphemes of fewer than 6 bytes, then single characters.
/// </summary>
internal sealed class PrecompiledNormalizer(CharacterMap map) : TextNormalizer
{
    public static TextNormalizer Read(JsonAt node)
    {
        byte[] bytes;
        try
        {
            bytes = Convert.FromBase64String(node.TextOrNull() ?? "");
        }
        catch (FormatException e)
        {
            throw Malformed.In($"{node.File}: {node.Path}", "text that is not base64", "a character map in base64", e);
        }
        var map = CharacterMap.Read(bytes, $"{node.File}: {node.Path}");
        return map is null ? new NormalizerSequence([]) : new PrecompiledNormalizer(map);
    }

    public override AlignedText Apply(AlignedText text)
    {
        string utf16 = AlignedText.ToString(text.Span);
        var changes = new List<(int C, int Change)>(text.Length);
        bool changed = false;
        Span<byte> utf8 = stackalloc byte[16];
        for (int at = 0; at < utf16.Length;)
        {
            int length = StringInfo.GetNextTextElementLength(utf16, at);
            var grapheme = utf16.AsSpan(at, length);
            at += length;
            if (length < 6 && Encoding.UTF8.GetByteCount(grapheme) < 6
                && map.Find(utf8[..Encoding.UTF8.GetBytes(grapheme, utf8)], longest: false, out _) is string whole)
            {
                Replace(changes, Count(grapheme), whole);
                changed = true;
                continue;
            }
            foreach (var rune in grapheme.EnumerateRunes())
            {
                if (map.Find(utf8[..rune.EncodeToUtf8(utf8)], longest: false, out _) is string part)
                {
                    Replace(changes, 1, part);
                    changed = true;
                }
                else
                    changes.Add((rune.Value, 0));
            }
        }
        if (!changed)
            return text;
        var rewriter = new Rewriter(text);
        foreach (var (c, change) in changes)
            rewriter.Put(c, change);
        return rewriter.Target;
    }

    private static int Count(ReadOnlySpan<char> grapheme)
    {
        int count = 0;
        foreach (var _ in grapheme.EnumerateRunes())
            count++;
        return count;
    }

    // Characters beyond those replaced are insertions; the last one swallows those that are too many.
    private static void Replace(List<(int C, int Change)> changes, int replaced, string by)
    {
        int[] points = AlignedText.CodePoints(by);
        for (int i = 0; i < points.Length; i++)
            changes.Add((points[i], i < replaced ? 0 : 1));
        int missing = replaced - points.Length;
        if (missing > 0 && changes.Count > 0)
            changes[^1] = (changes[^1].C, changes[^1].Change - missing);
    }
}

/// <summary>SentencePiece's own way with its character map: the longest match, from left to right.</summary>
internal sealed class LongestMatchNormalizer(CharacterMap map) : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        byte[] utf8 = Encoding.UTF8.GetBytes(AlignedText.ToString(text.Span));
        var changed = new AlignedText(text.Length, text.Origin);
        Span<byte> one = stackalloc byte[4];
        int place = 0;
        for (int i = 0; i < text.Length;)
        {
            if (map.Find(utf8.AsSpan(place), longest: true, out int length) is not string replacement)
            {
                changed.AddFrom(text, i);
                place += ByteAlphabet.Encode(text.Chars[i++], one);
                continue;
            }
            int end = place + length, first = i;
            while (place < end && i < text.Length)
                place += ByteAlphabet.Encode(text.Chars[i++], one);
            foreach (int c in AlignedText.CodePoints(replacement))
                changed.Add(c, text.Starts[first], text.Ends[i - 1]);
        }
        return changed;
    }
}
