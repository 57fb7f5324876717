// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>What a BPE model does beside merging.</summary>
internal sealed record BpeOptions
{
    public string? Unknown { get; init; }

    public string? Prefix { get; init; }

    public string? WordEnd { get; init; }

    public bool FuseUnknown { get; init; }

    public bool ByteFallback { get; init; }

    public bool IgnoreMerges { get; init; }
}

/// <summary>Byte-pair encoding: characters, of which the pair that stands first in the list of merges is joined, again and again.</summary>
internal sealed class BpeModel : TokenModel
{
    private readonly BpeOptions options;
    private readonly Dictionary<long, (int Rank, int Id)> merges;
    private readonly WordCache cache = new(15);
    private readonly Dictionary<int, int>[] charIds = [[], [], [], []];
    private readonly int[]? byteIds;

    public BpeModel(Vocabulary vocabulary, IReadOnlyList<(int Left, int Right, int Joined)> merges, BpeOptions options)
        : base(vocabulary)
    {
        this.options = options;
        this.merges = new Dictionary<long, (int, int)>(merges.Count);
        for (int rank = 0; rank < merges.Count; rank++)
            this.merges[Key(merges[rank].Left, merges[rank].Right)] = (rank, merges[rank].Joined);
        UnknownId = options.Unknown is null ? null : vocabulary.Find(options.Unknown);
        IndexChars();
        byteIds = options.ByteFallback ? ByteIds(vocabulary) : null;
    }

    public override int? UnknownId { get; }

    private static long Key(int left, int right) => ((long)left << 32) | (uint)right;

    // Ids of single characters: plain, with the prefix of what continues a word, with the mark of its end, with both.
    private void IndexChars()
    {
        string prefix = options.Prefix ?? "";
        string end = options.WordEnd ?? "";
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
        var options = new BpeOptions
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
            merges.Add(Merge(vocabulary, left, right, options.Prefix, $"{item.File}: {item.Path}"));
        }
        return new BpeModel(vocabulary, merges, options);
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
        if (options.IgnoreMerges && Vocabulary.Find(AlignedText.ToString(word)) is int whole)
        {
            target.Add(new ModelToken(whole, 0, word.Length));
            return;
        }
        if (cache.TryGet(word, target))
            return;
        int from = target.Count;
        var symbols = new BpeSymbols(word.Length);
        Characters(word, symbols);
        symbols.Merge(merges);
        symbols.AddTo(target, word);
        cache.Keep(word, target, from);
    }

    private void Characters(ReadOnlySpan<int> word, BpeSymbols symbols)
    {
        int unknown = 0;
        Span<byte> utf8 = stackalloc byte[4];
        for (int i = 0; i < word.Length; i++)
        {
            int form = (i > 0 && options.Prefix is { Length: > 0 } ? 1 : 0) | (i == word.Length - 1 && options.WordEnd is { Length: > 0 } ? 2 : 0);
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
            if (options.Unknown is null)
                continue;
            if (!options.FuseUnknown)
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
        symbols.Add(UnknownId ?? throw new InvalidOperationException($"A character is not in the vocabulary, nor is the unknown token '{options.Unknown}'."), unknown);
        unknown = 0;
    }
}

/// <summary>The symbols of a word while they are merged: a linked list with a queue of what may be joined.</summary>
internal sealed class BpeSymbols(int capacity)
{
    private readonly List<Symbol> symbols = new(capacity);

    private struct Symbol
    {
        public int Id;
        public int Length;
        public int Previous;
        public int Next;
        public bool Gone;
    }

    /// <summary>Adds a symbol that takes up a number of code points (none for all but the last byte of a character).</summary>
    public void Add(int id, int length)
    {
        int at = symbols.Count;
        if (at > 0)
        {
            var before = symbols[at - 1];
            before.Next = at;
            symbols[at - 1] = before;
        }
        symbols.Add(new Symbol { Id = id, Length = length, Previous = at - 1, Next = -1 });
    }

    public void Merge(Dictionary<long, (int Rank, int Id)> merges)
    {
        if (symbols.Count < 2)
            return;
        var queue = new PriorityQueue<(int At, int Left, int Right, int Joined), (int Rank, int At)>();
        for (int i = 0; i + 1 < symbols.Count; i++)
            Offer(i, merges, queue);
        while (queue.TryDequeue(out var merge, out _))
        {
            var left = symbols[merge.At];
            if (left.Gone || left.Id != merge.Left || left.Next < 0 || symbols[left.Next].Id != merge.Right)
                continue;
            Join(merge.At, merge.Joined);
            if (left.Previous >= 0)
                Offer(left.Previous, merges, queue);
            Offer(merge.At, merges, queue);
        }
    }

    private void Join(int at, int joined)
    {
        var left = symbols[at];
        int gone = left.Next;
        var right = symbols[gone];
        left.Id = joined;
        left.Length += right.Length;
        left.Next = right.Next;
        symbols[at] = left;
        right.Gone = true;
        symbols[gone] = right;
        if (left.Next < 0)
            return;
        var after = symbols[left.Next];
        after.Previous = at;
        symbols[left.Next] = after;
    }

    private void Offer(int at, Dictionary<long, (int Rank, int Id)> merges, PriorityQueue<(int At, int Left, int Right, int Joined), (int Rank, int At)> queue)
    {
        int next = symbols[at].Next;
        if (next < 0)
            return;
        int left = symbols[at].Id, right = symbols[next].Id;
        if (merges.TryGetValue(((long)left << 32) | (uint)right, out var merge))
            queue.Enqueue((at, left, right, merge.Id), (merge.Rank, at));
    }

    public void AddTo(List<ModelToken> target, ReadOnlySpan<int> word)
    {
        int place = 0;
        for (int i = 0; i >= 0 && i < symbols.Count; i = symbols[i].Next)
        {
            var symbol = symbols[i];
            // A byte that is not its character's last one has that character's span.
            int to = Math.Min(word.Length, Math.Max(place + symbol.Length, place + 1));
            int from = Math.Min(place, word.Length - 1);
            target.Add(new ModelToken(symbol.Id, from, to));
            place += symbol.Length;
        }
    }
}
