// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Tokenizers;

namespace Microsoft.ML.Peft.Data;

/// <summary>A token of one word: its id and its place in the word, in code points.</summary>
internal readonly record struct ModelToken(int Id, int From, int To, string? Surface = null);

/// <summary>Turns one word (a piece of the split text) into tokens. Safe for several threads.</summary>
internal abstract class TokenModel(Vocabulary vocabulary)
{
    public Vocabulary Vocabulary { get; } = vocabulary;

    /// <summary>What unknown text becomes; null where the model has no such token.</summary>
    public abstract int? UnknownId { get; }

    public abstract void Tokenize(ReadOnlySpan<int> word, List<ModelToken> target);

    /// <summary>Takes over the package's tokens, whose places are UTF-16 code units.</summary>
    protected static void AddTokens(IReadOnlyList<EncodedToken> tokens, ReadOnlySpan<int> word, List<ModelToken> target)
    {
        int at = 0, units = 0;
        for (int i = 0; i < tokens.Count; i++)
        {
            int from = at;
            for (int end = tokens[i].Offset.End.Value; units < end && at < word.Length; at++)
                units += word[at] > 0xFFFF ? 2 : 1;
            target.Add(new ModelToken(tokens[i].Id, from, at));
        }
    }
}

/// <summary>A whole word is one token or unknown.</summary>
internal sealed class WordLevelModel(Vocabulary vocabulary, string unknown) : TokenModel(vocabulary)
{
    public override int? UnknownId { get; } = vocabulary.Find(unknown);

    public override void Tokenize(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        int id = Vocabulary.Find(AlignedText.ToString(word)) ?? UnknownId
            ?? throw new InvalidOperationException($"The word '{AlignedText.ToString(word)}' is not in the vocabulary, and the unknown token '{unknown}' is not in it either.");
        target.Add(new ModelToken(id, 0, word.Length));
    }
}

/// <summary>
/// The tokens of words seen before. A fixed number of places, each holding the latest word of its hash: bounded, and
/// without locks, for an entry is never changed once it is there.
/// </summary>
internal sealed class WordCache(int bits)
{
    private const int LongestWord = 64;
    private readonly Entry?[] entries = new Entry?[1 << bits];

    private sealed record Entry(int[] Word, ModelToken[] Tokens);

    public bool TryGet(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        var entry = word.Length <= LongestWord ? Volatile.Read(ref entries[Place(word)]) : null;
        if (entry is null || !word.SequenceEqual(entry.Word))
            return false;
        foreach (var token in entry.Tokens)
            target.Add(token);
        return true;
    }

    public void Keep(ReadOnlySpan<int> word, List<ModelToken> target, int from)
    {
        if (word.Length > LongestWord)
            return;
        var entry = new Entry(word.ToArray(), target.GetRange(from, target.Count - from).ToArray());
        Volatile.Write(ref entries[Place(word)], entry);
    }

    private int Place(ReadOnlySpan<int> word)
    {
        uint hash = 2166136261;
        foreach (int c in word)
            hash = (hash ^ (uint)c) * 16777619;
        hash ^= hash >> 15;
        return (int)(hash & (uint)(entries.Length - 1));
    }
}
