// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>Options of <see cref="TextClassificationTrainer"/>. Fit never changes them.</summary>
public sealed class TextClassificationOptions
{
    /// <summary>Label column: a key (more classes) or Boolean (two).</summary>
    public string LabelColumnName = "Label";

    /// <summary>Score column that is added: probabilities for keys, log-odds for Boolean labels.</summary>
    public string ScoreColumnName = "Score";

    /// <summary>Predicted-label column that is added.</summary>
    public string PredictedLabelColumnName = "PredictedLabel";

    /// <summary>Probability column that is added for Boolean labels.</summary>
    public string ProbabilityColumnName = "Probability";

    /// <summary>First text column.</summary>
    public string Sentence1ColumnName = "Sentence1";

    /// <summary>Second text column, for pairs of texts; null for none.</summary>
    public string? Sentence2ColumnName;

    /// <summary>The method with its options; LoRA on query and value where none is named.</summary>
    public PeftMethod Method = new LoraOptions { Rank = 8, Alpha = 16, Dropout = 0.05 };

    /// <summary>Hugging Face folder of the backbone; null for the embedded all-MiniLM-L6-v2.</summary>
    public string? BackboneFolder;

    /// <summary>False to keep the backbone out of the model zip and name its folder and hash instead.</summary>
    public bool EmbedBackbone = true;

    /// <summary>Longest text in tokens, special tokens included; longer ones are cut. The backbone's limit holds too.</summary>
    public int MaxTokens = 128;

    /// <summary>How a text's tokens become one vector.</summary>
    public Pooling Pooling = Pooling.Family;

    /// <summary>Rows to evaluate on while training; null for none.</summary>
    public IDataView? ValidationSet;

    /// <summary>How the model is trained. A seed of the MLContext takes the place of its seed.</summary>
    public TrainingOptions Training = new();

    internal void Validate()
    {
        foreach ((string option, string? value) in new[]
        {
            (nameof(LabelColumnName), LabelColumnName), (nameof(ScoreColumnName), ScoreColumnName),
            (nameof(PredictedLabelColumnName), PredictedLabelColumnName), (nameof(ProbabilityColumnName), ProbabilityColumnName),
            (nameof(Sentence1ColumnName), Sentence1ColumnName),
        })
        {
            if (string.IsNullOrWhiteSpace(value)) throw new ArgumentException($"{option} is empty; give the name of a column.", option);
        }
        if (Sentence2ColumnName is not null && string.IsNullOrWhiteSpace(Sentence2ColumnName))
            throw new ArgumentException("Sentence2ColumnName is empty; give the name of a column, or null for a single text.", nameof(Sentence2ColumnName));
        string[] outputs = [ScoreColumnName, PredictedLabelColumnName, ProbabilityColumnName];
        if (outputs.Distinct(StringComparer.Ordinal).Count() < outputs.Length)
            throw new ArgumentException($"The output columns have the names '{string.Join("', '", outputs)}'; each needs a name of its own.", nameof(ScoreColumnName));
        if (Training is null) throw new ArgumentException("Training is null; give new TrainingOptions().", nameof(Training));
        if (!Enum.IsDefined(Pooling)) throw new ArgumentException($"Pooling is {Pooling}; allowed are {string.Join(", ", Enum.GetNames<Pooling>())}.", nameof(Pooling));
        if (Method is null) throw new ArgumentException("Method is null; give a method, e.g. new LoraOptions().", nameof(Method));
        if (MaxTokens < 3) throw new ArgumentException($"MaxTokens is {MaxTokens}; it must be at least 3 (two special tokens and one of the text).", nameof(MaxTokens));
        if (BackboneFolder is not null && !Directory.Exists(BackboneFolder))
            throw new DirectoryNotFoundException($"BackboneFolder '{BackboneFolder}' does not exist; give a Hugging Face folder with config.json, model.safetensors and tokenizer files.");
        if (BackboneFolder is null && !EmbedBackbone)
            throw new ArgumentException("EmbedBackbone is false, but no BackboneFolder is named; the embedded backbone has no folder to refer to.", nameof(EmbedBackbone));
        Method.Validate();
        Training.Validate();
    }

    internal TextClassificationOptions Copy()
    {
        var copy = (TextClassificationOptions)MemberwiseClone();
        copy.Training = Training?.Copy()!;   // null is refused by Validate
        return copy;
    }
}
