// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Tokenizers;

namespace Microsoft.ML.Peft.Data;

/// <summary>What a BPE model does beside merging.</summary>
internal sealed record BpeRules
{
    public string? Unknown { get; init; }

    public string? Prefix { get; init; }

    public string? WordEnd { get; init; }

    public bool FuseUnknown { get; init; }

    public bool ByteFallback { get; init; }

    public bool IgnoreMerges { get; init; }
}

/// <summary>
/// Byte-pair encoding: characters, of which the pair that stands first in the list of merges is joined, again and again.
/// Words of plain models (byte-level ones among them) are merged by <see cref="BpeTokenizer"/>; byte fallback, very long
/// words, and vocabularies that it refuses, are merged here.
/// </summary>
internal sealed class BpeModel : TokenModel
{
    private const int LongestMerged = 128;
    private readonly BpeRules rules;
    private readonly Dictionary<long, (int Rank, int Id)> merges;
    private readonly BpeTokenizer? merger;
    private readonly WordCache cache = new(15);
    private readonly Dictionary<int, int>[] charIds = [[], [], [], []];
    private readonly int[]? byteIds;

    public BpeModel(Vocabulary vocabulary, IReadOnlyList<(int Left, int Right, int Joined)> merges, BpeRules rules)
        : base(vocabulary)
    {
        this.rules = rules;
        this.merges = new Dictionary<long, (int, int)>(merges.Count);
        for (int rank = 0; rank < merges.Count; rank++)
            this.merges[Key(merges[rank].Left, merges[rank].Right)] = (rank, merges[rank].Joined);
        UnknownId = rules.Unknown is null ? null : vocabulary.Find(rules.Unknown);
        IndexChars();
        merger = MakeMerger(merges);
        byteIds = rules.ByteFallback ? ByteIds(vocabulary) : null;
    }

    public override int? UnknownId { get; }

    private static long Key(int left, int right) => ((long)left << 32) | (uint)right;

    // Ids of single characters: plain, with the prefix of what continues a word, with the mark of its end, with both.
    private void IndexChars()
    {
        string prefix = rules.Prefix ?? "";
        string end = rules.WordEnd ?? "";
        foreach (var (token, id) in Vocabulary.Pairs)
        {
            for (int form = 0; form < 4; form++)
            {
                string before = (form & 1) != 0 ? prefix : "", after = (form & 2) != 0 ? end : "";
                int length = token.Length - before.Length - after.Length;
                if (length is not (1 or 2) || !token.StartsWith(before, StringComparison.Ordinal) || !token.EndsWith(after, StringComparison.Ordinal))
                    continue;
                int[] points = AlignedText.CodePoints(token.Substring(before.Length, length));
                if (points.Length == 1 && !(length == 1 && char.IsSurrogate(token[before.Length])))
                    charIds[form][points[0]] = id;
            }
        }
    }

    private static int[] ByteIds(Vocabulary vocabulary)
    {
        var ids = new int[256];
        for (int b = 0; b < 256; b++)
            ids[b] = vocabulary.Find(ByteTokens.Name(b)) ?? -1;
        return ids;
    }

    public static BpeModel Read(JsonAt node)
    {
        var vocabulary = Vocabulary.Read(node["vocab"]);
        var rules = new BpeRules
        {
            Unknown = node["unk_token"].TextOrNull(),
            Prefix = node["continuing_subword_prefix"].TextOrNull(),
            WordEnd = node["end_of_word_suffix"].TextOrNull(),
            FuseUnknown = node["fuse_unk"].Flag(false),
            ByteFallback = node["byte_fallback"].Flag(false),
            IgnoreMerges = node["ignore_merges"].Flag(false),
        };
        var merges = new List<(int, int, int)>();
        foreach (var item in node["merges"].Items())
        {
            var (left, right) = MergePair(item);
            merges.Add(Merge(vocabulary, left, right, rules.Prefix, $"{item.File}: {item.Path}"));
        }
        return new BpeModel(vocabulary, merges, rules);
    }

    // "a b" in older files, ["a", "b"] in newer ones.
    private static (string Left, string Right) MergePair(JsonAt item)
    {
        if (item.IsString)
            return SplitMerge(item.Text()) ?? throw item.Bad("two tokens with a space between");
        var parts = item.Items().ToArray();
        return parts.Length == 2 ? (parts[0].Text(), parts[1].Text()) : throw item.Bad("a pair of tokens");
    }

    public static (string Left, string Right)? SplitMerge(string line)
    {
        int space = line.IndexOf(' ');
        return space > 0 && space < line.Length - 1 && line.IndexOf(' ', space + 1) < 0 ? (line[..space], line[(space + 1)..]) : null;
    }

