// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>What tokenizer_config.json, special_tokens_map.json, added_tokens.json and config.json say together.</summary>
internal sealed class TokenizerSettings
{
    /// <summary>The parts that a special token may play.</summary>
    public static readonly string[] Parts = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
    private readonly JsonAt config;
    private readonly JsonAt special;
    private readonly JsonAt added;

    private TokenizerSettings(JsonAt config, JsonAt special, JsonAt added, string family)
    {
        this.config = config;
        this.special = special;
        this.added = added;
        Family = family;
    }

    /// <summary>The family in lower case without "tokenizer" and "fast": "bert", "xlmroberta"; empty where no file says it.</summary>
    public string Family { get; }

    public JsonAt Config => config;

    public static TokenizerSettings Read(IFileSet files)
    {
        var config = ReadIf(files, TokenizerFiles.Config);
        string? name = config["tokenizer_class"].TextOrNull();
        // Newer files name the backend ("TokenizersBackend"), which says nothing of the family.
        if (name is null || name.EndsWith("Backend", StringComparison.Ordinal) || name.StartsWith("PreTrainedTokenizer", StringComparison.Ordinal))
            name = ReadIf(files, "config.json")["model_type"].TextOrNull() ?? "";
        string family = name.Replace("TokenizerFast", "", StringComparison.Ordinal).Replace("Tokenizer", "", StringComparison.Ordinal)
            .Replace("_", "", StringComparison.Ordinal).Replace("-", "", StringComparison.Ordinal).ToLowerInvariant();
        return new TokenizerSettings(config, ReadIf(files, TokenizerFiles.SpecialMap), ReadIf(files, TokenizerFiles.AddedFile), family);
    }

    private static JsonAt ReadIf(IFileSet files, string name)
    {
        if (!files.Exists(name))
            return new JsonAt(default, name, "");
        var root = JsonAt.Read(files, name);
        return root.IsObject ? root : throw root.Bad("an object");
    }

    public bool Flag(string name, bool missing) => config[name].Flag(missing);

    /// <summary>A token by its part ("cls_token"): special_tokens_map.json before tokenizer_config.json.</summary>
    public string? Token(string part) => Content(special[part]) ?? Content(config[part]);

    private static string? Content(JsonAt node) => node.IsNull ? null : node.IsObject ? node["content"].TextOrNull() : node.Text();

    /// <summary>The tokens of added_tokens_decoder, special_tokens_map.json and added_tokens.json, beside those that the family gives.</summary>
    public List<AddedToken> Added(Vocabulary vocabulary, IEnumerable<AddedToken> family)
    {
        var all = new Dictionary<string, AddedToken>(StringComparer.Ordinal);
        foreach (var token in family)
            all[token.Content] = token;
        foreach (var (content, id) in added.Members())
        {
            int number = Id(id);
            all[content] = all.TryGetValue(content, out var known) ? known with { Id = number } : new AddedToken(content, number, Special: false, Normalized: true);
        }
        foreach (var (id, item) in config["added_tokens_decoder"].Members())
        {
            string content = item["content"].Text();
            if (!int.TryParse(id, out int number) || number < 0 || number > Vocabulary.HighestId)
                throw item.Bad("an id as the name of the member");
            // The vocabulary decides about an id that both give.
            number = vocabulary.Find(content) ?? number;
            bool isSpecial = item["special"].Flag(false);
            all[content] = new AddedToken(content, number, isSpecial, item["single_word"].Flag(false), item["lstrip"].Flag(false),
                item["rstrip"].Flag(false), item["normalized"].Flag(!isSpecial));
        }
        return all.Values.OrderBy(token => token.Id).ToList();
    }

    private static int Id(JsonAt node)
    {
        int id = node.Count();
        return id <= Vocabulary.HighestId ? id : throw node.Bad($"an id of at most {Vocabulary.HighestId}");
    }

    /// <summary>Which token plays which part. What no file says is guessed from the names that families use.</summary>
    public TokenizerNames Names(TokenizerPipeline pipeline)
    {
        string? Of(string part, params string[] guesses) => Token(part) ?? guesses.FirstOrDefault(guess =>
            pipeline.Added.Any(token => token.Content == guess) || pipeline.Model.Vocabulary.Find(guess) is not null);
        double length = config["model_max_length"].IsNull ? double.MaxValue : config["model_max_length"].Number();
        return new TokenizerNames
        {
            Unknown = Of("unk_token", "[UNK]", "<unk>"),
            Pad = Family == "siglip" ? Of("pad_token", "</s>") : Of("pad_token", "[PAD]", "<pad>", "<|pad|>"),
            Cls = Of("cls_token", "[CLS]", "<s>"),
            Sep = Of("sep_token", "[SEP]", "</s>"),
            Bos = Of("bos_token", "<s>", "<bos>", "<|begin_of_text|>"),
            Eos = Of("eos_token", "</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>"),
            Mask = Of("mask_token", "[MASK]", "<mask>"),
            PadTypeId = config["pad_token_type_id"].CountOrNull() ?? 0,
            // A huge number in the file means that there is no limit.
            MaxLength = length is > 0 and < 10_000_000 ? (int)length : null,
            PaddingSide = config["padding_side"].TextOrNull() == "left" ? TextSide.Left : TextSide.Right,
        };
    }
}
