// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Data;

/// <summary>The families whose SentencePiece model is BPE with bytes for what is unknown.</summary>
internal static class SentencePieceBpe
{
    private const string Mark = "\u2581";

    public static TokenizerPipeline Llama(SentencePieceModel model, string file, TokenizerSettings settings)
    {
        var bpe = Model(model);
        var steps = new List<TextNormalizer>();
        if (CharacterMap.Read(model.CharacterMap, file) is CharacterMap map)
            steps.Add(new LongestMatchNormalizer(map));
        if (model.RemoveExtraBlanks)
            steps.AddRange([new ReplaceNormalizer(new RegexPattern(" {2,}"), " "), new SpaceTrimmer()]);
        bool legacy = settings.Flag("legacy", true);
        if (model.AddDummyPrefix && legacy)
            steps.Add(new PrependNormalizer(Mark));
        steps.Add(new ReplaceNormalizer(new LiteralPattern(" "), Mark));
        var decoder = new List<TokenDecoder> { new ReplaceDecoder(new LiteralPattern(Mark), " "), new ByteFallbackDecoder(), new FuseDecoder() };
        if (model.AddDummyPrefix)
            decoder.Add(new StripDecoder(" ", 1, 0));
        return new TokenizerPipeline(bpe)
        {
            Added = Added(model, bpe.Vocabulary, settings),
            Normalizer = new NormalizerSequence(steps.ToArray()),
            PreTokenizer = model.AddDummyPrefix && !legacy ? new MetaspacePreTokenizer(Mark[0], MetaspaceScheme.First, split: false) : null,
            Post = Template(bpe.Vocabulary, settings, "<s>", "</s>"),
            Decoder = new DecoderSequence(decoder.ToArray()),
        };
    }

    public static TokenizerPipeline Gemma(SentencePieceModel model, TokenizerSettings settings)
    {
        var bpe = Model(model);
        return new TokenizerPipeline(bpe)
        {
            Added = Added(model, bpe.Vocabulary, settings),
            Normalizer = new ReplaceNormalizer(new LiteralPattern(" "), Mark),
            Post = Template(bpe.Vocabulary, settings, "<bos>", "<eos>"),
            Decoder = new DecoderSequence([new ReplaceDecoder(new LiteralPattern(Mark), " "), new ByteFallbackDecoder(), new FuseDecoder()]),
        };
    }

    // Every way to cut a piece into two pieces is a merge; the best joined piece goes first.
    private static BpeModel Model(SentencePieceModel model)
    {
        var vocabulary = new Vocabulary(model.Pieces.Count);
        for (int id = 0; id < model.Pieces.Count; id++)
            vocabulary.Set(model.Pieces[id].Piece, id);
        var merges = new List<(int Left, int Right, int Joined)>();
        foreach (var (piece, id) in vocabulary.Pairs)
        {
            for (int cut = 1; cut < piece.Length; cut++)
            {
                if (vocabulary.TryFind(piece.AsSpan(0, cut), out int left) && vocabulary.TryFind(piece.AsSpan(cut), out int right))
                    merges.Add((left, right, id));
            }
        }
        merges.Sort((a, b) =>
        {
            int order = model.Pieces[b.Joined].Score.CompareTo(model.Pieces[a.Joined].Score);
            return order != 0 ? order : (a.Joined, a.Left, a.Right).CompareTo((b.Joined, b.Left, b.Right));
        });
        string? unknown = model.Pieces.FirstOrDefault(piece => piece.Kind == PieceKind.Unknown).Piece;
        bool bytes = model.Pieces.Any(piece => piece.Kind == PieceKind.Byte);
        return new BpeModel(vocabulary, merges, new BpeRules { Unknown = unknown, FuseUnknown = true, ByteFallback = bytes });
    }

    private static List<AddedToken> Added(SentencePieceModel model, Vocabulary vocabulary, TokenizerSettings settings)
    {
        var all = new List<AddedToken>();
        for (int id = 0; id < model.Pieces.Count; id++)
        {
            var (piece, _, kind) = model.Pieces[id];
            if (kind is PieceKind.Control or PieceKind.Unknown or PieceKind.UserDefined && vocabulary.Find(piece) == id)
                all.Add(new AddedToken(piece, id, Special: kind != PieceKind.UserDefined));
        }
        return settings.Added(vocabulary, all);
    }

    private static PostProcessor Template(Vocabulary vocabulary, TokenizerSettings settings, string begin, string end)
    {
        int? bos = settings.Flag("add_bos_token", true) ? vocabulary.Find(settings.Token("bos_token") ?? begin) : null;
        int? eos = settings.Flag("add_eos_token", false) ? vocabulary.Find(settings.Token("eos_token") ?? end) : null;
        TemplatePiece[] Around(int sequence, int type) =>
        [
            .. bos is null ? [] : PostProcessor.Special(bos.Value, type),
            PostProcessor.Text(sequence, type),
            .. eos is null ? [] : PostProcessor.Special(eos.Value, type),
        ];
        return new PostProcessor { Single = Around(0, 0), Pair = [.. Around(0, 0), .. Around(1, 1)] };
    }

    /// <summary>Spaces at both ends go; other blanks stay.</summary>
    private sealed class SpaceTrimmer : TextNormalizer
    {
        public override AlignedText Apply(AlignedText text)
        {
            int from = 0, to = text.Length;
            while (from < to && text.Chars[from] == ' ')
                from++;
            while (to > from && text.Chars[to - 1] == ' ')
                to--;
            return from == to ? new AlignedText(0, text.Origin) : text.Slice(from, to);
        }
    }
}
