// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Options of <see cref="TextClassificationTrainer"/>; without <see cref="ClassificationOptions.BackboneFolder"/> it takes the embedded all-MiniLM-L6-v2.</summary>
public sealed class TextClassificationOptions : ClassificationOptions
{
    /// <summary>First text column.</summary>
    public string Sentence1ColumnName = "Sentence1";

    /// <summary>Second text column, for pairs of texts; null for none.</summary>
    public string? Sentence2ColumnName;

    /// <summary>Longest text in tokens, special tokens included; longer ones are cut. The backbone's limit holds too.</summary>
    public int MaxTokens = 128;

    internal TextColumns Text => new(Sentence1ColumnName, Sentence2ColumnName);

    private protected override string FolderNeeds => "tokenizer files";

    private protected override void ValidateInput()
    {
        CheckName(nameof(Sentence1ColumnName), Sentence1ColumnName);
        if (Sentence2ColumnName is not null && string.IsNullOrWhiteSpace(Sentence2ColumnName))
            throw new ArgumentException("Sentence2ColumnName is empty; give the name of a column, or null for a single text.", nameof(Sentence2ColumnName));
        if (MaxTokens < 3) throw new ArgumentException($"MaxTokens is {MaxTokens}; it must be at least 3 (two special tokens and one of the text).", nameof(MaxTokens));
    }
}
