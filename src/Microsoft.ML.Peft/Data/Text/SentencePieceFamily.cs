// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>The families with a SentencePiece model: XLM-R, CamemBERT, ALBERT, T5, SigLIP; Llama and Gemma with BPE.</summary>
internal static class SentencePieceFamily
{
    public static TokenizerPipeline Build(IFileSet files, string name, TokenizerSettings settings)
    {
        var model = SentencePieceModel.Read(files, name);
        return settings.Family switch
        {
            "xlmroberta" or "xlmrobertaxl" => Fairseq(model, name, settings, ["<s>", "<pad>", "</s>", "<unk>"], skip: 3, "<mask>"),
            "camembert" => Fairseq(model, name, settings, ["<s>NOTUSED", "<pad>", "</s>NOTUSED", "<unk>", "<unk>NOTUSED"], skip: 1, "<mask>"),
            "albert" => Albert(model, name, settings),
            "t5" or "mt5" or "umt5" => T5(model, name, settings),
            "siglip" => Siglip(model, name, settings),
            "gemma" or "gemma2" or "gemma3" or "gemma3text" when model.IsBpe => SentencePieceBpe.Gemma(model, settings),
            "llama" or "mistral" or "mixtral" or "" when model.IsBpe => SentencePieceBpe.Llama(model, name, settings),
            var other => throw new CheckpointFormatException(
                $"{files.Description}: the family '{other}' with a SentencePiece {(model.IsBpe ? "BPE" : "unigram")} model alone is not known; known are xlmroberta, camembert, albert, t5, mt5, siglip (unigram), llama, mistral, gemma (BPE). Add the checkpoint's tokenizer.json, or tokenizer_class to tokenizer_config.json."),
        };
    }

    private static TokenizerPipeline Fairseq(SentencePieceModel model, string file, TokenizerSettings settings, string[] first, int skip, string mask)
    {
        var pieces = first.Select(token => (token, token == "<unk>NOTUSED" ? -100.0 : 0.0)).ToList();
        pieces.AddRange(model.Pieces.Skip(skip).Select(piece => (piece.Piece, piece.Score)));
        pieces.Add((mask, 0.0));
        var unigram = new UnigramModel(pieces, Array.IndexOf(first, "<unk>"), byteFallback: false);
        int cls = Id(unigram, settings.Token("cls_token") ?? "<s>", file), sep = Id(unigram, settings.Token("sep_token") ?? "</s>", file);
        return Unigram(model, file, unigram) with
        {
            Added = settings.Added(unigram.Vocabulary, Specials(unigram.Vocabulary, settings, first.Append("<s>").Append("</s>"), mask)),
            Post = PostProcessor.Roberta(cls, sep, trimOffsets: false, prefixSpace: false),
        };
    }

    private static TokenizerPipeline Albert(SentencePieceModel model, string file, TokenizerSettings settings)
    {
        // A piece that ends in digit and comma is made unattractive, so that numbers are split before commas.
        var pieces = model.Pieces.Select(piece => (piece.Piece, IsNumberComma(piece.Piece) ? piece.Score - 100 : piece.Score)).ToList();
        var unigram = new UnigramModel(pieces, Unknown(model, file), byteFallback: false);
        var steps = new List<TextNormalizer>
        {
            new ReplaceNormalizer(new LiteralPattern("``"), "\""),
            new ReplaceNormalizer(new LiteralPattern("''"), "\""),
        };
        if (!settings.Flag("keep_accents", false))
            steps.AddRange([new UnicodeFormNormalizer(NormalizationForm.FormKD), new MarkRemover()]);
        if (settings.Flag("do_lower_case", true))
            steps.Add(LowerCaseText.Instance);
        var plain = Unigram(model, file, unigram);
        if (plain.Normalizer is not null)
            steps.Add(plain.Normalizer);
        return plain with
        {
            Normalizer = new NormalizerSequence(steps.ToArray()),
            Added = settings.Added(unigram.Vocabulary, Specials(unigram.Vocabulary, settings, ["<pad>", "<unk>", "[CLS]", "[SEP]"], "[MASK]")),
            Post = PostProcessor.Bert(Id(unigram, settings.Token("cls_token") ?? "[CLS]", file), Id(unigram, settings.Token("sep_token") ?? "[SEP]", file)),
        };
    }

    private static bool IsNumberComma(string piece) => piece.Length >= 2 && piece[^1] == ',' && char.IsDigit(piece[^2]);

