// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Tokenizers;

public sealed class BpeOptions
{
    public BpeOptions(IEnumerable<KeyValuePair<string, int>> vocabulary) =>
        Vocabulary = vocabulary ?? throw new ArgumentNullException(nameof(vocabulary));

    public IEnumerable<KeyValuePair<string, int>> Vocabulary { get; }

    public IEnumerable<string>? Merges { get; set; }

    public IReadOnlyDictionary<string, int>? SpecialTokens { get; set; }

    public Normalizer? Normalizer { get; set; }

    public PreTokenizer? PreTokenizer { get; set; }

    public string? UnknownToken { get; set; }

    public bool FuseUnknownTokens { get; set; }

    public string? ContinuingSubwordPrefix { get; set; }

    public string? EndOfWordSuffix { get; set; }

    public bool ByteLevel { get; set; }
}

/// <summary>Byte-pair encoding: the pair of the lowest rank is joined until there is none.</summary>
public sealed class BpeTokenizer : Tokenizer
{
    private readonly Dictionary<string, int> vocabulary = new(StringComparer.Ordinal);
    private readonly Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> lookup;
    private readonly Dictionary<int, string> tokens = [];
    private readonly Dictionary<(int, int), (int Rank, int Id)> merges = [];
    private readonly int unknown;

    private BpeTokenizer(BpeOptions options)
    {
        if (options.ByteLevel || options.SpecialTokens is { Count: > 0 })
            throw new NotSupportedException("Byte level and special tokens need the package Microsoft.ML.Tokenizers.");
        foreach (var (token, id) in options.Vocabulary)
        {
            vocabulary.Add(token, id);
            tokens.Add(id, token);
        }
        if (vocabulary.Count == 0)
            throw new InvalidOperationException("The vocabulary cannot be empty.");
        lookup = vocabulary.GetAlternateLookup<ReadOnlySpan<char>>();
        Normalizer = options.Normalizer;
        PreTokenizer = options.PreTokenizer;
        UnknownToken = options.UnknownToken;
        FuseUnknownTokens = options.FuseUnknownTokens;
        ContinuingSubwordPrefix = options.ContinuingSubwordPrefix;
        EndOfWordSuffix = options.EndOfWordSuffix;
        unknown = UnknownToken is not null && vocabulary.TryGetValue(UnknownToken, out int found) ? found : -1;
        int rank = 0;
        foreach (string merge in options.Merges ?? [])
            AddMerge(merge, rank++);
    }

    public override Normalizer? Normalizer { get; }

    public override PreTokenizer? PreTokenizer { get; }

    public string? UnknownToken { get; }

    public bool FuseUnknownTokens { get; }

    public string? ContinuingSubwordPrefix { get; }

    public string? EndOfWordSuffix { get; }

    public static BpeTokenizer Create(BpeOptions options)
    {
        ArgumentNullException.ThrowIfNull(options);
        return new BpeTokenizer(options);
    }

    private void AddMerge(string merge, int rank)
    {
        int space = merge.IndexOf(' ');
        if (space < 0 || space == merge.Length - 1 || merge.IndexOf(' ', space + 1) >= 0)
            throw new InvalidOperationException("Invalid merger file format");
        string left = merge[..space], right = merge[(space + 1)..];
        string joined = left + right[(ContinuingSubwordPrefix?.Length ?? 0)..];
        merges.Add((Id(left), Id(right)), (rank, Id(joined)));

        int Id(string token) => vocabulary.TryGetValue(token, out int id)
            ? id : throw new InvalidOperationException($"Trying to merge a token '{token}' which not exist in the vocabulary.");
    }

    protected override EncodeResults<EncodedToken> EncodeToTokens(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings)
    {
        if (settings.ConsiderPreTokenization && PreTokenizer is null)
            throw new NotSupportedException("The default split of BpeTokenizer needs the package Microsoft.ML.Tokenizers.");
        return EncodePieces(text, textSpan, settings, EncodeWord);
    }

    private void EncodeWord(ReadOnlySpan<char> word, int offset, List<EncodedToken> target)
    {
        var symbols = Symbols(word);
        while (symbols.Count > 1)
        {
            int best = -1;
            (int Rank, int Id) merge = (int.MaxValue, 0);
            for (int i = 0; i + 1 < symbols.Count; i++)
            {
                if (merges.TryGetValue((symbols[i].Id, symbols[i + 1].Id), out var found) && found.Rank < merge.Rank)
                    (best, merge) = (i, found);
            }
            if (best < 0)
                break;
            symbols[best] = (merge.Id, symbols[best].Length + symbols[best + 1].Length);
            symbols.RemoveAt(best + 1);
        }
        foreach (var (id, length) in symbols)
        {
            target.Add(new EncodedToken(id, tokens[id], offset..(offset + length)));
            offset += length;
        }
    }

    private List<(int Id, int Length)> Symbols(ReadOnlySpan<char> word)
    {
        var symbols = new List<(int Id, int Length)>(word.Length);
        bool open = false;
        for (int i = 0, length; i < word.Length; i += length)
        {
            length = char.IsHighSurrogate(word[i]) && i + 1 < word.Length && char.IsLowSurrogate(word[i + 1]) ? 2 : 1;
            if (Find(word.Slice(i, length), i == 0, i + length == word.Length, out int id))
            {
                symbols.Add((id, length));
                open = false;
                continue;
            }
            if (UnknownToken is null)
                continue;
            if (unknown < 0)
                throw new InvalidOperationException("Unknown Token Out Of Vocabulary.");
            if (open && FuseUnknownTokens)
                symbols[^1] = (unknown, symbols[^1].Length + length);
            else
                symbols.Add((unknown, length));
            open = true;
        }
        return symbols;
    }

    private bool Find(ReadOnlySpan<char> character, bool first, bool last, out int id)
    {
        bool prefix = !first && ContinuingSubwordPrefix is not null, suffix = last && EndOfWordSuffix is not null;
        if (!prefix && !suffix)
            return lookup.TryGetValue(character, out id);
        return vocabulary.TryGetValue(string.Concat(prefix ? ContinuingSubwordPrefix : "", character, suffix ? EndOfWordSuffix : ""), out id);
    }
}
