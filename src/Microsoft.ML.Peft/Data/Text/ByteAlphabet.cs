// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Collections.Frozen;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// The printable character of each byte in byte-level vocabularies: printable Latin-1 stands for itself, the other 68
/// bytes are U+0100 onwards.
/// </summary>
internal static class ByteAlphabet
{
    public static readonly int[] Chars = Make();

    public static readonly FrozenDictionary<int, byte> Bytes =
        Chars.Select((c, b) => KeyValuePair.Create(c, (byte)b)).ToFrozenDictionary();

    private static int[] Make()
    {
        var chars = new int[256];
        int next = 256;
        for (int b = 0; b < 256; b++)
            chars[b] = b is (>= 33 and <= 126) or (>= 161 and <= 172) or (>= 174 and <= 255) ? b : next++;
        return chars;
    }

    /// <summary>Adds the byte characters of a stretch; all bytes of a character keep its alignment.</summary>
    public static void Append(AlignedText text, int from, int to, AlignedText target)
    {
        Span<byte> utf8 = stackalloc byte[4];
        for (int i = from; i < to; i++)
        {
            int c = text.Chars[i];
            if (c < 0x80)
            {
                target.AddLike(Chars[c], text, i);
                continue;
            }
            int n = Encode(c, utf8);
            for (int k = 0; k < n; k++)
                target.AddLike(Chars[utf8[k]], text, i);
        }
    }

    public static int Encode(int c, Span<byte> utf8)
    {
        if (c < 0x80)
        {
            utf8[0] = (byte)c;
            return 1;
        }
        if (c < 0x800)
        {
            utf8[0] = (byte)(0xC0 | (c >> 6));
            utf8[1] = (byte)(0x80 | (c & 0x3F));
            return 2;
        }
        if (c < 0x10000)
        {
            utf8[0] = (byte)(0xE0 | (c >> 12));
            utf8[1] = (byte)(0x80 | ((c >> 6) & 0x3F));
            utf8[2] = (byte)(0x80 | (c & 0x3F));
            return 3;
        }
        utf8[0] = (byte)(0xF0 | (c >> 18));
        utf8[1] = (byte)(0x80 | ((c >> 12) & 0x3F));
        utf8[2] = (byte)(0x80 | ((c >> 6) & 0x3F));
        utf8[3] = (byte)(0x80 | (c & 0x3F));
        return 4;
    }

    /// <summary>The bytes of a token in the alphabet, or its UTF-8 where it has a character outside.</summary>
    public static void Decode(string token, List<byte> target)
    {
        int start = target.Count;
        foreach (char c in token)
        {
            if (Bytes.TryGetValue(c, out byte b))
            {
                target.Add(b);
                continue;
            }
            target.RemoveRange(start, target.Count - start);
            target.AddRange(System.Text.Encoding.UTF8.GetBytes(token));
            return;
        }
    }
}
