// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>
/// A tokenizer as it lies beside a Hugging Face checkpoint: <c>tokenizer.json</c>, or a family's vocabulary files. It
/// gives the ids of the reference implementation, with offsets. Immutable, safe for several threads.
/// </summary>
public sealed partial class TextTokenizer
{
    private readonly TokenizerPipeline pipeline;
    private readonly Dictionary<int, AddedToken> addedById = [];
    private readonly Dictionary<string, int> addedByContent = new(StringComparer.Ordinal);
    private readonly AddedTokenFinder raw = new();
    private readonly AddedTokenFinder normalized = new();

    internal TextTokenizer(TokenizerPipeline pipeline, TokenizerNames names)
    {
        this.pipeline = pipeline;
        foreach (var token in pipeline.Added)
        {
            addedById[token.Id] = token;
            addedByContent[token.Content] = token.Id;
            int[] content = AlignedText.CodePoints(token.Content);
            if (!token.Normalized)
                raw.Add(content, token);
            else if (pipeline.Normalizer is null || content.Length == 0)
                normalized.Add(content, token);
            else
                normalized.Add(pipeline.Normalizer.Apply(AlignedText.Of(content, 0, content.Length)).Span, token);
        }
        VocabularySize = Math.Max(pipeline.Model.Vocabulary.MaxId, addedById.Count > 0 ? addedById.Keys.Max() : -1) + 1;
        UnknownId = pipeline.Model.UnknownId ?? IdOf(names.Unknown);
        ClsId = IdOf(names.Cls);
        SepId = IdOf(names.Sep);
        BosId = IdOf(names.Bos);
        EosId = IdOf(names.Eos);
        MaskId = IdOf(names.Mask);
        int? pad = IdOf(names.Pad);
        HasPadToken = pad is not null;
        PadId = pad ?? EosId ?? 0;
        PadTypeId = names.PadTypeId;
        MaxLength = names.MaxLength;
        PaddingSide = names.PaddingSide;
    }

    /// <summary>Highest id plus one, special tokens included: the embedding needs at least so many rows.</summary>
    public int VocabularySize { get; }

    /// <summary>Id for padding: the padding token's, else the end token's, else 0.</summary>
    public int PadId { get; }

    /// <summary>Whether the files name a padding token.</summary>
    public bool HasPadToken { get; }

    /// <summary>Type id of padding.</summary>
    public int PadTypeId { get; }

    /// <summary>The side on which the files say that padding goes.</summary>
    public TextSide PaddingSide { get; }

    /// <summary>Most tokens that the files say the model takes; null where they say nothing.</summary>
    public int? MaxLength { get; }

    /// <summary>Id of what is unknown; null where everything can be written (byte-level vocabularies).</summary>
    public int? UnknownId { get; }

    /// <summary>Id of the token whose state stands for the text ([CLS], &lt;s&gt;); null where there is none.</summary>
    public int? ClsId { get; }

    /// <summary>Id of the separator; null where there is none.</summary>
    public int? SepId { get; }

    /// <summary>Id of the token that begins a text; null where there is none.</summary>
    public int? BosId { get; }

    /// <summary>Id of the token that ends a text; null where there is none.</summary>
    public int? EosId { get; }

    /// <summary>Id of the mask; null where there is none.</summary>
    public int? MaskId { get; }

    internal TokenizerPipeline Pipeline => pipeline;

    /// <summary>Loads the tokenizer of a folder.</summary>
    /// <param name="folder">Path of a folder with tokenizer.json or a family's vocabulary files.</param>
    /// <returns>The tokenizer.</returns>
    /// <exception cref="DirectoryNotFoundException">There is no such folder.</exception>
    /// <exception cref="CheckpointFormatException">The folder has no tokenizer, or its files cannot be read.</exception>
    public static TextTokenizer Load(string folder) => Load(new FolderFileSet(folder));

    /// <summary>Loads the tokenizer of a set of files: tokenizer.json where there is one, else what the family's vocabulary files say.</summary>
    /// <param name="files">The files of a checkpoint.</param>
    /// <returns>The tokenizer.</returns>
    /// <exception cref="CheckpointFormatException">There is no tokenizer, or its files cannot be read.</exception>
    public static TextTokenizer Load(IFileSet files)
    {
        ArgumentNullException.ThrowIfNull(files);
        return TokenizerFiles.Load(files);
    }

    /// <summary>The names of the files that the tokenizer needs, of those that are there: what a saved model must carry.</summary>
    /// <param name="files">The files of a checkpoint.</param>
    /// <returns>Names, the main file first.</returns>
    public static IReadOnlyList<string> FileNames(IFileSet files)
    {
        ArgumentNullException.ThrowIfNull(files);
        return TokenizerFiles.Names.Where(files.Exists).ToArray();
    }

    /// <summary>Id of a token, special ones included; null where the vocabulary lacks it.</summary>
    /// <param name="token">The token as the vocabulary spells it; null gives null.</param>
    /// <returns>The id.</returns>
    public int? IdOf(string? token)
    {
        if (token is null)
            return null;
        return addedByContent.TryGetValue(token, out int id) ? id : pipeline.Model.Vocabulary.Find(token);
    }

    /// <summary>The token of an id, as the vocabulary spells it; null where there is none.</summary>
    /// <param name="id">An id.</param>
    /// <returns>The token.</returns>
    public string? TokenOf(int id) =>
        addedById.TryGetValue(id, out var token) ? token.Content : pipeline.Model.Vocabulary.Token(id);

    /// <summary>Whether an id is that of a special token.</summary>
    /// <param name="id">An id.</param>
    /// <returns>True for special tokens.</returns>
    public bool IsSpecial(int id) => addedById.TryGetValue(id, out var token) && token.Special;

