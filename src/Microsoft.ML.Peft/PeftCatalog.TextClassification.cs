// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML;

public sealed partial class PeftCatalog
{
    /// <summary>Fine-tunes a text classifier by LoRA (Hu et al. 2022, arXiv 2106.09685).</summary>
    /// <param name="labelColumnName">Label column: key or Boolean.</param>
    /// <param name="scoreColumnName">Score column that is added.</param>
    /// <param name="predictedLabelColumnName">Predicted-label column that is added.</param>
    /// <param name="sentence1ColumnName">First text column.</param>
    /// <param name="sentence2ColumnName">Second text column, or null.</param>
    /// <param name="rank">Rank of the update; higher fits finer and stores more.</param>
    /// <param name="alpha">Scaling numerator; the update is scaled by alpha / rank.</param>
    /// <param name="dropout">Dropout on the adapter's input while training.</param>
    /// <param name="batchSize">Rows in a batch.</param>
    /// <param name="maxEpochs">Passes over the data.</param>
    /// <param name="learningRate">Highest learning rate.</param>
    /// <param name="maxTokens">Longest text in tokens; longer ones are cut.</param>
    /// <param name="backboneFolder">Hugging Face folder; null for the embedded all-MiniLM-L6-v2.</param>
    /// <param name="validationSet">Rows to evaluate on while training, or null.</param>
    /// <exception cref="ArgumentException">An argument is out of range.</exception>
    public TextClassificationTrainer LoraTextClassification(
        string labelColumnName = "Label",
        string scoreColumnName = "Score",
        string predictedLabelColumnName = "PredictedLabel",
        string sentence1ColumnName = "Sentence1",
        string? sentence2ColumnName = null,
        int rank = 8,
        double alpha = 16,
        double dropout = 0.05,
        int batchSize = 16,
        int maxEpochs = 3,
        double learningRate = 5e-4,
        int maxTokens = 128,
        string? backboneFolder = null,
        IDataView? validationSet = null) =>
        TextClassification(
            new LoraOptions { Rank = rank, Alpha = alpha, Dropout = dropout },
            labelColumnName, scoreColumnName, predictedLabelColumnName, sentence1ColumnName, sentence2ColumnName,
            batchSize, maxEpochs, learningRate, maxTokens, backboneFolder, validationSet);

    /// <summary>Fine-tunes a text classifier by any method.</summary>
    /// <param name="method">The method with its options; null for LoRA.</param>
    /// <param name="labelColumnName">Label column: key or Boolean.</param>
    /// <param name="scoreColumnName">Score column that is added.</param>
    /// <param name="predictedLabelColumnName">Predicted-label column that is added.</param>
    /// <param name="sentence1ColumnName">First text column.</param>
    /// <param name="sentence2ColumnName">Second text column, or null.</param>
    /// <param name="batchSize">Rows in a batch.</param>
    /// <param name="maxEpochs">Passes over the data.</param>
    /// <param name="learningRate">Highest learning rate; null for what suits the method.</param>
    /// <param name="maxTokens">Longest text in tokens; longer ones are cut.</param>
    /// <param name="backboneFolder">Hugging Face folder; null for the embedded all-MiniLM-L6-v2.</param>
    /// <param name="validationSet">Rows to evaluate on while training, or null.</param>
    /// <exception cref="ArgumentException">An argument is out of range.</exception>
    public TextClassificationTrainer TextClassification(
        PeftMethod? method = null,
        string labelColumnName = "Label",
        string scoreColumnName = "Score",
        string predictedLabelColumnName = "PredictedLabel",
        string sentence1ColumnName = "Sentence1",
        string? sentence2ColumnName = null,
        int batchSize = 16,
        int maxEpochs = 3,
        double? learningRate = null,
        int maxTokens = 128,
        string? backboneFolder = null,
        IDataView? validationSet = null)
    {
        var options = new TextClassificationOptions
        {
            LabelColumnName = labelColumnName,
            ScoreColumnName = scoreColumnName,
            PredictedLabelColumnName = predictedLabelColumnName,
            Sentence1ColumnName = sentence1ColumnName,
            Sentence2ColumnName = sentence2ColumnName,
            BackboneFolder = backboneFolder,
            MaxTokens = maxTokens,
            ValidationSet = validationSet,
            Training = new TrainingOptions { BatchSize = batchSize, Epochs = maxEpochs, LearningRate = learningRate },
        };
        if (method is not null) options.Method = method;
        return TextClassification(options);
    }

    /// <summary>
    /// Joins trained text classifiers of one backbone into a transformer in which a text column names each row's adapter.
    /// </summary>
    /// <param name="models">Trained models by the names that the column will hold; they share backbone, text columns and labels. They are copied.</param>
    /// <param name="adapterColumnName">Text column with the adapter's name; a name that is not known is an error that lists the known ones.</param>
    /// <param name="compositions">Further names that rows may hold, for several of the models at once; null for none.</param>
    /// <exception cref="ArgumentException">No models, or models that do not fit together; the message says in what.</exception>
    public TextAdapterTransformer TextClassificationByAdapter(
        IReadOnlyDictionary<string, TextClassificationTransformer> models, string adapterColumnName = "Adapter", IReadOnlyDictionary<string, Composition>? compositions = null) =>
        TextAdapterTransformer.Join(Environment, models, adapterColumnName, compositions ?? new Dictionary<string, Composition>());

    /// <summary>Fine-tunes a text classifier with all options.</summary>
    /// <param name="options">All options.</param>
    /// <exception cref="ArgumentException">An option is out of range.</exception>
    public TextClassificationTrainer TextClassification(TextClassificationOptions options) => new(Environment, options);
}
