// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;

namespace Microsoft.ML.Peft.Data;

/// <summary>A step that changes the text before it is split.</summary>
internal abstract class TextNormalizer
{
    public abstract AlignedText Apply(AlignedText text);
}

internal sealed class NormalizerSequence(TextNormalizer[] steps) : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        foreach (var step in steps)
            text = step.Apply(text);
        return text;
    }
}

/// <summary>BERT's cleaning: control characters out, blanks around ideographs, accents off, lower case.</summary>
internal sealed class BertTextNormalizer(bool clean, bool ideographs, bool stripAccents, bool lowerCase) : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        if (clean)
            text = Clean(text);
        if (ideographs)
            text = SpaceIdeographs(text);
        if (stripAccents)
            text = MarkRemover.Apply(UnicodeForms.Apply(text, NormalizationForm.FormD), Unicode.IsNonSpacingMark);
        return lowerCase ? LowerCaseText.Instance.Apply(text) : text;
    }

    private static AlignedText Clean(AlignedText text)
    {
        var cleaned = new AlignedText(text.Length, text.Origin);
        for (int i = 0; i < text.Length; i++)
        {
            int c = text.Chars[i];
            if (c is 0 or 0xFFFD || Unicode.IsControl(c))
                continue;
            cleaned.Add(Unicode.IsWhiteSpace(c) ? ' ' : c, text.Starts[i], text.Ends[i]);
        }
        return cleaned;
    }

    private static AlignedText SpaceIdeographs(AlignedText text)
    {
        if (!Any(text, Unicode.IsIdeograph))
            return text;
        var rewriter = new Rewriter(text);
        foreach (int c in text.Span)
        {
            if (!Unicode.IsIdeograph(c))
            {
                rewriter.Put(c, 0);
                continue;
            }
            rewriter.Put(' ', 0);
            rewriter.Put(c, 1);
            rewriter.Put(' ', 1);
        }
        return rewriter.Target;
    }

    private static bool Any(AlignedText text, Func<int, bool> test)
    {
        foreach (int c in text.Span)
        {
            if (c >= 0x3400 && test(c))
                return true;
        }
        return false;
    }
}

internal sealed class UnicodeFormNormalizer(NormalizationForm form) : TextNormalizer
{
    public override AlignedText Apply(AlignedText text) => UnicodeForms.Apply(text, form);
}

/// <summary>Lower-cases character by character; a sigma that ends a word becomes the final one where that is wanted.</summary>
internal sealed class LowerCaseText(bool finalSigma) : TextNormalizer
{
    /// <summary>Without final sigmas, as tokenizers do.</summary>
    public static readonly LowerCaseText Instance = new(finalSigma: false);

    public override AlignedText Apply(AlignedText text)
    {
        var lowered = new AlignedText(text.Length, text.Origin);
        for (int i = 0; i < text.Length; i++)
        {
            int c = text.Chars[i];
            bool final = finalSigma && c == 0x3A3 && NextCased(text.Span, i, -1) && !NextCased(text.Span, i, 1);
            lowered.AddLike(final ? 0x3C2 : Unicode.ToLower(c), text, i);
            if (c == 0x130)
                lowered.AddLike(0x307, text, i);
        }
        return lowered;
    }

    private static bool NextCased(ReadOnlySpan<int> text, int at, int step)
    {
        for (at += step; at >= 0 && at < text.Length; at += step)
        {
            if (Unicode.IsCased(text[at]))
                return true;
            if (!Unicode.IsCaseIgnorable(text[at]))
                return false;
        }
        return false;
    }
}

/// <summary>Deletes combining marks; what is composed stays.</summary>
internal sealed class MarkRemover : TextNormalizer
{
    public override AlignedText Apply(AlignedText text) => Apply(text, Unicode.IsMark);

    public static AlignedText Apply(AlignedText text, Func<int, bool> remove)
    {
        var kept = new AlignedText(text.Length, text.Origin);
        for (int i = 0; i < text.Length; i++)
        {
            if (text.Chars[i] < 0x300 || !remove(text.Chars[i]))
                kept.AddFrom(text, i);
        }
        return kept;
    }
}

internal sealed class StripNormalizer(bool left, bool right) : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        int from = 0, to = text.Length;
        while (left && from < to && Unicode.IsWhiteSpace(text.Chars[from]))
            from++;
        while (right && to > from && Unicode.IsWhiteSpace(text.Chars[to - 1]))
            to--;
        if (from == 0 && to == text.Length)
            return text;
        var kept = new AlignedText(to - from, text.Origin);
        for (int i = from; i < to; i++)
            kept.AddFrom(text, i);
        return kept;
    }
}

/// <summary>Puts a text before every stretch that is not empty, or the first alone; it stands for the first character.</summary>
internal sealed class PrependNormalizer(string prefix, bool onlyAtStart = false) : TextNormalizer
{
    private readonly int[] prefix = AlignedText.CodePoints(prefix);

    public override AlignedText Apply(AlignedText text)
    {
        if (text.Length == 0 || prefix.Length == 0 || (onlyAtStart && text.Origin > 0))
            return text;
        var longer = new AlignedText(text.Length + prefix.Length, text.Origin);
        foreach (int c in prefix)
            longer.AddLike(c, text, 0);
        for (int i = 0; i < text.Length; i++)
            longer.AddFrom(text, i);
        return longer;
    }
}

/// <summary>Replaces every match; what is put in stands for the last character that went.</summary>
internal sealed class ReplaceNormalizer(TextPattern pattern, string content) : TextNormalizer
{
    private readonly int[] content = AlignedText.CodePoints(content);

    public override AlignedText Apply(AlignedText text)
    {
        var matches = pattern.Matches(text.Span);
        if (matches.Count == 0)
            return text;
        var replaced = new AlignedText(text.Length, text.Origin);
        int done = 0;
        foreach (var (from, to) in matches)
        {
            for (; done < from; done++)
                replaced.AddFrom(text, done);
            foreach (int c in content)
                replaced.AddLike(c, text, Math.Max(0, to - 1));
            done = to;
        }
        for (; done < text.Length; done++)
            replaced.AddFrom(text, done);
        return replaced;
    }
}

/// <summary>SentencePiece's nmt rules for control characters and blanks.</summary>
internal sealed class NmtNormalizer : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        var kept = new AlignedText(text.Length, text.Origin);
        for (int i = 0; i < text.Length; i++)
        {
            int c = text.Chars[i];
            if (c is (>= 1 and <= 8) or 0xB or (>= 0xE and <= 0x1F) or 0x7F or 0x8F or 0x9F)
                continue;
            bool blank = c is 9 or 10 or 12 or 13 or 0x1680 or (>= 0x200B and <= 0x200F) or 0x2028 or 0x2029 or 0x2581 or 0xFEFF or 0xFFFD;
            kept.AddLike(blank ? ' ' : c, text, i);
        }
        return kept;
    }
}

/// <summary>Every UTF-8 byte as a printable character.</summary>
internal sealed class ByteLevelNormalizer : TextNormalizer
{
    public override AlignedText Apply(AlignedText text)
    {
        var bytes = new AlignedText(text.Length, text.Origin);
        ByteAlphabet.Append(text, 0, text.Length, bytes);
        return bytes;
    }
}
