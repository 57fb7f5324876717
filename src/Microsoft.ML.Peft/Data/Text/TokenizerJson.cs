// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>Reads the pipeline that a tokenizer.json describes.</summary>
internal static class TokenizerJson
{
    public const string FileName = "tokenizer.json";

    public static TokenizerPipeline Read(IFileSet files, string name)
    {
        var root = JsonAt.Read(files, name);
        if (!root.IsObject)
            throw root.Bad("an object with model, added_tokens and the steps of a pipeline");
        var model = Model(root["model"]);
        var added = Added(root["added_tokens"], model);
        int? IdOf(string token) => added.FirstOrDefault(a => a.Content == token)?.Id ?? model.Vocabulary.Find(token);
        var decoder = root["decoder"];
        string? wordEnd = root["model"]["end_of_word_suffix"].TextOrNull();
        return new TokenizerPipeline(model)
        {
            Added = added,
            Normalizer = Normalizer(root["normalizer"]),
            PreTokenizer = PreTokenizer(root["pre_tokenizer"]),
            Post = PostProcessor.Read(root["post_processor"], IdOf),
            Decoder = TokenDecoder.Read(decoder),
            DecodedWordEnd = !decoder.IsNull && decoder["type"].Text() == "ByteLevel" ? wordEnd : null,
        };
    }

    public static TextNormalizer? Normalizer(JsonAt node)
    {
        if (node.IsNull)
            return null;
        string type = node["type"].Text();
        switch (type)
        {
            case "Sequence":
                return new NormalizerSequence(node["normalizers"].Items().Select(item => Normalizer(item) ?? throw item.Bad("a normalizer")).ToArray());
            case "BertNormalizer":
                bool lower = node["lowercase"].Flag(true);
                return new BertTextNormalizer(node["clean_text"].Flag(true), node["handle_chinese_chars"].Flag(true), node["strip_accents"].Flag(lower), lower);
            case "NFC":
                return new UnicodeFormNormalizer(NormalizationForm.FormC);
            case "NFD":
                return new UnicodeFormNormalizer(NormalizationForm.FormD);
            case "NFKC":
                return new UnicodeFormNormalizer(NormalizationForm.FormKC);
            case "NFKD":
                return new UnicodeFormNormalizer(NormalizationForm.FormKD);
            case "Lowercase":
                return LowerCaseText.Instance;
            case "StripAccents":
                return new MarkRemover();
            case "Strip":
                return new StripNormalizer(node["strip_left"].Flag(true), node["strip_right"].Flag(true));
            case "Replace":
                return new ReplaceNormalizer(TextPattern.Parse(node["pattern"]), node["content"].Text());
            case "Prepend":
                return new PrependNormalizer(node["prepend"].Text());
            case "Nmt":
                return new NmtNormalizer();
            case "ByteLevel":
                return new ByteLevelNormalizer();
            case "Precompiled":
                return PrecompiledNormalizer.Read(node["precompiled_charsmap"]);
            default:
                throw Malformed.Kind(node, type, "Sequence, BertNormalizer, NFC, NFD, NFKC, NFKD, Lowercase, StripAccents, Strip, Replace, Prepend, Nmt, ByteLevel, Precompiled");
        }
    }

    public static PreTokenizer? PreTokenizer(JsonAt node)
    {
        if (node.IsNull)
            return null;
        string type = node["type"].Text();
        switch (type)
        {
            case "Sequence":
                return new PreTokenizerSequence(node["pretokenizers"].Items().Select(item => PreTokenizer(item) ?? throw item.Bad("a pre-tokenizer")).ToArray());
            case "BertPreTokenizer":
                return new BertPreTokenizer();
            case "Whitespace":
                return new SplitPreTokenizer(new WordPattern(), SplitBehavior.Removed, invert: true);
            case "WhitespaceSplit":
                return new SplitPreTokenizer(new CharPattern(Unicode.IsWhiteSpace), SplitBehavior.Removed);
            case "ByteLevel":
                return new ByteLevelPreTokenizer(node["add_prefix_space"].Flag(true), node["use_regex"].Flag(true));
            case "Metaspace":
                var (mark, scheme, split) = Metaspace(node);
                return new MetaspacePreTokenizer(mark, scheme, split);
            case "Punctuation":
                return new SplitPreTokenizer(new CharPattern(Unicode.IsPunctuation), Behavior(node["behavior"], SplitBehavior.Isolated));
            case "Digits":
                return new SplitPreTokenizer(new CharPattern(Unicode.IsNumber), node["individual_digits"].Flag(false) ? SplitBehavior.Isolated : SplitBehavior.Contiguous);
            case "UnicodeScripts":
                return new ScriptPreTokenizer();
            case "CharDelimiterSplit":
                return new SplitPreTokenizer(new LiteralPattern(node["delimiter"].Text()), SplitBehavior.Removed);
            case "Split":
                return new SplitPreTokenizer(TextPattern.Parse(node["pattern"]), Behavior(node["behavior"], null), node["invert"].Flag(false));
            default:
                throw Malformed.Kind(node, type, "Sequence, BertPreTokenizer, Whitespace, WhitespaceSplit, ByteLevel, Metaspace, Punctuation, Digits, UnicodeScripts, CharDelimiterSplit, Split");
        }
    }