    /// <summary>Encodes a text, or a pair, with the model's special tokens.</summary>
    /// <param name="text">The text; lone surrogates count as U+FFFD.</param>
    /// <param name="pair">A second text, or null.</param>
    /// <param name="maxTokens">Most tokens, special ones included; what is too long is cut at its end, the longer text first. 0 for no limit.</param>
    /// <returns>Ids and what belongs to them.</returns>
    public TextEncoding Encode(string text, string? pair = null, int maxTokens = 0) =>
        Encode(text, pair, new TextEncodeOptions { MaxTokens = maxTokens > 0 ? maxTokens : null });

    /// <summary>Encodes a text, or a pair.</summary>
    /// <param name="text">The text.</param>
    /// <param name="pair">A second text, or null.</param>
    /// <param name="options">Special tokens, limits.</param>
    /// <returns>Ids and what belongs to them.</returns>
    /// <exception cref="ArgumentException">The limit cannot be kept by the truncation asked for.</exception>
    public TextEncoding Encode(string text, string? pair, TextEncodeOptions options) => Windows(text, pair, options, overflow: false)[0];

    /// <summary>Encodes a text, or a pair, in as many windows as it takes; each has at most <see cref="TextEncodeOptions.MaxTokens"/> tokens.</summary>
    /// <param name="text">The text.</param>
    /// <param name="pair">A second text, or null.</param>
    /// <param name="options">Limit, stride, which text is cut.</param>
    /// <returns>The windows; the first is what <see cref="Encode(string, string?, TextEncodeOptions)"/> gives.</returns>
    /// <exception cref="ArgumentException">The limit cannot be kept by the truncation asked for, or the stride is too large for it.</exception>
    public IReadOnlyList<TextEncoding> EncodeWindows(string text, string? pair, TextEncodeOptions options) => Windows(text, pair, options, overflow: true);

    /// <summary>Encodes a text that is given word by word. Word ids are indices into the words, offsets are inside the word.</summary>
    /// <param name="words">The words.</param>
    /// <param name="options">Special tokens, limits; null for the usual ones.</param>
    /// <returns>Ids and what belongs to them.</returns>
    public TextEncoding EncodeWords(IReadOnlyList<string> words, TextEncodeOptions? options = null)
    {
        ArgumentNullException.ThrowIfNull(words);
        options ??= new TextEncodeOptions();
        var run = new TokenRun();
        for (int i = 0; i < words.Count; i++)
        {
            ArgumentNullException.ThrowIfNull(words[i], nameof(words));
            Run(words[i], options.SpecialTokensAsText, run, i);
        }
        return Finish([run], [words], byWords: true, options, overflow: false)[0];
    }

    private List<TextEncoding> Windows(string text, string? pair, TextEncodeOptions options, bool overflow)
    {
        ArgumentNullException.ThrowIfNull(text);
        ArgumentNullException.ThrowIfNull(options);
        var first = Run(text, options.SpecialTokensAsText, new TokenRun(), -1);
        if (pair is null)
            return Finish([first], [[text]], byWords: false, options, overflow);
        var second = Run(pair, options.SpecialTokensAsText, new TokenRun(), -1);
        return Finish([first, second], [[text], [pair]], byWords: false, options, overflow);
    }

    // word: the index that all tokens get; -1 to count the words of the text.
    private TokenRun Run(string text, bool specialsAsText, TokenRun run, int word)
    {
        int[] points = AlignedText.CodePoints(text);
        int next = 0;
        if (raw.IsEmpty)
        {
            RunStretch(points, 0, points.Length, specialsAsText, run, word, ref next);
            return run;
        }
        var parts = new List<(int From, int To, AddedToken? Token)>();
        raw.Split(points, specialsAsText, parts);
        foreach (var (from, to, token) in parts)
        {
            if (token is null)
                RunStretch(points, from, to, specialsAsText, run, word, ref next);
            else
                run.Add(token.Id, from, to, word >= 0 ? word : next++, Surface(points.AsSpan(from, to - from), token));
        }
        return run;
    }

    private static string? Surface(ReadOnlySpan<int> text, AddedToken token)
    {
        string surface = AlignedText.ToString(text);
        return surface == token.Content ? null : surface;
    }

    private void RunStretch(int[] points, int from, int to, bool specialsAsText, TokenRun run, int word, ref int next)
    {
        if (from == to)
            return;
        var text = AlignedText.Of(points, from, to);
        if (pipeline.Normalizer is not null)
            text = pipeline.Normalizer.Apply(text);
        if (normalized.IsEmpty)
        {
            RunPieces(text, run, word, ref next);
            return;
        }
        var parts = new List<(int From, int To, AddedToken? Token)>();
        normalized.Split(text.Span, specialsAsText, parts);
        foreach (var (start, end, token) in parts)
        {
            if (token is null)
                RunPieces(text.Slice(start, end), run, word, ref next);
            else
                run.Add(token.Id, text.Starts[start], text.Ends[end - 1], word >= 0 ? word : next++, Surface(text.Span[start..end], token));
        }
    }

    private void RunPieces(AlignedText text, TokenRun run, int word, ref int next)
    {
        var pieces = new TextPieces(text);
        pipeline.PreTokenizer?.Apply(pieces);
        var tokens = new List<ModelToken>();
        text = pieces.Text;
        foreach (var (from, to) in pieces.Spans)
        {
            tokens.Clear();
            pipeline.Model.Tokenize(text.Span[from..to], tokens);
            int index = word >= 0 ? word : next++;
            foreach (var token in tokens)
            {
                int start = text.Starts[Math.Min(from + token.From, to - 1)];
                int end = token.To > token.From ? text.Ends[from + token.To - 1] : start;
                run.Add(token.Id, start, end, index, token.Surface);
            }
        }
    }
}
