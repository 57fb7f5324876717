// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Checkpoints;

namespace Microsoft.ML.Peft.Data;

/// <summary>Chooses how a checkpoint's tokenizer is read: tokenizer.json, or the pipeline of the family that its vocabulary files belong to.</summary>
internal static class TokenizerFiles
{
    public const string Config = "tokenizer_config.json";
    public const string SpecialMap = "special_tokens_map.json";
    public const string AddedFile = "added_tokens.json";
    public static readonly string[] SentencePieceNames = ["sentencepiece.bpe.model", "spiece.model", "tokenizer.model", "sentencepiece.model", "spm.model", "source.spm"];

    public static readonly string[] Names =
        [TokenizerJson.FileName, "vocab.txt", "vocab.json", "merges.txt", .. SentencePieceNames, Config, SpecialMap, AddedFile];

    public static TextTokenizer Load(IFileSet files)
    {
        var settings = TokenizerSettings.Read(files);
        if (files.Exists(TokenizerJson.FileName))
        {
            var pipeline = TokenizerJson.Read(files, TokenizerJson.FileName);
            return new TextTokenizer(pipeline, settings.Names(pipeline));
        }
        string? model = SentencePieceNames.FirstOrDefault(files.Exists);
        var built = files.Exists("vocab.txt") ? WordPieceFamily.Build(files, settings)
            : files.Exists("vocab.json") && files.Exists("merges.txt") ? ByteLevelFamily.Build(files, settings)
            : model is not null ? SentencePieceFamily.Build(files, model, settings)
            : throw new CheckpointFormatException(
                $"{files.Description} has no tokenizer: expected tokenizer.json, vocab.txt, vocab.json with merges.txt, or one of {string.Join(", ", SentencePieceNames)}; found {NearNames.List(files.Names)}.");
        return new TextTokenizer(built, settings.Names(built));
    }
}
