// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Tokenizers;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// WordPiece: the longest piece that the vocabulary has, from left to right. The matching is that of
/// <see cref="WordPieceTokenizer"/>; the limit of a word's length is here, since it counts code points.
/// </summary>
internal sealed class WordPieceModel : TokenModel
{
    private readonly WordPieceTokenizer? matcher;
    private readonly WordCache cache = new(14);
    private readonly string prefix;
    private readonly int longestWord;

    public WordPieceModel(Vocabulary vocabulary, string unknown, string prefix, int longestWord, string file)
        : base(vocabulary)
    {
        this.prefix = prefix;
        this.longestWord = longestWord;
        UnknownId = vocabulary.Find(unknown)
            ?? throw Malformed.In(file, $"a vocabulary without the unknown token '{unknown}'", "that token in the vocabulary");
        matcher = MakeMatcher(vocabulary, unknown);
    }

    public override int? UnknownId { get; }

    public override void Tokenize(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        if (word.Length > longestWord)
        {
            target.Add(new ModelToken(UnknownId!.Value, 0, word.Length));
            return;
        }
        if (cache.TryGet(word, target))
            return;
        int from = target.Count;
        if (matcher is not null)
            Match(word, target);
        else
            Search(word, target);
        cache.Keep(word, target, from);
    }

    // The package reads one token a line; a vocabulary that cannot be written so is searched here.
    private WordPieceTokenizer? MakeMatcher(Vocabulary vocabulary, string unknown)
    {
        if (vocabulary.MaxId > (vocabulary.Count * 2) + 1000 || longestWord > 1000)
            return null;
        var lines = new string[vocabulary.MaxId + 1];
        foreach (var (token, id) in vocabulary.Pairs)
        {
            if (token.Length == 0 || token.AsSpan().IndexOfAny('\r', '\n') >= 0 || lines[id] is not null || HasLoneSurrogate(token))
                return null;
            lines[id] = token;
        }
        using var stream = new MemoryStream(Encoding.UTF8.GetBytes(string.Join('\n', lines)));
        var options = new WordPieceOptions
        {
            UnknownToken = unknown,
            ContinuingSubwordPrefix = prefix,
            MaxInputCharsPerWord = 2 * Math.Max(1, longestWord),
        };
        return WordPieceTokenizer.Create(stream, options);
    }

    private static bool HasLoneSurrogate(string token) => token.Any(char.IsSurrogate) && token.EnumerateRunes().Any(rune => rune == Rune.ReplacementChar);

    private void Match(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        Span<char> buffer = stackalloc char[256];
        int length = AlignedText.WriteChars(word, buffer);
        ReadOnlySpan<char> text = length < 0 ? AlignedText.ToString(word) : buffer[..length];
        AddTokens(matcher!.EncodeToTokens(text, out _, considerPreTokenization: false, considerNormalization: false), word, target);
    }

    private void Search(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        int first = target.Count;
        int from = 0;
        while (from < word.Length)
        {
            int to = Math.Min(word.Length, from + Vocabulary.LongestToken);
            int? id = null;
            for (; to > from && id is null; to--)
                id = Vocabulary.Find((from > 0 ? prefix : "") + AlignedText.ToString(word[from..to]));
            if (id is null)
            {
                target.RemoveRange(first, target.Count - first);
                target.Add(new ModelToken(UnknownId!.Value, 0, word.Length));
                return;
            }
            target.Add(new ModelToken(id.Value, from, to + 1));
            from = to + 1;
        }
    }
}
