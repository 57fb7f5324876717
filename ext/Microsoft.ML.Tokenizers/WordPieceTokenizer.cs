// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Tokenizers;

public class WordPieceOptions
{
    public PreTokenizer? PreTokenizer { get; set; }

    public Normalizer? Normalizer { get; set; }

    public IReadOnlyDictionary<string, int>? SpecialTokens { get; set; }

    public string UnknownToken { get; set; } = "[UNK]";

    public string ContinuingSubwordPrefix { get; set; } = "##";

    public int MaxInputCharsPerWord { get; set; } = 100;
}

/// <summary>WordPiece: the longest token that matches, from left to right; a word that cannot be covered is unknown.</summary>
public class WordPieceTokenizer : Tokenizer
{
    private readonly Dictionary<string, int> vocabulary;
    private readonly Dictionary<string, int>.AlternateLookup<ReadOnlySpan<char>> lookup;
    private readonly Dictionary<int, string> tokens;
    private readonly PieceEncoder encode;
    private readonly int longest;

    private WordPieceTokenizer(Dictionary<string, int> vocabulary, WordPieceOptions options)
    {
        if (options.SpecialTokens is { Count: > 0 })
            throw new NotSupportedException("Special tokens need the package Microsoft.ML.Tokenizers.");
        this.vocabulary = vocabulary;
        lookup = vocabulary.GetAlternateLookup<ReadOnlySpan<char>>();
        tokens = vocabulary.ToDictionary(pair => pair.Value, pair => pair.Key);
        longest = vocabulary.Keys.Max(token => token.Length);
        UnknownToken = options.UnknownToken ?? throw new ArgumentNullException(nameof(options));
        if (!vocabulary.TryGetValue(UnknownToken, out int unknown))
            throw new ArgumentException($"The unknown token '{UnknownToken}' is not in the vocabulary.");
        UnknownTokenId = unknown;
        ContinuingSubwordPrefix = options.ContinuingSubwordPrefix;
        MaxInputCharsPerWord = options.MaxInputCharsPerWord;
        Normalizer = options.Normalizer;
        PreTokenizer = options.PreTokenizer ?? PreTokenizer.CreateWhiteSpace();
        encode = EncodeWord;
    }

    public override Normalizer? Normalizer { get; }

    public override PreTokenizer? PreTokenizer { get; }

    public string UnknownToken { get; }

    public int UnknownTokenId { get; }

    public string ContinuingSubwordPrefix { get; }

    public int MaxInputCharsPerWord { get; }

    public static WordPieceTokenizer Create(string vocabFilePath, WordPieceOptions? options = null)
    {
        ArgumentException.ThrowIfNullOrEmpty(vocabFilePath);
        using var stream = File.OpenRead(vocabFilePath);
        return Create(stream, options);
    }

    public static WordPieceTokenizer Create(Stream vocabStream, WordPieceOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(vocabStream);
        var vocabulary = new Dictionary<string, int>(StringComparer.Ordinal);
        var reader = new StreamReader(vocabStream);
        for (int id = 0; reader.ReadLine() is string line; id++)
        {
            if (line.Length > 0)
                vocabulary.Add(line, id);
        }
        return new WordPieceTokenizer(vocabulary, options ?? new WordPieceOptions());
    }

    protected override EncodeResults<EncodedToken> EncodeToTokens(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings) =>
        EncodePieces(text, textSpan, settings, encode);

    private void EncodeWord(ReadOnlySpan<char> word, int offset, List<EncodedToken> target)
    {
        int first = target.Count;
        if (word.Length > MaxInputCharsPerWord || !TryCover(word, offset, target))
        {
            target.RemoveRange(first, target.Count - first);
            target.Add(new EncodedToken(UnknownTokenId, UnknownToken, offset..(offset + word.Length)));
        }
    }

    private bool TryCover(ReadOnlySpan<char> word, int offset, List<EncodedToken> target)
    {
        int prefix = ContinuingSubwordPrefix.Length;
        Span<char> buffer = prefix + word.Length <= 256 ? stackalloc char[prefix + word.Length] : new char[prefix + word.Length];
        ContinuingSubwordPrefix.CopyTo(buffer);
        int start = 0;
        while (start < word.Length)
        {
            word[start..].CopyTo(buffer[prefix..]);
            int end = Math.Min(word.Length, start + longest);
            int id = -1;
            for (; end > start; end--)
            {
                ReadOnlySpan<char> piece = start > 0 ? buffer[..(prefix + end - start)] : word[start..end];
                if (lookup.TryGetValue(piece, out id))
                    break;
            }
            if (end == start)
                return false;
            target.Add(new EncodedToken(id, tokens[id], (offset + start)..(offset + end)));
            start = end;
        }
        return true;
    }
}
