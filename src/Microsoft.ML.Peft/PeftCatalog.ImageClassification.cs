// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Methods;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Peft.Training;

namespace Microsoft.ML;

public sealed partial class PeftCatalog
{
    /// <summary>Fine-tunes a classifier of images by LoRA (Hu et al. 2022, arXiv 2106.09685).</summary>
    /// <param name="labelColumnName">Label column: key or Boolean.</param>
    /// <param name="scoreColumnName">Score column that is added.</param>
    /// <param name="predictedLabelColumnName">Predicted-label column that is added.</param>
    /// <param name="imageColumnName">Column with paths, bytes of files, or <c>MLImage</c>.</param>
    /// <param name="rank">Rank of the update; higher fits finer and stores more.</param>
    /// <param name="alpha">Scaling numerator; the update is scaled by alpha / rank.</param>
    /// <param name="dropout">Dropout on the adapter's input while training.</param>
    /// <param name="batchSize">Rows in a batch.</param>
    /// <param name="maxEpochs">Passes over the data.</param>
    /// <param name="learningRate">Highest learning rate.</param>
    /// <param name="backboneFolder">Hugging Face folder; null for the embedded ViT.</param>
    /// <param name="validationSet">Rows to evaluate on while training, or null.</param>
    /// <exception cref="ArgumentException">An argument is out of range.</exception>
    public ImageClassificationTrainer LoraImageClassification(
        string labelColumnName = "Label",
        string scoreColumnName = "Score",
        string predictedLabelColumnName = "PredictedLabel",
        string imageColumnName = "Image",
        int rank = 8,
        double alpha = 16,
        double dropout = 0.05,
        int batchSize = 16,
        int maxEpochs = 3,
        double learningRate = 5e-4,
        string? backboneFolder = null,
        IDataView? validationSet = null) =>
        ImageClassification(
            new LoraOptions { Rank = rank, Alpha = alpha, Dropout = dropout },
            labelColumnName, scoreColumnName, predictedLabelColumnName, imageColumnName, batchSize, maxEpochs, learningRate, backboneFolder, validationSet);

    /// <summary>Fine-tunes a classifier of images by any method.</summary>
    /// <param name="method">The method with its options; null for LoRA.</param>
    /// <param name="labelColumnName">Label column: key or Boolean.</param>
    /// <param name="scoreColumnName">Score column that is added.</param>
    /// <param name="predictedLabelColumnName">Predicted-label column that is added.</param>
    /// <param name="imageColumnName">Column with paths, bytes of files, or <c>MLImage</c>.</param>
    /// <param name="batchSize">Rows in a batch.</param>
    /// <param name="maxEpochs">Passes over the data.</param>
    /// <param name="learningRate">Highest learning rate; null for what suits the method.</param>
    /// <param name="backboneFolder">Hugging Face folder; null for the embedded ViT.</param>
    /// <param name="validationSet">Rows to evaluate on while training, or null.</param>
    /// <exception cref="ArgumentException">An argument is out of range.</exception>
    public ImageClassificationTrainer ImageClassification(
        PeftMethod? method = null,
        string labelColumnName = "Label",
        string scoreColumnName = "Score",
        string predictedLabelColumnName = "PredictedLabel",
        string imageColumnName = "Image",
        int batchSize = 16,
        int maxEpochs = 3,
        double? learningRate = null,
        string? backboneFolder = null,
        IDataView? validationSet = null)
    {
        var options = new ImageClassificationOptions
        {
            LabelColumnName = labelColumnName,
            ScoreColumnName = scoreColumnName,
            PredictedLabelColumnName = predictedLabelColumnName,
            ImageColumnName = imageColumnName,
            BackboneFolder = backboneFolder,
            ValidationSet = validationSet,
            Training = new TrainingOptions { BatchSize = batchSize, Epochs = maxEpochs, LearningRate = learningRate },
        };
        if (method is not null) options.Method = method;
        return ImageClassification(options);
    }

    /// <summary>Fine-tunes a classifier of images with all options.</summary>
    /// <param name="options">All options.</param>
    /// <exception cref="ArgumentException">An option is out of range.</exception>
    public ImageClassificationTrainer ImageClassification(ImageClassificationOptions options) => new(Environment, options);
}
