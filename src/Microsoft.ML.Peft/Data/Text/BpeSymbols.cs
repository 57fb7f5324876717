// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

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