    private static TokenizerPipeline T5(SentencePieceModel model, string file, TokenizerSettings settings)
    {
        var pieces = model.Pieces.Select(piece => (piece.Piece, piece.Score)).ToList();
        int extra = settings.Config["extra_ids"].CountOrNull() ?? (settings.Family == "t5" ? 100 : 0);
        if (extra > 100_000)
            throw settings.Config["extra_ids"].Bad("at most 100000");
        var sentinels = Enumerable.Range(0, extra).Reverse().Select(i => $"<extra_id_{i}>").ToArray();
        pieces.AddRange(sentinels.Select(sentinel => (sentinel, 0.0)));
        var unigram = new UnigramModel(pieces, Unknown(model, file), byteFallback: false);
        int end = Id(unigram, settings.Token("eos_token") ?? "</s>", file);
        return Unigram(model, file, unigram) with
        {
            Added = settings.Added(unigram.Vocabulary, Specials(unigram.Vocabulary, settings, sentinels.Concat(["<pad>", "</s>", "<unk>"]), null)),
            Post = new PostProcessor
            {
                Single = [PostProcessor.Text(0), .. PostProcessor.Special(end)],
                Pair = [PostProcessor.Text(0), .. PostProcessor.Special(end), PostProcessor.Text(1), .. PostProcessor.Special(end)],
            },
        };
    }

    // The text is marked as beginning a word, then lower-cased and freed of ASCII punctuation; blanks become single spaces.
    private static TokenizerPipeline Siglip(SentencePieceModel model, string file, TokenizerSettings settings)
    {
        var pieces = model.Pieces.Select(piece => (piece.Piece, piece.Score)).ToList();
        var unigram = new UnigramModel(pieces, Unknown(model, file), byteFallback: false);
        int end = Id(unigram, settings.Token("eos_token") ?? "</s>", file);
        var steps = new List<TextNormalizer>
        {
            new ReplaceNormalizer(new LiteralPattern("\u2581"), " "),
            new PrependNormalizer("\u2581", onlyAtStart: true),
            new LowerCaseText(finalSigma: true),
            new ReplaceNormalizer(new CharPattern(c => c < 0x80 && Unicode.IsPunctuation(c)), ""),
            new ReplaceNormalizer(new RegexPattern(@"\s+"), " "),
            new StripNormalizer(left: true, right: true),
        };
        if (CharacterMap.Read(model.CharacterMap, file) is CharacterMap map)
            steps.Add(new LongestMatchNormalizer(map));
        steps.AddRange([new ReplaceNormalizer(new RegexPattern(" {2,}"), " "), new ReplaceNormalizer(new RegexPattern(@"[ \u2581]+\z"), ""), new ReplaceNormalizer(new LiteralPattern(" "), "\u2581")]);
        return Unigram(model, file, unigram) with
        {
            Normalizer = new NormalizerSequence(steps.ToArray()),
            PreTokenizer = null,
            Added = Specials(unigram.Vocabulary, settings, ["</s>", "<unk>"], null).ToList(),
            Post = new PostProcessor
            {
                Single = [PostProcessor.Text(0), .. PostProcessor.Special(end)],
                Pair = [PostProcessor.Text(0), .. PostProcessor.Special(end), PostProcessor.Text(1), .. PostProcessor.Special(end)],
            },
        };
    }

    private static TokenizerPipeline Unigram(SentencePieceModel model, string file, UnigramModel unigram)
    {
        if (model.IsBpe)
            throw Malformed.In(file, "a BPE model", "a unigram model, which this family has");
        var map = CharacterMap.Read(model.CharacterMap, file);
        return new TokenizerPipeline(unigram)
        {
            Normalizer = map is null ? null : new PrecompiledNormalizer(map),
            PreTokenizer = new PreTokenizerSequence(
            [
                new SplitPreTokenizer(new CharPattern(Unicode.IsWhiteSpace), SplitBehavior.Removed),
                new MetaspacePreTokenizer('\u2581', MetaspaceScheme.Always, split: true),
            ]),
            Decoder = new MetaspaceDecoder(('\u2581', MetaspaceScheme.Always, true)),
        };
    }

    public static IEnumerable<AddedToken> Specials(Vocabulary vocabulary, TokenizerSettings settings, IEnumerable<string> family, string? mask)
    {
        var named = TokenizerSettings.Parts.Where(part => part != "mask_token").Select(settings.Token);
        foreach (string token in family.Concat(named).OfType<string>().Distinct())
        {
            if (vocabulary.Find(token) is int id)
                yield return new AddedToken(token, id);
        }
        string? masking = settings.Token("mask_token") ?? mask;
        if (masking is not null && vocabulary.Find(masking) is int maskId)
            yield return new AddedToken(masking, maskId, StripLeft: true);
    }

    private static int Unknown(SentencePieceModel model, string file)
    {
        int id = model.Pieces.FindIndex(piece => piece.Kind == PieceKind.Unknown);
        return id >= 0 ? id : throw Malformed.In(file, "no piece of the kind unknown", "one");
    }

    private static int Id(TokenModel model, string token, string file) => model.Vocabulary.Find(token)
        ?? throw Malformed.In(file, $"no piece '{token}'", "that piece, which the model's template needs");
}
