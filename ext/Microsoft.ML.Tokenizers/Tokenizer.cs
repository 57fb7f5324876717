// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Tokenizers;

/// <summary>Base of all tokenizers: normalise, split, look up.</summary>
public abstract class Tokenizer
{
    protected Tokenizer()
    {
    }

    public virtual Normalizer? Normalizer => null;

    public virtual PreTokenizer? PreTokenizer => null;

    protected abstract EncodeResults<EncodedToken> EncodeToTokens(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings);

    public IReadOnlyList<EncodedToken> EncodeToTokens(string text, out string? normalizedText, bool considerPreTokenization = true, bool considerNormalization = true)
    {
        ArgumentNullException.ThrowIfNull(text);
        var results = EncodeToTokens(text, text, Settings(considerPreTokenization, considerNormalization));
        normalizedText = results.NormalizedText;
        return results.Tokens;
    }

    public IReadOnlyList<EncodedToken> EncodeToTokens(ReadOnlySpan<char> text, out string? normalizedText, bool considerPreTokenization = true, bool considerNormalization = true)
    {
        var results = EncodeToTokens(null, text, Settings(considerPreTokenization, considerNormalization));
        normalizedText = results.NormalizedText;
        return results.Tokens;
    }

    public IReadOnlyList<int> EncodeToIds(string text, bool considerPreTokenization = true, bool considerNormalization = true) =>
        Ids(EncodeToTokens(text, out _, considerPreTokenization, considerNormalization));

    public IReadOnlyList<int> EncodeToIds(ReadOnlySpan<char> text, bool considerPreTokenization = true, bool considerNormalization = true) =>
        Ids(EncodeToTokens(text, out _, considerPreTokenization, considerNormalization));

    public int CountTokens(string text, bool considerPreTokenization = true, bool considerNormalization = true) =>
        EncodeToTokens(text, out _, considerPreTokenization, considerNormalization).Count;

    private static EncodeSettings Settings(bool considerPreTokenization, bool considerNormalization) =>
        new() { ConsiderPreTokenization = considerPreTokenization, ConsiderNormalization = considerNormalization };

    private static int[] Ids(IReadOnlyList<EncodedToken> tokens)
    {
        var ids = new int[tokens.Count];
        for (int i = 0; i < ids.Length; i++)
            ids[i] = tokens[i].Id;
        return ids;
    }

    /// <summary>Normalises and splits as the settings say, and hands each piece on.</summary>
    internal EncodeResults<EncodedToken> EncodePieces(string? text, ReadOnlySpan<char> textSpan, EncodeSettings settings, PieceEncoder encode)
    {
        ReadOnlySpan<char> span = text is null ? textSpan : text.AsSpan();
        if (span.IsEmpty)
            return new EncodeResults<EncodedToken> { Tokens = [] };
        string? normalized = null;
        if (settings.ConsiderNormalization && Normalizer is not null)
        {
            normalized = Normalizer.Normalize(span);
            span = normalized;
        }
        var tokens = new List<EncodedToken>();
        if (settings.ConsiderPreTokenization && PreTokenizer is not null)
        {
            foreach (var (offset, length) in PreTokenizer.PreTokenize(span.ToString()))
                encode(span.Slice(offset, length), offset, tokens);
        }
        else
            encode(span, 0, tokens);
        return new EncodeResults<EncodedToken> { Tokens = tokens, NormalizedText = normalized, CharsConsumed = span.Length };
    }
}

internal delegate void PieceEncoder(ReadOnlySpan<char> piece, int offset, List<EncodedToken> tokens);

public readonly struct EncodedToken : IEquatable<EncodedToken>
{
    public EncodedToken(int id, string value, Range offset)
    {
        Id = id;
        Value = value;
        Offset = offset;
    }

    public int Id { get; }

    public string Value { get; }

    public Range Offset { get; }

    public bool Equals(EncodedToken other) => Id == other.Id && Value == other.Value && Offset.Equals(other.Offset);
}

public struct EncodeSettings
{
    public EncodeSettings()
    {
        MaxTokenCount = int.MaxValue;
        ConsiderPreTokenization = true;
        ConsiderNormalization = true;
    }

    public bool ConsiderPreTokenization { get; set; }

    public bool ConsiderNormalization { get; set; }

    public int MaxTokenCount { get; set; }
}

public struct EncodeResults<T>
{
    public IReadOnlyList<T> Tokens { get; set; }

    public string? NormalizedText { get; set; }

    public int CharsConsumed { get; set; }
}

public abstract class Normalizer
{
    protected Normalizer()
    {
    }

    public abstract string Normalize(string original);

    public abstract string Normalize(ReadOnlySpan<char> original);
}

public abstract class PreTokenizer
{
    protected PreTokenizer()
    {
    }

    public abstract IEnumerable<(int Offset, int Length)> PreTokenize(string text);

    public abstract IEnumerable<(int Offset, int Length)> PreTokenize(ReadOnlySpan<char> text);

    /// <summary>Runs between blanks.</summary>
    public static PreTokenizer CreateWhiteSpace(IReadOnlyDictionary<string, int>? specialTokens = null) =>
        specialTokens is null or { Count: 0 }
            ? new WhiteSpacePreTokenizer()
            : throw new NotSupportedException("Special tokens in a pre-tokenizer need the package Microsoft.ML.Tokenizers.");

    private sealed class WhiteSpacePreTokenizer : PreTokenizer
    {
        public override IEnumerable<(int Offset, int Length)> PreTokenize(string text)
        {
            int start = 0;
            for (int i = 0; i <= text.Length; i++)
            {
                if (i < text.Length && !char.IsWhiteSpace(text[i]))
                    continue;
                if (i > start)
                    yield return (start, i - start);
                start = i + 1;
            }
        }

        public override IEnumerable<(int Offset, int Length)> PreTokenize(ReadOnlySpan<char> text) => PreTokenize(text.ToString());
    }
}
