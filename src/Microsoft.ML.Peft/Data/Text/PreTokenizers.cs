// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>A text and how it is split so far. Pieces are never empty.</summary>
internal sealed class TextPieces(AlignedText text)
{
    public AlignedText Text { get; set; } = text;

    public List<(int From, int To)> Spans { get; set; } = text.Length == 0 ? [] : [(0, text.Length)];
}

/// <summary>A step that splits the text into the words that the model sees.</summary>
internal abstract class PreTokenizer
{
    public abstract void Apply(TextPieces pieces);
}

internal sealed class PreTokenizerSequence(PreTokenizer[] steps) : PreTokenizer
{
    public override void Apply(TextPieces pieces)
    {
        foreach (var step in steps)
            step.Apply(pieces);
    }
}

/// <summary>What becomes of the matches when a piece is split at them.</summary>
internal enum SplitBehavior
{
    Removed,
    Isolated,
    MergedWithPrevious,
    MergedWithNext,
    Contiguous,
}

/// <summary>Splits at the matches of a pattern, or, inverted, at what lies between them.</summary>
internal sealed class SplitPreTokenizer(TextPattern pattern, SplitBehavior behavior, bool invert = false) : PreTokenizer
{
    public override void Apply(TextPieces pieces)
    {
        var result = new List<(int From, int To)>(pieces.Spans.Count * 2);
        foreach (var (from, to) in pieces.Spans)
            Split(pieces.Text.Span[from..to], from, result);
        pieces.Spans = result;
    }

    private void Split(ReadOnlySpan<int> piece, int offset, List<(int From, int To)> result)
    {
        var matches = pattern.Matches(piece);
        if (matches.Count == 0 && !(invert && behavior == SplitBehavior.Removed))
        {
            result.Add((offset, offset + piece.Length));
            return;
        }
        var parts = new List<(int From, int To, bool Match)>((matches.Count * 2) + 1);
        int done = 0;
        foreach (var (from, to) in matches)
        {
            if (from > done)
                parts.Add((done, from, invert));
            parts.Add((from, to, !invert));
            done = to;
        }
        if (done < piece.Length)
            parts.Add((done, piece.Length, invert));
        Arrange(parts, offset, result);
    }

    private void Arrange(List<(int From, int To, bool Match)> parts, int offset, List<(int From, int To)> result)
    {
        switch (behavior)
        {
            case SplitBehavior.Removed:
                foreach (var (from, to, match) in parts)
                {
                    if (!match)
                        result.Add((offset + from, offset + to));
                }
                return;
            case SplitBehavior.Isolated:
                foreach (var (from, to, _) in parts)
                    result.Add((offset + from, offset + to));
                return;
            case SplitBehavior.MergedWithNext:
                MergeNext(parts, offset, result);
                return;
        }
        int first = result.Count;
        bool before = false;
        foreach (var (from, to, match) in parts)
        {
            bool join = behavior == SplitBehavior.Contiguous ? match == before : match && !before;
            if (join && result.Count > first)
                result[^1] = (result[^1].From, offset + to);
            else
                result.Add((offset + from, offset + to));
            before = match;
        }
    }

    private static void MergeNext(List<(int From, int To, bool Match)> parts, int offset, List<(int From, int To)> result)
    {
        int first = result.Count;
        bool after = false;
        for (int i = parts.Count - 1; i >= 0; i--)
        {
            var (from, to, match) = parts[i];
            if (match && !after && result.Count > first)
                result[^1] = (offset + from, result[^1].To);
            else
                result.Add((offset + from, offset + to));
            after = match;
        }
        result.Reverse(first, result.Count - first);
    }
}

/// <summary>BERT's split: blanks go, each punctuation character stands alone.</summary>
internal sealed class BertPreTokenizer : PreTokenizer
{
    public override void Apply(TextPieces pieces)
    {
        var result = new List<(int From, int To)>(pieces.Spans.Count * 8);
        var text = pieces.Text.Span;
        foreach (var (from, to) in pieces.Spans)
        {
            int start = from;
            for (int i = from; i < to; i++)
            {
                bool blank = Unicode.IsWhiteSpace(text[i]);
                if (!blank && !Unicode.IsPunctuation(text[i]))
                    continue;
                if (i > start)
                    result.Add((start, i));
                if (!blank)
                    result.Add((i, i + 1));
                start = i + 1;
            }
            if (to > start)
                result.Add((start, to));
        }
        pieces.Spans = result;
    }
}

/// <summary>Writes "▁" for spaces and, by its scheme, before the piece; then splits before each "▁".</summary>
internal sealed class MetaspacePreTokenizer(int mark, MetaspaceScheme scheme, bool split) : PreTokenizer
{
    private readonly SplitPreTokenizer splitter = new(new CharPattern(c => c == mark), SplitBehavior.MergedWithNext);

    public override void Apply(TextPieces pieces)
    {
        var source = pieces.Text;
        var marked = new AlignedText(source.Length + pieces.Spans.Count, source.Origin);
        var spans = new List<(int From, int To)>(pieces.Spans.Count);
        foreach (var (from, to) in pieces.Spans)
        {
            int start = marked.Length;
            bool prefix = source.Chars[from] != mark && source.Chars[from] != ' '
                && (scheme == MetaspaceScheme.Always || (scheme == MetaspaceScheme.First && (from == 0 ? source.Origin : source.Starts[from]) == 0));
            if (prefix)
                marked.AddLike(mark, source, from);
            for (int i = from; i < to; i++)
                marked.AddLike(source.Chars[i] == ' ' ? mark : source.Chars[i], source, i);
            spans.Add((start, marked.Length));
        }
        pieces.Text = marked;
        pieces.Spans = spans;
        if (split)
            splitter.Apply(pieces);
    }
}

internal enum MetaspaceScheme
{
    Always,
    First,
    Never,
}

/// <summary>GPT-2's split, if wanted, and every byte as a printable character.</summary>
internal sealed class ByteLevelPreTokenizer(bool addPrefixSpace, bool useRegex) : PreTokenizer
{
    private readonly SplitPreTokenizer splitter = new(new Gpt2Pattern(), SplitBehavior.Isolated);

    public override void Apply(TextPieces pieces)
    {
        if (addPrefixSpace)
            AddSpaces(pieces);
        if (useRegex)
            splitter.Apply(pieces);
        var bytes = new AlignedText(pieces.Text.Length + 8, pieces.Text.Origin);
        var spans = new List<(int From, int To)>(pieces.Spans.Count);
        foreach (var (from, to) in pieces.Spans)
        {
            int start = bytes.Length;
            ByteAlphabet.Append(pieces.Text, from, to, bytes);
            spans.Add((start, bytes.Length));
        }
        pieces.Text = bytes;
        pieces.Spans = spans;
    }

    private static void AddSpaces(TextPieces pieces)
    {
        var source = pieces.Text;
        var spaced = new AlignedText(source.Length + pieces.Spans.Count, source.Origin);
        var spans = new List<(int From, int To)>(pieces.Spans.Count);
        foreach (var (from, to) in pieces.Spans)
        {
            int start = spaced.Length;
            if (source.Chars[from] != ' ')
                spaced.AddLike(' ', source, from);
            for (int i = from; i < to; i++)
                spaced.AddFrom(source, i);
            spans.Add((start, spaced.Length));
        }
        pieces.Text = spaced;
        pieces.Spans = spans;
    }
}
