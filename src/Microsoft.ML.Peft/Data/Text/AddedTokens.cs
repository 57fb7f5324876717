// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>A token that stands beside the model's vocabulary and is found in the text before it is split.</summary>
internal sealed record AddedToken(
    string Content, int Id, bool Special = true, bool SingleWord = false, bool StripLeft = false, bool StripRight = false, bool Normalized = false);

/// <summary>Finds added tokens in a text: the leftmost, and there the longest.</summary>
internal sealed class AddedTokenFinder
{
    private readonly Node root = new();
    private readonly bool[] ascii = new bool[128];
    private bool others;

    private sealed class Node
    {
        public Dictionary<int, Node>? Next;
        public AddedToken? Token;
    }

    public bool IsEmpty => root.Next is null;

    public void Add(ReadOnlySpan<int> content, AddedToken token)
    {
        if (content.Length == 0)
            return;
        if (content[0] < 128)
            ascii[content[0]] = true;
        else
            others = true;
        var node = root;
        foreach (int c in content)
        {
            node.Next ??= [];
            if (!node.Next.TryGetValue(c, out var next))
                node.Next[c] = next = new Node();
            node = next;
        }
        node.Token = token;
    }

    /// <summary>Cuts a text into added tokens and what lies between.</summary>
    public void Split(ReadOnlySpan<int> text, bool specialsAsText, List<(int From, int To, AddedToken? Token)> target)
    {
        int done = 0;
        for (int at = 0; at < text.Length;)
        {
            var (token, end) = Find(text, at);
            if (token is null)
            {
                at++;
                continue;
            }
            int next = end;
            if (!(specialsAsText && token.Special) && Fits(text, at, end, token))
            {
                int from = at, to = end;
                while (token.StripLeft && from > done && Unicode.IsWhiteSpace(text[from - 1]))
                    from--;
                while (token.StripRight && to < text.Length && Unicode.IsWhiteSpace(text[to]))
                    to++;
                from = Math.Max(from, done);
                if (from > done)
                    target.Add((done, from, null));
                target.Add((from, to, token));
                done = to;
            }
            at = Math.Max(next, done);
        }
        if (done < text.Length)
            target.Add((done, text.Length, null));
    }

    private static bool Fits(ReadOnlySpan<int> text, int from, int to, AddedToken token) =>
        !token.SingleWord
        || ((from == 0 || !Unicode.IsWord(text[from - 1])) && (to == text.Length || !Unicode.IsWord(text[to])));

    private (AddedToken? Token, int End) Find(ReadOnlySpan<int> text, int at)
    {
        int first = text[at];
        if (first < 128 ? !ascii[first] : !others)
            return default;
        var node = root;
        (AddedToken? Token, int End) best = default;
        for (int i = at; i < text.Length && node.Next is not null && node.Next.TryGetValue(text[i], out node!); i++)
        {
            if (node.Token is not null)
                best = (node.Token, i + 1);
        }
        return best;
    }
}