    public static (int Left, int Right, int Joined) Merge(Vocabulary vocabulary, string left, string right, string? prefix, string where)
    {
        string rest = prefix is { Length: > 0 } && right.StartsWith(prefix, StringComparison.Ordinal) ? right[prefix.Length..] : right;
        return (Id(left), Id(right), Id(left + rest));

        int Id(string token) => vocabulary.Find(token)
            ?? throw Malformed.In(where, $"a merge of '{left}' and '{right}', but '{token}' is not in the vocabulary", "only tokens of the vocabulary");
    }

    public override void Tokenize(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        if (rules.IgnoreMerges && Vocabulary.Find(AlignedText.ToString(word)) is int whole)
        {
            target.Add(new ModelToken(whole, 0, word.Length));
            return;
        }
        if (cache.TryGet(word, target))
            return;
        int from = target.Count;
        if (merger is not null && word.Length <= LongestMerged)
            MergeByPackage(merger, word, target);
        else
        {
            var symbols = new BpeSymbols(word.Length);
            Characters(word, symbols);
            symbols.Merge(merges);
            symbols.AddTo(target, word);
        }
        cache.Keep(word, target, from);
    }

    private static void MergeByPackage(BpeTokenizer merger, ReadOnlySpan<int> word, List<ModelToken> target)
    {
        Span<char> buffer = stackalloc char[2 * LongestMerged];
        ReadOnlySpan<char> text = buffer[..AlignedText.WriteChars(word, buffer)];
        AddTokens(merger.EncodeToTokens(text, out _, considerPreTokenization: false, considerNormalization: false), word, target);
    }

    // The package reads merges as "a b", and wants every pair and every id once.
    private BpeTokenizer? MakeMerger(IReadOnlyList<(int Left, int Right, int Joined)> pairs)
    {
        if (rules.ByteFallback || merges.Count != pairs.Count || Vocabulary.HasSharedIds || (rules.Unknown is not null && UnknownId is null))
            return null;
        var lines = new string[pairs.Count];
        int prefix = rules.Prefix?.Length ?? 0;
        for (int i = 0; i < lines.Length; i++)
        {
            string left = Vocabulary.Token(pairs[i].Left)!, right = Vocabulary.Token(pairs[i].Right)!;
            bool plain = left.Length > 0 && right.Length > prefix && !left.Contains(' ') && !right.Contains(' ')
                && Vocabulary.Token(pairs[i].Joined) == left + right[prefix..];
            if (!plain)
                return null;
            lines[i] = left + " " + right;
        }
        return BpeTokenizer.Create(new BpeOptions(Vocabulary.Pairs)
        {
            Merges = lines,
            UnknownToken = rules.Unknown,
            FuseUnknownTokens = rules.FuseUnknown,
            // An empty prefix or suffix is none.
            ContinuingSubwordPrefix = prefix > 0 ? rules.Prefix : null,
            EndOfWordSuffix = rules.WordEnd is { Length: > 0 } ? rules.WordEnd : null,
        });
    }

    private void Characters(ReadOnlySpan<int> word, BpeSymbols symbols)
    {
        int unknown = 0;
        Span<byte> utf8 = stackalloc byte[4];
        for (int i = 0; i < word.Length; i++)
        {
            int form = (i > 0 && rules.Prefix is { Length: > 0 } ? 1 : 0) | (i == word.Length - 1 && rules.WordEnd is { Length: > 0 } ? 2 : 0);
            if (charIds[form].TryGetValue(word[i], out int id))
            {
                FlushUnknown(ref unknown, symbols);
                symbols.Add(id, 1);
                continue;
            }
            if (byteIds is not null && form == 0 && AllBytes(utf8[..ByteAlphabet.Encode(word[i], utf8)]))
            {
                int n = ByteAlphabet.Encode(word[i], utf8);
                for (int k = 0; k < n; k++)
                    symbols.Add(byteIds[utf8[k]], k == n - 1 ? 1 : 0);
                continue;
            }
            if (rules.Unknown is null)
                continue;
            if (!rules.FuseUnknown)
                FlushUnknown(ref unknown, symbols);
            unknown++;
        }
        FlushUnknown(ref unknown, symbols);
    }

    private bool AllBytes(ReadOnlySpan<byte> utf8)
    {
        foreach (byte b in utf8)
        {
            if (byteIds![b] < 0)
                return false;
        }
        return true;
    }

    private void FlushUnknown(ref int unknown, BpeSymbols symbols)
    {
        if (unknown == 0)
            return;
        symbols.Add(UnknownId ?? throw new InvalidOperationException($"A character is not in the vocabulary, nor is the unknown token '{rules.Unknown}'."), unknown);
        unknown = 0;
    }
}
