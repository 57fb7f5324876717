// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using System.Text.Json.Nodes;

namespace Microsoft.ML.Peft.Checkpoints;

/// <summary>Where a model's backbone came from, so that the model can be saved again: the files themselves, or a folder by hash.</summary>
/// <param name="Files">Config, weights and files of the tokenizer or processor.</param>
/// <param name="Folder">Path of the folder, where it was a folder.</param>
/// <param name="Sha256">Hash of the weight files.</param>
internal sealed record BackboneSource(IFileSet Files, string? Folder, Lazy<string> Sha256)
{
    // What a Hugging Face folder may hold beside the weights that the tokenizer, the processor or the network read.
    private static readonly string[] _small =
    [
        "config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
        "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "bpe.codes",
        "sentence_bert_config.json", ProcessorFiles.Name, ProcessorFiles.NewerName,

        // The licence of the weights goes where the weights go.
        "LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "MODEL_CARD.md",
    ];

    /// <summary>Takes the source of an opened checkpoint.</summary>
    /// <param name="checkpoint">The checkpoint.</param>
    /// <param name="folder">Path of the folder, or null.</param>
    public static BackboneSource Of(CheckpointFolder checkpoint, string? folder)
    {
        IFileSet files = checkpoint.Files;
        return new BackboneSource(files, folder, new Lazy<string>(() => HashOf(files))) { WeightFiles = checkpoint.WeightFiles };
    }

    private static string HashOf(IFileSet files)
    {
        using CheckpointFolder checkpoint = CheckpointFolder.Open(files);
        return checkpoint.Sha256();
    }

    /// <summary>Names of the weight files.</summary>
    public required IReadOnlyList<string> WeightFiles { get; init; }

    /// <summary>Names of all files that a model needs.</summary>
    public IEnumerable<string> Needed => [.. _small.Where(Files.Exists), .. WeightFiles];

    /// <summary>Describes the source in a model's description.</summary>
    /// <param name="byReference">True to name the folder instead of holding the files.</param>
    public JsonObject ToJson(bool byReference) => byReference
        ? new JsonObject { ["folder"] = Folder, ["sha256"] = Sha256.Value }
        : new JsonObject { ["files"] = new JsonArray([.. Needed.Select(n => (JsonNode?)n)]) };
}
