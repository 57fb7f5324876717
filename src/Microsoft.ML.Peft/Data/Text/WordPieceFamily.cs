// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>The families with a vocab.txt: BERT and its kin.</summary>
internal static class WordPieceFamily
{
    public static TokenizerPipeline Build(IFileSet files, TokenizerSettings settings)
    {
        var vocabulary = ReadLines(files, "vocab.txt");
        bool mpnet = settings.Family == "mpnet";
        string unknown = settings.Token("unk_token") ?? "[UNK]";
        bool lower = settings.Flag("do_lower_case", true);
        var model = new WordPieceModel(vocabulary, unknown, "##", 100, "vocab.txt");
        int cls = Id(settings.Token("cls_token") ?? (mpnet ? "<s>" : "[CLS]"));
        int sep = Id(settings.Token("sep_token") ?? (mpnet ? "</s>" : "[SEP]"));
        return new TokenizerPipeline(model)
        {
            Added = settings.Added(vocabulary, Specials(vocabulary, settings, mpnet)),
            Normalizer = new BertTextNormalizer(true, settings.Flag("tokenize_chinese_chars", true), settings.Flag("strip_accents", lower), lower),
            PreTokenizer = new BertPreTokenizer(),
            Post = mpnet ? PostProcessor.Roberta(cls, sep, trimOffsets: false, prefixSpace: false) : PostProcessor.Bert(cls, sep),
            Decoder = new WordPieceDecoder("##", cleanup: true),
        };

        int Id(string token) => vocabulary.Find(token)
            ?? throw Malformed.In("vocab.txt", $"no token '{token}' among {vocabulary.Count}", "that token, which the model's template needs");
    }

    private static IEnumerable<AddedToken> Specials(Vocabulary vocabulary, TokenizerSettings settings, bool mpnet)
    {
        foreach (string part in new[] { "unk_token", "sep_token", "pad_token", "cls_token", "mask_token" })
        {
            string? token = settings.Token(part) ?? (mpnet ? null : $"[{part[..part.IndexOf('_')].ToUpperInvariant()}]");
            if (token is not null && vocabulary.Find(token) is int id)
                yield return new AddedToken(token, id, StripLeft: mpnet && part == "mask_token");
        }
    }

    public static Vocabulary ReadLines(IFileSet files, string name)
    {
        var vocabulary = new Vocabulary(32_768);
        using var reader = new StreamReader(files.Open(name), new UTF8Encoding(false, throwOnInvalidBytes: true));
        int id = 0;
        try
        {
            // A line ends with a line feed alone: some vocabularies hold other line ends as characters.
            foreach (string line in reader.ReadToEnd().TrimEnd('\n').Split('\n'))
                vocabulary.Set(line.TrimEnd('\r'), id++);
        }
        catch (DecoderFallbackException e)
        {
            throw Malformed.In(name, $"bytes that are not UTF-8 after {id} lines", "a token a line in UTF-8", e);
        }
        return vocabulary.Count > 1 ? vocabulary : throw Malformed.In(name, $"{vocabulary.Count} tokens", "a token a line");
    }
}
