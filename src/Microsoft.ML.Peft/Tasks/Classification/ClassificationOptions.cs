// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>What the options of all classification tasks have in common. Fit never changes them.</summary>
public abstract class ClassificationOptions
{
    private protected ClassificationOptions()
    {
    }

    /// <summary>Label column: a key (more classes) or Boolean (two).</summary>
    public string LabelColumnName = "Label";

    /// <summary>Score column that is added: probabilities for keys, log-odds for Boolean labels.</summary>
    public string ScoreColumnName = "Score";

    /// <summary>Predicted-label column that is added.</summary>
    public string PredictedLabelColumnName = "PredictedLabel";

    /// <summary>Probability column that is added for Boolean labels.</summary>
    public string ProbabilityColumnName = "Probability";

    /// <summary>The method with its options; LoRA on query and value where none is named.</summary>
    public PeftMethod Method = new LoraOptions { Rank = 8, Alpha = 16, Dropout = 0.05 };

    /// <summary>Hugging Face folder of the backbone; null for the embedded one of the task, where it has one.</summary>
    public string? BackboneFolder;

    /// <summary>False to keep the backbone out of the model zip and name its folder and hash instead.</summary>
    public bool EmbedBackbone = true;

    /// <summary>How the network's tokens become one vector.</summary>
    public Pooling Pooling = Pooling.Family;

    /// <summary>Rows to evaluate on while training; null for none.</summary>
    public IDataView? ValidationSet;

    /// <summary>How the model is trained. A seed of the MLContext takes the place of its seed.</summary>
    public TrainingOptions Training = new();

    /// <summary>In what numbers the trained transformer scores, see <see cref="ClassificationTransformer.ScoringPrecision"/>; no part of its model zip.</summary>
    public Precision ScoringPrecision;

    internal ClassifierColumns Outputs => new(ScoreColumnName, PredictedLabelColumnName, ProbabilityColumnName);

    /// <summary>Checks what is the task's own.</summary>
    private protected abstract void ValidateInput();

    /// <summary>What a folder must hold beside config.json and model.safetensors.</summary>
    private protected abstract string FolderNeeds { get; }

    private protected static void CheckName(string option, string? value)
    {
        if (string.IsNullOrWhiteSpace(value)) throw new ArgumentException($"{option} is empty; give the name of a column.", option);
    }

    internal void Validate()
    {
        CheckName(nameof(LabelColumnName), LabelColumnName);
        CheckName(nameof(ScoreColumnName), ScoreColumnName);
        CheckName(nameof(PredictedLabelColumnName), PredictedLabelColumnName);
        CheckName(nameof(ProbabilityColumnName), ProbabilityColumnName);
        string[] outputs = [ScoreColumnName, PredictedLabelColumnName, ProbabilityColumnName];
        if (outputs.Distinct(StringComparer.Ordinal).Count() < outputs.Length)
            throw new ArgumentException($"The output columns have the names '{string.Join("', '", outputs)}'; each needs a name of its own.", nameof(ScoreColumnName));
        if (Training is null) throw new ArgumentException("Training is null; give new TrainingOptions().", nameof(Training));
        if (!Enum.IsDefined(Pooling)) throw new ArgumentException($"Pooling is {Pooling}; allowed are {string.Join(", ", Enum.GetNames<Pooling>())}.", nameof(Pooling));
        PrecisionCheck.Known(ScoringPrecision, nameof(ScoringPrecision));
        if (Method is null) throw new ArgumentException("Method is null; give a method, e.g. new LoraOptions().", nameof(Method));
        ValidateInput();
        if (BackboneFolder is not null && !Directory.Exists(BackboneFolder))
            throw new DirectoryNotFoundException($"BackboneFolder '{BackboneFolder}' does not exist; give a Hugging Face folder with config.json, model.safetensors and {FolderNeeds}.");
        if (BackboneFolder is null && !EmbedBackbone)
            throw new ArgumentException("EmbedBackbone is false, but no BackboneFolder is named; the embedded backbone has no folder to refer to.", nameof(EmbedBackbone));
        Method.Validate();
        Training.Validate();
    }

    internal ClassificationOptions Copy()
    {
        var copy = (ClassificationOptions)MemberwiseClone();
        copy.Training = Training?.Copy()!;   // null is refused by Validate
        return copy;
    }
}
