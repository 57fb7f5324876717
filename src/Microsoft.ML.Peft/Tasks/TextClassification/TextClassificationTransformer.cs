// Copyright (c) the Microsoft.ML.Peft authors. Licensed under the MIT License.

using Microsoft.ML;
using Microsoft.ML.Data;
using Microsoft.ML.Peft.Adaptation;
using Microsoft.ML.Peft.Data;
using Microsoft.ML.Peft.Tasks;
using Microsoft.ML.Runtime;

[assembly: LoadableClass(typeof(TextClassificationTransformer), null, typeof(SignatureLoadModel),
    TextClassificationModel.UserName, TextClassificationModel.LoaderSignature)]

namespace Microsoft.ML.Peft.Tasks;

/// <summary>
/// A trained text classifier. Key labels: adds <c>PredictedLabel</c> (a key with the label's values) and <c>Score</c> (one
/// probability a class, they sum to 1). Boolean labels: adds <c>PredictedLabel</c>, <c>Score</c> (log-odds) and
/// <c>Probability</c>. <see cref="Transform"/> is lazy and scores in batches; scoring is thread-safe.
/// </summary>
public sealed class TextClassificationTransformer : ITransformer, IDisposable
{
    private readonly TextClassificationModel _model;
    private readonly TextClassificationScorer _scorer;

    internal TextClassificationTransformer(TextClassificationModel model)
    {
        _model = model;
        _scorer = new TextClassificationScorer(model.Classifier, model.Text, model.Columns);
    }

    internal TextClassificationModel Inner => _model;

    /// <summary>The method with its options.</summary>
    public PeftMethod Method => _model.Method;

    /// <summary>Short texts of the classes, in the order of the scores.</summary>
    public IReadOnlyList<string> Labels => _model.Classifier.Labels.Names;

    /// <summary>The network: backbone, adaptation and head. It belongs to the transformer.</summary>
    public AdaptedModel Model => _model.Classifier.Model;

    /// <summary>Longest text in tokens; longer ones are cut.</summary>
    public int MaxTokens => _model.Classifier.MaxTokens;

    /// <summary>True for Boolean labels.</summary>
    public bool IsBinary => _model.Classifier.Labels.IsBinary;

    /// <summary>Names of the text columns that are read.</summary>
    public IReadOnlyList<string> TextColumns => _model.Text.Names;

    /// <summary>Name of the score column that is added.</summary>
    public string ScoreColumn => _model.Columns.Score;

    /// <summary>Name of the predicted-label column that is added.</summary>
    public string PredictedLabelColumn => _model.Columns.PredictedLabel;

    /// <summary>Name of the probability column that is added for Boolean labels.</summary>
    public string ProbabilityColumn => _model.Columns.Probability;

    /// <summary>Number of trained numbers, the head included.</summary>
    public long TrainableParameters => Model.Parameters.Where(p => p.Trainable).Sum(p => p.Value.numel());

    /// <summary>Number of all numbers, frozen ones included.</summary>
    public long TotalParameters => Model.Backbone.ParameterCount + Model.Parameters.Sum(p => p.Value.numel());

    /// <summary>Number of tokens that a text, or a pair of texts, has for the network.</summary>
    /// <param name="first">The text.</param>
    /// <param name="second">The second text of a pair, or null.</param>
    public int CountTokens(string first, string? second = null) => _model.Classifier.Encode(new TextRow(first, second)).Length;

    /// <summary>Figures of the training run; null for a model that was loaded.</summary>
    public Training.TrainingResult? Training { get; internal init; }

    /// <inheritdoc/>
    public bool IsRowToRowMapper => true;

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A text column is missing or holds no text.</exception>
    public DataViewSchema GetOutputSchema(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return ScoredSchema.Make(inputSchema, _scorer.OutputColumns(inputSchema));
    }

    /// <inheritdoc/>
    /// <exception cref="ArgumentOutOfRangeException">A text column is missing or holds no text.</exception>
    public IDataView Transform(IDataView input)
    {
        ArgumentNullException.ThrowIfNull(input);
        return new ScoredView<TextRow, ClassScores>(input, _scorer);
    }

    /// <inheritdoc/>
    public IRowToRowMapper GetRowToRowMapper(DataViewSchema inputSchema)
    {
        ArgumentNullException.ThrowIfNull(inputSchema);
        return new ScoredRowMapper<TextRow, ClassScores>(inputSchema, _scorer);
    }

    /// <summary>Writes the adaptation and the head as a Hugging Face PEFT folder.</summary>
    /// <param name="folder">Folder to write; made where it does not exist.</param>
    /// <exception cref="NotSupportedException">The method does not exist in Hugging Face PEFT.</exception>
    public void SaveAdapter(string folder) => _model.SaveAdapter(folder);

    void ICanSaveModel.Save(ModelSaveContext ctx) => _model.Save(ctx);

    // Found by mlContext.Model.Load through the attribute above.
    private static TextClassificationTransformer Create(IHostEnvironment env, ModelLoadContext ctx) =>
        new(TextClassificationModel.Load(env, ctx));

    /// <summary>Frees the network's memory. Prediction engines over this transformer end with it.</summary>
    public void Dispose() => _model.Dispose();
}
