// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The tokens of one text before special tokens are put around them, column by column.</summary>
internal sealed class TokenRun
{
    private const string Blank = "\u0120";

    public List<int> Ids { get; private init; } = [];

    public List<(int Start, int End)> Offsets { get; private init; } = [];

    public List<int> Words { get; private init; } = [];

    /// <summary>Text of the tokens that are not spelt as in the vocabulary; null for the others.</summary>
    public List<string?> Surfaces { get; private init; } = [];

    public int Count => Ids.Count;

    /// <summary>Whether this is a window beyond the first.</summary>
    public bool Overflows { get; private init; }

    public void Add(int id, int start, int end, int word, string? surface)
    {
        Ids.Add(id);
        Offsets.Add((start, end));
        Words.Add(word);
        Surfaces.Add(surface);
    }

    private TokenRun Slice(int from, int to, bool overflows = false) => new()
    {
        Overflows = overflows,
        Ids = Ids.GetRange(from, to - from),
        Offsets = Offsets.GetRange(from, to - from),
        Words = Words.GetRange(from, to - from),
        Surfaces = Surfaces.GetRange(from, to - from),
    };

    /// <summary>The first window and, where wanted, those that overflow, each of at most the given length.</summary>
    public List<TokenRun> Windows(int length, TextSide side, int stride, bool overflow)
    {
        if (length >= Count)
            return [this];
        if (length == 0)
            return overflow ? [Slice(0, 0), Slice(0, Count, overflows: true)] : [Slice(0, 0)];
        if (stride >= length)
            throw new ArgumentException($"The stride {stride} must be smaller than the {length} tokens that remain of the text beside the special tokens.", nameof(stride));
        var windows = new List<TokenRun>();
        int step = length - stride;
        for (int i = 0; i < Count; i += step)
        {
            int from = side == TextSide.Right ? i : Math.Max(0, Count - i - length);
            int to = side == TextSide.Right ? Math.Min(Count, i + length) : Count - i;
            windows.Add(Slice(from, to, overflows: i > 0));
            if (!overflow || (side == TextSide.Right ? to == Count : from == 0))
                break;
        }
        return windows;
    }

    /// <summary>Leaves blanks at both ends of a token out of its offsets.</summary>
    public TokenRun Trimmed(Func<int, string?> tokenOf, bool prefixSpace)
    {
        var trimmed = new List<(int Start, int End)>(Count);
        for (int i = 0; i < Count; i++)
        {
            string text = Surfaces[i] ?? tokenOf(Ids[i]) ?? "";
            var (start, end) = Offsets[i];
            int before = 0, after = 0;
            while (before < text.Length && IsBlank(text[before]))
                before++;
            while (after < text.Length && IsBlank(text[text.Length - 1 - after]))
                after++;
            if (before > 0)
            {
                if (prefixSpace && (i == 0 || start == 0))
                    before--;
                start = Math.Min(start + before, end);
            }
            if (after > 0 && end >= after)
                end = Math.Max(end - after, start);
            trimmed.Add((start, end));
        }
        return new TokenRun { Ids = Ids, Offsets = trimmed, Words = Words, Surfaces = Surfaces, Overflows = Overflows };
    }

    private static bool IsBlank(char c) => c == Blank[0] || Unicode.IsWhiteSpace(c);
}