    private static SplitBehavior Behavior(JsonAt node, SplitBehavior? missing)
    {
        if (node.IsNull && missing is not null)
            return missing.Value;
        return node.Text() switch
        {
            "Removed" => SplitBehavior.Removed,
            "Isolated" => SplitBehavior.Isolated,
            "MergedWithPrevious" => SplitBehavior.MergedWithPrevious,
            "MergedWithNext" => SplitBehavior.MergedWithNext,
            "Contiguous" => SplitBehavior.Contiguous,
            _ => throw node.Bad("Removed, Isolated, MergedWithPrevious, MergedWithNext or Contiguous"),
        };
    }

    /// <summary>Metaspace in its newer form (prepend_scheme, split) and its older one (add_prefix_space, str_rep).</summary>
    public static (int Mark, MetaspaceScheme Scheme, bool Split) Metaspace(JsonAt node)
    {
        int[] mark = AlignedText.CodePoints(node["replacement"].TextOrNull() ?? "\u2581");
        if (mark.Length != 1)
            throw node["replacement"].Bad("one character");
        string scheme = node["prepend_scheme"].TextOrNull() ?? (node["add_prefix_space"].Flag(true) ? "always" : "never");
        return (mark[0], scheme switch
        {
            "always" => MetaspaceScheme.Always,
            "first" => MetaspaceScheme.First,
            "never" => MetaspaceScheme.Never,
            _ => throw node["prepend_scheme"].Bad("always, first or never"),
        }, node["split"].Flag(true));
    }

    public static TokenModel Model(JsonAt node)
    {
        if (!node.IsObject)
            throw node.Bad("an object with a vocabulary");
        // Older files name no type.
        string type = node["type"].TextOrNull()
            ?? (!node["merges"].IsNull ? "BPE" : !node["unk_id"].IsNull ? "Unigram" : !node["continuing_subword_prefix"].IsNull ? "WordPiece" : "WordLevel");
        return type switch
        {
            "WordPiece" => new WordPieceModel(Vocabulary.Read(node["vocab"]), node["unk_token"].TextOrNull() ?? "[UNK]",
                node["continuing_subword_prefix"].TextOrNull() ?? "##", node["max_input_chars_per_word"].CountOrNull() ?? 100, node.File),
            "WordLevel" => new WordLevelModel(Vocabulary.Read(node["vocab"]), node["unk_token"].TextOrNull() ?? "<unk>"),
            "BPE" => BpeModel.Read(node),
            "Unigram" => UnigramModel.Read(node),
            _ => throw Malformed.Kind(node, type, "WordPiece, BPE, Unigram, WordLevel"),
        };
    }

    private static List<AddedToken> Added(JsonAt list, TokenModel model)
    {
        var added = new List<AddedToken>();
        foreach (var item in list.Items())
        {
            var token = AddedToken(item);
            added.Add(model.Vocabulary.Find(token.Content) is int id ? token with { Id = id } : token);
        }
        return added;
    }

    private static AddedToken AddedToken(JsonAt item)
    {
        int id = item["id"].Count();
        if (id > Vocabulary.HighestId)
            throw item["id"].Bad($"an id of at most {Vocabulary.HighestId}");
        bool special = item["special"].Flag(false);
        return new AddedToken(item["content"].Text(), id, special, item["single_word"].Flag(false),
            item["lstrip"].Flag(false), item["rstrip"].Flag(false), item["normalized"].Flag(!special));
    }
}
