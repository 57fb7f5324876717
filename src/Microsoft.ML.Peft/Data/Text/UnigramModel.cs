// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>Unigram language model: of all ways to cut a word into pieces, the one with the highest sum of scores.</summary>
internal sealed class UnigramModel : TokenModel
{
    // What an unknown character costs beyond the lowest score.
    private const double UnknownPenalty = 10;
    private readonly double[] scores;
    private readonly Dictionary<long, int> children = [];
    private readonly List<int> idOfNode = [-1];
    private readonly WordCache cache = new(15);
    private readonly double unknownScore;
    private readonly int[]? byteIds;

    public UnigramModel(IReadOnlyList<(string Piece, double Score)> pieces, int? unknownId, bool byteFallback)
        : base(Index(pieces))
    {
        scores = pieces.Select(piece => piece.Score).ToArray();
        unknownScore = scores.Min() - UnknownPenalty;
        UnknownId = unknownId;
        foreach (var (piece, id) in Vocabulary.Pairs)
            AddToTrie(piece, id);
        if (byteFallback)
            byteIds = Enumerable.Range(0, 256).Select(b => Vocabulary.Find(ByteTokens.Name(b)) ?? -1).ToArray();
    }

    public override int? UnknownId { get; }

    public static UnigramModel Read(JsonAt node)
    {
        var pieces = new List<(string, double)>();
        foreach (var item in node["vocab"].Items())
        {
            if (item.Value.ValueKind != System.Text.Json.JsonValueKind.Array || item.Value.GetArrayLength() != 2)
                throw item.Bad("a pair of piece and score");
            double score = item.At(1).Number();
            pieces.Add((item.At(0).Text(), double.IsFinite(score) ? score : throw item.At(1).Bad("a finite score")));
        }
        if (pieces.Count == 0)
            throw node["vocab"].Bad("at least one piece");
        int? unknown = node["unk_id"].CountOrNull();
        if (unknown >= pieces.Count)
            throw node["unk_id"].Bad($"an index below {pieces.Count}");
        return new UnigramModel(pieces, unknown, node["byte_fallback"].Flag(false));
    }

    private static Vocabulary Index(IReadOnlyList<(string Piece, double Score)> pieces)
    {
        var vocabulary = new Vocabulary(pieces.Count);
        for (int id = 0; id < pieces.Count; id++)
            vocabulary.Set(pieces[id].Piece, id);
        return vocabulary;
    }

    private void AddToTrie(string piece, int id)
    {
        int node = 0;
        foreach (int c in AlignedText.CodePoints(piece))
        {
            long key = ((long)node << 21) | (uint)c;
            if (!children.TryGetValue(key, out int next))
            {
                next = idOfNode.Count;
                children[key] = next;
                idOfNode.Add(-1);
            }
            node = next;
        }
        if (node > 0)
            idOfNode[node] = id;
    }

    public override void Tokenize(ReadOnlySpan<int> word, List<ModelToken> target)
    {
        if (cache.TryGet(word, target))
            return;
        int from = target.Count;
        var best = Cover(word);
        Cut(word, best, target);
        cache.Keep(word, target, from);
    }

    // For each end: the best way there, as its last piece. Start -1: not reached.
    private (double Score, int Start, int Id)[] Cover(ReadOnlySpan<int> word)
    {
        var best = new (double Score, int Start, int Id)[word.Length + 1];
        Array.Fill(best, (0.0, -1, 0));
        for (int start = 0; start < word.Length; start++)
        {
            double here = best[start].Score;
            bool single = false;
            int node = 0;
            for (int end = start + 1; end <= word.Length; end++)
            {
                if (!children.TryGetValue(((long)node << 21) | (uint)word[end - 1], out node))
                    break;
                int id = idOfNode[node];
                if (id < 0)
                    continue;
                double score = here + scores[id];
                if (best[end].Start < 0 || score > best[end].Score)
                    best[end] = (score, start, id);
                single |= end == start + 1;
            }
            if (single)
                continue;
            double unknown = here + unknownScore;
            if (best[start + 1].Start < 0 || unknown > best[start + 1].Score)
                best[start + 1] = (unknown, start, UnknownId ?? throw new InvalidOperationException("A character is not in the vocabulary, and the model has no unknown token."));
        }
        return best;
    }

    private void Cut(ReadOnlySpan<int> word, (double Score, int Start, int Id)[] best, List<ModelToken> target)
    {
        var cuts = new List<(int From, int To)>();
        bool unknownBefore = false;
        for (int end = word.Length; end > 0;)
        {
            var (_, start, id) = best[end];
            bool unknown = id == UnknownId;
            // A run of unknown characters is one token.
            if (unknown && unknownBefore)
                cuts[^1] = (start, cuts[^1].To);
            else
                cuts.Add((start, end));
            unknownBefore = unknown;
            end = start;
        }
        for (int i = cuts.Count - 1; i >= 0; i--)
            AddPiece(word[cuts[i].From..cuts[i].To], cuts[i].From, target);
    }

    private void AddPiece(ReadOnlySpan<int> piece, int from, List<ModelToken> target)
    {
        string text = AlignedText.ToString(piece);
        if (Vocabulary.Find(text) is int id)
        {
            target.Add(new ModelToken(id, from, from + piece.Length));
            return;
        }
        int first = target.Count;
        if (byteIds is not null)
        {
            foreach (byte b in System.Text.Encoding.UTF8.GetBytes(text))
            {
                if (byteIds[b] < 0)
                {
                    target.RemoveRange(first, target.Count - first);
                    break;
                }
                target.Add(new ModelToken(byteIds[b], from, from + piece.Length));
            }
            if (target.Count > first)
                return;
        }
        target.Add(new ModelToken(UnknownId!.Value, from, from + piece.Length, text));
    }
}
