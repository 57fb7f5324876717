// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text;
using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>The families with vocab.json and merges.txt: GPT-2, RoBERTa, CLIP, Qwen2 and their kin.</summary>
internal static class ByteLevelFamily
{
    private const string ClipSplit = @"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
    private const string QwenSplit = @"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    private static readonly string[] WithRobertaTemplate = ["roberta", "bart", "longformer", "led", "barthez", "clip"];
    private static readonly string[] Plain = ["gpt2", "codegen", "gptneo", "gptneox", "opt", "gptj", "gptbigcode", "starcoder2", ""];

    public static TokenizerPipeline Build(IFileSet files, TokenizerSettings settings)
    {
        string family = settings.Family;
        bool clip = family == "clip", qwen = family is "qwen2" or "qwen3";
        bool roberta = WithRobertaTemplate.Contains(family);
        if (!roberta && !qwen && !Plain.Contains(family))
        {
            throw new CheckpointFormatException(
                $"{files.Description}: the family '{family}' is not known to have a byte-level vocabulary of its own; known are {string.Join(", ", WithRobertaTemplate.Concat(Plain).Append("qwen2").Where(name => name.Length > 0))}. Add the checkpoint's tokenizer.json.");
        }
        var model = ReadModel(files, settings, clip);
        var added = settings.Added(model.Vocabulary, Specials(model.Vocabulary, settings, roberta, clip));
        bool prefix = settings.Flag("add_prefix_space", false);
        return new TokenizerPipeline(model)
        {
            Added = added,
            Normalizer = clip ? ClipNormalizer() : qwen ? new UnicodeFormNormalizer(NormalizationForm.FormC) : null,
            PreTokenizer = clip ? Splitting(ClipSplit, SplitBehavior.Removed, invert: true, regex: true)
                : qwen ? Splitting(QwenSplit, SplitBehavior.Isolated, invert: false, regex: false)
                : new ByteLevelPreTokenizer(prefix, useRegex: true),
            Post = Post(),
            Decoder = new ByteLevelDecoder(),
            DecodedWordEnd = clip ? "</w>" : null,
        };

        PostProcessor Post()
        {
            if (!roberta)
                return new PostProcessor();
            int cls = Id(settings.Token(clip ? "bos_token" : "cls_token") ?? (clip ? "<|startoftext|>" : "<s>"));
            int sep = Id(settings.Token(clip ? "eos_token" : "sep_token") ?? (clip ? "<|endoftext|>" : "</s>"));
            return PostProcessor.Roberta(cls, sep, !clip && settings.Flag("trim_offsets", true), prefix);
        }

        int Id(string token) => model.Vocabulary.Find(token) ?? added.FirstOrDefault(a => a.Content == token)?.Id
            ?? throw Malformed.In("vocab.json", $"no token '{token}'", "that token, which the model's template needs");
    }

    private static PreTokenizerSequence Splitting(string pattern, SplitBehavior behavior, bool invert, bool regex) => new(
    [
        new SplitPreTokenizer(new RegexPattern(RegexDialect.Translate(pattern)), behavior, invert),
        new ByteLevelPreTokenizer(addPrefixSpace: false, regex),
    ]);

    private static NormalizerSequence ClipNormalizer() => new(
    [
        new UnicodeFormNormalizer(NormalizationForm.FormC),
        new ReplaceNormalizer(new RegexPattern(@"\s+"), " "),
        LowerCaseText.Instance,
    ]);

    private static IEnumerable<AddedToken> Specials(Vocabulary vocabulary, TokenizerSettings settings, bool roberta, bool clip)
    {
        foreach (string part in TokenizerSettings.Parts)
        {
            string? guess = roberta && !clip ? part switch { "unk_token" => "<unk>", "mask_token" => "<mask>", "pad_token" => "<pad>", "cls_token" or "bos_token" => "<s>", _ => "</s>" } : null;
            string? token = settings.Token(part) ?? guess;
            if (token is not null && vocabulary.Find(token) is int id)
                yield return new AddedToken(token, id, StripLeft: part == "mask_token" && roberta, Normalized: clip && part == "bos_token");
        }
    }

    private static BpeModel ReadModel(IFileSet files, TokenizerSettings settings, bool clip)
    {
        var vocabulary = Vocabulary.Read(JsonAt.Read(files, "vocab.json"));
        var rules = new BpeRules
        {
            Unknown = clip ? settings.Token("unk_token") ?? "<|endoftext|>" : null,
            WordEnd = clip ? "</w>" : null,
        };
        var merges = new List<(int, int, int)>();
        using var reader = new StreamReader(files.Open("merges.txt"), new UTF8Encoding(false, throwOnInvalidBytes: true));
        int number = 0;
        try
        {
            while (reader.ReadLine() is string line)
            {
                number++;
                if (line.Length == 0 || (number == 1 && line.StartsWith("#version", StringComparison.Ordinal)))
                    continue;
                var (left, right) = BpeModel.SplitMerge(line)
                    ?? throw Malformed.In($"merges.txt: line {number}", $"'{line}'", "two tokens with a space between");
                merges.Add(BpeModel.Merge(vocabulary, left, right, null, $"merges.txt: line {number}"));
            }
        }
        catch (DecoderFallbackException e)
        {
            throw Malformed.In("merges.txt", $"bytes that are not UTF-8 after line {number}", "two tokens a line in UTF-8", e);
        }
        return new BpeModel(vocabulary, merges, rules);
    }
}
