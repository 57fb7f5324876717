// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// A text as code points, each with the span of the original text (in code points) that it stands for.
/// </summary>
internal sealed class AlignedText
{
    public int[] Chars;
    public int[] Starts;
    public int[] Ends;

    public AlignedText(int capacity, int origin)
    {
        Chars = new int[capacity];
        Starts = new int[capacity];
        Ends = new int[capacity];
        Origin = origin;
    }

    /// <summary>Where in the original this stretch begins.</summary>
    public int Origin { get; }

    public int Length { get; private set; }

    public ReadOnlySpan<int> Span => Chars.AsSpan(0, Length);

    public static AlignedText Of(ReadOnlySpan<int> original, int from, int to)
    {
        var text = new AlignedText(to - from, from) { Length = to - from };
        original[from..to].CopyTo(text.Chars);
        for (int i = 0; i < text.Length; i++)
        {
            text.Starts[i] = from + i;
            text.Ends[i] = from + i + 1;
        }
        return text;
    }

    public AlignedText Slice(int from, int to)
    {
        if (from == 0 && to == Length)
            return this;
        var slice = new AlignedText(to - from, Starts[from]);
        for (int i = from; i < to; i++)
            slice.AddFrom(this, i);
        return slice;
    }

    public void Add(int c, int start, int end)
    {
        if (Length == Chars.Length)
            Grow();
        Chars[Length] = c;
        Starts[Length] = start;
        Ends[Length++] = end;
    }

    public void AddFrom(AlignedText source, int index) => AddLike(source.Chars[index], source, index);

    /// <summary>Adds a character with the alignment of one of another text.</summary>
    public void AddLike(int c, AlignedText source, int index) => Add(c, source.Starts[index], source.Ends[index]);

    private void Grow()
    {
        int size = Math.Max(16, Chars.Length * 2);
        Array.Resize(ref Chars, size);
        Array.Resize(ref Starts, size);
        Array.Resize(ref Ends, size);
    }

    /// <summary>The code points of a string; a lone surrogate counts as U+FFFD.</summary>
    public static int[] CodePoints(string text)
    {
        var points = new int[text.Length];
        int n = 0;
        for (int i = 0; i < text.Length; i++)
        {
            char c = text[i];
            if (!char.IsSurrogate(c))
                points[n++] = c;
            else if (char.IsHighSurrogate(c) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]))
                points[n++] = char.ConvertToUtf32(c, text[++i]);
            else
                points[n++] = 0xFFFD;
        }
        if (n != points.Length)
            Array.Resize(ref points, n);
        return points;
    }

    public static string ToString(ReadOnlySpan<int> points)
    {
        int length = 0;
        foreach (int p in points)
            length += p > 0xFFFF ? 2 : 1;
        if (length == 0)
            return "";
        char[] chars = new char[length];
        WriteChars(points, chars);
        return new string(chars);
    }

    /// <summary>Writes UTF-16 and returns its length, or -1 where the target is too small.</summary>
    public static int WriteChars(ReadOnlySpan<int> points, Span<char> target)
    {
        int n = 0;
        foreach (int p in points)
        {
            if (p <= 0xFFFF)
            {
                if (n >= target.Length)
                    return -1;
                target[n++] = (char)p;
                continue;
            }
            if (n + 1 >= target.Length)
                return -1;
            target[n++] = (char)(0xD800 + ((p - 0x10000) >> 10));
            target[n++] = (char)(0xDC00 + ((p - 0x10000) & 0x3FF));
        }
        return n;
    }
}

/// <summary>
/// Writes a changed copy of a text and keeps the alignment. Each character put says how many characters of the source it
/// uses up: a change of 0 replaces one, 1 is an insertion, -n replaces one and swallows n more. An inserted character
/// stands for what was used up last.
/// </summary>
internal ref struct Rewriter(AlignedText source)
{
    private int position;

    public readonly AlignedText Source => source;

    public AlignedText Target { get; } = new(source.Length + 8, source.Origin);

    public void Put(int c, int change)
    {
        if (change > 0)
        {
            Insert(c);
            return;
        }
        int at = Math.Min(position, source.Length - 1);
        Target.Add(c, source.Starts[at], source.Ends[at]);
        position += 1 - change;
    }

    public void Skip(int count) => position += count;

    private readonly void Insert(int c)
    {
        if (position < 1 || source.Length == 0)
            Target.Add(c, source.Origin, source.Origin);
        else
            Target.AddLike(c, source, Math.Min(position, source.Length) - 1);
    }
}
