// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// A text, or a pair of texts, as a model takes it. All arrays have one entry a token. They are the caller's to read, not
/// to change.
/// </summary>
public sealed class TextEncoding
{
    private readonly TextTokenizer tokenizer;
    private readonly string?[] surfaces;
    private readonly IReadOnlyList<string>[] sources;
    private readonly bool byWords;
    private string[]? tokens;

    internal TextEncoding(TextTokenizer tokenizer, int count, IReadOnlyList<string>[] sources, bool byWords)
    {
        this.tokenizer = tokenizer;
        this.sources = sources;
        this.byWords = byWords;
        surfaces = new string?[count];
        Ids = new int[count];
        TypeIds = new int[count];
        SpecialMask = new byte[count];
        Offsets = new (int, int)[count];
        WordIds = new int[count];
        SequenceIds = new int[count];
    }

    /// <summary>Token ids.</summary>
    public int[] Ids { get; }

    /// <summary>Segment of each token, 0 or 1, as the model's template says.</summary>
    public int[] TypeIds { get; }

    /// <summary>1 for the tokens that the template added, 0 for those of the text (special tokens in the text included).</summary>
    public byte[] SpecialMask { get; }

    /// <summary>
    /// The span of the text that each token stands for, in code points (with words given one by one: inside the word).
    /// Empty at 0 for special tokens.
    /// </summary>
    public (int Start, int End)[] Offsets { get; }

    /// <summary>Index of the word that each token belongs to, counted in its text; -1 for special tokens.</summary>
    public int[] WordIds { get; }

    /// <summary>Which text each token belongs to, 0 or 1; -1 for special tokens.</summary>
    public int[] SequenceIds { get; }

    /// <summary>Number of tokens.</summary>
    public int Count => Ids.Length;

    /// <summary>The tokens as text, as the vocabulary spells them (unknown stretches and blanks of special tokens as they stand in the text).</summary>
    public IReadOnlyList<string> Tokens
    {
        get
        {
            return tokens ??= Make();

            string[] Make()
            {
                var made = new string[Count];
                for (int i = 0; i < made.Length; i++)
                    made[i] = surfaces[i] ?? tokenizer.TokenOf(Ids[i]) ?? "";
                return made;
            }
        }
    }

    /// <summary>The offsets in UTF-16 code units, as .NET strings count.</summary>
    /// <returns>One span a token; <c>text[start..end]</c> is the token's text.</returns>
    public (int Start, int End)[] Utf16Offsets()
    {
        var spans = new (int, int)[Count];
        var maps = new Dictionary<string, int[]?>(ReferenceEqualityComparer.Instance);
        for (int i = 0; i < Count; i++)
        {
            var (start, end) = Offsets[i];
            int sequence = SequenceIds[i];
            if (sequence < 0)
                continue;
            string source = sources[sequence][byWords ? WordIds[i] : 0];
            if (!maps.TryGetValue(source, out int[]? map))
                maps[source] = map = MapOf(source);
            spans[i] = map is null ? (start, end) : (map[start], map[end]);
        }
        return spans;
    }

    // Where each code point begins; null where that is its index.
    private static int[]? MapOf(string text)
    {
        if (!text.AsSpan().ContainsAnyInRange('\uD800', '\uDBFF'))
            return null;
        var starts = new List<int>(text.Length + 1);
        for (int i = 0; i < text.Length; i++)
        {
            starts.Add(i);
            if (char.IsHighSurrogate(text[i]) && i + 1 < text.Length && char.IsLowSurrogate(text[i + 1]))
                i++;
        }
        starts.Add(text.Length);
        return starts.ToArray();
    }

    internal static TextEncoding Make(TextTokenizer tokenizer, PostProcessor post, TokenRun[] runs, IReadOnlyList<string>[] sources, bool byWords, bool specials)
    {
        var template = runs.Length > 1 ? post.Pair : post.Single;
        int count = 0;
        foreach (var piece in template)
            count += piece.Sequence >= 0 ? runs[piece.Sequence].Count : specials ? piece.Ids.Length : 0;
        var encoding = new TextEncoding(tokenizer, count, sources, byWords);
        int at = 0;
        foreach (var piece in template)
        {
            if (piece.Sequence >= 0)
                encoding.Put(runs[piece.Sequence], piece, post.OverflowTypesBySequence, ref at);
            else if (specials)
                encoding.PutSpecial(piece, ref at);
        }
        return encoding;
    }

    private void Put(TokenRun run, TemplatePiece piece, bool overflowTypes, ref int at)
    {
        int type = overflowTypes && run.Overflows ? piece.Sequence : piece.TypeId;
        for (int i = 0; i < run.Count; i++, at++)
        {
            Ids[at] = run.Ids[i];
            TypeIds[at] = type;
            Offsets[at] = run.Offsets[i];
            WordIds[at] = run.Words[i];
            SequenceIds[at] = piece.Sequence;
            surfaces[at] = run.Surfaces[i];
        }
    }

    private void PutSpecial(TemplatePiece piece, ref int at)
    {
        foreach (int id in piece.Ids)
        {
            Ids[at] = id;
            TypeIds[at] = piece.TypeId;
            SpecialMask[at] = 1;
            WordIds[at] = -1;
            SequenceIds[at] = -1;
            at++;
        }
    }
}
