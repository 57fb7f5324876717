// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

public sealed partial class TextTokenizer
{
    /// <summary>Writes tokens as text, as the family does: blanks, bytes and pieces of words put together.</summary>
    /// <param name="ids">Token ids; an id that the vocabulary lacks is left out.</param>
    /// <param name="skipSpecial">Leave special tokens out.</param>
    /// <returns>The text.</returns>
    public string Decode(IEnumerable<int> ids, bool skipSpecial = true)
    {
        ArgumentNullException.ThrowIfNull(ids);
        var tokens = new List<string>();
        foreach (int id in ids)
        {
            string? token = TokenOf(id);
            if (token is not null && !(skipSpecial && IsSpecial(id)))
                tokens.Add(token);
        }
        string text = pipeline.Decoder is null ? string.Join(' ', tokens) : string.Concat(pipeline.Decoder.Apply(tokens));
        // Word-end marks inside byte-level text (CLIP) are written as spaces at last.
        return pipeline.DecodedWordEnd is { Length: > 0 } end ? text.Replace(end, " ", StringComparison.Ordinal).Trim() : text;
    }

    /// <summary>Takes the blanks away that stand before punctuation and English contractions in decoded text.</summary>
    /// <param name="text">Decoded text.</param>
    /// <returns>The text in ordinary typography.</returns>
    public static string CleanUp(string text)
    {
        ArgumentNullException.ThrowIfNull(text);
        return text.Replace(" .", ".").Replace(" ?", "?").Replace(" !", "!").Replace(" ,", ",").Replace(" ' ", "'")
            .Replace(" n't", "n't").Replace(" 'm", "'m").Replace(" 's", "'s").Replace(" 've", "'ve").Replace(" 're", "'re");
    }

    private List<TextEncoding> Finish(TokenRun[] runs, IReadOnlyList<string>[] sources, bool byWords, TextEncodeOptions options, bool overflow)
    {
        var post = pipeline.Post;
        bool pair = runs.Length > 1;
        var windows = runs.Select(run => new List<TokenRun> { run }).ToArray();
        if (options.MaxTokens is int most)
        {
            int room = most - (options.AddSpecialTokens ? post.SpecialCount(pair) : 0);
            if (room < 0)
                throw new ArgumentException($"{most} tokens are too few: the special tokens alone are {post.SpecialCount(pair)}.", nameof(options));
            Cut(runs, windows, room, options, overflow);
        }
        var encodings = new List<TextEncoding>();
        foreach (var combination in Combine(windows))
        {
            var parts = post.TrimOffsets ? combination.Select(run => run.Trimmed(TokenOf, post.PrefixSpace)).ToArray() : combination;
            encodings.Add(TextEncoding.Make(this, post, parts, sources, byWords, options.AddSpecialTokens));
        }
        return encodings;
    }

    private static void Cut(TokenRun[] runs, List<TokenRun>[] windows, int room, TextEncodeOptions options, bool overflow)
    {
        int total = runs.Sum(run => run.Count);
        if (total <= room)
            return;
        int[] lengths = runs.Select(run => run.Count).ToArray();
        if (options.Truncation == TextTruncation.LongestFirst)
        {
            if (runs.Length == 1)
                lengths[0] = room;
            else
                (lengths[0], lengths[1]) = LongestFirst(lengths[0], lengths[1], room);
        }
        else
        {
            int target = options.Truncation == TextTruncation.OnlyFirst ? 0 : 1;
            if (target >= runs.Length)
                throw new ArgumentException("Only the second text may be cut, but there is none.", nameof(options));
            int left = lengths[target] - (total - room);
            if (left <= 0)
                throw new ArgumentException($"Cutting the {(target == 0 ? "first" : "second")} text alone cannot keep the limit of {options.MaxTokens} tokens: {lengths[target]} tokens would have to lose {total - room}.", nameof(options));
            lengths[target] = left;
        }
        for (int i = 0; i < runs.Length; i++)
            windows[i] = runs[i].Windows(lengths[i], options.TruncationSide, options.Stride, overflow);
    }

    private static (int First, int Second) LongestFirst(int first, int second, int room)
    {
        int small = Math.Min(first, second);
        int large = small > room ? small : Math.Max(small, room - small);
        if (small + large > room)
        {
            small = room / 2;
            large = small + (room % 2);
        }
        return first > second ? (large, small) : (small, large);
    }

    // First windows together; then each further window of the first text with all of the second; then the first window of
    // the first text with the further ones of the second.
    private static IEnumerable<TokenRun[]> Combine(List<TokenRun>[] windows)
    {
        if (windows.Length == 1)
            return windows[0].Select(run => new[] { run });
        var first = windows[0];
        var second = windows[1];
        var combinations = new List<TokenRun[]> { new[] { first[0], second[0] } };
        foreach (var run in first.Skip(1))
            combinations.AddRange(second.Select(other => new[] { run, other }));
        combinations.AddRange(second.Skip(1).Select(other => new[] { first[0], other }));
        return combinations;
    }
}
