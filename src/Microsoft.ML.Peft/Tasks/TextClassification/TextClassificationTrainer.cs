// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Backbones;
using Microsoft.ML.Peft.Checkpoints;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Persistence;
using Microsoft.ML.Peft.Training;
using Microsoft.ML.Runtime;

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// Fine-tunes a frozen text backbone to classify one text or a pair of texts. Input: a key or Boolean label and text
/// columns; output: see <see cref="TextClassificationTransformer"/>. Fit may be called again and again, also from
/// <c>CrossValidate</c>; each call starts anew.
/// </summary>
public sealed class TextClassificationTrainer : IEstimator<TextClassificationTransformer>
{
    private readonly IHostEnvironment _environment;
    private readonly TextClassificationOptions _options;

    internal TextClassificationTrainer(IHostEnvironment environment, TextClassificationOptions options)
    {
        ArgumentNullException.ThrowIfNull(environment);
        ArgumentNullException.ThrowIfNull(options);
        _environment = environment;
        _options = options.Copy();
        _options.Validate();
    }

    private TextColumns Text => new(_options.Sentence1ColumnName, _options.Sentence2ColumnName);

    private ClassifierColumns Columns => new(_options.ScoreColumnName, _options.PredictedLabelColumnName, _options.ProbabilityColumnName);

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    public SchemaShape GetOutputSchema(SchemaShape inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        foreach (string name in Text.Names) OutputShapes.CheckText(inputSchema, name);
        return OutputShapes.Classifier(inputSchema, _options.LabelColumnName, Columns.Score, Columns.PredictedLabel, Columns.Probability);
    }

    /// <inheritdoc/>
    public TextClassificationTransformer Fit(IDataView input) => Fit(input, _options.ValidationSet);

    /// <summary>Trains with rows to evaluate on.</summary>
    /// <param name="input">Rows to train on.</param>
    /// <param name="validation">Rows to evaluate on, of the same schema; null for none.</param>
    /// <exception cref="ArgumentOutOfRangeException">A column is missing or of the wrong type.</exception>
    /// <exception cref="InvalidOperationException">The data has no rows, labels that are missing, or one class only; or training diverged.</exception>
    public TextClassificationTransformer Fit(IDataView input, IDataView? validation)
    {
        ArgumentNullException.ThrowIfNull(input);
        IHost host = _environment.Register(nameof(TextClassificationTrainer));
        using IChannel channel = host.Start("Training");
        LabelSet labels = LabeledRows.Labels(input, _options.LabelColumnName);
        Text.Check(input.Schema);
        TrainingOptions training = _options.Training.Copy();
        training.Seed = ModelEntry.Seed(_environment) ?? training.Seed;

        string? folder = _options.BackboneFolder is { } given ? Path.GetFullPath(given) : null;
        using CheckpointFolder checkpoint = TextClassificationModel.OpenBackbone(folder);
        TextTokenizer tokenizer = TextTokenizer.Load(checkpoint.Files);
        Backbone backbone = BackboneLoader.Load(checkpoint, Devices.Choose(_environment));
        if (backbone.UnusedTensors.Count > 0)
            channel.Info(MessageSensitivity.None, $"The backbone's file holds tensors that are not used: {NearNames.List(backbone.UnusedTensors)}.");
        AdaptedModel model = TextClassificationModel.Assemble(backbone, _options.Method, labels.Count, _options.Pooling, training.Seed, null);
        var classifier = new TextClassifier(model, tokenizer, labels, Math.Min(_options.MaxTokens, backbone.Config.MaxTokens));
        try
        {
            TrainingResult result = Train(host, channel, classifier, training, input, validation);
            var fitted = new TextClassificationModel(
                classifier, _options.Method, _options.Pooling, Text, Columns, BackboneSource.Of(checkpoint, folder), !_options.EmbedBackbone);
            return new TextClassificationTransformer(fitted) { Training = result };
        }
        catch
        {
            classifier.Dispose();
            throw;
        }
    }

    private TrainingResult Train(
        IHost host, IChannel channel, TextClassifier classifier, TrainingOptions training, IDataView input, IDataView? validation)
    {
        IReadOnlyList<Example> rows = LabeledRows.Read(input, _options.LabelColumnName, Text, classifier, skipMissing: false, channel);
        IReadOnlyList<Example>? held = validation is null
            ? null
            : LabeledRows.Read(validation, _options.LabelColumnName, Text, classifier, skipMissing: true, channel);
        var objective = new CrossEntropyObjective(classifier.Labels.Count, training);
        using var progress = new ProgressReport(host, channel, training);
        channel.Info(MessageSensitivity.None, TrainingPlan.Make(classifier.Model, rows, training).ToString());
        return new Trainer(training).Fit(classifier.Model, rows, held, objective);
    }
}
